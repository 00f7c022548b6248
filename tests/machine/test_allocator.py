"""Memory is held: a worker is not given the same pages twice."""

import os
import subprocess
import sys

import numpy as np
import pytest

from harness.errors import UsageError
from harness.machine import allocator
from harness.run import jobs
from harness.run.launch import Worker
from harness.study.configuration import Configuration
from harness.study.matrix import BlockSpec, Framework, Job, WorkerEnvironment
from harness.study.study import Study
from harness.worker import __main__ as worker
from harness.worker.__main__ import minor_faults
from harness.worker.messages import BlockRequest, UnwrittenAnswer
from impls.interface import Arm, Settings
from tests.conftest import SMALL

CALLS = """
import resource
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def call():
    return np.ones(48 << 20, np.uint8)  # above what glibc ever keeps of its own accord
call()
before = faults()
for _ in range(5):
    call()
print((faults() - before) / 5)
"""


def faults_a_call(setting):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment | allocator.variables(setting), capture_output=True, check=True
    )
    return float(done.stdout)


def test_memory_that_is_held_is_not_taken_anew():
    assert faults_a_call("default") >= 10  # with pages of 4 KiB it is 12,288, with those of 2 MiB 24
    assert faults_a_call("held") <= 1


def test_page_faults_are_counted_of_this_process():
    before = minor_faults()
    page = bytearray(64 << 20)
    page[:: 1 << 12] = b"1" * len(page[:: 1 << 12])
    assert minor_faults() - before >= 10


@pytest.mark.parametrize("setting", allocator.ALLOCATORS)
def test_an_allocator_that_is_not_installed_is_refused(monkeypatch, setting):
    monkeypatch.setattr(allocator, "find_library", lambda name: None)
    with pytest.raises(UsageError, match=f"memory {setting} was asked for, but no lib"):
        allocator.variables(setting)


def test_an_allocator_that_is_installed_is_loaded_before_all_else(monkeypatch):
    monkeypatch.setattr(allocator, "find_library", lambda name: "libtcmalloc.so.4" if name == "tcmalloc" else None)
    assert allocator.variables("tcmalloc") == {"LD_PRELOAD": "libtcmalloc.so.4"}


@pytest.mark.parametrize(("setting", "there"), [("held", True), ("default", False)])
def test_every_worker_of_a_study_takes_memory_as_it_says(tmp_path, monkeypatch, setting, there):
    started = []
    monkeypatch.setenv("MALLOC_TOP_PAD_", "77")  # what the user has set reaches no worker

    def worker(name, variables, timeout_s):
        started.append(variables)
        return Worker.__new__(Worker)

    own = WorkerEnvironment("cpu", 1, {"A": "1"})
    bench = jobs.RunContext(
        Study(memory=setting), {"x": Framework("x", environments=[own])}, tmp_path, tmp_path, None, {}, worker=worker
    )
    todo = BlockSpec(SMALL, "forward", (Arm("unrolled", "none"),), 1, timed=True)
    jobs.worker_of(bench, Job(Configuration("x", "cpu", 1, "eager", "fp32"), 0, (todo,)))
    assert started == [{"A": "1"} | (allocator.HELD if there else {})]


def test_a_framework_s_oserror_is_no_full_disk(tmp_path, stored, monkeypatch):
    """Only a file of ours that cannot be written ends a run."""
    asked = {"workload": SMALL, "weights": str(stored), "steps": SMALL.T, "pass_": "forward", "execution": "eager"}
    asked |= {"arms": [], "rounds": None, "seed": 1, "seconds": 1.0, "counted": [], "control": True, "calls": None}
    request = BlockRequest(**asked, hurried=False, overwrites=False, outputs=str(tmp_path))
    elsewhere = request.model_copy(update={"outputs": str(tmp_path / "nowhere")})

    def fails(backend, todo, meters, keep, stage):
        raise OSError("no such device")

    monkeypatch.setattr(worker.timing, "block", fails)
    with pytest.raises(OSError, match="no such device"):
        worker.run_block(None, Settings("cpu", 1, "fp32"), request, print)

    def keeps(backend, todo, meters, keep, stage):
        keep("unrolled_none", "after", {"y": np.zeros(1, np.float32)})

    monkeypatch.setattr(worker.timing, "block", keeps)
    assert isinstance(worker.run_block(None, Settings("cpu", 1, "fp32"), elsewhere, print), UnwrittenAnswer)
