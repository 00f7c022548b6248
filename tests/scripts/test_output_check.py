"""scripts/output_check.py, with a few small programs: no false alarm, every planted fault that shows is caught."""

import csv

import pytest

from harness.run import session
from harness.study.study import Study, Workload
from impls.interface import Arm
from scripts import output_check
from tests.conftest import HERE


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["torch"], indirect=True)
def test_programs_are_right_and_planted_faults_are_caught(tmp_path, monkeypatch, asked_once, framework):
    """Of a forward pass the check takes a sample of the sequences, and the faults are planted in that."""
    monkeypatch.setattr(output_check, "CORNERS", ())
    monkeypatch.setattr(output_check, "OPERATIONS", (1e6, 1e6))
    monkeypatch.setattr("harness.verify.tolerance.SAMPLED_BYTES", 1)
    selected = ["--framework", framework, "--execution", "eager"]
    monkeypatch.setattr("sys.argv", ["output_check.py", str(tmp_path), "--cases", "12", *selected])
    output_check.main()
    with (tmp_path / "cases.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    programs = [row for row in rows if not row["fault"]]
    assert len(programs) == 12
    assert {row["status"] for row in programs} <= {"ok", "unavailable"}
    assert {row["pass"] for row in programs if row["status"] == "ok"} >= {"forward", "train"}
    planted = {fault: [row["status"] for row in rows if row["fault"] == fault] for fault in output_check.FAULTS}
    assert all(planted.values())
    assert set(planted["dropped_bias"] + planted["shifted_step"]) == {"wrong"}
    assert "| all | " in (tmp_path / "table.md").read_text()


def test_what_the_study_calls_impossible_is_not_drawn(asked_once):
    """A loss of hidden states without a projection was drawn, and failed."""
    frameworks = {framework.name: framework for framework in session.probe(Study(frameworks=HERE), [1])}
    execution = {"torch": "eager", "tf": "eager", "jax": "xla"}[HERE[0]]
    workload = Workload(name="w", B=3, T=4, I=2, H=5, O=6)
    possible = {
        (projection, pass_): output_check.is_possible(
            output_check.ProgramCase((HERE[0], execution), 1, workload, pass_, Arm("unrolled", projection)), frameworks
        )
        for projection in ("none", "batched")
        for pass_ in ("forward", "loss")
    }
    assert [case for case, is_possible in possible.items() if not is_possible] == [("none", "loss")]
