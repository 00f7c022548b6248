"""Which cells had which gate, of made-up records and of a run with its verification; frameworks are not needed."""

import pytest

from harness.analysis import loading
from harness.analysis.tables import Tables
from harness.cli import app as cli
from harness.cli import verify
from harness.errors import UsageError
from harness.machine import environment
from harness.records.schema import BlockRecord, RunHeaderRecord
from harness.records.store import latest_records, read_verification
from harness.report import appendix, summary
from harness.run import session
from harness.study.study import Study, Workload
from tests.made import block
from tests.records.test_malformed import written
from tests.run.test_session import WORKLOAD, study

ARMS = ("scan_in_loop", "scan_batched")
BASIS = {"machine": {"cpu": "c"}, "versions": {"tf": {"tensorflow": "2"}}, "code": {"commit": "c", "hash": "h"}}
BOOK, LONG = (
    Workload(name=name, B=2, T=steps, I=1, H=4, O=3, cell="gru") for name, steps in (("book", 9), ("long", 50))
)


def heading(**changed):
    made = Study(workloads=[BOOK, LONG], threads=[1], frameworks=["tf"])
    weights = {f"{name}.weights.safetensors": name for name in ("book", "long")}
    own = {"cells": [], "absent": [], "missing": [], "weights": weights, "basis": BASIS | changed, "environments": {}}
    own |= {"key": "study-0", "kind": "study", "status": "ok", "reason": "", "study": made.model_dump(), "command": "c"}
    return RunHeaderRecord.model_validate(own)


def record(kind, workload, steps=None, precision="fp32", errors=None, statuses=None):
    """A block or a verification of both arms; `errors` by arm, in a quantity y whose bound is 1e-6."""
    quantities = {name: {"y": [1e-9, (errors or {}).get(name, 1e-8), True, 0.0]} for name in ARMS}
    arm = {"first_call_ns": 9, "samples_ns": [8, 9] if kind == "block" else []}
    arms = {name: arm | {"status": (statuses or {}).get(name, "ok"), "quantities": quantities[name]} for name in ARMS}
    what = {"framework": "tf", "device": "cpu", "threads": 1, "execution": "graph", "precision": precision}
    what |= {"workload": workload.model_dump(), "pass": "forward", "steps": steps or workload.T, "replicate": 0}
    key = f"{kind}{workload.name}{steps}{precision}-0"
    bounds = {"projected": {"y": [1e-6, 1e-6]}}
    return block({"key": key, "kind": kind, **what, "bounds": bounds, "arms": arms})


SHORT = record("check", BOOK, 3, "fp64")
BLOCKS = [record("block", BOOK), record("block", LONG)]


def gates_of(tables):
    return {(row["workload"], row["projection"]): row["fp64_gate"] for row in tables.identity.to_dict("records")}


def test_a_short_check_is_not_called_both_gates():
    tables = Tables([heading(), SHORT, *BLOCKS])
    assert set(gates_of(tables).values()) == {"3 steps of book"}
    assert summary.correctness_summary(tables).startswith(
        "All compute the same: of 4 cells none had both gates at full size; 4 passed the fp32 gate at full size and "
        "the fp64 gate at 3 steps of book alone. Outputs"
    )


def test_a_cell_without_a_check_in_fp64_had_one_gate():
    tables = Tables([heading(), *BLOCKS])
    assert set(gates_of(tables).values()) == {"none"}
    assert "; 4 passed the fp32 gate at full size and were not verified in fp64. " in summary.correctness_summary(
        tables
    )
    assert "in fp64, and at most" not in summary.correctness_summary(tables)


def test_a_verification_at_full_size_speaks_for_its_workload_and_arms():
    cut = record("check", BOOK, precision="fp64", errors={"scan_batched": 3e-8}, statuses={"scan_in_loop": "failed"})
    tables = Tables([heading(), SHORT, *BLOCKS], [heading(), cut])
    assert gates_of(tables) == {
        ("book", "batched"): "full size",
        ("book", "in_loop"): "3 steps of book",
        ("long", "batched"): "9 steps of book",
        ("long", "in_loop"): "3 steps of book",
    }
    said = summary.correctness_summary(tables)
    assert (
        "of 4 cells 1 passed both gates at full size; 2 passed the fp32 gate at full size and the fp64 gate at " in said
    )
    assert "| 3 steps of book: 2 |" in appendix.identity(tables)
    errors = tables.identity.set_index(["workload", "projection"]).fp64_rel_error
    assert errors["book", "batched"] == 3e-8


