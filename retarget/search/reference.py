"""The tree search in plain Python: the definition that the compiled and the array engines are held to, to the bit.

Every sum over actions or successors runs in the order of their numbers; every comparison takes the first of equals.
One root at a time, each as a generator that yields the state of a new leaf and is sent its value and prior.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from retarget.errors import AgentError
from retarget.search.settings import Evaluate, Found, TreeModel, TreeSettings

_MASK = (1 << 64) - 1
#: Set apart the draws of rollouts and of Gumbel noise from those of the walk down the tree.
ROLLOUT, GUMBEL = 0x5EED0001, 0x5EED0002

Leaf = Generator[int | None, tuple[float, list[float]], dict[str, object]]


def mix(x: int) -> int:
    """SplitMix64 finaliser (Steele, Lea and Flood 2014), as `retarget.kernels.mix`."""
    z = (x + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def draw(key: int, simulation: int, step: int) -> float:
    """A float in [0, 1) for one step of one simulation."""
    return (mix(mix(key ^ simulation) ^ step) >> 11) * (1.0 / 9007199254740992.0)


def successor(model: TreeModel, state: int, action: int, u: float) -> int:
    """Number k of the successor that a draw u picks; no draw is looked at where there is one successor."""
    total = 0.0
    for k in range(model.n_successors - 1):
        total += model.prob[state, action, k]
        if u < total:
            return k
    return model.n_successors - 1


class _Node:
    """One node: a state (or an end), with statistics of its edges."""

    def __init__(self, state: int, end: bool, value: float, prior: list[float], a: int, k: int) -> None:
        self.state, self.end, self.raw, self.prior = state, end, value, prior
        self.best = value  # with backup `max`: what the node is worth now
        self.visits = 1  # walks that came here, the one that made it included
        self.n, self.w, self.q = [0] * a, [0.0] * a, [0.0] * a
        self.child = [[-1] * k for _ in range(a)]


def bytes_needed(n_roots: int, settings: TreeSettings, n_actions: int, n_successors: int) -> int:
    """About how many bytes one tree of Python objects takes, and the answers for all roots.

    Measured: some 900 bytes a node, and 600 an action of it; a tree is let go before the next one begins.
    """
    node = 900 + n_actions * (580 + 16 * n_successors)
    return int((settings.simulations + 1) * node + n_roots * (20 * n_actions + 36))


def check_memory(model: TreeModel, n_roots: int, settings: TreeSettings, limit: int | None) -> None:
    """Raise AgentError where a search would exceed the limit, if there is one."""
    needed = bytes_needed(n_roots, settings, model.n_actions, model.n_successors)
    if limit is not None and needed > limit:
        raise AgentError(
            f"a search of {n_roots} roots with {settings.simulations} simulations needs {needed} bytes, "
            f"the limit is {limit}; take fewer roots or simulations"
        )


def _rollout(model: TreeModel, settings: TreeSettings, state: int, key: int, simulation: int) -> tuple[float, int]:
    """Return and steps of a uniformly random walk."""
    scale = 1.0
    own = mix(key ^ ROLLOUT)
    for t in range(settings.rollout_steps):
        a = min(int(draw(own, simulation, 2 * t) * model.n_actions), model.n_actions - 1)
        k = successor(model, state, a, draw(own, simulation, 2 * t + 1)) if model.n_successors > 1 else 0
        state = int(model.next_state[state, a, k])
        scale *= settings.gamma
        if state == model.n_states:
            return 0.0, t + 1
        if model.reward[state] != 0.0:
            return scale * float(model.reward[state]), t + 1
    return 0.0, settings.rollout_steps


def halving(considered: int, simulations: int) -> list[int]:
    """For each simulation, the visits that an action must have to be looked at: sequential halving as in Danihelka et
    al. (2022, figure 1), the simulations shared evenly among the rounds.

    >>> halving(4, 8)
    [0, 0, 0, 0, 1, 1, 2, 2]
    """
    if considered <= 1:
        return list(range(simulations))
    rounds = max(1, math.ceil(math.log2(considered)))
    out: list[int] = []
    visits, left = [0] * considered, considered
    while len(out) < simulations:
        for _ in range(max(1, simulations // (rounds * left))):
            out += visits[:left]
            for i in range(left):
                visits[i] += 1
        left = max(2, left // 2)
    return out[:simulations]


def gumbel_noise(settings: TreeSettings, key: int, n_actions: int) -> list[float]:
    """Noise of the root, one number an action; zeros where its scale is 0."""
    if settings.gumbel_scale == 0.0:
        return [0.0] * n_actions
    own = mix(key ^ GUMBEL)
    units = [draw(own, 0, a) for a in range(n_actions)]
    return [-settings.gumbel_scale * math.log(-math.log(u + 1e-300) + 1e-300) for u in units]


def logits_of(prior: list[float]) -> list[float]:
    """Logarithms of probabilities, floored so that 0 stays finite."""
    return [math.log(p + 1e-12) for p in prior]


def completed(settings: TreeSettings, node: _Node) -> list[float]:
    """Scaled completed values of a node's actions: what was not tried is worth the mixed value (Danihelka et al.
    2022, equation 33); all are brought to [0, 1] and scaled by (c_visit + most visits) c_scale (equation 8)."""
    a = len(node.n)
    total, weight, weighted, most = 0, 0.0, 0.0, 0
    for i in range(a):
        total += node.n[i]
        most = max(most, node.n[i])
        if node.n[i] > 0:
            p = node.prior[i] + 1e-12
            weight += p
            weighted += p * node.q[i]
    mixed = node.raw if total == 0 else (node.raw + total * (weighted / weight)) / (1 + total)
    values = [node.q[i] if node.n[i] > 0 else mixed for i in range(a)]
    low, high = min(values), max(values)
    span = max(high - low, 1e-8)
    factor = (settings.visit_scale + most) * settings.value_scale
    return [factor * ((v - low) / span) for v in values]


def improved(settings: TreeSettings, node: _Node) -> list[float]:
    """Softmax of logits and scaled completed values."""
    scores = [x + y for x, y in zip(logits_of(node.prior), completed(settings, node), strict=True)]
    top = max(scores)
    parts = [math.exp(s - top) for s in scores]
    total = 0.0
    for p in parts:
        total += p
    return [p / total for p in parts]


def _first_best(scores: list[float]) -> int:
    best = 0
    for i in range(1, len(scores)):
        if scores[i] > scores[best]:
            best = i
    return best


def _pick_puct(settings: TreeSettings, node: _Node, low: float, high: float) -> int:
    """argmax of Q + c P sqrt(N) / (1 + n), N counting the walks that came to the node, the first included; Q scaled by
    the least and greatest value of an edge in this tree, 0 where the edge was not tried."""
    root = math.sqrt(node.visits)
    scores = []
    for i in range(len(node.n)):
        q = (node.q[i] - low) / (high - low) if node.n[i] > 0 and high > low else 0.0
        scores.append(q + settings.exploration * node.prior[i] * root / (1 + node.n[i]))
    return _first_best(scores)


def _pick_root(settings: TreeSettings, node: _Node, noise: list[float], wanted: int) -> int:
    """Among the actions with the wanted number of visits: argmax of noise + logits + scaled completed values."""
    scores = [g + x + y for g, x, y in zip(noise, logits_of(node.prior), completed(settings, node), strict=True)]
    return _first_best([s if n == wanted else -math.inf for s, n in zip(scores, node.n, strict=True)])


def _pick_inside(settings: TreeSettings, node: _Node) -> int:
    """argmax of the improved policy less the share of visits n / (1 + sum n) (Danihelka et al. 2022, equation 14)."""
    total = sum(node.n)
    return _first_best([p - n / (1 + total) for p, n in zip(improved(settings, node), node.n, strict=True)])


def walk(model: TreeModel, settings: TreeSettings, root: int, key: int) -> Leaf:
    """All simulations from one root."""
    a, k = model.n_actions, model.n_successors
    value, prior = yield root
    steps = 0
    if settings.rollout_steps:
        value, more = _rollout(model, settings, root, key, settings.simulations)
        steps += more
    tree = [_Node(root, False, value, prior, a, k)]
    noise = gumbel_noise(settings, key, a)
    schedule = halving(min(settings.considered, a), settings.simulations)
    low, high = math.inf, -math.inf
    for simulation in range(settings.simulations):
        node = 0
        path: list[tuple[int, int, int]] = []
        while True:
            here = tree[node]
            if settings.method == "puct":
                action = _pick_puct(settings, here, low, high)
            elif node == 0:
                action = _pick_root(settings, here, noise, schedule[simulation])
            else:
                action = _pick_inside(settings, here)
            j = successor(model, here.state, action, draw(key, simulation, len(path))) if k > 1 else 0
            path.append((node, action, j))
            steps += 1
            node = here.child[action][j]
            if node < 0 or tree[node].end:
                break
        if node < 0:  # a new leaf
            at, action, j = path[-1]
            state = int(model.next_state[tree[at].state, action, j])
            known = state < model.n_states
            end = not known or model.reward[state] != 0.0
            value, prior = yield (None if end else state)
            if end:
                value = float(model.reward[state]) if known else 0.0
            elif settings.rollout_steps:
                value, more = _rollout(model, settings, state, key, simulation)
                steps += more
            node = len(tree)
            tree.append(_Node(state, end, value, prior, a, k))
            tree[at].child[action][j] = node
        else:
            tree[node].visits += 1
            yield None
        result = tree[node].raw
        for at, action, _ in reversed(path):
            here = tree[at]
            result = settings.gamma * result
            here.n[action] += 1
            here.visits += 1
            here.w[action] += result
            if settings.backup == "mean":
                here.q[action] = here.w[action] / here.n[action]
            else:
                here.q[action] = settings.gamma * _expected(tree, here.child[action])
                here.best = max(q for q, n in zip(here.q, here.n, strict=True) if n > 0)
            low, high = min(low, here.q[action]), max(high, here.q[action])
    return _result(settings, tree, noise, steps)


def _expected(tree: list[_Node], children: list[int]) -> float:
    """Mean worth of an edge's successors, each weighted by the walks that came to it."""
    total, weighted = 0, 0.0
    for child in children:
        if child >= 0:
            total += tree[child].visits
            weighted += tree[child].visits * tree[child].best
    return weighted / total


