"""The report of a comparison of a user's functions, a pure function of its records."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.analysis import pairs
from harness.analysis.pairs import FunctionTimes, PairGap
from harness.analysis.stats import UNKNOWN
from harness.errors import UsageError
from harness.machine import folders
from harness.records.pair import PAIR, Differences, PairHeaderRecord, PairRecord, TimedRecord
from harness.records.store import read_records
from harness.report import appendix, write_markdown
from harness.report.markdown import FRAMEWORKS, Row, duration, interval, one_line, pluralize, ratio, seconds, table
from harness.report.pages import render
from harness.study.configuration import Configuration
from harness.verify import agreement
from impls.evidence import Evidence, issued

PAGE = "pair.md"
MARK = "⚠ "  # before a ratio that does not count


def write(folder: Path, out: Path | None = None) -> Path:
    """Write pair.md from the records in `folder`, into `out` (by default `folder`), and return its path.

    Raises UsageError on records that cannot be read.
    """
    records = read_records(folder, PAIR)
    if not records:
        raise UsageError(f"{folder / PAIR.file} is empty")
    out = out or folder
    folders.make_folder(out)
    with folders.add_path_to_errors(out):
        return write_markdown(render("pair.md.j2", context(records)), out, PAGE)


def context(records: Sequence[PairRecord]) -> Row:
    """Return the template's variables."""
    header, timed = pairs.header_of(records), pairs.timed_records(records)
    gaps, times = pairs.pair_gaps(records), pairs.function_times(records)
    configuration = header.configurations[0]
    used = [record.threads_used for record in timed if record.threads_used is not None]
    return {
        "header": header,
        "framework": FRAMEWORKS.get(configuration.framework, configuration.framework),
        "precision": configuration.precision,
        "threads": pluralize(configuration.threads, "thread"),
        "sentences": verdict_sentences(records),
        "bad": [one_line(sentence) for sentence in pairs.problems(records)],
        "ratios": ratio_table(gaps, header.baseline),
        "times": time_table(times),
        "counts": count_table(times),
        "unavailable": [one_line(sentence) for sentence in pairs.unavailable(records)],
        "uncounted": list(missing_counts(times)),
        "agreement": agreement_sentence(header),
        "differences": difference_table(header),
        "in_processes": process_difference_table(timed),
        "inputs": table(
            ["input", "shape", "type", "SHA-256"],
            [[entry.name, entry.shape, entry.dtype, entry.sha256] for entry in header.inputs],
        ),
        "processes": len({(record.configuration, record.replicate) for record in timed}),
        "began": min((record.began for record in timed), default="never"),
        "load": max((record.load for record in timed), default=0.0),
        "spent": duration(sum(record.seconds or 0 for record in timed)),
        "threads_used": f"{min(used):.2f} to {max(used):.2f}" if used else "not known",
        "environments": appendix.environments(_environments(header), ["cpu"]),
        "fence": "`" * max([3, *(len(run) + 1 for run in re.findall("`+", header.text))]),
    }


def verdict_sentences(records: Sequence[PairRecord]) -> list[str]:
    """Return a sentence for each function: its ratios to the baseline and what is shown of them."""
    header, gaps = pairs.header_of(records), pairs.pair_gaps(records)
    way = "in float64" if header.agreement.method == "fp64" else "up to rounding"
    sentences = []
    for contender in header.contenders:
        own = [gap for gap in gaps if gap.contender == contender]
        clauses = [_clause(gap, "" if index else header.baseline) for index, gap in enumerate(own)]
        takes = f"takes {', '.join(clauses)}" if own else f"has no times beside {header.baseline}"
        sentences.append(f"{contender} {takes}; they are the same function (checked {way}).")
    return sentences


def _clause(gap: PairGap, baseline: str) -> str:
    """Return what is said of one ratio; `baseline`: "" where it has been named before."""
    long = f" times as long as {baseline}" if baseline else ""
    text = f"{interval(gap.gap.ratio, gap.gap.low, gap.gap.high)}{long} in {_place(gap.configuration, gap.pass_)}"
    if not gap.has_interval:
        return text
    return f"{text} ({gap.verdict if gap.is_included else 'not counted: its A/A control misses 1'})"


def _place(configuration: Configuration, pass_: str) -> str:
    return f"{configuration.execution} {pass_}"


def ratio_table(gaps: Iterable[PairGap], baseline: str) -> str:
    """Tabulate the ratios with their directions, verdicts and controls."""
    rows = []
    for gap in gaps:
        row = {"ratio": gap.gap.ratio, "ci_low": gap.gap.low, "ci_high": gap.gap.high}
        text = ratio(row | {"verdict": gap.verdict, "direction": gap.gap.direction})
        control = gap.control
        control_row = {"ratio": control.ratio, "ci_low": control.low, "ci_high": control.high, "verdict": ""}
        mark = "" if gap.is_included or not gap.has_interval else MARK
        rows.append(
            [
                gap.configuration.execution,
                gap.pass_,
                gap.contender,
                mark + text,
                ratio(control_row | {"direction": UNKNOWN}).strip(),
                gap.gap.processes,
                gap.rounds,
            ]
        )
    columns = ["execution", "pass", "function", f"over {baseline}", f"{baseline} / {baseline} (A/A)", "processes"]
    return table([*columns, "rounds"], rows)


