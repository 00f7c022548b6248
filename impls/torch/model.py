"""The RNN under study in PyTorch: four projections times two recurrences, read from top to bottom."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan as scan_op

from impls.interface import Weights

ACTIVATIONS = {"rnn_relu": torch.relu, "rnn_tanh": torch.tanh}
Act = Callable[[Tensor], Tensor]
Emit = Callable[[Weights, Tensor], Tensor]


def step(w: Weights, act: Act, h: Tensor, x: Tensor) -> Tensor:
    """h [B, H], x [B, I] -> next h [B, H]."""
    return act(torch.addmm(torch.addmm(w.b_rec, x, w.w_in), h, w.w_rec))


def project(w: Weights, h: Tensor) -> Tensor:
    """h [N, H] -> y [N, O]."""
    return torch.addmm(w.b_out, h, w.w_out)


def keep(w: Weights, h: Tensor) -> Tensor:
    """h [B, H] -> itself: the loop keeps the hidden state and projects nothing."""
    return h


def copy(w: Weights, h: Tensor) -> Tensor:
    """h [B, H] -> a copy: keep for the scan operator, which forbids its outputs to alias anything."""
    return h.clone()


def unroll(w: Weights, act: Act, x: Tensor, emit: Emit) -> list[Tensor]:
    """A Python loop over x [T, B, I] -> T times emit's [B, N]."""
    h = x.new_zeros(x.shape[1], w.w_rec.shape[0])
    out = []
    for x_t in x.unbind(0):
        h = step(w, act, h, x_t)
        out.append(emit(w, h))
    return out


def scan(w: Weights, act: Act, x: Tensor, emit: Emit) -> Tensor:
    """A symbolic loop over x [T, B, I] -> emit's [T, B, N]."""

    def body(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = step(w, act, h, x_t)
        return h.clone(), emit(w, h)  # a clone, see copy

    h = x.new_zeros(x.shape[1], w.w_rec.shape[0])
    return scan_op(body, h, x)[1]


def project_each(w: Weights, hs: Tensor) -> Tensor:
    """A symbolic loop of T products: h [T, B, H] -> y [T, B, O].

    The weights enter with a third axis, which no weight of the other loop has: gradients of one shape
    in two loops are added up in one buffer (Inductor of torch 2.13; wrong where H = O).
    """
    w_out, b_out = w.w_out[None], w.b_out[None, None]

    def body(carry: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return carry.clone(), project(w._replace(w_out=w_out[0], b_out=b_out[0, 0]), h)

    return scan_op(body, hs.new_zeros(()), hs)[1]


def project_once(w: Weights, hs: Tensor) -> Tensor:
    """One product: h [T, B, H] -> [T*B, H] -> y [T, B, O]."""
    steps, batch, size = hs.shape
    return project(w, hs.reshape(steps * batch, size)).reshape(steps, batch, w.w_out.shape[1])


def null_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    """Nothing: what calling a program costs."""
    return x


def unrolled_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    return torch.stack(unroll(w, act, x, keep))


def unrolled_in_loop(w: Weights, act: Act, x: Tensor) -> Tensor:
    return torch.stack(unroll(w, act, x, project))


def unrolled_per_step(w: Weights, act: Act, x: Tensor) -> Tensor:
    return torch.stack([project(w, h) for h in unroll(w, act, x, keep)])


def unrolled_batched(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_once(w, torch.stack(unroll(w, act, x, keep)))


def scan_none(w: Weights, act: Act, x: Tensor) -> Tensor:
    return scan(w, act, x, copy)


def scan_in_loop(w: Weights, act: Act, x: Tensor) -> Tensor:
    return scan(w, act, x, project)


def scan_per_step(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_each(w, scan(w, act, x, copy))


def scan_batched(w: Weights, act: Act, x: Tensor) -> Tensor:
    return project_once(w, scan(w, act, x, copy))


def loss(y: Tensor, target: Tensor) -> Tensor:
    """Mean squared error, a scalar."""
    return torch.nn.functional.mse_loss(y, target)
