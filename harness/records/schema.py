"""Schema of a run's records: every line of a records file is one of these models, whoever wrote it.

A model is also what the harness itself works with: nothing is read from a file or a worker in any other form.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from harness.machine.gpu import State
from harness.study.configuration import CONFIG, Configuration
from harness.study.matrix import Prototype, WorkerEnvironment
from harness.study.parts import part_of
from harness.study.study import Name, Study, Workload
from harness.verify.output_check import QuantityErrors, form_of
from impls.evidence import Evidence

Nanoseconds = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NOT_STATED = {"memory": "default", "library": "as_shipped", "budget_s": None}  # settings that older records lack


def _check_samples(values: Any) -> Any:
    """Return a list of whole numbers above 0; raise ValueError for anything else.

    It is checked here because pydantic would take as long for millions of samples as for everything else.
    """
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) <= 0)):
        raise ValueError("samples are a list of whole numbers of nanoseconds, each at least 1")
    return values


def _check_faults(values: Any) -> Any:
    """Return a list of whole numbers of at least 0; raise ValueError for anything else."""
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) < 0)):
        raise ValueError("faults are a list of whole numbers, each at least 0")
    return values


def _check_stored_file(file: str) -> str:
    """Return the name of a stored file: a workload's name and one of STORED; raise ValueError for any other."""
    name, _, kind = file.partition(".")
    NAME.validate_python(name)
    if kind not in STORED:
        raise ValueError(f"{file!r} is no file of weights or inputs")
    return file


WORKLOAD_FIELDS = frozenset(Workload.model_fields) - {"loss", "layers"}  # older records lack these: they had defaults
NAME: TypeAdapter[str] = TypeAdapter(Name)
STORED = ("weights.safetensors", "inputs.safetensors", "batches.safetensors")
Stored = Annotated[str, AfterValidator(_check_stored_file)]
Samples = Annotated[Any, AfterValidator(_check_samples)]  # nanoseconds; Any, because pydantic would copy a list
Faults = Annotated[Any, AfterValidator(_check_faults)]


class Model(BaseModel):
    """Base of all models: fields may be given under their own names too."""

    model_config = ConfigDict(populate_by_name=True)


class PeakMemory(Model):
    """The most bytes that a call took at once above what its process held before, its outputs included.

    `kernel_bytes`: of the process's resident set. `framework_bytes`: of the framework's own allocator, where that keeps
    what a call has freed. `missing` says why the first is None, or on a GPU why both are.
    """

    kernel_bytes: Annotated[int, Field(ge=0)] | None
    framework_bytes: Annotated[int, Field(ge=0)] | None = None
    missing: str = ""

    @property
    def shown_bytes(self) -> int | None:
        """Return the number that holds: what either counts adds up. None where the process's own is missing."""
        if self.missing:
            return None
        return (self.kernel_bytes or 0) + (self.framework_bytes or 0)


class ArmTiming(Model):
    """Timing of one arm of a block.

    Times are in nanoseconds. A sample is the time of `calls` calls.
    `faults`: minor page faults of the process during each sample; empty where they were not counted.
    `quantities`: the errors of each output and gradient, by name.
    `peak`: the memory of a call, in a process that measures nothing else.
    """

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    calls: Annotated[int, Field(ge=1)]
    samples_ns: Samples
    faults: Faults = []
    quantities: dict[str, QuantityErrors] = {}
    evidence: Evidence | None = None
    peak: PeakMemory | None = None

    @classmethod
    def without_times(cls, status: str = "ok", reason: str = "") -> Self:
        """Return the timing of an arm that has not been timed."""
        return cls(status=status, reason=reason, first_call_ns=None, calls=1, samples_ns=[], faults=[])

    def withheld(self, status: str, reason: str) -> Self:
        """Return the timing without its times, under another status and its reason."""
        times: dict[str, Any] = {"first_call_ns": None, "samples_ns": [], "faults": [], "peak": None}
        return self.model_copy(update={"status": status, "reason": reason, **times})

    @property
    def has_times(self) -> bool:
        """Return whether the arm is sound and was timed."""
        return self.status == "ok" and bool(self.samples_ns)


