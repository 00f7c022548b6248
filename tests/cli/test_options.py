"""Bad input on the command line: one clear sentence, exit status 2, nothing done."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from harness.cli import app as cli
from harness.cli import verify
from harness.errors import UsageError
from harness.run import session
from harness.run.launch import WorkerDied
from harness.study import matrix
from harness.study.study import load_study

DECODER = str(Path(__file__).parents[2] / "docs" / "pairs" / "decoder.py")


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
        (["pair"], "Missing argument 'FILE'"),
        (["pair", "absent.py"], "absent.py cannot be read: No such file"),
        (["pair", __file__], "names no framework"),
        (["pair", DECODER, "--threads", "1,2"], "--threads takes one value here, not 2"),
        (["pair", DECODER, "--precision", "bf16"], "unknown precision of a pair 'bf16'"),
        (["pair", DECODER, "--pass", "backward"], "passes: unknown"),
        (["pair", DECODER, "--processes", "0"], "processes"),
        (["pair", DECODER, "--threads", "1000"], "cores can be used"),
        (["pair", DECODER, "--resume", "--out", "absent"], "no records"),
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
    "run": "framework device threads execution recurrence projection chunks pass precision workload processes rounds "
    "budget sweep memory library seed timeout unroll-limit weights inputs shard venv out",
    "merge": "out",
    "submit": "shards processes sbatch out",
    "compare": "fail-on",
    "verify": "framework device threads execution recurrence projection chunks pass precision workload seed timeout "
    "unroll-limit weights inputs save-outputs bound out",
    "train": "framework execution threads steps processes seed timeout out",
    "pair": "execution threads pass precision processes rounds budget memory library seed timeout out",
    "explain": "out",
    "report": "out",
    "count": "card workload pass recurrence projection unroll-limit run out",
    "score": "out",
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
