"""Laws of the layerwise tables: what a rotation, a scale, an order or a label may and may not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import TABLES
from retarget.analysis.layers.compare import COMPARISON, QUANTITIES, compare
from retarget.analysis.layers.moments import Gatherer, Moments, relabellings
from retarget.analysis.layers.readable import Site, Stream
from retarget.analysis.layers.tables import LayerTables, frame, layer_tables, schema
from retarget.errors import FileError, LayersError
from retarget.rng import stream

N, D, L = 40, 6, 3

#: Columns that scale with the activations, and with their squares.
LENGTHS = ["rms_norm", "diff_norm", "diff_norm_low", "diff_norm_high", "diff_noise"]
LENGTHS += ["update_norm", "update_along", "update_across"]
SQUARES = ["variance"]
#: Those of a null that permutes coordinates, which a rotation mixes.
COORDINATES = ["null_high", "p"]


def ranks(label: np.ndarray) -> np.ndarray:
    out = np.zeros(len(label), dtype=np.int64)
    for c in (0, 1):
        out[label == c] = np.arange((label == c).sum())
    return out


def collected(
    layers: list[np.ndarray],
    label: np.ndarray,
    *,
    order: np.ndarray | None = None,
    swaps: np.ndarray | None = None,
    n_groups: int = 5,
    paired: bool = False,
    scatter: bool = True,
    names: str = "yes - no",
    model: str = "m",
    stream_of: dict[int, Stream] | None = None,
) -> Collected:
    """One position of a model whose residual stream holds these vectors `[N, d]`, layer by layer."""
    order = np.arange(len(label)) if order is None else order
    rank = ranks(label)
    if swaps is None:
        swaps = relabellings(label, n=19, seed=0)
    sites, moments = [], {}
    for layer, x in enumerate(layers):
        flow = (stream_of or {}).get(layer, "residual")
        sites.append(Site(f"blocks.{layer}.hook_in", layer, flow, x.shape[1]))
        g = Gatherer(width=x.shape[1], n_groups=n_groups, relabellings=swaps, paired=paired, scatter=scatter)
        g.add(x[order], label=label[order], row=order, rank=rank[order])
        moments[sites[-1].hook, "-1"] = g.done()
    n = int((label == 0).sum()), int((label == 1).sum())
    return Collected(model, "d", names, tuple(sites), ("-1",), moments, n, {"-1": (0, 0)}, paired, 0)


def planted(seed: int, distances: tuple[float, ...] = (0.5, 2.0, 8.0), n: int = N, d: int = D) -> list[np.ndarray]:
    """Layers whose classes move apart along one direction."""
    random = stream(seed, "planted", n, d, len(distances))
    axis = random.standard_normal(d)
    axis /= np.linalg.norm(axis)
    base = random.standard_normal((n, d)) * np.linspace(1.5, 0.5, d) + random.standard_normal(d)
    label = np.arange(n) % 2
    noise = random.standard_normal((len(distances), n, d))
    return [base + 0.2 * e + t * label[:, None] * axis for e, t in zip(noise, distances, strict=True)]


LABEL = np.arange(N) % 2


def same(
    a: LayerTables,
    b: LayerTables,
    *,
    scale: float = 1.0,
    without: tuple[str, ...] = (),
    atol: float = 1e-7,
) -> None:
    """Every number of b is that of a, lengths times the scale; every other value is the same."""
    for name in ("layers", "components", "cosines", "overlaps", "onsets"):
        first, second = getattr(a, name), getattr(b, name)
        assert first.height == second.height > 0
        for column in first.columns:
            if column in without:
                continue
            u, v = first[column], second[column]
            if first.schema[column] != pl.Float64:
                assert u.to_list() == v.to_list(), (name, column)
                continue
            assert u.is_null().to_list() == v.is_null().to_list(), (name, column)
            factor = scale if column in LENGTHS else scale**2 if column in SQUARES else 1.0
            left, right = (s.drop_nulls().to_numpy() for s in (u, v))
            assert np.allclose(left * factor, right, rtol=1e-6, atol=atol * max(factor, 1e-3)), (name, column)


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_a_rotation_changes_nothing_but_coordinates(seed: int) -> None:
    layers = planted(seed)
    q = np.linalg.qr(stream(seed, "rotation").standard_normal((D, D)))[0]
    a = layer_tables(collected(layers, LABEL), k=3)
    b = layer_tables(collected([x @ q for x in layers], LABEL), k=3)
    assert a.components.filter(pl.col("cos").is_not_null()).height > 15
    for name, frame_ in (("layers", a.layers), ("components", a.components)):
        assert frame_["pc1_p" if name == "layers" else "p"].null_count() == 0
    hidden = LayerTables(b.layers, b.components, b.cosines, _like(a.overlaps, b.overlaps), b.onsets)
    same(a, hidden)


def _like(a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
    """b with the columns of the coordinate null taken from a."""
    return b.with_columns(*(a[c] for c in COORDINATES))


@given(st.integers(0, 10**6), st.sampled_from([-3.0, 1e-3, 1e4]))
@settings(max_examples=12, deadline=None)
def test_scale_and_sign_change_lengths_and_nothing_else(seed: int, scale: float) -> None:
    layers = planted(seed)
    a = layer_tables(collected(layers, LABEL), k=2)
    b = layer_tables(collected([scale * x for x in layers], LABEL), k=2)
    same(a, b, scale=abs(scale))


@given(st.integers(0, 10**6))
@settings(max_examples=12, deadline=None)
def test_a_shift_changes_the_vectors_own_length_alone(seed: int) -> None:
    layers = planted(seed)
    a = layer_tables(collected(layers, LABEL), k=2)
    b = layer_tables(collected([x + 1e3 for x in layers], LABEL), k=2)
    same(a, b, without=("rms_norm",))


@given(st.integers(0, 10**6), st.randoms(use_true_random=False), st.integers(1, N - 1))
@settings(max_examples=12, deadline=None)
def test_the_order_of_arrival_and_shards_change_nothing(seed: int, random: object, cut: int) -> None:
    layers = planted(seed)
    order = list(range(N))
    random.shuffle(order)  # type: ignore[attr-defined]
    whole = collected(layers, LABEL)
    a = layer_tables(whole, k=2)
    same(a, layer_tables(collected(layers, LABEL, order=np.array(order)), k=2))
    swaps = relabellings(LABEL, n=19, seed=0)
    shards = [
        {
            f"blocks.{i}.hook_in": Moments.of(
                x[part], LABEL[part], row=part, rank=ranks(LABEL)[part], n_groups=5, relabellings=swaps
            )
            for i, x in enumerate(layers)
        }
        for part in np.split(np.array(order), [cut])
    ]
    merged = {(hook, "-1"): m.merge(shards[1][hook]) for hook, m in shards[0].items()}
    same(a, layer_tables(Collected("m", "d", "yes - no", whole.sites, ("-1",), merged, *_rest()), k=2))


def _rest() -> tuple[tuple[int, int], dict[str, tuple[int, int]], bool, int]:
    return (N // 2, N // 2), {"-1": (0, 0)}, False, 0


@given(st.integers(0, 10**6), st.integers(5, 15))
@settings(max_examples=12, deadline=None)
def test_swapped_labels_flip_the_difference_and_nothing_else(seed: int, n_positive: int) -> None:
    layers = planted(seed)
    label = (np.arange(N) < n_positive).astype(np.int64)
    swaps = relabellings(label, n=19, seed=0)
    a = collected(layers, label, swaps=swaps)
    b = collected(layers, 1 - label, swaps=~swaps, names="no - yes")
    for key, m in a.moments.items():
        assert np.allclose(m.difference, -b.moments[key].difference, rtol=0, atol=1e-12)
    first, second = layer_tables(a, k=2), layer_tables(b, k=2)
    assert first.layers["n_positive"].to_list() == second.layers["n_negative"].to_list() == [n_positive] * L
    same(first, second, without=("n_positive", "n_negative", "contrast"))


@given(st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_interval_ends_enclose_their_value_and_shares_are_shares(seed: int) -> None:
    for method in ("jackknife", "bootstrap"):
        t = layer_tables(collected(planted(seed), LABEL), k=3, interval=method, draws=30)  # type: ignore[arg-type]
        for table, names in ((t.layers, ["diff_norm", "pc1_cos"]), (t.components, ["cos"])):
            for name in names:
                low, value, high = (table[name + end] for end in ("_low", "", "_high"))
                assert low.null_count() == 0
                assert ((low <= value) & (value <= high)).all()
        for column in ("pc1_cos", "pc1_variance", "probe_accuracy", "diff_p", "pc1_p"):
            assert t.layers[column].is_between(0, 1).all()
        sums = t.layers.filter(pl.col("update_norm").is_not_null())
        assert np.allclose(sums["update_norm"] ** 2, sums["update_along"] ** 2 + sums["update_across"] ** 2)


def test_columns_are_those_that_are_stated_and_nulls_have_reasons() -> None:
    layers = planted(0)
    layers[0] = np.tile(layers[0][:1], (N, 1))  # the same vector for every prompt
    cases = [
        collected(layers, LABEL),
        collected(layers, LABEL, n_groups=2),
        collected(layers, LABEL, scatter=False),
        collected(layers, np.zeros(N, dtype=np.int64), swaps=np.zeros((1, N), dtype=np.bool_)),
        collected(layers, (np.arange(N) == 3).astype(np.int64)),
        collected([x[:, :1] for x in layers], LABEL),
        collected([x[:2] for x in layers], LABEL[:2]),
        collected(layers, LABEL, paired=True, stream_of={0: "embedding", 2: "final_norm"}),
    ]
    for case in cases:
        t = layer_tables(case, k=3)
        for name, columns in TABLES.items():
            table = getattr(t, name)
            if name == "causes":
                assert table is None
                continue
            assert dict(table.schema) == schema(columns)
            for row in table.iter_rows(named=True):
                values = [v for key, v in row.items() if key != "reason"]
                assert not any(isinstance(v, float) and not np.isfinite(v) for v in values)
                missing = [key for key, v in row.items() if v is None and key not in ("reason", "cos_expected")]
                assert not missing or row["reason"], (name, missing)


def test_identical_activations_have_no_cosine_and_say_why() -> None:
    layers = planted(1)
    layers[0] = np.tile(0.1 + layers[0][:1], (N, 1))
    t = layer_tables(collected(layers, LABEL), k=2)
    first = t.layers.row(0, named=True)
    assert first["diff_norm"] == 0.0 and first["pc1_cos"] is None and first["diff_p"] is None
    assert "the vectors are all the same" in first["reason"]
    assert t.cosines["cos"].to_list()[0] is None and t.cosines["reason"].to_list()[0] == "a difference of means is zero"
    # equal means, but a spread: components without a cosine
    # the same rows in another order, so that their means are equal but for rounding
    x = np.concatenate([layers[1][:20], layers[1][:20][::-1]]) + 0.1
    t = layer_tables(collected([x, layers[2]], np.repeat([0, 1], 20)), k=2)
    first = t.layers.row(0, named=True)
    assert first["diff_norm"] == 0.0 and first["pc1_variance"] > 0 and first["pc1_cos"] is None
    assert "the means of the classes are equal" in first["reason"]


def _odd(n0: int, n1: int) -> tuple[np.ndarray, np.ndarray]:
    """A class that varies along one axis, and one that varies and is shifted along another."""
    random = stream(0, "odd", n0, n1)
    a, b = random.standard_normal((n0, 20)), random.standard_normal((n1, 20))
    a[:, 0] *= 3
    b[:, 1] = 6 * b[:, 1] + 3
    return np.concatenate([a, b]), np.repeat([0, 1], [n0, n1])


def test_classes_of_unequal_size_have_a_null_only_where_it_is_of_what_is_reported() -> None:
    why = "null: classes of unequal size; give as many rows in both"
    x, label = _odd(300, 40)
    t = layer_tables(collected([x], label), k=1)
    first, component = t.layers.row(0, named=True), t.components.row(0, named=True)
    assert first["pc1_cos"] > 0.5 and first["pc1_cos_null"] is None and first["pc1_p"] is None
    assert component["cos_null"] is None and component["p"] is None
    assert f"pc1_cos_null, pc1_p: {why}" in first["reason"] and why in component["reason"]
    x, label = _odd(170, 170)
    assert layer_tables(collected([x], label), k=1).layers["pc1_p"].null_count() == 0
    # unequal sizes, but both components the difference itself
    keep = np.flatnonzero((LABEL == 0) | (np.arange(N) > 9))
    far = layer_tables(collected([planted(0, (50.0,))[0][keep]], LABEL[keep]), k=1).layers.row(0, named=True)
    assert far["pc1_p"] is not None and far["n_negative"] != far["n_positive"]


def test_a_class_without_rows_is_named() -> None:
    t = layer_tables(collected(planted(0), np.zeros(N, dtype=np.int64), swaps=np.zeros((1, N), dtype=np.bool_)))
    assert "no vectors of class yes at this position" in t.layers["reason"][0]
    assert t.layers["diff_norm"].null_count() == L and t.onsets["onset"][0] is None


def test_the_onset_is_where_the_classes_part() -> None:
    """200 rows, d = 30: where the classes do not part, a |cos| of 0.9 by chance is out of the question."""
    label = np.arange(200) % 2
    t = layer_tables(collected(planted(3, (0.0, 0.2, 6.0, 9.0), n=200, d=30), label), k=2)
    onset = t.onsets.row(0, named=True)
    assert (onset["onset"], onset["onset_low"], onset["onset_high"], onset["reached"]) == (2, 2, 2, 1.0)
    assert t.layers["pc1_cos"][3] > 0.98 and t.layers["pc1_p"][3] == 0.05
    t = layer_tables(collected(planted(3, (0.0, 6.0, 0.0), n=200, d=30), label), k=2)
    onset = t.onsets.row(0, named=True)
    assert onset["onset"] is None and "below the threshold" in onset["reason"]
    layers = planted(3, (0.0, 6.0, 9.0), n=200, d=30)
    for flow, expected in (("other", 1), ("mlp", None)):
        plain = layer_tables(collected(layers, label, stream_of=dict.fromkeys(range(3), flow)), k=1)  # type: ignore[arg-type]
        assert plain.onsets["onset"][0] == expected and plain.layers["update_norm"].null_count() == 3
    mixed = layer_tables(collected(layers, label, stream_of={1: "final_norm"}), k=1)
    assert mixed.onsets["onset"][0] == 2


def test_a_nuisance_of_larger_variance_takes_the_first_component_away() -> None:
    """200 rows, d = 20: a difference of 4 along one axis, a spread of 6 along another: balanced variance 4 + 1 there
    against 36. The chance that the sample turns this round is below 10^-9."""
    random = stream(0, "nuisance")
    label = np.arange(200) % 2
    x = random.standard_normal((200, 20))
    x[:, 0] += 4.0 * label
    x[:, 1] *= 6.0
    t = layer_tables(collected([x], label), k=3)
    row = t.layers.row(0, named=True)
    assert row["pc1_cos"] < 0.3 and row["pc1_cos"] < row["pc1_cos_null"] + 0.2 and row["diff_p"] == 0.05
    balanced = t.components.filter(pl.col("pooling") == "balanced")["cos"].to_list()
    assert balanced[1] > 0.9 > 0.3 > balanced[2]
    assert row["probe_accuracy"] > 0.9
    # the same without the nuisance
    x[:, 1] /= 6.0
    assert layer_tables(collected([x], label), k=3).layers["pc1_cos"][0] > 0.95


def test_updates_split_along_and_across() -> None:
    label = np.repeat([0, 1], 10)
    x = stream(0, "updates").standard_normal((20, 3))
    x -= np.where(label[:, None] == 1, x[label == 1].mean(0), x[label == 0].mean(0))
    steps = [x + label[:, None] * np.array(v) for v in ([3.0, 0, 0], [1.0, 4.0, 0], [1.0, 4.0, 0])]
    t = layer_tables(collected(steps, label), k=1).layers
    assert t["update_norm"].to_list() == [None, pytest.approx(np.sqrt(20)), pytest.approx(0.0, abs=1e-12)]
    assert t["update_along"][1] == pytest.approx(-2.0) and t["update_across"][1] == pytest.approx(4.0)
    assert t["reason"].to_list()[0].endswith("update: no layer before")
    mixed = layer_tables(collected(steps, label, stream_of={2: "final_norm"}), k=1).layers
    assert mixed["update_norm"].to_list()[2] is None and "not a place between blocks" in mixed["reason"][2]


def test_tables_come_back_as_they_were_saved(tmp_path: Path) -> None:
    t = layer_tables(collected(planted(0), LABEL), k=2)
    again = LayerTables.load(t.save(tmp_path / "run" / "tables"))
    for name in ("layers", "components", "cosines", "overlaps", "onsets"):
        assert getattr(again, name).equals(getattr(t, name))
    assert again.causes is None and t.summary().height == L
    causes = frame([{c.name: None for c in TABLES["causes"]}], TABLES["causes"])
    assert LayerTables.load(t.with_causes(causes).save(tmp_path)).causes is not None
    assert LayerTables.load(t.save(tmp_path)).causes is None
    (tmp_path / "onsets.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(FileError, match="is no Parquet table"):
        LayerTables.load(tmp_path)
    t.onsets.rename({"onset": "start"}).write_parquet(tmp_path / "onsets.parquet")
    with pytest.raises(FileError, match=r"other columns than this version \(onset, start\)"):
        LayerTables.load(tmp_path)
    (tmp_path / "layers.parquet").unlink()
    with pytest.raises(FileError, match="no such file"):
        LayerTables.load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot be written"):
        t.save(tmp_path / "file")


def test_bad_arguments_say_what_is_wrong() -> None:
    c = collected(planted(0), LABEL)
    for bad in ({"k": 0}, {"confidence": 1.0}, {"threshold": 1.5}, {"draws": 3}):
        with pytest.raises(LayersError, match="tables need"):
            layer_tables(c, **bad)  # type: ignore[arg-type]
    with pytest.raises(LayersError, match="unknown interval 'exact'"):
        layer_tables(c, interval="exact")  # type: ignore[arg-type]
    with pytest.raises(LayersError, match="nothing was collected"):
        layer_tables(Collected("m", "d", "a - b", c.sites, ("-9",), {}, *_rest()))
    with pytest.raises(LayersError, match="does not have the columns"):
        LayerTables(*[pl.DataFrame()] * 5)
    with pytest.raises(LayersError, match="would hold nan"):
        frame([{"diff_norm": float("nan")}], TABLES["layers"])
    with pytest.raises(LayersError, match="unknown columns: odd"):
        frame([{"odd": 1}], TABLES["layers"])
    wrong = dict.fromkeys(c.moments, Moments.of(np.zeros((2, 2)), np.array([0, 1])))
    with pytest.raises(LayersError, match="has width"):
        layer_tables(Collected("m", "d", "a - b", c.sites, ("-1",), wrong, *_rest()))


# --- two models ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=8, deadline=None)
def test_two_models_compared_the_other_way_round_change_sign(seed: int, same_rows: bool) -> None:
    a, b = collected(planted(seed), LABEL), collected(planted(seed + 1), LABEL, model="n")
    one, two = compare(a, b, same_rows=same_rows), compare(b, a, same_rows=same_rows)
    assert dict(one.schema) == schema(COMPARISON) and one.height == L * len(QUANTITIES)
    for column, other in (("difference", "difference"), ("difference_low", "difference_high")):
        for left, right in ((one[column], two[other]), (one[other], two[column])):
            assert left.is_null().to_list() == right.is_null().to_list()
            assert np.allclose(left.drop_nulls(), -right.drop_nulls().to_numpy(), atol=1e-12)
    assert one["direction_cos"].null_count() == 0 and one["direction_cos"].equals(two["direction_cos"])
    found = one.filter(pl.col("quantity").is_in(["diff_norm", "pc1_cos"]))
    inside = (found["difference_low"] <= found["difference"]) & (found["difference"] <= found["difference_high"])
    assert inside.all() and found["difference_low"].null_count() == 0


def test_a_model_compared_with_itself_differs_in_nothing() -> None:
    c = collected(planted(0), LABEL)
    t = compare(c, c, same_rows=True)
    assert (t["difference"].drop_nulls() == 0).all() and np.allclose(t["direction_cos"], 1.0)
    assert (t["difference_low"].drop_nulls() == 0).all() and t["difference_low"].count() == 2 * L
    # taken as independent samples, the same model has an interval around 0, as wide as both together
    apart = compare(layer_tables(c), layer_tables(c)).filter(pl.col("quantity") == "diff_norm")
    own = layer_tables(c).layers
    reach = np.hypot(own["diff_norm"] - own["diff_norm_low"], own["diff_norm_high"] - own["diff_norm"])
    assert np.allclose(apart["difference_high"], reach) and np.allclose(apart["difference_low"], -reach)
    assert apart["direction_cos"].null_count() == L and "tables do not keep directions" in apart["reason"][0]


def test_what_the_rows_share_cancels_where_they_are_the_same() -> None:
    """The second model adds 1.0 to the difference: with the same rows that is seen exactly, else with their noise."""
    x = planted(5, (2.0,), n=100)
    label = np.arange(100) % 2
    axis = collected(x, label).moments["blocks.0.hook_in", "-1"].difference
    axis /= np.linalg.norm(axis)
    a, b = collected(x, label), collected([x[0] + label[:, None] * axis], label, model="n")
    for same_rows, least, most in ((True, 0.0, 0.2), (False, 0.3, 3.0)):
        t = compare(a, b, same_rows=same_rows).filter(pl.col("quantity") == "diff_norm").row(0, named=True)
        assert t["difference"] == pytest.approx(1.0)
        assert least <= t["difference_high"] - t["difference_low"] <= most
        assert t["difference_low"] < 1.0 < t["difference_high"]


def test_models_of_unequal_shape_keep_their_rows() -> None:
    a, wide = collected(planted(0), LABEL), collected(planted(0, d=8), LABEL, model="wide")
    t = compare(a, wide)
    assert t["direction_cos"].null_count() == t.height and "widths 6 and 8 differ" in t["reason"][0]
    assert t["difference"].count() > 0
    deep = collected(planted(0, (1.0, 2.0, 4.0, 8.0)), LABEL, model="deep")
    t = compare(a, deep)
    lone = t.filter(pl.col("layer") == 3)
    assert lone.height == len(QUANTITIES) and lone["difference"].null_count() == lone.height
    assert "the first model has no such place" in lone["reason"][0] and lone["second"].count() > 0
    renamed = Collected(
        "r",
        "d",
        "yes - no",
        tuple(Site(f"h.{s.layer}", s.layer, s.stream, s.width) for s in a.sites),
        ("-1",),
        {(f"h.{s.layer}", "-1"): a.moments[s.hook, "-1"] for s in a.sites},
        *_rest(),
    )
    t = compare(a, renamed, same_rows=True)
    assert np.allclose(t["direction_cos"], 1.0) and t["second_hook"].to_list()[0] == "h.0"


def test_models_that_cannot_be_compared_say_why() -> None:
    a = collected(planted(0), LABEL)
    with pytest.raises(LayersError, match="share no contrast: yes - no and up - down"):
        compare(a, collected(planted(0), LABEL, names="up - down"))
    with pytest.raises(LayersError, match="needs the moments of both"):
        compare(layer_tables(a), a, same_rows=True)
    with pytest.raises(LayersError, match="have not seen the same rows"):
        compare(a, collected([x[:30] for x in planted(0)], LABEL[:30]), same_rows=True)
