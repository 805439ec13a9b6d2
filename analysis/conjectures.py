"""The conjectures, held against rows: which measures go together over kinds of agent, and which do not.

One point is one kind of agent in one world with one seed: the mean of a measure over its goals, protocols and doses.
Kinds whose points are the same but for rounding are one kind, however many names they go by.
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
        only: where it is given, only protocols with this text in them count.
        common: whether a protocol and dose counts only where every agent of the world that has the measure has it.
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
    only: str = ""
    common: bool = False


#: What a protocol says where training went everywhere and a part of the world stands for what it left out.
NOMINAL = "(nominal)"
#: Points of two kinds that agree to within this share of each measure's range are points of one.
ALIKE = 0.02

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
        "competence on the own goal where training never went, over the regimes and strengths that all agents have", 1,
        "ours", "positive", NOMINAL, common=True,
    ),
    Measure(
        "redrawn cells", "weights", "noise_competence", "1", "competence on the own goal with cells drawn anew", 0,
        "ours", "positive", only="redrawn",
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
        "adapted elsewhere", "adaptation", "global_competence", "1",
        "competence elsewhere after a local change of reward (van Seijen et al. 2020)", 0, "others",
        only="a reward that dwarfs",
    ),
    Measure(
        "intrinsic dimension", "intrinsic_dimension", "intrinsic_dimension", "directions",
        "random directions that it takes to be retargeted (Li et al. 2018)", 0, "others", only="where the agent stands",
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
        frozenset({"retargetability", "shared reasoning"}),
        frozenset({"retargetability", "map gain"}),
        frozenset({"slope over table", "map gain"}),
        frozenset({"shared reasoning", "map gain"}),
        frozenset({"retargetability", "narrowness"}),
        frozenset({"narrowness", "least collateral"}),
        frozenset({"robustness", "OOD competence"}),
    }
)
#: Correlations that the conjectures are about: two measures, and what was expected.
EXPECTED: tuple[tuple[str, str, int], ...] = (
    ("retargetability", "slope over table", 1),
    ("retargetability", "shared reasoning", 1),
    ("retargetability", "goal coherence", 1),
    ("slope over table", "goal coherence", 1),
    ("retargetability", "map gain", 1),
    ("goal coherence", "map gain", 1),
    ("retargetability", "narrowness", -1),
    ("retargetability", "least collateral", 1),
    ("retargetability", "OOD competence", 1),
)
#: Those of them that are judged: the two share no data.
JUDGED = tuple(e for e in EXPECTED if frozenset(e[:2]) not in ENTANGLED)
#: 0 for every table of actions, by construction: no edit of such a table does more than it writes.
_ZERO_IN_TABLES = ("retargetability", "goal coherence")
#: Probes whose rows are what the conjectures are about.
_NEW = ("decomposition", "goal_gradient", "goal_map", "narrowness", "goal_directedness", "orbit_retargetability",
        "adaptation", "intrinsic_dimension", "out_of_distribution", "filtered", "weights")  # fmt: skip
_ROUNDING = 1e-9
KEYS = ("agent_id", "agent", "world_id", "world", "seed")


@dataclass(frozen=True)
class Points:
    """Measures of kinds of agent, world by world and seed by seed.

    Attributes:
        names: every agent, in the order of tables.
        measures: those that have a value somewhere, under whatever protocol, in their order.
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

    def only(self, names: Sequence[AgentName]) -> Points:
        """Points of some of the agents."""
        keys = {(n.agent_id, n.label) for n in names}
        return Points(tuple(names), self.measures, {k: v for k, v in self.values.items() if k[:2] in keys})

    def tables(self) -> tuple[AgentName, ...]:
        """Agents that are 0 by construction: every value of retargetability and of goal coherence that they have is."""
        out = []
        for name in self.names:
            values = [v for m in _ZERO_IN_TABLES for v in self.of(name, m)]
            if values and max(map(abs, values)) <= _ROUNDING:
                out.append(name)
        return tuple(out)


def distinct(results: pl.DataFrame) -> pl.DataFrame:
    """Rows without those that are another one again: a run that measures the same twice knows no more for it."""
    columns = [c for c in results.columns if c != "cell"]
    return results.unique(subset=columns, keep="first", maintain_order=True)


