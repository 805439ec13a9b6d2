"""The exact search over table cells against brute force, and its bounds against networkx and brute force."""

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.agents.wrappers import ModelWorld
from retarget.editors.bound import arborescence_cost, fewest_cells_for_level, fewest_cells_for_success
from retarget.editors.rows import _State, feasible, search_rows
from retarget.envs import make_world
from retarget.exact import Yardstick, discounted_transitions, surely_reaches
from retarget.goal import StateGoal
from retarget.kernels import (
    all_distances,
    candidate_gains,
    functional_flow,
    functional_gains,
    functional_steps,
    replace_row,
    restore_gains,
    tree_intervals,
)
from retarget.testing import models, policies

GAMMA = 0.9


@st.composite
def questions(draw, *, pure=None, deterministic=None, max_states=7):
    model = draw(models(max_states=max_states, deterministic=deterministic))
    world = ModelWorld(model, StateGoal.of([0]))
    assume(world.goals)
    goal = draw(st.sampled_from(world.goals))
    if pure:
        actions = draw(st.lists(st.integers(0, model.n_actions - 1), min_size=model.n_states, max_size=model.n_states))
        probs = np.eye(model.n_actions)[np.array(actions)]
    else:
        probs = draw(policies(model.n_states, model.n_actions))
    return Yardstick.of(world, goal, gamma=GAMMA), probs


def changed(probs, rows):
    out = probs.copy()
    for s, a in rows:
        out[s] = np.eye(probs.shape[1])[a]
    return out


