"""The claims of the question, each judged by this run's numbers; and what follows for one's code.

A claim's verdict is made of the verdicts of the cells it is about, so a claim that is false on this machine reads so.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from harness.analysis import ENGINE, Tables
from harness.gaps import LOOPS, OWN, SEAT, usable
from harness.measure import BATCHED
from harness.report import causes
from harness.report.markdown import engine, table
from harness.stats import EQUIVALENT, FASTER, INCONCLUSIVE, SLOWER

NOT_JUDGED = "not yet judged"
HERE = {True: "true here", False: "false here"}
SO_FAR = ", wherever this run can tell"
PEAK = f"peak temporary memory of in_loop/{BATCHED}"


@dataclass(frozen=True)
class Judged:
    """A claim's verdict, the numbers behind it, and the cells they come from."""

    verdict: str
    numbers: str
    cells: str


def table_of(tables: Tables) -> str:
    """Every claim with its verdict, numbers and cells."""
    if tables.study.label == "quick":
        return "A smoke run judges no claim."
    rows = []
    for name, text, judge in CLAIMS:
        found = judge(tables)
        rows.append([name, text, f"**{found.verdict}**", found.numbers, found.cells])
    return table(["", "claim", "verdict", "numbers", "from"], rows)


def _speed(tables: Tables, framework: str | None = None) -> Judged:
    """Is the in-loop form slower than projecting once?"""
    gaps = _loops(tables, "in_loop")
    if framework:
        gaps = gaps[gaps.framework == framework]
    return _by_verdicts(gaps, f"in_loop/{BATCHED}, every loop")


def _loops(tables: Tables, contender: str) -> pd.DataFrame:
    gaps = tables.gaps[usable(tables.gaps)]
    return gaps[(gaps.contender == contender) & gaps.recurrence.isin(LOOPS)]


def _by_verdicts(gaps: pd.DataFrame, cells: str) -> Judged:
    """True where the contender is slower: everywhere, nowhere, or it depends."""
    if gaps.empty:
        return Judged(NOT_JUDGED, "–", "nothing was measured for it")
    count = Counter(gaps.verdict)
    against = count[FASTER] + count[EQUIVALENT]
    verdict = "this run can not tell"
    if count[SLOWER] and against:
        verdict = f"depends: true in {count[SLOWER]}, false in {against}"
    elif count[SLOWER] or against:
        verdict = HERE[bool(count[SLOWER])] + (SO_FAR if count[INCONCLUSIVE] else "")
    each = [(device, part) for device, part in gaps.groupby("device", sort=True)]
    numbers = "; ".join(
        (f"{device}: " if len(each) > 1 else "") + f"{_counted(Counter(part.verdict))}; ratios {_range(part.ratio)}"
        for device, part in each
    )
    return Judged(verdict, numbers, f"{len(gaps)} gaps: {cells}")


def _counted(count: Counter[str]) -> str:
    """How many of each verdict, of the contender in words of the claim."""
    return ", ".join(f"{count[v]} {v}" for v in (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE))


def _true_in(count: int, of: int) -> str:
    """A verdict of cells that are each true or false."""
    if not of:
        return "not known"
    return HERE[count == of] if count in (0, of) else f"true in {count}, false in {of - count}"


def _range(ratios: pd.Series) -> str:
    return f"{ratios.min():.2f} to {ratios.max():.2f}"


def _products(tables: Tables) -> Judged:
    """One set of weights in both forms, but T products against one?"""
    found = causes.added(tables)
    found = found[(found["pass"] == "forward") & found.recurrence.isin(LOOPS)]
    wide = found.pivot_table(index=[*causes.PLACE, "T"], columns="projection", values="found", aggfunc="first")
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return Judged(NOT_JUDGED, "–", "no program's products were counted")
    pairs = wide[["in_loop", BATCHED]].dropna()
    so = int(((pairs.in_loop == pairs.index.get_level_values("T")) & (pairs[BATCHED] == 1)).sum())
    numbers = (
        "both forms hold the same two arrays w_out and b_out: one layer, not one per step; "
        f"in_loop adds T products where {BATCHED} adds one in {so} of {len(pairs)} pairs of programs"
    )
    verdict = f"as layers false; as products {_true_in(so, len(pairs))}"
    return Judged(verdict, numbers, f"{len(pairs)} pairs, forward, counted")


