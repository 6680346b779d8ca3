"""Refusals of swaps: their messages, and encoders unchanged by them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModel,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    BloomConfig,
    DebertaConfig,
    DebertaModel,
)
from unit.encoders.tiny_encoders import (
    HEADS,
    HIDDEN,
    LAYERS,
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    POSITIONS,
    build,
    make_config,
    make_constants,
    make_inputs,
    self_attentions,
    snapshot,
)

from papa_lightning import AttentionConstants, HeadRanking, calibrate, restore_attention, swap_attention
from papa_lightning.encoders import FAMILIES, find_encoder, fits_positions, is_supported, position_limit, select_heads
from papa_lightning.errors import ConstantsFileError, HeadSelectionError, PapaError, UnsupportedEncoderError

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


class AdaptedLinear(nn.Linear):
    """Like an adapter's layer: a subclass that may compute something else."""


REFUSED = {
    "bloom": (
        lambda: AutoModel.from_config(BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2)),
        r"unknown type 'bloom'.*register_family",
    ),
    "bert_decoder": (lambda: BertModel(BertConfig(is_decoder=True, **SIZES)), r"bert made to be a decoder"),
    "bert_lm": (lambda: BertLMHeadModel(BertConfig(is_decoder=True, **SIZES)), r"bert made to be a decoder"),
    "bart_decoder": (
        lambda: BartForCausalLM(BartConfig(vocab_size=40, d_model=32, decoder_layers=1, decoder_attention_heads=2)),
        r"bart made to be a decoder",
    ),
    "linear": (lambda: nn.Linear(3, 3), r"Linear holds no transformers PreTrainedModel"),
    "two": (lambda: nn.ModuleList([build(), build()]), r"ModuleList holds several encoders \(0, 1\)"),
    "none": (lambda: None, r"encoder is a NoneType"),
}
SUPPORTED_IS_LISTED = ("bloom", "bert_decoder", "bert_lm", "bart_decoder")


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_models(name):
    make, message = REFUSED[name]
    model = make()
    keys = list(model.state_dict()) if model is not None else None
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.int64), "attention_mask": torch.ones(1, 4)}
    for attempt in (
        lambda: swap_attention(model, "constant", constants=make_constants()),
        lambda: swap_attention(model, "gated", max_length=4),
        lambda: restore_attention(model),
        lambda: calibrate(model, [batch], max_length=4),
        lambda: find_encoder(model),
        lambda: make_constants().check(model),
    ):
        with pytest.raises(UnsupportedEncoderError, match=message) as caught:
            attempt()
        if name in SUPPORTED_IS_LISTED:
            assert all(model_type in str(caught.value) for model_type in FAMILIES)
    assert not is_supported(model)
    assert model is None or list(model.state_dict()) == keys


def test_encoder_whose_attention_was_replaced():
    model = build()
    for layer in model.encoder.layer:
        layer.attention.self = nn.Identity()
    with pytest.raises(UnsupportedEncoderError, match=r"has no BertSelfAttention module"):
        swap_attention(model, "constant", constants=make_constants())


def test_wrapped_for_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ddp", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(build())
        for model in (wrapped, nn.ModuleList([wrapped])):
            with pytest.raises(UnsupportedEncoderError, match=r"is in a DistributedDataParallel.*before it is wrapped"):
                swap_attention(model, "constant", constants=make_constants())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("heads", ["all", PARTIAL])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_projection_of_another_kind_computes_all_heads(model_type, number, heads):
    """An adapter's or a quantised layer cannot be cut by rows, so it stays, and the heads are picked from it."""
    model, other = build(model_type), build(model_type)
    module = self_attentions(other)[-1]
    name = ("q_lin", "k_lin")[number] if model_type == "distilbert" else ("query", "key")[number]
    adapted = AdaptedLinear(HIDDEN, HIDDEN).double()
    adapted.load_state_dict(getattr(module, name).state_dict())
    setattr(module, name, adapted)
    with torch.no_grad():
        plain = other(**make_inputs()).last_hidden_state
        results = [
            swap_attention(one, "constant", constants=make_constants(), heads=heads)(**make_inputs()).last_hidden_state
            for one in (model, other)
        ]
        torch.testing.assert_close(*results, atol=1e-12, rtol=0)
        assert getattr(module, name) is adapted
        assert torch.equal(restore_attention(other)(**make_inputs()).last_hidden_state, plain)


