"""How planners that search are taken apart into JSON and arrays, and put together again."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from retarget.agent import own
from retarget.agents.bayes import MOST_STATES, BayesPlanner
from retarget.agents.leaves import Blind, Distance, Leaf, Rollouts, Tables
from retarget.agents.network_model import ROWS, NetworkModelPlanner
from retarget.agents.paths import PathPlanner
from retarget.agents.policy_value import PolicyValue, shapes_of
from retarget.agents.search import LearnedTreeSearcher, TreeSearcher
from retarget.io.architectures import Strict, Widths, with_defaults
from retarget.io.kinds import (
    Body,
    Doubles,
    How,
    Integers,
    Kind,
    Natural,
    Reals,
    Wanted,
    architecture_from,
    check_architecture,
    check_shapes,
    check_type,
    group,
    narrow,
)
from retarget.io.limits import Entry, fail
from retarget.search import TreeModel, TreeSettings
from retarget.search.settings import MOST_SIMULATIONS

if TYPE_CHECKING:
    from retarget.agent import Agent

#: Numbers that one layer gives for all the states that go through a network at once: 1 GiB of them.
MOST_CELLS = 1 << 27
#: Pairs of a state and an action that a network model is asked about in one decision.
MOST_PAIRS = 1 << 24

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: A discount; the second may be 1.
Below = Annotated[float, Field(gt=0, lt=1)]
Discount = Annotated[float, Field(gt=0, le=1)]
Simulations = Annotated[int, Field(ge=1, le=MOST_SIMULATIONS)]
Steps = Annotated[int, Field(ge=0, le=65_536)]

_I32, _I64 = frozenset({"I32"}), frozenset({"I64"})
_STARTS = Wanted(Integers, ("N",), optional=True)
_REWARD = Wanted(Doubles, ("S",))


# -- trees ---------------------------------------------------------------------------------------------------------


class TreeSettingsBody(Strict):
    method: Literal["puct", "gumbel"]
    simulations: Simulations
    gamma: Discount
    exploration: Factor
    backup: Literal["mean", "max"]
    rollout_steps: Steps
    considered: Annotated[int, Field(ge=2, le=4096)]
    visit_scale: Factor
    value_scale: Factor
    gumbel_scale: Factor


class BlindBody(Strict):
    kind: Literal["none"]


class RolloutsBody(Strict):
    kind: Literal["rollouts"]
    steps: Steps


class DistanceBody(Strict):
    kind: Literal["distance"]


class TablesBody(Strict):
    kind: Literal["tables"]


class PolicyValueBody(Strict):
    kind: Literal["network"]
    hidden: Widths
    seed: int


LeafBody = Annotated[
    BlindBody | RolloutsBody | DistanceBody | TablesBody | PolicyValueBody, Field(discriminator="kind")
]


class TreeBody(Strict):
    settings: TreeSettingsBody
    leaf: LeafBody
    seed: int
    learned: bool


_LEAVES: dict[type[Leaf], str] = {
    Blind: "none",
    Rollouts: "rollouts",
    Distance: "distance",
    Tables: "tables",
    PolicyValue: "network",
}

_TREE = {
    "reward": _REWARD,
    "next_state": Wanted(_I32, ("S", "A", "K")),
    "prob": Wanted(Doubles, ("S", "A", "K")),
    "starts": _STARTS,
}

#: Arrays of each leaf, by its kind; those of a network depend on its widths.
_LEAF_ARRAYS: dict[str, dict[str, Wanted]] = {
    "none": {},
    "rollouts": {},
    "distance": {"place": Wanted(Doubles, ("S", "D"))},
    "tables": {"leaf/value": Wanted(Doubles, ("S",)), "leaf/prior": Wanted(Doubles, ("S", "A"))},
    "network": {"features": Wanted(Reals, ("S", "F"))},
}


def _take_tree(agent: TreeSearcher) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    leaf = agent.leaf
    if type(leaf) not in _LEAVES:
        known = ", ".join(cls.__name__ for cls in _LEAVES)
        raise ValueError(f"a leaf of class {type(leaf).__name__} cannot be saved; those that can are {known}")
    arrays = {"reward": agent.reward, "next_state": agent.next_state, "prob": agent.prob}
    arrays |= {f"leaf/{name}": part.array for name, part in leaf.parts.items()} | dict(leaf.fixed_arrays)
    if isinstance(leaf, PolicyValue):
        arrays = {name: narrow(a) if name.startswith(("leaf/", "features")) else a for name, a in arrays.items()}
    body: dict[str, object] = {
        "settings": asdict(agent.settings),
        "leaf": dict(leaf.config),
        "seed": agent.seed,
        "learned": agent.learned,
    }
    return body, _with(arrays, starts=agent.starts)


def _check_tree(body: Body, entries: Mapping[str, Entry], file: Path) -> None:
    leaf = body["leaf"]
    wanted = {**_TREE, **_LEAF_ARRAYS[leaf["kind"]]}
    if leaf["kind"] == "network":
        # letters stand for the lengths that the header tells
        shapes: Mapping[str, tuple[Any, ...]] = shapes_of("F", tuple(leaf["hidden"]), "A")  # type: ignore[arg-type]
        wanted |= {f"leaf/{name}": Wanted(Reals, shape) for name, shape in shapes.items()}
    sizes = check_shapes("tree searcher", wanted, entries, file)
    _check_cells(sizes["S"], leaf.get("hidden", []), file)


def _leaf_from(body: Body, arrays: Mapping[str, np.ndarray]) -> Leaf:
    weights = group(arrays, "leaf/")
    match body["kind"]:
        case "rollouts":
            return Rollouts(body["steps"])
        case "distance":
            return Distance(arrays["place"])
        case "tables":
            return Tables(weights["value"], weights["prior"])
        case "network":
            n_actions = len(weights["policy.bias"])
            return PolicyValue(weights, arrays["features"], tuple(body["hidden"]), n_actions, body["seed"])
    return Blind()


def _make_tree(cls: type[TreeSearcher]) -> Callable[[Body, Mapping[str, np.ndarray]], TreeSearcher]:
    def make(body: Body, arrays: Mapping[str, np.ndarray]) -> TreeSearcher:
        settings = TreeSettings(**body["settings"])
        agent = cls(
            arrays["reward"],
            arrays["next_state"],
            arrays["prob"],
            settings,
            _leaf_from(body["leaf"], arrays),
            body["seed"],
            body["learned"],
            _owned(arrays, "starts"),
        )
        if agent.settings != settings:
            found = agent.settings.rollout_steps
            raise ValueError(f"rollout_steps are {settings.rollout_steps} in its settings, {found} in its leaf")
        return agent

    return make


def _verify_tree(agent: TreeSearcher) -> None:
    """What a search checks when it begins, but for what the leaf says: no network is evaluated here."""
    n, n_actions, n_successors = agent.next_state.shape
    TreeModel(agent.next_state, agent.prob, agent.reward, np.zeros(n), np.full((n, n_actions), 1.0 / n_actions))
    if isinstance(agent, LearnedTreeSearcher) and n_successors != 1:
        raise ValueError(f"a learned model names one successor of each state and action, this one {n_successors}")


def _tree(cls: type[TreeSearcher]) -> Kind:
    return Kind(cls, TreeBody, {}, How(_take_tree, _check_tree, _make_tree(cls), _verify_tree))


# -- paths ---------------------------------------------------------------------------------------------------------


class PathBody(Strict):
    method: Literal["bfs", "astar", "deepening"]
    gamma: Below
    depth: Annotated[int, Field(ge=1, le=1 << 62)] | None


_PATHS = {
    "reward": _REWARD,
    "next_state": Wanted(_I32, ("S", "A")),
    "place": Wanted(_I64, ("S", 2), optional=True),
}


def _take_paths(agent: PathPlanner) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    arrays = {"reward": agent.reward, "next_state": agent.next_state}
    return dict(agent.config), _with(arrays, place=agent.place)


def _check_paths(body: Body, entries: Mapping[str, Entry], file: Path) -> None:
    check_shapes("path planner", _PATHS, entries, file)


def _make_paths(body: Body, arrays: Mapping[str, np.ndarray]) -> PathPlanner:
    return PathPlanner(arrays["reward"], arrays["next_state"], place=_owned(arrays, "place"), **body)


# -- models that are networks --------------------------------------------------------------------------------------


class NetworkModelBody(Strict):
    architecture: dict[str, Any]
    n_actions: Annotated[int, Field(ge=1, le=1 << 20)]
    gamma: Below
    seed: int | None


class FitBody(Strict):
    updates: Natural
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    enough: Factor


class LearnedNetworkModelBody(NetworkModelBody):
    settings: FitBody


_NETWORK_MODEL = {"reward": _REWARD, "place": Wanted(_I64, ("S", 2), optional=True), "starts": _STARTS}
_COUNTS = {"counts": Wanted(Integers, ("S", "A", "K"), optional=True)}
_DYNAMICS = "retarget.training.dynamics"


def _take_network_model(agent: Any) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    arrays = {"reward": agent.reward} | {f"weight/{name}": narrow(array) for name, array in agent.weights.items()}
    optional = {"place": agent.place, "starts": agent.starts, "counts": getattr(agent, "counts", None)}
    return {**agent.config, "seed": agent.seed}, _with(arrays, **optional)


def _check_network_model(body: Body, entries: Mapping[str, Entry], file: Path) -> None:
    kind, given = check_architecture(body, entries, file)
    options, n_actions = with_defaults(kind, given), body["n_actions"]
    if kind != "mlp":  # others want a sequence or a picture, and would fail when they are asked
        fail(file, f"a network model is an mlp, not a {kind}; save the agent again")
    for name, entry in entries.items():
        if name.startswith("weight/"):
            check_type(name, entry, Reals, file)
    wanted = {**_NETWORK_MODEL, **(_COUNTS if "settings" in body else {})}
    rest = {name: entry for name, entry in entries.items() if not name.startswith("weight/")}
    sizes = check_shapes("network model", wanted, rest, file)
    n = sizes["S"]
    if options["outputs"] != n or ("place" not in entries and options["inputs"] != n + n_actions):
        takes = f"takes {options['inputs']} inputs and has {options['outputs']} outputs"
        fail(file, f"the network {takes}, for {n} states and {n_actions} actions; save the agent again")
    if sizes.get("A", n_actions) != n_actions:
        fail(file, f"counts are of {sizes['A']} actions, the description names {n_actions}; save the agent again")
    if n * n_actions > MOST_PAIRS:
        fail(file, f"a network model of {n} states and {n_actions} actions is larger than {MOST_PAIRS} of both")
    _check_cells(min(ROWS, n * n_actions), [options["inputs"], n, *options["hidden"]], file)


def _make_network_model(body: Body, arrays: Mapping[str, np.ndarray]) -> NetworkModelPlanner:
    return NetworkModelPlanner(**_network_model_fields(body, arrays))


def _make_learned_network_model(body: Body, arrays: Mapping[str, np.ndarray]) -> Agent:
    # by name, as the networks of agents are: training needs Lightning, which is loaded for those who use it alone
    module = importlib.import_module(_DYNAMICS)
    fitting = module.DynamicsSettings(**body["settings"])
    agent: Agent = module.LearnedNetworkModel(
        **_network_model_fields(body, arrays), counts=_owned(arrays, "counts"), settings=fitting
    )
    return agent


def _network_model_fields(body: Body, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {
        "reward": arrays["reward"],
        "architecture": architecture_from(body),
        "weights": group(arrays, "weight/"),
        "n_actions": body["n_actions"],
        "place": _owned(arrays, "place"),
        "gamma": body["gamma"],
        "starts": _owned(arrays, "starts"),
        "seed": body["seed"],
    }


def _verify_network_model(agent: Any) -> None:
    counts = getattr(agent, "counts", None)
    if counts is not None and np.min(counts) < 0:
        raise ValueError(f"counts of data must be at least 0, got {int(np.min(counts))}")


# -- context trees -------------------------------------------------------------------------------------------------


class BayesBody(Strict):
    gamma: Below
    simulations: Simulations
    horizon: Annotated[int, Field(ge=1, le=65_536)]
    bonus: Factor
    seed: int


_BAYES = {"reward": _REWARD, "counts": Wanted(Doubles, ("S", "A", "S")), "starts": _STARTS}


def _take_bayes(agent: BayesPlanner) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    return dict(agent.config), _with({"reward": agent.reward, "counts": agent.counts}, starts=agent.starts)


def _check_bayes(body: Body, entries: Mapping[str, Entry], file: Path) -> None:
    n = check_shapes("planner in context trees", _BAYES, entries, file)["S"]
    if n > MOST_STATES:
        fail(file, f"a planner in context trees has at most {MOST_STATES} states, this one {n}; save the agent again")


def _make_bayes(body: Body, arrays: Mapping[str, np.ndarray]) -> BayesPlanner:
    return BayesPlanner(arrays["reward"], arrays["counts"], starts=_owned(arrays, "starts"), **body)


# -- all of them ---------------------------------------------------------------------------------------------------


def _with(arrays: dict[str, np.ndarray], **optional: np.ndarray | None) -> dict[str, np.ndarray]:
    return arrays | {name: np.asarray(array) for name, array in optional.items() if array is not None}


def _owned(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    return own(arrays[name]) if name in arrays else None


def _check_cells(rows: int, widths: list[int], file: Path) -> None:
    wide = max(widths, default=0)
    if rows * wide > MOST_CELLS:
        fail(file, f"a layer of {wide} units for {rows} states at once is more than {MOST_CELLS} numbers; narrow it")


#: By name; `retarget.io.records` has them among all others.
SEARCHERS: dict[str, Kind] = {
    "tree_search": _tree(TreeSearcher),
    "learned_tree_search": _tree(LearnedTreeSearcher),
    "path_planner": Kind(PathPlanner, PathBody, {}, How(_take_paths, _check_paths, _make_paths)),
    "network_model": Kind(
        NetworkModelPlanner,
        NetworkModelBody,
        {},
        How(_take_network_model, _check_network_model, _make_network_model),
    ),
    "learned_network_model": Kind(
        f"{_DYNAMICS}:LearnedNetworkModel",
        LearnedNetworkModelBody,
        {},
        How(_take_network_model, _check_network_model, _make_learned_network_model, _verify_network_model),
    ),
    "mc_aixi": Kind(BayesPlanner, BayesBody, {}, How(_take_bayes, _check_bayes, _make_bayes)),
}
