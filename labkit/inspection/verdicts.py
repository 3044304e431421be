"""What people saw: a written list of defects, one verdict per picture and inspector, and what they add up to.

Several people may look at one picture, and one person twice. Names decide who is who, so two people with one name are
refused, not added up; a second look of the same person replaces the first and says how steady that person is.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from labkit.files import write_atomically
from labkit.inspection.lot import InspectionError
from labkit.metrics import krippendorff_alpha

SEVERITIES = ("critical", "major", "minor")  # worst first
POLICIES = ("any", "majority")
REPEATS = ("refuse", "last")


def same_person(name: str) -> str:
    """The letters, digits and marks of a name without case and width: equal for two spellings of one name. Spaces,
    dots, hyphens and characters that nobody sees do not make another person; without a letter it is nobody's name."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(sign for sign in plain if unicodedata.category(sign)[0] in "LNM")


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


DEFECTS = (  # a start; what a defect is belongs to the product: see `read_defects`
    Defect("forbidden", "critical", "shows something that must never ship", "出荷してはならないものが写っている"),
    Defect("mismatch", "major", "does not show what was ordered", "指定した内容と違う"),
    Defect("shape", "major", "a shape is broken or impossible", "形が崩れている、またはありえない形をしている"),
    Defect("color", "minor", "a colour is off", "色が指定とずれている"),
    Defect("texture", "minor", "blur, noise or speckles", "ぼけ、ノイズ、斑点がある"),
)


def make_defects(entries: object) -> tuple[Defect, ...]:
    """The list of defects that plain values describe: [{"code", "severity", "en", "ja"}, ...]; one of the two texts is
    enough.

    Raises:
        InspectionError: an entry that is no defect, a code twice, or no entry at all; names it.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise InspectionError("a list of defects is a list of entries with code, severity, en and ja")
    defects: list[Defect] = []
    for number, entry in enumerate(entries, start=1):
        try:
            text = {lang: str(entry[lang]) for lang in ("en", "ja") if entry.get(lang)}
            both = {lang: text.get(lang) or next(iter(text.values())) for lang in ("en", "ja")}
            defects.append(Defect(str(entry["code"]), str(entry["severity"]), **both))
        except (KeyError, TypeError, AttributeError, StopIteration):
            raise InspectionError(f"defect {number} is no defect: expected code, severity, en and ja") from None
        except ValueError as error:
            raise InspectionError(str(error)) from None
    codes = [defect.code for defect in defects]
    if "" in codes or len(set(codes)) < len(codes):
        raise InspectionError(f"each defect needs a code of its own, got {', '.join(map(repr, codes))}")
    return tuple(defects)


def read_defects(path: Path | str) -> tuple[Defect, ...]:
    """The written list of defects in a YAML or JSON file, see `make_defects`.

    Raises:
        InspectionError: no such file, or no list of defects.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8-sig"))
        return make_defects(entries)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InspectionError(f"{path} is no list of defects: {str(error).splitlines()[0]}") from None


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
        policy: how several verdicts became one. repeats: what happened to second looks of one person.
        repeated: how many second looks there were. self_agreement: share of them that said the same as the look before
            (defective or not); None without any.
        by_inspector: name -> [pictures, defective ones], how strict each person was.
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
    repeats: str = "refuse"
    repeated: int = 0
    self_agreement: float | None = None
    by_inspector: dict[str, tuple[int, int]] = field(default_factory=dict)


