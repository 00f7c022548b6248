"""Reading and rewriting jaxprs, which are what JAX traces a program to."""

from collections.abc import Iterable, Iterator
from typing import Any

from jax.extend import core


def values(atoms: Iterable[Any]) -> Iterator[Any]:
    """Yield the variables among variables and literals."""
    return (atom for atom in atoms if not isinstance(atom, core.Literal))


def within(equation: Any) -> Iterator[Any]:
    """Yield an equation and all those inside it."""
    yield equation
    for jaxpr in core.jaxprs_in_params(equation.params):
        for inner in jaxpr.eqns:
            yield from within(inner)


class Builder:
    """A jaxpr under construction from another: its equations so far, its constants, and what replaces its values."""

    def __init__(self, closed: Any) -> None:
        self.jaxpr = closed.jaxpr
        self.equations: list[Any] = []
        self.constvars, self.consts = list(closed.jaxpr.constvars), list(closed.consts)
        self.replaced: dict[Any, Any] = {}

    def read(self, atoms: list[Any]) -> list[Any]:
        """Return what stands for variables and literals of the original."""
        return [atom if isinstance(atom, core.Literal) else self.replaced.get(atom, atom) for atom in atoms]

    def add(self, equation: Any, **changes: Any) -> None:
        self.equations.append(equation.replace(invars=self.read(equation.invars), **changes))

    def inline(self, closed: Any, operands: list[Any]) -> list[Any]:
        """Add a jaxpr's equations, under new variables, and return its results: variables or literals."""
        names = dict(zip(closed.jaxpr.invars, operands, strict=True))
        for variable, const in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            names[variable] = core.Var(variable.aval)
            self.constvars.append(names[variable])
            self.consts.append(const)

        def read(atoms: list[Any]) -> list[Any]:
            return [atom if isinstance(atom, core.Literal) else names[atom] for atom in atoms]

        for equation in closed.jaxpr.eqns:
            names |= {value: core.Var(value.aval) for value in equation.outvars}
            self.equations.append(equation.replace(invars=read(equation.invars), outvars=read(equation.outvars)))
        return read(closed.jaxpr.outvars)

    def replace(self, old: list[Any], new: list[Any]) -> None:
        self.replaced |= dict(zip(old, new, strict=True))

    def finish(self) -> Any:
        """Return the new closed jaxpr. It has the inputs and the effects of the original."""
        outvars = self.read(self.jaxpr.outvars)
        jaxpr = self.jaxpr.replace(constvars=self.constvars, outvars=outvars, eqns=self.equations)
        return core.ClosedJaxpr(jaxpr, self.consts)


def flattened(closed: Any) -> Any:
    """Return a closed jaxpr with the calls of compiled functions (jit) replaced by what they call."""
    builder = Builder(closed)
    for equation in closed.jaxpr.eqns:
        if is_plain_call(equation):
            inner = flattened(equation.params["jaxpr"])
            builder.replace(equation.outvars, builder.inline(inner, builder.read(equation.invars)))
        else:
            builder.add(equation)
    return builder.finish()


def has_references(equation: Any) -> bool:
    """Return whether an equation is given a mutable array (jax.new_ref)."""
    return any(type(value.aval).__name__ == "AbstractRef" for value in equation.invars)


def is_plain_call(equation: Any) -> bool:
    """Return whether an equation calls a compiled function for which no device, layout or compiler option is given.

    One that is given a mutable array is not plain: its effects name the array as its own variable.
    """
    if equation.primitive.name != "jit" or has_references(equation):
        return False
    names = ("in_shardings", "out_shardings", "in_layouts", "out_layouts")
    given = [item for name in names for item in equation.params.get(name, ())]
    plain = all(item is None or type(item).__name__ == "UnspecifiedValue" for item in given)
    return plain and not equation.params.get("compiler_options_kvs")
