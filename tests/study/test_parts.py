"""Which arms are timed side by side: the question's have blocks of their own, and nothing is counted twice."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.analysis import sample_size
from harness.analysis.gaps import _all_pairs, samples_by_gap
from harness.run import jobs, schedule
from harness.study import matrix
from harness.study.configuration import Configuration
from harness.study.matrix import Cell, Job, Rank
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
        assert [arm.name for arm in made[loop]] == [f"{loop}_{p}" for p in ("none", "in_loop", "per_step", "batched")]


def test_every_arm_is_at_home_in_one_part_and_each_part_has_what_it_compares_with():
    homes = [
        a for part, arms in arms_by_part(EVERY).items() for a in arms if part_of(a.recurrence, a.projection) == part
    ]
    assert sorted(arm.name for arm in homes) == sorted(arm.name for arm in EVERY)
    assert names("scan-others")[-1] == "scan_batched"
    assert {"unrolled_in_loop", "scan_in_loop", "layer_batched"} <= set(names("layer"))
    assert not any(name.startswith(("unrolled", "scan")) for name in names("given"))
    assert list(arms_by_part([Arm("scan", "bmm"), Arm("scan", "vmap")])) == ["scan-others"]


def test_a_guest_has_no_control():
    made = {todo.part: todo for todo in matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)}
    assert [part for part, todo in made.items() if todo.has_control] == ["unrolled", "scan", "layer", "given"]
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


@pytest.mark.parametrize("first", [3, 40])
def test_later_processes_sample_as_the_first_did(tmp_path, first):
    bench = jobs.RunContext(Study(workloads=[SMALL]), {}, tmp_path, tmp_path, None, {})
    run = schedule.Schedule(bench, matrix.Plan([], []), [], lambda: 0.0, SimpleNamespace())
    for calls, replicate in ((first, 0), (1, 1)):
        for record in records(1):
            for arm in record.arms.values():
                arm.calls = calls
            run.current_records.append(record.model_copy(update={"replicate": replicate}))
    job = Job(CONFIG, 2, tuple(matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)))
    assert {todo.calls for todo in run._match_calls(job).blocks} == {first}
    requests = [jobs._request(bench_with(bench), job, todo, ATTEMPT) for todo in run._match_calls(job).blocks]
    assert {request.calls for request in requests} == {first}


def bench_with(bench):
    """One whose framework says what a request needs."""
    framework = matrix.Framework("numpy", executions={"eager": execution()})
    return jobs.RunContext(bench.study, {"numpy": framework}, bench.weights, bench.cache, None, {})


def test_a_block_of_guests_alone_is_left_out():
    job = Job(CONFIG, 1, tuple(matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)))
    reached = {(CONFIG, SMALL.name, "forward", name) for name in ("scan_batched", "scan_in_loop")}
    assert [todo.part for todo in schedule._drop_unreached(job, reached).blocks] == ["scan"]


def test_a_block_that_lost_what_it_compares_with_is_left_out():
    job = Job(CONFIG, 1, tuple(matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)))
    reached = {(CONFIG, SMALL.name, "forward", arm.name) for arm in EVERY}
    assert len(schedule._drop_unreached(job, reached).blocks) == len(job.blocks)
    reached_but_it = reached - {(CONFIG, SMALL.name, "forward", "scan_batched")}
    assert "scan" not in {todo.part for todo in schedule._drop_unreached(job, reached_but_it).blocks}
    alone = Job(CONFIG, 1, tuple(matrix.blocks_of({(SMALL, "forward"): [Arm("scan", "in_loop")]}, STUDY)))
    assert schedule._drop_unreached(alone, reached) == alone


def test_arms_that_are_not_the_question_take_less_of_the_time(tmp_path):
    bench = bench_with(jobs.RunContext(Study(workloads=[SMALL]), {}, tmp_path, tmp_path, None, {}))
    job = Job(CONFIG, 0, tuple(matrix.blocks_of({(SMALL, "forward"): EVERY}, STUDY)))
    times = {todo.part: jobs._request(bench, job, todo, ATTEMPT).rounds.block_s for todo in job.blocks}
    assert math.isclose(times["scan"], 3 * times["layer"])
    assert times["scan"] == bench.study.block_s


def planned(sweep=None):
    """A study in one and two threads, of which one would write the scan, and its plan."""
    study = Study(workloads=[SMALL], sweep=sweep)
    arms = [(SMALL, arm) for arm in EVERY] + [(point, Arm("scan", "batched")) for point in study.swept]
    configurations = [CONFIG, replace(CONFIG, threads=2)]
    cells = [
        Cell(configuration, workload, "forward", arm) for configuration in configurations for workload, arm in arms
    ]
    return study, matrix.Plan(cells, [], dict.fromkeys(configurations, "scan"), 1)


def staged(study, made, folder):
    """What each stage does: its replicate, and each thread count's parts, that of the sweep by its name."""
    bench = jobs.RunContext(study, {}, folder, folder, None, {})
    run = schedule.Schedule(bench, made, [], lambda: 0.0, SimpleNamespace())
    return [
        (number, {job.configuration.threads: {"sweep" if b.is_swept else b.part for b in job.blocks} for job in some})
        for number, some in run._stages()
    ]


