"""Laws of edits and editors: what an edit may touch, what a difference gives back, what an editor may claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Agent, Categorical, HasGoalSlot, HasTable, Part, PartLayout, Real, SlotWrite, Trainable
from retarget.agents import (
    QTable,
    TablePolicy,
    compile_policy,
    exact_planner,
    learned_planner,
    train_q_table,
)
from retarget.agents.tabular import default_palette
from retarget.code import ENUMERATIVE, FIXED_WIDTH
from retarget.edit import Dense, Edit, LowRank, Patch, Slot, Sparse, difference
from retarget.editors import (
    Candidate,
    RandomEditor,
    RetrainEditor,
    SlotEditor,
    SparseEditor,
    TableEditor,
    Task,
    default_editors,
    points,
    prove,
    shortest,
    shortest_form,
)
from retarget.editors.base import plain_bits
from retarget.editors.slot import slot_edit
from retarget.envs import make_world
from retarget.errors import AgentError, EditError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.spend import Spend
from retarget.testing import agents, edits, layouts, worlds
from retarget.trials import Score

GAMMA = 0.95


class Box(Agent):
    """An agent of any parts, with no policy to speak of: laws of edits need none."""

    kind = "box"

    def __init__(self, *parts: Part) -> None:
        self._parts = {p.name: p for p in parts}

    @property
    def parts(self) -> dict[str, Part]:
        return self._parts

    def with_arrays(self, arrays: Any) -> Box:
        self.check_arrays(arrays)
        return Box(*(Part(p.name, p.role, arrays.get(p.name, p.array), p.alphabet) for p in self._parts.values()))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return np.ones((len(obs), 1)), None

    def blank(self, seed: int) -> Box:
        return self.with_arrays({n: np.zeros_like(p.array) for n, p in self._parts.items()})


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """A box whose cells often repeat, so that all forms of an edit compete."""
    parts = []
    for layout in draw(layouts()):
        n = layout.n_cells
        if isinstance(layout.alphabet, Categorical):
            cells = draw(st.lists(st.integers(0, layout.alphabet.size - 1), min_size=n, max_size=n))
        else:
            numbers = st.sampled_from([0.0, -0.0, 1.0, 0.1, -2.5])
            cells = draw(st.lists(numbers, min_size=n, max_size=n))
        array = np.array(cells, layout.alphabet.dtype).reshape(layout.shape)
        parts.append(Part(layout.name, "table", array, layout.alphabet))
    return Box(*parts)


@st.composite
def boxes_and_edits(draw: st.DrawFn) -> tuple[Box, Edit]:
    box = draw(boxes())
    return box, draw(edits(box.layout, agent_digest=box.digest))


def bits_of(agent: Agent) -> dict[str, list[int]]:
    """Every cell as its bit pattern."""
    return {n: p.array.reshape(-1).view(np.int64).tolist() for n, p in agent.parts.items()}


def _applied(edit: Edit, agent: Agent) -> Agent | None:
    """The edited agent, or None where adding low-rank factors leaves the finite numbers."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return edit.apply(agent)
    except AgentError:
        return None


# -- edits --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=200)
@given(boxes_and_edits())
def test_an_edit_leaves_the_agent_as_it_was_and_fits_no_other(case: tuple[Box, Edit]) -> None:
    box, edit = case
    before, digest = bits_of(box), box.digest
    after = _applied(edit, box)
    assert bits_of(box) == before
    assert type(box).digest.func(box) == digest  # type: ignore[attr-defined]
    if after is None:
        return
    assert after.layout == box.layout
    assert (after.digest == digest) == (bits_of(after) == before)
    untouched = set(box.parts) - set(edit.parts_touched)
    assert {n: bits_of(after)[n] for n in untouched} == {n: before[n] for n in untouched}
    if after.digest != digest:
        with pytest.raises(EditError, match=f"this edit was made for agent {digest[:12]}, not for {after.digest[:12]}"):
            edit.apply(after)


@settings(deadline=None, max_examples=150)
@given(boxes_and_edits())
def test_a_patch_writes_the_cells_it_names_and_no_other(case: tuple[Box, Edit]) -> None:
    box, edit = case
    after = _applied(edit, box)
    if after is None:
        return
    for patch in edit.patches:
        old = box.parts[patch.part].array.reshape(-1).tolist()
        want: list[Any]
        if isinstance(patch, Dense):
            want = patch.value.reshape(-1).tolist()
        elif isinstance(patch, LowRank):
            with np.errstate(over="ignore", invalid="ignore"):
                np.testing.assert_allclose(
                    after.parts[patch.part].array, box.parts[patch.part].array + patch.left @ patch.right.T
                )
            continue
        else:
            assert isinstance(patch, (Sparse, Slot))
            want = [patch.rest] * len(old) if isinstance(patch, Slot) else list(old)
            for i, v in zip(patch.index.tolist(), patch.value.tolist(), strict=True):
                want[i] = v
        assert after.parts[patch.part].array.reshape(-1).tolist() == want
    assert edit.n_cells == sum(p.n_cells for p in edit.patches)


