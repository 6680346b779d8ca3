"""Embeddings in a study: their answers as files, and intervals and verdicts over pairs and queries."""

import contextlib
import re
from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from papa_lightning.embeddings import Answers, RelevantPassages
from papa_lightning.errors import ResultFileError
from papa_lightning.study.intervals import resampled
from papa_lightning.study.predictions import load_predictions, same_examples, save_predictions
from papa_lightning.study.resampling import bounds_of, is_metric
from papa_lightning.study.results import CellResult, results_table
from papa_lightning.study.statistics import Evidence
from papa_lightning.study.summary import format_summary

NUMBER = 300


def pairs(noise, seed=0):
    """Pairs with golden similarities from 0 to 5, many of them equal, and cosines that follow them."""
    generator = torch.Generator().manual_seed(7)
    gold = torch.randint(0, 26, (NUMBER,), generator=generator).double() / 5
    error = torch.randn(NUMBER, generator=torch.Generator().manual_seed(seed)).double()
    return Answers("pairs", {"similarity": gold / 5 + noise * error, "gold": gold})


def queries():
    vectors = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    relevance = torch.tensor([[query, 2 * query, 1] for query in range(10)])
    return RelevantPassages(torch.arange(10), torch.arange(10, 40), relevance).answers(vectors)


def study(noises):
    """Cells and answers of a study: `noises` by criterion, share and kind of constants."""
    cells, kept = [], {}
    for (criterion, share, kind), noise in noises.items():
        key = f"{noise}"
        kept[key] = {"": pairs(noise)}
        names = {"encoder": "e", "task": "t", "criterion": criterion, "constants": kind, "metric": "spearman"}
        facts = {"constant_heads": round(8 * share), "total_heads": 8, "seconds": 1.0, "versions": {}, "seed": 0}
        cells.append(CellResult(**names, **facts, share=share, scores=kept[key][""].scores(), hash=key))
    return Evidence(results_table(cells), kept.get)


NOISES = {
    ("embedding", 0.0, "average"): 0.1,
    ("embedding", 0.5, "average"): 0.101,
    ("embedding", 1.0, "average"): 0.4,
    ("random:0", 0.5, "average"): 0.2,
    ("random:1", 0.5, "average"): 0.21,
    ("embedding", 1.0, "recovered"): 0.102,
}


@pytest.mark.parametrize("make", [lambda: pairs(0.2), queries])
def test_round_trip(tmp_path, make):
    sets = {"": make(), "held_out": make()}
    found = load_predictions(save_predictions(tmp_path / "one.parquet", sets))
    assert list(found) == list(sets)
    for name, one in sets.items():
        assert found[name].kind == one.kind
        assert found[name].scores() == one.scores()
        assert same_examples(found[name], one)


def test_other_pairs_are_not_the_same():
    other = Answers("pairs", pairs(0.2).columns | {"gold": pairs(0.2).columns["gold"].flip(0)})
    assert same_examples(pairs(0.2), pairs(0.5))
    assert not same_examples(pairs(0.2), other)
    assert not same_examples(pairs(0.2), queries())


@pytest.mark.parametrize("place", range(60, 1500, 197))
def test_a_damaged_file_is_refused(tmp_path, place):
    path = save_predictions(tmp_path / "one.parquet", {"": pairs(0.2)})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 4
    path.write_bytes(content)
    with contextlib.suppress(ResultFileError):  # unless it is a bit that nothing reads
        assert load_predictions(path)[""].scores() == pairs(0.2).scores()


def test_resamples_are_those_of_the_bootstrap():
    one, drawn = pairs(0.3), []
    resampled(NUMBER, lambda times: drawn.append(times) or times[:, :1], resamples=20)
    times = np.concatenate(drawn)
    chosen = [np.repeat(np.arange(NUMBER), row.astype(int)) for row in times]
    expected = [stats.spearmanr(*(one.columns[name][rows] for name in ("similarity", "gold")))[0] for rows in chosen]
    assert one.resampled("spearman", times) == pytest.approx(expected)


@cache
def whole():
    return study(NOISES)


def test_changes_are_settled_over_pairs():
    evidence = whole()
    own = evidence.summary[evidence.summary["is_score"]].set_index(["criterion", "share", "constants"])
    assert set(own["basis"]) == set(own["unit"]) == {"pairs"}
    assert set(own["examples"]) == {NUMBER}
    half, full = own.loc[("embedding", 0.5, "average")], own.loc[("embedding", 1.0, "average")]
    assert (half["verdict"], full["verdict"]) == ("within", "beyond")
    assert half["against_random_low"] > 0
    assert own.loc[("embedding", 0.0, "average"), "chance"] == 0
    assert evidence.notes == []  # none on seeds, which embeddings have not
    found = evidence.largest_within("e", "t", "embedding", "recovered")
    assert found is not None
    assert found["share"] == 1


def test_the_terminal_speaks_of_pairs():
    text = str(format_summary(whole().summary))
    assert "e on t: spearman; 300 pairs; constants: average; 95 % intervals over pairs" in " ".join(text.split())
    assert "constants: recovered" in text
    assert "seed" not in text
    assert "probe" not in text


def test_open_changes_need_pairs():
    changed = {place: noise for place, noise in NOISES.items() if place[1] == 0} | {("embedding", 0.5, "average"): 0.13}
    text = str(format_summary(study(changed).summary))
    assert re.search(r"50 %.*not settled: needs about [0-9,]+ pairs", text)


def test_metrics_have_bounds():
    assert bounds_of("pearson") == (-1, 1)
    assert bounds_of("ndcg@10/held_out") == (0, 1)
    assert is_metric("recall@100")
    assert not is_metric("loss")
