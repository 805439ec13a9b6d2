"""The conjectures, held against rows: which measures go together over kinds of agent, and which do not.

One point is one kind of agent in one world with one seed: the mean of a measure over its goals, protocols and doses.
Measures are named by the probe and metric that give them, so that rows of a study that lacks some of them leave those
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from retarget.analysis.correlations import Correlation, rank_correlation
from retarget.analysis.summary import AgentName, agent_names
from retarget.errors import RetargetError

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Measure:
    """One column of the comparison.

    Attributes:
        name: what a reader sees, unique.
        probe, metric: where it comes from.
        unit: of its values.
        words: what it is, in a few words.
        sign: +1 where more of it is expected of what is cheap to retarget, -1 where less, 0 where nothing is said.
        source: `ours`, `behaviour` (nothing but behaviour enters) or `others` (proposed elsewhere).
        doses: which doses count: `any`, `positive` (the undisturbed agent is left out) or `zero`.
        skip: protocols with this text in them do not count.
    """

    name: str
    probe: str
    metric: str
    unit: str
    words: str
    sign: int
    source: str
    doses: str = "any"
    skip: str = ""


MEASURES: tuple[Measure, ...] = (
    Measure(
        "retargetability", "retargetability", "retargetability", "log2",
        "length of the change of behaviour over that of the edit that causes it", 1, "ours",
    ),
    Measure(
        "shared reasoning", "decomposition", "shared", "1",
        "share of the agent that goals do not pay for again", 1, "ours",
    ),
    Measure(
        "slope over table", "decomposition", "slope_over_table", "log2",
        "what a further goal costs a table, over what it costs the agent", 1, "ours",
    ),
    Measure(
        "goal coherence", "goal_gradient", "goal_coherence", "1",
        "how well the gradient of a change of goal agrees between disjoint sets of states", 1, "ours",
    ),
    Measure("map gain", "goal_map", "map_gain", "log2", "single edits over the map that gives them all", 1, "ours"),
    Measure(
        "narrowness", "narrowness", "narrowness", "log2",
        "what a change in one region and nowhere else costs a table, over what it costs the agent", -1, "ours", "zero",
    ),
    Measure(
        "least collateral", "narrowness", "least_collateral", "bit",
        "least change of behaviour elsewhere by any edit found that changes one region", 1, "ours",
    ),
    Measure(
        "robustness", "robustness", "robustness", "1", "competence on the own goal over every start", 0, "behaviour"
    ),
    Measure(
        "OOD competence", "out_of_distribution", "ood_competence", "1",
        "competence on the own goal where training never went, over regimes and strengths", 1, "ours", "positive",
    ),
    Measure(
        "weight noise", "weights", "noise_competence", "1", "competence on the own goal under noise in the parts", 0,
        "ours", "positive",
    ),
    Measure(
        "goal-directedness", "goal_directedness", "meg_known", "nat",
        "maximum-entropy goal-directedness toward the own goal (MacDermott et al. 2024)", 0, "others",
    ),
    Measure(
        "goal orbit", "orbit_retargetability", "orbit_reached", "1",
        "share of the goal's orbit that its own parameter reaches, without a search (Turner and Tadepalli 2022)", 0,
        "others", "any", "retrained",
    ),
    Measure(
        "adaptation gap", "adaptation", "loca_gap", "1",
        "what a local change of the world leaves unlearned elsewhere (van Seijen et al. 2020)", 0, "others",
    ),
    Measure(
        "intrinsic dimension", "intrinsic_dimension", "intrinsic_dimension", "directions",
        "random directions that it takes to be retargeted (Li et al. 2018)", 0, "others",
    ),
    Measure(
        "prequential ratio", "prequential", "prequential_ratio", "1",
        "online code length of the new goal's behaviour, over that of a blank learner (Blier and Ollivier 2018)", 0,
        "others",
    ),
)  # fmt: skip

#: Measures that share data by construction: a correlation between them is no news.
ENTANGLED: frozenset[frozenset[str]] = frozenset(
    {
        frozenset({"retargetability", "slope over table"}),
        frozenset({"shared reasoning", "slope over table"}),
        frozenset({"retargetability", "map gain"}),
        frozenset({"robustness", "OOD competence"}),
    }
)
#: Probes whose rows are what the conjectures are about.
_NEW = ("decomposition", "goal_gradient", "goal_map", "narrowness", "goal_directedness", "orbit_retargetability",
        "adaptation", "intrinsic_dimension", "out_of_distribution", "filtered", "weights")  # fmt: skip
KEYS = ("agent_id", "agent", "world_id", "world", "seed")


@dataclass(frozen=True)
class Points:
    """Measures of kinds of agent, world by world and seed by seed.

    Attributes:
        names: every agent, in the order of tables.
        measures: those that have a value somewhere, in their order.
        values: of each (agent id, agent, world id, world, seed) the measures that there are, by name.
    """

    names: tuple[AgentName, ...]
    measures: tuple[Measure, ...]
    values: dict[tuple[Any, ...], dict[str, float]]

    def of(self, name: AgentName, measure: str) -> list[float]:
        """Values of one agent, over worlds and seeds."""
        mine = (v for k, v in self.values.items() if k[:2] == (name.agent_id, name.label))
        return [v[measure] for v in mine if measure in v]

    def shared(self, measures: Sequence[str]) -> list[tuple[tuple[Any, ...], list[float]]]:
        """Points that have all of some measures."""
        return [(k, [v[m] for m in measures]) for k, v in self.values.items() if all(m in v for m in measures)]

    def has(self, measure: str) -> bool:
        return any(m.name == measure for m in self.measures)


def rows_of(results: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """Rows of one measure, whatever their status, at the doses and under the protocols that count."""
    import polars as pl

    rows = results.filter((pl.col("probe") == measure.probe) & (pl.col("metric") == measure.metric))
    if measure.skip:
        rows = rows.filter(~pl.col("protocol").fill_null("").str.contains(measure.skip, literal=True))
    if measure.doses == "any":
        return rows
    return rows.filter(pl.col("dose") > 0 if measure.doses == "positive" else pl.col("dose") == 0)


def points_of(results: pl.DataFrame) -> Points:
    """Points from rows of `RESULT_COLUMNS`: rows that are ok, averaged over goals, then over protocols and doses."""
    import polars as pl

    values: dict[tuple[Any, ...], dict[str, float]] = {}
    found = []
    for measure in MEASURES:
        rows = rows_of(results, measure).filter(pl.col("status") == "ok")
        if rows.is_empty():
            continue
        found.append(measure)
        # sorted first, so that the order of the rows does not enter through rounding
        means = (
            rows.sort("value").group_by([*KEYS, "protocol", "dose"], maintain_order=True).agg(pl.col("value").mean())
        )
        means = means.sort([*KEYS, "value"]).group_by(KEYS, maintain_order=True).agg(pl.col("value").mean())
        for *key, value in means.rows():
            values.setdefault(tuple(key), {})[measure.name] = value
    return Points(agent_names(results), tuple(found), {k: values[k] for k in sorted(values)})


def present(results: pl.DataFrame) -> bool:
    """Whether rows hold what the conjectures are about, of more than one agent."""
    import polars as pl

    mine = results.filter(pl.col("probe").is_in(list(_NEW)) & (pl.col("status") == "ok"))
    return mine.select("agent_id", "agent").unique().height > 1


@dataclass(frozen=True)
class Pair:
    """Two measures, and how they go together.

    Attributes:
        first, second: their names.
        plain, within, partial: rank correlations: of all points, of ranks within each world, and with robustness
            held fixed; None where there is none, with the reason.
        entangled: whether the two share data by construction.
    """

    first: str
    second: str
    plain: Correlation | None
    within: Correlation | None
    partial: Correlation | None
    reason: str
    partial_reason: str
    entangled: bool


def pairs_of(points: Points) -> tuple[Pair, ...]:
    """Every pair of measures, in their order."""
    names = [m.name for m in points.measures]
    return tuple(pair_of(points, a, b) for a, b in combinations(names, 2))


def pair_of(points: Points, first: str, second: str) -> Pair:
    """How two measures go together."""
    plain, reason = correlation(points, first, second)
    within, _ = correlation(points, first, second, within=True)
    partial, why = None, "robustness is one of the two, or was not measured"
    if points.has("robustness") and "robustness" not in (first, second):
        partial, why = correlation(points, first, second, fixed="robustness")
    return Pair(first, second, plain, within, partial, reason, why, frozenset({first, second}) in ENTANGLED)


def correlation(
    points: Points, first: str, second: str, *, fixed: str | None = None, within: bool = False
) -> tuple[Correlation | None, str]:
    """A rank correlation over points that have both measures (and the one held fixed), or why there is none."""
    shared = points.shared([first, second, *([fixed] if fixed else [])])
    columns = list(zip(*(v for _, v in shared), strict=True)) if shared else [(), (), ()]
    try:
        found = rank_correlation(
            columns[0],
            columns[1],
            kinds=[k[:2] for k, _ in shared],
            fixed=columns[2] if fixed else None,
            strata=[k[2:4] for k, _ in shared] if within else None,
        )
    except RetargetError as error:
        return None, str(error)
    return found, ""
