"""The registry of families: its page in the documentation, and encoders of other people."""

import copy
import re
import runpy
import sys
import types
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from unit.encoders.tiny_encoders import HEADS, HIDDEN, LAYERS, LENGTH, make_inputs, randomize, snapshot

from papa_lightning import PapaError, calibrate, restore_attention, swap_attention
from papa_lightning.encoders import FAMILIES, EncoderFamily, find_encoder, is_supported, register_family
from papa_lightning.errors import UnsupportedEncoderError

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "encoders.md"
TABLE = runpy.run_path(str(ROOT / "tools" / "make_registry_tables.py"))
PAIRS = [(0, 1), (1, 0), (1, 1)]


@pytest.fixture(autouse=True)
def registry():
    """The registry, as it was before a test when the next one comes."""
    before = dict(FAMILIES)
    yield FAMILIES
    vars(FAMILIES).pop("_offered", None)  # entry points of the test
    FAMILIES.clear()
    FAMILIES.update(before)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    scores = query @ key.transpose(2, 3) * scaling
    attention = torch.softmax(scores if attention_mask is None else scores + attention_mask, dim=-1)
    return (nn.functional.dropout(attention, dropout, module.training) @ value).transpose(1, 2), attention


class MyConfig(PretrainedConfig):
    model_type = "my-encoder"


class MyInlineConfig(PretrainedConfig):
    model_type = "my-inline-encoder"


class _Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.attention_head_size = HIDDEN // HEADS
        self.to_query, self.to_key, self.to_value, self.to_output = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.dropout = nn.Dropout(0.0)


class MySelfAttention(_Attention):
    """Dispatches through transformers' attention interface."""

    def forward(self, hidden_states, attention_mask=None):
        shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
        projections = (self.to_query, self.to_key, self.to_value)
        parts = [projection(hidden_states).view(shape).transpose(1, 2) for projection in projections]
        attention = ALL_ATTENTION_FUNCTIONS.get(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attention(self, *parts, attention_mask, scaling=self.attention_head_size**-0.5, dropout=0.0)
        return self.to_output(mixed.reshape(hidden_states.shape))


class MyInlineAttention(_Attention):
    """Computes attention itself."""

    def forward(self, hidden_states, attention_mask=None):
        shape = (*hidden_states.shape[:-1], HEADS, self.attention_head_size)
        projections = (self.to_query, self.to_key, self.to_value)
        query, key, value = (one(hidden_states).view(shape).transpose(1, 2) for one in projections)
        mixed, _ = eager_attention_forward(self, query, key, value, attention_mask, self.attention_head_size**-0.5)
        return self.to_output(mixed.reshape(hidden_states.shape))


class MyEncoder(PreTrainedModel):
    config_class = MyConfig
    attention_class = MySelfAttention
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(40, HIDDEN)
        self.layers = nn.ModuleList(self.attention_class(config) for _ in range(LAYERS))
        self.post_init()

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids)
        mask = torch.zeros(attention_mask.shape, dtype=hidden.dtype).masked_fill(attention_mask == 0, -1e30)
        for layer in self.layers:
            hidden = hidden + layer(hidden, mask[:, None, None])
        return BaseModelOutput(last_hidden_state=hidden)


class MyInlineEncoder(MyEncoder):
    config_class = MyInlineConfig
    attention_class = MyInlineAttention


def build(model_class=MyEncoder, implementation="sdpa"):
    config = model_class.config_class(vocab_size=40, hidden_size=HIDDEN, num_attention_heads=HEADS)
    config._attn_implementation = implementation if model_class is MyEncoder else "eager"
    return randomize(model_class(config)).double()


