"""The pass holds some rows of the attention at a time, and never asks the device for an answer."""

import pytest
import torch
from conformance import tiny_models
from torch.utils._python_dispatch import TorchDispatchMode
from unit.encoders.tiny_encoders import HEADS, LENGTH, build, make_inputs

from papa_lightning.calibration import averages as averages_module
from papa_lightning.calibration import gather
from papa_lightning.encoders import Packing


class Watch(TorchDispatchMode):
    """The largest tensor that was made, and how often a value was asked for."""

    def __init__(self):
        super().__init__()
        self.largest, self.asked = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        asking = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
        self.asked += function.name() in asking or "masked_select" in function.name()
        return result


def watched(model, batches, length, packing=False):
    with Watch() as watch:
        gather(model, batches, length, packing=Packing(packing))
    return watch


@pytest.mark.parametrize("name", ["bert", "deberta-v2-shared", "mpnet", "llama"])
def test_pieces_add_up(name, monkeypatch):
    """With padding, a bias of positions, grouped heads, and pieces that do not divide the length."""
    model = tiny_models.plain(name)
    batches = [tiny_models.make_inputs(name, batch=batch) for batch in (4, 2)]
    length = batches[0]["input_ids"].shape[1]
    whole = gather(model, batches, length)
    for size in (1, 3 * 4 * model.config.num_attention_heads * length):  # one row, and three
        monkeypatch.setattr(averages_module, "_ON_CPU", size)
        pieces = gather(model, batches, length)
        torch.testing.assert_close(pieces.sums, whole.sums, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(pieces.squares, whole.squares, atol=1e-10, rtol=1e-10)


def test_no_tensor_is_as_large_as_the_attention_of_a_batch(monkeypatch):
    model, batch = build(dtype=torch.float32), make_inputs(batch=64)
    everything = 64 * HEADS * LENGTH * LENGTH
    assert watched(model, [batch], LENGTH).largest == everything
    monkeypatch.setattr(averages_module, "_ON_CPU", 64 * HEADS * LENGTH)
    others = max(64 * LENGTH * 37, 3 * HEADS * LENGTH * LENGTH)  # inner layer of the encoder; the sums
    assert watched(model, [batch], LENGTH).largest == others < everything
    assert watched(model, [batch], LENGTH, packing=True).largest <= others


@torch.no_grad()
def test_the_pass_asks_for_no_answer_that_the_encoder_does_not_ask_for():
    model, inputs = build(), make_inputs()
    # Of tokens on a CPU the pass asks whether they are in the vocabulary, and transformers whether there is padding.
    embedded = model.embeddings.word_embeddings(inputs["input_ids"])
    batches = [{"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]}] * 3
    with Watch() as plain:
        for batch in batches:
            model(**batch)
    assert watched(model, batches, LENGTH).asked == plain.asked
    assert watched(model, batches, LENGTH, packing=True).asked < 20 * len(batches)  # of tokens, on the CPU
