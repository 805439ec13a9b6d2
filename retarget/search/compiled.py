"""The compiled engine: arrays for the kernels, and a look at the memory before they are made."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from retarget.errors import AgentError
from retarget.search import tree_kernels as kernels
from retarget.search.reference import halving
from retarget.search.settings import Evaluate, Found, TreeModel, TreeSettings
from retarget.search.tree_choices import Answers, Facts, Priors, Rules, Trees

#: Trees that are searched in turns where leaves are judged by tables: one works while the other waits.
SIDE = 2
#: Below this many bytes nobody asks how much memory is free: to ask takes longer than a small search.
UNASKED = 1 << 26
#: Above this factor on values, exponentials are not guessed.
QUICK_UP_TO = 1e5

#: Shape and type of arrays, by name.
_Shapes = dict[str, tuple[tuple[int, ...], type]]


def _node_shapes(n_actions: int, n_successors: int) -> _Shapes:
    """What `Trees` know of one node; `visits` first, from where the kernels fetch it."""
    out: _Shapes = dict.fromkeys(("visits", "raw", "best"), ((), np.float64))
    out |= dict.fromkeys(("more", "sums", "shown"), ((n_actions,), np.float64))
    out["child"] = ((n_actions * n_successors,), np.uint32)
    return out | dict.fromkeys(("pick", "link", "state", "stamp"), ((), np.uint32))


def _prior_shapes(settings: TreeSettings, n_actions: int) -> _Shapes:
    """One row of `Priors`. Only gumbel reads logits."""
    names = ("pull", "logit", "base") if settings.method == "gumbel" else ("pull",)
    return {**dict.fromkeys(names, ((n_actions,), np.float64)), "first": ((), np.uint32)}


def _tree_shapes(n_trees: int, n_nodes: int, n_actions: int) -> _Shapes:
    """What `Trees` know of whole trees."""
    t, a = n_trees, n_actions
    out: _Shapes = {"path": ((t, n_nodes), np.uint32), "range": ((t, 3), np.float64), "count": ((t, 4), np.int64)}
    out |= {"leaf": ((t, 3), np.uint32), "noise": ((t, a), np.float64), "key": ((t,), np.uint64)}
    return out | {"scores": ((2, a), np.float64)}


def _answer_shapes(n_roots: int, n_actions: int) -> _Shapes:
    b, a = n_roots, n_actions
    one: _Shapes = {"value": ((b,), np.float64), "action": ((b,), np.int64), "steps": ((b,), np.int64)}
    two: _Shapes = {"visits": ((b, a), np.int32), "q": ((b, a), np.float64), "policy": ((b, a), np.float64)}
    return one | two | {"nodes": ((b,), np.int32)}


def _in_front(shape: tuple[int, int], rows: _Shapes) -> _Shapes:
    return {name: (shape + rest, kind) for name, (rest, kind) in rows.items()}


@dataclass(frozen=True)
class _Layout:
    """Arrays to be made: each for itself, or all that is known of a node side by side.

    Where many trees take turns, each step comes to a node that is in no cache, and the fewer lines it lies on the
    better.
    """

    apart: _Shapes
    nodes: tuple[int, int] = (0, 0)
    together: _Shapes = field(default_factory=dict)

    @classmethod
    @lru_cache(maxsize=256)
    def small(cls, n_trees: int, shape: tuple[int, int, int], settings: TreeSettings) -> _Layout:
        """A few trees, and a prior for each state of a model of shape (S, A, K)."""
        s, a, k = shape
        size = (n_trees, settings.simulations + 1)
        rows = _in_front(size, _node_shapes(a, k)) | _in_front((1, s), _prior_shapes(settings, a))
        return cls(rows | _tree_shapes(*size, a))

    @classmethod
    @lru_cache(maxsize=256)
    def resident(cls, n_trees: int, settings: TreeSettings, n_actions: int, n_successors: int) -> _Layout:
        """All trees at once, and a prior for each node."""
        size = (n_trees, settings.simulations + 1)
        rows = _node_shapes(n_actions, n_successors) | _prior_shapes(settings, n_actions)
        return cls(_tree_shapes(*size, n_actions), size, rows)

    @classmethod
    @lru_cache(maxsize=256)
    def answers(cls, n_roots: int, n_actions: int) -> _Layout:
        """What is found."""
        return cls(_answer_shapes(n_roots, n_actions))

    @cached_property
    def record(self) -> np.dtype:
        """What is known of one node. Wide numbers come before narrow ones, so that none lies across two words."""
        order = sorted(self.together.items(), key=lambda item: -np.dtype(item[1][1]).itemsize)
        return np.dtype([(name, kind, shape) for name, (shape, kind) in order], align=True)

    @cached_property
    def n_bytes(self) -> int:
        alone = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in self.apart.values())
        return int(alone) + math.prod(self.nodes) * self.record.itemsize

    def make(self) -> dict[str, np.ndarray]:
        alone: dict[str, np.ndarray] = {name: np.empty(shape, kind) for name, (shape, kind) in self.apart.items()}
        if not self.together:
            return alone
        nodes = np.empty(self.nodes, self.record)
        return alone | {name: nodes[name] for name in self.together}


def bytes_needed(n_roots: int, settings: TreeSettings, n_actions: int, n_successors: int) -> int:
    """Bytes of all trees at once, as where leaves are judged by calls: trees, their priors, and the answers.

    >>> bytes_needed(1024, TreeSettings(simulations=128), 4, 1) // 2**20
    24
    """
    layout = _Layout.resident(n_roots, settings, n_actions, n_successors)
    return layout.n_bytes + _Layout.answers(n_roots, n_actions).n_bytes


def free_bytes() -> int:
    """Memory that is free, as the system tells; else a quarter of all there is; 1 GiB where it tells nothing."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (OSError, ValueError, AttributeError, IndexError):
        return 1 << 30


