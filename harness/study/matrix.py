"""The matrix of a study: its cells, and the jobs that measure them.

A cell is one arm of one workload and pass in one framework, device, thread count, execution and
precision. Every cell is either planned or listed as absent with the reason.
"""

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple

from harness.errors import UsageError
from harness.study.configuration import Configuration
from harness.study.parts import BATCHED, PRECOMPUTED, arms_by_part, chunk_order, is_question, part_of
from harness.study.study import CALIBRATING, SWEPT, Study, Workload, validate_choice
from impls.interface import (
    CHUNKED,
    CHUNKED_LOSS,
    IMPOSSIBLE,
    LOSS_INSIDE,
    NO_LAYERS,
    NO_LOSS,
    NO_OUTPUTS,
    NO_TF32,
    ONE_LAYER,
    Arm,
    Execution,
    chunk_sizes,
    family_of,
)

CHECK_STEPS = 3  # steps a workload is shortened to for the fp64 verification inside `run`


@dataclass(frozen=True)
class WorkerEnvironment:
    """The environment variables of a framework's workers on one device with one number of threads."""

    device: str
    threads: int
    variables: dict[str, str]


@dataclass(frozen=True)
class Framework:
    """What a framework reported about itself, in a process of its own.

    `missing` is why it cannot be used, or None. `installed` is true where installing it would not help.
    """

    name: str
    missing: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    executions: dict[str, Execution] = field(default_factory=dict)
    devices: dict[str, str | None] = field(default_factory=dict)
    environments: list[WorkerEnvironment] = field(default_factory=list)
    installed: bool = True

    def environment(self, device: str, threads: int, cache: str) -> dict[str, str]:
        """Return the environment variables a worker is started with; `cache` replaces the placeholder CACHE."""
        entry = next(e for e in self.environments if (e.device, e.threads) == (device, threads))
        return {name: value.replace(CACHE, cache) for name, value in entry.variables.items()}


CACHE = "<cache>"


@dataclass(frozen=True)
class Cell:
    """One arm of one workload and pass, in one configuration."""

    configuration: Configuration
    workload: Workload
    pass_: str
    arm: Arm

    def row(self) -> dict[str, Any]:
        """Return the cell's keys under the column names of the tables."""
        w = self.workload
        sizes = {size: getattr(w, size) for size in "BTIHO"}
        return {
            **self.configuration.row(),
            "workload": w.name,
            "cell": w.cell,
            **sizes,
            "pass": self.pass_,
            "recurrence": self.arm.recurrence,
            "projection": self.arm.projection,
        }


class AbsentCell(NamedTuple):
    """A cell that cannot be measured, with its status and the reason."""

    cell: Cell
    status: str
    reason: str


@dataclass(frozen=True)
class Prototype:
    """Programs that rest on something that their framework's authors mark as a prototype; `reason` says so."""

    framework: str
    execution: str
    recurrence: str
    reason: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Return framework, execution and recurrence."""
        return self.framework, self.execution, self.recurrence


class Rank(IntEnum):
    """The order in which blocks are measured when the budget does not cover all of them."""

    HEADLINE = 0  # the question's arms, in the loop that users would write, with the first thread count
    ALONE = 1  # the projection of precomputed hidden states, forward: what claim C6 is about
    SELDOM = (
        2  # the question in passes that users of an execution seldom run: page one compares compiled ones with them
    )
    OTHER_THREADS = 3  # the question with the other thread counts
    REST = 4  # other loops, projections and executions, the framework's own layer, and the sweep


@dataclass
class Plan:
    """The cells to measure, and those that cannot be measured, with status and reason.

    `loops`: the loop that users would write in each configuration that they use. `seldom`: configurations and passes
    that they seldom run. `threads`: the first thread count.
    """

    cells: list[Cell]
    absent: list[AbsentCell]
    loops: dict[Configuration, str] = field(default_factory=dict)
    seldom: set[tuple[Configuration, str]] = field(default_factory=set)
    threads: int = 1

    def rank(self, configuration: Configuration, block: "BlockSpec") -> Rank:
        """Return the rank of a configuration's block."""
        if block.is_swept:
            return Rank.REST
        if block.part == PRECOMPUTED and block.pass_ == "forward":
            rank = self.question_rank(configuration, block.pass_)
            return Rank.ALONE if rank == Rank.HEADLINE else Rank.REST
        if block.part != self.loops.get(configuration):
            return Rank.REST
        return self.question_rank(configuration, block.pass_)

    def question_rank(self, configuration: Configuration, pass_: str) -> Rank:
        """Return the rank of the question's block in a configuration and pass."""
        if configuration not in self.loops:
            return Rank.REST
        if configuration.device == "cpu" and configuration.threads != self.threads:
            return Rank.OTHER_THREADS
        return Rank.SELDOM if (configuration, pass_) in self.seldom else Rank.HEADLINE


