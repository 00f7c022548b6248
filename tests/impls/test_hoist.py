"""Taking work out of scans in JAX: each kind of program by itself, and random ones. All of it is in float64."""

from collections import Counter
from functools import partial

import numpy as np
import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jax.extend import core
from jax.interpreters import mlir

from impls.jax import hoist as hoisting
from impls.jax.hoist import FEEDING, MOVED, NEEDED, NO_PRODUCT, SMALLER, hoist
from impls.jax.loop_body import BRANCHES, CALLBACK, CHECKPOINT, COLLECTIVE, RANDOM
from scripts.hoist_bodies import compare, differences, run_compiled

T, B, H, O = 5, 3, 4, 2  # noqa: E741  a word of the study


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def arrays():
    """The weights [H, H] and [H, O], the first state [B, H], and xs [T, B, H]."""
    values = np.random.default_rng(1)
    return tuple(jnp.asarray(values.normal(size=shape)) for shape in ((H, H), (H, O), (B, H), (T, B, H)))


def projecting(w, w_out, h, xs, **named):
    """Return the last state, and for every step a projection that no state depends on."""

    def body(h, x):
        h = jnp.tanh(x + h @ w)
        return h, h @ w_out + 1.0

    return jax.lax.scan(body, h, xs, **named)


def products(f, *arguments):
    """Return the shapes of the products in a program, by whether they are in a loop."""

    def walk(jaxpr, inside):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield inside, equation.outvars[0].aval.shape
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner, inside or equation.primitive.name == "scan")

    found = list(walk(jax.make_jaxpr(f)(*arguments).jaxpr, False))
    return {place: [shape for inside, shape in found if inside == (place == "loop")] for place in ("loop", "after")}


def equations(f, *arguments):
    """Return all equations of a program, in order."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in core.jaxprs_in_params(equation.params):
                yield from walk(inner)

    return list(walk(jax.make_jaxpr(f)(*arguments).jaxpr))


def scans(f, *arguments):
    return [equation for equation in equations(f, *arguments) if equation.primitive.name == "scan"]


def same(f, *arguments, **options):
    """Check that a function's results are the same when it is hoisted, and return the log."""
    log = []
    hoisted = hoist(f, log=log, **options)
    assert list(differences(run_compiled(f, *arguments), run_compiled(hoisted, *arguments))) == []
    return log


def moved(log):
    return [name for record in log if record.moved for name in record.operations]


def reasons(log):
    return [record.reason for record in log]


def test_many_small_products_become_one(arrays):
    log = same(projecting, *arrays)
    assert products(projecting, *arrays) == {"loop": [(B, H), (B, O)], "after": []}
    assert products(hoist(projecting), *arrays) == {"loop": [(B, H)], "after": [(T, B, O)]}
    assert [(record.moved, record.reason, record.operations) for record in log] == [
        (False, FEEDING, ("dot_general", "add", "tanh")),
        (True, MOVED, ("dot_general", "add")),
    ]
    assert {record.steps for record in log} == {T}
    assert all("test_hoist.py" in record.scan and "(projecting)" in record.scan for record in log)
    assert [record.crossing_bytes for record in log] == [0, T * B * H * 8]


def test_what_xla_is_given_has_one_product_over_all_steps(arrays):
    def shapes(f):
        lines = [line for line in jax.jit(f).lower(*arrays).as_text().splitlines() if "stablehlo.dot_general" in line]
        return [line.rpartition("-> ")[2] for line in lines]

    assert sorted(shapes(projecting)) == [f"tensor<{B}x{O}xf64>", f"tensor<{B}x{H}xf64>"]
    assert sorted(shapes(hoist(projecting))) == [f"tensor<{B}x{H}xf64>", f"tensor<{T}x{B}x{O}xf64>"]


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
    mapped = [jax.vmap(f, (None, None, None, 0))(w, w_out, h, many) for f in (projecting, hoist(projecting))]
    assert list(differences(*mapped)) == []
    assert list(differences(projecting(*arrays), jax.jit(hoist(projecting))(*arrays))) == []
    assert list(differences(projecting(*arrays), hoist(projecting)(*arrays))) == []

    def loss(transform, w_out):
        return jnp.sum(transform(lambda h: projecting(w, w_out, h, xs))(h)[1] ** 2)

    gradients = [jax.grad(partial(loss, transform))(w_out) for transform in (lambda f: f, hoist)]
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
    assert products(hoist(f), w, xs) == {"loop": [], "after": [(H, O), (H, O), (T, B, O)]}
    same(f, w, xs, chunk=2)


