"""Verification of generated pictures: filters, sampling inspection, sign-off, and what all of it is worth.

Modules, in the order in which they are read:

    equations    the statistics: plans, intervals, sequential tests, thresholds
    aql          plans by lot size and AQL, as the standards' tables give them
    lot          a folder of pictures, and a sample that anybody can draw again; `prompts`: what was ordered
    rules        the rule filter; `provenance`: where a picture comes from, inside the PNG
    judge        scores from a learned judge, kept in a file; `threshold`: the certified preference filter;
                 `calibration`: a certificate from files; `sealed`: files that show an edit by hand
    verdicts     what people saw; `page`: the page on which they look; `serve`: the same over HTTP on this machine
    gate         rule filter -> preference filter -> random inspection -> decision
    record       the sign-off record; `report` shows it in Japanese or English, `wording`: what filters and plans wrote,
                 in Japanese; `texts`: what else they say; `digest`: hashes
    rollout      shadow -> all -> tightened -> normal -> reduced, and back; `drift`: the alarms
    economics    cost of a plan, return, value of information, train or search
    command      `labkit inspect`; `planning`: how a plan is said; `job`: what is kept between draw and signature

The names below are those that lessons use, in the order of use; everything else is imported from its module.
"""

from labkit.inspection.aql import Plan, aql_plan, passes_one_step_tighter
from labkit.inspection.digest import digest_process
from labkit.inspection.drift import cusum_chart, ewma_chart, score_drift
from labkit.inspection.economics import (
    Economics,
    all_or_none,
    best_sample_size,
    break_even_images,
    cost_terms,
    roi,
    tornado,
    value_of_one_more,
)
from labkit.inspection.equations import (
    acceptance,
    average_outgoing_quality,
    average_total_inspection,
    certification_p_value,
    clopper_pearson,
    csp1,
    e_process,
    lot_upper_bound,
    outgoing_quality_limit,
    sprt,
    true_rate,
    two_point_plan,
    upper_bound,
    zero_failure_n,
)
from labkit.inspection.gate import Decision, Gate, Screening
from labkit.inspection.judge import StoredJudge
from labkit.inspection.lot import InspectionError, Lot, draw_sample, read_lot
from labkit.inspection.provenance import provenance_problems, write_provenance
from labkit.inspection.record import folder_problems, read_sign_off, record_problems, sign_off, write_sign_off
from labkit.inspection.report import record_html
from labkit.inspection.rollout import Rollout, after_alarm, after_lot, calibrate, meet_process, stage_plan
from labkit.inspection.rules import (
    color_rule,
    forbidden_color_rule,
    forbidden_words_rule,
    near_duplicate_rule,
    provenance_rule,
    size_rule,
)
from labkit.inspection.threshold import Certificate, PreferenceFilter, certify_threshold
from labkit.inspection.verdicts import DEFECTS, Defect, Verdict, gather_verdicts, seeded_truth, tally
from labkit.inspection.wording import said

__all__ = [
    # plans
    "acceptance",
    "zero_failure_n",
    "two_point_plan",
    "aql_plan",
    "Plan",
    "average_outgoing_quality",
    "outgoing_quality_limit",
    "average_total_inspection",
    # what may be concluded
    "clopper_pearson",
    "upper_bound",
    "lot_upper_bound",
    "true_rate",
    "sprt",
    "e_process",
    "csp1",
    # the gate
    "Lot",
    "read_lot",
    "InspectionError",
    "size_rule",
    "color_rule",
    "forbidden_color_rule",
    "near_duplicate_rule",
    "forbidden_words_rule",
    "provenance_rule",
    "write_provenance",
    "provenance_problems",
    "StoredJudge",
    "certification_p_value",
    "certify_threshold",
    "Certificate",
    "PreferenceFilter",
    "digest_process",
    "Gate",
    "Screening",
    "draw_sample",
    "DEFECTS",
    "Defect",
    "Verdict",
    "gather_verdicts",
    "tally",
    "seeded_truth",
    "Decision",
    # signing
    "sign_off",
    "record_html",
    "said",
    "write_sign_off",
    "read_sign_off",
    "record_problems",
    "folder_problems",
    # lot after lot
    "Rollout",
    "calibrate",
    "meet_process",
    "stage_plan",
    "passes_one_step_tighter",
    "after_lot",
    "after_alarm",
    "ewma_chart",
    "cusum_chart",
    "score_drift",
    # money
    "Economics",
    "cost_terms",
    "roi",
    "tornado",
    "all_or_none",
    "best_sample_size",
    "value_of_one_more",
    "break_even_images",
]
