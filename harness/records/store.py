"""Store of records: one JSON object per line, appended and fsynced, never changed.

The first line is the run header (kind "study"). Every other line is of one of these kinds:

    "block": one block of one worker
    "check": the output check of a block without times
    "plan": the required sample sizes from the pilot
    "forecast": what was predicted for a configuration before it was measured
    "resumed": the start of another session, with its budget

A last line that was cut while it was being written is not a record; one that lacks only its newline is.
"""

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from harness.errors import UsageError
from harness.machine.folders import add_path_to_errors
from harness.records.schema import KNOWN
from harness.study.study import Study, Workload

SCHEMA = 1
FILE = "records.jsonl"
PACKED = f"{FILE}.gz"  # the compressed form; resuming a run unpacks it
Record = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """Format of a records file.

    `known`: the type of its lines.
    `first`: the kind of its first line, and of no other line.
    `same`: the fields of the first line that must be unchanged for a run to be resumed.
    """

    file: str
    known: TypeAdapter[Any]
    first: str
    same: tuple[str, ...]


RUN = Format(FILE, KNOWN, "study", ("cells", "weights"))
VERIFICATION = Format("verification.jsonl", KNOWN, "study", ("cells", "weights"))  # beside a run's records


def digest(content: Any) -> str:
    """Return a short stable hash of anything that JSON can represent."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_records(folder: Path, format_: Format = RUN) -> list[Record]:
    """Return a run's records, from a plain or a packed file.

    Raises UsageError for a missing file, another schema version or an invalid line.
    """
    path, packed = folder / format_.file, folder / f"{format_.file}.gz"
    try:
        with gzip.open(packed) if packed.exists() and not path.exists() else path.open("rb") as file:
            lines = (line for line in file if _is_complete_line(line))
            records = [_parse_line(path, format_, number, line) for number, line in enumerate(lines, 1)]
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} can not be read: {getattr(error, 'strerror', None) or error}") from None
    _check_workloads(path, records)
    return records


def read_verification(folder: Path) -> list[Record]:
    """Return the records of a verification beside a run's, or an empty list if there is none.

    Raises UsageError as `read_records` does.
    """
    file = folder / VERIFICATION.file
    return read_records(folder, VERIFICATION) if file.exists() or file.with_suffix(".jsonl.gz").exists() else []


def _is_complete_line(line: bytes) -> bool:
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


def _check_workloads(path: Path, records: list[Record]) -> None:
    """Raise UsageError where one name stands for two workloads, because the report would mix them under that name."""
    workloads = {workload.name: workload for workload in Study(**records[0]["study"]).workloads} if records else {}
    for number, record in enumerate(records, 1):
        if "workload" in record:
            workload = Workload(**record["workload"])
            if workloads.setdefault(workload.name, workload) != workload:
                raise UsageError(f"{path}, line {number}: workload {workload.name} had other sizes before it")


def _parse_line(path: Path, format_: Format, number: int, line: bytes) -> Record:
    """Parse and validate line `number` of a records file. Raises UsageError where it is invalid."""
    try:
        record = from_json(line)
    except ValueError:
        raise UsageError(f"{path}, line {number}, is not JSON") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        version = record.get("schema") if isinstance(record, dict) else None
        raise UsageError(f"{path}, line {number}, has schema {version!r}, but this version reads {SCHEMA}")
    try:
        model = format_.known.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(repr, first["loc"]))
        raise UsageError(f"{path}, line {number}, is no record: {place}: {first['msg']}") from None
    if (model.kind == format_.first) != (number == 1):
        raise UsageError(f"{path}, line {number}: the first record, and no other, describes the study")
    return record


class Store:
    """Append-only store of the records in a run's folder."""

    def __init__(self, folder: Path, format_: Format = RUN) -> None:
        self.path, self.packed, self.format = folder / format_.file, folder / f"{format_.file}.gz", format_
        self.keys: set[str] = set()
        self.last_line_complete = False  # whether the file is known to end with a whole line

    def append(self, record: Record) -> Record:
        """Write a record through to the disk, and return it with its final key.

        The number of the attempt is added to the key, which makes it unique.
        """
        attempt = 0
        while (key := f"{record['key']}-{attempt}") in self.keys:
            attempt += 1
        record = {"schema": SCHEMA, **record, "key": key}
        if not self.last_line_complete:
            self._repair_last_line()
        self.last_line_complete = False  # until the whole line is written
        with add_path_to_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.last_line_complete = True
        self.keys.add(key)
        return record

    def unpack(self) -> list[Record]:
        """Replace the packed records by plain ones, which can be appended to, and return them. Raises UsageError."""
        plain = self.path.with_suffix(".unpacked")
        with add_path_to_errors(plain), gzip.open(self.packed) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
            file.flush()
            os.fsync(file.fileno())
        plain.replace(self.path)
        self.packed.unlink()
        return self.recover()

    def recover(self) -> list[Record]:
        """Return the existing records, and reserve their keys. Raises UsageError; never changes the file."""
        records = read_records(self.path.parent, self.format)
        self.keys = {record["key"] for record in records}
        return records

    def _repair_last_line(self) -> None:
        """Add a missing newline to the last line, or drop that line if it was cut; leave the lines before it alone."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            content = file.read()
            start = content.rfind(b"\n") + 1
            if start < len(content) and _is_complete_line(content[start:]):
                file.write(b"\n")
            else:
                file.truncate(start)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process. Raises UsageError when another process has locked it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing into {folder}") from None
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def latest_records(records: list[Record], kinds: tuple[str, ...] = ("block", "check")) -> list[Record]:
    """Return the last record of each block (or of each key of whatever other `kinds`).

    They are in the order in which the keys were first written.
    """
    by_key = {r["key"].rpartition("-")[0]: r for r in records if r["kind"] in kinds}
    return list(by_key.values())


def budgets(records: list[Record]) -> list[float | None]:
    """Return the budgets of a run's sessions in seconds, the first session's first; None means no limit."""
    return [records[0]["study"].get("budget_s"), *(r["budget_s"] for r in records if r["kind"] == "resumed")]
