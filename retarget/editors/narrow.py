"""Narrow edits: change what an agent does in a region, and see what that changes elsewhere.

Every route that an agent has is tried: cells of its table, its goal slot, its model, its weights. The candidates of all
of them go into one pool, each with its length, what it does inside, and what it does outside; the shortest is chosen
from it for each collateral that is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Agent, Categorical, HasGoalSlot, HasTable, Real, TableView, Trainable
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Slot, Sparse, difference
from retarget.editors.base import Candidate, Task, shortest_form
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.editors.hunt import Hunt, OutOfBudgetError
from retarget.editors.random import RandomEditor
from retarget.editors.retrain import RetrainEditor
from retarget.editors.slot import is_reward, slot_edit
from retarget.editors.sparse import _Subset, debugged
from retarget.editors.weights import from_dense, grow, refine
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.lessons import Lessons
from retarget.regions import softened_kl
from retarget.rng import stream
from retarget.trials import Score
from retarget.world import FiniteModel, FiniteWorld

if TYPE_CHECKING:
    from torch import Tensor

#: Allowed collateral, in bits, that stands for any: no softened divergence comes near it.
ANY = 100.0
#: How close a collateral must be to what is allowed to count as no more than that, in bits.
SLACK = 1e-9
#: What a reward written beside the one in force is worth.
WORTHS = (1.0, 0.5, 0.75, 0.25, 2.0, -1.0)
#: Simulations of decisions that the trials of an agent that searches in each state may take, but `FEWEST` trials.
SIMULATIONS, FEWEST = 65_536, 24


@dataclass(frozen=True)
class Effect:
    """What an edit does.

    Attributes:
        inside: probability of a wanted action, mean over the states that count, in [0, 1].
        kl_bits: `KL(edited || unedited)` a decision, over decisions outside the region, in bits.
        changed: total variation distance, summed likewise: share of decisions that came out different, in [0, 1].
    """

    inside: float
    kl_bits: float
    changed: float


@dataclass(frozen=True, eq=False)
class Ask:
    """A question: do what is wanted inside, as before outside.

    Attributes:
        agent, world, goal_a, goal_b, gamma: whose, where.
        counted: bool `[S]`, states of the region in which something is wanted.
        wanted: bool `[S, A]`, what is.
        outside: bool `[S]`, states outside the region.
        often: float64 `[S]`, share of the unedited agent's decisions in each state, summing to 1 (or all 0).
        level: share of what is wanted that suffices, in (0, 1].
        epsilon: share of the uniform policy that both policies are softened by, in (0, 1).
        seed: names the random streams.
        budget: most candidates of one route; steps and candidates of one search over weights.
    """

    agent: Agent
    world: FiniteWorld
    goal_a: StateGoal
    goal_b: StateGoal
    gamma: float
    counted: np.ndarray
    wanted: np.ndarray
    outside: np.ndarray
    often: np.ndarray
    level: float
    epsilon: float
    seed: int
    budget: int

    @property
    def model(self) -> FiniteModel:
        return self.world.model

    def behaviour(self, agent: Agent) -> np.ndarray:
        """What an edited agent does: float64 `[S, A]`. Models that an edit has made no distribution may overflow."""
        with np.errstate(over="ignore", invalid="ignore"):
            return policy_table(agent, self.model)

    @cached_property
    def before(self) -> np.ndarray:
        """The unedited behaviour: float64 `[S, A]`."""
        return policy_table(self.agent, self.model)

    @cached_property
    def lacking(self) -> np.ndarray:
        """Int `[N]`: states that count and where the unedited agent does not surely do what is wanted."""
        return np.flatnonzero(self.counted & ((self.before * ~self.wanted).sum(1) > 0))

    def effect(self, probs: np.ndarray) -> Effect:
        """What a behaviour `[S, A]` does, against the unedited one."""
        inside = (probs * self.wanted).sum(1)[self.counted]
        weight = np.where(self.outside, self.often, 0.0)
        kl = float(weight @ softened_kl(probs, self.before, self.epsilon))
        changed = float(weight @ np.abs(probs - self.before).sum(1)) / 2
        # sorted, so that the order of the states does not enter through rounding
        return Effect(min(1.0, float(np.sort(inside).mean())), kl, min(1.0, changed))

    def enough(self, effect: Effect, allowed: float = ANY) -> bool:
        """Whether what is wanted is done inside, at no more than the collateral allowed, in bits."""
        return effect.inside >= self.level - SLACK and effect.kl_bits <= allowed + SLACK

    def of(self, agent: Agent) -> Ask:
        """The same question to another agent that acts alike."""
        return replace(self, agent=agent)

    @property
    def trials(self) -> int:
        """Candidates that one route may try: fewer for an agent that searches anew in every state."""
        hard = 0 if self.agent.plans_once else self.agent.simulations_per_action
        return self.budget if not hard else min(self.budget, max(FEWEST, SIMULATIONS // hard))


@dataclass(frozen=True, eq=False)
class Narrow:
    """An edit with its length and its effect."""

    editor: str
    edit: Edit
    bits: int
    effect: Effect


@dataclass(frozen=True, eq=False)
class RegionJudge(Yardstick):
    """Scores agents on a question, so that searches made for goals can be used: the share of what is wanted inside.
    More collateral than is allowed makes a score that never suffices."""

    ask: Ask
    allowed: float

    @classmethod
    def on(cls, ask: Ask, allowed: float) -> RegionJudge:
        starts = np.flatnonzero(ask.counted)
        return cls(ask.model, ask.goal_b, ask.gamma, starts, np.ones(ask.model.n_states), 0, ask, allowed)

    def competence(self, probs: np.ndarray) -> float:
        effect = self.ask.effect(probs)
        if effect.kl_bits <= self.allowed + SLACK:
            return effect.inside
        return min(effect.inside, 0.99 * self.ask.level) / (1.0 + effect.kl_bits - self.allowed)

    def success(self, probs: np.ndarray) -> float:
        return float(self.ask.effect(probs).inside >= 1.0 - SLACK)

    def score(self, agent: Agent) -> Score:
        probs = self.ask.behaviour(agent)
        flops = (1 if agent.plans_once else self.model.n_states) * agent.flops_per_action
        return Score(self.competence(probs), self.success(probs), len(self.starts), flops=flops)


def narrow_edits(ask: Ask) -> tuple[Narrow, ...]:
    """Edits toward what is asked, by every route that the agent has; those that fall short of it included."""
    agent = ask.agent
    found = [*table_edits(ask), *_measured(ask, "slot", _slot_edits(ask)), *_grown_slots(ask)]
    found += [n for whole in _model_lies(ask) for n in _shrunk(ask, "model", whole)]
    if isinstance(agent, Differentiable) and not agent.has_memory:
        found += _weights(ask)
    if not found and isinstance(agent, Trainable):
        candidates = RetrainEditor(doublings=6).search(_task(ask, ANY))
        found += _measured(ask, "retrain", (c.edit for c in candidates))
    return tuple(found)


def shortest_narrow(ask: Ask, found: Iterable[Narrow], allowed: float = ANY) -> Narrow | None:
    """The shortest that does what is asked with no more collateral than allowed, in bits. Ties: the least collateral,
    then the editor's name."""
    good = (n for n in found if ask.enough(n.effect, allowed))
    return min(good, key=lambda n: (n.bits, round(n.effect.kl_bits, 9), n.editor), default=None)


