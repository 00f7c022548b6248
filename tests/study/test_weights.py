"""Weights and inputs: seeded, read back, and the chapter's series."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.errors import UsageError
from harness.run import session
from harness.study import weights
from harness.study.study import (
    NAMED,
    Study,
)
from tests.conftest import SMALL


@pytest.mark.parametrize("changed", [{"I": 3}, {"T": 400}, {"T": 300}, {"O": 2}, {"B": 1}])
def test_only_the_books_own_sizes_have_the_chapters_series(changed):
    other = NAMED["book"].model_copy(update=changed)
    inputs = weights.make_inputs(other, 1)
    assert {name: array.shape for name, array in inputs.items()} == {name: other.shapes[name] for name in inputs}


def bad_files(folder):
    """Name -> (file, what is said of it)."""
    good = weights.make_weights(SMALL, 1)
    arrays = {
        "name": ({**good, "w": good["b_out"]}, "must hold"),
        "shape": ({**good, "w_in": good["w_in"].T.copy()}, "has shape"),
        "dtype": ({**good, "w_in": good["w_in"].astype(np.float64)}, "must be float32"),
        "nan": ({**good, "b_out": good["b_out"] * np.float32("nan")}, "not finite"),
        "inf": ({**good, "b_out": good["b_out"] * np.float32("inf")}, "not finite"),
        "half": ({**good, "w_in": good["w_in"].astype(np.float16)}, "w_in is float16, but must be float32"),
        "ints": ({**good, "w_in": good["w_in"].astype(np.int64)}, "w_in is int64, but must be float32"),
        "fewer": ({name: array for name, array in good.items() if name != "w_in"}, "lacks w_in, but must hold"),
        "others": (
            {f"layer.{at}": good["b_out"] for at in range(500)},
            "lacks w_in, .* and also holds 'layer.0', .*, ",
        ),
        "none": ({}, "lacks w_in"),
    }
    for name, (content, why) in arrays.items():
        save_file(content, folder / name)
        yield folder / name, why
    whole = (folder / "nan").read_bytes()
    huge = struct.pack("<Q", 1 << 62) + b"{}"
    lie = json.dumps({"w_in": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}).encode()
    others = {
        "cut": whole[:-10],
        "text": b"hello",
        "empty": b"",
        "huge": huge,
        "lie": struct.pack("<Q", len(lie)) + lie,
    }
    for name, content in others.items():
        (folder / name).write_bytes(content)
        yield folder / name, "not a safetensors file"
    for dtype, size, called in (("BF16", 2, "bfloat16"), ("F8_E4M3", 1, "F8_E4M3"), ("BOOL", 1, "BOOL")):
        (folder / dtype).write_bytes(raw(good, dtype, size))
        yield folder / dtype, f"is {called}, but must be float32"
    (folder / "folder").mkdir()
    yield folder / "folder", "is a folder, not a safetensors file"
    os.mkfifo(folder / "pipe")
    yield folder / "pipe", "is no regular file"
    yield Path("/dev/null"), "is no regular file"
    yield folder / "absent", "cannot be read: there is no such file"
    yield folder / "folder" / "absent", "cannot be read: there is no such file"
    yield folder / "text" / "absent", "cannot be read: "
    yield Path("a\0b"), "cannot be read: there is no such file"


def raw(arrays, dtype, size):
    """A safetensors file of as many numbers as the arrays have, of a type of `size` bytes that NumPy has not."""
    header, at = {}, 0
    for name, array in arrays.items():
        end = at + size * array.size
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(at)


def test_weights_that_can_not_be_used(tmp_path):
    for path, why in bad_files(tmp_path):
        with pytest.raises(UsageError, match=why) as refused:
            weights.read_arrays(path, weights.WEIGHTS, SMALL)
        assert len(str(refused.value)) < 300 + len(str(path))


def test_weights_of_one_workload_are_not_anothers(tmp_path):
    weights.write_files(tmp_path, weights.workload_files(SMALL, 1, None, None))
    other = SMALL.model_copy(update={"name": "other", "H": 9})
    study = Study(workloads=[SMALL, other], weights=str(tmp_path / "small.weights.safetensors"))
    with pytest.raises(UsageError, match="but workload other needs"):
        session.prepare_files(study)


def test_made_weights_and_inputs_are_seeded_and_can_be_read_back(tmp_path):
    first = weights.workload_files(SMALL, 3, None, None)
    weights.write_files(tmp_path, first)
    own = [str(tmp_path / f"small.{kind}.safetensors") for kind in ("weights", "inputs")]
    assert weights.file_hashes(weights.workload_files(SMALL, 4, *own)) == weights.file_hashes(first)
    assert weights.file_hashes(weights.workload_files(SMALL, 4, None, None)) != weights.file_hashes(first)


def test_book_is_the_chapters_series():
    inputs = weights.make_inputs(NAMED["book"], 5)
    x, target = inputs["x"][..., 0], inputs["target"][..., 0]
    np.testing.assert_array_equal(x[1:], target[:-1])
    t = np.linspace(0, 30, 300_001)
    series = t * np.sin(t) / 3 + 2 * np.sin(5 * t)
    assert all(np.min(np.abs(series - value)) < 1e-2 for value in x[0])
