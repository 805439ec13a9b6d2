"""Compiled loops. Imported on first use only: numba takes a quarter of a second to load.

Random numbers are counter-based: draw number c of the stream with key k is `mix(k + c * GOLDEN)`, SplitMix64's
output function (Steele, Lea and Flood 2014). Environment i's key depends on the seed and i alone, so its
stream is the same whatever the number of environments beside it.
"""

from __future__ import annotations

import numba
import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11, _S32 = (np.uint64(n) for n in (27, 30, 31, 11, 32))
_UNIT = 2.0**-53
_S16 = np.uint64(16)
_MASK32 = np.uint64(0xFFFFFFFF)
_MASK16 = np.uint64(0xFFFF)
_LANES = 64
_FOLLOW_CHUNK = 8
_WANDER_CHUNK = 16


@numba.njit(cache=True, inline="always")
def mix(x):  # type: ignore[no-untyped-def]
    """SplitMix64's output function: uint64 to uint64."""
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@numba.njit(cache=True, inline="always")
def draw(key, counter):  # type: ignore[no-untyped-def]
    """Draw number `counter` of a stream, a uint64."""
    return mix(key + counter * _GOLDEN)


@numba.njit(cache=True, inline="always")
def stream_key(seed, index):  # type: ignore[no-untyped-def]
    """The key of stream `index` of a seed, both uint64."""
    return mix(seed ^ mix((index + np.uint64(1)) * _GOLDEN))


@numba.njit(cache=True)
def make_keys(seed, keys):  # type: ignore[no-untyped-def]
    """Fill uint64 `[N]` with the keys of environments 0, 1, and so on."""
    for i in range(keys.size):
        keys[i] = stream_key(seed, np.uint64(i))


@numba.njit(cache=True)
def draw_start(key, episode, starts, mask):  # type: ignore[no-untyped-def]
    """A start drawn evenly from those outside the goal: counters `episode << 32`, then from the top down."""
    counter = np.uint64(episode) << _S32
    base = counter
    attempt = np.uint64(0)
    while True:
        u = np.float64(draw(key, counter) >> _S11) * _UNIT
        s = starts[np.int64(u * starts.size)]
        if mask[s] == 0:
            return s
        attempt += np.uint64(1)
        counter = base + np.uint64(0xFFFFFFFF) - attempt  # no episode is that long


@numba.njit(cache=True)
def begin(which, keys, episode, starts, masks, goal_row, fixed, state, steps):  # type: ignore[no-untyped-def]
    """Start episodes in the environments `which`: at `fixed[i]` where that is a state, else at a drawn start."""
    for j in range(which.size):
        i = which[j]
        steps[i] = 0
        s = fixed[i]
        state[i] = s if s >= 0 else draw_start(keys[i], episode[i], starts, masks[goal_row[i]])


@numba.njit(cache=True)
def _valid(actions, n_actions):  # type: ignore[no-untyped-def]
    n_bad = 0
    top = np.uint64(n_actions)
    for i in range(actions.size):
        n_bad += 1 if np.uint64(actions[i]) >= top else 0
    return n_bad == 0


@numba.njit(cache=True)
def _close(  # type: ignore[no-untyped-def]
    n_pending, pending, keys, episode, starts, masks, goal_row, state, steps, obs, reward, term, trunc
):
    # Environments that were done before this step ignore their action and begin a new episode.
    for j in range(n_pending):
        i = pending[j]
        episode[i] += 1
        s = draw_start(keys[i], episode[i], starts, masks[goal_row[i]])
        state[i] = s
        obs[i] = s
        steps[i] = 0
        reward[i] = 0.0
        term[i] = 0
        trunc[i] = 0
    n = 0
    for i in range(term.size):
        pending[n] = i
        n += term[i] | trunc[i]
    return n


@numba.njit(cache=True)
def step_table(  # type: ignore[no-untyped-def]
    actions, packed, n_actions, limit, n_pending, pending, keys, episode, starts, masks, goal_row, state, steps,
    obs, reward, term, trunc,
):  # fmt: skip
    """One step of N environments with one goal and a deterministic model.

    `packed` is int32 `[S * A]`: twice the successor, plus 1 where it is in the goal. Returns the number of
    environments that are done, listed in `pending`, or -1 when an action does not exist (nothing changed then).
    """
    if not _valid(actions, n_actions):
        return -1
    width = np.uint32(n_actions)
    for i in range(state.size):
        code = packed[np.uint32(state[i]) * width + np.uint32(actions[i])]
        s = code >> 1
        hit = code & 1
        t = steps[i] + 1
        state[i] = s
        obs[i] = s
        steps[i] = t
        reward[i] = hit
        term[i] = hit
        trunc[i] = (t >= limit) & (hit == 0)
    return _close(
        n_pending, pending, keys, episode, starts, masks, goal_row, state, steps, obs, reward, term, trunc
    )  # fmt: skip


