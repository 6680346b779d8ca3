"""Seconds by part: nothing counts twice, and nothing is lost."""

import time

import pytest

from papa_lightning.study.timing import Stopwatch, time_table


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def test_an_inner_part_stops_the_outer_one(clock: Clock) -> None:
    watch = Stopwatch()
    clock.now += 64  # outside of all parts
    with watch.part("storing"):
        clock.now += 1
        with watch.part("encoder"):
            clock.now += 2
        clock.now += 4
        with watch.part("encoder"):
            clock.now += 8
    clock.now += 128
    assert watch.take() == {"storing": 5.0, "encoder": 10.0}
    assert watch.take() == {}


def test_a_part_inside_itself_counts_once(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.part("probes"), watch.part("probes"):
        clock.now += 3
    assert watch.take() == {"probes": 3.0}


def test_a_failed_part_ends(clock: Clock) -> None:
    def fail() -> None:
        clock.now += 1
        raise KeyError

    watch = Stopwatch()
    with pytest.raises(KeyError), watch.part("probes"), watch.part("encoder"):
        fail()
    clock.now += 1
    with watch.part("loading"):
        clock.now += 1
    assert watch.take() == {"probes": 0.0, "encoder": 1.0, "loading": 1.0}


def test_seconds_from_elsewhere_are_added(clock: Clock) -> None:
    watch = Stopwatch()
    with watch.part("probes"):
        clock.now += 1
        watch.add({"probes": 2.0, "encoder": 4.0})
        assert watch.take() == {"probes": 3.0, "encoder": 4.0}
        clock.now += 8
    assert watch.take() == {"probes": 8.0}


def test_embeddings_have_parts_of_their_own() -> None:
    lines = str(time_table({"encoder": 6.0, "judging": 2.0, "recovery": 1.0}, wall=9.5)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["loading", "encoder", "recovery", "judging", "other"]


def test_the_table_has_every_part_and_says_what_is_summed() -> None:
    lines = str(time_table({"encoder": 6.0, "probes": 2.0}, wall=9.5)).splitlines()
    assert lines[0] == "Time: 9.5 s"
    found = {line.split()[0]: line.split()[-3:] for line in lines[2:]}
    assert list(found) == ["loading", "encoder", "storing", "probes", "other"]
    assert found["encoder"] == ["6.0", "75", "%"]
    assert found["other"] == ["0.0", "0", "%"]
    assert "summed over 3 workers" in str(time_table({"encoder": 1.0}, wall=1.0, num_workers=3))
