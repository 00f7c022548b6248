"""Studies of which nothing could be verified are refused before any work; those that can be, are."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.errors import UsageError
from harness.machine import environment
from harness.run import session
from harness.study import weights
from harness.study.study import NAMED, Study, Workload, third_of_memory
from harness.verify import tolerance
from tests.impls.test_frameworks import records_together

GROWING = Workload(name="growing", B=2, T=40, I=3, H=8, O=4, cell="rnn_relu")


def of(workload, folder, **changed):
    """The paths of a workload's weights and inputs, some of them exchanged."""
    made = weights.make_weights(workload, 1) | weights.make_inputs(workload, 1) | changed
    for kind, names in (("weights", weights.WEIGHTS), ("inputs", weights.INPUTS)):
        save_file({name: np.ascontiguousarray(made[name], np.float32) for name in names}, folder / kind)
    return {"weights": str(folder / "weights"), "inputs": str(folder / "inputs")}


def test_a_study_that_overflows_is_refused_with_the_step(tmp_path):
    files = of(GROWING, tmp_path, w_rec=1000 * np.eye(8))
    for passes in (["forward"], ["forward", "train"]):
        with pytest.raises(
            UsageError, match="workload growing cannot be verified: h overflows in fp32 at step 14 of 40"
        ):
            session.prepare_files(Study(workloads=[GROWING], passes=passes, **files))
    session.prepare_files(Study(workloads=[GROWING], passes=["forward"], precisions=["fp64"], **files))
    slower = GROWING.model_copy(update={"cell": "rnn_tanh"})
    session.prepare_files(Study(workloads=[slower], **files))


def test_a_target_whose_square_overflows_is_refused_in_training_alone(tmp_path):
    files = of(GROWING, tmp_path, target=np.full((40, 2, 4), 1e25))
    session.prepare_files(Study(workloads=[GROWING], passes=["forward"], **files))
    with pytest.raises(UsageError, match="the sum of the squared errors overflows in fp32"):
        session.prepare_files(Study(workloads=[GROWING], passes=["train"], **files))


def test_inputs_of_which_only_the_probe_overflows_are_refused(tmp_path):
    """The probe takes 1/8 from every input, and a recurrence makes much of it."""
    files = of(
        GROWING, tmp_path, x=np.zeros((40, 2, 3)), b_rec=np.zeros(8), w_rec=1000 * np.eye(8), w_in=-np.ones((3, 8))
    )
    with pytest.raises(UsageError, match="on the probe's inputs"):
        session.prepare_files(Study(workloads=[GROWING], passes=["forward"], **files))


def test_what_needs_more_memory_than_is_free_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "free_memory_bytes", lambda: 10**8)
    session.prepare_files(Study(workloads=[NAMED["book"]]))
    with pytest.raises(UsageError, match=r"the oracle needs about 0\.5 GiB, but 0\.1 GiB are free"):
        session.prepare_files(Study(workloads=[NAMED["vocab"]]))
    huge = Workload(name="huge", B=65536, T=65536, I=1, H=1, O=9, loss="cross_entropy")
    with pytest.raises(UsageError, match=r"its outputs take about 144\.0 GiB, but 0\.1 GiB are free"):
        session.prepare_files(Study(workloads=[huge], passes=["forward"]))


@pytest.mark.parametrize("gib", [1, 24, 128])
def test_the_logits_of_lm_third_take_a_third_of_the_memory_and_its_oracle_fits_beside_them(gib):
    memory_bytes = gib << 30
    workload = third_of_memory(memory_bytes)
    logits_bytes = 4 * workload.T * workload.B * workload.O
    assert memory_bytes / 3 - 4 * workload.T * workload.O < logits_bytes <= memory_bytes / 3
    if gib > 20:
        assert tolerance.oracle_memory_bytes(workload, "train") < memory_bytes / 3


@pytest.mark.timeout(300)
def test_zeros_and_a_dead_relu_pass_in_every_framework_and_who_flushes_denormals_is_told(
    framework, asked_once, tmp_path
):
    """Zeros' gradients are zeros, of which no bound of the probe's can be made, and none of theirs of the probe's."""
    zeros, tiny = (Workload(name=name, B=4, T=6, I=3, H=8, O=4, cell="rnn_tanh") for name in ("zeros", "tiny"))
    relu = Workload(name="relu", B=1, T=2, I=1, H=1, O=1, cell="rnn_relu")
    eager = {"executions": ["eager"], "precisions": ["fp32"]}
    arms = {"recurrences": ["unrolled", "layer"], "projections": ["none", "in_loop", "batched", "library"]}
    one = {"recurrences": ["unrolled"], "projections": ["batched"], "passes": ["forward"]}
    of_zeros, of_tiny = tmp_path / "of zeros", tmp_path / "of tiny"
    of_zeros.mkdir()
    of_tiny.mkdir()
    inputs = of(zeros, of_zeros, x=np.zeros((6, 4, 3)))["inputs"]
    denormals = of(tiny, of_tiny, x=np.full((6, 4, 3), 1e-39), b_rec=np.zeros(8), b_out=np.zeros(4))
    parts = ([zeros], arms | {"inputs": inputs}), ([relu], arms | {"seed": 3}), ([tiny], one | denormals)
    records = records_together(framework, tmp_path, [(w, eager | more) for w, more in parts], counted=False)
    found = {(r.workload.name, r.pass_, name): arm for r in records for name, arm in r.arms.items()}
    flushed = found.pop(("tiny", "forward", "unrolled_batched"))
    assert len(found) == 2 * 2 * len({name for _, _, name in found})
    assert {arm.status for arm in found.values()} == {"ok"}, found
    told = flushed.status, "flushes denormals" in flushed.reason
    assert told == (("ok", False) if framework == "torch" else ("wrong", True))
