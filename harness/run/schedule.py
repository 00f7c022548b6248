"""The schedule of a run: its jobs one after another, while the budget lasts, each block a record."""

import math
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue

from harness.analysis import forecast
from harness.machine import environment
from harness.records import gates
from harness.records.schema import BlockRecord, ForecastRecord, PlanRecord, RunRecord, SampleSizeRecord
from harness.records.store import digest, latest_records
from harness.run import jobs
from harness.run.launch import end_all
from harness.run.progress import ProgressReport
from harness.study import matrix
from harness.study.configuration import Configuration
from harness.study.matrix import BlockSpec, Job, Plan, Rank, SampleSize, SampleSizes
from harness.study.parts import BATCHED, PAIR
from harness.study.study import CALIBRATING
from harness.worker.timing import NOT_REACHED
from impls.interface import Arm

CHECK_SHARE = 0.1  # largest share of the budget for the fp64 verification
COMPILE_SHARE = 0.3  # largest share of the budget for compiling first, if the study asks for it
COLD_SHARE = 0.5  # largest share of the time left for a first replicate, which compiles
LEAST_S = 6.0  # least time of a job in a first replicate: with less its worker would hardly start
Clock = Callable[[], float]
ReachedCell = tuple[Configuration, str, str, str]  # with the names of workload, pass and arm


