"""Retargetability over a goal's orbit: what an agent does as its goal is moved to every place that goals can have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from retarget.agent import Agent, HasGoalSlot, Trainable
from retarget.editors.slot import slot_edit
from retarget.errors import AgentError, GoalError, ProbeError
from retarget.exact import Yardstick
from retarget.goal import StateGoal
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.regions import steps_to
from retarget.rng import stream
from retarget.row import Kind, Measurement
from retarget.world import FiniteModel, FiniteWorld

SLOT, RETRAINED, NONE = "written into its slot", "retrained toward it", "it takes no parameter: left as it is"
#: Simulations of decisions that the whole orbit may take of an agent that searches in each state, but `FEWEST` goals.
SIMULATIONS, FEWEST = 65_536, 8


class OrbitRetargetability(Probe):
    """Parametric retargetability (source: Turner and Tadepalli 2022): an agent with a parameter θ, which names a goal,
    as θ runs over the orbit of goal A.

    The orbit are the world's goals of as many states as A: what A becomes when the states that goals may have are
    renamed in every way. θ is given through the goal slot, or by retraining; an agent that takes neither is left as it
    is. What the agent then does is told by the goal that it does best (highest exact competence).

    `orbit_reached` is the share of the orbit for which the agent given θ reaches the goal of θ at the required level:
    1 for an agent that any goal can be given to, and 1/n for one that reaches A alone whatever it is told, n the size
    of the orbit. No search is made.

    For the theorem, the orbit is split into a small set A (the quarter nearest to goal A) and a large one, B, with n =
    floor(|B| / |A|) disjoint copies of A in it. With `f_X(θ)` the competence of the agent given θ on its best goal of
    X, `orbit_ratio = #{θ: f_B > f_A} / #{θ: f_A > f_B}`; an agent that is retargetable n-fold from A to B has a ratio
    of at least n ("for most of the orbit"), and `orbit_holds` says whether this one has. Where f_A = f_B, θ counts for
    neither.

    Args:
        most: goals of the orbit at most; where there are more, A and others drawn from a stream named by the seed.
        episodes: budget of retraining for each goal.

    Raises:
        ProbeError: for options out of range.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> subject = retarget.Subject(exact_planner(world, world.goals[0]), world, world.goals[0])
    >>> outcome = OrbitRetargetability().measure(subject)
    >>> outcome["orbit_reached"].value, outcome["orbit_prefers_b"].value, outcome["orbit_holds"].value
    (1.0, 0.76, 1.0)
    """

    name: ClassVar[str] = "orbit_retargetability"
    kind: ClassVar[Kind] = "characterization"
    metrics: ClassVar = {
        "orbit_size": Metric("goals", "goals of the orbit that were tried", 1.0, None),
        "orbit_reached": Metric("1", "share of them that the agent reaches, once it is given them", 0.0, 1.0),
        "orbit_reached_constant": Metric("1", "control: the same of the agent left as it is", 0.0, 1.0),
        "orbit_prefers_b": Metric("1", "share for which it does a goal of the larger set best", 0.0, 1.0),
        "orbit_prefers_a": Metric("1", "share for which it does a goal of the smaller set best", 0.0, 1.0),
        "orbit_ratio": Metric("1", "orbit_prefers_b / orbit_prefers_a", 0.0, None),
        "orbit_multiple": Metric("1", "n: how often the smaller set fits into the larger", 1.0, None),
        "orbit_holds": Metric("1", "1 where orbit_prefers_b is at least n times orbit_prefers_a, else 0", 0.0, 1.0),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(self, *, most: int = 48, episodes: int = 256) -> None:
        for name, value, low in (("most", most, 2), ("episodes", episodes, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ProbeError(f"{name} must be a whole number of at least {low}, got {value!r}")
        self.most, self.episodes = most, episodes

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        world, goal = subject.world, subject.goal_a
        if not isinstance(world, FiniteWorld) or not isinstance(goal, StateGoal):
            return self.all_not_applicable("states cannot be listed here: the world is not finite")
        try:
            judge = Yardstick.of(world, goal, gamma=subject.gamma)
            own = judge.score(subject.agent).competence
            uniform = judge.uniform_competence
            if own <= uniform + 1e-9:
                raise AgentError(
                    f"its competence on A ({own:.4g}) is not above a uniform policy's ({uniform:.4g}): "
                    "it has no goal to move"
                )
            orbit = Orbit.of(world, goal, gamma=subject.gamma, most=self._most(subject.agent), seed=subject.seed)
            still = orbit.competences(subject.agent)
        except (AgentError, GoalError) as error:
            return self.all_not_applicable(str(error))
        parts: list[list[Measurement]] = []
        for how in _ways(subject.agent):
            if progress is not None:
                progress(len(parts) / 2, how)
            parts.append(self._given(subject, orbit, how, still, subject.level * own))
        return Outcome(tuple(m for name in self.metrics for rows in parts for m in rows if m.metric == name))

    def _most(self, agent: Agent) -> int:
        hard = 0 if agent.plans_once else agent.simulations_per_action
        return self.most if not hard else max(min(self.most, FEWEST), min(self.most, SIMULATIONS // hard))

    def _given(self, subject: Subject, orbit: Orbit, how: str, still: np.ndarray, required: float) -> list[Measurement]:
        words = how if how != RETRAINED else f"{how}, {self.episodes} episodes"
        protocol = f"each goal of the orbit is {words}" if how != NONE else words
        try:
            done = np.array([
                still if agent is None else orbit.competences(agent)
                for agent in (_given(subject, orbit.world, g, how, self.episodes) for g in orbit.goals)
            ])  # fmt: skip
        except (AgentError, GoalError) as error:
            return [Measurement.not_applicable(n, str(error), protocol=protocol) for n in self.metrics]
        return orbit.rows(done, still, required, protocol)


def _ways(agent: Agent) -> tuple[str, ...]:
    """How a goal can be given: by the slot where there is one; else by retraining, beside the agent left as it is."""
    if isinstance(agent, HasGoalSlot) and agent.slot_candidates():
        return (SLOT,)
    return (NONE, RETRAINED) if isinstance(agent, Trainable) else (NONE,)


def _given(subject: Subject, world: FiniteWorld, goal: StateGoal, how: str, episodes: int) -> Agent | None:
    """The agent given a goal; None where that leaves it as it is (a slot that cannot hold this goal, say)."""
    agent = subject.agent
    if how == SLOT and isinstance(agent, HasGoalSlot):
        writes = agent.slot_writes(goal)
        return slot_edit(agent, writes[0]).apply(agent) if writes else None
    if how == RETRAINED and isinstance(agent, Trainable):
        return agent.retrained(world, goal, budget=episodes, seed=subject.seed)[0]
    return None


@dataclass(frozen=True, eq=False)
class Orbit:
    """The goals that goal A can become, with their judges.

    Attributes:
        world: where.
        goals: n of them, A the first.
        judges: one a goal.
        small: bool `[n]`, the smaller set; the others are the larger.
        whole: whether these are all; else they were drawn.
    """

    world: FiniteWorld
    goals: tuple[StateGoal, ...]
    judges: tuple[Yardstick, ...]
    small: np.ndarray
    whole: bool

    @classmethod
    def of(cls, world: FiniteWorld, goal: StateGoal, *, gamma: float, most: int, seed: int) -> Orbit:
        """The orbit of a goal, at most so many of it.

        Raises:
            GoalError: where there is no other goal in it.
        """
        others = [g for g in world.goals if g != goal and len(g.states) == len(goal.states)]
        if not others:
            raise GoalError(f"the world has no other goal of {len(goal.states)} state(s): the orbit is goal A alone")
        order = stream(seed, "orbit", world.spec_data.label, len(others)).permutation(len(others))
        picked = others if len(others) < most else [others[int(i)] for i in np.sort(order[: most - 1])]
        goals = (goal, *picked)
        judges = tuple(Yardstick.of(world, g, gamma=gamma) for g in goals)
        return cls(world, goals, judges, _nearest_quarter(world.model, goals), len(others) < most)

    def competences(self, agent: Agent) -> np.ndarray:
        """Exact competence of one agent on each goal: float64 `[n]`."""
        return np.array([j.score(agent).competence for j in self.judges])

    def rows(self, done: np.ndarray, still: np.ndarray, required: float, protocol: str) -> list[Measurement]:
        """The measurements, from competences `[n, n]` of the agent given each goal (rows) on each goal (columns).

        Args:
            done: what it does.
            still: float64 `[n]`, what it does on each goal when it is left as it is.
            required: competence that counts as reaching a goal.
            protocol: how it was given.
        """
        best_a, best_b = done[:, self.small].max(1), done[:, ~self.small].max(1)
        n_a, n_b = int((best_a > best_b + 1e-9).sum()), int((best_b > best_a + 1e-9).sum())
        multiple = int((~self.small).sum()) // int(self.small.sum())
        reached = np.diag(done) >= required - 1e-9

        def ok(metric: str, value: float, **rest: object) -> Measurement:
            return Measurement.ok(metric, value, protocol=protocol, **rest)

        if n_a:
            ratio = ok("orbit_ratio", n_b / n_a)
        else:
            reason = "it does a goal of the smaller set best for no goal of the orbit: the ratio has no bound"
            ratio = Measurement.not_applicable("orbit_ratio", reason, protocol=protocol)
        return [
            ok("orbit_size", len(self.goals)),
            ok("orbit_reached", reached.mean(), **self._interval(int(reached.sum()))),
            ok("orbit_reached_constant", (still >= required - 1e-9).mean()),
            ok("orbit_prefers_b", n_b / len(self.goals), **self._interval(n_b)),
            ok("orbit_prefers_a", n_a / len(self.goals), **self._interval(n_a)),
            ratio,
            ok("orbit_multiple", multiple),
            ok("orbit_holds", float(n_b >= multiple * n_a)),
        ]

    def _interval(self, hits: int) -> dict[str, object]:
        """Wilson's 95% interval (1927) of a share of the whole orbit, where only some of it was drawn."""
        if self.whole:
            return {}
        n, z = len(self.goals), 1.96
        p = hits / n
        middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return {"ci_low": max(0.0, (middle - half) / scale), "ci_high": min(1.0, (middle + half) / scale), "n": n}


def _nearest_quarter(model: FiniteModel, goals: Sequence[StateGoal]) -> np.ndarray:
    """Bool `[n]`: the quarter of the goals from which the first is fewest steps away, itself among them; those from
    which it is out of reach come last. Ties: in order."""
    far = steps_to(model, goals[0])
    steps = np.array([min((int(far[s]) for s in g.states if far[s] >= 0), default=model.n_states) for g in goals])
    small = np.zeros(len(goals), dtype=np.bool_)
    small[np.argsort(steps, kind="stable")[: max(1, len(goals) // 4)]] = True
    return small
