"""Schema of a run's records: every line of a records file is one of these models, whoever wrote it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, model_validator

from harness.study.study import Name, Study, Workload
from harness.verify.output_check import form_of
from impls.evidence import ITEM_BYTES, Evidence

Nanoseconds = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _check_samples(values: Any) -> Any:
    """Return a list of whole numbers above 0; raise ValueError for anything else.

    It is checked here because pydantic would take as long for millions of samples as for everything else.
    """
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) <= 0)):
        raise ValueError("samples are a list of whole numbers of nanoseconds, each at least 1")
    return values


Samples = Annotated[Any, AfterValidator(_check_samples)]  # nanoseconds; Any, because pydantic would copy a list


def _check_faults(values: Any) -> Any:
    """Return a list of whole numbers of at least 0; raise ValueError for anything else."""
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) < 0)):
        raise ValueError("faults are a list of whole numbers, each at least 0")
    return values


Faults = Annotated[Any, AfterValidator(_check_faults)]


def _check_precision(precision: str) -> str:
    """Return the name of a precision; raise ValueError if there is none of that name."""
    if precision not in ITEM_BYTES:
        raise ValueError(f"there is no precision {precision!r}")
    return precision


def _check_stored_file(file: str) -> str:
    """Return the name of a stored file: a workload's name and one of STORED; raise ValueError for any other."""
    name, _, kind = file.partition(".")
    NAME.validate_python(name)
    if kind not in STORED:
        raise ValueError(f"{file!r} is no file of weights or inputs")
    return file


NAME: TypeAdapter[str] = TypeAdapter(Name)
STORED = ("weights.safetensors", "inputs.safetensors", "batches.safetensors")
Stored = Annotated[str, AfterValidator(_check_stored_file)]


class ArmTimingRecord(BaseModel):
    """Timing of one arm of a block.

    `faults`: minor page faults in each sample; empty where they were not counted.
    `quantities`: name -> root-mean-square error, largest error, whether bitwise equal to batched, ULP.
    """

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    calls: Annotated[int, Field(ge=1)]
    samples_ns: Samples
    faults: Faults = []
    quantities: dict[str, tuple[float, float, bool | None, float | None]] = {}
    evidence: Evidence | None = None


class LowerBoundsRecord(BaseModel):
    """Lower bounds in nanoseconds per call: of the timed region itself, and of an empty program.

    `reason` says why there is none.
    """

    harness_ns: float | None = None
    null_ns: float | None = None
    reason: str = ""


class PeakRatesRecord(BaseModel):
    """Peak rates of a framework.

    `flops_s`: floating-point operations per second of a large product.
    `scale_ns`: count of numbers -> nanoseconds of scaling them.
    `fault_ns`: nanoseconds of a page fault.
    """

    flops_s: Positive
    scale_ns: Annotated[dict[Natural, Positive], Field(min_length=1)]
    fault_ns: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class ConfigurationRecord(BaseModel):
    """Configuration of a worker (see harness.study.matrix)."""

    framework: str
    device: str
    threads: int
    execution: str
    precision: Annotated[str, AfterValidator(_check_precision)]


class PassRecord(ConfigurationRecord):
    """Configuration and pass of a block, a cell or a required sample size; the workload is kept apart."""

    pass_: Annotated[str, Field(alias="pass")]


