"""The oracle against finite differences and against an independent forward pass."""

import numpy as np
import pytest

from harness.study.data import data_for
from harness.study.study import Workload
from impls import reference, rounding
from impls.interface import CELLS, LOSSES, TRAIN, TRAIN_NONE, Arm, Weights
from tests.conftest import data_of

SHAPES = [(1, 1, 1, 1, 1), (3, 5, 2, 4, 3), (2, 7, 3, 5, 1)]


def loss(data, cell, form, kind="squared"):
    """What the gradients are of: the loss, or without a projection the sum of h by its given gradient."""
    if form == "none":
        return float(np.sum(reference.run(data, cell, "forward", form)["y"] * data.target))
    return float(reference.run(data, cell, "loss", form, loss=kind)["loss"])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("form", reference.FORMS)
def test_gradients_are_those_of_finite_differences(shape, cell, form):
    workload = Workload(name="w", **dict(zip("BTIHO", shape, strict=True)), cell=cell)
    arm = Arm("given" if form == "given" else "unrolled", "none" if form == "none" else "batched")
    check_gradients(data_for(arm, data_of(workload, "float64")), cell, form)


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_each_loss_and_of_several_layers_are_too(cell, layers, kind):
    workload = Workload(name="w", B=2, T=3, I=4, H=3, O=4, cell=cell, loss=kind, layers=layers)
    check_gradients(data_of(workload, "float64"), cell, "projected", kind)


def check_gradients(data, cell, form, kind="squared"):
    """Each gradient is that of finite differences."""
    found = reference.run(data, cell, "train", form, loss=kind)
    assert tuple(found) == (TRAIN_NONE if form == "none" else TRAIN)
    step = 1e-6
    for name in (name.removeprefix("d_") for name in found if name != "loss"):
        w = getattr(data.weights, name)
        numeric = np.zeros_like(w)
        for index in np.ndindex(w.shape):
            sides = []
            for sign in (1, -1):
                moved = w.copy()
                moved[index] += sign * step
                sides.append(loss(data._replace(weights=data.weights._replace(**{name: moved})), cell, form, kind))
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(found[f"d_{name}"], numeric, rtol=2e-6, atol=1e-8)


