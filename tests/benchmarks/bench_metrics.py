"""Speed, accuracy and memory of labkit.metrics against its peers, measured in one run so that the ratios hold.

    python tests/benchmarks/bench_metrics.py [--small] [--threads N] [--only frechet_small frechet_full prdc knn ...]
    python -m pytest tests/benchmarks -q -s          # full sizes; LABKIT_BENCH=small for the small ones

Every contestant runs in a fresh process that is bound to N cores: its peak memory is its own, and a peer that starts
eight jobs gains nothing by it. Times are the best of the repeats; ratios are of CPU seconds, which other work on the
machine hardly changes. frechet_small times everything from the features on;
frechet_full times the distance of two accumulated covariances and tells the accumulation apart. Peers that are not
installed are named as missing (extra `bench`). Peers:

- with floor: labkit's distance with the noise floor, which no peer computes
- pytorch-fid's formula: np.cov of stored features and scipy.linalg.sqrtm of the product of the covariances
- torchmetrics FrechetInceptionDistance with an identity network
- reference: a slow independent float64 route, against which errors are measured
- prdc (Naeem et al.), with sklearn's full distance matrices
- faiss-cpu IndexFlatL2 for exact nearest neighbours; with fewer queries than points in density_score
- torch-fidelity's and clean-fid's formula of KID, 100 subsets of 1,000 (or a third of all): restated, as neither
  of them runs without torchvision. All pairs: labkit's default, which has no subsets and brings a standard error
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SIZES = {
    "frechet_small": {"small": {"n": 60, "d": 256}, "full": {"n": 500, "d": 2048}},
    "frechet_full": {"small": {"n": 1200, "d": 384}, "full": {"n": 10_000, "d": 2048}},
    "prdc": {"small": {"n": 1000, "d": 256}, "full": {"n": 10_000, "d": 2048}},
    "knn": {"small": {"n": 2000, "d": 128}, "full": {"n": 20_000, "d": 768}},
    "knn_wide": {"small": {"n": 1000, "d": 512}, "full": {"n": 10_000, "d": 2048}},
    "density_score": {"small": {"n": 2000, "d": 128}, "full": {"n": 10_000, "d": 768}},
    "kid": {"small": {"n": 1500, "d": 256}, "full": {"n": 10_000, "d": 2048}},
}
CONTESTANTS = {
    "frechet_small": ("labkit", "with floor", "scipy sqrtm", "torchmetrics", "reference"),
    "frechet_full": ("labkit", "scipy sqrtm", "torchmetrics", "reference"),
    "prdc": ("labkit", "prdc"),
    "knn": ("labkit", "faiss-cpu"),
    "knn_wide": ("labkit", "faiss-cpu"),
    "density_score": ("labkit", "faiss-cpu"),
    "kid": ("labkit", "all pairs", "torch-fidelity's formula", "clean-fid's formula"),
}
PACKAGES = {"scipy sqrtm": "scipy", "torchmetrics": "torchmetrics", "prdc": "prdc", "faiss-cpu": "faiss"}


# ---- one contestant, in a process of its own ----------------------------------------------------------------------


def features(n: int, d: int, seed: int):
    """Correlated non-negative features [n, d] float32 with a decaying spectrum, as pooled network activations have."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, d + 1, dtype=torch.float32) ** -0.5  # covariance eigenvalues ~ 1 / i
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(99)))[0]
    x = torch.randn(n, d, generator=generator) * decay @ basis
    return (0.4 + x * (1.0 + 0.05 * seed)).clamp(min=0)


def frechet_labkit(x, y, floor: bool = False) -> dict:
    """The distance alone, as the peers give it; with the floor: what `frechet_distance` does by default."""
    from labkit.metrics import frechet_distance

    result = frechet_distance(real=x, fake=y, floor=floor)
    return {"value": result.value, "solver": result.solver}


def frechet_with_floor(x, y) -> dict:
    return frechet_labkit(x, y, floor=True)


def frechet_sqrtm(x, y) -> dict:
    """What pytorch-fid computes, restated."""
    return {"value": _sqrtm_distance(*_numpy_moments(x), *_numpy_moments(y))}


def frechet_torchmetrics(x, y) -> dict:
    return {"value": float(_torchmetrics_fid(x, y).compute())}


