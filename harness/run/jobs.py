"""Carry out one job: start a worker, have it run the blocks one by one, check their outputs, and record them."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.machine import allocator, environment, gpu
from harness.records.schema import ArmTiming, BlockRecord, CallOverheads
from harness.records.store import digest
from harness.run.launch import Worker, WorkerDied, expect
from harness.study.matrix import BlockSpec, Framework, Job
from harness.study.parts import is_question
from harness.study.study import Study, Workload
from harness.verify.output_check import ArmCheck, OutputCheck
from harness.worker.messages import (
    Answer,
    BlockAnswer,
    BlockRequest,
    OpenAnswer,
    OpenRequest,
    StageAnswer,
    UnwrittenAnswer,
)
from harness.worker.timing import ROUNDS, RoundLimits
from impls.interface import Arm, Settings

Stage = Callable[[str], None]
LESS_TIME = 1 / 3  # of a block's time, for a point of a sweep and for arms that are not the question's
PROOFS = 3  # workers that may fail to prove their threads before a job is refused


@dataclass(frozen=True)
class RunContext:
    """What every job of a run needs.

    `weights` is the folder of the workloads' weights and inputs, `cache` that of the frameworks' compilation caches.
    `basis` is what a record's key depends on besides the job: code, versions, hardware.
    `keep` is called with every block's outputs. With `texts`, every program is counted, timed or not, and its text is
    written into that folder.
    """

    study: Study
    frameworks: dict[str, Framework]
    weights: Path
    cache: Path
    output_check: OutputCheck
    basis: dict[str, Any]
    keep: Callable[[Job, BlockSpec, Path], None] | None = None
    texts: Path | None = None
    worker: Callable[..., Worker] = Worker
    clock: Callable[[], float] = time.monotonic
    graphics: Callable[[], gpu.State | None] = gpu.state


@dataclass
class PendingBlock:
    """A block that is not done yet, and the timings of the arms at which a worker died."""

    spec: BlockSpec
    lost: dict[str, ArmTiming] = field(default_factory=dict)


class Attempt(NamedTuple):
    """What differs between attempts at a block: the seed, the seconds left, and the folder for its outputs."""

    seed: int
    left_s: float
    outputs: Path


class OpenWorker(NamedTuple):
    """A worker whose framework is open, with its answer to that request, and the seconds until then."""

    worker: Worker
    answer: OpenAnswer
    start_s: float


def work(context: RunContext, job: Job, left_s: Callable[[], float], stage: Stage) -> Iterator[BlockRecord]:
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
                answer = open_(context, job, worker, rate=_measures_rates(context.study, job))
                open_worker = OpenWorker(worker, answer, context.clock() - start_s)
                opened = True
                if answer.proven is False and (tries := tries - 1):
                    continue  # something else may have kept the cores busy
                if answer.proven is False:
                    reason = (
                        f"threads not proven: {job.configuration.threads} set, {answer.threads_used:.2f} cores used"
                    )
                    yield from (_unmeasured_record(context, job, block, "refused", reason) for block in pending)
                    return
                while pending and left_s() > 0:
                    attempt = partial(_run_block, context, job, pending[0], open_worker, left_s, stage)
                    yield from _retry_throttled(attempt)
                    pending.pop(0)
        except WorkerDied as error:
            if not opened:
                yield from (_unmeasured_record(context, job, block, error.status, str(error)) for block in pending)
                return
            yield from _drop_lost_arm(context, job, pending, error)


def _retry_throttled(attempt: Callable[[], BlockRecord]) -> Iterator[BlockRecord]:
    """Yield a block's record. If the GPU was throttled, mark it as a first try and yield that of a second try.

    The second try may be throttled too, and then says so. The first process has one try: its first calls are results,
    which cannot be measured twice.
    """
    record = attempt()
    if not record.throttled or record.replicate == 0:
        yield record
        return
    yield record.model_copy(update={"first_try": True})
    yield attempt().model_copy(update={"redone": True})


def _drop_lost_arm(
    context: RunContext, job: Job, pending: list[PendingBlock], error: WorkerDied
) -> Iterator[BlockRecord]:
    """Take the arm at which a worker died out of the first pending block, or record the block when none is left."""
    block = pending[0]
    arms = tuple(arm for arm in block.spec.arms if arm.name != error.arm)
    if len(arms) == len(block.spec.arms) or not arms:
        yield _unmeasured_record(context, job, pending.pop(0), error.status, str(error))
        return
    timing = ArmTiming.without_times(error.status, str(error))
    pending[0] = PendingBlock(replace(block.spec, arms=arms), {**block.lost, error.arm: timing})


def worker_of(context: RunContext, job: Job) -> Worker:
    """Start a job's worker."""
    configuration = job.configuration
    framework = context.frameworks[configuration.framework]
    cache = _cache_folder(context, job)
    if compiles_anew(context.study, job):
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    memory = allocator.GIVEN_BACK if job.measures_peaks else allocator.variables(context.study.memory)
    variables = framework.environment(configuration.device, configuration.threads, str(cache)) | memory
    return context.worker(configuration.framework, variables, context.study.timeout_s)


