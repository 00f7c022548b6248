"""The launch model: what each constant is multiplied by, and that a range is of ratios and not of times."""

import numpy as np
import pytest

from harness.analysis import launch_model as model
from harness.analysis.launch_model import Card, Count, LaunchGroup, Operations
from impls.evidence import Product

CARD = Card(flops=132e12, bytes_s=1e12, multiprocessors=132)  # 1 TFLOP/s a multiprocessor, 1 MB a microsecond


def constants(**changed: float) -> dict[str, np.ndarray]:
    """One draw in which every constant is 0, except shares (1), tiles (64) and those that are given."""
    neutral = {"tile": 64.0, "small_share": 1.0, "large_share": 1.0, "bandwidth_share": 1.0}
    return {name: np.array([changed.get(name, neutral.get(name, 0.0))]) for name in model.CONSTANTS}


def test_the_host_pays_for_launches_graphs_nodes_and_slices():
    launched = (
        LaunchGroup(3, False, None, 0.0),
        LaunchGroup(120, True, None, 0.0),
        LaunchGroup(20, True, None, 0.0, sliced=True),
    )
    count = Count(launched, graphs=20, recorded=7)
    for constant, times in {"launch_us": 3, "graph_launch_us": 20, "graph_update_us": 7, "slice_update_us": 20}.items():
        (time,) = model.compiled_us(count, CARD, constants(**{constant: 1.0, "jax_call_us": 10.0}), "jax_call_us")
        assert time == 10 + times, constant


def test_the_gpu_pays_for_kernels_bytes_and_gaps():
    launched = (LaunchGroup(3, False, None, 2e6), LaunchGroup(120, True, None, 0.0))
    count = Count(launched, graphs=20, recorded=6)
    for constant, times in {"kernel_us": 3, "graph_kernel_us": 120, "graph_gap_us": 20}.items():
        (time,) = model.compiled_us(count, CARD, constants(**{constant: 1.0}), "jax_call_us")
        assert time == times + 3 * 2, constant  # three kernels of 2 MB


def test_the_larger_of_host_and_gpu_counts():
    count = Count((LaunchGroup(10, False, None, 0.0),), 0, 0)
    for kernel, launch, expected in ((1.0, 3.0, 30), (4.0, 3.0, 40)):
        c = constants(kernel_us=kernel, launch_us=launch)
        assert model.compiled_us(count, CARD, c, "jax_call_us") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("product", "expected_us"),
    [
        (Product(1, 1, 64, 128, 64), 2 * 64 * 64 * 128 / 1e6),  # one tile on one multiprocessor
        (Product(1, 1, 1, 128, 64), 2 * 64 * 64 * 128 / 1e6),  # a row takes a whole tile
        (Product(1, 1, 64, 128, 640), 2 * 64 * 64 * 128 / 1e6),  # ten tiles side by side
        (Product(1, 1, 64, 128, 64 * 133), 2 * 2 * 64 * 64 * 128 / 1e6),  # one tile too many: two waves
        (Product(1, 1, 64, 2048, 64), 2 * 64 * 64 * 256 / 1e6),  # K is cut among the multiprocessors that are left
    ],
)
def test_a_product_takes_waves_of_tiles(product, expected_us):
    assert model.product_us(product, CARD, constants()) == pytest.approx([expected_us])


def test_eager_pays_for_operations_and_less_for_those_of_the_projection():
    work = Operations(operations=60, recurrence=40, products=(Product(20, 1, 1, 1, 1),))
    c = constants(torch_op_us=2.0, torch_share=0.5, torch_call_us=7.0)
    assert model.eager_us(work, CARD, c, "torch_op_us", "torch_share", "torch_call_us") == pytest.approx(
        7 + 2 * (40 + 0.5 * 20)
    )
    c = constants(kernel_us=1.0)
    time = model.eager_us(work, CARD, c, "torch_op_us", "torch_share", "torch_call_us")
    assert time == pytest.approx(60 + 20 * model.product_us(Product(1, 1, 1, 1, 1), CARD, c))


def test_draws_stay_in_their_ranges_and_are_the_same_each_time():
    drawn, again = model.draws(count=500), model.draws(count=500)
    for name, range_ in model.CONSTANTS.items():
        assert range_.low <= drawn[name].min() <= drawn[name].max() <= range_.high, name
        assert (drawn[name] == again[name]).all()
        assert drawn[name].std() > 0


def test_a_ratio_s_range_is_narrower_than_what_its_times_ranges_allow():
    """The constants of a draw are shared: what a launch costs nearly cancels."""
    c = model.draws()
    one, two = (
        model.compiled_us(Count((LaunchGroup(n, False, None, 0.0),), 0, 0), CARD, c, "jax_call_us") for n in (500, 1000)
    )
    low, middle, high = model.percentiles(two / one)
    (one_low, _, one_high), (two_low, _, two_high) = model.percentiles(one), model.percentiles(two)
    assert 1.85 < low < middle < high < 2
    assert two_low / one_high < low
    assert high < two_high / one_low


def test_what_is_not_modelled_is_drawn_for_each_form_anew():
    first, second = model.unmodelled(("h100", "in_loop")), model.unmodelled(("h100", "batched"))
    assert (first == model.unmodelled(("h100", "in_loop"))).all()
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1


def test_every_constant_has_a_range_and_a_source():
    for name, range_ in model.CONSTANTS.items():
        assert 0 <= range_.low < range_.high, name
        assert range_.source, name
