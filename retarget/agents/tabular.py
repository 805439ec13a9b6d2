"""Agents that look their action up: a policy table, a table of action values, one table for several goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Carry, Categorical, Part, Real, Scores, SlotWrite, TableView, own
from retarget.errors import AgentError, GoalError
from retarget.goal import StateGoal
from retarget.spend import Spend
from retarget.world import FiniteWorld


def _seen(starts: object) -> np.ndarray | None:
    return None if starts is None else np.unique(np.asarray(starts, dtype=np.int64))


def default_palette(n_actions: int) -> np.ndarray:
    """Float64 `[A + 1, A]`: always action 0, …, always action A-1, uniform."""
    return np.vstack([np.eye(n_actions), np.full((1, n_actions), 1.0 / n_actions)])


@dataclass(frozen=True, eq=False)
class TablePolicy(Agent):
    """One symbol a state: an action, or "act uniformly". The plainest lookup table.

    Attributes:
        symbols: int `[S]`, rows of the palette.
        palette: float64 `[K, A]`; the first A + 1 rows are the pure actions and the uniform distribution. Further rows
            hold other distributions that the table was made with; they can be kept, not written.
        starts: start states of training, where known.

    >>> TablePolicy.from_actions([1, 0], n_actions=2).policy(np.array([0]))[0].tolist()
    [[0.0, 1.0]]
    """

    symbols: np.ndarray
    palette: np.ndarray
    starts: np.ndarray | None = None
    kind = "table_policy"

    def __post_init__(self) -> None:
        palette = np.asarray(self.palette, dtype=np.float64)
        n_actions = palette.shape[-1] if palette.ndim == 2 else 0
        if palette.ndim != 2 or not np.array_equal(palette[: n_actions + 1], default_palette(n_actions)):
            raise AgentError(
                "a palette begins with the pure actions and the uniform distribution; use from_probabilities"
            )
        symbols = np.asarray(self.symbols)
        if symbols.ndim != 1 or symbols.size == 0 or symbols.dtype.kind not in "iu":
            raise AgentError(f"a policy table needs integer symbols [S], got {symbols.dtype} {symbols.shape}")
        if symbols.min() < 0 or symbols.max() >= len(palette):
            bad = int(np.flatnonzero((symbols < 0) | (symbols >= len(palette)))[0])
            raise AgentError(f"state {bad} holds {int(symbols[bad])}; actions are 0 to {n_actions - 1}")
        object.__setattr__(self, "palette", own(palette))
        object.__setattr__(self, "symbols", own(symbols))
        object.__setattr__(self, "starts", _seen(self.starts))

    @classmethod
    def from_actions(cls, actions: Sequence[int] | np.ndarray, *, n_actions: int) -> TablePolicy:
        """From int `[S]` actions."""
        array = np.asarray(actions)
        if array.size and array.dtype.kind in "iu" and array.max() >= n_actions:
            bad = int(array.argmax())
            raise AgentError(f"state {bad} holds action {int(array[bad])}; actions are 0 to {n_actions - 1}")
        return cls(array, default_palette(n_actions))

    @classmethod
    def from_probabilities(cls, probs: np.ndarray, *, starts: np.ndarray | None = None) -> TablePolicy:
        """From float `[S, A]` rows that sum to 1; rows other than pure or uniform ones extend the palette."""
        probs = np.asarray(probs, dtype=np.float64)
        if probs.ndim != 2 or 0 in probs.shape:
            raise AgentError(f"a policy needs probabilities [S, A], got shape {probs.shape}")
        if not np.isfinite(probs).all() or probs.min() < 0 or np.abs(probs.sum(1) - 1).max() > 1e-9:
            raise AgentError("policy rows must be non-negative and sum to 1")
        n_actions = probs.shape[1]
        base = default_palette(n_actions)
        symbols = np.full(len(probs), -1, dtype=np.int64)
        for k, row in enumerate(base):
            symbols[(probs == row).all(1)] = k
        if n_actions == 1:
            symbols[:] = 0
        # a uniform row may carry rounding of its own
        uniform = (symbols < 0) & (np.abs(probs - 1.0 / n_actions) < 1e-12).all(1)
        symbols[uniform] = n_actions
        other = symbols < 0
        extra, index = np.unique(probs[other], axis=0, return_inverse=True)
        symbols[other] = n_actions + 1 + index.reshape(-1)
        return cls(symbols, np.vstack([base, extra]) if len(extra) else base, starts)

    @property
    def n_states(self) -> int:
        return int(self.symbols.size)

    @property
    def n_actions(self) -> int:
        return int(self.palette.shape[1])

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {"policy": Part("policy", "table", self.symbols, Categorical(self.n_actions + 1))}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {"palette": self.palette}

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> TablePolicy:
        self.check_arrays(arrays)
        return replace(self, symbols=arrays.get("policy", self.symbols))

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self.palette[self.symbols[np.asarray(obs)]], None

    def blank(self, seed: int) -> TablePolicy:
        """Uniform everywhere."""
        return TablePolicy(np.full(self.symbols.shape, self.n_actions), default_palette(self.n_actions))

    def table_view(self) -> TableView:
        s = self.symbols.size
        cell = np.repeat(np.arange(s)[:, None], self.n_actions, axis=1)
        return TableView("policy", cell, np.tile(np.arange(self.n_actions), (s, 1)), np.arange(self.n_actions))

    def scores_at(self, obs: np.ndarray) -> Scores:
        """A soft-max table with one score a cell, the probability that the symbol stands for."""
        from retarget.agents.scores import table_scores

        return table_scores(self.palette[self.symbols], obs, part="policy", kind=self.kind)

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """A table trained afresh by Q-learning for `budget` episodes from exploring starts; states never visited
        keep what they had."""
        trained, spend = train_q_table(_finite(world), goal, episodes=budget, exploring=True, seed=seed)
        known = trained.visited
        fresh = trained.greedy_symbols()
        return replace(self, symbols=np.where(known, fresh, self.symbols)), spend


def _finite(world: object) -> FiniteWorld:
    if not isinstance(world, FiniteWorld):
        raise AgentError(f"expected a finite world, got {type(world).__name__}; make one with retarget.make_world")
    return world


@dataclass(frozen=True, eq=False)
class QTable(Agent):
    """Action values; acts greedily. Ties go to the lowest action, a row of equal values acts uniformly.

    Attributes:
        q: float64 `[S, A]`.
        starts: start states of training, where known.
        visited: bool `[S]`, states that training updated.

    >>> QTable.from_values([[0.0, 1.0], [0.5, 0.5]]).policy(np.array([0, 1]))[0].tolist()
    [[0.0, 1.0], [0.5, 0.5]]
    """

    q: np.ndarray
    starts: np.ndarray | None = None
    visited: np.ndarray = field(default_factory=lambda: np.zeros(0, np.bool_))
    kind = "q_table"

    def __post_init__(self) -> None:
        q = np.asarray(self.q, dtype=np.float64)
        if q.ndim != 2 or 0 in q.shape:
            raise AgentError(f"a table of action values needs shape [S, A], got {q.shape}")
        if not np.isfinite(q).all():
            s, a = (int(i) for i in np.argwhere(~np.isfinite(q))[0])
            raise AgentError(f"the value of state {s}, action {a} is {q[s, a]}; replace values that are not finite")
        object.__setattr__(self, "q", own(q))
        object.__setattr__(self, "starts", _seen(self.starts))
        if self.visited.size == 0:
            object.__setattr__(self, "visited", np.ones(len(q), np.bool_))

    @classmethod
    def from_values(cls, q: Sequence[Sequence[float]] | np.ndarray) -> QTable:
        """From float `[S, A]` action values."""
        return cls(np.asarray(q, dtype=np.float64))

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {"q": Part("q", "table", self.q, Real())}

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    @property
    def n_states(self) -> int:
        return int(self.q.shape[0])

    @property
    def flops_per_action(self) -> float:
        return float(self.q.shape[1])

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> QTable:
        self.check_arrays(arrays)
        return replace(self, q=arrays.get("q", self.q))

    def greedy_symbols(self) -> np.ndarray:
        """Int `[S]`: the greedy action, or A where all values of a state are equal."""
        flat = self.q.max(1) == self.q.min(1)
        return np.asarray(np.where(flat & (self.q.shape[1] > 1), self.q.shape[1], self.q.argmax(1)))

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return default_palette(self.q.shape[1])[self.greedy_symbols()[np.asarray(obs)]], None

    def blank(self, seed: int) -> QTable:
        """All zeros."""
        return QTable(np.zeros_like(self.q))

    def table_view(self) -> TableView:
        s, n = self.q.shape
        cell = np.arange(s * n).reshape(s, n)
        rival = np.stack([np.delete(self.q, a, axis=1).max(1) if n > 1 else self.q[:, 0] for a in range(n)], axis=1)
        return TableView("q", cell, _short_value_above(rival))

    def scores_at(self, obs: np.ndarray) -> Scores:
        """One score a cell: the value itself."""
        from retarget.agents.scores import table_scores

        return table_scores(self.q, obs, part="q", kind=self.kind)

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The table after `budget` more episodes of Q-learning toward `goal`, from zeroed values.

        Values that promise the old goal would have to be unlearned first; starting from zero is the shorter way.
        """
        trained, spend = train_q_table(_finite(world), goal, episodes=budget, exploring=True, seed=seed)
        return trained, spend


