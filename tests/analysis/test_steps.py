"""The steps that a gap consists of, of made-up blocks: they multiply to the gap, whatever forms were measured."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from harness.analysis.gaps import gaps_and_contrasts
from harness.analysis.steps import steps
from harness.study.study import Study, Workload
from tests import made

LEVELS = {"in_loop": 2.0, "per_step": 1.5, "bmm": 1.2, "batched": 1.0}


def blocks(levels=LEVELS, processes=3, noise=0.01, workload="w"):
    """A block for each process, whose arms take `levels` ms and drift by a tenth from the first round to the last."""
    random = np.random.default_rng(0)
    drift = np.linspace(1, 1.1, 9)
    for process in range(processes):
        arms = {
            f"scan_{form}": {"samples_ns": [int(ns) for ns in 1e6 * level * drift * np.exp(random.normal(0, noise, 9))]}
            for form, level in levels.items()
        }
        place = {"framework": "jax", "execution": "xla", "replicate": process, "workload": {"name": workload}}
        yield made.block(place | {"arms": arms})


def found(**changed):
    return steps(list(blocks(**changed)), Study()).to_dict("records")


def test_a_step_is_the_ratio_of_neighbours_with_an_interval_that_holds_it():
    rows = found()
    assert [(row["form"], row["next_form"]) for row in rows] == [
        ("in_loop", "per_step"),
        ("per_step", "bmm"),
        ("bmm", "batched"),
    ]
    for row in rows:
        true = LEVELS[row["form"]] / LEVELS[row["next_form"]]
        assert row["ci_low"] < true < row["ci_high"]
        assert row["ratio"] == pytest.approx(true, rel=0.02)


def test_steps_multiply_to_the_gap():
    records = list(blocks(noise=0.2))
    gaps, _ = gaps_and_contrasts(records, Study())
    (gap,) = gaps[gaps.contender == "in_loop"].ratio
    assert math.prod(steps(records, Study()).ratio) == pytest.approx(gap, rel=1e-12)


def test_a_form_that_one_process_lacks_is_passed_over():
    whole, lacking = blocks(processes=1), blocks({k: v for k, v in LEVELS.items() if k != "bmm"}, processes=2)
    rows = steps([*whole, *lacking], Study()).to_dict("records")
    assert [(row["form"], row["next_form"], row["processes"]) for row in rows] == [
        ("in_loop", "per_step", 3),
        ("per_step", "batched", 3),
    ]


def test_no_step_without_both_ends_and_none_of_a_sweep():
    assert not found(levels={"in_loop": 2.0, "per_step": 1.5})
    assert not found(levels={"per_step": 1.5, "batched": 1.0})
    study = SimpleNamespace(margin=0.02, swept=[Workload(name="w", B=1, T=1, I=1, H=1, O=1)])
    assert steps(list(blocks()), study).empty


def test_one_process_has_no_interval():
    assert all(math.isnan(row["ci_low"]) for row in found(processes=1))
