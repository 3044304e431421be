"""The three-stage gate: rule filter -> preference filter -> random inspection -> decision.

This order is the operational reading of the course's article, not of the survey it reports on.

    gate = Gate(process, plan, rules=[size_rule(64, 64), near_duplicate_rule()])
    screening = gate.screen(read_lot(folder))          # what passes, and why the rest does not
    sample = gate.sample(screening, seed)              # what people look at
    decision = gate.decide(screening, sample, verdicts)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from labkit.inspection.aql import Plan
from labkit.inspection.digest import digest
from labkit.inspection.judge import Judge
from labkit.inspection.lot import InspectionError, Lot, draw_sample
from labkit.inspection.rules import Rejection, Rule, apply_rules
from labkit.inspection.threshold import PreferenceFilter
from labkit.inspection.verdicts import DEFECTS, Defect, Tally, Verdict, band_decisions, tally


@dataclass(frozen=True)
class Screening:
    """What the two filters did to a lot.

    Attributes:
        lot: all of it. rejections: the log of the rules, one line per fault. refused: by the score.
        abstained: in the band below the threshold, for people. decided: what people said about those (True passes).
        passed: names that may ship if the lot is accepted, in the order of the lot. scores: of what passed the rules.
    """

    lot: Lot
    rejections: tuple[Rejection, ...]
    refused: tuple[str, ...]
    abstained: tuple[str, ...]
    decided: dict[str, bool]
    passed: tuple[str, ...]
    scores: dict[str, float]

    def counts(self) -> dict[str, int]:
        """How many pictures came in, fell at each stage, and passed."""
        return {
            "pictures": len(self.lot) + len(self.lot.unreadable),
            "unreadable": len(self.lot.unreadable),
            "broke a rule": len({r.item for r in self.rejections}) - len(self.lot.unreadable),
            "refused by the score": len(self.refused),
            "left to people": len(self.abstained),
            "passed by people": sum(self.decided.values()),
            "passed": len(self.passed),
        }

    def by_rule(self) -> dict[str, int]:
        """Faults by rule."""
        return dict(Counter(rejection.rule for rejection in self.rejections))


@dataclass(frozen=True)
class Decision:
    """The outcome for a lot: accepted or not, why, and the counts behind it."""

    accepted: bool
    reasons: tuple[str, ...]
    tally: Tally


@dataclass(frozen=True)
class Gate:
    """Filters, plan and list of defects for the pictures of one process.

    Attributes:
        process: hash of what makes the pictures, see `digest_process`. plan: sample size and acceptance numbers.
        rules: the rule filter. preference: the score filter, None for none. defects: the written list.
        policy, repeats: how several inspectors' verdicts become one, and what a second look of one of them does; see
            `tally`.
    """

    process: str
    plan: Plan
    rules: tuple[Rule, ...] = ()
    preference: PreferenceFilter | None = None
    defects: tuple[Defect, ...] = DEFECTS
    policy: str = "any"
    repeats: str = "refuse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", tuple(self.rules))
        object.__setattr__(self, "defects", tuple(self.defects))

    def filters(self) -> dict:
        """What the filters are, in plain values; its hash goes into the record."""
        told = {"rules": [{"name": rule.name, "expected": rule.expected} for rule in self.rules], "threshold": None}
        if self.preference is not None:
            certificate = asdict(self.preference.certificate)
            certificate["calibration"] = digest(sorted(certificate.pop("calibration")))
            told["threshold"] = {**certificate, "abstain": self.preference.abstain}
        return told

    def screen(self, lot: Lot, judge: Judge | None = None, *, people: Mapping[str, bool] | None = None) -> Screening:
        """Both filters over a whole lot.

        Args:
            judge: gives the score; needed with a preference filter, and its name must be the certificate's.
            people: name -> True (passes) for pictures in the abstain band; undecided ones do not ship.

        Raises:
            CalibrationError: the threshold belongs to another process.
            InspectionError: no judge, another judge, a picture of the calibration in the lot, or a decision on a
                picture that was not left to people.
        """
        rejections = apply_rules(lot, self.rules)
        fallen = {rejection.item for rejection in rejections}
        left = [item for item in lot.items if item.name not in fallen]
        fate, scores = dict.fromkeys((item.name for item in left), "pass"), {}
        if self.preference is not None:
            certificate = self.preference.certificate
            if judge is None or judge.name != certificate.judge:
                asked = None if judge is None else judge.name
                raise InspectionError(f"the threshold belongs to the judge {certificate.judge!r}, got {asked!r}")
            if known := {item.sha256 for item in left} & set(certificate.calibration):
                raise InspectionError(f"{len(known)} pictures of the lot were used for calibration: inspect other ones")
            values = judge(left)
            scores = dict(zip(fate, map(float, values), strict=True))
            fate = dict(zip(fate, self.preference.sort(values, process=self.process), strict=True))
        abstained = tuple(name for name, what in fate.items() if what == "abstain")
        people = dict(people or {})
        if strange := set(people) - set(abstained):
            raise InspectionError(f"people decided on {sorted(strange)[0]!r}, which was not left to them")
        return Screening(
            lot=lot,
            rejections=tuple(rejections),
            refused=tuple(name for name, what in fate.items() if what == "refuse"),
            abstained=abstained,
            decided=people,
            passed=tuple(name for name, what in fate.items() if what == "pass" or people.get(name)),
            scores=scores,
        )

    def screen_band(self, lot: Lot, judge: Judge, verdicts: Sequence[Verdict]) -> Screening:
        """`screen`, with what people said about the pictures of the abstain band; undecided ones do not ship."""
        first = self.screen(lot, judge)
        told = band_decisions(first.abstained, verdicts, defects=self.defects, policy=self.policy)
        return self.screen(lot, judge, people=told)

    def sample(self, screening: Screening, seed: int | str) -> list[str]:
        """The names that people look at, see `draw_sample`.

        Raises:
            InspectionError: fewer pictures passed than the plan wants to see.
        """
        return draw_sample(screening.passed, self.plan.n, seed)

    def decide(self, screening: Screening, sample: Sequence[str], verdicts: Sequence[Verdict]) -> Decision:
        """Accept or refuse by the plan: no critical defect, at most c major, at most `minor` minor ones."""
        if strange := set(sample) - set(screening.passed):
            raise InspectionError(f"{sorted(strange)[0]!r} was inspected but did not pass the filters")
        if len(sample) != self.plan.n:
            raise InspectionError(f"{len(sample)} pictures were inspected, the plan says {self.plan.n}")
        counts = tally(sample, verdicts, defects=self.defects, policy=self.policy, repeats=self.repeats)
        reasons = broken_limits(self.plan, critical=counts.critical, major=counts.major, minor=counts.minor)
        return Decision(not reasons, tuple(reasons), counts)


def broken_limits(plan: Plan, *, critical: int, major: int, minor: int) -> list[str]:
    """Which limits of the plan the counts exceed; none: the lot is accepted."""
    limits = {"critical": (critical, 0), "major": (major, plan.c), "minor": (minor, _minor(plan))}
    return [f"{name}: {count} > {limit}" for name, (count, limit) in limits.items() if count > limit]


def _minor(plan: Plan) -> int:
    return plan.c if plan.minor is None else plan.minor
