"""A fingerprint of an encoder's weights, to tell whether constants were made with them."""

from __future__ import annotations

import hashlib

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def weights_fingerprint(encoder: PreTrainedModel) -> str | None:
    """SHA-256 over the names, shapes, dtypes and bytes of the parameters that the hidden states depend on.

    The pooler and what a swap added are left out, so an encoder has the same fingerprint with and without a
    task head, swapped or not.

    Args:
        encoder: The bare encoder.

    Returns:
        64 hexadecimal digits; None when this process does not hold the weights: sharded ones, or those yet to be made.
    """
    if any(isinstance(parameter, DTensor) or parameter.is_meta for parameter in encoder.parameters()):
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if name.startswith("pooler.") or ".papa." in name:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
