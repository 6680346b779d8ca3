"""Speed of the heads that a report proposes: what is measured, what is kept, and what cannot be measured."""

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel
from unit.study.synthetic_study import write_study

from papa_lightning.benchmark import applied
from papa_lightning.study.report.applied import load_applied


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a study, with its encoder."""
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "encoder")
    return with_encoder(write_study(tmp_path / "study"), tmp_path / "encoder")


def with_encoder(folder: Path, encoder: Path) -> Path:
    content = json.loads((folder / "study.json").read_text())
    content["settings"] = {"encoders": {"mini": str(encoder)}, "device": "cpu"}
    (folder / "study.json").write_text(json.dumps(content))
    return folder


def test_the_proposed_heads_are_timed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert applied.measure_proposals(folder) == []
    (one,) = load_applied(folder)
    assert (one.encoder, one.task, one.input) == ("mini", "sst2", "16x16")
    assert one.speed == pytest.approx(one.stock_seconds / one.seconds)
    # Query and key of a head: 2 x (16 x 4 + 4) numbers.
    assert one.parameters["left_out"] == one.heads * 2 * (16 * 4 + 4)
    monkeypatch.setattr(applied, "_measure", lambda *given: pytest.fail("measured again"))
    assert applied.measure_proposals(folder) == []


def test_an_encoder_that_is_gone_is_named(folder: Path, tmp_path: Path) -> None:
    (note,) = applied.measure_proposals(with_encoder(folder, tmp_path / "elsewhere"))
    assert note.startswith("mini on sst2 was not timed: ")
    assert load_applied(folder) == []
