"""Score what was predicted from counts of launches against what a GPU was then measured to take. Pure functions."""

import math
from typing import Any

import numpy as np
import pandas as pd

FORM = ["framework", "execution", "precision", "workload", "pass", "recurrence", "projection"]
ENGINE = ["framework", "execution"]
COUNTED = "counted_by"  # column: the package of XLA and its version, or the evidence of a CPU


def scored(predictions: pd.DataFrame, gaps: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each predicted form that was measured on a GPU, with and without thread counts of its own.

    `gaps`, `times`: those of a run (harness.analysis.loading). `inside`: whether the measured ratio is in the predicted
    range; `error` is |log(measured / middle)| and `error_of_none` the same for a prediction that there is no gap, which
    are NaN for the batched form. `call_inside`: the same for the median time of a call.
    """
    measured = _measured(gaps, times)
    rows = predictions.merge(measured, on=FORM, how="inner")
    log_ratio = np.log(rows.ratio.astype(float))
    rows["inside"] = _between(rows.ratio, rows.ratio_low, rows.ratio_high)
    rows["error"] = (log_ratio - np.log(rows.ratio_mid.astype(float))).abs()
    rows["error_of_none"] = log_ratio.abs()
    rows["call_inside"] = _between(rows.call_us, rows.call_low_us, rows.call_high_us)
    return rows.sort_values([*FORM, "threads"], kind="stable", ignore_index=True)


def of_version(predictions: pd.DataFrame, version: str) -> pd.DataFrame:
    """Return the predictions that hold for a version of JAX: those of its own XLA, where there are any.

    Predictions that no XLA was asked for hold for every version.
    """
    of_xla = predictions[COUNTED].fillna("").str.contains("pjrt")
    own = of_xla & predictions[COUNTED].fillna("").str.endswith(f" {version}")
    return predictions[own | ~of_xla] if own.any() else predictions


def summarized(rows: pd.DataFrame) -> pd.DataFrame:
    """Return, for each framework and execution and for all, how many ratios and times were in their ranges.

    `error`, `error_of_none`: medians, as factors above 1: 1.1 is off by a tenth.
    """
    groups = [(tuple(map(str, key)), group) for key, group in rows.groupby(ENGINE, sort=True)]
    return pd.DataFrame([_summary(key, group) for key, group in [*groups, (("all", ""), rows)] if len(group)])


def _summary(key: tuple[str, ...], rows: pd.DataFrame) -> dict[str, Any]:
    ratios = rows[rows.error.notna()]
    return dict(zip(ENGINE, key, strict=True)) | {
        "ratios": len(ratios),
        "ratios_inside": int(ratios.inside.sum()),
        "error": _factor(ratios.error),
        "error_of_none": _factor(ratios.error_of_none),
        "times": len(rows),
        "times_inside": int(rows.call_inside.sum()),
    }


def _factor(errors: pd.Series) -> float:
    return math.exp(errors.median()) if len(errors) else math.nan


def _between(values: pd.Series, low: pd.Series, high: pd.Series) -> pd.Series:
    return (values >= low) & (values <= high)


def _measured(gaps: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Return ratio, its interval and microseconds of a call of every form that ran on a GPU, by thread count."""
    place = [*FORM, "threads"]
    on_gpu = times[(times.device == "gpu") & (times.status == "ok")]
    calls = (1e6 * on_gpu.groupby(place).median_s.median()).rename("call_us").reset_index()
    over_batched = gaps[(gaps.device == "gpu") & (gaps.baseline == "batched")]
    ratios = over_batched.rename(columns={"contender": "projection"})[[*place, "ratio", "ci_low", "ci_high"]]
    return calls.merge(ratios, on=place, how="left")
