"""Checks of arguments and of plain values read from JSON: types, ranges, choices, names of fields.

A check takes the name of a value, for messages, and the value; it returns the value or raises a PapaError.
"""

import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from papa_lightning.errors import PapaError, did_you_mean

Check: TypeAlias = Callable[[str, object], Any]

#: The largest whole number in a table.
LARGEST = 2**63 - 1


def refuse(name: str, value: object, wanted: str) -> NoReturn:
    """Refuse a value, always."""
    raise PapaError(f"{name} is {shown(value)}, but must be {wanted}.")


def shown(value: object) -> str:
    """A value in a message, however large it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; lists in lists in lists
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= 80 else f"{text[:79]}…"


def anything(name: str, value: object) -> Any:
    """Any value."""
    return value


def text(name: str, value: object) -> str:
    """Text that can be written as UTF-8."""
    if not isinstance(value, str):
        refuse(name, value, "text")
    try:
        value.encode()
    except UnicodeEncodeError:
        refuse(name, value, "text that can be written as UTF-8")
    return value


def filled(name: str, value: object) -> str:
    """Text that is not empty."""
    return text(name, value) or refuse(name, value, "a name")


def boolean(name: str, value: object) -> bool:
    """True or false."""
    return value if isinstance(value, bool) else refuse(name, value, "true or false")


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Refuse an argument that is none of its choices.

    Example:
        >>> check_choice("pooling", "max", ["mean", "class_token"])
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: pooling is 'max', but must be one of 'mean', 'class_token'.
    """
    allowed = tuple(choices)
    if value not in allowed:
        end = did_you_mean(value, allowed) or "."
        raise PapaError(f"{name} is {shown(value)}, but must be one of {', '.join(map(repr, allowed))}{end}")


def one_of(*choices: str) -> Check:
    """One of some words."""

    def check(name: str, value: object) -> str:
        check_choice(name, value, choices)
        return str(value)

    return check


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """A whole number in a range."""

    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            too_large = isinstance(value, int) and value > most
            ends = f" from {least} to {most}" if too_large or most < LARGEST else f", at least {least}"
            refuse(name, value, f"a whole number{ends}")
        return value

    return check


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number in a range, as a float."""
    ends = [f"from {least:g}"] * (least > -math.inf) + [f"up to {most:g}"] * (most < math.inf)

    def check(name: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            refuse(name, value, "a number")
        found = as_float(value)
        if not math.isfinite(found):
            refuse(name, value, "a finite number")
        return found if least <= found <= most else refuse(name, value, f"a number {' '.join(ends)}")

    return check


def as_float(value: int | float) -> float:
    """A number as a float; infinity for a whole number beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def maybe(check: Check) -> Check:
    """None, or a value that passes a check."""
    return lambda name, value: None if value is None else check(name, value)


def listed(check: Check) -> Check:
    """A list of values that pass a check."""

    def of(name: str, value: object) -> list[Any]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            refuse(name, value, "a list")
        return [check(f"{name}[{place}]", one) for place, one in enumerate(value)]

    return of


def mapped(check: Check) -> Check:
    """A map from text to values that pass a check."""

    def of(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            refuse(name, value, "a map")
        return {text(f"a name of {name}", key): check(f"{name}[{key!r}]", one) for key, one in value.items()}

    return of


def record(fields: Mapping[str, Check], may_lack: Collection[str] = ()) -> Check:
    """A map with exactly these names, each with a check of its own."""

    def of(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            refuse(name, value, f"a map with {', '.join(fields)}")
        wrong = sorted({*(value.keys() - fields.keys()), *(fields.keys() - value.keys() - {*may_lack})}, key=str)
        if wrong:
            raise PapaError(f"{name} lacks, or should not have, {', '.join(map(shown, wrong[:8]))}.")
        return {key: check(key, value[key]) for key, check in fields.items() if key in value}

    return of


def most_processes() -> int:
    """Largest number of processes allowed: 64, or the number of cores if that is larger."""
    return max(64, os.cpu_count() or 1)


def check_processes(name: str, value: object, least: int) -> None:
    """Refuse a number of processes outside `least` to :func:`most_processes`."""
    if whole(least)(name, value) > most_processes():
        raise PapaError(
            f"{name} is {value}, but this machine has {os.cpu_count()} cores: pass at most {most_processes()}."
        )


def as_text(name: str, value: object) -> str:
    """A name or path as text, because the hyperparameters in a checkpoint hold no path objects.

    Example:
        >>> as_text("data_dir", Path("data"))
        'data'
    """
    given = str(value) if isinstance(value, Path) else value
    if not isinstance(given, str) or not given.strip():
        refuse(name, value, "a name or the path of a folder")
    return given


def as_names(name: str, value: Any, fewest: int) -> tuple[str, ...]:
    """A list of different names, at least `fewest`.

    Example:
        >>> as_names("label_names", ["no", "maybe", "yes"], fewest=2)
        ('no', 'maybe', 'yes')
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        refuse(name, value, "a list of names")
    for entry in value:
        if not isinstance(entry, str) or not entry.strip():
            raise PapaError(f"{name} holds {entry!r}, but must hold names: put numbers and words like yes into quotes.")
    if twice := sorted({entry for entry in value if list(value).count(entry) > 1}):
        raise PapaError(f"{name} holds {twice[0]!r} more than once: keep one.")
    if len(value) < fewest:
        raise PapaError(f"{name} is {list(value)!r}, but must hold {fewest} names or more.")
    return tuple(value)


def as_label_names(value: Any) -> tuple[str, ...]:
    """Names of two or more labels; whole numbers, which YAML makes of names like 1, are names too.

    Example:
        >>> as_label_names(["no", "yes"]), as_label_names([1, 2, 3])
        (('no', 'yes'), ('1', '2', '3'))
    """
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if truths := [name for name in given if isinstance(name, bool)]:
        raise PapaError(
            f"label_names holds {truths[0]!r}, but must hold names: put words that YAML reads as truth values (yes, "
            "no, on, off, true, false) into quotes, ['no', 'yes']."
        )
    names = as_names("label_names", [str(n) if isinstance(n, int) else n for n in given] or value, fewest=2)
    numbers = [number for name in names if (number := number_of(name)) is not None]
    if len(set(numbers)) < len(numbers):
        raise PapaError(f"label_names is {list(names)!r}, which holds a number in two forms: keep one.")
    return names


def number_of(value: Any) -> Decimal | None:
    """Value of a number or of a number in digits; None for anything else.

    Example:
        >>> number_of(" 2.0") == number_of(2), number_of("two"), number_of(True)
        (True, None, None)
    """
    if isinstance(value, (bool, list, dict)):
        return None
    found = re.fullmatch(r"[+-]?[0-9]{1,300}(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", str(value).strip())
    return Decimal(found[0]) if found else None


def drop_fixed(arguments: dict[str, Any], task: str, **fixed: Any) -> None:
    """Drop arguments that a task fixes, in place; its checkpoints contain them with that value.

    Example:
        >>> drop_fixed({"num_labels": 3}, "masked language modelling", num_labels=40)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: num_labels is 3, but masked language modelling fixes it to 40: leave it
        out.
    """
    for name, value in fixed.items():
        given = arguments.pop(name, value)
        if (tuple(given) if isinstance(given, list) else given) != value:
            raise PapaError(f"{name} is {given!r}, but {task} fixes it to {value!r}: leave it out.")
