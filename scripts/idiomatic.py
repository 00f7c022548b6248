"""Do the hand-written arms take longer than the shortest idiomatic programs for the same computation?

Each arm is timed against what an expert would write with the framework's own layers (nn.RNNCell, nnx.RNN,
keras SimpleRNN, ...): same weights, outputs that agree, workload book, forward, CPU, 1 thread, fp32, called in
a random order each round. A ratio above 1 means that our arm is slower. A process's ratio is the median over its
rounds; the ratio printed is the geometric mean over processes. Run it after `pip install -e .`. The rows go to stdout
as CSV, and into a run's report when they are in its folder as idiomatic.csv:

    python scripts/idiomatic.py > runs/mine/idiomatic.csv           # every framework, 3 processes each
    python scripts/idiomatic.py --framework torch --processes 1
"""

import argparse
import csv
import gc
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.cli import streams
from harness.machine import folders
from harness.run.launch import COMMON, INHERITED
from harness.study.data import probe_data
from harness.study.study import NAMED
from harness.study.weights import make_inputs, make_weights
from harness.worker.timing import time_calls
from impls.interface import Arm, Backend, Data, Program, Settings, Weights

BOOK, SEED, ROUNDS, WARM_UP = NAMED["book"], 20260101, 40, 10
SETTINGS = Settings("cpu", 1, "fp32")
COLUMNS = ["framework", "execution", "arm", "idiomatic", "ours_us", "its_us", "ratio", "lowest", "highest", "note"]
Forward = Callable[..., Any]
# Our arm, the idiomatic program's name, a function that makes it for an execution, a function that makes its arguments
# from x [T, B, I], and a note.
ProgramPair = tuple[Arm, str, Callable[[str], Forward], Callable[[np.ndarray], tuple[Any, ...]], str]


def torch_pairs(w: Weights) -> list[ProgramPair]:
    """Return PyTorch's pairs, all with weights `w`."""
    import torch
    from torch import Tensor, nn, tensor

    cell, out = nn.RNNCell(BOOK.I, BOOK.H, nonlinearity="relu"), nn.Linear(BOOK.H, BOOK.O)
    biases = {"bias_ih": tensor(w.b_rec), "bias_hh": tensor(0 * w.b_rec)}
    cell.load_state_dict({"weight_ih": tensor(w.w_in.T), "weight_hh": tensor(w.w_rec.T), **biases})
    out.load_state_dict({"weight": tensor(w.w_out.T), "bias": tensor(w.b_out)})

    def in_loop(x: Tensor) -> Tensor:
        h, ys = None, []
        for x_t in x:
            h = cell(x_t, h)
            ys.append(out(h))
        return torch.stack(ys)

    def batched(x: Tensor) -> Tensor:
        h, hs = None, []
        for x_t in x:
            h = cell(x_t, h)
            hs.append(h)
        return out(torch.stack(hs))

    def pair(run: Forward, text: str) -> ProgramPair:
        make: Forward = lambda execution: torch.no_grad()(torch.compile(run) if execution == "inductor" else run)  # noqa: E731
        return Arm("unrolled", run.__name__), text, make, lambda x: (tensor(x),), "RNNCell has a second bias, zero"

    texts = "loop of nn.RNNCell and nn.Linear, stack", "loop of nn.RNNCell, stack, nn.Linear on [T, B, H]"
    return [pair(in_loop, texts[0]), pair(batched, texts[1])]


