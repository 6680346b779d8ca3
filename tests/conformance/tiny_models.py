"""Tiny random models, built from configurations alone: at least one case for every family of encoders.

A case is what a family's configuration calls its sizes and its dropout, and what its tokens may attend to. Cases
of families that the package does not know yet wait here unused.
"""

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import MODEL_MAPPING, AutoConfig, AutoModel
from transformers import __version__ as transformers_version
from unit.encoders import tiny_encoders

from papa_lightning import AttentionConstants, calibrate, gate_logits, swap_attention
from papa_lightning.encoders import FAMILIES

LAYERS, HEADS, HIDDEN, LENGTH, VOCABULARY = 3, 4, 32, 10, 40

_BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 37,
    "max_position_embeddings": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DEBERTA = {
    **_BERT,
    "hidden_size": 12 * HEADS,  # transformers scales by a square root in float32: with three terms it is exactly 6
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": "c2p|p2c",
}
_ALBERT = {**_BERT, "embedding_size": 16}
_VISION = {**_BERT, "image_size": 6, "patch_size": 2, "num_channels": 1}
_NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_LLAMA = {name: _BERT[name] for name in list(_BERT)[:6]} | {"num_key_value_heads": 2} | _NO_SPECIAL
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 24,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    **_NO_SPECIAL,
}
_DISTILBERT = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "hidden_dim": 37,
    "max_position_embeddings": 24,
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
_MODERNBERT = {
    **{name: _BERT[name] for name in list(_BERT)[:6]},
    "local_attention": 4,
    "global_attn_every_n_layers": 2,
    **{f"{token}_token_id": number for number, token in enumerate(["pad", "bos", "eos"])},
    **{"cls_token_id": 1, "sep_token_id": 2},
}
_PAPA = {name: _BERT[name] for name in list(_BERT)[:6]}
_PATCHES = {"image_size": 6, "patch_size": 2, "num_channels": 1}
_BART = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "max_position_embeddings": 24,
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    **{f"{part}_attention_heads": HEADS for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 37 for part in ("encoder", "decoder")},
    "dropout": 0.0,
    "attention_dropout": 0.0,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "d_kv": HIDDEN // HEADS,
    "d_ff": 37,
    "num_heads": HEADS,
    "num_layers": LAYERS,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True)
class Case:
    """How to build a model, and what is special about its attention.

    Args:
        model_type: Of the configuration.
        options: Of the configuration.
        dropout: The option that drops attention.
        kind: "text" (bidirectional), "causal", "image", or "text to text", whose encoder is meant.
        reach: Layer -> how far away the keys may stand, for layers with a window.
        layers: How often attention is computed.
        length: T.
        scale: Of the random weights; smaller where queries and keys are not scaled.
        since: The first version of transformers that has the family in the form that is swapped.
        relative: Its positions are relative, so that slots count from the first real token of a sequence.
    """

    model_type: str
    options: Mapping[str, Any]
    dropout: str = "attention_probs_dropout_prob"
    kind: str = "text"
    reach: Mapping[int, int] = field(default_factory=dict)
    layers: int = LAYERS
    length: int = LENGTH
    scale: float = 0.35
    since: str = "5.15"
    relative: bool = False

    @property
    def masked(self) -> bool:
        """Whether its sequences may be padded."""
        return self.kind != "image"

    def may_attend(self) -> torch.Tensor:
        """(L, T, T), the pairs that the documentation of the family allows."""
        distance = torch.arange(self.length)[:, None] - torch.arange(self.length)
        allowed = torch.ones(self.layers, self.length, self.length, dtype=torch.bool)
        for layer, reach in self.reach.items():
            allowed[layer] = distance.abs() <= reach
        return allowed & (distance >= 0) if self.kind == "causal" else allowed


def _llama(model_type: str, reach: Mapping[int, int] | None = None, **options: Any) -> Case:
    return Case(
        model_type, _LLAMA | options, dropout="attention_dropout", kind="causal", reach=reach or {}, relative=True
    )


