"""Constants in memory and as a file: nothing is lost, and nothing broken gets in."""

import json
import random
import struct
import warnings

import pytest
import safetensors.torch
import torch
from unit.encoders.tiny_encoders import LENGTH, build, make_constants, make_inputs

from papa_lightning import AttentionConstants, calibrate, swap_attention
from papa_lightning.calibration import ConstantsMismatchWarning
from papa_lightning.errors import ConstantsFileError

FORMAT = "papa_lightning.attention_constants/1"
METADATA = {
    "model": {"name": "tiny/bert", "type": "bert", "hidden_size": 32, "layers": 3, "heads": 4},
    "data": {"rows": 3, "ratio": 0.1, "shuffled": False, "split": None},
    "layout": ["plain", "ä ☃"],
}


def small(dtype=torch.float32, metadata=METADATA):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    seen = torch.randint(0, 9, (4,), generator=generator).double()
    return AttentionConstants(values, torch.minimum(seen[:, None], seen), metadata)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "constants.safetensors"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("metadata", [METADATA, {}])
def test_round_trip(tmp_path, dtype, metadata):
    constants = small(dtype, metadata)
    path = constants.save(str(tmp_path / "new" / "folder" / "constants.safetensors"))
    for loaded in (AttentionConstants.load(path), AttentionConstants.load(str(path), max_length=4)):
        assert loaded.values.dtype is dtype
        assert torch.equal(loaded.values, constants.values)
        assert loaded.pair_counts.dtype is constants.pair_counts.dtype
        assert torch.equal(loaded.pair_counts, constants.pair_counts)
        assert loaded.metadata == constants.metadata == metadata
    assert [entry.name for entry in path.parent.iterdir()] == ["constants.safetensors"]


def test_variance_travels_and_old_files_have_none(path):
    known = calibrate(build(), [make_inputs()], LENGTH)
    assert known.variance.min() > 0
    assert torch.equal(AttentionConstants.load(known.save(path)).variance, known.variance)
    assert AttentionConstants.load(small().save(path)).variance is None


@pytest.mark.parametrize(
    ("variance", "message"),
    [
        ([0.0], r"variance is a list"),
        (torch.zeros(3, 2), r"variance has shape \(3, 2\).* shape \(2, 3\)"),
        (torch.zeros(2, 3, dtype=torch.int64), r"variance has shape \(2, 3\) and dtype torch.int64"),
        (torch.full((2, 3), float("nan")), r"NaN, infinite or below 0"),
        (torch.full((2, 3), -1e-9), r"NaN, infinite or below 0"),
    ],
)
def test_broken_variance_is_refused(path, variance, message):
    constants = small()
    with pytest.raises(ConstantsFileError, match=message):
        AttentionConstants(constants.values, constants.pair_counts, variance=variance)
    if isinstance(variance, torch.Tensor):
        tensors = {"values": constants.values, "pair_counts": constants.pair_counts, "variance": variance}
        safetensors.torch.save_file(tensors, path, metadata={"format": FORMAT, "papa_lightning": "{}"})
        with pytest.raises(ConstantsFileError, match=message):
            AttentionConstants.load(path)


def test_round_trip_of_awkward_numbers_and_views(path):
    values = (
        torch.tensor([0.0, -0.0, 1e-45, 1e-38, 1 / 3, 1e-30, 1.0, 0.1, 1.0001]).view(1, 1, 3, 3).expand(2, 2, -1, -1)
    )
    constants = AttentionConstants(values.transpose(2, 3), torch.ones(1, 1).expand(3, 3))
    loaded = AttentionConstants.load(constants.save(path))
    assert torch.equal(loaded.values.view(torch.int32), constants.values.contiguous().view(torch.int32))


def test_metadata_is_kept_as_a_file_gives_it_back(path):
    constants = small(metadata={"heads": {0: (1, 2)}, 5: 1.5})
    assert constants.metadata == {"heads": {"0": [1, 2]}, "5": 1.5}
    assert AttentionConstants.load(constants.save(path)).metadata == constants.metadata


def test_metadata_is_a_copy():
    own = {"model": {"name": "a"}}
    constants = small(metadata=own)
    own["model"]["name"] = "b"
    assert constants.metadata["model"]["name"] == "a"


def test_sizes():
    constants = small()
    assert (constants.num_layers, constants.num_heads, constants.max_length) == (2, 3, 4)
    assert constants != small()
    assert constants in [constants]


