"""The order in which heads become constant, and its file."""

import json

import pytest
import torch

from papa_lightning import HeadRanking
from papa_lightning.errors import PapaError, RankingFileError

HEADS = [(1, 0), (0, 1), (0, 0), (1, 1)]


def test_ascending_scores_over_all_layers_together():
    ranking = HeadRanking.from_scores([[0.3, -0.1], [0.2, 0.4]], "gate")
    assert ranking.heads == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert ranking.scores == [-0.1, 0.2, 0.3, 0.4]
    assert ranking.criterion == "gate"


def test_ties_keep_the_order_of_layers_and_heads():
    ranking = HeadRanking.from_scores([[1, 0, 0.0], [-0.0, 1, 0]], "x")
    assert ranking.heads == [(0, 1), (0, 2), (1, 0), (1, 2), (0, 0), (1, 1)]


def test_scores_of_a_tensor():
    gates = torch.tensor([[0.5, -0.5], [0.25, 0.0]])
    assert HeadRanking.from_scores(gates, "gate").heads == [(0, 1), (1, 1), (1, 0), (0, 0)]
    assert HeadRanking(HEADS, torch.arange(4.0)).scores == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("amount", "count"),
    [(0, 0), (1, 1), (4, 4), (0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4), (0.3, 1), (0.9, 4), (1 / 3, 1)],
)
def test_first(amount, count):
    assert HeadRanking(HEADS).first(amount) == HEADS[:count]


@pytest.mark.parametrize("share", [1 / 2, 7 / 8, 15 / 16])
def test_shares_of_144_heads(share):
    ranking = HeadRanking([(layer, head) for layer in range(12) for head in range(12)])
    assert len(ranking.first(share)) == {1 / 2: 72, 7 / 8: 126, 15 / 16: 135}[share]


@pytest.mark.parametrize("amount", [-1, 5, -0.1, 1.1, float("nan"), float("inf"), True, False, "1", None, [1]])
def test_first_refuses(amount):
    with pytest.raises(PapaError, match=r"^heads is"):
        HeadRanking(HEADS).first(amount)


def test_lists_and_tuples_are_pairs_and_the_argument_is_copied():
    given = [[1, 0], (0, 1)]
    ranking = HeadRanking(given, [1, 2])
    given.append((9, 9))
    assert ranking.heads == [(1, 0), (0, 1)]
    assert ranking.scores == [1.0, 2.0]
    ranking.first(1).append((5, 5))
    assert ranking.heads == [(1, 0), (0, 1)]
    assert ranking == HeadRanking([(1, 0), (0, 1)], [1.0, 2.0])


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([(0, 0), (1, 0), (0, 0)], r"\(0, 0\) more than once"),
        ([(0, 0), [0, 0]], r"\(0, 0\) more than once"),
        ([(0, -1)], r"the entry \(0, -1\)"),
        ([(0, 1.0)], r"the entry \(0, 1.0\)"),
        ([(True, 0)], r"the entry \(True, 0\)"),
        ([(0, "1")], r"the entry \(0, '1'\)"),
        ([(0, 1, 2)], r"the entry \(0, 1, 2\)"),
        (["01"], r"the entry '01'"),
        ([3], r"the entry 3"),
        ([None], r"the entry None"),
        (5, r"heads is 5, but must be a list"),
        (None, r"heads is None"),
        ({(0, 0): 1}, r"heads is {"),
    ],
)
def test_wrong_heads(heads, message):
    with pytest.raises(PapaError, match=message):
        HeadRanking(heads)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"scores has 1 values for 2 heads"),
        ([1.0, 2.0, 3.0], r"scores has 3 values"),
        ([], r"scores has 0 values"),
        ([1.0, float("nan")], r"scores has nan for head \(0, 1\): only finite"),
        ([float("inf"), 1.0], r"scores has inf for head \(0, 0\)"),
        ([1.0, "2"], r"scores has '2' for head \(0, 1\)"),
        ([1.0, None], r"scores has None"),
        ([1.0, True], r"scores has True"),
    ],
)
def test_wrong_scores(scores, message):
    with pytest.raises(PapaError, match=message):
        HeadRanking([(0, 0), (0, 1)], scores)


@pytest.mark.parametrize("wrong", [float("nan"), float("-inf"), "high", None])
def test_wrong_scores_by_layer(wrong):
    with pytest.raises(PapaError, match=r"for head \(1, 0\): only finite numbers"):
        HeadRanking.from_scores([[1.0, 2.0], [wrong, 3.0]], "gate")


@pytest.mark.parametrize("scores", [None, [0.1, 0.2, 1e-300, -3.5]])
def test_file_round_trip(tmp_path, scores):
    path = tmp_path / "new" / "folder" / "ranking.json"
    ranking = HeadRanking(HEADS, scores, 'gräte "x"')
    ranking.save(path)
    assert HeadRanking.load(path) == ranking
    assert HeadRanking.load(str(path)) == ranking
    assert all(isinstance(head, tuple) for head in HeadRanking.load(path).heads)
    assert [entry.name for entry in path.parent.iterdir()] == ["ranking.json"]
    json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def good_content():
    return {"format": "papa_lightning.head_ranking/1", "criterion": "gate", "heads": [[0, 0], [0, 1]], "scores": None}


def test_good_content_is_good(tmp_path):
    (tmp_path / "ranking.json").write_text(json.dumps(good_content()))
    assert HeadRanking.load(tmp_path / "ranking.json") == HeadRanking([(0, 0), (0, 1)], None, "gate")