@settings(deadline=None, max_examples=150)
@given(boxes_and_edits())
def test_a_difference_gives_back_the_other_agent_to_the_bit(case: tuple[Box, Edit]) -> None:
    box, edit = case
    after = _applied(edit, box)
    if after is None:
        return
    there = difference(box, after)
    assert bits_of(there.apply(box)) == bits_of(after)
    assert there.apply(box).digest == after.digest
    # only what differs is named, in the order of the parts
    changed = [sum(a != b for a, b in zip(bits_of(box)[n], bits_of(after)[n], strict=True)) for n in box.parts]
    assert [p.n_cells for p in there.patches] == [n for n in changed if n]
    assert difference(box, box).patches == ()
    assert difference(box, box).apply(box) is box


@settings(deadline=None, max_examples=300)
@given(boxes_and_edits())
def test_the_shortest_form_is_never_longer_and_writes_the_very_same_cells(case: tuple[Box, Edit]) -> None:
    box, edit = case
    after = _applied(edit, box)
    if after is None:
        return
    short = shortest_form(box, edit)
    assert ENUMERATIVE.length(short, box.layout) <= ENUMERATIVE.length(edit, box.layout)
    assert bits_of(short.apply(box)) == bits_of(after)
    # nor is it longer than the plain difference, but for the bit that a shared payload may round up by
    if not any(isinstance(p, LowRank) for p in edit.patches):
        whole = difference(box, after)
        assert ENUMERATIVE.length(short, box.layout) <= ENUMERATIVE.length(whole, box.layout) + len(edit.patches)


def test_the_shortest_form_has_no_shorter_form() -> None:
    parts = ((3, "a"), (1, "b"), (5, "c"))
    box = Box(*(Part(name, "table", np.zeros(n), Real()) for n, name in parts))
    edit = Edit.of(box, Sparse("a", [0], [1.0]), Sparse("c", [0], [0.0]))
    short = shortest_form(box, edit)
    again = shortest_form(box, short)
    assert ENUMERATIVE.length(again, box.layout) == ENUMERATIVE.length(short, box.layout)


@settings(deadline=None, max_examples=100)
@given(boxes_and_edits(), boxes_and_edits())
def test_patches_are_equal_by_content_to_the_bit(one: tuple[Box, Edit], two: tuple[Box, Edit]) -> None:
    for _, edit in (one, two):
        for patch in edit.patches:
            twin = type(patch)(**patch.__dict__)
            assert patch == twin
            assert hash(patch) == hash(twin)
    minus, plus = Sparse("p", [0], [-0.0]), Sparse("p", [0], [0.0])
    assert minus != plus
    assert plus != Sparse("p", [0], [0])
    assert plus != "patch"
    assert Sparse("p", [0], [0]) != Slot("p", 0, [0], [0])


def test_patches_are_frozen_copies() -> None:
    index, value = np.array([1]), np.array([2.0])
    patch = Sparse("p", index, value)
    index[0], value[0] = 5, 7.0
    assert (patch.index.tolist(), patch.value.tolist()) == ([1], [2.0])
    with pytest.raises(ValueError, match="read-only"):
        patch.value[0] = 3.0
    with pytest.raises(AttributeError):
        patch.part = "q"  # type: ignore[misc]


def test_edits_put_their_patches_in_the_order_of_the_parts() -> None:
    box = Box(Part("a", "table", np.zeros(2), Real()), Part("b", "table", np.zeros(2), Real()))
    edit = Edit.of(box, Sparse("b", [0], [1.0]), Sparse("a", [1], [2.0]))
    assert edit.parts_touched == ("a", "b")
    assert Edit.of(box).apply(box) is box


_LAYOUT = (PartLayout("q", (2, 3), Real()), PartLayout("t", (4,), Categorical(3)))


