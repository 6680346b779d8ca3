"""Studies as Python has them: of modules, checkpoints and data modules; and in parts, as an array of jobs."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from papa_lightning import SST2DataModule, Study, calibrate, restore_attention, study, swap_attention
from papa_lightning.cli.main import main
from papa_lightning.datamodules import TokenizedDataModule
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import CheckpointError, PapaError
from papa_lightning.files.writing import write_atomically
from papa_lightning.study import StudySettings, load_table
from papa_lightning.study.sources import checkpoint_encoder

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.fixture
def settings(encoder_folder: str, data_folder: str) -> dict[str, Any]:
    """A study of share 0 alone, as a map of fields."""
    tasks = {"films": {"class_path": "SST2DataModule", "init_args": {"data_dir": data_folder, "max_length": 16}}}
    probe = {"max_epochs": 1, "learning_rate": 0.01}
    return {"encoders": {"tiny": encoder_folder}, "tasks": tasks, "shares": [0], "seeds": [0], "probe": probe}


def changed(encoder: PreTrainedModel) -> PreTrainedModel:
    """The encoder with other weights, as after a training."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def scores(made: Study) -> pd.DataFrame:
    table = made.run(progress=False)
    return table[["task", "share", "metric", "score", "hash"]]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_objects_give_what_folders_and_classes_give(settings: dict[str, Any], data_folder: str) -> None:
    """An encoder with its tokenizer and a data module: the same results, by hash and number, as from a folder."""
    folder = settings["encoders"]["tiny"]
    encoder, tokenizer = changed(AutoModel.from_pretrained(folder)), AutoTokenizer.from_pretrained(folder)
    encoder.save_pretrained("saved")
    tokenizer.save_pretrained("saved")
    expected = scores(Study(StudySettings(**settings | {"encoders": {"tiny": "saved"}}), "from-folders"))
    data = SST2DataModule(folder, data_dir=data_folder, max_length=16)
    objects = settings | {"encoders": {"tiny": (encoder, tokenizer)}, "tasks": {"films": data}}
    made = Study(objects, "from-objects")
    pd.testing.assert_frame_equal(scores(made), expected)
    assert made.settings.encoders["tiny"].startswith("from-objects/encoders/tiny--")
    pd.testing.assert_frame_equal(made.results()[expected.columns.tolist()], expected)
    again = Study(objects, "from-objects")
    assert again.plan()[0].missing == 0, "it goes on from what is there"
    assert len(list(Path("from-objects/encoders").iterdir())) == 1


def test_a_study_that_only_opens_keeps_the_day_and_the_machine_of_its_results(settings: dict[str, Any]) -> None:
    file = Path("study/study.json")

    def about() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(file.read_text())["about"]
        return found

    Study(settings, "study").run(progress=False)
    own = about()
    content = json.loads(file.read_text())
    content["about"] |= {"date": "2001-01-01", "cpu": "another"}
    del content["sha256"]
    file.write_text(json.dumps(content))
    Study(settings, "study").run(progress=False)
    assert about() == own | {"date": "2001-01-01", "cpu": "another"}
    Study(settings | {"seeds": [0, 1]}, "study").run(progress=False)
    assert (about()["date"], about()["cpu"]) == (own["date"], own["cpu"])


class Batches(LightningDataModule):
    """Somebody's own data: shuffled batches of sentences that are padded to the longest of a batch."""

    def __init__(self, folder: str, rows: int, data_folder: str) -> None:
        super().__init__()
        self.tokenizer, self.rows, self.folder = AutoTokenizer.from_pretrained(folder), rows, data_folder

    def train_dataloader(self) -> Any:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader("validation", shuffle=False)

    def loader(self, split: str, shuffle: bool) -> Any:
        table = pd.read_json(f"{self.folder}/{split}.jsonl", lines=True)

        return DataLoader(table.to_dict("records"), batch_size=self.rows, shuffle=shuffle, collate_fn=self.collated)

    def collated(self, rows: list[Any]) -> Any:
        tokens = self.tokenizer([row["sentence"] for row in rows], padding=True, return_tensors="pt")
        return {**tokens, "labels": torch.tensor([row["label"] for row in rows])}


