"""The claims of the question, each judged by this run's numbers; and what follows for one's code.

A claim's verdict is made of the verdicts of the cells it is about, so a claim that is false on this machine reads so.
What was said of TF1 is judged by TF1's own programs, as stated; where else it holds stands beside that. Cells share
machine, processes and compilers, so how many say so is told and decides nothing.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from harness.analysis.gaps import ENGINE, of_prototypes, usable
from harness.analysis.stats import EQUIVALENT, FASTER, INCONCLUSIVE, LONGER, SHORTER, SLOWER
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.markdown import Row, amount, counted, engine, ratio, table
from harness.study.parts import BATCHED, LOOPS, OWN

NOT_JUDGED = "not yet judged"
UNDECIDED = "this run can not tell"
HERE = {True: "true here", False: "false here"}
THROUGHOUT = {True: "true in all programs", False: "false in all programs"}
ORIGINAL = ("tf", "v1")  # framework and execution of TF1's own two programs, which C1, C4 and C7 are about
TF1 = engine(*ORIGINAL, "cpu", "fp32")
BOOK = "book"  # the workload that they had
NO_ORIGINAL = f"this run has no original TF1 program (execution v1 of tf) on {BOOK}"
PEAK = f"peak temporary memory of in_loop/{BATCHED}"
NOWHERE = pd.MultiIndex.from_arrays([[] for _ in causes.PLACE], names=causes.PLACE)
SUPPORTS = {SLOWER: "true", FASTER: "false", EQUIVALENT: "false", INCONCLUSIVE: "not known"}  # that it is slower


@dataclass(frozen=True)
class Verdict:
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


def _speed(tables: Tables, framework: str | None = None) -> Verdict:
    """Is the in-loop form slower than projecting once? As stated, of the original; beside it, where else."""
    gaps, stated = _loops(tables, "in_loop"), _stated(tables)
    others = gaps.drop(stated.index)
    if framework:
        others = others[others.framework == framework]
    beside = f"elsewhere {_by_engine(others)}" if len(others) else ""
    cells = f"{len(others)} gaps elsewhere: in_loop/{BATCHED}, every loop"
    if stated.empty:
        return Verdict(NOT_JUDGED, "; ".join(filter(None, [NO_ORIGINAL, beside])), cells)
    numbers = [f"as stated ({TF1}, {BOOK}): {_each(stated)}{_left_out(tables, stated)}", beside]
    verdict = _named(stated)
    return Verdict(verdict, "; ".join(filter(None, numbers)), f"{len(stated)} gaps as stated; {cells}")


def _ordinary(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that no prototype has."""
    return frame[~of_prototypes(frame, tables.prototype_reasons)]


