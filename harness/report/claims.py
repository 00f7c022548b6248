"""The claims about the question, each checked against this run's numbers, and the advice that follows from them.

A claim's verdict is made of the verdicts of the cells that it is about, so a claim that is false on this machine is
reported as false. What was said of TF1 is checked on TF1's own programs, as stated; where else it holds is reported
beside that. Cells share machine, processes and compilers, so the number of cells that agree is reported and decides
nothing.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from harness.analysis.gaps import ENGINE, is_included, is_prototype
from harness.analysis.stats import EQUIVALENT, FASTER, INCONCLUSIVE, LONGER, SHORTER, SLOWER
from harness.analysis.tables import Tables
from harness.report import causes
from harness.report.markdown import Row, amount, execution_name, pluralize, ratio, table, with_threads
from harness.study.parts import BATCHED, OWN
from harness.study.study import LOOPS

NOT_JUDGED = "not yet judged"
UNDECIDED = "this run cannot tell"
HERE = {True: "true here", False: "false here"}
THROUGHOUT = {True: "true in all programs", False: "false in all programs"}
ORIGINAL = ("tf", "v1")  # framework and execution of TF1's own two programs, which C1, C4 and C7 are about
TF1 = execution_name(*ORIGINAL, "cpu", "fp32")
BOOK = "book"  # the workload of those two programs
NO_ORIGINAL = f"this run has no original TF1 program (execution v1 of tf) on {BOOK}"
PEAK = f"peak temporary memory of in_loop/{BATCHED}"
NOWHERE = pd.MultiIndex.from_arrays([[] for _ in causes.PLACE], names=causes.PLACE)
# what each verdict says of the claim that the contender is slower
SUPPORTS = {SLOWER: "true", FASTER: "false", EQUIVALENT: "false", INCONCLUSIVE: "not known"}


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict as stated, the numbers behind it, the cells they come from, and what holds elsewhere."""

    verdict: str
    numbers: str
    cells: str
    elsewhere: str = ""


class Claim(NamedTuple):
    """A claim: who says what, how it is checked, and the flags of `run` that measure what the check needs."""

    name: str
    text: str
    check: Callable[[Tables], Verdict]
    experiment: str


def claims_table(tables: Tables) -> str:
    """Return a table of all claims: each with its verdict, numbers, cells, and the experiment that decides it."""
    if tables.study.label == "quick":
        return "A smoke run judges no claim."
    rows = []
    for claim in CLAIMS:
        verdict = claim.check(tables)
        row = [claim.name, claim.text, f"**{verdict.verdict}**", verdict.numbers, verdict.elsewhere or "–"]
        rows.append([*row, verdict.cells, f"`run {claim.experiment}`"])
    return table(["", "claim", "verdict", "numbers", "elsewhere", "from", "experiment"], rows)


def _check_speed(tables: Tables, framework: str | None = None) -> Verdict:
    """Check whether the in-loop form is slower than projecting once.

    The verdict is that of the original programs, as stated. The numbers also say where else the claim holds, in all
    frameworks or in `framework` alone.
    """
    gaps, original_gaps = _loop_gaps(tables, "in_loop"), _stated_gaps(tables)
    other_gaps = gaps.drop(original_gaps.index)
    if framework:
        other_gaps = other_gaps[other_gaps.framework == framework]
    elsewhere = _verdicts_by_execution(other_gaps)
    cells = f"{len(other_gaps)} gaps elsewhere: in_loop/{BATCHED}, every loop"
    if original_gaps.empty:
        return Verdict(NOT_JUDGED, NO_ORIGINAL, cells, elsewhere)
    numbers = f"as stated ({TF1}, {BOOK}): {_list_gaps(original_gaps)}{_left_out_note(tables, original_gaps)}"
    cells = f"{len(original_gaps)} gaps as stated; {cells}"
    return Verdict(_verdict_by_place(original_gaps), numbers, cells, elsewhere)


