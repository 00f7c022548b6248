"""Bad input: one clear sentence, exit status 2, nothing done."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from harness import cli, weights
from harness.refused import Refused
from harness.study import NAMED, SCALES, Study, Workload, load, workload
from tests.conftest import SMALL


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("bok", "did you mean book"),
        ("B=0,T=1,I=1,H=1,O=1", "greater than or equal to 1"),
        ("B=-1,T=1,I=1,H=1,O=1", "not a whole number"),
        ("B=1,T=1,I=1,H=1", "lacks O"),
        ("B=1,B=1,T=1,I=1,H=1,O=1", "twice"),
        ("B=1,T=1,I=1,H=1,O=1,cell=rnn_tan", "did you mean rnn_tanh"),
        ("B=65536,T=65536,I=1,H=1,O=1", "4 GiB"),
        ("B=1,T=1,I=1,H=1,Q=1", "unknown size"),
    ],
)
def test_workloads_that_can_not_be(text, why):
    with pytest.raises(Refused, match=why):
        load(None, None, {"workloads": [text]})


def test_sizes_make_a_workload():
    found = workload("B=7,T=300,I=2,H=64,O=1")
    assert (found.B, found.T, found.I, found.H, found.O, found.cell) == (7, 300, 2, 64, 1, "rnn_tanh")
    assert workload("book") == NAMED["book"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("BTIHO=,0123456789-. cel_rntahu"), max_size=40))
def test_any_text_is_a_workload_or_a_sentence(text):
    try:
        said = load(None, None, {"workloads": [text]}).workloads[0]
    except Refused as refused:
        said = str(refused)
    assert isinstance(said, Workload) or "\n" not in said.strip()


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        ("framework = ['tf']", "unknown key"),
        ('"a\\nb" = 1', r"a\\nb: unknown key"),
        ("processes = '3'", "valid integer"),
        ("processes = 0", "greater than or equal to 1"),
        ("projections = ['in_lop']", "did you mean in_loop"),
        ("passes = []", "empty"),
        ("passes = ['train', 'train']", "twice"),
        ("label = 'slow'", "label must be one of"),
        ("= 3", "not TOML"),
    ],
)
def test_study_files_that_can_not_be(toml, why, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(toml)
    with pytest.raises(Refused, match=why):
        load(path, None, {})


def test_flags_override_the_file_and_the_file_overrides_the_scale(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("processes = 4\nrounds = 9\nworkloads = ['book', 'B=1,T=2,I=3,H=4,O=5']\n")
    study = load(path, "quick", {"rounds": 8})
    assert (study.processes, study.rounds, study.budget_s) == (4, 8, SCALES["quick"]["budget_s"])
    assert [w.T for w in study.workloads] == [20, 2]
    assert Study(sweep="book") == load(None, None, {})


def bad_files(folder):
    """Name -> (file, what is said of it)."""
    good = weights.make_weights(SMALL, 1)
    arrays = {
        "name": ({**good, "w": good["b_out"]}, "must hold"),
        "shape": ({**good, "w_in": good["w_in"].T.copy()}, "has shape"),
        "dtype": ({**good, "w_in": good["w_in"].astype(np.float64)}, "must be float32"),
        "nan": ({**good, "b_out": good["b_out"] * np.float32("nan")}, "not finite"),
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
    yield folder / "absent", "can not be read"


def test_weights_that_can_not_be_used(tmp_path):
    for path, why in bad_files(tmp_path):
        with pytest.raises(Refused, match=why):
            weights.read(path, weights.WEIGHTS, SMALL)


def test_made_weights_and_inputs_are_seeded_and_can_be_read_back(tmp_path):
    first = weights.files(SMALL, 3, None, None)
    weights.store(tmp_path, first)
    own = [str(tmp_path / f"small.{kind}.safetensors") for kind in ("weights", "inputs")]
    assert weights.hashes(weights.files(SMALL, 4, *own)) == weights.hashes(first)
    assert weights.hashes(weights.files(SMALL, 4, None, None)) != weights.hashes(first)


def test_book_is_the_chapters_series():
    inputs = weights.make_inputs(NAMED["book"], 5)
    x, target = inputs["x"][..., 0], inputs["target"][..., 0]
    np.testing.assert_array_equal(x[1:], target[:-1])
    t = np.linspace(0, 30, 300_001)
    series = t * np.sin(t) / 3 + 2 * np.sin(5 * t)
    assert all(np.min(np.abs(series - value)) < 1e-2 for value in x[0])


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "--quick", "--rigorous"], "contradict"),
        (["run", "--all", "--framework", "torch"], "--all means everything"),
        (["run", "--threads", "none"], "--threads takes"),
        (["run", "--threads", "1000"], "cores can be used"),
        (["run", "--workload", "bok"], "did you mean book"),
        (["run", "--budget", "-3"], "--budget takes"),
        (["run", "absent.toml"], "can not be read"),
        (["verify", "--precision", "fp16"], "did you mean"),
        (["report", "absent"], "can not be read"),
        (["verify", "--bound", "fp16"], "--bound takes"),
        (["train", "--steps", "0"], "--steps"),
        (["train", "--processes", "0"], "processes"),
        (["train", "--threads", "none"], "--threads takes"),
        (["train", "--threads", "1000"], "cores can be used"),
        (["train", "--framework", "torhc"], "did you mean torch"),
        (["train", "--resume", "--out", "absent"], "no records"),
    ],
)
def test_the_command_line_refuses_in_one_sentence(arguments, why, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    assert left.value.code == 2
    assert len(said.err.strip().splitlines()) == 1
    assert why in said.err


def test_help_names_the_commands():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for name in ("run", "verify", "train", "report", "list"):
        assert name in result.stdout
