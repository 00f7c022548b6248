"""Keras' TimeDistributed(Dense), as older tutorials write it, against the same Dense layer without the wrapper.

python -m harness pair docs/pairs/time_distributed.py
"""

import keras
import numpy as np

T, B, H, O = 20, 32, 64, 10  # steps, batch, hidden, outputs

FRAMEWORK = "tf"
GRADIENTS = ["hs"]

dense = keras.layers.Dense(O)
wrapped = keras.layers.TimeDistributed(dense)


def inputs(seed):
    return (np.random.default_rng(seed).normal(size=(B, T, H)),)


def time_distributed(hs):
    return wrapped(hs)


def plain_dense(hs):
    return dense(hs)


CANDIDATES = [time_distributed, plain_dense]
