"""Words that become no token, or find no slot: nothing else moves or goes with them."""

import json

import lightning as L
import pytest
import torch

from papa_lightning.callbacks import PredictionWriter
from papa_lightning.datamodules import POSDataModule, TokenClassificationDataModule

GONE = "\u200d"  # a zero-width joiner, which BERT's tokenizer drops


def data_of(tokenizer, folder, names, rows, **arguments):
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TokenClassificationDataModule(
        tokenizer, names, data_dir=str(folder), max_length=8, batch_size=2, **arguments
    )


@pytest.mark.filterwarnings("ignore:.*become no token", "ignore:.*do not fit")
@pytest.mark.parametrize(
    ("words", "tags", "names", "expected"),
    [
        ([GONE, "a", "a"], "B-X I-X O", "O B-X I-X", "B-X O"),
        (["a", GONE, "a"], "B-X I-X I-X", "O B-X I-X", "B-X I-X"),
        (["a", GONE, "a"], "B-X O B-X", "O B-X I-X", "B-X B-X"),
        (["a", "a", GONE], "B-X I-X E-X", "O B-X I-X E-X S-X", "B-X E-X"),
        ([GONE, "a", GONE], "B-X I-X E-X", "O B-X I-X E-X S-X", "S-X"),
        (["a", GONE, "a"], "I-X O I-X", "O I-X B-X I-Y", "I-X B-X"),
        (["a"] * 8, " ".join(["O"] * 4 + ["B-X", "I-X", "I-X", "E-X"]), "O B-X I-X E-X S-X", "O O O O B-X E-X"),
        ([GONE, "a"], "NOUN VERB", "NOUN VERB", "VERB"),
    ],
)
def test_tags_of_the_words_that_are_left(tokenizer_of, tmp_path, words, tags, names, expected):
    data = data_of(tokenizer_of("bert"), tmp_path, names.split(), [{"tokens": words, "tags": tags.split()}])
    data.setup("fit")
    labels = next(iter(data.val_dataloader()))["labels"][0].tolist()
    assert [data.label_names[label] for label in labels if label >= 0] == expected.split()


class WordNumbers(L.LightningModule):
    """Predicts for every token the number of its word."""

    label_names = tuple(f"word {number}" for number in range(20))

    def predict_step(self, batch, batch_idx):
        words = batch["word_ids"]
        ones = torch.ones(*words.shape, 1)
        told = {name: batch[name] for name in ("word_ids", "num_words")}
        return {"example_id": batch["example_id"], "labels": words, "probabilities": ones} | told


def predicted(data, tmp_path):
    writer = PredictionWriter(str(tmp_path / "p.jsonl"))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[writer])
    trainer.predict(WordNumbers(), datamodule=data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    for row in rows:
        assert [entry is None for entry in row["probabilities"]] == [entry is None for entry in row["labels"]]
    return [[label and int(label.removeprefix("word ")) for label in row["labels"]] for row in rows]


@pytest.mark.filterwarnings("ignore:.*become no token", "ignore:.*do not fit", "ignore:.*does not have many workers")
@pytest.mark.parametrize("layout", ["segment", "plain"])
def test_predictions_stand_at_their_words(tokenizer_of, tmp_path, layout):
    sentences = [["a", GONE, "film", "a"], [GONE, GONE], ["a"] * 9, ["a", GONE], [GONE, "a"]]
    rows = [{"tokens": words, "tags": ["O"] * len(words)} for words in sentences]
    data = data_of(tokenizer_of("bert"), tmp_path, ["O", "X"], rows, layout=layout)
    assert predicted(data, tmp_path) == [
        [0, None, 2, 3],
        [None, None],
        [0, 1, 2, 3, 4, 5, None, None, None],
        [0, None],
        [None, 1],
    ]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_words_that_a_treebank_does_not_tag_keep_their_place(tokenizer_of, tmp_path):
    row = {"tokens": ["a-film", "a", "film"], "upos": ["_", "DET", "NOUN"]}
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    data = POSDataModule(tokenizer_of("bert"), data_dir=str(tmp_path), max_length=8)
    assert predicted(data, tmp_path) == [[None, 1, 2]]


def test_batches_have_the_number_of_words_only_where_they_are_predicted(tokenizer_of, tmp_path):
    data = data_of(tokenizer_of("bert"), tmp_path, ["O", "X"], [{"tokens": ["a", "a"], "tags": ["O", "X"]}])
    data.setup()
    assert "num_words" not in next(iter(data.train_dataloader()))
    assert next(iter(data.predict_dataloader()))["num_words"].tolist() == [2]
