"""Loading pretrained encoders by hub name or local folder."""

import inspect
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from papa_lightning.encoders import SwapNote
from papa_lightning.errors import PapaError, UnsupportedEncoderError

#: Folder of the demo's encoder, from the working folder; shipped configurations name it.
DEMO_ENCODER = "models/all-MiniLM-L6-v2"
#: Pages of the hub, which cannot be the first part of a model's name there.
_PAGES = ("models", "datasets", "spaces")


def missing_folder(name: str) -> str | None:
    """Reason why nothing can be loaded from a path of a folder that does not exist; None for all other names."""
    path = Path(name).expanduser()
    is_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if path.exists() or not (is_path or name.split("/")[0] in _PAGES):
        return None
    remedy = "; `papa demo --fetch` writes it" if name == DEMO_ENCODER else ""
    where = "" if path.is_absolute() else f" in the working folder {os.getcwd()!r}"
    return f"there is no such folder{where}{remedy}"


def from_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Load from the hub or a folder by an auto class of transformers, without running code of the model."""
    if reason := missing_folder(name):  # transformers would ask the hub for it, and say that there is no network
        raise FileNotFoundError(reason)
    try:  # without trust_remote_code transformers would ask on stdin whether to run it, and wait
        return kind.from_pretrained(os.path.expanduser(name), trust_remote_code=False, **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):  # transformers has no error type for it, and advises to run the code
            raise
        raise PapaError(
            f"{name!r} cannot be loaded without code that comes with it, and papa_lightning runs none: pass a model of "
            "a family that transformers itself knows."
        ) from error


def load_encoder(name: str) -> PreTrainedModel:
    """Load an encoder in float32 and eval mode, without head, decoder or trainable pooler, at which DDP would stop."""
    config = _load_config(name)
    model_class: Any = MODEL_MAPPING.get(type(config), None)
    has_pooler = inspect.isclass(model_class) and "add_pooling_layer" in inspect.signature(model_class).parameters
    with _failures_explained(name), _without_load_report():
        encoder, report = from_pretrained(
            AutoModel,
            name,
            config=config,
            dtype=torch.float32,  # not the dtype of the file: the Trainer's `precision` decides
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **({"add_pooling_layer": False} if has_pooler else {}),
        )
    encoder = complete_encoder(name, encoder, report)
    pooler = getattr(encoder, "pooler", None)
    if isinstance(pooler, nn.Module):
        pooler.requires_grad_(False)
    return encoder


def complete_encoder(name: str, model: PreTrainedModel, report: Mapping[str, Any]) -> PreTrainedModel:
    """The encoder of a model that AutoModel loaded with `output_loading_info`; a PapaError where it lacks weights."""
    _check_complete(name, report)
    if hasattr(model, "decoder"):  # AutoModel adds one to a T5 encoder that was saved alone
        return cast(PreTrainedModel, model.get_encoder())
    return model


def load_plain_encoder(name: str) -> PreTrainedModel:
    """Load a pretrained encoder with its own attention."""
    check_plain(name)
    return load_encoder(name)


def check_plain(name: str) -> None:
    """Refuse an encoder that was saved swapped, where its own attention is the reference."""
    note = getattr(_load_config(name), "quantization_config", None)
    if isinstance(note, Mapping) and note.get("quant_method") == SwapNote.METHOD:
        raise PapaError(
            f"encoder {name!r} was saved while its attention was swapped, but here its own attention is the measure: "
            "pass the encoder that it was made from, or call restore_attention(encoder) and save it once more."
        )


def vocabulary_size(name: str) -> int:
    """Size of the vocabulary of a pretrained encoder, from its configuration alone."""
    return int(_load_config(name).vocab_size)


def _load_config(name: str) -> PreTrainedConfig:
    with _failures_explained(name):
        config: PreTrainedConfig = from_pretrained(AutoConfig, name)
    for attribute in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if not hasattr(config, attribute):
            raise UnsupportedEncoderError(
                f"encoder {name!r} ({config.model_type}) has no {attribute} in its configuration, so it is no plain "
                "text encoder: pass one such as BERT, RoBERTa or DeBERTa."
            )
    return config


@contextmanager
def _failures_explained(name: str) -> Iterator[None]:
    try:
        yield
    except PapaError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if reason := missing_folder(name):
            raise PapaError(
                f"encoder {name!r} cannot be loaded: {reason}. Pass a folder written by save_pretrained, or the name "
                "of an encoder on the hub."
            ) from error
        raise PapaError(
            f"encoder {name!r} cannot be loaded: pass the name of an encoder on the hub (downloaded before, when "
            f"offline) or a folder written by save_pretrained. transformers says: {error}"
        ) from error


def _check_complete(name: str, report: Mapping[str, Any]) -> None:
    # transformers only warns of missing weights, and fills them at random.
    absent = [key for key in report["missing_keys"] if not {"pooler", "decoder"} & set(key.split("."))]
    absent += [key for key, *_ in report["mismatched_keys"]]
    if absent:
        raise PapaError(
            f"encoder {name!r} has no fitting weights for {len(absent)} of its parameters, {min(absent)!r} among them: "
            "pass a checkpoint of the whole encoder, with the config.json that belongs to it."
        )
    if any(".papa." in key for key in report["unexpected_keys"]):
        raise PapaError(
            f"encoder {name!r} was saved while its attention was swapped, which its config.json does not note: save it "
            "again with save_pretrained of this version, or with the model passed to restore_attention before."
        )


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Silence the table of parameters, in which a pooler that is left out looks like a mistake; mistakes are errors."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
