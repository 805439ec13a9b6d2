"""Which cells of a policy table to change: exact greedy search over "in state s, always take action a".

Adding: from the old behaviour, the candidate with the largest exact gain, until the policy is optimal (where a policy
is not optimal some single change improves it: policy improvement, Howard 1960; if every state is a start, that shows).
Removing: from the optimal policy that keeps as much of the old one as it can, the change whose loss is
least. Then exchanges at the required level. States are put in a canonical order first (breadth first from the goal),
so that their names change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retarget.exact import DENSE_LIMIT, Yardstick, best_actions, discount, discounted_transitions, optimal_values
from retarget.goal import StateGoal
from retarget.world import FiniteModel

Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class RowPoint:
    """A set of (state, action) changes with its exact competence, and what was spent until it was found.

    Attributes:
        changes: pairs of (place in `order`, action), in the order in which they were made.
        order: int `[S]`, the state at each place.
        competence, flops, simulations: of the set, and of the search up to here.
    """

    changes: Rows
    order: np.ndarray
    competence: float
    flops: float
    simulations: int

    def __len__(self) -> int:
        return len(self.changes)

    @cached_property
    def rows(self) -> Rows:
        """Pairs of (state, action), by state."""
        return tuple(sorted((int(self.order[s]), int(a)) for s, a in self.changes))

    def after(self, spent: RowPoint) -> RowPoint:
        """The same set, found after another search had spent what it did."""
        return replace(self, flops=self.flops + spent.flops, simulations=self.simulations + spent.simulations)


def canonical_order(judge: Yardstick, probs: np.ndarray) -> np.ndarray:
    """An order of the states that does not depend on their names: int `[S]`, the state at each place.

    Breadth first from the goal along the actions in order; successors by falling probability. A goal of several
    states tries each as the root and keeps the one whose description comes first. States that the goal does not lead
    to follow, ordered by what can be told of them without their names (colour refinement, Weisfeiler and Leman 1968).
    """
    model, mask = judge.model, judge.goal.mask(judge.model.n_states)
    start = np.zeros(model.n_states, np.bool_)
    start[judge.starts] = True
    best: tuple[bytes, np.ndarray] | None = None
    for root in judge.goal.states:
        reached = _breadth_first(model, root)
        order = _with_rest(model, reached, np.column_stack([probs, mask, start]))
        place = np.argsort(order)
        told = place[model.next_state[order]].astype(">i4").tobytes() + probs[order].astype(">f8").tobytes()
        told += mask[order].tobytes() + start[order].tobytes()
        if best is None or told < best[0]:
            best = (told, order)
    assert best is not None
    return best[1]


def _breadth_first(model: FiniteModel, root: int) -> list[int]:
    s, a, k = model.next_state.shape
    ranked = np.argsort(-model.prob, axis=2, kind="stable")
    nxt = np.take_along_axis(model.next_state, ranked, axis=2).reshape(s, a * k).tolist()
    seen = [False] * s
    seen[root] = True
    order = [root]
    for x in order:
        for t in nxt[x]:
            if not seen[t]:
                seen[t] = True
                order.append(t)
    return order


def _with_rest(model: FiniteModel, reached: list[int], facts: np.ndarray) -> np.ndarray:
    """The order of the reached states, then the others by refined colour."""
    n = model.n_states
    rest = np.setdiff1d(np.arange(n), reached)
    if not rest.size:
        return np.array(reached, dtype=np.int64)
    place = np.full(n, -1)
    place[reached] = np.arange(len(reached))
    colour = [repr((int(place[s]), facts[s].tolist())) for s in range(n)]
    nxt, prob = model.next_state.tolist(), model.prob.tolist()
    # for each state, each action: pairs of (successor, probability)
    ahead = [[list(zip(*row, strict=True)) for row in zip(*pair, strict=True)] for pair in zip(nxt, prob, strict=True)]
    before: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for s in range(n):
        for a, successors in enumerate(nxt[s]):
            for t in successors:
                before[t].append((a, s))
    classes = 0
    while len(set(colour)) > classes:
        classes = len(set(colour))
        rank = {c: i for i, c in enumerate(sorted(set(colour)))}
        number = [rank[c] for c in colour]
        colour = [
            repr((
                number[s],
                [sorted((p, number[t]) for t, p in row) for row in ahead[s]],
                sorted((a, number[t]) for a, t in before[s]),
            ))
            for s in range(n)
        ]  # fmt: skip
    return np.array(reached + sorted(rest.tolist(), key=lambda s: colour[s]), dtype=np.int64)


class _State:
    """A behaviour under change: values, flow, and exact gains of all single changes."""

    def __init__(self, model: FiniteModel, judge: Yardstick, probs: np.ndarray, weight: np.ndarray) -> None:
        self.model, self.goal, self.gamma = model, judge.goal.mask(model.n_states), judge.gamma
        self.probs, self.weight = probs.copy(), weight
        pure = bool((probs.max(1) == 1.0).all())
        self.functional = model.is_deterministic and pure
        self.flops, self.simulations = 0.0, 0
        if self.functional:
            self.successor = model.next_state[np.arange(len(probs)), probs.argmax(1), 0].astype(np.int64)
        else:
            self._invert()

    def _invert(self) -> None:
        s = self.model.n_states
        matrix = discounted_transitions(self.model, self.probs, self.goal, self.gamma)
        self.inverse = np.linalg.inv(np.eye(s) - matrix)
        self.flops += 2.0 * s**3
        self.updates = 0

    def value(self) -> np.ndarray:
        if self.functional:
            from retarget.kernels import functional_steps

            steps = functional_steps(self.successor, self.goal)
            return discount(steps, self.gamma)
        return np.asarray(self.inverse[:, self.goal].sum(1))

    def competence(self) -> float:
        return float(min(self.weight @ self.value(), 1.0))

    def gains(self) -> np.ndarray:
        """Exact gain in competence of each "in s, always a": `[S, A]`."""
        s, a, k = self.model.next_state.shape
        self.simulations += s * a
        value = self.value()
        if self.functional:
            from retarget.kernels import functional_flow, functional_gains, tree_intervals

            self.flops += float(6 * s + 3 * s * a)
            flow = functional_flow(self.successor, self.goal, self.gamma, self.weight)
            first, last = tree_intervals(self.successor, self.goal)
            return functional_gains(self.model.next_state[:, :, 0], self.goal, self.gamma, value, flow, first, last)
        from retarget.kernels import candidate_gains

        self.flops += float(2 * s * s + s * a * (5 * k + 4))
        flow = self.weight @ self.inverse
        return candidate_gains(self.model.next_state, self.model.prob, self.goal, self.gamma, self.inverse, value, flow)

    def restoring(self, old: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Exact gain of putting the old row of each of these states back: `[len(states)]`."""
        pure = bool((old[states].max(1) == 1.0).all())
        if self.functional and pure:
            return np.asarray(self.gains()[states, old[states].argmax(1)])
        if self.functional:
            # the first mixed row ends the functional form: go on with the inverse
            self.functional = False
            self._invert()
        from retarget.kernels import restore_gains

        s, a, k = self.model.next_state.shape
        self.simulations += states.size
        self.flops += float(2 * s * s + states.size * a * (7 * k + 4))
        flow = self.weight @ self.inverse
        return restore_gains(
            self.model.next_state, self.model.prob, old, states, self.gamma, self.inverse, self.value(), flow
        )

    def put(self, s: int, row: np.ndarray) -> None:
        """Replace the behaviour in state s by action probabilities `[A]`."""
        self.probs[s] = row
        if self.functional:
            self.successor[s] = self.model.next_state[s, row.argmax(), 0]
            return
        from retarget.kernels import replace_row

        new = np.zeros(self.model.n_states)
        if not self.goal[s]:
            np.add.at(new, self.model.next_state[s], self.gamma * row[:, None] * self.model.prob[s])
        replace_row(self.inverse, s, new)
        self.flops += 2.0 * self.model.n_states**2
        self.updates += 1
        # rounding grows with rank-one updates: start again from a fresh inverse now and then
        if self.updates >= 256:
            self._invert()