def _task(ask: Ask, allowed: float) -> Task:
    return Task(ask.agent, ask.world, RegionJudge.on(ask, allowed), ask.level, ask.budget, ask.seed)


def _measured(ask: Ask, editor: str, edits: Iterable[Edit]) -> Iterator[Narrow]:
    for edit in edits:
        effect = ask.effect(ask.behaviour(edit.apply(ask.agent)))
        yield Narrow(editor, edit, ENUMERATIVE.length(edit, ask.agent.layout), effect)


# ---------------------------------------------------------------------------------------------------- tables


def table_edits(ask: Ask) -> tuple[Narrow, ...]:
    """Cells of the table alone: in as few of the region's states as the level allows, a wanted action. And the whole
    table filled with one action, with the exceptions that the region needs. None for an agent without a table."""
    agent = ask.agent
    if not isinstance(agent, HasTable):
        return ()
    view = agent.table_view()
    rows = _rows(ask, view, ask.lacking)
    gained, edits = ask.effect(ask.before).inside * ask.counted.sum(), []
    for k, (s, _) in enumerate(rows, start=1):
        gained += 1.0 - (ask.before * ask.wanted).sum(1)[s]
        if gained >= ask.level * ask.counted.sum() - SLACK:
            edits.append(Edit.of(agent, _cells(view, rows[:k])))
            break
    for a, rest in enumerate([] if view.fill is None else view.fill.tolist()):
        others = _rows(ask, view, np.flatnonzero(ask.counted & ~ask.wanted[:, a]))
        index, value = (_cells(view, others).index, _cells(view, others).value) if others else (np.zeros(0, int), [])
        edits.append(Edit.of(agent, Slot(view.part, float(rest), index, np.asarray(value))))
    return tuple(_measured(ask, "table", edits))


