"""PyTorch behind the contract. torch is imported late, in the worker, so that no one else needs it."""

import contextlib
import re
import shutil
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from impls.evidence import Evidence, Product
from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Unavailable, Weights, named

NO_EAGER_SCAN = "torch's scan operator runs through the compiler even when called eagerly: it has no eager form"
NO_COMPILER = "Inductor needs a C++ compiler (g++ or clang++) and finds none"
NO_TIME_DISTRIBUTED = "TimeDistributed is a layer of Keras"
FUSION = "batch_linear_post_grad"
NOT_BATCHED = "Inductor's batch_linear fusion did not fire: there is nothing to batch, so it is what inductor measures"
NO_OWN_LAYER = "Inductor can not compile torch's own layer"
UNROLLS = ("unrolled", "layer")  # Inductor takes a layer of plain RNNs and GRUs apart into its steps
ONE_CALL = "the layer is one call of oneDNN, whose products the profiler does not see"
OPERANDS = {"aten::mm": 0, "aten::bmm": 0, "aten::mv": 0, "aten::addmm": 1, "aten::baddbmm": 1, "aten::addmv": 1}
VIEWS = re.compile(  # operations that compute nothing: they describe memory anew, or take it
    r"aten::(t|transpose|permute|expand|expand_as|as_strided|as_strided_|view|_unsafe_view|view_as|reshape|_reshape_alias|"
    r"unbind|select|slice|narrow|split|chunk|unsafe_chunk|unsafe_split|detach|detach_|alias|unsqueeze|squeeze|unflatten|"
    r"empty|empty_like|empty_strided|new_empty|new_empty_strided|resize_|result_type|is_same_size|item|"
    r"numpy_T|cudnn_is_acceptable|_local_scalar_dense|resolve_conj|resolve_neg|_has_compatible_shallow_copy_type|lift_fresh|set_|size|stride)"
)
LAYERS = ("aten::mkldnn_rnn_layer", "aten::_cudnn_rnn", "aten::_thnn_fused_lstm_cell", "aten::_thnn_fused_gru_cell")
FUSED = re.compile(r"cpp_fused\w*|triton_\w+")


