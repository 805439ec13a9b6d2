"""Inputs outside the training range of a finite world, and exact policies under disturbed observations.

Five regimes, each with a dial, `dose` in [0, 1]; at 0 there is no disturbance:

1. absence: the agent sees a state drawn evenly in place of its own, with probability `dose`;
2. extreme: states whose coordinates lie beyond the bounding box of the trained ones, up to `dose` of the farthest;
3. inner: states whose coordinates were each trained on, never together, up to `dose` of the farthest from training;
4. adversarial: in a share `dose` of states, what the agent sees is swapped for another state by a budgeted search;
5. narrow: fine-tuned from a narrow set of starts, evaluated from the others (its dial is the length of fine-tuning).

Everything here is arrays in, arrays out. Worlds with continuous states: `retarget.shifted_box`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retarget.errors import ProbeError, unknown
from retarget.exact import DENSE_LIMIT, Yardstick, action_values, discounted_transitions, reach_values
from retarget.rng import stream
from retarget.world import FiniteModel

ABSENCE, EXTREME, INNER, ADVERSARIAL, NARROW = REGIMES = (
    "1 absence", "2 extreme", "3 inner", "4 adversarial", "5 narrow",
)  # fmt: skip
#: Names of nominal training regions.
REGIONS = (
    "west half", "east half", "north half", "south half",
    "all but south-east", "all but south-west", "all but north-east", "all but north-west", "near half",
)  # fmt: skip
#: Behaviours that an adversary chooses among at most.
_MOST_SEEN = 64
#: Above this many states the effect of a swap is taken to first order.
_EXACT_LIMIT = 512


def check_dose(dose: float) -> float:
    """A strength in [0, 1].

    Raises:
        ProbeError: for anything else.
    """
    if isinstance(dose, bool) or not isinstance(dose, (int, float, np.number)) or not 0 <= dose <= 1:
        raise ProbeError(f"dose must be a number from 0 to 1, got {dose!r}; 0 is the undisturbed world")
    return float(dose)


# ------------------------------------------------------------------------------------------------ regions


def region(name: str, states: np.ndarray, coordinates: np.ndarray | None, nearness: np.ndarray) -> np.ndarray:
    """The states of a nominal region: int `[N]`, some of `states`.

    Halves are cut in the middle of the rows or columns that `states` span, which itself goes west or north; a region
    `all but` leaves one quarter out, so that every row and every column is in it. `near half` are the states of at
    least median `nearness`, and stands in for the others where there are no coordinates.

    Args:
        name: one of `REGIONS`.
        states: int `[N]`.
        coordinates: int `[S, 2]` row and column, or None.
        nearness: float64 `[S]`, e.g. the best discount at which the goal is reached.

    Raises:
        ProbeError: for an unknown name.

    >>> grid = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> region("all but south-east", np.arange(4), grid, np.zeros(4)).tolist()
    [0, 1, 2]
    """
    if name not in REGIONS:
        raise ProbeError(unknown("region", name, REGIONS))
    states = np.asarray(states, dtype=np.int64)
    if not states.size:
        return states
    if coordinates is None or name == "near half":
        worth = nearness[states]
        return np.asarray(states[worth >= np.median(worth) - 1e-12])
    place = coordinates[states]
    middle = (place.min(0) + place.max(0)) / 2
    south, east = (place > middle).T
    sides = {"west": ~east, "east": east, "north": ~south, "south": south}
    if name.endswith("half"):
        return np.asarray(states[sides[name.split()[0]]])
    first, second = name.removeprefix("all but ").split("-")
    return np.asarray(states[~(sides[first] & sides[second])])


def excess(coordinates: np.ndarray, known: np.ndarray) -> np.ndarray:
    """How far each point lies beyond the bounding box of the known ones, in steps (sum over coordinates): `[S]`.

    >>> excess(np.array([[0, 0], [0, 3], [5, 1]]), np.array([[0, 0], [2, 1]])).tolist()
    [0.0, 2.0, 3.0]
    """
    low, high = known.min(0), known.max(0)
    over = np.maximum(low - coordinates, 0) + np.maximum(coordinates - high, 0)
    return np.asarray(over.sum(1), dtype=np.float64)


def nearest_known(coordinates: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distance of each point to the nearest known one, in steps (sum over coordinates): float64 `[S]`."""
    return np.asarray(np.abs(coordinates[:, None] - known[None]).sum(2).min(1), dtype=np.float64)


