"""Laws of context trees, of ρUCT, of the domains and of the MC-AIXI agent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import HasGoalSlot, Trainable
from retarget.agents.bayes import BayesPlanner, mc_aixi
from retarget.agents.wrappers import ModelWorld
from retarget.bayes.ctw import Coding, CompiledModel, ContextTree, ReferenceModel, bits_of
from retarget.bayes.domains import DOMAINS, biased_rps, kuhn_poker, make_domain, one_d_maze
from retarget.bayes.learn import batch_mean, evaluate, learn
from retarget.bayes.solve import solve
from retarget.edit import Edit, Sparse
from retarget.errors import AgentError, RetargetError, WorldError
from retarget.exact import policy_table
from retarget.goal import StateGoal
from retarget.probes import Retargetability
from retarget.testing import check_agent, models

CODINGS = st.builds(Coding, st.integers(0, 2), st.integers(1, 2), st.integers(0, 2), depth=st.integers(0, 12))


@st.composite
def histories(draw: st.DrawFn) -> tuple[Coding, list[tuple[int, int]]]:
    """A coding, and cycles of action and percept: repetitive, so that contexts come again."""
    coding = draw(CODINGS)
    cycle = st.tuples(st.integers(0, (1 << coding.action_bits) - 1), st.integers(0, (1 << coding.percept_bits) - 1))
    phrase = draw(st.lists(cycle, min_size=1, max_size=4))
    return coding, draw(st.lists(st.one_of(st.sampled_from(phrase), cycle), max_size=25))


def frozen(model: CompiledModel) -> tuple[bytes, bytes, bytes]:
    """Everything that a compiled model holds, to the bit."""
    rows, bits = model.nodes.used.tolist()
    return model.nodes.odds[:rows].tobytes(), model.nodes.history[:bits].tobytes(), model.nodes.used.tobytes()


@given(histories())
@settings(max_examples=60, deadline=None)
def test_the_compiled_model_is_the_plain_one(case):
    coding, cycles = case
    plain, fast = ReferenceModel(coding), CompiledModel(coding)
    for action, percept in cycles:
        for model in (plain, fast):
            model.act(action)
        assert fast.probability(percept) == pytest.approx(plain.probability(percept), rel=1e-9)
        for model in (plain, fast):
            model.perceive(percept)
    assert fast.history == plain.history
    assert fast.log_block == pytest.approx(plain.log_block, rel=1e-9, abs=1e-12)


@given(histories(), histories())
@settings(max_examples=60, deadline=None)
def test_forgetting_is_exact(case, more):
    coding, cycles = case
    fast, plain = CompiledModel(coding), ReferenceModel(coding)
    for action, percept in cycles:
        for model in (fast, plain):
            model.act(action)
            model.perceive(percept)
    before, log_block, plain_block = frozen(fast), fast.log_block, plain.log_block
    sizes = [t.n_nodes for t in plain.trees]
    later = [p & ((1 << coding.percept_bits) - 1) for _, p in more[1]]
    for percept in later:
        fast.perceive(percept)
        plain.perceive(percept)
    for _ in later:
        fast.forget()
        plain.forget()
    assert frozen(fast) == before and fast.log_block == log_block
    assert plain.log_block == plain_block and [t.n_nodes for t in plain.trees] == sizes


@given(histories())
@settings(max_examples=40, deadline=None)
def test_predictions_are_distributions(case):
    coding, cycles = case
    model = CompiledModel(coding)
    for action, percept in cycles:
        model.act(action)
        model.perceive(percept)
    before = frozen(model)
    total = sum(model.probability(p) for p in range(1 << coding.percept_bits))
    assert total == pytest.approx(1.0, abs=1e-9)
    assert frozen(model) == before
    tree = ReferenceModel(coding).trees[0]
    context = model.history[::-1]
    assert tree.predict(context, 0) + tree.predict(context, 1) == pytest.approx(1.0)


def test_odds_stay_finite_however_sure_the_model_is():
    model = CompiledModel(Coding(1, 1, 0, depth=3))
    for t in range(6000):
        model.act(t & 1)
        model.perceive(t & 1)
    rows = int(model.nodes.used[0])
    assert np.isfinite(model.nodes.odds[1:rows, 3]).all() and (model.nodes.odds[1:rows, 3] > 0).all()
    model.act(0)
    assert 0.99 < model.probability(0) < 1.0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ContextTree(-1), "depth of a context tree must not be negative, got -1"),
        (lambda: ContextTree(2).revert(), "no update to revert"),
        (lambda: CompiledModel(Coding(1, 1, 0, 1)).forget(), "no percept to forget"),
        (lambda: Coding(1, 0, 0, 3), "at least one percept bit"),
        (lambda: bits_of(4, 2), "4 does not fit into 2 bits"),
        (lambda: CompiledModel(Coding(1, 1, 0, 1)).perceive(2), "2 does not fit into 1 bits"),
        (lambda: make_domain("tigre"), "did you mean 'tiger'"),
        (lambda: kuhn_poker(bluff=0.5), "bluff must lie in"),
        (lambda: solve(biased_rps(), np.zeros(3)), "finite numbers of shape (4,)"),
        (lambda: solve(make_domain("4x4_grid"), limit=3), "more than 3 beliefs"),
        (lambda: learn(biased_rps(), cycles=5, simulations=0, seed=0), "simulations must be a whole number"),
        (lambda: learn(biased_rps(), cycles=5, simulations=1, seed=0, epsilon=2), "epsilon and decay"),
        (lambda: learn(biased_rps(), cycles=5, simulations=1, seed=0, rewards=np.full(4, np.nan)), "finite numbers"),
        (lambda: BayesPlanner(np.zeros(3), np.zeros((3, 2, 2))), "needs reward [S] and counts [S, A, S]"),
        (lambda: BayesPlanner(np.zeros(3), np.zeros((3, 2, 3)), simulations=0), "simulations must be"),
        (lambda: BayesPlanner(np.zeros(3), np.zeros((3, 2, 3)), gamma=1.0), "gamma must lie"),
        (lambda: BayesPlanner(np.zeros(3), np.zeros((3, 2, 3)), bonus=-1.0), "bonus must be"),
        (lambda: BayesPlanner(np.zeros(600), np.zeros((600, 1, 600))), "at most 512 states, got 600"),
    ],
)  # fmt: skip
def test_bad_input_gives_one_line_that_says_what_to_do(make, says):
    with pytest.raises(RetargetError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ domains


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_domains_are_what_their_codings_say(name):
    domain = make_domain(name)
    assert domain.name == name and len(domain.names) == domain.n_actions
    assert domain.rewards.shape == (1 << domain.reward_bits,)
    assert domain.rewards.min() == domain.rewards[domain.symbols].min()
    solution = solve(domain)
    assert 0 <= solution.high - solution.low <= 1e-8
    assert (solution.gap >= 0).all() and (solution.gap.min(1) == 0).all()


@given(st.floats(-3, 3), st.floats(0.1, 4))
@settings(max_examples=20, deadline=None)
def test_the_best_average_moves_with_the_rewards(shift, scale):
    domain = biased_rps()
    best = solve(domain).average
    assert solve(domain, scale * domain.rewards + shift).average == pytest.approx(scale * best + shift, abs=1e-6)


def test_a_foreign_history_is_refused():
    with pytest.raises(WorldError, match="cannot come after action"):
        solve(one_d_maze()).given_away(np.zeros(1, np.int64), np.array([2]))


# ------------------------------------------------------------------------------------------------ learning


def test_the_same_seed_is_the_same_life_and_evaluation_changes_nothing():
    args = {"cycles": 150, "simulations": 30, "evaluation": 40, "depth": 10}
    a, b = (learn(biased_rps(), seed=3, **args) for _ in range(2))
    other = learn(biased_rps(), seed=4, **args)
    assert a.evaluation == b.evaluation and np.array_equal(a.learned.actions, b.learned.actions)
    assert not np.array_equal(a.learned.actions, other.learned.actions)
    before = a.learned.nodes.odds.copy()
    assert evaluate(a.learned, cycles=40) == evaluate(a.learned, cycles=40)
    assert np.array_equal(a.learned.nodes.odds.view(np.int64), before.view(np.int64))
    assert a.learned.nodes.used[1] == a.learned.coding.depth + 150 * a.learned.coding.cycle_bits


@given(st.integers(1, 60), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_a_decision_spends_its_simulations_and_stays_within_rewards(simulations, seed):
    learned = learn(one_d_maze(), cycles=20, simulations=simulations, seed=0, evaluation=1, depth=6, horizon=4).learned
    tries, mean = learned.decision(seed=seed)
    assert tries.sum() == simulations
    assert ((mean >= 0) & (mean <= 4))[tries > 0].all()


def test_rewards_that_are_all_equal_leave_the_choice_to_chance():
    learned = learn(one_d_maze(), cycles=30, simulations=20, seed=0, evaluation=1, depth=6, horizon=3).learned
    after = evaluate(learned, cycles=200, rewards=np.zeros(2))
    assert after.mean == 0.0
    _, mean = learned.decision(np.full(2, 0.5))
    assert mean == pytest.approx([1.5, 1.5])


def test_a_curve_covers_all_cycles():
    curve = learn(one_d_maze(), cycles=100, simulations=5, seed=0, evaluation=60, depth=6, horizon=2)
    assert curve.cycles[-1] == 100 and (np.diff(curve.cycles) > 0).all()
    spans = np.diff(np.concatenate([[0], curve.cycles]))
    rewards = (curve.learned.percepts[:100] & 1).astype(float)
    assert (curve.average * spans).sum() == pytest.approx(rewards.sum())
    assert set(curve.as_dict()) >= {"domain", "optimal", "average", "low", "high", "n", "seconds"}


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=200))
def test_the_batch_mean_is_the_mean(values):
    mean, error = batch_mean(np.array(values))
    assert mean == pytest.approx(np.mean(values), abs=1e-9) and error >= 0


# ------------------------------------------------------------------------------------------------ the agent


@given(models(max_states=6), st.integers(0, 300), st.integers(0, 3))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.nested_given])
def test_any_counts_give_an_agent_that_keeps_the_laws(model, cycles, seed):
    world = ModelWorld(model, StateGoal.of([0]))
    counts = np.zeros((model.n_states, model.n_actions, model.n_states))
    rng = np.random.default_rng(seed)
    for _ in range(cycles):
        s, a = rng.integers(model.n_states), rng.integers(model.n_actions)
        counts[s, a, model.next_state[s, a, 0]] += 1
    agent = BayesPlanner(np.eye(model.n_states)[0], counts, simulations=20, horizon=6, seed=seed)
    assert (agent.predictions >= 0).all() and (agent.predictions.sum(2) <= 1 + 1e-12).all()
    if model.n_states & (model.n_states - 1) == 0:
        assert agent.predictions.sum(2) == pytest.approx(1.0)
    assert ((agent.returns >= 0) & (agent.returns <= 1)).all()
    check_agent(agent, world, max_examples=3)


def test_a_learned_agent_keeps_the_laws_of_agents():
    world = retarget.make_world("OpenGrid", size=5)
    agent = mc_aixi(world, world.goal, cycles=400, simulations=64, horizon=20, seed=0, everywhere=False)
    assert isinstance(agent, HasGoalSlot) and isinstance(agent, Trainable)
    check_agent(agent, world, max_examples=5)
    assert agent.simulations_per_action == 64 and agent.flops_per_action > 64
    assert agent.seen_starts is not None and agent.seen_starts.size > 0
    assert agent.blank(1).parts["counts"].array.sum() == 0


def test_steps_are_charged_as_they_are_walked():
    """Where every state ends the episode, a simulation is one step however far it may look; where only a far one does,
    it is as many as there are at most."""
    counts = np.ones((4, 2, 4))
    near = [BayesPlanner(np.ones(4), counts, simulations=32, horizon=h).flops_per_action for h in (1, 64)]
    nodes = 24 * (2 * 2**3 + 2 * 2**4)
    assert near == [32 * (6 * 2 + 12) + nodes] * 2
    stay = np.zeros((4, 2, 4))
    stay[np.arange(4), :, np.arange(4)] = 1e12
    far = BayesPlanner(np.eye(4)[3], stay, simulations=32, horizon=16)
    # from three of four states the reward is not met; from the fourth, at the first step
    assert far.flops_per_action == pytest.approx(32 * (3 * 16 + 1) / 4 * 24 + nodes, rel=1e-3)


def test_without_a_goal_it_acts_uniformly_and_without_data_it_knows_nothing():
    world = retarget.make_world("OpenGrid", size=5)
    agent = mc_aixi(world, world.goal, cycles=2000, simulations=64, horizon=20, seed=0, everywhere=True)
    nothing = agent.with_arrays({"reward": np.zeros(agent.n_states)})
    assert (policy_table(nothing, world.model) == 1 / world.model.n_actions).all()
    assert agent.blank(0).predictions == pytest.approx(0.5 ** (agent.n_states - 1).bit_length())


def test_the_same_seed_decides_the_same_and_negative_counts_are_none():
    world = retarget.make_world("OpenGrid", size=5)
    agent = mc_aixi(world, world.goal, cycles=500, simulations=32, horizon=20, seed=5, everywhere=True)
    again = mc_aixi(world, world.goal, cycles=500, simulations=32, horizon=20, seed=5, everywhere=True)
    assert agent.digest == again.digest
    assert np.array_equal(policy_table(agent, world.model), policy_table(again, world.model))
    cell = np.flatnonzero(agent.counts.reshape(-1) == 0)[:1]
    edited = Edit.of(agent, Sparse("counts", cell, np.array([-3.0]))).apply(agent)
    assert np.array_equal(edited.predictions, agent.predictions)


def test_it_retargets_through_its_slot_alone():
    world = retarget.make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    agent = mc_aixi(world, a, cycles=20_000, simulations=256, horizon=32, seed=0, everywhere=True)
    outcome = Retargetability(draws=4).measure(retarget.Subject(agent, world, a, b))
    assert outcome["edit_bits"].editor == "slot" and outcome["edit_bits"].parts == "reward"
    assert outcome["retargetability"].value > 0.5


def test_it_refuses_another_world():
    world, other = retarget.make_world("OpenGrid", size=5), retarget.make_world("FourRooms", size=9)
    agent = mc_aixi(world, world.goal, cycles=10, simulations=4, seed=0, everywhere=True)
    with pytest.raises(AgentError, match="is for a world of"):
        agent.retrained(other, other.goal, budget=1, seed=0)
    with pytest.raises(AgentError, match="needs a finite world"):
        agent.retrained("nowhere", world.goal, budget=1, seed=0)
    with pytest.raises(AgentError, match="cycles >= 0"):
        mc_aixi(world, world.goal, cycles=-1, seed=0, everywhere=True)
    trained, spend = agent.retrained(world, world.goals[0], budget=3, seed=1)
    assert spend.env_steps == 3 * agent.n_states == int(trained.counts.sum() - agent.counts.sum())
    assert replace(agent, starts=None).retrained(world, world.goals[0], budget=1, seed=0)[0].seen_starts.size > 0
