"""MC-AIXI in a finite world whose states are seen, compiled: a context is a state and an action, a percept a state.

The history then matters through the present state alone, so that the nodes of every context tree are sums of the
transition counts `[S, A, S]`, and what the trees predict is a table `[S, A, S]`. A decision holds this table fixed:
what a simulated path would teach the model on the way, a change of order 1/counts, is left out.

Numba is loaded with this module.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

import math

import numba
import numpy as np

from retarget.bayes.domains import MOST_SIMULATIONS
from retarget.bayes.rho_uct import drawn
from retarget.errors import RetargetError
from retarget.kernels import mix, unit

_LOG_HALF = math.log(0.5)
_LOG_PI = math.log(math.pi)


@numba.njit(cache=True)
def _reversed_bits(number: int, width: int) -> int:
    out = 0
    for _ in range(width):
        out = 2 * out + (number & 1)
        number >>= 1
    return out


@numba.njit(cache=True)
def _log_kt(zeros: float, ones: float) -> float:
    return math.lgamma(zeros + 0.5) + math.lgamma(ones + 0.5) - _LOG_PI - math.lgamma(zeros + ones + 1.0)


@numba.njit(cache=True)
def _weigh(counts: np.ndarray, leaves: int) -> np.ndarray:
    """Fill a context tree from its leaves up: the weight of "stop here" of each node.

    Args:
        counts: float64 `[2 * leaves, 2]`, a heap: node n has the children 2n and 2n + 1; leaves are filled.
    """
    log_w = np.zeros(2 * leaves)
    stop = np.full(2 * leaves, 0.5)
    for node in range(2 * leaves - 1, 0, -1):
        if node < leaves:
            counts[node, 0] = counts[2 * node, 0] + counts[2 * node + 1, 0]
            counts[node, 1] = counts[2 * node, 1] + counts[2 * node + 1, 1]
        if counts[node, 0] + counts[node, 1] == 0.0:
            continue
        own = _log_kt(counts[node, 0], counts[node, 1])
        if node >= leaves:
            log_w[node] = own
            stop[node] = 1.0
            continue
        below = log_w[2 * node] + log_w[2 * node + 1]
        high = max(own, below)
        log_w[node] = _LOG_HALF + high + math.log1p(math.exp(min(own, below) - high))
        stop[node] = math.exp(_LOG_HALF + own - log_w[node])
    return stop


@numba.njit(cache=True)
def _predictions(counts: np.ndarray, stop: np.ndarray, leaves: int) -> np.ndarray:
    """Probability of a 1 in each leaf's context: float64 `[leaves]`."""
    sure = np.zeros(2 * leaves)
    rest = np.ones(2 * leaves)
    out = np.empty(leaves)
    for node in range(1, 2 * leaves):
        estimate = (counts[node, 1] + 0.5) / (counts[node, 0] + counts[node, 1] + 1.0)
        if node >= leaves:
            out[node - leaves] = sure[node] + rest[node] * estimate
            continue
        passed = sure[node] + rest[node] * stop[node] * estimate
        left = rest[node] * (1.0 - stop[node])
        for child in (2 * node, 2 * node + 1):
            sure[child] = passed
            rest[child] = left
    return out


@numba.njit(cache=True)
def predictive(counts: np.ndarray, state_bits: int, action_bits: int) -> np.ndarray:
    """What the factored context trees predict: float64 `[S, A, S]`, from transition counts of that shape.

    Bit i of the next state has a tree of depth i + action bits + state bits, whose contexts are, latest bit first, the
    next state's earlier bits, the action and the state. Rows sum to less than 1 where S is not a power of two: the rest
    lies on numbers that are no states.
    """
    n, n_actions = counts.shape[:2]
    context = action_bits + state_bits
    out = np.ones((n, n_actions, 1 << state_bits))
    where = np.empty((n, n_actions), np.int64)
    for s in range(n):
        for a in range(n_actions):
            where[s, a] = (_reversed_bits(a, action_bits) << state_bits) | _reversed_bits(s, state_bits)
    for i in range(state_bits):
        leaves = 1 << (i + context)
        tree = np.zeros((2 * leaves, 2))
        for s in range(n):
            for a in range(n_actions):
                for t in range(n):
                    c = counts[s, a, t]
                    if c > 0.0:
                        prefix = t >> (state_bits - i)
                        leaf = leaves + (_reversed_bits(prefix, i) << context) + where[s, a]
                        tree[leaf, (t >> (state_bits - 1 - i)) & 1] += c
        one = _predictions(tree, _weigh(tree, leaves), leaves)
        for prefix in range(1 << i):
            first = prefix << (state_bits - i)
            half = 1 << (state_bits - 1 - i)
            at = _reversed_bits(prefix, i) << context
            for s in range(n):
                for a in range(n_actions):
                    p = one[at + where[s, a]]
                    out[s, a, first : first + half] *= 1.0 - p
                    out[s, a, first + half : first + 2 * half] *= p
    return out[:, :, :n].copy()


