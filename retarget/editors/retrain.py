"""Train the agent toward the new goal, and write down what changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, Trainable
from retarget.edit import Edit, Patch, Sparse, difference
from retarget.editors.base import Candidate, Scorer, Task, shortest_form
from retarget.errors import EditError


class RetrainEditor:
    """Retraining with doubling budgets, until the requirement is met.

    The edit is the whole difference, in its shortest form, without what is frozen; real values are rounded to the
    fewest significant bits that keep the requirement, and measured after rounding.

    Args:
        first: first budget, in episodes.
        doublings: how often the budget is doubled.
    """

    name: ClassVar[str] = "retrain"

    def __init__(self, *, first: int = 16, doublings: int = 10) -> None:
        self.first, self.doublings = first, doublings

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        if not isinstance(agent, Trainable):
            return ()
        scorer = Scorer(task, self.name)
        out: list[Candidate] = []
        for i in range(self.doublings + 1):
            trained, spend = agent.retrained(task.world, task.goal, budget=self.first * 2**i, seed=task.seed)
            scorer.spend = scorer.spend + spend
            whole = learned(task, trained)
            if task.frozen and not whole.patches:
                continue
            out.append(self._candidate(scorer, whole))
            if task.enough(out[-1].competence):
                break
        return out

    def _candidate(self, scorer: Scorer, whole: Edit) -> Candidate:
        agent = scorer.task.agent
        plain = shortest_form(agent, whole)
        best = scorer.candidate(plain, scorer.score(plain.apply(agent)))
        for bits in (4, 8, 16):
            rounded = _rounded(agent, whole, bits)
            if rounded is None:
                return best
            candidate = scorer.candidate(rounded, scorer.score(rounded.apply(agent)))
            if candidate.bits < best.bits and candidate.competence >= best.competence - 1e-12:
                return candidate
        return best


def learned(task: Task, trained: Agent) -> Edit:
    """The difference to the trained agent, without what it changed of frozen parts."""
    whole = difference(task.agent, trained)
    return replace(whole, patches=tuple(p for p in whole.patches if p.part not in task.frozen))


def significant(values: np.ndarray, bits: int) -> np.ndarray:
    """Real values rounded to `bits` significant bits.

    >>> significant(np.array([0.9, 5.0, 0.0]), 1).tolist()
    [1.0, 4.0, 0.0]
    """
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent))


def _rounded(agent: Agent, whole: Edit, bits: int) -> Edit | None:
    """An edit of sparse patches with real values rounded to `bits` significant bits; None where there are none."""
    patches: list[Patch] = []
    real = False
    for patch in whole.patches:
        if isinstance(patch, Sparse) and patch.value.dtype.kind == "f":
            real = True
            patches.append(Sparse(patch.part, patch.index, significant(patch.value, bits)))
        else:
            patches.append(patch)
    try:
        return shortest_form(agent, Edit.of(agent, *patches)) if real else None
    except EditError:  # pragma: no cover - rounding never leaves the finite numbers of a trained table
        return None
