"""Search on arrays: trees over a batch of roots, exact paths, value iteration. No agent lives here."""

from __future__ import annotations

from retarget.search.settings import Found, TreeModel, TreeSettings
from retarget.search.tree import search

__all__ = ["Found", "TreeModel", "TreeSettings", "search"]
