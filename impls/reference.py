"""The oracle: the RNN in NumPy, with a hand-written backward pass. All outputs are checked against it alone.

With a_t = x_t w_in + b_rec and u_t = h_{t-1} w_rec, and all states 0 before the first step:

    rnn     h_t = act(a_t + u_t)
    gru     r, z = sigmoid of their parts of a_t + u_t,  n = tanh(a_n + r u_n),  h_t = (1 - z) n + z h_{t-1}
    lstm    i, f, o = sigmoid and g = tanh of their parts of a_t + u_t,  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

    y_t = h_t w_out + b_out

    squared          loss = mean over all elements of (y - target)^2
    cross_entropy    loss = mean over steps and batch of log sum_j exp(y_j) - y_target

The backward pass is back-propagation through time. With d_a_t and d_u_t the gradients of a_t and u_t,

    d_w_in = sum x_t^T d_a_t,   d_w_rec = sum h_{t-1}^T d_u_t,   d_b_rec = sum d_a_t,
    d_h_t = d_y_t w_out^T + d_u_{t+1} w_rec^T + the part that bypasses u (for a gru, z_{t+1} d_h_{t+1}).

Of several layers, y of one is x of the next, and d_y of one is d_a w_in^T of the next.

Without a projection there is no loss: the target is then the gradient of h, and takes the place of d_y_t w_out^T.

A training step is Adam (Kingma and Ba 2015) in TF1's form, whose epsilon is not corrected for bias:

    m = beta_1 m + (1 - beta_1) d,   v = beta_2 v + (1 - beta_2) d^2,
    w = w - rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)        in step t = 1, 2, ...

In float64 the oracle counts as exact. With the operations of impls.rounding.Noise it shows what rounding alone may do.
"""

import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from impls.interface import (
    BETA_1,
    BETA_2,
    EPSILON,
    FORWARD,
    LOSS,
    RATE,
    TRAIN,
    TRAIN_NONE,
    Data,
    Outputs,
    Trained,
    Weights,
    weights_of,
)
from impls.rounding import Noise, Sizes

Array = np.ndarray
State = tuple[Array, ...]  # h [B, H], and for lstm c [B, H]
FORMS = ("none", "projected", "given")  # y is h; y is h projected; y is x, the hidden states, projected


class Exact:
    """The operations of the oracle in plain NumPy."""

    def weights(self, w: Weights) -> Weights:
        return w

    def product(self, a: Array, b: Array) -> Array:
        """Return the product of a [..., K] and a weight b [K, N]: [..., N]."""
        return a @ b

    def outer(self, a: Array, b: Array) -> Array:
        """Return the product [M, N] of a [T, B, M] and b [T, B, N], summed over T and B."""
        return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])

    def column(self, a: Array) -> Array:
        """Return the sum [N] of a [T, B, N] over T and B."""
        return a.reshape(-1, a.shape[-1]).sum(axis=0)

    def total(self, a: Array) -> Array:
        return a.sum()

    def row(self, a: Array) -> Array:
        """Return the sum [..., 1] of a [..., N] over its last axis."""
        return a.sum(axis=-1, keepdims=True)

    def moved(self, a: Array) -> Array:
        """Return the result of an operation unchanged."""
        return a

    def sigmoid(self, a: Array) -> Array:
        """Return 1 / (1 + exp(-a)), in a form that never overflows."""
        half = np.asarray(0.5, a.dtype)
        return half * (1 + np.tanh(half * a))

    def relu(self, a: Array) -> tuple[Array, Array]:
        """Return max(a, 0) and its slope, 0 or 1."""
        return np.maximum(a, 0), (a > 0).astype(a.dtype)


Operations = Exact | Noise | Sizes