def _rows(ask: Ask, view: TableView, states: np.ndarray) -> list[tuple[int, int]]:
    """States that need a change, each with a wanted action: the most gained first, and of equals those where the agent
    decides least often. Of several wanted actions the one with the shortest value, then the one that is wanted in most
    of the states: alike symbols are shorter to write."""
    order = np.argsort(-ask.wanted[states].sum(0), kind="stable")
    rank = np.argsort(order)
    real = view.value.dtype.kind == "f"
    gain = np.round((ask.before * ~ask.wanted).sum(1), 9)

    def cost(s: int, a: int) -> tuple[float, int]:
        return (abs(float(view.value[s, a])) if real else 0.0), int(rank[a])

    rows = []
    for s in states.tolist():
        _, a = min((cost(s, a), a) for a in np.flatnonzero(ask.wanted[s]).tolist())
        rows.append((-gain[s], *cost(s, a), round(float(ask.often[s]), 9), s, a))
    return [(s, a) for *_, s, a in sorted(rows)]


def _cells(view: TableView, rows: Sequence[tuple[int, int]]) -> Sparse:
    cells = np.array([view.cell[s, a] for s, a in rows], dtype=np.int64)
    values = np.array([view.value[s, a] for s, a in rows], dtype=view.value.dtype)
    order = np.argsort(cells)
    return Sparse(view.part, cells[order], values[order])


def random_narrow(ask: Ask, like: Edit, draws: int) -> list[Effect]:
    """A control: effects of random edits of the size of a given one. Of a table's cells: as many states of the region,
    in each a random action; of anything else: random places and values in the same parts."""
    agent, rng = ask.agent, stream(ask.seed, "narrow_random", ENUMERATIVE.length(like, ask.agent.layout), draws)
    view = agent.table_view() if isinstance(agent, HasTable) else None
    if view is None or any(not isinstance(p, Sparse) or p.part != view.part for p in like.patches):
        edits = [c.edit for c in RandomEditor(like, draws=draws).search(_task(ask, ANY))]
    else:
        states, k = np.flatnonzero(ask.counted), min(like.n_cells, int(ask.counted.sum()))
        edits = []
        for _ in range(draws):
            rows = [(int(s), int(rng.integers(view.n_options))) for s in rng.choice(states, size=k, replace=False)]
            edits.append(Edit.of(agent, _cells(view, rows)))
    return [n.effect for n in _measured(ask, "random", edits)]


# ---------------------------------------------------------------------------------------------------- slots


