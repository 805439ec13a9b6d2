"""Pages of the layerwise analyses: one file each, that opens offline and holds every number."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retarget.analysis.checks import number
from retarget.analysis.figures import Figure
from retarget.analysis.layers.columns import COSINES, TABLES, LayerColumn
from retarget.analysis.layers.compare import COMPARISON
from retarget.analysis.layers.effects import together
from retarget.analysis.layers.figures import (
    alignment_figure,
    causes_figure,
    compare_figure,
    components_figure,
    difference_figure,
    heat_figure,
    overlap_figure,
    saved_figure,
    selection_figure,
    strength_figure,
    update_figure,
)
from retarget.analysis.layers.lines import Row, by, ordered, real, trunk
from retarget.analysis.layers.words import VERDICTS, Tables, Told, difference_words, found_words, reasons, saved_words
from retarget.analysis.page import Cell, embedded, figure_cell, json_block, key_list, label, page, static_table, text
from retarget.errors import FileError

if TYPE_CHECKING:
    import polars as pl

#: A page that carries more rows of one table than this is slow to open.
_MOST_ROWS = 20_000
#: Rows of the table that is read; with more, only last positions.
_MOST_READ = 60
_SHOWN = {
    "layers": (
        "model", "layer", "stream", "position", "n_positive", "n_negative", "diff_norm", "diff_signal", "diff_p",
        "pc1_cos", "pc1_cos_low", "pc1_cos_high", "pc1_cos_null", "probe_d_prime", "reason",
    ),
    "components": (
        "model", "layer", "stream", "position", "pooling", "component", "explained", "cos", "cos_low", "cos_high",
        "cos_null", "p", "reason",
    ),
    "cosines": ("model", "position", "layer", "stream", "other_layer", "other_stream", "cos", "reason"),
    "overlaps": (
        "model", "position", "layer", "stream", "other_layer", "other_stream", "k", "overlap", "expected", "null_high",
        "p", "reason",
    ),
    "onsets": (
        "model", "position", "threshold", "onset", "onset_low", "onset_high", "reached", "reason",
    ),
    "causes": (
        "model", "position", "layer", "intervention", "direction", "on", "score", "score_low", "score_high", "rate",
        "kl", "n", "verdict", "reason",
    ),
    "comparison": (
        "layer", "stream", "position", "quantity", "first", "second", "difference", "difference_low",
        "difference_high", "direction_cos", "reason",
    ),
}  # fmt: skip
_PICKS = (
    "model", "contrast", "stream", "position", "pooling", "intervention", "direction", "on", "verdict", "quantity",
)  # fmt: skip
_SAVED = {
    "position": ("", "of the token, from the end; null: all positions together"),
    "layer": ("blocks", "blocks passed there: l is the input of block l"),
    "norm": ("", "length of the direction"),
    "cos": ("", "with the next layer's direction"),
    "refusal_score": ("", "on harmful prompts, the direction ablated"),
    "steering_score": ("", "on harmless prompts, the direction added"),
    "kl_div_score": ("nats", "of next tokens on harmless prompts, the direction ablated"),
    "kept": ("", "whether the rule keeps it"),
    "why": ("", "why it is left out"),
    "participation_ratio": ("dimensions", "of the stacked directions"),
    "participation_ratio_unit": ("dimensions", "the same with each direction made of length 1"),
    "reason": ("", "why values are null, or null"),
}


def layers_html(
    tables: Tables,
    *,
    title: str,
    compared: pl.DataFrame | None = None,
    other: pl.DataFrame | None = None,
    more: Mapping[str, tuple[pl.DataFrame, Sequence[LayerColumn]]] | None = None,
    facts: Mapping[str, str] | None = None,
) -> str:
    """The page of layerwise tables, as one HTML text. The same tables give the same text.

    Args:
        tables: with the columns of `columns.TABLES`; they may be empty.
        title: of the page.
        compared: rows of `compare.COMPARISON`, where two models were compared.
        other: rows of `LAYERS` of a second model, for lines side by side, where `tables` does not hold them.
        more: other tables that the page is to carry, by name (letters and underscores), with their columns.
        facts: what else is to be told of how it was measured, by name.
    """
    lead, rest = found_words(tables)
    groups = [
        ("found", "What was found", _words(lead) + _folded_words(rest)),
        ("figures", "Figures", _figures(_drawings(tables))),
        ("causes-seen", "Causes", _causes(tables.causes)),
        ("models", "Two models", _two(tables, compared, other)),
        ("table", "The table", _table(tables)),
        ("gaps", "What is null, and why", _gaps(tables)),
    ]
    known: dict[str, tuple[pl.DataFrame | None, Sequence[LayerColumn]]] = {
        name: (getattr(tables, name), TABLES[name]) for name in TABLES
    }
    known["comparison"] = (compared, COMPARISON)
    known.update(more or {})
    data, blocks = [], []
    for name, (frame, columns) in known.items():
        if frame is not None:
            entry, block = _every(
                name, frame, {c.name: (c.unit, c.meaning) for c in columns}, _SHOWN.get(name, frame.columns)
            )
            data.append(entry)
            blocks.append(block)
    groups += [("numbers", "Every number", "".join(blocks)), ("how", "How it was measured", _how(facts or {}))]
    return _whole(title, _intro(tables), groups, data)


def saved_html(
    norms: pl.DataFrame,
    adjacent: pl.DataFrame,
    evaluations: pl.DataFrame | None = None,
    *,
    selected: tuple[int | str, int] | None = None,
    cosines: pl.DataFrame | None = None,
    dimensions: pl.DataFrame | None = None,
    title: str,
    facts: Mapping[str, str] | None = None,
) -> str:
    """The page of directions that others saved, as one HTML text.

    Args:
        norms: rows of position, layer, norm.
        adjacent: rows of position, layer (the earlier of the two), cos.
        evaluations: rows of position, layer, refusal_score, steering_score, kl_div_score, kept, why; or None.
        selected: (position, layer) that the rule selects, or None.
        cosines: rows of `COSINES` for every two layers of a position, or None.
        dimensions: rows of position, participation_ratio, participation_ratio_unit; or None.
        title: of the page.
        facts: what else is to be told, by name.
    """
    found: list[Figure | None] = [saved_figure(norms, adjacent)]
    found += [] if evaluations is None else [selection_figure(evaluations, selected)]
    found += [] if cosines is None else [heat_figure(cosines), heat_figure(cosines, rest=True)]
    frames = {"norms": norms, "adjacent": adjacent, "evaluations": evaluations, "cosines": cosines}
    data, blocks = [], []
    for name, frame in (frames | {"dimensions": dimensions}).items():
        if frame is None:
            continue
        known = dict(_SAVED if name != "cosines" else {c.name: (c.unit, c.meaning) for c in COSINES})
        entry, block = _every(name, frame, known, frame.columns)
        data.append(entry)
        blocks.append(block)
    groups = [
        ("found", "What was found", _words([("", saved_words(norms, adjacent, evaluations, selected))])),
        ("figures", "Figures", _figures([f for f in found if f is not None])),
        ("left", "Left out by the rule", _left_out(evaluations)),
        ("numbers", "Every number", "".join(blocks)),
        ("how", "How it was measured", _definitions([*_SAVED_HOW, *(facts or {}).items()])),
    ]
    intro = f"{_count(norms.height, 'direction')} read from a file; single values, so that nothing has an interval."
    return _whole(title, intro, groups, data)


def write_page(path: Path | str, html: str) -> Path:
    """Write a page, whole or not at all: what was there stays until the new file is complete.

    Raises:
        FileError: where it cannot be written.
    """
    out = Path(path)
    draft = out.with_name(f".{out.name}.new-{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(html, encoding="utf-8", newline="\n")
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(f"{str(out)!r}: cannot be written ({error.strerror or error}); choose another file") from None
    return out


# --- the frame of a page -----------------------------------------------------------------------------------------


def _whole(title: str, intro: str, groups: Sequence[tuple[str, str, str]], data: list[dict[str, object]]) -> str:
    sections = [g for g in groups if g[2]]
    nav = "".join(f'<a href="#{name}-top">{text(head)}</a>' for name, head, _ in sections)
    # Reasons come last in each table; without a width of their own they would be broken word by word.
    style = "main .card>div[id] td:last-child:not(.n){min-width:15em}.lead h3:not(:first-child){margin-top:16px}"
    body = f'<style>{style}</style><header><h1>{text(title)}</h1><p class="muted">{text(intro)}</p>'
    body += f"<nav>{nav}</nav></header>\n<main>\n"
    body += "\n".join(
        f'<section><h2 id="{name}-top">{text(head)}</h2>\n{inner}</section>' for name, head, inner in sections
    )
    body += '\n</main>\n<footer class="small muted">Written by retarget. This file needs no network.</footer>'
    return page(title, body, json_block(data))


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _card(body: str, *, title: str = "", note: str = "") -> str:
    head = f"<h3>{text(title)}</h3>" if title else ""
    under = f'<p class="small muted">{text(note)}</p>' if note else ""
    return f'<div class="card">{head}{under}{body}</div>'


def _told(groups: Sequence[Told]) -> str:
    return "".join(
        (f"<h3>{text(head)}</h3>" if head else "") + "".join(f"<p>{text(line)}</p>" for line in lines)
        for head, lines in groups
        if lines
    )


def _words(groups: Sequence[Told]) -> str:
    inner = _told(groups)
    return f'<div class="lead">{inner}</div>' if inner else ""


def _folded_words(groups: Sequence[Told]) -> str:
    inner = _told(groups)
    return f"<details><summary>The same at the other positions</summary>{_card(inner)}</details>" if inner else ""


def _figures(figures: Sequence[Figure]) -> str:
    out = ""
    for f in figures:
        key = key_list((k.label, k.colour, k.shape, k.hollow) for k in f.key)
        one = (
            f'<figure><h3 id="{f.name}-title">{text(f.title)}</h3>{key}<div class="draw">{f.svg}</div>'
            f"<figcaption>{text(f.caption)}</figcaption></figure>"
        )
        out += f"<details><summary>{text(f.title)}: more of them</summary>{one}</details>" if f.folded else one
    return out


def _every(
    name: str, frame: pl.DataFrame, known: dict[str, tuple[str, str]], shown: Sequence[str]
) -> tuple[dict[str, object], str]:
    """A table as the page's script reads it, and the place where it is shown."""
    kept = frame.head(_MOST_ROWS)
    part = f" (the first of {frame.height:,}; all are in {name}.parquet)" if frame.height > _MOST_ROWS else ""
    hint = "This table needs JavaScript. The same numbers are in the tables that were saved."
    body = f'<noscript><p>{hint}</p></noscript><div id="{name}"></div>'
    note = f"{_count(kept.height, 'row')}{part}. Click a heading to sort; point at it for its meaning."
    picks = [c for c in frame.columns if c in _PICKS]
    entry = embedded(kept, name, facts=known, shown=shown, picks=picks)
    return entry, _card(body, title=name, note=note)


