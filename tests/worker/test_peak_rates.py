"""The rates of products: what is measured of each shape, and how long that may take."""

import pytest

from harness.worker import peak_rates


class Machine:
    """A backend whose product takes as long as its numbers say, on a clock that only products move."""

    def __init__(self, call_ns, flops_s):
        self.now, self.call_ns, self.flops_s, self.asked = 0, call_ns, flops_s, []

    def clock(self):
        return self.now

    def product(self, rows, inner, columns, execution):
        self.asked.append((rows, inner, columns, execution))

        def call():
            self.now += int(self.call_ns + 2e9 * rows * inner * columns / self.flops_s)

        return call


def test_every_shape_is_measured_once_in_its_execution_after_the_cost_of_a_call():
    machine = Machine(call_ns=2000, flops_s=1e10)
    shapes = [(50, 100, 1000), (50, 100, 10), (50, 100, 1000)]
    times = peak_rates.product_times(machine, machine.clock, "xla", shapes)
    assert [time[:3] for time in times] == [(1, 1, 1), (50, 100, 1000), (50, 100, 10)]  # page one shows the largest
    assert [time.ns for time in times] == pytest.approx([2000, 1002000, 12000], rel=1e-3)
    assert {asked[3] for asked in machine.asked} == {"xla"}


def test_no_product_is_begun_after_the_time_for_all():
    machine = Machine(call_ns=2000, flops_s=1e7)  # the first large one takes 10 s a call
    times = peak_rates.product_times(machine, machine.clock, "eager", [(50, 100, 10000), (50, 100, 20000)])
    assert [time[:3] for time in times] == [(1, 1, 1), (50, 100, 20000)]
