"""scripts/output_check.py, with a few small programs: no false alarm, every planted fault that shows is caught."""

import csv

import pytest

from scripts import output_check


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
