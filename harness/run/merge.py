"""The shards of a study, joined into one run.

A shard is a run of the i-th n-th of a study's processes, into a folder of its own. Its process k is number k*n + i - 1
of the study. Every shard compiles, verifies and counts for itself.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.machine.environment import read_text
from harness.records.schema import BlockRecord, RunHeaderRecord, RunRecord, ShardRecord
from harness.records.store import FILE, RUN, Store, header_of, lock_folder, read_run
from harness.run.session import run_folder, with_key
from harness.study import weights

SUBMISSION = "submission.json"  # in a folder whose parts are the shards of one submission
SHARD = "shard-{}"  # the name of such a part
EXITS = "exits"  # the folder of the files that say how each part ended


@dataclass(frozen=True)
class Shard:
    """One shard: its folder and its records, of which the header is the first."""

    folder: Path
    records: list[RunRecord]

    @property
    def header(self) -> RunHeaderRecord:
        return header_of(self.records)

    @property
    def number(self) -> int:
        return self.header.study.shard_numbers[0]

    @property
    def count(self) -> int:
        return self.header.study.shard_numbers[1]

    @property
    def nodes(self) -> list[str]:
        """Return the nodes that measured it."""
        return sorted({record.node for record in self.records if isinstance(record, BlockRecord) and record.node})


def merge(given: list[Path], out: Path, command: str) -> list[RunRecord]:
    """Join all shards of a study into the run folder `out`, and return its records. Nothing else is changed.

    `given`: the folders of the shards in any order, or the folder of a submission. Raises UsageError where they are not
    the shards of one study, all of them and each once, measured by the same code on machines of one kind.
    """
    places = [place for folder in given for place in _places(folder)]
    with ExitStack() as stack:
        for place in places:
            _lock(stack, place)
        shards = sorted((_read(place) for place in places), key=lambda shard: shard.number)
        _check(shards)
        with run_folder(out, resume=False), _undone_on_failure(out):
            store = Store(out, RUN)
            store.append(_merged_header(shards, command))
            for shard in shards:
                for record in _own_records(shard):
                    store.append(record)
            if (stored := shards[0].folder / "weights").is_dir():
                files = {file.name: file.read_bytes() for file in sorted(stored.iterdir())}
                weights.write_files(out / "weights", files)
            return store.recover()


@contextmanager
def _undone_on_failure(out: Path) -> Iterator[None]:
    """Remove what was joined so far when not all can be: a part of it would pass for the whole study."""
    try:
        yield
    except BaseException:
        (out / FILE).unlink(missing_ok=True)
        shutil.rmtree(out / "weights", ignore_errors=True)
        raise


def _places(folder: Path) -> list[Path]:
    """Return a shard's folder itself, or those of a submission's shards."""
    if not (folder / SUBMISSION).is_file():
        return [folder]
    places = sorted(path for path in folder.glob(SHARD.format("*")) if path.is_dir())
    for place in places:
        number = place.name.removeprefix(SHARD.format(""))
        if (read_text(folder / EXITS / number) or "").strip() != "0":
            raise UsageError(
                f"shard {number} of {folder} has no good exit: `status` says why and `submit --resume` sends it again; "
                "given one by one, shards are merged as they are"
            )
    return places


def _lock(stack: ExitStack, folder: Path) -> None:
    """Hold a shard's folder, so that no run writes into it. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder of a shard")
    try:
        stack.enter_context(lock_folder(folder))
    except OSError:
        return  # another's folder, which may be read and not written: nor can a run of ours be writing into it


def _read(folder: Path) -> Shard:
    """Return a shard. Raises UsageError where a folder holds something else."""
    records = read_run(folder)
    if not records:
        raise UsageError(f"{folder / FILE} is empty")
    if header_of(records).study.shard is None:
        raise UsageError(f"{folder} holds no shard: it is of a run without --shard")
    return Shard(folder, records)


def _check(shards: list[Shard]) -> None:
    """Raise UsageError unless these are all shards of one study, each once, from machines of one kind."""
    first = shards[0]
    for shard in shards[1:]:
        if difference := _difference(first.header, shard.header):
            raise UsageError(
                f"{shard.folder} cannot be merged with {first.folder}: {difference}; `report` of both compares them"
            )
    by_number: dict[int, Shard] = {}
    for shard in shards:
        if other := by_number.get(shard.number):
            raise UsageError(f"{shard.folder} is shard {shard.number} of {shard.count}, and so is {other.folder}")
        by_number[shard.number] = shard
    if missing := [number for number in range(1, first.count + 1) if number not in by_number]:
        raise UsageError(f"shard {missing[0]} of {first.count} is missing: {len(shards)} were given")


def _difference(header: RunHeaderRecord, other: RunHeaderRecord) -> str:
    """Return how two shards' headers differ in what they must share; "" where they do not."""
    if header.study.shard_numbers[1] != other.study.shard_numbers[1]:
        return f"one is of {header.study.shard_numbers[1]} shards, the other of {other.study.shard_numbers[1]}"
    studies = [h.study.model_copy(update={"shard": None}) for h in (header, other)]
    for name in type(studies[0]).model_fields:
        if getattr(studies[0], name) != getattr(studies[1], name):
            return f"the studies differ in {name}"
    if header.cells != other.cells or header.absent != other.absent or header.weights != other.weights:
        return "the studies have other cells or weights"
    if header.basis.code.hash != other.basis.code.hash:
        return "they were measured by other code"
    if header.basis.versions != other.basis.versions:
        return "they were measured with other versions of the frameworks or libraries"
    facts = [h.basis.machine for h in (header, other)]
    for name in sorted({*facts[0], *facts[1]}):
        if facts[0].get(name) != facts[1].get(name):
            return f"the machines are of another kind: {name} is {facts[0].get(name)} and {facts[1].get(name)}"
    return ""


def _merged_header(shards: list[Shard], command: str) -> RunHeaderRecord:
    """Return the header of a merged run."""
    first = shards[0].header
    merged = [
        ShardRecord(shard=str(shard.header.study.shard), nodes=shard.nodes, key=shard.header.key) for shard in shards
    ]
    study = first.study.model_copy(update={"shard": None})
    return with_key(first.model_copy(update={"study": study, "shards": merged, "command": command}))


def _own_records(shard: Shard) -> list[RunRecord]:
    """Return a shard's records as those of the whole study.

    Its processes have the numbers that they have there. What all shards have once, such as forecasts and the starts of
    other sessions, is the first shard's.
    """
    records: list[RunRecord] = []
    for record in shard.records[1:]:
        if isinstance(record, BlockRecord):
            replicate = record.replicate * shard.count + shard.number - 1
            records.append(record.model_copy(update={"replicate": replicate, "key": record.key.rpartition("-")[0]}))
        elif shard.number == 1:
            records.append(record.model_copy(update={"key": record.key.rpartition("-")[0]}))
    return records