def test_talking_heads():
    options = {
        "talking_head": True,
        "relative_attention": True,
        "pos_att_type": ["c2p"],
        "position_biased_input": False,
    }
    model = DebertaModel(DebertaConfig(**SIZES, **options))
    before = snapshot(model)
    with pytest.raises(UnsupportedEncoderError, match=r"has talking_head, a variant of DisentangledSelfAttention"):
        swap_attention(model, "constant", max_length=4)
    assert snapshot(model) == before


def test_implementation_whose_masks_cannot_be_read():
    model = build()
    model.config._attn_implementation_internal = "flex_attention"
    before = snapshot(model)
    with pytest.raises(UnsupportedEncoderError, match=r"implementation is 'flex_attention'.*set_attn_implementation"):
        swap_attention(model, "constant", constants=make_constants())
    assert snapshot(model) == before


RANKING = HeadRanking([(layer, head) for layer in range(LAYERS) for head in range(HEADS)])
C = make_constants()
WRONG = {
    "kind": ({"kind": "frozen"}, PapaError, r"kind is 'frozen', but must be one of 'constant', 'gated'"),
    "no_constants": ({"constants": None}, PapaError, r"constants is None: pass .* or max_length"),
    "path": ({"constants": "constants.safetensors"}, PapaError, r"constants is a str.*AttentionConstants.load"),
    "tensor": ({"constants": C.values}, PapaError, r"constants is a Tensor"),
    "length": ({"max_length": 9}, ConstantsFileError, r"made with max_length 10, but max_length is 9"),
    "layers": ({"constants": make_constants(layers=2)}, ConstantsFileError, r"2 layers of 4 heads.* 3 layers of 4"),
    "heads": ({"constants": make_constants(heads=2)}, ConstantsFileError, r"3 layers of 2 heads.* 3 layers of 4"),
    "positions": ({"constants": make_constants(length=25)}, ConstantsFileError, r"max_length 25.* 24 positions"),
    "architecture": (
        {"constants": make_constants(metadata={"model": {"type": "roberta", "name": "r"}})},
        ConstantsFileError,
        r"another architecture \(type 'roberta', model 'r'\) than the encoder \(type 'bert'\)",
    ),
    "hidden_size": (
        {"constants": make_constants(metadata={"model": {"hidden_size": 768}})},
        ConstantsFileError,
        r"hidden_size 768.*hidden_size 32",
    ),
    "gated_some": (
        {"kind": "gated", "heads": PARTIAL},
        HeadSelectionError,
        r"a gate on every head: pass heads=\"all\"",
    ),
    "gated_none": ({"kind": "gated", "heads": []}, HeadSelectionError, r"a gate on every head"),
    "gated_half": ({"kind": "gated", "heads": 0.5, "ranking": RANKING}, HeadSelectionError, r"a gate on every head"),
    "out_of_layers": (
        {"heads": [(3, 0)]},
        HeadSelectionError,
        r"\(layer 3, head 0\), but the encoder has layers 0 to 2",
    ),
    "out_of_heads": ({"heads": {0: [4]}}, HeadSelectionError, r"\(layer 0, head 4\).* heads 0 to 3"),
    "fraction": ({"heads": 0.5}, HeadSelectionError, r"no ranking says which come first"),
    "small_ranking": (
        {"heads": 0.5, "ranking": HeadRanking([(0, 0), (0, 1)])},
        HeadSelectionError,
        r"ranking has 2 heads, but the encoder has 3 layers of 4 heads",
    ),
    "waiting_zero": ({"constants": None, "max_length": 0}, PapaError, r"max_length is 0, .* from 1 to 24"),
    "waiting_negative": ({"constants": None, "max_length": -1}, PapaError, r"max_length is -1"),
    "waiting_long": ({"constants": None, "max_length": 25}, PapaError, r"max_length is 25, .* from 1 to 24"),
    "waiting_text": ({"constants": None, "max_length": "8"}, PapaError, r"max_length is '8'"),
    "waiting_float": ({"constants": None, "max_length": 8.0}, PapaError, r"max_length is 8.0"),
    "waiting_bool": ({"constants": None, "max_length": True}, PapaError, r"max_length is True"),
}


