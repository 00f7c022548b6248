"""The flags that several commands have, and what their words mean. Imports no more than --help needs."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.study.study import Study

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
MemoryF = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="held (what a worker has taken it keeps), default (as glibc does), tcmalloc or jemalloc where installed.",
    ),
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
        "frameworks": split("--framework", framework),
        "devices": split("--device", device),
        "threads": [threads_of(t) for t in split("--threads", threads) or []] or None,
        "executions": split("--execution", execution),
        "recurrences": split("--recurrence", recurrence),
        "projections": split("--projection", projection),
        "passes": split("--pass", pass_),
        "precisions": split("--precision", precision),
        "workloads": split("--workload", workload),
    }


def split(flag: str, values: Many) -> Many:
    """The words of a flag, parted by commas, but for a workload's sizes. Raises UsageError where one is missing."""
    if not values:
        return None
    parts = [part.strip() for value in values for part in ([value] if "=" in value else value.split(","))]
    if "" in parts:
        given = next(value for value in values if "" in map(str.strip, value.split(",")))
        raise UsageError(f"{flag} {given!r} names nothing {'beside a comma' if ',' in given else 'at all'}")
    return parts


def refuse_blanks(arguments: Sequence[str]) -> None:
    """Raise UsageError where an argument says nothing, as "" and --weights= do: it is there, so no default is meant."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = argument.partition("=")
        if not argument.strip():
            whose = f" of {before}" if before.startswith("--") and "=" not in before else ""
            raise UsageError(f"an argument{whose} is given with nothing in it: leave it out, or say which")
        if equals and re.fullmatch("--[a-z-]+", flag) and not value.strip():
            raise UsageError(f"{flag} is given with nothing after '=': leave it out, or say which")


def threads_of(text: str) -> int | str:
    if text == "all":
        return text
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"--threads takes 'all' or a number of at least 1, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    """A time written 900, 900s, 15m or 1h30m."""
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not found or not any(found.groups()):
        raise UsageError(f"--budget takes seconds, or a time such as 15m or 1h30m, not {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return 3600 * hours + 60 * minutes + seconds


def limited(study: "Study", budget: str | None, unroll_limit: int | None) -> "Study":
    """The study with the two limits that flags can also lift."""
    lifted: dict[str, Any] = {}
    if budget is not None:
        seconds = _seconds(budget)
        lifted["budget_s"] = seconds if 0 < seconds < math.inf else None
    if unroll_limit is not None:
        if unroll_limit < -1:
            raise UsageError(f"--unroll-limit takes a number of steps, 0 or -1, not {unroll_limit}")
        lifted["unroll_limit"] = None if unroll_limit == -1 else unroll_limit
    return study.model_copy(update=lifted)
