"""Records of a training.

The first line describes the training (kind "training"), and the second holds the oracle's trajectories (kind
"oracle"). Each other line is one process that trained both forms of one configuration (kind "process").
"""

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter

from harness.records.schema import ConfigurationRecord, HeaderRecord, Model, Nanoseconds, Samples
from harness.records.store import Format

Losses = Annotated[list[float], Field(min_length=1)]


class Trajectory(Model):
    """One form's losses and times.

    A loss is the one before its step. Times are in nanoseconds: `first_call_ns` of the first step, `samples_ns` of
    every later one.
    """

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    samples_ns: Samples
    losses: list[float]

    @classmethod
    def empty(cls, status: str = "ok", reason: str = "") -> Self:
        """Return a trajectory without a step."""
        return cls(status=status, reason=reason, first_call_ns=None, samples_ns=[], losses=[])

    def marked(self, status: str, reason: str) -> Self:
        """Return the trajectory under another status and its reason."""
        return self.model_copy(update={"status": status, "reason": reason})


class OracleLosses(Model):
    """Losses of the oracle in float64, the truth, and in float32, for comparison.

    `bounds` is how far the first losses of a trajectory may be from the truth, relative to it.
    """

    losses: Losses
    float32: Losses
    bounds: Losses


class OracleRecord(OracleLosses):
    """Record of the oracle's losses."""

    key: str
    kind: Literal["oracle"]
    status: str
    reason: str


class TrainingConfigurationRecord(ConfigurationRecord):
    """Configuration that a process trains in, with the recurrence of both forms."""

    recurrence: str

    @property
    def name(self) -> str:
        """Return the name of the program: framework, execution and recurrence."""
        return f"{self.configuration.framework} {self.configuration.execution} {self.recurrence}"


class ProcessRecord(TrainingConfigurationRecord):
    """Record of one process; `seconds` is the time of its training, without its start."""

    key: str
    kind: Literal["process"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    began: str
    load: float
    seed: int = 0  # which older records lack
    start_s: float | None
    seconds: float | None
    threads_used: float | None
    forms: dict[str, Trajectory]


class AbsentExecutionRecord(Model):
    """Execution that nothing is trained in, with the reason."""

    framework: str
    execution: str
    reason: str


class TrainingHeaderRecord(HeaderRecord):
    """Run header, the first record: what is to be trained, and on what."""

    kind: Literal["training"]
    steps: Annotated[int, Field(ge=1)]
    configurations: list[TrainingConfigurationRecord] = Field(
        validation_alias="seats", serialization_alias="seats"
    )  # as records have it
    absent: list[AbsentExecutionRecord]


TrainingRecord = TrainingHeaderRecord | OracleRecord | ProcessRecord
KNOWN: TypeAdapter[TrainingRecord] = TypeAdapter(Annotated[TrainingRecord, Field(discriminator="kind")])
TRAINING: Format[TrainingRecord] = Format("train.jsonl", KNOWN, "training", ("configurations", "weights"))
