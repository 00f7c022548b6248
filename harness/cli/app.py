"""The command line: python -m harness run | verify | explain | train | pair | report | list | count | score | ..."""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn, TypeVar

import typer

from harness.cli import streams
from harness.cli.options import (
    ChunksFlag,
    CompileFirstFlag,
    DeviceFlag,
    ExecutionFlag,
    FrameworkFlag,
    InputsFlag,
    JsonFlag,
    LibraryFlag,
    LimitFlag,
    MemoryFlag,
    NoHtmlFlag,
    PassFlag,
    PeaksFlag,
    PrecisionFlag,
    ProjectionFlag,
    RecurrenceFlag,
    SeedFlag,
    Selection,
    ShardFlag,
    StudyFile,
    SweepFlag,
    ThreadsFlag,
    TimeoutFlag,
    VenvFlag,
    WeightsFlag,
    WorkloadFlag,
    apply_limits,
    parse_percent,
    parse_threads,
    refuse_blanks,
    split_values,
)
from harness.errors import UsageError

if TYPE_CHECKING:  # commands import what they need themselves, so that --help does not wait for it
    from harness.study.study import Study

app = typer.Typer(
    help="fusegap: is projecting an RNN's output once per step slower than once for all steps?",
    pretty_exceptions_enable=False,
)
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which typer uses but does not export
PROGRAM = "fusegap"  # the console script
COMPLETION = {"--install-completion", "--show-completion"}
BAD = ("wrong", "failed", "timeout", "refused")
R = TypeVar("R")  # a record of a run or of a training


@app.command()
def run(
    study: StudyFile = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Everything that is available on this machine (the default).")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="The same matrix in minutes: a smoke run without claims.")
    ] = False,
    rigorous: Annotated[bool, typer.Option("--rigorous", help="More processes and rounds, no time limit.")] = False,
    framework: FrameworkFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
    execution: ExecutionFlag = None,
    recurrence: RecurrenceFlag = None,
    projection: ProjectionFlag = None,
    chunks: ChunksFlag = None,
    pass_: PassFlag = None,
    precision: PrecisionFlag = None,
    workload: WorkloadFlag = None,
    processes: Annotated[
        int | None, typer.Option(help="Worker processes per cell; by default as many as the study's target needs.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds per block.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time after which no further block is begun: 900, 15m, 1h30m; 0 for no limit.")
    ] = None,
    sweep: SweepFlag = None,
    memory: MemoryFlag = None,
    library: LibraryFlag = None,
    compile_first: CompileFirstFlag = None,
    peaks: PeaksFlag = None,
    seed: SeedFlag = None,
    timeout: TimeoutFlag = None,
    unroll_limit: LimitFlag = None,
    weights: WeightsFlag = None,
    inputs: InputsFlag = None,
    shard: ShardFlag = None,
    venv: VenvFlag = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured, and about how long it takes, and end.")
    ] = False,
    json_: JsonFlag = False,
    out: Annotated[Path, typer.Option(help="The run's folder.")] = Path("runs/latest"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Records only: needs no pandas, scipy or matplotlib, given --processes.")
    ] = False,
    no_html: NoHtmlFlag = False,
) -> None:
    """Measure, verify and report."""
    from harness.study.study import load_study

    if quick and rigorous:
        raise UsageError("--quick and --rigorous contradict each other")
    if all_ and (
        study or any((framework, device, threads, execution, recurrence, projection, chunks, pass_, workload))
    ):
        raise UsageError("--all means everything and takes no study file and no selection beside it")
    selection = Selection(
        framework, device, threads, execution, recurrence, projection, pass_, precision, workload, chunks
    )
    flags = selection.fields()
    flags |= {"seed": seed, "timeout_s": timeout, "weights": weights, "inputs": inputs}
    flags |= {"processes": processes, "rounds": rounds, "sweep": sweep, "memory": memory, "library": library}
    flags |= {"compile_first": compile_first, "peaks": peaks, "shard": shard}
    preset = "quick" if quick else "rigorous" if rigorous else None
    run_study = apply_limits(load_study(study, preset, flags), budget, unroll_limit)
    if run_study.processes is None and (missing := [name for name in ("pandas", "scipy") if not _is_installed(name)]):
        raise UsageError(f"planning how many processes a gap needs takes {' and '.join(missing)}: give --processes")
    if dry_run:
        from harness.cli import plan

        plan.say(run_study, json_)
        raise typer.Exit(0)
    if json_:
        raise UsageError("--json prints the plan of --dry-run; a run's results are CSV and records in its folder")
    if venv:
        from harness.cli import versions

        write = partial(_write_run_report, html=not no_html)
        raise typer.Exit(versions.run(run_study, venv, out, resume, _command_line(), write))
    _run(run_study, out, resume, report=not no_report, html=not no_html)


