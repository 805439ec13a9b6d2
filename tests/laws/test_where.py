"""Laws of the probe that tells where the goal lives, of the editor that combines parts, and of frozen parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import ROLES, Agent, Fit, HasDraws, Part, Real, SlotWrite
from retarget.agents import TablePolicy, compile_policy, exact_planner, learned_planner, tree_searcher
from retarget.agents.leaves import Blind, Leaf, Tables
from retarget.agents.search import TreeSearcher
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Patch, Slot, Sparse
from retarget.editors import (
    Candidate,
    FittedEditor,
    RetrainEditor,
    SlotEditor,
    SparseEditor,
    TableEditor,
    Task,
    default_editors,
    prove,
)
from retarget.editors.base import Scorer
from retarget.editors.retrain import significant
from retarget.editors.sparse import debugged
from retarget.errors import AgentError
from retarget.exact import Yardstick, best_actions
from retarget.goal import Goal, StateGoal
from retarget.probe import Outcome, Subject
from retarget.probes import PROBES, Retargetability, Where
from retarget.search import TreeSettings
from retarget.testing import agents, check_probe, subjects, worlds
from retarget.world import BoxWorld, FiniteWorld

GAMMA = 0.95
QUICK = (SlotEditor(blind=4, beside=4), TableEditor(), FittedEditor(trials=24), SparseEditor(doublings=4, trials=24))
VIEWS = tuple((which, role) for role in ROLES for which in ("without", "only"))


@st.composite
def searchers(draw: st.DrawFn, world: FiniteWorld, goal: StateGoal) -> TreeSearcher:
    """A tree searcher toward a goal, with values and preferences for it, or blank ones, or none."""
    n, a = world.model.n_states, world.model.n_actions
    made = Tables.for_goal(world, goal, gamma=GAMMA)
    empty = Tables(np.zeros(n), np.zeros((n, a)))
    leaf: Leaf = draw(
        st.sampled_from(
            (made, empty, made.with_arrays({"prior": empty.logits}), made.with_arrays({"value": empty.value}), Blind())
        )
    )
    set_ = TreeSettings(
        simulations=draw(st.sampled_from((1, 2, 5, 16, 48))), gamma=GAMMA, backup=draw(st.sampled_from(("mean", "max")))
    )
    model = None
    if draw(st.booleans()):
        model = learned_planner(
            world, goal, everywhere=draw(st.booleans()), episodes=draw(st.integers(1, 20)), epsilon=0.1, seed=0
        )
    return tree_searcher(world, goal, settings=set_, leaf=leaf, model=model)


@st.composite
def searching_subjects(draw: st.DrawFn) -> Subject:
    world = draw(worlds())
    a, b = draw(st.lists(st.sampled_from(world.goals), min_size=2, max_size=2, unique=True))
    return Subject(draw(searchers(world, a)), world, a, b, gamma=GAMMA, level=draw(st.sampled_from((0.95, 0.5))))


def _task(subject: Subject, **rest: Any) -> Task:
    world, goal_a, goal_b = subject.world, subject.goal_a, subject.goal_b
    assert isinstance(world, FiniteWorld) and isinstance(goal_a, StateGoal) and isinstance(goal_b, StateGoal)
    own = Yardstick.of(world, goal_a, gamma=subject.gamma).score(subject.agent).competence
    judge = Yardstick.of(world, goal_b, gamma=subject.gamma)
    return Task(subject.agent, world, judge, subject.level * own, **rest)


def _roles(agent: Agent) -> dict[str, set[str]]:
    return {r: names for r in ROLES if (names := {p.name for p in agent.parts.values() if p.role == r})}


def _measured(outcome: Outcome) -> bool:
    return outcome["edit_bits"].status != "not_applicable"


# -- the probe ----------------------------------------------------------------------------------------------------


def test_the_probe_keeps_the_universal_laws() -> None:
    check_probe(Where(), max_examples=10)
    assert PROBES["where"] is Where


def test_the_columns_are_the_same_for_every_agent() -> None:
    names = [f"{what}_{which}_{role}" for which, role in VIEWS for what in ("edit_bits", "competence_b")]
    assert [m for m in Where.metrics if "without" in m or "only" in m] == names


@settings(deadline=None, max_examples=40)
@given(st.one_of(subjects(), searching_subjects()))
def test_restricting_an_edit_never_helps(subject: Subject) -> None:
    outcome = Where(editors=QUICK).measure(subject)
    if not _measured(outcome):
        reasons = {m.reason for m in outcome.measurements if m.status != "ok"}
        assert len(reasons) == 1
        return
    roles, whole, best = _roles(subject.agent), outcome["edit_bits"], outcome["competence_b_best"].value
    before, required = outcome["competence_b_before"].value, outcome["required_competence"].value
    assert best is not None and before is not None and required is not None
    for which, role in VIEWS:
        bits, competence = outcome[f"edit_bits_{which}_{role}"], outcome[f"competence_b_{which}_{role}"]
        if role not in roles or (which == "without" and len(roles) == 1):
            assert bits.status == competence.status == "not_applicable"
            assert role in bits.reason or "all its parts have this role" in bits.reason
            continue
        assert competence.value is not None
        assert before <= competence.value <= best
        assert bits.status in ("ok", "failed")
        enough = competence.value >= required - 1e-9
        if isinstance(subject.agent, HasDraws) and subject.agent.draws:
            # competence is of the agent's own draw; an edit has to hold for fresh ones as well
            assert enough or bits.status == "failed"
        else:
            # an edit is found where the best competence suffices, and only there
            assert (bits.status == "ok") == enough
        if bits.status == "failed":
            assert f"{competence.value:.4g}" in bits.reason or (enough and "does not hold" in bits.reason)
            continue
        assert bits.value is not None and whole.value is not None and bits.value >= whole.value
        touched = set((bits.parts or "").split("+"))
        assert not touched & roles[role] if which == "without" else touched <= roles[role]
    if len(roles) == 1:
        only = next(iter(roles))
        assert outcome[f"edit_bits_only_{only}"].value == whole.value
        assert outcome[f"competence_b_only_{only}"].value == best


@settings(deadline=None, max_examples=25)
@given(st.one_of(subjects(), searching_subjects()))
def test_the_frontier_tells_the_same_by_the_parts_that_its_edits_touch(subject: Subject) -> None:
    outcome = Where(editors=QUICK).measure(subject)
    if not _measured(outcome):
        return
    required, before = outcome["required_competence"].value, outcome["competence_b_before"].value
    assert required is not None and before is not None
    roles = _roles(subject.agent)
    every = set(subject.agent.parts)
    for which, role in VIEWS:
        if outcome[f"competence_b_{which}_{role}"].status != "ok":
            continue
        frozen = roles[role] if which == "without" else every - roles[role]
        inside = [p for p in outcome.frontier if not frozen & set(p.parts.split("+"))]
        good = [p.bits for p in inside if p.competence >= required - 1e-9]
        bits = outcome[f"edit_bits_{which}_{role}"].value
        if isinstance(subject.agent, HasDraws) and subject.agent.draws:
            # the shortest that also holds with other seeds, if any does
            assert bits is None or bits in good
        else:
            assert bits == (min(good) if good else None)
        assert outcome[f"competence_b_{which}_{role}"].value == max([before, *(p.competence for p in inside)])


@settings(deadline=None, max_examples=12)
@given(st.one_of(subjects(), searching_subjects()))
def test_without_restrictions_it_agrees_with_retargetability(subject: Subject) -> None:
    where = Where(editors=QUICK).measure(subject)
    other = Retargetability(editors=QUICK, draws=1).measure(subject)
    for name in ("competence_a", "required_competence", "competence_b_before"):
        assert where[name] == other[name]
    here, there = where["edit_bits"], other["edit_bits"]
    if there.status == "ok":
        assert here.status == "ok"
        assert here.value is not None and there.value is not None and here.value <= there.value
    if len(_roles(subject.agent)) < 2 or not any(
        e.search(_task(subject)) for e in QUICK if isinstance(e, SparseEditor)
    ):
        # nothing was searched again with parts frozen
        assert here == there or (here.status == there.status == "failed")
    if where["edit_bits"].status == "not_applicable":
        assert where["edit_bits"].reason == there.reason


def test_what_cannot_be_measured_is_said() -> None:
    world = retarget.make_world("FourRooms", size=7)
    a, b = world.goals[0], world.goals[-1]
    planner = exact_planner(world, a)
    for subject, words in (
        (Subject(planner, world, a), "no goal B was given"),
        (Subject(exact_planner(world, b), world, b, a).with_(goal_a=a, goal_b=b), "not above a uniform policy's"),
        (Subject(TablePolicy.from_actions([0] * world.model.n_states, n_actions=4), world, a, b), "not above"),
        (Subject(_Bare(planner), world, a, b), "it exposes no parts"),
    ):
        outcome = Where().measure(subject)
        assert [m.metric for m in outcome.measurements] == list(Where.metrics)
        assert outcome["edit_bits"].status == outcome["competence_b_only_table"].status == "not_applicable"
        assert words in outcome["edit_bits"].reason
    other = retarget.make_world("FourRooms", size=9)
    unfit = Where().measure(Subject(planner, other, other.goals[0], other.goals[1]))
    assert unfit["competence_a"].status == "not_applicable"
    assert "measure it in its own" in unfit["competence_a"].reason


@dataclass(frozen=True, eq=False)
class _Bare(Agent):
    """An agent's behaviour, with nothing to edit."""

    inner: Agent

    @property
    def parts(self) -> Mapping[str, Part]:
        return {}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> _Bare:
        return self

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return self.inner.policy(obs, carry)

    def blank(self, seed: int) -> Agent:
        return self


