"""The PyTorch backend. torch is imported late, inside the worker, so that no other process needs it."""

import importlib.util
import shutil
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from impls.evidence import Evidence
from impls.interface import (
    FAMILIES,
    Data,
    Execution,
    Facts,
    Outputs,
    Program,
    Run,
    Settings,
    Unavailable,
    Weights,
    named,
    prove_counting,
    require_layer,
    require_moved,
)
from impls.torch import private

KEPT = "torch's scan operator keeps what its body computes, and a checkpoint inside changes nothing (torch 2.13)"
NO_EAGER_SCAN = "torch's scan operator runs through the compiler even when called eagerly: it has no eager form"
PROTOTYPE = (
    "torch's scan operator is marked prototype upstream, compiles wrong gradients when two are chained (torch 2.13, "
    "30% off, silently), and runs here with clones and allow_buffer_reuse=False"
)
COMPILER = "g++"  # what Inductor calls if CXX is not set, and it is not set for workers
NO_COMPILER = "Inductor needs the C++ compiler g++ and finds none"
NO_EAGER_HOIST = "hoist rewrites what torch.compile traces: called eagerly, nothing is traced"
NO_CUDA_GRAPH = "a CUDA graph is recorded on a GPU"
NOT_GRAPHED = "Inductor recorded no CUDA graph of it, or runs past the one it recorded"
NO_TIME_DISTRIBUTED = "TimeDistributed is a layer of Keras"
FUSION = "batch_linear_post_grad"
BATCHED_BY_IT = ("in_loop", "per_step")  # what the fusion is for; `none` and `batched` are run as its reference
UNBATCHED = (
    "scan",
    "layer",
    "modules",
    *(form for form in FAMILIES if form not in ("none", "batched", *BATCHED_BY_IT)),
)
NOTHING_TO_BATCH = "the fusion joins products that are written one by one in one graph: here it is what inductor is"
NOT_BATCHED = "Inductor's batch_linear fusion did not fire"
NO_TRITON = "on a GPU Inductor needs Triton, which is not installed"
NO_OWN_LAYER = "Inductor cannot compile torch's own layer"
UNROLLS = ("unrolled", "layer", "modules")  # Inductor splits a layer of plain RNNs or GRUs into its steps
NOT_BEFORE = "the program before Inductor, in which they are counted, does not run"
TRACED = "aot_eager"  # torch's compiler without Inductor: the same trace, its operations called one by one
SLOW = (*UNROLLS, "given_per_step")  # joining a hundred products takes half a minute