@dataclass
class Schedule:
    """The schedule of a run.

    `earlier_records` are those of earlier sessions. `spent_s` returns the seconds since the start.
    """

    context: jobs.RunContext
    plan: Plan
    earlier_records: list[RunRecord]
    spent_s: Clock
    report: ProgressReport
    verification_records: list[BlockRecord] = field(default_factory=list)  # of a verification beside the run
    reached_cells: set[ReachedCell] = field(default_factory=set)  # cells that the first replicate measured
    forecast_configurations: set[Configuration] = field(default_factory=set)  # configurations that have a forecast

    def __post_init__(self) -> None:
        self.study = self.context.study
        self.budget_s = self.study.budget_s or math.inf
        self.current_records = [*latest_records(self.earlier_records, BlockRecord), *self.verification_records]
        self.gates = gates.Gates(self.verification_records)
        self.complete_keys = {r.key.rpartition("-")[0] for r in self.current_records if _is_complete(r)}
        cold = (r for r in self.current_records if r.kind == "block" and r.replicate == 0)
        self.reached_cells |= {cell for record in cold for cell in _measured_cells(record)}
        forecasts = (r for r in self.earlier_records if isinstance(r, ForecastRecord) and r.status == "ok")
        self.forecast_configurations |= {record.configuration for record in forecasts}

    def records(self) -> Iterator[RunRecord]:
        """Yield the records of everything planned and not yet done, each as soon as it is done.

        When the study sets a number of processes, every cell is measured in as many. When it sets none, the order is:

        1. the question in `headline_processes` processes, in the loop and the executions that users would write and
           run, with the first thread count, and the projection alone in as many of them as the pilot has; and then
           again, for what the first process had no time for;
        2. the same in passes that users seldom run, in as many processes as the pilot has; and the memory of the
           question's arms;
        3. the question with the other thread counts, in as many;
        4. the rest in as many, and the memory of the rest;
        5. the processes and rounds that the pilot asks for.

        The fp64 verification of the question's arms comes before their times, and that of others before theirs.
        """
        first_checks, other_checks = self._check_jobs()
        checks = [*first_checks, *other_checks]
        stages = self._stages()
        peaks = self._peak_jobs(Rank)
        self._update_total([checks, *(stage for _, stage in stages), peaks])
        yield from self._run_checks(first_checks)
        if self.study.compile_first:
            self._compile()
        question = [] if self.study.processes else stages[: self.study.headline_processes]
        of_question, of_rest = self._peak_jobs([Rank.HEADLINE]), self._peak_jobs([*Rank][1:])
        for number, (replicate, stage) in enumerate(stages):
            if number == len(question):  # a first process has half of the time, and its jobs fair shares of that
                for again, again_stage in question:
                    yield from self._run_stage(again, [self._drop_tried(job) for job in again_stage])
            if question and number == len(question) + self.study.pilot:  # after what users seldom run
                yield from self._run_later_replicate(of_question)
            if number == len(stages) - self.study.pilot:
                yield from self._run_checks(other_checks)
            yield from self._run_stage(replicate, stage)
        yield from self._run_later_replicate([*([] if question else of_question), *of_rest])
        if self.study.processes is None and self.spent_s() < self.budget_s:
            sizes = yield from self._required_sample_sizes()
            processes = max((size.processes for size in sizes.values()), default=0)
            replicates = range(self.study.pilot, processes)
            later_stages = [
                matrix.replicate_jobs(self.plan, self.study, replicate, needs=sizes) for replicate in replicates
            ]
            self._update_total([checks, *(stage for _, stage in stages), peaks, *later_stages])
            for stage in later_stages:
                yield from self._run_later_replicate(stage)

    def _check_jobs(self) -> tuple[list[Job], list[Job]]:
        """Return the jobs of the fp64 verification: those that come first, and those that come before the rest."""

        def checks(of_question: bool | None) -> list[Job]:
            jobs_ = matrix.fp64_check_jobs(self.plan, self.study, of_question)
            return [self._drop_complete(job) for job in jobs_]

        return (checks(None), []) if self.study.processes else (checks(True), checks(False))

    def _run_stage(self, replicate: int, stage: list[Job]) -> Iterator[RunRecord]:
        """Yield the records of a stage's jobs, all of one replicate."""
        if replicate:
            return self._run_later_replicate(stage)
        checks = [record for record in self.current_records if record.kind == "check"]
        return self._run_first_replicate(_sort_by_cost([job for job in stage if job.blocks], checks))

    def _stages(self) -> list[tuple[int, list[Job]]]:
        """Return the stages that need no result of the pilot, in order: a replicate and its jobs."""
        if self.study.processes:
            return [
                (number, matrix.replicate_jobs(self.plan, self.study, number))
                for number in range(self.study.own_processes)
            ]
        headline, alone, *others = Rank
        numbers = range(self.study.headline_processes)
        order = [(number, [headline, alone] if number < self.study.pilot else [headline]) for number in numbers]
        order += [(number, [rank]) for rank in others for number in range(self.study.pilot)]
        return [(number, matrix.replicate_jobs(self.plan, self.study, number, ranks)) for number, ranks in order]

    def _peak_jobs(self, ranks: Iterable[Rank]) -> list[Job]:
        """Return the jobs that measure memory, none where the study asks for none, or another shard has them."""
        is_first = self.study.shard_numbers[0] == 1
        return matrix.peak_jobs(self.plan, self.study, ranks) if self.study.peaks and is_first else []

    def _update_total(self, stages: list[list[Job]]) -> None:
        self.report.expect(sum(len(job.blocks) for stage in stages for job in stage))

    def _run_checks(self, checks: list[Job]) -> Iterator[RunRecord]:
        """Yield the records of a part of the fp64 verification.

        It has CHECK_SHARE of the budget, and no more than what is left of it, to begin its blocks in.
        """
        end_s = min(self.spent_s() + CHECK_SHARE * self.budget_s, self.budget_s)
        for record in run_in_parallel(self.context, checks, lambda: end_s - self.spent_s(), self.report):
            self.current_records.append(record)
            yield record

    def _compile(self) -> None:
        """Fill the compilers' caches, which has COMPILE_SHARE of the budget to begin its blocks in.

        The records are dropped: every program is called, checked and recorded again where it is timed.
        """
        end_s = self.spent_s() + COMPILE_SHARE * self.budget_s
        compilations = matrix.compilation_jobs(self.plan, self.study)
        for _ in run_in_parallel(self.context, compilations, lambda: end_s - self.spent_s(), self.report):
            pass

    def _run_first_replicate(self, stage: list[Job]) -> Iterator[RunRecord]:
        """Yield the records of a first replicate, whose jobs get fair shares of the time for compiling."""
        share, now_s = COLD_SHARE if self.study.processes != 1 else 1.0, self.spent_s()
        stage_end_s = now_s + share * max(0.0, self.budget_s - now_s)
        for position, job in enumerate(stage):
            job_end_s = _fair_end(self.spent_s(), stage_end_s, len(stage) - position)
            for record in self._run_job(self._drop_complete(job), job_end_s):
                if isinstance(record, BlockRecord) and record.kind == "block":
                    self.reached_cells |= _measured_cells(record)
                yield record

    def _run_later_replicate(self, stage: list[Job]) -> Iterator[RunRecord]:
        """Yield the records of a later replicate, which measures only what the first one reached."""
        for job in stage:
            yield from self._run_job(
                self._drop_complete(self._match_calls(_drop_unreached(job, self.reached_cells))), self.budget_s
            )

    def _run_job(self, job: Job, end_s: float) -> Iterator[RunRecord]:
        """Yield the records of a job's blocks, and the forecasts that they make possible."""
        yield from self._make_forecast(job)
        for record in jobs.work(self.context, job, lambda: end_s - self.spent_s(), self.report.stage):
            if not record.first_try:  # a first try is stored, but nothing is concluded from it
                self.report.block(progress_line(record))
                self.current_records.append(record)
                if _is_complete(record):
                    self.complete_keys.add(record.key)
            yield record
            yield from self._make_forecast(job)

    def _make_forecast(self, job: Job) -> Iterator[ForecastRecord]:
        """Yield the forecast of a configuration's unmeasured cells, once all blocks that it is made from are measured.

        Only a job with a point of a sweep has one, and a configuration has at most one.
        """
        swept = any(block.is_swept for block in job.blocks)
        if (
            not swept
            or job.configuration in self.forecast_configurations
            or not (blocks := self._calibration_blocks(job.configuration))
        ):
            return
        self.forecast_configurations.add(job.configuration)
        measured = {(r.workload.name, r.pass_) for r in self._block_records(job.configuration)}
        cells = (cell for cell in self.plan.cells if (cell.workload.name, cell.pass_) not in measured)
        yield forecast.forecast_record(job.configuration, blocks, cells, self.study)

    def _calibration_blocks(self, configuration: Configuration) -> list[BlockRecord]:
        """Return the first process's blocks that a configuration's forecast is made from; empty unless all are there.

        Of several records of a block it returns the last.
        """
        points = [point.name for point in self.study.swept[:CALIBRATING]]
        first = [record for record in self._block_records(configuration) if record.replicate == 0]
        blocks = {(r.workload.name, r.pass_): r for r in first if r.workload.name in points}
        return list(blocks.values()) if len(blocks) == len(points) * len(self.study.passes) else []

    def _block_records(self, configuration: Configuration) -> list[BlockRecord]:
        """Return the records of a configuration's blocks so far."""
        return [r for r in self.current_records if r.kind == "block" and r.configuration == configuration]

    def _match_calls(self, job: Job) -> Job:
        """Return the job with as many calls per sample, in each block, as its first process had."""
        calls = {
            (record.workload.name, record.pass_, record.part): max(arm.calls for arm in record.arms.values())
            for record in self._block_records(job.configuration)
            if record.replicate == 0
        }
        blocks = (
            replace(block, calls=calls.get((block.workload.name, block.pass_, block.part))) for block in job.blocks
        )
        return replace(job, blocks=tuple(blocks))

    def _drop_complete(self, job: Job) -> Job:
        """Return the job without the blocks that are complete, or already verified at full size."""
        keys = {block: jobs.block_key(self.context.basis, job, block) for block in job.blocks}
        blocks = (
            block for block in job.blocks if keys[block] not in self.complete_keys and not self._is_verified(job, block)
        )
        return replace(job, blocks=tuple(blocks))

    def _drop_tried(self, job: Job) -> Job:
        """Return a first replicate's job without the blocks whose pair of the question was tried, whatever came of it.

        A block that lacks other arms alone keeps what it has. A later replicate's job stays as it is: what is complete
        in it is dropped when it runs.
        """
        if job.replicate:
            return job
        first = [record for record in self._block_records(job.configuration) if record.replicate == 0]
        records = {(record.workload.name, record.pass_, record.part): record for record in first}

        def tried(block: BlockSpec) -> bool:
            record = records.get((block.workload.name, block.pass_, block.part))
            pair = [arm.name for arm in block.arms if arm.projection in PAIR]
            return record is not None and all(record.arms[name].status != NOT_REACHED[0] for name in pair)

        return replace(job, blocks=tuple(block for block in job.blocks if not tried(block)))

    def _is_verified(self, job: Job, block: BlockSpec) -> bool:
        """Return whether a verification beside the run covers, at full size, every arm of a block to be verified."""
        key = (job.configuration, block.workload.cell, block.pass_)
        programs = ((*gates.program(*key, arm.name), block.workload.name) for arm in block.arms)
        return block.kind == "check" and all(program in self.gates.whole for program in programs)

    def _required_sample_sizes(self) -> Generator[PlanRecord, None, SampleSizes]:
        """Return the sample sizes that the pilot asks for, after yielding them as a record.

        The record is stored before any of them is measured. A resumed run reads it and yields none.
        """
        plan = next((record for record in self.earlier_records if isinstance(record, PlanRecord)), None)
        if plan is None:
            plan = self._plan_record()
            yield plan
        return {
            (row.configuration, row.workload, row.pass_, row.part): SampleSize(row.processes, row.rounds)
            for row in plan.needs
        }

    def _plan_record(self) -> PlanRecord:
        """Return the record of the sample sizes that the blocks measured so far require; prototypes have none."""
        from harness.analysis import sample_size

        prototypes = {row.key for row in matrix.prototypes(self.study, list(self.context.frameworks.values()))}
        blocks = [record for record in self.current_records if record.kind == "block"]
        rows = [row for row in sample_size.required_sample_sizes(blocks, self.study) if _engine(row) not in prototypes]
        key = digest([self.study.target, [row.model_dump(by_alias=True) for row in rows]])
        return PlanRecord(key=key, kind="plan", status="ok", reason="", target=self.study.target, needs=rows)


