"""Segment alignment against rows aligned by the published implementation (tests/golden/data/align-*)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from papa_lightning.datamodules.rows.layouts import mask_of, place, segment_slots, token_slots
from papa_lightning.datamodules.rows.tokenizing import tokenize, tokenize_words

DATA = Path(__file__).parent / "data"
LENGTHS = (16, 23, 32)
FAMILIES = ("bert", "roberta")
MODELS = ("bert_a", "deberta_a", "roberta_a")


def load(family, name=None):
    name = name or f"align-{family}"
    special = json.loads((DATA / f"{name}.json").read_text())["special_token_ids"]
    return load_file(DATA / f"{name}.safetensors"), special


def tokenizer_of(special, double):
    """A tokenizer that gives the word `7` the id 7, and has the template of its family."""
    vocabulary = {"[CLS]": special["cls"], "[SEP]": special["sep"], "[PAD]": special["pad"], "[UNK]": 9999}
    vocabulary |= {str(number): number for number in range(1000) if number not in vocabulary.values()}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] [SEP] $B [SEP]" if double else "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    inputs = ["input_ids", "attention_mask"] + ([] if double else ["token_type_ids"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def texts_of(row, separator):
    """The texts that a tokenised row was made of, one or two."""
    words = " ".join("|" if token == separator else str(token) for token in row[1:-1])
    return [text.strip() for text in words.replace("| |", "|").split("|")]


def unpadded(tensors, name):
    rows = zip(tensors[f"{name}.input_ids"].long(), tensors[f"{name}.attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in rows]


def laid_out(rows, all_slots, pad_id):
    ids = [place(row, slots, pad_id) for row, slots in zip(rows, all_slots, strict=True)]
    return torch.tensor(ids), torch.tensor([mask_of(slots) for slots in all_slots])


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_reference_preset_repeats_the_published_alignment(family, length):
    tensors, special = load(family)
    rows = unpadded(tensors, f"T{length}.raw")
    slots = [segment_slots(row, special["sep"], length, preset="reference") for row in rows]
    ids, mask = laid_out(rows, slots, special["pad"])
    assert torch.equal(ids, tensors[f"T{length}.input_ids"].long())
    assert torch.equal(mask, tensors[f"T{length}.attention_mask"].long())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_variant_repeats_the_published_one(family, length):
    tensors, special = load(family)
    rows = unpadded(tensors, f"T{length}.tokens.raw")
    ids, mask = laid_out(rows, [token_slots(row, special["sep"], length) for row in rows], special["pad"])
    assert torch.equal(ids, tensors[f"T{length}.tokens.input_ids"].long())
    assert torch.equal(mask, tensors[f"T{length}.tokens.attention_mask"].long())


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_default_preset_differs_for_single_texts_only(family, length):
    tensors, special = load(family)
    rows = unpadded(tensors, f"T{length}.raw")
    single = [row.count(special["sep"]) == 1 for row in rows]
    assert 0 < sum(single) < len(rows)
    for row, is_single in zip(rows, single, strict=True):
        default, reference = (segment_slots(row, special["sep"], length, preset=p) for p in ("default", "reference"))
        assert (default == reference) == (not is_single or len(row) - 1 <= length // 2)


@pytest.mark.parametrize(
    "name", [*(f"align-{family}" for family in FAMILIES), *(f"{m}-segment-calibration" for m in MODELS)]
)
def test_texts_become_the_published_rows(name):
    """The whole way, from texts through a tokenizer, token types included."""
    tensors, special = load(None, name)
    tokenizer = tokenizer_of(special, double="roberta" in name)
    for prefix, length in [(f"T{length}.", length) for length in LENGTHS] if "align" in name else [("", 24)]:
        rows = unpadded(tensors, f"{prefix}raw")
        kinds = set()
        for row, ids, mask in zip(
            rows, tensors[f"{prefix}input_ids"].tolist(), tensors[f"{prefix}attention_mask"].tolist(), strict=True
        ):
            texts = texts_of(row, special["sep"])
            kinds.add(len(texts))
            columns = tokenize(tokenizer, [[text] for text in texts], length, "segment", "reference")
            assert columns["input_ids"] == [ids]
            assert columns["attention_mask"] == [mask]
            if "token_type_ids" in tensors:
                expected = tensors["token_type_ids"][rows.index(row)].tolist()
                assert columns["token_type_ids"] == [expected]
        assert kinds == {1, 2}


@pytest.mark.parametrize("preset", ["default", "reference"])
@pytest.mark.parametrize("family", FAMILIES)
def test_words_become_the_published_rows(family, preset):
    tensors, special = load(family)
    tokenizer = tokenizer_of(special, double=family == "roberta")
    for length in LENGTHS:
        rows = unpadded(tensors, f"T{length}.tokens.raw")
        words = [[str(token) for token in row[1:-1]] for row in rows]
        columns = tokenize_words(tokenizer, words, [[7] * len(row) for row in words], length, "segment", preset)
        assert columns["input_ids"] == tensors[f"T{length}.tokens.input_ids"].tolist()
        assert columns["attention_mask"] == tensors[f"T{length}.tokens.attention_mask"].tolist()
        assert [row.count(7) for row in columns["labels"]] == list(map(len, words))
