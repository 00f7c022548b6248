"""Each precision's bounds let its own roundings through and no coarser ones, and say which cells can have it."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.cli import verify
from harness.study import matrix, weights
from harness.study.data import cast, probe_data
from harness.study.matrix import Framework
from harness.study.study import Study, Workload
from harness.verify import output_check
from impls import reference, rounding
from impls.interface import NO_TF32
from tests.conftest import data_of
from tests.impls.test_frameworks import ODD
from tests.made import execution

COARSER = {"fp32": "tf32", "tf32": "bf16", "bf16": "fp8"}
ROUNDINGS = rounding.ROUNDINGS | {"fp8": rounding.Rounding(2.0**-3)}  # three bits after the point, as in E4M3
WORKLOADS = [
    Workload(name="w", B=4, T=10, I=3, H=257, O=9, cell="rnn_tanh"),
    Workload(name="w", B=16, T=5, I=31, H=64, O=1, cell="lstm"),
]


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("precision", COARSER)
def test_a_precisions_own_roundings_pass_and_the_next_coarser_do_not(precision, workload, tmp_path):
    weights.write_files(tmp_path, weights.workload_files(workload, 1, None, None))
    for how, ok in ((precision, True), (COARSER[precision], False)):
        judged = verdict(tmp_path, workload, precision, ROUNDINGS[how])
        assert (judged.reason == "") == ok, (how, judged.reason)


def rounded(data, cell, how):
    """Outputs of the oracle with random roundings, as float32."""
    data, sizes = cast(data, "float64"), rounding.Sizes(how)
    noise = rounding.Noise(20, sizes)
    reference.run(data, cell, "train", "projected", sizes)
    made = reference.run(noise.data(data), cell, "train", "projected", noise)
    return {name: np.array(array[0], np.float32) for name, array in made.items()}


def verdict(folder, workload, precision, how, bound=None):
    """Of outputs that the oracle rounded as it was told, judged as a precision's."""
    check = output_check.OutputCheck(folder, bound)
    outputs = {}
    for moment in ("before", "after"):
        data = check._data(workload, workload.T, precision, "projected", None, moment)
        outputs |= {
            f"unrolled_batched/{moment}/{name}": array for name, array in rounded(data, workload.cell, how).items()
        }
    save_file(outputs, folder / "saved.safetensors")
    found = check.check(folder / "saved.safetensors", workload, workload.T, "train", precision)
    return found.arms["unrolled_batched"]


def test_as_shipped_may_be_tf32_and_is_found_out_when_held_to_fp32(tmp_path):
    weights.write_files(tmp_path, weights.workload_files(WORKLOADS[0], 1, None, None))
    tf32 = rounding.ROUNDINGS["tf32"]
    assert not verdict(tmp_path, WORKLOADS[0], "as_shipped", tf32).reason
    assert verdict(tmp_path, WORKLOADS[0], "as_shipped", tf32, "fp32").reason
    assert verdict(tmp_path, WORKLOADS[0], "tf32", tf32, "fp32").reason


def test_bfloat16_is_rounded_to_the_nearest_ties_to_even():
    a = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    a[:3] = 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0
    bits = a.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded_bits = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    assert np.array_equal(reference.in_bfloat16(a), rounded_bits.view(np.float32))


def test_the_judge_sees_bfloat16s_inputs_as_a_backend_puts_them(tmp_path):
    workload = WORKLOADS[0]
    weights.write_files(tmp_path, weights.workload_files(workload, 1, None, None))
    data = output_check.OutputCheck(tmp_path)._data(workload, workload.T, "bf16", "projected", None, "before")
    whole = probe_data(cast(data_of(workload), "float32"))
    assert not np.array_equal(data.x, whole.x)
    assert np.array_equal(data.x, reference.in_bfloat16(whole.x))


