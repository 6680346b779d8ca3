"""The short forward on a GPU: bit for bit that of transformers with the seam."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from papa_lightning import AttentionConstants, swap_attention
from papa_lightning.encoders.seam.short import ShortForward

SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 256, "intermediate_size": 512}
LENGTH = 96


def make(model_type: str, share: float, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, vocab_size=100, max_position_embeddings=128)
    model: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    heads = [(layer, head) for layer in range(3) for head in range(4)]
    chosen = random.Random(0).sample(heads, round(share * len(heads)))
    values = torch.rand(3, 4, LENGTH, LENGTH).softmax(-1)
    constants = AttentionConstants(values, torch.ones(LENGTH, LENGTH))
    swapped: PreTrainedModel = swap_attention(
        model.eval().to(device, dtype), "constant", constants=constants, heads=sorted(chosen)
    )
    return swapped


def batch(device: torch.device, padded: bool) -> dict[str, torch.Tensor]:
    tokens = torch.randint(5, 100, (5, LENGTH), device=device)
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, 40:] = 0
        mask[2, 3:LENGTH:7] = 0
        mask[3, :9] = 0
    return {"input_ids": tokens, "attention_mask": mask}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [("bert", torch.bfloat16), ("bert", torch.float16), ("bert", torch.float32), ("roberta", torch.bfloat16)],
)
def test_the_same_bit_for_bit(
    model_type: str,
    dtype: torch.dtype,
    share: float,
    padded: bool,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, inputs = make(model_type, share, dtype, device), batch(device, padded)
    with torch.inference_mode():
        short = model(**inputs).last_hidden_state
        monkeypatch.setattr(ShortForward, "_mixed", lambda *args: None)
        assert torch.equal(short, model(**inputs).last_hidden_state)
