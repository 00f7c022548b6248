"""Compare random PyTorch loops before and after impls.torch.hoist, in float64: outputs, and their sum's gradients.

Each loop is drawn from a number: whether it is Python's or torch's scan operator, the operations of a step, what is
stacked, and the arguments of `hoist`. Its graph runs as it is, and not through Inductor.

    python scripts/hoist_loops.py --count 500             # exits with 1 on a difference
    python scripts/hoist_loops.py --first 17 --count 1    # one of them again
"""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from impls.torch import private
from impls.torch.hoist import hoist
from scripts.drawn_programs import compare_all

B, WIDTHS = 3, (2, 3)  # rows of every matrix, and its possible columns; some steps have as many as there are rows
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}  # of differences in float64
Kind = tuple[int, ...]  # shape of a value: rows (B, width), a row (width,) or a number ()


@dataclass(frozen=True)
class Operation:
    """One operation of a step: a function of the values at some places, of the weights, and of the step's number."""

    run: Callable[..., Any]
    places: tuple[int, ...]
    kind: Kind


@dataclass(frozen=True)
class Loop:
    """A random program, its arguments and those of `hoist`. `text` names its operations."""

    run: Callable[..., Any]  # of weights, h, c and xs
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Outcome:
    """What came of one loop: its number, the differences in sentences, and what was decided."""

    number: int
    differences: list[str]
    log: list[str]

    @property
    def moved(self) -> bool:
        return any(": moved: " in line for line in self.log)


