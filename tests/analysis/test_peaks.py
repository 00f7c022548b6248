"""Time against peak memory: what is on the front, what is left out, and what is advised."""

import pandas as pd
import pytest

from harness.analysis import peaks
from harness.analysis.gaps import gaps_and_contrasts
from harness.report import fronts
from harness.study.study import Study
from tests.made import block

TIMES = {"batched": 100, "twin": 100, "in_loop": 120, "chunked_loss_2": 101, "chunked_loss_4": 104, "in_loop_loss": 150}
BYTES = {"batched": 100e6, "in_loop": 110e6, "chunked_loss_2": 60e6, "chunked_loss_4": 40e6, "in_loop_loss": 10e6}


def front_of(times=TIMES, megabytes=None, factor=1.0):
    """The fronts of a run of two processes, and of the memory of its arms."""
    sizes = {"name": "w", "B": 1}
    blocks = [
        block(
            {
                "replicate": number,
                "workload": sizes,
                "pass": "train",
                "arms": {f"scan_{name}": {"samples_ns": [ns * 1000 + number] * 5} for name, ns in times.items()},
            }
        )
        for number in range(2)
    ]
    measured = {
        f"scan_{name}": {"peak": {"kernel_bytes": int(number * factor)}}
        for name, number in (megabytes or BYTES).items()
    }
    record = block({"kind": "peaks", "workload": sizes, "pass": "train", "arms": measured})
    rows = peaks.peaks([record])
    return rows, peaks.fronts(rows, gaps_and_contrasts(blocks, Study())[0])


def test_a_form_is_on_the_front_where_none_is_as_fast_and_as_small():
    rows, front = front_of()
    assert set(rows.peak_bytes) == {int(number) for number in BYTES.values()}
    by_form = front.set_index("projection")
    assert by_form.on_front.to_dict() == {name: name != "in_loop" for name in BYTES}
    assert by_form.share["chunked_loss_4"] == pytest.approx(0.4)
    assert by_form.ratio["batched"] == 1
    assert front.projection.iloc[0] == "in_loop"  # the largest memory first
    slower = TIMES | {"chunked_loss_2": 105}
    assert not front_of(slower)[1].set_index("projection").on_front["chunked_loss_2"]


def test_what_cannot_be_told_has_no_front():
    assert front_of(factor=0.01)[1].empty  # the kernel counts in batches: a megabyte is too little
    assert front_of(megabytes={name: number for name, number in BYTES.items() if name != "batched"})[1].empty
    assert peaks.fronts(peaks.peaks([]), pd.DataFrame()).empty
    missing = TIMES | {"twin": 110}
    assert set(front_of(missing)[1].projection) <= {"batched"}


def test_what_saves_memory_is_advised_with_what_it_costs():
    text = fronts.advice(front_of()[1])
    assert text.startswith(
        "batched takes 100 MB; best for at most 5% more time is chunked_loss_4 (k=4): 40% of the memory (40 MB), 1.04"
    )
    assert (
        "best by the product of time and memory and by memory alone is in_loop_loss: 10% of the memory (10 MB), 1.5"
        in text
    )
    dear = TIMES | {"chunked_loss_2": 140, "chunked_loss_4": 150, "in_loop_loss": 1500}
    text = fronts.advice(front_of(dear)[1])
    assert "for at most" not in text
    assert "best by the product of time and memory is chunked_loss_4 (k=4)" in text
    assert "best by memory alone is in_loop_loss: 10% of the memory (10 MB), 15" in text
    same = dict.fromkeys(BYTES, 100e6)
    assert fronts.advice(front_of(megabytes=same)[1]) == "batched takes 100 MB, and no form saves a tenth of that."
