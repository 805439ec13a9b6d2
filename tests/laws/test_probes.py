"""Laws of probes, of the goals that a study draws, of measurements, random streams and accounts."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.agents.wrappers import ModelWorld
from retarget.editors import SlotEditor, TableEditor
from retarget.envs import make_world
from retarget.errors import GoalError, ProbeError, RetargetError
from retarget.exact import Yardstick, policy_table
from retarget.goal import StateGoal
from retarget.pairs import GoalPlan
from retarget.probe import UNIVERSAL_LAWS, Law, Probe, Subject
from retarget.probes import PROBES, Behaviour, Retargetability, Robustness
from retarget.rng import stream, stream_key, word
from retarget.row import Measurement
from retarget.spend import Spend
from retarget.testing import agents, check_probe, subjects, worlds
from retarget.world import FiniteModel

GAMMA = 0.95


class _WithoutTraining(Retargetability):
    """Retargetability with the editors that do not train: renaming the states changes nothing."""

    name: ClassVar[str] = "retargetability"
    laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"relabel_invariant"}


def test_retargetability_does_not_depend_on_the_names_of_states() -> None:
    check_probe(_WithoutTraining(editors=(SlotEditor(), TableEditor()), draws=4), max_examples=40)


@pytest.mark.parametrize("probe", [Robustness(), Behaviour()])
def test_probes_of_behaviour_keep_the_laws_they_declare(probe: Probe) -> None:
    assert {"behaviour_only", "relabel_invariant", "dead_parameters"} <= set(probe.laws)
    check_probe(probe, max_examples=60)


def test_retargetability_keeps_the_universal_laws() -> None:
    check_probe(Retargetability(draws=3), max_examples=12)


def test_retargetability_is_not_a_property_of_behaviour_alone() -> None:
    class Claims(Retargetability):
        laws: ClassVar[frozenset[Law]] = UNIVERSAL_LAWS | {"behaviour_only"}

    with pytest.raises(ProbeError, match="broke the law 'behaviour_only'"):
        check_probe(Claims(editors=(SlotEditor(), TableEditor()), draws=2), max_examples=30)


def test_every_probe_is_known_by_its_name() -> None:
    assert {n: p.name for n, p in PROBES.items()} == {n: n for n in PROBES}
    assert {"robustness", "behaviour", "retargetability"} <= set(PROBES)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_robustness_is_the_mean_of_its_parts_and_of_a_linear_solve(data: st.DataObject) -> None:
    world = data.draw(worlds())
    goal = data.draw(st.sampled_from(world.goals))
    agent = data.draw(agents(world, goal))
    outcome = Robustness().measure(Subject(agent, world, goal, gamma=GAMMA))
    # the oracle: V = γ P V off the goal, by a dense solve over the dense model
    model, mask = world.model, goal.mask(world.model.n_states)
    probs = policy_table(agent, model)
    step = GAMMA * np.einsum("sa,sat->st", probs, model.dense())
    step[mask] = 0
    value = np.linalg.solve(np.eye(model.n_states) - step, mask.astype(float))
    judge = Yardstick.of(world, goal, gamma=GAMMA)
    ratios = (value / np.where(judge.optimal > 0, judge.optimal, 1))[judge.starts]
    assert outcome["robustness"].value == pytest.approx(ratios.mean(), abs=1e-9)
    assert outcome["worst_case"].value == pytest.approx(ratios.min(), abs=1e-9)
    seen, unseen = outcome["robustness_seen"], outcome["robustness_unseen"]
    if agent.seen_starts is None:
        assert "no record of training starts" in seen.reason
        assert "no record of training starts" in unseen.reason
        return
    inside = np.isin(judge.starts, agent.seen_starts)
    for m, part, words in ((seen, inside, "no start"), (unseen, ~inside, "every start")):
        if part.any():
            assert m.value == pytest.approx(ratios[part].mean(), abs=1e-9)
        else:
            assert m.status == "not_applicable"
            assert m.reason.startswith(words)


@settings(deadline=None, max_examples=40)
@given(subjects())
def test_measures_of_behaviour_are_what_they_say(subject: Subject) -> None:
    world, agent, goal = subject.world, subject.agent, subject.goal_b
    assert goal is not None
    outcome = Behaviour().measure(subject)
    probs = policy_table(agent, world.model)
    judge = Yardstick.of(world, goal, gamma=subject.gamma)
    q = (world.model.dense() * judge.optimal).sum(-1)
    agreement, entropy, wrong = [], [], 0
    for s in range(world.model.n_states):
        best = {a for a in range(world.model.n_actions) if q[s, a] >= q[s].max() * (1 - 1e-9)}
        if s in judge.starts:
            agreement.append(sum(probs[s, a] for a in best))
            entropy.append(-sum(p * math.log2(p) for p in probs[s] if p > 0))
        if judge.optimal[s] > 0 and s not in goal.states:
            wrong += any(probs[s, a] > 0 and a not in best for a in range(world.model.n_actions))
    assert outcome["agreement_b"].value == pytest.approx(np.mean(agreement), abs=1e-9)
    assert outcome["policy_entropy"].value == pytest.approx(np.mean(entropy), abs=1e-9)
    assert outcome["states_to_change"].value == wrong


# -- what cannot be measured --------------------------------------------------------------------------------------


def _one_way() -> ModelWorld:
    """0 -> 1 -> 2, and 3 alone: nothing leads there."""
    return ModelWorld(FiniteModel.deterministic([[1], [2], [2], [3]]), StateGoal.of([2]))


def test_where_there_is_nothing_to_measure_every_metric_says_so() -> None:
    world = _one_way()
    agent = TablePolicy.from_actions([0, 0, 0, 0], n_actions=1)
    alone = StateGoal.of([3])
    cases = (
        (Robustness(), Subject(agent, world, alone), "no start of model can reach goal 3"),
        (Behaviour(), Subject(agent, world, world.goal), "no goal B was given"),
        (Behaviour(), Subject(agent, world, world.goal, alone), "no start of model can reach goal 3"),
        (Retargetability(), Subject(agent, world, world.goal), "no goal B was given"),
        (Retargetability(), Subject(agent, world, world.goal, alone), "no start of model can reach goal 3"),
        (Retargetability(), Subject(agent, world, alone, world.goal), "no start of model can reach goal 3"),
    )
    for probe, subject, words in cases:
        outcome = probe.measure(subject)
        assert [m.metric for m in outcome.measurements] == list(probe.metrics)
        assert {m.status for m in outcome.measurements} == {"not_applicable"}
        assert all(words in m.reason for m in outcome.measurements)
        assert outcome.frontier == ()


class _Remembers(TablePolicy):
    def policy(self, obs: np.ndarray, carry: object = None) -> tuple[np.ndarray, object]:
        return super().policy(obs)[0], "memory"


@pytest.mark.parametrize(
    "probe",
    [Robustness(), Behaviour(), Retargetability()],
)
def test_an_agent_with_memory_cannot_be_measured_and_that_is_no_error(probe: Probe) -> None:
    world = _one_way()
    agent = _Remembers(np.zeros(4, int), TablePolicy.from_actions([0], n_actions=1).palette)
    outcome = probe.measure(Subject(agent, world, world.goal, StateGoal.of([1])))
    assert {m.status for m in outcome.measurements} == {"not_applicable"}
    assert "memory" in outcome.measurements[0].reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gamma": 1.0}, "gamma must lie strictly between 0 and 1, got 1.0"),
        ({"gamma": float("nan")}, "gamma must lie strictly between 0 and 1, got nan"),
        ({"level": 0.0}, "level must lie in (0, 1], got 0.0"),
        ({"level": 1.5}, "level must lie in (0, 1], got 1.5"),
        ({"goal_a": StateGoal.of([9])}, "goal state 9 is outside the world, which has states 0 to 3"),
        ({"goal_b": StateGoal.of([9])}, "goal state 9 is outside the world"),
        ({"goal_b": StateGoal.of([2], label="two")}, "goals A and B are the same (2); choose another B"),
        ({"agent": "me"}, "expected a retarget agent, got str; wrap it with retarget.agents"),
    ],
)
def test_a_subject_that_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    world = _one_way()
    subject = Subject(TablePolicy.from_actions([0] * 4, n_actions=1), world, world.goal)
    with pytest.raises(RetargetError) as caught:
        subject.with_(**changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_outcome_names_the_metrics_it_has() -> None:
    world = _one_way()
    outcome = Robustness().measure(Subject(TablePolicy.from_actions([0] * 4, n_actions=1), world, world.goal))
    assert outcome["robustness"].value == 1.0
    with pytest.raises(KeyError, match="no metric 'rob'; there are robustness, "):
        outcome["rob"]


# -- goals of a study ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=80)
@given(worlds(), st.integers(0, 50), st.integers(2, 20), st.data())
def test_a_plan_of_goals(world, seed: int, pool: int, data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    n = min(pool, len(world.goals))
    half = (n + 1) // 2
    most = half * (n - half) + half * (half - 1)
    n_pairs = data.draw(st.integers(1, most))
    plan = GoalPlan.draw(world, n_pairs=n_pairs, seed=seed, pool=pool)
    assert GoalPlan.draw(world, n_pairs=n_pairs, seed=seed, pool=pool) == plan
    assert len(plan.training) == half
    assert len(plan.held_out) == n - half
    assert set(plan.training) | set(plan.held_out) <= set(world.goals)
    assert not set(plan.training) & set(plan.held_out)
    assert len(plan.pairs) == len(set(plan.pairs)) == n_pairs
    assert all(a in plan.training and a != b for a, b in plan.pairs)
    # B alternates, held-out first, for as long as there are both
    both = 2 * min(half * (n - half), half * (half - 1))
    for i, (_, b) in enumerate(plan.pairs[:both]):
        assert (b in plan.held_out) == (i % 2 == 0)
    # a smaller plan is the beginning of a larger one
    assert GoalPlan.draw(world, n_pairs=most, seed=seed, pool=pool).pairs[:n_pairs] == plan.pairs
    for extra in (0, most + 1):
        with pytest.raises(GoalError, match=f"{extra} goal pairs were asked of .*, which offers 1 to {most}; change"):
            GoalPlan.draw(world, n_pairs=extra, seed=seed, pool=pool)


def test_plans_differ_by_seed_and_by_world() -> None:
    one, two = make_world("FourRooms", size=9), make_world("Maze", size=9)
    plans = [GoalPlan.draw(one, n_pairs=4, seed=s).pairs for s in range(4)]
    assert len(set(plans)) == 4
    assert GoalPlan.draw(two, n_pairs=4, seed=0).pairs != plans[0]


def test_a_pair_needs_two_goals() -> None:
    world = ModelWorld(FiniteModel.deterministic([[1], [1]]), StateGoal.of([1]), starts=np.array([0]))
    with pytest.raises(GoalError, match=r"world model has 1 goal\(s\); a pair needs two"):
        GoalPlan.draw(world, n_pairs=1, seed=0)


# -- measurements -------------------------------------------------------------------------------------------------

_numbers = st.one_of(st.none(), st.floats(), st.integers(-5, 5).map(float))


@given(
    st.sampled_from(["ok", "not_applicable", "failed", "fine", ""]), _numbers, st.sampled_from(["", "because"]),
    _numbers, _numbers,
)  # fmt: skip
def test_a_measurement_has_one_of_three_states(
    status: str, value: float | None, reason: str, low: float | None, high: float | None
) -> None:
    finite = all(v is None or math.isfinite(v) for v in (value, low, high))
    whole = (value is not None and not reason) if status == "ok" else (value is None and bool(reason))
    legal = status in ("ok", "not_applicable", "failed") and finite and whole and (low is None) == (high is None)
    if legal:
        made = Measurement("m", status, value, reason, ci_low=low, ci_high=high)  # type: ignore[arg-type]
        assert made == Measurement("m", status, value, reason, ci_low=low, ci_high=high)  # type: ignore[arg-type]
        return
    with pytest.raises(ProbeError) as caught:
        Measurement("m", status, value, reason, ci_low=low, ci_high=high)  # type: ignore[arg-type]
    assert "'m'" in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(min_size=1))
def test_the_short_ways_to_a_measurement(value: float, reason: str) -> None:
    assert Measurement.ok("m", value) == Measurement("m", "ok", value)
    assert Measurement.not_applicable("m", reason) == Measurement("m", "not_applicable", None, reason)
    assert Measurement.failed("m", reason) == Measurement("m", "failed", None, reason)
    assert type(Measurement.ok("m", np.int64(3)).value) is float


# -- streams and accounts -----------------------------------------------------------------------------------------

_cells = st.recursive(
    st.one_of(st.text(max_size=4), st.integers(-9, 9), st.booleans(), st.none(), st.floats(-2, 2)),
    lambda inner: st.lists(inner, max_size=2).map(tuple),
    max_leaves=4,
)
_names = st.tuples(st.integers(-(2**70), 2**70), st.text(max_size=5), st.lists(_cells, max_size=3))


@given(st.lists(_names, min_size=2, max_size=5))
def test_a_stream_depends_on_its_name_and_on_no_call_before_it(names: list[tuple[int, str, list]]) -> None:
    def first(name: tuple[int, str, list]) -> list[float]:
        seed, purpose, cell = name
        return stream(seed, purpose, *cell).random(3).tolist()

    forward = [first(n) for n in names]
    assert [first(n) for n in reversed(names)] == forward[::-1]
    # and the other way about: another name is another stream
    keys = {repr(n): stream_key(n[0], n[1], *n[2]) for n in names}
    assert len(set(keys.values())) == len({_told(n) for n in names})
    assert all(0 <= k < 2**128 for k in keys.values())
    assert all(0 <= word(n[0], n[1], *n[2]) < 2**63 for n in names)


def _told(name: tuple[int, str, list]) -> str:
    """A name as text in which 1, 1.0, True and "1" differ, and 0.0 and -0.0 do."""
    return repr(name)


def test_names_that_look_alike_are_different_streams() -> None:
    cells: list = [1, "1", 1.0, True, None, "None", (1,), ((1,),), ("1",), (), ""]
    keys = [stream_key(0, "x", c) for c in cells] + [stream_key(0, "x"), stream_key(0, "x", 1, 1), stream_key(0, "x1")]
    assert len(set(keys)) == len(keys)


def test_streams_leave_the_global_generator_alone() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr] # noqa: NPY002
    stream(0, "x").random(5)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr] # noqa: NPY002


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_is_an_integer(seed: object) -> None:
    with pytest.raises(RetargetError, match=r"seed must be an integer, got .*; pass e\.g\. seed=0"):
        stream(seed, "x")  # type: ignore[arg-type]
    assert stream_key(np.int64(3), "x") == stream_key(3, "x")  # type: ignore[arg-type]


@given(*[st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**50))] * 3)
def test_accounts_add(a: tuple, b: tuple, c: tuple) -> None:
    x, y, z = (Spend(*t[:3], float(t[3])) for t in (a, b, c))
    assert x + y == y + x
    assert (x + y) + z == x + (y + z)
    assert x + Spend() == x
    assert (x + y).flops == a[3] + b[3]
    assert x.kt_bits(7) == 7 + math.log2(max(a[3], 1))


def test_order_of_measuring_changes_nothing() -> None:
    world = make_world("FourRooms", size=7)
    a, b, c = world.goals[0], world.goals[8], world.goals[15]
    planner = exact_planner(world, a)
    table = compile_policy(planner, world)
    asked = [(agent, goal) for agent in (planner, table) for goal in (b, c)]

    def rows(order: list) -> dict:
        return {
            (agent.digest, goal): Retargetability(draws=4).measure(Subject(agent, world, a, goal))
            for agent, goal in order
        }

    assert rows(asked) == rows(asked[::-1])
