"""What a run survives: kills at any instant, a full disk, cut records, workers that die or lie."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from harness import cli, environment, records, report, run
from harness.records import FILE, held, read
from harness.refused import Refused
from scripts import kills
from tests.conftest import FOURTH
from tests.test_run import FLAGS, plant, statuses, study

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("numpy_backend")]
KILLS = 10
RUN = ["run", *FLAGS, "--processes", "6", "--rounds", "4", "--budget", "0"]


def start(out, *more):
    environment = {**os.environ, "PYTHONPATH": str(FOURTH)}
    command = [sys.executable, "-m", "harness", *RUN, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def test_kills_at_random_instants_lose_and_double_nothing(tmp_path):
    """The short form of scripts/kills.py, whose long form is in the committed report's appendix."""
    found = kills.disturbed(tmp_path, KILLS, seed=4, processes=6)
    assert sum(found["kills"].values()) == KILLS
    assert found["left_running"] == 0
    assert (found["lost"], found["doubled"], found["finished"], found["same_blocks"]) == (0, 0, True, True)


def test_a_killed_parent_leaves_no_worker_behind(tmp_path):
    process = start(tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert children
    assert not alive


def test_what_the_machine_is_does_not_depend_on_a_child_that_is_killed(monkeypatch):
    """A killed child once gave the first record a machine that no later run was on: nothing could resume it."""
    with monkeypatch.context() as no_children:
        no_children.setattr(os, "fork", lambda: pytest.fail("a child"))
        no_children.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a child"))
        assert environment.machine()["cpu"]
    killed = subprocess.CompletedProcess("git", -signal.SIGKILL, "", "")
    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: killed)
    with pytest.raises(Refused, match="SIGKILL"):
        environment.code()


def test_the_report_does_not_depend_on_the_order_of_the_records(tmp_path):
    run.run(study(processes=3), tmp_path / "a", False, "")
    (tmp_path / "b").mkdir()
    heading, *lines = kills.lines(tmp_path / "a")
    random.Random(1).shuffle(lines)
    (tmp_path / "b" / FILE).write_text(heading + "".join(lines))
    for name in ("a", "b"):
        report.write(tmp_path / name)
    for name in ("report.md", "times.csv", "gaps.csv", "identity.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("mischief", "reason"),
    [("kill", "SIGKILL"), ("noise", ""), ("exit", "ended with status 3")],
)
def test_what_a_worker_does_stays_with_its_arm(mischief, reason, tmp_path, monkeypatch):
    plant(mischief, tmp_path, monkeypatch)
    found = run.run(study(processes=1, passes=["forward"]), tmp_path / "run", False, "")
    assert statuses(found)["forward", "unrolled_per_step"] == {"failed" if reason else "ok"}
    assert statuses(found)["forward", "unrolled_in_loop"] == {"ok"}
    assert any(reason in record["reason"] for record in found[1:])


def test_a_framework_that_fails_to_import_is_missing_with_its_last_words(tmp_path, monkeypatch):
    plant("broken", tmp_path, monkeypatch)
    (framework,) = run.probe(study(), [1])
    assert "libnothing.so" in framework.missing


def command(monkeypatch, capsys, *arguments):
    """Exit status and stderr of the command line, in this process."""
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return left.value.code, capsys.readouterr().err


def test_who_draws_figures_ends_with_a_report_that_is_killed():
    script = (
        "import time\nfrom harness.report.figures import drawers\n"
        "drawers().submit(time.sleep, 600)\nprint(flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as report:
        report.stdout.readline()
        drawing = psutil.Process(report.pid).children()
        assert drawing
        report.kill()
    _, alive = psutil.wait_procs(drawing, timeout=10)
    assert not alive


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, monkeypatch, capsys):
    left = iter([True] * 3)
    real = os.fsync

    def fsync(file):
        if not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as full:
        full.setattr(records.os, "fsync", fsync)
        status, said = command(full, capsys, *RUN, "--out", str(tmp_path / "run"))
    assert status == 1
    assert "No space left on device" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    status, _ = command(monkeypatch, capsys, *RUN, "--out", str(tmp_path / "run"), "--resume")
    assert status == 0
    found = read(tmp_path / "run")
    assert len({record["key"] for record in found}) == len(found) == 1 + 2 + 12


def test_two_runs_into_one_folder_are_refused(tmp_path, monkeypatch, capsys):
    run.run(study(processes=1, passes=["forward"]), tmp_path / "run", False, "")
    before = (tmp_path / "run" / FILE).read_bytes()
    with held(tmp_path / "run"), pytest.raises(Refused, match="another run is writing"):
        run.run(study(processes=1, passes=["forward"]), tmp_path / "run", True, "")
    assert (tmp_path / "run" / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("what", "why"), [("machine", "another machine"), ("versions", "other versions"), ("code", "other code")]
)
def test_records_of_another_machine_or_code_are_not_added_to(what, why, tmp_path):
    folder = tmp_path / "run"
    run.run(study(processes=1, passes=["forward"]), folder, False, "")
    heading, *lines = kills.lines(folder)
    changed = json.loads(heading)
    changed["basis"][what] = {"code": {"commit": "x", "hash": "x"}}.get(what, {"numpy": {"numpy": "0"}})
    (folder / FILE).write_text(json.dumps(changed) + "\n" + "".join(lines))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(Refused, match=why):
        run.run(study(processes=1, passes=["forward"]), folder, True, "")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_first_record_can_be_gone_on_with(tmp_path):
    folder = tmp_path / "run"
    run.run(study(processes=1, passes=["forward"]), folder, False, "")
    (folder / FILE).write_text((folder / FILE).read_text()[:100])  # the heading, cut while written
    assert len(run.run(study(processes=1, passes=["forward"]), folder, True, "")) == 3
    for path in folder.iterdir():
        if path.name != "weights":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(run.run(study(processes=1, passes=["forward"]), folder, True, "")) == 3
