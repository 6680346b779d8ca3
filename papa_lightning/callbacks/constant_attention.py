"""The callback that calibrates an encoder and makes its heads constant."""

from transformers import PreTrainedModel

from papa_lightning.attention import ConstantHeads
from papa_lightning.callbacks.calibrating import CalibratingCallback
from papa_lightning.encoders import HeadSelection, encoder_shape, select_heads, swap_attention, swapped_layers
from papa_lightning.errors import HeadSelectionError
from papa_lightning.ranking import HeadRanking


class ConstantAttention(CalibratingCallback):
    """Average the attention of an encoder over the train data, then make heads constant for the rest of the run.

    Works on any LightningModule with a supported transformers encoder, which ``setup`` swaps in place, all heads
    dynamic; the chosen ones become constant when training starts, after a pass that changes no counter or random state.
    The constants travel in checkpoints: a resumed run does not calibrate again; tests take ``ckpt_path`` or a file.

    Args:
        max_length: T, the longest sequence. None takes the datamodule's ``max_length``, or else the constants file's;
            for images, the number of tokens that the encoder makes of one.
        heads: "all"; [layer, head] pairs (none: only observe); a map from layer to heads; a number or share (ranking).
        ranking: Path of a :class:`~papa_lightning.HeadRanking` file.
        constants: Path of a constants file to use instead of calibrating.
        encoder: Attribute that holds the encoder, when the module has several.
        batch_size: Sequences a batch of the pass; None takes that of the train loader.
        save_constants: Write the average to ``constants.safetensors`` in the logger's folder.
        fill_unseen: Whether heads get the average with pairs of positions filled that calibration saw rarely or never,
            see :meth:`AttentionConstants.filled <papa_lightning.AttentionConstants.filled>`. None: in the preset
            "default" of the module and the datamodule, not where one has another preset or neither has any.
        packing: Whether the pass runs the encoder over the real tokens alone, where that is exact.

    Raises:
        PapaError: For invalid arguments.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[ConstantAttention(max_length=64, heads="all")], logger=False)
    """

    def __init__(
        self,
        max_length: int | None = None,
        heads: HeadSelection = "all",
        ranking: str | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
        fill_unseen: bool | None = None,
        packing: bool = True,
    ) -> None:
        super().__init__(
            max_length, constants, encoder, batch_size, save_constants, fill_unseen=fill_unseen, packing=packing
        )
        if isinstance(heads, (int, float)) and heads not in (0, 1.0) and ranking is None:
            raise HeadSelectionError(
                f"heads is {heads!r}, a number or share of heads, but ranking is None: pass the path of a HeadRanking "
                'file, or heads="all" or a list of [layer, head] pairs.'
            )
        self.heads, self.ranking = heads, ranking

    def swap(self, encoder: PreTrainedModel, max_length: int) -> None:
        """Swap to kind "constant" with the chosen heads; see :meth:`CalibratingCallback.swap`."""
        ranking = None if self.ranking is None else HeadRanking.load(self.ranking)
        layers, heads = swapped_layers(encoder), select_heads(self.heads, *encoder_shape(encoder), ranking)
        if [layer.constant_heads for layer in layers] != heads or not all(
            isinstance(layer, ConstantHeads) and layer.max_length == max_length for layer in layers
        ):
            swap_attention(encoder, "constant", heads=self.heads, ranking=ranking, max_length=max_length)

    def outcome(self, encoder: PreTrainedModel) -> str:
        """Number of constant heads; see :meth:`CalibratingCallback.outcome`."""
        layers, heads = encoder_shape(encoder)
        return f"{constant_heads(encoder)} of {layers * heads} heads are constant from now on."


def constant_heads(encoder: PreTrainedModel) -> int:
    """Number of heads of a swapped encoder that are constant now."""
    constant = [layer for layer in swapped_layers(encoder) if isinstance(layer, ConstantHeads) and layer.calibrated]
    return sum(len(layer.constant_heads) for layer in constant)
