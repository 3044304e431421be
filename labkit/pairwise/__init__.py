"""PC-CLIP: teaching CLIP to put the difference of two images into words (Sam et al., arXiv 2409.09721).

Order of use: `embed_images` once, pairs (`natural_pairs`), sentences (`TemplateWriter`, `TransformersWriter`,
`HttpWriter`), `train_pairwise`, `evaluate_pairs`. The product world is in `labkit.worlds.products`, alarms in
`labkit.pairwise.inspection`.
"""

from labkit.pairwise.config import PRESETS, PairwiseConfig, preset
from labkit.pairwise.endpoint import EndpointError, HttpWriter
from labkit.pairwise.evaluate import (
    PairReport,
    attribute_ranking,
    auroc,
    difference_retrieval,
    directions,
    evaluate_pairs,
    image_bootstrap,
    kendall_tau,
    mirror_cosine,
    mirrored_choice,
    ordinal_ranking,
    sign_test,
    zero_shot,
)
from labkit.pairwise.geometry import DifferenceBatch, difference, pair_differences, unit
from labkit.pairwise.loss import duplicate_floor, loss_floor, matching, squared_error, symmetric_nce
from labkit.pairwise.pairs import (
    Codes,
    Pair,
    all_comparisons,
    choose_held_out,
    comparable,
    counterfactual_pairs,
    natural_pairs,
)
from labkit.pairwise.prompting import comparative_prompts, confused_pairs, mean_gap, shuffled_texts
from labkit.pairwise.records import AnswerCache, DifferenceRecord, WriteReport, Written, shuffled
from labkit.pairwise.towers import TextTower, as_tensor, check_vocabulary, embed_images
from labkit.pairwise.train import RunCard, train_pairwise
from labkit.pairwise.wise import interpolate
from labkit.pairwise.wording import (
    ORDERS,
    Statement,
    candidates,
    portrait_wording,
    read,
    sentence,
    swap_markers,
)
from labkit.pairwise.writers import TemplateWriter, TransformersWriter

__all__ = [
    "ORDERS",
    "PRESETS",
    "AnswerCache",
    "Codes",
    "DifferenceBatch",
    "DifferenceRecord",
    "EndpointError",
    "HttpWriter",
    "Pair",
    "PairReport",
    "PairwiseConfig",
    "RunCard",
    "Statement",
    "TemplateWriter",
    "TextTower",
    "TransformersWriter",
    "WriteReport",
    "Written",
    "all_comparisons",
    "as_tensor",
    "attribute_ranking",
    "auroc",
    "candidates",
    "check_vocabulary",
    "choose_held_out",
    "comparable",
    "comparative_prompts",
    "confused_pairs",
    "counterfactual_pairs",
    "difference",
    "difference_retrieval",
    "directions",
    "duplicate_floor",
    "embed_images",
    "evaluate_pairs",
    "image_bootstrap",
    "interpolate",
    "kendall_tau",
    "loss_floor",
    "matching",
    "mean_gap",
    "mirror_cosine",
    "mirrored_choice",
    "natural_pairs",
    "ordinal_ranking",
    "pair_differences",
    "portrait_wording",
    "preset",
    "read",
    "sentence",
    "shuffled",
    "shuffled_texts",
    "sign_test",
    "squared_error",
    "swap_markers",
    "symmetric_nce",
    "train_pairwise",
    "unit",
    "zero_shot",
]
