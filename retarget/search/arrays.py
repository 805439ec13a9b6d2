"""The array engine: all trees as flat torch arrays on any device, one simulation of every root at a time.

A choice at a node changes only when the node is walked through, or when the range of values in its tree does. So each
node keeps its choice and where that leads: a walk down is one look-up a level, and the nodes of all walks are then
brought up to date together. Where the range has changed, a node's choice is made anew when a walk next comes to it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retarget.errors import AgentError
from retarget.search import array_steps as steps
from retarget.search.reference import halving
from retarget.search.settings import Evaluate, Found, TreeModel, TreeSettings
from retarget.search.sweeps import free_bytes

#: Nodes brought up to date together, at most: bounds the memory of what lies between.
TOGETHER = 1 << 18
#: Stamp of a node whose choice depends on no range of values.
_ALWAYS = 2**31 - 1


def search_arrays(
    model: TreeModel,
    roots: np.ndarray,
    keys: np.ndarray,
    settings: TreeSettings,
    evaluate: Evaluate | None,
    device: str,
    memory_limit_bytes: int | None,
) -> Found:
    """Search from every root on a device of torch; see `retarget.search.tree.search`, which checks what is asked.

    Args:
        model: what is searched.
        roots: int64 `[B]` states.
        keys: uint64 `[B]` names of random numbers.
        settings: how.
        evaluate: values and priors of leaves, or None for the model's tables. Where it has an attribute `on_device`,
            that is called in its place: with int64 `[B]` states on the device, for values `[B]` and priors `[B, A]`
            there, so that nothing is copied.
        device: of torch, e.g. `cpu` or `cuda`; it must hold float64.
        memory_limit_bytes: most that may be taken; None for half of what is free there.

    Raises:
        AgentError: for a device that is not there, a batch that does not fit, or values that are not finite.

    >>> chain = np.array([[[1], [0]], [[2], [0]], [[2], [1]]])
    >>> model = TreeModel(chain, np.ones(chain.shape), np.array([0, 0, 1.0]), np.zeros(3), np.full((3, 2), 0.5))
    >>> keys = np.zeros(2, np.uint64)
    >>> found = search_arrays(model, np.array([0, 1]), keys, TreeSettings(simulations=32), None, "cpu", None)
    >>> found.action.tolist()
    [0, 0]
    """
    place = _device(device)
    _check_memory(model, settings, len(roots), evaluate is not None, place, memory_limit_bytes)
    threads = torch.get_num_threads()
    try:
        # single operations are too small to share out; and a search must not change what others set
        torch.set_num_threads(1)
        with torch.inference_mode():
            return _Forest(model, roots, keys, settings, evaluate, place).grown()
    finally:
        torch.set_num_threads(threads)


def bytes_needed(model: TreeModel, settings: TreeSettings, batch: int, *, evaluated: bool = False) -> int:
    """Most bytes that a search of `batch` roots holds at once, the walk through every node of a tree included.

    Per node: 36, and 24 an action (visits, returns, links; 8 more for each further successor); with priors from
    `evaluate` 16 more an action; with backup `max` 16, and 8 an action. Per step of a walk: 104. Beside these, what
    lies between for `TOGETHER` nodes: 64, and 160 an action.

    >>> chain = np.zeros((3, 2, 1), np.int64)
    >>> model = TreeModel(chain, np.ones(chain.shape), np.zeros(3), np.zeros(3), np.full((3, 2), 0.5))
    >>> bytes_needed(model, TreeSettings(simulations=127), 1024) // 2**20
    71
    """
    a, k = model.n_actions, model.n_successors
    nodes = batch * (settings.simulations + 1)
    node = 36 + 16 * a + 8 * a * k + (16 * a if evaluated else 0)
    node += 16 + 8 * a if settings.backup == "max" else 0
    return nodes * (node + 104) + min(nodes, max(batch, TOGETHER)) * (64 + 160 * a)


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise AgentError(f"device {name!r} cannot hold a search in float64 ({why}); take device='cpu'") from error
    return place


def _check_memory(
    model: TreeModel, settings: TreeSettings, batch: int, evaluated: bool, device: torch.device, limit: int | None
) -> None:
    need = bytes_needed(model, settings, batch, evaluated=evaluated)
    most = free_bytes(str(device)) // 2 if limit is None else limit
    if need > most:
        raise AgentError(
            f"a search of {batch} roots with {settings.simulations} simulations needs {need} bytes on {device}, the "
            f"limit is {most}; pass fewer roots at a time, fewer simulations, or a greater memory_limit_bytes"
        )


class _Forest:
    """B trees. Node j of tree b is number `1 + b * (simulations + 1) + j`; number 0 is where a walk that has ended
    stays. An edge is node * A + action, a link edge * K + successor."""

    def __init__(
        self,
        model: TreeModel,
        roots: np.ndarray,
        keys: np.ndarray,
        settings: TreeSettings,
        evaluate: Evaluate | None,
        device: torch.device,
    ) -> None:
        self.settings, self.device, self.evaluate = settings, device, evaluate
        self.tables = steps.Tables(model, settings, device)
        self.gumbel, self.by_max = settings.method == "gumbel", settings.backup == "max"
        self.states = torch.tensor(roots, dtype=torch.int64, device=device)
        self.keys = torch.tensor(keys.view(np.int64), device=device)
        b, a, k = len(roots), model.n_actions, model.n_successors
        self.b, self.a, self.k = b, a, k
        n = 1 + b * (settings.simulations + 1)
        self.lanes = torch.arange(2 * a, device=device)[:, None]
        self.trees = torch.arange(b, device=device)
        self.roots = 1 + self.trees * (settings.simulations + 1)
        self.next_node = self.roots.clone()

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        # visits of the A edges of a node, then their sums of returns
        self.stats = zeros(n * 2 * a, dtype=torch.float64)
        self.link = zeros(n * a * k)
        self.follow = zeros(n if k == 1 else 0)
        # written before they are read, except for number 0
        self.state, self.choice = (torch.empty(n, dtype=torch.int64, device=device) for _ in range(2))
        self.state[0], self.choice[0] = 0, 0
        self.stamp = torch.full((0 if self.gumbel else n,), _ALWAYS, dtype=torch.int32, device=device)
        self.raw = zeros(n if self.gumbel else 0, dtype=torch.float64)
        self.worth = zeros(n if self.by_max else 0, dtype=torch.float64)
        self.came = zeros(n if self.by_max else 0, dtype=torch.float64)
        self.edge_q = zeros(n * a if self.by_max else 0, dtype=torch.float64)
        self._weigh(model.prior, n)
        # of each tree: changes of its range of values, that range, the steps walked
        self.version = zeros(b, dtype=torch.int32)
        self.low, self.span = zeros(b, dtype=torch.float64), zeros(b, dtype=torch.float64)
        self.high = torch.full_like(self.low, -torch.inf)
        self.low.fill_(torch.inf)
        self.walked = zeros(b)
        # places for a walk, one row a level; filled as far as walks have gone
        depth = settings.simulations + 2
        self.path = torch.empty((depth, b), dtype=torch.int64, device=device)
        self.taken = torch.empty((depth if k > 1 else 0, b), dtype=torch.int64, device=device)
        self.returns = torch.empty((depth, b), dtype=torch.float64, device=device)
        self.tree_of = torch.empty((depth, b), dtype=torch.int64, device=device)
        self.rows, self.levels = self.path.unbind(0), 0
        schedule = halving(min(settings.considered, a), settings.simulations) if self.gumbel else []
        self.schedule = [float(n) for n in schedule]

    # ------------------------------------------------------------------------------------------------- opinions

    def _weigh(self, prior: np.ndarray, n: int) -> None:
        """What is needed of priors: float64 `[R W A]`, a row for each state or, where leaves are asked for, each node.
        A row holds c P (W = 1), or for the Gumbel method P + 1e-12 and its logarithm (W = 2)."""
        asked = self.evaluate is not None
        self.width = (2 if self.gumbel else 1) * self.a
        self.weights = torch.zeros((n if asked else len(prior)) * self.width, dtype=torch.float64, device=self.device)
        if not asked:
            rows = torch.tensor(prior, dtype=torch.float64, device=self.device)
            fresh = self._write(torch.arange(len(prior), device=self.device), rows)
            self.fresh = torch.cat((fresh, torch.zeros_like(fresh[:1])))

    def _write(self, at: Tensor, prior: Tensor) -> Tensor:
        """Store priors float64 `[M, A]` in the rows `at`; gives the choice int64 `[M]` of a node not yet walked
        through."""
        row = self.settings.exploration * prior
        scores = row
        if self.gumbel:
            base = prior + 1e-12
            scores = base.log()
            row = torch.cat((base, scores), 1)
        self.weights.view(-1, self.width).index_copy_(0, at, row)
        scores = scores.t().contiguous()
        if self.gumbel:
            scores = steps.inside_scores(scores, torch.zeros_like(scores))
        return steps.first_best(scores)

    def _weights(self, nodes: Tensor) -> Tensor:
        """The rows of nodes, float64 `[W A, M]`."""
        rows = self.state.index_select(0, nodes) if self.evaluate is None else nodes
        return self.weights.index_select(0, self._lanes(rows * self.width, self.width)).view(self.width, -1)

    def _opinion(self, simulation: int, nodes: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Values float64 `[B]` and first choices int64 `[B]` of the nodes that walks came to; those of the roots
        count as simulation number `simulations`."""
        # a root is walked from even where walks that come there end
        root = simulation == self.settings.simulations
        live = torch.ones_like(states) if root else self.tables.live.index_select(0, states)
        value = (self.tables.opinion if root else self.tables.value).index_select(0, states)
        if self.evaluate is None:
            choice = self.fresh.index_select(0, states)
        else:
            asked = torch.where(live > 0, states, self.states)
            leaf, prior = self._asked(asked)
            value = torch.where(live > 0, leaf, value)
            choice = self._write(nodes, prior)
        if self.settings.rollout_steps:
            at = live.nonzero().view(-1)
            got, more = steps.rollouts(
                self.tables, self.settings, states.index_select(0, at), self.keys.index_select(0, at), simulation
            )
            value.index_copy_(0, at, got)
            self.walked.index_add_(0, at, more)
        return value, choice

    def _asked(self, states: Tensor) -> tuple[Tensor, Tensor]:
        assert self.evaluate is not None
        there = getattr(self.evaluate, "on_device", None)
        if there is None:
            both = (np.asarray(x, np.float64) for x in self.evaluate(states.cpu().numpy()))
            value, prior = (torch.tensor(x, device=self.device) for x in both)
            return value, prior
        value, prior = (torch.as_tensor(x, dtype=torch.float64, device=self.device) for x in there(states))
        if value.shape != (self.b,) or prior.shape != (self.b, self.a):
            raise AgentError(
                f"leaf values and priors need the shapes ({self.b},) and ({self.b}, {self.a}), "
                f"got {tuple(value.shape)} and {tuple(prior.shape)}"
            )
        good = value.isfinite() & prior.isfinite().all(1)
        if not bool(good.all()):
            bad = int(states[int(good.to(torch.int64).argmin())])
            raise AgentError(
                f"the value network returned a number that is not finite for state {bad}; check its weights"
            )
        return value, prior

    # ------------------------------------------------------------------------------------------------ simulations

    def grown(self) -> Found:
        """All simulations, and what they found."""
        self.state.index_copy_(0, self.roots, self.states)
        self._arrive(self.settings.simulations, self.roots, self.states)
        self.next_node += 1
        if self.gumbel:
            logits = self._weights(self.roots)[self.a :]
            self.noisy = steps.gumbel_noise(self.settings, self.keys, self.a) + logits
            first = steps.root_scores(self.noisy.clone(), torch.zeros_like(self.noisy), self.schedule[0])
            self.choice.index_copy_(0, self.roots, steps.first_best(first))
        for simulation in range(self.settings.simulations):
            counts = self._walk(simulation)
            value, at, depth = self._leaf(simulation, len(counts))
            self._back(simulation, value, at, depth, counts)
        return self._found()

    def _walk(self, simulation: int) -> list[int]:
        """Follow the choices from the roots, level by level; gives how many walks came to each level."""
        self.rows[0].copy_(self.roots)
        inner = steps.mix(self.keys ^ simulation) if self.k > 1 else self.keys
        counts: list[int] = []
        live = self.b
        while live:
            t = len(counts)
            cur, after = self.rows[t], self.rows[t + 1]
            if t and not self.gumbel:
                self._freshen(cur)
            counts.append(live)
            if self.k == 1:
                torch.index_select(self.follow, 0, cur, out=after)
            else:
                edge = cur * self.a + self.choice.index_select(0, cur)
                cells = self.state.index_select(0, cur).mul_(self.a).add_(edge - cur * self.a)
                link = edge * self.k + self.tables.successors(cells, steps.draws(inner, t))
                self.taken[t] = link
                torch.clamp_min(self.link.index_select(0, link), 0, out=after)
            live = int(after.count_nonzero())
        for t in range(self.levels, len(counts)):
            self.tree_of[t] = self.trees
        self.levels = max(self.levels, len(counts))
        return counts

    def _freshen(self, nodes: Tensor) -> None:
        """Choose anew at nodes whose tree's range of values has changed since they chose."""
        stale = self.stamp.index_select(0, nodes) < self.version
        if int(stale.count_nonzero()):
            at = stale.nonzero().view(-1)
            self._choose(nodes.index_select(0, at), at, None)

    def _leaf(self, simulation: int, levels: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the walks came to: its value float64 `[B]`, the places of the walks' nodes in the path, int64 `[M]`, and
        the lengths of the walks, int64 `[B]`."""
        path = self.path[:levels]
        at = path.view(-1).nonzero().view(-1)
        depth = path.clamp_max(1).sum(0)
        self.walked += depth
        last = (depth - 1).mul_(self.b).add_(self.trees)
        node = path.view(-1).index_select(0, last)
        choice, state = self.choice.index_select(0, node), self.state.index_select(0, node)
        link = edge = torch.add(choice, node, alpha=self.a)
        if self.k > 1:
            link = self.taken.view(-1).index_select(0, last)
        states = self.tables.after(state.mul_(self.a).add_(choice), link - edge * self.k)
        known = self.link.index_select(0, link)
        new = (known == 0).to(torch.int64)
        target = known.abs_().add_(new * self.next_node)
        self.next_node += new
        self.link.index_copy_(0, link, target * self.tables.sign.index_select(0, states))
        self.state.index_copy_(0, target, states)
        return self._arrive(simulation, target, states), at, depth

    def _arrive(self, simulation: int, nodes: Tensor, states: Tensor) -> Tensor:
        """Judge the nodes that walks came to."""
        value, choice = self._opinion(simulation, nodes, states)
        self.choice.index_copy_(0, nodes, choice)
        if self.gumbel:
            self.raw.index_copy_(0, nodes, value)
        if self.by_max:
            self.worth.index_copy_(0, nodes, value)
            self.came.index_add_(0, nodes, torch.ones_like(value))
        return value

    def _back(self, simulation: int, value: Tensor, at: Tensor, depth: Tensor, counts: list[int]) -> None:
        """Carry the returns back to the roots, and bring the walks' nodes up to date."""
        levels = len(counts)
        nodes = self.path.view(-1).index_select(0, at)
        tree = self.tree_of.view(-1).index_select(0, at)
        # row m of the returns: discounted m times
        torch.mul(value, self.settings.gamma, out=self.returns[0])
        for before, after in zip(self.returns[: levels - 1], self.returns[1:levels], strict=True):
            torch.mul(before, self.settings.gamma, out=after)
        which = (depth - 1).mul_(self.b).add_(self.trees, alpha=2).index_select(0, tree).sub_(at)
        result = self.returns.view(-1).index_select(0, which)
        choice = self.choice.index_select(0, nodes)
        cell = torch.add(choice, nodes, alpha=2 * self.a)
        self.stats.index_add_(0, cell, torch.ones_like(result))
        self.stats.index_add_(0, cell + self.a, result)
        if not self.gumbel:
            if self.by_max:
                q = self._back_max(nodes, choice, counts)
            else:
                q = self.stats.index_select(0, cell + self.a).div_(self.stats.index_select(0, cell))
            self._widen(q, at, levels)
        wanted = self.schedule[simulation + 1] if simulation + 1 < len(self.schedule) else None
        part = max(TOGETHER, self.b)
        for i in range(0, len(nodes), part):
            self._choose(nodes[i : i + part], tree[i : i + part], wanted if i == 0 else None)

    def _back_max(self, nodes: Tensor, choice: Tensor, counts: list[int]) -> Tensor:
        """Worth of the walks' edges and nodes, from the deepest level up; gives that of the edges, float64 `[M]`."""
        self.came.index_add_(0, nodes, torch.ones_like(nodes, dtype=torch.float64))
        edges = torch.add(choice, nodes, alpha=self.a)
        out = torch.empty(len(nodes), dtype=torch.float64, device=self.device)
        stop = len(nodes)
        for count in reversed(counts):
            here = slice(stop - count, stop)
            total = torch.zeros(count, dtype=torch.float64, device=self.device)
            weighted = torch.zeros_like(total)
            for j in range(self.k):
                child = self.link.index_select(0, edges[here] * self.k + j).abs_()
                came = self.came.index_select(0, child)
                total += came
                weighted += came * self.worth.index_select(0, child)
            q = weighted.div_(total).mul_(self.settings.gamma)
            self.edge_q.index_copy_(0, edges[here], q)
            n = self._stats(nodes[here])[: self.a]
            every = self.edge_q.index_select(0, self._lanes(nodes[here] * self.a, self.a)).view(self.a, -1)
            self.worth.index_copy_(0, nodes[here], every.masked_fill_(n == 0, -torch.inf).amax(0))
            out[here] = q
            stop -= count
        return out

    def _widen(self, q: Tensor, at: Tensor, levels: int) -> None:
        """Take the values of edges, float64 `[M]`, into the ranges of their trees."""
        # level 0 has an edge of every tree: it stands in wherever a walk was over
        grid = torch.empty((levels, self.b), dtype=torch.float64, device=self.device).copy_(q[: self.b])
        grid.view(-1).index_copy_(0, at, q)
        low, high = torch.minimum(grid.amin(0), self.low), torch.maximum(grid.amax(0), self.high)
        self.version += (low != self.low) | (high != self.high)
        self.low, self.high = low, high
        self.span = (high - low).masked_fill_(high <= low, torch.inf)

    # ---------------------------------------------------------------------------------------------------- choices

    def _lanes(self, first: Tensor, n: int) -> Tensor:
        """Int64 `[n M]`: n places in a row from each first one, the first ones' first."""
        return (first + self.lanes[:n]).view(-1)

    def _stats(self, nodes: Tensor) -> Tensor:
        """Visits and sums of returns, float64 `[2 A, M]`."""
        return self.stats.index_select(0, self._lanes(nodes * (2 * self.a), 2 * self.a)).view(2 * self.a, -1)

    def _choose(self, nodes: Tensor, tree: Tensor, wanted: float | None) -> None:
        """Choose at nodes. With `wanted`, the first B are the roots, and that is the number of visits of the Gumbel
        method's root."""
        choice = self._gumbel(nodes, wanted) if self.gumbel else self._puct(nodes, tree)
        self.choice.index_copy_(0, nodes, choice)
        if self.k == 1:
            ahead = self.link.index_select(0, choice.add_(nodes, alpha=self.a)).clamp_min_(0)
            self.follow.index_copy_(0, nodes, ahead)

    def _puct(self, nodes: Tensor, tree: Tensor) -> Tensor:
        stats = self._stats(nodes)
        n = stats[: self.a]
        if self.by_max:
            q = self.edge_q.index_select(0, self._lanes(nodes * self.a, self.a)).view(self.a, -1)
        else:
            q = stats[self.a :].div_(n.clamp_min(1.0))
        pull = self._weights(nodes)
        self.stamp.index_copy_(0, nodes, self.version.index_select(0, tree))
        low, span = self.low.index_select(0, tree), self.span.index_select(0, tree)
        return steps.first_best(steps.puct_scores(q, n, pull, low, span))

    def _completed(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled completed values, visits and logits, float64 `[A, M]`."""
        stats = self._stats(nodes)
        n = stats[: self.a]
        q = stats[self.a :].div_(n.clamp_min(1.0))
        weights = self._weights(nodes)
        raw = self.raw.index_select(0, nodes)
        return steps.completed(self.settings, q, n, weights[: self.a], raw), n, weights[self.a :]

    def _gumbel(self, nodes: Tensor, wanted: float | None) -> Tensor:
        values, n, logits = self._completed(nodes)
        split = 0 if wanted is None else self.b
        if wanted is not None:
            steps.root_scores(values[:, :split].add_(self.noisy), n[:, :split], wanted)
        if split < len(nodes):
            values[:, split:] = steps.inside_scores(values[:, split:].add_(logits[:, split:]), n[:, split:])
        return steps.first_best(values)

    # ----------------------------------------------------------------------------------------------------- answer

    def _found(self) -> Found:
        stats = self._stats(self.roots)
        n, w = stats[: self.a], stats[self.a :]
        q = w / n.clamp_min(1.0)
        value = steps.summed(w).div_(self.settings.simulations)
        if self.by_max:
            q = self.edge_q.index_select(0, self._lanes(self.roots * self.a, self.a)).view(self.a, -1)
            value = self.worth.index_select(0, self.roots)
        if self.gumbel:
            values, _, logits = self._completed(self.roots)
            action = steps.first_best(steps.root_scores(self.noisy + values, n, n.amax(0)))
            policy = steps.improved(values.add_(logits))
        else:
            policy = n / self.settings.simulations
            action = steps.first_best(q.clone().masked_fill_(n != n.amax(0), -torch.inf))
        return Found(
            visits=n.t().to(torch.int32).contiguous().cpu().numpy(),
            q=q.t().contiguous().cpu().numpy(),
            value=value.cpu().numpy(),
            action=action.cpu().numpy(),
            policy=policy.t().contiguous().cpu().numpy(),
            steps=self.walked.cpu().numpy(),
            nodes=(self.next_node - self.roots).to(torch.int32).cpu().numpy(),
        )
