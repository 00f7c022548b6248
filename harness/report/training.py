"""The report of a training, a pure function of its records: the same records give the same bytes."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from harness.analysis import trajectories
from harness.analysis.stats import EQUIVALENT, FASTER, LONGER, SHORTER, SLOWER, UNKNOWN, Gap
from harness.analysis.trajectories import (
    EVERY,
    LAST,
    NOTEBOOK,
    RANGE,
    WHOLE,
    FormTrajectory,
    TrainingTimes,
    median_of_last_steps,
    relative_differences,
)
from harness.errors import UsageError
from harness.machine import folders
from harness.records.store import read_records
from harness.records.training import (
    TRAINING,
    OracleLosses,
    OracleRecord,
    ProcessRecord,
    TrainingHeaderRecord,
    TrainingRecord,
)
from harness.report import appendix, curves, write_markdown
from harness.report.markdown import Row, duration, ratio, seconds, table
from harness.report.pages import render
from harness.report.style import draw_styled
from harness.study.matrix import WorkerEnvironment
from harness.study.parts import BATCHED, TWIN
from harness.verify.tolerance import CLOSE

FIGURE = "training"
Losses = np.ndarray | Sequence[float]
WORDS = {True: "yes", False: "**no**", None: "–"}


def write(folder: Path, out: Path | None = None) -> Path:
    """Write train.md and its figure from the records in `folder`, into `out` (by default `folder`).

    Returns the report's path. Raises UsageError on records that cannot be read.
    """
    records = read_records(folder, TRAINING)
    if not records:
        raise UsageError(f"{folder / TRAINING.file} is empty")
    out = out or folder
    folders.make_folder(out)
    lines, oracle = trajectories.form_trajectories(records), _oracle_record(records)
    with folders.add_path_to_errors(out):
        if oracle:
            draw_styled(partial(curves.draw, lines, oracle), out / "figures" / FIGURE)
        return write_markdown(render("train.md.j2", context(records, lines, oracle)), out, "train.md")


def context(records: list[TrainingRecord], lines: list[FormTrajectory], oracle: OracleRecord | None) -> Row:
    """Return the template's variables."""
    header, processes = trajectories.header_of(records), trajectories.latest_processes(records)
    comparisons = trajectories.training_times(records)
    return {
        "header": header,
        "figure": FIGURE if oracle else "",
        "ended": final_loss_summary(lines, oracle),
        "alike": agreement_summary(lines, oracle),
        "faster": speed_summary(comparisons),
        "bad": trajectories.problems(records),
        "losses": loss_table(lines, oracle),
        "divergence": divergence_table(lines, oracle) if oracle else "",
        "times": time_table(comparisons, header.steps),
        "absent": table(
            ["framework", "execution", "why"],
            [[entry.framework, entry.execution, entry.reason] for entry in header.absent],
        ),
        "missing": header.missing,
        "bound": oracle.bounds[-1] if oracle else None,
        "close": CLOSE,
        "last": LAST,
        "low": RANGE[0],
        "high": RANGE[1],
        "processes": len(processes),
        "began": min((p.began for p in processes), default="never"),
        "load": max((p.load for p in processes), default=0.0),
        "spent": duration(sum((p.start_s or 0) + (p.seconds or 0) for p in processes)),
        "threads_used": threads_used(processes),
        "environments": appendix.environments(_training_environments(header), ["cpu"]),
    }


def final_loss_summary(lines: list[FormTrajectory], oracle: OracleLosses | None) -> str:
    """Summarise the final losses beside the oracle's and the notebook's."""
    if not lines or oracle is None:
        return "Nothing was trained."
    low, high = (f"{limit(median_of_last_steps(line.losses) for line in lines):.4f}" for limit in (min, max))
    oracle_loss, steps = median_of_last_steps(oracle.losses), len(oracle.losses)
    start = f"The median loss of the last {LAST} steps is {low} to {high} (the oracle's in float64: {oracle_loss:.4f})"
    if steps < WHOLE:
        return f"{start}, after {steps:,} of the chapter's {WHOLE:,} steps: that says nothing of where it ends."
    outside = sum(not trajectories.ends_in_range(line.losses) for line in lines)
    range_ = f"{RANGE[0]:g} to {RANGE[1]:g}"
    position = f"**outside {range_} in {outside} of {len(lines)}**" if outside else f"inside {range_} everywhere"
    notebook = f"{_notebook_range('in_loop')} with the wrapper and {_notebook_range(BATCHED)} with the reshape"
    return f"{start}, {position}; from iteration 1,000 on the notebook printed {notebook}."


