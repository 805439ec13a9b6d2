"""Editors: searches for edits under a budget."""

from __future__ import annotations

from retarget.editors.base import Candidate, Editor, Task, points, prove, shortest, shortest_form
from retarget.editors.exceptions import ExceptionEditor
from retarget.editors.random import RandomEditor
from retarget.editors.retrain import RetrainEditor
from retarget.editors.slot import SlotEditor
from retarget.editors.sparse import SparseEditor
from retarget.editors.table import TableEditor


def default_editors() -> tuple[Editor, ...]:
    """The editors that compete for the shortest edit."""
    return (SlotEditor(), TableEditor(), SparseEditor(), RetrainEditor(), ExceptionEditor())


__all__ = [
    "Candidate",
    "Editor",
    "ExceptionEditor",
    "RandomEditor",
    "RetrainEditor",
    "SlotEditor",
    "SparseEditor",
    "TableEditor",
    "Task",
    "default_editors",
    "points",
    "prove",
    "shortest",
    "shortest_form",
]
