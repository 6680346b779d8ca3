"""Writing an exported encoder: a folder that is whole or not there."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.encoders import SupportedEncoder, is_calibrated
from papa_lightning.encoders.projections.trimmed import trimmed_state
from papa_lightning.encoders.sentence_files import MODULES
from papa_lightning.errors import ExportError, PapaError
from papa_lightning.export.aot import PACKAGE, check_aot, export_aot
from papa_lightning.export.build import transient_buffers
from papa_lightning.export.facts import CONFIG, FACTS, GRAPH, WEIGHTS, Facts, facts_of, is_export, read_facts
from papa_lightning.export.graphs import first_position_id
from papa_lightning.export.load import load_exported_encoder
from papa_lightning.export.onnx.quantization import Quantization, check_quantization
from papa_lightning.export.onnx.write import check_onnx, export_onnx
from papa_lightning.files.checked import file_sum
from papa_lightning.files.writing import check_exchange, check_output_folder, staged_folder
from papa_lightning.version import __version__


def check_target(name: str, folder: str | Path, replace: bool) -> Path:
    """Refuse a folder, the argument ``name``, to which no export could be written; returns its path without links."""
    path = check_output_folder(name, folder)
    if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
        return path
    if not (path.is_dir() and is_export(path)):
        raise ExportError(f"{name} is {str(folder)!r}, which exists and is no export: pass the name of a new folder.")
    if not replace:
        raise ExportError(
            f"{name} is {str(folder)!r}, which holds an export already: pass the name of a new folder, or replace=True "
            "(--replace true)."
        )
    check_exchange(name, path)
    return path


#: Entries of a configuration with paths, or with names of code.
_ELSEWHERE = ("_name_or_path", "name_or_path", "auto_map")


def export_encoder(
    encoder: nn.Module,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    replace: bool = False,
    onnx: bool = False,
    position_ids: bool = False,
    aot: bool = False,
    quantize: Quantization | None = None,
) -> Path:
    """Write a swapped encoder to a folder, without the query and key weights of its constant heads.

    The folder has config.json, model.safetensors (weights and constants), papa.json, and the files of the tokenizer. It
    needs nothing else, and may be moved. It appears whole, after it was read back, or not at all. The encoder is not
    changed.

    Args:
        encoder: An encoder, swapped and calibrated; a task head around it is not exported.
        output_dir: The folder to be made, whose path is returned.
        tokenizer: Tokenizer of the encoder.
        replace: Whether an earlier export in this place may be replaced; other folders never are.
        onnx: Whether to write model.onnx too, see :func:`export_onnx`.
        position_ids: Whether model.onnx and model.pt2 have the input position_ids too, see :func:`export_program`.
        quantize: "int8" for a model.onnx with products of 8-bit integers, see :func:`export_onnx`.
        aot: Whether to write model.pt2 too, see :func:`export_aot`.

    Raises:
        ExportError: When the encoder is not swapped or not as transformers builds it, the folder is taken, packages for
            ``onnx`` or a compiler for ``aot`` are missing, or a graph cannot have position_ids or be quantized.
        OutputError: When the folder cannot be written.
        UnsupportedEncoderError: For a model that is not a supported encoder.

    Example:
        >>> import tempfile, torch
        >>> from papa_lightning import AttentionConstants, export_encoder, load_exported_encoder, swap_attention
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> uniform = AttentionConstants(torch.full((1, 2, 4, 4), 0.25), torch.ones(4, 4))
        >>> encoder = swap_attention(BertModel(config), "constant", constants=uniform)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     loaded = load_exported_encoder(export_encoder(encoder, f"{folder}/exported"))
        >>> loaded.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([0, 8])
    """
    check_wanted(onnx, position_ids, quantize, aot)
    target = check_target("output_dir", output_dir, replace)
    with staged_export(encoder, target, tokenizer, replace, position_ids) as (folder, loaded):
        if onnx:
            export_onnx(loaded, folder / GRAPH, position_ids, quantize)
        if aot:
            export_aot(loaded, folder / PACKAGE, position_ids)
    return target


def check_wanted(onnx: bool, position_ids: bool, quantize: Quantization | None, aot: bool) -> None:
    """Refuse to begin without what graphs need, and what is asked of a graph without one."""
    if onnx:
        check_onnx()
        check_quantization(quantize)
    if aot:
        check_aot()
    if position_ids and not (onnx or aot):
        raise ExportError(
            "position_ids is True, but onnx is False, so that there is no graph to take them: pass onnx=True (--onnx "
            "true), or leave position_ids out. An encoder that is loaded takes them anyway."
        )
    if quantize is not None and not onnx:
        raise ExportError(
            f"quantize is {quantize!r}, but onnx is False, so that there is no graph to quantize: pass onnx=True "
            "(--onnx true), or leave quantize out."
        )


@contextmanager
def staged_export(
    encoder: nn.Module,
    target: Path,
    tokenizer: PreTrainedTokenizerBase | None,
    replace: bool,
    position_ids: bool = False,
) -> Iterator[tuple[Path, PreTrainedModel]]:
    """A new folder with an encoder, and the encoder as read back from it; it gets its name at the end, or is removed.

    Arguments and errors are those of :func:`export_encoder`, with a target that :func:`check_target` allowed.
    """
    found = SupportedEncoder.find(encoder)
    first = first_position_id(found) if position_ids else None
    if not is_calibrated(found.model):
        raise ExportError(
            "the encoder has no constants: call swap_attention(encoder, ..., constants=...), or load a checkpoint that "
            "has them, before it is exported."
        )
    if getattr(found.model.config, "quantization_config", None) is not None:
        raise ExportError("the encoder is quantized, which cannot be exported: export it before it is quantized.")
    with staged_folder(target, replace) as folder:
        write_encoder(found, folder, first)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, folder)
        try:
            loaded = load_exported_encoder(folder)
        except PapaError as error:
            reason = error.__cause__ if error.__cause__ is not None else error
            raise ExportError(f"the encoder cannot be exported, because it would not load: {reason}") from error
        yield folder, loaded
        check_target("output_dir", target, replace)  # another process may have been faster


def write_encoder(found: SupportedEncoder, folder: Path, first: int | None = None) -> None:
    """Write the configuration, weights and facts of a swapped encoder; ``first`` is the first position id."""
    encoder = found.model
    whole = trimmed_state(found) | transient_buffers(encoder)
    state = {name: held.detach().cpu().contiguous() for name, held in _once(whole).items()}
    try:
        safetensors.torch.save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # its wrapper of errors of the disk
        raise OSError(f"{error}") from error
    except (ValueError, RuntimeError) as error:
        raise ExportError(
            f"the encoder's parameters cannot be written ({error}): export an encoder that is on one device and whole "
            "on it, with plain tensors."
        ) from error
    content = _without_paths(json.loads(encoder.config.to_json_string()))
    (folder / CONFIG).write_bytes((json.dumps(content, indent=2) + "\n").encode())
    sums = {name: file_sum(folder / name) for name in (CONFIG, WEIGHTS)}
    facts = Facts(__version__, type(encoder).__name__, files=sums, first_position_id=first, **facts_of(found, state))
    (folder / FACTS).write_bytes(facts.as_bytes())


def _once(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with tied weights under the first of their names only."""
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


def describe_export(folder: Path) -> str:
    """Summary of an export for people: its heads, and the weights that it does without."""
    facts = read_facts(folder)
    count, kinds = facts.parameters, ", ".join(sorted(set(facts.kinds)))
    heads, total = sum(map(len, facts.heads)), len(facts.heads) * facts.num_heads
    size = sum((folder / name).stat().st_size for name in (CONFIG, WEIGHTS))
    share = count["left_out"] / count["whole"]
    loading = f"\nload it  SentenceTransformer({str(folder)!r}, trust_remote_code=True), or load_sentence_transformer"
    return (
        f"exported {folder}\n"
        f"heads    {heads} of {total} heads, kind {kinds}, up to {facts.max_length} tokens\n"
        f"weights  {share:.1%} of {_short(count['whole'])} left out, {_short(count['added'])} for constants, "
        f"{size / 1e6:.1f} MB"
    ) + loading * (folder / MODULES).is_file()


def _short(number: int) -> str:
    """A number with three digits and a unit."""
    if number < 1000:
        return str(number)
    power = min(int(math.log10(number)) // 3, 3)
    return f"{number / 1000**power:.3g}{' kMG'[power]}"
