"""`~` is the home folder in every argument that is a path."""

import shutil

import pytest
import torch
from transformers import BertConfig, BertModel

from papa_lightning.cli.trainer_verbs import check_checkpoint
from papa_lightning.datamodules.rows.tokenizing import load_tokenizer
from papa_lightning.encoders.loading import load_encoder, vocabulary_size
from papa_lightning.errors import DataError, PapaError
from papa_lightning.files.writing import check_output, check_output_folder, write_atomically
from papa_lightning.ranking import HeadRanking
from papa_lightning.study.store import StudyFolder
from papa_lightning.tasks.checkpoints import read_checkpoint


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_outputs_and_rankings(home, tmp_path):
    check_output("output", "~/new/ranking.json")
    HeadRanking(heads=[(0, 1), (0, 0)], scores=[1.0, 0.0], criterion="x").save("~/new/ranking.json")
    assert HeadRanking.load("~/new/ranking.json").heads == HeadRanking.load(home / "new" / "ranking.json").heads
    assert write_atomically("~/file", b"x") == home / "file"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_encoders(home):
    torch.manual_seed(0)
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=8)).save_pretrained(home / "tiny")
    assert load_encoder("~/tiny").config.hidden_size == 8
    assert vocabulary_size("~/tiny") == 9


def test_checkpoints(home):
    torch.save({"state_dict": {}}, home / "last.ckpt")
    assert read_checkpoint("~/last.ckpt") == {"state_dict": {}}
    check_checkpoint("~/last.ckpt")
    with pytest.raises(PapaError, match="ckpt_path is '~', a folder"):
        check_checkpoint("~")


def test_exports_and_studies(home, tmp_path):
    assert check_output_folder("output", "~/export") == (home / "export").resolve()
    StudyFolder("~/study").write({}, {}, {})
    assert StudyFolder(home / "study").read()["files"] == {}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_tokenizers(home, tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    fast = Tokenizer(models.WordLevel({"[PAD]": 0, "[SEP]": 1}, unk_token="[PAD]"))
    made = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", sep_token="[SEP]")
    made.save_pretrained(home / "words")
    assert load_tokenizer("~/words", None, 8, "segment").pad_token_id == 0
    shutil.rmtree(home / "words")
    with pytest.raises(DataError, match="tokenizer '~/words' cannot be loaded: there is no such folder"):
        load_tokenizer("~/words", None, 8, "segment")
