"""Store of records: one JSON object per line, appended and fsynced, never changed.

The first line is the run header (kind "study"). Every other line is of one of these kinds:

    "block": one block of one worker
    "check": the output check of a block without times
    "peaks": the peak memory of a block's arms
    "plan": the required sample sizes from the pilot
    "forecast": what was predicted for a configuration before it was measured
    "resumed": the start of another session, with its budget

A last line that was cut while it was being written is not a record; one that lacks only its newline is.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import filelock
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json

from harness.errors import UsageError
from harness.machine.folders import add_path_to_errors
from harness.records.schema import KNOWN, BlockRecord, RunHeaderRecord, RunRecord, SessionRecord
from harness.study.study import Workload

SCHEMA = 1
FILE = "records.jsonl"
LONGEST_LINE, LARGEST_FILE = 2**28, 2**34  # bytes; of a long study they are 2**21 and 2**31
PACKED = f"{FILE}.gz"  # the compressed form; resuming a run unpacks it


class Keyed(Protocol):
    """What every record has: a key, and a kind."""

    key: str
    kind: Any


R = TypeVar("R", bound=BaseModel)
K = TypeVar("K", bound=Keyed)


@dataclass(frozen=True)
class Format(Generic[R]):
    """Format of a records file.

    `known`: the type of its lines.
    `first`: the kind of its first line, and of no other line.
    `same`: the fields of the first line that must be unchanged for a run to be resumed.
    """

    file: str
    known: TypeAdapter[R]
    first: str
    same: tuple[str, ...]


RUN: Format[RunRecord] = Format(FILE, KNOWN, "study", ("cells", "weights"))
VERIFICATION: Format[RunRecord] = Format("verification.jsonl", KNOWN, "study", ("cells", "weights"))  # beside a run's


def digest(content: Any) -> str:
    """Return a short stable hash of anything that JSON can represent."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_run(folder: Path) -> list[RunRecord]:
    """Return a run's records. Raises UsageError as `read_records` does."""
    return read_records(folder, RUN)


def read_verification(folder: Path) -> list[RunRecord]:
    """Return the records of a verification beside a run's, or an empty list if there is none.

    Raises UsageError as `read_records` does.
    """
    file = folder / VERIFICATION.file
    return read_records(folder, VERIFICATION) if file.exists() or file.with_suffix(".jsonl.gz").exists() else []


def read_records(folder: Path, format_: Format[R]) -> list[R]:
    """Return the records of a format, from a plain or a packed file.

    Raises UsageError for a missing file, another schema version or an invalid line.
    """
    path, packed = folder / format_.file, folder / f"{format_.file}.gz"
    try:
        with gzip.open(packed) if packed.exists() and not path.exists() else path.open("rb") as file:
            lines = (line for line in _lines(path, file) if is_complete_line(line))
            records = [_parse_line(path, format_, number, line) for number, line in enumerate(lines, 1)]
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    _check_workloads(path, records)
    return records


def _lines(path: Path, file: io.BufferedIOBase) -> Iterator[bytes]:
    """Yield a file's lines. Raises UsageError where one is too long, or all of them (a packed file holds much)."""
    total = 0
    while line := file.readline(LONGEST_LINE + 1):
        total += len(line)
        if len(line) > LONGEST_LINE or total > LARGEST_FILE:
            raise UsageError(
                f"{path} is too large for records: over {LONGEST_LINE:,} bytes in a line, or {LARGEST_FILE:,}"
            )
        yield line


def header_of(records: Sequence[Any]) -> RunHeaderRecord:
    """Return a run's header, which is its first record."""
    header = records[0]
    assert isinstance(header, RunHeaderRecord)
    return header


def is_complete_line(line: bytes) -> bool:
    """Return whether a line was written to its end.

    Without a newline it is whole if it parses: a record is a JSON object, and no prefix of one is valid JSON.
    """
    if line.endswith(b"\n"):
        return True
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _check_workloads(path: Path, records: Sequence[BaseModel]) -> None:
    """Raise UsageError where one name stands for two workloads, because the report would mix them under that name."""
    header = records[0] if records else None
    workloads: dict[str, Workload] = {}
    if isinstance(header, RunHeaderRecord):
        workloads = {workload.name: workload for workload in header.study.workloads}
    for number, record in enumerate(records, 1):
        if isinstance(record, BlockRecord):
            workload = record.workload
            if workloads.setdefault(workload.name, workload) != workload:
                raise UsageError(f"{path}, line {number}: workload {workload.name} had other sizes before it")


