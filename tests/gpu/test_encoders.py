"""Whole encoders on a GPU against the same encoders on the CPU in float64: families, kinds, paddings, modes, gradients.

What the CPU computes is compared with attention written out by hand in tests/conformance. Here only the device, the
dtype and the mode differ.
"""

import copy
import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, T5EncoderModel

from papa_lightning import AttentionConstants, CompactConstants, restore_attention, swap_attention
from papa_lightning.encoders import Packer, gate_logits, learn_constants

LAYERS, HEADS, BATCH, LENGTH, LONGEST, VOCABULARY = 3, 4, 5, 40, 48, 50
#: Relative distance to float64 of the hidden states of real tokens, by dtype.
NEAR = {torch.float32: 5e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Family:
    """A tiny encoder: its type, the size h of its heads, and options of its configuration."""

    model_type: str
    h: int
    options: Mapping[str, Any] = field(default_factory=dict)
    causal: bool = False
    gain: float = 1.5  # of the random weights: scores differ by some units

    def config(self) -> Any:
        width = HEADS * self.h
        sizes = {
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * width,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        }
        renamed = self.options.get("names", {})
        given = {renamed.get(name, name): value for name, value in sizes.items()}
        return AutoConfig.for_model(self.model_type, **given, **self.options.get("others", {}))


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_DISENTANGLED = {
    **_NO_DROPOUT,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["c2p", "p2c"],
    "max_relative_positions": 16,
}
_DISTILBERT = {
    "names": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
    "others": {"dropout": 0.0, "attention_dropout": 0.0},
}
_GPT2 = {
    "names": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
    "others": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None},
}
_MODERNBERT = {
    "others": {
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        **{f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")},
    }
}
_T5 = {
    "names": {
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "d_ff",
    },
    "others": {"d_kv": 64, "dropout_rate": 0.0, "relative_attention_num_buckets": 8},
}

FAMILIES = {
    "bert-24": Family("bert", 24, {"others": _NO_DROPOUT}),
    "bert-64": Family("bert", 64, {"others": _NO_DROPOUT}),
    "roberta-32": Family("roberta", 32, {"others": _NO_DROPOUT}),
    "distilbert-16": Family("distilbert", 16, _DISTILBERT),
    "modernbert-64": Family("modernbert", 64, _MODERNBERT),
    "gpt2-32": Family("gpt2", 32, _GPT2, causal=True),
    "deberta-16": Family("deberta", 16, {"others": _DISENTANGLED}),
    "deberta-v2-32": Family("deberta-v2", 32, {"others": {**_DISENTANGLED, "share_att_key": True}}),
    "t5-64": Family("t5", 64, _T5, gain=0.5),
}
#: What is done to an encoder: a kind, and the share of its constant heads.
WAYS = {"quarter": ("constant", 0.25), "half": ("constant", 0.5), "all": ("constant", 1.0), "gated": ("gated", 1.0)}
EQUAL_HEADS = {"folded": ("folded", 1.0), "shared": ("shared", 1.0), "compact": ("compact", 1.0)}

#: One way for each encoder, and all for one: what a family and a way do is not compiled anew for each pair.
CASES = [*((name, "half") for name in FAMILIES), *(("bert-64", way) for way in WAYS if way != "half")]
#: Those of families whose layers differ in their reach.
OF_REACH = [(name, way) for name, way in CASES if name in ("bert-64", "modernbert-64", "gpt2-32")]

in_cases = pytest.mark.parametrize(("name", "way"), CASES)
of_reach = pytest.mark.parametrize(("name", "way"), OF_REACH)


@cache
def _built(name: str, dtype: torch.dtype) -> Any:
    family = FAMILIES[name]
    config, generator = family.config(), torch.Generator().manual_seed(0)
    auto: Any = AutoModel
    model: Any = T5EncoderModel(config).encoder if family.model_type == "t5" else auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = parameter.dim() > 1
            parameter.copy_(noise * family.gain / parameter.shape[-1] ** 0.5 if wide else parameter + 0.1 * noise)
    return model.to(dtype).double().eval()


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """An encoder in float64 with weights that a dtype has."""
    return copy.deepcopy(_built(name, dtype))


def make_inputs(name: str, seed: int = 0, length: int = LENGTH) -> dict[str, Tensor]:
    """A full row, one padded at its end, one with holes (causal: a shorter one), one padded on the left, a tiny one."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(BATCH, length, dtype=torch.long)
    mask[1, length // 2 + seed :] = 0
    mask[2, slice(length - 3, None) if FAMILIES[name].causal else slice(2 + seed, length - 1, 3)] = 0
    mask[3, : 4 + seed] = 0
    mask[4, 2:] = 0
    return {"input_ids": torch.randint(3, VOCABULARY, (BATCH, length), generator=generator), "attention_mask": mask}


def make_constants(equal: bool = False) -> AttentionConstants:
    shape = (LAYERS, 1 if equal else HEADS, LONGEST, LONGEST)
    values = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 3 + 0.01
    return AttentionConstants(values.expand(-1, HEADS, -1, -1), torch.ones(LONGEST, LONGEST))


def swapped(model: Any, way: str, learned: bool = False) -> Any:
    """Swap an encoder in place; gates differ from each other."""
    kind, share = {**WAYS, **EQUAL_HEADS}[way]
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    random.Random(3).shuffle(every)
    chosen = sorted(every[: round(share * len(every))])
    constants = make_constants(equal=way in ("folded", "shared"))
    given: Any = CompactConstants.fit(constants, width=4) if kind == "compact" else constants
    swap_attention(model, kind, constants=given, heads="all" if share == 1 else chosen)
    if kind == "gated":
        for number, gates in enumerate(gate_logits(model)):
            nn.init.constant_(gates, 0.3 * number - 0.2)
    if learned:
        learn_constants(model)
    return model


def on(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: one.to(device) for name, one in inputs.items()}


def encode(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Hidden states (real tokens, d)."""
    states: Tensor = model(**inputs).last_hidden_state
    return states[inputs["attention_mask"].bool()]


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative distance of two tensors, in float64 on the CPU."""
    one, other = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def expected(name: str, way: str, inputs: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    with torch.no_grad():
        return encode(swapped(build(name, dtype), way), inputs)


def ours(name: str, way: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A swapped encoder on the device, from weights and constants in float64."""
    return swapped(build(name, dtype), way).to(device, dtype)


@pytest.mark.parametrize(
    ("name", "way", "dtype"),
    [
        *((name, way, torch.float32) for name in FAMILIES for way in ("half", "all", "gated")),
        *((name, way, torch.bfloat16) for name, way in CASES),
    ],
)
def test_hidden_states(name: str, way: str, dtype: torch.dtype, device: torch.device) -> None:
    inputs = make_inputs(name)
    with torch.no_grad():
        found = encode(ours(name, way, device, dtype), on(inputs, device))
    assert found.dtype == dtype
    assert distance(found, expected(name, way, inputs, dtype)) < NEAR[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", EQUAL_HEADS)
def test_kinds_with_one_matrix_or_a_profile(way: str, dtype: torch.dtype, device: torch.device) -> None:
    inputs = make_inputs("bert-64")
    with torch.no_grad():
        found = encode(ours("bert-64", way, device, dtype), on(inputs, device))
    assert distance(found, expected("bert-64", way, inputs, dtype)) < NEAR[dtype]


@pytest.mark.parametrize("length", [1, 17, LONGEST])
@pytest.mark.parametrize(
    ("way", "implementation"), [("half", "sdpa"), ("half", "eager"), ("all", "sdpa"), ("gated", "sdpa")]
)
def test_other_lengths_without_padding(way: str, implementation: str, length: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, VOCABULARY, (2, length), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    model = ours("bert-64", way, device, torch.float16)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        found = encode(model, on(inputs, device))
        alone = model(input_ids=tokens.to(device)).last_hidden_state.flatten(0, 1)  # without a mask
    for one in (found, alone):
        assert distance(one, expected("bert-64", way, inputs, torch.float16)) < NEAR[torch.float16]


@in_cases
def test_packed_batches(name: str, way: str, device: torch.device) -> None:
    inputs, model = make_inputs(name), ours(name, way, device)
    packed = Packer.of(model).pack(inputs)
    if packed is None:
        pytest.skip("this encoder is not packed")
    states = torch.zeros(BATCH, LENGTH, model.config.hidden_size, device=device)
    with torch.no_grad():
        for group in packed.groups(80):
            batch = packed.batch(group)
            with batch.prepared(device) as arguments:
                given = model(**arguments).last_hidden_state
            for own, number in zip(given.split(1), batch.sequences.tolist(), strict=True):
                place = (batch.sequences == number).nonzero().item()
                real = batch.mask[place]
                states[number, batch.columns[place][real].to(device)] = own[0, real.to(device)]
    assert distance(states[inputs["attention_mask"].bool()], expected(name, way, inputs)) < NEAR[torch.float32]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("bert-64", "all"),
        *((name, "half") for name in ("bert-64", "modernbert-64", "gpt2-32", "deberta-v2-32", "t5-64")),
    ],
)
def test_no_graph_break_where_the_stock_encoder_has_none(name: str, way: str, device: torch.device) -> None:
    inputs = on(make_inputs(name), device)
    model = ours(name, way, device)

    def compiled(encoder: Any, whole: bool) -> Tensor:
        torch.compiler.reset()
        with torch.no_grad():
            return encode(torch.compile(encoder, fullgraph=whole, backend="aot_eager"), inputs)

    whole = True
    try:
        compiled(build(name).to(device, torch.float32), whole)
    except torch._dynamo.exc.Unsupported:
        whole = False
    found = compiled(model, whole)
    assert distance(found, expected(name, way, make_inputs(name))) < NEAR[torch.float32]


@pytest.mark.parametrize(("way", "dtype"), [("half", torch.float32), ("all", torch.bfloat16)])
def test_compiled_by_inductor(way: str, dtype: torch.dtype, device: torch.device) -> None:
    inputs, model = make_inputs("bert-64"), ours("bert-64", way, device, dtype)
    torch.compiler.reset()
    given, compiled = on(inputs, device), cast(Any, torch.compile(model))
    with torch.no_grad():
        found = encode(compiled, given)
        torch.cuda.set_sync_debug_mode("error")
        try:
            compiled(**given)  # copies nothing to the device, which would wait for it
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert distance(found, expected("bert-64", way, inputs, dtype)) < NEAR[dtype]


def captured(model: Any, inputs: Mapping[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of a forward over fixed inputs, and where it leaves the hidden states."""
    beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside), torch.inference_mode():
        for _ in range(3):
            model(**inputs)
    torch.cuda.current_stream().wait_stream(beside)
    with torch.cuda.graph(graph), torch.inference_mode():
        states = model(**inputs).last_hidden_state
    return graph, states


@in_cases
def test_a_cuda_graph_follows_its_inputs(name: str, way: str, device: torch.device) -> None:
    fixed, model = on(make_inputs(name), device), ours(name, way, device)
    try:
        captured(build(name).to(device, torch.float32), fixed)
    except RuntimeError:
        torch.cuda.synchronize()
        pytest.skip("the stock encoder cannot be captured")
    graph, states = captured(model, fixed)
    for seed in (1, 2):
        inputs = make_inputs(name, seed)
        for key, one in inputs.items():
            fixed[key].copy_(one)
        graph.replay()
        found = states[fixed["attention_mask"].bool()]
        assert distance(found, expected(name, way, inputs)) < NEAR[torch.float32]


@pytest.mark.parametrize("way", ["half", "all"])
def test_a_cuda_graph_and_what_the_encoder_keeps(way: str, device: torch.device) -> None:
    """What was kept of frozen weights stays for the graph, and weights that learn are read in every replay."""
    inputs = make_inputs("bert-64")
    fixed, frozen = on(inputs, device), ours("bert-64", way, device).requires_grad_(False)
    real = fixed["attention_mask"].bool()
    graph, states = captured(frozen, fixed)
    frozen.train().eval()  # which forgets
    with torch.no_grad():
        wanted = encode(frozen, fixed)
    with torch.inference_mode():
        states.zero_()
    graph.replay()
    assert distance(states[real], wanted) < NEAR[torch.float32]
    learning = ours("bert-64", way, device)
    graph, states = captured(learning, fixed)
    with torch.no_grad():
        for one in learning.parameters():
            one.mul_(0.8)
        wanted = encode(learning, fixed)
    with torch.inference_mode():
        states.zero_()
    graph.replay()
    assert distance(states[real], wanted) < NEAR[torch.float32]


@of_reach
def test_autocast_and_inference_mode(name: str, way: str, device: torch.device) -> None:
    inputs, model = on(make_inputs(name), device), ours(name, way, device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        half = encode(model, inputs)
    with torch.inference_mode():
        plain = encode(model, inputs)
    wanted = expected(name, way, make_inputs(name))
    assert distance(half, wanted) < NEAR[torch.bfloat16]
    assert distance(plain, wanted) < NEAR[torch.float32]


def gradients(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of all parameters that learn, of a random function of the hidden states of real tokens."""
    model.zero_grad()
    states = encode(model, inputs)
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    loss: Any = (states * weights.to(states)).sum()
    loss.backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in FAMILIES for way in ("half learned", "gated")),
        *(("bert-64", way) for way in ("half", "all", "all learned")),
    ],
)
def test_gradients(name: str, way: str, device: torch.device) -> None:
    way, _, learned = way.partition(" ")
    inputs = make_inputs(name)
    wanted = gradients(swapped(build(name, torch.float32), way, bool(learned)), inputs)
    model = swapped(build(name, torch.float32), way, bool(learned)).to(device, torch.float32)
    found = gradients(model, on(inputs, device))
    assert found.keys() == wanted.keys()
    assert any("constants" in key for key in found) == bool(learned)
    largest = max(float(one.norm()) for one in wanted.values())
    for key, own in wanted.items():  # what is tiny beside the others is rounding
        assert distance(found[key], own) < 2e-4 or float(own.norm()) < 1e-5 * largest, key


