"""The example server: batches, answers, loads, and the table of what makes it faster.

Graphs take seconds to be made, so that onnxruntime is tried with a hand-made one, and with all of them with PAPA_FUZZ
above 1 only.
"""

import gc
import os
import re
import shlex
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from papa_lightning import AttentionConstants, export_encoder, swap_attention

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving"
PAGE = EXAMPLE.parents[1] / "docs" / "serving.md"
sys.path.insert(0, str(EXAMPLE))
import serve  # noqa: E402
import server  # noqa: E402
import serving_table as tables  # noqa: E402

sys.path.pop(0)

ALL = float(os.environ.get("PAPA_FUZZ", "1")) > 1
LENGTH = 64
ROWS = [list(range(5, 5 + count)) for count in (3, 14, 2, 9, 9, 1, 5, 14)]
LINES = ["a film", "a very good film", "no", "it is", "so bad", "one of the best", "what a film", "never again"]


@pytest.fixture(scope="module")
def swapped(encoder_folder: str) -> Any:
    generator = torch.Generator().manual_seed(0)
    constants = AttentionConstants(torch.rand(2, 2, LENGTH, LENGTH, generator=generator), torch.ones(LENGTH, LENGTH))
    encoder: Any = AutoModel.from_pretrained(encoder_folder, add_pooling_layer=False).eval()
    return swap_attention(encoder, "constant", constants=constants, heads=[(0, 0), (0, 1), (1, 1)])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("\n\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path / "text.txt"


def lengths(rows: list[list[int]]) -> np.ndarray[Any, Any]:
    """Stand-in of an encoder: the numbers of tokens, and the first of them."""
    return np.array([[len(row), row[0]] for row in rows], dtype=float)


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> Any:
    monkeypatch.setattr("sys.argv", ["", *map(str, words)])
    return module.main()


def test_batches_have_all_rows_once_and_few_tokens() -> None:
    counts = [len(row) for row in ROWS]
    packed, ordered = server.by_tokens(28)(counts), server.in_order(3)(counts)
    for batches in (packed, ordered):
        assert sorted(place for batch in batches for place in batch) == list(range(len(ROWS)))
    assert all(len(batch) * max(counts[place] for place in batch) <= 28 for batch in packed)
    assert packed[-1] == [1, 7]  # of one length
    assert [list(batch) for batch in ordered] == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("layout", ["plain", "segment"])
def test_answers_are_those_of_the_encoder(layout: server.Layout, swapped: Any) -> None:
    forward = server.TorchForward(swapped, layout, LENGTH)
    with server.Server(forward, server.by_tokens(28)) as running:
        futures = [running.submit(row) for row in ROWS]
        answers = [future.result(timeout=60) for future in futures]
    assert sum(rows for rows, _ in running.batches) == len(ROWS)
    assert all(tokens <= 28 for _, tokens in running.batches)
    for row, answer in zip(ROWS, answers, strict=True):
        ids, mask = torch.zeros(2, 1, LENGTH, dtype=torch.int64)
        columns = [*range(len(row) - 1), LENGTH - 1 if layout == "segment" else len(row) - 1]
        ids[0, columns], mask[0, columns] = torch.tensor(row), 1
        with torch.no_grad():
            hidden = swapped(input_ids=ids, attention_mask=mask).last_hidden_state
        assert np.abs(answer - hidden[0, columns].mean(0).numpy()).max() < 1e-5


def test_what_waits_is_one_batch_and_all_of_it_is_answered_before_the_end() -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def slow(rows: list[list[int]]) -> Any:
        begun.set()
        may_go_on.wait(60)
        return lengths(rows)

    with server.Server(slow, server.in_order(100)) as running:
        first = running.submit(ROWS[0])
        assert begun.wait(60)
        futures = [running.submit(row) for row in ROWS[1:]]
        assert futures[2].cancel()
        may_go_on.set()
    assert [rows for rows, _ in running.batches] == [1, len(ROWS) - 2]
    answered = [future.result(timeout=0)[0] for future in [first, *futures] if not future.cancelled()]
    assert answered == [len(row) for place, row in enumerate(ROWS) if place != 3]


def test_those_who_asked_hear_of_an_error_and_the_server_goes_on() -> None:
    def fail_at_nine(rows: list[list[int]]) -> Any:
        if any(len(row) == 9 for row in rows):
            raise MemoryError("nine tokens")
        return lengths(rows)

    with server.Server(fail_at_nine, server.in_order(1)) as running:
        futures = [running.submit(row) for row in ROWS]
        with pytest.raises(ValueError, match="a request has no tokens: send at least one"):
            running.submit([])
        errors = [future.exception(timeout=60) for future in futures]
    assert [isinstance(error, MemoryError) for error in errors] == [len(row) == 9 for row in ROWS]


def test_latencies_count_from_the_time_of_arrival() -> None:
    """A server that needs 20 ms a request and is offered one every 2 ms lets the last ones wait for all before."""

    def slow(rows: list[list[int]]) -> Any:
        time.sleep(0.02 * len(rows))
        return lengths(rows)

    rows = ROWS * 2
    load = serve.offer(slow, server.in_order(1), rows, rate=500.0)
    arrivals = np.cumsum(np.random.default_rng(0).exponential(1 / 500, size=len(rows)))
    assert (load.latencies >= 0.02).all()
    assert load.latencies[-1] >= 0.02 * len(rows) - arrivals[-1]
    assert load.rate <= 50
    assert load.tokens == sum(map(len, rows))
    assert dict(zip(serve.COLUMNS, load.cells(), strict=True))["padding"] == "0 %"
    quick = serve.offer(lengths, server.in_order(4), rows, rate=float("inf"))
    assert quick.cells()[0] == "all at once"


def test_a_graph_that_takes_position_ids(tmp_path: Path) -> None:
    """Its hidden state of a token is its position id, so that the mean shows where tokens are said to have stood."""
    pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx").helper
    types = pytest.importorskip("onnx").TensorProto
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = [helper.make_tensor_value_info(name, types.INT64, ["batch", "length"]) for name in names]
    output = helper.make_tensor_value_info("last_hidden_state", types.FLOAT, ["batch", "length", 1])
    last = helper.make_tensor("last", types.INT64, [1], [2])
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["cast"], to=types.FLOAT),
        helper.make_node("Unsqueeze", ["cast", "last"], ["last_hidden_state"]),
    ]
    graph = helper.make_graph(nodes, "positions", inputs, [output], [last])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "papa.json").write_text('{"first_position_id": 2}')
    rows = [[7, 8, 9, 10], [7, 8]]
    plain = server.OnnxForward(tmp_path / "model.onnx")(rows)
    assert plain.ravel().tolist() == [2 + 1.5, 2 + 0.5]
    holes = server.OnnxForward(tmp_path / "model.onnx", "segment", LENGTH)(rows)
    assert holes.ravel().tolist() == [2 + (0 + 1 + 2 + LENGTH - 1) / 4, 2 + (LENGTH - 1) / 2]


