"""Laws of directions and interventions, on a small residual network that is written out here.

The toy implements writes by itself, so that it is an oracle for those who write through hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retarget.analysis.layers.answers import Run, answers
from retarget.analysis.layers.causes import (
    Direction,
    Effect,
    Separability,
    ablate_at,
    ablate_everywhere,
    add_at,
    controls_of,
    directions_of,
    divergence,
    goal_actions,
    hits,
    measure_causes,
    other_layer_like,
    random_like,
    shuffled_like,
    stream_hooks,
    token_score,
    verdict_of,
)
from retarget.analysis.layers.collect import collect
from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.columns import CAUSES
from retarget.analysis.layers.moments import Moments, relabellings
from retarget.analysis.layers.policies import ArrayInputs
from retarget.analysis.layers.readable import Batch, Pass, Readable, Reader, Site, Stream, Write
from retarget.analysis.layers.tables import layer_tables, schema
from retarget.errors import LayersError

torch.set_num_threads(1)

D, V, WANTED = 8, 5, [1, 3]
REAL = st.floats(-20, 20, allow_nan=False)


@dataclass(frozen=True, eq=False)
class Toy(Readable):
    """Two blocks, each of "attention" (a running mean of the tokens) and an MLP, on real inputs `[B, T, d]`."""

    weights: Mapping[str, torch.Tensor]
    stream: bool = True
    heard: list[int] = field(default_factory=list)

    @classmethod
    def drawn(cls, seed: int, **kept: Any) -> Toy:
        g = torch.Generator().manual_seed(seed)
        names = [f"{n}{i}" for i in (0, 1) for n in ("a", "m", "n")]
        weights = {n: torch.randn(D, D, generator=g, dtype=torch.float64) / D**0.5 for n in names}
        return cls(weights | {"out": torch.randn(D, V, generator=g, dtype=torch.float64)} | kept)

    label = "toy"
    digest = "toy0"
    order = (
        "blocks.0.hook_in", "blocks.0.attn.hook_out", "blocks.0.mlp.hook_out", "blocks.0.hook_out",
        "blocks.1.attn.hook_out", "blocks.1.mlp.hook_out", "blocks.1.hook_out", "ln_final.hook_out",
    )  # fmt: skip

    @property
    def sites(self) -> tuple[Site, ...]:
        kinds: tuple[Stream, Stream] = ("embedding", "residual") if self.stream else ("other", "other")
        return (
            Site(self.order[0], 0, kinds[0], D), Site(self.order[3], 1, kinds[1], D),
            Site(self.order[6], 2, kinds[1], D), Site(self.order[7], 2, "final_norm", D),
        )  # fmt: skip

    def site(self, hook: str) -> Site:
        if hook not in self.order:
            raise LayersError(f"unknown hook {hook!r}")
        return next((s for s in self.sites if s.hook == hook), Site(hook, 0, "other", D))

    def run(
        self,
        batch: Batch,
        *,
        read: Mapping[str, Reader] | None = None,
        write: Sequence[Write] = (),
        logits: bool = True,
    ) -> Pass:
        fired = [0] * len(write)
        self.heard.append(batch.n)

        def at(hook: str, x: torch.Tensor) -> torch.Tensor:
            for i, w in enumerate(write):
                if w.hook == hook:
                    v = torch.tensor(w.direction)
                    u = v / v.norm()
                    x = x - (x @ u)[..., None] * u if w.kind == "ablate" else x + w.coefficient * v
                    fired[i] += 1
            if read and hook in read:
                read[hook](x)
            return x

        x = at(self.order[0], torch.tensor(batch.inputs, dtype=torch.float64))
        for i in (0, 1):
            w = self.weights
            mean = x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[None, :, None]
            x = x + at(f"blocks.{i}.attn.hook_out", mean @ w[f"a{i}"])
            x = x + at(f"blocks.{i}.mlp.hook_out", torch.tanh(x @ w[f"m{i}"]) @ w[f"n{i}"])
            x = at(f"blocks.{i}.hook_out", x)
        x = at("ln_final.hook_out", x / (1 + x.norm(dim=-1, keepdim=True)))
        return Pass(x @ self.weights["out"], tuple(fired))


@dataclass(frozen=True, eq=False)
class Deaf(Toy):
    """Says that it wrote nothing."""

    def run(self, batch: Batch, **options: Any) -> Pass:
        return replace(super().run(batch, **options), fired=(0,) * len(options.get("write", ())))


def inputs(n: int = 12, *, seed: int = 0, shift: float = 1.0, steps: int = 3) -> ArrayInputs:
    """Two classes apart along the first coordinate, rows of 1 to `steps` tokens."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((2, n, steps, D))
    x[1, ..., 0] += shift
    mask = np.arange(steps) < random.integers(1, steps + 1, (2, n, 1))
    return ArrayInputs(x[0], x[1], steps=(mask[0], mask[1]))


