"""Editors of networks against planted answers, the exact table search, and fresh scoring."""

import numpy as np
import pytest

from retarget.agents.compiled import compile_policy
from retarget.agents.neural import STEER, Architecture, GoalInput, NetworkAgent, Sensor
from retarget.agents.wrappers import ModelWorld
from retarget.code import ENUMERATIVE
from retarget.edit import Edit, Sparse, difference
from retarget.editors import (
    ActivationEditor,
    BiasEditor,
    LowRankEditor,
    RetrainWeightsEditor,
    SlotEditor,
    SparseWeightsEditor,
    TableEditor,
    Task,
    network_editors,
    prove,
    shortest,
)
from retarget.editors.activation import mean_differences
from retarget.editors.bound import fewest_cells_for_level
from retarget.editors.gradient import Tuner, names_of
from retarget.editors.hunt import cheapest, short_lessons
from retarget.envs import make_world
from retarget.exact import policy_table
from retarget.goal import StateGoal
from retarget.judge import judge_of
from retarget.lessons import lessons_of
from retarget.world import FiniteModel

GAMMA = 0.95


def linear(world, goal, *, size=4.0):
    """A network without hidden layers on one-hot states: a table of logits, `size` on the first right action."""
    s, a = world.model.n_states, world.model.n_actions
    lessons = lessons_of(world, goal, gamma=GAMMA)
    logits = np.zeros((a, s))
    logits[lessons.right.argmax(1), lessons.obs] = size
    arch = Architecture.of("mlp", inputs=s, outputs=a, hidden=(), bias=False)
    return NetworkAgent(arch, {"out.weight": logits}, Sensor(features=np.eye(s, dtype=np.float32)))


def best(task, editor):
    return shortest(task, editor.search(task))


@pytest.fixture(scope="module")
def grid():
    return make_world("OpenGrid", size=5)


def test_a_linear_network_needs_about_the_cells_of_the_exact_table_search(grid):
    """Each weight of a linear policy on one-hot states is one logit of one state: to change what is done there, at
    least one must be written. So no edit names fewer weights than the proven bound on table cells, and the search
    should need few more than the exact table search (allowed: half as many again, and two)."""
    a, b = grid.as_goal((0, 0)), grid.as_goal((4, 4))
    agent, judge = linear(grid, a), judge_of(grid, b, gamma=GAMMA)
    task = Task(agent, grid, judge, 0.95)
    found = best(task, SparseWeightsEditor())
    compiled = compile_policy(agent, grid)
    table = best(Task(compiled, grid, judge, 0.95), TableEditor())
    changed = difference(compiled, table.edit.apply(compiled)).n_cells
    bound = fewest_cells_for_level(judge, policy_table(agent, grid.model), 0.95)
    assert bound is not None and bound >= 2
    assert bound <= found.edit.n_cells <= 1.5 * changed + 2


def corridor(n=7):
    """States in a row: action 0 goes left, action 1 right."""
    steps = [[max(i - 1, 0), min(i + 1, n - 1)] for i in range(n)]
    return ModelWorld(FiniteModel.deterministic(steps), StateGoal.of([0]), name="corridor")


def planted(hidden_bias):
    """A network on a corridor in which nothing but the bias of one hidden unit can be seen."""
    world = corridor()
    s, n_actions = world.model.n_states, world.model.n_actions
    arch = Architecture.of("mlp", inputs=s, outputs=n_actions, hidden=(3,), act="tanh")
    weights = arch.initial(0)
    weights = {k: np.zeros_like(v) for k, v in weights.items()}
    weights["hidden.0.0.bias"][1] = hidden_bias
    return world, arch, weights


def goals_of_corridor(world):
    left, right = world.as_goal(0), world.as_goal(world.model.n_states - 1)
    return left, right


def first_action(world, goal):
    """The action that is right in every state of the corridor but the goal."""
    right = lessons_of(world, goal, gamma=GAMMA).right > 0
    return int(right.all(0).argmax())