def _engine(row: SampleSizeRecord) -> tuple[str, str, str]:
    """Return framework, execution and recurrence of a part whose name is that of its recurrence."""
    return row.configuration.framework, row.configuration.execution, row.part


def _sort_by_cost(stage: list[Job], checks: list[BlockRecord]) -> list[Job]:
    """Sort jobs by what the first calls of their framework, device and execution cost in fp64.

    The first replicate compiles. What the cheap jobs leave of their fair shares is then there for the expensive ones.
    Executions whose verification was cut short count as the most expensive.
    """
    costs: dict[tuple[str, ...], float] = {}
    for record in checks:
        key = _place(record.configuration)
        for arm in record.arms.values():
            if arm.status != "unavailable":
                costs[key] = costs.get(key, 0.0) + (math.inf if arm.first_call_ns is None else arm.first_call_ns)

    def cost(job: Job) -> float:
        return costs.get(_place(job.configuration), math.inf)

    return sorted(stage, key=cost)


def _place(configuration: Configuration) -> tuple[str, str, str]:
    return configuration.framework, configuration.device, configuration.execution


def _fair_end(now_s: float, end_s: float, jobs_left: int) -> float:
    """Return when a job must end to leave every later job as much time as it had itself.

    A job gets at least LEAST_S of the time left, because with less it would hardly start.
    """
    left_s = max(0.0, end_s - now_s)
    return now_s + max(left_s / jobs_left, min(left_s, LEAST_S))


