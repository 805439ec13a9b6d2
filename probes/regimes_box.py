"""The five regimes out of distribution in worlds with continuous states: estimated from episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from retarget.agent import Agent
from retarget.errors import AgentError, EditError, GoalError, ProbeError
from retarget.goal import RegionGoal
from retarget.heuristics import predictions
from retarget.probe import Subject
from retarget.probes.regimes import Case, Control, Settings, fine_tuned
from retarget.rng import stream, word
from retarget.shifted import ABSENCE, ADVERSARIAL, EXTREME, INNER, NARROW
from retarget.shifted_box import (
    Disturbance,
    Episodes,
    Range,
    episodes,
    lessons_from,
    mixed_starts,
    offset_attack,
    offsets,
    trials_from,
)
from retarget.trials import Trials
from retarget.world import BoxWorld

#: Inputs that heuristics are scored on at most.
INPUTS = 256
#: What is done in each regime of a world with continuous states, for protocols.
WORDS: Mapping[str, str] = {
    ABSENCE: "{} in place of the own observation with probability dose",
    EXTREME: "observations offset, in every number, by dose of the width of the trained range",
    INNER: "from mixtures of states that were met, up to dose of the way to the farthest",
    ADVERSARIAL: "observations offset, within dose standard deviations of each number, to do harm",
    NARROW: "fine-tuned from starts in the lower half of {} for dose of the budget, evaluated from the others",
}
KNOWN = "trained: what it meets undisturbed (nominal)"
_LEARNER = "agent {!r} has memory: its policy is no function of what it sees now"


class BoxRegimes:
    """The regimes of one subject in a world with continuous states.

    Raises:
        AgentError, GoalError, ProbeError: when the undisturbed competence cannot be measured.
    """

    exact = False

    def __init__(self, subject: Subject, world: BoxWorld, goal: RegionGoal, settings: Settings) -> None:
        self.subject, self.world, self.goal, self.settings = subject, world, goal, settings
        self.agent = subject.agent
        self.trials = Trials.of(
            world, goal, gamma=subject.gamma, n=settings.n_starts, seed=subject.seed, purpose="test"
        )
        self.base = episodes(self.trials, self.agent)
        self.range = Range.of(self.base, seed=subject.seed)
        self.why = ""
        if self.agent.has_memory:
            self.why = _LEARNER.format(self.agent.kind)
        elif world.n_actions is None:
            self.why = "actions are continuous: heuristics here predict one of a few actions"
        blank = self.agent.blank(subject.seed)
        self.blank = None if self.why or blank.has_memory else blank

    def cases(self) -> Iterator[Case]:
        """Every case, regime by regime."""
        makers: Mapping[str, Callable[[], Iterator[Case]]] = {
            ABSENCE: self.absence, EXTREME: self.extreme, INNER: self.inner, ADVERSARIAL: self.adversarial,
            NARROW: self.narrow,
        }  # fmt: skip
        for name in self.settings.regimes:
            yield from makers[name]()

    # -- heuristics ------------------------------------------------------------------------------------------------

    def _some(self, n: int) -> np.ndarray:
        """Rows of n inputs that heuristics are scored on."""
        return np.sort(stream(self.subject.seed, "ood_inputs", n).permutation(n)[:INPUTS])

    def described(
        self,
        case: Case,
        inputs: np.ndarray,
        states: np.ndarray,
        *,
        agent: Agent | None = None,
        before: Agent | None = None,
        behaviour: np.ndarray | None = None,
        known: Range | None = None,
        groups: np.ndarray | None = None,
    ) -> Case:
        """The case with what the agent does at observations float32 `[K, O]`, seen in states float64 `[K, D]`, and what
        heuristics predict there; `optimal` is the world's expert."""
        if self.why:
            return replace(case, why=self.why)
        if not len(inputs):
            return replace(case, why="no observation of this kind was met")
        who, within, past = agent or self.agent, known or self.range, before or self.blank
        assert self.world.n_actions is not None
        expert = np.eye(self.world.n_actions)[self.world.expert(self.goal).act(states)]
        rules = predictions(
            who.policy(within.obs)[0], within.distances(inputs), within.distances(inputs, box=True),
            pretraining=None if past is None else past.policy(inputs)[0], optimal=expert, k=self.settings.k,
        )  # fmt: skip
        done = who.policy(inputs)[0] if behaviour is None else behaviour
        return replace(case, behaviour=np.asarray(done, dtype=np.float64), rules=rules, groups=groups)

    # -- cases -----------------------------------------------------------------------------------------------------

    def absence(self) -> Iterator[Case]:
        zeros = self.settings.absence == "zeros"
        what = "zeros" if zeros else "an observation of another moment"
        setting = f"{WORDS[ABSENCE].format(what)}; {KNOWN}"
        pool = np.zeros_like(self.range.obs[:1]) if zeros else self.range.obs
        rows = self._some(len(self.base.true))
        inputs = self.base.true[rows]
        for dose in self.settings.doses:
            found = episodes(self.trials, self.agent, Disturbance(dose, pool, seed=self.subject.seed))
            case = Case(ABSENCE, setting, dose, found.ratios, self.base.ratios)
            behaviour = None
            if not self.why:
                mean = self.agent.policy(pool)[0].mean(0)
                behaviour = (1.0 - dose) * self.agent.policy(inputs)[0] + dose * mean / mean.sum()
            yield self.described(case, inputs, self.base.states[rows], behaviour=behaviour, groups=self.base.row[rows])

    def extreme(self) -> Iterator[Case]:
        setting, n = f"{WORDS[EXTREME]}; {KNOWN}", len(self.trials.starts)
        for dose in self.settings.doses:
            moved = offsets(self.range, n=n, dose=dose, seed=self.subject.seed)
            found = episodes(self.trials, self.agent, Disturbance(offset=moved))
            case = Case(EXTREME, setting, dose, found.ratios, self.base.ratios)
            out = np.flatnonzero(self.range.outside(found.seen))
            rows = out[self._some(len(out))]
            yield self.described(case, found.seen[rows], found.states[rows], groups=found.row[rows])

    def inner(self) -> Iterator[Case]:
        setting = f"{WORDS[INNER]}; {KNOWN}"
        for dose in self.settings.doses:
            starts = mixed_starts(self.world, self.range, n=self.settings.n_starts, dose=dose, seed=self.subject.seed)
            if not len(starts):
                yield Case(INNER, setting, dose, reason="what was met mixes to nothing new")
                continue
            try:
                trials = trials_from(self.world, self.goal, starts, gamma=self.subject.gamma, seed=self.subject.seed)
            except GoalError as error:
                yield Case(INNER, setting, dose, reason=str(error))
                continue
            ratios = episodes(trials, self.agent).ratios
            case = Case(INNER, setting, dose, ratios, self.base.ratios, paired=False)
            yield self.described(case, self.world.observe(trials.starts), trials.starts)

    def adversarial(self) -> Iterator[Case]:
        budget, seed = self.settings.offset_budget, self.subject.seed
        setting = f"{WORDS[ADVERSARIAL]} ({budget} episodes a start); {KNOWN}"
        for dose in self.settings.doses:
            bound = dose * self.range.scale
            found = offset_attack(self.trials, self.agent, bound, budget=budget, seed=seed)
            drawn = offset_attack(self.trials, self.agent, bound, budget=budget, seed=seed, adaptive=False)
            worst = episodes(self.trials, self.agent, Disturbance(offset=found.offset))
            rows = self._some(len(worst.seen))
            control = Control(drawn.each, float(drawn.trace[-1]), drawn.ratios)
            case = Case(ADVERSARIAL, setting, dose, found.ratios, self.base.ratios, control=control)
            yield self.described(case, worst.seen[rows], worst.states[rows], groups=worst.row[rows])

    def narrow(self) -> Iterator[Case]:
        setting = f"{WORDS[NARROW].format(self.world.state_names[0])}; toward goal A"
        first = self.trials.starts[:, 0]
        low = first < np.median(first)
        reason = "fine-tuning toward goal B is for finite worlds" if self.settings.teach == "b" else ""
        if self.agent.has_memory:
            reason = _LEARNER.format(self.agent.kind)
        if not reason and not (low.any() and (~low).any()):
            reason = f"all starts have the same {self.world.state_names[0]}"
        if reason:
            yield Case(NARROW, setting, None, reason=reason)
            return
        inside, outside = (_among(self.trials, rows) for rows in (low, ~low))
        for dose in self.settings.doses:
            try:
                tuned = fine_tuned(
                    self.agent, lessons_from(inside), steps=round(dose * self.settings.grad_steps),
                    seed=self.subject.seed,
                )  # fmt: skip
                if isinstance(tuned, str):
                    yield Case(NARROW, setting, None, reason=tuned)
                    return
                within = episodes(inside, tuned)
                found: Episodes = episodes(outside, tuned)
                known = Range.of(within, seed=word(self.subject.seed, "narrow"))
            except (AgentError, EditError, GoalError, ProbeError) as error:
                yield Case(NARROW, setting, dose, reason=str(error))
                continue
            case = Case(NARROW, setting, dose, found.ratios, self.base.ratios[~low])
            rows = self._some(len(found.true))
            yield self.described(
                case,
                found.true[rows],
                found.states[rows],
                agent=tuned,
                before=self.agent,
                known=known,
                groups=found.row[rows],
            )


def _among(trials: Trials, rows: np.ndarray) -> Trials:
    """The same trials from some of the starts."""
    return replace(trials, starts=trials.starts[rows], best=trials.best[rows])
