"""Agents: anything with a policy and parts."""

from __future__ import annotations

from retarget.agents.compiled import compile_policy
from retarget.agents.controller import Controller
from retarget.agents.planner import LearnedPlanner, Planner, exact_planner, learned_planner
from retarget.agents.search import TreeSearcher, tree_searcher
from retarget.agents.tabular import GoalTable, QTable, TablePolicy, train_q_table

compile = compile_policy

__all__ = [
    "Controller",
    "GoalTable",
    "LearnedPlanner",
    "Planner",
    "QTable",
    "TablePolicy",
    "TreeSearcher",
    "compile",
    "compile_policy",
    "exact_planner",
    "learned_planner",
    "train_q_table",
    "tree_searcher",
]
