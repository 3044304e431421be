"""One archive for each platform with all that `pip install` would fetch, so that a room needs no network.

    labkit-camp-0.1.0-linux-x86_64-py312/
        README.txt install.py install.sh install.ps1    checks, installs, tries out; needs Python and nothing else
        wheels/       labkit with data and notebooks, every package it needs, the build backend
        course/       the files of the repository, for those who change the course (make works offline with wheels/)
        site/         the web pages, where they have been built
        SHA256SUMS    checksums of all of these; those of the archive lie beside it

The versions are those of constraints.txt, resolved for the other platform by uv (pip reads the markers of the machine
it runs on) and fetched by pip as wheels only. At the end a resolver installs, without network and without writing
anything, from the wheels alone: what is missing is found here and not in the room.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit import __version__
from labkit.errors import LabkitError
from labkit.files import write_atomically

KIT = Path(__file__).with_name("kit")
SUMS = "SHA256SUMS"
MACOS = "14.0"  # the oldest that torch has wheels for
EDITABLE = "editables~=0.5"  # hatchling asks for it when `pip install -e` builds, not before
Run = Callable[[Sequence[str]], str]


class BundleError(LabkitError):
    """No archive: one line that says what is missing and what to do."""


@dataclass(frozen=True)
class Platform:
    """A kind of machine: its name for uv, and pip's tags of the wheels that run on it, in the order of preference."""

    uv: str
    tags: tuple[str, ...]


PLATFORMS = {
    "linux-x86_64": Platform(
        "x86_64-manylinux_2_28",
        (*(f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)), "manylinux2014_x86_64", "linux_x86_64"),
    ),
    "windows-amd64": Platform("x86_64-pc-windows-msvc", ("win_amd64",)),
    "macos-arm64": Platform("aarch64-apple-darwin", (f"macosx_{MACOS.replace('.', '_')}_arm64",)),
}


def name_of(platform: str, pythons: Sequence[str]) -> str:
    """The name of an archive without its ending: labkit-camp-0.1.0-linux-x86_64-py311-py312."""
    return f"labkit-camp-{__version__}-{platform}-" + "-".join(f"py{python.replace('.', '')}" for python in pythons)


def build_bundle(
    root: Path,
    platform: str,
    pythons: Sequence[str],
    output: Path,
    *,
    find_links: Sequence[str] = (),
    site: Path | None = None,
    say: Callable[[str], None] = print,
    run: Run | None = None,
) -> Path:
    """Write the archive for one platform into `output`.

    Args:
        root: a clone of the course.
        platform: a key of PLATFORMS.
        pythons: versions of Python that the wheels are for, as "3.12".
        output: folder of the archive; the unpacked bundle stays beside it until the archive is whole.
        find_links: folders or pages with wheels that pip and uv look at first.
        site: folder of the built web pages, or None for a bundle without them.
        say: told what is being done.
        run: runs a command and returns what it printed (tests give their own).

    Returns:
        The archive; its checksum lies beside it as NAME.zip.sha256.

    Raises:
        BundleError: no clone here, uv is missing, or a package has no wheel for the platform.
    """
    run = run or _run
    constraints = root / "constraints.txt"
    if not constraints.is_file() or not (root / "pyproject.toml").is_file():
        raise BundleError(f"{root} is no clone of the course: the bundle is made from one")
    files = repository_files(root, run)
    folder = output / name_of(platform, pythons)
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    say(f"{folder.name}: the wheel of labkit")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(root)])
    for python in pythons:
        pins = resolve(root, platform, python, find_links=find_links, run=run)
        say(f"{folder.name}: {len(pins)} packages for Python {python}")
        download(pins, platform, python, wheels, find_links=find_links, run=run)
        dry_run(wheels, platform, python, constraints, run=run)
    say(f"{folder.name}: course, scripts, checksums")
    for name in files:
        target = folder / "course" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    if site is not None:
        shutil.copytree(site, folder / "site")
    for path in KIT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / path.name)
    shutil.copy(constraints, folder / "constraints.txt")
    write_atomically(folder / "pythons.txt", "\n".join(pythons) + "\n")
    write_atomically(folder / SUMS, checksums(folder))
    archive = pack(folder, output / f"{folder.name}.zip")
    write_atomically(archive.with_name(f"{archive.name}.sha256"), f"{sha256(archive)}  {archive.name}\n")
    shutil.rmtree(folder)
    return archive


# ---- packages --------------------------------------------------------------------------------------------------------


