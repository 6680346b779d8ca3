"""The pass: what it averages, what it refuses, and that it leaves no trace."""

import json
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification
from unit.encoders.tiny_encoders import (
    HEADS,
    LAYERS,
    LENGTH,
    MODEL_TYPES,
    PARTIAL,
    POSITIONS,
    build,
    make_constants,
    make_inputs,
    projections,
    self_attentions,
    snapshot,
)

from papa_lightning import AttentionConstants, calibrate, swap_attention
from papa_lightning.calibration import batches as batches_module
from papa_lightning.calibration import check_max_length, describe_model, eval_mode, gather
from papa_lightning.errors import CalibrationError, ConstantsFileError, PapaError

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def definition(model_type, batches, length, **options):
    """sum A m_i m_j / sum m_i m_j, from the matrices that the plain encoder returns."""
    model = build(model_type, implementation="eager", **options)
    sums = torch.zeros(LAYERS, HEADS, length, length, dtype=torch.float64)
    counts = torch.zeros(length, length, dtype=torch.float64)
    for batch in batches:
        with torch.no_grad():
            attentions = model(**batch, output_attentions=True).attentions
        m = batch["attention_mask"].double()
        t = m.shape[1]
        counts[:t, :t] += torch.einsum("bi,bj->ij", m, m)
        sums[:, :, :t, :t] += torch.einsum("lbhij,bi,bj->lhij", torch.stack(attentions), m, m)
    return torch.where(counts > 0, sums / counts.clamp_min(1), 0), counts


def make_batches():
    return [make_inputs(seed=0), make_inputs(batch=1, seed=1), make_inputs(batch=3, length=6, seed=2)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_average_is_the_definition(model_type, implementation):
    batches, length = make_batches(), LENGTH + 2
    expected, counts = definition(model_type, batches, length)
    model = build(model_type, implementation=implementation, attention_dropout=0.5, hidden_dropout=0.5).train()
    constants = calibrate(model, batches, max_length=length)
    assert isinstance(constants, AttentionConstants)
    assert constants.values.dtype is torch.float64
    assert_close(constants.values, expected, **EXACT)
    assert torch.equal(constants.pair_counts, counts)
    assert constants.metadata["sequences"] == 8


@pytest.mark.parametrize("model_type", ["bert", "electra"])
def test_token_types_are_passed_on(model_type):
    batch = make_inputs()
    batch["token_type_ids"] = (torch.arange(LENGTH) > 4).long().expand(4, -1).contiguous()
    expected, _ = definition(model_type, [batch], LENGTH)
    without = definition(model_type, [make_inputs()], LENGTH)[0]
    values = calibrate(build(model_type), [batch], LENGTH).values
    assert_close(values, expected, **EXACT)
    assert not torch.allclose(values, without, atol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_whatever_else_a_batch_has_is_ignored(model_type):
    batch = make_inputs() | {"labels": torch.zeros(4), "text": ["a"] * 4, "idx": None}
    if model_type == "distilbert":
        batch["token_type_ids"] = torch.zeros(4, LENGTH, dtype=torch.int64)
    expected, _ = definition(model_type, [make_inputs()], LENGTH)
    for form in (batch, UserDict(batch)):  # a BatchEncoding is a UserDict
        assert_close(calibrate(build(model_type), [form], LENGTH).values, expected, **EXACT)


def slices(inputs, sizes):
    start = 0
    for size in sizes:
        yield {name: tensor[start : start + size] for name, tensor in inputs.items()}
        start += size


@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 7], [7, 1, 4]])
def test_partition_into_batches_does_not_matter(sizes):
    inputs = make_inputs(batch=12)
    whole = calibrate(build(), [inputs], LENGTH)
    parts = calibrate(build(), slices(inputs, sizes), LENGTH)
    assert_close(parts.values, whole.values, **EXACT)
    assert torch.equal(parts.pair_counts, whole.pair_counts)


def test_padding_does_not_matter():
    short = make_inputs(length=6)
    longer = {
        "input_ids": torch.cat([short["input_ids"], torch.full((4, 8), 7)], dim=1),
        "attention_mask": torch.cat([short["attention_mask"], torch.zeros(4, 8, dtype=torch.int64)], dim=1),
    }
    one, other = (calibrate(build(), [batch], 14) for batch in (short, longer))
    assert_close(one.values, other.values, **EXACT)
    assert torch.equal(one.pair_counts, other.pair_counts)
    assert one.values[:, :, 6:].abs().max() == 0


