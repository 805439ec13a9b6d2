"""Weights: what is left of an agent's competence when its numbers are disturbed, or its units taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Categorical, Part
from retarget.errors import AgentError, EditError, GoalError, ProbeError
from retarget.exact import Yardstick
from retarget.judge import judge_of
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.growth import student_quantile
from retarget.probes.options import check_numbers, check_range
from retarget.rng import stream
from retarget.row import Kind, Measurement
from retarget.trials import Trials
from retarget.units import Ablation, HasUnits, UnitLayer, UnvaryingError

_RESAMPLES = 400
#: Roles of parts that say what the agent wants, or steer it, rather than what it is made of.
_LEFT_ALONE = ("goal_slot", "activation")
_HURT = (
    "noise_competence",
    "noise_half",
)
_ABLATED = (
    "ablation_competence",
    "ablation_worst",
    "ablation_clean",
    "direct_effect",
    "total_effect",
    "self_repair",
    "dead_units",
)


class Weights(Probe):
    """Competence on goal A under noise on an agent's numbers, and without single units.

    Noise: each real part gets Gaussian noise with `dose` times the root mean square of its own entries; each cell of a
    categorical part is redrawn with chance `dose`. All parts at once, but goal slots and steering vectors. Parts of a
    model that hold distributions, or counts, stay such: what falls below 0 is cut, rows are scaled to their sum.

    Ablation, of agents with units (`retarget.units.HasUnits`): one unit is replaced by its mean over the states.
    `self_repair` is 1 - Σ total · direct / Σ direct², over units and states: which share of the direct effects on the
    margin of the chosen action the rest of the network makes up for (McGrath et al. 2023; Rushing and Nanda 2024).

    Args:
        doses: of noise, each above 0, rising.
        draws: of noise, at each dose; a quarter of them where competence takes episodes or each decision a search.
        most_units: of a layer, evenly spaced; a quarter of them for agents with memory.
        steps: length of the sequences on which an agent with memory is ablated.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> subject = retarget.Subject(exact_planner(world, world.goals[0]), world, world.goals[0])
    >>> outcome = Weights(draws=4).measure(subject)
    >>> outcome.at("noise_competence", dose=0.0).value, outcome["self_repair"].status
    (1.0, 'not_applicable')
    """

    name: ClassVar[str] = "weights"
    kind: ClassVar[Kind] = "experiment"
    metrics: ClassVar = {
        "noise_competence": Metric("1", "mean competence on A under noise; at dose 0, as it is", 0.0, 1.0),
        "noise_half": Metric("1", "dose at which half of the competence is lost, interpolated", 0.0, None),
        "ablation_competence": Metric("1", "mean competence on A without one unit of a layer", 0.0, 1.0),
        "ablation_worst": Metric("1", "the least of those", 0.0, 1.0),
        "ablation_clean": Metric("1", "control: competence with every unit put back as it was", 0.0, 1.0),
        "direct_effect": Metric("score", "mean absolute direct effect of a unit on the margin", 0.0, None),
        "total_effect": Metric("score", "mean absolute total effect of a unit on the margin", 0.0, None),
        "self_repair": Metric("1", "share of direct effects that what comes after makes up for", None, None),
        "dead_units": Metric("1", "share of units that never vary: taking one out changes nothing", 0.0, 1.0),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(
        self,
        *,
        doses: Sequence[float] = (0.01, 0.03, 0.1, 0.3, 1.0),
        draws: int = 16,
        most_units: int = 64,
        steps: int = 24,
    ) -> None:
        self.doses = check_numbers("doses", doses)
        if self.doses[0] <= 0 or list(self.doses) != sorted(set(self.doses)):
            raise ProbeError(f"doses must rise from above 0, got {doses!r}; e.g. doses=(0.01, 0.1, 1.0)")
        for name, value, low in (("draws", draws, 2), ("most_units", most_units, 2), ("steps", steps, 1)):
            check_range(name, value, low=low, whole=True)
        self.draws, self.most_units, self.steps = draws, most_units, steps

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        try:
            judge = judge_of(subject.world, subject.goal_a, gamma=subject.gamma, seed=subject.seed)
            clean = judge.score(subject.agent).competence
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        noise = self._noise(subject, judge, clean, lambda x: tell(0.6 * x, "noise"))
        units = self._units(subject, judge, lambda x: tell(0.6 + 0.4 * x, "ablation"))
        return Outcome((*noise, *units))

    # -- noise -----------------------------------------------------------------------------------------------------

    def _noise(
        self, subject: Subject, judge: Yardstick | Trials, clean: float, tell: Callable[[float], None]
    ) -> list[Measurement]:
        parts = [p for p in subject.agent.parts.values() if p.role not in _LEFT_ALONE]
        if not parts:
            reason = "it exposes no part but its goal: there is nothing to disturb"
            return [Measurement.not_applicable(name, reason) for name in _HURT]
        how = _describe(parts)
        slow = isinstance(judge, Trials) or subject.agent.has_memory or _searches(subject.agent)
        draws = max(2, self.draws // 4) if slow else self.draws
        found = np.empty((len(self.doses), draws))
        try:
            for i, draw in enumerate(_draw(parts, subject.seed, n) for n in range(draws)):
                for j, dose in enumerate(self.doses):
                    found[j, i] = judge.score(subject.agent.with_arrays(draw.at(dose))).competence
                tell((i + 1) / draws)
        except (AgentError, EditError, ProbeError) as error:
            return [Measurement.failed(name, f"the disturbed agent cannot be judged: {error}") for name in _HURT]
        rows = [Measurement.ok("noise_competence", clean, protocol=how, dose=0.0)]
        for dose, values in zip(self.doses, found, strict=True):
            low, high = _student(values)
            rows.append(
                Measurement.ok(
                    "noise_competence", values.mean(), ci_low=low, ci_high=high, n=draws, protocol=how, dose=dose
                )
            )
        return [*rows, self._half(found, clean, judge.uniform_competence, how, subject.seed)]

    def _half(self, found: np.ndarray, clean: float, uniform: float, how: str, seed: int) -> Measurement:
        if clean <= uniform + 1e-9:
            reason = (
                f"its competence of {clean:.4g} is not above a uniform policy's, {uniform:.4g}: there is none to lose"
            )
            return Measurement.not_applicable("noise_half", reason, protocol=how)
        half = half_dose(self.doses, found.mean(1), clean)
        if half is None:
            reason = f"censored: more than half of the competence is left at the largest dose, {self.doses[-1]:g}"
            return Measurement.failed("noise_half", reason, protocol=how)
        rng = stream(seed, "weights", "resample")
        picks = rng.integers(found.shape[1], size=(_RESAMPLES, found.shape[1]))
        again = [half_dose(self.doses, found[:, p].mean(1), clean) for p in picks]
        # a resample that never falls that low counts as the largest dose: it cannot tell more
        ends = np.quantile([self.doses[-1] if x is None else x for x in again], (0.025, 0.975))
        low, high = (float(x) for x in ends)
        return Measurement.ok(
            "noise_half", half, ci_low=min(low, half), ci_high=max(high, half), n=found.shape[1], protocol=how
        )

    # -- units -----------------------------------------------------------------------------------------------------

    def _units(self, subject: Subject, judge: Yardstick | Trials, tell: Callable[[float], None]) -> list[Measurement]:
        agent = subject.agent
        if not isinstance(agent, HasUnits) or not agent.unit_layers():
            return _none(_ABLATED, "it has no units that can be taken out")
        if not isinstance(judge, Yardstick):
            return _none(_ABLATED, "units are taken out where states can be listed, and those here are a continuum")
        if agent.has_memory and not judge.model.is_deterministic:
            return _none(_ABLATED, "an agent with memory is followed along one path, and this world has chance")
        obs, among = _states(judge) if not agent.has_memory else _paths(agent, judge, self.steps)
        rows: dict[str, list[Measurement]] = {name: [] for name in _ABLATED}
        layers = agent.unit_layers()
        for i, layer in enumerate(layers):
            most = max(2, self.most_units // 4) if agent.has_memory else self.most_units
            units = np.unique(np.linspace(0, layer.n_units - 1, min(most, layer.n_units)).astype(np.int64))
            how = f"{layer.name}: {layer.what}s to their mean, direct path {layer.path}"
            try:
                found = agent.ablated(layer.name, units.tolist(), obs, among=among)
            except UnvaryingError as error:
                measured = [Measurement.not_applicable(name, str(error), protocol=how) for name in _ABLATED]
            except AgentError as error:
                measured = [Measurement.failed(name, str(error), protocol=how) for name in _ABLATED]
            else:
                measured = _layer(found, judge, layer, among, how, subject.seed)
            for m in measured:
                rows[m.metric].append(m)
            tell((i + 1) / len(layers))
        return [m for name in _ABLATED for m in rows[name]]


def half_dose(doses: Sequence[float], competence: np.ndarray, clean: float) -> float | None:
    """The dose at which competence first falls to half of what it is at dose 0, along straight lines between doses.

    >>> half_dose((0.5, 1.0), np.array([0.8, 0.2]), 1.0)
    0.75
    """
    x = np.array([0.0, *doses])
    y = np.array([clean, *competence])
    below = np.flatnonzero(y <= clean / 2)
    if not below.size:
        return None
    i = int(below[0])
    share = (y[i - 1] - clean / 2) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


# ------------------------------------------------------------------------------------------------ noise


@dataclass(frozen=True, eq=False)
class _Draw:
    """One draw of noise for every part; the same numbers at every dose, so that a larger dose is the same damage."""

    parts: tuple[Part, ...]
    numbers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def at(self, dose: float) -> dict[str, np.ndarray]:
        return {p.name: _damaged(p, *n, dose) for p, n in zip(self.parts, self.numbers, strict=True)}


def _draw(parts: Sequence[Part], seed: int, number: int) -> _Draw:
    numbers: list[tuple[np.ndarray, np.ndarray]] = []
    for part in parts:
        rng = stream(seed, "weights", number, part.name)
        if isinstance(part.alphabet, Categorical):
            symbols = rng.integers(part.alphabet.size, size=part.array.shape)
            numbers.append((rng.random(part.array.shape), symbols))
        else:
            numbers.append((rng.standard_normal(part.array.shape), np.zeros(0)))
    return _Draw(tuple(parts), tuple(numbers))


def _damaged(part: Part, first: np.ndarray, second: np.ndarray, dose: float) -> np.ndarray:
    old = part.array
    if isinstance(part.alphabet, Categorical):
        return np.where(first < dose, second, old)
    new = old + dose * float(np.sqrt(np.mean(old**2))) * first
    if part.role != "model" or (old < 0).any():
        return new
    new = np.maximum(new, 0.0)
    if old.ndim > 1 and np.abs(old.sum(-1) - 1).max() < 1e-9:
        total = new.sum(-1, keepdims=True)
        new = np.where(total > 0, new / np.where(total > 0, total, 1.0), 1.0 / old.shape[-1])
    return new


def _describe(parts: Sequence[Part]) -> str:
    """What is done, in words that agents of one kind share."""
    words = []
    for categorical, verb in ((False, "Gaussian noise, dose x rms, in"), (True, "cells redrawn with chance dose in")):
        roles = sorted({p.role for p in parts if isinstance(p.alphabet, Categorical) == categorical})
        if roles:
            words.append(f"{verb} {' and '.join(roles)}")
    return "; ".join(words)


def _searches(agent: Agent) -> bool:
    return not agent.plans_once and agent.simulations_per_action > 0


def _student(values: np.ndarray) -> tuple[float, float]:
    half = student_quantile(0.975, len(values) - 1) * float(values.std(ddof=1)) / float(np.sqrt(len(values)))
    mean = float(values.mean())
    return max(0.0, mean - half), min(1.0, mean + half)


# ------------------------------------------------------------------------------------------------ units


def _none(names: Sequence[str], reason: str) -> list[Measurement]:
    return [Measurement.not_applicable(name, reason) for name in names]


def _states(judge: Yardstick) -> tuple[np.ndarray, np.ndarray]:
    """Every state, and which of them count: those where an episode is not over."""
    n = judge.model.n_states
    return np.arange(n), ~judge.goal.mask(n)


def _paths(agent: Agent, judge: Yardstick, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """States `[N, T]` along the agent's own episodes, and which of them come before the end: bool `[N · T]`."""
    goal = judge.goal.mask(judge.model.n_states)
    state, carry, seen = judge.starts.astype(np.int64), None, []
    over = np.zeros(len(state), np.bool_)
    live = []
    for _ in range(steps):
        seen.append(state)
        live.append(~over)
        probs, carry = agent.policy(state, carry)
        state = np.where(over, state, judge.model.next_state[state, probs.argmax(1), 0]).astype(np.int64)
        over = over | goal[state]
    return np.stack(seen, 1), np.stack(live, 1).reshape(-1)