def _of_the_original(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of TF1's own programs on the book's workload."""
    mine = (frame.framework == ORIGINAL[0]) & (frame.execution == ORIGINAL[1])
    return frame[mine & (frame.workload == BOOK)]


def as_stated(tables: Tables) -> str:
    """What the book's own programs took, in a sentence; nothing where they were not measured."""
    stated = _stated(tables)
    if stated.empty:
        return ""
    return f"As the book has it ({TF1}, {BOOK}), in_loop/{BATCHED} is {_each(stated)}{_left_out(tables, stated)}."


def _stated(tables: Tables) -> pd.DataFrame:
    """The gaps that C1 and C7 are about."""
    return _of_the_original(_loops(tables, "in_loop"))


def _left_out(tables: Tables, stated: pd.DataFrame) -> str:
    """How many more of them there are, in blocks whose A/A control missed 1."""
    gaps = _of_the_original(tables.gaps[(tables.gaps.contender == "in_loop") & tables.gaps.recurrence.isin(LOOPS)])
    return f", and {len(gaps) - len(stated)} left out ⚠" if len(gaps) > len(stated) else ""


def _each(gaps: pd.DataFrame) -> str:
    """Every gap by itself."""
    return ", ".join(f"{ratio(row)} ({_place(row)})" for row in gaps.to_dict("records"))


def _place(row: Row) -> str:
    device = "" if row["device"] == "cpu" else f" on {row['device']}"
    return f"{row['pass']}{device}, {counted(row['threads'], 'thread')}"


def _named(gaps: pd.DataFrame) -> str:
    """The verdict of a few gaps: one for all, or which of them say what."""
    places: dict[str, list[str]] = {}
    for row in gaps.to_dict("records"):
        places.setdefault(SUPPORTS[row["verdict"]], []).append(_place(row))
    if len(places) == 1:
        return _whole(Counter(gaps.verdict))
    order = [said for said in ("true", "false", "not known") if said in places]
    return "; ".join(f"{said} in {' and '.join(places[said])}" for said in order)


def _by_engine(gaps: pd.DataFrame) -> str:
    """What holds of all gaps of each framework and execution: its verdicts, none of them counted."""
    groups: dict[str, list[str]] = {}
    for by, part in gaps.groupby(ENGINE, sort=True):
        groups.setdefault(_whole(Counter(part.verdict), THROUGHOUT), []).append(engine(*by))
    return "; ".join(f"{said}: {', '.join(names)}" for said, names in sorted(groups.items(), reverse=True))


def _loops(tables: Tables, contender: str) -> pd.DataFrame:
    gaps = tables.gaps[usable(tables.gaps)]
    return gaps[(gaps.contender == contender) & gaps.recurrence.isin(LOOPS)]


def _by_verdicts(gaps: pd.DataFrame, cells: str) -> Verdict:
    """True where the contender is slower: everywhere, nowhere, or it depends."""
    if gaps.empty:
        return Verdict(NOT_JUDGED, "–", "nothing was measured for it")
    each = [(device, part) for device, part in gaps.groupby("device", sort=True)]
    numbers = "; ".join(
        (f"{device}: " if len(each) > 1 else "") + f"{_sizes(Counter(part.verdict))}; ratios {_range(part.ratio)}"
        for device, part in each
    )
    return Verdict(_whole(Counter(gaps.verdict)), numbers, f"{len(gaps)} gaps: {cells}")


def _whole(verdicts: Counter[str], words: dict[bool, str] = HERE) -> str:
    """What verdicts say together of the claim that the contender is slower."""
    return _judged(verdicts[SLOWER], verdicts[FASTER] + verdicts[EQUIVALENT], verdicts[INCONCLUSIVE], words)


def _judged(true: int, false: int, unknown: int = 0, words: dict[bool, str] = HERE) -> str:
    """What cells say together: a claim is true, or false, only where all of them say so."""
    if true and false:
        return "depends: true in some programs, false in others"
    if not true and not false:
        return UNDECIDED if unknown else NOT_JUDGED
    return f"{'true' if true else 'false'} in some programs, not known in others" if unknown else words[bool(true)]


def _sizes(count: Counter[str]) -> str:
    """How many of each verdict, of the contender in words of the claim."""
    return ", ".join(f"{count[v]} {v}" for v in (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE))


def _range(ratios: pd.Series) -> str:
    return f"{ratios.min():.2f} to {ratios.max():.2f}"


def _products(tables: Tables) -> Verdict:
    """One set of weights in both forms, or one a step? And T products against one?"""
    added = _ordinary(tables, causes.added(tables))
    added = added[(added["pass"] == "forward") & added.recurrence.isin(LOOPS)]
    wide = added.pivot_table(index=[*causes.PLACE, "T"], columns="projection", values="found", aggfunc="first")
    layers, said = _layers(tables)
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return Verdict(
            f"as layers {layers}; as products {NOT_JUDGED}", f"{said}; no program's products were counted", "–"
        )
    pairs = wide[["in_loop", BATCHED]].dropna()
    so = int(((pairs.in_loop == pairs.index.get_level_values("T")) & (pairs[BATCHED] == 1)).sum())
    numbers = f"{said}; in_loop adds T products where {BATCHED} adds one in {so} of {len(pairs)} pairs of programs"
    verdict = f"as layers {layers}; as products {_judged(so, len(pairs) - so)}"
    return Verdict(verdict, numbers, f"{len(pairs)} pairs, forward, counted")


def _layers(tables: Tables) -> tuple[str, str]:
    """Whether a projection in the loop has a layer of its own for each step, by the arrays that programs keep; and
    what was counted.
    """
    arrays = _arrays(tables)
    if arrays.empty:
        return "not counted", "no program's arrays were counted"
    added = arrays[["in_loop", BATCHED]].sub(arrays.none, axis=0)
    each = added[BATCHED] * arrays.steps
    so, one = int((added.in_loop == each).sum()), int((added.in_loop == added[BATCHED]).sum())
    row, place = added.iloc[0], dict(zip(added.index.names, added.index[0], strict=True))
    return _judged(so, len(added) - so), (
        f"in {one} of {len(added)} pairs of programs whose arrays were counted, projecting in the loop needs as many "
        f"arrays as projecting once ({place['workload']} {place['pass']}: {int(row.in_loop)} and {int(row[BATCHED])}; "
        f"a layer for each step would be {int(each.iloc[0])})"
    )


def _arrays(tables: Tables) -> pd.DataFrame:
    """How many arrays each form of a program keeps that keeps its own, side by side: none, in_loop, batched, steps."""
    frame = causes.once(tables.variables[tables.variables.recurrence.isin(LOOPS)])
    forms = ["none", "in_loop", BATCHED]
    wide = frame.pivot_table(index=causes.PLACE, columns="projection", values="variable", aggfunc="count")
    if not set(forms) <= set(wide.columns):
        return pd.DataFrame()
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    wide = wide[forms].dropna()
    return wide.assign(steps=wide.index.get_level_values("workload").map(steps).astype(int))


def _operations(tables: Tables) -> Verdict:
    """The same floating-point operations in both forms? A pair that a compiler changed has not the same."""
    issued, known = _pairs(tables, "products"), _pairs(tables, "flops")
    if issued.empty:
        return Verdict(NOT_JUDGED, "–", "no program's operations were counted")
    changed = _changed(tables, issued)
    kept = known[~known.index.isin(changed)]
    same, count = int((kept.in_loop == kept[BATCHED]).sum()), len(kept) + len(changed)
    unknown = len(issued.index.union(kept.index)) - count
    numbers = [f"operations of the matrix products are equal in {same} of {count} pairs of programs"]
    if same < len(kept):
        ratios = (kept.in_loop / kept[BATCHED])[kept.in_loop != kept[BATCHED]]
        numbers.append(f"in_loop/{BATCHED} is {_range(ratios)} in {len(ratios)} others")
    if len(changed):
        numbers.append(
            f"in {len(changed)} a compiler made something else of a product (a multiplication, where it has one row or "
            f"column): {_issued(issued.loc[changed])}"
        )
    if unknown:
        numbers.append(f"{counted(unknown, 'pair')} {'is' if unknown == 1 else 'are'} not known")
    cells = f"{count + unknown} pairs: framework, execution, loop, workload, pass"
    return Verdict(_judged(same, count - same, unknown), "; ".join(numbers), cells)


def _issued(pairs: pd.DataFrame) -> str:
    """The products that are left in either form of changed programs."""
    return ", ".join(
        f"{engine(*(row[name] for name in ENGINE))} {row['recurrence']} {row['workload']} {row['pass']} "
        f"{row['in_loop']:g} in the loop and {row[BATCHED]:g} after it"
        for row in pairs.reset_index().to_dict("records")
    )


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


def _memory(tables: Tables) -> Verdict:
    """The same variables in both forms of the original, and so the same memory, to the byte?"""
    pairs = _pairs(tables, "temp_bytes")
    known = pairs[(pairs.in_loop > 0) & (pairs[BATCHED] > 0)].reset_index()
    forms = _variables(tables).reset_index()
    stated, held = _of_the_original(forms), _of_the_original(known)
    others = known.drop(held.index)
    if stated.empty and held.empty:
        beside = _held(others.in_loop / others[BATCHED], f"of the arms here, {PEAK}")
        return Verdict(NOT_JUDGED, "; ".join(filter(None, [NO_ORIGINAL, beside])), f"{len(others)} pairs elsewhere")
    same = int((stated.in_loop == stated[BATCHED]).sum())
    equal = int((held.in_loop == held[BATCHED]).sum())
    elsewhere = [_alike(forms.drop(stated.index)), _held(others.in_loop / others[BATCHED], PEAK)]
    numbers = [_alike(stated), _bytes(held), *(f"elsewhere {said}" for said in elsewhere if said)]
    verdict = f"as variables {_judged(same, len(stated) - same)}; as memory {_judged(equal, len(held) - equal)}"
    cells = f"{counted(len(stated), 'pair')} of variables, {len(held)} of memory as stated; {len(others)} elsewhere"
    return Verdict(verdict, "; ".join(filter(None, numbers)), cells)


def _bytes(pairs: pd.DataFrame) -> str:
    """The peak temporary memory of each pair."""
    if pairs.empty:
        return ""
    each = ((row["pass"], amount(row["in_loop"], "B"), amount(row[BATCHED], "B")) for row in pairs.to_dict("records"))
    said = ", ".join(f"{in_loop} and {batched} ({pass_})" for pass_, in_loop, batched in each)
    return f"peak temporary memory of in_loop and {BATCHED} is {said}"


def _held(ratios: pd.Series, what: str) -> str:
    return f"{what} is {_range(ratios)} (median {ratios.median():.2f})" if len(ratios) else ""


def _alike(forms: pd.DataFrame) -> str:
    """In how many pairs both forms have the same variables, with the first pair that tells most as an example."""
    if forms.empty:
        return ""
    other = forms[forms.in_loop != forms[BATCHED]]
    row = (forms if other.empty else other).iloc[0]
    start = f"both forms make the same variables in {len(forms) - len(other)} of {len(forms)} pairs"
    if other.empty:
        return f"{start} ({row.workload}: {row.in_loop})"
    return f"{start}; in {row.workload} in_loop makes {row.in_loop} and {BATCHED} {row[BATCHED]}"


def _variables(tables: Tables) -> pd.DataFrame:
    """How many variables of which shapes each form of a training program makes that keeps its own, side by side."""
    frame = tables.variables[tables.variables.recurrence.isin(LOOPS) & (tables.variables["pass"] == "train")]
    frame = causes.once(frame)
    wide = frame.pivot_table(index=causes.PLACE, columns="projection", values="shape", aggfunc=_shapes)
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED], index=NOWHERE)
    return wide[["in_loop", BATCHED]].dropna()


