"""PC-CLIP: teaching CLIP to put the difference of two images into words (Sam et al., arXiv 2409.09721).

Modules in the order in which they are read:

    equations    the paper's equations, one function each
    towers       texts and images in, unit vectors out
    wording      sentences from attributes, and attributes from sentences; `frames`: many ways to say one difference,
                 `vocabulary`: whole words as tokens of a tower that spells
    pairs        which images are compared, and which comparisons are held out
    writers      who writes the sentences: a template, a chat model, or (`endpoint`) an HTTP endpoint;
                 `filters` judges the answers, `records` keeps them
    train        finetuning the text tower; `config` says what a run does
    evaluate     M1 mirrored choice, M2 retrieval, M3 ranking, retention, the paper's own test
    prompting    comparative prompting over all classes of a problem
    inspection   alarms for an inspection desk (the plates are `labkit.worlds.products`)
    own          your own pictures: reader, probe of the frozen tower, pairs from captions; `command`: labkit pcclip

The names below are those that lessons use, in the order of use; everything else is imported from its module.
"""

from labkit.pairwise.config import PairwiseConfig, preset
from labkit.pairwise.endpoint import EndpointError, HttpWriter
from labkit.pairwise.equations import (
    comparative_prompt,
    contrastive_loss,
    difference,
    duplicate_floor,
    interpolate,
    loss_floor,
    squared_loss,
    unit,
)
from labkit.pairwise.evaluate import (
    PairReport,
    attribute_ranking,
    difference_based_classification,
    difference_retrieval,
    directions,
    evaluate_pairs,
    image_bootstrap,
    mirrored_choice,
    zero_shot,
)
from labkit.pairwise.pairs import Pair, choose_held_out, comparable, counterfactual_pairs, natural_pairs
from labkit.pairwise.prompting import comparative_prompts, confused_pairs, mean_gap, shuffled_texts
from labkit.pairwise.records import AnswerCache, DifferenceRecord, shuffled
from labkit.pairwise.towers import TextTower, cache_embeddings
from labkit.pairwise.train import RunCard, train_pairwise
from labkit.pairwise.wording import ORDERS, Statement, directed_statements, portrait_wording, sentence, swap_markers
from labkit.pairwise.writers import TemplateWriter, TransformersWriter

__all__ = [
    # the equations
    "unit",
    "difference",
    "contrastive_loss",
    "squared_loss",
    "loss_floor",
    "duplicate_floor",
    "comparative_prompt",
    "interpolate",
    # pictures and sentences
    "cache_embeddings",
    "TextTower",
    "portrait_wording",
    "Statement",
    "sentence",
    "swap_markers",
    "ORDERS",
    "directed_statements",
    # pairs, and who writes about them
    "Pair",
    "comparable",
    "choose_held_out",
    "natural_pairs",
    "counterfactual_pairs",
    "TemplateWriter",
    "HttpWriter",
    "EndpointError",
    "TransformersWriter",
    "AnswerCache",
    "DifferenceRecord",
    "shuffled",
    # training
    "preset",
    "PairwiseConfig",
    "train_pairwise",
    "RunCard",
    # measuring
    "directions",
    "evaluate_pairs",
    "PairReport",
    "mirrored_choice",
    "image_bootstrap",
    "difference_based_classification",
    "difference_retrieval",
    "attribute_ranking",
    "zero_shot",
    # comparative prompting
    "comparative_prompts",
    "confused_pairs",
    "mean_gap",
    "shuffled_texts",
]
