"""Gradient descent on lessons, over any of an agent's real parts: what the editors of networks share.

An agent takes part by capability, never by kind: it is `Differentiable` when it can give its scores as a function of
its parts. The loss of a lesson is `softplus(-gap / T)`, where `gap` is the log-sum-exp of the scores of the right
actions less that of the wrong ones: minus the log-probability of the right actions, where scores are logits. Scores of
an agent that sees no meaning in their size (values; any scores of an agent that takes the best) are first divided by T,
their own spread before the edit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from retarget.agent import Agent, Real, Role
from retarget.edit import Edit, Sparse
from retarget.errors import AgentError
from retarget.lessons import Lessons
from retarget.rng import word

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Operations of one gradient step for each of one forward pass: a forward and a backward pass of twice its cost.
GRADIENT_COST = 3.0
#: Rows of one gradient step at most; where there are more, each step draws its own.
BATCH = 512
_FAR = 1e9


@runtime_checkable
class Differentiable(Protocol):
    """An agent whose scores are a differentiable function of its parts."""

    @property
    def head(self) -> str:
        """What scores are: `logits`, `values` of actions, or the `mean` of a continuous action."""
        ...

    @property
    def decision(self) -> str:
        """`greedy`: the best score is chosen; `sample`: drawn from the softmax of the scores."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Parts by name, as the forward pass takes them; `activation` parts at rest are left out."""
        ...

    @property
    def has_memory(self) -> bool: ...

    def scores(self, parts: Mapping[str, Tensor], obs: Tensor, *, steps: int = 1) -> Tensor:
        """Scores `[N, A]` of observations; rows come in episodes of `steps`."""
        ...


def names_of(agent: Agent, role: Role) -> tuple[str, ...]:
    """Names of the parts of a role that hold real numbers."""
    return tuple(p.name for p in agent.parts.values() if p.role == role and isinstance(p.alphabet, Real))


