"""Carry out one job: a worker, its blocks one by one, each judged and turned into a record."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

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

    `weights` holds the workloads' weights and inputs, `cache` the frameworks' compilation caches;
    `basis` is what a record's key depends on besides the job: code, versions, hardware. `keep` is shown every
    block's outputs; with `texts` every program is counted, timed or not, and its text written into that folder.
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
    """A block yet to be done, and the arms that a worker was lost at."""

    todo: BlockSpec
    lost: dict[str, dict[str, Any]] = field(default_factory=dict)


def work(bench: RunContext, job: Job, left_s: Callable[[], float], stage: Stage) -> Iterator[Record]:
    """The records of a job's blocks. A block that is not begun while `left_s` > 0 has none.

    When a worker is lost at an arm, the arm is recorded and its block tried again without it in a
    new worker; when it is lost anywhere else, the block is recorded as it ended.
    """
    pending = [PendingBlock(todo) for todo in job.blocks]
    tries = PROOFS
    while pending and left_s() > 0:
        opened = False
        try:
            began = bench.clock()
            with worker_of(bench, job) as worker:
                proof = open_(bench, job, worker, rate=_rated(job)) | {"start_s": bench.clock() - began}
                opened = True
                if proof["proven"] is False and (tries := tries - 1):
                    continue  # something else may have kept the cores busy
                if proof["proven"] is False:
                    reason = (
                        f"threads not proven: {job.configuration.threads} set, {proof['threads_used']:.2f} cores used"
                    )
                    yield from (_ended(bench, job, p, "refused", reason) for p in pending)
                    return
                while pending and left_s() > 0:
                    block = partial(_block, bench, job, pending[0], worker, proof, left_s, stage)
                    yield from _tries(block)
                    pending.pop(0)
        except WorkerDied as lost:
            if not opened:
                yield from (_ended(bench, job, p, lost.status, str(lost)) for p in pending)
                return
            yield from _after_loss(bench, job, pending, lost)


def _tries(block: Callable[[], Record]) -> Iterator[Record]:
    """A block's record; where the GPU was throttled meanwhile, marked as a first try, and then that of a second.

    The second may have been throttled too, and says so. The first process's first calls are results, and can not be
    had twice: it has one try.
    """
    record = block()
    if not record.get("throttled") or record["replicate"] == 0:
        yield record
        return
    yield record | {"first_try": True}
    yield block() | {"redone": True}


def _after_loss(bench: RunContext, job: Job, pending: list[PendingBlock], lost: WorkerDied) -> Iterator[Record]:
    block = pending[0]
    left = tuple(arm for arm in block.todo.arms if arm.name != lost.arm)
    if len(left) == len(block.todo.arms) or not left:
        yield _ended(bench, job, pending.pop(0), lost.status, str(lost))
        return
    ended = asdict(ArmTiming(lost.status, str(lost)))
    pending[0] = PendingBlock(replace(block.todo, arms=left), {**block.lost, lost.arm: ended})


def worker_of(bench: RunContext, job: Job) -> Worker:
    """A job's worker, just started."""
    configuration = job.configuration
    framework = bench.frameworks[configuration.framework]
    cache = _cache(bench, job)
    if job.replicate == 0:  # its first calls are results: they find nothing that an earlier worker left
        shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir(parents=True, exist_ok=True)
    variables = framework.environment(configuration.device, configuration.threads, str(cache)) | allocator.variables(
        bench.study.memory
    )
    return bench.worker(configuration.framework, variables, bench.study.timeout_s)


def _rated(job: Job) -> bool:
    """Whether a job's worker measures what can be done at best: the first that times anything."""
    return job.replicate == 0 and any(todo.timed for todo in job.blocks)


def _cache(bench: RunContext, job: Job) -> Path:
    c = job.configuration
    return bench.cache / f"{c.framework}-{c.device}-{c.threads}-{c.execution}-{c.precision}"


def open_(bench: RunContext, job: Job, worker: Worker, rate: bool = False) -> Answer:
    """Have a worker open its framework, prove its threads, if anything of the job is timed, and measure its rates."""
    configuration = job.configuration
    settings = {
        "device": configuration.device,
        "threads": configuration.threads,
        "precision": configuration.precision,
        "cache": str(_cache(bench, job)),
    }
    timed = any(todo.timed for todo in job.blocks)
    prove = timed and configuration.device == "cpu"
    return worker.ask({"do": "open", "settings": settings, "prove": prove, "rate": rate})


