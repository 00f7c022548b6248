"""The configuration of a worker process: the one place where its five fields are written."""

from dataclasses import asdict, fields
from typing import Annotated, Any

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from impls.interface import PRECISIONS


def _check_precision(precision: str) -> str:
    """Return the name of a precision; raise ValueError if there is none of that name."""
    if precision not in PRECISIONS:
        raise ValueError(f"there is no precision {precision!r}")
    return precision


@dataclass(frozen=True, order=True)
class Configuration:
    """What is fixed for the life of a worker process, except the replicate."""

    framework: str
    device: str
    threads: int
    execution: str
    precision: Annotated[str, AfterValidator(_check_precision)]

    def row(self) -> dict[str, Any]:
        """Return the fields under the column names of the tables, which are their own."""
        return asdict(self)

    @property
    def engine(self) -> tuple[str, str, str, str]:
        """Return what runs a program, whatever its threads: framework, execution, device and precision."""
        return self.framework, self.execution, self.device, self.precision

    def __str__(self) -> str:
        return f"{self.framework} {self.execution} {self.device}×{self.threads} {self.precision}"


CONFIG = [field.name for field in fields(Configuration)]  # column names
