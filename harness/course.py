"""The course of a run: its jobs one after another, while the budget lasts, each block a record."""

import math
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from queue import SimpleQueue
from typing import Any

from harness import environment, forecast, gates, jobs, plan
from harness.launch import end_all
from harness.parts import BATCHED
from harness.plan import Job, Need, Needs, Plan, Rank, Seat, Todo
from harness.progress import Report
from harness.records import Record, digest, latest
from harness.study import CALIBRATING
from impls.interface import Arm

SEAT = tuple(entry.name for entry in fields(Seat))
CHECK_SHARE = 0.1  # of the budget, at most, for the fp64 verification
COLD_SHARE = 0.5  # of what is left, at most, for a first replicate, which compiles
LEAST_S = 6.0  # of a first replicate's time for each job, for less of which its worker would hardly start
Clock = Callable[[], float]


@dataclass
class Course:
    """A run on its way. `done` are the records there are already; `spent_s` is told when it began."""

    bench: jobs.Bench
    planned: Plan
    done: list[Record]
    spent_s: Clock
    report: Report
    verified: list[Record] = field(default_factory=list)  # of a verification beside the run
    reached: set[Any] = field(default_factory=set)  # cells that the first replicate measured
    told: set[Seat] = field(default_factory=set)  # seats that something was forecast for

    def __post_init__(self) -> None:
        self.study = self.bench.study
        self.budget = self.study.budget_s or math.inf
        self.found = [*latest(self.done), *self.verified]
        self.gates = gates.Gates(self.verified)
        self.complete = {r["key"].rpartition("-")[0] for r in self.found if _complete(r)}
        cold = (r for r in self.found if r["kind"] == "block" and r["replicate"] == 0)
        self.reached |= {cell for record in cold for cell in _reached(record)}
        told = (r for r in self.done if r["kind"] == "forecast" and r["status"] == "ok")
        self.told |= {Seat(*(record[name] for name in SEAT)) for record in told}

    def records(self) -> Iterator[Record]:
        """Records of everything planned and not yet done, as it is done.

        With a number of processes, everything has as many. Without one the question comes first: once everywhere, then
        in more processes, `headline_processes` of them in the loop that users would write, with the first thread
        count. Then the rest, first once and then as often as a pilot is; and then what the pilot asks for.
        """
        checks = [self._left(job) for job in plan.checks(self.planned, self.study)]
        stages = self._stages()
        self._expect([checks, *(stage for _, stage in stages)])
        yield from self._checks(checks)
        checked = [r for r in self.found if r["kind"] == "check"]
        for replicate, stage in stages:
            yield from self._warm(stage) if replicate else self._cold(_cheapest_first(stage, checked))
        if self.study.processes is None and self.spent_s() < self.budget:
            needs = yield from self._needs()
            most = max((need.processes for need in needs.values()), default=0)
            replicates = range(self.study.pilot, most)
            further = [plan.jobs(self.planned, self.study, replicate, needs=needs) for replicate in replicates]
            self._expect([checks, *(stage for _, stage in stages), *further])
            for stage in further:
                yield from self._warm(stage)

    def _stages(self) -> list[tuple[int, list[Job]]]:
        """What is done one after another before a pilot has said anything: replicates, and their jobs."""
        if self.study.processes:
            return [(number, plan.jobs(self.planned, self.study, number)) for number in range(self.study.processes)]
        pilot, (question, others, rest) = self.study.pilot, Rank
        order = [(0, [question, others])]
        order += [(number, [question]) for number in range(1, self.study.headline_processes)]
        order += [(number, [others]) for number in range(1, pilot)]
        order += [(number, [rest]) for number in range(pilot)]
        return [(number, plan.jobs(self.planned, self.study, number, ranks)) for number, ranks in order]

    def _expect(self, made: list[list[Job]]) -> None:
        self.report.expect(sum(len(job.blocks) for each in made for job in each))

    def _checks(self, checks: list[Job]) -> Iterator[Record]:
        until = self.spent_s() + CHECK_SHARE * self.budget
        for record in together(self.bench, checks, lambda: until - self.spent_s(), self.report):
            self.found.append(record)
            yield record

    def _cold(self, made: list[Job]) -> Iterator[Record]:
        """A first replicate: each job has a fair share of what there is for compiling."""
        share, now = COLD_SHARE if self.study.processes != 1 else 1.0, self.spent_s()
        until = now + share * max(0.0, self.budget - now)
        for position, job in enumerate(made):
            end = _fair_end(self.spent_s(), until, len(made) - position)
            for record in self._work(self._left(job), end):
                if record["kind"] == "block":
                    self.reached |= _reached(record)
                yield record

    def _warm(self, made: list[Job]) -> Iterator[Record]:
        for job in made:
            yield from self._work(self._left(self._alike(_only(job, self.reached))), self.budget)

    def _work(self, job: Job, end: float) -> Iterator[Record]:
        yield from self._forecast(job)
        for record in jobs.work(self.bench, job, lambda: end - self.spent_s(), self.report.stage):
            if not record.get("first_try"):  # which is kept, and not measured with
                self.report.block(line(record))
                self.found.append(record)
                if _complete(record):
                    self.complete.add(record["key"])
            yield record
            yield from self._forecast(job)

    def _forecast(self, job: Job) -> Iterator[Record]:
        """What is expected of a seat's cells that are not measured yet, once all is measured that it is told from."""
        swept = any(todo.swept for todo in job.blocks)
        if not swept or job.seat in self.told or not (blocks := self._calibrated(job.seat)):
            return
        self.told.add(job.seat)
        measured = {(r["workload"]["name"], r["pass"]) for r in self._blocks(job.seat)}
        cells = (cell for cell in self.planned.cells if (cell.workload.name, cell.pass_) not in measured)
        yield forecast.record(job.seat, blocks, cells, self.study)

    def _calibrated(self, seat: Seat) -> list[Record]:
        """The first process's blocks that forecasts for a seat are made from, when all are there; the last of each."""
        points = [point.name for point in self.study.swept[:CALIBRATING]]
        first = [record for record in self._blocks(seat) if record["replicate"] == 0]
        blocks = {(r["workload"]["name"], r["pass"]): r for r in first if r["workload"]["name"] in points}
        return list(blocks.values()) if len(blocks) == len(points) * len(self.study.passes) else []

    def _blocks(self, seat: Seat) -> list[Record]:
        """What was measured in a seat so far."""
        return [record for record in self.found if record["kind"] == "block" and _same(record, seat)]

    def _alike(self, job: Job) -> Job:
        """The job with as many calls in a sample of each block as its first process had."""
        calls = {
            (record["workload"]["name"], record["pass"], record["part"]): max(
                a["calls"] for a in record["arms"].values()
            )
            for record in self._blocks(job.seat)
            if record["replicate"] == 0
        }
        blocks = (replace(todo, calls=calls.get((todo.workload.name, todo.pass_, todo.part))) for todo in job.blocks)
        return replace(job, blocks=tuple(blocks))

    def _left(self, job: Job) -> Job:
        """The job without the blocks that are complete, or verified already at full size."""
        keys = {todo: jobs.block_key(self.bench.basis, job, todo) for todo in job.blocks}
        left = (todo for todo in job.blocks if keys[todo] not in self.complete and not self._verified(job, todo))
        return replace(job, blocks=tuple(left))

    def _verified(self, job: Job, todo: Todo) -> bool:
        """Whether a verification beside the run has, at full size, all that an untimed block would verify."""
        what = asdict(job.seat) | {"workload": todo.workload.model_dump(), "pass": todo.pass_}
        programs = ((*gates.program(what, arm.name), todo.workload.name) for arm in todo.arms)
        return not todo.timed and all(program in self.gates.whole for program in programs)

    def _needs(self) -> Generator[Record, None, Needs]:
        """What the pilot asks for: recorded before any of it is measured, and read again by a resumed run."""
        plans = [record for record in self.done if record["kind"] == "plan"]
        if not plans:
            from harness import pilot

            prototypes = plan.prototypes(self.study, list(self.bench.frameworks.values()))
            excluded = {(row["framework"], row["execution"], row["recurrence"]) for row in prototypes}
            rows = pilot.needs([record for record in self.found if record["kind"] == "block"], self.study)
            rows = [row for row in rows if (row["framework"], row["execution"], row["part"]) not in excluded]
            what: Record = {"kind": "plan", "status": "ok", "reason": "", "target": self.study.target, "needs": rows}
            plans = [{"key": digest(what), **what}]
            yield plans[0]
        return {
            (Seat(*(row[name] for name in SEAT)), row["workload"], row["pass"], row["part"]): Need(
                row["processes"], row["rounds"]
            )
            for row in plans[0]["needs"]
        }


