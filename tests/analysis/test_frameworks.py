"""Framework against framework, of made-up times: which program is picked, what is compared, and what is shown."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions

from harness.analysis.frameworks import frameworks

PLACE = {"device": "cpu", "threads": 1, "precision": "fp32", "workload": "book", "pass": "forward"}


def program(framework, execution, recurrence, projection, *medians_ms, **place):
    """The rows of a times table of one program, one for each process."""
    row = {"framework": framework, "execution": execution, "recurrence": recurrence, "projection": projection}
    return [PLACE | row | {"median_s": ms / 1e3} | place for ms in medians_ms]


JAX = program("jax", "xla", "scan", "batched", 1.0, 1.02, 0.98)
JAX_UNROLLED = program("jax", "xla", "unrolled", "batched", 0.9, 0.91, 0.92)
TORCH = program("torch", "eager", "unrolled", "batched", 2.0, 2.1, 1.9)
TORCH_LAYER = program("torch", "eager", "layer", "batched", 1.5, 1.6, 1.4)


def compared(*programs, prototypes=None):
    frame = frameworks(pd.DataFrame([row for rows in programs for row in rows]), {}, prototypes or {})
    return {(row["kind"], row["framework"]): row for row in frame.to_dict("records")}


def test_each_framework_has_its_fastest_and_its_usual_program():
    rows = compared(JAX, JAX_UNROLLED, TORCH, TORCH_LAYER)
    assert {key: (row["recurrence"], row["projection"]) for key, row in rows.items()} == {
        ("fastest", "jax"): ("unrolled", "batched"),
        ("fastest", "torch"): ("layer", "batched"),
        ("usual", "jax"): ("scan", "batched"),
        ("usual", "torch"): ("unrolled", "batched"),
    }
    assert rows["fastest", "jax"]["is_fastest"]
    assert not rows["fastest", "torch"]["is_fastest"]
    assert rows["fastest", "jax"]["ratio"] == rows["fastest", "jax"]["ci_high"] == 1


def test_the_interval_is_welch_s():
    row = compared(JAX, TORCH)["fastest", "torch"]
    logs = [np.log([r["median_s"] for r in rows]) for rows in (TORCH, JAX)]
    interval = distributions.ttest_ind(*logs, equal_var=False).confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert row["ratio"] == pytest.approx(math.exp(np.mean(logs[0]) - np.mean(logs[1])))


def test_the_fastest_is_named_only_where_the_interval_shows_it():
    noisy = program("torch", "eager", "unrolled", "batched", 0.5, 1.2, 3.0)
    assert not any(row["is_fastest"] for row in compared(JAX, noisy).values())
    once = program("torch", "eager", "unrolled", "batched", 9.0)
    assert not any(row["is_fastest"] for row in compared(JAX, once).values())


def test_what_is_no_whole_answer_is_left_out():
    quick = [
        program("torch", "eager", recurrence, projection, 0.1, 0.11)
        for recurrence, projection in (("given", "batched"), ("unrolled", "none"), ("unrolled", "twin"))
    ]
    prototype = program("torch", "inductor", "scan", "batched", 0.1, 0.11)
    rows = compared(JAX, TORCH, *quick, prototype, prototypes={("torch", "inductor", "scan"): "a reason"})
    assert rows["fastest", "torch"]["recurrence"] == "unrolled"
    assert rows["fastest", "torch"]["time_s"] == pytest.approx(0.002, rel=0.01)


def test_one_framework_is_compared_with_none():
    assert frameworks(pd.DataFrame(JAX), {}, {}).empty
    withheld = [row | {"median_s": None} for row in TORCH]
    assert frameworks(pd.DataFrame(JAX + withheld), {}, {}).empty


def test_places_are_compared_by_themselves():
    other = [
        *program("jax", "xla", "scan", "batched", 5.0, 5.1, workload="vocab"),
        *program("torch", "eager", "unrolled", "batched", 1.0, 1.01, workload="vocab"),
    ]
    frame = frameworks(pd.DataFrame(JAX + TORCH + other), {}, {})
    winners = frame[(frame.kind == "fastest") & frame.is_fastest]
    assert dict(zip(winners.workload, winners.framework, strict=True)) == {"book": "jax", "vocab": "torch"}


def test_a_program_of_too_few_processes_is_the_fastest_only_where_there_is_no_other():
    once = program("torch", "eager", "layer", "batched", 0.1)
    assert compared(JAX, TORCH, once)["fastest", "torch"]["recurrence"] == "unrolled"
    pair = program("torch", "eager", "unrolled", "batched", 2.0, 2.1)
    assert compared(JAX, pair, once)["fastest", "torch"]["processes"] == 2
    assert compared(JAX, once)["fastest", "torch"]["processes"] == 1


def test_a_framework_that_is_not_ours_has_one_usual_program():
    rows = [
        *program("numpy", "eager", "unrolled", "batched", 3.0, 3.1, 2.9),
        *program("numpy", "inductor", "unrolled", "batched", 2.0, 2.1, 1.9),
    ]
    frame = frameworks(pd.DataFrame(JAX + rows), {}, {})
    (usual,) = frame[(frame.kind == "usual") & (frame.framework == "numpy")].to_dict("records")
    assert usual["execution"] == "inductor"
    assert frame[(frame.kind == "usual") & (frame.framework == "jax")].is_fastest.all()
