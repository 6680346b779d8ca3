"""Tiny random encoders of every family, and constant attention written out by hand to compare them with."""

import contextlib
import sys

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModel

from papa_lightning import AttentionConstants

LAYERS, HEADS, HIDDEN, LENGTH = 3, 4, 32, 10
MODEL_TYPES = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert"]
POSITIONS = 24
#: Some heads of some layers: a layer with all, one with neighbours and strangers, one with none.
PARTIAL = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3)]


def make_config(model_type, attention_dropout=0.0, hidden_dropout=0.0, layers=LAYERS, **others):
    if model_type == "distilbert":
        sizes = {"dim": HIDDEN, "n_layers": layers, "n_heads": HEADS, "hidden_dim": 37}
        dropout = {"dropout": hidden_dropout, "attention_dropout": attention_dropout}
    else:
        sizes = {"hidden_size": HIDDEN, "num_hidden_layers": layers, "num_attention_heads": HEADS}
        sizes["intermediate_size"] = 37
        dropout = {"hidden_dropout_prob": hidden_dropout, "attention_probs_dropout_prob": attention_dropout}
    if model_type == "electra":
        sizes["embedding_size"] = 16
    sizes |= {"vocab_size": 40, "max_position_embeddings": POSITIONS}
    return AutoConfig.for_model(model_type, **(sizes | dropout | others))


def randomize(model, seed=0):
    """Weights large enough for attention that is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.35 if parameter.dim() > 1 else 0.1
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def build(model_type="bert", auto=AutoModel, dtype=torch.float64, seed=0, implementation="sdpa", **options):
    model = auto.from_config(make_config(model_type, **options), attn_implementation=implementation)
    return randomize(model, seed).to(dtype)


def make_inputs(batch=4, length=LENGTH, seed=0):
    """A full row, a short one, one with holes, and one whose first tokens are padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[1::4, length // 2 :] = 0
    mask[2::4, 2 : length - 1 : 3] = 0
    mask[3::4, :2] = 0
    return {"input_ids": torch.randint(3, 40, (batch, length), generator=generator), "attention_mask": mask}


def make_constants(length=LENGTH, layers=LAYERS, heads=HEADS, dtype=torch.float64, seed=0, metadata=None):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(layers, heads, length, length, generator=generator, dtype=torch.float64) ** 3 + 0.01
    return AttentionConstants(values.to(dtype), torch.ones(length, length), metadata or {})


def self_attentions(model):
    """The self-attention modules, found without the code under test."""
    return [module for module in model.modules() if type(module).__name__.endswith("SelfAttention")]


def projections(module):
    names = ("q_lin", "k_lin", "v_lin") if hasattr(module, "q_lin") else ("query", "key", "value")
    return [getattr(module, name) for name in names]


@contextlib.contextmanager
def written_out(model, constants, heads, mask, gates=None):
    """Under eager attention, replace the matrices of some heads: mask, normalise, multiply.

    Args:
        model: A plain encoder; afterwards it is plain again.
        constants: Their values are cut to the length of the batch.
        heads: (layer, head) pairs; all others keep softmax(Q K^T).
        mask: (B, T).
        gates: (L, H) logits of a mixture instead of a replacement.
    """
    modules = self_attentions(model)

    def forward(module, query, key, value, attention_mask=None, scaling=None, dropout=0.0, **kwargs):
        layer = next(number for number, one in enumerate(modules) if one is module)
        length = query.shape[2]
        scores = torch.einsum("bhid,bhjd->bhij", query, key) * scaling
        scores = scores.masked_fill(mask[:, None, None, :] == 0, -1e30)
        matrices = torch.softmax(scores, dim=-1)
        for head in range(HEADS):
            if (layer, head) not in heads:
                continue
            pairs = (mask[:, :, None] * mask[:, None, :]).to(matrices.dtype)
            own = constants.values[layer, head, :length, :length].to(matrices.dtype) * pairs
            total = own.sum(-1, keepdim=True)
            own = torch.where(total > 0, own / torch.where(total > 0, total, 1), 0.0)
            gate = 0.0 if gates is None else torch.sigmoid(gates[layer, head])
            matrices = matrices.clone()
            matrices[:, head] = gate * matrices[:, head] + (1 - gate) * own
        matrices = F.dropout(matrices, p=dropout, training=module.training)
        return (matrices @ value).transpose(1, 2).contiguous(), matrices

    source = sys.modules[type(modules[0]).__module__]
    stock, implementation = source.eager_attention_forward, model.config._attn_implementation
    model.set_attn_implementation("eager")
    source.eager_attention_forward = forward
    try:
        yield model
    finally:
        source.eager_attention_forward = stock
        model.set_attn_implementation(implementation)


def snapshot(model):
    """All of a model that a failed or undone swap must leave as it was."""
    return {
        "modules": [(name, type(module), module.training) for name, module in model.named_modules()],
        "identity": [id(module) for module in model.modules()],
        "configs": [id(module.config) for module in model.modules() if hasattr(module, "config")],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "keys": list(model.state_dict()),
        "sums": [float(p.detach().double().sum()) for p in model.parameters()],
        "config": model.config.to_dict(),
        "implementation": model.config._attn_implementation,
        "attributes": [sorted(module.__dict__) for module in model.modules()],
    }


ALL = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


def hidden(model, inputs):
    return run(model, inputs).last_hidden_state[None]
