"""A scan's body as a graph: which of its operations may leave the loop, why others may not, and what must be stacked.

An equation is known by its place in the body. A value is a variable of the body's jaxpr.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from jax.extend import core
from jax.extend.core.primitives import remat_p

from impls.jax.crossing import cheapest_cut
from impls.jax.jaxprs import has_references, values, within

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")
CHEAP = frozenset(  # done once more rather than that their result is stacked, where this takes fewer bytes
    (
        "abs", "add", "add_any", "and", "atan2", "bitcast_convert_type", "broadcast_in_dim", "ceil", "clamp",
        "concatenate", "convert_element_type", "copy", "copy_p", "cos", "div", "eq", "erf", "exp", "exp2", "expm1",
        "floor", "ge", "gt", "integer_pow", "iota", "is_finite", "le", "log", "log1p", "logistic", "lt", "max",
        "min", "mul", "ne", "neg", "not", "or", "pad", "pow", "pvary", "random_unwrap", "random_wrap", "real",
        "rem", "reshape", "rev", "round", "rsqrt", "select_n", "shift_left", "shift_right_arithmetic",
        "shift_right_logical", "sign", "sin", "slice", "split", "sqrt", "square", "squeeze", "stop_gradient", "sub",
        "tan", "tanh", "transpose", "xor",
    )
)  # fmt: skip
CALLS = ("jit", "custom_jvp_call", "custom_vjp_call")  # as cheap as what they call
GENERATORS = (
    "random_bits", "random_fold_in", "random_gamma", "random_seed", "random_split", "rng_bit_generator", "rng_uniform",
)  # fmt: skip
BRANCHES = "it is a branch that each step chooses; over all steps both would be computed, and could spoil a gradient"
CALLBACK = "it calls back at every step, which must stay as often and in this order"
CHECKPOINT = "it is a region that is recomputed for the gradient (jax.checkpoint), and stays whole"
COLLECTIVE = "it works across devices or a named axis at every step"
REFERENCE = "it reads or writes a mutable array at every step"
RANDOM = "its random bits depend on the batch under this implementation of random keys, so they would change"


class Body(NamedTuple):
    """A scan's body without inner calls: its closed jaxpr, and how many of its inputs are constants and carries."""

    closed: Any
    num_consts: int
    num_carry: int

    @property
    def equations(self) -> list[Any]:
        return self.closed.jaxpr.eqns

    @property
    def consts(self) -> list[Any]:
        """Variables that are the same at every step."""
        return [*self.closed.jaxpr.constvars, *self.closed.jaxpr.invars[: self.num_consts]]

    @property
    def carries(self) -> list[Any]:
        return self.closed.jaxpr.invars[self.num_consts : self.num_consts + self.num_carry]

    @property
    def inputs(self) -> list[Any]:
        """Variables of a step's slice of each xs."""
        return self.closed.jaxpr.invars[self.num_consts + self.num_carry :]

    @property
    def next_carries(self) -> list[Any]:
        return self.closed.jaxpr.outvars[: self.num_carry]

    @property
    def outputs(self) -> list[Any]:
        """A step's slice of each ys: variables or literals."""
        return self.closed.jaxpr.outvars[self.num_carry :]

    @property
    def makers(self) -> dict[Any, int]:
        """The equation that each value comes from."""
        return {value: place for place, equation in enumerate(self.equations) for value in equation.outvars}


@dataclass(frozen=True)
class Division:
    """What of a body must stay in the loop, and what may leave it.

    `obstacles`: every equation that cannot be done after the loop -> the reason. `feeding`: the equations that a next
    carry depends on. `staying`: those of `obstacles` that no carry depends on, and that have a use. `needed`: what else
    those depend on. `groups`: all other equations with a use, in groups that share no value.
    """

    obstacles: dict[int, str]
    feeding: frozenset[int]
    staying: frozenset[int]
    needed: frozenset[int]
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Cut:
    """How a body is cut in two. `loop`, `after`: equations in order; one may be in both, and is then done twice.

    `outputs`: places of the ys that are computed after the loop. `crossing`: values that the loop must stack for it,
    beyond the ys that it stacks anyway. `step_bytes`: the size of one step's crossing values.
    `temporary_bytes`: the most that one step's values after the loop take at a time, without the ys.
    """

    loop: tuple[int, ...]
    after: tuple[int, ...]
    outputs: tuple[int, ...]
    crossing: tuple[Any, ...]
    step_bytes: int
    temporary_bytes: int


