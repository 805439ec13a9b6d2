"""Deep Q-learning (source: Mnih et al. 2015), with the double estimate (van Hasselt et al. 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retarget.errors import AgentError
from retarget.training.base import (
    Learner,
    Question,
    TrainingError,
    Weights,
    module_of,
    no_memory,
    not_negative,
    positive,
)
from retarget.training.rollout import Inputs, batch_of
from retarget.training.solved import Solved
from retarget.world import FiniteWorld


@dataclass(frozen=True)
class DQN:
    """Learn the values of actions by trial, from a memory of transitions. For networks without memory of their own.

    The agent's head must be `values`. Rewards are sparse and not shaped: see `FiniteBatch` and `BoxBatch`.

    Attributes:
        env_steps: budget, in transitions; one step of every copy for each update.
        envs: copies of the world side by side.
        batch: transitions in one optimiser update.
        rate: learning rate of Adam.
        replay: transitions that are remembered; the oldest are forgotten first.
        warmup: transitions before the first optimiser update.
        explore: share of the budget over which the share of random actions falls from 1 to `least`, linearly.
        least: share of random actions from then on.
        target_every: updates between two copies of the network to the one that targets are read from.
        double: let the network choose the action whose value the other one gives.
        max_norm: largest norm of the gradient.
        limit: steps of an episode; 0 for the world's own limit.
        reward: "goal" or "cost".
        enough: stop at this mean competence of the greedy policy on the training goals, in finite worlds, where it is
            known exactly; above 1, never stop early.
        check: updates between two looks.
    """

    env_steps: int = 100_000
    envs: int = 32
    batch: int = 256
    rate: float = 1e-3
    replay: int = 50_000
    warmup: int = 1000
    explore: float = 0.5
    least: float = 0.1
    target_every: int = 50
    double: bool = True
    max_norm: float = 10.0
    limit: int = 0
    reward: str = "goal"
    enough: float = 2.0
    check: int = 50

    def __post_init__(self) -> None:
        not_negative(
            "DQN", env_steps=self.env_steps, warmup=self.warmup, explore=self.explore, least=self.least,
            max_norm=self.max_norm, limit=self.limit,
        )  # fmt: skip
        positive(
            "DQN", envs=self.envs, batch=self.batch, rate=self.rate, replay=self.replay,
            target_every=self.target_every, enough=self.enough, check=self.check,
        )  # fmt: skip
        if max(self.explore, self.least) > 1:
            raise TrainingError(f"explore and least of DQN are shares, got {self.explore!r} and {self.least!r}")

    def describe(self) -> dict[str, object]:
        """JSON-able: what tells this method apart from another one."""
        return {"method": "dqn", **vars(self)}

    def learner(self, question: Question) -> Learner:
        """Set to work."""
        return DQNLearner(question, self)


class DQNLearner(Learner):
    """DQN at work: one update is one step of every copy, and one step of the optimiser.

    In a finite world with fewer different inputs than transitions in a batch, the network is evaluated once on each
    input, and every transition looks its values up: the same loss and gradient, for less.

    Operations: the network's forward pass for each input evaluated, three times that in learning.
    """

    def __init__(self, question: Question, method: DQN) -> None:
        super().__init__(question, n_updates=method.env_steps // method.envs)
        no_memory(question.agent, "DQN")
        if question.agent.head != "values":
            raise AgentError(
                f"DQN trains values of actions, not {question.agent.head!r}; make the network with head='values'"
            )
        self.method, device = method, question.device
        self.inputs = Inputs(question)
        self.weights = Weights([self.module], rate=method.rate, clip=method.max_norm, device=device)
        self.target = module_of(question.agent).to(device)
        self.copies = Weights([self.target], rate=1.0, clip=0.0, device=device)
        self.world = batch_of(
            question, method.envs, limit=method.limit, reward=method.reward, generator=self.generator("begin")
        )
        self.n_actions = n_actions_of(question)
        self.few = 0 < self.inputs.n_rows <= 2 * method.batch
        self.solved = Solved(question, method.enough)
        self.flops = question.agent.architecture.flops
        self.size = max(1, method.replay // method.envs)
        self.memory = self._empty()
        self.loss, self.reward = torch.zeros((), device=device), torch.zeros((), device=device)

    def _empty(self) -> dict[str, Tensor]:
        """Room for `size` steps of every copy: tensors `[size, N, ...]`."""
        obs = self.world.obs
        shape, device = (self.size, self.method.envs), self.question.device
        return {
            "obs": torch.zeros((*shape, *obs.shape[1:]), dtype=obs.dtype, device=device),
            "after": torch.zeros((*shape, *obs.shape[1:]), dtype=obs.dtype, device=device),
            "goal": torch.zeros(shape, dtype=torch.int64, device=device),
            "action": torch.zeros(shape, dtype=torch.int64, device=device),
            "reward": torch.zeros(shape, device=device),
            "over": torch.zeros(shape, dtype=torch.bool, device=device),
        }

    def update(self, k: int) -> None:
        m = self.method
        generator = self.generator("dqn", k)
        self.inputs.shuffle(generator)
        self._act(k, generator)
        self.env_steps += m.envs
        if (k + 1) * m.envs >= m.warmup:
            self._learn(k, generator)
        if (k + 1) % m.target_every == 0:
            self.copies.vector.data.copy_(self.weights.vector.data)

    @torch.no_grad()
    def _act(self, k: int, generator: torch.Generator) -> None:
        m, world, device = self.method, self.world, self.question.device
        u = torch.rand(5, m.envs, generator=generator, device=device)
        falling = k / max(1.0, m.explore * self.n_updates)
        share = max(m.least, 1.0 - (1.0 - m.least) * falling)
        best = self.module(self.inputs(world.obs, world.goal), None)[0].argmax(1)
        action = torch.where(u[0] < share, (u[1] * self.n_actions).long(), best)
        obs, goal = world.obs, world.goal
        step = world.step(action, world.begin(u[2:4]), u[4])
        row = {"obs": obs, "goal": goal, "action": action, "reward": step.reward, "after": step.after}
        for name, value in {**row, "over": step.terminated}.items():
            self.memory[name][k % self.size] = value
        self.reward = step.reward.mean()
        self.flops_spent += self.flops * m.envs

    def _learn(self, k: int, generator: torch.Generator) -> None:
        m = self.method
        there = min(k + 1, self.size) * m.envs
        picked = torch.randint(there, (m.batch,), generator=generator, device=self.question.device)
        part = {name: values.flatten(0, 1).index_select(0, picked) for name, values in self.memory.items()}
        q, q_after, q_target = self._values(part)
        with torch.no_grad():
            chosen = (q_after if m.double else q_target).argmax(1, keepdim=True)
            worth = q_target.gather(1, chosen)[:, 0]
            target = part["reward"] + self.question.gamma * worth * ~part["over"]
        self.loss = functional.smooth_l1_loss(q.gather(1, part["action"][:, None])[:, 0], target)
        self.weights.step(self.loss)
        self.grad_steps += 1

    def _values(self, part: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Values `[B, A]` of what was seen, of what was seen afterwards, and the latter by the target network."""
        obs, after, goal = part["obs"], part["after"], part["goal"]
        if self.few and self.inputs.table is not None:
            whole = self.module(self.inputs.table, None)[0]
            following = self.inputs.rows(after, goal)
            with torch.no_grad():
                old = self.target(self.inputs.table, None)[0][following]
            self.flops_spent += 4 * self.flops * len(whole)
            return whole.index_select(0, self.inputs.rows(obs, goal)), whole.detach()[following], old
        with torch.no_grad():
            x = self.inputs(after, goal)
            old = self.target(x, None)[0]
            new = self.module(x, None)[0] if self.method.double else old
        self.flops_spent += (4 + self.method.double) * self.flops * len(obs)
        return self.module(self.inputs(obs, goal), None)[0], new, old

    def finished(self, k: int) -> bool:
        return k % self.method.check == 0 and self.solved(self.agent)

    def measures(self) -> dict[str, float]:
        return {"loss": float(self.loss.detach()), "reward": float(self.reward)}

    def state(self) -> dict[str, Tensor]:
        replay = {f"replay.{name}": values for name, values in self.memory.items()}
        return {**super().state(), "target": self.copies.vector.data, **replay, **self.world.state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.world.load(dict(state))
        own = {**self.weights.state(), "target": self.copies.vector.data}
        own |= {f"replay.{name}": values for name, values in self.memory.items()}
        for name, tensor in own.items():
            tensor.data.copy_(state[name])


def n_actions_of(question: Question) -> int:
    """Number of discrete actions of the question's world.

    Raises:
        AgentError: where actions are continuous.
    """
    world = question.world
    n = world.model.n_actions if isinstance(world, FiniteWorld) else world.n_actions
    if n is None:
        raise AgentError(f"DQN needs discrete actions, those of {world.spec_data.label} are continuous; use PPO()")
    return n
