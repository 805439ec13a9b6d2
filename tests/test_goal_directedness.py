"""Maximum-entropy goal-directedness against closed forms, two other ways to compute it, and planted goals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize, minimize_scalar

import retarget
from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.errors import ProbeError
from retarget.exact import policy_table
from retarget.goal_directedness import (
    Episodes,
    best_choices,
    directedness_at_states,
    goal_directedness,
    soft_policy,
)
from retarget.probe import Subject
from retarget.probes.goal_directedness import GoalDirectedness
from retarget.probes.retargetability import Retargetability
from retarget.testing import check_probe
from retarget.world import FiniteModel

LN2 = math.log(2)
#: State 0 decides between 1 and 2; there an episode ends.
FORK = Episodes(FiniteModel.deterministic([[1, 2], [1, 1], [2, 2]]), np.array([0, 1, 1]), np.array([1, 0, 0]), 0.9)
LEFT = np.array([0.0, 1.0, 0.0])
seeds = st.integers(0, 10_000)


def entropy(p: float) -> float:
    return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)


def rows(p: float, n: int = 3) -> np.ndarray:
    return np.tile([p, 1 - p], (n, 1))


def drawn(seed: int, *, ends: bool = True, s: int = 5, a: int = 3, gamma: float = 0.7) -> tuple[Episodes, np.ndarray]:
    """A random world with chance and loops, its last state an end, and a random policy."""
    rng = np.random.default_rng(seed)
    model = FiniteModel(rng.integers(0, s, (s, a, 2)), rng.dirichlet([1, 1], (s, a)))
    over = np.arange(s) == s - 1 if ends else np.zeros(s, bool)
    start = rng.dirichlet(np.ones(s)) * ~over
    return Episodes(model, over, start / start.sum(), gamma), rng.dirichlet(np.ones(a), s)


# ------------------------------------------------------------------------------------------------ closed forms


@given(st.floats(0, 1))
def test_one_binary_decision_of_accuracy_p_gives_ln_2_less_its_entropy(p: float) -> None:
    found = goal_directedness(FORK, rows(p), LEFT)
    assert found.nats == pytest.approx(LN2 - entropy(p), abs=1e-9)
    assert np.sign(found.beta) == np.sign(p - 0.5) or abs(p - 0.5) < 1e-11
    assert directedness_at_states(FORK, rows(p)).nats == pytest.approx(LN2 - entropy(p), abs=1e-6)


def test_rationality_is_the_log_odds_of_a_binary_decision() -> None:
    assert goal_directedness(FORK, rows(0.9), 4 * LEFT).beta == pytest.approx(math.log(9) / 4, rel=1e-9)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_uniform_policy_is_directed_at_nothing(seed: int) -> None:
    episodes, probs = drawn(seed)
    uniform = np.full_like(probs, 1 / 3)
    found = goal_directedness(episodes, uniform, np.random.default_rng(seed).normal(size=5))
    assert (found.nats, found.beta) == (0.0, 0.0)
    some = directedness_at_states(episodes, uniform)
    assert some.nats == pytest.approx(0, abs=1e-12) and some.bound == pytest.approx(0, abs=1e-12)


def test_a_policy_that_is_best_and_has_no_rival_gets_all_that_its_decisions_can_tell() -> None:
    chain = FiniteModel.deterministic([[1, 0], [2, 0], [3, 0], [3, 3]])
    episodes = Episodes(chain, np.arange(4) == 3, np.eye(4)[0], 0.9)
    found = goal_directedness(episodes, rows(1.0, 4), np.eye(4)[3])
    assert found.nats == pytest.approx((1 + 0.9 + 0.81) * LN2, rel=1e-12) and found.beta == math.inf
    away = goal_directedness(episodes, rows(0.0, 4), np.eye(4)[3])
    # only the step into the end has a rival among those that never arrive: the rest is free
    assert away.beta == -math.inf and 0 < away.nats < away.decisions * LN2


def test_the_limit_weighs_a_choice_by_the_optimal_ways_that_it_leaves_open() -> None:
    # from 0: to 1, where both actions reach the end 3, or to 2, where one of two does; all arrive in two steps
    model = FiniteModel.deterministic([[1, 2], [3, 3], [3, 2], [3, 3]])
    episodes = Episodes(model, np.arange(4) == 3, np.eye(4)[0], 0.8)
    first = 1 / (1 + 0.5**0.8)
    for share in (0.0, 0.5, 1.0):
        probs = np.array([[share, 1 - share], [0.5, 0.5], [1.0, 0.0], [0.5, 0.5]])
        want = share * math.log(2 * first) + (1 - share) * (math.log(2 * (1 - first)) + 0.8 * LN2)
        found = goal_directedness(episodes, probs, np.eye(4)[3])
        assert found.beta == math.inf and found.nats == pytest.approx(want, rel=1e-12)


# ------------------------------------------------------------------------------------------------ laws


@given(seeds, st.floats(0.05, 50), st.floats(-20, 20), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_positive_affine_map_of_utility_changes_nothing(seed: int, a: float, b: float, flip: bool) -> None:
    episodes, probs = drawn(seed, ends=False)
    reward = np.random.default_rng(seed + 1).normal(size=5)
    plain = goal_directedness(episodes, probs, reward)
    # episodes without end: a constant added to every arrival is a constant added to utility
    factor = -a if flip else a
    mapped = goal_directedness(episodes, probs, factor * reward + b)
    assert mapped.nats == pytest.approx(plain.nats, rel=1e-6, abs=1e-9)
    assert np.sign(mapped.beta) == np.sign(factor) * np.sign(plain.beta)


@given(seeds, st.sampled_from((0.0, 0.5, 0.9, 0.97)))
@settings(max_examples=40, deadline=None)
def test_known_is_below_unknown_is_below_the_bound_is_below_all_decisions(seed: int, gamma: float) -> None:
    episodes, probs = drawn(seed, gamma=gamma)
    known = goal_directedness(episodes, probs, np.eye(5)[4])
    some = directedness_at_states(episodes, probs)
    assert 0 <= known.nats <= some.nats + 1e-5
    assert some.nats <= some.bound + 1e-9 <= known.decisions * math.log(3) + 2e-9


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_the_limit_is_where_ever_surer_policies_lead(seed: int) -> None:
    episodes, _ = drawn(seed)
    reward = np.random.default_rng(seed + 1).normal(size=5)
    best = np.eye(3)[best_choices(episodes, reward).argmax(1)]
    sure = goal_directedness(episodes, best, reward)
    assert sure.beta == math.inf
    near = goal_directedness(episodes, (1 - 1e-7) * best + 1e-7 / 3, reward)
    assert math.isfinite(near.beta) and near.nats == pytest.approx(sure.nats, abs=1e-3)


# ------------------------------------------------------------------------------------------------ other ways to compute


def in_layers(seed: int) -> tuple[Episodes, np.ndarray, np.ndarray]:
    """Three decisions one after the other (states 0; 1-2; 3-4; ends 5-6), with chance."""
    rng = np.random.default_rng(seed)
    nxt = np.array([rng.integers(*span, (2, 2)) for span in ((1, 3), (3, 5), (3, 5), (5, 7), (5, 7), (5, 6), (6, 7))])
    model = FiniteModel(nxt, rng.dirichlet([1, 1], (7, 2)))
    episodes = Episodes(model, np.arange(7) >= 5, np.eye(7)[0], 0.8)
    return episodes, rng.dirichlet(np.ones(2), 7), rng.normal(size=7)


def by_histories(episodes: Episodes, probs: np.ndarray, reward: np.ndarray, beta: float) -> float:
    """`E_π Σ γ^t (log π_β + log |A|)` by listing every history; soft values by recursion, without matrices."""
    model, gamma = episodes.model, episodes.gamma

    def after(s: int, a: int) -> list[tuple[float, int]]:
        return [(float(p), int(t)) for p, t in zip(model.prob[s, a], model.next_state[s, a], strict=True)]

    def q(s: int, a: int) -> float:
        return sum(p * (beta * reward[t] + gamma * v(t)) for p, t in after(s, a))

    def v(s: int) -> float:
        return 0.0 if episodes.ends[s] else math.log(sum(math.exp(q(s, a)) for a in range(2)))

    def total(s: int, weight: float, discount: float) -> float:
        if episodes.ends[s]:
            return 0.0
        out = 0.0
        for a in range(2):
            each = weight * probs[s, a]
            out += each * discount * (q(s, a) - v(s) + LN2)
            out += sum(total(t, each * p, discount * gamma) for p, t in after(s, a))
        return out

    return total(0, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_best_over_rationality_of_a_sum_over_all_histories(seed: int) -> None:
    episodes, probs, reward = in_layers(seed)
    found = goal_directedness(episodes, probs, reward)
    best = minimize_scalar(
        lambda beta: -by_histories(episodes, probs, reward, beta), bracket=(-1, 1), options={"xtol": 1e-8}
    )
    assert found.nats == pytest.approx(-best.fun, abs=1e-9)
    assert found.beta == pytest.approx(best.x, abs=1e-4)


def least_divergence(episodes: Episodes, probs: np.ndarray, held: np.ndarray) -> float:
    """The dual problem, over visits x(s, a): least divergence from uniform choice among policies with the same totals
    `Σ x held`, with `held` `[S, A, N]`."""
    live = np.flatnonzero(~episodes.ends)
    s, a = len(live), probs.shape[1]
    own = (episodes.visits(probs)[:, None] * probs)[live]
    flow = np.einsum("ij,k->ijk", np.eye(s), np.ones(a)) - episodes.gamma * np.moveaxis(
        episodes.chances[live][:, :, live], 2, 0
    )
    rows_ = np.concatenate([flow.reshape(s, -1), np.moveaxis(held[live], 2, 0).reshape(held.shape[2], -1)])
    target = rows_ @ own.reshape(-1)
    # what is held says nothing new in some directions: keep independent rows alone
    u, size, vt = np.linalg.svd(rows_, full_matrices=False)
    keep = size > 1e-9 * size[0]
    rows_, target = vt[keep], (u.T @ target)[keep] / size[keep]

    def divergence(x: np.ndarray) -> float:
        y = np.maximum(x.reshape(s, a), 1e-300)
        return float((y * np.log(y * a / y.sum(1, keepdims=True))).sum())

    def slope(x: np.ndarray) -> np.ndarray:
        y = np.maximum(x.reshape(s, a), 1e-300)
        return np.log(y * a / y.sum(1, keepdims=True)).reshape(-1)

    found = minimize(
        divergence, own.reshape(-1), jac=slope, method="SLSQP", bounds=[(1e-12, None)] * (s * a),
        constraints=LinearConstraint(rows_, target, target), options={"ftol": 1e-13, "maxiter": 500},
    )  # fmt: skip
    return float(found.fun)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_least_divergence_among_policies_of_the_same_utility(seed: int) -> None:
    episodes, probs = drawn(seed)
    reward = np.random.default_rng(seed + 1).normal(size=5)
    held = (episodes.chances @ reward)[:, :, None]
    known = goal_directedness(episodes, probs, reward)
    assert known.nats == pytest.approx(least_divergence(episodes, probs, held), abs=1e-6)
    some = directedness_at_states(episodes, probs)
    assert some.settled and some.nats == pytest.approx(least_divergence(episodes, probs, episodes.chances), abs=1e-5)
    assert some.nats > known.nats


def test_soft_values_solve_their_equation() -> None:
    episodes, _ = drawn(3)
    reward = np.array([3.0, -2.0, 0.5, 7.0, 1.0])
    soft = soft_policy(episodes, reward)
    q = episodes.chances @ (reward + episodes.gamma * soft.value)
    assert soft.value == pytest.approx(np.log(np.exp(q).mean(1)), abs=1e-12)
    assert soft.probs.sum(1) == pytest.approx(np.ones(5), abs=1e-12)


# ------------------------------------------------------------------------------------------------ the probe


@pytest.fixture(scope="module")
def rooms() -> retarget.FiniteWorld:
    return retarget.make_world("FourRooms", size=7)


def test_the_probe_keeps_the_laws_that_it_declares() -> None:
    assert {"behaviour_only", "relabel_invariant", "dead_parameters"} <= GoalDirectedness.laws
    check_probe(GoalDirectedness(), max_examples=40)


def test_it_cannot_tell_a_planner_from_its_table_and_retargetability_can(rooms: retarget.FiniteWorld) -> None:
    a, b = rooms.goals[0], rooms.goals[-1]
    planner = exact_planner(rooms, a)
    pair = [Subject(agent, rooms, a, b) for agent in (planner, compile_policy(planner, rooms))]
    mine, others = ([probe.measure(s) for s in pair] for probe in (Retargetability(draws=2), GoalDirectedness()))
    assert others[0].measurements == others[1].measurements
    assert others[0]["meg_known"].value == others[0]["meg_goals"].value > 3
    assert mine[0]["retargetability"].value > 1 and mine[1]["retargetability"].value == 0


def test_a_planted_goal_is_found_where_the_agent_is_said_to_have_another(rooms: retarget.FiniteWorld) -> None:
    a, b = rooms.goals[3], rooms.goals[-2]
    honest = GoalDirectedness().measure(Subject(exact_planner(rooms, a), rooms, a))
    other = GoalDirectedness().measure(Subject(exact_planner(rooms, b), rooms, a))
    assert honest["meg_goals_margin"].value == 0
    assert other["meg_goals_margin"].value > 1
    assert honest["meg_goals"].protocol == other["meg_goals"].protocol
    assert honest["meg_known"].value > 10 * honest["meg_shuffled"].value
    assert honest["meg_beta"].status == "not_applicable" and honest["meg_sign"].value == 1


@given(seeds)
@settings(max_examples=8, deadline=None)
def test_metrics_keep_their_order_on_random_tables(rooms: retarget.FiniteWorld, seed: int) -> None:
    rng = np.random.default_rng(seed)
    agent = TablePolicy.from_probabilities(np.eye(4)[rng.integers(4, size=rooms.model.n_states)])
    out = GoalDirectedness().measure(Subject(agent, rooms, rooms.goals[0]))
    value = {m.metric: m.value for m in out.measurements}
    assert value["meg_uniform"] == 0
    assert value["meg_known"] <= min(value["meg_goals"], value["meg_unknown"]) + 1e-12
    assert value["meg_unknown"] <= value["meg_unknown_bound"] + 1e-9
    assert value["meg_known_per_decision"] <= math.log(4)
    # a rich class explains nearly anything: what it says of a table that was drawn by chance is close to all there is
    assert value["meg_unknown"] > 3 * value["meg_known"]


def test_large_worlds_and_continuous_ones_get_a_reason(rooms: retarget.FiniteWorld) -> None:
    subject = Subject(exact_planner(rooms, rooms.goals[0]), rooms, rooms.goals[0])
    n = rooms.model.n_states
    some = GoalDirectedness(most_states=n - 1).measure(subject)
    assert some["meg_known"].status == "ok" and "raise most_states" in some["meg_unknown"].reason
    none = GoalDirectedness(most_states=n // 4 - 1).measure(subject)
    assert {m.status for m in none.measurements} == {"not_applicable"}
    car = retarget.make_world("MountainCar")
    table = TablePolicy.from_probabilities(policy_table(subject.agent, rooms.model))
    out = GoalDirectedness().measure(Subject(table, car, car.goal))
    assert all("continuum" in m.reason for m in out.measurements)


def test_malformed_episodes_give_one_line() -> None:
    with pytest.raises(ProbeError, match=r"gamma must lie in \[0, 1\), got 1.0"):
        Episodes(FORK.model, FORK.ends, FORK.start, 1.0)
    with pytest.raises(ProbeError, match="it sums to 2"):
        Episodes(FORK.model, FORK.ends, 2 * FORK.start, 0.5)
    with pytest.raises(ProbeError, match="one entry for each of 3 states"):
        Episodes(FORK.model, FORK.ends[:2], FORK.start, 0.5)
