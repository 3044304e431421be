"""From nothing shipped to a small sample, and back: shadow -> all -> tightened -> normal -> reduced.

The moves among tightened, normal and reduced are the switching rules of ISO 2859-1 (9.3): two of five or fewer
consecutive lots refused: tightened; five accepted in a row: normal again; five refused under tightened: stop; switching
score of 30: reduced; one lot refused: normal again. Shadow, 100 % inspection and the step back after a drift alarm are
rules of this course. A rollout belongs to one model: any other hash of it starts again at 100 %, without a threshold.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

from labkit.errors import LabkitError
from labkit.inspection.aql import Plan, aql_plan

STAGES = ("shadow", "all", "tightened", "normal", "reduced")
EVERY_PICTURE = ("shadow", "all")
STOPPED = "stopped"
CLEAN_LOTS = 5  # lots accepted in a row: from "all" to "tightened", and from "tightened" to "normal"


class RolloutError(LabkitError, ValueError):
    """A step that the rollout does not allow: shipping without calibration, or after a stop."""


@dataclass(frozen=True)
class Rollout:
    """Where the rollout stands. Every step returns a new one; `asdict` of it is what the record keeps.

    Attributes:
        process: hash of everything that makes the pictures (model, adapter, prompts, sampler, filters).
        stage: one of STAGES, or "stopped". calibrated: a threshold is certified for this process.
        accepted_in_a_row: on this stage. recent: the last five lots on this stage, True accepted.
        refused: lots refused on this stage. score: the switching score of ISO 2859-1.
        reason: why the stage is what it is.
    """

    process: str
    stage: str = "shadow"
    calibrated: bool = False
    accepted_in_a_row: int = 0
    recent: tuple[bool, ...] = ()
    refused: int = 0
    score: int = 0
    reason: str = "a new process ships nothing"

    def __post_init__(self) -> None:
        if self.stage not in (*STAGES, STOPPED):
            raise RolloutError(f"stage = {self.stage!r} must be one of {', '.join((*STAGES, STOPPED))}")
        object.__setattr__(self, "recent", tuple(self.recent))  # JSON has lists

    @property
    def ships(self) -> bool:
        """Lots may leave the house when they are accepted."""
        return self.stage not in ("shadow", STOPPED)


def stage_plan(rollout: Rollout, lot: int, aql: float) -> Plan:
    """The plan of the stage for a lot: every picture in shadow and at 100 % (accepted if at most the AQL is defective),
    else the table's.

    Args:
        lot: pictures that passed the filters. aql: in percent, see `aql_plan`.

    Raises:
        RolloutError: the rollout is stopped.
    """
    if rollout.stage == STOPPED:
        raise RolloutError("inspection has stopped: correct the process, then start a new rollout at tightened")
    if rollout.stage in EVERY_PICTURE:
        return Plan(lot, int(lot * aql / 100), source=f"every picture, at most {aql:g} % defective")
    return aql_plan(lot, aql, severity=rollout.stage)


def from_dict(values: dict) -> Rollout:
    """The rollout that `asdict` wrote down."""
    known = {field.name for field in fields(Rollout)}
    if unknown := set(values) - known:
        raise RolloutError(f"unknown fields {sorted(unknown)}: expected {sorted(known)}")
    return Rollout(**values)


def to_dict(rollout: Rollout) -> dict:
    """Plain values for JSON."""
    return asdict(rollout) | {"recent": list(rollout.recent)}


def calibrate(rollout: Rollout, certified_for: str) -> Rollout:
    """A threshold has been certified: from shadow (or after a change) to 100 % inspection.

    Raises:
        RolloutError: the certificate belongs to another process.
    """
    if certified_for != rollout.process:
        raise RolloutError(
            f"the certificate belongs to process {certified_for[:12]}, this is {rollout.process[:12]}: "
            "calibrate on pictures of this one"
        )
    if rollout.stage in EVERY_PICTURE:
        return _enter(replace(rollout, calibrated=True), "all", "threshold certified")
    return replace(rollout, calibrated=True)


def meet_process(rollout: Rollout, process: str) -> Rollout:
    """The rollout for pictures of `process`: unchanged for the same one, else 100 % inspection without a threshold."""
    if process == rollout.process:
        return rollout
    return Rollout(process, "shadow" if rollout.stage == "shadow" else "all", reason="the process changed: recalibrate")


def after_lot(rollout: Rollout, *, accepted: bool, c: int, accepted_one_step_tighter: bool = False) -> Rollout:
    """The state after one lot that was inspected for the first time (resubmitted lots do not count).

    Args:
        accepted: the decision. c: acceptance number of the plan that was used.
        accepted_one_step_tighter: the lot would have passed the plan of the next smaller AQL as well; with c >= 2 it
            earns the switching score.

    Raises:
        RolloutError: the rollout is stopped, or sampling was begun without a calibrated threshold.
    """
    if rollout.stage == STOPPED:
        raise RolloutError("inspection has stopped: correct the process, then start a new rollout at tightened")
    if rollout.stage != "shadow" and not rollout.calibrated:
        raise RolloutError("no threshold is certified for this process: call calibrate first")
    here = replace(
        rollout,
        accepted_in_a_row=rollout.accepted_in_a_row + 1 if accepted else 0,
        recent=(*rollout.recent, accepted)[-5:],
        refused=rollout.refused + (not accepted),
        score=_score(rollout.score, accepted, c, accepted_one_step_tighter) if rollout.stage == "normal" else 0,
    )
    if here.stage == "all" and here.accepted_in_a_row >= CLEAN_LOTS:
        return _enter(here, "tightened", f"{CLEAN_LOTS} lots accepted in a row")
    if here.stage == "tightened":
        if here.accepted_in_a_row >= CLEAN_LOTS:
            return _enter(here, "normal", f"{CLEAN_LOTS} lots accepted in a row")
        if here.refused >= 5:
            return _enter(here, STOPPED, "5 lots refused under tightened inspection")
    if here.stage == "normal":
        if here.recent.count(False) >= 2:
            return _enter(here, "tightened", "2 of 5 or fewer consecutive lots refused")
        if here.score >= 30:
            return _enter(here, "reduced", "switching score 30")
    if here.stage == "reduced" and not accepted:
        return _enter(here, "normal", "a lot refused under reduced inspection")
    return here


def after_alarm(rollout: Rollout, monitor: str) -> Rollout:
    """One stage back after a drift alarm; 100 % inspection and shadow stay where they are."""
    if rollout.stage in ("shadow", "all", STOPPED):
        return replace(rollout, accepted_in_a_row=0, reason=f"drift: {monitor}")
    return _enter(rollout, STAGES[STAGES.index(rollout.stage) - 1], f"drift: {monitor}")


def _score(score: int, accepted: bool, c: int, tighter: bool) -> int:
    """c <= 1: +2 for an accepted lot; c >= 2: +3 for one that would have passed one AQL step tighter; else from 0."""
    if c <= 1:
        return score + 2 if accepted else 0
    return score + 3 if accepted and tighter else 0


def _enter(rollout: Rollout, stage: str, reason: str) -> Rollout:
    return Rollout(rollout.process, stage, rollout.calibrated, reason=reason)
