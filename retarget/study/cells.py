"""Cells: the smallest pieces of a study. Each is plain data, has a key made from its content, and runs on its own."""

from __future__ import annotations

import hashlib
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

from retarget import __version__
from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent
from retarget.digest import canonical_json
from retarget.errors import StudyError
from retarget.goal import StateGoal
from retarget.probe import Outcome, Probe, Progress, Subject
from retarget.row import SCHEMA_VERSION, FrontierPoint, Measurement
from retarget.spend import Spend
from retarget.study.spec import ProbeSpec, Study, make_probe
from retarget.world import BoxWorld, FiniteWorld, World, WorldSpec

if TYPE_CHECKING:
    from retarget.agent import Agent
    from retarget.goal import Goal
    from retarget.pairs import GoalPlan

Row = dict[str, object]
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One probe on one agent in one world, for one seed and one pair of goals.

    Attributes:
        study: name of the study; a label, no part of the key.
        world, agent, probe: what rebuilds them.
        seed: names every random stream of the cell.
        pair: index of the pair (A, B) in the plan of goals of the world and seed.
        goal_pairs: length of that plan.
        gamma, level: see `retarget.probe.Subject`.

    >>> from retarget.study.spec import ProbeSpec
    >>> cell = Cell("s", WorldSpec.of("Maze"), AgentSpec.of("q_table"), ProbeSpec.of("robustness"), 0, 0, 1, 0.9, 1.0)
    >>> len(cell.key), cell.label
    (32, 'robustness of q_table in Maze, seed 0, pair 0')
    """

    study: str
    world: WorldSpec
    agent: AgentSpec
    probe: ProbeSpec
    seed: int
    pair: int
    goal_pairs: int
    gamma: float
    level: float

    @cached_property
    def key(self) -> str:
        """SHA-256 (first 32 hex digits) over everything that determines the result."""
        content = {
            "schema": SCHEMA_VERSION,
            "version": __version__,
            "world": self.world.as_dict(),
            "agent": self.agent.as_dict(),
            "probe": self.probe.as_dict(),
            "seed": self.seed,
            "pair": self.pair,
            "goal_pairs": self.goal_pairs,
            "gamma": float(self.gamma),
            "level": float(self.level),
        }
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:32]

    @property
    def group(self) -> str:
        """Cells of one group share a trained agent, so that one worker had better take them all."""
        data = [self.world.as_dict(), self.agent.as_dict(), self.seed, self.goal_pairs, float(self.gamma)]
        return canonical_json(data)

    @property
    def label(self) -> str:
        """What a reader sees while the cell runs."""
        return f"{self.probe.id} of {self.agent.label} in {self.world.label}, seed {self.seed}, pair {self.pair}"


@dataclass(frozen=True)
class CellResult:
    """What a cell gives: rows of the two tables, the time it took, and the error that ended it, if one did.

    Attributes:
        rows: one for each metric of the probe, in the probe's order, with the columns of `RESULT_COLUMNS`.
        frontier: rows with the columns of `FRONTIER_COLUMNS`.
        wall_s: seconds; kept apart, since it is never the same twice.
        error: of an unexpected exception, `Type: message` on the first line, then its traceback; empty when there
            was none.
    """

    rows: tuple[Row, ...]
    frontier: tuple[Row, ...] = ()
    wall_s: float = 0.0
    error: str = ""


class _Recent(Generic[T]):
    """The last few values made, by key: worlds and agents are frozen, so sharing them changes no result."""

    def __init__(self, size: int) -> None:
        self.size, self.kept = size, OrderedDict[str, T]()

    def get(self, key: str, make: Callable[[], T]) -> T:
        if key not in self.kept:
            self.kept[key] = make()
            if len(self.kept) > self.size:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]


_worlds: _Recent[World] = _Recent(4)
_agents: _Recent[Agent] = _Recent(16)


def world_of(spec: WorldSpec) -> World:
    """The world of a spec; the last few are kept."""
    from retarget.envs import make_world

    return _worlds.get(canonical_json(spec.as_dict()), lambda: make_world(spec))


def draw_goals(spec: WorldSpec, seed: int, goal_pairs: int) -> GoalPlan:
    """The plan of goals of a world and seed."""
    from retarget.pairs import GoalPlan

    return GoalPlan.draw(world_of(spec), n_pairs=goal_pairs, seed=seed)


def plan(study: Study) -> tuple[Cell, ...]:
    """Every cell of a study, those that share a world or an agent next to each other.

    A probe that needs no goal B gets one cell for each distinct goal A.

    Raises:
        StudyError: when two cells would be the same.
    """
    needs_b = {p: type(make_probe(p)).needs_goal_b for p in study.probes}
    cells: list[Cell] = []
    for world in study.worlds:
        for seed in study.seeds:
            goals_a = [a for a, _ in draw_goals(world, seed, study.goal_pairs).pairs]
            firsts = {goals_a.index(a) for a in goals_a}
            for agent in study.agents:
                if agent.worlds is not None and world.id not in agent.worlds:
                    continue
                for pair in range(study.goal_pairs):
                    for probe in study.probes:
                        asked = probe.worlds is None or world.id in probe.worlds
                        if asked and (needs_b[probe] or pair in firsts):
                            where = (seed, pair, study.goal_pairs, study.gamma, study.level)
                            cells.append(Cell(study.name, world, agent.spec, probe, *where))
    if len({c.key for c in cells}) < len(cells):
        raise StudyError(f"study {study.name!r} names the same cell twice; remove doubled worlds, agents or probes")
    return tuple(cells)


def run_cell(cell: Cell, progress: Progress | None = None) -> CellResult:
    """Measure one cell. Never raises for what goes wrong inside it: that becomes `failed` rows.

    Args:
        cell: what to measure.
        progress: called with the fraction done and a few words, by probes that take long.

    Raises:
        StudyError: when the cell names a probe that does not exist, so that not even rows can be made.
    """
    began = time.perf_counter()
    probe = make_probe(cell.probe)
    identity = _identity(cell)
    agent: Agent | None = None
    error = ""
    try:
        outcome, agent = _measure(cell, probe, identity, progress)
        rows, frontier = rows_of(identity, probe, outcome, agent)
    except Exception as problem:  # whatever a cell does, the others go on and the table says what happened
        error = first_line(problem) + "\n" + "".join(traceback.format_exception(problem))
        rows, frontier = failed_rows(identity, probe, first_line(problem), agent), ()
    return CellResult(rows, frontier, time.perf_counter() - began, error)


def failed_result(cell: Cell, error: str) -> CellResult:
    """The result of a cell whose worker was lost; `error` is one line."""
    probe = make_probe(cell.probe)
    return CellResult(failed_rows(_identity(cell), probe, error, None), (), 0.0, error)


def first_line(problem: BaseException) -> str:
    """`Type: message`, on one line."""
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def _measure(cell: Cell, probe: Probe, identity: Row, progress: Progress | None) -> tuple[Outcome, Agent | None]:
    world = world_of(cell.world)
    identity["n_states"] = world.model.n_states if isinstance(world, FiniteWorld) else None
    # a horizon has a discount of its own: the study's is for finite worlds
    gamma = world.gamma if isinstance(world, BoxWorld) else cell.gamma
    identity["gamma"] = float(gamma)
    goals = draw_goals(cell.world, cell.seed, cell.goal_pairs)
    goal_a, goal_b = goals.pairs[cell.pair]
    identity["goal_a"] = goal_a.label
    identity["goal_b"] = goal_b.label if type(probe).needs_goal_b else None
    key = canonical_json([cell.group, goal_key(goal_a)])
    recipe = Recipe(world, goal_a, cell.seed, gamma, goals)
    try:
        agent = _agents.get(key, lambda: build_agent(cell.agent, recipe))
    except NotApplicableHere as reason:
        return probe.all_not_applicable(" ".join(str(reason).split()) or "no such agent in this world"), None
    given_b = goal_b if type(probe).needs_goal_b else None
    identity["agent_digest"] = agent.digest
    identity["goal_b_seen"] = goal_seen(agent, given_b)
    subject = Subject(agent, world, goal_a, given_b, gamma=gamma, level=cell.level, seed=cell.seed, plan=goals)
    return probe.measure(subject, progress=progress), agent


def goal_key(goal: Goal) -> object:
    """What tells goals apart, as plain data."""
    if isinstance(goal, StateGoal):
        return list(goal.states)
    return [[list(t) for t in goal.targets], goal.hold]


def goal_seen(agent: Agent, goal: Goal | None) -> bool | None:
    """Whether a goal was among an agent's training goals; None where it declares none."""
    seen = getattr(agent, "training_goals", None)
    return None if seen is None or goal is None else goal in seen


