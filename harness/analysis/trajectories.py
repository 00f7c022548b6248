"""A training's records, and what is made of them: trajectories, how far they are from the oracle's, gaps of time.

The first line describes the training (kind "training"), the second holds the oracle's trajectories (kind "oracle");
every other one is one process that trained both forms of one configuration (kind "process").
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter

from harness.analysis import stats
from harness.analysis.stats import Gap
from harness.records import schema
from harness.records.schema import Begun, Nanoseconds, Samples
from harness.records.store import Format, Record, latest
from harness.study.parts import BATCHED, TWIN

NOTEBOOK = {  # mean squared errors that the chapter's notebook printed, every 100 iterations from 0
    "in_loop": [
        11.967254, 0.525841, 0.1495599, 0.07279411, 0.06158535, 0.05938873, 0.05470166, 0.047849063,
        0.05107608, 0.047209196, 0.047058314, 0.047831465, 0.04083041, 0.047086805, 0.041784383,
    ],
    BATCHED: [
        13.907029, 0.5056698, 0.19735886, 0.101214476, 0.06850145, 0.06291986, 0.055129297, 0.049436502,
        0.050434686, 0.0482007, 0.04809868, 0.04982501, 0.041912545, 0.049292978, 0.043140374,
    ],
}  # fmt: skip
EVERY = 100  # iterations between the notebook's prints
WHOLE = 1500  # steps of the chapter's training, after which its losses and ours are to be alike
LAST = 100  # steps whose median loss is compared
RANGE = (0.035, 0.06)  # where that median is to lie


class Configuration(schema.Configuration):
    """Where a process trains, and the recurrence that both forms have there."""

    recurrence: str


class Form(BaseModel):
    """One form's trajectory, see harness.worker.training."""

    status: str
    reason: str
    first_call_ns: Nanoseconds | None
    samples_ns: Samples
    losses: list[float]


class Process(Configuration):
    """One process. `seconds`: of its training, without its start."""

    key: str
    kind: Literal["process"]
    status: str
    reason: str
    replicate: Annotated[int, Field(ge=0)]
    began: str
    load: float
    start_s: float | None
    seconds: float | None
    threads_used: float | None
    forms: dict[str, Form]


class Oracle(BaseModel):
    """Losses in float64, the truth; in float32, for comparison; and by how much the first may differ from the truth."""

    key: str
    kind: Literal["oracle"]
    status: str
    reason: str
    losses: Annotated[list[float], Field(min_length=1)]
    float32: Annotated[list[float], Field(min_length=1)]
    bounds: Annotated[list[float], Field(min_length=1)]


class Absent(BaseModel):
    """An execution that is not trained in, and why."""

    framework: str
    execution: str
    reason: str


class Heading(Begun):
    """The first record: what was to be trained, on what."""

    kind: Literal["training"]
    steps: Annotated[int, Field(ge=1)]
    seats: list[Configuration]
    absent: list[Absent]


KNOWN: TypeAdapter[Heading | Oracle | Process] = TypeAdapter(
    Annotated[Heading | Oracle | Process, Field(discriminator="kind")]
)
TRAINING = Format("train.jsonl", KNOWN, "training", ("seats", "weights"))
CONFIG = tuple(Configuration.model_fields)


@dataclass(frozen=True)
class Line:
    """One form's trajectory in one configuration, and whether every repetition, the twins' too, gave the same bits."""

    configuration: dict[str, Any]
    form: str
    losses: np.ndarray  # [N]
    alike: bool | None  # None where nothing was repeated

    @property
    def name(self) -> str:
        return f"{self.configuration['framework']} {self.configuration['execution']} {self.configuration['recurrence']}"


@dataclass(frozen=True)
class Compared:
    """A configuration's times: median seconds of a step, of a first step, by form; gaps of in_loop and of the twin."""

    configuration: dict[str, Any]
    step_s: dict[str, float]
    first_call_s: dict[str, float]
    gaps: dict[str, Gap]
    verdict: str


def off(losses: Sequence[float], oracle: Record) -> str:
    """How a trajectory's first losses are further from the truth than rounding explains, in a sentence; or nothing."""
    apart = distance(losses, oracle["losses"])
    for step, (found, bound) in enumerate(zip(apart, oracle["bounds"], strict=False), 1):
        if not found <= bound:
            return f"the loss of step {step} is off by {found:.2g} (bound {bound:.2g})"
    return ""