def frechet_reference(x, y) -> dict:
    """The value by an independent route: QR of the centred rows, then singular values of a product of triangles."""
    import torch

    x, y = x.double(), y.double()
    roots = [torch.linalg.qr((s - s.mean(0)) / (len(s) - 1) ** 0.5)[1] for s in (x, y)]
    nuclear = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    traces = sum(r.square().sum() for r in roots)
    return {"value": float((x.mean(0) - y.mean(0)).square().sum() + traces - 2 * nuclear)}


def full_labkit(x, y) -> dict:
    from labkit.metrics import GaussianStats, frechet_distance

    start = clocks()
    stats = [GaussianStats.from_features(s) for s in (x, y)]
    middle = clocks()
    result = frechet_distance(real=stats[0], fake=stats[1])
    return {"value": result.value, "solver": result.solver, **_two_times(start, middle)}


def full_sqrtm(x, y) -> dict:
    start = clocks()
    moments = *_numpy_moments(x), *_numpy_moments(y)
    middle = clocks()
    return {"value": _sqrtm_distance(*moments), **_two_times(start, middle)}


def full_torchmetrics(x, y) -> dict:
    start = clocks()
    metric = _torchmetrics_fid(x, y)
    middle = clocks()
    return {"value": float(metric.compute()), **_two_times(start, middle)}


