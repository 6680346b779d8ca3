"""The examples of docs/kinds.md run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from papa_lightning import AttentionConstants, SequenceClassificationTask
from papa_lightning.attention import KINDS
from papa_lightning.cli.main import main
from papa_lightning.encoders import swapped_layers

PAGE = (Path(__file__).parents[2] / "docs" / "kinds.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_run_of_the_page(tiny: list[str]) -> None:
    """And its checkpoint loads without the callback."""
    Path("kinds.yaml").write_text(block("yaml"), encoding="utf-8")
    cli: Any = main(["fit", *tiny, "--config", "kinds.yaml"])
    assert "train/distillation" in cli.trainer.callback_metrics
    rates = [group["lr"] for group in cli.trainer.optimizers[0].param_groups]
    assert rates == [2e-5, 0.01]
    task = SequenceClassificationTask.load_from_checkpoint(cli.trainer.checkpoint_callback.best_model_path)
    own, loaded = swapped_layers(cli.model.encoder), swapped_layers(task.encoder)
    assert [layer.kind for layer in loaded] == ["aft_local"] * 2
    assert loaded[0].options() == {"window": 16, "per_head": True, "inner": None, "init": "from_constants"}
    assert all(layer.calibrated for layer in loaded)
    assert torch.equal(loaded[1].get_parameter("position_bias.table"), own[1].get_parameter("position_bias.table"))


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_code_of_the_page() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 8}
    encoder = BertModel(BertConfig(vocab_size=9, max_position_embeddings=48, **sizes))
    AttentionConstants(torch.full((6, 2, 40, 40), 1 / 40), torch.ones(40, 40)).save("constants.safetensors")
    exec(block("python"), {"encoder": encoder})
    assert [layer.kind for layer in swapped_layers(encoder)][2:4] == ["constant", "aft_local"]


def test_the_table_names_every_kind() -> None:
    assert [kind for kind in KINDS if f"`{kind}`" not in PAGE] == []