def test_cross_entropy_is_the_equation_written_out_and_holds_for_logits_that_exp_overflows_on():
    workload = Workload(name="w", B=2, T=3, I=2, H=3, O=4, loss="cross_entropy")
    data = data_of(workload, "float64")
    y = reference.run(data, workload.cell, "forward", "projected")["y"]
    shares = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    right = np.take_along_axis(shares, data.target[..., None], -1)
    found = reference.run(data, workload.cell, "loss", "projected", loss="cross_entropy")["loss"]
    np.testing.assert_allclose(found, -np.log(right).mean(), rtol=1e-12)
    large = data._replace(weights=data.weights._replace(b_out=data.weights.b_out + 1000))
    same = reference.run(large, workload.cell, "loss", "projected", loss="cross_entropy")["loss"]
    np.testing.assert_allclose(same, found, rtol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_is_the_equation_written_out(cell):
    data = data_of(Workload(name="w", B=2, T=4, I=3, H=5, O=2, cell=cell), "float64")
    w: Weights = data.weights
    found = reference.run(data, cell, "forward", "projected")["y"]
    for b in range(2):
        h, c = np.zeros(5), np.zeros(5)
        for t in range(4):
            h, c = written_out(cell, w, data.x[t, b], h, c)
            np.testing.assert_allclose(found[t, b], h @ w.w_out + w.b_out, rtol=1e-12)


def written_out(cell, w, x, h, c):
    """One step of one member of the batch, gate by gate, from the cells' textbook equations."""

    def gate(index, state=h):
        part = slice(5 * index, 5 * index + 5)
        return x @ w.w_in[:, part] + w.b_rec[part], state @ w.w_rec[:, part]

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    if cell == "gru":
        r, z = sigmoid(sum(gate(0))), sigmoid(sum(gate(1)))
        a, u = gate(2)
        return (1 - z) * np.tanh(a + r * u) + z * h, c
    if cell == "lstm":
        i, f, g, o = (act(sum(gate(k))) for k, act in enumerate((sigmoid, sigmoid, np.tanh, sigmoid)))
        c = f * c + i * g
        return o * np.tanh(c), c
    act = {"rnn_relu": lambda a: np.where(a > 0, a, 0), "rnn_tanh": np.tanh}[cell]
    return act(sum(gate(0))), c


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("form", "projection", "more"),
    [
        ("projected", "batched", {}),
        ("none", "none", {}),
        ("projected", "batched", {"loss": "cross_entropy"}),
        ("projected", "batched", {"layers": 2}),
    ],
)
def test_noise_is_rounding_sized_and_leaves_the_truth_alone(cell, form, projection, more):
    workload = Workload(name="w", B=4, T=6, I=5, H=32, O=5, cell=cell, **more)
    kind = workload.loss
    data = data_for(Arm("unrolled", projection), data_of(workload, "float64"))
    exact, sizes = reference.run(data, cell, "train", form, loss=kind), rounding.Sizes()
    noise = rounding.Noise(1, sizes, runs=3)
    sized = reference.run(data, cell, "train", form, sizes, kind)
    noisy = reference.run(noise.data(data), cell, "train", form, noise, kind)
    for name, value in noisy.items():
        assert np.allclose(sized[name], exact[name], rtol=1e-12, atol=1e-14), name
        for run in value:
            error = np.max(np.abs(run - exact[name])) / np.max(np.abs(exact[name]))
            assert 0 < error < 1e-5, name
        assert not np.array_equal(value[0], value[1]), name


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("pass_", ["forward", "loss", "train"])
def test_outputs_in_blocks_of_steps_give_the_same(monkeypatch, pass_, kind, layers):
    workload = Workload(name="w", B=3, T=7, I=4, H=8, O=4, cell="gru", loss=kind, layers=layers)
    data = data_of(workload, "float64")
    whole = reference.run(data, "gru", pass_, "projected", loss=kind)
    monkeypatch.setattr(reference, "BLOCK_NUMBERS", 2 * 3 * 4)  # two steps, and one at the end
    found = [
        (name, np.shape(array)) for name, array in reference.quantities(data, "gru", pass_, "projected", loss=kind)
    ]
    assert [shape[0] for name, shape in found if name == "y"] == [2, 2, 2, 1]
    blocks = reference.run(data, "gru", pass_, "projected", loss=kind)
    assert whole.keys() == blocks.keys()
    for name, array in whole.items():
        np.testing.assert_allclose(blocks[name], array, rtol=1e-12, atol=1e-15, err_msg=name)


@pytest.mark.parametrize(("steps", "batch"), [(9, 4), (5, 1), (1, 6), (3, 2)])
@pytest.mark.parametrize("sum_", ["outers", "columns", "totals"])
def test_the_deviation_of_a_sum_is_the_same_in_blocks_of_steps(sum_, steps, batch):
    """Also where rows repeat, and where the terms of one step are a thousand times those of another."""
    random = np.random.default_rng(0)
    arrays = [np.abs(random.normal(1, 1, (steps, batch, size))) for size in ((6, 5) if sum_ == "outers" else (5,))]
    for array in arrays:
        array[-1] *= 1000
        array[: steps // 2] = array[0]
    deviations = []
    for size in (steps, 2, 1):
        sizes = rounding.Sizes()
        queue, _ = sizes.follow()
        total = getattr(sizes, sum_)(steps)
        for start in range(0, steps, size):
            total.add(*(array[start : start + size] for array in arrays))
        total.value()
        deviations.append(queue.popleft())
        assert not queue
    for others in deviations[1:]:
        np.testing.assert_allclose(others, deviations[0], rtol=1e-6)
