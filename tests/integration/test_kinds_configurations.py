"""Every YAML of papa_lightning/configs/kinds, run at tiny size: a model from nothing, saved, and loaded again."""

import csv
from pathlib import Path

import pytest

from papa_lightning.cli.main import main
from papa_lightning.cli.trainer_verbs import PapaCLI
from papa_lightning.encoders import swapped_layers

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs" / "kinds"
BASES = ("language_model", "digits")
IMAGES = ("aft_conv_2d",)
OVERLAYS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {*BASES})
TEXT = "".join(chr(97 + number * number % 23) for number in range(1200))
SMALL = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "5", "--trainer.enable_progress_bar", "false",
         "--trainer.enable_model_summary", "false", "--data.batch_size", "2",
         "--trainer.val_check_interval", "5", "--trainer.limit_val_batches", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["papa"])
    Path("text.txt").write_text(TEXT)


def papa(verb: str, base: str, overlay: str | None, *more: str) -> PapaCLI:
    small = [*SMALL, "--model.hidden_size", "16"]
    if base == "language_model":
        small += ["--data.max_length", "40"]
    names = [base, *([overlay] if overlay else [])]
    cli = main([
        verb, *[part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))], *small, *more,
    ])  # fmt: skip
    assert isinstance(cli, PapaCLI)
    return cli


def logged() -> dict[str, float]:
    """The last value of everything that the last run logged."""
    runs = sorted(Path("lightning_logs").glob("version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    rows = list(csv.DictReader(runs[-1].open()))
    return {name: float(row[name]) for row in rows for name in row if row[name]}


@pytest.mark.parametrize(
    ("base", "overlay"), [*((base, None) for base in BASES), *((BASES[name in IMAGES], name) for name in OVERLAYS)]
)
def test_every_configuration_trains(base: str, overlay: str | None) -> None:
    cli = papa("fit", base, overlay)
    assert cli.trainer.global_step == 5
    mixers = swapped_layers(cli.model.encoder)
    kind = cli.model.hparams["kind"]
    expected = [] if kind == "dynamic" else [kind] * cli.model.hparams["num_layers"] if isinstance(kind, str) else kind
    assert [mixer.kind for mixer in mixers] == expected
    facts = logged()
    assert facts["throughput/steps_per_second"] > 0
    assert facts["throughput/parameters"] == sum(one.numel() for one in cli.model.parameters() if one.requires_grad)
    score = facts[cli.model.score_name]
    assert (2.5 < score < 5) if base == "language_model" else (0 <= score <= 1)


def test_a_checkpoint_of_a_kind_scores_alike() -> None:
    fitted = papa("fit", "language_model", "aft_local")
    score = logged()["val/bits_per_character"]
    checkpoint = fitted.trainer.checkpoint_callback.best_model_path
    tested = papa("validate", "language_model", "aft_local", "--ckpt_path", checkpoint)
    assert tested.trainer.callback_metrics["val/bits_per_character"] == pytest.approx(score, abs=1e-5)
