"""Compiled searches for best paths from every root of a deterministic model. Arrays in, arrays out.

A path ends in the first state whose reward is not 0, and is worth that reward times γ for each step after the first.
Numba is loaded with this module, so import it late. `tests/oracles/test_paths.py` has the plain twin.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

import numba
import numpy as np

_TINY = 1e-12
_Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@numba.njit(cache=True)
def _worth(reward: float, gamma: float, later: int) -> float:
    """A reward after `later` more steps, multiplied up one by one: the same rounding as repeated backups."""
    for _ in range(later):
        reward *= gamma
    return reward


@numba.njit(cache=True)
def _record(value: np.ndarray, length: np.ndarray, first: int, worth: float, steps: int) -> None:
    """Keep the best path of one first action; of equally good ones (to 1e-12 relative) the shortest."""
    if worth > value[first] * (1.0 + _TINY) or length[first] < 0:
        value[first], length[first] = worth, steps
    elif worth >= value[first] * (1.0 - _TINY) and steps < length[first]:
        length[first] = steps


@numba.njit(cache=True)
def _choose(value: np.ndarray, length: np.ndarray) -> tuple[int, int, float]:
    """The lowest first action among the best ones, its length and its worth; -1, -1 and 0 where nothing was found."""
    best = value.max()
    if best <= 0.0:
        return -1, -1, 0.0
    for a in range(value.size):
        if value[a] >= best - _TINY * best:
            return a, length[a], best
    return -1, -1, 0.0


@numba.njit(cache=True)
def breadth_first(next_state: np.ndarray, reward: np.ndarray, gamma: float, depth: int) -> _Found:
    """Level by level, until no longer path can be worth as much as the best one found.

    Args:
        next_state: int32 `[S, A]`; a successor equal to S is not known, and leads nowhere.
        reward: float64 `[S]`.
        gamma: discount in (0, 1).
        depth: longest path, at least 1.

    Returns:
        first action int64 `[S]` (-1: none), length int64 `[S]` (-1), worth float64 `[S]` (0), and nodes expanded
        int64 `[S]`.
    """
    n, n_actions = next_state.shape
    action, steps, worth, expanded = np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(n, np.int64)
    top = reward.max()
    if top <= 0.0:
        return action, steps, worth, expanded
    seen = np.full(n, -1, np.int32)  # the root that last saw a state: nothing to clear between roots
    label = np.empty(n, np.int32)
    queue = np.empty(n, np.int32)
    value, length = np.empty(n_actions), np.empty(n_actions, np.int64)
    for root in range(n):
        value[:], length[:] = 0.0, -1
        root_seen = root
        queue[0], head, tail = root, 0, 1
        if reward[root] == 0.0:
            seen[root] = root_seen
        best, bound, level, over = 0.0, top, 0, False
        # paths of one level found first begin with the lowest action: labels never fall along the queue
        while head < tail and level < depth and bound > 0.0 and bound >= best - _TINY * best and not over:
            end = tail
            while head < end and not over:
                x = queue[head]
                head += 1
                expanded[root] += 1
                for a in range(n_actions):
                    t = next_state[x, a]
                    if t == n or seen[t] == root_seen:
                        continue
                    first = a if level == 0 else label[x]
                    seen[t] = root_seen
                    if reward[t] == 0.0:
                        label[t] = first
                        queue[tail] = t
                        tail += 1
                    elif reward[t] > 0.0:
                        gain = _worth(reward[t], gamma, level)
                        _record(value, length, first, gain, level + 1)
                        best = max(best, gain)
                        over = reward[t] == top
                        if over:
                            break
            level += 1
            bound *= gamma
        action[root], steps[root], worth[root] = _choose(value, length)
    return action, steps, worth, expanded


# -- A* ------------------------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def largest_move(next_state: np.ndarray, place: np.ndarray) -> int:
    """The largest Manhattan distance that one known step of the model covers; `place` int64 `[S, 2]`."""
    n, n_actions = next_state.shape
    most = 0
    for s in range(n):
        for a in range(n_actions):
            t = next_state[s, a]
            if t < n:
                most = max(most, abs(place[s, 0] - place[t, 0]) + abs(place[s, 1] - place[t, 1]))
    return most


@numba.njit(cache=True)
def bounds(next_state: np.ndarray, reward: np.ndarray, gamma: float, place: np.ndarray) -> np.ndarray:
    """Float64 `[S]`: never more than what is left to pay, in steps, from each state that a path goes on from.

    A reward less than the largest one is paid for with the `ln(largest / reward) / ln(1 / γ)` steps by which it must
    come sooner. Steps to a state are at least the Manhattan distance over the largest move of the model, and at least
    1; where `place` is empty, 1.
    """
    n = next_state.shape[0]
    top = np.log(reward.max())
    cost = -np.log(gamma)
    move = largest_move(next_state, place) if place.size else 0
    out = np.full(n, np.inf)
    for g in range(n):
        if reward[g] <= 0.0:
            continue
        late = (top - np.log(reward[g])) / cost
        for s in range(n):
            steps = 1
            if move:
                away = abs(place[s, 0] - place[g, 0]) + abs(place[s, 1] - place[g, 1])
                steps = max(1, -(-away // move))
            out[s] = min(out[s], steps + late)
    return out


@numba.njit(cache=True)
def _before(x: int, y: int, key: np.ndarray, label: np.ndarray) -> bool:
    return key[x] < key[y] or (key[x] == key[y] and label[x] < label[y])


@numba.njit(cache=True)
def _rise(heap: np.ndarray, at: np.ndarray, key: np.ndarray, label: np.ndarray, i: int) -> None:
    while i > 0:
        up = (i - 1) // 2
        if not _before(heap[i], heap[up], key, label):
            break
        heap[i], heap[up] = heap[up], heap[i]
        at[heap[i]], at[heap[up]] = i, up
        i = up


@numba.njit(cache=True)
def _pop(heap: np.ndarray, at: np.ndarray, key: np.ndarray, label: np.ndarray, size: int) -> int:
    """Take the first node out of a heap of `size` nodes."""
    out = heap[0]
    at[out] = -1
    size -= 1
    if size:
        heap[0] = heap[size]
        at[heap[0]] = 0
    i = 0
    while True:
        low = 2 * i + 1
        if low >= size:
            return out
        if low + 1 < size and _before(heap[low + 1], heap[low], key, label):
            low += 1
        if not _before(heap[low], heap[i], key, label):
            return out
        heap[i], heap[low] = heap[low], heap[i]
        at[heap[i]], at[heap[low]] = i, low
        i = low


@numba.njit(cache=True)
def a_star(next_state: np.ndarray, reward: np.ndarray, gamma: float, depth: int, bound: np.ndarray) -> _Found:
    """A* (Hart, Nilsson and Raphael 1968) on the steps of a path and what a lesser reward costs; see `bounds`.

    Nodes are taken in the order of (steps so far + bound, first action), so that of equally good paths the one with
    the lowest first action is met first. A node may be opened again, where it is reached as soon by a lower first
    action: the heap holds each state once at most.
    """
    n, n_actions = next_state.shape
    action, steps, worth, expanded = np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(n, np.int64)
    top = reward.max()
    if top <= 0.0:
        return action, steps, worth, expanded
    cost, same = -np.log(gamma), True
    late = np.zeros(n)
    for g in range(n):
        if reward[g] > 0.0 and reward[g] != top:
            same = False
            late[g] = (np.log(top) - np.log(reward[g])) / cost
    slack = 0.0 if same else 1e-9 + 2.0 * _TINY / cost
    heap, at = np.empty(n, np.int32), np.full(n, -1, np.int32)
    key, label, so_far = np.empty(n), np.empty(n, np.int32), np.empty(n, np.int32)
    seen = np.full(n, -1, np.int32)
    value, length = np.empty(n_actions), np.empty(n_actions, np.int64)
    for root in range(n):
        value[:], length[:] = 0.0, -1
        size, least, least_label = 1, np.inf, n_actions
        heap[0], at[root], key[root], label[root], so_far[root] = root, 0, bound[root], -1, 0
        seen[root] = root
        while size:
            x = heap[0]
            # with one size of reward all keys are whole numbers: the first of (key, label) is the best path
            if key[x] > least + slack or (same and key[x] == least and label[x] >= least_label):
                break
            _pop(heap, at, key, label, size)
            size -= 1
            far = so_far[x] + 1
            if far > depth:
                continue
            expanded[root] += 1
            for a in range(n_actions):
                t = next_state[x, a]
                if t == n or reward[t] < 0.0:
                    continue
                first = a if far == 1 else label[x]
                if reward[t] > 0.0:
                    _record(value, length, first, _worth(reward[t], gamma, far - 1), far)
                    paid = far + late[t]
                    if paid < least or (paid == least and first < least_label):
                        least, least_label = paid, first
                elif seen[t] != root or far < so_far[t] or (far == so_far[t] and first < label[t]):
                    if seen[t] != root:
                        at[t] = -1
                    seen[t], so_far[t], label[t], key[t] = root, far, first, far + bound[t]
                    if at[t] < 0:
                        heap[size], at[t] = t, size
                        size += 1
                    _rise(heap, at, key, label, at[t])
        for i in range(size):
            at[heap[i]] = -1
        action[root], steps[root], worth[root] = _choose(value, length)
    return action, steps, worth, expanded


# -- iterative deepening -------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def _descend(
    next_state: np.ndarray,
    reward: np.ndarray,
    gamma: float,
    root: int,
    limit: int,
    least: np.ndarray,
    hit: np.ndarray,
    node: np.ndarray,
    turn: np.ndarray,
    value: np.ndarray,
    length: np.ndarray,
) -> int:
    """One depth-first search to a limit, that goes into a state again only where it comes there sooner.

    Returns:
        the nodes expanded; negative where the largest reward was met, which ends the search.
    """
    n, n_actions = next_state.shape
    top = reward.max()
    least[:] = limit + 1
    if reward[root] == 0.0:
        least[root] = 0
    node[0], turn[0], at, count = root, 0, 0, 1
    while at >= 0:
        if turn[at] == n_actions:
            at -= 1
            continue
        a = turn[at]
        turn[at] += 1
        t = next_state[node[at], a]
        if t == n or reward[t] < 0.0:
            continue
        far = at + 1
        if reward[t] > 0.0:
            if hit[t] != root:
                hit[t] = root
                _record(value, length, turn[0] - 1, _worth(reward[t], gamma, far - 1), far)
                if reward[t] == top:
                    return -count
        elif far < least[t]:
            least[t] = far
            if far < limit:
                at += 1
                node[at], turn[at] = t, 0
                count += 1
    return count


@numba.njit(cache=True)
def deepening(next_state: np.ndarray, reward: np.ndarray, gamma: float, depth: int) -> _Found:
    """Depth-first search to limit 1, 2, … (Korf 1985), remembering how soon each state was reached in this round.

    Arguments and results as for `breadth_first`; nodes expanded are summed over the rounds.
    """
    n, n_actions = next_state.shape
    action, steps, worth, expanded = np.full(n, -1), np.full(n, -1), np.zeros(n), np.zeros(n, np.int64)
    top = reward.max()
    if top <= 0.0:
        return action, steps, worth, expanded
    least, hit = np.empty(n, np.int64), np.full(n, -1, np.int64)
    node, turn = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    value, length = np.empty(n_actions), np.empty(n_actions, np.int64)
    for root in range(n):
        value[:], length[:] = 0.0, -1
        bound = top
        for limit in range(1, min(depth, n) + 1):
            best = value.max()
            if bound <= 0.0 or bound < best - _TINY * best:
                break
            count = _descend(next_state, reward, gamma, root, limit, least, hit, node, turn, value, length)
            expanded[root] += abs(count)
            # where no state is exactly this far away, none is further
            if count < 0 or not (least == limit).any():
                break
            bound *= gamma
        action[root], steps[root], worth[root] = _choose(value, length)
    return action, steps, worth, expanded
