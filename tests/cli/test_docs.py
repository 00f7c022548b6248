"""README: every command in it is one that the program takes, and every path in it exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from harness.cli import app as cli
from harness.study import study

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"python -m harness ([^`\n]+)", "\n".join(re.findall(r"```\n(.*?)```", README, re.S)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, tmp_path, monkeypatch):
    """Down to the study it makes; what it would then do is tested elsewhere."""
    monkeypatch.setattr(cli, "_run", lambda study, out, resume, report=True: None)
    name, *arguments = shlex.split(command)
    app = typer.main.get_command(cli.app).commands[name]
    context = app.make_context(name, arguments)
    if name == "run":
        app.invoke(context)


def test_there_are_commands_and_an_unknown_flag_would_be_seen():
    assert len(COMMANDS) >= 7
    app = typer.main.get_command(cli.app).commands["run"]
    with pytest.raises(Exception, match="No such option"):
        app.make_context("run", ["--quickly"])


def test_the_study_file_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", README, re.S)
    file = tmp_path / "study.toml"
    file.write_text(text)
    made = study.load_study(file, None, {})
    assert made.frameworks == ["torch", "jax"]
    assert [w.name for w in made.workloads] == ["book", "B8-T40-I16-H128-O500-rnn_tanh"]


def test_the_rule_of_names_is_the_programs():
    assert study.NAMES.replace("'", "`").removeprefix("a ") in " ".join(README.split())


@pytest.mark.parametrize("target", ["report", "test", "lint"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_and_paths_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for path in links:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "command", [[], ["run"], ["verify"], ["explain"], ["train"], ["report"], ["list"], ["selftest"], ["doctor"]]
)
def test_help_says_what_each_command_does(command):
    done = subprocess.run(
        [sys.executable, "-m", "harness", *command, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert not done.stderr
