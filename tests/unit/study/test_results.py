"""Results as files and as a table: nothing is lost, nothing damaged gets in, and each change has its own baseline."""

import contextlib
import json
import math
import random
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.study.results import COLUMNS, CellResult, load_table, results_table, save_table

FORMAT = "papa_lightning.cell_result/1"
CELL = CellResult(
    encoder="minilm",
    task="sst2",
    criterion="random:3",
    share=0.5,
    constant_heads=36,
    total_heads=72,
    seed=7,
    constants="average",
    metric="accuracy",
    scores={"accuracy": 0.8125, "loss": 0.1 + 0.2, "accuracy/hard ☃": -0.25},
    seconds=12.5,
    versions={"torch": "2.13.0", "python": "3.11"},
    hash="0af1",
    level_weights=[0.1, 0.2, 1 / 3],
)


def cell(share=0.0, score=0.8, seed=0, criterion="variance", constants="average", encoder="e", task="t", **others):
    scores = others.pop("scores", {"f1": score})
    facts = {"constant_heads": round(share * 8), "total_heads": 8, "metric": "f1", "seconds": 1.0, "versions": {}}
    names = {"encoder": encoder, "task": task, "criterion": criterion, "constants": constants, "hash": "1f"}
    return CellResult(**names, **facts, share=share, seed=seed, scores=scores, **others)


@pytest.mark.parametrize(
    "result",
    [CELL, replace(CELL, level_weights=None), replace(CELL, share=1, constant_heads=72, versions={}, seconds=0)],
)
def test_round_trip(tmp_path, result):
    path = result.save(str(tmp_path / "new" / "cells" / "cell.json"))
    assert CellResult.load(path) == CellResult.load(str(path)) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["cell.json"]
    content = json.loads(path.read_text())
    assert content.pop("format") == FORMAT
    assert len(content.pop("sha256")) == 64
    assert content == asdict(result)


def test_a_score_that_is_not_finite_is_kept_as_nan(tmp_path):
    result = replace(CELL, scores={"accuracy": 0.5, "loss": math.inf, "other": math.nan})
    loaded = CellResult.load(result.save(tmp_path / "cell.json"))
    assert loaded.scores["accuracy"] == 0.5
    assert math.isnan(loaded.scores["loss"])
    assert math.isnan(loaded.scores["other"])
    assert "NaN" not in (tmp_path / "cell.json").read_text()


def test_numbers_become_floats_and_lists():
    result = replace(CELL, share=1, constant_heads=72, seconds=3, scores={"accuracy": 1}, level_weights=(1, 2))
    assert [type(value) for value in (result.share, result.seconds, result.scores["accuracy"])] == [float] * 3
    assert result.level_weights == [1.0, 2.0]
    with pytest.raises(AttributeError):
        result.seed = 3


WRONG: dict[str, list[Any]] = {
    "encoder": ["", None, 3, ["a"], "\ud800"],
    "task": ["", None, 3, {}],
    "criterion": ["", None, 0.5, True],
    "share": ["0.5", None, True, -0.1, 1.1, math.nan, math.inf, 10**400, [0.5], 0, 1.0],
    "constant_heads": [1.5, "3", None, True, -1, 73, 2**63, 10**400],
    "total_heads": [0, -1, 35, 72.0, "72", None, False, 2**63],
    "seed": [-1, 0.5, "0", None, True, 2**63, [0]],
    "constants": ["", None, 3],
    "metric": ["", None, "f1", 3, ["accuracy"]],
    "scores": [
        {},
        None,
        [0.5],
        0.5,
        {"accuracy": "0.5"},
        {"accuracy": True},
        {"accuracy": [1]},
        {"": 1.0, "accuracy": 1},
    ],
    "seconds": [-1, "3", None, True, math.nan, math.inf, 10**400],
    "versions": [None, [], "2.13", {"torch": 2.13}, {"torch": None}, {"torch": "\udfff"}],
    "hash": [None, 3, ["0af1"]],
    "level_weights": ["0.1", 0.1, {"0": 1}, [None], ["1"], [math.nan], [math.inf], [[0.1]], [True]],
}
SINGLE = [(name, value) for name, values in WRONG.items() for value in values]


@pytest.mark.parametrize(
    ("name", "value"), SINGLE, ids=lambda value: repr(value)[:20].encode("ascii", "replace").decode()
)
def test_wrong_values_are_refused_by_name(name, value):
    # A total below the constant heads, and a share at an end, are noticed at the number of constant heads.
    named = {"total_heads": "total_heads|constant_heads", "share": "share|constant_heads"}.get(name, name)
    with pytest.raises(PapaError, match=rf"^(a [a-z]+ of )?({named})\b.* but must be"):
        replace(CELL, **{name: value})
    with pytest.raises(PapaError, match="but must be"):
        replace(CELL, scores={1: 0.5, "accuracy": 0.5})


