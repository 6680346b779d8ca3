"""Damaged files of constants, rankings and results: our own error each, or something valid; never anything else."""

import io
import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from conformance.fuzzing import examples
from hypothesis import given
from hypothesis import strategies as st

from papa_lightning import AttentionConstants, HeadRanking
from papa_lightning.errors import ConstantsFileError, RankingFileError, ResultFileError
from papa_lightning.study.results import CellResult

CONSTANTS = AttentionConstants(torch.rand(2, 3, 4, 4), torch.ones(4, 4), {"sequences": 3}, variance=torch.rand(2, 3))
RANKING = HeadRanking([(0, 1), (1, 0), (0, 0)], [0.5, 1.5, 2.5], "gate")
RESULT = CellResult(
    encoder="minilm",
    task="sst2",
    criterion="random:3",
    share=0.5,
    constant_heads=36,
    total_heads=72,
    seed=7,
    constants="average",
    metric="accuracy",
    scores={"accuracy": 0.8125},
    seconds=12.5,
    versions={"torch": "2"},
    hash="0a",
    level_weights=[0.1, 0.2],
)
KINDS = {
    "constants": (CONSTANTS, ConstantsFileError),
    "ranking": (RANKING, RankingFileError),
    "result": (RESULT, ResultFileError),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def places(value, path=()):
    """The path to every value in a JSON tree."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def damages(draw, whole):
    """Bytes that were cut, overwritten, lost or put in, or one value in the text that became another."""
    kind = draw(st.sampled_from(["cut", "overwritten", "lost", "put in", "value", "value", "value"]))
    start = draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        return whole[:start]
    if kind == "value":
        size = struct.unpack("<Q", whole[:8])[0] if whole[:1] != b"{" else None
        text, rest = (whole, b"") if size is None else (whole[8 : 8 + size], whole[8 + size :])
        tree = json.loads(text)
        path = draw(st.sampled_from(list(places(tree))))
        changed = json.dumps(replaced(tree, path, draw(JSON))).encode()
        return changed if size is None else struct.pack("<Q", len(changed)) + changed + rest
    some = draw(st.binary(min_size=1, max_size=8))
    skipped = {"overwritten": len(some), "lost": draw(st.integers(1, 8)), "put in": 0}[kind]
    return whole[:start] + (b"" if kind == "lost" else some) + whole[start + skipped :]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    saved, error = KINDS[kind]
    path, outcomes = tmp_path / "file", []
    saved.save(path)
    whole = path.read_bytes()

    @examples(200)
    @given(content=damages(whole))
    def damaged_file(content):
        path.write_bytes(content)
        try:
            loaded = type(saved).load(path)
        except error:
            outcomes.append("refused")
        else:  # a name or a number may have become another one: as good as any
            loaded.save(tmp_path / "again")
            type(saved).load(tmp_path / "again")
            outcomes.append("read")

    damaged_file()
    print(f"{kind}: {outcomes.count('refused')} of {len(outcomes)} refused")  # shown by pytest -s
    assert outcomes.count("refused") >= 0.6 * len(outcomes) >= 100
    assert [entry.name for entry in tmp_path.iterdir() if entry.name not in ("file", "again")] == []


class Bomb:
    """Code in a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", ["pickle", "torch", "torch-legacy"])
def test_no_code_of_a_file_is_run(kind, packed, tmp_path):
    saved, error = KINDS[kind]
    path, marker, buffer = tmp_path / "file", tmp_path / "marker", io.BytesIO()
    if packed == "pickle":
        pickle.dump(Bomb(marker), buffer)
    else:
        torch.save(Bomb(marker), buffer, _use_new_zipfile_serialization=packed == "torch")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(error):
        type(saved).load(path)
    assert not marker.exists()
