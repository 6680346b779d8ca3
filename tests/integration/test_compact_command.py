"""`papa compact`, as a user runs it."""

from pathlib import Path

import pytest
import torch

from papa_lightning import AttentionConstants, CompactConstants
from papa_lightning.cli.main import main


def test_papa_compact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    values = torch.rand(2, 3, 12, 12).softmax(dim=-1)
    values[1, 2] = torch.eye(12).flip(0)
    average, output = str(tmp_path / "average"), tmp_path / "compact"
    AttentionConstants(values, torch.ones(12, 12)).save(average)
    main(["compact", "--constants", average, "--output", str(output), "--width", "3"])
    profiles = CompactConstants.load(output)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "error", "largest", "of", "head", "profile", "low", "rank", "dense"]
    assert lines[2].split() == [
        "1",
        f"{profiles.errors[1].mean():.4f}",
        f"{profiles.errors[1, 2]:.4f}",
        "2",
        "3",
        "0",
        "0",
    ]
    assert lines[4] == "numbers  114, which is 13.19 % of the average's 864"
    assert lines[5] == f"written  {output}"
    main(["compact", "--constants", average, "--output", str(output), "--width=3", "--rank=2", "--tolerance=0.6"])
    assert capsys.readouterr().out.splitlines()[3].split()[4:] == ["5", "0", "1"]
    assert CompactConstants.load(output).layers[1].forms == ("profile", "profile", "dense")


@pytest.mark.parametrize(("option", "message"), [("--width=0", "width is 0"), ("--constants=no", "does not exist")])
def test_one_line_of_error(
    option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    AttentionConstants(torch.rand(1, 1, 4, 4), torch.ones(4, 4)).save("average")
    with pytest.raises(SystemExit):
        main(["compact", "--constants", "average", "--output", "compact", option])
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("compact").exists()
