"""Programs with scans, and what is looked at in them before and after impls.jax.hoist."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from impls.jax.hoist import hoist
from scripts.hoist_bodies import differences, run_compiled

T, B, H, O = 5, 3, 4, 2  # noqa: E741  a word of the study


def make_arrays():
    """Return the weights [H, H] and [H, O], the first state [B, H], and xs [T, B, H]."""
    values = np.random.default_rng(1)
    return tuple(jnp.asarray(values.normal(size=shape)) for shape in ((H, H), (H, O), (B, H), (T, B, H)))


def projecting(w, w_out, h, xs, **named):
    """Return the last state, and for every step a projection that no state depends on."""

    def body(h, x):
        h = jnp.tanh(x + h @ w)
        return h, h @ w_out + 1.0

    return jax.lax.scan(body, h, xs, **named)


def products(f, *arguments):
    """Return the shapes of the products in a program, by whether they are in a loop."""

    def walk(jaxpr, inside):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield inside, equation.outvars[0].aval.shape
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner, inside or equation.primitive.name == "scan")

    found = list(walk(jax.make_jaxpr(f)(*arguments).jaxpr, False))
    return {place: [shape for inside, shape in found if inside == (place == "loop")] for place in ("loop", "after")}


def equations(f, *arguments):
    """Return all equations of a program, in order."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(f)(*arguments).jaxpr))


def scans(f, *arguments):
    return [equation for equation in equations(f, *arguments) if equation.primitive.name == "scan"]


def same(f, *arguments, **options):
    """Check that a function's results are the same when it is hoisted, and return the log."""
    log = []
    hoisted = hoist(f, log=log, **options)
    assert list(differences(run_compiled(f, *arguments), run_compiled(hoisted, *arguments))) == []
    return log


def moved(log):
    return [name for record in log if record.moved for name in record.operations]


def reasons(log):
    return [record.reason for record in log]
