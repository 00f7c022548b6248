"""What a run survives: kills at any instant, a full disk, cut records, workers that die or lie."""

import errno
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness import report
from harness.cli import app as cli
from harness.errors import UsageError
from harness.machine import environment
from harness.records import store
from harness.records.store import FILE, PACKED, lock_folder, read_run
from harness.run import jobs, session
from harness.run.launch import Worker
from harness.study import matrix
from scripts import kills
from tests.conftest import FOURTH, HERE, add_frameworks
from tests.run.test_session import FLAGS, plant, statuses, study

pytestmark = pytest.mark.usefixtures("numpy_backend")
KILLS = 5
MODULE = "python -m harness"
RUN = ["run", *FLAGS, "--processes", "2", "--rounds", "4", "--budget", "0"]


SHORT = study(processes=1, passes=["forward"])


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    with pytest.MonkeyPatch.context() as patched:
        add_frameworks(patched, FOURTH)
        session.run(SHORT, folder, False, "")
    return folder


@pytest.fixture
def finished(short_run, tmp_path):
    """A folder of this test's own in which the short study was measured."""
    return shutil.copytree(short_run, tmp_path / "a run")


def start(out, *more):
    environment = {**os.environ, "PYTHONPATH": str(FOURTH)}
    command = [sys.executable, "-m", "harness", *RUN, "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.alone
@pytest.mark.timeout(600)
def test_kills_at_random_instants_lose_and_double_nothing(tmp_path):
    """The short form of scripts/kills.py, whose long form is in the committed report's appendix."""
    found = kills.disturb_run(tmp_path, KILLS, seed=4, processes=6)
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
        assert environment.machine_facts()["cpu"]
    killed = subprocess.CompletedProcess("git", -signal.SIGKILL, "", "")
    monkeypatch.setattr(environment.subprocess, "run", lambda *a, **k: killed)
    with pytest.raises(UsageError, match="SIGKILL"):
        environment.code_version()


def test_the_report_does_not_depend_on_the_order_of_the_records(tmp_path, undrawn):
    session.run(study(), tmp_path / "a", False, "")
    (tmp_path / "b").mkdir()
    heading, *lines = kills.record_lines(tmp_path / "a")
    random.Random(1).shuffle(lines)
    (tmp_path / "b" / FILE).write_text(heading + "".join(lines))
    for name in ("a", "b"):
        report.write(tmp_path / name)
    for name in ("report.md", "times.csv", "gaps.csv", "identity.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("mischief", "reason"),
    [("kill", "SIGKILL, which the kernel sends when memory runs out"), ("noise", ""), ("exit", "ended with status 3")],
)
def test_what_a_worker_does_stays_with_its_arm(mischief, reason, tmp_path, monkeypatch):
    plant(mischief, tmp_path, monkeypatch)
    wanted = study(processes=1, passes=["forward"], recurrences=["unrolled"])
    found = session.run(wanted, tmp_path / "run", False, "")
    assert statuses(found)["forward", "unrolled_per_step"] == {"failed" if reason else "ok"}
    assert statuses(found)["forward", "unrolled_in_loop"] == {"ok"}
    assert any(reason in record.reason for record in found[1:])


def test_a_framework_that_fails_to_import_is_missing_with_its_last_words(tmp_path, monkeypatch):
    plant("broken", tmp_path, monkeypatch)
    (framework,) = session.probe(study(), [1])
    assert "libnothing.so" in framework.missing
    assert "pip install" not in matrix.missing_reason(framework)
    assert "\n" not in matrix.missing_reason(framework)


def test_installing_is_advised_where_something_is_not_installed(tmp_path, monkeypatch):
    plant("missing", tmp_path, monkeypatch)
    (framework,) = session.probe(study(), [1])
    assert matrix.missing_reason(framework) == "numpyx is not installed: pip install '.[numpy]'"


def test_a_framework_whose_process_ends_is_not_to_be_installed(tmp_path, monkeypatch):
    plant("ends", tmp_path, monkeypatch)
    (framework,) = session.probe(study(), [1])
    said = matrix.missing_reason(framework)
    assert said.startswith("it does not start: the worker ended with status 3; ")
    assert said.endswith("first these were its words")
    assert "pip install" not in said
    assert "\n" not in said


@pytest.mark.skipif("tf" not in HERE, reason="TensorFlow is not here")
def test_a_users_keras_settings_are_named_and_not_the_package(tmp_path, monkeypatch):
    (tmp_path / ".keras").mkdir()
    (tmp_path / ".keras" / "keras.json").write_text('{"floatx": "float128"}')
    monkeypatch.setenv("HOME", str(tmp_path))
    (framework,) = session.probe(study(frameworks=["tf"]), [1])
    assert "floatx=float128" in matrix.missing_reason(framework)
    assert "pip install" not in matrix.missing_reason(framework)


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


def test_a_process_whose_parent_has_ended_before_it_asks_the_kernel_ends_too():
    script = (
        "import time\nfrom concurrent.futures import ProcessPoolExecutor\n"
        "from harness.machine.parent import end_with_parent\n"
        "def late():\n    time.sleep(1.5)\n    end_with_parent()\n"
        "ProcessPoolExecutor(1, initializer=late).submit(time.sleep, 600)\nprint(flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        children = psutil.Process(parent.pid).children()
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    assert not alive


def test_a_worker_ends_before_its_parent_when_memory_runs_out():
    with Worker("numpy", {}, timeout_s=60) as worker:
        score, end_s = Path(f"/proc/{worker.process.pid}/oom_score_adj"), time.monotonic() + 30
        while score.read_text() != "1000\n" and time.monotonic() < end_s:
            time.sleep(0.05)
        assert score.read_text() == "1000\n"
    assert Path("/proc/self/oom_score_adj").read_text() != "1000\n"


def test_a_full_disk_ends_the_run_and_loses_nothing(tmp_path, monkeypatch, capsys, undrawn):
    left = iter([True] * 3)
    real = os.fsync

    def fsync(file):
        if not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as full:
        full.setattr(store.os, "fsync", fsync)
        status, said = command(full, capsys, *RUN, "--out", str(tmp_path / "run"))
    assert status == 1
    assert "No space left on device" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    status, _ = command(monkeypatch, capsys, *RUN, "--out", str(tmp_path / "run"), "--resume")
    assert status == 0
    found = read_run(tmp_path / "run")
    blocks = 2 * 2 * 2 + 2 * 2  # processes, passes, parts; and the memory of each pass and part
    assert len({record.key for record in found}) == len(found) == 1 + 2 + blocks


def full(path):
    """Have a file take nothing, as on a full disk."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("name", ["report.md", "times.csv", "environment.json", "figures/gap-w-forward.png"])
@pytest.mark.parametrize("again", [["run", "--resume", "--out"], ["report"]])
def test_a_disk_that_is_full_while_the_report_is_drawn_keeps_the_records(name, again, finished, monkeypatch, capsys):
    out = finished
    before = (out / FILE).read_bytes()
    full(out / name)
    monkeypatch.setattr(session, "run", lambda study, folder, resume, command: read_run(folder))
    status, said = command(monkeypatch, capsys, *again, str(out))
    assert status == 1
    sentence = said.strip().splitlines()[-1]
    assert re.match(f"error: {out}.* cannot be written: No space left on device", sentence)
    assert "Traceback" not in said
    assert (out / FILE).read_bytes() == before
    if again[0] == "run":
        assert sentence.endswith(f"the records are kept, and the report can be made with: {MODULE} report '{out}'")


def test_a_disk_that_is_full_where_a_worker_writes_ends_the_run(tmp_path, monkeypatch, capsys):
    """It is no fault of an arm's, which a record of it would say."""
    real = jobs.tempfile.mkdtemp

    def mkdtemp(prefix, dir):
        return f"{dir}/nowhere" if prefix == "outputs-" else real(prefix=prefix, dir=dir)

    monkeypatch.setattr(jobs.tempfile, "mkdtemp", mkdtemp)
    status, said = command(monkeypatch, capsys, *RUN, "--out", str(tmp_path / "a b"))
    assert status == 1
    sentence = said.strip().splitlines()[-1]
    assert "outputs or text cannot be written" in sentence
    assert "No such file" in sentence
    again = f"{MODULE} {' '.join(RUN)} --out '{tmp_path / 'a b'}' --resume"
    assert sentence.endswith(f"what is done is kept. Continue with: {again}")
    assert len(read_run(tmp_path / "a b")) == 1


def test_a_verification_whose_outputs_cannot_be_kept_says_which(tmp_path, monkeypatch, capsys):
    name, real = "numpy-cpu-eager-fp32-unrolled-batched-forward.safetensors", Path.write_bytes

    def write_bytes(path, content):
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    arguments = ["verify", *FLAGS, "--pass", "forward", "--precision", "fp32", "--save-outputs", str(tmp_path / "out")]
    status, said = command(monkeypatch, capsys, *arguments)
    assert status == 1
    assert said.splitlines()[-1] == f"error: {tmp_path / 'out' / name} cannot be written: No space left on device"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_said_to_be_kept_where_nothing_is(error, tmp_path, monkeypatch, capsys):
    def probe(study, threads):
        raise error

    monkeypatch.setattr(session, "probe", probe)
    status, said = command(monkeypatch, capsys, *RUN, "--out", str(tmp_path / "run"))
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 1)
    again = f"{MODULE} {' '.join(RUN)} --out {tmp_path / 'run'}"
    assert said.splitlines()[-1].endswith(f"nothing was measured yet. Continue with: {again}")
    assert not (tmp_path / "run").exists()


def test_an_interruption_before_any_work_leaves_anothers_folder_as_it_is(finished, monkeypatch, capsys):
    """It once drew a report into a folder that the run would have been refused."""
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    monkeypatch.setattr(session, "probe", lambda study, threads: pytest.fail("work was begun"))
    status, said = command(monkeypatch, capsys, *RUN, "--out", str(finished))
    assert (status, len(said.splitlines())) == (2, 1)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_packed_records_are_gone_on_with(finished):
    """Alone they went in a circle: not empty, give --resume; no records to go on from."""
    folder = finished
    whole = read_run(folder)
    lines = (folder / FILE).read_text().splitlines(keepends=True)
    (folder / FILE).unlink()
    packed = gzip.compress("".join(lines[:-1]).encode() + lines[-1][:40].encode())
    (folder / PACKED).write_bytes(packed)
    with pytest.raises(UsageError, match="another study"):
        session.run(study(processes=1, passes=["train"]), folder, True, "")
    assert (folder / PACKED).read_bytes() == packed
    assert not (folder / FILE).exists()
    again = session.run(SHORT, folder, True, "")
    assert [record.key.rpartition("-")[0] for record in again] == [r.key.rpartition("-")[0] for r in whole]
    assert {path.name for path in folder.iterdir()} == {FILE, "weights"}


@pytest.mark.parametrize(
    "packed", [b"no gzip", gzip.compress(b"x" * 100, mtime=0)[:-9], gzip.compress(b"{}\n", mtime=0)]
)
def test_packed_records_that_are_broken_are_refused_and_left(packed, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / PACKED).write_bytes(packed)
    with pytest.raises(UsageError):
        session.run(study(), tmp_path / "run", True, "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == {PACKED: packed}


def test_a_folder_that_holds_no_run_is_not_to_be_resumed(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(UsageError, match="holds no run to continue"):
        session.run(study(), tmp_path, False, "")
    with pytest.raises(UsageError, match="no records to continue"):
        session.run(study(), tmp_path, True, "")


def test_caches_lie_apart_from_the_run_and_end_with_it(tmp_path, monkeypatch):
    """A blank in --out once parted TF_XLA_FLAGS: the cache stayed, and the next run's first calls were warm."""
    caches = []
    real = jobs.worker_of
    monkeypatch.setattr(jobs, "worker_of", lambda bench, job: caches.append(bench.cache) or real(bench, job))
    session.run(SHORT, tmp_path / "a b", False, "")
    session.run(SHORT, tmp_path / "c", False, "")
    assert len(set(caches)) == 2
    assert not any(place.parent.exists() or " " in str(place) for place in caches)
    assert {path.name for path in (tmp_path / "a b").iterdir()} == {FILE, "weights"}


def test_two_runs_into_one_folder_are_refused(finished):
    before = (finished / FILE).read_bytes()
    with lock_folder(finished), pytest.raises(UsageError, match="another run is writing"):
        session.run(SHORT, finished, True, "")
    assert (finished / FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("what", "why"), [("machine", "another machine"), ("versions", "other versions"), ("code", "other code")]
)
def test_records_of_another_machine_or_code_are_not_added_to(what, why, finished):
    folder = finished
    heading, *lines = kills.record_lines(folder)
    changed = json.loads(heading)
    changed["basis"][what] = {"code": {"commit": "x", "hash": "x"}}.get(what, {"numpy": {"numpy": "0"}})
    (folder / FILE).write_text(json.dumps(changed) + "\n" + "".join(lines))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=why):
        session.run(SHORT, folder, True, "")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_killed_before_its_first_record_can_be_gone_on_with(finished):
    folder = finished
    (folder / FILE).write_text((folder / FILE).read_text()[:100])  # the heading, cut while written
    assert len(session.run(SHORT, folder, True, "")) == 4
    for path in folder.iterdir():
        if path.name != "weights":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert len(session.run(SHORT, folder, True, "")) == 4
