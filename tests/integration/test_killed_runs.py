"""Runs that are killed at random moments: the next one starts clean or resumes, says which, and reads nothing half.

Two moments a verb; PAPA_KILLS=20 asks for more, and prints what came out (with `pytest -s`).
"""

import os
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from command_runs import finished, kill

from papa_lightning import AttentionConstants, PapaError, load_exported_encoder
from papa_lightning.cli.trainer_verbs import check_checkpoint

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs"
KILLS = int(os.environ.get("PAPA_KILLS", "2"))


@pytest.fixture
def tiny(encoder_folder: str, data_folder: str) -> list[str]:
    return [
        "--config", str(CONFIGS / "defaults.yaml"), "--config", str(CONFIGS / "sst2.yaml"),
        "--model.init_args.encoder", encoder_folder, "--data.init_args.data_dir", data_folder,
        "--data.init_args.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "3",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip


def same(one: Path, other: Path) -> bool:
    return torch.equal(AttentionConstants.load(one).values, AttentionConstants.load(other).values)


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def checkpoints(folder: Path) -> list[Path]:
    """Those of the killed run that a next run may be given; the others are refused before anything is made."""
    whole = []
    for path in folder.glob("lightning_logs/version_0/checkpoints/*.ckpt"):
        try:
            check_checkpoint(str(path))
        except PapaError:
            continue
        weights(path)  # what is not refused can be read
        whole.append(path)
    return whole


def test_calibrate_killed(tiny: list[str], tmp_path: Path) -> None:
    words = ["calibrate", *tiny, "--output", "constants.safetensors"]
    seconds, _ = finished(words, tmp_path / "undisturbed")
    expected = tmp_path / "undisturbed" / "constants.safetensors"
    moments, found = random.Random(0), Counter[str]()
    for number in range(KILLS):
        folder = tmp_path / str(number)
        kill(words, folder, moments.uniform(0, seconds))
        left = folder / "constants.safetensors"
        if left.exists():
            assert same(left, expected)
        found[f"killed {'with' if left.exists() else 'without'} a file"] += 1
        _, printed = finished(words, folder)
        assert "Calibrated on 12 sequences" in printed
        assert "Constants are in constants.safetensors" in printed
        assert same(left, expected)
    print(f"\ncalibrate, {seconds:.1f} s undisturbed: {dict(found)}")


def test_export_killed(encoder_folder: str, tmp_path: Path) -> None:
    shape = (2, 2, 16, 16)
    AttentionConstants(torch.rand(shape), torch.ones(shape[2:])).save(tmp_path / "constants.safetensors")
    words = ["export", "--encoder", encoder_folder, "--constants", str(tmp_path / "constants.safetensors")]
    words += ["--output", "exported"]
    seconds, _ = finished(words, tmp_path / "undisturbed")
    expected = load_exported_encoder(tmp_path / "undisturbed" / "exported").state_dict()
    moments, found = random.Random(0), Counter[str]()
    for number in range(KILLS):
        folder = tmp_path / str(number)
        kill(words, folder, moments.uniform(0, seconds))
        left = folder / "exported"
        there = left.exists()
        assert not there or same_state(load_exported_encoder(left).state_dict(), expected)
        begun = len(list(folder.glob(".papa-*")))
        found[f"killed {'with' if there else 'without'} a folder, {begun} begun"] += 1
        finished([*words, "--replace", "true"], folder)  # what was left does not stand in the way, and goes
        assert same_state(load_exported_encoder(left).state_dict(), expected)
        assert sorted(entry.name for entry in folder.iterdir()) == ["exported", "printed.txt"]
    print(f"\nexport, {seconds:.1f} s undisturbed: {dict(found)}")


def test_fit_killed(tiny: list[str], tmp_path: Path) -> None:
    words = ["fit", *tiny]
    seconds, _ = finished(words, tmp_path / "undisturbed")
    logs = Path("lightning_logs") / "version_0"
    (expected,) = (tmp_path / "undisturbed" / logs).glob("checkpoints/*.ckpt")
    moments, found = random.Random(0), Counter[str]()
    for number in range(KILLS):
        folder = tmp_path / str(number)
        kill(words, folder, moments.uniform(0, seconds))
        constants = folder / logs / "constants.safetensors"
        written = constants.exists()  # now: the next run may write to the same place
        if written:
            assert same(constants, tmp_path / "undisturbed" / logs / "constants.safetensors")
        left = checkpoints(folder)
        _, printed = finished([*words, "--ckpt_path", str(left[-1])] if left else words, folder)
        (last,) = {*folder.glob("lightning_logs/*/checkpoints/*.ckpt")} - {*left} or {*left}
        for name, value in weights(expected).items():
            if not left or ".papa." in name:
                assert torch.equal(weights(last)[name], value), name
        assert ("Restored all states" in printed) == bool(left)
        assert ("Calibrated on 12 sequences" in printed) == (not left)
        found[f"{'resumed' if left else 'started clean'}, constants {'' if written else 'not '}there"] += 1
    print(f"\nfit, {seconds:.1f} s undisturbed: {dict(found)}")