@pytest.mark.parametrize(
    ("patches", "words"),
    [
        ((Sparse("t", [0], [0.5]),), "part 't' takes integer symbols, got float64"),
        ((Sparse("t", [0], [-1]),), "symbol -1 cannot be written to part 't': it takes 0 to 2"),
        ((Sparse("q", [0], [1]),), "part 'q' takes real numbers, got int64; convert to float64"),
        ((Sparse("q", [-1], [1.0]),), "cell -1 is outside part 'q', which has cells 0 to 5"),
        ((Sparse("q", [0, 1], [1.0]),), "needs one value a cell, got (2,) and (1,)"),
        ((Sparse("q", [2, 1], [1.0, 1.0]),), "must be strictly increasing"),
        ((Slot("q", np.nan, [], []),), "a patch of part 'q' holds a value that is not finite"),
        ((Slot("t", 3, [], []),), "symbol 3 cannot be written to part 't'"),
        ((Dense("t", [0, 1, 2, 3]),), "symbol 3 cannot be written"),
        ((LowRank("q", np.zeros((2, 0)), np.zeros((3, 0))),), "needs left [2, r] and right [3, r], got (2, 0)"),
        ((LowRank("q", np.full((2, 1), np.inf), np.zeros((3, 1))),), "holds a value that is not finite"),
        ((Sparse("z", [0], [1.0]),), "there is no part 'z'; parts are q, t"),
        (
            (Sparse("t", [0], [1]), Sparse("q", [0], [1.0])),
            "at most one patch for each part, in the order of the parts",
        ),
        ((Sparse("q", [0], [1.0]), Sparse("q", [1], [1.0])), "at most one patch for each part"),
    ],
)
def test_an_edit_that_does_not_fit_says_what_is_wrong(patches: tuple[Patch, ...], words: str) -> None:
    with pytest.raises(EditError) as caught:
        Edit("x", patches).check(_LAYOUT)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rest", [float("nan"), float("inf")])
def test_a_rest_that_is_no_number_is_refused_for_symbols_too(rest: float) -> None:
    try:
        Edit("x", (Slot("t", rest, [], []),)).check(_LAYOUT)
    except EditError:
        return
    raise AssertionError("it was accepted")


def test_a_slot_patch_with_values_and_no_cells_is_refused() -> None:
    with pytest.raises(EditError):
        Edit("x", (Slot("t", 0, [], [1]),)).check(_LAYOUT)


def test_a_cell_number_that_is_no_integer_is_refused() -> None:
    with pytest.raises(EditError):
        Edit("x", (Sparse("t", [0.7], [1]),)).check(_LAYOUT)


def test_low_rank_factors_that_leave_the_finite_numbers_are_refused_without_a_warning() -> None:
    agent = QTable(np.zeros((2, 2)))
    huge = np.array([[1e200], [0.0]])
    with pytest.raises((AgentError, EditError)):
        Edit.of(agent, LowRank("q", huge, huge)).apply(agent)


def test_differences_are_taken_between_like_agents_only() -> None:
    one, two = QTable(np.zeros((2, 2))), QTable(np.zeros((3, 2)))
    with pytest.raises(EditError, match="agents 'q_table' and 'q_table' have different parts; only like can be"):
        difference(one, two)
    with pytest.raises(EditError, match="agent 'q_table' has no part 'z'; it has q"):
        Edit.of(one, Sparse("z", [0], [1.0]))
    # a row that only the other's palette has cannot be written
    mixed = TablePolicy.from_probabilities(np.array([[0.25, 0.75]]))
    with pytest.raises(EditError, match="symbol 3 cannot be written to part 'policy': it takes 0 to 2"):
        difference(TablePolicy.from_actions([0], n_actions=2), mixed)


# -- editors ------------------------------------------------------------------------------------------------------


def _task(agent: Agent, world: Any, goal: StateGoal, required: float = 0.9, **rest: Any) -> Task:
    return Task(agent, world, Yardstick.of(world, goal, gamma=GAMMA), required, **rest)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_every_editor_finds_what_it_says_it_finds(data: st.DataObject) -> None:
    world = data.draw(worlds())
    a, b = data.draw(st.lists(st.sampled_from(world.goals), min_size=2, max_size=2, unique=True))
    agent = data.draw(agents(world, a))
    task = _task(agent, world, b, data.draw(st.sampled_from([0.5, 0.95])))
    digest = agent.digest
    for editor in default_editors():
        for found in editor.search(task):
            prove(task, found)
            assert found.editor == editor.name
            assert found.bits == ENUMERATIVE.length(found.edit, agent.layout)
            word = ENUMERATIVE.encode(found.edit, agent.layout)
            assert ENUMERATIVE.decode(word.data, agent.layout, agent_digest=digest) == found.edit
            assert found.spend.simulations >= 1
            assert found.spend.flops > 0
    assert agent.digest == digest


