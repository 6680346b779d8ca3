"""Registries: the parts of one sort by name, from this package, from other packages and from a running program."""

from collections.abc import Callable, Iterator, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.text import printable

Part = TypeVar("Part")
Registered = TypeVar("Registered")


class UnknownNameError(PapaError, KeyError):
    """A name under which nothing is registered."""

    def __str__(self) -> str:
        """The message as it is; that of a KeyError would be quoted."""
        return printable(str(self.args[0]))


class Registry(MutableMapping[str, Part], Generic[Part]):
    """The parts of one sort by name, in the order of their registration.

    Everything that offers a choice among the parts (arguments, help texts, tables of the documentation, tests) reads it
    here. A part of another package is an entry point of the registry's group, imported when it is asked for.

    Args:
        noun: Word for a part in messages, e.g. "kind".
        accepts: Test of whether an object can be such a part.
        group: Group of entry points; None takes none.
        attribute: Attribute in which each part finds its own name; set at registration. None: parts do not know it.

    Example:
        >>> shapes = Registry[type]("shape", lambda part: isinstance(part, type))
        >>> @shapes.register("round")
        ... class Round:
        ...     pass
        >>> list(shapes), shapes["round"].__name__
        (['round'], 'Round')
        >>> shapes["square"]
        Traceback (most recent call last):
        ...
        papa_lightning.registry.UnknownNameError: shape is 'square', but must be one of 'round'.
    """

    def __init__(
        self, noun: str, accepts: Callable[[object], bool], group: str | None = None, attribute: str | None = None
    ) -> None:
        self.noun, self.group, self._accepts, self._attribute = noun, group, accepts, attribute
        self._parts: dict[str, Part] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """A decorator that registers a class or a function under a name, in place of one that has it already."""

        def registering(part: Registered) -> Registered:
            self[name] = part  # type: ignore[assignment]
            return part

        return registering

    def __setitem__(self, name: str, part: Part) -> None:
        if not isinstance(name, str) or not name or not self._accepts(part):
            raise PapaError(f"{self.noun} {name!r} is registered as {part!r}, which cannot be a {self.noun}.")
        if self._attribute is not None:
            known = vars(part).get(self._attribute, name)  # its own, not what it inherits
            if known != name:
                raise PapaError(f"{self.noun} {name!r} is registered as {part!r}, whose name is {known!r} already.")
            setattr(part, self._attribute, name)
        self._parts[name] = part

    def __getitem__(self, name: str) -> Part:
        if name not in self:
            meant = did_you_mean(name, self) or "."
            raise UnknownNameError(f"{self.noun} is {name!r}, but must be one of {', '.join(map(repr, self))}{meant}")
        if name not in self._parts:
            self[name] = self._loaded(self._offered[name])
        return self._parts[name]

    def __delitem__(self, name: str) -> None:
        del self._parts[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._parts or name in self._offered)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._parts, *sorted(self._offered)]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _loaded(self, offered: EntryPoint) -> Part:
        try:
            part: Part = offered.load()
        except (ImportError, AttributeError) as error:
            raise PapaError(
                f"{self.noun} {offered.name!r} is {offered.value!r} of another package, which cannot be imported "
                f"({error}): mend or remove the package."
            ) from error
        return part

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        """The entry points of other packages; looked up once."""
        return {} if self.group is None else {one.name: one for one in entry_points(group=self.group)}
