"""Run the study on a GPU in parts, the most important first, for a GPU that is available only for minutes.

    python scripts/on_gpu.py OUT --minutes 9                      # all parts, until time is up
    python scripts/on_gpu.py OUT --minutes 9 --part precisions    # one of them; --list names them

Each part is a command of the harness, logged to OUT/<part>.log. Runs leave their records in OUT/<part>, from which
`python -m harness report` makes a report on any machine. Exits with 1 when a part did not do as expected: the part
`planted` verifies TF32 against the bounds of fp32, and must fail.
"""

import argparse
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.cli import streams
from harness.machine import folders

ODD = "--workload B=7,T=20,I=3,H=65,O=33,cell=lstm --workload B=5,T=12,I=31,H=64,O=1,cell=gru"
RUN = "run --no-report --device {device} --processes {processes}"


@dataclass(frozen=True)
class Part:
    """A command of the harness and its expected outcome.

    `share` is its share of the time left; `measures` says whether it takes a budget and a folder. `status` is the exit
    status that it must have, and `says` a text that its log must contain: the planted fault has to be found, and not
    another one.
    """

    name: str
    command: str
    share: float
    measures: bool = True
    status: int = 0
    says: str = ""


PARTS = [
    Part("verify", f"verify --device {{device}} --precision fp32 --workload book {ODD}", 0.2, False),
    Part(
        "planted",
        "verify --device {device} --precision tf32 --bound fp32 --workload vocab --execution eager,xla "
        "--recurrence unrolled --projection batched --pass forward",
        0.05,
        False,
        1,
        "wrong: ",
    ),
    Part("main", RUN, 0.6),
    Part("precisions", f"{RUN} --precision tf32,bf16,as_shipped --workload vocab --workload stream", 0.5),
    Part(
        "deepbench",
        f"{RUN} --workload deepbench-rnn-1760-16 --workload deepbench-rnn-1760-128 --workload deepbench-lstm-1024-64 "
        "--pass forward",
        1.0,
    ),
]


def run_part(part: Part, arguments: argparse.Namespace, left_s: float) -> bool:
    """Run a part for its share of the time left; return whether it ended as expected."""
    limit_s = max(1.0, part.share * left_s)
    options = shlex.split(part.command.format(device=arguments.device, processes=arguments.processes))
    if part.measures:
        options += ["--budget", f"{limit_s:.0f}", "--out", str(arguments.out / part.name)]
    with (arguments.out / f"{part.name}.log").open("w") as log:
        start_s = time.monotonic()
        command = [sys.executable, "-m", "harness", *options]
        try:  # a block that has started is finished, so a run may exceed its budget
            status: int | str = subprocess.run(command, stdout=log, stderr=log, check=False, timeout=left_s).returncode
        except subprocess.TimeoutExpired:
            status = "time is up"
    print(f"{part.name}: {status} (expected {part.status}) after {time.monotonic() - start_s:.0f} s", flush=True)
    return status == part.status and part.says in read_log(part, arguments.out)


def read_log(part: Part, out: Path) -> str:
    """Return a part's log."""
    return (out / f"{part.name}.log").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--part", choices=[part.name for part in PARTS], action="append")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--device", default="gpu", help="cpu tries the script out where there is no GPU")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.out is None:
        print("\n".join(f"{part.name}: python -m harness {part.command}" for part in PARTS))
        return
    folders.make_folder(arguments.out)
    end_s = time.monotonic() + 60 * arguments.minutes
    parts = [part for part in PARTS if not arguments.part or part.name in arguments.part]
    outcomes = [run_part(part, arguments, end_s - time.monotonic()) for part in parts if time.monotonic() < end_s]
    sys.exit(0 if all(outcomes) and len(outcomes) == len(parts) else 1)


if __name__ == "__main__":
    streams.leave(main)
