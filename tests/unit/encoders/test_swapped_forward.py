"""Outputs of swapped encoders against attention written out by hand."""

import copy
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
)
from unit.encoders.tiny_encoders import (
    ALL,
    HEADS,
    HIDDEN,
    LAYERS,
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    build,
    hidden,
    make_constants,
    make_inputs,
    projections,
    run,
    self_attentions,
    written_out,
)

from papa_lightning import AttentionConstants, calibrate, gate_logits, swap_attention
from papa_lightning.attention import ZeroMassWarning, ZeroMassWatch
from papa_lightning.encoders import load_constants
from papa_lightning.encoders.seam.masks import key_mask
from papa_lightning.errors import PapaError

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-10, "rtol": 1e-10}
SELECTIONS = {"all": ALL, "partial": PARTIAL, "one": [(1, 2)], "last_layer": [(2, 0), (2, 1), (2, 2), (2, 3)]}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_constant_heads(model_type, implementation, selection):
    model, inputs = build(model_type, implementation=implementation), make_inputs()
    constants, heads = make_constants(), SELECTIONS[selection]
    with written_out(model, constants, heads, inputs["attention_mask"]):
        expected = hidden(model, inputs)
    plain = hidden(model, inputs)
    swap_attention(model, "constant", constants=constants, heads=heads)
    result = hidden(model, inputs)
    assert_close(result, expected, **EXACT)
    assert not torch.allclose(result[-1], plain[-1], atol=1e-3)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_constant_head(model_type, implementation):
    model, inputs = build(model_type, implementation=implementation), make_inputs()
    plain = hidden(model, inputs)
    swap_attention(model, "constant", constants=make_constants(), heads=[])
    assert torch.equal(hidden(model, inputs), plain)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_gated_heads(model_type, implementation):
    model, inputs = build(model_type, implementation=implementation), make_inputs()
    constants = make_constants()
    gates = torch.randn(LAYERS, HEADS, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for logits in (torch.zeros(LAYERS, HEADS), gates):
        with written_out(model, constants, ALL, inputs["attention_mask"], logits):
            expected = hidden(model, inputs)
        swapped = swap_attention(copy.deepcopy(model), "gated", constants=constants)
        with torch.no_grad():
            for parameter, values in zip(gate_logits(swapped), logits, strict=True):
                parameter.copy_(values)
        assert_close(hidden(swapped, inputs), expected, **EXACT)


@pytest.mark.parametrize("kind", ["constant", "gated"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_no_mask_is_a_mask_of_ones(model_type, kind):
    inputs = {**make_inputs(), "attention_mask": torch.ones(4, LENGTH, dtype=torch.int64)}
    model = swap_attention(build(model_type), kind, constants=make_constants())
    assert_close(hidden(model, {"input_ids": inputs["input_ids"]}), hidden(model, inputs), **EXACT)


@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padding_does_not_reach_real_tokens(model_type, kind):
    short = {"input_ids": make_inputs(length=6)["input_ids"], "attention_mask": torch.ones(4, 6, dtype=torch.int64)}
    padded = {
        "input_ids": torch.cat([short["input_ids"], torch.full((4, 4), model_pad(model_type))], dim=1),
        "attention_mask": torch.cat([short["attention_mask"], torch.zeros(4, 4, dtype=torch.int64)], dim=1),
    }
    heads = PARTIAL if kind == "partial" else "all"
    model = swap_attention(
        build(model_type), "gated" if kind == "gated" else "constant", constants=make_constants(), heads=heads
    )
    assert_close(hidden(model, padded)[:, :, :6], hidden(model, short), **EXACT)
    rows = hidden(model, {name: tensor[1:2] for name, tensor in padded.items()})  # a batch of one
    assert_close(rows, hidden(model, padded)[:, 1:2], **EXACT)


def model_pad(model_type):
    return build(model_type, layers=1).config.pad_token_id


@pytest.mark.parametrize("length", [1, 2, LENGTH - 1])
def test_shorter_batches_use_the_corner_of_the_constants(length):
    model, inputs = build(), make_inputs(length=max(length, 1))
    inputs["attention_mask"][:, 0] = 1
    constants = make_constants()
    with written_out(model, constants, PARTIAL, inputs["attention_mask"]):
        expected = hidden(model, inputs)
    swap_attention(model, "constant", constants=constants, heads=PARTIAL)
    assert_close(hidden(model, inputs), expected, **EXACT)


@pytest.mark.parametrize("heads", ["all", [(2, 1)]])
def test_longer_batches_are_refused(heads):
    model = swap_attention(build(), "constant", constants=make_constants(), heads=heads)
    with pytest.raises(PapaError, match=r"12 tokens long.*max_length 10"):
        run(model, make_inputs(length=12))
    assert run(model, make_inputs()).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_attention_matrices_on_request(model_type, kind):
    model, inputs = build(model_type, implementation="eager"), make_inputs()
    constants, mask = make_constants(), inputs["attention_mask"]
    heads = PARTIAL if kind == "partial" else ALL
    gates = torch.zeros(LAYERS, HEADS) if kind == "gated" else None
    with written_out(model, constants, heads, mask, gates):
        expected = run(model, inputs, output_attentions=True)
    assert len(expected.attentions) == LAYERS
    swap_attention(model, "gated" if gates is not None else "constant", constants=constants, heads=heads)
    result = run(model, inputs, output_attentions=True)
    assert_close(torch.stack(result.attentions), torch.stack(expected.attentions), **EXACT)
    assert_close(result.last_hidden_state, expected.last_hidden_state, **EXACT)
    assert_close(hidden(model, inputs)[-1], expected.last_hidden_state, **EXACT)


def test_attention_matrices_asked_for_in_the_configuration():
    model, inputs = build(implementation="eager"), make_inputs()
    swap_attention(model, "constant", constants=make_constants())
    model.config.output_attentions = True
    assert torch.stack(run(model, inputs).attentions).shape == (LAYERS, 4, HEADS, LENGTH, LENGTH)


@pytest.mark.parametrize(
    "auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForMaskedLM]
)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_task_heads(model_type, auto):
    model, inputs = build(model_type, auto=auto), make_inputs()
    constants = make_constants()
    with written_out(model, constants, PARTIAL, inputs["attention_mask"]):
        expected = run(model, inputs).logits
    assert swap_attention(model, "constant", constants=constants, heads=PARTIAL) is model
    assert_close(run(model, inputs).logits, expected, **EXACT)


class ProjectionSpy:
    """Counts output rows of every linear product whose weight lies in a query or key projection."""

    def __init__(self, monkeypatch, model):
        self.rows = {}
        storages = {
            projection.weight.untyped_storage().data_ptr(): (layer, name)
            for layer, module in enumerate(self_attentions(model))
            for name, projection in zip("qkv", projections(module), strict=True)
        }
        stock = torch.nn.functional.linear

        def spy(hidden_states, weight, bias=None):
            if place := storages.get(weight.untyped_storage().data_ptr()):
                self.rows[place] = self.rows.get(place, 0) + weight.shape[0]
            return stock(hidden_states, weight, bias)

        monkeypatch.setattr(torch.nn.functional, "linear", spy)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_only_dynamic_heads_get_queries_and_keys(model_type, monkeypatch):
    model = build(model_type)
    heads = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]  # the last of layer 1: values of others would be copied
    swap_attention(model, "constant", constants=make_constants(), heads=heads)
    spy = ProjectionSpy(monkeypatch, model)
    run(model, make_inputs())
    width = HIDDEN // HEADS
    assert spy.rows == {
        (0, "v"): HIDDEN,
        (1, "q"): 2 * width,
        (1, "k"): 2 * width,
        (1, "v"): HIDDEN,
        (2, "q"): HIDDEN,
        (2, "k"): HIDDEN,
        (2, "v"): HIDDEN,
    }


def test_arithmetic_saved():
    """Queries, keys and the scores of all heads go; what constant heads add is the product of their masses."""
    model, inputs = build(dtype=torch.float32, implementation="eager"), make_inputs(batch=8)
    counts = []
    for heads in ([], PARTIAL, "all"):
        swap_attention(model, "constant", constants=make_constants(dtype=torch.float32), heads=heads)
        with FlopCounterMode(display=False) as counter:
            run(model, inputs)
        counts.append(counter.get_total_flops())
    assert counts[0] > counts[1] > counts[2]
    tokens = 8 * LENGTH
    saved = LAYERS * 2 * tokens * HIDDEN * 2 * HIDDEN + LAYERS * 2 * tokens * LENGTH * HIDDEN
    masses = LAYERS * 2 * HEADS * LENGTH * LENGTH * 8
    assert counts[0] - counts[2] == saved - masses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
def test_lower_precision(kind, dtype):
    inputs, constants = make_inputs(), make_constants(dtype=torch.float32)
    heads = PARTIAL if kind == "partial" else "all"
    kind = "gated" if kind == "gated" else "constant"
    exact = swap_attention(build(), kind, constants=constants, heads=heads)
    before = swap_attention(build(dtype=dtype, implementation="eager"), kind, constants=constants, heads=heads)
    after = swap_attention(build(dtype=torch.float32), kind, constants=constants, heads=heads).to(dtype)
    expected = run(exact, inputs).last_hidden_state
    for model in (before, after):
        result = run(model, inputs).last_hidden_state
        assert result.dtype is dtype
        assert {p.dtype for p in model.parameters()} == {dtype}
        error = (result.double() - expected).abs()
        assert error.mean() < {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float32: 1e-5}[dtype]
    attentions = run(before, inputs, output_attentions=True).attentions
    assert torch.stack(attentions).isfinite().all()
    trained = before.train()
    trained.config.attention_probs_dropout_prob = 0.1
    for module in self_attentions(trained):
        module.dropout.p = 0.1
    assert run(trained, inputs).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("kind", ["all", "partial", "gated"])
def test_autocast(kind):
    heads = PARTIAL if kind == "partial" else "all"
    kind, inputs = "gated" if kind == "gated" else "constant", make_inputs()
    model = swap_attention(build(dtype=torch.float32), kind, constants=make_constants(), heads=heads)
    expected = run(model, inputs).last_hidden_state
    for training in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result = run(model.train(training), inputs).last_hidden_state
        assert (result.float() - expected).abs().mean() < 0.05


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize(("kind", "length"), [("all", 6), ("partial", LENGTH), ("gated", 6)])
def test_compiles_without_graph_breaks(kind, length):
    heads = PARTIAL if kind == "partial" else "all"
    model = build(dtype=torch.float32, layers=2)
    heads = [pair for pair in heads if pair[0] < 2] if heads != "all" else heads
    constants = make_constants(layers=2, dtype=torch.float32)
    swap_attention(model, "gated" if kind == "gated" else "constant", constants=constants, heads=heads)
    inputs = make_inputs(length=length)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(run(compiled, inputs).last_hidden_state, run(model, inputs).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_waiting_encoder_is_the_plain_one_until_constants_arrive():
    model, inputs, constants = build(), make_inputs(), make_constants()
    plain = hidden(model, inputs)
    swap_attention(model, "constant", max_length=LENGTH, heads=PARTIAL)
    assert torch.equal(hidden(model, inputs), plain)
    assert hidden(model, make_inputs(length=20)).isfinite().all(), "no limit while nothing is constant"
    load_constants(model, constants)
    expected = swap_attention(build(), "constant", constants=constants, heads=PARTIAL)
    assert torch.equal(hidden(model, inputs), hidden(expected, inputs))


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_implementation_may_change_after_the_swap(kind):
    model, inputs = swap_attention(build(), kind, constants=make_constants(), heads="all"), make_inputs()
    expected = hidden(model, inputs)
    model.set_attn_implementation("eager")
    assert_close(hidden(model, inputs), expected, **EXACT)
    model.set_attn_implementation("sdpa")
    assert torch.equal(hidden(model, inputs), expected)


def test_masks_that_are_no_tensors_are_refused():
    class BlockMask:
        """What flex_attention, set after the swap, would hand over."""

    with pytest.raises(PapaError, match=r"attention_mask is a BlockMask.*set_attn_implementation\(\"sdpa\"\)"):
        key_mask(BlockMask())


UNEVEN = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(4, 1, -1, -1)
BY_HEAD = torch.ones(4, HEADS, LENGTH, LENGTH, dtype=torch.bool).index_fill(1, torch.tensor([1]), False)


@pytest.mark.parametrize("heads", ["all", PARTIAL, [(1, 0)], [(2, 3)]], ids=["all", "partial", "middle", "last"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("uneven", [UNEVEN, BY_HEAD], ids=["by_query", "by_head"])
def test_uneven_masks_are_refused(uneven, implementation, heads):
    model = swap_attention(build(implementation=implementation), "constant", constants=make_constants(), heads=heads)
    mask = uneven if implementation == "sdpa" else torch.zeros(uneven.shape).masked_fill(~uneven, -1e30).double()
    inputs = {**make_inputs(), "attention_mask": mask}
    with pytest.raises(PapaError, match=r"attention_mask of shape .* pass a mask of shape \(batch, length\)"):
        run(model, inputs)


def test_even_masks_of_four_dimensions_are_read():
    model, inputs = swap_attention(build(), "constant", constants=make_constants(), heads=PARTIAL), make_inputs()
    expected = hidden(model, inputs)
    four = inputs["attention_mask"].bool()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    assert_close(hidden(model, {**inputs, "attention_mask": four}), expected, **EXACT)
    additive = torch.zeros(four.shape, dtype=torch.float64).masked_fill(~four, torch.finfo(torch.float64).min)
    assert_close(hidden(model, {**inputs, "attention_mask": additive}), expected, **EXACT)


def test_warning_of_rows_that_calibration_did_not_reach():
    model, inputs = build(), make_inputs()
    short = {"input_ids": inputs["input_ids"][:, :6], "attention_mask": inputs["attention_mask"][:, :6]}
    constants = calibrate(model, [short], max_length=LENGTH)
    swap_attention(model, "constant", constants=constants, heads=[(1, 0), (1, 2), (2, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, short)
        padded = {**inputs, "attention_mask": inputs["attention_mask"] * (torch.arange(LENGTH) < 6)}
        run(model, padded)
    with pytest.warns(ZeroMassWarning, match=r"layer 1, heads \[0, 2\].* positions \[6, 7, 8, 9\]") as caught:
        result = run(model, inputs).last_hidden_state
    assert len(caught) == 1
    assert result.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(model, inputs).last_hidden_state, result)  # reported once


def test_swaps_with_one_watch_warn_once_together():
    model, inputs, watch = build(), make_inputs(), ZeroMassWatch()
    short = {name: tensor[:, :6] for name, tensor in inputs.items()}
    constants = calibrate(model, [short], max_length=LENGTH)
    swap_attention(model, "constant", constants=constants, heads=[(0, 1)], watch=watch)
    with pytest.warns(ZeroMassWarning, match=r"layer 0, heads \[1\]"):
        run(model, inputs)
    swap_attention(model, "constant", constants=constants, heads=[(1, 0), (2, 3)], watch=watch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(model, inputs)


def test_constants_of_wide_tensors_are_not_copied_to_other_encoders():
    """Two encoders from one AttentionConstants share nothing: training one leaves the other and the file alone."""
    constants = make_constants()
    before = constants.values.clone()
    one, other = (swap_attention(build(), "constant", constants=constants) for _ in range(2))
    expected = hidden(other, make_inputs())
    with torch.no_grad():
        for module in self_attentions(one):
            module.papa.constants.mul_(0).add_(1)
    assert torch.equal(hidden(other, make_inputs()), expected)
    assert torch.equal(constants.values, before)


def test_single_head_single_layer_single_token():
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = BertModel(config).eval()
    constants = AttentionConstants(torch.ones(1, 1, 1, 1), torch.ones(1, 1))
    inputs = {"input_ids": torch.tensor([[3]])}
    plain = run(model, inputs).last_hidden_state
    swap_attention(model, "constant", constants=constants)
    assert_close(run(model, inputs).last_hidden_state, plain)  # a single token attends to itself either way
