"""Projection none in training: the backward pass from a given gradient of h, in every framework and both gates."""

import pytest
from safetensors.numpy import load_file

from tests.faults import SOUND, size_of

FAULTS = ("missing_gradient", "other_target")


@pytest.mark.timeout(300)
def test_it_has_three_gradients_and_no_loss_and_a_fault_in_its_backward_pass_is_caught(
    framework, harness, faulty, tmp_path
):
    """In fp64; that they are caught in fp32, the test of all faults sees."""
    name = faulty("broken", framework)
    sizes = {fault: f"B=3,T=3,I={size_of(fault)},H=16,O=5" for fault in (SOUND, *FAULTS)}
    arm = ["--recurrence", "unrolled", "--projection", "none", "--pass", "train", "--precision", "fp64"]
    arm += [part for workload in sizes.values() for part in ("--workload", workload)]
    done = harness("verify", "--framework", name, *arm, "--save-outputs", str(tmp_path / "saved"))
    found = [line.split()[3:5] for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    names = {fault: f"B3-T3-I{size_of(fault)}-H16-O5-rnn_tanh" for fault in sizes}
    assert sorted(found) == sorted(["fp64", names[fault]] for fault in FAULTS), done.stderr
    saved = tmp_path / "saved" / names[SOUND] / f"{name}-cpu-eager-fp64-unrolled-none-train.safetensors"
    shapes = {name: a.shape for name, a in load_file(saved).items()}
    assert shapes == {"d_w_in": (2, 16), "d_w_rec": (16, 16), "d_b_rec": (16,)}
