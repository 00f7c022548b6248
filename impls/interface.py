"""The contract that every framework's backend fulfils. This module imports no framework.

All frameworks share these layouts. Inputs x [T, B, I] and outputs y [T, B, O] are contiguous and time-major. The
weights are w_in [I, G*H], w_rec [H, G*H], b_rec [G*H], w_out [H, O] and b_out [O], with the G gates side by side in
the order of GATES. One bias serves both products of a step. Where a framework's layer has two biases, the recurrent
one is zero. A GRU applies its reset gate after the recurrent product, as cuDNN does.

With several layers every weight has an axis [L, ...] for them in front, and I = O: each layer runs all steps and
projects, and what it returns is the next one's input.

A loss is a mean over all steps and the batch. `squared` is that of the squared errors of y from a target [T, B, O].
`cross_entropy` is that of softmax cross-entropy: y are the logits of O classes, and the target [T, B] holds the number
of the right class (int32).
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from impls.evidence import Evidence

GATES = {"rnn_relu": "h", "rnn_tanh": "h", "gru": "rzn", "lstm": "ifgo"}  # the one place where their order is written
CELLS = tuple(GATES)
RECURRENCES = ("unrolled", "scan", "layer", "given", "modules")
PROJECTIONS = ("none", "in_loop", "per_step", "batched", "bmm", "vmap", "library", "time_distributed", "hoisted")
CHUNKED = "chunked_k"  # the family of projections that cut time into k chunks
IN_LOOP_LOSS = "in_loop_loss"  # projects and adds to the loss at every step, so that y never exists as a whole
CHUNKED_LOSS = "chunked_loss_k"  # the family of projections that do so for each of k chunks of time
LOSS_INSIDE = (IN_LOOP_LOSS, CHUNKED_LOSS)  # their backward pass computes y again, by the framework's checkpointing
FAMILIES = (*PROJECTIONS, CHUNKED, *LOSS_INSIDE)
IMPOSSIBLE = {  # arms that no framework can have
    "layer_in_loop": "a layer keeps its loop to itself: nothing can be projected inside it",
    "given_in_loop": "without a recurrence there is no loop to project in",
    "layer_hoisted": "a layer keeps its loop to itself: nothing can be taken out of it",
    "given_hoisted": "without a recurrence there is no loop to take anything out of",
    **{
        f"modules_{projection}": "with modules one projects inside the loop, or after it step by step or at once"
        for projection in ("bmm", "vmap", "library", "time_distributed", "hoisted", CHUNKED, CHUNKED_LOSS)
    },
    "given_none": "without recurrence and projection nothing is left to compute",
    "modules_in_loop_loss": "the loss inside is that of the functional loops",
    "layer_in_loop_loss": "a layer keeps its loop to itself: no loss can be added up inside it",
    "given_in_loop_loss": "without a recurrence there is no loop to add up a loss in",
}
NO_OUTPUTS = "with the loss inside there is never a whole y to return: its forward pass is --pass loss"
NO_LOSS = "projection none has no loss"
ONE_LAYER = ("layer", "given", "modules", "none", "library", "time_distributed")  # recurrences and projections
NO_LAYERS = "several layers are studied in the loops and projections that are written here, which hold their weights"
NOTHING_MOVED = "hoist moved nothing, so that this would be in_loop under another name"
NO_HOIST = "hoist rewrites programs of JAX and PyTorch, and those of no other framework"
WHOLE = "T"  # as a number of chunks: one for each step
NO_TF32 = "TF32 is how a GPU's matrix units take fp32: a CPU has none"
NULL_ARM = ("given", "none")  # returns its input: what is left is the price of a call
PASSES = ("forward", "loss", "train")  # y; the loss; the loss and its gradients
USUAL_PASSES = ("forward", "train")
LOSSES = ("squared", "cross_entropy")
PRECISIONS = ("fp32", "fp64", "tf32", "bf16", "as_shipped")  # as_shipped: float32 arrays, and nothing set
DEVICES = ("cpu", "gpu")
LIBRARIES = ("as_shipped", "plain")  # plain: without the libraries that can be taken out of a framework
RATE, BETA_1, BETA_2, EPSILON = 0.001, 0.9, 0.999, 1e-8  # of Adam, as the chapter has them
LOG_BETA_1, LOG_BETA_2 = math.log(BETA_1), math.log(BETA_2)


class Weights(NamedTuple):
    """The five weights, as NumPy or framework arrays; shapes in the module's docstring."""

    w_in: Any
    w_rec: Any
    b_rec: Any
    w_out: Any
    b_out: Any

    @property
    def recurrent(self) -> tuple[Any, Any, Any]:
        """The weights that an arm with projection `none` has."""
        return self.w_in, self.w_rec, self.b_rec


def weights_of(w: Weights, layer: int) -> Weights:
    """Return the weights of one of several layers."""
    return Weights(*(array[layer] for array in w[: len(Weights._fields)]))


