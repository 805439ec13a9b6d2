"""Where the goal lives: retargetability with the parts of each role left alone, and with those alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from retarget.agent import ROLES, Agent, Role
from retarget.edit import Edit
from retarget.editors import Candidate, Editor, Task, default_editors, points, prove, shortest
from retarget.errors import AgentError, GoalError
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Progress, Subject
from retarget.probes.retargetability import asked, closed, elsewhere, length_of
from retarget.row import FrontierPoint, Kind, Measurement
from retarget.trials import Score, Trials

_OF_ROLE: Mapping[str, tuple[str, str]] = {
    "edit_bits_without": ("bit", "length of the shortest edit that touches no part with the role {}: an upper bound"),
    "competence_b_without": ("1", "best competence on B of the edits found that touch no part with the role {}"),
    "edit_bits_only": ("bit", "length of the shortest edit that touches parts with the role {} alone: an upper bound"),
    "competence_b_only": ("1", "best competence on B of the edits found that touch parts with the role {} alone"),
}


def _metrics() -> dict[str, Metric]:
    out = {
        "competence_a": Metric("1", "competence on the agent's own goal", 0.0, 1.0, "evaluation"),
        "required_competence": Metric(
            "1", "level times competence_a: what counts as retargeted", 0.0, 1.0, "observation"
        ),
        "competence_b_before": Metric("1", "competence on B of the unedited agent", 0.0, 1.0, "evaluation"),
        "edit_bits": Metric("bit", "length of the shortest edit, whatever it touches: an upper bound", 0.0, None),
        "competence_b_best": Metric("1", "best competence on B of all edits found", 0.0, 1.0),
    }
    for role in ROLES:
        for name, (unit, words) in _OF_ROLE.items():
            out[f"{name}_{role}"] = Metric(unit, words.format(role), 0.0, 1.0 if unit == "1" else None)
    return out


class Where(Probe):
    """Where the agent keeps its goal: edits without the parts of each role, and of those parts alone.

    An agent whose goal lives in its slot is retargeted by the slot alone, and by more bits without it (a model that
    lies does it, say); where a value function or a prior was trained toward A, the slot may not suffice. What no editor
    knows how to do is not found: lengths are upper bounds, competences lower ones. The unedited agent counts among what
    leaves a role alone.

    One search without restrictions comes first; its edits are sorted by what they touch. With parts frozen, only those
    editors search again that mixed what is frozen with what is not, unless they say with a class attribute
    `covers_frozen` that they try parts apart as it is; and those whose `searches_anew(agent, frozen)` is true.

    Args:
        editors: who competes; the default ones without.
        budget: most candidates that one editor may build and score in one search.

    >>> import retarget
    >>> from retarget.agents import exact_planner
    >>> world = retarget.make_world("FourRooms", size=9)
    >>> a, b = world.as_goal((1, 1)), world.as_goal((7, 7))
    >>> outcome = Where().measure(retarget.Subject(exact_planner(world, a), world, a, b))
    >>> slot, model = outcome["edit_bits_only_goal_slot"], outcome["edit_bits_only_model"]
    >>> slot.editor, model.editor, model.value > 2 * slot.value
    ('slot', 'sparse', True)
    """

    name: ClassVar[str] = "where"
    kind: ClassVar[Kind] = "experiment"
    needs_goal_b: ClassVar[bool] = True
    metrics: ClassVar = _metrics()
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS

    def __init__(self, *, editors: Sequence[Editor] | None = None, budget: int = 4096) -> None:
        self.editors = tuple(editors) if editors is not None else default_editors()
        self.budget = budget

    def measure(self, subject: Subject, *, progress: Progress | None = None) -> Outcome:
        tell = progress or (lambda done, words: None)
        try:
            known, task, nothing = asked(subject, self.budget)
        except (GoalError, AgentError) as error:
            return self.all_not_applicable(str(error))
        if task is None:
            return closed(self, known, nothing)
        tell(0.05, "editing the agent")
        views = _views(task.agent)
        found = self._search(task, views, tell)
        tell(0.9, "sorting the edits by what they touch")
        edits = _Sorted.of(task, found, views)
        have = {m.metric: m for m in (*known, *edits.whole(), *edits.of_roles())}
        return Outcome(tuple(have[name] for name in self.metrics), edits.frontier())

    def _search(self, task: Task, views: Sequence[_View], tell: Progress) -> tuple[Candidate, ...]:
        free = {editor: tuple(editor.search(task)) for editor in self.editors}
        out = [c for found in free.values() for c in found]
        frozen = list(dict.fromkeys(v.frozen for v in views if v.frozen))
        for i, names in enumerate(frozen):
            tell(0.4 + 0.5 * i / len(frozen), f"editing without {', '.join(sorted(names))}")
            for editor in self.editors:
                if _minds(editor, free[editor], task.agent, names):
                    out += [c for c in editor.search(replace(task, frozen=names)) if not names & _touched(c)]
        return tuple(out)


@dataclass(frozen=True)
class _View:
    """One way to restrict edits: `which` is `without` or `only`, or empty for none; `frozen` names the parts."""

    which: str
    role: Role | None
    frozen: frozenset[str]


_FREE = _View("", None, frozenset())


def _views(agent: Agent) -> tuple[_View, ...]:
    names = frozenset(agent.parts)
    out = [_FREE]
    for role in ROLES:
        own = frozenset(p.name for p in agent.parts.values() if p.role == role)
        if own:
            out += [_View("without", role, own)] if own < names else []
            out.append(_View("only", role, names - own))
    return tuple(out)


def _touched(candidate: Candidate) -> frozenset[str]:
    return frozenset(candidate.edit.parts_touched)


def _inside(found: Iterable[Candidate], frozen: frozenset[str]) -> tuple[Candidate, ...]:
    return tuple(c for c in found if not frozen & _touched(c))


def _minds(editor: Editor, found: Sequence[Candidate], agent: Agent, frozen: frozenset[str]) -> bool:
    """Whether an editor may find something else with these parts frozen: it says so, or it mixed them with others, and
    is not one that tries the others apart as it is."""
    anew = getattr(editor, "searches_anew", None)
    if anew is not None and anew(agent, frozen):
        return True
    mixed = any(frozen & _touched(c) and _touched(c) - frozen for c in found)
    return mixed and not getattr(editor, "covers_frozen", False)


@dataclass(frozen=True, eq=False)
class _Worth:
    """A finalist (None for the unedited agent), and its competence on B: on other starts where it is estimated; where
    the agent draws random numbers, with its own seed (lengths alone are held to other seeds)."""

    candidate: Candidate | None
    competence: float
    score: Score | None = None

    @classmethod
    def of(cls, task: Task, candidate: Candidate | None) -> _Worth:
        if isinstance(task.check, Trials):
            score = task.check.score(task.agent if candidate is None else candidate.edit.apply(task.agent))
            return cls(candidate, score.competence, score)
        if candidate is None:
            return cls(None, task.judge.score(task.agent).competence)
        return cls(candidate, candidate.competence)

    def measurement(self, metric: str) -> Measurement:
        rest: dict[str, object] = {}
        if self.score is not None:
            rest = {"ci_low": self.score.ci_low, "ci_high": self.score.ci_high, "n": self.score.n}
        if self.candidate is not None:
            c = self.candidate
            touched = "+".join(c.edit.parts_touched)
            rest |= {"editor": c.editor, "parts": touched, "n_cells": c.edit.n_cells, "spend": c.spend}
        return Measurement.ok(metric, self.competence, **rest)


@dataclass(frozen=True, eq=False)
class _Sorted:
    """Edits by what they touch, and the finalists among them: of each view the shortest and the best.

    A finalist counts in every view that it fits. So no view does better than one that restricts less, also where
    competence is estimated and the finalists alone are tried on other starts.

    Attributes:
        inside: the edits of each view.
        short: the shortest edits of the views that meet the requirement, shortest first.
        worth: every finalist, and the unedited agent first.
    """

    task: Task
    inside: Mapping[_View, tuple[Candidate, ...]]
    short: tuple[Candidate, ...]
    worth: tuple[_Worth, ...]

    @classmethod
    def of(cls, task: Task, found: Sequence[Candidate], views: Sequence[_View]) -> _Sorted:
        inside = {view: _inside(found, view.frozen) for view in views}
        short: dict[tuple[str, Edit], Candidate] = {}
        for some in inside.values():
            if (c := shortest(task, some)) is not None:
                short.setdefault(_key(c), c)
        best = {_key(c): c for some in inside.values() for c in sorted(some, key=_by_competence)[:1]}
        # what the shortest are said to have taken has the check of finalists in it
        chosen = {**best, **short}
        finalists = [chosen[k] for k in dict.fromkeys(map(_key, found)) if k in chosen]
        for candidate in finalists:
            prove(task, candidate)
        ordered = tuple(sorted(short.values(), key=_by_length))
        return cls(task, inside, ordered, tuple(_Worth.of(task, c) for c in (None, *finalists)))

    def whole(self) -> list[Measurement]:
        return [self._bits("edit_bits", _FREE), self._competence("competence_b_best", _FREE)]

    def of_roles(self) -> list[Measurement]:
        out = []
        present = {p.role for p in self.task.agent.parts.values()}
        views = {(v.which, v.role): v for v in self.inside}
        for role in ROLES:
            for which in ("without", "only"):
                bits, competence = f"edit_bits_{which}_{role}", f"competence_b_{which}_{role}"
                view = views.get((which, role))
                if view is not None:
                    out += [self._bits(bits, view), self._competence(competence, view)]
                    continue
                reason = "all its parts have this role" if role in present else f"it has no part with the role {role!r}"
                out += [Measurement.not_applicable(n, reason) for n in (bits, competence)]
        return out

    def _bits(self, metric: str, view: _View) -> Measurement:
        best = next((c for c in self.short if not view.frozen & _touched(c)), None)
        if best is not None:
            return length_of(metric, self.task, best, ())
        task, top = self.task, self._top(view)
        if top.candidate is None:
            words = f"nothing that was found does better than the agent as it is ({top.competence:.4g})"
        elif task.enough(top.candidate.competence):
            words = f"what was found does not hold {elsewhere(task)}"
        else:
            words = f"the best edit reaches {top.competence:.4g}"
        return Measurement.failed(metric, f"required competence {task.required:.4g} was not reached: {words}")

    def _competence(self, metric: str, view: _View) -> Measurement:
        return self._top(view).measurement(metric)

    def _top(self, view: _View) -> _Worth:
        fits = [w for w in self.worth if w.candidate is None or not view.frozen & _touched(w.candidate)]
        return max(fits, key=lambda w: w.competence)

    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Every edit that no shorter or equal one of some view beats."""
        kept: dict[int, Candidate] = {}
        for some in self.inside.values():
            top = -1.0
            for c in sorted(some, key=lambda c: (c.bits, -c.competence)):
                if c.competence > top:
                    top, kept[id(c)] = c.competence, c
        return points(self.task, kept.values(), subject="agent")


def _key(candidate: Candidate) -> tuple[str, Edit]:
    return candidate.editor, candidate.edit


def _by_length(candidate: Candidate) -> tuple[float, float, str]:
    """The order that `retarget.editors.shortest` goes by."""
    return candidate.bits, candidate.spend.flops, candidate.editor


def _by_competence(candidate: Candidate) -> tuple[float, ...]:
    return -candidate.competence, candidate.bits, candidate.spend.flops