@app.command()
def verify(
    study: StudyFile = None,
    framework: FrameworkFlag = None,
    device: DeviceFlag = None,
    threads: ThreadsFlag = None,
    execution: ExecutionFlag = None,
    recurrence: RecurrenceFlag = None,
    projection: ProjectionFlag = None,
    chunks: ChunksFlag = None,
    pass_: PassFlag = None,
    precision: PrecisionFlag = None,
    workload: WorkloadFlag = None,
    seed: SeedFlag = None,
    timeout: TimeoutFlag = None,
    unroll_limit: LimitFlag = None,
    weights: WeightsFlag = None,
    inputs: InputsFlag = None,
    save_outputs: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Save every arm's outputs (safetensors); no existing file is replaced."),
    ] = None,
    bound: Annotated[
        str | None, typer.Option(help="Hold all outputs to this precision's bounds: does as_shipped pass as fp32?")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Store the verification's records in a run's folder, which may not exist yet; the run counts them.",
        ),
    ] = None,
) -> None:
    """Verify every arm at full size in fp32 and fp64, without timing.

    A workload asked for by name or sizes is unrolled whatever its steps; else --unroll-limit holds.
    """
    from harness.cli import verify
    from harness.study.study import load_study
    from impls.interface import IN_LOOP_LOSS, PRECISIONS, PROJECTIONS, RECURRENCES

    selection = Selection(
        framework, device, threads, execution, recurrence, projection, pass_, precision, workload, chunks
    )
    flags = selection.fields()
    flags |= {"seed": seed, "timeout_s": timeout, "weights": weights, "inputs": inputs}
    defaults: dict[str, Any] = {"precisions": ["fp32", "fp64"], "threads": ["all"]}
    if workload or study:
        defaults["unroll_limit"] = None
    verify_study = apply_limits(load_study(study, None, flags, defaults), None, unroll_limit)
    if verify_study.recurrences is None:  # every arm, not the usual ones
        verify_study = verify_study.model_copy(update={"recurrences": list(RECURRENCES)})
    if verify_study.projections is None and verify_study.chunks is None:
        others = ["chunked_2", IN_LOOP_LOSS, "chunked_loss_2"]
        verify_study = verify_study.model_copy(update={"projections": [*PROJECTIONS, *others]})
    if bound is not None and bound not in PRECISIONS:
        raise UsageError(f"--bound takes {', '.join(PRECISIONS)}, not {bound!r}")
    if bound is not None and out is not None:
        raise UsageError(
            "--bound holds outputs to another's bounds: no gate of a run's, so it takes no --out beside it"
        )
    raise typer.Exit(verify.verify(verify_study, save_outputs, bound, out, _command_line()))


@app.command()
def explain(
    cell: Annotated[
        list[str],
        typer.Argument(
            metavar="CELL",
            help="Words in any order: torch inductor scan in_loop, [book] [forward] [fp32]; / for blanks.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the program's text.")] = None,
    json_: JsonFlag = False,
) -> None:
    """Count what one cell's program does in a call, and save its text (HLO, graph, generated code)."""
    from harness.cli import explain as explaining

    raise typer.Exit(explaining.explain(cell, out, json_))


