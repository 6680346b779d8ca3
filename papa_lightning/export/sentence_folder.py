"""Folders of exported encoders that sentence-transformers loads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.encoders import takes_images
from papa_lightning.encoders.sentence_files import (
    EXPORTED_MODULE,
    MODULE_CONFIG,
    MODULES,
    POOLINGS,
    SENTENCE_CONFIG,
    SentenceFiles,
    read_sentence_files,
)
from papa_lightning.errors import ExportError
from papa_lightning.export.facts import read_facts
from papa_lightning.export.folder import check_target, staged_export

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def export_sentence_transformer(
    encoder: nn.Module,
    output_dir: str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    files: SentenceFiles | None = None,
    *,
    replace: bool = False,
) -> Path:
    """Write a swapped encoder to a folder that ``SentenceTransformer(folder)`` of sentence-transformers loads.

    The folder is that of :func:`export_encoder` with more files, which name modules, pooling, prompts and length.
    Writing it needs no sentence-transformers, and the encoder is not changed.

    Args:
        encoder: An encoder, swapped and calibrated; a task head around it is not exported.
        output_dir: The folder to be made, whose path is returned.
        tokenizer: Tokenizer of the encoder; None, of an encoder without one, is refused.
        files: Pooling, normalisation and prompts, as :func:`read_sentence_files` reads them from the folder of the
            encoder; None for the mean, normalised, without prompts. Texts are cut at the length of the constants, or
            earlier if these files do.
        replace: Whether an earlier export in this place may be replaced; other folders never are.

    Raises:
        ExportError: As in :func:`export_encoder`, and without a tokenizer.

    Example:
        >>> export_sentence_transformer(nn.Linear(2, 2), "folder", None)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.ExportError: tokenizer is None, but sentence-transformers needs one: pass the ...
    """
    if tokenizer is None:
        raise ExportError(
            "tokenizer is None, but sentence-transformers needs one: pass the tokenizer of the encoder (--tokenizer)."
        )
    target = check_target("output_dir", output_dir, replace)
    with staged_export(encoder, target, tokenizer, replace) as (folder, loaded):
        if takes_images(loaded):
            raise ExportError("the encoder reads images, but a folder for sentence-transformers is for texts.")
        _write_sentence_files(folder, loaded, files or SentenceFiles())
    return target


def load_sentence_transformer(folder: str | Path, **options: Any) -> SentenceTransformer:
    """Load a folder of :func:`export_sentence_transformer`, without ``trust_remote_code``.

    ``SentenceTransformer(folder)`` gives the same model, but from sentence-transformers 6 on only with
    ``trust_remote_code=True``, because the class of one module is in this package and not in that one.

    Args:
        folder: Folder of ``papa export --format sentence-transformers``, or one that sentence-transformers saved while
            the encoder was swapped.
        options: Further arguments of SentenceTransformer, such as device.

    Raises:
        ExportError: When the folder has no modules.json or no such encoder, or sentence-transformers is not installed.
        PapaError: When a file is damaged, or the modules are others than those that are written here.

    Example:
        >>> load_sentence_transformer("./no-such-folder")
        Traceback (most recent call last):
        ...
        papa_lightning.errors.ExportError: folder is './no-such-folder', which has no modules.json: ...
    """
    files = read_sentence_files(folder)
    if files is None:
        raise ExportError(
            f"folder is {str(folder)!r}, which has no {MODULES}: pass a folder that `papa export --format "
            "sentence-transformers` or sentence-transformers wrote."
        )
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ExportError("sentence-transformers is not installed: pip install sentence-transformers.")
    from sentence_transformers import SentenceTransformer

    from papa_lightning.export.sentence_module import ExportedTransformer, Normalize, Pooling

    body = ExportedTransformer.load(str(Path(folder).expanduser()))
    modules = [body, Pooling(body.auto_model.config.hidden_size, _word_of(files)), *[Normalize()] * files.normalize]
    known = {"prompts": dict(files.prompts), "default_prompt_name": files.default_prompt}
    return SentenceTransformer(modules=modules, **{**known, "similarity_fn_name": files.similarity, **options})


def _write_sentence_files(folder: Path, encoder: PreTrainedModel, files: SentenceFiles) -> None:
    """Write what sentence-transformers reads, in a form that all its versions since 2.3 know."""
    kinds = ["Pooling", "Normalize"] if files.normalize else ["Pooling"]
    modules = [{"idx": 0, "name": "0", "path": "", "type": EXPORTED_MODULE}]
    for number, kind in enumerate(kinds, start=1):
        path, name = f"{number}_{kind}", f"sentence_transformers.models.{kind}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": name})
    longest = read_facts(folder).max_length
    words = {"cls": "cls_token", "mean": "mean_tokens", "lasttoken": "lasttoken"}
    pooling = {f"pooling_mode_{flag}": word == _word_of(files) for word, flag in words.items()}
    (folder / "1_Pooling").mkdir()
    for name, content in {
        MODULES: modules,
        f"1_Pooling/{MODULE_CONFIG}": {"word_embedding_dimension": encoder.config.hidden_size, **pooling},
        SENTENCE_CONFIG: {
            "model_type": "SentenceTransformer",
            "prompts": dict(files.prompts),
            "default_prompt_name": files.default_prompt,
            "similarity_fn_name": files.similarity,
        },
        "sentence_bert_config.json": {
            "max_seq_length": min(longest, files.max_length or longest),
            "do_lower_case": files.lower_case,
        },
    }.items():
        (folder / name).write_bytes((json.dumps(content, indent=2) + "\n").encode())


def _word_of(files: SentenceFiles) -> str:
    """The word of sentence-transformers for a pooling."""
    return next(word for word, pooling in POOLINGS.items() if pooling == files.pooling)
