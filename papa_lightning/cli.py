"""The command line: ``papa fit|validate|test|predict|calibrate --config ...``."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping, Sequence

import lightning as L
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

# Imported for their names: a configuration file says `class_path: SST2DataModule`, and what is imported is found.
from papa_lightning import callbacks, datamodules, tasks  # noqa: F401
from papa_lightning.callbacks import CalibrationRun, ConstantAttention, PredictionWriter
from papa_lightning.exceptions import PapaError
from papa_lightning.summary import summarize_fit, summarize_scores

#: What a task takes from its data module.
_FROM_DATA = ("num_labels", "metrics", "max_length", "label_names")


class PapaTrainer(L.Trainer):
    """Lightning's Trainer with one more verb, and predictions that end in a file."""

    callbacks: list[L.Callback]

    def calibrate(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        output: str = "constants.safetensors",
    ) -> None:
        """Average the attention of the encoder over the train data and write a constants file. Trains nothing.

        Args:
            model: The task, or any module that holds an encoder.
            datamodule: Its train data are calibrated on.
            output: Where the constants are written; `fit` takes the file as `constants` of ConstantAttention.
        """
        configured = [callback for callback in self.callbacks if isinstance(callback, ConstantAttention)]
        run = CalibrationRun(configured[0] if configured else ConstantAttention(), output)
        self.callbacks = [callback for callback in self.callbacks if callback not in configured] + [run]
        self.fit(model, datamodule=datamodule)

    def predict(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Predict, and write labels and probabilities of every example to a file. Nothing is returned.

        Args:
            model: The task.
            datamodule: Its predict data are predicted.
            ckpt_path: Checkpoint of the task.
            output: A .jsonl or .parquet file; None takes predictions.jsonl in the folder of the logs.
            weights_only: As in Lightning's Trainer.
        """
        if output is not None or not any(isinstance(callback, PredictionWriter) for callback in self.callbacks):
            others = [callback for callback in self.callbacks if not isinstance(callback, PredictionWriter)]
            self.callbacks = [*others, PredictionWriter(output)]
        super().predict(
            model, datamodule=datamodule, ckpt_path=ckpt_path, return_predictions=False, weights_only=weights_only
        )

    def validate(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Sequence[Mapping[str, float]]:
        """As Lightning's, but quiet: the command line prints a table of its own.

        Args:
            model: The task.
            datamodule: Its validation data are used.
            ckpt_path: Checkpoint of the task.
            weights_only: As in Lightning's Trainer.
        """
        return super().validate(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only
        )

    def test(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Sequence[Mapping[str, float]]:
        """As Lightning's, but quiet: the command line prints a table of its own.

        Args:
            model: The task.
            datamodule: Its test data are used.
            ckpt_path: Checkpoint of the task.
            weights_only: As in Lightning's Trainer.
        """
        return super().test(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)


class PapaCLI(LightningCLI):
    """LightningCLI with the links between data and task, ``calibrate``, and a summary after ``fit``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands and ``calibrate``."""
        return {**LightningCLI.subcommands(), "calibrate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What one part of a configuration says, the other parts need not repeat."""
        parser.link_arguments("model.init_args.encoder", "data.init_args.tokenizer")
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def after_instantiate_classes(self) -> None:
        """Refuse a task that was told something else than its data say: the link would win, and nobody would know."""
        given = self.config[self.subcommand].get("model.init_args") or {}
        for name in _FROM_DATA:
            taken, told = getattr(self.datamodule, name, None), given.get(name)
            default = _default(type(self.model), name)
            if taken is not None and told is not None and _plain(told) not in (_plain(taken), _plain(default)):
                raise PapaError(
                    f"model.{name} is {_plain(told)!r}, but the data say {_plain(taken)!r}, and the data decide: leave "
                    f"model.{name} out, and change the data module or its arguments."
                )

    def instantiate_trainer(self, **kwargs: object) -> L.Trainer:
        """A calibration run needs no logger, no checkpoints and no validation."""
        if self.subcommand == "calibrate":
            kwargs |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
            kwargs |= {"limit_val_batches": 0, "min_epochs": None, "min_steps": None}
            configured = self._get(self.config_init, "trainer")["callbacks"] or []
            kept = configured if isinstance(configured, list) else [configured]
            kwargs["callbacks"] = [callback for callback in kept if isinstance(callback, ConstantAttention)]
            self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)

    def after_fit(self) -> None:
        """Print what was frozen, the score, the times, and where everything is."""
        summary = summarize_fit(self.trainer, self.model)  # on every process: the log folder is broadcast
        if summary is not None:
            rank_zero_only(print)(summary)

    def after_validate(self) -> None:
        """Print the scores."""
        rank_zero_only(print)(summarize_scores(self.trainer, self.model, "val"))

    def after_test(self) -> None:
        """Print the scores."""
        rank_zero_only(print)(summarize_scores(self.trainer, self.model, "test"))


def main(args: ArgsType = None) -> PapaCLI | None:
    """Run the command line.

    Args:
        args: Arguments as a list; None takes those of the process.

    Returns:
        For given arguments the CLI object, with ``trainer``, ``model`` and ``datamodule`` as the command left them.
        Without, None: the installed command exits with what it gets, and only None means success.

    Raises:
        SystemExit: With code 2 and one line on stderr for invalid input. With PAPA_DEBUG=1 in the environment the
            PapaError itself, with its traceback.
    """
    try:
        cli = PapaCLI(
            trainer_class=PapaTrainer,
            trainer_defaults={"callbacks": [Timer()]},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except ValueError as error:
        explained = explanation(error)
        if explained is None or os.environ.get("PAPA_DEBUG") == "1":
            raise
        print(f"papa: error: {' '.join(str(explained).split())}", file=sys.stderr)
        raise SystemExit(2) from error
    return None if args is None else cli


def _default(task: type, name: str) -> object:
    """The default of a constructor's argument, also where a class hands it on to the one that it derives from."""
    for cls in task.__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is not None and name in (parameters := inspect.signature(constructor).parameters):
            return parameters[name].default
    return None


def _plain(value: object) -> object:
    """A value as YAML has it: sequences are lists."""
    return list(value) if isinstance(value, tuple) else value


def explanation(error: BaseException | None) -> PapaError | None:
    """The PapaError that an error is, or that it was raised from.

    The parser wraps what a constructor raises in an error of its own, with a page of values around the one line.
    """
    while error is not None and not isinstance(error, PapaError):
        error = error.__cause__ or error.__context__
    return error