def run(data: Data, cell: str, pass_: str, form: str, ops: Operations | None = None, loss: str = "squared") -> Outputs:
    """Return a program's outputs: {y}, {loss}, or {loss, d_w_in, d_w_rec, d_b_rec, d_w_out, d_b_out}.

    The dtype is that of the data. Form `none` returns h [T, B, H] as y. In training it takes the target [T, B, H] as
    the gradient of h, and returns {d_w_in, d_w_rec, d_b_rec}. Form `given` takes x [T, B, H] as the hidden states, and
    these three gradients are zero. Operations that compute R runs at once take x [T, R, B, I] and target [T, 1, B, O],
    and return [T, R, B, O] or [R, ...].
    """
    results = dict(quantities(data, cell, pass_, form, ops, loss))
    names = {"forward": FORWARD, "loss": LOSS}.get(pass_) or (TRAIN_NONE if form == "none" else TRAIN)
    return {name: np.asarray(results[name]) for name in names}


def quantities(
    data: Data, cell: str, pass_: str, form: str, ops: Operations | None = None, loss: str = "squared"
) -> Iterator[tuple[str, Array]]:
    """Yield every quantity that a program computes, by name and in the order of computing; see `run`.

    These are x [T, B, I], h [T, B, H] and y [T, B, O]. A loss adds error = y - target (`squared` alone) and loss.
    Training adds d_y (but not for form `none`), then d_h, the gradients d_a and d_u [T, B, G*H] of the products of a
    step, and those of the weights.
    """
    ops = ops or Exact()
    count = len(data.weights.w_in) if data.weights.w_in.ndim > 2 else 0  # of layers, where they have an axis
    layers = [weights_of(data.weights, number) for number in range(count)] if count else [data.weights]
    runs, x = [], data.x
    for w in map(ops.weights, layers):
        if form != "given":
            yield "x", x
        h, tapes = (x, []) if form == "given" else hidden(w, x, CELLS[cell], ops)  # [T, B, H]
        yield "h", h
        y = h if form == "none" else ops.moved(ops.product(h, w.w_out) + w.b_out)  # [T, B, O]
        yield "y", y
        runs.append(LayerRun(w, x, h, tapes))
        x = y
    if pass_ == "forward":
        return
    d_y = data.target if form == "none" else (yield from LOSSES[loss](y, data.target, ops))
    if pass_ == "loss":
        return
    gradients = []
    for number, run_ in reversed([*enumerate(runs)]):
        d, d_a = yield from layer_backward(run_, d_y, form, CELLS[cell], ops)
        gradients.append(d)
        if number and d_a is not None:
            d_y = ops.product(d_a, np.swapaxes(run_.w.w_in, -1, -2))
    for name in Weights._fields:
        arrays = [getattr(d, name) for d in reversed(gradients)]
        axis = -1 - (1 if name.startswith("b_") else 2)  # before the weight's own axes, after that of the runs
        yield f"d_{name}", np.stack(arrays, axis) if count else arrays[0]


class LayerRun(NamedTuple):
    """What the backward pass of a layer needs of its forward pass."""

    w: Weights
    x: Array
    h: Array
    tapes: list[State]


def layer_backward(
    run_: LayerRun, d_y: Array, form: str, cell: "Cell", ops: Operations
) -> Generator[tuple[str, Array], None, tuple[Weights, Array | None]]:
    """Yield the gradients inside a layer, by name; return those of its weights, and of a [T, B, G*H].

    For form `none`, d_y is the gradient of h.
    """
    w, x, h, tapes = run_
    d = Weights(*map(np.zeros_like, w))
    if form == "none":
        d_h = np.broadcast_to(d_y, h.shape)  # the same gradient for every run computed at once
    else:
        yield "d_y", d_y
        d_h = ops.product(d_y, np.swapaxes(w.w_out, -1, -2))
        d = d._replace(w_out=ops.outer(h, d_y), b_out=ops.column(d_y))
    yield "d_h", d_h
    if form == "given":
        return d, None
    d_a, d_u = backward(w, d_h, tapes, cell, ops)
    yield from (("d_a", d_a), ("d_u", d_u))
    h_before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    return d._replace(w_in=ops.outer(x, d_a), w_rec=ops.outer(h_before, d_u), b_rec=ops.column(d_a)), d_a


def squared(y: Array, target: Array, ops: Operations) -> Generator[tuple[str, Array], None, Array]:
    """Yield the error and the loss, by name; return the gradient of y [T, B, O] for a target [T, B, O]."""
    error = y - target
    yield "error", error
    yield "loss", ops.total(np.square(error)) / np.asarray(target.size, y.dtype)
    return ops.moved(error * np.asarray(2 / target.size, y.dtype))


