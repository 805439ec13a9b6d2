"""What a study is, and how it is read from a TOML file."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from retarget.catalogue import AgentSpec, check_heard, check_spec, check_together
from retarget.digest import canonical_json
from retarget.errors import RetargetError, StudyError, unknown
from retarget.study.known import check_option, check_world_id, check_world_option, probe_defaults, takes_lists
from retarget.study.lines import KeyPath, key_lines, line_of
from retarget.world import WorldSpec

if TYPE_CHECKING:
    from retarget.probe import Probe

#: A study larger than this is no study: it would have to be read whole before the first error.
MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOP = ("name", "seeds", "goal_pairs", "gamma", "level", "worlds", "agents", "probes")
_INT64 = 1 << 63
T = TypeVar("T")


@dataclass(frozen=True)
class ProbeSpec:
    """What rebuilds a probe: its id and options; and the ids of the worlds that a study asks it in (None for all).

    >>> ProbeSpec.of("robustness").as_dict()
    {'id': 'robustness'}
    """

    id: str
    options: tuple[tuple[str, object], ...] = ()
    worlds: tuple[str, ...] | None = None

    @classmethod
    def of(cls, id: str, **options: object) -> ProbeSpec:
        return cls(id, tuple(sorted(options.items())))

    @property
    def label(self) -> str:
        """What a reader sees."""
        inside = ", ".join(f"{k}={v}" for k, v in self.options)
        return f"{self.id}({inside})" if inside else self.id

    def as_dict(self) -> dict[str, object]:
        only: dict[str, object] = {} if self.worlds is None else {"worlds": list(self.worlds)}
        return {"id": self.id, **dict(self.options), **only}


@dataclass(frozen=True)
class StudyAgent:
    """An agent of a study, and the ids of the worlds that it is run in (None for all of them)."""

    spec: AgentSpec
    worlds: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Study:
    """What is measured: every probe on every agent, in every world, for every seed and pair of goals.

    Attributes:
        name: names the run's folder; letters, digits, `.`, `_`, `-`.
        seeds: one run of everything for each.
        worlds: lists of sizes are already fanned out.
        agents: kinds with options, compiled or not.
        probes: what is measured on each.
        goal_pairs: pairs (A, B) of goals for each world and seed.
        gamma: discount of competence, in (0, 1).
        level: required competence on B as a share of the agent's own on A, in (0, 1].
    """

    name: str
    seeds: tuple[int, ...]
    worlds: tuple[WorldSpec, ...]
    agents: tuple[StudyAgent, ...]
    probes: tuple[ProbeSpec, ...]
    goal_pairs: int = 6
    gamma: float = 0.95
    level: float = 0.95
    source: str = field(default="", compare=False)

    def with_seeds(self, seeds: Iterable[int]) -> Study:
        """The same study with other seeds."""
        return replace(self, seeds=_seeds(list(seeds)))

    def as_dict(self) -> dict[str, object]:
        """Plain data, as it is kept beside a run's results. JSON-able."""
        return {
            "name": self.name,
            "seeds": list(self.seeds),
            "goal_pairs": self.goal_pairs,
            "gamma": self.gamma,
            "level": self.level,
            "worlds": [w.as_dict() for w in self.worlds],
            "agents": [
                {**a.spec.as_dict(), "name": a.spec.label, "worlds": None if a.worlds is None else list(a.worlds)}
                for a in self.agents
            ],
            "probes": [p.as_dict() for p in self.probes],
        }


#: Studies that come with the library, by name, with a line about each.
STUDIES: Mapping[str, str] = {
    "ladder": "the default: tables, controllers and planners in finite worlds (minutes)",
    "networks": "networks beside the planner that they were distilled from and tables, 5 seeds (about half an hour)",
    "architectures": "five kinds of networks, trained in three ways (about half an hour)",
    "search": "searches from one simulation to thousands, over true and learned models (about half an hour)",
    "control": "networks in worlds with continuous states (about half an hour)",
    "conjectures": "what goes together: every probe on a dozen kinds of agent and more, 5 seeds (hours)",
    "conjectures-small": "the same in two small worlds, 2 seeds (minutes): `retarget run conjectures --small`",
}


