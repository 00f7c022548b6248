"""Random PyTorch loops before and after hoisting: all are equal, many kinds are drawn, and a fault is found."""

import pytest

from tests.conftest import HERE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),  # its scan operator's own
]
NUMBERS = range(10)


def test_random_loops_are_the_same_after_it():
    from scripts.hoist_loops import compare, make_loop

    outcomes = [compare(number) for number in NUMBERS]
    assert [outcome for outcome in outcomes if outcome.differences] == []
    assert sum(outcome.moved for outcome in outcomes) >= 3
    texts = [make_loop(number).text for number in range(200)]
    assert texts == [make_loop(number).text for number in range(200)]
    kinds = ("scan of", "loop of 1", "in place", "no_grad", "noise", "numbered", "+rows", "addmm", "quadratic", "@t[")
    kinds += ("softmax along -1", "softmax along 1", "of columns", "layer_norm along", "sum to along", "not dropped")
    assert [kind for kind in kinds if not any(kind in text for text in texts)] == []


@pytest.mark.parametrize("fault", ["a stack in another order", "what is not differentiated", "an axis as written"])
def test_a_wrong_transformation_is_found(fault, monkeypatch):
    from impls.torch import hoist, rows, unrolled_loops
    from scripts.hoist_loops import compare

    if fault == "what is not differentiated":
        monkeypatch.setattr(hoist, "hazard", lambda graph: "")
    elif fault == "an axis as written":
        monkeypatch.setattr(rows, "along_last", lambda node, arguments: (tuple(arguments), node.kwargs))
    else:
        as_stack = unrolled_loops.as_stack

        def backwards(node):
            stack = as_stack(node)
            return stack and unrolled_loops.Stack(node, stack.column[::-1], stack.axis)

        monkeypatch.setattr(unrolled_loops, "as_stack", backwards)
    assert any(compare(number).differences for number in WRONG[fault])


WRONG = {  # numbers of loops that show it
    "a stack in another order": (4,),
    "what is not differentiated": (1017,),
    "an axis as written": (14,),
}
