"""JAX compiled ahead for a card that is not here. Where what compiles for GPUs is not installed, that is said."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from harness.analysis.launch_model import CARDS as MODELLED
from tests.impls.test_thunks import BY_HAND

pytest.importorskip("jax")
from impls.jax import ahead

SCRIPT = """
import json
from harness.study.study import NAMED
from impls.interface import Arm
from impls.jax import ahead
vocab, found = NAMED["vocab"], {}
_, card = ahead.open_card("h100")
for form in ("in_loop", "batched", "per_step"):
    launches, _, _ = ahead.compile_arm(vocab.shapes, vocab.cell, Arm("scan", form), "forward", card, False)
    products = {str(list(launch.product)): launch.times for launch in launches.launches if launch.product}
    found[form] = [products, sum(launches.graphs)]
print(json.dumps(found))
"""


def is_installed() -> bool:
    try:
        return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{major}") for major in (12, 13))
    except ModuleNotFoundError:
        return False


def run(script: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.skipif(not is_installed(), reason="the extra gpu-aot is not installed")
def test_compiled_programs_multiply_what_was_worked_out_by_hand():
    done = run(SCRIPT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for form, by_hand in BY_HAND.items():
        products, graphs = found[form]
        assert products == {str(list(shape)): times for shape, times in by_hand.items()}
        assert graphs >= 64


@pytest.mark.skipif(is_installed(), reason="the extra gpu-aot is installed")
def test_without_the_extra_one_sentence_says_so():
    done = run("from impls.jax import ahead\nahead.open_card('h100')")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"impls.jax.ahead.Missing: {ahead.NO_PLUGIN}"


def test_every_card_of_the_model_is_described_and_new_enough_for_cuda_graphs_of_copies():
    assert {path.stem for path in ahead.CARDS.glob("*.textproto")} == set(MODELLED)
    for path in ahead.CARDS.glob("*.textproto"):
        text = path.read_text()
        assert f"core_count: {MODELLED[path.stem].multiprocessors}\n" in text
        assert f"memory_bandwidth: {MODELLED[path.stem].bytes_s:.0f}\n" in text
        assert 'driver_version: "13.0.0"' in text
        assert 'runtime_version: "13.0.0"' in text