@dataclass(frozen=True)
class BlockSpec:
    """One block of a job.

    `steps` shortens the workload. `timed` is false for a verification, and where `peaks` has memory measured instead.
    `part`: which of the workload's arms these are (harness.study.parts); empty means all of them.
    `rounds`: their number, where a pilot has determined it; otherwise the study's limits hold.
    `calls`: the number of calls in a sample, where an earlier process has determined it.
    `is_swept`: whether this is a point of a sweep; it takes a third of a block's time, and its programs go uncounted.
    """

    workload: Workload
    pass_: str
    arms: tuple[Arm, ...]
    steps: int
    timed: bool
    part: str = ""
    rounds: int | None = None
    calls: int | None = None
    is_swept: bool = False
    peaks: bool = False

    @property
    def kind(self) -> Literal["block", "check", "peaks"]:
        """Return the kind of the block's record."""
        return "block" if self.timed else "peaks" if self.peaks else "check"

    @property
    def own_arms(self) -> tuple[Arm, ...]:
        """Return the arms that belong to the block's part, without the guests."""
        return tuple(a for a in self.arms if not self.part or part_of(a.recurrence, a.projection) == self.part)

    @property
    def has_control(self) -> bool:
        """Return whether the block has A/A controls: only where a batched arm is no guest."""
        return any(arm.projection == BATCHED for arm in self.own_arms)


@dataclass(frozen=True)
class SampleSize:
    """The sample size that the gaps of a block require: processes in total, and rounds in each."""

    processes: int
    rounds: int


SampleSizes = dict[
    tuple[Configuration, str, str, str], SampleSize
]  # (configuration, workload's name, pass, part) -> sample size computed from the pilot


@dataclass(frozen=True)
class Job:
    """One process: a configuration, its replicate (the process number of the tables) and its blocks."""

    configuration: Configuration
    replicate: int
    blocks: tuple[BlockSpec, ...]

    @property
    def measures_peaks(self) -> bool:
        """Return whether the process measures memory, and nothing else."""
        return any(block.peaks for block in self.blocks)


def thread_counts(study: Study, cores: int) -> list[int]:
    """Return the study's thread counts without repetition; `all` stands for the number of cores.

    Raises UsageError when a count exceeds the cores.
    """
    counts = [cores if threads == "all" else int(threads) for threads in study.threads]
    if excess := [count for count in counts if count > cores]:
        raise UsageError(f"{excess[0]} threads were asked for, but {cores} cores can be used")
    return list(dict.fromkeys(counts))


def select_frameworks(study: Study, frameworks: list[Framework]) -> list[Framework]:
    """Return the frameworks to study.

    Raises UsageError when a framework, execution or device that the study names is missing or unknown, and when no
    framework can be used.
    """
    by_name = {framework.name: framework for framework in frameworks}
    for name in study.frameworks or ():
        try:
            framework = by_name[validate_choice("framework", name, by_name)]
        except ValueError as error:
            raise UsageError(str(error)) from None
        if framework.missing:
            raise UsageError(f"framework {name} was asked for, but {missing_reason(framework)}")
    selection = [by_name[name] for name in study.frameworks] if study.frameworks else frameworks
    if all(framework.missing for framework in selection):
        raise UsageError(f"no framework can be used: {'; '.join(f'{f.name}: {missing_reason(f)}' for f in selection)}")
    _check_executions(study, selection)
    return selection


def missing_reason(framework: Framework) -> str:
    """Return why a framework is missing, and how to install it where it is not installed."""
    return str(framework.missing) + ("" if framework.installed else f": pip install '.[{framework.name}]'")


