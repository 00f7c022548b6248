"""A user's own functions in JAX: the contract of impls.functions.Functions."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from impls.evidence import Evidence
from impls.functions import Task, call_by_position, leaves
from impls.jax.backend import Backend
from impls.jax.hoist import Record, hoist


class Functions:
    """The contract of impls.functions.Functions, fulfilled with JAX."""

    checked_in = "xla"  # a loop of lax.scan would be compiled anew at every call outside jit
    compiles_in_eager = True

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def set_defaults(self, precision: str, seed: int) -> None:
        """Do nothing: opening the backend has fixed the types, and JAX draws from keys alone."""

    def hoisted(self, function: Callable[..., Any], log: list[str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*inputs: Any) -> Any:
            records: list[Record] = []
            returned = hoist(function, log=records)(*inputs)
            log.extend(map(str, records))
            return returned

        return call

    def is_array(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def dtype(self, array: Any) -> str:
        return str(array.dtype)

    def put(self, array: np.ndarray, is_differentiated: bool) -> Any:
        return jnp.array(array, copy=True)

    def get(self, array: Any) -> np.ndarray:
        return np.array(array, "float32" if self.dtype(array) in ("bfloat16", "float16") else None)

    def prepare(self, task: Task, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = _train(task, len(inputs)) if task.differentiated else call_by_position(task.function)
        return functools.partial(jax.jit(run) if task.execution == "xla" else run)

    def wait(self, outputs: Any) -> None:
        self.backend.wait(outputs)

    def evidence(self, task: Task, run: Callable[..., Any], inputs: Sequence[Any]) -> Evidence:
        return self.backend.evidence(task.program, run, inputs)[0]


def _train(task: Task, count: int) -> Callable[..., Any]:
    """Return the callable of the sum of all floating-point outputs, of `count` inputs, and its gradients."""

    def total(*arguments: Any) -> Any:
        returned = leaves(task.function(*arguments[:count]))
        outputs = [leaf for leaf in returned.values() if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if task.weighted:
            weights = arguments[count:]
            outputs = [leaf * weight.astype(leaf.dtype) for leaf, weight in zip(outputs, weights, strict=True)]
        return sum(leaf.sum() for leaf in outputs)

    value_and_gradients = jax.value_and_grad(total, argnums=task.differentiated)

    def run_train(*inputs: Any) -> Any:
        value, gradients = value_and_gradients(*inputs)
        return value, *gradients

    return run_train
