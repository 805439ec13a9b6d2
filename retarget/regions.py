"""Regions of a finite world, how often a policy is there, and how far two policies differ there and elsewhere.

A region is written as a few words, so that it fits a study file: `near a`, `near b`, `half`, `state`, `states 3 5 8`,
or `commonest action` (wherever the agent now takes the action that it takes most: a strategy, not a place).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.errors import ProbeError, unknown
from retarget.exact import discounted_transitions, optimal_values
from retarget.goal import StateGoal
from retarget.world import FiniteModel, FiniteWorld

#: Regions that are words alone; `states` is followed by numbers.
REGIONS = ("near a", "near b", "half", "state", "commonest action")


@dataclass(frozen=True, eq=False)
class Region:
    """Some states of a finite world.

    Attributes:
        inside: bool `[S]`.
        words: what a reader sees.
    """

    inside: np.ndarray
    words: str


def check_region(text: object) -> tuple[int, ...]:
    """The states that a region's words name one by one; empty where they name none.

    Raises:
        ProbeError: for words that are no region.

    >>> check_region("states 3 5 8"), check_region("near b")
    ((3, 5, 8), ())
    """
    if not isinstance(text, str):
        raise ProbeError(f"a region is a few words such as 'near b', got {text!r}")
    if text in REGIONS:
        return ()
    name, *numbers = text.split() or [""]
    if name != "states":
        raise ProbeError(unknown("region", text, (*REGIONS, "states 3 5 8")))
    if not numbers or not all(n.isascii() and n.isdigit() for n in numbers):
        raise ProbeError(f"region {text!r} must name states by their numbers, e.g. 'states 3 5 8'")
    return tuple(int(n) for n in numbers)


def region_of(
    world: FiniteWorld,
    text: str,
    *,
    radius: int,
    goal_a: StateGoal,
    goal_b: StateGoal,
    probs: np.ndarray,
    gamma: float,
) -> Region:
    """The region that words name.

    `near X`: states from which X can be reached in `radius` steps. `half`: the side of goal B. Where states have
    coordinates, what lies beyond the middle between A and B, along the axis on which they lie further apart (rows,
    where both are alike); elsewhere what is fewer steps from B than from A. `state`: the one state, on neither goal,
    where the agent decides most often. `commonest action`: the states where its likeliest action is the one that it
    takes most often.

    Args:
        world, text, goal_a, goal_b: what is asked.
        radius: steps, for `near`.
        probs: float64 `[S, A]`, the agent's behaviour.
        gamma: discount of the occupancy that "most" is measured by.

    Raises:
        ProbeError: for words that are no region, and for a region without states, or with states that are not there.
    """
    model, named = world.model, check_region(text)
    n = model.n_states
    if named:
        if max(named) >= n:
            raise ProbeError(f"region {text!r} names state {max(named)}; the world has states 0 to {n - 1}")
        inside = np.isin(np.arange(n), named)
        words = text
    elif text.startswith("near"):
        goal = goal_a if text == "near a" else goal_b
        far = steps_to(model, goal)
        inside, words = (far >= 0) & (far <= radius), f"{text}: at most {radius} steps away"
    elif text == "half":
        inside, words = _side_of_b(world, goal_a, goal_b), "the half of the world on the side of goal B"
    else:
        inside, words = _by_behaviour(world, text, goal_a, goal_b, probs, gamma)
    if not inside.any():
        raise ProbeError(f"region {text!r} is empty in {world.spec_data.label}; choose another region or radius")
    return Region(inside, words)


def _by_behaviour(
    world: FiniteWorld, text: str, goal_a: StateGoal, goal_b: StateGoal, probs: np.ndarray, gamma: float
) -> tuple[np.ndarray, str]:
    often = decisions(occupancy(world.model, probs, goal_a, world.start_states, gamma=gamma), goal_a)
    if text == "state":
        often[list(goal_b.states)] = 0.0
        often[list(goal_a.states)] = 0.0
        # rounded, so that ties stay ties whatever order the states were summed in
        return np.arange(len(often)) == int(np.round(often, 9).argmax()), "the state where it decides most often"
    action = commonest_action(probs, often)
    return probs.argmax(1) == action, f"wherever it takes action {action}, its commonest"


def commonest_action(probs: np.ndarray, often: np.ndarray) -> int:
    """The action that a policy `[S, A]` takes most, by weights of states `[S]`; the lowest-numbered of equals."""
    return int(np.round(often @ probs, 9).argmax())


def _side_of_b(world: FiniteWorld, goal_a: StateGoal, goal_b: StateGoal) -> np.ndarray:
    if world.coordinates is None:
        to_a, to_b = (np.where(d < 0, world.model.n_states, d) for d in _both(world.model, goal_a, goal_b))
        return np.asarray(to_b < to_a)
    place = np.asarray(world.coordinates, dtype=np.float64)
    a, b = place[list(goal_a.states)].mean(0), place[list(goal_b.states)].mean(0)
    axis = int(np.abs(b - a).argmax())
    toward = np.sign((b - a)[axis]) or 1.0
    return np.asarray((place[:, axis] - (a + b)[axis] / 2) * toward > 0)


def _both(model: FiniteModel, first: StateGoal, second: StateGoal) -> tuple[np.ndarray, np.ndarray]:
    return steps_to(model, first), steps_to(model, second)


def steps_to(model: FiniteModel, goal: StateGoal) -> np.ndarray:
    """Fewest steps to a goal over successors that are possible: int `[S]`, -1 where there is no way.

    >>> steps_to(FiniteModel.deterministic([[1], [2], [2]]), StateGoal.of([2])).tolist()
    [2, 1, 0]
    """
    from retarget.kernels import distances_to

    own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
    edges = np.where(model.prob > 0, model.next_state, own).reshape(model.n_states, -1).astype(np.int32)
    return np.asarray(distances_to(edges, goal.mask(model.n_states)))


def occupancy(
    model: FiniteModel, probs: np.ndarray, goal: StateGoal, starts: np.ndarray, *, gamma: float
) -> np.ndarray:
    """Normalised discounted occupancy `(1 - γ) Σ_t γ^t P(s_t = s)`: float64 `[S]`, which sums to 1.

    Starts are uniform over those not on the goal (over all, where there are no others); a goal that is reached is never
    left, so that what is reached stays on it. A linear solve.

    Args:
        model: the dynamics.
        probs: float64 `[S, A]`.
        goal: where episodes end.
        starts: int `[N]`.
        gamma: discount in (0, 1).

    >>> chain = FiniteModel.deterministic([[1], [2], [2]])
    >>> occupancy(chain, np.ones((3, 1)), StateGoal.of([2]), np.array([0]), gamma=0.5).tolist()
    [0.5, 0.25, 0.25]
    """
    n = model.n_states
    mask = goal.mask(n)
    free = np.setdiff1d(starts, np.flatnonzero(mask))
    first = np.zeros(n)
    first[free if free.size else starts] = 1.0
    matrix = discounted_transitions(model, probs, mask, gamma)
    matrix[mask, mask] = gamma
    out = np.linalg.solve(np.eye(n) - matrix.T, (1.0 - gamma) * first / first.sum())
    return np.asarray(np.maximum(out, 0.0))


def decisions(occupied: np.ndarray, goal: StateGoal) -> np.ndarray:
    """Share of a policy's decisions that falls to each state: occupancy off the goal, where alone it decides, scaled to
    sum to 1; all zeros where it never has to decide. Float64 `[S]`."""
    out = occupied.copy()
    out[list(goal.states)] = 0.0
    total = out.sum()
    return out / total if total > 0 else out


def softened_kl(new: np.ndarray, old: np.ndarray, epsilon: float) -> np.ndarray:
    """`KL(new || old)` in bits, state by state: float64 `[S]` of policies `[S, A]`, each mixed with a share `epsilon`
    of the uniform policy first (the divergence of two different sure actions would else be infinite).

    >>> softened_kl(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), 0.01).tolist()
    [0.0]
    >>> round(float(softened_kl(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), 0.01)[0]), 3)
    7.56
    """
    n = new.shape[1]
    p, q = ((1 - epsilon) * x + epsilon / n for x in (new, old))
    return np.asarray(np.maximum((p * np.log2(p / q)).sum(1), 0.0))


def reachable(model: FiniteModel, goal: StateGoal, *, gamma: float) -> np.ndarray:
    """Bool `[S]`: states off the goal from which it can be reached, where alone some actions are better than others."""
    out = optimal_values(model, goal, gamma=gamma) > 0
    out[list(goal.states)] = False
    return np.asarray(out)