class Backend:
    """See impls.interface.Backend."""

    def __init__(self) -> None:
        self.codes: dict[Program, list[str]] = {}  # what Inductor generated for each program

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        cache = {"TORCHINDUCTOR_CACHE_DIR": settings.cache} if settings.cache else {}
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | cache

    def facts(self) -> Facts:
        import torch

        compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
        missing = None if compiler else NO_COMPILER
        without = {"time_distributed": NO_TIME_DISTRIBUTED}
        executions = {
            "eager": Execution(traced=False, without=without | {"scan": NO_EAGER_SCAN}),
            "inductor": Execution(True, missing, without, UNROLLS),
            "inductor-batched": Execution(True, missing, without, UNROLLS),
        }
        gpu = None if torch.cuda.is_available() else "torch sees no GPU"
        return Facts({"torch": torch.__version__}, executions, {"cpu": None, "gpu": gpu})

    def open(self, settings: Settings) -> None:
        import torch
        import torch._dynamo.utils

        from impls.torch import model

        self.torch, self.model = torch, model
        self.counters = torch._dynamo.utils.counters
        self.device = {"cpu": "cpu", "gpu": "cuda"}[settings.device]
        torch.set_num_threads(settings.threads)
        torch.set_float32_matmul_precision("highest")  # fp32 is IEEE fp32, on GPUs too

    def prepare(self, program: Program, w: Weights) -> Run:
        torch = self.torch
        arm = self.model.arm(program.arm.recurrence, program.arm.projection)
        cell, mse = self.model.CELLS[program.cell], self.model.loss
        if program.arm.recurrence == "layer":
            w = w._replace(w_in=_column_major(w.w_in), w_rec=_column_major(w.w_rec))
        if program.arm.projection == "library":
            w = w._replace(w_out=_column_major(w.w_out))

        def forward(w: Weights, x: Any, target: Any) -> Any:
            return arm(w, cell, x)

        def loss(w: Weights, x: Any, target: Any) -> Any:
            return mse(arm(w, cell, x), target)

        value = forward if program.pass_ == "forward" else loss
        if program.execution != "eager":
            value = self._compiled(value, program)

        def run_forward(x: Any, target: Any) -> Any:
            with torch.no_grad():
                return value(w, x, target)

        def run_train(x: Any, target: Any) -> Any:
            out = value(w, x, target)
            # Projection none leaves w_out and b_out unused: their gradients are zeros.
            return out, *torch.autograd.grad(out, w, allow_unused=True, materialize_grads=True)

        run = run_forward if program.pass_ == "forward" else run_train
        return self._proven(run, program) if program.execution != "eager" else run

    def put(self, data: Data) -> Data:
        def put(a: np.ndarray) -> Any:
            return self.torch.tensor(a, device=self.device)

        return Data(Weights(*(put(a).requires_grad_() for a in data.weights)), put(data.x), put(data.target))

    def wait(self, outputs: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def get(self, program: Program, outputs: Any) -> Outputs:
        leaves = outputs if isinstance(outputs, tuple) else (outputs,)
        return named([leaf.detach().cpu().numpy().copy() for leaf in leaves])

    def compilations(self) -> int:
        return int(self.counters["frames"]["total"] + self.counters["stats"]["unique_graphs"])

    def product(self, size: int) -> Callable[[], None]:
        a = self.torch.ones((size, size))

        def multiply() -> None:
            self.wait(self.torch.mm(a, a))

        return multiply

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """From the profiler, over one call; the kernels that Inductor generated are counted as they are called."""
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device == "cuda" else [])]
        with self._generated() as fused, profile(activities=activities, record_shapes=True, profile_memory=True) as seen:
            self.wait(run(*inputs))
        kernels, products = Counter(fused), Counter[tuple[int, int, int, int]]()
        for event in _kernels(seen.events()):
            kernels[event.name.removeprefix("aten::")] += 1
            if event.name in OPERANDS:
                products[_product(event)] += 1
        missing = {"products": ONE_CALL} if kernels["mkldnn_rnn_layer"] else {}
        found = Evidence(
            products=[Product(count, *shape) for shape, count in sorted(products.items())],
            kernels=dict(sorted(kernels.items())),
            fusions=sum(fused.values()),
            temp_bytes=_peak_bytes(seen),
            missing=missing,
        )
        texts = {f"generated{at}.py": code for at, code in enumerate(self.codes.get(program, ()))}
        return found, texts | {"operations.txt": "\n".join(_lines(seen.events()))}

    @contextlib.contextmanager
    def _generated(self) -> Iterator[Counter[str]]:
        """Count the calls of generated kernels: the modules that hold them look them up by name at each call."""
        from torch._inductor.codecache import PyCodeCache

        counts: Counter[str] = Counter()

        def counting(name: str, kernel: Any) -> Any:
            kind = re.sub(r"_\\d+$", "", name)

            def call(*arguments: Any) -> Any:
                counts[kind] += 1
                return kernel(*arguments)

            return call

        found = [
            (module, name, kernel)
            for module in PyCodeCache.modules
            for name, kernel in vars(module).items()
            if FUSED.fullmatch(name) and callable(kernel)
        ]
        for module, name, kernel in found:
            setattr(module, name, counting(name, kernel))
        try:
            yield counts
        finally:
            for module, name, kernel in found:
                setattr(module, name, kernel)

    def _compiled(self, function: Any, program: Program) -> Any:
        from torch._inductor.graph import GraphLowering

        self.codes[program] = []
        GraphLowering.save_output_code = staticmethod(self.codes[program].append)  # told at the first call
        # Dynamo keeps its compiled programs per code object and looks through them at every call.
        # A code object of its own gives each program the one entry it would have in a user's code.
        code = function.__code__.replace()
        own = types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
        options: dict[str, Any] = {}
        if program.arm.recurrence == "scan":
            # Inductor gives a loop's buffers away while its results still lie in them (torch 2.13: wrong gradients).
            options["allow_buffer_reuse"] = False
        if program.execution == "inductor-batched":
            options["post_grad_fusion_options"] = {FUSION: {"min_fuse_set_size": 2}}
        return self.torch.compile(own, fullgraph=True, dynamic=False, options=options)

    def _proven(self, run: Run, program: Program) -> Run:
        """The run, whose first call raises Unavailable where Inductor does not do what the program is called.

        A layer that it can not compile; and inductor-batched when its counter does not say that the fusion fired.
        """
        batched, own = program.execution == "inductor-batched", program.arm.recurrence == "layer"
        if not batched and not own:
            return run
        call = run

        def first(x: Any, target: Any) -> Any:
            nonlocal call
            before = self.counters["inductor"][FUSION]
            try:
                outputs = run(x, target)
            except (TypeError, RuntimeError) as error:
                if own:
                    raise Unavailable(f"{NO_OWN_LAYER}: {str(error).strip().splitlines()[0]}") from None
                raise
            if batched and self.counters["inductor"][FUSION] == before:
                raise Unavailable(NOT_BATCHED)
            call = run
            return outputs

        call = first
        return lambda x, target: call(x, target)


def _kernels(events: Any) -> Iterator[Any]:
    """The events that compute: matrix products and whole layers, and what else calls nothing that computes.

    A product that is made of products (under vmap) is none itself, and what a product does besides is part of it.
    """
    for event in events:
        within = any(map(_whole, _above(event)))
        if _whole(event):
            if not any(map(_whole, _below(event))):
                yield event
        elif _computes(event) and not within and not any(map(_computes, _below(event))):
            yield event


def _whole(event: Any) -> bool:
    return event.name in OPERANDS or event.name in LAYERS


def _computes(event: Any) -> bool:
    return event.name.startswith(("aten::", "mkldnn::")) and not VIEWS.fullmatch(event.name)


def _above(event: Any) -> Iterator[Any]:
    while (event := event.cpu_parent) is not None:
        yield event


def _below(event: Any) -> Iterator[Any]:
    for child in event.cpu_children:
        yield child
        yield from _below(child)


def _product(event: Any) -> tuple[int, int, int, int]:
    """Batch, M, K, N, from the shapes of the operands."""
    at = OPERANDS[event.name]
    left, right = event.input_shapes[at : at + 2]
    *batch, m, k = left
    return (batch[0] if batch else 1), m, k, (right[-1] if len(right) > 1 else 1)


def _peak_bytes(profile: Any) -> int | None:
    """The most that was allocated at once during the call, outputs included."""
    held = peak = 0
    memory = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak if memory else None


def _lines(events: Any) -> Iterator[str]:
    """The operations in the order they began, indented as they call each other."""
    for event in events:
        yield f"{'  ' * len(list(_above(event)))}{event.name} {event.input_shapes or ''}".rstrip()


def _column_major(a: Any) -> Any:
    """The same weight, laid out so that its transpose is contiguous: as the framework's layers hold theirs."""
    return a.detach().T.contiguous().T.requires_grad_()
