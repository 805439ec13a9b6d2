"""Adaptation after a local change: seen near the goal alone, and judged from everywhere (the LoCA protocol)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from retarget.agent import Agent, Categorical, HasGoalSlot, HasModel, Trainable
from retarget.agents.wrappers import ModelWorld
from retarget.editors.gradient import Differentiable, Tuner, names_of
from retarget.editors.slot import slot_edit
from retarget.errors import AgentError, GoalError, ProbeError, unknown
from retarget.exact import Yardstick, optimal_values
from retarget.goal import StateGoal
from retarget.lessons import Lessons, lessons_of
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.regions import steps_to
from retarget.row import Kind, Measurement
from retarget.spend import Spend
from retarget.world import FiniteModel, FiniteWorld

Change = Literal["reward", "wall", "turn"]
#: Ways to change a world near goal A, and what each is.
CHANGES: dict[Change, str] = {
    "reward": "a reward that dwarfs goal A's appears at the goal farthest from A",
    "wall": "a wall closes one way into goal A",
    "turn": "in one state next to goal A, each action does what the next one did",
}


class Adaptation(Probe):
    """Whether what an agent learns near its goal changes what it does far away (LoCA: Van Seijen et al. 2020, "The LoCA
    regret"; Wan et al. 2022).

    The world changes near one goal: a reward that dwarfs that of A appears at the goal farthest from A (from then on,
    that one is to be reached), or transitions change next to A. The agent adapts by what can be seen there alone, and
    is then judged in the changed world from every start. How it adapts is its route, the first that it has:

    - `slot`: the place of the new reward is written into its goal slot (change of reward);
    - `model`: the new successors are written into its model (change of transitions);
    - `episodes`: it is retrained by episodes that start near that goal, in a world fenced off there: a move that would
      leave keeps it where it is;
    - `lessons`: its weights are tuned on what is right there, in the fenced world.

    Competence is the mean of V/V* in the changed world, over local starts and over all others: exact. Control: the same
    route and budget with all starts and no fence (where a slot or a model is written, that is the same).

    Args:
        changes: which changes to try: `reward`, `wall`, `turn`.
        radius: steps to the goal that is to be reached that count as local.
        episodes: budget of retraining.
        updates: gradient steps of tuning.

    Raises:
        ProbeError: for options out of range.

    >>> import retarget
    >>> from retarget.agents import compile_policy, exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> goal = world.as_goal((1, 1))
    >>> planner = exact_planner(world, goal)
    >>> probe = Adaptation(changes=("reward",))
    >>> probe.measure(retarget.Subject(planner, world, goal))["global_competence"].value
    1.0
    >>> table = compile_policy(planner, world)
    >>> probe.measure(retarget.Subject(table, world, goal))["loca_gap"].value > 0.1
    True
    """

    name: ClassVar[str] = "adaptation"
    kind: ClassVar[Kind] = "evaluation"
    metrics: ClassVar = {
        "local_before": Metric("1", "competence in the changed world from local starts, not adapted", 0.0, 1.0),
        "global_before": Metric("1", "the same from all other starts", 0.0, 1.0),
        "local_competence": Metric("1", "competence from local starts, adapted by what is local", 0.0, 1.0),
        "global_competence": Metric("1", "the same from all other starts", 0.0, 1.0),
        "loca_gap": Metric("1", "local_competence less global_competence", -1.0, 1.0),
        "global_competence_all": Metric("1", "control: global_competence, adapted from all starts", 0.0, 1.0),
        "global_uniform": Metric("1", "control: a uniform policy from the other starts", 0.0, 1.0),
    }
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(
        self,
        *,
        changes: tuple[str, ...] = ("reward", "wall", "turn"),
        radius: int = 3,
        episodes: int = 1024,
        updates: int = 300,
    ) -> None:
        given = (changes,) if isinstance(changes, str) else tuple(changes)
        for change in given:
            if change not in CHANGES:
                raise ProbeError(unknown("change", change, CHANGES))
        if not given or len(set(given)) < len(given):
            raise ProbeError(f"changes must name at least one change, and each once, got {changes!r}")
        counts = {"radius": radius, "episodes": episodes, "updates": updates}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProbeError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.changes: tuple[Change, ...] = given  # type: ignore[assignment]
        self.radius, self.episodes, self.updates = radius, episodes, updates

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        world, goal = subject.world, subject.goal_a
        if not isinstance(world, FiniteWorld) or not isinstance(goal, StateGoal):
            return self.all_not_applicable("states cannot be listed here: the world is not finite")
        parts = []
        for i, change in enumerate(self.changes):
            tell(i / len(self.changes), f"change of {change}")
            parts.append(self._changed(subject, world, goal, change))
        return Outcome(tuple(m for name in self.metrics for rows in parts for m in rows if m.metric == name))

    def _changed(self, subject: Subject, world: FiniteWorld, goal: StateGoal, change: Change) -> list[Measurement]:
        words = CHANGES[change]
        try:
            local = local_change(world, goal, change, radius=self.radius, gamma=subject.gamma)
            judge = Yardstick.of(local.world, local.goal, gamma=subject.gamma)
            near = local.inside[judge.starts]
            if near.all() or not near.any():
                raise GoalError(f"{'every' if near.all() else 'no'} start that counts is local")
            before = judge.ratios_of(subject.agent)
            route = self._route(subject.agent, local)
            adapted, spend = self._adapted(subject, local, route, fenced=True)
            everywhere, _ = self._adapted(subject, local, route, fenced=False)
            after, control = judge.ratios_of(adapted), judge.ratios_of(everywhere)
        except (AgentError, GoalError) as error:
            return [Measurement.not_applicable(n, str(error), protocol=words) for n in self.metrics]
        uniform = judge.ratios(np.full(world.model.next_state.shape[:2], 1.0 / world.model.n_actions))
        gap = _mean(after[near]) - _mean(after[~near])
        protocol = f"{words}; adapted by {route}"
        values = (
            _mean(before[near]), _mean(before[~near]), _mean(after[near]), _mean(after[~near]), gap,
            _mean(control[~near]), _mean(uniform[~near]),
        )  # fmt: skip
        costs = {"local_competence": spend, "global_competence": spend}
        return [
            Measurement.ok(n, v, protocol=protocol, spend=costs.get(n))
            for n, v in zip(self.metrics, values, strict=True)
        ]

    def _route(self, agent: Agent, local: LocalChange) -> str:
        """The first way to adapt that the agent has.

        Raises:
            AgentError: where it has none.
        """
        if local.moved_reward and isinstance(agent, HasGoalSlot) and agent.slot_writes(local.goal):
            return "slot"
        if not local.moved_reward and _successors(agent, local.world.model) is not None:
            return "model"
        if isinstance(agent, Trainable):
            return "episodes"
        if isinstance(agent, Differentiable) and names_of(agent, "weight"):
            return "lessons"
        told = "the place of a reward" if local.moved_reward else "new transitions"
        raise AgentError(f"agent {agent.kind!r} can neither be retrained nor told of {told}")

    def _adapted(self, subject: Subject, local: LocalChange, route: str, *, fenced: bool) -> tuple[Agent, Spend]:
        agent, world = subject.agent, local.fenced if fenced else local.world
        if route == "slot" and isinstance(agent, HasGoalSlot):
            return slot_edit(agent, agent.slot_writes(local.goal)[0]).apply(agent), Spend()
        if route == "model":
            return _told(agent, local), Spend()
        if route == "episodes" and isinstance(agent, Trainable):
            return agent.retrained(world, local.goal, budget=self.episodes, seed=subject.seed)
        lessons = _lessons(subject, local, world)
        tuner = Tuner(agent, names_of(agent, "weight"), lessons, seed=subject.seed)
        theta = tuner.fit(tuner.base, steps=self.updates, lr=0.01)
        return agent.with_arrays(tuner.arrays(theta)), Spend(grad_steps=tuner.grad_steps, flops=tuner.flops)


def _mean(ratios: np.ndarray) -> float:
    # sorted, so that the order of the states does not enter through rounding
    return float(min(np.sort(ratios).mean(), 1.0))


def _lessons(subject: Subject, local: LocalChange, world: ModelWorld) -> Lessons:
    """What is right in a world: in every state that its starts can be, or in episodes for an agent with memory.

    Raises:
        AgentError: where the goal cannot be reached from any start, so that nothing is right.
    """
    able = steps_to(world.model, local.goal) > 0
    if not able[world.start_states].any():
        raise AgentError("the fence cuts every local start off from the goal: nothing right can be shown there")
    steps = 16 if subject.agent.has_memory else 0
    lessons = lessons_of(world, local.goal, gamma=subject.gamma, seed=subject.seed, n=32, steps=steps)
    if steps or world is local.world:
        return lessons
    return lessons.take(np.flatnonzero(local.inside[lessons.obs]))


@dataclass(frozen=True, eq=False)
class LocalChange:
    """A world that has changed near a goal.

    Attributes:
        world: after the change, with all starts.
        goal: where the reward now is.
        inside: bool `[S]`, the local states.
        at: int `[N, 2]`, states and actions whose successors are new.
        moved_reward: whether the reward changed; else transitions did.
    """

    world: ModelWorld
    goal: StateGoal
    inside: np.ndarray
    at: np.ndarray
    moved_reward: bool

    @cached_property
    def fenced(self) -> ModelWorld:
        """The changed world with local starts, where a move that would leave the local states stays in its place."""
        model, inside = self.world.model, self.inside
        own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
        nxt = np.where(inside[:, None, None] & ~inside[model.next_state], own, model.next_state)
        starts = np.intersect1d(self.world.start_states, np.flatnonzero(inside))
        return _world(self.world, FiniteModel(nxt, model.prob), self.goal, starts, "fenced")


def local_change(world: FiniteWorld, goal: StateGoal, change: Change, *, radius: int, gamma: float) -> LocalChange:
    """Change a world near a goal, where no start may be cut off from what is to be reached.

    `reward`: from now on the goal farthest from A (by the steps from A; the lowest-numbered of equals) is to be
    reached. `wall`: in a state next to A, moves into A become bumps. `turn`: in a state next to A, each action takes
    the successors of the next one. Of the states next to A the one whose change costs the optimal policy most is taken
    (the lowest-numbered of equals). Local are the states within `radius` steps of what is to be reached, before the
    change, and the changed state.

    Args:
        world, goal, change: what is changed.
        radius: steps.
        gamma: discount of the cost.

    Raises:
        GoalError: where the world offers no such change.
    """
    model = world.model
    if change == "reward":
        far = _farthest(world, goal)
        changed = _world(world, model, far, world.start_states, change)
        return LocalChange(changed, far, _near(model, far, radius), np.zeros((0, 2), np.int64), True)
    able = world.start_states[steps_to(model, goal)[world.start_states] >= 0]
    found: list[tuple[float, Changed]] = []
    for new, at in _walls(model, goal) if change == "wall" else _turns(model, goal):
        if (steps_to(new, goal)[able] >= 0).all():
            found.append((round(float(optimal_values(new, goal, gamma=gamma)[able].sum()), 9), (new, at)))
    if not found:
        why = "every wall cuts off some start" if change == "wall" else "no state next to it has actions that differ"
        raise GoalError(f"goal {goal.label} offers no change of transitions near it: {why}")
    new, at = min(found, key=lambda f: f[0])[1]
    inside = _near(model, goal, radius)
    inside[at[:, 0]] = True
    return LocalChange(_world(world, new, goal, world.start_states, change), goal, inside, at, False)


def _world(world: FiniteWorld, model: FiniteModel, goal: StateGoal, starts: np.ndarray, words: str) -> ModelWorld:
    name = f"{world.spec_data.label}, {words}"
    return ModelWorld(model, goal, starts, world.goals, world.coordinates, world.action_moves, name)


def _near(model: FiniteModel, goal: StateGoal, radius: int) -> np.ndarray:
    far = steps_to(model, goal)
    return np.asarray((far >= 0) & (far <= radius))


def _farthest(world: FiniteWorld, goal: StateGoal) -> StateGoal:
    """The world's goal that is most steps away from A, of those that A can reach."""
    far = {g: int(steps_to(world.model, g)[list(goal.states)].min()) for g in world.goals}
    best = max(far, key=lambda g: far[g], default=goal)
    if far.get(best, 0) <= 0:
        raise GoalError(f"the world has no goal that can be reached from goal {goal.label}")
    return best


def _doors(model: FiniteModel, goal: StateGoal) -> list[int]:
    """States next to a goal, by number."""
    mask = goal.mask(model.n_states)
    enters = (mask[model.next_state] & (model.prob > 0)).any(2)
    return [int(s) for s in np.flatnonzero(enters.any(1) & ~mask)]


Changed = tuple[FiniteModel, np.ndarray]


def _walls(model: FiniteModel, goal: StateGoal) -> Iterator[Changed]:
    mask = goal.mask(model.n_states)
    for s in _doors(model, goal):
        nxt = model.next_state.copy()
        nxt[s] = np.where(mask[nxt[s]], s, nxt[s])
        actions = np.flatnonzero((nxt[s] != model.next_state[s]).any(1))
        yield FiniteModel(nxt, model.prob), np.array([(s, a) for a in actions])


def _turns(model: FiniteModel, goal: StateGoal) -> Iterator[Changed]:
    for s in _doors(model, goal):
        nxt, prob = model.next_state.copy(), model.prob.copy()
        nxt[s], prob[s] = np.roll(nxt[s], -1, axis=0), np.roll(prob[s], -1, axis=0)
        actions = np.flatnonzero(((nxt[s] != model.next_state[s]) | (prob[s] != model.prob[s])).any(1))
        if actions.size:
            yield FiniteModel(nxt, prob), np.array([(s, a) for a in actions])


def _successors(agent: Agent, model: FiniteModel) -> str | None:
    """The agent's part that names successors of each state and action; None where it has none."""
    if isinstance(agent, HasModel):
        return agent.model_cells()[0]
    shape = (model.n_states, model.n_actions)
    for part in agent.parts.values():
        if part.role == "model" and isinstance(part.alphabet, Categorical) and part.array.shape[:2] == shape:
            return part.name
    return None


def _told(agent: Agent, local: LocalChange) -> Agent:
    """The agent with the new successors of the changed moves in its model: all of them where it holds as many as the
    world has, with their probabilities; else the likeliest."""
    model, name = local.world.model, _successors(agent, local.world.model)
    assert name is not None
    old = agent.parts[name].array
    new = old.reshape(model.n_states, model.n_actions, -1).copy()
    arrays, s, a = {}, local.at[:, 0], local.at[:, 1]
    if new.shape == model.next_state.shape:
        new[s, a] = model.next_state[s, a]
        prob = agent.parts.get("prob")
        if prob is not None and prob.role == "model" and prob.array.shape == model.prob.shape:
            told = prob.array.copy()
            told[s, a] = model.prob[s, a]
            arrays["prob"] = told
    else:
        likely = model.prob[s, a].argmax(1)
        new[s, a] = model.next_state[s, a, likely][:, None]
    return agent.with_arrays({name: new.reshape(old.shape), **arrays})
