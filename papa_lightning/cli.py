"""The command line: ``papa fit|validate|test|predict|calibrate --config ...``."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import DefaultHelpFormatter, Namespace

# Imported for their names: a configuration file says `class_path: SST2DataModule`, and what is imported is found.
from papa_lightning import callbacks, datamodules, tasks  # noqa: F401
from papa_lightning.boundary import closing
from papa_lightning.callbacks import CalibratingCallback, CalibrationRun, ConstantAttention, HeadGates, PredictionWriter
from papa_lightning.checkpoints import WeightsOnlyIO, is_address, read_checkpoint
from papa_lightning.configuration_errors import check_files, configuring
from papa_lightning.criteria import RankingRun, criterion_from, gates_for, list_ranking, load_trained
from papa_lightning.either_lightning import (
    ArgsType,
    L,
    LightningArgumentParser,
    LightningCLI,
    TorchCheckpointIO,
    rank_zero_only,
    rank_zero_warn,
)
from papa_lightning.exceptions import PapaError
from papa_lightning.files import check_output
from papa_lightning.logging_defaults import SaveRunConfig, default_loggers
from papa_lightning.ranking import HeadRanking
from papa_lightning.summary import Stopwatch, summarize_fit, summarize_scores
from papa_lightning.text import tell

#: What a task takes from its data module.
_FROM_DATA = ("num_labels", "metrics", "max_length", "label_names")

#: Verbs of ours that go over the train data and leave a file.
_RUNS = ("calibrate", "rank")

#: Commands that are no verbs of a Trainer. What they need (tables, figures) is imported only when one of them runs.
_COMMANDS = ("study", "report", "plan", "benchmark", "export", "compact")

_DESCRIPTION = "Freeze attention heads of pretrained encoders to averages, and measure what it costs."

_SUMMARY = """further commands, each with a --help of its own:
    study               Score against share of constant heads, for encoders,
                        tasks, criteria and seeds.
    report              The page and the figures of a study.
    plan                The most heads that can be constant within a loss of
                        the score, confirmed on held-out data.
    benchmark           Time and memory of encoders against their stock form.
    export              A folder with an encoder that lacks the query and key
                        weights of its constant heads; ONNX.
    compact             Constants in a few numbers a head: a relative profile
                        and a weight for each column.

papa VERB --help lists the arguments of a verb, and --print_config all their
values. PAPA_DEBUG=1 shows the traceback of an error."""


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
            criterion: variance, divergence, output, taylor, gate, greedy, random:SEED, layer:bottom_up or
                layer:top_down. gate trains; so does a criterion that asks the loss, where there is no ckpt_path.
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


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """jsonargparse's, but the text below the arguments keeps its lines."""