def beyond(coordinates: np.ndarray, known: np.ndarray, *, dose: float) -> np.ndarray:
    """Regime 2: indices of points beyond the bounding box of the known ones, by at most `dose` of the farthest.

    >>> beyond(np.array([[0, 0], [0, 1], [0, 2], [0, 3]]), np.array([[0, 0], [0, 1]]), dose=0.5).tolist()
    [2]
    """
    far = excess(coordinates, known)
    return _up_to(far, far > 0, check_dose(dose))


def inner(coordinates: np.ndarray, known: np.ndarray, *, dose: float) -> np.ndarray:
    """Regime 3: indices of points whose coordinates occur among the known ones, each, but never together; no farther
    from a known one than `dose` of the farthest such point.

    >>> inner(np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]]), np.array([[0, 0], [0, 1], [1, 0]]), dose=1.0).tolist()
    [3]
    """
    each = np.all([np.isin(coordinates[:, d], known[:, d]) for d in range(coordinates.shape[1])], axis=0)
    far = nearest_known(coordinates, known)
    return _up_to(far, each & (far > 0), check_dose(dose))


def _up_to(far: np.ndarray, mask: np.ndarray, dose: float) -> np.ndarray:
    if not mask.any() or dose == 0:
        return np.zeros(0, dtype=np.int64)
    # the nearest ones belong to every dose: there is no dose at which nothing is disturbed, but 0
    limit = max(dose * far[mask].max(), far[mask].min())
    return np.flatnonzero(mask & (far <= limit + 1e-9))


