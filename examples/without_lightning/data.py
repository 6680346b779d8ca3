"""Tiny data and a tiny random model, so that the examples run offline in seconds."""

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification


def make_batches(number: int = 8, size: int = 8, length: int = 12) -> list[dict[str, Tensor]]:
    """Random sentences of 6 to 12 tokens; the label is whether the first token is in the upper half."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(number):
        tokens = torch.randint(1, 40, (size, length), generator=generator)
        ends = torch.randint(6, length + 1, (size, 1), generator=generator)
        mask = (torch.arange(length) < ends).long()
        batches.append({"input_ids": tokens * mask, "attention_mask": mask, "labels": (tokens[:, 0] >= 20).long()})
    return batches


def tiny_classifier() -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=40,
        max_position_embeddings=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    return BertForSequenceClassification(config)
