"""The constant product as one Triton kernel: tokens mixed by fixed matrices, with a mask, reach, slots and gradients.

Attention without queries, keys and softmax. Without a mask a program mixes values of several sequences, since their
matrix is the same; with one, a program is of one sequence, and passes over padding at its ends. The gradient of values
is the same product with the matrices transposed. Products are taken in the dtype of the values and summed in float32;
those of float32 values are exact, or in TF32 where ``torch.backends.cuda.matmul`` allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.errors import PapaError
from papa_lightning.kernels.constant.launches import find_launch, launch_gradient, launch_product
from papa_lightning.kernels.launch import precision
from papa_lightning.kernels.launches import Launch, aligned, by_sequence

#: Reach without a limit.
_FAR = 2**30
#: Launches that a :class:`RepeatedProduct` keeps: shapes of batches.
_MOST_LAUNCHES = 256
#: Heads that fit in the bits of an integer.
_BITS = 64


def constant_product(
    constants: Tensor,
    value: Tensor,
    mask: Tensor | None,
    heads: Sequence[int],
    num_heads: int,
    dynamic: Tensor | None = None,
    before: int | None = None,
    after: int | None = None,
    places: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Values mixed by constants, beside the mixed values of the other heads, in the order of the heads.

    ``out[b, i, heads[c]] = m[b, i] * sum_j C[c, i, j] m[b, j] V[b, c, j] / max(sum_j C[c, i, j] m[b, j], 1e-12)``.
    Rows of padding, and real ones without mass, are 0; so is the gradient of constants in rows without mass.

    Args:
        constants: (C, T, T) of C heads, or (1, T, T) of all of them; any strides. With ``places`` (C, S, S) or
            (1, S, S), for S slots.
        value: (B, C, T, h), in the order of ``heads``; float16, bfloat16 or float32, any strides.
        mask: (B, T), or (1, T) for all sequences, boolean, true for a real token; None: all are.
        heads: Numbers of the heads with constants, ascending.
        num_heads: Number of all heads; at most 64 if not all are constant.
        dynamic: (B, T, num_heads - C, h), mixed values of the other heads, ascending; any strides. None if there are
            none.
        before: Number of positions before a query that it reaches; None: all.
        after: Number of positions after a query that it reaches; None: all.
        places: (B, T) int64, the slot of each token; None: its number. Reach is of slots.
        dropout: Share of the entries of the normalised matrices that is dropped, for each sequence on its own; the
            others are divided by ``1 - dropout``. Torch's generator of the device draws the seed.

    Returns:
        (B, T, num_heads, h), contiguous, in the dtype of ``value``.

    Raises:
        PapaError: The shapes do not fit, there are too many heads, constants of slots require a gradient, or the share
            of dropout is not one.
    """
    mask = by_sequence(mask, value.shape[0])
    _check(constants, value, mask, heads, num_heads, dynamic, places)
    bits = 0 if dynamic is None else _bits_of(heads)
    behind, ahead = _FAR if before is None else before, _FAR if after is None else after
    seed = _draw(value, dropout) if dropout else None
    given = (constants, value, mask, dynamic, places, seed, dropout, bits, num_heads, behind, ahead)
    learned = torch.is_grad_enabled() and (
        constants.requires_grad or value.requires_grad or (dynamic is not None and dynamic.requires_grad)
    )
    mixed: Tensor
    if torch.compiler.is_compiling() or type(value) is not Tensor:
        mixed = _PRODUCT(*given, learned)[0]
    elif learned:  # not through the dispatcher, which takes longer than a launch
        mixed = _Product.apply(*given, True)[0]
    else:
        batch, _, length, size = value.shape
        mixed = value.new_empty(batch, length, num_heads, size)
        tensors = (constants, value, mixed, dynamic, mask, places, None, seed)
        launch_product(*tensors, dropout, bits, behind, ahead, transposed=False)
    return mixed


class RepeatedProduct:
    """:func:`constant_product` for batch after batch of a layer: without gradients, reach, slots and dropout.

    What a launch needs beside its tensors is kept by their shapes and strides: to find it takes longer than the launch.

    Args:
        heads: As there.
        num_heads: As there.
    """

    def __init__(self, heads: Sequence[int], num_heads: int) -> None:
        self._heads, self._num_heads = heads, num_heads
        self._launches: dict[tuple[Any, ...], Launch] = {}

    def __call__(self, constants: Tensor, value: Tensor, mask: Tensor | None, dynamic: Tensor | None) -> Tensor:
        """Mix values beside those of the other heads, as there; the last strides of values and masks are 1.

        Args:
            constants: (C, S, S) of C heads, or (1, S, S), for sequences of up to S tokens; in every call of the same
                dtype, shape and strides.
            value: (B, C, T, h).
            mask: (B, T) or (1, T), boolean, or None.
            dynamic: (B, T, num_heads - C, h), or None.
        """
        batch, _, length, size = shape = value.shape
        mask = by_sequence(mask, batch)
        mixed = value.new_empty(batch, length, self._num_heads, size)
        key = (
            shape, value.stride(), value.dtype, precision(value),
            None if mask is None else mask.stride(), None if dynamic is None else dynamic.stride(),
        )  # fmt: skip
        launch = self._launches.get(key)
        if launch is None:
            launch = self._find(constants, value, mask, dynamic)
            if len(self._launches) >= _MOST_LAUNCHES:
                self._launches.clear()
            self._launches[key] = launch
        tensors = (constants, value, mixed, dynamic, mask, None, None, None)
        with torch.cuda.device_of(value):
            launch(aligned(*tensors), *tensors)
        return mixed

    def _find(self, constants: Tensor, value: Tensor, mask: Tensor | None, dynamic: Tensor | None) -> Launch:
        """Check the shapes, and find the launch."""
        length = value.shape[2]
        _check(constants[:, :length, :length], value, mask, self._heads, self._num_heads, dynamic, None)
        bits = 0 if dynamic is None else _bits_of(self._heads)
        reached = (bits, _FAR, _FAR)
        return find_launch(constants, value, self._num_heads, dynamic, mask, None, False, None, reached, False)


