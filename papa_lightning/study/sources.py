"""Encoders and data of a study that are objects or checkpoints: as folders and classes, which any process can load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.reading.files import content_hash
from papa_lightning.datamodules.rows.tokenizing import fingerprint
from papa_lightning.datamodules.tokenized import TokenizedDataModule, tokenized_rows
from papa_lightning.either_lightning import is_a
from papa_lightning.encoders import find_encoder, restore_attention, swap_as_saved, swapped_layers
from papa_lightning.encoders.loading import from_pretrained, load_plain_encoder
from papa_lightning.errors import CheckpointError, PapaError
from papa_lightning.files.writing import staged_folder
from papa_lightning.study.store import StudyFolder, digest, encoder_identity
from papa_lightning.tasks.checkpoints import read_checkpoint

#: Hyperparameters of checkpoints that may name the pretrained encoder.
_BASE_NAMES = ("encoder", "model_name_or_path", "pretrained_model_name_or_path", "model_name", "backbone", "model")
_KEYS = {"checkpoint", "encoder", "prefix"}


def encoder_folder(store: StudyFolder, name: str, given: Any) -> str:
    """Name or folder of an encoder of a study; one that is an object or in a checkpoint is saved in ``encoders/``.

    Args:
        store: Folder of the study.
        name: Name of the encoder in the study.
        given: Name on the hub or a folder; a checkpoint of Lightning, as the path of a .ckpt or as a map of
            "checkpoint", "encoder" (what it was fine-tuned from) and "prefix" (of its parameters in the checkpoint);
            a module that holds the encoder, or a pair of it and its tokenizer.

    Raises:
        PapaError: For anything else, and for encoders and checkpoints that cannot be used.
    """
    if isinstance(given, (str, Path)) and Path(given).suffix == ".ckpt":
        given = {"checkpoint": str(given)}
    if isinstance(given, (str, Path)):
        return str(given)
    if isinstance(given, Mapping):
        return _from_checkpoint(store, name, given)
    return _from_module(store, name, given)


def _from_module(store: StudyFolder, name: str, given: Any) -> str:
    module, tokenizer = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    if not isinstance(module, nn.Module):
        raise PapaError(
            f"encoders has {name!r} as a {type(given).__name__}, but an encoder is a name on the hub, a folder, a "
            ".ckpt, a module, or a pair of a module and its tokenizer."
        )
    encoder = find_encoder(module)
    if swapped_layers(encoder):
        raise PapaError(
            f"encoders has {name!r}, whose attention is swapped, but here its own attention is the measure: call "
            "restore_attention(encoder) first."
        )
    tokenizer = _tokenizer_of(name, str(encoder.name_or_path)) if tokenizer is None else tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise PapaError(
            f"encoders has {name!r} with a {type(tokenizer).__name__}, which is no tokenizer of transformers."
        )
    key = digest([encoder_identity(encoder), fingerprint(tokenizer)])
    return _saved(store, name, key, lambda: (encoder, tokenizer))


def _from_checkpoint(store: StudyFolder, name: str, given: Mapping[str, Any]) -> str:
    if "checkpoint" not in given or not given.keys() <= _KEYS:
        raise PapaError(
            f"encoders has {name!r} as {dict(given)}, but the keys are checkpoint, and encoder and prefix where needed."
        )
    path = Path(str(given["checkpoint"])).expanduser()
    if not path.is_file():
        raise CheckpointError(f"encoders has {name!r} in {str(path)!r}, but there is no such file: pass a checkpoint.")

    def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        encoder, base = checkpoint_encoder(path, given.get("encoder"), given.get("prefix"))
        return encoder, _tokenizer_of(name, base)

    return _saved(store, name, digest([content_hash(path), given.get("encoder"), given.get("prefix")]), load)


def _saved(store: StudyFolder, name: str, key: str, load: Any) -> str:
    """Folder of an encoder and its tokenizer, written where it does not exist."""
    place = store.encoder(name, key)
    if not place.exists():
        encoder, tokenizer = load()
        with staged_folder(place, replace=True) as folder:  # another part of the study may have been faster
            encoder.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return str(place)


def _tokenizer_of(name: str, base: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, base)
    except Exception as error:  # hub, file readers and tokenizers raise many classes
        raise PapaError(
            f"encoders has {name!r}, whose tokenizer is not found under {base!r}: pass a pair, (encoder, tokenizer)."
        ) from error
    return tokenizer


def checkpoint_encoder(path: Path, base: str | None = None, prefix: str | None = None) -> tuple[PreTrainedModel, str]:
    """The encoder of a checkpoint of Lightning with its own attention, and the name of what it was fine-tuned from.

    Args:
        path: A checkpoint that `papa fit` or any Trainer wrote.
        base: Name or folder of the pretrained encoder, for its configuration; None reads it from the hyperparameters.
        prefix: Prefix of the encoder's parameters, such as "model.bert."; None finds it.

    Raises:
        PapaError: When the checkpoint does not say what the encoder is, or does not hold it.
    """
    content = read_checkpoint(path)
    if base is None:
        noted = content.get("hyper_parameters", {})
        named = [noted[name] for name in _BASE_NAMES if isinstance(noted.get(name), str)]
        if not named:
            raise CheckpointError(
                f"checkpoint {str(path)!r} does not say which pretrained encoder it holds (hyperparameters: "
                f"{', '.join(map(str, noted)) or 'none'}): pass {{checkpoint: ..., encoder: NAME}}, with the name or "
                "folder of what was fine-tuned."
            )
        base = named[0]
    encoder = load_plain_encoder(base)
    state = content["state_dict"]
    prefix = _prefix(path, encoder, state) if prefix is None else prefix
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    swap_as_saved(encoder, own, prefix="")
    wanted = encoder.state_dict().keys()
    if lacking := sorted(wanted - own.keys()):
        raise CheckpointError(
            f"checkpoint {str(path)!r} has no {prefix + lacking[0]!r}, so it does not hold {base!r} under the prefix "
            f"{prefix!r}: pass the encoder that was fine-tuned, or another prefix."
        )
    encoder.load_state_dict({key: own[key] for key in wanted})
    restore_attention(encoder)
    return encoder, base


def _prefix(path: Path, encoder: PreTrainedModel, state: Mapping[str, Any]) -> str:
    """The prefix of the encoder's parameters in a state dict."""
    first = next(iter(encoder.state_dict()))
    found = sorted({key.removesuffix(first) for key in state if key == first or key.endswith(f".{first}")})
    if len(found) != 1:
        which = f"several encoders ({', '.join(map(repr, found))})" if found else f"no parameter {first!r}"
        raise CheckpointError(f"checkpoint {str(path)!r} has {which}: pass the prefix of the encoder's parameters.")
    return found[0]


