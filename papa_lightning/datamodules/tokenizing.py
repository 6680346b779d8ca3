"""Loading a tokenizer and turning texts into rows of a fixed length."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from papa_lightning.datamodules.files import first_line
from papa_lightning.datamodules.layouts import Layout, Preset, mask_of, place, plain_slots, segment_slots
from papa_lightning.exceptions import DataError


def load_tokenizer(name: str, revision: str | None, max_length: int, layout: Layout) -> PreTrainedTokenizerBase:
    """Load a tokenizer and check that it can make rows of this layout.

    Args:
        name: Name on the hub, or local folder.
        revision: Revision on the hub.
        max_length: Number of slots T of a row.
        layout: Layout of a row.

    Returns:
        The tokenizer.

    Raises:
        DataError: It cannot be loaded, lacks a special token, or does not take so many tokens.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, truncation_side="right")
    except Exception as error:  # the hub, the file readers and the tokenizers raise errors of their own
        raise DataError(
            f"tokenizer {name!r} cannot be loaded: {_reason(name, error)}. Pass a local folder that holds tokenizer "
            "files, or the name of a model on the hub (which needs a network)."
        ) from error
    _check_special_tokens(tokenizer, name, layout)
    if max_length > tokenizer.model_max_length:
        raise DataError(
            f"max_length is {max_length}, but tokenizer {name!r} takes at most {tokenizer.model_max_length} tokens: "
            "pass a smaller max_length."
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def _reason(name: str, error: Exception) -> str:
    """Say why a tokenizer cannot be loaded: transformers takes a path that does not exist for a name on the hub."""
    if Path(name).is_dir():
        return f"the folder holds no tokenizer that transformers can read ({first_line(error)})"
    if Path(name).is_absolute() or name.startswith("."):
        return "there is no such folder"
    return first_line(error)


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout) -> None:
    """Refuse a tokenizer that lacks a token which the layout puts into rows."""
    needed = {"padding": tokenizer.pad_token_id}
    if layout == "segment":
        needed["separator"] = tokenizer.sep_token_id
    for kind, token_id in needed.items():
        if token_id is None:
            remedy = ', or pass layout="plain"' if kind == "separator" else ""
            raise DataError(
                f"tokenizer {name!r} has no {kind} token, which layout={layout!r} needs: "
                f"use a tokenizer that has one{remedy}."
            )


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identify what a tokenizer does, whatever the path it was loaded from.

    Args:
        tokenizer: The tokenizer.

    Returns:
        A hash that is the same in every process.
    """
    content: Any = sorted(tokenizer.get_vocab().items())
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        content = json.loads(backend.to_str())
        # What the last call asked for is no part of what the tokenizer is.
        content = sorted((key, str(value)) for key, value in content.items() if key not in ("truncation", "padding"))
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return str(Hasher.hash([type(tokenizer).__name__, content, special]))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], max_length: int, layout: Layout, preset: Preset
) -> dict[str, list[Any]]:
    """Turn texts or pairs of texts into rows of exactly T tokens.

    The layout "plain" and the preset "reference" let the tokenizer cut a text to T tokens (of a pair the longer text
    first); "segment" then aligns what is left. The preset "default" aligns the whole text and cuts only what
    does not fit its segment's slots.

    Args:
        tokenizer: The tokenizer.
        texts: One or two columns of n texts.
        max_length: Number of slots T.
        layout: Layout of a row.
        preset: What a single text is cut to, and whether token types follow their tokens.

    Returns:
        Columns of n rows: `input_ids`, `attention_mask` and, where the tokenizer makes them, `token_type_ids`, all
        with T values; `truncated` with one boolean: some tokens of the text found no slot.

    Raises:
        DataError: The tokenizer puts no separator behind the text, which the layout "segment" needs.
    """
    whole = tokenizer(*texts, verbose=False)  # verbose warns about long texts, which are cut and counted here
    cut_first = layout == "plain" or preset == "reference"
    encoded = tokenizer(*texts, truncation=True, max_length=max_length) if cut_first else whole
    types = encoded.get("token_type_ids")
    columns: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "truncated": []}
    columns |= {} if types is None else {"token_type_ids": []}
    for row, input_ids in enumerate(encoded["input_ids"]):
        slots, type_slots = _slots(tokenizer, input_ids, max_length, layout, preset)
        mask = mask_of(slots)
        columns["input_ids"].append(place(input_ids, slots, tokenizer.pad_token_id))
        columns["attention_mask"].append(mask)
        columns["truncated"].append(sum(mask) < len(whole["input_ids"][row]))
        if types is not None:
            columns["token_type_ids"].append(place(types[row], type_slots, tokenizer.pad_token_type_id))
    return columns


def _slots(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], max_length: int, layout: Layout, preset: Preset
) -> tuple[list[int], list[int]]:
    """Slots of the tokens, and slots of the token types.

    In the preset "reference" the types stay where the tokenizer put them, as in the published code, so that the
    second segment loses its type; in "default" they follow their tokens.
    """
    plain = plain_slots(len(input_ids), max_length)
    if layout == "plain":
        return plain, plain
    aligned = segment_slots(input_ids, tokenizer.sep_token_id, max_length, preset)
    return aligned, plain if preset == "reference" else aligned
