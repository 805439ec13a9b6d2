"""How each kind of agent in the catalogue is built."""

from __future__ import annotations

import numpy as np

from retarget.agent import Agent
from retarget.agents.controller import Controller
from retarget.agents.planner import exact_planner, learned_planner
from retarget.agents.tabular import GoalTable, QTable, train_q_table
from retarget.catalogue import networks, searchers, shortcuts
from retarget.catalogue.entries import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.goal import StateGoal


def _q_table(recipe: Recipe, *, episodes: int, starts: str, epsilon: float) -> QTable:
    world, goal = recipe.finite()
    trained, _ = train_q_table(
        world, goal, episodes=episodes, exploring=starts == "exploring", seed=recipe.seed,
        gamma=recipe.gamma, epsilon=epsilon,
    )  # fmt: skip
    return trained


def _goal_table(recipe: Recipe, *, episodes: int) -> GoalTable:
    world, own = recipe.finite()
    given = recipe.plan.training if recipe.plan is not None else world.goals[:8]
    goals = tuple(dict.fromkeys((own, *(g for g in given if isinstance(g, StateGoal)))))
    rows, starts = [], np.zeros(0, np.int64)
    for goal in goals:
        trained, _ = train_q_table(world, goal, episodes=episodes, exploring=True, seed=recipe.seed, gamma=recipe.gamma)
        rows.append(trained.greedy_symbols())
        starts = np.union1d(starts, [] if trained.starts is None else trained.starts).astype(np.int64)
    # the order of the goals is the table's own: sorted, so that the slot does not give A away by being 0
    order = sorted(range(len(goals)), key=lambda i: goals[i])
    symbols = np.stack([rows[i] for i in order])
    sorted_goals = tuple(goals[i] for i in order)
    return GoalTable(symbols, sorted_goals.index(own), sorted_goals, world.model.n_actions, starts)


def _controller(recipe: Recipe) -> Controller:
    world, goal = recipe.finite()
    position, moves = world.coordinates, world.action_moves
    if position is None or moves is None:
        raise NotApplicableHere(f"a controller needs coordinates, which {world.spec_data.label} does not have")
    target = position[goal.states[0]]
    return Controller(target, moves.astype(np.float64), position, int(position.max()) + 1)


def _planner(recipe: Recipe) -> Agent:
    world, goal = recipe.finite()
    return exact_planner(world, goal, gamma=recipe.gamma)


def _depth_planner(recipe: Recipe, *, depth: int) -> Agent:
    world, goal = recipe.finite()
    return exact_planner(world, goal, gamma=recipe.gamma, depth=depth)


def _learned_planner(recipe: Recipe, *, data: str, episodes: int, epsilon: float) -> Agent:
    world, goal = recipe.finite()
    return learned_planner(
        world, goal, everywhere=data == "everywhere", episodes=episodes, epsilon=epsilon,
        seed=recipe.seed, gamma=recipe.gamma,
    )  # fmt: skip


ENTRIES = (
    {
        entry.id: entry
        for entry in (
            AgentEntry(
                "q_table",
                "table of action values, trained by Q-learning",
                {
                    "episodes": Option(0, "episodes of training; 0 trains to the limit", low=0),
                    "starts": Option(
                        "exploring", "'one' start state, or 'exploring' starts", choices=("one", "exploring")
                    ),
                    "epsilon": Option(0.3, "share of random actions in training", low=0, high=1),
                },
                _q_table,
            ),
            AgentEntry(
                "goal_table",
                "one policy table for each training goal, and a slot that picks one",
                {"episodes": Option(0, "episodes of training for each goal; 0 trains to the limit", low=0)},
                _goal_table,
            ),
            AgentEntry("controller", "feedback controller: moves toward a set-point, sees no walls", {}, _controller),
            AgentEntry("planner", "value iteration over the true model, the goal in a reward slot", {}, _planner),
            AgentEntry(
                "depth_planner",
                "search of limited depth over the true model; acts uniformly where the goal is out of reach",
                {"depth": Option(8, "steps that one decision looks ahead", low=1)},
                _depth_planner,
            ),
            AgentEntry(
                "learned_planner",
                "value iteration over a model learned from data",
                {
                    "data": Option(
                        "everywhere", "'near' one policy's data, or 'everywhere'", choices=("near", "everywhere")
                    ),
                    "episodes": Option(
                        200, "episodes of data, each from a random start", low=1, high=searchers.MOST_EPISODES
                    ),
                    "epsilon": Option(0.05, "share of random actions in near data", low=0, high=1),
                },
                _learned_planner,
                heard={"epsilon": ("data", ("near",))},
            ),
        )
    }
    | searchers.ENTRIES
    | networks.ENTRIES
    | shortcuts.ENTRIES
)
