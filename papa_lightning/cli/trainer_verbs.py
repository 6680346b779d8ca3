"""The verbs of a Trainer: fit, validate, test, predict, calibrate and rank, as subcommands of a LightningCLI."""

import inspect
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

# Imported for their names: a configuration may name the classes of imported modules without their path.
from papa_lightning import callbacks, datamodules, from_scratch, public, tasks  # noqa: F401
from papa_lightning.callbacks import CalibratingCallback
from papa_lightning.cli.choices import ChoicesHelpFormatter
from papa_lightning.cli.loggers import SaveRunConfig, default_loggers
from papa_lightning.cli.mistakes import explained
from papa_lightning.cli.nested import allow_parts
from papa_lightning.cli.progress import ProgressLines, ShortSummary
from papa_lightning.cli.summary import Stopwatch, fit_summary, score_summary
from papa_lightning.cli.trainer import FILE_VERBS, PapaTrainer
from papa_lightning.configuration import configuring
from papa_lightning.criteria import list_ranking
from papa_lightning.either_lightning import (
    ArgsType,
    L,
    LightningArgumentParser,
    LightningCLI,
    ModelSummary,
    ProgressBar,
    TorchCheckpointIO,
    rank_zero_only,
    rank_zero_warn,
)
from papa_lightning.errors import PapaError
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.checkpoints import WeightsOnlyIO, is_address, read_checkpoint
from papa_lightning.text import tell

#: Arguments of a task that its data module decides.
_FROM_DATA = ("num_labels", "metrics", "max_length", "label_names")


