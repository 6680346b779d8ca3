"""Numbers, shares and intervals as the report writes them."""

from papa_lightning.study.report.findings import (
    interval,
    number,
    percent,
    seeds_in_words,
    telling_shares,
)


def test_numbers():
    found = [number(0.81249), number(-0.0331, signed=True), number(1234.5), number(0.00004), number(float("nan"))]
    assert found == ["0.812", "\u22120.033", "1234.5", "4e\u22125", "not measured"]
    assert [percent(-0.03912), percent(-0.0001), percent(0.5, signed=False)] == ["\u22123.9 %", "0.0 %", "50.0 %"]
    assert [interval(-0.011, 0.003, True), interval(float("nan"), float("nan"))] == ["\u22121.1 to +0.3", ""]


def test_words():
    assert [seeds_in_words(1), seeds_in_words(5)] == ["one seed", "5 seeds"]


def test_shares_that_headlines_show():
    found = list(map(telling_shares, [[0.0, 0.4, 0.5, 0.9375, 1.0], [0.0, 1.0], [0.0]]))
    assert found == [[0.5, 1.0], [1.0], []]
