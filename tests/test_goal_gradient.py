"""The goal gradient: known truths at both ends, laws of invariance, and a second way to every number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Agent, HasScores, Part, Real, Scores
from retarget.agents import compile_policy, exact_planner, learned_planner, train_q_table
from retarget.agents import scores as agent_scores
from retarget.agents.controller import Controller
from retarget.agents.network_for import network_for
from retarget.agents.tabular import GoalTable, QTable, TablePolicy
from retarget.agents.wrappers import ModelWorld, Padded, relabel_agent
from retarget.errors import AgentError
from retarget.exact import action_values, optimal_values, policy_table
from retarget.goal import StateGoal
from retarget.gradients import (
    centred,
    cosines,
    effective_rank,
    features,
    least_squares,
    plain,
    share_in_span,
    single_reward_values,
)
from retarget.judge import greedy
from retarget.pairs import GoalPlan
from retarget.probe import Subject
from retarget.probes.goal_gradient import HALVES, REGIONS, Comparison, GoalGradient, Question, two_regions
from retarget.testing import check_probe, models, policies, worlds
from retarget.world import FiniteModel, FiniteWorld

LAWS = settings(max_examples=30, deadline=None)
FEW = settings(LAWS, max_examples=10)


@dataclass(frozen=True, eq=False)
class Planted(Agent):
    """An agent whose scores are known: `columns @ numbers`, float64 `[S, A, P]` and `[P]`."""

    columns: np.ndarray
    numbers: np.ndarray
    kind = "planted"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"numbers": Part("numbers", "goal_slot", self.numbers, Real())}

    def with_arrays(self, arrays):
        return replace(self, numbers=arrays["numbers"])

    def policy(self, obs, carry=None):
        return greedy((self.columns @ self.numbers)[obs]), None

    def blank(self, seed):
        return replace(self, numbers=np.zeros_like(self.numbers))

    def scores_at(self, obs: np.ndarray) -> Scores:
        columns = self.columns[obs]
        return Scores("planted", columns @ self.numbers, columns, {"numbers": len(self.numbers)})


def advantages(world: FiniteWorld, goal: StateGoal, gamma: float = 0.95) -> np.ndarray:
    return centred(action_values(world.model, optimal_values(world.model, goal, gamma=gamma), gamma=gamma))


def planned(world: FiniteWorld, *goals: StateGoal) -> GoalPlan:
    """A plan whose goals beside the first are these."""
    return GoalPlan(goals[:1], goals[1:], ((goals[0], goals[1]),))


def halves(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    first = np.zeros(n, bool)
    first[rng.permutation(n)[: n // 2]] = True
    return first, ~first


def test_probe_obeys_its_laws():
    check_probe(GoalGradient(splits=2), max_examples=25)


# ------------------------------------------------------------------------------------------------ known truths


@LAWS
@given(st.data())
def test_any_table_gives_exactly_zero(data):
    world = data.draw(worlds())
    model = world.model
    if data.draw(st.booleans()):
        agent: Agent = TablePolicy.from_probabilities(data.draw(policies(model.n_states, model.n_actions)))
    else:
        values = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(model.n_states, model.n_actions))
        agent = QTable(values)
    goal = data.draw(st.sampled_from(world.goals))
    outcome = GoalGradient(splits=2).measure(Subject(agent, world, goal))
    zero = ("goal_coherence", "gradient_cosine", "goal_transfer", "coherence_shuffled", "goal_share")
    found = [m.value for m in outcome.measurements if m.metric in zero and m.status == "ok"]
    assert all(v == 0.0 for v in found), found


def test_tables_of_a_grid_are_measured_and_zero():
    world = retarget.make_world("FourRooms", size=7)
    outcome = GoalGradient(splits=2).measure(Subject(train_q_table(world, world.goals[0], episodes=0, exploring=True,
                                                                   seed=0)[0], world, world.goals[0]))  # fmt: skip
    for protocol in (HALVES, REGIONS):
        m = outcome.at("goal_coherence", protocol=protocol)
        assert (m.status, m.value, m.ci_low, m.ci_high) == ("ok", 0.0, 0.0, 0.0)
    assert outcome["complement_share"].value == 1.0
    assert outcome["coherence_in_slot"].status == "not_applicable"


@FEW
@given(st.integers(0, 10**6))
def test_a_slot_of_two_goals_gives_one(seed):
    world = retarget.make_world("FourRooms", size=7)
    rng = np.random.default_rng(seed)
    a, b = (world.goals[int(i)] for i in rng.choice(len(world.goals), 2, replace=False))
    y_a, y_b = advantages(world, a), advantages(world, b)
    probe = GoalGradient(splits=3, damping=1e-9)
    one = Planted((y_b - y_a)[:, :, None], np.zeros(1))
    outcome = probe.measure(Subject(one, world, a, plan=planned(world, a, b)))
    assert outcome["goal_coherence"].value == pytest.approx(1.0, abs=1e-12)
    assert outcome["gradient_cosine"].value == pytest.approx(1.0, abs=1e-12)
    assert outcome["goal_transfer"].value == pytest.approx(1.0, abs=1e-12)
    assert outcome["goal_share"].value == pytest.approx(1.0, abs=1e-12)
    two = Planted(np.stack([y_a, y_b], axis=2), np.array([1.0, 0.0]))
    outcome = probe.measure(Subject(two, world, a, plan=planned(world, a, b)))
    assert outcome["goal_coherence"].value > 1 - 1e-5
    assert outcome["goal_transfer"].value > 1 - 1e-5


@FEW
@given(st.integers(0, 10**6))
def test_a_planner_gives_one_where_both_sets_of_states_tell_the_rewards_apart(seed):
    # Q_j of the world's own model: the change is J (e_B - e_A). Its least-norm solution on X is the projection on the
    # row space of J_X: the same on X and Y wherever both have the row space of all states.
    rng = np.random.default_rng(seed)
    s, a = 8, 4
    prob = rng.dirichlet(np.ones(3), size=(s, a))
    model = FiniteModel(rng.integers(0, s, size=(s, a, 3)), prob)
    world = ModelWorld(model, StateGoal.of([0]))
    goals = [g for g in world.goals if (optimal_values(model, g, gamma=0.95) > 0).all()][:3]
    assume(len(goals) == 3)
    jacobian = exact_planner(world, goals[0]).scores_at(np.arange(s)).jacobian
    rank = np.linalg.matrix_rank(centred(jacobian).reshape(s * a, s), tol=1e-6)
    question = Question.of(model, goals, np.arange(s), gamma=0.95)
    x, y = halves(s, rng)
    for g in range(2):
        counted = question.change(g)[1]
        ranks = [np.linalg.matrix_rank(centred(jacobian[counted & m]).reshape(-1, s), tol=1e-6) for m in (x, y)]
        assume(ranks == [rank, rank])
    found = Comparison(features(jacobian), question, ((x, y),), 1e-12, 0)
    assert found.same_goal.min() > 1 - 1e-6
    assert found.transfer.min() > 1 - 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_where_rewards_look_alike_a_planner_gives_the_cosine_of_two_projections(seed):
    # The least-norm solution of J_X d = J_X (e_B - e_A) is the projection of e_B - e_A on the row space of J_X.
    world = retarget.make_world("FourRooms", size=7)
    rng = np.random.default_rng(seed)
    n = world.model.n_states
    goals = [world.goals[int(i)] for i in rng.choice(n, 2, replace=False)]
    jacobian = exact_planner(world, goals[0]).scores_at(np.arange(n)).jacobian
    question = Question.of(world.model, goals, np.arange(n), gamma=0.95)
    counted = question.change(0)[1]
    wanted = np.eye(n)[goals[1].states[0]] - np.eye(n)[goals[0].states[0]]
    sets, projected = halves(n, rng), []
    for inside in sets:
        _, size, basis = np.linalg.svd(centred(jacobian)[counted & inside].reshape(-1, n))
        kept = basis[: len(size)][size > 1e-9]
        # fewer directions than rewards (less one: equal rewards everywhere ask for nothing)
        assert len(kept) < n - 1
        projected.append(kept.T @ (kept @ wanted))
    found = Comparison(features(jacobian), question, (sets,), 1e-10, 0).same_goal[0, 0]
    assert found == pytest.approx(cosines(projected[0][None], projected[1][None])[0, 0], abs=1e-3)


@pytest.mark.parametrize("name", ["FourRooms", "Maze"])
def test_a_planner_gives_what_a_slot_of_rewards_can_give_here_and_no_less(name):
    world = retarget.make_world(name, size=7)
    goal = world.goals[0]
    outcome = GoalGradient(splits=3).measure(Subject(exact_planner(world, goal), world, goal))
    for protocol in (HALVES, REGIONS):
        found = outcome.at("goal_coherence", protocol=protocol).value
        assert found == pytest.approx(outcome.at("coherence_slot", protocol=protocol).value, abs=1e-9)
        # some rewards look alike from half of the states, so that it is not 1
        assert 0.0 < found < 0.999
    # its numbers are its slot's
    assert outcome["coherence_in_slot"].value == outcome["goal_coherence"].value
    assert abs(outcome["coherence_shuffled"].value) < 0.5 * outcome["goal_coherence"].value
    assert outcome["coherence_other_goal"].value < outcome["goal_coherence"].value


def test_behaviour_alone_does_not_decide_it():
    world = retarget.make_world("FourRooms", size=7)
    planner = exact_planner(world, world.goals[0])
    pair = [Subject(agent, world, world.goals[0]) for agent in (planner, compile_policy(planner, world))]
    first, second = (GoalGradient(splits=2).measure(s)["goal_coherence"].value for s in pair)
    assert first > 0.3 and second == 0.0


@FEW
@given(st.integers(0, 10**6), st.floats(0.1, 10.0))
def test_a_slot_beside_a_table_gives_the_slots_share(seed, weight):
    # Numbers: one slot number whose effect is the whole change t, and one number a cell. On X the least norm is at
    # a = τ²/(1+τ²) in the slot, τ² = |t_X|²; the cosine is sqrt(τ_X²/(1+τ_X²) τ_Y²/(1+τ_Y²)).
    world = retarget.make_world("FourRooms", size=7)
    rng = np.random.default_rng(seed)
    goals = [world.goals[int(i)] for i in rng.choice(len(world.goals), 2, replace=False)]
    n, actions = world.model.n_states, world.model.n_actions
    question = Question.of(world.model, goals, np.arange(n), gamma=0.95)
    target, counted = question.change(0)
    cells = np.eye(n * actions).reshape(n, actions, -1)
    jacobian = np.concatenate([weight * target[:, :, None], cells], axis=2)
    x, y = halves(n, rng)
    found = Comparison(features(jacobian), question, ((x, y),), 1e-10, 0).same_goal[0, 0]
    size = [weight**2 * (target[counted & m] ** 2).sum() for m in (x, y)]
    # two goals of one room may ask for the same wherever X is
    assume(min(size) > 0)
    assert found == pytest.approx(np.sqrt(size[0] / (1 + size[0]) * size[1] / (1 + size[1])), rel=1e-6)


def test_a_goal_table_lies_between():
    world = retarget.make_world("FourRooms", size=7)
    goals = world.goals[:6]
    rows = [compile_policy(exact_planner(world, g), world).symbols for g in goals]
    table = GoalTable(np.stack(rows), 0, goals, world.model.n_actions)
    plan = GoalPlan(goals[:4], world.goals[10:14], ((goals[0], goals[1]),))
    outcome = GoalGradient(splits=4).measure(Subject(table, world, goals[0], plan=plan))
    assert 0.001 < outcome["goal_coherence"].value < outcome["coherence_slot"].value
    # the slot's own numbers, one a row, are a slot of few goals
    assert outcome["coherence_in_slot"].value > outcome["goal_coherence"].value
    assert outcome["goal_coherence"].value > abs(outcome["coherence_shuffled"].value)


# ------------------------------------------------------------------------------------------------ laws


def some_comparison(seed: int, *, damping: float = 1e-3, n_goals: int = 3):
    world = retarget.make_world("OpenGrid", size=5)
    rng = np.random.default_rng(seed)
    goals = [world.goals[int(i)] for i in rng.choice(len(world.goals), 1 + n_goals, replace=False)]
    n, a = world.model.n_states, world.model.n_actions
    jacobian = rng.normal(size=(n, a, int(rng.choice([7, 150]))))
    question = Question.of(world.model, goals, np.arange(n), gamma=0.95)
    return jacobian, Comparison(features(jacobian), question, (halves(n, rng), halves(n, rng)), damping, seed), rng


@LAWS
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3))
def test_scale_order_and_dead_numbers_change_nothing(seed, scale):
    jacobian, found, rng = some_comparison(seed)
    dead = np.zeros((*jacobian.shape[:2], 4))
    for other in (
        scale * jacobian,
        jacobian[:, :, rng.permutation(jacobian.shape[2])],
        np.concatenate([jacobian, dead], axis=2),
        jacobian + rng.normal(size=(len(jacobian), 1, jacobian.shape[2])),
    ):
        again = replace(found, features=features(other))
        for name in ("same_goal", "other_goal", "gradient", "transfer", "shuffled"):
            assert np.allclose(getattr(again, name), getattr(found, name), atol=1e-8), name
        assert np.allclose(again.shares(again.found), found.shares(found.found), atol=1e-8)
        assert again.rank == pytest.approx(found.rank, abs=1e-8)


@FEW
@given(st.integers(0, 10**6))
def test_a_turned_basis_of_the_numbers_changes_nothing(seed):
    jacobian, found, rng = some_comparison(seed)
    turn = np.linalg.qr(rng.normal(size=(jacobian.shape[2],) * 2))[0]
    again = replace(found, features=features(jacobian @ turn))
    assert np.allclose(again.same_goal, found.same_goal, atol=1e-8)
    assert np.allclose(again.gradient, found.gradient, atol=1e-8)


@FEW
@given(st.integers(0, 10**6))
def test_renaming_states_and_sets_alike_changes_nothing(seed):
    jacobian, found, rng = some_comparison(seed)
    perm = rng.permutation(len(jacobian))
    question = Question(found.question.advantages[:, perm], found.question.counted[:, perm])
    sets = tuple((x[perm], y[perm]) for x, y in found.sets)
    again = replace(found, features=features(jacobian[perm]), question=question, sets=sets)
    for name in ("same_goal", "gradient", "transfer"):
        assert np.allclose(getattr(again, name), getattr(found, name), atol=1e-8), name


@FEW
@given(st.integers(0, 10**6))
def test_goals_together_are_goals_one_by_one(seed):
    _, found, _ = some_comparison(seed)
    for g in range(3):
        question = Question(found.question.advantages[[0, 1 + g]], found.question.counted[[0, 1 + g]])
        alone = replace(found, question=question)
        for name in ("same_goal", "gradient", "transfer"):
            assert np.allclose(getattr(alone, name)[:, 0], getattr(found, name)[:, g], atol=1e-12), name


@LAWS
@given(worlds(), st.integers(0, 10**6))
def test_regions_are_disjoint_and_each_state_lies_with_the_nearer_seed(world, seed):
    from retarget.kernels import all_distances

    own = np.arange(world.model.n_states, dtype=np.int32)[:, None, None]
    edges = np.where(world.model.prob > 0, world.model.next_state, own).reshape(world.model.n_states, -1)
    steps = all_distances(edges.astype(np.int32))
    x, y = two_regions(steps, np.random.default_rng(seed))
    first = int(np.random.default_rng(seed).integers(len(steps)))
    assert x[first] and not (x & y).any()
    far = np.where(steps < 0, 10**6, steps)
    second = int(np.where(steps[first] < 0, -1, steps[first]).argmax())
    assert (far[first][x] <= far[second][x]).all() and (far[first][y] > far[second][y]).all()


# ------------------------------------------------------------------------------------------------ oracles


@LAWS
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([1e-8, 1e-3, 1.0]))
def test_least_squares_is_that_of_lapack_on_the_damped_system(n, f, seed, damping):
    rng = np.random.default_rng(seed)
    rows, target = rng.normal(size=(n, f)), rng.normal(size=n)
    root = np.sqrt(damping * (rows**2).sum() / n)
    tall = np.concatenate([rows, root * np.eye(f)])
    expected = np.linalg.lstsq(tall, np.concatenate([target, np.zeros(f)]), rcond=None)[0]
    assert np.allclose(least_squares(rows, target, damping=damping), expected, rtol=1e-5, atol=1e-7)


def test_least_squares_refuses_no_damping():
    with pytest.raises(AgentError, match="damping must be above 0, got 0"):
        least_squares(np.eye(2), np.ones(2), damping=0)


@LAWS
@given(st.integers(0, 10**6), st.integers(1, 60))
def test_coordinates_keep_lengths_and_angles(seed, p):
    rng = np.random.default_rng(seed)
    jacobian = rng.normal(size=(5, 3, p))
    rows = centred(jacobian).reshape(15, p)
    short = features(jacobian).reshape(15, -1)
    assert short.shape[1] <= 15
    t = rng.normal(size=(2, 15))
    long_way = cosines(t @ rows, t @ rows)
    assert np.allclose(cosines(t @ short, t @ short), long_way, atol=1e-9)
    a, b = least_squares(rows, t[0], damping=1e-3), least_squares(short, t[0], damping=1e-3)
    assert a @ a == pytest.approx(b @ b, rel=1e-7)
    assert np.allclose(rows @ a, short @ b, atol=1e-8)


def test_effective_rank_of_known_directions():
    assert effective_rank(np.eye(4) * np.arange(1, 5)[:, None]) == pytest.approx(4.0)
    assert effective_rank(np.tile([1.0, 2.0], (5, 1))) == pytest.approx(1.0)
    assert effective_rank(np.zeros((3, 2))) == 0.0
    # two unit directions at cosine c: singular values sqrt(1 ± c)
    c = 0.6
    share = np.sqrt([1 + c, 1 - c]) / np.sqrt([1 + c, 1 - c]).sum()
    assert effective_rank(np.array([[1, 0], [c, 0.8]])) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


@LAWS
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_share_in_a_span_is_one_less_the_residual(seed, n):
    rng = np.random.default_rng(seed)
    directions, one = rng.normal(size=(n, 6)), rng.normal(size=6)
    residual = one - directions.T @ np.linalg.lstsq(directions.T, one, rcond=None)[0]
    assert share_in_span(one, directions) == pytest.approx(1 - residual @ residual / (one @ one), abs=1e-9)


@FEW
@given(models(max_states=6), st.integers(0, 10**6))
def test_values_for_one_reward_are_the_worlds_own(model, seed):
    j = int(np.random.default_rng(seed).integers(model.n_states))
    found = single_reward_values(model.next_state, model.prob, np.arange(model.n_states), gamma=0.9, rewarded=[j])
    exact = action_values(model, optimal_values(model, StateGoal.of([j]), gamma=0.9), gamma=0.9)
    assert np.allclose(0.9 * found[:, :, 0], exact, atol=1e-9)


def test_rounding_is_no_direction():
    rows = np.array([[1.0, 0.0], [0.0, 0.0]])
    assert not plain(rows, np.array([1e-17, 1.0])).any()
    assert np.isnan(cosines(np.zeros((1, 2)), np.ones((1, 2)))).all()


# ------------------------------------------------------------------------------------------------ scores of agents


def ladder(world: FiniteWorld) -> dict[str, Agent]:
    goal, model = world.goals[0], world.model
    rows = [compile_policy(exact_planner(world, g), world).symbols for g in world.goals[:3]]
    gain = np.asarray(world.action_moves, np.float64)
    return {
        "table": compile_policy(exact_planner(world, goal), world),
        "q": train_q_table(world, goal, episodes=5, exploring=True, seed=0)[0],
        "goal_table": GoalTable(np.stack(rows), 1, world.goals[:3], model.n_actions),
        "planner": exact_planner(world, goal),
        "depth": exact_planner(world, goal, depth=3),
        "learned": learned_planner(world, goal, everywhere=True, episodes=5, epsilon=0.1, seed=0),
        "controller": Controller(world.coordinates[goal.states[0]], gain, world.coordinates, 7),
        "mlp": network_for(world, goal, hidden=(8,), goals=world.goals[:4]),
        "cnn": network_for(world, goal, kind="cnn", convs=(2,), hidden=4),
        "vin": network_for(world, goal, kind="vin", goals=world.goals[:4], iterations=3, hidden=3, inner=2),
    }


WORLD = retarget.make_world("OpenGrid", size=5)
LADDER = ladder(WORLD)


@pytest.mark.parametrize("name", LADDER)
def test_scores_name_what_the_agent_does(name):
    agent = LADDER[name]
    assert isinstance(agent, HasScores)
    scores = agent.scores_at(np.arange(WORLD.model.n_states))
    probs = policy_table(agent, WORLD.model)
    pure = np.flatnonzero(probs.max(1) == 1.0)
    assert pure.size > 3
    # its choice is among the best by its scores
    chosen = scores.value[pure, probs[pure].argmax(1)]
    assert (chosen >= scores.value[pure].max(1) - 1e-9).all()
    assert set(scores.parts) <= set(agent.parts)


@pytest.mark.parametrize("name", ["q", "planner", "depth", "learned", "mlp", "cnn", "vin"])
def test_the_jacobian_is_that_of_finite_differences(name):
    agent, states = LADDER[name], np.array([1, 7, 12])
    scores = agent.scores_at(states)
    rng, at, step = np.random.default_rng(0), 0, 1e-6
    for part, count in scores.parts.items():
        array = agent.parts[part].array
        assert array.size == count
        for cell in rng.choice(count, min(count, 12), replace=False):
            moved = []
            for sign in (1, -1):
                new = array.copy().reshape(-1)
                new[cell] += sign * step
                moved.append(agent.with_arrays({part: new.reshape(array.shape)}).scores_at(states).value)
            slope = (moved[0] - moved[1]) / (2 * step)
            assert np.allclose(scores.jacobian[:, :, at + cell], slope, atol=1e-6), (part, cell)
        at += count


@pytest.mark.parametrize("depth", [None, 3])
def test_a_planners_column_is_its_plan_for_one_reward(depth):
    agent = exact_planner(WORLD, WORLD.goals[0], depth=depth)
    states = np.arange(WORLD.model.n_states)
    columns = agent.scores_at(states).jacobian
    for j in (0, 12, 24):
        aimed = agent.with_arrays({"reward": np.eye(25)[j]})
        probs = policy_table(aimed, WORLD.model)
        best = columns[:, :, j].max(1)
        pure = best > 0
        assert (probs[pure].max(1) == 1).all() and (probs[~pure].max(1) < 1).all()
        assert np.allclose(columns[pure, probs[pure].argmax(1), j], best[pure])


def test_symbols_move_scores_as_the_jacobian_says():
    states = np.arange(WORLD.model.n_states)
    table = LADDER["goal_table"]
    scores = table.scores_at(states)
    other = table.with_arrays({"goal": np.array([2])}).scores_at(states)
    assert np.array_equal(other.value - scores.value, scores.jacobian[:, :, 2] - scores.jacobian[:, :, 1])
    symbols = table.symbols.copy()
    symbols[1, 3] = (symbols[1, 3] + 1) % 4
    moved = table.with_arrays({"table": symbols}).scores_at(states)
    change = np.zeros((3, 25, 4))
    change[1, 3] = np.eye(4)[symbols[1, 3]] - np.eye(4)[table.symbols[1, 3]]
    assert np.allclose(moved.value - scores.value, scores.jacobian[:, :, 3:] @ change.reshape(-1))
    controller = LADDER["controller"]
    shift = controller.with_arrays({"setpoint": controller.setpoint + np.array([1, 2])}).scores_at(states)
    assert np.allclose(shift.value - controller.scores_at(states).value, controller.scores_at(states).jacobian @ [1, 2])


@pytest.mark.parametrize("name", LADDER)
def test_wrappers_hand_scores_on(name):
    agent, states = LADDER[name], np.array([3, 0, 20])
    scores = agent.scores_at(states)
    for part in agent.parts:
        padded = Padded(agent, part, np.zeros(2)).scores_at(states)
        assert np.array_equal(padded.value, scores.value)
        kept = [c for c in range(padded.jacobian.shape[2]) if padded.jacobian[:, :, c].any()]
        live = [c for c in range(scores.jacobian.shape[2]) if scores.jacobian[:, :, c].any()]
        assert np.array_equal(padded.jacobian[:, :, kept], scores.jacobian[:, :, live])
        assert sum(padded.parts.values()) == sum(scores.parts.values()) + 2 * (part in scores.parts)
    perm = np.random.default_rng(1).permutation(25)
    assert np.array_equal(relabel_agent(agent, perm).scores_at(perm[states]).jacobian, scores.jacobian)


def test_what_has_no_scores_says_so(monkeypatch):
    subject = Subject(LADDER["planner"], WORLD, WORLD.goals[0])
    gru = network_for(WORLD, WORLD.goals[0], kind="gru", hidden=4)
    blind = Padded(_Silent(), "cells", np.zeros(1))
    for agent, words in ((gru, "memory"), (_Silent(), "no scores"), (blind, "no scores")):
        outcome = GoalGradient().measure(subject.with_(agent=agent))
        assert {m.status for m in outcome.measurements} == {"not_applicable"}
        assert words in outcome["goal_coherence"].reason
    box = retarget.make_world("Pendulum")
    continuous = network_for(box, box.goals[0], hidden=(4,))
    with pytest.raises(AgentError, match="continuous actions"):
        continuous.scores_at(box.observe(box.starts(2, rng=np.random.default_rng(0))))
    reason = GoalGradient().measure(Subject(continuous, box, box.goals[0]))["goal_share"].reason
    assert "finite worlds" in reason
    monkeypatch.setattr(agent_scores, "MOST_ENTRIES", 10)
    for name in ("table", "goal_table", "planner", "mlp"):
        with pytest.raises(AgentError, match="more than 10 entries"):
            LADDER[name].scores_at(np.arange(5))


def test_an_agent_of_another_world_is_refused():
    other = retarget.make_world("OpenGrid", size=7)
    outcome = GoalGradient().measure(Subject(LADDER["planner"], other, other.goals[0]))
    assert "for a world of 25 states" in outcome["goal_coherence"].reason


def test_numbers_that_move_nothing_are_no_answer():
    nothing = Planted(np.zeros((25, 4, 3)), np.zeros(3))
    outcome = GoalGradient().measure(Subject(nothing, WORLD, WORLD.goals[0]))
    assert outcome["goal_coherence"].status == "not_applicable"
    assert "no number of it moves" in outcome["goal_coherence"].reason


def test_larger_worlds_are_measured_on_a_draw_of_their_states():
    world = retarget.make_world("OpenGrid", size=9)
    outcome = GoalGradient(states=20, splits=2).measure(Subject(exact_planner(world, world.goals[0]), world,
                                                                world.goals[0]))  # fmt: skip
    assert outcome["goal_coherence"].status == "ok"


@dataclass(frozen=True, eq=False)
class _Silent(Agent):
    kind = "silent"

    @property
    def parts(self):
        return {"cells": Part("cells", "table", np.zeros(3), Real())}

    def with_arrays(self, arrays):
        return self

    def policy(self, obs, carry=None):
        return np.full((len(obs), 4), 0.25), None

    def blank(self, seed):
        return self
