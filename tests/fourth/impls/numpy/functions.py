"""A user's own functions in NumPy. Gradients are exact: a step in the imaginary direction has no cancellation."""

import numpy as np
from impls.evidence import Evidence
from impls.functions import leaves
from impls.interface import NO_HOIST, Unavailable

STEP = 1e-30


class Functions:
    checked_in = "eager"
    compiles_in_eager = True  # so that a test's own counter means what the test says

    def __init__(self, backend):
        self.backend = backend

    def set_defaults(self, precision, seed):
        pass

    def hoisted(self, function, log):
        raise Unavailable(NO_HOIST)

    def is_array(self, value):
        return isinstance(value, (np.ndarray, np.number))

    def dtype(self, array):
        return str(array.dtype)

    def put(self, array, is_differentiated):
        return np.array(array)

    def get(self, array):
        return np.array(array)

    def prepare(self, task, inputs):
        count = len(inputs)
        if task.differentiated:
            return lambda *arguments: differentiate(task, arguments[:count], arguments[count:])
        return task.function

    def wait(self, outputs):
        self.backend.wait(outputs)

    def evidence(self, task, run, inputs):
        return Evidence(missing={"everything": "NumPy counts nothing"})


def differentiate(task, inputs, weights):
    def total(inputs):
        outputs = [leaf for leaf in leaves(task.function(*inputs)).values() if leaf.dtype.kind in "fc"]
        scales = weights if task.weighted else [1] * len(outputs)
        return sum((leaf * scale).sum() for leaf, scale in zip(outputs, scales, strict=True))

    def gradient(position):
        array = inputs[position]
        result = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            moved = array.astype("complex64" if array.dtype == "float32" else "complex128")
            moved[index] += 1j * STEP
            result[index] = total([*inputs[:position], moved, *inputs[position + 1 :]]).imag / STEP
        return result

    return total(inputs), *map(gradient, task.differentiated)
