"""The Trainer of the command line: Lightning's, with verbs that write files, and checkpoints that cannot run code."""

# ruff: noqa: D417 (docstrings are the help of the command line, which has no model and no data as arguments)

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from papa_lightning.callbacks import CalibratingCallback, CalibrationRun, ConstantAttention, HeadGates, PredictionWriter
from papa_lightning.criteria import RankingRun, check_layer, gates_for, load_trained, table_path, trains_first
from papa_lightning.either_lightning import L
from papa_lightning.encoders import encoder_shape
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import check_output, write_atomically
from papa_lightning.lightning_project.encoder import discover_encoder

#: Verbs that Lightning's Trainer lacks: one pass over the training data, whose result is a file.
FILE_VERBS = ("calibrate", "rank")


class PapaTrainer(L.Trainer):
    """Lightning's Trainer with ``calibrate`` and ``rank``, and with predictions that are written to a file.

    ``safety`` of a verb is ``weights_only``, see :func:`_only_weights`. Scores are not printed: the command line has a
    table of its own.
    """

    callbacks: list[L.Callback]

    def fit(  # type: ignore[override]
        self,
        model: L.LightningModule,
        train_dataloaders: object = None,
        val_dataloaders: object = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        **safety: Any,
    ) -> None:
        """Train a task, with calibration first where a callback asks for it.

        Args:
            ckpt_path: Checkpoint to resume. The arguments of the task are then those of the checkpoint.
        """
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, _only_weights(**safety))

    def calibrate(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule | None = None,
        output: str = "constants.safetensors",
    ) -> None:
        """Average the attention of the encoder over the training data, and write a constants file.

        Args:
            output: Constants file to write; `fit` takes it as `constants` of ConstantAttention.
        """
        check_output("output", output)
        configured = [callback for callback in self.callbacks if isinstance(callback, CalibratingCallback)]
        calibration = next((one for one in configured if isinstance(one, ConstantAttention)), ConstantAttention())
        others = [one for one in self.callbacks if one not in configured]
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
        layer: int | None = None,
        heads: int = 5,
    ) -> None:
        """Rank the heads of the encoder over the training data, and write a ranking file.

        Args:
            criterion: Criterion of the ranking: :data:`papa_lightning.criteria.CRITERIA`. gate trains; so does a
                criterion that needs the loss, where there is no ckpt_path.
            output: Ranking file to write, a .json; `fit` takes it as `ranking` of ConstantAttention. A .csv beside it
                has place and score of every head.
            constants: A constants file; without one, a criterion that needs constants calibrates first.
            ckpt_path: Checkpoint of the trained task.
            layer: Layer whose heads are printed, all of them; None prints both ends of the ranking, and the place of
                every head.
            heads: Number of heads printed of each end.
        """
        check_output("output", output)
        table = table_path(output)
        if Path(output).suffix == ".csv":
            raise PapaError(f"output is {output!r}, but the ranking is JSON, and the .csv is a table: pass a .json.")
        configured = [callback for callback in self.callbacks if isinstance(callback, CalibratingCallback)]
        calibration = next(iter(configured), ConstantAttention())
        if layer is not None:
            check_layer(layer, encoder_shape(discover_encoder(model, calibration.encoder))[0])
        if ckpt_path is not None:
            load_trained(model, ckpt_path, calibration.encoder)
        trained = trains_first(criterion, model, ckpt_path)
        if criterion == "gate":
            run: HeadGates | RankingRun = gates_for(output, constants, configured)
        elif self.world_size > 1:
            raise PapaError(
                f"devices and num_nodes make {self.world_size} processes, but heads are ranked by one: pass "
                "--trainer.devices 1."
            )
        else:
            run = RankingRun(criterion, output, calibration, constants, trained)
        self.callbacks = [*(one for one in self.callbacks if one not in configured), run]
        self.fit(model, datamodule=datamodule)
        if run.ranking is None:
            raise _nothing_ranked(self, output)
        if self.is_global_zero and not self.fast_dev_run:  # type: ignore[attr-defined]
            write_atomically(table, run.ranking.table().to_csv().encode())

    def predict(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        output: str | None = None,
        **safety: Any,
    ) -> None:
        """Write the predicted label and the probabilities of every example, or its embedding, to a file.

        Args:
            ckpt_path: Checkpoint of the task.
            output: A .jsonl or .parquet file; None takes predictions.jsonl in the folder of the logs.
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
            weights_only=_only_weights(**safety),
        )

    def validate(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        **safety: Any,
    ) -> Sequence[Mapping[str, float]]:
        """Score a task on its validation data.

        Args:
            ckpt_path: Checkpoint of the task.
        """
        return super().validate(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=_only_weights(**safety)
        )

    def test(  # type: ignore[override]
        self,
        model: L.LightningModule | None = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        **safety: Any,
    ) -> Sequence[Mapping[str, float]]:
        """Score a task on its test data.

        Args:
            ckpt_path: Checkpoint of the task.
        """
        return super().test(
            model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=_only_weights(**safety)
        )


def _nothing_ranked(trainer: PapaTrainer, output: str) -> PapaError:
    limits = ("max_epochs", "max_steps", "limit_train_batches")
    found = ", ".join(f"{name} is {getattr(trainer, name)}" for name in limits)
    return PapaError(
        f"nothing was ranked, and {output!r} is not written: no training began, because of {found}, or of a "
        "time limit: allow the trainer a step."
    )


def _only_weights(weights_only: bool | None = None) -> bool:
    """True, or an error.

    Args:
        weights_only: Always true: a checkpoint that holds more than tensors and plain values is refused.
    """
    if weights_only is False:
        raise PapaError(
            "weights_only is False, which lets a checkpoint run code: leave it out. Where you trust who wrote the "
            "checkpoint, open it in Python with torch.load(path, weights_only=False), save what are tensors and plain "
            "values with torch.save, and pass that."
        )
    return True