# --- sections ----------------------------------------------------------------------------------------------------


def _intro(tables: Tables) -> str:
    rows = tables.layers
    models, contrasts = (rows[c].unique(maintain_order=True).to_list() for c in ("model", "contrast"))
    parts = [", ".join(map(str, models)), ", ".join(map(str, contrasts))]
    parts += [f"{_count(rows['hook'].n_unique(), 'place')}, {_count(rows['position'].n_unique(), 'position')}"]
    return "; ".join(p for p in parts if p) + ". Differences are positive minus negative."


def _drawings(tables: Tables) -> list[Figure]:
    found = [alignment_figure(tables.layers, tables.onsets), strength_figure(tables.layers)]
    for draw, frame in (
        (components_figure, tables.components), (heat_figure, tables.cosines), (overlap_figure, tables.overlaps),
    ):  # fmt: skip
        found += [draw(frame), draw(frame, rest=True)]
    found.append(update_figure(tables.layers))
    return [f for f in found if f is not None]


def _cell(row: Row, key: str, *, ends: bool = False) -> Cell:
    value = real(row[key])
    low, high = (real(row.get(f"{key}_{e}")) if ends else None for e in ("low", "high"))
    note = "" if low is None or high is None else f"{number(low)} to {number(high)}"
    return figure_cell(number(value), value, note)


