"""Options that change a part of a value, at any depth: ``--tasks.NAME.init_args.max_length 16``.

jsonargparse takes ``--KEY.NAME VALUE`` for a map, and replaces whatever NAME held; of a list it changes the last item.
Here, an option of more names changes what a file or an earlier option said, and an item of a list has a number from 0,
or the name of its class: ``--trainer.callbacks.ConstantAttention.heads 0.5``.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from copy import deepcopy
from typing import Any

from jsonargparse import Namespace as Nested
from jsonargparse import get_loader
from jsonargparse._typehints import ActionTypeHint

from papa_lightning.errors import PapaError, did_you_mean


class _PartAction(ActionTypeHint):
    """The action of an argument, which also takes options for parts of its value."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not args:
            return super().__call__(**kwargs)  # type: ignore[no-untyped-call]
        parser, config, value, option = args
        names, whole = _names_below(self, option), deepcopy(_plain(config.get(self.dest)))
        # A map goes the same way without names: jsonargparse would look for init_args as an attribute of it.
        is_map = self.is_mapping_typehint(self._typehint)  # type: ignore[no-untyped-call]
        ours = is_map or (bool(names) and isinstance(whole, list) and _is_item(names[0], whole))
        if not ours or not isinstance(value, str) or option.endswith("+"):
            return super().__call__(parser, config, value, option)  # type: ignore[no-untyped-call]
        changed = _changed(whole, names, get_loader("yaml")(value), option) if names else value
        checked = self._check_type_(changed, cfg=config, mode=parser.parser_mode)  # type: ignore[no-untyped-call]
        config.update(checked, self.dest)
        return None


def allow_parts(parser: ArgumentParser) -> None:
    """Let a parser take options for parts of maps and lists, at any depth."""
    for action in parser._actions:
        if type(action) is ActionTypeHint:
            action.__class__ = _PartAction


def _names_below(action: ActionTypeHint, option: str) -> list[str]:
    """The names behind that of an action in an option, such as NAME and heads of ``--KEY.NAME.heads``."""
    own = next((one for one in action.option_strings if option.startswith(f"{one}.")), None)
    return [] if own is None else option[len(own) + 1 :].split(".")


def _plain(value: Any) -> Any:
    """A parsed value as in YAML."""
    if isinstance(value, (Nested, Namespace)):
        return {name: _plain(one) for name, one in vars(value).items()}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _changed(value: Any, names: list[str], new: Any, option: str) -> Any:
    """A value with one part set to a new value."""
    if not names:
        return new
    first, *rest = names
    if isinstance(value, list):
        if not _is_item(first, value):
            raise PapaError(f"{option} names item {first!r} of a list, but it has {_listed(value)}.")
        place = _place(first, value)
        return [*value[:place], _changed(value[place], rest, new, option), *value[place + 1 :]]
    inner = dict(value) if isinstance(value, dict) else {}
    if "class_path" in inner and first not in inner and first not in ("class_path", "init_args", "dict_kwargs"):
        return _changed(inner, ["init_args", first, *rest], new, option)  # as for model and data
    if rest and first not in inner and (meant := did_you_mean(first, inner)):
        raise PapaError(f"{option} changes a part of {first!r}, which no file or earlier option has{meant}")
    return {**inner, first: _changed(inner.get(first), rest, new, option)}


def _is_item(name: str, items: list[Any]) -> bool:
    return _place(name, items) is not None


def _place(name: str, items: list[Any]) -> Any:
    """Place of the item with a number or the name of a class; None if there is none."""
    classes = [str(one.get("class_path", "")).rpartition(".")[2] if isinstance(one, dict) else "" for one in items]
    if name in classes:
        return classes.index(name)
    return int(name) if name.isdecimal() and int(name) < len(items) else None


def _listed(items: list[Any]) -> str:
    return f"the numbers 0 to {len(items) - 1}" if items else "no items"
