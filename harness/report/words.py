"""What the report says first: the answer, the verdicts and the gaps, from the tables of a run."""

import math
from collections import Counter

import pandas as pd

from harness import pilot
from harness.analysis import Tables
from harness.gaps import ARM, ENGINE, SEAT, arm_of, usable
from harness.gates import FULL, NONE
from harness.outcome import why_nothing
from harness.parts import BATCHED, LOOPS, TWIN, part_of
from harness.pilot import HEADLINE
from harness.quality import FEWEST
from harness.records import budgets
from harness.report import appendix, causes, claims, memory, sections
from harness.report.figures import CONTROLS, Drawn
from harness.report.figures import seat as seat_name
from harness.report.markdown import Row, duration, engine, one_line, table
from harness.stats import (
    EQUIVALENT,
    FASTER,
    INCONCLUSIVE,
    LEVEL,
    LONGER,
    SHORTER,
    SLOWER,
    UNKNOWN,
    half_width,
    rate,
)

BAD = ("wrong", "failed", "timeout", "refused")
QUESTION = "Is projecting inside the loop slower than projecting once?"
COMPARED = "Projecting per step against projecting once"
ITSELF = "The harness measured against itself"
ALONE = "Times with nothing to compare them with"
NOTHING = "Nothing was measured"
DIRECTIONS = (LONGER, SHORTER, UNKNOWN)
VERDICTS = (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE)


