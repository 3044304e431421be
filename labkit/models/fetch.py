"""Downloading published models into LABKIT_MODELS: pinned revisions, checked files, resumed where a run stopped.

    <folder>/stable-diffusion-v1-5/unet/config.json ...       as `load_pipeline` looks for it
    <folder>/stable-diffusion-v1-5/labkit-source.json         repository, revision, size and digest of every file

A file is written to `.part` beside it, checked (SHA-256 as the hub states it, for small files the hash of git) and
renamed. The next run goes on from the `.part`. Nothing that is downloaded is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path

from labkit.errors import LabkitError
from labkit.files import write_atomically
from labkit.models.published import PUBLISHED, Published, Source

HUB = "https://huggingface.co"
RECORD = "labkit-source.json"
CHUNK, TRIES, WAIT = 1 << 20, 5, 2.0  # bytes per read; attempts without progress, seconds before the next
SPARE = 1 << 30  # bytes that stay free on the disk
ABSENT = (401, 403, 404, 410, 451)  # gated, or gone

Report = Callable[[str, dict], None]  # (what happened, its numbers and names): see `fetch`


class FetchError(LabkitError, OSError):
    """A model cannot be had; the message says why and what to do."""


class _Absent(LabkitError):
    """The hub has no such repository, or none for us: the HTTP status."""


@dataclass(frozen=True)
class Wanted:
    """A file of a repository. sha256 is None for small ones; git: their hash in git, as the hub states it, or None."""

    name: str
    size: int
    sha256: str | None
    git: str | None


def fetch(
    models: Sequence[Published], folder: Path | str, *, hub: str | None = None, report: Report = lambda *_: None
) -> dict[str, Source]:
    """Download what is missing of some models. Files that are there and whole are not asked for again.

    Args:
        folder: LABKIT_MODELS, or where it shall be.
        hub: address of the hub, by default HF_ENDPOINT or huggingface.co. A token in HF_TOKEN is sent to it alone.
        report: called with "model" (folder, repository, gigabytes missing), "substitute" (folder, repository, instead,
            status), "file" (name, gigabytes) and "done" (folder, files).

    Returns:
        Folder of each model -> the source that was taken.

    Raises:
        FetchError: no source has the model, the disk is too small, the network fails, or a file is not what the hub
            says it is.
    """
    hub = (hub or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    folder, taken = Path(folder).expanduser(), {}
    for model in models:
        target = folder / model.folder
        for i, source in enumerate(model.sources):
            try:
                files = listing(hub, source, model.patterns)
                missing = [file for file in files if not is_whole(target, file, source)]
                gigabytes = sum(file.size for file in missing) / 1e9
                report("model", {"folder": model.folder, "repository": source.repository, "gigabytes": gigabytes})
                check_disk(folder, target, missing)
                for file in missing:
                    report("file", {"name": file.name, "gigabytes": file.size / 1e9})
                    download(hub, source, file, target)
            except _Absent as error:
                if i + 1 == len(model.sources):
                    tried = ", ".join(one.repository for one in model.sources)
                    raise FetchError(
                        f"{model.folder} is gated or gone (HTTP {error}; tried {tried}): accept its licence on the hub "
                        f"and set HF_TOKEN, or put a copy into {target}"
                    ) from None
                instead = model.sources[i + 1].repository
                told = {"folder": model.folder, "repository": source.repository, "instead": instead}
                report("substitute", told | {"status": str(error)})
                continue
            write_record(target, source, files)
            report("done", {"folder": str(target), "files": len(files)})
            taken[model.folder] = source
            break
    return taken


def models_of(tier: str, names: Sequence[str] = ()) -> list[Published]:
    """What a tier needs, and further models by their folder's name. Raises FetchError for names that are unknown."""
    known = {model.folder: model for model in PUBLISHED}
    if unknown := sorted(set(names) - set(known)):
        raise FetchError(f"no model {unknown[0]!r}: there are {', '.join(known)}")
    return [model for model in PUBLISHED if tier in model.tiers or model.folder in names]


def listing(hub: str, source: Source, patterns: Sequence[str]) -> list[Wanted]:
    """The files of a source that are needed. Raises FetchError for an answer that is not of the pinned revision."""
    address = f"{hub}/api/models/{source.repository}/revision/{source.revision}?blobs=true"
    with _opened(address) as answer:
        try:
            known = json.loads(answer.read())
            siblings, revision = known["siblings"], known["sha"]
        except (ValueError, KeyError, TypeError):
            raise FetchError(f"{address} gives no list of files: is this address a hub?") from None
    if revision != source.revision:
        raise FetchError(f"{source.repository} answers with revision {revision}, expected {source.revision}")
    files = []
    for one in siblings:
        name = one["rfilename"]
        if any(fnmatch(name, pattern) for pattern in patterns):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise FetchError(f"{source.repository} names a file {name!r} outside its folder: not downloaded")
            large = one.get("lfs") or {}
            files.append(Wanted(name, int(large.get("size") or one["size"]), large.get("sha256"), one.get("blobId")))
    if not any(file.name.endswith(".safetensors") for file in files):
        raise FetchError(f"{source.repository} has none of the safetensors files that labkit loads: give another")
    return files


