"""Edits of weights: a few of them, biases alone, a matrix by a product of low rank, or all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from retarget.agent import Agent
from retarget.edit import Edit, LowRank
from retarget.editors.base import Candidate, Task
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.editors.hunt import PRECISIONS, Hunt, OutOfBudgetError, taught, twice

if TYPE_CHECKING:
    from torch import Tensor

By = Literal["gradient", "fisher"]


def grow(hunt: Hunt, *, by: By, steps: int, lr: float, most: int) -> tuple[Tensor, Tensor] | None:
    """Tune 1, 2, 4, ... numbers, each time adding those with the largest gradient where the last ones have come to
    rest (orthogonal matching pursuit, Pati et al. 1993), until rounding leaves what is required.

    Returns:
        The flat vector and the bool mask of its numbers that changed; None where `most` numbers do not suffice.
    """
    import torch

    tuner = hunt.tuner
    theta, mask, k = tuner.base, torch.zeros(tuner.n, dtype=torch.bool), 1
    while True:
        worth = tuner.gradient(theta).abs()
        if by == "fisher":
            fisher = tuner.fisher(theta)
            worth = worth**2 / (fisher + 1e-6 * fisher.max() + 1e-30)
        worth[mask] = -1.0
        mask[torch.topk(worth, min(k, tuner.n) - int(mask.sum())).indices] = True
        theta = hunt.fit(theta, steps=steps, lr=lr, mask=mask)
        if hunt.coarsest(tuner.array(theta), np.flatnonzero(mask.numpy())) is not None:
            return theta, mask
        if k >= min(most, tuner.n):
            return None
        k = min(2 * k, most, tuner.n)


def from_dense(hunt: Hunt, dense: Tensor, *, steps: int, lr: float, most: int) -> tuple[Tensor, Tensor]:
    """Keep the numbers that changed most when all were tuned, put the others back, and tune on: half of all numbers (or
    `most`), and half of that again, as long as that suffices (iterative magnitude pruning, Han et al. 2015, of the
    change). All of them, where not even the first half suffices."""
    import torch

    tuner = hunt.tuner
    order = torch.argsort((dense - tuner.base).abs(), descending=True)
    best = (dense, torch.ones(tuner.n, dtype=torch.bool))
    k = min(most, max(1, tuner.n // 2))
    while k >= 1:
        mask = torch.zeros(tuner.n, dtype=torch.bool)
        mask[order[:k]] = True
        theta = hunt.fit(torch.where(mask, dense, tuner.base), steps=steps, lr=lr, mask=mask)
        if hunt.coarsest(tuner.array(theta), np.flatnonzero(mask.numpy())) is None:
            break
        best, k = (theta, mask), k // 2
    return best


def thin(hunt: Hunt, theta: Tensor, mask: Tensor, *, steps: int, lr: float) -> tuple[Tensor, Tensor]:
    """Put back the numbers whose change matters least, a quarter at first (half, of many), and tune the others, as long
    as that leaves what is required. What matters: squared change times Fisher information (LeCun et al. 1990, with the
    empirical Fisher information for the second derivative)."""
    tuner, share = hunt.tuner, 0.5 if int(mask.sum()) > 256 else 0.25
    while int(mask.sum()) > 1:
        worth = (theta - tuner.base) ** 2 * tuner.fisher(theta)
        cells = mask.nonzero().reshape(-1)
        gone = cells[worth[cells].argsort()[: max(1, int(share * len(cells)))]]
        fewer = mask.clone()
        fewer[gone] = False
        start = theta.clone()
        start[gone] = tuner.base[gone]
        tuned = hunt.fit(start, steps=steps, lr=lr, mask=fewer)
        if hunt.coarsest(tuner.array(tuned), np.flatnonzero(fewer.numpy())) is not None:
            theta, mask = tuned, fewer
        elif len(gone) == 1:
            break
        else:
            share /= 2
    return theta, mask


def shave(hunt: Hunt, values: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put numbers back without tuning, in chunks and then one by one, and make the rest shorter one by one, as long as
    that leaves what is required. Returns the flat vector and the cells that are left."""
    tuner = hunt.tuner
    size = max(1, len(cells) // 4)
    while size and len(cells):
        at = 0
        while at < len(cells) and len(cells) > 1:
            trial = np.delete(cells, slice(at, at + size))
            if len(trial) and hunt.good(hunt.measure(tuner.edit(values, trial))):
                cells = trial
            else:
                at += size
        size //= 2
    for cell in cells:
        for share in PRECISIONS[:3]:
            trial = hunt.rounded(values, np.array([cell]), share)
            if trial[cell] != values[cell] and hunt.good(hunt.measure(tuner.edit(trial, cells))):
                values = trial
                break
    return values, cells


def refine(hunt: Hunt, theta: Tensor, mask: Tensor, *, steps: int, lr: float) -> None:
    """Thin out, round, and shave, again and again, as long as the shortest edit that does what is required becomes
    shorter."""
    import torch

    tuner, before = hunt.tuner, np.inf
    while hunt.best is not None and hunt.best.bits < before:
        before = hunt.best.bits
        theta, mask = thin(hunt, theta, mask, steps=steps, lr=lr)
        cells = np.flatnonzero(mask.numpy())
        rounded = hunt.coarsest(tuner.array(theta), cells)
        if rounded is None:
            return
        values, cells = shave(hunt, rounded, cells)
        mask = torch.zeros_like(mask)
        mask[torch.from_numpy(cells)] = True
        theta = torch.where(mask, torch.as_tensor(values, dtype=theta.dtype), tuner.base)


class SparseWeightsEditor:
    """A few numbers of the weights, chosen, tuned, quantised, and measured after that. Two ways to begin share the
    budget: numbers added as they are needed, and all numbers tuned, of which those that changed most are kept.

    Args:
        by: numbers are added by `gradient` (its size) or `fisher` (its square over the Fisher information).
        steps: gradient steps of each round of tuning.
        lr: their first rate.
        most: numbers to tune at most; above them, the search gives up.
    """

    name: ClassVar[str] = "sparse_weights"
    share: ClassVar[float] = 1.0

    def __init__(self, *, by: By = "gradient", steps: int = 100, lr: float = 0.05, most: int = 512) -> None:
        self.by: By = by
        self.steps, self.lr, self.most = steps, lr, most

    def names(self, agent: Agent) -> tuple[str, ...]:
        return names_of(agent, "weight")

    def search(self, task: Task) -> Sequence[Candidate]:
        names = self.names(task.agent)
        if not names or not isinstance(task.agent, Differentiable):
            return ()
        return twice(task, self.name, names, int(self.share * task.budget), self._from)

    def _from(self, hunt: Hunt) -> None:
        whole = hunt.limit
        for begin, until in ((self._grown, whole // 2), (self._dense, whole)):
            hunt.limit = until
            try:
                found = begin(hunt)
                if found is not None:
                    refine(hunt, *found, steps=self.steps * 3 // 5, lr=self.lr)
            except OutOfBudgetError:
                continue

    def _grown(self, hunt: Hunt) -> tuple[Tensor, Tensor] | None:
        return grow(hunt, by=self.by, steps=self.steps, lr=self.lr, most=self.most)

    def _dense(self, hunt: Hunt) -> tuple[Tensor, Tensor] | None:
        tuner, dense = hunt.tuner, hunt.tuner.base
        hunt.revisit()
        for i in range(3):
            dense = hunt.fit(dense, steps=3 * self.steps * 2**i, lr=self.lr / 5, shrink=0.1)
            if hunt.coarsest(tuner.array(dense), np.arange(tuner.n)) is not None:
                return from_dense(hunt, dense, steps=self.steps, lr=self.lr / 2, most=8 * self.most)
        return None


class BiasEditor(SparseWeightsEditor):
    """The same for the weights with one axis alone: biases (and gains of normalisation)."""

    name: ClassVar[str] = "bias"
    share: ClassVar[float] = 0.25

    def names(self, agent: Agent) -> tuple[str, ...]:
        return tuple(n for n in names_of(agent, "weight") if agent.parts[n].array.ndim == 1)


class _Product(Tuner):
    """Two factors of what is added to one matrix, as one flat vector: `left` `[m, r]`, then `right` `[n, r]`."""

    def __init__(self, plain: Tuner, rank: int) -> None:
        import torch

        self.__dict__.update(plain.__dict__)
        self.matrix, self.rank = plain.base.reshape(plain.shapes[0]), rank
        # begin along the steepest descent: the first singular vectors of the gradient, small and balanced
        u, s, vt = torch.linalg.svd(plain.gradient(plain.base).reshape(plain.shapes[0]), full_matrices=False)
        self.grad_steps, self.flops = plain.grad_steps, plain.flops
        root = 0.3 * (s[:rank] / s[0].clamp(min=1e-30)).sqrt()
        self.start = torch.cat([-(u[:, :rank] * root).reshape(-1), (vt[:rank].T * root).reshape(-1)])
        self.base = torch.zeros_like(self.start)

    def split(self, theta: Tensor) -> dict[str, Tensor]:
        m, n = self.matrix.shape
        left, right = theta[: m * self.rank].reshape(m, -1), theta[m * self.rank :].reshape(n, -1)
        return {self.names[0]: self.matrix + left @ right.T}

    def edit(self, values: np.ndarray, cells: np.ndarray) -> Edit:
        flat = np.zeros(len(values))
        flat[cells] = values[cells]
        m, n = self.matrix.shape
        left, right = flat[: m * self.rank].reshape(m, -1), flat[m * self.rank :].reshape(n, -1)
        used = (left != 0).any(0) & (right != 0).any(0)
        used = used if used.any() else np.arange(self.rank) == 0
        return Edit.of(self.agent, LowRank(self.names[0], left[:, used], right[:, used]))


class LowRankEditor:
    """To one matrix of weights, add a product of two factors of rank 1, 2, 4, ...; the factors are tuned (source: Hu et
    al. 2022), quantised, and thinned out. Every matrix is tried at each rank until one suffices.

    Args:
        ranks: to try, rising.
        steps, lr: of the tuning of one matrix at one rank.
    """

    name: ClassVar[str] = "low_rank"

    def __init__(self, *, ranks: Sequence[int] = (1, 2, 4), steps: int = 150, lr: float = 0.05) -> None:
        self.ranks, self.steps, self.lr = tuple(ranks), steps, lr

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        names = [n for n in names_of(agent, "weight") if agent.parts[n].array.ndim == 2]
        if not names or not isinstance(agent, Differentiable):
            return ()
        return twice(task, self.name, names[:1], task.budget // 2, lambda hunt: self._from(hunt, names))

    def _from(self, hunt: Hunt, names: Sequence[str]) -> None:
        task, lessons = hunt.task, hunt.tuner.lessons
        agent = task.agent
        assert isinstance(agent, Differentiable)
        try:
            for rank in self.ranks:
                done: list[tuple[float, _Product, Tensor]] = []
                for name in names:
                    if min(agent.parts[name].array.shape) >= rank:
                        tuner = _Product(Tuner(agent, (name,), lessons, seed=task.seed), rank)
                        hunt.over(tuner)
                        theta = hunt.fit(tuner.start, steps=self.steps, lr=self.lr)
                        done.append((float(tuner.loss(theta)), tuner, theta))
                if self._finish(hunt, sorted(done, key=lambda d: d[0])[:2]):
                    break
        except OutOfBudgetError:
            pass

    def _finish(self, hunt: Hunt, done: Sequence[tuple[float, _Product, Tensor]]) -> bool:
        import torch

        enough = False
        for _, tuner, theta in done:
            # what was counted of this tuner was told already
            hunt.over(_resumed(tuner))
            cells = np.arange(tuner.n)
            if hunt.coarsest(tuner.array(theta), cells) is None:
                continue
            enough = True
            refine(hunt, theta, torch.ones(tuner.n, dtype=torch.bool), steps=self.steps // 2, lr=self.lr)
        return enough


def _resumed(tuner: _Product) -> _Product:
    tuner.grad_steps, tuner.flops = 0, 0.0
    return tuner


class RetrainWeightsEditor:
    """Tune all weights, for doubling numbers of steps until that suffices; write down the difference, coarsely rounded.
    Then the same with the smallest changes left out, as many as the requirement allows without more tuning.

    Args:
        first: gradient steps of the first round.
        doublings: how often that is doubled.
        lr: first rate of each round.
        shrink: pull of the weights toward where they were (L1).
    """

    name: ClassVar[str] = "retrain_weights"

    def __init__(self, *, first: int = 50, doublings: int = 4, lr: float = 0.01, shrink: float = 0.0) -> None:
        self.first, self.doublings, self.lr, self.shrink = first, doublings, lr, shrink

    def search(self, task: Task) -> Sequence[Candidate]:
        names = names_of(task.agent, "weight")
        if not names or not isinstance(task.agent, Differentiable):
            return ()
        hunt = taught(task, self.name, names, task.budget)
        tuner = hunt.tuner
        theta, every = tuner.base, np.arange(tuner.n)
        try:
            for i in range(self.doublings + 1):
                theta = hunt.fit(theta, steps=self.first * 2**i, lr=self.lr, shrink=self.shrink)
                if hunt.coarsest(tuner.array(theta), every) is not None:
                    self._fewer(hunt, tuner.array(theta))
                    break
        except OutOfBudgetError:
            pass
        return hunt.kept()

    def _fewer(self, hunt: Hunt, values: np.ndarray) -> None:
        tuner = hunt.tuner
        order = np.argsort(-np.abs(values - tuner.array(tuner.base)), kind="stable")
        low, high = 0, len(order)
        while high - low > max(1, high // 8):
            middle = (low + high) // 2
            if hunt.coarsest(values, np.sort(order[:middle])) is None:
                low = middle
            else:
                high = middle
