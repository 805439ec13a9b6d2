"""Pages, figures and tables of the layerwise analyses, on made-up numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from retarget.analysis.layers import figures
from retarget.analysis.layers.columns import TABLES
from retarget.analysis.layers.compare import compare
from retarget.analysis.layers.lines import Across, Up, fit, line_of, pieces
from retarget.analysis.layers.page import layers_html, saved_html, write_page
from retarget.analysis.layers.swaps import SWAPS
from retarget.analysis.layers.tables import LayerTables
from retarget.analysis.layers.terminal import causes_table, compare_table, layers_table, saved_table, swaps_table
from retarget.analysis.layers.words import (
    aligned_words,
    at_layers,
    carried_words,
    cause_words,
    difference_words,
    found_words,
    onset_words,
    overlap_words,
    saved_words,
)
from retarget.errors import FileError
from retarget.rng import stream

Row = dict[str, Any]
TYPES = {"text": pl.String, "whole": pl.Int64, "real": pl.Float64, "truth": pl.Boolean}
DEPTH, K, WIDTH = 6, 4, 64


@dataclass(frozen=True, eq=False)
class Made:
    """Tables as `LayerTables` holds them."""

    layers: pl.DataFrame
    components: pl.DataFrame
    cosines: pl.DataFrame
    overlaps: pl.DataFrame
    onsets: pl.DataFrame
    causes: pl.DataFrame | None


def frame(name: str, rows: list[Row]) -> pl.DataFrame:
    """A table of exactly the columns of the vocabulary; what a row does not name is null."""
    known = {c.name: TYPES[c.kind] for c in TABLES[name]}
    for row in rows:
        assert set(row) <= set(known), set(row) - set(known)
    return pl.DataFrame([dict.fromkeys(known) | r for r in rows], schema=known)


def places(depth: int) -> list[tuple[str, int, str]]:
    """(hook, layer, stream) of each place: the embedding, the residual stream, and the final norm."""
    out = [("hook_embed", 0, "embedding")]
    out += [(f"blocks.{n - 1}.hook_resid_post", n, "residual") for n in range(1, depth)]
    return [*out, ("ln_final.hook_normalized", depth - 1, "final_norm")]


class Maker:
    """Made-up tables: the difference grows with the layer, and the first component meets it at layer 3."""

    def __init__(self, *, models: tuple[str, ...] = ("honest", "defector"), positions: tuple[str, ...] = ("-2", "-1"),
                 depth: int = DEPTH, empty: bool = False, contrast: str = "harmful - harmless") -> None:  # fmt: skip
        self.models, self.positions, self.depth, self.empty = models, positions, depth, empty
        self.contrast = contrast

    def each(self) -> Iterator[tuple[Row, float]]:
        """Key columns of every (model, position, place), and how aligned it is."""
        for m, model in enumerate(self.models):
            # Place by place, as tables are made: rows of one position do not lie together.
            for hook, layer, kind in places(self.depth):
                for p, position in enumerate(self.positions):
                    base = {"model": model, "digest": f"d{m}", "contrast": self.contrast, "hook": hook}
                    base |= {"stream": kind, "layer": layer, "position": position}
                    noise = float(stream(0, "made", model, p, layer).random())
                    yield (
                        base,
                        min(
                            0.98,
                            0.15
                            + 0.8 / (1 + math.exp(-2.2 * (layer - 2.5 - p - 0.8 * (model == "defector"))))
                            + 0.03 * noise,
                        ),
                    )

    def layers(self) -> pl.DataFrame:
        rows = []
        for base, cos in self.each():
            n = base["layer"]
            if self.empty or (n == 0 and base["position"] == "-1"):
                rows.append(base | {"reason": "the vectors of both classes are the same"})
                continue
            norm = 4.0 * 1.5**n
            rows.append(
                base
                | {
                    "width": WIDTH,
                    "n_positive": 120,
                    "n_negative": 118,
                    "rms_norm": 10 * 1.5**n,
                    "diff_norm": norm * cos,
                }
                | {"diff_norm_low": norm * cos * 0.9, "diff_norm_high": norm * cos * 1.12, "diff_noise": norm * 0.12}
                | {"diff_signal": 8 * cos, "diff_p": 0.005, "pc1_cos": cos, "pc1_cos_low": max(0.02, cos - 0.08)}
                | {"pc1_cos_high": min(1.0, cos + 0.04), "pc1_cos_expected": min(0.99, cos + 0.02)}
                | {"pc1_cos_null": 0.34, "pc1_p": 0.01, "pc1_variance": 0.2 + 0.4 * cos, "participation_ratio": 9.0}
                | {
                    "participation_ratio_within": 12.0,
                    "probe_d_prime": 4 * cos,
                    "probe_accuracy": 0.9,
                    "silhouette": 0.3,
                }
                | (
                    {"update_norm": norm * 0.4, "update_along": norm * (cos - 0.3), "update_across": norm / (n + 2)}
                    if n
                    else {}
                )
            )
        return frame("layers", rows)

    def components(self) -> pl.DataFrame:
        rows = []
        for base, cos in self.each():
            for c in range(1, K + 1):
                found = {"pooling": "balanced", "component": c, "reason": "no variance"}
                if not self.empty and not (base["layer"] == 0 and base["position"] == "-1"):
                    # Before the first component meets the difference, the second one carries it.
                    mine = cos if c == 1 else 0.9 * (1 - cos) if c == 2 else 0.1 / c
                    found |= {"variance": 5.0 / c, "explained": 0.5 / c, "cos": mine, "cos_low": max(0.0, mine - 0.05)}
                    found |= {"cos_high": min(1.0, mine + 0.05), "cos_null": 0.34, "p": 0.01, "reason": None}
                rows.append(base | found)
        return frame("components", rows)

    def pairs(self) -> Iterator[tuple[Row, int]]:
        for model in self.models:
            for position in self.positions:
                spots = places(self.depth)
                for i, (hook, layer, kind) in enumerate(spots):
                    for other, layer2, kind2 in spots[i + 1 :]:
                        yield (
                            {"model": model, "contrast": self.contrast, "position": position, "hook": hook}
                            | {"layer": layer, "stream": kind, "other_hook": other, "other_layer": layer2}
                            | {"other_stream": kind2},
                            abs(layer - layer2),
                        )

    def cosines(self) -> pl.DataFrame:
        rows = []
        for base, far in self.pairs():
            gone = self.empty or (base["layer"] == 0 and base["position"] == "-1")
            rows.append(base | ({"reason": "no difference"} if gone else {"cos": math.cos(0.55 * far)}))
        return frame("cosines", rows)

    def overlaps(self) -> pl.DataFrame:
        rows = []
        for base, far in self.pairs():
            value = {
                "k": K,
                "overlap": 0.4 + (3 + 0.1 * base["layer"]) * 0.6**far,
                "expected": K * K / (WIDTH - 2),
                "null_high": 0.7,
                "p": 0.01,
            }
            rows.append(base | ({"k": K, "reason": "no variance"} if self.empty else value))
        return frame("overlaps", rows)

    def onsets(self) -> pl.DataFrame:
        cosines: dict[tuple[str, str], list[float]] = {}
        for base, cos in self.each():
            if base["stream"] != "final_norm":
                cosines.setdefault((base["model"], base["position"]), []).append(cos)
        rows = []
        for (model, position), values in cosines.items():
            base = {"model": model, "contrast": self.contrast, "position": position, "threshold": 0.8}
            low = [n for n, c in enumerate(values) if c < 0.8]
            onset = low[-1] + 1 if low else 0
            found: Row = {"reached": 0.2, "reason": "onset: the last layer is below the threshold"}
            if onset < len(values):
                found = {"onset": onset, "onset_low": max(0, onset - 1), "onset_high": onset, "reached": 1.0}
            rows.append(base | ({"reason": "no place between blocks was collected"} if self.empty else found))
        return frame("onsets", rows)

    def causes(self) -> pl.DataFrame:
        rows = []
        for m, model in enumerate(self.models):
            for on, base_score in (("positive", 5.0), ("negative", -5.0)):
                base: Row = {"model": model, "digest": f"d{m}", "contrast": self.contrast, "position": "-1"}
                base |= {"layer": 3, "on": on, "n": 60}
                rows.append(base | score("none", None, base_score) | {"kl": 0.0})
                for intervention in ("ablate_all", "ablate_layer", "add_layer", "orthogonalise"):
                    for kind in ("difference", "random", "shuffled", "other_layer"):
                        moved = {"difference": 7.0, "other_layer": 2.0}.get(kind, 0.2) if m == 0 else 0.1
                        sign = 1 if intervention == "add_layer" else -1
                        found = score(intervention, kind, base_score + sign * moved)
                        found |= {"fired": DEPTH, "kl": 0.05 * moved}
                        found |= {"edit_bits": 2048.0} if intervention == "orthogonalise" else {}
                        if kind == "difference":
                            found["verdict"] = "used" if m == 0 else "present_not_used"
                        rows.append(base | found)
        # Both kinds of input in turn, as they are measured.
        half = len(rows) // len(self.models) // 2
        turned = [
            rows[2 * m * half + side * half + i]
            for m in range(len(self.models))
            for i in range(half)
            for side in (0, 1)
        ]
        return frame("causes", turned)

    def tables(self) -> Made:
        causes = None if self.empty else self.causes()
        return Made(self.layers(), self.components(), self.cosines(), self.overlaps(), self.onsets(), causes)


def score(intervention: str, direction: str | None, value: float, half: float = 0.6) -> Row:
    """Columns of one intervention's score."""
    out: Row = {"intervention": intervention, "direction": direction, "score": value, "score_low": value - half}
    return out | {"score_high": value + half, "rate": 1 / (1 + math.exp(-value))}