def size_bytes(value: Any) -> int:
    """Return the size of a value; that of a token, which is no array, is 0."""
    return prod(value.aval.shape) * value.aval.dtype.itemsize if hasattr(value.aval, "dtype") else 0


def has_product(equation: Any) -> bool:
    """Return whether a matrix product or a convolution is in an equation."""
    return any(inner.primitive.name in PRODUCTS for inner in within(equation))


def is_cheap(equation: Any) -> bool:
    """Return whether an equation only computes element by element, copies or chooses."""
    if equation.primitive.name in CALLS:
        return all(is_cheap(inner) for jaxpr in core.jaxprs_in_params(equation.params) for inner in jaxpr.eqns)
    return equation.primitive.name in CHEAP


def obstacle(equation: Any) -> str | None:
    """Return why an equation must stay in the loop even if no carry depends on it, or None."""
    return next(filter(None, map(own_obstacle, within(equation))), None)


def own_obstacle(equation: Any) -> str | None:
    """Return the obstacle that an equation itself is, whatever is inside it."""
    name = equation.primitive.name
    if "callback" in name or name == "debug_print":
        return CALLBACK
    if equation.primitive is remat_p:
        return CHECKPOINT
    if name == "cond":
        return BRANCHES
    if name in ("shard_map", "xla_pmap") or any(
        type(effect).__name__ == "NamedAxisEffect" for effect in equation.effects
    ):
        return COLLECTIVE
    if name in GENERATORS and not has_threefry_keys(equation):
        return RANDOM
    if equation.effects and has_references(equation):
        return REFERENCE
    if equation.effects:
        return f"it has an effect: {', '.join(sorted(map(str, equation.effects)))}"
    return None


def has_threefry_keys(equation: Any) -> bool:
    """Return whether an equation's random keys are of the implementation whose bits are the same under jax.vmap."""
    dtypes = [atom.aval.dtype for atom in (*equation.invars, *equation.outvars)]
    return {str(dtype) for dtype in dtypes if str(dtype).startswith("key<")} == {"key<fry>"}


def ancestors(body: Body, atoms: Iterable[Any], known: Collection[Any] = ()) -> set[int]:
    """Return the equations that values depend on, as far back as the `known` values."""
    makers, found = body.makers, set()
    stack = list(values(atoms))
    while stack:
        value = stack.pop()
        place = makers.get(value)
        if value not in known and place is not None and place not in found:
            found.add(place)
            stack.extend(values(body.equations[place].invars))
    return found


def divide(body: Body, failures: dict[int, str]) -> Division:
    """Return what of a body may leave the loop. `failures`: equations that were tried and could not -> the reason."""
    reasons = {place: obstacle(equation) for place, equation in enumerate(body.equations)}
    obstacles = {place: reason for place, reason in reasons.items() if reason} | failures
    feeding, useful = ancestors(body, body.next_carries), ancestors(body, body.outputs)
    used = useful | {place for place in obstacles if body.equations[place].effects}
    staying = (used & obstacles.keys()) - feeding
    needed = ancestors(body, needs_of(body, staying)) - feeding - staying
    groups = connected(body, useful - feeding - staying - needed)
    return Division(obstacles, frozenset(feeding), frozenset(staying), frozenset(needed), groups)


def connected(body: Body, places: Collection[int]) -> tuple[tuple[int, ...], ...]:
    """Return equations in groups: two are in one if a value leads from one to the other, through the group."""
    makers = body.makers
    groups: list[set[int]] = []
    for place in sorted(places):
        origins = {makers[value] for value in values(body.equations[place].invars) if value in makers} & set(places)
        joined = [group for group in groups if group & origins]
        groups = [group for group in groups if not group & origins]
        groups.append({place}.union(*joined))
    return tuple(tuple(sorted(group)) for group in sorted(groups, key=min))


