"""A world model: a recurrent state, and two heads that predict the next observation and the reward from it.

Are the heads to be applied in the loop, as a step of the environment would, or once to all states after it?

    python -m harness pair docs/pairs/world_model.py
"""

import jax
import jax.numpy as jnp
import numpy as np

T, B, A, H, O = 64, 16, 8, 200, 64  # steps, batch, actions, hidden, observation

FRAMEWORK = "jax"
GRADIENTS = ["w_h", "w_observation", "w_reward"]


def inputs(seed):
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return rng.normal(size=shape) / np.sqrt(shape[-2])

    return {
        "actions": rng.normal(size=(T, B, A)),
        "w_x": drawn(A, H),
        "w_h": drawn(H, H),
        "w_observation": drawn(H, O),
        "w_reward": drawn(H, 1),
    }


def heads_in_loop(actions, w_x, w_h, w_observation, w_reward):
    def step(h, action):
        h = jnp.tanh(action @ w_x + h @ w_h)
        return h, (h @ w_observation, h @ w_reward)

    return jax.lax.scan(step, jnp.zeros((B, H), actions.dtype), actions)[1]


def heads_after_loop(actions, w_x, w_h, w_observation, w_reward):
    def step(h, action):
        h = jnp.tanh(action @ w_x + h @ w_h)
        return h, h

    hs = jax.lax.scan(step, jnp.zeros((B, H), actions.dtype), actions)[1]
    return hs @ w_observation, hs @ w_reward


CANDIDATES = [heads_in_loop, heads_after_loop]
