"""A study in shards on a cluster: a Slurm job array whose tasks are `run --shard`, or the same one after another here.

A submission's folder has the study, the script, the shards' folders, their logs, and a file with the exit status of
each that ended. What has no good exit can be sent again. Slurm is asked by its own commands; no shell sees a word of
the user's that is not quoted.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.errors import UsageError
from harness.machine import folders
from harness.records.schema import BlockRecord, RunHeaderRecord
from harness.records.store import latest_blocks, read_run
from harness.run.merge import EXITS, SHARD, SUBMISSION
from harness.study.study import Study

STUDY, SCRIPT, LOGS = "study.toml", "job.sh", "logs"
PENDING, RUNNING, DONE, FAILED, LOST = "pending", "running", "done", "failed", "lost"
USUAL = ("--job-name=fusegap", "--nodes=1", "--hint=nomultithread", "--no-requeue", "--open-mode=append")
LARGEST = 1_000_000  # bytes of a submission's own file
BEGUN = "task begun"  # how a task's lines in a shard's log begin: one that was sent again adds to it
UNFINISHED = ".part"  # ends the name of an exit status that is being written
TAIL = 10_000  # bytes of a log in which Slurm says why it ended a task
CANCELLED = re.compile(r"slurmstepd\S*: error: \*\*\* .* CANCELLED AT \S+( DUE TO ([A-Z ]+))?")
WAIT_S = 5.0  # between two looks at the queue
Run = Callable[..., "subprocess.CompletedProcess[str]"]


class Submission(BaseModel):
    """What a submission's folder is of.

    `words`: the options of sbatch. `jobs`: the ids of the job arrays, or none where it runs here.
    """

    model_config = ConfigDict(extra="forbid")

    shards: int = Field(ge=1, le=9999)
    processes: int = Field(ge=1)
    words: list[str] = []
    jobs: list[str] = []
    began: float = 0.0


@dataclass(frozen=True)
class ShardState:
    """How one shard is: its state, in words what is known beside that, and the blocks that it has measured."""

    number: int
    state: str
    detail: str
    node: str
    blocks: int
    expected: int


@dataclass(frozen=True)
class Options:
    """How an array is sent: the user's words for sbatch, and whether each task has a node for itself."""

    words: Sequence[str] = ()
    exclusive: bool = True


def submit(study: Study, file: Path, folder: Path, shards: int, options: Options, run: Run = subprocess.run) -> str:
    """Write a submission and send it to Slurm; return the job's id. Raises UsageError, after which nothing is left."""
    check_shards(study, shards)
    _require_slurm(shards, run)
    _require_empty(folder)
    with _undone_on_failure(folder):
        write(study, file, folder, shards, options)
        return send(folder, range(1, shards + 1), run)


def check_shards(study: Study, shards: int) -> None:
    """Raise UsageError where a study cannot be cut into so many shards."""
    if study.processes is None or study.processes < shards:
        found = "no number of them" if study.processes is None else f"{study.processes}"
        raise UsageError(f"{shards} shards take a study of as many processes or more, and this one has {found}")
    if study.shard:
        raise UsageError("the study is a shard already")


def write(study: Study, file: Path, folder: Path, shards: int, options: Options) -> None:
    """Write a submission's folder, or nothing. Raises UsageError where it holds anything already."""
    _require_empty(folder)
    assert study.processes is not None
    words = [*USUAL, *(["--exclusive"] if options.exclusive else []), *options.words]
    with _undone_on_failure(folder):
        for part in (folder, folder / LOGS, folder / EXITS):
            folders.make_folder(part)
        _write(folder / STUDY, file.read_bytes())
        _write(folder / SCRIPT, _script(folder.resolve(), shards, study.processes).encode())
        _save(folder, Submission(shards=shards, processes=study.processes, words=words, began=time.time()))


def _require_empty(folder: Path) -> None:
    """Raise UsageError where a folder holds anything."""
    if folder.exists() and any(folder.iterdir()):
        hint = "; --resume sends what has no good exit" if (folder / SUBMISSION).exists() else ""
        raise UsageError(f"{folder} is not empty{hint}")


@contextmanager
def _undone_on_failure(folder: Path) -> Iterator[None]:
    """Leave a folder as it was, empty or not there, when it cannot be filled or sent."""
    is_new = not folder.exists()
    try:
        yield
    except (UsageError, OSError):
        shutil.rmtree(folder, ignore_errors=True)
        if not is_new:
            folder.mkdir()
        raise


def resume(folder: Path, run: Run = subprocess.run, words: Sequence[str] = ()) -> tuple[str, list[int]]:
    """Send again what has no good exit, and is not waiting or running. Return the job's id and the shards' numbers.

    `words`: more options of sbatch, which stand after the earlier ones and so replace them.
    """
    states = status(folder, run, with_progress=False)
    again = [state.number for state in states if state.state in (FAILED, LOST)]
    if not again:
        counts = ", ".join(f"{number} {state}" for state, number in counted(states).items())
        raise UsageError(f"nothing of {folder} is to be sent again: {counts}")
    return send(folder, again, run, words), again


