"""The worker: one process, one framework, device, thread count, execution and precision.

The only process that imports impls.<framework>. It reads requests from stdin, one JSON object per line, and
answers on a file descriptor of its own, so that nothing a framework prints can spoil an answer:

    {"do": "facts", "threads": [...], "devices": [...], "cache": ...} -> versions, executions, devices, environments
    {"do": "oracle", ...}         -> {"is": "stage", ...} ... then {"is": "oracle", "found": {...}}, for a training
    {"do": "open", "settings": {...}, "prove": true, "rate": true} -> {"is": "open", "threads_used": ..., "rates": ...}
    {"do": "block", ...}          -> {"is": "stage", ...} ... then {"is": "block", "arms": {...}, ...}
    {"do": "train", ...}          -> {"is": "stage", ...} ... then {"is": "train", "forms": {...}}
"""

import dataclasses
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness.machine.parent import end_with_parent
from harness.study import weights
from harness.study.data import DTYPES, cast
from harness.study.study import Workload
from harness.worker import peak_rates, timing, training
from impls.interface import Arm, Backend, Outputs, Settings

PRODUCT = 1536  # side of the square product that shows how many threads are used
Send = Callable[[dict[str, Any]], None]


def main() -> None:
    """Serve requests until stdin ends.

    Command-line arguments: the framework, and the file descriptor to answer on.
    """
    end_with_parent()  # so that no worker keeps measuring after its parent was killed
    framework, descriptor = sys.argv[1], int(sys.argv[2])
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:

        def send(message: dict[str, Any]) -> None:
            print(json.dumps(message), file=answers, flush=True)

        backend: Backend = importlib.import_module(f"impls.{framework}.backend").Backend()
        settings = None
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "facts":
                send(facts(backend, request))
            elif request["do"] == "open":
                settings = Settings(**request["settings"])
                send(open_framework(backend, settings, request["prove"], request["rate"]))
            elif request["do"] == "oracle":
                send(compute_oracle(request, send))
            elif request["do"] == "train":
                send(train(backend, request, send))
            else:
                assert settings is not None
                send(run_block(backend, settings, request, send))


def facts(backend: Backend, request: dict[str, Any]) -> dict[str, Any]:
    """Return the framework's facts about itself, and the environment that each of its workers needs.

    If the framework is not installed or does not start, the answer's `missing` holds the reason instead.
    """
    environments = [
        {
            "device": device,
            "threads": threads,
            "variables": backend.environment(Settings(device, threads, "fp32", request["cache"])),
        }
        for device in request["devices"]
        for threads in request["threads"]
    ]
    try:
        framework_facts = backend.facts()
    except ModuleNotFoundError as error:
        return {"is": "facts", "missing": f"{error.name or error} is not installed", "installed": False}
    except Exception as error:  # whatever a framework raises is a fact to report, not a crash
        return {"is": "facts", "missing": f"it is installed and does not start: {_describe_error(error)}"}
    return {"is": "facts", "missing": None, "environments": environments, **dataclasses.asdict(framework_facts)}


def _describe_error(error: Exception) -> str:
    """Return an error's type and message on one line; without a message, the line of code that raised it."""
    message = " ".join(str(error).split())
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message or f'{frame.line} ({frame.filename}, line {frame.lineno})'}"


def open_framework(backend: Backend, settings: Settings, prove: bool, rate: bool) -> dict[str, Any]:
    """Open the framework; with `rate`, measure its peak rates; with `prove`, check how many threads it uses."""
    answer: dict[str, Any] = {"is": "open", "numerics": backend.open(settings)}
    answer["rates"] = peak_rates.measure_rates(backend, time.perf_counter_ns) if rate else None
    if not prove:
        return answer | {"proven": None, "threads_used": None}
    proven, ratio = timing.prove_threads(
        settings.threads, backend.product(PRODUCT), time.process_time_ns, time.perf_counter_ns
    )
    return answer | {"proven": proven, "threads_used": ratio}