@numba.njit(cache=True)
def step_model(  # type: ignore[no-untyped-def]
    actions, nxt, cum, n_actions, limit, n_pending, pending, keys, episode, starts, masks, goal_row, state, steps,
    obs, reward, term, trunc,
):  # fmt: skip
    """One step of N environments, any model `[S * A, K]` and any goals; otherwise as `step_table`."""
    if not _valid(actions, n_actions):
        return -1
    n_next = nxt.shape[1]
    width = np.uint64(n_actions)
    for i in range(state.size):
        row = np.uint64(state[i]) * width + np.uint64(actions[i])
        t = steps[i] + 1
        k = np.int64(0)
        if n_next > 1:
            counter = (np.uint64(episode[i]) << _S32) + np.uint64(t)
            u = np.float64(draw(keys[i], counter) >> _S11) * _UNIT
            if n_next == 3:  # a slip has three successors; spelled out, the loop runs without branches
                k = np.int64(cum[row, 0] <= u) + np.int64(cum[row, 1] <= u)
            else:
                for j in range(n_next - 1):
                    k += np.int64(cum[row, j] <= u)
        s = nxt[row, np.uint64(k)]
        hit = masks[np.uint32(goal_row[i]), np.uint32(s)]
        state[i] = s
        obs[i] = s
        steps[i] = t
        reward[i] = hit
        term[i] = hit
        trunc[i] = (t >= limit) & (hit == 0)
    return _close(
        n_pending, pending, keys, episode, starts, masks, goal_row, state, steps, obs, reward, term, trunc
    )  # fmt: skip


@numba.njit(cache=True)
def _refill(starts, end, horizon, hits, s, taken, episode, cursor):  # type: ignore[no-untyped-def]
    """Record the lanes whose episode is over and give them the next starts; the new cursor and how many still run.

    A lane may have run past the horizon: a hit counts only within it.
    """
    alive = 0
    for j in range(s.size):
        if s[j] == end or taken[j] >= horizon:
            if episode[j] >= 0:
                hits[episode[j]] = taken[j] if s[j] == end and taken[j] <= horizon else -1
            episode[j] = -1
            taken[j] = 0
            s[j] = end
            if cursor < starts.size:
                s[j] = starts[cursor]
                episode[j] = cursor
                cursor += 1
        alive += episode[j] >= 0
    return cursor, alive


@numba.njit(cache=True)
def follow(successor, starts, end, horizon, hits):  # type: ignore[no-untyped-def]
    """Follow a deterministic chain from each start until it reaches `end`, at most `horizon` steps.

    Args:
        successor: int32 `[S + 1]`, the goal's states replaced by `end` = S, which leads to itself.
        starts: int32 `[N]`, none of them `end`.
        hits: int32 `[N]`, filled with the number of steps to `end`, or -1.

    One chain alone waits for memory at every step, so 64 run side by side. The steps are counted in a loop of their
    own, which the compiler turns into vector instructions; one with look-ups in it, it does not.
    """
    s = np.full(_LANES, end, np.int32)
    taken = np.zeros(_LANES, np.int32)
    episode = np.full(_LANES, -1, np.int64)
    cursor, alive = _refill(starts, end, horizon, hits, s, taken, episode, 0)
    while alive > 0:
        for _ in range(_FOLLOW_CHUNK):
            for j in range(_LANES):
                taken[j] += s[j] != end
            for j in range(_LANES):
                s[j] = successor[np.uint32(s[j])]
        cursor, alive = _refill(starts, end, horizon, hits, s, taken, episode, cursor)


@numba.njit(cache=True)
def _pick(slots, width, s, half):  # type: ignore[no-untyped-def]
    # `half` is 32 bits in a uint64: times the width, its upper half picks the slot, its lower half decides within it.
    # Left to LLVM to inline: numba's own inlining makes it slower.
    x = half * width
    slot = slots[np.uint64(np.uint32(s)) * width + (x >> _S32)]
    shift = np.uint64(0) if (x & _MASK32) < (slot >> _S32) else _S16
    return np.int32((slot >> shift) & _MASK16)


