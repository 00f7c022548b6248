"""Random scans before and after hoisting: that what is compared differs from number to number, and a fault is found."""

import sys
from functools import wraps

import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
import numpy as np

from scripts import hoist_bodies
from scripts.hoist_bodies import Outcome, compare, differences, hoist, make_scan

CLEAN, WRONG = Outcome(0, [], []), Outcome(7, ["['results'][0]: whole numbers differ"], [])


def printed(number):
    with jax.enable_x64(True):
        scan = make_scan(number)
        return str(jax.make_jaxpr(scan.run)(*scan.arguments))


def test_a_scan_is_the_same_for_the_same_number():
    texts = [printed(number) for number in range(12)]
    assert texts == [printed(number) for number in range(12)]
    assert len(set(texts)) == 12
    kinds = ("dot_general", "reverse=True", "unroll=2", "random_bits", "custom_jvp_call", "select_n", "reduce_sum")
    assert [kind for kind in kinds if not any(kind in text for text in texts)] == []


def backwards(f, **options):
    """Hoist a function whose results' first floating-point leaf comes out in the opposite order of steps."""

    @wraps(f)
    def wrong(*arguments):
        leaves, structure = jax.tree.flatten(hoist(f, **options)(*arguments))
        place = next(place for place, a in enumerate(leaves) if a.ndim == 3 and a.shape[0] > 1)
        return structure.unflatten([a[::-1] if place == at else a for at, a in enumerate(leaves)])

    return wrong


def test_a_wrong_transformation_is_found():
    assert compare(3).differences == []
    sentences = compare(3, backwards).differences
    assert [sentence for sentence in sentences if sentence.startswith("['results']")]
    assert [sentence for sentence in sentences if sentence.startswith("['gradients']")]


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ([1.0 + 1e-6], "[0]: the largest difference is 9.99"),
        ([1], "[0]: float64[] and int64[]"),
        ([True], "[0]: float64[] and bool[]"),
        ([np.float32(1)], "[0]: float64[] and float32[]"),
        ({"a": 1.0}, "the structures differ"),
        ([float("nan")], "[0]: the largest difference is nan"),
    ],
    ids=str,
)
def test_every_kind_of_difference_is_named(after, said):
    with jax.enable_x64(True):
        after = jax.tree.map(lambda a: jnp.asarray(np.asarray(a)), after)
        (sentence,) = differences([jnp.asarray(np.float64(1))], after)
    assert sentence.startswith(said)


def test_whole_numbers_and_bits_must_be_the_same():
    first, second = ({"bits": jax.random.bits(key), "key": key} for key in map(jax.random.key, (1, 2)))
    assert list(differences(first, first)) == []
    assert list(differences(first, second)) == ["['bits']: whole numbers differ", "['key']: whole numbers differ"]


def test_nothing_is_compared_with_what_is_not_finite():
    with jax.enable_x64(True):
        (sentence,) = differences([jnp.full((), jnp.nan)], [jnp.full((), jnp.nan)])
    assert sentence == "[0]: it is not finite, so that nothing can be compared"


@pytest.mark.parametrize(("outcome", "status"), [(CLEAN, 0), (WRONG, 1)])
def test_the_exit_status_says_whether_all_were_equal(outcome, status, monkeypatch, capsys):
    monkeypatch.setattr(hoist_bodies, "compare", lambda number: outcome)
    monkeypatch.setattr(sys, "argv", ["hoist_bodies.py", "--count", "2"])
    assert hoist_bodies.main() == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"{2 - 2 * status} of 2 equal, 0 with something moved")
    assert len(lines) == 1 + 2 * status