def test_data_of_any_lightning_project(settings: dict[str, Any], data_folder: str) -> None:
    """The same scores as by the data module of the package in the plain layout, whatever the batches."""
    folder = settings["encoders"]["tiny"]
    plain = SST2DataModule(folder, data_dir=data_folder, max_length=13, layout="plain")
    expected = scores(Study(settings | {"tasks": {"films": plain}}, "expected"))
    made = Study(settings | {"tasks": {"films": Batches(folder, 5, data_folder)}}, "own")
    (init_args,) = [task["init_args"] for task in made.settings.tasks.values()]
    assert init_args["label_names"] == ["0", "1"]
    found = scores(made)
    longest = init_args["max_length"]
    assert longest == 13, "the expected scores are of rows of the same length"
    pd.testing.assert_frame_equal(found.drop(columns="hash"), expected.drop(columns="hash"))
    again = Study(settings | {"tasks": {"films": Batches(folder, 3, data_folder)}}, "own")
    assert again.plan()[0].missing == 0, "the order and the size of its batches do not matter"


def test_token_types_and_names_that_are_numbers(settings: dict[str, Any], data_folder: str) -> None:
    """Rows of pairs keep their token types, and class 0 of the names "1" and "2" is "1"."""

    class Pairs(Batches):
        label_names = ("1", "2")

        def collated(self, rows: list[Any]) -> Any:
            texts = [row["sentence"] for row in rows]
            tokens = self.tokenizer(texts, texts, padding=True, return_tensors="pt")
            return {**tokens, "labels": torch.tensor([row["label"] for row in rows])}

    folder = settings["encoders"]["tiny"]
    data = Pairs(folder, 5, data_folder)
    made = Study(settings | {"tasks": {"films": data}}, "own")
    (task,) = made.settings.tasks.values()
    read = TokenizedDataModule(folder, **task["init_args"])
    read.setup("fit")
    batch, texts = next(iter(read.val_dataloader())), pd.read_json(f"{data_folder}/validation.jsonl", lines=True)
    expected = data.collated(texts.to_dict("records")[: len(batch["labels"])])
    length = expected["input_ids"].shape[1]
    assert expected["token_type_ids"].any()
    for name, values in expected.items():
        assert torch.equal(batch[name] if name == "labels" else batch[name][:, :length], values), name


def test_data_that_a_study_cannot_read(settings: dict[str, Any], data_folder: str) -> None:
    data = Batches(settings["encoders"]["tiny"], 5, data_folder)
    with pytest.raises(PapaError, match="pass it in a map of settings"):
        StudySettings(**settings | {"tasks": {"films": data}})
    data.val_dataloader = lambda: DataLoader([torch.ones(2)])
    with pytest.raises(PapaError, match="films, validation has batches of Tensor, but a study reads input_ids"):
        Study(settings | {"tasks": {"films": data}}, "out")


def test_a_module_around_the_encoder_brings_its_tokenizer(settings: dict[str, Any]) -> None:
    class Project(LightningModule):
        def __init__(self, folder: str) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(folder)

    made = Study(settings | {"encoders": {"tiny": Project(settings["encoders"]["tiny"])}}, "out")
    assert same_weights(load_encoder(made.settings.encoders["tiny"]), load_encoder(settings["encoders"]["tiny"]))


def test_checkpoints_are_encoders(settings: dict[str, Any], tiny: list[str]) -> None:
    """Of a fine-tuning with constant heads by the command line, and of somebody's own module."""
    cli: Any = main(["fit", *tiny, "--model.freeze_encoder", "false", "--model.learning_rate", "0.01"])
    tuned = cli.trainer.checkpoint_callback.best_model_path
    trained = restore_attention(cli.model.encoder)
    encoder, base = checkpoint_encoder(Path(tuned))
    assert base == cli.model.hparams["encoder"]
    assert same_weights(encoder, trained)
    assert not same_weights(encoder, load_encoder(base))
    own = changed(load_encoder(settings["encoders"]["tiny"]))
    state = {f"model.bert.{name}": value for name, value in own.state_dict().items()} | {"head": torch.zeros(1)}
    torch.save({"state_dict": state, "hyper_parameters": {"rate": 0.1}}, "own.ckpt")
    named = {"checkpoint": "own.ckpt", "encoder": settings["encoders"]["tiny"]}
    made = Study(settings | {"encoders": {"fit": tuned, "own": named}}, "out")
    assert same_weights(load_encoder(made.settings.encoders["fit"]), trained)
    assert same_weights(load_encoder(made.settings.encoders["own"]), own)
    assert set(scores(made)["hash"]) == {key for plan in made.plan() for key in plan.keys.values()}