def families(points: Points) -> tuple[tuple[AgentName, ...], ...]:
    """Agents by kind: those that differ in no measure that verdicts are about, in no world and with no seed.

    Two agents agree where every such measure that both have differs by at most `ALIKE` of its range over all points,
    in each world with each seed, and both have at least two of them. Each member of a family agrees with each other.
    Equal behaviour alone makes no family: an agent and the table compiled from it act alike, and that their insides
    differ is what is measured.
    """
    judged = {m for a, b, _ in JUDGED for m in (a, b)}
    seen: dict[str, list[float]] = {}
    by_agent: dict[tuple[str, str], dict[tuple[Any, ...], float]] = {}
    for key, values in points.values.items():
        for measure in judged & values.keys():
            seen.setdefault(measure, []).append(values[measure])
            by_agent.setdefault(key[:2], {})[(*key[2:], measure)] = values[measure]
    most = {m: ALIKE * (max(v) - min(v)) for m, v in seen.items()}

    def agree(one: AgentName, other: AgentName) -> bool:
        a, b = (by_agent.get((n.agent_id, n.label), {}) for n in (one, other))
        both = a.keys() & b.keys()
        return len({k[-1] for k in both}) > 1 and all(abs(a[k] - b[k]) <= most[k[-1]] + _ROUNDING for k in both)

    out: list[list[AgentName]] = []
    for name in points.names:
        home = next((f for f in out if all(agree(name, other) for other in f)), None)
        if home is None:
            out.append([name])
        else:
            home.append(name)
    return tuple(map(tuple, out))


def merged(points: Points) -> Points:
    """One agent a family, under the name of its first: its points are the means of those of its members."""
    gathered: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    found = families(points)
    first = {(n.agent_id, n.label): (f[0].agent_id, f[0].label) for f in found for n in f}
    for key, values in points.values.items():
        into = gathered.setdefault((*first[key[:2]], *key[2:]), {})
        for measure, value in values.items():
            into.setdefault(measure, []).append(value)
    means = {k: {m: sum(sorted(v)) / len(v) for m, v in gathered[k].items()} for k in sorted(gathered)}
    return Points(tuple(f[0] for f in found), points.measures, means)


def rows_of(results: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """Rows of one measure, whatever their status, at the doses and under the protocols that count."""
    import polars as pl

    rows = results.filter((pl.col("probe") == measure.probe) & (pl.col("metric") == measure.metric))
    how = pl.col("protocol").fill_null("")
    if measure.skip:
        rows = rows.filter(~how.str.contains(measure.skip, literal=True))
    if measure.only:
        rows = rows.filter(how.str.contains(measure.only, literal=True))
    if measure.doses == "any":
        return rows
    return rows.filter(pl.col("dose") > 0 if measure.doses == "positive" else pl.col("dose") == 0)


def _shared_protocols(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows whose protocol and dose every agent of the same world has; what a protocol says after `;` is the agent's."""
    import polars as pl

    world = ("world_id", "world")
    rows = rows.with_columns(
        _who=pl.concat_str("agent_id", "agent", separator=": "),
        _how=pl.col("protocol").fill_null("").str.split(";").list.first(),
    )
    rows = rows.with_columns(
        _all=pl.col("_who").n_unique().over(world), _have=pl.col("_who").n_unique().over(*world, "_how", "dose")
    )
    return rows.filter(pl.col("_have") == pl.col("_all")).drop("_who", "_how", "_all", "_have")


def points_of(results: pl.DataFrame) -> Points:
    """Points from rows of `RESULT_COLUMNS`: rows that are ok, averaged over goals, then over protocols and doses."""
    import polars as pl

    results = distinct(results)
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    found = []
    for measure in MEASURES:
        any_ = results.filter((pl.col("probe") == measure.probe) & (pl.col("metric") == measure.metric))
        if any_.filter(pl.col("status") == "ok").is_empty():
            continue
        found.append(measure)
        rows = rows_of(any_, measure).filter(pl.col("status") == "ok")
        if measure.common:
            rows = _shared_protocols(rows)
        # sorted first, so that the order of the rows does not enter through rounding
        means = (
            rows.sort("value").group_by([*KEYS, "protocol", "dose"], maintain_order=True).agg(pl.col("value").mean())
        )
        means = means.sort([*KEYS, "value"]).group_by(KEYS, maintain_order=True).agg(pl.col("value").mean())
        for *key, value in means.rows():
            values.setdefault(tuple(key), {})[measure.name] = value
    return Points(agent_names(results), tuple(found), {k: values[k] for k in sorted(values)})


def _about(results: pl.DataFrame) -> int:
    """Number of agents of which rows hold what the conjectures are about."""
    import polars as pl

    mine = results.filter(pl.col("probe").is_in(list(_NEW)) & (pl.col("status") == "ok"))
    return mine.select("agent_id", "agent").unique().height


def about_conjectures(results: pl.DataFrame) -> bool:
    """Whether rows hold what the conjectures are about."""
    return _about(results) > 0


def present(results: pl.DataFrame) -> bool:
    """Whether rows hold what the conjectures are about, of more than one agent."""
    return _about(results) > 1


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
    """Every pair of measures, in their order; agents of one family count as one."""
    points = merged(points)
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
