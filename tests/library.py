"""A made-up library: the oracle's operations in float32 (or rounded as told), with sums in an order of its own."""

import numpy as np

from impls import reference

ORDERS = ("forwards", "backwards", "shuffled", "lanes", "pairwise")
LANES = 8


class Library(reference.Exact):
    """`order`: of every sum; `approximate`: units in the last place that tanh and the like are off by, at most."""

    def __init__(self, order, seed=1, approximate=2):
        self.order, self.random, self.approximate = order, np.random.default_rng(seed), approximate

    def product(self, a, b):
        return self.summed(lambda k: a[..., k, None] * b[k], len(b))

    def outer(self, a, b):
        return self.product(a.reshape(-1, a.shape[-1]).T, b.reshape(-1, b.shape[-1]))

    def column(self, a):
        rows = a.reshape(-1, a.shape[-1])
        return self.summed(lambda k: rows[k], len(rows))

    def total(self, a):
        rows = a.reshape(-1, a.shape[-1])
        return self.summed(lambda k: rows[:, k], rows.shape[1]).sum()

    def moved(self, a):
        return a * (1 + self.approximate * 2.0**-23 * self.random.uniform(-1, 1, a.shape)).astype(a.dtype)

    def sigmoid(self, a):
        half = np.float32(0.5)
        return half * (1 + self.moved(np.tanh(half * a)))

    def summed(self, term, count):
        """The sum of term(0) to term(count - 1), added one after another in float32."""
        order = list(range(count))
        if self.order == "pairwise":
            return pairwise([in_turn(term, order[at : at + LANES]) for at in range(0, count, LANES)])
        if self.order == "lanes":
            return pairwise([in_turn(term, order[lane::LANES]) for lane in range(min(LANES, count))])
        if self.order == "shuffled":
            self.random.shuffle(order)
        return in_turn(term, order[::-1] if self.order == "backwards" else order)


def in_turn(term, order):
    found = term(order[0])
    for at in order[1:]:
        found = found + term(at)
    return found


def pairwise(parts):
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return pairwise(parts[:half]) + pairwise(parts[half:])
