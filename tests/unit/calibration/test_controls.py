"""Controls beside the average: each does through a real encoder what its name says."""

import copy
import warnings

import pytest
import torch
from conformance import tiny_models
from torch.testing import assert_close
from unit.attention.mixing import mix
from unit.encoders.tiny_encoders import (
    ALL,
    HEADS,
    HIDDEN,
    LAYERS,
    LENGTH,
    PARTIAL,
    build,
    make_inputs,
    self_attentions,
    written_out,
)

from papa_lightning import AttentionConstants, calibrate, restore_attention, swap_attention
from papa_lightning.attention import ConstantHeads, Place, ZeroMassWarning, ZeroMassWatch
from papa_lightning.attention.functional import EPS
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.calibration import CONTROLS, ConstantsKind, constants_kind, control_constants
from papa_lightning.calibration.controls import FALLBACK
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError

EXACT = {"atol": 1e-10, "rtol": 1e-10}
#: Where the fallback stands beside a neighbour, it takes a millionth of the weight.
NEARLY = {"atol": 1e-4, "rtol": 1e-4}


def average_of(model, length=LENGTH, inputs=None):
    return calibrate(model, [inputs or make_inputs()], max_length=length)


def run(model, inputs):
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def real(inputs, hidden):
    return hidden[inputs["attention_mask"].bool()]


def swapped(model, kind, heads="all", **options):
    average = options.pop("average", None) or average_of(model)
    controls = control_constants(kind, average, **options)
    return swap_attention(copy.deepcopy(model), "constant", constants=controls, heads=heads)


def rows_over(mask, choose):
    """(B, T, T), where ``choose`` gives the columns that the real query i of a sequence averages over."""
    matrices = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.float64)
    for number, row in enumerate(mask.bool().tolist()):
        for query in (position for position, there in enumerate(row) if there):
            columns = choose(query, row)
            matrices[number, query, columns] = 1 / len(columns)
    return matrices


def itself(query, row):
    return [query]


def every_token(query, row):
    return [position for position, there in enumerate(row) if there]


def neighbour(offset):
    def choose(query, row):
        other = query + offset
        return [other if 0 <= other < len(row) and row[other] else query]

    return choose


CHOICES = {"uniform": every_token, "identity": itself, "previous": neighbour(-1), "next": neighbour(1)}


def explicit(model, inputs, matrices, heads):
    """The encoder with the matrices (B, T, T) in the given heads, by transformers' own eager attention."""
    modules = self_attentions(model)
    blank = AttentionConstants(torch.zeros(LAYERS, HEADS, LENGTH, LENGTH), torch.ones(LENGTH, LENGTH))
    hooks = []
    # written_out zeroes the chosen heads; what they should give is added behind the value projection of each layer.
    for layer, module in enumerate(modules):
        chosen = torch.tensor([(layer, head) in heads for head in range(HEADS)], dtype=torch.float64)

        def add(module, arguments, output, chosen=chosen):
            value = module.value(arguments[0]).unflatten(-1, (HEADS, -1))
            mixed = torch.einsum("bij,bjhd->bihd", matrices, value) * chosen[:, None]
            return (output[0] + mixed.flatten(2), *output[1:])

        hooks.append(module.register_forward_hook(add))
    try:
        with written_out(model, blank, heads, inputs["attention_mask"]):
            return run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("heads", [ALL, PARTIAL], ids=["all", "some"])
@pytest.mark.parametrize("kind", CHOICES)
def test_a_fixed_kind_through_an_encoder(kind, heads):
    model, inputs = build(), make_inputs()
    matrices = rows_over(inputs["attention_mask"], CHOICES[kind])
    expected = explicit(model, inputs, matrices, heads)
    found = run(swapped(model, kind, heads), inputs)
    assert_close(real(inputs, found), real(inputs, expected), **(NEARLY if kind in ("previous", "next") else EXACT))
    assert not torch.allclose(real(inputs, found), real(inputs, run(model, inputs)), atol=1e-2)


