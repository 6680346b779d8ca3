"""Two tiny tokenizers and a writer of task files: nothing here needs a network."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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
