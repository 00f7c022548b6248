"""TensorFlow behind the contract. It is imported late, in the worker, so that no one else needs it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from impls import hlo
from impls.evidence import Evidence
from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Trained, Weights, named

RECURRENT = ("w_in", "w_rec", "b_rec")
NO_EAGER_VMAP = "vectorized_map traces a graph at every call outside tf.function: it has no eager form"


class Stepped(NamedTuple):
    """What a step of training gives: its loss, and the variables that it assigned."""

    loss: Any
    variables: Trained


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
            "eager": Execution(traced=False, without={"vmap": NO_EAGER_VMAP}, trains=False),
            "graph": Execution(traced=True, loop="scan"),
            "xla": Execution(traced=True, loop="scan"),
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

    def trainer(self, program: Program, w: Weights) -> Run:
        tf = self.tf
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        cell, loss, adam = self.model.CELLS[program.cell], self.model.loss, self.model.adam
        variables = tf.nest.map_structure(tf.Variable, self.model.untrained(w))

        def update(x: Any, target: Any) -> Any:
            state: Trained = tf.nest.map_structure(tf.convert_to_tensor, variables)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(state.w)
                out = loss(arm(state.w, cell, x), target)
            after = adam(state, Weights(*tape.gradient(out, state.w)))
            tf.nest.map_structure(lambda variable, value: variable.assign(value), variables, after)
            return out

        if program.execution != "eager":
            update = tf.function(update, jit_compile=program.execution == "xla", autograph=False)
            self.functions.append(update)
        return lambda x, target: Stepped(update(x, target), variables)

    def put(self, data: Data) -> Data:
        with self.tf.device(self.device):
            return Data(Weights(*map(self.tf.constant, data.weights)), *map(self.tf.constant, data[1:]))

    def wait(self, outputs: Any) -> None:
        if self.device == "/GPU:0":
            self.tf.test.experimental.sync_devices()
            return
        if isinstance(outputs, Stepped):
            outputs = outputs.loss  # a function returns when it has assigned its variables
        for leaf in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            memoryview(leaf)  # waits for the buffer and copies nothing

    def get(self, program: Program, outputs: Any) -> Outputs:
        if isinstance(outputs, Stepped):
            outputs = (outputs.loss, *outputs.variables.leaves)
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
        from impls.tf import evidence

        function = self.programs[run]
        arguments = inputs if program.pass_ == "train" else inputs[:1]
        if program.execution == "eager":
            return evidence.of_call(lambda: self.wait(run(*inputs)))
        graph = function.get_concrete_function(*arguments).graph
        if program.execution == "graph":
            return evidence.of_graph(graph)
        text = function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
        found = hlo.evidence(text, evidence.trips(graph))
        found.missing |= {"temp_bytes": evidence.NO_XLA_MEMORY}
        return found, {"optimised.hlo": text}

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
