"""A study in shards on a real Slurm of two nodes: sent, a node killed in the middle, sent again, merged."""

import json
import os
import subprocess
import sys

import pytest

from harness.records.store import FILE, latest_blocks, read_run
from harness.run import submission
from tests import slurm
from tests.conftest import FOURTH

ASKED = os.environ.get("FUSEGAP_SLURM", "")  # 1: required; 0: .ci/run has seen that it does not start
REASON = "Slurm does not start here" if ASKED == "0" else "" if ASKED == "1" else slurm.missing()
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")
STUDY = """\
frameworks = ["numpy"]
threads = [1]
workloads = [{ name = "w", B = 3, T = 5, I = 2, H = 16, O = 4, cell = "rnn_tanh" }]
rounds = 4
block_s = 0.01
timeout_s = 60.0
passes = ["forward"]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    assert not slurm.missing(), slurm.missing()
    running = slurm.Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.fixture
def harness(cluster, tmp_path):
    """Call the command line with the cluster's environment."""

    def call(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "harness", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, **cluster.environment, "PYTHONPATH": str(FOURTH), **more},
            check=False,
        )

    (tmp_path / "study.toml").write_text(STUDY)
    return call


def states(harness, out):
    content = json.loads(harness("status", out, "--json").stdout)
    return [shard["state"] for shard in content["shards"]]


