"""Numbers that the texts of a lesson state and on which no claim rests: READINGS with their interval, MEANS without.

The estimates of claims stand in the studies. `labkit study check` compares all of them with what is written, so that a
record that grows cannot leave an old number in a text.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from labkit.studies.estimate import Contrast, Recorded, by_seed, gain, level, on_first_seeds, on_new_seeds


def _bon_law_few(recorded: Recorded) -> np.ndarray:
    """`estimate_bon_law` for the proxy of a tenth of the votes."""
    from labkit.studies.l08 import estimate_bon_law

    return estimate_bon_law(recorded, "few")


READINGS: Mapping[str, Mapping[str, Contrast]] = {
    "01": {
        "variety_at_8": gain("variety", "guidance8", "guidance1"),
        "variety_at_8_in_20": gain("variety", "guidance8_steps20", "guidance3_steps20"),
    },
    "02": {
        "won": level("won", "wins"),
        "null_is_level_at_128": level("same", "many_pictures"),
        "noise@256": level("precision3@256", "noise"),
        "noise@1600": level("precision3@1600", "noise"),
        "step_to_model": gain("fd@128", "model", "same"),
    },
    "03": {
        "tune_share_first_five": on_first_seeds(by_seed(gain("above", "tune.w33", "tune.w1")), 5),
        "tune_share_between": on_new_seeds(by_seed(gain("above", "tune.w33", "tune.w003")), 5),
        "tune_recall_first_thirty": on_first_seeds(gain("recall", "tune.w003", "tune.w1"), 30),
        "tune_rare_kernel": gain("kernel", "tune.w003", "tune.w1"),
        "less_noise_precision": gain("precision", "model.noise08", "model.w1"),
        "less_noise_recall": gain("recall", "model.noise08", "model.w1"),
        "guidance_1_recall": gain("recall", "model.guidance1", "model.w1"),
    },
    "04": {
        **{name: by_seed(gain(f"has.{name}", "like", "none")) for name in ("mood", "glasses", "beard")},
        "halves_of_20": by_seed(gain("target", "first_steps20", "second_steps20")),
        "worst_or_anybody": by_seed(gain("target", "both_worst", "both")),
        "normalized_diversity": by_seed(gain("diversity.4", "rounds_normalized", "rounds_feedback")),
        "named_dropout_at_first": by_seed(gain("diversity.1", "rounds_named_dropout", "rounds_named")),
        "named_dropout_best": by_seed(gain("so_far.4", "rounds_named_dropout", "rounds_named")),
        "normalized_mean": by_seed(gain("mean.4", "rounds_normalized", "rounds_feedback")),
    },
    "05": {
        "dpo_gain": gain("gold", "dpo", "base"),
        "mapo_gain": gain("gold", "mapo", "base"),
        "sdpo_nearer": gain("distance", "sdpo", "dpo"),
    },
    "06": {
        **{f"{arm}_is_nearer": gain("distance", arm, "base") for arm in ("easy_cured", "hg_half")},
        "curriculum_over_easy": gain("gold", "hg", "easy"),
        "cure_in_easy": gain("gold", "easy_cured", "easy"),
    },
    "07": {
        **{name: level(f"m1.{name}", "bank") for name in ("sides", "numbers")},
        **{f"more_frames_{name}": gain(f"m1.{name}", "bank", "frame") for name in ("after", "only")},
    },
    "08": {
        "bon_law_few": _bon_law_few,
        "votes": lambda recorded: (
            recorded.values("bon.gold.main", "best_of_n_long")[:, -1:]
            - recorded.values("bon.gold.few", "best_of_n_long")[:, -1:]
        ),
        "raft_finds_bug": gain("saturation", "raft_bias", "raft"),
    },
    "09": {"void_first_three": on_first_seeds(level("over.new", "replaced"), 3)},
}

# lesson -> uid of a text -> (metric, decimals, or "%" for whole per cent) -> arms in the text's order ("; " where the
# order may be another): both languages of the text state the means over seeds and prompts. "arm-other": the gain.
# "arm/other": on the seeds that both have
MEANS: Mapping[str, Mapping[str, Mapping[tuple[str, int | str], str]]] = {
    "01": {"scale-reading": {("faithful", 2): "guidance1 guidance3"}},
    "03": {
        "ring-reading": {
            ("precision", 2): "ring.w1 ring.w33",
            ("coverage", 2): "ring.w33_half ring.w33_top",
            ("distance", 3): "ring.w1 ring.w2",
        },
        "push-reading": {("log_gain", 3): "push.up push.mlp", ("promised", 3): "push.mlp"},
        "ideal-reading": {
            ("precision", 2): "ideal.w1 ideal.w33 ideal.w003",
            ("recall", 2): "ideal.w1 ideal.w33",
            ("vendi", 1): "ideal.w1 ideal.w33 ideal.w003",
            ("kernel", 1): "ideal.w1 ideal.w33 ideal.w003",
        },
        "model-reading": {
            ("precision", 2): "model.w1 model.w33",
            ("recall", 2): "model.w1 model.w33 model.w003",
            ("vendi", 1): "model.w1 model.w33",
            ("kernel", 1): "model.w1 model.w33",
        },
        "tune-reading": {
            ("above", 2): "tune.pretrained tune.w1/tune.pretrained tune.w33 tune.w003",
            ("kernel", 0): "tune.pretrained tune.w1/tune.pretrained; tune.w1; tune.w003",
            ("recall", 2): "tune.pretrained tune.w1 tune.w003",
            ("rare", "%"): "tune.pretrained; tune.w1; tune.w003",
        },
    },
    "05": {"prove-reading": {("gold", 3): "base dpo"}},
    "06": {
        "colour-reading": {("warmth", 3): "warm_all-base warm_two-base warm_cured-base"},
        "own-reading": {("gold", 2): "real_sft hg", ("distance", 0): "real_sft hg"},
        "careless-reading": {
            ("gold", 2): "real_sft_careless base; leap_careless; leap",
            ("told_apart", "%"): "leap_grainy",
        },
    },
    "08": {
        "first-reading": {
            **{(metric, 2): "base draft_bias" for metric in ("proxy.bias", "gold", "saturation")},
            ("diversity", 1): "base draft_bias",
        },
        "race-reading": {
            ("proxy", 2): "draft best_of_n",
            ("gold", 2): "base; draft best_of_n dpo",
            ("task", 2): "base draft dpo; best_of_n",
            ("preference", 2): "draft",
            ("diversity", 1): "base best_of_n; nft; ddpo raft dpo draft",
        },
        "long-race-reading": {
            **{(f"proxy.s{stage}", 2): "draft_few_long" for stage in (1, 2, 3, 4)},
            **{(f"gold.s{stage}", 2): "nft_long; ddpo_long; draft_long; draft_few_long" for stage in (1, 2, 3, 4)},
            ("diversity.s1", 1): "draft_few_long",
            ("diversity", 1): "draft_few_long; nft_long",
        },
        "paths-kl-reading": {("gold", 2): "nft draft"},
        "bug-reading": {("saturation", 2): "draft_bias draft; base", ("gold", 2): "draft_bias draft"},
    },
}
