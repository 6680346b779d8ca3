"""Rewrite the tables of verbs and arguments in docs/command_line.md from the parsers: `make docs`.

Everything between the two marker comments is replaced, the rest of the page stays.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from papa_lightning.cli.choices import with_choices
from papa_lightning.cli.trainer_verbs import trainer_parsers
from papa_lightning.cli.verbs.registry import VERBS, parser_of

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"
BEGIN = "<!-- the tables are made from the parsers by `make docs` -->\n"
END = "<!-- end of the tables -->\n"

#: Arguments of all verbs of the Trainer, which the page lists once; the Trainer's own depend on Lightning's version.
_COMMON = ("help", "config", "print_config", "trainer", "model", "data", "optimizer", "lr_scheduler", "seed_everything")

#: As in docstrings: :class:`~papa_lightning.HeadRanking`.
_ROLE = re.compile(r":\w+:`(?:~[\w.]+\.)?([^`~]+)`")


def command_tables() -> str:
    """A heading, a sentence and a table for each command, as Markdown."""
    parsers = {**trainer_parsers(), **{verb: parser_of(verb) for verb in VERBS}}
    return "\n\n".join(_section(verb, parser) for verb, parser in parsers.items())


def _section(verb: str, parser: argparse.ArgumentParser) -> str:
    rows = list(_rows(parser))
    table = ["| argument | default | |", "| --- | --- | --- |", *rows] if rows else ["No arguments of its own."]
    return "\n".join([f"### papa {verb}", "", str(parser.description), "", *table])


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    listed = [one for one in parser._actions if not one.dest.endswith("help") and one.help != argparse.SUPPRESS]
    groups = {action.dest.rpartition(".")[0] for action in listed}
    for action in listed:
        if action.dest.split(".")[0] in _COMMON or action.dest in groups:
            continue
        name = f"--{action.dest}" if action.option_strings else action.dest.upper()
        default = "required" if _required(action, parser) else f"`{_plain(action.default)}`"
        text = (
            _ROLE.sub(r"`\1`", with_choices(" ".join(str(action.help or "").split())))
            .replace("``", "`")
            .replace("|", "\\|")
        )
        yield f"| `{name}` | {default} | {text} |"


def _required(action: argparse.Action, parser: argparse.ArgumentParser) -> bool:
    return action.required or action.dest in getattr(parser, "required_args", ())


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value)


def with_tables(text: str) -> str:
    """The text of the page with the tables as they are now."""
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"the page has lost its markers: put {BEGIN.strip()!r} and {END.strip()!r} around the tables.")
    return f"{before}{BEGIN}\n{command_tables()}\n\n{END}{after}"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("page", nargs="?", type=Path, default=PAGE, help="the page to rewrite")
    page = arguments.parse_args().page
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
