"""The first part of the report: the answer, the verdicts and the gaps, from the tables of a run."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd

from harness.analysis import sample_size
from harness.analysis.gaps import ARM, ENGINE, is_included, parse_arm_name
from harness.analysis.sample_quality import FEWEST
from harness.analysis.sample_size import HEADLINE
from harness.analysis.stats import (
    EQUIVALENT,
    FASTER,
    INCONCLUSIVE,
    LEVEL,
    LONGER,
    SHORTER,
    SLOWER,
    UNKNOWN,
    half_width,
    rate_interval,
)
from harness.analysis.tables import Tables
from harness.records.gates import FULL, NONE
from harness.records.outcome import no_times_reason
from harness.records.schema import BlockRecord
from harness.records.store import budgets
from harness.report import appendix, causes, claims, compiling, decomposition, libraries, memory, sections
from harness.report.figures import CONTROLS, FigureNames, configuration_name
from harness.report.markdown import Row, duration, execution_name, one_line, sizes, table
from harness.study.configuration import CONFIG
from harness.study.parts import BATCHED, TWIN, part_of
from harness.study.study import LOOPS

BAD = ("wrong", "failed", "timeout", "refused")
QUESTION = "Is projecting inside the loop slower than projecting once?"
COMPARED = "Projecting per step against projecting once"
ITSELF = "The harness measured against itself"
ALONE = "Times with nothing to compare them with"
NOTHING = "Nothing was measured"
DIRECTIONS = (LONGER, SHORTER, UNKNOWN)
VERDICTS = (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE)


def context(
    tables: Tables, figure_names: FigureNames, idiomatic_rows: list[dict[str, str]], script_results: Row
) -> Row:
    """Return the variables of the template report.md.j2."""
    first_start, last_start = measurement_span(tables)
    memory_text = memory.section_text(tables)
    return {
        "label": tables.study.label,
        "sizes": sizes,
        "study": tables.study,
        "header": tables.header,
        "budget": budget_text(tables),
        "commands": [session.command for session in tables.sessions],
        "title": title(tables),
        "itself": title(tables) == ITSELF,
        "answer": answer(tables),
        "counts": comparison_counts(tables),
        "per_execution": execution_table(tables),
        "correct": correctness_summary(tables),
        "control": control_summary(tables),
        "more": remaining_effort(tables),
        "problems": problems(tables),
        "sections": sections.context(tables, figure_names),
        "prototypes": sections.prototype_table(tables),
        "prototype_reasons": prototype_reasons(tables),
        "controls": CONTROLS if ((tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()).any() else "",
        "claims": claims.claims_table(tables),
        "advice": claims.advice(tables),
        "causes": causes.section_text(tables),
        "unexpected": causes.unexpected_products(tables),
        "memory": memory_text,
        "memory_sentence": memory_text.partition(":\n")[0],
        "headline_processes": tables.study.headline_processes,
        "parted": any(block.part for block in tables.blocks),
        "original": not tables.variables.empty,
        "identity": appendix.identity(tables),
        "uncounted": tables.uncounted,
        "sampled": appendix.sampled_checks(tables),
        "checked": sorted({f"{check.workload.name} at {check.steps} steps" for check in tables.checks}),
        "first_calls": appendix.first_calls(tables),
        "twins": appendix.control_table(tables),
        "alarms": appendix.false_alarm_table(tables),
        "absent": appendix.absent_cells(tables),
        **_experiments(idiomatic_rows, script_results),
        "environments": appendix.environments(
            tables.header.environments, {"cpu", *(block.configuration.device for block in tables.blocks)}
        ),
        **_gpu_variables(tables),
        "numerics": appendix.numeric_settings(tables),
        "began": first_start,
        "ended": last_start,
        "load": max((block.load for block in tables.blocks), default=math.nan),
        "fewest": FEWEST,
        "steadiness": appendix.sample_quality_table(tables),
        "threads_used": appendix.threads_used(tables),
    }


def _experiments(idiomatic_rows: list[dict[str, str]], script_results: Row) -> dict[str, str]:
    """Return what scripts found that wrote their results beside the records; "" for each that wrote none."""
    texts: dict[str, tuple[str, Callable[[Any], str]]] = {
        "kills": ("kills", appendix.kill_summary),
        "repeat": ("repeat", appendix.repeat_summary),
        "apart": ("apart", appendix.alternation_bias),
        "apart_sentence": ("apart", appendix.alternation_sentence),
    }
    results = {name: text(script_results[file]) if script_results[file] else "" for name, (file, text) in texts.items()}
    return results | {"idiomatic": appendix.idiomatic_table(idiomatic_rows)}


def _gpu_variables(tables: Tables) -> Row:
    """Return what is said of a GPU alone; each "" or False in a run without one."""
    return {
        "graphics": appendix.gpu_states(tables),
        "devices": causes.gpu_time_table(tables),
        "gpu_sentence": causes.gpu_summary(tables),
        "shares_compilation": shares_compilation(tables),
    }


def shares_compilation(tables: Tables) -> bool:
    """Return whether processes on a GPU shared what a compiler chose by measuring: intervals do not contain that."""
    return any(
        block.configuration.device == "gpu" and block.configuration.execution != "eager" and not block.compiled_anew
        for block in tables.blocks
    )


def budget_text(tables: Tables) -> str:
    """Return the budget of each session of the run as text, or "" if no session had one."""
    texts = [f"{value:g} s" if value else "none" for value in budgets(tables.sessions)]
    return "" if set(texts) == {"none"} else f", budget {', and resumed with: '.join(texts)}"


def measurement_span(tables: Tables) -> tuple[str, str]:
    """Return when the first and the last block began; both are "never" if there is no block."""
    starts = [block.began for block in tables.blocks]
    return min(starts, default="never"), max(starts, default="never")


def title(tables: Tables) -> str:
    """Return the report's title.

    It names a comparison, the harness's test of itself, times that have no counterpart, or that nothing was measured.
    """
    if (tables.gaps.contender != TWIN).any() or not tables.swept.empty or not tables.prototypes.empty:
        return COMPARED
    if no_times_reason(tables.blocks, budgets(tables.sessions)[-1]):
        return NOTHING
    projections = {parse_arm_name(name)["projection"] for block in tables.blocks for name in block.arms}
    return ITSELF if projections == {BATCHED, TWIN} else ALONE


def answer(tables: Tables) -> str:
    """Return the answer to the question in up to three paragraphs, or the reason why there is none.

    The first has the extreme ratios, the second what the book's own programs say, the third what compiling changes and
    what gaps consist of.
    """
    if reason := no_answer_reason(tables):
        return reason
    all_gaps, gaps = _in_loop_gaps(tables)
    extremes = " ".join(
        _extreme_sentence(gaps, verdict) for verdict in (SLOWER, FASTER) if (gaps.verdict == verdict).any()
    )
    first = f"{QUESTION} {_overall_sentences(tables, gaps)} {extremes}{_left_out_note(len(all_gaps) - len(gaps))}"
    third = " ".join(filter(None, (compiling.summary(tables), decomposition.summary(tables))))
    return "\n\n".join(filter(None, (first, claims.original_sentence(tables), third)))


def _in_loop_gaps(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return all gaps that the question is about, and those of them that are counted."""
    gaps = tables.gaps[tables.gaps.contender == "in_loop"]
    return gaps, gaps[is_included(gaps)]


