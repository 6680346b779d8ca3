"""Rewrite the table of supported encoders in docs/encoders.md from the registry: `make docs`.

Everything between the two marker comments is replaced, the rest of the page stays.
"""

import argparse
from pathlib import Path

from papa_lightning.encoders.families.listing import families_table

PAGE = Path(__file__).parents[1] / "docs" / "encoders.md"
BEGIN = "<!-- the table is made from the registry by `make docs` -->\n"
END = "<!-- end of the table -->\n"


def with_table(text: str) -> str:
    """The text of the page with the table as it is now."""
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise SystemExit(f"the page has lost its markers: put {BEGIN.strip()!r} and {END.strip()!r} around the table.")
    return f"{before}{BEGIN}\n{families_table()}\n{END}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, default=PAGE, help="the page to rewrite")
    page = parser.parse_args().page
    page.write_text(with_table(page.read_text(encoding="utf-8")), encoding="utf-8")
