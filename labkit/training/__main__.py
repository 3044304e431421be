"""`python -m labkit.training PART`: retrain what `data/` ships. Every part resumes where it was stopped.

Order: data, vae, decoder, clip, clip-images, clip-both, reader, unet, base, flow, then export (writes `data/`) and
evaluate (measures it). `all` does everything. `restore` rebuilds checkpoints from the shipped weights when those of
the training run are gone, `flow-export` exports and measures the part flow alone.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.multiprocessing as mp

from labkit.training import parts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.training", description=__doc__)
    parser.add_argument("part", choices=[*parts.PARTS, *parts.CONTINUE, "all"])
    parser.add_argument(
        "--work", type=Path, default=Path("build/train"), help="checkpoints and logs (default: build/train)"
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="where to export (default: the data folder of the repository)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.out:
        os.environ["LABKIT_DATA"] = str(arguments.out.resolve())  # so that evaluate measures what export wrote
    folders = parts.Folders.of(arguments.work, arguments.out)
    for part in parts.PARTS if arguments.part == "all" else [arguments.part]:
        print(f"== {part}", flush=True)
        if part in parts.PARALLEL and (processes := parts.PARALLEL[part]) > 1:
            with tempfile.TemporaryDirectory() as folder:
                mp.spawn(parts.run_worker, (processes, f"{folder}/rendezvous", part, folders), nprocs=processes)
        else:
            (parts.PARTS | parts.CONTINUE)[part](folders)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