@app.command()
def train(
    framework: FrameworkFlag = None,
    execution: ExecutionFlag = None,
    threads: Annotated[str, typer.Option(help="Processor threads of a worker: a number or 'all' cores.")] = "1",
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of Adam; the chapter takes 1,500.")] = 1500,
    processes: Annotated[int, typer.Option(help="Worker processes of each framework and execution.")] = 3,
    seed: SeedFlag = None,
    timeout: TimeoutFlag = None,
    out: Annotated[Path, typer.Option(help="The training's folder.")] = Path("runs/train"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --out.")] = False,
) -> None:
    """Train as the chapter does, both forms in turns, and compare losses and times."""
    from harness.analysis.trajectories import problems
    from harness.records.training import TRAINING
    from harness.report import training as reports
    from harness.run import train as training
    from harness.study.study import load_study

    flags: dict[str, Any] = {
        "frameworks": split_values("--framework", framework),
        "executions": split_values("--execution", execution),
        "threads": [parse_threads(threads)],
    }
    flags |= {"processes": processes, "seed": seed, "timeout_s": timeout, "passes": ["train"], "workloads": ["book"]}
    study = load_study(None, None, flags)
    files = ResultFiles(out, TRAINING.file, reports.write)
    records, path = _measure_and_report(files, lambda command: training.train(study, steps, out, resume, command))
    print(path)
    errors = problems(records)
    for error in errors:
        print(error, file=sys.stderr)
    raise typer.Exit(1 if errors else 0)


@app.command()
def pair(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Python file of functions; docs/pair.md says how.")],
    execution: ExecutionFlag = None,
    threads: ThreadsFlag = None,
    pass_: PassFlag = None,
    precision: PrecisionFlag = None,
    processes: Annotated[int | None, typer.Option(help="Worker processes of each execution.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Most rounds per process and pass.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time after which no further process is begun: 900, 15m; 0 for no limit.")
    ] = None,
    memory: MemoryFlag = None,
    library: LibraryFlag = None,
    seed: SeedFlag = None,
    timeout: TimeoutFlag = None,
    hoist: Annotated[
        bool,
        typer.Option(
            "--hoist", help="Compare the first with itself, with the work taken out of its loops (JAX, torch)."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="The comparison's folder.")] = Path("runs/pair"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the comparison in --out.")] = False,
) -> None:
    """Compare functions of your own, the first of which is the baseline: the same? how much faster? why?"""
    from harness.analysis.pairs import problems
    from harness.records.pair import PAIR
    from harness.report import pair as reports
    from harness.run import pair as pairs
    from harness.study.pair import make_study, read_file

    user_file = read_file(file)
    selection = Selection(execution=execution, threads=threads, pass_=pass_, precision=precision)
    flags = selection.fields() | {"processes": processes, "rounds": rounds, "memory": memory, "library": library}
    flags |= {"seed": seed, "timeout_s": timeout, "workloads": None, "hoist": hoist}
    study = apply_limits(make_study(user_file.framework, flags), budget, None)
    files = ResultFiles(out, PAIR.file, reports.write)
    records, path = _measure_and_report(files, lambda command: pairs.compare(study, user_file, out, resume, command))
    errors = problems(records)
    for error in errors:
        print(error, file=sys.stderr)
    print(path)
    for sentence in reports.verdict_sentences(records):
        print(sentence)
    raise typer.Exit(1 if errors else 0)


@app.command()
def submit(
    study: StudyFile = None,
    shards: Annotated[
        int | None, typer.Option(min=1, max=9999, help="Tasks of the array, each an equal part of the processes.")
    ] = None,
    processes: Annotated[int | None, typer.Option(help="Worker processes per cell, of all shards together.")] = None,
    sbatch: Annotated[
        str, typer.Option(metavar="WORDS", help='More options of sbatch: "--partition=... --gres=gpu:1".')
    ] = "",
    no_exclusive: Annotated[
        bool, typer.Option("--no-exclusive", help="Share nodes with other jobs, which disturb a measurement.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Run the shards here, one after another.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all have ended; Ctrl-C ends the array.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Send again what has no good exit.")] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The submission's folder.")] = Path("runs/submission"),
) -> None:
    """Measure a study in shards, as a job array of Slurm."""
    from harness.cli import cluster

    words = cluster.Words(study, shards or 0, processes, sbatch, not no_exclusive, local, wait, resume)
    raise typer.Exit(cluster.submit(words, out))


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A submission's folder.")],
    json_: JsonFlag = False,
) -> None:
    """Say which shards of a submission wait, run, are done or failed, and how long is left."""
    from harness.cli import cluster

    raise typer.Exit(cluster.say_status(folder, json_))


@app.command()
def cancel(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A submission's folder.")]) -> None:
    """End a submission's job array. What its shards have measured is kept."""
    from harness.run import submission

    print(f"cancelled: {', '.join(submission.cancel(folder))}")


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The folder of another, such as a later one.")],
    fail_on: Annotated[
        str | None,
        typer.Option("--fail-on", metavar="PERCENT", help="Exit with 1 where a change is shown and larger: 5%."),
    ] = None,
    against_itself: Annotated[
        bool, typer.Option("--against-itself", help="They are runs of the same: how far do they agree?")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """Say what changed from one run to another: gaps, times, cells, versions."""
    from harness.report import compared

    limit = parse_percent("--fail-on", fail_on) if fail_on is not None else None
    text, failed = compared.compare((a, b), limit, json_, against_itself)
    print(text.rstrip("\n"))
    raise typer.Exit(1 if failed else 0)


@app.command()
def merge(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="The folders of all shards, or of a submission.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The merged run's folder, which may not exist yet.")],
    no_report: Annotated[bool, typer.Option("--no-report", help="Records only.")] = False,
    no_html: NoHtmlFlag = False,
) -> None:
    """Join the shards of a study into one run, and write its report."""
    from harness.records.store import FILE
    from harness.run import merge as merging

    merging.merge(folders, out, _command_line())
    print(out / FILE if no_report else _write_run_report(out, not no_html))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="The folder of a run, or of each of several.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The report's folder; by default the run's own.")
    ] = None,
    no_html: NoHtmlFlag = False,
) -> None:
    """Write the report of a run, a training or a pair from its records; of several runs, one that compares them."""
    from harness import report as reports
    from harness.records.pair import PAIR
    from harness.records.training import TRAINING
    from harness.report import pair, several, training

    first = folders[0]
    if len(folders) > 1:
        print(several.write(folders, out, not no_html))
    elif _holds(first, TRAINING.file):
        print(training.write(first, out))
    elif _holds(first, PAIR.file):
        print(pair.write(first, out))
    else:
        print(reports.write(first, out, not no_html))


