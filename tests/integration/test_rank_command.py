"""`papa rank` as a user runs it, on a tiny encoder and tiny data."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from integration.conftest import write_rows

from papa_lightning import AttentionConstants, HeadRanking
from papa_lightning.cli.main import main
from papa_lightning.criteria import rank_heads, run
from papa_lightning.encoders import swapped_layers

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


@pytest.mark.parametrize(
    ("criterion", "steps"),
    [
        ("variance", 0),
        ("divergence", 0),
        ("output", 0),
        ("random:3", 0),
        ("layer:top_down", 0),
        ("taylor", 3),
        ("gate", 3),
    ],
)
def test_every_criterion_writes_a_ranking(
    criterion: str, steps: int, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that ask a probe train it; all leave the frozen encoder dynamic but for gate, which leaves its gates."""
    cli: Any = main(["rank", *tiny, "--criterion", criterion, "--output", "out/ranking.json"])
    ranking = HeadRanking.load("out/ranking.json")
    assert ranking.criterion == criterion
    assert sorted(ranking.heads) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert ranking.scores == sorted(ranking.scores)
    assert cli.trainer.global_step == steps
    assert bool(swapped_layers(cli.model.encoder)) == (criterion == "gate")
    lines = capsys.readouterr().out.splitlines()
    assert f"criterion  {criterion}, 4 heads" in lines
    assert "ranking    out/ranking.json" in lines
    layer, head = ranking.heads[0]
    assert any(line.split()[:3] == ["first", str(layer), str(head)] for line in lines)
    assert not Path("lightning_logs").exists()
    table = pd.read_csv("out/ranking.csv", index_col=["layer", "head"])
    pd.testing.assert_frame_equal(table, ranking.table())
    assert ["layer", "head", "0", "1"] in [line.split() for line in lines], "the place of every head"


