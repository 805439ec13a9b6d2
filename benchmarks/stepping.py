"""Environment steps per second: the vector interface, and fused rollouts."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import gymnasium
import numba
import numpy as np

from benchmarks.timing import Effort, Line, Race, Work, agree
from retarget.envs import make_world, rollout
from retarget.exact import best_actions, reach_values
from retarget.rng import stream

TOPIC = "stepping"
SIZE, COPIES, PEER_COPIES, ROWS, PEER_ROWS, EPISODES = 13, 8192, 64, 32, 32, 8192 * 16
CHAINS = 64


@numba.njit
def lookups(actions: np.ndarray, table: np.ndarray, n_actions: int, state: np.ndarray) -> None:
    """The limit: nothing but `state = table[state, action]`. 16 bytes a step: an action, a state in and out."""
    width = np.uint32(n_actions)
    for i in range(state.size):
        state[i] = table[np.uint32(state[i]) * width + np.uint32(actions[i])]


@numba.njit
def lookups_and_outputs(
    actions: np.ndarray,
    table: np.ndarray,
    n_actions: int,
    state: np.ndarray,
    obs: np.ndarray,
    reward: np.ndarray,
    ended: np.ndarray,
) -> None:
    """As `lookups`, and writes what the interface returns: 30 bytes a step. No counts, checks or new episodes."""
    width = np.uint32(n_actions)
    for i in range(state.size):
        code = table[np.uint32(state[i]) * width + np.uint32(actions[i])]
        state[i] = code >> 1
        obs[i] = code >> 1
        reward[i] = code & 1
        ended[i] = code & 1


@numba.njit
def chains(successor: np.ndarray, state: np.ndarray, steps: int) -> None:
    """The limit of a rollout: 64 chains side by side, one lookup a step, no ends, no counts. All of it stays in L1."""
    s = state.copy()
    for _ in range(steps):
        for j in range(s.size):
            s[j] = successor[np.uint32(s[j])]
    state[:] = s


@numba.njit
def random_chains(successor: np.ndarray, width: int, state: np.ndarray, steps: int) -> None:
    """As `chains`, with half a SplitMix64 draw a step that picks among `width` successors. `steps` is even."""
    s = state.copy()
    drawn = np.zeros(s.size, np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for i in range(steps // 2):
        for j in range(s.size):
            x = (np.uint64(i) * np.uint64(s.size) + np.uint64(j)) * np.uint64(0x9E3779B97F4A7C15)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            drawn[j] = x ^ (x >> np.uint64(31))
        for j in range(s.size):
            slot = (drawn[j] >> np.uint64(32)) * np.uint64(width) >> np.uint64(32)
            s[j] = successor[np.uint64(np.uint32(s[j])) * np.uint64(width) + slot]
        for j in range(s.size):
            slot = (drawn[j] & low) * np.uint64(width) >> np.uint64(32)
            s[j] = successor[np.uint64(np.uint32(s[j])) * np.uint64(width) + slot]
    state[:] = s


class Stepper:
    """Steps a vector environment with actions drawn beforehand, and goes on from call to call."""

    def __init__(self, envs: gymnasium.vector.VectorEnv, rows: int) -> None:
        self.envs = envs
        self.steps = rows * envs.num_envs
        n_actions = int(envs.single_action_space.n)  # type: ignore[attr-defined]
        self.actions = list(stream(0, "bench_actions").integers(n_actions, size=(rows, envs.num_envs)))
        envs.reset(seed=0)

    def __call__(self) -> None:
        step = self.envs.step
        for row in self.actions:
            step(row)


def _peer() -> Stepper:
    return Stepper(gymnasium.make_vec("FrozenLake-v1", num_envs=PEER_COPIES, vectorization_mode="sync"), PEER_ROWS)


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    return [*_interface(effort), *_rollouts(effort)]


def _interface(effort: Effort) -> list[Line]:
    envs = gymnasium.make_vec(
        "retarget/FourRooms-v0", size=SIZE, num_envs=COPIES, vectorization_mode="vector_entry_point"
    )
    ours, peer = Stepper(envs, ROWS), _peer()
    world = make_world("FourRooms", size=SIZE)
    model, goal = world.model, world.goal.mask(world.model.n_states)
    table = model.next_state[:, :, 0].reshape(-1).astype(np.int32)
    coded = (2 * table + goal[table]).astype(np.int32)
    _check_steps(envs, table, goal, ours.actions)
    state, obs = np.zeros(COPIES, np.int32), np.empty(COPIES, np.int32)
    reward, ended = np.empty(COPIES), np.empty((2, COPIES), np.uint8)
    outputs = (state, obs, reward, ended.reshape(-1)[:COPIES])

    def bare() -> None:
        for row in ours.actions:
            lookups(row, table, model.n_actions, state)

    def with_outputs() -> None:
        for row in ours.actions:
            lookups_and_outputs(row, coded, model.n_actions, *outputs)

    name = f"make_vec FourRooms({SIZE}) x {COPIES:,}"
    sync = f"SyncVectorEnv of FrozenLake x {PEER_COPIES}"
    alone = "compiled loop, lookups only (16 B a step)"
    written = "compiled loop, lookups and outputs (30 B a step)"
    race = Race({name: ours, sync: peer, alone: bare, written: with_outputs}, effort)
    units = {name: ours.steps, sync: peer.steps, alone: ours.steps, written: ours.steps}
    return [
        race.line(name, sync, topic=TOPIC, unit="steps", units=units, bar=1000),
        race.line(name, written, topic=TOPIC, unit="steps", units=units, kind="limit"),
        race.line(name, alone, topic=TOPIC, unit="steps", units=units, kind="limit"),
    ]


def _check_steps(envs: gymnasium.vector.VectorEnv, table: np.ndarray, goal: np.ndarray, actions: list) -> None:
    """Step by step against the table: a fast step that goes to a wrong place is worth nothing."""
    before, _ = envs.reset(seed=1)
    done = np.zeros(COPIES, np.bool_)
    for row in actions:
        after, reward, term, trunc, _ = envs.step(row)
        going = ~done
        expected = table[before[going].astype(np.int64) * int(envs.single_action_space.n) + row[going]]  # type: ignore[attr-defined]
        agree("successor states", (after[going] == expected).all())
        agree("rewards and ends", (reward[going] == goal[expected]).all() and (term[going] == goal[expected]).all())
        before, done = after, term | trunc
    envs.reset(seed=0)


def _rollouts(effort: Effort) -> list[Line]:
    world = make_world("FourRooms", size=SIZE)
    model = world.model
    free = np.setdiff1d(world.start_states, world.goal.states)
    starts = np.resize(free, EPISODES).astype(np.int32)
    best = best_actions(model, world.goal, gamma=0.95).argmax(1)
    even = np.full((model.n_states, model.n_actions), 1.0 / model.n_actions)

    def fixed() -> object:
        return rollout(world, best, starts=starts, horizon=1000)

    def drawn() -> object:
        return rollout(world, even, starts=starts[: EPISODES // 16], horizon=1000)

    done, wandered = (rollout(world, p, starts=starts, horizon=1000) for p in (best, even))
    _check_returns(world, best, even, done.returns, wandered.returns, starts)
    successor = model.next_state[np.arange(model.n_states), best, 0].astype(np.int32)
    every = model.next_state[:, :, 0].reshape(-1).astype(np.int32)
    state = np.resize(free, CHAINS).astype(np.int32)
    turns = 20_000
    peer = _peer()
    names = {
        "fixed": f"rollout(), fixed policy, {EPISODES:,} episodes",
        "drawn": f"rollout(), uniform policy, {EPISODES // 16:,} episodes",
        "peer": f"SyncVectorEnv of FrozenLake x {PEER_COPIES}",
        "chains": "compiled loop, lookups only (in L1)",
        "random": "compiled loop, half a draw and one lookup a step",
    }
    work: dict[str, Work] = {
        "fixed": fixed,
        "drawn": drawn,
        "peer": peer,
        "chains": lambda: chains(successor, state, turns),
        "random": lambda: random_chains(every, model.n_actions, state, turns),
    }
    few = rollout(world, even, starts=starts[: EPISODES // 16], horizon=1000)
    steps = {
        "fixed": done.env_steps,
        "drawn": few.env_steps,
        "peer": peer.steps,
        "chains": CHAINS * turns,
        "random": CHAINS * turns,
    }
    race = Race({names[k]: w for k, w in work.items()}, effort)
    units = {names[k]: float(n) for k, n in steps.items()}
    out = []
    for ours, limit in (("fixed", "chains"), ("drawn", "random")):
        aim = 5000 if ours == "fixed" else None
        out.append(race.line(names[ours], names["peer"], topic=TOPIC, unit="steps", units=units, aim=aim))
        out.append(race.line(names[ours], names[limit], topic=TOPIC, unit="steps", units=units, kind="limit"))
    return out


def _check_returns(
    world: object, best: np.ndarray, even: np.ndarray, fixed: np.ndarray, drawn: np.ndarray, starts: np.ndarray
) -> None:
    """Against the exact values: equal for the fixed policy, within six standard errors for the drawn one."""
    model, goal = world.model, world.goal  # type: ignore[attr-defined]
    exact = reach_values(model, np.eye(model.n_actions)[best], goal, gamma=0.95)
    agree("returns of the fixed policy", np.abs(fixed - exact[starts]).max() < 1e-12)
    exact = reach_values(model, even, goal, gamma=0.95)
    error = drawn - exact[starts]
    agree("returns of the drawn policy", abs(error.mean()) < 6 * error.std() / np.sqrt(error.size))
