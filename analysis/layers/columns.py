"""Columns of the layerwise tables: name, type, unit, meaning. What is not defined is null, with a reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerColumn:
    """One column.

    Attributes:
        name: as in the table.
        kind: `text`, `whole`, `real` or `truth`.
        unit: of a number, or an empty string.
        meaning: in a sentence.
    """

    name: str
    kind: str
    unit: str
    meaning: str


_WHERE = (
    LayerColumn("model", "text", "", "label of the model"),
    LayerColumn("digest", "text", "", "of its architecture and weights"),
    LayerColumn("contrast", "text", "", "positive - negative, by name"),
    LayerColumn("hook", "text", "", "name of the place in the network"),
    LayerColumn(
        "stream", "text", "", "embedding, residual, final_norm (after the final norm), attention, mlp or other"
    ),
    LayerColumn("layer", "whole", "blocks", "blocks passed there: 0 is the embedding, l the input of block l"),
    LayerColumn("position", "text", "", "-1 is the last token; `every` pools tokens or steps"),
)

#: One row a (model, hook, layer, position, contrast).
LAYERS = (
    *_WHERE,
    LayerColumn("width", "whole", "", "length of the vectors, d"),
    LayerColumn("n_positive", "whole", "rows", "vectors of the positive class"),
    LayerColumn("n_negative", "whole", "rows", "vectors of the negative class"),
    LayerColumn("rms_norm", "real", "", "root of the mean squared length of the vectors, classes weighted alike"),
    LayerColumn("diff_norm", "real", "", "length of the difference of class means"),
    LayerColumn("diff_norm_low", "real", "", "95% interval of it, lower end"),
    LayerColumn("diff_norm_high", "real", "", "upper end"),
    LayerColumn("diff_noise", "real", "", "length that sampling noise alone would give: sqrt(tr S1/n1 + tr S0/n0)"),
    LayerColumn("diff_signal", "real", "", "diff_norm / diff_noise; about 1 where there is no difference"),
    LayerColumn("diff_p", "real", "", "permutation p-value of diff_norm"),
    LayerColumn("pc1_cos", "real", "", "|cos| of the first principal component (balanced pooling) and the difference"),
    LayerColumn("pc1_cos_low", "real", "", "95% interval of it, lower end"),
    LayerColumn("pc1_cos_high", "real", "", "upper end"),
    LayerColumn("pc1_cos_expected", "real", "", "what the two-Gaussian spiked model expects"),
    LayerColumn("pc1_cos_null", "real", "", "95th percentile over random relabellings"),
    LayerColumn("pc1_p", "real", "", "permutation p-value of pc1_cos"),
    LayerColumn("pc1_variance", "real", "share", "variance explained by the first component"),
    LayerColumn("participation_ratio", "real", "dimensions", "(tr S)^2 / tr S^2, balanced pooling"),
    LayerColumn("participation_ratio_within", "real", "dimensions", "the same within classes"),
    LayerColumn("probe_d_prime", "real", "", "linear probe on disjoint groups: difference over spread, held out"),
    LayerColumn("probe_accuracy", "real", "share", "Phi(d'/2): its accuracy were the classes Gaussian along it"),
    LayerColumn("silhouette", "real", "", "of mean squared distances: (between - within) / the larger one"),
    LayerColumn("update_norm", "real", "", "length of the block's change of the difference, from the layer before"),
    LayerColumn("update_along", "real", "", "its part along the difference before the block, signed"),
    LayerColumn("update_across", "real", "", "length of the rest"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)

#: One row a (place, pooling, component).
COMPONENTS = (
    *_WHERE,
    LayerColumn(
        "pooling", "text", "", "balanced (classes weighted alike, means left in), within, or paired differences"
    ),
    LayerColumn("component", "whole", "", "1 is the largest"),
    LayerColumn("variance", "real", "", "along it"),
    LayerColumn("explained", "real", "share", "of the variance"),
    LayerColumn("cos", "real", "", "|cos| with the difference of means"),
    LayerColumn("cos_low", "real", "", "95% interval, lower end"),
    LayerColumn("cos_high", "real", "", "upper end"),
    LayerColumn("cos_expected", "real", "", "spiked model; first component of balanced pooling only"),
    LayerColumn("cos_null", "real", "", "95th percentile over random relabellings"),
    LayerColumn("p", "real", "", "permutation p-value of cos"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)

#: One row a pair of layers of the same position and stream width: cosine of their differences of means.
COSINES = (
    LayerColumn("model", "text", "", "label of the model"),
    LayerColumn("contrast", "text", "", "positive - negative, by name"),
    LayerColumn("position", "text", "", "of both"),
    LayerColumn("hook", "text", "", "one place"),
    LayerColumn("layer", "whole", "blocks", "its layer"),
    LayerColumn("stream", "text", "", "its stream"),
    LayerColumn("other_hook", "text", "", "the other place"),
    LayerColumn("other_layer", "whole", "blocks", "its layer"),
    LayerColumn("other_stream", "text", "", "its stream"),
    LayerColumn("cos", "real", "", "signed"),
    LayerColumn("reason", "text", "", "why cos is null, or null"),
)

#: One row a pair of layers: overlap of their leading subspaces, the differences of means projected out of both.
OVERLAPS = (
    *COSINES[:-2],
    LayerColumn("k", "whole", "", "dimensions of both subspaces"),
    LayerColumn("overlap", "real", "dimensions", "|U^T V|_F^2: k is the same subspace, 0 none in common"),
    LayerColumn("expected", "real", "dimensions", "k^2 / (d - r) for random subspaces, r dimensions projected out"),
    LayerColumn("null_high", "real", "dimensions", "95th percentile where coordinates of one layer are permuted"),
    LayerColumn("p", "real", "", "p-value against that null"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)

#: One row a (model, contrast, position).
ONSETS = (
    LayerColumn("model", "text", "", "label of the model"),
    LayerColumn("contrast", "text", "", "positive - negative, by name"),
    LayerColumn("position", "text", "", "of the tokens"),
    LayerColumn("threshold", "real", "", "|cos| that is to be reached and kept up to the last layer"),
    LayerColumn("onset", "whole", "blocks", "first layer from which the first component keeps to the difference"),
    LayerColumn("onset_low", "whole", "blocks", "95% interval, lower end"),
    LayerColumn("onset_high", "whole", "blocks", "upper end; null where it is not reached in more than 2.5% of draws"),
    LayerColumn("reached", "real", "share", "of draws in which it is reached"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)

#: One row an intervention.
CAUSES = (
    LayerColumn("model", "text", "", "label of the model"),
    LayerColumn("digest", "text", "", "of its architecture and weights"),
    LayerColumn("contrast", "text", "", "positive - negative, by name"),
    LayerColumn("position", "text", "", "that the direction is from"),
    LayerColumn("layer", "whole", "blocks", "that the direction is from"),
    LayerColumn("intervention", "text", "", "none, ablate_all, ablate_layer, add_layer or orthogonalise"),
    LayerColumn(
        "direction", "text", "", "difference, random (same length), shuffled (of relabelled rows) or other_layer"
    ),
    LayerColumn("on", "text", "", "which inputs: positive or negative"),
    LayerColumn("score", "real", "nats", "mean log odds of the wanted tokens at the last token"),
    LayerColumn("score_low", "real", "nats", "95% interval, lower end"),
    LayerColumn("score_high", "real", "nats", "upper end"),
    LayerColumn("rate", "real", "share", "of rows whose likeliest next token is a wanted one"),
    LayerColumn("kl", "real", "nats", "mean divergence of next tokens from the untouched model's, at the last token"),
    LayerColumn("n", "whole", "rows", "rows"),
    LayerColumn("fired", "whole", "", "tensors that were changed"),
    LayerColumn("edit_bits", "real", "bit", "length of the edit of the weights, for orthogonalise"),
    LayerColumn("verdict", "text", "", "used, present_not_used, absent or null, for the direction's own rows"),
    LayerColumn("reason", "text", "", "why values are null, or null"),
)

#: Every table, by its file's stem.
TABLES = {
    "layers": LAYERS,
    "components": COMPONENTS,
    "cosines": COSINES,
    "overlaps": OVERLAPS,
    "onsets": ONSETS,
    "causes": CAUSES,
}
