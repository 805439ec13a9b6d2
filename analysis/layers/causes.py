"""What a direction causes, beside its controls: whether the network uses it, or merely holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from retarget.analysis.layers.answers import (
    Answers,
    Call,
    Run,
    answers,
    divergence,
    goal_actions,
    hits,
    last_logits,
    token_score,
)
from retarget.analysis.layers.collected import NEGATIVE, POSITIVE, Inputs
from retarget.analysis.layers.columns import CAUSES
from retarget.analysis.layers.readable import Batch, Readable
from retarget.analysis.layers.steering import (
    Direction,
    Tokens,
    ablate_at,
    ablate_everywhere,
    add_at,
    controls_of,
    directions_of,
    has_stream,
    other_layer_like,
    random_like,
    shuffled_like,
    stream_hooks,
)
from retarget.errors import LayersError
from retarget.rng import stream

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from retarget.agent import Agent

__all__ = [
    "Direction", "Effect", "Separability", "ablate_at", "ablate_everywhere", "add_at", "controls_of", "directions_of",
    "divergence", "goal_actions", "hits", "measure_causes", "other_layer_like", "random_like", "shuffled_like",
    "stream_hooks", "token_score", "verdict_of",
]  # fmt: skip

Verdict = Literal["used", "present_not_used", "absent"]
#: An intervention, the kind of direction, and its number where there are several of a kind.
_Key = tuple[str, str | None, int]
_UNTOUCHED: _Key = ("none", None, 0)
_SIDES = ((POSITIVE, "positive"), (NEGATIVE, "negative"))
#: Share of the way from one class's score to the other's that an effect must cover to count, unless told otherwise.
LEAST_SHARE = 0.5
#: Nats by which the classes' scores must differ at least: shares of a smaller way say nothing of a behaviour.
LEAST_GAP_NATS = 1.0
_CELLS = 1 << 22


@dataclass(frozen=True)
class Separability:
    """Whether a direction can be read off, from the layerwise table.

    Attributes:
        diff_p: permutation p-value of the difference's length, or None.
        probe_d_prime: of the held-out linear probe, or None.

    >>> Separability(diff_p=0.005, probe_d_prime=2.0).present, Separability(diff_p=0.4).present, Separability().present
    (True, False, None)
    """

    diff_p: float | None = None
    probe_d_prime: float | None = None

    @property
    def present(self) -> bool | None:
        """Whether all that is known says so: p of at most 0.05, d' of at least 1. None where nothing is known."""
        known = [] if self.diff_p is None else [self.diff_p <= 0.05]
        known += [] if self.probe_d_prime is None else [self.probe_d_prime >= 1.0]
        return all(known) if known else None

    @classmethod
    def of(cls, layers: pl.DataFrame, direction: Direction) -> Separability:
        """From the rows of the layerwise table (`columns.LAYERS`) of the model; what is not there is None."""
        trunk = layers["stream"] != "final_norm"
        here = layers.filter(trunk & (layers["layer"] == direction.layer) & (layers["position"] == direction.position))
        if here.height != 1:
            return cls()
        return cls(here["diff_p"].item(), here["probe_d_prime"].item())


@dataclass(frozen=True)
class Effect:
    """How far an intervention goes toward making the classes alike: 0 not at all, 1 all the way.

    Attributes:
        share: for ablation, what is lost of the gap between the classes' scores, positive minus negative; for addition,
            the rise of the score on negative inputs; each over the untouched gap.
        low, high: 95% interval.
        random: the same of random directions, on average; 0 where none were tried.
        random_high: upper end of its interval.
    """

    share: float
    low: float
    high: float
    random: float = 0.0
    random_high: float = 0.0

    def steers(self, least: float) -> bool | None:
        """True where the interval lies above `least` and above that of random directions; False where it lies below
        `least`, or random directions do as much; None where intervals overlap."""
        if self.high < least or self.share <= self.random:
            return False
        return True if self.low > max(least, self.random_high) else None


