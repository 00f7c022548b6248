"""Framework against framework: in each place the fastest program of each, and the one that its users write.

A program's time is the geometric mean over processes of the median call. A ratio is that time over the shortest one of
the same kind in any framework. The processes of two frameworks are independent, so its interval is Welch's, and
frameworks take turns, so that what the machine does meanwhile meets all of them. A program is named the fastest of its
framework by these same times: among programs that are equally fast chance names one, and its time is a little too
short. So it is named among those of at least FEWEST processes, where there are such.

Left out are programs that are no whole answer: precomputed hidden states, no projection, controls and prototypes.
Pure: the same tables give the same comparison.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.changes import Loops, users_loop
from harness.analysis.gaps import PrototypeReasons, is_prototype
from harness.study.parts import BATCHED, TWIN

USUAL_EXECUTION = {"torch": "eager", "tf": "graph", "jax": "xla"}  # what a framework's users run in
PLACE = ["device", "threads", "precision", "workload", "pass"]
PROGRAM = ["framework", "execution", "recurrence", "projection"]
FASTEST, USUAL = "fastest", "usual"
LEAST_HALF = 1e-12  # half-width of the interval of times that agree to the last digit
FEWEST = 3  # processes of a program that is named the fastest, where its framework has such
FRAMEWORKS = [*PLACE, "kind", *PROGRAM, "time_s", "ratio", "ci_low", "ci_high", "processes", "is_fastest"]


def frameworks(
    times: pd.DataFrame, loops: Loops, prototypes: PrototypeReasons, nodes: Mapping[int, str] | None = None
) -> pd.DataFrame:
    """Return two rows for each framework and place: its fastest program, and the one that its users write.

    `is_fastest`: whether the program is shown to be the fastest of its kind, against that of every other framework at
    95%. `nodes`: process -> the node that it ran on, where there are several. Returns no rows with fewer than two
    frameworks.
    """
    whole = times.median_s.notna() & (times.recurrence != "given") & ~times.projection.isin(["none", TWIN])
    frame = times[whole]
    programs = _program_times(frame[~is_prototype(frame, prototypes)], nodes)
    if programs.framework.nunique() < 2:
        return pd.DataFrame(columns=FRAMEWORKS)
    rows = []
    for _, place in programs.groupby(PLACE, sort=True):
        best_known = place.groupby("framework").processes.transform("max").clip(upper=FEWEST)
        fastest = _fastest_of_each(place[place.processes >= best_known])
        usual = _fastest_of_each(place[[_is_usual(row, loops) for row in place.to_dict("records")]])
        kinds = ((FASTEST, fastest), (USUAL, usual))
        rows += [_compared(part.assign(kind=kind)) for kind, part in kinds if len(part)]
    return pd.concat(rows, ignore_index=True)[FRAMEWORKS]


def _fastest_of_each(programs: pd.DataFrame) -> pd.DataFrame:
    """Return the fastest program of each framework."""
    return programs.loc[programs.groupby("framework").time_s.idxmin()]


def _program_times(times: pd.DataFrame, nodes: Mapping[int, str] | None) -> pd.DataFrame:
    """Return a row for each program and place: its time, the half-width of the interval of its log, its processes."""
    rows = []
    for keys, part in times.groupby([*PLACE, *PROGRAM], sort=True):
        names = [nodes[int(process)] for process in part.process] if nodes else []
        units = stats.node_means(np.log(part.median_s).tolist(), names)
        sample = stats.Sample(tuple(units), 0.0)
        time = stats.estimate_gap(sample, 0.0)
        half = max(float(np.log(time.high / time.low) / 2), LEAST_HALF) if time.processes > 1 else np.nan
        rows.append((*keys, time.ratio, half, time.processes))
    return pd.DataFrame(rows, columns=[*PLACE, *PROGRAM, "time_s", "half", "processes"])


def _is_usual(row: dict[Any, Any], loops: Loops) -> bool:
    """Return whether a program is the loop that the framework's users write, projected once, as they run it."""
    framework, execution = row["framework"], row["execution"]
    is_run_in = execution == USUAL_EXECUTION.get(framework, execution)
    return is_run_in and row["projection"] == BATCHED and row["recurrence"] == users_loop(framework, execution, loops)


def _compared(programs: pd.DataFrame) -> pd.DataFrame:
    """Return the programs with their ratios to the fastest, and whether that is shown to be the fastest.

    There is one program for each framework.
    """
    first = programs.loc[programs.time_s.idxmin()]
    ratios = [_ratio(row, first) for row in programs.to_dict("records")]
    frame = programs.assign(**dict(zip(("ratio", "ci_low", "ci_high"), np.transpose(ratios), strict=True)))
    is_first = frame.framework == first.framework
    shown = len(frame) > 1 and bool((frame.ci_low[~is_first] > 1).all())
    return frame.assign(is_fastest=is_first & shown)


def _ratio(row: dict[Any, Any], best: Any) -> tuple[float, float, float]:
    """Return a program's time over another's with its 95% interval; that of a program over itself is 1."""
    log_ratio = float(np.log(row["time_s"] / best["time_s"]))
    if all(row[name] == best[name] for name in PROGRAM):
        return 1.0, 1.0, 1.0
    half, _ = stats.welch_interval(log_ratio, (row["half"], best["half"]), (row["processes"], best["processes"]))
    return float(np.exp(log_ratio)), float(np.exp(log_ratio - half)), float(np.exp(log_ratio + half))