def study_path(name: str | Path = "ladder") -> Path:
    """Where a study is: a file, or one that comes with the library, by its name.

    Raises:
        StudyError: when there is neither.
    """
    if str(name) in STUDIES and not Path(name).exists():
        return Path(__file__).with_name(f"{name}.toml")
    return Path(name)


def default_study_path() -> Path:
    """The study that `retarget run` takes when none is named."""
    return study_path("ladder")


def small_study(name: str | Path) -> str:
    """The name of the small version of a study that comes with the library.

    Raises:
        StudyError: where it has none.

    >>> small_study("conjectures")
    'conjectures-small'
    """
    if f"{name}-small" not in STUDIES:
        small = [s for s in STUDIES if f"{s}-small" in STUDIES]
        raise StudyError(f"study {str(name)!r} has no small version; those that have one: {', '.join(small)}")
    return f"{name}-small"


def load_study(path: str | Path) -> Study:
    """Read and check a study file.

    Raises:
        StudyError: in one line: the file, the line in it, what is wrong, and the nearest right name.
    """
    file = study_path(path)
    if not file.is_file():
        raise StudyError(
            f"study file {str(path)!r} does not exist; pass the path of a TOML file, or one of {', '.join(STUDIES)}"
        )
    if file.stat().st_size > MAX_BYTES:
        raise StudyError(f"study file {str(path)!r} has {file.stat().st_size} bytes; a study has at most {MAX_BYTES}")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 text (byte {error.start}); save the study as UTF-8") from None
    return parse_study(text, source=str(path))


def parse_study(text: str, *, source: str = "study") -> Study:
    """Read a study from TOML text; `source` is what errors call it.

    >>> parse_study('sedes = [0]', source="a.toml")
    Traceback (most recent call last):
    ...
    retarget.errors.StudyError: a.toml, line 1: unknown key 'sedes' (did you mean 'seeds'?); known: agents, gamma, \
goal_pairs, level, name, probes, seeds, worlds
    """
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StudyError(_toml_message(source, text, str(error))) from None
    return _Reader(data, source, key_lines(text)).study()


def _toml_message(source: str, text: str, message: str) -> str:
    at = re.search(r"\(at line (\d+), column \d+\)", message)
    line = int(at.group(1)) if at else text.count("\n") + 1
    return f"{source}, line {line}: not valid TOML: {message.splitlines()[0]}; see https://toml.io"


