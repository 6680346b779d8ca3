"""Tiny encoders of every family with their tokenizer, and tiny data in the shape of the real ones."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, BertTokenizer

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs"
LETTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1},
    "deberta-v2": {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 16,
        "share_att_key": True,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "type_vocab_size": 0,
    },
}


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An encoder of 2 layers and 2 heads that reads letters, of each family of the overlays."""
    folders = {}
    for family, others in FAMILIES.items():
        folder = tmp_path_factory.mktemp(family)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
        BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
        sizes = {"vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 24, "max_position_embeddings": 130, "pad_token_id": 0}
        torch.manual_seed(0)
        AutoModel.from_config(AutoConfig.for_model(family, **(sizes | others))).save_pretrained(folder)
        folders[family] = str(folder)
    return folders


@pytest.fixture(scope="session")
def encoder_folder(encoder_folders: dict[str, str]) -> str:
    """A BERT."""
    return encoder_folders["bert"]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sentences with labels, as CoLA and SST-2 have them."""
    folder = tmp_path_factory.mktemp("data")
    for split, number in (("train", 12), ("validation", 6)):
        write_rows(
            folder / f"{split}.jsonl",
            [{"sentence": f"a {'good' if i % 2 else 'bad'} film {i}", "label": i % 2, "idx": i} for i in range(number)],
        )
    return str(folder)


@pytest.fixture(scope="session")
def data_folders(tmp_path_factory: pytest.TempPathFactory, data_folder: str) -> dict[str, str]:
    """Data of every task, by the name of its configuration."""

    def make(name: str, row: Any, splits: tuple[str, ...] = ("train", "validation")) -> str:
        folder = tmp_path_factory.mktemp(name)
        for split in splits:
            write_rows(folder / f"{split}.jsonl", [row(i) for i in range(12 if split == "train" else 7)])
        return str(folder)

    def pair(names: tuple[str, str], labels: int) -> Any:
        return lambda i: {names[0]: f"film {i}", names[1]: f"no film {i % 3}", "label": i % labels, "idx": i}

    def words(column: str, tags: list[list[str]]) -> Any:
        tokens = ["ada", "bell", "ran", "up"]  # sentences of 2 to 4 words
        return lambda i: {"tokens": tokens[: 2 + i % 3], column: tags[i % 2][: 2 + i % 3], "id": i}

    def folder_of_retrieval() -> str:
        folder = tmp_path_factory.mktemp("retrieval")
        (folder / "qrels").mkdir()
        write_rows(folder / "corpus.jsonl", [{"_id": i, "title": "a film", "text": f"no {i}"} for i in range(12)])
        write_rows(folder / "queries.jsonl", [{"_id": i, "text": f"film {i}"} for i in range(7)])
        judged = [f"{i}\t{i}\t1" for i in range(7)]
        (folder / "qrels" / "dev.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
        return str(folder)

    names = [["B-PER", "I-PER", "O", "O"], ["O", "B-LOC", "O", "O"]]
    matched = ("train", "validation_matched", "validation_mismatched")
    return {
        **dict.fromkeys(("cola", "sst2", "mlm"), data_folder),
        "mrpc": make("mrpc", pair(("sentence1", "sentence2"), 2)),
        "mnli": make("mnli", pair(("premise", "hypothesis"), 3), matched),
        "stsb": make("stsb", lambda i: {"sentence1": f"film {i}", "sentence2": f"no film {i % 3}", "score": i % 4}),
        "retrieval": folder_of_retrieval(),
        "ner": make("ner", words("ner_tags", names)),
        "pos": make("pos", words("upos", [["PROPN", "PROPN", "VERB", "ADV"], ["NOUN", "PROPN", "VERB", "ADP"]])),
    }


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs land in the working folder; and `main` complains about the arguments of pytest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["papa"])


@pytest.fixture
def tiny(encoder_folder: str, data_folder: str) -> list[str]:
    """Arguments of one short run on the smallest encoder and data."""
    return [
        "--config", str(CONFIGS / "defaults.yaml"), "--config", str(CONFIGS / "sst2.yaml"),
        "--model.init_args.encoder", encoder_folder, "--data.init_args.data_dir", data_folder,
        "--data.init_args.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
