"""Value iteration for thousands of finite worlds at once, as torch arrays on any device."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from retarget.agent import own
from retarget.errors import WorldError
from retarget.world import FiniteModel

if TYPE_CHECKING:
    import torch

Precision = Literal["float64", "float32"]

#: Share of the free memory that a batch may take, unless told otherwise.
SHARE_OF_FREE = 0.5
#: On a CPU, worlds are solved in groups that need about this much, so that they stay in its cache.
CACHE_BYTES = 2**20
#: Sweeps between two looks at how far values still move: a look costs as much as half a sweep.
LOOK_EVERY = 8


@dataclass(frozen=True, eq=False)
class Sweeps:
    """What value iteration came to, for W worlds.

    Attributes:
        value: `[W, S]` best value of being in each state: what is collected from there on, undiscounted at the first
            step.
        q: `[W, S, A]` value of each action, of the last backup.
        n_sweeps: backups that were made, in the group of worlds that took most.
        residual: `[W]` by how much its last one moved the value that it moved most.
    """

    value: np.ndarray
    q: np.ndarray
    n_sweeps: int
    residual: np.ndarray

    def __post_init__(self) -> None:
        for name in ("value", "q", "residual"):
            object.__setattr__(self, name, own(getattr(self, name)))


def stack(models: Sequence[FiniteModel], rewards: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Worlds of different size as one batch: next_state int32 `[W, S, A, K]`, prob `[W, S, A, K]`, reward `[W, S]`.

    Smaller worlds get absorbing states without reward (their value is 0), repeats of action 0, and successors of
    probability 0: none of these changes a value.

    Raises:
        WorldError: when there are none, or a reward does not fit its model.

    >>> small, large = FiniteModel.deterministic([[1], [1]]), FiniteModel.deterministic([[1, 0], [2, 0], [2, 2]])
    >>> batch = stack([small, large], [np.array([0.0, 1.0]), np.array([0.0, 0.0, 1.0])])
    >>> batch[0].shape, batch[0][0, :, :, 0].tolist()
    ((2, 3, 2, 1), [[1, 1], [1, 1], [2, 2]])
    """
    if not models or len(models) != len(rewards):
        raise WorldError(
            f"a batch needs one reward for each model, got {len(models)} models and {len(rewards)} rewards"
        )
    s, a, k = (max(m.next_state.shape[i] for m in models) for i in range(3))
    shape = (len(models), s, a, k)
    nxt = np.empty(shape, np.int32)
    nxt[:] = np.arange(s, dtype=np.int32)[:, None, None]
    prob, reward = np.zeros(shape), np.zeros(shape[:2])
    prob[..., 0] = 1.0
    for w, (model, given) in enumerate(zip(models, rewards, strict=True)):
        n, n_actions, n_next = model.next_state.shape
        if np.shape(given) != (n,):
            raise WorldError(f"the reward of world {w} needs shape {(n,)}, got {np.shape(given)}")
        order = np.minimum(np.arange(a), n_actions - 1)
        order[n_actions:] = 0
        nxt[w, :n, :, :n_next] = model.next_state[:, order]
        prob[w, :n, :, :n_next] = model.prob[:, order]
        reward[w, :n] = given
    return nxt, prob, reward


