"""Inputs outside the training range of a world with continuous states, and episodes under disturbed observations.

The regimes and their dial are those of `retarget.shifted`. What is known are the observations that the agent itself
meets in undisturbed episodes; their range, `[low, high]` for each number of an observation, is the trained range.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.agent import Agent
from retarget.errors import GoalError, ProbeError
from retarget.goal import RegionGoal
from retarget.lessons import Lessons
from retarget.rng import stream
from retarget.shifted import check_dose
from retarget.trials import Actor, Traces, Trials, actor, follow, values
from retarget.world import BoxWorld


@dataclass(frozen=True, eq=False)
class Disturbance:
    """What happens to observations on their way to the agent.

    Attributes:
        replaced: probability, at each step, that a row drawn from `pool` stands in place of the observation.
        pool: float32 `[P, O]`, or None.
        offset: float64 `[O]` or `[N, O]` (one row an episode), added to every observation; or None.
        seed: names the stream of the draws.
    """

    replaced: float = 0.0
    pool: np.ndarray | None = None
    offset: np.ndarray | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_dose(self.replaced)
        if self.replaced and (self.pool is None or not len(self.pool)):
            raise ProbeError(f"observations are replaced with probability {self.replaced}, by none; give a pool")

    def apply(self, obs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Observations float32 `[B, O]` as the agent sees them."""
        if self.offset is not None:
            obs = (obs + self.offset).astype(np.float32)
        if self.replaced and self.pool is not None:
            hit = rng.random(len(obs)) < self.replaced
            drawn = self.pool[rng.integers(len(self.pool), size=len(obs))]
            obs = np.where(hit[:, None], drawn, obs).astype(np.float32)
        return obs


def trials_from(world: BoxWorld, goal: RegionGoal, starts: np.ndarray, *, gamma: float, seed: int) -> Trials:
    """`Trials` from starts that are given, float64 `[N, D]`, those left out from which the expert is of no use.

    Raises:
        GoalError: when that is all of them.
    """
    expert = world.expert(goal)
    traces = follow(world, lambda obs, state, carry: (expert.act(state), None), starts, goal)
    best = values(traces, goal, gamma=gamma, horizon=world.horizon)
    able = (best > 0) & (goal.hold | ~traces.inside[0])
    if not able.any():
        raise GoalError(
            f"the expert of {world.spec_data.label} reaches goal {goal.label} from none of {len(starts)} shifted "
            f"starts within {world.horizon} steps; choose another goal"
        )
    return Trials(world, goal, gamma, starts[able], best[able], int((~able).sum()), seed)


@dataclass(frozen=True, eq=False)
class Episodes:
    """Episodes of an agent under a disturbance.

    Attributes:
        ratios: float64 `[N]`, `V/V*` at each start.
        states: float64 `[M, D]`, states in which steps were taken.
        true: float32 `[M, O]`, their observations.
        seen: float32 `[M, O]`, what the agent saw there.
        row: int `[M]`, the episode that each is of.
    """

    ratios: np.ndarray
    states: np.ndarray
    true: np.ndarray
    seen: np.ndarray
    row: np.ndarray


def episodes(trials: Trials, agent: Agent, disturbance: Disturbance | None = None) -> Episodes:
    """Follow an agent from the starts. Without a disturbance, or with one of strength 0, these are the episodes that
    `Trials.traces` follows, bit for bit."""
    what = Disturbance() if disturbance is None else disturbance
    world = trials.world
    inner = actor(agent, world, rng=stream(trials.seed, "actions", world.spec_data.label))
    rng = stream(what.seed, "disturbance", world.spec_data.label)
    true: list[np.ndarray] = []
    seen: list[np.ndarray] = []

    def act(obs: np.ndarray, state: np.ndarray, carry: object) -> tuple[np.ndarray, object]:
        shown = what.apply(obs, rng)
        true.append(obs)
        seen.append(shown)
        return inner(shown, state, carry)

    traces = follow(world, act, trials.starts, trials.goal)
    ratios = trials.ratios(traces)
    n_seen = world.observation_size
    if not true:
        none = np.zeros((0, n_seen), np.float32)
        return Episodes(ratios, trials.starts[:0], none, none, np.zeros(0, np.int64))
    live = traces.live
    row = np.broadcast_to(np.arange(live.shape[1]), live.shape)[live]
    return Episodes(ratios, traces.states[:-1][live], np.stack(true)[live], np.stack(seen)[live], row)


@dataclass(frozen=True, eq=False)
class Range:
    """The trained range.

    Attributes:
        obs: float32 `[M, O]`, known observations.
        states: float64 `[M, D]`, the states they are of.
        low, high: float64 `[O]`.
        scale: float64 `[O]`, standard deviations (1 where a number never moves): the unit of distances.
    """

    obs: np.ndarray
    states: np.ndarray
    low: np.ndarray
    high: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, found: Episodes, *, most: int = 512, seed: int = 0) -> Range:
        """From undisturbed episodes: the range of all that was met, and at most `most` of it, drawn evenly."""
        if not len(found.true):
            raise ProbeError(
                "no step was taken in undisturbed episodes: there is no trained range; choose other starts"
            )
        rows = stream(seed, "known", len(found.true)).permutation(len(found.true))[:most]
        obs = found.true.astype(np.float64)
        spread = obs.std(0)
        scale = np.where(spread > 1e-9, spread, 1.0)
        return cls(found.true[rows], found.states[rows], obs.min(0), obs.max(0), scale)

    @property
    def width(self) -> np.ndarray:
        return np.asarray(self.high - self.low)

    def outside(self, obs: np.ndarray) -> np.ndarray:
        """Bool `[B]`: which observations have a number beyond the range."""
        return np.asarray(((obs < self.low - 1e-9) | (obs > self.high + 1e-9)).any(1))

    def distances(self, obs: np.ndarray, *, box: bool = False) -> np.ndarray:
        """Euclidean distances, in standard deviations, to the known observations: float64 `[B, M]`; with `box`, from
        the nearest point of the range."""
        points = np.clip(obs, self.low, self.high) if box else np.asarray(obs, dtype=np.float64)
        apart = (points[:, None] - self.obs[None].astype(np.float64)) / self.scale
        return np.asarray(np.sqrt((apart**2).sum(2)))


