"""The RNN under study in JAX: ways to run the recurrence and ways to project, read from top to bottom."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from impls.interface import (
    BETA_1,
    BETA_2,
    CHUNKED_LOSS,
    EPSILON,
    LOG_BETA_1,
    LOG_BETA_2,
    RATE,
    Trained,
    Weights,
    chunk_sizes,
    family_of,
    require_moved,
    weights_of,
)
from impls.jax.hoist import Record, hoist

State = tuple[Array, ...]  # h [B, H], and for lstm c [B, H]
Step = Callable[[Weights, State, Array], State]
Emit = Callable[..., Array]  # of the weights, h [B, H], and a step of each further array
Loss = Callable[..., Array]  # of y, the target, and how it is reduced


class Cell(NamedTuple):
    """A cell's step, the number of arrays in its state, and the framework's built-in layer."""

    step: Step
    states: int
    own: Any


def rnn(act: Callable[[Array], Array], w: Weights, state: State, x: Array) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]."""
    (h,) = state
    return (act(x @ w.w_in + h @ w.w_rec + w.b_rec),)


def rnn_relu(w: Weights, state: State, x: Array) -> State:
    return rnn(jax.nn.relu, w, state, x)


def rnn_tanh(w: Weights, state: State, x: Array) -> State:
    return rnn(jnp.tanh, w, state, x)


def gru(w: Weights, state: State, x: Array) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates r, z, n."""
    (h,) = state
    a_r, a_z, a_n = jnp.split(x @ w.w_in + w.b_rec, 3, axis=1)
    u_r, u_z, u_n = jnp.split(h @ w.w_rec, 3, axis=1)
    r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
    n = jnp.tanh(a_n + r * u_n)
    return ((1 - z) * n + z * h,)


def lstm(w: Weights, state: State, x: Array) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates i, f, g, o."""
    h, c = state
    i, f, g, o = jnp.split(x @ w.w_in + h @ w.w_rec + w.b_rec, 4, axis=1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def project(w: Weights, h: Array) -> Array:
    """Project h [N, H] to y [N, O]."""
    return h @ w.w_out + w.b_out


def keep(w: Weights, h: Array) -> Array:
    """Return h [..., H] itself, without projecting it."""
    return h


def start(w: Weights, cell: Cell, x: Array) -> State:
    """Return the state before the first step of x [T, B, I]: zeros [B, H]."""
    return tuple(jnp.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype) for _ in range(cell.states))


def unroll(w: Weights, cell: Cell, x: Array, emit: Emit, *others: Array) -> list[Array]:
    """Run a Python loop over x [T, B, I] and others [T, ...], and return a list of T results of emit."""
    state = start(w, cell, x)
    out = []
    for x_t, *others_t in zip(*map(jnp.unstack, (x, *others)), strict=True):
        state = cell.step(w, state, x_t)
        out.append(emit(w, state[0], *others_t))
    return out


def scan(w: Weights, cell: Cell, x: Array, emit: Emit, *others: Array) -> Array:
    """Run a symbolic loop over x [T, B, I] and others [T, ...], and return the stacked results of emit [T, ...]."""

    def body(state: State, inputs: tuple[Array, ...]) -> tuple[State, Array]:
        x_t, *others_t = inputs
        state = cell.step(w, state, x_t)
        return state, emit(w, state[0], *others_t)

    return jax.lax.scan(body, start(w, cell, x), (x, *others))[1]


def unrolled(w: Weights, cell: Cell, x: Array) -> Array:
    """Return h [T, B, H] for x [T, B, I], by a Python loop."""
    return jnp.stack(unroll(w, cell, x, keep))


def scanned(w: Weights, cell: Cell, x: Array) -> Array:
    """Return h [T, B, H] for x [T, B, I], by a symbolic loop."""
    return scan(w, cell, x, keep)


def layer(w: Weights, cell: Cell, x: Array) -> Array:
    """Return h [T, B, H] for x [T, B, I], by the framework's built-in layer."""
    return held_layer(w, cell, x)(x, initial_carry=first_carry(w, cell, x))


def first_carry(w: Weights, cell: Cell, x: Array) -> Any:
    """Return the state before the first step as the framework's cells take it."""
    state = start(w, cell, x)
    return state if cell.states > 1 else state[0]


