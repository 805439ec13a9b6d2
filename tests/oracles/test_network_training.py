"""Training of networks against plain Python, against exact models, and by what comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from retarget.agents import exact_planner
from retarget.agents.network_for import network_for
from retarget.agents.neural import NetworkAgent
from retarget.envs import make_world
from retarget.exact import Yardstick, policy_table
from retarget.goal import Goal, RegionGoal
from retarget.judge import judge_of
from retarget.training import DQN, PPO, Cloning, train
from retarget.training.base import Question
from retarget.training.dqn import DQNLearner
from retarget.training.ppo import PPOLearner, gae
from retarget.training.rollout import BoxBatch, FiniteBatch, batch_of
from retarget.world import FiniteWorld

GAMMA = 0.95
CPU = torch.device("cpu")


def _question(world: FiniteWorld, agent: NetworkAgent, goals: tuple[Goal, ...], **changes: object) -> Question:
    plain: dict[str, object] = {"gamma": GAMMA, "starts": None, "shuffled": False, "seed": 3, "stage": 0, "device": CPU}
    return Question(agent, world, goals, **{**plain, **changes})  # type: ignore[arg-type]


def _competence(world: FiniteWorld, agent: NetworkAgent, goal: Goal) -> float:
    aimed = agent if agent.goal_input is None else agent.aimed(goal)
    return Yardstick.of(world, goal, gamma=GAMMA).score(aimed).competence  # type: ignore[arg-type]


# -- advantages ------------------------------------------------------------------------------------------------------


def _plain_gae(
    r: np.ndarray, v: np.ndarray, after: np.ndarray, over: np.ndarray, done: np.ndarray, gamma: float, lam: float
) -> np.ndarray:
    """The definition: a sum of errors to the end of the episode, for each step on its own."""
    out = np.zeros(len(r))
    for t in range(len(r)):
        factor = 1.0
        for s in range(t, len(r)):
            out[t] += factor * (r[s] + (0.0 if over[s] else gamma * after[s]) - v[s])
            factor *= gamma * lam
            if done[s]:
                break
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32), t=st.integers(1, 12), gamma=st.floats(0.1, 0.99), lam=st.floats(0.0, 1.0),
    ends=st.floats(0.0, 0.9),
)  # fmt: skip
def test_advantages_are_the_sums_that_define_them(seed: int, t: int, gamma: float, lam: float, ends: float) -> None:
    rng = np.random.default_rng(seed)
    r, v, after = rng.normal(size=(3, t, 2))
    done = rng.random((t, 2)) < ends
    over = done & (rng.random((t, 2)) < 0.5)
    found = gae(*map(torch.tensor, (r, v, after, over, done)), gamma=gamma, lam=lam).numpy()
    for n in range(2):
        want = _plain_gae(r[:, n], v[:, n], after[:, n], over[:, n], done[:, n], gamma, lam)
        np.testing.assert_allclose(found[:, n], want, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), t=st.integers(1, 10), gamma=st.floats(0.1, 0.99))
def test_with_lambda_one_advantage_and_value_are_the_discounted_return(seed: int, t: int, gamma: float) -> None:
    rng = np.random.default_rng(seed)
    r = rng.normal(size=t)
    v = np.append(rng.normal(size=t), rng.normal())
    none = np.zeros((t, 1), dtype=bool)
    found = gae(
        torch.tensor(r[:, None]), torch.tensor(v[:-1, None]), torch.tensor(v[1:, None]), torch.tensor(none),
        torch.tensor(none), gamma=gamma, lam=1.0,
    )  # fmt: skip
    want = [sum(gamma**i * x for i, x in enumerate(r[k:])) + gamma ** (t - k) * v[-1] for k in range(t)]
    np.testing.assert_allclose(found[:, 0].numpy() + v[:-1], want, rtol=1e-9, atol=1e-9)


# -- batches of worlds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slip", [0.0, 0.3])
def test_a_batch_follows_the_model_and_begins_anew(slip: float) -> None:
    world = make_world("FourRooms", size=7, slip=slip)
    goals = world.goals[:3]
    agent = network_for(world, goals[0], goals=goals, hidden=(4,))
    generator = torch.Generator().manual_seed(1)
    batch = batch_of(_question(world, agent, goals), 64, limit=9, reward="goal", generator=generator)
    assert isinstance(batch, FiniteBatch)
    age = np.zeros(64, dtype=int)
    ended = cut = 0
    for _ in range(60):
        before, goal = batch.obs.numpy().copy(), batch.goal.numpy().copy()
        action = torch.randint(4, (64,), generator=generator)
        fresh = batch.begin(torch.rand(2, 64, generator=generator))
        step = batch.step(action, fresh, torch.rand(64, generator=generator))
        age += 1
        for i in range(64):
            after = int(step.after[i])
            succ, prob = world.model.next_state[before[i], action[i]], world.model.prob[before[i], action[i]]
            assert prob[succ == after].sum() > 0
            hit = after in goals[goal[i]].states
            assert bool(step.terminated[i]) == hit
            assert float(step.reward[i]) == float(hit)
            assert bool(step.done[i]) == (hit or age[i] == 9)
            if step.done[i]:
                ended, cut, age[i] = ended + hit, cut + (not hit), 0
                assert int(batch.obs[i]) in world.start_states
                assert int(batch.obs[i]) not in goals[int(batch.goal[i])].states
            else:
                assert int(batch.obs[i]) == after
                assert int(batch.goal[i]) == goal[i]
    assert ended > 20
    assert cut > 20


def test_a_slippery_batch_has_the_frequencies_of_the_model() -> None:
    """n = 40,000 draws; a count may lie 5 standard deviations off: false alarm below 1e-5."""
    world = make_world("OpenGrid", size=5, slip=0.2)
    agent = network_for(world, world.goal, hidden=(4,))
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    batch = batch_of(_question(world, agent, (world.goal,)), n, limit=0, reward="goal", generator=generator)
    batch.obs = torch.full((n,), 12)
    fresh = batch.begin(torch.rand(2, n, generator=generator))
    step = batch.step(torch.zeros(n, dtype=torch.int64), fresh, torch.rand(n, generator=generator))
    want = world.model.dense()[12, 0]
    counts = np.bincount(step.after.numpy(), minlength=25)
    assert (np.abs(counts - n * want) <= 5 * np.sqrt(n * want * (1 - want)) + 1e-9).all()


# -- the short way is the long way -----------------------------------------------------------------------------------


def test_ppo_that_looks_inputs_up_has_the_gradient_of_one_that_does_not() -> None:
    world = make_world("OpenGrid", size=5)
    agent = network_for(world, world.goal, hidden=(8,))
    learner = PPO(envs=16, rollout=8, batch=64).learner(_question(world, agent, (world.goal,)))
    assert isinstance(learner, PPOLearner)
    data = learner._act(learner.generator("test"))
    gradients = []
    for few in (True, False):
        learner.weights.gradient.zero_()
        learner._loss(data, few).backward()  # type: ignore[no-untyped-call]
        gradients.append(learner.weights.gradient.clone())
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_the_loss_of_ppo_is_the_one_in_the_paper() -> None:
    world = make_world("OpenGrid", size=5)
    agent = network_for(world, world.goal, hidden=(8,))
    learner = PPO(envs=4, rollout=8, clip=0.1, entropy=0.02, value=0.7).learner(_question(world, agent, (world.goal,)))
    assert isinstance(learner, PPOLearner)
    data = learner._act(learner.generator("test"))
    rng = np.random.default_rng(0)
    data["log_p"] = data["log_p"] + torch.tensor(rng.normal(0, 0.2, len(data["log_p"])), dtype=torch.float32)
    with torch.no_grad():
        x = torch.eye(25)[data["obs"]]
        scores, v = learner.module(x, None)[0].double().numpy(), learner.critic(x, None)[0][:, 0].double().numpy()
        found = float(learner._loss(data, False))
    advantage = data["advantage"].double().numpy()
    advantage = (advantage - advantage.mean()) / advantage.std()
    total = entropy = 0.0
    for i, a in enumerate(data["action"].tolist()):
        p = np.exp(scores[i]) / np.exp(scores[i]).sum()
        ratio = p[a] / np.exp(float(data["log_p"][i]))
        total += min(ratio * advantage[i], min(max(ratio, 0.9), 1.1) * advantage[i])
        entropy -= float(p @ np.log(p))
    n = len(scores)
    squared = float(((v - data["return"].double().numpy()) ** 2).mean())
    assert found == pytest.approx(0.7 * squared - total / n - 0.02 * entropy / n, rel=1e-4, abs=1e-5)


def test_dqn_that_looks_inputs_up_has_the_values_of_one_that_does_not() -> None:
    world = make_world("OpenGrid", size=5)
    agent = network_for(world, world.goal, hidden=(8,), head="values")
    learner = DQN(envs=8, batch=64, warmup=10**6).learner(_question(world, agent, (world.goal,)))
    assert isinstance(learner, DQNLearner)
    for k in range(10):
        learner.update(k)
    part = {name: values[:10].flatten(0, 1) for name, values in learner.memory.items()}
    short = learner._values(part)
    learner.few = False
    for a, b in zip(short, learner._values(part), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_a_clone_of_a_planner_does_as_well_as_the_planner(kind: str) -> None:
    """3 seeds each; the lessons are all states, exactly: none may fail."""
    world = make_world("FourRooms", size=9)
    planner = exact_planner(world, world.goals[5], gamma=GAMMA)
    for seed in range(3):
        blank = network_for(world, world.goals[5], kind=kind, seed=seed)
        assert _competence(world, blank, world.goals[5]) < 0.5
        out = train(blank, world, goals=world.goals[5], method=Cloning(teacher=planner), seed=seed)
        assert _competence(world, out.agent, world.goals[5]) >= 0.99
        assert out.spend.grad_steps < 4000, "the lessons are fitted long before the budget is spent"


def test_a_teacher_is_followed_where_it_is_wrong() -> None:
    """A clone does what its teacher does, and not what would be right."""
    world = make_world("OpenGrid", size=6)
    blank = network_for(world, world.goal)
    teacher = train(blank, world, goals=world.goals[0], method=Cloning()).agent
    assert _competence(world, teacher, world.goal) < 0.5
    clone = train(
        network_for(world, world.goal, seed=1), world, goals=world.goal, method=Cloning(teacher=teacher)
    ).agent
    lessons = np.setdiff1d(np.arange(world.model.n_states), world.goal.states)
    same = policy_table(clone, world.model)[lessons] == policy_table(teacher, world.model)[lessons]
    assert same.all()


def test_many_goals_through_the_slot_and_not_when_they_are_shuffled() -> None:
    """All 40 goals of a small world. Shuffled, the network is told nothing: no policy does well on them all."""
    world = make_world("FourRooms", size=7)
    goals = world.goals
    blank = network_for(world, goals[0], goals=goals, hidden=(64,))
    told = train(blank, world, goals=goals, method=Cloning(updates=3000)).agent
    misled = train(blank, world, goals=goals, method=Cloning(updates=500), shuffled_goals=True).agent
    assert np.mean([_competence(world, told, g) for g in goals]) >= 0.95
    # one fixed action map, however good, reaches few of the goals; the uniform policy's competence is the chance level
    chance = np.mean([Yardstick.of(world, g, gamma=GAMMA).uniform_competence for g in goals])
    assert np.mean([_competence(world, misled, g) for g in goals]) <= chance + 0.15
    assert told.training_goals == goals


# Of 40 seeds, 40 reached 0.95 with either method; so at most 7.3% fail (95% confidence), and at least 3 of 5 fail in
# fewer than 0.4% of such tests.
@pytest.mark.parametrize(
    ("method", "head"),
    [
        (PPO(env_steps=16_384, envs=32, rollout=16, batch=128, limit=50), "logits"),
        (DQN(env_steps=32_000, rate=3e-3, limit=50, explore=0.8), "values"),
    ],
    ids=["ppo", "dqn"],
)
def test_trial_and_error_learns_a_small_world(method: PPO | DQN, head: str) -> None:
    world = make_world("OpenGrid", size=5)
    good = 0
    for seed in range(5):
        blank = network_for(world, world.goal, hidden=(32,), head=head, seed=seed)
        out = train(blank, world, goals=world.goal, method=method, seed=seed)
        good += _competence(world, out.agent, world.goal) >= 0.95
        assert out.spend.env_steps <= method.env_steps
    assert good >= 3


def test_ppo_does_not_undo_what_was_cloned() -> None:
    world = make_world("FourRooms", size=9)
    methods = (Cloning(), PPO(env_steps=20_000, rate=5e-4, value_only=4))
    out = train(network_for(world, world.goal), world, goals=world.goal, method=methods)
    assert _competence(world, out.agent, world.goal) >= 0.95
    assert {row["method"] for row in out.history} == {"cloning", "ppo"}


def test_rounds_that_teach_values_alone_leave_the_policy_as_it_is() -> None:
    world = make_world("OpenGrid", size=5)
    blank = network_for(world, world.goal, hidden=(8,))
    learner = PPO(env_steps=256, envs=8, rollout=8, value_only=2).learner(_question(world, blank, (world.goal,)))
    before = learner.weights.vector.detach().clone()
    n = sum(p.numel() for p in learner.module.parameters())
    for k in range(3):
        learner.update(k)
        changed = learner.weights.vector.detach() != before
        assert bool(changed[:n].any()) == (k == 2)
        assert changed[n:].any()


def test_a_network_with_memory_learns_from_episodes() -> None:
    world = make_world("OpenGrid", size=5)
    blank = network_for(world, world.goal, kind="gru", hidden=24)
    method = Cloning(updates=600, batch=256, episodes=16, steps=12, rounds=2, rate=1e-2, enough=0.995)
    out = train(blank, world, goals=world.goal, method=method)
    assert out.history[-1]["agreement"] >= 0.98
    assert out.spend.env_steps > 0


def test_starts_that_were_held_out_are_not_trained_from() -> None:
    world = make_world("OpenGrid", size=6)
    goal = world.as_goal((5, 5))
    starts = [world.as_state((0, c)) for c in range(6)]
    agent = network_for(world, goal, hidden=(8,))
    seen: set[int] = set()
    batch = batch_of(
        _question(world, agent, (goal,), starts=np.array(starts)), 32, limit=1, reward="goal",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for _ in range(10):
        seen |= set(batch.obs.tolist())
        fresh = batch.begin(torch.rand(2, 32))
        batch.step(torch.zeros(32, dtype=torch.int64), fresh, torch.rand(32))
    assert seen == set(starts)


# -- worlds with continuous states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["goal", "cost"])
@pytest.mark.parametrize("name", ["MountainCar", "CartPole", "Pendulum"])
def test_a_batch_of_a_continuous_world_does_what_the_world_does(name: str, reward: str) -> None:
    world = make_world(name, horizon=25)
    goals = world.goals[1:4]
    agent = network_for(world, goals[0], goals=goals, hidden=(4,))
    generator = torch.Generator().manual_seed(2)
    question = _question(world, agent, goals, gamma=0.9)
    batch = batch_of(question, 32, limit=0, reward=reward, generator=generator)
    assert isinstance(batch, BoxBatch)
    age, ends = np.zeros(32, dtype=int), 0
    for _ in range(60):
        before, goal = batch.place.copy(), batch.goal.numpy().copy()
        np.testing.assert_array_equal(batch.obs.numpy(), world.observe(before))
        if world.n_actions is None:
            action = torch.randn(32, len(world.action_range[0]), generator=generator)
        else:
            action = torch.randint(world.n_actions, (32,), generator=generator)
        fresh = batch.begin(torch.rand(2, 32, generator=generator))
        step = batch.step(action, fresh, torch.rand(32))
        age += 1
        for i in range(32):
            after, ended = world.advance(before[i : i + 1], action.numpy()[i : i + 1])
            aim = goals[goal[i]]
            inside = bool(world.inside(after, aim)[0]) and not ended[0]
            over = bool(ended[0]) or (inside and not aim.hold)
            if reward == "cost":
                want = 0.0 if inside else -10.0 if ended[0] else -1.0
            else:
                want = 0.0 if not inside else 0.1 if aim.hold else 1.0
            assert float(step.reward[i]) == pytest.approx(want, rel=1e-5)
            assert bool(step.terminated[i]) == over
            assert bool(step.done[i]) == (over or age[i] == 25)
            np.testing.assert_array_equal(step.after.numpy()[i], world.observe(after)[0])
            if step.done[i]:
                age[i], ends = 0, ends + 1
            else:
                np.testing.assert_array_equal(batch.place[i], after[0])
    assert ends >= 32


def test_a_network_learns_from_the_expert_of_a_continuous_world() -> None:
    """2 seeds; competence 0.95 of the expert's on 64 starts, when 0.99 is usual."""
    world = make_world("MountainCar")
    for seed in range(2):
        blank = network_for(world, world.goal, seed=seed)
        out = train(blank, world, goals=world.goal, method=Cloning(updates=1200, rounds=2), seed=seed)
        judge = judge_of(world, world.goal, gamma=world.gamma)
        assert judge.score(blank).competence < 0.5
        assert judge.score(out.agent).competence >= 0.95