def test_the_explicit_form_is_right():
    """With the matrices that the encoder has anyway it gives the encoder's own output."""
    model, inputs = build(layers=1), make_inputs()
    with torch.no_grad():
        model.set_attn_implementation("eager")
        matrices = model(**inputs, output_attentions=True).attentions[0]
    for head in range(HEADS):
        found = explicit(model, inputs, matrices[:, head], [(0, head)])
        assert_close(real(inputs, found), real(inputs, run(model, inputs)), **EXACT)


def test_identity_feeds_each_token_its_own_value():
    """Without any mixing a token does not change when the others do."""
    model, inputs = build(), make_inputs()
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, 1:] = (other["input_ids"][:, 1:] + 5) % 37 + 3
    first, second = (run(swapped(model, "identity"), batch)[0, 0] for batch in (inputs, other))
    assert torch.equal(first, second)
    assert not torch.allclose(run(model, inputs)[0, 0], run(model, other)[0, 0])


@pytest.mark.parametrize("heads", [ALL, PARTIAL], ids=["all", "some"])
def test_zero_is_the_encoder_without_these_heads(heads):
    model, inputs = build(), make_inputs()
    pruned = copy.deepcopy(model)
    size = HIDDEN // HEADS
    with torch.no_grad():
        for layer, head in heads:
            projection = pruned.encoder.layer[layer].attention.output.dense
            projection.weight[:, head * size : (head + 1) * size] = 0
    found = run(swapped(model, "zero", heads), inputs)
    assert_close(real(inputs, found), real(inputs, run(pruned, inputs)), **EXACT)


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("heads", ["all", PARTIAL], ids=["all", "some"])
def test_no_kind_warns(kind, heads):
    model = build()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = swapped(model, kind, heads)
        assert run(found, make_inputs()).isfinite().all()
        run(found, make_inputs(length=4))


@pytest.mark.parametrize("kind", ["uniform", "identity", "previous", "next", "zero"])
def test_fixed_kinds_hold_where_calibration_saw_nothing(kind):
    model, inputs = build(), make_inputs()
    short = {name: tensor[:, :4] for name, tensor in inputs.items()}
    average = average_of(model, inputs=short)
    assert average.pair_counts[5:].sum() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(swapped(model, kind, average=average), inputs)
    assert_close(found, run(swapped(model, kind), inputs), atol=0, rtol=0)
    with pytest.warns(ZeroMassWarning):
        run(swapped(model, "average", average=average), inputs)


def test_a_partly_zero_head_beside_a_pruned_one_is_warned_of():
    model, inputs = build(), make_inputs()
    average = average_of(model)
    values = average.values.clone()
    values[1, 2] = 0
    values[1, 3, 4:] = 0
    swap_attention(model, "constant", constants=AttentionConstants(values, average.pair_counts))
    with pytest.warns(ZeroMassWarning, match=r"layer 1, heads \[3\]: real tokens at positions \[4, 5, 6, 7, 8, 9\]"):
        run(model, inputs)


def test_an_average_that_is_zero_up_to_the_length_of_the_batch_is_no_pruned_head():
    values = torch.zeros(2, 6, 6)
    values[0, 4:, 4:] = 0.5
    mixer = ConstantHeads(Place(0, 2, 6), [0, 1])
    mixer.load_constants(values)
    nothing = torch.zeros(1, 0, 4, 2)
    with pytest.warns(ZeroMassWarning, match=r"heads \[0\]: real tokens at positions \[0, 1, 2, 3\]"):
        mix(mixer, nothing, nothing, torch.ones(1, 2, 4, 2), None, 1.0)


def test_pruned_heads_need_no_look_at_the_mask(monkeypatch):
    model, inputs = build(), make_inputs()
    pruned, partly = swapped(model, "zero"), build()
    average = average_of(model)
    values = average.values.clone()
    values[:, 0] = 0
    swap_attention(partly, "constant", constants=AttentionConstants(values, average.pair_counts))
    looks = []
    monkeypatch.setattr(ZeroMassWatch, "check", lambda *arguments: looks.append(arguments))
    for encoder in (pruned, partly):
        assert [mixer.certain_length for mixer in swapped_layers(encoder)] == [LENGTH] * LAYERS
        run(encoder, inputs)
    assert looks == []
    assert first_zero_of_diagonal(torch.stack([torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 0, 1]))])) == 1


