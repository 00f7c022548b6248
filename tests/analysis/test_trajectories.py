"""Results of a training, of made-up records."""

import numpy as np
import pytest

from harness.analysis import stats, trajectories
from harness.analysis.trajectories import NOTEBOOK, RANGE
from harness.records.training import TRAINING, ProcessRecord, TrainingConfigurationRecord
from harness.report import training as report
from harness.study.parts import BATCHED, TWIN


def record_of(losses, replicate=0, **more):
    form = {"status": "ok", "reason": "", "first_call_ns": 5, "samples_ns": [2] * (len(losses) - 1), "losses": losses}
    forms = {"in_loop": form | {"samples_ns": [3] * (len(losses) - 1)}, BATCHED: form, TWIN: form}
    own = {"key": f"{replicate}-0", "kind": "process", "replicate": replicate, "status": "ok", "reason": ""}
    own |= {"began": "2026-01-01", "load": 0.0, "start_s": 1.0, "seconds": 1.0, "threads_used": None, "forms": forms}
    return ProcessRecord.model_validate({**CONFIGURATION, "recurrence": "scan", **own, **more})


CONFIGURATION = {"framework": "f", "device": "cpu", "threads": 1, "execution": "e", "precision": "fp32"}


def recorded(*found):
    steps = len(found[0].forms[BATCHED].losses)
    ok = {"key": "k-0", "status": "ok", "reason": ""}
    oracle = {"kind": "oracle", "losses": [1.0] * steps, "float32": [1.0] * steps, "bounds": [1e-6] * 10}
    basis = {"machine": {}, "versions": {}, "code": {"commit": "c", "hash": "h"}}
    header = {"kind": "training", "steps": steps, "study": {"margin": 0.02}, "missing": [], "basis": basis}
    header |= {"environments": {}, "weights": {}, "command": "c", "seats": [], "absent": []}
    return [*(TRAINING.known.validate_python(ok | line) for line in (header, oracle)), *found]


def test_a_training_that_ends_elsewhere_is_said_and_a_short_one_is_not_judged():
    assert all(RANGE[0] <= np.median(printed[10:]) <= RANGE[1] for printed in NOTEBOOK.values())
    inside, outside = [0.045] * 1500, [0.045] * 1400 + [0.07] * 100
    assert trajectories.problems(recorded(record_of(inside))) == []
    said = trajectories.problems(recorded(record_of(outside)))
    assert len(said) == 2
    assert "in_loop: the median MSE of the last 100 steps is 0.0700, outside 0.035 to 0.06" in said[0]
    assert trajectories.problems(recorded(record_of(outside[-500:]))) == []
    for losses, words in (
        (inside, "inside 0.035 to 0.06 everywhere"),
        (outside, "**outside 0.035 to 0.06 in 2 of 2**"),
    ):
        records = recorded(record_of(losses))
        assert words in report.final_loss_summary(trajectories.form_trajectories(records), records[1])


def test_times_are_paired_and_processes_are_the_unit():
    records = recorded(*(record_of([1.0] * 20, replicate) for replicate in range(3)))
    (one,) = trajectories.training_times(records)
    assert one.gaps["in_loop"].ratio == pytest.approx(1.5)
    assert one.gaps[TWIN].ratio == pytest.approx(1.0)
    assert (one.gaps["in_loop"].processes, one.verdict) == (3, "slower")
    assert one.step_s == {"in_loop": 3e-9, BATCHED: 2e-9}


def test_a_trainings_verdict_does_not_depend_on_other_frameworks():
    gaps = [stats.Gap(1.1, 1.05, 1.15, 3, "slower", p) for p in (0.03, 0.2, 0.3, 0.4)]

    def configuration(framework, recurrence="scan"):
        return TrainingConfigurationRecord.model_validate(
            CONFIGURATION | {"framework": framework, "recurrence": recurrence}
        )

    configurations = [configuration(name) for name in ("jax", "tf", "torch", "mx")]
    assert trajectories._verdicts(configurations, gaps) == ["slower", *["inconclusive"] * 3]
    same = [configuration("jax", recurrence) for recurrence in ("unrolled", "scan")]
    assert trajectories._verdicts(same, gaps[:2]) == ["inconclusive"] * 2


def test_trajectories_that_differ_by_a_bit_are_not_called_the_same():
    other = [1.0] * 19 + [float(np.nextafter(np.float32(1), np.float32(2)))]
    same, differ = (recorded(record_of([1.0] * 20), record_of(losses, 1)) for losses in ([1.0] * 20, other))
    assert [line.alike for line in trajectories.form_trajectories(same)] == [True, True]
    assert [line.alike for line in trajectories.form_trajectories(differ)] == [False, False]
