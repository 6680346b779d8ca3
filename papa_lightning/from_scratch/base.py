"""Base of tasks whose encoder may start from random weights."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, cast

from transformers import PreTrainedModel

from papa_lightning.attention import KINDS
from papa_lightning.encoders import swap_attention
from papa_lightning.errors import PapaError
from papa_lightning.from_scratch.configuration import TransformerConfig
from papa_lightning.from_scratch.transformer import TransformerModel
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.regimes import Regime


class FromScratchTask(EncoderTask):
    """A small Transformer trained on a task from random weights; its size does not depend on the number of heads.

    Args:
        encoder: None makes a new :class:`~papa_lightning.TransformerModel` of the sizes below. A folder written by
            its ``save_pretrained`` loads a trained one, in any regime; the sizes are those of the folder then.
        hidden_size: d, the width of the hidden states.
        num_layers: L, the number of layers.
        num_heads: H, the number of heads, a divisor of d.
        intermediate_size: Width of the feed-forward layers; None takes 4 d.
        kind: Kind of attention for `swap_attention`, or one for each layer; "dynamic" is dot-product attention.
        kind_options: Options of the kind, such as ``{"window": 32}``.
        learning_rate: As for `EncoderTask`, but high enough for random weights.
        regime: As for `EncoderTask`; an encoder that starts from random weights has to learn.
        dropout: Dropout of the encoder and of the probe; none, because a small model sees its data few times.
        kwargs: The other ones of `EncoderTask`.

    Raises:
        PapaError: See `EncoderTask`; also for a regime in which a new encoder would not learn.
    """

    def __init__(
        self,
        encoder: str | None = None,
        hidden_size: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        intermediate_size: int | None = None,
        kind: str | list[str] = "dynamic",
        kind_options: dict[str, Any] | None = None,
        learning_rate: float = 1e-3,
        regime: Regime = "fine_tune",
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        given = cast(str, encoder)  # None is for `make_encoder`
        super().__init__(encoder=given, learning_rate=learning_rate, regime=regime, dropout=dropout, **kwargs)

    @abstractmethod
    def transformer_sizes(self) -> Mapping[str, Any]:
        """Arguments of a new `TransformerConfig` beside width, depth, heads and dropout."""

    def make_encoder(self) -> PreTrainedModel:
        """Make a new encoder, or load one; see `EncoderTask.make_encoder`."""
        if self.hparams["encoder"] is not None:
            return super().make_encoder()
        if not self.learners.encoder:
            raise PapaError(
                f"regime is {self.regime!r}, which freezes the encoder, but encoder is None, so it starts from random "
                'weights: pass regime="fine_tune", or the folder of a trained encoder.'
            )
        sizes = {name: self.hparams[name] for name in ("hidden_size", "intermediate_size", "dropout")}
        layers, heads = self.hparams["num_layers"], self.hparams["num_heads"]
        return TransformerModel(
            TransformerConfig(num_hidden_layers=layers, num_attention_heads=heads, **sizes, **self.transformer_sizes())
        )

    def configure_encoder(self) -> PreTrainedModel:
        """Make or load the encoder, and swap its attention to `kind`, which refuses `constants` and idle options."""
        encoder, kind, options = super().configure_encoder(), self.hparams["kind"], self.hparams["kind_options"]
        if set([kind] if isinstance(kind, str) else kind) == {"dynamic"}:
            if options:
                raise PapaError(f'kind_options is {options}, but kind "dynamic" takes none: leave them out.')
            return encoder
        if self.hparams["constants"] is not None:
            raise PapaError(
                f'kind is {kind!r}, but constants is {self.hparams["constants"]!r}, which swaps to kind "constant": '
                "pass one of the two."
            )
        for name in [kind] if isinstance(kind, str) else kind:
            if KINDS[name].needs_constants(options or {}):  # averages, which random weights do not have
                raise PapaError(
                    f"kind is {name!r} with kind_options {options or {}}, which needs the averages of a trained "
                    "encoder: train with another kind, save the encoder, and use the callback ConstantAttention or "
                    "HeadGates, or constants=PATH, on the trained one."
                )
        return swap_attention(encoder, kind, max_length=self.hparams["max_length"], options=options)
