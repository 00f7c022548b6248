"""The output check: what it must let through, and what it must catch."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from harness.study import weights
from harness.study.data import cast, probe_data
from harness.study.study import Workload
from harness.verify import output_check, tolerance
from impls import reference
from impls.interface import CELLS, LOSSES, Data, Weights
from impls.rounding import ROUNDINGS
from impls.sums import repetition
from tests.conftest import data_of
from tests.library import ORDERS, Library

SHAPES = [(1, 1, 1, 1, 1), (1, 37, 3, 17, 5), (8, 6, 31, 65, 33), (50, 8, 1, 30, 1), (3, 2, 2, 1, 700)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_any_order_of_summation_passes_and_lower_precision_does_not(shape, cell, tmp_path):
    """Sums in every order, and a tanh that is two units off, are within the bounds; inputs in bfloat16 are not."""
    workload = Workload(name="w", **dict(zip("BTIHO", shape, strict=True)), cell=cell)
    data = data_of(workload)
    weights.write_files(tmp_path, weights.workload_files(workload, 1, None, None))
    check = output_check.OutputCheck(tmp_path)
    for order in ORDERS:
        found = verdict(tmp_path, workload, data, Library(order), check)
        assert found.status == "ok", (order, found.reason)
    low = cast(cast(data, ml_dtypes.bfloat16), "float32")
    assert verdict(tmp_path, workload, low, reference.Exact()).status == "wrong"


def verdict(folder, workload, given, how, check=None):
    """Of what a library makes of some data, held to those that lie in the folder."""
    outputs = {}
    for moment, data in (("before", probe_data(given)), ("after", given)):
        for name, a in reference.run(data, workload.cell, "train", "projected", how).items():
            outputs[f"unrolled_batched/{moment}/{name}"] = np.asarray(a, np.float32)
    saved = folder / "saved.safetensors"
    save_file(outputs, saved)
    check = check or output_check.OutputCheck(folder)
    return check.check(saved, workload, workload.T, "train", "fp32").arms["unrolled_batched"]


def stored(folder, workload, data):
    """Data of a user's, stored as a run stores them."""
    weights.write_files(folder, {f"{workload.name}.weights.safetensors": save(data.weights._asdict())})
    weights.write_files(folder, {f"{workload.name}.inputs.safetensors": save({"x": data.x, "target": data.target})})
    return data


def made(change):
    """Inputs of a kind: a function of the data of a workload."""
    return pytest.param(change, id=change.__name__)


def zeros(d):
    return d._replace(x=0 * d.x)


def constant(d):
    return d._replace(x=0 * d.x + np.float32(0.3), target=0 * d.target + np.float32(0.7))


def smooth(d):
    t = np.linspace(0, 3, d.x.shape[0] * d.x.shape[1], dtype=np.float32).reshape(*d.x.shape[:2], 1)
    return d._replace(x=0 * d.x + np.sin(t), target=0 * d.target + np.cos(t))


def all_alike(d):
    w = d.weights
    alike = Weights(*(0 * a + np.float32(0.1 / len(np.atleast_2d(a))) for a in w))
    return constant(d)._replace(weights=alike)


def without_biases(d):
    w = d.weights._replace(b_rec=0 * d.weights.b_rec, b_out=0 * d.weights.b_out)
    return d._replace(weights=w, x=np.where(np.arange(d.x.shape[1])[:, None] % 2, d.x, 0))


def saturated(d):
    return d._replace(x=30 * d.x)


def tiny(d):
    return d._replace(x=np.float32(1e-30) * d.x)


def of_many_sizes(d):
    return d._replace(x=d.x * np.logspace(-12, 6, d.x.shape[2], dtype=np.float32))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "change",
    [made(f) for f in (zeros, constant, smooth, all_alike, without_biases, saturated, tiny, of_many_sizes)],
)
def test_right_programs_pass_whatever_their_inputs(change, cell, tmp_path):
    workload = Workload(name="w", B=40, T=12, I=5, H=24, O=6, cell=cell)
    data = stored(tmp_path, workload, change(data_of(workload)))
    check = output_check.OutputCheck(tmp_path)
    for order in ("forwards", "pairwise"):
        found = verdict(tmp_path, workload, data, Library(order), check)
        assert found.status == "ok", (order, found.reason)
    w = data.weights
    wrong = data._replace(weights=w._replace(b_out=w.b_out + np.float32(1e-3), w_out=np.float32(1.001) * w.w_out))
    assert verdict(tmp_path, workload, wrong, reference.Exact()).status == "wrong"


