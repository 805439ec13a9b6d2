"""Networks trained by search, against what is exactly true."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import retarget
from retarget.agents import leaves, policy_value
from retarget.agents.policy_value import PolicyValue
from retarget.editors.slot import slot_edit
from retarget.errors import RetargetError
from retarget.exact import Yardstick, best_actions, optimal_values, policy_table, reach_values
from retarget.rng import stream
from retarget.search import Found, TreeModel, TreeSettings, search
from retarget.search.settings import Evaluate
from retarget.training import alphazero
from retarget.training.alphazero import AlphaZero, SelfPlay, episodes, train_alphazero
from retarget.world import FiniteModel

GAMMA = 0.95
WORLD = retarget.make_world("FourRooms", size=9)
A, B = WORLD.as_goal((1, 1)), WORLD.as_goal((7, 7))


@pytest.fixture(scope="module")
def made() -> AlphaZero:
    return train_alphazero(WORLD, A, settings=TreeSettings(simulations=32, gamma=GAMMA), seed=1)


def test_it_learns_to_act_best_and_what_states_are_worth(made: AlphaZero) -> None:
    judge = Yardstick.of(WORLD, A, gamma=GAMMA)
    assert judge.score(made.agent).competence > 0.97
    value = made.agent.leaf.judge(made.agent.reward, 4, GAMMA).value
    exact = optimal_values(WORLD.model, A, gamma=GAMMA)
    assert np.corrcoef(value[judge.starts], exact[judge.starts])[0, 1] > 0.9
    alone = replace(made.agent, settings=replace(made.agent.settings, simulations=1))
    right = best_actions(WORLD.model, A, gamma=GAMMA)
    share = (policy_table(alone, WORLD.model) * right).sum(1)[judge.starts].mean()
    assert share > 0.9  # the prior alone: what searches preferred
    assert made.history[0]["reached"] < 1.0 and made.history[-1]["reached"] == 1.0


def test_blank_training_is_no_better_than_chance_and_the_same_call_gives_the_same_bits(made: AlphaZero) -> None:
    again = train_alphazero(WORLD, A, settings=TreeSettings(simulations=32, gamma=GAMMA), seed=1)
    assert again.agent.digest == made.agent.digest and again.spend == made.spend
    other = train_alphazero(WORLD, A, settings=TreeSettings(simulations=32, gamma=GAMMA), play=SelfPlay(2), seed=2)
    assert other.agent.digest != made.agent.digest and other.spend.grad_steps == 80
    blank = made.agent.blank(5)
    assert isinstance(blank.leaf, PolicyValue) and (blank.reward == 0).all()
    none = train_alphazero(WORLD, A, settings=TreeSettings(simulations=32), play=SelfPlay(iterations=0), seed=1)
    assert all(np.array_equal(blank.leaf.weights[n], w) for n, w in none.agent.leaf.weights.items())


def test_values_and_priors_trained_toward_a_hold_on_to_it(made: AlphaZero) -> None:
    judge, agent = Yardstick.of(WORLD, B, gamma=GAMMA), made.agent
    slot = slot_edit(agent, agent.slot_writes(B)[0]).apply(agent)
    fits = {f.name: f.arrays for f in agent.fits(WORLD, B)}
    both = slot.with_arrays({**fits["exact values"], **fits["best actions"]})
    alone, all_three = judge.score(slot).competence, judge.score(both).competence
    assert alone < 0.6 < 0.9 < all_three


def test_the_prior_keeps_a_search_from_where_exact_values_point(made: AlphaZero) -> None:
    """What holds on to A, one thing at a time: with exact values of B, the trained prior does; without it, nothing."""
    judge, agent = Yardstick.of(WORLD, B, gamma=GAMMA), made.agent
    slot = slot_edit(agent, agent.slot_writes(B)[0]).apply(agent)
    fits = {f.name: f.arrays for f in agent.fits(WORLD, B)}
    told = slot.with_arrays(fits["exact values"])
    exact = optimal_values(WORLD.model, B, gamma=GAMMA)
    believed = told.leaf.judge(told.reward, 4, GAMMA).value
    assert np.abs(believed - exact)[judge.starts].max() < 0.01  # 64 units tell 40 states apart: the fit is no excuse
    assert judge.score(told).competence < 0.5
    assert judge.score(told.with_arrays(fits["even prior"])).competence > 0.99
    # an even prior alone leaves the values of A in force
    assert judge.score(slot.with_arrays(fits["even prior"])).competence < 0.5


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("features", ["state", "place"])
def test_in_an_open_grid_it_acts_best(seed: int, features: str) -> None:
    """With noise in the priors of roots, as in the source: optimal, and values in the order of the exact ones."""
    world = retarget.make_world("OpenGrid", size=5)
    goal = world.goals[7]
    found = train_alphazero(
        world, goal, settings=TreeSettings(simulations=32, gamma=GAMMA), features=features,
        play=SelfPlay(root_noise=0.25), seed=seed,
    )  # fmt: skip
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    assert judge.score(found.agent).competence == pytest.approx(1.0, abs=1e-9)
    value = found.agent.leaf.judge(found.agent.reward, 4, GAMMA).value
    exact = optimal_values(world.model, goal, gamma=GAMMA)
    assert np.corrcoef(value[judge.starts], exact[judge.starts])[0, 1] > 0.9


def test_noise_at_roots_keeps_priors_open_and_repeats(made: AlphaZero) -> None:
    play = SelfPlay(root_noise=0.25)
    how = TreeSettings(simulations=32, gamma=GAMMA)
    noisy = train_alphazero(WORLD, A, settings=how, play=play, seed=1)
    assert train_alphazero(WORLD, A, settings=how, play=play, seed=1).agent.digest == noisy.agent.digest
    least = [np.median(x.agent.tree_model.prior.min(1)) for x in (made, noisy)]
    assert least[0] < 1e-4 < 1e-3 < least[1]
    assert Yardstick.of(WORLD, A, gamma=GAMMA).score(noisy.agent).competence > 0.97


def test_noise_reaches_the_roots_and_nothing_below(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def spy(model: TreeModel, roots: np.ndarray, *, evaluate: Evaluate, **rest: object) -> Found:
        def told(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            value, prior = evaluate(states)
            asked.append((states, prior, model.prior))
            return value, prior

        return search(model, roots, evaluate=told, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(alphazero, "search", spy)
    train_alphazero(WORLD, A, settings=TreeSettings(simulations=3), play=SelfPlay(iterations=1, root_noise=0.25))
    assert len(asked) == 4
    (roots, noisy, prior), *below = asked
    assert np.array_equal(roots, np.arange(len(prior)))
    assert (noisy >= 0.75 * prior - 1e-12).all() and not np.isclose(noisy, prior).all(1).any()
    assert all(np.array_equal(p, whole[states]) for states, p, whole in below)


def test_training_asks_for_no_exact_value(made: AlphaZero, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise AssertionError("training looked at the solution")

    for module in (retarget.exact, policy_value, leaves, alphazero):
        for name in ("optimal_values", "best_actions", "reach_values", "action_values"):
            monkeypatch.setattr(module, name, refuse, raising=False)
    again = train_alphazero(WORLD, A, settings=TreeSettings(simulations=32, gamma=GAMMA), seed=1)
    assert again.agent.digest == made.agent.digest


def test_outcomes_on_one_way_are_powers_of_the_discount() -> None:
    """Along 0 → 1 → 2 → 3 → goal 4, and nowhere from 5: γ^(steps to go), exactly, and 0."""
    line = FiniteModel.deterministic([[1], [2], [3], [4], [4], [5]])
    starts = np.array([0, 2, 5])
    seen, steps, reached = episodes(line, np.ones((6, 1)), starts, retarget.StateGoal.of([4]), 0.9, stream(0, "line"))
    assert seen.visits.tolist() == [1, 1, 2, 2, 0, 12] and steps == 4 + 2 + 12 and reached == pytest.approx(2 / 3)
    assert np.allclose(seen.ends, [0.9**4, 0.9**3, 2 * 0.9**2, 2 * 0.9, 0, 0], rtol=1e-14)


def test_outcomes_of_episodes_average_to_the_values_of_the_policy() -> None:
    """n = 40,000 episodes on a ring of 6 with chance; false alarm below 1e-4 (four standard errors, 5 states)."""
    ring = np.array([[[(s + 1) % 6, s], [(s - 1) % 6, s]] for s in range(6)])
    model = FiniteModel(ring, np.broadcast_to([0.7, 0.3], ring.shape))
    acting = np.tile([0.8, 0.2], (6, 1))
    goal = retarget.StateGoal.of([0])
    exact = reach_values(model, acting, goal, gamma=0.9)
    # only first visits are independent: one state of start at a time, its own first step
    for s in range(1, 6):
        n = 8000
        first, _, _ = episodes(model, acting, np.full(n, s), goal, 0.9, stream(s, "ring"))
        assert first.visits[s] >= n and first.visits[0] == 0
        mean = first.ends[s] / first.visits[s]
        # the walk is cut at 2 S steps, which loses at most what is left by then; visits are correlated within episodes
        assert abs(mean - exact[s]) < 4 * 0.5 / np.sqrt(n) + 0.9 ** (2 * 6) * 0.5


@pytest.mark.parametrize(
    "bad",
    [{"rate": 0.0}, {"episodes": 0}, {"noise": 1.5}, {"updates": -1}, {"root_noise": 2.0}, {"concentration": 0.0}],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(RetargetError):
        SelfPlay(**bad)
