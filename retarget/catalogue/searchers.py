"""Planners that search, as kinds of agent: trees, paths, learned models, trained values, and Bayesian search.

What is heavy is loaded when an agent is built, not when it is listed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from retarget.agent import Agent
from retarget.agents.leaves import Blind, Distance, Leaf, Rollouts, Tables
from retarget.agents.planner import learned_planner
from retarget.agents.search import TreeSearcher, tree_searcher
from retarget.catalogue.entries import AgentEntry, NotApplicableHere, Option, Recipe
from retarget.digest import canonical_json
from retarget.goal import StateGoal
from retarget.search import TreeSettings
from retarget.search.settings import MOST_SIMULATIONS
from retarget.world import FiniteWorld

#: Networks trained last, by what they were trained on: one serves every number of simulations.
_trained: OrderedDict[str, TreeSearcher] = OrderedDict()
KEPT = 16

#: Counts beyond these would run for days: whoever writes one has slipped.
MOST_EPISODES, MOST_CYCLES, MOST_ROUNDS, MOST_DEPTH = 1_000_000, 10_000_000, 10_000, 1_000_000

_SIMULATIONS = Option(64, "walks of one decision", low=1, high=MOST_SIMULATIONS)
_DATA = ("near", "everywhere")


def _leaf(recipe: Recipe, leaf: str, rollout_steps: int) -> Leaf:
    world, goal = recipe.finite()
    if leaf == "rollouts":
        return Rollouts(rollout_steps)
    if leaf == "distance":
        if world.coordinates is None:
            raise NotApplicableHere(f"distances need coordinates, which {world.spec_data.label} does not have")
        return Distance(world.coordinates)
    return Tables.for_goal(world, goal, gamma=recipe.gamma) if leaf == "tables" else Blind()


def _tree_search(
    recipe: Recipe, *, simulations: int, leaf: str, method: str, backup: str, exploration: float, rollout_steps: int,
    model: str, episodes: int, epsilon: float,
) -> Agent:  # fmt: skip
    world, goal = recipe.finite()
    settings = TreeSettings(
        method=method, simulations=simulations, gamma=recipe.gamma, exploration=exploration, backup=backup,  # type: ignore[arg-type]
    )  # fmt: skip
    learned = None
    if model != "exact":
        learned = learned_planner(
            world, goal, everywhere=model == "everywhere", episodes=episodes, epsilon=epsilon, seed=recipe.seed,
            gamma=recipe.gamma,
        )  # fmt: skip
    return tree_searcher(
        world, goal, settings=settings, leaf=_leaf(recipe, leaf, rollout_steps), model=learned, seed=recipe.seed
    )


def _alphazero(
    recipe: Recipe, *, simulations: int, prior: str, training_simulations: int, iterations: int, hidden: int
) -> Agent:
    world, goal = recipe.finite()
    agent = _trained_network(world, goal, recipe, training_simulations, iterations, hidden)
    if prior == "even":
        silent = next(f for f in agent.fits(world, goal) if f.name == "even prior")
        agent = agent.with_arrays(silent.arrays)
    return replace(agent, settings=replace(agent.settings, simulations=simulations))


def _trained_network(
    world: FiniteWorld, goal: StateGoal, recipe: Recipe, simulations: int, iterations: int, hidden: int
) -> TreeSearcher:
    from retarget.training.alphazero import SelfPlay, train_alphazero

    what = [world.spec_data.as_dict(), list(goal.states), recipe.seed, recipe.gamma, simulations, iterations, hidden]
    key = canonical_json(what)
    if key not in _trained:
        made = train_alphazero(
            world, goal, settings=TreeSettings(simulations=simulations, gamma=recipe.gamma), hidden=(hidden,),
            play=SelfPlay(iterations=iterations), seed=recipe.seed,
        )  # fmt: skip
        _trained[key] = made.agent
        if len(_trained) > KEPT:
            _trained.popitem(last=False)
    return _trained[key]


def _path_planner(recipe: Recipe, *, method: str, depth: int) -> Agent:
    from retarget.agents.paths import path_planner

    world, goal = recipe.finite()
    if not world.model.is_deterministic:
        raise NotApplicableHere(f"paths are searched where there is no chance; {world.spec_data.label} has some")
    return path_planner(world, goal, method=method, depth=depth or None, gamma=recipe.gamma)  # type: ignore[arg-type]


def _network_model(recipe: Recipe, *, data: str, episodes: int, epsilon: float, hidden: int, features: str) -> Agent:
    from retarget.training.dynamics import network_model_planner

    world, goal = recipe.finite()
    return network_model_planner(
        world, goal, everywhere=data == "everywhere", episodes=episodes, epsilon=epsilon, seed=recipe.seed,
        gamma=recipe.gamma, hidden=(hidden,), features=features,  # type: ignore[arg-type]
    )  # fmt: skip


def _mc_aixi(recipe: Recipe, *, data: str, cycles: int, simulations: int, horizon: int, epsilon: float) -> Agent:
    from retarget.agents.bayes import MOST_STATES, mc_aixi

    world, goal = recipe.finite()
    if world.model.n_states > MOST_STATES:
        raise NotApplicableHere(
            f"its predictions are a table [S, A, S] of at most {MOST_STATES} states; {world.spec_data.label} has "
            f"{world.model.n_states}"
        )
    return mc_aixi(
        world, goal, cycles=cycles, simulations=simulations, horizon=horizon, gamma=recipe.gamma, epsilon=epsilon,
        seed=recipe.seed, everywhere=data == "everywhere",
    )  # fmt: skip


ENTRIES = {
    entry.id: entry
    for entry in (
        AgentEntry(
            "tree_search",
            "Monte Carlo tree search at every decision, over the true model or one learned from data",
            {
                "simulations": _SIMULATIONS,
                "leaf": Option(
                    "none",
                    "what a leaf is worth: none, rollouts, distance (sees no walls), tables (made for A)",
                    choices=("none", "rollouts", "distance", "tables"),
                ),
                "method": Option("puct", "'puct' or 'gumbel'", choices=("puct", "gumbel")),
                "backup": Option(
                    "mean", "an edge is worth its 'mean' return, or the 'max' below it", choices=("mean", "max")
                ),
                "exploration": Option(1.25, "the factor c of puct", low=0),
                "rollout_steps": Option(32, "steps of a rollout, at most", low=1, high=65_536),
                "model": Option(
                    "exact",
                    "'exact', or learned from data 'near' one policy or 'everywhere'",
                    choices=("exact", *_DATA),
                ),
                "episodes": Option(200, "episodes of data, each from a random start", low=1, high=MOST_EPISODES),
                "epsilon": Option(0.05, "share of random actions in near data", low=0, high=1),
            },
            _tree_search,
            heard={
                "rollout_steps": ("leaf", ("rollouts",)),
                "exploration": ("method", ("puct",)),
                "episodes": ("model", _DATA),
                "epsilon": ("model", ("near",)),
            },
            clashes=((("method", "gumbel"), ("backup", "max")),),
        ),
        AgentEntry(
            "alphazero",
            "tree search with a network of values and priors, trained on its own searches and outcomes",
            {
                "simulations": _SIMULATIONS,
                "prior": Option(
                    "trained",
                    "'trained'; or 'even': only the values were kept after training",
                    choices=("trained", "even"),
                ),
                "training_simulations": Option(32, "walks of one decision in training", low=1, high=4096),
                "iterations": Option(30, "rounds of acting and fitting", low=0, high=MOST_ROUNDS),
                "hidden": Option(64, "width of the hidden layer", low=1, high=4096),
            },
            _alphazero,
        ),
        AgentEntry(
            "path_planner",
            "search for the best path over the true model",
            {
                "method": Option("bfs", "bfs, astar or deepening", choices=("bfs", "astar", "deepening")),
                "depth": Option(0, "steps that it looks ahead; 0 for no limit", low=0, high=MOST_DEPTH),
            },
            _path_planner,
        ),
        AgentEntry(
            "network_model",
            "value iteration over a model that a network learned: it says some successor also where it saw none",
            {
                "data": Option("everywhere", "'near' one policy's data, or 'everywhere'", choices=_DATA),
                "episodes": Option(200, "episodes of data, each from a random start", low=1, high=MOST_EPISODES),
                "epsilon": Option(0.05, "share of random actions in near data", low=0, high=1),
                "hidden": Option(64, "width of the hidden layer", low=1, high=4096),
                "features": Option(
                    "state",
                    "what it sees: one input for each 'state', or 'place' coordinates",
                    choices=("state", "place"),
                ),
            },
            _network_model,
            heard={"epsilon": ("data", ("near",))},
        ),
        AgentEntry(
            "mc_aixi",
            "Bayesian search: a mixture of context trees learned by acting, and Monte Carlo tree search in it",
            {
                "data": Option(
                    "everywhere",
                    "acts for its goal while it learns ('near'), or at random ('everywhere')",
                    choices=_DATA,
                ),
                "cycles": Option(100_000, "actions taken while it learns", low=0, high=MOST_CYCLES),
                "simulations": Option(4096, "walks of one decision", low=1, high=MOST_SIMULATIONS),
                "horizon": Option(64, "steps that it looks ahead", low=1, high=1000),
                "epsilon": Option(0.999, "share of random actions at the start; it falls as it learns", low=0, high=1),
            },
            _mc_aixi,
            heard={"epsilon": ("data", ("near",))},
        ),
    )
}
