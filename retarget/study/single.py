"""One agent that somebody brings, measured on pairs of goals: what `retarget measure` does with a table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from retarget import __version__
from retarget.digest import canonical_json
from retarget.errors import GoalError
from retarget.goal import Goal
from retarget.probe import Probe, Subject
from retarget.rng import stream
from retarget.row import SCHEMA_VERSION
from retarget.study.cells import Row, goal_key, goal_seen, rows_of
from retarget.study.spec import ProbeSpec, make_probe
from retarget.world import FiniteWorld, World

if TYPE_CHECKING:
    from retarget.agent import Agent

DEFAULT_PROBES = (ProbeSpec("robustness"), ProbeSpec("retargetability"))


def draw_other_goals(world: World, goal: Goal, *, n: int, seed: int = 0) -> tuple[Goal, ...]:
    """At most `n` goals of the world other than `goal`, drawn from the named stream (seed, "other goals", the world).

    Raises:
        GoalError: when n is below 1, or the world has no other goal.
    """
    if n < 1:
        raise GoalError(f"{n} pairs of goals were asked for; ask for at least 1")
    others = [g for g in world.goals if g != goal]
    if not others:
        raise GoalError(f"world {world.spec_data.label} has no goal beside {goal.label}; choose a larger world")
    order = stream(seed, "other goals", world.spec_data.label).permutation(len(others))
    return tuple(others[int(i)] for i in order[:n])


def measure_agent(
    agent: Agent,
    world: World,
    *,
    goal: Goal,
    others: Sequence[Goal],
    label: str,
    agent_id: str = "file",
    probes: Sequence[ProbeSpec] = DEFAULT_PROBES,
    gamma: float = 0.95,
    level: float = 0.95,
    seed: int = 0,
    study: str = "measure",
    on_step: Callable[[int, int, str], None] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Rows of results and of frontiers for one agent, its goal, and others to give it.

    Args:
        agent: what to measure.
        world: where.
        goal: the goal A that it has.
        others: goals B; probes that use A alone are run once.
        label, agent_id, study: what the rows call the agent, its kind and the study.
        probes: what to measure.
        gamma, level, seed: see `retarget.probe.Subject`.
        on_step: told the steps done, the steps in all, and what comes next.
    """
    steps: list[tuple[Probe, ProbeSpec, Goal | None]] = []
    for spec in probes:
        probe = make_probe(spec)
        wanted: Sequence[Goal | None] = others if type(probe).needs_goal_b else (None,)
        steps += [(probe, spec, b) for b in wanted]
    results: list[Row] = []
    frontiers: list[Row] = []
    for number, (probe, spec, other) in enumerate(steps):
        if on_step is not None:
            on_step(number, len(steps), f"{spec.id}, {goal.label} to {other.label}" if other else spec.id)
        identity = _identity(agent, world, goal, other, spec, gamma, level, seed)
        identity |= {"study": study, "agent_id": agent_id, "agent": label}
        outcome = probe.measure(Subject(agent, world, goal, other, gamma=gamma, level=level, seed=seed))
        rows, frontier = rows_of(identity, probe, outcome, agent)
        results += rows
        frontiers += frontier
    return results, frontiers


def _identity(
    agent: Agent,
    world: World,
    goal: Goal,
    other: Goal | None,
    probe: ProbeSpec,
    gamma: float,
    level: float,
    seed: int,
) -> Row:
    content = {
        "schema": SCHEMA_VERSION,
        "version": __version__,
        "world": world.model.digest if isinstance(world, FiniteWorld) else world.spec_data.as_dict(),
        "agent": agent.digest,
        "probe": probe.as_dict(),
        "goals": [goal_key(goal), None if other is None else goal_key(other)],
        "gamma": gamma,
        "level": level,
        "seed": seed,
    }
    return {
        "cell": hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32],
        "probe": probe.id,
        "world_id": world.spec_data.id,
        "world": world.spec_data.label,
        "n_states": world.model.n_states if isinstance(world, FiniteWorld) else None,
        "agent_digest": agent.digest,
        "goal_a": goal.label,
        "goal_b": None if other is None else other.label,
        "goal_b_seen": goal_seen(agent, other),
        "seed": seed,
        "gamma": gamma,
        "level": level,
    }
