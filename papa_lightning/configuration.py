"""Errors of a configuration in one line, with the names that may have been meant.

jsonargparse raises errors whose only content is a text of many lines: no attribute holds the key, the value or the
type. The patterns below read it, and tests/unit/test_configuration.py holds them to the version that is installed.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from textwrap import shorten

from papa_lightning.errors import PapaError, did_you_mean, explanation

#: Lines that name a reason other than the types that were tried.
_REASONS = re.compile(
    r"(the following arguments are required: .*|Requirement '[^']*' not met|"
    r"Neither `tensorboard` nor `tensorboardX` is available.*)"
)
_OPTION = re.compile(r"Problem with given class_path '([^']*)':\s+Option '([^']*)' is not accepted")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (.*)")
_PROBLEM = re.compile(r"Problem with given class_path '([^']*)':\s+(?!\s|Parser key)(.*)")
_OTHER_CLASS = re.compile(r"Import path (?:\S+ )?does not correspond to a subclass of (\S+)")
_BASES = re.compile(r"Subtypes: \[.*?((?:\w+\.)+\w+)[\]'>]")
_IMPORTED = re.compile(r"Import path (\S+)")
_PATH = re.compile(r"'class_path': '([^']*)'")
_VALUE = re.compile(r"(?:Given value|Got value): (.*)")
_CLASS = re.compile(r"Problem with given class_path '([^']*)'")
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*)\])")
_LISTS = ("Sequence", "Iterable", "list", "tuple", "set")
_LONGEST = 320
_SHOW = "PAPA_DEBUG=1 shows the traceback"


@dataclass(frozen=True)
class Fault:
    """What an error of jsonargparse says: the line for people, and the key and the value that it is about."""

    line: str
    key: str = ""
    value: str = ""


@contextmanager
def configuring() -> Iterator[None]:
    """Turn errors of the constructors that a configuration names into a PapaError with their message, on one line."""
    from papa_lightning.either_lightning import MisconfigurationException

    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        explained = explanation(error)
        raise explained or PapaError(f"the configuration cannot be set up: {account(str(error))} ({_SHOW})") from error


def account(message: str, name: str | None = None) -> str:
    """The message of an error of jsonargparse on one line: key, value and expected types; others are only joined.

    Args:
        message: The message.
        name: Name of the outermost key for people; None leaves the one of the message.

    Example:
        >>> account('''Parser key "trainer.max_epochs":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Expected a <class 'int'>
        ...     - Expected a <class 'NoneType'>
        ...   Given value: abc''')
        'trainer.max_epochs is abc, but must be int or null'
    """
    return fault_of(message, name).line


def fault_of(message: str, name: str | None = None) -> Fault:
    """Key, value and line of a message of jsonargparse; see :func:`account`."""
    value = _VALUE.search(message)
    found = message[: value.end()] if value else message
    keys = list(dict.fromkeys(_KEY.findall(found)))
    if name is not None and keys:
        keys[0] = name
    key = ".".join(keys)
    if option := _OPTION.search(found):
        owner, wrong = option.groups()
        short = owner.rpartition(".")[2]
        return Fault(f"{key}.{wrong} is no argument of {short}{_offered(wrong, _arguments(owner))}", f"{key}.{wrong}")
    reason, kind = _REASONS.search(found), _CLASS.search(found)
    if reason:
        return Fault(": ".join(part for part in (key, kind and kind.group(1), reason.group(1)) if part), key)
    return _class_fault(found, key) or _type_fault(found, keys, value) or Fault(" ".join(message.split()), key)


def _class_fault(found: str, key: str) -> Fault | None:
    """The fault of a name that is not that of a fitting class."""
    base = _class_at(bases.group(1)) if (bases := _BASES.search(found)) else None
    if unknown := _UNKNOWN_CLASS.search(found):
        name = unknown.group(1)
        line = f"{key} is {name}, but must be the name or the import path of a class"
        return Fault(f"{line}{_offered(name, _subclasses(base))}", key, name)
    if other := _OTHER_CLASS.search(found):
        name = next(one[1] for pattern in (_PATH, _VALUE, _IMPORTED) if (one := pattern.search(found)))
        return Fault(f"{key} is {name}, which is no {other[1]}{_offered(name, _subclasses(base))}", key, name)
    if problem := _PROBLEM.search(found):
        name, why = problem.groups()
        line = f"{key} is {name}, which cannot be used: {why.strip().rstrip('.')}"
        return Fault(f"{line}{did_you_mean(name.rpartition('.')[2], _subclasses(base))}", key, name)
    return None


def _type_fault(found: str, keys: list[str], value: re.Match[str] | None) -> Fault | None:
    """The fault of a value of another type, or of none of the choices."""
    if value is None or not keys:
        return None
    key, given = ".".join(keys), value.group(1)
    # The outermost key may have another name by now; the innermost is that of the message.
    nested = found[[one.start() for one in _KEY.finditer(found)][-1] :]
    types = dict.fromkeys("null" if one == "NoneType" else one or choices for one, choices in _EXPECTED.findall(nested))
    if not types:
        return None
    if {*types} - {"null"} <= {*_LISTS} and given[:1] not in ("[", "{", "("):
        return Fault(f"{key} is {given}, but must be a list: [{given}]", key, given)
    choices = re.findall(r"'([^']*)'", " ".join(types))
    return Fault(f"{key} is {given}, but must be {' or '.join(types)}{did_you_mean(given, choices)}", key, given)


def _offered(wrong: str, known: Iterable[str]) -> str:
    """The end of a sentence: the name that was meant, or all that there are."""
    names = list(known)
    listed = shorten(", ".join(names), _LONGEST, placeholder=" …")
    return did_you_mean(wrong.rpartition(".")[2], names) or (f": choose from {listed}" if names else "")


def _class_at(path: str) -> type | None:
    """A class of an imported module, by its path."""
    module, _, name = path.rpartition(".")
    found = reduce(lambda part, attribute: getattr(part, attribute, None), [name], sys.modules.get(module))
    return found if isinstance(found, type) else None


def _arguments(path: str) -> list[str]:
    """Names of the arguments of a class, with those that it passes on to its base classes."""
    from jsonargparse import ArgumentParser

    owner = _class_at(path)
    return [] if owner is None else list(ArgumentParser().add_class_arguments(owner, fail_untyped=False))


def _subclasses(base: type | None) -> list[str]:
    """Names of the classes of this package that a base class stands for."""
    found: list[type] = [] if base is None else [base]
    for one in found:  # grows while it is gone over
        below: list[type] = one.__subclasses__()
        found += [sub for sub in below if sub not in found]
    public = sys.modules.get("papa_lightning.public")
    names = getattr(public, "__all__", ())
    return sorted({one.__name__ for one in found if one.__name__ in names})
