"""A transformation of JAX programs that takes work out of scans.

What no next carry of a `jax.lax.scan` depends on need not be done step by step. `hoist` moves it out of the loop, and
does it for all steps at once: T small matrix products become one. The loop stacks what the moved operations need of it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from math import prod
from typing import Any

import jax
from jax.extend import core
from jax.extend.core.primitives import dot_general_p, remat_p, scan_p

from impls.jax import private
from impls.jax.jaxprs import Builder, flattened, values, within
from impls.jax.loop_body import Body, Cut, Division, cut, divide, has_product

ENTERED = ("jit", "closed_call", "cond", "while")  # calls inside which scans are transformed; all else stays as it is
FEEDING = "the next carry depends on it"
NEEDED = "an operation that stays in the loop depends on it"
NO_PRODUCT = "nothing in it is a product, so that doing it for all steps at once would save little"
SMALLER = "the loop stacks its result, which takes no more bytes than what it is made of"
MOVED = "no next carry depends on it"


@dataclass(frozen=True)
class Record:
    """What was decided of some operations in a scan's body.

    `scan`: where the program has it: file, line and function. `operations`: their primitives' names in order.
    `crossing_bytes`: the size of what the loop stacks for them over all steps, beyond what it stacks anyway.
    `redone`: the primitives' names of what the loop does too, so that it need not stack their larger results.
    """

    scan: str
    steps: int
    operations: tuple[str, ...]
    moved: bool
    reason: str
    crossing_bytes: int = 0
    redone: tuple[str, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(f"{count} {name}" for name, count in Counter(self.operations).items())
        again = f"; done twice: {', '.join(self.redone)}" if self.redone else ""
        stacked = f"; the loop stacks {self.crossing_bytes} bytes for it" if self.moved else ""
        place = self.scan.rpartition("/")[2]
        verb = "moved" if self.moved else "stays"
        return f"{place}, {self.steps} steps: {verb}: {names}: {self.reason}{stacked}{again}"


@dataclass(frozen=True)
class Settings:
    """The arguments of `hoist`, without the function."""

    chunk: int | None = None
    memory_budget: int | None = None
    log: list[Record] = field(default_factory=list)
    always: bool = False


def hoist(
    f: Callable[..., Any],
    *,
    chunk: int | None = None,
    memory_budget: int | None = None,
    log: list[Record] | None = None,
    always: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes what `f` does, with the work taken out of its scans that may be done after them.

    It takes the same positional arguments, pytrees of arrays, and can be differentiated, mapped and compiled as `f`
    can. Each call traces `f` anew, as a call of `jax.make_jaxpr` does, so compile it: `jax.jit(hoist(f))`. Results are
    equal to rounding; random bits and integers are the same.

    `chunk`: steps that are done at once after a loop; all of them without it. `memory_budget`: bytes that moving may
    take in a scan; what would exceed it stays. They are those of the values that the loop stacks for it, and of the
    temporary values of the steps done at once, beyond one step's (an upper bound: XLA fuses many of them).
    `log`: a list that each tracing appends its decisions to. `always`: move all that may be moved, and not only
    operations with a matrix product or convolution among them. Raises ValueError if chunk is less than 1.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is a number of steps, at least 1, and not {chunk}")
    settings = Settings(chunk, memory_budget, [] if log is None else log, always)

    @wraps(f)
    def hoisted(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*arguments)
        results = core.jaxpr_as_fun(transformed(closed, settings))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return hoisted


def transformed(closed: Any, settings: Settings) -> Any:
    """Return a closed jaxpr in which the scans are rebuilt; the same one if it has none."""
    if not any(inner.primitive is scan_p for equation in closed.jaxpr.eqns for inner in within(equation)):
        return closed
    builder = Builder(closed)
    for equation in closed.jaxpr.eqns:
        if equation.primitive is scan_p:
            rebuild(builder, with_jaxprs_transformed(equation, settings), settings)
        elif equation.primitive.name in ENTERED:
            builder.add(with_jaxprs_transformed(equation, settings))
        else:
            settings.log.extend(left_alone(equation))
            builder.add(equation)
    return builder.finish()


def with_jaxprs_transformed(equation: Any, settings: Settings) -> Any:
    """Return an equation with the scans inside it rebuilt."""

    def change(parameter: Any) -> Any:
        if isinstance(parameter, core.ClosedJaxpr):
            return transformed(parameter, settings)
        return tuple(map(change, parameter)) if isinstance(parameter, tuple) else parameter

    changed = {name: change(parameter) for name, parameter in equation.params.items()}
    return equation.replace(params=changed)


def left_alone(equation: Any) -> Iterator[Record]:
    """Yield a record of each scan in an equation that is not entered."""
    name = equation.primitive.name
    where = "a region that is recomputed for the gradient (jax.checkpoint)" if equation.primitive is remat_p else name
    for inner in within(equation):
        if inner.primitive is scan_p:
            yield record(inner, inner.params["jaxpr"].jaxpr.eqns, f"the scan is inside {where}, which stays as it is")


def record(scan: Any, equations: list[Any], reason: str) -> Record:
    """Return the record of equations that are not moved."""
    return Record(private.source_line(scan), scan.params["length"], names_of(equations), False, reason)


def names_of(equations: list[Any]) -> tuple[str, ...]:
    return tuple(equation.primitive.name for equation in equations)


def rebuild(builder: Builder, scan: Any, settings: Settings) -> None:
    """Add a scan to a jaxpr under construction, with what may leave its body moved behind it."""
    steps, counts = scan.params["length"], private.scan_counts(scan)
    if counts is None or steps < 2:
        names = ", ".join(sorted(scan.params))
        unknown = f"the scan's parameters are those of no version of JAX that is known: {names}"
        refusal = unknown if counts is None else f"the scan has {steps} steps, so that there is nothing to do at once"
        settings.log.append(record(scan, scan.params["jaxpr"].jaxpr.eqns, refusal))
        builder.add(scan)
        return
    body = Body(flattened(scan.params["jaxpr"]), *counts)
    moved, division = decide(scan, body, settings)
    if moved:
        add_in_two(builder, scan, body, cut(body, moved, division.obstacles), settings)
    else:
        builder.add(scan)


def decide(scan: Any, body: Body, settings: Settings) -> tuple[set[int], Division]:
    """Return the equations of a body that are to be moved, and its division. Adds to the log."""
    division, wanted = attempted(body, scan.params["length"], settings)
    settings.log.extend(kept(scan, body, division))
    moved: set[int] = set()
    before = cut(body, moved, division.obstacles)
    for group in division.groups:
        attempt = cut(body, moved | set(group), division.obstacles)
        reason = over_budget(attempt, scan.params["length"], settings) if group in wanted else NO_PRODUCT
        if reason:
            settings.log.append(record(scan, [body.equations[place] for place in group], reason))
            continue
        settings.log.extend(decided(scan, body, group, before, attempt))
        moved, before = moved | set(group), attempt
    return moved, division


def attempted(body: Body, steps: int, settings: Settings) -> tuple[Division, list[tuple[int, ...]]]:
    """Return how a body divides after what jax.vmap cannot do has been found out, and the groups worth moving."""
    failures: dict[int, str] = {}
    while True:
        division = divide(body, failures)
        wanted = [group for group in division.groups if settings.always or has_any_product(body, group)]
        found: dict[int, str] = {}
        for group in wanted:
            attempt = cut(body, group, division.obstacles)
            found |= failing(body, attempt, group, steps, settings.chunk)
        if not found:
            return division, wanted
        failures |= found


def decided(scan: Any, body: Body, group: tuple[int, ...], before: Cut, attempt: Cut) -> Iterator[Record]:
    """Yield the records of a group that is moved. `before`: the cut without it."""
    moved = [body.equations[place] for place in group if place in attempt.after]
    redone = [body.equations[place] for place in attempt.after if place not in {*group, *before.after}]
    source, steps = private.source_line(scan), scan.params["length"]
    stacked_bytes = steps * (attempt.step_bytes - before.step_bytes)
    yield Record(source, steps, names_of(moved), True, MOVED, stacked_bytes, names_of(redone))
    if left := [body.equations[place] for place in group if place not in attempt.after]:
        yield record(scan, left, SMALLER)


def has_any_product(body: Body, group: tuple[int, ...]) -> bool:
    return any(has_product(body.equations[place]) for place in group)


def kept(scan: Any, body: Body, division: Division) -> Iterator[Record]:
    """Yield a record of the operations that a next carry depends on, and one for each other reason to stay."""
    reasons = {FEEDING: division.feeding, NEEDED: division.needed}
    for place in sorted(division.staying):
        reason = division.obstacles[place]
        reasons[reason] = reasons.get(reason, frozenset()) | {place}
    for reason, places in reasons.items():
        if places:
            yield record(scan, [body.equations[place] for place in sorted(places)], reason)


def over_budget(attempt: Cut, steps: int, settings: Settings) -> str | None:
    """Return why a way to cut a scan takes too much memory, or None."""
    if settings.memory_budget is None:
        return None
    at_once = min(settings.chunk or steps, steps)
    extra_bytes = steps * attempt.step_bytes + (at_once - 1) * attempt.temporary_bytes
    if extra_bytes <= settings.memory_budget:
        return None
    return f"moving it would take {extra_bytes} bytes more, and the memory budget is {settings.memory_budget}"


def failing(body: Body, attempt: Cut, group: tuple[int, ...], steps: int, chunk: int | None) -> dict[int, str]:
    """Return which equations of a group jax.vmap cannot do -> the reason: all, if no one fails by itself."""
    reason = vmap_failure(after_loop(body, attempt), steps, chunk)
    if reason is None:
        return {}
    alone = {}
    for place in group:
        equation = body.equations[place]
        inputs = list(dict.fromkeys(values(equation.invars)))
        jaxpr = body.closed.jaxpr.replace(
            constvars=[], invars=inputs, outvars=equation.outvars, eqns=[equation], effects=frozenset()
        )
        mapped = After(core.ClosedJaxpr(jaxpr, []), inputs, [0] * len(inputs))
        if own := vmap_failure(mapped, steps, None):
            alone[place] = own
    return alone or dict.fromkeys(group, reason)


@dataclass(frozen=True)
class After:
    """What is done after a loop: a closed jaxpr for one step, its inputs in the body and their axes, 0 or None."""

    closed: Any
    inputs: list[Any]
    axes: list[int | None]


def after_loop(body: Body, plan: Cut) -> After:
    """Return what is done after a loop; its results are the moved ys."""
    equations = [body.equations[place] for place in plan.after]
    own = {value for equation in equations for value in equation.outvars}
    used = dict.fromkeys(value for equation in equations for value in values(equation.invars))
    constvars = body.closed.jaxpr.constvars
    inputs = [value for value in used if value not in own and value not in constvars]
    axes = [None if value in body.consts else 0 for value in inputs]
    outvars = [body.outputs[place] for place in plan.outputs]
    jaxpr = body.closed.jaxpr.replace(invars=inputs, outvars=outvars, eqns=equations, effects=frozenset())
    return After(core.ClosedJaxpr(jaxpr, body.closed.consts), inputs, axes)


def vmap_failure(after: After, steps: int, chunk: int | None) -> str | None:
    """Return why jax.vmap cannot do one step's operations for all steps, or None."""
    try:
        mapped_jaxpr(after, steps, chunk)
    except Exception as error:  # whatever a primitive's batching rule raises is the reason to leave it in the loop
        first_line = (str(error).splitlines() or [""])[0]
        return f"jax.vmap cannot do it for all steps at once: {type(error).__name__}: {first_line}"
    return None


