"""Records: one JSON object a line, appended and fsynced, never changed.

The first line describes the study (kind "study"); every other line is one block of one worker
(kind "block"), one verification of it without times (kind "check"), what the pilot asked for
(kind "plan"), what was expected of a configuration before it was measured (kind "forecast"), or under what other
budget the run was gone on with (kind "resumed"). A last line that was cut while it was written is no
record; one that lacks nothing but its newline is.
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
from harness.machine.folders import naming
from harness.records.schema import KNOWN
from harness.study.study import Study, Workload

SCHEMA = 1
FILE = "records.jsonl"
PACKED = f"{FILE}.gz"  # as it may be kept; a run that goes on unpacks it
Record = dict[str, Any]


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
VERIFICATION = Format("verification.jsonl", KNOWN, "study", ("cells", "weights"))  # beside a run's records


def digest(what: Any) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read(folder: Path, format_: Format = RUN) -> list[Record]:
    """A run's records, plain or packed. Raises UsageError on a missing file, a foreign schema or a broken line."""
    path, packed = folder / format_.file, folder / f"{format_.file}.gz"
    try:
        with gzip.open(packed) if packed.exists() and not path.exists() else path.open("rb") as file:
            whole = (line for line in file if _is_whole(line))
            records = [_parsed(path, format_, number, line) for number, line in enumerate(whole, 1)]
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path} can not be read: {getattr(error, 'strerror', None) or error}") from None
    _check_workloads(path, records)
    return records


def verification(folder: Path) -> list[Record]:
    """The records of a verification beside a run's; none where there is none. Raises UsageError as `read` does."""
    file = folder / VERIFICATION.file
    return read(folder, VERIFICATION) if file.exists() or file.with_suffix(".jsonl.gz").exists() else []


def _is_whole(line: bytes) -> bool:
    """Whether a line was written to its end. A record is a JSON object, no part of which is JSON itself."""
    if line.endswith(b"\n"):
        return True
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _check_workloads(path: Path, records: list[Record]) -> None:
    """Raise UsageError where one name stands for two workloads: what is reported under it would be of both."""
    known = {each.name: each for each in Study(**records[0]["study"]).workloads} if records else {}
    for number, record in enumerate(records, 1):
        if "workload" in record:
            workload = Workload(**record["workload"])
            if known.setdefault(workload.name, workload) != workload:
                raise UsageError(f"{path}, line {number}: workload {workload.name} had other sizes before it")


def _parsed(path: Path, format_: Format, number: int, line: bytes) -> Record:
    try:
        record = from_json(line)
    except ValueError:
        raise UsageError(f"{path}, line {number}, is not JSON") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        version = record.get("schema") if isinstance(record, dict) else None
        raise UsageError(f"{path}, line {number}, has schema {version!r}, but this version reads {SCHEMA}")
    try:
        found = format_.known.validate_python(record)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(repr, first["loc"]))
        raise UsageError(f"{path}, line {number}, is no record: {place}: {first['msg']}") from None
    if (found.kind == format_.first) != (number == 1):
        raise UsageError(f"{path}, line {number}: the first record, and no other, describes the study")
    return record


class Store:
    """Appends records to a run's folder."""

    def __init__(self, folder: Path, format_: Format = RUN) -> None:
        self.path, self.packed, self.format = folder / format_.file, folder / f"{format_.file}.gz", format_
        self.keys: set[str] = set()
        self.mended = False  # whether the file is known to end with a whole line

    def append(self, record: Record) -> Record:
        """Write a record through to the disk; its key is made unique by the attempt's number."""
        attempt = 0
        while (key := f"{record['key']}-{attempt}") in self.keys:
            attempt += 1
        record = {"schema": SCHEMA, **record, "key": key}
        if not self.mended:
            self._mend()
        self.mended = False  # until the whole line is there
        with naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.mended = True
        self.keys.add(key)
        return record

    def unpack(self) -> list[Record]:
        """Replace packed records by plain ones, which can be added to; returns them. Raises UsageError."""
        plain = self.path.with_suffix(".unpacked")
        with naming(plain), gzip.open(self.packed) as packed, plain.open("wb") as file:
            shutil.copyfileobj(packed, file)
            file.flush()
            os.fsync(file.fileno())
        plain.replace(self.path)
        self.packed.unlink()
        return self.recover()

    def recover(self) -> list[Record]:
        """Return the records there are, whose keys are then taken. Raises UsageError, and changes nothing."""
        records = read(self.path.parent, self.format)
        self.keys = {record["key"] for record in records}
        return records

    def _mend(self) -> None:
        """End a last line that lacks its newline, or drop it where it was cut; the lines before it are not touched."""
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            data = file.read()
            start = data.rfind(b"\n") + 1
            if start < len(data) and _is_whole(data[start:]):
                file.write(b"\n")
            else:
                file.truncate(start)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run's folder for this process. Raises UsageError when another process holds it."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another run is writing into {folder}") from None
        try:
            yield
        finally:
            (folder / ".lock").unlink(missing_ok=True)


def latest(records: list[Record], kinds: tuple[str, ...] = ("block", "check")) -> list[Record]:
    """Of the records of one block, or whatever else `kinds` names, the last; in the order they were first written."""
    found = {r["key"].rpartition("-")[0]: r for r in records if r["kind"] in kinds}
    return list(found.values())


def budgets(records: list[Record]) -> list[float | None]:
    """Seconds that a run had to begin with, then each other budget that it was gone on with under; None is no limit."""
    return [records[0]["study"].get("budget_s"), *(r["budget_s"] for r in records if r["kind"] == "resumed")]
