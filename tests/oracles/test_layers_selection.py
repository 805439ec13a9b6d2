"""The selection rule against one written in another way, and the figures it needs against a network in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from retarget.analysis.layers.policies import ArrayInputs
from retarget.analysis.layers.readable import Batch, Pass, Readable, Reader, Site, Write
from retarget.analysis.layers.select import DIVERGES, FAILS, LATE, UNDEFINED, Evaluation, evaluate_candidates, select
from retarget.analysis.layers.steering import Direction
from retarget.errors import LayersError

LAYERS = 10
figure = st.one_of(st.floats(-3, 3), st.sampled_from([0.0, 0.1, math.nan, math.inf]))
one = st.builds(
    Evaluation, st.integers(-3, -1), st.integers(0, LAYERS - 1), figure, figure, figure.map(lambda x: abs(x))
)
lists = st.lists(one, max_size=12, unique_by=lambda e: (e.position, e.layer))


@settings(deadline=None)
@given(lists, st.floats(0, 1), st.floats(-1, 1), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_the_rule_is_that_of_the_paper(rows: list[Evaluation], limit: float, floor: float, share: float) -> None:
    found = select(rows, n_layers=LAYERS, kl_limit=limit, steer_floor=floor, last_layers_left_out=share)
    table = np.array([[e.layer, e.refusal_score, e.steering_score, e.kl_div_score] for e in rows]).reshape(-1, 4)
    ok = np.isfinite(table).all(1) & (table[:, 0] < LAYERS - round(share * LAYERS))
    ok &= (table[:, 3] <= limit) & (table[:, 2] >= floor)
    if not ok.any():
        assert found.best is None and found.layer is None and found.position is None
        assert str(found.reason).startswith(f"no candidate is left of {len(rows)}")
    else:
        score = np.where(ok, table[:, 1], np.inf)
        assert found.best is rows[int(score.argmin())] and found.reason is None
        assert (found.position, found.layer) == (found.best.position, found.best.layer)
    assert [w is None for w in found.why] == ok.tolist()
    assert sum(found.left_out.values()) == int((~ok).sum())
    frame = found.frame()
    assert frame["kept"].to_list() == ok.tolist() and frame["why"].to_list() == list(found.why)
    assert frame["kl_div_score"].null_count() == int((~np.isfinite(table[:, 3])).sum())


@settings(deadline=None)
@given(lists, one, st.floats(0.01, 2), st.floats(0.01, 2))
def test_a_dominated_candidate_never_wins(
    rows: list[Evaluation], winner: Evaluation, worse: float, less: float
) -> None:
    assume(all(map(math.isfinite, (winner.refusal_score, winner.steering_score, winner.kl_div_score))))
    loser = Evaluation(
        -9, winner.layer, winner.refusal_score + worse, winner.steering_score - less, winner.kl_div_score
    )
    for order in ([*rows, loser, winner], [loser, *rows, winner], [winner, loser, *rows]):
        assert select(order, n_layers=LAYERS).best is not loser


@settings(deadline=None)
@given(lists, st.floats(0, 2), st.floats(0, 2), st.floats(-2, 2), st.floats(0, 2), st.floats(0, 1), st.floats(0, 1))
def test_a_weaker_rule_never_chooses_a_worse_one(
    rows: list[Evaluation], kl: float, more: float, floor: float, less: float, share: float, other: float
) -> None:
    strict = select(rows, n_layers=LAYERS, kl_limit=kl, steer_floor=floor, last_layers_left_out=max(share, other))
    for weak in (
        select(rows, n_layers=LAYERS, kl_limit=kl + more, steer_floor=floor, last_layers_left_out=max(share, other)),
        select(rows, n_layers=LAYERS, kl_limit=kl, steer_floor=floor - less, last_layers_left_out=max(share, other)),
        select(rows, n_layers=LAYERS, kl_limit=kl, steer_floor=floor, last_layers_left_out=min(share, other)),
    ):
        if strict.best is not None:
            assert weak.best is not None and weak.best.refusal_score <= strict.best.refusal_score


@settings(deadline=None)
@given(lists, st.randoms(use_true_random=False))
def test_the_order_of_candidates_matters_to_equals_only(rows: list[Evaluation], random: object) -> None:
    mixed = list(rows)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    a, b = select(rows, n_layers=LAYERS), select(mixed, n_layers=LAYERS)
    assert (a.best is None) == (b.best is None)
    if a.best is not None and b.best is not None:
        assert a.best.refusal_score == b.best.refusal_score


def test_reasons_and_boundaries() -> None:
    good = Evaluation(-1, 3, -2.0, 1.0, 0.05)
    rows = [
        good, replace(good, layer=8), replace(good, layer=7, kl_div_score=0.1, steering_score=0.0, refusal_score=5.0),
        replace(good, layer=1, kl_div_score=0.1000001), replace(good, layer=2, steering_score=-1e-9),
        replace(good, layer=4, refusal_score=math.nan), replace(good, layer=9, kl_div_score=9.0),
    ]  # fmt: skip
    found = select(rows, n_layers=10)
    assert found.why == (None, LATE, None, DIVERGES, FAILS, UNDEFINED, LATE)
    assert found.left_out == {LATE: 2, DIVERGES: 1, FAILS: 1, UNDEFINED: 1}
    assert found.best is good
    # 18 layers: the text allows layers below 14.4, the released program those below 14
    assert select([replace(good, layer=14)], n_layers=18).best is None
    assert select([replace(good, layer=13)], n_layers=18).layer == 13
    first = replace(good, position=-2)
    assert select([first, good], n_layers=10).best is first
    assert select([], n_layers=10).reason == "no candidate is left of 0"
    mixed = select([good, replace(good, position="token 7", layer=2)], n_layers=10).frame()
    assert mixed["position"].to_list() == ["-1", "token 7"]


@pytest.mark.parametrize(
    "options", [{"kl_limit": math.nan}, {"steer_floor": math.nan}, {"last_layers_left_out": 1.5},
                {"last_layers_left_out": -0.1}, {"n_layers": 0}],
)  # fmt: skip
def test_limits_that_are_none(options: dict[str, float]) -> None:
    with pytest.raises(LayersError, match="the rule needs limits"):
        select([], **({"n_layers": 3} | options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- figures, closed form

D, V = 5, 4


@dataclass(frozen=True, eq=False)
class Linear(Readable):
    """x0 -> x1 = x0 + x0 M -> x2 = x1 + x1 M -> x2 W, at each token by itself."""

    matrix: np.ndarray
    out: np.ndarray
    label = "linear"
    digest = "linear0"

    @property
    def sites(self) -> tuple[Site, ...]:
        return (
            Site("blocks.0.hook_in", 0, "embedding", D), Site("blocks.0.hook_out", 1, "residual", D),
            Site("blocks.1.hook_out", 2, "residual", D),
        )  # fmt: skip

    def site(self, hook: str) -> Site:
        for site in self.sites:
            if site.hook == hook:
                return site
        raise LayersError(f"unknown hook {hook!r}")

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        fired = [0] * len(write)
        x = np.asarray(batch.inputs, dtype=np.float64)
        for site in self.sites:
            x = x if site.layer == 0 else x + x @ self.matrix
            for i, w in enumerate(write):
                if w.hook == site.hook:
                    unit = w.direction / np.linalg.norm(w.direction)
                    x = x - (x @ unit)[..., None] * unit if w.kind == "ablate" else x + w.coefficient * w.direction
                    fired[i] += 1
        return Pass(torch.tensor(x @ self.out), tuple(fired))


def _softmax(x: np.ndarray) -> np.ndarray:
    p = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(p / p.sum(-1, keepdims=True))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_figures_are_those_of_the_closed_form(batch_size: int) -> None:
    random = np.random.default_rng(2)
    net = Linear(random.standard_normal((D, D)) * 0.4, random.standard_normal((D, V)))
    sides = random.standard_normal((2, 6, 3, D))
    mask = np.arange(3) < random.integers(1, 4, (2, 6, 1))
    inputs = ArrayInputs(sides[0], sides[1], steps=(mask[0], mask[1]))
    candidates = [
        Direction(random.standard_normal(D), layer, position, digest="linear0")
        for layer in range(3)
        for position in ("-2", "-1", "token 3")
    ]
    found = evaluate_candidates(net, inputs, candidates, wanted=[0, 2], batch_size=batch_size)
    last = np.stack([[sides[c, i, mask[c, i].sum() - 1] for i in range(6)] for c in (0, 1)])
    block = np.eye(D) + net.matrix
    for direction, got in zip(candidates, found, strict=True):
        unit = direction.vector / direction.norm
        out = np.eye(D) - np.outer(unit, unit)
        ablated = _softmax(last @ out @ block @ out @ block @ out @ net.out)
        plain = _softmax(last @ block @ block @ net.out)
        after = np.linalg.matrix_power(block, 2 - direction.layer) @ net.out
        added = _softmax(last @ block @ block @ net.out + direction.vector @ after)
        mass = ablated[1][:, [0, 2]].sum(1)
        assert got.refusal_score == pytest.approx(np.log(mass / (1 - mass)).mean(), rel=1e-9)
        mass = added[0][:, [0, 2]].sum(1)
        assert got.steering_score == pytest.approx(np.log(mass / (1 - mass)).mean(), rel=1e-9)
        kl = (plain[0] * np.log(plain[0] / ablated[0])).sum(1).mean()
        assert got.kl_div_score == pytest.approx(kl, rel=1e-9)
        position = direction.position if direction.position.startswith("token") else int(direction.position)
        assert (got.position, got.layer) == (position, direction.layer)
