"""Sections of a page: their registration, the blocks that they are made of, and the template that shows them."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from papa_lightning.figures.style import GROUND, INK, as_png, as_svg
from papa_lightning.files.writing import write_atomically
from papa_lightning.registry import Registry
from papa_lightning.text import Table


@dataclass(frozen=True)
class Text:
    """A paragraph, heading or listing of plain text; ``"soft"`` is a remark in small print."""

    text: str
    style: Literal["plain", "soft", "heading", "code"] = "plain"


@dataclass(frozen=True)
class Facts:
    """A list of names and plain values, or maps and lists of them."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure of the page, as an ``svg`` element with a plain caption; :meth:`Figures.add` makes it."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Drawings:
    """Figures beside each other, below each other if `wide`, or many in a row if `small`."""

    drawings: Sequence[Drawing]
    wide: bool = False
    small: bool = False


@dataclass(frozen=True)
class Links:
    """A list of links: the text of each, and the address, of a file beside the page or a page of the web."""

    addresses: Mapping[str, str]


@dataclass(frozen=True)
class Card:
    """A short answer to a question, with what it rests on, and links by their text."""

    question: str
    answer: str
    lines: Sequence[str]
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cards:
    """Cards beside each other, or below each other on a narrow page."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Cell:
    """A cell of a map: its text, what it is in words, its shade from 0 to 1, and whether it lies before the cut."""

    text: str
    title: str
    shade: float
    marked: bool


@dataclass(frozen=True)
class Map:
    """A map of cells in rows and columns, as a table that can be read without colours.

    Args:
        rows: Title of the rows, such as "layer".
        columns: Title of the columns.
        cells: The cells by row; rows and columns are numbered from 0.
        caption: Text above it.
    """

    rows: str
    columns: str
    cells: Sequence[Sequence[Cell]]
    caption: str


@dataclass(frozen=True)
class Folded:
    """Blocks that a reader unfolds; they are printed in any case."""

    title: str
    blocks: Sequence[Block]


Block: TypeAlias = Text | Facts | Drawings | Links | Cards | Map | Folded | Table
"""Parts of a section."""


@dataclass
class Figures:
    """Writes figures as files beside the page, and returns what the page shows of them."""

    folder: Path
    _names: set[str] = field(default_factory=set)

    def add(self, figure: Figure, names: Sequence[str], caption: str) -> Drawing:
        """Write a figure as PNG and SVG; the names of subject, encoder and task make the file names."""
        wanted = "-".join(re.sub(r"[^a-z0-9.]+", "-", one.lower()).strip("-.")[:48] or "x" for one in names)
        numbered = (f"{wanted}-{number}" for number in count(2))
        name = next(one for one in chain([wanted], numbered) if one not in self._names)
        self._names.add(name)
        svg = as_svg(figure, name)
        write_atomically(self.folder / f"{name}.png", as_png(figure))
        write_atomically(self.folder / f"{name}.svg", svg)
        return Drawing(_for_page(svg.decode(), name, caption), caption)


@dataclass(frozen=True)
class Section:
    """A section of a page, ordered by `place`; left out without the data it `needs`, or if `build` makes no blocks."""

    title: str
    place: int
    needs: tuple[str, ...]
    build: Callable[[Any, Figures], Sequence[Block]]

    def __call__(self, data: Any, figures: Figures) -> Sequence[Block]:
        """The blocks of the section."""
        return self.build(data, figures)


class Sections(Registry[Section]):
    """The sections of a page by name, which is also the anchor of the section.

    Example:
        >>> sections = Sections()
        >>> @sections.section("size", "Size", place=1)
        ... def size(data, figures):
        ...     return [Text(f"{data} probes")]
        >>> [(name, blocks) for name, _, blocks in sections.built(3, Figures(Path("figures")))]
        [('size', [Text(text='3 probes', style='plain')])]
    """

    def __init__(self, group: str | None = None) -> None:
        super().__init__("section", lambda part: isinstance(part, Section), group)

    def section(
        self, name: str, title: str, place: int, needs: Sequence[str] = ()
    ) -> Callable[[Callable[[Any, Figures], Sequence[Block]]], Section]:
        """A decorator that registers the function that builds a section; see :class:`Section` for the arguments."""

        def registering(build: Callable[[Any, Figures], Sequence[Block]]) -> Section:
            self[name] = Section(title, place, tuple(needs), build)
            return self[name]

        return registering

    def built(self, data: Any, figures: Figures) -> list[tuple[str, str, Sequence[Block]]]:
        """Name, title and blocks of every section for which there is data, in the order of the page."""
        found = []
        for name, section in sorted(self.items(), key=lambda one: one[1].place):
            blocks = section(data, figures) if all(data.has(need) for need in section.needs) else []
            if blocks:
                found.append((name, section.title, blocks))
        return found


#: The sections of the report of a study. Other packages add theirs as entry points of this group.
SECTIONS = Sections("papa_lightning.report_sections")


def render(title: str, lead: str, sections: Sequence[tuple[str, str, Sequence[Block]]]) -> str:
    """The page as HTML, which needs no other file, of sections as :meth:`Sections.built` returns them."""
    environment = Environment(
        loader=PackageLoader("papa_lightning.study.report", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["form"] = lambda block: type(block).__name__
    shown = [{"name": name, "title": heading, "blocks": blocks} for name, heading, blocks in sections]
    return environment.get_template("page.html.jinja").render(title=title, lead=lead, sections=shown) + "\n"


def noted(note: str, drawings: Sequence[Drawing], wide: bool = False) -> list[Block]:
    """Figures below a remark; nothing without figures."""
    return [Text(note, "soft"), Drawings(drawings, wide)] if drawings else []


def image(png: bytes, alternative: str, width: int) -> Markup:
    """An ``img`` element that holds a PNG itself, with a text for readers who cannot see it and a width in pixels."""
    data = b64encode(png).decode()
    return Markup('<img src="data:image/png;base64,{}" alt="{}" title="{}" width="{}" height="{}">').format(
        data, alternative, alternative, width, width
    )


def _for_page(svg: str, name: str, caption: str) -> Markup:
    """The ``svg`` element alone, with ids of its own and the colours of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}--", svg)
    svg = re.sub(r'<g id="[^"]*?--(tip: [^"]*)">', r"<g><title>\1</title>", svg).replace("<title>tip: ", "<title>")
    svg = svg.replace(INK, "currentColor").replace(GROUND, "var(--ground)")
    opening = Markup('<svg role="img" aria-label="{}"').format(caption)
    return Markup(svg.replace("<svg", opening, 1).strip())
