"""Which of many candidate directions to take: the rule of Arditi et al. 2024, over positions and layers.

Arditi et al. 2024, appendix C: each candidate is judged by three scores on validation inputs. Of those that induce the
behaviour (steering score), change little else (divergence) and do not come from the last layers, the one is taken
whose ablation leaves the least of the behaviour. Where the text and the authors' released program differ on the
boundaries, the program is followed: a candidate *at* a limit is kept, and layers from `int(0.8 L)` on are left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from retarget.analysis.layers.answers import Run, answers
from retarget.analysis.layers.collected import NEGATIVE, POSITIVE, Inputs
from retarget.analysis.layers.readable import Readable
from retarget.analysis.layers.steering import Direction, ablate_everywhere, add_at
from retarget.errors import LayersError

if TYPE_CHECKING:
    import polars as pl

#: Why a candidate is left out, in the order in which it is asked.
UNDEFINED: Final = "a score is not defined"
LATE: Final = "its layer is among the last ones"
DIVERGES: Final = "its ablation changes too much on negative inputs"
FAILS: Final = "adding it does not induce the behaviour"


@dataclass(frozen=True)
class Evaluation:
    """Three figures of one candidate direction. Scores are log odds of the wanted tokens, see `token_score`.

    Attributes:
        position: that it is from, counted from the end, e.g. -2; text for other positions.
        layer: that it is from.
        refusal_score: mean on positive inputs, the direction ablated everywhere; the less, the more it is needed.
        steering_score: mean on negative inputs, the direction added at its layer; the more, the more it suffices.
        kl_div_score: mean divergence of next tokens on negative inputs where it is ablated, nats.
    """

    position: int | str
    layer: int
    refusal_score: float
    steering_score: float
    kl_div_score: float

    def why_not(self, *, late: int, kl_limit: float, steer_floor: float) -> str | None:
        """Why the rule leaves it out, or None; `late` is the first of the layers that are left out."""
        if not all(map(math.isfinite, (self.refusal_score, self.steering_score, self.kl_div_score))):
            return UNDEFINED
        if self.layer >= late:
            return LATE
        if self.kl_div_score > kl_limit:
            return DIVERGES
        return FAILS if self.steering_score < steer_floor else None


@dataclass(frozen=True)
class Selected:
    """What the rule chose.

    Attributes:
        best: the candidate; None where none was left.
        evaluations: all candidates, as they were given.
        why: for each, why it was left out, or None.
        reason: why there is no best one, or None.
    """

    best: Evaluation | None
    evaluations: tuple[Evaluation, ...]
    why: tuple[str | None, ...]
    reason: str | None = None

    @property
    def position(self) -> int | str | None:
        return None if self.best is None else self.best.position

    @property
    def layer(self) -> int | None:
        return None if self.best is None else self.best.layer

    @property
    def left_out(self) -> Mapping[str, int]:
        """How many candidates were left out, by reason."""
        return dict(Counter(w for w in self.why if w is not None))

    def frame(self) -> pl.DataFrame:
        """One row a candidate: its figures, `kept`, and `why` it is left out."""
        import polars as pl

        numbered = all(isinstance(e.position, int) for e in self.evaluations)
        figures = ("refusal_score", "steering_score", "kl_div_score")
        data: dict[str, list[object]] = {
            "position": [e.position if numbered else str(e.position) for e in self.evaluations],
            "layer": [e.layer for e in self.evaluations],
        }
        for name in figures:
            values = [getattr(e, name) for e in self.evaluations]
            data[name] = [v if math.isfinite(v) else None for v in values]
        data |= {"kept": [w is None for w in self.why], "why": list(self.why)}
        kinds: dict[str, pl.DataType] = {"position": pl.Int64() if numbered else pl.String(), "layer": pl.Int64()}
        kinds |= dict.fromkeys(figures, pl.Float64()) | {"kept": pl.Boolean(), "why": pl.String()}
        return pl.DataFrame(data, schema=kinds)


def select(
    evaluations: Sequence[Evaluation],
    *,
    n_layers: int,
    kl_limit: float = 0.1,
    steer_floor: float = 0.0,
    last_layers_left_out: float = 0.2,
) -> Selected:
    """Choose among candidates by the rule above; of equals the first.

    Args:
        evaluations: of all candidates.
        n_layers: blocks of the model, L.
        kl_limit: a larger divergence leaves a candidate out.
        steer_floor: so does a smaller steering score.
        last_layers_left_out: share of the layers at the end that is left out: those from `int(L (1 - share))` on.

    Raises:
        LayersError: for limits that are no numbers, no layers, or a share outside 0 to 1.

    >>> rows = [(-1, 0, -3.0, -1.0, 0.0), (-1, 1, -2.0, 1.0, 0.0), (-1, 4, -9.0, 1.0, 0.0)]
    >>> found = select([Evaluation(*row) for row in rows], n_layers=5)
    >>> found.position, found.layer, len(found.left_out)
    (-1, 1, 2)
    """
    if math.isnan(kl_limit) or math.isnan(steer_floor) or not 0 <= last_layers_left_out <= 1 or n_layers < 1:
        raise LayersError(
            f"the rule needs limits that are numbers, a share in [0, 1] and layers, got kl_limit={kl_limit}, "
            f"steer_floor={steer_floor}, last_layers_left_out={last_layers_left_out}, n_layers={n_layers}"
        )
    late = int(n_layers * (1.0 - last_layers_left_out))
    why = tuple(e.why_not(late=late, kl_limit=kl_limit, steer_floor=steer_floor) for e in evaluations)
    kept = [e for e, w in zip(evaluations, why, strict=True) if w is None]
    reason = None
    if not kept:
        counts = Counter(w for w in why if w is not None).most_common()
        told = "; ".join(f"{n}: {w}" for w, n in counts)
        reason = f"no candidate is left of {len(why)}" + (f" ({told})" if told else "")
    best = min(kept, key=lambda e: e.refusal_score, default=None)
    return Selected(best, tuple(evaluations), why, reason)


def evaluate_candidates(
    model: Readable,
    inputs: Inputs,
    directions: Sequence[Direction],
    *,
    wanted: Sequence[int] | np.ndarray,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Evaluation, ...]:
    """The three figures of each direction: two passes over the negative inputs for each, and one over the positive.

    Args:
        model: the network.
        inputs: validation inputs, best not those that the directions are from.
        directions: the candidates, of this model.
        wanted: tokens of the behaviour, see `answers.answers`.
        batch_size: rows a pass.
        progress: is told of progress.

    Raises:
        LayersError: see `answers.answers`; for a network without a residual stream.
    """
    runs: dict[tuple[int, str], Run] = {}
    for i, one in enumerate(directions):
        runs[i, "ablate"] = Run(ablate_everywhere(model, one))
        runs[i, "add"] = Run(add_at(model, one), on=(NEGATIVE,))
    label, found = answers(model, inputs, runs, wanted=wanted, batch_size=batch_size, progress=progress)
    out = []
    for i, one in enumerate(directions):
        ablated, added = found[i, "ablate"], found[i, "add"]
        position = int(one.position) if one.position.lstrip("-").isdecimal() else one.position
        out.append(
            Evaluation(
                position, one.layer, _mean(ablated.score[label == POSITIVE]), _mean(added.score[label == NEGATIVE]),
                _mean(ablated.kl[label == NEGATIVE]),
            )
        )  # fmt: skip
    return tuple(out)


def _mean(values: np.ndarray) -> float:
    """Over rows that have a value; NaN where none has."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else math.nan