@numba.njit(cache=True)
def ordered(prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Successors by falling probability, int32 `[S, A, S + 1]`, and their cumulative probability; S is "no state"."""
    n, n_actions = prob.shape[:2]
    order = np.empty((n, n_actions, n + 1), np.int32)
    cumulative = np.empty((n, n_actions, n + 1))
    row = np.empty(n + 1)
    for s in range(n):
        for a in range(n_actions):
            row[:n] = prob[s, a]
            row[n] = max(0.0, 1.0 - prob[s, a].sum())
            rank = np.argsort(-row, kind="mergesort")
            total = 0.0
            for k in range(n + 1):
                total += row[rank[k]]
                order[s, a, k] = rank[k]
                cumulative[s, a, k] = total
    return order, cumulative


@numba.njit(cache=True)
def _bound_tables(simulations: int) -> np.ndarray:
    """`sqrt(log n)` and `1 / sqrt(n)` for n up to the simulations: float64 `[simulations + 1, 2]`."""
    out = np.zeros((simulations + 1, 2))
    for n in range(1, simulations + 1):
        out[n, 0] = math.sqrt(math.log(n))
        out[n, 1] = 1.0 / math.sqrt(n)
    return out


@numba.njit(cache=True)
def _choose(
    tries: np.ndarray, mean: np.ndarray, total: int, scale: float, bonus: float, table: np.ndarray, draw: float
) -> int:
    """An untried action at random; where there is none, the first with the highest upper confidence bound."""
    n_actions = tries.size
    if total < n_actions:
        skip = int(draw * (n_actions - total))
        for a in range(n_actions):
            if tries[a] == 0:
                if skip == 0:
                    return a
                skip -= 1
    best = 0
    top = -np.inf
    spread = bonus * table[total, 0]
    for a in range(n_actions):
        bound = mean[a] * scale + spread * table[tries[a], 1]
        if bound > top:
            top = bound
            best = a
    return best


@numba.njit(cache=True)
def _child_of(
    tries: np.ndarray, mean: np.ndarray, links: np.ndarray, node: int, action: int, state: int, used: int
) -> tuple[int, int]:
    """The decision node after a state that came of an action, and 1 where it had to be made."""
    n_actions = mean.shape[1]
    child = links[node, action]
    while child != 0 and links[child, n_actions + 1] != state:
        child = links[child, n_actions]
    if child != 0:
        return child, 0
    tries[used] = 0
    mean[used] = 0.0
    links[used] = 0
    links[used, n_actions] = links[node, action]
    links[used, n_actions + 1] = state
    links[node, action] = used
    return used, 1


@numba.njit(cache=True)
def _any_best(values: np.ndarray, draw: float) -> int:
    """The place of the highest value; among equals, one at random."""
    best = np.flatnonzero(values == values.max())
    return best[int(draw * best.size)]


@numba.njit(cache=True)
def plan_state(
    order: np.ndarray, cumulative: np.ndarray, reward: np.ndarray, gamma: float, simulations: int, horizon: int,
    bonus: float, root: int, key: np.uint64, tries: np.ndarray, mean: np.ndarray, links: np.ndarray,
    table: np.ndarray,
) -> int:  # fmt: skip
    """ρUCT from one state: fills row 0 of `tries` int32 and `mean` float64 `[simulations + 2, A]`.

    A reward is collected on entering a state, and ends the episode there if it is not zero; `reward` has S + 1 entries,
    the last for "no state". `links` int32 `[simulations + 2, A + 3]` holds each node's first child by action, its next
    sibling, its state, and how often it was decided in.

    Returns:
        steps simulated.
    """
    n_actions = mean.shape[1]
    n = len(reward) - 1
    low, high = min(0.0, reward.min()), max(0.0, reward.max())
    scale = 1.0 / (high - low) if high > low else 1.0
    way = np.empty((horizon, 2), np.int64)
    tries[0] = 0
    mean[0] = 0.0
    links[0] = 0
    used = 1
    steps = 0
    for _ in range(simulations):
        node, state, inside, worth, last = 0, root, 0, 0.0, 0
        in_tree = True
        for t in range(horizon):
            draw = unit(key + np.uint64(2 * steps))
            u = unit(key + np.uint64(2 * steps + 1))
            steps += 1
            last = t
            if not in_tree:
                a = int(draw * n_actions)
                state = order[state, a, drawn(cumulative[state, a], u)]
            else:
                a = _choose(tries[node], mean[node], links[node, n_actions + 2], scale, bonus, table, draw)
                state = order[state, a, drawn(cumulative[state, a], u)]
                way[t, 0] = node
                way[t, 1] = a
                inside = t + 1
                node, new = _child_of(tries, mean, links, node, a, state, used)
                used += new
                in_tree = new == 0
            worth = reward[state]
            if worth != 0.0 or state == n:
                break
        for t in range(last, -1, -1):
            if t < inside:
                at, a = way[t, 0], way[t, 1]
                tries[at, a] += 1
                links[at, n_actions + 2] += 1
                mean[at, a] += (worth - mean[at, a]) / tries[at, a]
            worth *= gamma
    return steps


@numba.njit(cache=True)
def _plan_all(
    prob: np.ndarray, reward: np.ndarray, gamma: float, simulations: int, horizon: int, bonus: float, word: np.uint64
) -> tuple[np.ndarray, int]:
    """ρUCT from every state. Returns mean returns float64 `[S, A]` and steps simulated in all."""
    n, n_actions = prob.shape[:2]
    order, cumulative = ordered(prob)
    tries = np.empty((simulations + 2, n_actions), np.int32)
    mean = np.empty((simulations + 2, n_actions))
    links = np.empty((simulations + 2, n_actions + 3), np.int32)
    table = _bound_tables(simulations)
    out = np.zeros((n, n_actions))
    steps = 0
    for s in range(n):
        key = mix(word ^ mix(np.uint64(s)))
        steps += plan_state(
            order, cumulative, reward, gamma, simulations, horizon, bonus, s, key, tries, mean, links, table
        )
        out[s] = mean[0]
    return out, steps


@numba.njit(cache=True)
def _act_and_count(
    next_state: np.ndarray, cumulative_world: np.ndarray, goal: np.ndarray, starts: np.ndarray, reward: np.ndarray,
    counts: np.ndarray, cycles: int, episode: int, epsilon: float, decay: float, refresh: int, gamma: float,
    simulations: int, horizon: int, bonus: float, state_bits: int, action_bits: int, word: np.uint64,
    started: np.ndarray,
) -> int:  # fmt: skip
    """Act in a world for so many cycles, and count transitions: into `counts` float64 `[S, A, S]`.

    Cycle t explores with probability `epsilon * decay**t`, and else takes the best action of a search in the model
    that the counts give, made anew every `refresh` cycles. Episodes begin at a random start, and end on the goal or
    after `episode` steps. `started` bool `[S]` is set where one began.

    Returns:
        cycles that were searched for.
    """
    n_actions = next_state.shape[1]
    tries = np.empty((simulations + 2, n_actions), np.int32)
    mean = np.empty((simulations + 2, n_actions))
    links = np.empty((simulations + 2, n_actions + 3), np.int32)
    table = _bound_tables(simulations)
    order, cumulative = ordered(predictive(counts, state_bits, action_bits))
    state, left, searched, age = 0, 0, 0, 0
    for t in range(cycles):
        key = mix(word ^ mix(np.uint64(t)))
        if left == 0:
            state = starts[int(unit(key) * starts.size)]
            started[state] = True
            left = episode
        if unit(key + np.uint64(1)) < epsilon * decay**t:
            action = int(unit(key + np.uint64(2)) * n_actions)
        else:
            if age >= refresh:
                order, cumulative = ordered(predictive(counts, state_bits, action_bits))
                age = 0
            searched += 1
            plan_state(
                order, cumulative, reward, gamma, simulations, horizon, bonus, state, key + np.uint64(8), tries,
                mean, links, table,
            )  # fmt: skip
            action = _any_best(mean[0], unit(key + np.uint64(3)))
        k = drawn(cumulative_world[state, action], unit(key + np.uint64(4)))
        after = next_state[state, action, k]
        counts[state, action, after] += 1.0
        age += 1
        left -= 1
        state = after
        if goal[state]:
            left = 0
    return searched


def plan_all(
    prob: np.ndarray, reward: np.ndarray, gamma: float, simulations: int, horizon: int, bonus: float, word: np.uint64
) -> tuple[np.ndarray, int]:
    """ρUCT from every state. Returns mean returns float64 `[S, A]` and steps simulated in all.

    Raises:
        RetargetError: for more simulations than a tree has room for; nothing has been made then.
    """
    _check_simulations(simulations)
    return _plan_all(prob, reward, gamma, simulations, horizon, bonus, word)


def act_and_count(*arguments: object) -> int:
    """As `_act_and_count`, whose arguments these are, in its order; simulations are looked at first.

    Raises:
        RetargetError: for more simulations than a tree has room for; nothing has been made then.
    """
    _check_simulations(arguments[_SIMULATIONS_AT])
    return _act_and_count(*arguments)


#: Where `simulations` stands among the arguments of `_act_and_count`.
_SIMULATIONS_AT = 12


def _check_simulations(simulations: int) -> None:
    if simulations > MOST_SIMULATIONS:
        raise RetargetError(f"simulations of a decision are at most {MOST_SIMULATIONS}, got {simulations}; take fewer")
