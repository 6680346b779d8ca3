"""The pass with kernels, in their interpreter, beside the pass with matrices."""

import pytest
import torch
from conformance import tiny_models

from papa_lightning.attention import DynamicAttention
from papa_lightning.attention.functional import apply_attention
from papa_lightning.calibration import AttentionAverages, gather
from papa_lightning.calibration import averages as averages_module
from papa_lightning.encoders import Packing, SupportedEncoder

pytest.importorskip("triton")
assert_close = torch.testing.assert_close


def use_kernels(monkeypatch):
    monkeypatch.setattr(averages_module, "usable", lambda *tensors: True)


def make_batch(name):
    """Padding at the right, at the left, and holes where the family takes them."""
    whole = tiny_models.make_inputs(name, batch=2, padded=False, dtype=torch.float32)
    order = torch.arange(whole["input_ids"].shape[1])
    middle = order > 0 if name in ("gpt2", "modernbert", "llama") else order % 4 != 1
    return {**whole, "attention_mask": torch.stack([order < 7, middle]).long()}


@pytest.mark.parametrize(
    ("name", "packing"),
    [
        ("bert", True),
        ("gpt2", False),
        ("gpt2", True),
        ("modernbert", False),
        ("modernbert", True),
        ("t5", True),
        ("deberta-v2-own", False),
        ("llama", False),
    ],
)
def test_sums_are_those_of_matrices(name, packing, monkeypatch):
    model = SupportedEncoder.find(tiny_models.plain(name, dtype=torch.float32)).model
    batch = make_batch(name)
    length = batch["input_ids"].shape[1]
    right = gather(model, [batch], length + 1, packing=Packing(packing))
    use_kernels(monkeypatch)
    monkeypatch.setattr(AttentionAverages, "add_rows", None)
    found = gather(model, [batch], length + 1, packing=Packing(packing))
    assert_close(found.sums, right.sums, atol=1e-6, rtol=1e-5)
    assert_close(found.squares, right.squares, atol=1e-6, rtol=1e-5)
    assert torch.equal(found.pair_counts, right.pair_counts)


def test_sums_on_another_device_are_made_from_rows(monkeypatch):
    """Of an encoder on several GPUs, whose layers are not all where the sums are."""
    use_kernels(monkeypatch)
    monkeypatch.setattr("papa_lightning.kernels.sums.mixing.mix_and_add_attention", None)
    query, key, value = torch.rand(3, 1, 1, 4, 2).unbind()
    attention = DynamicAttention(query, key, None, 1.0)
    mixed = AttentionAverages(1, 1, 4, device="meta").mix(0, attention, value)
    assert_close(mixed, apply_attention(attention.matrices(), value))


def test_a_mask_is_counted_where_the_sums_are():
    averages = AttentionAverages(1, 1, 3, device="meta")
    averages.add_mask(torch.tensor([[1, 0]]))
    assert averages.pair_counts.is_meta


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
def test_a_compiled_encoder_has_the_kernels_in_its_graph(monkeypatch):
    model, batch = tiny_models.build("bert", dtype=torch.float32, num_hidden_layers=1), make_batch("bert")
    right = gather(model, [batch], 10, packing=Packing(False))
    use_kernels(monkeypatch)
    model.compile(backend="aot_eager", fullgraph=True)
    found = gather(model, [batch], 10, packing=Packing(False))
    assert_close(found.sums, right.sums, atol=1e-6, rtol=1e-5)
    assert_close(found.squares, right.squares, atol=1e-6, rtol=1e-5)
