"""Steering vectors: add a vector to what flows through a hook point. Its weights stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol, cast, runtime_checkable

import numpy as np

from retarget.agent import HasGoalSlot
from retarget.editors.base import Candidate, Task
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.editors.hunt import Hunt, OutOfBudgetError, taught
from retarget.editors.slot import slot_edit
from retarget.editors.weights import refine, shave

if TYPE_CHECKING:
    from retarget.agents.neural import Architecture, NetworkAgent


@runtime_checkable
class Hooked(Protocol):
    """An agent with an architecture that names its hook points, each of which is an `activation` part."""

    @property
    def architecture(self) -> Architecture: ...


#: Factors that a mean difference is scaled by.
FACTORS = (1.0, 2.0, 4.0)


class ActivationEditor:
    """A vector for one hook point: tuned, quantised, and thinned out to its largest entries; and, for an agent with a
    goal slot, the mean difference between what flows there with B in the slot and with its own goal (source: Turner et
    al. 2023), scaled by a few factors.

    The forward pass itself proves that the vector fired: an agent raises EditError for one that never did.

    Args:
        steps, lr: of the tuning of one vector.
        hooks: the hook points tried at most, evenly spread where there are more.
    """

    name: ClassVar[str] = "activation"

    def __init__(self, *, steps: int = 150, lr: float = 0.05, hooks: int = 8) -> None:
        self.steps, self.lr, self.hooks = steps, lr, hooks

    def search(self, task: Task) -> Sequence[Candidate]:
        agent = task.agent
        names = names_of(agent, "activation")
        if not names or not isinstance(agent, Differentiable):
            return ()
        spread = np.unique(np.linspace(0, len(names) - 1, min(self.hooks, len(names))).round())
        names = tuple(names[int(i)] for i in spread)
        hunt = taught(task, self.name, names[:1], task.budget // 2, short=True)
        lessons = hunt.tuner.lessons
        try:
            for name in names:
                hunt.over(Tuner(agent, (name,), lessons, seed=task.seed))
                self._tuned(hunt)
            for name, vector in mean_differences(task, lessons.obs).items():
                hunt.over(Tuner(agent, (name,), lessons, seed=task.seed))
                self._scaled(hunt, vector)
        except OutOfBudgetError:
            pass
        return hunt.kept()

    def _tuned(self, hunt: Hunt) -> None:
        import torch

        tuner = hunt.tuner
        theta = hunt.fit(tuner.base, steps=self.steps, lr=self.lr)
        cells = np.arange(tuner.n)
        if hunt.coarsest(tuner.array(theta), cells) is None:
            return
        refine(hunt, theta, torch.ones(tuner.n, dtype=torch.bool), steps=self.steps // 2, lr=self.lr)

    def _scaled(self, hunt: Hunt, vector: np.ndarray) -> None:
        base = hunt.tuner.array(hunt.tuner.base)
        cells = np.flatnonzero(vector)
        for factor in FACTORS:
            if cells.size and (rounded := hunt.coarsest(base + factor * vector, cells)) is not None:
                shave(hunt, rounded, cells)
                return


def mean_differences(task: Task, obs: np.ndarray) -> dict[str, np.ndarray]:
    """For each activation part, the mean over observations of what flows there with goal B in the slot, less the same
    with the agent's own: float64 by part name. Empty for an agent without a goal slot, or where B cannot be written."""
    from retarget.agents.neural import STEER, record

    agent = task.agent
    writes = agent.slot_writes(task.goal) if isinstance(agent, HasGoalSlot) else ()
    if not writes or not isinstance(agent, Hooked):
        return {}
    aimed = slot_edit(agent, writes[0]).apply(agent)
    before, after = (record(cast("NetworkAgent", a), obs) for a in (agent, aimed))
    out = {}
    for hook in agent.architecture.hooks:
        change = np.moveaxis(after[hook.name] - before[hook.name], hook.axis, -1)
        out[STEER + hook.name] = change.reshape(-1, hook.width).mean(0)
    return out
