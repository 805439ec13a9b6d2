"""Behaviour cloning: a network learns to act as a teacher does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retarget.agent import Agent, HasGoalSlot
from retarget.errors import AgentError
from retarget.exact import policy_table
from retarget.goal import Goal, StateGoal
from retarget.lessons import Lessons, lessons_of
from retarget.rng import word
from retarget.training.base import Learner, Question, TrainingError, Weights, not_negative, positive
from retarget.training.rollout import Inputs
from retarget.world import BoxWorld, FiniteWorld


@dataclass(frozen=True, eq=False)
class Cloning:
    """Learn to do what is right: all optimal actions of each state, or whatever a teacher does there.

    In a finite world the lessons are all states at once: those that matter for the goal, or with a teacher every one.
    A network with memory, and any network in a world with continuous states, learns from episodes: first the
    teacher's, then its own, with what the teacher would have done in them (source: Ross et al. 2011, DAgger).

    The loss of a lesson is `-log Σ p(a)` over right actions `a`; with a teacher, the cross entropy with the teacher's
    distribution; for continuous actions, the squared distance.

    Attributes:
        updates: budget, in optimiser updates.
        batch: lessons in one update (episodes count by their steps); all of them where there are fewer.
        rate: learning rate of Adam, which falls to a twentieth of it over the budget, linearly.
        teacher: any agent without memory; None for the world's own expert. For several goals it needs a goal slot.
        enough: stop at this agreement: share of lessons (by weight) whose most probable action is a right one. It is
            looked at every `check` updates; above 1, never stop early.
        check: updates between two looks.
        rounds: rounds of own episodes, where lessons are episodes. Each begins when the lessons so far are fitted, at
            the latest after its share of the budget.
        episodes: episodes of each goal in a round.
        steps: length of episodes in finite worlds, for networks with memory.
    """

    updates: int = 4000
    batch: int = 1024
    rate: float = 3e-3
    teacher: Agent | None = None
    enough: float = 1.0
    check: int = 50
    rounds: int = 4
    episodes: int = 32
    steps: int = 48

    def __post_init__(self) -> None:
        not_negative("Cloning", updates=self.updates, rounds=self.rounds)
        positive(
            "Cloning", batch=self.batch, rate=self.rate, check=self.check, episodes=self.episodes, steps=self.steps,
            enough=self.enough,
        )  # fmt: skip

    def describe(self) -> dict[str, object]:
        """JSON-able: what tells this method apart from another one."""
        plain = {k: v for k, v in vars(self).items() if k != "teacher"}
        return {"method": "cloning", **plain, "teacher": None if self.teacher is None else self.teacher.digest}

    def learner(self, question: Question) -> Learner:
        """Set to work."""
        return CloningLearner(question, self)


class CloningLearner(Learner):
    """Cloning at work. Its lessons are part of its state where they come from its own episodes.

    Operations: `3 · flops` of the network for each lesson of an update (a backward pass is two forward ones), `flops`
    for each that is looked at, and the teacher's for each that it gave.
    """

    def __init__(self, question: Question, method: Cloning) -> None:
        super().__init__(question, n_updates=method.updates)
        self.method = method
        self.weights = Weights([self.module], rate=method.rate, clip=0.0, device=question.device)
        self.inputs = Inputs(question)
        agent = question.agent
        self.memory = agent.has_memory
        self.in_rounds = self.memory or isinstance(question.world, BoxWorld)
        self.rounds = method.rounds if self.in_rounds else 0
        self.span = max(1, method.updates // (self.rounds + 1))
        # rounds that were gathered, and the update at which the next one is due
        self.place = torch.tensor([1, self.span], dtype=torch.int64)
        self.flops = agent.architecture.flops
        self.loss = torch.zeros((), device=question.device)
        self.agreed = 0.0
        self.length = 1
        if self.memory:
            self.length = method.steps if isinstance(question.world, FiniteWorld) else question.world.horizon
        self.data: dict[str, Tensor] = {}
        if method.updates:
            self._gather(0)

    # -- lessons ---------------------------------------------------------------------------------------------------

    def _gather(self, number: int) -> None:
        """Join the lessons of one round to those that are there."""
        q, m = self.question, self.method
        parts = []
        for row, goal in enumerate(q.goals):
            lessons = lessons_for(q, m, goal, visited_by=self._visitor(goal) if number else None, number=number)
            lessons = padded(lessons, self.length) if self.memory else useful(lessons)
            parts.append((row, lessons))
            asked = 0.0 if m.teacher is None else m.teacher.flops_per_action * len(lessons)
            steps = int((lessons.weight > 0).sum()) if self.in_rounds else 0
            self.env_steps += steps
            self.flops_spent += asked + steps * self.flops * bool(number)
        fresh = {
            "obs": np.concatenate([x.obs for _, x in parts]),
            "goal": np.concatenate([np.full(len(x), row) for row, x in parts]),
            "right": np.concatenate([x.right for _, x in parts]).astype(np.float32),
            # each goal counts alike, however many states can reach it
            "weight": np.concatenate([x.weight for _, x in parts]).astype(np.float32) / len(parts),
        }
        for name, array in fresh.items():
            tensor = torch.as_tensor(array, device=q.device)
            self.data[name] = torch.cat([self.data[name], tensor]) if name in self.data else tensor
        self._prepare()

    def _visitor(self, goal: Goal) -> Agent:
        agent = self.agent()
        return agent if agent.goal_input is None else agent.aimed(goal)

    def _prepare(self) -> None:
        """What every update needs of the lessons, worked out once."""
        d = self.data
        self.n_episodes = len(d["obs"]) // self.length
        self.per_update = max(1, self.method.batch // self.length)
        self.mean_weight = d["weight"].mean()
        self.rows = self.inputs.rows(d["obs"], d["goal"]) if self.inputs.table is not None else None

    # -- updates ---------------------------------------------------------------------------------------------------

    def update(self, k: int) -> None:
        number, due = (int(x) for x in self.place)
        if k >= due and number <= self.rounds:
            self._gather(number)
            self.place = torch.tensor([number + 1, k + self.span], dtype=torch.int64)
        generator = self.generator("cloning", k)
        picked = None
        if self.n_episodes > self.per_update:
            picked = torch.randint(
                self.n_episodes, (self.per_update,), generator=generator, device=self.question.device
            )
        right, weight = self._take("right", picked), self._take("weight", picked)
        self.loss = (self._losses(self._scores(picked, generator), right) * weight).mean() / self.mean_weight
        self.weights.step(self.loss, share=1.0 - 0.95 * k / self.n_updates)
        self.grad_steps += 1
        self.flops_spent += 3 * self.flops * len(right)

    def _take(self, name: str, picked: Tensor | None) -> Tensor:
        whole = self.data[name]
        if picked is None:
            return whole
        if self.length == 1:
            return whole.index_select(0, picked)
        folded = whole.reshape(self.n_episodes, self.length, *whole.shape[1:])
        return folded.index_select(0, picked).flatten(0, 1)

    def _scores(self, picked: Tensor | None, generator: torch.Generator | None) -> Tensor:
        """Scores `[N, A]` of lessons. With shuffled goals each update deals the goal inputs anew."""
        if generator is not None and self.inputs.shuffled:
            obs = self._take("obs", picked)
            dealt = torch.randint(
                self.inputs.n_goals, (len(obs) // self.length,), generator=generator, device=obs.device
            )
            x = self.inputs(obs, dealt.repeat_interleave(self.length))
        elif self.rows is not None and self.inputs.table is not None:
            rows = self.rows if picked is None or self.length > 1 else self.rows.index_select(0, picked)
            if picked is not None and self.length > 1:
                rows = rows.reshape(-1, self.length).index_select(0, picked).reshape(-1)
            x = self.inputs.table.index_select(0, rows)
        else:
            x = self.inputs(self._take("obs", picked), self._take("goal", picked))
        if not self.memory:
            scores: Tensor = self.module(x, None)[0]
            return scores
        folded = x.reshape(-1, self.length, *x.shape[1:])
        whole: Tensor = self.module(folded, None)[0]
        return whole.flatten(0, 1)

    def _losses(self, scores: Tensor, right: Tensor) -> Tensor:
        if self.question.agent.head == "mean":
            return ((scores - right) ** 2).sum(1)
        log_p = functional.log_softmax(scores, dim=1)
        if self.method.teacher is not None:
            return -(right * log_p).sum(1)
        return -torch.logsumexp(log_p.masked_fill(right == 0, -torch.inf), dim=1)

    def finished(self, k: int) -> bool:
        m = self.method
        if k % m.check or m.enough > 1 or self.question.agent.head == "mean":
            return False
        self.agreed = self.agreement()
        fitted = self.agreed >= m.enough - 1e-6
        if fitted and int(self.place[0]) <= self.rounds:
            self.place[1] = k  # nothing more to learn from these episodes: the next round is due
            return False
        return fitted

    def agreement(self) -> float:
        """Share of lessons, by weight, whose best action is a right one; among a teacher's, its most probable one."""
        with torch.no_grad():
            best = self._scores(None, None).argmax(1, keepdim=True)
            right, weight = self.data["right"], self.data["weight"]
            ok = right.gather(1, best)[:, 0] >= (right.amax(1) - 1e-6)
            self.flops_spent += self.flops * len(right)
            return float((weight * ok).sum() / weight.sum())

    def measures(self) -> dict[str, float]:
        return {"loss": float(self.loss.detach()), "agreement": self.agreed}

    # -- state -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        more = {f"lessons.{k}": v for k, v in self.data.items()} if self.in_rounds else {}
        more["rounds"] = self.place
        return {**super().state(), **more}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.weights.state().items():
            tensor.data.copy_(state[name])
        self.place = state["rounds"].clone()
        if self.in_rounds:
            self.data = {k: state[f"lessons.{k}"].to(self.question.device) for k in self.data}
            self._prepare()


