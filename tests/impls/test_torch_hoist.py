"""PyTorch's hoist on traced graphs, which run as they are and not by Inductor: what moves, what stays, and why."""

import pytest

from tests.conftest import HERE

pytestmark = [pytest.mark.slow, pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch")]
STEPS = 4


def traced(function, *arguments):
    """Both results of a function, as written and hoisted; how many products the hoisted graph has; and the log."""
    import torch

    from impls.torch import hoist

    log, counts = [], []

    def backend(module, inputs):
        hoist.transformed(module, log)
        counts.append(sum(map(hoist.is_product, module.graph.nodes)))
        return module.forward

    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    return function(*arguments), compiled(*arguments), counts[0], log


def arrays():
    import torch

    torch.manual_seed(0)
    return [torch.randn(*shape).requires_grad_() for shape in ((STEPS, 3, 5), (5, 5), (5, 7), (7, 2))]


def two_products(x, w, up, down):
    """A head of two products with an activation between, of the state alone."""
    import torch

    h, out = x.new_zeros(x.shape[1:]), []
    for x_t in x.unbind(0):
        h = torch.tanh(x_t + h @ w)
        out.append(torch.relu(h @ up) @ down)
    return torch.stack(out)


def fed_back(x, w, up, down):
    """The output of a step is part of the next one's input."""
    import torch

    h, y, out = x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1], 2), []
    for x_t in x.unbind(0):
        h = torch.tanh(x_t + h @ w + y.sum())
        y = h @ up @ down
        out.append(y)
    return torch.stack(out)


def other_weights(x, w, up, down):
    """Each step has a matrix of its own."""
    import torch

    return torch.stack([x_t @ (up + number) for number, x_t in enumerate(x.unbind(0))])


def scanned(x, w, up, down):
    """Torch's scan operator, whose outputs are made with a matrix that the state is made with too."""
    import torch

    from impls.torch import private

    def body(h, x_t):
        h = torch.tanh(x_t + h @ w)
        return h.clone(), torch.relu(h @ w)

    return private.scan_operator()(body, x.new_zeros(x.shape[1:]), x)[1]


@pytest.mark.parametrize(
    ("function", "products", "said"),
    [
        (two_products, STEPS + 2, "moved: matmul, relu, matmul: no later step depends on it"),
        (fed_back, 3 * STEPS, "stays: matmul: a later step, or something else than the stack"),
        (other_weights, STEPS, "stays: matmul"),
    ],
)
def test_what_no_later_step_needs_is_done_once_and_all_else_stays(function, products, said):
    import torch

    given = arrays()
    written, hoisted, count, log = traced(function, *given)
    torch.testing.assert_close(hoisted, written)
    gradients = [torch.autograd.grad(y.square().sum(), given, allow_unused=True) for y in (written, hoisted)]
    for expected, found in zip(*gradients, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected)
    assert count == products
    assert len(log) == 1
    assert said in log[0]


def test_a_scan_whose_matrix_is_used_twice_moves_the_product_that_no_carry_needs():
    import torch

    given = [array.detach() for array in arrays()]
    written, hoisted, count, log = traced(scanned, *given)
    torch.testing.assert_close(hoisted, written)
    assert count == 1
    assert log == ["a scan, 4 steps: moved: matmul, relu: no later step depends on it"]
