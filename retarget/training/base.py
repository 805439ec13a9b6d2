"""What methods of training share: the question, the learner that works on it, and the weights that it changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from retarget.agents.neural import NetworkAgent
from retarget.errors import AgentError, RetargetError
from retarget.goal import Goal
from retarget.rng import CellKey, word
from retarget.spend import Spend
from retarget.world import World


class TrainingError(RetargetError):
    """A method of training was given a value out of range, or weights that are no longer finite came out of it."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be trained, and on what.

    Attributes:
        agent: the network, with the weights to begin from.
        world: where.
        goals: what to reach; more than one only where the agent has a goal slot.
        gamma: discount, in (0, 1).
        starts: where episodes may begin: int64 `[N]` states, float64 `[N, D]` where they are
            continuous; None for all.
        shuffled: give the goal inputs in an order that has nothing to do with the goals, another one in each update.
        seed: names the random streams.
        stage: which of several methods in a row this is.
        device: where tensors live.
    """

    agent: NetworkAgent
    world: World
    goals: tuple[Goal, ...]
    gamma: float
    starts: np.ndarray | None
    shuffled: bool
    seed: int
    stage: int
    device: torch.device


class Weights:
    """All weights of some modules as one flat vector with one flat gradient, and Adam on it.

    One vector makes an optimiser step a single operation, whatever the number of layers, and makes what a checkpoint
    must hold three vectors.

    Args:
        modules: whose weights; afterwards they are views of the flat vector.
        rate: learning rate.
        clip: largest norm of the gradient; 0 for no limit.
        device: where it lives.
    """

    def __init__(self, modules: Sequence[nn.Module], *, rate: float, clip: float, device: torch.device) -> None:
        params = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1).to(device) for p in params]))
        self.gradient = torch.zeros_like(self.vector)
        self.vector.grad = self.gradient
        begin = 0
        for p in params:
            end = begin + p.numel()
            p.data = self.vector.data[begin:end].view_as(p)
            p.grad = self.gradient[begin:end].view_as(p)
            begin = end
        self.rate, self.clip = rate, clip
        self.optimizer = torch.optim.Adam([self.vector], lr=rate, fused=device.type in ("cpu", "cuda"))
        # Adam makes its state at its first step; made here, it can be loaded before that
        self.optimizer.state[self.vector] = {
            "step": torch.zeros((), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(self.vector.data),
            "exp_avg_sq": torch.zeros_like(self.vector.data),
        }

    def step(self, loss: Tensor, *, share: float = 1.0) -> None:
        """One step of Adam down the gradient of a loss, at a share of the learning rate."""
        self.gradient.zero_()
        loss.backward()
        if self.clip:
            norm = torch.linalg.vector_norm(self.gradient)
            self.gradient.mul_((self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.param_groups[0]["lr"] = self.rate * share
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Named tensors that `load` takes; the live ones, not copies."""
        return {"weights": self.vector.data, **{f"adam.{k}": v for k, v in self.optimizer.state[self.vector].items()}}


class Learner(ABC):
    """A method at work on a question. `update(0)`, `update(1)`, … in this order; nothing else changes it.

    All that an update depends on is in `state()` and in its number: random numbers come from a stream that is named by
    the number, so that an interrupted run goes on as if nothing had happened.

    Attributes:
        module: the network in training, float32.
        n_updates: how many updates the budget allows.
        inner: updates in one `training_step` of Lightning.
        weights: what is trained.
        env_steps, grad_steps, flops_spent: what it took so far.
    """

    inner = 32

    def __init__(self, question: Question, *, n_updates: int) -> None:
        self.question, self.n_updates = question, n_updates
        self.module = module_of(question.agent).to(question.device)
        # plain counters: adding frozen records costs more than some updates
        self.env_steps = self.grad_steps = 0
        self.flops_spent = 0.0
        self.weights: Weights
        self._generator = torch.Generator(device=question.device)

    @property
    def spend(self) -> Spend:
        """What it took so far."""
        return Spend(env_steps=self.env_steps, grad_steps=self.grad_steps, flops=self.flops_spent)

    @abstractmethod
    def update(self, k: int) -> None:
        """Update number k, from 0."""

    @abstractmethod
    def measures(self) -> dict[str, float]:
        """Numbers about the last update, for the history."""

    def finished(self, k: int) -> bool:
        """Whether k updates are enough, before the budget is spent."""
        return False

    def state(self) -> dict[str, Tensor]:
        """Everything that later updates depend on, by name; the live tensors, not copies."""
        return self.weights.state()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, in this run or in another one."""
        for name, tensor in self.state().items():
            tensor.data.copy_(state[name])

    def generator(self, purpose: str, *cell: CellKey) -> torch.Generator:
        """Torch's generator, set to the beginning of the stream (seed, purpose, stage, cell). There is only one."""
        self._generator.manual_seed(word(self.question.seed, purpose, self.question.stage, *cell))
        return self._generator

    def agent(self) -> NetworkAgent:
        """The agent with the weights as they are now.

        Raises:
            TrainingError: where they are no longer finite.
        """
        agent = self.question.agent
        found = dict(self.module.named_parameters())
        weights = {s: found[n].detach().cpu().numpy().copy() for s, n in agent.architecture.names.items()}
        if not all(np.isfinite(w).all() for w in weights.values()):
            raise TrainingError(f"training diverged: weights are not finite; use a lower rate than {self.weights.rate}")
        return replace(agent, weights=weights, steer=None)


def module_of(agent: NetworkAgent) -> nn.Module:
    """The agent's network as a fresh torch module in float32, ready to be trained."""
    module = agent.architecture.build()
    found = dict(module.named_parameters())
    with torch.no_grad():
        for short, name in agent.architecture.names.items():
            found[name].copy_(torch.tensor(agent.weights[short], dtype=found[name].dtype))
    return module.train()


def positive(owner: str, **values: float) -> None:
    """Raise TrainingError unless each value is a finite number above 0.

    >>> positive("PPO", rate=0.1)
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise TrainingError(f"{name} of {owner} must be above 0, got {value!r}")


def not_negative(owner: str, **values: float) -> None:
    """Raise TrainingError unless each value is a finite number of at least 0."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise TrainingError(f"{name} of {owner} must be at least 0, got {value!r}")


def no_memory(agent: NetworkAgent, method: str) -> None:
    """Raise AgentError for networks with memory, which `method` cannot train."""
    if agent.has_memory:
        raise AgentError(
            f"{method} trains networks without memory, this {agent.architecture.kind} has one; use Cloning()"
        )