class Data(NamedTuple):
    """The weights and the inputs of a run. The target has the shape of the arm's output."""

    weights: Weights
    x: Any  # [T, B, I]; for recurrence `given`, the hidden states [T, B, H]
    target: Any  # what the loss takes; for projection `none`, the gradient of h [T, B, H] that the backward pass has


class Trained(NamedTuple):
    """The state that a training step changes: weights, Adam's two moments of each, and the step count (a scalar)."""

    w: Weights
    m: Weights
    v: Weights
    t: Any

    @property
    def leaves(self) -> tuple[Any, ...]:
        return (*self.w, *self.m, *self.v, self.t)


@dataclass(frozen=True)
class Arm:
    """A pair of a recurrence form and a projection form, which is what the harness times."""

    recurrence: str
    projection: str

    @property
    def name(self) -> str:
        return f"{self.recurrence}_{self.projection}"


def family_of(projection: str) -> str:
    """Return CHUNKED for every projection `chunked_<k>`, CHUNKED_LOSS for `chunked_loss_<k>`, and any other itself.

    `chunked_<k>` makes k products after the loop, each of a chunk of the steps: `chunked_4`, or `chunked_T` with one
    for each step. `chunked_loss_<k>` does so too, and adds each chunk to the loss before the next.
    """
    match = re.fullmatch("(chunked|chunked_loss)_([1-9][0-9]{0,4}|T)", projection)
    return f"{match[1]}_k" if match else projection


def chunk_count(projection: str) -> str:
    """Return the number of chunks of a projection that cuts time, as it is written: digits, or WHOLE."""
    return projection.rpartition("_")[2]


def chunk_sizes(projection: str, steps: int) -> list[int]:
    """Return the steps of each chunk of `chunked_<k>` or `chunked_loss_<k>`.

    There are k chunks, or one for each step where there are fewer steps. Where k leaves a rest, the first are longer.
    """
    count = chunk_count(projection)
    chunks = steps if count == WHOLE else min(int(count), steps)
    size, rest = divmod(steps, chunks)
    return [size + 1] * rest + [size] * (chunks - rest)


@dataclass(frozen=True)
class Program:
    """An arm, with the cell, pass, execution, loss and number of layers that a framework runs it in."""

    arm: Arm
    cell: str
    pass_: str
    execution: str
    loss: str = "squared"
    layers: int = 1


@dataclass(frozen=True)
class Settings:
    """The settings of a worker process, fixed for its lifetime."""

    device: str
    threads: int
    precision: str
    cache: str | None = (
        None  # folder for the framework's persistent compilation cache and temporary files; a plain path
    )
    library: str = "as_shipped"  # one of LIBRARIES


@dataclass(frozen=True)
class Execution:
    """A way in which the framework runs a program.

    `traced`: the whole program is traced before its first run, so an unrolled one grows with T.
    `missing`: why this machine cannot run it, or None.
    `without`: recurrences, projections, arms (by name), devices, precisions, passes or losses that it does not support
    -> the reason; `<recurrence>_layers` for several layers.
    `unrolls`: recurrences, or arms by name, that compile one copy of the step for every time step.
    `prototypes`: recurrences that rest on what the framework's authors mark as a prototype -> a sentence that says so
    and what was observed.
    `overwrites`: the next call writes into the memory of a call's outputs, so they are valid only until then.
    `trains`: whether the framework's users would train in it; `loop`: the recurrence they would write for it.
    `on_request`: recurrences that are measured only if a study selects them by name -> the reason.
    `usual_passes`: what users run in it, so that its answer comes before that of what few do.
    `chunks_unrolled`: the projections that cut time whose chunks are compiled one by one.
    `takes_functions`: whether a user's own functions can be compared in it (impls.functions).
    """

    traced: bool
    missing: str | None = None
    without: dict[str, str] = field(default_factory=dict)
    unrolls: tuple[str, ...] = ("unrolled",)
    prototypes: dict[str, str] = field(default_factory=dict)
    overwrites: bool = False
    trains: bool = True
    loop: str = "unrolled"
    on_request: dict[str, str] = field(default_factory=dict)
    usual_passes: tuple[str, ...] = PASSES
    chunks_unrolled: tuple[str, ...] = (CHUNKED, CHUNKED_LOSS)
    takes_functions: bool = True


@dataclass(frozen=True)
class Facts:
    """A framework's versions, executions and devices. `devices` maps a device to why it is missing, or to None."""

    versions: dict[str, str]
    executions: dict[str, Execution]
    devices: dict[str, str | None]


class Unavailable(Exception):  # noqa: N818  it reports a finding, not an error of the harness
    """A framework does not support what a program asks for. The message is a sentence that gives the reason."""


def require_moved(log: Iterable[str]) -> None:
    """Raise Unavailable if the lines of a hoist's log say of nothing that it was moved."""
    lines = list(log)
    if not any(": moved: " in line for line in lines):
        raise Unavailable(": ".join([NOTHING_MOVED, *lines[:1]]))


Outputs = dict[str, np.ndarray]
Run = Callable[[Any, Any], Any]


