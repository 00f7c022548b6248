"""A user's program, hoisted: the step of a world model, whose reward and decoder no later state depends on.

After Hafner et al. 2019 (a recurrent state-space model): a GRU's state, a prior of the next latent from it, a posterior
from it and the encoded observation, whose sample goes into the next step, and heads for the reward and the observation.
"""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
from jax.extend import core

from impls.jax.hoist import FEEDING, hoist
from scripts.hoist_bodies import differences, run_compiled

T, B, SEEN, ACTION, STATE, LATENT, UNITS = 6, 3, 10, 2, 8, 4, 7
SHAPES = {  # of the weights; "encoder" is of two layers
    "encoder": ((SEEN, UNITS), (UNITS, UNITS)),
    "gru": ((LATENT + ACTION, 3 * STATE), (STATE, 3 * STATE)),
    "prior": ((STATE, UNITS), (UNITS, 2 * LATENT)),
    "posterior": ((STATE + UNITS, UNITS), (UNITS, 2 * LATENT)),
    "reward": ((STATE + LATENT, UNITS), (UNITS, 1)),
    "decoder": ((STATE + LATENT, UNITS), (UNITS, SEEN)),
}


def two_layers(weights, a):
    first, second = weights
    return jax.nn.silu(a @ first) @ second


def gru(weights, state, x):
    w_in, w_rec = weights
    a_r, a_z, a_n = jnp.split(x @ w_in, 3, axis=1)
    u_r, u_z, u_n = jnp.split(state @ w_rec, 3, axis=1)
    r, z = jax.nn.sigmoid(a_r + u_r), jax.nn.sigmoid(a_z + u_z)
    return (1 - z) * jnp.tanh(a_n + r * u_n) + z * state


def gaussian(parameters):
    mean, deviation = jnp.split(parameters, 2, axis=1)
    return mean, jax.nn.softplus(deviation) + 0.1


def step(weights, carry, inputs):
    """Return the next carry, and what the loss needs of this step."""
    state, latent, key = carry
    seen, action = inputs
    key, own = jax.random.split(key)
    state = gru(weights["gru"], state, jnp.concatenate([latent, action], axis=1))
    prior = gaussian(two_layers(weights["prior"], state))
    encoded = two_layers(weights["encoder"], seen)
    posterior = gaussian(two_layers(weights["posterior"], jnp.concatenate([state, encoded], axis=1)))
    latent = posterior[0] + posterior[1] * jax.random.normal(own, posterior[0].shape)
    feature = jnp.concatenate([state, latent], axis=1)
    reward = two_layers(weights["reward"], feature)[:, 0]
    decoded = two_layers(weights["decoder"], feature)
    return (state, latent, key), {"prior": prior, "posterior": posterior, "reward": reward, "decoded": decoded}


def observe(weights, key, seen, actions):
    """Run the model over observations [T, B, SEEN] and actions [T, B, ACTION]."""
    first = (jnp.zeros((B, STATE)), jnp.zeros((B, LATENT)), key)
    return jax.lax.scan(partial(step, weights), first, (seen, actions))[1]


def loss(run, weights, key, seen, actions, rewards):
    """Return the squared errors of both heads, and the divergence of the posterior from the prior."""
    outputs = run(weights, key, seen, actions)
    (mean, deviation), (prior_mean, prior_deviation) = outputs["posterior"], outputs["prior"]
    ratio = (deviation / prior_deviation) ** 2
    divergence = 0.5 * jnp.sum(ratio + ((mean - prior_mean) / prior_deviation) ** 2 - 1 - jnp.log(ratio), -1)
    errors = jnp.sum((outputs["decoded"] - seen) ** 2, -1) + (outputs["reward"] - rewards) ** 2
    return jnp.mean(errors + divergence)


@pytest.fixture
def arguments():
    with jax.enable_x64(True):
        values = np.random.default_rng(2)
        weights = {
            name: tuple(jnp.asarray(values.normal(size=shape) / shape[0] ** 0.5) for shape in shapes)
            for name, shapes in SHAPES.items()
        }
        arrays = [jnp.asarray(values.normal(size=shape)) for shape in ((T, B, SEEN), (T, B, ACTION), (T, B))]
        yield weights, jax.random.key(3), *arrays


def product_shapes(jaxpr, in_scan=False):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield in_scan, equation.invars[1].aval.shape
        for inner in core.jaxprs_in_params(equation.params):
            yield from product_shapes(inner, in_scan or equation.primitive.name == "scan")


def test_both_heads_and_the_prior_leave_the_loop_and_what_feeds_the_state_stays(arguments):
    weights, key, seen, actions, _ = arguments
    log = []
    found = list(product_shapes(jax.make_jaxpr(hoist(observe, log=log))(weights, key, seen, actions).jaxpr))
    in_loop = sorted(shape for inside, shape in found if inside)
    after = sorted(shape for inside, shape in found if not inside)
    assert in_loop == sorted(SHAPES["encoder"] + SHAPES["gru"] + SHAPES["posterior"])
    assert after == sorted(SHAPES["reward"] + SHAPES["decoder"] + SHAPES["prior"])
    (feeding,) = [record for record in log if record.reason == FEEDING]
    assert feeding.operations.count("dot_general") == 6
    assert "random_split" in feeding.operations
    stacked = sum(record.crossing_bytes for record in log)
    assert stacked == T * B * (STATE + LATENT) * 8, "the state and the latent, and not the feature made of them beside"


def test_the_loss_and_its_gradients_are_the_same(arguments):
    value, gradients = run_compiled(jax.value_and_grad(partial(loss, observe)), *arguments)
    assert all(jnp.any(gradient != 0) for gradient in jax.tree.leaves(gradients))
    for options in ({}, {"chunk": 4}, {"always": True}):
        hoisted = run_compiled(jax.value_and_grad(partial(loss, hoist(observe, **options))), *arguments)
        assert list(differences((value, gradients), hoisted)) == [], options
