"""The RNN under study in TensorFlow: four projections times two recurrences, read from top to bottom."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow import Tensor, TensorArray

from impls.interface import Weights

ACTIVATIONS = {"rnn_relu": tf.nn.relu, "rnn_tanh": tf.tanh}
Act = Callable[[Tensor], Tensor]
Emit = Callable[[Weights, Tensor], Tensor]


def step(w: Weights, act: Act, h: Tensor, x: Tensor) -> Tensor:
    """h [B, H], x [B, I] -> next h [B, H]."""
    return act(tf.nn.bias_add(x @ w.w_in + h @ w.w_rec, w.b_rec))


def project(w: Weights, h: Tensor) -> Tensor:
    """h [N, H] -> y [N, O]."""
    return tf.nn.bias_add(h @ w.w_out, w.b_out)


def keep(w: Weights, h: Tensor) -> Tensor:
    """h [B, H] -> itself: the loop keeps the hidden state and projects nothing."""
    return h


def unroll(w: Weights, act: Act, x: Tensor, emit: Emit) -> list[Tensor]:
    """A Python loop over x [T, B, I] -> T times emit's [B, N]."""
    h = tf.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype)
    out = []
    for x_t in tf.unstack(x):
        h = step(w, act, h, x_t)
        out.append(emit(w, h))
    return out


def scan(w: Weights, act: Act, x: Tensor, emit: Emit) -> Tensor:
    """A symbolic loop over x [T, B, I] -> emit's [T, B, N]."""

    def body(t: Tensor, h: Tensor, out: TensorArray) -> tuple[Tensor, Tensor, TensorArray]:
        h = step(w, act, h, xs.read(t))
        return t + 1, h, out.write(t, emit(w, h))

    steps, batch, _ = x.shape
    size = w.w_rec.shape[0] if emit is keep else w.w_out.shape[1]
    xs = TensorArray(x.dtype, steps).unstack(x)
    out = TensorArray(x.dtype, steps, element_shape=(batch, size))
    h = tf.zeros((batch, w.w_rec.shape[0]), x.dtype)
    return tf.while_loop(lambda t, h, out: t < steps, body, (0, h, out), maximum_iterations=steps)[2].stack()


def project_each(w: Weights, hs: Tensor) -> Tensor:
    """A symbolic loop of T products: h [T, B, H] -> y [T, B, O]."""

    def body(t: Tensor, out: TensorArray) -> tuple[Tensor, TensorArray]:
        return t + 1, out.write(t, project(w, inputs.read(t)))

    steps, batch, _ = hs.shape
    inputs = TensorArray(hs.dtype, steps).unstack(hs)
    out = TensorArray(hs.dtype, steps, element_shape=(batch, w.w_out.shape[1]))
    return tf.while_loop(lambda t, out: t < steps, body, (0, out), maximum_iterations=steps)[1].stack()


def project_once(w: Weights, hs: Tensor) -> Tensor:
    """One product: h [T, B, H] -> [T*B, H] -> y [T, B, O]."""
    steps, batch, size = hs.shape
    return tf.reshape(project(w, tf.reshape(hs, (steps * batch, size))), (steps, batch, w.w_out.shape[1]))


def null_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    """Nothing: what calling a program costs."""
    return x


def unrolled_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    return tf.stack(unroll(w, act, x, keep))


def unrolled_in_loop(w: Weights, act: Act, x: Tensor) -> Tensor:
    return tf.stack(unroll(w, act, x, project))


def unrolled_per_step(w: Weights, act: Act, x: Tensor) -> Tensor:
    return tf.stack([project(w, h) for h in unroll(w, act, x, keep)])


def unrolled_batched(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_once(w, tf.stack(unroll(w, act, x, keep)))


def scan_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    return scan(w, act, x, keep)


def scan_in_loop(w: Weights, act: Act, x: Tensor) -> Tensor:
    return scan(w, act, x, project)


def scan_per_step(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_each(w, scan(w, act, x, keep))


def scan_batched(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_once(w, scan(w, act, x, keep))


def loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return tf.reduce_mean(tf.square(y - target))