class Tuner:
    """Some parts of an agent as one flat vector, and gradient descent on it.

    Args:
        agent: fulfils `Differentiable`.
        names: parts that may change; all others stay as they are.
        lessons: what is asked of it.
        seed: names the streams that rows are drawn from.

    Attributes:
        base: float `[n]`, the parts as they are.
        grad_steps, flops: what was done so far.
    """

    def __init__(self, agent: Agent, names: Sequence[str], lessons: Lessons, *, seed: int = 0) -> None:
        import torch

        if not isinstance(agent, Differentiable):
            raise AgentError(f"agent {agent.kind!r} has no scores to differentiate; it cannot be tuned")
        torch.set_num_threads(1)  # small tensors run many times faster on one thread
        self.agent, self.names, self.seed = agent, tuple(names), seed
        self._net: Differentiable = agent
        self.shapes = [agent.parts[n].array.shape for n in self.names]
        self.ends = np.cumsum([agent.parts[n].array.size for n in self.names])
        flat = np.concatenate([agent.parts[n].array.reshape(-1) for n in self.names])
        self.base = torch.tensor(flat, dtype=agent.dtype)
        self._rest = {n: t for n, t in agent.tensors.items() if n not in self.names}
        self.grad_steps, self.flops, self._calls = 0, 0.0, 0
        self.temperature = 1.0
        self.teach(lessons)
        self.temperature = self._spread()

    @property
    def n(self) -> int:
        return len(self.base)

    def teach(self, lessons: Lessons) -> None:
        """Go on with these lessons. Rows that count for nothing are dropped, where no memory runs through them."""
        import torch

        self.lessons = lessons = trimmed(lessons, self._net.has_memory, 0)
        self._obs = torch.as_tensor(np.ascontiguousarray(lessons.obs))
        self._right = torch.as_tensor(lessons.right, dtype=self._net.dtype)
        self._weight = torch.as_tensor(lessons.weight, dtype=self._net.dtype)

    def _spread(self) -> float:
        """A fifth of the mean distance of the best score from the mean one; 1 where scores are logits to draw from."""
        import torch

        if self._net.head == "mean" or (self._net.head == "logits" and self._net.decision == "sample"):
            return 1.0
        with torch.no_grad():
            scores = self.scores(self.base, self._some())
        return max(float((scores.max(1).values - scores.mean(1)).mean()) / 5.0, 1e-6)

    # -- forward ---------------------------------------------------------------------------------------------------

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        """The parts that a flat vector holds."""
        pieces = theta.split([int(np.prod(s)) for s in self.shapes])
        return {n: p.reshape(s) for n, p, s in zip(self.names, pieces, self.shapes, strict=True)}

    def scores(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Scores `[N, A]` of the lessons, or of some rows of them."""
        obs = self._obs if rows is None else self._obs[rows]
        return self._net.scores({**self._rest, **self.split(theta)}, obs, steps=self.lessons.steps)

    def _some(self, limit: int = BATCH) -> Tensor | None:
        """Rows of one step: None for all of them, else whole episodes drawn from the stream of this call."""
        import torch

        n, steps = len(self.lessons), self.lessons.steps
        if n <= limit or n == steps:
            return None
        self._calls += 1
        generator = torch.Generator().manual_seed(word(self.seed, "lesson_rows", self._calls))
        if steps == 1:
            return torch.multinomial(self._weight, limit, replacement=True, generator=generator)
        first = torch.randperm(n // steps, generator=generator)[: max(1, limit // steps)] * steps
        return (first[:, None] + torch.arange(steps)).reshape(-1)

    def losses(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Loss of each lesson: `[N]`."""
        import torch

        scores = self.scores(theta, rows)
        right = self._right if rows is None else self._right[rows]
        if self._net.head == "mean":
            return _squares(scores, right, getattr(self.agent, "action_range", None))
        good = right > 0
        scores = scores / self.temperature
        gap = torch.where(good, scores, -_FAR).logsumexp(1) - torch.where(good, -_FAR, scores).logsumexp(1)
        return torch.nn.functional.softplus(-gap)

    def loss(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Weighted mean over lessons."""
        losses = self.losses(theta, rows)
        if rows is None:
            return self._weight @ losses
        if self.lessons.steps == 1:
            return losses.mean()  # rows were drawn by their weights
        weight = self._weight[rows]
        return weight @ losses / weight.sum().clamp(min=1e-12)

    # -- gradients -------------------------------------------------------------------------------------------------

    def _count(self, rows: Tensor | None) -> None:
        n = len(self.lessons) if rows is None else len(rows)
        self.grad_steps += 1
        self.flops += GRADIENT_COST * self.agent.flops_per_action * n

    def gradient(self, theta: Tensor, rows: Tensor | None = None) -> Tensor:
        """Gradient of the loss: `[n]`."""
        import torch

        leaf = theta.detach().requires_grad_(True)
        self._count(rows)
        (grad,) = torch.autograd.grad(self.loss(leaf, rows), leaf)
        return grad

    def fisher(self, theta: Tensor, lots: int = 32) -> Tensor:
        """Empirical Fisher information of each number, up to a factor: mean square, over lots of lessons drawn at
        random, of the lot's gradient (Kirkpatrick et al. 2017 take single lessons). `[n]`."""
        import torch

        n = len(self.lessons) // self.lessons.steps
        generator = torch.Generator().manual_seed(word(self.seed, "fisher_lots"))
        order = torch.randperm(n, generator=generator)
        total = torch.zeros_like(theta)
        chunks = order.chunk(min(lots, n))
        for chunk in chunks:
            rows = (chunk[:, None] * self.lessons.steps + torch.arange(self.lessons.steps)).reshape(-1)
            rows = rows[:BATCH] if self.lessons.steps == 1 else rows
            total += self.gradient(theta, rows) ** 2
        return total / len(chunks)

    def fit(self, theta: Tensor, *, steps: int, lr: float, mask: Tensor | None = None, shrink: float = 0.0) -> Tensor:
        """Adam (Kingma and Ba 2015) with a rate that falls to nothing, from `theta`.

        Args:
            theta: `[n]`, where to begin.
            steps: updates.
            lr: first rate.
            mask: bool `[n]`, which numbers may change; all without.
            shrink: pull of each number toward its value in the agent, a proximal step of `shrink * rate` after each
                update (L1).
        """
        import torch

        theta = theta.detach().clone()
        mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
        for t in range(1, steps + 1):
            grad = self.gradient(theta, self._some())
            if mask is not None:
                grad = grad * mask
            rate = lr * 0.5 * (1 + np.cos(np.pi * (t - 1) / steps))
            mean.mul_(0.9).add_(grad, alpha=0.1)
            square.mul_(0.99).addcmul_(grad, grad, value=0.01)
            root = (square / (1 - 0.99**t)).sqrt_().add_(1e-8)
            theta.addcdiv_(mean, root, value=-rate / (1 - 0.9**t))
            if shrink:
                theta = self.base + torch.nn.functional.softshrink(theta - self.base, shrink * rate)
        return theta

    # -- back to edits ---------------------------------------------------------------------------------------------

    def array(self, theta: Tensor) -> np.ndarray:
        return np.asarray(theta.detach().double().numpy(), dtype=np.float64)

    def arrays(self, theta: Tensor) -> dict[str, np.ndarray]:
        """The parts that a flat vector holds, float64."""
        return {n: self.array(t) for n, t in self.split(theta).items()}

    def edit(self, values: np.ndarray, cells: np.ndarray) -> Edit:
        """The edit that writes float64 `values[cells]` of the flat vector to the flat cells, int `[k]` increasing, but
        for those that hold them already."""
        cells = cells[values[cells] != self.array(self.base)[cells]]
        patches, begin = [], 0
        for name, end in zip(self.names, self.ends.tolist(), strict=True):
            inside = cells[(cells >= begin) & (cells < end)]
            if inside.size:
                patches.append(Sparse(name, inside - begin, values[inside]))
            begin = end
        return Edit.of(self.agent, *patches)


def _squares(mean: Tensor, right: Tensor, box: tuple[np.ndarray, np.ndarray] | None) -> Tensor:
    """Squared errors `[N]` of continuous actions, in shares of their range; beyond the end of the range, where the
    end is right, is no error."""
    import torch

    error = mean - right
    if box is not None:
        low, high = (torch.as_tensor(b, dtype=mean.dtype) for b in box)
        error = torch.where(right >= high, error.clamp(max=0.0), error)
        error = torch.where(right <= low, error.clamp(min=0.0), error)
        error = error / (high - low)
    return (error**2).sum(1)


def trimmed(lessons: Lessons, memory: bool, steps: int) -> Lessons:
    """Without rows that count for nothing; or, where memory runs through them, in episodes of at least `steps`."""
    if not memory:
        kept = np.flatnonzero(lessons.weight > 0)
        return Lessons(lessons.obs[kept], lessons.right[kept], lessons.weight[kept])
    if lessons.steps >= steps:
        return lessons
    rows = np.arange(len(lessons)).reshape(-1, lessons.steps)
    rows = np.concatenate([rows, np.repeat(rows[:, -1:], steps - lessons.steps, axis=1)], axis=1)
    weight = lessons.weight[rows]
    weight[:, lessons.steps :] = 0.0
    return Lessons(lessons.obs[rows.reshape(-1)], lessons.right[rows.reshape(-1)], weight.reshape(-1), steps)
