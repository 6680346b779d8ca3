"""Make docs/results.md from studies: first a small file of their results, then the page and its figures from that file.

    python tools/make_results.py collect STUDY... --reliability FILE
    python tools/make_results.py collect STUDY... --earlier docs/data/evidence.parquet
    python tools/make_results.py page

Studies need not be finished: the page says what is there. `--earlier` adds to a file when the folders of its studies
are not here, as after work on another machine. On the page, everything between a comment
`<!-- results: NAME -->` and its end is replaced; the rest stays, and has no measured numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from results_page.collecting import collect
from results_page.page import write_page

DOCS = Path(__file__).parents[1] / "docs"
CONFIGS = DOCS.parent / "papa_lightning" / "configs" / "study"
DATA, PAGE = DOCS / "data" / "evidence.parquet", DOCS / "results.md"


def main() -> None:
    """Collect results, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("collect", help="read studies, write one file")
    step.add_argument("studies", type=Path, nargs="+", help="folders of studies")
    step.add_argument("--output", type=Path, default=DATA, help="the file to write")
    plans = [CONFIGS / "evidence.yaml", CONFIGS / "evidence_criteria.yaml"]
    step.add_argument(
        "--plans",
        type=Path,
        nargs="+",
        default=plans,
        help="settings of all runs in one folder, each over those of the first",
    )
    step.add_argument("--reliability", type=Path, help="the file that tools/measure_reliability.py wrote")
    step.add_argument("--earlier", type=Path, help="a file that `collect` wrote, whose results are kept beside")
    step = steps.add_parser("page", help="write the blocks of the page and of README.md, and the figures")
    step.add_argument("--data", type=Path, default=DATA, help="the file that `collect` wrote")
    step.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    step.add_argument("--readme", type=Path, default=DOCS.parent / "README.md", help="the file with the short table")
    args = parser.parse_args()
    if args.step == "collect":
        first, *others = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in args.plans]
        layered = [first, *({**first, **other} for other in others)]
        collect(args.studies, args.output, layered, args.reliability, args.earlier)
    else:
        write_page(args.page, args.data, args.readme)


if __name__ == "__main__":
    main()
