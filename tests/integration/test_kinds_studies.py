"""The shipped studies of kinds, with small models and one step."""

import json
import math
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from transformers import AutoModel

from papa_lightning import PapaError, SST2DataModule, calibrate
from papa_lightning.cli.main import main
from papa_lightning.encoders import swapped_layers
from papa_lightning.study.comparison.run import KindsStudy, make_variant
from papa_lightning.study.comparison.settings import KindsSettings

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs" / "study"


def run_small(name, folder, model, data):
    """The shipped settings, but for the sizes."""
    settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    settings["seeds"] = [0]
    settings["kinds"] |= {"steps": 1, "accelerator": "cpu"}
    settings["kinds"]["model"]["init_args"] |= {"num_layers": 1, **model}
    settings["kinds"]["data"]["init_args"] |= data
    (folder / "small.yaml").write_text(json.dumps(settings))
    table = main(["study", "--config", str(folder / "small.yaml"), "--output", str(folder / "study")])
    assert list(table["variant"]) == list(settings["kinds"]["variants"])
    return table


@pytest.mark.parametrize("name", ["kinds", "heads"])
def test_studies_of_text(name, tmp_path):
    (tmp_path / "text.txt").write_text("".join(chr(97 + number * number % 23) for number in range(3000)))
    data = {"files": str(tmp_path / "text.txt"), "max_length": 64, "batch_size": 1, "max_eval_blocks": 1}
    table = run_small(name, tmp_path, {"hidden_size": 24}, data)
    assert table["score"].between(2.0, 10.0).all(), "untrained: about the logarithm of the vocabulary"
    assert (abs(table["score"] - table["loss"] / math.log(2)) < 1e-4).all()
    if name == "heads":
        assert table["parameters"].nunique() == 1


def test_study_of_digits(tmp_path):
    table = run_small("kinds_digits", tmp_path, {"hidden_size": 8}, {"batch_size": 8})
    assert table["score"].between(0.0, 1.0).all()
    assert (table["metric"] == "accuracy").all()


def test_study_of_a_converted_encoder(encoder_folder, data_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = SST2DataModule(tokenizer=encoder_folder, data_dir=data_folder, max_length=16, batch_size=4)
    data.setup("fit")
    calibrate(AutoModel.from_pretrained(encoder_folder), data.train_dataloader(), 16).save("constants.safetensors")
    settings = yaml.safe_load((CONFIGS / "kinds_converted.yaml").read_text())
    settings["kinds"] |= {"steps": 2, "accelerator": "cpu"}
    settings["kinds"]["model"]["init_args"]["encoder"] = encoder_folder
    given = {"tokenizer": encoder_folder, "data_dir": data_folder, "max_length": 16, "batch_size": 4}
    settings["kinds"]["data"]["init_args"] |= given
    Path("small.yaml").write_text(json.dumps(settings | {"seeds": [0]}))
    table = main(["study", "--config", "small.yaml", "--output", "study"])
    assert list(table["variant"]) == ["dynamic", "constant", "from_constants", "paper"]
    assert table["loss"].nunique() == 4
    settings["kinds"]["variants"]["constant"]["added_learning_rate"] = 0.1
    study = KindsStudy(KindsSettings(**settings["kinds"]), [0], "study")
    with pytest.raises(
        PapaError, match=r"constant has added_learning_rate=0\.1, but kind 'constant' adds no parameters"
    ):
        study.run(progress=False)


def test_a_pretrained_encoder(encoder_folder, data_folder, tmp_path):
    """Swapped to each kind, with constants if a file is given, and fine-tuned for the same number of steps."""
    data = SST2DataModule(tokenizer=encoder_folder, data_dir=data_folder, max_length=16, batch_size=4)
    data.setup("fit")
    constants = calibrate(AutoModel.from_pretrained(encoder_folder), data.train_dataloader(), max_length=16)
    file = str(constants.save(tmp_path / "constants.safetensors"))
    settings = {
        "steps": 2,
        "accelerator": "cpu",
        "model": {
            "class_path": "SequenceClassificationTask",
            "init_args": {"encoder": encoder_folder, "freeze_encoder": False},
        },
        "data": {
            "class_path": "SST2DataModule",
            "init_args": {"tokenizer": encoder_folder, "data_dir": data_folder, "max_length": 16, "batch_size": 4},
        },
        "variants": {
            "stock": {},
            "constant": {"kind": "constant", "constants": file},
            "aft_local": {"kind": "aft_local", "constants": file, "kind_options": {"window": 4}},
            "additive": {"kind": "additive"},
            "additive_fast": {"kind": "additive", "added_learning_rate": 0.5},
        },
    }
    (tmp_path / "study.yaml").write_text(json.dumps({"seeds": [0], "kinds": settings}))
    table = main(["study", "--config", str(tmp_path / "study.yaml"), "--output", str(tmp_path / "study")])
    sizes = dict(zip(table["variant"], table["parameters"], strict=True))
    assert sizes["constant"] < sizes["stock"] < sizes["aft_local"], "queries and keys frozen; biases added"
    assert table["score"].between(0.0, 1.0).all()
    assert table["loss"].nunique() == 5, "each mixes in its own way, or learns at its own rate"


@pytest.mark.parametrize(
    "swap",
    [{"kind": "constant"}, {"kind": "aft_full", "kind_options": {"init": "from_constants"}}],
    ids=lambda one: one["kind"],
)
def test_a_pretrained_encoder_without_the_constants_that_its_kind_needs(encoder_folder, swap):
    """It would wait for them, and the original attention would be trained under the name of the kind."""
    task = {"encoder": str(encoder_folder), "num_labels": 2, "max_length": 16, "freeze_encoder": False}
    settings = KindsSettings(
        model={"class_path": "SequenceClassificationTask", "init_args": task},
        data={"class_path": "SST2DataModule"},
        variants={"mine": swap},
    )
    with pytest.raises(PapaError, match=r"kinds\.variants\.mine has kind .* but no constants: .*constants: FILE"):
        make_variant(settings, "mine", L.LightningDataModule())


def test_a_pretrained_encoder_gets_filled_constants(encoder_folder, tmp_path):
    mask = torch.ones(2, 16, dtype=torch.long) * (torch.arange(16) < 9)
    average = calibrate(AutoModel.from_pretrained(encoder_folder), [{"input_ids": mask, "attention_mask": mask}], 16)
    task = {"encoder": str(encoder_folder), "num_labels": 2, "max_length": 16, "freeze_encoder": False}
    settings = KindsSettings(
        model={"class_path": "SequenceClassificationTask", "init_args": task},
        data={"class_path": "SST2DataModule"},
        variants={"mine": {"kind": "constant", "constants": str(average.save(tmp_path / "constants.safetensors"))}},
    )
    layers = swapped_layers(make_variant(settings, "mine", L.LightningDataModule()).encoder)
    assert all(torch.equal(one.constants, own) for one, own in zip(layers, average.filled().values, strict=True))
    assert not torch.equal(layers[0].constants, average.values[0])