def solve(
    next_state: np.ndarray,
    prob: np.ndarray,
    reward: np.ndarray,
    *,
    gamma: float,
    tolerance: float = 1e-10,
    max_sweeps: int = 10_000,
    device: str = "cpu",
    dtype: Precision = "float64",
    memory_limit_bytes: int | None = None,
) -> Sweeps:
    """Bellman backups of "collect a state's reward on entering it, and end there if it is not zero", from V = 0.

    `Q(s, a) = Σ p(t | s, a) w(t)`, with `w(t)` the reward of t where it is not 0, else `γ max_b Q(t, b)`: what
    `retarget.kernels.reach_backups` does for one world. Worlds are swept together until the last one is at rest: all of
    them, or, on a CPU, groups that its cache holds.

    Args:
        next_state: int `[W, S, A, K]`; the symbol S stands for "not known" and is worth nothing.
        prob: float `[W, S, A, K]`, each `[w, s, a]` summing to 1.
        reward: float `[W, S]`.
        gamma: discount in (0, 1).
        tolerance: rest: no value moves by more than this. It is looked at every 8 sweeps.
        max_sweeps: most backups; `residual` says where that was too few.
        device: of torch.
        dtype: `float64` or `float32`.
        memory_limit_bytes: refuse a batch that needs more; None for half of what is free on the device.

    Raises:
        WorldError: on wrong shapes or numbers, a device that is not there, or a batch too large for memory.

    >>> model = FiniteModel.deterministic([[1, 0], [2, 0], [2, 2]])
    >>> found = solve(*stack([model], [np.array([0.0, 0.0, 1.0])]), gamma=0.5)
    >>> found.value.tolist(), found.q[0, 0].tolist()
    ([[0.5, 1.0, 1.0]], [0.5, 0.25])
    """
    nxt, given, collect = np.asarray(next_state), np.asarray(prob), np.asarray(reward)
    _check(nxt, given, collect, gamma, tolerance, max_sweeps, dtype)
    import torch

    torch.set_num_threads(1)  # other work has the other cores
    try:
        kind = torch.device(device).type
        limit = memory_limit_bytes if memory_limit_bytes is not None else int(SHARE_OF_FREE * free_bytes(device))
        group = _fitting(nxt.shape, dtype, limit, most=CACHE_BYTES if kind == "cpu" else None)
        found = [
            _sweep(*_tensors(nxt[i : i + group], given[i : i + group], collect[i : i + group], device, dtype),
                   gamma, tolerance, max_sweeps)
            for i in range(0, len(nxt), group)
        ]  # fmt: skip
    except (RuntimeError, AssertionError) as error:  # torch's own word for a device that is not there, or is full
        why = str(error).splitlines()[0]
        raise WorldError(f"device {device!r} cannot be used ({why}); use device='cpu'") from error
    value, q, residual = (np.concatenate([getattr(f, n) for f in found]) for n in ("value", "q", "residual"))
    for array in (value, q, residual):
        array.setflags(write=False)  # else it would be copied once more
    return Sweeps(value, q, max(f.n_sweeps for f in found), residual)


