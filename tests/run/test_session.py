"""Whole runs, with a NumPy backend added from one directory: harness/ is not touched for it."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

from harness import report
from harness.analysis import tables
from harness.analysis.gaps import GAPS
from harness.errors import UsageError
from harness.records.store import FILE, PACKED, budgets, read_run
from harness.report import summary
from harness.run import jobs, session
from harness.run.launch import WorkerDied
from harness.study import matrix
from harness.study.data import NONE_IN_TRAINING
from harness.study.study import Study, Workload
from tests.conftest import FOURTH
from tests.made import whole

WORKLOAD = Workload(name="w", B=3, T=5, I=2, H=16, O=4, cell="rnn_tanh")
FLAGS = ["--framework", "numpy", "--threads", "1", "--workload", "B=3,T=5,I=2,H=16,O=4"]


pytestmark = pytest.mark.usefixtures("numpy_backend", "undrawn")


def study(**more):
    given = {"frameworks": ["numpy"], "threads": [1], "workloads": [WORKLOAD], "processes": 2, "rounds": 4}
    return Study(**(given | {"block_s": 0.01, "timeout_s": 60.0} | more))


def plant(mischief, tmp_path, monkeypatch):
    """Make the NumPy backend misbehave; the file is all it sees."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "mischief").write_text(mischief)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(FOURTH)},
        check=False,
    )


def statuses(records):
    """(pass, arm) -> statuses over the timed blocks."""
    found = {}
    for record in records:
        if record.kind == "block":
            for name, arm in record.arms.items():
                found.setdefault((record.pass_, name), set()).add(arm.status)
    return found


def test_a_run_from_the_command_line_ends_with_a_report(tmp_path):
    out = tmp_path / "run"
    done = command("run", *FLAGS, "--processes", "2", "--rounds", "4", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert read_run(out)[0].none_in_training == NONE_IN_TRAINING
    times, gaps, identity = (pd.read_csv(out / f"{name}.csv") for name in ("times", "gaps", "identity"))
    assert list(times.columns) == tables.TIMES
    assert list(gaps.columns) == GAPS
    assert list(identity.columns) == tables.IDENTITY
    assert set(gaps.contender) == {"in_loop", "per_step", "twin"}
    contrasts, evidence = (pd.read_csv(out / f"{name}.csv") for name in ("contrasts", "evidence"))
    assert set(zip(contrasts.contender, contrasts.baseline, strict=True)) == {("per_step", "in_loop")}
    assert (evidence.missing == "everything: NumPy counts nothing").all()
    assert len(evidence) == 2 * (4 + 2)  # passes; unrolled arms, and per_step and batched of given
    blocks = [record for record in read_run(out) if record.kind == "block"]
    counted = [record for record in blocks if any(arm.evidence for arm in record.arms.values())]
    first = [("unrolled", 0)] * 2 + [("given", 0)] * 2  # of two passes; whatever is measured at all is counted
    assert [(record.part, record.replicate) for record in counted] == first
    measured = times[times.status == "ok"]
    assert set(measured.projection) == {"none", "in_loop", "per_step", "batched", "twin"}
    assert (measured.median_s > 0).all()
    named = times[times.status != "ok"]
    assert named.reason.notna().all()
    assert {"NumPy has no symbolic loop", "NumPy knows no GPU"} <= set(named.reason)
    assert identity.fp64_rel_error.max() < 1e-12
    text = whole(out)
    assert "NumPy has no symbolic loop" in text
    assert f"python -m harness run {' '.join(FLAGS)} --processes 2 --rounds 4" in text
    for line in (out / FILE).read_text().splitlines():
        assert {"schema", "key", "status", "reason"} <= set(json.loads(line))


def test_packed_records_give_the_same_report_and_broken_ones_are_refused(tmp_path):
    folder = tmp_path / "run"
    session.run(study(processes=1, passes=["forward"]), folder, False, "")
    report.write(folder, tmp_path / "plain")
    packed = gzip.compress((folder / FILE).read_bytes())
    (folder / FILE).unlink()
    (folder / PACKED).write_bytes(packed)
    report.write(folder, tmp_path / "packed")
    assert (tmp_path / "plain" / "report.md").read_bytes() == (tmp_path / "packed" / "report.md").read_bytes()
    for broken in (packed[:-9], packed[:40] + b"x" + packed[41:], b"no gzip"):
        (folder / PACKED).write_bytes(broken)
        with pytest.raises(UsageError, match=r"cannot be read|is not JSON|is no record|has schema"):
            read_run(folder)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("mischief", "status", "reason"),
    [
        ("crash", "failed", "SIGSEGV"),
        ("hang", "timeout", "nothing was heard for 5 s"),
        ("raise", "failed", "ValueError: this arm"),
    ],
)
def test_a_failing_arm_is_a_record_and_spares_the_others(mischief, status, reason, tmp_path, monkeypatch):
    plant(mischief, tmp_path, monkeypatch)
    given = {"passes": ["forward"], "recurrences": ["unrolled"], "timeout_s": 5.0 if mischief == "hang" else 60.0}
    wanted = study(processes=1, **given)
    records = session.run(wanted, tmp_path / "run", False, "")
    found = statuses(records)
    assert found["forward", "unrolled_per_step"] == {status}
    assert found["forward", "unrolled_in_loop"] == {"ok"}
    assert any(reason in record.reason for record in records[1:])
    for child in (tmp_path / "tmp").glob("child"):  # of the one that hangs: its whole group is ended
        time.sleep(0.5)
        assert not alive(int(child.read_text()))


