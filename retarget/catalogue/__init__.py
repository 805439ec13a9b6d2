"""Agents by name: what a study file and the command line may ask for, and how each kind is built."""

from retarget.catalogue.entries import (
    AgentEntry,
    AgentSpec,
    NotApplicableHere,
    Option,
    Recipe,
    build_agent,
    catalogue,
    check_heard,
    check_spec,
    check_together,
)

__all__ = [
    "AgentEntry",
    "AgentSpec",
    "NotApplicableHere",
    "Option",
    "Recipe",
    "build_agent",
    "catalogue",
    "check_heard",
    "check_spec",
    "check_together",
]
