"""What all constants of an encoder have in common, whatever their form: whom they fit, and how they are a file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import safetensors.torch
from torch import Tensor, nn

from papa_lightning.encoders import encoder_shape, find_encoder, position_limit, weights_fingerprint
from papa_lightning.exceptions import ConstantsFileError
from papa_lightning.files import write_atomically

if TYPE_CHECKING:
    from typing_extensions import Self


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


class EncoderConstants:
    """Constants for all heads of an encoder. What derives from it says how many, and in which form."""

    metadata: Mapping[str, Any]

    @property
    def num_layers(self) -> int:
        """L."""
        raise NotImplementedError

    @property
    def num_heads(self) -> int:
        """H."""
        raise NotImplementedError

    @property
    def max_length(self) -> int:
        """T, the longest sequence that the constants serve."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path, encoder: nn.Module | None = None, max_length: int | None = None) -> Self:
        """Read a file that ``save`` wrote.

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
    def _read(cls, path: Path) -> Self:
        raise NotImplementedError

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


def write_tensors(path: str | Path, form: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write one safetensors file, whole or not at all.

    Args:
        path: The file; its folder is made when missing.
        form: What kind of file it is, and of which version.
        tensors: By name.
        metadata: Primitives.

    Returns:
        The path.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    noted = {"format": form, "papa_lightning": json.dumps(metadata)}
    return write_atomically(path, safetensors.torch.save(plain, metadata=noted))


def read_tensors(
    path: Path, form: str, names: Collection[str], made_by: tuple[str, str, str]
) -> tuple[dict[str, Tensor], Any]:
    """Read a file that :func:`write_tensors` wrote.

    Args:
        path: The file.
        form: What kind of file it must be.
        names: Tensors that it must have.
        made_by: For messages: what such a file holds, the method and the command that write one.

    Returns:
        All its tensors, and its metadata as it stands there.

    Raises:
        ConstantsFileError: When the file is missing, damaged, or something else.
    """
    name, (content, method, command) = str(path), made_by
    if not path.is_file():
        raise ConstantsFileError(
            f"constants file {name!r} does not exist or is not a file: write one with `{command} --output {name}`."
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != form:
                raise ConstantsFileError(
                    f"{name!r} is a safetensors file, but not one of {content} (format {metadata.get('format')!r}, "
                    f"expected {form!r}): pass a file that {method} wrote."
                )
            tensors = {key: file.get_tensor(key) for key in sorted({*names, *file.keys()})}
        return tensors, json.loads(metadata["papa_lightning"])
    except ConstantsFileError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise damaged_file(path, error) from error


def damaged_file(path: Path, found: object) -> ConstantsFileError:
    """The error for a file whose content makes no constants."""
    return ConstantsFileError(
        f"constants file {str(path)!r} is damaged or not a safetensors file ({found}): calibrate again."
    )
