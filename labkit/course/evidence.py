"""What the recorded studies say about the claims: the verdict of each, and whether a live run agrees with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.course.claim_file import Claim, declared
from labkit.course.i18n import t
from labkit.course.render import pick

if TYPE_CHECKING:
    from labkit.studies import Estimate
    from labkit.studies.store import Record

TOO_FAR = "too_far"
BUDGET = 4.0  # CPU hours of one study; only where they are spent may a claim stay undecided


@dataclass(frozen=True)
class Evidence:
    """The recorded study on one claim: the estimate, the verdict, and where it is undecided, what it would take.

    Attributes:
        seeds_needed: about how many in all; None where more prompts are needed instead, and for decided claims.
        prompts_needed: about how many in all, where no number of seeds decides.
        hours_needed: about how many CPU hours the seeds still missing take.
        cpu_hours: what the whole study has taken.
    """

    estimate: Estimate
    verdict: str
    seeds_needed: int | None
    cpu_hours: float
    hours_needed: float = 0.0
    prompts_needed: int | None = None

    @property
    def beyond_budget(self) -> bool:
        """Whether the study's budget is spent, so that the claim may stay undecided. That a verdict would take more
        than is left does not count: what is left narrows the interval."""
        return self.cpu_hours >= BUDGET

    def text(self) -> str:
        """'0.114 [0.081, 0.147]'."""
        return f"{self.estimate.value:.4g} [{self.estimate.low:.4g}, {self.estimate.high:.4g}]"


def evidence(claim: Claim, folder: Path | None = None) -> Evidence | None:
    """The verdict of the recorded study, or None where no study decides this claim or its arms are not recorded yet.

    A claim whose setting is declared as too far from the paper's keeps that verdict whatever the number.

    Args:
        folder: of the records (default: the shipped ones).

    Raises:
        StudyError: the record cannot be read, or holds a number that is none.
    """
    from labkit.studies import NotRecorded, Recorded, StudyError, decide, estimate, load_study, studies

    if claim.lesson not in studies():
        return None
    contrast = load_study(claim.lesson).estimates.get(claim.id.split(".", 1)[1])
    record = _record(claim.lesson, folder)
    if contrast is None or not record.facts:
        return None
    try:
        recorded = Recorded(record)
        found = estimate(contrast(recorded))
    except NotRecorded:  # its arms are not recorded yet
        return None
    except StudyError as error:
        raise StudyError(f"{claim.id}: {error}") from None
    decision = decide(found, low=claim.region.lo, high=claim.region.hi, smallest=claim.smallest)
    verdict = TOO_FAR if claim.too_far else decision.verdict
    missing = max(0, (decision.seeds_needed or 0) - found.seeds)
    hours = missing * record.seconds_per_seed(recorded.asked) / 3600
    prompts = decision.prompts_needed and int(float(f"{decision.prompts_needed:.2g}"))  # "about": two digits
    return Evidence(found, verdict, decision.seeds_needed, record.seconds() / 3600, hours, prompts)


def _record(lesson: str, folder: Path | None = None) -> Record:
    """What is recorded, read once as long as its files stay the same: a lesson asks for each of its claims."""
    from labkit.studies import folder_of_studies

    folder = folder or folder_of_studies()
    files = [folder / f"l{lesson}{end}" for end in (".parquet", ".json")]
    stats = [file.stat() for file in files if file.exists()]
    return _read(lesson, folder, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=16)
def _read(lesson: str, folder: Path, written: tuple[tuple[int, int], ...]) -> Record:
    from labkit.studies import load_study
    from labkit.studies.store import read_planned

    return read_planned(load_study(lesson), folder)


def evidence_lines(claim: Claim, known: Evidence) -> list[str]:
    """What the study found, for a learner, in the current language."""
    found = known.estimate
    numbers = {"value": known.text(), "seeds": found.seeds, "prompts": found.prompts, "hours": f"{known.cpu_hours:.1f}"}
    lines = [t("claim.recorded" if found.prompts > 1 else "claim.recorded_seeds", **numbers)]
    if claim.smallest:
        key = "claim.smallest_seen" if claim.seen else "claim.smallest"
        lines.append(t(key, smallest=f"{claim.smallest:g}", seen=claim.seen))
    if claim.too_far:
        lines.append(t("claim.reason", reason=pick(claim.too_far)))
    elif known.verdict == "undecided":
        needed = {"seeds": known.seeds_needed, "hours": f"{known.hours_needed:.1f}", "budget": f"{BUDGET:g}"}
        if known.seeds_needed is None:
            count = known.prompts_needed and f"{known.prompts_needed:,}"
            lines.append(t("claim.needed_prompts", prompts=count) if count else t("claim.on_border"))
        else:
            lines.append(t("claim.needed_beyond" if known.beyond_budget else "claim.needed", **needed))
    if claim.explored:
        lines.append(t("claim.explored"))
    return lines


def agreement_line(known: Evidence, value: float | None, interval: Sequence[float] | None) -> str:
    """Whether the learner's number is one that the recorded study would expect; "" for no number."""
    from labkit.studies import fits

    if value is None or not math.isfinite(value):
        return ""
    error = 0.0 if interval is None else (interval[1] - interval[0]) / (2 * 1.96)
    return t("claim.fits" if fits(value, error, known.estimate) else "claim.does_not_fit")


def changed_verdicts(lesson: str, folder: Path | None = None) -> list[str]:
    """Claims whose recorded verdict is not the one they declare (`verdict:` in claims.yaml), one line each.

    A declared verdict without evidence is a difference too, and so is evidence that no claim declares: a verdict left
    out, or an estimate of the study without a claim.
    """
    from labkit.studies import load_study

    claims = declared(lesson)
    lines = [
        f"l{lesson}.{name}: the study estimates it, and claims.yaml declares no such claim"
        for name in sorted(set(load_study(lesson).estimates) - {id.split(".", 1)[1] for id in claims})
    ]
    for claim in claims.values():
        known = evidence(claim, folder)
        if claim.verdict is None:
            if known is not None:
                lines.append(f"{claim.id}: declares no verdict, the recorded study says {known.verdict}: declare it")
        elif known is None:
            lines.append(f"{claim.id}: declares {claim.verdict}, but no recorded study decides it")
        elif known.verdict != claim.verdict:
            lines.append(
                f"{claim.id}: declares {claim.verdict}, the recorded study says {known.verdict} ({known.text()})"
            )
    return lines


def undecided(lesson: str) -> tuple[list[str], list[str]]:
    """Claims that the recorded study leaves open, with what a verdict would take: those that the rest of its budget can
    decide, "order_matters (about 13 seeds, 1.2 CPU hours)", and those that it cannot, "tuned_shifts (about 3,000
    prompts)".
    Claims whose arms are not recorded yet are left out."""
    found = {claim.id: evidence(claim) for claim in declared(lesson).values()}
    within, beyond = [], []
    for name, known in found.items():
        if known is not None and known.verdict == "undecided":
            needed = f"about {known.seeds_needed} seeds, {known.hours_needed:.1f} CPU hours"
            if known.seeds_needed is None:
                needed = f"about {known.prompts_needed:,} prompts" if known.prompts_needed else "on the border"
            (beyond if known.beyond_budget else within).append(f"{name.split('.', 1)[1]} ({needed})")
    return within, beyond