@app.command(name="list")
def list_(json_: JsonFlag = False) -> None:
    """List what can be studied on this machine, and what cannot, with the reason."""
    from harness.cli import verify

    verify.listing(json_)


@app.command()
def selftest(
    studies: Annotated[int, typer.Option(min=100, help="Simulated gaps per target.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated machines.")] = 1,
    real: Annotated[
        bool, typer.Option("--real", help="Instead, measure 432 programs against themselves on this machine.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder of --real.")] = Path("runs/selftest"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the --real in --out.")] = False,
) -> None:
    """Test the statistics on simulated machines of known ratios, or on this one."""
    from harness.selftest import coverage as tests

    if real:
        _run(tests.control_study(), out, resume)
    raise typer.Exit(tests.say(studies, seed))


@app.command()
def count(
    card: Annotated[list[str] | None, typer.Option("--card", help="h100, a100; by default both.")] = None,
    recurrence: RecurrenceFlag = None,
    projection: ProjectionFlag = None,
    pass_: PassFlag = None,
    workload: WorkloadFlag = None,
    unroll_limit: LimitFlag = None,
    evidence: Annotated[
        Path | None,
        typer.Option("--run", metavar="DIR", help="A run on a CPU: eager frameworks are predicted from its evidence."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the counts; what it holds is not counted again.")] = Path(
        "runs/counts"
    ),
) -> None:
    """Count what XLA would launch on a GPU that this machine does not have, and predict each form from it."""
    from harness.cli import count as counting

    selection = Selection(recurrence=recurrence, projection=projection, pass_=pass_, workload=workload)
    print(counting.count(split_values("--card", card), selection, unroll_limit, evidence, out))


@app.command()
def score(
    predictions: Annotated[
        Path, typer.Argument(metavar="FILE", help="The predictions.csv of `count`, or a folder of its counts.")
    ],
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run on a GPU.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every scored row into this CSV.")] = None,
) -> None:
    """Score predictions made from counts, or the counts themselves, against a run on a GPU."""
    from harness.cli import count as counting

    counting.score(predictions, run, out)


@app.command()
def doctor(json_: JsonFlag = False) -> None:
    """Report what on this machine will disturb a measurement, and the noise to expect (half a minute)."""
    from harness.cli import doctor as doctors

    raise typer.Exit(doctors.say(json_))


def _run(study: "Study", out: Path, resume: bool, report: bool = True, html: bool = True) -> None:
    """Measure a study into a folder, print the path of its report, and exit: with 1 where anything went wrong."""
    from harness.records.outcome import no_times_reason
    from harness.records.schema import BlockRecord
    from harness.records.store import FILE, budgets, latest_blocks, latest_records
    from harness.run import session as runs

    write = partial(_write_run_report, html=html) if report else lambda folder: folder / FILE
    files = ResultFiles(out, FILE, write)
    records, path = _measure_and_report(files, lambda command: runs.run(study, out, resume, command))
    statuses = [arm.status for record in latest_records(records, BlockRecord) for arm in record.arms.values()]
    print(path)
    bad_count = sum(status in BAD for status in statuses)
    if bad_count:
        print(f"{bad_count} measurements went wrong or failed; the records name them", file=sys.stderr)
    if reason := no_times_reason(latest_blocks(records, "block"), budgets(records)[-1]):
        print(f"nothing was measured: {reason}", file=sys.stderr)
    raise typer.Exit(1 if bad_count or reason else 0)


def _holds(folder: Path, file: str) -> bool:
    """Return whether a folder holds a records file, plain or packed."""
    return any(os.path.lexists(folder / name) for name in (file, f"{file}.gz"))


def _is_installed(module: str) -> bool:
    """Return whether a module is installed."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _write_run_report(folder: Path, html: bool) -> Path:
    from harness import report as reports

    return reports.write(folder, html=html)


class ResultFiles(NamedTuple):
    """A folder of results, the name of its records file, and the function that writes its report."""

    out: Path
    records: str
    write: Callable[[Path], Path]


def _measure_and_report(files: ResultFiles, measure: Callable[[str], list[R]]) -> tuple[list[R], Path]:
    """Call `measure` with the command line; return its records and the path of the report.

    When `measure` is interrupted, or cannot write, the records so far are kept and this exits with a status above 0.
    An interrupted run with records also gets its report.
    """
    command = _command_line()
    try:
        records = measure(command)
    except KeyboardInterrupt:
        print(f"\ninterrupted; {_resume_hint(files, command)}", file=sys.stderr)
        if (files.out / files.records).exists():
            _write_report(files)
        raise typer.Exit(streams.INTERRUPTED) from None
    except OSError as error:  # a full disk, mostly
        print(f"error: {streams.error_message(error)}; {_resume_hint(files, command)}", file=sys.stderr)
        raise typer.Exit(1) from None
    return records, _write_report(files)


def _command_line() -> str:
    """Return the command line as it was given, without --out and --resume."""
    return f"python -m harness {streams.quote_words(_drop_out_and_resume(sys.argv[1:]))}"


def _resume_hint(files: ResultFiles, command: str) -> str:
    """Return a sentence on what an interrupted run has kept, and the command that resumes it."""
    state = "what is done is kept" if (files.out / files.records).exists() else "nothing was measured yet"
    resumable = files.out.is_dir() and any(files.out.iterdir())
    flags = ["--resume"] if resumable else []
    return f"{state}. Continue with: {command} {streams.quote_words(['--out', str(files.out), *flags])}"


def _write_report(files: ResultFiles) -> Path:
    """Write the report and return its path. Exits with status 1 when the report cannot be written."""
    try:
        return files.write(files.out)
    except OSError as error:
        retry = f"python -m harness report {streams.quote_words([str(files.out)])}"
        message = f"{streams.error_message(error)}; the records are kept, and the report can be made with: {retry}"
        raise typer.Exit(streams.print_error(message, 1)) from None


def _drop_out_and_resume(arguments: list[str]) -> list[str]:
    """Return the arguments without --resume and --out, which do not change what is measured."""
    remaining: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--resume" and argument != "--out" and not argument.startswith("--out="):
            remaining.append(argument)
        skip = argument == "--out"
    return remaining


def main() -> NoReturn:
    """Run the command line and exit. A usage error is printed as one sentence on stderr, with exit status 2."""
    streams.leave(_run_command)


def _run_command() -> int | None:
    """Run a command and return its exit status. Raises UsageError."""
    try:
        refuse_blanks(sys.argv[1:])
        if COMPLETION & set(sys.argv[1:2]) and Path(sys.argv[0]).name != PROGRAM:
            raise UsageError(f"a shell completes the name of a program: call {PROGRAM} {sys.argv[1]}")
        return app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except USAGE_ERROR as error:
        raise UsageError(" ".join(error.format_message().split())) from None
