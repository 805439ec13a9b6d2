"""Compiled inner loops over finite models. No policy about goals or agents lives here: arrays in, arrays out.

Every kernel has a plain NumPy or SciPy twin in `tests/oracles`. Numba is loaded with this module, so import it late.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

import numba
import numpy as np

_TINY = 1e-12


@numba.njit(cache=True)
def mix(x: np.uint64) -> np.uint64:
    """SplitMix64 finaliser (Steele, Lea and Flood 2014): a counter in, 64 random-looking bits out."""
    z = np.uint64(x) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(cache=True)
def unit(x: np.uint64) -> float:
    """A float in [0, 1) from a counter."""
    return np.float64(mix(x) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@numba.njit(cache=True)
def functional_ends(successor: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each trajectory first stops: (end int64 `[S]`, steps int64 `[S]`); end -1 where it circles forever."""
    n = successor.size
    steps = np.full(n, -2, np.int64)
    end = np.full(n, -1, np.int64)
    path = np.empty(n, np.int64)
    for s in range(n):
        if stop[s]:
            steps[s] = 0
            end[s] = s
    for s in range(n):
        length = 0
        x = s
        while steps[x] == -2:
            steps[x] = -3
            path[length] = x
            length += 1
            x = successor[x]
        base = steps[x] if steps[x] >= 0 else -1
        for i in range(length - 1, -1, -1):
            if base >= 0:
                base += 1
                end[path[i]] = end[x]
            steps[path[i]] = base
    return end, steps


