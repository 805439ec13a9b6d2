"""What a network answers at the last token: scores of wanted tokens, divergences, with and without interventions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from retarget.analysis.layers.collected import NEGATIVE, POSITIVE, Inputs
from retarget.analysis.layers.readable import Batch, Readable, Write
from retarget.errors import LayersError

if TYPE_CHECKING:
    from torch import Tensor

    from retarget.goal import StateGoal
    from retarget.world import FiniteWorld

Key = TypeVar("Key", bound=Hashable)
#: Logits `[B, T, V]` of a batch from another network than the one that is read.
Call = Callable[[Batch], "Tensor"]

# -------------------------------------------------------------------------------------------------------------- scores


def token_score(logits: Tensor | np.ndarray, wanted: Sequence[int] | np.ndarray) -> np.ndarray:
    """Log odds of the wanted next tokens, `log p - log(1 - p)`: the refusal metric of Arditi et al. 2024 (appendix B).

    Made from sums of exponentials of either side, so that it is right where p is 0 or 1 to rounding.

    Args:
        logits: real `[B, V]`, at the last token.
        wanted: numbers of tokens; or bool `[V]`, or `[B, V]` where they differ by row.

    Returns:
        float64 `[B]`, nats.

    Raises:
        LayersError: where no token is wanted in a row, or every one.

    >>> token_score(np.log([[0.25, 0.25, 0.5], [1e-30, 1e-30, 1.0]]), [0, 1]).round(6).tolist()
    [0.0, -68.384406]
    """
    x = as_float64(logits)
    mask = np.broadcast_to(wanted_mask(wanted, x.shape[1]), x.shape)
    if not (mask.any(1) & ~mask.all(1)).all():
        raise LayersError("in some row no token is wanted, or every one is: its odds are not finite; leave it out")
    return np.asarray(_log_sum(x, mask) - _log_sum(x, ~mask))


def hits(logits: Tensor | np.ndarray, wanted: Sequence[int] | np.ndarray) -> np.ndarray:
    """Bool `[B]`: whether the likeliest next token is a wanted one."""
    x = as_float64(logits)
    mask = np.broadcast_to(wanted_mask(wanted, x.shape[1]), x.shape)
    return np.asarray(mask[np.arange(len(x)), x.argmax(1)])


def divergence(untouched: Tensor | np.ndarray, logits: Tensor | np.ndarray) -> np.ndarray:
    """KL(p || q) of next tokens, p from the untouched model: float64 `[B]`, nats.

    >>> float(divergence(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])).round(6)[0])
    0.143841
    """
    p, q = (_log_softmax(as_float64(x)) for x in (untouched, logits))
    with np.errstate(invalid="ignore"):
        terms = np.where(np.isneginf(p), 0.0, np.exp(p) * (p - q))
    # below 0 it can only be by rounding
    return np.asarray(np.maximum(terms.sum(1), 0.0))


def as_float64(logits: Tensor | np.ndarray) -> np.ndarray:
    """Logits `[B, V]` as a float64 array on the host."""
    if not isinstance(logits, np.ndarray) and hasattr(logits, "detach"):
        logits = logits.detach().cpu().double().numpy()
    x = np.asarray(logits, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2:
        raise LayersError(f"logits must be [B, V] with at least two tokens, got shape {x.shape}")
    return x


def wanted_mask(wanted: Sequence[int] | np.ndarray, size: int) -> np.ndarray:
    """Bool `[V]` or `[N, V]` of tokens given by number, or as such a mask.

    Raises:
        LayersError: for a token outside the vocabulary, or a mask of another size.
    """
    given = np.asarray(wanted)
    if given.dtype == np.bool_:
        if given.ndim not in (1, 2) or given.shape[-1] != size:
            raise LayersError(f"a mask of wanted tokens must be bool [{size}] or [N, {size}], got {given.shape}")
        return given
    if given.ndim != 1 or not given.size or given.dtype.kind not in "iu":
        raise LayersError(f"wanted tokens are given by number, at least one, got {given.dtype} {given.shape}")
    if given.min() < 0 or given.max() >= size:
        raise LayersError(f"token {int(given.max() if given.max() >= size else given.min())} is not among the {size}")
    mask = np.zeros(size, dtype=np.bool_)
    mask[given] = True
    return mask


def _log_sum(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    kept = np.where(mask, x, -np.inf)
    top = kept.max(1)
    shift = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(kept - shift[:, None]).sum(1)) + shift)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    return np.asarray(x - _log_sum(x, np.ones(x.shape, dtype=np.bool_))[:, None])


def goal_actions(world: FiniteWorld, negative: StateGoal, positive: StateGoal, *, gamma: float = 0.95) -> np.ndarray:
    """Actions that are optimal for the positive goal and not for the negative one, by row: bool `[2 S, A]`.

    Rows are those of `policies.goal_inputs` where all states are taken: each state under the negative goal, then each
    under the positive one. A row without such an action (on the goal itself, say) counts in no mean.

    >>> from retarget.envs import make_world
    >>> world = make_world("OpenGrid", size=5)
    >>> goal_actions(world, world.goals[0], world.goals[-1]).shape == (2 * world.model.n_states, 4)
    True
    """
    from retarget.exact import best_actions

    best = [best_actions(world.model, goal, gamma=gamma) for goal in (negative, positive)]
    only = best[1] & ~best[0] & ~best[1].all(1, keepdims=True)
    return np.concatenate([only, only])


# ------------------------------------------------------------------------------------------------------------- answers


@dataclass(frozen=True, eq=False)
class Run:
    """One way to run the network.

    Attributes:
        writes: what is changed on the way.
        call: another network to ask in place of it, such as one with edited weights; then there are no writes.
        tensors: how many tensors of that other network were changed.
        on: the classes whose rows are run.
    """

    writes: tuple[Write, ...] = ()
    call: Call | None = None
    tensors: int = 0
    on: tuple[int, ...] = (NEGATIVE, POSITIVE)


@dataclass(frozen=True, eq=False)
class Answers:
    """What came back, by row number.

    Attributes:
        score: float64 `[N]`, nats: see `token_score`; NaN for rows that were not run, or have no odds.
        hit: float64 `[N]`, 1 where the likeliest token is wanted; NaN as above.
        kl: float64 `[N]`, nats: divergence from the untouched network; NaN for rows that were not run.
        fired: tensors that were changed, over all passes (of another network: its changed tensors).
    """

    score: np.ndarray
    hit: np.ndarray
    kl: np.ndarray
    fired: int


def answers(
    model: Readable,
    inputs: Inputs,
    runs: Mapping[Key, Run],
    *,
    wanted: Sequence[int] | np.ndarray,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, Mapping[Key, Answers]]:
    """Ask the network in each way, batch by batch: only numbers by row are kept.

    Args:
        model: the network.
        inputs: two classes of rows.
        runs: by any key.
        wanted: tokens by number, bool `[V]`, or bool `[N, V]` by row number: rows where none or all are wanted have no
            odds.
        batch_size: rows a pass.
        progress: is told how many rows are done, and how many there are.

    Returns:
        int64 `[N]` labels of the rows, and the answers by key.

    Raises:
        LayersError: for wanted tokens that do not fit, no row with odds, a write that did not fire.
    """
    if batch_size < 1:
        raise LayersError(f"batch_size must be at least 1, got {batch_size}")
    n = sum(inputs.count)
    label = np.full(n, -1, dtype=np.int64)
    numbers = {key: np.full((3, n), np.nan) for key in runs}
    fired = {key: run.tensors for key, run in runs.items()}
    done = 0
    for part in inputs.batches(batch_size):
        label[part.row] = part.label
        plain = last_logits(model.run(part.batch).logits, part.batch)
        for key, run in runs.items():
            chosen = np.flatnonzero(np.isin(part.label, run.on))
            if not len(chosen):
                continue
            batch = part.batch if len(chosen) == part.batch.n else _rows_of(part.batch, chosen)
            if run.call is not None:
                logits = last_logits(run.call(batch), batch)
            elif run.writes:
                out = model.run(batch, write=run.writes)
                if len(out.fired) != len(run.writes) or not all(out.fired):
                    raise LayersError(
                        f"a write at {run.writes[0].hook!r} or after it changed nothing; check the network"
                    )
                fired[key] += sum(out.fired)
                logits = last_logits(out.logits, batch)
            else:
                logits = plain[chosen]
            rows = part.row[chosen]
            numbers[key][:2, rows] = _scored(logits, wanted, rows, n)
            numbers[key][2, rows] = divergence(plain[chosen], logits)
        done += part.batch.n
        if progress is not None:
            progress(done, n)
    return label, {key: Answers(n[0], n[1], n[2], fired[key]) for key, n in numbers.items()}


def _rows_of(batch: Batch, rows: np.ndarray) -> Batch:
    instruction = None if batch.instruction is None else np.asarray(batch.instruction)[rows]
    return Batch(np.asarray(batch.inputs)[rows], batch.mask[rows], instruction)


def last_logits(logits: Tensor | None, batch: Batch) -> np.ndarray:
    """Float64 `[B, V]` at the last token of each row, of logits `[B, T, V]`; or of `[B, 1, V]`, one for each row."""
    if logits is None or logits.ndim != 3 or logits.shape[1] not in (1, batch.mask.shape[1]):
        shape = None if logits is None else tuple(logits.shape)
        raise LayersError(f"a network gave outputs of shape {shape} for {batch.n} rows, not one for each row or token")
    import torch

    at = np.zeros(batch.n, dtype=np.int64) if logits.shape[1] == 1 else batch.lengths - 1
    rows = torch.arange(batch.n, device=logits.device)
    return as_float64(logits[rows, torch.tensor(at, device=logits.device)])


def _scored(logits: np.ndarray, wanted: Sequence[int] | np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    """Float64 `[2, B]`: scores and hits; NaN where a row has no odds."""
    mask = wanted_mask(wanted, logits.shape[1])
    if mask.ndim == 2:
        if len(mask) != n:
            raise LayersError(f"wanted tokens by row must be bool [{n}, V], one row for each input, got {mask.shape}")
        mask = mask[rows]
    mask = np.broadcast_to(mask, logits.shape)
    out = np.full((2, len(logits)), np.nan)
    usable = mask.any(1) & ~mask.all(1)
    if usable.any():
        out[0, usable] = token_score(logits[usable], mask[usable])
        out[1, usable] = hits(logits[usable], mask[usable])
    return out
