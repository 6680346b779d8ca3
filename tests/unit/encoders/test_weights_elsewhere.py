"""Weights that accelerate brings for each forward, those that are yet to be loaded, and quantised ones."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from conformance.tiny_models import CASES, build, make_constants, make_inputs
from torch.testing import assert_close

from papa_lightning import calibrate, swap_attention
from papa_lightning.errors import PapaError


def hidden(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize("name", ["bert", "albert", "gpt2", "llama", "modernbert"])
@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_offloaded(name, kind):
    model, inputs, constants = build(name, dtype=torch.float32), make_inputs(name), make_constants(name)
    heads = [(0, 0), (1, 1), (1, 2)] if kind == "constant" else "all"
    expected = calibrate(model, [inputs], CASES[name].length)
    other = hidden(swap_attention(copy.deepcopy(model), kind, constants=constants, heads=heads), inputs)
    cpu_offload(model, execution_device="cpu")
    assert_close(calibrate(model, [inputs], CASES[name].length).values, expected.values)
    real = inputs["attention_mask"].bool()
    found = hidden(swap_attention(model, kind, constants=constants, heads=heads), inputs)
    assert_close(found[real], other[real])


def test_offloaded_where_another_forward_runs():
    model = build("deberta", dtype=torch.float32)
    cpu_offload(model, execution_device="cpu")
    with pytest.raises(PapaError, match="has a forward that another library gave it"):
        swap_attention(model, "constant", constants=make_constants("deberta"))


def test_weights_that_are_yet_to_come():
    model, inputs = build("bert").to("meta"), make_inputs("bert")
    for use in (
        lambda: swap_attention(model, "constant", constants=make_constants("bert")),
        lambda: calibrate(model, [inputs], 10),
    ):
        with pytest.raises(PapaError, match=r"has no weights yet \(device meta\)"):
            use()


@pytest.mark.parametrize("heads", ["all", [(0, 1)]])
@pytest.mark.parametrize("first", ["swap", "quantise"])
def test_dynamically_quantised(heads, first):
    model, inputs, constants = build("bert", dtype=torch.float32), make_inputs("bert"), make_constants("bert")
    expected = hidden(swap_attention(copy.deepcopy(model), "constant", constants=constants, heads=heads), inputs)

    def quantise(model):
        return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)

    if first == "swap":
        model = quantise(swap_attention(model, "constant", constants=constants, heads=heads))
    else:
        model = swap_attention(quantise(model), "constant", constants=constants, heads=heads)
    assert float((hidden(model, inputs) - expected).abs().mean()) < 0.1
