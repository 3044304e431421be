"""Counts that come out of NumPy or torch give what Python's own numbers give, in every public function that takes one.

`tests/test_metrics_numbers.py` has the metrics with their known values; here every package is walked through, so that a
new function with a count cannot be forgotten.
"""

import importlib
import inspect

import numpy as np
import pytest
import torch

from labkit import density, dpo, inspection, metrics, pairwise, survey
from labkit.inspection import Rollout
from labkit.inspection.aql import passes_one_step_tighter

PACKAGES = ("metrics", "density", "inspection", "survey", "pairwise", "dpo")
KINDS = {
    "int64": np.int64,
    "int32": np.int32,
    "uint8": np.uint8,  # holds every count below, but not the sums and products made of them
    "tensor": torch.tensor,
    "uint8 tensor": lambda value: torch.tensor(value, dtype=torch.uint8),
}


def cloud(n):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


X, Y = cloud(30), 0.3 + cloud(25)
NAMES = [f"{i}.png" for i in range(40)]
GAMES = {"first": [1, 1, 2, 1], "second": [2, 3, 3, 2], "outcome": [1, 0, 1, 1]}
LOT = {"a": 1.0, "b": 30.0, "c_human": 1.0, "escape_loss": 50.0}

# name -> the function with all its counts passed through `c`
CALLS = {
    "metrics.noise_floor": lambda c: metrics.noise_floor([1.0, 4.0], n_real=c(200), n_fake=c(90)),
    "metrics.frechet_distance": lambda c: metrics.frechet_distance(real=X, fake=Y, ddof=c(1)).value,
    "metrics.frechet_null": lambda c: metrics.frechet_null(real=X, fake=Y, rounds=c(3), generator=generator())[1],
    "metrics.fid_infinity": lambda c: (
        metrics.fid_infinity(real=X, fake=Y, points=c(4), smallest=c(12), generator=generator()).value
    ),
    "metrics.kernel_distance": lambda c: (
        metrics.kernel_distance(real=X, fake=Y, subsets=c(3), subset_size=c(20), generator=generator()).value
    ),
    "metrics.manifold_metrics": lambda c: metrics.manifold_metrics(real=X, fake=Y, k=c(4)).as_dict(),
    "metrics.nearest_neighbours": lambda c: metrics.nearest_neighbours(X, c(3))[0].tolist(),
    "metrics.wilson_interval": lambda c: metrics.wilson_interval(c(120), c(200)),
    "metrics.sign_test": lambda c: metrics.sign_test(c(116), c(78)),
    "metrics.win_rate": lambda c: metrics.win_rate(
        [1, 0.5, 0, 1], resamples=c(200), generator=np.random.default_rng(0)
    ).low,
    "metrics.cluster_bootstrap": lambda c: metrics.cluster_bootstrap(
        [0.2, 0.9, 0.4], resamples=c(200), generator=np.random.default_rng(0)
    ),
    "metrics.bradley_terry": lambda c: metrics.bradley_terry(
        **GAMES, resamples=c(100), generator=np.random.default_rng(0)
    ).strengths.tolist(),
    "density.mean_distance": lambda c: density.mean_distance(X, c(5)).tolist(),
    "inspection.acceptance": lambda c: inspection.acceptance(0.02, n=c(80), c=c(2)),
    "inspection.zero_failure_n": lambda c: inspection.zero_failure_n(0.02, lot=c(200)),
    "inspection.two_point_plan": lambda c: inspection.two_point_plan(0.01, 0.08, lot=c(250)),
    "inspection.aql_plan": lambda c: inspection.aql_plan(c(200), 1.0),
    "inspection.average_outgoing_quality": lambda c: (
        inspection.average_outgoing_quality(0.02, n=c(80), c=c(2), lot=c(200))
    ),
    "inspection.outgoing_quality_limit": lambda c: inspection.outgoing_quality_limit(n=c(80), c=c(2), lot=c(200))[0],
    "inspection.average_total_inspection": lambda c: (
        inspection.average_total_inspection(0.02, n=c(80), c=c(2), lot=c(200))
    ),
    "inspection.clopper_pearson": lambda c: inspection.clopper_pearson(c(2), c(80)),
    "inspection.upper_bound": lambda c: inspection.upper_bound(c(2), c(80)),
    "inspection.lot_upper_bound": lambda c: inspection.lot_upper_bound(c(2), c(80), lot=c(200)),
    "inspection.sprt": lambda c: inspection.sprt(0.01, 0.06, truncate=c(200)),
    "inspection.csp1": lambda c: inspection.csp1(0.02, clearance=c(50), fraction=0.1),
    "inspection.certification_p_value": lambda c: inspection.certification_p_value(c(3), c(200), alpha=0.03),
    "inspection.draw_sample": lambda c: inspection.draw_sample(NAMES, c(5), c(7)),
    "inspection.stage_plan": lambda c: inspection.stage_plan(Rollout("p"), c(200), 1.0),
    "inspection.after_lot": lambda c: inspection.after_lot(Rollout("p"), accepted=True, c=c(2)),
    "inspection.passes_one_step_tighter": lambda c: bool(passes_one_step_tighter(c(1), c(200), 1.0)),
    "inspection.best_sample_size": lambda c: inspection.best_sample_size(lot=c(200), **LOT),
    "inspection.value_of_one_more": lambda c: inspection.value_of_one_more(rest=c(200), **LOT),
    "inspection.break_even_images": lambda c: inspection.break_even_images(76000, n=c(4), steps=c(200)),
    "survey.best_of_n": lambda c: survey.best_of_n(list(range(200)), c(4)),
    "survey.best_of_n_kl": lambda c: survey.best_of_n_kl(c(4)),
    "survey.best_of_n_weights": lambda c: survey.best_of_n_weights(list(range(200)), c(100)).tolist(),
    "survey.raft_weights": lambda c: survey.raft_weights(X, c(2)).tolist(),
    "survey.clip_for": lambda c: survey.clip_for(c(128)),
    "pairwise.loss_floor": lambda c: pairwise.loss_floor(c(200), 0.1),
    "pairwise.confused_pairs": lambda c: (
        pairwise.confused_pairs(torch.tensor([0, 1, 2, 1]), torch.tensor([1, 0, 2, 2]), c(2))
    ),
    "dpo.kappa_of": lambda c: dpo.kappa_of(2000.0, True, True, c(200)),
    "dpo.expected_range": lambda c: dpo.expected_range(c(4)),
}  # fmt: skip