def _check_executions(study: Study, frameworks: list[Framework]) -> None:
    """Raise UsageError when an execution or device that the study names is unknown or missing."""
    executions = {
        name: execution
        for framework in frameworks
        for short, execution in framework.executions.items()
        for name in (short, f"{framework.name}:{short}")
    }
    for name in study.executions or ():
        try:
            execution = executions[validate_choice("execution", name, executions)]
        except ValueError as error:
            raise UsageError(str(error)) from None
        if execution.missing and study.frameworks:
            raise UsageError(f"execution {name} was asked for, but {execution.missing}")
    for device in study.devices or ():
        reasons = [framework.devices.get(device) for framework in frameworks if not framework.missing]
        if all(reasons):
            raise UsageError(f"device {device} was asked for, but {'; '.join(str(reason) for reason in reasons)}")


def make_plan(study: Study, frameworks: list[Framework], threads: list[int]) -> Plan:
    """Return the plan of a study: every cell, either planned or absent with its reason."""
    plan = Plan([], [], threads=threads[0])
    points = {workload.name for workload in study.swept}
    for framework in frameworks:
        for cell in _cells(study, framework, threads):
            execution = framework.executions[cell.configuration.execution]
            if execution.usual_passes:
                plan.loops[cell.configuration] = execution.loop
            if cell.pass_ not in execution.usual_passes:
                plan.seldom.add((cell.configuration, cell.pass_))
            if absence := cell_absence(study, framework, cell, cell.workload.name in points):
                plan.absent.append(AbsentCell(cell, *absence))
            else:
                plan.cells.append(cell)
    return plan


def _cells(study: Study, framework: Framework, threads: list[int]) -> Iterator[Cell]:
    """Yield every cell of a study in one framework, whether it can be measured or not."""
    executions = [e for e in framework.executions if study.selects(framework.name, e)]
    devices = [d for d in framework.devices if not study.devices or d in study.devices]
    for device, execution, precision in itertools.product(devices, executions, study.precisions):
        for count in threads if device == "cpu" else threads[-1:]:  # on a GPU the host's thread count is not varied
            configuration = Configuration(framework.name, device, count, execution, precision)
            for workload, pass_, arm in itertools.product(study.workloads, study.passes, study.arms):
                yield Cell(configuration, workload, pass_, arm)
            points = study.swept if count == threads[0] or device != "cpu" else study.swept[:CALIBRATING]
            for point, pass_, projection in itertools.product(points, study.passes, SWEPT):
                yield Cell(configuration, point, pass_, Arm(framework.executions[execution].loop, projection))


def cell_absence(study: Study, framework: Framework, cell: Cell, is_swept: bool = False) -> tuple[str, str] | None:
    """Return status and reason of a cell that cannot be measured, or None.

    `is_swept`: whether the cell is a point of a sweep.
    """
    execution = framework.executions[cell.configuration.execution]
    if missing := framework.devices[cell.configuration.device] or execution.missing:
        return "unavailable", missing
    family = family_of(cell.arm.projection)
    if reason := IMPOSSIBLE.get(f"{cell.arm.recurrence}_{family}") or _no_chunks(cell) or _not_in_pass(cell):
        return "impossible", reason
    if cell.configuration.device == "cpu" and cell.configuration.precision == "tf32":
        return "impossible", NO_TF32
    if reason := missing_requirement(execution, cell):
        return "unavailable", reason
    if cell.workload.layers > 1 and {cell.arm.recurrence, cell.arm.projection} & {*ONE_LAYER}:
        return "unavailable", NO_LAYERS
    if reason := on_request_reason(study, execution, cell):
        return "skipped", reason
    limit, steps = study.unroll_limit, cell.workload.T
    unrolls = {cell.arm.recurrence, cell.arm.name} & set(execution.unrolls)
    what = "steps"
    if family in execution.chunks_unrolled and not unrolls:
        unrolls, steps, what = {CHUNKED}, len(chunk_sizes(cell.arm.projection, steps)), "chunks"
    if limit is not None and execution.traced and unrolls and is_swept:
        return "skipped", "a sweep compiles every size's unrolled steps anew, and unroll_limit is set"
    if limit is not None and execution.traced and unrolls and steps > limit:
        return (
            "skipped",
            f"{steps} unrolled {what} take long to compile, and unroll_limit is {limit}",
        )
    return None