def _check_memory(needed: int, limit: int | None, n_roots: int, settings: TreeSettings) -> None:
    if limit is None:
        if needed <= UNASKED:
            return
        limit = free_bytes() // 2
    if needed > limit:
        raise AgentError(
            f"a search of {n_roots} roots with {settings.simulations} simulations needs {needed} bytes, "
            f"the limit is {limit}; take fewer roots or simulations"
        )


def _facts(model: TreeModel) -> Facts:
    """The model as the kernels read it; kept with the model, which never changes."""
    kept: Facts | None = model.__dict__.get("_facts")
    if kept is None:
        kept = _made_facts(model)
        model.__dict__["_facts"] = kept
    return kept


def _made_facts(model: TreeModel) -> Facts:
    nxt, prob, value = (np.ascontiguousarray(x) for x in (model.next_state, model.prob, model.value))
    ends, worth = np.append(model.reward != 0, True), np.append(model.reward, 0.0)
    return Facts(nxt.view(np.uint32), prob, ends, worth, value)


@lru_cache(maxsize=256)
def _rules(shape: tuple[int, int, int], settings: TreeSettings, tables: bool) -> Rules:
    s, a, k = shape
    gumbel = settings.method == "gumbel"
    n = settings.simulations
    schedule = halving(min(settings.considered, a), n) if gumbel else [0]
    return Rules(
        gumbel=gumbel,
        by_max=settings.backup == "max",
        tables=tables,
        quick=(settings.visit_scale + n) * settings.value_scale < QUICK_UP_TO,
        n_states=s,
        n_actions=a,
        n_successors=k,
        simulations=n,
        rollout_steps=settings.rollout_steps,
        gamma=float(settings.gamma),
        exploration=float(settings.exploration),
        visit_scale=float(settings.visit_scale),
        value_scale=float(settings.value_scale),
        gumbel_scale=float(settings.gumbel_scale),
        schedule=np.array(schedule, np.float64),
    )


def search_compiled(
    model: TreeModel,
    roots: np.ndarray,
    keys: np.ndarray,
    settings: TreeSettings,
    evaluate: Evaluate | None,
    memory_limit_bytes: int | None,
) -> Found:
    """As `retarget.search.search`, whose arguments these are.

    Without `evaluate`, roots are searched one after the other, in memory that grows with the simulations and not with
    the roots. With it, all trees are kept, and take turns with `evaluate`.

    Raises:
        AgentError: where the arrays would exceed the limit; none of them has been made then.
    """
    _, a, k = shape = model.next_state.shape
    # made anew, so that the kernels always see the same types of arrays
    roots, keys = np.array(roots, np.int64), np.array(keys, np.uint64)
    rules = _rules(shape, settings, evaluate is None)
    if evaluate is None:
        layout = _Layout.small(min(SIDE, len(roots)), shape, settings)
    else:
        layout = _Layout.resident(len(roots), settings, a, k)
    answers = _Layout.answers(len(roots), a)
    _check_memory(layout.n_bytes + answers.n_bytes, memory_limit_bytes, len(roots), settings)
    arrays = layout.make()
    trees = Trees(**{name: arrays[name] for name in Trees._fields})
    # what a method does not read is some other array of the same type
    priors = Priors(**{name: arrays.get(name, arrays["pull"]) for name in Priors._fields})
    made, out = (trees, _facts(model), priors, rules), Answers(**answers.make())
    if evaluate is None:
        kernels.search_tables(*made, np.ascontiguousarray(model.prior), roots, keys, out)
    else:
        _in_turns(made, roots, keys, evaluate, out)
    return Found(**out._asdict())


_Made = tuple[Trees, Facts, Priors, Rules]


def _in_turns(made: _Made, roots: np.ndarray, keys: np.ndarray, evaluate: Evaluate, out: Answers) -> None:
    trees, _, priors, rules = made
    value, prior = (np.array(x, np.float64, order="C") for x in evaluate(roots.copy()))
    ask = np.empty(len(roots), np.int64)
    kernels.begin(*made, prior, value, roots, keys, ask)
    for simulation in range(rules.simulations):
        value, prior = (np.array(x, np.float64, order="C") for x in evaluate(ask))
        ask = np.empty(len(roots), np.int64)  # whoever was asked may have kept the last one
        kernels.turn(*made, prior, value, roots, simulation, ask)
    kernels.finish(trees, priors, rules, out)