def compiles_anew(study: Study, job: Job) -> bool:
    """Return whether a job's worker compiles its programs itself, and reads no earlier worker's cache.

    In a first replicate first calls are results, which a cache would shorten. On a GPU compilers choose kernels by
    measuring them, and choose anew each time: with a shared cache, intervals would not contain that. Of a process that
    measures memory nothing is timed.
    """
    if study.compile_first or job.measures_peaks:
        return False
    return job.replicate == 0 or job.configuration.device == "gpu"


def _measures_rates(study: Study, job: Job) -> bool:
    """Return whether a job's worker measures the machine's peak rates.

    The first replicate's does, if it times anything. A study that compiles first has no time for it: on a GPU, XLA
    tries out dozens of kernels for every product.
    """
    return job.replicate == 0 and not study.compile_first and any(block.timed for block in job.blocks)


def _cache_folder(context: RunContext, job: Job) -> Path:
    c = job.configuration
    return context.cache / f"{c.framework}-{c.device}-{c.threads}-{c.execution}-{c.precision}"


def open_(context: RunContext, job: Job, worker: Worker, rate: bool = False) -> OpenAnswer:
    """Have a worker open its framework, and with `rate` measure its peak rates; return its answer.

    On a CPU the worker also proves its threads, if any block of the job is timed. Raises WorkerDied.
    """
    configuration = job.configuration
    cache = str(_cache_folder(context, job))
    settings = Settings(
        configuration.device, configuration.threads, configuration.precision, cache, context.study.library
    )
    prove = configuration.device == "cpu" and any(block.timed for block in job.blocks)
    is_smoke = context.study.label == "quick"  # it is short, and makes no claim that rates would explain
    products = () if is_smoke else tuple(sorted({s for workload in context.study.workloads for s in workload.products}))
    request = OpenRequest(
        settings=settings, prove=prove, rate=rate, execution=configuration.execution, products=products
    )
    return expect(worker.ask(request), OpenAnswer)


