"""The callback that swaps whole layers of an encoder to another kind of attention."""

from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedModel

from papa_lightning.attention import TokenMixer
from papa_lightning.callbacks.calibrating import CalibratingCallback
from papa_lightning.encoders import plan_whole_layers, swap_attention, swapped_layers
from papa_lightning.errors import PapaError


class SwappedAttention(CalibratingCallback):
    """Swap whole layers of an encoder to a kind of attention for the run: attention-free, additive, shared.

    Works on any LightningModule with a supported transformers encoder, which ``setup`` swaps before the optimizer is
    made. Kinds that start from the average get it as :class:`~papa_lightning.ConstantAttention` does; others need no
    pass. Everything travels in the module's checkpoint.

    Args:
        kind: As :func:`~papa_lightning.swap_attention` takes it: one for all layers, or a list with one a layer, in
            which "dynamic" leaves a layer alone.
        options: Options of the kind, e.g. {"window": 32}; {"init": "from_constants"} makes an attention-free kind
            start from the average, {"matrix": "constant"} makes a shared matrix constant. A constants file means both.
        learning_rate: Learning rate of the parameters that the kind adds, in a group of their own without weight decay;
            None leaves them with the others.
        max_length: T, the longest sequence. None takes the datamodule's ``max_length``, or else the constants file's.
        constants: Path of a constants file to start from instead of calibrating.
        encoder: Attribute that holds the encoder, when the module has several.
        batch_size: Sequences a batch of the calibration pass; None takes that of the train loader.
        save_constants: Write the average of a pass to ``constants.safetensors`` in the logger's folder.
        fill_unseen: Whether the average is filled; as in :class:`~papa_lightning.ConstantAttention`.
        packing: Whether the pass runs the encoder over the real tokens alone, where that is exact.

    Raises:
        PapaError: For invalid arguments; those that depend on the encoder when ``setup`` sees it.

    Example:
        >>> from lightning import Trainer
        >>> free = SwappedAttention("aft_local", {"window": 16, "init": "from_constants"}, max_length=64)
        >>> trainer = Trainer(callbacks=[free], logger=False)
    """

    calibrates_anew = False

    def __init__(
        self,
        kind: str | list[str],
        options: dict[str, Any] | None = None,
        learning_rate: float | None = None,
        max_length: int | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
        fill_unseen: bool | None = None,
        packing: bool = True,
    ) -> None:
        super().__init__(
            max_length,
            constants,
            encoder,
            batch_size,
            save_constants,
            learning_rate,
            fill_unseen=fill_unseen,
            packing=packing,
        )
        self.kind, self.options = kind, options

    def swap(self, encoder: PreTrainedModel, max_length: int) -> None:
        """Swap to the kind, unless that is done; see :meth:`CalibratingCallback.swap`."""
        plans = plan_whole_layers(encoder, self.kind, self.options, constants_given=self.constants is not None)
        if self.constants is not None and not any(plan.needs_constants for plan in plans):
            raise PapaError(
                f"constants is {self.constants!r}, but kind {self.kind!r} with options {self.options!r} needs none: "
                "leave the file out, or ask for a start from it."
            )
        layers = swapped_layers(encoder)
        if len(layers) != len(plans) or not all(
            type(layer) is plan.mixer
            and layer.max_length == max_length
            and plan.options.items() <= layer.options().items()
            for layer, plan in zip(layers, plans, strict=True)
        ):
            swap_attention(encoder, self.kind, max_length=max_length, options=[plan.options for plan in plans])

    def outcome(self, encoder: PreTrainedModel) -> str:
        """Number of swapped layers; see :meth:`CalibratingCallback.outcome`."""
        layers = swapped_layers(encoder)
        return f"{sum(layer.replaces_attention for layer in layers)} of {len(layers)} layers are swapped from now on."

    def own_parameters(self, layer: TokenMixer) -> Iterable[str]:
        """All that the swap added, where it has a learning rate, but constants, which LearnedConstants trains."""
        added = () if self.learning_rate is None else layer.named_parameters()
        return [name for name, _ in added if name not in layer.constant_tensors]
