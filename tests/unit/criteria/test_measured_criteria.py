"""Divergence, output change and first-order importance against their definitions, written out in float64."""

import copy

import pytest
import torch
from conformance.explicit import allowed_pairs, constant_heads, explicit_attention, normalized, real_tokens, run, slots
from conformance.tiny_models import CASES, HEADS, encode, encoder_of, make_inputs, plain, snapshot, swap, two_batches

from papa_lightning import AttentionConstants, PapaError, calibrate, restore_attention
from papa_lightning.criteria import CRITERIA, RankingInputs, criterion_from, rank_heads
from papa_lightning.encoders import Packing

#: Case -> where transformers has the output projection of a layer.
PROJECTIONS = {
    "bert": "attention.output.dense",
    "deberta": "attention.output.dense",
    "deberta-v2-shared": "attention.output.dense",
    "modernbert": "attn.Wo",
    "gpt2": "attn.c_proj",
    "t5": "SelfAttention.o",
    "bart": "self_attn.out_proj",
    "albert-groups": "attention.dense",
    "mpnet": "attention.attn.o",
    "qwen2": "self_attn.o_proj",
    "distilbert": "attention.out_lin",
}
FAMILIES = pytest.mark.parametrize("name", sorted(PROJECTIONS))
EXACT = {"atol": 1e-9, "rtol": 1e-7}
assert_close = torch.testing.assert_close


def constants_of(name: str) -> AttentionConstants:
    """Calibrated on other data, so that nothing is 0 that could be seen."""
    batches = [make_inputs(name, seed=5, padded=False), *two_batches(name)]
    return calibrate(plain(name), batches, CASES[name].length)


def model_of(name: str) -> torch.nn.Module:
    return copy.deepcopy(plain(name))


def normalized_all(name, constants, inputs):
    """C' of every layer and head, (L, B, H, t, t)."""
    mask, allowed = real_tokens(name, inputs), allowed_pairs(name)
    places, layers = slots(name, mask), enumerate(constants.values)
    heads = [[normalized(own, mask, allowed[layer], places) for own in values] for layer, values in layers]
    return torch.stack([torch.stack(own, dim=1) for own in heads])


def singles(batches):
    """The same sequences, one a batch."""
    return [
        {name: tensor[[row]] for name, tensor in batch.items()}
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]


@FAMILIES
def test_divergence(name: str) -> None:
    constants, total, rows = constants_of(name), 0.0, 0
    for inputs in two_batches(name):
        with explicit_attention(plain(name, "eager"), CASES[name].layers) as record:
            run(plain(name, "eager"), inputs)
        real = real_tokens(name, inputs)
        length = real.shape[1]
        floored = AttentionConstants(
            constants.values.clamp_min(1e-6) * allowed_pairs(name)[:, None], constants.pair_counts
        )
        fixed = normalized_all(name, floored, inputs)
        for layer, matrices in enumerate(record.matrices):
            for row, mask in enumerate(real):
                keys = mask & allowed_pairs(name)[layer][:length, :length]
                own, other = matrices[row], fixed[layer][row]
                ratio = torch.where(keys & (own > 0), own, 1.0).log() - torch.where(keys, other, 1.0).log()
                terms = torch.where(keys & (own > 0), own * ratio, 0.0)
                total = total + torch.zeros(CASES[name].layers, HEADS).double().index_add(
                    0, torch.tensor([layer]), terms.sum(dim=2)[:, mask].sum(dim=1)[None]
                )
        rows += int(real.sum())
    inputs = RankingInputs(model_of(name), constants, two_batches(name))
    scores = criterion_from("divergence").scores(inputs)
    assert scores.min() > 0
    assert_close(scores, total / rows, **EXACT)