def _identity(cell: Cell) -> Row:
    return {
        "cell": cell.key,
        "study": cell.study,
        "probe": cell.probe.id,
        "world_id": cell.world.id,
        "world": cell.world.label,
        "n_states": None,
        "agent_id": cell.agent.id,
        "agent": cell.agent.label,
        "agent_digest": None,
        "goal_a": None,
        "goal_b": None,
        "goal_b_seen": None,
        "seed": cell.seed,
        "gamma": float(cell.gamma),
        "level": float(cell.level),
    }


def rows_of(
    identity: Mapping[str, object], probe: Probe, outcome: Outcome, agent: Agent | None
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows of both tables for one outcome.

    Args:
        identity: the columns that say what was measured, from `cell` to `level`.
        probe: gives the units, and the metrics that there must be.
        outcome: what it measured.
        agent: what it was measured on, or None where there was no agent to be had.

    Raises:
        ProbeError: when the probe returned other metrics than those it declares.
    """
    outcome.check(probe)
    rows = tuple(_result_row(identity, probe, m, agent) for m in outcome.measurements)
    return rows, tuple({**identity, **_frontier_part(p)} for p in outcome.frontier)


def failed_rows(identity: Mapping[str, object], probe: Probe, error: str, agent: Agent | None) -> tuple[Row, ...]:
    """A `failed` row for each metric of a probe."""
    return tuple(_result_row(identity, probe, Measurement.failed(name, error), agent) for name in probe.metrics)


def _result_row(identity: Mapping[str, object], probe: Probe, m: Measurement, agent: Agent | None) -> Row:
    return {
        **identity,
        "metric": m.metric,
        "kind": probe.kind_of(m.metric),
        "protocol": m.protocol,
        "dose": None if m.dose is None else float(m.dose),
        "unit": probe.metrics[m.metric].unit,
        "status": m.status,
        "reason": m.reason or None,
        "value": m.value,
        "ci_low": m.ci_low,
        "ci_high": m.ci_high,
        "n": m.n,
        "code": m.code,
        "editor": m.editor,
        "parts": m.parts,
        "n_cells": m.n_cells,
        **_spend_part(m.spend),
        "simulations_per_action": None if agent is None else int(agent.simulations_per_action),
        "flops_per_action": None if agent is None else float(agent.flops_per_action),
        "version": __version__,
    }


def _frontier_part(p: FrontierPoint) -> Row:
    return {
        "subject": p.subject,
        "editor": p.editor,
        "bits": int(p.bits),
        "plain_bits": int(p.plain_bits),
        "competence": float(p.competence),
        "success": float(p.success),
        "n_cells": int(p.n_cells),
        "parts": p.parts,
        "on_front": bool(p.on_front),
        **_spend_part(p.spend),
    }


def _spend_part(spend: Spend | None) -> Row:
    return {
        "spend_env_steps": None if spend is None else int(spend.env_steps),
        "spend_grad_steps": None if spend is None else int(spend.grad_steps),
        "spend_simulations": None if spend is None else int(spend.simulations),
        "spend_flops": None if spend is None else float(spend.flops),
    }
