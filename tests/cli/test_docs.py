"""README and docs: every command in them is one that the program takes, every path exists, every number is measured."""

import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import typer

from harness.cli import app as cli
from harness.cli import versions
from harness.study import study
from impls.interface import CELLS, PRECISIONS, PROJECTIONS, RECURRENCES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "ARTIFACT.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
README, USAGE = ((ROOT / page).read_text() for page in ("README.md", "docs/usage.md"))
BLOCKS = "\n".join(text for language, text in re.findall(r"```(\w*)\n(.*?)```", TEXT, re.S) if not language)
COMMANDS = list(dict.fromkeys(re.findall(r"python -m harness ([^`\n]+)", BLOCKS)))
NAMES_IN_TABLE = {"TensorFlow": "tf", "PyTorch": "torch", "JAX": "jax"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command, tmp_path, monkeypatch):
    """Down to the study it makes; what it would then do is tested elsewhere."""
    monkeypatch.setattr(cli, "_run", lambda study, out, resume, report=True, html=True: None)
    monkeypatch.setattr(versions, "run", lambda *given: 0)
    name, *arguments = shlex.split(command)
    app = typer.main.get_command(cli.app).commands[name]
    context = app.make_context(name, arguments)
    if name == "run":
        with suppress(typer.Exit):
            app.invoke(context)


def test_there_are_commands_and_an_unknown_flag_would_be_seen():
    assert len(COMMANDS) >= 7
    app = typer.main.get_command(cli.app).commands["run"]
    with pytest.raises(Exception, match="No such option"):
        app.make_context("run", ["--quickly"])


def test_the_study_file_is_one(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", TEXT, re.S)
    file = tmp_path / "study.toml"
    file.write_text(text)
    made = study.load_study(file, None, {})
    assert made.frameworks == ["torch", "jax"]
    assert [w.name for w in made.workloads] == ["book", "B8-T40-I16-H128-O500-rnn_tanh"]


def test_the_rule_of_names_is_the_programs():
    assert study.NAMES.replace("'", "`").removeprefix("a ") in " ".join(USAGE.split())


@pytest.mark.parametrize("target", ["report", "test", "lint"])
def test_make_knows_its_targets(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for path in links:
        assert (page.parent / path).exists(), path
    for path in re.findall(r"`((?:harness|impls|scripts|tests|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", [*CELLS, *RECURRENCES, *PROJECTIONS, *PRECISIONS, *study.NAMED])
def test_every_form_is_in_the_page_on_using_it(name):
    assert f"`{name}`" in USAGE


def test_the_front_door_is_two_screens_and_leads_to_every_page():
    assert len(README.splitlines()) <= 100
    for page in PAGES[1:]:
        assert f"({page.relative_to(ROOT)})" in README


@pytest.mark.parametrize(
    ("reports", "threads", "count"),
    [
        (["2026-11-26-amd-epyc-2-cores"], 1, 8),
        (["2026-11-26-h100", "2026-11-27-h100", "2026-11-27-h100-unrolled", "2026-11-27-h100-stream"], 16, 5),
    ],
)
def test_the_front_door_s_tables_are_what_their_reports_measured(reports, threads, count):
    """Of several reports, each cell is from the first that has it."""
    assert all(f"(reports/{report}/report.md)" in README for report in reports)
    gaps = pd.concat([pd.read_csv(ROOT / "reports" / report / "gaps.csv") for report in reports])
    gaps = gaps.drop_duplicates(["framework", "execution", "recurrence", "workload", "pass", "threads", "contender"])
    gaps = gaps[(gaps.contender == "in_loop") & (gaps.threads == threads) & gaps.trusted & gaps.ci_low.notna()]
    tables = [block.splitlines() for block in README.split("\n\n") if block.startswith("| | book forward")]
    columns, _, *rows = next(table for table in tables if len(table) == 2 + count)
    for line in rows:
        name, *cells = line.strip("| ").split(" | ")
        framework, execution = name.split()
        loop = "scan" if execution in ("v1", "graph", "xla") else "unrolled"
        program = gaps[(gaps.framework == NAMES_IN_TABLE[framework]) & (gaps.execution == execution)]
        program = program[program.recurrence == loop].set_index(["workload", "pass"])
        measured = {
            f"{workload} {pass_}": f"{row.ratio:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
            for (workload, pass_), row in program.iterrows()
        }
        assert cells == [measured.get(column, "–") for column in columns.strip("| ").split(" | ")], name


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["run"],
        ["verify"],
        ["explain"],
        ["train"],
        ["pair"],
        ["report"],
        ["list"],
        ["count"],
        ["score"],
        ["selftest"],
        ["doctor"],
    ],
)
def test_help_says_what_each_command_does(command):
    done = subprocess.run(
        [sys.executable, "-m", "harness", *command, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert not done.stderr
