"""``papa completion``."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any, Literal, cast

from papa_lightning.cli.configurations import shipped
from papa_lightning.cli.verbs.registry import VERBS, parser_of
from papa_lightning.errors import PapaError


@VERBS.register("completion")
def completion(shell: Literal["bash", "zsh"]) -> str:
    """Print a script that completes verbs and arguments in a shell.

    Args:
        shell: bash or zsh.
    """
    try:
        import shtab
    except ImportError as error:
        raise PapaError(
            "completion needs the package shtab: pip install 'papa-lightning[completion]', then once more."
        ) from error
    if shell not in ("bash", "zsh"):
        raise PapaError(f"shell is {shell!r}, but must be bash or zsh: `papa completion bash`.")
    from papa_lightning.cli.main import summaries
    from papa_lightning.cli.trainer_verbs import trainer_parsers

    parser, of_trainer = ArgumentParser(prog="papa"), trainer_parsers()
    verbs = parser.add_subparsers()
    for name, text in summaries():
        verbs.add_parser(name, help=text)
        own = of_trainer[name] if name in of_trainer else parser_of(name)
        verbs.choices[name] = _completed(own, shtab.FILE)
    script: str = shtab.complete(parser, shell)
    print(script)
    return script


def _completed(parser: ArgumentParser, file: Any) -> ArgumentParser:
    """A parser whose configurations are completed with files, and its words with what they can be."""
    for action in parser._actions:
        if action.dest == "config":
            cast(Any, action).complete = file
        elif action.dest == "shell":
            action.choices = ["bash", "zsh"]
        elif action.dest == "name" and not action.option_strings:
            action.choices = list(shipped())
    return parser
