"""The data that an arm is called with: a workload's weights and inputs, in the arm's precision and shapes."""

import math
from typing import Any

import numpy as np

from impls.interface import PRECISIONS, Arm, Data, Weights

DTYPES = {precision: "float64" if precision == "fp64" else "float32" for precision in PRECISIONS}
NONE_IN_TRAINING = "the backward pass from a given gradient of h"  # older records lack it: their loss was one of h


def probe_data(data: Data) -> Data:
    """Return other inputs of the same shapes, which reveal an output that does not depend on its inputs."""
    return Data(data.weights, np.ascontiguousarray(0.75 * data.x[::-1] - 0.125).astype(data.x.dtype), data.target)


def data_for(arm: Arm, data: Data) -> Data:
    """Return the data an arm is called with.

    For projection none the target is the gradient of h that its backward pass starts from, [T, B, H]. It consists of
    cosines and no two of its steps are alike, so that steps in a wrong order change the result.

    For recurrence given, x is [T, B, H], uniform on [-1, 1].
    """
    steps, batch, _ = data.x.shape
    shape = (steps, batch, data.weights.w_rec.shape[-2])
    if arm.recurrence == "given":
        data = data._replace(x=_round_to_float32(np.random.default_rng(shape).uniform(-1, 1, shape), data.x.dtype))
    if arm.projection == "none":
        data = data._replace(target=_round_to_float32(np.cos(np.arange(math.prod(shape))).reshape(shape), data.x.dtype))
    return data


def _round_to_float32(array: np.ndarray, dtype: Any) -> np.ndarray:
    """Round an array to float32, as a file of float32 numbers would, and return it in `dtype`."""
    return array.astype("float32").astype(dtype)


def cast(data: Data, dtype: str) -> Data:
    """Return the data with every array of real numbers converted to `dtype`."""
    target = data.target.astype(dtype) if data.target.dtype.kind == "f" else data.target
    return Data(Weights(*(a.astype(dtype) for a in data.weights)), data.x.astype(dtype), target)
