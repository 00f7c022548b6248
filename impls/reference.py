"""The oracle: the RNN in NumPy, forward and hand-written backward. The only arbiter of outputs.

    h_t = act(x_t w_in + h_{t-1} w_rec + b_rec)        h_0 = 0
    y_t = h_t w_out + b_out                            loss = mean over all elements of (y - target)^2

The backward pass is back-propagation through time: with a_t the argument of act,
    d_h_t = d_y_t w_out^T + d_a_{t+1} w_rec^T,   d_a_t = d_h_t * act'(a_t).

In float64 it is the truth. In float32, with `noise`, it tells what rounding alone may do: every
sum is taken in a random order, and every stored intermediate is moved at random by up to two units
in the last place (Monte Carlo arithmetic, D. Stott Parker 1997): what a framework's own kernels,
which sum in another order and approximate tanh, may differ by.
"""

from collections.abc import Callable

import numpy as np

from impls.interface import Data, Outputs, Weights, named

Array = np.ndarray


class Noise:
    """Rounding made visible: sums in another order, results moved by up to `ulps` units.

    Seed 0 sums forwards and seed 1 backwards, as plain kernels do, which on a smooth series differs
    from any random order; the others sum in random orders.
    """

    def __init__(self, seed: int, ulps: float = 2.0) -> None:
        self.seed, self.random = seed, np.random.default_rng(seed)
        self.ulps = ulps

    def order(self, size: int) -> Array:
        return {0: np.arange(size), 1: np.arange(size)[::-1]}.get(self.seed, self.random.permutation(size))

    def sum(self, a: Array) -> Array:
        """Over the first axis, one after another in a random order: the plainest sum a kernel may take."""
        return self.moved(np.cumsum(a[self.order(len(a))], axis=0)[-1])

    def moved(self, a: Array) -> Array:
        unit = np.finfo(a.dtype).eps * self.ulps
        return a * (1 + unit * self.random.uniform(-1, 1, a.shape)).astype(a.dtype)


class Exact:
    """No noise: sums as NumPy takes them."""

    def order(self, size: int) -> slice:
        return slice(None)

    def sum(self, a: Array) -> Array:
        return a.sum(axis=0)

    def moved(self, a: Array) -> Array:
        return a


def run(data: Data, cell: str, pass_: str, project: bool, noise: Noise | None = None) -> Outputs:
    """Outputs of a program: {y} or {loss, d_w_in, d_w_rec, d_b_rec, d_w_out, d_b_out}.

    The dtype is that of the data. `project=False` is projection none: y is then h [T, B, H], and
    the gradients of w_out and b_out are zero.
    """
    how = noise or Exact()
    act, slope = ACTIVATIONS[cell]
    w = data.weights
    h = hidden(w, data.x, act, how)  # [T, B, H]
    y = how.moved(product(h, w.w_out, how) + w.b_out) if project else h  # [T, B, O]
    if pass_ == "forward":
        return named([y])
    error = y - data.target
    loss = how.sum(np.square(error).ravel()) / np.asarray(error.size, y.dtype)
    d_y = how.moved(error * np.asarray(2 / error.size, y.dtype))
    return named([np.asarray(loss), *gradients(w, data.x, h, d_y, slope, project, how)])


def hidden(w: Weights, x: Array, act: Callable[[Array], Array], how: Noise | Exact) -> Array:
    """x [T, B, I] -> h [T, B, H]."""
    steps, batch = x.shape[:2]
    h = np.zeros((steps + 1, batch, w.w_rec.shape[0]), x.dtype)  # h[-1] stays 0: h before the start
    for t in range(steps):
        a = product(x[t], w.w_in, how) + product(h[t - 1], w.w_rec, how) + w.b_rec
        h[t] = how.moved(act(how.moved(a)))
    return h[:steps]


def gradients(
    w: Weights, x: Array, h: Array, d_y: Array, slope: Callable[[Array], Array], project: bool, how: Noise | Exact
) -> Weights:
    """Gradients of the loss, from d_y = d loss / d y; shapes as the weights'."""
    steps, batch, size = h.shape
    d_h_out = product(d_y, w.w_out.T, how) if project else d_y  # [T, B, H]
    d_a = np.zeros((steps + 1, batch, size), x.dtype)  # d_a[steps] stays 0: no step after the last
    for t in reversed(range(steps)):
        d_h = how.moved(d_h_out[t] + product(d_a[t + 1], w.w_rec.T, how))
        d_a[t] = how.moved(d_h * slope(h[t]))
    d_a = d_a[:steps]
    before = np.concatenate([np.zeros_like(h[:1]), h[:-1]])
    d_out = (outer(h, d_y, how), column(d_y, how)) if project else (np.zeros_like(w.w_out), np.zeros_like(w.b_out))
    return Weights(outer(x, d_a, how), outer(before, d_a, how), column(d_a, how), *d_out)


def product(a: Array, b: Array, how: Noise | Exact) -> Array:
    """a [..., K] x b [K, N] -> [..., N], summed over K in the order given by `how`."""
    order = how.order(b.shape[0])
    return how.moved(a[..., order] @ b[order])


def outer(a: Array, b: Array, how: Noise | Exact) -> Array:
    """a [T, B, M], b [T, B, N] -> [M, N], summed over T and B."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return product(a.T, b, how)


def column(a: Array, how: Noise | Exact) -> Array:
    """a [T, B, N] -> [N], summed over T and B."""
    return how.sum(a.reshape(-1, a.shape[-1]))


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "rnn_relu": (lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
    "rnn_tanh": (np.tanh, lambda h: 1 - h * h),
}