def everything(tables: Tables, drawn: Drawn, compared: list[dict[str, str]], beside: Row) -> Row:
    """The template's variables."""
    began, ended = measured(tables)
    return {
        "label": tables.study.label,
        "study": tables.study,
        "heading": tables.heading,
        "budget": budget(tables),
        "commands": [sitting["command"] for sitting in tables.sittings],
        "title": title(tables),
        "itself": title(tables) == ITSELF,
        "answer": answer(tables),
        "counts": counts(tables),
        "per_execution": per_execution(tables),
        "correct": correct(tables),
        "control": control(tables),
        "more": more(tables),
        "problems": problems(tables),
        "sections": sections.everything(tables, drawn),
        "prototypes": sections.prototypes(tables),
        "prototype_reasons": prototype_reasons(tables),
        "controls": CONTROLS if ((tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()).any() else "",
        "claims": claims.table_of(tables),
        "advice": claims.advice(tables),
        "causes": causes.everything(tables),
        "memory": memory.everything(tables),
        "headline_processes": tables.study.headline_processes,
        "parted": any(block.get("part") for block in tables.blocks),
        "original": not tables.variables.empty,
        "identity": appendix.identity(tables),
        "uncounted": tables.uncounted,
        "checked": sorted({f"{c['workload']['name']} at {c['steps']} steps" for c in tables.checks}),
        "first_calls": appendix.first_calls(tables),
        "twins": appendix.twins(tables),
        "alarms": appendix.alarms(tables),
        "absent": appendix.absent(tables),
        "idiomatic": appendix.idiomatic(compared),
        "kills": appendix.kills(beside["kills"]) if beside["kills"] else "",
        "repeat": appendix.repeated(beside["repeat"]) if beside["repeat"] else "",
        "apart": appendix.apart(beside["apart"]) if beside["apart"] else "",
        "environments": appendix.environments(
            tables.heading["environments"], {"cpu", *(block["device"] for block in tables.blocks)}
        ),
        "graphics": appendix.graphics(tables),
        "devices": causes.devices(tables),
        "numerics": appendix.numerics(tables),
        "began": began,
        "ended": ended,
        "load": max((b["load"] for b in tables.blocks), default=math.nan),
        "fewest": FEWEST,
        "steadiness": appendix.steadiness(tables),
        "threads_used": appendix.threads_used(tables),
    }


def budget(tables: Tables) -> str:
    """The budgets of the run's sittings; nothing where none ever had one."""
    known = [f"{value:g} s" if value else "none" for value in budgets(tables.sittings)]
    return "" if set(known) == {"none"} else f", budget {', and gone on with: '.join(known)}"


def measured(tables: Tables) -> tuple[str, str]:
    """When the first and the last block began."""
    began = [block["began"] for block in tables.blocks]
    return min(began, default="never"), max(began, default="never")


def title(tables: Tables) -> str:
    """What a run is: a comparison, the harness's own test, times that have no counterpart, or nothing."""
    if (tables.gaps.contender != TWIN).any() or not tables.swept.empty or not tables.prototypes.empty:
        return COMPARED
    if why_nothing(tables.blocks, budgets(tables.sittings)[-1]):
        return NOTHING
    tried = {arm_of(name)["projection"] for block in tables.blocks for name in block["arms"]}
    return ITSELF if tried == {BATCHED, TWIN} else ALONE


def answer(tables: Tables) -> str:
    """The question's answer, with its extremes."""
    if why := no_answer(tables):
        return why
    every, gaps = _in_loop(tables)
    extreme = " ".join(_extreme(gaps, verdict) for verdict in (SLOWER, FASTER) if (gaps.verdict == verdict).any())
    return f"{QUESTION} {sentence(tables)} {extreme}{_left_out(len(every) - len(gaps))}"


def _in_loop(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The gaps that the question is about: every one, and those that may be counted."""
    every = tables.gaps[tables.gaps.contender == "in_loop"]
    return every, every[usable(every)]


def no_answer(tables: Tables) -> str:
    """Why a run does not answer the question; nothing when it does."""
    every = tables.gaps[tables.gaps.contender == "in_loop"]
    if every.empty and not tables.prototypes.empty:
        return "What this run compared is marked as a prototype, and answers nothing: it stands apart, below."
    if every.empty and not tables.gaps.empty and (tables.gaps.contender != TWIN).any():
        return "This run measured nothing that projects inside a loop, so it does not answer the question."
    if every.empty and not tables.gaps.empty:
        alone = "This run measured the batched form against itself and nothing else"
        return f"{alone}: it tests the harness." if title(tables) == ITSELF else f"{alone}, so it has no answer."
    if every.empty and (nothing := why_nothing(tables.blocks, budgets(tables.sittings)[-1])):
        return f"Nothing was measured, so this run has no answer: {nothing}."
    if every.empty:
        return "Nothing was measured in both forms, so this run has no answer."
    if tables.study.label == "quick":
        return (
            "This was a smoke run: it shows that everything works and **makes no claim** about any gap. "
            "The ratios below come from one process each and have no interval."
        )
    return ""


def sentence(tables: Tables) -> str:
    """The question's answer in a sentence, or why there is none."""
    if why := no_answer(tables):
        return why
    _, gaps = _in_loop(tables)
    places = gaps.groupby("device", sort=True) if gaps.device.nunique() > 1 else [("", gaps)]
    said = [f"{_where(device)} **{_lead(part, tables.study.margin)}**." for device, part in places]
    return " ".join([*said, *filter(None, [claims.as_stated(tables)])])


def _where(device: str) -> str:
    return f"On this machine's {device.upper()}" if device else "On this machine"


def _lead(gaps: pd.DataFrame, margin: float) -> str:
    """What holds of all comparisons, or that nothing does."""
    found = set(gaps.verdict)
    slower = f"slower by more than {margin:.0%}"
    others = " or ".join(sorted(found & {FASTER, EQUIVALENT}))
    if found <= {INCONCLUSIVE}:
        return "this run can not tell"
    if others and SLOWER in found:
        return f"it depends: {slower} in some comparisons, {others} in others"
    lead = slower if SLOWER in found else others
    if INCONCLUSIVE in found:
        return f"{lead} in some comparisons, not known in the others"
    return f"{'yes' if SLOWER in found else 'no'}, {lead} in every comparison"


def counts(tables: Tables) -> str:
    """How many comparisons have which direction and which size, and for how many equivalence could be shown."""
    if no_answer(tables):
        return ""
    _, gaps = _in_loop(tables)
    directions, sizes, margin = Counter(gaps.direction), Counter(gaps.verdict), tables.study.margin
    possible = int(could_be_equivalent(gaps, margin).sum())
    return (
        f"The {len(gaps)} comparisons (framework, execution, recurrence, threads, workload, pass) share machine, "
        "processes and compilers: their counts describe this run, and decide nothing. *Direction*, by each 95% "
        f"interval: in_loop takes longer in {directions[LONGER]}, shorter in {directions[SHORTER]}, unknown in "
        f"{directions[UNKNOWN]} (the interval holds 1). *Size*, against a margin of {margin:.0%}: "
        f"{', '.join(f'{verdict} in {sizes[verdict]}' for verdict in VERDICTS)}. Equivalence could have been shown in "
        f"{possible}, whose interval's half-width is below the margin, and was in {sizes[EQUIVALENT]}."
    )


def could_be_equivalent(gaps: pd.DataFrame, margin: float) -> pd.Series:
    """Which gaps are known well enough to be shown equivalent, if they are: an interval that fits into the margin."""
    return half_width(gaps.ci_low, gaps.ci_high) < margin


def _left_out(count: int) -> str:
    return f" Left out: {count} in blocks whose A/A control missed 1 (⚠ below)." if count else ""


def _extreme(gaps: pd.DataFrame, verdict: str) -> str:
    part = gaps[gaps.verdict == verdict]
    row = part.loc[part.ratio.idxmax() if verdict == SLOWER else part.ratio.idxmin()].to_dict()
    most = "largest loss" if verdict == SLOWER else "largest gain"
    place = f"{seat_name(row)}, {row['workload']} {row['pass']}"
    return f"The {most} was a ratio of {row['ratio']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] in {place}."


def per_execution(tables: Tables) -> str:
    """Directions and sizes of both contenders' gaps, counted for each framework and execution."""
    gaps = tables.gaps[tables.gaps.contender.isin(HEADLINE) & tables.gaps.recurrence.isin(LOOPS)]
    rows = []
    for (*by, contender), part in gaps.groupby([*ENGINE, "contender"], sort=True):
        kept = part[usable(part)]
        left_out, count = len(part) - len(kept), Counter([*kept.direction, *kept.verdict])
        seen = "–" if kept.empty else f"{kept.ratio.min():.2f} to {kept.ratio.max():.2f}"
        possible = int(could_be_equivalent(kept, tables.study.margin).sum())
        numbers = [count[name] for name in (*DIRECTIONS, *VERDICTS)]
        rows.append([engine(*by), contender, *numbers, possible, left_out or "–", seen])
    names = [*DIRECTIONS, *VERDICTS, "equivalence possible", "left out ⚠", "ratios seen"]
    return table(["execution", "contender", *names], rows)


def correct(tables: Tables) -> str:
    """Whether all compute the same, and by which gates, in a sentence."""
    frame = tables.identity
    if frame.empty:
        return "No output was verified."
    cells = [*SEAT, "workload", "pass", *ARM]
    good = frame[frame.status == "ok"]
    every, wrong = len(frame[cells].drop_duplicates()), len(frame[frame.status != "ok"][cells].drop_duplicates())
    over = (good.rel_error / good.bound)[good.precision != "fp64"].max()
    fp64 = good.fp64_rel_error.max()
    start = "All compute the same" if wrong == 0 else f"**{wrong} of {every} cells are wrong** and their times withheld"
    errors = [] if math.isnan(fp64) else [f"at most {fp64:.1e} from the float64 oracle in fp64"]
    if not math.isnan(over):
        errors.append(f"at most {over:.0%} of the rounding bound away in {_precisions(good)}")
    passed = "; ".join(_passed(good.drop_duplicates(cells)))
    return f"{start}: of {every - wrong:,} cells {passed}. Outputs and gradients are {', and '.join(errors)}."


def _precisions(frame: pd.DataFrame) -> str:
    return " and ".join(precision for precision in frame.precision.drop_duplicates() if precision != "fp64")


def _passed(cells: pd.DataFrame) -> list[str]:
    """How many cells passed which gates: their own precision's always at full size, that of fp64 as far as it was."""
    own, others = cells[cells.precision == "fp64"], cells[cells.precision != "fp64"]
    gate = f"the {_precisions(cells)} gate at full size"
    count = others.fp64_gate.value_counts().to_dict()
    whole, alone = count.pop(FULL, 0), count.pop(NONE, 0)
    said = [f"{whole:,} passed both gates at full size"] if whole else []
    said += ["none had both gates at full size"] if len(others) and not whole else []
    said += [f"{number:,} passed {gate} and the fp64 gate at {steps} alone" for steps, number in count.items()]
    said += [f"{alone:,} passed {gate} and were not verified in fp64"] if alone else []
    return said + ([f"{len(own):,} are in fp64 and passed its gate at full size"] if len(own) else [])


def control(tables: Tables) -> str:
    """What the A/A control says of the whole run, in a sentence."""
    twins = tables.gaps[(tables.gaps.contender == TWIN) & tables.gaps.ci_low.notna()]
    if twins.empty:
        return "The control (batched against itself) has no interval: that takes two processes of a cell."
    half = half_width(twins.ci_low, twins.ci_high)
    coarse, missed = int((half > tables.study.margin).sum()), int((~twins.trusted).sum())
    found, low, high = rate(missed, len(twins))
    return (
        f"The 95% interval of the control, batched against itself, misses 1 in {missed} of {len(twins)} blocks "
        f"({found:.1%} [{low:.1%}, {high:.1%}], where 5% is what 95% intervals promise): {_kept(low, high)}. The "
        f"interval is typically ±{half.median():.1%}, at widest ±{half.max():.1%}, and in {coarse} blocks wider than "
        f"the margin of ±{tables.study.margin:.0%}."
    )


def _kept(low: float, high: float) -> str:
    """What the interval of the control's rate says of all intervals of the run."""
    if low > LEVEL:
        return "**more than that, so that the contenders' intervals too are narrower than they should be**"
    if high < LEVEL:
        return "fewer than that, so that the contenders' intervals too are wider than they need be"
    return "as many as that, as far as so many blocks can tell"


def more(tables: Tables) -> str:
    """What it would take to know every gap as well as the study wants, in a sentence."""
    gaps = tables.gaps[tables.gaps.contender.isin(HEADLINE)]
    known = gaps[gaps.needs.notna()]
    if known.empty:
        return ""
    left = known[known.needs > 0]
    start = (
        f"{len(known) - len(left)} of {len(gaps)} gaps are known to ±{tables.study.target:.0%} "
        f"(the 95% interval's half-width that this study plans for)"
    )
    if left.empty:
        return f"{start}."
    processes = f"the others need up to {int(left.needs.max())} more processes each (in the tables below)"
    spent = pilot.spent([block for block in tables.blocks if block.get("seconds")])
    there = {key[-1] for key in spent}  # older records have blocks of all arms, whose part has no name
    named = [part_of(r, c) for r, c in zip(left.recurrence, left.contender, strict=True)]
    left = left.assign(part=[part if part in there else "" for part in named])
    blocks = left.groupby([*SEAT, "workload", "pass", "part"]).agg({"needs": "max", "rounds": "median"})
    if not set(blocks.index) <= set(spent):
        return f"{start}; {processes}."
    total_s = sum(
        row["needs"] * (spent[key].process_s + row["rounds"] * spent[key].round_s)
        for key, row in blocks.to_dict("index").items()
    )
    return f"{start}; {processes}, about {duration(total_s)} of measuring."


def prototype_reasons(tables: Tables) -> list[str]:
    """Why each measured prototype is called one, a line each."""
    measured_in = set(tables.prototypes[[*ENGINE, "recurrence"]].itertuples(index=False, name=None))
    return [
        f"{engine(*by)} {recurrence}: {tables.prototype_reasons[by[0], by[1], recurrence]}"
        for *by, recurrence in sorted(measured_in)
    ]


def _throttled(block: Row, what: str) -> str:
    by = (block["framework"], block["execution"], block["device"], block["precision"])
    place = f"{engine(*by)}, {block['workload']['name']} {block['pass']}, process {block['replicate']}"
    return f"throttled: {place}: {', '.join(block['throttled'])}; {what}"


def problems(tables: Tables) -> list[str]:
    """What went wrong in measured and verified cells, one line each, the reason with it."""
    bad = tables.times[tables.times.status.isin(BAD)]
    rows = bad.drop_duplicates([*SEAT, "workload", "pass", *ARM, "status"]).to_dict("records")
    lines = [
        f"{row['status']}: {seat_name(row)}, {row['projection']}, {row['workload']} {row['pass']}: {row['reason']}"
        for row in rows
    ]
    lines += [_throttled(block, "its times are kept") for block in tables.blocks if block.get("throttled")]
    lines += [_throttled(block, "it was done again, and the second try counts") for block in tables.first_tries]
    lines += memory.problems(tables)
    for check in tables.checks:
        by = (check["framework"], check["execution"], check["device"], check["precision"])
        place = f"{engine(*by)} at {check['steps']} steps"
        lines += [
            f"{arm['status']}: {place}, {name}, {check['workload']['name']} {check['pass']}: {arm['reason']}"
            for name, arm in check["arms"].items()
            if arm["status"] in BAD
        ]
    return [one_line(line) for line in lines]
