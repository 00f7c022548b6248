"""The schedule of a run: what is measured first, what later processes repeat, what a budget cuts."""

import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from harness.machine import environment
from harness.records.schema import ArmTiming
from harness.run import jobs, schedule
from harness.run.progress import ProgressReport
from harness.study import matrix, study
from harness.study.configuration import Configuration
from harness.study.matrix import Cell, Framework, Job, Rank
from harness.study.parts import PAIR, arms_by_part
from harness.study.study import Study
from impls.interface import Arm
from tests.conftest import SMALL
from tests.made import block, execution
from tests.study.test_parts import ATTEMPT, CONFIG, EVERY, STUDY, bench_with, records


def test_a_first_replicate_leaves_time_for_more(monkeypatch):
    """However long its jobs would go on: each ends when its time does, and what is left is the others'."""
    wanted = study.Study(sweep="book", budget_s=1000.0, processes=2)
    xla = execution(traced=True, loop="scan")
    jax = Framework("jax", executions={"xla": xla})
    made = matrix.make_plan(wanted, [replace(jax, devices={"cpu": None})], [1, 2])
    now, ends = [0.0], []

    def work(bench, job, left_s, stage):
        if job.blocks and job.blocks[0].timed and job.replicate == 0:
            now[0] += left_s()
            ends.append(now[0])
        return iter(())

    monkeypatch.setattr(schedule.jobs, "work", work)
    bench = SimpleNamespace(study=wanted, basis={})
    report = SimpleNamespace(expect=lambda count: None, stage=None)
    list(schedule.Schedule(bench, made, [], lambda: now[0], report).records())
    assert ends == pytest.approx([250.0, 500.0])


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


def planned(sweep=None):
    """A study in one and two threads, of which one would write the scan, and its plan."""
    study = Study(workloads=[SMALL], sweep=sweep)
    arms = [(SMALL, arm) for arm in EVERY] + [(point, Arm("scan", "batched")) for point in study.swept]
    configurations = [CONFIG, replace(CONFIG, threads=2)]
    cells = [
        Cell(configuration, workload, "forward", arm) for configuration in configurations for workload, arm in arms
    ]
    return study, matrix.Plan(cells, [], dict.fromkeys(configurations, "scan"), threads=1)


def staged(study, made, folder):
    """What each stage with jobs does: its replicate, and each thread count's parts, that of the sweep by its name."""
    bench = jobs.RunContext(study, {}, folder, folder, None, {})
    run = schedule.Schedule(bench, made, [], lambda: 0.0, SimpleNamespace())
    return [
        (number, {job.configuration.threads: {"sweep" if b.is_swept else b.part for b in job.blocks} for job in some})
        for number, some in run._stages()
        if some
    ]


def test_the_question_comes_first_and_then_the_rest_as_often_as_a_pilot(tmp_path):
    rest = set(arms_by_part(EVERY)) - {"scan"}
    stages = staged(*planned(), tmp_path)
    assert stages[:3] == [(number, {1: {"scan", "given"}}) for number in (0, 1, 2)]
    assert stages[3:5] == [(number, {1: {"scan"}}) for number in (3, 4)]
    assert stages[5:8] == [(number, {2: {"scan"}}) for number in (0, 1, 2)]
    assert stages[8:] == [(number, {1: rest - {"given"}, 2: rest}) for number in (0, 1, 2)]


def test_the_projection_alone_comes_after_the_question_in_a_job_and_its_training_with_the_rest():
    cells = [Cell(CONFIG, SMALL, pass_, arm) for pass_ in ("forward", "train") for arm in EVERY]
    plan = matrix.Plan(cells, [], {CONFIG: "scan"}, threads=1)
    ranks = [Rank.HEADLINE, Rank.ALONE]
    (job,) = matrix.replicate_jobs(plan, Study(workloads=[SMALL], sweep=None), 0, ranks)
    assert [(b.part, b.pass_) for b in job.blocks] == [("scan", "forward"), ("scan", "train"), ("given", "forward")]


