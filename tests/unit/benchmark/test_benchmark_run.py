"""A whole benchmark of a tiny encoder: variants, rows, memory, files and figures."""

import dataclasses
import json
import math

import pytest
import torch
from transformers import AutoModel
from unit.encoders import tiny_encoders

from papa_lightning.benchmark import (
    BenchmarkResult,
    BenchmarkSettings,
    ShapeSettings,
    format_result,
    markdown,
    run,
    run_benchmark,
    write_benchmark,
)
from papa_lightning.benchmark.encoders import choose_heads, copy_of, make_batches, make_stock, random_constants
from papa_lightning.encoders import swap_attention
from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.runtime import held_bytes

CPU = torch.device("cpu")


def make_settings(**changed):
    values = {
        "shape": ShapeSettings(hidden=[16], layers=[2], heads=[2]),
        "inputs": ["3x8"],
        "kinds": ["constant", "gated", "folded", "compact", "calibration"],
        "shares": [0.5, 1],
        "device": "cpu",
        "threads": 1,
        "repeats": 7,
        "warmup": 0,
    }
    values |= changed
    options = {"compact": {"width": 2}} if "compact" in values["kinds"] else {}
    return BenchmarkSettings(**values, options=options)


@pytest.fixture(scope="module")
def result():
    """One for all tests that only look; of two seconds."""
    return run_benchmark(make_settings(inputs=["3x8", "3x12", "3x16"], backends=["sdpa", "eager"]), progress=False)


def test_what_is_finished_is_kept_when_the_rest_fails(tmp_path, monkeypatch):
    settings, measure = make_settings(inputs=["3x8", "3x12"], kinds=["constant"], shares=[1]), run._measure

    def fail_at_twelve(own, size, device):
        if size.length == 12:
            raise KeyboardInterrupt
        return measure(own, size, device)

    monkeypatch.setattr(run, "_measure", fail_at_twelve)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(settings, progress=False, keep=lambda finished: finished.save(tmp_path))
    kept = BenchmarkResult.load(tmp_path / "results.json")
    assert {row.length for row in kept.rows} == {8}
    assert [row.kind for row in kept.rows] == ["stock", "constant"]


def test_rows(result):
    table = result.table()
    assert len(table) == 3 * (2 + 4 + 2 + 1 + 4 + 1)
    own = table[table["length"] == 12]
    assert list(own["kind"][:3]) == ["stock", "stock", "constant"]
    assert set(own.loc[own["kind"].isin(["constant", "compact"]), "share"]) == {0.5, 1.0}
    assert own.loc[~own["kind"].isin(["constant", "compact"]), "share"].isna().all()
    assert own.iloc[0][["backend", "bound", "work", "section"]].tolist() == ["sdpa", 1.0, "forward", ""]
    fastest = min(own.iloc[0].seconds, own.iloc[1].seconds)
    for row in own.itertuples():
        assert 0 < row.low <= row.seconds <= row.high
        assert row.speed == pytest.approx(fastest / row.seconds)
        assert row.sequences_per_second == pytest.approx(3 / row.seconds)
        assert row.tokens_per_second == pytest.approx(36 / row.seconds)


def test_every_kind_of_the_registry_can_be_measured():
    from papa_lightning.attention import KINDS

    settings = make_settings(kinds=sorted(set(KINDS) - {"dynamic"}), shares=[1], inputs=["1x40"])  # wide windows
    found = run_benchmark(settings, progress=False)
    assert {row.kind for row in found.rows} == {*settings.kinds, "stock"}


def test_medians_are_those_of_the_times(monkeypatch):
    made = {"stock": [8.0, 1.0, 4.0, 2.0, 6.0, 3.0, 5.0], "constant": [2.0, 2.0, 2.0, 2.0, 2.0, 9.0, 1.0]}

    def times(runs, repeats, warmup, synchronize, before):
        assert (repeats, warmup) == (7, 0)
        return {variant: made[variant.kind] for variant in runs}

    monkeypatch.setattr(run, "interleaved_times", times)
    settings = make_settings(kinds=["constant"], shares=[1], batches=2, padding=0.25, inputs=["2x8"])
    stock, constant = run_benchmark(settings, progress=False).rows
    assert (stock.seconds, stock.low, stock.high) == (2.0, 1.25, 2.75)  # of one of two batches
    assert (constant.seconds, constant.speed) == (1.0, 2.0)
    quotients = sorted(one / other for one, other in zip(made["stock"], made["constant"], strict=True))
    assert (constant.speed_low, constant.speed_high) == (sum(quotients[1:3]) / 2, sum(quotients[4:6]) / 2)
    assert constant.sequences_per_second == 2 / 1.0
    assert constant.tokens_per_second == (8 + 4) / 1.0
    assert constant.reached == pytest.approx(2.0 / constant.bound)