def _run_block(
    context: RunContext,
    job: Job,
    pending: PendingBlock,
    open_worker: OpenWorker,
    left_s: Callable[[], float],
    stage: Stage,
) -> BlockRecord:
    """Have a worker run one block, check its outputs, and return its record.

    Raises WorkerDied, and OSError when the worker could not write its outputs.
    """
    block, opened = pending.spec, open_worker.answer
    label = " ".join(filter(None, (_job_label(job), block.workload.name, block.pass_, block.part)))
    record, start_s = _empty_record(context, job, block), context.clock()
    scratch = Path(tempfile.mkdtemp(prefix="outputs-", dir=_cache_folder(context, job)))
    try:
        request = _request(context, job, block, Attempt(record.seed, left_s(), scratch))
        answer, on_gpu = _ask_watched(context, job, open_worker.worker, request, lambda text: stage(f"{label} {text}"))
        if isinstance(answer, UnwrittenAnswer):  # usually a full disk, which every later block would meet too
            raise OSError(answer.reason)
        stage(f"{label}: checking outputs")
        check = context.output_check.check(
            scratch, block.workload, block.steps, block.pass_, job.configuration.precision
        )
        if context.keep:
            context.keep(job, block, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    measured = expect(answer, BlockAnswer)
    arms = {name: _apply_check(arm, check.arms.get(name)) for name, arm in measured.arms.items()} | pending.lost
    if context.study.compile_first:
        arms = {name: arm.model_copy(update={"first_call_ns": None}) for name, arm in arms.items()}
    status = "ok" if all(arm.status in ("ok", "not_reached", "unavailable") for arm in arms.values()) else "failed"
    results = {
        "status": status,
        "reason": "; ".join(f"{name}: {arm.reason}" for name, arm in arms.items() if arm.reason),
        "timer_ns": measured.timer_ns,
        "threads_used": opened.threads_used,
        "numerics": opened.numerics,
        "rates": opened.rates,
        "floors": measured.floors,
        "start_s": open_worker.start_s,
        "seconds": context.clock() - start_s,
        "bounds": check.bounds,
        "checked_sequences": len(check.sequences) if check.sequences else None,
        "arms": arms,
    }
    return record.model_copy(update=results | on_gpu)


def _ask_watched(
    context: RunContext, job: Job, worker: Worker, request: BlockRequest, stage: Stage
) -> tuple[Answer, dict[str, Any]]:
    """Return a worker's answer to a request, and the GPU's states around and during the rounds, as a record has them.

    On a CPU, and where the GPU cannot be looked at, there are no states. Raises WorkerDied.
    """
    on_gpu = job.configuration.device == "gpu"
    with gpu.Watch(context.graphics if on_gpu else lambda: None) as watch:

        def on_stage(message: StageAnswer) -> None:
            watch.set_active(message.what == ROUNDS)
            stage(f"{message.arm}: {message.what}")

        answer = worker.ask(request, on_stage)
    states = watch.states
    return answer, {"gpu": states, "throttled": gpu.throttle_reasons(states)} if states else {}


def _request(context: RunContext, job: Job, block: BlockSpec, attempt: Attempt) -> BlockRequest:
    """Return a worker's request for one attempt at a block."""
    study, framework = context.study, context.frameworks[job.configuration.framework]
    least, most = block.rounds or study.rounds_min, block.rounds or study.rounds
    limits = RoundLimits(least, most, rounds_seconds(study, block))
    return BlockRequest(
        workload=block.workload,
        steps=block.steps,
        pass_=block.pass_,
        execution=job.configuration.execution,
        arms=list(block.arms),
        weights=str(context.weights),
        outputs=str(attempt.outputs),
        rounds=limits if block.timed else None,
        seed=attempt.seed,
        seconds=attempt.left_s,
        counted=list(_counted_arms(context, job, block)),
        control=block.has_control,
        calls=block.calls,
        hurried=job.replicate == 0,
        loop=framework.executions[job.configuration.execution].loop,
        overwrites=framework.executions[job.configuration.execution].overwrites,
        texts=str(context.texts) if context.texts else None,
        peaks=block.peaks,
    )


def rounds_seconds(study: Study, block: BlockSpec) -> float:
    """Return how many seconds a block's rounds should take."""
    has_full_time = not block.is_swept and (not block.part or is_question(block.part))
    return study.block_s * (1 if has_full_time else LESS_TIME)


def _counted_arms(context: RunContext, job: Job, block: BlockSpec) -> tuple[Arm, ...]:
    """Return the arms whose operations in a call are counted: none but those of the block's own part, and only once."""
    counted = context.texts or (block.timed and job.replicate == 0 and not block.is_swept)
    return block.own_arms if counted else ()


def _apply_check(arm: ArmTiming, check: ArmCheck | None) -> ArmTiming:
    """Return an arm with the result of its output check; the times of an arm that is not ok are withheld."""
    if check is None:
        return arm
    checked = arm.model_copy(update={"quantities": check.quantities})
    return checked if check.status == "ok" else checked.withheld(check.status, check.reason)


def _unmeasured_record(context: RunContext, job: Job, pending: PendingBlock, status: str, reason: str) -> BlockRecord:
    """Return the record of a block that ended with a status and its reason, without measurements."""
    timing = ArmTiming.without_times(status, reason)
    arms = {arm.name: timing for arm in pending.spec.arms} | pending.lost
    record = _empty_record(context, job, pending.spec)
    return record.model_copy(update={"status": status, "reason": reason, "arms": arms})


def _empty_record(context: RunContext, job: Job, block: BlockSpec) -> BlockRecord:
    """Return the record of a block that begins now, with the machine's load and the block's seed, without results."""
    key = block_key(context.basis, job, block)
    return BlockRecord(
        key=key,
        kind=block.kind,
        status="",
        reason="",
        configuration=job.configuration,
        replicate=job.replicate,
        workload=Workload(**block.workload.model_dump()),  # with every size set, as the schema demands
        steps=block.steps,
        pass_=block.pass_,
        part=block.part,
        compiled_anew=compiles_anew(context.study, job),
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        node=environment.node_name() if context.study.shard else "",
        load=environment.load_average(),
        seed=int(digest([context.study.seed, key]), 16) % 2**31,
        timer_ns=None,
        threads_used=None,
        floors=CallOverheads(),
        bounds={},
        arms={},
    )


def block_key(basis: dict[str, Any], job: Job, block: BlockSpec) -> str:
    """Return the hash of a block and its job, and of the code, the framework's versions and the hardware."""
    identity = [
        job.configuration.row(),
        job.replicate,
        block.workload.model_dump(),
        block.pass_,
        block.steps,
        block.kind,
        block.part,
    ]
    return digest([basis, identity])


def _job_label(job: Job) -> str:
    return f"[{job.replicate}] {job.configuration}"