def _whole_cell(value: object) -> Cell:
    return figure_cell(f"{value:,}", float(value)) if isinstance(value, int) else figure_cell("–", None)


def _minus(position: object) -> str:
    return f"−{str(position)[1:]}" if str(position)[:1] == "-" else str(position)


def _table(tables: Tables) -> str:
    import polars as pl

    rows = trunk(tables.layers)
    if rows.is_empty():
        return ""
    note = ""
    if rows.height > _MOST_READ:
        last = rows.group_by("model", "contrast", maintain_order=True).agg(pl.col("position").last())
        rows = rows.join(last, on=["model", "contrast", "position"], how="semi", maintain_order="left")
        note = "The last position of each; the others are below, under every number. "
    onsets = {(r["model"], r["contrast"], r["position"]): r["onset"] for r in tables.onsets.rows(named=True)}
    many = rows["model"].n_unique() > 1
    head = [*([("model", "")] if many else []), ("position", ""), ("layer", "blocks"), ("rows", "+ / −")]
    numbers = (
        ("diff_norm", "difference", "length", True), ("rms_norm", "vectors", "length", False),
        ("diff_signal", "signal", "/ noise", False), ("diff_p", "p", "", False), ("pc1_cos", "|cos|", "of PC 1", True),
        ("pc1_cos_expected", "expected", "", False), ("pc1_cos_null", "null", "95th", False),
        ("pc1_variance", "PC 1", "share", False), ("probe_d_prime", "d′", "", False),
    )  # fmt: skip
    head += [(name, unit) for _, name, unit, _ in numbers]
    body = []
    for r in ordered(rows).rows(named=True):
        onset = onsets.get((r["model"], r["contrast"], r["position"]))
        norm = r["stream"] == "final_norm"
        mark = "after the norm" if norm else "onset" if onset is not None and r["layer"] == onset else ""
        line = [label(r["model"])] if many else []
        at = str(r["position"])
        line += [
            figure_cell(_minus(at), float(at) if at[1:].isdigit() else None),
            figure_cell(str(r["layer"]), float(r["layer"]), mark),
        ]
        n = [r["n_positive"], r["n_negative"]]
        line.append(figure_cell(" / ".join("–" if v is None else f"{v:,}" for v in n), real(n[0])))
        body.append(line + [_cell(r, key, ends=ends) for key, _, _, ends in numbers])
    note += "With 95% intervals; – is not defined."
    return _card(static_table(head, body), note=note)