def _fitting(shape: tuple[int, ...], dtype: Precision, limit: int, *, most: int | None) -> int:
    """How many worlds to sweep together: all of them, or a group that needs `most` bytes.

    Raises:
        WorldError: where that does not fit, with the batch that would.
    """
    w = shape[0]
    group = w if most is None else min(w, max(1, most // bytes_needed((1, *shape[1:]), dtype=dtype)))

    def needed(n: int) -> int:
        return bytes_needed((n, *shape[1:]), dtype=dtype, group=min(n, group))

    if needed(w) > limit:
        fit = bisect_right(range(1, w), limit, key=needed)
        raise WorldError(
            f"value iteration over {w} worlds of {shape[1]} states needs {needed(w)} bytes, the memory limit is "
            f"{limit}; {f'solve at most {fit} worlds at a time' if fit else 'not even one world fits'}"
        )
    return group


def _tensors(
    nxt: np.ndarray, prob: np.ndarray, reward: np.ndarray, device: str, dtype: Precision
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, tuple[int, ...]]:
    """Places `[K, A, W S]`, their probabilities (None where all are 1), rewards `[W S]`, and the shape."""
    import torch

    kind: torch.dtype = getattr(torch, dtype)
    index = _indices(torch.from_numpy(np.array(nxt, order="C")).to(device))
    worth = torch.from_numpy(np.array(reward)).to(device, kind).flatten()
    if nxt.shape[3] == 1:
        return index, None, worth, nxt.shape
    weight = torch.from_numpy(np.array(prob)).to(device, kind).permute(3, 2, 0, 1).contiguous().flatten(2)
    return index, weight, worth, nxt.shape


def _indices(nxt: torch.Tensor) -> torch.Tensor:
    """Successors `[W, S, A, K]` as int places `[K, A, W S]` in one vector of all states of all worlds; unknown ones
    are at its end. Actions come first, so that the best of them is found by whole vectors."""
    import torch

    w, s = nxt.shape[:2]
    # 32-bit places are read in half the time
    kind = torch.int32 if w * s < 2**31 - 1 else torch.int64
    ordered = nxt.to(kind).permute(3, 2, 0, 1)
    places = ordered + torch.arange(w, dtype=kind, device=nxt.device)[:, None] * s
    places[ordered == s] = w * s
    return places.flatten(2)


def _sweep(
    index: torch.Tensor,
    weight: torch.Tensor | None,
    reward: torch.Tensor,
    shape: tuple[int, ...],
    gamma: float,
    tolerance: float,
    max_sweeps: int,
) -> Sweeps:
    import torch

    w, s, a, k = shape
    flat = index.flatten()
    keep = (reward == 0).to(reward.dtype).mul_(gamma)
    value, fresh, away = torch.zeros_like(reward), torch.zeros_like(reward), torch.zeros_like(reward)
    worth = torch.zeros(w * s + 1, dtype=reward.dtype, device=reward.device)
    taken = torch.empty(flat.numel(), dtype=reward.dtype, device=reward.device)
    each = taken.view(k, a, w * s)
    q = each[0] if weight is None else torch.empty_like(each[0])
    done = 0
    while done < max_sweeps:
        # in one pass: the reward where there is one, else the discounted value
        torch.addcmul(reward, value, keep, out=worth[:-1])
        torch.index_select(worth, 0, flat, out=taken)
        if weight is not None:
            torch.mul(each[0], weight[0], out=q)
            for j in range(1, k):
                q.addcmul_(each[j], weight[j])
        torch.amax(q, 0, out=fresh)
        done += 1
        look = done % LOOK_EVERY == 0 or done == max_sweeps
        if look:
            torch.sub(fresh, value, out=away).abs_()
        value, fresh = fresh, value
        if look and float(away.max()) <= tolerance:
            break
    residual = away.view(w, s).amax(1)
    actions = q.view(a, w, s).permute(1, 2, 0).contiguous()
    return Sweeps(value.view(w, s).cpu().numpy(), actions.cpu().numpy(), done, residual.cpu().numpy())


def bytes_needed(shape: tuple[int, ...], *, dtype: Precision = "float64", group: int | None = None) -> int:
    """Most bytes that `solve` takes, beside its arguments, for next_state of shape `[W, S, A, K]`.

    For what is returned, a number for each state, and for each state and action, of all worlds, twice (while groups are
    joined). For the `group` of worlds that is swept together (None: all), per state 6 numbers; per action 2 more; per
    successor a number and a place or, while places are made, four of these; with more than one successor also its
    probability, three times while it is moved.

    >>> bytes_needed((1024, 104, 4, 1)) // 2**20
    24
    """
    w, s, a, k = shape
    together = w if group is None else group
    number = 8 if dtype == "float64" else 4
    place = 4 if together * s < 2**31 - 1 else 8
    making = a * k * (4 * place + (0 if k == 1 else 8 + 2 * number))
    working = a * k * (place + (0 if k == 1 else number) + number) + 2 * a * number
    return 2 * w * s * (1 + a) * number + together * s * (6 * number + max(making, working))


def free_bytes(device: str = "cpu") -> int:
    """Memory that is free on a device of torch."""
    import torch

    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    listing = Path("/proc/meminfo")
    if listing.exists():
        for line in listing.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES")) * int(os.sysconf("SC_PAGE_SIZE")) // 2


def _check(
    nxt: np.ndarray,
    prob: np.ndarray,
    reward: np.ndarray,
    gamma: float,
    tolerance: float,
    max_sweeps: int,
    dtype: str,
) -> None:
    if nxt.ndim != 4 or 0 in nxt.shape or nxt.dtype.kind not in "iu" or nxt.shape != prob.shape:
        raise WorldError(
            f"value iteration needs next_state int and prob of one shape [W, S, A, K], got {nxt.dtype} {nxt.shape} "
            f"and {prob.shape}; make them with stack(...)"
        )
    s = nxt.shape[1]
    if reward.shape != nxt.shape[:2]:
        raise WorldError(f"value iteration needs rewards of shape {nxt.shape[:2]}, got {reward.shape}")
    if not np.isfinite(reward).all():
        w, bad = (int(i) for i in np.argwhere(~np.isfinite(reward))[0])
        raise WorldError(f"the reward of state {bad} in world {w} is {reward[w, bad]}; rewards must be finite numbers")
    if nxt.min() < 0 or nxt.max() > s:
        bad = int(nxt.min() if nxt.min() < 0 else nxt.max())
        raise WorldError(f"successors must be 0 to {s} ({s} for not known), got {bad}")
    total = prob.sum(-1)  # not finite where a probability is not
    if not max(total.max() - 1, 1 - total.min()) <= 1e-9 or prob.min() < 0:
        raise WorldError("transition probabilities must be non-negative and sum to 1 for every state and action")
    if not 0 < gamma < 1:
        raise WorldError(f"gamma must lie strictly between 0 and 1, got {gamma!r}")
    if not tolerance >= 0 or max_sweeps < 1:
        raise WorldError(
            f"tolerance must be at least 0 and max_sweeps at least 1, got {tolerance!r} and {max_sweeps!r}"
        )
    if dtype not in get_args(Precision):
        raise WorldError(f"dtype must be one of {', '.join(get_args(Precision))}, got {dtype!r}")
