"""The RNN under study in NumPy, unrolled or given."""

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
    return np.stack(out)


def unrolled(w, act, x):
    return unroll(w, act, x, keep)


def given(w, act, x):
    return x


def project_steps(w, hs):
    return np.stack([project(w, h) for h in hs])


HIDDEN = {"unrolled": unrolled, "given": given}
AFTER = {"none": keep, "per_step": project_steps, "batched": project}


def arm(recurrence, projection):
    if projection == "in_loop":
        return lambda w, act, x: unroll(w, act, x, project)
    return lambda w, act, x: AFTER[projection](w, HIDDEN[recurrence](w, act, x))
