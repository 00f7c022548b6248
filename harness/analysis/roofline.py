"""Roofline (Williams, Waterman and Patterson 2009) of one machine under one framework, and the work of a call.

Times are those of arithmetic and memory alone. What a framework adds to a call, a step or a product is not in them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from harness.records.schema import PeakRates
from harness.study.study import Workload
from impls.interface import GATES, TRAIN_NONE, Weights

ITEM = 4  # bytes of a float32, in which rates are measured
MEASURED_IN = ("fp32", "tf32", "as_shipped")  # precisions whose arrays are float32


@dataclass(frozen=True)
class Curve:
    """Seconds as a function of bytes moved: interpolated in logarithms between points, and proportional beyond them.

    `amounts` and `seconds` are logarithms.
    """

    amounts: np.ndarray
    seconds: np.ndarray

    def __call__(self, amount: float) -> float:
        log_amount = math.log(amount)
        clipped = min(max(log_amount, self.amounts[0]), self.amounts[-1])
        return math.exp(np.interp(clipped, self.amounts, self.seconds) + log_amount - clipped)


def curve(seconds: Mapping[float, float]) -> Curve:
    """Return the curve of measured seconds by bytes, without the cost of one call that each measurement includes.

    That cost is what the smallest amount takes longer than at the best rate measured. An amount takes no longer than a
    larger one: where a busy machine measured otherwise, the larger one's time is taken.
    """
    amounts, times = (np.array(column) for column in zip(*sorted(seconds.items()), strict=True))
    times = np.minimum.accumulate(times[::-1])[::-1]
    best_times = amounts / np.max(amounts / times)
    call_cost = times[0] - best_times[0]
    return Curve(np.log(amounts), np.log(np.maximum(times - call_cost, best_times)))


@dataclass(frozen=True)
class Roofline:
    """Rates of one machine: operations a second in a large product, and seconds by bytes moved."""

    flops_s: float
    memory: Curve

    def product(self, m: int, k: int, n: int) -> float:
        """Return the seconds of [m, k] x [k, n]: those of its operations, or of its operands and result if longer."""
        return max(2.0 * m * k * n / self.flops_s, self.moved(m * k + k * n + m * n))

    def moved(self, count: float) -> float:
        """Return the seconds of reading or writing `count` numbers."""
        return self.memory(ITEM * count)


def roofline_from_rates(rates: PeakRates) -> Roofline:
    """Return the roofline of a worker's rates, see harness.worker.peak_rates."""
    memory = {2.0 * ITEM * count: ns / 1e9 for count, ns in rates.scale_ns.items()}
    return Roofline(rates.flops_s, curve(memory))


@dataclass(frozen=True)
class RooflineTimes:
    """Seconds of a workload's parts in one pass.

    `step` is that of a step. `in_loop` is what a step's projection adds in the loop, which may be negative. `batched`
    is what the projection of all steps at once adds after the loop. `loss` is that of the loss, which only a projected
    form has.
    """

    step: float
    in_loop: float
    batched: float
    loss: float


def roofline_times(roof: Roofline, w: Workload, pass_: str) -> RooflineTimes:
    """Return the seconds of the parts, forward (passes forward and loss), and with their gradients in train.

    Counted are a part's products, the arrays it is given element by element, and what it keeps.
    A step: x w_in, h w_rec, the cell on [B, G*H], and h kept for later. Backward: the gradients of h, w_rec and w_in,
    the latter two added to what the later steps gave.
    A projection: h w_out, and y kept, in the loop instead of h where h is not needed again. Backward: the gradients of
    h and w_out, the latter added up where each step has its own.
    The loss: y and the target read, and the gradient of y written.
    """
    width = len(GATES[w.cell]) * w.H
    rows = w.T * w.B
    state_s, output_s = roof.moved(2 * w.B * w.H), roof.moved(2 * w.B * w.O)
    step = roof.product(w.B, w.I, width) + roof.product(w.B, w.H, width) + roof.moved(3 * w.B * width) + state_s
    in_loop, batched = roof.product(w.B, w.H, w.O) + output_s, roof.product(rows, w.H, w.O) + roof.moved(2 * rows * w.O)
    if pass_ != "train":
        return RooflineTimes(step, in_loop - state_s, batched, roof.moved(2 * rows * w.O) if pass_ == "loss" else 0.0)
    step += roof.product(w.B, width, w.H) + roof.product(w.H, w.B, width) + roof.product(w.I, w.B, width)
    step += roof.moved(6 * w.B * width) + roof.moved(3 * w.H * width)
    in_loop += roof.product(w.B, w.O, w.H) + roof.product(w.H, w.B, w.O) + roof.moved(3 * w.H * w.O)
    batched += roof.product(rows, w.O, w.H) + roof.product(w.H, rows, w.O)
    return RooflineTimes(step, in_loop, batched, roof.moved(3 * rows * w.O))


def flops(w: Workload, pass_: str, projection: str) -> float:
    """Return the floating-point operations of the products of a call, by theory."""
    width, outputs = len(GATES[w.cell]) * w.H, 0 if projection == "none" else w.O
    forward = (w.I + w.H) * width + w.H * outputs
    backward = (w.I + 2 * w.H) * width + 2 * w.H * outputs if pass_ == "train" else 0
    return 2.0 * w.layers * w.T * w.B * (forward + backward)


def lower_bound_s(roof: Roofline, w: Workload, pass_: str, projection: str) -> float:
    """Return the lower bound of a call's seconds.

    It is the longer of two: its operations at the best rate, or moving its inputs and outputs once. The hidden states
    need not leave the processor, nor y where the pass has a loss, so they are not counted.
    """
    shapes, unprojected, train = w.shapes, projection == "none", pass_ == "train"
    names = Weights._fields[: len(TRAIN_NONE)] if unprojected else Weights._fields
    weights = sum(math.prod(shapes[name]) for name in names)
    y = (w.T, w.B, w.H if unprojected else w.O)  # of `none` in train: the gradient of h, an input
    numbers = math.prod(shapes["x"]) + weights
    numbers += math.prod(y if unprojected or pass_ == "forward" else shapes["target"])
    numbers += weights if train else 0
    return max(flops(w, pass_, projection) / roof.flops_s, roof.moved(numbers))
