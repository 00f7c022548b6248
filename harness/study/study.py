"""The definition of a study: read from TOML and flags, validated before anything runs."""

import difflib
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.errors import UsageError
from harness.machine.allocator import SETTINGS
from impls.interface import (
    CELLS,
    CHUNKED,
    CHUNKED_LOSS,
    DEVICES,
    GATES,
    IN_LOOP_LOSS,
    LIBRARIES,
    LOSSES,
    PASSES,
    PRECISIONS,
    PROJECTIONS,
    RECURRENCES,
    USUAL_PASSES,
    Arm,
    family_of,
)

Size = Annotated[int, Field(ge=1, le=65536)]
HEADLINE_PROCESSES = 5  # for the question, in the loop that users would write, before the rest is measured
CALIBRATING = 2  # points of a sweep that predictions are fitted on
SWEPT_BYTES = 4 << 30  # of the arrays of one float32 call, at most, of a sweep's points
LARGEST_FILE = 1 << 20  # bytes of a study file
LONGEST_NAME = 64  # characters: names become parts of file names
NAMES = (
    f"a name is 1 to {LONGEST_NAME} of the letters a-z and A-Z, the digits, '_' and '-', and begins with a letter or "
    "a digit"
)


def validate_choice(kind: str, value: str, choices: Iterable[str]) -> str:
    """Return `value` when it is one of the choices; otherwise raise ValueError with the nearest of them."""
    choices = list(choices)
    if value in choices:
        return value
    matches = difflib.get_close_matches(value, choices, 1)
    hint = f"did you mean {matches[0]}?" if matches else f"there are {', '.join(choices)}"
    raise ValueError(f"unknown {kind} {value!r}: {hint}")


def _validate_name(name: str) -> str:
    """Return `name` when it follows the rule NAMES; otherwise raise ValueError with the rule."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or len(name) > LONGEST_NAME:
        excerpt = name if len(name) <= LONGEST_NAME else f"{name[:20]}..."
        raise ValueError(f"{excerpt!r} is no name: {NAMES}")
    return name


def slugify(text: str) -> str:
    """Make a name of any text: what a name cannot have becomes a dash. Returns "" where nothing is left."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).lstrip("-_")[:LONGEST_NAME].rstrip("-")


def first_duplicate(names: Iterable[str]) -> str | None:
    """Return the first name that occurs twice, or None.

    Names that differ only in case count as the same, because some file systems do not distinguish them.
    """
    spellings = list(names)
    counts = Counter(map(str.lower, spellings))
    return next((name for name in spellings if counts[name.lower()] > 1), None)


Name = Annotated[str, AfterValidator(_validate_name)]  # becomes a file name and a word of Markdown


class Workload(BaseModel):
    """Sizes, cell, loss and layers of one problem: batch B, steps T, inputs I, hidden H, outputs O."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    B: Size
    T: Size
    I: Size  # noqa: E741  the study's name for it
    H: Size
    O: Size  # noqa: E741
    cell: str = "rnn_tanh"
    loss: str = "squared"
    layers: Annotated[int, Field(ge=1, le=8)] = 1

    @field_validator("cell", "loss")
    @classmethod
    def _check_choices(cls, value: str, info: Any) -> str:
        return validate_choice(info.field_name, value, {"cell": CELLS, "loss": LOSSES}[info.field_name])

    @model_validator(mode="after")
    def _check_size(self) -> "Workload":
        if self.layers > 1 and self.I != self.O:
            raise ValueError(f"with layers={self.layers} I must be O: what a layer returns is the next one's input")
        return self

    @property
    def call_bytes(self) -> int:
        """Return the bytes of one float32 call's arrays: inputs, weights, gates, outputs, and as many gradients."""
        gates = self.T * self.B * len(GATES[self.cell]) * self.H
        arrays = sum(map(math.prod, self.shapes.values())) + self.layers * (gates + self.T * self.B * self.O)
        return 2 * 4 * arrays

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the weights and inputs, by name."""
        width = len(GATES[self.cell]) * self.H
        layers = (self.layers,) if self.layers > 1 else ()
        return {
            "w_in": (*layers, self.I, width),
            "w_rec": (*layers, self.H, width),
            "b_rec": (*layers, width),
            "w_out": (*layers, self.H, self.O),
            "b_out": (*layers, self.O),
            "x": (self.T, self.B, self.I),
            "target": (self.T, self.B) if self.loss == "cross_entropy" else (self.T, self.B, self.O),
        }

    @property
    def products(self) -> tuple[tuple[int, int, int], ...]:
        """Return rows, inner and columns of three products: a step's recurrent one, and projecting one step and all."""
        width = len(GATES[self.cell]) * self.H
        return (self.B, self.H, width), (self.B, self.H, self.O), (self.T * self.B, self.H, self.O)


