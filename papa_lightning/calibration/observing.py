"""Averaging the attention of an encoder in calls that other code makes of it."""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from papa_lightning.attention import DynamicAttention, RowMixing, runs_in
from papa_lightning.calibration.averages import AttentionAverages
from papa_lightning.calibration.batches import UnreadMasks, checked_inputs, mask_by_slot
from papa_lightning.encoders import ReadBatch, SupportedEncoder, compute_device, replace_mixing
from papa_lightning.errors import CalibrationError

_WATCHED = "papa_watched"


class EncoderCalls:
    """The calls of an encoder while it is observed: count and sums, number of the batch, and the first error."""

    def __init__(self, found: SupportedEncoder, sums: AttentionAverages) -> None:
        self.encoder, self._layers, self._reading = found.model, found.num_layers, ReadBatch.of(found)
        self.sums, self.masks, self.number, self.count = sums, UnreadMasks(), 0, 0
        self.error: Exception | None = None  # the first of a call, also if the caller of the encoder caught it
        self._runs: list[int] | None = None

    def mix(self, layer: int, attention: DynamicAttention, value: Tensor) -> Tensor:
        """Add the attention of a layer, and mix the values with it."""
        if self._runs is None:
            raise CalibrationError(
                f"layer {layer} ran outside of a call of its {type(self.encoder).__name__}, so its tokens cannot be "
                "counted: call the encoder as a whole, or give its inputs by encoder_inputs(batch) of the callback."
            )
        self._runs[layer] += 1
        with torch.no_grad():
            return self.sums.mix(layer, attention, value)

    def call(self, forward: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Check the inputs of a call, run it, and count it."""
        if self._runs is not None:
            return forward(*arguments, **options)
        try:
            return self._counted(forward, arguments, options)
        except Exception as error:
            self.error = error
            raise
        finally:
            self._runs = None

    def check(self) -> None:
        """Raise the error of a call that its caller caught, because the sums are incomplete."""
        if self.error is not None:
            raise self.error

    def _counted(self, forward: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        named, length = named_inputs(forward, arguments, options), self.sums.max_length
        inputs, mask = checked_inputs(self.encoder, named, self.number, length)
        inputs = {name: tensor.to(compute_device(self.encoder)) for name, tensor in inputs.items()}
        by_slot = mask_by_slot(self._reading, inputs, self.number, length)
        self._runs = [0] * self._layers
        output = forward(*arguments, **options)
        other = [layer for layer, runs in enumerate(self._runs) if runs != 1]
        if other:
            raise CalibrationError(
                f"layer {other[0]} ran {self._runs[other[0]]} times in a call of the {type(self.encoder).__name__} in "
                f"batch {self.number}, but must run once: let all layers run once a call, without early exits, dropped "
                "layers or calls in pieces."
            )
        self.masks.add(mask)
        self.sums.add_mask(by_slot)
        if self.count == 0:  # a broken encoder fails at once, not after hours; later calls are checked at the end
            self.sums.check_finite()
        self.count += 1
        return output


def named_inputs(forward: Callable[..., Any], arguments: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """The positional and keyword arguments of a call by name, as far as they fit the signature."""
    return dict(zip(inspect.signature(forward).parameters, arguments, strict=False)) | dict(options)


@contextmanager
def watch_calls(
    encoder: PreTrainedModel, watch: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
) -> Iterator[None]:
    """Route calls of a bare encoder in this thread through ``watch(forward, arguments, options)``, uncompiled."""
    before, forward = vars(encoder).get("forward"), encoder.forward
    if getattr(before, _WATCHED, False):
        raise CalibrationError(
            f"the {type(encoder).__name__} is calibrated or watched already: begin when that has ended, or work on a "
            "copy (copy.deepcopy) of it."
        )

    watcher = threading.get_ident()

    @wraps(forward)
    def watched(*arguments: Any, **options: Any) -> Any:
        return watch(forward, arguments, options) if runs_in(watcher) else forward(*arguments, **options)

    vars(watched)[_WATCHED] = True
    vars(encoder)["forward"] = watched
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        del vars(encoder)["forward"]
        if before is not None:
            vars(encoder)["forward"] = before


@contextmanager
def observe(encoder: PreTrainedModel, max_length: int) -> Iterator[EncoderCalls]:
    """Average the dynamic attention of a bare encoder, swapped or not, in all calls of it, up to ``max_length`` tokens.

    Training mode and gradients are left as the caller sets them. The ``sums`` of the calls, which are yielded, are the
    :class:`AttentionAverages`.

    Raises:
        CalibrationError: From a call of the encoder that cannot be counted: without an attention_mask, longer than T,
            or in which a layer does not run exactly once.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> encoder = BertModel(config).eval()
        >>> with torch.no_grad(), observe(encoder, 4) as calls:
        ...     output = encoder(torch.tensor([[1, 2, 3, 0]]), torch.tensor([[1, 1, 1, 0]]))
        >>> calls.count, calls.sums.compute().shape
        (1, torch.Size([1, 2, 4, 4]))
    """
    found = SupportedEncoder.find(encoder)
    sums = AttentionAverages(found.num_layers, found.num_heads, max_length, compute_device(encoder))
    calls = EncoderCalls(found, sums)
    mixings = [RowMixing(partial(calls.mix, layer), sums.reads_slots) for layer in range(found.num_layers)]
    with watch_calls(encoder, calls.call), replace_mixing(found, mixings):
        yield calls
        calls.masks.check()