def distance(losses: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> np.ndarray:
    """Relative difference from the truth, step by step, as far as both go."""
    count = min(len(losses), len(true))
    truth = np.asarray(true[:count], float)
    return np.abs(np.asarray(losses[:count], float) - truth) / truth


def final(losses: Sequence[float] | np.ndarray) -> float:
    """Median loss of the last steps."""
    return float(np.median(losses[-LAST:]))


def within(losses: Sequence[float] | np.ndarray) -> bool | None:
    """Whether a whole training ended where the notebook's did; None for a shorter one."""
    return None if len(losses) < WHOLE else RANGE[0] <= final(losses) <= RANGE[1]


def processes(records: list[Record]) -> list[Record]:
    """The last record of every process, in the order of their configurations and replicates."""
    found = latest(records, ("process",))
    return sorted(found, key=lambda record: (*(record[name] for name in CONFIG), record["replicate"]))


def lines(records: list[Record]) -> list[Line]:
    """Every form's trajectory, that of the first process that has it whole."""
    steps = records[0]["steps"]
    made = []
    for configuration, some in _by_configuration(processes(records)):
        for form in NOTEBOOK:
            whole = [p["forms"][form]["losses"] for p in some if len(p["forms"][form]["losses"]) == steps]
            twins = [p["forms"][TWIN]["losses"] for p in some] if form == BATCHED else []
            if whole:
                again = [*whole[1:], *(losses for losses in twins if len(losses) == steps)]
                alike = all(losses == whole[0] for losses in again) if again else None
                made.append(Line(configuration, form, np.array(whole[0]), alike))
    return made


def compared(records: list[Record]) -> list[Compared]:
    """The times of every configuration that has any, in which both forms are sound."""
    margin = records[0]["study"]["margin"]
    samples: dict[tuple[int, str], stats.Sample] = {}
    configurations = [(configuration, _timed(some)) for configuration, some in _by_configuration(processes(records))]
    configurations = [(configuration, some) for configuration, some in configurations if some]
    for at, (_, some) in enumerate(configurations):
        for form in ("in_loop", TWIN):
            pairs = [(p["forms"][form]["samples_ns"], p["forms"][BATCHED]["samples_ns"]) for p in some]
            samples[at, form] = stats.sample(pairs)
    gaps = {key: stats.gap(sample, margin) for key, sample in samples.items()}
    verdicts = _verdicts(
        [configuration for configuration, _ in configurations],
        [gaps[at, "in_loop"] for at in range(len(configurations))],
    )
    return [
        Compared(
            configuration,
            _median_s(some),
            _first_s(some),
            {form: gaps[at, form] for form in ("in_loop", TWIN)},
            verdict,
        )
        for at, ((configuration, some), verdict) in enumerate(zip(configurations, verdicts, strict=True))
    ]


def _verdicts(configurations: list[dict[str, Any]], gaps: list[Gap]) -> list[str]:
    """A verdict for each configuration, corrected over those of one framework and execution."""
    families: dict[tuple[str, str], list[int]] = {}
    for at, configuration in enumerate(configurations):
        families.setdefault((configuration["framework"], configuration["execution"]), []).append(at)
    found: dict[int, str] = {}
    for members in families.values():
        found |= dict(zip(members, stats.verdicts([gaps[at] for at in members]), strict=True))
    return [found[at] for at in range(len(configurations))]


def _by_configuration(found: list[Record]) -> Iterable[tuple[dict[str, Any], list[Record]]]:
    grouped: dict[tuple[Any, ...], list[Record]] = {}
    for record in found:
        grouped.setdefault(tuple(record[name] for name in CONFIG), []).append(record)
    return [(dict(zip(CONFIG, key, strict=True)), some) for key, some in grouped.items()]


def _timed(some: list[Record]) -> list[Record]:
    """Processes whose forms are all sound and were timed."""
    return [p for p in some if all(f["status"] == "ok" and f["samples_ns"] for f in p["forms"].values())]


def _median_s(some: list[Record]) -> dict[str, float]:
    """Median over processes of each one's median step, by form."""
    return {
        form: statistics.median(statistics.median(p["forms"][form]["samples_ns"]) for p in some) / 1e9
        for form in NOTEBOOK
    }


def _first_s(some: list[Record]) -> dict[str, float]:
    """The first step of the process that compiles, or of the first there is."""
    return {form: some[0]["forms"][form]["first_call_ns"] / 1e9 for form in NOTEBOOK}


def bad(records: list[Record]) -> list[str]:
    """What went wrong, a sentence each: forms that are not sound, and trainings that ended elsewhere."""
    said = []
    for p in processes(records):
        place = f"{p['framework']} {p['execution']} {p['recurrence']}"
        said += [
            f"{found['status']}: {place}, {form}, process {p['replicate']}: {found['reason']}"
            for form, found in p["forms"].items()
            if found["status"] not in ("ok", "unavailable")
        ]
    said += [
        f"{line.name}, {line.form}: the median MSE of the last {LAST} steps is {final(line.losses):.4f}, "
        f"outside {RANGE[0]:g} to {RANGE[1]:g}"
        for line in lines(records)
        if within(line.losses) is False
    ]
    return said
