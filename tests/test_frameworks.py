"""Each framework's arms against the oracle, in every execution, and the shape of its files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import impls
from tests.conftest import HERE

ROOT = Path(__file__).parent.parent
ODD = "B=3,T=3,I=2,H=17,O=5,cell=rnn_tanh"


@pytest.mark.timeout(600)
def test_every_arm_of_every_execution_passes_both_gates(framework, tmp_path):
    arguments = ["verify", "--framework", framework, "--workload", ODD, "--save-outputs", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "harness", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == {"tf": 3 * 8, "torch": 8 + 4, "jax": 8 + 4}[framework] * 2 * 2
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
    """Every size 1, the other cell, in the eager execution, where it costs little."""
    arguments = ["--framework", framework, "--execution", "eager", "--workload", "B=1,T=1,I=1,H=1,O=1,cell=rnn_relu"]
    done = subprocess.run(
        [sys.executable, "-m", "harness", "verify", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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


def functions(framework):
    tree = ast.parse((ROOT / "impls" / framework / "model.py").read_text())
    return {node.name: [a.arg for a in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_models_have_the_same_functions_with_the_same_arguments_in_the_same_order():
    tf, torch, jax = (functions(name) for name in ("tf", "torch", "jax"))
    extra = torch.pop("copy")  # what torch's scan operator needs and the others do not
    assert extra == ["w", "h"]
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