def _shapes(shapes: pd.Series) -> str:
    """14: 3×[1], 3×[100], ..."""
    return f"{len(shapes)}: " + ", ".join(f"{count}×{shape}" for shape, count in sorted(Counter(shapes).items()))


def _pairs(tables: Tables, column: str) -> pd.DataFrame:
    """The in-loop and the batched program side by side, where `column` is known of both."""
    frame = tables.evidence[tables.evidence.recurrence.isin(LOOPS)]
    frame = causes.once(_ordinary(tables, frame))
    wide = frame.pivot_table(index=causes.PLACE, columns="projection", values=column, aggfunc="first", dropna=True)
    if not {"in_loop", BATCHED} <= set(wide.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED], index=NOWHERE)
    return wide[["in_loop", BATCHED]].dropna().astype(float)


def _apart(tables: Tables) -> Verdict:
    """T products after the loop: the same as inside it? And as slow against one?"""
    frame = tables.contrasts[usable(tables.contrasts)]
    frame = frame[(frame.contender == "per_step") & (frame.baseline == "in_loop")]
    if frame.empty:
        return Verdict(NOT_JUDGED, "–", "nothing was measured for it")
    count = Counter(frame.verdict)
    against = _by_verdicts(_loops(tables, "per_step"), "")
    numbers = f"per_step/in_loop: {_sizes(count)}; ratios {_range(frame.ratio)}. per_step/{BATCHED}: {against.numbers}"
    return Verdict(_same(count), numbers, f"{len(frame)} gaps, every loop")