def verdict_of(
    effects: Sequence[Effect], *, present: bool | None, least_share: float = LEAST_SHARE
) -> tuple[Verdict | None, str | None]:
    """Whether a direction is used: (verdict, reason where there is none).

    - `used`: the direction can be read off (`Separability.present`), and one of the effects steers (`Effect.steers`):
      taking it out closes the gap between the classes, or adding it takes the negative ones over; by at least
      `least_share` of the way, and beyond what random directions do, with intervals apart.
    - `present_not_used`: the direction can be read off (`Separability.present`), and no effect steers.
    - `absent`: it cannot, and no effect steers.
    - none: an effect's interval overlaps what it is compared with, or it is not known whether it can be read off; or
      the untouched network's scores of the two classes differ by less than `LEAST_GAP_NATS`, so that there is no
      behaviour to steer.

    >>> verdict_of([Effect(0.9, 0.8, 1.0, 0.0, 0.1)], present=True)
    ('used', None)
    >>> verdict_of([Effect(0.1, 0.0, 0.2), Effect(0.0, -0.1, 0.1)], present=True)
    ('present_not_used', None)
    """
    found = [effect.steers(least_share) for effect in effects]
    if not found:
        return None, "no intervention was measured"
    if any(f is True for f in found):
        if present:
            return "used", None
        known = "it is not known whether the direction can be read off; give its separability"
        return None, known if present is None else "it steers, though it cannot be told from sampling noise"
    if any(f is None for f in found):
        return None, "intervals overlap"
    if present is None:
        return None, "it is not known whether the direction can be read off; give its separability"
    return ("present_not_used" if present else "absent"), None


# ------------------------------------------------------------------------------------------------------------- measure


