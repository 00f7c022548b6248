"""The chapter's training: what is recorded, resumed and caught, in every framework."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from harness.analysis import trajectories
from harness.cli import app as cli
from harness.errors import UsageError
from harness.records.training import TRAINING
from harness.report import training as report
from harness.run import jobs, train
from harness.run.launch import WorkerDied
from harness.study.parts import BATCHED
from harness.study.study import Study, Workload
from impls import interface
from tests.run.test_session import plant

TINY = Workload(name="book", B=3, T=4, I=1, H=16, O=1, cell="rnn_relu")
SHORT = TINY.model_copy(update={"T": 2})
FEW = 12
OPEN = jobs.open_


# Adam


def same(found, true):
    return all(np.allclose(found[name], true[name], rtol=1e-10, atol=1e-14) for name in interface.TRAINING)


# Forms in turns, with a backend and a clock made up here


# A whole training, with the NumPy backend and a small book


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(train, "BOOK", TINY)


@pytest.fixture
def unproven(monkeypatch):
    """Threads are not proven: what is tested may then run beside other tests."""
    monkeypatch.setattr(jobs, "open_", lambda bench, job, worker: OPEN(bench, replace(job, blocks=()), worker))


def study(framework="numpy", **more):
    given = {"frameworks": [framework], "threads": [1], "processes": 2, "timeout_s": 120.0, "passes": ["train"]}
    return Study(**(given | {"workloads": [TINY]} | more))


def made(folder, resume=False, steps=FEW, **more):
    return train.train(study(**more), steps, folder, resume, "python -m harness train")


@pytest.mark.usefixtures("numpy_backend", "tiny", "unproven")
class TestWithNumpy:
    def test_records_are_whole_and_give_the_same_report_twice(self, tmp_path):
        records = made(tmp_path / "run")
        assert [record.kind for record in records] == ["training", "oracle", "process", "process"]
        assert len(records[1].losses) == len(records[1].float32) == FEW
        for process in records[2:]:
            assert process.status == "ok", process.reason
            for form in process.forms.values():
                assert (len(form.losses), len(form.samples_ns)) == (FEW, FEW - 1)
        for name in ("a", "b"):
            report.write(tmp_path / "run", tmp_path / name)
        files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
        assert [str(file) for file in files] == ["figures/training.png", "figures/training.svg", "train.md"]
        for file in files:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file

    def test_resume_does_what_is_missing_and_nothing_else(self, tmp_path):
        made(tmp_path)
        file = tmp_path / TRAINING.file
        lines = file.read_text().splitlines(keepends=True)
        for kept in (1, 2, 3):  # the heading alone; then without and with one process
            file.write_text("".join(lines[:kept]) + lines[kept][:40])  # what was being written is cut
            again = made(tmp_path, resume=True)
            assert [record.key for record in again] == [json.loads(line)["key"] for line in lines]
            assert file.read_text().splitlines(keepends=True)[:kept] == lines[:kept]

    def test_resume_refuses_another_training_and_no_records(self, tmp_path):
        made(tmp_path / "run", processes=1)
        with pytest.raises(UsageError, match="another study"):
            made(tmp_path / "run", resume=True, processes=1, steps=FEW + 1)
        with pytest.raises(UsageError, match="no records"):
            made(tmp_path / "none", resume=True)
        with pytest.raises(UsageError, match="not empty"):
            made(tmp_path / "run")

    @pytest.mark.parametrize(
        ("mischief", "status", "reason"),
        [
            ("summed", "wrong", "the loss of step 1 is off"),
            ("fast", "wrong", "the loss of step 2 is off"),
            ("endless", "wrong", "the loss of step 1 is off by nan"),
            ("recompile", "refused", "while it was timed"),
        ],
    )
    def test_a_mistake_is_named_and_its_times_do_not_count(self, mischief, status, reason, tmp_path, monkeypatch):
        plant(mischief, tmp_path, monkeypatch)
        records = made(tmp_path / "run", processes=1)
        assert records[2].status == "failed"
        forms = records[2].forms
        assert forms["in_loop"].status == status
        assert forms[BATCHED].status == ("ok" if status == "wrong" else status)
        assert forms["in_loop"].samples_ns == [] or status == "refused"
        assert any(reason in sentence for sentence in trajectories.problems(records))
        text = report.write(tmp_path / "run").read_text()
        assert f"{status}: numpy eager unrolled, in_loop, process 0: " in text
        assert "No times are available." in text

    def test_times_without_proof_of_threads_do_not_count(self, tmp_path, monkeypatch):
        monkeypatch.setattr(jobs, "open_", OPEN)
        plant("idle", tmp_path, monkeypatch)
        records = made(tmp_path / "run", processes=1)
        assert {form.status for form in records[2].forms.values()} == {"refused"}
        assert "threads not proven" in trajectories.problems(records)[0]
        assert trajectories.training_times(records) == []

    def test_a_lost_worker_is_a_record_and_is_tried_again_on_resume(self, tmp_path, monkeypatch):
        def dies(bench, job):
            raise WorkerDied("failed", "the worker ended by SIGKILL", "")

        with monkeypatch.context() as patched:
            patched.setattr(jobs, "worker_of", dies)
            records = made(tmp_path, processes=1)
        assert [form.status for form in records[2].forms.values()] == ["failed"] * 3
        assert "SIGKILL" in report.write(tmp_path).read_text()
        again = made(tmp_path, resume=True, processes=1)
        assert [record.status for record in again[2:]] == ["failed", "ok"]
        assert trajectories.problems(again) == []

    def test_the_command_line_exits_with_1_when_a_form_is_wrong(self, tmp_path, monkeypatch, capsys):
        plant("fast", tmp_path, monkeypatch)
        arguments = [
            "train",
            "--framework",
            "numpy",
            "--steps",
            "11",
            "--processes",
            "1",
            "--out",
            str(tmp_path / "run"),
        ]
        monkeypatch.setattr("sys.argv", ["harness", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capsys.readouterr()
        assert left.value.code == 1
        assert said.out.strip() == str(tmp_path / "run" / "train.md")
        assert "wrong: numpy eager unrolled, in_loop" in said.err
        text = (tmp_path / "run" / "train.md").read_text()
        assert "python -m harness train --framework numpy --steps 11 --processes 1\n" in text


# Every framework


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("unproven", "asked_once", "compiler_known")
def test_every_framework_trains_in_its_own_executions(framework, tmp_path, monkeypatch):
    """Of two steps each: a compiler unrolls them."""
    monkeypatch.setattr(train, "BOOK", SHORT)
    records = made(tmp_path, framework=framework, processes=1, workloads=[SHORT])
    found = trajectories.latest_processes(records)
    expected = {"tf": {"graph", "xla"}, "torch": {"eager", "inductor"}, "jax": {"xla"}}[framework]
    assert {process.configuration.execution for process in found} == expected
    for process in found:
        assert process.status == "ok", process.reason


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("tiny", "unproven")
def test_mistakes_in_training_are_caught(framework, faulty, tmp_path):
    """One in each form, and the third form, which has none, is ok beside them."""
    records = made(tmp_path / "run", framework=faulty("wrong", framework), processes=1)
    (process,) = trajectories.latest_processes(records)
    statuses = {name: form.status for name, form in process.forms.items()}
    assert statuses.pop("in_loop") == "wrong"
    assert sorted(statuses.values()) == ["ok", "wrong"]


# What is made of records


def test_an_oracle_whose_worker_is_lost_is_a_refusal():
    class Dead:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def ask(self, request, stage):
            raise WorkerDied("failed", "the worker ended by SIGKILL", "")

    bench = SimpleNamespace(
        weights="w", study=SimpleNamespace(timeout_s=1.0), worker=lambda framework, variables, timeout_s: Dead()
    )
    with pytest.raises(UsageError, match="oracle's trajectory could not be made: the worker ended by SIGKILL"):
        train.oracle_record(bench, "numpy", lambda said: None)
