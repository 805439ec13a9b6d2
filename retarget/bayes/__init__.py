"""Approximations of AIXI: context tree weighting for a model, ρUCT for a planner, and the paper's small domains."""

from __future__ import annotations

from retarget.bayes.ctw import Coding, CompiledModel, ContextTree, ReferenceModel
from retarget.bayes.domains import DOMAINS, Domain, Settings, make_domain
from retarget.bayes.kt import kt_log_block, kt_next
from retarget.bayes.learn import RECIPES, Average, Curve, Learned, evaluate, learn
from retarget.bayes.solve import Solution, solve

__all__ = [
    "DOMAINS",
    "RECIPES",
    "Average",
    "Coding",
    "CompiledModel",
    "ContextTree",
    "Curve",
    "Domain",
    "Learned",
    "ReferenceModel",
    "Settings",
    "Solution",
    "evaluate",
    "kt_log_block",
    "kt_next",
    "learn",
    "make_domain",
    "solve",
]
