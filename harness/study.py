"""What is to be studied: read from TOML and flags, validated before anything runs."""

import difflib
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness.memory import SETTINGS
from harness.refused import Refused
from impls.interface import CELLS, DEVICES, GATES, PASSES, PRECISIONS, PROJECTIONS, RECURRENCES, Arm

Size = Annotated[int, Field(ge=1, le=65536)]
HEADLINE_PROCESSES = 5  # of the question, in the loop that one would write, before what else there is
CALIBRATING = 2  # points of a sweep that forecasts are made from
LARGEST_BYTES = 4 << 30  # of the arrays of one float32 call
LARGEST_FILE = 1 << 20  # bytes of a study file
LONGEST_NAME = 64  # characters: names become parts of file names
NAMES = (
    f"a name is 1 to {LONGEST_NAME} of the letters a-z and A-Z, the digits, '_' and '-', and begins with a letter or "
    "a digit"
)


def nearest(what: str, value: str, known: Iterable[str]) -> str:
    """`value`, when it is known; else ValueError with the nearest match."""
    known = list(known)
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"unknown {what} {value!r}: {hint}")


def _checked_name(name: str) -> str:
    """Return `name` where it keeps the rule of names; else raise ValueError with the rule."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or len(name) > LONGEST_NAME:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:20]}..."
        raise ValueError(f"{shown!r} is no name: {NAMES}")
    return name


def plain(text: str) -> str:
    """Make a name of any text: what a name cannot have becomes a dash. Returns "" where nothing is left."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).lstrip("-_")[:LONGEST_NAME].rstrip("-")


def repeated(names: Iterable[str]) -> str | None:
    """The first name that two have, or None. Case tells no names apart, as it tells no files apart on some systems."""
    given = list(names)
    counts = Counter(map(str.lower, given))
    return next((name for name in given if counts[name.lower()] > 1), None)


Name = Annotated[str, AfterValidator(_checked_name)]  # becomes a file name and a word of Markdown


class Workload(BaseModel):
    """Sizes and cell of one problem: batch B, steps T, inputs I, hidden H, outputs O."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name
    B: Size
    T: Size
    I: Size  # noqa: E741  the word of the study
    H: Size
    O: Size  # noqa: E741
    cell: str = "rnn_tanh"

    @field_validator("cell")
    @classmethod
    def _known(cls, cell: str) -> str:
        return nearest("cell", cell, CELLS)

    @model_validator(mode="after")
    def _fits(self) -> "Workload":
        states = self.T * self.B * (self.I + 4 * len(GATES[self.cell]) * self.H + 3 * self.O)
        weights = len(GATES[self.cell]) * self.H * (self.I + self.H) + self.H * self.O
        if 4 * (states + 2 * weights) > LARGEST_BYTES:
            raise ValueError("its arrays would take more than 4 GiB")
        return self

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the weights and inputs, by name."""
        wide = len(GATES[self.cell]) * self.H
        return {
            "w_in": (self.I, wide),
            "w_rec": (self.H, wide),
            "b_rec": (wide,),
            "w_out": (self.H, self.O),
            "b_out": (self.O,),
            "x": (self.T, self.B, self.I),
            "target": (self.T, self.B, self.O),
        }


NAMED = {
    w.name: w
    for w in (
        Workload(name="book", B=50, T=20, I=1, H=100, O=1, cell="rnn_relu"),
        Workload(name="vocab", B=32, T=64, I=64, H=256, O=1000, cell="rnn_tanh"),
        Workload(name="stream", B=1, T=128, I=64, H=128, O=64, cell="rnn_tanh"),
    )
}

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
KNOWN = NAMED | DEEPBENCH

AROUND_THE_LOOP = ("none", "in_loop", "per_step", "batched")
USUAL = {  # what a study has that selects no recurrence and no projection: each form where it tells something
    "unrolled": AROUND_THE_LOOP,
    "scan": AROUND_THE_LOOP,
    "layer": ("none", "in_loop", "batched", "library"),
    "given": ("per_step", "batched", "bmm", "vmap", "library", "time_distributed"),
}


SWEPT = ("none", "in_loop", "batched")  # projections of a sweep
FACTORS = {  # what each size of a sweep's centre is multiplied by, one size at a time, the most telling first
    "T": (1 / 4, 4, 1 / 2, 2),
    "B": (1 / 50, 5, 1 / 5),
    "H": (4, 1 / 4),
    "O": (100, 1000, 10),
}