def resolve(root: Path, platform: str, python: str, *, find_links: Sequence[str] = (), run: Run | None = None) -> dict:
    """{"name==version": page of its index or ""}: what the course and its build backend need on that platform.

    Raises:
        BundleError: the pins of constraints.txt cannot be met there, or uv is missing.
    """
    run = run or _run
    backend = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    asked = root / "build" / "camp-backend.in"
    write_atomically(asked, "\n".join([*backend, EDITABLE]) + "\n")
    links = [part for link in find_links for part in ("--find-links", link)]
    cpu = [] if find_links else ["--torch-backend", "cpu"]
    try:
        printed = run(
            [
                *(*uv(), "pip", "compile", "--quiet", "--no-header", "--annotation-style", "line"),
                *("--emit-index-annotation", "--only-binary", ":all:", "--extra", "course", *links, *cpu),
                *("--python-platform", PLATFORMS[platform].uv, "--python-version", python),
                *("--constraint", str(root / "constraints.txt"), str(root / "pyproject.toml"), str(asked)),
            ]
        )
    finally:
        asked.unlink(missing_ok=True)
    return read_pins(printed)


def read_pins(printed: str) -> dict[str, str]:
    """The pins in what `uv pip compile` printed: "name==version" -> its index, "" where uv names none."""
    pins: dict[str, str] = {}
    last = ""
    for line in printed.splitlines():
        if found := re.match(r"([A-Za-z0-9._-]+==[^\s;]+)", line):
            pins[last := found[1]] = ""
        if last and (index := re.search(r"# from (https?://\S+)", line)):
            pins[last] = index[1]
    if not pins:
        raise BundleError("uv resolved no package; run the same command with --verbose to see what it says")
    return pins


def download(
    pins: dict[str, str],
    platform: str,
    python: str,
    wheels: Path,
    *,
    find_links: Sequence[str] = (),
    run: Run | None = None,
) -> None:
    """Fetch the wheels of `pins` into `wheels`; BundleError where one has none for the platform."""
    run = run or _run
    digits = python.replace(".", "")
    # A build of torch (+cpu) lies on an index of its own; everything else is where pip looks anyway.
    indexes = sorted({index for pin, index in pins.items() if "+" in pin and index and not find_links})
    listed = wheels / "pins.txt"
    write_atomically(listed, "\n".join(pins) + "\n")
    try:
        run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"),
                *("--python-version", python, "--implementation", "cp"),
                *(part for abi in (f"cp{digits}", "abi3", "none") for part in ("--abi", abi)),
                *(part for tag in PLATFORMS[platform].tags for part in ("--platform", tag)),
                *(part for link in find_links for part in ("--find-links", link)),
                *(part for index in indexes for part in ("--extra-index-url", index)),
                *("--dest", str(wheels), "--requirement", str(listed)),
            ]
        )
    finally:
        listed.unlink()


def dry_run(wheels: Path, platform: str, python: str, constraints: Path, *, run: Run | None = None) -> None:
    """Resolve the course and its build backend from `wheels` alone; BundleError names what is missing."""
    run = run or _run
    run(
        [
            *(*uv(), "pip", "install", "--quiet", "--dry-run", "--no-index", "--find-links", str(wheels)),
            *("--target", str(wheels / "nothing"), "--only-binary", ":all:", "--constraint", str(constraints)),
            *("--python-platform", PLATFORMS[platform].uv, "--python-version", python),
            *(f"diffusion-labkit[course]=={__version__}", "hatchling", EDITABLE),
        ]
    )


def uv() -> list[str]:
    """The command of uv: beside this Python, or on the path. BundleError says how to get it."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    if program := shutil.which("uv"):
        return [program]
    raise BundleError('uv is missing: it resolves for other platforms. pip install uv, or pip install -e ".[camp]"')


def _run(command: Sequence[str]) -> str:
    environment = {
        **os.environ,
        "MACOSX_DEPLOYMENT_TARGET": MACOS,
    }  # else uv resolves for macOS 13, and torch has no wheels
    done = subprocess.run(list(command), capture_output=True, text=True, env=environment)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise BundleError(f"{' '.join(command[:6])} ... failed:\n{said}")
    return done.stdout


# ---- files -----------------------------------------------------------------------------------------------------------


def repository_files(root: Path, run: Run) -> list[str]:
    """The files of the repository, as git lists them; names below `root`."""
    if not shutil.which("git"):
        raise BundleError("git is missing: it lists the files of the course")
    return [name for name in run(["git", "-C", str(root), "ls-files", "-z"]).split("\0") if (root / name).is_file()]


def checksums(folder: Path) -> str:
    """Lines for `sha256sum --check`, sorted by name, of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return "".join(f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack(folder: Path, archive: Path) -> Path:
    """A zip of `folder` with the folder's name at its top; what is packed already is stored as it is."""

    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as out:
            for path in _sorted_files(folder):
                name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
                stored = path.suffix in (".whl", ".png", ".safetensors", ".parquet")
                out.write(path, name, zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED)

    return write_atomically(archive, write)


def _sorted_files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def this_platform() -> str:
    """The key of PLATFORMS that this machine is, "" for another machine."""
    import platform

    machine = platform.machine().lower()
    kind = {"linux": "linux", "win32": "windows", "darwin": "macos"}.get(sys.platform, "")
    return next((one for one in PLATFORMS if kind and one.startswith(kind) and one.endswith(machine)), "")


def free_bytes(folder: Path) -> int:
    """Bytes free where `folder` lies or will lie."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(os.fspath(folder)).free