def _causes(causes: pl.DataFrame | None) -> str:
    if causes is None or causes.is_empty():
        return ""
    found = causes_figure(causes)
    head = [("model", ""), ("direction of", ""), ("intervention", ""), ("direction", ""), ("on", ""), ("score", "nats")]
    head += [("rate", "share"), ("KL", "nats"), ("rows", ""), ("edit", "bit"), ("verdict", "")]
    body = []
    for r in together(causes):
        where = "" if r["layer"] is None else f"layer {r['layer']}, {_minus(r['position'])}"
        line = [label(r["model"]), label(where), label((r["intervention"] or "").replace("_", " "))]
        line += [label((r["direction"] or "–").replace("_", " ")), label(r["on"]), _cell(r, "score", ends=True)]
        line += [_cell(r, "rate"), _cell(r, "kl"), _whole_cell(r["n"]), _cell(r, "edit_bits")]
        verdict = VERDICTS.get(str(r["verdict"]), str(r["verdict"] or "")).split(":")[0]
        body.append([*line, (verdict, str(r["reason"] or ""), None, False)])
    note = "Every intervention with its controls; scores with 95% intervals."
    card = _card(static_table(head, body), note=note)
    if len(body) > _MOST_READ:
        card = f"<details><summary>Show {_count(len(body), 'intervention')}</summary>{card}</details>"
    return _figures([found] if found is not None else []) + card


def _two(tables: Tables, compared: pl.DataFrame | None, other: pl.DataFrame | None) -> str:
    layers = {key[0]: frame for key, frame in by(tables.layers, "model").items()}
    if other is not None and other.height:
        layers.setdefault(other["model"][0], other)
    pairs = {} if compared is None else by(compared, "first_model", "second_model")
    names: list[tuple[Any, ...]] = list(pairs) or ([tuple(layers)] if len(layers) == 2 else [])
    found: list[Figure | None] = []
    for i, pair in enumerate(names):
        end = f"-{i}" if i else ""
        if all(n in layers for n in pair):
            found.append(compare_figure(layers[pair[0]], layers[pair[1]], name=f"layers-compare{end}"))
        if pair in pairs:
            found.append(difference_figure(pairs[pair], name=f"layers-difference{end}"))
    return _words([("", difference_words(compared))]) + _figures([f for f in found if f is not None])