def _no_chunks(cell: Cell) -> str | None:
    """Return why a workload's steps cannot be cut into the chunks of a cell's projection, or None."""
    projection, steps = cell.arm.projection, cell.workload.T
    if family_of(projection) in (CHUNKED, CHUNKED_LOSS) and math.inf > chunk_order(projection) > steps:
        return f"{steps} steps make no {chunk_order(projection):.0f} chunks"
    return None


def _not_in_pass(cell: Cell) -> str | None:
    """Return why a cell's projection cannot be in its pass, or None."""
    if cell.pass_ == "forward" and family_of(cell.arm.projection) in LOSS_INSIDE:
        return NO_OUTPUTS
    return NO_LOSS if cell.pass_ == "loss" and cell.arm.projection == "none" else None


def prototypes(study: Study, frameworks: list[Framework]) -> list[Prototype]:
    """Return each recurrence that rests on a prototype, in the study's executions, with the reason."""
    return [
        Prototype(framework.name, name, recurrence, reason)
        for framework in frameworks
        for name, execution in framework.executions.items()
        if study.selects(framework.name, name)
        for recurrence, reason in execution.prototypes.items()
    ]


def missing_requirement(execution: Execution, cell: Cell) -> str | None:
    """Return why an execution lacks something that a cell requires, or None."""
    requirements = (
        cell.configuration.device,
        cell.configuration.precision,
        cell.arm.recurrence,
        family_of(cell.arm.projection),
        cell.arm.name,
        cell.pass_,
        cell.workload.loss,
        f"{cell.arm.recurrence}_layers" if cell.workload.layers > 1 else "",
    )
    return next(filter(None, map(execution.without.get, requirements)), None)


def on_request_reason(study: Study, execution: Execution, cell: Cell) -> str | None:
    """Return why a recurrence that the study does not name is not measured, or None."""
    recurrence = cell.arm.recurrence
    reason = execution.on_request.get(recurrence)
    is_named = recurrence in (study.recurrences or ())
    return f"{reason}: it is measured where --recurrence {recurrence} asks for it" if reason and not is_named else None


def replicate_jobs(
    plan: Plan, study: Study, replicate: int, ranks: Iterable[Rank] = Rank, needs: SampleSizes | None = None
) -> list[Job]:
    """Return a replicate's timed jobs of the given ranks, in random order.

    With `needs`, only blocks whose sample size has more than `replicate` processes are included.

    Within a rank, blocks keep the study's order in every replicate, so that a budget that ends early cuts the least
    central cells.
    In replicate 0, the points of the sweep that predictions are fitted on have the question's rank and come before it.
    """
    arms_by_configuration = group_by_configuration(plan.cells)
    timed_jobs = []
    for configuration in _random_order(arms_by_configuration, study, replicate):
        blocks = []
        for block in blocks_of(arms_by_configuration[configuration], study):
            need = (
                needs.get((configuration, block.workload.name, block.pass_, block.part)) if needs is not None else None
            )
            rank = plan.rank(configuration, block)
            if replicate == 0 and _is_calibration(block, study):
                rank = plan.question_rank(configuration, block.pass_)
            if rank in ranks and (needs is None or (need and need.processes > replicate)):
                blocks.append((rank, replace(block, rounds=need.rounds if need else None)))
        if blocks:
            by_rank = sorted(blocks, key=lambda ranked: ranked[0])
            timed_jobs.append(Job(configuration, replicate, tuple(block for _, block in by_rank)))
    return timed_jobs


def blocks_of(arms_by_case: dict[tuple[Workload, str], list[Arm]], study: Study) -> list[BlockSpec]:
    """Return a configuration's timed blocks, from its arms by workload and pass.

    Their order: the points that predictions are fitted on, the question, the other parts, the rest of the sweep.
    """
    points = {workload.name for workload in study.swept}
    blocks = [
        BlockSpec(workload, pass_, part_arms, workload.T, True, part, is_swept=workload.name in points)
        for (workload, pass_), arms in arms_by_case.items()
        for part, part_arms in arms_by_part(arms).items()
    ]
    return sorted(
        blocks, key=lambda block: (not _is_calibration(block, study), block.is_swept, not is_question(block.part))
    )


def _is_calibration(block: BlockSpec, study: Study) -> bool:
    """Return whether predictions are fitted on a block."""
    return block.workload in study.swept[:CALIBRATING]


