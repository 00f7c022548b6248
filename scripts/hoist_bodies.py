"""Compare random scans before and after impls.jax.hoist, in float64: outputs, and gradients of their weighted sum.

Each scan is drawn from a number: its carry, xs and ys, the operations of its body, and the arguments of `hoist`.

    python scripts/hoist_bodies.py --count 500             # exits with 1 on a difference
    python scripts/hoist_bodies.py --first 17 --count 1    # one of them again
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from impls.jax.hoist import Record, hoist
from scripts.drawn_programs import compare_all

B, WIDTHS = 2, (2, 3)  # rows of every matrix, and its possible columns
RELATIVE, ABSOLUTE = 1e-9, 1e-11  # of differences in float64
FAST = {  # options of XLA's compiler
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}


@dataclass(frozen=True)
class Scan:
    """A random program of one scan, its arguments, and those of `hoist`."""

    run: Callable[[Any, Any, Any], Any]  # of weights, carry and xs
    arguments: tuple[Any, Any, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of one scan: its number, the differences in sentences, and what was decided."""

    number: int
    differences: list[str]
    log: list[Record]

    @property
    def moved(self) -> bool:
        return any(record.moved for record in self.log)


@jax.custom_jvp
def bent(a: Any) -> Any:
    """Return a sine whose derivative is twice the true one, so that a lost rule is a wrong gradient."""
    return jnp.sin(a)


bent.defjvps(lambda tangent, result, a: 2 * tangent * jnp.cos(a))


@jax.custom_vjp
def bent_back(a: Any) -> Any:
    """Return a tanh whose gradient is three times the cotangent."""
    return jnp.tanh(a)


bent_back.defvjp(lambda a: (jnp.tanh(a), None), lambda _, cotangent: (3 * cotangent,))


class Pool:
    """The matrices [B, width] that a body has computed so far, from which an operation draws its operands."""

    def __init__(self, draw: random.Random, weights: Any, matrices: list[Any], count: Any, key: Any) -> None:
        self.draw, self.weights, self.matrices = draw, weights, matrices
        self.count, self.key = count, key  # a whole number; a random key or None
        self.others: list[Any] = []  # results that are no matrices: whole numbers, truth values, bits

    def pick(self, width: int | None = None) -> Any:
        """Return a matrix, of a width if it is given: mostly one of the latest."""
        of_width = [a for a in self.matrices if width in (None, a.shape[1])]
        return self.draw.choice(of_width[-4:] if self.draw.random() < 0.6 else of_width)

    def pair(self) -> tuple[Any, Any]:
        a = self.pick()
        return a, self.pick(a.shape[1])

    def weight(self, rows: int) -> Any:
        return self.weights[f"w{rows}{self.draw.choice(WIDTHS)}"]


def product(pool: Pool) -> Any:
    a = pool.pick()
    return a @ pool.weight(a.shape[1])


def unary(pool: Pool) -> Any:
    functions = (
        jnp.tanh,
        jnp.sin,
        jax.nn.relu,
        jax.nn.sigmoid,
        jnp.square,
        lambda a: 0.5 * a,
        jnp.sign,
        bent,
        bent_back,
    )
    return pool.draw.choice(functions)(pool.pick())


def binary(pool: Pool) -> Any:
    return pool.draw.choice((jnp.add, jnp.subtract, jnp.multiply, jnp.maximum))(*pool.pair())


def quadratic(pool: Pool) -> Any:
    """Return a product of matrices that all change from step to step."""
    a, b = pool.pair()
    return (a @ b.T) @ pool.pick()


def outer(pool: Pool) -> Any:
    """Return a product of a matrix that is larger than the small ones of which it is made."""
    a, b = pool.pair()
    return jnp.einsum("bij,jk->bk", a[:, :, None] * b[:, None, :], pool.weight(a.shape[1]))


def reduced(pool: Pool) -> Any:
    a = pool.pick()
    return a + pool.draw.choice((jnp.sum, jnp.max, jnp.mean))(pool.pick(), axis=1, keepdims=True)


def selected(pool: Pool) -> Any:
    a, b = pool.pair()
    condition = pool.count % 2 == 0 if pool.draw.random() < 0.5 else a > b
    return jnp.where(condition, a, 0.3 * b)


def joined(pool: Pool) -> Any:
    return jnp.concatenate([pool.pick(), pool.pick()], axis=1)[:, -pool.draw.choice(WIDTHS) :]