@FAMILIES
def test_output_change(name: str) -> None:
    """Against a forward of transformers for every head, in which this head's matrices alone are replaced."""
    constants, model = constants_of(name), copy.deepcopy(plain(name, "eager"))
    outputs: list[torch.Tensor] = []
    for path, module in encoder_of(model).named_modules():
        if path.endswith(PROJECTIONS[name]):
            module.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))
    changes = torch.zeros(CASES[name].layers, HEADS).double()
    energies = torch.zeros(CASES[name].layers, 1).double()
    for inputs in two_batches(name):
        real = real_tokens(name, inputs)

        def outputs_with(heads, inputs=inputs, real=real):
            outputs.clear()
            with explicit_attention(model, CASES[name].layers, constant_heads(name, inputs, constants.values, heads)):
                run(model, inputs)
            return torch.stack([output[real] for output in outputs])

        before = outputs_with([])
        assert len(before) == CASES[name].layers
        energies += before.square().sum(dim=(1, 2))[:, None]
        for layer in range(CASES[name].layers):
            for head in range(HEADS):
                changes[layer, head] += (outputs_with([(layer, head)])[layer] - before[layer]).square().sum()
    scores = criterion_from("output").scores(RankingInputs(model_of(name), constants, two_batches(name)))
    assert scores.min() > 0
    assert_close(scores, changes / energies, **EXACT)


@FAMILIES
def test_output_norm(name: str) -> None:
    """Against the change of a layer's output when the matrices of one head are 0."""
    model, outputs = copy.deepcopy(plain(name, "eager")), list[torch.Tensor]()
    for path, module in encoder_of(model).named_modules():
        if path.endswith(PROJECTIONS[name]):
            module.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))
    squares, tokens = torch.zeros(CASES[name].layers, HEADS).double(), 0

    def outputs_without(inputs, real, layer, head):
        def replace(number, matrices):
            kept = matrices.clone()
            kept[:, head] *= float(number != layer)
            return kept

        outputs.clear()
        with explicit_attention(model, CASES[name].layers, replace):
            run(model, inputs)
        return torch.stack([output[real] for output in outputs])

    for inputs in two_batches(name):
        real = real_tokens(name, inputs)
        tokens += int(real.sum())
        whole = outputs_without(inputs, real, -1, 0)
        for layer in range(CASES[name].layers):
            for head in range(HEADS):
                own = whole[layer] - outputs_without(inputs, real, layer, head)[layer]
                squares[layer, head] += own.square().sum()
    norms = (squares / tokens).sqrt()
    scores = criterion_from("output_norm").scores(RankingInputs(model_of(name), batches=two_batches(name)))
    assert_close(scores, norms / norms.mean(dim=1, keepdim=True), **EXACT)


@FAMILIES
def test_entropy(name: str) -> None:
    total, rows = torch.zeros(CASES[name].layers, HEADS).double(), 0
    for inputs in two_batches(name):
        with explicit_attention(plain(name, "eager"), CASES[name].layers) as record:
            run(plain(name, "eager"), inputs)
        real = real_tokens(name, inputs)
        rows += int(real.sum())
        for layer, matrices in enumerate(record.matrices):
            for row, mask in enumerate(real):
                total[layer] += torch.special.entr(matrices[row][:, mask]).sum(dim=(1, 2))
    scores = criterion_from("entropy").scores(RankingInputs(model_of(name), batches=two_batches(name)))
    assert scores.min() > 0
    assert_close(scores, total / rows, **EXACT)


def test_first_token() -> None:
    total, rows = 0.0, 0
    for inputs in two_batches("bert"):
        with explicit_attention(plain("bert", "eager"), CASES["bert"].layers) as record:
            run(plain("bert", "eager"), inputs)
        real = real_tokens("bert", inputs)
        total += torch.stack([(own[..., 0] * real[:, None]).sum(dim=(0, 2)) for own in record.matrices])
        rows += int(real[real[:, 0]].sum())  # a row whose first token is padding cannot look at it
    constants = calibrate(plain("bert"), two_batches("bert"), CASES["bert"].length)
    scores = criterion_from("first_token").scores(RankingInputs(model_of("bert"), constants))
    assert_close(scores, 1 - total / rows, **EXACT)


def sequence_losses(name, model, inputs):
    """(B,), of the real tokens of each sequence with fixed random weights."""
    hidden = encode(model, inputs)
    weights = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return ((hidden * weights).tanh() * real_tokens(name, inputs)[..., None]).sum(dim=(1, 2))


