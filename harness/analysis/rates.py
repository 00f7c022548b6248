"""The rates at which each framework multiplies at the shapes of the run's workloads.

Pure: the same records give the same table.
"""

from collections import defaultdict

import pandas as pd

from harness.analysis.roofline import MEASURED_IN, product_rates
from harness.records.schema import BlockRecord, PeakRates
from harness.study.configuration import Configuration
from harness.study.study import Study

RATES = [
    *("framework", "execution", "device", "threads", "precision", "workload", "rows", "inner", "columns"),
    *("gflops", "share_of_best"),
]


def rates(blocks: list[BlockRecord], study: Study) -> pd.DataFrame:
    """Return a row for each configuration, workload and product whose rate was measured, in GFLOP/s.

    `share_of_best` is of the best rate that any framework reached with as many threads, on that device and in that
    precision, in any product, the large square one included. Older records have no rows.
    """
    measured = _first_rates(blocks)
    best: dict[tuple[str, int, str], float] = defaultdict(float)
    for c, peak in measured.items():
        key = (c.device, c.threads, c.precision)
        best[key] = max(best[key], peak.flops_s, *product_rates(peak).values(), 0.0)
    rows = []
    for c, peak in measured.items():
        by_shape = product_rates(peak)
        place = (c.framework, c.execution, c.device, c.threads, c.precision)
        for workload in study.workloads:
            for shape in sorted(by_shape.keys() & set(workload.products)):
                share = by_shape[shape] / best[c.device, c.threads, c.precision]
                rows.append((*place, workload.name, *shape, by_shape[shape] / 1e9, share))
    return pd.DataFrame(rows, columns=RATES).sort_values(RATES[:9], kind="stable", ignore_index=True)


def _first_rates(blocks: list[BlockRecord]) -> dict[Configuration, PeakRates]:
    """Return the rates of each configuration's first process that measured them, where arrays are float32."""
    measured: dict[Configuration, PeakRates] = {}
    for block in blocks:
        if block.rates and block.configuration.precision in MEASURED_IN:
            measured.setdefault(block.configuration, block.rates)
    return measured
