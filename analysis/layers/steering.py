"""Directions, their controls, and how they are taken out of a residual stream or added to it.

After Arditi et al. 2024, "Refusal in language models is mediated by a single direction". Their direction r is the
difference of class means at one layer and position (section 2.3). It is added at its own layer, at all tokens,
`x <- x + r`, or ablated at every layer and token, `x <- x - u u^T x` with `u = r / |r|` (section 2.4).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from retarget.analysis.layers.collected import Collected
from retarget.analysis.layers.readable import Readable, Site, Write
from retarget.errors import LayersError, unknown
from retarget.rng import stream

Kind = Literal["difference", "random", "shuffled", "other_layer"]
#: At which tokens of each row something is written.
Tokens = Literal["all", "last"]
_STREAM = ("embedding", "residual")
#: Names of what a block adds to the stream, behind the norm that some architectures put there: the first that there is.
_ADDED = (("ln1_post.hook_out", "attn.hook_out"), ("ln2_post.hook_out", "mlp.hook_out"))
#: What may stand before them where a bridge is read as a plain module.
_WITHIN = ("", "_original_component.")
#: A difference shorter than this share of the means it is from is rounding, whatever the forward pass was made in.
_ROUNDING = 1e-10


# ---------------------------------------------------------------------------------------------------------- directions


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in the residual stream of one model.

    Attributes:
        vector: float64 `[d]`, with its length.
        layer: that it is from; it is added there.
        position: that it is from, e.g. `-1`.
        kind: `difference` of class means; its controls are `random`, `shuffled` and `other_layer`.
        digest: of the model that it belongs to; None where that is not known, and any model of its width will do.
    """

    vector: np.ndarray
    layer: int
    position: str = "-1"
    kind: Kind = "difference"
    digest: str | None = None

    def __post_init__(self) -> None:
        vector = np.array(self.vector, dtype=np.float64)
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise LayersError(f"a direction must be a finite vector [d], got shape {vector.shape}")
        if self.kind not in get_args(Kind):
            raise LayersError(unknown("kind of direction", self.kind, get_args(Kind)))
        vector.setflags(write=False)
        object.__setattr__(self, "vector", vector)

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector))

    def scaled(self, norm: float) -> Direction:
        """The same direction with another length.

        Raises:
            LayersError: for a direction of length 0.
        """
        if not self.norm > 0:
            raise LayersError(f"the direction of layer {self.layer} has length 0, and cannot be given another")
        return replace(self, vector=self.vector / self.norm * norm)

    def check(self, model: Readable) -> None:
        """Raise LayersError unless it is a direction of this model."""
        if self.digest is not None and self.digest != model.digest:
            raise LayersError(
                f"this direction belongs to model {self.digest[:12]}, not to {model.label!r} ({model.digest[:12]}); "
                "collect it from this one"
            )


def directions_of(collected: Collected) -> list[Direction]:
    """The difference of class means of each place of the residual stream and position, in order.

    For networks without a residual stream, of each place between layers. Where a class has no vectors, or the means
    are the same to rounding (as at the embedding of a token that all rows share), there is no direction.
    """
    out = []
    for site in _trunk(collected.sites):
        for position in collected.positions:
            vector = _difference(collected, site, position)
            if vector is not None:
                out.append(Direction(vector, site.layer, position, "difference", collected.digest))
    return out


def _trunk(sites: Sequence[Site]) -> list[Site]:
    """Places of the residual stream; where there is none, all but the final norm."""
    chosen = [s for s in sites if s.stream in _STREAM]
    return chosen or [s for s in sites if s.stream != "final_norm"]


def _difference(collected: Collected, site: Site, position: str) -> np.ndarray | None:
    moments = collected.moments[site.hook, position]
    if not moments.count.sum(0).all():
        return None
    vector = moments.difference
    size = float(np.abs(moments.mean).max())
    return vector if np.linalg.norm(vector) > _ROUNDING * size and not collected.alike(moments) else None


def random_like(direction: Direction, seed: int = 0, *, number: int = 0) -> Direction:
    """A random direction of the same length, uniform on the sphere; `number` tells several apart.

    >>> d = Direction(np.array([3.0, 4.0]), layer=1)
    >>> round(random_like(d, seed=1).norm, 12), random_like(d, number=1).kind
    (5.0, 'random')
    """
    random = stream(seed, "layers_random_direction", direction.layer, direction.position, number)
    vector = random.standard_normal(len(direction.vector))
    return replace(direction, vector=vector, kind="random").scaled(direction.norm)


def shuffled_like(collected: Collected, direction: Direction, *, number: int = 0) -> Direction:
    """The difference of means under a random relabelling of the rows, at the same place, made as long as `direction`.

    Such differences lie where the vectors vary most, which random directions do not. As they are, they are shorter.

    Raises:
        LayersError: where no relabellings were collected.
    """
    site = _site_at(_trunk(collected.sites), direction.layer)
    m = collected.moments[site.hook, direction.position]
    if m.swapped is None or m.swapped_count is None or number >= len(m.swapped):
        raise LayersError(f"no relabelling {number} was collected; collect with n_relabellings of {number + 1} or more")
    n, k = int(m.count.sum()), int(m.swapped_count[number])
    if not 0 < k < n:
        raise LayersError(f"relabelling {number} leaves a class empty at layer {direction.layer}; take another")
    total = (m.count[..., None] * m.mean).sum((0, 1))
    vector = m.swapped[number] / k - (total - m.swapped[number]) / (n - k)
    return replace(direction, vector=vector, kind="shuffled").scaled(direction.norm)