def counted(pool: Pool) -> Any:
    return pool.pick() * (pool.count % 3).astype(float)


def unchanging(pool: Pool) -> Any:
    """Return a product with a weight that is itself computed, in the same way at every step."""
    a = pool.pick()
    w = pool.weight(a.shape[1])
    return a @ (jnp.tanh(w) @ pool.weight(w.shape[1]))


def noisy(pool: Pool) -> Any:
    a = pool.pick()
    if pool.key is None:
        return a + 1.0
    pool.key, key = jax.random.split(pool.key)
    pool.others.append(jax.random.bits(key, (2,)))
    return a + jax.random.normal(key, a.shape)


def index(pool: Pool) -> Any:
    """Return one of a weight's rows for each row, by whole numbers that are computed."""
    a = pool.pick()
    places = jnp.argmax(a, axis=1)
    pool.others += [places, a > 0.1]
    return pool.weight(2)[places % 2]


def nested(pool: Pool) -> Any:
    """Return what a scan inside the body comes to."""
    w = pool.weights[f"w{(a := pool.pick()).shape[1]}{a.shape[1]}"]

    def body(h: Any, row: Any) -> Any:
        h = jnp.tanh(h + row)
        return h, (h @ w, pool.count)

    last, (ys, counts) = jax.lax.scan(body, a[0], a, reverse=pool.draw.random() < 0.5)
    pool.others.append(counts)
    return pool.draw.choice((lambda: ys, lambda: ys + last, lambda: a * last))()


def whole(pool: Pool) -> Any:
    """Return what a region comes to that stays whole, or that is only called."""
    a, b = pool.pair()
    w = pool.weight(a.shape[1])
    kinds = (
        lambda: jax.checkpoint(lambda a, b: jnp.sin(a * b))(a, b),
        lambda: jax.lax.cond(pool.count % 2 == 0, lambda a, b: a @ w, lambda a, b: b @ w, a, b),
        lambda: jax.jit(lambda a, b: jnp.tanh((a + b) @ w))(a, b),
        lambda: jax.lax.fori_loop(0, 2, lambda _, a: 0.5 * jnp.tanh(a + b), a),
    )
    return pool.draw.choice(kinds)()


OPERATIONS = (
    (product, 5), (unary, 5), (binary, 4), (quadratic, 1), (outer, 1), (reduced, 2), (selected, 2), (joined, 1),
    (counted, 1), (unchanging, 1), (noisy, 2), (index, 1), (nested, 1), (whole, 1),
)  # fmt: skip


def compute(pool: Pool, count: int) -> None:
    """Add the results of random operations to a pool."""
    functions, shares = zip(*OPERATIONS, strict=True)
    for function in pool.draw.choices(functions, shares, k=count):
        pool.matrices.append(function(pool))


def make_body(number: int, weights: Any) -> Callable[[Any, Any], Any]:
    """Return a random body. Its carry has two matrices, a whole number and a random key or None."""

    def body(carry: Any, x: Any) -> Any:
        draw = random.Random(number)  # JAX may trace a body several times
        h, c, count, key = carry
        inputs = [] if x is None else [x]
        pool = Pool(draw, weights, [h, c, *inputs], count, key)
        compute(pool, draw.randrange(4))
        next_h = jnp.tanh(pool.pick(h.shape[1]) + 0.5 * h)
        next_c = draw.choice((lambda: c, lambda: next_h @ weights[f"w{h.shape[1]}{c.shape[1]}"]))()
        pool.matrices += [next_h] * 3
        compute(pool, draw.randrange(1, 6))
        ys = [pool.pick() for _ in range(draw.randrange(1, 4))]
        ys += draw.sample(pool.others, min(len(pool.others), 2))
        ys += draw.sample([ys[0], next_h, h, pool.count, 7.0, None, jnp.zeros((0, 2)), *inputs], 2)
        return (next_h, jnp.tanh(next_c), count + 1, pool.key), ys

    return body


