"""The registry of verbs, and how a function becomes a command."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from docstring_parser import parse
from jsonargparse import ArgumentParser

from papa_lightning.cli.choices import ChoicesHelpFormatter
from papa_lightning.cli.mistakes import explained
from papa_lightning.cli.nested import allow_parts
from papa_lightning.registry import Registry

#: Functions by the name of their verb. Parameters before a ``*`` are words of the command line (text), those behind it
#: options; ``**settings`` stands for the fields of the dataclass that the function makes of them.
VERBS: Registry[Callable[..., object]] = Registry("verb", callable, "papa_lightning.verbs")


def summary(function: Callable[..., object]) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(function) or "").partition("\n")[0]


def parser_of(name: str) -> ArgumentParser:
    """The parser of a verb."""
    verb = VERBS[name]
    parser = ArgumentParser(
        prog=f"papa {name}", exit_on_error=False, description=summary(verb), formatter_class=ChoicesHelpFormatter
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the arguments; may be repeated")
    words = [one for one in inspect.signature(verb).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    described = {one.arg_name: one.description for one in parse(inspect.getdoc(verb) or "").params}
    for one in words:
        may_lack = {} if one.default is one.empty else {"nargs": "?", "default": one.default}
        parser.add_argument(one.name, type=str, help=described.get(one.name), **may_lack)
    parser.add_function_arguments(verb, as_group=False, skip={one.name for one in words})
    for action in parser._actions:
        if getattr(action, "_typehint", action.type) is bool:
            action.nargs, action.const = "?", True  # `--replace` alone is `--replace true`
    allow_parts(parser)
    return parser


def run_verb(name: str, words: Sequence[str]) -> object:
    """Run a verb with the rest of the command line."""
    parser = parser_of(name)
    with explained(parser, words):
        arguments = parser.instantiate(parser.parse_args(list(words)))
    return VERBS[name](**{key: value for key, value in vars(arguments).items() if key != "config"})


@contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that the same command resumes."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("the same command goes on.") from stop
