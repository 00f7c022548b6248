"""A run, from a study to a report's records; and a verification without times."""

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import impls
from harness import environment, jobs, plan, weights
from harness.launch import Lost, Worker, end_all
from harness.plan import CACHE, Framework, Job, Plan, Todo
from harness.progress import Report
from harness.records import FILE, SCHEMA, Record, Store, digest, held, latest
from harness.refused import Refused
from harness.study import Study
from harness.verify import Judge

COLD_SHARE = 0.6  # of the budget, at most, for the first replicate, which compiles
CHECK_SHARE = 0.15  # of the budget, at most, for the fp64 verification before it
Clock = Callable[[], float]


def probe(study: Study, threads: list[int]) -> list[Framework]:
    """Ask every framework there is, each in a process of its own, what it has on this machine."""
    names = impls.names()
    for name in study.frameworks or ():
        if name not in names:
            plan.selected(study, [Framework(n) for n in names])  # refuses, with the nearest name
    wanted = [name for name in names if not study.frameworks or name in study.frameworks]
    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(lambda name: _facts(name, study, threads), wanted))


def _facts(name: str, study: Study, threads: list[int]) -> Framework:
    request = {"do": "facts", "threads": threads, "devices": ["cpu", "gpu"], "cache": CACHE}
    with Worker(name, {}, study.timeout_s) as worker:
        try:
            answer = worker.ask(request)
        except Lost as lost:
            return Framework(name, missing=f"it does not start: {lost}")
    answer.pop("is")
    return Framework(name, **answer)


@contextmanager
def opened(folder: Path, resume: bool) -> Iterator[None]:
    """A run's folder: new or empty, or with `resume` one that holds records. Raises Refused."""
    if resume and not (folder / FILE).exists():
        raise Refused(f"{folder} holds no records to go on from")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is not empty; give another --out, or --resume to go on with it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder} can not be made: {error.strerror}") from None
    with held(folder):
        yield


def run(study: Study, folder: Path, resume: bool, command: str, clock: Clock = time.monotonic) -> list[Record]:
    """Measure a study into a folder; returns its records. Raises Refused before any work is done."""
    began = clock()
    threads = plan.thread_counts(study, environment.cores())
    frameworks = plan.selected(study, probe(study, threads))
    planned = plan.make(study, frameworks, threads)
    if not planned.cells:
        raise Refused(f"nothing of this study can be measured here: {planned.absent[0][2]}")
    basis = {
        "code": environment.code(),
        "machine": environment.machine(),
        "versions": {f.name: f.versions for f in frameworks} | {"libraries": environment.libraries()},
    }
    with opened(folder, resume):
        store = Store(folder)
        done = store.recover() if resume else []
        hashes = prepare(study, folder / "weights")
        heading = _heading(study, planned, frameworks, basis, hashes, command)
        if not done:
            store.append(heading)
        elif (why := _foreign(done[0], heading)) is not None:
            raise Refused(f"{folder} can not be resumed: {why}")
        bench = _bench(study, frameworks, folder, basis)
        with Report(0) as report:
            for record in measured(bench, planned, done, lambda: clock() - began, report):
                store.append(record)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return store.recover()


def measured(bench: jobs.Bench, planned: Plan, done: list[Record], spent_s: Clock, report: Report) -> Iterator[Record]:
    """Records of everything planned and not yet done, as it is done and while the budget lasts."""
    study = bench.study
    budget = study.budget_s or math.inf
    complete = {r["key"].rpartition("-")[0] for r in latest(done) if _complete(r)}
    replicates = list(plan.jobs(planned, study))
    checks = [_left(bench, job, complete) for job in plan.checks(planned, study)]
    report.expect(sum(len(job.blocks) for made in [checks, *replicates] for job in made))
    until = spent_s() + CHECK_SHARE * budget
    checked = [record for record in latest(done) if record["kind"] == "check"]
    for record in together(bench, checks, lambda: until - spent_s(), report):
        checked.append(record)
        yield record
    replicates[0] = _cheapest_first(replicates[0], checked)
    reached = {cell for r in latest(done) if r["kind"] == "block" and r["replicate"] == 0 for cell in _reached(r)}
    for replicate, made in enumerate(replicates):
        for position, job in enumerate(made):
            todo = _left(bench, _only(job, reached) if replicate else job, complete)
            share = COLD_SHARE if replicate == 0 and study.processes > 1 else 1.0
            end = _fair_end(spent_s(), share * budget, len(made) - position) if replicate == 0 else budget
            for record in jobs.work(bench, todo, lambda end=end: end - spent_s(), report.stage):  # type: ignore[misc]
                report.block(_line(record))
                reached |= _reached(record) if replicate == 0 else set()
                yield record


