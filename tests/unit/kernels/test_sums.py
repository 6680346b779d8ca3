"""Mixing by attention that is added to sums, in the interpreter, beside the definition in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from papa_lightning.attention.dynamic import slots_at
from papa_lightning.attention.functional import attention_probabilities, clear_padding
from papa_lightning.kernels.sums import launches as launch
from papa_lightning.kernels.sums import mixing as kernel

assert_close = torch.testing.assert_close


def make(batch, heads, length, size, dtype=torch.float32, seed=0):
    """Query, key and value (B, H, T, h), as views of (B, T, H, h)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, length, heads, size)
    return torch.randn(shape, generator=generator).to(dtype).transpose(2, 3).unbind()


def make_mask(batch, length, seed=0):
    """A mask with holes; the last sequence is padding throughout, if there are several."""
    mask = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) > 0.3
    mask[:, length // 2] = True
    mask[1:][-1:] = False
    return mask


def expected(query, key, value, mask, bias, scaling, slots=None):
    """Mixed values, sums and squares by the definition, in float64."""
    bias = bias if bias is None or bias.dtype == torch.bool else bias.double()
    attention = attention_probabilities(query.double(), key.double(), mask, scaling, bias)
    mixed = (attention @ value.double()).transpose(1, 2)
    if slots is not None:
        rows = attention.gather(2, slots.tokens[:, None, :, None].expand(-1, attention.shape[1], -1, mask.shape[1]))
        attention = rows.gather(3, slots.tokens[:, None, None].expand(*rows.shape[:3], -1))
        mask = slots.mask
    if mask is not None:
        clear_padding(attention, mask)
    return mixed, attention.sum(dim=0), attention.square().sum(dim=(0, 2, 3))


def check(query, key, value, mask, bias=None, slots=None, tolerance=1e-6):
    """The operator adds to strided sums what the definition says, and returns the mixed values."""
    scaling, heads = 0.4, query.shape[1]
    length = query.shape[2] if slots is None else slots.number
    before = torch.rand(2, heads, length + 3, length + 3, dtype=torch.float64)
    tiles = kernel.most_tiles(length + 3, query.shape[3], query.dtype)
    sums, squares = before.clone(), torch.ones(2, heads, tiles, dtype=torch.float64)
    mixed = kernel.mix_and_add_attention(
        query,
        key,
        value,
        mask,
        bias,
        scaling,
        None if slots is None else slots.tokens,
        None if slots is None else slots.mask,
        1,
        sums,
        squares,
    )
    right, added, squared = expected(query, key, value, mask, bias, scaling, slots)
    before[1, :, :length, :length] += added
    assert_close(sums, before, atol=tolerance, rtol=tolerance)
    assert_close(squares[1].sum(dim=1), tiles + squared, atol=tolerance, rtol=tolerance)
    assert squares[0].eq(1).all()
    assert mixed.dtype == value.dtype
    assert mixed.is_contiguous()
    precise = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[value.dtype]
    assert_close(mixed.double(), right, atol=precise, rtol=precise)


@pytest.mark.no_cover  # the interpreter calls so many functions that counting lines doubles the time
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 2),
    length=st.sampled_from([1, 2, 15, 16, 17, 33, 70]),
    size=st.sampled_from([16, 24, 64, 80]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    padded=st.booleans(),
)
def test_it_is_the_definition(batch, heads, length, size, dtype, padded):
    # Scores are sums of products of numbers of the dtype, so nothing is rounded to it but the mixed values.
    check(*make(batch, heads, length, size, dtype), make_mask(batch, length) if padded else None, tolerance=3e-6)


@pytest.mark.no_cover  # the interpreter calls so many functions that counting lines doubles the time
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["flags", "numbers", "half precision", "infinite"]),
    shape=st.sampled_from([(), (1,), (1, 1), (3, 1), (1, 2), (3, 2)]),
    padded=st.booleans(),
    by_slot=st.booleans(),
)
def test_biases_are_read_where_they_are(kind, shape, padded, by_slot):
    length, generator = 18, torch.Generator().manual_seed(1)
    flags = torch.rand(*shape, length, length, generator=generator) > 0.4
    flags |= torch.eye(length, dtype=torch.bool)
    numbers = torch.randn(*shape, length, length, generator=generator)
    bias = {
        "flags": flags,
        "numbers": numbers.transpose(-1, -2),
        "half precision": numbers.bfloat16().masked_fill(~flags, torch.finfo(torch.bfloat16).min),
        "infinite": numbers.masked_fill(~flags, float("-inf")),
    }[kind]
    mask = make_mask(3, length)
    slots = slots_at(torch.randperm(24, generator=generator)[:length].expand(3, -1), mask, 24) if by_slot else None
    mask = mask if padded or by_slot else None
    if mask is not None and kind == "infinite":
        bias = bias.masked_fill(torch.eye(length, dtype=torch.bool), 0.0)  # rows without any key would be NaN
    check(*make(3, 2, length, 16), mask, bias, slots)


@pytest.mark.no_cover
@pytest.mark.parametrize(("length", "size"), [(12, 16), (70, 80)])
def test_keys_that_a_query_does_not_see(length, size, fused_products):
    """All of its first block, in a window or behind padding on the left; or all of them, as a row of padding does."""
    order = torch.arange(length)
    window = (order[:, None] - order).abs() <= 2
    mask = torch.stack([order < 5, order > length - 5])
    for real, bias in [(mask, None), (mask, window), (None, torch.zeros(()).masked_fill(~window, -1e38))]:
        check(*make(2, 1, length, size), real, bias)


