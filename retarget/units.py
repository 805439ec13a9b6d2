"""Units of an agent that can be taken out one by one: what an ablation is, and who allows one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from retarget.agent import Agent, own
from retarget.errors import AgentError


class UnvaryingError(AgentError):
    """No unit of a layer varies over the observations given: taking one out, to its mean, would change nothing."""


@dataclass(frozen=True)
class UnitLayer:
    """A layer of like units.

    Attributes:
        name: unique within the agent.
        what: what its units are: `hidden unit`, `channel`, `memory unit`, `neuron`, `head`.
        n_units: how many.
        path: what its direct path to the scores is: `gates`: through what comes after it, each later unit answering
            with the slope that it has in the intact network; `residual`: by addition to the residual stream alone, the
            final norm's scale as in the intact network; `readout`: by the linear layer that reads the scores off.
    """

    name: str
    what: str
    n_units: int
    path: str


@dataclass(frozen=True, eq=False)
class Ablation:
    """What taking out units of a layer does, one unit at a time, each beside the intact network.

    The *margin* of an observation is the score of the action that the intact network takes, less that of its
    runner-up; both stay the same two actions throughout. An effect is the intact margin less the one after.

    Attributes:
        margin: float64 `[R]`: of the intact network.
        total: float64 `[U, R]`: effect with everything after the unit computed anew.
        direct: float64 `[U, R]`: effect along the layer's direct path alone.
        policy: float64 `[U, R, A]`: action probabilities without the unit.
        clean: float64 `[R, A]`: the same with every unit put back as it was, through the same machinery.
        change: float64 `[U]`: by how much the unit's activation moved at most; 0 for a unit that never varies.
        agents: for agents with memory, the agents without each unit, as policies along one sequence say nothing of
            another; None otherwise.
    """

    margin: np.ndarray
    total: np.ndarray
    direct: np.ndarray
    policy: np.ndarray
    clean: np.ndarray
    change: np.ndarray
    agents: tuple[Agent, ...] | None = None

    def __post_init__(self) -> None:
        if self.total.shape != self.direct.shape or self.total.shape != (len(self.change), len(self.margin)):
            raise AgentError(
                f"total and direct effects must share a shape, got {self.total.shape}, {self.direct.shape}"
            )
        for name in ("margin", "total", "direct", "policy", "clean", "change"):
            array = np.asarray(getattr(self, name), np.float64)
            if not np.isfinite(array).all():
                raise AgentError(f"{name} of an ablation must be finite; are the weights?")
            object.__setattr__(self, name, own(array))


@runtime_checkable
class HasUnits(Protocol):
    """An agent whose units can be replaced by what they are on average."""

    def unit_layers(self) -> tuple[UnitLayer, ...]:
        """Its layers, from the input to the scores; empty where there is none."""
        ...

    def ablated(self, layer: str, units: Sequence[int], obs: np.ndarray, *, among: np.ndarray) -> Ablation:
        """Replace units of a layer by their mean, one unit at a time.

        Args:
            layer: a name of `unit_layers`.
            units: which ones.
            obs: `[R, ...]` observations as `policy` takes them; for agents with memory `[N, T, ...]` sequences from the
                start of an episode, R = N · T, row by row.
            among: bool `[R]`: over which of them means are taken.

        Raises:
            AgentError: for an unknown layer or unit, or where a replacement was not made just once in a pass.
            UnvaryingError: where the replacement would change no activation at all.
        """
        ...