@settings(deadline=None, max_examples=150)
@given(questions())
def test_gains_of_all_single_changes_are_those_of_doing_them(question):
    judge, probs = question
    state = _State(judge.model, judge, probs, judge.weight)
    before = judge.weight @ np.linalg.solve(
        np.eye(len(probs)) - discounted_transitions(judge.model, probs, judge.goal.mask(len(probs)), GAMMA),
        judge.goal.mask(len(probs)).astype(float),
    )
    gains = state.gains()
    for s, a in itertools.product(range(len(probs)), range(probs.shape[1])):
        if s in judge.goal.states:
            assert gains[s, a] == 0
            continue
        after = changed(probs, [(s, a)])
        assert gains[s, a] == pytest.approx(judge.competence(after) - before, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(questions(pure=True, deterministic=True, max_states=12))
def test_the_two_exact_implementations_agree(question):
    judge, probs = question
    n, mask = len(probs), judge.goal.mask(len(probs))
    successor = judge.model.next_state[np.arange(n), probs.argmax(1), 0].astype(np.int64)
    steps = functional_steps(successor, mask)
    value = np.where(steps >= 0, GAMMA ** np.maximum(steps, 0), 0.0)
    flow = functional_flow(successor, mask, GAMMA, judge.weight)
    fast = functional_gains(judge.model.next_state[:, :, 0], mask, GAMMA, value, flow, *tree_intervals(successor, mask))
    inverse = np.linalg.inv(np.eye(n) - discounted_transitions(judge.model, probs, mask, GAMMA))
    slow = candidate_gains(
        judge.model.next_state, judge.model.prob, mask, GAMMA, inverse, inverse[:, mask].sum(1), judge.weight @ inverse
    )
    # flow counts first visits only: on a cycle the two differ by the discount of a turn, the gains do not
    np.testing.assert_allclose(fast, slow, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(questions(), st.data())
def test_a_rank_one_update_is_a_new_inverse_and_restoring_undoes_it(question, data):
    judge, probs = question
    n, mask = len(probs), judge.goal.mask(len(probs))
    s = data.draw(st.sampled_from([x for x in range(n) if not mask[x]]))
    a = data.draw(st.integers(0, probs.shape[1] - 1))
    inverse = np.linalg.inv(np.eye(n) - discounted_transitions(judge.model, probs, mask, GAMMA))
    new = discounted_transitions(judge.model, changed(probs, [(s, a)]), mask, GAMMA)
    replace_row(inverse, s, new[s].copy())
    np.testing.assert_allclose(inverse, np.linalg.inv(np.eye(n) - new), atol=1e-9)
    back = restore_gains(
        judge.model.next_state, judge.model.prob, probs, np.array([s]), GAMMA, inverse, inverse[:, mask].sum(1),
        judge.weight @ inverse,
    )  # fmt: skip
    want = judge.competence(probs) - judge.competence(changed(probs, [(s, a)]))
    assert back[0] == pytest.approx(want, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(questions(), st.sampled_from([0.5, 0.9, 1.0]))
def test_search_is_exact_reaches_the_optimum_and_is_minimal_at_it(question, required):
    judge, probs = question
    points = search_rows(judge, probs, required=required)
    for p in points:
        assert judge.competence(changed(probs, p.rows)) == pytest.approx(p.competence, abs=1e-8)
    if judge.competence(probs) < 1 - 1e-9:
        assert max(p.competence for p in points) == pytest.approx(1, abs=1e-8)
    else:
        assert not points or len(min(points, key=len)) >= 1


@settings(deadline=None, max_examples=40)
@given(questions(pure=True, deterministic=True, max_states=6), st.sampled_from([0.6, 0.95, 1.0]))
def test_bounds_are_below_brute_force_and_the_search_is_near_it(question, required):
    judge, probs = question
    assume(judge.starts.size + 1 == (judge.optimal > 0).sum())
    free = [s for s in range(len(probs)) if s not in judge.goal.states]
    fewest_level = fewest_success = None
    for k in range(len(free) + 1):
        for cells in itertools.combinations(free, k):
            for actions in itertools.product(range(probs.shape[1]), repeat=k):
                after = changed(probs, zip(cells, actions, strict=True))
                if fewest_level is None and judge.competence(after) >= required - 1e-9:
                    fewest_level = k
                if fewest_success is None and surely_reaches(judge.model, after, judge.goal)[judge.starts].all():
                    fewest_success = k
        if fewest_level is not None and fewest_success is not None:
            break
    assert fewest_cells_for_success(judge, probs) == fewest_success
    assert fewest_cells_for_level(judge, probs, required) <= fewest_level
    found = [len(p) for p in search_rows(judge, probs, required=required) if p.competence >= required - 1e-9]
    assert not fewest_level or fewest_level <= min(found) <= fewest_level + 2


@settings(deadline=None, max_examples=60)
@given(questions(max_states=5), st.sampled_from([0.6, 0.95]))
def test_bounds_hold_for_mixed_policies_and_chance(question, required):
    judge, probs = question
    assume(judge.starts.size + 1 == (judge.optimal > 0).sum())
    found = [p for p in search_rows(judge, probs, required=required) if p.competence >= required - 1e-9]
    if judge.competence(probs) < required - 1e-9:
        assert fewest_cells_for_level(judge, probs, required) <= min(len(p) for p in found)
    full = [p for p in found if surely_reaches(judge.model, changed(probs, p.rows), judge.goal)[judge.starts].all()]
    if full:
        assert fewest_cells_for_success(judge, probs) <= min(len(p) for p in full)


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 9), st.data())
def test_arborescence_cost_is_that_of_networkx(n, data):
    root = n
    edges = data.draw(
        st.lists(st.tuples(st.integers(0, n), st.integers(0, n - 1), st.integers(0, 1)), min_size=n, max_size=4 * n)
    )
    edges += [(root, v, 1) for v in range(n)]
    edges = [(u, v, c) for u, v, c in edges if u != v]
    graph = nx.DiGraph()
    for u, v, c in edges:
        if not graph.has_edge(u, v) or graph[u][v]["cost"] > c:
            graph.add_edge(u, v, cost=c)
    # a maximum branching with weights far above the costs spans; networkx's own minimum spanning function gives up
    # on graphs that have one
    for _, _, d in graph.edges(data=True):
        d["weight"] = 10 * n - d["cost"]
    tree = nx.maximum_branching(graph, attr="weight")
    want = sum(10 * n - d["weight"] for _, _, d in tree.edges(data=True))
    giver, taker, cost = (np.array(x) for x in zip(*edges, strict=True))
    assert arborescence_cost(giver, taker, cost, root) == want


def test_all_distances_are_those_of_networkx():
    world = make_world("Maze", size=9, seed=3)
    nxt = world.model.next_state[:, :, 0]
    graph = nx.DiGraph((s, int(t)) for s in range(len(nxt)) for t in nxt[s])
    far = all_distances(nxt)
    for s, reached in nx.all_pairs_shortest_path_length(graph):
        assert {g: int(far[g, s]) for g in range(len(nxt)) if far[g, s] >= 0} == dict(reached)


def test_the_closed_form_at_the_optimum():
    # competence 1 needs every state whose action is not optimal for B, and no other: the removal search starts there
    world = make_world("FourRooms", size=9)
    a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    judge_a, judge_b = (Yardstick.of(world, g, gamma=0.95) for g in (a, b))
    nxt = world.model.next_state[:, :, 0]
    probs = np.eye(4)[judge_a.optimal[nxt].argmax(1)]
    best = judge_b.optimal[nxt]
    wrong = (best[np.arange(len(best)), probs.argmax(1)] < best.max(1) - 1e-12) & ~b.mask(len(best))
    points = search_rows(judge_b, probs, required=1.0)
    full = min(len(p) for p in points if p.competence > 1 - 1e-9)
    assert full == wrong.sum()


def test_large_mixed_behaviour_is_refused_not_attempted():
    world = make_world("OpenGrid", size=50)
    mixed = np.full((2500, 4), 0.25)
    assert not feasible(world.model, mixed)
    assert search_rows(Yardstick.of(world, world.goal, gamma=0.95), mixed, required=0.9) == []


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_the_search_meets_any_level_whatever_few_states_are_starts(data):
    # the best policy for B is itself a set of changed cells: no level up to 1 is out of reach
    model = data.draw(models(max_states=8))
    everywhere = ModelWorld(model, StateGoal.of([0]))
    assume(everywhere.goals)
    goal = data.draw(st.sampled_from(everywhere.goals))
    able = Yardstick.of(everywhere, goal, gamma=GAMMA).starts.tolist()
    starts = np.array(sorted(data.draw(st.sets(st.sampled_from(able), min_size=1, max_size=2))))
    judge = Yardstick.of(ModelWorld(model, goal, starts=starts), goal, gamma=GAMMA)
    probs = data.draw(policies(model.n_states, model.n_actions))
    points = search_rows(judge, probs, required=0.95)
    if judge.competence(probs) < 1 - 1e-9:
        assert max((p.competence for p in points), default=0) == pytest.approx(1, abs=1e-8)
