"""A training: the forms of one recurrence take their steps in turns, each with weights and moments of its own.

Runs in the worker. The backend, the clock and the random seed are handed in.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from harness.records.training import OracleLosses, Trajectory
from harness.study.data import cast
from harness.study.parts import BATCHED, TWIN
from harness.verify.tolerance import CLOSE, ELEMENT, RUNS
from harness.worker.timing import first_line, time_calls, turns
from impls import reference
from impls.interface import Arm, Backend, Data, Program, Run, Unavailable
from impls.rounding import Noise, Sizes

FORMS = {"in_loop": "in_loop", BATCHED: BATCHED, TWIN: BATCHED}  # name -> projection; the twin is the A/A control
TOLD = 100  # steps between two progress messages to the parent
COMPILED = "something was traced or compiled while it was timed"


@dataclass(frozen=True)
class TrainingSpec:
    """Specification of a training.

    x [N, T, B, I] and target [N, T, B, O] of `data` hold one batch for each of N steps.
    """

    cell: str
    execution: str
    recurrence: str
    data: Data
    seed: int


@dataclass
class FormState:
    """A form in training: its program, its trajectory so far, and its training step once that has been made."""

    program: Program
    trajectory: Trajectory
    step: Run | None = None


def train(
    backend: Backend, spec: TrainingSpec, clock: Callable[[], int], stage: Callable[[str, str], None]
) -> dict[str, Trajectory]:
    """Train every form on the same batches, in a new random order each step, and return the trajectories by form.

    `stage` is called every TOLD steps with the number of the step.
    """
    forms = {
        name: FormState(
            Program(Arm(spec.recurrence, projection), spec.cell, "train", spec.execution), Trajectory.empty()
        )
        for name, projection in FORMS.items()
    }
    count, compilations = len(spec.data.x), 0
    gc.collect()
    gc.disable()
    try:
        for index, names in enumerate(turns(list(forms), count, spec.seed)):
            if index % TOLD == 0:
                stage("", f"step {index} of {count}")
            batch = spec.data._replace(x=spec.data.x[index], target=spec.data.target[index])
            for name in names:
                if forms[name].trajectory.status == "ok":
                    _take_step(backend, forms[name], batch, clock)
            if index == 0:
                compilations = backend.compilations()
    finally:
        gc.enable()
    if backend.compilations() != compilations:
        for form in forms.values():
            if form.trajectory.status == "ok":
                form.trajectory.status, form.trajectory.reason = "refused", COMPILED
    return {name: form.trajectory for name, form in forms.items()}


def _take_step(backend: Backend, form: FormState, batch: Data, clock: Callable[[], int]) -> None:
    """Take one step of a form, and make its training step at the first call.

    A failure is recorded in the form's trajectory.
    """
    trajectory = form.trajectory
    try:
        w, *inputs = backend.put(batch)
        step = form.step or backend.trainer(form.program, w)
        elapsed_ns, outputs = time_calls(clock, backend.wait, step, inputs, 1)
        trajectory.losses.append(float(outputs[0]))
    except Unavailable as error:
        trajectory.status, trajectory.reason = "unavailable", str(error)
    except Exception as error:  # whatever a framework raises is a record, not a crash
        trajectory.status, trajectory.reason = "failed", f"{type(error).__name__}: {first_line(error)}"
    else:
        if form.step:
            trajectory.samples_ns.append(elapsed_ns)
        else:
            form.step, trajectory.first_call_ns = step, elapsed_ns


def oracle_losses(data: Data, cell: str, stage: Callable[[str, str], None]) -> OracleLosses:
    """Return the oracle's losses in float64 (the truth) and in float32, and bounds for the first CLOSE losses.

    A bound limits the relative error of a loss. It is ELEMENT standard deviations of what rounding may do up to that
    step (harness.verify.output_check).
    """
    stage("", "in float64")
    exact_data = cast(data, "float64")
    exact_losses = list(reference.train(exact_data, cell))
    stage("", "in float32")
    float32_losses = list(reference.train(data, cell))
    stage("", "with random roundings")
    first_steps, sizes = exact_data._replace(x=exact_data.x[:CLOSE], target=exact_data.target[:CLOSE]), Sizes()
    followers = [Noise(seed, sizes) for seed in range(RUNS[0])]
    list(reference.train(first_steps, cell, sizes))
    x, target = (array[:, :, None] for array in first_steps[1:])  # the axis of runs has length 1
    single_run = first_steps._replace(x=x, target=target)
    noisy_losses = np.array([list(reference.train(single_run, cell, noise)) for noise in followers])
    deviations = np.sqrt(np.mean(np.square(noisy_losses / exact_losses[:CLOSE] - 1), axis=0))
    bounds = (ELEMENT * np.maximum.accumulate(deviations)).tolist()
    return OracleLosses(losses=exact_losses, float32=float32_losses, bounds=bounds)
