"""ρUCT, compiled: tree search in a learned model that predicts percepts from the whole history.

Source: Veness et al. 2011, section 4. The tree has decision nodes (histories that end in a percept), and for each of
their actions a chance node, whose children are the percepts that came of it. A simulation goes down the tree by upper
confidence bounds, draws percepts from the model, learning from each on the way, adds one decision node, acts at random
from there to the horizon, and has the model forget it all. Rewards are looked up by reward symbol in a map that is
given with each decision: the model holds symbols only.

Randomness is counted: one decision draws from `unit(key + 0)`, `unit(key + 1)`, … of a key that is made from the run's
word and the cycle's number, so that the same seed gives the same decision. Numba is loaded with this module.
"""

# mypy: disable-error-code="untyped-decorator, no-any-return, return-value, arg-type, assignment"
from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from retarget.bayes.ctw import Coding
from retarget.bayes.kernels import Nodes, append_bits, draw_percept, learn_percept, log_size, undo
from retarget.kernels import mix, unit


class Scratch(NamedTuple):
    """Memory of a search, used again by each: nothing in it outlives a decision.

    Attributes:
        path, kt, below: of one descent in a context tree.
        log_node, log_beta: the undo log of one simulation.
        tries, mean: int64 and float64 `[N, A]`, of the actions of each decision node.
        child: int32 `[N, A]`, first percept that came of an action; 0 for none (the root is nobody's child).
        sibling: int32 `[N]`, next percept of the same action.
        percept: int64 `[N]`.
        way: int64 `[m, 2]` and gain: float64 `[m + 1]`: decision nodes and actions of a simulation, and its rewards.
    """

    path: np.ndarray
    kt: np.ndarray
    below: np.ndarray
    log_node: np.ndarray
    log_beta: np.ndarray
    tries: np.ndarray
    mean: np.ndarray
    child: np.ndarray
    sibling: np.ndarray
    percept: np.ndarray
    way: np.ndarray
    gain: np.ndarray


class Rules(NamedTuple):
    """Numbers of a search.

    Attributes:
        n_actions, action_bits, percept_bits, reward_bits, depth: of the coding.
        horizon: cycles to look ahead.
        simulations: of one decision.
        bonus: C, the weight of the confidence bound, with returns scaled to [0, 1].
    """

    n_actions: int
    action_bits: int
    percept_bits: int
    reward_bits: int
    depth: int
    horizon: int
    simulations: int
    bonus: float


def new_scratch(coding: Coding, n_actions: int, horizon: int, simulations: int) -> Scratch:
    """Memory for searches of that size."""
    longest, nodes = coding.depth + coding.percept_bits + 2, simulations + 2
    size = log_size(coding, horizon)
    return Scratch(
        np.empty(longest, np.int64), np.empty(longest), np.empty(longest + 1),
        np.empty(size, np.int64), np.empty(size),
        np.empty((nodes, n_actions), np.int64), np.empty((nodes, n_actions)),
        np.empty((nodes, n_actions), np.int32), np.empty(nodes, np.int32), np.empty(nodes, np.int64),
        np.empty((horizon, 2), np.int64), np.empty(horizon + 1),
    )  # fmt: skip


@numba.njit(cache=True)
def _blank_node(scratch: Scratch, node: int) -> None:
    scratch.tries[node] = 0
    scratch.mean[node] = 0.0
    scratch.child[node] = 0
    scratch.sibling[node] = 0


@numba.njit(cache=True)
def _choose(tries: np.ndarray, mean: np.ndarray, scale: float, bonus: float, draw: float) -> int:
    """An untried action at random; where there is none, the first with the highest upper confidence bound."""
    n_actions = tries.size
    total = 0
    untried = 0
    for a in range(n_actions):
        total += tries[a]
        untried += tries[a] == 0
    if untried:
        skip = int(draw * untried)
        for a in range(n_actions):
            if tries[a] == 0:
                if skip == 0:
                    return a
                skip -= 1
    best = 0
    top = -np.inf
    spread = bonus * bonus * np.log(total)
    for a in range(n_actions):
        bound = mean[a] * scale + np.sqrt(spread / tries[a])
        if bound > top:
            top = bound
            best = a
    return best


@numba.njit(cache=True)
def _child_of(scratch: Scratch, node: int, action: int, percept: int, used: int) -> tuple[int, int]:
    """The decision node after a percept, made where it is new. Returns it, and the number of nodes in use."""
    at = scratch.child[node, action]
    while at != 0:
        if scratch.percept[at] == percept:
            return at, used
        at = scratch.sibling[at]
    _blank_node(scratch, used)
    scratch.percept[used] = percept
    scratch.sibling[used] = scratch.child[node, action]
    scratch.child[node, action] = used
    return used, used + 1


@numba.njit(cache=True)
def _back_up(scratch: Scratch, steps: int, inside: int, low: float) -> None:
    """Add what a simulation of so many steps brought to the means of the actions that it took inside the tree."""
    total = 0.0
    for t in range(steps - 1, -1, -1):
        total += scratch.gain[t]
        if t < inside:
            at = scratch.way[t, 0]
            a = scratch.way[t, 1]
            scratch.tries[at, a] += 1
            # least reward as zero, so that the bound's scale fits
            worth = total - low * (steps - t)
            scratch.mean[at, a] += (worth - scratch.mean[at, a]) / scratch.tries[at, a]


