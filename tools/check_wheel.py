"""Check a wheel in an environment and an empty folder of its own: `python tools/check_wheel.py dist/*.whl`.

The dependencies are those of the interpreter that runs this, or with --dependencies from the package index. A study and
a fit of the shipped configurations run on a tiny encoder.
"""

import argparse
import os
import string
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

STUDY = ("--seeds=[0]", "--shares=[0,1]", "--criteria=[random]", "--probe.max_epochs=1", "--device=cpu")
FIT = (
    "--trainer.max_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
)


def main() -> None:
    """Install the wheel and run its commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="the wheel")
    parser.add_argument("--dependencies", action="store_true", help="install the dependencies from the package index")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check(given.wheel.resolve(), Path(folder), given.dependencies)


def check(wheel: Path, folder: Path, dependencies: bool = False) -> None:
    """Install a wheel in a new environment and run what a new user runs first.

    Args:
        wheel: Path of the wheel.
        folder: Empty folder for the environment, the encoder and the results.
        dependencies: Install the dependencies from the package index, in place of those of this interpreter.
    """
    python = install(wheel, folder / "venv", dependencies)
    encoder, work = write_encoder(folder / "encoder"), folder / "work"
    work.mkdir()
    home = run(python, work, "-c", "import papa_lightning; print(papa_lightning.__file__)")
    if not Path(home.strip()).is_relative_to(folder.resolve()):
        raise SystemExit(f"papa_lightning is imported from {home.strip()}, and not from the wheel.")
    papa = str(python.parent / "papa")
    version = run(papa, work, "--version").split()[-1]
    if f"-{version}-" not in wheel.name:
        raise SystemExit(f"`papa --version` says {version}, but the wheel is {wheel.name}.")
    run(papa, work, "configs", "study/demo.yaml", "--output", "mine.yaml")
    run(papa, work, "study", "--config=demo.yaml", "--output=study", f"--encoders.MiniLM-L6={encoder}", *STUDY)
    run(papa, work, "fit", "--config=defaults.yaml", "--config=demo.yaml", f"--model.encoder={encoder}", *FIT)
    run(papa, work, "init", "demo", f"--encoder={encoder}")
    run(papa, work, "study", "--config=demo-study.yaml", "--dry_run")
    if not (work / "study" / "report.html").is_file():
        raise SystemExit("the study has left no report.")


def install(wheel: Path, environment: Path, dependencies: bool) -> Path:
    """Make an environment with the wheel; the path of its interpreter."""
    venv.create(environment, with_pip=False)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    options = [] if dependencies else ["--no-deps"]
    run(sys.executable, environment, "-m", "pip", "--python", str(python), "install", "--quiet", *options, str(wheel))
    if not dependencies:
        there = run(python, environment, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        # A path in a .pth file: what .pth files of that folder add, an editable papa_lightning among it, is left out.
        Path(there, "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def write_encoder(folder: Path) -> Path:
    """Write a BERT of one layer that reads letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def run(program: str | Path, folder: Path, *words: str) -> str:
    """Run a program in a folder without the paths of this process; its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    start = time.perf_counter()
    done = subprocess.run(
        [str(program), *words], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    shown = " ".join([Path(program).name, *words])[:100]
    print(f"{time.perf_counter() - start:6.1f} s  {shown}", flush=True)
    if done.returncode:
        raise SystemExit(f"{shown} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
