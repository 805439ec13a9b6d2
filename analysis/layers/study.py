"""From a model and two classes of inputs to all tables, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from retarget.analysis.layers.causes import Separability, measure_causes
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.collected import Collected, Inputs
from retarget.analysis.layers.positions import Positions
from retarget.analysis.layers.readable import Readable
from retarget.analysis.layers.select import Selected, evaluate_candidates, select
from retarget.analysis.layers.steering import Direction, controls_of, directions_of, has_stream, random_like
from retarget.analysis.layers.tables import LayerTables, layer_tables
from retarget.errors import LayersError

if TYPE_CHECKING:
    import polars as pl

    from retarget.agent import Agent

LAST = Positions("last", n=1)
#: Random directions beside each layer's, where all layers are measured.
_RANDOM = 3
#: What is told while a pass goes on: (rows done, rows in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reading:
    """How a model is read.

    Attributes:
        positions: which tokens or steps.
        hooks: names of places; None for the residual stream.
        batch_size: rows of one forward pass.
        n_groups: groups of rows that intervals come from; 1 for no intervals.
        n_relabellings: of the permutation null; 0 for none.
        components: principal components, at most.
        paired: whether rows of equal number are pairs.
        seed: names the random draws.
        memory_limit_bytes: of the statistics.
    """

    positions: Positions = LAST
    hooks: tuple[str, ...] | None = None
    batch_size: int = 32
    n_groups: int = 10
    n_relabellings: int = 200
    components: int = 5
    paired: bool = False
    seed: int = 0
    memory_limit_bytes: int = 4 << 30


def read_layers(
    model: Readable, inputs: Inputs, reading: Reading, *, progress: Progress | None = None
) -> tuple[Collected, LayerTables]:
    """One pass over the inputs, and the tables made of it.

    Raises:
        LayersError: for hooks, positions or inputs that do not go with the model.
    """
    collected = collect(
        model,
        inputs,
        sites=reading.hooks,
        positions=reading.positions,
        batch_size=reading.batch_size,
        n_groups=reading.n_groups,
        n_relabellings=reading.n_relabellings,
        paired=reading.paired,
        seed=reading.seed,
        memory_limit_bytes=reading.memory_limit_bytes,
        progress=progress,
    )
    return collected, layer_tables(collected, k=reading.components)


def joined(tables: Sequence[LayerTables]) -> LayerTables:
    """Several models' or contrasts' tables as one, in order.

    Raises:
        LayersError: for none.
    """
    import polars as pl

    if not tables:
        raise LayersError("no tables to join; read at least one contrast")

    def under(name: str) -> pl.DataFrame | None:
        parts = [t for t in (getattr(one, name) for one in tables) if t is not None]
        return pl.concat(parts) if parts else None

    made: dict[str, Any] = {f.name: under(f.name) for f in fields(LayerTables)}
    return LayerTables(**made)


@dataclass(frozen=True, eq=False)
class Effects:
    """What directions cause in a model.

    Attributes:
        selected: the candidates and which one the rule of Arditi et al. (2024) selects; None where it was not asked.
        direction: the one whose effects were measured with all controls: the selected one; else, of those whose
            addition brings the behaviour about, the one whose ablation leaves least of it; else the strongest
            difference.
        causes: rows of `columns.CAUSES`: of that direction; then of every other layer's difference at its position, in
            short (ablated everywhere and at one layer, and added, beside random directions).
    """

    selected: Selected | None
    direction: Direction
    causes: pl.DataFrame


def find_effects(
    model: Readable,
    *,
    tables: LayerTables,
    fit: Inputs,
    validation: Inputs,
    test: Inputs,
    wanted: Sequence[int] | np.ndarray,
    reading: Reading,
    agent: Agent | None = None,
    each_layer: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> Effects:
    """Directions from some rows, the best of them by others, and its effects on yet others.

    Args:
        model: the network.
        tables: of the same model and contrast: whether a direction can be read there goes into the verdict.
        fit, validation, test: disjoint rows of the same two classes, but for policies whose states are few.
        wanted: what counts as the behaviour, see `measure_causes`.
        reading: as for `read_layers`.
        agent: the model as an agent, for the edit of its weights.
        each_layer: whether the other layers are measured too: which layer is used, and which merely holds it.
        progress: is told of the step, rows done and rows in all.
    """

    def told(what: str) -> Callable[[int, int], None] | None:
        return None if progress is None else (lambda done, total: progress(what, done, total))

    collected = collect(
        model,
        fit,
        positions=reading.positions,
        batch_size=reading.batch_size,
        n_groups=1,
        n_relabellings=max(reading.n_relabellings, 1),
        scatter=False,
        seed=reading.seed,
        progress=told("directions"),
    )
    candidates = directions_of(collected)
    if not candidates:
        raise LayersError(
            "no layer has a difference of means at these positions, so that there is nothing to steer with"
        )
    selected = None
    if has_stream(model):
        rated = evaluate_candidates(
            model, validation, candidates, wanted=wanted, batch_size=reading.batch_size, progress=told("candidates")
        )
        selected = select(rated, n_layers=max(s.layer for s in model.sites))
    chosen = _chosen(candidates, selected, tables)
    common: dict[str, Any] = {"wanted": wanted, "batch_size": reading.batch_size, "seed": reading.seed}
    causes = measure_causes(
        model,
        test,
        direction=chosen,
        controls=controls_of(collected, chosen, seed=reading.seed),
        separability=Separability.of(tables.layers, chosen),
        agent=agent,
        progress=told("effects"),
        **common,
    )
    others = [c for c in candidates if c.position == chosen.position and c.layer != chosen.layer]
    for other in others if each_layer else ():
        more = measure_causes(
            model,
            test,
            direction=other,
            controls=[random_like(other, reading.seed, number=i) for i in range(_RANDOM)],
            separability=Separability.of(tables.layers, other),
            progress=told(f"effects of layer {other.layer}"),
            **common,
        )
        causes = causes.vstack(more)
    return Effects(selected, chosen, causes)


def _chosen(candidates: Sequence[Direction], selected: Selected | None, tables: LayerTables) -> Direction:
    """The selected direction, or what comes next to it: see `Effects.direction`."""
    able = [] if selected is None else [e for e in selected.evaluations if e.steering_score >= 0]
    best = None if selected is None else selected.best
    if best is None and able:
        best = min(able, key=lambda e: e.refusal_score)
    if best is not None:
        return next(c for c in candidates if (c.position, c.layer) == (str(best.position), best.layer))
    rows = tables.layers.drop_nulls("diff_signal").rows(named=True)
    signal = {(r["position"], r["layer"]): r["diff_signal"] for r in rows if r["stream"] != "final_norm"}
    return max(candidates, key=lambda c: signal.get((c.position, c.layer), 0.0))