def test_sequences_of_padding_do_not_matter():
    inputs = make_inputs()
    empty = {**inputs, "attention_mask": torch.zeros_like(inputs["attention_mask"])}
    mixed = {name: torch.cat([empty[name], inputs[name]]) for name in inputs}
    expected = calibrate(build(), [inputs], LENGTH)
    for batches in ([mixed], [empty, inputs], [inputs, empty]):
        constants = calibrate(build(), batches, LENGTH)
        assert_close(constants.values, expected.values, **EXACT)
        assert constants.metadata["sequences"] == 4


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_batches_without_tokens_are_skipped(shape):
    nothing = {"input_ids": torch.zeros(shape, dtype=torch.int64), "attention_mask": torch.zeros(shape)}
    expected = calibrate(build(), [make_inputs()], LENGTH)
    constants = calibrate(build(), [nothing, make_inputs(), nothing], LENGTH)
    assert torch.equal(constants.values, expected.values)


@pytest.mark.parametrize("split", [0, 1, 3, 6])
def test_two_processes(split):
    """One of them may have no sequence at all, and both get the same constants."""
    batches = list(slices(make_inputs(batch=12), [2] * 6))
    shares = batches[:split], batches[split:]
    whole = calibrate(build(), batches, LENGTH)
    gathered = [gather(build(), share, LENGTH) for share in shares]
    for share, own, other in zip(shares, gathered, reversed(gathered), strict=True):
        parts = [other.sums, other.pair_counts, other.squares, other.num_sequences]
        calls = []

        def all_reduce(tensor, parts=parts, calls=calls):
            calls.append(tensor.shape)
            return tensor + parts[len(calls) - 1]

        constants = calibrate(build(), share, LENGTH, all_reduce=all_reduce)
        assert len(calls) == 4
        assert own.sums.dtype is torch.float64
        assert_close(constants.values, whole.values, **EXACT)
        assert_close(constants.variance, whole.variance, **EXACT)
        assert torch.equal(constants.pair_counts, whole.pair_counts)
        assert constants.metadata["sequences"] == 12


