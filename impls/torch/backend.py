"""PyTorch behind the contract. torch is imported late, in the worker, so that no one else needs it."""

import shutil
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from impls.evidence import Evidence
from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Unavailable, Weights, named

NO_EAGER_SCAN = "torch's scan operator runs through the compiler even when called eagerly: it has no eager form"
NO_COMPILER = "Inductor needs a C++ compiler (g++ or clang++) and finds none"
NO_TIME_DISTRIBUTED = "TimeDistributed is a layer of Keras"
FUSION = "batch_linear_post_grad"
BATCHED_BY_IT = ("in_loop", "per_step")  # what the fusion is for; none and batched beside it are the measure of it
UNBATCHED = ("scan", "layer", "bmm", "vmap", "library")
NOTHING_TO_BATCH = "the fusion joins products that are written one by one in one graph: here it is what inductor is"
NOT_BATCHED = "Inductor's batch_linear fusion did not fire"
NO_OWN_LAYER = "Inductor can not compile torch's own layer"
UNROLLS = ("unrolled", "layer")  # Inductor takes a layer of plain RNNs and GRUs apart into its steps
SLOW = (*UNROLLS, "given_per_step")  # joining products takes half a minute where there are a hundred


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
        unbatched = dict.fromkeys(UNBATCHED, NOTHING_TO_BATCH)
        executions = {
            "eager": Execution(traced=False, without=without | {"scan": NO_EAGER_SCAN}),
            "inductor": Execution(True, missing, without, UNROLLS),
            "inductor-batched": Execution(True, missing, without | unbatched, SLOW, trains=False),
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
        """From the profiler, over one call; and what Inductor generated."""
        from impls.torch import evidence

        def call() -> Sequence[Any]:
            outputs = run(*inputs)
            self.wait(outputs)
            return outputs if isinstance(outputs, tuple) else (outputs,)

        found, text = evidence.of_call(call, self.device == "cuda")
        if program.arm.recurrence == "scan":
            found.missing |= {"loops": evidence.NO_LOOPS}
        texts = {f"generated{at}.py": code for at, code in enumerate(self.codes.get(program, ()))}
        return found, texts | {"operations.txt": text}

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

        A layer that it can not compile; and under inductor-batched T products, when the counter does not say that the
        fusion fired.
        """
        own = program.arm.recurrence == "layer"
        batched = program.execution == "inductor-batched" and program.arm.projection in BATCHED_BY_IT
        if not batched and not own:
            return run
        call = run

        def first(x: Any, target: Any) -> Any:
            nonlocal call
            before = self.counters["inductor"][FUSION]
            try:
                outputs = run(x, target)
            except TypeError as error:  # of torch 2.13, in training an LSTM
                if own and "mkldnn_rnn_layer" in str(error):
                    raise Unavailable(f"{NO_OWN_LAYER}: {str(error).strip().splitlines()[0]}") from None
                raise
            if batched and self.counters["inductor"][FUSION] == before:
                raise Unavailable(NOT_BATCHED)
            call = run
            return outputs

        call = first
        return lambda x, target: call(x, target)


def _column_major(a: Any) -> Any:
    """The same weight, laid out so that its transpose is contiguous: as the framework's layers hold theirs."""
    return a.detach().T.contiguous().T.requires_grad_()