def no_answer_reason(tables: Tables) -> str:
    """Return why the run does not answer the question, or "" if it does."""
    gaps = tables.gaps[tables.gaps.contender == "in_loop"]
    if gaps.empty and not tables.prototypes.empty:
        return (
            "What this run compared is marked as a prototype, and answers nothing: it has a section of its own, below."
        )
    if gaps.empty and not tables.gaps.empty and (tables.gaps.contender != TWIN).any():
        return "This run measured nothing that projects inside a loop, so it does not answer the question."
    if gaps.empty and not tables.gaps.empty:
        start = "This run measured the batched form against itself and nothing else"
        return f"{start}: it tests the harness." if title(tables) == ITSELF else f"{start}, so it has no answer."
    if gaps.empty and (reason := no_times_reason(tables.blocks, budgets(tables.sessions)[-1])):
        return f"Nothing was measured, so this run has no answer: {reason}."
    if gaps.empty:
        return "Nothing was measured in both forms, so this run has no answer."
    if tables.study.label == "quick":
        return (
            "This was a smoke run: it shows that everything works and **makes no claim** about any gap. "
            "The ratios below come from one process each and have no interval."
        )
    return ""


def short_answer(tables: Tables) -> str:
    """Return the answer to the question in short, or the reason why there is none."""
    if reason := no_answer_reason(tables):
        return reason
    _, gaps = _in_loop_gaps(tables)
    return " ".join(filter(None, [_overall_sentences(tables, gaps), claims.original_sentence(tables)]))