@numba.njit(cache=True)
def search(
    nodes: Nodes, scratch: Scratch, rules: Rules, rewards: np.ndarray, low: float, high: float, key: np.uint64
) -> int:
    """One decision: fills `scratch.tries[0]` and `scratch.mean[0]`, the root's, and leaves the model as it was.

    Args:
        nodes: the model; it must have room for `horizon` cycles more.
        scratch: memory.
        rules: numbers.
        rewards: float64 `[2**reward_bits]`, what each reward symbol is worth.
        low, high: least and greatest reward of a cycle, to scale returns by.
        key: uint64, names the random numbers.

    Returns:
        cycles simulated.
    """
    used_rows = nodes.used[0]
    used_bits = nodes.used[1]
    mask = (1 << rules.reward_bits) - 1
    span = high - low if high > low else 1.0
    _blank_node(scratch, 0)
    n_nodes = 1
    count = 0
    cycles = 0
    for _ in range(rules.simulations):
        node = 0
        n_log = 0
        steps = 0
        inside = 0
        in_tree = True
        for t in range(rules.horizon):
            draw = unit(key + np.uint64(count))
            count += 1
            if in_tree:
                scale = 1.0 / (span * (rules.horizon - t))
                action = _choose(scratch.tries[node], scratch.mean[node], scale, rules.bonus, draw)
            else:
                action = int(draw * rules.n_actions)
            append_bits(nodes, action, rules.action_bits)
            percept, n_log = draw_percept(
                nodes, rules.depth, rules.percept_bits, key, count, scratch.path, scratch.kt, scratch.below,
                scratch.log_node, scratch.log_beta, n_log,
            )  # fmt: skip
            count += rules.percept_bits
            scratch.gain[t] = rewards[percept & mask]
            steps += 1
            if in_tree:
                scratch.way[t, 0] = node
                scratch.way[t, 1] = action
                inside = t + 1
                before = n_nodes
                node, n_nodes = _child_of(scratch, node, action, percept, n_nodes)
                # a node that is new is where the rollout begins
                in_tree = n_nodes == before
        _back_up(scratch, steps, inside, low)
        cycles += steps
        undo(nodes, scratch.log_node, scratch.log_beta, n_log, used_rows, used_bits)
    return cycles


@numba.njit(cache=True)
def best_action(tries: np.ndarray, mean: np.ndarray, draw: float) -> int:
    """The action with the highest mean return; among equals, one at random."""
    top = -np.inf
    ties = 0
    for a in range(tries.size):
        if tries[a] > 0 and mean[a] > top:
            top = mean[a]
            ties = 0
        ties += tries[a] > 0 and mean[a] == top
    if ties == 0:
        return int(draw * tries.size)
    skip = int(draw * ties)
    for a in range(tries.size):
        if tries[a] > 0 and mean[a] == top:
            if skip == 0:
                return a
            skip -= 1
    return 0


@numba.njit(cache=True)
def drawn(cumulative: np.ndarray, u: float) -> int:
    """Which of some outcomes comes, by their cumulative probabilities."""
    k = 0
    while k < cumulative.size - 1 and cumulative[k] <= u:
        k += 1
    return k


@numba.njit(cache=True)
def interact(
    nodes: Nodes,
    scratch: Scratch,
    rules: Rules,
    rewards: np.ndarray,
    low: float,
    high: float,
    word: np.uint64,
    prob: np.ndarray,
    next_state: np.ndarray,
    observation: np.ndarray,
    symbol: np.ndarray,
    state: int,
    first: int,
    last: int,
    epsilon: float,
    decay: float,
    learning: bool,
    actions: np.ndarray,
    percepts: np.ndarray,
    explored: np.ndarray,
) -> tuple[int, float]:
    """Cycles `first` to `last - 1` of an agent in a domain: decide or explore, act, perceive, learn.

    Args:
        nodes, scratch, rules, rewards, low, high: as for `search`; the model must have room for it all.
        word: uint64, names the run's random numbers.
        prob, next_state, observation, symbol: the domain's tables, `prob` summed along its last axis.
        state: where the domain is.
        epsilon, decay: cycle t explores with probability `epsilon * decay**t`.
        learning: whether the model learns from what it sees; the history grows either way.
        actions, percepts, explored: arrays that row t of is written.

    Returns:
        the state after the last cycle, and the log of the probability of the percepts that were learned from.
    """
    log_p = 0.0
    for t in range(first, last):
        key = mix(word ^ mix(np.uint64(t)))
        explored[t] = unit(key) < epsilon * decay**t
        if explored[t]:
            action = int(unit(key + np.uint64(1)) * rules.n_actions)
        else:
            search(nodes, scratch, rules, rewards, low, high, key + np.uint64(4))
            action = best_action(scratch.tries[0], scratch.mean[0], unit(key + np.uint64(2)))
        k = drawn(prob[state, action], unit(key + np.uint64(3)))
        percept = (observation[state, action, k] << rules.reward_bits) | symbol[state, action, k]
        state = next_state[state, action, k]
        append_bits(nodes, action, rules.action_bits)
        if learning:
            _, p = learn_percept(nodes, rules.depth, rules.percept_bits, percept, scratch.log_node, scratch.log_beta, 0)
            log_p += p
        else:
            append_bits(nodes, percept, rules.percept_bits)
        actions[t] = action
        percepts[t] = percept
    return state, log_p
