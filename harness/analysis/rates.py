"""The rates at which each framework multiplies at the shapes of the run's workloads.

The predictions do not use them: a small product by itself pays for sharing its work out, which it need not inside a
program. Of 23 gaps that were forecast beyond the workload that forecasts are fitted on, those with these rates missed
by 10.8% at the median and by a factor of 7.7 at worst, those without by 8.8% and 1.5.

Pure: the same records give the same table.
"""

from collections import defaultdict

import pandas as pd

from harness.analysis.roofline import MEASURED_IN
from harness.records.schema import BlockRecord, PeakRates
from harness.study.configuration import Configuration
from harness.study.study import Study

TOLD_FROM_A_CALL = 0.5  # part of a call that a product must take, for its rate to be known
RATES = [
    *("framework", "execution", "device", "threads", "precision", "workload", "rows", "inner", "columns"),
    *("gflops", "share_of_best"),
]


def product_rates(rates: PeakRates) -> dict[tuple[int, int, int], float]:
    """Return operations a second by rows, inner and columns, without what the call itself costs.

    A call's cost is that of the first product, of single numbers. A product that takes less than TOLD_FROM_A_CALL of
    its call has no rate: it could not be told from the call.
    """
    if not rates.products:
        return {}
    call_ns = rates.products[0].ns
    return {
        (rows, inner, columns): 2e9 * rows * inner * columns / (ns - call_ns)
        for rows, inner, columns, ns in rates.products[1:]
        if ns - call_ns >= TOLD_FROM_A_CALL * ns
    }


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
