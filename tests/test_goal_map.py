"""Maps from goals to edits: their code, what they do on held-out goals, and what is known of some agents."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent
from retarget.agents.compiled import compile_policy
from retarget.agents.controller import Controller
from retarget.agents.planner import exact_planner
from retarget.agents.tabular import GoalTable, QTable
from retarget.agents.wrappers import ModelWorld
from retarget.code import ENUMERATIVE
from retarget.edit import Edit
from retarget.editors.family import Family, forget
from retarget.editors.goal_cells import KINDS, Cells, LinearMap, NetworkMap
from retarget.editors.goal_features import Features, features_of
from retarget.editors.goal_fit import (
    Bench,
    MapResult,
    Trial,
    all_maps,
    fit_linear,
    fit_nearest,
    least,
    lessons_in,
    read_mended,
    rounded,
    shuffled_maps,
    two_part_word,
)
from retarget.editors.goal_maps import ConstantMap, PlannerMap, SlotMap, decode_map, read_map
from retarget.editors.words import Stream
from retarget.errors import CodeError, EditError, GoalError
from retarget.exact import policy_table
from retarget.goal import RegionGoal, StateGoal
from retarget.pairs import GoalPlan
from retarget.probe import Outcome, Subject
from retarget.probes.goal_map import GoalMap, family_of, mean_interval, share_interval
from retarget.rng import stream
from retarget.testing import check_probe
from retarget.world import FiniteModel

SLOT = "map: slot: the agent's own writes"
LINEAR = "map: linear in row, column, 1"


def agent_of(kind: str, world, plan: GoalPlan, gamma: float) -> Agent:
    goal = plan.training[0]
    planner = exact_planner(world, goal, gamma=gamma)
    if kind == "planner":
        return planner
    if kind == "controller":
        size = int(world.coordinates.max()) + 1
        return Controller(world.coordinates[goal.states[0]], world.action_moves.astype(float), world.coordinates, size)
    if kind == "goal_table":
        goals = tuple(sorted(plan.training))
        rows = np.stack([compile_policy(exact_planner(world, g), world).symbols for g in goals])
        return GoalTable(rows, goals.index(goal), goals, world.model.n_actions)
    table = compile_policy(planner, world)
    return table if kind == "table" else QTable(np.eye(world.model.n_actions + 1)[table.symbols][:, :-1])


@lru_cache(maxsize=16)
def subject(kind: str, name: str = "FourRooms", size: int = 9, seed: int = 0) -> Subject:
    world = retarget.make_world(name, size=size)
    plan = GoalPlan.draw(world, n_pairs=1, seed=seed)
    return Subject(agent_of(kind, world, plan, 0.95), world, plan.training[0], seed=seed, plan=plan)


@lru_cache(maxsize=16)
def scrambled(kind: str) -> Subject:
    """Every state leads to every other in one step, by an action whose number says nothing."""
    rng = stream(1, "scrambled_map")
    world = ModelWorld(FiniteModel.deterministic(np.stack([rng.permutation(12) for _ in range(12)])), StateGoal.of([0]))
    plan = GoalPlan.draw(world, n_pairs=1, seed=0)
    agent = agent_of(kind, world, plan, 0.5)
    return Subject(agent, world, plan.training[0], gamma=0.5, level=1.0, plan=plan)


@lru_cache(maxsize=16)
def measured(kind: str, name: str = "FourRooms", size: int = 9) -> Outcome:
    return GoalMap().measure(scrambled(kind) if name == "scrambled" else subject(kind, name, size))


def family(kind: str, name: str = "FourRooms", size: int = 9) -> tuple[Family, Features]:
    found = family_of(subject(kind, name, size), n_seen=3, n_held_out=3, budget=512)
    return found, features_of(found.world, [m.goal for m in found.members])


# ------------------------------------------------------------------------------------------------ the code of maps


@pytest.mark.parametrize("kind", ["table", "q_table", "planner", "goal_table", "controller"])
def test_every_map_is_read_back_from_its_bits_and_so_is_what_mends_it(kind: str) -> None:
    found, features = family(kind, "OpenGrid", 5)
    results = all_maps(found, features, units=4, steps=40, seed=0)
    assert list(results) == list(KINDS)
    done = 0
    for name, result in results.items():
        if isinstance(result, str) or name == "planner":
            continue
        again = decode_map(result.map.word, found, features, units=4)
        assert again.kind == name and again.word == result.map.word
        assert [again.edit(m.goal) for m in found.members] == [result.map.edit(m.goal) for m in found.members]
        bits = two_part_word(result, found)
        assert len(bits) == result.bits + result.residual_bits(found.used)
        source = Stream(bits)
        agents = read_mended(
            source, read_map(source, found, features, units=4), found.agent, [m.goal for m in found.used]
        )
        assert source.rest == 0
        for member, agent in zip(found.used, agents, strict=True):
            assert member.task.enough(member.task.judge.score(agent).competence)
        done += 1
    assert done >= 4


def test_a_planner_as_a_map_holds_the_whole_model() -> None:
    found, features = family("table", "OpenGrid", 5)
    result = all_maps(found, features, units=4, steps=5, seed=0)["planner"]
    assert isinstance(result, MapResult) and isinstance(result.map, PlannerMap)
    source = Stream(result.map.word)
    assert source.fixed(3) == KINDS.index("planner")
    edit = source.edit(result.map.layout, agent_digest="")
    model = found.world.model
    assert source.rest == 0
    assert (edit.patches[0].write(np.zeros(model.next_state.shape, np.int64)) == model.next_state).all()
    assert edit.patches[1].index.tolist() == sorted(found.world.start_states)
    assert result.bits >= model.next_state.size * math.log2(model.n_states)
    # what it writes is what an exact planner does
    for member in found.members:
        acts = policy_table(result.map.edit(member.goal).apply(found.agent), model)
        best = policy_table(exact_planner(found.world, member.goal), model)
        matters = ~member.goal.mask(model.n_states)
        assert (acts[matters] == best[matters]).all()


@given(st.integers(0, 2**40))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_bits_that_are_no_map_are_refused(value: int) -> None:
    found, features = family("goal_table", "OpenGrid", 5)
    bits = format(value, "b")
    try:
        map_ = decode_map(bits, found, features, units=4)
    except (CodeError, EditError):
        return
    assert len(map_.word) <= len(bits)


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
def test_cells_read_back_what_targets_say(data) -> None:
    found, _ = family(data.draw(st.sampled_from(["table", "q_table", "planner", "controller"])), "OpenGrid", 5)
    edited = [m.agent for m in found.used]
    cells = Cells.touched(found.agent, edited)
    if data.draw(st.booleans()):
        cells = cells.read_as_numbers(lambda y: y, edited)
        assert not any(flags.any() for flags in cells.as_score.values())
    for agent in edited:
        again = cells.edit(cells.targets(agent)).apply(found.agent)
        for name, part in agent.parts.items():
            assert np.allclose(again.parts[name].array, part.array, atol=1e-12)
    source = Stream(cells.word)
    back = Cells.read(found.agent, source)
    assert source.rest == 0 and back.n_outputs == cells.n_outputs and back.word == cells.word


def test_a_map_that_does_not_fit_says_so() -> None:
    found, features = family("planner", "OpenGrid", 5)
    bits = ConstantMap(found.agent, found.used[0].found.edit).word
    with pytest.raises(CodeError, match="1 bits follow"):
        decode_map(bits + "0", found, features)
    with pytest.raises(CodeError, match="'planner', which cannot be read here"):
        decode_map("101", found, features)
    with pytest.raises(CodeError, match="'nothing'"):
        decode_map("111", found, features)
    wrong = SlotMap(found.agent, found.members[1].goal, 0).word
    with pytest.raises(CodeError, match="none of the agent's ways"):
        decode_map(wrong, found, features)


# ------------------------------------------------------------------------------------------------ fits


def test_least_squares_against_a_second_solver_and_rounding_keeps_what_was_met() -> None:
    found, features = family("controller", "OpenGrid", 7)
    linear, spend = fit_linear(found.agent, features, lessons_in(found))
    x = features.of([m.goal for m in found.used if m.seen])
    y = np.stack([linear.cells.targets(m.agent) for m in found.used if m.seen])
    assert np.allclose(linear.weights, np.linalg.lstsq(x, y, rcond=None)[0])
    assert spend.flops > 0
    bench = Bench()
    short = rounded(linear, found, bench)
    assert len(short.word) < len(linear.word)
    for m in found.used:
        if m.seen:
            before, after = bench.trial(m, linear.edit(m.goal)), bench.trial(m, short.edit(m.goal))
            assert after.met >= before.met and after.competence >= before.competence - 0.01


def test_a_number_is_rounded_to_the_nearest_symbol() -> None:
    found, _ = family("controller", "OpenGrid", 5)
    cells = Cells.touched(found.agent, [m.agent for m in found.used])
    numbers = Cells(cells.agent, cells.index, {"setpoint": np.zeros(len(cells.index["setpoint"]), np.bool_)})
    for number, symbol in ((2.6, 3), (2.4, 2), (-3.0, 0), (99.0, found.agent.size - 1)):
        edited = numbers.edit(np.full(numbers.n_outputs, number)).apply(found.agent)
        assert set(edited.setpoint[cells.index["setpoint"]].tolist()) == {symbol}


def test_rounding_gives_up_no_goal_that_was_met() -> None:
    class Strict(Bench):
        """Whatever is not the very edit of the exact numbers just misses the requirement."""

        def trial(self, member, edit):
            exact = edit == linear.edit(member.goal)
            return Trial(0.95 if exact else 0.945, exact)

    found, features = family("q_table", "OpenGrid", 5)
    linear, _ = fit_linear(found.agent, features, lessons_in(found))
    short = rounded(linear, found, Strict())
    for m in found.used:
        assert not m.seen or short.edit(m.goal) == linear.edit(m.goal)


def test_a_network_can_fit_what_no_line_does() -> None:
    # rewards of single cells are not linear in coordinates; a network with enough units memorises them
    found, features = family("planner", "OpenGrid", 5)
    result = all_maps(found, features, units=12, steps=1500, seed=0)["network"]
    assert isinstance(result, MapResult) and isinstance(result.map, NetworkMap)
    assert all(result.trials[m.goal].met for m in found.used if m.seen)


def test_the_nearest_goal_is_the_nearest_by_hand() -> None:
    found, features = family("table", "OpenGrid", 7)
    map_ = fit_nearest(found, features)
    training = [m for m in found.used if m.seen]
    place = found.world.coordinates
    for member in found.members:
        far = [float(((place[t.goal.states[0]] - place[member.goal.states[0]]) ** 2).sum()) for t in training]
        assert map_.edit(member.goal) == training[int(np.argmin(far))].found.edit


def test_an_edit_that_the_agent_refuses_meets_nothing() -> None:
    found, _ = family("planner", "OpenGrid", 5)
    member = found.members[0]
    broken = Edit("another agent", ())
    trial = Bench().trial(member, broken)
    assert trial.competence == 0.0 and not trial.met


def test_shuffled_goals_leave_no_edit_at_its_own_goal() -> None:
    found, features = family("planner", "OpenGrid", 7)
    for draw in range(3):
        result = shuffled_maps(found, features, seed=0, draw=draw)["nearest"]
        assert isinstance(result, MapResult)
        own = [m.found.edit for m in found.used if m.seen]
        mixed = [result.map.edit(m.goal) for m in found.used if m.seen]
        assert all(a != b for a, b in zip(own, mixed, strict=True)) and set(own) == set(mixed)


# ------------------------------------------------------------------------------------------------ features


def test_features_of_a_goal_of_several_states_are_their_mean() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    features = features_of(world, world.goals)
    goal = StateGoal.of([0, 6])
    assert features(goal).tolist() == [*world.coordinates[[0, 6]].mean(0), 1.0]
    assert features_of(world, world.goals, kind="one_hot")(goal).tolist()[:8] == [0.5, 0, 0, 0, 0, 0, 0.5, 0]


def test_features_of_the_wrong_size_give_one_clear_line() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    with pytest.raises(GoalError, match=r"one row for each of the 25 states, got shape \(24, 2\)") as error:
        Features.of_states(world, np.zeros((24, 2)), label="place")
    assert "\n" not in str(error.value)
    with pytest.raises(GoalError, match="state 3 are"):
        Features.of_states(world, np.where(np.arange(25)[:, None] == 3, np.nan, 0.0), label="place")
    with pytest.raises(GoalError, match="did you mean 'one_hot'"):
        GoalMap(features="onehot")
    bare = ModelWorld(world.model, world.goals[0])
    with pytest.raises(GoalError, match="no coordinates"):
        features_of(bare, bare.goals, kind="coordinates")
    with pytest.raises(GoalError, match="RegionGoal"):
        features_of(world, world.goals)(RegionGoal.of(x=(0.0, 1.0)))


# ------------------------------------------------------------------------------------------------ known truths


def slot_price(n_states: int, n_parts: int = 2) -> int:
    """The slot "rest 0, and 1 in one of S cells", by the table in docs/code.md."""
    one_part, which, kind, one_cell, rest, dyadic, one = 1, math.ceil(math.log2(n_parts)), 2, 1, 1, 1, 4
    return one_part + which + kind + one_cell + rest + dyadic + one + math.ceil(math.log2(n_states))


@pytest.mark.parametrize("name", ["FourRooms", "Maze"])
def test_a_planner_is_mapped_by_its_slot_at_the_slots_price(name: str) -> None:
    outcome = measured("planner", name)
    price = slot_price(subject("planner", name).world.model.n_states)
    assert outcome.at("map_hits", protocol=SLOT).value == outcome.at("map_hits_seen", protocol=SLOT).value == 1.0
    assert outcome.at("map_competence", protocol=SLOT).value == pytest.approx(1.0)
    assert outcome.at("map_edit_bits", protocol=SLOT).value == price
    assert outcome.at("map_bits", protocol=SLOT).value == price + 3
    used = outcome["goals_used"].value
    assert outcome.at("two_part_bits", protocol=SLOT).value == price + 3 + used
    assert outcome["map_gain"].value == pytest.approx(math.log2(used * price / (price + 3 + used)))
    assert outcome["map_gain"].editor == "slot"
    assert outcome["map_gain"].value > outcome["map_gain_shuffled"].ci_high + 1


def test_tables_whose_goals_share_no_behaviour_have_no_map() -> None:
    table, planner = measured("table", "scrambled"), measured("planner", "scrambled")
    # the three bits of its name and a flag for each goal are all that the constant loses; nothing is gained
    assert -0.2 < table["map_gain"].value <= 0.05
    assert table["map_gain_over_table"].value == 0
    # no map fitted to training goals does anything for the others; the slot does
    fitted = [
        m for m in table.measurements if m.metric == "map_hits" and "planner" not in m.protocol and m.value is not None
    ]
    assert len(fitted) == 4 and all(m.value == 0 for m in fitted)
    assert planner.at("map_hits", protocol=SLOT).value == 1 and planner["map_gain_over_table"].value > 1.5


@pytest.mark.parametrize("name", ["FourRooms", "Maze"])
def test_a_table_gains_by_shared_routes_alone(name: str) -> None:
    outcome = measured("table", name)
    assert outcome["map_gain_over_table"].value == 0
    # neighbouring goals share a route, or all goals a first step: far from what a slot gains
    assert outcome["map_gain"].editor in ("nearest", "constant")
    assert outcome["map_gain"].value < 0.5 < measured("planner", name)["map_gain_over_table"].value
    assert outcome.at("map_hits", protocol=SLOT.split(":")[0] + ": slot").status == "not_applicable"


def test_a_goal_table_passes_on_training_goals_and_fails_on_others() -> None:
    outcome = measured("goal_table")
    assert outcome.at("map_hits_seen", protocol=SLOT).value == 1.0
    assert outcome.at("map_hits", protocol=SLOT).value == 0.0
    assert outcome["map_gain_held_out"].value < 0
    assert outcome.at("map_competence", protocol=SLOT).value < 0.5


def test_a_controllers_set_point_is_linear_in_coordinates() -> None:
    outcome = measured("controller", "OpenGrid", 7)
    assert outcome.at("map_hits", protocol=LINEAR).value == outcome.at("map_hits_seen", protocol=LINEAR).value == 1.0
    # two cells of the set-point, read as numbers: row = row, column = column, and nothing else
    found = family_of(subject("controller", "OpenGrid", 7), n_seen=4, n_held_out=4, budget=512)
    features = features_of(found.world, [m.goal for m in found.members])
    result = all_maps(found, features, units=4, steps=5, seed=0)["linear"]
    assert isinstance(result, MapResult) and isinstance(result.map, LinearMap)
    assert result.map.weights.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    assert result.bits < 40


def test_in_an_open_grid_a_linear_map_of_a_table_exists_and_costs_more_than_it_saves() -> None:
    # whichever axis is nearer the end first: "down where the goal is below" is linear in the goal's row, state by state
    world = retarget.make_world("OpenGrid", size=5)
    place = world.coordinates
    names = {tuple(m): a for a, m in enumerate(world.action_moves.tolist())}

    def acts(goal: StateGoal) -> np.ndarray:
        row, column = place[goal.states[0]]
        return np.array([
            names[(1, 0)] if r < row else names[(-1, 0)] if r > row else names[(0, 1)] if c < column else names[(0, -1)]
            for r, c in place.tolist()
        ])  # fmt: skip

    base = compile_policy(exact_planner(world, world.goals[0]), world)
    rng = stream(0, "open_grid_goals")
    goals = [world.goals[int(i)] for i in rng.permutation(len(world.goals))]
    edited = [base.with_arrays({"policy": acts(g)}) for g in goals]
    features = features_of(world, goals)
    cells = Cells.touched(base, edited)
    # by hand: the score of "down" rises with the goal's row, that of "up" falls, those of the columns matter on the row
    weights = np.zeros((3, cells.n_outputs))
    for i, cell in enumerate(cells.index["policy"].tolist()):
        r, c = place[cell].tolist()
        for step, slope in (((1, 0), 10), ((-1, 0), -10)):
            weights[:, 5 * i + names[step]] = (slope, 0, -slope * r - 5)
        for step, slope in (((0, 1), 1), ((0, -1), -1)):
            weights[:, 5 * i + names[step]] = (0, slope, -slope * c)
        weights[2, 5 * i + base.n_actions] = -100
    by_hand = LinearMap(cells, features, weights)
    for goal, agent in zip(goals, edited, strict=True):
        got, off_goal = by_hand.edit(goal).apply(base).symbols, np.arange(25) != goal.states[0]
        assert (got[off_goal] == agent.symbols[off_goal]).all()
    # it exists; its 375 weights cost far more than one goal's shortest edit, of some 30 bits
    assert 1000 < len(by_hand.word) < 5000


def test_planners_are_no_part_of_the_gain_and_pay_for_the_model() -> None:
    outcome = measured("table")
    row = next(m for m in outcome.measurements if m.metric == "map_bits" and m.protocol.startswith("map: planner"))
    n = subject("table").world.model.n_states
    assert row.value > 4 * n * math.log2(n)
    assert outcome.at("map_hits", protocol=row.protocol).value == 1.0
    assert outcome.at("two_part_bits", protocol=row.protocol).value > outcome["single_bits"].value
    assert outcome.at("map_apply_flops", protocol=row.protocol).value > 1000
    assert outcome["map_gain"].editor != "planner"
    found, features = family("table")
    results = all_maps(found, features, units=4, steps=5, seed=0)
    best = least({"planner": results["planner"]}, found.used)
    assert best is None


def test_two_part_bits_add_up() -> None:
    for kind in ("table", "planner", "goal_table"):
        outcome = measured(kind)
        for m in (m for m in outcome.measurements if m.metric == "two_part_bits" and m.value is not None):
            parts = [outcome.at(n, protocol=m.protocol).value for n in ("map_bits", "residual_bits")]
            assert m.value == sum(parts)
            # two bits and the single edit are always there to fall back on
            assert parts[1] <= outcome["single_bits"].value + 2 * outcome["goals_used"].value
        values = [m.value for m in outcome.measurements
                  if m.metric == "two_part_bits" and m.value is not None and "planner" not in m.protocol]  # fmt: skip
        assert outcome["map_gain"].value == pytest.approx(math.log2(outcome["single_bits"].value / min(values)))


# ------------------------------------------------------------------------------------------------ the probe


def test_where_there_is_nothing_to_map_the_reason_is_told() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    uniform = QTable(np.zeros((25, 4)))
    outcome = GoalMap().measure(Subject(uniform, world, world.goals[0]))
    assert outcome["map_gain"].status == "not_applicable" and "no goal to change" in outcome["map_gain"].reason
    # a controller sees no walls: there is an edit to ask for, and none is found
    maze = retarget.make_world("Maze", size=9)
    plan = GoalPlan.draw(maze, n_pairs=4, seed=0)
    goal = plan.pairs[0][0]
    lost = agent_of("controller", maze, GoalPlan((goal,), (), ()), 0.95)
    outcome = GoalMap().measure(Subject(lost, maze, goal, plan=plan))
    assert outcome["map_gain"].status == "failed" and outcome["goals_not_found"].value == 8
    assert "for any of 8 goals" in outcome["map_gain"].reason


def test_held_out_goals_alone_still_try_the_slot() -> None:
    s = subject("planner")
    outcome = GoalMap().measure(s.with_(plan=GoalPlan((s.goal_a,), s.plan.held_out, ())))
    assert outcome.at("map_hits", protocol=SLOT).value == 1.0
    assert outcome.at("map_hits", protocol="map: linear").status == "not_applicable"
    assert outcome["map_gain_held_out"].status == "not_applicable"
    assert outcome["map_gain"].editor == "slot"


def test_one_goal_has_nothing_to_share() -> None:
    s = subject("planner")
    outcome = GoalMap().measure(s.with_(plan=GoalPlan(s.plan.training[:2], (), ())))
    assert outcome["goals_used"].value == 1 and outcome["single_bits"].value == slot_price(40)
    assert outcome["map_gain"].status == outcome["map_gain_shuffled"].status == "not_applicable"
    assert "one goal alone" in outcome["map_gain"].reason


def test_more_goals_never_change_a_single_edit() -> None:
    few = family_of(subject("table"), n_seen=2, n_held_out=1, budget=512)
    many = family_of(subject("table"), n_seen=4, n_held_out=3, budget=512)
    bits = {m.goal: m.found.bits for m in many.used}
    assert all(bits[m.goal] == m.found.bits for m in few.used)


def test_intervals() -> None:
    assert mean_interval(np.array([0.5])) == (None, None)
    low, high = mean_interval(np.array([0.0, 1.0]))
    assert low == 0.0 and high == pytest.approx(0.5 + 12.7062 * math.sqrt(0.5) / math.sqrt(2), abs=1e-3)
    # Wilson's interval solves |p - h| = z sqrt(p (1 - p) / n) for p
    for hits, n in ((0, 4), (1, 4), (7, 9), (9, 9)):
        for p in share_interval(hits, n):
            if 0 < p < 1:
                assert abs(p - hits / n) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n))


def test_the_probe_obeys_its_laws() -> None:
    forget()
    check_probe(GoalMap(n_seen=2, n_held_out=1, units=3, steps=30, shuffles=2), max_examples=8)


def test_lengths_are_those_of_the_projects_code() -> None:
    outcome = measured("planner")
    assert outcome["single_bits"].code == ENUMERATIVE.name
    assert outcome.at("map_bits", protocol=SLOT).code == ENUMERATIVE.name


@pytest.mark.parametrize("kind", ["planner", "table"])
def test_compute_is_compared_where_both_take_operations_and_exact_values_have_no_n(kind: str) -> None:
    outcome = measured(kind)
    compute = outcome["map_compute_gain"]
    best = outcome["map_gain"].editor
    fit, apply = (
        next(m.value for m in outcome.measurements if m.metric == name and m.protocol.startswith(f"map: {best}"))
        for name in ("map_fit_flops", "map_apply_flops")
    )
    tried = sum(outcome[n].value for n in ("goals_used", "goals_not_found"))
    operations, single = fit / tried + apply, outcome["single_flops"].value
    if operations == 0:  # a slot is written without one: no ratio, rather than one to a made-up operation
        assert best == "slot" and compute.status == "not_applicable" and "no operations" in compute.reason
    else:
        assert compute.value == pytest.approx(math.log2(single / operations)) and compute.n is None
    assert (kind == "planner") == (operations == 0)
    for name in ("single_bits", "map_gain", "map_gain_held_out", "map_gain_table", "map_gain_over_table"):
        assert outcome[name].n is None