def make_scan(number: int) -> Scan:
    """Return a random program, drawn from its number."""
    draw = random.Random(f"scan {number}")
    values = np.random.default_rng(number)
    steps = draw.choice((0, 1, 2, 3, 3, 4, 4, 5, 5))
    weights = {
        f"w{rows}{columns}": jnp.asarray(values.normal(size=(rows, columns))) for rows in WIDTHS for columns in WIDTHS
    }
    h, c = (jnp.asarray(values.normal(size=(B, draw.choice(WIDTHS)))) for _ in range(2))
    key = draw.choice((None, jax.random.key(number), jax.random.PRNGKey(number)))
    xs = None if draw.random() < 0.15 else jnp.asarray(values.normal(size=(steps, B, draw.choice(WIDTHS))))
    named = {"reverse": draw.random() < 0.4, "unroll": draw.choice((1, 1, 2, 3))}

    def run(weights: Any, carry: Any, xs: Any) -> Any:
        return jax.lax.scan(make_body(number, weights), carry, xs, length=steps, **named)

    options = {"chunk": draw.choice((None, None, 1, 2, 3)), "always": draw.random() < 0.5}
    options["memory_budget"] = draw.choice((None, None, None, 300))
    return Scan(wrapped(run, draw), (weights, (h, c, jnp.int32(draw.randrange(3)), key), xs), options)


def wrapped(run: Callable[..., Any], draw: random.Random) -> Callable[..., Any]:
    """Return a program as it is, compiled, in a branch, or twice in a row in another scan."""

    def branch(weights: Any, carry: Any, xs: Any) -> Any:
        negated = jax.tree.map(jnp.negative, weights)
        return jax.lax.cond(carry[2] == 1, run, lambda _, *others: run(negated, *others), weights, carry, xs)

    def twice(weights: Any, carry: Any, xs: Any) -> Any:
        return jax.lax.scan(lambda carry, _: run(weights, carry, xs), carry, length=2)

    return draw.choices((run, jax.jit(run), twice, branch), (6, 2, 2, 1))[0]


def weighted_sum(results: Any) -> Any:
    """Return a number that every floating-point element of the results enters with a weight of its own."""
    leaves = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(
        jnp.sum(leaf * jnp.cos(jnp.arange(leaf.size) + place).reshape(leaf.shape)) for place, leaf in enumerate(leaves)
    )


def evaluate(runs: list[Callable[..., Any]], arguments: tuple[Any, Any, Any]) -> list[Any]:
    """Return each program's results, and the gradients for the weights, both matrices of the carry, and xs.

    All are compiled as one program, which takes less time than one after the other.
    """
    weights, (h, c, *rest), xs = arguments

    def differentiated(run: Callable[..., Any]) -> Callable[..., Any]:
        def loss(weights: Any, h: Any, c: Any, xs: Any) -> Any:
            results = run(weights, (h, c, *rest), xs)
            return weighted_sum(results), results

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)

    def together(*operands: Any) -> Any:
        return [dict(zip(("gradients", "results"), differentiated(run)(*operands), strict=True)) for run in runs]

    return run_compiled(together, weights, h, c, xs)


def run_compiled(f: Callable[..., Any], *arguments: Any) -> Any:
    """Return a function's results from a program that is compiled fast, and may be slow."""
    return jax.jit(f).lower(*arguments).compile(compiler_options=FAST)(*arguments)


def differences(before: Any, after: Any) -> Iterator[str]:
    """Yield how results differ: in structure, kind of numbers, whole numbers and bits, or beyond rounding."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        yield "the structures differ"
        return
    for (path, a), b in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        place = jax.tree_util.keystr(path)
        if jax.typeof(a) != jax.typeof(b):
            yield f"{place}: {jax.typeof(a)} and {jax.typeof(b)}"
            continue
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                yield f"{place}: whole numbers differ"
        elif not np.isfinite(a).all():
            yield f"{place}: it is not finite, so that nothing can be compared"
        elif not np.allclose(a, b, RELATIVE, ABSOLUTE * max(1.0, float(np.max(np.abs(a), initial=0)))):
            yield f"{place}: the largest difference is {np.max(np.abs(a - b))}"


def compare(number: int, transform: Callable[..., Any] = hoist) -> Outcome:
    """Compare a random scan with itself after `transform`."""
    with jax.enable_x64(True):
        scan = make_scan(number)
        log: list[Record] = []
        before, after = evaluate([scan.run, transform(scan.run, log=log, **scan.options)], scan.arguments)
        return Outcome(number, list(differences(before, after)), log)


def main() -> int:
    return compare_all(__doc__, lambda number: f"scan {number}", lambda number: compare(number))


if __name__ == "__main__":
    sys.exit(main())
