"""Editors: searches for edits under a budget."""

from __future__ import annotations

from retarget.editors.activation import ActivationEditor
from retarget.editors.base import Candidate, Editor, Task, points, prove, shortest, shortest_form
from retarget.editors.exceptions import ExceptionEditor
from retarget.editors.fitted import FittedEditor
from retarget.editors.random import RandomEditor
from retarget.editors.retrain import RetrainEditor
from retarget.editors.slot import SlotEditor
from retarget.editors.sparse import SparseEditor
from retarget.editors.table import TableEditor
from retarget.editors.weights import BiasEditor, LowRankEditor, RetrainWeightsEditor, SparseWeightsEditor


def default_editors() -> tuple[Editor, ...]:
    """The editors that compete for the shortest edit."""
    anything = (SlotEditor(), TableEditor(), FittedEditor(), SparseEditor(), RetrainEditor(), ExceptionEditor())
    return (*anything, *network_editors())


def network_editors() -> tuple[Editor, ...]:
    """The editors that follow gradients. They have nothing to offer for agents without."""
    return (SparseWeightsEditor(), BiasEditor(), LowRankEditor(), ActivationEditor(), RetrainWeightsEditor())


__all__ = [
    "ActivationEditor",
    "BiasEditor",
    "Candidate",
    "Editor",
    "ExceptionEditor",
    "FittedEditor",
    "LowRankEditor",
    "RandomEditor",
    "RetrainEditor",
    "RetrainWeightsEditor",
    "SlotEditor",
    "SparseEditor",
    "SparseWeightsEditor",
    "TableEditor",
    "Task",
    "default_editors",
    "network_editors",
    "points",
    "prove",
    "shortest",
    "shortest_form",
]
