"""Both packages of Lightning, in every order of import: a process for each, and what went wrong in it as JSON.

A program of its own, because what is imported cannot be taken back. What does not depend on Lightning is imported once.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

LIGHTNING, PYTORCH_LIGHTNING, PAPA = "lightning.pytorch", "pytorch_lightning", "papa_lightning"

#: Name: imports in their order (the Trainers of all but ours are used), and the packages that are not installed.
SCENARIOS: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "only lightning is installed": ([PAPA, LIGHTNING], ["pytorch_lightning", "lightning_fabric"]),
    "only pytorch_lightning is installed": ([PAPA, PYTORCH_LIGHTNING], ["lightning"]),
    "papa_lightning, then pytorch_lightning": ([PAPA, PYTORCH_LIGHTNING], []),
    "pytorch_lightning, then papa_lightning": ([PYTORCH_LIGHTNING, PAPA], []),
    "lightning, pytorch_lightning, papa_lightning": ([LIGHTNING, PYTORCH_LIGHTNING, PAPA], []),
    "pytorch_lightning, papa_lightning, lightning": ([PYTORCH_LIGHTNING, PAPA, LIGHTNING], []),
}


class NotInstalled(MetaPathFinder):
    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        if name.split(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def run(imports: Sequence[str], missing: Sequence[str], folder: Path) -> None:
    """One scenario, in a process of its own."""
    sys.meta_path.insert(0, NotInstalled(missing))
    for name in imports:
        import_module(name)
        assert imports[0] != PAPA or name != PAPA or not {LIGHTNING, PYTORCH_LIGHTNING} <= set(sys.modules)
    unused = {LIGHTNING, PYTORCH_LIGHTNING} - set(imports)
    if imports[0] != PAPA:  # else nobody knows yet which of them is meant
        assert not unused & set(sys.modules), "a package was imported that nobody asked for"
    os.chdir(folder)
    for name in imports:
        if name != PAPA:
            for check in (callbacks_fit, command_line_of_lightning, tasks_and_data):
                check(import_module(name), folder / f"{name}-{check.__name__}")
    if missing or len(imports) > 2:
        our_command_line(folder / "ours")


def callbacks_fit(pl: Any, folder: Path) -> None:
    """Each callback in a project of the package, alone and in a list, with what else looks at Lightning's classes."""
    from papa_lightning import AttentionConstants, AttentionImages, ConstantAttention, HeadGates, SwappedAttention
    from papa_lightning.callbacks import Throughput

    callbacks = import_module(f"{pl.__name__}.callbacks")
    loggers = import_module(f"{pl.__name__}.loggers")
    every: list[Any] = [
        ConstantAttention(max_length=4),
        HeadGates(max_length=4),
        SwappedAttention("aft_simple", max_length=4),
    ]
    for number, callback in enumerate(every):
        assert isinstance(callback, pl.Callback)
        averaging = [callbacks.WeightAveraging(avg_fn=lambda old, new, count: new)] if number == 0 else []
        module, logger = project(pl, late=number > 0), loggers.CSVLogger(folder, version=number)
        trainer = trainer_of(
            pl,
            logger=logger,
            callbacks=[callback, AttentionImages(), Throughput(), *averaging] if number < 2 else callback,
        )
        trainer.fit(module, loader())
        assert number == 2 or callback.calibration_seconds is not None
        if number == 0:
            found = AttentionConstants.load(f"{logger.log_dir}/constants.safetensors")
            assert found.values.shape == (1, 2, 4, 4)
            assert list(Path(logger.log_dir).glob("images/*.png"))
    trainer = trainer_of(pl, logger=False, callbacks=[ConstantAttention(max_length=4)])
    message = str(error_of(lambda: trainer.test(project(pl), loader(), verbose=False)))
    assert "only fit calibrates" in message, message


def command_line_of_lightning(pl: Any, folder: Path) -> None:
    """A callback in YAML of LightningCLI, by its path and by its name."""
    cli = import_module(f"{pl.__name__}.cli")
    folder.mkdir()
    for name in ("papa_lightning.ConstantAttention", "ConstantAttention"):
        file = folder / "config.yaml"
        quiet = "accelerator: cpu, max_steps: 1, logger: false, enable_checkpointing: false"
        file.write_text(
            f"trainer: {{{quiet}, callbacks: [{{class_path: {name}, init_args: {{max_length: 4, heads: [[0, 1]]}}}}]}}"
        )
        run = cli.LightningCLI(
            type(project(pl)),
            datamodule_of(pl),
            save_config_callback=None,
            args=["fit", "--config", str(file)],
        )
        [callback] = [one for one in run.trainer.callbacks if type(one).__name__ == "ConstantAttention"]
        assert callback.calibration_seconds is not None