def damaged_objects():
    """Contents that are JSON of some kind, but not of a result."""
    whole = {"format": FORMAT, **asdict(CELL)}
    for name in whole:
        yield {key: value for key, value in whole.items() if key != name}
        yield {**whole, name: None} if name != "level_weights" else {**whole, name: "None"}
        yield {**whole, name: {"a": [[[]]]}}
    for name, value in SINGLE:
        if not (name == "scores" and value == {"accuracy": None}):
            yield {**whole, name: value}
    yield {**whole, "more": 1}
    yield {**whole, "format": FORMAT.replace("/1", "/2")}
    yield {**whole, "format": [FORMAT]}
    yield from ([whole], [], {}, None, 3, "text", [[[[]]]], {"": whole}, {"format": FORMAT})


def damaged_contents():
    """200 and more files."""
    text = json.dumps({"format": FORMAT, **asdict(CELL)}).encode()
    yield from (json.dumps(content).encode() for content in damaged_objects())
    yield from (text[:size] for size in range(0, len(text), 7))
    yield from (
        b"",
        b"\x00" * 50,
        b"\xff\xfe" + text,
        b"\x93NUMPY",
        text + b"}",
        text + text,
        b"NaN",
        b"Infinity",
        b"-",
    )
    for opening in (b"[", b'{"a":', b'{"format":['):
        yield opening * 200_000
    yield text.replace(b'"seed": 7', b'"seed": ' + b"7" * 6000)
    yield text.replace(b"0.8125", b"NaN")
    yield text.replace(b"0.8125", b"-Infinity")
    yield text.replace(b"12.5", b"1e999")
    yield text.replace(b"12.5", b"nan")


DAMAGED = list(dict.fromkeys(damaged_contents()))


def overwritten_contents():
    """Files with three bytes in the place of one, which may hit the inside of a name."""
    text = json.dumps({"format": FORMAT, **asdict(CELL)}).encode()
    generator = random.Random(0)
    for _ in range(200):
        place = generator.randrange(len(text))
        yield text[:place] + bytes([generator.choice(b'\x00\xff{}[],:"\\9')]) * 3 + text[place + 1 :]


def test_damaged_files_are_refused_and_nothing_else_happens(tmp_path):
    path = tmp_path / "cell.json"
    assert len(DAMAGED) >= 200
    for content in DAMAGED:
        path.write_bytes(content)
        with pytest.raises(ResultFileError, match=r"cell\.json"):
            CellResult.load(path)
    CELL.save(path)
    assert CellResult.load(path) == CELL


def test_overwritten_bytes_raise_nothing_else(tmp_path):
    path, loaded = tmp_path / "cell.json", []
    for content in overwritten_contents():
        path.write_bytes(content)
        with contextlib.suppress(ResultFileError):
            loaded.append(CellResult.load(path))
    assert 0 < len(loaded) < 100
    assert all(replace(result) == result != CELL for result in loaded)


def test_files_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / "missing" / "cell.json"):
        with pytest.raises(ResultFileError, match=r"cannot be read \("):
            CellResult.load(path)
    with pytest.raises(ResultFileError):
        CellResult.load("a\0b")


def test_the_score_of_the_task_comes_first():
    table = results_table([replace(CELL, scores={"loss": 0.5, **CELL.scores})])
    assert table["is_score"].tolist() == [True, False, False]


def test_one_row_a_cell_and_metric():
    table = results_table([CELL, replace(CELL, criterion="variance", hash="0b")])
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 6
    first = table.iloc[0]
    assert first.drop("relative_change").to_dict() == {
        "encoder": "minilm",
        "task": "sst2",
        "criterion": "random",
        "ranking_seed": 3,
        "share": 0.5,
        "constant_heads": 36,
        "total_heads": 72,
        "seed": 7,
        "constants": "average",
        "metric": "accuracy",
        "is_score": True,
        "score": 0.8125,
        "seconds": 12.5,
        "hash": "0af1",
    }
    assert list(table["metric"]) == ["accuracy", "loss", "accuracy/hard ☃"] * 2
    assert list(table["is_score"]) == [True, False, False] * 2
    assert list(table["criterion"]) == ["random"] * 3 + ["variance"] * 3
    assert table["ranking_seed"].isna().tolist() == [False] * 3 + [True] * 3
    assert table["relative_change"].isna().all()
    assert str(table["ranking_seed"].dtype) == "Int64"
    assert [str(table[name].dtype) for name in ("share", "seed", "is_score")] == ["float64", "int64", "bool"]


RANDOM = {"random": 0, "random:0": 0, "random:12": 12}
OTHERS = ["gate", "layer:top_down", "random:", "random:x", "randomly:3", "random:" + "9" * 30]


@pytest.mark.parametrize("criterion", [*RANDOM, *OTHERS])
def test_ranking_seed_of_a_random_criterion(criterion):
    row = results_table([cell(criterion=criterion)]).iloc[0]
    assert row["criterion"] == ("random" if criterion in RANDOM else criterion)
    assert row["ranking_seed"] == RANDOM[criterion] if criterion in RANDOM else row["ranking_seed"] is pd.NA


