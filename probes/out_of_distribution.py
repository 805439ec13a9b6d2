"""Out of distribution: competence where training never went, in five regimes, and the heuristic that describes it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from retarget.errors import AgentError, GoalError, ProbeError, unknown
from retarget.goal import RegionGoal, StateGoal
from retarget.heuristics import HEURISTICS, Contest, contest
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.growth import student_quantile
from retarget.probes.options import check_numbers, check_range
from retarget.probes.regimes import Case, FiniteRegimes, Settings
from retarget.probes.regimes_box import BoxRegimes
from retarget.row import Kind, Measurement
from retarget.shifted import REGIMES, REGIONS, check_dose
from retarget.world import BoxWorld, FiniteWorld

_COUNTS = ("k", "budget", "episodes", "grad_steps", "n_starts", "offset_budget", "resamples")


class OutOfDistribution(Probe):
    """Competence and behaviour in five regimes outside the training distribution, each with a dial.

    `1 absence`: what the agent sees tells nothing, with probability `dose`. `2 extreme`: features beyond the trained
    range. `3 inner`: features each trained on, never together. `4 adversarial`: what it sees is chosen to do harm,
    within a budget. `5 narrow`: fine-tuned on a narrow set, then evaluated outside it. Exact in finite worlds;
    elsewhere estimated, with intervals over starts. Where every state was trained on, or none, a nominal region stands
    in for the trained ones, and the protocol says so.

    Args:
        doses: strengths in (0, 1]; strength 0, the undisturbed world, is always measured.
        regimes: which ones, by name.
        trained: `seen`: the agent's starts of training, or the regions below where those are all states or none; or a
            region that counts as trained for every agent.
        range_region: nominal trained region of every regime but 3 and 5.
        mix_region: of regime 3, which needs every row and column.
        narrow: narrow starts of regime 5.
        teach: goal of fine-tuning: `a`, `b`, or `both` in turn (B where one is given). Evaluation is on A always.
        k: neighbours in the heuristic `mixture`.
        epsilon: share of the uniform distribution in each heuristic.
        budget: policies that the adversary may score in finite worlds, at each strength.
        episodes, grad_steps: fine-tuning at strength 1, in episodes (or rounds), or in updates of a network.
        absence: in worlds with continuous states, what is seen in place of the own observation: one `observed` in other
            episodes, or `zeros`.
        n_starts: starts of worlds with continuous states.
        offset_budget: episodes a start that the adversary may try there.
        resamples: for intervals of likelihoods.
        most_swapped: share of states that the adversary swaps in finite worlds at strength 1. Where `dose` of it is
            less than one state, one is swapped, with that chance at each step.

    Raises:
        ProbeError: for options that there are not.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> subject = retarget.Subject(exact_planner(world, world.goal), world, world.goal)
    >>> found = OutOfDistribution(regimes=("2 extreme",)).measure(subject)
    >>> found["ood_competence"].value, found.at("ood_loss", dose=1.0).value
    (1.0, 0.0)
    """

    name: ClassVar[str] = "out_of_distribution"
    kind: ClassVar[Kind] = "evaluation"
    metrics: ClassVar = {
        "ood_competence": Metric("1", "competence on goal A in one regime at one strength", 0.0, 1.0),
        "ood_loss": Metric("1", "competence at strength 0 less that at this strength", -1.0, 1.0),
        "random_competence": Metric("1", "control: mean competence under random disturbances of that size", 0.0, 1.0),
        "adversary_gain": Metric(
            "1", "least competence under as many random disturbances, less that which the adversary leaves", -1.0, 1.0
        ),
        "heuristic_bits": Metric(
            "bit", "log-likelihood a decision of what the agent does there, under one heuristic", None, 0.0,
            "characterization",
        ),
        "heuristic_margin_bits": Metric(
            "bit", "heuristic_bits of one heuristic less the most of the others: positive for the best alone",
            None, None, "characterization",
        ),
    }  # fmt: skip
    # renaming states changes which ones an adversary tries first and what retraining draws; a test holds regimes 1 to 3
    # to that law
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(
        self, *, doses: tuple[float, ...] = (0.25, 0.5, 1.0), regimes: tuple[str, ...] = REGIMES,
        trained: str = "seen", range_region: str = "west half", mix_region: str = "all but south-east",
        narrow: str = "west half", teach: str = "both", k: int = 3, epsilon: float = 0.1, budget: int = 300,
        episodes: int = 64, grad_steps: int = 200, absence: str = "observed", n_starts: int = 64,
        offset_budget: int = 5, resamples: int = 500, most_swapped: float = 0.05,
    ) -> None:  # fmt: skip
        for dose in check_numbers("doses", doses):
            if check_dose(dose) == 0:
                raise ProbeError("dose 0 is measured anyway; give strengths above 0")
        if len(set(doses)) != len(tuple(doses)):
            raise ProbeError(f"option 'doses' must be distinct strengths, got {doses!r}")
        if not regimes or isinstance(regimes, str):
            raise ProbeError(
                f"option 'regimes' must be a list of at least one of {', '.join(REGIMES)}, got {regimes!r}"
            )
        for name, value, known in (
            *(("regime", r, REGIMES) for r in regimes), ("trained", trained, ("seen", *REGIONS)),
            ("range_region", range_region, REGIONS), ("mix_region", mix_region, REGIONS), ("narrow", narrow, REGIONS),
            ("teach", teach, ("a", "b", "both")), ("absence", absence, ("observed", "zeros")),
        ):  # fmt: skip
            if value not in known:
                raise ProbeError(unknown(name, value, known))
        for name, share in (("epsilon", epsilon), ("most_swapped", most_swapped)):
            check_range(name, share, above=0, high=1)
        counts = (k, budget, episodes, grad_steps, n_starts, offset_budget, resamples)
        for name, count in zip(_COUNTS, counts, strict=True):
            check_range(name, count, low=1, whole=True)
        self.settings = Settings(
            tuple(sorted(map(float, doses))), tuple(r for r in REGIMES if r in regimes), trained, range_region,
            mix_region, narrow, teach, k, budget, episodes, grad_steps, absence, n_starts, offset_budget,
            float(most_swapped),
        )  # fmt: skip
        self.epsilon, self.resamples = epsilon, resamples

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world, goal = subject.world, subject.goal_a
        found: FiniteRegimes | BoxRegimes
        try:
            if isinstance(world, FiniteWorld) and isinstance(goal, StateGoal):
                found = FiniteRegimes(subject, world, goal, self.settings)
            elif isinstance(world, BoxWorld) and isinstance(goal, RegionGoal):
                found = BoxRegimes(subject, world, goal, self.settings)
            else:
                return self.all_not_applicable(f"goal {goal.label} is none of {world.spec_data.label}")
        except (AgentError, GoalError, ProbeError) as error:
            return self.all_not_applicable(str(error))
        cases = []
        for case in found.cases():
            cases.append(case)
            tell(_done(case, self.settings), f"regime {case.regime}")
        rows: dict[str, list[Measurement]] = {name: [] for name in self.metrics}
        for case in cases:
            for m in self._rows(case, exact=found.exact, seed=subject.seed, rows=rows):
                rows[m.metric].append(m)
        if not rows["random_competence"]:
            for name in ("random_competence", "adversary_gain"):
                rows[name].append(Measurement.not_applicable(name, "the adversary's regime was not asked for"))
        return Outcome(tuple(m for name in self.metrics for m in rows[name]))

    def _rows(self, case: Case, *, exact: bool, seed: int, rows: dict[str, list[Measurement]]) -> Iterator[Measurement]:
        where = {"protocol": case.protocol, "dose": case.dose}
        adversarial = case.regime == REGIMES[3]
        if case.ratios is None or case.base is None:
            names = [n for n in self.metrics if adversarial or n not in ("random_competence", "adversary_gain")]
            yield from (Measurement.not_applicable(n, case.reason, **where) for n in names)
            return
        if not any(m.protocol == case.protocol and m.dose == 0 for m in rows["ood_competence"]):
            yield _mean("ood_competence", case.base, exact, protocol=case.protocol, dose=0.0)
        yield _mean("ood_competence", case.ratios, exact, **where)
        yield _loss(case, exact)
        if adversarial and case.control is not None:
            yield from _control(case, exact)
        if case.behaviour is None or case.rules is None or not len(case.behaviour):
            why = case.why or "there is no input of this kind"
            yield from (
                Measurement.not_applicable(n, why, **where) for n in ("heuristic_bits", "heuristic_margin_bits")
            )
            return
        result = contest(
            case.behaviour, case.rules, groups=case.groups, epsilon=self.epsilon, resamples=self.resamples, seed=seed
        )  # fmt: skip
        yield from _bits(case, result)
        yield from _margins(case, result)


def _done(case: Case, settings: Settings) -> float:
    i, n = settings.regimes.index(case.regime), len(settings.regimes)
    of = 1.0 if case.dose is None else (settings.doses.index(case.dose) + 1) / len(settings.doses)
    return (i + of) / n


def _interval(values: np.ndarray, mean: float, low: float, high: float) -> dict[str, float | int]:
    """Student's 95% interval of a mean, cut to the range; nothing for one value."""
    if len(values) < 2:
        return {}
    half = student_quantile(0.975, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return {"ci_low": max(low, mean - half), "ci_high": min(high, mean + half), "n": len(values)}


def _mean(metric: str, ratios: np.ndarray, exact: bool, **where: object) -> Measurement:
    # sorted, so that the order of the states does not enter through rounding
    mean = float(min(np.sort(ratios).mean(), 1.0))
    extra = {} if exact else _interval(ratios, mean, 0.0, 1.0)
    return Measurement.ok(metric, mean, **extra, **where)


def _loss(case: Case, exact: bool) -> Measurement:
    assert case.ratios is not None and case.base is not None
    value = float(np.sort(case.base).mean() - np.sort(case.ratios).mean())
    extra: dict[str, float | int] = {}
    if not exact and case.paired:
        extra = _interval(case.base - case.ratios, value, -1.0, 1.0)
    elif not exact and min(len(case.base), len(case.ratios)) > 1:
        half = 1.96 * math.sqrt(sum(float(v.var(ddof=1)) / len(v) for v in (case.base, case.ratios)))
        extra = {"ci_low": max(-1.0, value - half), "ci_high": min(1.0, value + half), "n": len(case.ratios)}
    value = min(1.0, max(-1.0, value))
    return Measurement.ok("ood_loss", value, **extra, protocol=case.protocol, dose=case.dose)


def _control(case: Case, exact: bool) -> Iterator[Measurement]:
    assert case.control is not None and case.ratios is not None
    values = case.control.values
    mean = float(min(values.mean(), 1.0))
    where = {"protocol": case.protocol, "dose": case.dose}
    yield Measurement.ok("random_competence", mean, **_interval(values, mean, 0.0, 1.0), **where)
    gain = case.control.best - float(np.sort(case.ratios).mean())
    # what is worse by rounding alone is a tie
    value = 0.0 if abs(gain) <= 1e-12 else min(1.0, max(-1.0, gain))
    each = case.control.ratios
    extra = {} if exact or each is None else _interval(each - case.ratios, value, -1.0, 1.0)
    yield Measurement.ok("adversary_gain", value, **extra, **where)


def _bits(case: Case, result: Contest) -> Iterator[Measurement]:
    place = {name: i for i, names in enumerate(result.names) for name in names.split(" = ")}
    for name in (h for h in HEURISTICS if h in place):
        i = place[name]
        yield Measurement.ok(
            "heuristic_bits", result.bits[i], **_ends(result.low[i], result.high[i], result.n), **_of(case, name)
        )


def _margins(case: Case, result: Contest) -> Iterator[Measurement]:
    """One row for each heuristic; those that predict the same stand against the same others."""
    place = {name: i for i, names in enumerate(result.names) for name in names.split(" = ")}
    metric = "heuristic_margin_bits"
    for name in (h for h in HEURISTICS if h in place):
        i = place[name]
        if result.margins is None or result.margins_low is None or result.margins_high is None:
            reason = "every heuristic predicts the same here: there is nothing to tell apart"
            yield Measurement.not_applicable(metric, reason, **_of(case, name))
            continue
        extra = _ends(result.margins_low[i], result.margins_high[i], result.n)
        yield Measurement.ok(metric, result.margins[i], **extra, **_of(case, name))


def _of(case: Case, name: str) -> dict[str, object]:
    return {"protocol": f"{case.protocol}; heuristic: {name}", "dose": case.dose}


def _ends(low: float, high: float, n: int) -> dict[str, float | int]:
    """An interval with its n; nothing but n where one input alone says nothing about the spread."""
    return {"n": n} if n < 2 else {"ci_low": float(low), "ci_high": float(high), "n": n}
