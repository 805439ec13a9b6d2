"""The joint code of agents for several goals: laws of the code, closed forms, the interval's coverage, known truths."""

from __future__ import annotations

import contextlib
import math
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agents.compiled import compile_policy
from retarget.agents.planner import exact_planner
from retarget.agents.tabular import TablePolicy
from retarget.agents.wrappers import ModelWorld
from retarget.code import ENUMERATIVE, Encoded
from retarget.edit import Edit, difference
from retarget.editors.base import Task, shortest_form
from retarget.editors.family import GrownWeightsEditor, family, forget, quick_editors, searched, stages_of
from retarget.editors.joint import Joint, decode_joint, doses, line_through, marginals, mean_lengths
from retarget.editors.words import Stream, whole, word_of
from retarget.errors import CodeError, EditError
from retarget.goal import StateGoal
from retarget.judge import judge_of
from retarget.pairs import GoalPlan
from retarget.probe import Subject
from retarget.probes.decomposition import Decomposition, joint_of, shuffled
from retarget.probes.goal_map import family_of, of_table
from retarget.rng import stream
from retarget.testing import check_probe, edits, layouts
from retarget.world import FiniteModel

# ------------------------------------------------------------------------------------------------ worlds and agents


def scrambled(n: int, *, seed: int) -> ModelWorld:
    """Every state leads to every other in one step, by an action whose number says nothing: behaviours for two goals
    agree by chance alone."""
    rng = stream(seed, "scrambled", n)
    return ModelWorld(FiniteModel.deterministic(np.stack([rng.permutation(n) for _ in range(n)])), StateGoal.of([0]))


@lru_cache(maxsize=8)
def subject(kind: str, name: str = "FourRooms", seed: int = 0, gamma: float = 0.95, level: float = 0.95) -> Subject:
    """An agent of a kind in a world, with its first training goal."""
    world = scrambled(12, seed=0) if name == "scrambled" else retarget.make_world(name, size=9)
    plan = GoalPlan.draw(world, n_pairs=1, seed=seed)
    planner = exact_planner(world, plan.training[0], gamma=gamma)
    agent = planner if kind == "planner" else compile_policy(planner, world)
    return Subject(agent, world, plan.training[0], gamma=gamma, level=level, seed=seed, plan=plan)


@st.composite
def joints(draw: st.DrawFn) -> Joint:
    """Tables near one table, some of them twice, some of them new."""
    n, a = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    symbols = st.lists(st.integers(0, a), min_size=n, max_size=n)
    first = TablePolicy.from_actions(np.minimum(draw(symbols), a - 1), n_actions=a)
    others: list[tuple[TablePolicy, Edit]] = []
    for _ in range(draw(st.integers(0, 5))):
        if others and draw(st.booleans()):
            base = draw(st.sampled_from(others))[0].symbols.copy()
        else:
            base = np.array(draw(symbols)) if draw(st.booleans()) else first.symbols.copy()
        base[draw(st.integers(0, n - 1))] = draw(st.integers(0, a))
        agent = first.with_arrays({"policy": base})
        others.append((agent, shortest_form(first, difference(first, agent))))
    return Joint(first, tuple(others))


# ------------------------------------------------------------------------------------------------ laws of the code


