"""Parts that are registered at run time, or come by entry points, are everywhere that parts of the package are."""

import importlib
import runpy
import shutil
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_parts
import yaml
from transformers import AutoConfig, AutoModel

from papa_lightning import HeadRanking, calibrate, swap_attention
from papa_lightning.attention import KINDS, KindFacts, kinds_table
from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, run_benchmark
from papa_lightning.calibration import CONTROLS, control_constants
from papa_lightning.cli.main import main
from papa_lightning.criteria import CRITERIA, criteria_table
from papa_lightning.encoders import FAMILIES, EncoderFamily, swap_as_saved, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.registry import Registry
from papa_lightning.study import load_table

TOYS: list[tuple[Registry[Any], str, Any]] = [
    (KINDS, "toy_kind", toy_parts.HalvedHeads),
    (CRITERIA, "toy_criterion", toy_parts.EvenFirst),
    (CONTROLS, "toy_control", toy_parts.first_token),
]


BATCH = {"input_ids": torch.arange(16).view(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}


def offered(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    """Install entry points."""
    monkeypatch.setattr(importlib.import_module("papa_lightning.registry"), "entry_points", EntryPoints(points).select)
    for one, _, _ in TOYS:
        monkeypatch.delitem(vars(one), "_offered", raising=False)


@pytest.fixture(params=["at run time", "by entry points"])
def toys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if request.param == "at run time":
        for one, name, part in TOYS:
            one.register(name)(part)
    else:
        points = [EntryPoint(name, f"toy_parts:{part.__name__}", str(one.group)) for one, name, part in TOYS]
        offered(monkeypatch, *points)
    yield
    for one, name, _ in TOYS:
        one._parts.pop(name, None)
        vars(one).pop("_offered", None)


@pytest.mark.usefixtures("toys")
def test_a_kind_in_an_encoder(encoder_folder: str) -> None:
    encoder, plain, other = (AutoModel.from_pretrained(encoder_folder).eval() for _ in range(3))
    constants = calibrate(encoder, [BATCH], max_length=8)
    swap_attention(plain, "constant", constants=constants)
    found = swap_attention(encoder, "toy_kind", constants=constants)(**BATCH).last_hidden_state
    assert [layer.kind for layer in swapped_layers(encoder)] == ["toy_kind"] * 2
    assert not found.allclose(plain(**BATCH).last_hidden_state, atol=1e-3)
    assert swap_as_saved(other, encoder.state_dict())
    other.load_state_dict(encoder.state_dict())
    assert other(**BATCH).last_hidden_state.equal(found)


@pytest.mark.usefixtures("toys")
def test_a_kind_in_the_benchmark_and_the_table_of_the_page() -> None:
    shape = ShapeSettings(hidden=[16], layers=[1], heads=[2])
    settings = BenchmarkSettings(shape=shape, inputs=["2x8"], kinds=["toy_kind"], shares=[0.5], device="cpu", warmup=0)
    rows = run_benchmark(settings, progress=False).rows
    assert [(row.kind, row.share, row.bound) for row in rows] == [("stock", None, 1.0), ("toy_kind", 0.5, None)]
    assert "| `toy_kind` | Constant heads with half of their output. |" in kinds_table().markdown()
    assert "| `toy_criterion`, `toy_criterion:NUMBER` | Heads whose number" in criteria_table().markdown()


@pytest.mark.usefixtures("toys", "in_a_folder_of_its_own")
def test_a_criterion_in_papa_rank(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["rank", *tiny, "--criterion", "toy_criterion:1", "--output", "ranking.json"])
    assert HeadRanking.load("ranking.json").criterion == "toy_criterion:1"
    for words in (["rank"], ["study"], ["benchmark"]):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ("toy_kind" if words == ["benchmark"] else "toy_criterion:NUMBER") in shown
        assert ("toy_control" in shown) == (words == ["study"])
    with pytest.raises(SystemExit):
        main(["rank", *tiny, "--criterion", "toy_criterion:x"])
    assert "'toy_criterion:x': choose from variance, " in capsys.readouterr().err


@pytest.mark.parametrize("toys", ["at run time"], indirect=True)
@pytest.mark.usefixtures("toys", "in_a_folder_of_its_own")
def test_a_criterion_and_a_control_in_a_study_and_its_report(encoder_folder: str, data_folder: str) -> None:
    config = {
        "encoders": {"tiny": encoder_folder},
        "tasks": {"sst2": {"class_path": "SST2DataModule", "init_args": {"data_dir": data_folder, "max_length": 24}}},
        "criteria": ["toy_criterion"],
        "constants": ["average", "toy_control"],
        "shares": [0, 0.5, 1],
        "seeds": [0],
        "probe": {"max_epochs": 1, "batch_size": 4},
    }
    Path("study.yaml").write_text(yaml.safe_dump(config))
    main(["study", "--config", "study.yaml", "--output", "out"])
    table = load_table("out")
    assert "toy_criterion" in set(table["criterion"])
    assert set(table["constants"]) >= {"average", "toy_control"}
    report = Path("out/report.html").read_text(encoding="utf-8")
    assert "toy_criterion" in report
    assert "toy_control" in report


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_a_family_in_swap_benchmark_study_and_table(
    encoder_folder: str, data_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "roberta-prelayernorm"
    monkeypatch.delitem(FAMILIES, name, raising=False)
    monkeypatch.setitem(FAMILIES, name, EncoderFamily("RobertaPreLayerNormSelfAttention", title="A toy"))
    plain = AutoConfig.from_pretrained(encoder_folder).to_dict()
    copied = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model = AutoModel.from_config(AutoConfig.for_model(name, pad_token_id=0, **{key: plain[key] for key in copied}))
    shutil.copytree(encoder_folder, "toy")
    model.eval().save_pretrained("toy")
    constants = calibrate(model, [BATCH], max_length=8)
    swap_attention(model, "constant", constants=constants)
    assert [layer.kind for layer in swapped_layers(model)] == ["constant"] * 2
    shape = ShapeSettings(type=name, hidden=[16], layers=[1], heads=[2])
    rows = run_benchmark(BenchmarkSettings(shape=shape, inputs=["2x8"], device="cpu", warmup=0), progress=False).rows
    assert [row.kind for row in rows] == ["stock", "constant"]
    table = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_registry_tables.py"))["families_table"]()
    assert f"| A toy | `{name}` |" in table
    task = {"class_path": "SST2DataModule", "init_args": {"data_dir": data_folder, "max_length": 24}}
    probe = {"max_epochs": 1, "batch_size": 4}
    config = {"encoders": {"toy": "toy"}, "tasks": {"sst2": task}, "shares": [1], "seeds": [0], "probe": probe}
    Path("study.yaml").write_text(yaml.safe_dump(config))
    main(["study", "--config", "study.yaml", "--output", "out"])
    assert set(load_table("out")["encoder"]) == {"toy"}


@pytest.mark.usefixtures("toys")
def test_constants_of_a_control(encoder_folder: str) -> None:
    average = calibrate(AutoModel.from_pretrained(encoder_folder), [BATCH], max_length=8)
    control = control_constants("toy_control", average)
    assert control.values.shape == average.values.shape
    assert control.values.sum(dim=-1).eq(1).all()
    assert control.values[..., 0].eq(1).all()
    assert control.metadata["kind"] == "toy_control"


def test_what_cannot_be_a_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PapaError, match=r"kind 'toy_kind' is registered as .*, which cannot be a kind"):
        KINDS.register("toy_kind")(toy_parts.EvenFirst)
    with pytest.raises(PapaError, match=r"kind 'toy_kind' is registered as .*, whose name is 'constant' already"):
        KINDS.register("toy_kind")(KINDS["constant"])
    assert "toy_kind" not in KINDS
    with pytest.raises(KeyError, match="kind is 'toy_kind', but must be one of 'constant', 'gated'"):
        KINDS["toy_kind"]
    assert KINDS.get("toy_kind") is None
    offered(monkeypatch, EntryPoint("gone", "no_such_package:Part", "papa_lightning.kinds"))
    with pytest.raises(PapaError, match=r"kind 'gone' is 'no_such_package:Part' of another package, which cannot be"):
        KINDS["gone"]
    monkeypatch.undo()
    vars(KINDS).pop("_offered", None)


def test_a_kind_describes_itself() -> None:
    assert all(mixer.facts != KindFacts() for mixer in KINDS.values()), "each kind has a row in docs/kinds.md"