def test_a_label_without_its_proof_is_refused(tmp_path, monkeypatch):
    """Threads that are not proven are tried below."""
    plant("recompile", tmp_path, monkeypatch)
    records = session.run(study(processes=1, passes=["forward"]), tmp_path / "run", False, "")
    assert set().union(*statuses(records).values()) == {"refused"}
    assert "compiled while" in records[-1].reason
    report.write(tmp_path / "run")
    assert "Nothing was measured" in (tmp_path / "run" / "report.md").read_text()


def test_a_missing_framework_asked_for_is_refused(tmp_path, monkeypatch):
    plant("missing", tmp_path, monkeypatch)
    done = command("run", *FLAGS, "--out", str(tmp_path / "run"))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "numpyx is not installed" in done.stderr
    assert not (tmp_path / "run").exists()


def test_resume_does_what_is_missing_and_nothing_else(tmp_path):
    folder = tmp_path / "run"
    whole = session.run(study(), folder, False, "")
    keys = [record.key for record in whole]
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).write_text("".join(lines[:-1]) + lines[-1][:40])  # the last one was cut while written
    again = session.run(study(), folder, True, "")
    assert sorted(record.key for record in again) == sorted(keys)
    assert (folder / FILE).read_text().splitlines(keepends=True)[:-1] == lines[:-1]


def test_resume_refuses_another_study_and_no_records(tmp_path):
    session.run(study(processes=1, passes=["forward"]), tmp_path / "run", False, "")
    with pytest.raises(UsageError, match="another study"):
        session.run(study(processes=1, passes=["train"]), tmp_path / "run", True, "")
    with pytest.raises(UsageError, match="its workers took memory otherwise: held, and now default"):
        session.run(study(processes=1, passes=["forward"], memory="default"), tmp_path / "run", True, "")
    with pytest.raises(UsageError, match="multiplied with other libraries: as_shipped, and now plain"):
        session.run(study(processes=1, passes=["forward"], library="plain"), tmp_path / "run", True, "")
    with pytest.raises(UsageError, match="no records"):
        session.run(study(), tmp_path / "none", True, "")
    with pytest.raises(UsageError, match="not empty"):
        session.run(study(), tmp_path / "run", False, "")


def test_a_budget_that_ends_leaves_named_cells_and_no_error(tmp_path):
    ticks = iter(range(0, 10**6, 5))
    records = session.run(study(budget_s=100.0, processes=3), tmp_path / "run", False, "", lambda: float(next(ticks)))
    report.write(tmp_path / "run")
    times = pd.read_csv(tmp_path / "run" / "times.csv")
    assert 2 < len(records) < 9
    missing = times[times.status == "not_reached"]
    assert not missing.empty
    assert missing.reason.str.contains("budget|time for this process").all()


def outcome(out, *more):
    """Exit status, stderr, and the title and answer of the report, of a small run."""
    done = command("run", *FLAGS, "--rounds", "2", "--processes", "1", "--out", str(out), *more)
    title, _, answer, *_ = (out / "report.md").read_text().splitlines()
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr, title, answer


def test_a_budget_of_nothing_measures_nothing_and_says_so(tmp_path):
    status, said, title, answer = outcome(tmp_path / "run", "--budget", "0.000001")
    assert (status, title) == (1, "# Nothing was measured")
    assert "nothing was measured: the budget of 1e-06 s ended before the first block" in said
    assert answer.endswith("so this run has no answer: the budget of 1e-06 s ended before the first block.")
    done = command(
        "run", *FLAGS, "--processes", "1", "--budget", "0.000001", "--no-report", "--out", str(tmp_path / "bare")
    )
    assert done.returncode == 1
    assert "nothing was measured" in done.stderr


def test_blocks_that_are_all_refused_measure_nothing_and_say_so(tmp_path, monkeypatch):
    plant("idle", tmp_path, monkeypatch)
    status, said, title, answer = outcome(tmp_path / "run", "--pass", "forward")
    assert (status, title) == (1, "# Nothing was measured")
    assert "nothing was measured: of 6 measurements 6 refused: threads not proven: 1 set, " in said
    assert "6 refused: " in answer
    records = read_run(tmp_path / "run")
    assert set().union(*statuses(records).values()) == {"refused"}
    assert all("threads not proven" in record.reason for record in records if record.kind == "block")


