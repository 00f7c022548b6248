"""The oracle: the RNN in NumPy, forward and hand-written backward. The only arbiter of outputs.

With a_t = x_t w_in + b_rec and u_t = h_{t-1} w_rec, and all states 0 before the first step:

    rnn     h_t = act(a_t + u_t)
    gru     r, z = sigmoid of their parts of a_t + u_t,  n = tanh(a_n + r u_n),  h_t = (1 - z) n + z h_{t-1}
    lstm    i, f, o = sigmoid and g = tanh of their parts of a_t + u_t,  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

    y_t = h_t w_out + b_out                            loss = mean over all elements of (y - target)^2

The backward pass is back-propagation through time: with d_a_t and d_u_t the gradients of a_t and u_t,

    d_w_in = sum x_t^T d_a_t,   d_w_rec = sum h_{t-1}^T d_u_t,   d_b_rec = sum d_a_t,
    d_h_t = d_y_t w_out^T + d_u_{t+1} w_rec^T + what the cell hands on directly (z of a gru).

Without a projection there is no loss: the target, given as the gradient of h, stands for d_y_t w_out^T.

A step of training is Adam's (Kingma and Ba 2015) in TF1's form, whose epsilon is not corrected for bias:

    m = beta_1 m + (1 - beta_1) d,   v = beta_2 v + (1 - beta_2) d^2,
    w = w - rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)        in step t = 1, 2, ...

In float64 it is the truth; with the operations of impls.rounding.Noise it tells what rounding alone may do.
"""

import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import numpy as np

from impls.interface import (
    BETA_1,
    BETA_2,
    EPSILON,
    FORWARD,
    RATE,
    TRAIN,
    TRAIN_NONE,
    Data,
    Outputs,
    Trained,
    Weights,
)
from impls.rounding import Noise, Sizes

Array = np.ndarray
State = tuple[Array, ...]  # h [B, H], and for lstm c [B, H]
FORMS = ("none", "projected", "given")  # y is h; y is h projected; y is x, the hidden states, projected


class Exact:
    """The operations of the oracle, as NumPy has them."""

    def weights(self, w: Weights) -> Weights:
        return w

    def product(self, a: Array, b: Array) -> Array:
        """a [..., K] x b [K, N], a weight -> [..., N]."""
        return a @ b

    def outer(self, a: Array, b: Array) -> Array:
        """a [T, B, M], b [T, B, N] -> [M, N], summed over T and B."""
        return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])

    def column(self, a: Array) -> Array:
        """a [T, B, N] -> [N], summed over T and B."""
        return a.reshape(-1, a.shape[-1]).sum(axis=0)

    def total(self, a: Array) -> Array:
        return a.sum()

    def moved(self, a: Array) -> Array:
        """The result of an operation: as it is."""
        return a

    def sigmoid(self, a: Array) -> Array:
        """1 / (1 + exp(-a)), which overflows nowhere when written so."""
        half = np.asarray(0.5, a.dtype)
        return half * (1 + np.tanh(half * a))

    def relu(self, a: Array) -> tuple[Array, Array]:
        """max(a, 0), and its slope: 0 or 1."""
        return np.maximum(a, 0), (a > 0).astype(a.dtype)


Operations = Exact | Noise | Sizes


def run(data: Data, cell: str, pass_: str, form: str, how: Operations | None = None) -> Outputs:
    """Outputs of a program: {y} or {loss, d_w_in, d_w_rec, d_b_rec, d_w_out, d_b_out}.

    The dtype is that of the data. Form none gives h [T, B, H] as y, or {d_w_in, d_w_rec, d_b_rec} from the target
    [T, B, H] as the gradient of h; form given takes x [T, B, H] for the hidden states, and these three are zero.
    Operations that are those of several runs at once take x [T, R, B, I] and target [T, 1, B, O], and give
    [T, R, B, O] or [R, ...].
    """
    found = dict(quantities(data, cell, pass_, form, how))
    names = FORWARD if pass_ == "forward" else TRAIN_NONE if form == "none" else TRAIN
    return {name: np.asarray(found[name]) for name in names}


