"""Learning by interaction in the paper's domains: MC-AIXI with factored context trees and ρUCT, and what it reaches."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.bayes.ctw import Coding
from retarget.bayes.domains import MOST_SIMULATIONS, Domain
from retarget.bayes.solve import Solution, solve
from retarget.errors import RetargetError
from retarget.rng import stream, word

if TYPE_CHECKING:
    from retarget.bayes.kernels import Nodes
    from retarget.bayes.rho_uct import Rules, Scratch

#: What each domain was found to need to be played as well as can be, on two cores within minutes: arguments of `learn`.
#: The paper's own settings look further back and learn for longer.
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "1d_maze": {"cycles": 5000, "simulations": 50, "depth": 24, "decay": 0.999, "evaluation_simulations": 500},
    "4x4_grid": {
        "cycles": 30_000, "simulations": 30, "depth": 40, "epsilon": 1.0, "decay": 0.9999,
        "evaluation_simulations": 1000, "evaluation": 2000,
    },
    "biased_rps": {
        "cycles": 10_000, "simulations": 50, "depth": 12, "horizon": 2, "decay": 0.9998, "bonus": 0.5,
        "evaluation_simulations": 500,
    },
    "cheese_maze": {
        "cycles": 30_000, "simulations": 50, "depth": 36, "decay": 0.9999, "evaluation_simulations": 500,
        "evaluation": 2000,
    },
    "kuhn_poker": {
        "cycles": 20_000, "simulations": 50, "depth": 14, "horizon": 1, "decay": 0.9999, "bonus": 0.5,
        "evaluation_simulations": 1000,
    },
    "tiger": {
        "cycles": 60_000, "simulations": 30, "depth": 33, "epsilon": 1.0, "decay": 0.99997,
        "evaluation_simulations": 4000, "evaluation": 500,
    },
}  # fmt: skip

#: Counts beyond these would take all memory before anything is found.
MOST_CYCLES, MOST_HORIZON = 10_000_000, 10_000

#: Cycles between looks at how much memory is left.
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class Learned:
    """What an agent knows after a while in a domain: a model, and where it stands.

    The model predicts reward *symbols*. What they are worth is given with each decision, so that the goal can be
    rewritten without learning anything anew.

    Attributes:
        domain: where it was learned.
        coding: how cycles are written.
        nodes: the compiled model with its history; never written to, `evaluate` works on a copy.
        state: where the domain is (the agent does not know).
        actions, percepts: int64 `[T]`, all cycles so far.
        horizon, simulations, bonus: of its decisions.
        seed: names the random numbers.
    """

    domain: Domain
    coding: Coding
    nodes: Nodes
    state: int
    actions: np.ndarray
    percepts: np.ndarray
    horizon: int
    simulations: int
    bonus: float
    seed: int

    def decision(self, rewards: np.ndarray | None = None, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Simulations and mean return (over the horizon) of each action now: int64 `[A]`, float64 `[A]`."""
        from retarget.bayes.kernels import copy_nodes, roomy
        from retarget.bayes.rho_uct import search

        worth, low, high = _worth(self.domain, rewards)
        nodes, scratch = roomy(copy_nodes(self.nodes), self.coding, self.horizon + 1), self._scratch()
        key = np.uint64(word(seed, "rho_uct_decision", self.domain.name, len(self.actions)))
        search(nodes, scratch, self._rules(), worth, low, high, key)
        return scratch.tries[0].copy(), scratch.mean[0] + low * self.horizon

    def _scratch(self) -> Scratch:
        from retarget.bayes.rho_uct import new_scratch

        return new_scratch(self.coding, self.domain.n_actions, self.horizon, self.simulations)

    def _rules(self) -> Rules:
        from retarget.bayes.rho_uct import Rules

        c = self.coding
        return Rules(
            self.domain.n_actions, c.action_bits, c.percept_bits, c.reward_bits, c.depth, self.horizon,
            self.simulations, self.bonus,
        )  # fmt: skip


