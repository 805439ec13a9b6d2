"""Probes: pure measurements of an agent in a world. One file a probe."""

from __future__ import annotations

from collections.abc import Mapping

from retarget.probe import Probe
from retarget.probes.adaptation import Adaptation
from retarget.probes.behaviour import Behaviour
from retarget.probes.decomposition import Decomposition
from retarget.probes.filtered import Filtered
from retarget.probes.goal_directedness import GoalDirectedness
from retarget.probes.goal_gradient import GoalGradient
from retarget.probes.goal_map import GoalMap
from retarget.probes.intrinsic_dimension import IntrinsicDimension
from retarget.probes.narrowness import Narrowness
from retarget.probes.orbits import OrbitRetargetability
from retarget.probes.out_of_distribution import OutOfDistribution
from retarget.probes.prequential import Prequential
from retarget.probes.retargetability import Retargetability
from retarget.probes.robustness import Robustness
from retarget.probes.weights import Weights
from retarget.probes.where import Where

#: Probes by name, for studies and the command line.
PROBES: Mapping[str, type[Probe]] = {
    p.name: p
    for p in (
        Retargetability,
        Robustness,
        Behaviour,
        Prequential,
        Where,
        GoalMap,
        Decomposition,
        GoalGradient,
        Narrowness,
        OutOfDistribution,
        Filtered,
        Weights,
        GoalDirectedness,
        Adaptation,
        OrbitRetargetability,
        IntrinsicDimension,
    )
}

__all__ = [
    "PROBES",
    "Adaptation",
    "Behaviour",
    "Decomposition",
    "Filtered",
    "GoalDirectedness",
    "GoalGradient",
    "GoalMap",
    "IntrinsicDimension",
    "Narrowness",
    "OrbitRetargetability",
    "OutOfDistribution",
    "Prequential",
    "Retargetability",
    "Robustness",
    "Weights",
    "Where",
]