@pytest.mark.parametrize("change", [lambda d: d, smooth, constant], ids=["normal", "smooth", "constant"])
def test_long_sums_pass_in_every_order_and_tf32_does_not(change, tmp_path):
    """Gradients of the weights are sums of T*B terms."""
    workload = Workload(name="w", B=500, T=40, I=1, H=2, O=3, cell="rnn_tanh")
    data = stored(tmp_path, workload, change(data_of(workload)))
    check = output_check.OutputCheck(tmp_path)
    for order in ORDERS:
        found = verdict(tmp_path, workload, data, Library(order), check)
        assert found.status == "ok", (order, found.reason)
    rounded = Data(Weights(*map(tf32, data.weights)), tf32(data.x), data.target)
    assert verdict(tmp_path, workload, rounded, Library("forwards")).status == "wrong"


def test_tf32_is_caught_at_every_depth():
    """Products whose inputs are rounded to TF32's 10 bits, against the bound, for K from 32 to 4096."""
    for size in (32, 256, 1024, 4096):
        random = np.random.default_rng(size)
        h, w_out = (random.standard_normal(shape) for shape in ((1, 8, size), (size, 8)))
        w = Weights(np.ones((1, size)), np.zeros((size, size)), np.zeros(size), w_out, np.zeros(8))
        data = cast(cast(Data(w, h, np.zeros((1, 8, 8))), "float32"), "float64")
        workload = Workload(name="w", B=8, T=1, I=1, H=size, O=8)
        true, deviations = tolerance.reference_with_deviations(data, workload, "forward", "given", ROUNDINGS["fp32"])
        bound = tolerance.bound_of(true["y"], deviations["y"])
        h, w_out = data.x.astype("float32"), data.weights.w_out.astype("float32")
        for order in ORDERS:
            assert output_check.excess(Library(order).product(h, w_out), bound).ok
        assert not output_check.excess(tf32(h) @ tf32(w_out), bound).ok


def test_terms_that_repeat_are_counted():
    random = np.random.default_rng(1)
    a, b = random.standard_normal((60, 3)), random.standard_normal((60, 2))
    assert repetition(a, b) == 1
    assert repetition(np.tile(a[:6], (10, 1)), b) == 1
    assert repetition(np.tile(a[:6], (10, 1)), np.tile(b[:6], (10, 1))) == 10
    assert repetition(0 * a, b) == 1
    assert repetition(np.where(np.arange(60)[:, None] < 50, 0, a), b) == 1


def tf32(a):
    bits = a.view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def bound(true, deviation=1e-7):
    return tolerance.bound_of(np.asarray(true, float), np.full(np.shape(true), deviation))


