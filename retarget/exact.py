"""Exact values in finite worlds: of a policy, of the best policy, and the competence between them.

`V(s)` is the expected discount at the time the goal is reached, `E[γ^T]`, with V = 1 on the goal itself (reward 1 on
reaching it, discount γ). Deterministic policies in deterministic worlds are followed along their functional graph;
everything else is a linear solve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retarget.agent import Agent
from retarget.errors import AgentError, GoalError
from retarget.goal import StateGoal
from retarget.trials import Score
from retarget.world import FiniteModel, FiniteWorld

#: Above this many states a linear solve is refused where it needs a dense inverse.
DENSE_LIMIT = 2048
#: From here on a sparse solve is the faster one.
SPARSE_FROM = 200


def policy_table(agent: Agent, model: FiniteModel) -> np.ndarray:
    """The agent's action probabilities in every state: float64 `[S, A]`.

    Raises:
        AgentError: when the agent needs memory, or returns rows that are no distributions of this world's actions.
    """
    if agent.n_states not in (None, model.n_states):
        raise AgentError(
            f"agent {agent.kind!r} is for a world of {agent.n_states} states, this one has {model.n_states}; "
            "measure it in its own"
        )
    try:
        probs, carry = agent.policy(np.arange(model.n_states))
    except IndexError as error:
        raise AgentError(
            f"agent {agent.kind!r} does not know all {model.n_states} states of the world ({error}); "
            "was it made for another one?"
        ) from error
    if carry is not None:
        raise AgentError(f"agent {agent.kind!r} has memory; a table of its behaviour over states does not exist")
    return check_policy(probs, model)


def check_policy(probs: np.ndarray, model: FiniteModel) -> np.ndarray:
    """Return float64 `[S, A]` action probabilities, or raise AgentError that says what is wrong."""
    probs = np.asarray(probs, dtype=np.float64)
    expected = (model.n_states, model.n_actions)
    if probs.shape != expected:
        raise AgentError(f"a policy here needs probabilities of shape {expected}, got {probs.shape}")
    bad = np.flatnonzero(~((probs >= 0).all(1) & (np.abs(probs.sum(1) - 1) < 1e-9)))
    if bad.size:
        raise AgentError(f"the policy of state {bad[0]} is no distribution: {probs[bad[0]].tolist()}")
    return probs


def discounted_transitions(model: FiniteModel, probs: np.ndarray, goal: np.ndarray, gamma: float) -> np.ndarray:
    """Dense `[S, S]` matrix γP of a policy, with the goal's rows zero (it absorbs)."""
    s, _, k = model.next_state.shape
    out = np.zeros((s, s))
    rows = np.arange(s)
    for a in range(model.n_actions):
        for j in range(k):
            np.add.at(out, (rows, model.next_state[:, a, j]), gamma * probs[:, a] * model.prob[:, a, j])
    out[goal] = 0.0
    return out