# --- helpers -----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: elements, ids, headings and text; scripts apart."""

    VOID = ("meta", "br", "img", "input", "link", "hr")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def told(tables: Made) -> str:
    lead, more = found_words(tables)
    return " ".join(w for _, words in [*lead, *more] for w in words)


def rendered(table: Any, width: int = 100) -> list[str]:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.fixture(scope="module")
def tables() -> Made:
    return Maker().tables()


@pytest.fixture(scope="module")
def compared() -> pl.DataFrame:
    one, two = (Maker(models=(m,)).tables() for m in ("honest", "defector"))
    return compare(*(LayerTables(t.layers, t.components, t.cosines, t.overlaps, t.onsets) for t in (one, two)))


@pytest.fixture(scope="module")
def html(tables: Made, compared: pl.DataFrame) -> str:
    return layers_html(tables, title="Layers", compared=compared, facts={"Rows": "120 and 118"})


def saved(selected: tuple[int, int] | None = (-1, 2)) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Norms, neighbours and evaluations of two positions and four layers; layer 0 is rounding."""
    spots = [(p, n) for p in (-2, -1) for n in range(4)]
    norms = pl.DataFrame([{"position": p, "layer": n, "norm": float(n) - p if n else 1e-15} for p, n in spots])
    adjacent = pl.DataFrame([{"position": p, "layer": n, "cos": 0.1 * n + 0.5} for p, n in spots if n < 3])
    rows = []
    for p, n in spots:
        why = None if n in (1, 2) else "layer 0 is left out" if n == 0 else "kl_div_score above 0.1"
        score = {"refusal_score": -5.0 if (p, n) == selected else 1.0 + n, "steering_score": 2.0, "kl_div_score": 0.01}
        rows.append({"position": p, "layer": n} | score | {"kept": why is None, "why": why})
    return norms, adjacent, pl.DataFrame(rows)


# --- pages -------------------------------------------------------------------------------------------------------


def test_a_page_parses_and_has_every_section_and_every_number(html: str, tables: Made) -> None:
    page = Page(html)
    for head in ("What was found", "Figures", "Causes", "Two models", "The table", "What is null, and why",
                 "Every number", "How it was measured"):  # fmt: skip
        assert head in page.text
    assert len(page.ids) == len(set(page.ids)), "ids are unique"
    links = [a["href"][1:] for tag, a in page.tags if tag == "a" and a.get("href")]
    assert set(links) <= set(page.ids)
    (block,) = [s for s in page.scripts if s.startswith("[{")]
    carried = {d["id"]: d for d in json.loads(block)}
    for name in TABLES:
        frame_ = getattr(tables, name)
        assert carried[name]["rows"] == frame_.height
        assert [c["name"] for c in carried[name]["columns"]] == [c.name for c in TABLES[name]]
        assert {c["name"]: c["meaning"] for c in carried[name]["columns"]} == {c.name: c.meaning for c in TABLES[name]}
        assert name in page.ids, "the script needs the element"
    norms = next(c for c in carried["layers"]["columns"] if c["name"] == "diff_norm")
    values = (
        norms["data"] if norms["dict"] is None else [None if i is None else norms["dict"][i] for i in norms["data"]]
    )
    assert values == tables.layers["diff_norm"].to_list()
    assert "Baik, Ben Arous and Péché 2005" in page.text and "Arditi et al. (2024)" in page.text
    assert "120 and 118" in page.text


def test_a_page_loads_nothing(html: str) -> None:
    page = Page(html)
    for tag, attrs in page.tags:
        assert tag not in ("img", "link", "iframe", "object", "image", "use")
        assert not any(k.startswith("on") for k in attrs)
        for k in ("src", "href", "xlink:href", "action"):
            assert (attrs.get(k) or "#").startswith("#")
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_the_same_tables_give_the_same_bytes(html: str, tables: Made, compared: pl.DataFrame) -> None:
    assert layers_html(tables, title="Layers", compared=compared, facts={"Rows": "120 and 118"}) == html


HOSTILE = "<script>alert(1)</script>\x00\x1b[31m[bold]x[/bold]&amp;\"'" + "y" * 300


def test_labels_of_users_are_never_markup() -> None:
    made = Maker(models=(HOSTILE, "b"), positions=("<i>-1</i>",), depth=2, contrast="<b>a - [red]b").tables()
    assert made.causes is not None
    made = replace(made, causes=made.causes.with_columns(pl.lit("</script><u>").alias("reason")))
    page = Page(layers_html(made, title=HOSTILE, facts={"<a>": "<em>"}))
    plain = Page(layers_html(Maker(depth=2, positions=("-1",)).tables(), title="t", facts={"a": "b"}))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} - {"em", "u", "i", "b"}
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert "\x00" not in page.text and "\x1b" not in page.text
    assert "<script>alert(1)</script>" in page.text, "shown as it is"


@pytest.mark.parametrize("kind", ["null", "one layer", "no rows", "no causes"])
def test_a_page_is_made_of_whatever_there_is(kind: str) -> None:
    made = {
        "null": lambda: Maker(empty=True, depth=3).tables(),
        "one layer": lambda: Maker(models=("m",), positions=("every",), depth=1).tables(),
        "no rows": lambda: Made(*(frame(name, []) for name in TABLES)),
        "no causes": lambda: replace(Maker(depth=2, positions=("-1",)).tables(), causes=None),
    }[kind]()
    page = Page(layers_html(made, title="t"))
    assert "What was found" in page.text and "Every number" in page.text and "How it was measured" in page.text
    assert ("Nothing was measured" in page.text) == (kind == "no rows")
    assert "None" not in page.text and "nan" not in page.text.split()
    if kind == "null":
        assert "the vectors of both classes are the same" in page.text
        assert not [tag for tag, a in page.tags if tag == "svg" and a.get("role") == "img"], "nothing to draw"
    table = layers_table(made)
    assert table.row_count == made.layers.height
    assert causes_table(made.causes).row_count == (0 if made.causes is None else made.causes.height)


def test_a_page_of_saved_directions() -> None:
    norms, adjacent, scores = saved()
    page = Page(saved_html(norms, adjacent, scores, selected=(-1, 2), title="<b>", facts={"File": "x.pt"}))
    for head in ("What was found", "Figures", "Left out by the rule", "Every number", "How it was measured"):
        assert head in page.text
    assert "layer 0 is left out 2" in page.text, "reasons are counted"
    assert "selected is position −1, layer 2: ablated, the refusal score is −5, the lowest of those kept" in page.text
    assert "2 of them zero but for rounding" in page.text
    bare = Page(saved_html(norms.clear(), adjacent.clear(), None, title="t"))
    assert "No direction has a length." in bare.text


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    out = write_page(tmp_path / "deep" / "a.html", "<p>é</p>")
    assert out.read_bytes() == "<p>é</p>".encode()
    with pytest.raises(FileError, match="cannot be written"):
        write_page(out / "b.html", "x")
    with pytest.raises(UnicodeEncodeError):
        write_page(out, "\ud800")
    assert out.read_text(encoding="utf-8") == "<p>é</p>" and [p.name for p in out.parent.iterdir()] == ["a.html"]


# --- sentences ---------------------------------------------------------------------------------------------------


@given(st.sets(st.integers(0, 40)), st.booleans())
def test_runs_of_layers_name_each_layer_once(layers: set[int], norm: bool) -> None:
    rows = [{"layer": n, "stream": "residual"} for n in layers]
    words = at_layers(rows + ([{"layer": 41, "stream": "final_norm"}] if norm else []))
    assert ("after the final norm" in words) == norm
    named: list[int] = []
    for first, last in re.findall(r"(\d+)(?: to (\d+))?", words):
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(layers)


NUMBERS = st.integers(0, 100).map(lambda n: n / 100)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6))
def test_a_layer_is_said_to_be_above_chance_only_with_its_whole_interval(found: list[tuple[float, ...]]) -> None:
    rows = []
    for n, (a, b, c, null) in enumerate(found):
        low, value, high = sorted((a, b, c))
        row = {"layer": n, "stream": "residual", "reason": None, "pc1_cos": value, "pc1_cos_low": low, "pc1_p": 0.5}
        rows.append(row | {"pc1_cos_high": high, "pc1_cos_null": null, "pc1_cos_expected": None})
    above = [r for r in rows if r["pc1_cos_low"] > r["pc1_cos_null"]]
    unsure = [r for r in rows if r["pc1_cos_low"] <= r["pc1_cos_null"] < r["pc1_cos_high"]]
    words = aligned_words(rows)[0]
    assert (f"above 95% of random relabellings {at_layers(above)} (" in words) == bool(above)
    if unsure:
        assert at_layers(unsure) in words and ("cannot be told" in words)
    else:
        assert "cannot be told" not in words
    if not above:
        assert "above 95% of random relabellings at" not in words


def test_without_an_interval_only_the_p_value_speaks() -> None:
    row = {"layer": 1, "stream": "residual", "reason": None, "pc1_cos": 0.9, "pc1_cos_low": None, "pc1_cos_high": None}
    row |= {"pc1_cos_null": 0.3, "pc1_cos_expected": None, "pc1_p": 0.01}
    assert "at layer 1 (p at most 0.05; no interval)" in aligned_words([row])[0]
    assert "cannot be told at layer 1" in aligned_words([row | {"pc1_p": 0.2}])[0]
    assert "cannot be told at layer 1" in aligned_words([row | {"pc1_p": None, "pc1_cos_null": None}])[0]


ONSET: Row = {"threshold": 0.8, "onset": 3, "onset_low": 2, "onset_high": 4, "reached": 1.0, "reason": None}


@pytest.mark.parametrize(
    ("change", "said", "not_said"),
    [
        ({}, "from layer 3 on (|cos| at least 0.8 up to the last layer; 95% interval 2 to 4)", "not certain"),
        ({"onset": 5, "onset_high": 6}, "from layer 5 on", "layer 3"),
        ({"onset_low": 3, "onset_high": 3}, "layer 3 in at least 95% of draws", "interval 3 to 3"),
        ({"onset_high": None, "reached": 0.6}, "not certain", "95% interval"),
        ({"onset_low": None, "onset_high": None, "reached": None, "reason": "interval: too few groups"},
         "no interval: too few groups", "95% interval"),
        ({"onset": None, "onset_low": None, "onset_high": None, "reached": 0.1, "reason": "onset: below"},
         "does not keep to the difference", "keeps to the difference of means from"),
        ({"onset": None, "onset_low": None, "onset_high": None, "reached": None, "reason": "no place was collected"},
         "no onset can be given: no place was collected", "does not keep"),
    ],
)  # fmt: skip
def test_the_onset_is_told_as_far_as_the_draws_go(change: Row, said: str, not_said: str) -> None:
    words = onset_words(ONSET | change)
    assert said in words
    assert not_said not in words


def component(number: int, cos: float, half: float = 0.05, **rest: Any) -> Row:
    out = {"hook": "h", "layer": 2, "stream": "residual", "pooling": "balanced", "component": number, "cos": cos}
    return out | {"cos_low": cos - half, "cos_high": cos + half, "cos_null": 0.3} | rest


def test_a_nuisance_axis_is_named_only_when_the_intervals_lie_apart() -> None:
    words = carried_words([component(1, 0.2), component(2, 0.9)])
    assert "at layer 2 a later component carries more" in words[0] and "component 2" in words[0]
    assert carried_words([component(1, 0.9), component(2, 0.2)]) == []
    assert carried_words([component(1, 0.5, 0.3), component(2, 0.7, 0.3)]) == [], "the intervals overlap"
    assert carried_words([component(1, 0.05, 0.01), component(2, 0.2, 0.01)]) == [], "both are within the null"
    assert carried_words([component(1, 0.2), component(2, 0.9, pooling="within")]) == []
    assert carried_words([component(1, 0.2), component(2, 0.9, cos_low=None, cos_high=None)]) == []


def test_shared_subspaces_are_counted_against_their_null() -> None:
    rows = Maker(models=("m",), positions=("-1",)).overlaps().rows(named=True)
    inner = [r for r in rows if r["other_stream"] != "final_norm"]
    more = sum(r["overlap"] > r["null_high"] for r in inner)
    assert f"{more} of {len(inner)} pairs" in overlap_words(rows)[0] and 0 < more < len(inner)
    none = overlap_words([r | {"null_high": 4.0} for r in rows])[0]
    assert f"0 of {len(inner)} pairs" in none and "farthest" not in none
    assert "not defined (no rows)" in overlap_words([r | {"overlap": None, "reason": "no rows"} for r in rows])[0]


def causes(effect: float, half: float = 0.5) -> list[Row]:
    base = {
        "on": "positive",
        "verdict": None,
        "layer": 3,
        "position": "-1",
        "reason": None,
        "model": "m",
        "contrast": "c",
    }
    rows = [base | score("none", None, 5.0, half), base | score("ablate_all", "difference", 5.0 + effect, half)]
    return [*rows, base | score("ablate_all", "random", 4.9, half)]


def test_an_effect_is_claimed_only_against_controls() -> None:
    assert "to −2 [−2.5, −1.5]: below a random direction" in cause_words(causes(-7.0))[0]
    assert "above a random direction" in cause_words(causes(7.0))[0]
    assert "not told apart from a random direction" in cause_words(causes(-0.5))[0]
    assert "not told apart from" in cause_words(causes(-7.0, half=6.0))[0], "wide intervals claim nothing"
    assert "with no control beside it" in cause_words(causes(-7.0)[:2])[0]
    bare = [r | {"score_low": None, "score_high": None} for r in causes(-7.0)]
    assert "not held against a random direction" in cause_words(bare)[0]
    assert cause_words([r | {"score": None} for r in causes(-7.0)]) == []


def test_present_but_not_used_is_its_own_sentence(tables: Made) -> None:
    assert tables.causes is not None
    words = told(tables)
    assert "present, not used" in words and "used (it tells the classes apart" in words
    none = replace(tables, causes=tables.causes.with_columns(pl.lit("used").alias("verdict")))
    assert "present, not used" not in told(none)
    unknown = tables.causes.with_columns(pl.lit(None, pl.String).alias("verdict"), pl.lit("no rows").alias("reason"))
    assert "cannot tell" in told(replace(tables, causes=unknown))
    missing = {"intervention": "ablate_all", "score": None, "verdict": None, "reason": "no residual stream"}
    rows = [r | (missing if r["intervention"] == "ablate_all" else {}) for r in tables.causes.rows(named=True)]
    words = told(replace(tables, causes=frame("causes", rows)))
    assert "cannot tell" not in words and "present, not used" in words, "what cannot be done says nothing"


def test_two_models_differ_where_the_interval_leaves_out_zero(compared: pl.DataFrame) -> None:
    apart = compared.with_columns(difference=1.0, difference_low=0.5, difference_high=1.5)
    same = compared.with_columns(difference=0.0, difference_low=-0.5, difference_high=0.5)
    assert all("leaves out 0 at layers 0 to 5" in w for w in difference_words(apart))
    assert all(w.endswith("leaves out 0, over 7 places.") and "no 95% interval" in w for w in difference_words(same))
    assert difference_words(None) == [] == difference_words(compared.clear())


def test_the_selection_is_told_from_the_scores() -> None:
    norms, adjacent, scores = saved()
    assert "the lowest of those kept" in saved_words(norms, adjacent, scores, (-1, 2))[-1]
    assert "the lowest" not in saved_words(norms, adjacent, scores, (-2, 1))[-1]
    assert "none is selected" in saved_words(norms, adjacent, scores, None)[-1]
    assert "between 0.6 (" in saved_words(norms, adjacent, None, None)[1], "layer 0 points nowhere"


# --- figures -----------------------------------------------------------------------------------------------------


def test_lines_break_at_nulls_and_never_reach_the_final_norm() -> None:
    rows = [
        {"layer": n, "stream": "residual", "v": None if n == 2 else 0.5, "v_low": 0.4, "v_high": 0.6} for n in range(6)
    ]
    rows.append({"layer": 5, "stream": "final_norm", "v": 0.5, "v_low": 0.4, "v_high": 0.6})
    at = Across(0, 5, 6)
    marks, bands, rules = pieces([line_of("#100000", rows, at, "v", ends=True)], Up("v", (0, 1)))
    runs = [[m["x"] for m in marks if m["p"] == p] for p in sorted({m["p"] for m in marks})]
    assert runs == [[0, 1], [3, 4, 5], [6]]
    assert [m["norm"] for m in marks] == [False] * 5 + [True]
    assert [b["x"] for b in bands] == [0, 1, 3, 4, 5] and [r["x"] for r in rules] == [6]


def test_a_log_axis_leaves_out_what_it_cannot_hold() -> None:
    rows = [{"layer": n, "stream": "residual", "v": v} for n, v in enumerate((0.0, 1.0, 100.0))]
    series = [line_of("#100000", rows, Across(0, 2, None), "v")]
    up = fit(series, "v", log=True)
    assert up is not None and 0 < up.domain[0] < 1 and up.domain[1] > 100
    assert [m["x"] for m in pieces(series, up)[0]] == [1, 2]


@given(st.integers(0, 60), st.integers(1, 120), st.booleans(), st.sampled_from([245, 330, 640]))
def test_layers_on_an_axis_have_room(low: int, span: int, norm: bool, width: int) -> None:
    high = low + span
    at = Across(low, high, high + 1 if norm else None).wide(width)
    ticks = at.x().to_dict()["axis"]["values"]
    pixels = width / (high + norm - low + 1)
    assert all(low <= t <= high + norm for t in ticks) and ticks
    assert all((b - a) * pixels >= 20 for a, b in pairwise(ticks))
    assert (high + 1 in ticks) == norm


def test_figures_are_drawn_and_hold_their_titles(tables: Made, compared: pl.DataFrame) -> None:
    first, second = (tables.layers.filter(pl.col("model") == m) for m in ("honest", "defector"))
    norms, adjacent, scores = saved()
    found = [
        figures.alignment_figure(tables.layers, tables.onsets), figures.strength_figure(tables.layers),
        figures.components_figure(tables.components), figures.heat_figure(tables.cosines),
        figures.overlap_figure(tables.overlaps), figures.update_figure(tables.layers),
        figures.causes_figure(tables.causes), figures.compare_figure(first, second),
        figures.difference_figure(compared), figures.saved_figure(norms, adjacent),
        figures.selection_figure(scores, (-1, 2)),
    ]  # fmt: skip
    assert all(f is not None for f in found)
    names = [f.name for f in found if f is not None]
    assert len(set(names)) == len(names)
    for f in found:
        assert f is not None and f.svg.startswith("<svg") and "var(--c0" in f.svg
        assert not re.search("#0[0-9a-f]0|#10000[0-7]", f.svg), "every stand-in colour follows the page"
    assert figures.heat_figure(tables.cosines, rest=True) is None, "four panels are shown at once"
    more = Maker(models=("m",), positions=tuple(str(p) for p in range(-6, 0)), depth=2)
    rest = figures.heat_figure(more.cosines(), rest=True)
    assert rest is not None and rest.folded


def test_figures_of_nothing_are_none() -> None:
    t = Maker(empty=True, depth=3).tables()
    assert figures.alignment_figure(t.layers, t.onsets) is None and figures.strength_figure(t.layers) is None
    assert figures.components_figure(t.components) is None and figures.heat_figure(t.cosines) is None
    assert figures.overlap_figure(t.overlaps) is None and figures.update_figure(t.layers) is None
    assert figures.causes_figure(None) is None and figures.compare_figure(t.layers, t.layers) is None
    norms, adjacent, scores = saved()
    assert figures.saved_figure(norms.clear(), adjacent.clear()) is None
    assert figures.selection_figure(scores.clear(), None) is None


# --- terminal ----------------------------------------------------------------------------------------------------


def test_terminal_tables_fit_a_hundred_columns(tables: Made, compared: pl.DataFrame) -> None:
    norms, adjacent, scores = saved()
    every = [layers_table(tables), causes_table(tables.causes), compare_table(compared)]
    every.append(saved_table(norms, adjacent, scores, selected=(-1, 2)))
    for table in every:
        lines = rendered(table)
        assert max(map(len, lines)) <= 100
        assert not any("…" in line for line in lines), "no number is cut"
        assert any("−1" in line for line in lines)
    positions = [line.split()[1] for line in rendered(layers_table(Maker(models=("m",)).tables())) if "120/118" in line]
    assert positions == sorted(positions, reverse=True), "rows of one position lie together"
    onset = [line for line in rendered(layers_table(tables)) if "▸" in line]
    assert len(onset) == 1 + tables.onsets["onset"].drop_nulls().len(), "the title, and one a position"


def test_terminal_tables_take_labels_literally() -> None:
    made = Maker(models=("[red]x[/red]", "\x1b[31mb"), positions=("[link]",), depth=2).tables()
    assert made.causes is not None
    for table in (layers_table(made), causes_table(made.causes)):
        out = "\n".join(rendered(table))
        assert "[red]x" in out and "\x1b" not in out
        assert max(map(len, out.splitlines())) <= 100
    assert "[link]" in "\n".join(rendered(layers_table(made)))


def test_swapped_goals_are_told_in_the_terminal() -> None:
    row: Row = {c.name: 0.5 for c in SWAPS} | {"model": "[b]", "layer": 2, "position": "every", "retargeted": True}
    lines = rendered(swaps_table(pl.DataFrame([row, row | {"layer": 3, "retargeted": False}])))
    assert any("▸2" in line for line in lines) and not any("▸3" in line for line in lines)
    assert max(map(len, lines)) <= 100


def test_several_pairs_of_models_are_kept_apart(tables: Made, compared: pl.DataFrame) -> None:
    both = pl.concat([compared, compared.with_columns(second_model=pl.lit("third"), difference=pl.lit(9.0))])
    table = compare_table(both)
    assert table.row_count == 2 * compare_table(compared).row_count
    assert max(map(len, rendered(table))) <= 100
    words = difference_words(both)
    assert [w for w in words if "defector less honest" in w] and [w for w in words if "third less honest" in w]
    page = Page(layers_html(tables, title="t", compared=both))
    assert len(page.ids) == len(set(page.ids))
    assert "What differs: third less honest" in page.text


def test_one_position_can_be_asked_for(tables: Made) -> None:
    assert layers_table(tables, position="-1").row_count == tables.layers.filter(pl.col("position") == "-1").height
    assert layers_table(tables, position="-9").row_count == 0
