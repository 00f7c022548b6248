"""A few steps of training in one framework and float64, and what its own Adam makes of small gradients.

The process that calls this has the framework's environment; what they came to is written as safetensors.
"""

import importlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from harness.study.data import probe_data
from harness.study.study import Workload
from impls.interface import BETA_1, BETA_2, EPSILON, RATE, Arm, Program, Settings
from tests.conftest import data_of

WORKLOAD = Workload(name="w", B=3, T=4, I=2, H=7, O=2, cell="rnn_relu")
STEPS = 3
GRADIENT = 1e-7  # so small that the place of epsilon shows


def batches():
    """The data of each step: two that differ, in turns."""
    data = data_of(WORKLOAD, "float64")
    return [(data, probe_data(data))[at % 2] for at in range(STEPS)]


def write(framework, execution, out):
    backend = importlib.import_module(f"impls.{framework}.backend").Backend()
    loop = backend.facts().executions[execution].loop
    backend.open(Settings("cpu", 1, "fp64"))
    for projection in ("in_loop", "batched"):
        program = Program(Arm(loop, projection), WORKLOAD.cell, "train", execution)
        step = backend.trainer(program, backend.put(data_of(WORKLOAD, "float64")).weights)
        for at, data in enumerate(batches()):
            _, *inputs = backend.put(data)
            outputs = step(*inputs)
            backend.wait(outputs)
            save_file(backend.get(program, outputs), Path(out) / f"{projection}-{at}.safetensors")
    save_file({"w": OWN[framework]()}, Path(out) / "own.safetensors")


def own_torch():
    import torch

    w = torch.ones(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([w], lr=RATE, betas=(BETA_1, BETA_2), eps=EPSILON)
    for _ in range(STEPS):
        w.grad = torch.full_like(w, GRADIENT)
        adam.step()
    return w.detach().numpy()


def own_jax():
    import jax.numpy as jnp
    import optax

    w = jnp.ones(1, "float64")
    adam = optax.adam(RATE, b1=BETA_1, b2=BETA_2, eps=EPSILON)
    state = adam.init(w)
    for _ in range(STEPS):
        updates, state = adam.update(jnp.full_like(w, GRADIENT), state)
        w = optax.apply_updates(w, updates)
    return np.array(w)


def own_tf():
    import keras
    import tensorflow as tf

    w = tf.Variable(tf.ones(1, tf.float64))
    adam = keras.optimizers.Adam(RATE, beta_1=BETA_1, beta_2=BETA_2, epsilon=EPSILON)
    for _ in range(STEPS):
        adam.apply_gradients([(tf.fill(w.shape, tf.constant(GRADIENT, tf.float64)), w)])
    return w.numpy()


OWN = {"torch": own_torch, "jax": own_jax, "tf": own_tf}