def quantities(
    data: Data, cell: str, pass_: str, form: str, how: Operations | None = None
) -> Iterator[tuple[str, Array]]:
    """What a program computes on its way, by name, in the order of computing; see `run`.

    x [T, B, I], h [T, B, H], y [T, B, O]; for train also, but for form none, error = y - target, loss and d_y; then
    d_h, the gradients d_a and d_u [T, B, G*H] of the products of a step, and those of the weights.
    """
    how = how or Exact()
    w = how.weights(data.weights)
    if form != "given":
        yield "x", data.x
    h, tapes = (data.x, []) if form == "given" else hidden(w, data.x, CELLS[cell], how)  # [T, B, H]
    yield "h", h
    y = h if form == "none" else how.moved(how.product(h, w.w_out) + w.b_out)  # [T, B, O]
    yield "y", y
    if pass_ == "forward":
        return
    d = Weights(*map(np.zeros_like, w))
    if form == "none":
        d_h = np.broadcast_to(data.target, h.shape)  # of several runs at once, in each the same
    else:
        d_h, w_out, b_out = yield from loss_backward(w, h, y, data.target, how)
        d = d._replace(w_out=w_out, b_out=b_out)
    yield "d_h", d_h
    if form != "given":
        d_a, d_u = backward(w, d_h, tapes, CELLS[cell], how)
        yield from (("d_a", d_a), ("d_u", d_u))
        before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
        d = d._replace(w_in=how.outer(data.x, d_a), w_rec=how.outer(before, d_u), b_rec=how.column(d_a))
    yield from ((f"d_{name}", array) for name, array in d._asdict().items())


def loss_backward(
    w: Weights, h: Array, y: Array, target: Array, how: Operations
) -> Generator[tuple[str, Array], None, tuple[Array, Array, Array]]:
    """The error, the loss and d_y, by name; returns the gradients of h [T, B, H], w_out and b_out."""
    error = y - target
    yield "error", error
    yield "loss", how.total(np.square(error)) / np.asarray(target.size, y.dtype)
    d_y = how.moved(error * np.asarray(2 / target.size, y.dtype))
    yield "d_y", d_y
    d_h = how.product(d_y, np.swapaxes(w.w_out, -1, -2))
    return d_h, how.outer(h, d_y), how.column(d_y)


def hidden(w: Weights, x: Array, cell: "Cell", how: Operations) -> tuple[Array, list[State]]:
    """x [T, B, I] -> h [T, B, H], and what each step keeps for the way back."""
    state = (np.zeros((*x.shape[1:-1], w.w_rec.shape[-2]), x.dtype),) * cell.states
    hs, tapes = [], []
    for x_t in x:
        a, u = how.product(x_t, w.w_in) + w.b_rec, how.product(state[0], w.w_rec)
        state, tape = cell.step(a, u, state, how)
        hs.append(state[0])
        tapes.append(tape)
    return np.stack(hs), tapes


def backward(w: Weights, d_h: Array, tapes: list[State], cell: "Cell", how: Operations) -> tuple[Array, Array]:
    """From d_h [T, B, H], the gradient of each h by its own y, the gradients of a and u [T, B, G*H]."""
    state = (np.zeros_like(d_h[0]),) * cell.states  # no step after the last
    d_a, d_u, w_rec = [], [], np.swapaxes(w.w_rec, -1, -2)
    for d_h_t, tape in zip(d_h[::-1], tapes[::-1], strict=True):
        state = (how.moved(d_h_t + state[0]), *state[1:])
        a, u, (h, *others) = cell.back(state, tape, how)
        state = (h + how.product(u, w_rec), *others)
        d_a.append(a)
        d_u.append(u)
    return np.stack(d_a[::-1]), np.stack(d_u[::-1])


def train(data: Data, cell: str, how: Operations | None = None) -> Iterator[float]:
    """The loss before each step of training, from the weights of data, on x [N, T, B, I] and target [N, T, B, O]."""
    state = untrained(data.weights)
    for x, target in zip(data.x, data.target, strict=True):
        loss, *d = run(Data(state.w, x, target), cell, "train", "projected", how).values()
        yield float(np.squeeze(loss))
        state = adam(state, Weights(*d), how)


