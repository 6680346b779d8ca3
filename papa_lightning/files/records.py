"""Dataclasses that are stored as JSON files: the type of each field says what its value must be."""

import math
import types
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from papa_lightning.checks import Check, anything, boolean, listed, mapped, maybe, number, one_of, record, text, whole
from papa_lightning.errors import PapaError
from papa_lightning.files.checked import read_json, write_json

Record = TypeVar("Record")

_PLAIN: Mapping[object, Check] = {str: text, bool: boolean, int: whole(), float: number(), Any: anything}


@cache
def checks_of(cls: Hashable) -> Mapping[str, Check]:
    """The check of every field of a dataclass.

    Types are str, bool, int (from 0), float (finite), Any, Literal, dataclasses, and optional values, lists and maps of
    them. ``Annotated[float, number(0, 1)]`` has a check of its own.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     layers: Annotated[int, whole(1)]
        >>> checks_of(Size)["layers"]("layers", 0)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: layers is 0, but must be a whole number, at least 1.
    """
    hints = get_type_hints(cls, include_extras=True)
    return {one.name: _check_of(hints[one.name]) for one in fields(cast(type, cls))}


def check_fields(instance: object) -> None:
    """Replace each field of a dataclass, also a frozen one, by what its check returns; for ``__post_init__``."""
    for name, check in checks_of(cast(Hashable, type(instance))).items():
        object.__setattr__(instance, name, check(name, getattr(instance, name)))


def record_of(cls: type[Record]) -> Check:
    """The check of a map that holds the fields of a dataclass and no others; it returns an instance."""

    def check(name: str, value: object) -> Record:
        return cls(**record(checks_of(cast(Hashable, cls)))(name, value))

    return check


def or_nan(check: Check) -> Check:
    """NaN for a number that is missing (null in JSON) or not finite; otherwise what passes a check."""

    def of(name: str, value: object) -> float:
        lacks = value is None or (isinstance(value, float) and not math.isfinite(value))
        return math.nan if lacks else check(name, value)

    return of


def write_record(path: str | Path, form: str, instance: Any) -> Path:
    """Write a dataclass as a JSON file, whole or not at all; NaN becomes null."""
    return write_json(path, form, without_nan(asdict(instance)))


def read_record(
    path: str | Path, form: str, cls: type[Record], error: type[PapaError], noun: str, remedy: str
) -> Record:
    """Read a dataclass that :func:`write_record` wrote; `noun` and `remedy` make messages of the error."""
    found: Record = read_json(path, form, record_of(cls), error, noun, remedy)
    return found


def _check_of(hint: Any) -> Check:
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        check: Check = given[1]
        return check
    if origin in (Union, types.UnionType):
        (inner,) = (one for one in given if one is not type(None))
        return maybe(_check_of(inner))
    if origin is Literal:
        return one_of(*given)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return mapped(_check_of(given[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return listed(_check_of(given[0]))
    return record_of(hint) if isinstance(hint, type) and is_dataclass(hint) else _PLAIN[hint]


def without_nan(value: Any) -> Any:
    """Plain values with None for NaN, which JSON lacks, and lists for tuples."""
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
