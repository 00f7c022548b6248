"""Bad input: one clear sentence, exit status 2, nothing done."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from typer.testing import CliRunner

from harness.cli import app as cli
from harness.cli import verify
from harness.errors import UsageError
from harness.run import session
from harness.run.launch import WorkerDied
from harness.study import matrix, weights
from harness.study.study import NAMED, SCALES, Study, Workload, load_study, parse_workload
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
    with pytest.raises(UsageError, match=why):
        load_study(None, None, {"workloads": [text]})


def test_sizes_make_a_workload():
    found = parse_workload("B=7,T=300,I=2,H=64,O=1")
    assert (found.B, found.T, found.I, found.H, found.O, found.cell) == (7, 300, 2, 64, 1, "rnn_tanh")
    assert parse_workload("book") == NAMED["book"]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("BTIHO=,0123456789-. cel_rntahu"), max_size=40))
def test_any_text_is_a_workload_or_a_sentence(text):
    try:
        said = load_study(None, None, {"workloads": [text]}).workloads[0]
    except UsageError as refused:
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
        ("weights = ''", "weights is given with nothing in it"),
        ("inputs = ' '", "inputs is given with nothing in it"),
        ("sweep = ''", "sweep is given with nothing in it"),
        ("frameworks = ['']", "frameworks is given with nothing in it"),
        ("workloads = ['book', '']", "workloads is given with nothing in it"),
        ("threads = ['one']", "threads: takes 'all' and whole numbers"),
        ("threads = [0]", "threads: takes 'all' and whole numbers"),
        ("threads = [true]", "threads: takes 'all' and whole numbers"),
        ("workloads = [{name = 'a', B = 1}]", "workloads.T: Field required"),
        (
            "workloads = [{name = 'a', B = 1.0, T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid integer",
        ),
        (
            "workloads = [{name = 'a', B = true, T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid inte",
        ),
        (
            "workloads = [{name = 'a', B = '1', T = 1, I = 1, H = 1, O = 1}]",
            "workloads.B: Input should be a valid inte",
        ),
        ("workloads = [{name = 'a', B = 70000, T = 1, I = 1, H = 1, O = 1}]", "workloads.B: Input should be less than"),
        (
            "workloads = [{name = 'a', B = 1, T = 1, I = 1, H = 1, O = 1, q = 1}]",
            "unknown key; the keys are name, B, T",
        ),
        ("[[workloads]]\nname = 'a'\n[[workloads]]\nname = 'b'", "workloads.B: Field required"),
        ("[study]\nseed = 1", "study: unknown key"),
        ("seed = 2020-01-01", "seed: Input should be a valid integer"),
        ("seed = " + "9" * 5000, "not TOML: Exceeds the limit"),
        ("seed = " + "[" * 5000, "nested too deeply"),
        ("budget_s = nan", "budget_s: "),
        ("#" * 2_000_000, "no study file: it has more than"),
    ],
)
def test_study_files_that_can_not_be(toml, why, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(toml)
    with pytest.raises(UsageError, match=why):
        load_study(path, None, {})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("processes = 3".encode("utf-16"), "which is UTF-8 text"),
        ("processes = 3".encode("utf-32"), "which is UTF-8 text"),
        (b"a = '\xff'", "which is UTF-8 text"),
        (b"\x00" * 10, "not TOML"),
    ],
)
def test_study_files_of_other_bytes(content, why, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=why):
        load_study(path, None, {})


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfprocesses = 3\n", b"\xef\xbb\xbfprocesses = 3\r\nseed = 1\r\n", b"seed = 1\rprocesses = 3"],
    ids=["byte order mark", "and CRLF", "CR"],
)
def test_study_files_as_other_editors_write_them(content, tmp_path):
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    assert load_study(path, None, {}).processes == 3


def test_a_folder_is_no_study_file(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        load_study(tmp_path, None, {})


def test_no_limit_can_be_written_in_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("budget_s = inf")
    assert load_study(path, None, {}).budget_s is None


def test_a_flag_for_the_scale_overrides_the_files_label(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("label = 'rigorous'")
    assert load_study(path, None, {}).label == "rigorous"
    assert load_study(path, "quick", {}).label == "quick"


def test_flags_override_the_file_and_the_file_overrides_the_scale(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("processes = 4\nrounds = 9\nworkloads = ['book', 'B=1,T=2,I=3,H=4,O=5']\n")
    study = load_study(path, "quick", {"rounds": 8})
    assert (study.processes, study.rounds, study.budget_s) == (4, 8, SCALES["quick"]["budget_s"])
    assert [w.T for w in study.workloads] == [20, 2]
    assert Study(sweep="book") == load_study(None, None, {})


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


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "--quick", "--rigorous"], "contradict"),
        (["run", "--all", "--framework", "torch"], "--all means everything"),
        (["run", "--threads", "none"], "--threads takes"),
        (["run", "--threads", "1000"], "cores can be used"),
        (["run", "--workload", "bok"], "did you mean book"),
        (["run", "--budget", "-3"], "--budget takes"),
        (["run", "absent.toml"], "cannot be read"),
        (["verify", "--precision", "fp16"], "did you mean"),
        (["report", "absent"], "cannot be read"),
        (["verify", "--bound", "fp16"], "--bound takes"),
        (["train", "--steps", "0"], "--steps"),
        (["train", "--processes", "0"], "processes"),
        (["train", "--threads", "none"], "--threads takes"),
        (["train", "--threads", "1000"], "cores can be used"),
        (["train", "--framework", "torhc"], "did you mean torch"),
        (["train", "--resume", "--out", "absent"], "no records"),
        (["run", "--framework", ","], "--framework ',' names nothing beside a comma"),
        (["run", "--framework", "torch,"], "--framework 'torch,' names nothing beside a comma"),
        (["run", "--workload", "book, ,vocab"], "--workload 'book, ,vocab' names nothing beside a comma"),
        (["run", "--threads", "1,,2"], "--threads '1,,2' names nothing beside a comma"),
        (["train", "--framework", "torch,,jax"], "names nothing beside a comma"),
        (["run", "--threads", "9" * 5000], "--threads takes"),
        (["run", "--seed", "9" * 5000], "--seed"),
        (["run", "--sweep", ","], "unknown workload ','"),
        (["run", "."], "cannot be read: Is a directory"),
        (["run", "--timeout", "0"], "timeout_s: Input should be greater than 0"),
        (["run", "--timeout", "nan"], "timeout_s: "),
        (["run", "--timeout", "inf"], "timeout_s: "),
        (["explain", "torch/eager//scan/in_loop"], "has an empty word"),
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


FLAGS = {
    "run": "framework device threads execution recurrence projection pass precision workload processes rounds budget "
    "sweep memory seed timeout unroll-limit weights inputs out",
    "verify": "framework device threads execution recurrence projection pass precision workload seed timeout "
    "unroll-limit weights inputs save-outputs bound out",
    "train": "framework execution threads steps processes seed timeout out",
    "explain": "out",
    "report": "out",
    "selftest": "studies seed out",
}


def test_every_flag_with_a_value_is_tried_with_nothing():
    app = typer.main.get_command(cli.app)
    for name, command in app.commands.items():
        valued = {
            option.removeprefix("--")
            for parameter in command.params
            if not getattr(parameter, "is_flag", True)
            for option in parameter.opts
        }
        assert valued == set(FLAGS.get(name, "").split())


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("command", FLAGS)
def test_a_flag_with_nothing_is_refused_and_nothing_is_done(command, joined, blank, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flag in FLAGS[command].split():
        given = [f"--{flag}={blank}"] if joined else [f"--{flag}", blank]
        monkeypatch.setattr("sys.argv", ["harness", command, *given])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert len(said.splitlines()) == 1
        assert f"--{flag} is given with nothing" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["run", ""], ["report", ""], ["report", "a", ""], ["explain", "", "torch"], [""]]
)
def test_an_argument_with_nothing_is_refused(arguments, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["harness", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 2
    assert "an argument is given with nothing" in capsys.readouterr().err


def test_what_a_study_file_says_is_not_ignored_by_verify(tmp_path, monkeypatch):
    path = tmp_path / "study.toml"
    path.write_text("precisions = ['bf16']\nthreads = [1]\nunroll_limit = 4\n")
    found = []
    monkeypatch.setattr(verify, "verify", lambda study, *given: found.append(study) or 0)
    for arguments in (
        [str(path)],
        [str(path), "--precision", "fp64", "--unroll-limit", "5"],
        [],
        ["--workload", "book"],
    ):
        monkeypatch.setattr("sys.argv", ["harness", "verify", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
    assert [(study.precisions, study.threads, study.unroll_limit) for study in found] == [
        (["bf16"], [1], 4),
        (["fp64"], [1], 5),
        (["fp32", "fp64"], ["all"], 32),
        (["fp32", "fp64"], ["all"], None),
    ]


def test_a_worker_that_does_not_answer_in_time_is_said_so(monkeypatch):
    """Not that its framework should be installed."""

    class Silent:
        def __init__(self, name, variables, timeout_s):
            self.timeout_s = timeout_s

        def __enter__(self):
            return self

        def __exit__(self, *given):
            pass

        def ask(self, request):
            raise WorkerDied("timeout", f"nothing was heard for {self.timeout_s:g} s", "")

    monkeypatch.setattr(session, "Worker", Silent)
    study = load_study(None, None, {"timeout_s": 1e-6, "frameworks": ["torch"]})
    with pytest.raises(UsageError) as refused:
        matrix.select_frameworks(study, session.probe(study, [1]))
    why = "it did not answer within the timeout of 1e-06 s (see --timeout)"
    assert str(refused.value) == f"framework torch was asked for, but {why}"


def test_installing_is_advised_where_it_helps():
    absent = matrix.Framework("jax", missing="jax is not installed", installed=False)
    assert matrix.missing_reason(absent).endswith(": pip install '.[jax]'")
    assert (
        matrix.missing_reason(matrix.Framework("jax", missing="it does not start: a config"))
        == "it does not start: a config"
    )


def test_help_names_the_commands():
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for name in ("run", "verify", "train", "report", "list"):
        assert name in result.stdout