def adam(state: Trained, d: Weights, how: Operations | None = None) -> Trained:
    """One step of Adam on the gradients d; the dtype is that of the state."""
    how = how or Exact()
    t = state.t + 1
    rate = RATE * math.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
    m = Weights(*(how.moved(BETA_1 * m + (1 - BETA_1) * g) for m, g in zip(state.m, d, strict=True)))
    v = Weights(*(how.moved(BETA_2 * v + (1 - BETA_2) * g * g) for v, g in zip(state.v, d, strict=True)))
    by = (how.moved(rate * m / (np.sqrt(v) + EPSILON)) for m, v in zip(m, v, strict=True))
    return Trained(Weights(*(w - b for w, b in zip(state.w, by, strict=True))), m, v, t)


def untrained(w: Weights) -> Trained:
    """Before the first step."""
    m, v = (Weights(*map(np.zeros_like, w)) for _ in range(2))
    return Trained(w, m, v, 0)


class Cell(NamedTuple):
    """A cell's step and its way back.

    `step`: a, u [B, G*H] and the state before -> the state after, and a tape. `back`: the gradients of the state
    after, and the tape -> gradients of a and u, and those of the state before that do not pass through u.
    """

    states: int
    step: Callable[[Array, Array, State, Operations], tuple[State, State]]
    back: Callable[[State, State, Operations], tuple[Array, Array, State]]


def rnn(act: Callable[[Array, Operations], tuple[Array, Array]], slope: Callable[[Array], Array]) -> Cell:
    """`act` gives h and a tape, of which `slope` makes the derivative of h."""

    def step(a: Array, u: Array, state: State, how: Operations) -> tuple[State, State]:
        h, tape = act(how.moved(a + u), how)
        return (h,), (tape,)

    def back(d_state: State, tape: State, how: Operations) -> tuple[Array, Array, State]:
        d = how.moved(d_state[0] * slope(tape[0]))
        return d, d, (np.zeros_like(d),)

    return Cell(1, step, back)


def relu(a: Array, how: Operations) -> tuple[Array, Array]:
    return how.relu(a)


def tanh(a: Array, how: Operations) -> tuple[Array, Array]:
    h = how.moved(np.tanh(a))
    return h, h


def in_bfloat16(a: Array) -> Array:
    """Float32 numbers rounded to bfloat16's 7 bits after the point, ties to even; still float32."""
    bits = a.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)


def gru_step(a: Array, u: Array, state: State, how: Operations) -> tuple[State, State]:
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=-1)
    u_r, u_z, u_n = np.split(u, 3, axis=-1)
    r, z = (how.sigmoid(how.moved(both)) for both in (a_r + u_r, a_z + u_z))
    n = how.moved(np.tanh(how.moved(a_n + r * u_n)))
    return (how.moved((1 - z) * n + z * h),), (r, z, n, u_n, h)


def gru_back(d_state: State, tape: State, how: Operations) -> tuple[Array, Array, State]:
    (d,) = d_state
    r, z, n, u_n, h = tape
    d_n = how.moved(d * (1 - z) * (1 - n * n))
    d_z = how.moved(d * (h - n) * z * (1 - z))
    d_r = how.moved(d_n * u_n * r * (1 - r))
    return np.concatenate([d_r, d_z, d_n], -1), np.concatenate([d_r, d_z, how.moved(d_n * r)], -1), (d * z,)


def lstm_step(a: Array, u: Array, state: State, how: Operations) -> tuple[State, State]:
    _, c = state
    i, f, g, o = np.split(how.moved(a + u), 4, axis=-1)
    i, f, o = (how.sigmoid(each) for each in (i, f, o))
    g = how.moved(np.tanh(g))
    after = how.moved(f * c + i * g)
    t = how.moved(np.tanh(after))
    return (how.moved(o * t), after), (i, f, g, o, c, t)


def lstm_back(d_state: State, tape: State, how: Operations) -> tuple[Array, Array, State]:
    d_h, d_c = d_state
    i, f, g, o, c, t = tape
    d_c = how.moved(d_c + d_h * o * (1 - t * t))
    d_i, d_f = d_c * g * i * (1 - i), d_c * c * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * t * o * (1 - o)
    d = how.moved(np.concatenate([d_i, d_f, d_g, d_o], -1))
    return d, d, (np.zeros_like(d_h), d_c * f)


CELLS = {
    "rnn_relu": rnn(relu, lambda slope: slope),
    "rnn_tanh": rnn(tanh, lambda h: 1 - h * h),
    "gru": Cell(1, gru_step, gru_back),
    "lstm": Cell(2, lstm_step, lstm_back),
}
