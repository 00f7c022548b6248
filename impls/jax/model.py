"""The RNN under study in JAX: four projections times two recurrences, read from top to bottom."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from impls.interface import Weights

ACTIVATIONS = {"rnn_relu": jax.nn.relu, "rnn_tanh": jnp.tanh}
Act = Callable[[Array], Array]
Emit = Callable[[Weights, Array], Array]


def step(w: Weights, act: Act, h: Array, x: Array) -> Array:
    """h [B, H], x [B, I] -> next h [B, H]."""
    return act(x @ w.w_in + h @ w.w_rec + w.b_rec)


def project(w: Weights, h: Array) -> Array:
    """h [N, H] -> y [N, O]."""
    return h @ w.w_out + w.b_out


def keep(w: Weights, h: Array) -> Array:
    """h [B, H] -> itself: the loop keeps the hidden state and projects nothing."""
    return h


def unroll(w: Weights, act: Act, x: Array, emit: Emit) -> list[Array]:
    """A Python loop over x [T, B, I] -> T times emit's [B, N]."""
    h = jnp.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype)
    out = []
    for x_t in jnp.unstack(x):
        h = step(w, act, h, x_t)
        out.append(emit(w, h))
    return out


def scan(w: Weights, act: Act, x: Array, emit: Emit) -> Array:
    """A symbolic loop over x [T, B, I] -> emit's [T, B, N]."""

    def body(h: Array, x_t: Array) -> tuple[Array, Array]:
        h = step(w, act, h, x_t)
        return h, emit(w, h)

    h = jnp.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype)
    return jax.lax.scan(body, h, x)[1]


def project_each(w: Weights, hs: Array) -> Array:
    """A symbolic loop of T products: h [T, B, H] -> y [T, B, O]."""
    return jax.lax.map(lambda h: project(w, h), hs)


def project_once(w: Weights, hs: Array) -> Array:
    """One product: h [T, B, H] -> [T*B, H] -> y [T, B, O]."""
    steps, batch, size = hs.shape
    return project(w, hs.reshape(steps * batch, size)).reshape(steps, batch, w.w_out.shape[1])


def null_none(w: Weights, act: Act, x: Array) -> Array:
    """Nothing: what calling a program costs."""
    return x


def unrolled_none(w: Weights, act: Act, x: Array) -> Array:
    return jnp.stack(unroll(w, act, x, keep))


def unrolled_in_loop(w: Weights, act: Act, x: Array) -> Array:
    return jnp.stack(unroll(w, act, x, project))


def unrolled_per_step(w: Weights, act: Act, x: Array) -> Array:
    return jnp.stack([project(w, h) for h in unroll(w, act, x, keep)])


def unrolled_batched(w: Weights, act: Act, x: Array) -> Array:
    return project_once(w, jnp.stack(unroll(w, act, x, keep)))


def scan_none(w: Weights, act: Act, x: Array) -> Array:
    return scan(w, act, x, keep)


def scan_in_loop(w: Weights, act: Act, x: Array) -> Array:
    return scan(w, act, x, project)


def scan_per_step(w: Weights, act: Act, x: Array) -> Array:
    return project_each(w, scan(w, act, x, keep))


def scan_batched(w: Weights, act: Act, x: Array) -> Array:
    return project_once(w, scan(w, act, x, keep))


def loss(y: Array, target: Array) -> Array:
    """Mean squared error, a scalar."""
    return jnp.mean(jnp.square(y - target))
