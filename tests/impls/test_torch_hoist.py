"""PyTorch's hoist on traced graphs, which run as they are and not by Inductor: what moves, what stays, and why."""

import pytest

from tests.conftest import HERE

pytestmark = [pytest.mark.slow, pytest.mark.skipif("torch" not in HERE, reason="it is about PyTorch")]
STEPS = 4


def traced(function, *arguments, **options):
    """Both results of a function, as written and hoisted; how many products the hoisted graph has; and the log."""
    import torch

    from impls.torch import hoist, rows
    from impls.torch.hoist_log import Settings

    settings, counts = Settings(**options), []

    def backend(module, inputs):
        hoist.transformed(module, settings)
        counts.append(sum(map(rows.is_product, module.graph.nodes)))
        return module.forward

    torch.compiler.reset()  # many functions here have the same code
    compiled = torch.compile(function, backend=backend, fullgraph=True, dynamic=False)
    return function(*arguments), compiled(*arguments), counts[0], settings.log


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


def two_heads(x, w, up, down):
    """Two heads of a trunk that no step needs, one of them stacked along the second axis, and views of one matrix."""
    import torch

    h, first, second = x.new_zeros(x.shape[1:]), [], []
    for x_t in x.unbind(0):
        h = torch.tanh(x_t + h @ w)
        trunk = torch.relu(h @ up)
        first.append(trunk @ down)
        second.append(torch.nn.functional.linear(trunk, weight=up))
    return torch.cat([torch.stack(first), torch.stack(second, dim=1).transpose(0, 1)], dim=2)


def broadcast(x, w, up, down):
    """A row and a number of each step meet its rows; there are as many of these as steps."""
    import torch

    x, out = torch.cat([x, x[:, :1]], dim=1), []
    for x_t in x.unbind(0):
        y = x_t @ up
        out.append(y * (x_t[0] @ up) - y * x_t.mean())
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


def numbered(x, w, up, down):
    """Each step has a number of its own, behind a product that has none."""
    import torch

    return torch.stack([(x_t @ up) * (number + 1) for number, x_t in enumerate(x.unbind(0))])


def in_place(x, w, up, down):
    """What a product reads is changed after it."""
    import torch

    h, out = x.new_zeros(x.shape[1:]), []
    for x_t in x.unbind(0):
        h = h + x_t
        out.append(h @ up.detach())
        h.mul_(2.0)
    return torch.stack(out)


def without_gradients(x, w, up, down):
    """A part of each step is not differentiated."""
    import torch

    out = []
    for x_t in x.unbind(0):
        with torch.no_grad():
            out.append(x_t @ up)
    return torch.stack(out) + x.sum() + up.sum()


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
        (two_heads, STEPS + 3, "moved: matmul, relu, linear: no later step depends on it"),
        (broadcast, 2, "moved: matmul, matmul, mul, "),
        (numbered, STEPS, "stays: mul: a number of mul is another one in every step"),
        (in_place, STEPS, "the whole program: stays: mul_ changes an array in place"),
        (without_gradients, STEPS, "the whole program: stays: _set_grad_enabled changes a setting in the middle"),
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
    assert len(log) == (2 if function is two_heads else 1)
    assert said in log[-1]