def _is_complete(record: BlockRecord) -> bool:
    return not record.first_try and all(arm.status in ("ok", "unavailable") for arm in record.arms.values())


def _measured_cells(record: BlockRecord) -> set[ReachedCell]:
    """Return the cells of a block that were measured."""
    names = (name for name, arm in record.arms.items() if arm.status == "ok")
    return {(record.configuration, record.workload.name, record.pass_, name) for name in names}


def _drop_unreached(job: Job, reached: set[ReachedCell]) -> Job:
    """Return the job with only the arms that the first replicate measured; its records name the other arms already.

    A block is left out when it has lost its batched arm, which the others are compared with, or all its own arms.
    """
    blocks = []
    for block in job.blocks:
        key = (job.configuration, block.workload.name, block.pass_)
        arms = tuple(arm for arm in block.arms if (*key, arm.name) in reached)
        reduced = replace(block, arms=arms)
        if reduced.own_arms and _has_baseline(arms) == _has_baseline(block.arms):
            blocks.append(reduced)
    return replace(job, blocks=tuple(blocks))


def _has_baseline(arms: tuple[Arm, ...]) -> bool:
    return any(arm.projection == BATCHED for arm in arms)


def run_in_parallel(
    context: jobs.RunContext, untimed_jobs: list[Job], left_s: Clock, report: ProgressReport
) -> Iterator[BlockRecord]:
    """Run untimed jobs, as many at once as there are cores; yield every block's record as soon as it is done."""
    stopping, results = threading.Event(), SimpleQueue[BlockRecord | Future[None]]()

    def job_left_s() -> float:
        return 0.0 if stopping.is_set() else left_s()

    def work(job: Job) -> None:
        for record in jobs.work(context, job, job_left_s, report.stage):
            results.put(record)

    with ThreadPoolExecutor(environment.cores()) as pool:
        try:
            running = len(untimed_jobs)
            for job in untimed_jobs:
                pool.submit(work, job).add_done_callback(results.put)
            while running:
                if isinstance(result := results.get(), Future):
                    result.result()  # raises what ended the job
                    running -= 1
                else:
                    report.block(progress_line(result))
                    yield result
        except BaseException:  # Ctrl-C too: the threads end when their workers do
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise


def progress_line(record: BlockRecord) -> str:
    """Return the plain progress line of a record."""
    block = " ".join(filter(None, (record.workload.name, record.pass_, record.part)))
    return f"[{record.replicate}] {record.configuration} {block}: {record.status}"