@given(layouts(), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_words_one_after_the_other_are_read_back(layout, data) -> None:
    several = data.draw(st.lists(edits(layout), min_size=1, max_size=4))
    text = "".join(word_of(e, layout) for e in several)
    source = Stream(text)
    assert [source.edit(layout, agent_digest="0" * 32) for _ in several] == several
    assert source.rest == 0
    assert len(text) == sum(ENUMERATIVE.length(e, layout) for e in several)


@given(layouts(), st.data())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_a_whole_part_needs_nothing_of_what_it_held(layout, data) -> None:
    part = data.draw(st.sampled_from(layout))
    edit = data.draw(edits((part,)))
    array = np.zeros(part.shape, part.alphabet.dtype)
    for patch in edit.patches:
        array = patch.write(array)
    if np.isfinite(array).all():
        patch = whole(part.name, array, (part,))
        for held in (0, 1):
            before = np.full(part.shape, held, part.alphabet.dtype)
            assert (patch.write(before).view(np.int64) == array.view(np.int64)).all()


@given(joints(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_the_joint_code_decodes_and_its_length_is_that_of_its_bits(joint, random) -> None:
    order = list(range(len(joint.others)))
    random.shuffle(order)
    word = joint.encode(order)
    assert word.n_bits == joint.lengths(order)[-1]
    assert len(word.data) == math.ceil(word.n_bits / 8)
    arrays = decode_joint(word, 1 + len(order), layout=joint.first.layout, full=joint.layout)
    for agent, found in zip((joint.first, *(joint.others[i][0] for i in order)), arrays, strict=True):
        assert found["policy"].tolist() == agent.symbols.tolist()


@given(joints(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_length_rises_with_n_and_hardly_depends_on_the_order(joint, random) -> None:
    n = len(joint.others)
    order = list(range(n))
    random.shuffle(order)
    lengths = joint.lengths(order)
    assert (np.diff(lengths) > 0).all()
    # whatever the order: at most each agent alone, at least its nearest neighbour without any pointer
    assert lengths[-1] <= joint.first_bits + joint.alone.sum()
    least = np.minimum(joint.alone, joint.between.min(0) + 2) if n else np.zeros(0)
    assert lengths[-1] >= joint.first_bits + least.sum()
    # where nothing is shared but the first agent, the order does not matter at all
    lonely = Joint(joint.first, joint.others)
    object.__setattr__(lonely, "between", np.full((n, n), np.inf))
    assert lonely.lengths(order)[-1] == lonely.lengths(range(n))[-1]


@given(joints())
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_an_agent_a_second_time_costs_a_pointer_and_the_empty_edit(joint) -> None:
    if not joint.others:
        return
    n = len(joint.others)
    twice = Joint(joint.first, (*joint.others, joint.others[0]))
    extra = twice.lengths(range(n + 1))[-1] - joint.lengths(range(n))[-1]
    # two flags, a pointer to one of n, and the three bits of the empty edit
    assert extra <= 2 + (n - 1).bit_length() + 3


@given(joints(), st.integers(0, 60))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_broken_bits_are_refused_or_are_another_family(joint, at) -> None:
    order = range(len(joint.others))
    word = joint.encode(order)
    flipped = bytearray(word.data)
    flipped[(at // 8) % len(flipped)] ^= 0x80 >> (at % 8)
    broken = Encoded(bytes(flipped), word.n_bits)
    with contextlib.suppress(CodeError, EditError):
        decode_joint(broken, 1 + len(order), layout=joint.first.layout, full=joint.layout)


def test_marginals_agree_with_a_plain_loop() -> None:
    rng = stream(0, "marginals")
    for n in range(1, 7):
        alone, between = rng.integers(5, 60, n), rng.integers(1, 60, (n, n)).astype(float)
        order = rng.permutation(n).tolist()
        plain = []
        for at, i in enumerate(order):
            options = [float(alone[i])]
            options += [2 + math.ceil(math.log2(at)) + between[j, i] for j in order[:at]]
            plain.append(min(options))
        assert marginals(alone, between, order).tolist() == plain


# ------------------------------------------------------------------------------------------------ the line


def test_doses_double_and_end_with_the_most() -> None:
    assert [doses(n) for n in (1, 2, 3, 8)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8)]


@given(st.lists(st.integers(4, 200), min_size=1, max_size=9), st.integers(10, 10_000))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_agents_that_share_nothing_but_the_first_lie_on_a_line(costs, first) -> None:
    n = len(costs)
    lonely = np.full((n, n), np.inf)
    line = line_through(first, np.array(costs), lonely, range(n))
    assert line.slope == pytest.approx(np.mean(costs))
    assert line.intercept == pytest.approx(first - np.mean(costs))
    lengths = mean_lengths(first, np.array(costs), lonely, range(n))
    assert np.allclose(lengths, first + np.arange(n + 1) * np.mean(costs))
    if n > 1:
        # of a mean the jackknife's spread is the plain standard error
        from scipy.stats import t

        half = t.ppf(0.975, n - 1) * np.std(costs, ddof=1) / math.sqrt(n)
        assert line.slope_error == pytest.approx(half, abs=1e-6)


def test_the_interval_covers_the_slope_of_the_population() -> None:
    # costs of goals drawn from a known population (mean 30): 400 families of 8 goals. With 95% coverage the number
    # covered is binomial: fewer than 364 or all of them has probability below 0.001. An interval that is half as wide
    # covers some 300.
    rng, covered = stream(0, "coverage"), 0
    lonely = np.full((8, 8), np.inf)
    for _ in range(400):
        line = line_through(100.0, rng.integers(10, 51, 8), lonely, range(8))
        assert line.slope_error is not None
        covered += abs(line.slope - 30.0) <= line.slope_error
    assert 364 <= covered < 400


def test_one_goal_gives_no_interval_and_none_no_line() -> None:
    assert line_through(10.0, np.array([4]), np.full((1, 1), np.inf), [0]).slope_error is None
    with pytest.raises(EditError, match="at least two agents"):
        line_through(10.0, np.zeros(0), np.zeros((0, 0)), [])


# ------------------------------------------------------------------------------------------------ families


def test_a_batch_of_goals_is_as_many_single_searches() -> None:
    s = subject("table")
    found = family_of(s, n_seen=3, n_held_out=3, budget=512)
    forget()
    for member in reversed(found.used):
        alone = searched(member.task, quick_editors())
        assert alone is not None and member.found is not None
        assert (alone.edit, alone.bits, alone.spend) == (member.found.edit, member.found.bits, member.found.spend)
    assert found.bits == sum(m.found.bits for m in found.used if m.found)
    assert [m.seen for m in found.members] == [True] * 3 + [False] * 3
    assert found.part(seen=False).bits + found.part(seen=True).bits == found.bits


def test_kept_searches_know_what_they_depend_on() -> None:
    s = subject("table")
    goal = s.plan.held_out[0]
    judge = judge_of(s.world, goal, gamma=0.95)
    low, high = (searched(Task(s.agent, s.world, judge, level, 512), quick_editors()) for level in (0.5, 1.0))
    assert low is not None and high is not None and low.bits < high.bits
    other = judge_of(s.world, s.plan.held_out[1], gamma=0.95)
    assert searched(Task(s.agent, s.world, other, 1.0, 512), quick_editors()).edit != high.edit
    # another world of the same name
    world = ModelWorld(s.world.model, s.world.goal, starts=np.array([0]))
    twin = Task(s.agent, world, judge_of(world, goal, gamma=0.95), 1.0, 512)
    assert searched(twin, quick_editors()).edit != high.edit


def test_goals_that_are_met_or_out_of_reach_are_counted() -> None:
    model = FiniteModel.deterministic([[1, 0], [1, 0], [2, 2]])
    world = ModelWorld(model, StateGoal.of([0]), goal_list=(StateGoal.of([0]), StateGoal.of([1]), StateGoal.of([2])))
    agent = TablePolicy.from_actions([1, 1, 0], n_actions=2)
    plan = GoalPlan(world.goals[:2], world.goals[2:], ())
    outcome = Decomposition().measure(Subject(agent, world, world.goals[0], plan=plan, level=1.0))
    assert outcome["goals_used"].value == 1
    assert outcome["goals_left_out"].value == 1
    assert outcome["slope_bits"].ci_low is None  # one goal says nothing of the spread
    assert outcome["slope_held_out_bits"].status == "not_applicable"
    assert [m.dose for m in outcome.measurements if m.metric == "joint_bits"] == [1.0, 2.0]


def test_an_agent_without_a_goal_has_nothing_to_decompose() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    uniform = TablePolicy(np.full(25, 4), compile_policy(exact_planner(world, world.goals[0]), world).palette)
    outcome = Decomposition().measure(Subject(uniform, world, world.goals[0]))
    assert {m.status for m in outcome.measurements if not m.metric.startswith("goals_")} == {"not_applicable"}
    assert "no goal to change" in outcome["slope_bits"].reason
    assert outcome["goals_used"].value == 0


def test_editors_are_quick_or_full() -> None:
    assert [e.name for e in stages_of("full")[0]] != [e.name for e in stages_of("quick")[0]]
    with pytest.raises(EditError, match="'quick' or 'full', got 'slow'"):
        Decomposition(editors="slow")


def test_numbers_of_a_network_that_grow_as_needed_suffice() -> None:
    pytest.importorskip("torch")
    from retarget.agents.network_for import network_for

    world = retarget.make_world("OpenGrid", size=5)
    agent = network_for(world, world.goals[0], kind="mlp", seed=0, hidden=(16,))
    judge = judge_of(world, world.goals[-1], gamma=0.95)
    found = GrownWeightsEditor(steps=50, lr=0.1).search(Task(agent, world, judge, 0.9, 1024))
    best = max(found, key=lambda c: c.competence)
    assert best.competence >= 0.9 > judge.score(agent).competence
    assert judge.score(best.edit.apply(agent)).competence == best.competence


# ------------------------------------------------------------------------------------------------ known truths


def test_a_planner_pays_its_slot_for_each_goal() -> None:
    s = subject("planner")
    outcome = Decomposition().measure(s)
    n = s.world.model.n_states
    # one flag; one part of two (1 + 1), a slot (2), one cell (1), rest 0 (1), one dyadic number 1.0 (1 + 4), its place
    closed_form = 1 + 11 + math.ceil(math.log2(n))
    assert abs(outcome["slope_bits"].value - closed_form) <= 1
    assert outcome["slope_bits"].value == outcome["slope_seen_bits"].value == outcome["slope_held_out_bits"].value
    # the first agent holds the model: a successor for each state and action
    model = math.ceil(n * 4 * math.log2(n))
    assert model <= outcome["first_bits"].value <= model + 40
    assert outcome["blank_first_bits"].value < 20  # its blank has the model already
    assert outcome["shared"].value > 0.95


@pytest.mark.parametrize("kind", ["table", "planner"])
def test_where_goals_share_no_behaviour(kind: str) -> None:
    s = subject(kind, "scrambled", gamma=0.5, level=1.0)
    outcome = Decomposition().measure(s)
    table = outcome["table_slope_bits"].value
    whole_table = math.log2(13) * 12
    # a table's further goal is a whole new table: 12 states, 12 actions (and "uniform")
    assert 0.9 * whole_table <= table <= 1.15 * whole_table + 8
    assert abs(outcome["slope_shuffled_bits"].value - table) < 0.15 * table
    if kind == "table":
        assert outcome["slope_over_table"].value == 0
        assert abs(outcome["shared"].value) < 0.15
    else:
        assert outcome["slope_over_table"].value > 1
        assert outcome["shared"].value > 0.9


def test_the_table_of_four_rooms_shares_routes_and_no_more() -> None:
    outcome = Decomposition().measure(subject("table"))
    ratio = outcome["slope_bits"].value / outcome["first_bits"].value
    # a new goal changes few of the 40 states: what is shared is the route, and shuffling the states destroys it
    assert 0.2 < ratio < 0.7
    assert outcome["slope_shuffled_bits"].ci_low > outcome["slope_bits"].value
    assert outcome["slope_shuffled_bits"].value > 0.85 * outcome["first_bits"].value


def test_the_pair_of_equal_behaviour_is_told_apart() -> None:
    planner, table = (Decomposition().measure(subject(kind)) for kind in ("planner", "table"))
    assert planner["table_slope_bits"].value == table["table_slope_bits"].value == table["slope_bits"].value
    assert planner["slope_over_table"].value > 0.5 and table["slope_over_table"].value == 0


def test_the_joint_code_of_a_real_family_decodes() -> None:
    for kind in ("planner", "table"):
        joint = joint_of(family_of(subject(kind), n_seen=2, n_held_out=2, budget=512))
        order = range(len(joint.others))
        arrays = decode_joint(joint.encode(order), 1 + len(order), layout=joint.first.layout, full=joint.layout)
        for agent, found in zip((joint.first, *(a for a, _ in joint.others)), arrays, strict=True):
            for name, part in agent.parts.items():
                assert (found[name] == part.array).all()


def test_tables_that_hold_more_than_can_be_written_are_written_in_full() -> None:
    # rows of a fixed palette stand for mixed behaviour: a decoder is given them, and their numbers are symbols
    probs = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])
    table = TablePolicy.from_probabilities(probs)
    changed = table.with_arrays({"policy": np.array([0, 0, 2])})
    joint = Joint(table, ((changed, difference(table, changed)),))
    arrays = decode_joint(joint.encode([0]), 2, layout=table.layout, full=joint.layout)
    assert arrays[0]["policy"].tolist() == [3, 0, 2] and arrays[1]["policy"].tolist() == [0, 0, 2]


def test_shuffled_tables_keep_their_symbols() -> None:
    tables = of_table(family_of(subject("planner"), n_seen=2, n_held_out=2, budget=512))
    joint = joint_of(tables)
    mixed = shuffled(joint, 0)
    for (own, _), (other, edit) in zip(joint.others, mixed.others, strict=True):
        assert sorted(own.symbols) == sorted(other.symbols) and (own.symbols != other.symbols).any()
        assert edit.apply(joint.first).digest == other.digest


def test_the_probe_obeys_its_laws() -> None:
    forget()
    check_probe(Decomposition(n_seen=2, n_held_out=2), max_examples=12)


def test_kept_searches_do_not_hide_a_search_that_changes() -> None:
    forget()
    first = Decomposition().measure(subject("table"))
    forget()
    assert first == Decomposition().measure(subject("table"))


def test_a_family_is_of_one_agent() -> None:
    s = subject("planner")
    tasks = [(Task(s.agent, s.world, judge_of(s.world, g, gamma=0.95), 0.95), True) for g in s.plan.held_out[:2]]
    found = family(s.agent, 1.0, tasks)
    assert found.spend.flops == sum(m.found.spend.flops for m in found.used)
    other = compile_policy(s.agent, s.world)
    with pytest.raises(EditError, match="same parts"):
        Joint(other, ((found.used[0].agent, found.used[0].found.edit),))