def _operations(tables: Tables) -> Judged:
    """The same floating-point operations in both forms? Judged where all of them are known, in both."""
    issued, every = _pairs(tables, "products"), _pairs(tables, "flops")
    if issued.empty:
        return Judged(NOT_JUDGED, "–", "no program's operations were counted")
    by = every[~every.index.isin(_changed(tables, issued))]
    left_out = len(issued) - len(by)
    if by.empty:
        return Judged(NOT_JUDGED, "every program's products were changed by its compiler", f"{left_out} pairs")
    same = int((by.in_loop == by[BATCHED]).sum())
    numbers = f"operations of the matrix products are equal in {same} of {len(by)} pairs of programs"
    if same < len(by):
        numbers += (
            f"; in_loop/{BATCHED} is {_range((by.in_loop / by[BATCHED])[by.in_loop != by[BATCHED]])} in the others"
        )
    if left_out:
        numbers += (
            f"; {left_out} pairs are left out, in which a compiler made something else of a product "
            "(a multiplication, where it has one row or column)"
        )
    cells = f"{len(by)} pairs: framework, execution, loop, workload, pass"
    return Judged(_true_in(same, len(by)), numbers, cells)


def _changed(tables: Tables, issued: pd.DataFrame) -> pd.Index:
    """Pairs whose operations are those of the products issued alone, which are not the ones that were written: what a
    compiler computes in another way would be missing.
    """
    added = causes.added(tables)
    added = added[(added.found != added.expected) & added.projection.isin(["in_loop", BATCHED])]
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    places = issued.index.to_frame()
    times = places["pass"].map({"forward": 1, "train": causes.BACKWARD})
    more = (places.workload.map(steps).astype(int) - 1) * times
    odd = issued.index[issued.in_loop - issued[BATCHED] != more]
    by_products = _pairs(tables, "product_bytes").index
    return by_products.intersection(odd.union(pd.MultiIndex.from_frame(added[causes.PLACE])))


def _memory(tables: Tables) -> Judged:
    """The same variables in both forms of the original, and so the same memory?"""
    by = _pairs(tables, "temp_bytes")
    known = by[(by.in_loop > 0) & (by[BATCHED] > 0)]
    ratios = known.in_loop / known[BATCHED]
    forms = _variables(tables)
    if forms.empty:
        return _without_original(ratios)
    seats = {place[: len(SEAT)] for place in forms.index}
    own = ratios[[place[: len(SEAT)] in seats for place in ratios.index]]
    numbers = [_alike(forms), _held(ratios, PEAK), _held(own, "in the original's own programs it")]
    equal = int(((ratios - 1).abs() <= tables.study.margin).sum())
    same = int((forms.in_loop == forms[BATCHED]).sum())
    cells = f"{len(forms)} pairs of the original, train; {_known(ratios)}"
    verdict = f"as variables {_true_in(same, len(forms))}; as memory {_true_in(equal, len(ratios))}"
    return Judged(verdict, "; ".join(filter(None, numbers)), cells)


def _without_original(ratios: pd.Series) -> Judged:
    """What is known of memory where the original program was not counted."""
    why = "this run has no original TF1 program (execution v1 of tf)"
    if ratios.empty:
        return Judged(NOT_JUDGED, why, "–")
    return Judged(NOT_JUDGED, f"{why}; of the arms here, {_held(ratios, PEAK)}", _known(ratios))


def _held(ratios: pd.Series, what: str) -> str:
    return f"{what} is {_range(ratios)} (median {ratios.median():.2f})" if len(ratios) else ""


def _known(ratios: pd.Series) -> str:
    return f"{len(ratios)} pairs whose memory is known and not zero"


def _alike(forms: pd.DataFrame) -> str:
    """In how many pairs both forms have the same variables, with the first pair that tells most as an example."""
    other = forms[forms.in_loop != forms[BATCHED]]
    start = f"both forms make the same variables in {len(forms) - len(other)} of {len(forms)} pairs"
    one = (forms if other.empty else other).iloc[0]
    workload = dict(zip(forms.index.names, one.name, strict=True))["workload"]
    if other.empty:
        return f"{start} ({workload}: {one.in_loop})"
    return f"{start}; in {workload} in_loop makes {one.in_loop} and {BATCHED} {one[BATCHED]}"


def _variables(tables: Tables) -> pd.DataFrame:
    """How many variables of which shapes each form of a training program makes that keeps its own, side by side."""
    frame = tables.variables[tables.variables.recurrence.isin(LOOPS) & (tables.variables["pass"] == "train")]
    frame = causes.once(frame)
    wide = frame.pivot_table(index=causes.PLACE, columns="projection", values="shape", aggfunc=_shapes)
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED])
    return wide[["in_loop", BATCHED]].dropna()


def _shapes(shapes: pd.Series) -> str:
    """14: 3×[1], 3×[100], ..."""
    return f"{len(shapes)}: " + ", ".join(f"{count}×{shape}" for shape, count in sorted(Counter(shapes).items()))


def _pairs(tables: Tables, column: str) -> pd.DataFrame:
    """The in-loop and the batched program side by side, where `column` is known of both."""
    frame = tables.evidence[tables.evidence.recurrence.isin(LOOPS)]
    frame = causes.once(frame)
    wide = frame.pivot_table(index=causes.PLACE, columns="projection", values=column, aggfunc="first", dropna=True)
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED])
    return wide[["in_loop", BATCHED]].dropna().astype(float)