def run_block(backend: Backend, settings: Settings, request: dict[str, Any], send: Send) -> dict[str, Any]:
    """Run one block: write its outputs into the folder that the request names, and return its times.

    If a file cannot be written, the answer is of kind "unwritten" and holds the reason.
    """
    workload = Workload(**request["workload"])
    data = weights.load_data(Path(request["weights"]), workload)
    steps = request["steps"] or workload.T
    data = data._replace(x=data.x[:steps], target=data.target[:steps])
    rounds = request["rounds"]
    spec = timing.TimingSpec(
        cell=workload.cell,
        pass_=request["pass"],
        execution=request["execution"],
        arms=[Arm(*arm) for arm in request["arms"]],
        data=cast(data, DTYPES[settings.precision]),
        rounds=timing.RoundLimits(**rounds) if rounds else None,
        seed=request["seed"],
        seconds=request["seconds"],
        counted=tuple(Arm(*arm) for arm in request["counted"]),
        control=request["control"],
        calls=request["calls"],
        hurried=request["hurried"],
        overwrites=request["overwrites"],
    )
    folder = Path(request["outputs"])

    def keep(name: str, moment: str, outputs: Outputs) -> None:
        arrays = {f"{name}/{moment}/{quantity}": array for quantity, array in outputs.items()}
        with _translate_write_errors():
            save_file(arrays, folder / f"{name}.{moment}.safetensors")

    try:
        result = timing.block(backend, spec, METERS, keep, _stage_sender(send))
        if request["texts"]:
            with _translate_write_errors():
                _write_texts(Path(request["texts"]), result.texts)
    except WriteError as error:
        return {"is": "unwritten", "reason": f"a program's outputs or text cannot be written: {error}"}
    arms = {name: dataclasses.asdict(arm) for name, arm in result.arms.items()}
    floors = _call_overheads(backend, spec) if spec.rounds else {}
    return {"is": "block", "arms": arms, "timer_ns": result.timer_ns, "floors": floors}


# A class of its own, because a framework may raise an OSError for other reasons. The usual cause is a full disk.
class WriteError(Exception):
    """A file of the harness could not be written; the message is the system's."""


@contextmanager
def _translate_write_errors() -> Iterator[None]:
    """Raise Unwritten for an error of the system or of safetensors."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise WriteError(str(error)) from error


def minor_faults() -> int:
    """Return the minor page faults of this process, all its threads included, so far.

    These are pages that the kernel gave the process without reading them from a disk.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


METERS = timing.Meters(time.perf_counter_ns, minor_faults)


def compute_oracle(request: dict[str, Any], send: Send) -> dict[str, Any]:
    """Compute the oracle's trajectories for a training; no framework is imported for it."""
    workload = Workload(**request["workload"])
    data = weights.load_training_data(Path(request["weights"]), workload)
    return {"is": "oracle", "found": training.oracle_losses(data, workload.cell, _stage_sender(send))}


def train(backend: Backend, request: dict[str, Any], send: Send) -> dict[str, Any]:
    """Train the forms of one recurrence in fp32, and return their trajectories."""
    workload = Workload(**request["workload"])
    data = weights.load_training_data(Path(request["weights"]), workload)
    spec = training.TrainingSpec(workload.cell, request["execution"], request["recurrence"], data, request["seed"])
    forms = training.train(backend, spec, time.perf_counter_ns, _stage_sender(send))
    return {"is": "train", "forms": {name: dataclasses.asdict(trajectory) for name, trajectory in forms.items()}}


def _stage_sender(send: Send) -> Callable[[str, str], None]:
    """Return a function that tells the parent which arm is about to do what."""
    return lambda arm, what: send({"is": "stage", "arm": arm, "what": what})


def _write_texts(folder: Path, texts: dict[str, dict[str, str]]) -> None:
    """Write the programs' texts (arm -> file name -> text) into `folder`."""
    for arm, files in texts.items():
        for name, text in files.items():
            (folder / f"{arm}.{name}").write_text(text, encoding="utf-8")


def _call_overheads(backend: Backend, spec: timing.TimingSpec) -> dict[str, Any]:
    """Return what calling and what measuring costs, in nanoseconds per call.

    Must come after the timing, because it may trace and compile.
    """
    floors: dict[str, Any] = {"harness_ns": timing.harness_ns(time.perf_counter_ns)}
    try:
        return floors | {"null_ns": timing.null_ns(backend, spec, time.perf_counter_ns), "reason": ""}
    except Exception as error:  # whatever a framework raises is a record, not a crash
        return floors | {"null_ns": None, "reason": f"{type(error).__name__}: {timing.first_line(error)}"}


if __name__ == "__main__":
    main()
