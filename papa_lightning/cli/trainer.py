"""The Trainer of the command line: Lightning's, with verbs that leave files and checkpoints that run nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from papa_lightning.callbacks import CalibratingCallback, CalibrationRun, ConstantAttention, HeadGates, PredictionWriter
from papa_lightning.criteria import RankingRun, criterion_from, gates_for, load_trained
from papa_lightning.either_lightning import L
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import check_output


class PapaTrainer(L.Trainer):
    """Lightning's Trainer with one more verb, and predictions that end in a file."""

    callbacks: list[L.Callback]

    def fit(  # type: ignore[override]
        self,
        model: L.LightningModule,
        train_dataloaders: object = None,
        val_dataloaders: object = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a task, with calibration first where a callback asks for it.

        Args:
            model: The task.
            train_dataloaders: As in Lightning's Trainer.
            val_dataloaders: As in Lightning's Trainer.
            datamodule: Its train and validation data are used.
            ckpt_path: Checkpoint to go on from. The arguments of the task are then those of the checkpoint.
            weights_only: Always true: a checkpoint that holds more than tensors and plain values is refused.
        """
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, _only_weights(weights_only))

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
        check_output("output", output)
        configured = [callback for callback in self.callbacks if isinstance(callback, CalibratingCallback)]
        calibration = next((one for one in configured if isinstance(one, ConstantAttention)), ConstantAttention())
        others = [callback for callback in self.callbacks if callback not in configured]
        self.callbacks = [*others, CalibrationRun(calibration, output)]
        self.fit(model, datamodule=datamodule)

    def rank(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        criterion: str = "variance",
        output: str = "ranking.json",
        constants: str | None = None,
        ckpt_path: str | None = None,
    ) -> None:
        """Rank the heads of the encoder over the train data and write a ranking file.

        Args:
            model: The task.
            datamodule: Its train data are gone over.
            criterion: Criterion of the ranking: :data:`papa_lightning.criteria.CRITERIA`. gate trains; so does a
                criterion that needs the loss, where there is no ckpt_path.
            output: Where the ranking is written; `fit` takes the file as `ranking` of ConstantAttention.
            constants: A constants file; without one, a criterion that needs constants calibrates first.
            ckpt_path: Checkpoint of the trained task.
        """
        check_output("output", output)
        configured = [callback for callback in self.callbacks if isinstance(callback, CalibratingCallback)]
        others = [callback for callback in self.callbacks if callback not in configured]
        calibration = next(iter(configured), ConstantAttention())
        if ckpt_path is not None:
            load_trained(model, ckpt_path, calibration.encoder)
        run: HeadGates | RankingRun
        if criterion == "gate":
            run = gates_for(output, constants, configured)
        else:
            if self.world_size > 1:
                raise PapaError(
                    f"devices and num_nodes make {self.world_size} processes, but heads are ranked by one: pass "
                    "--trainer.devices 1."
                )
            train_first = "loss" in criterion_from(criterion).needs and ckpt_path is None
            run = RankingRun(criterion, output, calibration, constants, train_first)
        self.callbacks = [*others, run]
        self.fit(model, datamodule=datamodule)
        if run.ranking is None:
            raise PapaError(_nothing_done(self, "ranked", output))

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
            weights_only: Always true: a checkpoint that holds more than tensors and plain values is refused.
        """
        if output is not None:
            check_output("output", output)
        if output is not None or not any(isinstance(callback, PredictionWriter) for callback in self.callbacks):
            others = [callback for callback in self.callbacks if not isinstance(callback, PredictionWriter)]
            self.callbacks = [*others, PredictionWriter(output)]
        super().predict(
            model,
            datamodule=datamodule,
            ckpt_path=ckpt_path,
            return_predictions=False,
            weights_only=_only_weights(weights_only),
        )

    def validate(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Sequence[Mapping[str, float]]:
        """Score a task on its validation data.

        As Lightning's, but quiet: the command line prints a table of its own.

        Args:
            model: The task.
            datamodule: Its validation data are used.
            ckpt_path: Checkpoint of the task.
            weights_only: Always true: a checkpoint that holds more than tensors and plain values is refused.
        """
        return super().validate(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=_only_weights(weights_only)
        )

    def test(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Sequence[Mapping[str, float]]:
        """Score a task on its test data.

        As Lightning's, but quiet: the command line prints a table of its own.

        Args:
            model: The task.
            datamodule: Its test data are used.
            ckpt_path: Checkpoint of the task.
            weights_only: Always true: a checkpoint that holds more than tensors and plain values is refused.
        """
        return super().test(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=_only_weights(weights_only)
        )


def _nothing_done(trainer: PapaTrainer, done: str, output: str) -> str:
    limits = ("max_epochs", "max_steps", "limit_train_batches")
    found = ", ".join(f"{name} is {getattr(trainer, name)}" for name in limits)
    return (
        f"nothing was {done}, and {output!r} is not written: no training began, because of {found}, or a time that was "
        "over: leave the trainer its steps."
    )


def _only_weights(asked: bool | None) -> bool:
    """True; what a checkpoint holds beside tensors and plain values is never run."""
    if asked is False:
        raise PapaError(
            "weights_only is False, which lets a checkpoint run code: leave it out. Where you trust who wrote the "
            "checkpoint, open it in Python with torch.load(path, weights_only=False), save what are tensors and plain "
            "values with torch.save, and pass that."
        )
    return True
