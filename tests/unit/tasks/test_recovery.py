"""Recovery: an encoder with constant heads comes nearer to the embeddings of the original, and nothing else changes."""

import copy
from dataclasses import replace

import pytest
import torch
from conformance.tiny_models import CASES, make_constants, make_inputs, plain, swap

from papa_lightning import PapaError, distil, swap_attention
from papa_lightning.embeddings import Embedder
from papa_lightning.encoders import Packing, dynamic_attention_of, swapped_layers
from papa_lightning.tasks.recovery import RecoverySettings, embedding_loss

SETTINGS = RecoverySettings(learning_rate=3e-3, max_epochs=6, batch_size=6, gram_weight=1.0)


def batches_of(name, number=6):
    return [make_inputs(name, batch=4, length=CASES[name].length - (seed % 2), seed=seed) for seed in range(number)]


def distance(model, batches, teacher):
    return float(embedding_loss(Embedder(model).embed_rows(batches), teacher, 0.0))


@pytest.mark.parametrize("name", ["bert", "deberta", "modernbert", "albert-groups", "qwen2"])
def test_embeddings_come_nearer_to_those_of_the_original(name):
    model, batches = copy.deepcopy(plain(name)), batches_of(name)
    teacher = Embedder(model).embed_rows(batches)
    swap(name, model, "all")
    before = distance(model, batches, teacher)
    distil(model, batches, settings=SETTINGS)
    assert distance(model, batches, teacher) < 0.75 * before
    assert not model.training


def test_what_learns_and_what_rests():
    model = copy.deepcopy(plain("bert")).train()
    swap("bert", model, "partial")
    before = {name: held.clone() for name, held in model.state_dict().items()}
    wanted = {name: one.requires_grad for name, one in model.named_parameters()}
    distil(model, batches_of("bert"), settings=SETTINGS)
    changed = {name for name, held in model.state_dict().items() if not torch.equal(held, before[name])}
    assert {name: one.requires_grad for name, one in model.named_parameters()} == wanted
    assert list(model.state_dict()) == list(before)
    assert "embeddings.word_embeddings.weight" not in changed
    assert not any("papa" in name for name in changed)
    assert {f"encoder.layer.{layer}.output.dense.weight" for layer in range(3)} <= changed


@pytest.mark.parametrize("before", [False, True])
def test_constants_that_learn_stay_distributions(before):
    """They are parameters afterwards where they were before."""
    model, batches = copy.deepcopy(plain("bert")), batches_of("bert")
    teacher = Embedder(model).embed_rows(batches)
    swap("bert", model, "all")
    for mixer in swapped_layers(model):
        mixer.learn_constants(before)
    old = [mixer.constants.detach().clone() for mixer in swapped_layers(model)]
    found = distance(model, batches, teacher)
    learning = replace(SETTINGS, learn_constants=True)
    distil(model, batches, teacher=teacher, settings=learning)
    assert distance(model, batches, teacher) < 0.75 * found
    for mixer, other in zip(swapped_layers(model), old, strict=True):
        assert isinstance(mixer.constants, torch.nn.Parameter) is before
        assert not torch.allclose(mixer.constants, other)
        rows = mixer.constants.sum(dim=-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))
        assert float(mixer.constants.min()) >= 0


def test_a_seed_decides_all_and_packing_nothing():
    weights = []
    for seed, packing, noise in ((0, None, 1), (0, Packing(False), 2), (1, None, 3)):
        model = copy.deepcopy(plain("bert"))
        swap("bert", model, "all")
        torch.manual_seed(noise)
        settings = RecoverySettings(max_epochs=2, batch_size=5, seed=seed)
        distil(model, batches_of("bert"), settings=settings, packing=packing)
        weights.append(model.encoder.layer[0].output.dense.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-9, rtol=0)
    assert not torch.allclose(weights[0], weights[2], atol=1e-6)


def test_the_teacher_is_the_encoder_with_all_heads_dynamic():
    model, batches = copy.deepcopy(plain("bert")), batches_of("bert")
    teacher = Embedder(model).embed_rows(batches)
    swap("bert", model, "all")
    with dynamic_attention_of(model):
        found = Embedder(model).embed_rows(batches)
    torch.testing.assert_close(found, teacher)
    other = copy.deepcopy(model)
    distil(model, batches, settings=SETTINGS)
    distil(other, batches, settings=SETTINGS, teacher=teacher)
    one, two = (Embedder(some).embed_rows(batches) for some in (model, other))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_the_loss_by_hand():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    own, other = (one / one.norm(dim=1, keepdim=True) for one in (student, teacher))
    cosine = sum(1 - float(own[row] @ other[row]) for row in range(3)) / 3
    gram = sum(float(own[a] @ own[b] - other[a] @ other[b]) ** 2 for a in range(3) for b in range(3)) / 9
    assert float(embedding_loss(student, teacher, 2.5)) == pytest.approx(cosine + 2.5 * gram)
    assert float(embedding_loss(student * 7, teacher, 0.0)) == pytest.approx(cosine)
    assert float(embedding_loss(teacher.half() * 3, teacher)) == pytest.approx(0.0, abs=1e-5)


def test_what_cannot_be_trained_is_refused():
    model, batches = copy.deepcopy(plain("bert")), batches_of("bert")
    with pytest.raises(PapaError, match="no constant heads, so there is nothing to recover"):
        distil(model, batches)
    swap_attention(model, "constant", constants=make_constants("bert"))
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(PapaError, match="nothing in the encoder learns"):
        distil(frozen, batches)
    for given, message in (
        ([], "batches has no sentence"),
        ([{name: torch.zeros_like(held) for name, held in batches[0].items()}], "without a real token"),
        ([{"inputs_embeds": torch.zeros(1, 3, 32), "attention_mask": torch.ones(1, 3)}], "batches has no input_ids"),
    ):
        with pytest.raises(PapaError, match=message):
            distil(model, given)
    with pytest.raises(PapaError, match=r"teacher is of shape \(3, 32\), but batches have 24 sentences"):
        distil(model, batches, teacher=torch.zeros(3, 32))
    with pytest.raises(
        PapaError, match=r"the loss of the recovery is nan after epoch [12]: pass a smaller learning_rate"
    ):
        distil(model, batches, settings=RecoverySettings(learning_rate=1e300, schedule="constant", warmup_share=0.0))


@pytest.mark.parametrize("wrong", [{"max_epochs": 0}, {"batch_size": 0}, {"gram_weight": -1.0}, {"seed": -1}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(PapaError, match=rf"recovery\.{next(iter(wrong))} is -?\d"):
        RecoverySettings(**wrong)
