"""The constant product as a GPU compiles it: block sizes of real shapes, graphs, and several streams of use."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from papa_lightning.attention.functional import constant_attention, gathered_attention, normalized_constants
from papa_lightning.kernels import usable
from papa_lightning.kernels.constant.product import constant_product

assert_close = torch.testing.assert_close
ERRORS = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
HEADS, NUM_HEADS = (0, 1, 3), 4


def make(
    device: torch.device, batch: int, length: int, size: int, dtype: torch.dtype, padded: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Constants, values, mixed values of the one dynamic head, and a mask with a hole."""
    torch.manual_seed(0)
    buffer = torch.rand(3, length + 9, length + 9, device=device)
    projection = torch.randn(batch, length, 3, size, device=device)
    dynamic = torch.randn(batch, length, 1, size, device=device)
    mask = torch.rand(batch, length, device=device) > 0.3 if padded else None
    return buffer[:, :length, :length].to(dtype), projection.to(dtype).transpose(1, 2), dynamic.to(dtype), mask


def expected(constants: Tensor, value: Tensor, dynamic: Tensor, mask: Tensor | None) -> Tensor:
    """The product by the functional core, in float64."""
    mixed = constant_attention(constants.double(), value.double(), mask)
    return torch.cat([mixed[:, :, :2], dynamic.double(), mixed[:, :, 2:]], dim=2)


def error(found: Tensor, wanted: Tensor) -> float:
    return float(((found.double() - wanted).norm() / wanted.norm()).detach())