class Drawing:
    """The operations that were drawn for a step so far, and the kinds of all values that it has: h, c and x first."""

    def __init__(self, draw: random.Random, kinds: list[Kind], is_scan: bool) -> None:
        self.draw, self.kinds, self.is_scan = draw, kinds, is_scan
        self.operations: list[Operation] = []
        self.names: list[str] = []

    def add(self, name: str, run: Callable[..., Any], places: tuple[int, ...], kind: Kind) -> int:
        """Add an operation and return the place of its result."""
        self.operations.append(Operation(run, places, kind))
        self.names.append(f"{name}{list(places)}")
        self.kinds.append(kind)
        return len(self.kinds) - 1

    def pick(self, accept: Callable[[Kind], bool]) -> int:
        """Return the place of a value of an accepted kind: mostly one of the latest."""
        places = [place for place, kind in enumerate(self.kinds) if accept(kind)]
        return self.draw.choice(places[-4:] if self.draw.random() < 0.6 else places)

    def rows(self, width: int | None = None) -> int:
        return self.pick(lambda kind: len(kind) == 2 and width in (None, kind[1]))

    def product(self) -> None:
        place = self.pick(lambda kind: len(kind) > 0)
        kind = self.kinds[place]
        inner, columns = kind[-1], self.draw.choice(WIDTHS)
        key, turned, bias = f"w{inner}{columns}", f"w{columns}{inner}", f"b{columns}"
        variants = {
            "@": lambda w, t, a: a @ w[key],
            "matmul": lambda w, t, a: a.matmul(w[key]),
            "linear": lambda w, t, a: functional.linear(a, w[turned], w[bias]),
            "@t": lambda w, t, a: a @ w[turned].t(),
            "@tanh": lambda w, t, a: a @ torch.tanh(w[key]),
        }
        if len(kind) == 2:
            variants |= {
                "mm": lambda w, t, a: torch.mm(a, w[key]),
                "addmm": lambda w, t, a: torch.addmm(w[bias], a, w[key]),
                "batched": lambda w, t, a: (a @ torch.stack([w[key], w[key] + 1]))[1],
                "transposed": lambda w, t, a: (w[key].t() @ a.t()).t(),
            }
        name = self.draw.choice(sorted(variants))
        self.add(name, variants[name], (place,), (*kind[:-1], columns))

    def unary(self) -> None:
        functions = {
            "tanh": lambda w, t, a: torch.tanh(a),
            "relu": lambda w, t, a: torch.relu(a),
            "sigmoid": lambda w, t, a: a.sigmoid(),
            "neg": lambda w, t, a: -a,
            "half": lambda w, t, a: 0.5 * a,
            "gelu": lambda w, t, a: functional.gelu(a),
            "sin": lambda w, t, a: torch.sin(a),
            "leaky_relu": lambda w, t, a: functional.leaky_relu(a, 0.1, False),
            "gelu tanh": lambda w, t, a: functional.gelu(a, approximate="tanh"),
            "log1p": lambda w, t, a: a.abs().log1p(),
            "clamp": lambda w, t, a: a.clamp(min=-0.5),
            "where": lambda w, t, a: torch.where((a > 0.1) & (a < 1.0), a, 0.5 * a),
            "not dropped": lambda w, t, a: functional.dropout(a, 0.5, training=False),
        }
        name, place = self.draw.choice(sorted(functions)), self.pick(lambda kind: True)
        self.add(name, functions[name], (place,), self.kinds[place])

    def binary(self) -> None:
        """Add an operation on two values, of the same kind or of kinds that are broadcast."""
        a = self.pick(lambda kind: True)
        b = self.pick(lambda kind: kind == () or self.kinds[a] == () or kind[-1] == self.kinds[a][-1])
        kind = max(self.kinds[a], self.kinds[b], key=len)
        functions = {
            "+": lambda w, t, a, b: a + b,
            "*": lambda w, t, a, b: a * b,
            "-": lambda w, t, a, b: torch.sub(a, b),
            "max": lambda w, t, a, b: torch.maximum(a, b),
        }
        name = self.draw.choice(sorted(functions))
        self.add(name, functions[name], (a, b), kind)

    def weighted(self) -> None:
        """Add an operation with a weight that has more axes than the value, or fewer."""
        place = self.pick(lambda kind: len(kind) > 0)
        width = self.kinds[place][-1]
        if self.draw.random() < 0.5:
            self.add("+rows", lambda w, t, a: a + w[f"r{width}"], (place,), (B, width))
        else:
            self.add("*bias", lambda w, t, a: a * w[f"b{width}"], (place,), self.kinds[place])

    def on_rows(self, place: int | None = None) -> None:
        """Add an operation along the last axis of rows, or of one row, or along the others: of a value, or any."""
        place = self.pick(lambda kind: len(kind) > 0) if place is None else place
        kind = self.kinds[place]
        last = self.draw.choice((-1, len(kind) - 1))
        key = f"b{kind[-1]}"
        functions = {
            "softmax": (lambda w, t, a: torch.softmax(a, last), kind),
            "log_softmax": (lambda w, t, a: functional.log_softmax(a, dim=last), kind),
            "layer_norm": (lambda w, t, a: functional.layer_norm(a, kind[-1:], w[key], eps=0.1), kind),
            "layer_norm of all": (lambda w, t, a: functional.layer_norm(a, kind, eps=0.1), kind),
            "sum to": (lambda w, t, a: a.sum(last), kind[:-1]),
            "logsumexp": (lambda w, t, a: a.logsumexp(dim=last, keepdim=True) - a, kind),
            "softmax of columns": (lambda w, t, a: a.softmax(0), kind),
        }
        name = self.draw.choice(sorted(functions))
        self.add(f"{name} along {last}", functions[name][0], (place,), functions[name][1])

    def reduced(self) -> None:
        place = self.rows()
        width = self.kinds[place][1]
        kinds = (
            ("sum", lambda w, t, a: a + a.sum(1, keepdim=True), (B, width)),
            ("row", lambda w, t, a: a[0], (width,)),
            ("mean", lambda w, t, a: a.mean(), ()),
        )
        name, run, kind = self.draw.choice(kinds)
        self.add(name, run, (place,), kind)

    def quadratic(self) -> None:
        """Add a product of matrices that all change from step to step."""
        place = self.rows()
        self.add("quadratic", lambda w, t, a: (a @ a.t()) @ a, (place,), self.kinds[place])

    def numbered(self) -> None:
        """Add an operation with a number that is another one in every step; a scan's body knows no such number."""
        place = self.rows()
        self.add("numbered", lambda w, t, a: a * (0.5 + 0.25 * t), (place,), self.kinds[place])

    def unsafe(self) -> None:
        """Add what forbids moving anything, or random numbers, which are those of their place in the program."""
        place = self.rows()
        kind = self.kinds[place]
        functions = {
            "noise": lambda w, t, a: a + torch.rand(kind, dtype=a.dtype),
            "in place": lambda w, t, a: a.clone().add_(1.0),
            "no_grad": without_gradient,
        }
        name = self.draw.choice(sorted(functions))
        self.add(name, functions[name], (place,), kind)

    def fill(self, count: int) -> None:
        """Add random operations."""
        kinds = [(self.product, 6), (self.unary, 5), (self.binary, 4), (self.weighted, 2), (self.reduced, 2)]
        kinds += [(self.quadratic, 1), (self.on_rows, 3)]
        if not self.is_scan:
            kinds += [(self.numbered, 1), (self.unsafe, 0.5)]
        functions, shares = zip(*kinds, strict=True)
        for function in self.draw.choices(functions, shares, k=count):
            function()