def tally(
    sample: Sequence[str],
    verdicts: Sequence[Verdict],
    *,
    defects: Sequence[Defect] = DEFECTS,
    policy: str = "any",
    repeats: str = "refuse",
) -> Tally:
    """Count the defective pictures of a sample.

    Args:
        sample: names that were drawn. verdicts: at least one for each of them.
        policy: "any": the worst that any inspector saw counts; "majority": the worst severity that at least half of a
            picture's inspectors saw or exceeded (so a tie counts as defective). Disagreements are listed either way.
        repeats: one person's second verdict on a picture: "refuse" it, or let the "last" one count.

    Raises:
        InspectionError: a picture without a verdict or outside the sample, a code that is not on the list, two verdicts
            of one person on one picture with repeats "refuse", or one name in two spellings.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy = {policy!r} must be one of {', '.join(POLICIES)}")
    if repeats not in REPEATS:
        raise ValueError(f"repeats = {repeats!r} must be one of {', '.join(REPEATS)}")
    severity = {defect.code: SEVERITIES.index(defect.severity) for defect in defects}
    by_item, steady = _by_item(sample, verdicts, severity, repeats)
    if missing := [name for name in sample if name not in by_item]:
        raise InspectionError(f"{len(missing)} of {len(sample)} drawn pictures have no verdict: first {missing[0]!r}")
    inspectors = sorted({verdict.inspector for verdict in verdicts})
    counts, disagreements = Counter(), []
    for name in sample:
        levels = _levels(by_item[name], severity)
        if levels[0] < len(SEVERITIES) == levels[-1]:
            disagreements.append(name)
        counts[_agreed(levels, policy)] += 1
    agreement = None
    if len(inspectors) > 1:
        table = [
            [bool(by_item[name][who].defect) if who in by_item[name] else None for name in sample] for who in inspectors
        ]
        if any(len(by_item[name]) > 1 for name in sample):
            agreement = krippendorff_alpha(table)
    counted = [verdict for told in by_item.values() for verdict in told.values()]
    strict = {who: [bool(v.defect) for v in counted if v.inspector == who] for who in inspectors}
    return Tally(
        n=len(sample),
        **{name: counts[level] for level, name in enumerate(SEVERITIES)},
        inspectors=tuple(inspectors),
        defects=dict(sorted(Counter(verdict.defect for verdict in counted if verdict.defect).items())),
        disagreements=tuple(disagreements),
        agreement=agreement,
        seconds=float(sum(verdict.seconds for verdict in verdicts)),
        policy=policy,
        repeats=repeats,
        repeated=len(steady),
        self_agreement=sum(steady) / len(steady) if steady else None,
        by_inspector={who: (len(found), sum(found)) for who, found in strict.items()},
    )


def band_decisions(
    names: Sequence[str], verdicts: Sequence[Verdict], *, defects: Sequence[Defect] = DEFECTS, policy: str = "any"
) -> dict[str, bool]:
    """What people decided about the pictures of the abstain band: name -> it passes (no critical or major defect).

    Args:
        names: pictures that were left to people. verdicts: on some of them; the others stay undecided and do not ship.

    Raises:
        InspectionError: as `tally`, but a picture may have no verdict.
    """
    severity = {defect.code: SEVERITIES.index(defect.severity) for defect in defects}
    by_item, _ = _by_item(names, verdicts, severity, "last")
    return {
        name: _agreed(_levels(by_item[name], severity), policy) >= SEVERITIES.index("minor")
        for name in names
        if name in by_item
    }


def _by_item(
    sample: Sequence[str], verdicts: Sequence[Verdict], severity: Mapping[str, int], repeats: str
) -> tuple[dict[str, dict[str, Verdict]], list[bool]]:
    """(item -> inspector -> the verdict that counts, for every second look whether it said the same as the first)."""
    drawn, by_item = set(sample), defaultdict(dict)
    spelled: dict[str, str] = {}  # person -> the spelling met first
    steady: list[bool] = []
    for verdict in verdicts:
        if verdict.item not in drawn:
            raise InspectionError(f"{verdict.inspector} judged {verdict.item!r}, which was not drawn: check the seed")
        if verdict.defect and verdict.defect not in severity:
            raise InspectionError(f"defect {verdict.defect!r} is not on the list: use one of {', '.join(severity)}")
        if not same_person(verdict.inspector):
            raise InspectionError(f"the verdict on {verdict.item!r} has no inspector: a person's name is needed")
        known = spelled.setdefault(same_person(verdict.inspector), verdict.inspector)
        if known != verdict.inspector:
            raise InspectionError(
                f"{known!r} and {verdict.inspector!r} read as one name: spell one person one way, or tell two apart"
            )
        if (before := by_item[verdict.item].get(verdict.inspector)) is not None:
            if repeats == "refuse":
                raise InspectionError(
                    f"{verdict.inspector} judged {verdict.item!r} twice: keep one of the verdicts, or let the last "
                    f"one count"
                )
            steady.append(bool(before.defect) == bool(verdict.defect))
        by_item[verdict.item][verdict.inspector] = verdict
    return dict(by_item), steady


def _levels(told: Mapping[str, Verdict], severity: Mapping[str, int]) -> list[int]:
    """Severities of one picture's verdicts as indices, the worst first; len(SEVERITIES) is good."""
    return sorted(severity.get(verdict.defect, len(SEVERITIES)) for verdict in told.values())