def _drop_prototypes(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that belong to no prototype."""
    return frame[~is_prototype(frame, tables.prototype_reasons)]


def _original_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of TF1's own programs on the book's workload."""
    is_original = (frame.framework == ORIGINAL[0]) & (frame.execution == ORIGINAL[1])
    return frame[is_original & (frame.workload == BOOK)]


def original_sentence(tables: Tables) -> str:
    """Say in a sentence which ratios the book's own programs have; "" if they were not measured."""
    gaps = _stated_gaps(tables)
    if gaps.empty:
        return ""
    return f"As the book has it ({TF1}, {BOOK}), in_loop/{BATCHED} is {_list_gaps(gaps)}{_left_out_note(tables, gaps)}."


def _stated_gaps(tables: Tables) -> pd.DataFrame:
    """Return the gaps that C1 and C7 are about."""
    return _original_rows(_loop_gaps(tables, "in_loop"))


def _left_out_note(tables: Tables, included: pd.DataFrame) -> str:
    """Say how many more of the original's gaps lie in blocks whose A/A control missed 1; "" if there are none."""
    gaps = _original_rows(tables.gaps[(tables.gaps.contender == "in_loop") & tables.gaps.recurrence.isin(LOOPS)])
    return f", and {len(gaps) - len(included)} left out ⚠" if len(gaps) > len(included) else ""


def _list_gaps(gaps: pd.DataFrame) -> str:
    """List the gaps, each with its ratio and its place."""
    return ", ".join(f"{ratio(row)} ({_format_place(row)})" for row in gaps.to_dict("records"))


def _format_place(row: Row) -> str:
    device = "" if row["device"] == "cpu" else f" on {row['device']}"
    return with_threads(f"{row['pass']}{device}", row["device"], row["threads"])


def _verdict_by_place(gaps: pd.DataFrame) -> str:
    """Return the verdict of a few gaps: one for all of them, or each verdict with the places that have it."""
    places: dict[str, list[str]] = {}
    for row in gaps.to_dict("records"):
        places.setdefault(SUPPORTS[row["verdict"]], []).append(_format_place(row))
    if len(places) == 1:
        return _combine_verdicts(Counter(gaps.verdict))
    verdicts = [verdict for verdict in ("true", "false", "not known") if verdict in places]
    return "; ".join(f"{verdict} in {' and '.join(places[verdict])}" for verdict in verdicts)


def _verdicts_by_execution(gaps: pd.DataFrame) -> str:
    """Say for each framework and execution what holds in all its gaps, without counting them."""
    groups: dict[str, list[str]] = {}
    for keys, part in gaps.groupby(ENGINE, sort=True):
        groups.setdefault(_combine_verdicts(Counter(part.verdict), THROUGHOUT), []).append(execution_name(*keys))
    return "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in sorted(groups.items(), reverse=True))


def _loop_gaps(tables: Tables, contender: str) -> pd.DataFrame:
    gaps = tables.gaps[is_included(tables.gaps)]
    return gaps[(gaps.contender == contender) & gaps.recurrence.isin(LOOPS)]


def _slower_verdict(gaps: pd.DataFrame, cells: str) -> Verdict:
    """Return the verdict on the claim that the contender is slower: true, false, or it depends."""
    if gaps.empty:
        return Verdict(NOT_JUDGED, "–", "nothing was measured for it")
    groups = [(device, part) for device, part in gaps.groupby("device", sort=True)]
    numbers = "; ".join(
        (f"{device}: " if len(groups) > 1 else "")
        + f"{_format_verdict_counts(Counter(part.verdict))} (by the intervals alone, longer in "
        f"{(part.direction == LONGER).sum()} and shorter in {(part.direction == SHORTER).sum()}); ratios "
        f"{_range(part.ratio)}"
        for device, part in groups
    )
    return Verdict(_combine_verdicts(Counter(gaps.verdict)), numbers, f"{len(gaps)} gaps: {cells}")


def _combine_verdicts(verdicts: Counter[str], words: dict[bool, str] = HERE) -> str:
    """Return what the verdicts say together about the claim that the contender is slower."""
    return _combine_counts(verdicts[SLOWER], verdicts[FASTER] + verdicts[EQUIVALENT], verdicts[INCONCLUSIVE], words)


def _combine_counts(true_count: int, false_count: int, unknown_count: int = 0, words: dict[bool, str] = HERE) -> str:
    """Return what the cells say together: a claim is true, or false, only if all of them say so."""
    if true_count and false_count:
        return "depends: true in some programs, false in others"
    if not true_count and not false_count:
        return UNDECIDED if unknown_count else NOT_JUDGED
    return (
        f"{'true' if true_count else 'false'} in some programs, not known in others"
        if unknown_count
        else words[bool(true_count)]
    )


def _format_verdict_counts(count: Counter[str]) -> str:
    """Say how many gaps have each verdict, in the words of the claim."""
    return ", ".join(f"{count[verdict]} {verdict}" for verdict in (SLOWER, FASTER, EQUIVALENT, INCONCLUSIVE))


def _range(ratios: pd.Series) -> str:
    low, high = f"{ratios.min():.2f}", f"{ratios.max():.2f}"
    return low if low == high else f"{low} to {high}"


def _check_products(tables: Tables) -> Verdict:
    """Check whether in_loop has a layer for each step, and whether it makes T products where batched makes one."""
    products = _drop_prototypes(tables, causes.added_products(tables))
    is_several = products["T"] > 1  # with one step, a layer or product for each step is one for all
    products = products[(products["pass"] == "forward") & products.recurrence.isin(LOOPS) & is_several]
    forms = products.pivot_table(index=[*causes.PLACE, "T"], columns="projection", values="found", aggfunc="first")
    layer_verdict, layer_numbers = _check_layers(tables)
    if not {"in_loop", BATCHED} <= set(forms.columns):
        return Verdict(
            f"as layers {layer_verdict}; as products {NOT_JUDGED}",
            f"{layer_numbers}; no program's products were counted",
            "–",
        )
    pairs = forms[["in_loop", BATCHED]].dropna()
    agreeing = int(((pairs.in_loop == pairs.index.get_level_values("T")) & (pairs[BATCHED] == 1)).sum())
    numbers = (
        f"{layer_numbers}; "
        f"in_loop adds T products where {BATCHED} adds one in {agreeing} of {len(pairs)} pairs of programs"
    )
    verdict = f"as layers {layer_verdict}; as products {_combine_counts(agreeing, len(pairs) - agreeing)}"
    return Verdict(verdict, numbers, f"{len(pairs)} pairs, forward, counted")


def _check_layers(tables: Tables) -> tuple[str, str]:
    """Check by the arrays that programs keep whether a projection in the loop has a layer of its own for each step.

    Returns the verdict and the numbers behind it.
    """
    arrays = _count_arrays(tables)
    if arrays.empty:
        return "not counted", "no program's arrays were counted"
    differences = arrays[["in_loop", BATCHED]].sub(arrays.none, axis=0)
    layer_per_step = differences[BATCHED] * arrays.steps
    per_step_count, shared_count = (
        int((differences.in_loop == layer_per_step).sum()),
        int((differences.in_loop == differences[BATCHED]).sum()),
    )
    row, place = differences.iloc[0], dict(zip(differences.index.names, differences.index[0], strict=True))
    return _combine_counts(per_step_count, len(differences) - per_step_count), (
        f"in {shared_count} of {len(differences)} pairs of programs whose arrays were counted, projecting in "
        f"the loop needs as many arrays as projecting once "
        f"({place['workload']} {place['pass']}: {int(row.in_loop)} and {int(row[BATCHED])}; "
        f"a layer for each step would be {int(layer_per_step.iloc[0])})"
    )


def _count_arrays(tables: Tables) -> pd.DataFrame:
    """Count the arrays that each form of a program keeps, side by side: columns none, in_loop, batched, steps.

    Only programs that keep their own arrays are counted.
    """
    frame = causes.rows_with_fewest_threads(tables.variables[tables.variables.recurrence.isin(LOOPS)])
    forms = ["none", "in_loop", BATCHED]
    arrays = frame.pivot_table(index=causes.PLACE, columns="projection", values="variable", aggfunc="count")
    if not set(forms) <= set(arrays.columns):
        return pd.DataFrame()
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    arrays = arrays[forms].dropna()
    arrays = arrays.assign(steps=arrays.index.get_level_values("workload").map(steps).astype(int))
    return arrays[arrays.steps > 1]  # with one step, a layer for each step is one for all


def _check_operations(tables: Tables) -> Verdict:
    """Check whether both forms make the same floating-point operations.

    A pair of programs that a compiler changed does not have the same.
    """
    products, flops = _program_pairs(tables, "products"), _program_pairs(tables, "flops")
    if products.empty:
        return Verdict(NOT_JUDGED, "–", "no program's operations were counted")
    changed = _changed_pairs(tables, products)
    unchanged = flops[~flops.index.isin(changed)]
    same_count, pair_count = int((unchanged.in_loop == unchanged[BATCHED]).sum()), len(unchanged) + len(changed)
    unknown_count = len(products.index.union(unchanged.index)) - pair_count
    numbers = [f"operations of the matrix products are equal in {same_count} of {pair_count} pairs of programs"]
    if same_count < len(unchanged):
        ratios = (unchanged.in_loop / unchanged[BATCHED])[unchanged.in_loop != unchanged[BATCHED]]
        numbers.append(f"in_loop/{BATCHED} is {_range(ratios)} in {len(ratios)} others")
    if len(changed):
        numbers.append(
            f"in {len(changed)} a compiler made something else of a product (a multiplication, where it has one row or "
            f"column): {_list_issued_products(products.loc[changed])}"
        )
    if unknown_count:
        numbers.append(f"{pluralize(unknown_count, 'pair')} {'is' if unknown_count == 1 else 'are'} not known")
    cells = f"{pair_count + unknown_count} pairs: framework, execution, loop, workload, pass"
    return Verdict(_combine_counts(same_count, pair_count - same_count, unknown_count), "; ".join(numbers), cells)


def _list_issued_products(pairs: pd.DataFrame) -> str:
    """List the products that are left in either form of changed programs."""
    return ", ".join(
        f"{execution_name(*(row[name] for name in ENGINE))} {row['recurrence']} {row['workload']} {row['pass']} "
        f"{row['in_loop']:g} in the loop and {row[BATCHED]:g} after it"
        for row in pairs.reset_index().to_dict("records")
    )


def _changed_pairs(tables: Tables, products: pd.DataFrame) -> pd.Index:
    """Return the pairs whose operations are counted by issued products that differ from the written ones.

    What a compiler computes in another way is missing from such a count.
    """
    counts = causes.added_products(tables)
    counts = counts[(counts.found != counts.expected) & counts.projection.isin(["in_loop", BATCHED])]
    steps = tables.times.drop_duplicates("workload").set_index("workload")["T"]
    places = products.index.to_frame()
    factors = places["pass"].map({"forward": 1, "loss": 1, "train": causes.BACKWARD})
    expected = (places.workload.map(steps).astype(int) - 1) * factors
    differing = products.index[products.in_loop - products[BATCHED] != expected]
    pairs_by_products = _program_pairs(tables, "product_bytes").index
    return pairs_by_products.intersection(differing.union(pd.MultiIndex.from_frame(counts[causes.PLACE])))


def _check_memory(tables: Tables) -> Verdict:
    """Check whether both forms of the original have the same variables, and so the same memory, to the byte."""
    pairs = _program_pairs(tables, "temp_bytes")
    known_pairs = pairs[(pairs.in_loop > 0) & (pairs[BATCHED] > 0)].reset_index()
    forms = _count_variables(tables).reset_index()
    original_forms, original_pairs = _original_rows(forms), _original_rows(known_pairs)
    other_pairs = known_pairs.drop(original_pairs.index)
    if original_forms.empty and original_pairs.empty:
        memory = _peak_ratio_text(other_pairs.in_loop / other_pairs[BATCHED], f"of the arms here, {PEAK}")
        return Verdict(NOT_JUDGED, NO_ORIGINAL, f"{len(other_pairs)} pairs elsewhere", memory)
    same_count = int((original_forms.in_loop == original_forms[BATCHED]).sum())
    equal_count = int((original_pairs.in_loop == original_pairs[BATCHED]).sum())
    elsewhere = [
        _same_variables_text(forms.drop(original_forms.index)),
        _peak_ratio_text(other_pairs.in_loop / other_pairs[BATCHED], PEAK),
    ]
    numbers = [
        _same_variables_text(original_forms),
        _list_peak_bytes(original_pairs),
    ]
    verdict = (
        f"as variables {_combine_counts(same_count, len(original_forms) - same_count)}; "
        f"as memory {_combine_counts(equal_count, len(original_pairs) - equal_count)}"
    )
    cells = (
        f"{pluralize(len(original_forms), 'pair')} of variables, "
        f"{len(original_pairs)} of memory as stated; {len(other_pairs)} elsewhere"
    )
    return Verdict(verdict, "; ".join(filter(None, numbers)), cells, "; ".join(filter(None, elsewhere)))


def _list_peak_bytes(pairs: pd.DataFrame) -> str:
    """Say what the peak temporary memory of each pair is."""
    if pairs.empty:
        return ""
    amounts = (
        (row["pass"], amount(row["in_loop"], "B"), amount(row[BATCHED], "B")) for row in pairs.to_dict("records")
    )
    listing = ", ".join(f"{in_loop} and {batched} ({pass_})" for pass_, in_loop, batched in amounts)
    return f"peak temporary memory of in_loop and {BATCHED} is {listing}"


def _peak_ratio_text(ratios: pd.Series, what: str) -> str:
    return f"{what} is {_range(ratios)} (median {ratios.median():.2f})" if len(ratios) else ""


def _same_variables_text(forms: pd.DataFrame) -> str:
    """Say in how many pairs both forms have the same variables, with an example.

    The example is the first pair that differs, or the first pair if none does.
    """
    if forms.empty:
        return ""
    differing = forms[forms.in_loop != forms[BATCHED]]
    row = (forms if differing.empty else differing).iloc[0]
    start = f"both forms make the same variables in {len(forms) - len(differing)} of {len(forms)} pairs"
    if differing.empty:
        return f"{start} ({row.workload}: {row.in_loop})"
    return f"{start}; in {row.workload} in_loop makes {row.in_loop} and {BATCHED} {row[BATCHED]}"


def _count_variables(tables: Tables) -> pd.DataFrame:
    """Count the variables by shape for each form of a training program, side by side.

    Only programs that keep their own variables are counted.
    """
    frame = tables.variables[tables.variables.recurrence.isin(LOOPS) & (tables.variables["pass"] == "train")]
    frame = causes.rows_with_fewest_threads(frame)
    forms = frame.pivot_table(index=causes.PLACE, columns="projection", values="shape", aggfunc=_count_shapes)
    if not {"in_loop", BATCHED} <= set(forms.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED], index=NOWHERE)
    return forms[["in_loop", BATCHED]].dropna()