@pytest.mark.parametrize("projection", ["in_loop", "none", "in_loop,none"])
def test_times_without_a_counterpart_have_a_title_of_their_own(projection, tmp_path):
    records = session.run(
        study(processes=1, projections=projection.split(","), recurrences=["unrolled"]), tmp_path, False, ""
    )
    assert "ok" in {arm.status for record in records if record.kind == "block" for arm in record.arms.values()}
    text = report.write(tmp_path).read_text()
    assert text.startswith(f"# {summary.ALONE}\n\nNothing was measured in both forms, so this run has no answer.\n")
    assert "false alarm" not in text


@pytest.mark.parametrize(
    ("selected", "title"),
    [
        ({"projections": ["batched"]}, summary.ITSELF),
        ({"projections": ["batched"], "recurrences": ["given"]}, summary.ITSELF),
        ({"recurrences": ["given"], "projections": ["per_step", "batched"]}, summary.COMPARED),
        ({"label": "quick"}, f"{summary.COMPARED} — smoke run"),
    ],
)
def test_runs_with_gaps_are_titled_by_what_they_compare(selected, title, tmp_path):
    session.run(study(processes=1, passes=["forward"], **selected), tmp_path, False, "")
    assert report.write(tmp_path).read_text().startswith(f"# {title}\n")


def test_a_run_whose_every_other_form_failed_is_not_called_the_harness_s_own_test(tmp_path, monkeypatch):
    plant("raise", tmp_path, monkeypatch)
    wanted = study(processes=1, passes=["forward"], recurrences=["given"])
    session.run(wanted, tmp_path / "run", False, "")
    text = report.write(tmp_path / "run").read_text()
    assert text.startswith(
        f"# {summary.ALONE}\n\nThis run measured the batched form against itself and nothing else, so"
    )


def test_a_run_gone_on_with_under_another_budget_says_so(tmp_path):
    def sitting(budget_s, resume):
        ticks = iter(range(0, 10**6, 5))
        wanted = study(budget_s=budget_s, passes=["forward"])
        return session.run(wanted, tmp_path / "run", resume, f"--budget {budget_s}", lambda: float(next(ticks)))

    sitting(60.0, False)
    assert budgets(sitting(60.0, True)) == [60.0]
    assert budgets(sitting(70.0, True)) == [60.0, 70.0]
    report.write(tmp_path / "run")
    times = pd.read_csv(tmp_path / "run" / "times.csv")
    assert "the budget of 70 s ended first" in set(times[times.status == "not_reached"].reason)
    said = whole(tmp_path / "run")
    assert "budget 60 s, and resumed with: 70 s." in said
    assert "--budget 60.0\n--budget 70.0\n" in said
    assert budgets(sitting(None, True)) == [60.0, 70.0, None]
    report.write(tmp_path / "run")
    assert "not_reached" not in (tmp_path / "run" / "times.csv").read_text()


@pytest.mark.parametrize(("replicate", "found"), [(0, []), (1, ["left.bin"])])
def test_first_calls_that_are_results_find_an_empty_cache(replicate, found, tmp_path):
    seen = []

    def worker(name, variables, timeout_s):
        seen.extend(path.name for path in (tmp_path / "cache" / "numpy-cpu-1-eager-fp32").iterdir())
        raise WorkerDied("failed", "enough seen", "")

    given = study(processes=2, passes=["forward"], recurrences=["unrolled"])
    frameworks = session.probe(given, [1])
    job = matrix.replicate_jobs(matrix.make_plan(given, frameworks, [1]), given, replicate)[0]
    bench = jobs.RunContext(given, {"numpy": frameworks[0]}, tmp_path, tmp_path / "cache", None, {}, worker=worker)
    (tmp_path / "cache" / "numpy-cpu-1-eager-fp32").mkdir(parents=True)
    (tmp_path / "cache" / "numpy-cpu-1-eager-fp32" / "left.bin").touch()
    assert [record.status for record in jobs.work(bench, job, lambda: 1.0, print)] == ["failed"]
    assert seen == found


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    arguments = [sys.executable, "-m", "harness", "run", *FLAGS, "--processes", "500", "--budget", "0"]
    environment = {**os.environ, "PYTHONPATH": str(FOURTH)}
    process = subprocess.Popen(
        [*arguments, "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _lines(out / FILE) > 4:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "--resume" in said.splitlines()[-1]
    assert len(read_run(out)) > 4
    assert (out / "report.md").exists()


def _lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def test_records_of_another_schema_are_refused(tmp_path):
    (tmp_path / FILE).write_text('{"schema": 99, "key": "k"}\n')
    with pytest.raises(UsageError, match="schema 99"):
        read_run(tmp_path)
