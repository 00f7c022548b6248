"""A user's own functions in PyTorch: the contract of impls.functions.Functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from impls.evidence import Evidence
from impls.functions import Task, call_by_position, leaves
from impls.torch.backend import Backend

NARROW = (torch.bfloat16, torch.float16)  # NumPy has no bfloat16


class Functions:
    """The contract of impls.functions.Functions, fulfilled with PyTorch."""

    checked_in = "eager"
    compiles_in_eager = False

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.hoist_logs: dict[Callable[..., Any], list[str]] = {}  # of the functions whose loops are rebuilt

    def set_defaults(self, precision: str, seed: int) -> None:
        torch.set_default_dtype(torch.float64 if precision == "fp64" else torch.float32)
        torch.manual_seed(seed)

    def hoisted(self, function: Callable[..., Any], log: list[str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*inputs: Any) -> Any:
            return function(*inputs)

        self.hoist_logs[call] = log
        return call

    def is_array(self, value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    def dtype(self, array: Any) -> str:
        return str(array.dtype).removeprefix("torch.")

    def put(self, array: np.ndarray, is_differentiated: bool) -> Any:
        return torch.from_numpy(array).clone(memory_format=torch.preserve_format).requires_grad_(is_differentiated)

    def get(self, array: Any) -> np.ndarray:
        array = array.detach().cpu()
        return np.array((array.float() if array.dtype in NARROW else array).numpy())

    def prepare(self, task: Task, inputs: Sequence[Any]) -> Callable[..., Any]:
        function = _total(task, len(inputs)) if task.differentiated else call_by_position(task.function)
        hoist_log = self.hoist_logs.get(task.function)
        if task.execution != "eager":
            self.backend.keep_uncompiled(task.program, function, lambda target: _run(task, target), inputs)
        if task.execution != "eager" or hoist_log is not None:
            function = self.backend.compiled(function, task.program, hoist_log)
        return _run(task, function)

    def wait(self, outputs: Any) -> None:
        self.backend.wait(outputs)

    def evidence(self, task: Task, run: Callable[..., Any], inputs: Sequence[Any]) -> Evidence:
        return self.backend.evidence(task.program, lambda *inputs: tuple(leaves(run(*inputs)).values()), inputs)[0]


def _total(task: Task, count: int) -> Callable[..., Any]:
    """Return the function whose gradients are taken: the sum of all floating-point outputs, of `count` inputs."""

    def total(*arguments: Any) -> Any:
        returned = leaves(task.function(*arguments[:count]))
        outputs = [leaf for leaf in returned.values() if leaf.is_floating_point()]
        if task.weighted:
            weights = arguments[count:]
            outputs = [leaf * weight.to(leaf.dtype) for leaf, weight in zip(outputs, weights, strict=True)]
        return sum(leaf.sum() for leaf in outputs)

    return total


def _run(task: Task, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable of a pass."""

    def run_forward(*inputs: Any) -> Any:
        with torch.no_grad():
            return function(*inputs)

    def run_train(*inputs: Any) -> Any:
        out, variables = function(*inputs), [inputs[position] for position in task.differentiated]
        if not out.requires_grad:  # the function cuts all its outputs from its inputs
            return out, *map(torch.zeros_like, variables)
        return out, *torch.autograd.grad(out, variables, allow_unused=True, materialize_grads=True)

    return run_train if task.differentiated else run_forward
