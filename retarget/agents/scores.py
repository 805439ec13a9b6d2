"""Scores of actions and how they move with an agent's numbers: what `scores_at` of each kind of agent returns.

An agent whose cells hold symbols, or that plans, is differentiable only in some relaxation. Each says which:

* a table: one score a cell, so that each state has numbers of its own;
* a goal table: a mixture of its rows with one weight a symbol of the slot, and one score a cell of the rows;
* a planner: a mixture of the plans for one rewarded state each, weighted by the cells of its reward slot;
* a controller: a set-point between cells;
* a network: none is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from retarget.agent import Categorical, Scores
from retarget.errors import AgentError
from retarget.gradients import single_reward_values

if TYPE_CHECKING:
    from retarget.agents.neural import NetworkAgent
    from retarget.agents.planner import Planner

#: A Jacobian of more entries than this is refused (half a gigabyte in float64).
MOST_ENTRIES = 1 << 26


def check_entries(kind: str, rows: int, numbers: int) -> None:
    """Raise AgentError where a Jacobian of so many scores and numbers is too large to list."""
    if rows * numbers > MOST_ENTRIES:
        raise AgentError(
            f"agent {kind!r} has {numbers} numbers, and {rows} scores of each: more than {MOST_ENTRIES} entries; "
            "measure a smaller agent or world"
        )


def table_scores(value: np.ndarray, obs: np.ndarray, *, part: str, kind: str) -> Scores:
    """Scores of a table with one number a cell; a state moves with its own cells alone.

    Args:
        value: float64 `[S, A]`, the scores in the table.
        obs: int `[B]` states.
        part: name of the part that holds the table.
        kind: of the agent, for the message.

    Raises:
        AgentError: where the Jacobian is too large.

    >>> table_scores(np.eye(2), np.array([1]), part="q", kind="q_table").jacobian[0].tolist()
    [[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    states = np.asarray(obs)
    n, a = value.shape
    check_entries(kind, states.size * a, n * a)
    jacobian = np.zeros((states.size, a, n, a))
    rows, actions = np.indices((states.size, a))
    jacobian[rows, actions, states[:, None], actions] = 1.0
    return Scores("one score a cell", value[states], jacobian.reshape(states.size, a, n * a), {part: n * a})


def goal_table_scores(rows: np.ndarray, active: int, obs: np.ndarray, *, parts: tuple[str, str], kind: str) -> Scores:
    """Scores `sum_k w_k rows[k]` with `w` the one-hot of the slot: numbers are the weights and all cells of the rows.

    Args:
        rows: float64 `[G, S, A]`, the distributions that the rows hold.
        active: which row the slot names.
        obs: int `[B]` states.
        parts: names of the slot and of the table.
        kind: of the agent, for the message.

    Raises:
        AgentError: where the Jacobian is too large.
    """
    states = np.asarray(obs)
    g, n, a = rows.shape
    check_entries(kind, states.size * a, g + g * n * a)
    jacobian = np.zeros((states.size, a, g + g * n * a))
    jacobian[:, :, :g] = rows[:, states].transpose(1, 2, 0)
    at, actions = np.indices((states.size, a))
    # rows that the slot does not name have weight 0: their cells move nothing
    jacobian[at, actions, g + active * n * a + states[:, None] * a + actions] = 1.0
    counts = {parts[0]: g, parts[1]: g * n * a}
    return Scores("a mixture of rows, one score a cell", rows[active][states], jacobian, counts)


def planner_scores(agent: Planner, obs: np.ndarray) -> Scores:
    """Scores `sum_j reward_j Q_j`, with Q_j what the planner itself finds (its model, discount and depth) with its slot
    at 1 on state j alone: exact where one state is rewarded. Cells of the model are left out.

    Raises:
        AgentError: where the Jacobian is too large.
    """
    states = np.asarray(obs)
    n, a, _ = agent.next_state.shape
    check_entries(agent.kind, states.size * a, n)
    jacobian = single_reward_values(agent.next_state, agent.prob, states, gamma=agent.gamma, depth=agent.depth)
    return Scores("a mixture of plans, one a rewarded state", jacobian @ agent.reward, jacobian, {"reward": n})


def controller_scores(setpoint: np.ndarray, gain: np.ndarray, position: np.ndarray) -> Scores:
    """Scores `gain[a] · (setpoint - position)` for positions `[B, 2]`, the set-point taken as two real numbers.

    The gains are construction, and left out.
    """
    value = (setpoint - position) @ gain.T
    jacobian = np.broadcast_to(gain, (len(position), *gain.shape))
    return Scores("a set-point between cells", value, jacobian, {"setpoint": gain.shape[1]})


def network_scores(agent: NetworkAgent, obs: np.ndarray) -> Scores:
    """A network's own scores, and their Jacobian in its weights and in a goal slot that holds real numbers, by reverse
    differentiation in the precision of evaluation. Vectors added to activations stay as they are.

    Raises:
        AgentError: for a network with memory, with continuous actions, or where the Jacobian is too large.
    """
    import torch

    if agent.has_memory:
        raise AgentError("a network with memory scores histories, not observations: it has no Jacobian at one")
    if agent.head == "mean":
        raise AgentError("a network with continuous actions has no score for each action")
    fixed = agent.tensors
    names = [
        name
        for name, part in agent.parts.items()
        if part.role != "activation" and not isinstance(part.alphabet, Categorical)
    ]
    counts = {name: agent.parts[name].array.size for name in names}
    leaves = {name: fixed[name].detach().clone().requires_grad_(True) for name in names}
    parts = {**fixed, **leaves}
    values, rows = [], []
    numbers = sum(counts.values())
    # one observation at a time: a backward pass through a whole batch would cost as much for each single score
    for i in range(len(obs)):
        x = torch.from_numpy(np.array(obs[i : i + 1], order="C"))
        scores = agent.step(parts, x)[0][0]
        if i == 0:
            check_entries(agent.kind, len(obs) * len(scores), numbers)
        values.append(scores.detach().double().numpy())
        row = np.zeros((len(scores), numbers))
        for a, score in enumerate(scores):
            found = torch.autograd.grad(score, list(leaves.values()), retain_graph=True, allow_unused=True)
            at = 0
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    row[a, at : at + counts[name]] = gradient.reshape(-1).double().numpy()
                at += counts[name]
        rows.append(row)
    return Scores("none", np.stack(values), np.stack(rows), counts)