def test_a_pass_that_users_seldom_run_comes_after_the_question_and_before_more_threads(tmp_path):
    eager = replace(execution(loop="unrolled"), usual_passes=("forward",))
    framework = Framework("jax", executions={"eager": eager, "xla": execution()}, devices={"cpu": None})
    study = Study(workloads=[SMALL], frameworks=["jax"], recurrences=["unrolled"], sweep=None)
    made = matrix.make_plan(study, [framework], [1, 2])
    run = schedule.Schedule(jobs.RunContext(study, {}, tmp_path, tmp_path, None, {}), made, [], lambda: 0.0, None)
    stages = [
        (
            number,
            {(job.configuration.execution, job.configuration.threads, b.pass_) for job in some for b in job.blocks},
        )
        for number, some in run._stages()
    ]
    question = {("eager", 1, "forward"), ("xla", 1, "forward"), ("xla", 1, "train")}
    seldom = {("eager", 1, "train")}
    more = {(name, 2, pass_) for name in ("eager", "xla") for pass_ in ("forward", "train")}
    expected = [(number, question) for number in range(5)]
    expected += [(number, stage) for stage in (seldom, more) for number in range(study.pilot)]
    assert stages[: len(expected)] == expected


def test_what_few_run_in_is_verified_and_measured_with_the_rest(tmp_path, monkeypatch):
    usual, odd = execution(loop="unrolled"), replace(execution(loop="unrolled"), usual_passes=())
    framework = Framework("torch", executions={"inductor": usual, "inductor-batched": odd}, devices={"cpu": None})
    study = Study(workloads=[SMALL], sweep=SMALL, passes=["forward"])
    made = matrix.make_plan(study, [framework], [1])
    bench = jobs.RunContext(study, {"torch": framework}, tmp_path, tmp_path, None, {})
    order = []

    def note(context, job, left_s, stage):
        order.extend((job.configuration.execution, todo.timed) for todo in job.blocks)
        return iter(())

    monkeypatch.setattr(schedule.jobs, "work", note)
    monkeypatch.setattr(schedule.Schedule, "_required_sample_sizes", no_sizes)
    with ProgressReport(0) as progress:
        list(schedule.Schedule(bench, made, [], lambda: 0.0, progress).records())
    first = list(dict.fromkeys(order))
    assert first == [("inductor", False), ("inductor", True), ("inductor-batched", False), ("inductor-batched", True)]


@pytest.mark.parametrize(("spent_s", "left_s"), [(0.0, 10.0), (85.0, 10.0), (95.0, 5.0), (130.0, -30.0)])
def test_a_verification_has_its_share_and_no_more_than_is_left(tmp_path, monkeypatch, spent_s, left_s):
    bench = jobs.RunContext(Study(workloads=[SMALL], budget_s=100.0), {}, tmp_path, tmp_path, None, {})
    found = []
    monkeypatch.setattr(schedule, "run_in_parallel", lambda context, checks, left, report: found.append(left()) or [])
    run = schedule.Schedule(bench, matrix.Plan([], []), [], lambda: spent_s, SimpleNamespace())
    assert list(run._run_checks([])) == []
    assert found == [pytest.approx(left_s)]


def test_forecasts_are_made_before_what_they_are_about_and_the_sweep_is_done_with_the_rest(tmp_path):
    study, made = planned(SMALL)
    stages = staged(study, made, tmp_path)
    assert stages[0] == (0, {1: {"sweep", "scan", "given"}})
    assert stages[5] == (0, {2: {"sweep", "scan"}})
    assert [("sweep" in parts_[1]) for _, parts_ in stages if 1 in parts_] == [True, *[False] * 4, *[True] * 3]
    first = matrix.replicate_jobs(made, study, 0)[0].blocks
    assert [todo.workload for todo in first[:2]] == study.swept[:2]
    *earlier, last = Rank
    done = [matrix.replicate_jobs(made, study, 0, ranks) for ranks in (earlier, [last])]
    together = [todo for some in done for todo in next(job for job in some if job.configuration == CONFIG).blocks]
    assert len(together) == len(set(together))
    assert set(together) == set(
        next(job for job in matrix.replicate_jobs(made, study, 0) if job.configuration == CONFIG).blocks
    )


