"""Adam, in the oracle and in every framework."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.study.parts import BATCHED
from impls import interface, reference
from impls.interface import BETA_1, BETA_2, EPSILON, RATE, Weights
from tests.run.test_train import same
from tests.stepped import GRADIENT, STEPS, WORKLOAD, batches


def test_the_oracle_is_adam_written_out():
    """One number, three steps, from the paper's equations with epsilon where TF1 has it."""
    w, m, v = 0.5, 0.0, 0.0
    state = reference.untrained(Weights(*(np.full(1, 0.5),) * 5))
    for t, g in enumerate((0.3, -2.0, 1e-8), 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.001 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-8)
        state = reference.adam(state, Weights(*(np.full(1, g),) * 5))
        assert state.t == t
        for found, true in ((state.w, w), (state.m, m), (state.v, v)):
            np.testing.assert_allclose(np.concatenate(found), true, rtol=1e-12)


def truth():
    """The oracle's outputs after each step."""
    state = reference.untrained(batches()[0].weights)
    for data in batches():
        loss, *d = reference.run(data._replace(weights=state.w), WORKLOAD.cell, "train", "projected").values()
        state = reference.adam(state, Weights(*d))
        yield dict(zip(interface.TRAINING, (loss, *state.leaves), strict=True))


def test_steps_are_the_oracles_to_the_last_digits(framework, inside):
    """In float64: the loss, the weights, both moments and the count, after each of a few steps."""
    folder = Path(*inside(framework, "steps"))
    for at, true in enumerate(truth()):
        for form in ("in_loop", BATCHED):
            assert same(load_file(folder / f"{form}-{at}.safetensors"), true)
    own_adam_is(framework, load_file(folder / "own.safetensors")["w"][0])


def test_the_last_digits_tell_one_epsilon_from_another(monkeypatch):
    """As Keras has it unless told; in float32 ten losses do not show it."""
    true = list(truth())
    monkeypatch.setattr(reference, "EPSILON", 1e-7)
    assert not same(next(iter(truth())), true[0])


def own_adam_is(framework, found):
    """What the report says of the frameworks' own: Keras' is TF1's, the others correct v before epsilon is added."""
    forms = {}
    for corrected in (True, False):
        w, m, v = 1.0, 0.0, 0.0
        for t in range(1, STEPS + 1):
            m, v = BETA_1 * m + (1 - BETA_1) * GRADIENT, BETA_2 * v + (1 - BETA_2) * GRADIENT**2
            epsilon = EPSILON * np.sqrt(1 - BETA_2**t) if corrected else EPSILON
            w -= RATE * np.sqrt(1 - BETA_2**t) / (1 - BETA_1**t) * m / (np.sqrt(v) + epsilon)
        forms[corrected] = 1 - w
    assert 1 - found == pytest.approx(forms[framework != "tf"], rel=1e-4)
    assert 1 - found != pytest.approx(forms[framework == "tf"], rel=1e-2)