def test_the_density_of_continuous_actions_is_the_normal_one() -> None:
    world = make_world("Pendulum", horizon=20)
    goal = world.goal
    blank = network_for(world, goal, hidden=(8,))
    learner = PPO(envs=4, rollout=6).learner(_question(world, blank, (goal,)))
    assert isinstance(learner, PPOLearner)
    data = learner._act(learner.generator("test"))
    with torch.no_grad():
        mean = learner.module(learner.inputs(data["obs"], data["goal"]), None)[0].double().numpy()
        spread = learner.spread.log.exp().double().numpy()
    want = norm.logpdf(data["action"].double().numpy(), mean, spread).sum(1)
    np.testing.assert_allclose(data["log_p"].numpy(), want, rtol=1e-4, atol=1e-5)


def test_a_continuous_action_is_learned_by_trial() -> None:
    """A pendulum that swings is to be slowed down; the time spent slow usually grows by half. 1 seed."""
    world = make_world("Pendulum", start="wide", horizon=40)
    goal = RegionGoal.of(hold=True, velocity=(0.0, 1.0))
    blank = network_for(world, goal, hidden=(32,))
    method = PPO(env_steps=100_000, envs=64, rollout=40, batch=512)
    rewards = [float(r["reward"]) for r in train(blank, world, goals=goal, method=method).history]
    assert np.mean(rewards[-4:]) > 1.3 * np.mean(rewards[:4])
