"""Batches that no encoder can take: each is one error that says which batch, what is in it, and what to do."""

import numpy as np
import pytest
import torch
from conformance import tiny_models
from unit.encoders.tiny_encoders import LENGTH, build, make_inputs

from papa_lightning import calibrate
from papa_lightning.errors import CalibrationError


def with_mask(**changes):
    """The usual batch with one entry of the mask another one."""
    mask = make_inputs()["attention_mask"].to(changes["dtype"]).clone()
    mask[1, 1] = changes["value"]
    return {**make_inputs(), "attention_mask": mask}


def changed(name, entry):
    return {**make_inputs(), name: entry}


def at(name, value):
    entry = torch.zeros(4, LENGTH, dtype=torch.int64) if name != "input_ids" else make_inputs()["input_ids"].clone()
    entry[2, 3] = value
    return changed(name, entry)


def embedded(**changes):
    vectors = torch.ones(4, LENGTH, changes.get("size", 32), dtype=changes.get("dtype", torch.float64))
    vectors[0, 0, 0] = changes.get("value", 0.0)
    return {"inputs_embeds": vectors, "attention_mask": make_inputs()["attention_mask"]}


IDS = make_inputs()["input_ids"]
ODD = {
    "nan in the mask": (with_mask(dtype=torch.float32, value=float("nan")), r"attention_mask has the value nan, but"),
    "-1 in the mask": (with_mask(dtype=torch.int64, value=-1), r"attention_mask has the value -1, but is 1 for a real"),
    "2 in the mask": (with_mask(dtype=torch.int32, value=2), r"attention_mask has the value 2, but"),
    "255 in the mask": (with_mask(dtype=torch.uint8, value=255), r"attention_mask has the value 255, but"),
    "a share in the mask": (with_mask(dtype=torch.bfloat16, value=0.5), r"attention_mask has the value 0.5, but"),
    "scores as a mask": (with_mask(dtype=torch.float32, value=-1e9), r"attention_mask has the value -1000000000"),
    "complex mask": (changed("attention_mask", torch.ones(4, LENGTH, dtype=torch.complex64)), r"of torch.complex64"),
    "mask of numpy": (changed("attention_mask", np.ones((4, LENGTH))), r"attention_mask of type ndarray.*pt"),
    "mask as a list": (changed("attention_mask", [[1] * LENGTH] * 4), r"attention_mask of type list"),
    "mask of three dimensions": (changed("attention_mask", torch.ones(4, LENGTH, LENGTH)), r"shape \(4, 10, 10\)"),
    "mask of one dimension": (changed("attention_mask", torch.ones(LENGTH)), r"attention_mask of shape \(10,\)"),
    "mask of another batch": (changed("attention_mask", torch.ones(1, LENGTH)), r"input_ids of shape \(4, 10\), but"),
    "mask without dimensions": (changed("attention_mask", torch.tensor(1)), r"attention_mask of shape \(\)"),
    "sparse mask": (changed("attention_mask", torch.ones(4, LENGTH).to_sparse()), r"attention_mask with the layout"),
    "mask without values": (changed("attention_mask", torch.ones(4, LENGTH, device="meta")), r"meta device"),
    "ids of numpy": (changed("input_ids", IDS.numpy()), r"input_ids of type ndarray"),
    "ragged ids": (changed("input_ids", [[1, 2], [3]]), r"input_ids of type list"),
    "ids as text": (changed("input_ids", "a text"), r"input_ids of type str"),
    "ids that are floats": (
        changed("input_ids", IDS.float()),
        r"input_ids of dtype torch.float32, but must",
    ),
    "ids that are boolean": (changed("input_ids", IDS.bool()), r"input_ids of dtype torch.bool"),
    "ids of 16 bits": (changed("input_ids", IDS.short()), r"input_ids of dtype torch.int16"),
    "ids out of the vocabulary": (at("input_ids", 40), r"input_ids has the value 40, but the encoder knows"),
    "ids below 0": (at("input_ids", -1), r"input_ids has the value -1"),
    "ids of the hidden size": (changed("input_ids", IDS[..., None]), r"input_ids of shape \(4, 10, 1\)"),
    "ids of one dimension": (changed("input_ids", IDS[0]), r"input_ids of shape \(10,\)"),
    "segments out of range": (at("token_type_ids", 2), r"token_type_ids has the value 2, but .* segments 0 to 1"),
    "segments below 0": (at("token_type_ids", -1), r"token_type_ids has the value -1"),
    "segments that are floats": (changed("token_type_ids", torch.zeros(4, LENGTH)), r"token_type_ids of dtype"),
    "segments of another length": (changed("token_type_ids", IDS[:, :4]), r"token_type_ids of shape \(4, 4\)"),
    "positions out of range": (at("position_ids", 24), r"position_ids has the value 24 at a real token"),
    "positions below 0": (at("position_ids", -3), r"position_ids has the value -3 at a real token"),
    "positions of another batch": (changed("position_ids", IDS[:2]), r"position_ids of shape \(2, 10\)"),
    "positions that are floats": (changed("position_ids", torch.zeros(4, LENGTH)), r"position_ids of dtype"),
    "positions that repeat": (changed("position_ids", torch.zeros(1, LENGTH).long()), r"the same value twice"),
    "ids and vectors": ({**make_inputs(), **embedded()}, r"has input_ids and inputs_embeds"),
    "vectors of another size": (
        embedded(size=31),
        r"inputs_embeds has vectors of 31 numbers, but the .* 32",
    ),
    "vectors of whole numbers": (
        embedded(dtype=torch.int64),
        r"inputs_embeds of dtype torch.int64, but must",
    ),
    "vectors with nan": (embedded(value=float("nan")), r"inputs_embeds has values that are NaN or infinite"),
    "vectors with infinity": (embedded(value=float("inf")), r"inputs_embeds has values that are NaN or infinite"),
    "vectors of two dimensions": (
        {**embedded(), "inputs_embeds": torch.randn(4, LENGTH)},
        r"inputs_embeds of shape \(4, 10\), but an attention_mask of shape \(4, 10\)",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_batches(name):
    batch, message = ODD[name]
    with pytest.raises(CalibrationError, match=rf"batch 1.*{message}"):
        calibrate(build(), [make_inputs(), batch], LENGTH)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_masks_of_all_dtypes_are_read(dtype):
    expected = calibrate(build(), [make_inputs()], LENGTH)
    found = calibrate(build(), [changed("attention_mask", make_inputs()["attention_mask"].to(dtype))], LENGTH)
    assert torch.equal(found.values, expected.values)


def test_vectors_of_another_precision_are_cast():
    vectors = build().embeddings.word_embeddings(IDS).detach()
    batch = {"inputs_embeds": vectors.float(), "attention_mask": make_inputs()["attention_mask"]}
    found = calibrate(build(), [batch], LENGTH).values
    torch.testing.assert_close(found, calibrate(build(), [make_inputs()], LENGTH).values, atol=1e-6, rtol=1e-6)


IMAGES = {
    "nan": (lambda images: images.index_put((torch.tensor(0),), torch.tensor(float("nan")).double()), r"NaN or inf"),
    "bytes": (lambda images: images.byte(), r"pixel_values of dtype torch.uint8"),
    "channels": (lambda images: images.expand(-1, 3, -1, -1), r"pixel_values of 3 channels, but the encoder takes 1"),
    "size": (lambda images: images[..., :4], r"pixel_values of \(6, 4\) pixels"),
    "list": (lambda images: images.tolist(), r"pixel_values of shape or type list"),
    "one image": (lambda images: images[0], r"pixel_values of shape or type \(1, 6, 6\)"),
}


@pytest.mark.parametrize("name", ["vit", "papa-images"])
@pytest.mark.parametrize("change", IMAGES)
def test_odd_images(name, change):
    make, message = IMAGES[change]
    images = tiny_models.make_inputs(name)["pixel_values"]
    with pytest.raises(CalibrationError, match=rf"batch 0.*{message}"):
        calibrate(tiny_models.plain(name), [{"pixel_values": make(images)}], tiny_models.CASES[name].length)


def test_images_of_another_precision_are_cast():
    images = tiny_models.make_inputs("papa-images")["pixel_values"].float()
    found = calibrate(tiny_models.plain("papa-images"), [{"pixel_values": images}], 9)
    assert found.metadata["sequences"] == 4


@pytest.mark.parametrize("batches", [None, 5, build()])
def test_batches_that_are_no_batches(batches):
    with pytest.raises(CalibrationError, match=r"batches is a \w+, but must be an iterable of mappings"):
        calibrate(build(), batches, LENGTH)
