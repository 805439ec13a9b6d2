"""Prequential bits: online code length of B's behaviour, for a learner that starts as the agent, and as its blank."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from retarget.agent import Agent
from retarget.editors.learners import Box, Hypotheses, code_lengths, learners_of, uniform_right
from retarget.errors import AgentError, GoalError, WorldError
from retarget.lessons import Lessons, lessons_of
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.rng import stream
from retarget.row import Kind, Measurement
from retarget.spend import Spend
from retarget.world import BoxWorld


class Prequential(Probe):
    """Online code length of what goal B asks for (source: Blier and Ollivier 2018; Voita and Titov 2020).

    Lessons of B are told one block after another, in an order drawn at random; before each, the learner predicts it
    from the lessons before. What is sent of a lesson is one action, the first of those that are right (which is what
    the exact planner takes). It costs `-log2` of the probability that was given to it, and it alone is learned from,
    so that the length is that of a code that can be decoded. Which learners an agent is capable of, and how they are
    mixed: `retarget.editors.learners`.

    Args:
        first: lessons in the first block; each later one is as long as all before it.
        most: lessons at most, drawn at random where there are more.
        episodes, steps: where lessons come in episodes (worlds with continuous states, agents with memory).

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("OpenGrid", size=5)
    >>> a, b = world.goals[0], world.goals[-1]
    >>> outcome = Prequential().measure(retarget.Subject(exact_planner(world, a), world, a, b))
    >>> outcome["prequential_bits"].value < 6 < outcome["uniform_bits"].value
    True
    """

    name: ClassVar[str] = "prequential"
    kind: ClassVar[Kind] = "experiment"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = {
        "prequential_bits": Metric("bit", "online code length of B's lessons, learning from the agent", 0.0, None),
        "prequential_blank_bits": Metric("bit", "the same, learning from the agent's blank", 0.0, None),
        "prequential_ratio": Metric("1", "the first over the second: below 1, what the agent knows helps", 0.0, None),
        "first_block_bits": Metric("bit", "length of the first block, before anything was learned, agent", 0.0, None),
        "first_block_blank_bits": Metric("bit", "the same, blank", 0.0, None),
        "uniform_bits": Metric("bit", "length of the lessons if every action were as likely", 0.0, None, "observation"),
        "prequential_lessons": Metric("lessons", "number of lessons", 0.0, None, "observation"),
        "prequential_shuffled_bits": Metric("bit", "control: the first for lessons with shuffled answers", 0.0, None),
    }  # fmt: skip
    # the first block is of states drawn by name, so that renaming them changes it; the whole length of tables and slots
    # does not depend on the order, and a test holds it to that
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(self, *, first: int = 8, most: int = 512, episodes: int = 32, steps: int = 32) -> None:
        self.first, self.most, self.episodes, self.steps = first, most, episodes, steps

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        if subject.goal_b is None:
            return self.all_not_applicable("no goal B was given")
        agent, seed = subject.agent, subject.seed
        try:
            lessons = self.lessons(subject)
            box = subject.world.action_range if isinstance(subject.world, BoxWorld) else None
            uniform = uniform_right(lessons, box)
            tell(0.1, "learning from the agent")
            own, own_spend, names = self._code(agent, subject, lessons, box)
            tell(0.5, "learning from its blank")
            blank, blank_spend, _ = self._code(agent.blank(seed), subject, lessons, box)
            tell(0.8, "learning what was shuffled")
            shuffled, _, _ = self._code(agent, subject, _shuffled(lessons, seed), box)
        except (AgentError, GoalError, WorldError) as error:
            return self.all_not_applicable(str(error))
        first = self.ends(lessons)[0] - 1
        counted = lessons.weight > 0
        ok, n = Measurement.ok, int(counted.sum())
        return Outcome(
            (
                ok("prequential_bits", own[-1], n=n, editor=names, spend=own_spend),
                ok("prequential_blank_bits", blank[-1], n=n, spend=blank_spend),
                _ratio(own[-1], blank[-1]),
                ok("first_block_bits", own[first], n=int(counted[: first + 1].sum())),
                ok("first_block_blank_bits", blank[first], n=int(counted[: first + 1].sum())),
                ok("uniform_bits", max(0.0, float(-np.log2(uniform[counted]).sum())), n=n),
                ok("prequential_lessons", n),
                ok("prequential_shuffled_bits", shuffled[-1], n=n),
            )
        )

    def lessons(self, subject: Subject) -> Lessons:
        """The lessons of goal B in the order that they are told in."""
        memory = subject.agent.has_memory
        assert subject.goal_b is not None
        found = lessons_of(
            subject.world, subject.goal_b, gamma=subject.gamma, seed=subject.seed, n=self.episodes,
            steps=self.steps if memory else 0,
        )  # fmt: skip
        rng = stream(subject.seed, "prequential_order")
        if getattr(subject.world, "action_range", None) is None:
            found = replace(found, right=np.eye(found.right.shape[1])[(found.right > 0).argmax(1)])
        if memory:
            n = len(found) // found.steps
            rows = rng.permutation(n)[: max(1, self.most // found.steps)]
            return found.take((rows[:, None] * found.steps + np.arange(found.steps)).reshape(-1))
        rows = rng.permutation(np.flatnonzero(found.weight > 0))[: self.most]
        return Lessons(found.obs[rows], found.right[rows], found.weight[rows])

    def ends(self, lessons: Lessons) -> list[int]:
        """Number of lessons up to the end of each block: doubling, in whole episodes."""
        unit, n = lessons.steps, len(lessons)
        size = max(1, -(-self.first // unit)) * unit
        out = []
        while size < n:
            out.append(size)
            size *= 2
        return [*out, n]

    def _code(self, agent: Agent, subject: Subject, lessons: Lessons, box: Box | None) -> tuple[np.ndarray, Spend, str]:
        assert subject.goal_b is not None
        found: tuple[Hypotheses, ...] = learners_of(
            agent, subject.goal_b, lessons, ends=self.ends(lessons), box=box, seed=subject.seed
        )
        bits = code_lengths(found, lessons, uniform_right(lessons, box))
        spend = Spend()
        for learner in found:
            spend = spend + learner.spend
        return bits, spend, "+".join(h.learner for h in found)


def _shuffled(lessons: Lessons, seed: int) -> Lessons:
    counted = np.flatnonzero(lessons.weight > 0)
    right = lessons.right.copy()
    right[counted] = right[stream(seed, "prequential_shuffle").permutation(counted)]
    return replace(lessons, right=right)


def _ratio(own: float, blank: float) -> Measurement:
    if blank <= 0:
        return Measurement.not_applicable("prequential_ratio", "the blank pays nothing: there is one action alone")
    return Measurement.ok("prequential_ratio", own / blank)
