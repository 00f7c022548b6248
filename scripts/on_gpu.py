"""Run the study on a GPU in parts, the most important first, for a GPU that is available only for minutes.

    python scripts/on_gpu.py OUT --minutes 9                      # all parts, until time is up
    python scripts/on_gpu.py OUT --minutes 9 --part precisions    # one of them; --list names them
    python scripts/on_gpu.py OUT --minutes 5 --device cpu         # tries the script out where there is no GPU

Each part is a command of the harness, logged to OUT/<part>.log. Runs leave their records in OUT/<part>, from which
`python -m harness report` makes a report on any machine. A part that takes longer than its share of the minutes is
ended; what it has recorded is kept, and time that a part leaves goes to the next. Exits with 1 when a part did not do
as expected: the part `planted` verifies TF32 (on a CPU bf16) against the bounds of fp32, and every framework must fail.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from harness.cli import streams
from harness.machine import folders

QUESTION = "--projection none,in_loop,per_step,bmm,batched"
FORMS = "--projection hoisted,chunked_2,in_loop_loss,chunked_loss_2"
ODD = "--workload B=7,T=5,I=3,H=65,O=33,cell=lstm --workload B=5,T=4,I=31,H=64,O=1,cell=gru"
RUN = "run --no-report --device {device} --sweep none"
COARSE = {"gpu": "tf32", "cpu": "bf16"}  # a precision that breaks the bounds of fp32
FIRST = f"{RUN} --compile-first"
COUNTS = "reports/2026-11-26-gpu-predictions"  # of two versions of XLA, for an H100
GRACE_S = 15.0  # beyond its budget, for the block that a run has begun and for what it writes at its end


@dataclass(frozen=True)
class Part:
    """A command of the harness and its expected outcome.

    `share` is its share of the minutes; `measures` says whether it takes a budget and a folder. `statuses` are the exit
    statuses that it may have, and `says` the texts that its log must contain: the planted fault has to be found in each
    framework, and not another one. A run ends with 1 where a program is wrong, which its report names. `needs_gpu`: it
    is left out where the script is tried on a CPU.
    """

    name: str
    command: str
    share: float
    measures: bool = True
    statuses: tuple[int, ...] = (0,)
    says: tuple[str, ...] = ()
    needs_gpu: bool = False


PARTS = [
    Part(
        "verify",
        "verify --device {device} --precision fp32 --execution torch:eager,jax:xla "
        f"--recurrence unrolled,scan,modules,given {QUESTION} {FORMS} {ODD}",
        0.08,
        False,
    ),
    Part(
        "planted",
        "verify --device {device} --framework torch,jax --precision {coarse} --bound fp32 --workload vocab "
        "--execution eager,xla --recurrence unrolled,scan --projection batched --pass forward",
        0.04,
        False,
        (1,),
        ("wrong: torch", "wrong: jax"),
    ),
    Part("main", f"{RUN} --execution torch:eager,jax:xla scripts/on_gpu.toml", 0.3),
    Part("counts", f"score {COUNTS} {{out}}/main", 0.01, False, needs_gpu=True),
    Part(
        "unrolled",
        f"{FIRST} --framework torch --execution inductor,cudagraph --workload vocab,stream --recurrence unrolled "
        "--projection in_loop,batched --unroll-limit -1 --processes 2",
        0.25,
    ),
    Part(
        "chunks",
        f"{FIRST} --execution torch:eager,jax:xla --workload lm --recurrence unrolled,scan --pass train --peaks "
        "--projection none,in_loop,batched,in_loop_loss,chunked_loss --chunks 1,4,16,T --processes 3",
        0.14,
    ),
    Part(
        "precisions",
        f"{FIRST} --precision tf32,bf16 --execution torch:eager,jax:xla --workload book,vocab,stream "
        "--recurrence unrolled,scan --projection none,in_loop,batched --pass forward --unroll-limit 0 --processes 2",
        0.09,
    ),
    Part(
        "deepbench",
        f"{FIRST} --workload deepbench-rnn-1760-16 --workload deepbench-lstm-1024-64 --recurrence unrolled,scan "
        "--projection none,in_loop,batched --execution torch:eager,jax:xla --unroll-limit 0 --pass forward "
        "--processes 2",
        0.09,
    ),
]


def run_part(part: Part, arguments: argparse.Namespace, end_s: float) -> bool:
    """Run a part until `end_s` at most; return whether it ended as expected.

    `end_s` is a time of the monotonic clock, in seconds. A command that does not end by itself is interrupted, as by
    Ctrl-C, so that it ends its workers.
    """
    left_s = max(1.0, end_s - time.monotonic())
    words = {"device": arguments.device, "coarse": COARSE[arguments.device], "out": arguments.out}
    options = [word.format(**words) for word in shlex.split(part.command)]
    if part.measures:
        options += ["--budget", f"{max(1.0, left_s - GRACE_S):.0f}", "--out", str(arguments.out / part.name)]
    with (arguments.out / f"{part.name}.log").open("w") as log:
        start_s = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "harness", *options], stdout=log, stderr=log)
        status = _wait(process, left_s)
    is_expected = status in part.statuses and all(text in read_log(part, arguments.out) for text in part.says)
    word = "as expected" if is_expected else f"expected {' or '.join(map(str, part.statuses))}"
    print(f"{part.name}: {status} ({word}) after {time.monotonic() - start_s:.0f} s", flush=True)
    return is_expected


def _wait(process: subprocess.Popen[bytes], left_s: float) -> int | str:
    """Return the exit status of a process that has `left_s` seconds, or that its time was up."""
    try:
        return process.wait(left_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return "time is up"


def read_log(part: Part, out: Path) -> str:
    """Return a part's log."""
    return (out / f"{part.name}.log").read_text(encoding="utf-8", errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--part", choices=[part.name for part in PARTS], action="append")
    parser.add_argument(
        "--device", choices=[*COARSE], default="gpu", help="cpu tries the script out where there is no GPU"
    )
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list or arguments.out is None:
        print("\n".join(f"{part.name}: python -m harness {part.command}" for part in PARTS))
        return
    folders.make_folder(arguments.out)
    wanted = [part for part in PARTS if not arguments.part or part.name in arguments.part]
    parts = [part for part in wanted if arguments.device == "gpu" or not part.needs_gpu]
    start_s, total, share = time.monotonic(), sum(part.share for part in parts), 0.0
    outcomes = []
    for part in parts:
        share += part.share / total
        outcomes.append(run_part(part, arguments, start_s + 60 * arguments.minutes * share))
    sys.exit(0 if all(outcomes) else 1)


if __name__ == "__main__":
    streams.leave(main)
