"""Attention-free mixing on a GPU: what the interpreter does not show, and that the models use the kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from papa_lightning.attention import KINDS, Place, Reach, aft_banded, aft_conv, aft_full, aft_simple

assert_close = torch.testing.assert_close
FORMS: dict[str, Callable[..., Tensor]] = {
    "simple": lambda q, k, v, w, mask: aft_simple(q, k, v, mask, causal=True),
    "banded": lambda q, k, v, w, mask: aft_banded(q, k, v, w[:, :, :32], -31, mask, causal=True),
    "both": lambda q, k, v, w, mask: aft_banded(q, k, v, w[:, :, :40], -20, mask),
    "full": lambda q, k, v, w, mask: aft_full(q, k, v, w, mask, causal=True),
    "conv": lambda q, k, v, w, mask: aft_conv(
        q.unflatten(2, (2, -1)), k[..., :2], v.unflatten(2, (2, -1)), w[:, 0, :32], mask, causal=True
    ).flatten(2),
}
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
CASES = [*((form, torch.bfloat16) for form in FORMS), ("banded", torch.float32), ("full", torch.float16)]


def make_mask(batch: int, length: int, device: torch.device) -> Tensor:
    """A mask with holes, and a sequence without any token."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(length)) < 0.6
    mask[0] = False
    return mask.to(device)


def make(length: int, dtype: torch.dtype, device: torch.device, spread: float) -> tuple[list[Tensor], Tensor]:
    """Queries, keys, values and biases, and a mask with holes."""
    generator = torch.Generator().manual_seed(length)
    rows = [torch.randn(3, length, 96, generator=generator).to(device, dtype) for _ in range(3)]
    rows[1] *= spread
    bias = (torch.randn(2, length, length, generator=generator) * spread).to(device)
    return [*rows, bias], make_mask(3, length, device)


def results(form: str, tensors: list[Tensor], mask: Tensor) -> list[Tensor | None]:
    """The output and the gradients of a form."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = FORMS[form](*leaves, mask)
    # Not made in float16, which cannot count so many steps: it would be -1 and 1 alone.
    up = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, up, allow_unused=True)]


@pytest.mark.parametrize("length", [77, 300])
@pytest.mark.parametrize(("form", "dtype"), CASES)
def test_kernels_are_the_torch_forms_in_float64_and_repeat_to_the_bit(
    form: str, dtype: torch.dtype, length: int, device: torch.device
) -> None:
    tensors, mask = make(length, dtype, device, spread=1.0)
    found, again = results(form, tensors, mask), results(form, tensors, mask)
    for one, other, exact in zip(found, again, results(form, [t.double() for t in tensors], mask), strict=True):
        assert (one is None) == (exact is None)
        if one is not None and other is not None and exact is not None:
            assert torch.equal(one, other)
            assert (one - exact).abs().max() <= CLOSE[dtype] * exact.abs().max().clamp_min(0.1)


def test_sums_that_underflow_are_exact(device: torch.device) -> None:
    tensors, mask = make(300, torch.float32, device, spread=60.0)
    expected = results("banded", [tensor.double() for tensor in tensors], mask)
    for one, exact in zip(results("banded", tensors, mask), expected, strict=True):
        if one is not None and exact is not None:
            assert (one - exact).abs().max() <= 1e-3 * exact.abs().max().clamp_min(0.1)


def make_mixer(kind: str, device: torch.device) -> Any:
    place = Place(0, 4, 128, 32, device=device, reach=Reach(after=0))
    return KINDS[kind](place, range(4))


@pytest.mark.parametrize("kind", ["aft_simple", "aft_local", "aft_conv", "aft_full"])
def test_compiled_captured_and_under_autocast(kind: str, device: torch.device) -> None:
    torch.manual_seed(0)
    mixer = make_mixer(kind, device)
    rows = [torch.randn(2, 128, 4, 32, device=device, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3)]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        expected = mixer.mix(*rows, None)
    compiled: Any = torch.compile(mixer.mix, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*rows, None), expected)
    with torch.inference_mode():
        assert_close(mixer.mix(*rows, None), expected.detach())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = mixer.mix(*rows, None)
        graph.replay()
        assert_close(captured, expected.detach())


@pytest.mark.parametrize("kind", ["aft_simple", "aft_local", "aft_conv", "aft_full"])
def test_a_training_step_never_waits_for_the_device(kind: str, device: torch.device) -> None:
    mixer = make_mixer(kind, device)
    rows = [torch.randn(2, 4, 128, 32, device=device).bfloat16().requires_grad_() for _ in range(3)]
    mask = make_mask(2, 128, device) if kind == "aft_simple" else None
    mixer.mix(*rows, mask).sum().backward()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        mixer.mix(*rows, mask).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_only_inputs_and_output_are_kept(device: torch.device) -> None:
    query, key, value = (
        torch.randn(4, 1024, 512, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    torch.autograd.grad(aft_simple(query, key, value, causal=True).sum(), query)  # compiles
    before = torch.cuda.memory_allocated(device)
    out = aft_simple(query, key, value, causal=True)
    assert torch.cuda.memory_allocated(device) - before <= out.numel() * out.element_size() + 2**20