def _cheapest_first(made: list[Job], checked: list[Record]) -> list[Job]:
    """Jobs in order of what the first calls of their framework and execution cost in fp64.

    The first replicate compiles. What the cheap jobs leave of their fair shares is then there for the dear
    ones; those whose verification was cut short are the dearest.
    """
    costs: dict[tuple[str, ...], float] = {}
    for record in checked:
        key = (record["framework"], record["device"], record["execution"])
        calls = [arm["first_call_ns"] for arm in record["arms"].values() if arm["status"] != "unavailable"]
        costs[key] = costs.get(key, 0.0) + (math.inf if None in calls else sum(calls))

    def cost(job: Job) -> float:
        return costs.get((job.seat.framework, job.seat.device, job.seat.execution), math.inf)

    return sorted(made, key=cost)


def _fair_end(now: float, end: float, jobs_left: int) -> float:
    """When a job must end so that the ones after it get as much of the time left, where that is enough to start."""
    left = max(0.0, end - now)
    return now + max(left / jobs_left, min(left, LEAST_S))


def _complete(record: Record) -> bool:
    settled = all(arm["status"] in ("ok", "unavailable") for arm in record["arms"].values())
    return settled and not record.get("first_try")


def _reached(record: Record) -> set[Any]:
    """The cells of a block that were measured."""
    seat = tuple(record[name] for name in SEAT)
    ok = (name for name, arm in record["arms"].items() if arm["status"] == "ok")
    return {(seat, record["workload"]["name"], record["pass"], name) for name in ok}


