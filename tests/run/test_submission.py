"""Submissions without a cluster: what Slurm is asked, what its answers mean, and shards that run here."""

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import cluster
from harness.errors import UsageError
from harness.records.store import latest_blocks, read_run
from harness.run import merge, submission
from harness.run.submission import Options
from harness.study.study import Study
from tests.run.test_session import command
from tests.run.test_slurm import STUDY

CONFIG = "MaxArraySize            = 1001\n"


class FakeSlurm:
    """Answers as Slurm's commands do. `queue`: lines of squeue."""

    def __init__(self, queue=(), refuses=""):
        self.queue, self.refuses, self.asked = list(queue), refuses, []

    def __call__(self, words, **options):
        self.asked.append(words)
        answers = {"scontrol": CONFIG, "sbatch": "17;main\n", "squeue": "\n".join(self.queue), "scancel": ""}
        if words[0] == self.refuses:
            return SimpleNamespace(returncode=1, stdout="", stderr=f"{words[0]}: error: it will not\n")
        return SimpleNamespace(returncode=0, stdout=answers[words[0]], stderr="")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def sent(file, folder, slurm, **options):
    return submission.submit(Study(processes=6), file, folder, 3, Options(**options), slurm)


def test_an_array_is_sent_with_whole_nodes_and_the_users_words_unquoted_by_any_shell(file, tmp_path):
    slurm, out = FakeSlurm(), tmp_path / "it's here"
    assert sent(file, out, slurm, words=["--partition=a b", "--gres=gpu:1"]) == "17"
    words = slurm.asked[-1]
    assert words[0] == "sbatch"
    assert {"--exclusive", "--nodes=1", "--hint=nomultithread", "--array=1,2,3", "--partition=a b"} <= set(words)
    assert words[-1] == str(out / "job.sh")
    assert submission.load(out).jobs == ["17"]
    assert subprocess.run(["/bin/sh", "-n", str(out / "job.sh")], check=False).returncode == 0
    shared = FakeSlurm()
    sent(file, tmp_path / "shared", shared, exclusive=False)
    assert "--exclusive" not in shared.asked[-1]


def test_the_queue_and_the_exits_give_the_states(file, tmp_path):
    sent(file, tmp_path / "out", FakeSlurm())
    (tmp_path / "out" / "exits" / "2").write_text("0\n")
    (tmp_path / "out" / "exits" / "3").write_text("1\n")
    queue = FakeSlurm(["1 RUNNING n7"])
    states = submission.status(tmp_path / "out", queue)
    assert [(state.state, state.node) for state in states] == [("running", "n7"), ("done", ""), ("failed", "")]
    assert submission.status(tmp_path / "out", FakeSlurm(["1 PENDING "]))[0].state == "pending"
    assert submission.status(tmp_path / "out", FakeSlurm())[0].state == "lost"
    assert submission.resume(tmp_path / "out", FakeSlurm()) == ("17", [1, 3])
    assert submission.load(tmp_path / "out").jobs == ["17", "17"]


TIME_IS_UP = "slurmstepd-n1: error: *** JOB 2 ON n1 CANCELLED AT 2026-11-27T08:35:33 DUE TO TIME LIMIT ***\n"
CANCELLED = "slurmstepd: error: *** JOB 2 ON n1 CANCELLED AT 2026-11-27T08:35:33 ***\n"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (f"task begun on n1\n0.1 s 1/4\n{TIME_IS_UP}\ninterrupted\n", "its time limit was reached; --resume --sbatch"),
        (f"task begun on n1\n{'.' * 20_000}{TIME_IS_UP}", "its time limit was reached"),
        (f"task begun on n1\n{TIME_IS_UP}task begun on n2\n0.1 s 1/4\n", "its node died, or its disk was full"),
        (f"task begun on n1\n{CANCELLED}", "it was cancelled"),
        (f"task begun on n1\n{TIME_IS_UP.replace('TIME LIMIT', 'PREEMPTION')}", "it was cancelled: preemption"),
        (None, "it is not in the queue and left no exit status"),
    ],
)
def test_a_lost_shard_says_what_slurm_wrote_into_its_log_of_this_attempt(log, said, file, tmp_path):
    sent(file, tmp_path / "out", FakeSlurm())
    if log is not None:
        (tmp_path / "out" / "logs" / "shard-1.log").write_text(log)
    state = submission.status(tmp_path / "out", FakeSlurm())[0]
    assert state.state == "lost"
    assert said in state.detail
    assert state.detail.endswith("cancelled") == (said == "it was cancelled")


def test_more_words_for_sbatch_replace_earlier_ones_and_are_kept_once_slurm_took_them(file, tmp_path):
    sent(file, tmp_path / "out", FakeSlurm(), words=["--time=1"])
    with pytest.raises(UsageError, match="sbatch refused"):
        submission.resume(tmp_path / "out", FakeSlurm(refuses="sbatch"), ["--time=never"])
    slurm = FakeSlurm()
    submission.resume(tmp_path / "out", slurm, ["--time=9"])
    times = [word for word in slurm.asked[-1] if word.startswith("--time")]
    assert times == ["--time=1", "--time=9"]  # of two, sbatch takes the last
    assert submission.load(tmp_path / "out").words[-2:] == times


def full_disk(monkeypatch, name, after=0):
    """Let no file of this name be written, as on a full disk, but for so many times."""
    write, left = Path.write_bytes, iter([True] * after)

    def write_bytes(path, content):
        if path.name == name and not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("name", ["study.toml", "job.sh", ".submission.json"])