def _short_value_above(x: np.ndarray) -> np.ndarray:
    """The number with the shortest code that exceeds x: 0, else 1, else the next power of two."""
    with np.errstate(over="ignore"):
        power = 2.0 ** (np.floor(np.log2(np.where(x >= 1, x, 1.0))) + 1)
        power = np.where(np.isfinite(power), power, np.nextafter(x, np.inf))
    if not np.isfinite(power).all():
        raise AgentError(f"action value {x.max()!r} leaves no room for a larger one; scale the table down")
    return np.where(x < 0, 0.0, np.where(x < 1, 1.0, power))


@dataclass(frozen=True, eq=False)
class GoalTable(Agent):
    """One policy table for each of G training goals, and a slot that says which of them is in use.

    Attributes:
        symbols: int `[G, S]`, actions, or A for "act uniformly".
        active: which row is in use, 0 to G-1.
        goals: the G training goals.
        n_actions: A.
        starts: start states of training, where known.
    """

    symbols: np.ndarray
    active: int
    goals: tuple[StateGoal, ...]
    n_actions: int
    starts: np.ndarray | None = None
    kind = "goal_table"

    def __post_init__(self) -> None:
        symbols = np.asarray(self.symbols, dtype=np.int64)
        if symbols.ndim != 2 or len(symbols) != len(self.goals):
            raise AgentError(f"a goal table needs symbols [G, S] with G = {len(self.goals)} goals, got {symbols.shape}")
        if symbols.min() < 0 or symbols.max() > self.n_actions or not 0 <= self.active < len(self.goals):
            raise AgentError(f"symbols must be 0 to {self.n_actions} and the slot 0 to {len(self.goals) - 1}")
        object.__setattr__(self, "symbols", own(symbols))
        object.__setattr__(self, "starts", _seen(self.starts))

    @property
    def n_states(self) -> int:
        return int(self.symbols.shape[1])

    @property
    def training_goals(self) -> frozenset[StateGoal]:
        return frozenset(self.goals)

    @property
    def config(self) -> Mapping[str, object]:
        return {"goals": [list(g.states) for g in self.goals], "n_actions": self.n_actions}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {
            "goal": Part("goal", "goal_slot", np.array([self.active]), Categorical(len(self.goals))),
            "table": Part("table", "table", self.symbols, Categorical(self.n_actions + 1)),
        }

    @property
    def seen_starts(self) -> np.ndarray | None:
        return self.starts

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> GoalTable:
        self.check_arrays(arrays)
        active = int(np.asarray(arrays.get("goal", [self.active]))[0])
        return replace(self, symbols=arrays.get("table", self.symbols), active=active)

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return default_palette(self.n_actions)[self.symbols[self.active][np.asarray(obs)]], None

    def blank(self, seed: int) -> GoalTable:
        """Uniform everywhere, the slot at 0."""
        return replace(self, symbols=np.full_like(self.symbols, self.n_actions), active=0, starts=None)

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("goal", float(i), ()) for i, g in enumerate(self.goals) if g == goal)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("goal", float(i), ()) for i in range(len(self.goals)))

    def table_view(self) -> TableView:
        _g, s = self.symbols.shape
        cell = np.repeat((self.active * s + np.arange(s))[:, None], self.n_actions, axis=1)
        return TableView("table", cell, np.tile(np.arange(self.n_actions), (s, 1)), np.arange(self.n_actions))

    def scores_at(self, obs: np.ndarray) -> Scores:
        """A mixture of the rows with one weight a symbol of the slot, and one score a cell of the rows."""
        from retarget.agents.scores import goal_table_scores

        rows = default_palette(self.n_actions)[self.symbols]
        return goal_table_scores(rows, self.active, obs, parts=("goal", "table"), kind=self.kind)

    def retrained(self, world: object, goal: StateGoal, *, budget: int, seed: int) -> tuple[Agent, Spend]:
        """The active row trained afresh toward `goal` by Q-learning for `budget` episodes."""
        trained, spend = train_q_table(_finite(world), goal, episodes=budget, exploring=True, seed=seed)
        symbols = self.symbols.copy()
        symbols[self.active] = np.where(trained.visited, trained.greedy_symbols(), symbols[self.active])
        return replace(self, symbols=symbols), spend