@pytest.mark.parametrize("kind", CONTROLS)
@pytest.mark.parametrize("name", ["gpt2", "qwen2-sliding", "modernbert"])
def test_encoders_that_cannot_look_everywhere(name, kind):
    model, inputs = tiny_models.build(name), tiny_models.make_inputs(name)
    controls = control_constants(kind, tiny_models.calibrated(name, model))
    swap_attention(model, "constant", constants=controls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tiny_models.encode(model, inputs).isfinite().all()


def test_next_in_a_causal_encoder_is_identity():
    model, inputs = tiny_models.build("gpt2"), tiny_models.make_inputs("gpt2")
    average = tiny_models.calibrated("gpt2", model)
    results = {}
    for kind in ("next", "identity", "average"):
        swap_attention(model, "constant", constants=control_constants(kind, average))
        results[kind] = real(inputs, tiny_models.encode(model, inputs))
    assert_close(results["next"], results["identity"], **EXACT)
    assert not torch.allclose(results["next"], results["average"], atol=1e-2)


def test_average_is_the_average():
    model = build()
    average = average_of(model)
    control = control_constants("average", average)
    assert torch.equal(control.values, average.values)
    assert control.metadata == {**average.metadata, "kind": "average"}
    inputs = make_inputs()
    plain = swap_attention(copy.deepcopy(model), "constant", constants=average)
    assert torch.equal(run(swapped(model, "average"), inputs), run(plain, inputs))
    assert torch.equal(run(restore_attention(plain), inputs), run(model, inputs))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", CONTROLS)
def test_shape_counts_dtype_and_metadata_are_kept(kind, dtype):
    average = AttentionConstants(torch.rand(2, 3, 5, 5).to(dtype), torch.randint(1, 9, (5, 5)), {"data": {"rows": 3}})
    control = control_constants(kind, average, seed=4)
    assert control.values.shape == average.values.shape
    assert control.values.dtype is dtype
    assert torch.equal(control.pair_counts, average.pair_counts)
    extra = {"seed": 4} if kind == "shuffled" else {}
    assert control.metadata == {"data": {"rows": 3}, "kind": kind, **extra}
    assert average.metadata == {"data": {"rows": 3}}
    if kind in ("previous", "next"):
        assert (control.values.diagonal(dim1=2, dim2=3) > EPS).all()


def test_the_variance_of_the_average_is_that_of_no_other_kind():
    average = AttentionConstants(torch.rand(2, 3, 5, 5), torch.ones(5, 5), variance=torch.rand(2, 3))
    for kind in CONTROLS:
        assert control_constants(kind, average).variance is (average.variance if kind == "average" else None)


@pytest.mark.parametrize("kind", CONTROLS)
def test_a_control_shares_no_memory_with_itself_and_is_saved(kind, tmp_path):
    average = AttentionConstants(torch.rand(2, 3, 5, 5), torch.ones(5, 5))
    before = average.values.clone()
    control = control_constants(kind, average)
    loaded = AttentionConstants.load(control.save(tmp_path / "control.safetensors"))
    assert torch.equal(loaded.values, control.values)
    assert loaded.metadata == control.metadata
    if kind != "average":
        control.values[0, 0, 0, 0] = 9.0  # would appear in every head of an expanded tensor
        assert (control.values == 9).sum() == 1
    assert torch.equal(average.values, before)


def test_neighbours_written_out():
    average = AttentionConstants(torch.rand(1, 1, 3, 3), torch.ones(3, 3))
    tiny = FALLBACK
    assert_close(
        control_constants("previous", average).values[0, 0], torch.tensor([[1, 0, 0], [1, tiny, 0], [0, 1, tiny]])
    )
    assert_close(control_constants("next", average).values[0, 0], torch.tensor([[tiny, 1, 0], [0, tiny, 1], [0, 0, 1]]))
    single = AttentionConstants(torch.rand(1, 1, 1, 1), torch.ones(1, 1))
    assert control_constants("next", single).values.item() == control_constants("previous", single).values.item() == 1


def test_shuffled_keeps_the_weights_of_each_row_but_not_their_places():
    generator = torch.Generator().manual_seed(1)
    counts = torch.ones(8, 8)
    counts[:, 6:], counts[6:] = 0, 0
    values = torch.rand(2, 3, 8, 8, generator=generator) * (counts > 0)
    average = AttentionConstants(values, counts)
    shuffled = control_constants("shuffled", average, seed=3).values
    assert torch.equal(shuffled.sort(dim=-1).values, values.sort(dim=-1).values)
    assert (shuffled[..., counts == 0] == 0).all()
    moved = (shuffled != values).any(dim=-1)[:, :, :6]
    assert moved.float().mean() > 0.9
    orders = {
        tuple((shuffled[i, j, k, :6][:, None] == values[i, j, k, None, :6]).float().argmax(1).tolist())
        for i in range(2)
        for j in range(3)
        for k in range(6)
    }
    assert len(orders) > 30  # of 36 rows: each has a permutation of its own
    assert torch.equal(control_constants("shuffled", average, seed=3).values, shuffled)
    assert not torch.equal(control_constants("shuffled", average, seed=4).values, shuffled)


def test_shuffled_moves_every_weight_everywhere_equally_often():
    values = torch.zeros(1, 1, 4, 4)
    values[0, 0, :, 0] = 0.7
    values[0, 0, :, 1:] = 0.1
    average = AttentionConstants(values, torch.ones(4, 4))
    places = torch.stack([control_constants("shuffled", average, seed=seed).values[0, 0] > 0.5 for seed in range(400)])
    assert ((places.float().mean(dim=0) - 0.25).abs() < 0.1).all()


def test_shuffled_stays_within_reach():
    model = tiny_models.build("qwen2-sliding")
    average = tiny_models.calibrated("qwen2-sliding", model)
    shuffled = control_constants("shuffled", average).values
    allowed = tiny_models.CASES["qwen2-sliding"].may_attend()
    assert (shuffled[~allowed[:, None].expand_as(shuffled)] == 0).all()
    assert_close(shuffled.sum(dim=-1), average.values.sum(dim=-1))
    assert not torch.equal(shuffled, average.values)


@pytest.mark.parametrize("kind", ["sequences:16", "other:cola", "Average", "", None, 3, [], ["zero"]])
def test_unknown_kinds_of_controls(kind):
    average = AttentionConstants(torch.rand(1, 1, 2, 2), torch.ones(2, 2))
    with pytest.raises(PapaError, match=r"^kind is .*must be one of 'average', 'uniform', .*'shuffled'"):
        control_constants(kind, average)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None, "1"])
