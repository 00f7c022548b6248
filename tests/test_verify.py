"""The gates: what they must let through, and what they must catch."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from harness import verify, weights
from harness.measure import cast, probe
from harness.study import Workload
from impls import reference
from impls.interface import CELLS
from tests.conftest import data_of

SHAPES = [(1, 1, 1, 1, 1), (1, 37, 3, 17, 5), (16, 10, 31, 257, 129), (50, 20, 1, 100, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_other_roundings_pass_and_lower_precision_does_not(shape, cell, tmp_path):
    """Roundings with other seeds than the bound's are within it; inputs rounded to bfloat16 are not."""
    workload = Workload(name="w", **dict(zip("BTIHO", shape, strict=True)), cell=cell)
    weights.store(tmp_path, weights.files(workload, 1, None, None))
    data = data_of(workload)
    low = cast(cast(data, ml_dtypes.bfloat16), "float32")
    for given, ok in ((data, True), (low, False)):
        for seed in range(20, 23):
            judged = verdict(tmp_path, workload, given, seed)
            assert (judged["reason"] == "") == ok, (seed, judged["reason"])


def verdict(folder, workload, given, seed):
    noise = reference.Noise(seed)
    outputs = {}
    for moment, data in (("before", probe(given)), ("after", given)):
        for name, a in reference.run(data, workload.cell, "train", "projected", noise).items():
            outputs[f"unrolled_batched/{moment}/{name}"] = a
    saved = folder / "saved.safetensors"
    save_file(outputs, saved)
    judge = verify.Judge(folder)
    return judge.judge(saved, workload, workload.T, "train", "fp32")["arms"]["unrolled_batched"]


def test_tf32_is_caught_at_every_depth():
    """Products whose inputs are rounded to TF32's 10 bits, against the bound, for K from 32 to 4096."""
    for size in (32, 256, 1024, 4096):
        random = np.random.default_rng(size)
        a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((8, size), (size, 8)))
        true = a.astype(np.float64) @ b
        noisy = [reference.product(a, b, reference.Noise(seed)) for seed in range(verify.RUNS)]
        bound = verify.FACTOR * max(verify.errors(one, true)[1] for one in noisy)
        assert verify.errors(a @ b, true)[1] <= bound
        assert verify.errors(tf32(a) @ tf32(b), true)[1] > bound


def tf32(a):
    bits = a.view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize(
    ("output", "bad"),
    [
        (None, True),
        (np.zeros((2, 3), np.float32), True),
        (np.array([1, np.nan], np.float32), True),
        (np.array([1, np.inf], np.float32), True),
        (np.array([1, 2], np.float32), False),
    ],
)
def test_missing_misshapen_and_unfinished_outputs_are_infinitely_wrong(output, bad):
    found = verify.errors(output, np.array([1.0, 2.0]))
    assert (found == (float("inf"), float("inf"))) == bad


def test_a_zero_truth_wants_exact_zeros():
    assert verify.errors(np.zeros(3, np.float32), np.zeros(3)) == (0, 0)
    assert verify.errors(np.array([0, 1e-30, 0], np.float32), np.zeros(3))[1] == float("inf")
    assert not verify.holds([float("nan"), float("nan")], (1, 1))


def test_ulp_distance_counts_representable_numbers():
    one = np.float32(1)
    assert verify.max_ulp(np.array([one]), np.array([np.nextafter(one, np.float32(2))])) == 1
    assert verify.max_ulp(np.array([1e-45], np.float32), np.array([-1e-45], np.float32)) == 3  # -0 counts
    assert verify.max_ulp(np.array([1.0]), np.array([np.nextafter(1.0, 0)])) == 1
    assert verify.max_ulp(np.array([1.0]), np.array([np.nan])) == -1
