"""A user's own functions: the contract that every framework fulfils for them. This module imports no framework.

A function takes arrays and returns an array, or tuples, lists and dictionaries of arrays. Nothing is known of what it
computes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from impls.evidence import Evidence
from impls.interface import Arm, Program

OUTPUT = "output"


@dataclass(frozen=True)
class Task:
    """What is prepared of a function.

    `differentiated`: positions of the inputs whose gradients are taken; none in a forward pass. They are those of the
    sum of all floating-point outputs. If it is `weighted`, the callable takes an array for each of these outputs after
    its inputs, by which the output is multiplied before it is summed.
    """

    name: str
    function: Callable[..., Any]
    execution: str
    differentiated: tuple[int, ...] = ()
    weighted: bool = False

    @property
    def program(self) -> Program:
        """Return the name under which a backend keeps what it has compiled of this task."""
        pass_ = "train" if self.differentiated else "forward"
        return Program(Arm("function", self.name), "", pass_, self.execution)


class Functions(Protocol):
    """One framework's way to call a user's functions. Made with the framework's backend, which has been opened.

    `checked_in`: the execution in which functions are checked, that whose calls take least to repeat.
    `compiles_in_eager`: whether the framework compiles in eager too, so that compiling there shows nothing.
    """

    checked_in: str
    compiles_in_eager: bool

    def set_defaults(self, precision: str, seed: int) -> None:
        """Fix what a file relies on without naming it, before it is imported.

        These are the type of the arrays that the framework makes, fp32's or fp64's, and the seed of its random numbers.
        """

    def hoisted(self, function: Callable[..., Any], log: list[str]) -> Callable[..., Any]:
        """Return a function with the work taken out of its loops that may be done after them (hoist of the framework).

        Whenever it is traced, `log` gets what was moved, and what was not and why. Raises Unavailable where the
        framework has no such transformation.
        """

    def is_array(self, value: Any) -> bool:
        """Return whether a value is an array of the framework."""

    def dtype(self, array: Any) -> str:
        """Return the name of an array's type, such as float32."""

    def put(self, array: np.ndarray, is_differentiated: bool) -> Any:
        """Copy a NumPy array to the framework, in its own memory order where the framework has any other than C's."""

    def get(self, array: Any) -> np.ndarray:
        """Return an array as a NumPy copy, numbers of 16 bits as float32."""

    def prepare(self, task: Task, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Return the callable of a task. Its first call, with inputs such as these, does the tracing and compiling.

        Forward it returns what the function returns, else a tuple of the sum of the outputs and the gradients.
        """

    def wait(self, outputs: Any) -> None:
        """Return when every array of a callable's outputs has been computed."""

    def evidence(self, task: Task, run: Callable[..., Any], inputs: Sequence[Any]) -> Evidence:
        """Return what one call of a prepared task does. It has been called before."""


def leaves(outputs: Any, name: str = OUTPUT) -> dict[str, Any]:
    """Return the arrays of nested tuples, lists and dictionaries by their places, such as output[0]['h'].

    Anything else is a leaf, whether an array or not.
    """
    if isinstance(outputs, dict):
        parts = [(f"{name}[{key!r}]", value) for key, value in outputs.items()]
    elif isinstance(outputs, (tuple, list)):
        parts = [(f"{name}[{index}]", value) for index, value in enumerate(outputs)]
    else:
        return {name: outputs}
    return {place: leaf for part, value in parts for place, leaf in leaves(value, part).items()}


def weights(shape: Sequence[int], are_waves: bool, share: float, seed: int) -> np.ndarray:
    """Return the weights of an output of a shape, in float64: ones, or cosines, no two of which are alike.

    Each is changed by `share` of itself, up or down at random by `seed`.
    """
    count = math.prod(shape)
    plain = np.cos(np.arange(count, dtype="float64")) if are_waves else np.ones(count)
    return (plain * (1 + share * np.random.default_rng(seed).choice((-1.0, 1.0), count))).reshape(tuple(shape))


def call_by_position(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of positional arguments alone, without the defaults of the user's."""

    def call(*inputs: Any) -> Any:
        return function(*inputs)

    return call