# Their numbers are settings of a run or of a network, which a configuration holds, not something that was counted.
SETTINGS = {
    "density": {"fit_mlp", "pilot", "importance_sample", "perturb", "fine_tune"},
    "inspection": {"size_rule", "near_duplicate_rule"},
    "survey": {"truncated_chain", "open_prompts", "train_proxy", "path_divergence", "enter", "ppo_loss"},
    "pairwise": {
        *("cache_embeddings", "sentence", "natural_pairs", "preset", "train_pairwise", "evaluate_pairs"),
        "image_bootstrap",
    },
    "dpo": {"faithfulness", "build_pool", "sd_recon", "recon_levels", "side_effects"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_a_count_of_another_library_is_the_same_count(name, kind):
    want, got = CALLS[name](int), CALLS[name](KINDS[kind])
    if isinstance(want, float | tuple):  # a tensor among the factors leaves float32's digits in a few formulas
        assert np.asarray(got, dtype=float) == pytest.approx(np.asarray(want, dtype=float), rel=2e-6)
    else:
        assert got == want


@pytest.mark.parametrize("package", PACKAGES)
def test_no_public_function_with_a_count_is_forgotten(package):
    module = importlib.import_module(f"labkit.{package}")
    functions = {name: getattr(module, name) for name in module.__all__}
    functions = {name: f for name, f in functions.items() if inspect.isfunction(f)}
    kinds = {
        name: {str(p.annotation) for p in inspect.signature(f).parameters.values()} for name, f in functions.items()
    }
    counted = {name for name, found in kinds.items() if found & {"int", "int | None"}}
    here = {name.split(".")[1] for name in CALLS if name.startswith(f"{package}.")}
    assert counted == here | SETTINGS.get(package, set())