def test_bad_seeds(seed):
    average = AttentionConstants(torch.rand(1, 1, 2, 2), torch.ones(2, 2))
    with pytest.raises(PapaError, match=r"^seed is .*whole number(, at least 0| from 0 to 9223372036854775807)\.$"):
        control_constants("shuffled", average, seed=seed)


def test_controls_of_something_else():
    with pytest.raises(PapaError, match=r"^average is a Tensor, but must be an AttentionConstants"):
        control_constants("zero", torch.rand(1, 1, 2, 2))


def test_kinds_of_constants_are_read():
    for kind in CONTROLS:
        assert constants_kind(kind) == ConstantsKind(kind)
    assert constants_kind("sequences:1") == ConstantsKind("sequences", sequences=1)
    assert constants_kind("sequences:20000").sequences == 20000
    assert constants_kind("other:my:task") == ConstantsKind("other", other_task="my:task")
    for spec in (*CONTROLS, "sequences:16", "other:sst2"):
        assert str(constants_kind(spec)) == spec
    with pytest.raises(AttributeError):
        constants_kind("zero").name = "one"


BAD_KINDS = ["", "mean", "Zero", "average:3", "sequences", "sequences:", "sequences:0", "sequences:-3", "sequences:1.5"]
BAD_KINDS += ["sequences:016", "sequences:١٦", "sequences:" + 5000 * "9", "other", "other:", "other: ", "other: cola"]


@pytest.mark.parametrize("spec", [*BAD_KINDS, None, 16, ["average"], {}], ids=lambda spec: repr(spec)[:20])
def test_bad_kinds_of_constants(spec):
    with pytest.raises(PapaError, match=r"^constants is .*'average', 'uniform', .*'sequences:N'.*'other:TASK'"):
        constants_kind(spec)
