"""The messages between a run and its workers: one JSON object a line, which one of these models reads and writes."""

import json
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from harness.records.counts import CountRecord
from harness.records.pair import Differences, InputRecord
from harness.records.schema import ArmTiming, CallOverheads, Model, PeakRates
from harness.records.training import OracleLosses, Trajectory
from harness.study.matrix import Framework
from harness.study.study import Workload
from harness.worker.timing import RoundLimits
from impls.interface import Arm, Settings


class FactsRequest(Model):
    """Asks for the framework's facts about itself, and for the environments of its workers.

    `cache` stands for the folder of the compilation caches, which is not known yet. `library`: the study's.
    """

    kind: Literal["facts"] = "facts"
    threads: list[int]
    devices: list[str]
    cache: str
    library: str = "as_shipped"


class FactsAnswer(Model):
    """The framework's facts, or in its `missing` why there are none."""

    kind: Literal["facts"] = "facts"
    framework: Framework


class OpenRequest(Model):
    """Asks to open the framework: with `rate` also to measure its peak rates, with `prove` to prove its threads.

    `products`: shapes (rows, inner, columns) whose products are also measured with the rates, in the `execution`.
    """

    kind: Literal["open"] = "open"
    settings: Settings
    prove: bool
    rate: bool
    execution: str = ""
    products: tuple[tuple[int, int, int], ...] = ()


class OpenAnswer(Model):
    """How the framework was opened.

    `numerics`: its numeric settings, read back. `proven`: whether it uses as many threads as were set, and
    `threads_used` how many cores it kept busy; both are None where no proof was asked for.
    """

    kind: Literal["open"] = "open"
    numerics: dict[str, str]
    rates: PeakRates | None = None
    proven: bool | None = None
    threads_used: float | None = None


class BlockRequest(Model):
    """Asks for one block; see harness.worker.timing.TimingSpec for what is not said here.

    `steps`: how many of the workload's. `weights`: the folder of weights and inputs. `outputs`: the folder to write
    outputs into. `texts`: the folder for the programs' texts, which are not written without one.
    """

    kind: Literal["block"] = "block"
    workload: Workload
    steps: int
    pass_: str
    execution: str
    arms: list[Arm]
    weights: str
    outputs: str
    rounds: RoundLimits | None
    seed: int
    seconds: float
    counted: list[Arm]
    control: bool
    calls: int | None
    hurried: bool
    loop: str = ""
    overwrites: bool
    texts: str | None = None
    peaks: bool = False


class BlockAnswer(Model):
    """What a block measured; its outputs are in the files that the request names."""

    kind: Literal["block"] = "block"
    arms: dict[str, ArmTiming]
    timer_ns: float
    floors: CallOverheads


class UnwrittenAnswer(Model):
    """A file could not be written, with the reason."""

    kind: Literal["unwritten"] = "unwritten"
    reason: str


class OracleRequest(Model):
    """Asks for the oracle's trajectories of a training."""

    kind: Literal["oracle"] = "oracle"
    workload: Workload
    weights: str


class OracleAnswer(Model):
    """The oracle's trajectories."""

    kind: Literal["oracle"] = "oracle"
    losses: OracleLosses


class TrainRequest(Model):
    """Asks for a training of all forms of one recurrence."""

    kind: Literal["train"] = "train"
    workload: Workload
    weights: str
    execution: str
    recurrence: str
    seed: int


class TrainAnswer(Model):
    """The trajectory of each form."""

    kind: Literal["train"] = "train"
    forms: dict[str, Trajectory]


class CountRequest(Model):
    """Asks what an arm's program would launch on a card that this machine need not have. See CountRecord."""

    kind: Literal["count"] = "count"
    card: str
    workload: Workload
    arm: Arm
    pass_: str
    triton: bool


class CountAnswer(Model):
    """The count, or in `missing` why nothing can be counted at all; a program that fails has a reason in its record."""

    kind: Literal["count"] = "count"
    record: CountRecord | None = None
    missing: str = ""


class PairCheckRequest(Model):
    """Asks to check that the functions of a user's file compute the same; see harness.worker.pair_check.

    `precision`: of the inputs. `hoist`: whether the baseline is one of the functions a second time, with the work taken
    out of its loops. `exact`: whether the inputs are cast to float64, where the functions may then differ least.
    `expected`: the file to write the baseline's outputs and their bounds into.
    """

    kind: Literal["pair_check"] = "pair_check"
    file: str
    seed: int
    precision: str
    hoist: bool = False
    exact: bool
    expected: str | None = None


class PairCheckAnswer(Model):
    """What a file holds, and for each function how far it is from the baseline; see the header of a pair's records."""

    kind: Literal["pair_check"] = "pair_check"
    functions: list[str]
    inputs: list[InputRecord]
    gradients: list[str]
    sources: dict[str, str]
    differences: dict[str, Differences]
    hoisted: Annotated[list[str], Field(default_factory=list)]


class PairTimeRequest(Model):
    """Asks to time the functions of a user's file side by side in one execution and pass.

    `expected`: the file that a check has written. `left_out`: functions that cannot be run in this execution.
    `order_seed`: of the orders and addresses. `counted`: whether a call's operations are counted afterwards. `prove`:
    whether the threads are proven first. That comes after the file has been imported, which may have set others.
    """

    kind: Literal["pair_time"] = "pair_time"
    file: str
    seed: int
    precision: str
    hoist: bool = False
    execution: str
    pass_: str
    expected: str
    left_out: list[str]
    rounds: RoundLimits
    order_seed: int
    calls: int | None
    counted: bool
    prove: bool


class PairTimeAnswer(Model):
    """Times of every function, or none where the threads were not proven; see OpenAnswer for `proven`."""

    kind: Literal["pair_time"] = "pair_time"
    proven: bool | None = None
    threads_used: float | None = None
    timer_ns: float = 0.0
    arms: dict[str, ArmTiming] = Field(default_factory=dict)
    differences: dict[str, Differences] = Field(default_factory=dict)


class PairRefusedAnswer(Model):
    """A user's file cannot be used, with the reason in one sentence."""

    kind: Literal["pair_refused"] = "pair_refused"
    reason: str


class StageAnswer(Model):
    """Comes before an answer: what is about to happen, to which arm."""

    kind: Literal["stage"] = "stage"
    arm: str
    what: str


Request = (
    FactsRequest
    | OpenRequest
    | BlockRequest
    | OracleRequest
    | TrainRequest
    | CountRequest
    | PairCheckRequest
    | PairTimeRequest
)
Answer = (
    FactsAnswer
    | OpenAnswer
    | BlockAnswer
    | UnwrittenAnswer
    | OracleAnswer
    | TrainAnswer
    | CountAnswer
    | PairCheckAnswer
    | PairTimeAnswer
    | PairRefusedAnswer
)
REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
ANSWER: TypeAdapter[Answer | StageAnswer] = TypeAdapter(Annotated[Answer | StageAnswer, Field(discriminator="kind")])


def encode(message: Request | Answer | StageAnswer) -> bytes:
    """Return a message as a line. A path whose bytes are no text is escaped, which pydantic's own JSON cannot do."""
    return json.dumps(message.model_dump()).encode() + b"\n"


def decode_request(line: bytes) -> Request:
    """Return the request of a line."""
    return REQUEST.validate_python(json.loads(line))


def decode_answer(line: bytes) -> Answer | StageAnswer:
    """Return the answer of a line."""
    return ANSWER.validate_python(json.loads(line))