def test_the_error_beside_a_gate_at_full_size_is_of_that_size():
    """The short check's is larger here."""
    short = record("check", BOOK, 3, "fp64", errors={"scan_batched": 5e-8})
    tables = Tables([heading(), short, *BLOCKS], [heading(), record("check", BOOK, precision="fp64")])
    errors = tables.identity.set_index(["workload", "projection"]).fp64_rel_error
    assert (errors["book", "batched"], errors["long", "batched"]) == (1e-8, 5e-8)


def test_what_a_verification_finds_wrong_is_withheld():
    wrong = record("check", LONG, precision="fp64", errors={"scan_in_loop": 1e-3}, statuses={"scan_in_loop": "wrong"})
    wrong.arms["scan_in_loop"].reason = "y is off"
    tables = Tables([heading(), SHORT, *BLOCKS], [heading(), wrong])
    status = tables.times.set_index(["workload", "projection"]).status
    assert (status["long", "in_loop"], status["long", "batched"]) == ("wrong", "ok")
    assert summary.correctness_summary(tables).startswith("**2 of 4 cells are wrong** and their times withheld")


def test_fp64_itself_has_its_gate_at_full_size():
    tables = Tables([heading(), record("block", BOOK, precision="fp64")])
    assert set(gates_of(tables).values()) == {"full size"}
    assert "of 2 cells 2 are in fp64 and passed its gate at full size. " in summary.correctness_summary(tables)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"code": {"commit": "c", "hash": "other"}}, "it is not of the same code"),
        ({"machine": {"cpu": "other"}}, "it is not of the same machine"),
        ({"versions": {"tf": {"tensorflow": "3"}}}, "it is not of the same versions"),
        ({"code": {"commit": "only a page was changed", "hash": "h"}}, ""),
        ({"versions": {}}, ""),
    ],
)
def test_a_verification_of_something_else_is_not_counted_and_said_to_be_none(changed, why):
    tables = Tables([heading(), SHORT, *BLOCKS], [heading(**changed), record("check", BOOK, precision="fp64")])
    assert tables.uncounted == why
    assert ("full size" in gates_of(tables).values()) == (not why)


def test_a_verification_of_other_weights_is_not_counted():
    other = heading().model_copy(update={"weights": {"book.weights.safetensors": "other"}})
    tables = Tables([heading(), SHORT, *BLOCKS], [other, record("check", BOOK, precision="fp64")])
    assert tables.uncounted == "it is not of the same weights"


def test_outputs_held_to_the_bounds_of_another_precision_are_kept_as_no_gate(tmp_path, monkeypatch, capsys):
    flags = ["--precision", "fp64", "--bound", "fp32", "--out", str(tmp_path / "run")]
    monkeypatch.setattr("sys.argv", ["harness", "verify", *flags])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert "takes no --out beside it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def verified(numpy_backend, monkeypatch, tmp_path):
    """A folder in which a study's verification lies, at full size, as it is by default; before any run."""
    monkeypatch.setattr(environment, "cores", lambda: 2)
    made = study(precisions=["fp32", "fp64"], processes=None)
    assert verify.verify(made, None, None, tmp_path / "run", "verify") == 0
    return tmp_path / "run"


def test_a_run_counts_the_verification_beside_it_and_verifies_nothing_again(verified):
    (first, *checks) = read_verification(verified)
    assert first.command == "verify"
    checked = {(record.configuration.precision, record.steps) for record in checks}
    assert checked == {("fp32", WORKLOAD.T), ("fp64", WORKLOAD.T)}
    records = session.run(study(), verified, False, "run")
    assert {record.kind for record in latest_records(records, BlockRecord)} == {"block"}
    text = written(verified)
    cells = len(records[0].cells)
    assert f"All compute the same: of {cells} cells {cells} passed both gates at full size. " in text
    assert "is not counted" not in text
    with pytest.raises(UsageError, match=r"verification.jsonl is there already and would be lost"):
        verify.verify(study(), None, None, verified)


def test_a_run_without_one_verifies_few_steps_and_says_so(numpy_backend, tmp_path):
    records = session.run(study(processes=1), tmp_path / "run", False, "run")
    assert {record.steps for record in records if record.kind == "check"} == {3}
    assert "none had both gates at full size" in summary.correctness_summary(loading.read_tables(tmp_path / "run"))


def test_a_run_beside_a_verification_of_other_code_verifies_by_itself(verified, monkeypatch):
    monkeypatch.setattr(environment, "code_version", lambda: {"commit": "other", "hash": "other"})
    records = session.run(study(processes=1), verified, False, "run")
    assert "check" in {record.kind for record in records}
    said = "A verification lies beside the records and is not counted: it is not of the same code."
    assert said in written(verified)
