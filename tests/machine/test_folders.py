"""Folders to write into are asked before any work; private ones lie in plain paths and end with the run."""

import errno
import os
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from harness import report
from harness.analysis import loading
from harness.cli import app as cli
from harness.cli import explain, verify
from harness.errors import UsageError
from harness.machine import folders
from harness.report import several
from harness.run import jobs, session, train
from harness.study import matrix
from harness.study.configuration import Configuration
from harness.study.matrix import CACHE, Framework, WorkerEnvironment
from harness.study.study import load_study
from impls.interface import Settings
from tests.conftest import HERE, SMALL

ODD = ["a b", "a,b", "a=b", "a'b", 'a"b', "a\nb", "é", "\udcff", "$a", "a;b", "x" * 200, "-a b"]
Room = namedtuple("Room", "f_bavail f_frsize f_flag")


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """What Python takes for the folder of temporary files."""
    return lambda place: monkeypatch.setattr(tempfile, "tempdir", str(place))


@pytest.mark.parametrize("name", ODD)
def test_a_private_folder_has_a_plain_path_whatever_tmpdir_is(name, tmp_path, temporary):
    (tmp_path / name).mkdir()
    temporary(tmp_path / name)
    with folders.private() as place:
        assert folders.PLAIN.fullmatch(str(place.parent))
        assert set(str(place)).isdisjoint(" ,='\"\n$;:")
        assert place.stat().st_mode & 0o077 == 0
    assert not place.exists()
    assert not list((tmp_path / name).iterdir())


def test_a_link_with_a_plain_name_to_an_odd_folder_is_seen_through(tmp_path, temporary):
    (tmp_path / "a b").mkdir()
    (tmp_path / "plain").symlink_to(tmp_path / "a b")
    temporary(tmp_path / "plain")
    with folders.private() as place:
        assert " " not in os.path.realpath(place)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit, OSError])
