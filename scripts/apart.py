"""Does alternation bias the ratios? The same gap with each arm in processes of its own, against alternating arms.

Arms that alternate in one process share its caches, its allocator and its pools. Here every process times either
the contender alone, or batched alone (and its twin), or both alternating, in a random order of the three; the ratio
of the arms apart is that of their medians in neighbouring processes. Intervals are Student's t over processes (95%),
and the last one is of the ratio of both ratios: 1 inside it, no bias is seen. The result goes to stdout as JSON, and
into the report's method when put into a run's folder as apart.json:

    python scripts/apart.py > runs/mine/apart.json             # about half an hour; leave the machine alone
    python scripts/apart.py --memory default --framework jax   # as it is shipped: glibc as it comes, an arm a process

The workloads are `book`, whose arrays are small, and `vocab`, where the allocator has something to do.
"""

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.analysis import stats
from harness.cli import streams
from harness.machine import allocator, environment, folders
from harness.run import jobs, session
from harness.study import matrix, weights
from harness.study.matrix import BlockSpec, Job
from harness.study.parts import BATCHED
from harness.study.study import Study, load
from harness.verify.output_check import OutputCheck
from impls.interface import Arm

CELLS = [  # framework, execution, recurrence, contender, pass, workload; on 1 thread
    ("torch", "eager", "unrolled", "in_loop", "forward", "book"),
    ("torch", "eager", "unrolled", "in_loop", "train", "vocab"),
    ("tf", "graph", "scan", "per_step", "forward", "book"),
    ("tf", "graph", "scan", "in_loop", "train", "vocab"),
    ("tf", "xla", "scan", "in_loop", "train", "vocab"),
    ("jax", "xla", "scan", "in_loop", "train", "book"),
    ("jax", "xla", "scan", "in_loop", "train", "vocab"),
    ("jax", "eager", "unrolled", "in_loop", "train", "vocab"),
]
FRAMEWORKS = tuple(dict.fromkeys(cell[0] for cell in CELLS))
ENOUGH_S = 3600.0
Times = dict[str, list[float]]


@dataclass(frozen=True)
class Kinds:
    """The arms that are measured together in a process."""

    contender: Arm
    baseline: Arm

    def all(self) -> dict[str, tuple[Arm, ...]]:
        both = (self.contender, self.baseline)
        return {"contender": both[:1], "baseline": both[1:], "both": both}


def study_of(cell: tuple[str, ...], setting: str) -> Study:
    framework, execution, recurrence, contender, pass_, workload = cell
    given = {"frameworks": [framework], "executions": [execution], "recurrences": [recurrence], "passes": [pass_]}
    given |= {"projections": [contender, BATCHED], "workloads": [workload]}
    return load(None, None, {**given, "threads": [1], "memory": setting})


def compared(cell: tuple[str, ...], processes: int, setting: str) -> dict[str, Any]:
    """One gap measured both ways."""
    study = study_of(cell, setting)
    frameworks = matrix.selected(study, session.probe(study, [1]))
    (job,) = matrix.jobs(matrix.make(study, frameworks, [1]), study, 0)
    kinds = Kinds(Arm(cell[2], cell[3]), Arm(cell[2], BATCHED)).all()
    choose = random.Random(study.seed)
    found: list[dict[str, Times]] = []
    with folders.private() as folder:
        bench = opened(study, frameworks, folder)
        measured(bench, job, kinds["both"], 0)  # compiles
        for replicate in range(1, processes + 1):
            order = choose.sample(sorted(kinds), len(kinds))
            found.append({kind: measured(bench, job, kinds[kind], replicate) for kind in order})
            print(f"{time.strftime('%H:%M:%S')} {' '.join(cell)}: {replicate} of {processes}", file=sys.stderr)
    return {"cell": cell, "memory": setting, "processes": processes} | judged(
        found, *(arm.name for arm in kinds["both"])
    )


def opened(study: Study, frameworks: list[matrix.Framework], folder: Path) -> jobs.RunContext:
    weights.store(folder / "weights", session.prepare(study))
    known = {framework.name: framework for framework in frameworks}
    basis = {"code": environment.code()}
    return jobs.RunContext(study, known, folder / "weights", folder / "cache", OutputCheck(folder / "weights"), basis)


def measured(bench: jobs.RunContext, job: Job, arms: tuple[Arm, ...], replicate: int) -> Times:
    """Seconds per call of each arm, one value a round, in a process of these arms alone."""
    (whole,) = job.blocks
    todo = BlockSpec(whole.workload, whole.pass_, arms, whole.steps, True)
    (record,) = jobs.work(bench, Job(job.configuration, replicate, (todo,)), lambda: ENOUGH_S, lambda said: None)
    if record["status"] != "ok":
        raise SystemExit(f"{job.configuration.framework}: {record['reason']}")
    return {name: [ns / arm["calls"] / 1e9 for ns in arm["samples_ns"]] for name, arm in record["arms"].items()}


def judged(found: list[dict[str, Times]], contender: str, baseline: str) -> dict[str, list[float]]:
    """Ratios with intervals: alternating, apart, and of the two."""
    median = statistics.median
    together = stats.sample([(both["both"][contender], both["both"][baseline]) for both in found]).log_ratios
    alone = [([median(one["contender"][contender])], [median(one["baseline"][baseline])]) for one in found]
    apart = stats.sample(alone).log_ratios
    both = tuple(a - t for a, t in zip(apart, together, strict=True))
    gaps = {name: stats.gap(stats.Sample(logs, 0.0), 0.02) for name, logs in
            (("alternating", together), ("apart", apart), ("apart / alternating", both))}  # fmt: skip
    return {name: [gap.ratio, gap.low, gap.high] for name, gap in gaps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=range(2, 101), metavar="N", default=10, help="of each kind")
    parser.add_argument("--memory", choices=allocator.SETTINGS, default="held")
    parser.add_argument("--framework", choices=FRAMEWORKS, action="append")
    given = parser.parse_args()
    allocator.variables(given.memory)  # refuses what is not installed
    cells = [cell for cell in CELLS if cell[0] in (given.framework or FRAMEWORKS)]
    json.dump([compared(cell, given.processes, given.memory) for cell in cells], sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    streams.leave(main)