# -- what a teacher does ---------------------------------------------------------------------------------------------


def lessons_for(q: Question, m: Cloning, goal: Goal, *, visited_by: Agent | None, number: int) -> Lessons:
    """The lessons of one goal in one round.

    Raises:
        AgentError: when the teacher does not fit the world, or cannot be given the goal.
    """
    teacher = None if m.teacher is None else aimed(m.teacher, goal, several=len(q.goals) > 1)
    if isinstance(q.world, FiniteWorld):
        steps = m.steps if q.agent.has_memory else 0
        seed = word(q.seed, "lessons", q.stage, number)
        if teacher is not None and steps > 1 and visited_by is None:
            visited_by = teacher
        lessons = lessons_of(q.world, goal, gamma=q.gamma, seed=seed, visited_by=visited_by, n=m.episodes, steps=steps)
        if teacher is not None:
            told = policy_table(teacher, q.world.model)
            if not q.agent.has_memory:  # in every state: the pupil is to act as the teacher does, on the goal too
                states = np.arange(q.world.model.n_states)
                lessons = Lessons(states, told, np.ones(len(states)))
            else:
                lessons = replace(lessons, right=told[lessons.obs])
        return lessons if q.starts is None or steps else _on_the_way(lessons, q.world, goal, q.starts)
    seed = word(q.seed, "lessons", q.stage, number)
    first = teacher if visited_by is None else visited_by
    lessons = lessons_of(q.world, goal, gamma=q.gamma, seed=seed, visited_by=first, n=m.episodes)
    return lessons if teacher is None else replace(lessons, right=_told(teacher, lessons, q.world))


