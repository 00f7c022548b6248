"""Counts of what programs would launch on a GPU, as `count` stores them: one compiled program a line."""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from harness.errors import UsageError
from harness.machine.folders import add_path_to_errors
from harness.records.schema import Model
from harness.records.store import is_complete_line, repair_last_line
from impls.thunks import Launch, Launches

FILE = "counts.jsonl"
PACKED = f"{FILE}.gz"
Sizes = tuple[int, int, int, int]


class LaunchCount(Model):
    """Launches that are alike: see impls.thunks.Launch. `alike`: how many of them the program has."""

    kind: str
    times: int
    graph: int
    product: Sizes | None
    library: str
    moved_bytes: int
    sliced: bool
    alike: int

    @property
    def total(self) -> int:
        """Return how often a call launches one of them."""
        return self.times * self.alike


class CountRecord(Model):
    """What one call of an arm's program would launch on a card.

    `xla`: the package that compiled it, and its version. `triton`: whether Triton may multiply matrices. `graphs`: how
    often each CUDA graph is launched. `reason`: why the counts are missing, or "".
    """

    card: str
    framework: str = "jax"
    execution: str = "xla"
    precision: Literal["fp32"] = "fp32"
    xla: str
    triton: bool
    workload: str
    pass_: Annotated[str, Field(alias="pass")]
    recurrence: str
    projection: str
    graphs: list[int] = Field(default_factory=list)
    launches: list[LaunchCount] = Field(default_factory=list)
    loops: list[int] = Field(default_factory=list)
    temp_bytes: int | None = None
    compile_s: float = 0.0
    reason: str = ""

    @property
    def key(self) -> tuple[str | bool, ...]:
        """Return what tells this program from all others."""
        return (self.card, self.triton, self.workload, self.pass_, self.recurrence, self.projection)

    @property
    def from_host(self) -> int:
        """Return how many kernels, copies and library calls the host launches one by one."""
        return sum(launch.total for launch in self.launches if not launch.graph)

    @property
    def in_graphs(self) -> int:
        """Return how many kernels, copies and library calls run from CUDA graphs."""
        return sum(launch.total for launch in self.launches if launch.graph)

    @property
    def products(self) -> dict[str, int]:
        """Return how many matrix products each library multiplies."""
        counts: dict[str, int] = {}
        for launch in self.launches:
            if launch.product:
                counts[launch.library] = counts.get(launch.library, 0) + launch.total
        return dict(sorted(counts.items()))


def group_alike(program: Launches) -> list[LaunchCount]:
    """Return launches with those that are alike together, in the order in which each kind is first launched."""
    alike: dict[Launch, int] = {}
    for launch in program.launches:
        nameless = launch._replace(name="")
        alike[nameless] = alike.get(nameless, 0) + 1
    return [
        LaunchCount(
            kind=launch.kind,
            times=launch.times,
            graph=launch.graph,
            product=launch.product,
            library=launch.library,
            moved_bytes=launch.moved_bytes,
            sliced=launch.sliced,
            alike=count,
        )
        for launch, count in alike.items()
    ]


def read(folder: Path) -> list[CountRecord]:
    """Return the counts of a folder, packed ones first. A program that was counted again has its last record alone.

    Raises UsageError where there are no counts, or one is malformed.
    """
    files = [path for path in (folder / PACKED, folder / FILE) if path.exists()]
    if not are_in(folder):
        raise UsageError(f"{folder} holds no counts: there is neither {FILE} nor {PACKED}")
    records = [record for path in files for record in _read_file(path)]
    return list({(record.xla, *record.key): record for record in records}.values())


def are_in(folder: Path) -> bool:
    """Return whether a folder holds counts."""
    return any((folder / name).exists() for name in (PACKED, FILE))


def _read_file(path: Path) -> list[CountRecord]:
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        lines = content.splitlines(keepends=True)
        return [CountRecord.model_validate_json(line) for line in lines if is_complete_line(line)]
    except (OSError, EOFError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise UsageError(f"{path} has a line that is no count: {error.errors()[0]['msg']}") from None


def append(folder: Path, records: Iterable[CountRecord]) -> None:
    """Append counts to a folder's file, in place of a last line that was cut while it was being written."""
    repair_last_line(folder / FILE)
    with add_path_to_errors(folder / FILE), (folder / FILE).open("a", encoding="utf-8") as file:
        file.writelines(f"{record.model_dump_json(by_alias=True)}\n" for record in records)
