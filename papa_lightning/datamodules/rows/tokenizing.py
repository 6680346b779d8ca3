"""Tokenizers, and rows of a fixed length from texts and words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from datasets.fingerprint import Hasher
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from papa_lightning.datamodules.reading.files import first_line
from papa_lightning.datamodules.rows.layouts import (
    Layout,
    Preset,
    mask_of,
    place,
    plain_slots,
    segment_slots,
    token_slots,
)
from papa_lightning.encoders.loading import from_pretrained
from papa_lightning.errors import DataError

NO_LABEL = -100
"""Label of a slot that is not the first token of a word; the loss functions of torch ignore it."""


def load_tokenizer(name: str, revision: str | None, max_length: int, layout: Layout) -> PreTrainedTokenizerBase:
    """Load a tokenizer that has the special tokens of a layout and takes T tokens."""
    try:
        tokenizer = from_pretrained(AutoTokenizer, name, revision=revision, truncation_side="right")
    except Exception as error:  # hub, file readers and tokenizers raise many classes
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
    """Reason why a tokenizer cannot be loaded: transformers takes a missing path for a name on the hub."""
    if Path(name).expanduser().is_dir():
        return f"the folder holds no tokenizer that transformers can read ({first_line(error)})"
    return first_line(error)


def _check_special_tokens(tokenizer: PreTrainedTokenizerBase, name: str, layout: Layout) -> None:
    """Refuse a tokenizer that lacks a special token of the layout."""
    needed = {"padding": tokenizer.pad_token_id}
    if layout == "segment":
        needed["separator"] = separator_id(tokenizer)
    for kind, token_id in needed.items():
        if token_id is None:
            remedy = ', or pass layout="plain"' if kind == "separator" else ""
            raise DataError(
                f"tokenizer {name!r} has no {kind} token, which layout={layout!r} needs: "
                f"use a tokenizer that has one{remedy}."
            )


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the separator, or of the end of the text where there is none (T5); None without either."""
    found: int | None = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
    return found


def prepare_for_words(tokenizer: PreTrainedTokenizerBase, name: str) -> PreTrainedTokenizerBase:
    """Prepare a tokenizer, in place, for texts that are split into words."""
    if not tokenizer.is_fast:
        raise DataError(
            f"tokenizer {name!r} ({type(tokenizer).__name__}) cannot tell which token belongs to which word, which a "
            "token task needs: use one with a tokenizer.json (a fast tokenizer)."
        )
    backend = tokenizer.backend_tokenizer
    content = json.loads(backend.to_str())
    steps = _steps(content["pre_tokenizer"])
    # Byte-level tokenizers mark the start of a word by the blank before it, which single words lack.
    if steps and steps[0].get("type") == "ByteLevel":
        steps[0]["add_prefix_space"] = True
        backend.pre_tokenizer = type(backend).from_str(json.dumps(content)).pre_tokenizer
    elif any(step.get("type") == "ByteLevel" for step in steps):  # which would add one before each piece of a word
        given = [] if content["normalizer"] is None else [content["normalizer"]]
        content["normalizer"] = {"type": "Sequence", "normalizers": [*given, {"type": "Prepend", "prepend": " "}]}
        backend.normalizer = type(backend).from_str(json.dumps(content)).normalizer
    return tokenizer


