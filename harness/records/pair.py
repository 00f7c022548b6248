"""Records of a comparison of a user's own functions.

The first line describes it (kind "pair"): the file, the functions, their inputs, and how far apart their outputs are.
Each other line is one pass of one process in which the functions were timed side by side (kind "timed").
"""

from typing import Annotated, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from harness.records.schema import ArmTiming, HeaderRecord, Model, PassRecord
from harness.records.store import Format
from harness.study.configuration import Configuration
from harness.study.pair import PairStudy
from harness.verify.agreement import Difference

CONTROL = "A/A"  # the baseline a second time; no function can have this name
Differences = dict[str, Difference]  # quantity -> its worst element


class InputRecord(Model):
    """One input of the functions, with the SHA-256 of its numbers."""

    name: str
    shape: list[int]
    dtype: str
    sha256: str


class AgreementRecord(Model):
    """How the functions were shown to be the same before anything was timed.

    `method`: fp64, or rounding where they do not run in float64, and then `reason` says why. `fp64` and `rounding`:
    function -> its differences from the baseline, in float64 and in the functions' own precision.
    """

    method: Literal["fp64", "rounding"]
    reason: str = ""
    fp64: dict[str, Differences] = Field(default_factory=dict)
    rounding: dict[str, Differences] = Field(default_factory=dict)


class AbsentRecord(Model):
    """Execution in which nothing is compared, with the reason."""

    execution: str
    reason: str


class PairHeaderRecord(HeaderRecord):
    """Header of a comparison, the first record.

    `file`: the file's name without its folder. `sources`: SHA-256 of it and of every module beside it that it imports.
    `functions`: the baseline first. `gradients`: names of the inputs whose gradients are taken in pass train.
    `hoisted`: what was moved in the hoisted baseline, and what was not and why.
    """

    kind: Literal["pair"]
    study: PairStudy
    file: str
    text: str
    sources: dict[str, str]
    functions: Annotated[list[str], Field(min_length=2)]
    inputs: list[InputRecord]
    gradients: list[str]
    passes: Annotated[list[str], Field(min_length=1)]
    configurations: list[Configuration]
    absent: list[AbsentRecord]
    agreement: AgreementRecord
    hoisted: Annotated[list[str], Field(default_factory=list)]

    @property
    def baseline(self) -> str:
        """Return the name of the baseline."""
        return self.functions[0]

    @property
    def contenders(self) -> list[str]:
        """Return the names of the functions that are compared with the baseline."""
        return self.functions[1:]


class TimedRecord(PassRecord):
    """Record of one pass of one process.

    `arms`: function, or CONTROL -> its times. `differences`: the same -> the largest differences, before and after the
    timing, from what the baseline returned in the check.
    """

    key: str
    kind: Literal["timed"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    began: str
    load: float
    seed: int
    start_s: float | None = None
    seconds: float | None = None
    timer_ns: Annotated[float, Field(ge=0)] | None = None
    threads_used: float | None = None
    numerics: dict[str, str] = Field(default_factory=dict)
    differences: dict[str, Differences] = Field(default_factory=dict)
    arms: dict[str, ArmTiming]

    @model_validator(mode="after")
    def _check_samples(self) -> Self:
        """Raise ValueError unless all functions that were timed have as many samples, one a round."""
        if len({len(arm.samples_ns) for arm in self.arms.values() if arm.has_times}) > 1:
            raise ValueError("the functions of a process have as many samples, one a round")
        return self


PairRecord = PairHeaderRecord | TimedRecord
KNOWN: TypeAdapter[PairRecord] = TypeAdapter(Annotated[PairRecord, Field(discriminator="kind")])
SAME = ("sources", "functions", "inputs", "gradients", "passes", "configurations")
PAIR: Format[PairRecord] = Format("pair.jsonl", KNOWN, "pair", SAME)
