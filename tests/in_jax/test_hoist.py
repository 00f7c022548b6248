"""Taking work out of scans in JAX: each kind of program from which something moves, in float64, and random ones."""

from functools import partial

import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
from jax.extend import core

from impls.interface import CELLS
from impls.jax import private
from impls.jax.hoist import FEEDING, MOVED, NO_PRODUCT, SMALLER, hoist
from scripts.hoist_bodies import compare, differences, run_compiled
from tests.conftest import SMALL, data_of
from tests.in_jax.hoisting import B, H, O, T, make_arrays, moved, products, projecting, reasons, same, scans


@pytest.fixture
def arrays():
    with jax.enable_x64(True):
        yield make_arrays()


def test_many_small_products_become_one(arrays):
    log = same(projecting, *arrays)
    assert products(projecting, *arrays) == {"loop": [(B, H), (B, O)], "after": []}
    assert products(hoist(projecting), *arrays) == {"loop": [(B, H)], "after": [(T * B, O)]}
    assert [(record.moved, record.reason, record.operations) for record in log] == [
        (False, FEEDING, ("dot_general", "add", "tanh")),
        (True, MOVED, ("dot_general", "add")),
    ]
    assert {record.steps for record in log} == {T}
    assert all("hoisting.py" in record.scan and "(projecting)" in record.scan for record in log)
    assert [record.crossing_bytes for record in log] == [0, T * B * H * 8]


def test_what_xla_is_given_has_one_product_over_all_steps(arrays):
    def shapes(f):
        lines = [line for line in jax.jit(f).lower(*arrays).as_text().splitlines() if "stablehlo.dot_general" in line]
        return [line.rpartition("-> ")[2] for line in lines]

    assert sorted(shapes(projecting)) == [f"tensor<{B}x{O}xf64>", f"tensor<{B}x{H}xf64>"]
    assert sorted(shapes(hoist(projecting))) == sorted([f"tensor<{B}x{H}xf64>", f"tensor<{T * B}x{O}xf64>"])


def test_derivatives_are_those_of_the_function(arrays):
    def loss(f, *operands):
        last, ys = f(*operands)
        return jnp.sum(jnp.sin(last)) + jnp.sum(jnp.cos(ys))

    tangents = jax.tree.map(jnp.cos, arrays)

    def derivatives(f, *operands):
        jvp = jax.jvp(f, operands, tangents)
        return jax.grad(partial(loss, f), (0, 1, 2, 3))(*operands), jvp, jax.vjp(f, *operands)[1](jvp[1])

    results = [run_compiled(partial(derivatives, f), *arrays) for f in (projecting, hoist(projecting))]
    assert list(differences(*results)) == []
    gradient = jax.grad(partial(loss, hoist(projecting)), (0, 1, 2, 3))
    weight_gradients = [shape for shape in products(gradient, *arrays)["after"] if set(shape) == {H, O}]
    assert len(weight_gradients) == 1, "the gradient of the moved weight is one product, and not a sum in the loop"


def test_it_can_be_mapped_compiled_and_given_what_is_closed_over(arrays):
    w, w_out, h, xs = arrays
    many = jnp.stack([xs, xs + 1])
    mapped = [jax.vmap(f, (None, None, None, 0)) for f in (projecting, hoist(projecting))]
    assert list(differences(*(run_compiled(f, w, w_out, h, many) for f in mapped))) == []
    assert list(differences(projecting(*arrays), hoist(projecting)(*arrays))) == []

    def loss(transform, w_out):
        return jnp.sum(transform(lambda h: projecting(w, w_out, h, xs))(h)[1] ** 2)

    gradients = [run_compiled(jax.grad(partial(loss, transform)), w_out) for transform in (lambda f: f, hoist)]
    assert list(differences(*gradients)) == []


def test_pytrees_whole_numbers_nothing_copies_and_constants(arrays):
    """In the carry, xs and ys; and outputs that are given twice, or are what the step was given."""
    w, w_out, h, xs = arrays

    def f(arguments, nothing, count):
        def body(carry, x):
            h = jnp.tanh(carry["h"] + x["x"] @ arguments["w"])
            y = h @ w_out
            ys = (y, {"twice": y, "nothing": None}, carry["h"], h, x["n"], 3, jnp.ones(2), arguments["w"], carry["n"])
            return {"h": h, "n": carry["n"] + x["n"].astype(carry["n"].dtype), "nothing": None}, ys

        first = {"h": h, "n": count, "nothing": nothing}
        return jax.lax.scan(body, first, {"x": xs, "n": jnp.arange(T), "nothing": None})

    log = same(f, {"w": w}, None, 4)
    assert moved(log) == ["dot_general"]
    assert moved(same(f, {"w": w}, None, jnp.int8(4), always=True))[:1] == ["dot_general"]