def test_a_private_folder_ends_however_it_is_left(error):
    left = []

    def leave():
        with folders.private() as place:
            left.append(place)
            (place / "cache").mkdir()
            (place / "cache" / "left").touch()
            raise error

    with pytest.raises(error):
        leave()
    assert not left[0].exists()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_lives_is_not():
    script = (
        "import sys\nfrom harness.machine import folders\nwith folders.private() as place:\n"
        "    (place / 'left').touch()\n    print(place, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        left = Path(process.stdout.readline().decode().strip())
        with folders.private():
            assert (left / "left").exists()
        process.kill()
    assert (left / "left").exists()
    with folders.private():
        assert not left.exists()


@pytest.mark.parametrize(("room", "fits"), [(Room(1, 4096, 0), False), (Room(10**6, 4096, os.ST_NOEXEC), False)])
def test_a_place_without_room_or_that_forbids_to_run_is_passed_over(room, fits, tmp_path, temporary, monkeypatch):
    real = os.statvfs
    temporary("/tmp")
    monkeypatch.setattr(folders.os, "statvfs", lambda place: room if place == "/tmp" else real(place))
    with folders.private() as place:
        assert (place.parent == Path("/tmp")) == fits
    monkeypatch.setattr(folders.os, "statvfs", lambda place: room)
    with pytest.raises(UsageError, match="set TMPDIR"), folders.private():
        raise AssertionError


def test_without_any_place_for_temporary_files_there_is_a_sentence(monkeypatch):
    monkeypatch.setattr(folders.tempfile, "mkdtemp", failing(errno.ENOSPC))
    with pytest.raises(UsageError, match="No space left on device"), folders.private():
        raise AssertionError


def failing(number):
    def fail(*given, **more):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("name", [name for name in HERE if name != "numpy"])
def test_nothing_of_a_users_path_is_in_a_workers_variables(name, tmp_path, temporary):
    """The variables hold the cache's path alone, and that is plain; each takes the whole of it."""
    import importlib

    backend = importlib.import_module(f"impls.{name}.backend").Backend()
    variables = backend.environment(Settings("cpu", 1, "fp32", CACHE))
    framework = Framework(name, environments=[WorkerEnvironment("cpu", 1, variables)])
    (tmp_path / "a b").mkdir()
    temporary(tmp_path / "a b")
    study = load_study(None, None, {"frameworks": [name], "threads": [1]})
    given = []
    with folders.private() as private:
        bench = session.make_context(study, [framework], tmp_path / "out of\nthe way", private, {})
        bench = jobs.replace(bench, worker=lambda name, variables, timeout_s: given.append(variables))
        jobs.worker_of(bench, matrix.Job(Configuration(name, "cpu", 1, "xla", "fp32"), 0, ()))
    (found,) = given
    assert found["TMPDIR"].startswith(str(private))
    assert not any(str(tmp_path) in value for value in found.values())
    assert all(len(value.split()) == 1 for value in found.values())


def refusals(place):
    """What writes into a folder, each before any work."""
    study = load_study(None, None, {"frameworks": ["numpy"], "workloads": [SMALL], "threads": [1]})
    return {
        "run": lambda: session.run(study, place, False, ""),
        "train": lambda: train.train(study, 10, place, False, ""),
        "verify": lambda: verify.verify(study, place),
        "explain": lambda: explain.explain(["numpy", "eager", "unrolled", "in_loop"], place),
        "report": lambda: report.make_folders([place]),
    }


@pytest.fixture
def no_work(monkeypatch):
    for module in (session, train, verify, explain):
        for name in ("probe", "Worker"):
            monkeypatch.setattr(module, name, lambda *given: pytest.fail("work was begun"), raising=False)


@pytest.mark.parametrize("command", ["run", "train", "verify", "explain", "report"])
@pytest.mark.parametrize("what", ["file", "in a file", "/proc", "in /proc", "long", "circle", "dangling", "/dev/full"])
def test_a_folder_that_cannot_be_had_is_refused_before_any_work(command, what, tmp_path, no_work, numpy_backend):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    place = {"in a file": tmp_path / "file" / "x", "in /proc": Path("/proc/x/y"), "long": tmp_path / ("x" * 300)}
    found = place.get(what, Path(what) if what.startswith("/") else tmp_path / what)
    with pytest.raises(UsageError) as refused:
        refusals(found)[command]()
    assert "cannot be" in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", ["run", "train", "verify", "explain", "report"])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_is_anothers_read_only_or_full_is_refused(
    command, number, tmp_path, no_work, numpy_backend, monkeypatch
):
    monkeypatch.setattr(folders.tempfile, "TemporaryFile", failing(number))
    with pytest.raises(UsageError, match=os.strerror(number)):
        refusals(tmp_path)[command]()
    assert not list(tmp_path.iterdir())


def test_a_check_leaves_no_trace(tmp_path):
    folders.check_writable(tmp_path / "a" / "b")
    folders.check_writable(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_report_into_a_circle_of_links_is_refused(tmp_path, monkeypatch):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UsageError):
        several._check_folders([tmp_path, tmp_path / "circle"], tmp_path / "circle")
    found = loading.read_tables(min((Path(__file__).parents[2] / "reports").glob("*selftest*")))
    monkeypatch.setattr(report, "read_tables", lambda folder: found)
    with pytest.raises(UsageError, match="cannot be written into"):
        report.write(tmp_path, tmp_path / "circle")


def test_the_command_line_says_it_in_one_sentence(tmp_path, monkeypatch, capsys, no_work):
    (tmp_path / "file").write_text("mine")
    for arguments in (
        ["run", "--out"],
        ["train", "--out"],
        ["verify", "--save-outputs"],
        ["selftest", "--real", "--out"],
    ):
        monkeypatch.setattr("sys.argv", ["harness", *arguments, str(tmp_path / "file")])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert said == f"error: {tmp_path / 'file'} cannot be written into: Not a directory\n"