def cross_entropy(y: Array, target: Array, ops: Operations) -> Generator[tuple[str, Array], None, Array]:
    """Yield the loss, by name; return the gradient of logits y [T, B, O] for classes [T, B].

    The logarithm of the sum is taken as a number of its own, which a library may subtract from every logit: its
    rounding error is then relative to itself, and not to what is left.
    """
    right = np.broadcast_to(target[..., None], (*y.shape[:-1], 1))
    largest = y.max(axis=-1, keepdims=True)
    sums = ops.row(ops.moved(np.exp(ops.moved(y - largest))))
    log_sums = ops.moved(ops.moved(np.log(sums)) + largest)
    losses = ops.moved(log_sums - np.take_along_axis(y, right, -1))
    yield "loss", ops.total(losses) / np.asarray(target.size, y.dtype)
    shares = ops.moved(np.exp(ops.moved(y - log_sums)))
    at_right = np.take_along_axis(shares, right, -1) - 1
    np.put_along_axis(shares, right, at_right, -1)
    return ops.moved(shares / np.asarray(target.size, y.dtype))


def hidden(w: Weights, x: Array, cell: "Cell", ops: Operations) -> tuple[Array, list[State]]:
    """Return the hidden states [T, B, H] for x [T, B, I], and what the backward pass needs of each step."""
    state = (np.zeros((*x.shape[1:-1], w.w_rec.shape[-2]), x.dtype),) * cell.states
    hs, tapes = [], []
    for x_t in x:
        a, u = ops.product(x_t, w.w_in) + w.b_rec, ops.product(state[0], w.w_rec)
        state, tape = cell.step(a, u, state, ops)
        hs.append(state[0])
        tapes.append(tape)
    return np.stack(hs), tapes


def backward(w: Weights, d_h: Array, tapes: list[State], cell: "Cell", ops: Operations) -> tuple[Array, Array]:
    """Return the gradients of a and u [T, B, G*H], given d_h [T, B, H], the gradient of each h through its own y."""
    state = (np.zeros_like(d_h[0]),) * cell.states  # no step follows the last
    d_a, d_u, w_rec = [], [], np.swapaxes(w.w_rec, -1, -2)
    for d_h_t, tape in zip(d_h[::-1], tapes[::-1], strict=True):
        state = (ops.moved(d_h_t + state[0]), *state[1:])
        a, u, (h, *rest) = cell.back(state, tape, ops)
        state = (h + ops.product(u, w_rec), *rest)
        d_a.append(a)
        d_u.append(u)
    return np.stack(d_a[::-1]), np.stack(d_u[::-1])


def train(data: Data, cell: str, ops: Operations | None = None) -> Iterator[float]:
    """Yield the loss before each training step, starting from data's weights; x [N, T, B, I], target [N, T, B, O]."""
    state = untrained(data.weights)
    for x, target in zip(data.x, data.target, strict=True):
        loss, *d = run(Data(state.w, x, target), cell, "train", "projected", ops).values()
        yield float(np.squeeze(loss))
        state = adam(state, Weights(*d), ops)


def adam(state: Trained, d: Weights, ops: Operations | None = None) -> Trained:
    """Return the state after one step of Adam on the gradients d, in the dtype of the state."""
    ops = ops or Exact()
    t = state.t + 1
    rate = RATE * math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
    m = Weights(*(ops.moved(BETA_1 * m + (1 - BETA_1) * g) for m, g in zip(state.m, d, strict=True)))
    v = Weights(*(ops.moved(BETA_2 * v + (1 - BETA_2) * g * g) for v, g in zip(state.v, d, strict=True)))
    changes = (ops.moved(rate * m / (np.sqrt(v) + EPSILON)) for m, v in zip(m, v, strict=True))
    return Trained(Weights(*(w - change for w, change in zip(state.w, changes, strict=True))), m, v, t)


