"""Projection none in training: the backward pass from a given gradient of h, in every framework and both gates."""

import itertools

import pytest
from safetensors.numpy import load_file

from tests.faults import SOUND
from tests.impls.test_frameworks import ODD, harness

PLANTED = ("missing_gradient", "other_target")


@pytest.mark.timeout(300)
def test_it_has_three_gradients_and_no_loss_and_a_fault_in_its_backward_pass_is_caught(framework, tmp_path):
    place = tmp_path / "impls" / f"broken_{framework}"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place / "backend.py").write_text(f"from tests.faults import broken\n\nBackend = broken({framework!r})\n")
    arm = ["--recurrence", "unrolled", "--projection", "none", "--pass", "train", "--workload", ODD]
    execution = ["--framework", f"broken_{framework}", "--execution", ",".join((SOUND, *PLANTED))]
    done = harness("verify", *execution, *arm, "--save-outputs", str(tmp_path / "saved"), path=str(tmp_path))
    wrong = [line.split()[2:4] for line in done.stderr.splitlines() if line.startswith("wrong: ")]
    assert sorted(wrong) == [list(place) for place in itertools.product(PLANTED, ("fp32", "fp64"))], done.stderr
    for precision in ("fp32", "fp64"):
        saved = tmp_path / "saved" / f"broken_{framework}-cpu-{SOUND}-{precision}-unrolled-none-train.safetensors"
        arrays = load_file(saved)
        assert {name: a.shape for name, a in arrays.items()} == {
            "d_w_in": (2, 17), "d_w_rec": (17, 17), "d_b_rec": (17,)
        }  # fmt: skip
