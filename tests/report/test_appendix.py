"""The tables below the gaps."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.report import appendix
from tests.made import block


def test_the_idiomatic_comparison_is_shown_and_what_costs_more_is_bold():
    row = {"framework": "tf", "execution": "graph", "arm": "scan_batched", "idiomatic": "keras", "note": "n"}
    row |= {"ours_us": "1000", "its_us": "900", "lowest": "1.1", "highest": "1.12"}
    assert appendix.idiomatic_table([]) == ""
    assert "| 1 ms | 900 µs | **1.110 [1.100, 1.120]** |" in appendix.idiomatic_table([row | {"ratio": "1.11"}])
    assert "**" not in appendix.idiomatic_table([row | {"ratio": "1.04"}])


def first_calls(cost_s, later_s, eager_s):
    """What is said of one compiled arm and of the eager one beside it, whose first call takes 1 s."""
    rows = [("inductor", replicate, later_s, cost_s if replicate == 0 else math.nan) for replicate in range(2)]
    rows += [("eager", replicate, eager_s, 1.0 if replicate == 0 else math.nan) for replicate in range(2)]
    place = {"framework": "torch", "device": "cpu", "precision": "fp32", "threads": 1, "workload": "book"}
    place |= {"pass": "forward", "projection": "batched", "recurrence": "unrolled"}
    names = ("execution", "process", "median_s", "first_call_s")
    times = pd.DataFrame([place | dict(zip(names, row, strict=True)) for row in rows])
    study = SimpleNamespace(workloads=[SimpleNamespace(name="book")])
    heading, _, row = appendix.first_calls(SimpleNamespace(times=times, study=study)).splitlines()
    return heading, row


@pytest.mark.parametrize(
    ("cost_s", "later_s", "said"),
    [
        (1.0, 1e-3, "| 1 call |"),
        (1.0495, 1e-3, "| 51 calls |"),
        (13.345, 1e-3, "| about 12,000 calls |"),
        (2.0, 2e-3, "| never: eager is as fast |"),
    ],
)
def test_a_break_even_is_marked_as_from_one_cold_call_and_has_no_more_digits_than_that_tells(cost_s, later_s, said):
    heading, row = first_calls(cost_s, later_s, 2e-3)
    assert heading.endswith("| break-even, from one cold call |")
    assert row.endswith(said)


KILLED = {
    "kills": {"parent": 60, "worker": 40},
    "lost": 0,
    "doubled": 0,
    "finished": True,
    "same_blocks": True,
    "left_running": 0,
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "60 times its parent and 40 times its worker, each time gone on with by `--resume`, and came to the same"),
        ({"same_blocks": False}, "**other blocks than** a run left alone"),
        ({"finished": False, "same_blocks": False}, "came to **no end, and to other blocks than** a run left alone"),
        ({"lost": 2, "doubled": 1}, "Records lost: 2; doubled: 1;"),
    ],
)
def test_what_kills_did_is_said_as_it_was(changed, said):
    assert said in appendix.kill_summary(KILLED | {"blocks": 12} | changed)


def test_arms_apart_stand_beside_arms_that_alternate():
    row = {"cell": ["torch", "eager", "unrolled", "in_loop", "forward"], "processes": 10}
    row |= {"alternating": [1.1, 1.05, 1.15], "apart": [1.2, 1.0, 1.4], "apart / alternating": [1.09, 0.9, 1.3]}
    assert "1.100 [1.050, 1.150] | 1.200 [1.000, 1.400] | 1.090 [0.900, 1.300] |" in appendix.alternation_bias([row])


def test_what_was_checked_on_a_sample_is_named_with_its_size():
    blocks = [block({"checked_sequences": 2, "workload": {"B": 6}}), block({"replicate": 1}), block({"pass": "train"})]
    assert appendix.sampled_checks(SimpleNamespace(blocks=blocks)) == ["w forward: 2 of 6 sequences"]
