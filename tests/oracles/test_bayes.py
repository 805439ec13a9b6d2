"""KT, CTW and ρUCT against closed forms, explicit mixtures, plain Python, and exactly solved domains."""

import itertools
import math

import numpy as np
import pytest
from scipy.special import betaln

import retarget
from retarget.agents.bayes import BayesPlanner, mc_aixi
from retarget.bayes.ctw import Coding, CompiledModel, ContextTree, ReferenceModel
from retarget.bayes.domains import DOMAINS, biased_rps, cheese_maze, kuhn_poker, make_domain, one_d_maze
from retarget.bayes.kt import kt_log_block, kt_next
from retarget.bayes.learn import evaluate, learn
from retarget.bayes.solve import solve
from retarget.exact import Yardstick
from retarget.rng import stream


@pytest.mark.parametrize(("zeros", "ones"), list(itertools.product((0, 1, 2, 7, 40), repeat=2)))
def test_kt_is_a_ratio_of_beta_functions(zeros, ones):
    expected = betaln(zeros + 0.5, ones + 0.5) - betaln(0.5, 0.5)
    assert kt_log_block(zeros, ones) == pytest.approx(expected, abs=1e-12)
    chain = sum(math.log(1 - kt_next(a, 0)) for a in range(zeros)) + sum(
        math.log(kt_next(zeros, b)) for b in range(ones)
    )
    assert chain == pytest.approx(expected, abs=1e-10)


def suffix_trees(depth):
    """Every prediction suffix tree of at most that depth: (bits of its description, its leaves as contexts)."""
    if depth == 0:
        return [(0, [()])]
    smaller = suffix_trees(depth - 1)
    split = [
        (1 + left + right, [(0, *c) for c in a] + [(1, *c) for c in b])
        for (left, a), (right, b) in itertools.product(smaller, repeat=2)
    ]
    return [(1, [()]), *split]


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_ctw_is_the_mixture_of_all_suffix_trees(depth):
    rng = stream(0, "ctw_mixture", depth)
    bits = [0] * depth + [int(b) for b in rng.random(24) < np.tile([0.2, 0.9, 0.5], 8)]
    seen = [(tuple(bits[:t][::-1][:depth]), bits[t]) for t in range(depth, len(bits))]
    total = 0.0
    trees = suffix_trees(depth)
    for length, leaves in trees:
        logs = 0.0
        for leaf in leaves:
            mine = [b for context, b in seen if context[: len(leaf)] == leaf]
            logs += betaln(mine.count(0) + 0.5, mine.count(1) + 0.5) - betaln(0.5, 0.5)
        total += 2.0**-length * math.exp(logs)
    assert sum(2.0**-length for length, _ in trees) == pytest.approx(1.0)

    tree = ContextTree(depth)
    for context, bit in seen:
        tree.update(context, bit)
    assert tree.log_block == pytest.approx(math.log(total), abs=1e-10)
    model = CompiledModel(Coding(0, 1, 0, depth))
    for _, bit in seen:
        model.perceive(bit)
    assert model.log_block == pytest.approx(math.log(total), abs=1e-10)


def test_actions_are_contexts_and_are_not_predicted():
    # a percept that copies the action costs little; the action itself, which is a coin, costs nothing
    rng = stream(0, "ctw_actions")
    model = ReferenceModel(Coding(1, 1, 0, depth=2))
    for action in rng.integers(2, size=200).tolist():
        model.act(action)
        model.perceive(action)
    # two KT leaves of 100 equal bits cost log2(1 / B) each, and the tree's description 3 bits at most
    bound = -2 * kt_log_block(100, 0) / math.log(2) + 3
    assert -model.log_block / math.log(2) < bound + 8


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_the_compiled_model_is_the_plain_one_in_every_domain(name):
    domain = make_domain(name)
    coding = domain.coding(depth=20)
    plain, fast = ReferenceModel(coding), CompiledModel(coding)
    rng = stream(0, "ctw_twin", name)
    state = int(rng.choice(domain.n_states, p=domain.start))
    for _ in range(60):
        action = int(rng.integers(domain.n_actions))
        k = int(rng.choice(domain.prob.shape[2], p=domain.prob[state, action]))
        percept = coding.percept(int(domain.observation[state, action, k]), int(domain.symbol[state, action, k]))
        state = int(domain.next_state[state, action, k])
        for model in (plain, fast):
            model.act(action)
        assert fast.probability(percept) == pytest.approx(plain.probability(percept), rel=1e-10)
        plain.perceive(percept)
        fast.perceive(percept)
    assert fast.log_block == pytest.approx(plain.log_block, rel=1e-12)