class BlockRecord(PassRecord):
    """Record of a block: arms of one workload and pass in one worker.

    `part`: which arms (harness.study.parts); empty for all of them.
    `bounds`: form -> quantity -> bounds of the first two errors of `quantities`.
    `first_try`: the GPU was throttled, and the block is measured again.
    `redone`: this is the second try of such a block.
    """

    key: str
    kind: Literal["block", "check"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    workload: Workload
    steps: int
    part: str = ""
    load: float
    began: str
    start_s: float | None = None
    seconds: float | None = None
    timer_ns: Annotated[float, Field(ge=0)] | None
    threads_used: float | None
    numerics: dict[str, str] = {}
    rates: PeakRatesRecord | None = None
    gpu: dict[str, dict[str, Any]] | None = None
    throttled: list[str] = []
    first_try: bool = False
    redone: bool = False
    floors: Annotated[LowerBoundsRecord, Field(default_factory=LowerBoundsRecord)]
    bounds: dict[str, dict[str, tuple[float, float]]]
    arms: dict[str, ArmTimingRecord]

    @model_validator(mode="after")
    def _check_completeness(self) -> "BlockRecord":
        """Raise ValueError unless the bounds, the arms' counts of samples and of faults, and the sizes are complete."""
        for name, arm in self.arms.items():
            if unbounded := arm.quantities.keys() - self.bounds.get(form_of(name), {}).keys():
                raise ValueError(f"{name} has no bound for {', '.join(sorted(unbounded))}")
        if len({len(arm.samples_ns) for arm in self.arms.values() if arm.status == "ok" and arm.samples_ns}) > 1:
            raise ValueError("the arms of a block have as many samples, one a round")
        if any(arm.faults and len(arm.faults) != len(arm.samples_ns) for arm in self.arms.values()):
            raise ValueError("an arm has as many counts of page faults as samples, or none")
        if missing_fields := Workload.model_fields.keys() - self.workload.model_fields_set:
            raise ValueError(f"the workload lacks {', '.join(sorted(missing_fields))}")
        return self


class CellRecord(PassRecord):
    """A row of the tables without times; status and reason say why it cannot be measured, if it cannot."""

    workload: Name
    cell: str
    B: int
    T: int
    I: int  # noqa: E741  the study's name for it
    H: int
    O: int  # noqa: E741
    recurrence: str
    projection: str
    status: str = ""
    reason: str = ""


class CodeRecord(BaseModel):
    """Version of the harness's code."""

    commit: str
    hash: str


class BasisRecord(BaseModel):
    """What a measurement depends on besides the study."""

    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    code: CodeRecord


class EnvironmentRecord(BaseModel):
    """Environment variables of a framework's workers on one device with one number of threads."""

    device: str
    threads: int
    variables: dict[str, str]


class MissingFrameworkRecord(BaseModel):
    """A framework that is not available, with the reason."""

    framework: str
    reason: str


class PrototypeRecord(BaseModel):
    """Programs that rest on something that their framework's authors mark as a prototype; `reason` says so."""

    framework: str
    execution: str
    recurrence: str
    reason: str


class HeaderRecord(BaseModel):
    """Fields that every run header has: the study, what it depends on, and how it was started.

    `output_check`: how the bounds of the output check are made.
    """

    key: str
    status: str
    reason: str
    study: Study
    missing: list[MissingFrameworkRecord]
    prototypes: list[PrototypeRecord] = []
    basis: BasisRecord
    environments: dict[str, list[EnvironmentRecord]]
    weights: dict[Stored, str]
    command: str
    output_check: str = ""


class RunHeaderRecord(HeaderRecord):
    """Run header: the first record of a run, with the cells to be measured and those that cannot be.

    `none_in_training`: what projection `none` means in training.
    """

    kind: Literal["study"]
    cells: list[CellRecord]
    absent: list[CellRecord]
    none_in_training: str = ""


class SampleSizeRecord(PassRecord):
    """Required sample size of one block's gaps, with the block's workload and part."""

    workload: Name
    part: str = ""
    processes: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]


class PlanRecord(BaseModel):
    """Required sample sizes from the pilot, recorded before they were measured."""

    key: str
    kind: Literal["plan"]
    status: str
    reason: str
    target: float
    needs: list[SampleSizeRecord]


class SessionRecord(BaseModel):
    """Start of another session of a run. `budget_s`: the session's budget in seconds; None for no limit."""

    key: str
    kind: Literal["resumed"]
    status: str
    reason: str
    command: str
    budget_s: Positive | None


class CostsRecord(BaseModel):
    """Seconds of one pass besides its arithmetic.

    `call_s`: of a call. `step_s`: of a step. The others are what a projection adds: `in_loop_s` once, in the loop;
    `product_s` with each product, in the loop; `after_s` after the loop.
    """

    pass_: Annotated[str, Field(alias="pass")]
    call_s: float
    step_s: float
    in_loop_s: float
    product_s: float
    after_s: float


class PredictedTimesRecord(BaseModel):
    """Predicted seconds of a call of each arm of one workload and pass."""

    workload: Name
    pass_: Annotated[str, Field(alias="pass")]
    none_s: Positive
    in_loop_s: Positive
    batched_s: Positive


class ForecastRecord(ConfigurationRecord):
    """Prediction for a configuration's programs of one recurrence, recorded before they were measured."""

    key: str
    kind: Literal["forecast"]
    status: str
    reason: str
    recurrence: str
    costs: list[CostsRecord]
    expected: list[PredictedTimesRecord]


Line = RunHeaderRecord | SessionRecord | PlanRecord | ForecastRecord | BlockRecord
KNOWN: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