def _same(count: Counter[str]) -> str:
    """What verdicts say together of two forms being the same."""
    names = ["the same as inside the loop"] if count[EQUIVALENT] else []
    names += ["not the same as inside the loop"] if count[SLOWER] + count[FASTER] else []
    if not names:
        return UNDECIDED
    if len(names) == 2:
        return "depends: the same in some programs, not the same in others"
    return f"{names[0]} in some programs, not known in others" if count[INCONCLUSIVE] else names[0]


def _alone(tables: Tables) -> Verdict:
    """The projection without a recurrence: one product against T, forward."""
    gaps = tables.gaps[usable(tables.gaps)]
    gaps = gaps[(gaps.recurrence == "given") & (gaps.contender == "per_step") & (gaps["pass"] == "forward")]
    return _by_verdicts(gaps, f"per_step/{BATCHED} with the hidden states given, forward")


CLAIMS: list[tuple[str, str, Callable[[Tables], Verdict]]] = [
    ("C1", "the book: one layer for all steps is significantly faster than projecting inside the loop", _speed),
    ("C2", "the book: because there is one layer instead of one per step", _products),
    ("C3", "the reader: both need exactly the same operations", _operations),
    ("C4", "the reader: both have the same variables, and so the same memory", _memory),
    ("C5", "the reader: what is meant is projecting step by step after the loop", _apart),
    ("C6", "the answer: the same layer on one large tensor is faster than on many small ones", _alone),
    ("C7", "TF1's documentation: without the wrapper it may be more efficient", partial(_speed, framework=ORIGINAL[0])),
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
        directions = Counter(part.direction)
        return (
            f"no difference beyond the margin is certain: inside took longer in {directions[LONGER]} and shorter in "
            f"{directions[SHORTER]} of {number} comparisons, by how much is not known in {count[INCONCLUSIVE]}."
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