def test_a_weight_may_be_an_output_too(arrays):
    """What the loop stacks of it is the same at every step, and is not taken for a step's value."""
    _, w_out, h, xs = arrays

    def f(w_out, h, xs):
        return jax.lax.scan(lambda h, x: (h + x, (w_out, x, h @ w_out, x @ w_out)), h, xs)

    assert moved(same(f, w_out, h, xs)) == ["dot_general", "dot_general"]
    assert products(hoist(f), w_out, h, xs) == {"loop": [], "after": [(T * B, O)] * 2}


def test_of_several_outputs_those_move_that_can(arrays):
    w, w_out, h, xs = arrays

    def f(h, xs):
        def body(h, x):
            a = h @ w
            h = jnp.tanh(a + x)
            return h, (a, jnp.sin(h) @ w_out, jnp.cos(a) * 2)

        return jax.lax.scan(body, h, xs)

    log = same(f, h, xs)
    assert reasons(log) == [FEEDING, MOVED, NO_PRODUCT]
    assert moved(log) == ["sin", "dot_general"]
    assert [(record.redone, record.crossing_bytes) for record in log if record.moved] == [(("add", "tanh"), 0)], (
        "the state is made again of the output that the loop stacks anyway, and of xs"
    )
    assert moved(same(f, h, xs, always=True)) == ["sin", "dot_general", "cos", "mul"]


@pytest.mark.parametrize("named", [{"reverse": True}, {"unroll": 2}, {"unroll": 3, "reverse": True}], ids=str)
def test_the_direction_and_the_unrolling_stay(named, arrays):
    f = partial(projecting, **named)
    assert "dot_general" in moved(same(f, *arrays))
    (scan,) = scans(hoist(f), *arrays)
    assert {name: scan.params[name] for name in named} == named


def test_without_xs(arrays):
    w, w_out, h, _ = arrays

    def f(h):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), h @ w_out), h, length=T)

    assert moved(same(f, h)) == ["dot_general"]


def test_what_is_the_same_at_every_step_is_done_once(arrays):
    w, w_out, h, xs = arrays

    def f(w, xs):
        return jax.lax.scan(lambda h, x: (h + x, (jnp.tanh(w) @ w_out, x @ (w @ w_out))), h, xs)

    same(f, w, xs)
    assert products(hoist(f), w, xs) == {"loop": [], "after": [(H, O), (H, O), (T * B, O)]}
    same(f, w, xs, chunk=2)


def test_arrays_without_elements(arrays):
    w, w_out, h, xs = arrays
    for options in ({}, {"chunk": 2}, {"always": True}):
        assert "dot_general" in moved(same(projecting, w, w_out, h[:0], xs[:, :0], **options))
        assert "dot_general" in moved(same(projecting, w, w_out[:, :0], h, xs, **options))


def test_scans_in_scans_and_the_inner_first(arrays):
    w, w_out, h, xs = arrays

    def f(h, xs):
        def body(h, x):
            h, ys = jax.lax.scan(lambda g, row: (jnp.tanh(g + row), g @ w_out), h[0], x)
            return jnp.tanh(x + h), (ys, h @ w)

        return jax.lax.scan(body, h, xs)

    log = same(f, h, xs)
    assert [record.steps for record in log if record.moved] == [B, T, T]
    assert products(hoist(f), h, xs) == {"loop": [], "after": [(T * B, O), (T, H)]}
    whole = same(
        lambda h, xs: jax.lax.scan(lambda h, x: (h + x, projecting(w, w_out, h, x[None].repeat(2, 0))), h, xs), h, xs
    )
    assert moved(whole).count("scan") == 1, "no carry depends on the inner scan: it is mapped over the outer steps"