class Backend(Protocol):
    """One framework. Methods are named by their phase: prepare, put, run, wait, get.

    `run` is the callable that `prepare` returns. Called with x and target, it returns the output [T, B, O] (forward),
    the loss (loss), or the loss and its five gradients (train). These arrays may be unfinished; `wait` returns when all
    of them exist. Projection `none` has no loss: its target is the gradient of h [T, B, H], and train returns the
    gradients of w_in, w_rec and b_rec that follow from it. `prepare` is given the weights, so that each framework can
    hold them as its users do: in variables or layers, as attributes, or passed to the compiled function at each call.
    """

    def environment(self, settings: Settings) -> dict[str, str]:
        """Return the environment variables to start the worker process with. Needs no framework.

        With library `plain` they take the libraries out that the framework can do without on a CPU, if it has any.
        """

    def facts(self) -> Facts:
        """Return versions, executions and devices. Raises ImportError if the framework is not installed."""

    def open(self, settings: Settings) -> dict[str, str]:
        """Fix threads, device and precision; called once, before any method below.

        Returns the framework's numeric settings as read back afterwards: name -> value. fp32 means IEEE fp32
        everywhere, including a GPU's matrix units and cuDNN. as_shipped changes no setting.
        """

    def prepare(self, program: Program, w: Weights) -> Run:
        """Return the callable of a program, for weights from `put`. Its first call does the tracing and compiling.

        Either `prepare` or that first call raises Unavailable if the framework does not support the program.
        """

    def trainer(self, program: Program, w: Weights) -> Run:
        """Return the training step of a program whose recurrence is a loop, `unrolled` or `scan`.

        The weights come from `put` and must be used by nothing else. Each call with x and target takes one step of Adam
        (model.adam) from where the previous call ended. It returns the loss before the step, then the leaves of Trained
        after it. These may be unfinished, and are valid only until the next call.
        """

    def put(self, data: Data) -> Data:
        """Copy NumPy arrays to the framework's device; for bf16 as bfloat16, which represents their values exactly.

        Classes stay whole numbers.
        """

    def wait(self, outputs: Any) -> None:
        """Return when every array of a run's outputs has been computed."""

    def get(self, program: Program, outputs: Any) -> Outputs:
        """Return a program's outputs as NumPy copies, under the names that `named` gives them.

        bf16 outputs are returned as float32, because NumPy has no bfloat16.
        """

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """Return what one call of a prepared program does, and its text: file name -> content.

        The program has been called before. A compiled one also reports the products of its source, because its compiler
        may compute them in another way.
        """

    def peak_bytes(self, call: Callable[[], object]) -> int | None:
        """Return the most bytes that a call takes at once of the framework's own allocator, its outputs included.

        None where the framework gives freed memory back to the process, so that the kernel knows what it takes.
        """

    def compilations(self) -> int:
        """Return how many programs have been traced or compiled so far. The number must not change while timing.

        Each process proves that the counter works (`prove_counting`), when it is opened or before it first compiles.
        """

    def product(self, rows: int, inner: int, columns: int, execution: str = "") -> Callable[[], None]:
        """Return a blocking float32 product [rows, inner] x [inner, columns], as an execution runs one.

        Without an execution it is the framework's product by itself, which proves the thread count.
        """

    def scale(self, count: int) -> Callable[[], None]:
        """Return a blocking call that writes twice a float32 array [count] (STREAM's scale), for memory bandwidth."""


def prove_counting(compilations: Callable[[], int], compile_: Callable[[], object], counter_name: str) -> None:
    """Check that `compilations` increases when something is compiled. Raises RuntimeError if it does not.

    The frameworks' counters are mostly private. Under another name one would read 0, and would prove anything.
    """
    count_before = compilations()
    compile_()
    if compilations() == count_before:
        raise RuntimeError(
            f"{counter_name} does not count what is compiled: whether anything is compiled would be unknown"
        )


def require_layer(program: Program, layer: Any) -> None:
    """Raise Unavailable where a program needs the framework's own layer of a cell and `layer` is None."""
    if program.arm.recurrence == "layer" and layer is None:
        raise Unavailable(f"the framework has no layer of {program.cell}")


FORWARD = ("y",)
LOSS = ("loss",)
TRAIN = ("loss", *(f"d_{name}" for name in Weights._fields))
TRAIN_NONE = ("d_w_in", "d_w_rec", "d_b_rec")  # for projection `none`: from a given gradient of h, without a loss
TRAINING = ("loss", *Weights._fields, *(f"{moment}_{name}" for moment in "mv" for name in Weights._fields), "t")


def named(outputs: list[np.ndarray], pass_: str) -> Outputs:
    """Name a run's outputs, which are given in one of these orders.

    Forward: [y]. Loss: [loss]. Train: [loss, gradients in the order of Weights]. Train with projection `none`:
    [gradients of Weights.recurrent]. A training step: [loss, leaves of Trained].
    """
    orders: dict[str, list[tuple[str, ...]]] = {"forward": [FORWARD], "loss": [LOSS]}
    names = next(names for names in orders.get(pass_, [TRAIN, TRAIN_NONE, TRAINING]) if len(names) == len(outputs))
    return dict(zip(names, outputs, strict=True))
