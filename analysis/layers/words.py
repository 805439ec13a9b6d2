"""What the layerwise tables say, in sentences. None claims more than its interval does; all hold for empty tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from retarget.analysis.checks import number
from retarget.analysis.layers.effects import INTERVENTIONS, direction_words, without_rounding
from retarget.analysis.layers.lines import Row, by, place, real, trunk, who

if TYPE_CHECKING:
    import polars as pl


class Tables(Protocol):
    """The layerwise tables, with the columns of `columns.py`."""

    @property
    def layers(self) -> pl.DataFrame: ...
    @property
    def components(self) -> pl.DataFrame: ...
    @property
    def cosines(self) -> pl.DataFrame: ...
    @property
    def overlaps(self) -> pl.DataFrame: ...
    @property
    def onsets(self) -> pl.DataFrame: ...
    @property
    def causes(self) -> pl.DataFrame | None: ...


def joined(parts: Sequence[str]) -> str:
    """Words in a row.

    >>> joined(["a", "b", "c"]), joined(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def at_layers(rows: Iterable[Row]) -> str:
    """Where some rows are: layers in runs, the place after the final norm apart.

    >>> at_layers([{"layer": n, "stream": "residual"} for n in (0, 2, 3, 4)])
    'at layers 0 and 2 to 4'
    >>> at_layers([{"layer": 7, "stream": "residual"}, {"layer": 7, "stream": "final_norm"}])
    'at layer 7 and after the final norm'
    """
    rows = list(rows)
    found = sorted({int(r["layer"]) for r in rows if r["stream"] != "final_norm"})
    runs: list[list[int]] = []
    for n in found:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    parts = [str(a) if a == b else f"{a} to {b}" if b > a + 1 else f"{a} and {b}" for a, b in runs]
    parts = [p for part in parts for p in part.split(" and ")]
    out = [f"at layer{'s' if len(found) > 1 else ''} {joined(parts)}"] if found else []
    return joined([*out, *(["after the final norm"] if any(r["stream"] == "final_norm" for r in rows) else [])])


def spot(row: Row) -> str:
    """One place in words."""
    return "after the final norm" if row["stream"] == "final_norm" else f"at layer {row['layer']}"


def ranged(row: Row, key: str) -> str:
    """A value with its interval.

    >>> ranged({"x": 0.5, "x_low": 0.25, "x_high": 0.75}, "x")
    '0.5 [0.25, 0.75]'
    >>> ranged({"x": 0.5, "x_low": None, "x_high": None}, "x")
    '0.5 (no interval)'
    """
    low, high = real(row.get(f"{key}_low")), real(row.get(f"{key}_high"))
    value = number(real(row[key]))
    return f"{value} (no interval)" if low is None or high is None else f"{value} [{number(low)}, {number(high)}]"


def _ends(row: Row, key: str) -> tuple[float, float] | None:
    low, high = real(row.get(f"{key}_low")), real(row.get(f"{key}_high"))
    return None if low is None or high is None else (low, high)


# --- one position ------------------------------------------------------------------------------------------------


def onset_words(row: Row) -> str:
    """From which layer on the first component keeps to the difference, as far as the draws say so."""
    keeps = "the first principal component keeps to the difference of means"
    bound = "" if real(row["threshold"]) is None else f"|cos| at least {number(row['threshold'])} up to the last layer"
    draws, why = real(row["reached"]), str(row["reason"] or "")
    often = "" if draws is None else f"; it does in {number(100 * draws)}% of draws of the rows"
    if row["onset"] is None:
        if draws is None and why and not why.startswith("onset: "):
            return f"no onset can be given: {why}."
        words = keeps.replace("keeps", "does not keep") + (f" ({bound})" if bound else "")
        return f"in these rows {words}{often or '; there is no interval'}."
    start = f"{keeps} from layer {row['onset']} on"
    inner = [bound] if bound else []
    if draws is None and row["onset_high"] is None:
        missing = [part for part in why.split("; ") if part.startswith("interval: ")]
        return f"in these rows {start} ({'; '.join([*inner, 'no ' + missing[0] if missing else 'no interval'])})."
    if row["onset_high"] is None or (draws is not None and draws < 0.975):
        low = "" if row["onset_low"] is None else f"; not before layer {row['onset_low']} in 97.5% of them"
        inner = [f" ({bound})"] if bound else []
        return f"in these rows {start}{''.join(inner)}{often}{low}: that there is an onset is not certain."
    if row["onset_low"] == row["onset_high"]:
        inner.append(f"layer {row['onset_low']} in at least 95% of draws of the rows")
    else:
        inner.append(f"95% interval {row['onset_low']} to {row['onset_high']}")
    return f"{start} ({'; '.join(inner)})."


def aligned_words(rows: Sequence[Row]) -> list[str]:
    """Where the first component lies along the difference, held against the null and against the expectation."""
    known = [r for r in rows if real(r["pc1_cos"]) is not None]
    if not known:
        return [f"no cosine of the first component and the difference is defined{why_most(rows)}."] if rows else []
    sides: dict[str, list[Row]] = {"above": [], "by p": [], "below": [], "unsure": []}
    for r in known:
        ends, null, p = _ends(r, "pc1_cos"), real(r["pc1_cos_null"]), real(r["pc1_p"])
        if null is not None and ends is not None:
            sides["above" if ends[0] > null else "below" if ends[1] <= null else "unsure"].append(r)
        else:
            sides["by p" if p is not None and p <= 0.05 else "unsure"].append(r)
    told = {
        "above": "above 95% of random relabellings {} (whole 95% interval)",
        "by p": "above 95% of random relabellings {} (p at most 0.05; no interval)",
        "below": "not above them {}",
        "unsure": "{} this cannot be told",
    }
    parts = [told[side].format(at_layers(found)) for side, found in sides.items() if found]
    out = [f"|cos| of the first component and the difference is {'; '.join(parts)}."]
    if len(sides["unsure"]) == len(known):
        out = [f"whether the first component lies along the difference cannot be told {at_layers(known)}."]
    elif len(sides["below"]) == len(known):
        out = ["|cos| of the first component and the difference is nowhere above 95% of random relabellings."]
    inner = [r for r in known if r["stream"] != "final_norm"] or known
    best = max(inner, key=lambda r: (float(r["pc1_cos"]), r["layer"]))
    words = f"the highest |cos| is {ranged(best, 'pc1_cos')}, {spot(best)}"
    beside = [
        f"{name} {number(real(best[key]))}"
        for key, name in (
            ("pc1_cos_expected", "two Gaussian clouds give"),
            ("pc1_cos_null", "95% of relabellings stay below"),
        )
        if real(best[key]) is not None
    ]
    out.append(words + (f", where {joined(beside)}." if beside else "."))
    return out + _expected_words(known)


def _expected_words(known: Sequence[Row]) -> list[str]:
    out = []
    for side, words in ((0, "above"), (1, "below")):
        far = []
        for r in known:
            ends, expected = _ends(r, "pc1_cos"), real(r["pc1_cos_expected"])
            if ends and expected is not None and (ends[0] > expected if side == 0 else ends[1] < expected):
                far.append(r)
        if far:
            out.append(
                f"it is {words} what two Gaussian clouds of the measured spread would give {at_layers(far)} (whole "
                "interval): the rows are not spread there as that model has it."
            )
    return out


def carried_words(rows: Sequence[Row]) -> list[str]:
    """Where a later component carries more of the difference than the first, by intervals that lie apart.

    Args:
        rows: of `COMPONENTS`, of one model, contrast and position.
    """
    found = []
    places: dict[tuple[str, int], list[Row]] = {}
    for r in rows:
        if r["pooling"] == "balanced":
            places.setdefault((r["hook"], r["layer"]), []).append(r)
    for mine in places.values():
        first = [e for r in mine if r["component"] == 1 and (e := _ends(r, "cos")) is not None]
        rivals = [r for r in mine if r["component"] > 1 and _ends(r, "cos") is not None]
        rivals = [r for r in rivals if first and _above(r, first[0][1]) and _above(r, real(r["cos_null"]))]
        if rivals:
            best = max(rivals, key=lambda r: r["cos"])
            found.append((best, next(r for r in mine if r["component"] == 1)))
    if not found:
        return []
    best, one = max(found, key=lambda f: f[0]["cos"] - f[1]["cos"])
    return [
        f"{at_layers(r for r, _ in found)} a later component carries more of the difference than the first, which "
        f"something else has taken (intervals apart); {spot(best)} it is component {best['component']}, with |cos| "
        f"{ranged(best, 'cos')} against {ranged(one, 'cos')}."
    ]


def _above(row: Row, bound: float | None) -> bool:
    ends = _ends(row, "cos")
    return bound is None or (ends is not None and ends[0] > bound)


def overlap_words(rows: Sequence[Row]) -> list[str]:
    """Which layers have more in common than the direction, against the permutation null."""
    known = [r for r in rows if real(r["overlap"]) is not None and real(r["null_high"]) is not None]
    known = [r for r in known if "final_norm" not in (r["stream"], r["other_stream"]) and r["hook"] != r["other_hook"]]
    if not known:
        if not rows:
            return []
        why = why_most(rows)
        return [f"what layers share besides the direction is not defined{why or ' (no two layers to compare)'}."]
    more = [r for r in known if r["overlap"] > r["null_high"]]
    k = max(int(r["k"]) for r in known)
    start = (
        f"with the direction taken out, {len(more)} of {len(known)} pairs of layers share more of their leading {k} "
    )
    words = start + "directions than the 95th percentile of permuted ones (1 in 20 would by chance)"
    if not more:
        return [words + "."]
    near = [r for r in known if abs(r["layer"] - r["other_layer"]) == 1]
    close = sum(r["overlap"] > r["null_high"] for r in near)
    far = max(more, key=lambda r: abs(r["layer"] - r["other_layer"]))
    words += f"; of neighbours, {close} of {len(near)}" if near else ""
    words += (
        f"; farthest apart, layers {min(far['layer'], far['other_layer'])} and {max(far['layer'], far['other_layer'])}"
    )
    return [words + f", with {number(far['overlap'])} dimensions ({number(real(far['expected']))} expected)."]


def reasons(rows: Iterable[Row]) -> list[str]:
    """Why values of rows are null, cause by cause.

    >>> reasons([{"reason": "a: no rows; b: no spread"}, {"reason": None}])
    ['a: no rows', 'b: no spread']
    """
    return [part for r in rows if r["reason"] for part in str(r["reason"]).split("; ")]


def why_most(rows: Sequence[Row]) -> str:
    """The commonest reason, in brackets; those of the block's updates and of intervals say nothing of the rest.

    >>> why_most([{"reason": "update: no layer before; all: no rows"}]), why_most([])
    (' (all: no rows)', '')
    """
    found = [part for part in reasons(rows) if not part.startswith(("update", "interval"))]
    return f" ({max(dict.fromkeys(found), key=found.count)})" if found else ""


# --- causes ------------------------------------------------------------------------------------------------------


def cause_words(rows: Sequence[Row]) -> list[str]:
    """What ablation and addition of one direction do, held against controls.

    Args:
        rows: of `CAUSES`, of one model, contrast, layer and position.
    """
    out = []
    kinds = [k for k in INTERVENTIONS if k != "none"]
    for on in ("positive", "negative"):
        mine = [r for r in rows if r["on"] == on and real(r["score"]) is not None]
        plain = [r for r in mine if r["intervention"] == "none"]
        for kind in kinds:
            done = [r for r in mine if r["intervention"] == kind and r["direction"] == "difference"]
            # Taking out is for inputs that have it, adding for those that have not; the rest is in the table.
            if not done or (kind == "add_layer") != (on == "negative"):
                continue
            start = f" from {ranged(plain[0], 'score')}" if plain else ""
            words = f"{INTERVENTIONS[kind]}, it takes the score on {on} inputs{start} to {ranged(done[0], 'score')}"
            controls = [r for r in mine if r["intervention"] == kind and r["direction"] not in ("difference", None)]
            out.append(words + _against(done[0], controls) + ".")
    return out


def _against(done: Row, controls: Sequence[Row]) -> str:
    groups: dict[str, list[str]] = {"below": [], "above": [], "not told apart from": [], "not held against": []}
    for r in controls:
        mine, other = _ends(done, "score"), _ends(r, "score")
        side = (
            "not held against" if mine is None or other is None
            else "below" if mine[1] < other[0] else "above" if mine[0] > other[1] else "not told apart from"
        )  # fmt: skip
        groups[side].append(f"{_control(str(r['direction']))} ({ranged(r, 'score')})")
    parts = [f"{side} {joined(names)}" for side, names in groups.items() if names]
    return f": {'; '.join(parts)}" if parts else ", with no control beside it"


def _control(kind: str) -> str:
    words = {"random": "a random direction of the same length", "shuffled": "a direction of relabelled rows"}
    words["other_layer"] = "another layer's difference"
    return words.get(kind, direction_words(kind))


VERDICTS = {
    "used": "used: it tells the classes apart, and taking it out or adding it goes far enough, beyond random "
    "directions",
    "present_not_used": "present, not used: it tells the classes apart, and neither taking it out nor adding it moves "
    "the output far enough",
    "absent": "absent: it does not tell the classes apart, and neither taking it out nor adding it moves the output "
    "far enough",
    "null": "cannot tell",
}


def verdict_words(rows: Sequence[Row], layers: pl.DataFrame) -> list[str]:
    """Each verdict once, with the directions that it is on.

    Args:
        rows: of `CAUSES`, of one model and contrast.
        layers: rows of `LAYERS`, for how well the classes can be told apart.
    """
    spots: dict[tuple[Any, Any], list[Row]] = {}
    for r in rows:
        if r["direction"] == "difference":
            spots.setdefault((r["layer"], r["position"]), []).append(r)
    found: dict[str, list[str]] = {}
    for (layer, position), mine in spots.items():
        given = list(dict.fromkeys(str(r["verdict"]) for r in mine if r["verdict"] not in (None, "null")))
        # Rows of interventions that this network has no place for say nothing of the direction.
        why = why_most([r for r in mine if real(r["score"]) is not None] or mine)
        if not given and not why:
            continue
        name = f"layer {layer}, {place(position)}"
        for verdict in given or ["null"]:
            more = _decodable(mine[0], layers) if verdict == "present_not_used" else why if verdict == "null" else ""
            found.setdefault(verdict, []).append(name + more)
    out = []
    for verdict, names in found.items():
        head, _, rest = VERDICTS.get(verdict, verdict).partition(": ")
        out.append(f"verdict on {'; '.join(names)}: {head}{f' ({rest})' if rest else ''}.")
    return out


def _decodable(row: Row, layers: pl.DataFrame) -> str:
    for r in trunk(layers).rows(named=True):
        same = all(r[key] == row[key] for key in ("model", "contrast", "layer", "position"))
        if same and r["stream"] != "final_norm" and real(r["probe_d_prime"]) is not None:
            return f", d′ {number(r['probe_d_prime'])}"
    return ""


# --- all together ------------------------------------------------------------------------------------------------


#: A heading and the sentences below it.
Told = tuple[str, list[str]]


def found_words(tables: Tables) -> tuple[list[Told], list[Told]]:
    """What was found: at each model's last position and by intervention; and, apart, at the other positions."""
    if tables.layers.is_empty():
        return [("", ["Nothing was measured: the tables have no rows."])], []
    lead: list[Told] = []
    more: list[Told] = []
    rows = trunk(tables.layers)
    for (model, contrast), mine in by(rows, "model", "contrast").items():
        positions = mine["position"].unique(maintain_order=True).to_list()[::-1]
        for i, position in enumerate(positions):
            head = who(tables.layers, model, contrast, position)
            (lead if i == 0 else more).append((head, _position_words(tables, (model, contrast, position))))
        lead += _cause_lead(tables, model, contrast)
    gone = rows["pc1_cos"].null_count()
    if gone:
        words = f"at {gone} of {rows.height} places and positions no |cos| is defined; why is told below."
        lead.append(("", [words]))
    # Names of models and contrasts keep their first letter.
    named = any(tables.layers[c].n_unique() > 1 for c in ("model", "contrast"))
    lead, more = (
        [(head if named else _capital(head), [_capital(w) for w in words]) for head, words in told]
        for told in (lead, more)
    )
    return lead, more


def _position_words(tables: Tables, key: tuple[Any, Any, Any]) -> list[str]:
    def mine(frame: pl.DataFrame) -> list[dict[str, Any]]:
        return [r for r in frame.rows(named=True) if (r["model"], r["contrast"], r["position"]) == key]

    out = [onset_words(r) for r in mine(tables.onsets)]
    out += aligned_words(mine(trunk(tables.layers)))
    out += carried_words(mine(trunk(tables.components)))
    kept = set(trunk(tables.layers)["stream"].to_list())
    return out + overlap_words([r for r in mine(tables.overlaps) if {r["stream"], r["other_stream"]} <= kept])


#: Directions whose interventions are told in sentences; the table has all.
_MOST_TOLD = 3


def _cause_lead(tables: Tables, model: object, contrast: object) -> list[Told]:
    if tables.causes is None:
        return []
    rows = [r for r in tables.causes.rows(named=True) if (r["model"], r["contrast"]) == (model, contrast)]
    spots = dict.fromkeys((r["layer"], r["position"]) for r in rows if r["direction"] == "difference")
    name = who(tables.layers, model, contrast)
    out: list[Told] = []
    for layer, position in list(spots)[:_MOST_TOLD]:
        told = [r for r in rows if (r["layer"], r["position"]) == (layer, position) or r["intervention"] == "none"]
        head = ", ".join(p for p in (name, f"the direction of layer {layer}, {place(position)}") if p)
        out.append((head, cause_words(told)))
    words = verdict_words(rows, tables.layers)
    if len(spots) > _MOST_TOLD:
        words.append(f"{len(spots) - _MOST_TOLD} more directions were tried; the table of causes has them.")
    if out and words:
        out[-1][1].extend(words)
    return out


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def difference_words(compared: pl.DataFrame | None) -> list[str]:
    """Which quantities two models differ in, by the interval of the difference.

    Args:
        compared: rows of `compare.COMPARISON`, or None.
    """
    if compared is None or compared.is_empty():
        return []
    out = []
    many = [c for c in ("first_model", "second_model", "contrast") if compared[c].n_unique() > 1]
    keys = ("first_model", "second_model", "contrast", "position")
    for (first, second, contrast, position), mine in by(trunk(compared), *keys).items():
        where = place(position)
        where += f", {second} less {first}" if {"first_model", "second_model"} & set(many) else ""
        where += f", {contrast}" if "contrast" in many else ""
        for (quantity,), part in by(mine, "quantity").items():
            rows = [r for r in part.rows(named=True) if _ends(r, "difference") is not None]
            if rows:
                out.append(f"{quantity}, {where}: {_difference(rows)}")
        turned = mine.unique(["hook", "second_hook"], maintain_order=True).rows(named=True)
        turned = [r for r in turned if real(r["direction_cos"]) is not None]
        if turned:
            low, high = (f(turned, key=lambda r: r["direction_cos"]) for f in (min, max))
            out.append(
                f"The directions of the two models, {where}: their cosine is between {number(low['direction_cos'])}, "
                f"{spot(low)}, and {number(high['direction_cos'])}, {spot(high)} (no intervals)."
            )
    return out


def _difference(rows: Sequence[Row]) -> str:
    apart = [r for r in rows if not _holds_zero(r)]
    if not apart:
        return f"no 95% interval of the difference leaves out 0, over {len(rows)} places."
    most = max(apart, key=lambda r: abs(r["difference"]))
    return (
        f"the 95% interval of the difference (second less first) leaves out 0 {at_layers(apart)} ({len(apart)} of "
        f"{len(rows)} places; 1 in 20 would by chance); the largest is {ranged(most, 'difference')}, {spot(most)}."
    )


def _holds_zero(row: Row) -> bool:
    ends = _ends(row, "difference")
    return ends is None or ends[0] <= 0 <= ends[1]


#: A position and a layer.
Spot = tuple[int | str, int]

# --- saved directions --------------------------------------------------------------------------------------------


def saved_words(
    norms: pl.DataFrame, adjacent: pl.DataFrame, evaluations: pl.DataFrame | None, selected: Spot | None
) -> list[str]:
    """What saved directions show; single values, so that nothing is said of what other rows would give."""
    out = []
    norms, adjacent = without_rounding(norms, adjacent)
    known = [r for r in norms.rows(named=True) if real(r["norm"]) is not None]
    if known:
        low, high = min(known, key=lambda r: r["norm"]), max(known, key=lambda r: r["norm"])
        gone = norms.height - len(known)
        words = f"{norms.height} directions" + (f", {gone} of them zero but for rounding" if gone else "")
        out.append(
            f"{words}. The shortest has length {number(low['norm'])} ({_saved_place(low)}), the longest "
            f"{number(high['norm'])} ({_saved_place(high)})."
        )
    else:
        out.append("No direction has a length.")
    pairs = [r for r in adjacent.rows(named=True) if real(r["cos"]) is not None]
    if pairs:
        low, high = min(pairs, key=lambda r: r["cos"]), max(pairs, key=lambda r: r["cos"])
        out.append(
            f"From one layer to the next, the cosine is between {number(low['cos'])} ({_saved_place(low)}) and "
            f"{number(high['cos'])} ({_saved_place(high)})."
        )
    return out + _selection_words(evaluations, selected)


def _saved_place(row: Mapping[str, Any]) -> str:
    return f"{place(row['position'])}, layer {row['layer']}"


def _selection_words(evaluations: pl.DataFrame | None, selected: Spot | None) -> list[str]:
    if evaluations is None or evaluations.is_empty():
        return []
    rows = evaluations.rows(named=True)
    kept = [r for r in rows if r["kept"]]
    count = (
        f"Of {len(rows)} directions that were tried, {len(kept)} {'is' if len(kept) == 1 else 'are'} kept by the rule"
    )
    chosen = [r for r in rows if selected is not None and (r["position"], r["layer"]) == tuple(selected)]
    if not chosen:
        return [count + "; none is selected."]
    scores = ((k, real(chosen[0][k])) for k in ("refusal_score", "steering_score", "kl_div_score"))
    refusal, steering, kl = (number(v) for _, v in scores)
    words = f"{count}; selected is {_saved_place(chosen[0])}: ablated, the refusal score is {refusal}"
    values = [v for r in kept if (v := real(r["refusal_score"])) is not None]
    if chosen[0]["kept"] and values and chosen[0]["refusal_score"] == min(values):
        words += ", the lowest of those kept"
    return [f"{words}; added, {steering}; divergence on harmless inputs {kl} nats."]