def test_editors_pass_over_agents_that_lack_what_they_need() -> None:
    world = make_world("FourRooms", size=7)
    goal = world.goals[5]
    planner = exact_planner(world, world.goal)
    table = compile_policy(planner, world)
    learned = learned_planner(world, world.goal, everywhere=True, episodes=200, epsilon=0.0, seed=0)
    needs: dict[type, Any] = {
        SlotEditor: HasGoalSlot,
        TableEditor: HasTable,
        RetrainEditor: Trainable,
    }
    for agent in (planner, table, learned):
        for kind, capability in needs.items():
            assert bool(kind().search(_task(agent, world, goal))) == isinstance(agent, capability)
        shrinks = isinstance(agent, Trainable) and not isinstance(agent, HasTable)
        assert bool(SparseEditor().search(_task(agent, world, goal))) == shrinks


def test_the_sparse_editor_keeps_no_cell_that_it_could_put_back() -> None:
    world = make_world("FourRooms", size=7)
    near = learned_planner(world, world.goals[0], everywhere=False, episodes=20, epsilon=0.0, seed=0)
    task = _task(near, world, world.goals[-1], 0.95, seed=1)
    found = SparseEditor(trials=100_000).search(task)
    assert [c.bits for c in found] == sorted((c.bits for c in found), reverse=True)
    last = found[-1]
    assert task.enough(last.competence)
    patches = [p for p in difference(near, last.edit.apply(near)).patches if isinstance(p, Sparse)]
    assert sum(p.n_cells for p in patches) > 3
    for drop in patches:
        for i in range(drop.n_cells):
            rest = Sparse(drop.part, np.delete(drop.index, i), np.delete(drop.value, i))
            kept = [rest if p is drop else p for p in patches if p is not drop or rest.n_cells]
            less = Edit.of(near, *kept).apply(near)
            assert not task.enough(task.judge.competence(policy_table(less, world.model)))