def _overall_sentences(tables: Tables, gaps: pd.DataFrame) -> str:
    """Return a sentence for each device that says what holds in all comparisons on it."""
    groups = gaps.groupby("device", sort=True) if gaps.device.nunique() > 1 else [("", gaps)]
    return " ".join(
        f"{_device_phrase(device)} **{_overall_clause(part, tables.study.margin)}**." for device, part in groups
    )


def _device_phrase(device: str) -> str:
    return f"On this machine's {device.upper()}" if device else "On this machine"


def _overall_clause(gaps: pd.DataFrame, margin: float) -> str:
    """Return a clause that says what holds in all comparisons, or that it depends or is not known."""
    verdicts = set(gaps.verdict)
    slower = f"slower by more than {margin:.0%}"
    others = " or ".join(sorted(verdicts & {FASTER, EQUIVALENT}))
    if verdicts <= {INCONCLUSIVE}:
        return "this run cannot tell"
    if others and SLOWER in verdicts:
        return f"it depends: {slower} in some comparisons, {others} in others"
    lead = slower if SLOWER in verdicts else others
    if INCONCLUSIVE in verdicts:
        return f"{lead} in some comparisons, not known in the others"
    return f"{'yes' if SLOWER in verdicts else 'no'}, {lead} in every comparison"


def comparison_counts(tables: Tables) -> str:
    """Say how many comparisons have each direction and each size, and in how many equivalence could be shown.

    Returns "" if the run has no answer.
    """
    if no_answer_reason(tables):
        return ""
    _, gaps = _in_loop_gaps(tables)
    directions, sizes, margin = Counter(gaps.direction), Counter(gaps.verdict), tables.study.margin
    possible_count = int(could_be_equivalent(gaps, margin).sum())
    return (
        f"The {len(gaps)} comparisons (framework, execution, recurrence, threads, workload, pass) share machine, "
        "processes and compilers: their counts describe this run, and decide nothing. *Direction*, by each 95% "
        f"interval: in_loop takes longer in {directions[LONGER]}, shorter in {directions[SHORTER]}, unknown in "
        f"{directions[UNKNOWN]} (the interval holds 1). *Size*, against a margin of {margin:.0%}: "
        f"{', '.join(f'{verdict} in {sizes[verdict]}' for verdict in VERDICTS)}. Equivalence could have been shown in "
        f"{possible_count}, whose interval's half-width is below the margin, before the correction for several "
        f"comparisons, and was in {sizes[EQUIVALENT]}."
    )


def could_be_equivalent(gaps: pd.DataFrame, margin: float) -> pd.Series:
    """Mark the gaps whose 95% interval is narrow enough to show equivalence: its half-width is below the margin."""
    return half_width(gaps.ci_low, gaps.ci_high) < margin


def _left_out_note(count: int) -> str:
    return f" Left out: {count} in blocks whose A/A control missed 1 (⚠)." if count else ""


def _extreme_sentence(gaps: pd.DataFrame, verdict: str) -> str:
    part = gaps[gaps.verdict == verdict]
    row = part.loc[part.ratio.idxmax() if verdict == SLOWER else part.ratio.idxmin()].to_dict()
    label = "largest loss" if verdict == SLOWER else "largest gain"
    place = f"{configuration_name(row)}, {row['workload']} {row['pass']}"
    return f"The {label} was a ratio of {row['ratio']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] in {place}."


