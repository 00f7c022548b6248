"""Numbers as a reader sees them: no digits finer than the interval, and no limit that seems to be 1."""

import math

import pytest

from harness.report.markdown import bold_interval, interval


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((1.2345, 1.2301, 1.2389), "1.234 [1.230, 1.239]"),
        ((1.2345, 1.2, 1.27), "1.23 [1.20, 1.27]"),
        ((1.2345, 0.9, 1.7), "1.2 [0.9, 1.7]"),
        ((1.2345, 0.2, 7.7), "1.2 [0.2, 7.7]"),
        ((1.24, 0.96, 1.60), "1.24 [0.96, 1.60]"),  # one digit would put the limit at 1
        ((1.07, 1.004, 1.14), "1.070 [1.004, 1.140]"),
        ((1.5, 1.0, 2.2), "1.5 [1.0, 2.2]"),  # it lies there
        ((1.0, 1.0, 1.0), "1.000 [1.000, 1.000]"),
        ((1.5, math.nan, math.nan), "1.50 (one process)"),
    ],
)
def test_digits_are_no_finer_than_the_interval(numbers, text):
    assert interval(*numbers) == text


def test_an_interval_beyond_1_is_bold():
    assert bold_interval(1.07, 1.02, 1.12) == "**1.07 [1.02, 1.12]**"
    assert bold_interval(0.93, 0.88, 0.98) == "**0.93 [0.88, 0.98]**"
    assert bold_interval(1.03, 0.98, 1.08) == "1.03 [0.98, 1.08]"
