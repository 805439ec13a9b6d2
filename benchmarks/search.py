"""Tree search: the compiled engine and the torch arrays against mctx, tables or a network at the leaves."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from rich.console import Console

from benchmarks.timing import Effort, Line, Work, agree
from retarget.agents.leaves import Tables
from retarget.envs import make_world
from retarget.exact import Yardstick, best_actions
from retarget.rng import word
from retarget.search import Found, TreeModel, TreeSettings, search
from retarget.world import FiniteWorld

TOPIC = "search"
GAMMA = 0.95
UNITS = 256
BATCHES, SIMULATIONS = (64, 256, 1024), (32, 128)
GPU_BATCHES = (1024, 16_384, 65_536)
PEER = Path(__file__).resolve().parent.parent / ".bench-venv" / "bin" / "python"
NAMES = {"puct": "mctx muzero_policy", "gumbel": "mctx gumbel_muzero_policy"}
#: Least ratios of the compiled engine to mctx, with tables at the leaves.
BARS = {"puct": 10.0, "gumbel": 5.0}

Leaf = Literal["none", "tables", "network"]
Ask = Callable[[Mapping[str, object]], dict[str, Any]]
#: Runs for a while; gives seconds a search.
Timer = Callable[[], float]


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    torch.set_num_threads(1)
    field = Field.of(make_world("FourRooms", size=13))
    out: list[Line] = []
    if PEER.exists():
        with _peer(field, "one") as one, _peer(field, "all") as every:
            peers = {"one core": one, "all cores": every}
            out += [*_tables(field, effort, peers), *_told(field, effort, peers), *_networks(field, effort, peers)]
    else:
        Console(stderr=True).print("no .bench-venv: mctx is left out, see benchmarks/README.md")
    return [*out, _probe(effort), *_gpu(field, effort)]


def _probe(effort: Effort) -> Line:
    """Seconds that a whole probe of retargetability takes on one tree searcher, controls and all, against a minute."""
    from retarget.agents.search import tree_searcher
    from retarget.probe import Subject
    from retarget.probes import Retargetability

    world = make_world("FourRooms", size=13)
    a, b = world.as_goal((1, 1)), world.as_goal((11, 11))
    how, seconds = TreeSettings(simulations=256, gamma=GAMMA), []
    for _ in range(max(1, min(effort.rounds, 3))):
        # made anew each time: a search is kept with its agent
        agent = tree_searcher(world, a, settings=how, leaf=Tables.for_goal(world, a, gamma=GAMMA))
        begin = time.thread_time()
        found = Retargetability().measure(Subject(agent, world, a, b))
        seconds.append(time.thread_time() - begin)
    agree("the probe finds an edit", found["edit_bits"].status == "ok")
    ratios = np.quantile(60.0 / np.array(seconds), [0.5, 0.25, 0.75])
    names = "probing one tree searcher, 256 simulations, all controls", "one probe a minute"
    return Line(TOPIC, *names, "probes", float(ratios[0]) / 60, 1 / 60, *map(float, ratios), bar=1.0)


class Net:
    """One hidden layer on one-hot states; value and prior logits. float32, as the peer's."""

    def __init__(self, weights: Mapping[str, np.ndarray], n_states: int, device: str = "cpu") -> None:
        self.hidden, self.hidden_bias, self.out, self.out_bias = (
            torch.tensor(weights[n], dtype=torch.float32, device=device)
            for n in ("hidden", "hidden_bias", "out", "out_bias")
        )
        self.eye = torch.eye(n_states, device=device)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Float32 `[B, 1 + A]`: values, then logits."""
        inside = torch.addmm(self.hidden_bias, self.eye.index_select(0, states), self.hidden).relu_()
        return torch.addmm(self.out_bias, inside, self.out)

    def on_device(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.forward(states)
        return both[:, 0], both[:, 1:].double().softmax(1)

    def __call__(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            value, prior = self.on_device(torch.from_numpy(states))
            return value.numpy(), prior.numpy()


@dataclass(frozen=True, eq=False)
class Field:
    """The world that both search, and what both may have at their leaves."""

    blind: TreeModel
    told: TreeModel
    logits: np.ndarray
    weights: Mapping[str, np.ndarray]
    starts: np.ndarray
    right: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, world: FiniteWorld) -> Field:
        s, a = world.model.n_states, world.model.n_actions
        goal = world.goal.mask(s)
        nxt = world.model.next_state, world.model.prob, goal.astype(np.float64)
        tables = Tables.for_goal(world, world.goal, gamma=GAMMA)
        opinion = tables.judge(nxt[2], a, GAMMA)
        rng = np.random.Generator(np.random.Philox(word(0, "benchmark_search")))
        weights = {
            "hidden": rng.normal(size=(s, UNITS)), "hidden_bias": rng.normal(size=UNITS) / 10,
            "out": rng.normal(size=(UNITS, 1 + a)) / UNITS, "out_bias": rng.normal(size=1 + a) / 10,
        }  # fmt: skip
        judge = Yardstick.of(world, world.goal, gamma=GAMMA)
        return cls(
            TreeModel(*nxt, np.zeros(s), np.full((s, a), 1 / a)),
            TreeModel(*nxt, opinion.value, opinion.prior),
            tables.logits,
            {name: array.astype(np.float32) for name, array in weights.items()},
            np.setdiff1d(world.start_states, world.goal.states),
            best_actions(world.model, world.goal, gamma=GAMMA),
            np.round(np.log(np.maximum(judge.optimal, 1e-300)) / np.log(GAMMA)),
        )

    def roots(self, batch: int) -> np.ndarray:
        return np.resize(self.starts, batch)

    def net(self, device: str = "cpu") -> Net:
        return Net(self.weights, self.blind.n_states, device)


# ----------------------------------------------------------------------------------------------------- contenders


def _ours(field: Field, method: str, batch: int, n: int, *, leaf: Leaf = "none", engine: str = "compiled") -> Work:
    """One search of ours."""
    model, roots = field.told if leaf == "tables" else field.blind, field.roots(batch)
    settings = TreeSettings(method=method, simulations=n, gamma=GAMMA)  # type: ignore[arg-type]
    evaluate = field.net() if leaf == "network" else None
    return lambda: search(model, roots, settings=settings, evaluate=evaluate, engine=engine)  # type: ignore[arg-type]


def _timer(work: Work, sample_s: float) -> Timer:
    """CPU time of this thread, which does all of the work."""

    def once() -> float:
        calls, wall, cpu = 0, time.perf_counter(), time.thread_time()
        while not calls or time.perf_counter() - wall < sample_s:
            work()
            calls += 1
        return (time.thread_time() - cpu) / calls

    for _ in range(2):
        work()
    return once


def _theirs(order: Mapping[str, object], peers: Mapping[str, Ask], sample_s: float) -> tuple[str, Timer]:
    """The faster of mctx on one core, by CPU time, and on all of them, by wall time: which, and its timer.

    More than one core is tried with the largest batch alone: with smaller ones there is nothing to share out.
    """

    def timer(who: str) -> Timer:
        clock = "cpu" if who == "one core" else "wall"
        asked = {"kind": "search", **order, "sample_s": sample_s}
        return lambda: float(peers[who](asked)[clock])

    timers = {who: timer(who) for who in peers if who == "one core" or order["batch"] == max(BATCHES)}
    tried = {who: min(t() for _ in range(3)) for who, t in timers.items()}
    best = min(tried, key=lambda who: tried[who])
    return best, timers[best]


def _turns(timers: Mapping[str, Timer], effort: Effort) -> dict[str, np.ndarray]:
    """Seconds a search `[rounds]` of each, in turns."""
    out = {name: np.empty(effort.rounds) for name in timers}
    for i in range(effort.rounds):
        for name, timer in timers.items():
            out[name][i] = timer()
    return out


@dataclass(frozen=True, eq=False)
class Result:
    """One contest: searches a second are `units` over `seconds`."""

    label: str
    units: float
    seconds: Mapping[str, np.ndarray]
    cores: str

    def line(self, ours: str, other: str, what: str, against: str, **options: Any) -> Line:
        a, b = (self.units / self.seconds[name] for name in (ours, other))
        ratio, low, high = (float(x) for x in np.quantile(a / b, [0.5, 0.25, 0.75]))
        return Line(TOPIC, what, against, "simulations", float(np.median(a)), float(np.median(b)), ratio, low, high,
                    **options)  # fmt: skip

    def ratio(self, ours: str) -> float:
        return float(np.median(self.seconds["mctx"] / self.seconds[ours]))


def _contest(
    field: Field, effort: Effort, peers: Mapping[str, Ask], engines: tuple[str, ...], order: Mapping[str, Any]
) -> Result:
    """Ours and mctx, the same searches."""
    method, batch, n, leaf = (order[k] for k in ("method", "batch", "simulations", "leaf"))
    work = {e: _ours(field, method, batch, n, leaf=leaf, engine=e) for e in engines}
    cores, theirs = _theirs(order, peers, effort.sample_s)
    timers = {**{e: _timer(w, effort.sample_s) for e, w in work.items()}, "mctx": theirs}
    return Result(f"{batch:,} x {n}", float(batch * n), _turns(timers, effort), cores)


def _order(method: str, batch: int, n: int, leaf: Leaf) -> dict[str, Any]:
    return {"method": method, "batch": batch, "simulations": n, "leaf": leaf}


def _worst_and_best(results: list[Result], ours: str, what: str, against: str, bar: float) -> list[Line]:
    """The bar is on the worst."""
    ranked = sorted(results, key=lambda r: r.ratio(ours))
    ends = {f"worst of {len(ranked)}": (ranked[0], bar), "best": (ranked[-1], None)}
    return [
        r.line(ours, "mctx", f"{what}, {r.label} ({name})", f"{against}, {r.cores}", bar=b)
        for name, (r, b) in ends.items()
    ]


# ---------------------------------------------------------------------------------------------------------- lines


def _tables(field: Field, effort: Effort, peers: Mapping[str, Ask]) -> list[Line]:
    """Nothing at the leaves: every batch and number of simulations."""
    out = []
    for method, against in NAMES.items():
        _check(field, method, peers)
        results = {}
        for batch in BATCHES:
            for n in SIMULATIONS:
                engines = ("compiled", "arrays") if batch == max(BATCHES) else ("compiled",)
                results[batch, n] = _contest(field, effort, peers, engines, _order(method, batch, n, "none"))
        out += _worst_and_best(list(results.values()), "compiled", f"compiled {method}", against, BARS[method])
        largest = [r for (batch, _), r in results.items() if batch == max(BATCHES)]
        out += _worst_and_best(largest, "arrays", f"torch arrays {method}", against, 1.0)
    return out


def _told(field: Field, effort: Effort, peers: Mapping[str, Ask]) -> list[Line]:
    """Exact values and a prior that favours optimal actions, which makes walks longer: for information."""
    out = []
    for method, against in NAMES.items():
        for batch, n in ((64, 32), (1024, 128)):
            result = _contest(field, effort, peers, ("compiled", "arrays"), _order(method, batch, n, "tables"))
            for engine, name in (("compiled", "compiled"), ("arrays", "torch arrays")):
                if engine == "compiled" or batch == 1024:
                    what = f"{name} {method}, exact values at the leaves, {result.label}"
                    out.append(result.line(engine, "mctx", what, f"{against}, {result.cores}"))
    return out


def _networks(field: Field, effort: Effort, peers: Mapping[str, Ask]) -> list[Line]:
    """A network at the leaves, judged in one batch a simulation: against mctx with the same, and the network alone."""
    _check_network(field, peers)
    net, results = field.net(), []
    for batch in BATCHES:
        for n in SIMULATIONS:
            order = _order("puct", batch, n, "network")
            asked = _asked(field, net, batch, n)
            cores, theirs = _theirs(order, peers, effort.sample_s)
            timers = {
                "compiled": _timer(_ours(field, "puct", batch, n, leaf="network"), effort.sample_s),
                "network": _timer(lambda asked=asked: [net(states) for states in asked], effort.sample_s),  # type: ignore[misc]
                "mctx": theirs,
            }
            results.append(Result(f"{batch:,} x {n}", float(batch * n), _turns(timers, effort), cores))
    what = f"compiled puct with a {UNITS}-unit network"
    out = _worst_and_best(results, "compiled", what, "mctx muzero_policy with the same", 2.0)
    ranked = sorted(results, key=lambda r: float(np.median(r.seconds["network"] / r.seconds["compiled"])))
    for r, name, bar in ((ranked[0], f"worst of {len(ranked)}", 0.6), (ranked[-1], "best", None)):
        out.append(r.line("compiled", "network", f"{what}, {r.label} ({name})", "the network alone, same batches",
                          bar=bar, kind="limit"))  # fmt: skip
    return out


def _asked(field: Field, net: Net, batch: int, n: int) -> list[np.ndarray]:
    """The batches of leaves that a search asks the network for."""
    out: list[np.ndarray] = []

    def evaluate(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out.append(states.copy())
        return net(states)

    search(field.blind, field.roots(batch), settings=TreeSettings(simulations=n, gamma=GAMMA), evaluate=evaluate)
    return out


def _gpu(field: Field, effort: Effort) -> list[Line]:
    """The arrays on a GPU: simulations a second, and the share of its memory bandwidth."""
    if not torch.cuda.is_available():
        Console(stderr=True).print("no GPU: the arrays are measured on the CPU alone")
        return []
    bandwidth = _bandwidth(effort)
    out = []
    for method in NAMES:
        for batch in GPU_BATCHES:
            roots, settings = field.roots(batch), TreeSettings(method=method, simulations=128, gamma=GAMMA)  # type: ignore[arg-type]

            def work(roots: np.ndarray = roots, settings: TreeSettings = settings) -> Found:
                return search(field.blind, roots, settings=settings, engine="arrays", device="cuda")

            found, took = work(), np.empty(effort.rounds)
            for i in range(effort.rounds):
                begin = time.perf_counter()
                work()
                took[i] = time.perf_counter() - begin
            rate = batch * 128 / took
            limit = bandwidth / bytes_moved(found, field.blind.n_actions)
            ratio, low, high = (float(x) for x in np.quantile(rate[:, None] / limit, [0.5, 0.25, 0.75]))
            name, against = f"torch arrays {method} on a GPU, {batch:,} x 128", "memory bandwidth, least bytes moved"
            out.append(Line(TOPIC, name, against, "simulations", float(np.median(rate)), float(np.median(limit)), ratio,
                            low, high, kind="limit"))  # fmt: skip
    return out


def bytes_moved(found: Found, n_actions: int) -> float:
    """Least bytes that a simulation moves between memory and the arrays' kernels, each value read or written once.

    For each step of a walk: where it leads, read and noted (16); on the way back the note (8), visits and returns of
    all actions read (16 each) and of one written (16), the state (8), the choice read and written (16), one link read
    and where it leads written (16), and the stamp read and written or the leaf value read (8). For each leaf: a link
    read and written (16), state, choice and value (24). Tables stay in the cache.
    """
    walked = float(found.steps.sum() / found.visits.sum())
    return walked * (16 + 8 + 16 * n_actions + 16 + 8 + 16 + 16 + 8) + 40


def _bandwidth(effort: Effort) -> np.ndarray:
    """Bytes a second `[rounds]` that a copy on the GPU moves, read and written."""
    a, b = (torch.zeros(1 << 28, dtype=torch.float64, device="cuda") for _ in range(2))
    out = np.empty(effort.rounds)
    for i in range(effort.rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(8):
            b.copy_(a)
        torch.cuda.synchronize()
        out[i] = 8 * 2 * a.numel() * 8 / (time.perf_counter() - begin)
    return out


# ----------------------------------------------------------------------------------------------------- agreement


def _check(field: Field, method: str, peers: Mapping[str, Ask]) -> None:
    """Our engines find the same; theirs and ours go the right way wherever the goal is near."""
    n = 128
    found = {e: _found(_ours(field, method, len(field.starts), n, engine=e)) for e in ("compiled", "arrays")}
    one, other = found["compiled"], found["arrays"]
    agree(f"{method}: compiled and arrays visit the same", np.array_equal(one.visits, other.visits))
    agree(f"{method}: compiled and arrays choose the same", np.array_equal(one.action, other.action))
    near = field.distance[field.starts] <= 2
    for name, ask in peers.items():
        order = _order(method, len(field.starts), n, "none")
        theirs = np.array(ask({"kind": "search", **order, "sample_s": 0.0})["action"])
        for who, action in ((f"mctx on {name}", theirs), ("ours", one.action)):
            right = field.right[field.starts, action]
            agree(f"{method}: {who} goes the right way within 2 steps of the goal", right[near].all())


def _check_network(field: Field, peers: Mapping[str, Ask]) -> None:
    """Both networks say the same of every state; our engines find the same with it."""
    states = np.arange(field.blind.n_states)
    value, prior = field.net()(states)
    for ask in peers.values():
        theirs = ask({"kind": "judge", "leaf": "network"})
        logits = np.array(theirs["logits"])
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        agree("the networks' values", np.allclose(value, theirs["value"], atol=1e-5, rtol=0))
        agree("the networks' priors", np.allclose(prior, share, atol=1e-5, rtol=0))
    one, other = (
        _found(_ours(field, "puct", len(field.starts), 128, leaf="network", engine=e)) for e in ("compiled", "arrays")
    )
    agree("with a network, compiled and arrays visit the same", np.array_equal(one.visits, other.visits))


def _found(work: Work) -> Found:
    out = work()
    assert isinstance(out, Found)
    return out


# ----------------------------------------------------------------------------------------------------------- peer


@contextmanager
def _peer(field: Field, cores: str) -> Iterator[Ask]:
    """mctx's process; gives what asks it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.npz"
        np.savez(
            path, next_state=field.blind.next_state[:, :, 0], goal=field.blind.reward != 0, roots=field.starts,
            gamma=GAMMA, value=np.where(field.blind.reward != 0, 0.0, field.told.value), logits=field.logits,
            **field.weights,
        )  # fmt: skip
        command = [str(PEER), str(Path(__file__).with_name("search_peer.py")), str(path), cores]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield _asker(process.stdin, process.stdout)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


def _asker(to: IO[str], back: IO[str]) -> Ask:
    def ask(order: Mapping[str, object]) -> dict[str, Any]:
        to.write(json.dumps(order) + "\n")
        to.flush()
        answer: dict[str, Any] = json.loads(back.readline())
        return answer

    return ask
