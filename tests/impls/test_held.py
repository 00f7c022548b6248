"""How TensorFlow's weights are held, and with what a batched product multiplies: what the programs' graphs say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from impls.interface import Settings
from tests.conftest import HERE
from tests.impls.test_frameworks import SMALL, counted

SCRIPT = """
import itertools
from collections import Counter
import keras
import numpy as np
import tensorflow as tf
from harness.study import weights
from harness.study.study import NAMED
from impls.interface import PASSES, Arm, Data, Program, Settings, Weights
from impls.tf.backend import Backend

def constants(graph):
    definition = graph.as_graph_def()
    nodes = itertools.chain(definition.node, *(function.node_def for function in definition.library.function))
    return [tf.make_ndarray(node.attr["value"].tensor) for node in nodes if node.op == "Const"]

backend, book = Backend(), NAMED["book"]
backend.open(Settings("cpu", 1, "fp32"))
arrays = Weights(**weights.make_weights(book, 1))
data = backend.put(Data(arrays, **weights.make_inputs(book, 1)))
for arm, execution, pass_ in itertools.product(
    (Arm("scan", "in_loop"), Arm("scan", "batched"), Arm("layer", "library")), ("graph", "xla"), PASSES
):
    run = backend.prepare(Program(arm, book.cell, pass_, execution), data.weights)
    inputs = data[1:] if pass_ == "train" else data[1:2]
    graph = backend.programs[run].get_concrete_function(*inputs).graph
    fixed = {name for name, a in arrays._asdict().items() for c in constants(graph) if np.array_equal(c, a)}
    print(arm.name, execution, pass_, "constant:", *sorted(fixed), "variables:", len(graph.variables))

counts = Counter()

def count(kind, method):
    original = getattr(kind, method)
    def counting(self, *arguments, **named):
        counts[kind.__name__, method] += 1
        return original(self, *arguments, **named)
    setattr(kind, method, counting)

for kind, method in itertools.product((keras.layers.SimpleRNN, keras.layers.Dense), ("build", "__call__")):
    count(kind, method)
run = backend.prepare(Program(Arm("layer", "library"), book.cell, "forward", "eager"), data.weights)
print("prepared", *sorted(counts.items()))
counts.clear()
for _ in range(3):
    run(*data[1:])
print("called", *sorted(counts.items()))
"""
PROGRAMS = 3 * 2 * 2


@pytest.fixture(scope="module")
def told():
    """What the script prints of TensorFlow's programs, line by line."""
    if "tf" not in HERE:
        pytest.skip("it is about TensorFlow")
    from impls.tf.backend import Backend

    variables = Backend().environment(Settings("cpu", 1, "fp32"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
        cwd=Path(__file__).parents[2],
    )
    return done.stdout.splitlines()


@pytest.mark.timeout(300)
def test_no_weight_of_book_is_a_constant_of_a_graph(told):
    """A captured EagerTensor of at most 128 elements would be one: at book all but w_rec."""
    lines = [line for line in told if "constant: " in line]
    assert len(lines) == PROGRAMS
    assert {line.partition("constant: ")[2] for line in lines} == {"variables: 5"}, told


@pytest.mark.timeout(300)
def test_keras_layers_are_built_once_and_called_as_layers(told):
    assert told[-2] == "prepared (('Dense', 'build'), 1) (('SimpleRNN', 'build'), 1)"
    assert told[-1] == "called (('Dense', '__call__'), 3) (('SimpleRNN', '__call__'), 3)"


@pytest.mark.parametrize("framework", [name for name in ("tf", "jax") if name in HERE])
@pytest.mark.timeout(300)
def test_a_batched_product_takes_the_weights_as_they_are(framework, tmp_path, asked_once):
    """No array [T, H, O] is in the program: w_out is broadcast, not copied for every step."""
    counted(framework, ["eager"], tmp_path, recurrences=["given"], projections=["bmm"], passes=["forward"])
    (file,) = (path for path in (tmp_path / "texts").rglob("*") if path.is_file())
    text = file.read_text().replace(" ", "")
    assert f"{SMALL.H},{SMALL.O}" in text
    assert f"{SMALL.T},{SMALL.H},{SMALL.O}" not in text