class RowSearch:
    """The search over one behaviour, one goal. Made by `search_rows`."""

    def __init__(self, judge: Yardstick, probs: np.ndarray, required: float) -> None:
        order = canonical_order(judge, probs)
        place = np.argsort(order)
        self.order = order
        model = judge.model.relabel(place)
        goal = StateGoal.of(int(place[s]) for s in judge.goal.states)
        # solved again in this order: the same numbers to the last bit, whatever the states were called
        optimal = optimal_values(model, goal, gamma=judge.gamma)
        self.judge = Yardstick(model, goal, judge.gamma, np.sort(place[judge.starts]), optimal, judge.n_excluded)
        self.old = probs[order]
        self.required = required
        self.weight = self.judge.weight
        self.best = best_actions(model, goal, gamma=judge.gamma)

    def _free(self) -> np.ndarray:
        """Which (s, a) would change the old behaviour at all: bool `[S, A]`."""
        free = np.array(self.old != 1.0)
        free[list(self.judge.goal.states)] = False
        return free

    def _point(self, rows: dict[int, int], competence: float, state: _State) -> RowPoint:
        return RowPoint(tuple(rows.items()), self.order, competence, state.flops, state.simulations)

    def adding(self) -> list[RowPoint]:
        """One change at a time, the largest gain first, until nothing gains.

        Where few states are starts, a change can be needed and gain nothing by itself: then this ends early, and the
        search from the optimal policy finds what it could not.
        """
        from retarget.kernels import best_candidate

        state, rows = _State(self.judge.model, self.judge, self.old, self.weight), dict[int, int]()
        allowed = self._free()
        out: list[RowPoint] = []
        while True:
            gains = state.gains()
            s, a, gain = best_candidate(gains, allowed)
            if s < 0 or gain <= 1e-13:
                return out
            rows[int(s)] = int(a)
            allowed[s] = False
            state.put(int(s), _pure(a, self.old.shape[1]))
            out.append(self._point(rows, state.competence(), state))

    def removing(self) -> list[RowPoint]:
        """From the optimal policy nearest the old one, the least loss first."""
        # a state keeps its old behaviour where that only ever takes optimal actions
        wrong = ~((self.old > 0) <= self.best).all(1)
        wrong &= self.judge.optimal > 0
        wrong[list(self.judge.goal.states)] = False
        rows = {int(s): int(self.best[s].argmax()) for s in np.flatnonzero(wrong)}
        full = self.old.copy()
        for s, a in rows.items():
            full[s] = _pure(a, full.shape[1])
        state = _State(self.judge.model, self.judge, full, self.weight)
        out = [self._point(rows, state.competence(), state)] if rows else []
        while len(rows) > 1:
            s = self._least_loss(state, rows)
            del rows[s]
            state.put(s, self.old[s])
            out.append(self._point(rows, state.competence(), state))
            if out[-1].competence < 0.25 * self.required:
                break
        return out

    def _least_loss(self, state: _State, rows: dict[int, int]) -> int:
        """The change whose removal costs least, exactly; ties (to 1e-12 relative) go to the lowest state."""
        states = np.array(sorted(rows))
        losses = -state.restoring(self.old, states)
        least = losses.min()
        return int(states[np.flatnonzero(losses <= least + 1e-12 * abs(least))[0]])

    def exchange(self, start: RowPoint, rounds: int = 64) -> RowPoint:
        """Drop two changes, add one, as long as the required level holds: fewer cells for the same level."""
        rows = dict(start.changes)
        best = start
        state = self._at(rows, start)
        for _ in range(rounds):
            trial = self._fewer(dict(rows), state)
            if trial is None:
                return best
            rows, competence, state = trial
            best = self._point(rows, competence, state)
        return best

    def _at(self, rows: dict[int, int], spent: RowPoint) -> _State:
        probs = self.old.copy()
        for s, a in rows.items():
            probs[s] = _pure(a, probs.shape[1])
        state = _State(self.judge.model, self.judge, probs, self.weight)
        state.flops, state.simulations = state.flops + spent.flops, spent.simulations
        return state

    def _fewer(self, rows: dict[int, int], state: _State) -> tuple[dict[int, int], float, _State] | None:
        from retarget.kernels import best_candidate

        for _ in range(2):
            if not rows:
                return None
            s = self._least_loss(state, rows)
            del rows[s]
            state.put(s, self.old[s])
            if state.competence() >= self.required - 1e-9:
                return rows, state.competence(), state
        allowed = self._free()
        allowed[list(rows)] = True
        s, a, gain = best_candidate(state.gains(), allowed)
        if s < 0 or gain <= 1e-13 or (int(s) in rows):
            return None
        rows[int(s)] = int(a)
        state.put(int(s), _pure(a, self.old.shape[1]))
        competence = state.competence()
        return (rows, competence, state) if competence >= self.required - 1e-9 else None