def clocks() -> tuple[float, float]:
    """Wall clock and this process's CPU seconds."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> dict[str, float]:
    wall, cpu = clocks()
    return {"seconds": wall - start[0], "cpu": cpu - start[1]}


def _two_times(start: tuple[float, float], middle: tuple[float, float]) -> dict[str, float]:
    """ "seconds" and "cpu" replace the totals that `one` would measure."""
    return since(middle) | {"accumulate": middle[0] - start[0]}


def _numpy_moments(x):
    import numpy as np

    x = x.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)


def _sqrtm_distance(m1, s1, m2, s2) -> float:
    import numpy as np
    from scipy.linalg import sqrtm

    difference = m1 - m2
    return float(difference @ difference + np.trace(s1) + np.trace(s2) - 2 * np.trace(sqrtm(s1 @ s2).real))


def _torchmetrics_fid(x, y):
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = x.shape[1]

        def forward(self, rows):
            return rows

    metric = FrechetInceptionDistance(feature=Identity()).set_dtype(torch.float64)
    for real, rows in ((True, x), (False, y)):
        for part in rows.split(512):
            metric.update(part.double(), real=real)
    return metric


def prdc_labkit(x, y) -> dict:
    from labkit.metrics import manifold_metrics

    return manifold_metrics(real=x, fake=y, k=5, boundary="open").as_dict()


def prdc_peer(x, y) -> dict:
    import contextlib
    import io

    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return {k: float(v) for k, v in compute_prdc(x.numpy(), y.numpy(), nearest_k=5).items()}


def knn_labkit(x, y) -> dict:
    from labkit.metrics import nearest_neighbours

    return {"sum": float(nearest_neighbours(x, 10)[0].sum())}


def knn_faiss(x, y) -> dict:
    import faiss
    import numpy as np

    rows = x.numpy()
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    squared, _ = index.search(rows, 11)  # the first is meant to be the point itself
    return {"sum": float(np.sqrt(np.maximum(squared[:, 1:], 0)).astype(np.float64).sum())}


def score_labkit(x, y) -> dict:
    """Pseudo density of a tenth as many new samples, the reals being measured already; only the search is timed."""
    from labkit.density.equations import mean_distance

    return {"sum": float(mean_distance(x, 10, queries=y[: len(y) // 10]).sum())}


def score_faiss(x, y) -> dict:
    import faiss
    import numpy as np

    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x.numpy())
    squared, _ = index.search(y[: len(y) // 10].numpy(), 10)
    return {"sum": float(np.sqrt(np.maximum(squared, 0)).astype(np.float64).mean(axis=1).sum())}


def _subset_size(x) -> int:
    return min(1000, len(x) // 3)


def kid_labkit(x, y) -> dict:
    import torch

    from labkit.metrics import kernel_distance

    options = {"subsets": 100, "subset_size": _subset_size(x), "generator": torch.Generator().manual_seed(0)}
    return {"value": kernel_distance(real=x, fake=y, **options).value}


def kid_all_pairs(x, y) -> dict:
    from labkit.metrics import kernel_distance

    result = kernel_distance(real=x, fake=y)
    return {"value": result.value, "error_of_it": result.standard_error}


def kid_torch_fidelity(x, y) -> dict:
    import numpy as np

    rng, size, values = np.random.RandomState(2020), _subset_size(x), []
    x, y = x.numpy(), y.numpy()
    for _ in range(100):
        a, b = x[rng.choice(len(x), size, replace=False)], y[rng.choice(len(y), size, replace=False)]
        k_aa, k_bb, k_ab = ((np.matmul(p, q.T) * (1.0 / x.shape[1]) + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
        within = sum(float((k.sum(axis=1) - np.diagonal(k)).sum()) for k in (k_aa, k_bb))
        values.append(within / (size * (size - 1)) - 2 * k_ab.sum(axis=0).sum() / size**2)
    return {"value": float(np.mean(values))}


def kid_clean_fid(x, y) -> dict:
    import numpy as np

    rng, size, total, d = np.random.RandomState(0), _subset_size(x), 0.0, x.shape[1]
    x, y = x.numpy(), y.numpy()
    for _ in range(100):
        p, q = y[rng.choice(len(y), size, replace=False)], x[rng.choice(len(x), size, replace=False)]
        within = (p @ p.T / d + 1) ** 3 + (q @ q.T / d + 1) ** 3
        across = (p @ q.T / d + 1) ** 3
        total += (within.sum() - np.diag(within).sum()) / (size - 1) - across.sum() * 2 / size
    return {"value": float(total / 100 / size)}


RUN: dict[tuple[str, str], Callable] = {
    ("frechet_small", "labkit"): frechet_labkit,
    ("frechet_small", "with floor"): frechet_with_floor,
    ("frechet_small", "reference"): frechet_reference,
    ("frechet_small", "scipy sqrtm"): frechet_sqrtm,
    ("frechet_small", "torchmetrics"): frechet_torchmetrics,
    ("frechet_full", "labkit"): full_labkit,
    ("frechet_full", "reference"): frechet_reference,
    ("frechet_full", "scipy sqrtm"): full_sqrtm,
    ("frechet_full", "torchmetrics"): full_torchmetrics,
    ("prdc", "labkit"): prdc_labkit,
    ("prdc", "prdc"): prdc_peer,
    ("knn", "labkit"): knn_labkit,
    ("knn", "faiss-cpu"): knn_faiss,
    ("knn_wide", "labkit"): knn_labkit,
    ("knn_wide", "faiss-cpu"): knn_faiss,
    ("density_score", "labkit"): score_labkit,
    ("density_score", "faiss-cpu"): score_faiss,
    ("kid", "labkit"): kid_labkit,
    ("kid", "all pairs"): kid_all_pairs,
    ("kid", "torch-fidelity's formula"): kid_torch_fidelity,
    ("kid", "clean-fid's formula"): kid_clean_fid,
}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Largest resident set while inside, above what it was on entry (inputs and libraries excluded), in MB."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = resident_bytes()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.005):
            self.peak = max(self.peak, resident_bytes())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.megabytes = (max(self.peak, resident_bytes()) - self.start) / 1e6


def one(task: str, contestant: str, n: int, d: int, threads: int, repeats: int) -> dict:
    """Run a contestant in this process; returns its result with seconds and megabytes."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    run = RUN[task, contestant]
    warm = features(40, 16, 0), features(40, 16, 1)
    run(*warm)  # imports and first-call costs
    x, y = features(n, d, 0), features(n, d, 1)
    results = []
    with PeakMemory() as memory:
        for _ in range(repeats):
            start = clocks()
            result = run(x, y)
            results.append(since(start) | result)
    return min(results, key=lambda result: result["cpu"]) | {"megabytes": memory.megabytes}


# ---- the table ----------------------------------------------------------------------------------------------------