@FAMILIES
def test_taylor(name: str) -> None:
    """Against one backward pass for each sequence alone, through gates on matrices that are written out."""
    constants, model, total, number = constants_of(name), plain(name, "eager"), 0.0, 0
    for inputs in singles(two_batches(name)):
        fixed = normalized_all(name, constants, inputs)
        alpha = torch.ones(CASES[name].layers, HEADS, 1, 1, dtype=torch.float64, requires_grad=True)

        def replace(layer, matrices, alpha=alpha, fixed=fixed):
            return alpha[layer] * matrices + (1 - alpha[layer]) * fixed[layer]

        with explicit_attention(model, CASES[name].layers, replace):
            (gradient,) = torch.autograd.grad(sequence_losses(name, model, inputs).sum(), alpha)
        total, number = total + gradient[..., 0, 0].abs(), number + 1
    ranked = model_of(name)
    inputs = RankingInputs(
        ranked, constants, two_batches(name), loss=lambda batch: sequence_losses(name, ranked, batch).mean()
    )
    scores = criterion_from("taylor").scores(inputs)
    assert number == 7
    assert scores.min() > 0
    assert_close(scores, total / number, atol=1e-8, rtol=1e-6)


def inputs_of(name, model, batches):
    return RankingInputs(
        model, constants_of(name), batches, loss=lambda batch: sequence_losses(name, model, batch).mean()
    )


@pytest.mark.parametrize("criterion", ["divergence", "output", "taylor", "output_norm", "entropy"])
def test_scores_do_not_depend_on_the_batches(criterion: str) -> None:
    whole = criterion_from(criterion).scores(inputs_of("bert", model_of("bert"), two_batches("bert")))
    alone = criterion_from(criterion).scores(inputs_of("bert", model_of("bert"), singles(two_batches("bert"))))
    assert_close(alone, whole, **EXACT)


@pytest.mark.parametrize("criterion", ["divergence", "output", "taylor", "output_norm", "entropy"])
def test_sequences_of_padding_and_what_stands_at_padding_do_not_count(criterion: str) -> None:
    batches = two_batches("bert")
    padded = []
    for batch in batches:
        more = {name: torch.nn.functional.pad(tensor, (0, 0, 0, 0)) for name, tensor in batch.items()}
        more["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], 7)
        padded.append(more)
    expected = criterion_from(criterion).scores(inputs_of("bert", model_of("bert"), batches))
    assert_close(criterion_from(criterion).scores(inputs_of("bert", model_of("bert"), padded)), expected, **EXACT)
    if criterion != "taylor":  # its mean is over sequences, also those without a token
        nothing = {"input_ids": torch.full((2, 4), 5), "attention_mask": torch.zeros(2, 4, dtype=torch.int64)}
        found = criterion_from(criterion).scores(inputs_of("bert", model_of("bert"), [*batches, nothing]))
        assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("criterion", ["divergence", "output"])
def test_pairs_that_calibration_did_not_see_leave_scores_finite(criterion: str) -> None:
    short = [make_inputs("bert", length=4)]
    constants = calibrate(plain("bert"), short, CASES["bert"].length)
    assert constants.values[:, :, 8].abs().max() == 0
    ranking = rank_heads(criterion, RankingInputs(model_of("bert"), constants, two_batches("bert")))
    assert min(ranking.scores) > 0
    assert max(ranking.scores) < 1000


def fails(batch):
    raise RuntimeError("the loss failed")


@pytest.mark.parametrize("mode", ["none", "partial", "gated", "plain"])
@pytest.mark.parametrize("criterion", ["divergence", "output", "taylor"])
@pytest.mark.parametrize("name", ["bert", "deberta", "albert-groups"])
def test_the_encoder_is_left_as_it_was(name: str, criterion: str, mode: str) -> None:
    """Also after an error; and a swapped one is ranked by its dynamic attention."""
    model, constants = model_of(name), constants_of(name)
    expected = criterion_from(criterion).scores(inputs_of(name, model, two_batches(name)))
    if mode != "plain":
        swap(name, model, mode, constants)
    model.train()
    next(iter(model.parameters())).requires_grad_(False)
    marked = list(model.parameters())[-1]
    marked.grad = torch.ones_like(marked)
    before, output = snapshot(model), run(model, two_batches(name)[0])
    inputs = inputs_of(name, model, two_batches(name))
    assert_close(criterion_from(criterion).scores(inputs), expected, **EXACT)
    assert snapshot(model) == before
    bad = {"input_ids": torch.ones(2, 99, dtype=torch.int64), "attention_mask": torch.ones(2, 99, dtype=torch.int64)}
    broken = RankingInputs(model, inputs.constants, [two_batches(name)[0], bad], inputs.loss)
    with pytest.raises((PapaError, IndexError, RuntimeError)):
        criterion_from(criterion).scores(broken)
    assert snapshot(model) == before
    assert torch.equal(run(model, two_batches(name)[0]), output)
    assert torch.equal(marked.grad, torch.ones_like(marked))
    assert sum(one.grad is not None for one in model.parameters()) == 1
    if mode != "plain":
        restore_attention(model)


def test_the_error_of_a_loss_passes_and_leaves_nothing_behind() -> None:
    model = model_of("bert")
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="the loss failed"):
        rank_heads("taylor", RankingInputs(model, constants_of("bert"), two_batches("bert"), loss=fails))
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: torch.zeros((), requires_grad=True), "no gradient for the attention"),
        (lambda model, batch: run(model, batch).sum(), "no gradient for the attention"),
        (lambda model, batch: encode(model, batch), r"must give the mean loss of a batch"),
        (lambda model, batch: 1.0, r"loss gave a float"),
        (lambda model, batch: (encode(model, batch) + encode(model, batch)).sum(), "more than once"),
        (lambda model, batch: encode(model, batch).sum() * float("nan"), r"not finite for \(layer, head\) \(0, 0\)"),
    ],
)
def test_losses_that_cannot_be_used(loss, message: str) -> None:
    model = model_of("bert")
    inputs = RankingInputs(model, constants_of("bert"), two_batches("bert"), loss=lambda batch: loss(model, batch))
    with pytest.raises(PapaError, match=message):
        rank_heads("taylor", inputs)


