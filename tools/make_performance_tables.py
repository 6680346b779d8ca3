"""Update docs/performance.md from the results of `make bench`: tables between the marker comments, and figures.

    python tools/make_performance_tables.py build/benchmark

For each folder there with a results.json, the tables between its two markers on the page are replaced, and its figures
are copied beside the page. The rest of the page stays, including tables without new results.
"""

import argparse
from pathlib import Path

from papa_lightning.benchmark import BenchmarkResult, markdown
from papa_lightning.files.writing import write_atomically

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def markers(name: str) -> tuple[str, str]:
    """Comments before and after the tables of one benchmark."""
    return f"<!-- {name}: made by tools/make_performance_tables.py -->\n", f"<!-- end of {name} -->\n"


def with_tables(text: str, name: str, tables: str) -> str:
    """The text of the page with new tables of one benchmark."""
    begin, end = markers(name)
    before, _, rest = text.partition(begin)
    _, marker, after = rest.partition(end)
    if not marker:
        raise SystemExit(f"the page has no markers for {name}: put {begin.strip()!r} and {end.strip()!r} on it.")
    return f"{before}{begin}\n{tables}\n{end}{after}"


def main() -> None:
    """Read the folders, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what `make bench` wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    args = parser.parse_args()
    text = args.page.read_text(encoding="utf-8")
    for path in sorted(args.folder.glob("*/results.json")):
        name = path.parent.name
        tables = markdown(BenchmarkResult.load(path))
        for figure in sorted(path.parent.glob("*.svg")):
            own = f"performance_{name}.svg"
            write_atomically(args.page.parent / "figures" / own, figure.read_bytes())
            tables += f"\n![{figure.stem}: {name}](figures/{own})\n"
        text = with_tables(text, name, tables)
    write_atomically(args.page, text.encode())


if __name__ == "__main__":
    main()
