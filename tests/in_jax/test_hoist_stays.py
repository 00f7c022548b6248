"""Taking work out of scans in JAX: what stays in the loop, and the reason that is given, in float64."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
from jax.experimental import io_callback
from jax.extend import core
from jax.interpreters import mlir

from impls.interface import Unavailable
from impls.jax import model, private
from impls.jax.hoist import FEEDING, NEEDED, NO_PRODUCT, hoist
from impls.jax.loop_body import BRANCHES, CALLBACK, CHECKPOINT, COLLECTIVE, RANDOM, REFERENCE
from scripts.hoist_bodies import differences
from tests.in_jax.hoisting import B, H, O, T, make_arrays, moved, projecting, reasons, same


@pytest.fixture
def arrays():
    with jax.enable_x64(True):
        yield make_arrays()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_scan_of_few_steps_is_left_alone(steps, arrays):
    w, w_out, h, xs = arrays
    log = same(projecting, w, w_out, h, xs[:steps])
    assert reasons(log) == [f"the scan has {steps} steps, so that there is nothing to do at once"]


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


def test_a_scan_with_unknown_parameters_is_left_alone(arrays, monkeypatch):
    monkeypatch.setattr(private, "OF_A_SCAN", private.OF_A_SCAN - {"unroll"})
    (reason,) = reasons(same(projecting, *arrays))
    assert reason.startswith("the scan's parameters are those of no version of JAX that is known: ")


def test_a_hoisted_arm_of_which_nothing_was_moved_is_unavailable(arrays, monkeypatch):
    w, w_out, _, xs = arrays
    weights = model.Weights(w, w, jnp.zeros(H), w_out, jnp.zeros(O))
    assert model.scan_hoisted(weights, model.CELLS["rnn_tanh"], xs).shape == (T, B, O)
    monkeypatch.setattr(private, "scan_counts", lambda scan: None)
    with pytest.raises(
        Unavailable, match=r"hoist moved nothing, so that this would be in_loop under another name: .* known"
    ):
        model.scan_hoisted(weights, model.CELLS["rnn_tanh"], xs)


def test_inputs_are_grouped_as_each_version_of_jax_groups_them():
    class Groups(tuple):
        def unpack(self):
            return self

    def scan(**grouping):
        return SimpleNamespace(params=dict.fromkeys(private.OF_A_SCAN) | grouping)

    assert private.scan_counts(scan(num_consts=2, num_carry=3)) == (2, 3)
    assert private.scan_counts(scan(ft_in=Groups([[None] * 2, [None] * 3, []]), ft_out=None)) == (2, 3)
    assert private.scan_counts(scan(num_consts=2)) is None


def test_mutable_arrays_are_read_and_written_at_every_step(arrays):
    w, w_out, h, xs = arrays

    def f(h, xs):
        total = jax.new_ref(jnp.zeros((B, H)))

        @jax.jit
        def add(a):
            total[...] += a @ w

        def body(h, x):
            h = jnp.tanh(x + h)
            total[...] += h
            add(h)
            return h, (h @ w_out, total[...] @ w_out)

        return jax.lax.scan(body, h, xs), total[...]

    log = same(f, h, xs)
    (stay,) = [record.operations for record in log if record.reason == REFERENCE]
    assert sorted(stay) == ["get", "get", "jit", "swap"]
    assert moved(log).count("dot_general") == 2