def _notebook_range(form: str) -> str:
    """Format the range of the losses that the notebook printed from iteration 1,000 on."""
    printed_losses = NOTEBOOK[form][1000 // EVERY :]
    return f"{min(printed_losses):.4f} to {max(printed_losses):.4f}"


def agreement_summary(lines: list[FormTrajectory], oracle: OracleLosses | None) -> str:
    """Summarise whether trajectories first agree to within rounding, and how far they have diverged at the end."""
    if not lines or oracle is None:
        return ""
    share = max(_bound_share(line, oracle) for line in lines)
    differences = [_final_difference(line.losses, oracle) for line in lines]
    start = f"In the first {CLOSE} steps" if share <= 1 else f"**Not all agree in the first {CLOSE} steps**, where"
    repetitions = [line.alike for line in lines if line.alike is not None]
    return (
        f"{start} losses are off by at most {share:.0%} of what rounding explains. Each step starts where the last one "
        f"ended, so rounding grows: in the last {LAST} steps the median difference from the float64 oracle is "
        f"{min(differences):.1%} to {max(differences):.1%}, and {_final_difference(oracle.float32, oracle):.1%} for "
        f"the oracle's own arithmetic in float32. {sum(repetitions)} of {len(repetitions)} trajectories that were "
        f"repeated, in another process or by a twin beside it, were the same to the bit."
    )


def _bound_share(line: FormTrajectory, oracle: OracleLosses) -> float:
    """Return the largest ratio of a loss's error to its bound, over the first steps."""
    return float(
        max(a / b for a, b in zip(relative_differences(line.losses, oracle.losses), oracle.bounds, strict=False))
    )


def _final_difference(trajectory: Losses, oracle: OracleLosses) -> float:
    """Return the median difference from the oracle over the last steps."""
    return median_of_last_steps(relative_differences(trajectory, oracle.losses))


def speed_summary(comparisons: list[TrainingTimes]) -> str:
    """Summarise the directions, verdicts and ratios of the step times."""
    if not comparisons:
        return "No times are available."
    directions = Counter(comparison.gaps["in_loop"].direction for comparison in comparisons)
    sizes = Counter(comparison.verdict for comparison in comparisons)
    ratios = [comparison.gaps["in_loop"].ratio for comparison in comparisons]
    return (
        f"Of {len(comparisons)} trainings, projecting inside the loop took longer in {directions[LONGER]}, shorter in "
        f"{directions[SHORTER]}, and neither was shown in {directions[UNKNOWN]} (95% intervals); it was slower by more "
        f"than the margin in {sizes[SLOWER]}, faster in {sizes[FASTER]}, equivalent in {sizes[EQUIVALENT]}. A step "
        f"took {min(ratios):.2f} to {max(ratios):.2f} times as long."
    )


def loss_table(lines: list[FormTrajectory], oracle: OracleLosses | None) -> str:
    """Tabulate losses during and at the end of the training, beside the notebook's."""
    if oracle is None:
        return ""
    steps = [step for step in (0, 100, 200, 500, 1000, 1400) if step < len(oracle.losses)]
    rows = [
        [f"notebook, {form}", *(f"{NOTEBOOK[form][step // EVERY]:#.4g}" for step in steps), "–", "–"]
        for form in NOTEBOOK
    ]
    series = [("oracle, float64", oracle.losses)] + [(f"{line.name}, {line.form}", line.losses) for line in lines]
    for name, values in series:
        verdict = WORDS[trajectories.ends_in_range(values)]
        rows.append([name, *(f"{values[step]:#.4g}" for step in steps), f"{median_of_last_steps(values):.4f}", verdict])
    return table(["", *(f"iteration {step}" for step in steps), f"median of the last {LAST}", "within"], rows)


def divergence_table(lines: list[FormTrajectory], oracle: OracleLosses) -> str:
    """Tabulate how far each trajectory is from the float64 oracle's during the training."""
    series: list[tuple[str, Losses, str, str]] = [("oracle's own float32", oracle.float32, "–", "–")]
    series += [
        (f"{line.name}, {line.form}", line.losses, f"{_bound_share(line, oracle):.0%}", WORDS[line.alike])
        for line in lines
    ]
    rows = []
    for name, values, share, same_bits in series:
        differences = relative_differences(values, oracle.losses)
        crossings = [_first_step_beyond(differences, limit) for limit in (1e-4, 1e-2)]
        rows.append(
            [
                name,
                f"{differences[0]:.1e}",
                f"{differences[:CLOSE].max():.1e}",
                share,
                *crossings,
                f"{median_of_last_steps(differences):.1e}",
                same_bits,
            ]
        )
    columns = [
        "",
        "step 1",
        f"largest of steps 1 to {CLOSE}",
        "of the bound",
        "above 1e-4 from step",
        "above 1% from step",
    ]
    return table([*columns, f"median of the last {LAST}", "same bits in every process"], rows)


def _first_step_beyond(differences: Losses, limit: float) -> str:
    """Format the first step, counted from 1, whose difference is above the limit."""
    steps = [step for step, difference in enumerate(differences, 1) if difference > limit]
    return f"{steps[0]:,}" if steps else "never"


def time_table(comparisons: list[TrainingTimes], steps: int) -> str:
    """Tabulate the times of a step in both forms, their ratio with its interval, and the times of a whole training."""
    rows = []
    for comparison in comparisons:
        step_s = comparison.step_s
        labels = [
            comparison.configuration.name,
            comparison.configuration.configuration.threads,
        ]
        totals = [seconds(steps * step_s[form]) for form in NOTEBOOK]
        first_steps = [seconds(comparison.first_call_s[form]) for form in NOTEBOOK]
        gaps = [
            _format_gap(comparison.gaps["in_loop"], comparison.verdict, comparison.gaps["in_loop"].direction),
            _format_gap(comparison.gaps[TWIN]),
        ]
        rows.append(
            [*labels, *(seconds(step_s[form]) for form in NOTEBOOK), *gaps, " / ".join(totals), " / ".join(first_steps)]
        )
    columns = ["", "threads", "in_loop, a step", "batched, a step", "in_loop / batched", "batched / batched (A/A)"]
    return table([*columns, f"{steps:,} steps, in_loop / batched", "first step, in_loop / batched"], rows)


def _format_gap(gap: Gap, verdict: str = "", direction: str = UNKNOWN) -> str:
    row = {"ratio": gap.ratio, "ci_low": gap.low, "ci_high": gap.high, "verdict": verdict, "direction": direction}
    return ratio(row).strip()


def threads_used(processes: list[ProcessRecord]) -> str:
    """Format the range of the threads that the processes used."""
    counts = [p.threads_used for p in processes if p.threads_used is not None]
    return f"{min(counts):.2f} to {max(counts):.2f}" if counts else "not known"


def _training_environments(header: TrainingHeaderRecord) -> dict[str, list[WorkerEnvironment]]:
    """Return the environments of the frameworks that train, with the thread counts that they train with."""
    threads = {entry.configuration.framework: entry.configuration.threads for entry in header.configurations}
    return {
        name: [entry for entry in entries if entry.threads == threads[name]]
        for name, entries in header.environments.items()
        if name in threads
    }


def _oracle_record(records: list[TrainingRecord]) -> OracleRecord | None:
    return next((record for record in records if isinstance(record, OracleRecord)), None)
