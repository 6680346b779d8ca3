"""Segment alignment against rows aligned by the published implementation (tests/golden/data/align-*)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from papa_lightning.datamodules.layouts import mask_of, place, segment_slots, token_slots

DATA = Path(__file__).parent / "data"
LENGTHS = (16, 23, 32)
FAMILIES = ("bert", "roberta")


def load(family):
    special = json.loads((DATA / f"align-{family}.json").read_text())["special_token_ids"]
    return load_file(DATA / f"align-{family}.safetensors"), special


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
