"""What a record may be: each line of a run's records is one of these, whoever wrote it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, model_validator

from harness.study.study import Name, Study, Workload
from harness.verify.output_check import form_of
from impls.evidence import ITEM_BYTES, Evidence

Nanoseconds = Annotated[int, Field(ge=0)]
Natural = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _all_positive(values: Any) -> Any:
    """A list of whole numbers above 0: told here, for millions of them take pydantic as long as all the rest."""
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) <= 0)):
        raise ValueError("samples are a list of whole numbers of nanoseconds, each at least 1")
    return values


Samples = Annotated[Any, AfterValidator(_all_positive)]  # nanoseconds; a list itself would be copied


def _counts(values: Any) -> Any:
    """A list of whole numbers of at least 0."""
    if type(values) is not list or (values and (set(map(type, values)) != {int} or min(values) < 0)):
        raise ValueError("faults are a list of whole numbers, each at least 0")
    return values


Faults = Annotated[Any, AfterValidator(_counts)]


def _known(precision: str) -> str:
    if precision not in ITEM_BYTES:
        raise ValueError(f"there is no precision {precision!r}")
    return precision


def _of_a_workload(file: str) -> str:
    """Return the name of a stored file where it begins with a workload's; else raise ValueError."""
    name, _, kind = file.partition(".")
    NAME.validate_python(name)
    if kind not in STORED:
        raise ValueError(f"{file!r} is no file of weights or inputs")
    return file


NAME: TypeAdapter[str] = TypeAdapter(Name)
STORED = ("weights.safetensors", "inputs.safetensors", "batches.safetensors")
Stored = Annotated[str, AfterValidator(_of_a_workload)]


class ArmTiming(BaseModel):
    """One arm of a block. `faults`: minor page faults in each sample, where they were counted. `quantities`: name ->
    root-mean-square error, worst, bitwise equal to batched, ULP.
    """

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    calls: Annotated[int, Field(ge=1)]
    samples_ns: Samples
    faults: Faults = []
    quantities: dict[str, tuple[float, float, bool | None, float | None]] = {}
    evidence: Evidence | None = None


class Floors(BaseModel):
    """Nanoseconds a call: of an empty program, and of the timed region itself. `reason` is why there is none."""

    harness_ns: float | None = None
    null_ns: float | None = None
    reason: str = ""


class Rates(BaseModel):
    """What a framework did at best: operations a second of a large product, nanoseconds of scaling so many numbers;
    and nanoseconds of a page fault.
    """

    flops_s: Positive
    scale_ns: Annotated[dict[Natural, Positive], Field(min_length=1)]
    fault_ns: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Configuration(BaseModel):
    """Where a worker sits, see harness.study.matrix."""

    framework: str
    device: str
    threads: int
    execution: str
    precision: Annotated[str, AfterValidator(_known)]


class Place(Configuration):
    """Where a block, a cell or a need belongs, but for its workload."""

    pass_: Annotated[str, Field(alias="pass")]


class Block(Place):
    """Arms of one workload and pass in one worker; `part` says which (harness.study.parts), nothing: all there were.

    `bounds`: form -> quantity -> bounds of the first two errors. `first_try`: the GPU was throttled, and the block is
    done again; `redone`: this is the second try of such a block.
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
    rates: Rates | None = None
    gpu: dict[str, dict[str, Any]] | None = None
    throttled: list[str] = []
    first_try: bool = False
    redone: bool = False
    floors: Annotated[Floors, Field(default_factory=Floors)]
    bounds: dict[str, dict[str, tuple[float, float]]]
    arms: dict[str, ArmTiming]

    @model_validator(mode="after")
    def _whole(self) -> "Block":
        for name, arm in self.arms.items():
            if unbounded := arm.quantities.keys() - self.bounds.get(form_of(name), {}).keys():
                raise ValueError(f"{name} has no bound for {', '.join(sorted(unbounded))}")
        if len({len(arm.samples_ns) for arm in self.arms.values() if arm.status == "ok" and arm.samples_ns}) > 1:
            raise ValueError("the arms of a block have as many samples, one a round")
        if any(arm.faults and len(arm.faults) != len(arm.samples_ns) for arm in self.arms.values()):
            raise ValueError("an arm has as many counts of page faults as samples, or none")
        if untold := Workload.model_fields.keys() - self.workload.model_fields_set:
            raise ValueError(f"the workload lacks {', '.join(sorted(untold))}")
        return self


class Cell(Place):
    """A row of the tables without times, with status and reason where it can not be measured."""

    workload: Name
    cell: str
    B: int
    T: int
    I: int  # noqa: E741  the word of the study
    H: int
    O: int  # noqa: E741
    recurrence: str
    projection: str
    status: str = ""
    reason: str = ""


class Code(BaseModel):
    commit: str
    hash: str


class Basis(BaseModel):
    """What a number depends on besides the study."""

    machine: dict[str, Any]
    versions: dict[str, dict[str, str]]
    code: Code


class Environment(BaseModel):
    device: str
    threads: int
    variables: dict[str, str]


class Missing(BaseModel):
    framework: str
    reason: str


class Prototype(BaseModel):
    """Programs that rest on what their framework's authors mark as a prototype; `reason` says so."""

    framework: str
    execution: str
    recurrence: str
    reason: str


class Begun(BaseModel):
    """What every first record says: what was wanted, of what, on what. `output_check`: how bounds are made."""

    key: str
    status: str
    reason: str
    study: Study
    missing: list[Missing]
    prototypes: list[Prototype] = []
    basis: Basis
    environments: dict[str, list[Environment]]
    weights: dict[Stored, str]
    command: str
    output_check: str = ""


class Heading(Begun):
    """The first record: what was to be studied, on what. `none_in_training`: what projection none is there."""

    kind: Literal["study"]
    cells: list[Cell]
    absent: list[Cell]
    none_in_training: str = ""


class SampleSize(Place):
    """What the gaps of one block need, and the block it is."""

    workload: Name
    part: str = ""
    processes: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]


class Planned(BaseModel):
    """What the pilot asked for, recorded before it was measured."""

    key: str
    kind: Literal["plan"]
    status: str
    reason: str
    target: float
    needs: list[SampleSize]


class Resumed(BaseModel):
    """The run is gone on with from here under another budget, of seconds; None is no limit."""

    key: str
    kind: Literal["resumed"]
    status: str
    reason: str
    command: str
    budget_s: Positive | None


class Costs(BaseModel):
    """Seconds of one pass besides its arithmetic: of a call, of a step, and of what a projection adds: in the loop
    once and with each product, and after it.
    """

    pass_: Annotated[str, Field(alias="pass")]
    call_s: float
    step_s: float
    in_loop_s: float
    product_s: float
    after_s: float


class Expected(BaseModel):
    """Seconds of a call of each arm of one workload and pass, as they are expected."""

    workload: Name
    pass_: Annotated[str, Field(alias="pass")]
    none_s: Positive
    in_loop_s: Positive
    batched_s: Positive


class Forecast(Configuration):
    """What is expected of a configuration's programs of one recurrence, recorded before they were measured."""

    key: str
    kind: Literal["forecast"]
    status: str
    reason: str
    recurrence: str
    costs: list[Costs]
    expected: list[Expected]


Line = Heading | Resumed | Planned | Forecast | Block
KNOWN: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])
