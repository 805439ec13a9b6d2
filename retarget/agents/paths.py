"""Planners that search for a best path: breadth first, A*, or by iterative deepening."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Agent, Carry, Categorical, Part, Real, SlotWrite, own
from retarget.agents.planner import reward_for
from retarget.agents.tabular import default_palette
from retarget.errors import AgentError
from retarget.goal import StateGoal
from retarget.world import FiniteWorld

if TYPE_CHECKING:
    from retarget.search.paths import PathMethod, Paths


@dataclass(frozen=True, eq=False)
class PathPlanner(Agent):
    """Takes the first step of a best path to reward, by what its deterministic model says.

    A state's reward is collected on entering it, and ends the episode there if it is not zero. Ties go to the lowest
    action; where no reward is in reach (of the model, or of the depth), it acts uniformly. It acts as `Planner` does;
    what differs is how much it searches.

    Attributes:
        reward: float64 `[S]`, the goal slot.
        next_state: int `[S, A]`, the model; the symbol S means "not known" and leads nowhere (it can be held, not
            written).
        method: `bfs`, `astar` or `deepening`; see `retarget.search.paths.best_paths`.
        gamma: discount, in (0, 1); it matters where rewards differ.
        depth: longest path that is looked for; None for no limit.
        place: int `[S, 2]` row and column of each state, which guide `astar`; None for no guide.

    Raises:
        AgentError: on shapes that do not fit, or values out of range.

    >>> chain = np.array([[1, 0], [2, 0], [2, 1]])
    >>> PathPlanner(np.array([0.0, 0.0, 1.0]), chain, method="bfs").policy(np.array([0, 1]))[0].tolist()
    [[1.0, 0.0], [1.0, 0.0]]
    """

    reward: np.ndarray
    next_state: np.ndarray
    method: PathMethod = "bfs"
    gamma: float = 0.95
    depth: int | None = None
    place: np.ndarray | None = None
    kind = "path_planner"

    def __post_init__(self) -> None:
        from retarget.search.paths import check_model

        reward, nxt = np.asarray(self.reward, np.float64), np.asarray(self.next_state)
        if nxt.ndim == 3:
            raise AgentError(
                f"a path planner needs one successor each, next_state [S, A], got {nxt.shape}; use exact_planner"
            )
        check_model(nxt, reward, method=self.method, gamma=self.gamma, depth=self.depth, place=self.place)
        object.__setattr__(self, "reward", own(reward))
        object.__setattr__(self, "next_state", own(nxt.astype(np.int32)))
        if self.place is not None:
            object.__setattr__(self, "place", own(np.asarray(self.place, np.int64)))

    @property
    def config(self) -> Mapping[str, object]:
        return {"gamma": self.gamma, "depth": self.depth, "method": self.method}

    @property
    def fixed_arrays(self) -> Mapping[str, np.ndarray]:
        return {} if self.place is None else {"place": self.place}

    @cached_property
    def parts(self) -> Mapping[str, Part]:
        return {
            "reward": Part("reward", "goal_slot", self.reward, Real()),
            "next_state": Part("next_state", "model", self.next_state, Categorical(len(self.reward))),
        }

    @property
    def n_states(self) -> int:
        return len(self.reward)

    @cached_property
    def paths(self) -> Paths:
        """The best path from every state."""
        from retarget.search.paths import best_paths

        return best_paths(
            self.next_state, self.reward, method=self.method, gamma=self.gamma, depth=self.depth, place=self.place
        )

    @cached_property
    def _table(self) -> np.ndarray:
        n_actions = self.next_state.shape[1]
        return default_palette(n_actions)[np.where(self.paths.action < 0, n_actions, self.paths.action)]

    @property
    def plans_once(self) -> bool:
        return False

    @property
    def simulations_per_action(self) -> int:
        """Nodes expanded for one decision: the mean over states, rounded up."""
        return math.ceil(float(self.paths.expanded.mean()))

    @property
    def flops_per_action(self) -> float:
        """Two operations (is there a reward, was it seen) for each successor of each node expanded. For `astar` two
        more (an addition and a comparison of keys) and, for each node, 2 log2 S comparisons in the heap; with `place`,
        also 6 operations for each state and rewarded state, to bound the steps between them."""
        s, a = self.next_state.shape
        nodes = float(self.simulations_per_action)
        if self.method != "astar":
            return float(nodes * 2 * a)
        goals = 0 if self.place is None else int((self.reward > 0).sum())
        return float(nodes * (4 * a + 2 * math.log2(s)) + 6 * s * goals)

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> PathPlanner:
        self.check_arrays(arrays)
        return replace(self, **dict(arrays))  # type: ignore[arg-type]

    def policy(self, obs: np.ndarray, carry: Carry = None) -> tuple[np.ndarray, Carry]:
        return self._table[np.asarray(obs)], None

    def blank(self, seed: int) -> PathPlanner:
        """No goal."""
        return replace(self, reward=np.zeros_like(self.reward))

    def slot_writes(self, goal: StateGoal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("reward", 0.0, tuple((s, 1.0) for s in goal.states)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("reward", 0.0, ((s, 1.0),)) for s in range(len(self.reward)))


def path_planner(
    world: FiniteWorld, goal: StateGoal, *, method: PathMethod, depth: int | None = None, gamma: float = 0.95
) -> PathPlanner:
    """A path planner over a world's true model. `astar` is guided by the world's coordinates, where it has them.

    Args:
        world: without chance.
        goal: in the slot.
        method: `bfs`, `astar` or `deepening`.
        depth: longest path that is looked for; None for no limit.
        gamma: discount.

    Raises:
        AgentError: for a world with chance.

    >>> import retarget
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> astar, bfs = (path_planner(world, world.goal, method=m) for m in ("astar", "bfs"))
    >>> astar.simulations_per_action < bfs.simulations_per_action
    True
    """
    model = world.model
    if not model.is_deterministic:
        raise AgentError(
            f"a path planner needs a world without chance, {world.spec_data.label} has {model.next_state.shape[2]} "
            "successors for each action; use exact_planner"
        )
    place = world.coordinates if method == "astar" else None
    return PathPlanner(
        reward_for(goal, model.n_states), model.next_state[:, :, 0], method, gamma=gamma, depth=depth, place=place
    )