def _layer(
    found: Ablation, judge: Yardstick, layer: UnitLayer, among: np.ndarray, how: str, seed: int
) -> list[Measurement]:
    n = len(found.change)
    if found.agents is None:
        competence = np.array([judge.competence(p) for p in found.policy])
        clean = Measurement.ok("ablation_clean", judge.competence(found.clean), protocol=how)
    else:
        competence = np.array([judge.score(a).competence for a in found.agents])
        clean = Measurement.not_applicable("ablation_clean", "ablated through its weights: nothing is put back")
        clean = replace(clean, protocol=how)
    partial = n < layer.n_units
    # all units of a layer are no sample
    some: dict[str, object] = {"n": n} if partial else {}
    mean = dict(some)
    if partial:
        mean |= dict(zip(("ci_low", "ci_high"), _student(competence), strict=True))
    total, direct = found.total[:, among], found.direct[:, among]
    return [
        Measurement.ok("ablation_competence", competence.mean(), protocol=how, **mean),
        Measurement.ok("ablation_worst", competence.min(), protocol=how),
        clean,
        Measurement.ok("direct_effect", np.abs(direct).mean(), protocol=how, **some),
        Measurement.ok("total_effect", np.abs(total).mean(), protocol=how, **some),
        _repair(total, direct, how, stream(seed, "weights", "units", layer.name)),
        Measurement.ok("dead_units", float((found.change == 0).mean()), protocol=how, **some),
    ]


def _repair(total: np.ndarray, direct: np.ndarray, how: str, rng: np.random.Generator) -> Measurement:
    """1 - slope of total on direct effects, through the origin; interval by resampling units."""
    both, square = (total * direct).sum(1), (direct**2).sum(1)
    if square.sum() <= 1e-24 * max(1.0, float((total**2).sum())):
        return Measurement.not_applicable("self_repair", "no unit of the layer has a direct effect", protocol=how)
    picks = rng.integers(len(both), size=(_RESAMPLES, len(both)))
    below = square[picks].sum(1)
    ratios = both[picks].sum(1)[below > 0] / below[below > 0]
    value = _snap(1.0 - float(both.sum() / square.sum()))
    low, high = (_snap(1.0 - float(q)) for q in np.quantile(ratios, (0.975, 0.025)))
    return Measurement.ok(
        "self_repair", value, ci_low=min(low, value), ci_high=max(high, value), n=len(both), protocol=how
    )


def _snap(value: float) -> float:
    # the two effects are computed along different ways: what they differ by in rounding is no repair
    return 0.0 if abs(value) < 1e-9 else value


__all__ = ["Weights", "half_dose"]
