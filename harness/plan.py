"""From a study and what the frameworks say of themselves to cells, and from cells to jobs.

A cell is one arm of one workload and pass in one framework, device, thread count, execution and
precision. Every cell is either planned or named with the reason why not.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum
from typing import Any

from harness.parts import BATCHED, is_question, part_of, parts
from harness.refused import Refused
from harness.study import CALIBRATING, SWEPT, Study, Workload, nearest
from impls.interface import IMPOSSIBLE, NO_TF32, Arm

CHECK_STEPS = 3  # steps a workload is shortened to for the fp64 verification inside `run`


@dataclass(frozen=True)
class Framework:
    """What a framework said in its own process. `missing` is why it cannot be used, or None; where it is `installed`,
    installing it would not help.
    """

    name: str
    missing: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    executions: dict[str, dict[str, Any]] = field(default_factory=dict)
    devices: dict[str, str | None] = field(default_factory=dict)
    environments: list[dict[str, Any]] = field(default_factory=list)
    installed: bool = True

    def environment(self, device: str, threads: int, cache: str) -> dict[str, str]:
        """The variables a worker is started with; `cache` replaces the place held for it."""
        found = next(e for e in self.environments if (e["device"], e["threads"]) == (device, threads))
        return {name: value.replace(CACHE, cache) for name, value in found["variables"].items()}


CACHE = "<cache>"


@dataclass(frozen=True)
class Seat:
    """Where a worker sits: what is fixed for the life of a process, but for the replicate."""

    framework: str
    device: str
    threads: int
    execution: str
    precision: str


@dataclass(frozen=True)
class Cell:
    seat: Seat
    workload: Workload
    pass_: str
    arm: Arm

    def row(self) -> dict[str, Any]:
        """The cell's keys, as the tables name them."""
        w = self.workload
        sizes = {size: getattr(w, size) for size in "BTIHO"}
        return {
            **asdict(self.seat),
            "workload": w.name,
            "cell": w.cell,
            **sizes,
            "pass": self.pass_,
            "recurrence": self.arm.recurrence,
            "projection": self.arm.projection,
        }


class Rank(IntEnum):
    """What comes first where a budget does not do for everything."""

    HEADLINE = 0  # the question in the loop that one would write, with the first of the thread counts
    OTHER_THREADS = 1  # the same with the other thread counts
    REST = 2  # other loops, other projections, the framework's own layer, and the sweep


@dataclass
class Plan:
    """Cells to measure, and those that cannot be, with status and reason.

    `loops`: the loop that users would write in each seat. `threads`: the first of the thread counts.
    """

    cells: list[Cell]
    absent: list[tuple[Cell, str, str]]
    loops: dict[Seat, str] = field(default_factory=dict)
    threads: int = 1

    def rank(self, seat: Seat, todo: "Todo") -> Rank:
        """The rank of a seat's block."""
        if todo.swept or todo.part != self.loops.get(seat):
            return Rank.REST
        return Rank.OTHER_THREADS if seat.device == "cpu" and seat.threads != self.threads else Rank.HEADLINE


@dataclass(frozen=True)
class Todo:
    """One block of a job. `steps` shortens the workload; `timed` is false for a verification.

    `part` says which of the workload's arms these are (harness.parts); nothing: all there are. `rounds` is their
    number, where a pilot has said it; else the study's limits hold. `calls` of a sample, where an earlier process has
    found it. `swept`: a point of a sweep, which takes a third of a block's time, and whose programs are not counted.
    """

    workload: Workload
    pass_: str
    arms: tuple[Arm, ...]
    steps: int
    timed: bool
    part: str = ""
    rounds: int | None = None
    calls: int | None = None
    swept: bool = False

    @property
    def home(self) -> tuple[Arm, ...]:
        """Its arms but for guests."""
        return tuple(a for a in self.arms if not self.part or part_of(a.recurrence, a.projection) == self.part)

    @property
    def control(self) -> bool:
        """Whether its batched arms have twins: not where they are guests."""
        return any(arm.projection == BATCHED for arm in self.home)


@dataclass(frozen=True)
class Need:
    """What the gaps of a block need: processes in all, and rounds in each."""

    processes: int
    rounds: int


Needs = dict[tuple[Seat, str, str, str], Need]  # seat, workload's name, pass, part -> what the pilot said


@dataclass(frozen=True)
class Job:
    """One process: a seat, its replicate (the process number of the tables) and its blocks."""

    seat: Seat
    replicate: int
    blocks: tuple[Todo, ...]


def thread_counts(study: Study, cores: int) -> list[int]:
    """The study's thread counts, `all` being the cores there are, without repetition."""
    counts = [cores if threads == "all" else int(threads) for threads in study.threads]
    if above := [count for count in counts if count > cores]:
        raise Refused(f"{above[0]} threads were asked for, but {cores} cores can be used")
    return list(dict.fromkeys(counts))


