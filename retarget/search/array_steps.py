"""Steps of the array engine that look at many nodes at once: choices, leaf values, chance. Tensors in, tensors out.

Numbers of A actions of M nodes are float64 `[A, M]`: one action's numbers lie together. The arithmetic is that of
`retarget.search.reference`, in its order: where a sum's order counts, it is a loop over actions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retarget.search.reference import GUMBEL, ROLLOUT
from retarget.search.settings import TreeModel, TreeSettings

_UNIT = 1.0 / 9007199254740992.0


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN, _FIRST, _SECOND = (_signed(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _xor_shifted(z: Tensor, bits: int) -> Tensor:
    """z ^ (z >> bits), the shift filling with zeros."""
    return z ^ ((z >> bits) & ((1 << (64 - bits)) - 1))


def mix(x: Tensor) -> Tensor:
    """SplitMix64 finaliser on int64 that holds the bits of unsigned words; see `retarget.search.reference.mix`.

    >>> from retarget.search.reference import mix as plain
    >>> int(mix(torch.tensor([7]))[0]) % 2**64 == plain(7)
    True
    """
    z = _xor_shifted(x + _GOLDEN, 30) * _FIRST
    z = _xor_shifted(z, 27) * _SECOND
    return _xor_shifted(z, 31)


def draws(inner: Tensor, step: int | Tensor) -> Tensor:
    """Floats in [0, 1): `inner` is the mixed key of a simulation, int64; `step` broadcasts against it."""
    return ((mix(inner ^ step) >> 11) & ((1 << 53) - 1)).to(torch.float64).mul_(_UNIT)


def first_best(scores: Tensor) -> Tensor:
    """Int64 `[M]`: the first of the best actions. `scores`, float64 `[A, M]`, is overwritten.

    >>> first_best(torch.tensor([[0.0, 3.0], [2.0, 1.0], [2.0, 3.0]], dtype=torch.float64)).tolist()
    [1, 0]
    """
    n = len(scores)
    # in place, a comparison writes 1.0 and 0.0; torch.argmax promises no order among equals
    scores.eq_(scores.amax(0))
    scores.mul_(torch.arange(n, 0, -1, dtype=scores.dtype, device=scores.device)[:, None])
    return scores.amax(0).neg_().add_(n).to(torch.int64)


def summed(x: Tensor) -> Tensor:
    """Sum over the first axis, in order."""
    total = x[0].clone()
    for i in range(1, len(x)):
        total += x[i]
    return total


class Tables:
    """A model on a device. The symbol S, "not known", has a row of its own: an end, worth nothing."""

    def __init__(self, model: TreeModel, settings: TreeSettings, device: torch.device) -> None:
        s, a, k = model.next_state.shape
        self.n_states, self.n_actions, self.n_successors = s, a, k

        def put(array: object, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(array, dtype=dtype, device=device)

        none = put([0.0])
        reward = put(model.reward)
        ends = reward != 0
        self.opinion = put(model.value)
        self.next_state = put(model.next_state, torch.int64).view(-1)
        self.reward = torch.cat((reward, none))
        self.value = torch.cat((torch.where(ends, reward, self.opinion), none))
        self.live = torch.cat(((~ends).to(torch.int64), put([0], torch.int64)))
        # a link to a node is written with the sign of this: below 0 where the node is an end
        self.sign = 2 * self.live - 1
        self.prior = put(model.prior)
        # running totals of probabilities, all but the last: [K - 1, S A]
        bounds, total = [], torch.zeros(s * a, dtype=torch.float64, device=device)
        for j in range(k - 1):
            total = total + put(model.prob[:, :, j]).view(-1)
            bounds.append(total)
        self.bounds = bounds

    def successors(self, cells: Tensor, u: Tensor) -> Tensor:
        """Int64 `[M]`: which successor of a cell s A + a each draw picks."""
        chosen = torch.zeros_like(cells)
        for bound in self.bounds:
            chosen += u >= bound.index_select(0, cells)
        return chosen

    def after(self, cells: Tensor, successors: Tensor | int) -> Tensor:
        """Int64 `[M]`: the state of that number among a cell's successors."""
        if self.n_successors > 1:
            cells = cells * self.n_successors + successors
        return self.next_state.index_select(0, cells)


