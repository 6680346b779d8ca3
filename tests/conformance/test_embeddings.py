"""Embeddings of every family: packed, over whole batches or all rows at once, they are those of the padded batch."""

import pytest
import torch
from conformance.test_moved_tokens import MOVABLE
from conformance.tiny_models import encoder_of, swapped, two_batches

from papa_lightning.embeddings import Embedder, pool
from papa_lightning.encoders import Packing


@pytest.mark.parametrize("name", MOVABLE)
def test_packing_changes_no_embedding(name):
    model = swapped(name, "partial")
    batches = two_batches(name)
    with torch.no_grad():
        states = [encoder_of(model)(**batch).last_hidden_state for batch in batches]
    for pooling in ("mean", "class_token", "last_token"):
        masks = [batch["attention_mask"] for batch in batches]
        wanted = torch.cat([pool(pooling, own, mask) for own, mask in zip(states, masks, strict=True)]).float()
        found = Embedder(model, pooling, normalize=False, packing=Packing(tokens_per_batch=12)).embed_rows(batches)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
