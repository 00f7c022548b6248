"""The roofline: what arithmetic and memory alone take."""

import pytest

from harness.analysis import roofline
from harness.study.study import Workload
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
