"""Make docs/results.md from studies: first a small file of their results, then the page and its figures from that file.

    python tools/make_results.py collect STUDY... --reliability FILE
    python tools/make_results.py page

Studies need not be finished: the page says what is there. On the page, everything between a comment
`<!-- results: NAME -->` and its end is replaced; the rest stays, and has no measured numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from results_page.collecting import collect
from results_page.page import write_page

DOCS = Path(__file__).parents[1] / "docs"
PLAN = DOCS.parent / "papa_lightning" / "configs" / "study" / "evidence.yaml"
DATA, PAGE = DOCS / "data" / "evidence.parquet", DOCS / "results.md"


def main() -> None:
    """Collect results, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("collect", help="read studies, write one file")
    step.add_argument("studies", type=Path, nargs="+", help="folders of studies")
    step.add_argument("--output", type=Path, default=DATA, help="the file to write")
    step.add_argument("--plan", type=Path, default=PLAN, help="settings of a study that may have been run in parts")
    step.add_argument("--reliability", type=Path, help="the file that tools/measure_reliability.py wrote")
    step = steps.add_parser("page", help="write the blocks of the page, and its figures")
    step.add_argument("--data", type=Path, default=DATA, help="the file that `collect` wrote")
    step.add_argument("--page", type=Path, default=PAGE, help="the page to rewrite")
    args = parser.parse_args()
    if args.step == "collect":
        plan = yaml.safe_load(args.plan.read_text(encoding="utf-8"))
        collect(args.studies, args.output, plan, args.reliability)
    else:
        write_page(args.page, args.data)


if __name__ == "__main__":
    main()
