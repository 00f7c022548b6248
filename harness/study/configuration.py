"""The configuration of a worker process: the one place where its five fields are written."""

from dataclasses import fields
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
        return dict(zip(CONFIG, self.values, strict=True))

    @property
    def values(self) -> tuple[str, str, int, str, str]:
        """Return the fields in their order. By hand: a report asks for them a hundred thousand times."""
        return self.framework, self.device, self.threads, self.execution, self.precision

    @property
    def engine(self) -> tuple[str, str, str, str]:
        """Return what runs a program, whatever its threads: framework, execution, device and precision."""
        return self.framework, self.execution, self.device, self.precision

    def __str__(self) -> str:
        return f"{self.framework} {self.execution} {self.device}×{self.threads} {self.precision}"


CONFIG = [field.name for field in fields(Configuration)]  # column names
