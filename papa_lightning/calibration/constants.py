"""Constants of an encoder, in memory and as a file."""

from __future__ import annotations

import json
import math
import struct
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import safetensors
import torch
from torch import Tensor, nn

from papa_lightning.calibration.display import Displayed, matrix_columns
from papa_lightning.calibration.filling import STRENGTH, checked_strength, fill_layer
from papa_lightning.encoders import SupportedEncoder, position_limit, weights_fingerprint
from papa_lightning.errors import ConstantsFileError, similar_file
from papa_lightning.files.checked import SUM, content_sum, parse_json, tensor_bytes
from papa_lightning.files.writing import staged_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from typing_extensions import Self


def plain_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of metadata as read from a file: primitives, lists and maps; ConstantsFileError for anything else."""
    if not isinstance(metadata, Mapping):
        raise ConstantsFileError(f"metadata is a {type(metadata).__name__}, but must be a mapping of primitives.")
    try:
        return cast("dict[str, Any]", parse_json(json.dumps(dict(metadata), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstantsFileError(f"metadata cannot be saved ({error}): pass primitives only.") from error


class ConstantsMismatchWarning(UserWarning):
    """Constants are used with other weights, another tokenizer or another layout than they were made with."""


class EncoderConstants(Displayed):
    """Base of constants for all heads of an encoder; subclasses have them in different forms."""

    @property
    def num_layers(self) -> int:
        """The number of layers L."""
        return self.sizes[0]

    @property
    def num_heads(self) -> int:
        """The number of heads H."""
        return self.sizes[1]

    @property
    def max_length(self) -> int:
        """T, the longest sequence that the constants serve."""
        return self.sizes[2]

    @classmethod
    def load(cls, path: str | Path, encoder: nn.Module | None = None, max_length: int | None = None) -> Self:
        """Read a file that ``save`` wrote.

        Args:
            path: The file.
            encoder: Encoder that they must fit, see :meth:`check`.
            max_length: Length that they must have been made for.

        Raises:
            ConstantsFileError: When the file is missing, damaged, or something else, or does not fit.
        """
        constants = cls._read(Path(path).expanduser())
        if encoder is not None:
            constants.check(encoder, max_length)
        else:
            constants.check_length(max_length)
        return constants

    @classmethod
    def _read(cls, path: Path) -> Self:
        raise NotImplementedError

    def check(self, encoder: nn.Module | SupportedEncoder, max_length: int | None = None) -> None:
        """Check that the constants fit an encoder, and ``max_length`` where it is given.

        Other weights than those they were made with only give a warning, because constants of a pretrained encoder are
        used with its fine-tuned copies on purpose.

        Raises:
            ConstantsFileError: When architecture, numbers of layers or heads, or length differ.
        """
        found = SupportedEncoder.find(encoder)
        noted = self.metadata.get("model")
        model = noted if isinstance(noted, Mapping) else {}
        config = found.model.config
        for key, value in (("type", config.model_type), ("hidden_size", config.hidden_size)):
            if model.get(key, value) != value:
                raise ConstantsFileError(
                    f"the constants were made for another architecture ({key} {model[key]!r}, model "
                    f"{model.get('name')!r}) than the encoder ({key} {value!r}): calibrate this encoder."
                )
        sizes = (found.num_layers, found.num_heads)
        if sizes != (self.num_layers, self.num_heads):
            raise ConstantsFileError(
                f"the constants have {self.num_layers} layers of {self.num_heads} heads, but the encoder has "
                f"{sizes[0]} layers of {sizes[1]} heads: calibrate this encoder."
            )
        self.check_length(max_length)
        limit = position_limit(found.model)
        if limit is not None and self.max_length > limit:
            raise ConstantsFileError(
                f"the constants have max_length {self.max_length}, but the encoder has {limit} positions: calibrate it "
                f"with max_length up to {limit}."
            )
        weights = {model.get("weights"), weights_fingerprint(found.model)} - {None}  # None: not known
        if len(weights) > 1:
            warnings.warn(
                f"the constants were made with other weights (model {model.get('name')!r}) than the encoder has now: "
                "right if it is a fine-tuned copy, else calibrate again.",
                ConstantsMismatchWarning,
                stacklevel=3,
            )

    def check_length(self, max_length: int | None) -> None:
        """Check that the constants were made for a length, with a ConstantsFileError; None accepts any."""
        if max_length is not None and max_length != self.max_length:
            raise ConstantsFileError(
                f"the constants were made with max_length {self.max_length}, but max_length is {max_length}: calibrate "
                f"again with max_length={max_length}, or pass max_length={self.max_length}."
            )


def write_tensors(path: str | Path, form: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write one safetensors file with a sum of its content, whole or not at all, without a copy of the tensors."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    noted = {"format": form, "papa_lightning": json.dumps(metadata, allow_nan=False)}
    noted[SUM] = content_sum(noted, plain)
    with staged_file(path) as file:
        file.write(_header(plain, noted))
        for tensor in plain.values():
            file.write(tensor_bytes(tensor))
    return Path(path).expanduser()


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header of a safetensors file: the size of a JSON text, and the text with dtypes, shapes and offsets."""
    described: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        sort = "F" if tensor.is_floating_point() else "I" if tensor.dtype.is_signed else "U"
        sort = "BF" if tensor.dtype is torch.bfloat16 else sort
        shape, size = list(tensor.shape), 8 * tensor.itemsize
        described[name] = {"dtype": f"{sort}{size}", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return struct.pack("<Q", len(text)) + text


def read_tensors(
    path: Path, form: str, check: Callable[[str], bool], made_by: tuple[str, str, str]
) -> tuple[dict[str, Tensor], Any, bool]:
    """Tensors and metadata of a file of :func:`write_tensors`, and whether it has a sum; ``check`` tells names."""
    name, (content, method, command) = str(path), made_by
    if not path.is_file():
        raise ConstantsFileError(
            f"constants file {name!r} does not exist or is not a file: write one with `{command} --output {name}`"
            f"{similar_file(path) or '.'}"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            noted = file.metadata() or {}
            if noted.get("format") != form:
                raise ConstantsFileError(
                    f"{name!r} is a safetensors file, but not one of {content} (format {noted.get('format')!r}, "
                    f"expected {form!r}): pass a file that {method} wrote."
                )
            found = noted.pop(SUM, None)
            names: list[str] = list(file.keys())
            unknown = [*(noted.keys() - {"format", "papa_lightning"}), *(one for one in names if not check(one))]
            if unknown:
                raise ValueError(f"it should not have {min(unknown)!r}")
            tensors = {key: file.get_tensor(key) for key in names}
        if found is not None and found != content_sum(noted, tensors):
            raise ValueError(f"its {SUM} is not that of its content")
        return tensors, parse_json(noted["papa_lightning"]), found is not None
    except ConstantsFileError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise damaged_file(path, error) from error


def damaged_file(path: Path, found: object) -> ConstantsFileError:
    """The error for a file whose content is not that of constants."""
    return ConstantsFileError(
        f"constants file {str(path)!r} is damaged or not a safetensors file ({found}): calibrate again."
    )


_FORMAT = "papa_lightning.attention_constants/1"

#: Dtypes of constants.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAVED = ("values", "pair_counts", "variance")
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: Largest excess over 1 of an average of attention in 16 bits.
_ROUNDING = 0.02


@dataclass(frozen=True, eq=False, repr=False)  # tensors do not compare to one truth value
class AttentionConstants(EncoderConstants):
    """Averaged attention matrices of an encoder.

    Args:
        values: (L, H, T, T) floating point, from 0 to 1; rows are queries, and need not sum to 1.
        pair_counts: (T, T), the number of sequences in which both positions held a real token.
        metadata: Description of their origin: "model" (name, type, sizes, weights fingerprint), "tokenizer", "layout",
            "data", "sequences", "max_length", "versions". Primitives only, and kept as they are read from a file:
            tuples are lists, keys are strings. May be empty.
        variance: (L, H), mean squared distance of the attention of each head from its constants, see
            :meth:`~papa_lightning.AttentionAverages.variance`; None where it is not known, as for constants that were
            not calibrated.

    Raises:
        ConstantsFileError: When the shapes do not fit each other, a number is out of range (values from 0 to 1, counts
            whole and symmetric, variance from 0 on), or metadata cannot be saved.

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
        if len(shape) != 4 or shape[2] != shape[3] or 0 in shape or self.values.dtype not in DTYPES:
            raise ConstantsFileError(
                f"values has shape {shape} and dtype {self.values.dtype}, but constants are a floating point tensor of "
                "16 to 64 bits and of shape (layers, heads, max_length, max_length)."
            )
        if tuple(self.pair_counts.shape) != shape[2:]:
            raise ConstantsFileError(
                f"pair_counts has shape {tuple(self.pair_counts.shape)}, but values has max_length {shape[2]}: "
                f"expected ({shape[2]}, {shape[2]})."
            )
        _check_range(self.values)
        _check_counts(self.pair_counts)
        if self.variance is not None:
            _check_variance(self.variance, shape[:2])
        object.__setattr__(self, "metadata", plain_metadata(self.metadata))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of layers L, number of heads H and number of slots T."""
        layers, heads, length, _ = self.values.shape
        return layers, heads, length

    def head_columns(self) -> dict[str, Tensor]:
        """Variance where it is known, entropy and distance (L, H): the columns of :meth:`table`."""
        known = {} if self.variance is None else {"variance": self.variance.detach().cpu().double()}
        return known | matrix_columns(self.values, self.pair_counts)

    def _picture(self, title: str) -> Figure:
        from papa_lightning.figures import constants_grid

        return constants_grid(self.values, title)

    def by_layer(self) -> list[Tensor]:
        """The constants (H, T, T) of each layer, as a swap hands them to it."""
        return list(self.values)

    def filled(self, strength: float = STRENGTH) -> AttentionConstants:
        """Constants whose entries of few or no sequences lean on a profile of their head.

            filled[l,h,i,j] = (n_ij C[l,h,i,j] + k P[l,h,i,j]) / (n_ij + k)
            P[l,h,i,j]      = rho[l,h,i-j] + alpha[l,h,j], at most 1

        n are the pair counts. P is the profile of :class:`~papa_lightning.CompactConstants`, fitted by least squares
        weighted with n: rho up to 4 positions away and 0 beyond, so that no offset lacks a value; a column that was
        never seen has the median weight of those seen often. Entries beyond the reach of a layer stay 0, and so do
        heads that are 0 throughout.

        Shrinkage of means toward a fitted model is empirical Bayes: B. Efron and C. Morris, Stein's estimation rule and
        its competitors, 1973, estimate its strength from the data; here it is a number that was chosen on held-out
        sentences (docs/method.md).

        Args:
            strength: k above 0, the number of sequences that the profile counts as.

        Returns:
            Constants with the same pair counts and variance, and in the metadata "filled": "strength" and the number of
            "pairs" (i, j) without a sequence that have a weight in some head now. Filled constants return themselves.

        Raises:
            PapaError: When strength is not a number above 0.

        Example:
            >>> import torch
            >>> counts = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
            >>> constants = AttentionConstants(torch.full((1, 1, 3, 3), 0.5) * (counts > 0), counts)
            >>> constants.filled().values
            tensor([[[[0.5000, 0.5000, 0.5000],
                      [0.5000, 0.5000, 0.5000],
                      [0.5000, 0.5000, 0.5000]]]])
            >>> constants.filled().metadata
            {'filled': {'strength': 4.0, 'pairs': 5}}
        """
        if "filled" in self.metadata:
            return self
        strength = checked_strength(strength)
        layers = [fill_layer(values, self.pair_counts, strength) for values in self.values.detach()]
        values = torch.stack([filled.to(self.values) for filled in layers])
        pairs = int(((values != 0).any(dim=1).any(dim=0) & (self.pair_counts == 0)).sum())
        noted = {"filled": {"strength": strength, "pairs": pairs}}
        return replace(self, values=values, metadata={**self.metadata, **noted})

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all, in a folder that is made when missing; returns the path."""
        tensors = {"values": self.values, "pair_counts": self.pair_counts}
        if self.variance is not None:
            tensors["variance"] = self.variance
        return write_tensors(path, _FORMAT, tensors, self.metadata)

    @classmethod
    def _read(cls, path: Path) -> Self:
        made_by = ("attention constants", "AttentionConstants.save", "papa calibrate")
        tensors, metadata, ours = read_tensors(path, _FORMAT, _SAVED.__contains__, made_by)
        if missing := {"values", "pair_counts"} - tensors.keys():
            raise damaged_file(path, f"it lacks {min(missing)!r}")
        constants, counts = cls(**tensors, metadata=metadata), tensors["pair_counts"]
        if not ours and (not torch.equal(counts, counts.T) or bool((counts > counts.diagonal()).any())):
            raise damaged_file(path, "pair_counts is not symmetric, or has more than on its diagonal")
        return constants


def describe_filling(constants: AttentionConstants) -> str:
    """How many pairs of positions :meth:`AttentionConstants.filled` filled, as a line; "" for none.

    Example:
        >>> counts = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> print(describe_filling(AttentionConstants(0.5 * counts.expand(1, 1, 2, 2), counts).filled()))
        filled 3 of 4 position pairs, which calibration never saw
    """
    noted = constants.metadata.get("filled")
    pairs = noted.get("pairs") if isinstance(noted, Mapping) else None
    if not isinstance(pairs, int) or pairs == 0:
        return ""
    return f"filled {pairs:,} of {constants.max_length**2:,} position pairs, which calibration never saw"


def _check_range(values: Tensor) -> None:
    low, high = (float(one) for one in values.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ConstantsFileError("values has NaN or infinite entries: calibrate again, in 32-bit precision.")
    if low < 0 or high > 1 + _ROUNDING:
        raise ConstantsFileError(
            f"values has entries from {low:g} to {high:g}, but attention lies between 0 and 1: calibrate again, or "
            "divide constants of your own by their largest entry; rows are divided by their sum in any case."
        )


def _check_counts(counts: Tensor) -> None:
    if counts.is_complex() or counts.dtype not in (*DTYPES, *_WHOLE):
        raise ConstantsFileError(f"pair_counts has dtype {counts.dtype}, but must have one of numbers.")
    exact = counts.double()
    if not bool((exact.isfinite() & (exact >= 0) & (exact == exact.round())).all()):
        raise ConstantsFileError(
            "pair_counts has entries that are not whole numbers from 0 on: calibrate again; constants of your own have "
            "ones there."
        )


def _check_variance(variance: object, heads: tuple[int, ...]) -> None:
    if not isinstance(variance, Tensor):
        raise ConstantsFileError(f"variance is a {type(variance).__name__}, but must be a tensor or None.")
    if tuple(variance.shape) != tuple(heads) or variance.dtype not in DTYPES:
        raise ConstantsFileError(
            f"variance has shape {tuple(variance.shape)} and dtype {variance.dtype}, but values has {heads[0]} layers "
            f"of {heads[1]} heads: expected a floating point tensor of shape {tuple(heads)}."
        )
    if not bool(variance.isfinite().all()) or bool((variance < 0).any()):
        raise ConstantsFileError("variance has entries that are NaN, infinite or below 0: calibrate again.")
