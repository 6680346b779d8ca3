"""The command line: ``papa VERB --config ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from textwrap import fill
from typing import TYPE_CHECKING

from papa_lightning.cli.configurations import locate_configs
from papa_lightning.cli.errors import closing
from papa_lightning.cli.mistakes import placed
from papa_lightning.cli.noise import quiet
from papa_lightning.cli.trainer_help import trainer_summaries
from papa_lightning.cli.verbs.registry import VERBS, run_verb, summary
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.version import __version__

if TYPE_CHECKING:
    from papa_lightning.either_lightning import ArgsType

#: Verbs in the order of a user's day; those that are not named come last.
_ORDER = (
    *("demo", "init", "study", "report", "budget", "atlas"),
    *("fit", "validate", "test", "predict", "calibrate", "rank", "compact", "export", "benchmark", "configs"),
)
_DESCRIPTION = "Freeze attention heads of pretrained encoders to averages, and measure what it costs."
_NOTES = (
    "papa VERB --help lists the arguments of a verb; papa configs, the configurations",
    "that --config finds by name. PAPA_DEBUG=1 shows the traceback of an error.",
)


def main(args: ArgsType = None) -> object:
    """Run the command line, with given arguments or those of the process.

    Given arguments, it returns what the verb returns: of a verb of the Trainer the CLI object, which has ``trainer``,
    ``model`` and ``datamodule`` as the verb left them. Otherwise None, which as an exit code means success. Errors end
    in :mod:`papa_lightning.cli.errors`.
    """
    words = sys.argv[1:] if args is None else args
    with closing(words), quiet() if args is None else nullcontext():
        try:
            done = _run(words) if isinstance(words, list) else _run_trainer(words)
        finally:
            dist = sys.modules.get("torch.distributed")
            if args is None and dist is not None and dist.is_available() and dist.is_initialized():
                # Lightning leaves the group for NCCL only, and threads of gloo may abort the interpreter at its end.
                dist.destroy_process_group()
    return None if args is None else done


def _run(words: list[str]) -> object:
    verbs = list(dict(summaries()))
    if words[:1] in (["-h"], ["--help"], ["--version"]):
        return help_parser().parse_args(words[:1])
    if not words or not (words[0].startswith("-") or words[0] in verbs):
        found = f"there is no command {words[0]!r}" if words else "no command is given"
        meant = did_you_mean(words[0], verbs) if words else ""
        raise PapaError(f"{found}{meant or '.'} Choose from {', '.join(verbs)}; `papa --help` says what they do.")
    words = locate_configs(words)
    with placed(words):
        return run_verb(words[0], words[1:]) if words[0] in VERBS else _run_trainer(words)


def _run_trainer(args: ArgsType) -> object:
    from papa_lightning.cli.trainer_verbs import run_trainer  # brings LightningCLI, which other verbs do not need

    return run_trainer(args)


def help_parser() -> argparse.ArgumentParser:
    """The parser of ``papa --help``, which lists the verbs."""
    rows = [
        fill(f"{name:<12}{text}", 79, initial_indent=" " * 4, subsequent_indent=" " * 16) for name, text in summaries()
    ]
    parser = argparse.ArgumentParser(
        prog="papa",
        usage="papa VERB [--config FILE ...] [--KEY VALUE ...]",
        description=_DESCRIPTION,
        epilog="\n".join(["verbs:", *rows, "", *_NOTES]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"papa {__version__}")
    return parser


def summaries() -> Iterator[tuple[str, str]]:
    """Verbs and the first lines of their help, in their order."""
    found = {**trainer_summaries(), **dict.fromkeys(VERBS, "")}
    for name in sorted(found, key=lambda one: _ORDER.index(one) if one in _ORDER else len(_ORDER)):
        try:
            yield name, found[name] or summary(VERBS[name])
        except (ImportError, PapaError) as error:  # a broken package must not hide the other verbs
            yield name, f"cannot be imported: {error}"