def _same(record: Record, seat: Seat) -> bool:
    return all(record[name] == value for name, value in asdict(seat).items())


def _only(job: Job, reached: set[Any]) -> Job:
    """The job with the arms that the first replicate measured: the others are named already. A block that has lost
    what it compares with is left out.
    """
    seat = tuple(asdict(job.seat).values())
    blocks = []
    for todo in job.blocks:
        arms = tuple(arm for arm in todo.arms if (seat, todo.workload.name, todo.pass_, arm.name) in reached)
        left = replace(todo, arms=arms)
        if left.home and _has_baseline(arms) == _has_baseline(todo.arms):
            blocks.append(left)
    return replace(job, blocks=tuple(blocks))


def _has_baseline(arms: tuple[Arm, ...]) -> bool:
    return any(arm.projection == BATCHED for arm in arms)


def together(bench: jobs.Bench, made: list[Job], left_s: Clock, report: Report) -> Iterator[Record]:
    """Untimed jobs, as many at once as there are cores; every block's record as soon as it is done."""
    stopping, done = threading.Event(), SimpleQueue[Record | Future[None]]()

    def left() -> float:
        return 0.0 if stopping.is_set() else left_s()

    def work(job: Job) -> None:
        for record in jobs.work(bench, job, left, report.stage):
            done.put(record)

    with ThreadPoolExecutor(environment.cores()) as pool:
        try:
            running = len(made)
            for job in made:
                pool.submit(work, job).add_done_callback(done.put)
            while running:
                if isinstance(ended := done.get(), Future):
                    ended.result()  # raises what ended the job
                    running -= 1
                else:
                    report.block(line(ended))
                    yield ended
        except BaseException:  # Ctrl-C too: the threads end when their workers do
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise


def line(record: Record) -> str:
    """What a plain progress line says of a record."""
    place = f"{record['framework']} {record['execution']} {record['device']}×{record['threads']} {record['precision']}"
    block = " ".join(filter(None, (record["workload"]["name"], record["pass"], record.get("part"))))
    return f"[{record['replicate']}] {place} {block}: {record['status']}"
