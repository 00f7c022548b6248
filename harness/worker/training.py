"""A training: forms of one recurrence take their steps in turns, each from weights and moments of its own.

Runs in the worker. The backend, the clock and the random order are handed in.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from harness.study.data import cast
from harness.study.parts import BATCHED, TWIN
from harness.verify.tolerance import CLOSE, ELEMENT, RUNS
from harness.worker.timing import first_line, timed, turns
from impls import reference
from impls.interface import Arm, Backend, Data, Program, Run, Unavailable
from impls.rounding import Noise, Sizes

FORMS = {"in_loop": "in_loop", BATCHED: BATCHED, TWIN: BATCHED}  # name -> projection; the twin is the A/A control
TOLD = 100  # steps after which the parent hears how far it is
COMPILED = "something was traced or compiled while it was timed"


@dataclass(frozen=True)
class Training:
    """What the forms are trained on: x [N, T, B, I] and target [N, T, B, O] of `data` hold a batch for each step."""

    cell: str
    execution: str
    recurrence: str
    data: Data
    seed: int


@dataclass
class Trajectory:
    """One form's losses, each before its step, and nanoseconds: of the first step apart, and of every later one."""

    status: str = "ok"
    reason: str = ""
    first_call_ns: int | None = None
    samples_ns: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


@dataclass
class Form:
    """A form on its way: its program, its step once there is one, and what it has given."""

    program: Program
    found: Trajectory
    step: Run | None = None


def train(
    backend: Backend, todo: Training, clock: Callable[[], int], stage: Callable[[str, str], None]
) -> dict[str, Trajectory]:
    """Train every form on the same batches, in a new random order each step; `stage` is told how far it is."""
    forms = {
        name: Form(Program(Arm(todo.recurrence, projection), todo.cell, "train", todo.execution), Trajectory())
        for name, projection in FORMS.items()
    }
    count, compiled = len(todo.data.x), 0
    gc.collect()
    gc.disable()
    try:
        for at, names in enumerate(turns(list(forms), count, todo.seed)):
            if at % TOLD == 0:
                stage("", f"step {at} of {count}")
            batch = todo.data._replace(x=todo.data.x[at], target=todo.data.target[at])
            for name in names:
                if forms[name].found.status == "ok":
                    _step(backend, forms[name], batch, clock)
            if at == 0:
                compiled = backend.compilations()
    finally:
        gc.enable()
    if backend.compilations() != compiled:
        for form in forms.values():
            if form.found.status == "ok":
                form.found.status, form.found.reason = "refused", COMPILED
    return {name: form.found for name, form in forms.items()}


def _step(backend: Backend, form: Form, batch: Data, clock: Callable[[], int]) -> None:
    """One step of a form, which is made at the first; a failure stays with the form."""
    found = form.found
    try:
        w, *inputs = backend.put(batch)
        step = form.step or backend.trainer(form.program, w)
        took, outputs = timed(clock, backend.wait, step, inputs, 1)
        found.losses.append(float(outputs[0]))
    except Unavailable as error:
        found.status, found.reason = "unavailable", str(error)
    except Exception as error:  # whatever a framework raises is a record, not a crash
        found.status, found.reason = "failed", f"{type(error).__name__}: {first_line(error)}"
    else:
        if form.step:
            found.samples_ns.append(took)
        else:
            form.step, found.first_call_ns = step, took


def oracle(data: Data, cell: str, stage: Callable[[str, str], None]) -> dict[str, list[float]]:
    """The oracle's losses in float64, the truth, and in float32; and bounds of the first losses' relative errors.

    A bound is ELEMENT standard deviations of what rounding may do up to its step (harness.verify.output_check).
    """
    stage("", "in float64")
    exact = cast(data, "float64")
    true = list(reference.train(exact, cell))
    stage("", "in float32")
    own = list(reference.train(data, cell))
    stage("", "with random roundings")
    first_steps, sizes = exact._replace(x=exact.x[:CLOSE], target=exact.target[:CLOSE]), Sizes()
    list(reference.train(first_steps, cell, sizes))
    x, target = (array[:, :, None] for array in first_steps[1:])  # the axis of runs is of length 1
    single_run = first_steps._replace(x=x, target=target)
    noisy = np.array([list(reference.train(single_run, cell, Noise(seed, sizes))) for seed in range(RUNS[0])])
    deviations = np.sqrt(np.mean(np.square(noisy / true[:CLOSE] - 1), axis=0))
    return {"losses": true, "float32": own, "bounds": list(ELEMENT * np.maximum.accumulate(deviations))}
