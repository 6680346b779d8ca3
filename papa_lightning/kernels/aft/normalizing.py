"""The kernel of AFT-conv, ``gamma (w - mean w) / std w + beta`` for each head, in one launch instead of ten.

Entries are so few that the launches are all that takes time. std is that of all entries, divided by their number; where
it is 0, so is its gradient.
"""

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from papa_lightning.kernels.launches import Launch, aligned


@triton.jit
def _standardized(weight, head, number, N: tl.constexpr):
    """Entries of a head less their mean, divided by their deviation; one over that; and which entries exist."""
    entry = tl.arange(0, N)
    inside = entry < number
    values = tl.load(weight + head * number + entry, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / number, 0.0)
    variance = tl.sum(centred * centred, 0) / number
    varied = variance > 0.0
    scale = 1.0 / tl.sqrt(tl.where(varied, variance, 1.0))
    return centred * scale, scale, varied, inside


@triton.jit
def _normalize(weight, gamma, beta, out, number, N: tl.constexpr):
    """A program for each head."""
    head = tl.program_id(0)
    standard, _, _, inside = _standardized(weight, head, number, N)
    factor = tl.load(gamma + head).to(tl.float32)
    shift = tl.load(beta + head).to(tl.float32)
    tl.store(out + head * number + tl.arange(0, N), factor * standard + shift, mask=inside)


@triton.jit
def _gradients(weight, gamma, grad, grad_weight, grad_gamma, grad_beta, number, N: tl.constexpr):
    """Gradients of a head."""
    head = tl.program_id(0)
    standard, scale, varied, inside = _standardized(weight, head, number, N)
    entry = tl.arange(0, N)
    grads = tl.load(grad + head * number + entry, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(grads * standard, 0)
    total = tl.sum(grads, 0)
    spread = tl.where(varied, along / number, 0.0)
    own = tl.load(gamma + head).to(tl.float32) * scale * (grads - total / number - standard * spread)
    tl.store(grad_weight + head * number + entry, own.to(grad_weight.dtype.element_ty), mask=inside)
    tl.store(grad_gamma + head, along.to(grad_gamma.dtype.element_ty))
    tl.store(grad_beta + head, total.to(grad_beta.dtype.element_ty))


@lru_cache(maxsize=64)
def _launches(
    shape: torch.Size, device: torch.device, weight: torch.dtype, gamma: torch.dtype, beta: torch.dtype
) -> tuple[Launch, Launch]:
    """The kernels for entries of a shape: of the result, and of the gradients."""
    number = shape[1:].numel()
    numbers = {"number": number, "N": triton.next_power_of_2(number)}
    return Launch(_normalize, (shape[0],), numbers, {}), Launch(_gradients, (shape[0],), numbers, {})


def _forward(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    out = torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)
    given = (weight.contiguous(), gamma.contiguous(), beta.contiguous())
    launch, _ = _launches(weight.shape, weight.device, weight.dtype, gamma.dtype, beta.dtype)
    with torch.cuda.device_of(weight):
        launch(aligned(*given), *given, out)
    return out


def _backward(grad: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found = tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in (weight, gamma, beta))
    given = (weight.contiguous(), gamma.contiguous(), grad.contiguous())
    _, launch = _launches(weight.shape, weight.device, weight.dtype, gamma.dtype, beta.dtype)
    with torch.cuda.device_of(weight):
        launch(aligned(*given), *given, *found)
    return found  # type: ignore[return-value]


_operator = torch.library.custom_op(
    "papa_lightning::aft_normalized",
    _forward,
    mutates_args=(),
    schema="(Tensor weight, Tensor gamma, Tensor beta) -> Tensor",
)
_operator_gradients = torch.library.custom_op(
    "papa_lightning::aft_normalized_gradients",
    _backward,
    mutates_args=(),
    schema="(Tensor grad, Tensor weight, Tensor gamma, Tensor beta) -> (Tensor, Tensor, Tensor)",
)


@_operator.register_fake
def _(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=torch.float32, memory_format=torch.contiguous_format)


@_operator_gradients.register_fake
def _(grad: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(one, memory_format=torch.contiguous_format) for one in (weight, gamma, beta))


def _set_up(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    """Keep what gradients need."""
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of the inputs."""
    plain = type(grad) is Tensor and not torch.compiler.is_compiling()
    found: tuple[Tensor, ...] = (_backward if plain else _operator_gradients)(grad, *ctx.saved_tensors)
    return found


_operator.register_autograd(_gradient, setup_context=_set_up)


class _Normalized(torch.autograd.Function):
    """The operator without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        """Normalize, and keep what gradients need."""
        ctx.save_for_backward(*inputs)
        return _forward(*inputs)

    backward = staticmethod(_gradient)


def normalized(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Entries ``gamma (w - mean w) / std w + beta`` in float32.

    Args:
        weight: w, (H, ...).
        gamma: (H, 1, ...).
        beta: (H, 1, ...).
    """
    call = _operator if torch.compiler.is_compiling() else _Normalized.apply
    found: Tensor = call(weight, gamma, beta)
    return found
