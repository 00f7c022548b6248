"""The flags that several commands share, and how their values are parsed. Imports no more than --help needs."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.study.study import Study

S = TypeVar("S", bound="Study")
Values = list[str] | None


def complete(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Return what completes a flag's value in a shell: the last of several with commas between them."""

    def completions(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{value}" for value in values() if value.startswith(last)]

    return completions


def _frameworks() -> list[str]:
    import impls

    return impls.names()


def _words(name: str) -> Callable[[], Iterable[str]]:
    """Return what returns the words of one of the contract's tuples, such as PASSES."""

    def words() -> Iterable[str]:
        from impls import interface

        return getattr(interface, name)

    return words


def _projections() -> list[str]:
    from impls.interface import FAMILIES

    return [family.removesuffix("_k") for family in FAMILIES]  # --chunks says into how many


def _workloads() -> Iterable[str]:
    from harness.study.study import KNOWN

    return KNOWN


StudyFile = Annotated[Path | None, typer.Argument(help="Study file (TOML); flags override it.")]
FrameworkFlag = Annotated[
    Values,
    typer.Option(
        "--framework", autocompletion=complete(_frameworks), help="tf, torch, jax; flags take a,b and may be repeated."
    ),
]
DeviceFlag = Annotated[Values, typer.Option("--device", autocompletion=complete(_words("DEVICES")), help="cpu, gpu.")]
ThreadsFlag = Annotated[
    Values, typer.Option("--threads", help="Processor threads of a worker: numbers or 'all' cores.")
]
ExecutionFlag = Annotated[
    Values,
    typer.Option(
        "--execution", help="eager, graph, xla, inductor, inductor-batched, cudagraph; or of one framework: jax:xla."
    ),
]
RecurrenceFlag = Annotated[
    Values,
    typer.Option(
        "--recurrence", autocompletion=complete(_words("RECURRENCES")), help="unrolled, scan, layer, given, modules."
    ),
]
ProjectionFlag = Annotated[
    Values,
    typer.Option(
        "--projection",
        autocompletion=complete(_projections),
        help="none, in_loop, per_step, batched, bmm, vmap, library, time_distributed, hoisted, chunked_<k>, "
        "in_loop_loss, chunked_loss_<k> (the last two have the loss inside).",
    ),
]
ChunksFlag = Annotated[
    Values,
    typer.Option(
        "--chunks",
        help="Cut the projection after the loop into so many chunks of time: numbers, or T for every step. "
        "--projection chunked_loss cuts the loss with it.",
    ),
]
PassFlag = Annotated[
    Values, typer.Option("--pass", autocompletion=complete(_words("PASSES")), help="forward, loss, train.")
]
PrecisionFlag = Annotated[
    Values,
    typer.Option(
        "--precision", autocompletion=complete(_words("PRECISIONS")), help="fp32, fp64, tf32, bf16, as_shipped."
    ),
]
WorkloadFlag = Annotated[
    Values,
    typer.Option(
        "--workload",
        autocompletion=complete(_workloads),
        help="book, vocab, stream, another that `list` names, or "
        "B=..,T=..,I=..,H=..,O=..[,cell=..][,loss=..][,layers=..].",
    ),
]
SweepFlag = Annotated[
    str | None,
    typer.Option(
        "--sweep",
        help="Sweep sizes around this workload (as for --workload), and predict their gaps; 'none' for no sweep.",
    ),
]
MemoryFlag = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="held (workers keep the memory they were given), default (glibc's), tcmalloc or jemalloc where installed.",
    ),
]
LibraryFlag = Annotated[
    str | None,
    typer.Option(
        "--library",
        autocompletion=complete(_words("LIBRARIES")),
        help="as_shipped, or plain (no oneDNN in TensorFlow, no YNNPACK in XLA; torch has no such setting).",
    ),
]
CompileFirstFlag = Annotated[
    bool | None,
    typer.Option("--compile-first", help="Compile all programs first, several at once; first calls are no results."),
]
PeaksFlag = Annotated[
    bool | None,
    typer.Option(
        "--peaks/--no-peaks",
        help="Measure the peak memory of every arm, in processes of their own (the default, but for --quick).",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for a program.")]
ShardFlag = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Measure the I-th N-th of the processes alone, to be merged."),
]
VenvFlag = Annotated[
    list[Path] | None,
    typer.Option(
        "--venv",
        metavar="DIR",
        help="Measure with the frameworks of this virtual environment and of others in turn, and compare them.",
    ),
]
SeedFlag = Annotated[int | None, typer.Option("--seed", help="Seed of weights, inputs and orders.")]
TimeoutFlag = Annotated[
    float | None, typer.Option("--timeout", help="Seconds of silence after which a worker is ended.")
]
LimitFlag = Annotated[
    int | None,
    typer.Option("--unroll-limit", help="Unroll traced programs up to this many steps; 0 for none, -1 for any."),
]
WeightsFlag = Annotated[str | None, typer.Option("--weights", metavar="FILE", help="Weights to use (safetensors).")]
InputsFlag = Annotated[
    str | None, typer.Option("--inputs", metavar="FILE", help="Inputs to use (safetensors): x, target.")
]
NoHtmlFlag = Annotated[
    bool, typer.Option("--no-html", help="Leave out report.html, the report in one file, and the figures as SVG.")
]


@dataclass(frozen=True)
class Selection:
    """The flags that select what is studied, as given: lists of words, or of words with commas. None selects all."""

    framework: Values = None
    device: Values = None
    threads: Values = None
    execution: Values = None
    recurrence: Values = None
    projection: Values = None
    pass_: Values = None
    precision: Values = None
    workload: Values = None
    chunks: Values = None

    def fields(self) -> dict[str, Any]:
        """Return the flags as fields of a study. Raises UsageError where a value is malformed."""
        return {
            "frameworks": split_values("--framework", self.framework),
            "devices": split_values("--device", self.device),
            "threads": [parse_threads(t) for t in split_values("--threads", self.threads) or []] or None,
            "executions": split_values("--execution", self.execution),
            "recurrences": split_values("--recurrence", self.recurrence),
            "projections": split_values("--projection", self.projection),
            "chunks": [parse_chunks(c) for c in split_values("--chunks", self.chunks) or []] or None,
            "passes": split_values("--pass", self.pass_),
            "precisions": split_values("--precision", self.precision),
            "workloads": split_values("--workload", self.workload),
        }


def split_values(flag: str, values: Values) -> Values:
    """Split a flag's values at commas, except a workload's sizes. Raises UsageError where a word is empty."""
    if not values:
        return None
    words = [word.strip() for value in values for word in ([value] if "=" in value else value.split(","))]
    if "" in words:
        faulty = next(value for value in values if "" in map(str.strip, value.split(",")))
        raise UsageError(f"{flag} {faulty!r} names nothing {'beside a comma' if ',' in faulty else 'at all'}")
    return words


def refuse_blanks(arguments: Sequence[str]) -> None:
    """Raise UsageError where an argument is empty, as "" and --weights= are: an empty value asks for no default."""
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        flag, equals, value = argument.partition("=")
        if not argument.strip():
            owner = f" of {previous}" if previous.startswith("--") and "=" not in previous else ""
            raise UsageError(f"an argument{owner} is given with nothing in it: leave it out, or say which")
        if equals and re.fullmatch("--[a-z-]+", flag) and not value.strip():
            raise UsageError(f"{flag} is given with nothing after '=': leave it out, or say which")


def parse_threads(text: str) -> int | str:
    """Return a thread count, or the word `all`. Raises UsageError."""
    if text == "all":
        return text
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"--threads takes 'all' or a number of at least 1, not {text!r}")
    return int(text)