def _cheapest_first(made: list[Job], checked: list[Record]) -> list[Job]:
    """Jobs in order of what the first calls of their framework and execution cost in fp64.

    The first replicate compiles. What the cheap jobs leave of their fair shares is then there for the dear
    ones; those whose verification was cut short are the dearest.
    """
    costs: dict[tuple[str, ...], float] = {}
    for record in checked:
        key = (record["framework"], record["device"], record["execution"])
        calls = [arm["first_call_ns"] for arm in record["arms"].values()]
        costs[key] = costs.get(key, 0.0) + (math.inf if None in calls else sum(calls))

    def cost(job: Job) -> float:
        return costs.get((job.seat.framework, job.seat.device, job.seat.execution), math.inf)

    return sorted(made, key=cost)


def _fair_end(now: float, end: float, jobs_left: int) -> float:
    """When a job must end so that the ones after it get as much of the time left."""
    return now + max(0.0, end - now) / jobs_left


def _left(bench: jobs.Bench, job: Job, complete: set[str]) -> Job:
    """The job without the blocks that are complete."""
    blocks = tuple(todo for todo in job.blocks if jobs.block_key(bench.basis, job, todo) not in complete)
    return Job(job.seat, job.replicate, blocks)


def _complete(record: Record) -> bool:
    return all(arm["status"] == "ok" for arm in record["arms"].values())


def _reached(record: Record) -> set[Any]:
    seat = tuple(record[name] for name in ("framework", "device", "threads", "execution", "precision"))
    ok = (name for name, arm in record["arms"].items() if arm["status"] == "ok")
    return {(seat, record["workload"]["name"], record["pass"], name) for name in ok}


def _only(job: Job, reached: set[Any]) -> Job:
    """The job with the arms that the first replicate measured: the others are named already."""
    seat = tuple(asdict(job.seat).values())
    blocks = []
    for todo in job.blocks:
        arms = tuple(arm for arm in todo.arms if (seat, todo.workload.name, todo.pass_, arm.name) in reached)
        if arms:
            blocks.append(Todo(todo.workload, todo.pass_, arms, todo.steps, todo.timed))
    return Job(job.seat, job.replicate, tuple(blocks))


def together(bench: jobs.Bench, made: list[Job], left_s: Clock, report: Report) -> Iterator[Record]:
    """Untimed jobs, as many at once as there are cores."""

    def all_of(job: Job) -> list[Record]:
        return list(jobs.work(bench, job, left, report.stage))

    stopping = threading.Event()

    def left() -> float:
        return 0.0 if stopping.is_set() else left_s()

    with ThreadPoolExecutor(environment.cores()) as pool:
        try:
            for found in pool.map(all_of, made):
                for record in found:
                    report.block(_line(record))
                    yield record
        except BaseException:  # Ctrl-C too: the threads end when their workers do
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            end_all()
            raise


def prepare(study: Study, folder: Path) -> dict[str, str]:
    """Store every workload's weights and inputs; returns SHA-256 by file name. Raises Refused."""
    hashes: dict[str, str] = {}
    for workload in study.workloads:
        hashes |= weights.prepare(folder, workload, study.seed, study.weights, study.inputs)
    return hashes


def _bench(study: Study, frameworks: list[Framework], folder: Path, basis: dict[str, Any]) -> jobs.Bench:
    known = {framework.name: framework for framework in frameworks}
    judge = Judge(folder / "weights")
    return jobs.Bench(study, known, folder / "weights", folder / "cache", judge, basis)


def _heading(
    study: Study,
    planned: Plan,
    frameworks: list[Framework],
    basis: dict[str, Any],
    hashes: dict[str, str],
    command: str,
) -> Record:
    """The first record: the study, what it is measured on, and what can not be measured and why."""
    absent = [cell.row() | {"status": status, "reason": reason} for cell, status, reason in planned.absent]
    missing = [{"framework": f.name, "reason": plan.advice(f)} for f in frameworks if f.missing]
    environments = {f.name: f.environments for f in frameworks}
    what = {
        "study": study.model_dump(),
        "cells": [cell.row() for cell in planned.cells],
        "absent": absent,
        "missing": missing,
        "basis": basis,
        "environments": environments,
        "weights": hashes,
        "command": command,
    }
    return {"schema": SCHEMA, "key": digest(what), "kind": "study", "status": "ok", "reason": "", **what}


def _foreign(found: Record, mine: Record) -> str | None:
    """Why records can not be added to, or None."""
    for name, what in (("machine", "another machine"), ("versions", "other versions"), ("code", "other code")):
        if found["basis"][name] != mine["basis"][name]:
            return f"its records come from {what}"
    for name in ("cells", "weights"):
        if found[name] != mine[name]:
            return "its records belong to another study"
    return None


def _line(record: Record) -> str:
    place = f"{record['framework']} {record['execution']} {record['device']}×{record['threads']} {record['precision']}"
    return f"[{record['replicate']}] {place} {record['workload']['name']} {record['pass']}: {record['status']}"
