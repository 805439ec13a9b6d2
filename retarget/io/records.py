"""How each kind of agent is taken apart into JSON and arrays, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from retarget.agent import own
from retarget.agents.controller import Controller
from retarget.agents.neural import GoalInput, NetworkAgent, Sensor
from retarget.agents.planner import LearnedPlanner, Planner
from retarget.agents.tabular import GoalTable, QTable, TablePolicy
from retarget.errors import AgentError, FileError, unknown
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.io.architectures import MAX_INPUTS, Real, Strict
from retarget.io.kinds import (
    How,
    Integers,
    Kind,
    Name,
    Natural,
    Reals,
    architecture_from,
    check_architecture,
    check_starts,
    check_type,
    checked,
    entries_of,
    group,
    narrow,
)
from retarget.io.limits import Entry, fail
from retarget.io.search_records import SEARCHERS

if TYPE_CHECKING:
    from retarget.agent import Agent

#: Bytes of everything in a network's file that is no weight: what states look like, mostly.
MAX_BESIDE = 512 << 20


# -- goals ---------------------------------------------------------------------------------------------------------


class StateGoalBody(Strict):
    states: Annotated[list[Natural], Field(min_length=1)]
    label: str


class RegionGoalBody(Strict):
    targets: Annotated[list[tuple[Name, Real, Real]], Field(min_length=1)]
    hold: bool
    label: str


def goal_body(goal: Goal) -> dict[str, object]:
    """A goal as JSON."""
    if isinstance(goal, StateGoal):
        return {"states": list(goal.states), "label": goal.label}
    return {"targets": [list(t) for t in goal.targets], "hold": goal.hold, "label": goal.label}


def goal_from(body: Mapping[str, Any]) -> Goal:
    """A goal from checked JSON."""
    if "states" in body:
        return StateGoal(tuple(body["states"]), body["label"])
    return RegionGoal(tuple((str(n), float(c), float(w)) for n, c, w in body["targets"]), body["hold"], body["label"])


GoalBodies = list[StateGoalBody | RegionGoalBody]


# -- networks ------------------------------------------------------------------------------------------------------


class SensorBody(Strict):
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    join: Literal["none", "append", "plane", "token"]
    goal_scale: Real


class GoalInputBody(Strict):
    kind: Literal["one_hot", "place", "plane", "token", "set_point"]
    size: Annotated[int, Field(ge=1, le=MAX_INPUTS)]
    columns: Annotated[int, Field(ge=0, le=MAX_INPUTS)]
    features: Annotated[list[Name], Field(max_length=1024)]
    goals: GoalBodies | Literal["training"]


class NetworkBody(Strict):
    architecture: dict[str, Any]
    sensor: SensorBody
    head: Literal["logits", "values", "mean"]
    decision: Literal["greedy", "sample"]
    action_range: tuple[list[Real], list[Real]] | None
    goal_input: GoalInputBody | None
    training_goals: GoalBodies | None
    seed: int | None


def _network_record(agent: NetworkAgent) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    given, goals = agent.goal_input, agent.training_goals
    body = {**agent.config, "training_goals": None if goals is None else [goal_body(g) for g in goals]}
    if given is not None:
        same = goals is not None and _alike(given.goals, goals)
        body["goal_input"] = {**given.as_dict(), "goals": "training" if same else [goal_body(g) for g in given.goals]}
    arrays = {f"weight/{name}": narrow(array) for name, array in agent.weights.items()}
    arrays |= {f"steer/{name}": array for name, array in (agent.steer or {}).items()}
    arrays |= {f"sensor/{name}": array for name, array in agent.sensor.arrays.items()}
    place = None if given is None or given.place is None else given.place.astype(np.int64)
    optional = {"goal": agent.goal, "place": place, "starts": agent.starts}
    arrays |= {name: np.asarray(array) for name, array in optional.items() if array is not None}
    return {**body, "seed": agent.seed}, arrays


def _alike(a: tuple[Goal, ...], b: tuple[Goal, ...]) -> bool:
    return a == b and [g.label for g in a] == [g.label for g in b]


def _check_network(body: Mapping[str, Any], entries: Mapping[str, Entry], file: Path) -> None:
    """Everything that can be told without building the network or reading its numbers."""
    fields = ("sensor/features", "sensor/mean", "sensor/scale", "goal", "place", "starts")
    for name, entry in entries.items():
        family = name.split("/")[0] + "/" if name.startswith(("weight/", "steer/")) else name
        allowed = _NETWORK_TYPES.get(family)
        if allowed is None:
            fail(file, f"the arrays hold {name[:80]!r}; beside weight/ and steer/ they hold only {', '.join(fields)}")
        check_type(name, entry, allowed, file)
    beside = sum(e.end - e.begin for name, e in entries.items() if not name.startswith("weight/"))
    if beside > MAX_BESIDE:
        fail(file, f"the arrays hold {beside} bytes beside the weights, more than {MAX_BESIDE}; save a smaller world's")
    check_architecture(body, entries, file)


_NETWORK_TYPES: dict[str, frozenset[str]] = {
    "weight/": Reals,
    "steer/": frozenset({"F64"}),
    "sensor/features": frozenset({"F32", "I64"}),
    "sensor/mean": frozenset({"F32"}),
    "sensor/scale": frozenset({"F32"}),
    "goal": frozenset({"F64", "I64"}),
    "place": frozenset({"I64"}),
    "starts": Integers,
}


def _network(body: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> NetworkAgent:
    look: dict[str, Any] = {**group(arrays, "sensor/"), **body["sensor"]}
    goals = None if body["training_goals"] is None else tuple(goal_from(g) for g in body["training_goals"])
    limits = body["action_range"]
    agent = NetworkAgent(
        architecture_from(body),
        group(arrays, "weight/"),
        Sensor(**look),
        head=body["head"],
        decision=body["decision"],
        action_range=None if limits is None else (own(np.array(limits[0], float)), own(np.array(limits[1], float))),
        goal_input=_goal_input(body["goal_input"], goals, arrays.get("place")),
        goal=arrays.get("goal"),
        training_goals=goals,
        starts=None if "starts" not in arrays else own(arrays["starts"]),
        steer=group(arrays, "steer/"),
        seed=body["seed"],
    )
    _check_fit(agent)
    return agent


def _goal_input(
    body: Mapping[str, Any] | None, training: tuple[Goal, ...] | None, place: np.ndarray | None
) -> GoalInput | None:
    if body is None:
        if place is not None:
            raise ValueError("places of states belong to a goal input, and there is none")
        return None
    goals = body["goals"]
    listed = training or () if goals == "training" else tuple(goal_from(g) for g in goals)
    rest = {k: v for k, v in body.items() if k not in ("goals", "features")}
    found = GoalInput(**rest, features=tuple(body["features"]), place=place, goals=listed)
    needs_place = found.kind in ("place", "plane")
    if needs_place != (place is not None) or (place is not None and (place.ndim != 2 or place.shape[1] != 2)):
        raise ValueError(f"a goal input of kind {found.kind!r} {'needs' if needs_place else 'has no'} places [S, 2]")
    if found.kind == "place" and found.size != 2:
        raise ValueError("a goal input of kind 'place' has two cells")
    if found.kind == "set_point" and found.size != len(found.features):
        raise ValueError("a goal input of kind 'set_point' has a cell for each feature")
    if found.kind == "plane" and place is not None:
        cell = place[:, 0] * found.columns + place[:, 1]
        if place.min(initial=0) < 0 or place[:, 1].max(initial=0) >= found.columns or cell.max(initial=0) >= found.size:
            raise ValueError("a state's place lies outside the plane")
    return found


#: Which axes of a state's features the goal slot adds to.
_JOINS = {"mlp": "append", "gru": "append", "cnn": "plane", "vin": "plane", "transformer": "token"}


def _check_fit(agent: NetworkAgent) -> None:
    """Raise ValueError unless what the sensor gives is what the network takes; no forward pass is made."""
    o: dict[str, Any] = dict(agent.architecture.options)
    sensor, slot = agent.sensor, agent.goal_input
    kind, features, extra = agent.architecture.kind, agent.sensor.features, 0 if agent.goal is None else agent.goal.size
    if sensor.join not in ("none", _JOINS[kind]):
        raise ValueError(f"a {kind} cannot take a goal by {sensor.join!r}")
    shape: tuple[Any, ...]
    if kind in ("cnn", "vin"):
        shape = (o["channels"] - (1 if extra else 0), o["height"], o["width"])
        if extra and extra != shape[1] * shape[2]:
            raise ValueError(f"a goal of {extra} cells is no plane of {shape[1]} x {shape[2]}")
    else:
        shape = (o["n_tokens" if kind == "transformer" else "inputs"] - extra,)
    if features is None:
        if kind not in ("mlp", "gru"):
            raise ValueError(f"a {kind} needs features of states")
        if any(a.shape != shape for a in sensor.arrays.values()):
            raise ValueError(f"the sensor's arrays need shape {shape}")
    elif features.shape[1:] != shape or len(features) == 0 or len(sensor.arrays) > 1:
        raise ValueError(f"features need shape [S, {', '.join(map(str, shape))}], got {features.shape}")
    if kind == "transformer" and features is not None:
        _check_tokens(features, slot, agent.goal, int(o["vocabulary"]))
    elif slot is not None and slot.kind == "token":
        raise ValueError(f"the goal of a {kind} is no token")
    if (agent.head == "mean") != (agent.action_range is not None):
        raise ValueError("a mean of actions needs a range of actions, and nothing else does")
    if agent.action_range is not None and any(a.shape != (o["outputs"],) for a in agent.action_range):
        raise ValueError("the range of actions needs a number for each action")


def _check_tokens(features: np.ndarray, slot: GoalInput | None, goal: np.ndarray | None, vocabulary: int) -> None:
    top = max(int(features.max()), 0 if slot is None else slot.size - 1)
    if features.dtype.kind != "i" or features.min() < 0 or top >= vocabulary:
        raise ValueError(f"tokens must be 0 to {vocabulary} - 1")
    if slot is not None and (slot.kind != "token" or goal is None or not 0 <= int(goal[0]) < slot.size):
        raise ValueError("the goal of a transformer is one of its tokens")


# -- tables and planners -------------------------------------------------------------------------------------------


class Nothing(Strict):
    pass


class GoalTableBody(Strict):
    active: Natural
    goals: list[StateGoalBody]
    n_actions: Annotated[int, Field(ge=1, le=1 << 20)]


class PlannerBody(Strict):
    gamma: Real
    depth: Annotated[int, Field(ge=1, le=100_000)] | None
    learned: bool


class ControllerBody(Strict):
    size: Annotated[int, Field(ge=1, le=1 << 30)]


_PLANNER = {
    "reward": frozenset({"F64"}),
    "next_state": frozenset({"I32"}),
    "prob": frozenset({"F64"}),
    "starts?": Integers,
}

KINDS: dict[str, Kind] = {
    # what arrays a network has depends on its architecture
    "network": Kind(NetworkAgent, NetworkBody, {}, How(_network_record, _check_network, _network, on_saving=False)),
    "table_policy": Kind(
        TablePolicy, Nothing, {"symbols": Integers, "palette": frozenset({"F64"}), "starts?": Integers}
    ),
    "q_table": Kind(
        QTable, Nothing, {"q": frozenset({"F64"}), "visited": frozenset({"BOOL"}), "starts?": Integers}
    ),
    "goal_table": Kind(GoalTable, GoalTableBody, {"symbols": Integers, "starts?": Integers}),
    "planner": Kind(Planner, PlannerBody, _PLANNER),
    "learned_planner": Kind(LearnedPlanner, PlannerBody, {**_PLANNER, "counts?": Integers}),
    "controller": Kind(
        Controller, ControllerBody, {"setpoint": Integers, "gain": frozenset({"F64"}), "position": Integers}
    ),
    **SEARCHERS,
}  # fmt: skip

#: Kinds of agent of the catalogue whose agents have a record here.
SAVED = frozenset({
    "q_table", "goal_table", "controller", "planner", "depth_planner", "learned_planner", "tree_search", "alphazero",
    "path_planner", "network_model", "mc_aixi", "network", "demo_table", "demo_planner", "demo_network",
})  # fmt: skip


@dataclass(frozen=True)
class Record:
    """A description that was checked."""

    type: str
    body: Mapping[str, Any]


def check_saved(kind: str, file: Path) -> None:
    """Raise FileError unless agents of this kind of the catalogue can be saved."""
    if kind not in SAVED:
        fail(file, f"an agent of kind {kind!r} cannot be saved; those that can are {', '.join(sorted(SAVED))}")


def record_of(agent: Agent, file: Path) -> tuple[str, dict[str, object], dict[str, np.ndarray]]:
    """An agent's type, what it is beside its arrays, and its arrays.

    Raises:
        FileError: where agents of this class, or with such numbers, cannot be saved.
    """
    name = next((n for n, kind in KINDS.items() if kind.made(agent)), None)
    if name is None:
        known = ", ".join(k.class_name for k in KINDS.values())
        fail(file, f"an agent of class {type(agent).__name__} cannot be saved; those that can are {known}")
    kind = KINDS[name]
    if kind.how is not None:
        return name, *_taken(agent, kind, kind.how, file)
    body: dict[str, object] = {f: getattr(agent, f) for f in kind.body.model_fields}
    if isinstance(agent, GoalTable):
        body["goals"] = [goal_body(g) for g in agent.goals]
    arrays = {f.rstrip("?"): getattr(agent, f.rstrip("?")) for f in kind.arrays}
    return name, body, {f: np.asarray(a) for f, a in arrays.items() if a is not None}


def _taken(agent: Agent, kind: Kind, how: How, file: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """What would be refused when it is read is not written."""
    if not how.on_saving:
        return how.take(agent)
    try:
        body, arrays = how.take(agent)
        checked(kind.body, body, file, remedy="an agent with this cannot be saved")
        how.check(body, entries_of(arrays, file), file)
        how.verify(agent)
        check_starts(agent)
    except (AgentError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        fail(file, f"an agent cannot be saved that could not be read: {error}")
    return body, arrays


def check_record(name: str, body: Mapping[str, Any], entries: Mapping[str, Entry], file: Path) -> Record:
    """Check a description, and the names and types of its arrays, before any array is read.

    Raises:
        FileError: with what is wrong.
    """
    if name not in KINDS:
        fail(file, unknown("type of agent", name, KINDS))
    kind = KINDS[name]
    checked(kind.body, body, file)
    if kind.how is not None:
        kind.how.check(body, entries, file)
        return Record(name, body)
    known = {field.rstrip("?"): types for field, types in kind.arrays.items()}
    needed = {field for field in kind.arrays if not field.endswith("?")}
    if not needed <= set(entries) <= set(known):
        fail(
            file,
            f"a {name} has the arrays {', '.join(known)}; the file has {', '.join(sorted(entries))[:200] or 'none'}",
        )
    for field, entry in entries.items():
        check_type(field, entry, known[field], file)
    return Record(name, body)


def rebuild(record: Record, arrays: Mapping[str, np.ndarray]) -> Agent:
    """The agent of a checked description and its arrays. Raises the classes' own errors, or ValueError."""
    kind = KINDS[record.type]
    if kind.how is not None:
        agent = kind.how.make(record.body, arrays)
        kind.how.verify(agent)
        check_starts(agent)
        return agent
    body = dict(record.body)
    if record.type == "goal_table":
        body["goals"] = tuple(goal_from(g) for g in body["goals"])
    assert not isinstance(kind.cls, str)
    make: Callable[..., Agent] = kind.cls
    agent = make(**{name: own(array) for name, array in arrays.items()}, **body)
    if isinstance(agent, QTable) and agent.visited.shape != (agent.n_states,):
        raise ValueError(f"visited needs shape ({agent.n_states},), got {agent.visited.shape}")
    check_starts(agent)
    return agent
