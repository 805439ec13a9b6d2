"""The entries of the catalogue: kinds of agents, what names one, and how one is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from retarget.agent import Agent
from retarget.errors import StudyError, nearest, unknown
from retarget.goal import Goal, StateGoal
from retarget.pairs import GoalPlan
from retarget.world import FiniteWorld, World


@dataclass(frozen=True)
class Option:
    """An option of an agent.

    Attributes:
        default: what holds where nothing is said; its type is the option's.
        meaning: one line, with the unit.
        low, high: least and greatest value, or None.
        choices: the only values allowed, or empty.
    """

    default: object
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, agent: str, name: str, value: object) -> None:
        """Raise StudyError unless the value is of the default's type, and in range."""
        if isinstance(value, bool) != isinstance(self.default, bool) or not isinstance(value, _like(self.default)):
            raise StudyError(f"option {name!r} of agent {agent!r} takes a value like {self.default!r}, got {value!r}")
        if self.choices and value not in self.choices:
            known = " or ".join(map(repr, self.choices)) if len(self.choices) < 3 else ", ".join(self.choices)
            one_of = "" if len(self.choices) < 3 else "one of "
            raise StudyError(
                f"{name} of agent {agent!r} must be {one_of}{known}, got {value!r}{nearest(value, self.choices)}"
            )
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise StudyError(f"{name} of agent {agent!r} must be a finite number, got {value}")
            if self.low is not None and not value >= self.low:
                raise StudyError(f"{name} of agent {agent!r} must be at least {self.low:g}, got {value}")
            if self.high is not None and not value <= self.high:
                raise StudyError(f"{name} of agent {agent!r} must be at most {self.high:g}, got {value}")


@dataclass(frozen=True)
class Recipe:
    """What a builder is given beside its own options."""

    world: World
    goal: Goal
    seed: int
    gamma: float
    plan: GoalPlan | None = None

    def finite(self) -> tuple[FiniteWorld, StateGoal]:
        """World and goal, where the world is finite.

        Raises:
            NotApplicableHere: where it is not.
        """
        if isinstance(self.world, FiniteWorld) and isinstance(self.goal, StateGoal):
            return self.world, self.goal
        raise NotApplicableHere(
            f"{self.world.spec_data.label} has continuous states, which this kind of agent cannot list"
        )


class NotApplicableHere(Exception):  # noqa: N818 - an answer, not an error
    """An agent of this kind cannot exist in this world; the message says why. Becomes a `not_applicable` row."""


@dataclass(frozen=True)
class AgentEntry:
    """A kind of agent: its id, one line about it, its options, and how to build it.

    Attributes:
        heard: options that matter only under some values of another one: option to (the other, those values).
        clashes: pairs of values that exclude each other: ((option, value), (option, value)).
    """

    id: str
    summary: str
    options: Mapping[str, Option]
    build: Callable[..., Agent]
    heard: Mapping[str, tuple[str, tuple[object, ...]]] = field(default_factory=dict)
    clashes: tuple[tuple[tuple[str, object], tuple[str, object]], ...] = ()

    def complete(self, options: Iterable[tuple[str, object]]) -> dict[str, object]:
        """The options given, with the defaults of the others."""
        return {name: option.default for name, option in self.options.items()} | dict(options)


@dataclass(frozen=True)
class AgentSpec:
    """What rebuilds an agent: its kind and options; with `compiled`, the table of its behaviour instead.

    >>> AgentSpec.of("depth_planner", depth=4, compiled=True).label
    'depth_planner(depth=4), compiled'
    """

    id: str
    options: tuple[tuple[str, object], ...] = ()
    compiled: bool = False
    name: str = ""

    @classmethod
    def of(cls, id: str, *, compiled: bool = False, name: str = "", **options: object) -> AgentSpec:
        return cls(id, tuple(sorted(options.items())), compiled, name)

    @property
    def label(self) -> str:
        """What a reader sees: the name given, or the kind with its options."""
        if self.name:
            return self.name
        inside = ", ".join(f"{k}={v}" for k, v in self.options)
        return (f"{self.id}({inside})" if inside else self.id) + (", compiled" if self.compiled else "")

    def as_dict(self) -> dict[str, object]:
        return {"id": self.id, "compiled": self.compiled, **dict(self.options)}


def catalogue() -> Mapping[str, AgentEntry]:
    """Every kind of agent, by id."""
    from retarget.catalogue import builders

    return builders.ENTRIES


def check_spec(spec: AgentSpec) -> None:
    """Raise StudyError unless the kind and its options exist, and every value is in range."""
    entries = catalogue()
    if spec.id not in entries:
        raise StudyError(unknown("agent", spec.id, entries))
    for name, value in spec.options:
        if name not in entries[spec.id].options:
            raise StudyError(unknown(f"option of agent {spec.id!r}", name, entries[spec.id].options))
        entries[spec.id].options[name].check(spec.id, name, value)


def check_together(spec: AgentSpec) -> None:
    """Raise StudyError where options that are sound one by one exclude each other.

    >>> check_together(AgentSpec.of("tree_search", method="gumbel", backup="max"))
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: method='gumbel' and backup='max' of agent 'tree_search' exclude each other; drop one
    """
    entry = catalogue()[spec.id]
    given = entry.complete(spec.options)
    for (a, x), (b, y) in entry.clashes:
        if given[a] == x and given[b] == y:
            raise StudyError(f"{a}={x!r} and {b}={y!r} of agent {spec.id!r} exclude each other; drop one")


def check_heard(specs: Iterable[AgentSpec]) -> None:
    """Raise StudyError for an option that none of the agents listens to (agents of one kind and the same options).

    >>> check_heard([AgentSpec.of("tree_search", rollout_steps=8)])
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: rollout_steps of agent 'tree_search' matters with leaf='rollouts' only, and leaf is \
'none'; set that or drop rollout_steps
    >>> check_heard([AgentSpec.of("tree_search", leaf=leaf, rollout_steps=8) for leaf in ("none", "rollouts")])
    """
    several = list(specs)
    entry = catalogue()[several[0].id]
    for name in dict(several[0].options):
        other, values = entry.heard.get(name, ("", ()))
        found = [entry.complete(spec.options)[other] for spec in several] if other else []
        if found and not any(value in values for value in found):
            wanted = " or ".join(f"{other}={value!r}" for value in values)
            raise StudyError(
                f"{name} of agent {entry.id!r} matters with {wanted} only, and {other} is {found[0]!r}; "
                f"set that or drop {name}"
            )


def _like(default: object) -> tuple[type, ...]:
    return (int, float) if isinstance(default, float) else (type(default),)


def build_agent(spec: AgentSpec, recipe: Recipe) -> Agent:
    """Build (and train, where that is part of it) the agent of a spec.

    Raises:
        StudyError: for an unknown kind or option.
        NotApplicableHere: when such an agent cannot exist in this world.
    """
    from retarget.agents.compiled import compile_policy

    check_spec(spec)
    check_together(spec)
    entry = catalogue()[spec.id]
    agent = entry.build(recipe, **entry.complete(spec.options))
    return compile_policy(agent, recipe.finite()[0]) if spec.compiled else agent