def test_a_sampled_criterion_gets_rows_in_random_order(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is sorted by label: the first rows have one label only."""
    labels = [number // 8 for number in range(16)]
    for split in ("train", "validation"):
        rows = [{"sentence": f"a film {number}", "label": one, "idx": number} for number, one in enumerate(labels)]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    seen = dict[str, list[int]]()

    def watched(criterion: Any, inputs: Any) -> HeadRanking:
        seen[criterion] = [int(label) for batch in inputs.batches for label in batch["labels"]]
        return rank_heads(criterion, inputs)

    monkeypatch.setattr(run, "rank_heads", watched)
    for criterion in ("taylor", "greedy:8"):
        main(["rank", *tiny, "--data.data_dir", str(tmp_path), "--criterion", criterion])
    assert seen["taylor"] == labels
    drawn = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    assert seen["greedy:8"] == [labels[number] for number in drawn], "the order in studies"
    assert len(set(seen["greedy:8"][:8])) == 2


def test_the_heads_of_a_layer_are_listed(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["rank", *tiny, "--criterion", "layer:top_down", "--layer", "1"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["head", "score", "place", "of", "4"])
    assert [line[0] for line in lines[start + 1 : start + 3]] == ["1", "0"], "the one that matters most first"
    assert not any(line[:1] == ["first"] for line in lines)
    main(["rank", *tiny, "--criterion", "random", "--heads", "1"])
    assert sum(line.split()[:1] in (["first"], ["last"]) for line in capsys.readouterr().out.splitlines()) == 2


def test_constants_and_a_trained_task_are_taken_and_nothing_is_trained(tiny: list[str]) -> None:
    """The checkpoint is of a run with constant heads; the ranking is of the encoder's own attention."""
    main(["calibrate", *tiny, "--output", "constants.safetensors"])
    fitted: Any = main(["fit", *tiny])
    checkpoint = fitted.trainer.checkpoint_callback.best_model_path
    given = ["--constants", "constants.safetensors", "--ckpt_path", checkpoint]
    cli: Any = main(["rank", *tiny, *given, "--criterion", "taylor", "--output", "taylor.json"])
    assert cli.trainer.global_step == 0
    assert not swapped_layers(cli.model.encoder)
    for name, value in cli.model.probe.state_dict().items():
        assert torch.equal(fitted.model.probe.state_dict()[name].cpu(), value), name
    assert HeadRanking.load("taylor.json").scores[-1] > 0
    main(["rank", *tiny, "--constants", "constants.safetensors", "--output", "variance.json"])
    variance = AttentionConstants.load("constants.safetensors").variance
    assert HeadRanking.load("variance.json") == HeadRanking.from_scores(variance.tolist(), "variance")
    used: Any = main(["fit", *tiny, "--trainer.callbacks.heads", "0.5", "--trainer.callbacks.ranking", "variance.json"])
    assert sum([len(layer.constant_heads) for layer in swapped_layers(used.model.encoder)]) == 2


def test_fit_with_gates_says_where_the_ranking_is(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    gates = ["--trainer.callbacks", "HeadGates", "--trainer.callbacks.learning_rate", "0.05"]
    cli: Any = main(["fit", *tiny, *gates])
    (written,) = Path("lightning_logs").rglob("ranking.json")
    assert HeadRanking.load(written).criterion == "gate"
    assert any(group["lr"] == 0.05 for group in cli.trainer.optimizers[0].param_groups)
    lines = capsys.readouterr().out.splitlines()
    assert "heads constant  0 of 4 (0.0%)" in lines
    assert any(line.split() == ["ranking", str(written)] for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "2"], "layer is 2, but the encoder has the layers 0 to 1"),
        (["--output", "heads.csv"], "output is 'heads.csv', but the ranking is JSON"),
        (["--criterion", "median"], "criterion is 'median': choose from variance"),
        (["--constants", "nowhere.safetensors"], "constants file 'nowhere.safetensors' does not exist"),
        (
            ["--criterion", "taylor", "--ckpt_path", "nowhere.ckpt"],
            "ckpt_path is 'nowhere.ckpt'",
        ),
        (["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"], "2 processes, but heads are ranked by one"),
    ],
)
def test_invalid_input_ends_with_one_line(
    arguments: list[str], message: str, tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["rank", *tiny, *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("ranking.json").exists()


@pytest.mark.parametrize("criterion", ["variance", "embedding:6", "greedy:6"])
def test_an_encoder_for_embeddings_is_ranked_without_any_training(criterion: str, embeddings: list[str]) -> None:
    cli: Any = main(["rank", *embeddings, "--criterion", criterion])
    ranking = HeadRanking.load("ranking.json")
    assert ranking.criterion == criterion
    assert sorted(ranking.heads) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert cli.trainer.global_step == 0
    assert not swapped_layers(cli.model.encoder)


@pytest.mark.parametrize("criterion", ["taylor", "gate"])
def test_criteria_that_ask_a_probe_are_refused_for_embeddings(
    criterion: str, embeddings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["rank", *embeddings, "--criterion", criterion])
    assert f"criterion is '{criterion}', which asks the loss of a trained probe" in capsys.readouterr().err


def test_a_task_with_a_probe_has_embeddings_too(tiny: list[str]) -> None:
    """The means of its last hidden states; the probe is not trained for them."""
    cli: Any = main(["rank", *tiny, "--criterion", "embedding:3"])
    assert HeadRanking.load("ranking.json").scores[0] > 0
    assert cli.trainer.global_step == 0


@pytest.fixture
def embeddings(encoder_folder: str, tmp_path: Path) -> list[str]:
    """Arguments of a run on pairs of texts with a similarity."""
    rows = [{"sentence1": "a b c", "sentence2": "d " * n, "score": n} for n in range(1, 9)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return [
        "--model", "SimilarityTask", "--model.encoder", encoder_folder, "--model.max_length", "12",
        "--data", "SimilarityDataModule", "--data.data_dir", str(tmp_path), "--data.max_length", "12",
        "--data.batch_size", "4", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
