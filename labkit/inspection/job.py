"""What `labkit inspect` keeps between draw and signature: one JSON file, from which the gate is made again."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.files import write_atomically
from labkit.inspection.aql import Plan
from labkit.inspection.calibration import certificate_of
from labkit.inspection.gate import Gate, Screening
from labkit.inspection.judge import Judge
from labkit.inspection.lot import InspectionError, Lot, read_lot
from labkit.inspection.record import sign_off
from labkit.inspection.rules import Rule, near_duplicate_rule, provenance_rule, size_rule
from labkit.inspection.threshold import Certificate, PreferenceFilter
from labkit.inspection.verdicts import Verdict, band_decisions

JOB = "job.json"


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
        people: what was decided on the pictures of the abstain band.
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

    def gate(self, *, policy: str = "any", repeats: str = "refuse") -> Gate:
        """The gate of this job."""
        keep = None if self.certificate is None else PreferenceFilter(self.certificate, self.abstain)
        return Gate(self.process, self.plan, make_rules(self.rules), keep, policy=policy, repeats=repeats)

    def screen(self, lot: Lot) -> Screening:
        """Both filters, with the scores and decisions that were kept.

        Raises:
            InspectionError: the folder no longer holds the lot that was drawn from.
        """
        if lot.sha256 != self.lot:
            raise InspectionError(f"the pictures in {lot.name} are not those of the draw: draw again")
        judge = None if self.certificate is None else KeptScores(self.judge, self.scores)
        return self.gate().screen(lot, judge, people=self.people)

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
) -> tuple[Job, Lot, Screening]:
    """Read a lot and put it through the filters; the plan is still to be chosen (see `draw`).

    Args:
        band: what people said about pictures of the abstain band.
    """
    lot = read_lot(folder)
    job = Job(lot.sha256, Plan(1, 0), "", rules, process, certificate, abstain)
    if certificate is not None:
        screening = job.gate().screen(lot, judge)
        by_hash = {item.sha256: screening.scores[item.name] for item in lot.items if item.name in screening.scores}
        people = band_decisions(screening.abstained, band)
        job = replace(job, judge=judge.name, scores=by_hash, people=people)
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
        rules.append(near_duplicate_rule(told["duplicates"]))
    if told["provenance"]:
        rules.append(provenance_rule())
    return tuple(rules)


def write_job(folder: Path | str, job: Job) -> Path:
    """Keep the job in a folder."""
    return write_atomically(Path(folder) / JOB, json.dumps(asdict(job), ensure_ascii=False, indent=2) + "\n")


def read_job(folder: Path | str) -> Job:
    """The job of a folder.

    Raises:
        InspectionError: none there, or one that was written by hand.
    """
    path = Path(folder) / JOB
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        told["plan"] = Plan(**told["plan"])
        if told.get("certificate") is not None:
            told["certificate"] = certificate_of(told["certificate"])
        job = Job(**told)
        make_rules(job.rules)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InspectionError(f"{path} is no job ({error}): run labkit inspect draw first") from None
    return job
