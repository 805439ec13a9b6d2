"""The checkers catch whoever breaks a law that they hold to; the strategies draw what they say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agent import Agent, Categorical, HasGoalSlot, Part, Real, SlotWrite, TableView
from retarget.agents import QTable, TablePolicy
from retarget.code import ENUMERATIVE
from retarget.envs import make_world
from retarget.errors import AgentError, ProbeError
from retarget.exact import Yardstick, policy_table
from retarget.probe import UNIVERSAL_LAWS, Law, Metric, Outcome, Probe, Subject
from retarget.row import Measurement
from retarget.testing import (
    agents,
    check_agent,
    check_probe,
    edits,
    goals,
    layouts,
    models,
    policies,
    relabelled,
    subjects,
    worlds,
)

# -- probes that break a law --------------------------------------------------------------------------------------


class _Plain(Probe):
    """Law-abiding; what the others spoil."""

    name: ClassVar[str] = "plain"
    metrics: ClassVar = {"x": Metric("1", "competence on A", 0.0, 1.0)}
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant", "behaviour_only", "dead_parameters"}

    def number(self, subject: Subject) -> float:
        judge = Yardstick.of(subject.world, subject.goal_a, gamma=subject.gamma)
        return float(np.sort(judge.ratios(policy_table(subject.agent, subject.world.model))).mean())

    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        return Outcome((Measurement.ok("x", min(self.number(subject), 1.0)),))


class _GlobalRandomness(_Plain):
    def number(self, subject: Subject) -> float:
        return float(np.random.rand())  # noqa: NPY002


class _Counts(_Plain):
    calls = 0

    def number(self, subject: Subject) -> float:
        self.calls += 1
        return self.calls % 2


class _TooLarge(_Plain):
    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        return Outcome((Measurement.ok("x", 1.5),))


class _WideInterval(_Plain):
    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        return Outcome((Measurement.ok("x", 0.5, ci_low=-0.5, ci_high=0.9),))


class _TooFew(_Plain):
    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        return Outcome(())


class _OtherName(_Plain):
    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        return Outcome((Measurement.ok("y", 0.5),))


class _LooksAtParts(_Plain):
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"behaviour_only"}

    def number(self, subject: Subject) -> float:
        return 1.0 / len(subject.agent.parts)


class _LooksAtNames(_Plain):
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant"}

    def number(self, subject: Subject) -> float:
        return subject.goal_a.states[0] / subject.world.model.n_states


class _CountsCells(_Plain):
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"dead_parameters"}

    def number(self, subject: Subject) -> float:
        return 1.0 / sum(p.array.size for p in subject.agent.parts.values())


class _StatusByParts(_Plain):
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"behaviour_only"}

    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        if subject.agent.kind == "table_policy":
            return self.all_not_applicable("a table")
        return super().measure(subject)


class _WritesToParts(_Plain):
    def number(self, subject: Subject) -> float:
        for part in subject.agent.parts.values():
            part.array.setflags(write=True)
            part.array.reshape(-1)[0] += 1
        return 0.5


class _WritesToTheTable(_Plain):
    def number(self, subject: Subject) -> float:
        if isinstance(subject.agent, QTable):
            value = super().number(subject)
            subject.agent.q[:] += 1.0
            return value
        return super().number(subject)


class _AbstainsSometimes(_Plain):
    calls = 0

    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        self.calls += 1
        return super().measure(subject) if self.calls % 2 else self.all_not_applicable("not now")


class _RandomInterval(_Plain):
    calls = 0

    def measure(self, subject: Subject, *, progress: Any = None) -> Outcome:
        self.calls += 1
        return Outcome((Measurement.ok("x", 0.5, ci_low=0.1 / self.calls, ci_high=0.9),))


@pytest.mark.parametrize(
    ("probe", "law", "words"),
    [
        (_GlobalRandomness(), "deterministic", "x is 0."),
        (_Counts(), "deterministic", "x is 1.0, and then 0.0"),
        (_AbstainsSometimes(), "deterministic", "and then 'not_applicable'"),
        (_TooLarge(), "bounded", "x is 1.5, outside [0.0, 1.0]"),
        (_WideInterval(), "bounded", "x is -0.5, outside [0.0, 1.0]"),
        (_TooFew(), "bounded", "it declares the metrics ['x'], but returned []"),
        (_OtherName(), "bounded", "it declares the metrics ['x'], but returned ['y']"),
        (_LooksAtParts(), "behaviour_only", "x is 0.5, and then 1.0"),
        (_StatusByParts(), "behaviour_only", "and then 'not_applicable'"),
        (_LooksAtNames(), "relabel_invariant", "x is 0."),
        (_CountsCells(), "dead_parameters", "x is 0."),
        (_WritesToParts(), "pure", "the agent was "),
        (_WritesToTheTable(), "pure", "it writes to the agent"),
        (_RandomInterval(), "deterministic", "interval, spend or reason of x changed"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Probe) else None,
)
def test_a_probe_that_breaks_a_law_is_caught(probe: Probe, law: str, words: str) -> None:
    with pytest.raises(ProbeError) as caught:
        check_probe(probe, max_examples=25)
    assert f"probe 'plain' broke the law {law!r}" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_probe_that_keeps_them_is_not() -> None:
    check_probe(_Plain(), max_examples=60)


def test_a_probe_that_is_badly_declared_says_so() -> None:
    class Nameless(_Plain):
        name: ClassVar[str] = ""

    class Empty(_Plain):
        metrics: ClassVar = {}

    class Odd(_Plain):
        laws: ClassVar = UNIVERSAL_LAWS | {"honest"}

    for bad, words in (
        (_Plain, "expected a probe, got ABCMeta; pass an instance: check_probe(MyProbe())"),
        (Nameless(), "probe Nameless declares no name or no metrics"),
        (Empty(), "probe Empty declares no name or no metrics"),
        (Odd(), "probe 'plain' declares the unknown law 'honest'; known: behaviour_only, bounded"),
    ):
        with pytest.raises(ProbeError) as caught:
            check_probe(bad)  # type: ignore[arg-type]
        assert words in str(caught.value)


# -- agents that break a law --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table(TablePolicy):
    """Law-abiding; what the others spoil."""


class _Crowd(_Table):
    """Acts otherwise in a crowd."""

    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        probs, _ = super().policy(obs)
        return (probs if len(obs) > 1 else np.roll(probs, 1, axis=1)), None


class _WrongCell(_Table):
    def table_view(self) -> TableView:
        view = super().table_view()
        return replace(view, cell=np.roll(view.cell, 1, axis=0))


class _WrongValue(_Table):
    def table_view(self) -> TableView:
        view = super().table_view()
        return replace(view, value=np.roll(view.value, 1, axis=1))


class _OtherBlank(_Table):
    def blank(self, seed: int) -> Agent:
        return TablePolicy(np.zeros(len(self.symbols) + 1, int), self.palette)


class _NoParts(_Table):
    @property
    def parts(self) -> dict[str, Part]:  # type: ignore[override]
        return {}

    def blank(self, seed: int) -> Agent:
        return self


class _ForgetsWhatIsWritten(_Table):
    table_view = None  # type: ignore[assignment]

    def with_arrays(self, arrays: Any) -> Any:
        return self


class _SpoilsItself(_Table):
    table_view = None  # type: ignore[assignment]

    @property
    def fixed_arrays(self) -> Any:
        return {"edits made": np.array(self.__dict__.get("made", 0))}

    def with_arrays(self, arrays: Any) -> Any:
        self.__dict__["made"] = self.__dict__.get("made", 0) + 1
        return super().with_arrays(arrays)


class _Improper(_Table):
    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return super().policy(obs)[0] * 0.9, None


class _SlotElsewhere(_Table):
    def slot_writes(self, goal: Any) -> tuple[SlotWrite, ...]:
        return (SlotWrite("policy", 0.0, ((0, 1.0),)),)

    def slot_candidates(self) -> tuple[SlotWrite, ...]:
        return ()


class _Remembers(_Table):
    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return super().policy(obs)[0], 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (_Crowd, "a batch of one gives another policy in state 0 than a batch of all"),
        (_WrongCell, "writing its cell for action 0 in state 0 does something else"),
        (_WrongValue, "writing its cell for action 0 in state 0 does something else"),
        (_OtherBlank, "its blank has other parts than it has"),
        (_NoParts, "exposes no parts; there is nothing to edit"),
        (_ForgetsWhatIsWritten, "part 'policy' does not hold what was written to it"),
        (_SpoilsItself, "applying an edit changed the agent itself"),
        (_Improper, "the policy of state 0 is no distribution: [0.0, 0.9"),
        (_SlotElsewhere, "its slot write names part 'policy', which is no goal slot"),
        (_Remembers, "has memory"),
    ],
)
def test_an_agent_that_breaks_a_law_is_caught(kind: type[_Table], words: str) -> None:
    world = make_world("OpenGrid", size=5)
    good = _Table.from_actions(np.arange(world.model.n_states) % 2 + 1, n_actions=4)
    check_agent(good, world, max_examples=5)
    with pytest.raises(AgentError) as caught:
        check_agent(kind(good.symbols.copy(), good.palette.copy()), world, max_examples=20)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# -- strategies ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_strategies_draw_what_they_say(data: st.DataObject) -> None:
    model = data.draw(models(max_states=5))
    assert 2 <= model.n_states <= 5
    assert 1 <= model.n_actions <= 4
    assert data.draw(models(deterministic=True)).is_deterministic
    assert not data.draw(models(deterministic=False)).is_deterministic
    world = data.draw(worlds())
    assert world.goal in world.goals
    goal = data.draw(goals(world))
    assert goal in world.goals
    assert Yardstick.of(world, goal, gamma=0.9).starts.size
    agent = data.draw(agents(world, goal))
    assert policy_table(agent, world.model).shape == (world.model.n_states, world.model.n_actions)
    probs = data.draw(policies(4, 3))
    assert probs.shape == (4, 3)
    np.testing.assert_allclose(probs.sum(1), 1)
    layout = data.draw(layouts())
    assert 1 <= len(layout) <= 4
    edit = data.draw(edits(layout, agent_digest="d"))
    assert edit.agent_digest == "d"
    edit.check(layout)
    assert ENUMERATIVE.length(edit, layout) > 0
    assert data.draw(worlds(grids=False)).spec_data.id == "model"


@settings(deadline=None, max_examples=40)
@given(subjects(), st.data())
def test_a_relabelled_subject_and_back_is_the_subject(subject: Subject, data: st.DataObject) -> None:
    perm = np.array(data.draw(st.permutations(range(subject.world.model.n_states))))
    there = relabelled(subject, perm)
    back = relabelled(there, np.argsort(perm))
    assert (back.goal_a, back.goal_b) == (subject.goal_a, subject.goal_b)
    assert back.world.model.digest == subject.world.model.digest
    assert back.world.start_states.tolist() == sorted(subject.world.start_states.tolist())
    np.testing.assert_array_equal(
        policy_table(back.agent, back.world.model), policy_table(subject.agent, subject.world.model)
    )
    assert subjects(needs_goal_b=False) is not None
    assert (there.gamma, there.level, there.seed) == (subject.gamma, subject.level, subject.seed)


def test_every_kind_of_agent_and_world_is_drawn() -> None:
    kinds: set[str] = set()
    places: set[str] = set()
    slots = 0

    @settings(deadline=None, max_examples=150, derandomize=True, database=None)
    @given(subjects())
    def look(subject: Subject) -> None:
        nonlocal slots
        kinds.add(subject.agent.kind)
        places.add(subject.world.spec_data.id)
        slots += isinstance(subject.agent, HasGoalSlot)
        assert subject.goal_a != subject.goal_b

    look()
    assert kinds >= {
        "table_policy", "q_table", "goal_table", "planner", "depth_planner", "learned_planner", "controller",
    }  # fmt: skip
    assert len(places) == 5
    assert slots


def test_alphabets_of_drawn_layouts_are_of_both_kinds() -> None:
    found: set[type] = set()

    @settings(deadline=None, max_examples=30, derandomize=True, database=None)
    @given(layouts())
    def look(layout: Any) -> None:
        found.update(type(p.alphabet) for p in layout)

    look()
    assert found == {Real, Categorical}
