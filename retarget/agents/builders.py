"""How each kind of agent in the catalogue is built."""

from __future__ import annotations

import numpy as np

from retarget.agent import Agent
from retarget.agents.catalogue import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.agents.controller import Controller
from retarget.agents.planner import exact_planner, learned_planner
from retarget.agents.tabular import GoalTable, QTable, train_q_table
from retarget.errors import StudyError


def _exploring(starts: object) -> bool:
    if starts not in ("one", "exploring"):
        raise StudyError(f"starts must be 'one' or 'exploring', got {starts!r}")
    return starts == "exploring"


def _q_table(recipe: Recipe, *, episodes: int, starts: str, epsilon: float) -> QTable:
    trained, _ = train_q_table(
        recipe.world, recipe.goal, episodes=episodes, exploring=_exploring(starts), seed=recipe.seed,
        gamma=recipe.gamma, epsilon=epsilon,
    )  # fmt: skip
    return trained


def _goal_table(recipe: Recipe, *, episodes: int) -> GoalTable:
    goals = recipe.plan.training if recipe.plan is not None else recipe.world.goals[:8]
    goals = tuple(dict.fromkeys((recipe.goal, *goals)))
    rows, starts = [], np.zeros(0, np.int64)
    for goal in goals:
        trained, _ = train_q_table(
            recipe.world, goal, episodes=episodes, exploring=True, seed=recipe.seed, gamma=recipe.gamma
        )
        rows.append(trained.greedy_symbols())
        starts = np.union1d(starts, [] if trained.starts is None else trained.starts).astype(np.int64)
    # the order of the goals is the table's own: sorted, so that the slot does not give A away by being 0
    order = sorted(range(len(goals)), key=lambda i: goals[i])
    symbols = np.stack([rows[i] for i in order])
    sorted_goals = tuple(goals[i] for i in order)
    return GoalTable(symbols, sorted_goals.index(recipe.goal), sorted_goals, recipe.world.model.n_actions, starts)


def _controller(recipe: Recipe) -> Controller:
    position, moves = recipe.world.coordinates, recipe.world.action_moves
    if position is None or moves is None:
        raise NotApplicableHere(f"a controller needs coordinates, which {recipe.world.spec_data.label} does not have")
    target = position[recipe.goal.states[0]]
    return Controller(target, moves.astype(np.float64), position, int(position.max()) + 1)


def _planner(recipe: Recipe) -> Agent:
    return exact_planner(recipe.world, recipe.goal, gamma=recipe.gamma)


def _depth_planner(recipe: Recipe, *, depth: int) -> Agent:
    return exact_planner(recipe.world, recipe.goal, gamma=recipe.gamma, depth=depth)


def _learned_planner(recipe: Recipe, *, data: str, episodes: int, epsilon: float) -> Agent:
    if data not in ("near", "everywhere"):
        raise StudyError(f"data must be 'near' or 'everywhere', got {data!r}")
    return learned_planner(
        recipe.world, recipe.goal, everywhere=data == "everywhere", episodes=episodes, epsilon=epsilon,
        seed=recipe.seed, gamma=recipe.gamma,
    )  # fmt: skip


ENTRIES = {
    entry.id: entry
    for entry in (
        AgentEntry(
            "q_table",
            "table of action values, trained by Q-learning",
            {
                "episodes": Option(0, "episodes of training; 0 trains to the limit"),
                "starts": Option("exploring", "'one' start state, or 'exploring' starts"),
                "epsilon": Option(0.3, "share of random actions in training"),
            },
            _q_table,
        ),
        AgentEntry(
            "goal_table",
            "one policy table for each training goal, and a slot that picks one",
            {"episodes": Option(0, "episodes of training for each goal; 0 trains to the limit")},
            _goal_table,
        ),
        AgentEntry("controller", "feedback controller: moves toward a set-point, sees no walls", {}, _controller),
        AgentEntry("planner", "value iteration over the true model, the goal in a reward slot", {}, _planner),
        AgentEntry(
            "depth_planner",
            "search of limited depth over the true model; acts uniformly where the goal is out of reach",
            {"depth": Option(8, "steps that one decision looks ahead")},
            _depth_planner,
        ),
        AgentEntry(
            "learned_planner",
            "value iteration over a model learned from data",
            {
                "data": Option("everywhere", "'near' one policy's data, or 'everywhere'"),
                "episodes": Option(200, "episodes of data, each from a random start"),
                "epsilon": Option(0.05, "share of random actions in near data"),
            },
            _learned_planner,
        ),
    )
}
