"""`check_world`: holds any world, a user's own included, to the laws of the protocol."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np

from retarget.envs.catalogue import find_entry
from retarget.envs.layouts import reachable
from retarget.errors import GoalError, RetargetError, WorldError
from retarget.goal import StateGoal
from retarget.rng import stream
from retarget.world import FiniteModel, WorldSpec

#: Bound on the chance that `check_world` rejects a correct world, by a union of Hoeffding's inequalities.
FALSE_ALARM_RATE = 1e-9
DRAWS_PER_ROW = 400
MAX_STOCHASTIC_ROWS = 64
MAX_EXACT_ROWS = 4000
MAX_GOALS = 64


def check_world(world: Any, *, seed: int = 0) -> None:
    """Check that a world obeys the protocol; a companion of Gymnasium's `check_env`.

    A world with continuous states goes to `retarget.envs.control.check.check_box_world`, which names its own laws.

    Checked in finite worlds, by name: `protocol` (everything is there), `spec` (it rebuilds the same world), `model`,
    `places` (goals and states round trip), `goals` (each can be reached), `reset` (options are honoured, unknown ones
    refused, no start lies in the goal), `observations` (in their space), `steps` (the environment moves as its model
    says, and ends and pays on entering the goal), `goal_free` (the model does not change with the goal), `determinism`
    (same seed, same episode). Up to 4,000 state-action pairs are stepped, all of them in small worlds; of those with
    several successors up to 64 are stepped 400 times each, and frequencies compared by Hoeffding bounds under which a
    correct world is rejected with probability below 1e-9.

    The world's goal in force is as before afterwards; its current episode is not.

    Args:
        world: the world, or a Gymnasium wrapper around it.
        seed: names the random streams.

    Raises:
        WorldError: naming the first law that is broken, and how.

    >>> from retarget.envs import make_world
    >>> check_world(make_world("FourRooms", size=7, slip=0.2))
    """
    bare = getattr(world, "unwrapped", world)
    if not hasattr(bare, "model"):
        from retarget.envs.control.check import check_box_world, continuous

        if continuous(bare):
            check_box_world(bare, seed=seed)
            return
    _protocol(bare)
    goal = bare.goal
    checker = _Checker(bare, seed)
    for law in (checker.spec, checker.model, checker.places, checker.goals, checker.resets, checker.steps,
                checker.frequencies, checker.goal_free, checker.determinism):  # fmt: skip
        law()
    bare.reset(seed=seed, options={"goal": goal})


def _fail(law: str, what: str) -> NoReturn:
    raise WorldError(f"the world breaks the law {law!r}: {what}")


def _protocol(world: Any) -> None:
    needed = (
        "spec_data",
        "model",
        "goal",
        "start_states",
        "goals",
        "coordinates",
        "action_moves",
        "as_goal",
        "as_state",
    )
    for name in (*needed, "reset", "step", "observation_space", "action_space"):
        if not hasattr(world, name):
            _fail("protocol", f"it has no {name!r}; give it one, as retarget.world.FiniteWorld says")
    kinds = {
        "spec_data": WorldSpec,
        "model": FiniteModel,
        "goal": StateGoal,
        "start_states": np.ndarray,
        "goals": tuple,
    }
    for name, kind in kinds.items():
        if not isinstance(getattr(world, name), kind):
            _fail("protocol", f"{name} must be a {kind.__name__}, got {type(getattr(world, name)).__name__}")
    n_actions = getattr(world.action_space, "n", None)
    if n_actions != world.model.n_actions:
        _fail("protocol", f"the model has {world.model.n_actions} actions, the action space {n_actions}")
    starts = world.start_states
    if starts.ndim != 1 or starts.dtype.kind not in "iu" or not len(starts):
        _fail("protocol", f"start_states must be a non-empty int array [N], got shape {starts.shape} of {starts.dtype}")
    if starts.min() < 0 or starts.max() >= world.model.n_states:
        _fail("protocol", f"start_states must lie in 0 to {world.model.n_states - 1}")


class _Checker:
    def __init__(self, world: Any, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.dynamics: FiniteModel = world.model
        self.stated = world.as_goal(dict(world.spec_data.options).get("goal", world.goal))
        self.rng = stream(seed, "check_world")

    # -- helpers ------------------------------------------------------------------------------------------------

    def state(self, obs: Any, info: Any) -> int:
        """The state the environment is in: `info["state"]`, else an index observation."""
        if isinstance(info, dict) and "state" in info:
            return int(info["state"])
        if (
            isinstance(obs, (int, np.integer))
            and getattr(self.world.observation_space, "n", 0) == self.dynamics.n_states
        ):
            return int(obs)
        _fail("reset", "neither the observation nor info['state'] tells the state; put the state into info['state']")

    def begin(self, **options: object) -> int:
        obs, info = self.world.reset(options=options)
        if obs not in self.world.observation_space:
            _fail("observations", f"reset gave {obs!r}, which is not in {self.world.observation_space}")
        return self.state(obs, info)

    def move(self, state: int, action: int) -> int:
        """One step, checked against goal, reward and observation space; the state it led to."""
        obs, reward, terminated, truncated, info = self.world.step(action)
        after = self.state(obs, info)
        if obs not in self.world.observation_space:
            _fail("observations", f"step gave {obs!r}, which is not in {self.world.observation_space}")
        entered = after in self.world.goal.states
        if bool(terminated) != entered or (entered and truncated):
            _fail("steps", f"from state {state}, action {action} led to {after}; terminated={terminated}, "
                  f"truncated={truncated}, although the goal is {self.world.goal.states}")  # fmt: skip
        if float(reward) != float(entered):
            _fail("steps", f"entering state {after} paid {reward}; it must pay 1.0 in the goal and 0.0 elsewhere")
        return after

    def some_goals(self, count: int) -> list[StateGoal]:
        pool = self.world.goals
        picked = self.rng.permutation(len(pool))[:count]
        return [pool[int(i)] for i in picked]

    # -- laws ---------------------------------------------------------------------------------------------------

    def spec(self) -> None:
        from gymnasium.envs.registration import registry

        from retarget.envs.make import make_world

        spec = self.world.spec_data
        if find_entry(spec.id) is None and spec.id not in registry:
            return  # a world of the user's own, which nothing here could rebuild
        again = make_world(spec)
        other_goal = "goal" in dict(spec.options) and again.goal != self.stated
        if again.model.digest != self.dynamics.digest or other_goal:
            _fail("spec", f"make_world({spec.label}) builds another world")

    def model(self) -> None:
        model = self.dynamics
        if np.abs(model.prob.sum(-1) - 1).max() > 1e-9 or model.prob.min() < 0:
            _fail("model", "transition probabilities are no distribution")
        if model.next_state.flags.writeable or model.prob.flags.writeable:
            _fail("model", "the model's arrays can be written; make them read-only")

    def places(self) -> None:
        world, n = self.world, self.dynamics.n_states
        where = world.coordinates
        if where is not None and where.shape != (n, 2):
            _fail("places", f"coordinates must have shape ({n}, 2), got {where.shape}")
        moves = world.action_moves
        if moves is not None and moves.shape != (self.dynamics.n_actions, 2):
            _fail("places", f"action_moves must have shape ({self.dynamics.n_actions}, 2), got {moves.shape}")
        for s in range(n) if n <= MAX_EXACT_ROWS else self.rng.integers(n, size=MAX_EXACT_ROWS).tolist():
            if (
                world.as_state(s) != s
                or world.as_goal(s) != StateGoal.of([s])
                or world.as_goal({s}) != StateGoal.of([s])
            ):
                _fail("places", f"state {s} does not come back from as_state or as_goal")
            if where is None:
                continue
            cell = (int(where[s, 0]), int(where[s, 1]))
            if s not in world.as_goal(cell).states or tuple(where[world.as_state(cell)]) != cell:
                _fail("places", f"cell {cell} of state {s} does not come back from as_state or as_goal")
        for goal in self.some_goals(MAX_GOALS):
            if world.as_goal(goal) != goal:
                _fail("places", f"goal {goal} does not come back from as_goal")
        for bad in (n, -1, "nowhere", None, 1.5):
            self.refuses(lambda value=bad: world.as_goal(value), GoalError, "places", f"goal {bad!r}")
            self.refuses(lambda value=bad: world.as_state(value), GoalError, "places", f"start {bad!r}")

    def refuses(self, call: Any, kind: type[RetargetError], law: str, what: str) -> None:
        try:
            call()
        except kind as error:
            if "\n" in str(error):
                _fail(law, f"the message on {what} is more than one line")
            return
        except Exception as error:
            _fail(law, f"{what} raised {type(error).__name__} instead of {kind.__name__}")
        _fail(law, f"{what} was accepted; raise {kind.__name__}")

    def goals(self) -> None:
        if not self.world.goals:
            _fail("goals", "there is no goal that a study could draw")
        for goal in self.some_goals(MAX_GOALS):
            outside = np.setdiff1d(self.world.start_states, goal.states)
            found = reachable(
                self.dynamics.next_state, outside, prob=self.dynamics.prob, stop=goal.mask(self.dynamics.n_states)
            )
            if not len(outside) or not found[list(goal.states)].any():
                _fail("goals", f"goal {goal.label} cannot be reached from any start outside it")

    def resets(self) -> None:
        world, starts = self.world, set(self.world.start_states.tolist())
        world.reset(seed=self.seed)
        for goal in self.some_goals(5):
            for draw in range(40):
                state = self.begin(goal=goal) if draw == 0 else self.begin()
                if world.goal != goal:
                    _fail("reset", f"the goal {goal.label} was set, but {world.goal.label} is in force")
                if state in goal.states or state not in starts:
                    _fail("reset", f"an episode began in state {state}: in the goal {goal.label}, or not a start state")
            outside = sorted(starts - set(goal.states))
            for start in (outside[0], outside[-1]):
                if self.begin(start=start) != start:
                    _fail("reset", f"the start {start} was asked, but the episode began elsewhere")
            inside = goal.states[0]
            self.refuses(lambda s=inside: world.reset(options={"start": s}), GoalError, "reset", "a start in the goal")
        self.refuses(lambda: world.reset(options={"gaol": 0}), WorldError, "reset", "the unknown option 'gaol'")

    def rows(self) -> np.ndarray:
        """Int `[N, 2]` state-action pairs to step: all outside the goal, or a sample of them."""
        n, a = self.dynamics.n_states, self.dynamics.n_actions
        pairs: np.ndarray = np.stack(np.divmod(np.arange(n * a), a), axis=1)
        pairs = pairs[~self.world.goal.mask(n)[pairs[:, 0]]]
        if len(pairs) > MAX_EXACT_ROWS:
            pairs = pairs[np.sort(self.rng.choice(len(pairs), MAX_EXACT_ROWS, replace=False))]
        return pairs

    def steps(self) -> None:
        for goal in self.some_goals(2):
            self.world.reset(seed=self.seed, options={"goal": goal})
            for state, action in self.rows().tolist():
                self.begin(start=state)
                after = self.move(state, action)
                possible = self.dynamics.next_state[state, action][self.dynamics.prob[state, action] > 0]
                if after not in possible:
                    _fail("steps", f"from state {state}, action {action} led to {after}; the model allows {possible}")

    def frequencies(self) -> None:
        pairs = self.rows()
        several = (self.dynamics.prob[pairs[:, 0], pairs[:, 1]] > 0).sum(1) > 1
        pairs = pairs[several]
        if not len(pairs):
            return
        pairs = pairs[self.rng.permutation(len(pairs))[:MAX_STOCHASTIC_ROWS]]
        tests = sum(len(np.unique(self.dynamics.next_state[s, a])) for s, a in pairs) + 1
        self.world.reset(seed=self.seed)
        surplus = 0.0
        for state, action in pairs.tolist():
            nxt, prob = self.dynamics.next_state[state, action], self.dynamics.prob[state, action]
            chance = {int(s): float(prob[nxt == s].sum()) for s in np.unique(nxt)}
            count = dict.fromkeys(chance, 0)
            for _ in range(DRAWS_PER_ROW):
                self.begin(start=state)
                after = self.move(state, action)
                if after not in count:
                    _fail("steps", f"from state {state}, action {action} led to {after}, which the model rules out")
                count[after] += 1
            for after, p in chance.items():
                if abs(count[after] / DRAWS_PER_ROW - p) > _hoeffding(DRAWS_PER_ROW, tests):
                    _fail("steps", f"from state {state}, action {action} led to {after} in {count[after]} of "
                          f"{DRAWS_PER_ROW} draws; the model says {p:.4g}")  # fmt: skip
            likely = max(chance, key=lambda s: chance[s])
            surplus += count[likely] - DRAWS_PER_ROW * chance[likely]
        total = DRAWS_PER_ROW * len(pairs)
        if abs(surplus / total) > _hoeffding(total, tests):
            _fail("steps", f"over {total} draws the likeliest successors came {surplus / total:+.3f} off the model")

    def goal_free(self) -> None:
        for goal in self.some_goals(3):
            self.world.reset(options={"goal": goal})
            if self.world.model.digest != self.dynamics.digest:
                _fail("goal_free", f"the model changed when the goal became {goal.label}")

    def determinism(self) -> None:
        actions = self.rng.integers(self.dynamics.n_actions, size=200).tolist()
        runs = [self._episodes(actions) for _ in range(2)]
        for t, (first, second) in enumerate(zip(*runs, strict=True)):
            if not _same(first, second):
                _fail("determinism", f"two runs with the seed {self.seed} differ at step {t}")

    def _episodes(self, actions: list[int]) -> list[Any]:
        obs, _ = self.world.reset(seed=self.seed)
        seen: list[Any] = [obs]
        for action in actions:
            obs, reward, terminated, truncated, _ = self.world.step(action)
            seen.append((obs, float(reward), bool(terminated), bool(truncated)))
            if terminated or truncated:
                seen.append(self.world.reset()[0])
        return seen


def _hoeffding(draws: int, tests: int) -> float:
    """How far a mean of draws in [0, 1] may lie from its expectation, at the false-alarm rate over all tests."""
    return math.sqrt(math.log(2 * tests / FALSE_ALARM_RATE) / (2 * draws))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(_same, a, b))
    return bool(np.array_equal(a, b))
