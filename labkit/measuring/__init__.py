"""Measuring your own pictures: two folders in, numbers with their floor, spread and N out, and what may be concluded.

Modules, in the order of use:

    sources     `read_source`: a folder, pictures, a DataLoader, features, or statistics of pytorch-fid and clean-fid
    measure     `measure`: the metrics of `labkit.metrics` with floor and spread, and the check for copies of reals
    report      `measurement_html`: one page for people, in Japanese or English
    command     `labkit measure REAL FAKE`
"""

from labkit.measuring.measure import Measurement, Reading, measure
from labkit.measuring.report import measurement_html
from labkit.measuring.sources import Source, read_source

__all__ = ["read_source", "Source", "measure", "Measurement", "Reading", "measurement_html"]
