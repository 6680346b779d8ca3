"""`papa export`, from constants and from checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from papa_lightning import (
    AttentionConstants,
    HeadRanking,
    SequenceClassificationTask,
    calibrate,
    load_exported_encoder,
    swap_attention,
)
from papa_lightning.cli.main import main

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs"
LENGTH = 16
INPUTS = {"input_ids": torch.arange(5, 5 + 2 * LENGTH).view(2, -1), "attention_mask": torch.ones(2, LENGTH).long()}
INPUTS["attention_mask"][1, 9:] = 0


def last(encoder: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = encoder(**INPUTS).last_hidden_state
    return result


@pytest.fixture
def constants(tmp_path: Path) -> AttentionConstants:
    generator = torch.Generator().manual_seed(0)
    made = AttentionConstants(torch.rand(2, 2, LENGTH, LENGTH, generator=generator), torch.ones(LENGTH, LENGTH))
    made.save(tmp_path / "constants.safetensors")
    return made


def test_an_encoder_with_constants(
    encoder_folder: str, constants: AttentionConstants, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HeadRanking([(1, 0), (0, 1), (0, 0), (1, 1)]).save(tmp_path / "ranking.json")
    words = ["export", "--encoder", encoder_folder, "--constants", str(tmp_path / "constants.safetensors")]
    words += ["--heads", "0.5", "--ranking", str(tmp_path / "ranking.json"), "--output", str(tmp_path / "exported")]
    assert main(words) == tmp_path / "exported"
    printed = capsys.readouterr().out
    assert "2 of 4 heads, kind constant, up to 16 tokens" in printed
    loaded = load_exported_encoder(tmp_path / "exported")
    expected = swap_attention(
        AutoModel.from_pretrained(encoder_folder), "constant", constants=constants, heads=[(0, 1), (1, 0)]
    )
    assert torch.equal(last(loaded), last(expected))
    written = sorted(path.name for path in (tmp_path / "exported").iterdir())
    assert written == [*["config.json", "model.safetensors", "papa.json", "tokenizer.json", "tokenizer_config.json"]], (
        written
    )
    assert AutoTokenizer.from_pretrained(tmp_path / "exported")("a b")["input_ids"]
    assert not any(encoder_folder in path.read_text(errors="ignore") for path in (tmp_path / "exported").iterdir())
    with pytest.raises(SystemExit):
        main(words)
    assert "holds an export already" in capsys.readouterr().err


def test_a_graph_that_takes_position_ids(
    encoder_folder: str, constants: AttentionConstants, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = pytest.importorskip("onnxruntime")
    main(["export", "--encoder", encoder_folder, "--constants", str(tmp_path / "constants.safetensors"),
          "--output", str(tmp_path / "exported"), "--onnx", "true", "--position_ids", "true"])  # fmt: skip
    assert "4 of 4 heads" in capsys.readouterr().out
    assert json.loads((tmp_path / "exported" / "papa.json").read_bytes())["first_position_id"] == 0
    session = runtime.InferenceSession(tmp_path / "exported" / "model.onnx")
    packed = {name: values[1:, :9] for name, values in INPUTS.items()}
    packed |= {"token_type_ids": torch.zeros(1, 9).long(), "position_ids": torch.arange(9)[None]}
    (found,) = session.run(None, {one.name: packed[one.name].numpy() for one in session.get_inputs()})
    expected = last(load_exported_encoder(tmp_path / "exported"))[1:, :9]
    assert torch.allclose(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("given", "filled"), [([], True), (["--fill_unseen", "false"], False)])
def test_an_average_is_filled_as_the_studies_fill_it(
    given: list[str], filled: bool, encoder_folder: str, tmp_path: Path
) -> None:
    encoder = AutoModel.from_pretrained(encoder_folder)
    average = calibrate(encoder, [{name: values[:, :6] for name, values in INPUTS.items()}], LENGTH)
    path = average.save(tmp_path / "average.safetensors")
    main([
        "export", "--encoder", encoder_folder, "--constants", str(path), "--output", str(tmp_path / "exported"), *given
    ])  # fmt: skip
    swap_attention(encoder, "constant", constants=average.filled() if filled else average)
    found = last(load_exported_encoder(tmp_path / "exported"))
    assert torch.equal(found, last(encoder.eval()))


def test_the_checkpoint_of_a_task(encoder_folder: str, data_folder: str, tmp_path: Path) -> None:
    done = main([
        "fit", "--config", str(CONFIGS / "defaults.yaml"), "--config", str(CONFIGS / "sst2.yaml"),
        "--model.init_args.encoder", encoder_folder, "--data.init_args.data_dir", data_folder,
        "--model.init_args.regime", "fine_tune", "--data.init_args.max_length", str(LENGTH),
        "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false",
        "--trainer.default_root_dir", str(tmp_path),
    ])  # fmt: skip
    task = done.model  # type: ignore[attr-defined]
    assert isinstance(task, SequenceClassificationTask)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    main(["export", "--ckpt_path", str(checkpoint), "--output", str(tmp_path / "exported")])
    loaded = load_exported_encoder(tmp_path / "exported")
    assert torch.equal(last(loaded), last(task.encoder.eval()))
    facts = json.loads((tmp_path / "exported" / "papa.json").read_bytes())
    assert facts["heads"] == [[0, 1], [0, 1]]
    assert facts["parameters"]["left_out"] == 2 * 2 * (16 * 16 + 16)


@pytest.mark.parametrize(("words", "message"), [
    ([], "pass an encoder and a constants file, an encoder that was saved swapped, or a checkpoint"),
    (["--encoder", "ENCODER"], "pass an encoder and a constants file"),
    (["--encoder", "ENCODER", "--constants", "no-such-file"], "does not exist"),
    (["--encoder", "no-such-folder", "--constants", "CONSTANTS"], "cannot be loaded"),
    (["--ckpt_path", "no-such-file"], "no such file"),
    (["--ckpt_path", "CONSTANTS"], "damaged or no checkpoint"),
    (["--ckpt_path", "STRANGER"], "no checkpoint of a task"),
    (["--ckpt_path", "PLAIN"], "has no constants"),
    (["--ckpt_path", "SWAPPED_TASK", "--constants", "CONSTANTS"], "swapped.ckpt' has constants and heads of its own"),
    (["--ckpt_path", "SWAPPED_TASK", "--heads", "[[0, 1]]"], "heads is [[0, 1]], but"),
    (["--encoder", "SWAPPED", "--heads", "[[0, 1]]"], "heads is [[0, 1]], but"),
    (["--encoder", "SWAPPED", "--ranking", "r.json"], "ranking is 'r.json', but"),
    (["--encoder", "SWAPPED", "--kind", "folded"], "kind is 'folded', but"),
    (["--encoder", "SWAPPED", "--fill_unseen", "false"], "fill_unseen is False, but"),
    (["--encoder", "ENCODER", "--constants", "CONSTANTS", "--heads", "0.5"], "no ranking says"),
    (["--encoder", "ENCODER", "--constants", "CONSTANTS", "--position_ids", "true"], "onnx is False"),
    (["--encoder", "ENCODER", "--constants", "CONSTANTS", "--tokenizer", "no-such-tokenizer"], "cannot be loaded"),
])  # fmt: skip
def test_what_is_refused(
    words: list[str],
    message: str,
    encoder_folder: str,
    constants: AttentionConstants,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.save({"state_dict": {"net.weight": torch.ones(1)}}, tmp_path / "stranger.ckpt")
    plain = {f"encoder.{key}": value for key, value in AutoModel.from_pretrained(encoder_folder).state_dict().items()}
    torch.save({"state_dict": plain, "hyper_parameters": {"encoder": encoder_folder}}, tmp_path / "plain.ckpt")
    swapped = swap_attention(AutoModel.from_pretrained(encoder_folder), "constant", constants=constants)
    swapped.save_pretrained(tmp_path / "swapped")
    held = {f"encoder.{key}": value for key, value in swapped.state_dict().items()}
    torch.save({"state_dict": held, "hyper_parameters": {"encoder": encoder_folder}}, tmp_path / "swapped.ckpt")
    places = {"ENCODER": encoder_folder, "CONSTANTS": str(tmp_path / "constants.safetensors")}
    places |= {"SWAPPED": str(tmp_path / "swapped"), "SWAPPED_TASK": str(tmp_path / "swapped.ckpt")}
    places |= {"STRANGER": str(tmp_path / "stranger.ckpt"), "PLAIN": str(tmp_path / "plain.ckpt")}
    with pytest.raises(SystemExit) as ended:
        main(["export", "--output", str(tmp_path / "exported"), *(places.get(word, word) for word in words)])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "exported" in path.name]
