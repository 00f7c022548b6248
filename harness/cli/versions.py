"""The option --venv of run: one study in several environments, a report of each, and what changed from the first."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.cli import streams
from harness.machine.folders import add_path_to_errors
from harness.run import versions
from harness.run.merge import merge
from harness.study.study import Study

FILE = "compared.md"


def run(
    study: Study,
    environments: Sequence[Path],
    out: Path,
    resume: bool,
    command: str,
    write: Callable[[Path], Path],
) -> int:
    """Measure a study in each environment, and return the exit status: 1 where a cell of any went wrong.

    `write`: writes the report of a run's folder, and returns its path. Raises UsageError, after which what is measured
    is kept.
    """
    from harness.report import compared

    try:
        shards, all_well = versions.measure(study, sys.argv[1:], environments, out, resume, _say)
    except KeyboardInterrupt:
        print("\ninterrupted; what is measured is kept: the same command with --resume goes on", file=sys.stderr)
        return streams.INTERRUPTED
    runs = [out / name for name in shards]
    for folder, parts in zip(runs, shards.values(), strict=True):
        if not folder.exists():
            merge(parts, folder, command)
        print(write(folder))
    texts = [compared.compare((runs[0], other), None, False, False)[0] for other in runs[1:]]
    with add_path_to_errors(out / FILE):
        (out / FILE).write_text("\n".join(texts), encoding="utf-8")
    print(out / FILE)
    return 0 if all_well else 1


def _say(line: str) -> None:
    print(line, flush=True)
