"""The result of calibration, in memory and as a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from papa_lightning.encoders import encoder_shape, find_encoder, position_limit, weights_fingerprint
from papa_lightning.exceptions import ConstantsFileError
from papa_lightning.files import write_atomically

_FORMAT = "papa_lightning.attention_constants/1"


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of metadata as a file gives it back: primitives, lists, and maps with strings as keys.

    Raises:
        ConstantsFileError: When it is not a mapping, or has something that JSON has no word for.
    """
    if not isinstance(metadata, Mapping):
        raise ConstantsFileError(f"metadata is a {type(metadata).__name__}, but must be a mapping of primitives.")
    try:
        return cast("dict[str, Any]", json.loads(json.dumps(dict(metadata))))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstantsFileError(f"metadata cannot be saved ({error}): pass primitives only.") from error


class ConstantsMismatchWarning(UserWarning):
    """Constants are used with weights, a tokenizer or a layout other than those they were made with."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to one truth value
class AttentionConstants:
    """Averaged attention matrices of an encoder.

    Args:
        values: (L, H, T, T) floating point; rows are queries, and need not sum to 1.
        pair_counts: (T, T), the number of sequences in which both positions held a real token.
        metadata: What they were made with: "model" (name, type, sizes, weights fingerprint), "tokenizer", "layout",
            "data", "sequences", "max_length", "versions". Primitives only, and kept as a file would give them back:
            tuples are lists, keys are strings. May be empty.
        variance: (L, H), how far the attention of each head was from its constants, see
            :meth:`~papa_lightning.AttentionAverages.variance`; None where that is not known: constants that were not
            calibrated, and files of versions before.

    Raises:
        ConstantsFileError: When the shapes do not fit each other, a value is not finite, or metadata cannot be saved.

    Example:
        >>> import torch
        >>> constants = AttentionConstants(torch.full((2, 4, 8, 8), 0.125), torch.ones(8, 8))
        >>> constants.num_layers, constants.num_heads, constants.max_length
        (2, 4, 8)
    """

    values: Tensor
    pair_counts: Tensor
    metadata: Mapping[str, Any] = field(default_factory=dict)
    variance: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("values", "pair_counts"):
            if not isinstance(found := getattr(self, name), Tensor):
                raise ConstantsFileError(f"{name} is a {type(found).__name__}, but must be a tensor.")
        shape = tuple(self.values.shape)
        if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or self.values.dtype not in _DTYPES:
            raise ConstantsFileError(
                f"values has shape {shape} and dtype {self.values.dtype}, but constants are a floating point tensor of "
                "16 to 64 bits and of shape (layers, heads, max_length, max_length)."
            )
        if tuple(self.pair_counts.shape) != shape[2:]:
            raise ConstantsFileError(
                f"pair_counts has shape {tuple(self.pair_counts.shape)}, but values has max_length {shape[2]}: "
                f"expected ({shape[2]}, {shape[2]})."
            )
        if not bool(self.values.isfinite().all()):
            raise ConstantsFileError("values has NaN or infinite entries: calibrate again, in 32-bit precision.")
        if self.variance is not None:
            _check_variance(self.variance, shape[:2])
        object.__setattr__(self, "metadata", plain_metadata(self.metadata))

    @property
    def num_layers(self) -> int:
        """L."""
        return self.values.shape[0]

    @property
    def num_heads(self) -> int:
        """H."""
        return self.values.shape[1]

    @property
    def max_length(self) -> int:
        """T, the longest sequence that the constants serve."""
        return self.values.shape[2]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all.

        Args:
            path: The file; its folder is made when missing.

        Returns:
            The path.
        """
        tensors = {
            "values": self.values.detach().cpu().contiguous(),
            "pair_counts": self.pair_counts.detach().cpu().contiguous(),
        }
        if self.variance is not None:
            tensors["variance"] = self.variance.detach().cpu().contiguous()
        metadata = {"format": _FORMAT, "papa_lightning": json.dumps(self.metadata)}
        return write_atomically(path, safetensors.torch.save(tensors, metadata=metadata))

    @classmethod
    def load(
        cls, path: str | Path, encoder: nn.Module | None = None, max_length: int | None = None
    ) -> AttentionConstants:
        """Read a file that :meth:`save` wrote.

        Args:
            path: The file.
            encoder: Check the constants against this encoder, as :meth:`check` does.
            max_length: Check that they were made for this length.

        Raises:
            ConstantsFileError: When the file is missing, damaged, or something else, or does not fit.
        """
        constants = cls._read(Path(path))
        if encoder is not None:
            constants.check(encoder, max_length)
        else:
            constants.check_length(max_length)
        return constants

    @classmethod
    def _read(cls, path: Path) -> AttentionConstants:
        name = str(path)
        if not path.is_file():
            raise ConstantsFileError(
                f"constants file {name!r} does not exist or is not a file: "
                f"write one with `papa calibrate --output {name}`."
            )
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ConstantsFileError(
                        f"{name!r} is a safetensors file, but not one of attention constants (format "
                        f"{metadata.get('format')!r}, expected {_FORMAT!r}): pass a file that "
                        "AttentionConstants.save wrote."
                    )
                names = ["values", "pair_counts", *({"variance"} & set(file.keys()))]
                tensors = {key: file.get_tensor(key) for key in names}
            return cls(**tensors, metadata=json.loads(metadata["papa_lightning"]))
        except ConstantsFileError:
            raise
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
            raise ConstantsFileError(
                f"constants file {name!r} is damaged or not a safetensors file ({error}): calibrate again."
            ) from error

    def check(self, encoder: nn.Module, max_length: int | None = None) -> None:
        """Check that the constants fit an encoder.

        Other weights than those they were made with only warn: constants of a pretrained encoder are used with its
        fine-tuned copies on purpose.

        Args:
            encoder: A PreTrainedModel, with or without a task head.
            max_length: The length that is wanted, if any.

        Raises:
            ConstantsFileError: When architecture, numbers of layers or heads, or length differ.
        """
        base = find_encoder(encoder)
        model = self.metadata.get("model")
        if not isinstance(model, Mapping):
            model = {}
        config = base.config
        expected = {"type": config.model_type, "hidden_size": config.hidden_size}
        for key, value in expected.items():
            if model.get(key, value) != value:
                raise ConstantsFileError(
                    f"the constants were made for another architecture ({key} {model[key]!r}, model "
                    f"{model.get('name')!r}) than the encoder ({key} {value!r}): calibrate this encoder."
                )
        sizes = encoder_shape(base)
        if sizes != (self.num_layers, self.num_heads):
            raise ConstantsFileError(
                f"the constants have {self.num_layers} layers of {self.num_heads} heads, but the encoder has "
                f"{sizes[0]} layers of {sizes[1]} heads: calibrate this encoder."
            )
        self.check_length(max_length)
        limit = position_limit(base)
        if limit is not None and self.max_length > limit:
            raise ConstantsFileError(
                f"the constants have max_length {self.max_length}, but the encoder has {limit} positions: calibrate it "
                f"with max_length up to {limit}."
            )
        weights = {model.get("weights"), weights_fingerprint(base)} - {None}  # None: not known
        if len(weights) > 1:
            warnings.warn(
                f"the constants were made with other weights (model {model.get('name')!r}) than the encoder has now: "
                "right if it is a fine-tuned copy, else calibrate again.",
                ConstantsMismatchWarning,
                stacklevel=3,
            )

    def check_length(self, max_length: int | None) -> None:
        """Check that the constants were made for a length; None asks for nothing.

        Raises:
            ConstantsFileError: When they were made for another.
        """
        if max_length is not None and max_length != self.max_length:
            raise ConstantsFileError(
                f"the constants were made with max_length {self.max_length}, but max_length is {max_length}: calibrate "
                f"again with max_length={max_length}, or pass max_length={self.max_length}."
            )


def _check_variance(variance: object, heads: tuple[int, ...]) -> None:
    if not isinstance(variance, Tensor):
        raise ConstantsFileError(f"variance is a {type(variance).__name__}, but must be a tensor or None.")
    if tuple(variance.shape) != tuple(heads) or variance.dtype not in _DTYPES:
        raise ConstantsFileError(
            f"variance has shape {tuple(variance.shape)} and dtype {variance.dtype}, but values has {heads[0]} layers "
            f"of {heads[1]} heads: expected a floating point tensor of shape {tuple(heads)}."
        )
    if not bool(variance.isfinite().all()) or bool((variance < 0).any()):
        raise ConstantsFileError("variance has entries that are NaN, infinite or below 0: calibrate again.")
