"""The roofline: what arithmetic and memory alone take."""

import pytest

from harness.analysis import rates, roofline
from harness.records.schema import PeakRates
from harness.study.study import Study, Workload
from tests import made
from tests.analysis.test_forecast import BOOK, RATES


def test_the_price_of_a_call_is_taken_out_of_what_moving_takes():
    memory = roofline.roofline_from_rates(RATES).memory
    for count in (1 << 14, 1 << 20, 1 << 26):
        assert memory(8.0 * count) == pytest.approx(8 * count / 30e9, rel=0.02)


def test_operations_are_those_of_theory():
    assert roofline.flops(BOOK, "forward", "none") == 2 * 20 * 50 * (1 + 100) * 100
    assert roofline.flops(BOOK, "forward", "batched") == 2 * 20 * 50 * ((1 + 100) * 100 + 100)
    assert roofline.flops(BOOK, "train", "in_loop") == 2 * 20 * 50 * (2 * 101 * 100 + 100 * 100 + 3 * 100)


def test_nothing_is_faster_than_its_floor_says():
    top = roofline.roofline_from_rates(RATES)
    wide = BOOK.model_copy(update={"H": 4000, "O": 4000})
    assert roofline.lower_bound_s(top, wide, "forward", "batched") == pytest.approx(
        roofline.flops(wide, "forward", "batched") / 1e11
    )
    tall = Workload(name="w", B=1, T=1, I=60000, H=1, O=1)
    moved = roofline.lower_bound_s(top, tall, "forward", "none")
    assert moved > 10 * roofline.flops(tall, "forward", "none") / 1e11  # it waits for its inputs


def test_moving_less_never_takes_longer_whatever_a_busy_machine_says():
    quiet, busy = {2.0**n: 1e-6 * 2**n for n in range(4)}, {1.0: 9e-6, 2.0: 2e-6, 4.0: 7e-6, 8.0: 8e-6}
    assert roofline.curve(quiet)(1.0) == pytest.approx(1e-6)
    taken = [roofline.curve(busy)(amount) for amount in busy]
    assert taken == sorted(taken)


def test_the_floor_of_none_in_training_is_given_a_gradient_and_gives_three():
    top = roofline.roofline_from_rates(RATES)
    w = Workload(name="w", B=1, T=1, I=20000, H=300, O=40000)
    numbers = 20000 + 300 + 2 * (20000 * 300 + 300 * 300 + 300)
    assert roofline.lower_bound_s(top, w, "train", "none") == top.moved(numbers)


def with_products(*products):
    """RATES, with calls of products: rows, inner, columns and nanoseconds; a call costs 1000."""
    return PeakRates.model_validate(RATES.model_dump() | {"products": [(1, 1, 1, 1000.0), *products]})


def test_a_product_s_rate_is_without_the_cost_of_its_call_and_none_where_that_is_nearly_all():
    found = roofline.product_rates(with_products((50, 100, 1000, 1001000.0), (2, 3, 4, 1050.0)))
    assert found == {(50, 100, 1000): pytest.approx(1e10)}
    assert roofline.product_rates(RATES) == {}


def test_a_product_takes_what_was_measured_at_its_rows_and_between_them():
    top = roofline.roofline_from_rates(with_products((50, 100, 1000, 1001000.0), (5000, 100, 1000, 10001000.0)))
    assert top.product(50, 100, 1000) == pytest.approx(1e-3)
    assert top.product(5000, 100, 1000) == pytest.approx(1e-2)
    assert top.product(500, 100, 1000) == pytest.approx(1e8 / 10**10.5)  # halfway in logarithms
    assert top.product(5, 100, 1000) == pytest.approx(1e-4)  # at the rate of the nearest
    assert top.product(50, 100, 999) == roofline.roofline_from_rates(RATES).product(50, 100, 999)


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
