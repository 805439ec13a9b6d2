"""The words of the project, one by one: goals, models, digests, errors, parts, columns."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget.errors
from retarget.agent import Categorical, HasGoalSlot, HasTable, Part, PartLayout, Real, Trainable
from retarget.agents import Controller, GoalTable, LearnedPlanner, Planner, QTable, TablePolicy
from retarget.digest import canonical_json, digest_of
from retarget.edit import Edit, Sparse
from retarget.envs import WORLDS, make_world
from retarget.errors import GoalError, RetargetError, WorldError, nearest, unknown
from retarget.goal import StateGoal
from retarget.row import FRONTIER_COLUMNS, RESULT_COLUMNS, Column, FrontierPoint, schema
from retarget.testing import models
from retarget.world import FiniteModel, FiniteWorld, WorldSpec

# -- errors -------------------------------------------------------------------------------------------------------


def test_errors_are_one_family() -> None:
    kinds = [k for _, k in inspect.getmembers(retarget.errors, inspect.isclass) if issubclass(k, Exception)]
    assert len(kinds) >= 9
    assert all(issubclass(k, RetargetError) and issubclass(k, ValueError) for k in kinds)
    assert all(k.__doc__ for k in kinds)


@pytest.mark.parametrize(
    ("name", "known", "want"),
    [
        ("palnner", ["planner", "q_table"], " (did you mean 'planner'?)"),
        ("", ["planner"], ""),
        (3, ["3x3"], ""),
        ("x", [], ""),
    ],
)
def test_the_nearest_name_is_offered_only_when_it_is_near(name: object, known: list[str], want: str) -> None:
    assert nearest(name, known) == want


def test_unknown_names_list_what_is_known_in_order() -> None:
    assert unknown("agent", "zz", ["b", "a"]) == "unknown agent 'zz'; known: a, b"
    assert unknown("agent", "zz", []) == "unknown agent 'zz'; known: none"


# -- goals --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(0, 40))
def test_a_goal_is_a_set_of_states(states: list[int], n: int) -> None:
    goal = StateGoal.of(states)
    assert goal == StateGoal.of(reversed(states), label="other")
    assert hash(goal) == hash(StateGoal.of(states, label="other"))
    assert goal.states == tuple(sorted(set(states)))
    assert StateGoal(goal.states) == goal
    if max(states) < n:
        assert np.flatnonzero(goal.mask(n)).tolist() == sorted(set(states))
        assert goal.mask(n).dtype == np.bool_
    else:
        with pytest.raises(GoalError, match=f"goal state {max(states)} is outside the world, which has states 0 to"):
            goal.mask(n)


@given(st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=3), min_size=2, max_size=5))
def test_goals_sort_by_their_states(sets: list[set[int]]) -> None:
    made = [StateGoal.of(s) for s in sets]
    assert [g.states for g in sorted(made)] == sorted(g.states for g in made)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ((), "a goal needs at least one state, got none; pass a state index"),
        ((-1,), "goal states must be non-negative integers, got (-1,)"),
        ((1.0,), "goal states must be non-negative integers, got (1.0,)"),
        ((True,), "goal states must be non-negative integers, got (True,)"),
        ((2, 1), "goal states must be sorted and unique, got (2, 1); use StateGoal.of(...)"),
        ((1, 1), "goal states must be sorted and unique, got (1, 1)"),
    ],
)
def test_a_malformed_goal_is_refused(states: tuple, words: str) -> None:
    with pytest.raises(GoalError) as caught:
        StateGoal(states)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("states", [["a"], 5, [1.7], None])
def test_a_goal_of_things_that_are_no_states_is_refused(states: object) -> None:
    with pytest.raises(GoalError):
        StateGoal.of(states)  # type: ignore[arg-type]


# -- models -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(models(), st.data())
def test_a_model_gives_distributions_and_renames_to_itself_and_back(model: FiniteModel, data: st.DataObject) -> None:
    dense = model.dense()
    np.testing.assert_allclose(dense.sum(-1), 1)
    perm = np.array(data.draw(st.permutations(range(model.n_states))))
    renamed = model.relabel(perm)
    # the step from perm[s] to perm[t] is as likely as that from s to t was
    np.testing.assert_array_equal(renamed.dense()[np.ix_(perm, range(model.n_actions), perm)], dense)
    assert renamed.relabel(np.argsort(perm)).digest == model.digest
    with pytest.raises(ValueError, match="read-only"):
        model.prob[0, 0, 0] = 0.5
    twin = FiniteModel(model.next_state, model.prob)
    assert twin.digest == model.digest
    assert twin != model  # models are compared by digest, never cell by cell


@pytest.mark.parametrize(
    ("nxt", "prob", "words"),
    [
        (np.zeros((2, 1)), np.ones((2, 1)), "needs next_state and prob of one shape [S, A, K], got (2, 1) and (2, 1)"),
        (np.zeros((2, 1, 1)), np.ones((2, 1, 2)), "got (2, 1, 1) and (2, 1, 2)"),
        (np.zeros((0, 1, 1)), np.ones((0, 1, 1)), "got (0, 1, 1)"),
        (np.full((2, 1, 1), 2), np.ones((2, 1, 1)), "successor 2 is outside the states 0 to 1"),
        (np.full((2, 1, 1), -1), np.ones((2, 1, 1)), "successor -1 is outside the states 0 to 1"),
        (np.zeros((2, 1, 1)), np.full((2, 1, 1), 0.5), "must be non-negative and sum to 1"),
        (np.zeros((2, 1, 1)), np.full((2, 1, 1), np.nan), "must be non-negative and sum to 1"),
        (np.zeros((1, 1, 2)), np.array([[[1.5, -0.5]]]), "must be non-negative and sum to 1"),
    ],
)
def test_a_malformed_model_is_refused(nxt: np.ndarray, prob: np.ndarray, words: str) -> None:
    with pytest.raises(WorldError) as caught:
        FiniteModel(nxt, prob)
    assert words in str(caught.value)
    with pytest.raises(WorldError, match=r"a deterministic model needs next_state \[S, A\], got shape \(3,\)"):
        FiniteModel.deterministic(np.zeros(3))


def test_a_world_is_named_by_plain_data() -> None:
    spec = WorldSpec.of("Maze", size=9, seed=2)
    assert spec == WorldSpec.of("Maze", seed=2, size=9)
    assert spec.label == "Maze(seed=2, size=9)"
    assert WorldSpec("Maze").label == "Maze"
    assert spec.as_dict() == {"id": "Maze", "seed": 2, "size": 9}
    for name in WORLDS:
        assert isinstance(make_world(name, size=6), FiniteWorld)


# -- digests ------------------------------------------------------------------------------------------------------

_arrays = st.lists(
    st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from([0.0, -0.0, 1.0]), min_size=1, max_size=3)), max_size=3
)


@given(_arrays, _arrays, st.sampled_from("xy"), st.sampled_from("xy"))
def test_a_digest_tells_contents_apart_to_the_bit(one: list, two: list, kind_one: str, kind_two: str) -> None:
    def told(kind: str, arrays: list) -> tuple:
        return kind, tuple((n, np.array(v).tobytes()) for n, v in arrays)

    def made(kind: str, arrays: list) -> str:
        return digest_of(kind, {"k": 1}, [(n, np.array(v)) for n, v in arrays])

    assert (made(kind_one, one) == made(kind_two, two)) == (told(kind_one, one) == told(kind_two, two))
    assert len(made(kind_one, one)) == 32


def test_a_digest_covers_types_shapes_and_config() -> None:
    base = digest_of("k", {"a": 1}, [("x", np.zeros((2, 3)))])
    others = [
        digest_of("k", {"a": 2}, [("x", np.zeros((2, 3)))]),
        digest_of("k", {"a": 1}, [("x", np.zeros((3, 2)))]),
        digest_of("k", {"a": 1}, [("x", np.zeros((2, 3), np.int64))]),
        digest_of("k", {"a": 1}, [("y", np.zeros((2, 3)))]),
        digest_of("k", {"a": 1}, []),
    ]
    assert len({base, *others}) == 6
    # the layout in memory is no content
    assert digest_of("k", {"a": 1}, [("x", np.zeros((3, 2)).T)]) == base
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


# -- parts and capabilities ---------------------------------------------------------------------------------------


def test_parts_are_copies_of_their_alphabet_s_type() -> None:
    source = np.array([[1, 2]])
    part = Part("x", "table", source, Categorical(3))
    source[0, 0] = 0
    assert part.array.tolist() == [[1, 2]]
    assert part.array.dtype == np.int64
    assert Part("x", "weight", source, Real()).array.dtype == np.float64
    assert PartLayout("x", (2, 3), Real()).n_cells == 6
    # a symbol that cannot be written may be kept
    assert Part("x", "table", np.array([7]), Categorical(3)).array.tolist() == [7]


def test_capabilities_are_what_an_agent_has_not_what_it_is() -> None:
    line = np.array([[[1], [0]], [[1], [0]]])
    chance = np.ones(line.shape)
    made = {
        TablePolicy.from_actions([0, 1], n_actions=2): (HasTable, Trainable),
        QTable(np.zeros((2, 2))): (HasTable, Trainable),
        GoalTable(np.zeros((1, 2), int), 0, (StateGoal.of([0]),), 2): (HasTable, HasGoalSlot, Trainable),
        Planner(np.zeros(2), line, chance): (HasGoalSlot,),
        LearnedPlanner(np.zeros(2), line, chance, learned=True): (HasGoalSlot, Trainable),
        Controller(np.zeros(2, int), np.eye(2), np.zeros((2, 2), int), 2): (HasGoalSlot,),
    }
    for agent, capabilities in made.items():
        for c in (HasTable, HasGoalSlot, Trainable):
            assert isinstance(agent, c) == (c in capabilities), (agent.kind, c)
        edit = Edit.of(agent, *(Sparse(n, [0], p.array.reshape(-1)[:1]) for n, p in agent.parts.items()))
        # writing what is there changes nothing but the object
        assert edit.apply(agent).digest == agent.digest


# -- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [RESULT_COLUMNS, FRONTIER_COLUMNS])
def test_every_column_has_a_type_and_a_meaning_and_a_name_of_its_own(columns: tuple[Column, ...]) -> None:
    assert len({c.name for c in columns}) == len(columns) == len(schema(columns))
    for c in columns:
        assert c.meaning
        assert c.meaning == c.meaning.strip()
        assert c.dtype in ("String", "Int64", "Float64", "Boolean")
        assert c.unit or c.dtype != "Float64" or c.name in ("gamma", "level")


def test_every_field_of_a_point_has_its_column() -> None:
    names = {c.name for c in FRONTIER_COLUMNS}
    fields = {f.name for f in dataclasses.fields(FrontierPoint)} - {"spend"}
    assert fields <= names
    assert {"spend_env_steps", "spend_grad_steps", "spend_simulations", "spend_flops"} <= names
