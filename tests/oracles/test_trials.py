"""Estimated values against closed forms, on worlds small enough to know the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Agent, Part, Real
from retarget.envs import Axis, ControlWorld, Feature, StartBox, make_world
from retarget.errors import AgentError, GoalError, WorldError
from retarget.goal import RegionGoal, StateGoal
from retarget.judge import judge_of
from retarget.lessons import lessons_of
from retarget.rng import stream
from retarget.trials import Trials, choose, follow, values

law = settings(max_examples=40, deadline=None)


class Walk(ControlWorld):
    """A point on a line, one step of 1 left or right; below -10 is a pit, where the episode ends."""

    name = "Walk"
    state_names = ("place",)
    n_actions = 2
    steps = 30
    features = {"place": Feature(-12, 12, 0.5, column=0)}  # noqa: RUF012
    standard = StartBox((-4.0,), (4.0,))
    menu = (RegionGoal.of(place=(9.0, 0.5)), RegionGoal.of(hold=True, place=(9.0, 3.0)))
    grid = (Axis(-12, 12, 49),)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        after = np.clip(state + (2 * action - 1)[:, None], -12, 12)
        return after, after[:, 0] < -10


class Fork(ControlWorld):
    """Right is the goal, left is the pit, and either takes one step."""

    name = "Fork"
    state_names = ("place",)
    n_actions = 2
    steps = 10
    features = {"place": Feature(-1, 1, 0.25, column=0)}  # noqa: RUF012
    standard = StartBox((-0.1,), (0.1,))
    menu = (RegionGoal.of(place=(1.0, 0.25)),)
    grid = (Axis(-1, 1, 5),)

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (2.0 * action - 1)[:, None], action == 0


class Slide(ControlWorld):
    """A point that moves by its action, within 1 either way, in the plane."""

    name = "Slide"
    state_names = ("x", "y")
    action_range = (np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    steps = 12
    features = {"x": Feature(-9, 9, 0.5, column=0), "y": Feature(-9, 9, 0.5, column=1)}  # noqa: RUF012
    standard = StartBox((-3.0, 0.0), (3.0, 0.0))
    menu = (RegionGoal.of(x=(5.0, 0.5)),)
    grid = (Axis(-9, 9, 37), Axis(-9, 9, 37))
    levels = 3

    def dynamics(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.clip(state + action, -9, 9), np.zeros(len(state), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Steady(Agent):
    """The same distribution everywhere, over two actions."""

    right: float = 1.0
    kind = "steady"

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"right": Part("right", "weight", np.array([self.right]), Real())}

    def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> Steady:
        return replace(self, right=float(arrays["right"][0]))

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return np.tile([1 - self.right, self.right], (len(obs), 1)), None

    def blank(self, seed: int) -> Steady:
        return Steady(0.5)

    @property
    def flops_per_action(self) -> float:
        return 3.0


@dataclass(frozen=True, eq=False)
class Pusher(Steady):
    """Pushes by `right` on both axes, with a standard deviation."""

    spread: float = 0.0

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        with np.errstate(divide="ignore"):
            log = np.log(self.spread)
        return np.broadcast_to(np.array([[self.right] * 2, [log] * 2]), (len(obs), 2, 2)).copy(), None


def right(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
    return np.ones(len(obs), dtype=np.int64), None


# -- closed forms -------------------------------------------------------------------------------------------------


@law
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=9), st.floats(5.1, 9), st.floats(0.5, 2), st.floats(0.5, 0.999))
def test_reaching_is_gamma_to_the_first_step_inside(
    places: list[float], centre: float, width: float, gamma: float
) -> None:
    world = Walk()
    goal = RegionGoal.of(place=(centre, width))
    traces = follow(world, right, np.array(places)[:, None], goal)
    value = values(traces, goal, gamma=gamma, horizon=world.horizon)
    for place, found in zip(places, value, strict=True):
        steps = next(t for t in range(40) if abs(place + t - centre) <= width + 1e-9)
        assert found == pytest.approx(gamma**steps, rel=1e-12)
    assert traces.n_steps == sum(next(t for t in range(40) if abs(p + t - centre) <= width + 1e-9) for p in places)


@law
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=9), st.floats(-9, 9), st.floats(0.1, 4), st.floats(0.5, 0.999))
def test_holding_is_the_discounted_share_of_steps_inside(
    places: list[float], centre: float, width: float, gamma: float
) -> None:
    world = Walk()
    goal = RegionGoal.of(hold=True, place=(centre, width))
    traces = follow(world, right, np.array(places)[:, None], goal)
    value = values(traces, goal, gamma=gamma, horizon=world.horizon)
    whole = sum(gamma**t for t in range(world.horizon + 1))
    for place, found in zip(places, value, strict=True):
        spots = [place]
        for _ in range(world.horizon):
            spots.append(min(spots[-1] + 1, 12.0))
        inside = sum(gamma**t for t, p in enumerate(spots) if abs(p - centre) <= width + 1e-9)
        assert found == pytest.approx(inside / whole, rel=1e-9, abs=1e-12)


def test_nothing_counts_once_the_world_has_ended_the_episode() -> None:
    world = Walk()
    goal = RegionGoal.of(hold=True, place=(0.0, 50.0))

    def left(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
        return np.zeros(len(obs), dtype=np.int64), None

    traces = follow(world, left, np.array([[-8.5], [0.5]]), goal)
    # from -8.5 the second step falls (-10.5): times 0 and 1 count; from 0.5 the eleventh does
    assert traces.inside.sum(0).tolist() == [2, 11]
    assert traces.live.sum(0).tolist() == [2, 11]
    assert (traces.states[3:, 0] == traces.states[2, 0]).all()
    gamma = 0.9
    value = values(traces, goal, gamma=gamma, horizon=world.horizon)
    whole = sum(gamma**t for t in range(world.horizon + 1))
    np.testing.assert_allclose(value, [sum(gamma**t for t in range(k)) / whole for k in (2, 11)], rtol=1e-12)
    pit = RegionGoal.of(place=(-11.0, 1.0))
    assert not follow(world, left, np.array([[-8.5]]), pit).inside.any()  # to fall into a goal is not to reach it


def test_the_competence_of_a_known_policy_is_its_closed_form() -> None:
    # at every step right with probability p, else the pit: reached in one step with probability p, V* = gamma
    world, p, n = Fork(), 0.7, 4000
    trials = Trials.of(world, world.goal, gamma=world.gamma, n=n)
    assert (trials.best == world.gamma).all() and trials.n_excluded == 0
    score = trials.score(Steady(p))
    margin = 6 * (p * (1 - p) / n) ** 0.5  # 6 standard errors: false alarms below 1e-8
    assert abs(score.competence - p) < margin
    assert score.success == pytest.approx(score.competence, abs=1e-12)
    assert abs(trials.uniform_competence - 0.5) < 6 * (0.25 / n) ** 0.5
    assert score.ci_low < score.competence < score.ci_high
    assert score.ci_high - score.ci_low == pytest.approx(2 * 1.96 * (p * (1 - p) / (n - 1)) ** 0.5, rel=0.05)
    assert (score.n, score.env_steps, score.flops) == (n, n, 3.0 * n)
    assert trials.score(Steady(1.0)).competence == 1.0 and trials.score(Steady(0.0)).competence == 0.0


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    # 300 experiments of 100 starts: 95% +- 6 standard errors of a share, and the normal interval's own small deficit
    world, p = Fork(), 0.6
    hits = 0
    for seed in range(300):
        score = Trials.of(world, world.goal, gamma=world.gamma, n=100, seed=seed).score(Steady(p))
        hits += score.ci_low <= p <= score.ci_high
    assert abs(hits / 300 - 0.95) < 6 * (0.95 * 0.05 / 300) ** 0.5 + 0.01


def test_a_wanderer_in_walk_is_worth_what_its_chain_says() -> None:
    # the value of a policy on the integers, by propagating the exact distribution of its place
    world, p, gamma, n = Walk(), 0.75, 0.95, 4000
    goal = RegionGoal.of(place=(5.0, 0.5))
    starts = np.zeros((n, 1))
    chance, exact = {0: 1.0}, 0.0
    for t in range(1, world.horizon + 1):
        moved: dict[int, float] = {}
        for place, mass in chance.items():
            for step, share in ((1, p), (-1, 1 - p)):
                moved[place + step] = moved.get(place + step, 0.0) + mass * share
        exact += gamma**t * moved.pop(5, 0.0)
        chance = {place: mass for place, mass in moved.items() if place >= -10}
    trials = Trials(world, goal, gamma, starts, np.full(n, 1.0), 0, 0)
    score = trials.score(Steady(p))
    assert abs(score.competence - exact) < 6 * 0.5 / n**0.5
    trials_worth = values(trials.traces(Steady(p)), goal, gamma=gamma, horizon=world.horizon)
    assert abs(trials_worth.mean() - exact) < 6 * trials_worth.std() / n**0.5


def test_continuous_actions_are_drawn_clipped_and_counted() -> None:
    world = Slide()
    trials = Trials.of(world, world.goal, gamma=world.gamma, n=64)
    full = trials.score(Pusher(1.0))
    assert full.competence == pytest.approx(1.0, abs=1e-12) and full.success == 1.0
    assert trials.score(Pusher(7.0)) == full  # beyond the range: clipped
    assert trials.score(Pusher(-1.0)).competence == 0.0
    steps = np.ceil(4.5 - trials.starts[:, 0] - 1e-9)
    np.testing.assert_allclose(trials.best, world.gamma**steps, rtol=1e-9)
    half = trials.score(Pusher(0.5))
    # half speed: of the starts that make it in 12 steps, gamma to twice the way, rounded up to whole steps
    slow = np.ceil((4.5 - trials.starts[:, 0]) / 0.5 - 1e-9)
    assert half.competence == pytest.approx(float(np.where(slow <= 12, world.gamma ** (slow - steps), 0).mean()))
    drawn = choose(np.tile([[[0.3], [np.log(0.5)]]], (40000, 1, 1)), stream(0, "draws"))[:, 0]
    assert abs(drawn.mean() - 0.3) < 6 * 0.5 / 200 and abs(drawn.std() - 0.5) < 6 * 0.5 / 280


def test_draws_follow_their_distribution() -> None:
    n, share = 60000, np.array([0.1, 0.0, 0.65, 0.25])
    drawn = choose(np.tile(share, (n, 1)), stream(0, "draws"))
    count = np.bincount(drawn, minlength=4) / n
    assert count[1] == 0
    assert (np.abs(count - share) <= 6 * np.sqrt(share * (1 - share) / n)).all()
    assert choose(np.array([[0.0, 1.0], [1.0, 0.0]]), stream(0, "draws")).tolist() == [1, 0]


# -- laws ---------------------------------------------------------------------------------------------------------


@law
@given(st.floats(0, 1), st.floats(-9, 9), st.floats(0.5, 4), st.booleans(), st.integers(0, 2**40), st.integers(1, 40))
def test_everything_is_between_0_and_1_and_the_same_again(
    p: float, centre: float, width: float, hold: bool, seed: int, n: int
) -> None:
    world = Walk()
    goal = RegionGoal.of(hold=hold, place=(centre, width))
    try:
        trials = Trials.of(world, goal, gamma=world.gamma, n=n, seed=seed)
    except GoalError as error:
        assert "reaches" in str(error)
        return
    assert len(trials.starts) == len(trials.best) == n - trials.n_excluded
    assert (trials.best > 0).all() and (trials.best <= 1).all()
    score = trials.score(Steady(p))
    assert 0 <= score.ci_low <= score.competence <= score.ci_high <= 1 and 0 <= score.success <= 1
    assert 0 <= trials.uniform_competence <= 1
    assert score == Trials.of(world, goal, gamma=world.gamma, n=n, seed=seed).score(Steady(p))
    assert 0 <= trials.beaten(Steady(p)) <= 1


@law
@given(st.integers(0, 2**40), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_the_order_of_starts_does_not_matter_to_an_agent_that_is_sure(seed: int, hold: bool, p: float) -> None:
    world = Walk()
    goal = RegionGoal.of(hold=hold, place=(3.0, 1.5))
    trials = Trials.of(world, goal, gamma=world.gamma, n=30, seed=seed)
    order = np.random.default_rng(seed).permutation(len(trials.starts))
    shuffled = replace(trials, starts=trials.starts[order], best=trials.best[order])
    one, other = trials.traces(Steady(p)), shuffled.traces(Steady(p))
    np.testing.assert_allclose(trials.ratios(one)[order], shuffled.ratios(other), atol=1e-12)
    np.testing.assert_allclose(trials.score(Steady(p)).competence, shuffled.score(Steady(p)).competence, atol=1e-12)
    alone = replace(trials, starts=trials.starts[:1], best=trials.best[:1])
    assert alone.ratios(alone.traces(Steady(p)))[0] == pytest.approx(trials.ratios(one)[0], abs=1e-12)


def test_search_and_test_starts_differ_and_agents_share_them() -> None:
    world = Walk()
    search, test = (Trials.of(world, world.goal, gamma=0.9, n=20, purpose=p) for p in ("search", "test"))
    assert not np.array_equal(search.starts, test.starts)
    np.testing.assert_array_equal(search.starts, Trials.of(world, world.goal, gamma=0.5, n=20).starts)


def test_the_expert_of_a_world_scores_1_and_is_not_beaten() -> None:
    world = Walk()
    for goal in world.goals:
        trials = Trials.of(world, goal, gamma=world.gamma, n=50)
        act = world.expert(goal).act
        shown = follow(world, lambda obs, state, carry, act=act: (act(state), None), trials.starts, goal)
        assert trials.score_traces(shown).competence == 1.0
        assert trials.beaten(Steady(0.5)) == 0.0


def test_goals_that_nothing_reaches_and_starts_that_count_for_nothing() -> None:
    world = Walk(horizon=5)
    with pytest.raises(GoalError, match="from none of 16 starts within 5 steps"):
        Trials.of(world, RegionGoal.of(place=(11.0, 0.5)), gamma=0.9, n=16)
    trials = Trials.of(world, RegionGoal.of(place=(2.0, 1.0)), gamma=0.9, n=64)
    inside = np.abs(world.starts(64, rng=stream(0, "starts", world.spec_data.label, "search"))[:, 0] - 2) <= 1
    assert 0 < inside.sum() <= trials.n_excluded < 64
    assert not world.inside(trials.starts, trials.goal).any()


@pytest.mark.parametrize(
    ("out", "word"),
    [([[0.5, 0.5, 0.0]], "shape"), ([[0.7, 0.7]], "no distribution"), ([[1.5, -0.5]], "no distribution"),
     ([[np.nan, 1.0]], "NaN")],
)  # fmt: skip
def test_what_is_no_distribution_is_refused(out: list[list[float]], word: str) -> None:
    class Odd(Steady):
        def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
            return np.repeat(np.array(out), len(obs), axis=0), None

    trials = Trials.of(Fork(), Fork().goal, gamma=0.9, n=4)
    with pytest.raises(AgentError, match=word):
        trials.score(Odd())


def test_one_verb_judges_both_kinds_of_worlds() -> None:
    box, grid = make_world("MountainCar"), make_world("OpenGrid", size=5)
    assert isinstance(judge_of(box, box.goal, gamma=box.gamma, n=4), Trials)
    assert not isinstance(judge_of(grid, grid.goal, gamma=0.9), Trials)
    for world, goal in ((box, StateGoal.of([0])), (grid, box.goal)):
        with pytest.raises(WorldError, match="as_goal"):
            judge_of(world, goal, gamma=0.9)


# -- lessons ------------------------------------------------------------------------------------------------------


def test_lessons_are_the_experts_actions_where_it_went() -> None:
    world = Walk()
    lessons = lessons_of(world, world.goal, gamma=world.gamma, n=8)
    assert len(lessons) == 8 * lessons.steps and lessons.obs.dtype == np.float32
    weighed = lessons.weight > 0
    np.testing.assert_array_equal(lessons.right[weighed], np.tile([0.0, 1.0], (weighed.sum(), 1)))
    starts = world.starts(8, rng=stream(0, "lesson_starts", world.spec_data.label))[:, 0]
    whole = np.ceil(8.5 - starts - 1e-9)
    np.testing.assert_array_equal(weighed.reshape(8, -1).sum(1), whole)  # the steps of each episode, and no others
    assert lessons.weight[weighed] == pytest.approx(1 / whole.sum())


def test_lessons_where_another_agent_went_still_show_the_experts_actions() -> None:
    world = Walk()
    lessons = lessons_of(world, world.goal, gamma=world.gamma, n=8, visited_by=Steady(0.0))
    weighed = lessons.weight > 0
    assert (lessons.obs[weighed, 0] < 4).all() and (lessons.right[weighed, 1] == 1).all()
    slide = Slide()
    shown = lessons_of(slide, slide.goal, gamma=slide.gamma, n=4)
    assert shown.right.shape[1] == 2 and (shown.right[shown.weight > 0, 0] >= -1).all()
