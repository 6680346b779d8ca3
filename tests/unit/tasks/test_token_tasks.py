"""Tasks with a label a token: tags, and masked tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from papa_lightning import MaskedLanguageModelingTask, TokenClassificationTask
from papa_lightning.errors import PapaError

LENGTH, TAGS = 8, ("O", "B-X", "I-X")
Make = Callable[..., L.Trainer]


def make_examples(count: int, labelled: bool = True, seed: int = 0) -> list[dict[str, Tensor]]:
    """[CLS], letters, [SEP] and padding; the letter determines its tag, and every third letter has none."""
    generator = torch.Generator().manual_seed(seed)
    examples = []
    for number in range(count):
        words = int(torch.randint(1, LENGTH - 2, (), generator=generator))
        letters = torch.randint(5, 31, (words,), generator=generator)
        ids = torch.tensor([2, *letters.tolist(), 3] + [0] * (LENGTH - 2 - words))
        labels = torch.where((ids > 4) & (torch.arange(LENGTH) % 3 > 0), ids % 3, -100)
        example = {"input_ids": ids, "attention_mask": (ids != 0).long(), "example_id": torch.tensor(number)}
        examples.append(example | ({"labels": labels} if labelled else {}))
    return examples


def make_loader(count: int, batch_size: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(make_examples(count, **arguments), batch_size=batch_size)


def make_task(encoder: str, **arguments: Any) -> TokenClassificationTask:
    torch.manual_seed(1)
    names = {"metrics": ["entity_f1", "token_accuracy"], "label_names": TAGS}
    return TokenClassificationTask(encoder, 3, LENGTH, **(names | arguments))


def make_mlm(encoder: str, **arguments: Any) -> MaskedLanguageModelingTask:
    torch.manual_seed(1)
    return MaskedLanguageModelingTask(encoder, max_length=LENGTH, **arguments)


def test_tags_are_learned(letters_folder: str, quiet_trainer: Make) -> None:
    task, trainer = make_task(letters_folder, learning_rate=1e-2), quiet_trainer(max_epochs=6)
    trainer.fit(task, make_loader(64, 16), make_loader(33, 16, seed=1))
    assert trainer.callback_metrics["val/token_accuracy"] > 0.9
    assert set(trainer.callback_metrics) == {"train/loss", "val/loss", "val/entity_f1", "val/token_accuracy"}
    assert task.score_name == "val/entity_f1"


def test_loss_and_accuracy_are_means_over_all_words(letters_folder: str, quiet_trainer: Make) -> None:
    task, trainer, loader = make_task(letters_folder), quiet_trainer(), make_loader(11, 4)
    (scores,) = trainer.validate(task, loader, verbose=False)
    batch = next(iter(make_loader(11, 11)))
    words = batch["labels"] != -100
    with torch.no_grad():
        logits, labels = task.eval()(batch)[words], batch["labels"][words]
    assert scores["val/loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)
    assert scores["val/token_accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))


@pytest.mark.parametrize("make", [make_task, make_mlm])
def test_batch_of_one_in_every_loop(make: Callable[[str], Any], letters_folder: str, quiet_trainer: Make) -> None:
    """Also where a sentence has no word with a label, or none that is masked."""
    loader = make_loader(6, 1)
    loader.dataset[0]["labels"].fill_(-100)
    task, trainer = make(letters_folder), quiet_trainer(max_epochs=1)
    trainer.fit(task, loader, loader)
    trainer.test(task, loader, verbose=False)
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())
    assert torch.isfinite(trainer.callback_metrics["test/loss"])
    assert [len(batch["labels"]) for batch in trainer.predict(task, loader)] == [1] * 6


def test_where_tags_are_predicted(letters_folder: str) -> None:
    task = make_task(letters_folder).eval()
    labelled, bare = next(iter(make_loader(5, 5))), next(iter(make_loader(5, 5, labelled=False)))
    labelled["labels"][2] = -100
    with torch.no_grad():
        known, unknown = task.predict_step(labelled, 0), task.predict_step(bare, 0)
    real = bare["attention_mask"].bool()
    expected = labelled["labels"] != -100
    expected[2] = real[2]
    assert torch.equal(known["labels"] != -100, expected)
    assert torch.equal(unknown["labels"] != -100, real)
    assert torch.equal(known["labels"][expected], known["probabilities"].argmax(dim=-1)[expected])
    torch.testing.assert_close(known["probabilities"].sum(dim=-1), torch.ones(5, LENGTH))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, dtype=torch.long), r"labels has shape \(2,\).*\(2, 8\) integers: one class for each token"),
        (torch.full((2, LENGTH), 3), "value 3, but num_labels=3"),
        (torch.full((2, LENGTH), -1), "value -1"),
        (torch.zeros(2, LENGTH), "torch.float32"),
    ],
)
def test_bad_labels(labels: Tensor, message: str, letters_folder: str) -> None:
    batch = next(iter(make_loader(2, 2))) | {"labels": labels}
    with pytest.raises(PapaError, match=message):
        make_task(letters_folder).training_step(batch, 1)


def test_label_names_must_be_as_many_as_labels(letters_folder: str) -> None:
    with pytest.raises(PapaError, match=r"label_names is .* but num_labels is 3"):
        make_task(letters_folder, label_names=["O"])


def test_checkpoints(letters_folder: str, quiet_trainer: Make, tmp_path: Path) -> None:
    for make in (make_task, make_mlm):
        task, trainer = make(letters_folder), quiet_trainer(max_steps=1)
        trainer.fit(task, make_loader(4, 4))
        trainer.save_checkpoint(tmp_path / "task.ckpt")
        loaded = type(task).load_from_checkpoint(tmp_path / "task.ckpt", weights_only=True)
        assert loaded.hparams == task.hparams
        for name, value in task.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)


def test_masking_by_share_and_kind(letters_folder: str) -> None:
    masker = make_mlm(letters_folder)._masker
    ids = torch.randint(5, 41, (400, LENGTH), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 6], ids[:, 7] = 2, 3, 9
    mask = torch.ones_like(ids)
    mask[:, 7] = 0  # a letter, but not a real token
    torch.manual_seed(3)
    before = ids.clone()
    masked, labels = masker.mask({"input_ids": ids, "attention_mask": mask})
    assert torch.equal(ids, before)
    chosen = labels != -100
    assert not chosen[:, [0, 6, 7]].any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert float(chosen[:, 1:6].float().mean()) == pytest.approx(0.15, abs=0.03)
    assert float((masked[chosen] == 4).float().mean()) == pytest.approx(0.8, abs=0.08)
    assert float((masked[chosen] == ids[chosen]).float().mean()) == pytest.approx(0.1, abs=0.06)


def test_evaluation_masks_an_example_alike_in_any_batch(letters_folder: str, quiet_trainer: Make) -> None:
    task, batch = make_mlm(letters_folder), next(iter(make_loader(20, 20)))
    state = torch.get_rng_state()
    first, again = task._masker.mask_alike(batch, 0), task._masker.mask_alike(batch, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first[0], again[0])
    scores = [quiet_trainer().validate(task, make_loader(20, size), verbose=False)[0] for size in (20, 7, 1)]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-5)
    assert scores[0]["val/perplexity"] == pytest.approx(float(torch.tensor(scores[0]["val/loss"]).exp()), rel=1e-5)


def test_evaluation_masks_rows_without_a_number_by_their_place(letters_folder: str) -> None:
    masker, found = make_mlm(letters_folder)._masker, []
    for size in (4, 6):
        batches = list(make_loader(6, size))
        for batch in batches:
            del batch["example_id"]
        for _ in range(2):
            found.append(torch.cat([masker.mask_alike(batch, number)[0] for number, batch in enumerate(batches)]))
        assert torch.equal(
            masker.mask_alike(batches[-1], len(batches) - 1)[0], found[-1][-len(batches[-1]["input_ids"]) :]
        )
    assert all(torch.equal(one, found[0]) for one in found)


def test_masked_tokens_are_learned(letters_folder: str, quiet_trainer: Make) -> None:
    examples = make_examples(64)
    for example in examples:  # all letters of a sentence are the same one
        letters = example["input_ids"] > 4
        example["input_ids"][letters] = example["input_ids"][1]
    loader = DataLoader(examples, batch_size=16)
    task = make_mlm(letters_folder, learning_rate=1e-2, mask_share=0.4)
    before = quiet_trainer().validate(task, loader, verbose=False)[0]["val/perplexity"]
    trainer = quiet_trainer(max_epochs=8)
    trainer.fit(task, loader, loader)
    assert trainer.callback_metrics["val/perplexity"] < 0.5 * before
    assert task.score_name == "val/accuracy"


def test_mask_tokens_of_the_text_are_filled_in(letters_folder: str) -> None:
    task, batch = make_mlm(letters_folder).eval(), next(iter(make_loader(3, 3, labelled=False)))
    batch["input_ids"][1, 1] = 4
    with torch.no_grad():
        predicted = task.predict_step(batch, 0)
    assert (predicted["labels"] != -100).nonzero().tolist() == [[1, 1]]
    assert 0 < float(predicted["probabilities"][1, 1]) <= 1
    assert task.label_names[int(predicted["labels"][1, 1])]


def test_bad_arguments_of_masked_language_modelling(letters_folder: str, tmp_path: Path) -> None:
    for arguments, message in (
        ({"mask_share": 0.0}, "mask_share is 0.0"),
        ({"num_labels": 3}, "num_labels is 3, but masked language modelling fixes it to 41"),
        ({"tokenizer": str(tmp_path)}, "tokenizer .* cannot be loaded"),
    ):
        with pytest.raises(PapaError, match=message):
            make_mlm(letters_folder, **arguments)
