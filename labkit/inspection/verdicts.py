"""What people saw: a written list of defects, one verdict per picture and inspector, and what they add up to."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.files import write_atomically
from labkit.inspection.lot import InspectionError
from labkit.metrics import krippendorff_alpha

SEVERITIES = ("critical", "major", "minor")  # worst first
POLICIES = ("any", "majority")


@dataclass(frozen=True)
class Defect:
    """One entry of the written list: code, severity, and what it means in both languages."""

    code: str
    severity: str
    en: str
    ja: str

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"defect {self.code!r}: severity {self.severity!r} must be one of {', '.join(SEVERITIES)}")


DEFECTS = (
    Defect("forbidden", "critical", "shows something that must never ship", "出荷してはならないものが写っている"),
    Defect("mismatch", "major", "does not show what was ordered", "指定した内容と違う"),
    Defect("shape", "major", "a shape is broken or impossible", "形が崩れている、またはありえない形をしている"),
    Defect("color", "minor", "a colour is off", "色が指定とずれている"),
    Defect("texture", "minor", "blur, noise or speckles", "ぼけ、ノイズ、斑点がある"),
)


@dataclass(frozen=True)
class Verdict:
    """What one inspector said about one picture.

    Attributes:
        item: its name. inspector: a person's name. defect: code of the worst defect, "" if it is good.
        seconds: time spent on it.
    """

    item: str
    inspector: str
    defect: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Tally:
    """What the verdicts add up to.

    Attributes:
        n: pictures. critical, major, minor: pictures by their worst agreed defect. inspectors: names.
        defects: code -> how many verdicts named it. disagreements: pictures that one called good and another defective.
        agreement: Krippendorff's alpha of "defective or not"; None with one inspector. seconds: of all verdicts.
        policy: how several verdicts became one.
    """

    n: int
    critical: int
    major: int
    minor: int
    inspectors: tuple[str, ...]
    defects: dict[str, int]
    disagreements: tuple[str, ...]
    agreement: float | None
    seconds: float
    policy: str


def tally(
    sample: Sequence[str],
    verdicts: Sequence[Verdict],
    *,
    defects: Sequence[Defect] = DEFECTS,
    policy: str = "any",
) -> Tally:
    """Count the defective pictures of a sample.

    Args:
        sample: names that were drawn. verdicts: at least one for each of them.
        policy: "any": the worst that any inspector saw counts; "majority": the worst severity that at least half of a
            picture's inspectors saw or exceeded (so a tie counts as defective). Disagreements are listed either way.

    Raises:
        InspectionError: a picture without a verdict or outside the sample, a code that is not on the list, or two
            verdicts of one person on one picture.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy = {policy!r} must be one of {', '.join(POLICIES)}")
    severity = {defect.code: SEVERITIES.index(defect.severity) for defect in defects}
    drawn, by_item = set(sample), defaultdict(dict)  # item -> inspector -> verdict
    for verdict in verdicts:
        if verdict.item not in drawn:
            raise InspectionError(f"{verdict.inspector} judged {verdict.item!r}, which was not drawn: check the seed")
        if verdict.defect and verdict.defect not in severity:
            raise InspectionError(f"defect {verdict.defect!r} is not on the list: use one of {', '.join(severity)}")
        if not verdict.inspector.strip():
            raise InspectionError(f"the verdict on {verdict.item!r} has no inspector: a person's name is needed")
        if verdict.inspector in by_item[verdict.item]:
            raise InspectionError(f"{verdict.inspector} judged {verdict.item!r} twice: keep one of the verdicts")
        by_item[verdict.item][verdict.inspector] = verdict
    if missing := [name for name in sample if name not in by_item]:
        raise InspectionError(f"{len(missing)} of {len(sample)} drawn pictures have no verdict: first {missing[0]!r}")
    inspectors = sorted({verdict.inspector for verdict in verdicts})
    counts, disagreements = Counter(), []
    for name in sample:
        levels = sorted(severity.get(verdict.defect, len(SEVERITIES)) for verdict in by_item[name].values())
        if levels[0] < len(SEVERITIES) == levels[-1]:
            disagreements.append(name)
        counts[levels[0 if policy == "any" else (len(levels) - 1) // 2]] += 1
    agreement = None
    if len(inspectors) > 1:
        table = [
            [bool(by_item[name][who].defect) if who in by_item[name] else None for name in sample] for who in inspectors
        ]
        if any(len(by_item[name]) > 1 for name in sample):
            agreement = krippendorff_alpha(table)
    return Tally(
        n=len(sample),
        **{name: counts[level] for level, name in enumerate(SEVERITIES)},
        inspectors=tuple(inspectors),
        defects=dict(sorted(Counter(verdict.defect for verdict in verdicts if verdict.defect).items())),
        disagreements=tuple(disagreements),
        agreement=agreement,
        seconds=float(sum(verdict.seconds for verdict in verdicts)),
        policy=policy,
    )


def write_verdicts(path: Path | str, verdicts: Sequence[Verdict]) -> Path:
    """One JSON line per verdict."""
    return write_atomically(path, "".join(json.dumps(asdict(v), ensure_ascii=False) + "\n" for v in verdicts))


def read_verdicts(path: Path | str) -> list[Verdict]:
    """The verdicts of a file as `write_verdicts` or the inspection page wrote it.

    Raises:
        InspectionError: no such file, or a line that is no verdict; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InspectionError(f"{path} does not exist: save the verdicts from the inspection page first")
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            seconds = float(fields.get("seconds", 0))
            verdicts.append(
                Verdict(str(fields["item"]), str(fields["inspector"]), str(fields.get("defect", "")), seconds)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InspectionError(
                f"{path.name}, line {number} is no verdict: expected item, inspector, defect, seconds"
            ) from None
    return verdicts


def seeded_truth(
    verdicts: Sequence[Verdict], truth: dict[str, bool]
) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """How well each inspector finds planted defects: {name: ((noticed, planted), (let through, good))}.

    Their ratios are sensitivity and specificity, for `true_rate`. Mix pictures of known state into the sample without
    telling anyone.

    Args:
        truth: name -> it is defective, for the planted pictures; verdicts on others are left out.
    """
    out: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    for who in sorted({verdict.inspector for verdict in verdicts}):
        told = [v for v in verdicts if v.inspector == who and v.item in truth]
        bad = [bool(v.defect) for v in told if truth[v.item]]
        good = [not v.defect for v in told if not truth[v.item]]
        out[who] = ((sum(bad), len(bad)), (sum(good), len(good)))
    return out