def _result(settings: TreeSettings, tree: list[_Node], noise: list[float], steps: int) -> dict[str, object]:
    root = tree[0]
    total = 0.0
    for w in root.w:
        total += w
    if settings.method == "puct":
        most = max(root.n)
        tied = [q if n == most else -math.inf for n, q in zip(root.n, root.q, strict=True)]
        action, policy = _first_best(tied), [n / settings.simulations for n in root.n]
    else:
        action, policy = _pick_root(settings, root, noise, max(root.n)), improved(settings, root)
    value = root.best if settings.backup == "max" else total / settings.simulations
    return {
        "visits": root.n, "q": root.q, "value": value, "action": action, "policy": policy, "steps": steps,
        "nodes": len(tree),
    }  # fmt: skip


def search_plain(
    model: TreeModel, roots: np.ndarray, keys: np.ndarray, settings: TreeSettings, evaluate: Evaluate | None
) -> Found:
    """Every root in lockstep, so that leaves can be evaluated together; see `retarget.search.tree.search`."""
    walks = [walk(model, settings, int(s), int(key)) for s, key in zip(roots, keys, strict=True)]
    asked: list[int | None] = [next(w) for w in walks]
    rows: list[dict[str, object]] = []
    for turn in range(settings.simulations + 1):
        states = np.array([root if s is None else s for s, root in zip(asked, roots, strict=True)], dtype=np.int64)
        if evaluate is None:
            values, priors = model.value[states], model.prior[states]
        else:
            values, priors = evaluate(states)
        for i, w in enumerate(walks):
            try:
                asked[i] = w.send((float(values[i]), [float(p) for p in priors[i]]))
            except StopIteration as stop:
                rows.append(stop.value)
        assert not rows or turn == settings.simulations
    return Found(
        visits=np.array([r["visits"] for r in rows], dtype=np.int32),
        q=np.array([r["q"] for r in rows], dtype=np.float64),
        value=np.array([r["value"] for r in rows], dtype=np.float64),
        action=np.array([r["action"] for r in rows], dtype=np.int64),
        policy=np.array([r["policy"] for r in rows], dtype=np.float64),
        steps=np.array([r["steps"] for r in rows], dtype=np.int64),
        nodes=np.array([r["nodes"] for r in rows], dtype=np.int32),
    )
