"""What an arm is called with: a workload's weights and inputs, in the precision and the shapes of the arm."""

import math
from typing import Any

import numpy as np

from impls.interface import PRECISIONS, Arm, Data, Weights

DTYPES = {precision: "float64" if precision == "fp64" else "float32" for precision in PRECISIONS}
NONE_IN_TRAINING = "the backward pass from a given gradient of h"  # older records have none: theirs had a loss of h


def probe(data: Data) -> Data:
    """Other inputs of the same shapes. An output that does not follow its inputs is found by them."""
    return Data(data.weights, np.ascontiguousarray(0.75 * data.x[::-1] - 0.125).astype(data.x.dtype), data.target)


def data_for(arm: Arm, data: Data) -> Data:
    """The data an arm is called with.

    For projection none the target is the gradient of h that its backward pass starts from: [T, B, H] of cosines, no
    two of its steps alike, so that steps in a wrong order change what follows from it. For recurrence given x is
    [T, B, H], uniform on [-1, 1].
    """
    steps, batch, _ = data.x.shape
    shape = (steps, batch, data.weights.w_rec.shape[0])
    if arm.recurrence == "given":
        data = data._replace(x=_held(np.random.default_rng(shape).uniform(-1, 1, shape), data.x.dtype))
    if arm.projection == "none":
        data = data._replace(target=_held(np.cos(np.arange(math.prod(shape))).reshape(shape), data.x.dtype))
    return data


def _held(array: np.ndarray, dtype: Any) -> np.ndarray:
    """As a file of float32 numbers would hold it."""
    return array.astype("float32").astype(dtype)


def cast(data: Data, dtype: str) -> Data:
    """The data in another precision."""
    return Data(Weights(*(a.astype(dtype) for a in data.weights)), data.x.astype(dtype), data.target.astype(dtype))