WRONG = {
    "rank": (torch.rand(3, 4, 4), torch.ones(4, 4), r"values has shape \(3, 4, 4\)"),
    "square": (torch.rand(2, 3, 4, 5), torch.ones(4, 5), r"values has shape \(2, 3, 4, 5\)"),
    "no_layers": (torch.rand(0, 3, 4, 4), torch.ones(4, 4), r"values has shape \(0, 3, 4, 4\)"),
    "no_length": (torch.rand(2, 3, 0, 0), torch.ones(0, 0), r"values has shape \(2, 3, 0, 0\)"),
    "integers": (torch.ones(2, 3, 4, 4).int(), torch.ones(4, 4), r"dtype torch.int32"),
    "complex": (torch.ones(2, 3, 4, 4).to(torch.complex64), torch.ones(4, 4), r"dtype torch.complex64"),
    "eight_bits": (torch.ones(2, 3, 4, 4).to(torch.float8_e4m3fn), torch.ones(4, 4), r"dtype torch.float8"),
    "counts": (
        torch.rand(2, 3, 4, 4),
        torch.ones(5, 5),
        r"pair_counts has shape \(5, 5\), but values has max_length 4",
    ),
    "count": (torch.rand(2, 3, 4, 4), torch.ones(()), r"pair_counts has shape \(\)"),
    "nan": (
        torch.rand(2, 3, 4, 4).index_fill(3, torch.tensor([1]), float("nan")),
        torch.ones(4, 4),
        r"NaN or infinite",
    ),
    "inf": (torch.full((2, 3, 4, 4), float("inf")), torch.ones(4, 4), r"NaN or infinite"),
    "below": (torch.full((2, 3, 4, 4), -1e-3), torch.ones(4, 4), r"values has entries from -0.001 to -0.001, but"),
    "above": (torch.full((2, 3, 4, 4), 1.5), torch.ones(4, 4), r"to 1.5, but attention lies between 0 and 1"),
    "count_nan": (torch.rand(2, 3, 4, 4), torch.full((4, 4), float("nan")), r"pair_counts has entries that are not"),
    "count_inf": (torch.rand(2, 3, 4, 4), torch.full((4, 4), float("inf")), r"pair_counts has entries that are not"),
    "count_half": (torch.rand(2, 3, 4, 4), torch.full((4, 4), 0.5), r"pair_counts has entries that are not whole"),
    "count_below": (torch.rand(2, 3, 4, 4), -torch.ones(4, 4).int(), r"pair_counts has entries that are not whole"),
    "count_complex": (torch.rand(2, 3, 4, 4), torch.ones(4, 4).to(torch.complex64), r"pair_counts has dtype"),
    "count_eight_bits": (torch.rand(2, 3, 4, 4), torch.ones(4, 4).to(torch.float8_e5m2), r"pair_counts has dtype"),
    "count_truth": (torch.rand(2, 3, 4, 4), torch.ones(4, 4).bool(), r"pair_counts has dtype torch.bool"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors(name):
    values, counts, message = WRONG[name]
    with pytest.raises(ConstantsFileError, match=message):
        AttentionConstants(values, counts)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_in_a_file(path, name):
    values, counts, message = WRONG[name]
    tensors = {"values": values.contiguous(), "pair_counts": counts}
    path.write_bytes(safetensors.torch.save(tensors, {"format": FORMAT, "papa_lightning": "{}"}))
    with pytest.raises(ConstantsFileError, match=message):
        AttentionConstants.load(path)


@pytest.mark.parametrize("wrong", [[[1.0]], None, "constants"])
def test_no_tensors(wrong):
    with pytest.raises(ConstantsFileError, match=r"values is a .*must be a tensor"):
        AttentionConstants(wrong, torch.ones(4, 4))
    with pytest.raises(ConstantsFileError, match=r"pair_counts is a .*must be a tensor"):
        AttentionConstants(torch.rand(2, 3, 4, 4), wrong)


@pytest.mark.parametrize("metadata", [{"a": object()}, {"a": {1}}, {(1, 2): 3}, [], "text", 3, {"a": torch.ones(2)}])
def test_metadata_that_cannot_be_saved(metadata):
    with pytest.raises(ConstantsFileError, match=r"^metadata"):
        small(metadata=metadata)


def test_circular_metadata():
    circular = {}
    circular["self"] = circular
    with pytest.raises(ConstantsFileError, match=r"^metadata cannot be saved"):
        small(metadata=circular)


def test_no_file(tmp_path):
    for path in (tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(ConstantsFileError, match=r"does not exist or is not a file.*papa calibrate"):
            AttentionConstants.load(path)


def test_file_cut_anywhere(path):
    small().save(path)
    content = path.read_bytes()
    for length in (*range(0, len(content), 3), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ConstantsFileError, match=r"is damaged or not a safetensors file"):
            AttentionConstants.load(path)
    path.write_bytes(content + b"more")
    with pytest.raises(ConstantsFileError, match=r"is damaged"):
        AttentionConstants.load(path)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, 5000])
def test_random_bytes(path, size):
    for seed in range(20):
        path.write_bytes(random.Random(seed).randbytes(size))
        with pytest.raises(ConstantsFileError, match=r"is damaged or not a safetensors file"):
            AttentionConstants.load(path)


def test_header_with_any_wrong_byte(path):
    """It may still be read, if the byte stands in a name; anything but our own error is a fault."""
    small().save(path)
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    outcomes = set()
    for position in range(end):
        byte = (0x00, 0x22, 0x30, 0x7B, 0xFF)[position % 5]
        path.write_bytes(content[:position] + bytes([byte]) + content[position + 1 :])
        try:
            loaded = AttentionConstants.load(path)
        except ConstantsFileError:
            outcomes.add("refused")
        else:
            assert loaded.values.shape[2:] == loaded.pair_counts.shape
            outcomes.add("read")
    assert outcomes == {"refused", "read"}


@pytest.mark.parametrize("form", [None, "pt", "papa_lightning.attention_constants/2"])
def test_foreign_safetensors(path, form):
    metadata = None if form is None else {"format": form}
    path.write_bytes(safetensors.torch.save({"weight": torch.ones(2)}, metadata))
    with pytest.raises(ConstantsFileError, match=rf"not one of attention constants \(format {form!r}, expected"):
        AttentionConstants.load(path)


@pytest.mark.parametrize("missing", ["values", "pair_counts"])
def test_missing_tensor(path, missing):
    tensors = {"values": torch.rand(2, 3, 4, 4), "pair_counts": torch.ones(4, 4)}
    del tensors[missing]
    path.write_bytes(safetensors.torch.save(tensors, {"format": FORMAT, "papa_lightning": "{}"}))
    with pytest.raises(ConstantsFileError, match=r"is damaged"):
        AttentionConstants.load(path)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", "null", '"text"', "[" * 100_000])
def test_wrong_metadata_in_a_file(path, text):
    metadata = {"format": FORMAT} | ({} if text is None else {"papa_lightning": text})
    tensors = {"values": torch.rand(2, 3, 4, 4), "pair_counts": torch.ones(4, 4)}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    with pytest.raises(ConstantsFileError):
        AttentionConstants.load(path)


@pytest.mark.parametrize(
    "counts", [torch.ones(4, 4).triu(), torch.ones(4, 4).fill_diagonal_(0), 1 + torch.ones(4, 4).tril()]
)
def test_counts_of_no_pairs_in_a_file(path, counts):
    tensors = {"values": torch.rand(2, 3, 4, 4), "pair_counts": counts}
    path.write_bytes(safetensors.torch.save(tensors, {"format": FORMAT, "papa_lightning": "{}"}))
    with pytest.raises(ConstantsFileError, match=r"is damaged .*pair_counts is not symmetric, or"):
        AttentionConstants.load(path)


def test_files_of_other_programs_are_read(path):
    """Without a sum, and as safetensors writes them: that is the format."""
    constants = small()
    tensors = {"values": constants.values, "pair_counts": constants.pair_counts}
    noted = {"format": FORMAT, "papa_lightning": json.dumps(METADATA)}
    safetensors.torch.save_file(tensors, path, noted)
    loaded = AttentionConstants.load(path)
    assert torch.equal(loaded.values, constants.values)
    assert loaded.metadata == METADATA
    tensors["more"] = torch.ones(1)
    safetensors.torch.save_file(tensors, path, noted)
    with pytest.raises(ConstantsFileError, match=r"is damaged .*should not have 'more'"):
        AttentionConstants.load(path)
    safetensors.torch.save_file({"values": constants.values}, path, noted)
    with pytest.raises(ConstantsFileError, match=r"is damaged .*it lacks 'pair_counts'"):
        AttentionConstants.load(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("counts", [torch.float64, torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16])
def test_safetensors_reads_what_is_written(path, dtype, counts):
    constants = AttentionConstants(torch.rand(2, 3, 5, 5).to(dtype), torch.ones(5, 5, dtype=counts))
    found = safetensors.torch.load_file(constants.save(path))
    assert {name: tensor.dtype for name, tensor in found.items()} == {"values": dtype, "pair_counts": counts}
    assert torch.equal(found["values"], constants.values)
    assert torch.equal(found["pair_counts"], constants.pair_counts)


_DTYPES = "BOOL U8 I8 F8_E5M2 F8_E4M3 F8_E8M0 F4 F6_E2M3 I16 U16 F16 BF16 I32 U32 I64 U64 F64 C64"


@pytest.mark.parametrize("dtype", _DTYPES.split())
def test_values_of_any_other_dtype_in_a_file(path, dtype):
    size = 96 * {"F4": 0.5, "F6_E2M3": 0.75, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I32": 4, "U32": 4}.get(dtype, 1)
    size *= 8 if dtype in ("I64", "U64", "F64", "C64") else 1
    counts = {"dtype": "F32", "shape": [4, 4], "data_offsets": [int(size), int(size) + 64]}
    values = {"dtype": dtype, "shape": [2, 3, 4, 4], "data_offsets": [0, int(size)]}
    noted = {"format": FORMAT, "papa_lightning": "{}"}
    header = json.dumps({"__metadata__": noted, "values": values, "pair_counts": counts}).encode()
    header += b" " * (-len(header) % 8)
    content = b"\x00" * int(size) + torch.ones(16).numpy().tobytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)
    if dtype in ("F16", "BF16", "F64"):
        assert not AttentionConstants.load(path).values.any()
    else:
        with pytest.raises(ConstantsFileError):
            AttentionConstants.load(path)


def test_file_is_text_and_numbers_only(path):
    """No pickle on any path of ours."""
    content = small().save(path).read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert set(header) == {"__metadata__", "values", "pair_counts"}
    assert header["__metadata__"]["format"] == FORMAT
    assert json.loads(header["__metadata__"]["papa_lightning"]) == METADATA
    assert header["__metadata__"].keys() == {"format", "papa_lightning", "sha256"}


def test_failed_save_keeps_the_old_file(path, monkeypatch):
    small().save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("papa_lightning.files.writing.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            make_constants().save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_loaded_constants_outlive_their_file(path):
    constants = small()
    loaded = AttentionConstants.load(constants.save(path))
    make_constants().save(path)
    path.unlink()
    assert torch.equal(loaded.values, constants.values)


def test_saved_file_swaps_like_the_constants_in_memory(path):
    model, inputs = build(), make_inputs()
    constants = calibrate(model, [inputs], LENGTH, metadata={"data": {"name": "toy"}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AttentionConstants.load(constants.save(path), model, LENGTH)
    with torch.no_grad():
        expected = swap_attention(model, "constant", constants=constants)(**inputs).last_hidden_state
        assert torch.equal(swap_attention(model, "constant", constants=loaded)(**inputs).last_hidden_state, expected)
    AttentionConstants.load(path, model)  # a swapped encoder has the same fingerprint


@pytest.mark.parametrize(
    ("encoder", "length", "message"),
    [
        (lambda: build("roberta"), None, r"another architecture \(type 'bert', .*than the encoder \(type 'roberta'\)"),
        (lambda: build(layers=2), None, r"3 layers of 4 heads, but the encoder has 2 layers of 4"),
        (lambda: build(num_attention_heads=8), None, r"3 layers of 4 heads, but the encoder has 3 layers of 8"),
        (lambda: build(hidden_size=64), None, r"hidden_size 32, .*hidden_size 64"),
        (lambda: build(max_position_embeddings=8), None, r"max_length 10, but the encoder has 8 positions"),
        (build, 9, r"made with max_length 10, but max_length is 9: calibrate again with max_length=9"),
        (lambda: None, 11, r"made with max_length 10, but max_length is 11"),
    ],
)
def test_constants_of_another_encoder(path, encoder, length, message):
    calibrate(build(), [make_inputs()], LENGTH).save(path)
    with pytest.raises(ConstantsFileError, match=message):
        AttentionConstants.load(path, encoder(), length)


def test_constants_of_other_weights_only_warn(path):
    calibrate(build(), [make_inputs()], LENGTH).save(path)
    with pytest.warns(
        ConstantsMismatchWarning, match=r"other weights.*fine-tuned copy, else calibrate again"
    ) as caught:
        AttentionConstants.load(path, build(seed=1))
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("model", [None, "bert", [], {}, {"weights": None}, {"name": 3}])
def test_incomplete_metadata_checks_what_there_is(model):
    constants = make_constants(metadata={"model": model})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantsMismatchWarning)
        constants.check(build())
    with pytest.raises(ConstantsFileError, match=r"3 layers of 4 heads"):
        constants.check(build(layers=1))
