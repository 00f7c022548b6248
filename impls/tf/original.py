"""The chapter's two programs, on tf.compat.v1: what TF1 built, with the two differences named here.

TensorFlow still has `dynamic_rnn`, `get_variable`, `AdamOptimizer` and sessions. `BasicRNNCell` moved to tf-keras. It
is imported from there, so that the other executions keep Keras 3 (see private.py). `OutputProjectionWrapper`
disappeared with tf.contrib; the one here is written to its documentation. `tf.layers.dense` would need legacy Keras
too. Here it is a product and a bias with variables of their own.

As in the chapter, loops are made of Enter, Merge, Switch and Exit, variables are reference variables, and B is known
only when the program runs. Unlike in the chapter, arrays are time-major, as the contract requires.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
import tensorflow.compat.v1 as v1
from tensorflow import Tensor

from impls.tf import private

BasicRNNCell = private.basic_rnn_cell()
LEARNING_RATE = 0.001
ACTIVATIONS = {"rnn_relu": tf.nn.relu, "rnn_tanh": tf.tanh}  # the chapter's, and BasicRNNCell's default


class OutputProjectionWrapper:
    """A cell that projects another cell's output at every step, by one shared layer. Its state is the other cell's."""

    def __init__(self, cell: Any, output_size: int) -> None:
        self.cell, self.output_size = cell, output_size

    @property
    def state_size(self) -> Any:
        return self.cell.state_size

    def zero_state(self, batch_size: Any, dtype: Any) -> Any:
        """Return the wrapped cell's state before the first step."""
        return self.cell.zero_state(batch_size, dtype)

    def __call__(self, inputs: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Return the projected output [B, O] and the next state, for inputs [B, I] and the state of [B, H]."""
        with v1.variable_scope("output_projection_wrapper"):
            h, state = self.cell(inputs, state)
            return dense(h, self.output_size), state


def dense(h: Tensor, outputs: int) -> Tensor:
    """Project h [N, H] to y [N, O], by the kernel [H, O] and bias [O] of the current variable scope."""
    kernel = v1.get_variable("kernel", (h.shape[1], outputs), h.dtype)
    bias = v1.get_variable("bias", (outputs,), h.dtype, v1.zeros_initializer())
    return tf.nn.bias_add(h @ kernel, bias)


def loop(x: Tensor, cell: Any) -> Tensor:
    """Return the cell's output at every step [T, B, N], for x [T, B, I]."""
    return v1.nn.dynamic_rnn(cell, x, dtype=x.dtype, time_major=True)[0]


def wrapped(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """Return y [T, B, O] for x [T, B, I] in the book's first form: one layer that runs at every step in the loop."""
    return loop(x, OutputProjectionWrapper(cell, outputs))


def reshaped(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """Return y [T, B, O] for x [T, B, I] in the book's second form: one layer that runs once, after the loop."""
    hs = loop(x, cell)  # [T, B, H]
    with v1.variable_scope("dense"):
        stacked = dense(tf.reshape(hs, (-1, cell.output_size)), outputs)  # [T*B, O]
    return tf.reshape(stacked, (x.shape[0], -1, outputs))


def unprojected(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by the loop alone."""
    return loop(x, cell)


def nothing(x: Tensor, cell: Any, outputs: int) -> Tensor:
    """Return a copy of x [T, B, H], because a session does not return what it was fed. No other output is copied."""
    return tf.identity(x)


FORMS: dict[str, Callable[[Tensor, Any, int], Tensor]] = {
    "scan_in_loop": wrapped,
    "scan_batched": reshaped,
    "scan_none": unprojected,
    "given_none": nothing,
}


def forward(arm: str, cell: str, x: Tensor, size: int, outputs: int) -> Tensor:
    """Return y [T, B, O] of an arm for x [T, B, I] and `size` neurons, or h [T, B, H] for projection `none`."""
    return FORMS[arm](x, BasicRNNCell(size, activation=ACTIVATIONS[cell], dtype=x.dtype), outputs)


def train(y: Tensor, target: Tensor) -> list[Tensor]:
    """Return the mean squared error and its gradients of the variables, in the order in which these were created."""
    loss = tf.reduce_mean(tf.square(y - target))
    return [loss, *backward(loss)]


def backward(y: Tensor, d_y: Tensor | None = None) -> list[Tensor]:
    """Return the gradients of the variables, of y or from a given gradient of y, in order of the variables' creation.

    The chapter's `minimize(loss)` is called in its two halves. The operations that update the variables are created but
    not run.
    """
    optimizer = v1.train.AdamOptimizer(LEARNING_RATE)
    gradients = optimizer.compute_gradients(y, grad_loss=d_y)
    optimizer.apply_gradients(gradients)
    return [gradient for gradient, _ in gradients]


@contextmanager
def tf1(graph: tf.Graph) -> Iterator[None]:
    """Put what is created inside into `graph`, with TF1's loops and variables; then restore the process's setting."""
    v2 = v1.control_flow_v2_enabled()
    v1.disable_control_flow_v2()
    try:
        with graph.as_default(), v1.variable_scope("", use_resource=False):
            yield
    finally:
        if v2:
            v1.enable_control_flow_v2()