def execution_table(tables: Tables) -> str:
    """Return a table of the directions and sizes of both contenders' gaps, counted by framework and execution."""
    gaps = tables.gaps[tables.gaps.contender.isin(HEADLINE) & tables.gaps.recurrence.isin(LOOPS)]
    rows = []
    for (*keys, contender), part in gaps.groupby([*ENGINE, "contender"], sort=True):
        included = part[is_included(part)]
        left_out, count = len(part) - len(included), Counter([*included.direction, *included.verdict])
        ratio_range = "–" if included.empty else f"{included.ratio.min():.2f} to {included.ratio.max():.2f}"
        possible_count = int(could_be_equivalent(included, tables.study.margin).sum())
        numbers = [count[name] for name in (*DIRECTIONS, *VERDICTS)]
        rows.append([execution_name(*keys), contender, *numbers, possible_count, left_out or "–", ratio_range])
    names = [*DIRECTIONS, *VERDICTS, "equivalence possible", "left out ⚠", "ratios seen"]
    return table(["execution", "contender", *names], rows)


def correctness_summary(tables: Tables) -> str:
    """Say whether all cells compute the same, which gates they passed, and how large the errors are."""
    frame = tables.identity
    if frame.empty:
        return "No output was verified."
    cell_keys = [*CONFIG, "workload", "pass", *ARM]
    ok_rows = frame[frame.status == "ok"]
    total, wrong = (
        len(frame[cell_keys].drop_duplicates()),
        len(frame[frame.status != "ok"][cell_keys].drop_duplicates()),
    )
    bound_share = (ok_rows.rel_error / ok_rows.bound)[ok_rows.precision != "fp64"].max()
    fp64_error = ok_rows.fp64_rel_error.max()
    start = "All compute the same" if wrong == 0 else f"**{wrong} of {total} cells are wrong** and their times withheld"
    errors = [] if math.isnan(fp64_error) else [f"at most {fp64_error:.1e} from the float64 oracle in fp64"]
    if not math.isnan(bound_share):
        errors.append(f"at most {bound_share:.0%} of the rounding bound away in {_list_precisions(ok_rows)}")
    gates = "; ".join(_gate_clauses(ok_rows.drop_duplicates(cell_keys)))
    return f"{start}: of {total - wrong:,} cells {gates}. Outputs and gradients are {', and '.join(errors)}."


def _list_precisions(frame: pd.DataFrame) -> str:
    return " and ".join(precision for precision in frame.precision.drop_duplicates() if precision != "fp64")


def _gate_clauses(cells: pd.DataFrame) -> list[str]:
    """Say how many cells passed which gates, in a clause for each kind.

    A cell always passed its own precision's gate at full size. The fp64 gate it passed at full size, at fewer steps, or
    not at all.
    """
    fp64_cells, other_cells = cells[cells.precision == "fp64"], cells[cells.precision != "fp64"]
    gate = f"the {_list_precisions(cells)} gate at full size"
    gate_counts = other_cells.fp64_gate.value_counts().to_dict()
    full_count, unverified_count = gate_counts.pop(FULL, 0), gate_counts.pop(NONE, 0)
    clauses = [f"{full_count:,} passed both gates at full size"] if full_count else []
    clauses += ["none had both gates at full size"] if len(other_cells) and not full_count else []
    clauses += [f"{number:,} passed {gate} and the fp64 gate at {steps} alone" for steps, number in gate_counts.items()]
    clauses += [f"{unverified_count:,} passed {gate} and were not verified in fp64"] if unverified_count else []
    return clauses + ([f"{len(fp64_cells):,} are in fp64 and passed its gate at full size"] if len(fp64_cells) else [])


def control_summary(tables: Tables) -> str:
    """Say how often the interval of the A/A control misses 1 in the whole run, and how wide it is."""
    controls = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    if controls.empty:
        return "The control (batched against itself) has no interval: that takes two processes of a cell."
    half_widths = half_width(controls.ci_low, controls.ci_high)
    coarse_count, missed_count = int((half_widths > tables.study.margin).sum()), int((~controls.trusted).sum())
    miss_rate, low, high = rate_interval(missed_count, len(controls))
    return (
        f"The 95% interval of the control, batched against itself, misses 1 in {missed_count} of {len(controls)} "
        f"blocks ({miss_rate:.1%} [{low:.1%}, {high:.1%}], where 5% is what 95% intervals promise): "
        f"{_miss_rate_clause(low, high)}. The interval is typically ±{half_widths.median():.1%}, at widest "
        f"±{half_widths.max():.1%}, and in {coarse_count} blocks wider than the margin of ±{tables.study.margin:.0%}."
    )


