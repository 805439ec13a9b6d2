"""Goal-directedness: how well pursuit of a goal predicts the behaviour. Another's measure, beside our own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.goal_directedness import Directedness, Episodes, directedness_at_states, goal_directedness
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.options import check_range
from retarget.row import Kind, Measurement
from retarget.world import FiniteWorld

#: Differences in nats below which two goals explain a policy equally well.
_TIE = 1e-9


class GoalDirectedness(Probe):
    """Maximum-entropy goal-directedness (MacDermott, Fox, Belardinelli, Everitt 2024), in nats: see
    `retarget.goal_directedness` for the formulas. Episodes begin in every start that can reach goal A, are discounted
    as competence is, and end on goal A. A property of behaviour alone: an agent and its compiled table get the same.

    Args:
        steps: most Newton steps toward the best utility of states.
        most_states: in larger worlds only the agent's own goal is tried: the others take too long.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> goal = world.goals[0]
    >>> subject = retarget.Subject(exact_planner(world, goal), world, goal)
    >>> outcome = GoalDirectedness().measure(subject)
    >>> outcome["meg_known"].value == outcome["meg_goals"].value > outcome["meg_shuffled"].value
    True
    """

    name: ClassVar[str] = "goal_directedness"
    kind: ClassVar[Kind] = "characterization"
    metrics: ClassVar = {
        "meg_known": Metric("nat", "MEG toward goal A: what pursuit of it predicts, above chance", 0.0, None),
        "meg_known_per_decision": Metric("nat", "the same by discounted decision; at most log |A|", 0.0, None),
        "meg_decisions": Metric("1", "expected discounted number of decisions until goal A", 0.0, None, "observation"),
        "meg_beta": Metric("1", "rationality that explains it best, utility 1 on reaching A", None, None),
        "meg_sign": Metric("1", "1: toward A; -1: away from A; 0: neither, as a uniform policy", -1.0, 1.0),
        "meg_goals": Metric("nat", "the most over the world's goals, each reached or avoided", 0.0, None),
        "meg_goals_margin": Metric("nat", "meg_goals - meg_known: 0 where A explains best", 0.0, None),
        "meg_unknown": Metric("nat", "the most over all rewards of states, lower bound", 0.0, None),
        "meg_unknown_bound": Metric("nat", "upper bound on the same", 0.0, None),
        "meg_uniform": Metric("nat", "control: meg_known of a uniform policy", 0.0, None),
        "meg_shuffled": Metric("nat", "control: mean over the world's other goals in place of A", 0.0, None),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant", "behaviour_only", "dead_parameters"}

    def __init__(self, *, steps: int = 100, most_states: int = 400) -> None:
        check_range("steps", steps, low=1, whole=True)
        check_range("most_states", most_states, low=1, whole=True)
        self.steps, self.most_states = steps, most_states

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world, goal = subject.world, subject.goal_a
        if not (isinstance(world, FiniteWorld) and isinstance(goal, StateGoal)):
            return self.all_not_applicable("states are a continuum: soft values have no exact solution there")
        if world.model.n_states > 4 * self.most_states:
            return self.all_not_applicable(f"{world.model.n_states} states: more than can be solved; raise most_states")
        try:
            question = _Question.of(subject, world, goal)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        tell(0.1, "goal A")
        own = question.toward(goal)
        out = _known(own) + self._others(question, own, tell) + [question.control()]
        found = {m.metric: m for m in out}
        return Outcome(tuple(found[name] for name in self.metrics))

    def _others(self, question: _Question, own: Directedness, tell: Progress) -> list[Measurement]:
        names = ("meg_goals", "meg_goals_margin", "meg_shuffled", "meg_unknown", "meg_unknown_bound")
        n_states = question.episodes.model.n_states
        if n_states > self.most_states:
            reason = f"{n_states} states: other utilities are tried up to {self.most_states}; raise most_states"
            return [Measurement.not_applicable(name, reason) for name in names]
        others = sorted(question.toward(g).nats for g in question.others)
        tell(0.6, "every utility of states")
        some = directedness_at_states(question.episodes, question.probs, steps=self.steps)
        most = max([own.nats, *others])
        how = f"{len(others) + 1} goals, each ends the episode"
        shuffled = (
            Measurement.ok("meg_shuffled", float(np.mean(others)))
            if others
            else Measurement.not_applicable("meg_shuffled", "the world has no other goal")
        )
        climbed = "Newton, settled" if some.settled else f"Newton, stopped after {self.steps} steps"
        return [
            Measurement.ok("meg_goals", most, protocol=how),
            Measurement.ok("meg_goals_margin", 0.0 if most - own.nats <= _TIE else most - own.nats),
            shuffled,
            # arriving at goal A is one of those rewards, and its supremum is exact
            Measurement.ok("meg_unknown", max(own.nats, some.nats), protocol=climbed),
            Measurement.ok("meg_unknown_bound", max(own.nats, some.bound)),
        ]


def _known(own: Directedness) -> list[Measurement]:
    side = "best" if own.beta > 0 else "worst"
    beta = (
        Measurement.ok("meg_beta", own.beta)
        if math.isfinite(own.beta)
        else Measurement.not_applicable("meg_beta", f"infinite: all decisions are among the {side} for goal A")
    )
    return [
        Measurement.ok("meg_known", own.nats),
        Measurement.ok("meg_known_per_decision", own.per_decision),
        Measurement.ok("meg_decisions", own.decisions),
        beta,
        Measurement.ok("meg_sign", float(np.sign(own.beta))),
    ]


@dataclass(frozen=True, eq=False)
class _Question:
    """A policy `[S, A]` in its episodes, and the other goals that may explain it."""

    episodes: Episodes
    probs: np.ndarray
    goal: StateGoal
    others: tuple[StateGoal, ...]

    @classmethod
    def of(cls, subject: Subject, world: FiniteWorld, goal: StateGoal) -> _Question:
        model = world.model
        starts = Yardstick.of(world, goal, gamma=subject.gamma).starts
        start = np.zeros(model.n_states)
        start[starts] = 1.0 / len(starts)
        episodes = Episodes(model, goal.mask(model.n_states), start, subject.gamma)
        return cls(episodes, policy_table(subject.agent, model), goal, tuple(g for g in world.goals if g != goal))

    def toward(self, goal: StateGoal, probs: np.ndarray | None = None) -> Directedness:
        mask = goal.mask(self.episodes.model.n_states)
        asked = self.probs if probs is None else probs
        return goal_directedness(self.episodes.ending_at(mask), asked, mask.astype(np.float64))

    def control(self) -> Measurement:
        uniform = np.full_like(self.probs, 1.0 / self.probs.shape[1])
        return Measurement.ok("meg_uniform", self.toward(self.goal, uniform).nats)


__all__ = ["GoalDirectedness"]