def send(folder: Path, numbers: Iterable[int], run: Run, more: Sequence[str] = ()) -> str:
    """Send the array's tasks of some shards, and return the job's id.

    `more`: options of sbatch beside those that the submission has; it keeps them. Raises UsageError when Slurm refuses,
    or when the job's id cannot be written down, after which the job is cancelled: nobody would find it again.
    """
    submission, place = load(folder), folder.resolve()
    submission = submission.model_copy(update={"words": [*submission.words, *more]})
    own = ["--parsable", f"--array={','.join(map(str, numbers))}", f"--output={place / LOGS / SHARD.format('%a')}.log"]
    done = _ask(["sbatch", *submission.words, *own, str(place / SCRIPT)], run)
    if done.returncode:
        raise UsageError(f"sbatch refused: {_last_line(done)}")
    job = done.stdout.strip().partition(";")[0]
    try:
        _save(folder, submission.model_copy(update={"jobs": [*submission.jobs, job]}))
    except OSError as error:
        _ask(["scancel", job], run)
        raise UsageError(f"{folder / SUBMISSION} cannot be written: {error.strerror}; job {job} is cancelled") from None
    return job


def run_here(folder: Path, numbers: Iterable[int], say: Callable[[str], None]) -> None:
    """Run shards one after another on this machine, as tasks of the array would."""
    for number in numbers:
        say(f"shard {number} of {load(folder).shards}")
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
        with (folder / LOGS / f"{SHARD.format(number)}.log").open("ab") as log:
            subprocess.run(["/bin/sh", str(folder / SCRIPT)], env=environment, stdout=log, stderr=log, check=False)


def status(folder: Path, run: Run = subprocess.run, with_progress: bool = True) -> list[ShardState]:
    """Return the state of every shard. Raises UsageError where a folder is no submission.

    Without `with_progress` no records are read, which are many, and no blocks are counted.
    """
    submission = load(folder)
    queue = _queue(submission.jobs, run)
    states = [_state(folder, number, queue.get(number), with_progress) for number in range(1, submission.shards + 1)]
    return states if submission.jobs else [_as_here(folder, state) for state in states]


def seconds_left(folder: Path, states: list[ShardState], now: float) -> float | None:
    """Return about how long the rest takes, if it goes on as it did so far; None where nothing was measured yet."""
    done, expected = sum(state.blocks for state in states), sum(state.expected for state in states)
    open_ = [state for state in states if state.state in (PENDING, RUNNING)]
    if not done or not expected or not open_:
        return None
    return (now - load(folder).began) * (expected - done) / done


def cancel(folder: Path, run: Run = subprocess.run) -> list[str]:
    """End a submission's job arrays, and return their ids. Raises UsageError when Slurm refuses, or there are none."""
    jobs = load(folder).jobs
    if not jobs:
        raise UsageError(f"{folder} was not sent to Slurm: there is nothing to cancel")
    done = _ask(["scancel", *jobs], run)
    if done.returncode:
        raise UsageError(f"scancel refused: {_last_line(done)}")
    return jobs


def counted(states: list[ShardState]) -> dict[str, int]:
    """Return how many shards are in each state."""
    counts: dict[str, int] = {}
    for state in states:
        counts[state.state] = counts.get(state.state, 0) + 1
    return counts


def load(folder: Path) -> Submission:
    """Return what a folder is the submission of. Raises UsageError."""
    file = folder / SUBMISSION
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{folder} holds no submission: {file.name}: {error.strerror}") from None
    try:
        submission = Submission.model_validate_json(content if len(content) <= LARGEST else b"")
    except (ValidationError, ValueError):
        raise UsageError(f"{file} is no submission") from None
    if bad := [job for job in submission.jobs if not re.fullmatch("[0-9]+", job)]:
        raise UsageError(f"{file} is no submission: {bad[0]!r} is no job")
    return submission


def _save(folder: Path, submission: Submission) -> None:
    temporary = folder / f".{SUBMISSION}"
    _write(temporary, (submission.model_dump_json() + "\n").encode())
    temporary.replace(folder / SUBMISSION)


def _write(file: Path, content: bytes) -> None:
    with folders.add_path_to_errors(file):
        file.write_bytes(content)


def _script(folder: Path, shards: int, processes: int) -> str:
    """Return the job's script: one task measures one shard, and writes down how it ended."""
    place, python = shlex.quote(str(folder)), shlex.quote(sys.executable)
    lines = [
        "#!/bin/sh",
        "number=$SLURM_ARRAY_TASK_ID",
        f"out={place}/{SHARD.format('')}$number",
        f"exit={place}/{EXITS}/$number",
        f"cd {shlex.quote(os.getcwd())} || exit 2",
        f'rm -f "$exit" "$exit{UNFINISHED}"',
        f'echo "{BEGUN} on ${{SLURMD_NODENAME:-this machine}}"',
        'resume=; [ -d "$out" ] && [ -n "$(ls -A "$out")" ] && resume=--resume',
        f'{python} -m harness run {place}/{STUDY} --processes {processes} --shard "$number/{shards}" --out "$out" '
        "--no-report $resume",
        "status=$?",
        f'echo $status > "$exit{UNFINISHED}" && mv "$exit{UNFINISHED}" "$exit"',
        "exit $status",
    ]
    return "\n".join(lines) + "\n"


