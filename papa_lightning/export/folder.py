"""Writing an exported encoder: a folder that is whole or not there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.encoders import find_encoder, is_calibrated, swapped_layers
from papa_lightning.encoders.projections.trimmed import trimmed_state
from papa_lightning.errors import ExportError, PapaError
from papa_lightning.export.build import count_parameters, transient_buffers
from papa_lightning.export.facts import CONFIG, FACTS, FORMAT, GRAPH, WEIGHTS, Facts, is_export, read_facts
from papa_lightning.export.graphs import check_onnx, export_onnx
from papa_lightning.export.load import load_encoder
from papa_lightning.files import writing as files
from papa_lightning.files.checked import file_sum
from papa_lightning.files.writing import staged_folder
from papa_lightning.runtime import __version__


def check_folder(name: str, folder: str | Path, replace: bool) -> Path:
    """Refuse a folder that cannot be made, before the work that it is for.

    Args:
        name: Of the argument, for messages.
        folder: To be made.
        replace: Whether an earlier export may be replaced.

    Returns:
        Its path, without links.

    Raises:
        ExportError: When it is taken, or cannot be written.
    """
    path = Path(os.path.realpath(os.path.expanduser(folder)))
    try:
        files.check_folder(path.parent)
        taken = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    except (OSError, ValueError) as error:
        raise ExportError(
            f"{name} is {str(folder)!r}, which cannot be written ({getattr(error, 'strerror', None) or error}): pass a "
            "folder in a place that you may write to."
        ) from error
    if taken and not (path.is_dir() and is_export(path)):
        raise ExportError(f"{name} is {str(folder)!r}, which exists and is no export: pass the name of a new folder.")
    if taken and not replace:
        raise ExportError(
            f"{name} is {str(folder)!r}, which holds an export already: pass the name of a new folder, or replace=True "
            "(--replace true)."
        )
    if taken:
        _check_exchange(name, path)
    return path


def _check_exchange(name: str, path: Path) -> None:
    """Refuse to replace a folder where that takes a moment without one."""
    try:
        files.check_exchange(path.parent)
    except OSError as error:
        raise ExportError(
            f"{name} is {str(path)!r}, on a file system that cannot exchange two folders ({error.strerror}), so that a "
            "stopped run could leave neither: remove the export that is there, or pass the name of a new folder."
        ) from error


#: Entries of a configuration that lead elsewhere: to where it came from, or to code.
_ELSEWHERE = ("_name_or_path", "name_or_path", "auto_map")


def export_encoder(
    encoder: nn.Module,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    replace: bool = False,
    onnx: bool = False,
) -> Path:
    """Write a swapped encoder to a folder, without the query and key weights of its constant heads.

    The folder has config.json, model.safetensors (weights and constants), papa.json, and the files of the tokenizer. It
    needs nothing else, and may be moved. It appears whole, after it was read back, or not at all. The encoder stays as
    it is.

    Args:
        encoder: Swapped and calibrated, with or without a task head; what is exported is the bare encoder.
        output_dir: The folder to be made.
        tokenizer: Of the encoder.
        replace: Whether an earlier export in this place may be replaced. Nothing else ever is.
        onnx: Also write model.onnx, see :func:`export_onnx`.

    Returns:
        The folder.

    Raises:
        ExportError: When the encoder is not swapped or not of transformers' making any more, or the folder is taken.
        UnsupportedEncoderError: For a model that is not a supported encoder.
        PapaError: When ``onnx`` is asked for and its packages are missing.

    Example:
        >>> import tempfile, torch
        >>> from papa_lightning import AttentionConstants, export_encoder, load_encoder, swap_attention
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> uniform = AttentionConstants(torch.full((1, 2, 4, 4), 0.25), torch.ones(4, 4))
        >>> encoder = swap_attention(BertModel(config), "constant", constants=uniform)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loaded = load_encoder(export_encoder(encoder, f"{folder}/exported"))
        >>> loaded.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([0, 8])
    """
    base = find_encoder(encoder)
    _check_encoder(base)
    if onnx:
        check_onnx()
    target = check_folder("output_dir", output_dir, replace)
    with staged_folder(target, replace) as folder:
        _write_encoder(base, folder)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, folder)
        loaded = _read_back(folder)
        if onnx:
            export_onnx(loaded, folder / GRAPH)
        check_folder("output_dir", target, replace)  # somebody may have been faster
    return target


def _check_encoder(encoder: PreTrainedModel) -> None:
    if not is_calibrated(encoder):
        raise ExportError(
            "the encoder has no constants: call swap_attention(encoder, ..., constants=...), or load a checkpoint that "
            "has them, before it is exported."
        )
    if getattr(encoder.config, "quantization_config", None) is not None:
        raise ExportError("the encoder is quantized, which cannot be exported: export it before it is quantized.")


def _write_encoder(encoder: PreTrainedModel, folder: Path) -> None:
    whole = trimmed_state(encoder) | transient_buffers(encoder)
    state = {name: held.detach().cpu().contiguous() for name, held in _once(whole).items()}
    try:
        safetensors.torch.save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # in which it wraps what the disk refuses
        raise OSError(f"{error}") from error
    except (ValueError, RuntimeError) as error:
        raise ExportError(
            f"the encoder's parameters cannot be written ({error}): export an encoder that is on one device and whole "
            "on it, with plain tensors."
        ) from error
    content = _without_paths(json.loads(encoder.config.to_json_string()))
    (folder / CONFIG).write_bytes((json.dumps(content, indent=2) + "\n").encode())
    mixers = swapped_layers(encoder)
    facts = Facts(
        format=FORMAT,
        papa_lightning=__version__,
        encoder=type(encoder).__name__,
        max_length=mixers[0].max_length,
        kinds=[mixer.kind for mixer in mixers],
        num_heads=mixers[0].heads.num_heads,
        heads=[list(mixer.constant_heads) for mixer in mixers],
        parameters=count_parameters(encoder, state),
        files={name: file_sum(folder / name) for name in (CONFIG, WEIGHTS)},
    )
    (folder / FACTS).write_bytes(facts.as_bytes())


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are tied under the first of their names only."""
    found: dict[tuple[Any, ...], str] = {}
    for name, held in state.items():
        found.setdefault((held.data_ptr(), held.device, held.shape, held.stride()), name)
    return {name: state[name] for name in found.values()}


