"""Tiny tokenizers and a writer of task files: nothing here needs a network."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    BertTokenizer,
    DebertaTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

from papa_lightning.datamodules import SST2DataModule
from papa_lightning.datamodules.demo import BUNDLED

WORDS = [f"w{number}" for number in range(60)] + ["good", "bad", "film", "a"]


def save_tokenizer(folder, single, pair, special, **kwargs):
    """Save a word-level tokenizer whose special tokens come first in its vocabulary."""
    vocabulary = {token: number for number, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[3]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, vocabulary[token]) for token in special[:3]]
    )
    names = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token"), special, strict=True))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **(names | kwargs))
    fast.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory):
    """BERT's template: [CLS] 0, [PAD] 1, [SEP] 2, [UNK] 3, then the words."""
    return save_tokenizer(
        tmp_path_factory.mktemp("tokenizers") / "bert",
        "[CLS]:0 $A:0 [SEP]:0",
        "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        ["[CLS]", "[PAD]", "[SEP]", "[UNK]"],
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory):
    """RoBERTa's template, two separators between the texts and no token types: <s> 0, <pad> 1, </s> 2, <unk> 3."""
    return save_tokenizer(
        tmp_path_factory.mktemp("tokenizers") / "roberta",
        "<s> $A </s>",
        "<s> $A </s> </s> $B </s>",
        ["<s>", "<pad>", "</s>", "<unk>"],
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def build_tokenizer():
    """`save_tokenizer`, for tokenizers with something missing."""
    return save_tokenizer


# Class of transformers, kind of the model, and its special tokens in the order that the class wants.
KINDS = {
    "bert": (BertTokenizer, "wordpiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
    "roberta": (RobertaTokenizer, "bpe", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "deberta": (DebertaTokenizer, "bpe", ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]),
    "deberta-v2": (DebertaV2Tokenizer, "unigram", ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]),
    "xlm-roberta": (XLMRobertaTokenizer, "unigram", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
    "albert": (AlbertTokenizer, "unigram", ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
    "t5": (T5Tokenizer, "unigram", ["<pad>", "</s>", "<unk>"]),
}


def train(model, special):
    """Train a model of subwords on the bundled sentences; return its arguments for a class of transformers."""
    lines = (BUNDLED / "train.jsonl").read_text(encoding="utf-8").splitlines()[:400]
    unknown = next(token for token in special if "unk" in token.lower())
    settings = {"vocab_size": 400, "special_tokens": special, "show_progress": False}
    if model == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**settings)
    elif model == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **(settings | {"vocab_size": 600}))
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=unknown, **settings)
    tokenizer.train_from_iterator((json.loads(line)["sentence"] for line in lines), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    if model == "unigram":
        pieces = [(piece, score) for piece, score in trained["vocab"] if piece not in special]
        return {"vocab": [*((token, 0.0) for token in special), *pieces]}
    merges = {"merges": [tuple(pair) for pair in trained["merges"]]} if model == "bpe" else {}
    return {"vocab": trained["vocab"]} | merges


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory):
    """Folder of a trained tokenizer of a kind in `KINDS`, each made once."""
    folders = {}

    def folder(kind):
        if kind not in folders:
            tokenizer_class, model, special = KINDS[kind]
            folders[kind] = str(tmp_path_factory.mktemp("tokenizers") / kind)
            tokenizer_class(**train(model, special), model_max_length=512).save_pretrained(folders[kind])
        return folders[kind]

    return folder


def save_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def write_jsonl():
    """Write rows as a JSON Lines file."""
    return save_jsonl


@pytest.fixture(scope="session")
def sentences():
    """Make rows of two words each; labels alternate."""

    def make(count):
        return [{"sentence": f"w{row % 60} {'good' if row % 2 else 'bad'}", "label": row % 2} for row in range(count)]

    return make


@pytest.fixture
def task_dir(tmp_path, sentences):
    """A folder with 12 training and 5 validation rows."""
    folder = tmp_path / "task"
    folder.mkdir()
    save_jsonl(folder / "train.jsonl", sentences(12))
    save_jsonl(folder / "validation.jsonl", sentences(5))
    return folder


@pytest.fixture
def sst2(task_dir, bert_folder):
    """Make an SST-2 data module, or another one, on the rows of `task_dir`."""

    def make(cls=SST2DataModule, **kwargs):
        return cls(bert_folder, **({"data_dir": str(task_dir), "max_length": 16, "batch_size": 4} | kwargs))

    return make
