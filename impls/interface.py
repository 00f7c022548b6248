"""The contract every framework fulfils. Imports no framework.

Layouts, the same for all: inputs x [T, B, I] and outputs y [T, B, O], contiguous and time-major;
weights w_in [I, G*H], w_rec [H, G*H], b_rec [G*H], w_out [H, O], b_out [O], with G gates side by side
in the order of GATES. One bias serves both products of a step; where a framework's layer has two, the
recurrent one is zero. A GRU resets after its recurrent product, as cuDNN's does.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from impls.evidence import Evidence

GATES = {"rnn_relu": "h", "rnn_tanh": "h", "gru": "rzn", "lstm": "ifgo"}  # the one place where their order is written
CELLS = tuple(GATES)
RECURRENCES = ("unrolled", "scan", "layer", "given")
PROJECTIONS = ("none", "in_loop", "per_step", "batched", "bmm", "vmap", "library", "time_distributed")
IMPOSSIBLE = {  # arms that no framework can have
    "layer_in_loop": "a layer keeps its loop to itself: nothing can be projected inside it",
    "given_in_loop": "without a recurrence there is no loop to project in",
    "given_none": "without recurrence and projection nothing is left to compute",
}
NO_TF32 = "TF32 is how a GPU's matrix units take fp32: a CPU has none"
NULL_ARM = ("given", "none")  # returns its input: what is left is the price of a call
PASSES = ("forward", "train")
PRECISIONS = ("fp32", "fp64", "tf32", "bf16", "as_shipped")  # as_shipped: float32 arrays, and nothing set
DEVICES = ("cpu", "gpu")
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
        """Those that projection none has."""
        return self.w_in, self.w_rec, self.b_rec


class Data(NamedTuple):
    """Weights, and what a run is called with. The target has the shape of the arm's output."""

    weights: Weights
    x: Any  # [T, B, I]; for recurrence given the hidden states [T, B, H]
    target: Any  # [T, B, O]; for projection none [T, B, H], the gradient of h that its backward pass starts from


class Trained(NamedTuple):
    """What a step of training changes: the weights, Adam's two moments of each, and the steps taken, a scalar."""

    w: Weights
    m: Weights
    v: Weights
    t: Any

    @property
    def leaves(self) -> tuple[Any, ...]:
        return (*self.w, *self.m, *self.v, self.t)


@dataclass(frozen=True)
class Arm:
    """What is timed: a way to write the recurrence times a way to write the projection."""

    recurrence: str
    projection: str

    @property
    def name(self) -> str:
        return f"{self.recurrence}_{self.projection}"


@dataclass(frozen=True)
class Program:
    """One arm, as one framework is to execute it."""

    arm: Arm
    cell: str
    pass_: str
    execution: str


@dataclass(frozen=True)
class Settings:
    """What is fixed for the life of a worker process."""

    device: str
    threads: int
    precision: str
    cache: str | None = None  # of the framework's persistent compilation cache and temporary files; a plain path