class _Reader:
    """Turns parsed TOML into a study; every complaint goes through `fail`, which finds the line."""

    def __init__(self, data: Mapping[str, object], source: str, lines: Mapping[KeyPath, int]) -> None:
        self.data, self.source, self.lines = data, source, lines

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        raise StudyError(f"{self.source}, line {line_of(self.lines, path)}: {message}")

    def at(self, path: KeyPath, check: Callable[..., T], *args: object) -> T:
        """Run a check, putting the file and the line before what it complains about."""
        try:
            return check(*args)
        except RetargetError as error:
            self.fail(path, str(error))

    def study(self) -> Study:
        for key in self.data:
            if key not in _TOP:
                self.fail((key,), unknown("key", key, _TOP))
        worlds = self.worlds()
        study = Study(
            name=self.name(),
            seeds=self.seeds(),
            worlds=tuple(worlds.values()),
            agents=self.agents({w.id for w in worlds.values()}),
            probes=self.probes({w.id for w in worlds.values()}),
            goal_pairs=self.goal_pairs(),
            gamma=self.share("gamma", 0.95, closed=False),
            level=self.share("level", 0.95, closed=True),
            source=self.source,
        )
        self.check_goals(study, worlds)
        return study

    def name(self) -> str:
        name = self.data.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fail(("name",), f"name must be 1 to 64 letters, digits, '.', '_' or '-', got {name!r}")
        return name

    def seeds(self) -> tuple[int, ...]:
        try:
            return _seeds(self.data.get("seeds"))
        except StudyError as error:
            self.fail(("seeds",), str(error))

    def goal_pairs(self) -> int:
        value = self.data.get("goal_pairs", 6)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fail(("goal_pairs",), f"goal_pairs must be a whole number of at least 1, got {value!r}")
        return value

    def share(self, key: str, default: float, *, closed: bool) -> float:
        value = self.data.get(key, default)
        ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not ok or not 0 < float(value) <= 1 or (not closed and float(value) == 1):  # type: ignore[arg-type]
            self.fail((key,), f"{key} must lie in (0, 1{']' if closed else ')'}, got {value!r}")
        return float(value)  # type: ignore[arg-type]

    def tables(self, key: str) -> list[tuple[KeyPath, dict[str, object], str]]:
        """The tables of `[[key]]`, each with its path and the id that it must have."""
        found = self.data.get(key)
        if not isinstance(found, list) or not found or not all(isinstance(t, dict) for t in found):
            self.fail((key,), f"a study needs at least one [[{key}]] table with an id")
        out = []
        for i, table in enumerate(found):
            path: KeyPath = (key, i)
            id = table.get("id")
            if not isinstance(id, str):
                self.fail((*path, "id") if "id" in table else path, f'a [[{key}]] table needs id = "...", got {id!r}')
            out.append((path, {k: _tuples(v) for k, v in table.items() if k != "id"}, id))
        return out

    def worlds(self) -> dict[KeyPath, WorldSpec]:
        out: dict[KeyPath, WorldSpec] = {}
        for path, given, id in self.tables("worlds"):
            self.at((*path, "id"), check_world_id, id)
            choices: list[list[tuple[str, object]]] = []
            for name, value in given.items():
                where = (*path, name)
                several = isinstance(value, tuple) and not takes_lists(id, name)
                values = value if several and isinstance(value, tuple) else (value,)
                if not values:
                    self.fail(where, f"option {name!r} is an empty list; give at least one value")
                for one in values:
                    self.at(where, check_world_option, id, name, one)
                choices.append([(name, one) for one in values])
            for number, options in enumerate(product(*choices)):
                spec = self.at(path, _as_built, WorldSpec(id, tuple(sorted(options))))
                if spec in out.values():
                    self.fail(path, f"world {spec.label} is named twice; remove one")
                out[(*path, number)] = spec
        return out

    def agents(self, worlds: set[str]) -> tuple[StudyAgent, ...]:
        out: list[StudyAgent] = []
        for path, given, id in self.tables("agents"):
            self.at((*path, "id"), check_spec, AgentSpec(id))
            name, compiled, only = given.pop("name", ""), given.pop("compiled", False), given.pop("worlds", None)
            if not isinstance(name, str):
                self.fail((*path, "name"), f"name must be a text, got {name!r}")
            if not isinstance(compiled, bool):
                self.fail((*path, "compiled"), f"compiled must be true or false, got {compiled!r}")
            only_in = self.world_names((*path, "worlds"), only, worlds)
            choices: list[list[tuple[str, object]]] = []
            for key, value in given.items():
                values = value if isinstance(value, tuple) else (value,)
                if not values:
                    self.fail((*path, key), f"option {key!r} is an empty list; give at least one value")
                for one in values:
                    self.at((*path, key), check_spec, AgentSpec(id, ((key, one),)))
                choices.append([(key, one) for one in values])
            several = [choice[0][0] for choice in choices if len(choice) > 1]
            self.check_options(path, id, choices)
            for options in product(*choices):
                inside = ", ".join(f"{k}={v}" for k, v in sorted(options) if k in several)
                called = f"{name} ({inside})" if name and inside else name
                agent = StudyAgent(AgentSpec(id, tuple(sorted(options)), compiled, called), only_in)
                self.check_new(path, agent, out)
                out.append(agent)
        return tuple(out)

    def check_options(self, path: KeyPath, id: str, choices: list[list[tuple[str, object]]]) -> None:
        """Options are sound one by one: now together. One that a part of a list makes idle is fine."""
        specs = [AgentSpec(id, options) for options in product(*choices)]
        for spec in specs:
            self.at(path, check_together, spec)
        self.at(path, check_heard, specs)

    def world_names(self, path: KeyPath, given: object, worlds: set[str]) -> tuple[str, ...] | None:
        if given is None:
            return None
        if not isinstance(given, tuple) or not given:
            self.fail(path, f"worlds must be a list of world ids, got {given!r}")
        for i, name in enumerate(given):
            if name not in worlds:
                self.fail((*path, i), unknown("world of this study", name, worlds))
        return tuple(given)

    def check_new(self, path: KeyPath, agent: StudyAgent, before: list[StudyAgent]) -> None:
        for other in before:
            if other.spec.label == agent.spec.label:
                self.fail(path, f"two agents are called {agent.spec.label!r}; give one of them another name")
            if canonical_json(other.spec.as_dict()) == canonical_json(agent.spec.as_dict()):
                self.fail(path, f"agents {other.spec.label!r} and {agent.spec.label!r} are the same; remove one")

    def probes(self, worlds: set[str]) -> tuple[ProbeSpec, ...]:
        out: list[ProbeSpec] = []
        asked: list[tuple[str, dict[str, object], set[str]]] = []
        for path, given, id in self.tables("probes"):
            defaults = self.at((*path, "id"), probe_defaults, id)
            only = self.world_names((*path, "worlds"), given.pop("worlds", None), worlds)
            for key, value in given.items():
                self.at((*path, key), check_option, f"probe {id!r}", key, value, defaults)
            spec = ProbeSpec(id, tuple(sorted(given.items())), only)
            self.at(path, make_probe, spec)
            # with the defaults written out: an option that is given as it is anyway makes no other probe
            whole, where = {**defaults, **given}, worlds if only is None else set(only)
            for other_id, other, elsewhere in asked:
                if (id, whole) == (other_id, other) and where & elsewhere:
                    twice = ", ".join(sorted(where & elsewhere))
                    self.fail(path, f"probe {spec.label} is named twice for {twice}; remove one, or part their worlds")
            asked.append((id, whole, where))
            out.append(spec)
        return tuple(out)

    def check_goals(self, study: Study, worlds: Mapping[KeyPath, WorldSpec]) -> None:
        """Build every world and draw its goals now, so that a study cannot fail in the middle for this."""
        from retarget.study.cells import draw_goals

        for path, spec in worlds.items():
            for seed in study.seeds:
                self.at(path, draw_goals, spec, seed, study.goal_pairs)


