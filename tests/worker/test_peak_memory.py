"""Peak memory of a call: what the kernel counts, what a framework's own allocator adds, and what is not known."""

import os
import subprocess
import sys

import numpy as np
import pytest

from harness.machine import allocator
from harness.records.schema import PeakMemory
from harness.worker import peak_memory, timing
from tests.worker.test_timing import Clock, Made, run

MEGABYTE = 1_000_000
SIZES = """
import numpy as np
from harness.worker.peak_memory import kernel_peak_bytes
kept = []
calls = {
    "nothing": lambda: None,
    "an array": lambda: np.ones(64_000_000, np.uint8),
    "two at once": lambda: [np.ones(32_000_000, np.uint8), np.ones(32_000_000, np.uint8)],
    "two after another": lambda: [np.ones(32_000_000, np.uint8).sum() for _ in range(2)],
    "untouched": lambda: np.empty(64_000_000, np.uint8),
}
for name, call in calls.items():
    call()
    print(name, kernel_peak_bytes(call), sep="=")
"""


def test_the_kernel_counts_what_is_held_at_once_and_forgets_the_call_before():
    environment = {**os.environ, **allocator.GIVEN_BACK}
    command = [sys.executable, "-c", SIZES]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    sizes = {name: int(number) for name, _, number in (line.partition("=") for line in done.stdout.splitlines())}
    expected = {"nothing": 0, "an array": 64, "two at once": 64, "two after another": 32, "untouched": 0}
    for name, megabytes in expected.items():
        assert sizes[name] == pytest.approx(megabytes * MEGABYTE, abs=MEGABYTE), sizes


def counted(monkeypatch, kernel, own, on_gpu=False):
    """What is told of a call of which the kernel and the framework count so much, call after call."""
    kernels, owns = iter(kernel), iter(own)
    monkeypatch.setattr(peak_memory, "kernel_peak_bytes", lambda call: next(kernels))
    return peak_memory.measure(lambda: None, lambda call: next(owns), on_gpu)


def test_what_a_framework_keeps_is_added_to_what_the_kernel_sees(monkeypatch):
    alone = counted(monkeypatch, [5, 7], [None, None])
    assert alone == PeakMemory(kernel_bytes=7)
    assert alone.shown_bytes == 7
    assert counted(monkeypatch, [5, 7], [20, 30]).shown_bytes == 37
    on_gpu = counted(monkeypatch, [], [20, 30], on_gpu=True)
    assert (on_gpu.kernel_bytes, on_gpu.shown_bytes) == (None, 30)
    uncounted = counted(monkeypatch, [], [None, None], on_gpu=True)
    assert (uncounted.shown_bytes, uncounted.missing) == (None, peak_memory.NOT_COUNTED)


def test_a_kernel_that_does_not_tell_is_a_reason_and_no_number(monkeypatch, tmp_path):
    monkeypatch.setattr(peak_memory, "CLEAR", tmp_path / "none" / "clear_refs")
    told = peak_memory.measure(lambda: None, lambda call: None)
    assert told.shown_bytes is None
    assert told.missing == "the kernel does not tell: No such file or directory"


def test_every_arm_of_a_block_that_asks_for_it_has_its_peak_and_no_times():
    class Measured(Made):
        def peak_bytes(self, call):
            self.log.append("measured")
            call()
            return 10

    clock = Clock()
    backend = Measured(clock, fails=("unrolled_per_step",))
    result = run(backend, clock, rounds=None, peaks=True, on_gpu=True)
    peaks = {name: arm.peak and arm.peak.shown_bytes for name, arm in result.arms.items()}
    measured = dict.fromkeys(("unrolled_none", "unrolled_in_loop", "unrolled_batched"), 10)
    assert peaks == measured | {"unrolled_per_step": None}
    assert not any(arm.samples_ns for arm in result.arms.values())
    assert "measured" not in run(Measured(clock), clock, rounds=None).arms
    assert np.all([arm.peak is None for arm in run(Measured(clock), clock, rounds=None).arms.values()])


def test_a_withheld_arm_has_no_peak():
    arm = timing.ArmTiming.without_times().model_copy(update={"peak": PeakMemory(kernel_bytes=5)})
    assert arm.withheld("wrong", "off").peak is None