@dataclass(frozen=True)
class Execution:
    """A way the framework runs a program.

    `traced`: the whole program is traced (and so grows with T when unrolled) before its first run.
    `missing`: why this machine can not have it, or None.
    `without`: recurrences, projections, arms (by name), devices or precisions it does not have, each with its reason.
    `unrolls`: recurrences, or arms by name, that compile as many copies of a step as there are steps.
    `prototypes`: recurrences whose programs rest on what the framework's authors mark as a prototype, each with the
    sentence that says so, and what was seen of it.
    `overwrites`: a call's outputs are lent until the next call, which writes into the same memory.
    `trains`: whether the framework's users would train in it; `loop`: the recurrence they would write then.
    `on_request`: recurrences that are measured only where a study selects them by name, each with its reason.
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


@dataclass(frozen=True)
class Facts:
    """What a framework says of itself. `devices` maps a device to why it is missing, or None."""

    versions: dict[str, str]
    executions: dict[str, Execution]
    devices: dict[str, str | None]


class Unavailable(Exception):  # noqa: N818  a finding, no error of ours
    """A framework does not have what a program asks for; the message says why, in a sentence."""


Outputs = dict[str, np.ndarray]
Run = Callable[[Any, Any], Any]


class Backend(Protocol):
    """One framework. Methods are named by their phase: prepare, put, run, wait, get.

    `run` is what `prepare` returns: called with x and target it returns the output [T, B, O]
    (forward), or the loss and the five gradients of it (train), possibly unfinished; `wait` returns
    when every array in it exists. Projection none has no loss: its target is the gradient of h [T, B, H],
    and train returns the gradients of w_in, w_rec and b_rec that follow from it. The weights are given to
    `prepare`, so that each framework can hold them as its users do: in variables or layers, as attributes,
    or handed to the compiled function at each call.
    """

    def environment(self, settings: Settings) -> dict[str, str]:
        """Environment variables the process must be started with; needs no framework."""

    def facts(self) -> Facts:
        """Versions, executions and devices. Raises ImportError when the framework is missing."""

    def open(self, settings: Settings) -> dict[str, str]:
        """Fix threads, device and precision; called once, before anything below.

        Returns the framework's numeric settings as it then reads them back: name -> value. fp32 is IEEE fp32 in
        all of it, a GPU's matrix units and cuDNN included; as_shipped leaves every setting as it was found.
        """

    def prepare(self, program: Program, w: Weights) -> Run:
        """The callable of a program with weights that were `put`; tracing and compiling wait for its first call.

        It, or its first call, raises Unavailable when the framework does not have what the program asks for.
        """

    def trainer(self, program: Program, w: Weights) -> Run:
        """A step of training a program of a loop, unrolled or scan, from weights that were `put` for it alone.

        Called with x and target it takes one step of Adam (model.adam) from where the last one ended, and returns
        the loss before the step and then the leaves of Trained after it, possibly unfinished and only until the next.
        """

    def put(self, data: Data) -> Data:
        """NumPy arrays -> the framework's, on its device; for bf16 as bfloat16, which holds their numbers exactly."""

    def wait(self, outputs: Any) -> None:
        """Return when every array of a run's outputs has been computed."""

    def get(self, program: Program, outputs: Any) -> Outputs:
        """A program's outputs as NumPy copies, by the names that `named` gives them.

        Those of bf16 come as float32, which NumPy has.
        """

    def evidence(self, program: Program, run: Run, inputs: Sequence[Any]) -> tuple[Evidence, dict[str, str]]:
        """What one call of a prepared and called program does, and its text: file name -> content.

        Of a compiled program also the products that were written, for its compiler may multiply in another way.
        """

    def compilations(self) -> int:
        """How many programs were traced or compiled so far; it must stand still while timing.

        That it counts is proven in each process, see `prove_counting`: when it is opened, or before it compiles first.
        """

    def product(self, size: int) -> Callable[[], None]:
        """A square float32 product [size, size] that returns when done: it proves the threads, and has a rate."""

    def scale(self, count: int) -> Callable[[], None]:
        """Twice a float32 array [count] into another (STREAM's scale), done on return: how fast memory is moved."""


def prove_counting(compilations: Callable[[], int], compile_: Callable[[], object], what: str) -> None:
    """See `compilations` move when something is compiled. Raises RuntimeError where it stands still.

    What a framework counts is mostly private to it: under another name it would read 0, and prove whatever is asked.
    """
    before = compilations()
    compile_()
    if compilations() == before:
        raise RuntimeError(f"{what} does not count what is compiled: that nothing was compiled could not be told")


FORWARD = ("y",)
TRAIN = ("loss", *(f"d_{name}" for name in Weights._fields))
TRAIN_NONE = ("d_w_in", "d_w_rec", "d_b_rec")  # of projection none: from a given gradient of h, without a loss
TRAINING = ("loss", *Weights._fields, *(f"{moment}_{name}" for moment in "mv" for name in Weights._fields), "t")


def named(outputs: list[np.ndarray]) -> Outputs:
    """Name a run's outputs, given in order.

    [y]; [loss, gradients in the order of Weights]; of projection none [gradients of Weights.recurrent]; or of a step
    of training [loss, leaves of Trained].
    """
    names = next(names for names in (FORWARD, TRAIN, TRAIN_NONE, TRAINING) if len(names) == len(outputs))
    return dict(zip(names, outputs, strict=True))
