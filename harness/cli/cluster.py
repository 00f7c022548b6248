"""The commands submit and status: a study in shards, on a cluster or here."""

import json
import shlex
import time
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from harness.errors import UsageError
from harness.report.markdown import duration
from harness.run import submission
from harness.run.progress import console
from harness.run.submission import DONE, FAILED, LOST, PENDING, RUNNING, ShardState
from harness.study.study import load_study


class Words(NamedTuple):
    """The arguments of `submit`, as given."""

    study: Path | None
    shards: int
    processes: int | None
    sbatch: str
    exclusive: bool
    local: bool
    wait: bool
    resume: bool


def submit(words: Words, out: Path) -> int:
    """Send a study to Slurm, or run its shards here, and return the exit status. Raises UsageError."""
    numbers = _begin(words, out)
    if words.local:
        try:
            submission.run_here(out, numbers, lambda line: print(line, flush=True))
        except KeyboardInterrupt:
            again = _command("submit", "--local", "--resume", "--out", out)
            print(f"\nwhat is measured is kept. Continue with: {again}")
            return 130
        return _end(out)
    print(f"job {submission.load(out).jobs[-1]}: {len(numbers)} tasks. Watch it with: {_command('status', out)}")
    return _wait(out) if words.wait else 0


def _begin(words: Words, out: Path) -> list[int]:
    """Write a submission's folder and send it, unless it runs here; return the numbers of its shards."""
    if words.local and words.sbatch:
        raise UsageError("--sbatch is for Slurm, and --local runs the shards here: give one of them")
    if words.resume:
        if words.study or words.shards or words.processes:
            raise UsageError("--resume sends what the folder has: it takes no study, shards or processes")
        if words.local:
            states = submission.status(out, with_progress=False)
            return [state.number for state in states if state.state != DONE]
        return submission.resume(out, words=_split(words.sbatch))[1]
    if not words.study or not words.shards:
        raise UsageError("submit takes a study file and --shards: what is measured, and in how many parts")
    study = load_study(words.study, None, {"processes": words.processes})
    options = submission.Options(_split(words.sbatch), words.exclusive)
    if words.local:
        submission.check_shards(study, words.shards)
        submission.write(study, words.study, out, words.shards, options)
    else:
        submission.submit(study, words.study, out, words.shards, options)
    return list(range(1, words.shards + 1))


def _split(text: str) -> list[str]:
    """Return the words of --sbatch as a shell would. Raises UsageError."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--sbatch {text!r} cannot be split into words: {error}") from None
    if bad := [word for word in words if not word.startswith("-")]:
        raise UsageError(f"--sbatch takes options such as --partition=gpu, and {bad[0]!r} is none")
    return words


def _wait(out: Path) -> int:
    """Wait until no shard is waiting or running, and return the exit status; Ctrl-C ends the array."""
    try:
        while True:
            states = submission.status(out, with_progress=False)
            if not any(state.state in (PENDING, RUNNING) for state in states):
                return _end(out)
            time.sleep(submission.WAIT_S)
    except KeyboardInterrupt:
        print(f"\ncancelled: {', '.join(submission.cancel(out))}; what is measured is kept")
        return 130


def _end(out: Path) -> int:
    """Say how all shards ended, and what comes next; return the exit status."""
    states = submission.status(out, with_progress=False)
    for state in states:
        if state.state != DONE:
            print(f"shard {state.number} {state.state}: {state.detail}")
    if any(state.state != DONE for state in states):
        here = [] if submission.load(out).jobs else ["--local"]
        print(f"Send them again with: {_command('submit', '--resume', *here, '--out', out)}")
        return 1
    print(f"all shards are done. Join them with: {_command('merge', out, '--out', 'FOLDER')}")
    return 0


def say_status(folder: Path, as_json: bool) -> int:
    """Print the state of every shard; return 1 where any failed or was lost, else 0."""
    states = submission.status(folder)
    left_s = submission.seconds_left(folder, states, time.time())
    if as_json:
        content = {"shards": submission.rows_of(states), "counts": submission.counted(states), "seconds_left": left_s}
        print(json.dumps(content, indent=1))
    else:
        _print_table(states)
        counts = ", ".join(f"{number} {state}" for state, number in submission.counted(states).items())
        left = f"; about {duration(left_s)} left" if left_s is not None else ""
        print(f"{counts}{left}")
    return 1 if any(state.state in (FAILED, LOST) for state in states) else 0


def _print_table(states: list[ShardState]) -> None:
    table = Table("shard", "state", "node", "blocks", "")
    for state in states:
        blocks = f"{state.blocks} of {state.expected}" if state.expected else str(state.blocks)
        table.add_row(str(state.number), state.state, state.node, blocks, state.detail)
    console().print(table, markup=False)


def _command(name: str, *words: str | Path) -> str:
    return f"python -m harness {name} {shlex.join(map(str, words))}"