@pytest.mark.parametrize("editor", [SparseWeightsEditor(), SparseWeightsEditor(by="fisher"), BiasEditor()])
def test_a_goal_that_is_one_bias_is_found_with_one_number(editor):
    world, arch, weights = planted(1.0)
    left, right = goals_of_corridor(world)
    weights["out.weight"][first_action(world, left), 1] = 1.0
    weights["out.weight"][first_action(world, right), 1] = -1.0
    agent = NetworkAgent(arch, weights, Sensor(features=np.eye(world.model.n_states, dtype=np.float32)))
    assert judge_of(world, left, gamma=GAMMA).score(agent).competence == 1.0
    task = Task(agent, world, judge_of(world, right, gamma=GAMMA), 0.95)
    found = best(task, editor)
    assert found.edit.n_cells == 1


def test_a_planted_steering_direction_is_found_and_thinned_to_it():
    """The output weights ignore all hidden units but one, whose bias is zero: a vector on that unit alone decides."""
    world, arch, weights = planted(0.0)
    left, right = goals_of_corridor(world)
    weights["out.weight"][first_action(world, right), 1] = 1.0
    weights["out.weight"][first_action(world, left), 1] = -1.0
    weights["out.bias"][first_action(world, left)] = 0.5
    agent = NetworkAgent(arch, weights, Sensor(features=np.eye(world.model.n_states, dtype=np.float32)))
    task = Task(agent, world, judge_of(world, right, gamma=GAMMA), 0.95)
    found = best(task, ActivationEditor())
    (patch,) = found.edit.patches
    assert patch.part == STEER + "hidden.0"
    assert patch.index.tolist() == [1]
    # scores are (v, 0.5 - v), with 0.5 for the rest: v must exceed 0.25
    assert patch.value[0] > 0.25


def slotted(world, goals):
    """Linear scores of state and goal slot, planted: each goal's whole behaviour hangs on its slot cell."""
    s = world.model.n_states
    n_actions = world.model.n_actions
    arch = Architecture.of("mlp", inputs=2 * s, outputs=n_actions, hidden=(2,), act="tanh")
    weights = {k: np.zeros_like(v) for k, v in arch.initial(0).items()}
    for unit, goal in enumerate(goals):
        weights["hidden.0.0.weight"][unit, s + goal.states[0]] = 2.0
        weights["out.weight"][first_action(world, goal), unit] = 3.0
    goal_input = GoalInput("one_hot", s, goals=tuple(goals))
    return NetworkAgent(
        arch, weights, Sensor(features=np.eye(s, dtype=np.float32), join="append"), goal_input=goal_input,
        goal=goal_input.encode(goals[0]),
    )  # fmt: skip


def test_the_mean_difference_between_goals_is_that_of_the_planted_units():
    world = corridor()
    goals = goals_of_corridor(world)
    agent = slotted(world, goals)
    task = Task(agent, world, judge_of(world, goals[1], gamma=GAMMA), 0.95)
    vector = mean_differences(task, np.arange(world.model.n_states))[STEER + "hidden.0"]
    np.testing.assert_allclose(vector, [-np.tanh(2.0), np.tanh(2.0)])
    assert best(task, ActivationEditor(steps=1)) is not None
    slot = best(task, SlotEditor())
    assert slot.edit.parts_touched == ("goal",) and slot.competence == 1.0


def test_every_candidate_keeps_its_promise_and_its_length(grid):
    """Competence equals that of a fresh application, and bits those of the encoding: agent and blank, all editors."""
    a, b = grid.as_goal((0, 0)), grid.as_goal((4, 4))
    s = grid.model.n_states
    arch = Architecture.of("mlp", inputs=s, outputs=grid.model.n_actions, hidden=(16,))
    agent = NetworkAgent(arch, arch.initial(0), Sensor(features=np.eye(s, dtype=np.float32)), seed=0)
    tuner = Tuner(agent, names_of(agent, "weight"), lessons_of(grid, a, gamma=GAMMA))
    agent = agent.with_arrays(tuner.arrays(tuner.fit(tuner.base, steps=300, lr=0.02)))
    assert judge_of(grid, a, gamma=GAMMA).score(agent).competence == 1.0
    won = {}
    for who in (agent, agent.blank(0)):
        task = Task(who, grid, judge_of(grid, b, gamma=GAMMA), 0.95, 2000)
        for editor in network_editors():
            found = editor.search(task)
            for c in found:
                prove(task, c)
                assert c.bits == ENUMERATIVE.encode(c.edit, who.layout).n_bits
                told = 0 if editor.name == "retrain_weights" else short_lessons(task)[1].simulations
                assert c.spend.grad_steps + c.spend.simulations - told <= 2 * task.budget
            won[who is agent, editor.name] = shortest(task, found)
    for name in ("sparse_weights", "low_rank", "retrain_weights"):
        assert won[True, name] is not None and won[False, name] is not None
    few = max(won[True, "sparse_weights"].bits, won[True, "low_rank"].bits)
    assert few < won[True, "retrain_weights"].bits


