"""Batches of worlds as torch tensors: what is seen, what is done, what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retarget.errors import GoalError, WorldError
from retarget.goal import Goal, RegionGoal, StateGoal
from retarget.rng import stream
from retarget.training.base import Question, TrainingError
from retarget.world import BoxWorld, FiniteWorld

#: Most numbers in a table of all inputs; above it, inputs are made when they are needed.
TABLE_LIMIT = 1 << 24
#: Start states that a world with continuous states is asked for; episodes begin in one of them.
START_POOL = 4096
REWARDS = ("goal", "cost")


class Inputs:
    """From what is seen, and the number of the goal, to the network's input; the only place where goals are shuffled.

    Args:
        question: of the training.
    """

    def __init__(self, question: Question) -> None:
        agent, self.device = question.agent, question.device
        self.sensor = agent.sensor
        self.shuffled = question.shuffled
        self.n_goals = len(question.goals)
        self.order = torch.arange(self.n_goals, device=self.device)
        self.slots: Tensor | None = None
        if agent.goal_input is not None:
            shown = np.stack([agent.goal_input.encode(g) for g in question.goals])
            kind = torch.int64 if shown.dtype.kind == "i" else torch.float32
            self.slots = torch.tensor(shown, dtype=kind, device=self.device)
        self.n_states = question.world.model.n_states if isinstance(question.world, FiniteWorld) else 0
        self.table = self._table()

    @property
    def n_rows(self) -> int:
        """Different inputs that there are; 0 where they are not in a table."""
        return 0 if self.table is None else len(self.table)

    def _table(self) -> Tensor | None:
        if not self.n_states:
            return None
        one = self._make(torch.zeros(1, dtype=torch.int64, device=self.device), self.order[:1])
        if one.numel() * self.n_states * self.n_goals > TABLE_LIMIT:
            return None
        states = torch.arange(self.n_states, device=self.device).repeat(self.n_goals)
        return self._make(states, self.order.repeat_interleave(self.n_states))

    def _make(self, obs: Tensor, goal: Tensor) -> Tensor:
        slot = None if self.slots is None else self.slots[goal]
        return self.sensor(obs, slot, dtype=torch.float32)

    def shuffle(self, generator: torch.Generator) -> None:
        """Where goals are shuffled, deal the goal inputs anew."""
        if self.shuffled:
            self.order = torch.randperm(self.n_goals, generator=generator, device=self.device)

    def rows(self, obs: Tensor, goal: Tensor) -> Tensor:
        """Int64 `[B]` rows of the table."""
        if self.n_goals == 1:
            return obs
        return (self.order[goal] if self.shuffled else goal) * self.n_states + obs

    def __call__(self, obs: Tensor, goal: Tensor) -> Tensor:
        """The network's input `[B, ...]` of int64 `[B]` states or float32 `[B, O]`, and goals int64 `[B]` by number."""
        if self.table is not None:
            return self.table.index_select(0, self.rows(obs, goal))
        return self._make(obs, self.order[goal] if self.shuffled else goal)


@dataclass(eq=False)
class Step:
    """What one step of a batch gave: tensors `[N]`, `after` (what was seen then, before a new episode) `[N, ...]`."""

    reward: Tensor
    terminated: Tensor
    done: Tensor
    after: Tensor