CASES: dict[str, Case] = {
    **{name: Case(name, _BERT) for name in ("bert", "roberta", "xlm-roberta", "camembert", "bert-generation", "ernie")},
    **{name: Case(name, _BERT, relative=True) for name in ("mpnet", "jina_embeddings_v3", "nomic_bert")},
    "gte": Case("gte", _BERT, relative=True, since="5.18"),
    "esm": Case(
        "esm", {**_BERT, "position_embedding_type": "rotary", "mask_token_id": 1, "pad_token_id": 0}, relative=True
    ),
    "eurobert": Case("eurobert", _LLAMA, dropout="attention_dropout", relative=True),
    "electra": Case("electra", {**_BERT, "embedding_size": 16}),
    "distilbert": Case("distilbert", _DISTILBERT, dropout="attention_dropout"),
    "deberta": Case("deberta", {**_DEBERTA, "max_relative_positions": 6, "type_vocab_size": 0}, relative=True),
    "deberta-v2-shared": Case(
        "deberta-v2",
        {**_DEBERTA, "share_att_key": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm"},
        relative=True,
    ),
    "deberta-v2-own": Case(
        "deberta-v2", {**_DEBERTA, "share_att_key": False, "max_relative_positions": 6}, relative=True
    ),
    "modernbert": Case("modernbert", _MODERNBERT, dropout="attention_dropout", reach={1: 2}, relative=True),
    "albert": Case("albert", _ALBERT),
    "albert-groups": Case(
        "albert", {**_ALBERT, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}, layers=8
    ),
    "roformer": Case("roformer", _BERT, relative=True),
    "roformer-value": Case("roformer", {**_BERT, "rotary_value": True}),
    "vit": Case("vit", _VISION, kind="image", length=10),
    "deit": Case("deit", _VISION, kind="image", length=11),
    "dinov2": Case("dinov2", {**_VISION, "mlp_ratio": 2}, kind="image", length=10, since="5.18"),
    "gpt2": Case("gpt2", _GPT2, dropout="attn_pdrop", kind="causal"),
    "gpt2-scaled": Case(
        "gpt2", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}, dropout="attn_pdrop", kind="causal"
    ),
    "llama": _llama("llama"),
    "qwen2": _llama("qwen2"),
    "qwen2-sliding": _llama("qwen2", {1: 2, 2: 2}, use_sliding_window=True, sliding_window=3, max_window_layers=1),
    "qwen3": _llama("qwen3", head_dim=6),
    "mistral": _llama("mistral", dict.fromkeys(range(LAYERS), 3), sliding_window=4),
    "papa-causal": Case("papa_transformer", _PAPA | {"causal": True}, dropout="attention_dropout", kind="causal"),
    "papa-images": Case("papa_transformer", _PAPA | _PATCHES, dropout="attention_dropout", kind="image", length=9),
    "bart": Case("bart", _BART, dropout="attention_dropout", kind="text to text"),
    "t5": Case("t5", _T5, dropout="dropout_rate", kind="text to text", scale=0.2, relative=True),
}
#: The cases of the families that the package has; those that the installed transformers has, and the others.
_OF_FAMILIES = [name for name, case in CASES.items() if case.model_type in FAMILIES]
NAMES = [name for name in _OF_FAMILIES if Version(transformers_version) >= Version(CASES[name].since)]
LACKING = [name for name in _OF_FAMILIES if name not in NAMES]
MODES = ["all", "partial", "gated"]
#: One for each way in which attention is computed.
IN_ALL_MODES = ["bert", "deberta-v2-shared", "modernbert", "gpt2", "vit", "t5"]


def cases(*kinds, **others):
    """Parametrise a test with the cases of these kinds (none: all cases), times whatever else."""
    names = [name for name in NAMES if not kinds or CASES[name].kind in kinds]
    rows = [(name,) for name in names]
    for values in others.values():
        rows = [(*row, value) for row in rows for value in values]
    return pytest.mark.parametrize(("name", *others), rows + _skipped(kinds, 1 + len(others)))


def _skipped(kinds, columns):
    """A skipped row for each case whose family the installed transformers lacks."""
    lacking = [name for name in LACKING if not kinds or CASES[name].kind in kinds]
    why = {name: f"transformers {transformers_version} is older than {CASES[name].since}" for name in lacking}
    return [pytest.param(n, *[None] * (columns - 1), marks=pytest.mark.skip(reason=why[n])) for n in lacking]


def cases_in_modes(*kinds, **others):
    """Like :func:`cases` with modes, for what depends on the family or on the mode, but hardly on both at once.

    Every family in the mode that has layers of all sorts (constant, mixed, dynamic), and some families in all modes.
    """
    names = [name for name in NAMES if not kinds or CASES[name].kind in kinds]
    rows = [(name, mode) for name in names for mode in MODES if mode == "partial" or name in IN_ALL_MODES]
    for values in others.values():
        rows = [(*row, value) for row in rows for value in values]
    return pytest.mark.parametrize(("name", "mode", *others), rows + _skipped(kinds, 2 + len(others)))


