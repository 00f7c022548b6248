"""The RNN under study in PyTorch: ways to run the recurrence and ways to project, read from top to bottom."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from impls.interface import (
    BETA_1,
    BETA_2,
    CHUNKED_LOSS,
    EPSILON,
    LOG_BETA_1,
    LOG_BETA_2,
    RATE,
    Trained,
    Weights,
    chunk_sizes,
    family_of,
    weights_of,
)
from impls.torch import private

scan_op = private.scan_operator()
State = tuple[Tensor, ...]  # h [B, H], and for lstm c [B, H]
Stepped = tuple[State, Tensor]  # named here because Dynamo cannot subscript `tuple` while it traces
Step = Callable[[Weights, State, Tensor], State]
Emit = Callable[..., Tensor]  # of the weights, h [B, H], and a step of each further array
Loss = Callable[..., Tensor]  # of y, the target, and how it is reduced


class Cell(NamedTuple):
    """A cell's step, the number of arrays in its state, and the framework's built-in layer and module."""

    step: Step
    states: int
    own: Any
    module: Any


def rnn(act: Callable[[Tensor], Tensor], w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]."""
    (h,) = state
    return (act(torch.addmm(torch.addmm(w.b_rec, x, w.w_in), h, w.w_rec)),)


def rnn_relu(w: Weights, state: State, x: Tensor) -> State:
    return rnn(torch.relu, w, state, x)


def rnn_tanh(w: Weights, state: State, x: Tensor) -> State:
    return rnn(torch.tanh, w, state, x)


