"""PyTorch behind the contract. torch is imported late, in the worker, so that no one else needs it."""

import shutil
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from impls.interface import Data, Execution, Facts, Outputs, Program, Run, Settings, Weights, named

NO_EAGER_SCAN = "torch's scan operator runs through the compiler even when called eagerly: it has no eager form"
NO_COMPILER = "Inductor needs a C++ compiler (g++ or clang++) and finds none"


class Backend:
    """See impls.interface.Backend."""

    def environment(self, settings: Settings) -> dict[str, str]:
        threads = str(settings.threads)
        cache = {"TORCHINDUCTOR_CACHE_DIR": settings.cache} if settings.cache else {}
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | cache

    def facts(self) -> Facts:
        import torch

        compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
        executions = {
            "eager": Execution(traced=False, without={"scan": NO_EAGER_SCAN}),
            "inductor": Execution(traced=True, missing=None if compiler else NO_COMPILER),
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
        arm = getattr(self.model, program.arm.name)
        act, mse = self.model.ACTIVATIONS[program.cell], self.model.loss

        def forward(w: Weights, x: Any, target: Any) -> Any:
            return arm(w, act, x)

        def loss(w: Weights, x: Any, target: Any) -> Any:
            return mse(arm(w, act, x), target)

        value = forward if program.pass_ == "forward" else loss
        if program.execution == "inductor":
            value = self._compiled(value, program.arm.recurrence)

        def run_forward(x: Any, target: Any) -> Any:
            with torch.no_grad():
                return value(w, x, target)

        def run_train(x: Any, target: Any) -> Any:
            out = value(w, x, target)
            # Projection none leaves w_out and b_out unused: their gradients are zeros.
            return out, *torch.autograd.grad(out, w, allow_unused=True, materialize_grads=True)

        return run_forward if program.pass_ == "forward" else run_train

    def put(self, data: Data) -> Data:
        def put(a: np.ndarray) -> Any:
            return self.torch.tensor(a, device=self.device)

        return Data(Weights(*(put(a).requires_grad_() for a in data.weights)), put(data.x), put(data.target))

    def wait(self, outputs: Any) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def get(self, outputs: Any) -> Outputs:
        leaves = outputs if isinstance(outputs, tuple) else (outputs,)
        return named([leaf.detach().cpu().numpy().copy() for leaf in leaves])

    def compilations(self) -> int:
        return int(self.counters["frames"]["total"] + self.counters["stats"]["unique_graphs"])

    def product(self, size: int) -> Callable[[], None]:
        a = self.torch.ones((size, size))

        def multiply() -> None:
            self.wait(self.torch.mm(a, a))

        return multiply

    def _compiled(self, function: Any, recurrence: str) -> Any:
        # Dynamo keeps its compiled programs per code object and looks through them at every call.
        # A code object of its own gives each program the one entry it would have in a user's code.
        code = function.__code__.replace()
        own = types.FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
        # Inductor gives a loop's buffers away while its results still lie in them (torch 2.13: wrong gradients).
        options = {"allow_buffer_reuse": False} if recurrence == "scan" else {}
        return self.torch.compile(own, fullgraph=True, dynamic=False, options=options)