def cut(body: Body, moved: Collection[int], obstacles: Collection[int]) -> Cut:
    """Return how to cut a body so that the equations `moved`, which nothing else depends on, are done after the loop.

    Which values cross is a minimum cut of the dataflow, by bytes. Constants, xs and the ys that the loop stacks anyway
    cost nothing. An equation of the loop may be done once more after it if it is cheap or the same at every step, and
    none of the `obstacles`. Cheap ones that lead to what is moved may be done on either side.
    """
    movers = set(moved) - prelude(body, moved)
    makers = body.makers
    outputs = tuple(place for place, atom in enumerate(body.outputs) if is_of(atom, makers, movers))
    stacked = set(values(atom for place, atom in enumerate(body.outputs) if place not in outputs))
    needs = needs_of(body, movers)
    crossing = crossing_values(body, {*movers, *obstacles}, needs, stacked)
    after = movers | ancestors(body, needs, crossing)
    effectful = {place for place, equation in enumerate(body.equations) if equation.effects}
    kept = [*body.next_carries, *stacked, *crossing, *needs_of(body, effectful)]
    used = needs_of(body, after)
    new = tuple(value for value in ordered(body) if value in crossing and value in used and value not in stacked)
    moved_outputs = [body.outputs[place] for place in outputs]
    return Cut(
        loop=tuple(sorted(effectful | ancestors(body, kept))),
        after=tuple(sorted(after)),
        outputs=outputs,
        crossing=new,
        step_bytes=sum(map(size_bytes, new)),
        temporary_bytes=peak_bytes([body.equations[place] for place in sorted(after)], moved_outputs),
    )


def prelude(body: Body, moved: Collection[int]) -> set[int]:
    """Return the cheap equations that lead to the others among `moved`, and come from none of those."""
    costly = {place for place in moved if not is_cheap(body.equations[place])}
    leading = ancestors(body, needs_of(body, costly)) & set(moved)
    makers = body.makers
    following = set(costly)
    for place in sorted(moved):
        if any(makers.get(value) in following for value in values(body.equations[place].invars)):
            following.add(place)
    return leading - following


def is_of(atom: Any, makers: dict[Any, int], places: Collection[int]) -> bool:
    """Return whether a variable or literal is a value of one of these equations."""
    return not isinstance(atom, core.Literal) and makers.get(atom) in places


def ordered(body: Body) -> list[Any]:
    """Return all values of a body in order."""
    return [*body.closed.jaxpr.invars, *(value for equation in body.equations for value in equation.outvars)]


def needs_of(body: Body, places: Collection[int]) -> set[Any]:
    """Return the values that equations take from others or from the body's inputs."""
    own = {value for place in places for value in body.equations[place].outvars}
    return {value for place in places for value in values(body.equations[place].invars)} - own


def crossing_values(body: Body, fixed: Collection[int], needs: set[Any], stacked: set[Any]) -> set[Any]:
    """Return the values from which, with the constants and the xs, all `needs` can be computed, in the fewest bytes.

    `fixed`: equations that may not be done once more.
    """
    unchanging = set(body.consts)
    starts, edges = list(body.carries), []
    for place, equation in enumerate(body.equations):
        operands = set(values(equation.invars))
        same = operands <= unchanging and place not in fixed
        if same:
            unchanging |= set(equation.outvars)
        if same or (is_cheap(equation) and place not in fixed):
            edges += [(operand, value) for operand in operands for value in equation.outvars]
        else:
            starts += equation.outvars
    free = {*body.consts, *body.inputs, *stacked}
    costs = {value: 0 if value in free else size_bytes(value) for value in (*body.consts, *ordered(body))}
    return cheapest_cut(costs, edges, starts, needs) - {*body.consts, *body.inputs}


def peak_bytes(equations: list[Any], results: Collection[Any]) -> int:
    """Return the most that values take at a time if each is freed after its last use, without the `results`.

    An upper bound of what is stored, because a compiler fuses operations whose values it then does not store.
    """
    last_uses = {value: place for place, equation in enumerate(equations) for value in values(equation.invars)}
    sizes: dict[Any, int] = {}
    peak = 0
    for place, equation in enumerate(equations):
        sizes |= {value: size_bytes(value) for value in equation.outvars if value not in results}
        peak = max(peak, sum(sizes.values()))
        sizes = {value: size for value, size in sizes.items() if last_uses.get(value, place) > place}
    return peak