def head_arguments(rows):
    """Arguments of a head in float64: x, the recurrent matrix, the head's, and a scale; there are STEPS features."""
    import torch

    torch.manual_seed(0)
    shapes = ((STEPS, rows, 5), (5, 5), (5, STEPS), (STEPS,))
    return [torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def loop_with(head):
    """A recurrence with a head of each state: a function of torch's functions, y, the scale and the step's x."""
    import torch

    def run(x, w, up, scale):
        h, out = x.new_zeros(x.shape[1:]), []
        for x_t in x.unbind(0):
            h = torch.tanh(x_t + h @ w)
            out.append(head(torch.nn.functional, h @ up, scale, x_t))
        return torch.stack(out)

    return run


def assert_same_gradients(written, hoisted, given):
    """Compare both results, and the gradients of a sum of each that tells its elements apart."""
    import torch

    torch.testing.assert_close(hoisted, written)
    weights = torch.arange(written.numel(), dtype=written.dtype).cos().reshape(written.shape)
    gradients = [torch.autograd.grad((y * weights).sum(), given, materialize_grads=True) for y in (written, hoisted)]
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


HEADS = {
    "softmax of a positive axis": lambda F, y, g, x: y.softmax(1) * y,
    "softmax by keyword": lambda F, y, g, x: F.softmax(y, dim=1) + F.log_softmax(y, dim=-1),
    "softmax of one row": lambda F, y, g, x: y + (g * (y + 1).abs().sqrt()).softmax(-1) * g.softmax(0),
    "sums": lambda F, y, g, x: y.sum(1, keepdim=True) * y.mean((-1,), keepdim=True) + y.amax(1, True) * y.cumsum(1),
    "sums without the axis": lambda F, y, g, x: y.sum(1) + y.logsumexp(dim=1) + y.var(-1) + y.prod(1) + y.amin([1]),
    "layer_norm": lambda F, y, g, x: F.layer_norm(y, (STEPS,), weight=g, bias=g, eps=1e-3) * F.rms_norm(y, (STEPS,), g),
    "layer_norm of a step": lambda F, y, g, x: F.layer_norm(y, tuple(y.shape)),
    "halves and lengths": lambda F, y, g, x: F.normalize(y) + F.glu(y, 1).sum(1, keepdim=True),
    "elements": lambda F, y, g, x: (y.abs() + 1).log().sqrt().expm1().square() ** 2 + y.sin() * y.cos() - 2 / y.exp(),
    "choices": lambda F, y, g, x: y.where((y > 0) & ~(y > x.mean()), y * g).masked_fill(y > 2, 0.5) + (y >= g) * y,
    "limits": lambda F, y, g, x: F.hardtanh(y.clamp(min=-1), -0.5, 0.5).maximum(g).minimum(y.clamp(max=g)),
    "keywords": lambda F, y, g, x: F.gelu(y, approximate="tanh").add(F.silu(input=y), alpha=2),
}


@pytest.mark.parametrize("rows", [3, STEPS])  # as many as steps and features: a wrong broadcast would be silent
@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_treats_each_row_by_itself_is_done_once(name, rows):
    given = head_arguments(rows)
    written, hoisted, count, log = traced(loop_with(HEADS[name]), *given)
    assert_same_gradients(written, hoisted, given)
    assert count == STEPS + 1
    assert len(log) == 1
    assert ": moved: matmul, " in log[0]


def test_a_head_of_layers_is_done_once():
    import torch
    from torch import nn

    torch.manual_seed(0)
    activations = (nn.GELU("tanh"), nn.LeakyReLU(), nn.Softplus(), nn.ELU(), nn.Mish(), nn.SELU(), nn.Hardswish())
    activations += (nn.ReLU6(), nn.Softsign(), nn.LogSigmoid(), nn.SiLU(), nn.Tanhshrink(), nn.ReLU())
    layers = (nn.LayerNorm(STEPS), nn.Linear(STEPS, STEPS), nn.Dropout(), *activations, nn.RMSNorm(STEPS))
    model = nn.Sequential(*layers, nn.LogSoftmax(1), nn.Softmax(-1)).to(torch.float64).eval()
    given = head_arguments(STEPS)
    written, hoisted, count, log = traced(loop_with(lambda F, y, g, x: model(y)), *given)
    assert_same_gradients(written, hoisted, [*given[:3], *model.parameters()])
    assert count == STEPS + 2
    names = "matmul, layer_norm, linear, dropout, gelu, leaky_relu, softplus, elu, mish, selu, hardswish, hardtanh, "
    names += "softsign, log_sigmoid, silu, tanhshrink, relu, rms_norm, log_softmax, softmax"
    assert log == [f"an unrolled loop, {STEPS} steps: moved: {names}: no later step depends on it"]


def test_each_stack_is_an_array_of_its_own():
    import torch

    def twice(x, w, up, scale):
        out = [x_t @ w @ up for x_t in x.unbind(0)]
        same = [torch.nn.functional.dropout(y, 0.5, training=False) for y in out]
        return torch.stack(out), torch.stack(same), torch.stack(out)

    given = [array.detach() for array in head_arguments(3)]
    written, hoisted, _, log = traced(twice, *given)
    torch.testing.assert_close(hoisted, written)
    assert len(log) == 3
    assert all(": moved: " in line for line in log)
    assert len({array.data_ptr() for array in hoisted}) == len(hoisted)


STAYING = {
    "softmax: softmax is along another axis than the last": lambda F, y, g, x: y.softmax(0),
    "sum: sum is along another axis than the last": lambda F, y, g, x: y.sum(dim=(0, 1)),
    "sum: sum is along another axis": lambda F, y, g, x: y.sum(),
    "normalize: normalize is along another axis": lambda F, y, g, x: F.normalize(y, dim=0),
    "layer_norm: the weight of layer_norm is another one in": lambda F, y, g, x: F.layer_norm(y, (STEPS,), y[0]),
    "softmax: softmax has an argument that is not known here: torch.float64": lambda F, y, g, x: F.softmax(
        y, -1, dtype=y.dtype
    ),
    "sum: sum has an argument that is not known here: dtype=": lambda F, y, g, x: y.sum(-1, dtype=y.dtype),
    "prelu: prelu is no operation on rows that is known": lambda F, y, g, x: F.prelu(y, g),  # of the second axis
    "max: max is no operation on rows that is known": lambda F, y, g, x: y.max(),
    "dropout: dropout draws random numbers": lambda F, y, g, x: F.dropout(y, 0.5),
    "rrelu: rrelu draws random numbers": lambda F, y, g, x: F.rrelu(y, training=True),
    "masked_fill: a number of masked_fill is another one": lambda F, y, g, x: y.masked_fill(y > 0, x.mean()),
    "mul: the arrays of mul are of several types": lambda F, y, g, x: y * x[0, 0].float(),
    "the whole program: stays: leaky_relu changes an array": lambda F, y, g, x: F.leaky_relu(y.clone(), 0.1, True),
}


@pytest.mark.parametrize("reason", STAYING)
def test_a_head_that_does_not_stays_with_the_reason(reason):
    given = head_arguments(STEPS)
    written, hoisted, _, log = traced(loop_with(STAYING[reason]), *given)
    if "random" not in reason:
        assert_same_gradients(written, hoisted, given)
    assert any(reason in line and "stays" in line for line in log)


def test_a_scan_whose_matrix_is_used_twice_moves_the_product_that_no_carry_needs():
    import torch

    given = [array.detach() for array in arrays()]
    written, hoisted, count, log = traced(scanned, *given)
    torch.testing.assert_close(hoisted, written)
    assert count == 1
    assert log == ["a scan, 4 steps: moved: matmul, relu: no later step depends on it"]


def plain_scan(x, w, up, down):
    """Torch's scan operator with a head of two products, behind a transposed matrix."""
    import torch

    from impls.torch import private

    def body(h, x_t):
        h = torch.tanh(x_t + h @ w)
        return h.clone(), torch.relu(h @ w.t()) @ up

    return private.scan_operator()(body, x.new_zeros(x.shape[1:]), x)[1]


@pytest.mark.parametrize("function", [two_products, plain_scan])
def test_it_is_done_in_pieces_within_a_budget_or_not_at_all(function):
    import torch

    given = [array.detach() for array in arrays()]
    for chunk, pieces in ((1, 4), (3, 2), (9, 1)):
        written, hoisted, count, _ = traced(function, *given, chunk=chunk)
        torch.testing.assert_close(hoisted, written)
        assert count == (STEPS + 2 * pieces if function is two_products else 2 * pieces)
    # h is stacked, and a product, its relu and an output are there for all steps, of three rows each
    widths = (5, 7, 7, 2) if function is two_products else (5, 5, 5, 7)
    needed = 3 * 4 * (STEPS * widths[0] + (STEPS - 1) * sum(widths[1:]))
    *_, count, log = traced(function, *given, memory_budget=needed - 1)
    assert count == (3 * STEPS if function is two_products else 0)  # a scan's body is not counted
    assert f"moving it would take {needed} bytes more, and the memory budget is {needed - 1}" in log[0]
    assert "moved" in traced(function, *given, memory_budget=needed)[-1][0]


def test_arguments_that_say_nothing_are_refused():
    from impls.torch.hoist import hoist

    with pytest.raises(ValueError, match="chunk is a number of steps, at least 1, and not 0"):
        hoist(two_products, chunk=0)
    with pytest.raises(ValueError, match="the compiler is inductor or eager, and not xla"):
        hoist(two_products, compiler="xla")