def planted(seed: int, *, used: bool) -> Toy:
    """Its outputs follow the first coordinate, which nothing else writes to; or ignore it."""
    toy = Toy.drawn(seed)
    weights = {n: w.clone() * 0.1 for n, w in toy.weights.items()}
    for i in (0, 1):
        weights[f"a{i}"][:, 0] = weights[f"n{i}"][:, 0] = 0.0
        weights[f"a{i}"][0] = weights[f"m{i}"][0] = 0.0
    weights["out"][0] = torch.tensor([-9.0, 9, -9, 9, -9]) if used else torch.zeros(V, dtype=torch.float64)
    return Toy(weights)


# --------------------------------------------------------------------------------------------------------------- scores


@settings(deadline=None)
@given(arrays(np.float64, (4, V), elements=REAL), st.sets(st.integers(0, V - 1), min_size=1, max_size=V - 1))
def test_a_score_is_the_log_odds(logits: np.ndarray, wanted: set[int]) -> None:
    p = np.exp(logits.astype(np.longdouble))
    p /= p.sum(1, keepdims=True)
    mine = p[:, sorted(wanted)].sum(1)
    rest = p[:, [v for v in range(V) if v not in wanted]].sum(1)
    found = token_score(logits, sorted(wanted))
    np.testing.assert_allclose(found, np.log(mine / rest).astype(np.float64), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found, token_score(logits + 700.0, sorted(wanted)), atol=1e-9)
    others = [v for v in range(V) if v not in wanted]
    np.testing.assert_array_equal(found, -token_score(logits, others))
    assert hits(logits, sorted(wanted)).tolist() == [int(r.argmax()) in wanted for r in logits]


def test_a_score_is_right_where_a_probability_is_0_or_1_to_rounding() -> None:
    logits = np.array([[0.0, -900.0], [-900.0, 0.0], [-np.inf, 0.0]])
    assert token_score(logits, [0]).tolist() == [900.0, -900.0, -np.inf]
    # the same as a tensor of another precision
    assert token_score(torch.tensor(logits[:2], dtype=torch.float32), [0]).tolist() == [900.0, -900.0]


def test_wanted_tokens_may_differ_by_row() -> None:
    logits = np.random.default_rng(0).standard_normal((3, V))
    mask = np.zeros((3, V), dtype=np.bool_)
    mask[[0, 1, 2], [0, 3, 4]] = True
    each = [token_score(logits[i : i + 1], [t])[0] for i, t in enumerate((0, 3, 4))]
    assert token_score(logits, mask).tolist() == each


@pytest.mark.parametrize(
    "wanted", [[], [V], [-1], [0.5], np.zeros(V, dtype=bool), np.ones(V, dtype=bool), np.ones((2, V + 1), dtype=bool)]
)
def test_wanted_tokens_that_do_not_fit_are_errors(wanted: Any) -> None:
    with pytest.raises(LayersError) as found:
        token_score(np.zeros((2, V)), wanted)
    assert "\n" not in str(found.value)


@settings(deadline=None)
@given(arrays(np.float64, (3, V), elements=REAL), arrays(np.float64, (3, V), elements=REAL))
def test_divergence_is_that_of_the_definition(a: np.ndarray, b: np.ndarray) -> None:
    p, q = (np.exp(x.astype(np.longdouble)) for x in (a, b))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    want = (p * np.log(p / q)).sum(1).astype(np.float64)
    found = divergence(a, b)
    np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-12)
    assert (found >= 0).all()
    assert divergence(a, a).tolist() == [0.0] * 3
    np.testing.assert_allclose(divergence(a, a - 3.0), 0.0, atol=1e-12)


def test_a_token_that_cannot_occur_adds_nothing_to_the_divergence() -> None:
    assert divergence(np.array([[0.0, -np.inf]]), np.array([[0.0, 0.0]])) == pytest.approx(np.log(2), abs=1e-15)


# ----------------------------------------------------------------------------------------------------------- directions


@pytest.fixture(scope="module")
def found() -> Collected:
    return collect(Toy.drawn(3), inputs(), n_relabellings=7, n_groups=3, seed=5)