def _agreed(levels: Sequence[int], policy: str) -> int:
    return levels[0 if policy == "any" else (len(levels) - 1) // 2]


def write_verdicts(path: Path | str, verdicts: Sequence[Verdict], *, draw: str = "") -> Path:
    """One JSON line per verdict, with the draw's name if there is one."""
    more = {"draw": draw} if draw else {}
    return write_atomically(path, "".join(json.dumps(asdict(v) | more, ensure_ascii=False) + "\n" for v in verdicts))


def read_verdicts(path: Path | str, *, draw: str = "") -> list[Verdict]:
    """The verdicts of a file as `write_verdicts` or the inspection page wrote it.

    Args:
        draw: which draw they must belong to, see `parse_verdicts`.

    Raises:
        InspectionError: no such file, or a line that is no verdict; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise InspectionError(f"{path} does not exist: save the verdicts from the inspection page first")
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark before the first line
    except UnicodeDecodeError:
        raise InspectionError(f"{path.name} is no text in UTF-8: hand over the file as the page saved it") from None
    return parse_verdicts(text, path.name, draw=draw)


def parse_verdicts(text: str, source: str, *, draw: str = "") -> list[Verdict]:
    """The verdicts of JSON lines; `source` names them in errors.

    Args:
        draw: name of the draw that the pictures come from. The inspection page writes it into every line; pictures of
            two lots may have the same names. Lines without it are taken as they are; "" takes all.

    Raises:
        InspectionError: a line that is no verdict, or one on another draw; names it.
    """
    verdicts = []
    for number, line in enumerate(text.rstrip("\n").split("\n") if text else [], start=1):
        try:
            fields = json.loads(line)
            seconds = float(fields.get("seconds", 0))
            if not 0 <= seconds < float("inf"):
                raise ValueError
            verdicts.append(
                Verdict(str(fields["item"]), str(fields["inspector"]), str(fields.get("defect", "")), seconds)
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InspectionError(
                f"{source}, line {number} is no verdict: expected item, inspector, defect, seconds"
            ) from None
        if draw and fields.get("draw") not in (None, "", draw):
            raise InspectionError(f"{source}, line {number} belongs to another draw: these pictures were not looked at")
    return verdicts


def gather_verdicts(paths: Sequence[Path | str], *, repeats: str = "refuse", draw: str = "") -> list[Verdict]:
    """The verdicts of several files, each of one sitting; `draw` as in `parse_verdicts`.

    One name in two files is either a person who looked twice or two people of one name; only people can tell, so it is
    refused unless `repeats` is "last" (a person who looked twice; give the files in the order of the sittings).

    Raises:
        InspectionError: a name in two files with repeats "refuse", or what `read_verdicts` raises.
    """
    found: list[Verdict] = []
    first: dict[str, Path] = {}  # person -> file
    for path in map(Path, paths):
        told = read_verdicts(path, draw=draw)
        for who in dict.fromkeys(verdict.inspector for verdict in told):
            other = first.setdefault(same_person(who), path)
            if other != path and repeats == "refuse":
                raise InspectionError(
                    f"{who!r} stands in {other.name} and {path.name}: two people need two names; if one person looked "
                    f"twice, say --repeats last"
                )
        found += told
    return found


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
