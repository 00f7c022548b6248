"""The RNN under study in NumPy, unrolled only."""

import numpy as np

ACTIVATIONS = {"rnn_relu": lambda a: np.maximum(a, 0), "rnn_tanh": np.tanh}


def step(w, act, h, x):
    return act(x @ w.w_in + h @ w.w_rec + w.b_rec)


def project(w, h):
    return h @ w.w_out + w.b_out


def keep(w, h):
    return h


def unroll(w, act, x, emit):
    h = np.zeros((x.shape[1], w.w_rec.shape[0]), x.dtype)
    out = []
    for x_t in x:
        h = step(w, act, h, x_t)
        out.append(emit(w, h))
    return out


def null_none(w, act, x):
    return x


def unrolled_none(w, act, x):
    return np.stack(unroll(w, act, x, keep))


def unrolled_in_loop(w, act, x):
    return np.stack(unroll(w, act, x, project))


def unrolled_per_step(w, act, x):
    return np.stack([project(w, h) for h in unroll(w, act, x, keep)])


def unrolled_batched(w, act, x):
    return project(w, np.stack(unroll(w, act, x, keep)))