def measure(task: str, size: str, threads: int) -> dict[str, dict | None]:
    """{contestant: result or None if its package is missing}."""
    results: dict[str, dict | None] = {}
    environment = os.environ | {
        name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    for contestant in CONTESTANTS[task]:
        package = PACKAGES.get(contestant)
        if package and importlib.util.find_spec(package) is None:
            results[contestant] = None
            continue
        quick = contestant in ("labkit", "with floor") and task.startswith("frechet")
        repeats = 3 if size == "small" or quick else 1
        arguments = json.dumps(
            {"task": task, "contestant": contestant, "threads": threads, "repeats": repeats} | SIZES[task][size]
        )
        done = subprocess.run(
            [sys.executable, __file__, "--one", arguments], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{contestant} failed on {task}: {done.stderr.strip().splitlines()[-1]}")
        results[contestant] = json.loads(done.stdout.strip().splitlines()[-1])
    return results


def report(task: str, size: str, threads: int) -> dict[str, dict | None]:
    """Measure and print one table."""
    shape = SIZES[task][size]
    print(f"\n{task}: {shape['n']} x {shape['n']} x {shape['d']}, {threads} thread(s)", flush=True)
    results = measure(task, size, threads)
    ours = results["labkit"]
    for contestant, result in results.items():
        if result is None:
            print(f"  {contestant:13} not installed (extra `bench`)")
            continue
        rest = {k: v for k, v in result.items() if k not in ("seconds", "cpu", "megabytes")}
        values = ", ".join(
            f"{k} {v:.{3 if k == 'accumulate' else 12}g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in rest.items()
        )
        if contestant != "reference" and results.get("reference"):
            values += f", error {abs(result['value'] - results['reference']['value']):.1e}"
        ratio = f"{result['cpu'] / ours['cpu']:8.2f}x"
        times = f"{result['seconds']:9.3f} s {result['cpu']:9.3f} CPU s {ratio}"
        print(f"  {contestant:13} {times} {result['megabytes']:8.0f} MB   {values}", flush=True)
    return results


def size_asked() -> str:
    return "small" if os.environ.get("LABKIT_BENCH", "full") == "small" else "full"


def threads_asked() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def test_frechet_with_few_samples():
    size = size_asked()
    results = report("frechet_small", size, threads_asked())
    assert abs(results["labkit"]["value"] - results["reference"]["value"]) <= 1e-9
    if size == "full" and results["scipy sqrtm"]:
        assert results["scipy sqrtm"]["cpu"] >= 100 * results["labkit"]["cpu"]


def test_frechet_at_full_rank():
    size = size_asked()
    results = report("frechet_full", size, threads_asked())
    assert abs(results["labkit"]["value"] - results["reference"]["value"]) <= 1e-9
    if size == "full" and results["torchmetrics"]:
        assert results["torchmetrics"]["cpu"] >= 3 * results["labkit"]["cpu"]


def test_precision_recall_density_coverage():
    size = size_asked()
    results = report("prdc", size, threads_asked())
    ours, theirs = results["labkit"], results["prdc"]
    assert ours["megabytes"] <= 500
    if theirs:
        for name in ("precision", "recall", "density", "coverage"):
            assert abs(ours[name] - theirs[name]) < 2e-3
        if size == "full":
            assert theirs["cpu"] > ours["cpu"]


def test_prdc_readme_example():
    """P2 of the research notes: 10000 + 10000 standard normal points in 1000 dimensions, k = 5, one published draw."""
    import torch

    from labkit.metrics import manifold_metrics

    n, d = (10_000, 1000) if size_asked() == "full" else (1000, 1000)
    x, y = (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    scores = manifold_metrics(real=x, fake=y, k=5, boundary="open").as_dict()
    print(f"\nprdc README example at n = {n}: { ({k: round(v, 4) for k, v in scores.items()}) }")
    published = {"precision": 0.4772, "recall": 0.4705, "density": 1.0555, "coverage": 0.9735}
    if n < 10_000:
        published = {"precision": 0.61, "recall": 0.58, "density": 1.10, "coverage": 0.980}
    tolerance = {"precision": 0.06, "recall": 0.06, "density": 0.2, "coverage": 0.02}
    for name, value in published.items():
        assert abs(scores[name] - value) < tolerance[name]


@pytest.mark.parametrize("task", ["knn", "knn_wide", "density_score"])
def test_nearest_neighbours(task):
    results = report(task, size_asked(), threads_asked())
    if results["faiss-cpu"]:
        assert abs(results["labkit"]["sum"] / results["faiss-cpu"]["sum"] - 1) < 1e-4


def test_kernel_distance():
    """The peers' value has the scatter of 100 overlapping subsets: it agrees with ours to a few standard errors."""
    results = report("kid", size_asked(), threads_asked())
    exact = results["all pairs"]
    for contestant in ("labkit", "torch-fidelity's formula", "clean-fid's formula"):
        assert abs(results[contestant]["value"] - exact["value"]) < 5 * exact["error_of_it"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmarks of labkit.metrics against its peers")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes; ratios are less telling")
    parser.add_argument("--threads", type=int, default=threads_asked())
    parser.add_argument("--only", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(**json.loads(arguments.one))))
        return
    for task in arguments.only:
        report(task, "small" if arguments.small else "full", arguments.threads)


if __name__ == "__main__":
    main()
