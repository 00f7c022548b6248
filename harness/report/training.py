"""The report of a training: a pure function of its records. The same records give the same bytes."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from harness.analysis import trajectories
from harness.analysis.stats import EQUIVALENT, FASTER, LONGER, SHORTER, SLOWER, UNKNOWN, Gap
from harness.analysis.trajectories import EVERY, LAST, NOTEBOOK, RANGE, TRAINING, WHOLE, Compared, Line, distance, final
from harness.errors import UsageError
from harness.machine import folders
from harness.records.store import Record, read
from harness.report import appendix, curves, rendered, written
from harness.report.markdown import Row, duration, ratio, seconds, table
from harness.report.style import draw_styled
from harness.study.parts import BATCHED, TWIN
from harness.verify.tolerance import CLOSE

FIGURE = "training"
Losses = np.ndarray | Sequence[float]
WORDS = {True: "yes", False: "**no**", None: "–"}


def write(folder: Path, out: Path | None = None) -> Path:
    """Write train.md and its figure from the records in `folder`, into `out` (by default `folder`).

    Returns the report's path. Raises UsageError on records that can not be read.
    """
    records = read(folder, TRAINING)
    if not records:
        raise UsageError(f"{folder / TRAINING.file} is empty")
    out = out or folder
    folders.make(out)
    lines, oracle = trajectories.lines(records), _oracle(records)
    with folders.naming(out):
        if oracle:
            draw_styled(partial(curves.draw, lines, oracle), out / "figures" / FIGURE)
        return written(rendered("train.md.j2", everything(records, lines, oracle)), out, "train.md")


def everything(records: list[Record], lines: list[Line], oracle: Record | None) -> Row:
    """The template's variables."""
    heading, found = records[0], trajectories.processes(records)
    compared = trajectories.compared(records)
    return {
        "heading": heading,
        "figure": FIGURE if oracle else "",
        "ended": ended(lines, oracle),
        "alike": alike(lines, oracle),
        "faster": faster(compared),
        "bad": trajectories.bad(records),
        "losses": losses(lines, oracle),
        "divergence": divergence(lines, oracle) if oracle else "",
        "times": times(compared, heading["steps"]),
        "absent": table(["framework", "execution", "why"], [list(one.values()) for one in heading["absent"]]),
        "missing": heading["missing"],
        "bound": oracle["bounds"][-1] if oracle else None,
        "close": CLOSE,
        "last": LAST,
        "low": RANGE[0],
        "high": RANGE[1],
        "processes": len(found),
        "began": min((p["began"] for p in found), default="never"),
        "load": max((p["load"] for p in found), default=0.0),
        "spent": duration(sum((p["start_s"] or 0) + (p["seconds"] or 0) for p in found)),
        "threads_used": threads_used(found),
        "environments": appendix.environments(_used(heading), ["cpu"]),
    }


def ended(lines: list[Line], oracle: Record | None) -> str:
    """Where the losses ended, in a sentence."""
    if not lines or oracle is None:
        return "Nothing was trained."
    low, high = (f"{limit(final(line.losses) for line in lines):.4f}" for limit in (min, max))
    true, steps = final(oracle["losses"]), len(oracle["losses"])
    start = f"The median loss of the last {LAST} steps is {low} to {high} (the oracle's in float64: {true:.4f})"
    if steps < WHOLE:
        return f"{start}, after {steps:,} of the chapter's {WHOLE:,} steps: that says nothing of where it ends."
    outside = sum(not trajectories.within(line.losses) for line in lines)
    range_ = f"{RANGE[0]:g} to {RANGE[1]:g}"
    where = f"**outside {range_} in {outside} of {len(lines)}**" if outside else f"inside {range_} everywhere"
    printed = f"{_printed('in_loop')} with the wrapper and {_printed(BATCHED)} with the reshape"
    return f"{start}, {where}; from iteration 1,000 on the notebook printed {printed}."


