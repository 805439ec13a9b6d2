"""Proven lower bounds on the number of table cells that any edit must change."""

from __future__ import annotations

import numpy as np

from retarget.exact import Yardstick, discounted_transitions


def fewest_cells_for_success(judge: Yardstick, probs: np.ndarray) -> int | None:
    """Fewest states whose action must change so that every state that can reach the goal does, surely.

    In a policy that reaches B from everywhere, each state has an edge of its support that leads one step nearer: a
    tree into B. With the price 0 for an edge that the old policy's support has and 1 for any other, the cheapest such
    tree is a minimum-cost arborescence (Chu and Liu 1965, Edmonds 1967), and no edit with fewer cells can succeed.
    Where world and policy are deterministic the bound is met exactly.

    None where some state that can reach the goal is no start: it need not succeed, and the tree would cost too much.
    """
    model = judge.model
    able = judge.optimal > 0
    if judge.starts.size + len(judge.goal.states) < able.sum():
        return None
    # every edge s -> t of the tree is offered to s by t; the goal's states are one node, the root
    root = model.n_states
    mask = judge.goal.mask(model.n_states)
    state, action, slot = np.nonzero((able & ~mask)[:, None, None] & (model.prob > 0))
    to = model.next_state[state, action, slot]
    cost = (probs[state, action] == 0.0).astype(np.int64)
    giver = np.where(mask[to], root, to)
    usable = able[to] & (giver != state)
    return arborescence_cost(giver[usable], state[usable], cost[usable], root)


def arborescence_cost(giver: np.ndarray, taker: np.ndarray, cost: np.ndarray, root: int) -> int:
    """Cost of the cheapest arborescence from `root` that spans every taker, for edges that cost 0 or 1.

    By dual ascent (Fulkerson 1974): among the edges whose reduced cost is 0, every strongly connected set that
    nothing enters must be paid into, 1 each; all edges into it then cost 1 less. The sum of payments is the optimum.

    Args:
        giver, taker, cost: int `[E]`, the edges.
        root: number larger than every other node.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    reduced = cost.copy()
    nodes = np.unique(np.concatenate([taker, [root]]))
    paid = 0
    while True:
        free = reduced == 0
        graph = csr_matrix((np.ones(int(free.sum())), (giver[free], taker[free])), shape=(root + 1, root + 1))
        _, label = connected_components(graph, directed=True, connection="strong")
        entering = label[giver] != label[taker]
        fed = np.unique(label[taker[entering & free]])
        hungry = np.setdiff1d(np.unique(label[nodes]), np.append(fed, label[root]))
        if not hungry.size:
            return paid
        paid += int(hungry.size)
        reduced[entering & np.isin(label[taker], hungry)] -= 1


def fewest_cells_for_level(judge: Yardstick, probs: np.ndarray, required: float) -> int | None:
    """A lower bound on the states whose action must change to reach a competence.

    Until it first meets a changed state, a trajectory is the old policy's. With `h(x, e)` the expected discount when
    the old policy, from x, first meets e (0 if the goal comes first), any change of the states E gives
    `V(x) <= V_old(x) + sum over e in E of h(x, e) V*(e)`, and never more than `V*(x)`; where world and policy are
    deterministic a trajectory meets one changed state first, and the sum is the larger of the two. The mean over
    starts, in shares of V*, is monotone and submodular in E; so for any S it is at most its value at S plus the |E|
    largest gains of single cells over S (Nemhauser, Wolsey and Fisher 1978). The least |E| that this does not rule
    out, over greedy sets S, is the bound.

    None above 1,024 states: the table of h is S².
    """
    model = judge.model
    if model.n_states > 1024:
        return None
    mask = judge.goal.mask(model.n_states)
    matrix = discounted_transitions(model, probs, mask, judge.gamma)
    inverse = np.linalg.inv(np.eye(model.n_states) - matrix)
    value = inverse[:, mask].sum(1)
    best = judge.optimal[judge.starts]
    # first-passage discounts: M[x, e] / M[e, e] for the fundamental matrix M (Kemeny and Snell 1960)
    first = (inverse / np.diag(inverse)).T[:, judge.starts]
    reach = first * judge.optimal[:, None] / best
    reach[mask] = 0.0
    covered = np.minimum(value[judge.starts] / best, 1.0)
    single = model.is_deterministic and bool((probs.max(1) == 1.0).all())
    k = 0
    while True:
        after = np.maximum(covered, reach) if single else covered + reach
        gain = (np.minimum(after, 1.0) - covered).mean(1)
        ahead = covered.mean() + np.concatenate([[0.0], np.cumsum(np.sort(gain)[::-1])])
        k = max(k, int(np.searchsorted(ahead, required - 1e-9)))
        if covered.mean() >= required - 1e-9 or gain.max() <= 0:
            return k
        covered = np.minimum(after[gain.argmax()], 1.0)