def _apart(tables: Tables) -> Judged:
    """T products after the loop: the same as inside it? And as slow against one?"""
    frame = tables.contrasts[usable(tables.contrasts)]
    frame = frame[(frame.contender == "per_step") & (frame.baseline == "in_loop")]
    if frame.empty:
        return Judged(NOT_JUDGED, "–", "nothing was measured for it")
    count = Counter(frame.verdict)
    differ = count[SLOWER] + count[FASTER]
    verdict = "this run can not tell"
    if count[EQUIVALENT] and differ:
        verdict = f"depends: the same in {count[EQUIVALENT]}, another in {differ}"
    elif count[EQUIVALENT] or differ:
        verdict = "the same as inside the loop" if count[EQUIVALENT] else "not the same as inside the loop"
        verdict += SO_FAR if count[INCONCLUSIVE] else ""
    against = _by_verdicts(_loops(tables, "per_step"), "")
    numbers = (
        f"per_step/in_loop: {_counted(count)}; ratios {_range(frame.ratio)}. per_step/{BATCHED}: {against.numbers}"
    )
    return Judged(verdict, numbers, f"{len(frame)} gaps, every loop")


def _alone(tables: Tables) -> Judged:
    """The projection without a recurrence: one product against T, forward."""
    gaps = tables.gaps[usable(tables.gaps)]
    gaps = gaps[(gaps.recurrence == "given") & (gaps.contender == "per_step") & (gaps["pass"] == "forward")]
    return _by_verdicts(gaps, f"per_step/{BATCHED} with the hidden states given, forward")


CLAIMS: list[tuple[str, str, Callable[[Tables], Judged]]] = [
    ("C1", "the book: one layer for all steps is significantly faster than projecting inside the loop", _speed),
    ("C2", "the book: because there is one layer instead of one per step", _products),
    ("C3", "the reader: both need exactly the same operations", _operations),
    ("C4", "the reader: both have the same variables, and so the same memory", _memory),
    ("C5", "the reader: what is meant is projecting step by step after the loop", _apart),
    ("C6", "the answer: the same layer on one large tensor is faster than on many small ones", _alone),
    ("C7", "TF1's documentation: without the wrapper it may be more efficient", lambda tables: _speed(tables, "tf")),
]


def advice(tables: Tables) -> str:
    """For each framework and execution, what its verdicts say one should write."""
    if tables.study.label == "quick":
        return "A smoke run gives no advice."
    gaps = _loops(tables, "in_loop")
    lines = []
    for by, part in gaps.groupby(ENGINE, sort=True):
        said = [_choice(part), _own(tables, by)]
        lines.append(f"- **{engine(*by)}**: {' '.join(filter(None, said))}")
    return "\n".join(lines) or "Nothing was measured from which advice would follow."


def _choice(part: pd.DataFrame) -> str:
    """Where to project."""
    count, number = Counter(part.verdict), len(part)
    slower, faster = part[part.verdict == SLOWER], part[part.verdict == FASTER]
    if not count[SLOWER] and not count[FASTER]:
        if count[EQUIVALENT] > count[INCONCLUSIVE]:
            return f"write what reads best: both forms cost the same in {count[EQUIVALENT]} of {number} comparisons."
        return (
            f"this run found no difference, and could not exclude one in {count[INCONCLUSIVE]} of {number} comparisons."
        )
    worst = f"up to {slower.ratio.max():.2f} times ({_where(slower, 'idxmax')})" if count[SLOWER] else ""
    best = f"down to {faster.ratio.min():.2f} of the time ({_where(faster, 'idxmin')})" if count[FASTER] else ""
    if not count[FASTER]:
        return (
            f"project once, after the loop: inside it was slower in {count[SLOWER]} of {number} comparisons, {worst}."
        )
    if not count[SLOWER]:
        return f"project inside the loop: it was faster in {count[FASTER]} of {number} comparisons, {best}."
    return (
        f"measure your own case: inside the loop was slower in {count[SLOWER]} of {number} comparisons, {worst}, and "
        f"faster in {count[FASTER]}, {best}."
    )


def _where(part: pd.DataFrame, pick: str) -> str:
    row = part.loc[getattr(part.ratio, pick)()].to_dict()
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['workload']} {row['pass']}, {row['recurrence']}, {threads}"


def _own(tables: Tables, by: tuple[str, ...]) -> str:
    """What a wrapper's in-loop projection costs against the layer that it forbids."""
    frame = tables.contrasts[usable(tables.contrasts)]
    mine = frame[ENGINE].eq(list(by)).all(axis=1)
    frame = frame[mine & (frame.baseline == OWN) & frame.verdict.isin([SLOWER, FASTER])]
    if frame.empty:
        return ""
    slower = int((frame.verdict == SLOWER).sum())
    return (
        f"Against the framework's own layer with one projection, which a projection inside the loop forbids, it took "
        f"{_range(frame.ratio)} of the time (slower in {slower}, faster in {len(frame) - slower})."
    )
