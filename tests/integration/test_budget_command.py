"""`papa budget`, as a user runs it, on a tiny encoder and bundled data."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel

import papa_lightning
from papa_lightning.cli.main import main
from papa_lightning.encoders import swapped_layers

CONFIG = Path(__file__).parents[2] / "papa_lightning" / "configs" / "study" / "budget.yaml"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(encoder_folder: str) -> list[str]:
    """The shipped configuration with a tiny encoder, and little data that it can tell apart."""
    Path("data").mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"text": f"{'zzzz' if i % 2 else 'aaaa'} {i}", "label": i % 2}) for i in range(48)]
        Path("data", f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["encoder"] = encoder_folder
    own = {"data_dir": "data", "label_names": ["bad", "good"], "max_length": 16}
    config["task"] = {"class_path": "TextClassificationDataModule", "init_args": own}
    Path("budget.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    small = ["--probe.max_epochs", "40", "--seeds", "[0,1]", "--device", "cpu"]
    return ["budget", "--config", "budget.yaml", "--output", "out", *small]


@pytest.mark.parametrize("search", ["share", "greedy"])
def test_the_printed_line_makes_the_heads_constant(
    search: str, tiny: list[str], encoder_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*tiny, "--within", "40%", "--search", search, "--search_sequences", "4"])
    printed = capsys.readouterr().out
    assert "probes (training, evaluation)" in printed
    said = dict(
        re.split(r" {2,}", line, maxsplit=1) for line in printed.splitlines() if re.match(r"\w[\w ]*? {2,}", line)
    )
    plan = json.loads(Path("out/budget.json").read_text())
    assert f"within 40 %: {plan['heads']} of 4 heads" in said["found"]
    assert "chance" in said["selection"]
    assert "chance" in said["held out"]
    assert said["verdict"].startswith("confirmed: accuracy ") == plan["held_out"]["confirmed"]
    for name in said["files"].split(","):
        assert Path(name.strip()).is_file()
    assert plan["heads"] > 0
    encoder = AutoModel.from_pretrained(encoder_folder)
    exec(said["use"], {**vars(papa_lightning), "encoder": encoder})
    constant = [[layer, head] for layer, mixer in enumerate(swapped_layers(encoder)) for head in mixer.constant_heads]
    assert constant == sorted(plan["chosen"])
    assert all(mixer.calibrated for mixer in swapped_layers(encoder))
    with torch.no_grad():
        ids = torch.ones(1, 5, dtype=torch.long)
        assert encoder(input_ids=ids, attention_mask=ids).last_hidden_state.isfinite().all()


def test_the_shipped_configuration_says_all_that_is_needed(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(tiny)
    plan = json.loads(Path("out/budget.json").read_text())
    assert plan["limit"] == 0.01
    assert plan["settings"]["criterion"] == "variance"
    assert plan["settings"]["probe"]["learning_rate"] == 1e-3
    assert plan["points"][0]["heads"] == 0
    assert "within 1 %: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--within", "1", "within is .1., but must be a share from 0 to below 1"),
        ("--criterion", "best", "criterion is 'best'"),
        ("--encoder", "nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    option: str, value: str, message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*tiny, option, value])
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("papa: error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not Path("out/budget.json").exists()
