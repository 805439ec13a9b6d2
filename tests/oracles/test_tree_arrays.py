"""The array engine of the tree search against the definition in plain Python, and against the compiled engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retarget
from retarget.errors import AgentError
from retarget.rng import stream
from retarget.search import Found, TreeModel, TreeSettings, array_steps, arrays, reference, search
from retarget.testing import models

#: Of the Gumbel method, whose exponentials and logarithms torch rounds in its own way.
TOLERANCE = 1e-12


@st.composite
def tree_models(draw: st.DrawFn) -> TreeModel:
    """Any finite model, some successors not known; rewards and values of both signs; any priors, zeros among them.

    Numbers come from a coarse grid, so that equals are common. Logits are multiples of an odd number: then no two
    different shares of visits are within rounding of each other, where the engines may part.
    """
    model = draw(models())
    s, a, k = model.next_state.shape
    hidden = draw(st.lists(st.integers(0, 7), min_size=s * a * k, max_size=s * a * k))
    nxt = np.where(np.array(hidden).reshape(s, a, k) == 0, s, model.next_state)
    reward = np.array(draw(st.lists(st.sampled_from((0, 0, 0, 0, 1, -1, 0.3)), min_size=s, max_size=s)), dtype=float)
    value = np.array(draw(st.lists(st.integers(-4, 4), min_size=s, max_size=s))) / draw(st.sampled_from((4.0, 3.0)))
    return TreeModel(nxt, model.prob, reward, value, draw(priors(s, a)))


@st.composite
def priors(draw: st.DrawFn, s: int, a: int) -> np.ndarray:
    steps = np.array(draw(st.lists(st.integers(-2, 2), min_size=s * a, max_size=s * a))).reshape(s, a)
    part = np.exp(0.7310585 * steps)
    part[(steps == -2) & (steps.max(1, keepdims=True) > -2)] = draw(st.sampled_from((0.0, 0.1)))
    return np.asarray(part / part.sum(1, keepdims=True))


@st.composite
def rules(draw: st.DrawFn) -> TreeSettings:
    method = draw(st.sampled_from(("puct", "gumbel")))
    return TreeSettings(
        method=method,
        simulations=draw(st.integers(1, 40)),
        gamma=draw(st.sampled_from((0.95, 0.5, 1.0))),
        exploration=draw(st.sampled_from((1.25, 0.0, 4.0))),
        backup=draw(st.sampled_from(("mean", "max"))) if method == "puct" else "mean",
        rollout_steps=draw(st.sampled_from((0, 0, 1, 6))),
        considered=draw(st.integers(2, 5)),
        visit_scale=draw(st.sampled_from((50.0, 1.0))),
        gumbel_scale=draw(st.sampled_from((0.0, 1.0))),
    )


def _same(one: Found, other: Found, *, exact: bool) -> None:
    for name in ("visits", "action", "steps", "nodes"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name in ("q", "value", "policy"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=0 if exact else TOLERANCE, err_msg=name)


class Net:
    """Leaf values and priors from tables of its own, with and without a copy to NumPy."""

    def __init__(self, value: np.ndarray, prior: np.ndarray) -> None:
        self.value, self.prior = value, prior
        self.asked: list[np.ndarray] = []

    def __call__(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(states)
        return self.value[states], self.prior[states]


class DeviceNet(Net):
    def on_device(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert states.dtype == torch.int64
        return torch.tensor(self.value)[states], torch.tensor(self.prior)[states]

    def __call__(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise AssertionError("there is a way without a copy")


@settings(max_examples=150, deadline=None)
@given(st.data(), tree_models(), rules())
def test_the_arrays_find_what_the_definition_finds(data: st.DataObject, model: TreeModel, how: TreeSettings) -> None:
    n = data.draw(st.integers(1, 5))
    roots = np.array(data.draw(st.lists(st.integers(0, model.n_states - 1), min_size=n, max_size=n)))
    keys = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=n, max_size=n)), dtype=np.uint64)
    net = None
    if data.draw(st.booleans()):
        net = Net(model.value[::-1].copy(), data.draw(priors(model.n_states, model.n_actions)))
    plain, found = (search(model, roots, settings=how, keys=keys, evaluate=net, engine=e) for e in ("plain", "arrays"))
    _same(plain, found, exact=how.method == "puct")
    if net is not None:
        # the same leaves, in the same order, once a simulation
        assert len(net.asked) == 2 * (how.simulations + 1)
        np.testing.assert_array_equal(net.asked[: how.simulations + 1], net.asked[how.simulations + 1 :])
        quick = arrays.search_arrays(model, roots, keys, how, DeviceNet(net.value, net.prior), "cpu", None)
        _same(found, quick, exact=True)


def _drawn(seed: int, s: int, a: int, k: int, *, unknown: float = 0.0) -> TreeModel:
    """A model with numbers drawn from continuous distributions: no two are equal."""
    rng = stream(seed, "test_tree_arrays")
    nxt = rng.integers(0, s, (s, a, k))
    nxt[rng.random(nxt.shape) < unknown] = s
    prob = rng.random((s, a, k)) + 0.05
    reward = np.where(rng.random(s) < 0.1, rng.normal(size=s), 0.0)
    return TreeModel(
        nxt, prob / prob.sum(-1, keepdims=True), reward, rng.normal(size=s), rng.dirichlet(np.ones(a), size=s)
    )


LARGER = [
    pytest.param(1, how, id=f"K1-{name}")
    for name, how in (
        ("puct", TreeSettings(simulations=300)),
        ("max", TreeSettings(simulations=200, backup="max")),
        ("gumbel", TreeSettings(method="gumbel", simulations=300, gumbel_scale=1.0)),
        ("rollouts", TreeSettings(simulations=100, rollout_steps=20)),
    )
] + [
    pytest.param(3, how, id=f"K3-{name}")
    for name, how in (
        ("puct", TreeSettings(simulations=150)),
        ("max", TreeSettings(simulations=150, backup="max")),
        ("gumbel", TreeSettings(method="gumbel", simulations=150)),
        ("rollouts", TreeSettings(method="gumbel", simulations=60, rollout_steps=20)),
    )
]


@pytest.mark.parametrize(("k", "how"), LARGER)
def test_the_arrays_find_what_the_definition_finds_with_more_simulations(k: int, how: TreeSettings) -> None:
    """Deep enough that the range of a tree's values changes while nodes in it wait."""
    model = _drawn(9, 30, 4, k, unknown=0.02)
    found, plain = (search(model, np.arange(6), settings=how, engine=e) for e in ("arrays", "plain"))
    _same(plain, found, exact=how.method == "puct")


