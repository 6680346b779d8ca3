"""tools/train_graded_encoders.py at toy size."""

import runpy
from pathlib import Path

import pandas as pd
import pytest
import torch

from papa_lightning.encoders.loading import load_encoder

SCRIPT = Path(__file__).parents[2] / "tools" / "train_graded_encoders.py"
SIZES = [
    "--tokens",
    "3200",
    "--points",
    "3",
    "--length",
    "16",
    "--batch",
    "8",
    "--learning-rate",
    "3e-3",
    "--seed",
    "1",
]


def train(encoder: str, output: Path) -> pd.DataFrame:
    """The table of a training with three points."""
    text = output.with_suffix(".txt")
    text.write_text("a good film\na bad and long film\nthe actors are a good reason\n" * 40)
    runpy.run_path(str(SCRIPT))["main"]([encoder, str(text), str(output), *SIZES])
    return pd.read_csv(output / "points.csv")


@pytest.fixture(scope="module")
def trained(encoder_folder: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    output = tmp_path_factory.mktemp("graded") / "points"
    return output, train(encoder_folder, output)


def test_every_point_has_twice_the_tokens_of_the_one_before(trained: tuple[Path, pd.DataFrame]) -> None:
    output, points = trained
    assert points.step[0] == points.tokens[0] == 0
    for number, wanted in enumerate((1600, 3200), start=1):
        assert wanted <= points.tokens[number] < wanted + 8 * 16
    folders = sorted(path.name for path in output.iterdir() if path.is_dir())
    assert folders == [f"step-{step:06}" for step in points.step]


def test_it_comes_nearer_to_the_encoder(trained: tuple[Path, pd.DataFrame]) -> None:
    losses = trained[1].loss.tolist()
    assert losses[0] > 1.2 * losses[1] > 1.2 * losses[2] > 0


def test_points_differ_in_the_weights_of_the_layers_alone(
    trained: tuple[Path, pd.DataFrame], encoder_folder: str
) -> None:
    folders = [trained[0] / f"step-{step:06}" for step in trained[1].step]
    states = [load_encoder(str(folder)).state_dict() for folder in (encoder_folder, *folders)]
    matrices = [name for name, values in states[0].items() if values.dim() == 2]
    others = {name for name in matrices if not all(torch.equal(states[0][name], one[name]) for one in states[1:])}
    assert others == {name for name in matrices if name.startswith("encoder.")}
    query = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(states[1][query], states[2][query])


def test_equal_arguments_give_equal_encoders(
    trained: tuple[Path, pd.DataFrame], encoder_folder: str, tmp_path: Path
) -> None:
    again = train(encoder_folder, tmp_path / "again")
    pd.testing.assert_frame_equal(again, trained[1])
    last = f"step-{again.step.iloc[-1]:06}"
    one, other = (folder / last / "model.safetensors" for folder in (trained[0], tmp_path / "again"))
    assert one.read_bytes() == other.read_bytes()


def test_a_folder_with_files_is_refused(
    trained: tuple[Path, pd.DataFrame], encoder_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        train(encoder_folder, trained[0])
    assert "has files, which could be of another training" in capsys.readouterr().err


def test_texts_too_short_to_hold_out_a_line_are_refused(encoder_folder: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a b c d\n" * 10)
    with pytest.raises(SystemExit, match=r"has 10 lines, of which every 20th is held out"):
        runpy.run_path(str(SCRIPT))["main"]([encoder_folder, str(tmp_path / "short.txt"), str(tmp_path / "out")])
