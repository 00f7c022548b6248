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
from impls.sums import Accumulated, sum_of

Array = np.ndarray
State = tuple[Array, ...]  # h [B, H], and for lstm c [B, H]
BLOCK_NUMBERS = 2**20  # of outputs that are computed at once
FORMS = ("none", "projected", "given")  # y is h; y is h projected; y is x, the hidden states, projected


class Exact:
    """The operations of the oracle in plain NumPy.

    `outers`, `columns` and `totals` are the sums `outer`, `column` and `total` of arrays that come in blocks of steps.
    They take the number of all steps, T.
    """

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

    def outers(self, _steps: int) -> Accumulated:
        return Accumulated(self.outer)

    def columns(self, _steps: int) -> Accumulated:
        return Accumulated(self.column)

    def totals(self, _steps: int) -> Accumulated:
        return Accumulated(self.total)

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
    names = output_names(pass_, form)
    blocks: dict[str, list[Array]] = {name: [] for name in names}
    for name, array in quantities(data, cell, pass_, form, ops, loss):
        if name in blocks:
            blocks[name].append(np.asarray(array))
    return {name: joined(arrays) for name, arrays in blocks.items()}


def joined(blocks: list[Array]) -> Array:
    """Return blocks of steps as one array."""
    return np.concatenate(blocks) if len(blocks) > 1 else blocks[0]


def output_names(pass_: str, form: str) -> tuple[str, ...]:
    """Return the names of a program's outputs, in order."""
    return {"forward": FORWARD, "loss": LOSS}.get(pass_) or (TRAIN_NONE if form == "none" else TRAIN)


def quantities(
    data: Data, cell: str, pass_: str, form: str, ops: Operations | None = None, loss: str = "squared"
) -> Iterator[tuple[str, Array]]:
    """Yield every quantity that a program computes, by name and in the order of computing; see `run`.

    These are x [T, B, I], h [T, B, H] and y [T, B, O]. A loss adds the terms of its sum and loss. Training adds d_y
    (but not for form `none`), then d_h, the gradients d_a and d_u [T, B, G*H] of the products of a step, and those of
    the weights.

    The outputs of the last layer, the terms and their d_y come in blocks of steps, [t, B, O], one after another, so
    that no more of them than `block_steps` says is in memory.
    """
    ops = ops or Exact()
    count = len(data.weights.w_in) if data.weights.w_in.ndim > 2 else 0  # of layers, where they have an axis
    layers = [weights_of(data.weights, number) for number in range(count)] if count else [data.weights]
    runs: list[LayerRun] = []
    for w in map(ops.weights, layers):
        x = projected(runs[-1].h, runs[-1].w, ops) if runs else data.x
        if form != "given":
            yield "x", x
        h, tapes = (x, []) if form == "given" else hidden(w, x, CELLS[cell], ops)  # [T, B, H]
        yield "h", h
        runs.append(LayerRun(w, x, h, tapes))
    if form == "none":
        yield "y", h
        above: HeadGradients | None = given_gradient(runs[-1], data.target)
    else:
        above = yield from head(runs[-1], data.target, pass_, LOSSES[loss], ops)
    if above is None or pass_ != "train":
        return
    gradients = []
    for number, run_ in reversed([*enumerate(runs)]):
        d, d_a = yield from layer_backward(run_, above, form, CELLS[cell], ops)
        gradients.append(d)
        if number and d_a is not None:
            d_y = ops.product(d_a, np.swapaxes(run_.w.w_in, -1, -2))
            yield "d_y", d_y
            above = sum_of(HeadSums(runs[number - 1].w, len(d_y), ops), runs[number - 1].h, d_y)
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


class HeadGradients(NamedTuple):
    """The gradients of a layer's hidden states [T, B, H], of w_out [H, O] and of b_out [O]."""

    d_h: Array
    d_w_out: Array
    d_b_out: Array


def given_gradient(run_: LayerRun, d_h: Array) -> HeadGradients:
    """Return the gradients of a layer without a projection: that of its hidden states, the same for all runs."""
    return HeadGradients(np.broadcast_to(d_h, run_.h.shape), np.zeros_like(run_.w.w_out), np.zeros_like(run_.w.b_out))


def layer_backward(
    run_: LayerRun, above: HeadGradients, form: str, cell: "Cell", ops: Operations
) -> Generator[tuple[str, Array], None, tuple[Weights, Array | None]]:
    """Yield the gradients inside a layer, by name; return those of its weights, and of a [T, B, G*H]."""
    w, x, h, tapes = run_
    d = Weights(*map(np.zeros_like, w))._replace(w_out=above.d_w_out, b_out=above.d_b_out)
    yield "d_h", above.d_h
    if form == "given":
        return d, None
    d_a, d_u = backward(w, above.d_h, tapes, cell, ops)
    yield from (("d_a", d_a), ("d_u", d_u))
    h_before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    steps = len(x)
    d_w_in, d_w_rec = sum_of(ops.outers(steps), x, d_a), sum_of(ops.outers(steps), h_before, d_u)
    return d._replace(w_in=d_w_in, w_rec=d_w_rec, b_rec=sum_of(ops.columns(steps), d_a)), d_a