def _block(
    bench: RunContext,
    job: Job,
    pending: PendingBlock,
    worker: Worker,
    proof: Answer,
    left_s: Callable[[], float],
    stage: Stage,
) -> Record:
    """Have one block done, judge what it gave, and return its record."""
    todo = pending.todo
    label = " ".join(filter(None, (_place(job), todo.workload.name, todo.pass_, todo.part)))
    begun, clock = _heading(bench, job, todo), bench.clock()
    before = bench.graphics() if job.configuration.device == "gpu" else None
    scratch = Path(tempfile.mkdtemp(prefix="outputs-", dir=_cache(bench, job)))
    try:
        request = _request(bench, job, todo) | {"seed": begun["seed"], "seconds": left_s(), "outputs": str(scratch)}
        answer = worker.ask(request, lambda said: stage(f"{label} {said['arm']}: {said['what']}"))
        if answer["is"] == "unwritten":  # a full disk, mostly, which all that follows would meet too
            raise OSError(answer["reason"])
        on_gpu = _on_gpu(before, bench.graphics()) if before else {}
        stage(f"{label}: judging")
        judged = bench.judge.judge(scratch, todo.workload, todo.steps, todo.pass_, job.configuration.precision)
        if bench.keep:
            bench.keep(job, todo, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    arms = {name: _judged(arm, judged["arms"].get(name)) for name, arm in answer["arms"].items()} | pending.lost
    status = "ok" if all(arm["status"] in ("ok", "not_reached", "unavailable") for arm in arms.values()) else "failed"
    reason = "; ".join(f"{name}: {arm['reason']}" for name, arm in arms.items() if arm["reason"])
    end = {
        "timer_ns": answer["timer_ns"],
        "threads_used": proof["threads_used"],
        "numerics": proof["numerics"],
        "rates": proof["rates"],
        "floors": answer["floors"],
        "start_s": proof["start_s"],
        "seconds": bench.clock() - clock,
        "bounds": judged["bounds"],
        "arms": arms,
    }
    return begun | {"status": status, "reason": reason} | end | on_gpu


def _on_gpu(before: gpu.State, after: gpu.State | None) -> Record:
    """How the GPU did before and after a block, and why its clocks were low."""
    return {"gpu": {"before": before, "after": after}, "throttled": gpu.throttled(before, after)} if after else {}


def _request(bench: RunContext, job: Job, todo: BlockSpec) -> dict[str, Any]:
    """What a worker is asked for a block, but for what differs from try to try."""
    study = bench.study
    least, most = todo.rounds or study.rounds_min, todo.rounds or study.rounds
    return {
        "do": "block",
        "workload": todo.workload.model_dump(),
        "steps": todo.steps,
        "pass": todo.pass_,
        "execution": job.configuration.execution,
        "arms": [[arm.recurrence, arm.projection] for arm in todo.arms],
        "weights": str(bench.weights),
        "rounds": {"least": least, "most": most, "block_s": study.block_s * (1 if _central(todo) else LESS_TIME)}
        if todo.timed
        else None,
        "counted": [[arm.recurrence, arm.projection] for arm in _counted(bench, job, todo)],
        "control": todo.control,
        "calls": todo.calls,
        "hurried": job.replicate == 0,
        "overwrites": bench.frameworks[job.configuration.framework].executions[job.configuration.execution][
            "overwrites"
        ],
        "texts": str(bench.texts or ""),
    }


def _central(todo: BlockSpec) -> bool:
    """Whether a block has a whole block's time."""
    return not todo.swept and (not todo.part or is_question(todo.part))


def _counted(bench: RunContext, job: Job, todo: BlockSpec) -> tuple[Arm, ...]:
    """The arms of which is counted what they do in a call: once, where they are at home."""
    wanted = bench.texts or (todo.timed and job.replicate == 0 and not todo.swept)
    return todo.home if wanted else ()


def _judged(arm: dict[str, Any], judged: dict[str, Any] | None) -> dict[str, Any]:
    """An arm with what the gates say; the times of one that is not ok are withheld."""
    if judged is None:
        return arm
    arm = arm | {"quantities": judged["quantities"]}
    if judged["status"] == "ok":
        return arm
    withheld: Record = {"first_call_ns": None, "samples_ns": [], "faults": []}
    return arm | withheld | {"status": judged["status"], "reason": judged["reason"]}


def _ended(bench: RunContext, job: Job, pending: PendingBlock, status: str, reason: str) -> Record:
    arms = {arm.name: asdict(ArmTiming(status, reason)) for arm in pending.todo.arms} | pending.lost
    heading = _heading(bench, job, pending.todo)
    return heading | {
        "status": status,
        "reason": reason,
        "timer_ns": None,
        "threads_used": None,
        "bounds": {},
        "arms": arms,
    }


def _heading(bench: RunContext, job: Job, todo: BlockSpec) -> Record:
    """What identifies a block, and the circumstances it began in."""
    configuration = asdict(job.configuration)
    what = configuration | {
        "replicate": job.replicate,
        "workload": todo.workload.model_dump(),
        "steps": todo.steps,
        "pass": todo.pass_,
        "part": todo.part,
    }
    key = block_key(bench.basis, job, todo)
    begun = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "load": environment.load()}
    seed = int(digest([bench.study.seed, key]), 16) % 2**31
    return {"key": key, "kind": "block" if todo.timed else "check"} | what | begun | {"seed": seed}


def block_key(basis: dict[str, Any], job: Job, todo: BlockSpec) -> str:
    """Hash of a block's job, the code, the framework's versions and the hardware."""
    what = [
        asdict(job.configuration),
        job.replicate,
        todo.workload.model_dump(),
        todo.pass_,
        todo.steps,
        todo.timed,
        todo.part,
    ]
    return digest([basis, what])


def _place(job: Job) -> str:
    c = job.configuration
    return f"[{job.replicate}] {c.framework} {c.execution} {c.device}×{c.threads} {c.precision}"