@pytest.mark.parametrize("swapped_first", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_change_nothing(name, swapped_first):
    options, error, message = WRONG[name]
    model = build()
    if swapped_first:
        swap_attention(model, "constant", constants=make_constants(seed=3), heads=[(0, 1), (2, 2)])
    before = snapshot(model)
    with torch.no_grad():
        expected = model(**make_inputs()).last_hidden_state
    with pytest.raises(error, match=message):
        swap_attention(model, **({"kind": "constant", "constants": C} | options))
    assert snapshot(model) == before
    with torch.no_grad():
        assert torch.equal(model(**make_inputs()).last_hidden_state, expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_position_limit(model_type):
    """RoBERTa and its kin number positions from behind the padding id; one token more must really fail."""
    model = build(model_type, layers=1, dtype=torch.float32)
    limit = position_limit(model)
    assert limit == (POSITIONS - 2 if "bert" in model_type and model_type not in PLAIN else POSITIONS)
    ids = torch.full((1, limit + 1), 5)
    model(input_ids=ids[:, :limit])
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=ids)
    assert fits_positions(model, limit)
    assert fits_positions(model, 1)
    for wrong in (limit + 1, 0, -3, True, 3.0, "3", None):
        assert not fits_positions(model, wrong)


PLAIN = ("bert", "electra", "distilbert")


def test_other_padding_ids_cost_other_positions():
    model = AutoModel.from_config(make_config("roberta", pad_token_id=5, layers=1))
    assert position_limit(model) == POSITIONS - 6


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ("all", [(0, 1, 2), (0, 1, 2)]),
        ([], [(), ()]),
        ({}, [(), ()]),
        ([(1, 2), (0, 1), (1, 0)], [(1,), (0, 2)]),
        ([[1, 2]], [(), (2,)]),
        (((1, 2),), [(), (2,)]),
        ({1: [2, 0]}, [(), (0, 2)]),
        ({"1": [2, 0], 0: (1,)}, [(1,), (0, 2)]),
        ([(np.int64(0), np.int64(1))], [(1,), ()]),
        ({np.int64(1): np.array([2, 0])}, [(), (0, 2)]),
        (np.array([[0, 1], [1, 2]]), [(1,), (2,)]),
        (torch.tensor([[0, 1], [1, 2]]), [(1,), (2,)]),
        (0, [(), ()]),
        (0.0, [(), ()]),
        (1.0, [(0, 1, 2), (0, 1, 2)]),
    ],
)
def test_selection(heads, expected):
    assert select_heads(heads, 2, 3) == expected


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([(2, 0)], r"\(layer 2, head 0\)"),
        ([(0, 3)], r"\(layer 0, head 3\)"),
        ([(-1, 0)], r"\(layer -1, head 0\)"),
        ({0: [-1]}, r"\(layer 0, head -1\)"),
        ([(0, 1), (0, 1)], r"\(0, 1\) more than once"),
        ({0: [1, 1]}, r"\(0, 1\) more than once"),
        ({0: [1], "0": [1]}, r"\(0, 1\) more than once"),
        ("none", r"heads is 'none'"),
        ("", r"heads is ''"),
        (None, r"heads is None"),
        (True, r"heads is True"),
        (False, r"heads is False"),
        (object, r"heads is <class 'object'>"),
        ([0, 1], r"heads is \[0, 1\]"),
        ([(0,)], r"heads is \[\(0,\)\]"),
        ([(0, 1, 2)], r"heads is \[\(0, 1, 2\)\]"),
        ([(0, True)], r"True is not a whole number"),
        ([(0, 1.0)], r"1.0 is not a whole number"),
        ([(0, "1")], r"'1' is not a whole number"),
        (["01"], r"'0' is not a whole number"),
        ([(0, np.True_)], r"np.True_ is not a whole number"),
        (np.array([[0.0, 1.0]]), r"0.0 is not a whole number"),
        ([(0, None)], r"None is not a whole number"),
        ({0: 1}, r"heads is {0: 1}"),
        ({0: "12"}, r"'1' is not a whole number"),
        ({0: [True]}, r"True is not a whole number"),
        ({1.7: [0]}, r"1.7 is not a whole number"),
        ({True: [0]}, r"True is not a whole number"),
        ({None: [0]}, r"None is not a whole number"),
        ({"first": [0]}, r"invalid literal"),
        (1, r"heads is 1, a number or share of heads, but no ranking"),
        (6, r"heads is 6, a number or share of heads, but no ranking"),
        (0.5, r"heads is 0.5, a number or share"),
        (float("nan"), r"heads is nan"),
        (-1, r"heads is -1"),
        (1.5, r"heads is 1.5"),
    ],
)
def test_wrong_selections(heads, message):
    with pytest.raises(HeadSelectionError, match=message):
        select_heads(heads, 2, 3)