def offsets(known: Range, *, n: int, dose: float, seed: int) -> np.ndarray:
    """Regime 2: offsets float64 `[n, O]` of `dose` times the width of the range, up or down at random for each number
    of each episode."""
    sign = stream(seed, "offsets", n).choice((-1.0, 1.0), size=(n, len(known.width)))
    return np.asarray(check_dose(dose) * sign * known.width)


def mixed_starts(world: BoxWorld, known: Range, *, n: int, dose: float, seed: int, drawn: int = 512) -> np.ndarray:
    """Regime 3: starts float64 `[<= n, D]` whose numbers were each met, in two states that are not the same one, and no
    farther from a known observation than `dose` of the way through all such mixtures, ordered by that distance."""
    rng = stream(seed, "mixed_starts", world.spec_data.label)
    states = known.states
    first, second = (states[rng.integers(len(states), size=drawn)] for _ in range(2))
    columns = states.shape[1]
    take = rng.random((drawn, columns)).argsort(1) < (columns + 1) // 2
    mixed = np.where(take, first, second)
    far = known.distances(world.observe(mixed)).min(1)
    order = np.argsort(far, kind="stable")
    order = order[far[order] > 1e-9]
    kept = order[: int(np.ceil(check_dose(dose) * len(order)))]
    if not len(kept):
        return np.asarray(mixed[:0])
    # evenly over the distances, so that strength moves the mean of them too
    picks = np.unique(np.linspace(0, len(kept) - 1, min(n, len(kept))).astype(np.int64))
    return np.asarray(mixed[kept[picks]])


@dataclass(frozen=True, eq=False)
class OffsetAttack:
    """What an adversary found.

    Attributes:
        offset: float64 `[N, O]`, the worst one of each episode.
        ratios: float64 `[N]`, `V/V*` under it.
        trace: float64 `[budget]`, least mean competence found so far: never rising.
        each: float64 `[budget]`, mean competence under each offset that was tried.
    """

    offset: np.ndarray
    ratios: np.ndarray
    trace: np.ndarray
    each: np.ndarray


def offset_attack(
    trials: Trials, agent: Agent, bound: np.ndarray, *, budget: int, seed: int, adaptive: bool = True
) -> OffsetAttack:
    """Regime 4: for each start, the offset of its observations within `±bound` that leaves the least competence.

    The first half of the budget tries corners of the box, drawn at random (where damage that grows with the offset is
    largest); the second moves the worst found so far by a normal step of a third of the bound, cut to the box. Without
    `adaptive`, the control: offsets drawn evenly from the box, as many. An evaluation is one episode from each start.
    """
    if budget < 1:
        raise ProbeError(f"an attack needs a budget of 1 or more, got {budget}")
    rng = stream(seed, "offset_attack", trials.world.spec_data.label, adaptive)
    n, o = len(trials.starts), len(bound)
    best, ratios = np.zeros((n, o)), np.full(n, np.inf)
    trace: list[float] = []
    each: list[float] = []
    for i in range(budget):
        if not adaptive:
            tried = rng.uniform(-1.0, 1.0, (n, o)) * bound
        elif i < (budget + 1) // 2:
            tried = rng.choice((-1.0, 1.0), size=(n, o)) * bound
        else:
            tried = np.clip(best + rng.standard_normal((n, o)) * bound / 3.0, -bound, bound)
        found = episodes(trials, agent, Disturbance(offset=tried)).ratios
        worse = found < ratios
        best = np.where(worse[:, None], tried, best)
        ratios = np.where(worse, found, ratios)
        trace.append(float(ratios.mean()))
        each.append(float(found.mean()))
    return OffsetAttack(best, ratios, np.array(trace), np.array(each))


def lessons_from(trials: Trials) -> Lessons:
    """What the world's expert does in the episodes that it takes from the starts: data for fine-tuning on a narrow
    set.

    Raises:
        GoalError: when it takes no step.
    """
    world, expert = trials.world, trials.world.expert(trials.goal)
    traces: Traces = follow(world, _expert_actor(trials), trials.starts, trials.goal)
    states = traces.states[:-1][traces.live]
    if not len(states):
        raise GoalError(f"every start lies in goal {trials.goal.label} already; there is nothing to learn")
    actions = expert.act(states)
    if world.n_actions is not None:
        right = np.zeros((len(states), world.n_actions))
        right[np.arange(len(states)), actions] = 1.0
    else:
        right = np.asarray(actions, dtype=np.float64)
    return Lessons(world.observe(states), right, np.ones(len(states)))


def _expert_actor(trials: Trials) -> Actor:
    expert = trials.world.expert(trials.goal)
    return lambda obs, state, carry: (expert.act(state), None)
