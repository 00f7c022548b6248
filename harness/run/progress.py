"""Progress: a live bar with the time left on a terminal, plain lines elsewhere. Writes to stderr."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def console() -> Console:
    """For results on stdout. Where nobody sees a terminal's edge, tables are not cut to it."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


class Report:
    """Tells how far a run is. `total` is in `units`; time left comes from those done so far."""

    def __init__(self, total: int, units: str = "blocks") -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()
        self.console = Console(stderr=True)
        self.live = self.console.is_terminal
        columns = (SpinnerColumn(), BarColumn(None), TextColumn("{task.completed:.0f}/{task.total:.0f} " + units))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, *times, console=self.console, disable=not self.live)
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "Report":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.bar.stop()

    def expect(self, blocks: int) -> None:
        """How many blocks there will be."""
        self.total = blocks
        self.bar.update(self.task, total=blocks)

    def stage(self, text: str) -> None:
        """What is being done right now; shown on a terminal only."""
        self.bar.update(self.task, description=text)

    def block(self, text: str, blocks: int = 1) -> None:
        """Some blocks are over."""
        self.done += blocks
        self.bar.update(self.task, completed=self.done)
        if not self.live:
            print(
                f"{time.monotonic() - self.began:7.1f} s  {self.done}/{self.total}  {text}", file=sys.stderr, flush=True
            )