@pytest.mark.parametrize("steps", [0, 1])
def test_a_scan_of_few_steps_is_left_alone(steps, arrays):
    w, w_out, h, xs = arrays
    log = same(projecting, w, w_out, h, xs[:steps])
    assert reasons(log) == [f"the scan has {steps} steps, so that there is nothing to do at once"]


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
    assert products(hoist(f), h, xs) == {"loop": [], "after": [(T, B, O), (T, H)]}
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


def test_random_bits_that_would_change_stay(arrays):
    _, w_out, h, xs = arrays

    def f(key, h, xs):
        def body(carry, x):
            key, own = jax.random.split(carry[0])
            h = jnp.tanh(carry[1] + x)
            return (key, h), ((h + jax.random.normal(own, h.shape)) @ w_out, jax.random.bits(own, (3,)))

        return jax.lax.scan(body, (key, h), xs)

    log = same(f, jax.random.key(7, impl="rbg"), h, xs, always=True)
    assert "random_bits" not in moved(log)
    assert "dot_general" in moved(log)
    assert [record.operations for record in log if record.reason == RANDOM] == [("random_bits", "random_bits")]


def test_callbacks_stay_as_often_and_in_order(arrays, capfd):
    _, w_out, h, xs = arrays
    calls = []

    def f(h, xs):
        def body(h, x):
            h = jnp.tanh(h + x)
            jax.debug.print("at {}", h[0, 0], ordered=True)
            y = h @ w_out
            io_callback(lambda a: calls.append(float(a)), None, y[0, 0], ordered=True)
            z = jax.pure_callback(np.sin, jax.ShapeDtypeStruct((B, O), y.dtype), y, vmap_method="sequential")
            return h, (y, z, z @ z.T)

        return jax.lax.scan(body, h, xs)

    before = (f(h, xs), list(calls), capfd.readouterr().out)
    calls.clear()
    log = []
    after = (hoist(f, log=log, always=True)(h, xs), list(calls), capfd.readouterr().out)
    assert list(differences(before[0], after[0])) == []
    assert before[1:] == after[1:]
    assert len(after[1]) == after[2].count("at ") == T
    (stay,) = [record.operations for record in log if record.reason == CALLBACK]
    assert sorted(stay) == ["debug_print", "io_callback", "pure_callback"]
    assert moved(log).count("dot_general") == 1, "the product that a callback needs stays"
    assert NEEDED in reasons(log)


def test_regions_that_are_recomputed_stay(arrays):
    w, w_out, h, xs = arrays
    region = jax.checkpoint(lambda h: jnp.sin(h @ w))

    def f(h, xs):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h + x), region(h) @ w_out), h, xs)

    log = same(f, h, xs)
    assert [record.operations for record in log if record.reason == CHECKPOINT] == [("remat2",)]
    assert moved(log) == ["dot_general"]
    log = same(jax.checkpoint(projecting), *arrays)
    assert moved(log) == []
    (reason,) = reasons(log)
    assert reason.startswith("the scan is inside a region that is recomputed for the gradient")


def test_branches_stay_so_that_no_gradient_is_spoilt(arrays):
    _, w_out, h, xs = arrays

    def f(h, xs):
        def body(h, x):
            h = h + x
            return h, jax.lax.cond(h[0, 0] > 0, lambda a: a**0.5, lambda a: 0.0 * a, h[0, 0]) * (h @ w_out)

        return jax.lax.scan(body, h, xs)

    log = same(f, h, xs)
    assert BRANCHES in reasons(log)
    assert moved(log) == ["dot_general", "mul"]
    gradients = [jax.grad(lambda h, g=g: jnp.sum(g(h, xs)[1]))(h) for g in (f, hoist(f))]
    assert list(differences(*gradients)) == []


