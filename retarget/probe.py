"""What a probe is: a pure function from a subject to measurements, with declared metrics and laws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError, ProbeError
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.row import FrontierPoint, Kind, Measurement
from retarget.world import FiniteWorld, World

if TYPE_CHECKING:
    from retarget.pairs import GoalPlan

Law = Literal["deterministic", "pure", "bounded", "relabel_invariant", "behaviour_only", "dead_parameters"]
#: Laws that every probe must obey; the others are declared by the probes that obey them.
UNIVERSAL_LAWS: frozenset[Law] = frozenset({"deterministic", "pure", "bounded"})


@dataclass(frozen=True)
class Metric:
    """A metric's unit and range (None where it has no bound), and one line that says what it is.

    `kind` is what a row of it claims (see `retarget.row.Kind`); None for the probe's own kind.
    """

    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    kind: Kind | None = None


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
        plan: training and held-out goals of the study, for probes over many goals; None lets them draw their own.
    """

    agent: Agent
    world: World
    goal_a: Goal
    goal_b: Goal | None = None
    gamma: float = 0.95
    level: float = 0.95
    seed: int = 0
    plan: GoalPlan | None = None

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
    """What a probe returns: measurements in the order of its metrics, and the edits it found on the way.

    A metric that is measured under several protocols or doses has one measurement for each, next to each other.
    """

    measurements: tuple[Measurement, ...]
    frontier: tuple[FrontierPoint, ...] = ()

    def __getitem__(self, metric: str) -> Measurement:
        for m in self.measurements:
            if m.metric == metric:
                return m
        raise KeyError(f"no metric {metric!r}; there are {', '.join(self.metrics)}")

    def at(self, metric: str, *, protocol: str | None = None, dose: float | None = None) -> Measurement:
        """The measurement of a metric under one protocol and at one dose; None stands for any."""
        for m in self.measurements:
            if m.metric == metric and protocol in (None, m.protocol) and dose in (None, m.dose):
                return m
        raise KeyError(f"no {metric!r} under protocol {protocol!r} at dose {dose!r}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, each once, in order."""
        return tuple(dict.fromkeys(m.metric for m in self.measurements))

    def check(self, probe: Probe) -> None:
        """Raise ProbeError unless every metric that the probe declares is there, in order, and no row stands twice."""
        found = [m.metric for m in self.measurements]
        if [m for i, m in enumerate(found) if i == 0 or found[i - 1] != m] != list(probe.metrics):
            raise ProbeError(f"probe {probe.name!r} declares the metrics {list(probe.metrics)}, but returned {found}")
        rows = [(m.metric, m.protocol, m.dose) for m in self.measurements]
        twice = next((r for r in rows if rows.count(r) > 1), None)
        if twice is not None:
            raise ProbeError(f"probe {probe.name!r} returned {twice[0]} twice under one protocol and dose: {twice[1:]}")


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
    kind: ClassVar[Kind] = "observation"

    @abstractmethod
    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        """Measure a subject. Never raises for a subject that cannot be measured: that is `not_applicable`."""

    def kind_of(self, metric: str) -> Kind:
        """What kind of claim a row of one metric is."""
        return self.metrics[metric].kind or self.kind

    def all_not_applicable(self, reason: str) -> Outcome:
        """Every metric as `not_applicable` with one reason."""
        return Outcome(tuple(Measurement.not_applicable(m, reason) for m in self.metrics))
