"""The roofline (Williams, Waterman and Patterson 2009) of one machine in one framework's hands, and the work of a call.

Times are those of arithmetic and memory alone: what a framework adds to a call, a step or a product is not in them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.study.study import Workload
from impls.interface import GATES, TRAIN_NONE, Weights

ITEM = 4  # bytes of a float32, in which rates are measured
MEASURED_IN = ("fp32", "tf32", "as_shipped")  # precisions whose arrays are float32


@dataclass(frozen=True)
class Curve:
    """Seconds against bytes moved, both as logarithms: interpolated between them, and proportional beyond them."""

    amounts: np.ndarray
    seconds: np.ndarray

    def __call__(self, amount: float) -> float:
        x = math.log(amount)
        inside = min(max(x, self.amounts[0]), self.amounts[-1])
        return math.exp(np.interp(inside, self.amounts, self.seconds) + x - inside)


def curve(seconds: Mapping[float, float]) -> Curve:
    """From measured seconds by bytes, each with the price of one call in it, which is taken out.

    That price is what the smallest takes longer than at the best rate seen. An amount takes no longer than a larger
    one: where a busy machine says so, the larger one's time is taken.
    """
    amounts, taken = (np.array(column) for column in zip(*sorted(seconds.items()), strict=True))
    taken = np.minimum.accumulate(taken[::-1])[::-1]
    least = amounts / np.max(amounts / taken)
    call = taken[0] - least[0]
    return Curve(np.log(amounts), np.log(np.maximum(taken - call, least)))


@dataclass(frozen=True)
class Roof:
    """What multiplying and moving take: the rate of a large product, operations a second; seconds by bytes moved."""

    flops_s: float
    memory: Curve

    def product(self, m: int, k: int, n: int) -> float:
        """Seconds of [m, k] x [k, n], whichever takes longer: its operations, or its operands and result."""
        return max(2.0 * m * k * n / self.flops_s, self.moved(m * k + k * n + m * n))

    def moved(self, count: float) -> float:
        """Seconds of reading or writing so many numbers."""
        return self.memory(ITEM * count)


def roof(rates: Mapping[str, Any]) -> Roof:
    """From a worker's rates, see harness.worker.peak_rates."""
    memory = {2.0 * ITEM * int(count): ns / 1e9 for count, ns in rates["scale_ns"].items()}
    return Roof(rates["flops_s"], curve(memory))


@dataclass(frozen=True)
class Least:
    """Seconds of a workload's parts in one pass: of a step; of what one step's projection adds in the loop, which may
    be less than nothing; of what all steps' at once adds after it; and of the loss, which what is projected has.
    """

    step: float
    one: float
    once: float
    loss: float


def least(roof: Roof, w: Workload, pass_: str) -> Least:
    """The parts' products, the arrays they are given element by element, and what they keep, forward; and their
    gradients in train.

    A step: x w_in, h w_rec, the cell on [B, G*H], and h kept for later; backward the gradients of h, w_rec and w_in,
    the latter two added to what the later steps gave. A projection: h w_out, and y kept, in the loop instead of h
    where h is not needed again; backward the gradients of h and w_out, the latter added up where each step has its own.
    The loss: y and the target read, the gradient of y written.
    """
    wide = len(GATES[w.cell]) * w.H
    every = w.T * w.B
    kept, given = roof.moved(2 * w.B * w.H), roof.moved(2 * w.B * w.O)
    step = roof.product(w.B, w.I, wide) + roof.product(w.B, w.H, wide) + roof.moved(3 * w.B * wide) + kept
    one, once = roof.product(w.B, w.H, w.O) + given, roof.product(every, w.H, w.O) + roof.moved(2 * every * w.O)
    if pass_ == "forward":
        return Least(step, one - kept, once, 0.0)
    step += roof.product(w.B, wide, w.H) + roof.product(w.H, w.B, wide) + roof.product(w.I, w.B, wide)
    step += roof.moved(6 * w.B * wide) + roof.moved(3 * w.H * wide)
    one += roof.product(w.B, w.O, w.H) + roof.product(w.H, w.B, w.O) + roof.moved(3 * w.H * w.O)
    once += roof.product(every, w.O, w.H) + roof.product(w.H, every, w.O)
    return Least(step, one, once, roof.moved(3 * every * w.O))


def flops(w: Workload, pass_: str, projection: str) -> float:
    """Floating-point operations of the products of a call, as theory has them."""
    wide, outputs = len(GATES[w.cell]) * w.H, 0 if projection == "none" else w.O
    forward = (w.I + w.H) * wide + w.H * outputs
    back = (w.I + 2 * w.H) * wide + 2 * w.H * outputs if pass_ == "train" else 0
    return 2.0 * w.T * w.B * (forward + back)


def floor_s(roof: Roof, w: Workload, pass_: str, projection: str) -> float:
    """Seconds below which no call can come: its operations at the best rate, or what it is given and gives, moved
    once, whichever takes longer. The hidden states need not leave the processor, so they are not counted.
    """
    shapes, none, train = w.shapes, projection == "none", pass_ == "train"
    names = Weights._fields[: len(TRAIN_NONE)] if none else Weights._fields
    weights = sum(math.prod(shapes[name]) for name in names)
    outputs = w.T * w.B * (w.H if none else w.O)  # of none in train the gradient of h that it is given
    numbers = math.prod(shapes["x"]) + weights + outputs * (2 if train and not none else 1)
    numbers += weights if train else 0
    return max(flops(w, pass_, projection) / roof.flops_s, roof.moved(numbers))