def test_the_gradient_is_that_of_finite_differences(grid):
    agent = linear(grid, grid.as_goal((0, 0)), size=1.0)
    tuner = Tuner(agent, ["out.weight"], lessons_of(grid, grid.as_goal((4, 4)), gamma=GAMMA))
    slope = tuner.gradient(tuner.base).numpy()
    for cell in np.argsort(-np.abs(slope))[:5].tolist():
        up, down = tuner.base.clone(), tuner.base.clone()
        up[cell] += 1e-5
        down[cell] -= 1e-5
        assert slope[cell] == pytest.approx(float(tuner.loss(up) - tuner.loss(down)) / 2e-5, rel=1e-4)


def test_the_loss_of_logits_is_minus_the_log_probability_of_right_actions(grid):
    agent = linear(grid, grid.as_goal((0, 0)), size=1.0)
    lessons = lessons_of(grid, grid.as_goal((4, 4)), gamma=GAMMA)
    tuner = Tuner(agent, ["out.weight"], lessons)
    tuner.temperature = 1.0
    logits = agent.weights["out.weight"].T[lessons.obs]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(tuner.losses(tuner.base), -np.log((probs * (lessons.right > 0)).sum(1)), rtol=1e-9)


def test_cheap_numbers_are_the_cheapest_within_reach():
    """Against every number m 2**e with m below 32 and e from -6 to 6, by the length of a real edit."""
    world, arch, weights = planted(1.0)
    agent = NetworkAgent(arch, weights, Sensor(features=np.eye(world.model.n_states, dtype=np.float32)))

    def bits(x):
        return ENUMERATIVE.length(Edit.of(agent, Sparse("hidden.0.0.bias", [0], [float(x)])), agent.layout)

    grid = np.array([0.0, *(m * 2.0**e * sign for m in range(1, 32) for e in range(-6, 7) for sign in (1, -1))])
    rng = np.random.default_rng(0)
    for value in rng.normal(size=40):
        within = 0.2 * abs(value)
        near = grid[np.abs(grid - value) <= within]
        (found,) = cheapest(np.array([value]), np.array([within]))
        assert abs(found - value) <= within
        assert bits(found) == min(bits(x) for x in near)


def test_retraining_takes_the_steps_that_it_says(grid):
    agent = linear(grid, grid.as_goal((0, 0)))
    task = Task(agent, grid, judge_of(grid, grid.as_goal((4, 4)), gamma=GAMMA), 0.95)
    found = RetrainWeightsEditor(first=50, doublings=3, lr=0.2).search(task)
    n = len(lessons_of(grid, task.goal, gamma=GAMMA))
    for c in found:
        assert c.spend.grad_steps in (50, 150, 350, 750)
        scoring = c.spend.flops - 3 * agent.flops_per_action * n * c.spend.grad_steps
        # every state takes a forward pass, and following the behaviour two operations a state
        assert scoring == c.spend.simulations * grid.model.n_states * (agent.flops_per_action + 2)


def test_low_rank_finds_a_planted_product():
    """All behaviour hangs on one rank-one matrix: out.weight = sign * u v'. A product of rank one undoes it."""
    world, arch, weights = planted(1.0)
    left, right = goals_of_corridor(world)
    weights["out.weight"][first_action(world, left), 1] = 1.0
    weights["out.weight"][first_action(world, right), 1] = -1.0
    agent = NetworkAgent(arch, weights, Sensor(features=np.eye(world.model.n_states, dtype=np.float32)))
    task = Task(agent, world, judge_of(world, right, gamma=GAMMA), 0.95)
    (patch,) = best(task, LowRankEditor()).edit.patches
    assert patch.kind == "lowrank" and patch.left.shape[1] == 1
