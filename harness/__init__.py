"""The study harness: from a study to a report, one step a module. Imports no framework, and pandas only to load."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.analysis.loading import Run

__all__ = ["load"]


def load(folder: str | Path) -> "Run":
    """Return a measured run as pandas frames, which docs/data.md documents, from the folder of its records.

    Raises UsageError if the records cannot be read.
    """
    from harness.analysis import loading  # late: workers import this package, and need no pandas

    return loading.load(folder)
