"""Results of a training: trajectories, their distance from the oracle's, and gaps of time.

Pure: the same records give the same results.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis import stats
from harness.analysis.stats import Gap
from harness.records.store import latest_records
from harness.records.training import (
    OracleLosses,
    ProcessRecord,
    TrainingConfigurationRecord,
    TrainingHeaderRecord,
    TrainingRecord,
)
from harness.study.configuration import Configuration
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
WHOLE = 1500  # steps of the chapter's training, after which our losses must be like its own
LAST = 100  # steps whose median loss is compared
RANGE = (0.035, 0.06)  # where that median must lie


@dataclass(frozen=True)
class FormTrajectory:
    """Trajectory of one form in one configuration.

    `alike` is whether every repetition, the A/A control's included, gave the same bits.
    """

    configuration: TrainingConfigurationRecord
    form: str
    losses: np.ndarray  # [N]
    alike: bool | None  # None where nothing was repeated

    @property
    def name(self) -> str:
        return self.configuration.name


@dataclass(frozen=True)
class TrainingTimes:
    """Times of one configuration: median seconds of a step and seconds of a first step, by form, and gaps.

    The gaps are those of in_loop and of the A/A control.
    """

    configuration: TrainingConfigurationRecord
    step_s: dict[str, float]
    first_call_s: dict[str, float]
    gaps: dict[str, Gap]
    verdict: str


def excess_reason(losses: Sequence[float], oracle: OracleLosses) -> str:
    """Return a sentence on the first loss that is further from the truth than rounding explains, or nothing."""
    distances = relative_differences(losses, oracle.losses)
    for step, (error, bound) in enumerate(zip(distances, oracle.bounds, strict=False), 1):
        if not error <= bound:
            return f"the loss of step {step} is off by {error:.2g} (bound {bound:.2g})"
    return ""


def relative_differences(losses: Sequence[float] | np.ndarray, true: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the relative difference from the truth at each step, as far as both go."""
    count = min(len(losses), len(true))
    truth = np.asarray(true[:count], float)
    return np.abs(np.asarray(losses[:count], float) - truth) / truth


def median_of_last_steps(losses: Sequence[float] | np.ndarray) -> float:
    """Return the median loss of the last steps."""
    return float(np.median(losses[-LAST:]))


def ends_in_range(losses: Sequence[float] | np.ndarray) -> bool | None:
    """Return whether a whole training ended where the notebook's did; None for a shorter one."""
    return None if len(losses) < WHOLE else RANGE[0] <= median_of_last_steps(losses) <= RANGE[1]


def header_of(records: Sequence[TrainingRecord]) -> TrainingHeaderRecord:
    """Return a training's header, which is its first record."""
    header = records[0]
    assert isinstance(header, TrainingHeaderRecord)
    return header


def latest_processes(records: Sequence[TrainingRecord]) -> list[ProcessRecord]:
    """Return the last record of every process, in the order of their configurations and replicates."""
    processes = latest_records(records, ProcessRecord)
    return sorted(processes, key=lambda record: (record.configuration, record.recurrence, record.replicate))


def form_trajectories(records: Sequence[TrainingRecord]) -> list[FormTrajectory]:
    """Return the trajectory of every form, from the first process that has it whole."""
    steps = header_of(records).steps
    trajectories = []
    for configuration, group in _group_by_configuration(latest_processes(records)):
        for form in NOTEBOOK:
            whole = [p.forms[form].losses for p in group if len(p.forms[form].losses) == steps]
            controls = [p.forms[TWIN].losses for p in group] if form == BATCHED else []
            if whole:
                repetitions = [*whole[1:], *(losses for losses in controls if len(losses) == steps)]
                alike = all(losses == whole[0] for losses in repetitions) if repetitions else None
                trajectories.append(FormTrajectory(configuration, form, np.array(whole[0]), alike))
    return trajectories