@numba.njit(cache=True)
def wander(slots, n_slots, starts, end, horizon, seed, hits):  # type: ignore[no-untyped-def]
    """As `follow`, for a Markov chain given as alias tables, half a draw a step.

    Args:
        slots: uint64 `[(S + 1) * n_slots]`: the chance to keep in units of 2^-32, then 16 bits for the successor
            that the slot keeps, and 16 for the one it gives way to.
        seed: uint64; episode i draws from stream i, whatever runs beside it.

    Step t of an episode, from 0, takes the upper half of draw t / 2 of its stream where t is even, else the lower.
    """
    s = np.full(_LANES, end, np.int32)
    taken = np.zeros(_LANES, np.int32)
    episode = np.full(_LANES, -1, np.int64)
    place = np.zeros(_LANES, np.uint64)  # in the stream: the key, plus GOLDEN for each draw
    drawn = np.zeros((_WANDER_CHUNK // 2, _LANES), np.uint64)
    width = np.uint64(n_slots)
    cursor, alive = _refill(starts, end, horizon, hits, s, taken, episode, 0)
    while alive > 0:
        for j in range(_LANES):
            if taken[j] == 0:  # begun just now; the others are a whole number of chunks in
                place[j] = stream_key(seed, np.uint64(episode[j]))
        for i in range(drawn.shape[0]):
            for j in range(_LANES):
                drawn[i, j] = mix(place[j])
                place[j] += _GOLDEN
        for i in range(drawn.shape[0]):
            for j in range(_LANES):
                taken[j] += s[j] != end
            for j in range(_LANES):
                s[j] = _pick(slots, width, s[j], drawn[i, j] >> _S32)
            for j in range(_LANES):
                taken[j] += s[j] != end
            for j in range(_LANES):
                s[j] = _pick(slots, width, s[j], drawn[i, j] & _MASK32)
        cursor, alive = _refill(starts, end, horizon, hits, s, taken, episode, cursor)


@numba.njit(cache=True)
def settle(hits, horizon, powers, returns, hit, steps):  # type: ignore[no-untyped-def]
    """What `hits` comes to, in one pass.

    Args:
        hits: int32 `[N]` as `follow` fills it.
        powers: float64, gamma to the powers 0 to the greatest of `hits`.
        returns: float64 `[N]`, filled with `powers[hits]`, or 0 for a miss.
        hit: boolean `[N]`, filled.
        steps: int32 `[N]`, filled with `hits`, or the horizon for a miss.
    """
    for i in range(hits.size):
        h = hits[i]
        yes = h >= 0
        hit[i] = yes
        steps[i] = h if yes else horizon
        returns[i] = powers[h] if yes else 0.0


@numba.njit(cache=True)
def starts_exist(starts, in_goal):  # type: ignore[no-untyped-def]
    """Whether each of int `[N]` is a state, of those in boolean `[S]`, and outside the goal."""
    n_bad = 0
    top = np.uint64(in_goal.size)
    for i in range(starts.size):
        s = np.uint64(starts[i])  # a negative one becomes a great one
        n_bad += 1 if s >= top or in_goal[s] else 0
    return n_bad == 0


@numba.njit(cache=True)
def alias_slots(succ, prob, slots):  # type: ignore[no-untyped-def]
    """Walker's alias tables, built as by Vose (1991), one for each row, packed as `wander` takes them.

    Args:
        succ: int32 `[R, M]` successors, all below 2^16.
        prob: float64 `[R, M]`, rows that sum to 1.
        slots: uint64 `[R, M]`, filled.
    """
    rows, m = succ.shape
    scaled = np.empty(m)
    small = np.empty(m, np.int64)
    large = np.empty(m, np.int64)
    for r in range(rows):
        n_small = 0
        n_large = 0
        likely = 0
        for j in range(m):
            scaled[j] = prob[r, j] * m
            if prob[r, j] > prob[r, likely]:
                likely = j
            if scaled[j] < 1.0:
                small[n_small] = j
                n_small += 1
            else:
                large[n_large] = j
                n_large += 1
        while n_small > 0 and n_large > 0:
            n_small -= 1
            lo = small[n_small]
            hi = large[n_large - 1]
            slots[r, lo] = _slot(scaled[lo], succ[r, lo], succ[r, hi])
            scaled[hi] -= 1.0 - scaled[lo]
            if scaled[hi] < 1.0:
                n_large -= 1
                small[n_small] = hi
                n_small += 1
        for j in range(n_large):
            slots[r, large[j]] = _slot(1.0, succ[r, large[j]], succ[r, large[j]])
        for j in range(n_small):  # left over by rounding: full but for the last bit, or empty
            own = succ[r, small[j]] if scaled[small[j]] > 0.5 else succ[r, likely]
            slots[r, small[j]] = _slot(1.0, own, own)


@numba.njit(cache=True)
def _slot(keep, own, other):  # type: ignore[no-untyped-def]
    if keep >= 1.0:
        return (np.uint64(own) << _S16) | np.uint64(own)
    share = np.uint64(min(np.rint(keep * 4294967296.0), 4294967295.0))
    return (share << _S32) | (np.uint64(other) << _S16) | np.uint64(own)