def reach_values(model: FiniteModel, probs: np.ndarray, goal: StateGoal, *, gamma: float) -> np.ndarray:
    """Exact `E[γ^T]` of a policy: float64 `[S]`.

    Args:
        model: the dynamics.
        probs: float64 `[S, A]`.
        goal: where episodes end.
        gamma: discount in (0, 1).

    >>> chain = FiniteModel.deterministic([[1], [2], [2]])
    >>> reach_values(chain, np.ones((3, 1)), StateGoal.of([2]), gamma=0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    mask = goal.mask(model.n_states)
    if model.is_deterministic and (probs.max(1) == 1.0).all():
        from retarget.kernels import functional_steps

        chosen = probs.argmax(1)
        steps = functional_steps(model.next_state[np.arange(model.n_states), chosen, 0], mask)
        return discount(steps, gamma)
    mixed = (probs.max(1) != 1.0) & ~mask
    if model.is_deterministic and mixed.sum() <= min(DENSE_LIMIT, model.n_states // 2):
        value = _collapsed_solve(model, probs, mask, mixed, gamma)
    elif model.n_states < SPARSE_FROM:
        matrix = discounted_transitions(model, probs, mask, gamma)
        value = np.linalg.solve(np.eye(model.n_states) - matrix, mask.astype(np.float64))
    else:
        value = _sparse_solve(model, probs, mask, gamma)
    # rounding may leave a hair outside [0, 1]
    return np.asarray(np.clip(value, 0.0, 1.0))


def discount(steps: np.ndarray, gamma: float) -> np.ndarray:
    """γ^steps, and 0 where steps is negative (never): float64, from int `[S]`."""
    return np.asarray(np.where(steps >= 0, gamma ** np.maximum(steps, 0).astype(np.float64), 0.0))


def _collapsed_solve(
    model: FiniteModel, probs: np.ndarray, mask: np.ndarray, mixed: np.ndarray, gamma: float
) -> np.ndarray:
    """The linear solve on the states with a mixed policy alone; the others lead to one of them, or to the goal."""
    from retarget.kernels import functional_ends

    n = model.n_states
    nxt = model.next_state[:, :, 0]
    end, steps = functional_ends(nxt[np.arange(n), probs.argmax(1)].astype(np.int64), mask | mixed)
    reach = discount(steps, gamma)
    names = np.flatnonzero(mixed)
    index = np.full(n, -1)
    index[names] = np.arange(names.size)
    weight = gamma * probs[names] * reach[nxt[names]]
    ends = end[nxt[names]]
    known = np.where((ends >= 0) & mask[ends], weight, 0.0).sum(1)
    matrix = np.eye(names.size)
    row, action = np.nonzero((ends >= 0) & mixed[ends])
    np.subtract.at(matrix, (row, index[ends[row, action]]), weight[row, action])
    solved = np.linalg.solve(matrix, known)
    worth = np.zeros(n)
    worth[mask] = 1.0
    worth[names] = solved
    return np.asarray(np.where(end >= 0, reach * worth[end], 0.0))


def _sparse_solve(model: FiniteModel, probs: np.ndarray, mask: np.ndarray, gamma: float) -> np.ndarray:
    from scipy.sparse import csc_matrix, identity
    from scipy.sparse.linalg import splu

    s, a, k = model.next_state.shape
    weight = gamma * probs[:, :, None] * model.prob
    weight[mask] = 0.0
    rows = np.repeat(np.arange(s), a * k)
    keep = weight.reshape(-1) != 0
    matrix = csc_matrix((weight.reshape(-1)[keep], (rows[keep], model.next_state.reshape(-1)[keep])), shape=(s, s))
    solved = splu((identity(s, format="csc") - matrix).tocsc()).solve(mask.astype(np.float64))
    return np.asarray(solved, dtype=np.float64)


def optimal_values(model: FiniteModel, goal: StateGoal, *, gamma: float) -> np.ndarray:
    """Exact `max E[γ^T]` over policies: float64 `[S]`, 1 on the goal, 0 where it is out of reach.

    >>> chain = FiniteModel.deterministic([[1, 0], [2, 0], [2, 2]])
    >>> optimal_values(chain, StateGoal.of([2]), gamma=0.5).tolist()
    [0.25, 0.5, 1.0]
    """
    from retarget.kernels import distances_to

    mask = goal.mask(model.n_states)
    if model.is_deterministic:
        return discount(distances_to(model.next_state[:, :, 0], mask), gamma)
    # policy iteration (Howard 1960), begun from the policy of the shortest possible paths
    possible = np.where(model.prob > 0, model.next_state, np.arange(model.n_states, dtype=np.int32)[:, None, None])
    far = distances_to(possible.reshape(model.n_states, -1), mask)
    guess = discount(far, gamma)
    value = np.zeros(model.n_states)
    before = np.full(model.n_states, -1)
    for round_ in range(1000):
        q = action_values(model, guess, gamma=gamma)
        actions = _first_best(q)
        if np.array_equal(actions, before):
            return value
        before = actions
        probs = np.zeros_like(q)
        probs[np.arange(len(q)), actions] = 1.0
        # out of reach is a fact of the graph: a solve would leave a hair of rounding there
        solved = np.where(far >= 0, np.maximum(reach_values(model, probs, goal, gamma=gamma), value), 0.0)
        # equally good policies may take turns for ever
        if round_ > 50 and np.abs(solved - value).max() <= 1e-14:
            return np.asarray(solved)
        guess = value = solved
    raise GoalError(
        f"policy iteration toward {goal.label} did not settle in 1000 rounds; gamma={gamma} may be too near 1"
    )


def action_values(model: FiniteModel, value: np.ndarray, *, gamma: float) -> np.ndarray:
    """`γ Σ p V(next)`: float64 `[S, A]`, from values `[S]`."""
    return np.asarray(gamma * (model.prob * value[model.next_state]).sum(-1))


def _first_best(q: np.ndarray) -> np.ndarray:
    """The lowest-numbered action among the best ones, to 1e-12 relative: int `[S]`."""
    best = q.max(1, keepdims=True)
    return np.asarray((q >= best - 1e-12 * np.abs(best)).argmax(1))


def best_actions(model: FiniteModel, goal: StateGoal, *, gamma: float) -> np.ndarray:
    """Which actions are optimal: bool `[S, A]`. All of them on the goal, and where it is out of reach."""
    q = action_values(model, optimal_values(model, goal, gamma=gamma), gamma=gamma)
    best = q.max(1, keepdims=True)
    out = q >= best - 1e-9 * np.abs(best)
    out[list(goal.states)] = True
    return np.asarray(out)


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What competence on one goal is measured against; made once for each goal.

    Attributes:
        model, goal, gamma: of the question.
        starts: int `[N]` start states that count: not on the goal, and able to reach it.
        optimal: float64 `[S]` V*.
        n_excluded: starts that can never reach the goal, left out.
    """

    model: FiniteModel
    goal: StateGoal
    gamma: float
    starts: np.ndarray
    optimal: np.ndarray
    n_excluded: int

    @classmethod
    def of(cls, world: FiniteWorld, goal: StateGoal, *, gamma: float) -> Yardstick:
        """Raises GoalError when no start can reach the goal."""
        model = world.model
        optimal = optimal_values(model, goal, gamma=gamma)
        starts = np.setdiff1d(world.start_states, np.array(goal.states))
        able = starts[optimal[starts] > 0]
        if able.size == 0:
            raise GoalError(f"no start of {world.spec_data.label} can reach goal {goal.label}; choose another goal")
        return cls(model, goal, gamma, able, optimal, int(starts.size - able.size))

    @property
    def weight(self) -> np.ndarray:
        """Float64 `[S]`: competence is `weight · V`."""
        out = np.zeros(self.model.n_states)
        out[self.starts] = 1.0 / (self.optimal[self.starts] * self.starts.size)
        return out

    def ratios(self, probs: np.ndarray) -> np.ndarray:
        """`V^π / V*` at each start: float64 `[N]`, in [0, 1]."""
        value = reach_values(self.model, probs, self.goal, gamma=self.gamma)[self.starts]
        return np.asarray(np.minimum(value / self.optimal[self.starts], 1.0))

    def competence(self, probs: np.ndarray) -> float:
        """Mean of `V^π / V*` over the starts, for action probabilities `[S, A]`: in [0, 1]."""
        return float(self.ratios(probs).mean())

    def success(self, probs: np.ndarray) -> float:
        """Share of starts from which the goal is reached with probability 1."""
        return float(surely_reaches(self.model, probs, self.goal)[self.starts].mean())

    @property
    def uniform_competence(self) -> float:
        """Competence of the policy that acts uniformly at random."""
        shape = (self.model.n_states, self.model.n_actions)
        return self.competence(np.full(shape, 1.0 / self.model.n_actions))

    def score(self, agent: Agent) -> Score:
        """Score of an agent on the goal: exact, by its table of behaviour; one with memory is followed from every
        start.

        Raises:
            AgentError: when the agent does not fit the world, or has memory in a world (or with decisions) of chance.
        """
        if agent.has_memory:
            steps, taken = self._followed(agent)
            ratios = np.minimum(discount(steps, self.gamma) / self.optimal[self.starts], 1.0)
            flops = taken * agent.flops_per_action
            return Score(float(ratios.mean()), float((steps >= 0).mean()), len(steps), env_steps=taken, flops=flops)
        probs = policy_table(agent, self.model)
        decided = 1 if agent.plans_once else self.model.n_states
        flops = self.flops_to_score(probs) + decided * agent.flops_per_action
        return Score(self.competence(probs), self.success(probs), len(self.starts), flops=flops)

    def ratios_of(self, agent: Agent) -> np.ndarray:
        """`V^π / V*` of an agent at each start, with memory or without: float64 `[N]`, in [0, 1]."""
        if not agent.has_memory:
            return self.ratios(policy_table(agent, self.model))
        steps, _ = self._followed(agent)
        return np.asarray(np.minimum(discount(steps, self.gamma) / self.optimal[self.starts], 1.0))

    def _followed(self, agent: Agent) -> tuple[np.ndarray, int]:
        """Steps to the goal from each start (-1 for never), and steps taken in all.

        Exact to γ^horizon < 1e-6: one decision and one successor a step, so that an episode is a single path.
        """
        if not self.model.is_deterministic:
            raise AgentError(f"agent {agent.kind!r} has memory: its competence needs a world without chance")
        goal = self.goal.mask(self.model.n_states)
        horizon = max(int(np.ceil(np.log(1e-6) / np.log(self.gamma))), self.model.n_states)
        state, carry = self.starts.astype(np.int64), None
        steps = np.full(len(state), -1)
        taken = 0
        for t in range(1, horizon + 1):
            probs, carry = agent.policy(state, carry)
            if (probs.max(1) != 1.0).any():
                raise AgentError(f"agent {agent.kind!r} has memory: its decisions must be greedy to be followed")
            going = steps < 0
            taken += int(going.sum())
            state = np.where(going, self.model.next_state[state, probs.argmax(1), 0], state).astype(np.int64)
            steps = np.where(going & goal[state], t, steps)
            if (steps >= 0).all():
                break
        return steps, taken

    def flops_to_score(self, probs: np.ndarray) -> float:
        """Operations to score a policy `[S, A]`, by formula: 2 S for following successors, and 2/3 m³ to solve for the
        m states where chance enters (a mixed policy, or a world with chance)."""
        s = self.model.n_states
        m = int((probs.max(1) != 1.0).sum()) if self.model.is_deterministic else s
        return 2.0 * s + 2.0 * m**3 / 3.0


def surely_reaches(model: FiniteModel, probs: np.ndarray, goal: StateGoal) -> np.ndarray:
    """Where a policy reaches the goal with probability 1: bool `[S]`, from the graph alone (no rounding)."""
    from retarget.kernels import distances_to

    s = model.n_states
    mask = goal.mask(s)
    used = (probs[:, :, None] * model.prob) > 0
    own = np.arange(s, dtype=np.int32)[:, None]
    # an unused edge becomes a loop, which leads nowhere new
    edges = np.where(used.reshape(s, -1), model.next_state.reshape(s, -1), own).astype(np.int32)
    edges[mask] = own[mask]
    lost = distances_to(edges, mask) < 0
    return np.asarray(~(distances_to(edges, lost) >= 0) & ~lost)
