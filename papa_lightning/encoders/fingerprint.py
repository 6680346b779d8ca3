"""A fingerprint of an encoder's weights, to tell whether constants were made with them."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedModel


def weights_fingerprint(encoder: PreTrainedModel) -> str:
    """SHA-256 over the names, shapes, dtypes and bytes of the parameters that the hidden states depend on.

    The pooler and what a swap added are left out, so an encoder has the same fingerprint with and without a
    task head, swapped or not.

    Args:
        encoder: The bare encoder.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if name.startswith("pooler.") or ".papa." in name:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
