"""What policies are shown: the same places under one goal and under another, episodes, or any arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from retarget.analysis.layers.collected import Inputs, Labelled
from retarget.analysis.layers.readable import Batch
from retarget.errors import LayersError
from retarget.rng import stream
from retarget.world import BoxWorld, FiniteWorld

if TYPE_CHECKING:
    from retarget.agents.neural import NetworkAgent
    from retarget.goal import Goal
    from retarget.world import World

#: Rows of each class, unless told otherwise: states of finite worlds are all taken where there are no more than these.
DEFAULT_ROWS = 2048
#: Steps of an episode that are looked at, unless told otherwise.
DEFAULT_STEPS = 32


@dataclass(frozen=True, eq=False)
class ArrayInputs(Inputs):
    """Two classes of inputs that are arrays, as the network takes them. Negative rows are numbered first.

    Attributes:
        negative, positive: `[N0, ...]` and `[N1, ...]`, of the same shape and kind otherwise.
        labels: what the classes are called.
        steps: bool `[N0, T]` and `[N1, T]`: the steps of each row that there are (rows are padded at the end); None
            where each row is one step.
        paired: whether rows of equal number in the two are pairs, which then come in one batch.

    >>> inputs = ArrayInputs(np.zeros((2, 3)), np.ones((2, 3)), paired=True)
    >>> [(b.label.tolist(), b.rank.tolist()) for b in inputs.batches(3)]
    [([0, 1], [0, 0]), ([0, 1], [1, 1])]
    """

    negative: np.ndarray
    positive: np.ndarray
    labels: tuple[str, str] = ("negative", "positive")
    steps: tuple[np.ndarray, np.ndarray] | None = None
    paired: bool = False

    def __post_init__(self) -> None:
        for name, label in zip(("negative", "positive"), self.labels, strict=True):
            array = np.asarray(getattr(self, name))
            if array.ndim < 1 or not len(array):
                raise LayersError(f"class {label!r} has no rows; both classes need at least one")
            if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
                raise LayersError(f"class {label!r} must hold finite numbers, its type is {array.dtype}")
            object.__setattr__(self, name, array)
        shapes = self.negative.shape[1:], self.positive.shape[1:]
        if shapes[0] != shapes[1] or self.negative.dtype.kind != self.positive.dtype.kind:
            raise LayersError(f"the classes' rows must be alike, got shapes {shapes[0]} and {shapes[1]}")
        if self.paired and len(self.negative) != len(self.positive):
            raise LayersError(
                f"pairs need as many rows in both classes, got {len(self.negative)}, {len(self.positive)}"
            )

    @property
    def names(self) -> tuple[str, str]:
        return self.labels

    @property
    def count(self) -> tuple[int, int]:
        return len(self.negative), len(self.positive)

    def batches(self, size: int) -> Iterator[Labelled]:
        n = self.count
        label, rank = np.repeat([0, 1], n), np.concatenate([np.arange(k) for k in n])
        order, step = np.arange(sum(n)), size
        if self.paired:
            if size < 2:
                raise LayersError("pairs need a batch size of at least 2")
            order, step = np.lexsort((label, rank)), size - size % 2
        for begin in range(0, len(order), step):
            rows = order[begin : begin + step]
            yield Labelled(self._batch(rows, label[rows], rank[rows]), label[rows], rows, rank[rows])

    def _batch(self, rows: np.ndarray, label: np.ndarray, rank: np.ndarray) -> Batch:
        sides = (self.negative, self.positive)
        inputs = np.empty((len(rows), *self.negative.shape[1:]), dtype=np.result_type(*sides))
        mask = np.ones((len(rows), 1 if self.steps is None else self.steps[0].shape[1]), dtype=np.bool_)
        for c, side in enumerate(sides):
            mine = label == c
            inputs[mine] = side[rank[mine]]
            if self.steps is not None:
                mask[mine] = self.steps[c][rank[mine]]
        return Batch(inputs, mask)


def sensed(agent: NetworkAgent, obs: np.ndarray, goal: Goal | None = None) -> np.ndarray:
    """What a policy network takes where it sees observations: behind its sensor, with its goal.

    Args:
        agent: whose sensor and goal slot.
        obs: int `[B]` states or real `[B, O]` observations.
        goal: written into the slot; None for the goal that it has.

    Returns:
        float `[B, ...]`, or int64 tokens `[B, T]`.
    """
    import torch

    aimed = agent if goal is None else agent.aimed(goal)
    slot = None if aimed.goal is None else torch.tensor(aimed.goal)
    x = torch.tensor(np.asarray(obs))
    found: np.ndarray = agent.sensor(x, slot, dtype=agent.dtype).numpy()
    return found


def goal_inputs(
    agent: NetworkAgent,
    world: World,
    negative: object,
    positive: object,
    *,
    n: int = DEFAULT_ROWS,
    horizon: int = DEFAULT_STEPS,
    seed: int = 0,
) -> ArrayInputs:
    """The same situations under one goal (negative) and under another (positive), for a policy with a goal slot.

    Without memory, rows are places, paired: in a finite world its states (all, or a sample of n), elsewhere n
    observations from episodes toward either goal, half from each. With memory, rows are episodes from the same
    starts, one toward each goal: paired by start, as many as there are, n at most.

    Args:
        agent: a policy network with a goal slot.
        world: that it is for.
        negative, positive: goals, as `world.as_goal` takes them.
        n: rows of each class at most.
        horizon: steps of the episodes that are followed.
        seed: of samples, starts and random actions.

    Raises:
        LayersError: for a policy without a goal slot, or a goal that it cannot express.

    >>> from retarget.agents.network_for import network_for
    >>> from retarget.envs import make_world
    >>> world = make_world("OpenGrid", size=5)
    >>> agent = network_for(world, world.goals[0], goals=world.goals, hidden=(8,))
    >>> inputs = goal_inputs(agent, world, world.goals[0], world.goals[1])
    >>> inputs.count == (world.model.n_states, world.model.n_states), inputs.negative.shape[1]
    (True, 50)
    """
    goals = world.as_goal(negative), world.as_goal(positive)
    for goal in goals:
        if agent.goal_input is None or not agent.slot_writes(goal):
            raise LayersError(f"this policy cannot be given the goal {goal.label}; it needs a slot that expresses it")
    if n < 1 or horizon < 1:
        raise LayersError(f"n and horizon must be at least 1, got {n} and {horizon}")
    labels = (goals[0].label, goals[1].label)
    if agent.has_memory:
        seen = [_episodes(agent, world, goal, n, horizon, seed) for goal in goals]
        rows = [_sensed_steps(agent, obs, goal) for (obs, _), goal in zip(seen, goals, strict=True)]
        return ArrayInputs(rows[0], rows[1], labels, (seen[0][1], seen[1][1]), paired=True)
    if isinstance(world, FiniteWorld):
        places = np.arange(world.model.n_states)
        if len(places) > n:
            places = np.sort(stream(seed, "layers_states").choice(places, n, replace=False))
    else:
        found = [_visited(*_episodes(agent, world, goal, n, horizon, seed)) for goal in goals]
        random = stream(seed, "layers_places")
        shares = [obs[np.sort(random.choice(len(obs), min(k, len(obs)), replace=False))]
                  for obs, k in zip(found, (n - n // 2, n // 2), strict=True)]  # fmt: skip
        places = np.concatenate(shares)
    tokens = agent.sensor.join == "token" or agent.architecture.kind == "transformer"
    rows = [sensed(agent, places, goal) for goal in goals]
    # tokens are steps of the network itself: its last one is where it decides
    steps = np.ones(rows[0].shape[:2], dtype=np.bool_) if tokens else None
    return ArrayInputs(rows[0], rows[1], labels, None if steps is None else (steps, steps), paired=True)


def _sensed_steps(agent: NetworkAgent, obs: np.ndarray, goal: Goal) -> np.ndarray:
    """Network inputs `[N, T, ...]` of observations `[N, T, ...]`."""
    flat = sensed(agent, obs.reshape(-1, *obs.shape[2:]), goal)
    return flat.reshape(*obs.shape[:2], *flat.shape[1:])


def _visited(obs: np.ndarray, live: np.ndarray) -> np.ndarray:
    return np.asarray(obs[live])


def _episodes(
    agent: NetworkAgent, world: World, goal: Goal, n: int, horizon: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """What a policy sees on its way to a goal: observations `[N, T, ...]`, and bool `[N, T]`: it was still on its way.

    Both goals are tried from the same starts.
    """
    from retarget.trials import actor, choose, follow

    aimed, random = agent.aimed(goal), stream(seed, "layers_episodes")
    if isinstance(world, BoxWorld):
        starts = world.starts(min(n, 256), rng=stream(seed, "layers_starts"))
        traces = follow(world, actor(aimed, world, rng=random), starts, goal, horizon=horizon)  # type: ignore[arg-type]
        t, live = max(len(traces.live), 1), traces.live
        if not len(live):
            live = np.zeros((1, len(starts)), dtype=np.bool_)
        obs = np.stack([world.observe(s) for s in traces.states[:t]], axis=1)
        return obs, _begun(live.T)
    states = np.asarray(world.start_states)
    if len(states) > n:
        states = np.sort(stream(seed, "layers_starts").choice(states, n, replace=False))
    inside = goal.mask(world.model.n_states)  # type: ignore[union-attr]
    seen, going, carry = [], [], None
    live = np.ones(len(states), dtype=np.bool_)
    for _ in range(horizon):
        seen.append(states)
        going.append(live)
        out, carry = aimed.policy(states, carry)
        action = choose(np.asarray(out), random)
        chance = world.model.prob[states, action]
        slot = (np.cumsum(chance, axis=1) < random.random(len(states))[:, None]).sum(1)
        after = world.model.next_state[states, action, np.minimum(slot, chance.shape[1] - 1)]
        live = live & ~inside[states]
        states = np.where(live, after, states)
    return np.stack(seen, axis=1), _begun(np.stack(going, axis=1))


def _begun(live: np.ndarray) -> np.ndarray:
    """The same with the first step of every row, which is seen whatever comes of it."""
    live = live.copy()
    live[:, 0] = True
    return live
