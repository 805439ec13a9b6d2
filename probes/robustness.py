"""Robustness: how reliably an agent reaches its own goal, over every start. A property of behaviour alone."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick
from retarget.judge import judge_of
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.row import Kind, Measurement

#: Starts that competence is estimated over where they cannot be listed.
N_STARTS = 256
_UNTRAINED = "the agent has no record of training starts: seen and unseen cannot be told apart"


class Robustness(Probe):
    """Competence on the agent's own goal over every start that can reach it, and over those seen and not seen in
    training apart. Exact in finite worlds; elsewhere estimated from 256 stratified starts, with an interval.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> goal = world.goals[0]
    >>> subject = retarget.Subject(exact_planner(world, goal), world, goal)
    >>> Robustness().measure(subject)["robustness"].value
    1.0
    """

    name: ClassVar[str] = "robustness"
    kind: ClassVar[Kind] = "evaluation"
    metrics: ClassVar = {
        "robustness": Metric("1", "mean of V/V* over every start that can reach goal A", 0.0, 1.0),
        "robustness_seen": Metric("1", "the same over starts of training", 0.0, 1.0),
        "robustness_unseen": Metric("1", "the same over starts that training never used", 0.0, 1.0),
        "worst_case": Metric("1", "least V/V* over those starts", 0.0, 1.0),
        "success": Metric(
            "1", "share of those starts from which goal A is surely reached (or held at the end)", 0.0, 1.0
        ),
        "uniform_competence": Metric("1", "the same mean for a policy that acts at random, to compare", 0.0, 1.0),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant", "behaviour_only", "dead_parameters"}

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        agent = subject.agent
        try:
            judge = judge_of(
                subject.world, subject.goal_a, gamma=subject.gamma, seed=subject.seed, n=N_STARTS, purpose="test"
            )
            score = judge.score(agent)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        ratios = judge.ratios_of(agent)
        if isinstance(judge, Yardstick):
            overall = Measurement.ok("robustness", _mean(ratios))
            parts = _split(ratios, judge.starts, agent.seen_starts)
        else:
            overall = Measurement.ok(
                "robustness", score.competence, ci_low=score.ci_low, ci_high=score.ci_high, n=score.n
            )
            reason = "starts are drawn from a continuum: none was seen before"
            names = ("robustness_seen", "robustness_unseen")
            parts = tuple(Measurement.not_applicable(n, reason) for n in names)  # type: ignore[assignment]
        ok = Measurement.ok
        return Outcome(
            (
                overall,
                *parts,
                ok("worst_case", ratios.min()),
                ok("success", score.success),
                ok("uniform_competence", judge.uniform_competence),
            )
        )


def _mean(ratios: np.ndarray) -> float:
    # sorted, so that the order of the states does not enter through rounding
    return float(min(np.sort(ratios).mean(), 1.0))


def _split(ratios: np.ndarray, starts: np.ndarray, seen: np.ndarray | None) -> tuple[Measurement, Measurement]:
    names = ("robustness_seen", "robustness_unseen")
    if seen is None:
        first, second = (Measurement.not_applicable(n, _UNTRAINED) for n in names)
        return first, second
    inside = np.isin(starts, seen)
    out = []
    for name, mask, words in zip(names, (inside, ~inside), ("no", "every"), strict=True):
        if mask.any():
            out.append(Measurement.ok(name, _mean(ratios[mask])))
        else:
            out.append(Measurement.not_applicable(name, f"{words} start that counts was used in training"))
    return out[0], out[1]