@pytest.mark.parametrize("output", [np.array([1, np.nan], np.float32), np.array([1, np.inf], np.float32)])
def test_outputs_that_are_not_finite_are_infinitely_wrong(output):
    assert output_check.excess(output, bound([1.0, 2.0]))[:2] == (float("inf"), float("inf"))
    assert output_check.excess(np.array([1, 2], np.float32), bound([1.0, 2.0])).ok


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (None, "y is missing"),
        (np.zeros((2, 3), np.float32), "y has shape [2, 3], not [2]"),
        (np.array([1, np.nan], np.float32), "y holds numbers that are not finite"),
        (np.array([1, 2.001], np.float32), "y[1] is 2.00099993 but should be 2 ± 1e-06"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(output, said):
    moments = {"after": {} if output is None else {"y": output}}
    judged = output_check._check_arm(moments, {"after": {"y": bound([1.0, 2.0])}}, {})
    assert (judged.status, judged.reason) == ("wrong", said)


def test_one_wrong_element_is_caught_where_others_may_be_far_larger():
    true, deviations = np.array([1e6, 1.0]), np.array([1e-1, 1e-7])
    assert not output_check.excess(np.array([1e6, 1.001], np.float32), tolerance.bound_of(true, deviations)).ok
    assert output_check.excess(np.array([1e6 + 0.5, 1.0], np.float32), tolerance.bound_of(true, deviations)).ok


def test_a_zero_truth_wants_exact_zeros():
    assert output_check.excess(np.zeros(3, np.float32), bound(np.zeros(3), 0.0)).ok
    assert not output_check.excess(np.array([0, 1e-30, 0], np.float32), bound(np.zeros(3), 0.0)).ok


def test_bounds_that_are_not_finite_hold_nothing():
    assert not output_check.within_bounds([0.0, 0.0], (float("inf"), 1.0))
    assert not output_check.within_bounds([0.0, 0.0], (1.0, float("nan")))


def test_ulp_distance_counts_representable_numbers():
    one = np.float32(1)
    assert output_check.max_ulp(np.array([one]), np.array([np.nextafter(one, np.float32(2))])) == 1
    assert output_check.max_ulp(np.array([1e-45], np.float32), np.array([-1e-45], np.float32)) == 3  # -0 counts
    assert output_check.max_ulp(np.array([1.0]), np.array([np.nextafter(1.0, 0)])) == 1
    assert output_check.max_ulp(np.array([1.0]), np.array([np.nan])) == -1


def relu_growing(d):
    return d._replace(weights=d.weights._replace(w_rec=1000 * np.eye(len(d.weights.w_rec), dtype=np.float32)))


def of_target(size):
    return lambda d: d._replace(target=0 * d.target + np.float32(size))


def of_x(size):
    return lambda d: d._replace(x=0 * d.x + np.float32(size))


@pytest.mark.parametrize(
    ("change", "cell", "pass_", "precision", "said"),
    [
        (
            relu_growing,
            "rnn_relu",
            "forward",
            "fp32",
            "h overflows in fp32 at step 14 of 40: it reaches 1.1e+39",
        ),
        (relu_growing, "rnn_relu", "train", "bf16", "h overflows in bf16 at step 14 of 40"),
        (relu_growing, "rnn_relu", "forward", "fp64", None),
        (relu_growing, "rnn_tanh", "train", "fp32", None),
        (of_target(1e25), "rnn_tanh", "train", "fp32", "the sum of the squared errors overflows in fp32"),
        (of_target(1e25), "rnn_tanh", "forward", "fp32", None),
        (of_target(1e18), "rnn_tanh", "train", "fp32", None),
        (of_x(3e38), "lstm", "forward", "fp32", "the products of x with weights may reach"),
        (of_x(1e30), "lstm", "forward", "fp32", None),
    ],
)
def test_what_overflows_is_named_with_its_step(change, cell, pass_, precision, said):
    workload = Workload(name="w", B=2, T=40, I=3, H=5, O=4, cell=cell)
    data = cast(change(data_of(workload)), "float64")
    found = tolerance.overflow_reason(data, workload, pass_, "projected", precision)
    assert found is None if said is None else found.startswith(said)


def test_a_growth_that_fp64_does_not_hold_either():
    workload = Workload(name="w", B=2, T=120, I=3, H=5, O=4, cell="rnn_relu")
    data = cast(relu_growing(data_of(workload)), "float64")
    found = tolerance.overflow_reason(data, workload, "forward", "none", "fp64")
    assert found == "h overflows in fp64 at step 104 of 120: it reaches beyond what fp64 holds; fp64 ends at 1.8e+308"


def flushed_away(d):
    return d._replace(x=np.float32(3e-39) * d.x, weights=d.weights._replace(b_rec=0 * d.weights.b_rec))


def test_a_program_that_flushes_denormals_is_wrong_with_the_reason(tmp_path):
    workload = Workload(name="w", B=3, T=2, I=2, H=5, O=4, cell="rnn_tanh")
    data = stored(tmp_path, workload, flushed_away(data_of(workload)))
    assert verdict(tmp_path, workload, data, Library("forwards")).status == "ok"
    flushing = verdict(tmp_path, workload, data, output_check.FlushToZero())
    assert flushing.status == "wrong"
    assert flushing.reason.endswith(output_check.FLUSHED)
    other = data._replace(weights=data.weights._replace(b_out=0 * data.weights.b_out))
    assert verdict(tmp_path, workload, other, reference.Exact()).reason.endswith(output_check.DENORMALS)
    ordinary = stored(tmp_path, workload, data_of(workload))
    assert verdict(tmp_path, workload, ordinary, output_check.FlushToZero()).status == "ok"


def test_what_rounding_alone_decides_is_refused(tmp_path):
    """Chaos: after 120 steps of a steep recurrence an error of rounding is as large as the states."""
    workload = Workload(name="w", B=1, T=120, I=1, H=20, O=2, cell="rnn_tanh")
    data = data_of(workload)
    data = stored(tmp_path, workload, data._replace(weights=data.weights._replace(w_rec=3 * data.weights.w_rec)))
    judged = verdict(tmp_path, workload, data, reference.Exact())
    assert judged == output_check.ArmCheck("refused", output_check.VACUOUS, {})


def test_bounds_are_those_of_the_inputs_that_were_given(tmp_path):
    """Zeros have other bounds than the probe, whose inputs are not zero; and a relu dead on one is not dead on both."""
    for seed, change in ((1, zeros), (3, lambda d: d)):
        workload = Workload(name="w", B=1, T=2, I=1, H=1, O=1, cell="rnn_relu")
        data = stored(tmp_path, workload, change(data_of(workload, seed=seed)))
        assert verdict(tmp_path, workload, data, Library("forwards")).status == "ok"
        low = cast(cast(data, ml_dtypes.bfloat16), "float32")
        assert verdict(tmp_path, workload, low, reference.Exact()).status == "wrong"


def test_numbers_whose_squares_no_float64_holds_have_bounds(tmp_path):
    workload = Workload(name="w", B=2, T=60, I=3, H=5, O=4, cell="rnn_relu")
    data = stored(tmp_path, workload, relu_growing(data_of(workload)))
    outputs = {}
    exact = cast(data, "float64")
    for moment, given in (("before", probe_data(exact)), ("after", exact)):
        y = reference.run(given, "rnn_relu", "forward", "projected")["y"]
        outputs[f"unrolled_batched/{moment}/y"] = y
        outputs[f"unrolled_in_loop/{moment}/y"] = 1.001 * y
    assert np.abs(y).max() > 1e170
    save_file(outputs, tmp_path / "saved.safetensors")
    saved = tmp_path / "saved.safetensors"
    judged = output_check.OutputCheck(tmp_path).check(saved, workload, 60, "forward", "fp64").arms
    assert [judged[f"unrolled_{form}"].status for form in ("batched", "in_loop")] == ["ok", "wrong"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_bound_that_is_not_finite_is_a_sentence(moment):
    expected = {name: {"y": bound([1.0, 2.0])} for name in ("before", "after")}
    expected[moment] = {"y": bound([1.0, 2.0], np.inf)}
    output = {"y": np.array([1, 2], np.float32)}
    judged = output_check._check_arm({"before": output, "after": output}, expected, {})
    assert judged.status == ("refused" if moment == "after" else "wrong")
    assert judged.reason


def test_bounds_are_kept_as_long_as_there_is_room(tmp_path, monkeypatch):
    workload = Workload(name="w", B=4, T=5, I=3, H=8, O=3, cell="rnn_tanh")
    weights.write_files(tmp_path, weights.workload_files(workload, 1, None, None))
    places = [(workload, 5, pass_, "fp32", "projected", None, "after") for pass_ in ("forward", "train")]
    for room, asked_anew in ((10**9, 2), (1, 3)):
        monkeypatch.setattr(output_check, "KEPT_BYTES", room)
        check, asked = output_check.OutputCheck(tmp_path), []
        expected = check._expected
        monkeypatch.setattr(
            check, "_expected", lambda *place, asked=asked, expected=expected: asked.append(place) or expected(*place)
        )
        for place in (places[0], places[0], places[1], places[0]):
            check.expected(*place)
        assert len(asked) == asked_anew


LARGE = Workload(name="w", B=6, T=4, I=3, H=8, O=5, cell="lstm")
PER_SEQUENCE = 4 * (32 * 60 + 5 * 80)  # bytes of the oracle, forward


def forward_outputs(folder, broken_sequences):
    """What a program saved that is wrong in some sequences of its batch, in one element each."""
    weights.write_files(folder, weights.workload_files(LARGE, 1, None, None))
    data, outputs = cast(data_of(LARGE), "float64"), {}
    for moment, given in (("before", probe_data(data)), ("after", data)):
        y = np.asarray(reference.run(given, LARGE.cell, "forward", "projected")["y"], np.float32)
        outputs[f"unrolled_batched/{moment}/y"] = y
        outputs[f"unrolled_in_loop/{moment}/y"] = y.copy()
        outputs[f"unrolled_in_loop/{moment}/y"][2, list(broken_sequences), 1] += 1
    save_file(outputs, folder / "saved.safetensors")
    return folder / "saved.safetensors"


def test_a_forward_pass_too_large_for_the_oracle_is_checked_on_sequences_drawn_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tolerance, "SAMPLED_BYTES", 2.5 * PER_SEQUENCE)
    saved = forward_outputs(tmp_path, [3])
    drawn, verdicts = set(), set()
    for _ in range(40):
        judged = output_check.OutputCheck(tmp_path).check(saved, LARGE, 4, "forward", "fp32")
        arm = judged.arms["unrolled_in_loop"]
        assert len(judged.sequences) == 2
        assert judged.arms["unrolled_batched"].status == "ok"
        assert arm.status == ("wrong" if 3 in judged.sequences else "ok")
        assert arm.status == "ok" or arm.reason.startswith("y[2, 3, 1] is ")
        assert arm.quantities["y"].is_bitwise_batched is False  # which is compared whole
        drawn.add(judged.sequences)
        verdicts.add(arm.status)
    assert len(drawn) > 5
    assert verdicts == {"ok", "wrong"}


def test_what_fits_is_checked_whole_and_so_is_every_training_and_every_wrong_shape(tmp_path, monkeypatch):
    saved = forward_outputs(tmp_path, [])
    assert output_check.OutputCheck(tmp_path).check(saved, LARGE, 4, "forward", "fp32").sequences is None
    monkeypatch.setattr(tolerance, "SAMPLED_BYTES", 1)
    assert output_check.draw_sequences(LARGE, "train") is None
    assert len(output_check.draw_sequences(LARGE, "forward")) == 1
    outputs = {name: array[:, :5] for name, array in load_file(saved).items()}
    save_file(outputs, saved)
    judged = output_check.OutputCheck(tmp_path).check(saved, LARGE, 4, "forward", "fp32").arms["unrolled_batched"]
    assert (judged.status, judged.reason[:28]) == ("wrong", "y has shape [4, 5, 5], not [")


def test_the_oracle_s_memory_is_that_of_what_is_checked(monkeypatch):
    inputs = 12 * 4 * 6 * (3 + 5)
    assert tolerance.oracle_memory_bytes(LARGE, "forward") == inputs + 6 * PER_SEQUENCE
    monkeypatch.setattr(tolerance, "SAMPLED_BYTES", 2.5 * PER_SEQUENCE)
    assert tolerance.oracle_memory_bytes(LARGE, "forward") == inputs + 2 * PER_SEQUENCE


@pytest.mark.parametrize("pass_", ["loss", "train"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_never_holds_all_outputs_at_once(pass_, loss, monkeypatch):
    """And the oracle takes no more than it says, and not much less."""
    monkeypatch.setattr(reference, "BLOCK_NUMBERS", 2**16)
    monkeypatch.setattr(tolerance, "RUN_NUMBERS", 1)
    workload = Workload(name="w", B=16, T=160, I=4, H=8, O=500, cell="rnn_tanh", loss=loss)
    data = data_of(workload, "float64")
    tracemalloc.start()
    try:
        tolerance.reference_with_deviations(data, workload, pass_, "projected", ROUNDINGS["fp32"])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    said_bytes = tolerance.oracle_memory_bytes(workload, pass_)
    assert said_bytes / 3 < peak_bytes < said_bytes
    runs, at_once = tolerance.noise_runs(workload, workload.T, workload.B, reference.output_names(pass_, "projected"))
    assert runs == at_once == 5
    assert peak_bytes < 8 * 160 * 16 * 500 * runs / 1.5  # the outputs of all runs
