"""The seam of families that compute attention inside their module, without transformers' attention interface."""

from typing import ClassVar, cast

from torch import Tensor, nn

from papa_lightning.encoders.seam.layer import attend, heads_of, is_stock, layer_of, pick_heads, uses_scores
from papa_lightning.encoders.seam.masks import key_mask
from papa_lightning.encoders.seam.slots import Positions, slots_of
from papa_lightning.errors import UnsupportedEncoderError

_ORIGINAL = "papa_original"


class InlineAttention(nn.Module):
    """Base of subclasses of a family's self-attention module whose forward hands the mixing of tokens to a mixer.

    The module that replaces the original one shares its parameters, submodules and hooks. While nothing is swapped or
    observed, its forward is the original's::

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
    #: Whether the encoder passes the positions of the tokens on to this module.
    hears_positions: ClassVar[bool] = False

    @staticmethod
    def check(original: nn.Module) -> None:
        """Refuse, with an UnsupportedEncoderError, a variant without exchangeable heads; the base refuses none."""

    @classmethod
    def prepare_encoder(cls, encoder: nn.Module) -> None:
        """Change what the family needs changed around its attention modules; nothing by default."""

    @classmethod
    def reset_encoder(cls, encoder: nn.Module) -> None:
        """Undo :meth:`prepare_encoder`."""

    @property
    def is_stock(self) -> bool:
        """Whether the original forward applies at this moment."""
        return is_stock(self)

    @property
    def dynamic(self) -> tuple[int, ...] | None:
        """The dynamic heads of the layer; None means all."""
        heads = heads_of(self)
        return None if heads is None else heads.dynamic

    @property
    def uses_scores(self) -> bool:
        """Whether the layer uses terms of relative positions."""
        return uses_scores(self)

    def by_slot(self, positions: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Position encodings (1, 1, T, h) in the order of slots, (B or 1, 1, T, h), for kinds without scores."""
        slots = slots_of(key_mask(attention_mask), layer_of(self).slots)
        return positions if slots is None else positions[0, :, slots.places].transpose(0, 1)

    def split_heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads x h) as (B, heads, T, h)."""
        return projected.view(*projected.shape[:-1], -1, self.attention_head_size).transpose(1, 2)

    def split_dynamic(self, projected: Tensor) -> Tensor:
        """Split as :meth:`split_heads`, and select the dynamic heads if the projection (an adapter's) has all heads."""
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
        """Mix the tokens to (B, T, H h), and return that with the attention matrices (B, H, T, T) or None.

        Query and key are (B, dynamic heads, T, h), the value (B, H, T, h), the mask as the encoder gives it, the bias
        of the scores (B or 1, H or dynamic heads, T, T); ``turn`` numbers the layers of a module.
        """
        qkv, rate = (query, key, value), cast(float, dropout.p) if self.training else 0.0
        mixed, weights = attend(self, qkv, attention_mask, scaling, rate, need_weights, position_bias, positions, turn)
        return mixed.flatten(2), weights


def adopt(kind: type[nn.Module], original: nn.Module) -> nn.Module:
    """A module of another class that shares everything with an original one of its base class, and remembers it."""
    refuse_own_forward(original)
    module = kind.__new__(kind)  # __init__ would make weights that are never used
    module.__dict__.update(original.__dict__)
    module.__dict__[_ORIGINAL] = original  # not a submodule: it has no keys
    module._compiled_call_impl = None  # a compiled call runs the original's forward
    return module


def release(module: nn.Module) -> nn.Module:
    """The original of an adopted module, with the parameters, submodules and hooks that the module has by now."""
    original = cast(nn.Module, module.__dict__[_ORIGINAL])
    kept = {name: held for name, held in module.__dict__.items() if name not in (_ORIGINAL, "_compiled_call_impl")}
    original.__dict__.update(kept)
    return original


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, or that of the original in whose place it is."""
    return type(vars(module).get(_ORIGINAL, module))


def refuse_own_forward(module: nn.Module) -> None:
    """Refuse a module whose forward was replaced on the instance, which would run instead of ours."""
    if "forward" in module.__dict__:
        raise UnsupportedEncoderError(
            f"{type(module).__name__} has a forward that another library gave it (accelerate does so to load offloaded "
            "weights), and which would run instead of the swapped one: swap the encoder before that, or remove it "
            "first (accelerate.hooks.remove_hook_from_module(encoder, recurse=True))."
        )
