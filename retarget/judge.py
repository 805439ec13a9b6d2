"""One verb for both kinds of worlds: `judge_of(world, goal, ...).score(agent)`, exact where it can be."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from retarget.agent import Agent
from retarget.errors import WorldError
from retarget.exact import Yardstick
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.trials import DEFAULT_STARTS, Score, Trials
from retarget.world import BoxWorld, FiniteWorld, World


class Judge(Protocol):
    """Scores agents on one goal."""

    @property
    def gamma(self) -> float: ...

    @property
    def uniform_competence(self) -> float: ...

    def score(self, agent: Agent) -> Score: ...


def judge_of(
    world: World, goal: Goal, *, gamma: float, seed: int = 0, n: int = DEFAULT_STARTS, purpose: str = "search"
) -> Yardstick | Trials:
    """The judge of a goal: exact in a finite world, by episodes from `n` starts elsewhere.

    Raises:
        GoalError: when no start can reach the goal.
        WorldError: when world and goal are of different kinds.
    """
    if isinstance(world, FiniteWorld) and isinstance(goal, StateGoal):
        return Yardstick.of(world, goal, gamma=gamma)
    if isinstance(world, BoxWorld) and isinstance(goal, RegionGoal):
        return Trials.of(world, goal, gamma=gamma, n=n, seed=seed, purpose=purpose)
    raise WorldError(
        f"goal {getattr(goal, 'label', goal)!r} is a {type(goal).__name__}, which {world.spec_data.label} cannot have; "
        "make it with world.as_goal(...)"
    )


def greedy(scores: np.ndarray) -> np.ndarray:
    """One-hot probabilities `[B, A]` of the first best of float `[B, A]` scores."""
    out = np.zeros(scores.shape, dtype=np.float64)
    out[np.arange(len(scores)), scores.argmax(1)] = 1.0
    return out