def test_retraining_stops_at_the_first_budget_that_is_enough_and_rounds_what_it_writes() -> None:
    world = make_world("OpenGrid", size=5)
    agent, _ = train_q_table(world, world.goals[0], episodes=0, exploring=True, seed=0)
    task = _task(agent, world, world.goals[7], 0.9)
    found = RetrainEditor(first=1).search(task)
    assert [task.enough(c.competence) for c in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 1
    whole, _ = agent.retrained(world, task.goal, budget=2 ** (len(found) - 1), seed=0)
    plain = shortest_form(agent, difference(agent, whole))
    assert found[-1].bits < ENUMERATIVE.length(plain, agent.layout)
    assert not RetrainEditor(first=1, doublings=0).search(_task(agent, world, task.goal, 1.0))[0].competence >= 1


def test_the_slot_editor_writes_blindly_only_when_the_goal_itself_is_not_enough() -> None:
    world = make_world("OpenGrid", size=5)
    planner = exact_planner(world, world.goals[0])
    goal = world.goals[9]
    assert len(SlotEditor().search(_task(planner, world, goal))) == 1
    none = StateGoal.of([goal.states[0]])
    shallow = exact_planner(world, world.goals[0], depth=1)
    task = _task(shallow, world, none)
    # B, B worth 1/2 and 2^-10, and B with -1 on A
    assert len(SlotEditor(blind=0, rounds=0).search(task)) == 4
    blind = SlotEditor(rounds=0).search(task)
    assert len(blind) == world.model.n_states + 3  # and every other cell
    assert len(SlotEditor(rounds=0).search(_task(shallow, world, none, budget=4))) <= 8
    beside = SlotEditor(beside=7, rounds=2).search(task)[len(blind) :]
    assert 7 <= len(beside) <= 14
    assert {c.edit.n_cells for c in beside} <= {2, 3}


def test_random_edits_copy_the_size_and_the_length_of_what_they_are_like() -> None:
    box = Box(
        Part("r", "weight", np.zeros((4, 3)), Real()),
        Part("t", "table", np.zeros(30, np.int64), Categorical(5)),
    )

    class Judge:
        def score(self, agent: Agent) -> Score:
            return Score(0.0, 0.0, 1)

    class World:
        class model:  # noqa: N801 - stands for an attribute
            n_states, n_actions = 2, 1

    task = Task(box, World(), Judge(), 0.5, seed=3)  # type: ignore[arg-type]
    likes = (
        Edit.of(box, Sparse("r", [1, 5], [0.5, 3.0]), Sparse("t", [2, 3, 9], [1, 1, 4])),
        Edit.of(box, Slot("r", 1.0, [2], [0.25]), Slot("t", 2, [0, 1], [3, 4])),
        Edit.of(box, Slot("t", 2, [], [])),
        Edit.of(box, Dense("r", np.arange(12.0).reshape(4, 3)), Dense("t", np.arange(30) % 5)),
        Edit.of(box, LowRank("r", np.arange(4.0)[:, None], np.arange(3.0)[:, None])),
    )
    for like in likes:
        drawn = RandomEditor(like, draws=12).search(task)
        assert len(drawn) == 12
        for c in drawn:
            assert [type(p) for p in c.edit.patches] == [type(p) for p in like.patches]
            assert c.edit.parts_touched == like.parts_touched
            assert c.edit.n_cells == like.n_cells
            if len(like.patches) == 1 and like.patches[0].part == "r":
                assert c.bits == ENUMERATIVE.length(like, box.layout)
        assert [c.edit for c in RandomEditor(like, draws=12).search(task)] == [c.edit for c in drawn]
    assert len({c.edit for c in RandomEditor(likes[0], draws=12).search(task)}) > 6
    other = Task(box, World(), Judge(), 0.5, seed=4)  # type: ignore[arg-type]
    assert [c.edit for c in RandomEditor(likes[0]).search(other)] != [
        c.edit for c in RandomEditor(likes[0]).search(task)
    ]


def test_a_frontier_is_sorted_and_marks_what_nothing_shorter_beats() -> None:
    world = make_world("FourRooms", size=7)
    table = compile_policy(exact_planner(world, world.goals[0]), world)
    task = _task(table, world, world.goals[-1], 0.95)
    found = TableEditor().search(task)
    shown = points(task, reversed(found), subject="table")
    assert [p.bits for p in shown] == sorted(c.bits for c in found)
    best = -1.0
    for p in shown:
        assert p.on_front == (p.competence > best + 1e-9)
        best = max(best, p.competence)
        assert p.subject == "table"
        assert 0 <= p.success <= 1
    for c in found:
        point = next(p for p in shown if p.bits == c.bits and p.competence == c.competence)
        assert point.plain_bits == FIXED_WIDTH.length(c.edit, table.layout) == plain_bits(c.edit, table.layout)
        assert point.n_cells == c.edit.n_cells
    least = shortest(task, found)
    assert least is not None
    assert least.bits == min(c.bits for c in found if c.competence >= 0.95 - 1e-9)
    assert shortest(task, [c for c in found if c.competence < 0.9]) is None


def test_ties_go_to_the_one_that_cost_least_and_then_to_the_name() -> None:
    world = make_world("OpenGrid", size=5)
    table = compile_policy(exact_planner(world, world.goals[0]), world)
    task = _task(table, world, world.goals[-1], 0.5)
    edit = Edit.of(table, Sparse("policy", [0], [0]))
    made = [
        Candidate("b", edit, 9, 0.9, Spend(flops=2.0)),
        Candidate("a", edit, 9, 0.6, Spend(flops=2.0)),
        Candidate("c", edit, 9, 0.9, Spend(flops=3.0)),
        Candidate("d", edit, 8, 0.4, Spend()),
    ]
    best = shortest(task, made)
    assert best is not None
    assert best.editor == "a"


def test_an_editor_that_promises_too_much_is_found_out() -> None:
    world = make_world("OpenGrid", size=5)
    table = compile_policy(exact_planner(world, world.goals[0]), world)
    task = _task(table, world, world.goals[-1])
    lie = Candidate("liar", Edit.of(table, Sparse("policy", [0], [0])), 9, 0.999, Spend())
    with pytest.raises(
        EditError, match=r"editor 'liar' promised competence 0\.999, the edited agent has 0; the editor is broken"
    ):
        prove(task, lie)


def test_a_slot_is_written_in_its_shortest_form() -> None:
    world = make_world("OpenGrid", size=5)
    planner = exact_planner(world, world.goals[0])
    one = slot_edit(planner, SlotWrite("reward", 0.0, ((7, 1.0),)))
    assert [type(p) for p in one.patches] == [Slot]
    # writing what is there already takes nothing
    same = planner.slot_writes(world.goals[0])[0]
    assert slot_edit(planner, same).patches == ()
    table = TablePolicy(np.zeros(3, int), default_palette(2))
    assert SlotEditor().search(_task(table, world, world.goals[0])) == ()