def tasks_and_data(pl: Any, folder: Path) -> None:
    """A task and a data module of ours in a Trainer of the package, with a checkpoint and a file of predictions."""
    from papa_lightning import ConstantAttention, SequenceClassificationTask, SST2DataModule
    from papa_lightning.callbacks import PredictionWriter

    data = SST2DataModule(str(encoder_folder()), data_dir=str(data_folder()), max_length=12, batch_size=4)
    assert isinstance(data, pl.LightningDataModule)
    task = SequenceClassificationTask(str(encoder_folder()), num_labels=2, max_length=12)
    overridden = import_module(f"{pl.__name__}.utilities.model_helpers").is_overridden
    assert [overridden(name, task) for name in ("configure_model", "on_validation_model_train", "training_step")] == [
        False,
        False,
        True,
    ]
    trainer = trainer_of(pl, logger=False, callbacks=[ConstantAttention()])
    trainer.fit(task, datamodule=data)
    assert task.encoder.training is False  # frozen, also after a validation
    [scores] = trainer.validate(task, datamodule=data, verbose=False)
    trainer.save_checkpoint(f"{folder}.ckpt")
    again = SequenceClassificationTask.load_from_checkpoint(f"{folder}.ckpt", weights_only=True)
    assert isinstance(again, pl.LightningModule)
    [same] = trainer_of(pl, logger=False).validate(again, datamodule=data, verbose=False)
    assert same == scores, (same, scores)
    trainer_of(pl, logger=False, callbacks=[PredictionWriter(f"{folder}.jsonl")]).predict(again, datamodule=data)
    assert len(Path(f"{folder}.jsonl").read_text().splitlines()) == 4


def our_command_line(folder: Path) -> None:
    """``papa fit``, ``calibrate`` and ``predict`` on whatever there is."""
    from papa_lightning.cli.main import main

    sizes = ["--model", "SequenceClassificationTask", "--model.encoder", str(encoder_folder())]
    rows = ["--data", "SST2DataModule", "--data.data_dir", str(data_folder()), "--data.max_length", "12"]
    where = ["--trainer.default_root_dir", str(folder), "--trainer.accelerator", "cpu"]
    arguments = [*sizes, *rows, *where, "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    main(["fit", *arguments, "--trainer.callbacks+=ConstantAttention"])
    [logs] = folder.glob("lightning_logs/version_0")
    assert (logs / "constants.safetensors").is_file()
    assert (logs / "config.yaml").is_file()
    main(["calibrate", *arguments, "--output", str(folder / "constants.safetensors")])
    [checkpoint] = logs.glob("checkpoints/*.ckpt")
    output = folder / "predictions.jsonl"
    main(["predict", *arguments, "--ckpt_path", str(checkpoint), "--output", str(output)])
    assert len(output.read_text().splitlines()) == 4


def error_of(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error
    return None


def trainer_of(pl: Any, **arguments: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, **quiet, **arguments)


def project(pl: Any, late: bool = True) -> Any:
    """The module of a user, which may create its encoder in configure_model."""
    import torch
    from transformers import BertConfig, BertModel

    class Project(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bert: BertModel | None = None
            if not late:
                Project.configure_model(self)

        def configure_model(self) -> None:
            if self.bert is None:
                sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
                self.bert = BertModel(BertConfig(vocab_size=9, **sizes))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.bert is not None
            return self.bert(**batch).last_hidden_state.pow(2).sum()

        def test_step(self, batch: Any, batch_idx: int) -> None:
            assert self.bert is not None
            self.bert(**batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    return Project()


def loader() -> Any:
    import torch

    row = {"input_ids": torch.ones(4).long(), "attention_mask": torch.ones(4).long()}
    return torch.utils.data.DataLoader([row] * 4, 2)


def datamodule_of(pl: Any) -> Any:
    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def train_dataloader(self) -> Any:
            return loader()

    return Data


def encoder_folder() -> Path:
    """An encoder of one layer, with a tokenizer of letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = Path("encoder").resolve()
    if not folder.exists():
        folder.mkdir()
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{letter}" for letter in "abcdefgh")]
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **sizes)).save_pretrained(folder)
    return folder


def data_folder() -> Path:
    folder = Path("data").resolve()
    folder.mkdir(exist_ok=True)
    texts = ["a b", "c", "d e", "f"]
    lines = [json.dumps({"sentence": text, "label": number % 2}) for number, text in enumerate(texts)]
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def main(folder: Path) -> None:
    """All scenarios, one after the other."""
    import datasets
    import torch
    import torchmetrics  # noqa: F401
    from transformers import BertModel, BertTokenizer  # noqa: F401

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    assert not {"lightning", "pytorch_lightning", "papa_lightning"} & set(sys.modules)
    results = {}
    for number, (name, (imports, missing)) in enumerate(SCENARIOS.items()):
        own = folder / str(number)
        own.mkdir()
        process = os.fork()
        if process == 0:
            try:
                run(imports, missing, own)
            except BaseException:
                (own / "error").write_text(traceback.format_exc())
            os._exit(0)
        _, status = os.waitpid(process, 0)
        failure = own / "error"
        results[name] = failure.read_text() if failure.exists() else status or None
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