def _count_shapes(shapes: pd.Series) -> str:
    """Count the variables and each of their shapes, as in "14: 3×[1], 3×[100], ..."."""
    return f"{len(shapes)}: " + ", ".join(f"{count}×{shape}" for shape, count in sorted(Counter(shapes).items()))


def _program_pairs(tables: Tables, column: str) -> pd.DataFrame:
    """Return the in-loop and the batched program side by side, where `column` is known for both."""
    frame = tables.evidence[tables.evidence.recurrence.isin(LOOPS)]
    frame = causes.rows_with_fewest_threads(_drop_prototypes(tables, frame))
    forms = frame.pivot_table(index=causes.PLACE, columns="projection", values=column, aggfunc="first", dropna=True)
    if not {"in_loop", BATCHED} <= set(forms.columns):
        return pd.DataFrame(columns=["in_loop", BATCHED], index=NOWHERE)
    return forms[["in_loop", BATCHED]].dropna().astype(float)


def _check_per_step(tables: Tables) -> Verdict:
    """Check whether T products after the loop cost the same as inside it, and whether they are as slow against one."""
    frame = tables.contrasts[is_included(tables.contrasts)]
    frame = frame[(frame.contender == "per_step") & (frame.baseline == "in_loop")]
    if frame.empty:
        return Verdict(NOT_JUDGED, "–", "nothing was measured for it")
    count = Counter(frame.verdict)
    batched = _slower_verdict(_loop_gaps(tables, "per_step"), "")
    in_loop = f"per_step/in_loop: {_format_verdict_counts(count)}; ratios {_range(frame.ratio)}"
    numbers = f"{in_loop}. per_step/{BATCHED}: {batched.numbers}"
    return Verdict(_combine_sameness(count), numbers, f"{len(frame)} gaps, every loop")