def other_layer_like(collected: Collected, direction: Direction) -> Direction:
    """The difference of means of the layer furthest away that has one, made as long as `direction`.

    Raises:
        LayersError: where no other layer has one of this width.
    """
    others = [
        d for d in directions_of(collected)
        if d.layer != direction.layer and d.position == direction.position and len(d.vector) == len(direction.vector)
    ]  # fmt: skip
    if not others:
        raise LayersError(f"no layer beside layer {direction.layer} has a difference of means at {direction.position}")
    furthest = max(others, key=lambda d: abs(d.layer - direction.layer))
    return replace(furthest, kind="other_layer").scaled(direction.norm)


def controls_of(
    collected: Collected, direction: Direction, *, n_random: int = 5, seed: int = 0
) -> tuple[Direction, ...]:
    """Directions of the same length that should do less: random ones, one of relabelled rows, one of another layer.

    A control that cannot be made (no relabellings, no other layer) is left out.
    """
    out = [random_like(direction, seed, number=i) for i in range(n_random)]
    for make in (shuffled_like, other_layer_like):
        try:
            out.append(make(collected, direction))
        except LayersError:
            continue
    return tuple(out)


# ------------------------------------------------------------------------------------------------------- interventions


def _site_at(sites: Sequence[Site], layer: int) -> Site:
    for site in sites:
        if site.layer == layer:
            return site
    raise LayersError(f"there is no layer {layer}; layers are {', '.join(str(s.layer) for s in sites)}")


def _vector_for(site: Site, direction: Direction) -> np.ndarray:
    if len(direction.vector) != site.width:
        raise LayersError(
            f"a direction of length {len(direction.vector)} does not fit {site.hook!r}, whose vectors have {site.width}"
        )
    return direction.vector


def has_stream(model: Readable) -> bool:
    """Whether a network has a residual stream."""
    return any(s.stream in _STREAM for s in model.sites)


def stream_hooks(model: Readable) -> tuple[str, ...]:
    """Places where the residual stream flows or is added to: embedding, outputs of blocks, of attention and of MLPs.

    Raises:
        LayersError: for a network without a residual stream.
    """
    trunk = [s for s in model.sites if s.stream in _STREAM]
    if not trunk:
        raise LayersError(f"{model.label!r} has no residual stream; write at one of its places instead")
    out = [s.hook for s in trunk]
    for site in trunk:
        block = re.fullmatch(r"(.*\bblocks\.\d+\.)hook_out", site.hook)
        if block is None:
            continue
        for names in _ADDED:
            tried = (_known(model, f"{block[1]}{within}{name}", site.width) for name in names for within in _WITHIN)
            out += [hook for hook in tried if hook is not None][:1]
    return tuple(dict.fromkeys(out))


def _known(model: Readable, hook: str, width: int) -> str | None:
    try:
        site = model.site(hook)
    except LayersError:
        return None
    return site.hook if site.width == width else None


def ablate_everywhere(model: Readable, direction: Direction, *, unembedding: bool = False) -> tuple[Write, ...]:
    """Take a direction out of the residual stream at every place and token (Arditi et al. 2024, section 2.4).

    At the embedding, behind each block, and in what attention and MLP add where the model has such places.

    Args:
        model: the network.
        direction: of any length but 0.
        unembedding: also behind the final norm. That is what orthogonalised weights do where the unembedding is the
            embedding.

    Raises:
        LayersError: for another model's direction, or a network without a residual stream.
    """
    direction.check(model)
    hooks = [*stream_hooks(model), *(s.hook for s in model.sites if unembedding and s.stream == "final_norm")]
    return tuple(Write(hook, _vector_for(model.site(hook), direction), "ablate") for hook in hooks)


def ablate_at(
    model: Readable, direction: Direction, *, layer: int | None = None, tokens: Tokens = "all"
) -> tuple[Write, ...]:
    """Take a direction out at one layer, its own unless another is given: at all tokens, or at the last of each row."""
    return _write_at(model, direction, "ablate", layer, 1.0, tokens)


def add_at(
    model: Readable,
    direction: Direction,
    *,
    layer: int | None = None,
    coefficient: float = 1.0,
    tokens: Tokens = "all",
) -> tuple[Write, ...]:
    """Add a direction at one layer, its own unless another is given: at all tokens, or at the last of each row."""
    return _write_at(model, direction, "add", layer, coefficient, tokens)


def _write_at(
    model: Readable,
    direction: Direction,
    kind: Literal["ablate", "add"],
    layer: int | None,
    coefficient: float,
    tokens: Tokens,
) -> tuple[Write, ...]:
    direction.check(model)
    if tokens not in get_args(Tokens):
        raise LayersError(unknown("choice of tokens", tokens, get_args(Tokens)))
    site = _site_at(_trunk(model.sites), direction.layer if layer is None else layer)
    return (Write(site.hook, _vector_for(site, direction), kind, coefficient, tokens),)