def test_the_best_average_rewards_are_those_that_can_be_worked_out_by_hand():
    # right, right, left finds the goal in 2 cycles on average from the three other cells
    assert solve(one_d_maze()).average == pytest.approx(1 / 2, abs=1e-8)
    # scissors until rock has won, then paper: a win every fourth cycle
    assert solve(biased_rps()).average == pytest.approx(1 / 4, abs=1e-8)
    # losing to rock with scissors for ever
    rps = biased_rps()
    assert solve(rps, -rps.rewards).average == pytest.approx(1.0, abs=1e-8)


@pytest.mark.parametrize("bluff", [0.0, 0.1, 0.7 / 3, 1 / 3])
def test_the_second_player_of_kuhn_poker_wins_an_eighteenth(bluff):
    domain = kuhn_poker(bluff=bluff)
    assert solve(domain).average == pytest.approx(1 / 18, abs=1e-8)
    # and by enumeration of all 64 ways to play the six hands that can be seen
    worth = domain.rewards[domain.symbol]
    seen = [domain.observation[domain.next_state == s].max() for s in range(domain.n_states)]
    keys = sorted(set(seen))
    values = [
        sum(
            domain.start[s] * (domain.prob[s, play[keys.index(seen[s])]] * worth[s, play[keys.index(seen[s])]]).sum()
            for s in range(domain.n_states)
        )
        for play in itertools.product((0, 1), repeat=len(keys))
    ]
    assert max(values) == pytest.approx(1 / 18, abs=1e-12)


def test_a_mouse_that_knows_its_cell_does_no_worse_than_one_that_sees_walls():
    domain = cheese_maze()
    worth = domain.rewards[domain.symbol]
    value = np.zeros(domain.n_states)
    for _ in range(2000):
        step = (domain.prob * (worth + value[domain.next_state])).sum(-1).max(1) - value
        value += 0.5 * step
        value -= value[0]
    # the ways from the ten other cells: 10 at their end, and -1 for each step before
    ways = [4, 3, 2, 3, 4, 5, 1, 5, 6, 6]
    assert step.min() == pytest.approx(sum(10 - (d - 1) for d in ways) / sum(ways), abs=1e-9)
    assert solve(domain).average <= step.min()


def test_what_is_given_away_says_how_far_below_the_best_a_policy_is():
    domain = biased_rps()
    best = solve(domain)
    # always rock: at random play a draw on average; the opponent who wins with rock never does so against rock
    rock = np.zeros(200, np.int64)
    rng = stream(0, "rock")
    opponent = rng.integers(3, size=200)
    symbol = np.array([1, 0, 2])[opponent]
    gap = best.given_away(rock, (opponent << 2) | symbol)
    assert gap.mean() == pytest.approx(0.25, abs=1e-7)


