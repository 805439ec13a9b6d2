"""A real model's saved directions (Gemma 2B, instruction-tuned, from the authors of Arditi et al. 2024).

Files in `shared/real` beside the repository; the tests are skipped where it is absent.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from retarget.analysis.layers.directions import geometry, read_evaluations, read_mean_diffs
from retarget.analysis.layers.select import select

ROOT = Path(__file__).parents[1]
P, L, D = 5, 18, 2048


def _real(name: str) -> Path:
    path = ROOT.parent / "shared" / "real" / "directions" / f"gemma-2b-it-{name}"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the repository: no real file to read")
    return path


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """The numbers straight from the archive: one storage of float64, in order."""
    with zipfile.ZipFile(io.BytesIO(_real("mean_diffs.pt").read_bytes())) as archive:
        (name,) = (n for n in archive.namelist() if "/data/" in n)
        return np.frombuffer(archive.read(name), "<f8").reshape(P, L, D)


def test_the_differences_are_read(raw: np.ndarray) -> None:
    saved = read_mean_diffs(_real("mean_diffs.pt"))
    assert saved.vectors.shape == (P, L, D) and saved.positions == (-5, -4, -3, -2, -1)
    np.testing.assert_array_equal(saved.vectors, raw)
    assert np.isfinite(saved.vectors).all()


def test_their_geometry(raw: np.ndarray) -> None:
    found = geometry(read_mean_diffs(_real("mean_diffs.pt")))
    norms = np.array(found.norms["norm"]).reshape(P, L)
    np.testing.assert_allclose(norms, [[math.hypot(*v) for v in row] for row in raw], rtol=1e-12)
    # the embeddings of the template's tokens are the same in all prompts: what is left there is rounding
    assert norms[:, 0].max() < 1e-12 * norms[:, -1].min()
    # differences grow along the stream: at every position the last is the longest, and at the two last tokens each
    # block from the sixth on adds to them
    assert (norms[:, -1:] > norms[:, 1:-1]).all()
    assert (np.diff(norms[-2:, 6:], axis=1) > 0).all()
    adjacent = np.array(found.adjacent["cos"].to_list(), dtype=np.float64).reshape(P, L - 1)
    assert np.isnan(adjacent[:, 0]).all() and not np.isnan(adjacent[:, 1:]).any()
    assert (adjacent[:, 1:] > -1).all() and (adjacent[:, 1:] <= 1).all()
    for p in range(P):
        for n in range(1, L - 1):
            a, b = raw[p, n], raw[p, n + 1]
            cos = math.fsum(a * b) / math.hypot(*a) / math.hypot(*b)
            assert adjacent[p, n] == pytest.approx(cos, abs=1e-12)
    # later layers keep their direction more than early ones
    assert (adjacent[:, -4:].mean(1) > adjacent[:, 1:5].mean(1)).all()
    assert found.cosines.height == P * L * (L + 1) // 2
    for p in range(P):
        stack = raw[p, 1:]
        s = np.linalg.svd(stack, compute_uv=False)
        ratio = found.dimensions.row(p, named=True)
        assert ratio["participation_ratio"] == pytest.approx((s**2).sum() ** 2 / (s**4).sum(), rel=1e-10)
        s = np.linalg.svd(stack / np.linalg.norm(stack, axis=1, keepdims=True), compute_uv=False)
        assert ratio["participation_ratio_unit"] == pytest.approx((L - 1) ** 2 / (s**4).sum(), rel=1e-10)


def test_the_rule_gives_the_published_choice() -> None:
    evaluations = read_evaluations(_real("direction_evaluations.json"))
    assert {(e.position, e.layer) for e in evaluations} == {(p, n) for p in range(-P, 0) for n in range(L)}
    published = json.loads(_real("direction_metadata.json").read_text())
    assert (published["pos"], published["layer"]) == (-2, 10)
    chosen = select(evaluations, n_layers=L)
    assert (chosen.position, chosen.layer) == (-2, 10)
    # the layers from 14 on are those of the last fifth
    assert chosen.left_out["its layer is among the last ones"] == P * 4
    assert sum(chosen.left_out.values()) + sum(w is None for w in chosen.why) == P * L
    # without a condition on its side effects, the choice would be another: the rule matters
    free = select(evaluations, n_layers=L, kl_limit=math.inf, steer_floor=-math.inf, last_layers_left_out=0.0)
    assert free.best is not None and chosen.best is not None
    assert free.best.refusal_score <= chosen.best.refusal_score
