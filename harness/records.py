"""Records: one JSON object a line, appended and fsynced, never changed.

The first line describes the study (kind "study"); every other line is one block of one worker
(kind "block"), one verification of it without times (kind "check"), what the pilot asked for
(kind "plan"), or what was expected of a seat before it was measured (kind "forecast"). A half-written
last line is dropped when the file is opened again.
"""

import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import from_json

from harness.refused import Refused
from harness.study import Study, Workload
from harness.verify import form_of
from impls.evidence import Evidence

SCHEMA = 1
FILE = "records.jsonl"
PACKED = f"{FILE}.gz"  # as it may be kept; a run that goes on needs FILE
Record = dict[str, Any]
Nanoseconds = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _all_positive(values: list[Any]) -> list[Any]:
    """The values, all whole numbers above 0: told here, for millions of them take pydantic as long as all the rest."""
    if values and (set(map(type, values)) != {int} or min(values) <= 0):
        raise ValueError("a sample is a whole number of nanoseconds, at least 1")
    return values


Samples = Annotated[list[Any], AfterValidator(_all_positive)]  # nanoseconds


class Timed(BaseModel):
    """One arm of a block. `quantities`: name -> root-mean-square error, worst, bitwise equal to batched, ULP."""

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    calls: Annotated[int, Field(ge=1)]
    samples_ns: Samples
    quantities: dict[str, tuple[float | None, float | None, bool | None, float | None]] = {}
    evidence: Evidence | None = None


class Floors(BaseModel):
    """Nanoseconds a call: of an empty program, and of the timed region itself. `reason` is why there is none."""

    harness_ns: float | None = None
    null_ns: float | None = None
    reason: str = ""


class Rates(BaseModel):
    """What a framework did at best: operations a second of a large product, nanoseconds of scaling so many numbers."""

    flops_s: Positive
    scale_ns: dict[Natural, Positive]


class Place(BaseModel):
    """Where a block, a cell or a need belongs, but for its workload."""

    framework: str
    device: str
    threads: int
    execution: str
    precision: str
    pass_: Annotated[str, Field(alias="pass")]


class Block(Place):
    """One workload and pass in one worker. `bounds`: form -> quantity -> bounds of the first two errors."""

    key: str
    kind: Literal["block", "check"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    workload: Workload
    steps: int
    load: float
    began: str
    start_s: float | None = None
    seconds: float | None = None
    numerics: dict[str, str] = {}
    rates: Rates | None = None
    gpu: dict[str, dict[str, Any]] | None = None
    throttled: list[str] = []
    floors: Annotated[Floors, Field(default_factory=Floors)]
    bounds: dict[str, dict[str, tuple[float, float]]]
    arms: dict[str, Timed]

    @model_validator(mode="after")
    def _whole(self) -> "Block":
        for name, arm in self.arms.items():
            if unbounded := arm.quantities.keys() - self.bounds.get(form_of(name), {}).keys():
                raise ValueError(f"{name} has no bound for {', '.join(sorted(unbounded))}")
        if untold := Workload.model_fields.keys() - self.workload.model_fields_set:
            raise ValueError(f"the workload lacks {', '.join(sorted(untold))}")
        return self


class Cell(Place):
    """A row of the tables without times, with status and reason where it can not be measured."""

    workload: str
    cell: str
    B: int
    T: int
    I: int  # noqa: E741  the word of the study
    H: int
    O: int  # noqa: E741
    recurrence: str
    projection: str
    status: str = ""
    reason: str = ""


class Code(BaseModel):
    commit: str
    hash: str


class Basis(BaseModel):
    """What a number depends on besides the study."""

    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    code: Code


class Environment(BaseModel):
    device: str
    threads: int
    variables: dict[str, str]


class Missing(BaseModel):
    framework: str
    reason: str


class Begun(BaseModel):
    """What every first record says: what was wanted, of what, on what."""

    key: str
    status: str
    reason: str
    study: Study
    missing: list[Missing]
    basis: Basis
    environments: dict[str, list[Environment]]
    weights: dict[str, str]
    command: str


class Heading(Begun):
    """The first record: what was to be studied, on what."""

    kind: Literal["study"]
    cells: list[Cell]
    absent: list[Cell]


class Need(Place):
    """What the gaps of one block need, and the block it is."""

    workload: str
    processes: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]


