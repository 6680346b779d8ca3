"""``papa configs``."""

from pathlib import Path

from papa_lightning.cli.configurations import shipped, shipped_path
from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import write_atomically
from papa_lightning.text import Table, tell


@VERBS.register("configs")
def configs(name: str | None = None, *, output: str | None = None, replace: bool = False) -> list[str]:
    """List the configurations that come with the package, print one, or copy one for editing.

    Args:
        name: Name of a configuration, such as sst2.yaml or study/demo.yaml; without one, all are listed.
        output: File to copy it to.
        replace: Replace an existing file.
    """
    if name is None:
        if output is not None:
            raise PapaError(f"output is {output!r}, but no configuration is named: `papa configs NAME --output FILE`.")
        found = shipped()
        rows = [(one, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for one, path in found.items()]
        tell(Table(("configuration", "purpose"), rows, left=2))
        return list(found)
    path = shipped_path(name, "")
    if output is None:
        tell(path.read_text(encoding="utf-8").rstrip())
        return [name]
    target = Path(output).expanduser()
    if target.exists() and not replace:
        raise PapaError(f"output is {output!r}, which exists: pass another file, or --replace.")
    tell(f"written  {write_atomically(target, path.read_bytes())}")
    return [name]