def test_a_study_is_sent_a_node_dies_what_is_lost_is_sent_again_and_all_is_merged(cluster, harness, tmp_path):
    out = tmp_path / "sent"
    done = harness("submit", tmp_path / "study.toml", "--shards", "3", "--processes", "3", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "3 tasks. Watch it with: python -m harness status" in done.stdout
    cluster.wait_for(lambda: "running" in states(harness, out), "a shard to run")
    nodes = [line.split() for line in cluster.run("squeue", "--noheader", "--states=R", "--format=%K %N").splitlines()]
    assert nodes
    victim, node = nodes[0]
    cluster.kill_node(node)
    cluster.wait_for(lambda: not {"pending", "running"} & set(states(harness, out)) or dead(cluster, node), "the end")
    cluster.start_node(node)
    cluster.wait_for(lambda: not {"pending", "running"} & set(states(harness, out)), "all to end", 200)
    after = states(harness, out)
    assert after[int(victim) - 1] == "lost"
    assert harness("status", out).returncode == 1
    refused = harness("merge", out, "--out", tmp_path / "merged")
    assert refused.returncode == 2
    assert not (tmp_path / "merged").exists()
    cluster.wait_for(lambda: cluster.states() == ["idle", "idle"], "the node to be back")
    again = harness("submit", "--resume", "--wait", "--out", out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"{after.count('lost') + after.count('failed')} tasks" in again.stdout
    assert states(harness, out) == ["done"] * 3
    merged = harness("merge", out, "--out", tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    blocks = latest_blocks(read_run(tmp_path / "merged"), "block")
    assert {block.replicate for block in blocks} == set(range(3))
    assert {block.node for block in blocks} <= set(slurm.NODES)
    assert "Merged from 3 shards" in (tmp_path / "merged" / "report.md").read_text()
    nothing = harness("submit", "--resume", "--out", out)
    assert nothing.returncode == 2
    assert "is to be sent again: 3 done" in nothing.stderr


def dead(cluster, node):
    return any(state.startswith("down") for state in cluster.states())


def test_what_slurm_refuses_is_one_sentence_and_nothing_is_left(harness, tmp_path):
    for words, said in (
        (("--sbatch", "--partition=nowhere"), "sbatch refused: "),
        (("--sbatch", "gpu"), "--sbatch takes options such as --partition=gpu, and 'gpu' is none"),
        (("--sbatch", "'"), "cannot be split into words"),
        (
            ("--shards", "60", "--processes", "60"),
            "60 shards are too many for this cluster, whose arrays have fewer than 50",
        ),
        (("--processes", "1"), "2 shards take a study of as many processes or more, and this one has 1"),
    ):
        given = ["submit", tmp_path / "study.toml", "--shards", "2", "--processes", "2", *words]
        done = harness(*given, "--out", tmp_path / "out")
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_cancel_ends_the_array_and_keeps_what_is_measured(cluster, harness, tmp_path):
    text = STUDY.replace("block_s = 0.01", "block_s = 60.0").replace("rounds = 4", "rounds = 10000")
    (tmp_path / "study.toml").write_text(text)
    out = tmp_path / "long"
    assert harness("submit", tmp_path / "study.toml", "--shards", "4", "--processes", "4", "--out", out).returncode == 0
    cluster.wait_for(lambda: "running" in states(harness, out), "a shard to run")
    done = harness("cancel", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cancelled: ")
    cluster.wait_for(lambda: not {"pending", "running"} & set(states(harness, out)), "the array to end")
    assert set(states(harness, out)) <= {"lost", "failed"}


def test_a_task_past_its_time_says_so_and_it_alone_goes_on_with_more(cluster, harness, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.replace("block_s = 0.01", "block_s = 1.0").replace("= 4\n", "= 9999\n"))
    out = tmp_path / "sent"
    given = ["--shards", "2", "--processes", "200", "--sbatch", "--time=10", "--out", out]
    assert harness("submit", tmp_path / "study.toml", *given).returncode == 0
    cluster.wait_for(lambda: blocks_of(out), "a block of the first shard")
    cluster.run("scontrol", "update", f"JobId={submission.load(out).jobs[0]}_1", "EndTime=now+1")
    cluster.wait_for(lambda: states(harness, out) == ["lost", "running"], "Slurm, which looks every half a minute")
    said = harness("status", out)
    assert said.returncode == 1
    assert "its time limit was reached" in " ".join(said.stdout.split())
    kept, blocks = (out / "shard-1" / FILE).read_bytes(), blocks_of(out)
    assert harness("report", out / "shard-1", "--no-html").returncode == 0
    again = harness("submit", "--resume", "--sbatch", "--time=30", "--out", out)
    assert "1 tasks" in again.stdout, again.stderr
    cluster.wait_for(lambda: blocks_of(out) > blocks, "a block more")
    limits = cluster.run("squeue", "--noheader", "--array", "--states=R", "--format=%K %l").splitlines()
    assert sorted(limits) == ["1 30:00", "2 10:00"]
    assert (out / "shard-1" / FILE).read_bytes().startswith(kept)
    assert harness("cancel", out).returncode == 0
    cluster.wait_for(lambda: states(harness, out) == ["lost", "lost"], "both to end")
    assert " ".join(harness("status", out).stdout.split()).count("it was cancelled") == 2


def blocks_of(out):
    """How many blocks the first shard has measured."""
    file = out / "shard-1" / FILE
    return len(latest_blocks(read_run(out / "shard-1"), "block")) if file.exists() else 0


def test_a_folder_that_is_taken_is_a_failure_with_its_reason_in_the_log(cluster, harness, tmp_path):
    out = tmp_path / "sent"
    given = ["--shards", "2", "--processes", "2", "--sbatch", "--hold", "--out", out]
    done = harness("submit", tmp_path / "study.toml", *given)
    assert done.returncode == 0, done.stderr
    assert states(harness, out) == ["pending", "pending"]
    (out / "shard-2").mkdir()
    (out / "shard-2" / "something else").write_text("")
    cluster.run("scontrol", "release", done.stdout.split()[1].rstrip(":"))
    cluster.wait_for(lambda: not {"pending", "running"} & set(states(harness, out)), "the array to end")
    assert states(harness, out) == ["done", "failed"]
    said = harness("status", out)
    assert said.returncode == 1
    assert "exit status 2, see" in " ".join(said.stdout.split())
    assert "holds no records to continue" in (out / "logs" / "shard-2.log").read_text()
