"""`papa atlas`, as a user runs it."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch

from papa_lightning import AttentionConstants
from papa_lightning.cli.main import main


class Page(HTMLParser):
    """The links and images of a page, and what would be loaded from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.images = list[str](), list[dict[str, str | None]]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        if tag == "a":
            self.links.append(held["href"] or "")
        if tag == "img":
            self.images.append(held)


def test_an_encoder_alone(tmp_path: Path, encoder_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = '{"init_args": {"max_length": 16}}'
    main(["atlas", "--encoder", encoder_folder, "--output", str(tmp_path), "--data", data, "--examples", "8"])
    table = pd.read_csv(tmp_path / "atlas.csv")
    assert {"pattern", "separator", "variance", "entropy", "output_norm"} <= set(table)
    page = Page(tmp_path / "atlas.html")
    pages = [link for link in page.links if not link.startswith("#")]
    assert {"atlas-layer-00.html", "atlas.csv"} <= set(pages)
    assert all((tmp_path / link).is_file() for link in pages)
    assert len(page.images) == len(table)
    assert all(str(image["src"]).startswith("data:image/png;base64,") and image["alt"] for image in page.images)
    assert "atlas.html" in capsys.readouterr().out


def test_constants_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = torch.stack([torch.eye(8), torch.full((8, 8), 0.125)])[None]
    AttentionConstants(values, torch.ones(8, 8)).save(tmp_path / "constants")
    main(["atlas", "--constants", str(tmp_path / "constants"), "--output", str(tmp_path / "atlas")])
    assert list(pd.read_csv(tmp_path / "atlas" / "atlas.csv")["pattern"]) == ["itself", "broad"]
    assert re.search(r"itself +1 +0\.0\n", capsys.readouterr().out)


def test_nothing_to_describe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["papa", "atlas", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert "pass --constants FILE, --encoder NAME, or both" in capsys.readouterr().err
