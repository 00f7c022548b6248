"""What is asked of a framework inside a process that has imported it: one process for all, since to import takes long.

    python -m tests.inside torch FILE

writes JSON: part -> its lines, or the error that ended it. The last part breaks what the others may use.
"""

import collections
import importlib
import itertools
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import numpy as np

from harness.study import weights
from harness.study.study import NAMED, Workload
from impls import hlo
from impls.evidence import flops
from impls.interface import USUAL_PASSES, Arm, Data, Program, Settings, Weights
from tests import stepped
from tests.conftest import SMALL, data_of

GONE = ("json", "gone.away")
STEPPED = {"tf": "graph", "torch": "eager", "jax": "xla"}
SHAPES = (((50, 100), (100, 64)), ((50, 100), (100, 1)), ((1, 100), (100, 64)), ((5, 50, 100), (5, 100, 64)))


def opened(framework, precision="fp32"):
    backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    backend.open(Settings("cpu", 1, precision))
    return backend


def names(framework) -> Iterator[str]:
    """Yield which private names are gone; one that never was is looked for too."""
    for module, name in (*importlib.import_module(f"impls.{framework}.private").NAMES, GONE):
        try:
            reduce(getattr, name.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            yield f"{module}.{name}: {error}"


def steps(framework) -> Iterator[str]:
    """Yield the folder with what a few steps of training in float64 came to."""
    folder = tempfile.mkdtemp(dir=sys.argv[2].rpartition("/")[0])
    stepped.write(framework, STEPPED[framework], folder)
    yield folder


def unknown_products_tf(framework) -> Iterator[str]:
    """Yield why products of two kinds are missing, and that those of a third are not."""
    import tensorflow as tf

    from impls.tf import evidence

    a = tf.ones((2, 3, 3, 4))
    for call in (
        lambda: tf.nn.conv2d(a, tf.ones((2, 2, 4, 5)), 1, "SAME"),
        lambda: tf.raw_ops.Einsum(inputs=[a, tf.ones((4, 5))], equation="abcd,de->abce"),
        lambda: tf.linalg.matmul(a, tf.ones((2, 3, 4, 5))),
    ):
        yield str(evidence.of_call(call)[0].missing.get("products"))


def unknown_products_jax(framework) -> Iterator[str]:
    """Yield why products of two kinds are missing, and that those of a third are not."""
    import jax
    import jax.numpy as jnp

    from impls.jax import evidence

    for function, *shapes in (
        (lambda a, b: jax.lax.conv(a, b, (1, 1), "SAME"), (2, 4, 3, 3), (5, 4, 2, 2)),
        (lambda a, b, n: jax.lax.ragged_dot(a, b, n.astype(int)), (4, 3), (2, 3, 5), (2,)),
        (lambda a, b: a @ b, (2, 3), (3, 4)),
    ):
        found = evidence.of_jaxpr(jax.make_jaxpr(function)(*map(jnp.ones, shapes)).jaxpr)
        yield str(found.missing.get("products"))


def unknown_products_torch(framework) -> Iterator[str]:
    """Yield of each of several operations what is counted, why it is missing, and its products as they are listed."""
    import torch

    from impls.torch import evidence

    v, a, b = torch.ones(4), torch.ones(3, 4), torch.ones(4, 5)
    signal, filters, bytes_ = torch.ones(2, 3, 8), torch.ones(4, 3, 2), torch.ones(32, 32, dtype=torch.int8)
    calls = {
        "dot": lambda: v @ v,
        "addr": lambda: torch.addr(torch.ones(4, 4), v, v),
        "int": lambda: torch._int_mm(bytes_, bytes_),
        "addbmm": lambda: torch.addbmm(torch.ones(3, 5), a[None], b[None]),
        "conv": lambda: torch.nn.functional.conv1d(signal, filters),
        "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*[signal[None]] * 3),
        "mv": lambda: a @ v,
        "einsum": lambda: torch.einsum("ij,jk->ik", a, b),
        "tanh": lambda: torch.tanh(a),
        "linear": lambda: torch.nn.functional.linear(signal, torch.ones(5, 8), torch.ones(5)),
    }
    for name, call in calls.items():
        found, _ = evidence.of_call(lambda call=call: (call(),), False)
        yield json.dumps([name, found.products, found.missing, evidence.products(call)])


def operations(framework) -> Iterator[str]:
    """Yield the operations of a few programs as PyTorch's own counter has them, and as the harness counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    backend = opened("torch")
    for projection, pass_ in itertools.product(
        ("none", "in_loop", "per_step", "batched", "bmm", "library"), USUAL_PASSES
    ):
        program = Program(Arm("unrolled", projection), SMALL.cell, pass_, "eager")
        data = data_of(SMALL)
        data = data._replace(target=data.x[:, :, :1].repeat(SMALL.H, 2)) if projection == "none" else data
        w, *inputs = backend.put(data)
        run = backend.prepare(program, w)
        with FlopCounterMode(display=False) as counter:
            run(*inputs)
        yield f"{counter.get_total_flops()} {flops(backend.evidence(program, run, inputs)[0].products)}"


def kernels_jax(framework) -> Iterator[str]:
    """Yield, for products of several shapes, whether XLA says what multiplies and whether it generated a kernel."""
    import jax
    import jax.numpy as jnp

    for shapes in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True, "xla_cpu_experimental_ynn_fusion_type": ""}
            compiled = jax.jit(jnp.matmul).lower(*map(jnp.ones, shapes)).compile(compiler_options=options)
            yield from told_and_generated(compiled.as_text(), os.listdir(folder))


def kernels_tf(framework) -> Iterator[str]:
    """Yield the same of TensorFlow's XLA, which writes into the folder that XLA_FLAGS names."""
    import tensorflow as tf

    for shapes in SHAPES:
        before = set(os.listdir(DUMPED))
        function = tf.function(lambda a, b: tf.matmul(a, b), jit_compile=True, autograph=False)
        text = function.experimental_get_compiler_ir(*map(tf.ones, shapes))(stage="optimized_hlo")
        new = set(os.listdir(DUMPED)) - before
        assert any("after_optimizations" in name for name in new)
        yield from told_and_generated(text, new)


def told_and_generated(text, files) -> Iterator[str]:
    generated = any("dot" in name and name.endswith("no-opt.ll") for name in files)
    yield str(hlo.evidence(text).libraries == ({"XLA": 1} if generated else {}))
    yield str(generated)


def held(framework) -> Iterator[str]:
    """Yield how TensorFlow's programs hold the weights of book, how often Keras' layers are built and called, and the
    text of a batched product.
    """
    import keras
    import tensorflow as tf

    def constants(graph):
        definition = graph.as_graph_def()
        nodes = itertools.chain(definition.node, *(function.node_def for function in definition.library.function))
        return [tf.make_ndarray(node.attr["value"].tensor) for node in nodes if node.op == "Const"]

    backend, book = opened("tf"), NAMED["book"]
    arrays = Weights(**weights.make_weights(book, 1))
    data = backend.put(Data(arrays, **weights.make_inputs(book, 1)))
    for arm, execution, pass_ in itertools.product(
        (Arm("scan", "in_loop"), Arm("scan", "batched"), Arm("layer", "library")), ("graph", "xla"), USUAL_PASSES
    ):
        run = backend.prepare(Program(arm, book.cell, pass_, execution), data.weights)
        inputs = data[1:] if pass_ == "train" else data[1:2]
        graph = backend.programs[run].get_concrete_function(*inputs).graph
        fixed = {name for name, a in arrays._asdict().items() for c in constants(graph) if np.array_equal(c, a)}
        yield " ".join(
            [arm.name, execution, pass_, "constant:", *sorted(fixed), "variables:", str(len(graph.variables))]
        )
    counts = collections.Counter()

    def count(kind, method):
        original = getattr(kind, method)

        def counting(self, *arguments, **named):
            counts[kind.__name__, method] += 1
            return original(self, *arguments, **named)

        setattr(kind, method, counting)

    for kind, method in itertools.product((keras.layers.SimpleRNN, keras.layers.Dense), ("build", "__call__")):
        count(kind, method)
    run = backend.prepare(Program(Arm("layer", "library"), book.cell, "forward", "eager"), data.weights)
    yield f"prepared {sorted(counts.items())}"
    counts.clear()
    for _ in range(3):
        run(*data[1:])
    yield f"called {sorted(counts.items())}"


def function_names(framework) -> Iterator[str]:
    """Yield the names of what TensorFlow makes of a program: alone, after another program, and of its second copy."""
    data = data_of(SMALL)
    programs = [Program(Arm("scan", form), SMALL.cell, "train", "xla") for form in ("in_loop", "batched")]
    for made_before in ([], [programs[1]], [programs[0]]):
        backend = opened("tf")
        w, *inputs = backend.put(data)
        for program in (*made_before, programs[0]):
            run = backend.prepare(program, w)
            run(*inputs)
        function = backend.programs[run].get_concrete_function(*inputs)
        yield " ".join(
            [function.name.decode(), *sorted(f.signature.name for f in function.graph.as_graph_def().library.function)]
        )


def batched(framework) -> Iterator[str]:
    """Yield the text of a batched product's eager program."""
    backend = opened(framework)
    w, *inputs = backend.put(data_of(SMALL))
    program = Program(Arm("given", "bmm"), SMALL.cell, "forward", "eager")
    inputs[0] = backend.put(data_of(SMALL)._replace(x=np.ones((SMALL.T, SMALL.B, SMALL.H), np.float32))).x
    run = backend.prepare(program, w)
    run(*inputs)
    if framework == "tf":  # without the process that is asked which library multiplies
        from impls.tf import evidence

        _, texts = evidence.of_call(lambda: run(*inputs))
    else:
        _, texts = backend.evidence(program, run, inputs)
    yield from texts.values()


def counters(framework) -> Iterator[str]:
    """Yield what is said when what counts compilations counts nothing: the proof of each counter comes to an end."""
    module = importlib.import_module(f"impls.{framework}.backend")

    def proven(broken=lambda backend: None):
        backend = opened(framework)
        broken(backend)
        if framework == "torch":  # proven when it compiles first
            backend.prepare(Program(Arm("given", "none"), "rnn_tanh", "forward", "inductor"), ())

    def refused(what, broken=lambda backend: None):
        try:
            proven(broken)
        except RuntimeError as error:
            return str(error)
        return f"with {what} renamed the proof holds"

    proven()
    if framework == "torch":
        nothing = collections.defaultdict(collections.Counter)
        yield refused("the counter", lambda backend: setattr(backend, "counters", nothing))
    elif framework == "jax":
        module.private.COMPILE_EVENTS = "/renamed/"
        yield refused("the events")
    else:
        import tensorflow as tf

        version, tf.Graph.version = tf.Graph.version, property(lambda graph: 0)
        yield refused("the graph's version")
        tf.Graph.version = version
        type(tf.function(lambda: 0)).experimental_get_tracing_count = lambda function: 0
        yield refused("the tracing count")


WIDE = Workload(name="w", B=3, T=8, I=2, H=4, O=32, loss="cross_entropy")  # [T, B, O] is by far its largest array
FORMS = {  # loop, execution and pass in which the largest array is looked for -> projections
    "tf": [("unrolled", "eager"), ("scan", "graph"), ("scan", "xla")],
    "torch": [("unrolled", "eager")],
    "jax": [("scan", "xla"), ("unrolled", "xla")],
}


def largest(framework) -> Iterator[str]:
    """Yield how many numbers the largest array has that a form computes or keeps, as a share of [T, B, O]."""
    backend = opened(framework)
    w, *inputs = backend.put(data_of(WIDE))
    whole = WIDE.T * WIDE.B * WIDE.O
    for (loop, execution), pass_ in itertools.product(FORMS[framework], ("loss", "train")):
        for projection in ("batched", "in_loop_loss", "chunked_loss_2", "chunked_loss_T"):
            program = Program(Arm(loop, projection), WIDE.cell, pass_, execution, WIDE.loss)
            run = backend.prepare(program, w)
            run(*inputs)
            counts = globals()[f"arrays_{framework}"](backend, run, inputs, execution)
            yield f"{loop} {execution} {pass_} {projection} {max(counts) / whole:.3f}"


def arrays_torch(backend, run, inputs, execution) -> Iterator[int]:
    """Yield the size of every array that PyTorch computes in a call."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            arrays = result if isinstance(result, (tuple, list)) else [result]
            sizes.extend(array.numel() for array in arrays if isinstance(array, torch.Tensor))
            return result

    with Recorder():
        run(*inputs)
    yield from sizes


def arrays_jax(backend, run, inputs, execution) -> Iterator[int]:
    """Yield the size of every array in XLA's program."""
    yield from sizes_in(run.func.lower(*run.args, *inputs).compile().as_text())


def arrays_tf(backend, run, inputs, execution) -> Iterator[int]:
    """Yield the size of every array that TensorFlow computes: eagerly, in XLA's program, or in a graph and its loops.

    What a loop keeps for its backward pass is a list, of an array for each trip.
    """
    from impls.tf import private

    if execution == "eager":
        sizes = []

        def record(kind, inputs, attributes, outputs, *others):
            sizes.extend(int(np.prod(output.shape)) for output in outputs)

        with private.operation_callback(record):
            run(*inputs)
        yield from sizes
        return
    function = backend.programs[run]
    if execution == "xla":
        yield from sizes_in(function.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo"))
        return
    for operation in function.get_concrete_function(*inputs).graph.get_operations():
        yield from (array.shape.num_elements() or 0 for array in operation.outputs if array.shape.rank is not None)
        if operation.type in ("While", "StatelessWhile"):
            trips = max((a.shape[0] for a in inputs), default=1)
            for inner in private.loop_body(operation).get_operations():
                yield from (array.shape.num_elements() or 0 for array in inner.outputs if array.shape.rank is not None)
                if inner.type == "TensorListPushBack":
                    yield trips * (inner.inputs[1].shape.num_elements() or 0)


def sizes_in(text) -> Iterator[int]:
    for dimensions in re.findall(r"\b[a-z]+[0-9]*\[([0-9,]+)\]", text):
        yield int(np.prod([int(number) for number in dimensions.split(",")]))


PARTS = {
    "tf": {
        "products": unknown_products_tf,
        "kernels": kernels_tf,
        "batched": batched,
        "held": held,
        "function_names": function_names,
    },
    "torch": {"products": unknown_products_torch, "operations": operations},
    "jax": {"products": unknown_products_jax, "kernels": kernels_jax, "batched": batched},
}
DUMPED = tempfile.gettempdir()


def found(part, framework):
    try:
        return {"lines": list(part(framework)), "error": None}
    except Exception:  # whatever ends a part is what the test of that part says, and spares the others
        return {"lines": [], "error": traceback.format_exc()}


def main(framework, file):
    backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    os.environ.update(backend.environment(Settings("cpu", 1, "fp32")))
    if framework == "tf":
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMPED} --xla_dump_hlo_as_text"
    parts = {"names": names, **PARTS[framework], "largest": largest, "steps": steps, "counters": counters}
    Path(file).write_text(json.dumps({name: found(part, framework) for name, part in parts.items()}))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as DUMPED:
        main(*sys.argv[1:])