def _require_slurm(shards: int, run: Run) -> None:
    """Raise UsageError where Slurm is not there, or takes no array of so many tasks."""
    done = _ask(["scontrol", "show", "config"], run)
    if done.returncode:
        raise UsageError(f"Slurm does not answer: {_last_line(done)}")
    largest = re.search(r"MaxArraySize\s*=\s*([0-9]+)", done.stdout)
    if largest and shards >= int(largest[1]):
        raise UsageError(
            f"{shards} shards are too many for this cluster, whose arrays have fewer than {largest[1]} tasks"
        )


def _ask(command: list[str], run: Run) -> "subprocess.CompletedProcess[str]":
    """Return what a command of Slurm's answered. Raises UsageError where it is not installed, or does not answer."""
    try:
        return run(command, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except FileNotFoundError:
        raise UsageError(
            f"there is no Slurm here: {command[0]} is not installed (--local runs the shards here)"
        ) from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"Slurm does not answer: {command[0]} took longer than a minute") from None


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].removeprefix("sbatch: ").removeprefix("error: ") if lines else f"exit status {done.returncode}"


def _queue(jobs: list[str], run: Run) -> dict[int, tuple[str, str]]:
    """Return the shards that Slurm has in its queue -> its word for their state, and their node."""
    queue: dict[int, tuple[str, str]] = {}
    for job in jobs:
        done = _ask(["squeue", "--noheader", "--array", f"--jobs={job}", "--format=%K %T %N"], run)
        for line in done.stdout.splitlines() if done.returncode == 0 else ():  # it knows no job that ended long ago
            number, state, *node = line.split()
            if number.isdecimal():
                queue[int(number)] = (state, node[0] if node else "")
    return queue


def _state(folder: Path, number: int, queued: tuple[str, str] | None, with_progress: bool) -> ShardState:
    """Return the state of one shard, from the queue, from the file of its exit, and from its records."""
    blocks, expected, nodes = _progress(folder / SHARD.format(number)) if with_progress else (0, 0, [])
    exit_ = _read_exit(folder / EXITS / str(number))
    node = (queued[1] if queued else "") or ", ".join(nodes)
    if queued and queued[0] in ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED"):
        state, detail = PENDING, queued[0].lower()
    elif queued and queued[0] in ("RUNNING", "COMPLETING") and exit_ is None:
        state, detail = RUNNING, queued[0].lower()
    elif exit_ == 0:
        state, detail = DONE, ""
    elif exit_ is not None:
        state, detail = FAILED, f"exit status {exit_}, see {folder / LOGS / SHARD.format(number)}.log"
    elif (folder / EXITS / f"{number}{UNFINISHED}").exists():
        state, detail = FAILED, "its exit status could not be written: is the disk full?"
    else:
        state, detail = LOST, _why_lost(folder / LOGS / f"{SHARD.format(number)}.log")
    return ShardState(number, state, detail, node, blocks, expected)


def _why_lost(log: Path) -> str:
    """Return why a task left no exit status: what Slurm wrote into its log as it ended it, or what may have been."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - TAIL))
            text = stream.read(TAIL).decode("utf-8", "replace").rpartition(BEGUN)[2]
    except OSError:
        text = ""
    if not (found := CANCELLED.search(text)):
        return "it is not in the queue and left no exit status: its node died, or its disk was full"
    reason = (found[2] or "").strip().lower()
    if reason == "time limit":
        return 'its time limit was reached; --resume --sbatch "--time=..." gives it more'
    return f"it was cancelled{f': {reason}' if reason else ''}"


def _as_here(folder: Path, state: ShardState) -> ShardState:
    """Return the state of a shard of a submission that runs here, where no queue knows what has not ended."""
    if state.state != LOST:
        return state
    is_locked = (folder / SHARD.format(state.number) / ".lock").exists()
    return replace(state, state=RUNNING if is_locked else PENDING, detail="")


def _read_exit(file: Path) -> int | None:
    """Return the exit status that a task wrote down, or None."""
    try:
        with file.open("rb") as stream:
            text = stream.read(16).decode("ascii", "replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _progress(folder: Path) -> tuple[int, int, list[str]]:
    """Return how many blocks a shard has measured, how many there will be if none is left out, and on which nodes."""
    try:
        records = read_run(folder)
    except UsageError:
        return 0, 0, []
    if not records or not isinstance(records[0], RunHeaderRecord):
        return 0, 0, []
    blocks = [record for record in latest_blocks(records, "block") if isinstance(record, BlockRecord)]
    first = len([block for block in blocks if block.replicate == 0])
    return len(blocks), first * records[0].study.own_processes, sorted({block.node for block in blocks if block.node})


def rows_of(states: list[ShardState]) -> list[dict[str, Any]]:
    """Return the states as a program would read them."""
    return [asdict(state) for state in states]