@pytest.mark.parametrize("outcome", ["no time", "not_reached", "others", "wrong", "ok"])
def test_what_the_question_had_no_time_for_is_tried_once_more_before_the_rest(tmp_path, monkeypatch, outcome):
    """A block that went wrong is not tried again, nor one that lacks other arms than in_loop and batched."""
    study, made = planned()
    bench = jobs.RunContext(study, {"torch": SimpleNamespace(executions={})}, tmp_path, tmp_path, None, {})
    started = []

    def work(context, job, left_s, stage):
        for todo in job.blocks:
            started.append((job.configuration.threads, job.replicate, todo.part))
            short = job.configuration == CONFIG and todo.part == "scan" and started.count(started[-1]) == 1
            status = outcome if short and job.replicate == 0 else "ok"
            if status != "no time":
                arm = ArmTiming(status="ok", reason="", first_call_ns=1, calls=1, samples_ns=[1, 1, 1])
                late = [one.name for one in todo.arms if status != "others" or one.projection not in PAIR]
                lost = arm.withheld("not_reached" if status == "others" else status, "")
                arms = {one.name: lost if status != "ok" and one.name in late else arm for one in todo.arms}
                yield jobs._empty_record(bench, job, todo).model_copy(update={"arms": arms, "status": "ok"})

    monkeypatch.setattr(schedule.jobs, "work", work)
    monkeypatch.setattr(schedule.Schedule, "_required_sample_sizes", no_sizes)
    report = SimpleNamespace(expect=lambda count: None, stage=None, block=lambda line: None)
    run = schedule.Schedule(bench, made, [], lambda: 0.0, report)
    monkeypatch.setattr(run, "_run_checks", lambda checks: iter(()))
    list(run.records())
    again = outcome in ("no time", "not_reached")
    question = [entry for entry in started if entry[0] == 1 and entry[2] == "scan"]
    measured = [] if outcome == "wrong" else [(1, number, "scan") for number in (1, 2, 3, 4)]
    assert question == [(1, 0, "scan")] * (2 if again else 1) + measured
    rest = started.index(next(entry for entry in started if entry[2] not in ("scan", "given")))
    assert max(place for place, entry in enumerate(started) if entry[2] == "scan") < rest or not again


def no_sizes(run):
    yield from ()
    return {}


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


def test_the_replicate_that_compiles_begins_with_the_cheapest():
    configurations = [Configuration(name, "cpu", 1, "x", "fp32") for name in ("dear", "cut", "cheap")]
    costs = {"dear": [("ok", 5), ("ok", 6)], "cut": [("ok", 1), ("not_reached", None)], "cheap": [("ok", 2), ("ok", 3)]}
    costs["cheap"].append(("unavailable", None))  # costs nothing, and is not cut
    checked = [
        block({"framework": name, "execution": "x", "arms": {"a": {"status": s, "first_call_ns": ns}}})
        for name, calls in costs.items()
        for s, ns in calls
    ]
    ordered = schedule._sort_by_cost([Job(configuration, 0, ()) for configuration in configurations], checked)
    assert [job.configuration.framework for job in ordered] == ["cheap", "dear", "cut"]


class Unhurried:
    """Made-up jobs: "slow" is not done before "fast" has been seen, or gives up and says so."""

    def __init__(self):
        self.fast_seen, self.stopped = threading.Event(), []

    def work(self, bench, job, left_s, stage):
        if job.configuration.framework == "slow":
            said = "ok" if self.fast_seen.wait(5) else "waited in vain"
            self.stopped.append(left_s() == 0)
            yield record_of(job, said)
        else:
            yield from (record_of(job, "ok") for _ in range(2))


def record_of(job, status):
    return block(asdict(job.configuration) | {"kind": "check", "status": status})


@pytest.fixture
def unhurried(monkeypatch):
    made = Unhurried()
    monkeypatch.setattr(jobs, "work", made.work)
    monkeypatch.setattr(schedule, "end_all", made.fast_seen.set)  # its worker is killed, and the job ends
    monkeypatch.setattr(environment, "cores", lambda: 2)
    configurations = [Configuration(name, "cpu", 1, "x", "fp64") for name in ("slow", "fast")]
    with ProgressReport(3) as progress:
        yield (
            made,
            schedule.run_in_parallel(
                None, [Job(configuration, 0, ()) for configuration in configurations], lambda: 1.0, progress
            ),
        )


def test_what_is_verified_is_a_record_as_soon_as_it_is_done(unhurried):
    made, records = unhurried
    seen = [next(records) for _ in range(2)]
    made.fast_seen.set()
    seen += records
    assert [(record.configuration.framework, record.status) for record in seen] == [("fast", "ok")] * 2 + [
        ("slow", "ok")
    ]


def test_ctrl_c_loses_no_verification_that_is_done(unhurried):
    made, records = unhurried
    kept = [next(records) for _ in range(2)]
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt())
    assert [record.configuration.framework for record in kept] == ["fast", "fast"]
    assert made.stopped == [True]


def test_what_ends_a_verification_is_raised_where_it_is_asked_for(monkeypatch, unhurried):
    def full(bench, job, left_s, stage):
        raise OSError("a full disk")
        yield

    monkeypatch.setattr(jobs, "work", full)
    with pytest.raises(OSError, match="a full disk"):
        list(unhurried[1])