def _slot_edits(ask: Ask) -> Iterator[Edit]:
    """B written into the slot; B written beside what is there, at several worths; what else the slot can hold."""
    agent = ask.agent
    if not isinstance(agent, HasGoalSlot):
        return
    writes = agent.slot_writes(ask.goal_b)
    yield from (slot_edit(agent, w) for w in writes)
    for write in writes:
        if isinstance(agent.parts[write.part].alphabet, Real) and write.cells:
            index = np.array(sorted(c for c, _ in write.cells))
            value = np.array([v for _, v in sorted(write.cells)])
            yield from (Edit.of(agent, Sparse(write.part, index, value * worth)) for worth in WORTHS)
    others = agent.slot_candidates()
    drawn = stream(ask.seed, "narrow_slot", len(others)).permutation(len(others))[: min(64, ask.trials // 4)]
    yield from (slot_edit(agent, others[int(i)]) for i in drawn)


def _grown_slots(ask: Ask, rounds: int = 2, kept: int = 2) -> list[Narrow]:
    """Single cells of a reward slot written beside what is there, and a second cell beside the best of these."""
    slots = [p for p in ask.agent.parts.values() if is_reward(ask.agent, p.name)]
    if not slots or not isinstance(ask.agent, HasGoalSlot):
        return []
    part, found = slots[0], list[Narrow]()
    written: list[dict[int, float]] = [{}]
    left = ask.trials // 2
    for _ in range(rounds):
        grown = [{**w, s: v} for w in written for s in range(part.array.size) for v in (1.0, 0.5, -1.0) if s not in w]
        if len(grown) > left:
            drawn = stream(ask.seed, "narrow_reward", len(grown)).permutation(len(grown))[:left]
            grown = [grown[int(i)] for i in drawn]
        left -= len(grown)
        if not grown:
            break
        edits = [
            Edit.of(ask.agent, Sparse(part.name, np.array(sorted(g)), np.array([g[s] for s in sorted(g)])))
            for g in grown
        ]
        new = list(_measured(ask, "slot", edits))
        found += new
        # what does most of what is wanted for what it spoils
        worth = [-round(min(n.effect.inside, ask.level) - n.effect.kl_bits, 9) for n in new]
        written = [grown[int(i)] for i in np.argsort(worth, kind="stable")[:kept]]
    return found


# ---------------------------------------------------------------------------------------------------- models


def _model_lies(ask: Ask) -> Iterator[Edit]:
    """Models that lie about the region, for agents whose model has a row for each state and action. What a wanted
    action leads to, and what the present one does, are exchanged; or the wanted action is said to lead where the
    present one does, and every other one nowhere (a bump): to a planner the state is then worth what it was, so that
    nothing changes elsewhere. Or the wanted action is said to lead straight to goal A."""
    agent, shape = ask.agent, ask.before.shape
    models = [p for p in agent.parts.values() if p.role == "model" and p.array.shape[:2] == shape]
    if not models or not ask.lacking.size:
        return
    lacking = ask.lacking.tolist()
    wanted = [int(np.flatnonzero(ask.wanted[s])[0]) for s in lacking]
    swapped, alone, leading = ({p.name: p.array.copy() for p in models} for _ in range(3))
    for s, a in zip(lacking, wanted, strict=True):
        old = int(ask.before[s].argmax())
        others = [x for x in range(shape[1]) if x != a]
        for p in models:
            swapped[p.name][s, [a, old]] = p.array[s, [old, a]]
            alone[p.name][s, a] = p.array[s, old]
            if isinstance(p.alphabet, Categorical):
                alone[p.name][s, others] = s
                if s in ask.goal_a.states:
                    # on goal A itself a bump enters it again, which is the best that there is
                    alone[p.name][s, others] = p.array[s, a]
                    alone[p.name][s, a] = s
                leading[p.name][s, a] = ask.goal_a.states[0]
    for arrays in (swapped, alone, leading):
        whole = difference(agent, agent.with_arrays(arrays))
        if whole.patches:
            yield whole


def _shrunk(ask: Ask, editor: str, whole: Edit) -> list[Narrow]:
    """An edit without the cells that it does not need: for no more collateral than it has, and for any."""
    out = list(_measured(ask, editor, [shortest_form(ask.agent, whole)]))
    first, subset, left = out[0], _Subset(ask.agent, whole), ask.trials // 4
    if not ask.enough(first.effect):
        return out
    for allowed in dict.fromkeys((first.effect.kl_bits, ANY)):
        tried = 0

        def good(keep: np.ndarray, allowed: float = allowed) -> bool:
            nonlocal tried
            tried += 1
            return ask.enough(ask.effect(ask.behaviour(subset.agent(keep))), allowed)

        passes = debugged(subset.n_cells, good=good, going=lambda: tried < left)  # noqa: B023 - used within the round
        edits = [subset.edit(kept) for kept in passes]
        out += _measured(ask, editor, [shortest_form(ask.agent, e) for e in edits[-1:]])
    return out


# ---------------------------------------------------------------------------------------------------- weights


def _weights(ask: Ask) -> list[Narrow]:
    """A few weights, tuned on what is wanted inside and on what the agent does now outside; three searches, for no
    collateral, for a tenth of a bit, and for any."""
    names = names_of(ask.agent, "weight")
    out: list[Narrow] = []
    for allowed, share in ((0.0, 0.5), (0.1, 0.5), (ANY, 0.0)) if names else ():
        tuner = Tuner(ask.agent, names, _lessons(ask, share), seed=ask.seed)
        hunt = Hunt(_task(ask, allowed), "weights", tuner, ask.budget)
        for begin in (_begun_small, _begun_dense):
            try:
                found = begin(hunt)
                if found is not None:
                    refine(hunt, *found, steps=60, lr=0.03)
            except OutOfBudgetError:
                pass
            if hunt.best is not None:
                break
        kept: list[Candidate] = hunt.kept()
        out += _measured(ask, "weights", (c.edit for c in kept))
    return out


def _begun_small(hunt: Hunt) -> tuple[Tensor, Tensor] | None:
    """A few numbers, as many as are needed, within half of the budget."""
    hunt.limit, whole = hunt.limit // 2, hunt.limit
    try:
        return grow(hunt, by="gradient", steps=80, lr=0.05, most=64)
    finally:
        hunt.limit = whole


def _begun_dense(hunt: Hunt) -> tuple[Tensor, Tensor] | None:
    """All numbers, of which those that changed most are kept."""
    tuner = hunt.tuner
    dense = hunt.fit(tuner.base, steps=250, lr=0.01, shrink=0.1)
    if hunt.coarsest(tuner.array(dense), np.arange(tuner.n)) is None:
        return None
    return from_dense(hunt, dense, steps=60, lr=0.02, most=512)


def _lessons(ask: Ask, share: float) -> Lessons:
    """What is wanted inside, and with a share of the weight what the agent does now outside."""
    right = np.where(ask.counted[:, None], ask.wanted, np.eye(ask.before.shape[1])[ask.before.argmax(1)])
    weight = (1.0 - share) * ask.counted / ask.counted.sum()
    if ask.outside.any():
        weight = weight + share * ask.outside / ask.outside.sum()
    right = right.astype(np.float64)
    return Lessons(np.arange(len(right)), right / right.sum(1, keepdims=True), weight)
