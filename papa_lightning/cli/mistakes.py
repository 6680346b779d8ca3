"""Mistakes in the words and the files of a command, with what was probably meant, and file and line.

:mod:`papa_lightning.configuration` tells what an error of jsonargparse says; here, the parser and the files are known.
"""

from __future__ import annotations

import re
from argparse import ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from papa_lightning.cli.configurations import place_of
from papa_lightning.configuration import Fault, fault_of
from papa_lightning.errors import PapaError, did_you_mean, explanation

_KEY_OF_SUBCOMMAND = re.compile(r"Subcommand '[^']*' does not accept option '([^']*)'")
_KEY_OF_GROUP = re.compile(r"(?:Group '([^']*)' does not accept option|^Option) '([^']*)'")
_UNRECOGNIZED = re.compile(r"unrecognized arguments: (\S+)")
_ABOUT = re.compile(r"([A-Za-z_][\w.]*) (?:is|has|holds|cannot) ")
_WITHOUT_CLASS = re.compile(r"class_path '[\w.]*\.Lightning(Data)?Module':\s+Option '([^']*)' is not accepted")
_REQUIRED = re.compile(r"the following arguments are required: (.*)")

_FILE = "pass them, or a file that has them: --config FILE (`papa configs` lists those of the package)"
_MODEL = (
    "put --config defaults.yaml before the file of a task, or pass a file that has model and data, such as --config "
    "demo.yaml (`papa configs` lists those of the package), or --model CLASS and --data CLASS"
)


@contextmanager
def explained(parser: ArgumentParser, words: Sequence[str]) -> Iterator[None]:
    """Turn an error of a parser into a PapaError that says what was meant, and where it stands.

    Args:
        parser: The parser of the verb.
        words: The words behind the verb.
    """
    try:
        yield
    except PapaError:
        raise
    except (ArgumentError, ValueError) as error:
        meant = explanation(error)
        if meant is not None:
            raise meant from error
        raise PapaError(_line(str(error), parser, words)) from error


@contextmanager
def placed(words: Sequence[str]) -> Iterator[None]:
    """Put file and line before the message of a PapaError that is about a value of a configuration file.

    Args:
        words: The words of the command, with the paths of its files.
    """
    try:
        yield
    except PapaError as error:
        # A budget is a study of one task, which its file calls by no name.
        line = str(error).replace("tasks.task", "task", words[0] == "budget")
        about = _ABOUT.match(line)
        place = _place(about[1], "", words) if about else None
        if line == str(error) and place is None:
            raise
        raise PapaError(f"{place}: {line}" if place else line) from error


def _line(message: str, parser: ArgumentParser, words: Sequence[str]) -> str:
    fault = _of_a_key(message, parser) or _of_a_word(message, parser) or _of_what_is_missing(message, parser, words)
    fault = fault or _of_no_class(message) or fault_of(message)
    place = _place(fault.key, fault.value, words)
    return f"{place}: {fault.line}" if place else fault.line


def _place(key: str, value: str, words: Sequence[str]) -> str | None:
    """File and line of a key; None for one that an option sets."""
    options = [word.partition("=")[0][2:].replace(".init_args", "") for word in words if word.startswith("--")]
    if not key or any(f"{key}.".startswith(f"{one}.") for one in options):
        return None
    return place_of(key, value, words)


def _keys(parser: ArgumentParser) -> list[str]:
    return [one.dest for one in parser._actions]


def _of_a_key(message: str, parser: ArgumentParser) -> Fault | None:
    """The fault of a key in a file that the verb does not have."""
    if found := _KEY_OF_SUBCOMMAND.search(message):
        key = found[1]
    elif group := _KEY_OF_GROUP.search(message):
        key = ".".join(part for part in group.groups() if part)
    else:
        return None
    known = _keys(parser)
    known += sorted({one.rpartition(".")[0] for one in known if "." in one})
    meant = did_you_mean(key, known) or did_you_mean(key.split(".")[0], [one for one in known if "." not in one])
    return Fault(f"there is no argument {key}{meant or _below(key, parser)}", key)


def _below(key: str, parser: ArgumentParser) -> str:
    """The arguments beside one that does not exist, as the end of a sentence."""
    group = key.rpartition(".")[0]
    beside = [one for one in _keys(parser) if one.rpartition(".")[0] == group and one not in ("help", "config")]
    return f": choose from {', '.join(beside)}" if group and 0 < len(beside) < 16 else ""


def _of_a_word(message: str, parser: ArgumentParser) -> Fault | None:
    """The fault of a word of the command line that the verb does not know."""
    found = _UNRECOGNIZED.search(message)
    if found is None:
        return None
    line, word = " ".join(message.split()), found[1].partition("=")[0]
    if word.endswith((".yaml", ".yml")):
        return Fault(f"{line}: a file of arguments stands behind --config")
    options = [option for one in parser._actions for option in one.option_strings if option.startswith("--")]
    return Fault(f"{line}{did_you_mean(word, options)}")


def _of_what_is_missing(message: str, parser: ArgumentParser, words: Sequence[str]) -> Fault | None:
    """The fault of arguments that stand nowhere."""
    found = _REQUIRED.search(message)
    if found is None:
        return None
    line, missing = " ".join(found[0].split()), found[1].split(", ")
    given = any(word.partition("=")[0] in ("-c", "--config") for word in words)
    alone = [one.dest.upper() for one in parser._actions if one.dest in missing and not one.option_strings]
    if alone:
        return Fault(f"{line}: `{parser.prog} {' '.join(alone)}`")
    if any(one.endswith(".model") for one in missing):
        return Fault(f"model is missing: {_MODEL}")
    return Fault(line if given else f"{line}: {_FILE}")


def _of_no_class(message: str) -> Fault | None:
    """The fault of arguments of a model or of data whose class is not given."""
    found = _WITHOUT_CLASS.search(message)
    if found is None:
        return None
    name = "data" if found[1] else "model"
    return Fault(f"{name}.{found[2]} is given, but not the class of {name}: {_MODEL}", f"{name}.{found[2]}")
