"""How TensorFlow's weights are held, and with what a batched product multiplies: what the programs' graphs say."""

import pytest

from tests.conftest import HERE, SMALL

PROGRAMS = 3 * 2 * 2
about_tf = pytest.mark.skipif("tf" not in HERE, reason="it is about TensorFlow")


@about_tf
def test_no_weight_of_book_is_a_constant_of_a_graph(inside):
    """A captured EagerTensor of at most 128 elements would be one: at book all but w_rec."""
    told = inside("tf", "held")
    lines = [line for line in told if "constant: " in line]
    assert len(lines) == PROGRAMS
    assert {line.partition("constant: ")[2] for line in lines} == {"variables: 5"}, told


@about_tf
def test_keras_layers_are_built_once_and_called_as_layers(inside):
    *_, prepared, called = inside("tf", "held")
    assert prepared == "prepared [(('Dense', 'build'), 1), (('SimpleRNN', 'build'), 1)]"
    assert called == "called [(('Dense', '__call__'), 3), (('SimpleRNN', '__call__'), 3)]"


@about_tf
def test_a_program_has_the_same_names_whatever_was_made_before_it(inside):
    """XLA's cache finds what another process compiled by these names. Two copies in one process must not share them."""
    alone, after_another, second_copy = inside("tf", "function_names")
    assert "__inference" in alone
    assert "while" in alone
    assert after_another == alone
    assert set(second_copy.split()).isdisjoint(alone.split())


@pytest.mark.parametrize("framework", [name for name in ("tf", "jax") if name in HERE])
def test_a_batched_product_takes_the_weights_as_they_are(framework, inside):
    """No array [T, H, O] is in the program: w_out is broadcast, not copied for every step."""
    (text,) = inside(framework, "batched")
    text = text.replace(" ", "")
    assert f"{SMALL.H},{SMALL.O}" in text
    assert f"{SMALL.T},{SMALL.H},{SMALL.O}" not in text
