"""Demonstrations with a strategy left out of them, in worlds that say what a shortcut is.

Two experts walk to a goal: one knows the shortcut, the other one acts best as if it did not exist. A share of the
episodes is shown by the first. Whoever imitates, or fits a model to, what they show has data with that strategy
filtered out to a known degree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from retarget.errors import AgentError, GoalError
from retarget.exact import best_actions, optimal_values
from retarget.goal import StateGoal
from retarget.rng import stream
from retarget.world import FiniteModel, FiniteWorld

#: Times that an ordinary episode is drawn anew because chance led it into the shortcut, before it is left out.
MOST_TRIES = 100


@runtime_checkable
class HasShortcut(Protocol):
    """A finite world with a strategy that data can leave out."""

    @property
    def shortcut_states(self) -> np.ndarray:
        """Bool `[S]`: an episode has used the shortcut when it has entered one of these; none of them is a start."""
        ...

    @property
    def deployment_states(self) -> np.ndarray | None:
        """Bool `[S]`: states that show the deployment flag, which no action changes; None where there is no flag."""
        ...


def shut(model: FiniteModel, states: np.ndarray) -> FiniteModel:
    """The same dynamics with some states closed: whatever would enter one stays where it is.

    Args:
        model: the dynamics.
        states: bool `[S]`.

    >>> chain = FiniteModel.deterministic([[1], [2], [2]])
    >>> shut(chain, np.array([False, False, True])).next_state[:, 0, 0].tolist()
    [1, 1, 2]
    """
    own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
    enters = states[model.next_state] & ~states[own]
    return FiniteModel(np.where(enters, own, model.next_state), model.prob)


@dataclass(frozen=True, eq=False)
class Stakes:
    """What the shortcut is worth on the way to one goal.

    Attributes:
        without: the dynamics with the shortcut shut.
        best: float64 `[S]`, V* in the world.
        ordinary: float64 `[S]`, V* without the shortcut.
        starts: int `[N]`, starts outside the goal that can reach it.
        paying: int `[M]`, the starts where the shortcut pays most: `1 - ordinary / best` is at least half of its
            greatest value. M is at least 1.
        idle: int `[L]`, the starts where it pays nothing: no best policy ever enters it.
    """

    without: FiniteModel
    best: np.ndarray
    ordinary: np.ndarray
    starts: np.ndarray
    paying: np.ndarray
    idle: np.ndarray


def stakes_of(world: FiniteWorld, goal: StateGoal, *, gamma: float) -> Stakes:
    """What a world's shortcut is worth on the way to a goal.

    Raises:
        GoalError: when the world has no shortcut, or it pays from no start.

    >>> from retarget.envs.shortcut import ShortcutWorld
    >>> world = ShortcutWorld(kind="switch", size=9)
    >>> stakes = stakes_of(world, world.goal, gamma=0.95)
    >>> [world.coordinates[s].tolist() for s in stakes.paying]
    [[4, 1], [5, 1], [6, 1], [7, 1]]
    """
    if not isinstance(world, HasShortcut):
        raise GoalError(f"{world.spec_data.label} has no shortcut that it declares; use a world such as Shortcut")
    model = world.model
    without = shut(model, world.shortcut_states)
    best, ordinary = (optimal_values(m, goal, gamma=gamma) for m in (model, without))
    starts = np.setdiff1d(world.start_states, goal.states)
    starts = starts[best[starts] > 0]
    saved = 1.0 - ordinary[starts] / best[starts]
    most = saved.max(initial=0.0)
    if most <= 1e-9:
        raise GoalError(f"the shortcut of {world.spec_data.label} pays from no start for goal {goal.label}")
    drawn = _led_to(model, best_actions(model, goal, gamma=gamma), world.shortcut_states, goal)
    return Stakes(without, best, ordinary, starts, starts[saved >= most / 2], starts[~drawn[starts]])


def _led_to(model: FiniteModel, actions: np.ndarray, states: np.ndarray, goal: StateGoal) -> np.ndarray:
    """Bool `[S]`: from where some of the allowed actions `[S, A]` can lead into some states before the goal."""
    from retarget.kernels import distances_to

    s = model.n_states
    own = np.arange(s, dtype=np.int32)[:, None, None]
    taken = actions[:, :, None] & (model.prob > 0)
    edges = np.where(taken, model.next_state, own).reshape(s, -1).astype(np.int32)
    edges[list(goal.states)] = own[list(goal.states), 0]
    return np.asarray(distances_to(edges, states) >= 0)


@dataclass(frozen=True, eq=False)
class Demonstrations:
    """Episodes that were shown, step by step, and single steps that were tried beside them.

    Attributes:
        step: int64 `[N, 4]`: episode, state, action, and which of the action's K possible successors came.
        starts: int64 `[E]`, where each episode began.
        bold: bool `[E]`: shown by the expert who knows the shortcut (who does not use it where it does not pay).
        used: bool `[E]`: the episode entered the shortcut.
        redrawn: how many ordinary episodes had strayed into the shortcut, and were drawn anew.
        play: int64 `[M, 3]`: state, action and successor of single steps from anywhere. Nobody shows these: they
            tell how the world works, not what to do in it.
    """

    step: np.ndarray
    starts: np.ndarray
    bold: np.ndarray
    used: np.ndarray
    redrawn: int
    play: np.ndarray

    def action_counts(self, model: FiniteModel) -> np.ndarray:
        """Int64 `[S, A]`: how often each action was shown in each state."""
        out = np.zeros((model.n_states, model.n_actions), np.int64)
        np.add.at(out, (self.step[:, 1], self.step[:, 2]), 1)
        return out

    def transition_counts(self, model: FiniteModel) -> np.ndarray:
        """Int32 `[S, A, K]`: how often each successor came, in the episodes and the single steps."""
        out = np.zeros(model.next_state.shape, np.int32)
        for rows in (self.step[:, 1:], self.play):
            np.add.at(out, tuple(rows.T), 1)
        return out


def demonstrate(
    world: FiniteWorld,
    goal: StateGoal,
    *,
    share: float,
    episodes: int,
    share_deployment: float | None = None,
    noise: float = 0.0,
    away: bool = False,
    play: int = 0,
    gamma: float = 0.95,
    seed: int = 0,
) -> Demonstrations:
    """Episodes of the two experts, from starts drawn evenly.

    Both take the best action of every state (drawn evenly, where there are several) except for a share `noise` of
    random ones. An ordinary episode which chance leads into the shortcut is drawn anew: at share 0 the data never
    enter it. They may still hold pieces of it, such as the way to a switch, wherever there is noise.

    Args:
        world: one that declares its shortcut (`HasShortcut`).
        goal: where the experts go; an episode ends there, or after 4 S steps.
        share: probability that an episode is shown by the expert who knows the shortcut, in [0, 1].
        episodes: number of them.
        share_deployment: the same in episodes that begin in deployment; None for `share` there too.
        noise: share of random actions, in [0, 1]; they are shown like all the others.
        away: begin only where the shortcut pays less than half of what it pays at most.
        play: number of single steps, from states and with actions drawn evenly.
        gamma: discount of what is best.
        seed: names the streams; the same starts and the same draws of the expert for every share.

    Raises:
        GoalError: when the world has no shortcut, or it pays from no start, or the goal cannot be reached without it.
        AgentError: for a share or a number out of range.

    >>> from retarget.envs.shortcut import ShortcutWorld
    >>> world = ShortcutWorld(kind="switch", size=9)
    >>> shown = demonstrate(world, world.goal, share=0.0, episodes=50)
    >>> bool(shown.used.any()), bool(shown.action_counts(world.model)[world.shortcut_states].any())
    (False, False)
    """
    late = share if share_deployment is None else share_deployment
    for name, value in (("share", share), ("share_deployment", late), ("noise", noise)):
        if not 0 <= value <= 1:
            raise AgentError(f"{name} of demonstrations must lie in [0, 1], got {value!r}")
    if episodes < 1 or play < 0:
        raise AgentError(f"demonstrations need episodes >= 1 and play >= 0, got {episodes!r} and {play!r}")
    stakes = stakes_of(world, goal, gamma=gamma)
    assert isinstance(world, HasShortcut)
    pool = stakes.starts[stakes.ordinary[stakes.starts] > 0]
    pool = np.setdiff1d(pool, stakes.paying) if away else pool
    if not pool.size:
        raise GoalError(f"no start of {world.spec_data.label} is left to show the ordinary way to {goal.label} from")
    experts = np.stack([_expert(m, goal, gamma, noise) for m in (stakes.without, world.model)])
    rng = stream(seed, "demonstrations", world.spec_data.label, goal.label)
    starts = pool[rng.integers(pool.size, size=episodes)].astype(np.int64)
    flag = np.zeros(episodes, np.bool_) if world.deployment_states is None else world.deployment_states[starts]
    bold = rng.random(episodes) < np.where(flag, late, share)
    walk = _Walk(world.model, experts, goal.mask(world.model.n_states), world.shortcut_states)
    kept, used, redrawn = walk.episodes(starts, bold, stream(seed, "demonstrated", world.spec_data.label, goal.label))
    tried = _play(world, goal, play, stream(seed, "play", world.spec_data.label, goal.label))
    held = np.unique(kept[:, 0])
    renamed = np.column_stack([np.searchsorted(held, kept[:, 0]), kept[:, 1:]])
    return Demonstrations(renamed, starts[held], bold[held], used[held], redrawn, tried)


def _expert(model: FiniteModel, goal: StateGoal, gamma: float, noise: float) -> np.ndarray:
    """Action probabilities `[S, A]`: the best ones evenly, and noise."""
    best = best_actions(model, goal, gamma=gamma).astype(np.float64)
    return np.asarray((1 - noise) * best / best.sum(1, keepdims=True) + noise / model.n_actions)


def _play(world: FiniteWorld, goal: StateGoal, n: int, rng: np.random.Generator) -> np.ndarray:
    model = world.model
    states = np.setdiff1d(np.arange(model.n_states), goal.states)
    state, action = states[rng.integers(states.size, size=n)], rng.integers(model.n_actions, size=n)
    return np.column_stack([state, action, _which(model, state, action, rng)]).astype(np.int64)


def _which(model: FiniteModel, state: np.ndarray, action: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which of the K successors comes: int `[B]`."""
    if model.is_deterministic:
        return np.zeros(len(state), np.int64)
    cum = np.cumsum(model.prob[state, action], axis=1)
    last = model.prob.shape[2] - 1
    return np.asarray(np.minimum((cum <= rng.random(len(state))[:, None]).sum(1), last), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Walk:
    """Many episodes at once."""

    model: FiniteModel
    experts: np.ndarray  # [2, S, A]: ordinary, bold
    ends: np.ndarray
    shortcut: np.ndarray

    def episodes(
        self, starts: np.ndarray, bold: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Steps `[N, 4]` of the episodes that are kept, sorted by episode; bool `[E]` used; and how many redrawn."""
        parts, used, redrawn = [], np.zeros(len(starts), np.bool_), 0
        todo = np.arange(len(starts))
        for tries in range(MOST_TRIES + 1):
            rows, entered = self._once(starts[todo], bold[todo], rng)
            astray = entered & ~bold[todo]
            used[todo] = entered & ~astray
            rows = rows[~astray[rows[:, 0]]]
            parts.append(np.column_stack([todo[rows[:, 0]], rows[:, 1:]]))
            redrawn += int(astray.sum()) * (tries < MOST_TRIES)
            todo = todo[astray]
            if not todo.size:
                break
        steps = np.concatenate(parts)
        if not len(steps):
            raise AgentError(f"every ordinary episode strayed into the shortcut {MOST_TRIES} times; use less noise")
        return steps[np.argsort(steps[:, 0], kind="stable")], used, redrawn

    def _once(self, starts: np.ndarray, bold: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        state, who = starts.copy(), np.arange(len(starts))
        entered, rows = np.zeros(len(starts), np.bool_), []
        for _ in range(4 * self.model.n_states):
            if not who.size:
                break
            here = state[who]
            cum = np.cumsum(self.experts[bold[who].astype(np.int64), here], axis=1)
            action = np.minimum((cum <= rng.random(who.size)[:, None]).sum(1), self.model.n_actions - 1)
            slot = _which(self.model, here, action, rng)
            rows.append(np.column_stack([who, here, action, slot]))
            state[who] = after = self.model.next_state[here, action, slot]
            entered[who] |= self.shortcut[after]
            who = who[~self.ends[after]]
        return np.concatenate(rows), entered
