"""The study on a GPU in the order of what matters most, in parts, where the GPU is lent for minutes.

    python scripts/on_gpu.py OUT --minutes 9                      # every part, as far as the time reaches
    python scripts/on_gpu.py OUT --minutes 9 --part precisions    # one of them; --list names them

Each part is a command of the harness, and a log OUT/<part>.log is kept of it; runs leave their records in OUT/<part>,
from which `python -m harness report` makes a report anywhere. Ends with 1 when a part did not do as expected: the
part `planted` verifies TF32 against the bounds of fp32, and has to fail.
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
    """A command of the harness; its share of the time, whether it takes a budget and a folder, how it has to end, and
    what its log has to say: a fault that is planted has to be found, and not another.
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


def carried_out(part: Part, given: argparse.Namespace, left_s: float) -> bool:
    """Run a part for its share of the time left; whether it ended as it should."""
    limit_s = max(1.0, part.share * left_s)
    words = shlex.split(part.command.format(device=given.device, processes=given.processes))
    if part.measures:
        words += ["--budget", f"{limit_s:.0f}", "--out", str(given.out / part.name)]
    with (given.out / f"{part.name}.log").open("w") as log:
        began = time.monotonic()
        command = [sys.executable, "-m", "harness", *words]
        try:  # a block that is begun is finished, so a run may take longer than its budget
            status: int | str = subprocess.run(command, stdout=log, stderr=log, check=False, timeout=left_s).returncode
        except subprocess.TimeoutExpired:
            status = "time is up"
    print(f"{part.name}: {status} (expected {part.status}) after {time.monotonic() - began:.0f} s", flush=True)
    return status == part.status and part.says in log_of(part, given.out)


def log_of(part: Part, out: Path) -> str:
    """What a part has printed."""
    return (out / f"{part.name}.log").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--part", choices=[part.name for part in PARTS], action="append")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--device", default="gpu", help="cpu tries the script out where there is no GPU")
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list or given.out is None:
        print("\n".join(f"{part.name}: python -m harness {part.command}" for part in PARTS))
        return
    folders.make(given.out)
    end = time.monotonic() + 60 * given.minutes
    chosen = [part for part in PARTS if not given.part or part.name in given.part]
    good = [carried_out(part, given, end - time.monotonic()) for part in chosen if time.monotonic() < end]
    sys.exit(0 if all(good) and len(good) == len(chosen) else 1)


if __name__ == "__main__":
    streams.leave(main)