def test_ulp_of_bfloat16_are_its_own(tmp_path):
    workload = WORKLOADS[0]
    weights.write_files(tmp_path, weights.workload_files(workload, 1, None, None))
    check = output_check.OutputCheck(tmp_path)
    outputs = {}
    for moment in ("before", "after"):
        data = check._data(workload, workload.T, "bf16", "projected", None, moment)
        (y,) = reference.run(data, workload.cell, "forward", "projected").values()
        y = reference.in_bfloat16(y)
        outputs |= {f"unrolled_batched/{moment}/y": y, f"unrolled_in_loop/{moment}/y": next_bfloat16(y)}
    save_file(outputs, tmp_path / "saved.safetensors")
    found = check.check(tmp_path / "saved.safetensors", workload, workload.T, "forward", "bf16").arms
    assert found["unrolled_in_loop"].quantities["y"][2:] == (False, 1)


def next_bfloat16(a):
    return (a.view(np.uint32) + np.uint32(output_check.BFLOAT16)).view(np.float32)


def test_cells_that_a_precision_or_device_can_not_have_say_why():
    executions = {
        "eager": execution(),
        "graphs": execution(without={"cpu": "graphs are a GPU's"}),
        "old": execution(without={"bf16": "too old"}),
    }
    made = Framework("made", executions=executions, devices={"cpu": None, "gpu": None})
    study = Study(precisions=["fp32", "tf32", "bf16"], projections=["batched"], recurrences=["unrolled"])
    found = matrix.make_plan(study, [made], [1])
    reasons = {
        (c.configuration.execution, c.configuration.device, c.configuration.precision): why for c, *why in found.absent
    }
    assert reasons == {
        ("eager", "cpu", "tf32"): ["impossible", NO_TF32],
        ("graphs", "cpu", "fp32"): ["unavailable", "graphs are a GPU's"],
        ("graphs", "cpu", "tf32"): ["impossible", NO_TF32],
        ("graphs", "cpu", "bf16"): ["unavailable", "graphs are a GPU's"],
        ("old", "cpu", "tf32"): ["impossible", NO_TF32],
        ("old", "cpu", "bf16"): ["unavailable", "too old"],
        ("old", "gpu", "bf16"): ["unavailable", "too old"],
    }


@pytest.mark.timeout(300)
def test_every_framework_computes_in_bfloat16_and_as_shipped(framework, harness, monkeypatch):
    """Eagerly, every arm; and what is bfloat16 does not pass for fp32."""
    held_to_fp32 = {}

    class Twice(output_check.OutputCheck):
        def check(self, saved, workload, steps, pass_, precision):
            if precision == "bf16":
                strict = output_check.OutputCheck(self.folder, "fp32")
                held_to_fp32[pass_] = strict.check(saved, workload, steps, pass_, precision).arms
            return super().check(saved, workload, steps, pass_, precision)

    monkeypatch.setattr(verify, "OutputCheck", Twice)
    arguments = ["--framework", framework, "--execution", "eager", "--workload", ODD]
    done = harness("verify", *arguments, "--precision", "bf16,as_shipped")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {pass_: arms["unrolled_in_loop"].status for pass_, arms in held_to_fp32.items()} == {
        "forward": "wrong", "train": "wrong"
    }  # fmt: skip


def test_the_listing_names_what_no_gpu_and_no_graph_can_have(monkeypatch, capsys):
    """Made up, but for how it is said."""
    graphs = execution(traced=True, without={"cpu": "graphs are a GPU's"})
    executions = {"eager": execution(traced=True, without={"scan": "no loop"}), "graphs": graphs}
    devices = {"cpu": None, "gpu": "made sees no GPU"}
    made = Framework("made", versions={"made": "1"}, executions=executions, devices=devices)
    monkeypatch.setattr(verify.session, "probe", lambda study, threads: [made])
    verify.listing()
    said = capsys.readouterr().out.splitlines()
    notes = [line for line in said if line.startswith("made ")]
    assert notes == [
        "made cpu eager scan: no loop",
        "made cpu graphs: graphs are a GPU's",
        "made gpu eager: made sees no GPU",
        "made gpu graphs: made sees no GPU",
    ]
    cells = [[cell.strip() for cell in line.split("│")[4:9]] for line in said if "│ made" in line]
    assert cells[1] == ["graphs", "no", "no", "no", "no"]
