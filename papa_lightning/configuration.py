"""Errors of a configuration in one line: what jsonargparse and Lightning say on many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from papa_lightning.either_lightning import MisconfigurationException
from papa_lightning.errors import PapaError, explanation

#: Lines of jsonargparse's account that say what is wrong, apart from types that were tried.
_REASONS = re.compile(
    r"(Option '[^']*' is not accepted|the following arguments are required: .*|Requirement '[^']*' not met|"
    r"Neither `tensorboard` nor `tensorboardX` is available.*)"
)
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_VALUE = re.compile(r"(?:Given value|Got value): (.*)")
_CLASS = re.compile(r"Problem with given class_path '([^']*)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\])")
_SHOW = "PAPA_DEBUG=1 shows the traceback"


def check_files(words: Sequence[str]) -> None:
    """Refuse configuration files that are not text, and such that hold themselves, on which parsers go on for ever.

    Args:
        words: Of the command line.

    Raises:
        PapaError: With the name of the file.
    """
    for option, value in zip(words, [*words[1:], ""], strict=True):
        name, equals, given = option.partition("=")
        path = Path(given if equals else value)
        if name in ("-c", "--config") and path.is_file():
            _check_file(path)


def _check_file(path: Path) -> None:
    try:
        if _holds_itself(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), [], set()):
            raise PapaError(f"config is {str(path)!r}, in which something holds itself (by an alias): write it out.")
    except UnicodeDecodeError as error:
        raise PapaError(f"config is {str(path)!r}, which is not UTF-8 ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise PapaError(f"config is {str(path)!r}, which nests too deeply: make it flatter.") from error
    except yaml.YAMLError as error:
        raise PapaError(f"config is {str(path)!r}, which is no YAML: {' '.join(str(error).split())}") from error


def _holds_itself(node: yaml.Node | None, above: list[yaml.Node], seen: set[int]) -> bool:
    if node in above:
        return True
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return False
    seen.add(id(node))
    children = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else [pair])]
    return any(_holds_itself(child, [*above, node], seen) for child in children)


@contextmanager
def configuring() -> Iterator[None]:
    """Whatever a constructor raises while a configuration becomes objects is an error of the configuration.

    Raises:
        PapaError: With the message of the error, on one line.
    """
    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        explained = explanation(error)
        raise explained or PapaError(f"the configuration cannot be set up: {account(str(error))} ({_SHOW})") from error


def account(message: str) -> str:
    """What jsonargparse tells on many lines of a value that fits no type, on one: key, value, what it must be.

    Args:
        message: Of an error of jsonargparse, or any other.

    Example:
        >>> account('''Parser key "trainer.max_epochs":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Expected a <class 'int'>
        ...     - Expected a <class 'NoneType'>
        ...   Given value: abc''')
        'trainer.max_epochs is abc, but must be int or null'
    """
    value = _VALUE.search(message)
    found = message[: value.end()] if value else message
    keys = list(dict.fromkeys(_KEY.findall(found)))
    name = ".".join(keys)
    reason, unknown, kind = (pattern.search(found) for pattern in (_REASONS, _UNKNOWN_CLASS, _CLASS))
    if reason:
        return ": ".join(part for part in (name, kind and kind.group(1), reason.group(1)) if part)
    if unknown:
        return f"{name} is {unknown.group(1)}, but must be the name or the import path of a class"
    if value and keys:
        nested = found[found.rindex(f'"{keys[-1]}"') :]
        types = dict.fromkeys(
            "null" if one == "NoneType" else one or choices for one, choices in _EXPECTED.findall(nested)
        )
        if types:
            return f"{name} is {value.group(1)}, but must be {' or '.join(types)}"
    return " ".join(message.split())