@pytest.mark.parametrize("kind", ["all", "partial", "gated", "waiting"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_swapped_encoder_is_seen_as_it_was_pretrained(model_type, kind):
    expected = calibrate(build(model_type), make_batches(), LENGTH)
    model = build(model_type)
    if kind == "waiting":
        swap_attention(model, "constant", max_length=LENGTH)
    else:
        heads = PARTIAL if kind == "partial" else "all"
        swap_attention(model, "gated" if kind == "gated" else "constant", constants=make_constants(), heads=heads)
    before = snapshot(model)
    constants = calibrate(model, make_batches(), LENGTH)
    assert_close(constants.values, expected.values, **EXACT)
    assert constants.metadata == expected.metadata
    assert snapshot(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_constants_of_lower_precision_are_float32(dtype):
    expected, _ = definition("bert", make_batches(), LENGTH)
    constants = calibrate(build(dtype=dtype), make_batches(), LENGTH)
    assert constants.values.dtype is torch.float32
    error = (constants.values.double() - expected).abs().max()
    assert error < {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 1e-2}[dtype]


def test_encoder_with_a_task_head_is_calibrated_like_the_bare_one():
    model = build(auto=AutoModelForSequenceClassification)
    constants = calibrate(model, make_batches(), LENGTH)
    bare = calibrate(model.bert, make_batches(), LENGTH)
    assert torch.equal(constants.values, bare.values)
    assert constants.metadata == bare.metadata


class StopError(Exception):
    pass


def broken_batches():
    yield make_inputs()
    raise StopError


FAILURES = {
    "iterable": (broken_batches, StopError),
    "second_batch": (lambda: [make_inputs(), make_inputs(length=LENGTH + 1)], CalibrationError),
    "forward": (
        lambda: [make_inputs(), {**make_inputs(), "token_type_ids": torch.full((4, LENGTH), 99)}],
        CalibrationError,
    ),
    "none": (list, CalibrationError),
    "no_failure": (lambda: [make_inputs()], None),
}


@pytest.mark.parametrize("name", FAILURES)
@pytest.mark.parametrize("swapped", [False, True])
def test_nothing_is_left_behind(swapped, name):
    """Every module gets back the mode it had, mixed ones too, whether or not the pass fails."""
    model = build(auto=AutoModelForSequenceClassification)
    if swapped:
        swap_attention(model, "gated", constants=make_constants())
    model.train()
    model.bert.encoder.layer[0].eval()
    model.bert.encoder.layer[1].attention.self.eval().dropout.train()
    model.dropout.eval()
    before, random = snapshot(model), torch.get_rng_state()
    make, error = FAILURES[name]
    if error is None:
        calibrate(model, make(), LENGTH)
    else:
        with pytest.raises(error):
            calibrate(model, make(), LENGTH)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_gradient_is_recorded():
    seen = []
    model = build()
    model.encoder.layer[0].register_forward_hook(
        lambda module, args, output: seen.append((torch.is_grad_enabled(), module.training))
    )
    constants = calibrate(model.train(), make_batches(), LENGTH, packing=False)
    assert seen == [(False, False)] * 3
    calibrate(model.train(), make_batches(), LENGTH)
    assert set(seen) == {(False, False)}
    assert not constants.values.requires_grad


def test_batches_are_read_once_and_one_at_a_time(monkeypatch):
    """Packed, the first is run alone, and then as many are read as their tokens take up a bounded memory."""
    model, open_batches = build(), []

    def batches():
        for number in range(4):
            open_batches.append(number)
            yield make_inputs(seed=number)

    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(len(open_batches)))
    calibrate(model, batches(), LENGTH, packing=False)
    assert seen == [1, 2, 3, 4]
    seen.clear()
    open_batches.clear()
    calibrate(model, batches(), LENGTH)
    assert (seen[0], set(seen)) == (1, {1, 4})
    monkeypatch.setattr(batches_module, "_POOL", 1)
    seen.clear()
    open_batches.clear()
    calibrate(model, batches(), LENGTH)
    assert seen == [1, 2, 3, 4]


def test_no_matrices_of_several_layers_at_once():
    """The sums and one layer's probabilities, but never (B, L, H, T, T)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return result

    with Largest() as largest:
        calibrate(build(), [make_inputs(batch=64)], LENGTH)
    assert largest.numel <= 64 * HEADS * LENGTH * LENGTH


def test_data_loader():
    inputs = make_inputs(batch=10)
    rows = [{name: tensor[row] for name, tensor in inputs.items()} for row in range(10)]
    constants = calibrate(build(), DataLoader(rows, batch_size=4), LENGTH, progress=True)
    assert_close(constants.values, calibrate(build(), [inputs], LENGTH).values, **EXACT)


NO_BATCH = [
    ([], r"saw no sequence with a real token"),
    (iter([]), r"saw no sequence with a real token"),
    ([{**make_inputs(), "attention_mask": torch.zeros(4, LENGTH)}], r"saw no sequence with a real token"),
    ([{"input_ids": make_inputs()["input_ids"]}], r"batch 0 has no attention_mask \(keys: input_ids\)"),
    ([{**make_inputs(), "attention_mask": None}], r"batch 0 has no attention_mask"),
    (
        [{**make_inputs(), "attention_mask": [[1] * LENGTH] * 4}],
        r"batch 0 has no attention_mask|attention_mask of type",
    ),
    ([make_inputs(), torch.zeros(4, LENGTH)], r"batch 1 is a Tensor, but must be a mapping"),
    ([tuple(make_inputs().values())], r"batch 0 is a tuple"),
    ([None], r"batch 0 is a NoneType"),
    (make_inputs(), r"batch 0 is a str, but must be a mapping"),
    ([make_inputs(length=LENGTH + 1)], r"batch 0 has sequences of 11 tokens, but max_length is 10"),
    ([{**make_inputs(), "attention_mask": torch.ones(4, 1, 1, LENGTH)}], r"attention_mask of shape \(4, 1, 1, 10\)"),
    ([{**make_inputs(), "attention_mask": torch.ones(LENGTH)}], r"attention_mask of shape \(10,\)"),
    ([{**make_inputs(), "attention_mask": torch.ones(4, 9)}], r"input_ids of shape \(4, 10\).* shape \(4, 9\)"),
    ([{**make_inputs(), "attention_mask": torch.ones(3, LENGTH)}], r"input_ids of shape \(4, 10\).* shape \(3, 10\)"),
    ([{"attention_mask": torch.ones(4, LENGTH)}], r"batch 0 has input_ids of shape None"),
    ([{**make_inputs(), "input_ids": [[1] * LENGTH] * 4}], r"batch 0 has input_ids of"),
    ([{**make_inputs(), "token_type_ids": [[0] * LENGTH] * 4}], r"batch 0 has token_type_ids of type list"),
]


@pytest.mark.parametrize(("batches", "message"), NO_BATCH)
def test_wrong_batches(batches, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate(build(), batches, LENGTH)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_max_length(model_type):
    model = build(model_type)
    limit = POSITIONS - (2 if model_type.endswith("roberta") or model_type == "camembert" else 0)
    assert calibrate(model, [make_inputs()], limit).max_length == limit
    check_max_length(model, 1)
    for wrong in (limit + 1, 0, -1, True, 8.0, "8", None):
        with pytest.raises(CalibrationError, match=rf"max_length is {wrong!r}, but .* 1 to {limit}, the positions"):
            calibrate(model, broken_batches(), wrong)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_nan_is_named_by_its_layer(layer):
    model = build()
    with torch.no_grad():
        projections(self_attentions(model)[layer])[0].bias[HEADS] = float("nan")  # a feature of head 0
    with pytest.raises(CalibrationError, match=rf"attention of layer {layer}, heads \[0\], is NaN"):
        calibrate(model, [make_inputs()], LENGTH)


def test_nan_shows_at_the_first_batch():
    model, read = build(), []
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[:] = float("nan")

    def batches():
        for number in range(100):
            read.append(number)
            yield make_inputs()

    with pytest.raises(CalibrationError, match=r"layer 0, heads \[0, 1, 2, 3\]"):
        calibrate(model, batches(), LENGTH)
    assert read == [0]


def test_nan_of_a_later_batch_is_seen_too():
    model = build()
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[39] = float("inf")
    clean = {**make_inputs(), "input_ids": make_inputs()["input_ids"].clamp_max(38)}
    with pytest.raises(CalibrationError, match=r"layer 0"):
        calibrate(model, [clean, {**clean, "input_ids": torch.full((4, LENGTH), 39)}], LENGTH)


def test_metadata():
    noted = {"data": {"name": "toy", "rows": 8}, "layout": ("plain", 1), "model": "mine", 3: True}
    constants = calibrate(build(), make_batches(), LENGTH, metadata=noted)
    metadata = constants.metadata
    assert metadata["data"] == {"name": "toy", "rows": 8}
    assert metadata["layout"] == ["plain", 1]
    assert metadata["3"] is True
    assert metadata["max_length"] == LENGTH
    assert metadata["model"] == describe_model(build())
    assert {"name", "type", "layers", "heads", "hidden_size", "weights"} == set(metadata["model"])
    assert {"python", "papa-lightning", "torch", "transformers"} == set(metadata["versions"])
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize("metadata", [{"data": object()}, {"data": {1, 2}}, {("a", "b"): 1}, {"t": torch.ones(1)}, [1]])
def test_metadata_that_cannot_be_saved_is_refused_before_the_pass(metadata):
    with pytest.raises(ConstantsFileError, match=r"metadata"):
        calibrate(build(), broken_batches(), LENGTH, metadata=metadata)


def test_metadata_has_no_path(tmp_path, monkeypatch):
    build(dtype=torch.float32).save_pretrained(tmp_path / "folder" / "my-bert")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tmp_path / "folder" / "my-bert")
    path = calibrate(model, [make_inputs()], LENGTH).save(tmp_path / "constants.safetensors")
    assert AttentionConstants.load(path).metadata["model"]["name"] == "my-bert"
    assert str(tmp_path).encode() not in path.read_bytes()
    assert b"folder" not in path.read_bytes()
    monkeypatch.chdir(tmp_path)
    model = AutoModel.from_pretrained("folder/my-bert")
    assert describe_model(model)["name"] == "my-bert"
    model.config.name_or_path = "google-bert/bert-base-uncased"
    assert describe_model(model)["name"] == "google-bert/bert-base-uncased"


def test_wrong_encoder():
    with pytest.raises(PapaError, match=r"Linear holds no transformers PreTrainedModel"):
        calibrate(nn.Linear(2, 2), [make_inputs()], LENGTH)


def test_eval_mode_restores_every_module():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Dropout()))
    model[1].eval()
    model[1][1].train()
    before = [part.training for part in model.modules()]
    with eval_mode(model):
        assert not any(part.training for part in model.modules())
    assert [part.training for part in model.modules()] == before
    with pytest.raises(StopError), eval_mode(model):
        raise StopError
    assert [part.training for part in model.modules()] == before


def test_constants_reproduce_what_all_sequences_agree_on():
    """One sequence, repeated: its own matrices are the average, so all heads constant changes nothing."""
    model, inputs = build(), {name: tensor[2:3].repeat(5, 1) for name, tensor in make_inputs().items()}
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        swap_attention(model, "constant", constants=calibrate(model, [inputs], LENGTH))
        assert_close(model(**inputs).last_hidden_state[real], expected[real], atol=1e-10, rtol=1e-10)


def test_a_token_outside_the_vocabulary():
    encoder = build("bert")
    size = encoder.config.vocab_size
    batch = {"input_ids": torch.tensor([[1, size]]), "attention_mask": torch.ones(1, 2, dtype=torch.long)}
    with pytest.raises(PapaError, match=f"input_ids has the value {size}, but the encoder knows the tokens 0 to"):
        calibrate(encoder, [batch], max_length=2)