class PapaCLI(LightningCLI):
    """LightningCLI with the links between data and task, ``calibrate``, ``rank``, and a summary after ``fit``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's subcommands, ``calibrate`` and ``rank``."""
        return {**LightningCLI.subcommands(), **{verb: {"model", "datamodule"} for verb in FILE_VERBS}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that raises its errors."""
        return super().init_parser(**kwargs, exit_on_error=False, formatter_class=ChoicesHelpFormatter)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link arguments of the task to the data module, and the tokenizer to the encoder."""
        parser.link_arguments("model.init_args.encoder", "data.init_args.tokenizer")
        for name in _FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and refuse what would end as an error from inside Lightning."""
        # Not Lightning's own method, which warns of a list of arguments: these are the ones of the process, with the
        # paths of configuration files.
        if isinstance(args, list):
            verb = self._subcommand_parsers.get(args[0] if args else "", parser)
            allow_parts(verb)
            with explained(verb, args):
                self.config = parser.parse_args(args)
        else:
            self.config = parser.parse_object(args)
        _name_members(self.config)
        config = self.config[self.config.subcommand]
        seed, checkpoint = config.get("seed_everything"), config.get("ckpt_path")
        if not isinstance(seed, bool) and isinstance(seed, int) and not 0 <= seed < 2**32:
            raise PapaError(f"seed_everything is {seed}, but must be at least 0 and below 2**32.")
        if checkpoint is not None:
            check_checkpoint(str(checkpoint))
        elif config.get("data") is None and config.get("model.init_args.num_labels", 0) is None:
            raise PapaError(
                "data is missing, which decides the number of labels of the model: pass --data CLASS, or the file of "
                "a task, such as --config sst2.yaml."
            )
        self._asked, self._options = self._task_arguments(), _options(args)

    def before_instantiate_classes(self) -> None:
        """Let options win over a checkpoint, but in fit, and say what else it overrode; Lightning does so silently."""
        used, overridden = self._task_arguments(), []
        for name, given in self._asked.items():
            if name not in used or name in _FROM_DATA or _plain(used[name]) == _plain(given):
                continue
            if self.config.subcommand != "fit" and f"model.{name}" in self._options:
                self.config[self.config.subcommand][f"model.init_args.{name}"] = given
            else:
                overridden.append(f"model.{name} is {used[name]!r}, from ckpt_path, and not {given!r} as configured")
        if overridden:
            rank_zero_warn(f"{'; '.join(overridden)}.")

    def _task_arguments(self) -> dict[str, object]:
        return dict((self.config[self.config.subcommand].get("model.init_args") or {}).items())

    def _check_machines(self) -> None:
        """Refuse several machines without an address, for which Lightning would wait half an hour."""
        nodes = self._get(self.config_init, "trainer")["num_nodes"]
        if nodes > 1 and self.trainer.strategy.launcher is not None and "MASTER_ADDR" not in os.environ:
            raise PapaError(
                f"num_nodes is {nodes}, but nothing says which machines these are: start papa with torchrun or SLURM, "
                "or set MASTER_ADDR, MASTER_PORT and NODE_RANK on each."
            )

    def instantiate_classes(self) -> None:
        """Create data module, model and trainer; errors of their constructors are errors of the configuration."""
        with configuring():
            super().instantiate_classes()

    def after_instantiate_classes(self) -> None:
        """Refuse a task that contradicts its data module: the link would win silently."""
        self._check_machines()
        given = self.config[self.subcommand].get("model.init_args") or {}
        for name in _FROM_DATA:
            taken, asked = getattr(self.datamodule, name, None), given.get(name)
            default = _default(type(self.model), name)
            if taken is not None and asked is not None and _plain(asked) not in (_plain(taken), _plain(default)):
                raise PapaError(
                    f"model.{name} is {_plain(asked)!r}, but the data say {_plain(taken)!r}, and the data decide: "
                    f"leave model.{name} out, and change the data module or its arguments."
                )

    def instantiate_trainer(self, **kwargs: object) -> L.Trainer:
        """Create the Trainer: with our default loggers, and without logs and checkpoints for calibrate and rank."""
        settings = self._get(self.config_init, "trainer")
        if settings["logger"] in (None, True) and not settings["barebones"]:
            kwargs["logger"] = default_loggers(settings["default_root_dir"] or os.getcwd())
        configured = settings["callbacks"] or []
        kept = list(configured) if isinstance(configured, list) else [configured]
        if self.subcommand in FILE_VERBS:
            kwargs |= {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
            kwargs |= {"limit_val_batches": 0, "min_epochs": None, "min_steps": None}
            if self.subcommand == "calibrate":  # takes no step
                kwargs |= {"max_epochs": 1, "max_steps": -1, "max_time": None}
            kept = [callback for callback in kept if isinstance(callback, CalibratingCallback)]
            kwargs["enable_model_summary"] = False
            self.save_config_callback = None
        kwargs["callbacks"] = [*kept, *_shown({**settings, **kwargs}, kept)]
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # otherwise a choice of the user
            trainer.strategy.checkpoint_io = WeightsOnlyIO()
        return trainer

    def after_fit(self) -> None:
        """Print number of constant heads, score, times and paths."""
        summary = fit_summary(self.trainer, self.model)  # on every process: the log folder is broadcast
        if summary is not None:
            rank_zero_only(tell)(summary)

    def after_rank(self) -> None:
        """Print heads of the ranking, and its path; a trial run has none."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        asked = self.config[self.subcommand]
        ranking = HeadRanking.load(asked["output"])
        rank_zero_only(tell)(list_ranking(ranking, asked["output"], asked["heads"], asked["layer"]))

    def after_validate(self) -> None:
        """Print the scores."""
        rank_zero_only(tell)(score_summary(self.trainer, self.model, "val"))

    def after_test(self) -> None:
        """Print the scores."""
        rank_zero_only(tell)(score_summary(self.trainer, self.model, "test"))


def run_trainer(args: ArgsType) -> PapaCLI:
    """Run a verb of the Trainer; the CLI object has ``trainer``, ``model`` and ``datamodule`` as the verb left them."""
    return PapaCLI(
        trainer_class=PapaTrainer,
        trainer_defaults={"callbacks": [Stopwatch()]},
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        args=args,
    )


def trainer_parsers() -> Mapping[str, ArgumentParser]:
    """The parsers of the verbs, for tables and completion."""
    found: dict[str, ArgumentParser] = {}

    class Unparsed(PapaCLI):
        """Stops before it parses."""

        def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
            found.update(self._subcommand_parsers)
            raise _Made

    with suppress(_Made):
        Unparsed(trainer_class=PapaTrainer, seed_everything_default=0)
    return found


class _Made(Exception):  # noqa: N818
    """The parsers are made."""


def check_checkpoint(path: str) -> None:
    """Refuse a checkpoint that is missing, damaged, or could run code; "last" and addresses are checked when loaded."""
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


def _options(args: ArgsType) -> set[str]:
    """The arguments that words of the command line set, not files; without ``init_args``."""
    words = [str(word) for word in args] if isinstance(args, list) else []
    return {word.partition("=")[0][2:].replace(".init_args", "") for word in words if word.startswith("--")}


def _shown(settings: Mapping[str, Any], configured: Sequence[L.Callback]) -> Iterator[L.Callback]:
    """What shows model and progress, where neither settings nor configured callbacks decide it."""
    if settings["barebones"]:
        return
    if settings["enable_model_summary"] is not False and not any(isinstance(one, ModelSummary) for one in configured):
        yield ShortSummary()
    has_bar = any(isinstance(one, ProgressBar) for one in configured)
    if settings["enable_progress_bar"] is None and not has_bar and not sys.stderr.isatty():
        yield ProgressLines()


def _default(task: type, name: str) -> object:
    """Default of a constructor's argument, also where a class passes it to its base class."""
    for cls in task.__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is not None and name in (parameters := inspect.signature(constructor).parameters):
            return parameters[name].default
    return None


def _name_members(config: Namespace) -> None:
    """Replace members of enumerations, which YAML cannot hold, by their values: ``Timer(interval=...)``."""
    for key, value in vars(config).items():
        if isinstance(value, Enum) and isinstance(value, str):
            setattr(config, key, value.value)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, Namespace):
                _name_members(inner)


def _plain(value: object) -> object:
    """A value as in YAML: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value