#: Seeds of the statistical tests below are fixed; n is stated in each, and intervals are at 95%.
def test_biased_rps_and_the_maze_are_played_as_well_as_can_be():
    curve = learn(
        biased_rps(), cycles=10_000, simulations=50, evaluation=2000, evaluation_simulations=500, seed=0, depth=12,
        horizon=2, decay=0.9998, bonus=0.5,
    )  # fmt: skip
    assert curve.reached and curve.evaluation.n == 2000
    assert curve.evaluation.given_away < 0.01  # of 0.25
    maze = learn(
        one_d_maze(), cycles=5000, simulations=50, evaluation=500, evaluation_simulations=500, seed=0, depth=24,
        decay=0.999,
    )  # fmt: skip
    assert maze.reached and maze.evaluation.given_away < 0.02


def test_another_reward_map_turns_the_behaviour_without_learning():
    domain = biased_rps()
    learned = learn(
        domain, cycles=10_000, simulations=50, evaluation=1, seed=0, depth=12, horizon=2, decay=0.9998, bonus=0.5
    ).learned
    before = learned.nodes.odds.copy()
    lose = -domain.rewards
    best = solve(domain, lose)
    turned = evaluate(learned, cycles=1000, rewards=lose, solution=best, simulations=500)
    straight = evaluate(learned, cycles=1000, rewards=domain.rewards, solution=solve(domain), simulations=500)
    assert best.average == pytest.approx(1.0, abs=1e-8)
    assert turned.mean > 0.95 and turned.given_away < 0.02
    assert straight.mean > 0.15 and straight.given_away < 0.01
    assert np.array_equal(learned.nodes.odds.view(np.int64), before.view(np.int64))


def test_kuhn_poker_is_won_and_lost_as_the_map_says():
    domain = kuhn_poker()
    learned = learn(
        domain, cycles=20_000, simulations=50, evaluation=1, seed=0, depth=14, horizon=1, bonus=0.5, decay=0.9999
    ).learned
    for rewards in (domain.rewards, -domain.rewards):
        found = evaluate(learned, cycles=300, rewards=rewards, solution=solve(domain, rewards), simulations=1000)
        assert found.given_away < 0.01


def test_the_table_of_predictions_is_what_plain_context_trees_predict():
    world = retarget.make_world("OpenGrid", size=5)
    model = world.model
    n, n_actions = model.n_states, model.n_actions
    bits = (n - 1).bit_length()
    plain = ReferenceModel(Coding((n_actions - 1).bit_length(), bits, 0, bits + (n_actions - 1).bit_length()))
    rng = stream(0, "predictive")
    counts = np.zeros((n, n_actions, n))
    plain.history += [0] * bits
    state = 0
    for _ in range(400):
        action = int(rng.integers(n_actions))
        plain.act(action)
        after = int(model.next_state[state, action, 0])
        plain.perceive(after)
        counts[state, action, after] += 1
        state = after
    agent = BayesPlanner(np.zeros(n), counts)
    for action in range(n_actions):
        plain.act(action)
        expected = [plain.probability(t) for t in range(n)]
        np.testing.assert_allclose(agent.predictions[state, action], expected, rtol=1e-9)
        del plain.history[-(n_actions - 1).bit_length() :]


@pytest.mark.parametrize("everywhere", [True, False])
def test_it_finds_its_way_in_a_grid(everywhere):
    world = retarget.make_world("OpenGrid", size=5)
    agent = mc_aixi(world, world.goal, cycles=20_000 if everywhere else 4000, simulations=1024, seed=0,
                    everywhere=everywhere)  # fmt: skip
    assert Yardstick.of(world, world.goal, gamma=0.95).score(agent).competence > 0.9


def test_more_simulations_bring_the_search_to_the_exact_plan():
    world = retarget.make_world("FourRooms", size=7)
    goal = world.goals[0]
    agent = mc_aixi(world, goal, cycles=100_000, simulations=64, seed=0, everywhere=True)
    yardstick = Yardstick.of(world, goal, gamma=0.95)
    few = yardstick.score(BayesPlanner(agent.reward, agent.counts, simulations=16)).competence
    many = yardstick.score(BayesPlanner(agent.reward, agent.counts, simulations=16_384)).competence
    assert many > 0.9 and many > few
