"""Calibration on a GPU: the sums of the CPU, the same to the bit twice, in little memory and without a wait."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
)

from papa_lightning.attention.functional import attention_probabilities, clear_padding
from papa_lightning.calibration import gather
from papa_lightning.encoders import Packing

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
}
VOCABULARY: dict[str, Any] = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
assert_close = torch.testing.assert_close


def build(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "gpt2":
        sizes: dict[str, Any] = {"n_embd": 256, "n_head": 4, "n_layer": 2, "n_inner": 64}
        return GPT2Model(GPT2Config(**sizes, **VOCABULARY))
    if family == "modernbert":
        window: dict[str, Any] = {
            "local_attention": 16,
            "global_attn_every_n_layers": 2,
            "cls_token_id": 1,
            "sep_token_id": 2,
        }
        return ModernBertModel(ModernBertConfig(**SIZES, **VOCABULARY, **window))
    return BertModel(BertConfig(**SIZES, vocab_size=100))


def make_batches(number: int, batch: int, length: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(number):
        lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
        tokens = torch.randint(3, 100, (batch, length), generator=generator)
        batches.append({"input_ids": tokens, "attention_mask": (torch.arange(length) < lengths).long()})
    return batches


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert"])
def test_sums_are_those_of_the_cpu(device: torch.device, family: str, packing: bool) -> None:
    model, batches = build(family), make_batches(3, 8, 77)
    right = gather(model, batches, 80, packing=Packing(packing))
    found = gather(model.to(device), batches, 80, packing=Packing(packing))
    assert found.sums.is_cuda
    assert_close(found.sums.cpu(), right.sums, atol=2e-5, rtol=2e-4)
    assert_close(found.squares.cpu(), right.squares, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.pair_counts.cpu(), right.pair_counts)


def make_sums(device: torch.device, heads: int, length: int) -> tuple[Tensor, Tensor]:
    """Sums and squares of one layer."""
    sums = torch.zeros(1, heads, length, length, dtype=torch.float64, device=device)
    return sums, torch.zeros(1, heads, 1024, dtype=torch.float64, device=device)


def inputs(
    device: torch.device, batch: int, heads: int, length: int, size: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, batch, length, heads, size, device=device).to(dtype).transpose(2, 3).unbind()
    mask = torch.arange(length, device=device) < torch.randint(1, length + 1, (batch, 1)).to(device)
    mask[::2] = mask[::2].flip(1)  # padded on the left
    return query, key, value, mask


# Each combination of a shape, a dtype, a mask and a bias compiles kernels of its own.
@pytest.mark.parametrize(
    ("shape", "dtype", "forms"),
    [
        ((70, 2, 14, 16), torch.bfloat16, ["padding", "padding and bias"]),
        ((64, 12, 128, 64), torch.bfloat16, ["plain", "padding", "padding and bias", "window"]),
        ((64, 12, 128, 64), torch.float16, ["padding"]),
        ((3, 2, 300, 80), torch.bfloat16, ["padding", "window"]),
        ((2, 3, 513, 128), torch.bfloat16, ["plain", "padding and bias"]),
        ((2, 1, 130, 256), torch.bfloat16, ["padding", "window"]),
        ((70, 2, 14, 16), torch.float32, ["padding", "window"]),
        ((3, 2, 300, 80), torch.float32, ["padding", "padding and bias"]),
        ((2, 3, 513, 128), torch.float32, ["window"]),
        ((2, 1, 130, 256), torch.float32, ["plain", "padding and bias"]),
    ],
)
def test_the_kernels_compute_the_definition(
    device: torch.device, shape: tuple[int, int, int, int], dtype: torch.dtype, forms: list[str]
) -> None:
    from papa_lightning.kernels.sums.mixing import mix_and_add_attention

    query, key, value, mask = inputs(device, *shape, dtype)
    length = shape[2]
    bias = torch.randn(1, shape[1], length, length, device=device).to(dtype)
    order = torch.arange(length, device=device)
    window = (order[:, None] - order).abs() <= 4  # in long sequences, whole blocks of keys are not seen
    given = {"plain": (None, None), "padding": (mask, None), "padding and bias": (mask, bias), "window": (None, window)}
    for real, added in [given[form] for form in forms]:
        sums, squares = make_sums(device, shape[1], length)
        mixed = mix_and_add_attention(query, key, value, real, added, 0.1, None, None, 0, sums, squares)
        wide = added if added is None or added.dtype == torch.bool else added.double()
        attention = attention_probabilities(query.double(), key.double(), real, 0.1, wide)
        precise = 1e-4 if dtype == torch.float32 else 2e-2
        assert_close(mixed.double(), (attention @ value.double()).transpose(1, 2), atol=precise, rtol=precise)
        if real is not None:
            clear_padding(attention, real)
        assert_close(sums[0], attention.sum(dim=0), atol=1e-6, rtol=1e-5)
        assert_close(squares[0].sum(dim=1), attention.square().sum(dim=(0, 2, 3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_two_passes_are_the_same_to_the_bit(device: torch.device, packing: bool) -> None:
    model, batches = build("bert").to(device, torch.bfloat16), make_batches(3, 32, 128)
    one, other = (gather(model, batches, 128, packing=Packing(packing)) for _ in range(2))
    assert torch.equal(one.sums, other.sums)
    assert torch.equal(one.squares, other.squares)


@pytest.mark.parametrize(("batch", "length"), [(256, 128), (16, 1024)])
def test_sums_need_64_mb_of_memory_beside_them(device: torch.device, batch: int, length: int) -> None:
    from papa_lightning.kernels.sums.mixing import mix_and_add_attention

    query, key, value, mask = inputs(device, batch, 12, length, 64, torch.bfloat16)
    sums, squares = make_sums(device, 12, length)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    mix_and_add_attention(query, key, value, mask, None, 0.1, None, None, 0, sums, squares)
    assert torch.cuda.max_memory_allocated() - before <= 2 * value.nbytes + 64 * 2**20


def test_a_batch_waits_for_nothing(device: torch.device) -> None:
    from papa_lightning.attention import DynamicAttention
    from papa_lightning.calibration import AttentionAverages

    averages = AttentionAverages(1, 12, 128, device)
    query, key, value, mask = inputs(device, 8, 12, 128, 64, torch.bfloat16)
    attention, on_cpu = DynamicAttention(query, key, mask, 0.1), mask.cpu()
    averages.mix(0, attention, value)
    torch.cuda.set_sync_debug_mode("error")
    try:
        averages.mix(0, attention, value)
        averages.add_mask(mask)
        averages.add_mask(on_cpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_graph_replays_the_sums(device: torch.device) -> None:
    from papa_lightning.kernels.sums.mixing import mix_and_add_attention

    query, key, value, mask = inputs(device, 8, 12, 128, 64, torch.bfloat16)
    sums, squares = make_sums(device, 12, 128)
    arguments = (query, key, value, mask, None, 0.1, None, None, 0, sums, squares)
    mix_and_add_attention(*arguments)
    once = sums.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mix_and_add_attention(*arguments)
    graph.replay()
    torch.cuda.synchronize()
    assert_close(sums, 2 * once, atol=0, rtol=1e-12)


def test_it_compiles_without_a_break(device: torch.device) -> None:
    from papa_lightning.kernels.sums.mixing import mix_and_add_attention

    query, key, value, mask = inputs(device, 4, 2, 64, 64, torch.float32)
    right, found = make_sums(device, 2, 64), make_sums(device, 2, 64)

    def step(query: Tensor, key: Tensor, value: Tensor, sums: Tensor, squares: Tensor) -> Tensor:
        return mix_and_add_attention(query, key, value, mask, None, 0.1, None, None, 0, sums, squares) + 1

    expected = step(query, key, value, *right)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert_close(compiled(query, key, value, *found), expected)
    assert_close(found, right)