class _Both:
    """Writes B into the slot, and a cell of the model to no avail, unless the model is frozen."""

    name: ClassVar[str] = "both"

    def __init__(self) -> None:
        self.asked: list[frozenset[str]] = []

    def search(self, task: Task) -> Sequence[Candidate]:
        self.asked.append(task.frozen)
        scorer, agent = Scorer(task, self.name), task.agent
        assert isinstance(task.goal, StateGoal)
        cell = int(task.goal.states[0])
        patches: list[Patch] = [Slot("reward", 0.0, np.array([cell]), np.array([1.0]))]
        if "next_state" not in task.frozen:
            patches.append(Sparse("next_state", np.array([4 * cell]), np.array([cell])))
        edit = Edit.of(agent, *patches)
        return (scorer.candidate(edit, scorer.score(edit.apply(agent))),)


class _Apart(_Both):
    covers_frozen: ClassVar[bool] = True


def test_editors_that_mix_parts_search_again_with_parts_frozen() -> None:
    world = retarget.make_world("FourRooms", size=7)
    a, b = world.goals[0], world.goals[-1]
    subject = Subject(exact_planner(world, a), world, a, b)
    both, apart = _Both(), _Apart()
    outcome = Where(editors=(both,)).measure(subject)
    # two roles: each frozen in turn, and what breaks the freeze is not counted
    assert both.asked == [frozenset(), frozenset({"next_state"}), frozenset({"reward"})]
    assert outcome["edit_bits_only_goal_slot"].parts == outcome["edit_bits"].parts == "reward"
    assert outcome["edit_bits_without_goal_slot"].status == "failed"
    outcome = Where(editors=(apart,)).measure(subject)
    assert apart.asked == [frozenset()]
    assert outcome["edit_bits"].parts == "reward+next_state"
    assert outcome["edit_bits_only_goal_slot"].status == "failed"


