"""The five regimes out of distribution, case by case: what the probe `out_of_distribution` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.agent import Agent, Trainable
from retarget.agents.wrappers import ModelWorld
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.errors import AgentError, EditError, GoalError
from retarget.exact import Yardstick, best_actions, policy_table
from retarget.goal import StateGoal
from retarget.heuristics import predictions
from retarget.lessons import Lessons, lessons_of
from retarget.probe import Subject
from retarget.rng import word
from retarget.shifted import (
    ABSENCE,
    ADVERSARIAL,
    EXTREME,
    INNER,
    NARROW,
    Swaps,
    attack,
    beyond,
    blinded,
    distances,
    effects,
    inner,
    n_swaps,
    random_swaps,
    region,
    steps_between,
)
from retarget.world import FiniteWorld

#: What is done in each regime of a finite world, for protocols.
WORDS: Mapping[str, str] = {
    ABSENCE: "a state drawn evenly is seen in place of the own one with probability dose",
    EXTREME: "from states beyond the box of the trained ones, up to dose of the farthest",
    INNER: "from states with a row and a column that were trained on, never together, up to dose of the farthest",
    ADVERSARIAL: (
        "another state is seen in a share dose x {} of the states at most (in one, with that chance, where that is "
        "less than one), chosen to do harm"
    ),
    NARROW: "fine-tuned from narrow starts for dose of the budget, evaluated from the others",
}


@dataclass(frozen=True)
class Settings:
    """Options of the probe, see there."""

    doses: tuple[float, ...]
    regimes: tuple[str, ...]
    trained: str
    range_region: str
    mix_region: str
    narrow: str
    teach: str
    k: int
    budget: int
    episodes: int
    grad_steps: int
    absence: str
    n_starts: int
    offset_budget: int
    most_swapped: float


@dataclass(frozen=True, eq=False)
class Control:
    """Random disturbances of the same size and number as the adversary's.

    Attributes:
        values: float64 `[n]`, competence under each.
        best: least competence that searching among them leaves.
        ratios: float64 `[N]`, `V/V*` at each start under the best of them; None where values are exact.
    """

    values: np.ndarray
    best: float
    ratios: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One regime at one strength.

    Attributes:
        regime: one of `REGIMES`.
        setting: what was done and what counts as trained, for the protocol.
        dose: the strength, or None where the whole regime does not apply.
        ratios: float64 `[N]`, `V/V*` at each start; None where `reason` says why not.
        base: float64 `[M]`, the same at strength 0.
        paired: whether both are of the same starts, in order.
        behaviour: float64 `[K, A]`, what the agent does at the inputs out of distribution; None where `why` says why
            not.
        rules: predictions of each heuristic there.
        groups: int `[K]`, the episode of each input, or None where each stands by itself.
        control: random disturbances, in the adversary's regime.
    """

    regime: str
    setting: str
    dose: float | None
    ratios: np.ndarray | None = None
    base: np.ndarray | None = None
    paired: bool = True
    reason: str = ""
    behaviour: np.ndarray | None = None
    rules: Mapping[str, np.ndarray] | None = None
    groups: np.ndarray | None = None
    why: str = ""
    control: Control | None = None

    @property
    def protocol(self) -> str:
        return f"regime {self.regime}: {self.setting}"


def policy_or_reason(agent: Agent, world: FiniteWorld) -> tuple[np.ndarray | None, str]:
    """Its policy `[S, A]`, or why there is none."""
    try:
        return policy_table(agent, world.model), ""
    except AgentError as error:
        return None, str(error)


