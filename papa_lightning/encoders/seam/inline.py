"""The other seam: families that compute attention inside their module, with no interface to dispatch through."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from papa_lightning.encoders.seam.layer import attend, heads_of, is_stock, layer_of, pick_heads, uses_scores
from papa_lightning.encoders.seam.masks import key_mask
from papa_lightning.encoders.seam.slots import Positions, slots_of
from papa_lightning.errors import UnsupportedEncoderError


class InlineAttention:
    """Base of a subclass of a family's self-attention module whose forward lets the tokens be mixed elsewhere.

    The module that takes the place of the original one shares all that it holds: parameters, submodules, hooks. Its
    forward begins with the original's, for as long as nothing is swapped or observed::

        class MySelfAttention(InlineAttention, TheirSelfAttention):
            def forward(self, hidden_states, attention_mask=None, ...):
                if self.is_stock:
                    return super().forward(hidden_states, attention_mask, ...)
                query, key = self.split_dynamic(self.q(hidden_states)), self.split_dynamic(self.k(hidden_states))
                value = self.split_heads(self.v(hidden_states))
                mixed, weights = self.attend(query, key, value, attention_mask, scaling, dropout, output_attentions)
                ...
    """

    #: Size h of a head; families have it under this name.
    attention_head_size: int
    #: Set by torch.
    training: bool
    #: Whether its encoder hands it what it was told of the positions of its tokens.
    hears_positions: ClassVar[bool] = False

    @classmethod
    def adopt(cls, original: nn.Module) -> nn.Module:
        """A module of this class in the place of an original one, with all that it holds."""
        cls.check(original)
        if "forward" in original.__dict__:
            raise UnsupportedEncoderError(
                f"{type(original).__name__} has a forward that another library gave it (accelerate does so to bring "
                "weights that lie elsewhere), and which would run in the place of ours: swap the encoder before that, "
                "or remove it first (accelerate.hooks.remove_hook_from_module(encoder, recurse=True))."
            )
        module = cast(nn.Module, cls.__new__(cls))
        module.__dict__.update(original.__dict__)
        module._compiled_call_impl = None  # what was compiled in place runs the original
        return module

    @staticmethod
    def release(module: nn.Module, original: nn.Module) -> None:
        """Give an original module back all that it has by now."""
        original.__dict__.update({key: held for key, held in module.__dict__.items() if key != "_compiled_call_impl"})

    @staticmethod
    def check(original: nn.Module) -> None:
        """Refuse a module whose variant of attention has no heads to exchange; the base refuses none.

        Raises:
            UnsupportedEncoderError: Says which variant.
        """

    @property
    def is_stock(self) -> bool:
        """Whether the original forward is right at this moment."""
        return is_stock(cast(nn.Module, self))

    @property
    def dynamic(self) -> tuple[int, ...] | None:
        """The dynamic heads of the layer, or None for all."""
        heads = heads_of(cast(nn.Module, self))
        return None if heads is None else heads.dynamic

    @property
    def uses_scores(self) -> bool:
        """Whether terms of relative positions are of any use to the layer."""
        return uses_scores(cast(nn.Module, self))

    def by_slot(self, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """What an encoder has for the positions (1, 1, T, h), as (B or 1, 1, T, h) by the slots of the tokens.

        Scores depend on differences of relative positions alone, but not every kind of attention does.
        """
        slots = slots_of(key_mask(attention_mask), layer_of(cast(nn.Module, self)).slots)
        return positions if slots is None else positions[0, :, slots.places].transpose(0, 1)

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads x h) as (B, heads, T, h)."""
        return projected.view(*projected.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

    def split_dynamic(self, projected: Tensor) -> Tensor:
        """The same for the dynamic heads only, also of a projection that gives all: an adapter's."""
        split, dynamic = self.split_heads(projected), self.dynamic
        return split if dynamic is None else pick_heads(split, dynamic)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        dropout: nn.Module,
        need_weights: bool,
        position_bias: Tensor | None = None,
        positions: Positions | None = None,
        turn: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the tokens.

        Args:
            query: (B, dynamic heads, T, h).
            key: (B, dynamic heads, T, h).
            value: (B, H, T, h).
            attention_mask: What the encoder hands to its layers.
            scaling: Factor of the scores.
            dropout: The attention dropout of the module.
            need_weights: Also return the attention matrices.
            position_bias: (B or 1, H or dynamic heads, T, T), added to the scores.
            positions: What the encoder was told of the positions of its tokens.
            turn: Which layer runs, in a module that serves several.

        Returns:
            (B, T, H h), and attention matrices (B, H, T, T) or None.
        """
        probability = cast(float, cast(Any, dropout).p) if self.training else 0.0
        mixed, weights = attend(
            cast(nn.Module, self),
            (query, key, value),
            attention_mask,
            scaling,
            probability,
            need_weights,
            position_bias,
            positions,
            turn,
        )
        return mixed.flatten(2), weights


def refuse_variant(module: nn.Module, name: str, remedy: str) -> None:
    """Refuse a variant of attention that an option of the configuration turns on.

    Raises:
        UnsupportedEncoderError: Always.
    """
    raise UnsupportedEncoderError(
        f"the encoder's configuration has {name}, a variant of {type(module).__name__} whose heads cannot be exchanged "
        f"one by one: {remedy}."
    )
