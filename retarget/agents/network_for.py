"""Fresh networks that fit a world: what they see of it, how goals are written, an output for each action."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retarget.agents.neural import KINDS, Architecture, Decision, GoalInput, Head, NetworkAgent, Sensor
from retarget.errors import AgentError, unknown
from retarget.goal import Goal
from retarget.rng import stream
from retarget.world import BoxWorld, FiniteWorld, World

#: How a goal can be written for each kind of network in a finite world; the first is the default.
GOAL_INPUTS: dict[str, tuple[str, ...]] = {
    "mlp": ("one_hot", "place", "plane"),
    "gru": ("one_hot", "place", "plane"),
    "cnn": ("plane",),
    "vin": ("plane",),
    "transformer": ("token",),
}
#: Kinds that take vectors, and so fit worlds with continuous states.
VECTOR_KINDS = ("mlp", "gru")
#: What a state of a finite world can look like to each kind; the first is the default.
FEATURES: dict[str, tuple[str, ...]] = {
    "mlp": ("one_hot", "place"),
    "gru": ("one_hot", "place"),
    "cnn": ("image",),
    "vin": ("image",),
    "transformer": ("token", "place"),
}
#: What all states of a world look like takes at most so many numbers (a quarter of a gigabyte).
MAX_NUMBERS = 1 << 26
_OURS = {"inputs", "outputs", "channels", "height", "width", "squash", "scale", "own_map", "n_tokens", "vocabulary"}


@dataclass(frozen=True, eq=False)
class Places:
    """Where the states of a finite world are, with a border of walls of one cell around.

    Attributes:
        place: int `[S, 2]` row and column.
        flags: float32 `[S, F]`: what tells states in one cell apart; F may be 0.
        height, width: of the grid, border included.
    """

    place: np.ndarray
    flags: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, world: FiniteWorld, kind: str) -> Places:
        """Raises AgentError for a world whose states have no place, or that is too large."""
        where = world.coordinates
        if where is None:
            raise AgentError(
                f"{kind} needs a world whose states have coordinates, and {world.spec_data.label} has none; "
                "use kind='mlp' with features='one_hot'"
            )
        place = np.asarray(where, dtype=np.int64)
        place = place - place.min(0) + 1
        height, width = (int(n) for n in place.max(0) + 2)
        return cls(place, _flags(world, place), height, width)

    @property
    def images(self) -> np.ndarray:
        """Float32 `[S, 2 + F, H, W]`: the agent's cell, walls (cells without a state), a plane for each flag."""
        n, (row, col) = len(self.place), self.place.T
        _fits(n * (2 + self.flags.shape[1]) * self.height * self.width, "images of all states", "kind='mlp'")
        out = np.zeros((n, 2 + self.flags.shape[1], self.height, self.width), dtype=np.float32)
        out[np.arange(n), 0, row, col] = 1.0
        out[:, 1] = 1.0
        out[:, 1, row, col] = 0.0
        out[:, 2:] = self.flags[:, :, None, None]
        return out

    @property
    def vectors(self) -> np.ndarray:
        """Float32 `[S, 2 + F]`: row and column in [-1, 1], and the flags."""
        centre = (np.array([self.height, self.width]) - 1) / 2
        return np.concatenate([(self.place - centre) / np.maximum(centre - 1, 1), self.flags], axis=1, dtype=np.float32)


