"""Standard streams that are closed, full, without a reader, or cannot encode what is printed: no traceback, no hang."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import streams
from harness.machine import folders
from harness.records.store import FILE, read_run
from harness.run.launch import Worker
from harness.worker.messages import FactsRequest
from tests.conftest import FOURTH
from tests.made import lines as contents
from tests.report.test_several import put, twins

REPORTS = Path(__file__).parents[2] / "reports"
RUN = ["run", "--framework", "numpy", "--threads", "1", "--workload", "B=3,T=5,I=2,H=16,O=4", "--processes", "1"]
RUN += ["--pass", "forward", "--rounds", "3", "--no-report"]
VERIFY = ["verify", "--framework", "numpy", "--threads", "1", "--workload", "B=3,T=5,I=2,H=16,O=4", "--pass", "forward"]
VERIFY += ["--recurrence", "unrolled", "--precision", "fp32"]
ONE = "numpy-cpu-eager-fp32-unrolled-in_loop-forward.safetensors"
CELL = ["explain", "numpy", "eager", "unrolled", "in_loop", "B=2,T=3,I=2,H=4,O=3"]
ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "C"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONUTF8": "1", "LC_ALL": "C"},
]


def shell(redirections, *arguments, timeout=240, **variables):
    """A command of the harness with its streams redirected as a shell does."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-m", "harness", *arguments],
        capture_output=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(FOURTH)} | variables,
        check=False,
    )


def lines(printed):
    return printed.decode("utf-8", "replace").strip().splitlines()


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["selftest"], CELL, RUN])
def test_a_closed_stdout_is_refused_before_any_work(arguments, tmp_path):
    where = ["--out", str(tmp_path / "out")] if arguments in (CELL, RUN) else []
    done = shell(">&-", *arguments, *where)
    assert done.returncode == 2
    assert lines(done.stderr) == ["error: standard output is closed: nothing could be printed"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("redirections", ["<&- >&- 2>&-", ">&- 2>&-", "<&- >&-"])
def test_several_closed_streams_do_not_hang(redirections, tmp_path):
    done = shell(redirections, *RUN, "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("redirections", ["<&-", "<&- 2>&-", "2>&-", "2>/dev/full", "< /dev/full"])
def test_streams_that_are_not_needed_may_be_closed_or_full(redirections, tmp_path):
    done = shell(redirections, *VERIFY, "--save-outputs", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert b"numpy" in done.stdout
    assert (tmp_path / "out" / ONE).exists()


def test_a_stdout_that_is_open_for_reading_alone_is_closed(tmp_path):
    done = shell("1< /dev/null", *RUN, "--out", str(tmp_path / "out"))
    assert (done.returncode, len(lines(done.stderr))) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["list"], CELL, RUN])
def test_a_full_stdout_is_one_sentence_and_loses_nothing(arguments, tmp_path):
    where = ["--out", str(tmp_path / "out")] if arguments in (CELL, RUN) else []
    for name in ("tensorflow", "torch", "jax"):  # which take seconds to import, and would fill nothing more
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={name!r})\n")
    done = shell(">/dev/full", *arguments, *where, PYTHONPATH=f"{tmp_path}:{FOURTH}")
    assert done.returncode == 1
    assert "error: standard output cannot be written: No space left on device" in lines(done.stderr)
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    if arguments is RUN:
        assert [record.kind for record in read_run(tmp_path / "out")] == [
            "study",
            "check",
            "block",
            "block",
            "peaks",
            "peaks",
        ]


@pytest.mark.parametrize("arguments", [["--help"], RUN])
def test_a_reader_that_has_left_is_no_traceback(arguments, tmp_path):
    where = ["--out", str(tmp_path / "out")] if arguments is RUN else []
    ours, theirs = os.pipe()
    os.close(ours)
    with subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments, *where],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(FOURTH)},
    ) as process:
        os.close(theirs)
        said = process.communicate(timeout=240)[1]
    assert process.returncode == 1
    assert b"Traceback" not in said
    assert b"Error" not in said


@pytest.mark.parametrize("variables", ASCII)
def test_what_an_encoding_lacks_is_printed_as_an_escape(variables, tmp_path):
    done = shell("", *CELL, "--out", str(tmp_path / "é"), **variables)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout


SELFTEST = """
import sys
from harness.cli import app
from harness.selftest import coverage
coverage.rows = lambda *given: [coverage.TargetResult("5 × 30", 10, "95.0% ± 1%", "≥ 93%", True)]
sys.argv = ["harness", "selftest"]
app.main()
"""