def test_the_question_comes_first_and_then_the_rest_as_often_as_a_pilot(tmp_path):
    rest = set(arms_by_part(EVERY)) - {"scan"}
    stages = staged(*planned(), tmp_path)
    assert stages[0] == (0, {1: {"scan"}, 2: {"scan"}})
    assert stages[1:5] == [(number, {1: {"scan"}}) for number in (1, 2, 3, 4)]
    assert stages[5:7] == [(number, {2: {"scan"}}) for number in (1, 2)]
    assert stages[7:] == [(number, {1: rest, 2: rest}) for number in (0, 1, 2)]


def test_forecasts_are_made_before_what_they_are_about_and_the_sweep_is_done_with_the_rest(tmp_path):
    study, made = planned(SMALL)
    stages = staged(study, made, tmp_path)
    assert stages[0] == (0, {1: {"sweep", "scan"}, 2: {"sweep", "scan"}})
    assert [("sweep" in parts_[1]) for _, parts_ in stages if 1 in parts_] == [True, *[False] * 4, *[True] * 3]
    first = matrix.replicate_jobs(made, study, 0)[0].blocks
    assert [todo.workload for todo in first[:2]] == study.swept[:2]
    done = [
        matrix.replicate_jobs(made, study, 0, ranks) for ranks in ([Rank.HEADLINE, Rank.OTHER_THREADS], [Rank.REST])
    ]
    together = [todo for some in done for todo in next(job for job in some if job.configuration == CONFIG).blocks]
    assert len(together) == len(set(together))
    assert set(together) == set(
        next(job for job in matrix.replicate_jobs(made, study, 0) if job.configuration == CONFIG).blocks
    )


def test_the_loop_that_one_would_write_comes_before_the_other_where_all_is_one_job():
    study, made = planned(SMALL)
    (job, _) = matrix.replicate_jobs(made, study, 0)
    calibration = study.swept[:2]
    order = ["points" if block.is_swept and block.workload in calibration else block.part for block in job.blocks]
    assert order[:4] == ["points", "points", "scan", "unrolled"]


def test_a_number_of_processes_is_everything_s(tmp_path):
    study, made = planned(SMALL)
    every = {*arms_by_part(EVERY), "sweep"}
    stages = staged(study.model_copy(update={"processes": 2}), made, tmp_path)
    assert stages == [(number, {1: every, 2: every}) for number in (0, 1)]


def test_a_prototype_gets_no_further_processes(tmp_path):
    study = Study(workloads=[SMALL], processes=None, target=1e-9)
    framework = matrix.Framework("numpy", executions={"eager": execution(prototypes={"scan": "marked so upstream"})})
    bench = jobs.RunContext(study, {"numpy": framework}, tmp_path, tmp_path, None, {})
    run = schedule.Schedule(bench, matrix.Plan([], []), [], lambda: 0.0, SimpleNamespace())
    run.current_records = records(3)
    (asked,) = run._required_sample_sizes()
    assert [row.part for row in asked.needs] == ["unrolled"]


@pytest.mark.parametrize(("left", "jobs_left", "end"), [(100.0, 2, 150.0), (100.0, 20, 106.0), (4.0, 20, 104.0)])
def test_a_first_process_has_a_fair_share_of_the_time_or_enough_to_start(left, jobs_left, end):
    assert schedule._fair_end(100.0, 100.0 + left, jobs_left) == end
