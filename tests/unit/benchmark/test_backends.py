"""How an encoder is run: forward or training, packed, captured, and what its times are compared with."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from unit.encoders import tiny_encoders

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, run_benchmark
from papa_lightning.benchmark.backends import BACKENDS, Captured, Way
from papa_lightning.benchmark.encoders import copy_of
from papa_lightning.benchmark.run import Variant, reference_of, variants
from papa_lightning.encoders import swap_attention
from papa_lightning.errors import PapaError

TINY = {"shape": ShapeSettings(hidden=[16], layers=[2], heads=[2]), "inputs": ["3x8"], "device": "cpu"}


def make_settings(**changed):
    return BenchmarkSettings(**(TINY | {"threads": 1, "repeats": 7, "warmup": 0} | changed))


def names(settings, **size):
    (first, *_) = settings.sizes()
    found = variants(settings, dataclasses.replace(first, **size))
    return [f"{one.kind} {one.backend} {one.work}" for one in found]


def test_what_has_no_dynamic_attention_is_measured_once_in_each_mode():
    settings = make_settings(kinds=["folded", "constant"], backends=["eager", "graph"])
    assert names(settings) == [
        "stock sdpa forward",
        "stock eager forward",
        "stock graph forward",
        "folded sdpa forward",
        "folded graph forward",
        "constant eager forward",
        "constant graph forward",
    ]


def test_flash_is_left_out_where_there_is_padding():
    settings = make_settings(kinds=["constant"], backends=["flash"], padding=[0, 0.3])
    assert "constant flash forward" in names(settings)
    assert "constant flash forward" not in names(settings, padding=0.3)


def test_a_calibration_is_compared_with_a_forward_whatever_else_is_timed():
    found = names(make_settings(kinds=["calibration"], work=["training"], backends=["packed"]))
    assert found == [
        "stock sdpa training",
        "stock packed training",
        "stock sdpa forward",
        "calibration sdpa forward",
    ]


def test_times_are_compared_with_the_fastest_stock_of_their_mode():
    seconds = {"sdpa": 3.0, "eager": 2.0, "compile": 4.0, "packed": 1.0}
    times = {Variant("stock", None, name, "forward"): [one, one] for name, one in seconds.items()}
    times |= {
        Variant("stock", None, "sdpa", "training"): [9.0, 9.0],
        Variant("constant", 1.0, "sdpa", "forward"): [1, 1],
    }

    def reference(backend, work="forward"):
        found = reference_of(Variant("constant", 1.0, backend, work), times)
        return found.backend, found.work

    assert reference("sdpa") == reference("eager") == ("eager", "forward")
    assert reference("compile") == ("compile", "forward")
    assert reference("packed") == ("eager", "forward")  # padded, because stock packs nothing
    assert reference("sdpa", "training") == ("sdpa", "training")


def test_training_steps_of_all_variants():
    settings = make_settings(kinds=["constant", "learned"], shares=[0.5, 1], work=["training", "forward"])
    found = run_benchmark(settings, progress=False)
    assert [(row.kind, row.work) for row in found.rows[:4]] == [
        ("stock", "training"),
        ("stock", "forward"),
        ("constant", "training"),
        ("constant", "forward"),
    ]
    training = {(row.kind, row.share): row for row in found.rows if row.work == "training"}
    assert all(row.bound is None for row in training.values())
    assert training["stock", None].peak_bytes > next(row for row in found.rows if row.work == "forward").peak_bytes
    # Queries and keys of constant heads are frozen, and their gradients take no memory.
    assert training["constant", 1.0].peak_bytes < training["stock", None].peak_bytes


def test_a_training_pass_leaves_no_gradients_and_a_frozen_copy_does_not_freeze_stock():
    encoder = tiny_encoders.build(dtype=torch.float32)
    frozen = swap_attention(copy_of(encoder), "constant", constants=tiny_encoders.make_constants(dtype=torch.float32))
    batch = tiny_encoders.make_inputs()
    seen = []
    for one in (frozen, encoder):
        run = Way(BACKENDS["sdpa"], [batch], "training").pass_of(one)
        hooks = [p.register_post_accumulate_grad_hook(seen.append) for p in one.parameters() if p.requires_grad]
        run()
        for hook in hooks:
            hook.remove()
        assert all(parameter.grad is None for parameter in one.parameters())
    assert encoder.encoder.layer[0].attention.self.query.weight.requires_grad
    assert any(one is encoder.encoder.layer[0].attention.self.query.weight for one in seen)


def test_bf16_mixed_is_float32_under_autocast():
    settings = make_settings(dtype="bf16-mixed", kinds=["aft_simple"], work=["training"])
    row = run_benchmark(settings, progress=False).rows[-1]
    assert (row.kind, row.work) == ("aft_simple", "training")
    encoder, seen = tiny_encoders.build(dtype=torch.float32), []
    encoder.encoder.layer[0].attention.self.value.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    Way(BACKENDS["sdpa"], [tiny_encoders.make_inputs()], autocast=True).pass_of(encoder)()
    assert seen == [torch.bfloat16]


def test_packed_batches_have_real_tokens_alone():
    encoder, seen = tiny_encoders.build(dtype=torch.float32), []
    swap_attention(encoder, "constant", constants=tiny_encoders.make_constants(dtype=torch.float32))
    encoder.encoder.layer[0].register_forward_hook(lambda *given: seen.append(tuple(given[2].shape[:2])))
    batch = tiny_encoders.make_inputs(batch=1)
    short = {name: one.clone() for name, one in batch.items()}
    short["attention_mask"][:, 4:] = 0
    Way(BACKENDS["packed"], [batch, short, batch]).pass_of(encoder)()
    assert sorted(seen) == [(3, 10)]
    Way(BACKENDS["packed"], [short, short]).pass_of(encoder)()
    assert seen[-1] == (2, 4)


def test_an_encoder_that_is_not_packed_is_refused(monkeypatch):
    monkeypatch.setattr("papa_lightning.benchmark.backends.Packer.pack", lambda self, batch: None)
    with pytest.raises(PapaError, match=r"backends has 'packed', but batches of a bert are not: leave it out"):
        Way(BACKENDS["packed"], [tiny_encoders.make_inputs()]).pass_of(tiny_encoders.build())


def test_packed_rows_have_no_bound():
    settings = make_settings(kinds=["constant"], backends=["packed"], padding=0.3, batches=2)
    found = run_benchmark(settings, progress=False).rows
    assert [(row.kind, row.backend, row.bound is None) for row in found] == [
        ("stock", "sdpa", False),
        ("stock", "packed", True),
        ("constant", "packed", True),
    ]
    assert {row.padding for row in found} == {0.3}


def test_a_graph_is_captured_by_the_first_call_and_replayed_by_others(monkeypatch):
    done = []

    class Graph:
        def replay(self):
            done.append("replay")

    run = Captured(lambda: done.append("run"), torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(done.append(str(device))))
    monkeypatch.setattr(Captured, "_capture", lambda self: (self._run(), Graph())[1])
    for _ in range(3):
        run()
    assert done == ["cuda:1", "run", "cuda:1", "replay", "cuda:1", "replay"]