def test_a_table_whose_signs_an_encoding_lacks_is_printed_too():
    """Its rows are made up: to compute them takes minutes."""
    done = subprocess.run(
        [sys.executable, "-c", SELFTEST], capture_output=True, env={**os.environ, **ASCII[0]}, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\xd7" in done.stdout
    assert b"\\u2265" in done.stdout


@pytest.mark.parametrize("variables", ASCII)
def test_any_text_can_be_printed_in_any_encoding(variables):
    script = r"from harness.cli import streams; streams.leave(lambda: print('\u00d7 \u4e2d \udcff'))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env={**os.environ, **variables}, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b" \\udcff\n")


@pytest.mark.parametrize("variables", [ASCII[0], ASCII[-2]])
def test_a_report_in_a_folder_of_any_name(variables, tmp_path):
    heading, *records = contents(min(REPORTS.glob("*selftest*")))
    folder = put(tmp_path / "few", heading, filter(twins, records))
    out = os.path.join(os.fsencode(tmp_path), b"\xc3\xa9 \xff a\nb 'q\" $x")
    done = shell("", "report", str(folder), "--out", out, **variables)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(os.path.join(out, b"report.md"))


@pytest.mark.parametrize("variables", [ASCII[0], ASCII[3], ASCII[4]])
def test_a_worker_finds_the_files_of_a_folder_of_any_name(variables, tmp_path):
    """Parent and worker must take the same characters for a path, whatever the locale."""
    out = os.path.join(os.fsencode(tmp_path), b"\xc3\xa9 \xff\xe9")
    done = shell("", *RUN, "--out", out, **variables)
    assert b" ok\n" in done.stderr  # a machine that is busy proves no threads, and the timed block is refused
    assert b"Traceback" not in done.stderr
    assert os.path.exists(os.path.join(out, FILE.encode()))


def test_records_of_a_command_that_is_no_text_can_be_read(tmp_path):
    study = os.path.join(os.fsencode(tmp_path), b"\xff.toml")
    with open(study, "w") as file:
        file.write("frameworks = ['numpy']\nworkloads = ['B=3,T=5,I=2,H=16,O=4']\npasses = ['forward']\n")
    out = tmp_path / "out"
    done = shell("", "run", study, "--threads", "1", "--processes", "1", "--rounds", "3", "--out", str(out))
    assert b"Traceback" not in done.stderr
    assert r"$'" in read_run(out)[0].command
    assert r"\xff.toml'" in (out / "report.md").read_text(encoding="utf-8")


def test_what_a_worker_prints_needs_no_encoding(monkeypatch, numpy_backend):
    monkeypatch.setenv("LC_ALL", "POSIX")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    with Worker("numpy", {}, 60.0) as worker:
        assert worker.ask(FactsRequest(threads=[], devices=[], cache="/x")).framework.missing is None
        environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
    assert b"PYTHONIOENCODING=utf-8:backslashreplace" in environment


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_program_as_an_interruption(number):
    """And removes what is temporary; the program waits in a read, not in a sleep."""
    script = (
        "import sys, signal\nfrom harness.cli import streams\nfrom harness.machine import folders\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def program():\n    with folders.private() as place:\n        print(place, flush=True)\n"
        "        sys.stdin.read()\n"
        "streams.leave(program)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        place = Path(process.stdout.readline().decode().strip())
        assert place.is_dir()
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == streams.INTERRUPTED
    assert said == b"interrupted\n"
    assert not place.exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a b"), "a b cannot be written: No space left on device"),
        (OSError(errno.ENOENT, "No such file or directory", "x"), "x: No such file or directory"),
        (OSError(errno.EROFS, "Read-only file system", b"\xff"), "\\udcff cannot be written: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device", "a\nb"), "a\\nb cannot be written: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "a file cannot be written: No space left on device"),
        (OSError("of two\nlines"), "of two lines"),
    ],
)
def test_an_error_of_the_system_is_one_sentence(error, said):
    assert streams.error_message(error) == said


@pytest.mark.parametrize("word", ["plain", "a b", "it's", "$HOME", "", "a\nb", "é", "\t\\'", "\udcff", "-", "*"])
def test_quoted_words_are_the_same_words_for_a_shell(word, tmp_path):
    text = streams.quote_words(["printf", "%s", word])
    assert "\n" not in text
    done = subprocess.run(["bash", "-c", text.encode("utf-8", "backslashreplace")], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)


def test_the_name_of_a_file_is_added_to_an_error_that_has_none():
    with pytest.raises(OSError, match=r"here") as found, folders.add_path_to_errors(Path("here")):
        raise OSError(errno.ENOSPC, "full")
    assert found.value.filename == "here"
    with pytest.raises(OSError, match="there"), folders.add_path_to_errors(Path("here")):
        raise OSError(errno.ENOSPC, "full", "there")