@pytest.mark.parametrize(("k", "how"), LARGER)
def test_the_arrays_find_what_the_compiled_engine_finds(k: int, how: TreeSettings) -> None:
    pytest.importorskip("retarget.search.compiled")
    model = _drawn(0, 60, 4, k, unknown=0.02)
    roots = np.arange(240) % 60
    keys = stream(1, "test_tree_arrays").integers(0, 2**63, len(roots)).astype(np.uint64)
    found, compiled = (search(model, roots, settings=how, keys=keys, engine=e) for e in ("arrays", "compiled"))
    _same(compiled, found, exact=how.method == "puct")


def test_on_a_slippery_grid_the_engines_agree() -> None:
    pytest.importorskip("retarget.search.compiled")
    world = retarget.make_world("FourRooms", size=7, slip=0.25)
    model = world.model
    s, a, _ = model.next_state.shape
    reward = world.goal.mask(s).astype(float)
    tree = TreeModel(model.next_state, model.prob, reward, np.zeros(s), np.full((s, a), 1 / a))
    for how in (TreeSettings(simulations=200), TreeSettings(method="gumbel", simulations=200)):
        found, compiled = (search(tree, np.arange(s), settings=how, engine=e) for e in ("arrays", "compiled"))
        _same(compiled, found, exact=how.method == "puct")


@pytest.mark.parametrize(("k", "how"), [p.values for p in LARGER])
def test_a_batch_is_its_roots_one_by_one(k: int, how: TreeSettings) -> None:
    model = _drawn(2, 20, 3, k, unknown=0.05)
    roots = np.arange(6)
    whole = search(model, roots, settings=how, engine="arrays")
    for i in roots:
        one = search(model, roots[i : i + 1], settings=how, engine="arrays")
        row = Found(**{name: getattr(whole, name)[i : i + 1] for name in Found.__dataclass_fields__})
        _same(one, row, exact=True)