NAMED = {
    w.name: w
    for w in (
        Workload(name="book", B=50, T=20, I=1, H=100, O=1, cell="rnn_relu"),
        Workload(name="vocab", B=32, T=64, I=64, H=256, O=1000, cell="rnn_tanh"),
        Workload(name="stream", B=1, T=128, I=64, H=128, O=64, cell="rnn_tanh"),
    )
}

LM = Workload(name="lm", B=32, T=128, I=256, H=512, O=8000, cell="lstm", loss="cross_entropy")  # a language model


def third_of_memory(memory_bytes: int) -> Workload:
    """Return a language model's workload whose logits [T, B, O] take a third of a memory, or a little less."""
    steps, outputs = 512, 32_000
    batch = min(65536, max(1, memory_bytes // 3 // (4 * steps * outputs)))
    return Workload(name="lm-third", B=batch, T=steps, I=128, H=128, O=outputs, cell="lstm", loss="cross_entropy")


THIRD = third_of_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
WIDE = 10_000  # outputs: a vocabulary
DEEPBENCH = {  # the shapes of Baidu's DeepBench for recurrent layers (2016), with a wide output
    w.name: w
    for w in (
        *(
            Workload(name=f"deepbench-rnn-{hidden}-{batch}", B=batch, T=50, I=hidden, H=hidden, O=WIDE, cell="rnn_relu")
            for hidden in (1760, 2560)
            for batch in (16, 32, 64, 128)
        ),
        *(
            Workload(name=f"deepbench-lstm-{hidden}-{batch}", B=batch, T=25, I=hidden, H=hidden, O=WIDE, cell="lstm")
            for hidden in (512, 1024, 2048, 4096)
            for batch in (16, 32, 64, 128)
        ),
    )
}
KNOWN = NAMED | {LM.name: LM, THIRD.name: THIRD} | DEEPBENCH

LOOPS = ("unrolled", "scan")  # recurrences whose loop is ours, so that something can be projected inside it
BETWEEN = ("in_loop", "per_step", "batched")  # what a study of chunks compares them with
CUT = {"chunked": CHUNKED, "chunked_loss": CHUNKED_LOSS}  # what chunks may cut, as a projection -> its family
AROUND_THE_LOOP = ("none", "in_loop", "per_step", "bmm", "batched")
USUAL = {  # the arms of a study that selects neither recurrences nor projections: each form where it is informative
    "unrolled": (*AROUND_THE_LOOP, "hoisted"),
    "scan": (*AROUND_THE_LOOP, "hoisted"),
    "layer": ("none", "in_loop", "batched", "library"),
    "given": ("per_step", "batched", "bmm", "vmap", "library", "time_distributed"),
}


SWEPT = ("none", "in_loop", "batched")  # projections of a sweep
FACTORS = {  # multiply one size of a sweep's centre at a time; for each size, the most informative factor first
    "T": (1 / 4, 4, 1 / 2, 2),
    "B": (1 / 50, 5, 1 / 5),
    "H": (4, 1 / 4),
    "O": (100, 1000, 10),
}


def points_around(centre: Workload) -> list[Workload]:
    """Return the points of a sweep, with those that predictions are fitted on (the first CALIBRATING) at the front.

    The points are the centre under a second name, the centre with fewer steps, and the centre with one other size
    changed at a time. Sizes that make no valid workload, or one that is too large, are left out.
    """
    prefix = centre.name[: LONGEST_NAME - len("-O65536")]
    points = {"centre": centre.model_copy(update={"name": f"{prefix}-centre"})}
    for position in range(max(map(len, FACTORS.values()))):
        for size, factors in FACTORS.items():
            value = max(1, round(getattr(centre, size) * factors[position])) if position < len(factors) else 0
            with suppress(ValidationError):
                if value != getattr(centre, size):
                    sizes = centre.model_dump() | {size: value, "name": f"{prefix}-{size}{value}"}
                    point = Workload(**sizes)
                    if point.call_bytes <= SWEPT_BYTES:
                        points.setdefault(f"{size}{value}", point)
    return sorted(
        points.values(),
        key=lambda point: point is not points["centre"] and point is not _point_with_other_steps(points),
    )


def _point_with_other_steps(points: dict[str, Workload]) -> Workload | None:
    """Return the first point whose number of steps differs from the centre's, or None."""
    return next((point for point in points.values() if point.T != points["centre"].T), None)


class Study(BaseModel):
    """The settings of a study.

    A selection of None means everything that this machine has. The exceptions are recurrences and projections: with
    neither selected, the arms are those of USUAL; with one of the two selected, the other has all its values.

    `executions`: each is one of every framework that has it, or of one: `eager`, `jax:xla`.
    `chunks`: into how many chunks of time the projection, and the loss if CUT names it, are cut after a loop of ours,
    beside BETWEEN or the projections selected; `T` is one chunk for each step.
    `sweep`: the workload around which sizes are swept, in the loop that users would write in each execution, with the
    first thread count; None for no sweep.
    `unroll_limit`: traced programs are unrolled up to this many steps (None: any number).
    `budget_s`: after this many seconds no further block is started (None: no limit).
    `block_s`: how many seconds a block's rounds should take. There are at least `rounds_min` and at most `rounds`.
    `compile_first`: programs are compiled before anything is timed, several at once, and later workers read the
    compilers' caches. First calls are then no results, and no peak rates are measured. For a machine with many cores
    that is available for minutes.
    `peaks`: whether the peak memory of every arm is measured, in processes that measure nothing else.
    `memory`: how workers take memory from the kernel (harness.machine.allocator).
    `library`: whether frameworks multiply with the libraries they are shipped with (impls.interface.LIBRARIES).
    `processes`: worker processes of a cell. With None there is first a pilot of `pilot` processes, or a few more for
    the question (harness.run.schedule). The question's arms then get as many processes, at most `processes_max`, as
    bring the 95% interval of each of their gaps to ±`target`.
    `shard`: i/n where only the i-th n-th of the processes is measured, to be merged with the others.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    MAY_BE_EMPTY: ClassVar[frozenset[str]] = frozenset()  # fields

    label: Literal["default", "quick", "rigorous"] = "default"
    frameworks: list[str] | None = None
    devices: list[str] | None = None
    threads: list[Annotated[int, Field(ge=1, le=1024)] | Literal["all"]] = [1, "all"]
    executions: list[str] | None = None
    recurrences: list[str] | None = None
    projections: list[str] | None = None
    chunks: list[Annotated[int, Field(ge=1, le=65536)] | Literal["T"]] | None = None
    passes: list[str] = list(USUAL_PASSES)
    precisions: list[str] = ["fp32"]
    memory: str = "held"
    library: str = "as_shipped"
    compile_first: bool = False
    peaks: bool = False
    workloads: list[Workload] = list(NAMED.values())
    sweep: Workload | None = None
    processes: Annotated[int, Field(ge=1, le=1000)] | None = None
    processes_max: Annotated[int, Field(ge=2, le=1000)] = 30
    pilot: Annotated[int, Field(ge=2, le=1000)] = 3
    target: Annotated[float, Field(gt=0, lt=1)] = 0.01
    rounds: Annotated[int, Field(ge=1, le=10000)] = 100
    rounds_min: Annotated[int, Field(ge=1, le=10000)] = 5
    block_s: Annotated[float, Field(gt=0, le=3600)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 20260101
    timeout_s: Annotated[float, Field(gt=0, le=86400)] = 600.0
    budget_s: Annotated[float, Field(gt=0)] | None = 1260.0  # seconds; inf is None
    unroll_limit: Annotated[int, Field(ge=0)] | None = 32
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.02
    weights: str | None = None
    inputs: str | None = None
    shard: str | None = None

    @field_validator("recurrences", "passes", "precisions", "devices")
    @classmethod
    def _check_choices(cls, values: list[str] | None, info: Any) -> list[str] | None:
        return (
            None
            if values is None
            else [validate_choice(info.field_name[:-1], v, WORDS[info.field_name]) for v in values]
        )

    @field_validator("projections")
    @classmethod
    def _check_projections(cls, values: list[str] | None) -> list[str] | None:
        for value in values or ():
            if value not in CUT and family_of(value) not in CUT.values():
                validate_choice("projection", value, (*PROJECTIONS, IN_LOOP_LOSS, "chunked_<k>", "chunked_loss_<k>"))
        return values

    @field_validator("memory")
    @classmethod
    def _check_memory(cls, value: str) -> str:
        return validate_choice("memory", value, SETTINGS)

    @field_validator("library")
    @classmethod
    def _check_library(cls, value: str) -> str:
        return validate_choice("library", value, LIBRARIES)

    @field_validator("workloads", mode="before")
    @classmethod
    def _parse_workloads(cls, values: Any) -> Any:
        return [parse_workload(v) if isinstance(v, str) else v for v in values] if isinstance(values, list) else values

    @field_validator("sweep", mode="before")
    @classmethod
    def _parse_sweep(cls, value: Any) -> Any:
        if isinstance(value, str):
            return None if value == "none" else parse_workload(value)
        return value

    @field_validator("budget_s")
    @classmethod
    def _normalize_budget(cls, value: float | None) -> float | None:
        return None if value == math.inf else value

    @model_validator(mode="after")
    def _check_shard(self) -> "Study":
        if self.shard is None:
            return self
        numbers = re.fullmatch("([0-9]{1,4})/([0-9]{1,4})", self.shard)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise ValueError(f"shard takes i/n, such as 2/8, with i from 1 to n, not {self.shard!r}")
        if self.processes is None:
            raise ValueError("shard takes a study of a known number of processes: give --processes")
        if int(numbers[2]) > self.processes:
            raise ValueError(f"shard {self.shard} of {self.processes} processes: some shards would have none")
        return self

    @model_validator(mode="after")
    def _check_consistency(self) -> "Study":
        for name, values in self:
            if isinstance(values, list) and len({str(v) for v in values}) != len(values):
                raise ValueError(f"{name} names something twice")
            if values == [] and name not in self.MAY_BE_EMPTY:
                raise ValueError(f"{name} is empty")
        if duplicate := first_duplicate(w.name for w in self.workloads):
            raise ValueError(f"workloads: two have the name {duplicate} (case tells no names apart)")
        if duplicate := first_duplicate(w.name for w in [*self.workloads, *self.swept]):
            raise ValueError(f"workload {duplicate} has the name of a point of the sweep")
        if (uncut := [name for name in self.projections or () if name in CUT]) and not self.chunks:
            raise ValueError(f"projections: {uncut[0]} needs --chunks, or its number of chunks: {uncut[0]}_4")
        return self

    def selects(self, framework: str, execution: str) -> bool:
        """Return whether the study's executions include that one of a framework."""
        return not self.executions or not {execution, f"{framework}:{execution}"}.isdisjoint(self.executions)

    @property
    def swept(self) -> list[Workload]:
        """Return the points of the sweep, with those that predictions are fitted on at the front."""
        return points_around(self.sweep) if self.sweep else []

    @property
    def headline_processes(self) -> int:
        """Return in how many processes the question is measured before the rest, in the loop that users would write."""
        return max(self.pilot, min(HEADLINE_PROCESSES, self.processes_max))

    @property
    def shard_numbers(self) -> tuple[int, int]:
        """Return the number of the shard, from 1, and of how many; 1 and 1 where all processes are measured."""
        first, _, count = (self.shard or "1/1").partition("/")
        return int(first), int(count)

    @property
    def own_processes(self) -> int:
        """Return how many processes of each cell are measured here, of a study that says how many there are in all."""
        number, count = self.shard_numbers
        return len(range(number - 1, self.processes or 0, count))

    @property
    def arms(self) -> list[Arm]:
        """Return the arms to study, including those that some executions or devices lack."""
        if self.recurrences is None and self.projections is None and self.chunks is None:
            return [Arm(recurrence, projection) for recurrence, usual in USUAL.items() for projection in usual]
        recurrences: Sequence[str] = self.recurrences or (LOOPS if self.chunks else tuple(USUAL))
        projections = self.projections or [*(BETWEEN if self.chunks else PROJECTIONS)]
        if self.chunks:
            cut = [projection for projection in projections if projection in CUT] or [*CUT][:1]
            chunked = [f"{projection}_{count}" for projection in cut for count in self.chunks]
            projections = list(dict.fromkeys([name for name in projections if name not in CUT] + chunked))
        return [Arm(recurrence, projection) for recurrence in recurrences for projection in projections]


WORDS = {
    "recurrences": RECURRENCES,
    "passes": PASSES,
    "precisions": PRECISIONS,
    "devices": DEVICES,
}
SCALES: dict[str, dict[str, Any]] = {
    "default": {"sweep": "book", "peaks": True},
    "quick": {"processes": 1, "rounds": 10, "rounds_min": 3, "block_s": 0.2, "budget_s": 205.0},
    "rigorous": {
        "pilot": 5,
        "processes_max": 100,
        "rounds": 300,
        "rounds_min": 10,
        "block_s": 4.0,
        "budget_s": None,
        "unroll_limit": None,
        "sweep": "book",
        "peaks": True,
    },
}
WORDED = ("cell", "loss")  # what a workload's text says in a word
NARROWED = ("workloads", "recurrences", "projections", "chunks")  # selecting any of these turns off the preset's sweep


def parse_workload(text: str) -> Workload:
    """Return the workload that a text describes.

    The text is a name, or sizes written B=..,T=..,I=..,H=..,O=..[,cell=..][,loss=..][,layers=..]; by default the cell
    is rnn_tanh, the loss squared, and there is one layer. Raises ValueError.
    """
    if "=" not in text:
        return KNOWN[validate_choice("workload", text, KNOWN)]
    pairs = [pair.partition("=") for pair in text.split(",")]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if len(values) != len(pairs):
        raise ValueError(f"{text!r} gives a size twice")
    sizes: dict[str, Any] = {}
    for key, value in values.items():
        validate_choice("size", key, [*"BTIHO", *WORDED, "layers"])
        if key not in WORDED and not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"{key}={value} is not a whole number of at least 1")
        sizes[key] = value if key in WORDED else int(value)
    if missing := [size for size in "BTIHO" if size not in sizes]:
        raise ValueError(f"{text!r} lacks {', '.join(missing)}")
    for key in (*WORDED, "layers"):
        sizes.setdefault(key, Workload.model_fields[key].default)
    return Workload(name=_name_from_sizes(sizes), **sizes)


def _name_from_sizes(sizes: dict[str, Any]) -> str:
    """Return the name of a workload that has no name of its own."""
    words = [sizes["cell"], *([sizes["loss"]] if sizes["loss"] != "squared" else [])]
    words += [f"{sizes['layers']}layers"] if sizes["layers"] > 1 else []
    return "-".join([*(f"{size}{sizes[size]}" for size in "BTIHO"), *words])


def load_study(
    path: Path | None, preset: str | None, flags: dict[str, Any], defaults: dict[str, Any] | None = None
) -> Study:
    """Return the study that a preset, a command's defaults, a TOML file and flags define.

    Each of them overrides the ones named before it.

    Raises UsageError with one sentence on an unreadable file, an unknown key, an impossible value, an empty text, or a
    name that says other sizes than the workload's.
    """
    file_settings = _read_toml(path) if path else {}
    label = file_settings.pop("label", "default")
    preset = preset or label
    if not isinstance(label, str) or label not in SCALES or preset not in SCALES:
        raise UsageError(f"{path}: label must be one of {', '.join(SCALES)}")
    settings = file_settings | {key: value for key, value in flags.items() if value is not None}
    if blank := next((key for key, value in settings.items() if _is_blank(value)), None):
        raise UsageError(f"{blank} is given with nothing in it: leave it out, or say which")
    preset_settings = SCALES[preset] | ({"sweep": None} if any(name in settings for name in NARROWED) else {})
    try:
        study = Study.model_validate({"label": preset} | preset_settings | (defaults or {}) | settings)
    except ValidationError as error:
        raise UsageError(error_message(error, path)) from None
    for candidate in (*study.workloads, *([study.sweep] if study.sweep else [])):
        if reason := _name_conflict(candidate):
            raise UsageError(f"{path}: {reason}" if path else reason)
    return study


def _is_blank(value: Any) -> bool:
    """Return whether a value, or any item of a list, is a text without any visible character."""
    items = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and not item.strip() for item in items)