@pytest.mark.parametrize("kind", ["jit", "cond", "while", "nested jit in the body"])
def test_scans_in_calls_branches_and_loops(kind, arrays):
    w, w_out, h, xs = arrays
    step = jax.jit(lambda h, x: (jnp.tanh(h + x), jax.jit(lambda h: h @ w_out)(h)))
    programs = {
        "jit": lambda h, xs: jax.jit(projecting)(w, w_out, h, xs),
        "cond": lambda h, xs: jax.lax.cond(
            h[0, 0] > 0, partial(projecting, w, w_out), lambda h, xs: (h, xs[..., :O]), h, xs
        ),
        "while": lambda h, xs: jax.lax.fori_loop(0, 2, lambda _, h: h + projecting(w, w_out, h, xs)[1].sum(), h),
        "nested jit in the body": lambda h, xs: jax.lax.scan(step, h, xs),
    }
    for state in (h, -h):
        assert "dot_general" in moved(same(programs[kind], state, xs))
        assert "dot_general" in moved(same(jax.jit(programs[kind]), state, xs))


@jax.custom_jvp
def doubled(a, w):
    """Return a product whose derivative is not the true one, so that it is seen whether its own rule is used."""
    return a @ w


doubled.defjvp(lambda primals, tangents: (doubled(*primals), 2 * tangents[0] @ primals[1]))


@jax.custom_vjp
def tripled(a, w):
    return a @ w


tripled.defvjp(lambda a, w: (a @ w, w), lambda w, cotangent: (3 * cotangent @ w.T, jnp.zeros_like(w)))


@pytest.mark.parametrize("function", [doubled, tripled])
def test_functions_with_derivatives_of_their_own_move_whole(function, arrays):
    _, w_out, h, xs = arrays

    def loss(transform, xs, w_out):
        f = transform(lambda xs: jax.lax.scan(lambda h, x: (jnp.tanh(h + x), function(h, w_out)), h, xs))
        return jnp.sum(jnp.sin(f(xs)[1]))

    log = []
    gradients = [jax.grad(partial(loss, f), (0, 1))(xs, w_out) for f in (lambda f: f, partial(hoist, log=log))]
    assert list(differences(*gradients)) == []
    (name,) = moved(log)
    assert name == ("custom_jvp_call" if function is doubled else "custom_vjp_call")


@pytest.mark.parametrize("make", ["key", "PRNGKey"])
def test_random_bits_are_the_same(make, arrays):
    _, w_out, h, xs = arrays

    def f(key, h, xs):
        def body(carry, x):
            key, h = carry
            key, own, other = jax.random.split(key, 3)
            h = jnp.tanh(h + x + jax.random.normal(own, h.shape))
            noisy = (h + jax.random.normal(other, h.shape)) @ w_out
            return (key, h), (noisy, jax.random.bits(other, (3,)), own)

        return jax.lax.scan(body, (key, h), xs)

    key = getattr(jax.random, make)(7)
    names = moved(same(f, key, h, xs, always=True))
    assert names.count("random_bits") >= 2
    assert "random_bits" in moved(same(f, key, h, xs, chunk=2))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_in_pieces_of_steps(chunk, arrays):
    same(projecting, *arrays, chunk=chunk)
    whole = products(hoist(projecting, chunk=chunk), *arrays)
    if chunk >= T:
        assert whole["after"] == [(T * B, O)]
        return
    assert sorted(whole["loop"]) == sorted([(B, H), (chunk, B, O)])
    assert whole["after"] == ([(T % chunk, B, O)] if T % chunk else [])


def test_a_piece_has_at_least_one_step():
    with pytest.raises(ValueError, match="chunk is a number of steps, at least 1, and not 0"):
        hoist(projecting, chunk=0)


def test_small_values_cross_and_large_ones_are_made_again(arrays):
    """A large value that is a cheap function of a small one, and a small part of a large one."""
    w, _, h, xs = arrays
    w_large = jnp.ones((H, H, 1))

    def f(h, xs):
        def body(h, x):
            large = h[:, :, None] * h[:, None, :]  # [B, H, H]
            h = jnp.tanh(h + x + large.sum(2))
            return h, (jnp.einsum("bij,ijk->bk", large, w_large), jnp.exp(h)[:, :1] @ w[:1])

        return jax.lax.scan(body, h, xs)

    log = same(f, h, xs)
    large, small = [record for record in log if record.moved]
    assert large.crossing_bytes == T * B * H * 8
    assert "mul" in large.redone
    assert small.crossing_bytes == T * B * 8
    assert small.redone == ()
    assert [record.operations for record in log if record.reason == SMALLER] == [("exp", "slice")]
    assert [shape.aval.shape for shape in scans(hoist(f), h, xs)[0].outvars] == [(B, H), (T, B, H), (T, B, 1)]


