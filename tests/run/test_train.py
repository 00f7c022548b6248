"""The chapter's training: Adam against the oracle, forms in turns, the gate, what is recorded and resumed."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.analysis import stats, trajectories
from harness.analysis.trajectories import NOTEBOOK, RANGE
from harness.cli import app as cli
from harness.errors import UsageError
from harness.records.training import TRAINING, ProcessRecord, TrainingConfigurationRecord
from harness.report import training as report
from harness.run import jobs, train
from harness.run.launch import WorkerDied
from harness.study.parts import BATCHED, TWIN
from harness.study.study import Study, Workload
from harness.worker import training
from impls import interface, reference
from impls.interface import BETA_1, BETA_2, EPSILON, RATE, Data, Weights
from tests.conftest import add_frameworks
from tests.faults import SOUND, TRAINING_FAULTS
from tests.run.test_session import plant
from tests.stepped import GRADIENT, STEPS, WORKLOAD, batches
from tests.worker.test_timing import Clock

TINY = Workload(name="book", B=3, T=4, I=1, H=16, O=1, cell="rnn_relu")
FEW = 12
OPEN = jobs.open_


# Adam


def test_the_oracle_is_adam_written_out():
    """One number, three steps, from the paper's equations with epsilon where TF1 has it."""
    w, m, v = 0.5, 0.0, 0.0
    state = reference.untrained(Weights(*(np.full(1, 0.5),) * 5))
    for t, g in enumerate((0.3, -2.0, 1e-8), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
        state = reference.adam(state, Weights(*(np.full(1, g),) * 5))
        assert state.t == t
        for found, true in ((state.w, w), (state.m, m), (state.v, v)):
            np.testing.assert_allclose(np.concatenate(found), true, rtol=1e-12)


def stepped(framework, execution, folder):
    command = [sys.executable, "-m", "tests.stepped", framework, execution, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


EXECUTION = {"tf": "graph", "torch": "eager", "jax": "xla"}


def truth():
    """The oracle's outputs after each step."""
    state = reference.untrained(batches()[0].weights)
    for data in batches():
        loss, *d = reference.run(data._replace(weights=state.w), WORKLOAD.cell, "train", "projected").values()
        state = reference.adam(state, Weights(*d))
        yield dict(zip(interface.TRAINING, (loss, *state.leaves), strict=True))


def same(found, true):
    return all(np.allclose(found[name], true[name], rtol=1e-10, atol=1e-14) for name in interface.TRAINING)


def test_steps_are_the_oracles_to_the_last_digits(framework, tmp_path):
    """In float64: the loss, the weights, both moments and the count, after each of a few steps."""
    stepped(framework, EXECUTION[framework], tmp_path)
    for at, true in enumerate(truth()):
        for form in ("in_loop", BATCHED):
            assert same(load_file(tmp_path / f"{form}-{at}.safetensors"), true)
    own_adam_is(framework, load_file(tmp_path / "own.safetensors")["w"][0])


def test_the_last_digits_tell_one_epsilon_from_another(monkeypatch):
    """As Keras has it unless told; in float32 ten losses do not show it."""
    true = list(truth())
    monkeypatch.setattr(reference, "EPSILON", 1e-7)
    assert not same(next(iter(truth())), true[0])


def own_adam_is(framework, found):
    """What the report says of the frameworks' own: Keras' is TF1's, the others correct v before epsilon is added."""
    forms = {}
    for corrected in (True, False):
        w, m, v = 1.0, 0.0, 0.0
        for t in range(1, STEPS + 1):
            m, v = BETA_1 * m + (1 - BETA_1) * GRADIENT, BETA_2 * v + (1 - BETA_2) * GRADIENT**2
            epsilon = EPSILON * np.sqrt(1 - BETA_2**t) if corrected else EPSILON
            w -= RATE * np.sqrt(1 - BETA_2**t) / (1 - BETA_1**t) * m / (np.sqrt(v) + epsilon)
        forms[corrected] = 1 - w
    assert 1 - found == pytest.approx(forms[framework != "tf"], rel=1e-4)
    assert 1 - found != pytest.approx(forms[framework == "tf"], rel=1e-2)


# Forms in turns, with a backend and a clock made up here


class Made:
    """A backend whose step takes a millisecond and whose loss counts its form's steps."""

    def __init__(self, clock, fails_at=None, recompiles_at=None):
        self.clock, self.fails_at, self.recompiles_at = clock, fails_at, recompiles_at
        self.log, self.compiled = [], 0

    def put(self, data):
        return data

    def trainer(self, program, w):
        count = iter(range(10**6))

        def step(x, target):
            at = next(count)
            if program.arm.projection == "in_loop" and at == self.fails_at:
                raise RuntimeError("no such kernel")
            self.compiled += at in (0, self.recompiles_at)
            self.clock.now += 1_000_000
            self.log.append(program.arm.projection)
            return np.float32(x[0] + at), w

        return step

    def wait(self, outputs):
        pass

    def compilations(self):
        return self.compiled


def trained(count=FEW, **more):
    clock = Clock()
    backend = Made(clock, **more)
    data = Data(Weights(*(np.zeros(1),) * 5), 100 * np.arange(count)[:, None], np.zeros((count, 1)))
    told = []
    todo = training.TrainingSpec("rnn_relu", "eager", "unrolled", data, 1)
    found = training.train(backend, todo, clock, lambda form, what: told.append(what))
    return found, backend, told


def test_every_form_takes_every_step_once_in_a_new_order_and_the_first_is_told_apart():
    found, backend, told = trained()
    assert set(found) == {"in_loop", BATCHED, TWIN}
    for form in found.values():
        assert form.losses == [101 * at for at in range(FEW)]  # its own steps, on the batch of each
        assert (form.status, form.first_call_ns, form.samples_ns) == ("ok", 1_000_050, [1_000_050] * (FEW - 1))
    turns = [tuple(backend.log[at : at + 3]) for at in range(0, 3 * FEW, 3)]
    assert all(sorted(turn) == [BATCHED, BATCHED, "in_loop"] for turn in turns)
    assert len(set(turns)) > 1
    assert told == [f"step 0 of {FEW}"]


def test_a_form_that_fails_is_named_and_spares_the_others():
    found, *_ = trained(fails_at=3)
    assert (found["in_loop"].status, found["in_loop"].reason) == ("failed", "RuntimeError: no such kernel")
    assert len(found["in_loop"].losses) == 3
    assert len(found[BATCHED].losses) == FEW


def test_compiling_after_the_first_step_refuses_the_times():
    assert {form.status for form in trained(recompiles_at=5)[0].values()} == {"refused"}


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
@pytest.mark.usefixtures("tiny", "unproven")
def test_every_framework_trains_in_its_own_executions(framework, tmp_path):
    records = made(tmp_path, framework=framework, processes=1)
    found = trajectories.latest_processes(records)
    expected = {"tf": {"graph", "xla"}, "torch": {"eager", "inductor"}, "jax": {"xla"}}[framework]
    assert {process.configuration.execution for process in found} == expected
    for process in found:
        assert process.status == "ok", process.reason


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("tiny", "unproven")
def test_mistakes_in_training_are_caught(framework, tmp_path, monkeypatch):
    place = tmp_path / "more" / "impls" / f"wrong_{framework}"
    place.mkdir(parents=True)
    (place / "__init__.py").touch()
    (place / "backend.py").write_text(
        f"from tests.faults import broken_training\n\nBackend = broken_training({framework!r})\n"
    )
    add_frameworks(monkeypatch, tmp_path / "more")
    records = made(tmp_path / "run", framework=f"wrong_{framework}", processes=1)
    statuses = {
        p.configuration.execution: {form.status for form in p.forms.values()}
        for p in trajectories.latest_processes(records)
    }
    assert statuses == {SOUND: {"ok"}} | {fault: {"wrong"} for fault in TRAINING_FAULTS}


# What is made of records


def record_of(losses, replicate=0, **more):
    form = {"status": "ok", "reason": "", "first_call_ns": 5, "samples_ns": [2] * (len(losses) - 1), "losses": losses}
    forms = {"in_loop": form | {"samples_ns": [3] * (len(losses) - 1)}, BATCHED: form, TWIN: form}
    own = {"key": f"{replicate}-0", "kind": "process", "replicate": replicate, "status": "ok", "reason": ""}
    own |= {"began": "2026-01-01", "load": 0.0, "start_s": 1.0, "seconds": 1.0, "threads_used": None, "forms": forms}
    return ProcessRecord.model_validate({**CONFIGURATION, "recurrence": "scan", **own, **more})


CONFIGURATION = {"framework": "f", "device": "cpu", "threads": 1, "execution": "e", "precision": "fp32"}


def recorded(*found):
    steps = len(found[0].forms[BATCHED].losses)
    ok = {"key": "k-0", "status": "ok", "reason": ""}
    oracle = {"kind": "oracle", "losses": [1.0] * steps, "float32": [1.0] * steps, "bounds": [1e-6] * 10}
    basis = {"machine": {}, "versions": {}, "code": {"commit": "c", "hash": "h"}}
    header = {"kind": "training", "steps": steps, "study": {"margin": 0.02}, "missing": [], "basis": basis}
    header |= {"environments": {}, "weights": {}, "command": "c", "seats": [], "absent": []}
    return [*(TRAINING.known.validate_python(ok | line) for line in (header, oracle)), *found]


def test_a_training_that_ends_elsewhere_is_said_and_a_short_one_is_not_judged():
    assert all(RANGE[0] <= np.median(printed[10:]) <= RANGE[1] for printed in NOTEBOOK.values())
    inside, outside = [0.045] * 1500, [0.045] * 1400 + [0.07] * 100
    assert trajectories.problems(recorded(record_of(inside))) == []
    said = trajectories.problems(recorded(record_of(outside)))
    assert len(said) == 2
    assert "in_loop: the median MSE of the last 100 steps is 0.0700, outside 0.035 to 0.06" in said[0]
    assert trajectories.problems(recorded(record_of(outside[-500:]))) == []
    for losses, words in (
        (inside, "inside 0.035 to 0.06 everywhere"),
        (outside, "**outside 0.035 to 0.06 in 2 of 2**"),
    ):
        records = recorded(record_of(losses))
        assert words in report.final_loss_summary(trajectories.form_trajectories(records), records[1])


def test_times_are_paired_and_processes_are_the_unit():
    records = recorded(*(record_of([1.0] * 20, replicate) for replicate in range(3)))
    (one,) = trajectories.training_times(records)
    assert one.gaps["in_loop"].ratio == pytest.approx(1.5)
    assert one.gaps[TWIN].ratio == pytest.approx(1.0)
    assert (one.gaps["in_loop"].processes, one.verdict) == (3, "slower")
    assert one.step_s == {"in_loop": 3e-9, BATCHED: 2e-9}


def test_a_trainings_verdict_does_not_depend_on_other_frameworks():
    gaps = [stats.Gap(1.1, 1.05, 1.15, 3, "slower", p) for p in (0.03, 0.2, 0.3, 0.4)]

    def configuration(framework, recurrence="scan"):
        return TrainingConfigurationRecord.model_validate(
            CONFIGURATION | {"framework": framework, "recurrence": recurrence}
        )

    configurations = [configuration(name) for name in ("jax", "tf", "torch", "mx")]
    assert trajectories._verdicts(configurations, gaps) == ["slower", *["inconclusive"] * 3]
    same = [configuration("jax", recurrence) for recurrence in ("unrolled", "scan")]
    assert trajectories._verdicts(same, gaps[:2]) == ["inconclusive"] * 2


def test_trajectories_that_differ_by_a_bit_are_not_called_the_same():
    other = [1.0] * 19 + [float(np.nextafter(np.float32(1), np.float32(2)))]
    same, differ = (recorded(record_of([1.0] * 20), record_of(losses, 1)) for losses in ([1.0] * 20, other))
    assert [line.alike for line in trajectories.form_trajectories(same)] == [True, True]
    assert [line.alike for line in trajectories.form_trajectories(differ)] == [False, False]


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
