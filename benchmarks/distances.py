"""All-pairs distances of a maze."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import numba
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import shortest_path

from benchmarks.timing import Effort, Line, Race, agree
from retarget.envs import make_world
from retarget.kernels import all_distances

TOPIC = "distances"
METHODS = {"D": "Dijkstra, unweighted", "FW": "Floyd-Warshall", "J": "Johnson"}


@numba.njit
def every_edge(start: np.ndarray, pred: np.ndarray, out: np.ndarray) -> None:
    """The limit: write each of the S² cells once and read every edge once for each goal, in the best possible order."""
    n = start.size - 1
    for g in range(n):
        row = out[g]
        for x in range(n):
            total = np.int32(0)
            for i in range(start[x], start[x + 1]):
                total += row[pred[i]]
            row[x] = total


def run(effort: Effort) -> list[Line]:
    """Every line of this topic."""
    return [line for size in (13, 27) for line in _maze(size, effort)]


def _maze(size: int, effort: Effort) -> list[Line]:
    nxt = np.ascontiguousarray(make_world("Maze", size=size).model.next_state[:, :, 0])
    n, n_actions = nxt.shape
    frm, to = np.repeat(np.arange(n), n_actions), nxt.reshape(-1)
    keep = frm != to
    # row g of ours holds the distances to g, which is the distance from g in the reversed graph
    graph = csr_matrix((np.ones(int(keep.sum())), (to[keep], frm[keep])), shape=(n, n))
    graph.data[:] = 1.0
    ours = all_distances(nxt).astype(np.float64)
    ours[ours < 0] = np.inf
    for method in METHODS:
        agree(f"distances by {method}", np.array_equal(ours, shortest_path(graph, method=method, unweighted=True)))
    name = f"all_distances, Maze({size}), {n} states"
    loop = "compiled loop, every edge once for each goal"
    start, pred = graph.indptr.astype(np.int32), graph.indices.astype(np.int32)
    out = np.zeros((n, n), np.int32)
    work = {name: lambda: all_distances(nxt), loop: lambda: every_edge(start, pred, out)}
    for method, label in METHODS.items():
        work[f"scipy {label}"] = lambda m=method: shortest_path(graph, method=m, unweighted=True)  # type: ignore[misc]
    race = Race(work, effort)
    units = dict.fromkeys(work, 1.0)
    fastest = min((k for k in work if k.startswith("scipy")), key=lambda k: float(np.median(race.seconds[k])))
    return [
        race.line(name, fastest, topic=TOPIC, unit="tables", units=units, bar=5 if size == 13 else None),
        race.line(name, loop, topic=TOPIC, unit="tables", units=units, kind="limit"),
    ]