@pytest.mark.parametrize(
    "change",
    [
        {"heads": None},
        {"heads": [[0, 0], [0, 2**63]]},
        {"heads": [[0, 0], [0, 10**400]]},
        {"scores": [1.0, 10**400]},
        {"scores": [1.0, 10**300]},
        {"shares": [0.5]},
        {"sha256": None},
        {"sha256": "0" * 64},
        {"criterion": 3},
        {"heads": 3},
        {"heads": {"0": [1]}},
        {"heads": [[0, 0], [0, 0]]},
        {"heads": [[0, 0], [0, "1"]]},
        {"heads": [[0, 0], [0]]},
        {"heads": [[0, 0], [0, 1.5]]},
        {"scores": [1.0]},
        {"scores": 3},
        {"scores": [1.0, None]},
        {"scores": [1.0, "2"]},
        {"scores": [1.0, float("nan")]},
        {"scores": [1.0, float("inf")]},
        {"scores": {"a": 1, "b": 2}},
    ],
)
def test_damaged_content(tmp_path, change):
    path = tmp_path / "ranking.json"
    path.write_text(json.dumps(good_content() | change))
    with pytest.raises(RankingFileError, match=r"ranking.json' is (damaged|not JSON)"):
        HeadRanking.load(path)


@pytest.mark.parametrize("key", ["heads", "scores", "criterion"])
def test_missing_key(tmp_path, key):
    content = good_content()
    del content[key]
    (tmp_path / "ranking.json").write_text(json.dumps(content))
    with pytest.raises(RankingFileError, match=rf"is damaged \(it lacks, or should not have, '{key}'"):
        HeadRanking.load(tmp_path / "ranking.json")


@pytest.mark.parametrize("foreign", ["{}", "[]", "null", "3", '"text"', '{"format": "other"}', '{"heads": [[0, 0]]}'])
def test_foreign_json(tmp_path, foreign):
    (tmp_path / "ranking.json").write_text(foreign)
    with pytest.raises(RankingFileError, match=r"is not a head ranking \(its format is .*expected"):
        HeadRanking.load(tmp_path / "ranking.json")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"{", b"heads: [[0, 0]]", b"\x00" * 50, b"[" * 100_000])
def test_no_json(tmp_path, content):
    (tmp_path / "ranking.json").write_bytes(content)
    with pytest.raises(RankingFileError, match=r"is not JSON"):
        HeadRanking.load(tmp_path / "ranking.json")


def test_file_cut_anywhere(tmp_path):
    path = tmp_path / "ranking.json"
    HeadRanking(HEADS, [1.0, 2.0, 3.0, 4.0], "gate").save(path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(RankingFileError):
            HeadRanking.load(path)


def test_a_number_beyond_all_floats_is_refused():
    for score in (10**400, -(10**400), 10**5000):
        with pytest.raises(PapaError, match=r"scores has .* for head \(0, 0\): only finite"):
            HeadRanking([(0, 0)], [score])


def test_names_that_stand_twice_are_refused(tmp_path):
    text = json.dumps(good_content())
    (tmp_path / "ranking.json").write_text(text[:-1] + ', "heads": [[0, 1], [0, 0]]}')
    with pytest.raises(RankingFileError, match=r"is not JSON \(it has 'heads' twice\)"):
        HeadRanking.load(tmp_path / "ranking.json")


@pytest.mark.parametrize("number", ["1e400", "NaN", "-Infinity", "1" + 5000 * "0"])
def test_numbers_that_json_does_not_have(tmp_path, number):
    text = json.dumps(good_content() | {"scores": [0.0, "X"]}).replace('"X"', number)
    (tmp_path / "ranking.json").write_text(text)
    with pytest.raises(RankingFileError, match=r"is not JSON .*is no number of JSON"):
        HeadRanking.load(tmp_path / "ranking.json")


def test_many_heads_and_one_twice():
    heads = [(0, head) for head in range(200_000)]
    assert len(HeadRanking(heads).heads) == 200_000
    with pytest.raises(PapaError, match=r"\(0, 199999\) more than once"):  # in time that grows with their number
        HeadRanking([*heads, (0, 199_999)])


def test_no_file(tmp_path):
    with pytest.raises(RankingFileError, match=r"cannot be read \(No such file"):
        HeadRanking.load(tmp_path / "missing.json")
    with pytest.raises(RankingFileError, match=r"cannot be read \(Is a directory"):
        HeadRanking.load(tmp_path)


def test_the_table_has_every_head_by_layer():
    table = HeadRanking(HEADS, [0.0, 0.5, 0.5, 2.0], "gate").table()
    assert table.index.names == ["layer", "head"]
    assert table.loc[1].to_dict() == {"place": {0: 1, 1: 4}, "score": {0: 0.0, 1: 2.0}}
    assert table["place"].unstack().to_numpy().tolist() == [[3, 2], [1, 4]]
    assert HeadRanking(HEADS).table()["score"].isna().all()
    assert len(HeadRanking([]).table()) == 0


def test_prompts_and_notebooks_show_it():
    ranking = HeadRanking(HEADS, criterion="gate")
    assert repr(ranking) == "HeadRanking('gate', 4 heads, (1, 0) first, (1, 1) last)"
    assert repr(HeadRanking([])) == "HeadRanking('unnamed', 0 heads)"
    assert "data:image/png;base64,iVBOR" in ranking._repr_html_()
    assert "<img" not in HeadRanking([])._repr_html_()