def _gaps(tables: Tables) -> str:
    groups: Counter[tuple[str, str]] = Counter()
    for name in TABLES:
        frame = getattr(tables, name)
        for reason in reasons([] if frame is None else frame.select("reason").rows(named=True)):
            # Reasons differ by their numbers; one line for all that read the same otherwise.
            groups[name, re.sub(r"\d+(\.\d+)?", "…", reason)] += 1
    if not groups:
        return _card("<p>No value is null for a reason of its own.</p>")
    ordered = sorted(groups.items(), key=lambda g: (list(TABLES).index(g[0][0]), -g[1], g[0][1]))
    rows = [[label(name), label(reason), _whole_cell(n)] for (name, reason), n in ordered]
    return _card(static_table([("table", ""), ("reason", ""), ("rows", "")], rows))


def _left_out(evaluations: pl.DataFrame | None) -> str:
    if evaluations is None or evaluations.is_empty():
        return ""
    groups = Counter(str(r["why"] or "–") for r in evaluations.rows(named=True) if not r["kept"])
    if not groups:
        return ""
    rows = [[label(why), _whole_cell(n)] for why, n in sorted(groups.items(), key=lambda g: (-g[1], g[0]))]
    return _card(static_table([("why", ""), ("directions", "")], rows))


_HOW: tuple[tuple[str, str], ...] = (
    ("Layer", "how many blocks have been passed: 0 is the embedding, l the input of block l; what comes after the "
     "final norm is another stream, drawn apart and never joined to the rest"),
    ("Difference", "mean of the positive class less mean of the negative one, at one place and position"),
    ("Signal over noise", "length of the difference over the length that sampling alone gives, "
     "√(tr S₁/n₁ + tr S₀/n₀)"),
    ("First component", "largest axis of variation of both classes together, weighted alike, their means left in; "
     "|cos| has no sign, since a component has none"),
    ("Expected", "|cos| under two Gaussian classes of one spread, with the measured distance and number of rows: the "
     "spiked covariance model (Baik, Ben Arous and Péché 2005); below its threshold the first component is noise"),
    ("Null", "the same measure where labels are given to rows at random, class sizes kept; its 95th percentile"),
    ("Intervals", "95%, from groups of rows left out or drawn anew. One at a time: over many layers some miss by "
     "chance, and layers share their rows, so that they do not err independently"),
    ("Onset", "first layer from which |cos| is at least the threshold at every later layer of the residual stream"),
    ("Overlap", "squared cosines between the leading directions of two layers, summed, after the difference is "
     "projected out of both; k²/(d − r) where both are random; the null permutes the coordinates of one layer"),
    ("Participation ratio", "(tr S)² / tr S²: how many dimensions share the variance"),
    ("d′", "distance of the classes along a linear probe over their spread along it, in rows it was not fitted on"),
    ("Ablation, addition", "x − (x·u)u at one layer or all, and x + r at one layer; the same taken out of the "
     "weights. Directions, interventions and the selection rule follow Arditi et al. (2024)"),
    ("Score", "mean log odds of the wanted tokens at the last token; KL: how far next tokens move from the untouched "
     "model's"),
    ("Used", "by its verdict: decodable and not steerable is present and not used; that something is not seen to act "
     "does not prove that it never does"),
)  # fmt: skip
_SAVED_HOW = (
    ("Direction", "difference of class means at one layer and position, as saved by others"),
    ("Cosine", "of the directions of a layer and the next, at one position"),
    ("Scores", "as saved: refusal when the direction is ablated on harmful prompts, when it is added on harmless "
     "ones, and the divergence of next tokens on harmless prompts when it is ablated"),
    ("Rule", "Arditi et al. (2024): of the directions that are kept, the one with the lowest refusal score when "
     "ablated"),
)  # fmt: skip


def _how(facts: Mapping[str, str]) -> str:
    return _definitions([*_HOW, *facts.items()])


def _definitions(items: Sequence[tuple[str, Any]]) -> str:
    inner = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in items)
    return _card(f"<dl>{inner}</dl>")