def held_layer(w: Weights, cell: Cell, x: Array) -> Any:
    """Return the built-in layer of a cell, which holds w_in, w_rec and b_rec."""
    graph, rest = own_layer(cell.own, w.w_in.shape[0], w.w_rec.shape[0], x.dtype)
    kernels = {"dense_i": w.w_in, "dense_h": w.w_rec}
    biased = "dense_h" if cell.own is nnx.OptimizedLSTMCell else "dense_i"
    params: Any = {name: {"kernel": nnx.Param(kernel)} for name, kernel in kernels.items()}
    params[biased]["bias"] = nnx.Param(w.b_rec)
    return nnx.merge(graph, nnx.State({"cell": params}), rest)


@cache
def own_layer(kind: Any, inputs: int, size: int, dtype: Any) -> tuple[Any, Any]:
    """Return the built-in layer without its weights: its graph, and the rest of its state."""
    with jax.ensure_compile_time_eval():  # this may be called while a program is traced
        zeros = nnx.initializers.zeros  # the orthogonal default is not available in bf16; each call brings its weights
        cell = kind(inputs, size, dtype=dtype, param_dtype=dtype, recurrent_kernel_init=zeros, rngs=nnx.Rngs(0))
        graph, _, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    return graph, rest


def step_modules(w: Weights, cell: Cell, x: Array, emit: Callable[..., Array]) -> Array:
    """Call the framework's cell on each step of x [T, B, I] in a symbolic loop; stack the results of emit [T, B, N].

    `emit` is called with the framework's dense layer and h.
    """
    step, dense = held_layer(w, cell, x).cell, held_dense(w)

    def body(carry: Any, x_t: Array) -> tuple[Any, Array]:
        carry, h = step(carry, x_t)
        return carry, emit(dense, h)

    return jax.lax.scan(body, first_carry(w, cell, x), x)[1]


def modules(w: Weights, cell: Cell, x: Array) -> Array:
    """Return h [T, B, H] for x [T, B, I], by the framework's cell in a symbolic loop."""
    return step_modules(w, cell, x, lambda dense, h: h)


def modules_in_loop(w: Weights, cell: Cell, x: Array) -> Array:
    return step_modules(w, cell, x, lambda dense, h: dense(h))


def modules_per_step(w: Weights, cell: Cell, x: Array) -> Array:
    return jax.lax.map(held_dense(w), modules(w, cell, x))


def modules_batched(w: Weights, cell: Cell, x: Array) -> Array:
    return held_dense(w)(modules(w, cell, x))


def given(w: Weights, cell: Cell, x: Array) -> Array:
    """Return x itself, which holds precomputed hidden states [T, B, H]."""
    return x