def _name_conflict(candidate: Workload) -> str | None:
    """Return why a workload's name belongs to a different workload, or None.

    The name of a known workload is reserved for its own sizes (`book` has inputs of its own), and so is a name that is
    made of sizes.
    """
    names = {name.lower(): name for name in KNOWN}
    owner = KNOWN.get(names.get(candidate.name.lower(), ""))
    if owner and owner != candidate:
        sizes = ",".join(f"{key}={getattr(owner, key)}" for key in (*"BTIHO", *WORDED, "layers"))
        return f"the name {candidate.name} is kept for {sizes}: give this workload another"
    size_name = _name_from_sizes(candidate.model_dump())
    if re.fullmatch(r"(?i)B\d+-T\d+-I\d+-H\d+-O\d+(-[0-9]?[a-z_]+)+", candidate.name) and candidate.name != size_name:
        return f"the name {candidate.name} says other sizes than the workload's: give it another, or {size_name}"
    return None


def _read_toml(path: Path) -> dict[str, Any]:
    """Return the contents of a TOML file; a byte order mark at its start is ignored. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UsageError(f"{path} is no study file: it has more than {LARGEST_FILE:,} bytes")
        return tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not TOML, which is UTF-8 text: {error}") from None
    except RecursionError:
        raise UsageError(f"{path} is not TOML that can be read: its values are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or Python's error on a number with thousands of digits
        raise UsageError(f"{path} is not TOML: {error}") from None


def error_message(error: ValueError, path: Path | None = None) -> str:
    """Return what is wrong with an input, as a sentence that begins with the place of the error."""
    prefix = f"{path}: " if path else ""
    if not isinstance(error, ValidationError):
        return f"{prefix}{error}"
    detail = error.errors(include_url=False)[0]
    field, *inner = detail["loc"] or ("",)
    place = ".".join([str(field), *(part for part in inner if isinstance(part, str) and part in Workload.model_fields)])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in detail["loc"] if not isinstance(part, int))
        keys = Workload.model_fields if inner else Study.model_fields
        message = f"unknown key; the keys are {', '.join(keys)}"
    elif field == "threads" and inner:
        message = "takes 'all' and whole numbers from 1 to 1024"
    return f"{prefix}{place}: {message}" if place else f"{prefix}{message}"
