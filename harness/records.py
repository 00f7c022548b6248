"""Records: one JSON object a line, appended and fsynced, never changed.

The first line describes the study (kind "study"); every other line is one block of one worker
(kind "block") or one verification of it without times (kind "check"). A half-written last line is
dropped when the file is opened again.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.refused import Refused

SCHEMA = 1
FILE = "records.jsonl"
Record = dict[str, Any]


def digest(what: Any) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def read(folder: Path) -> list[Record]:
    """A run's records. Raises Refused on a missing file, a foreign schema or a broken line."""
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path} can not be read: {getattr(error, 'strerror', None) or error}") from None
    lines = text.split("\n")[:-1]  # what follows the last newline was cut while it was written
    return [_parsed(path, number, line) for number, line in enumerate(lines, 1)]


def _parsed(path: Path, number: int, line: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        raise Refused(f"{path}, line {number}, is not JSON") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        version = record.get("schema") if isinstance(record, dict) else None
        raise Refused(f"{path}, line {number}, has schema {version!r}, but this version reads {SCHEMA}")
    return record


class Store:
    """Appends records to a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
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
        records = read(self.path.parent)
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
        yield
    (folder / ".lock").unlink(missing_ok=True)


def latest(records: list[Record]) -> list[Record]:
    """Of the records of one block or check, the last; in the order they were first written."""
    found = {record["key"].rpartition("-")[0]: record for record in records if record["kind"] != "study"}
    return list(found.values())
