"""Whether a network in training is good enough already, where that is known exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retarget.agents.neural import NetworkAgent
from retarget.judge import judge_of
from retarget.training.base import Question, TrainingError
from retarget.world import FiniteWorld


class Solved:
    """Judges the greedy policy on the training goals, in a finite world.

    Args:
        question: of the training.
        enough: mean competence at which to stop; above 1, never.

    Raises:
        TrainingError: when it is asked for in a world with continuous states.
    """

    def __init__(self, question: Question, enough: float) -> None:
        self.enough, self.goals, self.judges = enough, question.goals, []
        if enough > 1:
            return
        if not isinstance(question.world, FiniteWorld):
            raise TrainingError(f"enough={enough} needs a finite world, where competence is known; leave it out here")
        self.judges = [judge_of(question.world, g, gamma=question.gamma) for g in question.goals]

    def __call__(self, agent: Callable[[], NetworkAgent]) -> bool:
        """Whether that competence is reached."""
        if not self.judges:
            return False
        now = replace(agent(), decision="greedy")
        total = 0.0
        for goal, judge in zip(self.goals, self.judges, strict=True):
            total += judge.score(now if now.goal_input is None else now.aimed(goal)).competence
        return total / len(self.judges) >= self.enough