def measure_causes(
    model: Readable,
    inputs: Inputs,
    *,
    direction: Direction,
    wanted: Sequence[int] | np.ndarray,
    controls: Sequence[Direction] = (),
    separability: Separability | None = None,
    agent: Agent | None = None,
    coefficient: float = 1.0,
    tokens: Tokens = "all",
    least_share: float = LEAST_SHARE,
    batch_size: int = 32,
    n_draws: int = 2000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Rows of `columns.CAUSES`: scores with a direction ablated and added, and with its controls in its place.

    Every intervention is measured on both classes. `ablate_layer` and `add_layer` act at the layer of `direction`,
    for controls too. Several directions of one kind are one row, the mean over them; its interval is over rows and
    directions. Intervals of means are percentiles of a bootstrap over rows, the same draws for all rows of a class, so
    that effects are compared within rows. `orthogonalise` says what `ablate_all` says, but where the embedding is the
    unembedding too: see `retarget.agents.language.orthogonalise`.

    The verdict, `verdict_of`, is on the ablation everywhere (at one layer, for networks without a residual stream) and
    on the addition; it stands in all rows of the difference.

    Args:
        model: the network.
        inputs: two classes of rows, best not those that the direction is from.
        direction: whose effects are wanted.
        wanted: next tokens whose odds are the score, by number, bool `[V]`, or bool `[N, V]` by row number (actions
            that serve one goal, see `goal_actions`).
        controls: see `controls_of`; without random ones, effects are compared with `least_share` only.
        separability: for the verdict.
        agent: of the same weights, for rows of orthogonalised weights: a `LanguageModel` or a transformer policy.
        coefficient: of the addition.
        tokens: where `ablate_layer` and `add_layer` write: `all`, as in the paper, or the `last` token of each row. A
            policy whose goal is its last token is given another goal there, and nowhere else.
        least_share: see `verdict_of`.
        batch_size: rows a pass.
        n_draws: of the bootstrap.
        seed: of the bootstrap.
        progress: is told of progress.

    Raises:
        LayersError: for another model's direction, wanted tokens that do not fit, an agent that is not the model, an
            intervention that did not fire.
    """
    for each in (direction, *controls):
        each.check(model)
    if n_draws < 100 or not least_share > 0:
        raise LayersError(f"n_draws must be at least 100 and least_share above 0, got {n_draws} and {least_share}")
    tried = _numbered((direction, *controls))
    runs: dict[_Key, Run] = {_UNTOUCHED: Run()}
    bits: dict[_Key, float] = {}
    for (kind, i), one in tried.items():
        if has_stream(model):
            runs["ablate_all", kind, i] = Run(ablate_everywhere(model, one))
        runs["ablate_layer", kind, i] = Run(ablate_at(model, one, layer=direction.layer, tokens=tokens))
        added = add_at(model, one, layer=direction.layer, coefficient=coefficient, tokens=tokens)
        runs["add_layer", kind, i] = Run(added)
        if agent is not None and i == 0:
            key = ("orthogonalise", kind, 0)
            runs[key], bits[key] = _orthogonalised(agent, one)
    if agent is not None:
        _check_agent(model, inputs, agent)
    label, found = answers(model, inputs, runs, wanted=wanted, batch_size=batch_size, progress=progress)
    table = _Table(label, found, n_draws, seed)
    return table.frame(model, inputs, direction, bits, has_stream(model), separability or Separability(), least_share)


def _numbered(directions: Sequence[Direction]) -> dict[tuple[str, int], Direction]:
    out: dict[tuple[str, int], Direction] = {}
    for i, one in enumerate(directions):
        kind = "difference" if i == 0 else one.kind
        if i and kind == "difference":
            raise LayersError("a control is of kind random, shuffled or other_layer; measure one difference at a time")
        out[kind, sum(k == kind for k, _ in out)] = one
    return out


def _asked(agent: Agent) -> Call:
    """How to ask an agent for logits."""
    from retarget.agents.language import LanguageModel
    from retarget.agents.neural import NetworkAgent
    from retarget.analysis.layers.models import ModuleModel

    if isinstance(agent, LanguageModel):
        language = agent
        return lambda batch: language.logits(np.asarray(batch.inputs), batch.mask)
    if isinstance(agent, NetworkAgent):
        module = ModuleModel.of_agent(agent)

        def ask(batch: Batch) -> Tensor:
            out = module.run(batch).logits
            assert out is not None
            return out

        return ask
    raise LayersError(f"an agent of kind {agent.kind!r} has no weights that write to a residual stream")


def _orthogonalised(agent: Agent, direction: Direction) -> tuple[Run, float]:
    from retarget.agents.language import orthogonalise
    from retarget.code import edit_bits

    edit = orthogonalise(agent, direction.vector)
    run = Run(call=_asked(edit.apply(agent)), tensors=len(edit.patches))
    return run, float(edit_bits(edit, agent.layout))


def _check_agent(model: Readable, inputs: Inputs, agent: Agent) -> None:
    """An agent whose unedited logits are not the model's is another network."""
    batch = next(iter(inputs.batches(2))).batch
    mine = last_logits(model.run(batch).logits, batch)
    theirs = last_logits(_asked(agent)(batch), batch)
    if mine.shape != theirs.shape or np.abs(mine - theirs).max() > 1e-3 * max(1.0, float(np.abs(mine).max())):
        raise LayersError(f"the agent gives other logits than {model.label!r}; pass the agent of the same weights")


# --------------------------------------------------------------------------------------------------------------- table


class _Table:
    """Means, intervals and verdict of what came back."""

    def __init__(self, label: np.ndarray, found: Mapping[_Key, Answers], n_draws: int, seed: int) -> None:
        self.found, self.keys = found, list(found)
        usable = np.isfinite(found[_UNTOUCHED].score)
        self.rows = {c: np.flatnonzero((label == c) & usable) for c, _ in _SIDES}
        for c, name in _SIDES:
            if not len(self.rows[c]):
                raise LayersError(f"no row of the {name} class has odds: in each, none or all of the tokens are wanted")
        self.draws = {c: self._drawn(c, n_draws, seed) for c, _ in _SIDES}
        groups: dict[tuple[str, str | None], list[_Key]] = {}
        for key in self.keys:
            groups.setdefault(key[:2], []).append(key)
        self.groups = groups
        self.picks = {
            g: stream(seed, "layers_causes_directions", *g).integers(len(k), size=(n_draws, len(k)))
            for g, k in groups.items()
        }

    def _drawn(self, c: int, n_draws: int, seed: int) -> np.ndarray:
        """Float64 `[D, K]`: mean scores of all runs in each draw of the class's rows."""
        rows = self.rows[c]
        scores = np.stack([self.found[key].score[rows] for key in self.keys])
        # classes of one size share their draws, so that rows that are pairs are drawn together
        random = stream(seed, "layers_causes_rows", len(rows))
        step = max(1, _CELLS // len(rows))
        parts = []
        for begin in range(0, n_draws, step):
            size = min(step, n_draws - begin)
            weight = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=size)
            parts.append(weight @ scores.T / len(rows))
        return np.concatenate(parts)

    def mean(self, group: tuple[str, str | None], c: int, what: str) -> float:
        """Mean over rows and directions of `score`, `hit` or `kl`."""
        return float(np.mean([getattr(self.found[k], what)[self.rows[c]].mean() for k in self.groups[group]]))

    def drawn(self, group: tuple[str, str | None], c: int) -> np.ndarray:
        """Float64 `[D]`: the mean score in each draw of rows, and of directions where there are several."""
        columns = self.draws[c][:, [self.keys.index(k) for k in self.groups[group]]]
        return np.asarray(np.take_along_axis(columns, self.picks[group], axis=1).mean(1))

    def effect(self, name: str, c: int) -> Effect | str:
        """The effect of an intervention on a class, or why there is none."""
        plain = ("none", None)
        gap = self.mean(plain, POSITIVE, "score") - self.mean(plain, NEGATIVE, "score")
        gaps = self.drawn(plain, POSITIVE) - self.drawn(plain, NEGATIVE)
        if min(map(len, self.rows.values())) < 2:
            return "one row of a class gives no interval"
        if not np.percentile(gaps, 2.5) > 0:
            return "the untouched network does not score the positive inputs above the negative ones"
        if gap < LEAST_GAP_NATS:
            return f"the classes' scores differ by less than {LEAST_GAP_NATS:g} nat: there is no behaviour to steer"
        numbers: list[float] = []
        for kind in ("difference", "random"):
            if (name, kind) not in self.groups:
                continue
            if c == NEGATIVE:
                moved = (self.mean((name, kind), c, "score") - self.mean(plain, c, "score")) / gap
                draws = (self.drawn((name, kind), c) - self.drawn(plain, c)) / gaps
            else:
                # what is lost on both sides alike is damage, not removal: it is the gap that has to close
                left = self.mean((name, kind), POSITIVE, "score") - self.mean((name, kind), NEGATIVE, "score")
                moved = 1.0 - left / gap
                draws = 1.0 - (self.drawn((name, kind), POSITIVE) - self.drawn((name, kind), NEGATIVE)) / gaps
            low, high = np.percentile(draws, [2.5, 97.5])
            numbers += [moved, float(low), float(high)] if kind == "difference" else [moved, float(high)]
        return Effect(*numbers)

    def frame(
        self, model: Readable, inputs: Inputs, direction: Direction, bits: Mapping[_Key, float], streams: bool,
        separability: Separability, least_share: float,
    ) -> pl.DataFrame:  # fmt: skip
        """All rows."""
        from retarget.analysis.layers.tables import frame

        effects = [
            self.effect("ablate_all" if streams else "ablate_layer", POSITIVE),
            self.effect("add_layer", NEGATIVE),
        ]
        why = next((e for e in effects if isinstance(e, str)), None)
        judged: tuple[Verdict | None, str | None] = (None, why)
        if why is None:
            known = [e for e in effects if isinstance(e, Effect)]
            judged = verdict_of(known, present=separability.present, least_share=least_share)
        base = {
            "model": model.label, "digest": model.digest, "contrast": inputs.contrast,
            "position": direction.position, "layer": direction.layer,
        }  # fmt: skip
        rows = []
        for group in self.groups:
            for c, name in _SIDES:
                row = base | self._row(group, c) | {"on": name, "edit_bits": bits.get((*group, 0))}
                if group[1] == "difference":
                    row["verdict"], row["reason"] = judged[0], row["reason"] or judged[1]
                rows.append(row)
        if not streams:
            rows += [base | _missing(kind, name) for kind in self._kinds() for _, name in _SIDES]
        return frame(rows, CAUSES)

    def _kinds(self) -> list[str]:
        return list(dict.fromkeys(kind for _, kind in self.groups if kind is not None))

    def _row(self, group: tuple[str, str | None], c: int) -> dict[str, object]:
        n = len(self.rows[c])
        draws = self.drawn(group, c)
        ends = np.percentile(draws, [2.5, 97.5]).tolist() if n > 1 else [None, None]
        fired = sum(self.found[k].fired for k in self.groups[group])
        row: dict[str, object] = {"intervention": group[0], "direction": group[1], "n": n, "fired": fired}
        row |= {"score": self.mean(group, c, "score"), "score_low": ends[0], "score_high": ends[1]}
        row |= {"rate": self.mean(group, c, "hit"), "kl": self.mean(group, c, "kl")}
        row["reason"] = None if n > 1 else "one row gives no interval"
        return row


def _missing(kind: str, on: str) -> dict[str, object]:
    why = "this network has no residual stream to take a direction out of everywhere"
    return {"intervention": "ablate_all", "direction": kind, "on": on, "reason": why}