def gru(w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates r, z, n."""
    (h,) = state
    a_r, a_z, a_n = torch.addmm(w.b_rec, x, w.w_in).chunk(3, 1)
    u_r, u_z, u_n = (h @ w.w_rec).chunk(3, 1)
    r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
    n = torch.tanh(a_n + r * u_n)
    return ((1 - z) * n + z * h,)


def lstm(w: Weights, state: State, x: Tensor) -> State:
    """Return the next state, from the state of [B, H] and x [B, I]; gates i, f, g, o."""
    h, c = state
    i, f, g, o = torch.addmm(torch.addmm(w.b_rec, x, w.w_in), h, w.w_rec).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def project(w: Weights, h: Tensor) -> Tensor:
    """Project h [N, H] to y [N, O]."""
    return torch.addmm(w.b_out, h, w.w_out)


def keep(w: Weights, h: Tensor) -> Tensor:
    """Return h [..., H] itself, without projecting it."""
    return h


def copy(w: Weights, h: Tensor) -> Tensor:
    """Return a copy of h [B, H]: `keep` for the scan operator, whose outputs must not alias anything."""
    return h.clone()


def start(w: Weights, cell: Cell, x: Tensor) -> State:
    """Return the state before the first step of x [T, B, I]: zeros [B, H]."""
    return tuple(x.new_zeros(x.shape[1], w.w_rec.shape[0]) for _ in range(cell.states))


def unroll(w: Weights, cell: Cell, x: Tensor, emit: Emit, *others: Tensor) -> list[Tensor]:
    """Run a Python loop over x [T, B, I] and others [T, ...], and return a list of T results of emit."""
    state = start(w, cell, x)
    out = []
    for x_t, *others_t in zip(*(a.unbind(0) for a in (x, *others)), strict=True):
        state = cell.step(w, state, x_t)
        out.append(emit(w, state[0], *others_t))
    return out


def scan(w: Weights, cell: Cell, x: Tensor, emit: Emit, *others: Tensor) -> Tensor:
    """Run a symbolic loop over x [T, B, I] and others [T, ...], and return the stacked results of emit [T, ...]."""

    def body(state: State, inputs: tuple[Tensor, ...]) -> Stepped:
        x_t, *others_t = inputs
        state = cell.step(w, state, x_t)
        return tuple(s.clone() for s in state), emit(w, state[0], *others_t)  # clones for the reason given in `copy`

    return scan_op(body, start(w, cell, x), (x, *others))[1]


def unrolled(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by a Python loop."""
    return torch.stack(unroll(w, cell, x, keep))


def scanned(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by a symbolic loop."""
    return scan(w, cell, x, copy)


def layer(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by the framework's built-in layer.

    It is the function that nn.RNN, nn.GRU and nn.LSTM call, with their arguments: one layer, one direction, no dropout.
    b_rec is [2, G*H]: one bias for each product, of which the recurrent one is zero.
    """
    state = tuple(x.new_zeros(1, x.shape[1], w.w_rec.shape[0]) for _ in range(cell.states))
    weights = [w.w_in.T, w.w_rec.T, *w.b_rec]
    train = torch.is_grad_enabled()
    return cell.own(x, state if cell.states > 1 else state[0], weights, True, 1, 0.0, train, False, False)[0]


class Modules(torch.nn.Module):  # type: ignore[misc]  # mypy looks into no framework
    """The weights as users hold them: in the framework's cell and dense layer, called step by step."""

    def __init__(self, cell: Cell, w: Weights) -> None:
        super().__init__()
        (inputs, _), (size, outputs) = w.w_in.shape, w.w_out.shape
        place = {"device": w.w_in.device, "dtype": w.w_in.dtype}
        self.cell, self.dense = cell.module(inputs, size, **place), torch.nn.Linear(size, outputs, **place)
        values = (w.w_in.T, w.w_rec.T, w.b_rec, torch.zeros_like(w.b_rec), w.w_out.T, w.b_out)
        with torch.no_grad():
            for parameter, value in zip(self.parameters(), values, strict=True):
                parameter.copy_(value)

    @property
    def recurrent(self) -> tuple[Tensor, ...]:
        """The parameters that an arm with projection `none` has; the bias of the recurrent product is zero."""
        return tuple(self.cell.parameters())


def step_modules(w: Modules, x: Tensor, emit: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Call the cell on each step of x [T, B, I], and return a list of T results of emit [B, N]."""
    state, out = None, []
    for x_t in x.unbind(0):
        state = w.cell(x_t, state)
        out.append(emit(state[0] if isinstance(state, tuple) else state))
    return out


def modules(w: Modules, cell: Cell, x: Tensor) -> Tensor:
    """Return h [T, B, H] for x [T, B, I], by the framework's cell in a Python loop."""
    return torch.stack(step_modules(w, x, lambda h: h))


def modules_in_loop(w: Modules, cell: Cell, x: Tensor) -> Tensor:
    return torch.stack(step_modules(w, x, w.dense))


def modules_per_step(w: Modules, cell: Cell, x: Tensor) -> Tensor:
    return torch.stack([w.dense(h) for h in step_modules(w, x, lambda h: h)])


def modules_batched(w: Modules, cell: Cell, x: Tensor) -> Tensor:
    return w.dense(modules(w, cell, x))


def given(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    """Return x itself, which holds precomputed hidden states [T, B, H]."""
    return x


def project_steps(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a Python loop of T products."""
    return torch.stack([project(w, h) for h in hs.unbind(0)])


def project_each(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a symbolic loop of T products.

    The weights enter with an extra axis, which no weight of the other loop has. Otherwise Inductor (torch 2.13) adds up
    gradients of the same shape from both loops in one buffer, which is wrong where H = O.
    """
    w_out, b_out = w.w_out[None], w.b_out[None, None]

    def body(carry: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return carry.clone(), project(w._replace(w_out=w_out[0], b_out=b_out[0, 0]), h)

    return scan_op(body, hs.new_zeros(()), hs)[1]


def project_once(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one product, on h reshaped to [T*B, H]."""
    steps, batch, size = hs.shape
    return project(w, hs.reshape(steps * batch, size)).reshape(steps, batch, w.w_out.shape[1])


def project_chunks(sizes: list[int], w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by a product for each chunk of time; `sizes` are the steps of each."""
    return torch.cat([project_once(w, chunk) for chunk in hs.split(sizes)])


def project_bmm(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one batched product of T."""
    return torch.baddbmm(w.b_out, hs, w.w_out.expand(hs.shape[0], *w.w_out.shape))


def project_vmap(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by one step's product, mapped over time."""
    return torch.vmap(lambda h: project(w, h))(hs)


def project_library(w: Weights, hs: Tensor) -> Tensor:
    """Project h [T, B, H] to y [T, B, O] by the framework's built-in dense layer.

    It is the function that nn.Linear calls.
    """
    return torch.nn.functional.linear(hs, w.w_out.T, w.b_out)


def unrolled_in_loop(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return torch.stack(unroll(w, cell, x, project))


def unrolled_per_step(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return torch.stack([project(w, h) for h in unroll(w, cell, x, keep)])


def scan_in_loop(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return scan(w, cell, x, project)


def scan_per_step(w: Weights, cell: Cell, x: Tensor) -> Tensor:
    return project_each(w, scanned(w, cell, x))


def squared(y: Tensor, target: Tensor, reduce: str = "mean") -> Tensor:
    """Return the mean squared error of y [..., O], or the sum of their squares."""
    return torch.nn.functional.mse_loss(y, target, reduction=reduce)


def cross_entropy(y: Tensor, target: Tensor, reduce: str = "mean") -> Tensor:
    """Return the mean softmax cross-entropy of logits y [..., O] against classes [...], or their sum."""
    return torch.nn.functional.cross_entropy(y.reshape(-1, y.shape[-1]), target.reshape(-1), reduction=reduce)


def added(loss: Loss) -> Emit:
    """Return a function of w, h [N, H] and a target that projects h and returns the sum of its losses.

    What it computes is not kept for the backward pass, which computes it again.
    """

    def add(w: Weights, h: Tensor, target: Tensor) -> Tensor:
        return loss(project(w, h), target, "sum")

    return lambda w, h, target: checkpoint(add, w, h, target, use_reentrant=False)


def unrolled_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
    return torch.stack(unroll(w, cell, x, added(loss), target)).sum() / target.numel()


def scan_in_loop_loss(loss: Loss, w: Weights, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
    return scan(w, cell, x, added(loss), target).sum() / target.numel()


def add_chunks(sizes: list[int], loss: Loss, w: Weights, hs: Tensor, target: Tensor) -> Tensor:
    """Return the mean loss of h [T, B, H], projected and added up chunk by chunk; `sizes` are the steps of each."""
    chunks = zip(hs.split(sizes), target.split(sizes), strict=True)
    losses = [added(loss)(w, h.flatten(0, 1), target.flatten(0, 1)) for h, target in chunks]
    return torch.stack(losses).sum() / target.numel()


def adam(state: Trained, d: Weights) -> Trained:
    """Return the state after one step of Adam on the gradients d, in TF1's form: epsilon is not corrected for bias.

    Kingma and Ba 2015, end of section 2: rate sqrt(1 - beta_2^t) / (1 - beta_1^t). The differences are computed without
    cancellation.
    """
    t = state.t + 1
    rate = RATE * torch.sqrt(-torch.expm1(t * LOG_BETA_2)) / -torch.expm1(t * LOG_BETA_1)
    m = Weights(*(BETA_1 * m + (1 - BETA_1) * g for m, g in zip(state.m, d, strict=True)))
    v = Weights(*(BETA_2 * v + (1 - BETA_2) * g * g for v, g in zip(state.v, d, strict=True)))
    w = Weights(*(w - rate * m / (torch.sqrt(v) + EPSILON) for w, m, v in zip(state.w, m, v, strict=True)))
    return Trained(w, m, v, t)


def untrained(w: Weights) -> Trained:
    """Return the state before the first training step."""
    m, v = (Weights(*map(torch.zeros_like, w)) for _ in range(2))
    return Trained(w, m, v, w.w_in.new_zeros(()))


CELLS = {
    "rnn_relu": Cell(rnn_relu, 1, torch.rnn_relu, partial(torch.nn.RNNCell, nonlinearity="relu")),
    "rnn_tanh": Cell(rnn_tanh, 1, torch.rnn_tanh, torch.nn.RNNCell),
    "gru": Cell(gru, 1, torch.gru, torch.nn.GRUCell),
    "lstm": Cell(lstm, 2, torch.lstm, torch.nn.LSTMCell),
}
HIDDEN: dict[str, Callable[[Any, Cell, Tensor], Tensor]] = {
    "unrolled": unrolled,
    "scan": scanned,
    "layer": layer,
    "given": given,
    "modules": modules,
}
AFTER = {
    "none": keep,
    "per_step": project_steps,
    "batched": project_once,
    "bmm": project_bmm,
    "vmap": project_vmap,
    "library": project_library,
}
IN_THE_LOOP: dict[str, Callable[[Any, Cell, Tensor], Tensor]] = {
    "unrolled_in_loop": unrolled_in_loop,
    "unrolled_per_step": unrolled_per_step,
    "scan_in_loop": scan_in_loop,
    "scan_per_step": scan_per_step,
    "unrolled_hoisted": unrolled_in_loop,  # which are compiled by impls.torch.hoist
    "scan_hoisted": scan_in_loop,
    "modules_in_loop": modules_in_loop,
    "modules_per_step": modules_per_step,
    "modules_batched": modules_batched,
}
LOSSES: dict[str, Loss] = {"squared": squared, "cross_entropy": cross_entropy}
LOSS_INSIDE = {"unrolled_in_loop_loss": unrolled_in_loop_loss, "scan_in_loop_loss": scan_in_loop_loss}


def one_layer(recurrence: str, projection: str) -> Callable[[Any, Cell, Tensor], Tensor]:
    """Return the program of an arm of one layer."""
    if program := IN_THE_LOOP.get(f"{recurrence}_{projection}"):
        return program
    hidden, after = HIDDEN[recurrence], AFTER.get(projection)
    if after is None:
        return lambda w, cell, x: project_chunks(chunk_sizes(projection, x.shape[0]), w, hidden(w, cell, x))
    return lambda w, cell, x: after(w, hidden(w, cell, x))


def arm(recurrence: str, projection: str, layers: int = 1) -> Callable[[Any, Cell, Tensor], Tensor]:
    """Return an arm's program: it maps w, cell and x [T, B, I] to y [T, B, O], or h [T, B, H] for projection `none`."""
    program = one_layer(recurrence, projection)
    if layers == 1:
        return program

    def chained(w: Any, cell: Cell, x: Tensor) -> Tensor:
        for layer in range(layers):
            x = program(weights_of(w, layer), cell, x)
        return x

    return chained


def inside(recurrence: str, projection: str, loss: Loss) -> Callable[[Any, Cell, Tensor, Tensor], Tensor] | None:
    """Return the loss of an arm of one layer whose loss is inside, or None where it is not."""
    if program := LOSS_INSIDE.get(f"{recurrence}_{projection}"):
        return partial(program, loss)
    if family_of(projection) != CHUNKED_LOSS:
        return None
    hidden = HIDDEN[recurrence]
    return lambda w, cell, x, target: add_chunks(
        chunk_sizes(projection, x.shape[0]), loss, w, hidden(w, cell, x), target
    )


def objective(
    recurrence: str, projection: str, loss: str, layers: int = 1
) -> Callable[[Any, Cell, Tensor, Tensor], Tensor]:
    """Return an arm's loss as a program: it maps w, cell, x [T, B, I] and the target to a scalar.

    With the loss inside the last layer, those before it project in the loop too, or after it in one product.
    """
    measure = LOSSES[loss]
    last = inside(recurrence, projection, measure)
    if last is None:
        program = arm(recurrence, projection, layers)
        return lambda w, cell, x, target: measure(program(w, cell, x), target)
    if layers == 1:
        return last
    before = one_layer(recurrence, "batched" if family_of(projection) == CHUNKED_LOSS else "in_loop")

    def chained(w: Any, cell: Cell, x: Tensor, target: Tensor) -> Tensor:
        for layer in range(layers - 1):
            x = before(weights_of(w, layer), cell, x)
        return last(weights_of(w, layers - 1), cell, x, target)

    return chained
