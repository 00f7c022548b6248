"""The oracle against finite differences and against an independent forward pass."""

import numpy as np
import pytest

from harness.study import Workload
from impls import reference
from impls.interface import CELLS, Weights
from tests.conftest import data_of

SHAPES = [(1, 1, 1, 1, 1), (3, 5, 2, 4, 3), (2, 7, 3, 5, 1)]


def loss(data, cell, project):
    return float(reference.run(data, cell, "train", project)["loss"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("project", [True, False])
def test_gradients_are_those_of_finite_differences(shape, cell, project):
    workload = Workload(name="w", **dict(zip("BTIHO", shape, strict=True)), cell=cell)
    data = data_of(workload, "float64")
    if not project:
        data = data._replace(target=np.zeros((workload.T, workload.B, workload.H)))
    found = reference.run(data, cell, "train", project)
    step = 1e-6
    for name, w in data.weights._asdict().items():
        numeric = np.zeros_like(w)
        for index in np.ndindex(w.shape):
            sides = []
            for sign in (1, -1):
                moved = w.copy()
                moved[index] += sign * step
                sides.append(loss(data._replace(weights=data.weights._replace(**{name: moved})), cell, project))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(found[f"d_{name}"], numeric, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_is_the_equation_written_out(cell):
    data = data_of(Workload(name="w", B=2, T=4, I=3, H=5, O=2, cell=cell), "float64")
    w: Weights = data.weights
    act = {"rnn_relu": lambda a: np.where(a > 0, a, 0), "rnn_tanh": np.tanh}[cell]
    for b in range(2):
        h = np.zeros(5)
        for t in range(4):
            h = act(data.x[t, b] @ w.w_in + h @ w.w_rec + w.b_rec)
            y = h @ w.w_out + w.b_out
            np.testing.assert_allclose(reference.run(data, cell, "forward", True)["y"][t, b], y, rtol=1e-13)


def test_noise_stays_in_float32_and_is_rounding_sized():
    data = data_of(Workload(name="w", B=4, T=6, I=3, H=32, O=5), "float32")
    exact = reference.run(data_of(Workload(name="w", B=4, T=6, I=3, H=32, O=5), "float64"), "rnn_tanh", "train", True)
    for seed in range(3):
        noisy = reference.run(data, "rnn_tanh", "train", True, reference.Noise(seed))
        for name, value in noisy.items():
            assert value.dtype == np.float32
            error = np.max(np.abs(value - exact[name])) / np.max(np.abs(exact[name]))
            assert 0 < error < 1e-5, name
