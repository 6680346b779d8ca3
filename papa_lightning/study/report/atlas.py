"""Pages of a head atlas: an overview of all heads, a page for each layer, and a table of numbers as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from papa_lightning.atlas import PATTERNS, HeadAtlas
from papa_lightning.atlas.heads import COLUMNS
from papa_lightning.figures.heads import thumbnail
from papa_lightning.files.writing import write_atomically
from papa_lightning.study.report.sections import Block, Drawing, Drawings, Facts, Links, Text, image, render
from papa_lightning.text import Table

#: The files of an atlas: the overview, and the numbers.
PAGE, NUMBERS = "atlas.html", "atlas.csv"
_LEAD = (
    "What each attention head of the encoder looks at on average: the constant that would take the place of its "
    "attention. A head whose attention hardly differs from its constant (low variance) is a candidate for it."
)
_MATRIX = "rows are queries, columns are keys, colours from 0 to the largest weight of the head (square-root scale)"


def write_atlas(atlas: HeadAtlas, folder: str | Path) -> Path:
    """Write the pages of an atlas and its numbers.

    Args:
        atlas: The atlas.
        folder: Folder for ``atlas.html``, a page for each layer, and ``atlas.csv``; made where it is missing.

    Returns:
        Path of the overview.
    """
    place, layers = Path(folder).expanduser(), range(atlas.constants.num_layers)
    title = f"Head atlas: {_model(atlas)}"
    for layer in layers:
        around = {"All layers": PAGE}
        around |= {f"Layer {one}": _page(one) for one in (layer - 1, layer + 1) if one in layers}
        blocks = [Links(around), *_layer(atlas, layer)]
        text = render(f"{title}, layer {layer}", f"Constants of the heads: {_MATRIX}.", [("heads", "Heads", blocks)])
        write_atomically(place / _page(layer), text.encode())
    write_atomically(place / NUMBERS, atlas.table().to_csv(index=False).encode())
    sections: list[tuple[str, str, Sequence[Block]]] = [
        ("heads", "All heads", [Links({f"Layer {layer}": _page(layer) for layer in layers}), *overview(atlas)]),
        ("measured", "How it was measured", [Facts(_measured(atlas)), Links({"The numbers as csv": NUMBERS})]),
    ]
    return write_atomically(place / PAGE, render(title, _LEAD, sections).encode())


def overview(atlas: HeadAtlas) -> list[Block]:
    """All heads with their patterns, thumbnails and numbers, and what the columns mean."""
    names = [name for name in COLUMNS if name in atlas.numbers]
    columns = ("layer", "head", "constant", "pattern", *(COLUMNS[name][0] for name in names), *_titles(atlas))
    rows = [
        (
            str(layer),
            str(head),
            _thumbnail(atlas, layer, head, 36),
            _words(atlas, layer, head),
            *(_number(float(atlas.numbers[name][layer, head])) for name in names),
            *(f"{float(score[layer, head]):.2f}" for score in atlas.scores.values()),
        )
        for layer in range(atlas.constants.num_layers)
        for head in range(atlas.constants.num_heads)
    ]
    return [Text(_counts(atlas)), Table(columns, rows, left=4), *_legend(atlas)]


def _layer(atlas: HeadAtlas, layer: int) -> list[Block]:
    drawn = []
    for head in range(atlas.constants.num_heads):
        numbers = {COLUMNS[name][0]: float(value[layer, head]) for name, value in atlas.numbers.items()}
        listed = ", ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        caption = f"Head {layer}.{head}: {_words(atlas, layer, head)}; {listed}"
        drawn.append(Drawing(_thumbnail(atlas, layer, head, 192), caption))
    scores = [
        (str(head), *(f"{float(score[layer, head]):.2f}" for score in atlas.scores.values()))
        for head in range(atlas.constants.num_heads)
    ]
    return [Drawings(drawn, small=True), Table(("head", *_titles(atlas)), scores), *_legend(atlas)]


def _thumbnail(atlas: HeadAtlas, layer: int, head: int, width: int) -> Markup:
    about = f"Constant of head {layer}.{head}: {_words(atlas, layer, head)}"
    return image(thumbnail(atlas.constants.values[layer, head], width), about, width)


def _words(atlas: HeadAtlas, layer: int, head: int) -> str:
    """The words of a head, with numbers that stay on a line with their sign."""
    return atlas.words(layer, head).replace(" %", "\u00a0%")


def _titles(atlas: HeadAtlas) -> list[str]:
    return [PATTERNS[name].words for name in atlas.scores]


def _counts(atlas: HeadAtlas) -> str:
    """How many heads have each pattern, most frequent first."""
    names = [name for layer in atlas.names for name in layer]
    counts = sorted({name: names.count(name) for name in names}.items(), key=lambda one: -one[1])
    return f"{len(names)} heads: " + ", ".join(f"{count} {name}" for name, count in counts) + "."


def _legend(atlas: HeadAtlas) -> list[Block]:
    known = {COLUMNS[name][0]: COLUMNS[name][1] for name in atlas.numbers}
    known |= {PATTERNS[name].words: PATTERNS[name].meaning for name in atlas.scores}
    note = (
        f"Head 2.5 is head 5 of layer 2, both counted from 0. Constants: {_MATRIX}. The pattern is the token that gets "
        "at least 0.4 of the attention, else the first of the others whose score is large enough; in brackets, tokens "
        "that get 0.2 or more."
    )
    return [Text(note, "soft"), Facts(known)]


def _measured(atlas: HeadAtlas) -> dict[str, object]:
    noted = atlas.constants.metadata
    facts: dict[str, object] = {"model": _model(atlas), "longest sequence": f"{atlas.constants.max_length} tokens"}
    facts |= {name: noted[name] for name in ("data", "layout", "sequences", "versions") if name in noted}
    if atlas.measured:
        facts["entropy and output norm"] = atlas.measured
    return facts


def _model(atlas: HeadAtlas) -> str:
    model = atlas.constants.metadata.get("model")
    return str(model.get("name") or model.get("type")) if isinstance(model, dict) else "an encoder"


def _page(layer: int) -> str:
    return f"atlas-layer-{layer:02d}.html"


def _number(value: float) -> str:
    return f"{value:.3g}"
