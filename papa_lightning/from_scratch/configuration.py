"""Configuration of the small Transformer."""

from typing import Any

from transformers import PretrainedConfig

from papa_lightning.errors import PapaError

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")


class TransformerConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a :class:`TransformerModel`.

    The number of heads changes neither the number of parameters nor that of multiply-accumulates: h = d / H.

    Args:
        vocab_size: V, the number of tokens; not used for images.
        hidden_size: d, the width of the hidden states.
        num_hidden_layers: L, the number of layers.
        num_attention_heads: H, the number of heads, a divisor of d.
        intermediate_size: Width of the feed-forward layers; None takes 4 d.
        max_position_embeddings: The longest sequence; for images the number of patches, whatever is given.
        causal: Whether a token sees itself and earlier tokens only.
        dropout: Share of each sublayer's output, and of the embeddings, that training sets to zero.
        attention_dropout: Share of the attention weights that training sets to zero.
        image_size: (height, width) of images in pixels, one number for squares; None: the model takes tokens.
        patch_size: Side of a patch in pixels; each patch is a token, and without a class token they are a grid.
        num_channels: Channels of the images.
        layer_norm_eps: Constant added to variances by the layer norms.
        initializer_range: Standard deviation of the initial weights.
        pad_token_id: Padding token of the tokenizer; the model itself reads the mask.
        kwargs: Arguments of every configuration of transformers.

    Raises:
        PapaError: For sizes that do not go together.

    Example:
        >>> TransformerConfig(image_size=8, patch_size=2, hidden_size=16, num_attention_heads=2).grid
        (4, 4)
    """

    model_type = "papa_transformer"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 256,
        causal: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        image_size: int | tuple[int, int] | list[int] | None = None,
        patch_size: int = 1,
        num_channels: int = 1,
        layer_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.max_position_embeddings = num_attention_heads, max_position_embeddings
        self.intermediate_size = 4 * hidden_size if intermediate_size is None else intermediate_size
        self.causal, self.dropout, self.attention_dropout = causal, dropout, attention_dropout
        self.image_size = [image_size, image_size] if isinstance(image_size, int) else image_size
        self.patch_size, self.num_channels = patch_size, num_channels
        self.layer_norm_eps, self.initializer_range = layer_norm_eps, initializer_range
        self.pad_token_id = pad_token_id
        self._check_sizes()
        if self.grid is not None:
            self.max_position_embeddings = self.grid[0] * self.grid[1]
        super().__init__(**kwargs)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patches in a column and in a row of an image; None for tokens."""
        if self.image_size is None:
            return None
        height, width = self.image_size
        return height // self.patch_size, width // self.patch_size

    def _check_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PapaError(f"{name} is {value!r}, but must be a whole number, at least 1.")
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.image_size is None:
            return
        if self.patch_size < 1 or any(side < 1 or side % self.patch_size for side in self.image_size):
            raise PapaError(
                f"patch_size is {self.patch_size}, but image_size is {tuple(self.image_size)}: pass a side that "
                "divides both."
            )


def check_heads(hidden_size: int, heads: int) -> None:
    """Refuse a number of heads that does not divide the width; the message has the numbers that do.

    Example:
        >>> check_heads(8, 3)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: the number of heads is 3, but hidden_size is 8: choose from 1, 2, 4, 8.
    """
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or hidden_size % heads:
        divisors = [str(number) for number in range(1, hidden_size + 1) if hidden_size % number == 0]
        raise PapaError(
            f"the number of heads is {heads!r}, but hidden_size is {hidden_size}: choose from {', '.join(divisors)}."
        )
