"""A user's own functions in TensorFlow: the contract of impls.functions.Functions."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from impls.evidence import Evidence
from impls.functions import Task, call_by_position, leaves
from impls.interface import NO_HOIST, Unavailable
from impls.tf.backend import Backend


class Functions:
    """The contract of impls.functions.Functions, fulfilled with TensorFlow."""

    checked_in = "eager"
    compiles_in_eager = False

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def set_defaults(self, precision: str, seed: int) -> None:
        keras.config.set_floatx("float64" if precision == "fp64" else "float32")
        keras.utils.set_random_seed(seed)

    def hoisted(self, function: Callable[..., Any], log: list[str]) -> Callable[..., Any]:
        raise Unavailable(NO_HOIST)

    def is_array(self, value: Any) -> bool:
        return isinstance(value, (tf.Tensor, tf.Variable))

    def dtype(self, array: Any) -> str:
        return str(array.dtype.name)

    def put(self, array: np.ndarray, is_differentiated: bool) -> Any:
        return tf.constant(array)

    def get(self, array: Any) -> np.ndarray:
        return np.array(array, "float32" if array.dtype in (tf.bfloat16, tf.float16) else None)

    def prepare(self, task: Task, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Return the callable of a task. Compiled ones are traced by AutoGraph, as users' are."""
        run = _train(task, len(inputs)) if task.differentiated else call_by_position(task.function)
        if task.execution != "eager":
            run(*inputs)  # a layer of Keras makes its variables at its first call, which no graph should hold
            run = tf.function(run, jit_compile=task.execution == "xla")
            self.backend.functions.append(run)
        return run

    def wait(self, outputs: Any) -> None:
        self.backend.wait(tf.nest.flatten(outputs))

    def evidence(self, task: Task, run: Callable[..., Any], inputs: Sequence[Any]) -> Evidence:
        return self.backend.counted(task.execution, run, inputs, lambda: self.wait(run(*inputs)))[0]


def _train(task: Task, count: int) -> Callable[..., Any]:
    """Return the callable of the sum of all floating-point outputs, of `count` inputs, and its gradients."""

    def run_train(*arguments: Any) -> Any:
        variables = [arguments[position] for position in task.differentiated]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            returned = leaves(task.function(*arguments[:count]))
            outputs = [leaf for leaf in returned.values() if leaf.dtype.is_floating]
            if task.weighted:
                weights = arguments[count:]
                outputs = [leaf * tf.cast(weight, leaf.dtype) for leaf, weight in zip(outputs, weights, strict=True)]
            total = tf.add_n([tf.reduce_sum(leaf) for leaf in outputs])
        gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return total, *map(tf.convert_to_tensor, gradients)  # a gathered input's are slices

    return run_train
