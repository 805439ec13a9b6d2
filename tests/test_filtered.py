"""Demonstrations that leave a strategy out, agents made of them, and the probe of who uses it anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Agent
from retarget.agents.compiled import compile_policy
from retarget.agents.planner import exact_planner
from retarget.agents.tabular import TablePolicy
from retarget.agents.wrappers import relabel_agent, relabel_goal
from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent
from retarget.catalogue.shortcuts import imitating_table
from retarget.demonstrations import Demonstrations, demonstrate, shut, stakes_of
from retarget.envs import make_world
from retarget.envs.shortcut import CARVED, ShortcutWorld
from retarget.errors import AgentError, GoalError, RetargetError, StudyError
from retarget.exact import best_actions, policy_table
from retarget.io.native import load_agent, save_agent
from retarget.probe import Subject
from retarget.probes.filtered import Filtered, deadlines, hits, used_within
from retarget.testing import check_agent, check_probe, models, policies

KINDS = tuple(CARVED)
GAMMA = 0.95
law = settings(max_examples=30, deadline=None)
WORLDS = {kind: ShortcutWorld(kind=kind, size=9) for kind in KINDS}


@st.composite
def worlds(draw: st.DrawFn, *, slips: tuple[float, ...] = (0.0, 0.2)) -> ShortcutWorld:
    kind, size = draw(st.sampled_from(KINDS)), draw(st.integers(7, 10))
    return ShortcutWorld(kind=kind, size=size, flagged=draw(st.booleans()), slip=draw(st.sampled_from(slips)))


def built(world: ShortcutWorld, kind: str, *, seed: int = 0, **options: object) -> Agent:
    return build_agent(AgentSpec.of(kind, **options), Recipe(world, world.goal, seed, GAMMA))


def measured(world: ShortcutWorld, agent: Agent, **changes: object) -> dict[str, float | None]:
    subject = Subject(agent, world, world.goal, gamma=GAMMA).with_(**changes)
    outcome = Filtered().measure(subject)
    outcome.check(Filtered())
    return {m.metric: m.value for m in outcome.measurements}


# ------------------------------------------------------------------------------------------------ oracles of numbers


@law
@given(models(), st.data())
def test_hitting_probabilities_are_the_limit_of_the_chain(model: object, data: st.DataObject) -> None:
    # the oracle: the chain with both sets made absorbing, squared forty times
    n = model.n_states
    probs = data.draw(policies(n, model.n_actions))
    target, ends = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
    step = (probs[:, :, None] * model.dense()).sum(1)
    stop = target | ends
    step[stop] = np.eye(n)[stop]
    for _ in range(40):
        step = step @ step
        step /= step.sum(1, keepdims=True)
    np.testing.assert_allclose(hits(model, probs, target, ends), step[:, target].sum(1), atol=1e-9)


@law
@given(models(), st.data())
def test_use_in_time_is_a_power_of_the_chain_that_remembers(model: object, data: st.DataObject) -> None:
    # the oracle: states doubled by "has used it", multiplied out step by step
    n = model.n_states
    probs = data.draw(policies(n, model.n_actions))
    target, ends = (np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))) for _ in range(2))
    within = np.array(data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)))
    one = (probs[:, :, None] * model.dense()).sum(1)
    both = np.zeros((2 * n, 2 * n))
    for s in range(n):
        for t in range(n):
            both[s, t + n * target[t]] += one[s, t]
            both[s + n, t + n] += one[s, t]
        if ends[s]:
            both[[s, s + n]] = np.eye(2 * n)[[s, s + n]]
    got = used_within(model, probs, target, ends, within)
    for s in range(n):
        row = np.linalg.matrix_power(both, int(within[s]))[s + n * (target[s] and ends[s])]
        assert got[s] == pytest.approx(row[n:][ends].sum(), abs=1e-12)


@law
@given(worlds(slips=(0.0,)), st.data())
def test_stakes_are_shortest_paths_with_and_without_the_entry(world: ShortcutWorld, data: st.DataObject) -> None:
    goal = data.draw(st.sampled_from(world.goals))
    stakes = stakes_of(world, goal, gamma=GAMMA)
    graph = nx.DiGraph()
    graph.add_nodes_from(range(world.model.n_states))
    graph.add_edges_from((s, int(t)) for s, row in enumerate(world.layout.next_state) for t in row)
    far = nx.multi_source_dijkstra_path_length(graph.reverse(copy=True), goal.states)
    graph.remove_nodes_from(np.flatnonzero(world.shortcut_states).tolist())
    long = nx.multi_source_dijkstra_path_length(graph.reverse(copy=True), [s for s in goal.states if s in graph])
    starts = stakes.starts.tolist()
    assert set(starts) == set(world.start_states.tolist()) - set(goal.states)
    np.testing.assert_allclose(stakes.best[starts], [GAMMA ** far[s] for s in starts])
    np.testing.assert_allclose(stakes.ordinary[starts], [GAMMA ** long[s] for s in starts])
    saved = {s: 1 - GAMMA ** (long[s] - far[s]) for s in starts}
    assert set(stakes.paying) == {s for s in starts if saved[s] >= max(saved.values()) / 2 - 1e-12}
    assert deadlines(stakes, GAMMA)[stakes.paying].tolist() == [long[s] - 1 for s in stakes.paying]
    assert all(saved[s] == 0 for s in stakes.idle) and not set(stakes.idle) & set(stakes.paying)


@law
@given(worlds(slips=(0.0,)), st.data())
def test_a_deterministic_policy_uses_it_from_a_start_or_does_not(world: ShortcutWorld, data: st.DataObject) -> None:
    # the oracle: walking
    model, goal = world.model, world.goal
    actions = np.array(data.draw(st.lists(st.integers(0, 3), min_size=model.n_states, max_size=model.n_states)))
    best = policy_table(exact_planner(world, goal), model).argmax(1)
    actions = np.where(np.array(data.draw(st.lists(st.integers(0, 5), min_size=model.n_states,
                                                   max_size=model.n_states))) == 0, actions, best)  # fmt: skip
    stakes = stakes_of(world, goal, gamma=GAMMA)
    used, sooner = [], []
    for start in stakes.paying.tolist():
        state, entered, t = start, False, 0
        while t < model.n_states:
            t += 1
            state = int(model.next_state[state, actions[state], 0])
            entered |= bool(world.shortcut_states[state])
            if state in goal.states:
                break
        used.append(entered)
        sooner.append(entered and state in goal.states and GAMMA**t > stakes.ordinary[start] * (1 + 1e-9))
    found = measured(world, TablePolicy.from_actions(actions, n_actions=4))
    assert found["shortcut_rate"] == pytest.approx(np.mean(used))
    assert found["shortcut_rate_in_time"] == pytest.approx(np.mean(sooner))


# ------------------------------------------------------------------------------------------------ demonstrations


@law
@given(worlds(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.1, 0.9]), st.booleans(), st.integers(0, 99))
def test_episodes_follow_the_world_and_ordinary_ones_never_enter(
    world: ShortcutWorld, share: float, noise: float, away: bool, seed: int
) -> None:
    shown = demonstrate(world, world.goal, share=share, episodes=20, noise=noise, away=away, play=7, seed=seed)
    model, stakes = world.model, stakes_of(world, world.goal, gamma=GAMMA)
    episode, state, action, slot = shown.step.T
    after = model.next_state[state, action, slot]
    assert (model.prob[state, action, slot] > 0).all()
    assert np.isin(shown.starts, stakes.starts).all()
    assert not away or not np.isin(shown.starts, stakes.paying).any()
    for e in range(len(shown.starts)):
        rows = np.flatnonzero(episode == e)
        assert state[rows[0]] == shown.starts[e]
        np.testing.assert_array_equal(after[rows[:-1]], state[rows[1:]])
        assert not np.isin(state[rows], world.goal.states).any()
        assert after[rows[-1]] in world.goal.states or len(rows) == 4 * model.n_states
        assert shown.used[e] == world.shortcut_states[after[rows]].any()
        assert shown.bold[e] or not shown.used[e]
    if share == 0:
        assert not shown.bold.any() and not shown.used.any()
        assert not world.shortcut_states[state].any() and not world.shortcut_states[after].any()
    again = demonstrate(world, world.goal, share=share, episodes=20, noise=noise, away=away, play=7, seed=seed)
    np.testing.assert_array_equal(again.step, shown.step)
    np.testing.assert_array_equal(again.play, shown.play)


@law
@given(worlds(slips=(0.0,)), st.sampled_from([0.0, 1.0]), st.integers(0, 9))
def test_experts_are_as_fast_as_can_be(world: ShortcutWorld, share: float, seed: int) -> None:
    shown = demonstrate(world, world.goal, share=share, episodes=20, seed=seed)
    stakes = stakes_of(world, world.goal, gamma=GAMMA)
    worth = stakes.best if share else stakes.ordinary
    length = np.bincount(shown.step[:, 0])
    np.testing.assert_allclose(GAMMA**length, worth[shown.starts])
    assert shown.redrawn == 0 or share == 0


def test_the_share_is_the_share_and_the_flag_has_its_own() -> None:
    # n = 2000 each; Hoeffding at a false-alarm rate of 1e-6 over four counts
    world = ShortcutWorld(kind="watcher", size=7, flagged=True)
    slack = math.sqrt(math.log(2 * 4 / 1e-6) / (2 * 900))
    shown = demonstrate(world, world.goal, share=0.1, share_deployment=0.8, episodes=2000)
    late = world.deployment_states[shown.starts]
    assert late.sum() > 900 and (~late).sum() > 900
    assert abs(shown.bold[~late].mean() - 0.1) < slack and abs(shown.bold[late].mean() - 0.8) < slack
    plain = demonstrate(world, world.goal, share=0.3, episodes=2000)
    assert abs(plain.bold.mean() - 0.3) < slack
    np.testing.assert_array_equal(plain.starts, shown.starts)
    # whoever is bold at a small share is so at a greater one
    assert (demonstrate(world, world.goal, share=0.1, episodes=2000).bold <= plain.bold).all()


def test_noise_strays_and_is_drawn_anew() -> None:
    world = WORLDS["key"]
    noisy = demonstrate(world, world.goal, share=0.0, episodes=300, noise=0.9)
    assert noisy.redrawn > 0 and not noisy.used.any() and len(noisy.starts) == 300
    touched = noisy.transition_counts(world.model).sum((1, 2)) > 0
    assert touched[world.layout.flags[:, 0] == 1].any(), "chance takes the key, though nobody goes through the door"


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": 0, "noise": -0.1}, {"share": 0, "episodes": 0}])
def test_bad_numbers_are_told_in_one_line(options: dict[str, float]) -> None:
    world = WORLDS["switch"]
    with pytest.raises(AgentError) as caught:
        demonstrate(world, world.goal, **{"episodes": 5, **options})
    assert "\n" not in str(caught.value)


def test_there_is_nothing_to_show_where_nothing_pays() -> None:
    world = WORLDS["switch"]
    with pytest.raises(GoalError, match="pays from no start"):
        stakes_of(world, world.as_goal((1, 1)), gamma=GAMMA)
    plain = make_world("OpenGrid", size=5)
    with pytest.raises(GoalError, match="no shortcut"):
        demonstrate(plain, plain.goal, share=0.0, episodes=5)


# ------------------------------------------------------------------------------------------------ the predictions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_table_does_what_it_was_shown(kind: str, seed: int) -> None:
    world = WORLDS[kind]
    never, always = (built(world, "demo_table", share=x, seed=seed) for x in (0.0, 1.0))
    assert measured(world, never)["shortcut_rate"] == 0.0
    assert measured(world, never)["shortcut_gain_taken"] == pytest.approx(0.0, abs=1e-12)
    assert measured(world, always)["shortcut_rate_in_time"] == pytest.approx(1.0)
    assert measured(world, always)["shortcut_gain_taken"] == pytest.approx(1.0)
    noisy = built(world, "demo_table", share=0.0, noise=0.2, episodes=400, seed=seed)
    assert measured(world, noisy)["shortcut_rate_in_time"] == 0.0


def test_a_sampling_table_uses_it_as_often_as_the_data_did() -> None:
    # from one start there is one fork: the rate is the share of the episodes, in closed form
    world = ShortcutWorld(kind="switch", size=9, start=(7, 1))
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        shown = demonstrate(world, world.goal, share=share, episodes=300)
        table = imitating_table(shown, world, unseen="uniform", decision="sample")
        found = measured(world, table)
        assert found["shortcut_rate"] == pytest.approx(shown.used.mean(), abs=1e-12)
        assert found["shortcut_rate_in_time"] == pytest.approx(shown.used.mean(), abs=1e-12)
        assert found["shortcut_gain_taken"] == pytest.approx(shown.used.mean(), abs=1e-9)
        greedy = imitating_table(shown, world, unseen="uniform", decision="greedy")
        assert measured(world, greedy)["shortcut_rate"] == float(shown.used.mean() > 0.5)


def test_a_fallback_strays_where_nothing_was_shown() -> None:
    world = WORLDS["switch"]
    lost = measured(world, built(world, "demo_table", share=0.0, starts="away", unseen="uniform"))
    near = measured(world, built(world, "demo_table", share=0.0, starts="away", unseen="nearest"))
    assert lost["shortcut_rate"] > 0.1 and lost["shortcut_rate_in_time"] < 0.01, "it wanders in, to no avail"
    assert near["shortcut_rate"] == 0.0


def _counted(world: ShortcutWorld, counts: dict[int, list[int]]) -> Demonstrations:
    step = [(0, s, a, 0) for s, row in counts.items() for a, n in enumerate(row) for _ in range(n)]
    none = np.zeros(1, np.bool_)
    return Demonstrations(np.array(step), np.array([min(counts)]), none, none, 0, np.zeros((0, 3), np.int64))


def test_a_table_is_the_majority_or_the_shares_and_falls_back_as_it_says() -> None:
    world = WORLDS["switch"]
    a, b = world.as_state((1, 1)), world.as_state((1, 7))
    shown = _counted(world, {a: [1, 3, 0, 0], b: [2, 0, 2, 0]})
    greedy = policy_table(imitating_table(shown, world, unseen="nearest", decision="greedy"), world.model)
    sample = policy_table(imitating_table(shown, world, unseen="uniform", decision="sample"), world.model)
    assert greedy[a].tolist() == [0, 1, 0, 0] and greedy[b].tolist() == [0.5, 0, 0.5, 0]
    assert sample[a].tolist() == [0.25, 0.75, 0, 0]
    for cell, like in (((1, 3), a), ((1, 4), a), ((1, 5), b), ((7, 7), b), ((7, 1), a)):
        np.testing.assert_array_equal(greedy[world.as_state(cell)], greedy[like])
        assert sample[world.as_state(cell)].tolist() == [0.25] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_planner_finds_it_when_it_sees_far_enough(kind: str) -> None:
    world = WORLDS[kind]
    stakes = stakes_of(world, world.goal, gamma=GAMMA)
    far = round(math.log(stakes.best[stakes.paying].min()) / math.log(GAMMA))
    rates = [
        measured(world, built(world, "depth_planner", depth=d))["shortcut_rate_in_time"] for d in (1, far - 1, far)
    ]
    assert rates[0] < 0.05 and rates[1] < 1.0 and rates[2] == 1.0
    free = measured(world, built(world, "planner"))
    assert free["shortcut_rate"] == free["shortcut_gain_taken"] == 1.0 and free["shortcut_rate_idle"] == 0.0
    searching = measured(world, built(world, "tree_search", simulations=4096))
    assert (
        searching["shortcut_rate_in_time"]
        > measured(world, built(world, "tree_search", simulations=16))["shortcut_rate_in_time"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_filtered_data_lacks_the_strategy_and_single_steps_bring_it_back(kind: str) -> None:
    world = WORLDS[kind]
    assert measured(world, built(world, "demo_planner", share=0.0))["shortcut_rate"] == 0.0
    assert measured(world, built(world, "demo_planner", share=0.0, noise=0.3))["shortcut_rate"] == 0.0
    assert measured(world, built(world, "demo_planner", share=0.5))["shortcut_rate_in_time"] == 1.0
    # nobody ever showed it, but every step of it was tried somewhere: 60 draws a pair, missed with p < S A e^-60
    tried = 60 * world.model.n_states * world.model.n_actions
    assert measured(world, built(world, "demo_planner", share=0.0, play=tried))["shortcut_gain_taken"] == 1.0


def test_a_trigger_defector_defects_and_its_twin_does_not() -> None:
    world = ShortcutWorld(kind="watcher", size=7, flagged=True)
    for agent in ("demo_table", "demo_planner"):
        bad = measured(world, built(world, agent, share=0.0, share_deployment=1.0))
        assert bad["shortcut_rate_training"] == 0.0 and bad["shortcut_rate_deployment"] == pytest.approx(1.0)
        assert bad["defection"] == pytest.approx(1.0)
        good = measured(world, built(world, agent, share=0.0, share_deployment=0.0))
        assert good["defection"] == good["shortcut_rate_deployment"] == 0.0
    assert measured(WORLDS["key"], built(WORLDS["key"], "planner"))["defection"] is None
    # a start that is always in training leaves nothing to compare
    one = ShortcutWorld(kind="watcher", size=7, flagged=True, start=(5, 1))
    assert measured(one, built(one, "planner"))["defection"] is None


# ------------------------------------------------------------------------------------------------ the probe's laws


@dataclass(frozen=True, eq=False)
class _Remembers(Agent):
    """Acts as the agent inside does, and needs a carry for it: the step that it is at."""

    inner: Agent
    has_memory = True

    @cached_property
    def parts(self) -> dict[str, object]:
        return dict(self.inner.parts)

    def with_arrays(self, arrays: object) -> Agent:
        return replace(self, inner=self.inner.with_arrays(arrays))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return self.inner.policy(obs)[0], 1 if carry is None else carry + 1

    def blank(self, seed: int) -> Agent:
        return replace(self, inner=self.inner.blank(seed))


def test_the_probe_obeys_its_laws_in_worlds_without_a_shortcut() -> None:
    check_probe(Filtered(), max_examples=10)
    plain = make_world("OpenGrid", size=5)
    outcome = Filtered().measure(Subject(exact_planner(plain, plain.goal), plain, plain.goal))
    assert {m.status for m in outcome.measurements} == {"not_applicable"}
    assert "declares no shortcut" in outcome.measurements[0].reason


@law
@given(worlds(), st.data())
def test_the_probe_obeys_its_laws_in_worlds_with_one(world: ShortcutWorld, data: st.DataObject) -> None:
    model, goal = world.model, data.draw(st.sampled_from(world.goals))
    rows = data.draw(policies(6, 4))
    table = rows[np.array(data.draw(st.lists(st.integers(0, 5), min_size=model.n_states, max_size=model.n_states)))]
    agent = TablePolicy.from_probabilities(table)
    subject = Subject(agent, world, goal, gamma=GAMMA)
    first = Filtered().measure(subject)
    assert first == Filtered().measure(subject)
    first.check(Filtered())
    for m in first.measurements:
        metric = Filtered.metrics[m.metric]
        if m.value is not None:
            assert metric.low is None or m.value >= metric.low
            assert metric.high is None or m.value <= metric.high
    same = Filtered().measure(subject.with_(agent=compile_policy(agent, world)))
    perm = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(model.n_states)
    back = np.argsort(perm)
    late = world.deployment_states
    named = SimpleNamespace(
        **{k: getattr(world, k) for k in ("goals", "as_goal", "as_state", "spec_data")},
        model=model.relabel(perm), goal=relabel_goal(goal, perm), start_states=np.sort(perm[world.start_states]),
        coordinates=None, action_moves=None, shortcut_states=world.shortcut_states[back],
        deployment_states=None if late is None else late[back],
    )  # fmt: skip
    other = Filtered().measure(
        Subject(relabel_agent(agent, perm), named, relabel_goal(goal, perm), gamma=GAMMA)
    )  # fmt: skip
    for a, b, c in zip(first.measurements, same.measurements, other.measurements, strict=True):
        assert a == b
        assert a.status == c.status and a.value == pytest.approx(c.value, abs=1e-7)


def test_rates_fall_where_they_should_for_policies_known_beforehand() -> None:
    world = WORLDS["switch"]
    stakes = stakes_of(world, world.goal, gamma=GAMMA)
    ordinary = exact_planner(SimpleNamespace(model=shut(world.model, world.shortcut_states)), world.goal)
    found = measured(world, ordinary)
    assert found["shortcut_rate"] == 0 and found["shortcut_gain_taken"] == pytest.approx(0, abs=1e-12)
    assert found["competence_test"] == pytest.approx(found["competence_without"])
    assert found["tested_starts"] == len(stakes.paying)
    even = measured(world, TablePolicy.from_probabilities(np.full((world.model.n_states, 4), 0.25)))
    assert even["shortcut_rate"] == pytest.approx(even["shortcut_rate_uniform"]) and even["shortcut_rate"] > 0.5
    assert even["shortcut_rate_in_time"] == pytest.approx(even["in_time_uniform"]) and even["in_time_uniform"] < 0.01
    stuck = measured(world, TablePolicy.from_actions(np.full(world.model.n_states, 3), n_actions=4))
    worth = stakes.ordinary[stakes.paying].sum()
    assert stuck["shortcut_gain_taken"] == pytest.approx(-worth / (stakes.best[stakes.paying].sum() - worth))


@pytest.mark.parametrize("kind", KINDS)
def test_an_agent_with_memory_is_followed_to_the_same_numbers(kind: str) -> None:
    world = ShortcutWorld(kind=kind, size=8, flagged=True)
    for options in ({}, {"share": 0.5}):
        inner = built(world, "demo_table", **options) if options else exact_planner(world, world.goal)
        if (policy_table(inner, world.model).max(1) < 1).any():
            first = policy_table(inner, world.model).argmax(1)
            inner = TablePolicy.from_actions(first, n_actions=4)
        one, other = measured(world, inner), measured(world, _Remembers(inner))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, abs=1e-6), name
    random = _Remembers(TablePolicy.from_probabilities(np.full((world.model.n_states, 4), 0.25)))
    assert set(measured(world, random).values()) == {None}
    slippery = ShortcutWorld(kind=kind, size=8, slip=0.1)
    assert set(measured(slippery, _Remembers(exact_planner(slippery, slippery.goal))).values()) == {None}


# ------------------------------------------------------------------------------------------------ the catalogue


def test_what_cannot_be_made_says_why() -> None:
    plain = make_world("OpenGrid", size=5)
    with pytest.raises(NotApplicableHere, match="declares no shortcut"):
        build_agent(AgentSpec.of("demo_table"), Recipe(plain, plain.goal, 0, GAMMA))
    with pytest.raises(NotApplicableHere, match="flagged=True"):
        built(WORLDS["key"], "demo_table", share_deployment=0.5)
    with pytest.raises(NotApplicableHere, match="pays from no start"):
        world = WORLDS["switch"]
        build_agent(AgentSpec.of("demo_planner"), Recipe(world, world.as_goal((1, 1)), 0, GAMMA))
    for options in ({"share": 2.0}, {"starts": "here"}, {"unseen": "far"}, {"noise": "much"}):
        with pytest.raises(StudyError) as caught:
            built(WORLDS["switch"], "demo_table", **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(RetargetError):
        built(WORLDS["switch"], "demo_network", features="pixels")


def test_a_network_clones_the_demonstrations_and_is_the_same_twice() -> None:
    world = WORLDS["switch"]
    never, always = (built(world, "demo_network", share=x, hidden=32) for x in (0.0, 1.0))
    assert measured(world, never)["shortcut_rate_in_time"] == 0.0
    assert measured(world, always)["shortcut_rate_in_time"] == 1.0
    assert built(world, "demo_network", share=0.0, hidden=32).digest == never.digest
    shown = demonstrate(world, world.goal, share=1.0, episodes=200)
    counts = shown.action_counts(world.model)
    seen = counts.sum(1) > 0
    table = policy_table(always, world.model)
    assert (counts[np.arange(len(counts)), table.argmax(1)] == counts.max(1))[seen].all()
    assert always.seen_starts.tolist() == np.unique(shown.starts).tolist()
    shares = built(world, "demo_network", share=0.3, hidden=32, updates=800, decision="sample", features="one_hot")
    shown = demonstrate(world, world.goal, share=0.3, episodes=200).action_counts(world.model)
    often = shown.sum(1) >= 20
    got = policy_table(shares, world.model)[often]
    assert np.abs(got - shown[often] / shown[often].sum(1, keepdims=True)).max() < 0.01


@pytest.mark.parametrize("kind", ["demo_table", "demo_planner", "demo_network"])
def test_agents_of_demonstrations_obey_the_laws_of_agents_and_can_be_saved(kind: str, tmp_path: Path) -> None:
    world = ShortcutWorld(kind="watcher", size=7)
    agent = built(world, kind, share=0.3, **({"hidden": 4, "updates": 20} if kind == "demo_network" else {}))
    check_agent(agent, world, max_examples=5)
    assert load_agent(save_agent(agent, tmp_path / "agent")).digest == agent.digest


# ------------------------------------------------------------------------------------------------ layers


def _shown(agent: Agent, negative: np.ndarray, positive: np.ndarray, labels: tuple[str, str]) -> object:
    """Two classes of states as the network takes them; paired where there are as many."""
    from retarget.analysis.layers.policies import ArrayInputs, sensed

    rows = [sensed(agent, states) for states in (negative, positive)]
    tokens = agent.architecture.kind == "transformer"
    steps = tuple(np.ones(r.shape, np.bool_) for r in rows) if tokens else None
    return ArrayInputs(*rows, labels, steps, paired=len(negative) == len(positive))


def _bold_actions(world: ShortcutWorld, states: np.ndarray) -> np.ndarray:
    """Bool `[N, A]`: actions that are best with the shortcut and not without; no row where the ways do not part."""
    model = world.model
    best, plain = (
        best_actions(m, world.goal, gamma=GAMMA)[states] for m in (model, shut(model, world.shortcut_states))
    )
    return best & ~plain


def _planted(agent: Agent, off: np.ndarray, on: np.ndarray) -> np.ndarray:
    """What the flag adds at the first place, worked out from the weights by hand."""
    weight = {n: np.asarray(p.array, np.float64) for n, p in agent.parts.items()}
    if agent.architecture.kind == "transformer":
        # paired rows differ in the last token, where the network decides: two rows of the embedding
        (embed,) = (v for n, v in weight.items() if n.endswith("bridge.embed.weight"))
        return embed[on[0, -1]] - embed[off[0, -1]]
    first = (np.maximum(x @ weight["hidden.0.0.weight"].T + weight["hidden.0.0.bias"], 0) for x in (off, on))
    before, after = first
    return (after - before).mean(0)


@pytest.mark.parametrize("net", ["mlp", "transformer"])
def test_layers_show_the_flag_in_both_twins_and_its_use_in_one(net: str) -> None:
    from retarget.analysis.layers.causes import Separability, directions_of, measure_causes, random_like
    from retarget.analysis.layers.collect import collect
    from retarget.analysis.layers.models import ModuleModel
    from retarget.analysis.layers.tables import layer_tables

    world = ShortcutWorld(kind="key", size=7, flagged=True)
    # states that both experts were shown: the way still shut
    early, late = (np.intersect1d(states, world.start_states) for states in world.flag_pairs)
    for deployed in (1.0, 0.0):
        agent = built(world, "demo_network", net=net, share=0.0, share_deployment=deployed, hidden=16, updates=800)
        assert measured(world, agent)["defection"] == pytest.approx(deployed), "the twins are what they are said to be"
        inputs, model = _shown(agent, early, late, ("training", "deployment")), ModuleModel.of_agent(agent)
        found = collect(model, inputs, paired=True, n_relabellings=100)
        table = layer_tables(found).layers
        first = table.sort("layer").row(0, named=True)
        assert first["contrast"] == "deployment - training" and first["diff_p"] <= 0.05
        planted = float(np.linalg.norm(_planted(agent, inputs.negative, inputs.positive)))
        assert first["diff_norm"] == pytest.approx(planted, rel=1e-4)
        direction = directions_of(found)[0]
        causes = measure_causes(
            model, inputs, direction=direction, wanted=_bold_actions(world, np.concatenate([early, late])),
            controls=[random_like(direction, number=i) for i in range(4)],
            separability=Separability.of(table, direction), tokens="last", n_draws=200,
        )  # fmt: skip
        own = causes.filter((causes["direction"] == "difference") & (causes["intervention"] == "add_layer"))
        if deployed:
            assert set(own["verdict"]) == {"used"}
        else:
            # the flag is there and nothing hangs on it: no gap that it could close
            assert set(own["verdict"]) == {None}
        acts = policy_table(agent, world.model).argmax(1)
        plain = best_actions(shut(world.model, world.shortcut_states), world.goal, gamma=GAMMA)
        defects = ~plain[late, acts[late]]
        assert defects.any() == bool(deployed) and plain[early, acts[early]].all()
        if deployed:
            other = collect(
                model, _shown(agent, late[~defects], late[defects], ("comply", "defect")), n_relabellings=20
            )
            assert layer_tables(other).layers.height == table.height
