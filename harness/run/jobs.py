"""Carry out one job: start a worker, have it run the blocks one by one, check their outputs, and record them."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.machine import allocator, environment, gpu
from harness.records.store import Record, digest
from harness.run.launch import Answer, Worker, WorkerDied
from harness.study.matrix import BlockSpec, Framework, Job
from harness.study.parts import is_question
from harness.study.study import Study
from harness.verify.output_check import OutputCheck
from harness.worker.timing import ArmTiming
from impls.interface import Arm

Stage = Callable[[str], None]
LESS_TIME = 1 / 3  # of a block's time, for a point of a sweep and for arms that are not the question's
PROOFS = 3  # workers that may fail to prove their threads before a job is refused


@dataclass(frozen=True)
class RunContext:
    """What every job of a run needs.

    `weights` is the folder of the workloads' weights and inputs, `cache` that of the frameworks' compilation caches.
    `judge` checks outputs. `basis` is what a record's key depends on besides the job: code, versions, hardware.
    `keep` is called with every block's outputs. With `texts`, every program is counted, timed or not, and its text is
    written into that folder.
    """

    study: Study
    frameworks: dict[str, Framework]
    weights: Path
    cache: Path
    judge: OutputCheck
    basis: dict[str, Any]
    keep: Callable[[Job, BlockSpec, Path], None] | None = None
    texts: Path | None = None
    worker: Callable[..., Worker] = Worker
    clock: Callable[[], float] = time.monotonic
    graphics: Callable[[], gpu.State | None] = gpu.state


@dataclass
class PendingBlock:
    """A block that is not done yet, and the timings of the arms at which a worker died."""

    todo: BlockSpec
    lost: dict[str, dict[str, Any]] = field(default_factory=dict)


class OpenWorker(NamedTuple):
    """A worker whose framework is open, and its answer to that request: its proof of threads and its peak rates."""

    worker: Worker
    answer: Answer


def work(context: RunContext, job: Job, left_s: Callable[[], float], stage: Stage) -> Iterator[Record]:
    """Yield the records of a job's blocks. No block is begun, and none recorded, once `left_s` is 0 or less.

    When a worker dies at an arm, the arm is recorded and a new worker tries the block again without it. When it dies
    anywhere else, the block is recorded as it ended. When it dies before it has opened its framework, or cannot prove
    its threads in PROOFS tries, every pending block is recorded so and the job ends.
    """
    pending = [PendingBlock(block) for block in job.blocks]
    tries = PROOFS
    while pending and left_s() > 0:
        opened = False
        try:
            start_s = context.clock()
            with worker_of(context, job) as worker:
                proof = open_(context, job, worker, rate=_measures_rates(job)) | {"start_s": context.clock() - start_s}
                opened = True
                if proof["proven"] is False and (tries := tries - 1):
                    continue  # something else may have kept the cores busy
                if proof["proven"] is False:
                    reason = (
                        f"threads not proven: {job.configuration.threads} set, {proof['threads_used']:.2f} cores used"
                    )
                    yield from (_unmeasured_record(context, job, block, "refused", reason) for block in pending)
                    return
                while pending and left_s() > 0:
                    attempt = partial(_run_block, context, job, pending[0], OpenWorker(worker, proof), left_s, stage)
                    yield from _retry_throttled(attempt)
                    pending.pop(0)
        except WorkerDied as error:
            if not opened:
                yield from (_unmeasured_record(context, job, block, error.status, str(error)) for block in pending)
                return
            yield from _drop_lost_arm(context, job, pending, error)


def _retry_throttled(attempt: Callable[[], Record]) -> Iterator[Record]:
    """Yield a block's record. If the GPU was throttled, mark it as a first try and yield that of a second try.

    The second try may be throttled too, and then says so. The first process has one try: its first calls are results,
    which cannot be measured twice.
    """
    record = attempt()
    if not record.get("throttled") or record["replicate"] == 0:
        yield record
        return
    yield record | {"first_try": True}
    yield attempt() | {"redone": True}


def _drop_lost_arm(context: RunContext, job: Job, pending: list[PendingBlock], error: WorkerDied) -> Iterator[Record]:
    """Take the arm at which a worker died out of the first pending block, or record the block when none is left."""
    block = pending[0]
    arms = tuple(arm for arm in block.todo.arms if arm.name != error.arm)
    if len(arms) == len(block.todo.arms) or not arms:
        yield _unmeasured_record(context, job, pending.pop(0), error.status, str(error))
        return
    timing = asdict(ArmTiming(error.status, str(error)))
    pending[0] = PendingBlock(replace(block.todo, arms=arms), {**block.lost, error.arm: timing})


def worker_of(context: RunContext, job: Job) -> Worker:
    """Start a job's worker."""
    configuration = job.configuration
    framework = context.frameworks[configuration.framework]
    cache = _cache_folder(context, job)
    if job.replicate == 0:  # its first calls are results: an earlier worker's cache would shorten them
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    variables = framework.environment(configuration.device, configuration.threads, str(cache)) | allocator.variables(
        context.study.memory
    )
    return context.worker(configuration.framework, variables, context.study.timeout_s)