@numba.njit(cache=True)
def functional_steps(successor: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Steps to the goal when each state has one successor: int64 `[S]`, -1 where the goal is never reached."""
    return functional_ends(successor, goal)[1]


@numba.njit(cache=True)
def _reverse(next_state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predecessors in compressed rows: (row starts `[S+1]`, predecessor states), from int32 `[S, E]`."""
    n, e = next_state.shape
    start = np.zeros(n + 1, np.int32)
    for s in range(n):
        for j in range(e):
            start[next_state[s, j] + 1] += 1
    for s in range(n):
        start[s + 1] += start[s]
    fill = start[:-1].copy()
    pred = np.empty(n * e, np.int32)
    for s in range(n):
        for j in range(e):
            t = next_state[s, j]
            pred[fill[t]] = s
            fill[t] += 1
    return start, pred


@numba.njit(cache=True)
def distances_to(next_state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Fewest steps to a goal set over int32 `[S, E]` edges: int32 `[S]`, -1 where unreachable. Breadth first."""
    n = next_state.shape[0]
    start, pred = _reverse(next_state)
    dist = np.full(n, -1, np.int32)
    queue = np.empty(n, np.int32)
    head, tail = 0, 0
    for s in range(n):
        if goal[s]:
            dist[s] = 0
            queue[tail] = s
            tail += 1
    while head < tail:
        x = queue[head]
        head += 1
        for i in range(start[x], start[x + 1]):
            p = pred[i]
            if dist[p] < 0:
                dist[p] = dist[x] + 1
                queue[tail] = p
                tail += 1
    return dist


@numba.njit(cache=True)
def _unique_reverse(next_state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `_reverse`, without self-loops and repeated predecessors."""
    n, e = next_state.shape
    start, pred = _reverse(next_state)
    out_start = np.zeros(n + 1, np.int32)
    out = np.empty(n * e, np.int32)
    k = 0
    for t in range(n):
        last = -1
        for i in range(start[t], start[t + 1]):
            p = pred[i]
            # predecessors of one state come in increasing order, so repeats are neighbours
            if p != t and p != last:
                out[k] = p
                k += 1
                last = p
        out_start[t + 1] = k
    return out_start, out[:k]


@numba.njit(cache=True)
def _derived_goals(start: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """States no two of which are neighbours, picked greedily by rising number of predecessors: bool `[S]`."""
    n = start.size - 1
    out = np.zeros(n, np.bool_)
    needed = np.zeros(n, np.bool_)
    degree = start[1:] - start[:-1]
    for x in np.argsort(degree, kind="mergesort"):
        free = degree[x] > 0 and not needed[x]
        for i in range(start[x], start[x + 1]):
            free &= not out[pred[i]]
        if free:
            out[x] = True
            for i in range(start[x], start[x + 1]):
                needed[pred[i]] = True
    return out


@numba.njit(cache=True)
def _search_back(start: np.ndarray, pred: np.ndarray, dist: np.ndarray, queue: np.ndarray, g: int) -> None:
    """Breadth first against the edges from g, into int32 `[S]` that holds -1. `queue` uint32 `[S + 1]` is scratch."""
    dist[g] = 0
    queue[0] = g
    head, tail = np.uint64(0), np.uint64(1)
    while head < tail:
        x = queue[head]
        head += np.uint64(1)
        d = dist[x] + np.int32(1)
        for i in range(start[x], start[x + np.uint32(1)]):
            # no branch on "seen before", which no predictor guesses: always write, and step on only where it was new
            p = np.uint32(pred[np.uint32(i)])
            old = dist[p]
            new = old < 0
            queue[tail] = p
            dist[p] = d if new else old
            tail += np.uint64(new)


@numba.njit(cache=True)
def all_distances(next_state: np.ndarray) -> np.ndarray:
    """Fewest steps between all pairs over int32 `[S, E]` edges: int32 `[S, S]`, row g the distances *to* g, or -1.

    About half of the goals are searched. The others have only searched predecessors, and the last edge of a shortest
    path starts in one of them: their rows are one more than the least of those rows.
    """
    n = next_state.shape[0]
    start, pred = _unique_reverse(next_state)
    derived = _derived_goals(start, pred)
    out = np.full((n, n), -1, np.int32)
    queue = np.empty(n + 1, np.uint32)
    for g in range(n):
        if not derived[g]:
            _search_back(start, pred, out[g], queue, g)
    # unsigned, -1 is the largest number: the least of several ignores it
    rows = out.view(np.uint32)
    never = np.uint32(0xFFFFFFFF)
    for g in range(n):
        if not derived[g]:
            continue
        row = rows[g]
        for i in range(start[g], start[g + 1]):
            other = rows[pred[i]]
            for x in range(n):
                row[x] = min(row[x], other[x])
        for x in range(n):
            row[x] += np.uint32(row[x] != never)
        row[g] = 0
    return out


@numba.njit(cache=True)
def reach_backups(
    next_state: np.ndarray, prob: np.ndarray, reward: np.ndarray, gamma: float, sweeps: int, tolerance: float
) -> tuple[np.ndarray, np.ndarray, int]:
    """Bellman backups of "collect a state's reward on entering it, and end there if it is not zero".

    Starts from V = 0. A successor equal to S is unknown and worth nothing. Stops after `sweeps` backups, or once no
    value moves by more than `tolerance` (a fixed point, for tolerance 0 on deterministic models).

    Returns:
        Q float64 `[S, A]` of the last backup, V float64 `[S]`, and the number of backups made.
    """
    n, n_actions, k = next_state.shape
    value = np.zeros(n + 1)
    fresh = np.zeros(n + 1)
    q = np.zeros((n, n_actions))
    # what entering a state is worth; index S stands for "unknown"
    worth = np.zeros(n + 1)
    done = 0
    for _ in range(sweeps):
        for s in range(n):
            worth[s] = reward[s] if reward[s] != 0.0 else gamma * value[s]
        moved = 0.0
        for s in range(n):
            best = -np.inf
            for a in range(n_actions):
                total = 0.0
                for j in range(k):
                    total += prob[s, a, j] * worth[next_state[s, a, j]]
                q[s, a] = total
                if total > best:
                    best = total
            fresh[s] = best
            moved = max(moved, abs(best - value[s]))
        value, fresh = fresh, value
        done += 1
        if moved <= tolerance:
            break
    return q, value[:n], done


@numba.njit(cache=True)
def candidate_gains(
    next_state: np.ndarray,
    prob: np.ndarray,
    goal: np.ndarray,
    gamma: float,
    inverse: np.ndarray,
    value: np.ndarray,
    flow: np.ndarray,
) -> np.ndarray:
    """Exact change of the objective for every "in state s, always take action a": float64 `[S, A]`.

    With `M = (I - γP)^-1`, V the values and `flow = w M` for the objective `w·V`, replacing the row of s changes the
    objective by `flow[s] (qV - V[s]) / (M[s,s] - qM[s])`, where q is the new discounted row (Sherman and Morrison
    1950). Goal rows give 0.
    """
    n, n_actions, k = next_state.shape
    out = np.zeros((n, n_actions))
    for s in range(n):
        if goal[s]:
            continue
        for a in range(n_actions):
            qv = 0.0
            qm = 0.0
            for j in range(k):
                t = next_state[s, a, j]
                p = gamma * prob[s, a, j]
                qv += p * value[t]
                qm += p * inverse[t, s]
            out[s, a] = flow[s] * (qv - value[s]) / (inverse[s, s] - qm)
    return out


@numba.njit(cache=True)
def restore_gains(
    next_state: np.ndarray,
    prob: np.ndarray,
    old: np.ndarray,
    states: np.ndarray,
    gamma: float,
    inverse: np.ndarray,
    value: np.ndarray,
    flow: np.ndarray,
) -> np.ndarray:
    """As `candidate_gains`, for putting the old row `old[s]` of action probabilities back: float64 `[len(states)]`."""
    n_actions, k = next_state.shape[1:]
    out = np.zeros(states.size)
    for i in range(states.size):
        s = states[i]
        qv = 0.0
        qm = 0.0
        for a in range(n_actions):
            for j in range(k):
                t = next_state[s, a, j]
                p = gamma * old[s, a] * prob[s, a, j]
                qv += p * value[t]
                qm += p * inverse[t, s]
        out[i] = flow[s] * (qv - value[s]) / (inverse[s, s] - qm)
    return out


@numba.njit(cache=True)
def replace_row(inverse: np.ndarray, s: int, row: np.ndarray) -> None:
    """Update `M = (I - T)^-1` in place after row s of T became `row` float64 `[S]` (rank one, O(S²))."""
    n = inverse.shape[0]
    moved = np.zeros(n)
    for t in range(n):
        if row[t] != 0.0:
            for j in range(n):
                moved[j] += row[t] * inverse[t, j]
    for j in range(n):
        moved[j] -= inverse[s, j]
    moved[s] += 1.0
    scale = 1.0 / (1.0 - moved[s])
    for i in range(n):
        c = inverse[i, s] * scale
        if c != 0.0:
            for j in range(n):
                inverse[i, j] += c * moved[j]


@numba.njit(cache=True)
def functional_flow(successor: np.ndarray, goal: np.ndarray, gamma: float, weight: np.ndarray) -> np.ndarray:
    """Discounted weight that passes through each state before it passes there again: float64 `[S]`.

    `flow[s] = sum over x of weight[x] γ^(steps from x to s, first visit)`, when each state has one successor and the
    goal absorbs. Linear time: trees by topological order, cycles by one turn.
    """
    n = successor.size
    degree = np.zeros(n, np.int64)
    for s in range(n):
        if not goal[s]:
            degree[successor[s]] += 1
    flow = weight.copy()
    queue = np.empty(n, np.int64)
    head, tail = 0, 0
    for s in range(n):
        if degree[s] == 0:
            queue[tail] = s
            tail += 1
    while head < tail:
        x = queue[head]
        head += 1
        if goal[x]:
            continue
        t = successor[x]
        flow[t] += gamma * flow[x]
        degree[t] -= 1
        if degree[t] == 0:
            queue[tail] = t
            tail += 1
    on_cycle = np.zeros(n, np.bool_)
    for s in range(n):
        if degree[s] > 0 and not goal[s]:
            on_cycle[s] = True
    seen = np.zeros(n, np.bool_)
    cycle = np.empty(n, np.int64)
    for s in range(n):
        if not on_cycle[s] or seen[s]:
            continue
        length = 0
        x = s
        while not seen[x]:
            seen[x] = True
            cycle[length] = x
            length += 1
            x = successor[x]
        # sum of what enters each cycle state and turns once around; then slide along the cycle
        total = 0.0
        for i in range(length - 1, -1, -1):
            # state i sends its weight to the last state of the cycle after length-1-i steps
            total += flow[cycle[i]] * gamma ** (length - 1 - i)
        entering = flow[cycle[:length]].copy()
        turn = gamma**length
        for i in range(length):
            total = gamma * total + entering[i] * (1.0 - turn)
            flow[cycle[i]] = total
    return flow


@numba.njit(cache=True)
def tree_intervals(successor: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth-first intervals of the tree that flows into the goal: `x` passes through `s` when
    `first[s] <= first[x] < last[s]`. States that never reach the goal get -1."""
    n = successor.size
    start = np.zeros(n + 1, np.int32)
    for s in range(n):
        if not goal[s]:
            start[successor[s] + 1] += 1
    for s in range(n):
        start[s + 1] += start[s]
    fill = start[:-1].copy()
    child = np.empty(n, np.int32)
    for s in range(n):
        if not goal[s]:
            child[fill[successor[s]]] = s
            fill[successor[s]] += 1
    first = np.full(n, -1, np.int32)
    last = np.full(n, -1, np.int32)
    stack = np.empty(n, np.int32)
    at = start[:-1].copy()
    clock = 0
    for root in range(n):
        if not goal[root]:
            continue
        depth = 0
        stack[0] = root
        first[root] = clock
        clock += 1
        while depth >= 0:
            x = stack[depth]
            if at[x] < start[x + 1]:
                y = child[at[x]]
                at[x] += 1
                first[y] = clock
                clock += 1
                depth += 1
                stack[depth] = y
            else:
                last[x] = clock
                depth -= 1
    return first, last


@numba.njit(cache=True)
def functional_gains(
    next_state: np.ndarray,
    goal: np.ndarray,
    gamma: float,
    value: np.ndarray,
    flow: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
) -> np.ndarray:
    """As `candidate_gains`, for deterministic policies in deterministic worlds, in O(S A): float64 `[S, A]`.

    A new successor that flows through s itself closes a loop, and everything that flowed through s is lost.
    """
    n, n_actions = next_state.shape
    out = np.zeros((n, n_actions))
    for s in range(n):
        if goal[s]:
            continue
        for a in range(n_actions):
            t = next_state[s, a]
            loops = first[s] >= 0 and first[t] >= first[s] and first[t] < last[s]
            new = 0.0 if loops else gamma * value[t]
            out[s, a] = flow[s] * (new - value[s])
    return out


@numba.njit(cache=True)
def best_candidate(gains: np.ndarray, allowed: np.ndarray) -> tuple[int, int, float]:
    """The allowed `[S, A]` candidate with the largest gain; ties (to 1e-12 relative) go to the lowest index."""
    n, n_actions = gains.shape
    best_s, best_a, best = -1, -1, -np.inf
    for s in range(n):
        for a in range(n_actions):
            if allowed[s, a] and (best_s < 0 or gains[s, a] > best + _TINY * abs(best)):
                best_s, best_a, best = s, a, gains[s, a]
    return best_s, best_a, best


@numba.njit(cache=True)
def _rank(row: np.ndarray, tied: np.ndarray) -> tuple[float, float]:
    """Largest value of a row and how many actions have it; lists those in `tied` int32 `[A]`, in order."""
    best = row[0]
    for b in range(1, row.size):
        best = max(best, row[b])
    ties = 0
    for b in range(row.size):
        tied[ties] = b
        ties += row[b] == best
    return best, np.float64(ties)


@numba.njit(cache=True)
def q_learning(
    q: np.ndarray,
    visits: np.ndarray,
    next_state: np.ndarray,
    cumulative: np.ndarray,
    goal: np.ndarray,
    starts: np.ndarray,
    episodes: int,
    horizon: int,
    gamma: float,
    epsilon: float,
    seed: int,
    counter: int,
    started: np.ndarray,
) -> tuple[int, int]:
    """Tabular Q-learning (Watkins and Dayan 1992) in place, reward 1 on entering the goal, which ends the episode.

    Step size 1 where the model has one successor (exact backups), else `visits^-0.6` (Robbins and Monro 1951).
    Behaviour is ε-greedy with uniform tie-breaking. `started` bool `[S]` is set where episodes
    began. `cumulative` float64 `[S, A, K]` holds cumulated probabilities.

    Returns:
        transitions sampled, and the counter to go on from.
    """
    n, n_actions, k = next_state.shape
    # each state's best value and the actions that share it are kept up to date: most updates change neither
    best = np.empty(n)
    ties = np.empty(n)
    tied = np.empty((n, n_actions), np.int32)
    for x in range(n):
        best[x], ties[x] = _rank(q[x], tied[x])
    steps = 0
    base = mix(seed)
    c, one = np.uint64(counter), np.uint64(1)
    for _ in range(episodes):
        c += one
        s = np.uint32(starts[int(unit(base ^ c) * starts.size)])
        started[s] = True
        for _ in range(horizon):
            if goal[s]:
                break
            c += one
            u = unit(base ^ c)
            if u < epsilon:
                a = np.uint32(u / epsilon * n_actions)
            else:
                c += one
                a = np.uint32(tied[s, np.uint32(unit(base ^ c) * ties[s])])
            j = 0
            if k > 1:
                c += one
                v = unit(base ^ c)
                for i in range(k):
                    if v < cumulative[s, a, i]:
                        j = i
                        break
            t = np.uint32(next_state[s, a, j])
            steps += 1
            visits[s, a] += 1
            target = 1.0 if goal[t] else gamma * best[t]
            rate = 1.0 if k == 1 else visits[s, a] ** -0.6
            old = q[s, a]
            new = old + rate * (target - old)
            if new != old:
                q[s, a] = new
                if new > best[s]:
                    best[s], ties[s], tied[s, 0] = new, 1.0, a
                elif new == best[s] or old == best[s]:
                    best[s], ties[s] = _rank(q[s], tied[s])
            s = t
    return steps, np.int64(c)


@numba.njit(cache=True)
def gather(
    policy: np.ndarray,
    next_state: np.ndarray,
    cumulative: np.ndarray,
    goal: np.ndarray,
    starts: np.ndarray,
    episodes: int,
    horizon: int,
    epsilon: float,
    seed: int,
    started: np.ndarray,
) -> np.ndarray:
    """Count transitions along a policy with ε exploration: int32 `[S, A, K]` by successor slot.

    `started` bool `[S]` is set where episodes began. `policy` float64 `[S, A]` is sampled; with probability
    ε a uniform action is taken instead.
    """
    n, n_actions, k = next_state.shape
    counts = np.zeros((n, n_actions, k), np.int32)
    base = mix(seed)
    counter = 0
    for _ in range(episodes):
        counter += 1
        s = starts[int(unit(base ^ np.uint64(counter)) * starts.size)]
        started[s] = True
        for _ in range(horizon):
            if goal[s]:
                break
            counter += 1
            u = unit(base ^ np.uint64(counter))
            counter += 1
            v = unit(base ^ np.uint64(counter))
            a = n_actions - 1
            if u < epsilon:
                a = int(v * n_actions)
            else:
                total = 0.0
                for b in range(n_actions):
                    total += policy[s, b]
                    if v < total:
                        a = b
                        break
            j = 0
            if k > 1:
                counter += 1
                w = unit(base ^ np.uint64(counter))
                while j < k - 1 and w >= cumulative[s, a, j]:
                    j += 1
            counts[s, a, j] += 1
            s = next_state[s, a, j]
    return counts
