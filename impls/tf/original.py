"""The chapter's two programs, on tf.compat.v1: what TF1 built, but for the two things said here.

TensorFlow still has `dynamic_rnn`, `get_variable`, `AdamOptimizer` and sessions. `BasicRNNCell` went to tf-keras, whose
TF1 names tf.compat.v1 gives only where legacy Keras is the Keras of the whole process; it is taken from there directly,
so that the other executions keep Keras 3. `OutputProjectionWrapper` went with tf.contrib: the one here is written to
its documentation. `tf.layers.dense` would want legacy Keras too, and is a product and a bias of its own variables.

As in the chapter loops are made of Enter, Merge, Switch and Exit, variables are reference variables, and B is known
only when the program runs. Other than there, arrays are time-major, as the contract has them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow import Tensor
from tf_keras.api._v1.keras.__internal__.legacy.rnn_cell import BasicRNNCell

LEARNING_RATE = 0.001
ACTIVATIONS = {"rnn_relu": tf.nn.relu, "rnn_tanh": tf.tanh}  # the chapter's, and the one BasicRNNCell has unless told


class OutputProjectionWrapper:
    """A cell that projects another's output at every step, by one layer for all; the state is the other's."""

    def __init__(self, cell: Any, output_size: int) -> None:
        self.cell, self.output_size = cell, output_size

    @property
    def state_size(self) -> Any:
        return self.cell.state_size

    def zero_state(self, batch_size: Any, dtype: Any) -> Any:
        """The other's state before the first step."""
        return self.cell.zero_state(batch_size, dtype)

    def __call__(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """inputs [B, I], state of [B, H] -> projected output [B, O], next state."""
        with v1.variable_scope("output_projection_wrapper"):
            h, state = self.cell(inputs, state)
            return dense(h, self.output_size), state


def dense(h: Tensor, outputs: int) -> Tensor:
    """h [N, H] -> y [N, O], by the scope's own kernel [H, O] and bias [O]."""
    kernel = v1.get_variable("kernel", (h.shape[1], outputs), h.dtype)
    bias = v1.get_variable("bias", (outputs,), h.dtype, v1.zeros_initializer())
    return tf.nn.bias_add(h @ kernel, bias)


def loop(x: Tensor, cell: Any) -> Tensor:
    """x [T, B, I] -> the cell's output at every step [T, B, N]."""
    return v1.nn.dynamic_rnn(cell, x, dtype=x.dtype, time_major=True)[0]


def wrapped(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """The book's first form, one layer run at every step in the loop: x [T, B, I] -> y [T, B, O]."""
    return loop(x, OutputProjectionWrapper(cell, outputs))


def reshaped(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """The book's second form, one layer run once after the loop: x [T, B, I] -> y [T, B, O]."""
    hs = loop(x, cell)  # [T, B, H]
    with v1.variable_scope("dense"):
        stacked = dense(tf.reshape(hs, (-1, cell.output_size)), outputs)  # [T*B, O]
    return tf.reshape(stacked, (x.shape[0], -1, outputs))


def unprojected(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """The loop alone: x [T, B, I] -> h [T, B, H]."""
    return loop(x, cell)


def nothing(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """x [T, B, H] -> itself; of all that is fetched only this is copied, for a session hands out nothing it was fed."""
    return tf.identity(x)


FORMS: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    "scan_in_loop": wrapped,
    "scan_batched": reshaped,
    "scan_none": unprojected,
    "given_none": nothing,
}


def forward(arm: str, cell: str, x: Tensor, size: int, outputs: int) -> Tensor:
    """An arm's program with `size` neurons: x [T, B, I] -> y [T, B, O], or h [T, B, H] for projection none."""
    return FORMS[arm](x, BasicRNNCell(size, activation=ACTIVATIONS[cell], dtype=x.dtype), outputs)


def train(y: Tensor, target: Tensor) -> list[Tensor]:
    """The mean squared error, and its gradients of the variables in the order they were made."""
    loss = tf.reduce_mean(tf.square(y - target))
    return [loss, *backward(loss)]


def backward(y: Tensor, d_y: Tensor | None = None) -> list[Tensor]:
    """The gradients of the variables in the order they were made: of y, or from a given gradient of it.

    The chapter's `minimize(loss)` is called in its two halves: what updates the variables is made, and not run.
    """
    optimizer = v1.train.AdamOptimizer(LEARNING_RATE)
    gradients = optimizer.compute_gradients(y, grad_loss=d_y)
    optimizer.apply_gradients(gradients)
    return [gradient for gradient, _ in gradients]


@contextmanager
def tf1(graph: tf.Graph) -> Iterator[None]:
    """What is made inside goes into `graph`, with TF1's loops and variables; the process's own setting comes back."""
    v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        with graph.as_default(), v1.variable_scope("", use_resource=False):
            yield
    finally:
        if v2:
            v1.enable_control_flow_v2()
