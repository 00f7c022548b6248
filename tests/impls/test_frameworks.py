"""Each framework's arms against the oracle, in every execution, and the shape of its files."""

import ast
import importlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from safetensors.numpy import load_file

import impls
from harness.analysis import operations, tables
from harness.report import causes, claims
from harness.run import jobs, schedule, session
from harness.run.progress import ProgressReport
from harness.study import matrix, weights
from harness.study.study import NAMED, Study, Workload
from harness.verify.output_check import OutputCheck
from impls.interface import CELLS, USUAL_PASSES, Arm, Program, Settings, Unavailable
from tests.conftest import HERE
from tests.faults import LATE_SIZE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("asked_once", "compiler_known")]
ROOT = Path(__file__).parents[2]
ODD = "B=3,T=3,I=2,H=17,O=5"
ARMS = {"tf": (33, 39), "torch": (25, 29), "jax": (12, 12)}  # with an eager form, forward and in training


@pytest.mark.timeout(600)
def test_every_arm_passes_both_gates(framework, harness, tmp_path):
    """Eagerly, of every cell and of one unit; compiled ones are verified by the test below, which also counts what
    they do.
    """
    others = [cell for cell in CELLS if cell != "rnn_tanh"]  # which is counted below
    cells = [f"{ODD},cell={cell}" for cell in others]
    given = [part for sizes in (*cells, "B=1,T=1,I=1,H=1,O=1") for part in ("--workload", sizes)]
    arguments = ["--framework", framework, "--execution", "eager", *given]
    done = harness("verify", *arguments, "--save-outputs", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for cell in others:
        files = sorted((tmp_path / f"B3-T3-I2-H17-O5-{cell}").iterdir())
        assert len(files) == sum(ARMS[framework]) * 2
        for file in files:
            *_, projection, pass_ = file.stem.split("-")
            arrays = load_file(file)
            if pass_ == "train" and projection == "none":
                assert set(arrays) == {"d_w_in", "d_w_rec", "d_b_rec"}
                assert all(arrays[name].shape[-1:] == arrays["d_b_rec"].shape for name in arrays)
            elif pass_ == "train":
                assert set(arrays) == {"loss", "d_w_in", "d_w_rec", "d_b_rec", "d_w_out", "d_b_out"}
            elif projection == "none":
                assert arrays["h"].shape == (3, 3, 17)
            else:
                assert arrays["y"].shape == (3, 3, 5)


EXPECTED = {  # (found, written) where a framework or compiler makes something else of a form; all the rest is theory
    "tf": {("eager", "given", "bmm", "train"): (3, 2)},  # BatchMatMul's gradient is always taken of both operands
    "torch": {},
    "jax": {},
}
COMPILED = {"tf": ["graph", "xla"], "torch": ["inductor"], "jax": ["xla"]}  # the last by a compiler that multiplies
ORIGINAL = {"tf": ["v1"], "torch": [], "jax": []}


@pytest.mark.timeout(600)
def test_cells_with_gates_pass_where_they_are_compiled(framework, tmp_path):
    """A loop, whose carried state differs between cells, and the framework's layer, whose weights do.

    PyTorch's loop, which takes Inductor seconds, is that of the LSTM, which carries more than a GRU or a plain RNN. Its
    layer's training is the GRU's, for Inductor does not compile that of the LSTM. It unrolls the layers: two steps.
    """
    given = {"executions": COMPILED[framework], "projections": ["library"], "precisions": ["fp32"]}
    gru, lstm = (Workload(name=cell, B=3, T=3, I=2, H=17, O=5, cell=cell) for cell in ("gru", "lstm"))
    parts = [([lstm, gru], {"recurrences": ["scan", "layer"], "passes": list(USUAL_PASSES)})]
    if framework == "torch":
        lstm, gru = (workload.model_copy(update={"T": 2}) for workload in (lstm, gru))
        parts = [
            ([lstm], {"recurrences": ["scan"], "passes": ["train"]}),
            ([lstm], {"recurrences": ["layer"], "passes": ["forward"]}),
            ([gru], {"recurrences": ["layer"], "passes": ["train"]}),
        ]
    parts = [(workloads, given | selected) for workloads, selected in parts]
    records = records_together(framework, tmp_path, parts, counted=False)
    arms = {(r.configuration.execution, r.workload.cell, r.pass_, n): a for r in records for n, a in r.arms.items()}
    ok = {key for key, arm in arms.items() if arm.status == "ok"}
    expected = {
        (execution, workload.cell, pass_, f"{recurrence}_library")
        for workloads, selected in parts
        for workload in workloads
        for execution in selected["executions"]
        for recurrence in selected["recurrences"]
        for pass_ in selected["passes"]
    }
    assert ok == expected


@pytest.mark.timeout(600)
def test_the_products_that_were_written_and_all_operations_are_counted(framework, faulty, tmp_path):
    """Of every usual arm, eager, compiled and of the original, which is verified too; and where products are of size
    one. The same workers run all; those of TensorFlow do not look for libraries, which are not looked at here. Of what
    a compiler multiplies only training is compiled, which has the forward pass in it.
    """
    is_torch = framework == "torch"  # Inductor compiles for seconds an arm
    compiled, others = COMPILED[framework], ["eager", *ORIGINAL[framework]]
    loops = {"recurrences": ["unrolled"] if is_torch else ["unrolled", "scan"], "projections": ["in_loop", "batched"]}
    *ones, smallest = [*OF_ONE.values()][is_torch:]
    plain = {"executions": [*others, *compiled[:-1]]}
    multiplied = {"executions": compiled[-1:], "passes": ["train"]}
    shortened = SHORTENED if is_torch else {}
    parts = [
        ([SMALL], plain | shortened),
        ([SMALL], multiplied | shortened),
        (ones, multiplied | loops),
        ([smallest], plain | loops),
        ([smallest], multiplied | loops),
        ([SMALL], {"executions": ["eager"]} | CHUNKED),
        ([SMALL], multiplied | CHUNKED),
    ]
    name = faulty("quiet", framework) if framework == "tf" else framework
    records = records_together(name, tmp_path, parts + [BOOK] * (framework == "tf"))
    check_that_the_projection_adds_the_products_that_were_written(framework, *evidence_of(framework, [SMALL], records))
    of_one, _ = evidence_of(framework, [*ones, smallest], records)
    assert set(of_one.evidence.workload) == {workload.name for workload in (*ones, smallest)}
    check_that_operations_are_whole_where_a_compiler_multiplies_instead(of_one)
    if framework == "tf":
        book, _ = evidence_of(framework, BOOK[0], records)
        check_that_both_forms_of_the_original_make_the_same_fourteen_variables(book)


def check_that_the_projection_adds_the_products_that_were_written(framework, found, arms):
    assert found.evidence.missing.str.contains("(?:^|; )(?:products|everything): ").sum() == 0
    assert len(found.evidence) == len(arms)
    added = causes.added_products(found)
    assert len(added) == sum(not name.endswith("_none") for name in arms)
    other = {
        (row.execution, row.recurrence, row.projection, row["pass"]): (row.found, row.expected)
        for _, row in added.iterrows()
        if row.found != row.expected
    }
    assert other == EXPECTED[framework]
    pairs = claims._program_pairs(found, "flops")
    assert len(pairs)
    assert (pairs.in_loop == pairs.batched).all()


ENTROPY = Workload(name="entropy", B=3, T=4, I=2, H=17, O=5, cell="gru", loss="cross_entropy")
LAYERS = Workload(name="layers", B=3, T=2, I=5, H=17, O=5, cell="lstm", layers=2)
GATED, PLAIN = (Workload(name=cell, B=3, T=3, I=2, H=17, O=5, cell=cell) for cell in ("gru", "rnn_relu"))
INSIDE = {"projections": ["batched", "in_loop_loss", "chunked_loss_3"]}
CHAINED = {"projections": ["in_loop", "batched", "hoisted", "in_loop_loss", "chunked_loss_2"]}
AS_MODULES = {"recurrences": ["modules"], "projections": ["none", "in_loop", "per_step", "batched"]}


@pytest.mark.timeout(600)
def test_losses_layers_and_modules_pass_the_gates(framework, tmp_path):
    """Eagerly in fp64, and compiled in the loop that users write; Inductor, which takes seconds an arm, does one each.

    They are those of a plain RNN in two steps. Of JAX's programs only those with several layers have an eager form.
    """
    eager = {"executions": ["eager"], "recurrences": ["unrolled"], "precisions": ["fp64"]}
    compiled = {"executions": COMPILED[framework][-1:], "recurrences": ["scan"], "passes": ["train"]}
    parts = [
        ([ENTROPY], INSIDE | eager | {"passes": ["loss", "train"]}),
        ([LAYERS], CHAINED | eager | {"passes": ["train"]}),
        ([GATED], eager | AS_MODULES),
    ]
    if framework == "torch":
        one = compiled | {"recurrences": ["unrolled"]}
        short = {"cell": "rnn_tanh", "T": 2}
        entropy, layers = (w.model_copy(update={"name": f"{w.name}_2", **short}) for w in (ENTROPY, LAYERS))
        parts += [([entropy], one | {"projections": ["in_loop_loss"]}), ([layers], one | {"projections": ["hoisted"]})]
        parts += [([PLAIN], one | {"recurrences": ["modules"], "projections": ["in_loop"]})]
    else:
        parts += [([ENTROPY], INSIDE | compiled), ([LAYERS], CHAINED | compiled), ([PLAIN], compiled | AS_MODULES)]
    records = records_together(framework, tmp_path, parts, counted=False)
    arms = {(r.configuration.execution, r.workload.name, n): a for r in records for n, a in r.arms.items()}
    assert not {key: arm.reason for key, arm in arms.items() if arm.status != "ok"}
    verified = {(execution, workload) for execution, workload, _ in arms}
    shortened = "_2" if framework == "torch" else ""
    assert verified >= {(COMPILED[framework][-1], f"{name}{shortened}") for name in ("entropy", "layers")}
    assert (COMPILED[framework][-1], "rnn_relu") in verified
    assert verified >= {
        ("eager", name) for name in (["layers"] if framework == "jax" else ["entropy", "layers", "gru"])
    }


SHORTENED = {"recurrences": ["unrolled", "given"], "projections": ["none", "in_loop", "per_step", "bmm", "batched"]}
CHUNKED = {"recurrences": ["given"], "projections": ["chunked_2"]}  # of three steps: two and one
SMALL = Workload(name="w", B=3, T=3, I=2, H=16, O=4)
ONES = [{"T": 2, "I": 1, "O": 1}, {"B": 1, "T": 2, "I": 3, "H": 5, "O": 1}, dict.fromkeys("BTIHO", 1)]
OF_ONE = {f"w{at}": SMALL.model_copy(update={"name": f"w{at}", **ones}) for at, ones in enumerate(ONES)}


def check_that_operations_are_whole_where_a_compiler_multiplies_instead(found):
    """Both forms take the same operations, and none is left out."""
    assert found.evidence.flops.notna().all()
    for _, forms in found.evidence.groupby(["workload", "execution", "pass", "recurrence"]):
        assert forms.flops.nunique() == 1, forms.to_string()
    for row in found.evidence.to_dict("records"):
        workload, arm = OF_ONE[row["workload"]], Arm(row["recurrence"], row["projection"])
        least = operations.least_operations(workload, row["pass"], arm)
        assert least <= row["flops"] <= most_operations(workload, row["pass"])
    assert claims._check_operations(found).verdict in ("true here", claims.NOT_JUDGED)


def most_operations(w, pass_):
    """Of a program that multiplies the zeros before the first step and takes their gradient, and that of the inputs."""
    return 2 * w.T * w.B * ((w.I + w.H) * w.H + w.H * w.O) * (3 if pass_ == "train" else 1)


BOOK = [NAMED["book"]], {"executions": ["v1"], "recurrences": ["scan"], "projections": ["in_loop", "batched"]}


def check_that_both_forms_of_the_original_make_the_same_fourteen_variables(found):
    """Two layers' kernels and biases, two slots of Adam's for each, and Adam's two powers; of the book's sizes."""
    for _, form in found.variables.groupby(["projection", "pass"]):
        shapes = ["[101×100]", "[100]", "[100×1]", "[1]"]
        train = set(form["pass"]) == {"train"}
        assert sorted(form["shape"]) == sorted([*3 * shapes, "[]", "[]"] if train else shapes)
        assert len(form) == (14 if train else 4)
        assert form.variable.str.contains("Adam").sum() == (8 if train else 0)
    assert len(found.variables) == 2 * (14 + 4)
    judged = claims._check_memory(found)
    assert judged.verdict == "as variables true here; as memory false here"
    assert "1 of 1 pairs (book: 14: 3×[100], 3×[100×1], 3×[101×100], 3×[1], 2×[])" in judged.numbers
    held = found.evidence.set_index(["pass", "projection"]).temp_bytes
    assert held["forward", "batched"] >= 20 * 50 * 100 * 4  # every hidden state at once, to be reshaped
    assert held["forward", "in_loop"] >= 20 * 50 * 1 * 4


def records_together(framework, folder, parts, counted=True):
    """The records of several studies, none of which is timed: each of some workloads and with some selection.

    The same workers run for all, and count every program.
    """
    studies = [Study(frameworks=[framework], threads=[1], workloads=list(w), **selected) for w, selected in parts]
    frameworks = matrix.select_frameworks(studies[0], session.probe(studies[0], [1]))
    blocks = {}
    for study in studies:
        weights.write_files(folder / "weights", session.prepare_files(study))
        for job in matrix.verification_jobs(matrix.make_plan(study, frameworks, [1])):
            blocks[job.configuration] = blocks.get(job.configuration, ()) + job.blocks
    todo = [matrix.Job(configuration, 0, own) for configuration, own in blocks.items()]
    texts = folder / "texts"
    texts.mkdir()
    places = folder / "weights", folder / "cache", OutputCheck(folder / "weights")
    by_name = {f.name: f for f in frameworks}
    bench = jobs.RunContext(studies[0], by_name, *places, {}, texts=texts if counted else None)
    with ProgressReport(0) as report:
        return list(schedule.run_in_parallel(bench, todo, lambda: math.inf, report))


def evidence_of(framework, workloads, records):
    """The evidence of the workloads' programs, as the framework's, and the names of the arms it is of."""
    records = [
        r.model_copy(update={"configuration": replace(r.configuration, framework=framework)})
        for r in records
        if r.workload in workloads
    ]
    bad = [arm for r in records for arm in r.arms.values() if arm.status not in ("ok", "unavailable")]
    assert not bad
    found_in = list(tables._first_counted_arms(records))
    found = SimpleNamespace(
        evidence=tables._evidence(found_in),
        variables=tables._variables(found_in),
        reasons={name: arm.reason for r in records for name, arm in r.arms.items()},
        times=pd.DataFrame([(workload.name, workload.T) for workload in workloads], columns=["workload", "T"]),
        prototype_reasons={},
    )
    return found, [name for r in records for name, arm in r.arms.items() if arm.status == "ok"]


@pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch")
def test_torch_marks_its_scan_as_a_prototype_wherever_it_has_it():
    (torch,) = session.probe(Study(frameworks=["torch"]), [1])
    marked = {name for name, execution in torch.executions.items() if "scan" in execution.prototypes}
    assert marked == {name for name, execution in torch.executions.items() if "scan" not in execution.without}
    assert marked >= {"inductor", "cudagraph"}
    assert "wrong gradients when two are chained" in torch.executions["inductor"].prototypes["scan"]


about_tf = pytest.mark.skipif("tf" not in HERE, reason="it is about TensorFlow")


@about_tf
@pytest.mark.timeout(300)
def test_the_original_passes_both_gates_has_no_cell_with_gates_and_a_wrong_wrapper_is_caught(harness, faulty, tmp_path):
    """The wrong one projects the state before the step, one step late, and only where there are LATE_SIZE inputs."""
    cells = [f"{ODD},cell={cell}" for cell in ("rnn_relu", "rnn_tanh", "gru")]
    workloads = [part for sizes in (*cells, ODD.replace("I=2", f"I={LATE_SIZE}")) for part in ("--workload", sizes)]
    name, saved = faulty("late", "tf"), tmp_path / "saved"
    done = harness("verify", "--framework", name, "--execution", "v1", *workloads, "--save-outputs", str(saved))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "unavailable: 12 cells: the original's cell is BasicRNNCell: a plain RNN" in done.stdout
    arms = {f"scan-{form}-{pass_}" for form in ("none", "in_loop", "batched") for pass_ in ("forward", "train")}
    names = {f"{name}-cpu-v1-{precision}-{arm}" for precision in ("fp32", "fp64") for arm in arms}
    for cell in ("rnn_relu", "rnn_tanh"):
        assert {file.stem for file in (saved / f"B3-T3-I2-H17-O5-{cell}").iterdir()} == names
    wrong = [line for line in done.stderr.splitlines() if line.startswith(("wrong: ", "failed: "))]
    place = f"B3-T3-I{LATE_SIZE}-H17-O5-rnn_tanh"
    expected = [(precision, place, pass_) for precision in ("fp32", "fp64") for pass_ in ("forward", "train")]
    assert sorted(tuple(line.split()[3:6]) for line in wrong) == sorted(expected), done.stderr
    assert all(line.startswith("wrong: ") and " scan_in_loop: " in line for line in wrong)


BUSIEST = """
import importlib, sys, time
import psutil
from harness.study import weights
from harness.study.study import NAMED
from impls.interface import Arm, Data, Program, Settings, Weights

def spent():
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}

backend, w = importlib.import_module("impls.tf.backend").Backend(), NAMED["vocab"]
backend.open(Settings("cpu", int(sys.argv[1]), "fp32"))
data = backend.put(Data(Weights(**weights.make_weights(w, 1)), **weights.make_inputs(w, 1)))
run = backend.prepare(Program(Arm("scan", "batched"), w.cell, "train", "v1"), data.weights)
run(*data[1:])
before, end = spent(), time.monotonic() + 0.8
while time.monotonic() < end:
    run(*data[1:])
took = [total - before.get(thread, 0) for thread, total in spent().items()]
print(max(took) / sum(took))
"""


@about_tf
@pytest.mark.parametrize(("threads", "least", "most"), [(1, 0.95, 1.0), (2, 0.0, 0.8)])
def test_a_session_keeps_to_its_threads(threads, least, most):
    """The product that proves them is not a session's: here is what share of its work its busiest thread does."""
    variables = importlib.import_module("impls.tf.backend").Backend().environment(Settings("cpu", threads, "fp32"))
    command, environment = [sys.executable, "-c", BUSIEST, str(threads)], {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert least <= float(done.stdout.split()[-1]) <= most


@pytest.mark.timeout(300)
@pytest.mark.skipif("torch" not in HERE, reason="it is about torch")
def test_inductor_joins_products_when_told_to_and_only_then_keeps_the_label(tmp_path):
    selected = {"executions": ["inductor-batched"], "recurrences": ["unrolled"], "passes": ["forward"]}
    every = selected | {"projections": ["none", "in_loop", "batched", "bmm"]}
    one = selected | {"projections": ["in_loop"]}
    records = records_together("torch", tmp_path, [([SMALL], every), ([OF_ONE["w2"]], one)])
    found, _ = evidence_of("torch", [SMALL], records)
    alone, ok = evidence_of("torch", [OF_ONE["w2"]], records)
    added = causes.added_products(found).set_index("projection").found
    assert dict(added) == {"in_loop": 1, "batched": 1}  # three products of three steps are one batched one
    assert "1×3·[3×16×4]" in found.evidence.set_index("projection").shapes["in_loop"]
    assert ok == []
    assert "fusion did not fire" in alone.reasons["unrolled_in_loop"]


def test_a_counter_that_counts_nothing_is_found_before_anything_is_proven_by_it(framework, inside):
    counters = {"torch": ["Dynamo's counter"], "jax": ["JAX's compile events"]}
    counters["tf"] = ["a graph's version", "tf.function's tracing count"]
    said = [line.partition(" does not count what is compiled") for line in inside(framework, "counters")]
    assert [counter for counter, why, _ in said if why] == counters[framework], said
    assert len(said) == len(counters[framework])


@pytest.mark.skipif("torch" not in HERE, reason="it is about torch")
def test_a_product_that_is_not_known_is_said_to_be_missing(inside):
    lines = [json.loads(line) for line in inside("torch", "products")]
    missing = {name: found["products"] for name, products, found, listed in lines if found}
    assert missing.keys() == {"dot", "addr", "int", "addbmm", "conv", "attention"}
    assert missing["dot"].endswith(" known here: aten::dot")
    known = {name: listed for name, _, found, listed in lines if not found}
    assert known == {
        "mv": [[1, 1, 3, 4, 1]],
        "einsum": [[1, 1, 3, 4, 5]],
        "tanh": [],
        "linear": [[1, 1, 6, 8, 5]],
    }
    assert all(products == listed == [] for _, products, found, listed in lines if found)


@pytest.mark.timeout(300)
@pytest.mark.skipif("torch" not in HERE, reason="it is about torch")
def test_torch_scan_is_right_where_weights_of_both_loops_have_the_same_shape(harness):
    """Inductor is wrong here but for project_each's third axis and the backend's allow_buffer_reuse."""
    cell = ["--execution", "inductor", "--recurrence", "scan", "--projection", "per_step,batched", "--pass", "train"]
    arguments = ["--framework", "torch", *cell, "--precision", "fp32", "--workload", "B=4,T=3,I=4,H=4,O=4"]
    done = harness("verify", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_hoisted_program_of_torch_of_which_nothing_was_moved_is_unavailable():
    from impls.torch.backend import Backend

    program = Program(Arm("unrolled", "hoisted"), "rnn_tanh", "forward", "inductor")
    for verb in ("moved", "stays"):
        backend = Backend()
        backend.device, backend.counters = "cpu", {"inductor": Counter()}
        backend.hoisted[program] = ["loop, 3 steps: stays: tanh: fed", f"loop, 3 steps: {verb}: matmul: reason"]
        run = backend._proven(lambda x, target: x, program)
        if verb == "moved":
            assert run("y", None) == "y"
        else:
            with pytest.raises(Unavailable, match=r"hoist moved nothing, .* in_loop under another name: loop"):
                run("y", None)


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
        "torch": {"copy", "added", "step_modules", "modules", "modules_in_loop"},
        "tf": {
            *("held", "variables", "built", "own_layer", "own_dense", "own_time_distributed"),
            *("batch_first", "project_time_distributed", "own_modules"),
            *("one_by_one", "added", "add_each", "chunks"),
        },
        "jax": {
            *("own_layer", "own_dense", "scan_hoisted", "held_layer", "held_dense", "first_carry"),
            *("added", "flat", "step_modules", "modules", "modules_in_loop"),
        },
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
            [
                sys.executable,
                "-c",
                "import sys; sys.path.remove(''); from harness.cli.app import main; main()",
                *arguments,
            ],
            capture_output=True,
            text=True,
            check=False,
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin", "COLUMNS": "200"},
        )
        assert done.returncode == code, done.stderr
        for name in ("tf", "torch", "jax"):
            assert f"pip install '.[{name}]'" in (done.stdout + done.stderr).replace("\n", " ")
    assert not (tmp_path / "run").exists()
