"""What lesson 06 ships beside its world: the adapter of the easy stage, which is lesson 05's training once more.

The later stages and the learner's own plan train live. `python -m labkit.studies.l06_shipped` makes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from labkit.dpo import dpo
from labkit.models.checksums import sha256
from labkit.studies import l06, l06_world
from labkit.studies.shipped import SEED, Shelf
from labkit.studies.store import folder_of_studies

LIVE = {
    "prompts": 96, "train_steps": 100, "batch": 10, "draws": 4, "kappa": 400.0, "lr": 4e-4, "rank": 16,
}  # fmt: skip  # sizes of the live run on tier cpu
WORLD = "l06-world.safetensors"  # whose easy pairs it is trained on
SHELF = Shelf("easy-06.safetensors", l06.STUDY, tuple(LIVE), lambda seed, sizes: sha256(folder_of_studies() / WORLD))


def easy_steps(sizes: SimpleNamespace) -> int:
    """Steps of the easy stage: three fifths of all."""
    return round(0.6 * sizes.train_steps)


def easy_stage(seed: int, sizes: SimpleNamespace, train: Callable[[], l06.Adapters]) -> l06.Adapters:
    """{"easy": adapter}, shipped where it fits.

    Args:
        train: trains it on the shipped world's easy pairs; called only if nothing is shipped.
    """
    found = SHELF.read(seed, sizes)
    return train() if found is None else {"easy": found}


def make(seed: int, sizes: SimpleNamespace) -> l06.Adapters:
    """Train the easy stage on the shipped world."""
    pairs = l06_world.load().first(sizes.prompts).pairs().easy.training()
    return l06.align([("easy", pairs, [dpo(sizes.kappa)], easy_steps(sizes))], seed, sizes)


def main() -> None:
    """Make the file of the data folder."""
    sizes = SimpleNamespace(**LIVE)
    SHELF.write(make(SEED, sizes)["easy"], SEED, sizes)


if __name__ == "__main__":
    main()
