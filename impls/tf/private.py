"""Every name of TensorFlow and tf-keras that their authors do not promise to keep, in one place.

A new version may rename or change each of them. tests/impls/test_private.py looks for each, and pyproject.toml bounds
the version. Everything is imported late, because few programs need it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

NAMES = (  # module, and the name in it
    ("tensorflow.python.framework.op_callbacks", "add_op_callback"),
    ("tensorflow.python.framework.op_callbacks", "remove_op_callback"),
    ("tensorflow.python.framework.ops", "uid"),
    ("tensorflow.python.ops.while_v2", "_get_graph"),
    ("tensorflow.tsl.profiler.protobuf.xplane_pb2", "XSpace.FromString"),
    ("tf_keras.api._v1.keras.__internal__.legacy.rnn_cell", "BasicRNNCell"),
)
PLAIN = {  # take oneDNN out of TensorFlow's own operations and of Eigen's products, and YNNPACK out of XLA
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL": "false",
    "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=",
}


@contextmanager
def operation_callback(record: Callable[..., None]) -> Iterator[None]:
    """Have eager TensorFlow call `record` with every operation that runs in the context."""
    from tensorflow.python.framework import op_callbacks

    op_callbacks.add_op_callback(record)
    try:
        yield
    finally:
        op_callbacks.remove_op_callback(record)


def number_names_from(first: int) -> None:
    """Have TensorFlow number the functions and loops that it makes next from `first` on.

    It would number them by how many the process has made. XLA's cache finds a program by its names among others, and
    would find none that another process has compiled after other programs.
    """
    from tensorflow.python.framework import ops

    ops.uid = count(first).__next__


def loop_body(operation: Any) -> Any:
    """Return the graph of the body of a While operation."""
    from tensorflow.python.ops import while_v2

    return while_v2._get_graph(operation, "body", "_body_graph")


def profile_planes(content: bytes) -> Any:
    """Return the planes of a profile, from the content of its file."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    return xplane_pb2.XSpace.FromString(content).planes


def basic_rnn_cell() -> Any:
    """Return TF1's BasicRNNCell, which tf.compat.v1 has only where legacy Keras is the Keras of the whole process."""
    from tf_keras.api._v1.keras.__internal__.legacy.rnn_cell import BasicRNNCell

    return BasicRNNCell