def test_sequences_are_shared_out_among_programs(monkeypatch):
    """In any number of parts, over several launches, and with sums that have no room for parts of their own."""
    mask = make_mask(9, 5)
    for processors, sequences, workspace in [(8, 1, 2**20), (100, 2, 900), (8, 2, 0), (1, 4, 0)]:
        launch.plan_batch.cache_clear()
        monkeypatch.setattr(launch, "_processors", lambda device, number=processors: number)
        monkeypatch.setattr(launch, "SEQUENCES", sequences)
        monkeypatch.setattr(launch, "WORKSPACE", workspace)
        for dtype in (torch.float32, torch.float16):
            check(*make(9, 2, 5, 16, dtype), mask)
    launch.plan_batch.cache_clear()


def test_nan_in_a_sequence_of_padding_is_not_counted_and_another_is():
    query, key, value = (one.clone() for one in make(3, 1, 4, 16))
    mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    for one in (query, key, value):
        one[2] = float("nan")
    sums, squares = torch.zeros(1, 1, 4, 4).double(), torch.zeros(1, 1, 1).double()
    arguments = (None, 1.0, None, None, 0, sums, squares)
    kernel.mix_and_add_attention(query, key, value, mask, *arguments)
    assert sums.isfinite().all()
    assert squares.isfinite().all()
    key[1, 0, 2] = float("nan")
    kernel.mix_and_add_attention(query, key, value, mask, *arguments)
    assert sums[0, 0, [0, 2]][:, [0, 2]].isnan().all()
    assert squares.isnan().all()


@pytest.mark.parametrize("shape", [(0, 2, 4, 16), (2, 1, 0, 16)])
def test_nothing_is_added_for_nothing(shape):
    query, key, value = make(*shape)
    sums = torch.zeros(1, shape[1], 4, 4, dtype=torch.float64)
    squares = torch.zeros(1, shape[1], 1, dtype=torch.float64)
    mixed = kernel.mix_and_add_attention(query, key, value, None, None, 1.0, None, None, 0, sums, squares)
    assert mixed.shape == (shape[0], shape[2], *shape[1::2])
    assert sums.eq(0).all()


@pytest.mark.parametrize("length", [20, 130])
def test_values_may_be_wider_than_queries(length):
    query, key, _ = make(2, 1, length, 16, torch.float16)
    check(query, key, make(2, 1, length, 80, torch.float16)[2], None, tolerance=3e-6)


def test_heads_whose_features_are_not_neighbours_are_copied():
    query, key, value = (one.transpose(2, 3).contiguous().transpose(2, 3) for one in make(2, 2, 6, 16))
    assert query.stride(3) != 1
    check(query, key, value, None)


def test_it_is_one_operator():
    query, key, value = make(2, 2, 6, 16)
    sums, squares = torch.zeros(1, 2, 6, 6).double(), torch.zeros(1, 2, 1).double()
    arguments = (query, key, value, make_mask(2, 6), None, 1.0, None, None, 0, sums, squares)
    operator = torch.ops.papa_lightning.mix_and_add_attention.default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))
    found, right = [sums.clone(), squares.clone()], [sums, squares]
    once = kernel.mix_and_add_attention(*arguments[:-2], *right)
    compiled = torch.compile(kernel.mix_and_add_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments[:-2], *found), once)
    assert torch.equal(found[0], right[0])
    assert torch.equal(found[1], right[1])


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("width", [16, 32, 64, 128, 256])
def test_tiles_fit_in_the_shared_memory_of_small_gpus(width, size, biased):
    for length in (1, 14, 64, 100, 300, 8192):
        mix, add = (find(length, width * size, biased) for find in (launch.mixing_blocks, launch.adding_blocks))
        assert (mix.queries + 2 * mix.stages * mix.keys) * width * size <= 99 * 2**10, "query, keys and values"
        assert add.stages * (add.queries + add.keys) * width * size <= 99 * 2**10
        assert min(*mix[:2], *add[:2]) >= 16


def test_exact_products_of_wide_rows_leave_shared_memory_of_small_gpus():
    """Compiled for one with 99 KB, the kernel takes 112 KB with 32 keys, and 88 KB with 16."""
    keys = {
        (size, dtype): launch.plan_batch((1, 2, 600, size), size, None, dtype, False, torch.device("cpu")).mixing[
            "keys"
        ]
        for size in (64, 80, 128)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert [keys[size, torch.float32] for size in (64, 80, 128)] == [64, 16, 16]
    assert [keys[size, torch.bfloat16] for size in (64, 80, 128)] == [64, 64, 64]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_every_tile_has_an_entry_for_its_squares(size, dtype):
    for longest in (5, 128, 130, 511, 600, 2000):
        most = kernel.most_tiles(longest, size, dtype)
        for length in {1, longest // 2, longest, *[number for number in launch._LENGTHS if number <= longest]}:
            for biased in (False, True):
                assert launch._tiles(length, launch.adding_blocks(length, size * dtype.itemsize, biased)) <= most


def test_float32_is_not_taken_in_tf32_unless_torch_allows_it():
    query = torch.zeros(1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert launch.exact_precision(query) == "tf32x3"
        torch.set_float32_matmul_precision("high")
        assert launch.exact_precision(query) == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