@pytest.mark.parametrize(("k", "how"), [p.values for p in LARGER])
def test_bringing_nodes_up_to_date_in_parts_changes_nothing(
    k: int, how: TreeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _drawn(3, 20, 3, k)
    whole = search(model, np.arange(5), settings=how, engine="arrays")
    monkeypatch.setattr(arrays, "TOGETHER", 1)
    _same(search(model, np.arange(5), settings=how, engine="arrays"), whole, exact=True)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.integers(0, 70_000), st.integers(0, 140_000))
def test_random_numbers_are_those_of_the_definition(keys: list[int], simulation: int, step: int) -> None:
    words = torch.tensor(np.array(keys, dtype=np.uint64).view(np.int64))
    assert array_steps.mix(words).numpy().view(np.uint64).tolist() == [reference.mix(x) for x in keys]
    floats = array_steps.draws(array_steps.mix(words ^ simulation), step)
    assert floats.tolist() == [reference.draw(x, simulation, step) for x in keys]


@given(st.integers(1, 6), st.data())
def test_of_equals_the_first_is_taken(a: int, data: st.DataObject) -> None:
    number = st.sampled_from((-np.inf, -1.0, -0.0, 0.0, 1.0))
    rows = data.draw(st.lists(st.lists(number, min_size=a, max_size=a), min_size=1, max_size=20))
    chosen = array_steps.first_best(torch.tensor(rows, dtype=torch.float64).t().contiguous())
    assert chosen.tolist() == [row.index(max(row)) for row in rows]


def test_threads_are_left_as_they_were() -> None:
    model = _drawn(4, 5, 2, 1)
    before = torch.get_num_threads()
    during: list[int] = []

    def evaluate(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        during.append(torch.get_num_threads())
        if len(during) == 3:
            raise KeyError("on purpose")
        return model.value[states], model.prior[states]

    try:
        torch.set_num_threads(2)
        search(model, np.arange(5), settings=TreeSettings(simulations=2), engine="arrays")
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError):
            search(model, np.arange(5), settings=TreeSettings(simulations=9), evaluate=evaluate, engine="arrays")
        assert torch.get_num_threads() == 2
        assert during == [1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_what_does_not_fit_is_refused_before_it_is_allocated() -> None:
    model = _drawn(5, 5, 2, 1)
    how = TreeSettings(simulations=64)
    need = arrays.bytes_needed(model, how, 5)
    search(model, np.arange(5), settings=how, engine="arrays", memory_limit_bytes=need)
    with pytest.raises(AgentError, match=rf"needs {need} bytes on cpu, the limit is {need - 1}; pass fewer roots"):
        search(model, np.arange(5), settings=how, engine="arrays", memory_limit_bytes=need - 1)
    with pytest.raises(AgentError, match=r"65536 simulations needs \d{12,} bytes"):
        search(model, np.zeros(500_000, np.int64), settings=TreeSettings(simulations=65_536), engine="arrays")


@pytest.mark.parametrize("wrong", ["value", "prior", "shape"])
def test_a_network_on_the_device_that_fails_is_named(wrong: str) -> None:
    model = _drawn(6, 5, 2, 1)
    value, prior = model.value.copy(), model.prior.copy()
    if wrong == "value":
        value[3] = np.nan
    elif wrong == "prior":
        prior[3, 1] = np.inf
    else:
        prior = prior[:, :1]
    message = r"need the shapes \(5,\) and \(5, 2\), got \(5,\) and \(5, 1\)" if wrong == "shape" else "for state 3"
    with pytest.raises(AgentError, match=message):
        arrays.search_arrays(
            model, np.arange(5), np.zeros(5, np.uint64), TreeSettings(), DeviceNet(value, prior), "cpu", None
        )


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta:abc"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(AgentError, match=f"device '{device}' cannot hold a search"):
        search(_drawn(7, 5, 2, 1), np.arange(5), settings=TreeSettings(), engine="arrays", device=device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize(("k", "how"), [p.values for p in LARGER])
def test_a_gpu_finds_what_the_definition_finds(k: int, how: TreeSettings) -> None:
    model = _drawn(8, 20, 3, k, unknown=0.05)
    plain = search(model, np.arange(8), settings=how, engine="plain")
    found = search(model, np.arange(8), settings=how, engine="arrays", device="cuda")
    # a GPU may round sums and products of one expression together
    for name in ("visits", "action", "steps", "nodes"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(found, name), err_msg=name)
    for name in ("q", "value", "policy"):
        np.testing.assert_allclose(getattr(plain, name), getattr(found, name), rtol=0, atol=TOLERANCE, err_msg=name)