class CallOverheads(Model):
    """What a call costs besides its program, in nanoseconds: the timed region itself, and an empty program.

    `reason` says why the latter is missing.
    """

    harness_ns: float | None = None
    null_ns: float | None = None
    reason: str = ""


class ProductTime(NamedTuple):
    """Nanoseconds of a call that multiplies [rows, inner] x [inner, columns]."""

    rows: Natural
    inner: Natural
    columns: Natural
    ns: Positive


class PeakRates(Model):
    """Peak rates of a framework.

    `flops_s`: floating-point operations per second of a large product.
    `scale_ns`: count of numbers -> nanoseconds of scaling them.
    `fault_ns`: nanoseconds of a page fault.
    `products`: calls of products in the worker's execution; the first is of single numbers, so it is what a call costs.
    Older records have none.
    """

    flops_s: Positive
    scale_ns: Annotated[dict[Natural, Positive], Field(min_length=1)]
    fault_ns: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    products: list[ProductTime] = []


class ConfigurationRecord(Model):
    """Base of records of one configuration, whose fields stand flat beside the others in a file."""

    configuration: Configuration

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, values: Any) -> Any:
        """Gather the flat fields into a configuration."""
        if not isinstance(values, dict) or "configuration" in values:
            return values
        others = dict(values)
        return {"configuration": {name: others.pop(name) for name in CONFIG if name in others}} | others

    @model_serializer(mode="wrap")
    def _flatten(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        return fields.pop("configuration") | fields


class PassRecord(ConfigurationRecord):
    """Base of records of one configuration and pass."""

    pass_: Annotated[str, Field(alias="pass")]


class BlockRecord(PassRecord):
    """Record of a block: arms of one workload and pass in one worker.

    `kind`: whether they were timed (block), verified alone (check), or their memory was measured (peaks).
    `part`: which arms (harness.study.parts); empty for all of them.
    `compiled_anew`: whether the worker compiled its programs itself, instead of reading an earlier worker's cache.
    `bounds`: form -> quantity -> bounds of the rms and the worst error of `ArmTiming.quantities`.
    `checked_sequences`: how many of the batch had their outputs checked; None for all of them.
    `gpu`: the GPU's state before and after; `throttled`: why its clocks were lowered.
    `first_try`: the GPU was throttled, and the block is measured again.
    `redone`: this is the second try of such a block.
    `node`: the machine's name among those that measured the shards of a study; empty where there are no shards.
    """

    key: str
    kind: Literal["block", "check", "peaks"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    workload: Workload
    steps: int
    part: str = ""
    compiled_anew: bool = False  # which older records lack
    node: Annotated[str, Field(max_length=255)] = ""
    load: float
    began: str
    seed: int = 0  # which older records lack
    start_s: float | None = None
    seconds: float | None = None
    timer_ns: Annotated[float, Field(ge=0)] | None
    threads_used: float | None
    numerics: dict[str, str] = {}
    rates: PeakRates | None = None
    gpu: dict[str, State] | None = None
    throttled: list[str] = []
    first_try: bool = False
    redone: bool = False
    floors: Annotated[CallOverheads, Field(default_factory=CallOverheads)]
    bounds: dict[str, dict[str, tuple[float, float]]]
    checked_sequences: int | None = None
    arms: dict[str, ArmTiming]

    @model_validator(mode="after")
    def _check_completeness(self) -> Self:
        """Raise ValueError unless the bounds, the arms' counts of samples and of faults, and the sizes are complete."""
        for name, arm in self.arms.items():
            if not arm.quantities.keys() <= (bounded := self.bounds.get(form_of(name), {}).keys()):
                unbounded = arm.quantities.keys() - bounded
                raise ValueError(f"{name} has no bound for {', '.join(sorted(unbounded))}")
        if len({len(arm.samples_ns) for arm in self.arms.values() if arm.has_times}) > 1:
            raise ValueError("the arms of a block have as many samples, one a round")
        if any(arm.faults and len(arm.faults) != len(arm.samples_ns) for arm in self.arms.values()):
            raise ValueError("an arm has as many counts of page faults as samples, or none")
        if missing_fields := WORKLOAD_FIELDS - self.workload.model_fields_set:
            raise ValueError(f"the workload lacks {', '.join(sorted(missing_fields))}")
        return self

    @property
    def sample_text(self) -> str:
        """Return how many sequences were checked, of which workload and pass; "" where all of them were."""
        if self.checked_sequences is None:
            return ""
        return f"{self.workload.name} {self.pass_}: {self.checked_sequences} of {self.workload.B} sequences"

    def with_arms(self, arms: dict[str, ArmTiming]) -> Self:
        """Return the record with other arms."""
        return self.model_copy(update={"arms": arms})

    def filter_arms(self, predicate: Callable[[str], bool]) -> Self:
        """Return the record with only the arms whose names satisfy the predicate; itself where all of them do."""
        arms = {name: arm for name, arm in self.arms.items() if predicate(name)}
        return self.with_arms(arms) if len(arms) < len(self.arms) else self

    def without_guests(self) -> Self:
        """Return the record without its guests. Older records name no part and have no guests."""
        return self.filter_arms(lambda name: part_of(*name.split("_", 1)) == self.part) if self.part else self


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

    def row(self) -> dict[str, Any]:
        """Return the fields under the column names of the tables."""
        return self.model_dump(by_alias=True)


class CodeRecord(Model):
    """Version of the harness's code."""

    commit: str
    hash: str


class BasisRecord(Model):
    """What a measurement depends on besides the study."""

    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    code: CodeRecord


class MissingFrameworkRecord(Model):
    """A framework that is not available, with the reason."""

    framework: str
    reason: str


class HeaderRecord(Model):
    """Fields that every run header has: the study, what it depends on, and how it was started.

    `output_check`: how the bounds of the output check are made.
    """

    key: str
    status: str
    reason: str
    study: Study
    missing: list[MissingFrameworkRecord]
    prototypes: list[Prototype] = []
    basis: BasisRecord
    environments: dict[str, list[WorkerEnvironment]]
    weights: dict[Stored, str]
    command: str
    output_check: str = ""

    @property
    def whole_study(self) -> Study:
        """Return the study, with what held for the settings that older records do not state."""
        unset = NOT_STATED.keys() - self.study.model_fields_set
        return self.study.model_copy(update={name: NOT_STATED[name] for name in unset}) if unset else self.study


class ShardRecord(Model):
    """One shard of a merged run: its name, i/n; the nodes that measured it; and the key of its own header."""

    shard: str
    nodes: list[str]
    key: str


class RunHeaderRecord(HeaderRecord):
    """Run header: the first record of a run, with the cells to be measured and those that cannot be.

    `shards`: those that the run was merged from; none where it was measured as a whole.
    `none_in_training`: what projection `none` means in training.
    `loops`: framework -> execution -> the recurrence that its users write.
    """

    kind: Literal["study"]
    cells: list[CellRecord]
    absent: list[CellRecord]
    none_in_training: str = ""
    loops: dict[str, dict[str, str]] = {}
    shards: list[ShardRecord] = []


class SampleSizeRecord(PassRecord):
    """Required sample size of one block's gaps, with the block's workload and part."""

    workload: Name
    part: str = ""
    processes: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]


class PlanRecord(Model):
    """Required sample sizes from the pilot, recorded before they were measured."""

    key: str
    kind: Literal["plan"]
    status: str
    reason: str
    target: float
    needs: list[SampleSizeRecord]


class SessionRecord(Model):
    """Start of another session of a run. `budget_s`: the session's budget in seconds; None for no limit."""

    key: str
    kind: Literal["resumed"]
    status: str
    reason: str
    command: str
    budget_s: Positive | None


class Costs(Model):
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


class PredictedTimes(Model):
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
    costs: list[Costs]
    expected: list[PredictedTimes]


RunRecord = RunHeaderRecord | SessionRecord | PlanRecord | ForecastRecord | BlockRecord
KNOWN: TypeAdapter[RunRecord] = TypeAdapter(Annotated[RunRecord, Field(discriminator="kind")])
