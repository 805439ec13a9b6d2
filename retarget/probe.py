"""What a probe is: a pure function from a subject to measurements, with declared metrics and laws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError, ProbeError
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.row import FrontierPoint, Measurement
from retarget.world import FiniteWorld, World

Law = Literal["deterministic", "pure", "bounded", "relabel_invariant", "behaviour_only", "dead_parameters"]
#: Laws that every probe must obey; the others are declared by the probes that obey them.
UNIVERSAL_LAWS: frozenset[Law] = frozenset({"deterministic", "pure", "bounded"})


@dataclass(frozen=True)
class Metric:
    """A metric's unit and range (None where it has no bound), and one line that says what it is."""

    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """What a probe measures: an agent in a world, its goal A, and a goal B to give it.

    Attributes:
        agent: the agent, already trained.
        world: a finite world, or one with continuous states.
        goal_a: the goal that the agent has.
        goal_b: the goal to give it, or None for probes that use one goal only.
        gamma: discount of competence, in (0, 1).
        level: required competence on B, as a share of the agent's own on A, in (0, 1].
        seed: names the random streams.
    """

    agent: Agent
    world: World
    goal_a: Goal
    goal_b: Goal | None = None
    gamma: float = 0.95
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("gamma", "level"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), (int, float)):
                raise ProbeError(f"{name} must be a number, got {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ProbeError(f"seed must be an integer, got {self.seed!r}; pass e.g. seed=0")
        if not 0 < self.gamma < 1:
            raise ProbeError(f"gamma must lie strictly between 0 and 1, got {self.gamma!r}")
        if not 0 < self.level <= 1:
            raise ProbeError(f"level must lie in (0, 1], got {self.level!r}")
        for goal in (self.goal_a, self.goal_b):
            if goal is not None:
                _check_goal(self.world, goal)
        if self.goal_b is not None and self.goal_a == self.goal_b:
            raise GoalError(f"goals A and B are the same ({self.goal_a.label}); choose another B")
        if not isinstance(self.agent, Agent):
            raise AgentError(
                f"expected a retarget agent, got {type(self.agent).__name__}; wrap it with retarget.agents"
            )

    def with_(self, **changes: object) -> Subject:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _check_goal(world: World, goal: Goal) -> None:
    if isinstance(world, FiniteWorld) and isinstance(goal, StateGoal):
        n_states = world.model.n_states
        if goal.states[-1] >= n_states:
            raise GoalError(f"goal state {goal.states[-1]} is outside the world, which has states 0 to {n_states - 1}")
    elif isinstance(world, FiniteWorld) or not isinstance(goal, RegionGoal):
        raise GoalError(
            f"goal {goal.label} is a {type(goal).__name__}, which {world.spec_data.label} cannot have; "
            "make it with world.as_goal(...)"
        )


@dataclass(frozen=True)
class Outcome:
    """What a probe returns: measurements in the order of its metrics, and the edits it found on the way."""

    measurements: tuple[Measurement, ...]
    frontier: tuple[FrontierPoint, ...] = ()

    def __getitem__(self, metric: str) -> Measurement:
        for m in self.measurements:
            if m.metric == metric:
                return m
        raise KeyError(f"no metric {metric!r}; there are {', '.join(m.metric for m in self.measurements)}")


#: Called with the fraction done (0 to 1) and a few words, by probes that take long.
Progress = Callable[[float, str], None]


class Probe(ABC):
    """A measurement. Subclass, declare `name`, `metrics`, `laws`, and give `measure`.

    `retarget.testing.check_probe` holds any probe to the laws it declares, and to the universal ones.
    """

    name: ClassVar[str]
    metrics: ClassVar[Mapping[str, Metric]]
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS
    needs_goal_b: ClassVar[bool] = False

    @abstractmethod
    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        """Measure a subject. Never raises for a subject that cannot be measured: that is `not_applicable`."""

    def all_not_applicable(self, reason: str) -> Outcome:
        """Every metric as `not_applicable` with one reason."""
        return Outcome(tuple(Measurement.not_applicable(m, reason) for m in self.metrics))
