"""The command line: ``papa fit|validate|test|predict|calibrate --config ...``."""

from __future__ import annotations

import inspect
import os
import sys
from argparse import RawDescriptionHelpFormatter
from enum import Enum
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import Namespace

# Imported for their names: a configuration file says `class_path: SST2DataModule`, and what is imported is found.
from papa_lightning import callbacks, datamodules, from_scratch, tasks  # noqa: F401
from papa_lightning.callbacks import CalibratingCallback
from papa_lightning.cli.choices import ChoicesHelpFormatter
from papa_lightning.cli.errors import closing
from papa_lightning.cli.loggers import SaveRunConfig, default_loggers
from papa_lightning.cli.summary import Stopwatch, summarize_fit, summarize_scores
from papa_lightning.cli.trainer import PapaTrainer
from papa_lightning.configuration import check_files, configuring
from papa_lightning.criteria import list_ranking
from papa_lightning.either_lightning import (
    ArgsType,
    L,
    LightningArgumentParser,
    LightningCLI,
    TorchCheckpointIO,
    rank_zero_only,
    rank_zero_warn,
)
from papa_lightning.errors import PapaError
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.checkpoints import WeightsOnlyIO, is_address, read_checkpoint
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


class _HelpFormatter(RawDescriptionHelpFormatter, ChoicesHelpFormatter):
    """Help formatter that keeps the lines of the text below the arguments."""


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
        SystemExit: In place of any error, see :mod:`papa_lightning.cli.errors`. With PAPA_DEBUG=1 in the environment
            the error itself, with its traceback.
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
        from papa_lightning.cli import commands

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
