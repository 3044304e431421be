"""What lesson 06 ships: its world, if it is the one that this base made, and the adapter of the easy stage.

The later stages and the learner's own plan train live. `python -m labkit.studies.l06_shipped` makes the adapter anew,
`python -m labkit.studies.l06_shipped world` the world, where it is missing or another base made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

from labkit.dpo import dpo, fingerprints
from labkit.models.checksums import STUDIES, sha256, verify, write_checksums
from labkit.studies import l06, l06_world
from labkit.studies.shipped import SEED, Shelf
from labkit.studies.store import folder_of_studies
from labkit.studies.study import StudyError

LIVE = {
    "prompts": 96, "train_steps": 100, "batch": 10, "draws": 4, "kappa": 400.0, "lr": 4e-4, "rank": 16,
}  # fmt: skip  # sizes of the live run on tier cpu
WORLD = "l06-world.safetensors"  # whose easy pairs it is trained on
SHELF = Shelf("easy-06.safetensors", l06.STUDY, tuple(LIVE), lambda seed, sizes: sha256(folder_of_studies() / WORLD))


def world() -> l06_world.ShippedWorld:
    """The shipped world.

    Raises:
        ModelLoadError: the file is not the one that the data folder lists.
        StudyError: another base, VAE or text encoder than today's made it.
    """
    verify(STUDIES)
    shipped, now = l06_world.load(), fingerprints(l06.models().pipe)
    made_by = shipped.pool.record["hashes"]
    if other := [part for part, digest in now.items() if made_by.get(part) != digest]:
        raise StudyError(
            f"{WORLD} was made by another portrait-sd-base ({', '.join(other)}): restore the data folder, or make it "
            "anew with `make studies`"
        )
    return shipped


def make_world() -> bool:
    """Make the world and list it, if it is missing or another base made it: whether that was so."""
    try:
        if (folder_of_studies() / WORLD).is_file():
            world()
            return False
    except StudyError:
        pass
    l06_world.main()
    write_checksums(folders=[STUDIES])
    return True


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
    pairs = world().first(sizes.prompts).pairs().easy.training()
    return l06.align([("easy", pairs, [dpo(sizes.kappa)], easy_steps(sizes))], seed, sizes)


def main() -> None:
    """Make the adapter, or with the argument "world" the world."""
    if sys.argv[1:] == ["world"]:
        print(f"{WORLD}: {'made' if make_world() else 'is there'}")
        return
    sizes = SimpleNamespace(**LIVE)
    SHELF.write(make(SEED, sizes)["easy"], SEED, sizes)


if __name__ == "__main__":
    main()
