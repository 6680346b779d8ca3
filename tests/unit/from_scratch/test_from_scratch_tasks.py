"""Tasks that learn from nothing: language models and images."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from papa_lightning import (
    HeadRanking,
    ImageClassificationTask,
    LanguageModelingTask,
    PapaError,
    TextFileDataModule,
    calibrate,
    restore_attention,
    swap_attention,
)
from papa_lightning.callbacks import ConstantAttention, Throughput
from papa_lightning.encoders import swapped_layers

SMALL = {"hidden_size": 16, "num_layers": 2, "num_heads": 2}
TEXT = "".join(chr(97 + number * number % 23) for number in range(1200))


def language_model(**arguments):
    torch.manual_seed(0)
    return LanguageModelingTask(num_labels=14, **{"max_length": 8, **SMALL, **arguments})


def batch(rows=3, seed=0):
    tokens = torch.randint(14, (rows, 9), generator=torch.Generator().manual_seed(seed))
    mask, labels = torch.ones(rows, 8, dtype=torch.long), tokens[:, 1:].clone()
    return {"input_ids": tokens[:, :-1], "attention_mask": mask, "labels": labels, "example_id": torch.arange(rows)}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return TextFileDataModule(str(tmp_path / "text.txt"), max_length=8, batch_size=16)


def test_loss_is_in_nats_and_the_metric_in_bits_of_labelled_tokens():
    task, given = language_model(), batch()
    given["labels"][0, :5] = -100
    task.eval()
    scored = task.score(given, 0)
    chosen = given["labels"] != -100
    expected = F.cross_entropy(task(given)[chosen], given["labels"][chosen])
    assert (scored.count, scored.loss.item()) == (19, pytest.approx(expected.item(), rel=1e-6))
    metrics = task.metrics_of("val")
    metrics.update(scored.predicted, scored.labels)
    found = metrics.compute()
    assert found["bits_per_character"].item() == pytest.approx(expected.item() / math.log(2), rel=1e-5)
    right = (task(given).argmax(-1) == given["labels"])[chosen].float().mean()
    assert found["accuracy"].item() == pytest.approx(right.item())


def test_bits_of_several_batches_weigh_by_tokens():
    task = language_model(metrics=["bits_per_byte", "perplexity"]).eval()
    metrics, parts = task.metrics_of("val"), [batch(1), batch(4, seed=1)]
    for part in parts:
        scored = task.score(part, 0)
        metrics.update(scored.predicted, scored.labels)
    both = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss = task.score(both, 0).loss.item()
    found = metrics.compute()
    assert found["bits_per_byte"].item() == pytest.approx(loss / math.log(2), rel=1e-5)
    assert found["perplexity"].item() == pytest.approx(math.exp(loss), rel=1e-5)


def test_predictions_are_the_most_likely_next_tokens():
    task, given = language_model().eval(), batch()
    given["attention_mask"][1, 6:] = 0
    del given["labels"]
    found, probabilities = task.predict(given), task(given).softmax(-1)
    assert torch.equal(found["labels"][0], probabilities[0].argmax(-1))
    assert found["labels"][1].tolist()[6:] == [-100, -100]
    torch.testing.assert_close(found["probabilities"][0], probabilities[0].max(-1).values)


def test_a_model_learns_then_its_heads_are_calibrated_ranked_and_frozen(data, tmp_path, quiet_trainer):
    task = LanguageModelingTask(num_labels=data.num_labels, max_length=8, learning_rate=0.01, **SMALL)
    throughput = Throughput(warmup_steps=2)
    trainer = quiet_trainer(max_steps=60, callbacks=[throughput], limit_val_batches=2)
    trainer.fit(task, datamodule=data)
    start = math.log2(data.num_labels)
    assert trainer.validate(task, datamodule=data, verbose=False)[0]["val/bits_per_character"] < start - 0.5
    assert throughput.facts["parameters"] == sum(one.numel() for one in task.parameters())
    assert throughput.facts["steps_per_second"] > 0
    task.encoder.save_pretrained(tmp_path / "trained")
    trained = LanguageModelingTask(
        data.num_labels, 8, encoder=str(tmp_path / "trained"), regime="probe", learning_rate=0.01
    )
    average = ConstantAttention(heads=[(1, 0)], save_constants=False, fill_unseen=False)  # whose rows sum to 1
    trainer = quiet_trainer(max_steps=2, callbacks=[average])
    trainer.fit(trained, datamodule=data)
    values = swapped_layers(trained.encoder)[1].constants
    assert values.shape == (1, 8, 8)
    assert torch.equal(values, values.tril()), "causal"
    torch.testing.assert_close(values.sum(-1), torch.ones(1, 8))
    constants = calibrate(restore_attention(trained.encoder), [next(iter(data.val_dataloader()))], 8)
    ranking = HeadRanking([(layer, head) for layer in range(2) for head in range(2)], [4.0, 3.0, 2.0, 1.0], "x")
    swap_attention(trained, "constant", constants=constants, heads=0.5, ranking=ranking)
    assert [layer.constant_heads for layer in swapped_layers(trained.encoder)] == [(0, 1), ()]


@pytest.mark.parametrize("kind", ["aft_simple", ["aft_conv", "dynamic"]])
def test_kinds_are_swapped_in_from_the_start_and_cannot_look_ahead(kind):
    task, given = language_model(kind=kind, kind_options={} if kind == "aft_simple" else {"window": 3}), batch()
    assert [mixer.kind for mixer in swapped_layers(task.encoder)] == ([kind] * 2 if isinstance(kind, str) else kind)
    task.eval()
    before = task(given)
    given["input_ids"][:, 5] = (given["input_ids"][:, 5] + 1) % 14
    torch.testing.assert_close(task(given)[:, :5], before[:, :5], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(task(given)[:, 5:], before[:, 5:])


def test_images_of_every_class_of_patch():
    torch.manual_seed(0)
    task = ImageClassificationTask(num_labels=4, image_size=6, patch_size=2, num_channels=2, **SMALL).eval()
    given = {"pixel_values": torch.randn(3, 2, 6, 6), "labels": torch.tensor([0, 3, 1])}
    scored = task.score(given, 0, rows=2)
    assert (scored.count, scored.labels.tolist(), task.hparams["max_length"]) == (2, [0, 3], 9)
    assert scored.loss.item() == pytest.approx(F.cross_entropy(task(given)[:2], given["labels"][:2]).item())
    assert task.predict(given)["probabilities"].sum(1).tolist() == pytest.approx([1] * 3)
    gridded = ImageClassificationTask(
        num_labels=4, image_size=6, patch_size=2, kind="aft_conv", kind_options={"grid": True, "window": 3}, **SMALL
    )
    assert gridded({"pixel_values": torch.randn(2, 1, 6, 6)}).shape == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 3}, "the number of heads is 3, but hidden_size is 16"),
        ({"kind": "constant"}, "kind is 'constant' .* needs the averages of a trained encoder"),
        ({"kind": "aft"}, "kind is 'aft', but must be one of"),
        ({"kind_options": {"window": 3}}, 'kind "dynamic" takes none'),
        (
            {"regime": "probe", "freeze_encoder": True},
            "regime is 'probe', which freezes the encoder, but encoder is None",
        ),
        ({"metrics": ["f1"]}, "metrics is 'f1', but must be one of"),
        ({"distillation": 1.0}, "distillation is 1.0, but encoder is None"),
        ({"kind": "aft_local", "kind_options": {"window": 9}}, "window is 9"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(PapaError, match=message):
        language_model(**arguments)


def test_bad_encoders_images_and_callbacks(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(PapaError, match="is not causal: its tokens would see the one"):
        language_model(encoder=str(tmp_path))
    image = ImageClassificationTask(num_labels=2, **SMALL)
    with pytest.raises(PapaError, match="a batch has no pixel_values"):
        image({"input_ids": torch.ones(1, 2)})
    with pytest.raises(PapaError, match="max_length is 3, but patch_size=1 on images of 8 fixes it to 64"):
        ImageClassificationTask(num_labels=2, max_length=3, **SMALL)
    with pytest.raises(PapaError, match="are no square grid"):
        ImageClassificationTask(num_labels=2, image_size=[4, 2], kind="aft_conv", kind_options={"grid": True}, **SMALL)