def _miss_rate_clause(low: float, high: float) -> str:
    """Say what the 95% interval of the control's miss rate implies for all intervals of the run."""
    if low > LEVEL:
        return "**more than that, so that the contenders' intervals too are narrower than they should be**"
    if high < LEVEL:
        return "fewer than that, so that the contenders' intervals too are wider than they need be"
    return "as many as that, as far as so many blocks can tell"


def remaining_effort(tables: Tables) -> str:
    """Say in a sentence how many processes and how much time would bring every gap to the study's target.

    Returns "" if no gap has a required sample size.
    """
    gaps = tables.gaps[tables.gaps.contender.isin(HEADLINE)]
    planned = gaps[gaps.needs.notna()]
    if planned.empty:
        return ""
    remaining = planned[planned.needs > 0]
    start = (
        f"{len(planned) - len(remaining)} of {len(gaps)} gaps are known to ±{tables.study.target:.0%} "
        f"(the 95% interval's half-width that this study plans for)"
    )
    if remaining.empty:
        return f"{start}."
    processes = f"the others need up to {int(remaining.needs.max())} more processes each (in the tables below)"
    costs = sample_size.mean_costs([block for block in tables.blocks if block.seconds])
    parts = {key[-1] for key in costs}  # blocks of older records hold all arms, and their part has no name
    part_names = [
        part_of(recurrence, contender)
        for recurrence, contender in zip(remaining.recurrence, remaining.contender, strict=True)
    ]
    remaining = remaining.assign(part=[name if name in parts else "" for name in part_names])
    blocks = remaining.groupby([*CONFIG, "workload", "pass", "part"]).agg({"needs": "max", "rounds": "median"})
    if not set(blocks.index) <= set(costs):
        return f"{start}; {processes}."
    total_s = sum(
        row["needs"] * (costs[key].process_s + row["rounds"] * costs[key].round_s)
        for key, row in blocks.to_dict("index").items()
    )
    return f"{start}; {processes}, about {duration(total_s)} of measuring."


def prototype_reasons(tables: Tables) -> list[str]:
    """Return the reason why each measured prototype is marked as one, a line each."""
    prototypes = set(tables.prototypes[[*ENGINE, "recurrence"]].itertuples(index=False, name=None))
    return [
        f"{execution_name(*keys)} {recurrence}: {tables.prototype_reasons[keys[0], keys[1], recurrence]}"
        for *keys, recurrence in sorted(prototypes)
    ]


def _throttling_line(block: BlockRecord, consequence: str) -> str:
    program = execution_name(*block.configuration.engine)
    place = f"{program}, {block.workload.name} {block.pass_}, process {block.replicate}"
    return f"throttled: {place}: {', '.join(block.throttled)}; {consequence}"


def problems(tables: Tables) -> list[str]:
    """Return what went wrong in measured and verified cells, one line each with its reason."""
    failures = tables.times[tables.times.status.isin(BAD)]
    rows = failures.drop_duplicates([*CONFIG, "workload", "pass", *ARM, "status"]).to_dict("records")
    lines = [
        f"{row['status']}: {configuration_name(row)}, {row['projection']}, {row['workload']} {row['pass']}: "
        f"{row['reason']}"
        for row in rows
    ]
    lines += [_throttling_line(block, "its times are not counted") for block in tables.blocks if block.throttled]
    lines += [_throttling_line(block, "it was done again, and the second try counts") for block in tables.first_tries]
    lines += memory.problems(tables)
    lines += libraries.problems(tables)
    for check in tables.checks:
        place = f"{execution_name(*check.configuration.engine)} at {check.steps} steps"
        lines += [
            f"{arm.status}: {place}, {name}, {check.workload.name} {check.pass_}: {arm.reason}"
            for name, arm in check.arms.items()
            if arm.status in BAD
        ]
    return [one_line(line) for line in lines]