@pytest.mark.parametrize("runtime", ["torch", *(["onnxruntime"] if ALL else [])])
def test_the_script(
    runtime: str,
    swapped: Any,
    encoder_folder: str,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder)
    folder = export_encoder(swapped, tmp_path / "exported", tokenizer, onnx=runtime == "onnxruntime")
    words = [folder, "--text", text, "--runtime", runtime, "--requests", 12, "--shares", 0.5, "--threads", 1]
    loads = run(serve, monkeypatch, *words)
    assert [len(load.latencies) for load in loads] == [12, 12]
    assert loads[0].offered == pytest.approx(0.5 * loads[1].rate)
    printed = capsys.readouterr().out
    assert f"exported in {runtime}, 1 threads, 12 requests a load" in printed
    assert re.search(r"^all at once( +[\d.]+){5} +\d+ %$", printed, re.MULTILINE)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SystemExit, match=r"empty\.txt has no lines: pass a file with a sentence a line"):
        run(serve, monkeypatch, folder, "--text", tmp_path / "empty.txt")


def test_the_page(swapped: Any, encoder_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code runs, and the options of its commands exist."""
    blocks = re.findall(r"```(python|sh)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    export_encoder(swapped, "exported")
    names: dict[str, Any] = {"tokenizer": AutoTokenizer.from_pretrained(encoder_folder)}
    exec(next(text for language, text in blocks if language == "python"), names)
    assert [len(one) for one in names["embeddings"]] == [16, 16]
    for command in "".join(text for language, text in blocks if language == "sh").splitlines():
        _, script, *words = shlex.split(command)
        source = (EXAMPLE.parents[1] / script).read_text(encoding="utf-8")
        assert all(f'add_argument("{word}"' in source for word in words if word.startswith("--"))


def test_rows_of_the_table() -> None:
    found = [str(one) for one in tables.variants(["onnxruntime"])]
    assert found == [
        "stock",
        "half constant",
        "all constant",
        "folded",
        "int8",
        "packing",
        "half constant, int8, packing",
        "all constant, int8, packing",
        "folded, int8, packing",
    ]
    assert not any("int8" in str(one) for one in tables.variants(["torch"]))


def test_cells_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 32 in their order, or packed, of the same file; a score of each file."""
    seen: list[int] = []
    wanted = [tables.Variant("torch", "stock"), tables.Variant("torch", "stock", packed=True)]
    forwards = {wanted[0]: (lambda rows: seen.append(len(rows)) or lengths(rows), 2_500_000)}
    rows = ROWS * 10
    monkeypatch.setattr(gc, "collect", lambda: 0)  # it takes long in a process with so many modules
    table = tables.make_table(wanted, forwards, rows, lambda forward: 0.125, repeats=1)
    assert [row[:3] for row in table.rows] == [("torch", "stock", "2.5"), ("torch", "packing", "2.5")]
    assert {row[-1] for row in table.rows} == {"0.1250"}
    assert seen[: 2 * len(rows)] == [1] * 2 * len(rows)  # one by one, and before that to warm up
    assert seen[2 * len(rows) :][:3] == [32, 32, 16]
    assert np.array_equal(tables.embed(lengths, rows, packed=True), lengths(rows))


def test_the_score_of_pairs(tmp_path: Path) -> None:
    pairs = pd.DataFrame({"sentence1": ["5 1", "1 9", "1 1"], "sentence2": ["5 1", "9 1", "1 2"], "score": [5, 0, 3]})

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[int(word) for word in one.split()] for one in texts]

    def numbers(rows: list[list[int]]) -> Any:
        return np.array(rows, dtype=float)

    assert tables.spearman(pairs, tokenize)(numbers) == pytest.approx(1)
    assert tables.spearman(pairs.assign(score=[0, 5, 3]), tokenize)(numbers) == pytest.approx(-1)
    pairs.rename(columns={"score": "label"}).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(SystemExit, match=r"has the columns \['sentence1', 'sentence2', 'label'\], but must have"):
        tables.read_pairs(tmp_path / "pairs.csv", "")


def test_the_table_of_an_encoder(
    encoder_folder: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pd.DataFrame({"sentence1": LINES[:4], "sentence2": LINES[4:], "score": [1.0, 2.0, 4.0, 3.0]})
    pairs.to_csv(tmp_path / "pairs.csv", index=False)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    runtimes = ["torch", "onnxruntime"] if ALL else ["torch"]
    words = [encoder_folder, "--text", text, "--pairs", tmp_path / "pairs.csv", "--prefix", "query: ", "--threads", 1]
    words += ["--max_length", LENGTH, "--calibrated", 5, "--served", 3, "--repeats", 1, "--runtimes", *runtimes]
    table = run(tables, monkeypatch, *words)
    printed = capsys.readouterr()
    assert "| torch | half constant, packing |" in printed.out
    assert "3 sentences of " in printed.err
    assert len(table.rows) == len(tables.variants(runtimes))
    assert all(-1 <= float(row[-1]) <= 1 for row in table.rows)
    sizes = {row[1]: row[2] for row in table.rows if row[0] == runtimes[-1]}
    assert sizes["stock"] == sizes["packing"]