@pytest.mark.parametrize("criterion", ["divergence", "output", "taylor", "output_norm", "entropy"])
def test_no_batches_are_refused(criterion: str) -> None:
    model = model_of("bert")
    with pytest.raises(PapaError, match="batches"):
        rank_heads(criterion, inputs_of("bert", model, []))


@pytest.mark.parametrize("criterion", ["divergence", "output", "taylor"])
def test_sequences_longer_than_the_constants_are_refused(criterion: str) -> None:
    model = model_of("bert")
    long = make_inputs("bert", length=14)
    with pytest.raises(PapaError, match=r"14 tokens"):
        rank_heads(
            criterion, RankingInputs(model, constants_of("bert"), [long], lambda batch: encode(model, batch).sum())
        )


def test_an_output_projection_that_is_no_linear_layer_is_named() -> None:
    model = model_of("bert")
    model.encoder.layer[1].attention.output.dense = torch.nn.Identity()
    with pytest.raises(PapaError, match="layer 1 has no output projection"):
        rank_heads("output", RankingInputs(model, constants_of("bert"), two_batches("bert")))


@pytest.mark.parametrize("criterion", ["variance", "divergence", "output", "taylor", "gate", "first_token", "entropy"])
def test_what_is_missing_is_named(criterion: str) -> None:
    needs = CRITERIA[criterion].needs
    given = {
        "constants": constants_of("bert"),
        "batches": two_batches("bert"),
        "loss": lambda batch: torch.zeros(()),
        "task": object(),
    }
    for missing in sorted(needs):
        inputs = RankingInputs(model_of("bert"), **{name: value for name, value in given.items() if name != missing})
        with pytest.raises(PapaError, match=rf"criterion '{criterion}' needs {missing}, but {missing} is None"):
            rank_heads(criterion, inputs)


@pytest.mark.parametrize("criterion", ["divergence", "output", "output_norm", "entropy"])
@FAMILIES
def test_packed_scores_are_those_of_padded_batches(name: str, criterion: str) -> None:
    model, constants, batches = model_of(name), constants_of(name), two_batches(name)
    packed, padded = (
        criterion_from(criterion).measure(RankingInputs(model, constants, batches, packing=Packing(enabled, 16)))
        for enabled in (True, False)
    )
    assert_close(packed, padded, **EXACT)