def untrained(w: Weights) -> Trained:
    """Return the state before the first training step."""
    m, v = (Weights(*map(np.zeros_like, w)) for _ in range(2))
    return Trained(w, m, v, 0)


class Cell(NamedTuple):
    """A cell's step and its backward step.

    `step` takes a, u [B, G*H] and the state, and returns the next state and a tape. `back` takes the gradients of the
    next state and the tape. It returns the gradients of a and u, and the part of the state's gradients that does not
    pass through u.
    """

    states: int
    step: Callable[[Array, Array, State, Operations], tuple[State, State]]
    back: Callable[[State, State, Operations], tuple[Array, Array, State]]


def rnn(act: Callable[[Array, Operations], tuple[Array, Array]], slope: Callable[[Array], Array]) -> Cell:
    """Return a plain RNN cell. `act` returns h and a tape, from which `slope` computes the derivative of h."""

    def step(a: Array, u: Array, state: State, ops: Operations) -> tuple[State, State]:
        h, tape = act(ops.moved(a + u), ops)
        return (h,), (tape,)

    def back(d_state: State, tape: State, ops: Operations) -> tuple[Array, Array, State]:
        d = ops.moved(d_state[0] * slope(tape[0]))
        return d, d, (np.zeros_like(d),)

    return Cell(1, step, back)


def relu(a: Array, ops: Operations) -> tuple[Array, Array]:
    return ops.relu(a)


def tanh(a: Array, ops: Operations) -> tuple[Array, Array]:
    h = ops.moved(np.tanh(a))
    return h, h


def in_bfloat16(a: Array) -> Array:
    """Round float32 numbers to bfloat16's 7 fraction bits, ties to even; the result is still float32."""
    return a.astype(ml_dtypes.bfloat16).astype(np.float32)


def gru_step(a: Array, u: Array, state: State, ops: Operations) -> tuple[State, State]:
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=-1)
    u_r, u_z, u_n = np.split(u, 3, axis=-1)
    r, z = (ops.sigmoid(ops.moved(total)) for total in (a_r + u_r, a_z + u_z))
    n = ops.moved(np.tanh(ops.moved(a_n + r * u_n)))
    return (ops.moved((1 - z) * n + z * h),), (r, z, n, u_n, h)


def gru_back(d_state: State, tape: State, ops: Operations) -> tuple[Array, Array, State]:
    (d,) = d_state
    r, z, n, u_n, h = tape
    d_n = ops.moved(d * (1 - z) * (1 - n * n))
    d_z = ops.moved(d * (h - n) * z * (1 - z))
    d_r = ops.moved(d_n * u_n * r * (1 - r))
    return np.concatenate([d_r, d_z, d_n], -1), np.concatenate([d_r, d_z, ops.moved(d_n * r)], -1), (d * z,)


def lstm_step(a: Array, u: Array, state: State, ops: Operations) -> tuple[State, State]:
    _, c = state
    i, f, g, o = np.split(ops.moved(a + u), 4, axis=-1)
    i, f, o = (ops.sigmoid(gate) for gate in (i, f, o))
    g = ops.moved(np.tanh(g))
    c_next = ops.moved(f * c + i * g)
    t = ops.moved(np.tanh(c_next))
    return (ops.moved(o * t), c_next), (i, f, g, o, c, t)


def lstm_back(d_state: State, tape: State, ops: Operations) -> tuple[Array, Array, State]:
    d_h, d_c = d_state
    i, f, g, o, c, t = tape
    d_c = ops.moved(d_c + d_h * o * (1 - t * t))
    d_i, d_f = d_c * g * i * (1 - i), d_c * c * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * t * o * (1 - o)
    d = ops.moved(np.concatenate([d_i, d_f, d_g, d_o], -1))
    return d, d, (np.zeros_like(d_h), d_c * f)


CELLS = {
    "rnn_relu": rnn(relu, lambda slope: slope),
    "rnn_tanh": rnn(tanh, lambda h: 1 - h * h),
    "gru": Cell(1, gru_step, gru_back),
    "lstm": Cell(2, lstm_step, lstm_back),
}
LOSSES = {"squared": squared, "cross_entropy": cross_entropy}