def test_the_bound_is_that_of_whole_heads(result):
    table = result.table()
    rows = table[(table["kind"] == "constant") & (table["length"] == 8)]
    dense, saved = 12 * 16 + 2 * 8, 2 * 16 + 8
    bounds = dict(zip(rows["share"], rows["bound"], strict=True))
    assert bounds == {0.5: pytest.approx(dense / (dense - saved / 2)), 1.0: pytest.approx(dense / (dense - saved))}
    (third,) = run_benchmark(make_settings(kinds=["constant"], shares=[0.3]), progress=False).rows[1:]
    assert third.bound == pytest.approx(dense / (dense - saved / 4))  # 1 of 4 heads


def test_what_kinds_keep(result):
    table = result.table().query("length == 8 and backend == 'sdpa'")
    held = {(row.kind, row.share): row.held_bytes for row in table.itertuples() if row.share != 0.5}
    found = {kind: size for (kind, _), size in held.items()}
    assert found["stock"] == 0
    assert found["calibration"] == 8 * (2 * 2 * 8 * 8 + 8 * 8 + 2 * 2 + 1)  # its sums, counts, squares and number
    assert found["constant"] == 4 * 2 * 2 * 8 * 8
    assert found["gated"] == found["constant"] + 4 * 2 * 2
    assert found["folded"] == 4 * 2 * 8 * 8
    assert found["compact"] == 4 * 2 * 2 * (8 + 5)


def test_peaks_above_the_model(result):
    table = result.table()
    assert (table["peak_bytes"] > 0).all()
    # Eager attention has the matrices of all heads; sdpa has not.
    stock = table[(table["kind"] == "stock") & (table["length"] == 16)].set_index("backend")["peak_bytes"]
    assert stock["eager"] > stock["sdpa"]
    # The sums of a calibration are what it keeps, and not part of its peak.
    calibration = table[table["kind"] == "calibration"].set_index("length")["peak_bytes"]
    assert calibration[16] < stock["eager"] + 8 * 2 * 2 * 16 * 16


def test_copies_share_the_parameters():
    encoder = tiny_encoders.build(dtype=torch.float32)
    copied = copy_of(encoder)
    assert held_bytes(copied, without=encoder) == 0
    assert held_bytes(encoder, without=torch.nn.Linear(2, 2)) > 0
    constants = random_constants(encoder, 8, shared=False, seed=0)
    swap_attention(copied, "constant", constants=constants)
    assert not any(".papa." in name for name, _ in encoder.named_parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())  # of the copy, queries are frozen
    assert not all(parameter.requires_grad for parameter in copied.parameters())
    assert torch.equal(constants.values.sum(-1).round(decimals=4), torch.ones(3, 4, 8))
    assert not torch.equal(constants.values[0, 0], constants.values[0, 1])


def test_padding_has_its_share():
    (size,) = make_settings(inputs=["5x40"]).sizes()
    padded = dataclasses.replace(size, padding=0.2)
    mask = make_batches(make_settings(), padded, CPU, 50)[0]["attention_mask"]
    lengths = mask.sum(dim=1)
    assert (int(lengths.max()), int(lengths.min())) == (40, 24)
    assert float(1 - mask.float().mean()) == pytest.approx(0.2)
    full = make_batches(make_settings(), size, CPU, 50)[0]
    assert full["attention_mask"].all()
    assert (full["input_ids"] > 0).all()