def test_what_the_loop_stacks_anyway_costs_nothing(arrays):
    w, w_out, h, xs = arrays

    def f(h, xs):
        def body(h, x):
            h = jnp.tanh(h @ w + x)
            return h, (h, h @ w_out)

        return jax.lax.scan(body, h, xs)

    assert [record.crossing_bytes for record in same(f, h, xs) if record.moved] == [0]
    (scan,) = scans(hoist(f), h, xs)
    assert len(scan.outvars) == 2


def test_weights_without_a_use_in_the_loop_are_not_given_to_it(arrays):
    """Else their gradient would be a sum of zeros over the steps."""
    (before,), (after,) = (scans(f, *arrays) for f in (projecting, hoist(projecting)))
    assert private.scan_counts(before)[0] == 2
    assert private.scan_counts(after)[0] == 1


def test_a_function_without_a_scan_is_itself(arrays):
    assert same(lambda w: jnp.tanh(w) @ w, arrays[0]) == []


def test_its_jaxprs_are_valid(arrays):
    """JAX's own check of types and names, which it does only if it is told to."""
    jaxpr = jax.make_jaxpr(hoist(projecting, chunk=2))(*arrays)
    core.check_jaxpr(jaxpr.jaxpr)
    before = jax.config.jax_enable_checks
    jax.config.update("jax_enable_checks", True)
    try:
        assert list(differences(projecting(*arrays), hoist(projecting)(*arrays))) == []
    finally:
        jax.config.update("jax_enable_checks", before)


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_bodies_are_the_same(first):
    outcomes = [compare(number) for number in range(first, first + 10)]
    assert {outcome.number: outcome.differences for outcome in outcomes if outcome.differences} == {}
    assert sum(outcome.moved for outcome in outcomes) >= 3


@pytest.mark.parametrize("cell", CELLS)
def test_loops_of_the_study_become_its_projection_after_the_loop(cell):
    """Both that project step by step; traced, in the shapes of the test's small workload."""
    from impls.jax import model

    w, x, _ = jax.tree.map(jnp.asarray, data_of(SMALL.model_copy(update={"cell": cell}), "float64"))

    def program(projection):
        return partial(model.arm("scan", projection), cell=model.CELLS[cell])

    wanted = products(lambda w, x: program("batched")(w, x=x), w, x)
    for projection in ("in_loop", "per_step"):
        assert products(hoist(lambda w, x, projection=projection: program(projection)(w, x=x)), w, x) == wanted
        assert products(lambda w, x, projection=projection: program(projection)(w, x=x), w, x) != wanted


def test_it_goes_together_with_checkpoints_gradients_and_itself(arrays):
    w, w_out, h, xs = arrays

    def gradient(f):
        return jax.grad(lambda w_out: jnp.sum(jnp.sin(f(w, w_out, h, xs)[1])))

    before = run_compiled(gradient(projecting), w_out)
    for after in (
        gradient(jax.checkpoint(hoist(projecting))),
        hoist(gradient(projecting), always=True),
        hoist(gradient(hoist(projecting, chunk=2)), always=True),
    ):
        assert list(differences(before, run_compiled(after, w_out))) == []


def test_operations_of_many_kinds_move(arrays):
    w, _, h, xs = arrays

    def f(h, xs):
        def body(h, x):
            square = h.T @ h + jnp.eye(H)
            placed = h.at[0, jnp.argmax(h) % H].set(1.0)
            cut = jax.lax.dynamic_slice(h, (jnp.argmax(h) % B, 0), (1, 2))
            kernel = jnp.ones((2, 1, 2, 2))
            convolved = jax.lax.conv(h[None, None], kernel, (1, 1), "SAME")
            solved = (jnp.linalg.inv(square), jnp.linalg.cholesky(square))
            ys = (jnp.sort(h), jax.lax.top_k(h, 2), jnp.cumsum(h, 1), jax.nn.softmax(h @ w), jnp.fft.rfft(h).real)
            return h + x, (ys, placed, cut, convolved, solved)

        return jax.lax.scan(body, h, xs)

    names = moved(same(f, h, xs, always=True, chunk=2))
    wanted = {
        "sort",
        "top_k",
        "cumsum",
        "dot_general",
        "fft",
        "scatter",
        "dynamic_slice",
        "conv_general_dilated",
        "cholesky",
    }
    assert wanted - set(names) == set()
    assert "conv_general_dilated" in moved(same(f, h, xs))
