"""Sources of `papa export`: a pretrained encoder with a constants file, or a checkpoint of a task."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.calibration import AttentionConstants, CompactConstants
from papa_lightning.checks import check_choice, maybe, one_of
from papa_lightning.encoders import HeadSelection, is_noted, swap_as_saved, swap_attention
from papa_lightning.encoders.loading import from_pretrained, load_encoder
from papa_lightning.encoders.sentence_files import MODULES, POOLINGS, SentenceFiles, read_sentence_files
from papa_lightning.errors import ExportError
from papa_lightning.export.folder import check_target, check_wanted, export_encoder
from papa_lightning.export.onnx.quantization import Quantization
from papa_lightning.export.sentence_folder import export_sentence_transformer
from papa_lightning.lightning_project.filling import constants_in_use, log_filling
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.checkpoints import read_checkpoint

# Files that transformers writes for a tokenizer; one of them is always there.
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")
#: Settings that say how constants of a file are used.
_SWAP = ("constants", "heads", "ranking", "kind", "fill_unseen")


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export: the encoder, its constants, and the heads to replace.

    Args:
        encoder: Name on the hub, or a folder written by ``save_pretrained``. With ckpt_path it is known from there, and
            need only be given where the folder has moved.
        constants: A constants file; null keeps the constants of an encoder that was saved swapped.
        heads: "all", (layer, head) pairs, a map from layer to heads, or a number or share of heads, with a ranking.
        ranking: A ranking file.
        kind: Kind of attention of the replaced heads, as in swap_attention.
        ckpt_path: Checkpoint of a task of papa_lightning, with constants in it or with a constants file.
        tokenizer: Name or folder of the tokenizer; null takes that of the encoder, where it has one.
        onnx: Whether to write model.onnx too.
        position_ids: Whether model.onnx and model.pt2 have the input position_ids too, so that a server can pack.
        quantize: int8 for a model.onnx with products of 8-bit integers; null for the numbers of the encoder.
        dtype: Numbers of all files, the graph as well; float16 halves them. null keeps those of the encoder.
        aot: Whether to write model.pt2 too, a package of AOTInductor.
        replace: Whether to replace an earlier export.
        fill_unseen: Whether an average is filled at pairs of positions that calibration saw rarely or never, as in
            ConstantAttention; null: an average of a calibration is, but not for a checkpoint of the preset "reference".
        format: Whose folder is written: "encoder" for load_exported_encoder, or "sentence-transformers" for
            SentenceTransformer(folder).
        pooling: How sentence-transformers makes an embedding of hidden states, in its words: "mean", "cls" or
            "lasttoken"; null: as in the folder of the encoder, or "mean" where it has no modules.json.
        normalize: Whether sentence-transformers normalizes embeddings; null: as in the folder of the encoder, or true.
    """

    encoder: str | None = None
    constants: str | None = None
    heads: HeadSelection = "all"
    ranking: str | None = None
    kind: str = "constant"
    ckpt_path: str | None = None
    tokenizer: str | None = None
    onnx: bool = False
    position_ids: bool = False
    quantize: Quantization | None = None
    dtype: Literal["float32", "float16"] | None = None
    aot: bool = False
    replace: bool = False
    fill_unseen: bool | None = None
    format: Literal["encoder", "sentence-transformers"] = "encoder"
    pooling: Literal["mean", "cls", "lasttoken"] | None = None
    normalize: bool | None = None

    def __post_init__(self) -> None:
        self._check_format()
        swapped = self.encoder is not None and is_noted(self.encoder)
        if self.ckpt_path is None and (self.encoder is None or (self.constants is None and not swapped)):
            raise ExportError(
                f"encoder is {self.encoder!r}, constants is {self.constants!r} and ckpt_path is None: pass an encoder "
                "and a constants file, an encoder that was saved swapped, or a checkpoint."
            )
        if self.ckpt_path is None and self.constants is None:
            self.check_no_swap(f"the encoder {self.encoder!r}")
        if self.quantize is not None and self.dtype == "float16":
            raise ExportError(
                f"quantize is {self.quantize!r} and dtype is 'float16', but integers need float32: pass one of them."
            )

    def check_no_swap(self, source: str) -> None:
        """Refuse settings of a swap for what is swapped already."""
        if given := [name for name in _SWAP if getattr(self, name) != getattr(ExportSettings, name)]:
            raise ExportError(
                f"{given[0]} is {getattr(self, given[0])!r}, but {source} has constants and heads of its own: leave "
                f"{', '.join(_SWAP[:-1])} and {_SWAP[-1]} out."
            )

    def _check_format(self) -> None:
        check_choice("format", self.format, ("encoder", "sentence-transformers"))
        maybe(one_of(*POOLINGS))("pooling", self.pooling)
        sentences = self.format == "sentence-transformers"
        without = ("onnx", "position_ids", "quantize", "aot") if sentences else ("pooling", "normalize")
        if wrong := [name for name in without if getattr(self, name) != getattr(ExportSettings, name)]:
            raise ExportError(
                f"{wrong[0]} is {getattr(self, wrong[0])!r}, which the format {self.format!r} does not have: leave it "
                f"out, or pass format={'encoder' if sentences else 'sentence-transformers'!r}."
            )


