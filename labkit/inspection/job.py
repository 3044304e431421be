"""What `labkit inspect` keeps between draw and signature: one JSON file, from which the gate is made again."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.inspection.aql import Plan
from labkit.inspection.calibration import certificate_of
from labkit.inspection.digest import digest
from labkit.inspection.gate import Gate, Screening
from labkit.inspection.judge import Judge
from labkit.inspection.lot import InspectionError, Lot, read_lot
from labkit.inspection.record import sign_off
from labkit.inspection.rules import Rule, near_duplicate_rule, provenance_rule, size_rule
from labkit.inspection.sealed import read_sealed, write_sealed
from labkit.inspection.threshold import Certificate, PreferenceFilter
from labkit.inspection.verdicts import DEFECTS, Defect, Verdict, band_decisions, make_defects

JOB = "job.json"
CURE = "draw into another --out"


@dataclass(frozen=True)
class KeptScores:
    """A judge that knows the scores of this lot and nothing else."""

    name: str
    scores: Mapping[str, float]  # SHA-256 of a picture -> score

    def __call__(self, items: Sequence[Any]) -> list[float]:
        return [float(self.scores[item.sha256]) for item in items]


@dataclass(frozen=True)
class Job:
    """A lot, closed and drawn from.

    Attributes:
        lot: its hash. plan, seed: of the sample. rules: see `make_rules`. process: hash of what made the pictures.
        certificate, abstain: of the preference filter; None for none. judge, scores: who scored the lot, and how.
        people: what was decided on the pictures of the abstain band. band: the verdicts behind it, as plain values.
        pictures: name -> SHA-256 of the lot's pictures. parts: hashes for the record (model, adapter, prompts).
        texts: name -> what was ordered. defects: the written list, as plain values.
    """

    lot: str
    plan: Plan
    seed: str
    rules: Mapping[str, Any]
    process: str
    certificate: Certificate | None = None
    abstain: float = 0.0
    judge: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    people: Mapping[str, bool] = field(default_factory=dict)
    band: Sequence[Mapping[str, Any]] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    defects: Sequence[Mapping[str, str]] = tuple(asdict(defect) for defect in DEFECTS)

    @property
    def name(self) -> str:
        """Of this draw, for files and verdicts: the beginning of the job's hash."""
        return digest(plain(self))[:16]

    def gate(self, *, policy: str = "any", repeats: str = "refuse") -> Gate:
        """The gate of this job."""
        keep = None if self.certificate is None else PreferenceFilter(self.certificate, self.abstain)
        more = {"defects": make_defects(self.defects), "policy": policy, "repeats": repeats}
        return Gate(self.process, self.plan, make_rules(self.rules), keep, **more)

    def screen(self, lot: Lot) -> Screening:
        """Both filters, with the scores and decisions that were kept.

        Raises:
            InspectionError: the folder no longer holds the lot that was drawn from; names what is different.
        """
        if lot.sha256 != self.lot:
            raise InspectionError(
                f"the pictures in {lot.name} are not those of the draw ({self._changes(lot)}): put them back, or draw "
                "from the changed lot"
            )
        judge = None if self.certificate is None else KeptScores(self.judge, self.scores)
        return self.gate().screen(lot, judge, people=self.people)

    def _changes(self, lot: Lot) -> str:
        """What is missing, changed or new in a lot, the first five by name."""
        now = {item.name: item.sha256 for item in lot.items}
        found = [f"{name} is missing" for name in self.pictures if name not in now and name not in lot.unreadable]
        found += [f"{name} was changed" for name, hashed in now.items() if self.pictures.get(name, hashed) != hashed]
        found += [f"{name} is new" for name in now if name not in self.pictures]
        found += [f"{name} can no longer be read" for name in lot.unreadable if name in self.pictures]
        more = f", and {len(found) - 5} more" if len(found) > 5 else ""
        return (", ".join(found[:5]) + more) or "files that cannot be read came or went"

    def sign(
        self,
        lot: Lot,
        verdicts: Sequence[Verdict],
        *,
        maker: str,
        checker: str,
        policy: str = "any",
        repeats: str = "refuse",
        previous: str = "",
    ) -> dict:
        """The record, signed now; see `sign_off`."""
        return sign_off(
            self.gate(policy=policy, repeats=repeats),
            self.screen(lot),
            seed=self.seed,
            verdicts=verdicts,
            maker=maker,
            checker=checker,
            signed=datetime.now().astimezone(),
            parts=self.parts,
            band=[Verdict(**told) for told in self.band],
            previous=previous,
        )