def project_steps(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by a Python loop of T products."""
    return jnp.stack([project(w, h) for h in jnp.unstack(hs)])


def project_each(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by a symbolic loop of T products."""
    return jax.lax.map(lambda h: project(w, h), hs)


def project_once(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by one product, on h reshaped to [T*B, H]."""
    steps, batch, size = hs.shape
    return project(w, hs.reshape(steps * batch, size)).reshape(steps, batch, w.w_out.shape[1])


def project_chunks(sizes: list[int], w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by a product for each chunk of time; `sizes` are the steps of each."""
    return jnp.concatenate([project_once(w, chunk) for chunk in jnp.split(hs, np.cumsum(sizes)[:-1])])


def project_bmm(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by one batched product of T.

    All T have the same weights, so JAX makes it one product of [T*B, H].
    """
    return jnp.matmul(hs, w.w_out) + w.b_out


def project_vmap(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by one step's product, mapped over time."""
    return jax.vmap(project, (None, 0))(w, hs)


def project_library(w: Weights, hs: Array) -> Array:
    """Project h [T, B, H] to y [T, B, O] by the framework's built-in dense layer."""
    return held_dense(w)(hs)


def held_dense(w: Weights) -> Any:
    """Return the built-in dense layer, which holds w_out and b_out."""
    params = nnx.State({"kernel": nnx.Param(w.w_out), "bias": nnx.Param(w.b_out)})
    return nnx.merge(own_dense(*w.w_out.shape), params)


@cache
def own_dense(size: int, outputs: int) -> Any:
    """Return the built-in dense layer without its weights."""
    with jax.ensure_compile_time_eval():
        return nnx.split(nnx.Linear(size, outputs, rngs=nnx.Rngs(0)))[0]


def unrolled_in_loop(w: Weights, cell: Cell, x: Array) -> Array:
    return jnp.stack(unroll(w, cell, x, project))


def unrolled_per_step(w: Weights, cell: Cell, x: Array) -> Array:
    return jnp.stack([project(w, h) for h in unroll(w, cell, x, keep)])


def scan_in_loop(w: Weights, cell: Cell, x: Array) -> Array:
    return scan(w, cell, x, project)


def scan_per_step(w: Weights, cell: Cell, x: Array) -> Array:
    return project_each(w, scanned(w, cell, x))


def scan_hoisted(w: Weights, cell: Cell, x: Array, log: list[Record] | None = None) -> Array:
    """Project in the loop, out of which a program transformation takes the products again; `log` says what it did.

    Raises Unavailable if it took nothing out.
    """
    records: list[Record] = []
    y = hoist(lambda w, x: scan_in_loop(w, cell, x), log=records)(w, x)
    require_moved(map(str, records))
    if log is not None:
        log += records
    return y


def squared(y: Array, target: Array, reduce: Any = jnp.mean) -> Array:
    """Return the mean squared error of y [..., O], or what their squares are reduced to."""
    return reduce(jnp.square(y - target))


def cross_entropy(y: Array, target: Array, reduce: Any = jnp.mean) -> Array:
    """Return the mean softmax cross-entropy of logits y [..., O] against classes [...], or what it is reduced to."""
    return reduce(optax.softmax_cross_entropy_with_integer_labels(y, target))


def added(loss: Loss) -> Emit:
    """Return a function of w, h [..., H] and a target that projects h and returns the sum of its losses.

    What it computes is not kept for the backward pass, which computes it again.
    """
    return jax.checkpoint(lambda w, h, target: loss(project(w, h), target, jnp.sum))


def unrolled_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Array, target: Array) -> Array:
    return sum(unroll(w, cell, x, added(loss), target), jnp.zeros((), x.dtype)) / target.size


def scan_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Array, target: Array) -> Array:
    return jnp.sum(scan(w, cell, x, added(loss), target)) / target.size


def add_chunks(sizes: list[int], loss: Loss, w: Weights, hs: Array, target: Array) -> Array:
    """Return the mean loss of h [T, B, H], projected and added up chunk by chunk; `sizes` are the steps of each.

    Chunks of one size are a symbolic loop. XLA would compute those of a Python loop side by side, and keep all of y.
    """
    total, first = jnp.zeros((), hs.dtype), 0
    for size in dict.fromkeys(sizes):
        count = sizes.count(size)
        chunks = [a[first : first + count * size].reshape(count, size, *a.shape[1:]) for a in (hs, target)]
        total += jnp.sum(jax.lax.map(lambda chunk: added(loss)(w, *chunk), tuple(map(flat, chunks))))
        first += count * size
    return total / target.size


def flat(a: Array) -> Array:
    """Reshape chunks [K, T, B, ...] to [K, T*B, ...]."""
    return a.reshape(a.shape[0], -1, *a.shape[3:])


def adam(state: Trained, d: Weights) -> Trained:
    """Return the state after one step of Adam on the gradients d, in TF1's form: epsilon is not corrected for bias.

    Kingma and Ba 2015, end of section 2: rate sqrt(1 - beta_2^t) / (1 - beta_1^t). The differences are computed without
    cancellation.
    """
    t = state.t + 1
    rate = RATE * jnp.sqrt(-jnp.expm1(t * LOG_BETA_2)) / -jnp.expm1(t * LOG_BETA_1)
    m = Weights(*(BETA_1 * m + (1 - BETA_1) * g for m, g in zip(state.m, d, strict=True)))
    v = Weights(*(BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(state.v, d, strict=True)))
    w = Weights(*(w - rate * m / (jnp.sqrt(v) + EPSILON) for w, m, v in zip(state.w, m, v, strict=True)))
    return Trained(w, m, v, t)


def untrained(w: Weights) -> Trained:
    """Return the state before the first training step."""
    m, v = (Weights(*map(jnp.zeros_like, w)) for _ in range(2))
    return Trained(w, m, v, jnp.zeros((), w.w_in.dtype))


CELLS = {
    "rnn_relu": Cell(rnn_relu, 1, partial(nnx.SimpleCell, activation_fn=jax.nn.relu)),
    "rnn_tanh": Cell(rnn_tanh, 1, nnx.SimpleCell),
    "gru": Cell(gru, 1, nnx.GRUCell),
    "lstm": Cell(lstm, 2, nnx.OptimizedLSTMCell),
}
HIDDEN = {"unrolled": unrolled, "scan": scanned, "layer": layer, "given": given, "modules": modules}
AFTER = {
    "none": keep,
    "per_step": project_steps,
    "batched": project_once,
    "bmm": project_bmm,
    "vmap": project_vmap,
    "library": project_library,
}
IN_THE_LOOP = {
    "unrolled_in_loop": unrolled_in_loop,
    "unrolled_per_step": unrolled_per_step,
    "scan_in_loop": scan_in_loop,
    "scan_per_step": scan_per_step,
    "scan_hoisted": scan_hoisted,
    "modules_in_loop": modules_in_loop,
    "modules_per_step": modules_per_step,
    "modules_batched": modules_batched,
}
LOSSES: dict[str, Loss] = {"squared": squared, "cross_entropy": cross_entropy}
LOSS_INSIDE = {"unrolled_in_loop_loss": unrolled_in_loop_loss, "scan_in_loop_loss": scan_in_loop_loss}


def one_layer(recurrence: str, projection: str) -> Callable[[Weights, Cell, Array], Array]:
    """Return the program of an arm of one layer."""
    if program := IN_THE_LOOP.get(f"{recurrence}_{projection}"):
        return program
    hidden, after = HIDDEN[recurrence], AFTER.get(projection)
    if after is None:
        return lambda w, cell, x: project_chunks(chunk_sizes(projection, x.shape[0]), w, hidden(w, cell, x))
    return lambda w, cell, x: after(w, hidden(w, cell, x))


def arm(recurrence: str, projection: str, layers: int = 1) -> Callable[[Weights, Cell, Array], Array]:
    """Return an arm's program: it maps w, cell and x [T, B, I] to y [T, B, O], or h [T, B, H] for projection `none`."""
    program = one_layer(recurrence, projection)
    if layers == 1:
        return program

    def chained(w: Weights, cell: Cell, x: Array) -> Array:
        for layer in range(layers):
            x = program(weights_of(w, layer), cell, x)
        return x

    return chained


def inside(recurrence: str, projection: str, loss: Loss) -> Callable[[Weights, Cell, Array, Array], Array] | None:
    """Return the loss of an arm of one layer whose loss is inside, or None where it is not."""
    if program := LOSS_INSIDE.get(f"{recurrence}_{projection}"):
        return partial(program, loss)
    if family_of(projection) != CHUNKED_LOSS:
        return None
    hidden = HIDDEN[recurrence]
    return lambda w, cell, x, target: add_chunks(
        chunk_sizes(projection, x.shape[0]), loss, w, hidden(w, cell, x), target
    )


def objective(
    recurrence: str, projection: str, loss: str, layers: int = 1
) -> Callable[[Weights, Cell, Array, Array], Array]:
    """Return an arm's loss as a program: it maps w, cell, x [T, B, I] and the target to a scalar.

    With the loss inside the last layer, those before it project in the loop too, or after it in one product.
    """
    measure = LOSSES[loss]
    last = inside(recurrence, projection, measure)
    if last is None:
        program = arm(recurrence, projection, layers)
        return lambda w, cell, x, target: measure(program(w, cell, x), target)
    if layers == 1:
        return last
    before = one_layer(recurrence, "batched" if family_of(projection) == CHUNKED_LOSS else "in_loop")

    def chained(w: Weights, cell: Cell, x: Array, target: Array) -> Array:
        for layer in range(layers - 1):
            x = before(weights_of(w, layer), cell, x)
        return last(weights_of(w, layers - 1), cell, x, target)

    return chained