def selected(study: Study, frameworks: list[Framework]) -> list[Framework]:
    """The frameworks to study. Raises Refused when one asked for by name is missing or unknown."""
    known = {framework.name: framework for framework in frameworks}
    for name in study.frameworks or ():
        try:
            found = known[nearest("framework", name, known)]
        except ValueError as error:
            raise Refused(str(error)) from None
        if found.missing:
            raise Refused(f"framework {name} was asked for, but {advice(found)}")
    chosen = [known[name] for name in study.frameworks] if study.frameworks else frameworks
    if all(framework.missing for framework in chosen):
        raise Refused(f"no framework can be used: {'; '.join(f'{f.name}: {advice(f)}' for f in chosen)}")
    _check_executions(study, chosen)
    return chosen


def advice(framework: Framework) -> str:
    """Why a framework is missing, and what to do where that is known."""
    return str(framework.missing) + ("" if framework.installed else f": pip install '.[{framework.name}]'")


def _check_executions(study: Study, chosen: list[Framework]) -> None:
    there = {name: e for framework in chosen for name, e in framework.executions.items()}
    for name in study.executions or ():
        try:
            execution = there[nearest("execution", name, there)]
        except ValueError as error:
            raise Refused(str(error)) from None
        if execution["missing"] and study.frameworks:
            raise Refused(f"execution {name} was asked for, but {execution['missing']}")
    for device in study.devices or ():
        reasons = [framework.devices.get(device) for framework in chosen if not framework.missing]
        if all(reasons):
            raise Refused(f"device {device} was asked for, but {'; '.join(str(reason) for reason in reasons)}")


def make(study: Study, frameworks: list[Framework], threads: list[int]) -> Plan:
    """Every cell of the study, planned or absent with its reason."""
    plan = Plan([], [], threads=threads[0])
    points = {workload.name for workload in study.swept}
    for framework in frameworks:
        for cell in _cells(study, framework, threads):
            plan.loops[cell.seat] = framework.executions[cell.seat.execution]["loop"]
            if why := why_not(study, framework, cell, cell.workload.name in points):
                plan.absent.append((cell, *why))
            else:
                plan.cells.append(cell)
    return plan


def _cells(study: Study, framework: Framework, threads: list[int]) -> Iterator[Cell]:
    executions = [e for e in framework.executions if not study.executions or e in study.executions]
    devices = [d for d in framework.devices if not study.devices or d in study.devices]
    for device, execution, precision in itertools.product(devices, executions, study.precisions):
        for count in threads if device == "cpu" else threads[-1:]:  # on a GPU the host's threads are no axis
            seat = Seat(framework.name, device, count, execution, precision)
            for workload, pass_, arm in itertools.product(study.workloads, study.passes, study.arms):
                yield Cell(seat, workload, pass_, arm)
            swept = study.swept if count == threads[0] or device != "cpu" else study.swept[:CALIBRATING]
            for point, pass_, projection in itertools.product(swept, study.passes, SWEPT):
                yield Cell(seat, point, pass_, Arm(framework.executions[execution]["loop"], projection))


def why_not(study: Study, framework: Framework, cell: Cell, swept: bool = False) -> tuple[str, str] | None:
    """Status and reason of a cell that can not be measured, or None; `swept`: whether it is a point of a sweep."""
    execution = framework.executions[cell.seat.execution]
    if missing := framework.devices[cell.seat.device] or execution["missing"]:
        return "unavailable", missing
    if reason := IMPOSSIBLE.get(cell.arm.name):
        return "impossible", reason
    if cell.seat.device == "cpu" and cell.seat.precision == "tf32":
        return "impossible", NO_TF32
    if reason := without(execution, cell):
        return "unavailable", reason
    if reason := on_request(study, execution, cell):
        return "skipped", reason
    limit, steps = study.unroll_limit, cell.workload.T
    unrolls = {cell.arm.recurrence, cell.arm.name} & set(execution["unrolls"])
    if limit is not None and execution["traced"] and unrolls and swept:
        return "skipped", "a sweep compiles every size's unrolled steps anew, and unroll_limit is set"
    if limit is not None and execution["traced"] and unrolls and steps > limit:
        return "skipped", f"{steps} unrolled steps take long to compile, and unroll_limit is {limit}"
    return None


def prototypes(study: Study, frameworks: list[Framework]) -> list[dict[str, str]]:
    """What the study's executions say rests on a prototype, a row for each recurrence."""
    return [
        {"framework": framework.name, "execution": name, "recurrence": recurrence, "reason": reason}
        for framework in frameworks
        for name, execution in framework.executions.items()
        if not study.executions or name in study.executions
        for recurrence, reason in execution["prototypes"].items()
    ]