def test_what_works_across_devices_stays(arrays):
    _, w_out, h, xs = arrays
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec

    def f(h, xs):
        def body(h, x):
            h = jnp.tanh(h + x)
            return h, (jax.lax.psum(h, "i"), h @ w_out)

        return jax.lax.scan(body, h, xs)

    specs = ((spec("i"), spec(None, "i")), (spec("i"), (spec(), spec(None, "i"))))
    shard = partial(jax.shard_map, mesh=mesh, in_specs=specs[0], out_specs=specs[1])
    log = []
    assert list(differences(shard(f)(h, xs), shard(hoist(f, log=log, always=True))(h, xs))) == []
    assert COLLECTIVE in reasons(log)
    assert "dot_general" in moved(log)
    assert not [name for name in moved(log) if "psum" in name]
    log = same(shard(f), h, xs)
    assert reasons(log) == ["the scan is inside shard_map, which stays as it is"]


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 9])
def test_in_pieces_of_steps(chunk, arrays):
    same(projecting, *arrays, chunk=chunk)
    whole = products(hoist(projecting, chunk=chunk), *arrays)
    if chunk >= T:
        assert whole["after"] == [(T, B, O)]
        return
    assert sorted(whole["loop"]) == sorted([(B, H), (chunk, B, O)])
    assert whole["after"] == ([(T % chunk, B, O)] if T % chunk else [])


def test_a_piece_has_at_least_one_step():
    with pytest.raises(ValueError, match="chunk is a number of steps, at least 1, and not 0"):
        hoist(projecting, chunk=0)


def test_what_exceeds_the_memory_budget_stays(arrays):
    stacked, product = T * B * H * 8, B * O * 8  # the product is a temporary value, before 1 is added
    needed = stacked + (T - 1) * product
    assert "dot_general" in moved(same(projecting, *arrays, memory_budget=needed))
    log = same(projecting, *arrays, memory_budget=needed - 1)
    assert moved(log) == []
    assert f"moving it would take {needed} bytes more, and the memory budget is {needed - 1}" in reasons(log)
    assert "dot_general" in moved(same(projecting, *arrays, memory_budget=needed - 1, chunk=2))
    two = same(lambda *a: jax.lax.scan(lambda h, x: (h + x, (x @ a[1], h @ a[1])), *a[2:]), *arrays, memory_budget=0)
    assert [record.crossing_bytes for record in two if record.moved] == [0], "what needs only xs takes nothing more"


def test_without_a_product_nothing_moves_unless_told(arrays):
    _, _, h, xs = arrays

    def f(h, xs):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h + x), jnp.exp(h) * 2), h, xs)

    log = same(f, h, xs)
    assert reasons(log) == [FEEDING, NO_PRODUCT]
    assert not any(record.moved for record in log)
    assert moved(same(f, h, xs, always=True)) == ["exp", "mul"]


sine_p = core.Primitive("sine_of_its_own")
sine_p.def_impl(jnp.sin)
sine_p.def_abstract_eval(lambda a: a)
mlir.register_lowering(sine_p, mlir.lower_fun(jnp.sin, multiple_results=False))


def test_what_cannot_be_mapped_stays(arrays):
    _, w_out, h, xs = arrays

    def f(h, xs):
        return jax.lax.scan(lambda h, x: (jnp.tanh(h + x), (sine_p.bind(h @ w_out) + 1) @ w_out.T), h, xs)

    log = same(f, h, xs)
    (record,) = [record for record in log if record.operations == ("sine_of_its_own",)]
    assert record.reason.startswith("jax.vmap cannot do it for all steps at once: NotImplementedError: Batching rule")
    assert moved(log) == ["transpose", "dot_general"]
    assert NEEDED in reasons(log)


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
    assert before.params["num_consts"] == 2
    assert after.params["num_consts"] == 1


def test_a_scan_with_unknown_parameters_is_left_alone(arrays, monkeypatch):
    monkeypatch.setattr(hoisting, "PARAMETERS", hoisting.PARAMETERS - {"unroll"})
    assert reasons(same(projecting, *arrays)) == ["the scan has parameters that are not known: unroll"]


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
    assert Counter(outcome.moved for outcome in outcomes)[True] >= 3