def test_progress_is_told() -> None:
    world = retarget.make_world("FourRooms", size=7)
    a, b = world.goals[0], world.goals[-1]
    near = learned_planner(world, a, everywhere=False, episodes=20, epsilon=0.0, seed=0)
    told: list[tuple[float, str]] = []
    Where(editors=QUICK).measure(Subject(near, world, a, b), progress=lambda done, words: told.append((done, words)))
    shares = [done for done, _ in told]
    assert shares == sorted(shares) and shares[0] >= 0 and shares[-1] <= 1
    assert any("without next_state" in words for _, words in told)


# -- where competence is estimated --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Climber(Agent):
    """Climbs the hill of MountainCar on the side that its slot names; a gain of 0 makes it stand still."""

    side: np.ndarray
    gain: np.ndarray

    @property
    def parts(self) -> Mapping[str, Part]:
        return {
            "side": Part("side", "goal_slot", self.side, Real()),
            "gain": Part("gain", "weight", self.gain, Real()),
        }

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> _Climber:
        self.check_arrays(arrays)
        return replace(self, **dict(arrays))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        side = np.sign(self.side[0]) or 1.0
        position, speed = side * (obs[:, 0] + 0.5), side * obs[:, 1]
        # swings, but brakes on the wrong side before it gets out there
        push = np.where((speed >= 0) | (position < -0.35), 1.0, -1.0) * side * (self.gain[0] > 0)
        return np.eye(3)[(push + 1).astype(int)], None

    def blank(self, seed: int) -> Agent:
        return replace(self, side=np.zeros(1))

    def slot_writes(self, goal: Goal) -> tuple[SlotWrite, ...]:
        return (SlotWrite("side", -1.0 if "left" in goal.label else 1.0, ()),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return tuple(SlotWrite("side", v, ()) for v in (-1.0, 1.0))


def test_it_works_where_competence_is_estimated() -> None:
    world = retarget.make_world("MountainCar")
    assert isinstance(world, BoxWorld)
    agent = _Climber(np.ones(1), np.ones(1))
    b = world.as_goal("left hill")
    outcome = Where(editors=QUICK).measure(Subject(agent, world, world.goal, b, gamma=world.gamma, level=0.8))
    assert outcome["competence_b_before"].value == 0
    assert outcome["edit_bits_only_goal_slot"].value == outcome["edit_bits_without_weight"].value
    assert outcome["edit_bits_only_goal_slot"].value == outcome["edit_bits"].value is not None
    only, without = outcome["competence_b_only_goal_slot"], outcome["competence_b_without_goal_slot"]
    assert only.value is not None and only.value >= outcome["required_competence"].value  # type: ignore[operator]
    assert only.n is not None and only.n > 200 and only.ci_low is not None and only.ci_low <= only.value
    assert without.value == 0 and outcome["edit_bits_without_goal_slot"].status == "failed"


# -- the editor ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(searching_subjects(), st.data())
def test_combinations_are_what_they_say(subject: Subject, data: st.DataObject) -> None:
    budget = data.draw(st.sampled_from((1, 7, 60, 4096)))
    task = _task(subject, budget=budget)
    editor = FittedEditor(trials=16)
    found = editor.search(task)
    for c in found:
        prove(task, c)
        assert c.editor == "fitted"
        assert c.bits == ENUMERATIVE.length(c.edit, task.agent.layout)
        assert 1 <= c.spend.simulations <= budget and c.spend.flops > 0
    assert len({c.edit for c in found}) == len(found)
    again = editor.search(task)
    assert [(c.edit, c.bits, c.competence, c.spend) for c in found] == [
        (c.edit, c.bits, c.competence, c.spend) for c in again
    ]
    if isinstance(subject.agent, TreeSearcher) and isinstance(subject.agent.leaf, Blind):
        assert not found


@settings(deadline=None, max_examples=30)
@given(st.one_of(subjects(), searching_subjects()), st.data())
def test_with_parts_frozen_some_editors_find_nothing_that_they_do_not_find_without(
    subject: Subject, data: st.DataObject
) -> None:
    # the probe relies on it: it does not ask them again
    task = _task(subject, budget=10**6)
    names = sorted(subject.agent.parts)
    frozen = frozenset(data.draw(st.sets(st.sampled_from(names))))
    assert {e.name for e in default_editors() if getattr(e, "covers_frozen", False)} == {"table", "fitted"}
    for editor in (TableEditor(), FittedEditor(trials=12)):
        free, bound = editor.search(task), editor.search(replace(task, frozen=frozen))
        assert {(c.edit, c.competence) for c in bound} <= {(c.edit, c.competence) for c in free}
        assert not any(frozen & set(c.edit.parts_touched) for c in bound)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_editors_leave_frozen_parts_alone(data: st.DataObject) -> None:
    world = data.draw(worlds())
    a, b = data.draw(st.lists(st.sampled_from(world.goals), min_size=2, max_size=2, unique=True))
    agent = data.draw(st.one_of(agents(world, a), searchers(world, a)))
    names = sorted(agent.parts)
    frozen = frozenset(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    task = Task(agent, world, Yardstick.of(world, b, gamma=GAMMA), 0.9, frozen=frozen)
    for editor in (*QUICK, RetrainEditor(doublings=3)):
        found = editor.search(task)
        assert all(task.allowed(c.edit) for c in found), editor.name
        for c in found:
            prove(task, c)


def test_all_default_editors_take_a_task_with_everything_frozen() -> None:
    world = retarget.make_world("FourRooms", size=7)
    a, b = world.goals[0], world.goals[-1]
    for agent in (
        exact_planner(world, a),
        learned_planner(world, a, everywhere=False, episodes=20, epsilon=0.0, seed=0),
        compile_policy(exact_planner(world, a), world),
        tree_searcher(world, a, settings=TreeSettings(simulations=4), leaf=Tables.for_goal(world, a, gamma=GAMMA)),
    ):
        task = Task(agent, world, Yardstick.of(world, b, gamma=GAMMA), 0.9, frozen=frozenset(agent.parts))
        assert [c for editor in default_editors() for c in editor.search(task)] == []


@dataclass(frozen=True, eq=False)
class _Fitted(_Bare):
    """A table of preferences with a fit of one's own."""

    scores: np.ndarray
    given: Mapping[str, np.ndarray]

    @property
    def parts(self) -> Mapping[str, Part]:
        return {
            "scores": Part("scores", "policy", self.scores, Real()),
            "idle": Part("idle", "value", np.zeros(2), Real()),
        }

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> _Fitted:
        self.check_arrays(arrays)
        if "scores" in arrays and np.abs(arrays["scores"]).max() > 2:
            raise AgentError("scores above 2 are refused")
        return replace(self, scores=arrays.get("scores", self.scores))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return np.eye(self.scores.shape[1])[self.scores.argmax(1)][obs], None

    def fits(self, world: object, goal: Goal) -> tuple[Fit, ...]:
        return (Fit("mine", self.given),)


def _fitted(given: Mapping[str, np.ndarray], *, n: int, a: int) -> Task:
    world = retarget.make_world("OpenGrid", size=5)
    assert world.model.n_states == n and world.model.n_actions == a
    agent = _Fitted(exact_planner(world, world.goals[0]), np.zeros((n, a)), given)
    return Task(agent, world, Yardstick.of(world, world.goals[-1], gamma=GAMMA), 0.9)


def test_a_fill_that_suffices_has_a_control_too() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    a, b = world.as_goal((0, 0)), world.as_goal((0, 1))
    agent = tree_searcher(
        world, a, settings=TreeSettings(simulations=5, gamma=GAMMA), leaf=Tables.for_goal(world, a, gamma=GAMMA)
    )
    outcome = Retargetability(editors=(FittedEditor(),), draws=2).measure(Subject(agent, world, a, b, level=0.5))
    # all preferences even: a patch that names no cell
    assert outcome["edit_bits"].n_cells == 0
    assert outcome["random_competence"].value == outcome["competence_b_after"].value


def test_a_fit_of_two_roles_is_refused() -> None:
    task = _fitted({"scores": np.ones((25, 4)), "idle": np.ones(2)}, n=25, a=4)
    with pytest.raises(AgentError, match="touches scores, idle; give one for each role"):
        FittedEditor().search(task)


def test_contents_that_the_agent_refuses_are_passed_over() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    right = best_actions(world.model, world.goals[-1], gamma=GAMMA)
    # 1.9 rounds to 2 with few bits, and what is raised by 4 is refused
    task = _fitted({"scores": np.where(right, 1.9, 0.0)}, n=25, a=4)
    found = FittedEditor().search(task)
    good = [c for c in found if task.enough(c.competence)]
    assert good
    best = min(good, key=lambda c: c.bits)
    assert best.edit.parts_touched == ("scores",)
    assert np.abs(best.edit.apply(task.agent).parts["scores"].array).max() <= 2


# -- what editors share -------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.integers(0, 40), st.data())
def test_delta_debugging_keeps_what_is_needed_and_nothing_else(n: int, data: st.DataObject) -> None:
    needed = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    asked: list[set[int]] = []

    def good(keep: np.ndarray) -> bool:
        asked.append(set(keep.tolist()))
        return needed <= asked[-1]

    passes = [p.tolist() for p in debugged(n, good=good, going=lambda: True)]
    last = passes[-1] if passes else list(range(n))
    assert set(last) == needed and last == sorted(needed)
    assert [len(p) for p in passes] == sorted({len(p) for p in passes}, reverse=True)
    for limit in (0, 3):
        asked.clear()
        some = list(debugged(n, good=good, going=lambda limit=limit: len(asked) < limit))  # type: ignore[misc]
        assert len(asked) <= limit
        assert all(needed <= set(p.tolist()) for p in some)


@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 30))
def test_significant_bits(x: float, bits: int) -> None:
    got = float(significant(np.array([x]), bits)[0])
    mantissa = abs(got.as_integer_ratio()[0])
    while mantissa and mantissa % 2 == 0:
        mantissa //= 2
    assert mantissa < 2**bits or mantissa == 1
    assert abs(got - x) <= abs(x) * 2.0**-bits
    if bits >= 24:
        assert got == x


def test_retraining_leaves_out_what_it_changed_of_frozen_parts() -> None:
    world = retarget.make_world("FourRooms", size=7)
    near = learned_planner(world, world.goals[0], everywhere=False, episodes=20, epsilon=0.0, seed=0)
    task = Task(near, world, Yardstick.of(world, world.goals[-1], gamma=GAMMA), 0.9)
    free = RetrainEditor().search(task)
    assert any(set(c.edit.parts_touched) == {"reward", "next_state"} for c in free)
    bound = RetrainEditor().search(replace(task, frozen=frozenset({"reward"})))
    assert bound and all(c.edit.parts_touched == ("next_state",) for c in bound)

    def model_cells(c: Candidate) -> Any:
        return [p for p in c.edit.patches if p.part == "next_state"]

    # the first rounds of training are the same; what they changed of the slot is left out
    assert isinstance(model_cells(bound[0])[0], Sparse)
    assert (
        model_cells(bound[0])[0].write(near.parts["next_state"].array)
        == model_cells(free[0])[0].write(near.parts["next_state"].array)
    ).all()
