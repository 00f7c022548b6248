"""Faults planted in each framework's model, in a framework named `broken_<name>`; and what is like it.

It runs the real model, eagerly, with one of its functions replaced while it runs. Which one, the number of inputs says:
so that one worker can run them all, and that what JAX has compiled for one of them serves the next.
"""

import contextlib
import dataclasses
import importlib
import time

from impls.evidence import Evidence
from impls.interface import FAMILIES, NULL_ARM, Arm, Execution, Weights

SOUND = "sound"
SWAPPED = "swapped"  # in_loop runs batched: the outputs are right, and what was counted is not
FAULTS = ("dropped_bias", "shifted", "transposed", "stale", "lowered", "missing_gradient", "other_target")
PLANTED = (SOUND, SWAPPED, *FAULTS)
FIRST_SIZE = 2


def size_of(fault):
    """The number of inputs that stands for a fault: a program is given it with its weights."""
    return FIRST_SIZE + PLANTED.index(fault)


def broken(framework):
    """The backend class of a framework that has a fault for each number of inputs from FIRST_SIZE on."""
    real = importlib.import_module(f"impls.{framework}.backend").Backend

    class Broken(real):
        def __init__(self):
            super().__init__()
            self.faulty = set()

        def open(self, settings):
            time.process_time_ns = lambda: settings.threads * time.perf_counter_ns()  # proven, whatever else runs
            return super().open(settings)

        def prepare(self, program, w):
            if program.arm == Arm(*NULL_ARM):
                return super().prepare(program, w)
            fault = PLANTED[int(w.w_in.shape[0]) - FIRST_SIZE]
            if fault == SWAPPED and program.arm.projection == "in_loop":
                program = dataclasses.replace(program, arm=Arm(program.arm.recurrence, "batched"))
            run = super().prepare(program, w)
            if fault in FAULTS:
                run = with_fault(fault, run, framework, self.model)
                self.faulty.add(run)
            return run

        def evidence(self, program, run, inputs):
            if run in self.faulty:
                return Evidence(missing={"everything": "it is broken"}), {}
            return super().evidence(program, run, inputs)

    return Broken


def without():
    """What a broken framework does not have: the unrolled core arms are enough."""
    reasons = dict.fromkeys(("scan", "layer", "given"), "faults are planted in the unrolled arms")
    others = [form for form in FAMILIES if form not in ("none", "in_loop", "per_step", "batched")]
    return reasons | dict.fromkeys(others, "the core arms are enough")


def with_fault(fault, run, framework, model):
    """A run with a fault."""
    if fault in INSTEAD:
        return INSTEAD[fault](run)
    replacements = planted(framework, model)[fault]

    def call(x, target):
        with replaced(model, replacements):
            return run(x, target)

    return call


LATE_SIZE = 3  # the number of inputs at which the wrapper is late


def late(framework):
    """The backend class of the original, whose wrapper projects the state before the step at LATE_SIZE inputs."""
    real = importlib.import_module(f"impls.{framework}.backend").Backend

    class Late(real):
        def open(self, settings):
            numerics = super().open(settings)
            original = importlib.import_module("impls.tf.original")

            class Wrapper(original.OutputProjectionWrapper):
                def __call__(self, inputs, state):
                    projected, after = super().__call__(inputs, state)
                    if inputs.shape[-1] != LATE_SIZE:
                        return projected, after
                    with original.v1.variable_scope("output_projection_wrapper", reuse=True):
                        return original.dense(state, self.output_size), after

            original.OutputProjectionWrapper = Wrapper
            return numerics

    return Late


def wrong(framework):
    """The backend class of a framework with mistakes made in training, eagerly.

    Of the three forms `in_loop` has one, and so has the first that is made of the two others, which are the same.
    """
    real = importlib.import_module(f"impls.{framework}.backend").Backend

    class Wrong(real):
        def __init__(self):
            super().__init__()
            self.mistakes = {"in_loop": ["fast"], "batched": ["frozen_bias"]}

        def trainer(self, program, w):
            mistakes = self.mistakes[program.arm.projection]
            replacements = planted_in_training(self.model)[mistakes.pop()] if mistakes else {}
            with replaced(self.model, replacements):
                step = super().trainer(program, w)

            def call(x, target):
                with replaced(self.model, replacements):
                    return step(x, target)

            return call

    return Wrong


EXECUTIONS = {  # of each of these frameworks, from those of the real one
    "broken": lambda real: {"eager": Execution(traced=False, without=without())},
    "quiet": lambda real: real,
    "late": lambda real: {"v1": real["v1"]},
    "wrong": lambda real: {"eager": Execution(traced=False)},
}


def quiet(framework):
    """The backend class of TensorFlow that asks no other process which library multiplies: that would import it too."""
    real = importlib.import_module(f"impls.{framework}.backend").Backend

    class Nothing:
        def library(self, *product):
            return None

    class Quiet(real):
        def __init__(self):
            super().__init__()
            self.prober = Nothing()

    return Quiet


def planted_in_training(model):
    """Fault -> what it replaces of the model."""
    adam = model.adam

    def fast(state, d):
        after = adam(state, d)
        moved = zip(state.w, after.w, strict=True)
        return after._replace(w=Weights(*(old + 1.01 * (new - old) for old, new in moved)))

    return {
        "fast": {"adam": fast},
        "frozen_bias": {"adam": lambda state, d: adam(state, d._replace(b_rec=0 * d.b_rec))},
    }


def stale(run):
    """Returns what the first call gave, whatever it is called with."""
    kept = []

    def call(x, target):
        if not kept:
            kept.append(run(x, target))
        return kept[0]

    return call


def other_target(run):
    """Is called with a target of ones; for projection none that is the gradient of h."""
    return lambda x, target: run(x, 0 * target + 1)


INSTEAD = {"stale": stale, "other_target": other_target}


@contextlib.contextmanager
def replaced(model, replacements):
    before = {name: getattr(model, name) for name in replacements}
    for name, function in replacements.items():
        setattr(model, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(model, name, function)


def planted(framework, model):
    """Fault -> the model's functions that it replaces."""
    rnn, project, unroll = model.rnn, model.project, model.unroll
    detach, low, transpose = operations(framework)

    def lowered(w, h):
        return project(w._replace(w_out=low(w.w_out)), low(h))

    def shifted(*given):
        out = unroll(*given)
        return out[-1:] + out[:-1]

    return {
        "dropped_bias": {"project": lambda w, h: h @ w.w_out},
        "shifted": {"unroll": shifted},
        "transposed": {"rnn": lambda act, w, h, x: rnn(act, w._replace(w_rec=transpose(w.w_rec)), h, x)},
        "lowered": {"project": lowered},
        "missing_gradient": {"rnn": lambda act, w, h, x: rnn(act, w, (detach(h[0]),), x)},
    }


def operations(framework):
    """Stop a gradient, round to bfloat16 and back, transpose."""
    if framework == "torch":
        import torch

        return (lambda a: a.detach()), (lambda a: a.to(torch.bfloat16).to(a.dtype)), (lambda a: a.T)
    if framework == "jax":
        import jax
        import jax.numpy as jnp

        return jax.lax.stop_gradient, (lambda a: a.astype(jnp.bfloat16).astype(a.dtype)), (lambda a: a.T)
    import tensorflow as tf

    return tf.stop_gradient, (lambda a: tf.cast(tf.cast(a, tf.bfloat16), a.dtype)), tf.transpose
