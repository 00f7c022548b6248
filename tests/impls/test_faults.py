"""A fault planted in each framework's model is caught, its cell wrong, its time withheld."""

import re

import pandas as pd
import pytest

from harness import report
from harness.analysis.tables import Tables
from harness.report import causes
from harness.run import session
from harness.study.study import Study, Workload
from harness.verify import output_check
from tests.faults import FAULTS, PLANTED, SOUND, SWAPPED, size_of
from tests.made import whole

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]
MISSED_IN_FORWARD = {"missing_gradient", "other_target"}  # a forward pass has no gradients to miss, and no target
SPARED = {"dropped_bias": {"none"}, "lowered": {"none"}}  # projection none does not run the faulty line


@pytest.fixture
def broken(framework, faulty):
    return faulty("broken", framework)


def measured(broken, folder, planted):
    workloads = [Workload(name=fault, B=3, T=5, I=size_of(fault), H=16, O=4, cell="rnn_tanh") for fault in planted]
    given = {"frameworks": [broken], "threads": [1], "workloads": workloads}
    study = Study(**given, processes=1, rounds=3, block_s=0.01)
    records = session.run(study, folder, False, "")
    report.write(folder)
    return records, pd.read_csv(folder / "times.csv")


def expected(fault, pass_, projection):
    if fault in (SOUND, SWAPPED) or projection in SPARED.get(fault, ()):
        return "ok"
    return "ok" if fault in MISSED_IN_FORWARD and pass_ == "forward" else "wrong"


def test_each_fault_is_caught_and_its_time_withheld(broken, tmp_path):
    records, times = measured(broken, tmp_path / "run", PLANTED)
    cells = times[times.status.isin(["ok", "wrong"])]
    assert set(cells.workload) == set(PLANTED)
    for row in cells.to_dict("records"):
        projection = "batched" if row["projection"] == "twin" else row["projection"]
        assert row["status"] == expected(row["workload"], row["pass"], projection), row
        assert (row["status"] == "wrong") == bool(pd.isna(row["median_s"]))
    assert not any(arm.samples_ns for r in records[1:] for arm in r.arms.values() if arm.status == "wrong")
    text = whole(tmp_path / "run")
    for fault in FAULTS:
        assert re.search(rf"wrong: {broken} eager unrolled, 1 thread, \w+, {fault} ", text)
    # A form that was swapped for another passes the gates, and does not count as what it is called.
    added = causes.added_products(Tables(records))
    added = added[added.projection == "in_loop"].groupby(["workload", "pass"]).found.unique()
    assert {key: list(found) for key, found in added.items()} == {
        (SOUND, "forward"): [5], (SOUND, "train"): [15], (SWAPPED, "forward"): [1], (SWAPPED, "train"): [3],
    }  # fmt: skip


@pytest.mark.parametrize("framework", ["torch"], indirect=True)
def test_without_the_gates_they_pass(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(output_check, "within_bounds", lambda found, bound: True)
    records, _ = measured(broken, tmp_path / "run", ["dropped_bias", "missing_gradient"])
    assert {arm.status for r in records[1:] for arm in r.arms.values()} == {"ok"}
