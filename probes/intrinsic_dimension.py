"""Intrinsic dimension: how few random directions in its numbers an agent must be trained along to be given goal B."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError
from retarget.goal import StateGoal
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.goal_gradient import finite_scores
from retarget.probes.growth import student_quantile
from retarget.probes.options import check_range
from retarget.rng import stream
from retarget.row import Kind, Measurement
from retarget.subspaces import Bent, Lesson, Straight
from retarget.world import FiniteWorld

ONCE, AGAIN = "linearised where the agent stands", "linearised at every step"
#: A Jacobian of more entries than this is not made again at every step.
MOST_AGAIN = 1 << 22


class IntrinsicDimension(Probe):
    """The least d so that training along d random directions from where the agent stands gives it goal B: as many as
    reach a share of what training all of its numbers does (Li et al. 2018, section 2, 90% there and here).

    Training fits the agent's scores to the advantages of B's exact action values (`retarget.subspaces`); what counts is
    the competence on B of the greedy policy of the scores. Relaxed tables and slots have scores that are linear in
    their numbers: one least-squares solve is the best such training; every d is tried, and the least one taken from
    which on all suffice. A network is linearised where it stands, and (another protocol) at every step of
    Levenberg-Marquardt, where d is sought by doubling and halving, to an eighth of itself.

    Directions are Gaussian and nested, drawn from a named stream. Intervals are 95% Student-t intervals over draws.
    Other training, or a lucky draw, may do with fewer: an upper bound. Numbers that move no score where the agent
    stands are left out.

    Args:
        draws: random subspaces.
        share: of the competence that training all numbers reaches, in (0, 1].
        again: random subspaces for a network that is linearised at every step; 0 for none.
        steps: linearisations, at most, of one training of a network.
        states: worlds of more states are left out.

    >>> import retarget
    >>> from retarget.agents import compile_policy, exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> a, b = world.goals[0], world.goals[-1]
    >>> planner = exact_planner(world, a)
    >>> found = [
    ...     IntrinsicDimension(draws=2).measure(retarget.Subject(agent, world, a, b))["intrinsic_dimension"].value
    ...     for agent in (planner, compile_policy(planner, world))
    ... ]
    >>> found[0] < found[1]
    True
    """

    name: ClassVar[str] = "intrinsic_dimension"
    kind: ClassVar[Kind] = "characterization"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = {
        "intrinsic_dimension": Metric("directions", "random directions that suffice to give it B: an upper bound", 0.0),
        "intrinsic_dimension_blank": Metric("directions", "the same from the agent's blank", 0.0),
        "intrinsic_share": Metric("1", "intrinsic_dimension over the agent's live numbers", 0.0, 1.0),
        "intrinsic_dimension_shuffled": Metric("directions", "control: B's lessons told to the wrong states", 0.0),
        "live_numbers": Metric("numbers", "numbers that move a score where the agent stands", 0.0),
        "solution_competence": Metric("1", "competence on B after training all of the agent's numbers", 0.0, 1.0),
        "solution_competence_blank": Metric("1", "the same from the agent's blank", 0.0, 1.0),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"dead_parameters"}

    def __init__(
        self, *, draws: int = 5, share: float = 0.9, again: int = 1, steps: int = 10, states: int = 256
    ) -> None:
        check_range("share", share, above=0, high=1)
        for name, value, low in (("draws", draws, 1), ("again", again, 0), ("steps", steps, 1), ("states", states, 1)):
            check_range(name, value, low=low, whole=True)
        self.draws, self.share, self.again, self.steps, self.states = draws, share, again, steps, states

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world, goal_b, seed = subject.world, subject.goal_b, subject.seed
        if not isinstance(world, FiniteWorld) or not isinstance(goal_b, StateGoal):
            return self.all_not_applicable("it takes a finite world and a goal B: what B asks for is exact there alone")
        if world.model.n_states > self.states:
            return self.all_not_applicable(
                f"the world has {world.model.n_states} states, more than the {self.states} that are measured"
            )
        try:
            lesson = Lesson.of(world, goal_b, gamma=subject.gamma)
            tell(0.1, "training the agent")
            own = self._once(subject.agent, lesson, seed, "agent")
            blank_agent = subject.agent.blank(seed)
            blank = self._once(blank_agent, lesson, seed, "blank")
            wrong = self._once(subject.agent, lesson.shuffled(seed), seed, "shuffled", level=own.level)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        runs = {ONCE: (own, blank)}
        if self.again and own.bent is not None and blank.bent is not None:
            tell(0.4, "training it step by step")
            first = self._again(own.bent, own, seed, "agent")
            tell(0.7, "training its blank step by step")
            runs[AGAIN] = (first, self._again(blank.bent, blank, seed, "blank"))
        return Outcome(tuple(_rows(runs, wrong)))

    def _once(self, agent: Agent, lesson: Lesson, seed: int, what: str, *, level: float | None = None) -> Run:
        scores = finite_scores(agent, lesson.yardstick.model, lesson.states)
        straight = Straight.of(scores, lesson)
        bent = Bent(agent, lesson, scores, self.steps) if scores.relaxation == "none" else None
        numbers = int(scores.jacobian.any(axis=(0, 1)).sum())
        solution, uniform = straight.solution, lesson.yardstick.uniform_competence
        enough = self.share * solution if level is None else level
        reason = _hopeless(solution, uniform, numbers) if level is None else ""
        rngs = [stream(seed, "intrinsic_dimension", what, i) for i in range(self.draws)]
        needed = () if reason else tuple(straight.needed(enough, rng) for rng in rngs)
        return Run(solution, enough, numbers, needed, reason, bent)

    def _again(self, bent: Bent, once: Run, seed: int, what: str) -> Run:
        if bent.start.jacobian.size > MOST_AGAIN:
            reason = f"a Jacobian of {bent.start.jacobian.size} entries is not made again: {MOST_AGAIN} at most"
            return Run(None, 0.0, once.numbers, (), reason, bent)
        try:
            solution = bent.trained(None, enough=1.0)
            reason = _hopeless(solution, bent.lesson.yardstick.uniform_competence, once.numbers)
            known = [d for d in once.needed if d is not None]
            begin = round(sum(known) / len(known)) if known else bent.lesson.unit.size
            rngs = [stream(seed, "intrinsic_dimension_again", what, i) for i in range(self.again)]
            level = self.share * solution
            needed = () if reason else tuple(bent.needed(level, begin=begin, rng=rng) for rng in rngs)
        except AgentError as error:
            return Run(None, 0.0, once.numbers, (), str(error), bent)
        return Run(solution, level, once.numbers, needed, reason, bent)


@dataclass(frozen=True, eq=False)
class Run:
    """What training found from one place.

    Attributes:
        solution: competence on B after training all numbers; None where that was not tried.
        level: competence that was sought.
        numbers: live numbers.
        needed: directions that each draw needed; None where it never sufficed.
        reason: why nothing was sought, or empty.
        bent: for training a network step by step.
    """

    solution: float | None
    level: float
    numbers: int
    needed: tuple[int | None, ...]
    reason: str
    bent: Bent | None

    def directions(self, metric: str, protocol: str, *, over: int = 1) -> Measurement:
        """Mean number of directions over draws, divided by `over`."""
        if self.solution is None:
            return Measurement.not_applicable(metric, self.reason, protocol=protocol)
        if self.reason:
            return Measurement.failed(metric, self.reason, protocol=protocol)
        found = [d / over for d in self.needed if d is not None]
        if len(found) < len(self.needed):
            missed = len(self.needed) - len(found)
            reason = f"{missed} of {len(self.needed)} draws reach {self.level:.4g} with no number of directions"
            return Measurement.failed(metric, reason, protocol=protocol)
        n, mean = len(found), math.fsum(found) / len(found)
        if n == 1:
            return Measurement.ok(metric, mean, n=1, protocol=protocol)
        deviation = math.sqrt(math.fsum((d - mean) ** 2 for d in found) / (n - 1))
        half = student_quantile(0.975, n - 1) * deviation / math.sqrt(n)
        most = 1.0 if over > 1 else math.inf
        return Measurement.ok(
            metric, mean, ci_low=max(mean - half, 0.0), ci_high=min(mean + half, most), n=n, protocol=protocol
        )

    def competence(self, metric: str, protocol: str) -> Measurement:
        """Competence after training all numbers."""
        if self.solution is None:
            return Measurement.not_applicable(metric, self.reason, protocol=protocol)
        return Measurement.ok(metric, self.solution, protocol=protocol)


def _hopeless(solution: float, uniform: float, numbers: int) -> str:
    if solution > uniform + 1e-9:
        return ""
    return (
        f"training all of its {numbers} live numbers gives competence {solution:.4g} on B, not above a uniform "
        f"policy's ({uniform:.4g})"
    )


def _rows(runs: Mapping[str, tuple[Run, Run]], wrong: Run) -> list[Measurement]:
    own = {protocol: pair[0] for protocol, pair in runs.items()}
    blank = {protocol: pair[1] for protocol, pair in runs.items()}
    numbers = own[ONCE].numbers
    unsought = own[ONCE].reason
    shuffled = "intrinsic_dimension_shuffled"
    return [
        *(run.directions("intrinsic_dimension", p) for p, run in own.items()),
        *(run.directions("intrinsic_dimension_blank", p) for p, run in blank.items()),
        *(run.directions("intrinsic_share", p, over=max(numbers, 1)) for p, run in own.items()),
        Measurement.not_applicable(shuffled, "there is no level to reach: " + unsought, protocol=ONCE)
        if unsought
        else wrong.directions(shuffled, ONCE),
        Measurement.ok("live_numbers", numbers),
        *(run.competence("solution_competence", p) for p, run in own.items()),
        *(run.competence("solution_competence_blank", p) for p, run in blank.items()),
    ]