def _bits_of(heads: Sequence[int]) -> int:
    """An integer of 64 bits and a sign, with a bit for each head."""
    bits = 0
    for head in heads:
        bits |= 1 << head
    return bits - 2**_BITS if bits >= 2 ** (_BITS - 1) else bits


def _draw(value: Tensor, dropout: float) -> Tensor:
    """The seed of a call with dropout, on the device, so that nothing waits and a CUDA graph draws anew."""
    if not 0.0 < dropout < 1.0:
        raise PapaError(f"dropout is {dropout}, but must be at least 0 and less than 1: pass the share to drop.")
    return torch.randint(2**62, (1,), device=value.device)


def faster(value: Tensor) -> bool:
    """Whether :func:`constant_product` takes less time than the form in plain torch.

    In half precision it does, as was measured on an H200 for 128 to 2048 tokens. In float32 it is taken not to: exact
    products leave tensor cores idle, and cuBLAS makes more of the others.

    Args:
        value: (B, C, T, h).

    Example:
        >>> faster(torch.zeros(1, 1, 2, 16, dtype=torch.bfloat16))
        True
    """
    return value.dtype != torch.float32


def _check(
    constants: Tensor,
    value: Tensor,
    mask: Tensor | None,
    heads: Sequence[int],
    num_heads: int,
    dynamic: Tensor | None,
    places: Tensor | None,
) -> None:
    """Refuse shapes that do not fit, which a kernel would read beyond the ends of."""
    batch, count, length, size = value.shape
    matrices, slots, keys = constants.shape
    if matrices not in (1, count) or slots != keys or (slots != length if places is None else slots < 1):
        raise PapaError(
            f"constants has shape {tuple(constants.shape)}, but values {tuple(value.shape)} need ({count} or 1, "
            f"{length}, {length}): cut the constants to the heads and the length of the batch."
        )
    for name, tensor in (("mask", mask), ("places", places)):
        if tensor is not None and tensor.shape != (batch, length):
            raise PapaError(
                f"{name} has shape {tuple(tensor.shape)}, but must be ({batch}, {length}): pass that of the batch."
            )
    others = (batch, length, num_heads - count, size)
    if (
        len(heads) != count
        or (dynamic is None) != (count == num_heads)
        or (dynamic is not None and dynamic.shape != others)
    ):
        found = None if dynamic is None else tuple(dynamic.shape)
        raise PapaError(
            f"dynamic is {found}, but {len(heads)} of {num_heads} heads have constants and values have shape "
            f"{tuple(value.shape)}: pass the mixed values of all other heads, {others}, or None if there are none."
        )
    if dynamic is not None and num_heads > _BITS:
        raise PapaError(f"num_heads is {num_heads}, but must be at most {_BITS}: use the form in plain torch.")
    if places is not None and constants.requires_grad and torch.is_grad_enabled():
        raise PapaError("constants require a gradient, but places has none to give: use the form in plain torch.")


def _product(
    constants: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dynamic: Tensor | None,
    places: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    num_heads: int,
    before: int,
    after: int,
    keep_mass: bool,
) -> tuple[Tensor, Tensor]:
    """The operator: mixed values, and the mass (B or 1, C, T) if it is kept, else nothing."""
    layout = (bits, num_heads, before, after)
    mixed, mass = _results(constants, value, mask, dynamic, places, seed, dropout, *layout, keep_mass)
    tensors = (constants, value, mixed, dynamic, mask, places, mass if keep_mass else None, seed)
    launch_product(*tensors, dropout, bits, before, after, transposed=False)
    return mixed, mass


def _results(
    constants: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dynamic: Tensor | None,
    places: Tensor | None,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    num_heads: int,
    before: int,
    after: int,
    keep_mass: bool,
) -> tuple[Tensor, Tensor]:
    """Memory for the results of the operator; also what torch.compile takes in its place."""
    batch, count, length, size = value.shape
    masses = (1 if mask is None and places is None else batch, count, length) if keep_mass else (0,)
    return value.new_empty(batch, length, num_heads, size), value.new_empty(masses, dtype=torch.float32)


