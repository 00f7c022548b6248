"""PyTorch behind the contract. torch is imported late, in the worker, so that no one else needs it."""

import importlib.util
import shutil
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from impls.evidence import Evidence
from impls.interface import (
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
)

NO_EAGER_SCAN = "torch's scan operator runs through the compiler even when called eagerly: it has no eager form"
PROTOTYPE = (
    "torch's scan operator is marked prototype upstream, compiles wrong gradients when two are chained (torch 2.13, "
    "30% off, silently), and runs here with clones and allow_buffer_reuse=False"
)
COMPILER = "g++"  # what Inductor calls where CXX is not set, and a worker is given none
NO_COMPILER = "Inductor needs the C++ compiler g++ and finds none"
NO_CUDA_GRAPH = "a CUDA graph is recorded on a GPU"
NOT_GRAPHED = "Inductor recorded no CUDA graph of it, or runs past the one it recorded"
NO_TIME_DISTRIBUTED = "TimeDistributed is a layer of Keras"
FUSION = "batch_linear_post_grad"
BATCHED_BY_IT = ("in_loop", "per_step")  # what the fusion is for; none and batched beside it are the measure of it
UNBATCHED = ("scan", "layer", "bmm", "vmap", "library")
NOTHING_TO_BATCH = "the fusion joins products that are written one by one in one graph: here it is what inductor is"
NOT_BATCHED = "Inductor's batch_linear fusion did not fire"
CUDNN_MODES = {"rnn_relu": "RNN_RELU", "rnn_tanh": "RNN_TANH", "gru": "GRU", "lstm": "LSTM"}
NO_TRITON = "on a GPU Inductor needs Triton, which is not installed"
NO_OWN_LAYER = "Inductor can not compile torch's own layer"
UNROLLS = ("unrolled", "layer")  # Inductor takes a layer of plain RNNs and GRUs apart into its steps
NOT_BEFORE = "the program before Inductor, in which they are counted, does not run"
TRACED = "aot_eager"  # torch's compiler without Inductor: the same trace, with its operations called one by one
SLOW = (*UNROLLS, "given_per_step")  # joining products takes half a minute where there are a hundred