def rollouts(
    tables: Tables, settings: TreeSettings, states: Tensor, keys: Tensor, simulation: int
) -> tuple[Tensor, Tensor]:
    """Returns float64 `[M]` and steps int64 `[M]` of uniformly random walks, one from each state."""
    a = tables.n_actions
    value = torch.zeros(len(states), dtype=torch.float64, device=states.device)
    steps = torch.full_like(states, settings.rollout_steps)
    inner = mix(mix(keys ^ ROLLOUT) ^ simulation)
    at = torch.arange(len(states), device=states.device)
    scale = 1.0
    for t in range(settings.rollout_steps):
        if not len(at):
            break
        action = (draws(inner, 2 * t) * a).to(torch.int64).clamp_(max=a - 1)
        cells = states * a + action
        chosen = tables.successors(cells, draws(inner, 2 * t + 1)) if tables.n_successors > 1 else 0
        states = tables.after(cells, chosen)
        scale *= settings.gamma
        live = tables.live.index_select(0, states)
        over = (live == 0).nonzero().view(-1)
        if len(over):
            ended = at.index_select(0, over)
            value.index_copy_(0, ended, scale * tables.reward.index_select(0, states.index_select(0, over)))
            steps.index_fill_(0, ended, t + 1)
            left = live.nonzero().view(-1)
            at, states, inner = (x.index_select(0, left) for x in (at, states, inner))
    return value, steps


def gumbel_noise(settings: TreeSettings, keys: Tensor, n_actions: int) -> Tensor:
    """Float64 `[A, B]`: noise of the roots; zeros where its scale is 0."""
    if settings.gumbel_scale == 0.0:
        return torch.zeros(n_actions, len(keys), dtype=torch.float64, device=keys.device)
    inner = mix(mix(keys ^ GUMBEL))
    units = torch.stack([draws(inner, a) for a in range(n_actions)])
    return -settings.gumbel_scale * ((-(units + 1e-300).log()) + 1e-300).log()


def puct_scores(q: Tensor, n: Tensor, pull: Tensor, low: Tensor, span: Tensor) -> Tensor:
    """Scaled values and c P sqrt(N) / (1 + n), added: float64 `[A, M]`. `q` is overwritten.

    Args:
        q: values of edges.
        n: visits of edges.
        pull: c P.
        low: least value of an edge in each node's tree, `[M]`.
        span: the greatest less that; infinite where they are equal, which makes all scaled values 0.
    """
    root = n.sum(0).add_(1.0).sqrt_()
    q.sub_(low).div_(span).mul_(n.clamp_max(1.0))
    return q.add_((pull * root).div_(n + 1.0))


def completed(settings: TreeSettings, q: Tensor, n: Tensor, base: Tensor, raw: Tensor) -> Tensor:
    """Scaled completed values float64 `[A, M]` of nodes that were walked through; see the reference.

    Args:
        q, n: values, 0 where not tried, and visits of edges.
        base: prior + 1e-12.
        raw: value of each node as a leaf, `[M]`.
    """
    tried = n.clamp_max(1.0)
    share = base * tried
    weight, weighted = summed(torch.stack((share, share * q), 1))
    total = n.sum(0)
    mixed = weighted.div_(weight).mul_(total).add_(raw).div_(total.add_(1.0))
    values = torch.addcmul(q, tried.neg_().add_(1.0), mixed)
    low = values.amin(0)
    span = values.amax(0).sub_(low).clamp_min_(1e-8)
    factor = n.amax(0).add_(settings.visit_scale).mul_(settings.value_scale)
    return values.sub_(low).div_(span).mul_(factor)


def improved(scores: Tensor) -> Tensor:
    """Softmax of scores float64 `[A, M]` over actions."""
    parts = (scores - scores.amax(0)).exp_()
    return parts.div_(summed(parts))


def inside_scores(scores: Tensor, n: Tensor) -> Tensor:
    """Float64 `[A, M]`: the improved policy less the share of visits; its argmax is taken inside a tree."""
    return improved(scores).sub_(n / n.sum(0).add_(1.0))


def root_scores(scores: Tensor, n: Tensor, wanted: Tensor | float) -> Tensor:
    """The same scores, of the actions with the wanted number of visits alone; overwritten."""
    return scores.masked_fill_(n != wanted, -torch.inf)
