"""TensorFlow behind the contract. It is imported late, in the worker, so that no one else needs it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from impls import hlo
from impls.evidence import Evidence, Product
from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Weights, named


RECURRENT = ("w_in", "w_rec", "b_rec")
NO_EAGER_VMAP = "vectorized_map traces a graph at every call outside tf.function: it has no eager form"
NO_XLA_MEMORY = "TensorFlow does not tell it of a program compiled by XLA"
NO_MEMORY = "TensorFlow does not tell it on a CPU"
NO_FUSIONS = "Grappler, which fuses and prunes what the concrete function holds, does not show its result"
UNKNOWN_TRIPS = "a loop whose trip count the graph does not hold"
FREE = {"Const", "Placeholder", "PlaceholderWithDefault", "Identity", "NoOp", "Arg", "Retval"}
PRODUCTS = ("MatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul")


class Operation(NamedTuple):
    """An operation that is run `count` times: its operands' shapes, and which of the first two are transposed."""

    count: int
    kind: str
    shapes: list[tuple[int, ...]]
    transposed: tuple[bool, bool]


class Backend:
    """See impls.interface.Backend."""

    def __init__(self) -> None:
        self.functions: list[Any] = []
        self.programs: dict[Any, Any] = {}  # what is called -> what runs

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        cache = {"TF_XLA_FLAGS": f"--tf_xla_persistent_cache_directory={settings.cache}"} if settings.cache else {}
        return {
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_NUM_INTEROP_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "PJRT_NPROC": threads,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": {"cpu": "-1", "gpu": "0"}[settings.device],
        } | cache

    def facts(self) -> Facts:
        import keras
        import tensorflow as tf

        executions = {
            "eager": Execution(traced=False, without={"vmap": NO_EAGER_VMAP}),
            "graph": Execution(traced=True),
            "xla": Execution(traced=True),
        }
        gpu = None if tf.config.list_physical_devices("GPU") else "TensorFlow sees no GPU (its build needs CUDA 12)"
        return Facts({"tensorflow": tf.__version__, "keras": keras.__version__}, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> None:
        import tensorflow as tf

        from impls.tf import model

        self.tf, self.model = tf, model
        tf.get_logger().setLevel("ERROR")  # it warns of retracing when many functions share a name, as here
        self.device = {"cpu": "/CPU:0", "gpu": "/GPU:0"}[settings.device]
        tf.config.experimental.enable_tensor_float_32_execution(False)  # fp32 is IEEE fp32, on GPUs too

    def prepare(self, program: Program, w: Weights) -> Run:
        tf = self.tf
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        cell, loss = self.model.CELLS[program.cell], self.model.loss
        if _own_gru(program):
            w = w._replace(**dict(zip(RECURRENT, self._to_keras(*w[:3]), strict=True)))

        def forward(x: Any) -> Any:
            return arm(w, cell, x)

        def train(x: Any, target: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(w)
                out = loss(arm(w, cell, x), target)
            # Projection none leaves w_out and b_out unused: their gradients are zeros.
            return out, *tape.gradient(out, w, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        run: Any = forward if program.pass_ == "forward" else train
        if program.execution != "eager":
            run = tf.function(run, jit_compile=program.execution == "xla", autograph=False)
            self.functions.append(run)
        # A traced function pays for every argument, used or not: as much as 5% of book's forward pass.
        call: Any = run if program.pass_ == "train" else lambda x, target: run(x)
        self.programs[call] = run
        return call

    def put(self, data: Data) -> Data:
        with self.tf.device(self.device):
            return Data(Weights(*map(self.tf.constant, data.weights)), *map(self.tf.constant, data[1:]))

    def wait(self, outputs: Any) -> None:
        if self.device == "/GPU:0":
            self.tf.test.experimental.sync_devices()
            return
        for leaf in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            memoryview(leaf)  # waits for the buffer and copies nothing

    def get(self, program: Program, outputs: Any) -> Outputs:
        leaves = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        arrays = [np.array(leaf) for leaf in leaves]
        if _own_gru(program) and program.pass_ == "train":
            arrays[1:4] = (_exchanged(a) for a in (*arrays[1:3], arrays[3][0]))
        return named(arrays)

    def _to_keras(self, w_in: Any, w_rec: Any, b_rec: Any) -> tuple[Any, Any, Any]:
        """A GRU's weights as Keras has them: gates z, r, n, and two rows of bias, the recurrent one zero."""
        biases = np.stack([np.array(b_rec), np.zeros_like(b_rec)])
        return tuple(self.tf.constant(_exchanged(np.array(a))) for a in (w_in, w_rec, biases))

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """Of xla, from the optimised HLO; of graph, from the concrete function; of eager, as operations are run."""
        function = self.programs[run]
        arguments = inputs if program.pass_ == "train" else inputs[:1]
        if program.execution == "eager":
            operations = self._ran(run, inputs)
            return _of_operations(operations, {}, False), {"operations.txt": _lines(operations)}
        loops: dict[str, int | None] = {}
        operations = list(self._in_graph(function.get_concrete_function(*arguments).graph, 1, loops))
        if program.execution == "graph":
            return _of_operations(operations, loops, True), {"operations.txt": _lines(operations)}
        text = function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
        found = hlo.evidence(text, loops)
        found.missing |= {"temp_bytes": NO_XLA_MEMORY}
        return found, {"optimised.hlo": text}

    def _ran(self, run: Run, inputs: Sequence[Any]) -> list["Operation"]:
        """The operations of one eager call, told by TensorFlow as they are run."""
        from tensorflow.python.framework import op_callbacks

        seen: list[Operation] = []

        def told(kind: Any, inputs: Any, attributes: Any, outputs: Any, op_name: Any = None, graph: Any = None) -> None:
            kind = kind.decode() if isinstance(kind, bytes) else kind
            flags = dict(zip(attributes[::2], attributes[1::2], strict=True)) if attributes else {}
            seen.append(Operation(1, kind, [tuple(one.shape) for one in inputs], _transposed(flags.get)))

        op_callbacks.add_op_callback(told)
        try:
            self.wait(run(*inputs))
        finally:
            op_callbacks.remove_op_callback(told)
        return seen

    def _in_graph(self, graph: Any, times: int, loops: dict[str, int | None]) -> Iterator["Operation"]:
        """What `times` runs of a graph run, with its loops' bodies; `loops` gets their trips by name, None if unknown."""
        from tensorflow.python.ops import while_v2

        for one in _reached(graph):
            if one.type in ("While", "StatelessWhile"):
                trips = self._known(one.inputs[1])
                loops[one.name] = trips
                body = while_v2._get_graph(one, "body", "_body_graph")
                yield from self._in_graph(body, times * (trips or 1), loops)
            elif one.type not in FREE:
                shapes = [tuple(operand.shape.as_list() if operand.shape.rank else ()) for operand in one.inputs]
                yield Operation(times, one.type, shapes, _transposed(one.node_def.attr.get))

    def _known(self, tensor: Any) -> int | None:
        """The number that a tensor always holds, if that is known: of a loop, its most trips, which ours all make."""
        value = self.tf.get_static_value(tensor)
        if value is None and tensor.op.type in ("Max", "Identity", "Cast"):
            value = self.tf.get_static_value(tensor.op.inputs[0])
        return None if value is None else int(np.max(value))

    def compilations(self) -> int:
        return sum(function.experimental_get_tracing_count() for function in self.functions)

    def product(self, size: int) -> Callable[[], None]:
        a = self.tf.ones((size, size))
        return lambda: self.wait(self.tf.matmul(a, a))


def _own_gru(program: Program) -> bool:
    return program.cell == "gru" and program.arm.recurrence == "layer"


def _exchanged(a: np.ndarray) -> np.ndarray:
    """[..., 3 H] with its first two gates exchanged."""
    one, two, three = np.split(a, 3, axis=-1)
    return np.concatenate([two, one, three], axis=-1)


def _of_operations(operations: Sequence[Operation], loops: dict[str, int | None], graph: bool) -> Evidence:
    products: Counter[tuple[int, int, int, int]] = Counter()
    kernels: Counter[str] = Counter()
    for one in operations:
        kernels[one.kind] += one.count
        if one.kind in PRODUCTS:
            products[_product(one)] += one.count
    missing = {"temp_bytes": NO_MEMORY} | ({"fusions": NO_FUSIONS} if graph else {})
    if None in loops.values():
        missing |= {"products": UNKNOWN_TRIPS, "kernels": UNKNOWN_TRIPS}
    return Evidence(
        products=[Product(count, *shape) for shape, count in sorted(products.items())],
        kernels=dict(sorted(kernels.items())),
        fusions=None if graph else 0,
        loops=[trips for trips in loops.values() if trips is not None],
        missing=missing,
    )


def _product(one: Operation) -> tuple[int, int, int, int]:
    """Batch, M, K, N."""
    (*batch, m, k), (*_, n) = one.shapes[:2]
    if one.transposed[0]:
        m, k = k, m
    if one.transposed[1]:
        n = one.shapes[1][-2]
    return math.prod(batch), m, k, n


def _transposed(flag: Callable[[str], Any]) -> tuple[bool, bool]:
    """Whether a product takes its operands transposed, from its attributes, whose names differ between products."""

    def either(*names: str) -> bool:
        found = next((value for value in map(flag, names) if value is not None), False)
        return bool(getattr(found, "b", found))

    return either("transpose_a", "adj_x"), either("transpose_b", "adj_y")


def _reached(graph: Any) -> list[Any]:
    """The operations that a graph's outputs need, in its order: the others are pruned before it runs."""
    needed, todo = set(), [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while todo:
        one = todo.pop()
        if one.name not in needed:
            needed.add(one.name)
            todo += [tensor.op for tensor in one.inputs] + list(one.control_inputs)
    return [one for one in graph.get_operations() if one.name in needed]


def _lines(operations: Sequence[Operation]) -> str:
    return "".join(f"{one.count}×{one.kind} {' '.join(map(str, one.shapes))}".rstrip() + "\n" for one in operations)
