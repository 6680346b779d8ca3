"""Arguments of the operator of attention-free mixing."""

from typing import NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """Arguments of the operator; see :func:`papa_lightning.kernels.aft.mixing.attention_free_mixing`."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    query_scale: Tensor | None
    query_shift: Tensor | None
    key_scale: Tensor | None
    weight: Tensor | None
    first: int | None
    groups: int
    causal: bool
    summed: bool
    gate: float