def _printed(form: str) -> str:
    late = NOTEBOOK[form][1000 // EVERY :]
    return f"{min(late):.4f} to {max(late):.4f}"


def alike(lines: list[Line], oracle: Record | None) -> str:
    """Whether trajectories agree to rounding at first, and what becomes of that."""
    if not lines or oracle is None:
        return ""
    share = max(_share(line, oracle) for line in lines)
    late = [_late(line.losses, oracle) for line in lines]
    start = f"In the first {CLOSE} steps" if share <= 1 else f"**Not all agree in the first {CLOSE} steps**, where"
    repeated = [line.alike for line in lines if line.alike is not None]
    return (
        f"{start} losses are off by at most {share:.0%} of what rounding explains. Each step starts where the last one "
        f"ended, so rounding grows: in the last {LAST} steps the median difference from the float64 oracle is "
        f"{min(late):.1%} to {max(late):.1%}, and {_late(oracle['float32'], oracle):.1%} for the oracle's own "
        f"arithmetic in float32. {sum(repeated)} of {len(repeated)} trajectories that were repeated, in another "
        f"process or by a twin beside it, were the same to the bit."
    )


def _share(line: Line, oracle: Record) -> float:
    """The largest share of its bound that one of the first losses is off by."""
    return float(max(a / b for a, b in zip(distance(line.losses, oracle["losses"]), oracle["bounds"], strict=False)))


def _late(found: Losses, oracle: Record) -> float:
    return final(distance(found, oracle["losses"]))


def faster(compared: list[Compared]) -> str:
    """What the times say, in a sentence."""
    if not compared:
        return "No times are to be had."
    directions = Counter(training.gaps["in_loop"].direction for training in compared)
    sizes = Counter(training.verdict for training in compared)
    ratios = [one.gaps["in_loop"].ratio for one in compared]
    return (
        f"Of {len(compared)} trainings, projecting inside the loop took longer in {directions[LONGER]}, shorter in "
        f"{directions[SHORTER]}, and neither was shown in {directions[UNKNOWN]} (95% intervals); it was slower by more "
        f"than the margin in {sizes[SLOWER]}, faster in {sizes[FASTER]}, equivalent in {sizes[EQUIVALENT]}. A step "
        f"took {min(ratios):.2f} to {max(ratios):.2f} times as long."
    )


def losses(lines: list[Line], oracle: Record | None) -> str:
    """Losses on the way and at the end, beside the notebook's."""
    if oracle is None:
        return ""
    at = [step for step in (0, 100, 200, 500, 1000, 1400) if step < len(oracle["losses"])]
    rows = [
        [f"notebook, {form}", *(f"{NOTEBOOK[form][step // EVERY]:#.4g}" for step in at), "–", "–"] for form in NOTEBOOK
    ]
    named = [("oracle, float64", oracle["losses"])] + [(f"{line.name}, {line.form}", line.losses) for line in lines]
    for name, found in named:
        inside = WORDS[trajectories.within(found)]
        rows.append([name, *(f"{found[step]:#.4g}" for step in at), f"{final(found):.4f}", inside])
    return table(["", *(f"iteration {step}" for step in at), f"median of the last {LAST}", "within"], rows)


def divergence(lines: list[Line], oracle: Record) -> str:
    """How far each trajectory is from the truth, on the way."""
    named = [("oracle's own float32", oracle["float32"], "–", "–")]
    named += [
        (f"{line.name}, {line.form}", line.losses, f"{_share(line, oracle):.0%}", WORDS[line.alike]) for line in lines
    ]
    rows = []
    for name, found, share, same in named:
        apart = distance(found, oracle["losses"])
        beyond = [_first_beyond(apart, limit) for limit in (1e-4, 1e-2)]
        rows.append(
            [name, f"{apart[0]:.1e}", f"{apart[:CLOSE].max():.1e}", share, *beyond, f"{final(apart):.1e}", same]
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


def _first_beyond(apart: Losses, limit: float) -> str:
    above = [at for at, one in enumerate(apart, 1) if one > limit]
    return f"{above[0]:,}" if above else "never"


def times(compared: list[Compared], steps: int) -> str:
    """Time of a step in both forms, with the ratio and its interval; and of a whole training."""
    rows = []
    for one in compared:
        step_s = one.step_s
        place = [
            f"{one.configuration['framework']} {one.configuration['execution']} {one.configuration['recurrence']}",
            one.configuration["threads"],
        ]
        whole = [seconds(steps * step_s[form]) for form in NOTEBOOK]
        firsts = [seconds(one.first_call_s[form]) for form in NOTEBOOK]
        gaps = [_gap(one.gaps["in_loop"], one.verdict, one.gaps["in_loop"].direction), _gap(one.gaps[TWIN])]
        rows.append(
            [*place, *(seconds(step_s[form]) for form in NOTEBOOK), *gaps, " / ".join(whole), " / ".join(firsts)]
        )
    columns = ["", "threads", "in_loop, a step", "batched, a step", "in_loop / batched", "batched / batched (A/A)"]
    return table([*columns, f"{steps:,} steps, in_loop / batched", "first step, in_loop / batched"], rows)


def _gap(gap: Gap, verdict: str = "", direction: str = UNKNOWN) -> str:
    row = {"ratio": gap.ratio, "ci_low": gap.low, "ci_high": gap.high, "verdict": verdict, "direction": direction}
    return ratio(row).strip()


def threads_used(found: list[Record]) -> str:
    used = [p["threads_used"] for p in found if p["threads_used"] is not None]
    return f"{min(used):.2f} to {max(used):.2f}" if used else "not known"


def _used(heading: Record) -> Row:
    """The environments of the frameworks that train, for the threads they train with."""
    threads = {configuration["framework"]: configuration["threads"] for configuration in heading["seats"]}
    every = heading["environments"].items()
    return {name: [one for one in some if one["threads"] == threads[name]] for name, some in every if name in threads}


def _oracle(records: list[Record]) -> Record | None:
    return next((record for record in records if record["kind"] == "oracle"), None)
