"""Shards of a study and their merging: what a merged run has, and what is refused."""

import errno
import json
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from harness import report
from harness.analysis.loading import read_tables
from harness.errors import UsageError
from harness.records import store
from harness.records.schema import BlockRecord
from harness.records.store import FILE, latest_blocks, read_run
from harness.run import merge, session
from harness.study.study import Study, load_study
from tests.run.test_session import study

pytestmark = pytest.mark.usefixtures("numpy_backend", "undrawn")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder for the two shards, which are measured once."""
    return tmp_path_factory.mktemp("measured")


@pytest.fixture
def shards(tmp_path, measured, monkeypatch):
    """The folders of the two shards of a study of five processes, each from a node of its own."""
    for number in (1, 2):
        monkeypatch.setenv("SLURMD_NODENAME", f"n{number}")
        if not (measured / f"s{number}").exists():
            session.run(study(processes=5, shard=f"{number}/2", peaks=True), measured / f"s{number}", False, "")
        shutil.copytree(measured / f"s{number}", tmp_path / f"s{number}")
    return [tmp_path / "s1", tmp_path / "s2"]


def test_shards_are_joined_to_what_the_whole_study_measures(shards, tmp_path):
    records = merge.merge([shards[1], shards[0]], tmp_path / "all", "merge")
    session.run(study(processes=5, peaks=True), tmp_path / "whole", False, "")
    blocks = latest_blocks(records, "block")
    assert sorted({block.replicate for block in blocks}) == [0, 1, 2, 3, 4]
    assert {block.node for block in blocks if block.replicate in (0, 2, 4)} == {"n1"}
    assert {block.node for block in blocks if block.replicate in (1, 3)} == {"n2"}
    assert len({record.key for record in records}) == len(records)
    merged, whole = (read_tables(tmp_path / name) for name in ("all", "whole"))
    for frame in ("gaps", "contrasts", "peaks", "identity"):
        keys = [c for c in getattr(whole, frame).columns if c in {*merged.times.columns, "contender", "quantity"}]
        same = [getattr(t, frame)[[k for k in keys if k != "status"]].values.tolist() for t in (merged, whole)]
        assert same[0] == same[1], frame
    counts = [t.times.groupby(["pass", "recurrence", "projection"]).size().to_dict() for t in (merged, whole)]
    assert counts[0] == counts[1]
    assert set(merged.gaps.processes) == {2}  # nodes, which are the unit
    assert set(whole.gaps.processes) == {5}


def test_each_shard_orders_and_seeds_its_processes_by_itself(shards):
    first, second = ([r for r in read_run(folder) if isinstance(r, BlockRecord)] for folder in shards)
    assert not {r.seed for r in first} & {r.seed for r in second}
    assert not {r.key for r in first} & {r.key for r in second}
    assert {r.kind for r in first} == {"block", "check", "peaks"}
    assert {r.kind for r in second} == {"block", "check"}  # memory is measured once


def test_the_report_says_what_intervals_are_over(shards, tmp_path):
    merge.merge(shards, tmp_path / "all", "merge")
    report.write(tmp_path / "all", html=False)
    text = (tmp_path / "all" / "report.md").read_text()
    assert "Merged from 2 shards, measured on 2 nodes (n1, n2): each node's processes are averaged first" in text
    page = (tmp_path / "all" / "appendix" / "nodes.md").read_text()
    assert "| 1/2 | n1 |" in page
    assert "comparisons, `nodes.csv`" in page


def rewritten(folder, change):
    """Change every record of a run."""
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def timed(factor):
    """Made-up times of every record: a millisecond, `factor` times that for in_loop; processes differ by a hundredth.

    They do not depend on how many samples there was time for.
    """

    def change(line):
        for name, arm in line.get("arms", {}).items():
            mean_ns = 1e6 * random.Random(line["key"] + name).gauss(1, 0.01)
            mean_ns *= factor if name.endswith("in_loop") else 1
            arm["samples_ns"] = [round(mean_ns)] * len(arm.get("samples_ns") or [])

    return change


def test_a_node_that_disagrees_is_named_and_none_that_does_not(tmp_path, monkeypatch):
    folders = [tmp_path / f"s{number}" for number in (1, 2, 3)]
    for number, folder in enumerate(folders, 1):
        monkeypatch.setenv("SLURMD_NODENAME", f"n{number}")
        session.run(study(processes=9, rounds=6, passes=["forward"], shard=f"{number}/3"), folder, False, "")
    for factor, named in ((1.0, set()), (3.0, {"n2"})):
        for folder in folders:
            rewritten(folder, timed(factor if folder.name == "s2" else 1.0))
        merge.merge(folders, tmp_path / f"all-{factor}", "merge")
        report.write(tmp_path / f"all-{factor}", html=False)
        text = (tmp_path / f"all-{factor}" / "report.md").read_text()
        assert ("**A node disagrees with the others**" in text) == bool(named)
        assert ("n2 at " in text) == bool(named)
        frame = read_tables(tmp_path / f"all-{factor}").nodes
        assert set(frame[frame.disagrees & (frame.contender == "in_loop")].node) == named


def machine(line):
    if line["kind"] == "study":
        line["basis"]["machine"]["cpu"] = "Another CPU"


def versions(line):
    if line["kind"] == "study":
        line["basis"]["versions"]["libraries"]["numpy"] = "0.1"


def code(line):
    if line["kind"] == "study":
        line["basis"]["code"]["hash"] = "0" * 16


def rounds(line):
    if line["kind"] == "study":
        line["study"]["rounds"] = 99


def whole(line):
    if line["kind"] == "study":
        line["study"]["shard"] = None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (machine, "cannot be merged with .*: the machines are of another kind: cpu is .* and Another CPU; `report` of"),
        (versions, "other versions of the frameworks or libraries"),
        (code, "measured by other code"),
        (rounds, "the studies differ in rounds"),
    ],
)
def test_shards_that_are_not_of_one_study_on_one_kind_of_machine_are_refused(change, said, shards, tmp_path):
    rewritten(shards[1], change)
    before = [(folder / FILE).read_bytes() for folder in shards]
    with pytest.raises(UsageError, match=said):
        merge.merge(shards, tmp_path / "all", "merge")
    assert not (tmp_path / "all").exists()
    assert [(folder / FILE).read_bytes() for folder in shards] == before


def test_a_shard_twice_a_missing_one_and_what_is_none_are_refused(shards, tmp_path):
    out = tmp_path / "all"
    with pytest.raises(UsageError, match=r"x is shard 1 of 2, and so is .*s1"):
        merge.merge([shards[0], shutil.copytree(shards[0], tmp_path / "x")], out, "")
    with pytest.raises(UsageError, match="shard 2 of 2 is missing: 1 were given"):
        merge.merge(shards[:1], out, "")
    rewritten(shards[1], whole)
    with pytest.raises(UsageError, match="holds no shard: it is of a run without --shard"):
        merge.merge(shards, out, "")
    with pytest.raises(UsageError, match="nowhere is no folder of a shard"):
        merge.merge([tmp_path / "nowhere"], out, "")
    assert not out.exists()


def test_a_shard_continues_only_itself_and_a_merged_run_is_not_continued(shards, tmp_path):
    with pytest.raises(UsageError, match="its records are those of shard 1/2, and not of shard 2/2"):
        session.run(study(processes=5, shard="2/2", peaks=True), shards[0], True, "")
    merge.merge(shards, tmp_path / "all", "merge")
    with pytest.raises(UsageError, match="it was merged from shards: continue those, and merge them again"):
        session.run(study(processes=5, peaks=True), tmp_path / "all", True, "")


@pytest.mark.parametrize("written", [0, 1, 5])
def test_a_merge_that_a_full_disk_ends_leaves_no_part_of_it(written, shards, tmp_path, monkeypatch):
    left, out = iter([True] * written), tmp_path / "all"

    def fsync(file):
        if not next(left, False):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(store.os, "fsync", fsync)
        with pytest.raises(OSError, match=re.escape(str(out / FILE))):
            merge.merge(shards, out, "")
    assert not list(out.iterdir())
    assert merge.merge(shards, out, "")


def test_weights_that_a_merge_cannot_write_are_named(shards, tmp_path, monkeypatch):
    def write_bytes(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match=r"all/weights/.*safetensors"):
        merge.merge(shards, tmp_path / "all", "")
    assert not list((tmp_path / "all").iterdir())


def test_what_a_dead_shard_has_is_kept_and_it_alone_is_redone(shards):
    whole = (shards[1] / FILE).read_bytes()
    kept = b"".join(whole.splitlines(keepends=True)[:-2])
    (shards[1] / FILE).write_bytes(kept + b'{"schema": 1, "kin')
    session.run(study(processes=5, shard="2/2", peaks=True), shards[1], True, "")
    assert (shards[1] / FILE).read_bytes().startswith(kept)
    assert len((shards[1] / FILE).read_bytes().splitlines()) == len(whole.splitlines())


def test_the_processes_of_all_shards_are_those_of_the_study():
    for processes, count in ((5, 2), (8, 8), (17, 4)):
        own = [Study(processes=processes, shard=f"{n}/{count}").own_processes for n in range(1, count + 1)]
        assert sum(own) == processes
        assert all(a >= b for a, b in pairwise(own))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shard": "3/2", "processes": 4}, "shard takes i/n, such as 2/8, with i from 1 to n, not '3/2'"),
        ({"shard": "0/2", "processes": 4}, "shard takes i/n"),
        ({"shard": "half", "processes": 4}, "shard takes i/n"),
        ({"shard": "1/2"}, "shard takes a study of a known number of processes: give --processes"),
        ({"shard": "1/8", "processes": 4}, "shard 1/8 of 4 processes: some shards would have none"),
    ],
)
def test_an_impossible_shard_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        load_study(None, None, given)
