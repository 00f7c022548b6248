"""Kernels of a GPU in one call, from a profiler's events. Imports no framework.

A row is a plane, a line, an event's name and its nanoseconds, as in XLA's profiler (of JAX and TensorFlow). Kernels are
in the lines of a device's streams, and calls of CUDA in those of the host.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from impls.evidence import Evidence

Row = tuple[str, str, str, float]
DEVICE, STREAM = "/device:GPU", "Stream"
GRAPH_LAUNCHES = ("cudaGraphLaunch", "cuGraphLaunch")
NO_GRAPHS = "XLA launches no CUDA graph while it is profiled (xla_enable_command_buffers_during_profiling is false)"
NOTHING_RAN = "the profiler saw no kernel"
KINDS = (  # a kernel's kind by its name, the first that fits; names as cuBLAS, cuDNN, Triton, XLA and TF give them
    ("copy", re.compile(r"memcpy|memset|^copy|_copy|CatArray|concat|transpose", re.IGNORECASE)),
    ("cuDNN", re.compile(r"cudnn|RNN_|rnn_|elemWiseRNN|LSTM_|GRU_|persistRNN", re.IGNORECASE)),
    ("batched gemm", re.compile(r"batch\w*gemm|gemm\w*batch|gemv\w*batch|batch\w*gemv|bmm", re.IGNORECASE)),
    ("gemm", re.compile(r"gemm|gemv|nvjet|cutlass|xmma|splitK|cublas|dot_kernel|_dot_|^dot", re.IGNORECASE)),
    ("fused", re.compile(r"triton_|fusion|fused|^wrapped_", re.IGNORECASE)),
)


def add(evidence: Evidence, rows: Iterable[Row]) -> None:
    """Add the kernels, their time and the graph launches of a profile to a call's evidence."""
    kernels: Counter[str] = Counter()
    evidence.device_ns, evidence.graph_launches = 0.0, 0
    for plane, line, name, duration_ns in rows:
        if plane.startswith(DEVICE) and line.startswith(STREAM):
            kernels[name] += 1
            evidence.device_ns += duration_ns
        elif name in GRAPH_LAUNCHES:
            evidence.graph_launches += 1
    evidence.device_kernels = dict(sorted(kernels.items()))
    if not kernels:
        evidence.device_ns, evidence.graph_launches = None, None
        evidence.missing["device_kernels"] = NOTHING_RAN


def profile(evidence: Evidence, rows: Callable[[], Iterable[Row]]) -> None:
    """Add what the rows of XLA's profiler say to the evidence, or why there are none.

    How many CUDA graphs a call launches cannot be seen: its kernels are then launched one by one.
    """
    try:
        add(evidence, rows())
        if evidence.device_kernels:
            evidence.graph_launches, evidence.missing["graph_launches"] = None, NO_GRAPHS
    except Exception as error:  # a profiler without its libraries leaves what else was counted
        evidence.missing["device_kernels"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def of_kineto(events: Iterable[Any], device_type: Any) -> Iterable[Row]:
    """Yield the rows of torch's profiler, each of whose events names its device."""
    for event in events:
        if event.is_user_annotation() or event.name() == "[memory]":
            continue
        on_gpu = event.device_type() == device_type
        yield (DEVICE, STREAM, event.name(), event.duration_ns()) if on_gpu else ("", "", event.name(), 0.0)


def kind(name: str) -> str:
    """Return a kernel's kind, recognised by its name, or "other"."""
    return next((kind_name for kind_name, pattern in KINDS if pattern.search(name)), "other")


def kinds(kernels: dict[str, int]) -> dict[str, int]:
    """Return the number of kernels of each kind, the most frequent first."""
    counts: Counter[str] = Counter()
    for name, times in kernels.items():
        counts[kind(name)] += times
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
