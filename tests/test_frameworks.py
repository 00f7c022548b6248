"""Each framework's arms against the oracle, in every execution, and the shape of its files."""

import ast
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from safetensors.numpy import load_file

import impls
from harness import analysis, course, jobs, plan, run, weights
from harness.progress import Report
from harness.report import causes, claims
from harness.study import Study, Workload
from harness.verify import Judge
from tests.conftest import HERE

ROOT = Path(__file__).parent.parent
ODD = "B=3,T=3,I=2,H=17,O=5"
ARMS = {"tf": 25, "torch": 18, "jax": 10}  # that have an eager form; the others name their reason


def harness(*arguments):
    return subprocess.run([sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", ["rnn_relu", "gru", "lstm"])  # rnn_tanh is counted below
def test_every_arm_passes_both_gates(framework, cell, tmp_path):
    """Eagerly; compiled ones are verified by the test below, which also counts what they do."""
    arguments = ["--framework", framework, "--execution", "eager", "--workload", f"{ODD},cell={cell}"]
    done = harness("verify", *arguments, "--save-outputs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == ARMS[framework] * 2 * 2
    for file in files:
        *_, projection, pass_ = file.stem.split("-")
        arrays = load_file(file)
        if pass_ == "train":
            assert set(arrays) == {"loss", "d_w_in", "d_w_rec", "d_b_rec", "d_w_out", "d_b_out"}
        elif projection == "none":
            assert arrays["h"].shape == (3, 3, 17)
        else:
            assert arrays["y"].shape == (3, 3, 5)


@pytest.mark.timeout(300)
def test_one_step_of_one_unit(framework):
    """Every size 1, in the eager execution, where it costs little."""
    done = harness("verify", "--framework", framework, "--execution", "eager", "--workload", "B=1,T=1,I=1,H=1,O=1")
    assert done.returncode == 0, done.stdout + done.stderr


EXPECTED = {  # (found, written) where a framework or compiler makes something else of a form; all the rest is theory
    "tf": {("eager", "given", "bmm", "train"): (3, 2)},  # BatchMatMul's gradient is always taken of both operands
    "torch": {},
    "jax": {},
}
COMPILED = {"tf": ["graph", "xla"], "torch": ["inductor"], "jax": ["xla"]}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_cells_with_gates_pass_where_they_are_compiled(framework, cell):
    """A loop, whose carried state differs between cells, and the framework's layer, whose weights do."""
    execution = ",".join(COMPILED[framework])
    passes = ["--pass", "forward" if (framework, cell) == ("torch", "gru") else "forward,train"]  # half a minute less
    arms = ["--recurrence", "scan,layer", "--projection", "in_loop,library", "--precision", "fp32", *passes]
    workload = ["--workload", f"{ODD},cell={cell}"]
    done = harness("verify", "--framework", framework, "--execution", execution, *arms, *workload)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3" in done.stdout


@pytest.mark.timeout(600)
def test_the_projection_adds_the_products_that_were_written(framework, tmp_path):
    """Every usual arm, eager and compiled, verified and counted."""
    found, arms = counted(framework, ["eager", *COMPILED[framework]], tmp_path)
    assert found.evidence.missing.str.contains("(?:^|; )(?:products|everything): ").sum() == 0
    assert len(found.evidence) == len(arms)
    added = causes.added(found)
    assert len(added) == sum(not name.endswith("_none") for name in arms)
    other = {
        (row.execution, row.recurrence, row.projection, row["pass"]): (row.found, row.expected)
        for _, row in added.iterrows()
        if row.found != row.expected
    }
    assert other == EXPECTED[framework]
    pairs = claims._pairs(found, "flops")
    assert len(pairs)
    assert (pairs.in_loop == pairs.batched).all()


def counted(framework, executions, folder, **selected):
    """The evidence of a small study's programs, none of which was timed, and the names of the arms it is of."""
    workload = Workload(name="w", B=3, T=3, I=2, H=16, O=4)
    study = Study(frameworks=[framework], executions=executions, threads=[1], workloads=[workload], **selected)
    frameworks = plan.selected(study, run.probe(study, [1]))
    weights.store(folder / "weights", run.prepare(study))
    (folder / "texts").mkdir()
    places = folder / "weights", folder / "cache", Judge(folder / "weights")
    bench = jobs.Bench(study, {f.name: f for f in frameworks}, *places, {}, texts=folder / "texts")
    with Report(0) as report:
        todo = plan.verifications(plan.make(study, frameworks, [1]))
        records = list(course.together(bench, todo, lambda: math.inf, report))
    bad = [arm for r in records for arm in r["arms"].values() if arm["status"] not in ("ok", "unavailable")]
    assert not bad
    found = SimpleNamespace(
        evidence=analysis._evidence(SimpleNamespace(blocks=records)),
        times=pd.DataFrame([("w", workload.T)], columns=["workload", "T"]),
    )
    return found, [name for r in records for name, arm in r["arms"].items() if arm["status"] == "ok"]


@pytest.mark.timeout(300)
@pytest.mark.skipif("torch" not in HERE, reason="it is about torch")
def test_inductor_joins_products_when_told_to_and_only_then_keeps_the_label(tmp_path):
    selected = {
        "recurrences": ["unrolled"],
        "projections": ["none", "in_loop", "batched", "bmm"],
        "passes": ["forward"],
    }
    found, _ = counted("torch", ["inductor-batched"], tmp_path, **selected)
    added = causes.added(found).set_index("projection").found
    assert dict(added) == {"in_loop": 1, "batched": 1}  # three products of three steps are one batched one
    assert "1×3·[3×16×4]" in found.evidence.set_index("projection").shapes["in_loop"]
    arguments = ["--framework", "torch", "--execution", "inductor-batched", "--precision", "fp32", "--pass", "forward"]
    one = ["--recurrence", "unrolled", "--projection", "in_loop", "--workload", "B=1,T=1,I=1,H=1,O=1"]
    done = harness("verify", *arguments, *one)
    assert done.returncode == 0
    assert "fusion did not fire" in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.skipif("torch" not in HERE, reason="it is about torch")
def test_torch_scan_is_right_where_weights_of_both_loops_have_the_same_shape():
    """Inductor is wrong here but for project_each's third axis and the backend's allow_buffer_reuse."""
    cell = ["--execution", "inductor", "--recurrence", "scan", "--projection", "per_step,batched", "--pass", "train"]
    arguments = ["--framework", "torch", *cell, "--precision", "fp32", "--workload", "B=4,T=3,I=4,H=4,O=4"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", "verify", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_cuda_graph_is_proven_by_what_inductor_recorded_and_did_not_skip():
    """Made-up counts: there is no GPU here."""
    from impls.torch.backend import Graphs

    before = Graphs(2, 1)
    assert before.were_made(Graphs(4, 1))
    assert not before.were_made(Graphs(2, 1))
    assert not before.were_made(Graphs(4, 2))


def functions(framework):
    tree = ast.parse((ROOT / "impls" / framework / "model.py").read_text())
    return {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_models_have_the_same_functions_with_the_same_arguments_in_the_same_order():
    tf, torch, jax = (functions(name) for name in ("tf", "torch", "jax"))
    own = {  # what one framework needs and the others do not
        "torch": {"copy"},
        "tf": {"own_layer", "own_dense", "batch_first", "project_time_distributed"},
        "jax": {"own_layer", "own_dense"},
    }
    for name, found in (("torch", torch), ("tf", tf), ("jax", jax)):
        for extra in own[name]:
            del found[extra]
    assert list(tf.items()) == list(torch.items()) == list(jax.items())


def test_nothing_left_or_right_of_the_worker_imports_a_framework():
    names = ("torch", "tensorflow", "jax", "flax", "keras")
    script = (
        "import sys, pkgutil, importlib, harness, harness.report\n"
        "for m in pkgutil.walk_packages(harness.__path__, 'harness.'):\n"
        "    m.name.endswith('__main__') or importlib.import_module(m.name)\n"
        f"print([n for n in {names!r} if n in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_frameworks_are_found_by_their_directories():
    assert [name for name in impls.names() if name in ("tf", "torch", "jax")] == ["jax", "tf", "torch"]
    assert HERE


def test_without_any_framework_listing_works_and_running_says_what_is_missing(tmp_path):
    for module in ("torch", "tensorflow", "jax"):
        (tmp_path / f"{module}.py").write_text(
            f"raise ModuleNotFoundError('No module named {module}', name={module!r})\n"
        )
    for arguments, code in ((["list"], 0), (["run", "--all", "--out", str(tmp_path / "run")], 2)):
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.path.remove(''); from harness.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        )
        assert done.returncode == code, done.stderr
        for name in ("tf", "torch", "jax"):
            assert f"pip install '.[{name}]'" in (done.stdout + done.stderr).replace("\n", " ")
    assert not (tmp_path / "run").exists()