# Each case compiles several kernels of its own, so that not every shape has every dtype.
@pytest.mark.parametrize(
    ("batch", "length", "size", "dtype", "padded"),
    [
        *((5, 128, 64, torch.bfloat16, padded) for padded in (False, True)),
        (5, 128, 64, torch.float16, False),
        (5, 128, 64, torch.float32, True),
        *((3, 333, 64, torch.bfloat16, padded) for padded in (False, True)),
        (3, 333, 64, torch.float32, False),
        (2, 70, 80, torch.bfloat16, True),
        (2, 70, 80, torch.float32, False),
        *((2, 1030, 32, torch.bfloat16, padded) for padded in (False, True)),
        (2, 1030, 32, torch.float32, True),
    ],
)
def test_results_and_gradients_are_those_of_the_functional_core(
    device: torch.device, batch: int, length: int, size: int, dtype: torch.dtype, padded: bool
) -> None:
    constants, value, dynamic, mask = make(device, batch, length, size, dtype, padded)
    learned = [one.detach().requires_grad_() for one in (constants, value, dynamic)]
    constants, value, dynamic = learned
    assert usable(*learned)
    result = constant_product(constants, value, mask, HEADS, NUM_HEADS, dynamic)
    wanted = expected(constants, value, dynamic, mask)
    grad = torch.randn_like(result)
    found = torch.autograd.grad(result, learned, grad)
    assert error(result, wanted) < ERRORS[dtype]
    for one, other in zip(found, torch.autograd.grad(wanted, learned, grad.double()), strict=True):
        assert error(one, other.double()) < ERRORS[dtype]
    again = constant_product(constants, value, mask, HEADS, NUM_HEADS, dynamic)
    assert torch.equal(result, again)
    assert all(torch.equal(*pair) for pair in zip(found, torch.autograd.grad(again, learned, grad), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_tokens_with_slots_read_their_entries(device: torch.device, dtype: torch.dtype) -> None:
    _, value, dynamic, mask = make(device, 3, 100, 64, dtype, True)
    buffer = torch.rand(3, 160, 160, device=device, dtype=dtype)
    places = torch.stack([torch.randperm(160, device=device)[:100].sort()[0] for _ in range(3)])
    result = constant_product(buffer, value, mask, HEADS, NUM_HEADS, dynamic, places=places)
    assert mask is not None
    mixed = gathered_attention(buffer.double(), value.double(), places, mask)
    assert error(result, torch.cat([mixed[:, :, :2], dynamic.double(), mixed[:, :, 2:]], dim=2)) < ERRORS[dtype]


@pytest.mark.parametrize(("dtype", "padded"), [(torch.bfloat16, True), (torch.float32, False)])
def test_gradients_drop_what_the_product_dropped(device: torch.device, dtype: torch.dtype, padded: bool) -> None:
    constants, value, dynamic, mask = make(device, 2, 202, 256, dtype, padded)

    def drop(value: Tensor) -> Tensor:
        torch.manual_seed(1)
        return constant_product(constants, value, mask, HEADS, NUM_HEADS, dynamic, dropout=0.2)

    shown = drop(torch.eye(202, 256, device=device, dtype=dtype).expand(2, 3, -1, -1))[:, :, HEADS, :202].transpose(
        1, 2
    )
    whole = normalized_constants(constants.double(), mask)
    kept = shown != 0
    assert error(shown, whole * kept / 0.8) < ERRORS[dtype]
    assert abs(float(kept[whole.expand_as(kept) > 0].float().mean()) - 0.8) < 0.01
    value, constants = value.detach().requires_grad_(), constants.detach().requires_grad_()
    mixed = drop(value)[:, :, HEADS]
    wanted = ((normalized_constants(constants.double(), mask) * kept / 0.8) @ value.double()).transpose(1, 2)
    grad = torch.randn_like(mixed)
    assert error(mixed, wanted) < ERRORS[dtype]
    found = torch.autograd.grad(mixed, (value, constants), grad)
    for one, other in zip(found, torch.autograd.grad(wanted, (value, constants), grad.double()), strict=True):
        assert error(one, other.double()) < ERRORS[dtype]


def test_a_graph_of_the_device_replays_new_values(device: torch.device) -> None:
    constants, value, dynamic, mask = make(device, 4, 96, 64, torch.bfloat16, True)
    with torch.inference_mode():
        constant_product(constants, value, mask, HEADS, NUM_HEADS, dynamic)  # compiled before it is captured
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        result = constant_product(constants, value, mask, HEADS, NUM_HEADS, dynamic)
    value.copy_(torch.randn_like(value))
    assert mask is not None
    mask.copy_(torch.rand_like(mask, dtype=torch.float32) > 0.5)
    graph.replay()
    assert error(result, expected(constants, value, dynamic, mask)) < ERRORS[torch.bfloat16]


def test_a_compiled_layer_has_one_graph_under_autocast(device: torch.device) -> None:
    constants, value, dynamic, mask = make(device, 2, 64, 64, torch.float32, True)
    weight = torch.randn(64, 64, device=device, requires_grad=True)

    def layer(weight: Tensor) -> Tensor:
        return (
            constant_product(constants, value @ weight, mask, HEADS, NUM_HEADS, (dynamic @ weight))
            .float()
            .square()
            .sum()
        )

    with torch.autocast("cuda", torch.bfloat16):
        found = torch.autograd.grad(torch.compile(layer, fullgraph=True)(weight), weight)[0]
        wanted = torch.autograd.grad(layer(weight), weight)[0]
    assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


@pytest.mark.parametrize("length", [96, 128])
def test_blocks_of_several_sequences_are_right_every_time(device: torch.device, length: int) -> None:
    _, value, dynamic, _ = make(device, 64, length, 64, torch.bfloat16, False)
    constants = torch.rand(
        3, length, length, device=device
    ).bfloat16()  # as an encoder keeps them: copied in large steps
    wanted = expected(constants, value, dynamic, None)
    first = constant_product(constants, value, None, HEADS, NUM_HEADS, dynamic)
    assert error(first, wanted) < ERRORS[torch.bfloat16]
    repeated = [constant_product(constants, value, None, HEADS, NUM_HEADS, dynamic) for _ in range(50)]
    assert all(torch.equal(first, one) for one in repeated)