def _flags(world: FiniteWorld, place: np.ndarray) -> np.ndarray:
    """The world's own flags where it has any; else which of the states in its cell each state is, one-hot."""
    own = getattr(getattr(world, "layout", None), "flags", None)
    known = isinstance(own, np.ndarray) and own.ndim == 2 and len(own) == len(place)
    if known and len(np.unique(np.concatenate([place, own], axis=1), axis=0)) == len(place):
        return np.asarray(own, dtype=np.float32)
    _, cell = np.unique(place, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    order = np.argsort(cell, kind="stable")
    first = np.searchsorted(cell[order], cell[order])
    rank = np.empty(len(cell), dtype=np.int64)
    rank[order] = np.arange(len(cell)) - first
    return np.eye(int(rank.max()) + 1, dtype=np.float32)[rank][:, 1:]


@dataclass(frozen=True, eq=False)
class _Fit:
    """What a world asks of a network: its sensor, its shape, and how goals can be written."""

    sensor: Sensor
    shape: Mapping[str, Any]
    goal_input: GoalInput | None
    action_range: tuple[np.ndarray, np.ndarray] | None = None


def network_for(
    world: World,
    goal: object,
    *,
    kind: str = "mlp",
    goals: Sequence[Goal] | None = None,
    goal_input: str | None = None,
    seed: int = 0,
    decision: Decision = "greedy",
    **options: Any,
) -> NetworkAgent:
    """A network that fits a world, untrained.

    Args:
        world: finite, or with continuous states.
        goal: what it is for, as the world's `as_goal` takes it; written into the slot where there is one.
        kind: `mlp`, `gru`; in finite worlds also `transformer`, and where states have coordinates `cnn` and `vin`.
        goals: training goals, which are then part of the input; None for a network that has one goal and no slot.
        goal_input: how goals are written: `one_hot` (the default of mlp and gru), `place`, `plane` (cnn, vin; mlp and
            gru take it as a vector), `token` (transformer), `set_point` (worlds with continuous states).
        seed: of its weights.
        decision: `greedy` or `sample`.
        options: of the network: see its class in `retarget.agents.networks` (`hidden`, `act`, `convs`, `iterations`,
            …); in finite worlds `features`, what a state looks like: `one_hot` or `place` (mlp, gru), `token` or
            `place` (transformer); and `head`, `logits` or `values`, of discrete actions.

    Raises:
        AgentError: for a kind, goal input or option that is unknown or does not fit the world.
        GoalError: for a goal that is not one of the world's.

    >>> import retarget
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> one = network_for(world, world.goals[0], hidden=(16,))
    >>> list(one.parts)
    ['hidden.0.0.weight', 'hidden.0.0.bias', 'out.weight', 'out.bias', 'steer:hidden.0']
    >>> many = network_for(world, world.goals[0], goals=world.goals[:3], hidden=(16,))
    >>> many.parts["goal"].array.shape, many.policy(world.start_states[:2])[0].shape
    ((25,), (2, 4))
    """
    if kind not in KINDS:
        raise AgentError(unknown("kind of network", kind, KINDS))
    target: Goal = world.as_goal(goal)
    slots = None if goals is None else tuple(world.as_goal(g) for g in goals)
    if goals is not None and not slots:
        raise AgentError("a network for many goals needs at least one training goal, got none; pass goals=(...)")
    features, head = options.pop("features", None), options.pop("head", None)
    if isinstance(world, BoxWorld):
        fit = _fit_box(world, kind, slots, goal_input, features)
    else:
        fit = _fit_finite(world, kind, slots, goal_input, features)
    head = _head(head, fit)
    shape = {**fit.shape, **_checked(kind, options)}
    architecture = Architecture.of(kind, **shape)
    written = fit.goal_input
    if written is not None and slots is not None:
        written = replace(written, goals=slots)
        _told_apart(written, slots)
    return NetworkAgent(
        architecture,
        architecture.initial(seed),
        fit.sensor,
        head=head,
        decision=decision,
        action_range=fit.action_range,
        goal_input=written,
        goal=None if written is None else written.encode(target),
        training_goals=slots,
        seed=seed,
    )


def _head(chosen: str | None, fit: _Fit) -> Head:
    known: tuple[Head, ...] = ("mean",) if fit.action_range is not None else ("logits", "values")
    for head in known:
        if chosen in (None, head):
            return head
    raise AgentError(f"head {chosen!r} does not fit this world, whose actions take {' or '.join(map(repr, known))}")


def _checked(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the network that a user may choose, lists as tuples."""
    module, name = KINDS[kind]
    known = set(inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters) - {"self"}
    known -= _OURS
    for key in options:
        if key not in known:
            raise AgentError(unknown(f"option of {kind}", key, known | {"features", "head"}))
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def _told_apart(written: GoalInput, goals: Sequence[Goal]) -> None:
    seen: dict[bytes, Goal] = {}
    for goal in goals:
        code = written.encode(goal).tobytes()
        if seen.setdefault(code, goal) != goal:
            raise AgentError(
                f"goals {seen[code].label} and {goal.label} look alike to a goal input of kind {written.kind!r}; "
                "leave one out, or use goal_input='one_hot'"
            )


def _goal_kind(chosen: str | None, known: Sequence[str]) -> str:
    if chosen is not None and chosen not in known:
        raise AgentError(unknown("goal input for this network", chosen, known))
    return chosen or known[0]


def _fit_finite(
    world: FiniteWorld, kind: str, goals: Sequence[Goal] | None, goal_input: str | None, features: str | None
) -> _Fit:
    if features is not None and features not in FEATURES[kind]:
        raise AgentError(unknown(f"features of {kind}", features, FEATURES[kind]))
    n_states, n_actions = world.model.n_states, world.model.n_actions
    how = _goal_kind(goal_input, GOAL_INPUTS[kind])
    if kind == "transformer":
        return _fit_tokens(world, goals is not None, features)
    if kind in ("cnn", "vin"):
        return _fit_image(Places.of(world, kind), kind, goals is not None, n_actions)
    if features == "place":
        seen = Places.of(world, "features='place'").vectors
    else:
        _fits(n_states**2, "one-hot vectors of all states", "features='place'")
        seen = np.eye(n_states, dtype=np.float32)
    if goals is None:
        return _Fit(Sensor(seen), {"inputs": seen.shape[1], "outputs": n_actions}, None)
    slot, scale = _vector_slot(world, how)
    sensor = Sensor(seen, join="append", goal_scale=scale)
    return _Fit(sensor, {"inputs": seen.shape[1] + slot.size, "outputs": n_actions}, slot)


def _fit_tokens(world: FiniteWorld, many: bool, features: str | None) -> _Fit:
    """Tokens are the states, or row, column and flags; a goal is always the token of its first state."""
    n_states = vocabulary = world.model.n_states
    tokens = np.arange(n_states, dtype=np.int64)[:, None]
    if features == "place":
        places = Places.of(world, "features='place'")
        columns = np.concatenate([places.place - 1, places.flags.astype(np.int64)], axis=1)
        sizes = [places.height - 2, places.width - 2, *[2] * places.flags.shape[1]]
        before = n_states if many else 0  # the goal's tokens come first
        tokens = columns + before + np.concatenate([[0], np.cumsum(sizes)[:-1]])
        vocabulary = before + sum(sizes)
    slot = GoalInput("token", n_states) if many else None
    shape = {"n_tokens": tokens.shape[1] + int(many), "vocabulary": vocabulary, "outputs": world.model.n_actions}
    return _Fit(Sensor(tokens, join="token" if many else "none"), shape, slot)


def _fits(numbers: int, what: str, remedy: str) -> None:
    if numbers > MAX_NUMBERS:
        raise AgentError(f"{what} take {numbers} numbers, more than {MAX_NUMBERS}; use {remedy} or a smaller world")


def _vector_slot(world: FiniteWorld, how: str) -> tuple[GoalInput, float]:
    """A goal slot that is appended to a vector, and the factor that brings it to order 1."""
    if how == "one_hot":
        return GoalInput("one_hot", world.model.n_states), 1.0
    places = Places.of(world, f"goal_input={how!r}")
    if how == "place":
        return GoalInput("place", 2, place=places.place), 1.0 / max(places.height - 2, places.width - 2)
    return GoalInput("plane", places.height * places.width, place=places.place, columns=places.width), 1.0


def _fit_image(places: Places, kind: str, many: bool, n_actions: int) -> _Fit:
    images, size = places.images, (places.height, places.width)
    shape: dict[str, Any] = {"height": size[0], "width": size[1], "outputs": n_actions}
    shape["channels"] = images.shape[1] + (1 if many else 0)
    if kind == "vin":
        shape["iterations"] = sum(size)  # enough to see across the grid
    if kind == "vin" and not many:
        shape["own_map"] = True  # the image does not show the goal: it has to be learned
    slot = GoalInput("plane", size[0] * size[1], place=places.place, columns=size[1]) if many else None
    return _Fit(Sensor(images, join="plane" if many else "none"), shape, slot)


def _fit_box(
    world: BoxWorld, kind: str, goals: Sequence[Goal] | None, goal_input: str | None, features: str | None
) -> _Fit:
    label = world.spec_data.label
    if kind not in VECTOR_KINDS:
        raise AgentError(
            f"{kind} does not fit {label}, whose observations are vectors; use {' or '.join(VECTOR_KINDS)}"
        )
    if features is not None:
        raise AgentError(f"features are for finite worlds; {label} shows its observations as they are; leave it out")
    _goal_kind(goal_input, ("set_point",))
    mean, scale = observed_range(world)
    n_actions, limits = world.n_actions, world.action_range
    slot, goal_scale = None, 1.0
    if goals is not None:
        slot = GoalInput("set_point", len(world.goal_features), features=tuple(world.goal_features))
        goal_scale = 1.0 / max(1.0, *(abs(c) for g in goals for c in g.centres))  # type: ignore[union-attr]
    sensor = Sensor(mean=mean, scale=scale, join="none" if slot is None else "append", goal_scale=goal_scale)
    shape: dict[str, Any] = {"inputs": world.observation_size + (0 if slot is None else slot.size)}
    if n_actions is not None:
        return _Fit(sensor, {**shape, "outputs": n_actions}, slot)
    assert limits is not None
    low, high = (np.asarray(a, dtype=np.float64) for a in limits)
    top = float(np.abs([low, high]).max())
    return _Fit(sensor, {**shape, "outputs": len(low), "squash": True, "scale": top}, slot, (low, high))


def observed_range(world: BoxWorld, *, lanes: int = 64, steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Centre and inverse half range, float32 `[O]` each, of what is seen under actions that are held for a while.

    Starts alone would say too little: a pole that has hardly moved. The stream is fixed, so that networks of any seed
    see a world alike.
    """
    rng = stream(0, "observed_range", world.spec_data.label)
    state = world.starts(lanes, rng=rng)
    seen = [world.observe(state)]
    action = _random_actions(world, lanes, rng)
    for _ in range(min(steps, world.horizon)):
        fresh = _random_actions(world, lanes, rng)
        anew = rng.random(lanes) < 0.1
        action = np.where(anew.reshape(-1, *[1] * (action.ndim - 1)), fresh, action)
        after, ended = world.advance(state, action)
        state = np.where(ended[:, None], state, after)
        seen.append(world.observe(state))
    every = np.concatenate(seen).astype(np.float64)
    low, high = every.min(0), every.max(0)
    half = (high - low) / 2
    return ((low + high) / 2).astype(np.float32), (1.0 / np.where(half > 1e-6, half, 1.0)).astype(np.float32)


def _random_actions(world: BoxWorld, n: int, rng: np.random.Generator) -> np.ndarray:
    if world.n_actions is not None:
        return rng.integers(world.n_actions, size=n)
    assert world.action_range is not None
    low, high = world.action_range
    return rng.uniform(low, high, size=(n, len(low)))