def training_times(records: Sequence[TrainingRecord]) -> list[TrainingTimes]:
    """Return the times of every configuration that has a timed process with all forms sound."""
    margin = header_of(records).study.margin
    samples: dict[tuple[int, str], stats.Sample] = {}
    configurations = [
        (configuration, _timed_processes(group))
        for configuration, group in _group_by_configuration(latest_processes(records))
    ]
    configurations = [(configuration, group) for configuration, group in configurations if group]
    for index, (_, group) in enumerate(configurations):
        for form in ("in_loop", TWIN):
            pairs = [(p.forms[form].samples_ns, p.forms[BATCHED].samples_ns) for p in group]
            samples[index, form] = stats.gap_sample(pairs)
    gaps = {key: stats.estimate_gap(sample, margin) for key, sample in samples.items()}
    verdicts = _verdicts(
        [configuration for configuration, _ in configurations],
        [gaps[index, "in_loop"] for index in range(len(configurations))],
    )
    return [
        TrainingTimes(
            configuration,
            _median_step_s(group),
            _first_step_s(group),
            {form: gaps[index, form] for form in ("in_loop", TWIN)},
            verdict,
        )
        for index, ((configuration, group), verdict) in enumerate(zip(configurations, verdicts, strict=True))
    ]


def _verdicts(configurations: list[TrainingConfigurationRecord], gaps: list[Gap]) -> list[str]:
    """Return a verdict for each configuration, corrected over those of one framework and execution."""
    families: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(configurations):
        families.setdefault((entry.configuration.framework, entry.configuration.execution), []).append(index)
    verdicts: dict[int, str] = {}
    for members in families.values():
        verdicts |= dict(zip(members, stats.verdicts([gaps[index] for index in members]), strict=True))
    return [verdicts[index] for index in range(len(configurations))]


def _group_by_configuration(
    records: list[ProcessRecord],
) -> Iterable[tuple[TrainingConfigurationRecord, list[ProcessRecord]]]:
    groups: dict[tuple[Configuration, str], list[ProcessRecord]] = {}
    for record in records:
        groups.setdefault((record.configuration, record.recurrence), []).append(record)
    return [
        (TrainingConfigurationRecord(configuration=configuration, recurrence=recurrence), group)
        for (configuration, recurrence), group in groups.items()
    ]


def _timed_processes(records: list[ProcessRecord]) -> list[ProcessRecord]:
    """Return the processes whose forms are all sound and were timed."""
    return [p for p in records if all(form.status == "ok" and form.samples_ns for form in p.forms.values())]


def _median_step_s(records: list[ProcessRecord]) -> dict[str, float]:
    """Return the median over processes of each process's median step in seconds, by form."""
    return {
        form: statistics.median(statistics.median(p.forms[form].samples_ns) for p in records) / 1e9 for form in NOTEBOOK
    }


def _first_step_s(records: list[ProcessRecord]) -> dict[str, float]:
    """Return the seconds of the first step, by form, of the process that compiles, or of the first there is."""
    calls_ns = {form: records[0].forms[form].first_call_ns for form in NOTEBOOK}
    return {form: call_ns / 1e9 for form, call_ns in calls_ns.items() if call_ns is not None}


def problems(records: Sequence[TrainingRecord]) -> list[str]:
    """Return a sentence for each form that is not sound, and for each training that ended outside RANGE."""
    sentences = []
    for p in latest_processes(records):
        sentences += [
            f"{trajectory.status}: {p.name}, {form}, process {p.replicate}: {trajectory.reason}"
            for form, trajectory in p.forms.items()
            if trajectory.status not in ("ok", "unavailable")
        ]
    sentences += [
        f"{line.name}, {line.form}: the median MSE of the last {LAST} steps is "
        f"{median_of_last_steps(line.losses):.4f}, outside {RANGE[0]:g} to {RANGE[1]:g}"
        for line in form_trajectories(records)
        if ends_in_range(line.losses) is False
    ]
    return sentences
