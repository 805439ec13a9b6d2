"""Laws of training: what it leaves alone, what it refuses, and that the same call gives the same bits."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retarget.agents import exact_planner
from retarget.agents.network_for import network_for
from retarget.agents.neural import NetworkAgent
from retarget.catalogue import AgentSpec, NotApplicableHere, Recipe, build_agent
from retarget.envs import make_world
from retarget.errors import AgentError, GoalError, RetargetError, StudyError
from retarget.judge import judge_of
from retarget.training import DQN, PPO, Cloning, TrainingError, train

WORLD = make_world("OpenGrid", size=5)
METHODS = {
    "cloning": (Cloning(updates=40, batch=8, enough=2.0), "logits"),
    "ppo": (PPO(env_steps=512, envs=8, rollout=8, batch=32), "logits"),
    "dqn": (DQN(env_steps=400, envs=8, batch=16, warmup=32, replay=200, target_every=7), "values"),
    "clone+ppo": ((Cloning(updates=20, batch=8), PPO(env_steps=256, envs=8, rollout=8, value_only=2)), "logits"),
}


def _blank(head: str = "logits", seed: int = 0, *, many: bool = False) -> NetworkAgent:
    goals = WORLD.goals[:3] if many else None
    return network_for(WORLD, WORLD.goals[0], goals=goals, hidden=(8,), head=head, seed=seed)


def _run(name: str, *, seed: int = 0, many: bool = False, **more: object):  # type: ignore[no-untyped-def]
    method, head = METHODS[name]
    goals = WORLD.goals[:3] if many else WORLD.goals[0]
    return train(_blank(head, many=many), WORLD, goals=goals, method=method, seed=seed, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_gives_the_same_bits(name: str, many: bool) -> None:
    first, again = _run(name, many=many), _run(name, many=many)
    assert first.agent.digest == again.agent.digest
    assert first.spend == again.spend
    assert first.history == again.history
    assert first.agent.digest != _run(name, seed=1, many=many).agent.digest


@pytest.mark.parametrize("name", METHODS)
def test_shuffled_goals_change_what_is_learned(name: str) -> None:
    assert _run(name, many=True).agent.digest != _run(name, many=True, shuffled_goals=True).agent.digest


@pytest.mark.parametrize("name", METHODS)
def test_training_leaves_its_input_alone_and_says_what_it_was(name: str) -> None:
    blank = _blank(METHODS[name][1], many=True)
    digest = blank.digest
    starts = [0, 1, 2, 7]
    out = train(blank, WORLD, goals=WORLD.goals[:2], method=METHODS[name][0], starts=starts).agent
    assert blank.digest == digest
    assert out.digest != digest
    assert out.seen_starts is not None
    assert out.seen_starts.tolist() == starts
    assert out.training_goals == WORLD.goals[:2]
    assert out.layout == blank.layout
    assert out.blank(5).weights.keys() == blank.weights.keys()
    assert all(np.array_equal(out.blank(5).weights[k], blank.weights[k]) for k in blank.weights)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**62), name=st.sampled_from(["cloning", "ppo", "dqn"]))
def test_a_budget_of_nothing_leaves_the_weights_as_they_were(seed: int, name: str) -> None:
    method, head = METHODS[name]
    assert not isinstance(method, tuple)
    none = replace(method, **({"updates": 0} if name == "cloning" else {"env_steps": 0}))
    # weights that float32 cannot hold
    blank = _blank(head)
    blank = blank.with_arrays({"out.bias": blank.weights["out.bias"] + 1e-12})
    out = train(blank, WORLD, goals=WORLD.goals[0], method=none, seed=seed)
    assert all(np.array_equal(out.agent.weights[k], blank.weights[k]) for k in blank.weights)
    assert (out.spend.env_steps, out.spend.grad_steps, out.spend.flops) == (0, 0, 0.0)
    assert out.history == ()


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_the_budget_is_kept_and_counted(name: str) -> None:
    method, _ = METHODS[name]
    assert isinstance(method, (PPO, DQN))
    spend = _run(name).spend
    assert method.env_steps - 64 < spend.env_steps <= method.env_steps
    if isinstance(method, PPO):
        assert spend.grad_steps == method.epochs * 2 * (method.env_steps // 64)
    assert spend.flops > 0


def test_cloning_counts_three_forward_passes_for_each_lesson() -> None:
    out = _run("cloning")
    per_update = 3 * out.agent.architecture.flops * 8
    assert out.spend.grad_steps == 40
    assert out.spend.flops == 40 * per_update


def test_the_ladder_stops_when_it_is_good_enough() -> None:
    blank = _blank()
    out = train(blank, WORLD, goals=WORLD.goals[0], method=PPO(env_steps=10**7, envs=16, rollout=16, enough=0.9))
    assert out.spend.env_steps < 10**6
    assert judge_of(WORLD, WORLD.goals[0], gamma=0.95).score(out.agent).competence >= 0.9


# -- refusals --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(bad=st.sampled_from([-1, -0.5, float("nan"), float("inf"), -(10**9)]), data=st.data())
def test_values_out_of_range_are_one_error_that_names_them(bad: float, data: st.DataObject) -> None:
    kind, names = data.draw(
        st.sampled_from(
            [
                (Cloning, ("updates", "batch", "rate", "check", "rounds", "episodes", "steps", "enough")),
                (PPO, ("env_steps", "envs", "rollout", "epochs", "batch", "rate", "lam", "clip", "entropy", "limit")),
                (DQN, ("env_steps", "envs", "batch", "rate", "replay", "warmup", "explore", "least", "target_every")),
            ]
        )
    )
    name = data.draw(st.sampled_from(names))
    with pytest.raises(TrainingError, match=rf"^{name} of .* must be .* got [^\n]+$"):
        kind(**{name: bad})


def _refused(kind: type[RetargetError], match: str, **changes: object) -> None:
    plain: dict[str, object] = {
        "agent": _blank(),
        "world": WORLD,
        "goals": WORLD.goals[0],
        "method": Cloning(updates=1),
    }
    plain |= changes
    agent, world = plain.pop("agent"), plain.pop("world")
    with pytest.raises(kind, match=match) as caught:
        train(agent, world, **plain)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_cannot_be_trained_is_one_error() -> None:
    other = make_world("OpenGrid", size=6)
    _refused(AgentError, "is for 25 states, world .* has 36 states", world=other, goals=other.goal)
    _refused(AgentError, "world of 36 states", method=Cloning(teacher=exact_planner(other, other.goal, gamma=0.9)))
    _refused(AgentError, "without a goal slot", goals=WORLD.goals[:2])
    _refused(AgentError, "head='values'", method=DQN())
    _refused(AgentError, "use DQN", agent=_blank("values"), method=PPO())
    _refused(AgentError, "has one; use Cloning", agent=network_for(WORLD, WORLD.goal, kind="gru"), method=PPO())
    _refused(AgentError, "make one with network_for", agent=exact_planner(WORLD, WORLD.goal, gamma=0.9))
    _refused(AgentError, "goal slot, such as a planner", agent=_blank(many=True), goals=WORLD.goals[:2],
             method=Cloning(teacher=_blank()))  # fmt: skip
    _refused(GoalError, "must differ", agent=_blank(many=True), goals=[WORLD.goals[0], WORLD.goals[0]])
    _refused(GoalError, "at least one goal", goals=[])
    _refused(GoalError, "start", starts=[])
    _refused(GoalError, "covers every training start", method=PPO(), starts=list(WORLD.goals[0].states))
    _refused(TrainingError, "gamma must lie", gamma=1.0)
    _refused(TrainingError, "no method", method="cloning")
    _refused(TrainingError, "needs a method", method=())
    _refused(TrainingError, "accelerator 'abacus'", accelerator="abacus")
    _refused(TrainingError, "reward must be one of", method=PPO(reward="money"))
    _refused(TrainingError, "diverged", method=Cloning(updates=40, rate=1e38, enough=2.0))


# -- the catalogue ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"training": "ppo", "env_steps": 4096},
        {"training": "dqn", "env_steps": 640, "starts": "half"},
        {"training": "clone+ppo", "env_steps": 4096},
        {"goals": "many", "goal_input": "place", "layers": 1, "hidden": 8, "updates": 50},
        {"goals": "many", "shuffled": True, "updates": 50},
        {"net": "cnn", "updates": 50, "hidden": 8},
    ],
)
def test_the_catalogue_trains_a_network_from_its_seed(options: dict[str, object]) -> None:
    recipe = Recipe(WORLD, WORLD.goals[0], 3, 0.95)
    one, again = (build_agent(AgentSpec.of("network", **options), recipe) for _ in range(2))
    assert one.digest == again.digest
    assert one.digest != one.blank(0).digest
    assert one.seen_starts is not None
    assert len(one.seen_starts) == (12 if options.get("starts") == "half" else 25)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"net": "perceptron"}, "net of agent 'network'"),
        ({"training": "evolve"}, "training of agent 'network'"),
        ({"hidden": 0}, "hidden of agent 'network' must be at least 1, got 0"),
        ({"updates": -1}, "updates of agent 'network' must be at least 0, got -1"),
        ({"env_steps": -1}, "env_steps of agent 'network' must be at least 0, got -1"),
        ({"layers": -1}, "layers of agent 'network' must be at least 0, got -1"),
        ({"shuffled": True}, "goals='many'"),
        ({"goals": "many", "goal_input": "smell"}, "goal_input of agent 'network'"),
        ({"starts": "none"}, "starts of agent 'network'"),
    ],
)
def test_the_catalogue_refuses_what_is_out_of_range(options: dict[str, object], match: str) -> None:
    with pytest.raises(StudyError, match=match):
        build_agent(AgentSpec.of("network", **options), Recipe(WORLD, WORLD.goals[0], 0, 0.95))


def test_the_catalogue_says_where_a_network_cannot_exist() -> None:
    with pytest.raises(NotApplicableHere, match="without memory"):
        build_agent(AgentSpec.of("network", net="gru", training="ppo"), Recipe(WORLD, WORLD.goals[0], 0, 0.95))


def test_the_examples_of_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "training.md"
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert result.attempted > 15
    assert result.failed == 0