def plain_tasks(store: StudyFolder, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a study in which data modules may be objects of any base, with plain values in their place."""
    tasks = settings.get("tasks")
    if not isinstance(tasks, Mapping):
        return dict(settings)
    return {**settings, "tasks": {name: task_settings(store, name, data) for name, data in tasks.items()}}


def task_settings(store: StudyFolder, name: str, data: Any) -> Any:
    """A data module of another base as one of the rows that it makes, kept in ``data/``; anything else as it is."""
    if not is_a(data, "LightningDataModule") or isinstance(data, TaskDataModule):
        return data
    splits = tokenized_rows(name, data)
    labels = sorted({label for rows in splits.values() for label in rows["label"]})
    names = getattr(data, "label_names", None) or [str(label) for label in range(max(labels) + 1)]
    splits = {split: _with_names(rows, names) for split, rows in splits.items()}
    key = digest([rows.to_list() for rows in splits.values()])
    place = store.rows(name, key)
    if not place.exists():
        with staged_folder(place, replace=True) as folder:
            for split, rows in splits.items():
                rows.to_parquet(folder / f"{split}.parquet")
    length = max(len(row) for rows in splits.values() for row in rows["input_ids"])
    arguments = {"data_dir": str(place), "label_names": list(names), "task_name": name, "max_length": max(length, 4)}
    metrics = getattr(data, "metrics", None)
    return {
        "class_path": f"{TokenizedDataModule.__module__}.{TokenizedDataModule.__qualname__}",
        "init_args": {**arguments, **({} if metrics is None else {"metrics": list(metrics)})},
    }


def _with_names(rows: Dataset, names: Sequence[str]) -> Dataset:
    """Rows whose labels are names, because a number is a name where names are numbers."""
    labels = [str(names[label]) if 0 <= label < len(names) else str(label) for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", labels)


def plain_task(name: str, data: object) -> Any:
    """A data module as ``class_path`` and ``init_args``; anything else as it is."""
    if not is_a(data, "LightningDataModule"):
        return data
    if not isinstance(data, TaskDataModule):
        raise PapaError(
            f"tasks has {name!r} as a {type(data).__name__}, of which a study keeps the rows in its folder: pass it "
            "in a map of settings, Study({...}, output), or derive it from TaskDataModule."
        )
    given = {key: value for key, value in data.hparams.items() if key != "tokenizer"}
    try:
        arguments = json.loads(json.dumps(given))
    except (TypeError, ValueError) as error:
        raise PapaError(
            f"tasks has {name!r}, a {type(data).__name__} with arguments that are no plain values ({error}): pass its "
            "class_path and init_args."
        ) from error
    return {"class_path": f"{type(data).__module__}.{type(data).__qualname__}", "init_args": arguments}