def open_job(
    folder: Path | str,
    rules: Mapping[str, Any],
    process: str,
    *,
    certificate: Certificate | None = None,
    judge: Judge | None = None,
    abstain: float = 0.0,
    band: Sequence[Verdict] = (),
    parts: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    defects: Sequence[Defect] = DEFECTS,
) -> tuple[Job, Lot, Screening]:
    """Read a lot and put it through the filters; the plan is still to be chosen (see `draw`).

    Args:
        band: what people said about pictures of the abstain band. parts, texts, defects: see `Job`.

    Raises:
        InspectionError: no lot, a text for a picture that is not there, or what `Gate.screen` raises.
    """
    lot, texts = read_lot(folder, texts=texts), dict(texts or {})
    known = {*(item.name for item in lot.items), *lot.unreadable}
    if strange := [name for name in texts if name not in known]:
        raise InspectionError(f"{len(strange)} prompts belong to no picture of {lot.name}: first {strange[0]!r}")
    job = Job(
        lot=lot.sha256,
        plan=Plan(1, 0),
        seed="",
        rules=rules,
        process=process,
        certificate=certificate,
        abstain=abstain,
        pictures={item.name: item.sha256 for item in lot.items},
        parts=dict(parts or {}),
        texts=texts,
        defects=tuple(asdict(defect) for defect in defects),
    )
    if certificate is not None:
        screening = job.gate().screen(lot, judge)
        by_hash = {item.sha256: screening.scores[item.name] for item in lot.items if item.name in screening.scores}
        people = band_decisions(screening.abstained, band, defects=defects)
        said = tuple(asdict(verdict) for verdict in band)
        job = replace(job, judge=judge.name, scores=by_hash, people=people, band=said)
    return job, lot, job.screen(lot)


def draw(job: Job, screening: Screening, plan: Plan, seed: str | None) -> tuple[Job, list[str]]:
    """The job with its plan and seed (a random one for None), and the sample."""
    job = replace(job, plan=plan, seed=secrets.token_hex(8) if seed is None else seed)
    return job, job.gate().sample(screening, job.seed)


def make_rules(told: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules that a job describes: {"size": [w, h], "duplicates": levels, "provenance": true}, None for none."""
    rules = []
    if told["size"]:
        rules.append(size_rule(*told["size"]))
    if told["duplicates"] is not None:
        if not 0 <= told["duplicates"] <= 255:
            raise InspectionError(f"--duplicates {told['duplicates']:g}: a difference in levels, 0 to 255")
        rules.append(near_duplicate_rule(told["duplicates"]))
    if told["provenance"]:
        rules.append(provenance_rule())
    return tuple(rules)


def plain(job: Job) -> dict[str, Any]:
    """The job as JSON keeps it."""
    return json.loads(json.dumps(asdict(job), ensure_ascii=False))


def write_job(folder: Path | str, job: Job) -> Path:
    """Keep the job in a folder, with a seal."""
    return write_sealed(Path(folder) / JOB, plain(job))


def read_job(folder: Path | str) -> Job:
    """The job of a folder.

    Raises:
        InspectionError: none there, or one that was written or edited by hand.
    """
    path = Path(folder) / JOB
    if not path.is_file():
        raise InspectionError(f"there is no {path}: run labkit inspect draw first")
    told = read_sealed(path, CURE)
    try:
        told["plan"] = Plan(**told["plan"])
        if told["certificate"] is not None:
            told["certificate"] = certificate_of(told["certificate"])
        job = Job(**told)
        make_rules(job.rules), make_defects(job.defects)
    except (ValueError, KeyError, TypeError) as error:
        raise InspectionError(f"{path} is no job ({error}): draw into another --out") from None
    return job