def parse_percent(flag: str, text: str) -> float:
    """Return a fraction from a percentage such as 5% or 2.5%. Raises UsageError."""
    match = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]{1,6})?)\s*%?", text.strip())
    if not match:
        raise UsageError(f"{flag} takes a percentage such as 5%, not {text!r}")
    return float(match[1]) / 100


def parse_chunks(text: str) -> int | str:
    """Return a number of chunks, or the letter T for as many as there are steps. Raises UsageError."""
    if text == "T":
        return text
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) < 1:
        raise UsageError(f"--chunks takes 'T' or a number of at least 1, not {text!r}")
    return int(text)


def _parse_seconds(text: str) -> float:
    """Return the seconds of a time written 900, 900s, 15m or 1h30m. Raises UsageError."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if not match or not any(match.groups()):
        raise UsageError(f"--budget takes seconds, or a time such as 15m or 1h30m, not {text!r}")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def apply_limits(study: S, budget: str | None, unroll_limit: int | None) -> S:
    """Return the study with a budget and an unroll limit from flags, which can also lift either. Raises UsageError."""
    limits: dict[str, Any] = {}
    if budget is not None:
        seconds = _parse_seconds(budget)
        limits["budget_s"] = seconds if 0 < seconds < math.inf else None
    if unroll_limit is not None:
        if unroll_limit < -1:
            raise UsageError(f"--unroll-limit takes a number of steps, 0 or -1, not {unroll_limit}")
        limits["unroll_limit"] = None if unroll_limit == -1 else unroll_limit
    return study.model_copy(update=limits)
