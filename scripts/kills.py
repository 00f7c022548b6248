"""kill -9 at random instants: what is lost, what is doubled, and whether going on gives the undisturbed run.

One small run of the NumPy backend in tests/fourth is left alone. Another is killed again and again, the
parent or one of its workers, each time gone on with, and at the end let finish. The result goes to stdout as
JSON, and into the report's appendix when put into a run's folder:

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
from harness.records.store import FILE, latest, read

FOURTH = Path(__file__).resolve().parent.parent / "tests" / "fourth"
WORKLOAD = "B=3,T=5,I=2,H=16,O=4"
FLAGS = f"--framework numpy --threads 1 --workload {WORKLOAD} --rounds 4 --budget 0".split()


def start(out: Path, processes: int) -> subprocess.Popen[bytes]:
    """Begin the run, or go on with it."""
    resume = ["--resume"] if out.exists() else []
    given = [*FLAGS, "--processes", str(processes), "--out", str(out), *resume]
    command = [sys.executable, "-m", "harness", "run", *given]
    environment = {**os.environ, "PYTHONPATH": str(FOURTH)}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def lines(out: Path) -> list[str]:
    """The records' whole lines."""
    text = (out / FILE).read_text(encoding="utf-8") if (out / FILE).exists() else ""
    return text.splitlines(keepends=True)[: text.count("\n")]


def blocks(out: Path) -> list[tuple[str, str]]:
    """What identifies each block or check, and how it ended."""
    return sorted((record["key"].rpartition("-")[0], record["status"]) for record in latest(read(out)))


def disturbed(folder: Path, kills: int, seed: int, processes: int) -> dict[str, Any]:
    """Kill a run of so many processes `kills` times and let it finish; returns what became of its records."""
    choose = random.Random(seed)
    alone, killed = folder / "undisturbed", folder / "killed"
    began = time.monotonic()
    assert _finish(alone, processes), "the undisturbed run failed"
    lasts = min(time.monotonic() - began, 6.0)
    before: list[str] = []
    lost, counts = 0, {"parent": 0, "worker": 0}
    while sum(counts.values()) < kills:
        process = start(killed, processes)
        time.sleep(choose.uniform(0, lasts))
        whom = choose.choice(list(counts))
        counts[whom] += _kill(process, whom)
        now = lines(killed)
        lost += now[: len(before)] != before
        before = now
    finished = _finish(killed, processes)
    keys = [record["key"] for record in read(killed)]
    same = blocks(killed) == blocks(alone)
    doubled = len(keys) - len(set(keys))
    return {
        "kills": counts,
        "lost": lost,
        "doubled": doubled,
        "finished": finished,
        "same_blocks": same,
        "blocks": len(blocks(alone)),
        "left_running": _left_running(killed),
    }


def _kill(process: subprocess.Popen[bytes], whom: str) -> bool:
    """Kill the parent, or a worker and then wait for the parent; whether there was anything to kill."""
    try:
        workers = psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        workers = []
    if whom == "parent":
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


def _left_running(out: Path) -> int:
    """Processes of a run that has ended, which hold memory for nothing."""
    found = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return sum(str(out) in words for words in found)


def _finish(out: Path, processes: int) -> bool:
    """Go on until nothing is missing: blocks whose worker was killed are done again."""
    return any(start(out, processes).wait() == 0 for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, choices=range(1, 1001), metavar="N", default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    processes = max(4, 2 * given.kills)  # so many that most kills find something yet to be measured
    with tempfile.TemporaryDirectory(prefix="fusegap-") as folder:
        json.dump(disturbed(Path(folder), given.kills, given.seed, processes), sys.stdout, indent=1)
        print()


if __name__ == "__main__":
    streams.leave(main)
