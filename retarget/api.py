"""The library in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError, ProbeError, WorldError
from retarget.goal import Goal
from retarget.judge import judge_of
from retarget.probe import Subject
from retarget.study.single import DEFAULT_PROBES, draw_other_goals, measure_agent
from retarget.study.spec import ProbeSpec
from retarget.world import BoxWorld, FiniteWorld, World

if TYPE_CHECKING:
    import polars as pl


def measure(
    agent: Agent,
    world: World,
    goals: Iterable[object] | int = 12,
    *,
    goal: object = None,
    probes: Sequence[str] | None = None,
    gamma: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    budget: int | None = None,
    name: str | None = None,
) -> pl.DataFrame:
    """Measure how cheaply an agent's goal can be changed, and how robustly it reaches the one it has.

    Args:
        agent: what to measure.
        world: a finite world, or one with continuous states (`retarget.make_world`, `retarget.world_from_gym`).
        goals: goals B to give it, in any form that `world.as_goal` takes; or how many to draw.
        goal: the goal A that it has; by default the world's.
        probes: names of probes; by default robustness and retargetability.
        gamma: discount of competence, in (0, 1); without one 0.95 in finite worlds, elsewhere the world's own.
        level: required competence on B, as a share of the agent's own on A.
        seed: names every random stream.
        budget: most candidates and gradient steps of one editor; the probe's own without.
        name: what the rows call the agent; by default its kind.

    Returns:
        one row a metric and goal, with the columns of `docs/columns.md`.

    Raises:
        RetargetError: when agent, world and goals do not fit.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> frame = retarget.measure(exact_planner(world, world.goal), world, goals=[(1, 1), (1, 7)])
    >>> frame.filter(metric="retargetability")["value"].min() > 0
    True
    """
    from retarget.row import frame

    if not isinstance(world, (FiniteWorld, BoxWorld)):
        raise WorldError(f"expected a world, got {type(world).__name__}; make one with retarget.make_world")
    if not isinstance(agent, Agent):
        raise AgentError(f"expected an agent, got {type(agent).__name__}; see retarget.agents")
    discount = gamma if gamma is not None else world.gamma if isinstance(world, BoxWorld) else 0.95
    own = world.goal if goal is None else world.as_goal(goal)
    Subject(agent, world, own, gamma=discount, level=level, seed=seed)  # what does not fit says so now
    judge_of(world, own, gamma=discount).score(agent)
    if isinstance(goals, (int, np.integer)) and not isinstance(goals, bool):
        others = draw_other_goals(world, own, n=int(goals), seed=seed)
    else:
        others = _named(world, goals)
    wanted = [probes] if isinstance(probes, str) else probes
    specs = DEFAULT_PROBES if wanted is None else tuple(ProbeSpec(p) for p in wanted)
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise ProbeError(f"budget must be a whole number of at least 1, got {budget!r}")
        bounded = ProbeSpec.of("retargetability", budget=budget)
        specs = tuple(bounded if s.id == "retargetability" and not s.options else s for s in specs)
    if not specs:
        raise ProbeError("probes is empty; name at least one, or leave it out for robustness and retargetability")
    rows, _ = measure_agent(
        agent, world, goal=own, others=others, label=name or agent.kind, agent_id=agent.kind, probes=specs,
        gamma=discount, level=level, seed=seed,
    )  # fmt: skip
    return frame(rows)


def _named(world: World, goals: object) -> tuple[Goal, ...]:
    if (
        isinstance(world, FiniteWorld)
        and isinstance(goals, tuple)
        and len(goals) == 2
        and all(isinstance(g, int) for g in goals)
    ):
        raise GoalError(
            f"goals={goals!r} could be one cell or two states; write goals=[{goals!r}] or goals={list(goals)!r}"
        )
    if not isinstance(goals, Iterable) or isinstance(goals, str):
        raise GoalError(f"goals must be a number or a list of goals, got {goals!r}; e.g. goals=[(1, 1)]")
    named = tuple(dict.fromkeys(world.as_goal(g) for g in goals))
    if not named:
        raise GoalError("goals is empty; name at least one goal, or pass a number to draw them")
    return named