@dataclass(frozen=True)
class Average:
    """Mean reward of a run of cycles.

    Attributes:
        mean: reward a cycle.
        error: its standard error, by means of batches (rewards of neighbouring cycles are not independent).
        n: cycles.
        given_away: mean of what the actions gave away against the best ones, in reward a cycle; None where not solved.
        given_away_error: its standard error, likewise.
    """

    mean: float
    error: float
    n: int
    given_away: float | None = None
    given_away_error: float | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the mean."""
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


@dataclass(frozen=True, eq=False)
class Curve:
    """How learning went.

    Attributes:
        domain: name.
        optimal: best average reward, exact.
        cycles: int64 `[H]`, ends of the stretches that `average` is over; they double.
        average: float64 `[H]`, mean reward of each stretch, exploration included.
        bits_per_cycle: float64 `[H]`, bits that the model needed for a cycle's percept in each stretch.
        evaluation: without exploration, after learning.
        simulations: of one decision in the evaluation.
        seconds: wall time of learning and evaluation.
        learned: what it knows.
    """

    domain: str
    optimal: float
    cycles: np.ndarray
    average: np.ndarray
    bits_per_cycle: np.ndarray
    evaluation: Average
    simulations: int
    seconds: float
    learned: Learned

    @property
    def reached(self) -> bool:
        """Whether the interval of the evaluation holds the best average reward (or lies above it)."""
        return self.evaluation.interval[1] >= self.optimal

    def as_dict(self) -> dict[str, object]:
        """A row of plain numbers."""
        e = self.evaluation
        return {
            "domain": self.domain, "optimal": self.optimal, "average": e.mean, "low": e.interval[0],
            "high": e.interval[1], "n": e.n, "given_away": e.given_away, "reached": self.reached,
            "cycles": int(self.cycles[-1]), "simulations": self.simulations, "seconds": self.seconds,
        }  # fmt: skip


def learn(
    domain: Domain,
    *,
    cycles: int,
    simulations: int,
    seed: int,
    evaluation: int = 5000,
    evaluation_simulations: int | None = None,
    depth: int | None = None,
    horizon: int | None = None,
    epsilon: float | None = None,
    decay: float | None = None,
    bonus: float = math.sqrt(2.0),
    rewards: np.ndarray | None = None,
) -> Curve:
    """Learn a domain by acting in it, then measure the average reward without exploration or learning.

    Args:
        domain: where.
        cycles: of learning.
        simulations: of one decision.
        seed: names all random numbers.
        evaluation: cycles of the measurement.
        evaluation_simulations: of one decision in the measurement; as in learning without.
        depth, horizon, epsilon, decay: as in `Settings`; the paper's without.
        bonus: weight of the confidence bound.
        rewards: float64 `[2**reward_bits]`, what each reward symbol is worth; the domain's own without.

    Raises:
        RetargetError: on numbers that make no sense, with the least that does.

    >>> from retarget.bayes.domains import one_d_maze
    >>> curve = learn(one_d_maze(), cycles=1000, simulations=50, seed=0, evaluation=400, depth=12)
    >>> round(curve.optimal, 6), 0.4 < curve.evaluation.mean < 0.6
    (0.5, True)
    """
    s = domain.settings
    eps, dec = s.epsilon if epsilon is None else epsilon, s.decay if decay is None else decay
    ahead = s.horizon if horizon is None else horizon
    _check_counts(
        cycles=(cycles, MOST_CYCLES), evaluation=(evaluation, MOST_CYCLES), horizon=(ahead, MOST_HORIZON),
        simulations=(simulations, MOST_SIMULATIONS),
        evaluation_simulations=(simulations if evaluation_simulations is None else evaluation_simulations,
                                MOST_SIMULATIONS),
    )  # fmt: skip
    if not (0 <= eps <= 1 and 0 <= dec <= 1 and bonus >= 0):
        raise RetargetError(f"epsilon and decay must lie in [0, 1] and bonus above 0, got {eps!r}, {dec!r}, {bonus!r}")
    begin = time.perf_counter()
    best = solve(domain, rewards)
    fresh = _fresh(domain, domain.coding(depth), ahead, simulations, bonus, seed)
    after, log_p = _run(fresh, cycles, rewards=rewards, epsilon=eps, decay=dec, learning=True, purpose="learn")
    measured = evaluate(after, cycles=evaluation, rewards=rewards, solution=best, simulations=evaluation_simulations)
    ends = _doubling(cycles)
    worth = _worth(domain, rewards)[0][after.percepts & ((1 << domain.reward_bits) - 1)]
    begins = np.concatenate([[0], ends[:-1]])
    mean = np.array([worth[a:b].mean() for a, b in zip(begins, ends, strict=True)])
    bits = np.array([-log_p[a:b].sum() / math.log(2) / (b - a) for a, b in zip(begins, ends, strict=True)])
    seconds = time.perf_counter() - begin
    return Curve(
        domain.name, best.average, ends, mean, bits, measured, evaluation_simulations or simulations, seconds, after
    )


def evaluate(
    learned: Learned, *, cycles: int, rewards: np.ndarray | None = None, solution: Solution | None = None,
    simulations: int | None = None, seed: int | None = None,
) -> Average:  # fmt: skip
    """Average reward of an agent that neither explores nor learns; only its history goes on.

    Args:
        learned: what it knows.
        cycles: to measure over.
        rewards: what each reward symbol is worth: another goal than it was learned with, perhaps.
        solution: of the domain with these rewards, for what is given away.
        simulations: of one decision; as in learning without.
        seed: names the random numbers; the one of learning without.

    Raises:
        RetargetError: for counts out of range, or rewards that do not fit.
    """
    _check_counts(
        cycles=(cycles, MOST_CYCLES),
        simulations=(learned.simulations if simulations is None else simulations, MOST_SIMULATIONS),
    )
    changed = replace(
        learned,
        simulations=learned.simulations if simulations is None else simulations,
        seed=learned.seed if seed is None else seed,
    )
    after, _ = _run(changed, cycles, rewards=rewards, epsilon=0.0, decay=1.0, learning=False, purpose="evaluate")
    domain, n = learned.domain, len(learned.actions)
    got = _worth(domain, rewards)[0][after.percepts[n:] & ((1 << domain.reward_bits) - 1)]
    mean, error = batch_mean(got)
    if solution is None:
        return Average(mean, error, cycles)
    lost, lost_error = batch_mean(solution.given_away(after.actions, after.percepts)[n:])
    return Average(mean, error, cycles, lost, lost_error)


def _check_counts(**counts: tuple[object, int]) -> None:
    """Raise RetargetError unless each count, given with the most it may be, is a whole number from 1 to that."""
    for what, (n, most) in counts.items():
        if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
            raise RetargetError(f"{what} must be a whole number from 1 to {most}, got {n!r}")


def batch_mean(values: np.ndarray, *, batches: int = 30) -> tuple[float, float]:
    """Mean of a series and its standard error, from the spread of the means of equal batches.

    >>> batch_mean(np.ones(90))
    (1.0, 0.0)
    """
    size = max(1, len(values) // batches)
    whole = values[: len(values) // size * size].reshape(-1, size).mean(1)
    spread = float(whole.std(ddof=1)) if len(whole) > 1 else 0.0
    return float(values.mean()), spread / math.sqrt(len(whole))


def _fresh(domain: Domain, coding: Coding, horizon: int, simulations: int, bonus: float, seed: int) -> Learned:
    from retarget.bayes.kernels import new_nodes

    start = int(stream(seed, "aixi_start", domain.name).choice(domain.n_states, p=domain.start))
    none = np.zeros(0, np.int64)
    return Learned(domain, coding, new_nodes(coding, 4096), start, none, none, horizon, simulations, bonus, seed)


def _worth(domain: Domain, rewards: np.ndarray | None) -> tuple[np.ndarray, float, float]:
    worth = domain.rewards if rewards is None else np.array(rewards, np.float64)
    if worth.shape != domain.rewards.shape or not np.isfinite(worth).all():
        raise RetargetError(f"rewards of {domain.name!r} must be finite numbers of shape {domain.rewards.shape}")
    known = worth[domain.symbols]
    return worth, float(known.min()), float(known.max())


def _run(
    learned: Learned, cycles: int, *, rewards: np.ndarray | None, epsilon: float, decay: float, learning: bool,
    purpose: str,
) -> tuple[Learned, np.ndarray]:  # fmt: skip
    """So many cycles more: what is known then, and the log of each percept's probability (evenly over a chunk)."""
    from retarget.bayes.kernels import copy_nodes, roomy
    from retarget.bayes.rho_uct import interact

    domain = learned.domain
    worth, low, high = _worth(domain, rewards)
    nodes, scratch, rules = copy_nodes(learned.nodes), learned._scratch(), learned._rules()
    actions, percepts = np.zeros(cycles, np.int64), np.zeros(cycles, np.int64)
    explored, log_p = np.zeros(cycles, np.bool_), np.zeros(cycles)
    key = np.uint64(word(learned.seed, f"aixi_{purpose}", domain.name, len(learned.actions)))
    cumulative = np.cumsum(domain.prob, axis=2)
    state = learned.state
    for first in range(0, cycles, _CHUNK):
        last = min(first + _CHUNK, cycles)
        nodes = roomy(nodes, learned.coding, last - first + learned.horizon + 1)
        state, p = interact(
            nodes, scratch, rules, worth, low, high, key, cumulative, domain.next_state, domain.observation,
            domain.symbol, state, first, last, epsilon, decay, learning, actions, percepts, explored,
        )  # fmt: skip
        log_p[first:last] = p / (last - first)
    after = replace(
        learned, nodes=nodes, state=int(state), actions=np.concatenate([learned.actions, actions]),
        percepts=np.concatenate([learned.percepts, percepts]),
    )  # fmt: skip
    return after, log_p


def _doubling(n: int) -> np.ndarray:
    ends = [n]
    while ends[0] > 1 and len(ends) < 12:
        ends.insert(0, (ends[0] + 1) // 2)
    return np.array(ends, np.int64)