class Loss(NamedTuple):
    """A loss, the mean of its terms, for a block of outputs y [t, B, O] and its target.

    `terms` takes y, the target and the operations, and returns the terms [t, B, ...], none of them negative, and a
    tape. `back` takes the tape, the number of all terms and the operations, and returns the gradient of y [t, B, O].
    """

    terms: Callable[[Array, Array, Operations], tuple[Array, State]]
    back: Callable[[State, Array, Operations], Array]


def block_steps(batch: int, outputs: int) -> int:
    """Return how many steps' outputs are computed at once: BLOCK_NUMBERS numbers, and at least one step's."""
    return max(1, BLOCK_NUMBERS // (batch * outputs))


def projected(h: Array, w: Weights, ops: Operations) -> Array:
    """Return the outputs [t, B, O] of hidden states [t, B, H]."""
    return ops.moved(ops.product(h, w.w_out) + w.b_out)


class HeadSums:
    """The gradients of a layer's projection, from those of its outputs, in blocks of steps."""

    def __init__(self, w: Weights, steps: int, ops: Operations) -> None:
        self.ops, self.transposed = ops, np.swapaxes(w.w_out, -1, -2)
        self.d_h: list[Array] = []
        self.d_w_out, self.d_b_out = ops.outers(steps), ops.columns(steps)

    def add(self, h: Array, d_y: Array) -> None:
        """Add the next steps: hidden states [t, B, H] and gradients of the outputs [t, B, O]."""
        self.d_h.append(self.ops.product(d_y, self.transposed))
        self.d_w_out.add(h, d_y)
        self.d_b_out.add(d_y)

    def value(self) -> HeadGradients:
        return HeadGradients(np.concatenate(self.d_h), self.d_w_out.value(), self.d_b_out.value())


def head(
    run_: LayerRun, target: Array, pass_: str, loss: Loss, ops: Operations
) -> Generator[tuple[str, Array], None, HeadGradients | None]:
    """Yield the last layer's outputs, the terms of the loss and d_y, by name and block, and the loss at the end.

    Return the gradients; None but in training.
    """
    w, steps, count = run_.w, len(run_.h), np.asarray(target.size, run_.h.dtype)
    gradients, total = HeadSums(w, steps, ops), ops.totals(steps)
    size = block_steps(run_.h.shape[-2], w.w_out.shape[-1])
    for block in (slice(start, start + size) for start in range(0, steps, size)):
        y = projected(run_.h[block], w, ops)
        yield "y", y
        if pass_ != "forward":
            terms, tape = loss.terms(y, target[block], ops)
            yield "terms", terms
            total.add(terms)
        if pass_ == "train":
            d_y = loss.back(tape, count, ops)
            yield "d_y", d_y
            gradients.add(run_.h[block], d_y)
    if pass_ != "forward":
        yield "loss", total.value() / count
    return gradients.value() if pass_ == "train" else None


def squared_terms(y: Array, target: Array, ops: Operations) -> tuple[Array, State]:
    error = y - target
    return np.square(error), (error,)


def squared_back(tape: State, count: Array, ops: Operations) -> Array:
    return ops.moved(tape[0] * (2 / count))


def cross_entropy_terms(y: Array, target: Array, ops: Operations) -> tuple[Array, State]:
    """Return the terms [t, B, 1] of logits y for classes [t, B], and a tape.

    The logarithm of the sum is taken as a number of its own, which a library may subtract from every logit: its
    rounding error is then relative to itself, and not to what is left.
    """
    right = np.broadcast_to(target[..., None], (*y.shape[:-1], 1))
    largest = y.max(axis=-1, keepdims=True)
    sums = ops.row(ops.moved(np.exp(ops.moved(y - largest))))
    log_sums = ops.moved(ops.moved(np.log(sums)) + largest)
    return ops.moved(log_sums - np.take_along_axis(y, right, -1)), (y, log_sums, right)


def cross_entropy_back(tape: State, count: Array, ops: Operations) -> Array:
    y, log_sums, right = tape
    shares = ops.moved(np.exp(ops.moved(y - log_sums)))
    at_right = np.take_along_axis(shares, right, -1) - 1
    np.put_along_axis(shares, right, at_right, -1)
    return ops.moved(shares / count)


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
LOSSES = {
    "squared": Loss(squared_terms, squared_back),
    "cross_entropy": Loss(cross_entropy_terms, cross_entropy_back),
}