def starts_beside(world: FiniteWorld, goal: StateGoal) -> np.ndarray:
    """Int `[N]`: the starts of a world that are not on the goal. Raises GoalError where there are none."""
    starts = np.setdiff1d(world.start_states, np.array(goal.states)).astype(np.int64)
    if starts.size == 0:
        raise GoalError(f"goal {goal.label} covers every start of {world.spec_data.label}; choose a smaller goal")
    return starts


def train_q_table(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    episodes: int,
    exploring: bool,
    seed: int,
    gamma: float = 0.95,
    epsilon: float = 0.3,
    horizon: int | None = None,
    max_env_steps: int = 20_000_000,
) -> tuple[QTable, Spend]:
    """Q-learning from zero (Watkins and Dayan 1992).

    Args:
        world: where to train.
        goal: reward 1 on reaching it.
        episodes: number of episodes; 0 trains to the limit: until the greedy policy is optimal from every start that
            can reach the goal and (in deterministic worlds) no backup would change a value, or `max_env_steps`.
        exploring: start anywhere that an episode may start (True), or always in one start (False).
        seed: names the streams.
        gamma: discount.
        epsilon: share of random actions.
        horizon: steps in an episode; by default 4 S.
        max_env_steps: cap on training to the limit.

    Returns:
        the table, and what training took.
    """
    from retarget.kernels import q_learning
    from retarget.rng import stream, word

    model, mask = world.model, goal.mask(world.model.n_states)
    if episodes < 0:
        raise AgentError(f"episodes must be 0 (to the limit) or more, got {episodes}")
    if not 0 < gamma < 1 or not 0 <= epsilon <= 1:
        raise AgentError(f"training needs gamma in (0, 1) and epsilon in [0, 1], got {gamma!r} and {epsilon!r}")
    starts = starts_beside(world, goal)
    if not exploring:
        starts = starts[[int(stream(seed, "one_start", world.spec_data.label).integers(starts.size))]]
    q, visits = np.zeros((model.n_states, model.n_actions)), np.zeros((model.n_states, model.n_actions), np.int64)
    cumulative, started = np.cumsum(model.prob, axis=2), np.zeros(model.n_states, np.bool_)
    steps, counter, todo = 0, 0, episodes or 16
    while todo:
        taken, counter = q_learning(
            q, visits, model.next_state, cumulative, mask, starts.astype(np.int64), todo,
            horizon or 4 * model.n_states, gamma, epsilon, word(seed, "q_learning", world.spec_data.label), counter,
            started,
        )  # fmt: skip
        steps += int(taken)
        todo = 0 if episodes or steps >= max_env_steps else min(4096, 2 * todo)
        if not episodes and _settled(world, goal, q, visits > 0, gamma):
            break
    trained = QTable(q, np.flatnonzero(started), visits.sum(1) > 0)
    return trained, Spend(env_steps=steps, flops=float(steps) * 2 * (model.n_actions + 2))


def _settled(world: FiniteWorld, goal: StateGoal, q: np.ndarray, visited: np.ndarray, gamma: float) -> bool:
    from retarget.exact import Yardstick, policy_table

    model = world.model
    if model.is_deterministic:
        worth = np.where(goal.mask(model.n_states), 1.0, gamma * q.max(1))
        # what training never tries (states that no start leads to) never changes
        residual = np.abs(worth[model.next_state[:, :, 0]] - q)[visited]
        if residual.max(initial=0.0) > 0:
            return False
    yardstick = Yardstick.of(world, goal, gamma=gamma)
    return yardstick.competence(policy_table(QTable(q), model)) >= 1 - 1e-12
