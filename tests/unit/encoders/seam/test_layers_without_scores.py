"""Layers without scores."""

import pytest
import torch

from papa_lightning import swap_attention
from papa_lightning.encoders.seam import layer as layer_module
from papa_lightning.from_scratch import TransformerConfig, TransformerModel


def test_no_mask_of_pairs_is_made_for_them(monkeypatch):
    """It would be (T, T), and take longer than the layer where T is large."""
    config = TransformerConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, causal=True)
    encoder = TransformerModel(config).eval()
    swap_attention(encoder, "aft_simple", max_length=6)
    monkeypatch.setattr(layer_module, "reach_bias", lambda *given: pytest.fail("a mask was made"))
    ids = torch.arange(6)[None]
    assert encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape == (1, 6, 8)