def _combine_sameness(count: Counter[str], other: str = "inside the loop") -> str:
    """Return what the verdicts say together about a form being the same as another one."""
    names = [f"the same as {other}"] if count[EQUIVALENT] else []
    names += [f"not the same as {other}"] if count[SLOWER] + count[FASTER] else []
    if not names:
        return UNDECIDED
    if len(names) == 2:
        return "depends: the same in some programs, not the same in others"
    return f"{names[0]} in some programs, not known in others" if count[INCONCLUSIVE] else names[0]


def _check_without_recurrence(tables: Tables) -> Verdict:
    """Check the projection without a recurrence: T products against one, forward."""
    gaps = tables.gaps[is_included(tables.gaps)]
    gaps = gaps[(gaps.recurrence == "given") & (gaps.contender == "per_step") & (gaps["pass"] == "forward")]
    return _slower_verdict(gaps, f"per_step/{BATCHED} with the hidden states given, forward")


def _check_cure(tables: Tables) -> Verdict:
    """Check whether a program that takes the products out of the loop does as well as projecting once by hand."""
    hoisted, in_loop = _loop_gaps(tables, "hoisted"), _loop_gaps(tables, "in_loop")
    if hoisted.empty:
        return Verdict(NOT_JUDGED, "–", "nothing was measured for it")
    count = Counter(hoisted.verdict)
    numbers = f"hoisted/{BATCHED}: {_format_verdict_counts(count)}; ratios {_range(hoisted.ratio)}"
    pairs = hoisted.merge(in_loop, on=causes.PLACE, suffixes=("", "_in_loop"))
    longer = pairs[pairs.direction_in_loop == LONGER]
    if len(longer):
        closed = 1 - np.log(longer.ratio) / np.log(longer.ratio_in_loop)
        numbers += (
            f"; where in_loop took longer, {_range(longer.ratio_in_loop)} times as long, it closes "
            f"{closed.min():.0%} to {closed.max():.0%} of the gap (median {closed.median():.0%}, "
            f"{pluralize(len(longer), 'place')})"
        )
    verdict = _combine_sameness(count, f"{BATCHED} by hand")
    return Verdict(verdict, numbers, f"{len(hoisted)} gaps: hoisted/{BATCHED}, every loop")


