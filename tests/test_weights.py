"""Weight noise and ablation: planted repairs, second ways to compute every effect, and interventions that must fire."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.agent import Categorical, Part, Real
from retarget.agents import TablePolicy, compile_policy, exact_planner
from retarget.agents.ablation import Site, _of_layer, contrast, sites
from retarget.agents.network_for import network_for
from retarget.agents.neural import Architecture, NetworkAgent, Sensor
from retarget.errors import AgentError, EditError, ProbeError
from retarget.exact import Yardstick
from retarget.probe import Subject
from retarget.probes.weights import Weights, _draw, _repair, _student, half_dose
from retarget.testing import check_probe
from retarget.units import HasUnits, UnitLayer, UnvaryingError

seeds = st.integers(0, 10_000)
FEW = settings(max_examples=10, deadline=None)


def mlp(weights: list[tuple[Any, Any]], features: Any) -> NetworkAgent:
    """An MLP with the layers given as (matrix, bias), on states with the features given."""
    sizes = [np.shape(w)[0] for w, _ in weights]
    architecture = Architecture.of("mlp", inputs=np.shape(features)[1], outputs=sizes[-1], hidden=tuple(sizes[:-1]))
    arrays = [np.asarray(x, np.float64) for pair in weights for x in pair]
    return NetworkAgent(architecture, dict(zip(architecture.names, arrays, strict=True)), Sensor(features=features))


def random_mlp(seed: int, hidden: tuple[int, ...] = (6, 5), n: int = 9) -> NetworkAgent:
    rng = np.random.default_rng(seed)
    sizes = (3, *hidden, 4)
    layers = [(rng.normal(size=(b, a)), rng.normal(size=b)) for a, b in pairwise(sizes)]
    return mlp(layers, rng.normal(size=(n, 3)))


def everywhere(agent: NetworkAgent) -> tuple[np.ndarray, np.ndarray]:
    n = agent.n_states or 0
    return np.arange(n), np.ones(n, bool)


# ------------------------------------------------------------------------------------------------ planted


@given(st.floats(0, 1), st.integers(0, 1))
@FEW
def test_a_copy_behind_a_gate_repairs_the_amount_that_it_was_built_to(rho: float, swap: int) -> None:
    # first layer: a unit, its copy, and a dead one; second: what passes the unit on, and a gate that opens where the
    # copy exceeds the unit by more than a half
    order = [1, 0, 2] if swap else [0, 1, 2]
    first = np.array([[1.0], [1.0], [0.0]])[order]
    second = np.array([[1.0, 0.0, 0.0], [-1.0, 1.0, 0.0]])[:, order]
    agent = mlp(
        [(first, [0, 0, 0]), (second, [0.0, -0.5]), ([[1.0, rho], [0.0, 0.0]], [10.0, 0.0])], np.array([[4.0], [2.0]])
    )
    found = agent.ablated("hidden.0", [0, 1, 2], *everywhere(agent)[:1], among=np.ones(2, bool))
    unit, copy = order.index(0), order.index(1)
    # unit to 3: of the 1 that is lost in the first state the gate gives back rho / 2
    assert found.direct[unit] == pytest.approx([1.0, -1.0]) and found.total[unit] == pytest.approx([1 - rho / 2, -1.0])
    assert found.direct[copy] == pytest.approx([0.0, 0.0]) and found.total[copy] == pytest.approx([0.0, -rho / 2])
    assert not found.total[2].any() and not found.direct[2].any() and found.change.tolist()[2] == 0
    repair = _repair(found.total, found.direct, "", np.random.default_rng(0))
    assert repair.value == pytest.approx(rho / 4, abs=1e-9) and repair.n == 3


def test_a_layer_in_which_nothing_varies_is_refused_not_counted_as_harmless() -> None:
    agent = mlp([([[1.0], [0.0]], [0, 0]), ([[1.0, 1.0], [0.0, 0.0]], [1.0, 0.0])], np.array([[4.0], [2.0]]))
    with pytest.raises(UnvaryingError, match=r"no unit asked for in layer 'hidden.0' varies"):
        agent.ablated("hidden.0", [1], np.arange(2), among=np.ones(2, bool))
    assert agent.ablated("hidden.0", [0, 1], np.arange(2), among=np.ones(2, bool)).change.tolist() == [1.0, 0.0]


# ------------------------------------------------------------------------------------------------ second ways


@given(seeds)
@FEW
def test_effects_in_an_mlp_are_those_of_matrices_written_out(seed: int) -> None:
    agent = random_mlp(seed)
    obs, among = everywhere(agent)
    among = among & (obs != 3)
    w = list(agent.weights.values())
    x = np.asarray(agent.sensor.features, np.float64)
    h0 = np.maximum(x @ w[0].T + w[1], 0)
    pre = h0 @ w[2].T + w[3]
    scores = np.maximum(pre, 0) @ w[4].T + w[5]
    pair = contrast(scores)
    found = agent.ablated("hidden.0", range(6), obs, among=among)
    for u in range(6):
        gone = h0.copy()
        gone[:, u] = h0[among, u].mean()
        after = np.maximum(gone @ w[2].T + w[3], 0) @ w[4].T + w[5]
        # gates as they were: those of the second layer that were open stay open, and no others
        held = ((h0 - gone) @ w[2].T * (pre > 0)) @ w[4].T
        assert found.total[u] == pytest.approx(((scores - after) * pair).sum(1), abs=1e-9)
        assert found.direct[u] == pytest.approx((held * pair).sum(1), abs=1e-9)
        assert np.array_equal(found.policy[u], np.eye(4)[after.argmax(1)])
    assert np.array_equal(found.clean, agent.policy(obs)[0])


@pytest.mark.parametrize("kind", ["mlp", "cnn", "vin"])
def test_in_the_last_layer_direct_and_total_effects_are_one(kind: str) -> None:
    world = retarget.make_world("FourRooms", size=7)
    agent = network_for(world, world.goals[0], kind=kind, seed=1)
    layer = agent.unit_layers()[-1]
    obs = np.arange(world.model.n_states)
    found = agent.ablated(layer.name, range(layer.n_units), obs, among=obs > 0)
    assert np.abs(found.direct).max() > 1e-3
    assert found.total == pytest.approx(found.direct, abs=1e-9)


def one_token(seed: int) -> NetworkAgent:
    architecture = Architecture.of(
        "transformer", n_tokens=1, vocabulary=6, outputs=3, d_model=8, n_heads=2, n_layers=2, d_mlp=5
    )
    rng = np.random.default_rng(seed)
    weights = {k: v + 0.3 * rng.normal(size=v.shape) for k, v in architecture.initial(seed).items()}
    return NetworkAgent(architecture, weights, Sensor(features=np.arange(6)[:, None], join="none"))


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_total_effects_in_a_transformer_are_those_of_rewritten_weights(layer: int) -> None:
    import torch

    agent = one_token(layer)
    site = sites(agent.architecture)[layer]
    reader = site.module.replace("._original_component", "")
    obs, among = everywhere(agent)
    found = agent.ablated(site.layer.name, range(site.layer.n_units), obs, among=among)
    states = torch.from_numpy(obs)
    clean = agent.step(agent.tensors, states)[0].double().numpy()
    given: list[np.ndarray] = []
    handle = agent.architecture.template.get_submodule(site.module).register_forward_pre_hook(
        lambda module, inputs: given.append(inputs[0].double().numpy().copy())
    )
    agent.step(agent.tensors, states)
    handle.remove()
    mean = given[0][:, 0].mean(0)
    for u in range(site.layer.n_units):
        cells = slice(u * site.width, (u + 1) * site.width)
        weight, bias = agent.weights[f"{reader}.weight"].copy(), agent.weights[f"{reader}.bias"].copy()
        bias += weight[:, cells] @ mean[cells]
        weight[:, cells] = 0
        cut = agent.with_arrays({f"{reader}.weight": weight, f"{reader}.bias": bias})
        after = cut.step(cut.tensors, states)[0].double().numpy()
        assert found.total[u] == pytest.approx(((clean - after) * contrast(clean)).sum(1), abs=1e-5)


def test_effects_of_a_transformers_last_neurons_are_those_of_the_final_norm() -> None:
    import torch

    agent = one_token(5)
    obs, among = everywhere(agent)
    inside: dict[str, np.ndarray] = {}
    module = agent.architecture.template
    fc_out = sites(agent.architecture)[-1].module
    handles = [
        module.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, key=key: inside.__setitem__(key, inputs[0][:, -1].double().numpy().copy())
        )
        for key, name in (("neurons", fc_out), ("residual", "bridge.ln_final"))
    ]
    clean = agent.step(agent.tensors, torch.from_numpy(obs))[0].double().numpy()
    for handle in handles:
        handle.remove()
    w: Mapping[str, np.ndarray] = agent.weights
    pair = contrast(clean)

    def scores(residual: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
        centred = residual - residual.mean(1, keepdims=True)
        size = np.sqrt(residual.var(1, keepdims=True) + 1e-5) if scale is None else scale
        return (centred / size * w["bridge.ln_final.weight"] + w["bridge.ln_final.bias"]) @ w["bridge.unembed.weight"].T

    assert scores(inside["residual"]) == pytest.approx(clean, abs=1e-5)
    held = np.sqrt(inside["residual"].var(1, keepdims=True) + 1e-5)
    found = agent.ablated("blocks.1.neurons", range(5), obs, among=among)
    out = w[fc_out.replace("._original_component", "") + ".weight"]
    for u in range(5):
        lost = np.outer(inside["neurons"][:, u] - inside["neurons"][:, u].mean(), out[:, u])
        gone = inside["residual"] - lost
        assert found.total[u] == pytest.approx(((clean - scores(gone)) * pair).sum(1), abs=1e-5)
        assert found.direct[u] == pytest.approx(((clean - scores(gone, held)) * pair).sum(1), abs=1e-5)


def written_out(w: Mapping[str, np.ndarray], x: np.ndarray, put: tuple[int, float] | None = None) -> list[np.ndarray]:
    """Scores `[N, T, A]` and memories `[N, T, H]` of a GRU; with `put`, every reader of a unit reads that number."""
    h = np.zeros((len(x), w["out.weight"].shape[1]))
    scores, memories = [], []
    for t in range(x.shape[1]):
        for reader in ("gates_memory", "out"):
            seen = h.copy()
            if put is not None:
                seen[:, put[0]] = put[1]
            if reader == "gates_memory":
                into = np.split(x[:, t] @ w["gates_in.weight"].T + w["gates_in.bias"], 3, 1)
                back = np.split(seen @ w["gates_memory.weight"].T + w["gates_memory.bias"], 3, 1)
                r, z = (1 / (1 + np.exp(-(into[i] + back[i]))) for i in (0, 1))
                h = (1 - z) * np.tanh(into[2] + r * back[2]) + z * h
            else:
                scores.append(seen @ w["out.weight"].T + w["out.bias"])
        memories.append(h)
    return [np.stack(scores, 1), np.stack(memories, 1)]


def test_a_memory_unit_is_taken_out_of_all_that_reads_it() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = network_for(world, world.goals[0], kind="gru", seed=2, hidden=6)
    # a vector that steers the readout is no part of what is remembered
    agent = agent.with_arrays({"steer:memory": np.linspace(-0.3, 0.5, 6)})
    obs = np.random.default_rng(0).integers(world.model.n_states, size=(4, 5))
    among = np.random.default_rng(1).random(20) < 0.7
    found = agent.ablated("memory", range(6), obs, among=among)
    x = np.asarray(agent.sensor.features, np.float64)[obs]
    w = dict(agent.weights)
    w["out.bias"] = w["out.bias"] + w["out.weight"] @ agent.parts["steer:memory"].array
    scores, memory = written_out(w, x)
    pair = contrast(scores.reshape(20, -1))
    assert found.margin == pytest.approx((scores.reshape(20, -1) * pair).sum(1), abs=1e-9)
    mean = memory.reshape(20, -1)[among].mean(0)
    for u in range(6):
        after = written_out(w, x, (u, mean[u]))[0].reshape(20, -1)
        assert found.total[u] == pytest.approx(found.margin - (after * pair).sum(1), abs=1e-9)
        read = (memory.reshape(20, -1)[:, u] - mean[u]) * (pair @ w["out.weight"])[:, u]
        assert found.direct[u] == pytest.approx(read, abs=1e-9)


# ------------------------------------------------------------------------------------------------ must fire


def test_a_place_that_is_passed_many_times_or_never_is_no_place_to_ablate() -> None:
    world = retarget.make_world("OpenGrid", size=5)
    agent = network_for(world, world.goals[0], kind="vin", seed=0, iterations=5)
    obs = np.arange(world.model.n_states)
    again = Site(UnitLayer("backup", "channel", 8, "gates"), "backup", axis=1)
    with pytest.raises(AgentError, match="fired 5 times in one pass, not once"):
        _of_layer(agent, again, [0], obs, obs >= 0)
    # a list of layers is called by nobody
    plain = random_mlp(0)
    never = Site(UnitLayer("hidden", "hidden unit", 6, "gates"), "hidden")
    with pytest.raises(AgentError, match="fired 0 times in one pass, not once"):
        _of_layer(plain, never, [0], *everywhere(plain))


def test_wrong_layers_units_and_masks_give_one_line() -> None:
    agent = random_mlp(0)
    obs, among = everywhere(agent)
    with pytest.raises(AgentError, match=r"unknown layer of units 'hiden.0' \(did you mean 'hidden.0'\?\)"):
        agent.ablated("hiden.0", [0], obs, among=among)
    with pytest.raises(AgentError, match="has units 0 to 5, got 6"):
        agent.ablated("hidden.0", [6], obs, among=among)
    with pytest.raises(AgentError, match="at least one True"):
        agent.ablated("hidden.0", [0], obs, among=~among)


def test_hooks_are_gone_after_an_ablation() -> None:
    agent = random_mlp(1)
    obs, among = everywhere(agent)
    before = agent.policy(obs)[0]
    agent.ablated("hidden.0", range(6), obs, among=among)
    assert np.array_equal(agent.policy(obs)[0], before)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in agent.architecture.template.modules())


# ------------------------------------------------------------------------------------------------ noise


def part(array: Any, alphabet: Any, role: Any = "weight") -> Part:
    return Part("p", role, np.asarray(array), alphabet)


@given(seeds, st.floats(0, 2))
@FEW
def test_noise_is_as_large_as_its_dose_and_the_same_at_every_dose(seed: int, dose: float) -> None:
    # n = 4096 draws: the relative error of a standard deviation is 1.1%; five of those, a false alarm in a million
    old = np.random.default_rng(seed).normal(3, 5, size=4096)
    draw = _draw([part(old, Real())], seed, 0)
    moved = draw.at(dose)["p"] - old
    assert np.sqrt((moved**2).mean()) == pytest.approx(dose * np.sqrt((old**2).mean()), rel=0.056, abs=1e-12)
    assert moved == pytest.approx(dose * (draw.at(1.0)["p"] - old), abs=1e-9)
    assert np.array_equal(draw.at(0.0)["p"], old)


@given(seeds)
@FEW
def test_cells_are_redrawn_at_the_share_of_the_dose_and_the_same_ones_first(seed: int) -> None:
    n, size = 4096, 8
    old = np.zeros(n, np.int64)
    draw = _draw([part(old, Categorical(size), "table")], seed, 0)
    few, many = draw.at(0.1)["p"], draw.at(0.3)["p"]
    # a redrawn cell is another symbol with chance 7/8; binomial, five standard errors
    for got, dose in ((few, 0.1), (many, 0.3)):
        p = dose * (size - 1) / size
        assert abs((got != old).mean() - p) < 5 * np.sqrt(p * (1 - p) / n)
    assert (many[few != 0] == few[few != 0]).all()


def test_what_holds_a_distribution_or_counts_stays_one() -> None:
    rng = np.random.default_rng(0)
    chances, counts = rng.dirichlet(np.ones(3), (50, 4)), rng.integers(0, 4, (20, 5)).astype(float)
    noisy = _draw([part(chances, Real(), "model")], 0, 0).at(1.0)["p"]
    assert (noisy >= 0).all() and noisy.sum(-1) == pytest.approx(np.ones((50, 4)))
    assert not np.allclose(noisy, chances)
    assert (_draw([part(counts, Real(), "model")], 0, 0).at(1.0)["p"] >= 0).all()
    assert (_draw([part(counts, Real(), "weight")], 0, 0).at(1.0)["p"] < 0).any()


@given(st.floats(0.05, 1.0), st.floats(0.01, 0.99))
def test_half_is_where_the_curve_crosses_it(clean: float, where: float) -> None:
    # straight down to nothing at the dose 2·where
    doses = np.array([0.25, 0.5, 1.0, 1.5, 2.0])
    left = clean * np.clip(1 - doses / (2 * where), 0, None)
    exact = half_dose(doses.tolist(), left, clean)
    knots = np.concatenate([[0.0], doses])
    found = np.interp(exact, knots, np.concatenate([[clean], left]))
    assert exact is not None and found == pytest.approx(clean / 2)
    assert half_dose(doses.tolist(), np.full(5, clean * 0.51), clean) is None


# ------------------------------------------------------------------------------------------------ the probe


@pytest.fixture(scope="module")
def rooms() -> retarget.FiniteWorld:
    return retarget.make_world("FourRooms", size=7)


def test_the_probe_keeps_the_universal_laws() -> None:
    check_probe(Weights(draws=3), max_examples=15)


def test_more_draws_go_on_where_fewer_end(rooms: retarget.FiniteWorld) -> None:
    goal = rooms.goals[0]
    agent = compile_policy(exact_planner(rooms, goal), rooms)
    yardstick = Yardstick.of(rooms, goal, gamma=0.95)
    parts = list(agent.parts.values())
    for n in (2, 5):
        out = Weights(draws=n, doses=(0.2,)).measure(Subject(agent, rooms, goal, seed=7))
        one_by_one = [yardstick.score(agent.with_arrays(_draw(parts, 7, i).at(0.2))).competence for i in range(n)]
        found = out.at("noise_competence", dose=0.2)
        assert found.value == pytest.approx(np.mean(one_by_one), abs=1e-12) and found.n == n
        assert out.at("noise_competence", dose=0.0).value == 1.0
    assert {out[m].status for m in ("self_repair", "ablation_worst", "dead_units")} == {"not_applicable"}
    assert not isinstance(agent, HasUnits)


def test_there_is_no_half_of_what_is_not_there(rooms: retarget.FiniteWorld) -> None:
    """An agent that never does better than chance has nothing to lose; one that keeps it is censored, not missing."""
    goal, n = rooms.goals[0], rooms.model.n_states
    stuck = TablePolicy.from_probabilities(np.tile(np.eye(4)[0], (n, 1)))
    for agent in (stuck, TablePolicy.from_probabilities(np.full((n, 4), 0.25))):
        half = Weights(draws=2, doses=(0.01,)).measure(Subject(agent, rooms, goal))["noise_half"]
        assert half.status == "not_applicable" and "uniform" in half.reason
    kept = Weights(draws=2, doses=(1e-9,)).measure(Subject(exact_planner(rooms, goal), rooms, goal))["noise_half"]
    assert kept.status == "failed" and kept.reason.startswith("censored")


def test_intervals_over_few_draws_are_students() -> None:
    # from a table of Student's t: 12.7062 standard errors on each side of two values, 3.1824 of four
    assert _student(np.array([0.50, 0.51])) == pytest.approx((0.505 - 0.063531, 0.505 + 0.063531), abs=1e-6)
    four = np.array([0.4, 0.5, 0.5, 0.6])
    half = 3.182446 * (0.02 / 3) ** 0.5 / 2
    assert _student(four) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)
    assert _student(np.array([0.0, 1.0])) == (0.0, 1.0)  # cut to the range


def test_a_network_gets_a_row_for_each_layer_and_no_repair_in_the_last(rooms: retarget.FiniteWorld) -> None:
    goal = rooms.goals[0]
    agent = network_for(rooms, goal, kind="mlp", seed=3, hidden=(12, 10))
    assert isinstance(agent, HasUnits)
    out = Weights(draws=2, most_units=10).measure(Subject(agent, rooms, goal))
    rows = [m for m in out.measurements if m.metric == "self_repair"]
    assert [m.protocol.split(":")[0] for m in rows] == ["hidden.0", "hidden.1"] and [m.n for m in rows] == [10, 10]
    assert rows[0].value != 0 and (rows[1].value, rows[1].ci_low, rows[1].ci_high) == (0.0, 0.0, 0.0)
    clean = out.at("noise_competence", dose=0.0).value
    assert {m.value for m in out.measurements if m.metric == "ablation_clean"} == {clean}
    # a part of the layer alone is a sample, all of it is exact
    mean = [m for m in out.measurements if m.metric == "ablation_competence"]
    assert mean[0].ci_low is not None and mean[1].ci_low is None


def test_competence_without_a_unit_is_that_of_the_network_with_its_weights_cut(rooms: retarget.FiniteWorld) -> None:
    goal = rooms.goals[0]
    agent = network_for(rooms, goal, kind="mlp", seed=3, hidden=(6, 5))
    yardstick = Yardstick.of(rooms, goal, gamma=0.95)
    x = np.asarray(agent.sensor.features, np.float64)[~goal.mask(rooms.model.n_states)]
    w = list(agent.weights.values())
    first = np.maximum(x @ w[0].T + w[1], 0)
    mean = first.mean(0)
    clean = np.maximum(first @ w[2].T + w[3], 0) @ w[4].T + w[5]
    names = list(agent.weights)
    scores, effects = [], []
    for u in range(6):
        weight = w[2].copy()
        weight[:, u] = 0
        bias = w[3] + w[2][:, u] * mean[u]
        scores.append(yardstick.score(agent.with_arrays({names[2]: weight, names[3]: bias})).competence)
        after = np.maximum(first @ weight.T + bias, 0) @ w[4].T + w[5]
        effects.append(np.abs(((clean - after) * contrast(clean)).sum(1)).mean())
    out = Weights(draws=2).measure(Subject(agent, rooms, goal))
    row = {m.metric: m.value for m in out.measurements if (m.protocol or "").startswith("hidden.0")}
    assert row["ablation_competence"] == pytest.approx(np.mean(scores), abs=1e-9)
    assert row["ablation_worst"] == pytest.approx(min(scores), abs=1e-9)
    # over the states in which the episode goes on: on goal A nothing is decided
    assert row["total_effect"] == pytest.approx(np.mean(effects), abs=1e-12)


def test_a_recurrent_network_is_judged_by_following_it(rooms: retarget.FiniteWorld) -> None:
    agent = network_for(rooms, rooms.goals[0], kind="gru", seed=0, hidden=8)
    out = Weights(draws=2, doses=(0.1,), most_units=8, steps=6).measure(Subject(agent, rooms, rooms.goals[0]))
    assert out["self_repair"].status == "ok" and out["self_repair"].n == 2
    assert out["ablation_clean"].status == "not_applicable"


def test_an_agent_that_refuses_the_damage_is_a_failed_row(rooms: retarget.FiniteWorld) -> None:
    class Stubborn(TablePolicy):
        def with_arrays(self, arrays: Mapping[str, np.ndarray]) -> TablePolicy:
            raise EditError("no")

    table = compile_policy(exact_planner(rooms, rooms.goals[0]), rooms)
    agent = Stubborn(**{f: getattr(table, f) for f in table.__dataclass_fields__})
    out = Weights(draws=2).measure(Subject(agent, rooms, rooms.goals[0]))
    assert out["noise_competence"].status == "failed" and "cannot be judged: no" in out["noise_competence"].reason


def test_in_a_world_of_continuous_states_noise_is_judged_by_episodes() -> None:
    car = retarget.make_world("MountainCar")
    agent = network_for(car, car.goal, kind="mlp", seed=0, hidden=(4,))
    out = Weights(draws=8, doses=(0.5,)).measure(Subject(agent, car, car.goal, gamma=car.gamma))
    assert out.at("noise_competence", dose=0.5).n == 2
    assert "continuum" in out["self_repair"].reason


@pytest.mark.parametrize("options", [{"doses": (0.3, 0.1)}, {"doses": (0.0, 0.1)}, {"draws": 1}, {"steps": 0}])
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ProbeError, match=r"option '(draws|steps)' must be at least|doses must rise"):
        Weights(**options)
