"""What plain values must be, as JSON has them: types, ranges, names of fields.

A check takes the name of a value, for messages, and the value; it gives the value back, or refuses it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from papa_lightning.errors import PapaError

Check: TypeAlias = Callable[[str, object], Any]

#: The largest whole number in a table.
LARGEST = 2**63 - 1


def refuse(name: str, value: object, wanted: str) -> NoReturn:
    """Refuse a value.

    Raises:
        PapaError: Always.
    """
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


def one_of(*choices: str) -> Check:
    """One of some words."""

    def check(name: str, value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        refuse(name, value, f"one of {', '.join(map(repr, choices))}")

    return check


def whole(least: int = 0, most: int = LARGEST) -> Check:
    """A whole number in a range."""

    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            end = "on, below 2**63" if most == LARGEST else f"to {most}"
            refuse(name, value, f"a whole number from {least} {end}")
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
    """None, or what passes a check."""
    return lambda name, value: None if value is None else check(name, value)


def listed(check: Check) -> Check:
    """A list of what passes a check."""

    def of(name: str, value: object) -> list[Any]:
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            refuse(name, value, "a list")
        return [check(f"{name}[{place}]", one) for place, one in enumerate(value)]

    return of


def mapped(check: Check) -> Check:
    """A map from text to what passes a check."""

    def of(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            refuse(name, value, "a map")
        return {text(f"a name of {name}", key): check(f"{name}[{key!r}]", one) for key, one in value.items()}

    return of


def record(fields: Mapping[str, Check], may_lack: Collection[str] = ()) -> Check:
    """A map with certain names, each of which has a check of its own, and with no other."""

    def of(name: str, value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            refuse(name, value, f"a map with {', '.join(fields)}")
        wrong = sorted({*(value.keys() - fields.keys()), *(fields.keys() - value.keys() - {*may_lack})}, key=str)
        if wrong:
            raise PapaError(f"{name} lacks, or should not have, {', '.join(map(shown, wrong[:8]))}.")
        return {key: check(key, value[key]) for key, check in fields.items() if key in value}

    return of
