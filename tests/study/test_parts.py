"""Which arms are timed side by side: the question's have blocks of their own, and nothing is counted twice."""

from pathlib import Path

from harness.analysis import sample_size
from harness.analysis.gaps import _all_pairs, samples_by_gap
from harness.run import jobs
from harness.study import matrix
from harness.study.configuration import Configuration
from harness.study.matrix import Cell
from harness.study.parts import arms_by_part, is_question, part_of
from harness.study.study import Study
from impls.interface import IMPOSSIBLE, PROJECTIONS, RECURRENCES, Arm
from tests.conftest import SMALL
from tests.made import block, execution

EVERY = [arm for r in RECURRENCES for p in PROJECTIONS if (arm := Arm(r, p)).name not in IMPOSSIBLE]
CONFIG = Configuration("numpy", "cpu", 1, "eager", "fp32")
STUDY = Study(workloads=[SMALL])
ATTEMPT = jobs.Attempt(1, 60.0, Path("outputs"))


def names(part):
    return [arm.name for arm in arms_by_part(EVERY)[part]]


def test_the_question_has_blocks_of_its_own_which_come_first():
    made = arms_by_part(Study().arms)
    assert list(made) == ["unrolled", "scan", "layer", "given"]
    for loop in ("unrolled", "scan"):
        forms = ["none", "in_loop", "per_step", "bmm", "batched", "hoisted"]
        assert [arm.name for arm in made[loop]] == [f"{loop}_{form}" for form in forms]


def test_every_arm_is_at_home_in_one_part_and_each_part_has_what_it_compares_with():
    homes = [
        a for part, arms in arms_by_part(EVERY).items() for a in arms if part_of(a.recurrence, a.projection) == part
    ]
    assert sorted(arm.name for arm in homes) == sorted(arm.name for arm in EVERY)
    assert names("scan-others")[-1] == "scan_batched"
    assert {"unrolled_in_loop", "scan_in_loop", "layer_batched"} <= set(names("layer"))
    assert not any(name.startswith(("unrolled", "scan")) for name in names("given"))
    assert list(arms_by_part([Arm("scan", "library"), Arm("scan", "vmap")])) == ["scan-others"]


def test_a_guest_has_no_control():
    made = {todo.part: todo for todo in matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)}
    with_control = ["unrolled", "scan", "layer", "given", "modules"]
    assert [part for part, todo in made.items() if todo.has_control] == with_control
    assert [is_question(part) for part in made] == sorted((is_question(part) for part in made), reverse=True)
    assert Arm("scan", "batched") not in made["scan-others"].own_arms


def records(replicates=2):
    """What the parts of every arm come to in some processes; twins too, each sample its own number."""
    made, number = [], 0
    for replicate in range(replicates):
        for todo in matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY):
            twins = [f"{arm.recurrence}_twin" for arm in todo.own_arms if arm.projection == "batched"]
            arms = {}
            for name in [*(arm.name for arm in todo.arms), *twins]:
                number += 1
                arms[name] = {"samples_ns": [1000 + number] * 5}
            own = {"part": todo.part, "replicate": replicate, "start_s": 1.0, "seconds": 2.0, "arms": arms}
            made.append(block({"workload": SMALL.model_dump(), **own}))
    return made


def test_each_pair_is_of_one_block_and_counted_once_a_process():
    found = samples_by_gap(records(), _all_pairs)
    assert {len(sample.log_ratios) for sample, _ in found.values()} == {2}
    pairs = {key[-3:] for key in found}
    assert {("scan", "in_loop", "layer_batched"), ("scan", "bmm", "batched"), ("given", "per_step", "batched")} <= pairs


def test_what_a_guest_took_is_in_no_table_but_that_of_its_comparison():
    homes = [record.without_guests() for record in records(1)]
    seen = [name for record in homes for name in record.arms]
    assert len(seen) == len(set(seen))
    old = block({"arms": {"layer_batched": {}, "scan_in_loop": {}}})
    assert old.without_guests() == old


def test_the_question_gets_more_processes_and_the_rest_keeps_what_it_has():
    study = Study(workloads=[SMALL], processes=None, target=1e-9)
    rows = sample_size.required_sample_sizes(records(3), study)
    assert [row.part for row in rows] == ["scan", "unrolled"]
    needs = {(CONFIG, row.workload, row.pass_, row.part): matrix.SampleSize(9, 7) for row in rows}
    made = matrix.Plan([Cell(CONFIG, SMALL, "forward", arm) for arm in EVERY], [])
    (further,) = matrix.replicate_jobs(made, study, 3, needs=needs)
    assert {(todo.part, todo.rounds) for todo in further.blocks} == {("scan", 7), ("unrolled", 7)}


def test_a_study_without_the_question_knows_all_it_has():
    some = [record for record in records(3) if record.part == "given"]
    for record in some:
        record.arms.pop("given_per_step")
    assert [row.part for row in sample_size.required_sample_sizes(some, Study(workloads=[SMALL]))] == ["given"]


def bench_with(bench):
    """One whose framework says what a request needs."""
    framework = matrix.Framework("numpy", executions={"eager": execution()})
    return jobs.RunContext(bench.study, {"numpy": framework}, bench.weights, bench.cache, None, {})