def around(centre: Workload) -> list[Workload]:
    """The points of a sweep: the centre under a second name, with fewer steps, and with one other size at a time.

    Forecasts are made from the first CALIBRATING of them. What is no workload, or too large for one, is left out.
    """
    start = centre.name[: LONGEST_NAME - len("-O65536")]
    made = {"centre": centre.model_copy(update={"name": f"{start}-centre"})}
    for rank in range(max(map(len, FACTORS.values()))):
        for size, factors in FACTORS.items():
            value = max(1, round(getattr(centre, size) * factors[rank])) if rank < len(factors) else 0
            with suppress(ValidationError):
                if value != getattr(centre, size):
                    sizes = centre.model_dump() | {size: value, "name": f"{start}-{size}{value}"}
                    made.setdefault(f"{size}{value}", Workload(**sizes))
    return sorted(made.values(), key=lambda point: point is not made["centre"] and point is not _other_steps(made))


def _other_steps(points: dict[str, Workload]) -> Workload | None:
    """The first point whose steps are not the centre's."""
    return next((point for point in points.values() if point.T != points["centre"].T), None)


class Study(BaseModel):
    """A study. A selection of None means everything there is on this machine, but for recurrences and projections:
    with neither selected the arms are the usual ones, and with one of them selected all there are of the other.

    `sweep`: the workload around which sizes are swept, in the loop that one would write in each execution, with the
    first of the thread counts; None for no sweep.
    `unroll_limit`: traced programs are unrolled up to this many steps (None: any number).
    `budget_s`: after this long no further block is started (None: no limit).
    `block_s`: how long a block's rounds should take, at least `rounds_min` and at most `rounds` of them.
    `memory`: how workers take it from the kernel (harness.memory).
    `processes`: worker processes of a cell. None: a pilot of `pilot` of them, or a few more where the question is
    (harness.course), and then of the question's arms as many as bring the 95% interval of each of their gaps to
    ±`target`, at most `processes_max`.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    label: Literal["default", "quick", "rigorous"] = "default"
    frameworks: list[str] | None = None
    devices: list[str] | None = None
    threads: list[Annotated[int, Field(ge=1, le=1024)] | Literal["all"]] = [1, "all"]
    executions: list[str] | None = None
    recurrences: list[str] | None = None
    projections: list[str] | None = None
    passes: list[str] = list(PASSES)
    precisions: list[str] = ["fp32"]
    memory: str = "held"
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

    @field_validator("recurrences", "projections", "passes", "precisions", "devices")
    @classmethod
    def _known(cls, values: list[str] | None, info: Any) -> list[str] | None:
        return None if values is None else [nearest(info.field_name[:-1], v, WORDS[info.field_name]) for v in values]

    @field_validator("memory")
    @classmethod
    def _setting(cls, value: str) -> str:
        return nearest("memory", value, SETTINGS)

    @field_validator("workloads", mode="before")
    @classmethod
    def _spelled(cls, values: Any) -> Any:
        return [workload(v) if isinstance(v, str) else v for v in values] if isinstance(values, list) else values

    @field_validator("sweep", mode="before")
    @classmethod
    def _centre(cls, value: Any) -> Any:
        if isinstance(value, str):
            return None if value == "none" else workload(value)
        return value

    @field_validator("budget_s")
    @classmethod
    def _limit(cls, value: float | None) -> float | None:
        return None if value == math.inf else value

    @model_validator(mode="after")
    def _sound(self) -> "Study":
        for name, values in self:
            if isinstance(values, list) and len({str(v) for v in values}) != len(values):
                raise ValueError(f"{name} names something twice")
            if values == []:
                raise ValueError(f"{name} is empty")
        if both := repeated(w.name for w in self.workloads):
            raise ValueError(f"workloads: two have the name {both} (case tells no names apart)")
        if both := repeated(w.name for w in [*self.workloads, *self.swept]):
            raise ValueError(f"workload {both} has the name of a point of the sweep")
        return self

    @property
    def swept(self) -> list[Workload]:
        """The points of the sweep, those that forecasts are made from first."""
        return around(self.sweep) if self.sweep else []

    @property
    def headline_processes(self) -> int:
        """Processes of the question's arms, in the loop that users would write, before the rest gets its first."""
        return max(self.pilot, min(HEADLINE_PROCESSES, self.processes_max))

    @property
    def arms(self) -> list[Arm]:
        """The arms to study, wherever they can be had."""
        if self.recurrences is None and self.projections is None:
            return [Arm(recurrence, projection) for recurrence, some in USUAL.items() for projection in some]
        recurrences, projections = self.recurrences or RECURRENCES, self.projections or PROJECTIONS
        return [Arm(recurrence, projection) for recurrence in recurrences for projection in projections]


WORDS = {
    "recurrences": RECURRENCES,
    "projections": PROJECTIONS,
    "passes": ("forward", "train"),
    "precisions": PRECISIONS,
    "devices": DEVICES,
}
SCALES: dict[str, dict[str, Any]] = {
    "default": {"sweep": "book"},
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
    },
}
NARROWED = ("workloads", "recurrences", "projections")  # who selects these gets no sweep that was not asked for


