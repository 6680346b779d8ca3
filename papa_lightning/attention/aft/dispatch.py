"""Attention-free mixing by the kernels for GPUs."""

from typing import Any

from torch import Tensor


def fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, **options: Any) -> Tensor:
    """Mixed values, of tensors for which kernels are usable; see `papa_lightning.kernels.aft.mixing`."""
    from papa_lightning.kernels.aft.mixing import attention_free_mixing  # imports Triton, which is only where GPUs are

    return attention_free_mixing(query, key, value, mask, causal, **options)
