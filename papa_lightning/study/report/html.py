"""Pieces of the page: text that is escaped, figures that are part of it, tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from papa_lightning.figures.style import GROUND, INK, as_png, as_svg
from papa_lightning.files.writing import write_atomically

_CSS = """
:root { color-scheme: light dark;
  --ground: #fefefd; --ink: #1b1b1d; --soft: #5c5c63; --line: #d9d9de; --mark: #f2f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #17181b; --ink: #e8e8ea; --soft: #a8a8b0; --line: #3a3b41; --mark: #212329; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; overflow-wrap: anywhere; }
p, li, dd { max-width: 52rem; overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; margin: 1rem 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: inherit; }
.findings { padding-left: 1.1rem; } .findings li { margin: .5rem 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 33rem), 1fr)); gap: 1.6rem 2rem;
  align-items: start; margin: 0 0 1.6rem; }
.figures.wide { grid-template-columns: 1fr; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figure svg { max-width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption, .soft { color: var(--soft); font-size: .86rem; }
figcaption { margin-top: .3rem; max-width: 52rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
pre { background: var(--mark); padding: .8rem; overflow-x: auto; font-size: .82rem; white-space: pre-wrap; }
dl { font-size: .9rem; } dt { font-weight: 600; margin-top: .4rem; } dd { margin: 0 0 0 1rem; }
@media print {
  :root { color-scheme: light; --ground: #fff; --ink: #000; --soft: #333; --line: #bbb; --mark: #f4f4f4; }
  body { max-width: none; padding: 0; font-size: 9.5pt; } nav { display: none; }
  h2, h3, p.soft { break-after: avoid; } tr { break-inside: avoid; } .scroll { overflow: visible; }
  .figures { display: block; } .figures figure { display: inline-block; vertical-align: top; width: 48%;
    margin: 0 1% 1rem 0; }
  .figures.wide figure { width: 100%; }
}
"""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Args:
        name: Of its place in the page, and unique there.
        title: Heading, plain text.
        body: HTML; a section without any is left out.
    """

    name: str
    title: str
    body: str


@dataclass
class Figures:
    """Writes figures beside the page, and gives what the page shows of them.

    Args:
        folder: For the files, named after what they show.
    """

    folder: Path
    _names: set[str] = field(default_factory=set)

    def add(self, figure: Figure, names: Sequence[str], caption: str) -> str:
        """Write a figure as PNG and SVG.

        Args:
            figure: Any.
            names: What it shows, encoder, task; the files are named after them.
            caption: Plain text.

        Returns:
            A figure element that holds the drawing itself.
        """
        name = self._unused("-".join(map(_for_file, names)))
        write_atomically(self.folder / f"{name}.png", as_png(figure))
        drawing = as_svg(figure, name)
        write_atomically(self.folder / f"{name}.svg", drawing)
        shown = _for_page(drawing.decode(), name, caption)
        return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"

    def _unused(self, name: str) -> str:
        wanted, number = name, 1
        while name in self._names:
            number += 1
            name = f"{wanted}-{number}"
        self._names.add(name)
        return name


def paragraph(text: str, soft: bool = False) -> str:
    """A paragraph of plain text."""
    return f'<p class="soft">{escape(text)}</p>' if soft else f"<p>{escape(text)}</p>"


def figure_grid(figures: Iterable[str], wide: bool = False) -> str:
    """Figures beside each other, or, when they are wide, below each other; empty without any."""
    inside = "".join(figures)
    return f'<div class="figures{" wide" if wide else ""}">{inside}</div>' if inside else ""


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: frozenset[str] = frozenset()) -> str:
    """A table of plain text.

    Args:
        columns: Headings.
        rows: A cell a column.
        numbers: Those columns that are set to the right.
    """
    kinds = [' class="n"' if column in numbers else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for text, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def facts(values: Mapping[str, Any]) -> str:
    """A list of names and values; values may be maps and lists of plain values."""
    lines = (f"<dt>{escape(_spaced(name))}</dt><dd>{_value(value)}</dd>" for name, value in values.items())
    return f"<dl>{''.join(lines)}</dl>"


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole document.

    Args:
        title: Plain text.
        lead: HTML below the title.
        sections: Those without a body are left out.
    """
    shown = [section for section in sections if section.body]
    links = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in shown)
    parts = "\n".join(
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{section.body}</section>' for section in shown
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{lead}</header><nav><ul>{links}</ul></nav>\n"
        f"<main>{parts}</main></body></html>\n"
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(_spaced(name))} {_value(one)}" for name, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one) for one in value)
    return escape(str(value))


def _spaced(name: object) -> str:
    return str(name).replace("_", " ")


def _for_file(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:48] or "x"


def _for_page(drawing: str, name: str, caption: str) -> str:
    """The svg element alone, with ids of its own and the colours of the page."""
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}--", drawing)
    drawing = drawing.replace(INK, "currentColor").replace(GROUND, "var(--ground)")
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1).strip()