def _steps(pre_tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer's description, in order."""
    if not isinstance(pre_tokenizer, dict):
        return []
    if "pretokenizers" in pre_tokenizer:
        return [step for one in pre_tokenizer["pretokenizers"] for step in _steps(one)]
    return [pre_tokenizer]


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identity of a tokenizer by content, the same in every process and for every path."""
    content: Any = sorted(tokenizer.get_vocab().items())
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        content = json.loads(backend.to_str())
        # Options of the last call are not part of the tokenizer.
        content = sorted((key, str(value)) for key, value in content.items() if key not in ("truncation", "padding"))
    special = sorted((key, str(value)) for key, value in tokenizer.special_tokens_map.items())
    return str(Hasher.hash([type(tokenizer).__name__, content, special]))


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[list[str]], max_length: int, layout: Layout, preset: Preset
) -> dict[str, list[Any]]:
    """Turn n texts, or pairs, into rows of T tokens; `truncated` says of each row whether tokens lack a slot."""

    def slots_of(input_ids: Sequence[int]) -> list[int]:
        if layout == "plain":
            return plain_slots(len(input_ids), max_length)
        return segment_slots(input_ids, cast("int", separator_id(tokenizer)), max_length, preset)

    # Long texts are cut (of a pair the longer text first) and counted here, without a warning of the tokenizer.
    whole = encoded = tokenizer(*texts, verbose=False)
    lengths = [len(input_ids) for input_ids in whole["input_ids"]]
    if (layout == "plain" or preset == "reference") and max(lengths, default=0) > max_length:
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    slots = [slots_of(input_ids) for input_ids in encoded["input_ids"]]
    return _lay_out(tokenizer, encoded, slots, lengths, preset)


def tokenize_words(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    labels: Sequence[Sequence[int]] | None,
    max_length: int,
    layout: Layout,
    preset: Preset,
) -> dict[str, list[Any]]:
    """Turn n sentences, split into words, into rows of exactly T tokens, with one label per word.

    The first token of a word carries the word's label, all other slots carry -100; `word_ids` (n, T) has the number of
    the word in the same places. In the layout "segment" only the final separator moves, so that words keep their
    positions; both presets cut and label the same way. Each row counts `vanished`, words without any token,
    `cut_words`, words whose first token lacks a slot, and `repaired`, 0.
    """
    whole = encoded = tokenizer(list(map(list, sentences)), is_split_into_words=True, verbose=False)
    lengths = [len(input_ids) for input_ids in whole["input_ids"]]
    if layout == "segment":
        separator = cast("int", separator_id(tokenizer))
        slots = [token_slots(input_ids, separator, max_length) for input_ids in encoded["input_ids"]]
    else:
        if max(lengths, default=0) > max_length:
            encoded = tokenizer(
                list(map(list, sentences)), is_split_into_words=True, truncation=True, max_length=max_length
            )
        slots = [plain_slots(len(input_ids), max_length) for input_ids in encoded["input_ids"]]
    columns = _lay_out(tokenizer, encoded, slots, lengths, preset)
    columns |= {"vanished": [], "cut_words": [], "repaired": [0] * len(slots), "word_ids": []}
    columns |= {"labels": []} if labels else {}
    for row, row_slots in enumerate(slots):
        starts = _word_starts(encoded.word_ids(row))
        tokenised = len(set(whole.word_ids(row)) - {None})
        columns["word_ids"].append(place(starts, row_slots, NO_LABEL))
        placed = sum(word != NO_LABEL for word in columns["word_ids"][-1])
        columns["vanished"].append(len(sentences[row]) - tokenised)
        columns["cut_words"].append(tokenised - placed)
        if labels:
            tags = [NO_LABEL if word == NO_LABEL else labels[row][word] for word in starts]
            columns["labels"].append(place(tags, row_slots, NO_LABEL))
    return columns


def _word_starts(word_ids: Sequence[int | None]) -> list[int]:
    """Number of the word at the first token of every word, `NO_LABEL` at other tokens."""
    before = [None, *word_ids[:-1]]
    return [NO_LABEL if word is None or word == last else word for word, last in zip(word_ids, before, strict=True)]


def _lay_out(
    tokenizer: PreTrainedTokenizerBase,
    encoded: Mapping[str, Any],
    slots: Sequence[list[int]],
    lengths: Sequence[int],
    preset: Preset,
) -> dict[str, list[Any]]:
    """Place the tokens of n rows into their slots; `lengths` are the numbers of tokens before any cut."""
    types = encoded.get("token_type_ids")
    masks = [mask_of(row) for row in slots]
    columns: dict[str, list[Any]] = {
        "input_ids": [
            place(ids, row, tokenizer.pad_token_id) for ids, row in zip(encoded["input_ids"], slots, strict=True)
        ],
        "attention_mask": masks,
        "truncated": [sum(mask) < length for mask, length in zip(masks, lengths, strict=True)],
    }
    if types is not None:
        stay = preset == "reference"
        columns["token_type_ids"] = [
            place(row_types, plain_slots(len(row_types), len(row)) if stay else row, tokenizer.pad_token_type_id)
            for row_types, row in zip(types, slots, strict=True)
        ]
    return columns
