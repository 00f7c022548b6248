"""Gaps: which a correction is over, which control stands for a contrast, what direction and size are."""

from itertools import product

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.gaps import (
    GAPS,
    _check_contrast_controls,
    _check_gap_controls,
    _question_labels,
    fit_priors,
    gaps_and_contrasts,
)
from harness.study.parts import OWN
from harness.study.study import Study, Workload
from tests import made

CONFIG = ("tf", "cpu", 1, "graph", "fp32", "book", "forward")


def frame(*rows):
    """Rows of recurrence, contender, baseline, low, high."""
    made = [
        (*CONFIG, r, c, b, 1.0, low, high, 3, 40, "inconclusive", True, 1.0, "unknown") for r, c, b, low, high in rows
    ]
    return pd.DataFrame(made, columns=GAPS)


def test_a_correction_is_over_the_gaps_that_answer_one_question():
    gaps = frame(
        ("unrolled", "in_loop", "batched", 0.9, 1.1),
        ("scan", "per_step", "batched", 0.9, 1.1),
        ("given", "per_step", "batched", 0.9, 1.1),
        ("layer", "library", "batched", 0.9, 1.1),
        ("scan", "twin", "batched", 0.9, 1.1),
        ("given", "twin", "batched", 0.9, 1.1),
        ("scan", "per_step", "in_loop", 0.9, 1.1),
    )
    families = gaps.groupby(_question_labels(gaps)).groups
    assert sorted(map(list, families.values())) == [[0, 1], [2], [3], [4, 5], [6]]


def blocks_of(framework, random, workloads=("a", "b"), ratio=1.03):
    """Four processes of blocks whose in_loop takes `ratio` times as long, to 0.3%."""
    blocks = []
    for process, workload in product(range(4), workloads):
        level = 1e6 * np.exp(random.normal(0, 0.003, 3)) * [ratio, ratio, 1.0]
        forms = zip(("in_loop", "per_step", "batched"), level, strict=True)
        arms = {f"scan_{form}": {"samples_ns": [int(ns)] * 9} for form, ns in forms}
        place = {"framework": framework, "workload": {"name": workload}, "replicate": process}
        blocks.append(made.block(place | {"arms": arms}))
    return blocks


def test_a_frameworks_gaps_do_not_depend_on_other_frameworks_records():
    random = np.random.default_rng(3)
    jax = blocks_of("jax", random, ratio=1.036)
    others = [block for name in ("torch", "tf", "mx") for block in blocks_of(name, random, ratio=1.02)]
    alone, _ = gaps_and_contrasts(jax, Study())
    beside, _ = gaps_and_contrasts(jax + others, Study())
    kept = ["workload", "contender", "ratio", "ci_low", "ci_high", "direction", "verdict", "processes"]
    assert beside[beside.framework == "jax"][kept].to_dict("records") == alone[kept].to_dict("records")
    assert "slower" in set(alone.verdict)


def test_a_verdict_is_corrected_over_all_workloads_of_an_execution_and_not_over_the_sweep():
    wanted = Study(workloads=[Workload(name="a", B=1, T=9, I=1, H=1, O=1)], sweep="book")
    random = np.random.default_rng(0)
    own = blocks_of("jax", random, ["a"], 1.036)
    alone, _ = gaps_and_contrasts(own, wanted)
    assert set(alone.verdict) == {"slower"}
    points = [point.name for point in wanted.swept]
    swept, _ = gaps_and_contrasts(own + blocks_of("jax", random, points, 1.02), wanted)
    assert set(swept[swept.workload == "a"].verdict) == {"slower"}
    more, _ = gaps_and_contrasts(
        own + blocks_of("jax", random, points, 1.02), wanted.model_copy(update={"sweep": None})
    )
    assert set(more[more.workload == "a"].verdict) == {"inconclusive"}


def test_a_direction_is_that_of_the_interval_whatever_the_margin():
    directions = {}
    for ratio in (1.01, 0.99, 1.0):
        gaps, _ = gaps_and_contrasts(blocks_of("jax", np.random.default_rng(1), ["a"], ratio), Study())
        in_loop = gaps[gaps.contender == "in_loop"].iloc[0]
        directions[ratio] = in_loop.direction
        assert in_loop.verdict in ("inconclusive", "equivalent")
    assert directions == {1.01: "longer", 0.99: "shorter", 1.0: "unknown"}


def test_how_a_gpus_gaps_vary_says_nothing_of_a_cpus():
    random = np.random.default_rng(1)

    def some(device, spread):
        keys = [(*CONFIG[:1], device, *CONFIG[2:], "scan", f"form{number}", "batched") for number in range(12)]
        return {key: (stats.Sample(tuple(random.normal(0, spread, 4)), spread**2), 40.0) for key in keys}

    cpu, gpu = some("cpu", 0.1), some("gpu", 0.001)
    both = fit_priors(cpu | gpu)
    assert both == fit_priors(cpu) | fit_priors(gpu)
    assert both["cpu"].variance(0.01) > 100 * both["gpu"].variance(1e-6)


def test_a_contrast_is_trusted_when_the_twins_of_both_its_sides_are():
    gaps = _check_gap_controls(
        frame(
            ("scan", "twin", "batched", 0.9, 1.1),
            ("unrolled", "twin", "batched", 0.8, 0.9),
            ("layer", "twin", "batched", 1.1, 1.2),
        )
    )
    contrasts = frame(
        ("scan", "per_step", "in_loop", 1, 1),
        ("scan", "in_loop", OWN, 1, 1),
        ("unrolled", "per_step", "in_loop", 1, 1),
    )
    assert list(_check_contrast_controls(contrasts, gaps).trusted) == [True, False, False]
    layer = frame(("scan", "twin", "batched", 0.9, 1.1), ("layer", "twin", "batched", 0.9, 1.1))
    assert list(_check_contrast_controls(contrasts, _check_gap_controls(layer)).trusted) == [True, True, False]