def _without_paths(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_paths(value) for key, value in content.items() if key not in _ELSEWHERE}
    return [_without_paths(value) for value in content] if isinstance(content, list) else content


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ExportError(f"tokenizer is a {type(tokenizer).__name__}, but must be one of transformers, or None.")
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    if path.exists():
        path.write_bytes(json.dumps(_without_paths(json.loads(path.read_bytes())), indent=2).encode())


def _read_back(folder: Path) -> PreTrainedModel:
    try:
        return load_encoder(folder)
    except PapaError as error:
        reason = error.__cause__ if error.__cause__ is not None else error
        raise ExportError(f"the encoder cannot be exported, because it would not load: {reason}") from error


def describe_export(folder: Path) -> str:
    """What an export left out, for people.

    Args:
        folder: Of the export.
    """
    facts = read_facts(folder)
    count, kinds = facts.parameters, ", ".join(sorted(set(facts.kinds)))
    heads, total = sum(map(len, facts.heads)), len(facts.heads) * facts.num_heads
    size = sum((folder / name).stat().st_size for name in (CONFIG, WEIGHTS))
    share = count["left_out"] / count["whole"]
    return (
        f"exported {folder}\n"
        f"heads    {heads} of {total} heads, kind {kinds}, up to {facts.max_length} tokens\n"
        f"weights  {share:.1%} of {_short(count['whole'])} left out, {_short(count['added'])} for constants, "
        f"{size / 1e6:.1f} MB"
    )


def _short(number: int) -> str:
    """Three digits and a unit."""
    if number < 1000:
        return str(number)
    power = min(int(math.log10(number)) // 3, 3)
    return f"{number / 1000**power:.3g}{' kMG'[power]}"
