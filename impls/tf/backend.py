"""The TensorFlow backend. TensorFlow is imported late, inside the worker, so that no other process needs it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from impls import hlo, libraries, trace
from impls.evidence import Evidence
from impls.interface import (
    CHUNKED,
    FAMILIES,
    NO_HOIST,
    RECURRENCES,
    TRAIN_NONE,
    Data,
    Execution,
    Facts,
    Outputs,
    Program,
    Run,
    Settings,
    Trained,
    Unavailable,
    Weights,
    named,
    prove_counting,
    require_layer,
)
from impls.tf import private
from impls.tf.products import VerboseProcess

NO_EAGER_VMAP = "vectorized_map traces a graph at every call outside tf.function: it has no eager form"
EAGER_LOOP = "nobody writes an eager tf.while_loop"
ORIGINAL = "v1"
TRACES = 5  # runs of the original that are traced for its memory
NO_LEGACY = "the original's BasicRNNCell is in tf-keras, which is not installed"
NO_OTHER_LOOP = "the original runs dynamic_rnn, a symbolic loop, and no other recurrence"
NO_OTHER_FORM = "the original projects in the wrapper, or once on its reshaped outputs"
NO_OTHER_LOSS = "the original's loss is the mean squared error, and its programs return its gradients with it"
NO_GATES = "the original's cell is BasicRNNCell: a plain RNN, with one of its activations"
NAMES_EACH = 2**20  # numbers that a program's functions and loops have to themselves
NO_TRAINING = "the original's programs give gradients here, and do not take steps"
NO_BF16 = "a session is fed NumPy arrays, which hold no bfloat16"
NO_HOST = "a session is fed and fetched through the host, and its copies from and to a GPU would be timed"


class Stepped(NamedTuple):
    """The result of a training step: its loss, and the variables that it assigned."""

    loss: Any
    variables: Trained


class Backend:
    """The contract of impls.interface.Backend, fulfilled with TensorFlow."""

    def __init__(self) -> None:
        self.functions: list[Any] = []
        self.graphs: list[Any] = []  # graphs of sessions
        self.prober = VerboseProcess()
        self.traced: Counter[Any] = Counter()  # programs, with the shapes of their inputs
        self.programs: dict[Any, Any] = {}  # callable that `prepare` returned -> the function or session behind it

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        flags = f"--tf_xla_persistent_cache_directory={settings.cache}"  # split at blanks: a cache's path has none
        cache = {"TF_XLA_FLAGS": flags, "TMPDIR": settings.cache} if settings.cache else {}
        plain = private.PLAIN if settings.library == "plain" else {}
        return (
            {
                "TF_NUM_INTRAOP_THREADS": threads,
                "TF_NUM_INTEROP_THREADS": threads,
                "OMP_NUM_THREADS": threads,
                "PJRT_NPROC": threads,
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "KERAS_BACKEND": "tensorflow",
                **({"CUDA_VISIBLE_DEVICES": "-1"} if settings.device == "cpu" else {}),
                "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # workers that verify run side by side
            }
            | cache
            | plain
        )

    def facts(self) -> Facts:
        import keras
        import tensorflow as tf

        legacy = _legacy()
        executions = {
            "eager": Execution(
                False,
                without={"vmap": NO_EAGER_VMAP, "hoisted": NO_HOIST},
                on_request={"scan": EAGER_LOOP},
                trains=False,
                usual_passes=("forward", "loss"),
            ),
            "graph": Execution(True, without={"hoisted": NO_HOIST}, loop="scan", chunks_unrolled=(CHUNKED,)),
            "xla": Execution(True, without={"hoisted": NO_HOIST}, loop="scan", chunks_unrolled=(CHUNKED,)),
            ORIGINAL: Execution(
                True, None if legacy else NO_LEGACY, _not_original(), trains=False, loop="scan", takes_functions=False
            ),
        }
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__} | legacy
        gpu = None if tf.config.list_physical_devices("GPU") else "TensorFlow sees no GPU (its build needs CUDA 12)"
        return Facts(versions, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> dict[str, str]:
        import tensorflow as tf

        from impls.tf import model

        self.tf, self.model, self.threads = tf, model, settings.threads
        tf.get_logger().setLevel("ERROR")  # it warns of retracing when many functions share a name, as they do here
        self.gpu = settings.device == "gpu"
        self.number = {"bf16": "bfloat16", "fp64": "float64"}.get(settings.precision, "float32")
        self.device = "/GPU:0" if self.gpu else "/CPU:0"
        self.dtype = tf.bfloat16 if settings.precision == "bf16" else None
        if settings.precision != "as_shipped":
            tf.config.experimental.enable_tensor_float_32_execution(settings.precision == "tf32")
        prove_counting(self.compilations, self._trace, "tf.function's tracing count")
        prove_counting(self.compilations, self._grow, "a graph's version")
        return {"tensor_float_32_execution": str(tf.config.experimental.tensor_float_32_execution_enabled())}

    def prepare(self, program: Program, w: Weights) -> Run:
        if program.execution == ORIGINAL:
            return self._original(program, w)
        tf = self.tf
        recurrence, projection, cell = program.arm.recurrence, program.arm.projection, self.model.CELLS[program.cell]
        require_layer(program, cell.own)
        if _own_gru(program):
            w = Weights(*self._to_keras(*w.recurrent), w.w_out, w.b_out)
        with tf.device(self.device):
            variables = self.model.held(w, cell, recurrence, projection)

        run: Any = self._run(program, variables)
        if program.execution != "eager":
            run = self._function(program, run)
        # A traced function spends time on every argument, used or not: up to 5% of book's forward pass.
        call: Any = run if program.pass_ != "forward" else lambda x, target: run(x)
        self.programs[call] = run
        return call

    def _run(self, program: Program, variables: Any) -> Any:
        """Return a program as a function of its inputs: of x alone (forward), or of x and target."""
        tf = self.tf
        recurrence, projection, cell = program.arm.recurrence, program.arm.projection, self.model.CELLS[program.cell]
        if program.pass_ == "forward" or projection == "none":
            arm = self.model.arm(recurrence, projection, program.layers)

            def forward(x: Any) -> Any:
                return arm(variables, cell, x)

            def backward(x: Any, d_h: Any) -> Any:
                with tf.GradientTape() as tape:
                    hs = arm(variables, cell, x)
                return tape.gradient(hs, variables.recurrent, output_gradients=d_h)

            return forward if program.pass_ == "forward" else backward
        objective = self.model.objective(recurrence, projection, program.loss, program.layers)

        def loss(x: Any, target: Any) -> Any:
            return objective(variables, cell, x, target)

        def train(x: Any, target: Any) -> Any:
            with tf.GradientTape() as tape:
                out = objective(variables, cell, x, target)
            weights = variables[: len(Weights._fields)]
            # Recurrence `given` does not use w_in, w_rec and b_rec: their gradients are zeros.
            return out, *tape.gradient(out, weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        return loss if program.pass_ == "loss" else train

    def _function(self, program: Program, body: Callable[..., Any]) -> Any:
        """Return a tf.function of a program's body, which counts among the compilations.

        What it makes has the same names in every process, so that XLA finds in its cache what another one compiled.
        """

        def named_body(*inputs: Any) -> Any:
            key = (program, *(tuple(a.shape) for a in inputs))
            digest = hashlib.sha256(repr((key, self.traced[key])).encode()).digest()
            self.traced[key] += 1
            private.number_names_from(int.from_bytes(digest[:5], "big") * NAMES_EACH)
            return body(*inputs)

        function = self.tf.function(named_body, jit_compile=program.execution == "xla", autograph=False)
        self.functions.append(function)
        return function

    def _original(self, program: Program, w: Weights) -> Run:
        """Return the run of the chapter's program for this arm, in a graph and a session of its own."""
        from impls.tf import original, session

        if program.cell not in original.ACTIVATIONS:
            raise Unavailable(NO_GATES)
        runner = session.Session(program, w, self.threads)
        self.graphs.append(runner.graph)
        call: Any = runner.run if program.pass_ == "train" else lambda x, target: runner.run(x)
        self.programs[call] = runner
        return call

    def trainer(self, program: Program, w: Weights) -> Run:
        if program.execution == ORIGINAL:
            raise Unavailable(NO_TRAINING)
        tf = self.tf
        objective = self.model.objective(program.arm.recurrence, program.arm.projection, program.loss)
        cell, adam = self.model.CELLS[program.cell], self.model.adam
        variables = tf.nest.map_structure(tf.Variable, self.model.untrained(w))

        def update(x: Any, target: Any) -> Any:
            state: Trained = tf.nest.map_structure(tf.convert_to_tensor, variables)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(state.w)
                out = objective(state.w, cell, x, target)
            next_state = adam(state, Weights(*tape.gradient(out, state.w)))
            tf.nest.map_structure(lambda variable, value: variable.assign(value), variables, next_state)
            return out

        if program.execution != "eager":
            update = self._function(program, update)
        return lambda x, target: Stepped(update(x, target), variables)

    def put(self, data: Data) -> Data:
        def put(a: np.ndarray) -> Any:
            return self.tf.constant(a, self.dtype if a.dtype.kind == "f" else None)

        with self.tf.device(self.device):
            return Data(Weights(*map(put, data.weights)), *map(put, data[1:]))

    def wait(self, outputs: Any) -> None:
        if self.gpu or self.dtype:  # Python's buffer protocol has no bfloat16
            self.tf.test.experimental.sync_devices()
            return
        if isinstance(outputs, Stepped):
            outputs = outputs.loss  # a function returns only after assigning its variables
        for leaf in outputs if isinstance(outputs, (tuple, list)) else (outputs,):
            memoryview(leaf)  # waits for the buffer without copying it

    def get(self, program: Program, outputs: Any) -> Outputs:
        if isinstance(outputs, Stepped):
            outputs = (outputs.loss, *outputs.variables.leaves)
        leaves = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        arrays = [np.array(leaf, "float32" if leaf.dtype == self.tf.bfloat16 else None) for leaf in leaves]
        if program.execution == ORIGINAL and program.pass_ == "train":
            kernel = 0 if program.arm.projection == "none" else 1  # 1 where the loss comes first
            arrays[kernel : kernel + 1] = _apart(arrays[kernel])
        outputs = named(arrays, program.pass_)
        if _own_gru(program) and program.pass_ == "train":
            outputs["d_b_rec"] = outputs["d_b_rec"][0]  # the framework's layer has two biases; this is the contract's
            outputs |= {name: _exchanged(outputs[name]) for name in TRAIN_NONE}
        return outputs

    def _to_keras(self, w_in: Any, w_rec: Any, b_rec: Any) -> tuple[Any, Any, Any]:
        """Return a GRU's weights in Keras' layout: gates z, r, n, and two rows of bias, the recurrent one zero."""
        biases = np.stack([np.array(b_rec), np.zeros_like(b_rec)])
        return tuple(self.tf.constant(_exchanged(np.array(a))) for a in (w_in, w_rec, biases))

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """Count by the means of each execution.

        xla is counted in the optimised HLO, graph in the concrete function, eager and v1 in what ran. On a GPU the
        profiler and the allocator are read too.
        """
        from impls.tf import evidence

        result, texts = self._counted(program, run, inputs)
        if self.gpu:
            libraries.on_gpu(result)
            peak_bytes, output_bytes = self._peak_and_end(lambda: self._waited(run, inputs))
            result.temp_bytes = peak_bytes - output_bytes
            result.missing.pop("temp_bytes", None)
            trace.profile(result, lambda: evidence.profiled(lambda: self.wait(run(*inputs))))
        return result, texts

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most that TensorFlow's allocator gave out, which keeps what it is given back on a CPU too."""
        return self._peak_and_end(call)[0]

    def _peak_and_end(self, call: Callable[[], object]) -> tuple[int, int]:
        """Return the most bytes above those before that a call had allocated at once, and those that its result has."""
        memory, device = self.tf.config.experimental, self.device.strip("/")
        memory.reset_memory_stats(device)
        bytes_before = memory.get_memory_info(device)["current"]
        outputs = call()
        info = memory.get_memory_info(device)
        del outputs
        return int(info["peak"] - bytes_before), int(info["current"] - bytes_before)

    def _waited(self, run: Run, inputs: Sequence[Any]) -> Any:
        """Return the outputs of a call when all of them have been computed."""
        outputs = run(*inputs)
        self.wait(outputs)
        return outputs

    def _counted(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        from impls.tf import evidence

        function = self.programs[run]
        arguments = inputs[:1] if program.pass_ == "forward" else inputs
        if program.execution == ORIGINAL:
            traces = [function.traced(*arguments) for _ in range(TRACES)]
            return evidence.of_traces(traces, function.variables(), self._prober())
        return self.counted(program.execution, function, arguments, lambda: self.wait(run(*inputs)))

    def counted(
        self, execution: str, function: Any, arguments: Sequence[Any], call: Callable[[], None]
    ) -> tuple[Evidence, dict[str, str]]:
        """Return what a call of a function does, and its text. `call` makes one call, and waits for it."""
        from impls.tf import evidence

        if execution == "eager":
            return evidence.of_call(call, self._prober())
        graph = function.get_concrete_function(*arguments).graph
        if execution == "graph":
            return evidence.of_graph(graph, self._prober())
        text = function.experimental_get_compiler_ir(*arguments)(stage="optimized_hlo")
        loops, written, missing = evidence.before_xla(graph)
        result = hlo.evidence(text, loops)
        result.written = written
        libraries.close(result)
        result.missing |= missing | {"temp_bytes": evidence.NO_XLA_MEMORY}
        return result, {"optimised.hlo": text}

    def _prober(self) -> Any:
        """Return what finds the library of a product; None on a GPU, where the names of kernels say it."""
        from impls.tf import evidence

        return None if self.gpu else evidence.Prober(self.prober, self.number)

    def compilations(self) -> int:
        """Count traces of functions and operations of graphs. A session's first run makes its graph's operations."""
        traces = sum(function.experimental_get_tracing_count() for function in self.functions)
        return traces + sum(graph.version for graph in self.graphs)

    def _trace(self) -> None:
        """Trace a new function."""
        self.functions.append(self.tf.function(lambda: self.tf.zeros(()), autograph=False))
        self.functions[-1]()

    def _grow(self) -> None:
        """Add an operation to a new graph."""
        self.graphs.append(self.tf.Graph())
        with self.graphs[-1].as_default():
            self.tf.zeros(())

    def product(self, rows: int, inner: int, columns: int, execution: str = "") -> Callable[[], None]:
        """Return a product; that of a graph stands for v1, whose session runs the same operations."""
        a, b, multiply = self.tf.ones((rows, inner)), self.tf.ones((inner, columns)), self.tf.matmul
        if execution in ("graph", "xla", ORIGINAL):
            multiply = self.tf.function(
                lambda a, b: self.tf.matmul(a, b), jit_compile=execution == "xla", autograph=False
            )
        return lambda: self.wait(multiply(a, b))

    def scale(self, count: int) -> Callable[[], None]:
        a, two = self.tf.ones(count), self.tf.constant(2.0)
        return lambda: self.wait(self.tf.multiply(two, a))


def _legacy() -> dict[str, str]:
    """Return the version of tf-keras if it is installed, without importing it."""
    try:
        return {"tf-keras": version("tf-keras")}
    except PackageNotFoundError:
        return {}


def _not_original() -> dict[str, str]:
    """Return what the chapter's programs do not support, each with its reason."""
    loops = [recurrence for recurrence in RECURRENCES if recurrence != "scan"]
    forms = [projection for projection in FAMILIES if projection not in ("none", "in_loop", "batched")]
    without = dict.fromkeys(loops, NO_OTHER_LOOP) | dict.fromkeys(forms, NO_OTHER_FORM)
    return without | dict.fromkeys(("loss", "cross_entropy"), NO_OTHER_LOSS) | {"gpu": NO_HOST, "bf16": NO_BF16}


def _apart(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split BasicRNNCell's kernel [I+H, H] into w_in [I, H] and w_rec [H, H]."""
    size = kernel.shape[1]
    return kernel[:-size], kernel[-size:]


def _own_gru(program: Program) -> bool:
    return program.cell == "gru" and program.arm.recurrence in ("layer", "modules")


def _exchanged(a: np.ndarray) -> np.ndarray:
    """Return a [..., 3 H] with its first two gates exchanged."""
    first, second, third = np.split(a, 3, axis=-1)
    return np.concatenate([second, first, third], axis=-1)
