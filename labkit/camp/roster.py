"""Who may log in to a room's hub: roster.json, with salted hashes; the passphrases themselves stand on slips, once.

    roster.json   {"version": 1, "people": {NAME: {"salt": ..., "hash": ..., "teacher": false}}}, readable by root alone
    slips.csv     name,passphrase of those who are new, to print, to hand out, and to delete

Hashes are scrypt (RFC 7914) from the standard library. Passphrases are drawn by the machine, since people in a hurry
choose `1234`: eight syllables of a consonant and a vowel, 70^8 or 49 bits, easy to type on every keyboard.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.errors import LabkitError

VERSION = 1
NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")  # what useradd takes everywhere
COST = {"n": 2**14, "r": 8, "p": 1}  # 16 MiB and about 50 ms for each attempt
MOST = 1024  # characters of a passphrase that are looked at


class RosterError(LabkitError, ValueError):
    """A roster that cannot be used, or a name that cannot be an account: one line with the cure."""


@dataclass(frozen=True)
class Person:
    """One entry: salt and scrypt hash as hexadecimal digits, and whether they administer the hub."""

    salt: str
    hash: str
    teacher: bool = False


def checked_name(name: str) -> str:
    """`name`, if it can be an account; else a RosterError."""
    if not NAME.fullmatch(name):
        raise RosterError(f"{name!r} cannot be an account: a small letter first, then small letters, digits, - or _")
    return name


def new_passphrase() -> str:
    """Eight random syllables in pairs: "kifo-nase-tuba-remo"."""
    syllables = [secrets.choice("bdfghkmnprstwz") + secrets.choice("aeiou") for _ in range(8)]
    return "-".join("".join(syllables[at : at + 2]) for at in range(0, 8, 2))


def hashed(passphrase: str, salt: bytes) -> str:
    """scrypt of a passphrase, as hexadecimal digits. Spaces around it and capitals do not count."""
    typed = passphrase[:MOST].strip().lower().encode()
    return hashlib.scrypt(typed, salt=salt, maxmem=64 * 2**20, dklen=32, **COST).hex()


def person(passphrase: str, *, teacher: bool = False) -> Person:
    """The entry for a passphrase, with a salt of its own."""
    salt = secrets.token_bytes(16)
    return Person(salt.hex(), hashed(passphrase, salt), teacher)


_NOBODY = Person("00" * 16, "00" * 32)


def matches(known: Person | None, passphrase: str) -> bool:
    """Whether the passphrase is the one of this entry; an unknown name takes as long as a known one."""
    entry = known or _NOBODY
    same = hmac.compare_digest(hashed(passphrase, bytes.fromhex(entry.salt)), entry.hash)
    return same and known is not None


def read_roster(path: Path) -> dict[str, Person]:
    """Name -> entry; {} where there is no file. RosterError for a file that is none of ours."""
    try:
        data = json.loads(path.read_text("utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"version {data['version']}")
        return {checked_name(name): Person(**entry) for name, entry in data["people"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RosterError(f"{path} is no roster ({error}); move it away, then run labkit camp learners") from None


def write_roster(path: Path, people: dict[str, Person]) -> None:
    """Write the roster, readable by its owner alone."""
    content = {"version": VERSION, "people": {name: asdict(people[name]) for name in sorted(people)}}
    write_private(path, json.dumps(content, indent=1) + "\n")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, at no moment anybody else; missing folders are made as private."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def enrol(path: Path, names: Iterable[str], *, teachers: Iterable[str] = (), reset: Iterable[str] = ()) -> dict:
    """Add people to the roster; those who are there already keep their passphrase, but for those in `reset`.

    Returns:
        Name -> passphrase of those who got a new one; it is written nowhere else.

    Raises:
        RosterError: a name that cannot be an account, or one in `reset` that is not on the roster.
    """
    people, teachers = read_roster(path), list(teachers)
    unknown = [name for name in reset if name not in people]
    if unknown:
        raise RosterError(f"not on the roster: {', '.join(unknown)}")
    given = {}
    for name in [*names, *teachers, *reset]:
        known = people.get(checked_name(name))
        if known is None or (name in reset and name not in given):
            given[name] = new_passphrase()
            people[name] = person(given[name], teacher=name in teachers or bool(known and known.teacher))
    write_roster(path, people)
    return given