class PapaCLI(LightningCLI):
    """LightningCLI with the links between data and task, ``calibrate``, ``rank``, and a summary after ``fit``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands, ``calibrate`` and ``rank``."""
        return {**LightningCLI.subcommands(), **{verb: {"model", "datamodule"} for verb in _RUNS}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser whose errors :func:`main` prints."""
        return super().init_parser(**kwargs, exit_on_error=False, formatter_class=_HelpFormatter)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What one part of a configuration says, the other parts need not repeat."""
        parser.link_arguments("model.init_args.encoder", "data.init_args.tokenizer")
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse what would end as an error from inside Lightning."""
        super().parse_arguments(parser, args)
        _name_members(self.config)
        config = self.config[self.config.subcommand]
        seed, checkpoint = config.get("seed_everything"), config.get("ckpt_path")
        if not isinstance(seed, bool) and isinstance(seed, int) and not 0 <= seed < 2**32:
            raise PapaError(f"seed_everything is {seed}, but must be at least 0 and below 2**32.")
        if checkpoint is not None:
            check_checkpoint(str(checkpoint))
        self._asked = self._task_arguments()

    def before_instantiate_classes(self) -> None:
        """Tell which arguments of the task a checkpoint has overridden: Lightning does so without a word."""
        used = self._task_arguments()
        for name, told in self._asked.items():
            if name in used and name not in _FROM_DATA and _plain(used[name]) != _plain(told):
                rank_zero_warn(f"model.{name} is {used[name]!r}, from ckpt_path, and not {told!r} as configured.")

    def _task_arguments(self) -> dict[str, object]:
        return dict((self.config[self.config.subcommand].get("model.init_args") or {}).items())

    def _check_machines(self) -> None:
        """Refuse to wait for machines that cannot know of this one: Lightning would, for half an hour."""
        nodes = self._get(self.config_init, "trainer")["num_nodes"]
        known = self.trainer.strategy.launcher is None or "MASTER_ADDR" in os.environ
        if nodes > 1 and not known:
            raise PapaError(
                f"num_nodes is {nodes}, but nothing says which machines these are: start papa with torchrun or SLURM, "
                "or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each."
            )

    def instantiate_classes(self) -> None:
        """Make data, model and trainer; what their constructors refuse is an error of the configuration."""
        with configuring():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Refuse a task that was told something else than its data say: the link would win, and nobody would know."""
        self._check_machines()
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
        """Loggers of ours where none is named; a calibration or ranking run has neither logs nor checkpoints."""
        settings = self._get(self.config_init, "trainer")
        if settings["logger"] in (None, True) and not settings["barebones"]:
            kwargs["logger"] = default_loggers(settings["default_root_dir"] or os.getcwd())
        if self.subcommand in _RUNS:
            kwargs |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
            kwargs |= {"limit_val_batches": 0, "min_epochs": None, "min_steps": None}
            if self.subcommand == "calibrate":  # which takes no step
                kwargs |= {"max_epochs": 1, "max_steps": -1, "max_time": None}
            configured = settings["callbacks"] or []
            kept = configured if isinstance(configured, list) else [configured]
            kwargs["callbacks"] = [callback for callback in kept if isinstance(callback, CalibratingCallback)]
            self.save_config_callback = None
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else the user's own
            trainer.strategy.checkpoint_io = WeightsOnlyIO()
        return trainer

    def after_fit(self) -> None:
        """Print what was frozen, the score, the times, and where everything is."""
        summary = summarize_fit(self.trainer, self.model)  # on every process: the log folder is broadcast
        if summary is not None:
            rank_zero_only(tell)(summary)

    def after_rank(self) -> None:
        """Print the heads at both ends of the ranking, and where it is; a trial run has none."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        output = self.config[self.subcommand]["output"]
        rank_zero_only(tell)(list_ranking(HeadRanking.load(output), output))

    def after_validate(self) -> None:
        """Print the scores."""
        rank_zero_only(tell)(summarize_scores(self.trainer, self.model, "val"))

    def after_test(self) -> None:
        """Print the scores."""
        rank_zero_only(tell)(summarize_scores(self.trainer, self.model, "test"))


def main(args: ArgsType = None) -> object:
    """Run the command line.

    Args:
        args: Arguments as a list; None takes those of the process.

    Returns:
        For given arguments of a verb of the Trainer the CLI object, with ``trainer``, ``model`` and ``datamodule`` as
        the command left them; of another command what that returns. Without given arguments, None: the installed
        command exits with what it gets, and only None means success.

    Raises:
        SystemExit: In place of any error, see :mod:`papa_lightning.boundary`. With PAPA_DEBUG=1 in the environment the
            error itself, with its traceback.
    """
    words = sys.argv[1:] if args is None else args
    with closing(words):
        try:
            done = _run(words, args) if isinstance(words, list) else _run_trainer(args)
        finally:
            if args is None:  # the process ends next
                _disconnect()
    return None if args is None else done


def _disconnect() -> None:
    """Leave the group of processes, which Lightning does for NCCL only.

    The threads of gloo would go on while the interpreter ends, and one that asks for it then aborts the process, when
    all work is done: "terminate called without an active exception", and torchrun reports a failure.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _run(words: list[str], args: ArgsType) -> object:
    verbs = [*PapaCLI.subcommands(), *_COMMANDS]
    if not words or not (words[0].startswith("-") or words[0] in verbs):
        found = f"there is no command {words[0]!r}" if words else "no command is given"
        raise PapaError(f"{found}: choose from {', '.join(verbs)}; `papa --help` says what they do.")
    check_files(words)
    if words[0] in _COMMANDS:
        from papa_lightning import commands

        return getattr(commands, words[0])(words[1:])
    return _run_trainer(args)


def _run_trainer(args: ArgsType) -> PapaCLI:
    return PapaCLI(
        trainer_class=PapaTrainer,
        trainer_defaults={"callbacks": [Stopwatch()]},
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        parser_kwargs={"description": _DESCRIPTION, "epilog": _SUMMARY},
        args=args,
    )


def check_checkpoint(path: str) -> None:
    """Refuse a checkpoint that is not there, not whole, or could run code, before anything is made.

    Args:
        path: As given on the command line: a file, an address, which is looked at when it is loaded, or "last".

    Raises:
        PapaError: When it cannot be used.
    """
    if path == "best":
        raise PapaError("ckpt_path is 'best', which only the run that trained knows: pass the path of a checkpoint.")
    if Path(path).expanduser().is_dir():
        raise PapaError(
            f"ckpt_path is {path!r}, a folder, and to load a sharded checkpoint runs what it holds: where you trust "
            f"who wrote it, pass the file that `python -m lightning.pytorch.utilities.consolidate_checkpoint {path}` "
            "makes of it."
        )
    if not (path in ("last", "hpc") or path.startswith("registry") or is_address(path)):
        read_checkpoint(path)


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


def _default(task: type, name: str) -> object:
    """The default of a constructor's argument, also where a class hands it on to the one that it derives from."""
    for cls in task.__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is not None and name in (parameters := inspect.signature(constructor).parameters):
            return parameters[name].default
    return None


def _name_members(config: Namespace) -> None:
    """Put names in place of members of enumerations, which YAML cannot hold: ``Timer(interval=...)``."""
    for key, value in vars(config).items():
        if isinstance(value, Enum) and isinstance(value, str):
            setattr(config, key, value.value)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Namespace):
                _name_members(inner)


def _plain(value: object) -> object:
    """A value as YAML has it: sequences are lists."""
    return list(value) if isinstance(value, tuple) else value