def _parse_line(path: Path, format_: Format[R], number: int, line: bytes) -> R:
    """Parse and validate line `number` of a records file. Raises UsageError where it is invalid."""
    try:
        content = from_json(line)
    except ValueError:
        raise UsageError(f"{path}, line {number}, is not JSON") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        version = content.get("schema") if isinstance(content, dict) else None
        raise UsageError(f"{path}, line {number}, has schema {version!r}, but this version reads {SCHEMA}")
    try:
        record = format_.known.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(repr, first["loc"]))
        raise UsageError(f"{path}, line {number}, is no record: {place}: {first['msg']}") from None
    if (content["kind"] == format_.first) != (number == 1):
        raise UsageError(f"{path}, line {number}: the first record, and no other, describes the study")
    return record


class Store(Generic[R]):
    """Append-only store of the records in a run's folder."""

    def __init__(self, folder: Path, format_: Format[R]) -> None:
        self.path, self.packed, self.format = folder / format_.file, folder / f"{format_.file}.gz", format_
        self.keys: set[str] = set()
        self.last_line_complete = False  # whether the file is known to end with a whole line

    def append(self, record: R) -> R:
        """Write a record through to the disk, and return it with its final key.

        The number of the attempt is added to the key, which makes it unique.
        """
        attempt, stem = 0, _key(record)
        while (key := f"{stem}-{attempt}") in self.keys:
            attempt += 1
        record = record.model_copy(update={"key": key})
        if not self.last_line_complete:
            repair_last_line(self.path)
        self.last_line_complete = False  # until the whole line is written
        line = json.dumps({"schema": SCHEMA, **record.model_dump(by_alias=True)})
        with add_path_to_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.last_line_complete = True
        self.keys.add(key)
        return record

    def unpack(self) -> list[R]:
        """Replace the packed records by plain ones, which can be appended to, and return them. Raises UsageError."""
        plain = self.path.with_suffix(".unpacked")
        with add_path_to_errors(plain), gzip.open(self.packed) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
            file.flush()
            os.fsync(file.fileno())
        plain.replace(self.path)
        self.packed.unlink()
        return self.recover()

    def recover(self) -> list[R]:
        """Return the existing records, and reserve their keys. Raises UsageError; never changes the file."""
        records = read_records(self.path.parent, self.format)
        self.keys = set(map(_key, records))
        return records


def repair_last_line(path: Path) -> None:
    """Add a missing newline to a file's last line, or drop that line if it was cut; leave the lines before it alone."""
    if not path.exists():
        return
    with add_path_to_errors(path), path.open("r+b") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start < len(content) and is_complete_line(content[start:]):
            file.write(b"\n")
        else:
            file.truncate(start)


def _key(record: Any) -> str:
    return str(record.key)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process. Raises UsageError when another process has locked it."""
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(f"another run is writing into {folder}") from None
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def latest_records(records: Iterable[Any], type_: type[K]) -> list[K]:
    """Return the last record of each key, of those that are of a type, in the order in which keys were first written.

    The number of the attempt does not belong to the key.
    """
    by_key: dict[str, K] = {}
    for record in records:
        if isinstance(record, type_):
            by_key[record.key.rpartition("-")[0]] = record
    return list(by_key.values())


def latest_blocks(records: Iterable[RunRecord], kind: Literal["block", "check", "peaks"]) -> list[BlockRecord]:
    """Return the last record of each block of a kind: timed, only checked, or with its memory measured."""
    return [record for record in latest_records(records, BlockRecord) if record.kind == kind]


def budgets(records: Sequence[RunRecord] | Sequence[RunHeaderRecord | SessionRecord]) -> list[float | None]:
    """Return the budgets of a run's sessions in seconds, the first session's first; None means no limit."""
    later = (record.budget_s for record in records if isinstance(record, SessionRecord))
    return [header_of(records).whole_study.budget_s, *later]