class Planned(BaseModel):
    """What the pilot asked for, recorded before it was measured."""

    key: str
    kind: Literal["plan"]
    status: str
    reason: str
    target: float
    needs: list[Need]


class Costs(BaseModel):
    """Seconds of one pass besides its arithmetic: of a call, of a step, and of what a projection adds: in the loop
    once and with each product, and after it.
    """

    pass_: Annotated[str, Field(alias="pass")]
    call_s: float
    step_s: float
    in_loop_s: float
    product_s: float
    after_s: float


class Expected(BaseModel):
    """Seconds of a call of each arm of one workload and pass, as they are expected."""

    workload: str
    pass_: Annotated[str, Field(alias="pass")]
    none_s: Positive
    in_loop_s: Positive
    batched_s: Positive


class Forecast(BaseModel):
    """What is expected of a seat's programs of one recurrence, recorded before they were measured."""

    key: str
    kind: Literal["forecast"]
    status: str
    reason: str
    framework: str
    device: str
    threads: int
    execution: str
    precision: str
    recurrence: str
    costs: list[Costs]
    expected: list[Expected]


Line = Heading | Planned | Forecast | Block
KNOWN: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


@dataclass(frozen=True)
class Format:
    """A file of records: its name, what its lines may be, the kind of its first line and of no other, and in what this
    one must be the same for a run to be gone on with.
    """

    file: str
    known: TypeAdapter[Any]
    first: str
    same: tuple[str, ...]


RUN = Format(FILE, KNOWN, "study", ("cells", "weights"))


def digest(what: Any) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read(folder: Path, format_: Format = RUN) -> list[Record]:
    """A run's records, plain or packed. Raises Refused on a missing file, a foreign schema or a broken line."""
    path, packed = folder / format_.file, folder / f"{format_.file}.gz"
    try:
        text = _unpacked(packed) if packed.exists() and not path.exists() else path.read_text(encoding="utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise Refused(f"{path} can not be read: {getattr(error, 'strerror', None) or error}") from None
    lines = text.split("\n")[:-1]  # what follows the last newline was cut while it was written
    return [_parsed(path, format_, number, line) for number, line in enumerate(lines, 1)]


def _unpacked(path: Path) -> str:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return file.read()


def _parsed(path: Path, format_: Format, number: int, line: str) -> Record:
    try:
        record = from_json(line)
    except ValueError:
        raise Refused(f"{path}, line {number}, is not JSON") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        version = record.get("schema") if isinstance(record, dict) else None
        raise Refused(f"{path}, line {number}, has schema {version!r}, but this version reads {SCHEMA}")
    try:
        found = format_.known.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(repr, first["loc"]))
        raise Refused(f"{path}, line {number}, is no record: {place}: {first['msg']}") from None
    if (found.kind == format_.first) != (number == 1):
        raise Refused(f"{path}, line {number}: the first record, and no other, describes the study")
    return record


class Store:
    """Appends records to a run's folder."""

    def __init__(self, folder: Path, format_: Format = RUN) -> None:
        self.path, self.format = folder / format_.file, format_
        self.keys: set[str] = set()

    def append(self, record: Record) -> Record:
        """Write a record through to the disk; its key is made unique by the attempt's number."""
        attempt = 0
        while (key := f"{record['key']}-{attempt}") in self.keys:
            attempt += 1
        record = {"schema": SCHEMA, **record, "key": key}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.keys.add(key)
        return record

    def recover(self) -> list[Record]:
        """Drop a half-written last line and return the records there are."""
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            self.path.write_bytes(whole)
        records = read(self.path.parent, self.format)
        self.keys = {record["key"] for record in records}
        return records


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process. Raises Refused when another process holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"another run is writing into {folder}") from None
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def latest(records: list[Record], kinds: tuple[str, ...] = ("block", "check")) -> list[Record]:
    """Of the records of one block, or whatever else `kinds` names, the last; in the order they were first written."""
    found = {r["key"].rpartition("-")[0]: r for r in records if r["kind"] in kinds}
    return list(found.values())
