"""What `run --dry-run` prints: what a study would measure here, and about how long it takes."""

import json
from collections import Counter
from typing import Any

from rich.table import Table

from harness.errors import UsageError
from harness.machine import environment
from harness.report.markdown import duration
from harness.run import session
from harness.run.jobs import rounds_seconds
from harness.run.progress import console
from harness.study import matrix
from harness.study.study import Study


def say(study: Study, as_json: bool = False) -> None:
    """Print the plan of a study. Raises UsageError where `run` would, before anything is measured."""
    plan = facts(study)
    if as_json:
        print(json.dumps(plan, indent=1))
        return
    table = Table("configuration", "programs", "blocks")
    for row in plan["configurations"]:
        table.add_row(row["configuration"], str(row["programs"]), str(row["blocks"]))
    out = console()
    out.print(table, markup=False)
    for reason, count in plan["absent"].items():
        out.print(f"not measured: {count} cells: {reason}", markup=False, highlight=False)
    out.print(plan["sentence"], markup=False, highlight=False)


def facts(study: Study) -> dict[str, Any]:
    """Return the plan of a study as a program would read it. Times are in seconds."""
    threads = matrix.thread_counts(study, environment.cores())
    frameworks = matrix.select_frameworks(study, session.probe(study, threads))
    plan = matrix.make_plan(study, frameworks, threads)
    if not plan.cells:
        raise UsageError(f"nothing of this study can be measured here: {plan.absent[0].reason}")
    jobs = matrix.replicate_jobs(plan, study, 0)
    processes = study.own_processes if study.processes else study.pilot
    rounds_s = processes * sum(rounds_seconds(study, block) for job in jobs for block in job.blocks)
    cells = Counter(cell.configuration for cell in plan.cells)
    return {
        "configurations": [
            {
                "configuration": str(job.configuration),
                "programs": cells[job.configuration],
                "blocks": len(job.blocks),
            }
            for job in sorted(jobs, key=lambda job: job.configuration)
        ],
        "absent": dict(Counter(absent.reason for absent in plan.absent)),
        "processes": processes,
        "rounds_s": rounds_s,
        "budget_s": study.budget_s,
        "sentence": _sentence(study, len(plan.cells), processes, rounds_s),
    }


def _sentence(study: Study, cells: int, processes: int, rounds_s: float) -> str:
    """Say how much is measured, and what is known of how long that takes."""
    many = (
        ("one process" if processes == 1 else f"{processes} processes")
        if study.processes
        else f"a pilot of {processes} processes, and more as it asks"
    )
    shard = f", shard {study.shard}" if study.shard else ""
    start = f"{cells} programs in {many}{shard}: rounds of about {duration(rounds_s)}"
    rest = "starting, compiling, verifying and counting come on top"
    if study.budget_s is None:
        return f"{start}; {rest}, and there is no budget that ends it"
    return f"{start}; {rest}, and no block is begun after the budget of {duration(study.budget_s)}"
