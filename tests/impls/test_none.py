"""Projection none in training: the backward pass from a given gradient of h, in every framework and both gates."""

import itertools

import pytest
from safetensors.numpy import load_file

from tests.conftest import add_frameworks
from tests.faults import SOUND, size_of

FAULTS = ("missing_gradient", "other_target")


@pytest.mark.timeout(300)
def test_it_has_three_gradients_and_no_loss_and_a_fault_in_its_backward_pass_is_caught(
    framework, harness, tmp_path, monkeypatch
):
    place = tmp_path / "impls" / f"broken_{framework}"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place / "backend.py").write_text(f"from tests.faults import broken\n\nBackend = broken({framework!r})\n")
    sizes = {fault: f"B=3,T=3,I={size_of(fault)},H=16,O=5" for fault in (SOUND, *FAULTS)}
    arm = ["--recurrence", "unrolled", "--projection", "none", "--pass", "train"]
    arm += [part for workload in sizes.values() for part in ("--workload", workload)]
    add_frameworks(monkeypatch, tmp_path)
    done = harness("verify", "--framework", f"broken_{framework}", *arm, "--save-outputs", str(tmp_path / "saved"))
    wrong = [line.split()[3:5] for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    names = {fault: f"B3-T3-I{size_of(fault)}-H16-O5-rnn_tanh" for fault in sizes}
    expected = [[precision, names[fault]] for precision, fault in itertools.product(("fp32", "fp64"), FAULTS)]
    assert sorted(wrong) == sorted(expected), done.stderr
    for precision in ("fp32", "fp64"):
        saved = tmp_path / "saved" / names[SOUND] / f"broken_{framework}-cpu-eager-{precision}-unrolled-none-train"
        arrays = load_file(saved.with_suffix(".safetensors"))
        assert {name: a.shape for name, a in arrays.items()} == {
            "d_w_in": (2, 16), "d_w_rec": (16, 16), "d_b_rec": (16,)
        }  # fmt: skip