def test_checkpoints_that_do_not_say_what_they_hold(settings: dict[str, Any]) -> None:
    folder = settings["encoders"]["tiny"]
    state = load_encoder(folder).state_dict()
    twice = {f"{prefix}{name}": value for prefix in ("a.", "b.") for name, value in state.items()}
    torch.save({"state_dict": twice, "hyper_parameters": {"rate": 0.1}}, "twice.ckpt")
    with pytest.raises(CheckpointError, match=r"which pretrained encoder it holds \(hyperparameters: rate\)"):
        Study(settings | {"encoders": {"x": "twice.ckpt"}}, "out")
    named = {"checkpoint": "twice.ckpt", "encoder": folder}
    with pytest.raises(CheckpointError, match=r"has several encoders \('a\.', 'b\.'\): pass the prefix"):
        Study(settings | {"encoders": {"x": named}}, "out")
    assert Study(settings | {"encoders": {"x": {**named, "prefix": "b."}}}, "out").plan()[0].missing == 1
    del twice["b.encoder.layer.1.output.dense.weight"]
    torch.save({"state_dict": twice}, "lacking.ckpt")
    with pytest.raises(CheckpointError, match=r"has no 'b\.encoder\.layer\.1\.output\.dense\.weight'"):
        checkpoint_encoder(Path("lacking.ckpt"), folder, "b.")
    with pytest.raises(CheckpointError, match="no such file"):
        Study(settings | {"encoders": {"x": "gone.ckpt"}}, "out")


def test_objects_that_cannot_be_used(settings: dict[str, Any]) -> None:
    folder = settings["encoders"]["tiny"]
    encoder: Any = AutoModel.from_pretrained(folder)
    for wrong, message in (
        (5, "encoders has 'x' as a int, but an encoder is"),
        ((encoder, "bert"), "encoders has 'x' with a str, which is no tokenizer"),
        ({"ckpt": "x"}, "but the keys are checkpoint, and encoder and prefix"),
    ):
        with pytest.raises(PapaError, match=message):
            Study(settings | {"encoders": {"x": wrong}}, "out")
    with pytest.raises(PapaError, match=r"settings has no argument 'share'\. Did you mean 'shares'\?"):
        Study(settings | {"share": [1]}, "out")
    with pytest.raises(PapaError, match=r"probe has no argument 'epochs'\. Did you mean 'max_epochs'\?"):
        Study(settings | {"probe": {"epochs": 3}}, "out")
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    swap_attention(encoder, "constant", constants=calibrate(encoder, [batch], 4))
    with pytest.raises(PapaError, match=r"whose attention is swapped, .*call restore_attention"):
        Study(settings | {"encoders": {"x": encoder}}, "out")


def test_parts_make_what_one_process_makes(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three jobs of an array, the last one first; it writes no report, and the one that ends last does."""
    monkeypatch.setattr(study, "write_report", lambda folder: write_atomically(folder / "report.html", b"page"))
    config = settings | {"shares": [0, 0.5, 1], "criteria": ["random"]}
    Path("study.yaml").write_text(yaml.safe_dump(config))
    words = ["study", "--config", "study.yaml", "--output"]
    main([*words, "whole"])
    expected = load_table("whole").drop(columns="seconds")
    for number, left in ((3, 2), (1, 1)):
        main([*words, "parts", "--part", f"{number}/3"])
        assert f"part {number}/3 is finished; {left} result" in capsys.readouterr().out
        assert not Path("parts/report.html").exists()
    main([*words, "parts", "--part", "2/3"])
    pd.testing.assert_frame_equal(load_table("parts").drop(columns="seconds"), expected)
    assert Path("parts/report.html").is_file()
    assert not [path.name for path in Path("parts").iterdir() if path.name.startswith(".")]
    with pytest.raises(SystemExit):
        main([*words, "parts", "--part", "4"])
    assert "part is '4', but must be a number and the number of parts" in capsys.readouterr().err
