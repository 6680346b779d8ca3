"""Random heads, masks with holes, lengths, dtypes and batch shapes against attention written out."""

import copy
import warnings
from functools import cache

import pytest
import torch
from conformance.explicit import constant_heads, exact_softmax, explicit_attention, run
from conformance.fuzzing import examples
from conformance.tiny_models import CASES, HEADS, LENGTH, VOCABULARY, plain
from hypothesis import given
from hypothesis import strategies as st

from papa_lightning import AttentionConstants, gate_logits, swap_attention
from papa_lightning.attention import ZeroMassWarning

#: One for each way in which attention is computed, and for each odd shape of the layers.
NAMES = ["bert", "distilbert", "deberta", "deberta-v2-shared", "deberta-v2-own", "albert", "mpnet", "t5"]
#: With layers whose tokens cannot look everywhere: a window, backwards only, both.
LIMITED = ["modernbert", "gpt2", "mistral"]
#: Allowed size of the mean error, relative to the mean size of the hidden states, after three layers.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.15}
MASK_DTYPES = [torch.int64, torch.bool, torch.float32, torch.int32]


@st.composite
def problems(draw):
    name, kind = draw(st.sampled_from([*NAMES, *LIMITED * 2])), draw(st.sampled_from(["constant", "constant", "gated"]))
    pairs = [(layer, head) for layer in range(CASES[name].layers) for head in range(HEADS)]
    length, batch = draw(st.integers(1, LENGTH)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.integers(1, 2**length - 1), min_size=batch, max_size=batch))
    return {
        "name": name,
        "kind": kind,
        "heads": pairs if kind == "gated" else sorted(draw(st.sets(st.sampled_from(pairs)))),
        "mask": torch.tensor([[row >> place & 1 for place in range(length)] for row in rows]),
        "max_length": draw(st.integers(length, LENGTH)),
        "zeros": draw(st.sampled_from([0.0, 0.0, 0.4, 1.0])),
        "seed": draw(st.integers(0, 2**31)),
        "dtype": draw(st.sampled_from([torch.float64, *TOLERANCES])),
        "mask_dtype": draw(st.sampled_from([*MASK_DTYPES, None])),
        "matrices": draw(st.booleans()),
    }


@cache
def rounded(name, dtype):
    """The written-out form computes in float64, with the weights that the encoder has in its dtype."""
    return copy.deepcopy(plain(name, "eager", dtype)).double()


def make_constants(problem, generator):
    """Random and positive, with 0 where calibration saw nothing; in the dtype that the encoder keeps them in."""
    shape = (CASES[problem["name"]].layers, HEADS, problem["max_length"], problem["max_length"])
    values = torch.rand(shape, generator=generator, dtype=torch.float64) ** 3 + 0.01
    values[torch.rand(shape, generator=generator) < problem["zeros"]] = 0.0
    return values.to(problem["dtype"]).double()


@pytest.fixture(autouse=True)
def float64_throughout():
    with exact_softmax():
        yield


@pytest.mark.no_cover  # other tests reach the same lines
@examples(100)
@given(problem=problems())
def test_any_swap_is_what_it_is_by_definition(problem):
    name, dtype, mask = problem["name"], problem["dtype"], problem["mask"]
    generator = torch.Generator().manual_seed(problem["seed"])
    constants = make_constants(problem, generator)
    gates = torch.randn(constants.shape[:2], generator=generator).to(dtype) if problem["kind"] == "gated" else None
    inputs = {"input_ids": torch.randint(3, VOCABULARY, mask.shape, generator=generator), "attention_mask": mask}
    given_inputs = {**inputs, "attention_mask": mask.to(problem["mask_dtype"] or torch.int64)}
    if problem["mask_dtype"] is None:  # no mask is a mask of ones
        inputs["attention_mask"] = torch.ones_like(mask)
        del given_inputs["attention_mask"]

    model = copy.deepcopy(plain(name, None, dtype))
    averages = AttentionConstants(constants, torch.ones(constants.shape[2:]))
    swap_attention(model, problem["kind"], constants=averages, heads="all" if gates is not None else problem["heads"])
    if gates is not None:
        with torch.no_grad():
            for parameter, values in zip(gate_logits(model), gates, strict=True):
                parameter.copy_(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZeroMassWarning)
        found = run(model, given_inputs, **({"output_attentions": True} if problem["matrices"] else {}))
    wide = None if gates is None else gates.double()
    replace = constant_heads(name, inputs, constants, problem["heads"], wide)
    with explicit_attention(rounded(name, dtype), CASES[name].layers, replace):
        expected = run(rounded(name, dtype), inputs)

    real = inputs["attention_mask"].bool()
    error = (found[real].double() - expected[real]).abs().mean() / expected[real].abs().mean()
    assert found.dtype == dtype
    assert error <= TOLERANCES[dtype], error