def jax_pairs(w: Weights) -> list[ProgramPair]:
    """Return the pairs of JAX with Flax, all with weights `w`."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    class Projecting(nnx.SimpleCell):
        def __call__(self, carry: Any, inputs: Any) -> tuple[Any, Any]:
            h, _ = super().__call__(carry, inputs)
            return h, self.out(h)

    def pair(projection: str, text: str, kind: type[nnx.SimpleCell]) -> ProgramPair:
        cell = kind(BOOK.I, BOOK.H, activation_fn=jax.nn.relu, rngs=nnx.Rngs(0))
        out = nnx.Linear(BOOK.H, BOOK.O, rngs=nnx.Rngs(0))
        w_in, w_rec, b_rec, out.kernel, out.bias = (nnx.Param(jnp.array(a)) for a in w)
        cell.dense_i.kernel, cell.dense_h.kernel, cell.dense_i.bias = w_in, w_rec, b_rec
        if kind is Projecting:
            cell.out = out
        rnn = nnx.RNN(cell, time_major=True)
        model = rnn if kind is Projecting else nnx.Sequential(rnn, out)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        leaves, tree = jax.tree.flatten(params)
        merge: Forward = lambda p: nnx.merge(graph, jax.tree.unflatten(tree, p), jax.tree.map(jnp.array, rest))  # noqa: E731
        run = jax.jit(lambda p, x: merge(p)(x))
        note = "jax.jit over nnx.split's plain arrays: nnx.jit, or an nnx.State as argument, takes longer per call"
        return Arm("scan", projection), text, lambda _: run, lambda x: (leaves, jnp.array(x)), note

    in_loop = pair("in_loop", "nnx.RNN(SimpleCell with Linear inside)", Projecting)
    return [in_loop, pair("batched", "nnx.RNN(SimpleCell), nnx.Linear on [T, B, H]", nnx.SimpleCell)]


def tf_pairs(w: Weights) -> list[ProgramPair]:
    """Return the pairs of TensorFlow with Keras, all with weights `w`."""
    import tensorflow as tf
    from keras import Sequential, layers

    class Projecting(layers.SimpleRNNCell):
        def call(self, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            h, states = super().call(*args, **kwargs)
            return self.out(h), states

    def pair(arm: Arm, text: str, *parts: layers.Layer) -> ProgramPair:
        model = Sequential([layers.Input((BOOK.T, BOOK.I), BOOK.B), *parts])
        model.set_weights(w)
        args: Forward = lambda x: (tf.constant(np.ascontiguousarray(x.swapaxes(0, 1))),)  # noqa: E731
        # A lambda, because tf.function calls the bound model.call more slowly.
        return (
            arm,
            text,
            lambda execution: tf.function(lambda x: model(x), jit_compile=execution == "xla"),
            args,
            "[B, T, ·] layout",
        )

    pairs = []
    for name, unroll in (("unrolled", True), ("scan", False)):
        rnn = layers.SimpleRNN(BOOK.H, activation="relu", return_sequences=True, unroll=unroll)
        text = f"SimpleRNN(unroll={unroll}), Dense on [B, T, H]"
        pairs.append(pair(Arm(name, "batched"), text, rnn, layers.Dense(BOOK.O)))
    cell = Projecting(BOOK.H, activation="relu")
    cell.out = layers.Dense(BOOK.O)
    cell.out.build((BOOK.B, BOOK.H))
    rnn, text = layers.RNN(cell, return_sequences=True), "RNN(SimpleRNNCell with Dense inside)"
    return [*pairs, pair(Arm("scan", "in_loop"), text, rnn)]


PAIRS = {"torch": (torch_pairs, "eager", "inductor"), "jax": (jax_pairs, "xla"), "tf": (tf_pairs, "graph", "xla")}


def compare(backend: Backend, data: Data, pair: ProgramPair, execution: str, seed: int) -> dict[str, Any]:
    """Check that both programs agree, on probe and on real inputs, then time them in a random order each round.

    Raises SystemExit where their outputs differ.
    """
    arm, text, make, args, note = pair
    put = backend.put(data)
    program = Program(arm, BOOK.cell, "forward", execution)
    runs = backend.prepare(program, put.weights), make(execution)
    for inputs in (probe_data(data), data):
        calls: tuple[Any, Any] = backend.put(inputs)[1:], args(inputs.x)
        ours, idiomatic = (backend.get(program, run(*call))["y"] for run, call in zip(runs, calls, strict=True))
        idiomatic = idiomatic if idiomatic.shape == ours.shape else idiomatic.swapaxes(0, 1)  # Keras is batch-major
        if idiomatic.shape != ours.shape or not np.allclose(ours, idiomatic, rtol=1e-4, atol=1e-5):
            raise SystemExit(f"{execution} {arm.name}, {text}: the outputs do not agree; nothing was timed")
    times, generator = np.zeros((2, WARM_UP + ROUNDS)), np.random.default_rng(seed)
    for round_index in range(WARM_UP + ROUNDS):
        for index in generator.permutation(2):
            times[index, round_index], _ = time_calls(time.perf_counter_ns, backend.wait, runs[index], calls[index], 1)
    ours, idiomatic = times[:, WARM_UP:] / 1e3
    medians = [float(np.median(values)) for values in (ours, idiomatic, ours / idiomatic)]
    return {"pair": [execution, arm.name, text], "note": note, "medians": medians}


def run_child(framework: str, seed: str, path: str) -> None:
    """Compare all pairs of one framework in this process, and write the results to `path` as JSON."""
    backend: Backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    backend.open(SETTINGS)
    gc.disable()
    data, (pairs, *executions) = Data(Weights(**make_weights(BOOK, SEED)), **make_inputs(BOOK, SEED)), PAIRS[framework]
    cases = [(pair, execution) for execution in executions for pair in pairs(data.weights)]
    results = [
        compare(backend, data, pair, execution, int(seed) + index) for index, (pair, execution) in enumerate(cases)
    ]
    Path(path).write_text(json.dumps(results))


def run_in_process(framework: str, seed: int) -> list[dict[str, Any]]:
    """Run a child with the environment variables of the study's workers, and return its results.

    Raises SystemExit where the child fails.
    """
    backend: Backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    variables = {name: os.environ[name] for name in INHERITED if name in os.environ} | COMMON
    with folders.private() as folder:
        variables |= backend.environment(replace(SETTINGS, cache=str(folder))) | {"KERAS_BACKEND": "tensorflow"}
        command = [sys.executable, __file__, "--child", framework, str(seed), f"{folder}/found.json"]
        if code := subprocess.run(command, env=variables, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"{framework}: its process ended with status {code}")
        return json.loads(Path(command[-1]).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description="Time our arms against idiomatic programs.")
    parser.add_argument("--framework", choices=PAIRS, help="only this one")
    parser.add_argument("--processes", type=int, choices=range(1, 101), metavar="N", default=3, help="per framework")
    arguments = parser.parse_args()
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for framework in [arguments.framework] if arguments.framework else PAIRS:
        for results in zip(
            *(run_in_process(framework, 1000 * index) for index in range(arguments.processes)), strict=True
        ):
            ours, idiomatic, ratios = np.array([result["medians"] for result in results]).T
            ratio = np.exp(np.log(ratios).mean())  # the geometric mean
            numbers = [np.median(ours), np.median(idiomatic), ratio, min(ratios), max(ratios)]
            writer.writerow(
                [framework, *results[0]["pair"], *(f"{number:.4g}" for number in numbers), results[0]["note"]]
            )
            sys.stdout.flush()


if __name__ == "__main__":
    run_child(*sys.argv[2:]) if sys.argv[1:2] == ["--child"] else streams.leave(main)
