"""Progress on stderr: a live bar with the time left on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def console() -> Console:
    """Return the console for results on stdout. Where that is no terminal, tables may be 160 columns wide."""
    return Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)


class ProgressReport:
    """The progress of a run. `total` is counted in `units`; the time left is estimated from the units done so far."""

    def __init__(self, total: int, units: str = "blocks") -> None:
        self.total, self.completed, self.start_s = total, 0, time.monotonic()
        self.console = Console(stderr=True)
        self.is_live = self.console.is_terminal
        columns = (SpinnerColumn(), BarColumn(None), TextColumn("{task.completed:.0f}/{task.total:.0f} " + units))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, *times, console=self.console, disable=not self.is_live)
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "ProgressReport":
        self.bar.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def expect(self, blocks: int) -> None:
        """Set the total number of blocks."""
        self.total = blocks
        self.bar.update(self.task, total=blocks)

    def stage(self, text: str) -> None:
        """Show what is being done right now. Plain lines leave it out."""
        self.bar.update(self.task, description=text)

    def block(self, text: str, blocks: int = 1) -> None:
        """Count `blocks` as done, and print `text` as a plain line where there is no terminal."""
        self.completed += blocks
        self.bar.update(self.task, completed=self.completed)
        if not self.is_live:
            print(
                f"{time.monotonic() - self.start_s:7.1f} s  {self.completed}/{self.total}  {text}",
                file=sys.stderr,
                flush=True,
            )
