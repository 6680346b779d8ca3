"""The page of results: generated blocks between comments, and figures beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from papa_lightning.errors import PapaError
from papa_lightning.figures import as_svg
from papa_lightning.files.writing import write_atomically
from results_page import choices, claims, embeddings, figures, measured, reliability
from results_page.data import Results


@dataclass(frozen=True)
class Section:
    """A block of the page, which is left out where there are no data.

    Args:
        make: Function of the results that returns its text, empty for none.
        heading: Heading of the section; empty for none.
        about: Explanation below the heading, without measured numbers.
        figure: Function that makes its figure, None without data.
        caption: Description of the figure.
    """

    make: Callable[[Results], str]
    heading: str = ""
    about: str = ""
    figure: Callable[[Results], Figure | None] | None = None
    caption: str = ""


#: The blocks by name.
SECTIONS: dict[str, Section] = {
    "verdicts": Section(
        claims.verdicts,
        figure=figures.shares,
        caption="Relative change of the score against the share of constant heads, by encoder: mean over the tasks "
        "that beat chance, with 95 % intervals, at the shares that all of these tasks have",
    ),
    "state": Section(measured.state),
    "tasks": Section(
        claims.tasks,
        "Scores on the tasks",
        "Mean scores with 95 % intervals over examples and seeds, after the last epoch; behind the stroke the"
        " mean of the best epochs, which are chosen by the examples that they are measured on and so a little"
        " too high.",
        figures.tasks,
        "Relative change of the score against the share of constant heads, by task and encoder, with 95 % "
        f"intervals; without curves that have an interval wider than {100 * figures.WIDEST:g} points",
    ),
    "half": Section(
        claims.half,
        "Half of the heads",
        "Relative change with half of the heads constant, by criterion, with its 95 % interval, paired over "
        "examples and seeds. The marks say what the whole interval settles: at most 1 % or 3 % lost (≤), a loss "
        "between the two (1-3 %), more than that (>), or nothing (open). The mean is over the tasks whose score "
        "with all heads dynamic beats chance; its half-width is the root of the sum of the squares of theirs, "
        "divided by their number. Seeds and examples as in the [scores](#scores-on-the-tasks).",
    ),
    "all": Section(
        claims.everything,
        "All heads",
        "Relative change with all heads constant, with its 95 % interval, paired over examples and seeds; "
        "means as above. The paper reports a loss of 8 % on average. "
        "Seeds and examples as in the [scores](#scores-on-the-tasks).",
    ),
    "better": Section(
        claims.better,
        "Do better models lose more?",
        "Pretrained encoders differ in more than quality, so checkpoints of one training are compared too: "
        "a student of a pretrained encoder with its embeddings and random layers, kept at points of its training "
        "to the hidden states of that encoder. The rank correlation of the score with all "
        "heads dynamic and the relative drop ranks encoders within each task; its 95 % interval is over "
        "encoders. A score that is high by chance makes its drop larger, so that a small positive correlation"
        " means little. Seeds and examples of pretrained encoders as in the [scores](#scores-on-the-tasks).",
        figures.graded,
        "Relative drop with all heads constant against the score with all heads dynamic, by checkpoint and task",
    ),
    "constants": Section(
        choices.constants,
        "What the constants carry",
        'Other constants in the same heads. The change is relative to the score with all heads dynamic; "to '
        'average" is the paired difference to averaged attention, in the same unit, means over tasks with 95 '
        "% intervals. `zero` prunes the heads, `sequences:16` is an average over 16 rows, and `other:` the "
        "average over the rows of another task. Seeds and examples as in the [scores](#scores-on-the-tasks).",
    ),
    "reliability": Section(
        reliability.reliability,
        "How reliable the averages are",
        "How far averages over different rows are apart: the share of a row's attention that falls on other tokens "
        "(the total variation distance, from 0 to 1), as the mean over heads and random orders, and in brackets the "
        "largest of a head. An average over a number of rows is compared with that of all rows but these. "
        "*Rankings*: by variance on two halves of the rows, the lowest rank correlation, and the smallest part that "
        "the lowest halves of the heads have in common, which is 50 % by chance. "
        "Encoders and rows as in [how it was measured](#how-it-was-measured).",
    ),
    "criteria": Section(
        choices.criteria,
        "Which criterion is best",
        "The area between two curves is the mean gain of a share drawn evenly from none to all heads, "
        "relative to the score with all heads dynamic; means over tasks with 95 % intervals, paired over "
        "examples, seeds and random orders; *shares* is how many between none and all were measured. "
        "Cost in passes of the encoder over the training rows. "
        "Seeds and examples as in the [scores](#scores-on-the-tasks).",
    ),
    "embeddings": Section(
        embeddings.embeddings,
        "Embedding models",
        "Nothing is trained here, and there is no seed: heads are ranked and attention is averaged on texts "
        "without labels. Scores and relative changes have 95 % intervals over the pairs or queries, and "
        "changes are paired; `random` is the mean of its orders. *Recovered*: the encoder then learned the "
        "embeddings of the original on the same texts ([recovery](embeddings.md)). The retrieval set was made for "
        "this: sentences find those that entail them among the premises of MNLI, which is easier than BEIR's sets. "
        "How much faster such encoders are: [performance](performance.md#other-runtimes).",
    ),
    "conditions": Section(measured.conditions, "How it was measured"),
    "cost": Section(
        measured.cost,
        "What it cost",
        "Probes, or embeddings with their recoveries; passes of the encoder that probes share are not in the minutes.",
    ),
}
#: The block of README.md.
SUMMARY: dict[str, Section] = {"summary": Section(claims.summary)}


def markers(name: str) -> tuple[str, str]:
    """Comments before and after a block."""
    return f"<!-- results: {name} -->\n", f"<!-- end of {name} -->\n"


def block(name: str, results: Results) -> str:
    """The text of a block, with its heading and the link to its figure; empty without data."""
    section = (SECTIONS | SUMMARY)[name]
    text = section.make(results)
    if not text:
        return ""
    shown = section.figure is not None and section.figure(results) is not None
    figure = f"![{section.caption}](figures/{figure_name(name)})" if shown else ""
    heading = f"## {section.heading}" if section.heading else ""
    return "\n\n".join(part for part in (heading, section.about, text, figure) if part)


def with_blocks(text: str, results: Results, wanted: Iterable[str] = SECTIONS) -> str:
    """The text of a page with new blocks."""
    named = re.findall(r"^<!-- results: (.*) -->$", text, flags=re.MULTILINE)
    if sorted(named) != sorted(wanted):
        raise PapaError(f"the page has the blocks {', '.join(named)}, but must have {', '.join(wanted)}, each once.")
    for name in named:
        begin, end = markers(name)
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise PapaError(f"the page has no end of the block {name!r}: put {end.strip()!r} behind it.")
        made = block(name, results)
        text = f"{before}{begin}{f'{chr(10)}{made}{chr(10) * 2}' if made else ''}{end}{after}"
    return text


def figure_name(name: str) -> str:
    """Name of the file of the figure of a block."""
    return f"results_{name}.svg"


def drawn(results: Results) -> dict[str, bytes]:
    """The figures as SVG, by the names of their files."""
    made = {name: one.figure(results) for name, one in SECTIONS.items() if one.figure is not None}
    return {figure_name(name): as_svg(one, figure_name(name)) for name, one in made.items() if one is not None}


def write_page(page: Path, data: Path, readme: Path) -> None:
    """Rewrite the blocks of the page and the figures beside it, and the block of README.md."""
    results, folder = Results.read(data), page.parent / "figures"
    for path, wanted in ((page, SECTIONS), (readme, SUMMARY)):
        write_atomically(path, with_blocks(path.read_text(encoding="utf-8"), results, wanted).encode())
    images = drawn(results)
    for name, image in images.items():
        write_atomically(folder / name, image)
    for path in folder.glob(figure_name("*")):
        if path.name not in images:
            path.unlink()
