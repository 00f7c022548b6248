"""Predict what a call takes on a GPU from what it launches, before any GPU has run. Pure functions.

    host   = host launches x launch + graphs x graph_launch + nodes of the graphs x graph_update
             + slices in graphs x slice_update
    device = sum over kernels of (kernel, or graph_kernel, + bytes / bandwidth + product) + graphs x graph_gap
    time   = (call + the larger of host and device) x unmodelled

A product of [M, K] x [K, N] is cut into tiles; a multiprocessor works on one tile at a time. Every constant has a
range. A prediction is made for many draws of all constants: the forms of one draw share its constants, and a range is
the 5th to the 95th percentile over the draws. Only `unmodelled` is drawn anew for each form.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from impls.evidence import Product

DRAWS = 4000
SEED = 2026
PERCENTILES = (5, 50, 95)
Draws = Mapping[str, Any]  # constant -> an array of one number for each draw


class Range(NamedTuple):
    """A constant's range, and where it comes from. `even`: drawn evenly, not evenly in its logarithm."""

    low: float
    high: float
    source: str
    even: bool = False


@dataclass(frozen=True)
class Card:
    """A card's data sheet: fp32 rate without matrix units, memory bandwidth, multiprocessors."""

    flops: float
    bytes_s: float
    multiprocessors: int


CARDS = {  # NVIDIA's data sheets of the H100 SXM5 and of the A100 SXM4 80 GB
    "h100": Card(67e12, 3.35e12, 132),
    "a100": Card(19.5e12, 2.039e12, 108),
}
OUR_RECORDS = "this project's committed CPU run of 2026-11-26, time over operations, and a faster host assumed"
ESTIMATE = "estimate; no measurement of ours"
NVIDIA_GRAPHS = "NVIDIA, Getting Started with CUDA Graphs (2019), from memory"
NVIDIA_CONSTANT = "NVIDIA, Constant Time Launch for Straight-Line CUDA Graphs (2024), from memory"
CONSTANTS = {
    "launch_us": Range(2.0, 5.0, NVIDIA_GRAPHS + ": 2-4 us a launch; plus XLA's runtime"),
    "graph_launch_us": Range(
        4.0, 10.0, NVIDIA_CONSTANT + ": 2.5 us for a graph of a line of kernels; plus XLA's runtime"
    ),
    "graph_update_us": Range(0.0, 1.0, "host time per node where addresses changed since the last call", True),
    "slice_update_us": Range(1.0, 6.0, "host time of moving a slice in a graph at a trip; " + ESTIMATE),
    "graph_gap_us": Range(1.0, 5.0, "GPU time between one graph and the next on a stream"),
    "kernel_us": Range(1.8, 3.2, "shortest kernel launched from the host, back to back; " + NVIDIA_GRAPHS + ": 2-3 us"),
    "graph_kernel_us": Range(
        1.0, 2.2, "shortest kernel in a graph that waits for the one before; " + NVIDIA_CONSTANT + ": 1-2 us"
    ),
    "tile": Range(32, 64, "rows and columns of a product's tile in fp32"),
    "small_share": Range(0.15, 0.6, "of a multiprocessor's rate, where tiles are fewer than multiprocessors"),
    "large_share": Range(0.5, 0.85, "of the card's rate, for products that fill it"),
    "bandwidth_share": Range(0.5, 1.5, "of the memory's bandwidth; above 1 from the second-level cache"),
    "jax_call_us": Range(25, 90, "jit's dispatch, PJRT's execution and block_until_ready; " + ESTIMATE),
    "jax_eager_forward_op_us": Range(15, 80, OUR_RECORDS + ": 24-107 us there"),
    "jax_eager_train_op_us": Range(80, 350, OUR_RECORDS + ": 235-437 us there"),
    "jax_eager_share": Range(0.3, 1.0, OUR_RECORDS + ": a projection's operation costs 0.23-1.2 of a recurrence's"),
    "torch_call_us": Range(10, 40, "entering Python and torch.cuda.synchronize; " + ESTIMATE),
    "torch_op_us": Range(3.5, 9.0, "host time of an operation in eager PyTorch; 4-8 us on the CPU for small ones"),
    "torch_train_op_us": Range(3.5, 10.0, "the same with autograd; 7-8 us on the CPU for small ones"),
    "torch_share": Range(0.75, 1.1, OUR_RECORDS + ": 0.89-0.94 where products are small"),
    "inductor_call_us": Range(25, 80, "guards and wrappers of one compiled call; " + ESTIMATE),
    "inductor_train_us": Range(80, 250, "of a forward and a backward call with autograd between; " + ESTIMATE),
    "inductor_launch_us": Range(3.5, 8.0, "host time of a Triton launch or an extern product from the wrapper"),
    "cudagraph_call_us": Range(40, 150, "of replaying one recorded graph under torch.compile; " + ESTIMATE),
    "k_one": Range(0.0, 1.0, "share of products with K = 1 that stay kernels of their own", True),
}
UNMODELLED = Range(0.95, 1.05, "whatever this model leaves out of one form and not of another; " + ESTIMATE)


