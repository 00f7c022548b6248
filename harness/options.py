"""The flags that several commands have, and what their words mean. Imports no more than --help needs."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.refused import Refused

if TYPE_CHECKING:
    from harness.study import Study

Many = list[str] | None
Toml = Annotated[Path | None, typer.Argument(help="Study file (TOML); flags override it.")]
FrameworkF = Annotated[Many, typer.Option("--framework", help="tf, torch, jax; flags take a,b and may be repeated.")]
DeviceF = Annotated[Many, typer.Option("--device", help="cpu, gpu.")]
ThreadsF = Annotated[Many, typer.Option("--threads", help="Processor threads of a worker: numbers or 'all' cores.")]
ExecutionF = Annotated[
    Many, typer.Option("--execution", help="eager, graph, xla, inductor, inductor-batched, cudagraph.")
]
RecurrenceF = Annotated[Many, typer.Option("--recurrence", help="unrolled, scan, layer, given.")]
ProjectionF = Annotated[
    Many,
    typer.Option("--projection", help="none, in_loop, per_step, batched, bmm, vmap, library, time_distributed."),
]
PassF = Annotated[Many, typer.Option("--pass", help="forward, train.")]
PrecisionF = Annotated[Many, typer.Option("--precision", help="fp32, fp64, tf32, bf16, as_shipped.")]
WorkloadF = Annotated[
    Many,
    typer.Option(
        "--workload", help="book, vocab, stream, another that `list` names, or B=..,T=..,I=..,H=..,O=..[,cell=..]."
    ),
]
SweepF = Annotated[
    str | None,
    typer.Option("--sweep", help="Sweep sizes around this workload (as for --workload), and forecast the gaps there."),
]
SeedF = Annotated[int | None, typer.Option("--seed", help="Of weights, inputs and orders.")]
TimeoutF = Annotated[float | None, typer.Option("--timeout", help="Seconds of silence after which a worker is ended.")]
LimitF = Annotated[
    int | None,
    typer.Option("--unroll-limit", help="Unroll traced programs up to this many steps; 0 for none, -1 for any."),
]
WeightsF = Annotated[str | None, typer.Option("--weights", metavar="FILE", help="Weights to use (safetensors).")]
InputsF = Annotated[
    str | None, typer.Option("--inputs", metavar="FILE", help="Inputs to use (safetensors): x, target.")
]


def flags_of(
    framework: Many, device: Many, threads: Many, execution: Many, recurrence: Many,
    projection: Many, pass_: Many, precision: Many, workload: Many,
) -> dict[str, Any]:  # fmt: skip
    """The selection flags as fields of a study."""
    return {
        "frameworks": split(framework),
        "devices": split(device),
        "threads": [threads_of(t) for t in split(threads) or []] or None,
        "executions": split(execution),
        "recurrences": split(recurrence),
        "projections": split(projection),
        "passes": split(pass_),
        "precisions": split(precision),
        "workloads": [part for text in workload for part in ([text] if "=" in text else text.split(","))]
        if workload
        else None,
    }


def split(values: Many) -> Many:
    return [part.strip() for value in values for part in value.split(",")] if values else None


def threads_of(text: str) -> int | str:
    if text == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise Refused(f"--threads takes 'all' or a number of at least 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """A time written 900, 900s, 15m or 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not found or not any(found.groups()):
        raise Refused(f"--budget takes seconds, or a time such as 15m or 1h30m, not {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def limited(study: "Study", budget: str | None, unroll_limit: int | None) -> "Study":
    """The study with the two limits that flags can also lift."""
    lifted: dict[str, Any] = {}
    if budget is not None:
        lifted["budget_s"] = _seconds(budget) or None
    if unroll_limit is not None:
        if unroll_limit < -1:
            raise Refused(f"--unroll-limit takes a number of steps, 0 or -1, not {unroll_limit}")
        lifted["unroll_limit"] = None if unroll_limit == -1 else unroll_limit
    return study.model_copy(update=lifted)