def _vectors(toy: Toy, given: ArrayInputs, hook: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of all rows at their last token, one row a pass, and labels."""
    out, labels = {}, {}
    for part in given.batches(1):
        seen: list[torch.Tensor] = []
        toy.run(part.batch, read={hook: seen.append})
        out[int(part.row[0])] = seen[0][0, part.batch.lengths[0] - 1].numpy()
        labels[int(part.row[0])] = int(part.label[0])
    return np.stack([out[i] for i in sorted(out)]), np.array([labels[i] for i in sorted(labels)])


def test_directions_are_differences_of_means(found: Collected) -> None:
    toy = Toy.drawn(3)
    directions = directions_of(found)
    assert [(d.layer, d.position, d.kind, d.digest) for d in directions] == [
        (i, "-1", "difference", "toy0") for i in range(3)
    ]
    for d, hook in zip(directions, (toy.order[0], toy.order[3], toy.order[6]), strict=True):
        x, label = _vectors(toy, inputs(), hook)
        np.testing.assert_allclose(d.vector, x[label == 1].mean(0) - x[label == 0].mean(0), rtol=1e-12, atol=1e-13)


def test_the_shuffled_control_is_the_difference_of_relabelled_rows(found: Collected) -> None:
    direction = directions_of(found)[1]
    x, label = _vectors(Toy.drawn(3), inputs(), "blocks.0.hook_out")
    chosen = relabellings(label, n=7, seed=5)
    for r in range(7):
        want = x[chosen[r]].mean(0) - x[~chosen[r]].mean(0)
        got = shuffled_like(found, direction, number=r)
        np.testing.assert_allclose(got.vector, want * direction.norm / np.linalg.norm(want), rtol=1e-9, atol=1e-12)
        assert got.kind == "shuffled"


def test_controls_are_as_long_as_the_direction(found: Collected) -> None:
    for direction in directions_of(found):
        made = controls_of(found, direction, n_random=4, seed=2)
        assert [c.kind for c in made] == ["random"] * 4 + ["shuffled", "other_layer"]
        np.testing.assert_allclose([c.norm for c in made], direction.norm, rtol=1e-12)
        assert {c.digest for c in made} == {"toy0"}
        assert abs(made[-1].layer - direction.layer) == max(2 - direction.layer, direction.layer)
        assert [c.layer for c in made[:5]] == [direction.layer] * 5


def test_random_directions_are_uniform_and_named() -> None:
    """Mean squared cosine with a fixed axis is 1/d; n = 2000, 5 standard errors: a false alarm in 2e6 runs."""
    like = Direction(np.full(D, 2.0), 1, "-1")
    some = np.stack([random_like(like, 0, number=i).vector for i in range(2000)]) / like.norm
    for axis in (np.eye(D)[0], np.full(D, D**-0.5)):
        square = (some @ axis) ** 2
        assert abs(square.mean() - 1 / D) < 5 * square.std() / 2000**0.5
    again = random_like(like, 0, number=1999)
    np.testing.assert_array_equal(again.vector / like.norm, some[-1])
    assert not np.allclose(random_like(like, 1).vector, random_like(like, 0).vector)


def test_a_difference_that_is_rounding_is_no_direction() -> None:
    """The last token is the same in all rows: at the embedding there is nothing."""
    given = inputs(seed=4)
    same = np.random.default_rng(1).standard_normal(D) * 3.7
    x = [np.asarray(side).copy() for side in (given.negative, given.positive)]
    for side in x:
        side[:, -1] = same
    found = collect(Toy.drawn(3), ArrayInputs(x[0], x[1], steps=(np.ones(x[0].shape[:2], bool),) * 2), n_relabellings=2)
    assert [d.layer for d in directions_of(found)] == [1, 2]
    # and where sums in another order leave the last digits different
    for off, layers in ((4e-16, [1, 2]), (1e-6, [0, 1, 2])):
        mean = np.array([[same, same * (1 + off)]])
        moved = {k: Moments(np.array([[5, 5]]), mean) if k[0] == Toy.order[0] else m for k, m in found.moments.items()}
        assert [d.layer for d in directions_of(replace(found, moments=moved))] == layers


def test_controls_that_cannot_be_made(found: Collected) -> None:
    direction = directions_of(found)[0]
    bare = collect(Toy.drawn(3), inputs(), n_relabellings=0, sites=["blocks.0.hook_in"])
    assert [c.kind for c in controls_of(bare, direction, n_random=1)] == ["random"]
    with pytest.raises(LayersError, match="n_relabellings of 1"):
        shuffled_like(bare, direction)
    with pytest.raises(LayersError, match="no layer beside layer 0"):
        other_layer_like(bare, direction)


@pytest.mark.parametrize("vector", [np.zeros((2, 2)), np.array([]), np.array([np.nan]), np.float64(1.0)])
def test_what_is_no_direction(vector: np.ndarray) -> None:
    with pytest.raises(LayersError, match="finite vector"):
        Direction(vector, 0)
    with pytest.raises(LayersError, match="did you mean 'random'"):
        Direction(np.ones(2), 0, kind="randon")  # type: ignore[arg-type]
    with pytest.raises(LayersError, match="length 0"):
        random_like(Direction(np.zeros(3), 0)).scaled(1.0)


def test_a_direction_of_another_model_is_refused() -> None:
    toy, other = Toy.drawn(0), Direction(np.ones(D), 1, digest="0123456789abcdef")
    for make in (ablate_everywhere, ablate_at, add_at):
        with pytest.raises(LayersError, match="belongs to model 0123456789ab, not to 'toy'"):
            make(toy, other)
    with pytest.raises(LayersError, match="belongs to model"):
        measure_causes(toy, inputs(), direction=Direction(np.ones(D), 1), controls=[other], wanted=WANTED)
    with pytest.raises(LayersError, match="length 3 does not fit"):
        ablate_everywhere(toy, Direction(np.ones(3), 1))
    with pytest.raises(LayersError, match="there is no layer 7"):
        add_at(toy, Direction(np.ones(D), 7))


# -------------------------------------------------------------------------------------------------------- interventions


def _logits(toy: Toy, write: Sequence[Write], seed: int = 0) -> np.ndarray:
    batch = next(iter(inputs(seed=seed).batches(24))).batch
    out = toy.run(batch, write=write).logits
    assert out is not None
    return np.asarray(out)


vectors = arrays(np.float64, D, elements=st.floats(-3, 3)).filter(lambda v: np.linalg.norm(v) > 0.1)


@given(vectors, st.floats(0.01, 100), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_ablation_knows_neither_sign_nor_scale(vector: np.ndarray, scale: float, seed: int) -> None:
    toy = Toy.drawn(seed)
    one = _logits(toy, ablate_everywhere(toy, Direction(vector, 1)))
    np.testing.assert_allclose(one, _logits(toy, ablate_everywhere(toy, Direction(-scale * vector, 2))), atol=1e-11)
    assert not np.allclose(one, _logits(toy, ()))


@given(vectors, st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_ablation_leaves_nothing_and_is_idempotent(vector: np.ndarray, layer: int) -> None:
    toy = Toy.drawn(1)
    unit = torch.tensor(vector / np.linalg.norm(vector))
    writes = ablate_everywhere(toy, Direction(vector, layer), unembedding=True)
    batch = next(iter(inputs().batches(24))).batch
    seen: dict[str, torch.Tensor] = {}
    toy.run(batch, write=writes, read={h: (lambda x, h=h: seen.__setitem__(h, x)) for h in toy.order})  # type: ignore[misc]
    assert set(seen) == set(toy.order)
    assert max(float((x @ unit).abs().max()) for x in seen.values()) < 1e-12
    np.testing.assert_allclose(_logits(toy, writes), _logits(toy, (*writes, *writes)), atol=1e-12)
    once = ablate_at(toy, Direction(vector, layer))
    np.testing.assert_allclose(_logits(toy, once), _logits(toy, once * 2), atol=1e-12)


@given(vectors, st.integers(0, 2), st.floats(-4, 4))
@settings(max_examples=30, deadline=None)
def test_adding_and_taking_away_is_the_identity(vector: np.ndarray, layer: int, coefficient: float) -> None:
    toy, one = Toy.drawn(2), Direction(vector, layer)
    there = add_at(toy, one, coefficient=coefficient)
    back = add_at(toy, one, coefficient=-coefficient)
    np.testing.assert_allclose(_logits(toy, (*there, *back)), _logits(toy, ()), atol=1e-11)
    # and ablation undoes an addition of the same direction
    gone = ablate_at(toy, one)
    np.testing.assert_allclose(_logits(toy, (*there, *gone)), _logits(toy, gone), atol=1e-11)


def test_where_interventions_are_made() -> None:
    toy, one = Toy.drawn(0), Direction(np.ones(D), 1)
    assert set(stream_hooks(toy)) == set(toy.order[:-1])
    assert [w.hook for w in ablate_at(toy, one)] == ["blocks.0.hook_out"]
    assert [w.hook for w in ablate_at(toy, one, layer=0)] == ["blocks.0.hook_in"]
    (add,) = add_at(toy, one, coefficient=2.0)
    assert (add.hook, add.kind, add.coefficient, add.positions) == ("blocks.0.hook_out", "add", 2.0, "all")
    assert {w.hook for w in ablate_everywhere(toy, one, unembedding=True)} == set(toy.order)


# -------------------------------------------------------------------------------------------------------------- verdict

shares = st.floats(-2, 2)


@settings(deadline=None)
@given(shares, st.floats(0, 1), st.floats(0, 1), shares, st.floats(0, 1), st.booleans(), st.floats(0.1, 1))
def test_verdicts_follow_the_rule(
    share: float, below: float, above: float, random: float, margin: float, present: bool, least: float
) -> None:
    one = Effect(share, share - below, share + above, random, random + margin)
    verdict, reason = verdict_of([one], present=present, least_share=least)
    assert (verdict is None) == (reason is not None)
    if verdict == "used":
        assert present and one.low > least and one.low > one.random_high
    if verdict in ("present_not_used", "absent"):
        assert one.high < least or share <= random
        assert (verdict == "present_not_used") == present
    if verdict is None:
        steers = one.low > least and one.low > one.random_high
        assert steers != (reason == "intervals overlap") and one.high >= least
        assert not (steers and present)
    # a second effect that steers is enough, one that does not changes nothing
    steering, idle = Effect(3.0, 2.9, 3.1, 0.0, 0.1), Effect(-1.0, -1.1, -0.9, 0.0, 0.1)
    assert verdict_of([one, steering], present=present, least_share=least)[0] == ("used" if present else None)
    assert verdict_of([one, idle], present=present, least_share=least) == (verdict, reason)


def test_verdicts_without_what_they_need() -> None:
    idle = Effect(0.0, -0.1, 0.1, 0.0, 0.1)
    assert verdict_of([], present=True)[0] is None
    assert verdict_of([idle], present=None)[0] is None and "separability" in str(verdict_of([idle], present=None)[1])
    assert verdict_of([Effect(1.0, 0.9, 1.1)], present=True) == ("used", None)
    # what steers without being told from noise is no use of what the classes differ in
    for present in (None, False):
        assert verdict_of([Effect(1.0, 0.9, 1.1)], present=present)[0] is None
    # random directions that do as much: nothing special about this one
    assert verdict_of([Effect(0.9, 0.8, 1.0, 0.95, 1.1)], present=True)[0] == "present_not_used"
    assert verdict_of([Effect(0.9, 0.8, 1.0, 0.5, 0.85)], present=True) == (None, "intervals overlap")


@pytest.mark.parametrize(
    ("p", "d", "present"),
    [(0.01, 3.0, True), (0.2, 3.0, False), (0.01, 0.2, False), (0.05, None, True), (None, 1.0, True),
     (None, None, None)],
)  # fmt: skip
def test_separability(p: float | None, d: float | None, present: bool | None) -> None:
    assert Separability(p, d).present is present


# -------------------------------------------------------------------------------------------------------------- measure


def _measured(toy: Toy, *, n: int = 40, direction: Direction | None = None, shift: float = 2.0, **options: Any) -> Any:
    given = inputs(n, shift=shift)
    found = collect(toy, given, n_relabellings=99, n_groups=5)
    direction = direction or next(d for d in directions_of(found) if d.layer == 1)
    return measure_causes(
        toy, given, direction=direction, controls=controls_of(found, direction), wanted=WANTED,
        separability=Separability.of(layer_tables(found).layers, direction), **options,
    )  # fmt: skip


def _verdict(table: Any) -> tuple[str | None, str | None]:
    own = table.filter(table["direction"] == "difference")
    (one,) = set(zip(own["verdict"], own["reason"], strict=True))
    assert table.filter(table["direction"].is_null() | (table["direction"] != "difference"))["verdict"].is_null().all()
    return one


def test_a_direction_that_the_outputs_follow_is_used() -> None:
    table = _measured(planted(0, used=True))
    assert _verdict(table) == ("used", None)
    assert dict(table.schema) == schema(CAUSES)
    keys = table.select("intervention", "direction", "on").rows()
    kinds = ("difference", "random", "shuffled", "other_layer")
    assert len(keys) == len(set(keys)) == 2 + 3 * 4 * 2
    assert {k[1] for k in keys} == {None, *kinds}


def test_a_direction_that_the_outputs_ignore_is_present_but_not_used() -> None:
    """The outputs follow the second coordinate, in which the classes differ by little; the first tells them apart."""
    toy = planted(0, used=False)
    toy.weights["out"][1] = torch.tensor([-9.0, 9, -9, 9, -9])
    given = inputs(200, shift=3.0)
    x = np.asarray(given.positive).copy()
    x[..., 1] += 1.0
    given = ArrayInputs(given.negative, x, steps=given.steps)
    found = collect(toy, given, n_relabellings=99, n_groups=5)
    axis = Direction(3.0 * np.eye(D)[0], 1, "-1", digest="toy0")
    table = measure_causes(
        toy, given, direction=axis, controls=[random_like(axis, number=i) for i in range(3)], wanted=WANTED,
        separability=Separability.of(layer_tables(found).layers, axis),
    )  # fmt: skip
    assert _verdict(table) == ("present_not_used", None)
    assert _verdict(
        measure_causes(toy, given, direction=axis, wanted=WANTED, separability=Separability(diff_p=0.5))
    ) == ("absent", None)


def _row(table: Any, intervention: str, direction: str | None, on: str) -> dict[str, Any]:
    chosen = (table["intervention"] == intervention) & (table["on"] == on)
    chosen &= table["direction"].is_null() if direction is None else table["direction"] == direction
    (row,) = table.filter(chosen).rows(named=True)
    return dict(row)


def test_ablation_alone_can_tell_that_a_direction_is_used() -> None:
    """Added with a coefficient of almost 0 it does nothing; taken out, positive inputs look like negative ones."""
    table = _measured(planted(0, used=True), coefficient=1e-9)
    assert _verdict(table) == ("used", None)
    added = _row(table, "add_layer", "difference", "negative")
    assert added["score"] == pytest.approx(_row(table, "none", None, "negative")["score"], abs=1e-6)
    gone = [_row(table, "ablate_all", "difference", on)["score"] for on in ("positive", "negative")]
    # the outputs are ±9 x1; what is left of the gap of about 36 comes from the other coordinates
    assert abs(gone[0] - gone[1]) < 2


def test_addition_alone_can_tell_that_a_direction_is_used() -> None:
    """The outputs follow two coordinates; one is 0 on all inputs, so that there is nothing of it to take out."""
    toy = planted(0, used=True)
    toy.weights["out"][1] = toy.weights["out"][0]
    for i in (0, 1):
        toy.weights[f"a{i}"][:, 1] = toy.weights[f"n{i}"][:, 1] = 0.0
    plain = inputs(40, shift=2.0)
    x = [np.asarray(side).copy() for side in (plain.negative, plain.positive)]
    for side in x:
        side[..., 1] = 0.0
    given, axis = ArrayInputs(x[0], x[1], steps=plain.steps), Direction(2.0 * np.eye(D)[1], 1)
    controls = [random_like(axis, number=i) for i in range(5)]
    table = measure_causes(
        toy, given, direction=axis, controls=controls, wanted=WANTED, separability=Separability(0.01)
    )
    assert _verdict(table) == ("used", None)
    untouched, gone = (_row(table, *k, "positive")["score"] for k in (("none", None), ("ablate_all", "difference")))
    assert gone == pytest.approx(untouched, abs=1e-9)
    away = measure_causes(
        toy, given, direction=axis, controls=controls, wanted=WANTED, separability=Separability(0.9), coefficient=-1.0
    )
    assert _verdict(away) == ("absent", None)


def test_controls_act_at_the_layer_of_the_direction() -> None:
    toy, given = Toy.drawn(4), inputs(4)
    one, other = Direction(np.ones(D), 1), Direction(np.arange(D) - 3.0, 0, kind="other_layer")
    table = measure_causes(toy, given, direction=one, controls=[other], wanted=WANTED)
    runs = {"add_layer": Run(add_at(toy, other, layer=1)), "ablate_layer": Run(ablate_at(toy, other, layer=1))}
    label, found = answers(toy, given, runs, wanted=WANTED)
    for name in runs:
        for c, on in ((1, "positive"), (0, "negative")):
            want = found[name].score[label == c].mean()
            assert _row(table, name, "other_layer", on)["score"] == pytest.approx(want, rel=1e-12)
    assert set(table["layer"]) == {1}


def test_no_verdict_where_the_network_does_not_tell_the_classes_apart() -> None:
    toy = planted(0, used=False)
    verdict, reason = _verdict(_measured(toy, n=30))
    assert verdict is None and "does not score the positive inputs above" in str(reason)


def test_means_rates_and_fired_are_those_of_the_rows() -> None:
    toy, given = Toy.drawn(6), inputs(5)
    one = Direction(np.arange(D) - 2.5, 1)
    table = measure_causes(toy, given, direction=one, wanted=WANTED, batch_size=4)
    rows = list(given.batches(1))
    for name, writes in (("none", ()), ("ablate_all", ablate_everywhere(toy, one)), ("add_layer", add_at(toy, one))):
        for c, on in ((1, "positive"), (0, "negative")):
            want, plain = [], []
            for part in (r for r in rows if r.label[0] == c):
                last = part.batch.lengths[0] - 1
                for out, w in ((want, writes), (plain, ())):
                    logits = toy.run(part.batch, write=w).logits
                    assert logits is not None
                    out.append(logits[0, last].numpy())
            chosen = (table["intervention"] == name) & (table["on"] == on)
            (row,) = table.filter(chosen).rows(named=True)
            p = np.exp(np.stack(want))
            p /= p.sum(1, keepdims=True)
            q = np.exp(np.stack(plain))
            q /= q.sum(1, keepdims=True)
            mass = p[:, WANTED].sum(1)
            assert row["score"] == pytest.approx(np.log(mass / (1 - mass)).mean(), rel=1e-11)
            assert row["rate"] == np.isin(p.argmax(1), WANTED).mean()
            assert row["kl"] == pytest.approx((q * np.log(q / p)).sum(1).mean(), abs=1e-12)
            assert (row["n"], row["fired"]) == (5, 3 * len(writes))
            assert row["score_low"] <= row["score"] <= row["score_high"]


def test_numbers_do_not_depend_on_the_batch_size() -> None:
    toy = Toy.drawn(6)
    tables = [_measured(toy, n=9, batch_size=size).drop("fired") for size in (1, 4, 64)]
    for other in tables[1:]:
        for column in tables[0].columns:
            a, b = tables[0][column].to_list(), other[column].to_list()
            assert a == b or np.allclose(np.array(a, float), np.array(b, float), atol=1e-10, equal_nan=True), column
    assert tables[0].equals(_measured(toy, n=9, batch_size=1).drop("fired"))


@dataclass(frozen=True, eq=False)
class Known(Toy):
    """Its score is the first coordinate of the last token, exactly: two outputs, the second always 0."""

    def run(self, batch: Batch, **options: Any) -> Pass:
        super().run(batch, **options)
        x = torch.tensor(np.asarray(batch.inputs)[..., :1])
        return Pass(torch.cat([x, torch.zeros_like(x)], -1), (1,) * len(options.get("write", ())))


def test_intervals_are_those_of_the_mean() -> None:
    """n = 400 rows, 4000 draws: the ends of the interval are known to about 2% of its width; 8% are allowed."""
    x = np.random.default_rng(0).standard_normal((2, 400, 1, D)) + 1.0
    given = ArrayInputs(x[0], x[1], steps=(np.ones((400, 1), bool),) * 2)
    table = measure_causes(Known.drawn(0), given, direction=Direction(np.ones(D), 1), wanted=[0], n_draws=4000)
    for row in table.filter(table["intervention"] == "none").rows(named=True):
        values = x[int(row["on"] == "positive"), :, 0, 0]
        half = 1.96 * values.std() / 20
        assert row["score"] == pytest.approx(values.mean(), rel=1e-12)
        assert row["score_low"] == pytest.approx(values.mean() - half, abs=0.16 * half)
        assert row["score_high"] == pytest.approx(values.mean() + half, abs=0.16 * half)


def test_several_random_directions_are_one_row_with_a_wider_interval() -> None:
    toy, given = planted(0, used=True), inputs(40, shift=2.0)
    one = Direction(2.0 * np.eye(D)[0], 1)
    some = [random_like(one, number=i) for i in range(6)]
    pooled = measure_causes(toy, given, direction=one, controls=some, wanted=WANTED)
    single = [measure_causes(toy, given, direction=one, controls=[c], wanted=WANTED) for c in some]

    def row(table: Any) -> dict[str, Any]:
        chosen = (table["intervention"] == "add_layer") & (table["direction"] == "random") & (table["on"] == "negative")
        (found,) = table.filter(chosen).rows(named=True)
        return dict(found)

    rows = [row(t) for t in single]
    assert row(pooled)["score"] == pytest.approx(np.mean([r["score"] for r in rows]), rel=1e-12)
    assert row(pooled)["fired"] == sum(r["fired"] for r in rows)
    spread = np.std([r["score"] for r in rows]) / 6**0.5
    width = row(pooled)["score_high"] - row(pooled)["score_low"]
    assert width > 2 * spread > 0


def test_wanted_actions_by_row_and_rows_without_odds() -> None:
    toy, given = Toy.drawn(1), inputs(6)
    mask = np.zeros((12, V), dtype=np.bool_)
    mask[:, WANTED] = True
    one = Direction(np.ones(D), 1)
    same = [measure_causes(toy, given, direction=one, wanted=w) for w in (WANTED, mask)]
    assert same[0].equals(same[1])
    mixed = np.random.default_rng(0).random((12, V)) < 0.5
    mixed[:, 0], mixed[:, 1] = True, False
    whole, parts = (answers(toy, given, {"plain": Run()}, wanted=mixed, batch_size=b)[1]["plain"] for b in (12, 5))
    np.testing.assert_allclose(whole.score, parts.score, rtol=1e-12)
    assert len(set(whole.score.round(9))) == 12 and whole.hit.tolist() == parts.hit.tolist()
    mask[2], mask[3] = False, True
    fewer = measure_causes(toy, given, direction=one, wanted=mask)
    assert {(r["on"], r["n"]) for r in fewer.rows(named=True)} == {("negative", 4), ("positive", 6)}
    label, found = answers(toy, given, {"plain": Run()}, wanted=mask)
    assert np.isnan(found["plain"].score).nonzero()[0].tolist() == [2, 3] and label.tolist() == [0] * 6 + [1] * 6
    mask[:6] = False
    with pytest.raises(LayersError, match="no row of the negative class has odds"):
        measure_causes(toy, given, direction=one, wanted=mask)
    with pytest.raises(LayersError, match=r"bool \[12, V\]"):
        measure_causes(toy, given, direction=one, wanted=mask[:5])


def test_networks_without_a_residual_stream_have_null_rows() -> None:
    toy = replace(Toy.drawn(0), stream=False)
    one = Direction(np.ones(D), 1)
    with pytest.raises(LayersError, match="no residual stream"):
        ablate_everywhere(toy, one)
    table = measure_causes(toy, inputs(), direction=one, wanted=WANTED)
    null = table.filter(table["intervention"] == "ablate_all")
    assert null["score"].is_null().all() and null["n"].is_null().all() and null.height == 2
    assert null["reason"].str.contains("no residual stream").all()
    assert set(table["intervention"]) == {"none", "ablate_all", "ablate_layer", "add_layer"}


def test_an_intervention_that_does_not_fire_is_an_error() -> None:
    with pytest.raises(LayersError, match="changed nothing"):
        measure_causes(Deaf.drawn(0), inputs(), direction=Direction(np.ones(D), 1), wanted=WANTED)


def test_one_row_a_class_gives_no_interval() -> None:
    table = measure_causes(Toy.drawn(0), inputs(1), direction=Direction(np.ones(D), 1), wanted=WANTED)
    assert table["score_low"].is_null().all() and table["score"].is_not_null().all()
    assert table["reason"].is_not_null().all()


def test_settings_that_make_no_sense() -> None:
    toy, one = Toy.drawn(0), Direction(np.ones(D), 1)
    for options in ({"n_draws": 10}, {"least_share": 0.0}, {"batch_size": 0}, {"controls": [one]}):
        with pytest.raises(LayersError) as found:
            measure_causes(toy, inputs(), direction=one, wanted=WANTED, **options)  # type: ignore[arg-type]
        assert "\n" not in str(found.value)


def test_actions_that_serve_one_goal_only() -> None:
    from retarget.envs import make_world

    world = make_world("OpenGrid", size=5)
    a, b = world.goals[0], world.goals[-1]
    found = goal_actions(world, a, b)
    n = world.model.n_states
    assert (found[:n] == found[n:]).all()
    far = [_distances(world, g) for g in (a, b)]
    for s in range(n):
        after = world.model.next_state[s, :, 0]
        for action in range(found.shape[1]):
            nearer = [f[after[action]] < f[s] for f in far]
            assert found[s, action] == (nearer[1] and not (nearer[0] or far[0][s] == 0))


def _distances(world: Any, goal: Any) -> np.ndarray:
    """Steps to a goal, by sweeping until nothing changes."""
    n = world.model.n_states
    far = np.where(goal.mask(n), 0.0, np.inf)
    for _ in range(n):
        far = np.minimum(far, 1 + far[world.model.next_state[:, :, 0]].min(1))
    return far


def test_classes_that_behave_alike_get_no_verdict_however_sure_the_little_difference() -> None:
    """Paired rows make a gap of a hundredth of a nat significant; a share of it says nothing."""
    toy = planted(0, used=True)
    toy.weights["out"] = toy.weights["out"] * 1e-3
    table = _measured(toy)
    verdict, reason = _verdict(table)
    assert verdict is None and reason is not None and "less than 1 nat" in reason


def test_damage_to_both_classes_alike_is_no_removal() -> None:
    """A direction that all inputs share, and that lifts every score: without it both fall, and the gap stays."""
    toy = planted(0, used=True)
    plain = inputs(40, shift=2.0)
    x = [np.asarray(side).copy() for side in (plain.negative, plain.positive)]
    for side in x:
        side[..., 1] = 3.0
    toy.weights["out"][1] = toy.weights["out"][0]
    for i in (0, 1):
        toy.weights[f"a{i}"][:, 1] = toy.weights[f"n{i}"][:, 1] = 0.0
    given, axis = ArrayInputs(x[0], x[1], steps=plain.steps), Direction(1e-6 * np.eye(D)[1], 1)
    controls = [random_like(axis, number=i) for i in range(5)]
    table = measure_causes(
        toy, given, direction=axis, controls=controls, wanted=WANTED, separability=Separability(0.01)
    )
    falls = [
        _row(table, "none", None, on)["score"] - _row(table, "ablate_all", "difference", on)["score"]
        for on in ("positive", "negative")
    ]
    assert min(falls) > 5
    assert _verdict(table) == ("present_not_used", None)
