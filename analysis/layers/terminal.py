"""The layerwise tables for a terminal: they fit 100 columns, and no text of a user is read as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retarget.analysis.checks import number
from retarget.analysis.layers.effects import together
from retarget.analysis.layers.lines import Row, by, ordered, real, trunk

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table
    from rich.text import Text

    from retarget.analysis.layers.words import Tables

_LONGEST = 200


def layers_table(tables: Tables, *, position: str | None = None) -> Table:
    """One line a place and position: how strong the difference is, and how much of it the first component is.

    Args:
        tables: with the columns of `columns.TABLES`; may be empty, which gives a table without lines.
        position: only this one; None for all.
    """
    import polars as pl

    rows = trunk(tables.layers)
    rows = rows if position is None else rows.filter(pl.col("position") == position)
    onsets = {(r["model"], r["contrast"], r["position"]): r["onset"] for r in tables.onsets.rows(named=True)}
    many = rows["model"].n_unique() > 1
    table = _table("difference of means by layer (▸ onset, n after the final norm); |cos| of the first component")
    if many:
        table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=10)
    for name in ("layer", "pos.", "rows\n+/−", "diff/\nlength", "signal/\nnoise"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("|cos|\n[95%]", "expec-\nted", "null\n95th", "PC 1\nshare", "d′"):
        table.add_column(name, justify="right", no_wrap=True)
    last: tuple[Any, ...] | None = None
    for r in ordered(rows).rows(named=True):
        key = (r["model"], r["contrast"], r["position"])
        if last is not None and key != last:
            table.add_section()
        last = key
        norm = r["stream"] == "final_norm"
        onset = onsets.get(key)
        mark = "n" if norm else "▸" if onset is not None and onset == r["layer"] else " "
        # Counts are what they are; only a label can be long.
        counts = "/".join("–" if v is None else str(v) for v in (r["n_positive"], r["n_negative"]))
        share = None if real(r["diff_norm"]) is None or not real(r["rms_norm"]) else r["diff_norm"] / r["rms_norm"]
        cells: list[Any] = [
            f"{mark}{r['layer']}",
            _plain(r["position"], 9),
            counts,
            _short(share),
            _short(r["diff_signal"]),
        ]
        cells += [_ranged(r, "pc1_cos")]
        cells += [_short(r[k]) for k in ("pc1_cos_expected", "pc1_cos_null", "pc1_variance", "probe_d_prime")]
        table.add_row(*([_plain(r["model"])] if many else []), *cells)
    return table


def causes_table(causes: pl.DataFrame | None) -> Table:
    """One line an intervention: score on its inputs, beside its controls.

    Args:
        causes: rows of `CAUSES`, or None, which gives a table without lines.
    """
    table = _table("interventions; score: mean log odds of the wanted tokens (nats)")
    many = causes is not None and causes["model"].n_unique() > 1
    if many:
        table.add_column("model", overflow="ellipsis", no_wrap=True, max_width=10)
    table.add_column("of", no_wrap=True, overflow="ellipsis", max_width=9)
    table.add_column("intervention", no_wrap=True)
    table.add_column("direction", no_wrap=True, overflow="ellipsis", max_width=12)
    table.add_column("on", no_wrap=True)
    for name in ("score [95%]", "rate", "KL"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    last: tuple[Any, ...] | None = None
    for r in together(causes):
        key = (r["model"], r["contrast"], r["layer"], r["position"], r["on"])
        if last is not None and key != last:
            table.add_section()
        last = key
        where = "–" if r["layer"] is None else f"{r['layer']}, {_plain(r['position'])}"
        words = str(r["direction"] or "–").replace("_", " ")
        shown = {"used": "used", "present_not_used": "not used", "absent": "absent"}.get(str(r["verdict"]), "–")
        cells: list[Any] = [_plain(where), _plain(_INTERVENTIONS.get(str(r["intervention"]), r["intervention"]))]
        cells += [_plain(words), _plain({"positive": "pos.", "negative": "neg."}.get(str(r["on"]), r["on"]), 8)]
        cells += [_ranged(r, "score"), _part(r["rate"]), _short(r["kl"])]
        table.add_row(*([_plain(r["model"])] if many else []), *cells, shown if r["verdict"] else "")
    return table


_INTERVENTIONS = {"none": "untouched", "ablate_all": "ablate all", "ablate_layer": "ablate one", "add_layer": "add"}
_INTERVENTIONS["orthogonalise"] = "in weights"


def compare_table(compared: pl.DataFrame, *, quantities: tuple[str, ...] = ("diff_norm", "pc1_cos")) -> Table:
    """One line a place, position and quantity: both models, and their difference with its interval.

    Args:
        compared: rows of `compare.COMPARISON`.
        quantities: which of them.
    """
    import polars as pl

    pairs = list(by(compared, "first_model", "second_model"))
    table = _table("two models, second less first; * where the 95% interval leaves out 0")
    if len(pairs) > 1:
        for label in ("first", "second"):
            table.add_column(label, overflow="ellipsis", no_wrap=True, max_width=10)
    for name in ("layer", "pos."):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("quantity", no_wrap=True)
    for label in pairs[0] if len(pairs) == 1 else ("first", "second"):
        table.add_column(_plain(label, 12), justify="right", no_wrap=True)
    table.add_column("difference [95%]", justify="right", no_wrap=True)
    table.add_column("cos of\ndirections", justify="right", no_wrap=True)
    rows = trunk(compared).filter(pl.col("quantity").is_in(list(quantities)))
    parts = [ordered(part) for part in by(rows, "first_model", "second_model").values()]
    for r in (r for part in parts for r in part.rows(named=True)):
        low, high = real(r["difference_low"]), real(r["difference_high"])
        star = "*" if low is not None and high is not None and (low > 0 or high < 0) else " "
        layer = f"{'n' if r['stream'] == 'final_norm' else ' '}{r['layer']}"
        cells: list[Any] = [
            layer,
            _plain(r["position"], 9),
            _plain(r["quantity"]),
            _short(r["first"]),
            _short(r["second"]),
        ]
        names = [_plain(r["first_model"]), _plain(r["second_model"])] if len(pairs) > 1 else []
        table.add_row(*names, *cells, _ranged(r, "difference") + star, _short(r["direction_cos"]))
    return table


def shortened(causes: pl.DataFrame, layer: int, position: str) -> pl.DataFrame:
    """All rows of one direction; of the others what taking it out and adding it does, without their controls.

    Args:
        causes: rows of `CAUSES`.
        layer, position: of the direction that is told in full.
    """
    import polars as pl

    mine = (pl.col("layer") == layer) & (pl.col("position") == position)
    removed = (pl.col("intervention") == "ablate_all") & (pl.col("on") == "positive")
    added = (pl.col("intervention") == "add_layer") & (pl.col("on") == "negative")
    return causes.filter(mine | ((removed | added) & (pl.col("direction") == "difference")))


def swaps_table(swaps: pl.DataFrame) -> Table:
    """One line a layer and factor: competence on both goals once one goal's direction is swapped for the other's.

    Args:
        swaps: rows of `swaps.SWAPS`.
    """
    table = _table("goal directions swapped, A to B (▸ retargeted); competence as a share of the optimum")
    for name in ("layer", "pos.", "factor", "tokens", "edit\n(bit)", "B,\nbefore", "B,\nafter", "B, after\nrandom"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("needed\non B", "A,\nbefore", "A,\nafter"):
        table.add_column(name, justify="right", no_wrap=True)
    keys = ("edit_bits", "competence_b_before", "competence_b", "random_competence_b", "required", "competence_a")
    for r in swaps.rows(named=True):
        mark = "▸" if r["retargeted"] else " "
        cells: list[Any] = [f"{mark}{r['layer']}", _plain(r["position"], 9), _short(r["factor"])]
        cells += [_plain(r["tokens"], 4)]
        table.add_row(*cells, *[_short(r[k]) for k in (*keys, "competence_a_after")])
    return table


def saved_table(
    norms: pl.DataFrame,
    adjacent: pl.DataFrame,
    evaluations: pl.DataFrame | None = None,
    *,
    selected: tuple[int | str, int] | None = None,
) -> Table:
    """One line a saved direction: length, cosine with the next layer's, scores, and whether the rule keeps it.

    Args:
        norms: rows of position, layer, norm.
        adjacent: rows of position, layer (the earlier of the two), cos.
        evaluations: rows of position, layer, refusal_score, steering_score, kl_div_score, kept, why; or None.
        selected: (position, layer) that the rule selects, or None.
    """
    table = _table("saved directions (▸ selected)")
    for name in ("pos.", "layer", "length", "cos with\nnext layer"):
        table.add_column(name, justify="right", no_wrap=True)
    scored = {(r["position"], r["layer"]): r for r in ([] if evaluations is None else evaluations.rows(named=True))}
    if evaluations is not None:
        for name in ("refusal,\nablated", "refusal,\nadded", "KL\n(nats)"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("left out", overflow="ellipsis", no_wrap=True, max_width=40)
    cosines = {(r["position"], r["layer"]): r["cos"] for r in adjacent.rows(named=True)}
    last: object = None
    for r in norms.sort("position", "layer").rows(named=True):
        if last is not None and r["position"] != last:
            table.add_section()
        last, spot = r["position"], (r["position"], r["layer"])
        mark = "▸" if selected is not None and spot == tuple(selected) else " "
        cells: list[Any] = [
            _plain(r["position"], 9),
            f"{mark}{r['layer']}",
            _short(r["norm"]),
            _short(cosines.get(spot)),
        ]
        if evaluations is not None:
            e = scored.get(spot)
            keys = ("refusal_score", "steering_score", "kl_div_score")
            cells += [_short(None if e is None else e[k]) for k in keys]
            cells.append(_plain("" if e is None or e["kept"] else e["why"] or "–"))
        table.add_row(*cells)
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)


def _plain(value: object, longest: int = _LONGEST) -> Text:
    """Labels come from users: Text takes them literally, a string would be read as markup."""
    from rich.text import Text

    words = "".join(c if c.isprintable() else "�" for c in str(value))
    words = f"−{words[1:]}" if words[:1] == "-" and words[1:].isdigit() else words
    return Text(words if len(words) <= longest else words[: longest - 1] + "…")


def _short(value: object) -> str:
    """Two decimals or three digits, so that a table fits; a share just below 1 is not rounded up to it."""
    found = real(value)
    if found is None:
        return "–"
    if 0 < abs(found) < 0.005:
        return f"{found:.1g}".replace("-", "−")
    words = f"{found:.2f}" if abs(found) < 10 else f"{found:.1f}" if abs(found) < 1000 else f"{found:.3g}"
    if abs(found) < 1 and words in ("1.00", "-1.00"):
        return number(found)
    return words.replace("-", "−")


def _part(value: object) -> str:
    """A share in two decimals; one just below 1 is not rounded up to it."""
    found = real(value)
    return ">.99" if found is not None and 0.995 <= found < 1 else _short(found)


def _ranged(row: Row, key: str) -> str:
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    value = _short(row[key])
    return value if real(low) is None or real(high) is None else f"{value} [{_short(low)}, {_short(high)}]"
