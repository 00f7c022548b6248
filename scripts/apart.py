"""Does alternation bias the ratios? The same gap with each arm in processes of its own, against alternating arms.

Arms that alternate in one process share its caches, its allocator and its pools. Here each process times one of
three: the contender alone, batched alone (with its A/A control), or both alternating, in a random order. The ratio of
the arms apart is that of their medians in neighbouring processes. Intervals are Student's t over processes (95%). The
last interval is that of apart / alternating: if it contains 1, no bias is seen. The result goes to stdout as JSON, and
into the report's method when put into a run's folder as apart.json:

    python scripts/apart.py > runs/mine/apart.json             # about half an hour; leave the machine alone
    python scripts/apart.py --memory default --framework jax   # glibc's own defaults

The workloads are `book`, whose arrays are small, and `vocab`, where the allocator has work to do.
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
from harness.records.samples import call_times_ns
from harness.run import jobs, session
from harness.study import matrix, weights
from harness.study.matrix import BlockSpec, Job
from harness.study.parts import BATCHED
from harness.study.study import Study, load_study
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
class GapArms:
    """The two arms of a gap."""

    contender: Arm
    baseline: Arm

    def all(self) -> dict[str, tuple[Arm, ...]]:
        """Return the arms of each kind of process: the contender alone, the baseline alone, or both."""
        arms = (self.contender, self.baseline)
        return {"contender": arms[:1], "baseline": arms[1:], "both": arms}


def cell_study(cell: tuple[str, ...], setting: str) -> Study:
    """Return the study of one cell, with its contender and batched on one thread."""
    framework, execution, recurrence, contender, pass_, workload = cell
    options = {"frameworks": [framework], "executions": [execution], "recurrences": [recurrence], "passes": [pass_]}
    options |= {"projections": [contender, BATCHED], "workloads": [workload]}
    return load_study(None, None, {**options, "threads": [1], "memory": setting})


def measure_gap(cell: tuple[str, ...], processes: int, setting: str) -> dict[str, Any]:
    """Measure one gap both ways: arms alternating in one process, and each arm in processes of its own."""
    study = cell_study(cell, setting)
    frameworks = matrix.select_frameworks(study, session.probe(study, [1]))
    (job,) = matrix.replicate_jobs(matrix.make_plan(study, frameworks, [1]), study, 0)
    kinds = GapArms(Arm(cell[2], cell[3]), Arm(cell[2], BATCHED)).all()
    generator = random.Random(study.seed)
    replicates: list[dict[str, Times]] = []
    with folders.private() as folder:
        context = make_context(study, frameworks, folder)
        time_arms(context, job, kinds["both"], 0)  # compiles
        for replicate in range(1, processes + 1):
            order = generator.sample(sorted(kinds), len(kinds))
            replicates.append({kind: time_arms(context, job, kinds[kind], replicate) for kind in order})
            print(f"{time.strftime('%H:%M:%S')} {' '.join(cell)}: {replicate} of {processes}", file=sys.stderr)
    return {"cell": cell, "memory": setting, "processes": processes} | gap_intervals(
        replicates, *(arm.name for arm in kinds["both"])
    )


def make_context(study: Study, frameworks: list[matrix.Framework], folder: Path) -> jobs.RunContext:
    """Store the study's weights in a folder and return the run context."""
    weights.write_files(folder / "weights", session.prepare_files(study))
    frameworks_by_name = {framework.name: framework for framework in frameworks}
    basis = {"code": environment.code_version()}
    return jobs.RunContext(
        study, frameworks_by_name, folder / "weights", folder / "cache", OutputCheck(folder / "weights"), basis
    )


def time_arms(context: jobs.RunContext, job: Job, arms: tuple[Arm, ...], replicate: int) -> Times:
    """Return the seconds per call of each arm, a value for each round, from a process that runs only these arms."""
    (full_block,) = job.blocks
    block = BlockSpec(full_block.workload, full_block.pass_, arms, full_block.steps, True)
    (record,) = jobs.work(context, Job(job.configuration, replicate, (block,)), lambda: ENOUGH_S, lambda text: None)
    if record.status != "ok":
        raise SystemExit(f"{job.configuration.framework}: {record.reason}")
    return {name: list(times_ns / 1e9) for name, times_ns in call_times_ns(record, list(record.arms)).items()}


def gap_intervals(replicates: list[dict[str, Times]], contender: str, baseline: str) -> dict[str, list[float]]:
    """Return ratio, low and high for `alternating`, `apart`, and the quotient `apart / alternating`."""
    median = statistics.median
    alternating = stats.gap_sample(
        [(times["both"][contender], times["both"][baseline]) for times in replicates]
    ).log_ratios
    medians = [([median(times["contender"][contender])], [median(times["baseline"][baseline])]) for times in replicates]
    apart = stats.gap_sample(medians).log_ratios
    log_quotients = tuple(a - t for a, t in zip(apart, alternating, strict=True))
    gaps = {name: stats.estimate_gap(stats.Sample(logs, 0.0), 0.02) for name, logs in
            (("alternating", alternating), ("apart", apart), ("apart / alternating", log_quotients))}  # fmt: skip
    return {name: [gap.ratio, gap.low, gap.high] for name, gap in gaps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=range(2, 101), metavar="N", default=10, help="of each kind")
    parser.add_argument("--memory", choices=allocator.SETTINGS, default="held")
    parser.add_argument("--framework", choices=FRAMEWORKS, action="append")
    arguments = parser.parse_args()
    allocator.variables(arguments.memory)  # raises an error if the allocator is not installed
    cells = [cell for cell in CELLS if cell[0] in (arguments.framework or FRAMEWORKS)]
    json.dump([measure_gap(cell, arguments.processes, arguments.memory) for cell in cells], sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    streams.leave(main)
