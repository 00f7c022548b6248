"""A pass of an arm as a function of weights, x and target, which the backend runs and `ahead` compiles."""

from collections.abc import Callable
from typing import Any

import jax

from impls.interface import Weights
from impls.jax import model


def function(
    recurrence: str, projection: str, cell_name: str, pass_: str, loss: str = "squared", layers: int = 1
) -> Callable[[Weights, Any, Any], Any]:
    """Return the function of a pass: the output (forward), the loss (loss), the loss and its gradients (train).

    For projection `none` in train: the gradients of the recurrent weights from a given gradient of h [T, B, H], which
    stands in the place of the target.
    """
    cell = model.CELLS[cell_name]
    if pass_ == "forward" or projection == "none":
        arm = model.arm(recurrence, projection, layers)

        def forward(w: Weights, x: Any, target: Any) -> Any:
            return arm(w, cell, x)

        def backward(w: Weights, x: Any, d_h: Any) -> Any:
            def hidden(w_in: Any, w_rec: Any, b_rec: Any) -> Any:
                return arm(w._replace(w_in=w_in, w_rec=w_rec, b_rec=b_rec), cell, x)

            return jax.vjp(hidden, *w.recurrent)[1](d_h)

        return forward if pass_ == "forward" else backward
    objective = model.objective(recurrence, projection, loss, layers)

    def value(w: Weights, x: Any, target: Any) -> Any:
        return objective(w, cell, x, target)

    gradients: Callable[[Weights, Any, Any], Any] = jax.value_and_grad(value)
    return value if pass_ == "loss" else gradients
