"""Every name of torch that its authors do not promise to keep, in one place.

A new version may rename or change each of them. tests/impls/test_private.py looks for each, pyproject.toml bounds the
version, and what a changed name would falsify is proved where it is used. Everything is imported late, because an eager
process needs little of it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

NAMES = (  # module, and the name in it
    ("torch._dynamo.utils", "counters"),
    ("torch._dynamo", "mark_static_address"),
    ("torch._higher_order_ops.scan", "scan"),
    ("torch._higher_order_ops.scan", "scan_op"),
    ("torch._inductor", "compile"),
    ("torch._ops", "HigherOrderOperator"),
    ("torch._inductor.codecache", "PyCodeCache.modules"),
    ("torch._inductor.cudagraph_trees", "get_manager"),
    ("torch._inductor.cudagraph_trees", "CUDAGraphTreeManager.get_roots"),
    ("torch._inductor.graph", "GraphLowering.save_output_code"),
    ("torch", "_cudnn_rnn_flatten_weight"),
    ("torch.backends.cudnn.rnn", "get_cudnn_mode"),
    ("torch.backends.mkl", "verbose"),
    ("torch.backends.mkldnn", "verbose"),
)
CUDNN_MODES = {"rnn_relu": "RNN_RELU", "rnn_tanh": "RNN_TANH", "gru": "GRU", "lstm": "LSTM"}


def counters() -> Any:
    """Return Dynamo's counters: group -> name -> count."""
    import torch._dynamo.utils

    return torch._dynamo.utils.counters


def scan_operator() -> Any:
    """Return the scan operator, which is marked as a prototype."""
    from torch._higher_order_ops.scan import scan

    return scan


def scan_higher_order() -> Any:
    """Return what a traced graph calls where the scan operator was called."""
    from torch._higher_order_ops.scan import scan_op

    return scan_op


def is_higher_order(target: Any) -> bool:
    """Return whether what a traced graph calls is an operator of functions, such as the scan operator."""
    from torch._ops import HigherOrderOperator

    return isinstance(target, HigherOrderOperator)


def compile_by_inductor(module: Any, inputs: Any, options: dict[str, Any] | None) -> Any:
    """Return a traced graph compiled by Inductor, as torch.compile has it do."""
    import torch._inductor

    return torch._inductor.compile(module, inputs, options=options)


def capture_code(keep: Callable[[str], None]) -> None:
    """Have Inductor pass the code that it generates to `keep`, instead of whatever it was passed to before."""
    from torch._inductor.graph import GraphLowering

    GraphLowering.save_output_code = staticmethod(keep)


def generated_modules() -> list[Any]:
    """Return the modules that Inductor generated in this process."""
    from torch._inductor.codecache import PyCodeCache

    return list(PyCodeCache.modules)


def mark_static(array: Any) -> None:
    """Have a CUDA graph read an array in place, as it reads a module's parameters."""
    import torch._dynamo

    torch._dynamo.mark_static_address(array)


def recorded_graphs() -> int:
    """Return the number of CUDA graphs that Inductor has recorded so far."""
    from torch._inductor import cudagraph_trees

    manager = cudagraph_trees.get_manager(0, create_if_none_exists=False)
    nodes = list(manager.get_roots()) if manager else []
    for node in nodes:  # the list grows during the loop
        nodes += [child for children in node.children.values() for child in children]
    return len(nodes)


def flatten_layer_weights(arrays: list[Any], cell: str) -> None:
    """Move a layer's weights [G*H, I], [G*H, H] and two biases [G*H] into one buffer, in cuDNN's order."""
    import torch

    mode = torch.backends.cudnn.rnn.get_cudnn_mode(CUDNN_MODES[cell])
    inputs, hidden = arrays[0].shape[1], arrays[1].shape[1]
    torch._cudnn_rnn_flatten_weight(arrays, len(arrays), inputs, mode, hidden, 0, 1, False, False)


@contextmanager
def libraries_verbose() -> Iterator[None]:
    """Have MKL and oneDNN print a line for each product in the context, where this build of torch has them."""
    import torch

    with ExitStack() as stack:
        if torch.backends.mkl.is_available():
            stack.enter_context(torch.backends.mkl.verbose(torch.backends.mkl.VERBOSE_ON))
        if torch.backends.mkldnn.is_available():
            stack.enter_context(torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON))
        yield
