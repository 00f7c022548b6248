"""Submissions without a cluster: what Slurm is asked, what its answers mean, and shards that run here."""

import json
import subprocess
import sys
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
def test_shards_run_here_one_after_another_are_merged_and_what_failed_is_run_again(file, tmp_path):
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