class LaunchGroup(NamedTuple):
    """`times` launches a call of one kind. Bytes are of one of them.

    `graph`: whether a CUDA graph holds them. `sliced`: each works on a slice whose place the host computes.
    """

    times: float
    graph: bool
    product: Product | None
    moved_bytes: float
    sliced: bool = False


@dataclass(frozen=True)
class Count:
    """What a call of one form launches: its kernels, graphs launched, and nodes in all graphs, each once."""

    groups: tuple[LaunchGroup, ...]
    graphs: int
    recorded: int


@dataclass(frozen=True)
class Operations:
    """What a call of one form dispatches: operations, those of the recurrence alone, and the products among them."""

    operations: int
    recurrence: int
    products: tuple[Product, ...]


def draws(seed: int = SEED, count: int = DRAWS) -> dict[str, Any]:
    """Return `count` draws of every constant, evenly in the logarithm unless the range says otherwise."""
    rng = np.random.default_rng(seed)
    return {name: _draw(rng, range_, count) for name, range_ in CONSTANTS.items()}


def unmodelled(key: Iterable[str], count: int = DRAWS) -> Any:
    """Return the draws of what the model leaves out of the form with this key. The same key gives the same draws."""
    seed = int.from_bytes(hashlib.sha256("/".join(key).encode()).digest()[:8], "big")
    return _draw(np.random.default_rng(seed), UNMODELLED, count)


def _draw(rng: Any, range_: Range, count: int) -> Any:
    if range_.even:
        return rng.uniform(range_.low, range_.high, count)
    return np.exp(rng.uniform(np.log(range_.low), np.log(range_.high), count))


def product_us(product: Product, card: Card, c: Draws) -> Any:
    """Return the time of one product beyond that of the shortest kernel.

    Where tiles are fewer than multiprocessors, a library may cut K among those that are left, down to 256 each.
    """
    tile: Any = np.round(c["tile"] / 32) * 32
    tiles = product.batch * np.ceil(product.m / tile) * np.ceil(product.n / tile)
    inner: Any = np.maximum(min(product.k, 256), product.k * np.minimum(1, tiles / card.multiprocessors))
    waves: Any = np.ceil(tiles / card.multiprocessors)
    share: Any = np.where(tiles < card.multiprocessors, c["small_share"], c["large_share"])
    return 1e6 * waves * 2 * tile * tile * inner / (card.flops / card.multiprocessors * share)


def device_us(groups: Iterable[LaunchGroup], card: Card, c: Draws) -> Any:
    """Return the GPU's time for kernels that wait for each other."""
    total_us = np.zeros_like(c["launch_us"])
    for group in groups:
        kernel_us = c["graph_kernel_us"] if group.graph else c["kernel_us"]
        kernel_us = kernel_us + 1e6 * group.moved_bytes / (card.bytes_s * c["bandwidth_share"])
        if group.product:
            kernel_us = kernel_us + product_us(group.product, card, c)
        total_us = total_us + group.times * kernel_us
    return total_us


def compiled_us(count: Count, card: Card, c: Draws, call: str, launch: str = "launch_us") -> Any:
    """Return the time of a call of a compiled program. `call`, `launch`: the constants of its framework."""
    host_launches = sum(group.times for group in count.groups if not group.graph)
    slices = sum(group.times for group in count.groups if group.graph and group.sliced)
    host = host_launches * c[launch] + count.graphs * c["graph_launch_us"]
    host = host + count.recorded * c["graph_update_us"] + slices * c["slice_update_us"]
    device = device_us(count.groups, card, c) + count.graphs * c["graph_gap_us"]
    return c[call] + np.maximum(host, device)


def eager_us(work: Operations, card: Card, c: Draws, operation: str, share: str, call: str) -> Any:
    """Return the time of a call whose operations are dispatched one by one, each a kernel."""
    host = c[operation] * (work.recurrence + c[share] * (work.operations - work.recurrence))
    other_operations = work.operations - sum(product.times for product in work.products)
    kernels = [LaunchGroup(other_operations, False, None, 0.0)]
    kernels += [LaunchGroup(product.times, False, product, 0.0) for product in work.products]
    return c[call] + np.maximum(host, device_us(kernels, card, c))


def percentiles(values: Any) -> tuple[float, float, float]:
    """Return the low, the middle and the high of draws."""
    low, middle, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return low, middle, high