class FiniteBatch:
    """N copies of a finite world: an episode ends in its goal, or after `limit` steps, and the next one begins at once.

    Each episode has one of the goals and a start outside it, both drawn evenly.

    Args:
        question: of the training.
        n: number of copies.
        limit: steps of an episode; 0 for the world's own limit, or four steps a state where it has none.
        reward: "goal": 1 on entering the goal; "cost": -1 for each step that does not.
        generator: of the first episodes.
    """

    #: uniform numbers that one step of one copy takes
    draws = 3

    def __init__(self, question: Question, n: int, *, limit: int, reward: str, generator: torch.Generator) -> None:
        world, device = question.world, question.device
        assert isinstance(world, FiniteWorld)
        model = world.model
        self.device, self.n_states, self.n_actions = device, model.n_states, model.n_actions
        self.limit = limit or int(getattr(world, "max_episode_steps", 0)) or 4 * model.n_states
        self.cost = 1.0 if reward == "cost" else 0.0
        self.next = torch.tensor(
            model.next_state.reshape(-1, model.next_state.shape[2]), dtype=torch.int64, device=device
        )
        self.chance = None
        if not model.is_deterministic:
            cum = np.cumsum(model.prob, axis=2).reshape(self.next.shape)
            self.chance = torch.tensor(cum, dtype=torch.float32, device=device)
        masks = np.stack([_state_goal(g, world).mask(model.n_states) for g in question.goals])
        self.inside = torch.tensor(masks.reshape(-1), device=device)
        self._index_starts(question, masks)
        fresh = torch.rand(2, n, generator=generator, device=device)
        self.goal, self.obs = self.begin(fresh)
        self.steps = torch.zeros(n, dtype=torch.int64, device=device)

    def _index_starts(self, question: Question, masks: np.ndarray) -> None:
        world = question.world
        assert isinstance(world, FiniteWorld)
        starts = world.start_states if question.starts is None else question.starts
        lists = [starts[~mask[starts]] for mask in masks]
        for goal, own in zip(question.goals, lists, strict=True):
            if not len(own):
                raise GoalError(f"goal {goal.label} covers every training start; give other starts or another goal")
        width = max(map(len, lists))
        table = np.stack([np.resize(own, width) for own in lists])
        self.starts = torch.tensor(table, dtype=torch.int64, device=self.device)
        self.counts = torch.tensor([len(own) for own in lists], dtype=torch.float32, device=self.device)

    def begin(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Goals and starts int64 `[..., N]` of fresh episodes, from uniform numbers `[2, ..., N]`."""
        goal = (uniform[0] * len(self.starts)).long()
        which = (uniform[1] * self.counts[goal]).long()
        return goal, self.starts[goal, which]

    def step(self, action: Tensor, fresh: tuple[Tensor, Tensor], chance: Tensor) -> Step:
        """Act in every copy. `fresh` is where new episodes begin, `chance` uniform numbers `[N]`."""
        row = self.obs * self.n_actions + action
        if self.chance is None:
            after = self.next[:, 0][row]
        else:
            which = (self.chance[row] <= chance[:, None]).sum(1).clamp(max=self.chance.shape[1] - 1)
            after = self.next[row, which]
        hit = self.inside[after if len(self.starts) == 1 else self.goal * self.n_states + after]
        self.steps = self.steps + 1
        done = hit | (self.steps >= self.limit)
        self.obs = torch.where(done, fresh[1], after)
        self.goal = torch.where(done, fresh[0], self.goal)
        self.steps = self.steps * ~done
        return Step(hit.float() - self.cost, hit, done, after)

    def state(self) -> dict[str, Tensor]:
        return {"world.obs": self.obs, "world.goal": self.goal, "world.steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        for name in ("obs", "goal", "steps"):
            setattr(self, name, state[f"world.{name}"].to(self.device))


class BoxBatch:
    """N copies of a world with continuous states, which is followed in NumPy; as `FiniteBatch` otherwise.

    Toward a goal to reach, the reward is 1 inside, and the episode ends; toward one to hold, it is `1 - gamma` for each
    step inside, so that a value is a share of time. With "cost", each step outside costs 1, and a world that ends the
    episode (a fall) charges the cost of never arriving, `1 / (1 - gamma)`.
    """

    draws = 3

    def __init__(self, question: Question, n: int, *, limit: int, reward: str, generator: torch.Generator) -> None:
        world = question.world
        assert isinstance(world, BoxWorld)
        self.world, self.device, self.gamma = world, question.device, question.gamma
        self.limit, self.cost = limit or world.horizon, reward == "cost"
        self.goals = tuple(_region_goal(g, world) for g in question.goals)
        pool = question.starts
        if pool is None:
            pool = world.starts(START_POOL, rng=stream(question.seed, "training_starts", world.spec_data.label))
        self.pool = np.asarray(pool, dtype=np.float64)
        goal, start = self.begin(torch.rand(2, n, generator=generator, device=self.device))
        self.goal, self.steps = goal, torch.zeros(n, dtype=torch.int64, device=self.device)
        self.place = self.pool[start.cpu().numpy()]
        self.obs = self._see(self.place)

    def begin(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Goals, and rows of the pool of starts, int64 `[..., N]`, from uniform numbers `[2, ..., N]`."""
        return (uniform[0] * len(self.goals)).long(), (uniform[1] * len(self.pool)).long()

    def _see(self, place: np.ndarray) -> Tensor:
        return torch.as_tensor(self.world.observe(place)).to(self.device)

    def step(self, action: Tensor, fresh: tuple[Tensor, Tensor], chance: Tensor) -> Step:
        """Act in every copy. `fresh` is where new episodes begin."""
        goal = self.goal.cpu().numpy()
        after, ended = self.world.advance(self.place, action.cpu().numpy())
        inside = np.zeros(len(after), dtype=np.bool_)
        reached = np.zeros(len(after), dtype=np.bool_)
        for i, g in enumerate(self.goals):
            mine = goal == i
            inside |= mine & self.world.inside(after, g) & ~ended
            reached |= inside & mine & (not g.hold)
        held = np.array([g.hold for g in self.goals])[goal]
        if self.cost:
            reward = np.where(inside, 0.0, np.where(ended, -1 / (1 - self.gamma), -1.0))
        else:
            reward = inside * np.where(held, 1 - self.gamma, 1.0)
        over = reached | ended
        steps = self.steps.cpu().numpy() + 1
        done = over | (steps >= self.limit)
        seen = self._see(after)
        self.place = np.where(done[:, None], self.pool[fresh[1].cpu().numpy()], after)
        flags = torch.as_tensor(np.stack([over, done])).to(self.device)
        self.goal = torch.where(flags[1], fresh[0], self.goal)
        self.steps = torch.as_tensor(np.where(done, 0, steps)).to(self.device)
        self.obs = self._see(self.place)
        return Step(torch.as_tensor(reward, dtype=torch.float32).to(self.device), flags[0], flags[1], seen)

    def state(self) -> dict[str, Tensor]:
        return {"world.place": torch.as_tensor(self.place), "world.goal": self.goal, "world.steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        self.place = state["world.place"].cpu().numpy().copy()
        self.goal, self.steps = state["world.goal"].to(self.device), state["world.steps"].to(self.device)
        self.obs = self._see(self.place)


Batch = FiniteBatch | BoxBatch


def batch_of(question: Question, n: int, *, limit: int, reward: str, generator: torch.Generator) -> Batch:
    """N copies of the question's world.

    Raises:
        TrainingError: for a reward that there is not.
        GoalError: when a goal covers every start.
        WorldError: when world and goals are of different kinds.
    """
    if reward not in REWARDS:
        raise TrainingError(f"reward must be one of {', '.join(REWARDS)}, got {reward!r}")
    kind = FiniteBatch if isinstance(question.world, FiniteWorld) else BoxBatch
    return kind(question, n, limit=limit, reward=reward, generator=generator)


def _state_goal(goal: Goal, world: FiniteWorld) -> StateGoal:
    if not isinstance(goal, StateGoal):
        raise WorldError(f"goal {goal.label} is none of {world.spec_data.label}")
    return goal


def _region_goal(goal: Goal, world: BoxWorld) -> RegionGoal:
    if not isinstance(goal, RegionGoal):
        raise WorldError(f"goal {goal.label} is none of {world.spec_data.label}")
    return goal