def useful(lessons: Lessons) -> Lessons:
    """The lessons that count, one by one, for networks without memory."""
    return replace(lessons, steps=1).take(np.flatnonzero(lessons.weight > 0))


def padded(lessons: Lessons, steps: int) -> Lessons:
    """Episodes brought to a common length, with lessons that do not count."""
    if lessons.steps == steps:
        return lessons
    n = len(lessons) // lessons.steps
    missing = steps - lessons.steps

    def pad(array: np.ndarray, *, zero: bool = False) -> np.ndarray:
        folded = array.reshape(n, lessons.steps, *array.shape[1:])
        more = np.repeat(folded[:, -1:], missing, axis=1)
        return np.concatenate([folded, 0 * more if zero else more], axis=1).reshape(n * steps, *array.shape[1:])

    return Lessons(pad(lessons.obs), pad(lessons.right), pad(lessons.weight, zero=True), steps)


def _told(teacher: Agent, lessons: Lessons, world: BoxWorld) -> np.ndarray:
    """What a teacher does for each observation: probabilities, or the mean action."""
    if teacher.has_memory:
        raise AgentError(f"teacher {teacher.kind!r} has memory, and answers for no single state; use another one")
    out, _ = teacher.policy(lessons.obs, None)
    right = out if world.n_actions is not None else out[:, 0]
    if right.shape != lessons.right.shape:
        raise AgentError(f"teacher {teacher.kind!r} answers {right.shape}, lessons here need {lessons.right.shape}")
    return np.asarray(right, dtype=np.float64)


def _on_the_way(lessons: Lessons, world: FiniteWorld, goal: Goal, starts: np.ndarray) -> Lessons:
    """Lessons of the states that right actions lead through from some starts."""
    model = world.model
    right = np.zeros((model.n_states, model.n_actions), dtype=np.bool_)
    right[lessons.obs] = lessons.right > 0
    seen = np.zeros(model.n_states, dtype=np.bool_)
    seen[starts] = True
    count = 0
    while seen.sum() != count:
        count = int(seen.sum())
        where, action = np.nonzero(right & seen[:, None])
        possible = model.prob[where, action] > 0
        seen[model.next_state[where, action][possible]] = True
    rows = np.flatnonzero(seen[lessons.obs])
    if not len(rows):
        raise TrainingError(f"goal {goal.label} can be reached from none of the training starts; give others")
    return lessons.take(rows)


def aimed(teacher: Agent, goal: Goal, *, several: bool) -> Agent:
    """The teacher with a goal written into its slot; as it is, where there is one goal and no slot.

    Raises:
        AgentError: when it cannot be given the goal.
    """
    writes = teacher.slot_writes(goal) if isinstance(teacher, HasGoalSlot) else ()
    if not writes:
        if several:
            raise AgentError(
                f"teacher {teacher.kind!r} cannot be given goal {goal.label}; to teach several goals, use one with a "
                "goal slot, such as a planner"
            )
        return teacher
    write = writes[0]
    part = teacher.parts[write.part]
    array = np.full(part.array.shape, write.rest, dtype=part.array.dtype)
    for cell, value in write.cells:
        array.flat[cell] = value
    if isinstance(goal, StateGoal) and np.array_equal(array, part.array):
        return teacher
    return teacher.with_arrays({write.part: array})