def without_gradient(w: Any, t: Any, a: Any) -> Any:
    with torch.no_grad():
        return torch.tanh(a @ w[f"w{a.shape[1]}{a.shape[1]}"])


def make_loop(number: int) -> Loop:
    """Return a random program, drawn from its number."""
    draw = random.Random(f"loop {number}")
    generator = torch.Generator().manual_seed(number)

    def array(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    is_scan = draw.random() < 0.3
    steps = draw.choice((1, 2, 3, 3, 4, 5))
    widths = [draw.choice(WIDTHS) for _ in range(3)]
    weights = {f"w{rows}{columns}": array(rows, columns) for rows in WIDTHS for columns in WIDTHS}
    weights |= {f"b{width}": array(width) for width in WIDTHS} | {f"r{width}": array(B, width) for width in WIDTHS}
    drawing = Drawing(draw, [(B, width) for width in widths], is_scan)
    drawing.fill(draw.randrange(3))
    feeding = [drawing.rows(widths[0]), drawing.rows(widths[0])]
    square = f"w{widths[0]}{widths[0]}"
    next_h = drawing.add("next h", lambda w, t, a, h: torch.tanh(a @ w[square] + h), tuple(feeding), (B, widths[0]))
    drawing.add("+1", lambda w, t, h: h + 1.0, (next_h,), (B, widths[0]))
    drawing.product()
    if draw.random() < 0.6:
        drawing.on_rows(len(drawing.kinds) - 1)
    drawing.fill(draw.randrange(4))
    next_c = draw.choice((1, 1, 1, drawing.rows(widths[1])))
    ys = [drawing.pick(lambda kind: True) for _ in range(draw.randrange(1, 4))]
    ys.append(len(drawing.kinds) - 1)
    step = make_step(drawing.operations, next_h, next_c, ys)
    if is_scan:
        run = make_scan(step)
    else:
        axes = [draw.choice((0, 0, 0, len(drawing.kinds[place]), None)) for place in ys]  # None: a list
        run = make_python_loop(step, axes, draw.random() < 0.3)
    options = {"chunk": draw.choice((None, None, 1, 2, 3)), "memory_budget": draw.choice((None, None, None, 600))}
    arguments = (weights, array(B, widths[0]), array(B, widths[1]), array(steps, B, widths[2]))
    text = f"{'scan' if is_scan else 'loop'} of {steps}: {' '.join(drawing.names)}; h {next_h}, c {next_c}, ys {ys}"
    return Loop(run, arguments, options, text)


def make_step(operations: list[Operation], next_h: int, next_c: int, ys: list[int]) -> Callable[..., Any]:
    """Return a step: a function of the weights, the carry, the step's input and its number."""

    def step(w: Any, carry: Any, x_t: Any, t: Any) -> Any:
        values = [*carry, x_t]
        for operation in operations:
            values.append(operation.run(w, t, *[values[place] for place in operation.places]))
        return (values[next_h], torch.tanh(values[next_c])), [values[place] for place in ys]

    return step


def make_python_loop(step: Callable[..., Any], axes: list[int | None], is_reversed: bool) -> Callable[..., Any]:
    """Return a program of a Python loop. `axes`: along which each output's steps are stacked."""

    def run(w: Any, h: Any, c: Any, xs: Any) -> Any:
        carry, outputs = (h, c), []
        for t in reversed(range(len(xs))) if is_reversed else range(len(xs)):
            carry, ys = step(w, carry, xs[t], t)
            outputs.append(ys)
        columns = zip(axes, zip(*outputs, strict=True), strict=True)
        stacked = [list(column) if axis is None else torch.stack(column, dim=axis) for axis, column in columns]
        return carry, stacked

    return run


def make_scan(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a program of torch's scan operator."""

    def run(w: Any, h: Any, c: Any, xs: Any) -> Any:
        def body(carry: Any, x_t: Any) -> Any:
            carry, ys = step(w, carry, x_t, 0)
            carry, ys = ([a.clone(memory_format=torch.contiguous_format) for a in arrays] for arrays in (carry, ys))
            return tuple(carry), tuple(ys)

        return private.scan_operator()(body, (h, c), xs)

    return run


def evaluate(run: Callable[..., Any], loop: Loop) -> dict[str, Any]:
    """Return a program's results, and the gradients for its weights, h, c and xs, of the results' weighted sum."""
    weights, *others = loop.arguments
    leaves = {**weights, **dict(zip("hcx", others, strict=True))}
    given = {name: array.clone().requires_grad_() for name, array in leaves.items()}
    torch.manual_seed(0)
    results = torch.utils._pytree.tree_leaves(run({name: given[name] for name in weights}, *(given[n] for n in "hcx")))
    found = {f"result {place}": result.detach() for place, result in enumerate(results)}
    total = sum(
        (result * torch.cos(torch.arange(result.numel(), dtype=torch.float64) + place).reshape(result.shape)).sum()
        for place, result in enumerate(results)
    )
    gradients = torch.autograd.grad(total, list(given.values()), allow_unused=True, materialize_grads=True)
    return found | {f"gradient of {name}": gradient for name, gradient in zip(given, gradients, strict=True)}


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield how results differ: in number, shape or type, or beyond rounding."""
    if before.keys() != after.keys():
        yield f"there are {len(after)} results where there were {len(before)}"
        return
    for name, expected in before.items():
        found = after[name]
        if (expected.shape, expected.dtype) != (found.shape, found.dtype):
            yield f"{name}: {expected.dtype} {list(expected.shape)} and {found.dtype} {list(found.shape)}"
        elif not torch.isfinite(expected).all():
            yield f"{name}: it is not finite, so that nothing can be compared"
        elif not torch.allclose(expected, found, **TOLERANCE | {"atol": 1e-11 * max(1.0, float(expected.abs().max()))}):
            yield f"{name}: the largest difference is {(expected - found).abs().max()}"


def compare(number: int, transform: Callable[..., Any] = hoist) -> Outcome:
    """Compare a random program with itself after `transform`."""
    torch.compiler.reset()
    loop, log = make_loop(number), list[str]()
    before = evaluate(loop.run, loop)
    after = evaluate(transform(loop.run, log=log, compiler="eager", **loop.options), loop)
    return Outcome(number, list(differences(before, after)), log)


def main() -> int:
    return compare_all(__doc__, lambda number: f"{number}, {make_loop(number).text}", lambda number: compare(number))


if __name__ == "__main__":
    sys.exit(main())