def workload(text: str) -> Workload:
    """A name, or sizes written B=..,T=..,I=..,H=..,O=..[,cell=..]; the cell is rnn_tanh if not said."""
    if "=" not in text:
        return KNOWN[nearest("workload", text, KNOWN)]
    parts = [part.partition("=") for part in text.split(",")]
    given = {key.strip(): value.strip() for key, _, value in parts}
    if len(given) != len(parts):
        raise ValueError(f"{text!r} gives a size twice")
    sizes: dict[str, Any] = {}
    for key, value in given.items():
        nearest("size", key, [*"BTIHO", "cell"])
        if key != "cell" and not re.fullmatch(r"[0-9]{1,9}", value):
            raise ValueError(f"{key}={value} is not a whole number of at least 1")
        sizes[key] = value if key == "cell" else int(value)
    if missing := [size for size in "BTIHO" if size not in sizes]:
        raise ValueError(f"{text!r} lacks {', '.join(missing)}")
    sizes.setdefault("cell", "rnn_tanh")
    return Workload(name=_spelled_out(sizes), **sizes)


def _spelled_out(sizes: dict[str, Any]) -> str:
    """The name of a workload that has none of its own."""
    return "-".join(f"{size}{sizes[size]}" for size in "BTIHO") + f"-{sizes['cell']}"


def load(path: Path | None, scale: str | None, flags: dict[str, Any], defaults: dict[str, Any] | None = None) -> Study:
    """The study: the scale's defaults and the command's, overridden by the TOML file, overridden by flags.

    Raises Refused with one sentence on an unreadable file, an unknown key, an impossible value, a text with nothing
    in it, or a name that says other sizes.
    """
    written = _read(path) if path else {}
    label = written.pop("label", "default")
    scale = scale or label
    if not isinstance(label, str) or label not in SCALES or scale not in SCALES:
        raise Refused(f"{path}: label must be one of {', '.join(SCALES)}")
    said = written | {key: value for key, value in flags.items() if value is not None}
    if blank := next((key for key, value in said.items() if _is_blank(value)), None):
        raise Refused(f"{blank} is given with nothing in it: leave it out, or say which")
    usual = SCALES[scale] | ({"sweep": None} if any(name in said for name in NARROWED) else {})
    try:
        study = Study.model_validate({"label": scale} | usual | (defaults or {}) | said)
    except ValidationError as error:
        raise Refused(sentence(error, path)) from None
    for chosen in (*study.workloads, *([study.sweep] if study.sweep else [])):
        if why := _mislabelled(chosen):
            raise Refused(f"{path}: {why}" if path else why)
    return study


def _is_blank(value: Any) -> bool:
    """Whether a value, or one of a list, is a text that says nothing."""
    values = value if isinstance(value, list) else [value]
    return any(isinstance(each, str) and not each.strip() for each in values)


def _mislabelled(chosen: Workload) -> str | None:
    """Why a workload's name says that it is another, or None.

    A known workload's name is for its own sizes alone (`book` has inputs of its own), and so is one made of sizes.
    """
    known = {name.lower(): name for name in KNOWN}
    owner = KNOWN.get(known.get(chosen.name.lower(), ""))
    if owner and owner != chosen:
        sizes = ",".join(f"{size}={getattr(owner, size)}" for size in "BTIHO")
        return f"the name {chosen.name} is kept for {sizes},cell={owner.cell}: give this workload another"
    spelled = _spelled_out(chosen.model_dump())
    if re.fullmatch(r"(?i)B\d+-T\d+-I\d+-H\d+-O\d+-[a-z_]+", chosen.name) and chosen.name != spelled:
        return f"the name {chosen.name} says other sizes than the workload's: give it another, or {spelled}"
    return None


def _read(path: Path) -> dict[str, Any]:
    """What a TOML file says; a byte order mark before it is passed over. Raises Refused."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise Refused(f"{path} is no study file: it has more than {LARGEST_FILE:,} bytes")
        return tomllib.loads(content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n"))
    except OSError as error:
        raise Refused(f"{path} can not be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not TOML, which is UTF-8 text: {error}") from None
    except RecursionError:
        raise Refused(f"{path} is not TOML that can be read: its values are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what Python says of a number of thousands of digits
        raise Refused(f"{path} is not TOML: {error}") from None


def sentence(error: ValueError, path: Path | None = None) -> str:
    """What is wrong with what was given, in a sentence that begins with where it stood."""
    start = f"{path}: " if path else ""
    if not isinstance(error, ValidationError):
        return f"{start}{error}"
    first = error.errors(include_url=False)[0]
    field, *inner = first["loc"] or ("",)
    place = ".".join([str(field), *(part for part in inner if isinstance(part, str) and part in Workload.model_fields)])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        keys = Workload.model_fields if inner else Study.model_fields
        message = f"unknown key; the keys are {', '.join(keys)}"
    elif field == "threads" and inner:
        message = "takes 'all' and whole numbers from 1 to 1024"
    return f"{start}{place}: {message}" if place else f"{start}{message}"