def test_a_submission_that_a_full_disk_cuts_leaves_nothing(name, exists, file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    full_disk(monkeypatch, name)
    with pytest.raises(OSError, match=re.escape(str(out / name))):
        sent(file, out, slurm := FakeSlurm())
    assert not [words for words in slurm.asked if words[0] == "sbatch"]
    assert out.exists() == exists
    assert not exists or not list(out.iterdir())


def test_a_job_whose_id_cannot_be_written_down_is_cancelled(file, tmp_path, monkeypatch):
    full_disk(monkeypatch, ".submission.json", after=1)
    slurm = FakeSlurm()
    with pytest.raises(UsageError, match=r"submission.json cannot be written: No space left on device; job 17 is canc"):
        sent(file, tmp_path / "out", slurm)
    assert slurm.asked[-1] == ["scancel", "17"]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("numpy_backend")
def test_a_task_on_a_full_disk_has_failed_and_says_so(file, tmp_path):
    sent(file, tmp_path / "out", FakeSlurm())
    full = 'trap "" XFSZ; ulimit -f 0; SLURM_ARRAY_TASK_ID=1 exec /bin/sh "$0"'  # no file may have a byte
    done = subprocess.run(
        ["/bin/sh", "-c", full, tmp_path / "out" / "job.sh"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot be written into: File too large" in done.stderr
    state = submission.status(tmp_path / "out", FakeSlurm())[0]
    assert (state.state, state.detail) == ("failed", "its exit status could not be written: is the disk full?")
    (tmp_path / "out" / "study.toml").unlink()
    subprocess.run(["/bin/sh", "-c", full.replace("ulimit -f 0; ", ""), tmp_path / "out" / "job.sh"], check=False)
    assert submission.status(tmp_path / "out", FakeSlurm())[0].detail.startswith("exit status 2, see")


def test_what_is_refused_leaves_nothing(file, tmp_path):
    for slurm, said in (
        (FakeSlurm(refuses="sbatch"), "sbatch refused: it will not"),
        (FakeSlurm(refuses="scontrol"), "Slurm does not answer: "),
    ):
        with pytest.raises(UsageError, match=said):
            sent(file, tmp_path / "out", slurm)
        assert not (tmp_path / "out").exists()

    def absent(words, **options):
        raise FileNotFoundError

    with pytest.raises(UsageError, match="there is no Slurm here: scontrol is not installed"):
        sent(file, tmp_path / "out", absent)
    sent(file, tmp_path / "out", FakeSlurm())
    with pytest.raises(UsageError, match="out is not empty; --resume sends what has no good exit"):
        sent(file, tmp_path / "out", FakeSlurm())


def test_a_strangers_submission_is_read_with_care(tmp_path):
    for text in ("{", '{"shards": 2, "processes": 4, "jobs": ["1 --help"]}', '{"shards": 2}', " " * 2_000_000):
        (tmp_path / merge.SUBMISSION).write_text(text)
        with pytest.raises(UsageError, match="is no submission"):
            submission.load(tmp_path)
    with pytest.raises(UsageError, match="nowhere holds no submission"):
        submission.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [("--partition=x 'y", "cannot be split into words"), ("gpu", "'gpu' is none"), ("--a; rm", "'rm' is none")],
)
def test_words_for_sbatch_that_are_no_options_are_refused(text, said):
    with pytest.raises(UsageError, match=said):
        cluster._split(text)


@pytest.mark.slow
@pytest.mark.usefixtures("numpy_backend")
def test_shards_run_here_one_after_another_are_merged_and_what_failed_is_run_again(file, tmp_path, capsys):
    out = tmp_path / "local"
    done = command("submit", str(file), "--shards", "2", "--processes", "3", "--local", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all shards are done. Join them with: python -m harness merge" in done.stdout
    status = command("status", str(out), "--json")
    assert json.loads(status.stdout)["counts"] == {"done": 2}
    (out / "exits" / "2").unlink()
    assert [state.state for state in submission.status(out)] == ["done", "pending"]
    (out / "shard-2" / ".lock").touch()
    assert [state.state for state in submission.status(out)] == ["done", "running"]
    (out / "shard-2" / ".lock").unlink()
    (out / "exits" / "2").write_text("1\n")
    refused = command("merge", str(out), "--out", str(tmp_path / "merged"))
    assert refused.returncode == 2
    assert "shard 2 of" in refused.stderr
    assert "has no good exit" in refused.stderr
    assert submission.load(out).jobs == []
    assert cluster._end(out) == 1
    assert f"submit --resume --local --out {out}" in capsys.readouterr().out
    refused = command("submit", "--resume", "--local", "--sbatch", "--time=1", "--out", str(out))
    assert refused.returncode == 2
    assert "--sbatch is for Slurm, and --local runs the shards here" in refused.stderr
    again = command("submit", "--resume", "--local", "--out", str(out))
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[0] == "shard 2 of 2"
    merged = command("merge", str(out), "--out", str(tmp_path / "merged"), "--no-report")
    assert merged.returncode == 0, merged.stderr
    assert {block.replicate for block in latest_blocks(read_run(tmp_path / "merged"), "block")} == {0, 1, 2}
    assert sys.executable in (out / "job.sh").read_text()
    cancelled = command("cancel", str(out))
    assert cancelled.returncode == 2
    assert "was not sent to Slurm" in cancelled.stderr