def make_config(name, **options):
    case = CASES[name]
    return AutoConfig.for_model(case.model_type, **(case.options | options))


@cache
def implementations(name):
    """The attention implementations of transformers that a family has, the usual one first."""
    return ["sdpa", "eager"] if MODEL_MAPPING[type(make_config(name))]._supports_sdpa else ["eager"]


IMPLEMENTATIONS = [(name, implementation) for name in NAMES for implementation in implementations(name)]


def build(name, implementation=None, auto=AutoModel, seed=0, dropout=0.0, dtype=torch.float64, **options):
    """A model in eval mode; its weights are large enough for attention that is far from uniform."""
    config = make_config(name, **{CASES[name].dropout: dropout}, **options)
    model = auto.from_config(config, attn_implementation=implementation or implementations(name)[0]).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:  # a table of sines is no weight
                continue
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise * CASES[name].scale if parameter.dim() > 1 else parameter + noise * 0.1)
    return model.to(dtype).eval()


def encoder_of(model):
    """The encoder inside a model, found without the code under test."""
    return model.get_encoder() if model.config.is_encoder_decoder else model.base_model


def encode(model, inputs, **options):
    """The last hidden states, (B, T, hidden)."""
    return encoder_of(model)(**inputs, **options).last_hidden_state


def make_mask(name, batch=4, length=LENGTH):
    """A full row, a short one, one with holes (causal: another short one), and one that is padded on the left."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1::4, length // 2 :] = 0
    mask[2::4, slice(length - 2, None) if CASES[name].kind == "causal" else slice(2, length - 1, 3)] = 0
    mask[3::4, :2] = 0
    return mask


def make_inputs(name, batch=4, length=None, seed=0, padded=True, dtype=torch.float64):
    """A batch of a family: tokens and mask, or images."""
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    if not case.masked:
        sides = (batch, case.options["num_channels"], *[case.options["image_size"]] * 2)
        return {"pixel_values": torch.randn(sides, generator=generator, dtype=torch.float64).to(dtype)}
    length = length or case.length
    tokens = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = make_mask(name, batch, length) if padded else torch.ones(batch, length, dtype=torch.int64)
    return {"input_ids": tokens, "attention_mask": mask}


def two_batches(name):
    """Of different sizes and lengths."""
    return [make_inputs(name), make_inputs(name, batch=3, length=7, seed=1)]


def make_constants(name, seed=0):
    """Random positive constants for every pair, also for those that the family does not allow."""
    case, generator = CASES[name], torch.Generator().manual_seed(seed)
    shape = (case.layers, HEADS, case.length, case.length)
    values = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3 + 0.01
    return AttentionConstants(values, torch.ones(shape[2:]))


def make_gates(name):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(CASES[name].layers, HEADS, generator=generator, dtype=torch.float64)


def heads_of(name, mode):
    """Some heads of some layers: neighbours and strangers, all, none; in a fourth layer a single one. Or all heads."""
    pairs = [(layer, head) for layer in range(CASES[name].layers) for head in range(HEADS)]
    if mode != "partial":
        return pairs
    some = {0: (0, 2, 3), 1: range(HEADS), 3: (1,)}
    return [(layer, head) for layer, head in pairs if head in some.get(layer, ())]


@cache
def plain(name, implementation=None, dtype=torch.float64):
    """A shared model: copy it before you change it."""
    return build(name, implementation, dtype=dtype)


def swap(name, model, mode, constants=None):
    """Swap a model in place; "none" has no constant heads, "gated" gates that differ."""
    kind, heads = ("gated", "all") if mode == "gated" else ("constant", [] if mode == "none" else heads_of(name, mode))
    swap_attention(model, kind, constants=constants or make_constants(name), heads=heads)
    if mode == "gated":
        with torch.no_grad():
            for parameter, values in zip(gate_logits(model), make_gates(name), strict=True):
                parameter.copy_(values)
    return model


def swapped(name, mode, implementation=None):
    """A copy of the shared model of a case, swapped."""
    return swap(name, copy.deepcopy(plain(name, implementation)), mode)


def calibrated(name, model):
    """The constants of :func:`two_batches`."""
    return calibrate(model, two_batches(name), max_length=CASES[name].length)


def saved(content):
    """A file in memory."""
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def snapshot(model):
    """All of a model that an undone swap must leave as it was."""
    hooks = [(list(module._forward_pre_hooks), list(module._forward_hooks)) for module in model.modules()]
    return {**tiny_encoders.snapshot(model), "hooks": hooks}