def written_out(encoder, inputs, constants=None):
    """Attention in float64 by its definition, with constants for PAIRS.

    Returns:
        The last hidden states, and the attention matrices (B, L, H, T, T) before anything was exchanged.
    """
    mask, hidden = inputs["attention_mask"].double(), encoder.embedding(inputs["input_ids"])
    pairs, matrices = mask[:, :, None] * mask[:, None, :], []
    for number, layer in enumerate(encoder.layers):
        query, key, value = (
            one(hidden).unflatten(-1, (HEADS, -1)) for one in (layer.to_query, layer.to_key, layer.to_value)
        )
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / (HIDDEN // HEADS) ** 0.5
        attention = torch.softmax(scores.masked_fill(mask[:, None, None] == 0, -1e30), dim=-1)
        matrices.append(attention)
        own = list(attention.unbind(dim=1))
        for _, head in [pair for pair in PAIRS if constants is not None and pair[0] == number]:
            kept = constants[number, head] * pairs
            own[head] = kept / kept.sum(dim=-1, keepdim=True).clamp(min=1e-300)
        mixed = torch.einsum("bhij,bjhd->bihd", torch.stack(own, dim=1), value).flatten(2)
        hidden = hidden + layer.to_output(mixed)
    return hidden, torch.stack(matrices, dim=1)


@torch.no_grad()
def check_constant_heads(encoder, plain, batches, constants, inputs):
    """Averages, constant heads of an encoder swapped with PAIRS, and its restoration, against attention written out."""
    sums = torch.zeros(LAYERS, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    counts = torch.zeros(LENGTH, LENGTH, dtype=torch.float64)
    for batch in batches:
        mask = batch["attention_mask"].double()
        pairs = mask[:, :, None] * mask[:, None, :]
        sums += torch.einsum("blhij,bij->lhij", written_out(plain, batch)[1], pairs)
        counts += pairs.sum(dim=0)
    torch.testing.assert_close(constants.values, sums / counts.clamp(min=1), atol=1e-10, rtol=1e-10)

    real = inputs["attention_mask"].bool()
    found, expected = encoder(**inputs).last_hidden_state, written_out(plain, inputs, constants.values)[0]
    stock = plain(**inputs).last_hidden_state
    torch.testing.assert_close(found[real], expected[real], atol=1e-9, rtol=1e-9)
    assert not torch.allclose(found[real], stock[real], atol=1e-3)
    assert torch.equal(restore_attention(encoder)(**inputs).last_hidden_state, stock)


def blocks(language):
    """The code of this language on the page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_page_has_the_table_of_the_registry():
    with_table, text = TABLE["with_table"], PAGE.read_text()
    assert with_table(text, PAGE.name) == text, "docs/encoders.md is not what the registry says: run `make docs`"


def test_the_table():
    rows = TABLE["families_table"]().splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows] == [f"`{name}`" for name in sorted(FAMILIES)]
    for model_type, row in zip(sorted(FAMILIES), rows, strict=True):
        family = FAMILIES[model_type]
        assert row.split(" | ")[2] == ("all" if family.value else 'all but "folded"')
        assert all(f"`{name}`" in row for name in FAMILIES[model_type].projections)
        assert row.split(" | ")[5].startswith("yes" if family.packs else "no")
    assert all(family.title for family in FAMILIES.values())
    golden = {path.name.split("_")[0] for path in (ROOT / "tests" / "golden" / "data").glob("*-model.safetensors")}
    assert set(TABLE["GOLDEN"]) == golden


def test_a_new_family_gets_a_row(registry):
    register_family("my-encoder", EncoderFamily("MySelfAttention"))
    assert "| my-encoder | `my-encoder` |" in TABLE["families_table"]()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_example_of_the_page(implementation):
    code, plain = blocks("python")[0], build(implementation=implementation)
    assert len(code.splitlines()) < 40
    encoder, batches = copy.deepcopy(plain), [make_inputs(), make_inputs(batch=3, seed=1)]
    before, names = snapshot(encoder), {"encoder": encoder, "batches": batches}
    exec(code, names)
    assert list(names["constants"].values.shape) == [LAYERS, HEADS, LENGTH, LENGTH]
    assert encoder.layers[0].to_query(torch.zeros(1, 1, HIDDEN).double()).shape[-1] == HIDDEN // HEADS * (HEADS - 1)
    check_constant_heads(encoder, plain, batches, names["constants"], make_inputs(seed=2))
    assert snapshot(encoder) == before


def test_the_example_of_inline_attention(monkeypatch):
    package = types.ModuleType("my_package")
    package.MyInlineAttention = MyInlineAttention
    monkeypatch.setitem(sys.modules, "my_package", package)
    exec(blocks("python")[1], {"__name__": "example"})
    plain, batches = build(MyInlineEncoder), [make_inputs(), make_inputs(batch=3, seed=1)]
    encoder = copy.deepcopy(plain)
    before, constants = snapshot(encoder), calibrate(encoder, batches, max_length=LENGTH)
    assert snapshot(encoder) == before
    swap_attention(encoder, "constant", constants=constants, heads=PAIRS)
    assert encoder.layers[0].to_query(torch.zeros(1, 1, HIDDEN).double()).shape[-1] == HIDDEN // HEADS * (HEADS - 1)
    check_constant_heads(encoder, plain, batches, constants, make_inputs(seed=2))
    assert snapshot(encoder) == before


def my_entry_point(monkeypatch, family):
    """Let the entry point of the page's pyproject.toml be installed, its value this family."""
    group, name, value = re.search(r'entry-points\."(.*)"\]\n(\S+) = "(.*?)"', blocks("toml")[0]).groups()
    package = types.ModuleType("my_package")
    package.FAMILY = family
    monkeypatch.setitem(sys.modules, "my_package", package)
    installed = EntryPoints([EntryPoint(name, value, group), EntryPoint("other", "not_there:FAMILY", group)])
    monkeypatch.setattr("papa_lightning.registry.entry_points", installed.select)
    vars(FAMILIES).pop("_offered", None)


def test_a_family_of_an_installed_package(monkeypatch, registry):
    encoder = build()
    assert not is_supported(encoder)
    exec(blocks("python")[0].partition("constants = ")[0], {})
    family = registry.pop("my-encoder")
    my_entry_point(monkeypatch, family)
    assert find_encoder(encoder) is encoder
    assert registry["my-encoder"] is family
    constants, plain = calibrate(encoder, [make_inputs()], max_length=LENGTH), copy.deepcopy(encoder)
    swap_attention(encoder, "constant", constants=constants, heads=PAIRS)
    check_constant_heads(encoder, plain, [make_inputs()], constants, make_inputs(seed=2))


def test_an_entry_point_that_is_no_family(monkeypatch, registry):
    my_entry_point(monkeypatch, "MySelfAttention")
    with pytest.raises(PapaError, match="family 'my-encoder' is registered as 'MySelfAttention'"):
        find_encoder(build())


def test_an_unknown_type():
    with pytest.raises(UnsupportedEncoderError, match=r"unknown type 'my-encoder'.*register_family") as caught:
        swap_attention(build(), "constant", max_length=LENGTH)
    assert ", ".join(sorted(FAMILIES)) in str(caught.value)


def test_a_family_whose_module_is_not_there():
    register_family("my-encoder", EncoderFamily("YourSelfAttention"))
    with pytest.raises(UnsupportedEncoderError, match=r"'my-encoder', but has no YourSelfAttention module"):
        swap_attention(build(), "constant", max_length=LENGTH)


@pytest.mark.parametrize(
    "arguments", [(3, EncoderFamily("A")), (None, EncoderFamily("A")), ("mine", "A"), ("mine", EncoderFamily)]
)
def test_wrong_arguments(arguments, registry):
    before = dict(registry)
    with pytest.raises(PapaError, match=r"family .* is registered as .*, which cannot be"):
        register_family(*arguments)
    assert registry == before


def test_a_family_is_registered_again(registry):
    other = EncoderFamily("BertSelfAttention")
    register_family("bert", other)
    assert registry["bert"] is other