def test_heads_of_a_share():
    settings = make_settings(shape=ShapeSettings(hidden=[16], layers=[4], heads=[4]))
    encoder = make_stock(settings, settings.sizes()[0], CPU)

    def chosen(placement, share=0.5, seed=0):
        return choose_heads(encoder, dataclasses.replace(settings, placement=placement, seed=seed), share)

    assert chosen("layers") == [(layer, head) for layer in (0, 1) for head in range(4)]
    assert chosen("every_layer") == [(layer, head) for layer in range(4) for head in (0, 1)]
    assert set(chosen("random", 0.25)) < set(chosen("random"))
    assert chosen("random") != chosen("random", seed=1)
    assert (len(chosen("random")), len(chosen("random", 1.0)), chosen("random", 0.0)) == (8, 16, [])


def test_files(result, tmp_path):
    paths = write_benchmark(result, tmp_path / "new")
    assert [path.name for path in paths] == ["results.json", "results.csv", "results.md", "growth.svg", "growth.png"]
    again = BenchmarkResult.load(paths[0])
    assert list(again.rows) == list(result.rows)
    assert again.settings == json.loads(json.dumps(result.settings))
    assert {"cpu", "threads", "dtype", "seed", "versions", "device"} <= set(again.about)
    assert paths[1].read_text().count("\n") == len(result.rows) + 1
    assert paths[2].read_text() == markdown(again)


def test_a_file_of_something_else_is_refused(tmp_path):
    for number, text in enumerate(["{}", '{"format": "other"}', "no json", '{"format": "papa_lightning.benchmark/1"}']):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ResultFileError, match="results of a benchmark"):
            BenchmarkResult.load(path)
    with pytest.raises(ResultFileError, match=r"none\.json"):
        BenchmarkResult.load(tmp_path / "none.json")


def test_an_encoder_of_a_folder_and_no_path_of_it(tmp_path):
    AutoModel.from_config(tiny_encoders.make_config("bert")).save_pretrained(tmp_path / "mine")
    settings = make_settings(encoder=str(tmp_path / "mine"), shape=ShapeSettings(), kinds=["constant"], shares=[1])
    found = run_benchmark(settings, progress=False)
    assert {(row.encoder, row.hidden, row.layers, row.heads) for row in found.rows} == {("mine", 32, 3, 4)}
    found.save(tmp_path)
    assert str(tmp_path) not in (tmp_path / "results.json").read_text()
    with pytest.raises(PapaError, match=r"inputs has 1x600, but the encoder's sequences must be .*24"):
        run_benchmark(dataclasses.replace(settings, inputs=["1x600"]), progress=False)


def test_other_types_other_dtypes_and_backends():
    shape = ShapeSettings(type="deberta-v2", hidden=[16], layers=[1], heads=[2])
    for row in run_benchmark(make_settings(shape=shape, kinds=["constant"]), progress=False).rows:
        assert math.isfinite(row.speed)
    halves = make_settings(kinds=["constant"], shares=[1], dtype="bfloat16", backends=["flash"])
    *_, constant = run_benchmark(halves, progress=False).rows
    assert constant.held_bytes == 2 * 2 * 2 * 8 * 8
    assert constant.backend == "flash"


def test_nothing_of_the_caller_is_changed(monkeypatch):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    threads = torch.get_num_threads()

    def times(runs, repeats, warmup, synchronize, before):
        assert torch.get_num_threads() == threads + 1
        return {variant: [1.0, 1.0] for variant in runs}

    monkeypatch.setattr(run, "interleaved_times", times)
    monkeypatch.setattr(run, "peak_bytes", lambda run, device: run())
    run_benchmark(make_settings(kinds=["constant"], shares=[1], threads=threads + 1), progress=False)
    assert (torch.rand(1), torch.get_num_threads()) == (expected, threads)
    assert torch.is_inference_mode_enabled() is False


def test_words(result):
    text = str(format_result(result))
    assert "\nbert, hidden 16, 2 layers, 2 heads, 3 x 12 tokens\n" in text
    assert "constant 50 %, eager" in text
    assert "exponents of growth" in text
    assert f"{result.about['cpu']} (" in text
    lines = markdown(result).split("\n\n")[1].splitlines()
    assert len(lines) == len(result.rows) + 2
    assert len({line.count("|") for line in lines}) == 1