def _random_order(configurations: Iterable[Configuration], study: Study, replicate: int) -> list[Configuration]:
    """Return the configurations in a random order, which the study's seed and the replicate determine."""
    order = list(configurations)
    place = f"{replicate}" if study.shard is None else f"{study.shard}/{replicate}"
    random.Random(f"{study.seed}/{place}").shuffle(order)
    return order


def fp64_check_jobs(plan: Plan, study: Study, of_question: bool | None = None) -> list[Job]:
    """Return the jobs of the fp64 verification inside `run`: each framework, device and execution once, at few steps.

    The first workload of each loss is verified with every arm. Each further kind of cell is verified with one arm of
    each recurrence, because only the recurrences differ by cell. `of_question`: only the question's arms, in the loop
    that users would write, or only all others.
    """
    check_jobs: dict[tuple[str, str, str], Job] = {}
    workloads: dict[tuple[str, str], Workload] = {}
    for workload in study.workloads:
        workloads.setdefault((workload.cell, workload.loss), workload)
    whole = {workload.loss: workload for workload in reversed(study.workloads)}  # with every arm
    for configuration, arms_by_case in group_by_configuration(plan.cells).items():
        arms: dict[str, dict[Arm, None]] = {pass_: {} for pass_ in study.passes}
        for (_, pass_), case_arms in arms_by_case.items():
            arms[pass_].update(dict.fromkeys(case_arms))
        fp64_configuration = Configuration(
            configuration.framework, configuration.device, configuration.threads, configuration.execution, "fp64"
        )
        blocks = []
        for workload, pass_ in itertools.product(workloads.values(), study.passes):
            part, members = "", list(arms[pass_])
            if workload is not whole[workload.loss]:
                members = list({arm.recurrence: arm for arm in reversed(members) if arm.recurrence != "given"}.values())
            if of_question is not None:
                loop = plan.loops.get(configuration, "")
                part = loop if of_question else ""
                members = [a for a in members if (part_of(a.recurrence, a.projection) == loop) == of_question]
            if members:
                steps = min(workload.T, CHECK_STEPS)
                blocks.append(BlockSpec(workload, pass_, tuple(members), steps, timed=False, part=part))
        check_jobs[configuration.framework, configuration.device, configuration.execution] = Job(
            fp64_configuration, 0, tuple(blocks)
        )
    return [job for job in check_jobs.values() if job.blocks]


def verification_jobs(plan: Plan) -> list[Job]:
    """Return the jobs that verify every cell of the plan at full size, without times."""
    return [
        Job(configuration, 0, tuple(BlockSpec(w, p, tuple(arms), w.T, timed=False) for (w, p), arms in cases.items()))
        for configuration, cases in group_by_configuration(plan.cells).items()
    ]


def peak_jobs(plan: Plan, study: Study, ranks: Iterable[Rank]) -> list[Job]:
    """Return the jobs that measure the memory of the arms of the given ranks, with the first thread count.

    The number of threads changes what a call holds by no more than what a library sets aside for each.
    """
    peak_jobs_ = []
    for configuration, cases in group_by_configuration(plan.cells).items():
        if configuration.device == "cpu" and configuration.threads != plan.threads:
            continue
        blocks = [
            replace(block, arms=block.own_arms, timed=False, peaks=True)
            for block in blocks_of(cases, study)
            if not block.is_swept and plan.rank(configuration, block) in ranks
        ]
        if blocks:
            peak_jobs_.append(Job(configuration, 0, tuple(blocks)))
    return peak_jobs_


def compilation_jobs(plan: Plan, study: Study) -> list[Job]:
    """Return untimed jobs that compile every program of a first replicate, the most central blocks first."""
    timed = [(job, block) for job in replicate_jobs(plan, study, 0) for block in job.blocks]
    by_rank = sorted(timed, key=lambda pair: plan.rank(pair[0].configuration, pair[1]))
    return [replace(job, blocks=(replace(block, timed=False),)) for job, block in by_rank]


def group_by_configuration(cells: list[Cell]) -> dict[Configuration, dict[tuple[Workload, str], list[Arm]]]:
    """Return configuration -> (workload, pass) -> arms, in the order of the cells."""
    arms: dict[Configuration, dict[tuple[Workload, str], list[Arm]]] = {}
    for cell in cells:
        arms.setdefault(cell.configuration, {}).setdefault((cell.workload, cell.pass_), []).append(cell.arm)
    return arms
