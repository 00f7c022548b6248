"""What is asked of a GPU's driver, and what is done when it was throttled; the driver and the GPU are made up here."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness.machine import gpu
from harness.machine.gpu import State
from harness.run import jobs, schedule
from tests.made import block

CALM = State(None, None, None, None, reasons=[], processes=[7], limited_ns={"heat": 5, "power limit": 0})


class NVML:
    """A driver that tells what it is given, and not what is left out."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception):
        pass

    def __init__(self, **told):
        self.told = told

    def __getattr__(self, name):
        def ask(*arguments):
            if name not in self.told:
                raise self.NVMLError(name)
            return self.told[name]

        return ask


def test_a_driver_is_asked_and_what_it_does_not_tell_is_none():
    bits = 0x40 | 0x04 | 0x01
    found = gpu.state(NVML(nvmlDeviceGetHandleByIndex=0, nvmlDeviceGetCurrentClocksThrottleReasons=bits))
    assert found.reasons == ["power limit", "heat (hardware)"]
    assert (found.sm_mhz, found.power_w, found.processes, found.limited_ns) == (None, None, None, {})
    told = {"nvmlDeviceGetPowerUsage": 250_500, "nvmlDeviceGetViolationStatus": SimpleNamespace(violationTime=3)}
    found = gpu.state(NVML(nvmlDeviceGetHandleByIndex=0, **told))
    assert found.power_w == 250.5
    assert found.limited_ns == {"power limit": 3, "heat": 3, "board limit": 3, "reliability": 3}


def test_the_machines_gpu_is_named():
    memory = SimpleNamespace(total=80 * 2**30)
    told = {"nvmlDeviceGetMemoryInfo": memory, "nvmlDeviceGetName": "X", "nvmlSystemGetDriverVersion": "1.2"}
    assert gpu.facts(NVML(nvmlDeviceGetHandleByIndex=0, **told)) == {"gpu": "X, 80 GiB", "gpu_driver": "1.2"}


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ({}, []),
        ({"reasons": ["power limit"]}, []),
        ({"reasons": ["heat (software)"]}, ["heat (software)"]),
        ({"limited_ns": {"heat": 6, "power limit": 9}}, ["heat"]),
        ({"limited_ns": {"heat": 5, "reliability": 9}}, []),  # not told before: no growth is known
    ],
)
def test_what_counts_as_throttled(after, why):
    assert gpu.throttle_reasons(CALM, replace(CALM, **after)) == why


def test_other_processes_are_counted_without_the_worker():
    states = [replace(CALM, processes=each) for each in (None, [], [7], [7, 8])]
    assert list(map(gpu.other_process_count, states)) == [None, 0, 0, 1]


@pytest.mark.parametrize(
    ("replicate", "states", "kept"),
    [
        (1, "h.", [("first_try", ["heat"]), ("redone", [])]),
        (1, "hh", [("first_try", ["heat"]), ("redone", ["heat"])]),
        (0, "h.", [("", ["heat"])]),
        (1, ".", [("", [])]),
    ],
)
def test_a_throttled_block_is_done_once_more_and_both_tries_are_kept_and_marked(replicate, states, kept):
    given = iter(states)

    def attempt():
        return block({"replicate": replicate, "throttled": ["heat"] if next(given) == "h" else []})

    marks = ("first_try", "redone")
    tries = list(jobs._retry_throttled(attempt))
    assert [("".join(m for m in marks if getattr(record, m)), record.throttled) for record in tries] == kept


def test_a_block_left_at_its_first_try_is_not_complete():
    records = [block({"arms": {"scan_batched": {"status": "ok"}}, "first_try": first}) for first in (False, True)]
    assert list(map(schedule._is_complete, records)) == [True, False]
