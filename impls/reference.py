"""The oracle: the RNN in NumPy, forward and hand-written backward. The only arbiter of outputs.

With a_t = x_t w_in + b_rec and u_t = h_{t-1} w_rec, and all states 0 before the first step:

    rnn     h_t = act(a_t + u_t)
    gru     r, z = sigmoid of their parts of a_t + u_t,  n = tanh(a_n + r u_n),  h_t = (1 - z) n + z h_{t-1}
    lstm    i, f, o = sigmoid and g = tanh of their parts of a_t + u_t,  c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

    y_t = h_t w_out + b_out                            loss = mean over all elements of (y - target)^2

The backward pass is back-propagation through time: with d_a_t and d_u_t the gradients of a_t and u_t,

    d_w_in = sum x_t^T d_a_t,   d_w_rec = sum h_{t-1}^T d_u_t,   d_b_rec = sum d_a_t,
    d_h_t = d_y_t w_out^T + d_u_{t+1} w_rec^T + what the cell hands on directly (z of a gru).

A step of training is Adam's (Kingma and Ba 2015) in TF1's form, whose epsilon is not corrected for bias:

    m = beta_1 m + (1 - beta_1) d,   v = beta_2 v + (1 - beta_2) d^2,
    w = w - rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)        in step t = 1, 2, ...

In float64 it is the truth. In float32, with `noise`, it tells what rounding alone may do: every
sum is taken in a random order, and every stored intermediate is moved at random by up to two units
in the last place (Monte Carlo arithmetic, D. Stott Parker 1997): what a framework's own kernels,
which sum in another order and approximate tanh, may differ by. The units are those of ROUNDINGS: in bf16
a result is moved by up to one of bfloat16's, and in tf32 what a product multiplies by one of TF32's too.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from impls.interface import BETA_1, BETA_2, EPSILON, RATE, Data, Outputs, Trained, Weights, named

Array = np.ndarray
State = tuple[Array, ...]  # h [B, H], and for lstm c [B, H]
FORMS = ("none", "projected", "given")  # y is h; y is h projected; y is x, the hidden states, projected


class Rounding(NamedTuple):
    """What a precision may move at random, relatively: the result of an operation, and what a product multiplies."""

    result: float
    operand: float = 0.0


IN_FP32 = 2 * 2.0**-23
ROUNDINGS = {
    "fp32": Rounding(IN_FP32),
    "tf32": Rounding(IN_FP32, 2.0**-10),
    "as_shipped": Rounding(IN_FP32, 2.0**-10),  # where nothing was set it may be TF32
    "bf16": Rounding(2.0**-7),
}


class Noise:
    """Rounding made visible: sums in another order, results moved by up to what `rounding` says.

    Seed 0 sums forwards and seed 1 backwards, as plain kernels do, which on a smooth series differs
    from any random order; the others sum in random orders.
    """

    def __init__(self, seed: int, rounding: Rounding = ROUNDINGS["fp32"]) -> None:
        self.seed, self.random = seed, np.random.default_rng(seed)
        self.rounding = rounding

    def order(self, size: int) -> Array:
        return {0: np.arange(size), 1: np.arange(size)[::-1]}.get(self.seed, self.random.permutation(size))

    def sum(self, a: Array) -> Array:
        """Over the first axis, one after another in a random order: the plainest sum a kernel may take."""
        return self.moved(np.cumsum(a[self.order(len(a))], axis=0)[-1])

    def moved(self, a: Array) -> Array:
        return self._by(self.rounding.result, a)

    def operand(self, a: Array) -> Array:
        return self._by(self.rounding.operand, a) if self.rounding.operand else a

    def _by(self, unit: float, a: Array) -> Array:
        return a * (1 + unit * self.random.uniform(-1, 1, a.shape)).astype(a.dtype)


class Exact:
    """No noise: sums as NumPy takes them."""

    def order(self, size: int) -> slice:
        return slice(None)

    def sum(self, a: Array) -> Array:
        return a.sum(axis=0)

    def moved(self, a: Array) -> Array:
        return a

    def operand(self, a: Array) -> Array:
        return a


def run(data: Data, cell: str, pass_: str, form: str, noise: Noise | None = None) -> Outputs:
    """Outputs of a program: {y} or {loss, d_w_in, d_w_rec, d_b_rec, d_w_out, d_b_out}.

    The dtype is that of the data. Form none gives h [T, B, H] as y, and the gradients of w_out and b_out are
    zero; form given takes x [T, B, H] for the hidden states, and those of the other three are.
    """
    how = noise or Exact()
    w = data.weights
    h, tapes = (data.x, []) if form == "given" else hidden(w, data.x, CELLS[cell], how)  # [T, B, H]
    y = h if form == "none" else how.moved(product(h, w.w_out, how) + w.b_out)  # [T, B, O]
    if pass_ == "forward":
        return named([y])
    error = y - data.target
    loss = how.sum(np.square(error).ravel()) / np.asarray(error.size, y.dtype)
    d_y = how.moved(error * np.asarray(2 / error.size, y.dtype))
    d_h = d_y if form == "none" else product(d_y, w.w_out.T, how)
    d = Weights(*map(np.zeros_like, w))
    if form != "none":
        d = d._replace(w_out=outer(h, d_y, how), b_out=column(d_y, how))
    if form != "given":
        d_a, d_u = backward(w, d_h, tapes, CELLS[cell], how)
        before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
        d = d._replace(w_in=outer(data.x, d_a, how), w_rec=outer(before, d_u, how), b_rec=column(d_a, how))
    return named([np.asarray(loss), *d])


def hidden(w: Weights, x: Array, cell: "Cell", how: Noise | Exact) -> tuple[Array, list[State]]:
    """x [T, B, I] -> h [T, B, H], and what each step keeps for the way back."""
    state = (np.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype),) * cell.states
    hs, tapes = [], []
    for x_t in x:
        a, u = product(x_t, w.w_in, how) + w.b_rec, product(state[0], w.w_rec, how)
        state, tape = cell.step(a, u, state, how)
        hs.append(state[0])
        tapes.append(tape)
    return np.stack(hs), tapes


def backward(w: Weights, d_h: Array, tapes: list[State], cell: "Cell", how: Noise | Exact) -> tuple[Array, Array]:
    """From d_h [T, B, H], the gradient of each h by its own y, the gradients of a and u [T, B, G*H]."""
    state = (np.zeros_like(d_h[0]),) * cell.states  # no step after the last
    d_a, d_u = [], []
    for d_h_t, tape in zip(d_h[::-1], tapes[::-1], strict=True):
        state = (how.moved(d_h_t + state[0]), *state[1:])
        a, u, (h, *others) = cell.back(state, tape, how)
        state = (h + product(u, w.w_rec.T, how), *others)
        d_a.append(a)
        d_u.append(u)
    return np.stack(d_a[::-1]), np.stack(d_u[::-1])


def train(data: Data, cell: str, noise: Noise | None = None) -> Iterator[float]:
    """The loss before each step of training, from the weights of data, on x [N, T, B, I] and target [N, T, B, O]."""
    state = untrained(data.weights)
    for x, target in zip(data.x, data.target, strict=True):
        loss, *d = run(Data(state.w, x, target), cell, "train", "projected", noise).values()
        yield float(loss)
        state = adam(state, Weights(*d), noise)


def adam(state: Trained, d: Weights, noise: Noise | None = None) -> Trained:
    """One step of Adam on the gradients d; the dtype is that of the state."""
    how = noise or Exact()
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
    step: Callable[[Array, Array, State, Noise | Exact], tuple[State, State]]
    back: Callable[[State, State, Noise | Exact], tuple[Array, Array, State]]


def rnn(act: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Cell:
    """`slope` is the derivative of `act`, as a function of its value."""

    def step(a: Array, u: Array, state: State, how: Noise | Exact) -> tuple[State, State]:
        h = how.moved(act(how.moved(a + u)))
        return (h,), (h,)

    def back(d_state: State, tape: State, how: Noise | Exact) -> tuple[Array, Array, State]:
        d = how.moved(d_state[0] * slope(tape[0]))
        return d, d, (np.zeros_like(d),)

    return Cell(1, step, back)


def in_bfloat16(a: Array) -> Array:
    """Float32 numbers rounded to bfloat16's 7 bits after the point, ties to even; still float32."""
    bits = a.view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)).view(np.float32)


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), which overflows nowhere when written so."""
    half = np.asarray(0.5, a.dtype)
    return half * (1 + np.tanh(half * a))


def gru_step(a: Array, u: Array, state: State, how: Noise | Exact) -> tuple[State, State]:
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    u_r, u_z, u_n = np.split(u, 3, axis=1)
    r, z = (how.moved(sigmoid(how.moved(both))) for both in (a_r + u_r, a_z + u_z))
    n = how.moved(np.tanh(how.moved(a_n + r * u_n)))
    return (how.moved((1 - z) * n + z * h),), (r, z, n, u_n, h)


def gru_back(d_state: State, tape: State, how: Noise | Exact) -> tuple[Array, Array, State]:
    (d,) = d_state
    r, z, n, u_n, h = tape
    d_n = how.moved(d * (1 - z) * (1 - n * n))
    d_z = how.moved(d * (h - n) * z * (1 - z))
    d_r = how.moved(d_n * u_n * r * (1 - r))
    return np.hstack([d_r, d_z, d_n]), np.hstack([d_r, d_z, how.moved(d_n * r)]), (d * z,)


def lstm_step(a: Array, u: Array, state: State, how: Noise | Exact) -> tuple[State, State]:
    _, c = state
    i, f, g, o = np.split(how.moved(a + u), 4, axis=1)
    i, f, o = (how.moved(sigmoid(each)) for each in (i, f, o))
    g = how.moved(np.tanh(g))
    after = how.moved(f * c + i * g)
    t = how.moved(np.tanh(after))
    return (how.moved(o * t), after), (i, f, g, o, c, t)


def lstm_back(d_state: State, tape: State, how: Noise | Exact) -> tuple[Array, Array, State]:
    d_h, d_c = d_state
    i, f, g, o, c, t = tape
    d_c = how.moved(d_c + d_h * o * (1 - t * t))
    d_i, d_f = d_c * g * i * (1 - i), d_c * c * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * t * o * (1 - o)
    d = how.moved(np.hstack([d_i, d_f, d_g, d_o]))
    return d, d, (np.zeros_like(d_h), d_c * f)


def product(a: Array, b: Array, how: Noise | Exact) -> Array:
    """a [..., K] x b [K, N] -> [..., N], summed over K in the order given by `how`."""
    order = how.order(b.shape[0])
    return how.moved(how.operand(a[..., order]) @ how.operand(b[order]))


def outer(a: Array, b: Array, how: Noise | Exact) -> Array:
    """a [T, B, M], b [T, B, N] -> [M, N], summed over T and B."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return product(a.T, b, how)


def column(a: Array, how: Noise | Exact) -> Array:
    """a [T, B, N] -> [N], summed over T and B."""
    return how.sum(a.reshape(-1, a.shape[-1]))


CELLS = {
    "rnn_relu": rnn(lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
    "rnn_tanh": rnn(np.tanh, lambda h: 1 - h * h),
    "gru": Cell(1, gru_step, gru_back),
    "lstm": Cell(2, lstm_step, lstm_back),
}