FULL = HeadRanking([(1, 1), (0, 2), (1, 0), (0, 0), (1, 2), (0, 1)])


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (0, [(), ()]),
        (0.0, [(), ()]),
        (1, [(), (1,)]),
        (3, [(2,), (0, 1)]),
        (0.5, [(2,), (0, 1)]),
        (1.0, [(0, 1, 2), (0, 1, 2)]),
        (6, [(0, 1, 2), (0, 1, 2)]),
        (1 / 6, [(), (1,)]),
    ],
)
def test_selection_by_ranking(heads, expected):
    assert select_heads(heads, 2, 3, FULL) == expected


@pytest.mark.parametrize(
    ("heads", "ranking", "message"),
    [
        (7, FULL, r"number 7, but the ranking has 6"),
        (-1, FULL, r"number -1"),
        (1.01, FULL, r"share 1.01.*between 0 and 1"),
        (-0.1, FULL, r"share -0.1"),
        (float("nan"), FULL, r"share nan"),
        (float("inf"), FULL, r"share inf"),
        (True, FULL, r"heads is True"),
        (2, HeadRanking([(0, 0)]), r"ranking has 1 heads, but the encoder has 2 layers of 3"),
        (2, HeadRanking([(2, 0), *FULL.heads[1:]]), r"ranking has 6 heads"),
        (2, HeadRanking([*FULL.heads, (2, 0)]), r"ranking has 7 heads"),
        (2, "ranking.json", r"ranking is a str, but must be a HeadRanking.*HeadRanking.load"),
        (0.5, list(FULL.heads), r"ranking is a list"),
    ],
)
def test_wrong_selections_by_ranking(heads, ranking, message):
    with pytest.raises(HeadSelectionError, match=message):
        select_heads(heads, 2, 3, ranking)


def test_constants_of_the_longest_length():
    model = build("roberta")
    limit = position_limit(model)
    swap_attention(model, "constant", constants=make_constants(length=limit))
    with pytest.raises(ConstantsFileError, match=rf"max_length {limit + 1}, but the encoder has {limit} positions"):
        swap_attention(model, "constant", constants=make_constants(length=limit + 1))
    assert isinstance(make_constants(length=LENGTH), AttentionConstants)