TF1_FLAGS = f"--framework {ORIGINAL[0]} --execution {ORIGINAL[1]}"
LOOP_FLAGS = " ".join(f"--recurrence {loop}" for loop in LOOPS)
FORM_FLAGS = f"--projection in_loop --projection {BATCHED}"
CLAIMS = (
    Claim(
        "C1",
        "the book: one layer for all steps is significantly faster than projecting inside the loop",
        _check_speed,
        f"{TF1_FLAGS} --workload {BOOK}",
    ),
    Claim(
        "C2",
        "the book: because there is one layer instead of one per step",
        _check_products,
        f"{LOOP_FLAGS} --projection none {FORM_FLAGS} --pass forward --processes 1",
    ),
    Claim(
        "C3",
        "the reader: both need exactly the same operations",
        _check_operations,
        f"{LOOP_FLAGS} --projection none {FORM_FLAGS} --processes 1",
    ),
    Claim(
        "C4",
        "the reader: both have the same variables, and so the same memory",
        _check_memory,
        f"{TF1_FLAGS} --workload {BOOK} --processes 1",
    ),
    Claim(
        "C5",
        "the reader: what is meant is projecting step by step after the loop",
        _check_per_step,
        f"{LOOP_FLAGS} {FORM_FLAGS} --projection per_step",
    ),
    Claim(
        "C6",
        "the answer: the same layer on one large tensor is faster than on many small ones",
        _check_without_recurrence,
        f"--recurrence given --projection per_step --projection {BATCHED} --pass forward",
    ),
    Claim(
        "C7",
        "TF1's documentation: without the wrapper it may be more efficient",
        partial(_check_speed, framework=ORIGINAL[0]),
        f"{TF1_FLAGS} --workload {BOOK}",
    ),
    Claim(
        "C8",
        "this study: nobody need rewrite the loop, because a program (`hoist`) takes the products out of it",
        _check_cure,
        f"{LOOP_FLAGS} {FORM_FLAGS} --projection hoisted",
    ),
)


