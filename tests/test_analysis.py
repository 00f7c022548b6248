"""The tables: which gaps a correction is over, which control stands for a contrast, and what is checked in fp64."""

import numpy as np
import pandas as pd

from harness import gates, plan, stats
from harness.gaps import GAPS, OWN, _also_trusted, _question, _trusted, priors
from harness.plan import Framework
from harness.study import Study, Workload

SEAT = ("tf", "cpu", 1, "graph", "fp32", "book", "forward")


def frame(*rows):
    """Rows of recurrence, contender, baseline, low, high."""
    made = [(*SEAT, r, c, b, 1.0, low, high, 3, 40, "inconclusive", True, 1.0) for r, c, b, low, high in rows]
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
    families = gaps.groupby(_question(gaps)).groups
    assert sorted(map(list, families.values())) == [[0, 1], [2], [3], [4, 5], [6]]


def test_how_a_gpus_gaps_vary_says_nothing_of_a_cpus():
    random = np.random.default_rng(1)

    def some(device, spread):
        keys = [(*SEAT[:1], device, *SEAT[2:], "scan", f"form{number}", "batched") for number in range(12)]
        return {key: (stats.Sample(tuple(random.normal(0, spread, 4)), spread**2), 40.0) for key in keys}

    cpu, gpu = some("cpu", 0.1), some("gpu", 0.001)
    both = priors(cpu | gpu)
    assert both == priors(cpu) | priors(gpu)
    assert both["cpu"].variance(0.01) > 100 * both["gpu"].variance(1e-6)


def test_a_contrast_is_trusted_when_the_twins_of_both_its_sides_are():
    gaps = _trusted(
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
    assert list(_also_trusted(contrasts, gaps).trusted) == [True, False, False]
    layer = frame(("scan", "twin", "batched", 0.9, 1.1), ("layer", "twin", "batched", 0.9, 1.1))
    assert list(_also_trusted(contrasts, _trusted(layer)).trusted) == [True, True, False]


def test_fp64_is_checked_for_each_cell_and_speaks_for_no_other():
    workloads = [
        Workload(name=n, B=1, T=9, I=1, H=1, O=1, cell=c) for n, c in (("a", "gru"), ("b", "lstm"), ("c", "gru"))
    ]
    study = Study(workloads=workloads, threads=[1], passes=["forward"])
    numpy = Framework(
        "numpy", None, {}, {"eager": {"missing": None, "traced": False, "without": {}, "unrolls": []}}, {"cpu": None}
    )
    (job,) = plan.checks(plan.make(study, [numpy], [1]), study)
    assert [(todo.workload.name, todo.steps) for todo in job.blocks] == [("a", 3), ("b", 3)]
    assert len(job.blocks[0].arms) == 4 + 4 + 3 + 6  # the usual ones; a layer projects nothing inside its loop
    assert [arm.name for arm in job.blocks[1].arms] == ["layer_none", "scan_none", "unrolled_none"]
    check = {"framework": "numpy", "device": "cpu", "execution": "eager", "pass": "forward"}
    keys = {gates.program(check | {"workload": {"cell": cell}}, "scan_none") for cell in ("gru", "lstm")}
    assert len(keys) == 2