def without(execution: dict[str, Any], cell: Cell) -> str | None:
    """Why an execution does not have what a cell asks for, or None."""
    asked = (cell.seat.device, cell.seat.precision, cell.arm.recurrence, cell.arm.projection, cell.arm.name)
    return next(filter(None, map(execution["without"].get, asked)), None)


def on_request(study: Study, execution: dict[str, Any], cell: Cell) -> str | None:
    """Why a recurrence that the study does not name is not measured, or None."""
    recurrence = cell.arm.recurrence
    reason = execution["on_request"].get(recurrence)
    asked = recurrence in (study.recurrences or ())
    return f"{reason}: it is measured where --recurrence {recurrence} asks for it" if reason and not asked else None


def jobs(
    plan: Plan, study: Study, replicate: int, ranks: Iterable[Rank] = Rank, needs: Needs | None = None
) -> list[Job]:
    """A replicate's timed jobs of some ranks, seats in random order; with `needs`, only what needs so many processes.

    Blocks keep the study's order in every replicate: a budget that ends early has then cut the least central cells.
    In the first, what forecasts are made from comes with what they are about, and before it.
    """
    grouped = group(plan.cells)
    made = []
    for seat in _shuffled(grouped, study, replicate):
        blocks = []
        for todo in blocks_of(grouped[seat], study):
            need = needs.get((seat, todo.workload.name, todo.pass_, todo.part)) if needs is not None else None
            rank = plan.rank(seat, todo)
            if replicate == 0 and _calibrates(todo, study):
                rank = Rank.HEADLINE
            if rank in ranks and (needs is None or (need and need.processes > replicate)):
                blocks.append((rank, replace(todo, rounds=need.rounds if need else None)))
        if blocks:
            by_rank = sorted(blocks, key=lambda block: block[0])
            made.append(Job(seat, replicate, tuple(todo for _, todo in by_rank)))
    return made


def blocks_of(grouped: dict[tuple[Workload, str], list[Arm]], study: Study) -> list[Todo]:
    """A seat's timed blocks: those that forecasts are made from, the question's, the others', the rest of the sweep."""
    points = {workload.name for workload in study.swept}
    made = [
        Todo(workload, pass_, arms, workload.T, True, part, swept=workload.name in points)
        for (workload, pass_), every in grouped.items()
        for part, arms in parts(every).items()
    ]
    return sorted(made, key=lambda todo: (not _calibrates(todo, study), todo.swept, not is_question(todo.part)))


def _calibrates(todo: Todo, study: Study) -> bool:
    """Whether a block is one that forecasts are made from."""
    return todo.workload in study.swept[:CALIBRATING]


def _shuffled(seats: Iterable[Seat], study: Study, replicate: int) -> list[Seat]:
    order = list(seats)
    random.Random(f"{study.seed}/{replicate}").shuffle(order)
    return order


def checks(plan: Plan, study: Study) -> list[Job]:
    """The fp64 verification inside `run`: each framework, device and execution once, at few steps.

    Every arm with the first workload, and of every further cell what differs by cell: the recurrences.
    """
    found: dict[tuple[str, str, str], Job] = {}
    by_cell: dict[str, Workload] = {}
    for workload in study.workloads:
        by_cell.setdefault(workload.cell, workload)
    firsts = list(by_cell.values())
    for seat, blocks in group(plan.cells).items():
        arms: dict[Arm, None] = {}
        for each in blocks.values():
            arms.update(dict.fromkeys(each))
        seat64 = Seat(seat.framework, seat.device, seat.threads, seat.execution, "fp64")
        once = {arm.recurrence: arm for arm in reversed(arms) if arm.recurrence != "given"}
        chosen = {first: tuple(arms) if first is firsts[0] else tuple(once.values()) for first in firsts}
        todo = [
            Todo(first, pass_, some, min(first.T, CHECK_STEPS), timed=False)
            for first, some in chosen.items()
            for pass_ in study.passes
            if some
        ]
        found[seat.framework, seat.device, seat.execution] = Job(seat64, 0, tuple(todo))
    return list(found.values())


def verifications(plan: Plan) -> list[Job]:
    """Every cell of the plan at full size, without times."""
    return [
        Job(seat, 0, tuple(Todo(w, p, tuple(arms), w.T, timed=False) for (w, p), arms in blocks.items()))
        for seat, blocks in group(plan.cells).items()
    ]


def group(cells: list[Cell]) -> dict[Seat, dict[tuple[Workload, str], list[Arm]]]:
    """Seat -> (workload, pass) -> arms, in the order of the cells."""
    grouped: dict[Seat, dict[tuple[Workload, str], list[Arm]]] = {}
    for cell in cells:
        grouped.setdefault(cell.seat, {}).setdefault((cell.workload, cell.pass_), []).append(cell.arm)
    return grouped
