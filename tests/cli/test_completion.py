"""A shell's completion: the script that it is given, and what it is then told for words that are half typed."""

import os
import subprocess
import sys

import pytest

from tests.conftest import FOURTH

UNGUESSED = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"  # the shell is named, and not found out
START = "import sys; sys.argv[0] = {!r}; from harness.cli.app import main; main()"  # as the console script does


def program(*arguments, name="fusegap", **variables):
    """Call the console script, which may not be installed."""
    return subprocess.run(
        [sys.executable, "-c", START.format(name), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(FOURTH), UNGUESSED: "1", **variables},
        check=False,
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed_and_asks_the_program(shell):
    done = program(_FUSEGAP_COMPLETE=f"source_{shell}")
    assert done.returncode == 0, done.stderr
    assert f"_FUSEGAP_COMPLETE=complete_{shell}" in done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("fusegap st", ["status"]),
        ("fusegap run --frame", ["--framework"]),
        ("fusegap run --framework t", ["tf", "torch"]),
        ("fusegap run --framework tf,nu", ["tf,numpy"]),
        ("fusegap verify --pass tr", ["train"]),
        ("fusegap verify --device g", ["gpu"]),
        ("fusegap pair x.py --precision as", ["as_shipped"]),
        ("fusegap pair x.py --library p", ["plain"]),
        ("fusegap run --recurrence unrolled,sc", ["unrolled,scan"]),
        ("fusegap run --projection chunk", ["chunked", "chunked_loss"]),
        ("fusegap run --workload vo", ["vocab"]),
        ("fusegap run --framework zz", []),
    ],
)
def test_bash_completes_commands_flags_and_their_values(typed, completed):
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = program(_FUSEGAP_COMPLETE="complete_bash", **words)
    assert (done.returncode, done.stdout.split()) == (0, completed), done.stderr


@pytest.mark.parametrize("flag", ["--show-completion", "--install-completion"])
def test_completion_of_a_module_is_refused(flag, tmp_path):
    """Its script would be one for all of Python."""
    done = program(flag, "bash", name="__main__.py", HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: a shell completes the name of a program: call fusegap {flag}\n"
    assert not list(tmp_path.iterdir())


def test_what_is_shown_and_installed_is_the_script(tmp_path):
    shown = program("--show-completion", "bash", HOME=str(tmp_path))
    assert "complete -o default -F _fusegap_completion fusegap" in shown.stdout, shown.stderr
    assert not list(tmp_path.iterdir())
    installed = program("--install-completion", "bash", HOME=str(tmp_path))
    assert installed.returncode == 0, installed.stderr
    files = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("complete -o default -F _fusegap_completion fusegap" in text for text in files)