def time_table(times: Iterable[FunctionTimes]) -> str:
    """Tabulate the times of calls."""
    rows = [
        [t.configuration.execution, t.pass_, t.function, seconds(t.call_s), seconds(t.first_call_s), t.calls]
        for t in times
    ]
    return table(["execution", "pass", "function", "a call", "first call", "calls a sample"], rows)


def count_table(times: Iterable[FunctionTimes]) -> str:
    """Tabulate what one call of each function does, as far as it was counted."""
    rows = [[t.configuration.execution, t.pass_, t.function, *_counts(t.evidence)] for t in times]
    columns = ["execution", "pass", "function", "products", "their shapes", "written", "kernels", "fusions", "loops"]
    return table(columns, rows)


def _counts(evidence: Evidence | None) -> list[str]:
    """Return the cells of a function's counts; a dash where something was not counted."""
    if evidence is None or "everything" in evidence.missing:
        return ["–"] * 6
    is_known = "products" not in evidence.missing
    return [
        str(issued(evidence.products)) if is_known else "–",
        " ".join(map(str, evidence.products)) or "–",
        str(issued(evidence.written)) if evidence.written else "–",
        str(sum(evidence.kernels.values())) if "kernels" not in evidence.missing else "–",
        "–" if evidence.fusions is None else str(evidence.fusions),
        ", ".join(map(str, evidence.loops)) or "–",
    ]


def missing_counts(times: Iterable[FunctionTimes]) -> Iterable[str]:
    """Yield what was not counted, why, and where."""
    places: dict[str, list[str]] = {}
    for t in times:
        missing = {"everything": "the first process has no times"} if t.evidence is None else t.evidence.missing
        for what, reason in missing.items():
            if what not in ("temp_bytes", "libraries"):  # of which nothing is tabulated here
                place = f"{_place(t.configuration, t.pass_)} {t.function}"
                places.setdefault(f"{what}: {one_line(reason)}", []).append(place)
    yield from (f"{reason} ({', '.join(where)})" for reason, where in places.items())


def agreement_sentence(header: PairHeaderRecord) -> str:
    """Say how the functions were shown to be the same, and how far they may be apart."""
    rounding = (
        f"An element may be off by {agreement.ROUNDING:g} standard deviations of what rounding the inputs does to it, "
        f"and by more where an array has above {agreement.SHORT:,} numbers"
    )
    measured = "measured by changing the inputs at random"
    if header.agreement.method == "fp64":
        return (
            f"Checked in float64 and in the functions' own precision before anything was timed. {rounding}; in "
            f"float64 also by {agreement.FP64:g} of the size of the terms that it is made of; both are {measured}."
        )
    reason = one_line(header.agreement.reason)
    return (
        f"Checked up to rounding before anything was timed, and not in float64: {reason}. {rounding}. It is {measured}."
    )


def difference_table(header: PairHeaderRecord) -> str:
    """Tabulate how far each function is from the baseline, in float64 and in its own precision."""
    own = header.configurations[0].precision
    rows = [
        [where, name, *cells]
        for where, found in (("float64", header.agreement.fp64), (own, header.agreement.rounding))
        for name, differences in found.items()
        if name != header.baseline
        for cells in _difference_cells(differences)
    ]
    return table(["in", "function", "worst element", "difference", "bound", "share of the bound"], rows)


def _difference_cells(differences: Differences) -> Iterable[list[str]]:
    """Yield the cells of each quantity's worst element."""
    for difference in differences.values():
        yield [difference.place, f"{difference.error:.1e}", f"{difference.bound:.1e}", f"{difference.share:.2g}"]


def process_difference_table(timed: Iterable[TimedRecord]) -> str:
    """Tabulate the largest difference of each function from the baseline's checked outputs, over processes."""
    largest: dict[tuple[str, str, str], agreement.Difference] = {}
    for record in timed:
        for name, differences in record.differences.items():
            for difference in differences.values():
                key = (record.configuration.execution, record.pass_, name)
                if key not in largest or difference.share > largest[key].share:
                    largest[key] = difference
    rows = [
        [*key, difference.place, f"{difference.error:.1e}", f"{difference.share:.2g}"]
        for key, difference in sorted(largest.items())
    ]
    columns = ["execution", "pass", "function", "worst element", "difference", "share of the bound"]
    return table(columns, rows) if rows else ""


def _environments(header: PairHeaderRecord) -> Row:
    """Return the environments of the workers, with the thread count that they had."""
    threads = header.configurations[0].threads
    return {name: [e for e in entries if e.threads == threads] for name, entries in header.environments.items()}
