"""Query and key projections that compute only the heads that need them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention import DynamicHeads
from papa_lightning.attention.heads import select_heads
from papa_lightning.exceptions import UnsupportedEncoderError


class HeadProjection(nn.Linear):
    """A linear layer to H heads that gives the rows of the dynamic heads only.

    It takes the place of the original layer and holds the same parameters under the same names, so the state
    dict and optimizers see no difference.

    Args:
        linear: The original layer, (hidden) to (H x h).
        heads: Shared with the mixer of the layer; tells which heads are dynamic right now.

    Raises:
        UnsupportedEncoderError: When ``linear`` is anything but a plain nn.Linear, e.g. an adapter's layer.
    """

    def __init__(self, linear: nn.Linear, heads: DynamicHeads) -> None:
        self.check(linear)
        nn.Module.__init__(self)  # nn.Linear.__init__ would allocate weights that are thrown away at once
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.heads = heads
        self.train(linear.training)
        self._original = (linear,)  # in a tuple, so that it is no submodule and has no keys

    @staticmethod
    def check(linear: nn.Module) -> None:
        """Refuse what cannot be cut by rows.

        Raises:
            UnsupportedEncoderError: When ``linear`` is not a plain nn.Linear.
        """
        if type(linear) is not nn.Linear:
            raise UnsupportedEncoderError(
                f"the query or key projection of the encoder is a {type(linear).__name__}, not a plain nn.Linear: swap "
                "the attention of the plain encoder, before adapters or quantisation change its layers."
            )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Project to the dynamic heads.

        Args:
            hidden_states: (B, T, hidden).

        Returns:
            (B, T, dynamic heads x h); with no dynamic head an empty tensor, and nothing is computed.
        """
        if self.heads.all_dynamic:
            return F.linear(hidden_states, self.weight, self.bias)
        dynamic = self.heads.dynamic
        if not dynamic:
            return hidden_states.new_empty(*hidden_states.shape[:-1], 0)
        width = self.out_features // self.heads.num_heads
        weight = select_heads(self.weight, dynamic, dim=0, width=width)
        bias = None if self.bias is None else select_heads(self.bias, dynamic, dim=0, width=width)
        return F.linear(hidden_states, weight, bias)

    def original(self) -> nn.Linear:
        """The layer that this one replaced, with the parameters as they are now (moved, cast or trained)."""
        linear: nn.Linear = self._original[0]
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)
