"""What is counted in XLA's thunks: on texts of its own, and on programs written out here.

The texts in thunks/ are of the workload vocab (T=64, B=32, I=64, H=256, O=1000), forward, compiled for an H100 with
cuBLASLt's products; `asynchronous` is by a newer XLA. Metadata that no count needs is left out of them.
"""

from collections import Counter
from pathlib import Path

import pytest

from impls import thunks
from impls.thunks import Launches

TEXTS = Path(__file__).parent / "thunks"
STEPS = 64
INPUT, RECURRENT, ONE_STEP, ALL_STEPS = (1, 32, 64, 256), (1, 32, 256, 256), (1, 32, 256, 1000), (1, 2048, 256, 1000)
BY_HAND = {  # products by shape: trips times what the body multiplies, and what comes after the loop
    "in_loop": {INPUT: STEPS, RECURRENT: STEPS, ONE_STEP: STEPS},
    "batched": {INPUT: STEPS, RECURRENT: STEPS, ALL_STEPS: 1},
    "per_step": {INPUT: STEPS, RECURRENT: STEPS, ONE_STEP: STEPS},
}


def launches_of(folder: str) -> Launches:
    names = ("thunk_sequence.txt", "thunk_metadata.txt", "optimised.hlo")
    return thunks.launches(*((TEXTS / folder / name).read_text() for name in names))


def agrees_by_hand(form: str, program: Launches) -> bool:
    products = Counter()
    for launch in program.launches:
        if launch.product:
            products[launch.product] += launch.times
    return products == BY_HAND[form]


def totals(program: Launches) -> tuple[int, tuple[int, ...], int, int]:
    """Launches from the host, launches of each graph, launches in graphs, and the nodes of all graphs."""
    from_host, in_graphs = ([e for e in program.launches if bool(e.graph) == inside] for inside in (False, True))
    return sum(e.times for e in from_host), program.graphs, sum(e.times for e in in_graphs), len(in_graphs)


@pytest.mark.parametrize("form", BY_HAND)
def test_products_are_trips_times_those_of_the_body(form):
    assert agrees_by_hand(form, launches_of(f"vocab-scan_{form}"))


def test_a_swapped_form_is_noticed():
    assert not agrees_by_hand("batched", launches_of("vocab-scan_in_loop"))
    assert not agrees_by_hand("in_loop", launches_of("vocab-scan_batched"))


def test_launches_from_the_host_and_from_graphs_are_told_apart():
    """Before the loop a copy and two broadcasts. A trip is a graph: its copies, products, tanh and counter."""
    in_loop, batched, per_step = (launches_of(f"vocab-scan_{form}") for form in ("in_loop", "batched", "per_step"))
    assert totals(in_loop) == (3, (STEPS,), 7 * STEPS, 7)
    assert totals(batched) == (3 + 1, (STEPS,), 6 * STEPS, 6)
    assert totals(per_step)[:3] == (5 + 4 * STEPS, (STEPS,), 6 * STEPS)


def test_copies_of_slices_are_marked_because_their_place_changes_at_every_trip():
    sliced = [launch.name for launch in launches_of("vocab-scan_in_loop").launches if launch.sliced]
    assert sliced == ["loop_dynamic_slice_fusion", "loop_dynamic_update_slice_fusion"]


def test_what_launches_nothing_is_not_counted():
    """In the newer XLA copies start and end asynchronously: a start holds the copy, an end only waits."""
    older, newer = launches_of("vocab-scan_in_loop"), launches_of("asynchronous")
    assert "kAsyncStart" in (TEXTS / "asynchronous" / "thunk_sequence.txt").read_text()
    assert [(e.kind, e.times, e.graph, e.product) for e in newer.launches] == [
        (e.kind, e.times, e.graph, e.product) for e in older.launches
    ]


def test_bytes_are_those_of_the_slices_and_not_of_the_arrays_that_hold_them():
    moved = {launch.name: launch.moved_bytes for launch in launches_of("vocab-scan_in_loop").launches}
    index = 4  # bytes
    assert moved["loop_dynamic_slice_fusion"] == 2 * 4 * 32 * 64 + index  # a step of x, read and written
    assert moved["loop_dynamic_update_slice_fusion"] == 2 * 4 * 32 * 1000 + index  # a step of y, and not all 8 MB
    assert moved["cublas-lt-matmul.6"] == 4 * (32 * 256 + 256 * 1000 + 1000 + 32 * 1000)


NESTED = """\
001: kWhile        [source | sink]
condition:
    002: kCustomKernel [source | sink] compare
  body:
    003: kWhile        [source | sink]
condition:
        004: kCustomKernel [source | sink] compare_1
      body:
        005: kCustomKernel [source | sink] inner
    006: kCustomKernel [prev=003 (1) | sink] outer
007: kCustomKernel [source | sink] after
"""
LOOPS = """\
HloModule nested

ENTRY %main (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0)
  %while.2 = f32[2]{0} while(%p), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %while.1 = f32[2]{0} while(%while.2), condition=%c, body=%b, backend_config={"known_trip_count":{"n":"3"}}
}
"""
NAMES = """\
profile_annotation: "while.1"
    thunk_id: 1
profile_annotation: "while.2"
    thunk_id: 3
"""


def test_a_loop_in_a_loop_runs_as_often_as_both_trips_say_and_no_condition_is_run():
    found = thunks.launches(NESTED, NAMES, LOOPS)
    assert [(launch.times, launch.graph) for launch in found.launches] == [(15, 0), (3, 0), (1, 0)]


def test_what_cannot_be_counted_is_said():
    with pytest.raises(ValueError, match="trip count"):
        thunks.launches(NESTED, NAMES, LOOPS.replace("known_trip_count", "unknown"))
    with pytest.raises(ValueError, match="cannot be read: 007"):
        thunks.launches(NESTED.replace("007: kCustomKernel [", "007 kCustomKernel ["), NAMES, LOOPS)
    with pytest.raises(ValueError, match="kRagged launches is not known"):
        thunks.launches(NESTED.replace("007: kCustomKernel", "007: kRagged"), NAMES, LOOPS)
    with pytest.raises(ValueError, match="a body that belongs to no loop"):
        thunks.launches("  body:\n", NAMES, LOOPS)
    with pytest.raises(ValueError, match="conditional"):
        thunks.launches(NESTED.replace("007: kCustomKernel", "007: kConditional"), NAMES, LOOPS)


def test_a_shape_s_bytes_are_those_of_all_its_arrays_without_a_library_s_workspace():
    assert thunks.shape_bytes("(f32[2,3]{1,0}, s32[])") == 28
    assert thunks.shape_bytes("(f32[32,256]{1,0}, s8[4194304]{0})") == 4 * 32 * 256
    assert thunks.shape_bytes("pred[]") == 1