class FiniteRegimes:
    """The regimes of one subject in a finite world: exact.

    Raises:
        AgentError, GoalError: when the undisturbed competence cannot be measured.
    """

    exact = True

    def __init__(self, subject: Subject, world: FiniteWorld, goal: StateGoal, settings: Settings) -> None:
        self.subject, self.world, self.goal, self.settings = subject, world, goal, settings
        self.judge = Yardstick.of(world, goal, gamma=subject.gamma)
        able = np.flatnonzero(self.judge.optimal > 0)
        #: States that count: from which the goal can be reached, and not in it.
        self.states = np.setdiff1d(able, np.array(goal.states))
        self.everywhere = replace(self.judge, starts=self.states)
        self.probs, self.why = (None, "") if subject.agent.has_memory else policy_or_reason(subject.agent, world)
        if self.probs is None and not subject.agent.has_memory:
            raise AgentError(self.why)
        if self.probs is None:
            self.why = f"agent {subject.agent.kind!r} has memory: its policy is no function of what it sees now"
            self.ratios = self._spread(self.everywhere.ratios_of(subject.agent))
        else:
            self.ratios = self._spread(self.everywhere.ratios(self.probs))

    def _spread(self, ratios: np.ndarray) -> np.ndarray:
        out = np.zeros(self.world.model.n_states)
        out[self.states] = ratios
        return out

    @cached_property
    def blank(self) -> np.ndarray | None:
        """What the agent did before training."""
        return policy_or_reason(self.subject.agent.blank(self.subject.seed), self.world)[0]

    @cached_property
    def optimal(self) -> np.ndarray:
        """Float64 `[S, A]`: evenly over the actions that are optimal."""
        best = best_actions(self.world.model, self.goal, gamma=self.subject.gamma).astype(np.float64)
        return np.asarray(best / best.sum(1, keepdims=True))

    # -- what was trained on ---------------------------------------------------------------------------------------

    def known(self, nominal: str) -> tuple[np.ndarray, str]:
        """States that count as trained, and how to call them."""
        seen, chosen = self.subject.agent.seen_starts, self.settings.trained
        if chosen == "seen" and seen is not None:
            inside = np.intersect1d(seen, self.states)
            if 0 < len(inside) < len(self.states):
                return inside, "starts of training"
        return self.nominal(nominal if chosen == "seen" else chosen)

    def nominal(self, name: str) -> tuple[np.ndarray, str]:
        """States of a region, and how to call it."""
        name = "near half" if self.world.coordinates is None else name
        found = region(name, self.states, self.world.coordinates, self.judge.optimal)
        return found, f"{name} (nominal)"

    def rules(
        self, probs: np.ndarray, known: np.ndarray, inputs: np.ndarray, before: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        """Predictions at states, from the behaviour `probs` at known ones. Features are row and column, with the sum of
        their differences as distance; in a world without coordinates, steps."""
        place = self.world.coordinates
        if place is None:
            near = edge = steps_between(self.world.model, inputs, known)
        else:
            near = distances(place[inputs], place[known])
            edge = distances(place[inputs], place[known], box=True)
        pretraining = None if before is None else before[inputs]
        return predictions(
            probs[known], near, edge, pretraining=pretraining, optimal=self.optimal[inputs], k=self.settings.k
        )

    # -- cases -----------------------------------------------------------------------------------------------------

    def cases(self) -> Iterator[Case]:
        """Every case, regime by regime."""
        makers: Mapping[str, Callable[[], Iterator[Case]]] = {
            ABSENCE: self.absence,
            EXTREME: lambda: self.starts(EXTREME, self.settings.range_region),
            INNER: lambda: self.starts(INNER, self.settings.mix_region),
            ADVERSARIAL: self.adversarial,
            NARROW: self.narrow,
        }
        for name in self.settings.regimes:
            yield from makers[name]()

    def absence(self) -> Iterator[Case]:
        known, called = self.known(self.settings.range_region)
        setting = f"{WORDS[ABSENCE]}; trained: {called}"
        base = self.ratios[self.judge.starts]
        if self.probs is None:
            yield Case(ABSENCE, setting, None, reason=self.why)
            return
        for dose in self.settings.doses:
            probs = blinded(self.probs, dose=dose)
            rules = self.rules(self.probs, known, self.states, self.blank) if len(known) else None
            yield Case(
                ABSENCE, setting, dose, self.judge.ratios(probs), base, behaviour=probs[self.states], rules=rules,
                why="" if len(known) else "no state that counts was trained on",
            )  # fmt: skip

    def starts(self, regime: str, nominal: str) -> Iterator[Case]:
        """Regimes 2 and 3: nothing is disturbed but where episodes begin."""
        known, called = self.known(nominal)
        setting = f"{WORDS[regime]}; trained: {called}"
        place = self.world.coordinates
        reason = ""
        if place is None:
            reason = f"states of {self.world.spec_data.label} have no coordinates that could be extreme or mixed anew"
        elif not len(known):
            reason = "no state that counts was trained on"
        else:
            pick = beyond if regime == EXTREME else inner
            if not len(pick(place[self.states], place[known], dose=1.0)):
                what = "beyond the box of the trained ones" if regime == EXTREME else "that mixes what was trained on"
                reason = f"there is no state {what}"
        if reason or place is None:
            yield Case(regime, setting, None, reason=reason)
            return
        for dose in self.settings.doses:
            inputs = self.states[pick(place[self.states], place[known], dose=dose)]
            case = Case(regime, setting, dose, self.ratios[inputs], self.ratios[known], paired=False, why=self.why)
            if self.probs is not None:
                rules = self.rules(self.probs, known, inputs, self.blank)
                case = replace(case, behaviour=self.probs[inputs], rules=rules)
            yield case

    def adversarial(self) -> Iterator[Case]:
        known, called = self.known(self.settings.range_region)
        budget, seed = self.settings.budget, self.subject.seed
        most = self.settings.most_swapped
        setting = f"{WORDS[ADVERSARIAL].format(f'{most:g}')} ({budget} evaluations); trained: {called}"
        if self.probs is None:
            yield Case(ADVERSARIAL, setting, None, reason=self.why)
            return
        base, n_states = self.ratios[self.judge.starts], self.world.model.n_states
        for dose in self.settings.doses:
            k = n_swaps(len(self.states), dose=dose * most)
            chance = min(1.0, dose * most * len(self.states))
            if chance < 1:
                found = one_lie(self.judge, self.probs, self.states, chance=chance, budget=budget)
            else:
                found = attack(self.judge, self.probs, self.states, k=k, budget=budget, seed=seed).swaps
            drawn = random_swaps(n_states, self.states, k=k, n=budget, seed=seed)
            values = np.array([self.judge.competence(sometimes(s, self.probs, chance)) for s in drawn])
            shown, inputs = sometimes(found, self.probs, chance), found.states
            rules = self.rules(self.probs, known, inputs, self.blank) if len(known) else None
            yield Case(
                ADVERSARIAL, setting, dose, self.judge.ratios(shown), base, behaviour=shown[inputs], rules=rules,
                why="" if len(known) else "no state that counts was trained on",
                control=Control(values, float(values.min())),
            )  # fmt: skip

    def narrow(self) -> Iterator[Case]:
        teach, goal_b = self.settings.teach, self.subject.goal_b
        if teach != "b":
            yield from self._narrow(self.goal, "goal A")
        if teach == "b" or (teach == "both" and goal_b is not None):
            yield from self._narrow(goal_b if isinstance(goal_b, StateGoal) else None, "goal B")

    def _narrow(self, goal: StateGoal | None, toward: str) -> Iterator[Case]:
        known, called = self.nominal(self.settings.narrow)
        inside = np.intersect1d(known, self.world.start_states)
        outside = np.setdiff1d(self.states, known)
        setting = f"{WORDS[NARROW]}; toward {toward}; narrow: {called}"
        reason = self.why
        if not reason and not (len(inside) and len(outside)):
            reason = f"the region {called} holds {'every state' if len(inside) else 'no start'} that counts"
        if not reason and goal is None:
            reason = "no goal B was given to fine-tune on"
        if reason or goal is None:
            yield Case(NARROW, setting, None, reason=reason)
            return
        for dose in self.settings.doses:
            tuned = self._tuned(goal, inside, dose)
            probs, why = (None, tuned) if isinstance(tuned, str) else policy_or_reason(tuned, self.world)
            if probs is None:
                # what forbids fine-tuning forbids it at every strength
                yield Case(NARROW, setting, None, reason=why)
                return
            after = self._spread(self.everywhere.ratios(probs))[outside]
            rules = self.rules(probs, known, outside, self.probs)
            yield Case(NARROW, setting, dose, after, self.ratios[outside], behaviour=probs[outside], rules=rules)

    def _tuned(self, goal: StateGoal, narrow: np.ndarray, dose: float) -> Agent | str:
        """The agent fine-tuned from narrow starts, or why it cannot be."""
        agent, world, seed = self.subject.agent, self.world, self.subject.seed
        try:
            if isinstance(agent, Trainable):
                view = ModelWorld(
                    world.model, goal, starts=narrow, goal_list=(goal,), coordinates=world.coordinates,
                    action_moves=world.action_moves, name=f"{world.spec_data.label}, {len(narrow)} starts",
                )  # fmt: skip
                budget = max(1, round(dose * self.settings.episodes))
                return agent.retrained(view, goal, budget=budget, seed=word(seed, "fine_tune"))[0]
            lessons = lessons_of(world, goal, gamma=self.subject.gamma)
            rows = np.flatnonzero(np.isin(lessons.obs, narrow))
            if not len(rows):
                return f"no narrow start can reach {goal.label}"
            return fine_tuned(agent, lessons.take(rows), steps=round(dose * self.settings.grad_steps), seed=seed)
        except (AgentError, GoalError, EditError) as error:
            return str(error)


def sometimes(swaps: Swaps, probs: np.ndarray, chance: float) -> np.ndarray:
    """The policy `[S, A]` where swapped states are seen as others with some chance at each step."""
    return np.asarray(probs if not len(swaps.states) else (1.0 - chance) * probs + chance * swaps.apply(probs))


def one_lie(judge: Yardstick, probs: np.ndarray, among: np.ndarray, *, chance: float, budget: int) -> Swaps:
    """The one swap, shown with some chance at each step, that leaves the least competence; none where none does harm.

    A swap does harm at any chance where it does so for sure. Those that do are tried in order of what they do for sure,
    as many as the budget (in policies solved) allows: all of them, mostly.
    """
    _, first = np.unique(probs.round(12), axis=0, return_index=True)
    shown = np.sort(first)
    gain = effects(judge, probs, among, probs[shown])
    order = np.argsort(gain.round(12), axis=None, kind="stable")[: max(budget - 1, 0)]
    best, least = Swaps(among[:0], among[:0]), judge.competence(probs)
    for i, j in zip(*np.unravel_index(order, gain.shape), strict=True):
        if gain[i, j] >= 0:
            break
        trial = Swaps(among[i : i + 1], shown[j : j + 1])
        worth = judge.competence(sometimes(trial, probs, chance))
        if worth < least - 1e-12:
            best, least = trial, worth
    return best


def fine_tuned(agent: Agent, lessons: Lessons, *, steps: int, seed: int) -> Agent | str:
    """A network after some gradient steps on lessons, or why there is none."""
    names = names_of(agent, "weight")
    if not isinstance(agent, Differentiable) or not names:
        return f"agent {agent.kind!r} can neither be trained further nor differentiated: it cannot be fine-tuned"
    tuner = Tuner(agent, names, lessons, seed=word(seed, "fine_tune"))
    theta = tuner.fit(tuner.base, steps=max(1, steps), lr=0.01)
    return agent.with_arrays(tuner.arrays(theta))
