"""What is read from the files of a sentence-transformers folder, of this version and of earlier ones."""

import json
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

from papa_lightning import PapaError
from papa_lightning.encoders.sentence_files import POOLINGS, SentenceFiles, read_sentence_files

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
FILES = {
    "modules.json": MODULES,
    "1_Pooling/config.json": {
        "word_embedding_dimension": 16,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    },
    "config_sentence_transformers.json": {
        "prompts": {"query": "query: ", "document": None},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
    },
    "sentence_bert_config.json": {"max_seq_length": 32, "do_lower_case": True},
    "config.json": {"model_type": "bert"},
    "tokenizer_config.json": {"model_max_length": 10**30},
}


def folder_of(path: Path, **changes: object) -> Path:
    """A folder of an earlier version, with other content in some files; None leaves a file out."""
    for name, content in {**FILES, **changes}.items():
        if content is not None:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def modules(*changes: tuple[int, str, str]) -> list[dict[str, object]]:
    return [{**one, **{key: value for at, key, value in changes if at == one["idx"]}} for one in MODULES]


def test_files_of_an_earlier_version(tmp_path: Path) -> None:
    found = read_sentence_files(folder_of(tmp_path))
    assert found == SentenceFiles("mean", True, {"query": "query: "}, "query", 32, "dot", True)


def test_what_is_not_there_has_the_default_of_the_library(tmp_path: Path) -> None:
    absent = dict.fromkeys(["config_sentence_transformers.json", "sentence_bert_config.json"])
    pooling = {"1_Pooling/config.json": {"word_embedding_dimension": 16}}
    assert read_sentence_files(folder_of(tmp_path, **absent, **pooling)) == SentenceFiles("mean", True)
    shorter = {"modules.json": MODULES[:2], "tokenizer_config.json": {"model_max_length": 64}}
    found = read_sentence_files(folder_of(tmp_path, **absent, **shorter))
    assert found is not None
    assert (found.normalize, found.max_length) == (False, 64)


def test_other_folders_and_names_have_no_such_files(tmp_path: Path) -> None:
    assert read_sentence_files(tmp_path) is None
    assert read_sentence_files("sentence-transformers/all-MiniLM-L6-v2") is None


@pytest.mark.parametrize("mode", list(POOLINGS))
def test_files_that_the_library_writes(tmp_path: Path, mode: str) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "plain")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "plain")
    parts = [Transformer(str(tmp_path / "plain"), max_seq_length=24), Pooling(16, mode), Normalize()]
    prompts = {"query": "query: ", "document": "passage: "}
    model = SentenceTransformer(modules=parts, prompts=prompts, default_prompt_name="document", device="cpu")
    model.save(str(tmp_path / "saved"))
    found = read_sentence_files(tmp_path / "saved")
    assert found == SentenceFiles(POOLINGS[mode], True, prompts, "document", 24, "cosine")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules.json": "{"}, "modules.json' is not JSON"),
        ({"modules.json": "{}"}, "holds a dict, but must hold a list"),
        ({"modules.json": [{"type": 1}]}, "without a type and a path"),
        (
            {"modules.json": modules((1, "type", "sentence_transformers.models.Transformer"))},
            "two modules of the kind Tr",
        ),
        (
            {"modules.json": modules((2, "type", "sentence_transformers.models.Pooling"))},
            "'1_Pooling' and '2_Normalize'",
        ),
        ({"modules.json": modules((2, "type", "sentence_transformers.models.Dense"))}, "Transformer, Pooling, Dense"),
        ({"modules.json": MODULES[::-1]}, "has the modules Normalize, Pooling, Transformer"),
        ({"modules.json": []}, "has the modules none"),
        ({"modules.json": modules((0, "type", "custom_st.Transformer"))}, "'custom_st.Transformer', but code that"),
        ({"modules.json": modules((1, "path", "../1_Pooling"))}, "not inside the folder"),
        ({"config.json": {"auto_map": {"AutoModel": "modeling.Model"}}}, "code that comes with a model is not run"),
        ({"sentence_bert_config.json": {"model_args": {"trust_remote_code": True}}}, "wants trust_remote_code"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, "max_seq_length of .* is 0"),
        ({"1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}}, "has the pooling 'weightedmean'"),
        ({"1_Pooling/config.json": {"pooling_mode": ["cls", "mean"]}}, "several poolings at once"),
        ({"1_Pooling/config.json": {"pooling_mode": "max"}}, "known are mean, cls, lasttoken"),
        ({"1_Pooling/config.json": {"pooling_mode": "mean", "include_prompt": False}}, "include_prompt false"),
        ({"1_Pooling/config.json": None}, "cannot be read"),
        ({"config_sentence_transformers.json": {"model_type": "SparseEncoder"}}, "of a 'SparseEncoder'"),
        ({"config_sentence_transformers.json": {"prompts": {"query": 3}}}, r"prompts of .*\['query'\] is 3"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "query"}}, "none of its prompts"),
    ],
)
def test_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(PapaError, match=said):
        read_sentence_files(folder_of(tmp_path, **changes))
