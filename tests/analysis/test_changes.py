"""What compiling does to the gap, of made-up gaps: which are compared, what a change is called, how sure it is."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import special

from harness.analysis.changes import changes, users_gaps
from harness.analysis.gaps import GAPS

PLACE = {"device": "cpu", "threads": 1, "precision": "fp32", "workload": "book", "pass": "forward"}


def gap(execution, ratio, half=0.01, framework="jax", recurrence=None, trusted=True, contender="in_loop", **place):
    """A row of a gaps table; `half` is the half-width of its interval as a logarithm, over five processes."""
    recurrence = recurrence or ("unrolled" if execution == "eager" else "scan")
    row = {"framework": framework, "execution": execution, "recurrence": recurrence, "contender": contender}
    row |= {"ratio": ratio, "ci_low": ratio * math.exp(-half), "ci_high": ratio * math.exp(half), "processes": 5}
    return {**PLACE, "baseline": "batched", "rounds": 30, "verdict": "", "needs": 0, "direction": ""} | row | {
        "trusted": trusted, **place
    }  # fmt: skip


def found(*rows, loops=None):
    return changes(pd.DataFrame(rows, columns=GAPS), loops or {}, 0.02)


@pytest.mark.parametrize(
    ("eager", "compiled", "effect"),
    [
        (1.30, 1.00, "removes"),
        (1.30, 0.80, "reverses"),
        (1.30, 1.10, "narrows"),
        (1.30, 1.60, "widens"),
        (1.00, 1.30, "opens"),
        (1.00, 0.80, "opens"),
        (1.30, 1.301, "not shown"),
        (1.00, 1.001, "not shown"),
        (0.80, 1.30, "reverses"),
        (0.80, 0.70, "widens"),
        (0.80, 1.00, "removes"),
    ],
)
def test_a_change_is_called_by_what_becomes_of_the_gap(eager, compiled, effect):
    (row,) = found(gap("eager", eager), gap("xla", compiled)).to_dict("records")
    assert row["effect"] == effect
    assert row["change"] == pytest.approx(compiled / eager)
    assert row["ci_low"] < row["change"] < row["ci_high"]


def test_an_interval_that_holds_1_shows_no_removal():
    (wide,) = found(gap("eager", 1.5), gap("xla", 1.0, 0.1)).effect
    assert wide == "blurs"
    (unknown,) = found(gap("eager", 0.97, 0.04), gap("xla", 1.03, 0.04)).effect
    assert unknown == "blurs"  # the change is shown, and neither gap's side


def test_its_interval_is_welch_s():
    (row,) = found(gap("eager", 1.2, 0.02), gap("xla", 1.0, 0.02)).to_dict("records")
    half = 0.02 * math.sqrt(2) * special.stdtrit(8, 0.975) / special.stdtrit(4, 0.975)
    assert np.log([row["ci_low"], row["ci_high"]]) == pytest.approx(
        [math.log(1 / 1.2) - half, math.log(1 / 1.2) + half]
    )


def test_an_effect_is_named_only_where_it_is_shown_among_all_of_its_execution():
    alone = found(gap("eager", 1.0, 0.02), gap("xla", 1.035, 0.02))
    assert list(alone.effect) == ["opens"]
    others = [gap(execution, 1.0, 0.02, workload=f"w{n}") for n in range(9) for execution in ("eager", "xla")]
    many = found(gap("eager", 1.0, 0.02), gap("xla", 1.035, 0.02), *others)
    assert set(many.effect) == {"not shown"}
    torch = [{**row, "framework": "torch"} for row in others]  # another framework's comparisons cost nothing
    beside = found(gap("eager", 1.0, 0.02), gap("xla", 1.035, 0.02), *torch)
    assert beside[beside.framework == "jax"].effect.tolist() == ["opens"]


def test_only_what_may_be_counted_is_compared_and_only_with_its_own():
    rows = [gap("eager", 1.3), gap("xla", 1.0, trusted=False), gap("xla", 1.0, recurrence="unrolled", trusted=False)]
    rows += [gap("xla", 1.0, contender="per_step"), gap("xla", 1.0, threads=2), gap("graph", 1.0, framework="tf")]
    assert found(*rows).empty
    assert found(gap("eager", 1.3, math.nan), gap("xla", 1.0)).empty


def test_the_loop_is_the_one_that_the_records_say_users_write():
    rows = [gap("eager", 1.3), gap("xla", 1.1), gap("xla", 1.0, recurrence="unrolled")]
    assert found(*rows).gap.tolist() == [1.1, 1.0]  # in the loop that users write, and in the eager gap's
    assert found(*rows, loops={("jax", "xla"): "unrolled"}).gap.tolist() == [1.0]
    frame = pd.DataFrame(rows, columns=GAPS)
    assert users_gaps(frame, {}).recurrence.tolist() == ["unrolled", "scan"]


def test_the_same_loop_is_compared_too_where_users_write_another():
    rows = found(gap("eager", 1.3), gap("xla", 1.2), gap("xla", 1.02, recurrence="unrolled"), gap("inductor", 1.1,
                 recurrence="unrolled"))  # fmt: skip
    made = {(row.execution, row.loop): round(row.gap, 2) for row in rows.itertuples()}
    assert made == {("xla", "usual"): 1.2, ("inductor", "usual"): 1.1, ("xla", "same"): 1.02}
    assert list(rows.loop) == ["usual", "usual", "same"]
    alone = found(gap("eager", 1.3), gap("xla", 1.2))
    usual = rows[(rows.execution == "xla") & (rows.loop == "usual")]
    assert usual.p.tolist() == alone.p.tolist()  # corrected over the changes of its own kind


def test_a_loop_that_the_eager_gap_does_not_have_is_not_compared():
    assert set(found(gap("eager", 1.3), gap("xla", 1.2), gap("eager", 1.1, recurrence="scan")).loop) == {"usual"}
