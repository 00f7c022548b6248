"""One study in several environments: whose turn it is, what is refused, and what a run of two of them leaves."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import UsageError
from harness.records.schema import BlockRecord
from harness.records.store import FILE, latest_blocks, read_run
from harness.run import versions
from harness.study.study import Study

WORDS = ["run", "study.toml", "--venv", "a", "--venv=b", "--processes=3", "--out", "x", "--no-html", "--seed", "7"]


@pytest.fixture
def environments(tmp_path):
    """The folders of two environments, both of which are this one under another name."""
    for name in ("old", "new"):
        (tmp_path / name / "bin").mkdir(parents=True)
        python = tmp_path / name / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    return [tmp_path / "old", tmp_path / "new"]


class FakeRun:
    """Ends each shard with a status, and writes its records unless it fails. `asked`: the commands."""

    def __init__(self, *statuses):
        self.statuses, self.asked = list(statuses), []

    def __call__(self, command, **options):
        self.asked.append(command)
        status = self.statuses.pop(0) if self.statuses else 0
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(exist_ok=True)
        options["stdout"].write(f"error: it ended with {status}\n".encode())
        if status in (0, 1):
            (folder / FILE).touch()
        return SimpleNamespace(returncode=status)


def measured(environments, out, run, resume=False, processes=3):
    return versions.measure(Study(processes=processes), WORDS, environments, out, resume, lambda line: None, run)


def order(run):
    return [(command[0].split("/")[-3], command[command.index("--shard") + 1]) for command in run.asked]


def test_processes_alternate_and_no_environment_is_always_first(environments, tmp_path):
    run = FakeRun()
    shards, all_well = measured(environments, tmp_path / "out", run)
    turns = [("old", "1/3"), ("new", "1/3"), ("new", "2/3"), ("old", "2/3"), ("old", "3/3"), ("new", "3/3")]
    assert order(run) == turns
    assert all_well
    assert [folder.name for folder in shards["new"]] == ["shard-1", "shard-2", "shard-3"]
    own = ["run", "study.toml", "--seed", "7", "--no-report", "--processes", "3", "--shard", "1/3"]
    assert run.asked[0][1:] == ["-m", "harness", *own, "--out", str(tmp_path / "out" / "shards" / "old" / "shard-1")]


def test_what_failed_is_said_and_gone_on_with(environments, tmp_path):
    with pytest.raises(UsageError, match="process 1 in new was not measured: it ended with 3"):
        measured(environments, tmp_path / "out", FakeRun(0, 3))
    with pytest.raises(UsageError, match="out is not empty; --resume goes on with what it has"):
        measured(environments, tmp_path / "out", FakeRun())
    run = FakeRun(1)
    assert not measured(environments, tmp_path / "out", run, resume=True)[1]  # a cell went wrong: its records say which
    assert [command[-1] == "--resume" for command in run.asked] == [True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("given", "study", "why"),
    [
        (["old"], {"processes": 2}, "at least twice"),
        (["old", "old"], {"processes": 2}, "and old is taken"),
        (["old", "shards"], {"processes": 2}, "and shards is taken"),
        (["old", "gone"], {"processes": 2}, "gone is no virtual environment: it has no bin/python"),
        (["old", "new"], {}, "a study of a known number of processes, and no shard: give --processes"),
        (["old", "new"], {"processes": 2, "shard": "1/2"}, "and no shard"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(environments, tmp_path, given, study, why):
    folders = [tmp_path / name for name in given]
    with pytest.raises(UsageError, match=why):
        versions.measure(Study(**study), WORDS, folders, tmp_path / "out", False, print, FakeRun())
    assert not (tmp_path / "out").exists()


def test_a_study_in_two_environments_leaves_two_runs_and_what_changed(
    numpy_backend, environments, tmp_path, harness, undrawn
):
    study = ["--framework", "numpy", "--threads", "1", "--workload", "B=2,T=3,I=2,H=2,O=2", "--sweep", "none"]
    form = ["--projection", "in_loop,batched", "--pass", "forward", "--rounds", "5", "--processes", "2", "--no-html"]
    venvs = [word for folder in environments for word in ("--venv", str(folder))]
    done = harness("run", *study, *form, *venvs, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for name in ("old", "new"):
        blocks = [r for r in latest_blocks(read_run(tmp_path / "out" / name), "block") if isinstance(r, BlockRecord)]
        assert sorted({block.replicate for block in blocks}) == [0, 1]
        assert (tmp_path / "out" / name / "report.md").exists()
    text = (tmp_path / "out" / "compared.md").read_text()
    assert text.startswith(f"# What changed from {tmp_path / 'out' / 'old'} to {tmp_path / 'out' / 'new'}")
    again = harness("run", *study, *form, *venvs, "--out", str(tmp_path / "out"), "--resume")
    assert again.returncode == 0, again.stderr
    other = harness("run", *study, *form, *venvs, "--seed", "8", "--out", str(tmp_path / "out"), "--resume")
    assert other.returncode == 2
    assert "process 1 in old was not measured: " in other.stderr