def export_source(settings: ExportSettings, output: str) -> Path:
    """Load the encoder of the settings, and export it to a folder, which is checked before anything is loaded."""
    check_target("output", output, settings.replace)
    check_wanted(settings.onnx, settings.position_ids, settings.quantize, settings.aot)
    if settings.ckpt_path is None:
        assert settings.encoder is not None
        name, encoder = settings.encoder, load_encoder(settings.encoder)
        _swap(encoder, settings, "default")
    else:
        name, encoder = _from_checkpoint(settings, settings.ckpt_path)
    tokenizer = _load_tokenizer(name, settings.tokenizer)
    if settings.dtype is not None:
        encoder = encoder.to(getattr(torch, settings.dtype))
    if settings.format == "sentence-transformers":
        files = _sentence_files(name, settings)
        return export_sentence_transformer(encoder, output, tokenizer, files, replace=settings.replace)
    options = {name: getattr(settings, name) for name in ("replace", "onnx", "position_ids", "quantize", "aot")}
    return export_encoder(encoder, output, tokenizer, **options)


def _sentence_files(encoder: str, settings: ExportSettings) -> SentenceFiles:
    """Those of the folder of the encoder, with what the settings say otherwise."""
    files = read_sentence_files(encoder)
    if files is None and settings.pooling is None and not Path(encoder).expanduser().is_dir():
        raise ExportError(
            f"pooling is None, but the encoder {encoder!r} is a name on the hub, whose {MODULES} is not read: pass "
            "pooling and normalize, or the folder of the encoder."
        )
    given: dict[str, Any] = {} if settings.normalize is None else {"normalize": settings.normalize}
    if settings.pooling is not None:
        given["pooling"] = POOLINGS[settings.pooling]
    return replace(files or SentenceFiles(), **given)


def _swap(encoder: PreTrainedModel, settings: ExportSettings, preset: object) -> None:
    if settings.constants is None:  # the encoder was saved with its own
        return
    ranking = None if settings.ranking is None else HeadRanking.load(settings.ranking)
    constants: AttentionConstants | CompactConstants
    if settings.kind == "compact":
        constants = CompactConstants.load(settings.constants)
    else:
        constants = constants_in_use(AttentionConstants.load(settings.constants), settings.fill_unseen, preset)
        log_filling(constants)
    swap_attention(encoder, settings.kind, constants=constants, heads=settings.heads, ranking=ranking)


def _from_checkpoint(settings: ExportSettings, path: str) -> tuple[str, PreTrainedModel]:
    checkpoint = read_checkpoint(path)
    arguments = checkpoint.get("hyper_parameters") or {}
    name = settings.encoder or arguments.get("encoder")
    state = {key[8:]: held for key, held in checkpoint["state_dict"].items() if key.startswith("encoder.")}
    if not isinstance(name, str) or not state:
        raise ExportError(
            f"ckpt_path is {path!r}, which is no checkpoint of a task of papa_lightning: pass one that `papa fit` "
            "wrote. The encoder of another module is exported in Python, with export_encoder."
        )
    encoder = load_encoder(name)
    saved = swap_as_saved(encoder, state, prefix="")
    if saved:
        settings.check_no_swap(f"the checkpoint {path!r}")
    if not saved and settings.constants is None:
        raise ExportError(f"the checkpoint {path!r} has no constants: pass a constants file of this encoder.")
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ExportError(
            f"the checkpoint {path!r} does not fit the encoder {name!r} ({' '.join(str(error).split())[:300]}): pass "
            "the encoder that the task was trained with."
        ) from error
    if not saved:
        _swap(encoder, settings, arguments.get("preset", "default"))
    return name, encoder


def _load_tokenizer(encoder: str, name: str | None) -> PreTrainedTokenizerBase | None:
    folder = Path(encoder).expanduser()
    if name is None and folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, name or encoder)
    except Exception as error:  # the hub, file readers and tokenizers raise many types of errors
        if name is None and not folder.is_dir():
            return None  # an encoder of the hub that has none
        raise ExportError(
            f"tokenizer {name or encoder!r} cannot be loaded ({' '.join(str(error).split())[:300]}): pass tokenizer=, "
            "a folder that holds tokenizer files, or the name of a model on the hub."
        ) from error
    return tokenizer
