"""Compiling before anything is timed: caches are kept, and first calls are no results. NumPy stands for a framework."""

import pytest

from harness.records.schema import BlockRecord
from harness.run import jobs, session
from harness.study.configuration import Configuration
from harness.study.matrix import Job
from harness.study.study import Study, load_study
from tests.conftest import FOURTH, add_frameworks

STUDY = {"frameworks": ["numpy"], "recurrences": ["unrolled"], "projections": ["in_loop", "batched"], "threads": [1]}
STUDY |= {"workloads": ["B=2,T=3,I=2,H=4,O=3"], "rounds": 3, "processes": 2, "precisions": ["fp64"]}


@pytest.mark.parametrize(
    ("compile_first", "replicate", "device", "anew"),
    [
        (False, 0, "cpu", True),
        (False, 1, "cpu", False),
        (False, 0, "gpu", True),
        (False, 1, "gpu", True),
        (True, 0, "cpu", False),
        (True, 1, "gpu", False),
    ],
)
def test_a_worker_compiles_anew_where_its_first_calls_are_results_and_always_on_a_gpu(
    compile_first, replicate, device, anew
):
    job = Job(Configuration("numpy", device, 1, "eager", "fp32"), replicate, ())
    assert jobs.compiles_anew(Study(compile_first=compile_first), job) == anew


def test_first_calls_and_rates_are_no_results_of_a_study_that_compiles_first(monkeypatch, tmp_path):
    add_frameworks(monkeypatch, FOURTH)
    found = {}
    for first in (True, False):
        study = load_study(None, None, STUDY | {"compile_first": first})
        records = session.run(study, tmp_path / str(first), False, "a command")
        found[first] = [record for record in records if isinstance(record, BlockRecord) and record.kind == "block"]
    assert len(found[True]) == len(found[False]) == 4
    for block in found[True]:
        assert block.rates is None
        assert all(arm.has_times and arm.first_call_ns is None for arm in block.arms.values())
    assert all(block.rates for block in found[False] if block.replicate == 0)
    assert all(arm.first_call_ns for block in found[False] for arm in block.arms.values())


def test_programs_are_called_once_more_before_any_is_timed(monkeypatch, tmp_path):
    add_frameworks(monkeypatch, FOURTH)
    timed = []
    work = jobs.work

    def noting(context, job, left_s, stage):
        timed.extend(block.timed for block in job.blocks)
        return work(context, job, left_s, stage)

    monkeypatch.setattr(jobs, "work", noting)
    session.run(
        load_study(None, None, STUDY | {"compile_first": True, "peaks": False}), tmp_path / "run", False, "a command"
    )
    assert timed == sorted(timed)
    assert timed.count(False) == 2 + 2  # the fp64 check of both passes, and each block of the first process
