"""Recorded studies: the evidence behind the claims, made once by hours of computing, read by the lessons in a second.

    study.py      what a study is: a pure function (arm, seed, sizes) -> numbers, and the estimates of its claims
    store.py      recorded units on disk, their conditions (code, weights, sizes), status, merging
    recorder.py   running what is missing, in one process or several; computing one unit again
    reach.py      all the code that a study runs, and whether it was shown to give the recorded numbers
    estimate.py   differences of arms, intervals over seeds and prompts, the decision
    readings.py   numbers that texts state beside those of the claims
    shipped.py    what a lesson would spend minutes on, made once and shipped
    l01.py ...    one module per lesson; the lesson calls the same functions for its live run. Beside them:
                  l03_shipped, l05_shipped, l06_shipped, l06_world and l09_catalogue, what those lessons ship;
                  l01_steps, l02_controls, l04_controls, l04_words, l05_controls, l05_float32, l06_controls,
                  l06_float32, l06_grain, l08_long, l09_long and l09_fresh, later rounds

All studies of the course record on the CPU, so that `verify` can compute a unit again anywhere; every unit names its
device and machine.

On the command line: `labkit study run|status|verify|adopt|merge|check`.
"""

from labkit.studies.estimate import Estimate, Recorded, decide, estimate, fits, gain, level, means, win_share
from labkit.studies.store import folder_of_studies, read_record
from labkit.studies.study import NotRecorded, Study, StudyError, load_study, studies

__all__ = [
    "Study",
    "StudyError",
    "NotRecorded",
    "load_study",
    "studies",
    "folder_of_studies",
    "read_record",
    "Recorded",
    "level",
    "gain",
    "win_share",
    "Estimate",
    "estimate",
    "means",
    "decide",
    "fits",
]