def _gradient(
    grad: Tensor,
    constants: Tensor,
    mask: Tensor | None,
    places: Tensor | None,
    mass: Tensor,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    """The operator's gradients of values and of the values of other heads, (B, T, heads, h) both."""
    own, others = _gradient_results(grad, constants, mask, places, mass, seed, dropout, bits, before, after)
    extra = others if others.shape[2] else None
    turned, source = constants.transpose(1, 2), grad.transpose(1, 2)
    tensors = (turned, source, own, extra, mask, places, mass, seed)
    launch_product(*tensors, dropout, bits, after, before, transposed=True)
    return own, others


def _gradient_results(
    grad: Tensor,
    constants: Tensor,
    mask: Tensor | None,
    places: Tensor | None,
    mass: Tensor,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    """Memory for the gradients, in the layout of a projection."""
    batch, length, num_heads, size = grad.shape
    count = mass.shape[1]
    return grad.new_empty(batch, length, count, size), grad.new_empty(batch, length, num_heads - count, size)


def _constants_gradient(
    grad: Tensor,
    constants: Tensor,
    value: Tensor,
    mixed: Tensor,
    mask: Tensor | None,
    mass: Tensor,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    before: int,
    after: int,
) -> Tensor:
    """The operator's gradient of constants, (C, T, T), summed sequence by sequence."""
    settings = (seed, dropout, bits, before, after)
    result = _constants_gradient_results(grad, constants, value, mixed, mask, mass, *settings)
    launch_gradient(grad, value, mixed, mask, mass, seed, dropout, result, bits, before, after)
    return result


def _constants_gradient_results(
    grad: Tensor,
    constants: Tensor,
    value: Tensor,
    mixed: Tensor,
    mask: Tensor | None,
    mass: Tensor,
    seed: Tensor | None,
    dropout: float,
    bits: int,
    before: int,
    after: int,
) -> Tensor:
    """Memory for the gradient of constants."""
    count, length = value.shape[1:3]
    return constants.new_empty(count, length, length)


def _set_up(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what gradients need."""
    constants, value, mask, _, places, seed, dropout, bits, _, before, after, _ = inputs
    mixed, mass = output
    learned = ctx.needs_input_grad[0]
    ctx.save_for_backward(constants, value if learned else None, mixed if learned else None, mask, places, mass, seed)
    ctx.settings = (dropout, bits, before, after)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of constants, values and the values of other heads."""
    constants, value, mixed, mask, places, mass, seed = ctx.saved_tensors
    settings, needed = (seed, *ctx.settings), ctx.needs_input_grad
    plain = type(grad) is Tensor
    own = others = learned = None
    if needed[1] or needed[3]:
        own, others = (_gradient if plain else _GRADIENT)(grad, constants, mask, places, mass, *settings)
        own = own.transpose(1, 2)
    if needed[0]:
        compute = _constants_gradient if plain else _CONSTANTS_GRADIENT
        learned = compute(grad, constants, value, mixed, mask, mass, *settings)
        learned = learned.sum(0, keepdim=True) if constants.shape[0] < len(learned) else learned
    return learned, own, None, others if needed[3] else None, *(None,) * 8


class _Product(torch.autograd.Function):
    """The operator without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """Mix, and keep what gradients need."""
        output = _product(*inputs)
        ctx.mark_non_differentiable(output[1])
        _set_up(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)


def _register(name: str, signature: str, compute: Any, results: Any) -> Any:
    """An operator of the package."""
    name = f"papa_lightning::{name}"
    torch.library.define(name, signature)
    torch.library.impl(name, "CompositeExplicitAutograd")(compute)
    torch.library.register_fake(name)(results)
    return getattr(torch.ops.papa_lightning, name.partition("::")[2]).default


_PRODUCT = _register(
    "constant_product",
    "(Tensor constants, Tensor value, Tensor? mask, Tensor? dynamic, Tensor? places, Tensor? seed, float dropout, "
    "int bits, int num_heads, int before, int after, bool keep_mass) -> (Tensor, Tensor)",
    _product,
    _results,
)
_GRADIENT = _register(
    "constant_product_gradient",
    "(Tensor grad, Tensor constants, Tensor? mask, Tensor? places, Tensor mass, Tensor? seed, float dropout, int bits, "
    "int before, int after) -> (Tensor, Tensor)",
    _gradient,
    _gradient_results,
)
_CONSTANTS_GRADIENT = _register(
    "constant_product_constants_gradient",
    "(Tensor grad, Tensor constants, Tensor value, Tensor mixed, Tensor? mask, Tensor mass, Tensor? seed, "
    "float dropout, int bits, int before, int after) -> Tensor",
    _constants_gradient,
    _constants_gradient_results,
)
torch.library.register_autograd("papa_lightning::constant_product", _backward, setup_context=_set_up)