def is_whole(target: Path, file: Wanted, source: Source) -> bool:
    """Whether a file is there already: as recorded for this source, or by its digest (hashing gigabytes once)."""
    path = target / file.name
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    recorded = read_record(target)
    if recorded.get("revision") == source.revision and file.name in recorded.get("files", {}):
        return recorded["files"][file.name].get("sha256") == file.sha256
    return _matches(path, file)


def read_record(target: Path) -> dict:
    """What `write_record` wrote; empty if there is nothing readable."""
    try:
        return json.loads((target / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def write_record(target: Path, source: Source, files: Sequence[Wanted]) -> None:
    """Remember beside the files where they came from."""
    entries = {file.name: {"size": file.size, "sha256": file.sha256} for file in files}
    record = {"repository": source.repository, "revision": source.revision, "files": entries}
    write_atomically(target / RECORD, json.dumps(record, indent=1) + "\n")


def check_disk(folder: Path, target: Path, missing: Sequence[Wanted]) -> None:
    """Raise FetchError unless the disk takes what is missing (less what its `.part` files have) and a gigabyte more."""
    parts = [_part(target / file.name) for file in missing]
    needed = sum(file.size for file in missing) - sum(part.stat().st_size for part in parts if part.exists())
    place = folder
    while not place.exists():
        place = place.absolute().parent
    free = shutil.disk_usage(place).free
    if needed > 0 and free < needed + SPARE:
        raise FetchError(
            f"{place} has {free / 1e9:.1f} GB free, {(needed + SPARE) / 1e9:.1f} GB are needed: make room, or give "
            "another folder"
        )


def download(hub: str, source: Source, file: Wanted, target: Path) -> None:
    """One file, from where its `.part` ends. Raises FetchError after TRIES attempts that brought nothing."""
    path = target / file.name
    part = _part(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    address = f"{hub}/{source.repository}/resolve/{source.revision}/{urllib.parse.quote(file.name)}"
    failures, again = 0, True
    while True:
        have = part.stat().st_size if part.exists() else 0
        if have > file.size:
            part.unlink()
            have = 0
        try:
            if have < file.size or not part.exists():
                _go_on(address, part, have)
            if part.stat().st_size == file.size:
                if _matches(part, file):
                    os.replace(part, path)
                    return
                part.unlink()
                if not again:
                    raise FetchError(
                        f"{file.name} of {source.repository} is not what the hub says it is (SHA-256): it was deleted; "
                        "try again later, or from another network"
                    )
                again = False  # it may have been damaged on the way: once more from the beginning
                continue
            problem: object = "the connection ended early"
        except (urllib.error.URLError, HTTPException, ConnectionError, TimeoutError) as error:
            problem = error
        failures = 0 if (part.stat().st_size if part.exists() else 0) > have else failures + 1
        if failures >= TRIES:
            raise FetchError(f"{address} could not be fetched ({problem}): run the command again, it goes on from here")
        time.sleep(WAIT)


def _go_on(address: str, part: Path, have: int) -> None:
    """Append to `part` what the server has from byte `have` on; from 0 where it does not take ranges."""
    with _opened(address, {"Range": f"bytes={have}-"} if have else {}) as answer:
        with part.open("ab" if answer.status == 206 and have else "wb") as out:
            while block := answer.read(CHUNK):
                out.write(block)


def _opened(address: str, headers: dict[str, str] | None = None):
    """The answer to a GET. The token stays with the hub: a redirect to another host goes without it."""
    request = urllib.request.Request(address, headers={"User-Agent": "labkit", **(headers or {})})
    if token := os.environ.get("HF_TOKEN"):
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    for attempt in range(TRIES):
        try:
            return urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code in ABSENT:
                raise _Absent(error.code) from None
            if error.code < 500 and error.code != 429 or attempt + 1 == TRIES:
                raise FetchError(f"{address} answers HTTP {error.code}: try again later") from None
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if attempt + 1 == TRIES:
                reason = getattr(error, "reason", error)
                raise FetchError(f"{address} cannot be reached ({reason}): check the network or HF_ENDPOINT") from None
        time.sleep(WAIT)
    raise AssertionError("unreachable")


def _matches(path: Path, file: Wanted) -> bool:
    """Whether a file has the digest that the hub states: SHA-256, or git's SHA-1 of small files."""
    if file.sha256:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
    if file.git:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.git
    return path.stat().st_size == file.size


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")
