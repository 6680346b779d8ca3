"""Packing: batches of similar length bounded by tokens, and states back where they were."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.encoders.tiny_encoders import LENGTH, build, make_constants, make_inputs

from papa_lightning import swap_attention
from papa_lightning.encoders import Packer, Packing, similar_lengths
from papa_lightning.errors import PapaError, UnsupportedEncoderError

CPU = torch.device("cpu")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 90), max_size=60), st.integers(1, 1500))
def test_batches_by_tokens(counts, tokens):
    batches = similar_lengths(torch.tensor(counts, dtype=torch.int64), tokens)
    numbers = [number for batch in batches for number in batch.tolist()]
    assert sorted(numbers) == list(range(len(counts)))
    assert [counts[number] for number in numbers] == sorted(counts, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(1, counts[batch[0]]) <= tokens
        assert all(one < other for one, other in itertools.pairwise(batch) if counts[one] == counts[other])


def test_a_large_batch_ends_where_sequences_get_much_shorter():
    counts = torch.tensor([10] * 60 + [4] * 60)
    assert [len(batch) for batch in similar_lengths(counts, 2048)] == [60, 60]
    assert len(similar_lengths(counts[50:70], 2048)) == 1  # few tokens: another call of the encoder costs more


def states(model, inputs, tokens):
    packed = Packer.of(model).pack(inputs)
    unpacked = torch.zeros(*inputs["input_ids"].shape, model.config.hidden_size, dtype=torch.float64)
    sizes = []
    for group in packed.groups(tokens):
        batch = packed.batch(group)
        with batch.prepared(CPU) as arguments:
            sizes.append(arguments["input_ids"].shape)
            batch.put(model(**arguments).last_hidden_state, unpacked)
    return unpacked, sizes


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 15, 10_000])
@pytest.mark.parametrize("heads", [None, [(0, 1), (2, 0)], "all"])
def test_states_are_put_back_and_padding_is_zero(heads, tokens):
    model, inputs = build(), make_inputs(batch=7)
    if heads is not None:
        swap_attention(model, "constant", constants=make_constants(), heads=heads)
    unpacked, sizes = states(model, inputs, tokens)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(unpacked[real], model(**inputs).last_hidden_state[real], atol=1e-12, rtol=0)
    assert (unpacked[~real] == 0).all()
    assert sum(rows for rows, _ in sizes) == 7
    assert tokens > 1 or max(rows for rows, _ in sizes) == 1
    if tokens > 1:
        assert max(columns for _, columns in sizes) == LENGTH  # of the full rows


@torch.no_grad()
def test_only_real_tokens_are_computed():
    """A batch of one length has no padding at all, wherever its tokens stood."""
    model, inputs = build(), make_inputs(batch=3)
    inputs["attention_mask"] = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 1, 1, 1] + [0] * 6, [0] * 7 + [1] * 3])
    _, sizes = states(model, inputs, 100)
    assert sizes == [(3, 3)]


def test_inputs_that_cannot_be_packed():
    model, inputs = build(), make_inputs()
    packer = Packer.of(model)
    assert packer.pack({"input_ids": inputs["input_ids"]}) is None
    assert packer.pack({**inputs, "attention_mask": torch.zeros(4, LENGTH)}) is None
    assert packer.pack({**inputs, "attention_mask": torch.zeros(4, 1, LENGTH, LENGTH)}) is None
    assert packer.pack({**inputs, "attention_mask": 2 * inputs["attention_mask"]}) is None
    assert packer.pack({name: held[:0] for name, held in inputs.items()}) is None
    model.compile()
    assert packer.pack(inputs) is None
    with pytest.raises(UnsupportedEncoderError):
        Packer.of(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enabled": 1}, "packing is 1"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0"),
        ({"tokens_per_batch": 2.5}, "tokens_per_batch is 2.5"),
    ],
)
def test_wrong_settings(arguments, message):
    with pytest.raises(PapaError, match=message):
        Packing(**arguments)


def test_settings_are_noted():
    assert Packing().noted(CPU) == {"packing": {"tokens_per_batch": 1536}}
    assert Packing(tokens_per_batch=7).noted(torch.device("meta")) == {"packing": {"tokens_per_batch": 7}}
    assert Packing(enabled=False).noted(CPU) == {"packing": None}
    assert Packing().tokens(torch.device("meta")) == 32768
