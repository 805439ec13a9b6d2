"""Measures of behaviour alone, to set beside retargetability: they cannot tell a planner from its compiled table."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from retarget.errors import AgentError, GoalError
from retarget.exact import Yardstick, best_actions, policy_table
from retarget.goal import StateGoal
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.row import Kind, Measurement
from retarget.world import FiniteWorld


class Behaviour(Probe):
    """What can be said of the way to goal B from the behaviour alone. Exact."""

    name: ClassVar[str] = "behaviour"
    kind: ClassVar[Kind] = "observation"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = {
        "policy_entropy": Metric("bit", "mean entropy of the action distribution over the starts", 0.0, None),
        "agreement_a": Metric(
            "1", "mean probability, over the starts, of an action that is optimal for A", 0.0, 1.0, "evaluation"
        ),
        "agreement_b": Metric(
            "1", "mean probability, over the starts, of an action that is optimal for B", 0.0, 1.0, "evaluation"
        ),
        "states_to_change": Metric(
            "states", "states (from which B can be reached) where some action taken is not optimal for B", 0.0, None
        ),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant", "behaviour_only", "dead_parameters"}

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        world, goal_a, goal_b = subject.world, subject.goal_a, subject.goal_b
        if goal_b is None:
            return self.all_not_applicable("no goal B was given")
        if not isinstance(world, FiniteWorld) or not (isinstance(goal_a, StateGoal) and isinstance(goal_b, StateGoal)):
            return self.all_not_applicable("states cannot be listed here: the world is not finite")
        try:
            judge = Yardstick.of(world, goal_b, gamma=subject.gamma)
            starts_a = Yardstick.of(world, goal_a, gamma=subject.gamma).starts
            probs = policy_table(subject.agent, world.model)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        model = world.model
        best = best_actions(model, goal_b, gamma=subject.gamma)
        best_a = best_actions(model, goal_a, gamma=subject.gamma)
        logs = np.log2(np.where(probs > 0, probs, 1.0))
        entropy = -(probs * logs).sum(1)[judge.starts]
        agreement = (probs * best).sum(1)[judge.starts]
        agreement_a = (probs * best_a).sum(1)[starts_a]
        counted = judge.optimal > 0
        counted[list(goal_b.states)] = False
        wrong = (((probs > 0) & ~best).any(1) & counted).sum()
        return Outcome(
            (
                Measurement.ok("policy_entropy", max(float(np.sort(entropy).mean()), 0.0)),
                Measurement.ok("agreement_a", float(min(np.sort(agreement_a).mean(), 1.0))),
                Measurement.ok("agreement_b", float(min(np.sort(agreement).mean(), 1.0))),
                Measurement.ok("states_to_change", float(wrong)),
            )
        )
