"""Checks of the arguments of data modules."""

import os
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from papa_lightning.errors import DataError


def check_at_least(name: str, value: int, minimum: int) -> None:
    """Refuse an argument that is not a whole number from `minimum` on.

    Args:
        name: Name of the argument.
        value: Its value.
        minimum: The smallest value that is allowed.

    Raises:
        DataError: It is no whole number, or too small.

    Example:
        >>> check_at_least("batch_size", 16, 1)
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise DataError(f"{name} is {value!r}, but must be a whole number, at least {minimum}.")


def most_processes() -> int:
    """More processes than this are a slip of the keyboard: 64, or as many as the machine has cores."""
    return max(64, os.cpu_count() or 1)


def check_processes(name: str, value: int, minimum: int) -> None:
    """Refuse a number of processes that cannot be meant.

    Args:
        name: Name of the argument.
        value: Its value.
        minimum: The smallest value that is allowed.

    Raises:
        DataError: It is no whole number, too small, or above :func:`most_processes`.

    Example:
        >>> check_processes("num_workers", 4, 0)
    """
    check_at_least(name, value, minimum)
    if value > most_processes():
        raise DataError(
            f"{name} is {value}, but this machine has {os.cpu_count()} cores: pass at most {most_processes()}."
        )


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuse an argument that is none of the choices.

    Args:
        name: Name of the argument.
        value: Its value.
        choices: What it may be.

    Raises:
        DataError: It is something else.

    Example:
        >>> check_choice("layout", "plain", ("segment", "plain"))
    """
    if value not in choices:
        raise DataError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")


def as_text(name: str, value: Any) -> str:
    """Return a name or path as text: hyperparameters travel in checkpoints, which hold no path objects.

    Args:
        name: Name of the argument.
        value: Its value.

    Returns:
        The text.

    Raises:
        DataError: It is neither a path nor a text, or empty.

    Example:
        >>> as_text("data_dir", Path("data"))
        'data'
    """
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name} is {value!r}, but must be a name or the path of a folder.")
    return text


def as_names(name: str, value: Any, fewest: int) -> tuple[str, ...]:
    """Return a list of names, each once.

    Args:
        name: Name of the argument.
        value: Its value.
        fewest: The smallest number of names that is allowed.

    Returns:
        The names.

    Raises:
        DataError: It is no list of names, too short, or names something twice.

    Example:
        >>> as_names("label_names", ["no", "maybe", "yes"], fewest=2)
        ('no', 'maybe', 'yes')
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise DataError(f"{name} is {value!r}, but must be a list of names.")
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise DataError(f"{name} holds {entry!r}, but must hold names: put numbers and words like yes into quotes.")
    if twice := sorted({entry for entry in value if list(value).count(entry) > 1}):
        raise DataError(f"{name} holds {twice[0]!r} more than once: keep one.")
    if len(value) < fewest:
        raise DataError(f"{name} is {list(value)!r}, but must hold {fewest} names or more.")
    return tuple(value)


def as_label_names(value: Any) -> tuple[str, ...]:
    """Return the names of a task's labels; whole numbers, which YAML makes of names like 1, are names too.

    Args:
        value: What was given as `label_names`.

    Returns:
        The names, two or more.

    Raises:
        DataError: It is no list of different names.

    Example:
        >>> as_label_names(["no", "yes"]), as_label_names([1, 2, 3])
        (('no', 'yes'), ('1', '2', '3'))
    """
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if truths := [name for name in given if isinstance(name, bool)]:
        raise DataError(
            f"label_names holds {truths[0]!r}, but must hold names: put words that YAML reads as truth values (yes, "
            "no, on, off, true, false) into quotes, ['no', 'yes']."
        )
    names = as_names("label_names", [str(n) if isinstance(n, int) else n for n in given] or value, fewest=2)
    numbers = [number for name in names if (number := number_of(name)) is not None]
    if len(set(numbers)) < len(numbers):
        raise DataError(f"label_names is {list(names)!r}, which holds a number in two forms: keep one.")
    return names


def number_of(value: Any) -> Decimal | None:
    """Return what a number is, also one in digits; None for anything else.

    Example:
        >>> number_of(" 2.0") == number_of(2), number_of("two"), number_of(True)
        (True, None, None)
    """
    if isinstance(value, (bool, list, dict)):
        return None
    found = re.fullmatch(r"[+-]?[0-9]{1,300}(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", str(value).strip())
    return Decimal(found[0]) if found else None