def advice(tables: Tables) -> str:
    """Return for each framework and execution what its verdicts advise one to write."""
    if tables.study.label == "quick":
        return "A smoke run gives no advice."
    gaps = _loop_gaps(tables, "in_loop")
    lines = []
    for keys, part in gaps.groupby(ENGINE, sort=True):
        sentences = [_where_to_project(part), _own_layer_cost(tables, keys)]
        lines.append(f"- **{execution_name(*keys)}**: {' '.join(filter(None, sentences))}")
    return "\n".join(lines) or "Nothing was measured from which advice would follow."


def _where_to_project(part: pd.DataFrame) -> str:
    """Say where to project."""
    count, total = Counter(part.verdict), len(part)
    slower, faster = part[part.verdict == SLOWER], part[part.verdict == FASTER]
    if not count[SLOWER] and not count[FASTER]:
        if count[EQUIVALENT] > count[INCONCLUSIVE]:
            return f"write what reads best: both forms cost the same in {count[EQUIVALENT]} of {total} comparisons."
        directions = Counter(part.direction)
        return (
            f"no difference beyond the margin is certain: inside took longer in {directions[LONGER]} and shorter in "
            f"{directions[SHORTER]} of {total} comparisons, by how much is not known in {count[INCONCLUSIVE]}."
        )
    shorter, longer = part[part.direction == SHORTER], part[part.direction == LONGER]
    worst = f"up to {slower.ratio.max():.2f} times ({_extreme_place(slower, 'idxmax')})" if count[SLOWER] else ""
    best = f"down to {faster.ratio.min():.2f} of the time ({_extreme_place(faster, 'idxmin')})" if count[FASTER] else ""
    if shorter.empty:
        return f"project once, after the loop: inside it was slower in {count[SLOWER]} of {total} comparisons, {worst}."
    if longer.empty:
        return f"project inside the loop: it was faster in {count[FASTER]} of {total} comparisons, {best}."
    sides = (
        (SLOWER, count[SLOWER], worst, "took longer", longer, "idxmax"),
        (FASTER, count[FASTER], best, "took less time", shorter, "idxmin"),
    )
    clauses = [
        f"{verdict} in {number}, {extreme}" if number else f"{took} in {len(rows)} ({_extreme_place(rows, pick)})"
        for verdict, number, extreme, took, rows, pick in sides
    ]
    return f"measure your own case: of {total} comparisons, inside the loop was {' and '.join(clauses)}."


def _extreme_place(part: pd.DataFrame, pick: str) -> str:
    row = part.loc[getattr(part.ratio, pick)()].to_dict()
    return with_threads(f"{row['workload']} {row['pass']}, {row['recurrence']}", row["device"], row["threads"])


def _own_layer_cost(tables: Tables, keys: tuple[str, ...]) -> str:
    """Say what a wrapper's projection inside the loop costs against the framework's own layer, which it rules out."""
    frame = tables.contrasts[is_included(tables.contrasts)]
    is_selected = frame[ENGINE].eq(list(keys)).all(axis=1)
    frame = frame[is_selected & (frame.baseline == OWN) & frame.ci_low.notna()]
    if frame.empty:
        return ""
    directions = Counter(frame.direction)
    return (
        "A projection inside the loop rules out the framework's own layer: against that, projected once, it took "
        f"{_range(frame.ratio)} of the time (longer in {directions[LONGER]}, shorter in {directions[SHORTER]} of "
        f"{pluralize(len(frame), 'comparison')})."
    )
