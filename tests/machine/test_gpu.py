"""What is asked of a GPU's driver, and what is done when it was throttled; the driver and the GPU are made up here."""

import sys
import time
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
    ("states", "why"),
    [
        ({"after": {}}, []),
        ({"after": {"reasons": ["power limit"]}}, []),
        ({"after": {"reasons": ["heat (software)"]}}, ["heat (software)"]),
        ({"after": {"limited_ns": {"heat": 6, "power limit": 9}}}, ["heat"]),
        ({"after": {"limited_ns": {"heat": 5, "reliability": 9}}}, []),  # not told before: no growth is known
        ({"during": {"reasons": ["heat (hardware)"]}, "after": {}}, ["heat (hardware)"]),
        ({"during": {}, "after": {"reasons": ["heat (software)"]}}, []),  # not while it was timed
        ({"after": {"reasons": None}}, []),
    ],
)
def test_what_counts_as_throttled(states, why):
    seen = {"before": CALM} | {moment: replace(CALM, **told) for moment, told in states.items()}
    assert gpu.throttle_reasons(seen) == why


@pytest.mark.parametrize(
    ("visible", "named"),
    [
        (None, ("nvmlDeviceGetHandleByIndex", 0)),
        ("2,0", ("nvmlDeviceGetHandleByIndex", 2)),
        ("GPU-8a,GPU-9b", ("nvmlDeviceGetHandleByUUID", "GPU-8a")),
        ("MIG-1c", ("nvmlDeviceGetHandleByUUID", "MIG-1c")),
        ("-1", None),
        ("", None),
    ],
)
def test_the_gpu_looked_at_is_the_one_that_workers_see(monkeypatch, visible, named):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    asked = []

    class Driver(NVML):
        def __getattr__(self, name):
            def ask(*arguments):
                asked.append((name, *arguments))
                return "handle"

            return ask if "GetHandle" in name else super().__getattr__(name)

    found = gpu.state(Driver())
    assert asked == ([named] if named else [])
    assert (found is None) == (named is None)


@pytest.mark.parametrize(("told", "is_there"), [({"nvmlDeviceGetCount": 1}, True), ({"nvmlDeviceGetCount": 0}, False)])
def test_nvml_is_there_where_it_knows_a_gpu(monkeypatch, told, is_there):
    driver = NVML(nvmlInit=None, **told)
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    assert (gpu.nvml.__wrapped__() is driver) == is_there


@pytest.mark.parametrize("module", [NVML(), None])
def test_nvml_that_cannot_start_or_is_not_installed_is_none(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert gpu.nvml.__wrapped__() is None


def test_no_error_of_a_driver_ends_a_run():
    assert gpu.facts(NVML()) == {}
    assert gpu.state(NVML()) is None
    found = gpu.state(NVML(nvmlDeviceGetHandleByIndex=0))
    assert found == State(None, None, None, None, None, None, {})
    assert gpu.throttle_reasons({"before": found, "after": found}) == []


def test_a_watch_looks_only_while_it_is_told_to_and_what_it_saw_is_merged():
    looks = iter(range(10**6))
    watch = gpu.Watch(lambda: replace(CALM, sm_mhz=1000 - next(looks) % 2, reasons=["power limit"]), every_s=0.001)
    with watch:
        time.sleep(0.02)
        assert watch.active_states == []
        watch.set_active(True)
        while len(watch.active_states) < 3:
            time.sleep(0.001)
        watch.set_active(False)
    count = len(watch.active_states)
    time.sleep(0.01)
    assert len(watch.active_states) == count
    found = gpu.merged([*watch.active_states, replace(CALM, processes=None, temperature_c=50)])
    assert (found.sm_mhz, found.temperature_c, found.reasons, found.processes) == (999, 50, ["power limit"], [7])
    assert list(watch.states) == ["before", "during", "after"]
    assert watch.states["during"] == gpu.merged(watch.active_states)


@pytest.mark.parametrize("looks", [[None], [CALM, None]])
def test_where_a_gpu_cannot_be_looked_at_there_are_no_states(looks):
    given = iter(looks)
    with gpu.Watch(lambda: next(given)) as watch:
        watch.set_active(True)
    assert watch.states == {}


def test_a_gpu_that_was_not_looked_at_while_it_worked_has_its_states_around_that():
    with gpu.Watch(lambda: CALM, every_s=60.0) as watch:
        watch.set_active(True)
    assert watch.states == {"before": CALM, "after": CALM}


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