def mapped_jaxpr(after: After, steps: int, chunk: int | None) -> Any:
    """Return a closed jaxpr that does one step's operations for all steps, over the first axis of what differs."""
    mapped = [place for place, axis in enumerate(after.axes) if axis == 0]

    def at_once(operands: Sequence[Any], count: int) -> Any:
        return jax.vmap(core.jaxpr_as_fun(after.closed), tuple(after.axes), axis_size=count)(*operands)

    def in_pieces(operands: Sequence[Any], size: int) -> Any:
        def piece(slices: Sequence[Any]) -> Any:
            both = dict(enumerate(operands)) | dict(zip(mapped, slices, strict=True))
            return at_once(list(both.values()), slices[0].shape[0])

        whole = steps - steps % size
        stacked = [operands[place] for place in mapped]
        pieces = [a[:whole].reshape(whole // size, size, *a.shape[1:]) for a in stacked]
        results = [a.reshape(whole, *a.shape[2:]) for a in jax.lax.map(piece, pieces)]
        if whole == steps:
            return results
        last = piece([a[whole:] for a in stacked])
        return [jax.lax.concatenate(both, 0) for both in zip(results, last, strict=True)]

    avals = [core.unmapped_aval(steps, axis, value.aval) for value, axis in zip(after.inputs, after.axes, strict=True)]
    if chunk and chunk < steps and mapped:
        return jax.make_jaxpr(lambda *operands: in_pieces(operands, chunk))(*avals)
    return with_flat_products(jax.make_jaxpr(lambda *operands: at_once(operands, steps))(*avals))


def with_flat_products(closed: Any) -> Any:
    """Return a closed jaxpr in which products of all steps' rows with one matrix are those of a matrix of all rows.

    jax.vmap makes [T, B, K] x [K, N] of them, whose gradients XLA computes more slowly than those of [T*B, K] x [K, N].
    """
    builder = Builder(closed)
    for equation in closed.jaxpr.eqns:
        if equation.primitive is dot_general_p and has_rows_of_steps(equation):
            flat = jax.make_jaxpr(partial(flat_product, equation.params))(*(atom.aval for atom in equation.invars))
            builder.replace(equation.outvars, builder.inline(flat, builder.read(equation.invars)))
        else:
            builder.add(equation)
    return builder.finish()


def has_rows_of_steps(equation: Any) -> bool:
    """Return whether a product is that of rows in more than one axis with a matrix, summed over the rows' last axis."""
    (contracted, _), batch = equation.params["dimension_numbers"]
    rows, matrix = (atom.aval.ndim for atom in equation.invars)
    return rows > 2 and matrix == 2 and contracted == (rows - 1,) and not any(batch)


def flat_product(params: dict[str, Any], rows: Any, matrix: Any) -> Any:
    """Return the product of rows [..., K] with a matrix of K and N: [..., N]."""
    (_, contracted), _ = params["dimension_numbers"]
    numbers = (((1,), contracted), ((), ()))
    flat = jax.lax.reshape(rows, (prod(rows.shape[:-1]), rows.shape[-1]))
    product = dot_general_p.bind(flat, matrix, **params | {"dimension_numbers": numbers})
    return jax.lax.reshape(product, (*rows.shape[:-1], product.shape[-1]))


def add_in_two(builder: Builder, scan: Any, body: Body, plan: Cut, settings: Settings) -> None:
    """Add a scan without what is done after it, and then that."""
    steps, count = scan.params["length"], body.num_carry
    loop, operands = loop_body(body, plan, builder.read(scan.invars))
    ys = scan.outvars[count:]
    kept_places = [place for place in range(len(ys)) if place not in plan.outputs]
    kept_ys = [ys[place] for place in kept_places]
    crossing = [core.Var(core.unmapped_aval(steps, 0, value.aval)) for value in plan.crossing]
    results = [core.Var(value.aval) for value in (*scan.outvars[:count], *kept_ys)]
    params = private.scan_parameters(scan, loop.closed, loop.num_consts, count)
    builder.equations.append(scan.replace(invars=operands, outvars=[*results, *crossing], params=params))
    outputs = [body.outputs[place] for place in kept_places]
    pairs = zip(outputs, results[count:], strict=True)
    stacked = {atom: result for atom, result in pairs if not isinstance(atom, core.Literal)}
    given = dict(zip(body.closed.jaxpr.invars, builder.read(scan.invars), strict=True))
    stacked |= {value: given[value] for value in given if value not in body.carries}
    stacked |= dict(zip(plan.crossing, crossing, strict=True))
    after = after_loop(body, plan)
    moved = builder.inline(mapped_jaxpr(after, steps, settings.chunk), [stacked[value] for value in after.inputs])
    builder.replace([*scan.outvars[:count], *kept_ys], results)
    builder.replace([ys[place] for place in plan.outputs], moved)


def loop_body(body: Body, plan: Cut, operands: list[Any]) -> tuple[Body, list[Any]]:
    """Return the body that stays in the loop, without constants and xs that have no use, and the scan's operands."""
    jaxpr = body.closed.jaxpr
    equations = [body.equations[place] for place in plan.loop]
    kept_outputs = [atom for place, atom in enumerate(body.outputs) if place not in plan.outputs]
    outvars = [*body.next_carries, *kept_outputs, *plan.crossing]
    used = {value for equation in equations for value in values(equation.invars)} | {*values(outvars), *body.carries}
    places = [place for place, value in enumerate(jaxpr.invars) if value in used or jaxpr.effects]
    num_consts = sum(place < body.num_consts for place in places)
    invars = [jaxpr.invars[place] for place in places]
    closed = core.ClosedJaxpr(jaxpr.replace(invars=invars, outvars=outvars, eqns=equations), body.closed.consts)
    return Body(closed, num_consts, body.num_carry), [operands[place] for place in places]