class Backend:
    """The contract of impls.interface.Backend, fulfilled with PyTorch."""

    def __init__(self) -> None:
        self.codes: dict[Program, list[str]] = {}  # what Inductor generated for each program
        self.hoisted: dict[Program, list[str]] = {}  # what hoist decided of each program
        self.uncompiled: dict[Program, Uncompiled] = {}
        self.counting = False  # whether this process has proved Dynamo's counter

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        # Inductor's command lines contain paths of both folders, and are split at blanks.
        cache = {"TORCHINDUCTOR_CACHE_DIR": settings.cache, "TMPDIR": settings.cache} if settings.cache else {}
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | cache

    def facts(self) -> Facts:
        import torch

        missing = None if shutil.which(COMPILER) else NO_COMPILER
        without = {"time_distributed": NO_TIME_DISTRIBUTED}
        unbatched = dict.fromkeys(UNBATCHED, NOTHING_TO_BATCH)
        kept = {"scan_in_loop_loss": KEPT}
        executions = {
            "eager": Execution(traced=False, without=without | {"scan": NO_EAGER_SCAN, "hoisted": NO_EAGER_HOIST}),
            "inductor": Execution(True, missing, without | kept, UNROLLS, {"scan": PROTOTYPE}),
            "inductor-batched": Execution(
                True, missing, without | unbatched, SLOW, trains=False, usual_passes=(), takes_functions=False
            ),
            "cudagraph": Execution(
                True,
                missing,
                without | kept | {"cpu": NO_CUDA_GRAPH},
                UNROLLS,
                {"scan": PROTOTYPE},
                overwrites=True,
                trains=False,
                takes_functions=False,
            ),
        }
        if not importlib.util.find_spec("triton"):
            executions |= {
                name: replace(execution, without=execution.without | {"gpu": NO_TRITON})
                for name, execution in executions.items()
                if execution.traced
            }
        gpu = None if torch.cuda.is_available() else "torch sees no GPU"
        return Facts({"torch": torch.__version__}, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> dict[str, str]:
        import torch

        from impls.torch import model

        self.torch, self.model = torch, model
        self.counters = private.counters()
        self.device = {"cpu": "cpu", "gpu": "cuda"}[settings.device]
        torch.set_num_threads(settings.threads)
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else None
        if settings.precision != "as_shipped":
            tf32 = settings.precision == "tf32"
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32  # cuDNN's recurrent layers obey it too, and default to TF32
        return {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        }

    def prepare(self, program: Program, w: Weights) -> Run:
        torch = self.torch
        cell = self.model.CELLS[program.cell]
        require_layer(program, cell.own)
        w = self._laid_out(program, w)
        function = self._function(program, cell)
        if program.execution != "eager":
            uncompiled = torch.compile(_own_code(function), fullgraph=True, dynamic=False, backend=TRACED)
            self.uncompiled[program] = Uncompiled(self._run(uncompiled, w, program), _arrays(w))
            function = self.compiled(function, program)
        run = self._run(function, w, program)
        if program.execution == "cudagraph":
            run = self._stepped(run)
        return self._proven(run, program) if program.execution != "eager" else run

    def _function(self, program: Program, cell: Any) -> Any:
        """Return a program as a function of w, x and target: its output, or its loss where the pass has one."""
        recurrence, projection = program.arm.recurrence, program.arm.projection
        if program.pass_ == "forward" or projection == "none":
            arm = self.model.arm(recurrence, projection, program.layers)

            def forward(w: Weights, x: Any, target: Any) -> Any:
                return arm(w, cell, x)

            return forward
        objective = self.model.objective(recurrence, projection, program.loss, program.layers)

        def loss(w: Weights, x: Any, target: Any) -> Any:
            return objective(w, cell, x, target)

        return loss

    def _run(self, function: Any, w: Any, program: Program) -> Run:
        """Return the callable of a pass, for a function of an arm.

        It returns the output (forward), the loss (loss), the loss and its gradients (train), or, for projection `none`,
        the gradients that follow from a given gradient of h.
        """
        torch = self.torch

        def run_forward(x: Any, target: Any) -> Any:
            with torch.no_grad():
                return function(w, x, target)

        leaves = _arrays(w)

        def run_train(x: Any, target: Any) -> Any:
            out = function(w, x, target)
            # Recurrence `given` does not use w_in, w_rec and b_rec: their gradients are zeros.
            return out, *torch.autograd.grad(out, leaves, allow_unused=True, materialize_grads=True)

        def run_backward(x: Any, d_h: Any) -> Any:
            return torch.autograd.grad(function(w, x, d_h), w.recurrent, d_h)

        run_gradients = run_backward if program.arm.projection == "none" else run_train
        return run_gradients if program.pass_ == "train" else run_forward

    def trainer(self, program: Program, w: Weights) -> Run:
        torch = self.torch
        state = self.model.untrained(w)
        function, update = self._function(program, self.model.CELLS[program.cell]), self.model.adam
        if program.execution != "eager":
            function, update = self.compiled(function, program), self.compiled(update, program)

        def step(x: Any, target: Any) -> Any:
            nonlocal state
            out = function(state.w, x, target)
            d = Weights(*torch.autograd.grad(out, state.w))
            with torch.no_grad():
                state = update(state, d)
            for weight in state.w:
                weight.requires_grad_()
            return out.detach(), *state.leaves

        return self._proven(step, program) if program.execution != "eager" else step

    def put(self, data: Data) -> Data:
        def put(a: np.ndarray) -> Any:
            dtype = self.dtype if a.dtype.kind == "f" else self.torch.int64  # torch's classes are 64 bits wide
            return self.torch.tensor(a, device=self.device, dtype=dtype)

        return Data(Weights(*(put(a).requires_grad_() for a in data.weights)), put(data.x), put(data.target))

    def wait(self, outputs: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def get(self, program: Program, outputs: Any) -> Outputs:
        leaves = [leaf.detach().cpu() for leaf in (outputs if isinstance(outputs, tuple) else (outputs,))]
        if program.arm.recurrence == "modules" and program.pass_ == "train":
            leaves = _without_second_bias(leaves)
        arrays = named([(leaf.float() if self.dtype else leaf).numpy().copy() for leaf in leaves], program.pass_)
        if program.arm.recurrence == "layer" and program.pass_ == "train":
            arrays["d_b_rec"] = arrays["d_b_rec"][0]  # the framework's layer has two biases; this is the contract's
        return arrays

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        if self.device == "cpu":
            return None
        cuda = self.torch.cuda
        cuda.reset_peak_memory_stats()
        bytes_before = cuda.memory_allocated()
        call()
        return int(cuda.max_memory_allocated() - bytes_before)

    def compilations(self) -> int:
        return int(self.counters["frames"]["total"] + self.counters["stats"]["unique_graphs"])

    def product(self, rows: int, inner: int, columns: int, execution: str = "") -> Callable[[], None]:
        """Return a product; eager's stands for all: Inductor calls the same one, and takes seconds to compile."""
        a, b = (self.torch.ones(shape, device=self.device) for shape in ((rows, inner), (inner, columns)))

        def multiply() -> None:
            self.wait(self.torch.mm(a, b))

        return multiply

    def scale(self, count: int) -> Callable[[], None]:
        a = self.torch.ones(count, device=self.device)
        return lambda: self.wait(2 * a)

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """Count with the profiler, over one call; the text includes the code that Inductor generated."""
        from impls.torch import evidence

        def call(run: Run) -> Sequence[Any]:
            outputs = run(*inputs)
            self.wait(outputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        result, text = evidence.of_call(lambda: call(run), self.device == "cuda")
        evidence.add_libraries(result, lambda: call(run), self.device == "cuda")
        uncompiled = self.uncompiled.get(program)
        if uncompiled and any(1 in array.shape for array in (inputs[0], *uncompiled.w)):
            try:
                result.written = evidence.products(lambda: call(uncompiled.run))
            except Exception as error:  # any error of torch is a reason; what ran has been counted already
                result.missing["operations"] = f"{NOT_BEFORE}: {type(error).__name__}"
        if program.arm.recurrence == "scan":
            result.missing |= {"loops": evidence.NO_LOOPS}
        texts = {f"generated{index}.py": code for index, code in enumerate(self.codes.get(program, ()))}
        if program in self.hoisted:
            texts["hoist.txt"] = "".join(f"{line}\n" for line in self.hoisted[program])
        return result, texts | {"operations.txt": text}

    def compiled(self, function: Any, program: Program, hoist_log: list[str] | None = None) -> Any:
        """Return a function compiled whole by Inductor, as the program's execution names it; its code is kept.

        With `hoist_log`, which gets what was decided, work is taken out of its loops before. Such a function is also
        traced in eager, where its operations then run one by one.
        """
        self._prove_counting()
        self.codes[program] = []
        private.capture_code(self.codes[program].append)  # called at the first call
        options: dict[str, Any] = {}
        if program.arm.recurrence == "scan":
            # Inductor reuses a loop's buffers while they still hold its results (torch 2.13: wrong gradients).
            options["allow_buffer_reuse"] = False
        if program.execution == "cudagraph":
            options["triton.cudagraphs"] = True
        if program.execution == "inductor-batched":
            options["post_grad_fusion_options"] = {FUSION: {"min_fuse_set_size": 2}}
        if program.arm.projection == "hoisted":
            hoist_log = self.hoisted.setdefault(program, [])
        if hoist_log is not None:
            from impls.torch import hoist

            compiler = "eager" if program.execution == "eager" else "inductor"
            return hoist.hoist(_own_code(function), log=hoist_log, options=options, compiler=compiler)
        return self.torch.compile(_own_code(function), fullgraph=True, dynamic=False, options=options)

    def keep_uncompiled(
        self, program: Program, function: Any, run: Callable[[Any], Run], inputs: Sequence[Any]
    ) -> None:
        """Keep a user's function as it is before Inductor, so that its products can be counted as they are written.

        `run` makes a callable of the pass from a function.
        """
        uncompiled = run(self.torch.compile(_own_code(function), fullgraph=True, dynamic=False, backend=TRACED))
        self.uncompiled[program] = Uncompiled(uncompiled, inputs)

    def _prove_counting(self) -> None:
        """Prove Dynamo's counter once, before anything is compiled. A process of eager programs does not need it."""
        if not self.counting:
            probe = self.torch.compile(_own_code(lambda a: a + 1), fullgraph=True, dynamic=False, backend="eager")
            prove_counting(self.compilations, lambda: probe(self.torch.zeros(())), "Dynamo's counter")
            self.counting = True

    def _proven(self, run: Run, program: Program) -> Run:
        """Return a run whose first call raises Unavailable if Inductor does not do what the execution's name says.

        This is so if Inductor cannot compile a layer; if, under inductor-batched, its counter does not show that the
        fusion joined the T products; if nothing was taken out of the loop that `hoisted` has rebuilt; or if no CUDA
        graph was recorded. A CUDA graph runs three times at its first call: to warm up, to record, and to replay.
        """
        is_layer = program.arm.recurrence == "layer"
        needs_fusion = program.execution == "inductor-batched" and program.arm.projection in BATCHED_BY_IT
        needs_graph = program.execution == "cudagraph"
        is_hoisted = program.arm.projection == "hoisted"
        if not (needs_fusion or is_layer or needs_graph or is_hoisted):
            return run
        call = run

        def first_call(x: Any, target: Any) -> Any:
            nonlocal call
            fusions_before, graphs_before = self.counters["inductor"][FUSION], self._graphs()
            try:
                outputs = run(x, target)
            except TypeError as error:  # raised by torch 2.13 when training an LSTM
                if is_layer and "mkldnn_rnn_layer" in str(error):
                    raise Unavailable(f"{NO_OWN_LAYER}: {str(error).strip().splitlines()[0]}") from None
                raise
            if needs_fusion and self.counters["inductor"][FUSION] == fusions_before:
                raise Unavailable(NOT_BATCHED)
            if is_hoisted:
                require_moved(self.hoisted[program])
            if needs_graph:
                for _ in range(2):
                    outputs = run(x, target)
                if not graphs_before.were_made(self._graphs()):
                    raise Unavailable(NOT_GRAPHED)
            call = run
            return outputs

        call = first_call
        return lambda x, target: call(x, target)

    def _laid_out(self, program: Program, w: Weights) -> Any:
        """Return the weights, laid out as the framework's layers hold theirs if the program has one."""
        if program.arm.recurrence == "modules":
            return self.model.Modules(self.model.CELLS[program.cell], w)
        if program.arm.recurrence == "layer":
            w = self._in_a_layer(program, w)
        if program.arm.projection == "library":
            w = w._replace(w_out=_column_major(w.w_out))
        if program.execution == "cudagraph":  # as a module's parameters: read in place, not copied
            for array in w:
                private.mark_static(array)
        return w

    def _in_a_layer(self, program: Program, w: Weights) -> Weights:
        """Return the recurrent weights as nn.RNN holds them: transposed, two biases, and in one buffer for cuDNN."""
        torch = self.torch
        w_in, w_rec, b_rec = (a.detach() for a in w[:3])
        arrays = [w_in.T.contiguous(), w_rec.T.contiguous(), b_rec.clone(), torch.zeros_like(b_rec)]
        if self.device == "cuda":
            private.flatten_layer_weights(arrays, program.cell)
            biases = arrays[2].as_strided((2, len(b_rec)), (len(b_rec), 1))
            assert biases[1].data_ptr() == arrays[3].data_ptr(), "cuDNN lays biases out otherwise"
        else:
            biases = torch.stack(arrays[2:])
        layer_weights = {"w_in": arrays[0].T, "w_rec": arrays[1].T, "b_rec": biases}
        return w._replace(**{name: array.requires_grad_() for name, array in layer_weights.items()})

    def _stepped(self, run: Run) -> Run:
        """Return a run that marks the previous call's outputs as no longer needed, as a training loop does."""

        def call(x: Any, target: Any) -> Any:
            self.torch.compiler.cudagraph_mark_step_begin()
            return run(x, target)

        return call

    def _graphs(self) -> "Graphs":
        recorded = private.recorded_graphs() if self.device == "cuda" else 0
        return Graphs(recorded, self.counters["inductor"]["cudagraph_skips"])


class Uncompiled(NamedTuple):
    """A program before Inductor, and its weights, or all inputs of a user's function.

    It compiles at its first call, which only counting makes.
    It is needed only if a size is one, because Inductor then computes products by multiplications.
    """

    run: Run
    w: Sequence[Any]


class Graphs(NamedTuple):
    """The number of CUDA graphs that Inductor has recorded so far, and how often it has skipped recording."""

    recorded: int
    skipped: int

    def were_made(self, after: "Graphs") -> bool:
        """Return whether graphs were recorded, and none skipped, between this and `after`."""
        return after.recorded > self.recorded and after.skipped == self.skipped


def _own_code(function: Any) -> Any:
    """Return a copy of the function with a code object of its own.

    Dynamo keeps its compiled programs per code object and searches them at every call. With a code object of its own,
    each program has the single entry that it would have in a user's code.
    """
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _arrays(w: Any) -> tuple[Any, ...]:
    """Return weights as a tuple of arrays, those of modules too."""
    return tuple(w.parameters()) if hasattr(w, "parameters") else w


def _without_second_bias(leaves: list[Any]) -> list[Any]:
    """Return a loss, if there is one, and modules' gradients in the layout of Weights.

    Modules hold matrices transposed, and a second bias, whose gradient is that of the first.
    """
    second_bias = 3 + (leaves[0].ndim == 0)  # after two matrices and the first bias, and a loss
    kept = [leaf for number, leaf in enumerate(leaves) if number != second_bias]
    return [leaf.T.contiguous() if leaf.ndim == 2 else leaf for leaf in kept]


def _column_major(a: Any) -> Any:
    """Return the same weight in a layout whose transpose is contiguous, as the framework's layers hold theirs."""
    return a.detach().T.contiguous().T.requires_grad_()
