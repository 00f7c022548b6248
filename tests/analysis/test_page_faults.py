"""Page faults are told beside the ratios, and a block whose arms fault in some processes alone says so."""

from types import SimpleNamespace

import pandas as pd
import pytest

from harness.analysis import page_faults
from harness.analysis.gaps import GAPS
from harness.report import memory
from harness.study.study import NAMED, Study
from tests import made

CONFIGURATION = {"framework": "jax", "execution": "xla"}
MS = 1_000_000


def block(replicate, in_loop, batched, calls=1, fault_ns=1500.0):
    """A process in which a call takes 20 ms of either arm, with so many page faults."""
    arms = {
        f"scan_{projection}": {
            "calls": calls,
            "samples_ns": [20 * MS * calls] * 5,
            "faults": [count * calls] * 4 + [10**6],  # one odd sample does not decide
        }
        for projection, count in (("in_loop", in_loop), ("batched", batched))
    }
    rates = {"flops_s": 1.0, "scale_ns": {1: 1.0}, "fault_ns": fault_ns} if replicate == 0 else None
    place = {"workload": NAMED["vocab"].model_dump(), "pass": "train", "replicate": replicate}
    return made.block({**CONFIGURATION, **place, "rates": rates, "arms": arms})


def tables(blocks, setting="held"):
    gap = ("jax", "cpu", 1, "xla", "fp32", "vocab", "train", "scan", "in_loop", "batched")
    gaps = pd.DataFrame([(*gap, 0.92, 0.9, 0.94, 2, 5, "faster", True, 0.0, "faster")], columns=GAPS)
    study = Study(memory=setting)
    return SimpleNamespace(faults=page_faults.faults(blocks), study=study, gaps=gaps)


@pytest.mark.parametrize("calls", [1, 8])
def test_faults_are_those_of_a_call_and_their_share_is_of_its_time(calls):
    found = page_faults.faults([block(0, 0, 8000, calls)])
    by = found.set_index("projection")
    assert by.faults.to_dict() == {"in_loop": 0, "batched": 8000}
    assert by.share["batched"] == pytest.approx(8000 * 1.5e-6 / 0.020)


def test_an_arm_that_faults_in_some_processes_alone_is_told():
    mixed = tables([block(0, 0, 8000), block(1, 0, 0)])
    assert list(page_faults.arms_with_uneven_faults(mixed.faults, 0.02).projection) == ["batched"]
    (line,) = memory.problems(mixed)
    assert line.startswith("uneven memory: jax xla scan, 1 thread, batched, vocab train: page faults take 0% of its")
    assert "60% in another" in line
    assert "| 0 (0.0%) | 4,000 (30.0%) | in some processes alone |" in memory.section_text(mixed)


def test_an_arm_that_faults_everywhere_is_told_beside_its_ratio_and_is_not_uneven():
    alike = tables([block(0, 0, 2000), block(1, 0, 2010)])
    assert memory.problems(alike) == []
    text = memory.section_text(alike)
    assert "in 1 of 1 gap" in text
    assert "0.92 [0.90, 0.94] faster | 0 (0.0%) | 2,005 (15.0%) |  |" in text


def test_no_faults_are_said_and_older_records_say_nothing():
    said = memory.section_text(tables([block(0, 1, 0), block(1, 0, 1)], "default"))
    assert said.startswith("Workers give memory back and take it anew as glibc does by default.")
    assert said.endswith("in none of 1 gap.")
    old = block(0, 0, 0)
    for arm in old.arms.values():
        arm.faults = []
    assert memory.section_text(tables([old])) == ""
    assert memory.problems(tables([old])) == []


def test_a_share_that_was_not_measured_is_missing():
    assert page_faults.faults([block(0, 5, 5, fault_ns=None)]).share.isna().all()
