"""Write docs/api.md and docs/api_rooms.md from the names that the package exports: `make docs`.

The first page has what `papa_lightning` itself exports, by room; the second what its rooms and sub-rooms export beyond
that, each under the docstring of its package.
"""

import inspect
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import papa_lightning

DOCS = Path(__file__).parents[1] / "docs"
#: Modules without names in a package's `__all__` that others extend or catch.
MODULES = ("papa_lightning.attention.functional", "papa_lightning.errors", "papa_lightning.registry")
NOTE = "<!-- made by tools/make_api_pages.py: run `make docs` -->"
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")


def api_page() -> str:
    """The page of the names of `papa_lightning`, under the rooms that define them."""
    rooms: defaultdict[str, list[str]] = defaultdict(list)
    for name in papa_lightning.__all__:
        if name != "__version__":
            rooms[room_of(getattr(papa_lightning, name))].append(f"papa_lightning.{name}")
    parts = [
        "# Public names",
        NOTE,
        "Names to import from `papa_lightning`. The site shows their docstrings; in the repository this page lists the "
        "names only.",
    ]
    for room, names in sorted(rooms.items()):
        parts += [f"## {room.replace('_', ' ').capitalize()}", *(f"::: {name}" for name in sorted(names))]
    return "\n\n".join(parts) + "\n"


def room_of(part: object) -> str:
    """The room that defines a class or a function: the second part of its module's name."""
    module = str(getattr(part, "__module__", papa_lightning.__name__))
    return module.split(".")[1]


def rooms_page() -> str:
    """The page of the names that the rooms export beside the public ones."""
    parts = [
        "# Names of the rooms",
        NOTE,
        "Exports of the packages inside `papa_lightning`, beside [the public names](api.md): for code that extends the "
        "package or measures with it. They may change between minor versions.",
    ]
    seen = [getattr(papa_lightning, name) for name in papa_lightning.__all__]
    for module in modules():
        names = [name for name in names_of(module) if not any(getattr(module, name) is one for one in seen)]
        if names:
            text = ROLE.sub(r"`\1`", inspect.getdoc(module) or "").replace("``", "`")
            parts += [f"## {module.__name__}", text, *(f"::: {module.__name__}.{name}" for name in names)]
            seen += [getattr(module, name) for name in names]
    return "\n\n".join(parts) + "\n"


def modules() -> Iterator[ModuleType]:
    """The packages inside the package, each behind the one that contains it, and the modules of MODULES."""
    found = pkgutil.walk_packages(papa_lightning.__path__, "papa_lightning.")
    packages = [info.name for info in found if info.ispkg]
    return (import_module(name) for name in sorted([*packages, *MODULES]))


def names_of(module: ModuleType) -> list[str]:
    """The names of `__all__`, or without one, in modules of MODULES, what a module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    if module.__name__ not in MODULES:
        return []
    return [
        name
        for name, part in vars(module).items()
        if not name.startswith("_") and getattr(part, "__module__", None) == module.__name__ and callable(part)
    ]


PAGES = {"api.md": api_page, "api_rooms.md": rooms_page}


if __name__ == "__main__":
    for page, text_of in PAGES.items():
        (DOCS / page).write_text(text_of(), encoding="utf-8")