def make_probe(spec: ProbeSpec) -> Probe:
    """The probe of a spec.

    Raises:
        StudyError: for an unknown probe, or options that it refuses.
    """
    from retarget.probes import PROBES

    probe_defaults(spec.id)
    try:
        return PROBES[spec.id](**dict(spec.options))
    except RetargetError:
        raise
    except (TypeError, ValueError) as error:
        raise StudyError(f"probe {spec.label} cannot be made: {error}") from None


def _as_built(spec: WorldSpec) -> WorldSpec:
    """The spec as the world itself states it, so that one world has one spec, however it was asked for."""
    from retarget.study.cells import world_of

    return world_of(spec).spec_data


def _seeds(given: object) -> tuple[int, ...]:
    if not isinstance(given, list) or not given:
        raise StudyError(f"seeds must be a list of whole numbers such as [0, 1, 2], got {given!r}")
    for seed in given:
        if isinstance(seed, bool) or not isinstance(seed, int) or not -_INT64 <= seed < _INT64:
            raise StudyError(f"seed {seed!r} is not a whole number of at most 64 bits")
    if len(set(given)) < len(given):
        twice = next(s for s in given if given.count(s) > 1)
        raise StudyError(f"seed {twice} is named twice; remove one")
    return tuple(given)


def _tuples(value: object) -> object:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
