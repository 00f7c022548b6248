"""One study with the frameworks of several environments: their processes in turn, a run for each, and what changed.

A machine drifts. What two environments measure is compared only because their processes alternate: each process of the
study is a shard, measured by every environment before the next one is.
"""

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import harness
from harness.errors import UsageError
from harness.machine import folders
from harness.records.store import FILE
from harness.run.merge import SHARD
from harness.study.study import Study

SHARDS = "shards"  # the folder of all shards, beside those of the runs
LEFT_OUT = {"--venv": 1, "--out": 1, "--processes": 1, "--no-report": 0, "--no-html": 0, "--resume": 0}  # -> arguments
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, by its folder; its name is that of its run's folder."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.absolute().name

    @property
    def python(self) -> Path:
        return self.folder.absolute() / "bin" / "python"


@dataclass(frozen=True)
class Turn:
    """One process of the study in one environment: the number of the shard, and its folder."""

    environment: Environment
    number: int
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder.parent / f"{self.folder.name}.log"


def environments_of(given: Sequence[Path]) -> list[Environment]:
    """Return the environments of some folders. Raises UsageError for fewer than two, two of a name, and no Python."""
    found = [Environment(folder) for folder in given]
    if len(found) < 2:
        raise UsageError("--venv is given once for each environment, at least twice: they are compared")
    names = [environment.name for environment in found]
    if again := next((name for name in names if names.count(name) > 1 or name == SHARDS), None):
        raise UsageError(f"--venv: an environment's name is that of its run's folder, and {again} is taken")
    if missing := next((environment for environment in found if not environment.python.exists()), None):
        raise UsageError(f"--venv {missing.folder} is no virtual environment: it has no bin/python")
    return found


def turns(environments: Sequence[Environment], processes: int, out: Path) -> Iterator[Turn]:
    """Yield every process of every environment, so that each environment is first, second ... equally often."""
    for number in range(1, processes + 1):
        first = (number - 1) % len(environments)
        for environment in (*environments[first:], *environments[:first]):
            yield Turn(environment, number, out / SHARDS / environment.name / SHARD.format(number))


def measure(
    study: Study,
    words: Sequence[str],
    given: Sequence[Path],
    out: Path,
    resume: bool,
    say: Callable[[str], None],
    run: Run = subprocess.run,
) -> tuple[dict[str, list[Path]], bool]:
    """Measure a study in several environments; return the folders of each one's shards, and whether all went well.

    `words`: the command line of `run`. `given`: the folders of the environments. Raises UsageError where the study has
    no number of processes, `out` is taken, or a shard measures nothing: what is measured is kept, and `resume` goes on.
    """
    environments = environments_of(given)
    if study.processes is None or study.shard:
        raise UsageError("--venv takes a study of a known number of processes, and no shard: give --processes")
    if out.exists() and any(out.iterdir()) and not resume:
        raise UsageError(f"{out} is not empty; --resume goes on with what it has")
    folders.check_writable(out)
    own = [*without(words, LEFT_OUT), "--no-report", "--processes", str(study.processes)]
    shards: dict[str, list[Path]] = {}
    statuses = []
    for turn in turns(environments, study.processes, out):
        say(f"process {turn.number} of {study.processes} in {turn.environment.name}")
        statuses.append(_measure_shard(turn, [*own, "--shard", f"{turn.number}/{study.processes}"], run))
        shards.setdefault(turn.environment.name, []).append(turn.folder)
    return shards, not any(statuses)


def _measure_shard(turn: Turn, words: Sequence[str], run: Run) -> int:
    """Measure one shard with an environment's Python, or what is left of it, and return 1 where a cell went wrong.

    Raises UsageError where it measures nothing, and where the shard's folder is of another study.
    """
    folders.make_folder(turn.folder.parent)
    command = [str(turn.environment.python), "-m", "harness", *words, "--out", str(turn.folder)]
    command += ["--resume"] if turn.folder.exists() and any(turn.folder.iterdir()) else []
    root = str(Path(harness.__file__).parents[1])  # the same code in every environment
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    with turn.log.open("ab") as log:
        done = run(command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": path}, check=False)
    if done.returncode not in (0, 1) or not (turn.folder / FILE).exists():  # 1: what went wrong is in its records
        raise UsageError(f"process {turn.number} in {turn.environment.name} was not measured: {_last_line(turn.log)}")
    return done.returncode


def without(words: Sequence[str], options: dict[str, int]) -> list[str]:
    """Return a command line without some options. `options`: option -> how many words follow it."""
    kept: list[str] = []
    place = 0
    while place < len(words):
        option, separator, _ = words[place].partition("=")
        if option not in options:
            kept.append(words[place])
        elif not separator:
            place += options[option]
        place += 1
    return kept


def _last_line(log: Path) -> str:
    """Return the last line of a shard's log that says anything, or where the log is."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (lines or [f"see {log}"])[-1].removeprefix("error: ")