def steps_between(model: FiniteModel, states: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fewest steps from each state to each known one: float64 `[N, M]`; S where there is no way."""
    from retarget.kernels import distances_to

    own = np.arange(model.n_states, dtype=np.int32)[:, None, None]
    edges = np.where(model.prob > 0, model.next_state, own).reshape(model.n_states, -1).astype(np.int32)
    columns = []
    for state in known:
        mask = np.zeros(model.n_states, dtype=np.bool_)
        mask[state] = True
        columns.append(distances_to(edges, mask)[states])
    steps = np.stack(columns, axis=1).astype(np.float64)
    return np.where(steps < 0, float(model.n_states), steps)


def distances(points: np.ndarray, known: np.ndarray, *, box: bool = False) -> np.ndarray:
    """Sum over coordinates of the differences between points and known ones: float64 `[N, M]`; with `box`, from the
    nearest point of the known ones' bounding box.

    >>> distances(np.array([[0, 5]]), np.array([[1, 0], [0, 2]]), box=True).tolist()
    [[3.0, 0.0]]
    """
    if box:
        points = np.clip(points, known.min(0), known.max(0))
    return np.asarray(np.abs(points[:, None] - known[None]).sum(2), dtype=np.float64)


# ------------------------------------------------------------------------------------------------ policies


def blinded(probs: np.ndarray, *, dose: float) -> np.ndarray:
    """Regime 1: the policy of an agent that sees, with probability `dose`, a state drawn evenly in place of its own.

    `(1 - dose) π(·|s) + dose mean_o π(·|o)`: float64 `[S, A]`.

    >>> blinded(np.array([[1.0, 0.0], [0.0, 1.0]]), dose=1.0).tolist()
    [[0.5, 0.5], [0.5, 0.5]]
    """
    dose = check_dose(dose)
    if dose == 0:
        return np.asarray(probs)
    mean = probs.mean(0)
    return np.asarray((1.0 - dose) * probs + dose * (mean / mean.sum()))


@dataclass(frozen=True, eq=False)
class Swaps:
    """Which states are shown as which others.

    Attributes:
        states: int `[k]`, distinct.
        seen: int `[k]`, what the agent sees there.
    """

    states: np.ndarray
    seen: np.ndarray

    def apply(self, probs: np.ndarray) -> np.ndarray:
        """The policy under these swaps: float64 `[S, A]`."""
        out = np.array(probs, dtype=np.float64)
        out[self.states] = probs[self.seen]
        return out


def n_swaps(n: int, *, dose: float) -> int:
    """How many of n states a share `dose` is: 0 at 0, else at least 1."""
    dose = check_dose(dose)
    return 0 if dose == 0 or n == 0 else max(1, min(n, math.floor(dose * n + 0.5)))


def random_swaps(n_states: int, among: np.ndarray, *, k: int, n: int, seed: int) -> tuple[Swaps, ...]:
    """Control of regime 4: n draws of k states `among` some, each shown as another state drawn evenly."""
    rng = stream(seed, "random_swaps", n_states, k)
    out = []
    for _ in range(n):
        states = rng.permutation(among)[:k]
        seen = (states + rng.integers(1, max(n_states, 2), size=len(states))) % n_states
        out.append(Swaps(states, seen))
    return tuple(out)


@dataclass(frozen=True, eq=False)
class Attack:
    """What an adversary found.

    Attributes:
        swaps: the worst ones found.
        trace: float64 `[budget]`, least competence found after each evaluation: never rising. The first is that of no
            swap at all.
    """

    swaps: Swaps
    trace: np.ndarray

    @property
    def competence(self) -> float:
        return float(self.trace[-1])


def attack(judge: Yardstick, probs: np.ndarray, among: np.ndarray, *, k: int, budget: int, seed: int) -> Attack:
    """Regime 4: at most k swaps that leave the least competence, by local search within `budget` evaluations.

    An evaluation solves one policy, which also tells what each single further swap would do (`effects`). The search
    adds the worst swap until there are k; then it drops one or two, drawn at random, and adds again, and keeps what is
    no better for the agent. A longer budget goes on where a shorter one stops, so that the result never rises with the
    budget. The adversary sees the world and the policy. What it finds is damage that is possible, not the most that is.

    Args:
        judge: scores policies.
        probs: float64 `[S, A]`.
        among: int `[N]`, states that may be swapped.
        k: how many may be, 1 to N.
        budget: policies solved in all, at least 1; the first is the undisturbed one.
        seed: names the stream of what is dropped.

    Raises:
        ProbeError: for a budget or a k out of range.
    """
    if budget < 1 or not 1 <= k <= len(among):
        raise ProbeError(f"an attack needs a budget of 1 or more and k from 1 to {len(among)}, got {budget} and {k}")
    _, first = np.unique(probs.round(12), axis=0, return_index=True)
    shown = np.sort(first)[:_MOST_SEEN]
    rng = stream(seed, "attack", len(probs), k)
    trial: dict[int, int] = {}
    kept, kept_worth = trial, math.inf
    best, best_worth = trial, math.inf
    trace: list[float] = []
    while len(trace) < budget:
        policy = _swaps(among, trial).apply(probs)
        worth = judge.competence(policy)
        if worth < best_worth:
            best, best_worth = dict(trial), worth
        trace.append(best_worth)
        gain = effects(judge, policy, among, probs[shown])
        gain[list(trial)] = np.inf
        i, j = np.unravel_index(gain.argmin(), gain.shape)
        if len(trial) < k and gain[i, j] < 0:
            trial = {**trial, int(i): int(shown[j])}
            continue
        if worth <= kept_worth:
            kept, kept_worth = trial, worth
        if not kept:  # nothing can be done to this agent
            trace += [best_worth] * (budget - len(trace))
            break
        dropped = rng.permutation(sorted(kept))[: 1 + int(rng.random() < 0.5)]
        trial = {s: o for s, o in kept.items() if s not in dropped}
    return Attack(_swaps(among, best), np.array(trace))


def _swaps(among: np.ndarray, chosen: dict[int, int]) -> Swaps:
    rows = sorted(chosen)
    return Swaps(among[rows].astype(np.int64), np.array([chosen[i] for i in rows], dtype=np.int64))


def effects(judge: Yardstick, probs: np.ndarray, states: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """How competence would change if one state had another row of probabilities: float64 `[N, C]`, for each state
    (alone) and each row.

    With `N = (I - γP)^-1` of the policy and a change δ of the state's row of γP, the change is
    `w N[:, s] (δ V) / (1 - δ N[:, s])`, exactly (Sherman and Morrison 1950). Above 512 states the denominator is left
    out, and above 2,048 the visits `w N[:, s]` too.

    Args:
        judge: says what competence is.
        probs: float64 `[S, A]`, the policy.
        states: int `[N]`, none of them in the goal.
        rows: float64 `[C, A]`.
    """
    model, gamma = judge.model, judge.gamma
    mask = judge.goal.mask(model.n_states)
    value = reach_values(model, probs, judge.goal, gamma=gamma)
    q = action_values(model, value, gamma=gamma)[states]
    lost = q @ rows.T - (q * probs[states]).sum(1, keepdims=True)
    if model.n_states > DENSE_LIMIT:
        return np.asarray(lost)
    matrix = np.eye(model.n_states) - discounted_transitions(model, probs, mask, gamma)
    if model.n_states > _EXACT_LIMIT:
        return np.asarray(np.linalg.solve(matrix.T, judge.weight)[states, None] * lost)
    inverse = np.linalg.inv(matrix)
    back = gamma * (model.prob[states] * inverse[model.next_state[states], states[:, None, None]]).sum(2)
    again = back @ rows.T - (back * probs[states]).sum(1, keepdims=True)
    return np.asarray((judge.weight @ inverse)[states, None] * lost / (1.0 - again))
