"""Kill a run at random instants, count lost and duplicated records, and compare the resumed and an undisturbed run.

One small run of the NumPy backend in tests/fourth is left alone. Another is killed repeatedly with SIGKILL, either the
parent or one of its workers; it is resumed after each kill, and in the end allowed to finish. The result goes to
stdout as JSON, and into the report's appendix when put into a run's folder:

    python scripts/kills.py > reports/<folder>/kills.json      # 100 kills, a quarter of an hour
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from harness.cli import streams
from harness.records.schema import BlockRecord
from harness.records.store import FILE, latest_records, read_run

FOURTH = Path(__file__).resolve().parent.parent / "tests" / "fourth"
WORKLOAD = "B=3,T=5,I=2,H=16,O=4"
FLAGS = f"--framework numpy --threads 1 --workload {WORKLOAD} --rounds 4 --budget 0".split()


def start_run(out: Path, processes: int) -> subprocess.Popen[bytes]:
    """Start the run, or resume it where its folder exists."""
    resume = ["--resume"] if out.exists() else []
    options = [*FLAGS, "--processes", str(processes), "--out", str(out), *resume]
    command = [sys.executable, "-m", "harness", "run", *options]
    environment = {**os.environ, "PYTHONPATH": str(FOURTH)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def record_lines(out: Path) -> list[str]:
    """Return the complete lines of the records."""
    text = (out / FILE).read_text(encoding="utf-8") if (out / FILE).exists() else ""
    return text.splitlines(keepends=True)[: text.count("\n")]


def block_statuses(out: Path) -> list[tuple[str, str]]:
    """Return the key (without its last part) and the status of each block and check, sorted."""
    records = latest_records(read_run(out), BlockRecord)
    return sorted((record.key.rpartition("-")[0], record.status) for record in records)


def disturb_run(folder: Path, kills: int, seed: int, processes: int) -> dict[str, Any]:
    """Kill a run `kills` times, let it finish, and return counts of what became of its records.

    `processes` is the number of processes that the run asks for.
    """
    generator = random.Random(seed)
    undisturbed_folder, killed_folder = folder / "undisturbed", folder / "killed"
    start_s = time.monotonic()
    assert _finish_run(undisturbed_folder, processes), "the undisturbed run failed"
    duration_s = min(time.monotonic() - start_s, 6.0)
    lines_before: list[str] = []
    lost, counts = 0, {"parent": 0, "worker": 0}
    while sum(counts.values()) < kills:
        process = start_run(killed_folder, processes)
        time.sleep(generator.uniform(0, duration_s))
        target = generator.choice(list(counts))
        counts[target] += _kill(process, target)
        lines_now = record_lines(killed_folder)
        lost += lines_now[: len(lines_before)] != lines_before
        lines_before = lines_now
    finished = _finish_run(killed_folder, processes)
    keys = [record.key for record in read_run(killed_folder)]
    same_blocks = block_statuses(killed_folder) == block_statuses(undisturbed_folder)
    duplicates = len(keys) - len(set(keys))
    return {
        "kills": counts,
        "lost": lost,
        "doubled": duplicates,
        "finished": finished,
        "same_blocks": same_blocks,
        "blocks": len(block_statuses(undisturbed_folder)),
        "left_running": _count_survivors(killed_folder),
    }


def _kill(process: subprocess.Popen[bytes], target: str) -> bool:
    """Kill the parent (`target` is "parent"), or a worker and half a second later its parent.

    Returns whether there was anything to kill.
    """
    try:
        workers = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        workers = []
    if target == "parent":
        running = process.poll() is None
        process.send_signal(signal.SIGKILL)
    else:
        running = bool(workers)
        for worker in workers[:1]:
            worker.kill()
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(workers, timeout=10)
    return running


def _count_survivors(out: Path) -> int:
    """Count the processes that still run, and hold memory, although their run has ended."""
    command_lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return sum(str(out) in arguments for arguments in command_lines)


def _finish_run(out: Path, processes: int) -> bool:
    """Resume up to three times, until no block is missing; blocks whose worker was killed are measured again."""
    return any(start_run(out, processes).wait() == 0 for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, choices=range(1, 1001), metavar="N", default=100)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    processes = max(4, 2 * arguments.kills)  # enough that at most kills something is left to measure
    with tempfile.TemporaryDirectory(prefix="fusegap-") as folder:
        json.dump(disturb_run(Path(folder), arguments.kills, arguments.seed, processes), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    streams.leave(main)
