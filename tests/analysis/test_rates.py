"""Rates of products at the shapes of the workloads: without the cost of a call, and beside the best."""

import pytest

from harness.analysis import rates
from harness.records.schema import PeakRates
from harness.study.study import Study, Workload
from tests import made
from tests.analysis.test_roofline import RATES


def with_products(*products):
    """RATES, with calls of products: rows, inner, columns and nanoseconds; a call costs 1000."""
    return PeakRates.model_validate(RATES.model_dump() | {"products": [(1, 1, 1, 1000.0), *products]})


def test_a_product_s_rate_is_without_the_cost_of_its_call_and_none_where_that_is_nearly_all():
    found = rates.product_rates(with_products((50, 100, 1000, 1001000.0), (2, 3, 4, 1050.0)))
    assert found == {(50, 100, 1000): pytest.approx(1e10)}
    assert rates.product_rates(RATES) == {}


def test_the_table_of_rates_compares_with_the_best_at_as_many_threads():
    vocab = Workload(name="v", B=50, T=100, I=1, H=100, O=1000)
    study = Study(workloads=[vocab])
    fast = with_products((50, 100, 1000, 101000.0), (5000, 100, 1000, 5001000.0)).model_dump()  # 100 and 200 GFLOP/s
    slow = with_products((50, 100, 1000, 201000.0)).model_dump()
    content = [("a", 1, fast), ("b", 1, slow), ("c", 2, slow), ("d", 1, None)]
    blocks = [made.block({"framework": name, "threads": threads, "rates": peak}) for name, threads, peak in content]
    found = rates.rates([*blocks, made.block({"framework": "a", "precision": "bf16", "rates": slow})], study)
    assert list(found.columns) == rates.RATES
    rows = [tuple(row) for row in found[["framework", "threads", "rows", "gflops", "share_of_best"]].to_numpy()]
    assert rows == [
        ("a", 1, 50, pytest.approx(100), pytest.approx(0.5)),
        ("a", 1, 5000, pytest.approx(200), pytest.approx(1)),
        ("b", 1, 50, pytest.approx(50), pytest.approx(0.25)),
        ("c", 2, 50, pytest.approx(50), pytest.approx(0.5)),  # of the large square product's 100
    ]
    assert rates.rates(blocks[3:], study).empty
