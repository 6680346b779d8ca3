"""The data part of the shipped configurations."""

from pathlib import Path

import pytest
import yaml

from papa_lightning import datamodules

CONFIGS = Path(__file__).parents[3] / "papa_lightning" / "configs"


@pytest.mark.parametrize(
    ("task", "max_length", "num_labels"),
    [("cola", 64, 2), ("sst2", 64, 2), ("mrpc", 128, 2), ("mnli", 128, 3), ("ner", 128, 9), ("pos", 128, 17)],
)
def test_every_task_has_its_data(task, max_length, num_labels):
    config = yaml.safe_load((CONFIGS / f"{task}.yaml").read_text(encoding="utf-8"))["data"]
    data = getattr(datamodules, config["class_path"])(tokenizer="x", **config["init_args"])
    assert (data.max_length, data.num_labels, data.batch_size) == (max_length, num_labels, 16)