def test_relative_change_has_the_baseline_of_its_own_encoder_task_seed_and_metric():
    scores = {}
    generator = random.Random(1)
    cells = []
    for encoder in ("e1", "e2"):
        for task in ("t1", "t2"):
            for seed in (0, 1):
                for share in (0.5, 0.0, 1.0):
                    found = {"f1": generator.uniform(0.1, 1), "loss": generator.uniform(0.1, 3)}
                    scores[encoder, task, seed, share] = found
                    cells.append(cell(share, seed=seed, encoder=encoder, task=task, scores=found))
    table = results_table(cells)
    assert len(table) == 2 * len(cells)
    for _, row in table.iterrows():
        found = [scores[row["encoder"], row["task"], row["seed"], share] for share in (0.0, row["share"])]
        before, after = (one[row["metric"]] for one in found)
        assert row["score"] == after
        assert row["relative_change"] == pytest.approx(after / before - 1, abs=1e-12)


def test_share_0_is_the_baseline_of_all_criteria_and_kinds():
    table = results_table([cell(0, 0.8), cell(1, 0.6, criterion="random:1"), cell(1, 0.2, constants="zero")])
    assert table["relative_change"].tolist() == pytest.approx([0, -0.25, -0.75])


def test_relative_change_without_a_positive_baseline():
    def change(before, after):
        return results_table([cell(0, before), cell(1, after)])["relative_change"].tolist()

    assert change(-0.2, -0.3) == pytest.approx([0, -0.5])  # it fell, so the sign is negative
    assert change(-0.2, 0.1) == pytest.approx([0, 1.5])
    assert np.isnan(change(0.0, 0.3)).all()
    assert np.isnan(change(math.nan, 0.3)).all()
    assert np.isnan(change(0.5, math.nan)).tolist() == [False, True]
    assert np.isnan(results_table([cell(1, 0.3)])["relative_change"]).all()
    other = results_table([cell(0, 0.5, seed=1), cell(1, 0.3, seed=2)])
    assert np.isnan(other["relative_change"]).tolist() == [False, True]


def test_a_cell_counts_once():
    twice = [cell(0.5, 0.8), cell(0.5, 0.7)]
    with pytest.raises(PapaError, match=r"result twice \(encoder 'e'.*share .*0\.5.*metric 'f1'\)"):
        results_table(twice)
    with pytest.raises(PapaError, match="result twice"):
        results_table([cell(criterion="random"), cell(criterion="random:0")])
    assert len(results_table([cell(0.5), cell(0.5, seed=1), cell(0.5, criterion="random:1"), cell(0.25)])) == 4


def test_a_table_without_rows(tmp_path):
    table = results_table([])
    save_table(table, tmp_path)
    assert list(load_table(tmp_path).columns) == list(COLUMNS) == list(table.columns)
    assert len(load_table(tmp_path)) == 0


def test_table_round_trip(tmp_path):
    table = results_table([CELL, cell(0, 0.3), cell(1, math.nan), cell(1, 0.1 + 0.2, criterion="random:2")])
    save_table(table, tmp_path / "new" / "study")
    assert {path.name for path in (tmp_path / "new" / "study").iterdir()} == {"results.parquet", "results.csv"}
    pd.testing.assert_frame_equal(load_table(str(tmp_path / "new" / "study")), table)
    text = pd.read_csv(tmp_path / "new" / "study" / "results.csv")
    assert list(text.columns) == list(COLUMNS)
    for name in ("score", "relative_change", "share", "seconds"):
        np.testing.assert_allclose(text[name], table[name], rtol=1e-14)
    assert text["metric"].tolist() == table["metric"].tolist()


def test_damaged_tables_are_refused_and_nothing_else_happens(tmp_path):
    table = results_table([CELL, cell(0, 0.3)])
    save_table(table, tmp_path)
    path = tmp_path / "results.parquet"
    whole = path.read_bytes()
    generator = random.Random(0)
    contents = [whole[:size] for size in range(0, len(whole), len(whole) // 40)]
    for _ in range(160):
        place = generator.randrange(len(whole))
        contents.append(whole[:place] + bytes([whole[place] ^ 1 << generator.randrange(8)]) + whole[place + 1 :])
    unseen = 0
    for content in contents:
        path.write_bytes(content)
        with contextlib.suppress(ResultFileError):
            assert load_table(tmp_path).shape == table.shape  # what nobody reads may be damaged
            unseen += 1
    assert unseen < len(contents) / 2


def test_tables_that_are_something_else(tmp_path):
    table = results_table([cell()])
    with pytest.raises(ResultFileError, match=r"results\.parquet.*cannot be read \(No such file"):
        load_table(tmp_path)
    lacking = table.assign(encoder=pd.Series([None], dtype="object"))
    for wrong in (table.drop(columns="seed"), table.assign(more=1), table.assign(seed=["a"]), lacking):
        wrong.to_parquet(tmp_path / "results.parquet")
        with pytest.raises(ResultFileError, match=r"results\.parquet.*(has the columns|wrong values).*run the study"):
            load_table(tmp_path)
    (tmp_path / "results.parquet").unlink()
    (tmp_path / "results.parquet").mkdir()
    with pytest.raises(ResultFileError, match=r"cannot be read \(Is a directory"):
        load_table(tmp_path)