@pytest.mark.parametrize("way", ["half learned", "all learned"])
def test_gradients_in_bfloat16(way: str, device: torch.device) -> None:
    way, _, learned = way.partition(" ")
    inputs = make_inputs("bert-64")
    wanted = gradients(swapped(build("bert-64", torch.bfloat16), way, bool(learned)), inputs)
    model = swapped(build("bert-64", torch.bfloat16), way, bool(learned)).to(device, torch.bfloat16)
    found = gradients(model, on(inputs, device))
    together = [torch.cat([one[key].detach().double().cpu().flatten() for key in wanted]) for one in (found, wanted)]
    assert distance(*together) < 0.1


@of_reach
def test_the_same_bits_in_every_forward(name: str, way: str, device: torch.device) -> None:
    inputs, model = on(make_inputs(name), device), ours(name, way, device)
    with torch.no_grad():
        assert torch.equal(encode(model, inputs), encode(model, inputs))


@pytest.mark.parametrize("name", ["bert-64", "modernbert-64", "gpt2-32"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_same_bits_in_every_gradient(name: str, learned: bool, device: torch.device) -> None:
    # All heads: the backward of PyTorch's fused attention adds in any order.
    inputs = on(make_inputs(name), device)
    model = swapped(build(name, torch.float32), "all", learned).to(device, torch.float32)
    first, second = gradients(model, inputs), gradients(model, inputs)
    for key in first:
        if "embed" not in key and "wte" not in key and "wpe" not in key:  # those of PyTorch may be added in any order
            assert torch.equal(first[key], second[key]), key


@in_cases
def test_restored_to_the_last_bit(name: str, way: str, device: torch.device) -> None:
    inputs, model = on(make_inputs(name), device), build(name).to(device, torch.float32)
    keys = list(model.state_dict())
    with torch.no_grad():
        before = encode(model, inputs)
        swapped(model, way)
        assert not torch.equal(encode(model, inputs), before)
        restore_attention(model)
        assert torch.equal(encode(model, inputs), before)
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize(("name", "way"), [*OF_REACH, *((name, "half") for name in ("roberta-32", "distilbert-16"))])
def test_no_wait_for_the_device_that_the_stock_encoder_has_not(name: str, way: str, device: torch.device) -> None:
    inputs = on(make_inputs(name), device)

    def waits(model: Any) -> int:
        with torch.no_grad():
            model(**inputs)  # what is done once
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                try:
                    model(**inputs)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        # Another message says, once in a process, that not all synchronizing operations are found.
        return sum("called a synchronizing" in str(one.message) for one in seen)

    assert waits(ours(name, way, device)) <= waits(build(name).to(device, torch.float32))