def _pure(action: int, n_actions: int) -> np.ndarray:
    row = np.zeros(n_actions)
    row[action] = 1.0
    return row


def feasible(model: FiniteModel, probs: np.ndarray) -> bool:
    """Whether the exact search fits in memory for this behaviour (dense inverses up to `DENSE_LIMIT` states)."""
    return model.n_states <= DENSE_LIMIT or (model.is_deterministic and bool((probs.max(1) == 1.0).all()))


def search_rows(judge: Yardstick, probs: np.ndarray, *, required: float) -> list[RowPoint]:
    """Sets of changed rows, with exact competence on the judge's goal.

    Args:
        judge: the goal and the starts.
        probs: float64 `[S, A]`, the behaviour to change.
        required: the level at which the set is polished.

    Returns:
        points from adding, removing and exchanging; several for one number of cells. Empty where the behaviour is
        already optimal, or too large for the exact search (see `feasible`).
    """
    if not feasible(judge.model, probs):
        return []
    search = RowSearch(judge, probs, required)
    out = search.adding()
    removed = search.removing()
    out += [p.after(out[-1]) for p in removed] if out else removed
    good = [p for p in out if p.competence >= required - 1e-9]
    if good:
        best = min(good, key=len)
        polished = search.exchange(best)
        if len(polished) < len(best):
            out.append(polished)
    return out
