"""Token types are given only to encoders with segment embeddings."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    FunnelBaseModel,
    FunnelConfig,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
    XLMConfig,
    XLMModel,
    XLNetConfig,
    XLNetModel,
)

from papa_lightning.encoders import accepted_inputs

BERT = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
GPT2 = {"vocab_size": 9, "n_embd": 8, "n_layer": 1, "n_head": 2}
XLNET = {"vocab_size": 9, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 8}
XLM = {"vocab_size": 9, "emb_dim": 8, "n_layers": 1, "n_heads": 2}
FUNNEL = {"vocab_size": 9, "block_sizes": [1], "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 8}


@pytest.mark.parametrize(
    ("model", "taken"),
    [
        (lambda: BertModel(BertConfig(**BERT)), True),
        (lambda: RobertaModel(RobertaConfig(**BERT, type_vocab_size=1)), False),
        (lambda: GPT2Model(GPT2Config(**GPT2)), False),
        (lambda: XLMModel(XLMConfig(**XLM)), False),
        (lambda: XLNetModel(XLNetConfig(**XLNET)), True),
        (lambda: FunnelBaseModel(FunnelConfig(**FUNNEL)), True),
    ],
    ids=["bert", "roberta", "gpt2", "xlm", "xlnet", "funnel"],
)
def test_token_types_are_for_encoders_that_tell_segments_apart(model, taken):
    encoder = model()
    assert ("token_type_ids" in accepted_inputs(encoder)) is taken


def test_gpt2_would_take_token_types_for_words():
    encoder = GPT2Model(GPT2Config(**GPT2)).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        plain, typed = (encoder(ids, **more)[0] for more in ({}, {"token_type_ids": torch.zeros_like(ids)}))
    assert not torch.allclose(plain, typed)