class Backend:
    """See impls.interface.Backend."""

    def __init__(self) -> None:
        self.codes: dict[Program, list[str]] = {}  # what Inductor generated for each program
        self.uncompiled: dict[Program, Uncompiled] = {}
        self.counting = False  # whether Dynamo's counter is proven

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        # Inductor's command lines hold paths of either, and are parted at blanks.
        cache = {"TORCHINDUCTOR_CACHE_DIR": settings.cache, "TMPDIR": settings.cache} if settings.cache else {}
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | cache

    def facts(self) -> Facts:
        import torch

        missing = None if shutil.which(COMPILER) else NO_COMPILER
        without = {"time_distributed": NO_TIME_DISTRIBUTED}
        unbatched = dict.fromkeys(UNBATCHED, NOTHING_TO_BATCH)
        executions = {
            "eager": Execution(traced=False, without=without | {"scan": NO_EAGER_SCAN}),
            "inductor": Execution(True, missing, without, UNROLLS, {"scan": PROTOTYPE}),
            "inductor-batched": Execution(True, missing, without | unbatched, SLOW, trains=False),
            "cudagraph": Execution(
                True,
                missing,
                without | {"cpu": NO_CUDA_GRAPH},
                UNROLLS,
                {"scan": PROTOTYPE},
                overwrites=True,
                trains=False,
            ),
        }
        if not importlib.util.find_spec("triton"):
            executions |= {
                n: replace(e, without=e.without | {"gpu": NO_TRITON}) for n, e in executions.items() if e.traced
            }
        gpu = None if torch.cuda.is_available() else "torch sees no GPU"
        return Facts({"torch": torch.__version__}, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> dict[str, str]:
        import torch
        import torch._dynamo.utils

        from impls.torch import model

        self.torch, self.model = torch, model
        self.counters = torch._dynamo.utils.counters
        self.device = {"cpu": "cpu", "gpu": "cuda"}[settings.device]
        torch.set_num_threads(settings.threads)
        self.dtype = torch.bfloat16 if settings.precision == "bf16" else None
        if settings.precision != "as_shipped":
            tf32 = settings.precision == "tf32"
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32  # its recurrent layers too, which ship with TF32
        return {
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn.allow_tf32": str(torch.backends.cudnn.allow_tf32),
        }

    def prepare(self, program: Program, w: Weights) -> Run:
        torch = self.torch
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        cell, mse = self.model.CELLS[program.cell], self.model.loss
        w = self._laid_out(program, w)

        def forward(w: Weights, x: Any, target: Any) -> Any:
            return arm(w, cell, x)

        def loss(w: Weights, x: Any, target: Any) -> Any:
            return mse(arm(w, cell, x), target)

        value = forward if program.pass_ == "forward" or program.arm.projection == "none" else loss
        if program.execution != "eager":
            before = torch.compile(_own_code(value), fullgraph=True, dynamic=False, backend=TRACED)
            self.uncompiled[program] = Uncompiled(self._run(before, w, program), w)
            value = self._compiled(value, program)
        run = self._run(value, w, program)
        if program.execution == "cudagraph":
            run = self._stepped(run)
        return self._proven(run, program) if program.execution != "eager" else run

    def _run(self, value: Any, w: Weights, program: Program) -> Run:
        """What a pass calls of an arm: its output; its loss and the gradients; or those from a given gradient of h."""
        torch = self.torch

        def run_forward(x: Any, target: Any) -> Any:
            with torch.no_grad():
                return value(w, x, target)

        def run_train(x: Any, target: Any) -> Any:
            out = value(w, x, target)
            # Recurrence given leaves w_in, w_rec and b_rec unused: their gradients are zeros.
            return out, *torch.autograd.grad(out, w, allow_unused=True, materialize_grads=True)

        def run_backward(x: Any, d_h: Any) -> Any:
            return torch.autograd.grad(value(w, x, d_h), w.recurrent, d_h)

        run_gradients = run_backward if program.arm.projection == "none" else run_train
        return run_forward if program.pass_ == "forward" else run_gradients

    def trainer(self, program: Program, w: Weights) -> Run:
        torch = self.torch
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        cell, mse = self.model.CELLS[program.cell], self.model.loss
        state = self.model.untrained(w)

        def loss(w: Weights, x: Any, target: Any) -> Any:
            return mse(arm(w, cell, x), target)

        value, update = loss, self.model.adam
        if program.execution != "eager":
            value, update = self._compiled(value, program), self._compiled(update, program)

        def step(x: Any, target: Any) -> Any:
            nonlocal state
            out = value(state.w, x, target)
            d = Weights(*torch.autograd.grad(out, state.w))
            with torch.no_grad():
                state = update(state, d)
            for weight in state.w:
                weight.requires_grad_()
            return out.detach(), *state.leaves

        return self._proven(step, program) if program.execution != "eager" else step

    def put(self, data: Data) -> Data:
        def put(a: np.ndarray) -> Any:
            return self.torch.tensor(a, device=self.device, dtype=self.dtype)

        return Data(Weights(*(put(a).requires_grad_() for a in data.weights)), put(data.x), put(data.target))

    def wait(self, outputs: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def get(self, program: Program, outputs: Any) -> Outputs:
        leaves = [leaf.detach().cpu() for leaf in (outputs if isinstance(outputs, tuple) else (outputs,))]
        arrays = named([(leaf.float() if self.dtype else leaf).numpy().copy() for leaf in leaves])
        if program.arm.recurrence == "layer" and program.pass_ == "train":
            arrays["d_b_rec"] = arrays["d_b_rec"][0]  # of its two biases, ours
        return arrays

    def compilations(self) -> int:
        return int(self.counters["frames"]["total"] + self.counters["stats"]["unique_graphs"])

    def product(self, size: int) -> Callable[[], None]:
        a = self.torch.ones((size, size), device=self.device)

        def multiply() -> None:
            self.wait(self.torch.mm(a, a))

        return multiply

    def scale(self, count: int) -> Callable[[], None]:
        a = self.torch.ones(count, device=self.device)
        return lambda: self.wait(2 * a)

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """From the profiler, over one call; and what Inductor generated."""
        from impls.torch import evidence

        def call(run: Run) -> Sequence[Any]:
            outputs = run(*inputs)
            self.wait(outputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        found, text = evidence.of_call(lambda: call(run), self.device == "cuda")
        before = self.uncompiled.get(program)
        if before and any(1 in array.shape for array in (inputs[0], *before.w)):
            try:
                found.written = evidence.products(lambda: call(before.run))
            except Exception as error:  # whatever torch raises is a reason, and what ran was counted
                found.missing["operations"] = f"{NOT_BEFORE}: {type(error).__name__}"
        if program.arm.recurrence == "scan":
            found.missing |= {"loops": evidence.NO_LOOPS}
        texts = {f"generated{at}.py": code for at, code in enumerate(self.codes.get(program, ()))}
        return found, texts | {"operations.txt": text}

    def _compiled(self, function: Any, program: Program) -> Any:
        from torch._inductor.graph import GraphLowering

        self._prove_counting()
        self.codes[program] = []
        GraphLowering.save_output_code = staticmethod(self.codes[program].append)  # told at the first call
        options: dict[str, Any] = {}
        if program.arm.recurrence == "scan":
            # Inductor gives a loop's buffers away while its results still lie in them (torch 2.13: wrong gradients).
            options["allow_buffer_reuse"] = False
        if program.execution == "cudagraph":
            options["triton.cudagraphs"] = True
        if program.execution == "inductor-batched":
            options["post_grad_fusion_options"] = {FUSION: {"min_fuse_set_size": 2}}
        return self.torch.compile(_own_code(function), fullgraph=True, dynamic=False, options=options)

    def _prove_counting(self) -> None:
        """See Dynamo's counter move, once, before anything is compiled: a process of eager programs is spared it."""
        if not self.counting:
            tiny = self.torch.compile(_own_code(lambda a: a + 1), fullgraph=True, dynamic=False, backend="eager")
            prove_counting(self.compilations, lambda: tiny(self.torch.zeros(())), "Dynamo's counter")
            self.counting = True

    def _proven(self, run: Run, program: Program) -> Run:
        """The run, whose first call raises Unavailable where Inductor does not do what the program is called.

        A layer that it can not compile; under inductor-batched T products, when the counter does not say that the
        fusion fired; and a CUDA graph that was not recorded. That one's first call is three: one warms up, one records,
        one replays.
        """
        own = program.arm.recurrence == "layer"
        batched = program.execution == "inductor-batched" and program.arm.projection in BATCHED_BY_IT
        graphed = program.execution == "cudagraph"
        if not (batched or own or graphed):
            return run
        call = run

        def first(x: Any, target: Any) -> Any:
            nonlocal call
            before, graphs = self.counters["inductor"][FUSION], self._graphs()
            try:
                outputs = run(x, target)
            except TypeError as error:  # of torch 2.13, in training an LSTM
                if own and "mkldnn_rnn_layer" in str(error):
                    raise Unavailable(f"{NO_OWN_LAYER}: {str(error).strip().splitlines()[0]}") from None
                raise
            if batched and self.counters["inductor"][FUSION] == before:
                raise Unavailable(NOT_BATCHED)
            if graphed:
                for _ in range(2):
                    outputs = run(x, target)
                if not graphs.were_made(self._graphs()):
                    raise Unavailable(NOT_GRAPHED)
            call = run
            return outputs

        call = first
        return lambda x, target: call(x, target)

    def _laid_out(self, program: Program, w: Weights) -> Weights:
        """The weights as the framework's layers hold theirs, where the program has one."""
        if program.arm.recurrence == "layer":
            w = self._in_a_layer(program, w)
        if program.arm.projection == "library":
            w = w._replace(w_out=_column_major(w.w_out))
        if program.execution == "cudagraph":  # as a module's parameters are: read where they lie, not copied
            for array in w:
                self.torch._dynamo.mark_static_address(array)
        return w

    def _in_a_layer(self, program: Program, w: Weights) -> Weights:
        """The recurrent weights as nn.RNN holds them: transposed, two biases, and for cuDNN all in one piece."""
        torch = self.torch
        w_in, w_rec, b_rec = (a.detach() for a in w[:3])
        arrays = [w_in.T.contiguous(), w_rec.T.contiguous(), b_rec.clone(), torch.zeros_like(b_rec)]
        if self.device == "cuda":
            mode = torch.backends.cudnn.rnn.get_cudnn_mode(CUDNN_MODES[program.cell])
            inputs, hidden = w_in.shape[0], w_rec.shape[0]
            torch._cudnn_rnn_flatten_weight(arrays, len(arrays), inputs, mode, hidden, 0, 1, False, False)
            biases = arrays[2].as_strided((2, len(b_rec)), (len(b_rec), 1))
            assert biases[1].data_ptr() == arrays[3].data_ptr(), "cuDNN lays biases out otherwise"
        else:
            biases = torch.stack(arrays[2:])
        held = {"w_in": arrays[0].T, "w_rec": arrays[1].T, "b_rec": biases}
        return w._replace(**{name: array.requires_grad_() for name, array in held.items()})

    def _stepped(self, run: Run) -> Run:
        """The run, which tells each call that the outputs of the last are done with, as a loop of training does."""

        def call(x: Any, target: Any) -> Any:
            self.torch.compiler.cudagraph_mark_step_begin()
            return run(x, target)

        return call

    def _graphs(self) -> "Graphs":
        from torch._inductor import cudagraph_trees

        manager = cudagraph_trees.get_manager(0, create_if_none_exists=False) if self.device == "cuda" else None
        nodes = list(manager.get_roots()) if manager else []
        for node in nodes:  # grows as it is walked
            nodes += [child for children in node.children.values() for child in children]
        return Graphs(len(nodes), self.counters["inductor"]["cudagraph_skips"])


class Uncompiled(NamedTuple):
    """A program as it is before Inductor, and its weights: it compiles at its first call, which only counting makes.

    Inductor makes multiplications of products only where a size is one.
    """

    run: Run
    w: Weights


class Graphs(NamedTuple):
    """CUDA graphs that Inductor recorded so far, and how often it skipped to."""

    recorded: int
    skipped: int

    def were_made(self, after: "Graphs") -> bool:
        """Whether between this and `after` some were recorded and none skipped."""
        return after.recorded > self.recorded and after.skipped == self.skipped


def _own_code(function: Any) -> Any:
    """The function with a code object of its own.

    Dynamo keeps its compiled programs per code object and looks through them at every call: so each program has the
    one entry it would have in a user's code.
    """
    code = function.__code__.replace()
    return types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _column_major(a: Any) -> Any:
    """The same weight, laid out so that its transpose is contiguous: as the framework's layers hold theirs."""
    return a.detach().T.contiguous().T.requires_grad_()