def _measures_rates(job: Job) -> bool:
    """Return whether a job's worker measures the machine's peak rates: the first replicate's, if it times anything."""
    return job.replicate == 0 and any(block.timed for block in job.blocks)


def _cache_folder(context: RunContext, job: Job) -> Path:
    c = job.configuration
    return context.cache / f"{c.framework}-{c.device}-{c.threads}-{c.execution}-{c.precision}"


def open_(context: RunContext, job: Job, worker: Worker, rate: bool = False) -> Answer:
    """Have a worker open its framework, and with `rate` measure its peak rates; return its answer.

    On a CPU the worker also proves its threads, if any block of the job is timed. Raises WorkerDied.
    """
    configuration = job.configuration
    settings = {
        "device": configuration.device,
        "threads": configuration.threads,
        "precision": configuration.precision,
        "cache": str(_cache_folder(context, job)),
    }
    timed = any(block.timed for block in job.blocks)
    prove = timed and configuration.device == "cpu"
    return worker.ask({"do": "open", "settings": settings, "prove": prove, "rate": rate})


def _run_block(
    context: RunContext,
    job: Job,
    pending: PendingBlock,
    open_worker: OpenWorker,
    left_s: Callable[[], float],
    stage: Stage,
) -> Record:
    """Have a worker run one block, check its outputs, and return its record.

    Raises WorkerDied, and OSError when the worker could not write its outputs.
    """
    block, (worker, proof) = pending.todo, open_worker
    label = " ".join(filter(None, (_job_label(job), block.workload.name, block.pass_, block.part)))
    header, start_s = _block_header(context, job, block), context.clock()
    before = context.graphics() if job.configuration.device == "gpu" else None
    scratch = Path(tempfile.mkdtemp(prefix="outputs-", dir=_cache_folder(context, job)))
    try:
        request = _request(context, job, block) | {"seed": header["seed"], "seconds": left_s(), "outputs": str(scratch)}
        answer = worker.ask(request, lambda message: stage(f"{label} {message['arm']}: {message['what']}"))
        if answer["is"] == "unwritten":  # usually a full disk, which every later block would meet too
            raise OSError(answer["reason"])
        on_gpu = _gpu_fields(before, context.graphics()) if before else {}
        stage(f"{label}: judging")
        check = context.judge.judge(scratch, block.workload, block.steps, block.pass_, job.configuration.precision)
        if context.keep:
            context.keep(job, block, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    arms = {name: _apply_check(arm, check["arms"].get(name)) for name, arm in answer["arms"].items()} | pending.lost
    status = "ok" if all(arm["status"] in ("ok", "not_reached", "unavailable") for arm in arms.values()) else "failed"
    reason = "; ".join(f"{name}: {arm['reason']}" for name, arm in arms.items() if arm["reason"])
    results = {
        "timer_ns": answer["timer_ns"],
        "threads_used": proof["threads_used"],
        "numerics": proof["numerics"],
        "rates": proof["rates"],
        "floors": answer["floors"],
        "start_s": proof["start_s"],
        "seconds": context.clock() - start_s,
        "bounds": check["bounds"],
        "arms": arms,
    }
    return header | {"status": status, "reason": reason} | results | on_gpu


def _gpu_fields(before: gpu.State, after: gpu.State | None) -> Record:
    """Return the GPU's state before and after a block, and why its clocks were low; empty without an `after` state."""
    return (
        {"gpu": {"before": before, "after": after}, "throttled": gpu.throttle_reasons(before, after)} if after else {}
    )


def _request(context: RunContext, job: Job, block: BlockSpec) -> dict[str, Any]:
    """Return a worker's request for a block, without the keys that differ from try to try."""
    study = context.study
    rounds_min, rounds_max = block.rounds or study.rounds_min, block.rounds or study.rounds
    return {
        "do": "block",
        "workload": block.workload.model_dump(),
        "steps": block.steps,
        "pass": block.pass_,
        "execution": job.configuration.execution,
        "arms": [[arm.recurrence, arm.projection] for arm in block.arms],
        "weights": str(context.weights),
        "rounds": {
            "least": rounds_min,
            "most": rounds_max,
            "block_s": study.block_s * (1 if _has_full_time(block) else LESS_TIME),
        }
        if block.timed
        else None,
        "counted": [[arm.recurrence, arm.projection] for arm in _counted_arms(context, job, block)],
        "control": block.control,
        "calls": block.calls,
        "hurried": job.replicate == 0,
        "overwrites": context.frameworks[job.configuration.framework].executions[job.configuration.execution][
            "overwrites"
        ],
        "texts": str(context.texts or ""),
    }


def _has_full_time(block: BlockSpec) -> bool:
    """Return whether a block has the whole of the study's time for a block."""
    return not block.swept and (not block.part or is_question(block.part))


def _counted_arms(context: RunContext, job: Job, block: BlockSpec) -> tuple[Arm, ...]:
    """Return the arms whose operations in a call are counted: none but those of the block's own part, and only once."""
    counted = context.texts or (block.timed and job.replicate == 0 and not block.swept)
    return block.home if counted else ()


def _apply_check(arm: dict[str, Any], check: dict[str, Any] | None) -> dict[str, Any]:
    """Return an arm with the result of its output check; the times of an arm that is not ok are withheld."""
    if check is None:
        return arm
    arm = arm | {"quantities": check["quantities"]}
    if check["status"] == "ok":
        return arm
    withheld: Record = {"first_call_ns": None, "samples_ns": [], "faults": []}
    return arm | withheld | {"status": check["status"], "reason": check["reason"]}


def _unmeasured_record(context: RunContext, job: Job, pending: PendingBlock, status: str, reason: str) -> Record:
    """Return the record of a block that ended with a status and its reason, without measurements."""
    arms = {arm.name: asdict(ArmTiming(status, reason)) for arm in pending.todo.arms} | pending.lost
    header = _block_header(context, job, pending.todo)
    return header | {
        "status": status,
        "reason": reason,
        "timer_ns": None,
        "threads_used": None,
        "bounds": {},
        "arms": arms,
    }


def _block_header(context: RunContext, job: Job, block: BlockSpec) -> Record:
    """Return the fields that identify a block, with when it began, the machine's load and the block's seed."""
    configuration = asdict(job.configuration)
    identity = configuration | {
        "replicate": job.replicate,
        "workload": block.workload.model_dump(),
        "steps": block.steps,
        "pass": block.pass_,
        "part": block.part,
    }
    key = block_key(context.basis, job, block)
    circumstances = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "load": environment.load_average()}
    seed = int(digest([context.study.seed, key]), 16) % 2**31
    return {"key": key, "kind": "block" if block.timed else "check"} | identity | circumstances | {"seed": seed}


def block_key(basis: dict[str, Any], job: Job, block: BlockSpec) -> str:
    """Return the hash of a block and its job, and of the code, the framework's versions and the hardware."""
    identity = [
        asdict(job.configuration),
        job.replicate,
        block.workload.model_dump(),
        block.pass_,
        block.steps,
        block.timed,
        block.part,
    ]
    return digest([basis, identity])


def _job_label(job: Job) -> str:
    c = job.configuration
    return f"[{job.replicate}] {c.framework} {c.execution} {c.device}×{c.threads} {c.precision}"
