"""The pure functions against their formulas, in float64 and below."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from papa_lightning.attention import functional
from papa_lightning.attention.functional import (
    accumulation_dtype,
    add_pairs,
    apply_attention,
    attention_probabilities,
    average_attention,
    clear_padding,
    constant_attention,
    constant_mass,
    dynamic_attention,
    gate_mixture,
    gathered_attention,
    masked_attention_sum,
    normalized_constants,
    pair_counts,
    pair_index,
)

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-12, "rtol": 1e-12}
SHAPES = [(1, 1, 1, 1), (1, 3, 7, 2), (5, 1, 1, 4), (4, 3, 7, 5), (2, 2, 16, 3)]
MASKS = ["none", "full", "right", "holes", "some_empty", "all_empty", "one_token", "first_is_padding"]


def make_mask(kind, batch, length, dtype=torch.int64):
    generator = torch.Generator().manual_seed(batch * 100 + length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    if kind == "none":
        return None
    if kind == "right":
        lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
        mask = (torch.arange(length)[None] < lengths).long()
    elif kind == "holes":
        mask = torch.randint(0, 2, (batch, length), generator=generator)
        mask[:, -1] = 1
    elif kind == "some_empty":
        mask[::2] = 0
    elif kind == "all_empty":
        mask.zero_()
    elif kind == "one_token":
        mask.zero_()[:, length // 2] = 1
    elif kind == "first_is_padding":
        mask[:, : length - 1] = 0
    return mask.to(dtype)


def make_case(shape, dtype=torch.float64, seed=0):
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(seed)
    constants = torch.rand(heads, length, length, generator=generator, dtype=torch.float64)
    constants[torch.rand(constants.shape, generator=generator) < 0.2] = 0.0
    value = torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64)
    return constants.to(dtype), value.to(dtype)


def explicit(constants, value, mask):
    """The formula with loops over nothing but tensors: normalise every sequence's own matrix, then multiply."""
    batch = value.shape[0]
    m = torch.ones(batch, value.shape[2]) if mask is None else mask
    m = m.to(constants.dtype)
    matrices = constants[None] * m[:, None, :, None] * m[:, None, None, :]
    total = matrices.sum(-1, keepdim=True)
    matrices = torch.where(total > 0, matrices / torch.where(total > 0, total, 1.0), 0.0)
    return (matrices @ value).transpose(1, 2), matrices


@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_constant_attention_is_the_explicit_product(shape, kind, mask_dtype):
    constants, value = make_case(shape)
    mask = make_mask(kind, shape[0], shape[2], mask_dtype)
    expected, matrices = explicit(constants, value, mask)
    before = constants.clone(), value.clone(), None if mask is None else mask.clone()

    result = constant_attention(constants, value, mask)
    assert result.shape == (shape[0], shape[2], shape[1], shape[3])
    assert_close(result, expected, **EXACT)
    assert_close(normalized_constants(constants, mask).expand_as(matrices), matrices, **EXACT)
    assert_close((normalized_constants(constants, mask) @ value).transpose(1, 2), result, **EXACT)
    assert_close(apply_attention(normalized_constants(constants, mask), value), result, **EXACT)
    for now, then in zip((constants, value, mask), before, strict=True):
        assert now is None or torch.equal(now, then)


def test_constant_attention_of_noncontiguous_arguments():
    constants, value = make_case((3, 4, 6, 5))
    mask = make_mask("holes", 3, 6)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)  # the layout a projection leaves
    cut = torch.zeros(4, 9, 9, dtype=torch.float64)
    cut[:, :6, :6] = constants
    assert_close(constant_attention(cut[:, :6, :6], strided, mask), constant_attention(constants, value, mask), **EXACT)


@pytest.mark.parametrize("kind", ["none", "holes", "some_empty"])
def test_constant_attention_ignores_what_stands_at_padding(kind):
    constants, value = make_case((4, 3, 7, 5))
    mask = make_mask(kind, 4, 7)
    changed = value if mask is None else torch.where(mask[:, None, :, None].bool(), value, 1e6)
    result = constant_attention(constants, changed, mask)
    assert_close(result, constant_attention(constants, value, mask), **EXACT)
    if mask is not None:
        assert torch.equal(result[~mask.bool()], torch.zeros_like(result[~mask.bool()]))


def make_places(batch, slots, tokens, mask):
    """Slots (B, n), ascending, of the tokens of each sequence, and their mask."""
    generator = torch.Generator().manual_seed(batch * 10 + tokens)
    places = torch.stack([torch.randperm(slots, generator=generator)[:tokens].sort().values for _ in range(batch)])
    real = torch.ones(batch, tokens, dtype=torch.bool) if mask is None else mask.bool()
    return places, real


@pytest.mark.parametrize("piece", [1, 3 * 5 * 2, 2 * 3 * 25, 2**21])
@pytest.mark.parametrize("kind", MASKS)
def test_gathered_attention_is_that_of_the_slots(kind, piece, monkeypatch):
    """Also in pieces of one query, of two, of two sequences, and of all."""
    monkeypatch.setattr(functional, "PIECE", piece)
    constants, _ = make_case((5, 3, 9, 4))
    _, value = make_case((5, 3, 5, 4), seed=1)
    places, real = make_places(5, 9, 5, make_mask(kind, 5, 5))
    spread, mask = torch.zeros(5, 3, 9, 4, dtype=torch.float64), torch.zeros(5, 9, dtype=torch.bool)
    for row in range(5):
        spread[row][:, places[row]] = value[row]
        mask[row, places[row]] = real[row]
    expected, _ = explicit(constants, spread, mask)
    expected = torch.stack([own[where] for own, where in zip(expected, places, strict=True)])
    result = gathered_attention(constants, value, places, real)
    assert result.shape == (5, 5, 3, 4)
    assert_close(result, expected, **EXACT)


def test_gathered_attention_in_lower_precision_and_backward():
    constants, value = make_case((4, 2, 6, 3), dtype=torch.float32)
    places, real = make_places(4, 6, 6, make_mask("holes", 4, 6))
    half = gathered_attention(constants.bfloat16(), value.bfloat16(), places, real)
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), gathered_attention(constants, value, places, real), atol=0.05, rtol=0.05)
    own = [tensor.double().requires_grad_() for tensor in (constants[:, :3, :3] + 0.5, value[:2, :, :2])]
    places, real = make_places(2, 3, 2, None)
    assert torch.autograd.gradcheck(lambda first, second: gathered_attention(first, second, places, real), own)


def test_pairs_are_added_in_order():
    sums = torch.ones(2, 9, dtype=torch.float64)
    places, _ = make_places(6, 3, 2, None)
    pairs = pair_index(places, 3)
    entries = torch.rand(6, 2, 2, 2)
    expected = sums.view(2, 3, 3).clone()
    for row, column in [(i, j) for i in range(2) for j in range(2)]:
        for batch in range(6):
            query, key = divmod(int(pairs[batch, row, column]), 3)
            expected[:, query, key] += entries[batch, :, row, column]
    add_pairs(sums, pairs.flatten(1), entries.flatten(2))
    assert_close(sums.view(2, 3, 3), expected, **EXACT)


def test_row_without_mass_is_zero_not_nan():
    constants, value = make_case((2, 2, 4, 3))
    constants[:, 1] = 0
    result = constant_attention(constants, value)
    assert torch.equal(result[:, 1], torch.zeros_like(result[:, 1]))
    assert result.isfinite().all()
    assert normalized_constants(constants, None).isfinite().all()


@pytest.mark.parametrize("kind", ["none", "holes", "some_empty", "all_empty"])
def test_gradients_of_constant_attention(kind):
    constants, value = make_case((3, 2, 4, 2))
    constants = (constants + 0.1).requires_grad_()
    value = value.requires_grad_()
    mask = make_mask(kind, 3, 4)
    assert torch.autograd.gradcheck(lambda c, v: constant_attention(c, v, mask), (constants, value))
    cotangent = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast = torch.autograd.grad((constant_attention(constants, value, mask) * cotangent).sum(), (constants, value))
    slow = torch.autograd.grad((explicit(constants, value, mask)[0] * cotangent).sum(), (constants, value))
    for one, other in zip(fast, slow, strict=True):
        assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kind", ["none", "holes", "some_empty"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision(dtype, tolerance, kind):
    constants, value = make_case((4, 3, 16, 5), dtype)
    mask = make_mask(kind, 4, 16)
    expected, matrices = explicit(constants.double(), value.double(), mask)
    for result in (
        constant_attention(constants, value, mask),
        apply_attention(normalized_constants(constants, mask), value),
    ):
        assert result.dtype is dtype
        assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    normalized = normalized_constants(constants, mask)
    assert normalized.dtype is dtype
    assert_close(normalized.double().expand_as(matrices), matrices, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow_or_divide_by_zero(dtype):
    """1e-12 is 0 in float16, and the mass of small constants is blurred there."""
    value = torch.ones(2, 1, 512, 4, dtype=dtype)
    constants = torch.full((1, 512, 512), 1 / 512, dtype=dtype)
    mask = torch.ones(2, 512)
    mask[0, 3:] = 0
    for result in (
        constant_attention(constants, value, mask),
        apply_attention(normalized_constants(constants, mask), value),
    ):
        assert_close(result[0, :3], torch.ones_like(result[0, :3]), atol=1e-2, rtol=0)
        assert_close(result[1], torch.ones_like(result[1]), atol=1e-2, rtol=0)
        assert torch.equal(result[0, 3:], torch.zeros_like(result[0, 3:]))


def test_mass_is_exact_under_autocast():
    constants = torch.rand(2, 33, 33, generator=torch.Generator().manual_seed(0))
    mask = make_mask("holes", 3, 33)
    expected = torch.einsum("hij,bj->bhi", constants.double(), mask.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mass = constant_mass(constants, mask)
        mixed = constant_attention(constants, torch.randn(3, 2, 33, 4).bfloat16(), mask)
    assert mass.dtype is torch.float32
    assert_close(mass.double(), expected, atol=1e-4, rtol=1e-5)
    assert mixed.dtype is torch.bfloat16


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of every tensor that an operation makes, backward included."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_no_matrix_for_every_sequence(kind):
    batch, heads, length, width = 6, 3, 20, 2
    constants, value = make_case((batch, heads, length, width))
    constants.requires_grad_()
    value.requires_grad_()
    mask = make_mask(kind, batch, length)
    with LargestTensor() as watch:
        constant_attention(constants, value, mask).sum().backward()
    assert 0 < watch.largest <= heads * length * length < batch * heads * length * length
    if mask is not None:
        with LargestTensor() as watch:
            normalized_constants(constants, mask)
        assert watch.largest >= batch * heads * length * length  # the watch does see such a tensor


@pytest.mark.parametrize("kind", [mask for mask in MASKS if mask not in ("some_empty", "all_empty")])
@pytest.mark.parametrize("shape", SHAPES)
def test_attention_probabilities(shape, kind):
    batch, heads, length, _ = shape
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = make_mask(kind, batch, length)
    scores = torch.einsum("bhid,bhjd->bhij", query, key) * 0.37
    if mask is not None:
        scores = scores + torch.log(mask.double())[:, None, None, :]
    expected = torch.softmax(scores, dim=-1)
    result = attention_probabilities(query, key, mask, 0.37)
    assert_close(result, expected, **EXACT)
    assert_close(result.sum(-1), torch.ones(batch, heads, length, dtype=torch.float64), **EXACT)
    mixed = dynamic_attention(query, key, value, mask, 0.37)
    assert_close(mixed, (expected @ value).transpose(1, 2), **EXACT)

    query.requires_grad_()  # another path than without gradients
    traced = attention_probabilities(query, key, mask, 0.37)
    assert_close(traced, expected, **EXACT)
    (gradient,) = torch.autograd.grad((traced[:, :, -1, -1]).sum(), query)
    last = expected[:, :, -1]
    slope = last[..., -1:] * (key[:, :, -1] - torch.einsum("bhj,bhjd->bhd", last, key)) * 0.37
    assert_close(gradient[:, :, -1], slope, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_probabilities_are_taken_in_float32(dtype):
    query, key = torch.randn(2, 2, 3, 64, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = attention_probabilities(query, key, torch.ones(2, 64), 0.3)
    assert result.dtype is torch.float32
    assert_close(result.sum(-1), torch.ones(2, 3, 64), atol=1e-5, rtol=0)


def test_large_scores_do_not_overflow():
    query = torch.full((1, 1, 2, 4), 1e3)
    result = attention_probabilities(query, query, torch.tensor([[1, 0]]), 1.0)
    assert torch.equal(result, torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]]))


def test_sequence_of_padding_has_uniform_rows():
    query = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    assert_close(attention_probabilities(query, query, torch.zeros(1, 4), 0.5), torch.full((1, 2, 4, 4), 0.25))


def test_sequence_of_padding_harms_no_gradient():
    """A row without any allowed key must not turn the gradient of its neighbours into NaN."""
    query = torch.randn(2, 1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    key = query.detach().clone().requires_grad_()
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    attention_probabilities(query, key, mask, 0.5)[0, 0, 0, 0].backward()
    assert query.grad.isfinite().all()
    assert key.grad.isfinite().all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_sum_of_attention_survives_a_sequence_of_padding(broken):
    attention = torch.softmax(torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    pairs = mask[:, None, :, None] * mask[:, None, None, :]
    expected = (attention * pairs).sum(0)
    attention[1] = broken
    attention[0, :, 2] = broken  # a padding query
    attention[0, :, :, 2] = broken  # a padding key
    assert_close(masked_attention_sum(attention.clone(), mask), expected, **EXACT)
    assert_close(masked_attention_sum(attention.clone(), mask.bool()), expected, **EXACT)


def test_sum_of_attention_keeps_nan_of_real_tokens():
    attention = torch.ones(2, 1, 2, 2)
    attention[1, 0, 0, 1] = float("nan")
    assert masked_attention_sum(attention, torch.ones(2, 2)).isnan().tolist() == [[[False, True], [False, False]]]


def test_sum_of_attention_without_mask():
    attention = torch.rand(3, 2, 4, 4)
    assert_close(masked_attention_sum(attention.clone(), None), attention.sum(0))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_pair_counts(dtype):
    mask = make_mask("holes", 50, 6).to(dtype)
    counts = pair_counts(mask)
    assert counts.dtype is torch.float64
    expected = [[sum(bool(row[i]) and bool(row[j]) for row in mask) for j in range(6)] for i in range(6)]
    assert counts.tolist() == expected


def test_average_is_zero_where_nothing_was_counted():
    sums = torch.tensor([[[2.0, 0.0], [3.0, 8.0]]])
    counts = torch.tensor([[4.0, 0.0], [1.0, 2.0]])
    assert torch.equal(average_attention(sums, counts), torch.tensor([[[0.5, 0.0], [3.0, 4.0]]]))
    poisoned = torch.tensor([[[2.0, float("nan")], [3.0, 8.0]]])
    assert average_attention(poisoned, counts).isfinite().all()


def test_gate_mixture():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, dtype=torch.float64, generator=generator, requires_grad=True)
    dynamic, constant = torch.randn(2, 2, 5, 3, 4, dtype=torch.float64, generator=generator)
    gate = 1 / (1 + torch.exp(-logits))[:, None]
    mixture = gate_mixture(logits[:, None], dynamic, constant)
    assert_close(mixture, gate * dynamic + (1 - gate) * constant, **EXACT)
    mixture.sum().backward()
    slope = (gate * (1 - gate) * (dynamic - constant)).sum((0, 1, 3))
    assert_close(logits.grad, slope, **EXACT)


@pytest.mark.parametrize(("logit", "kept"), [(50.0, "dynamic"), (-50.0, "constant")])
def test_closed_gates_are_one_kind_only(logit, kept):
    dynamic, constant = torch.rand(2, 3, 4)
    expected = dynamic if kept == "dynamic" else constant
    assert_close(gate_mixture(torch.full((4,), logit), dynamic, constant), expected)


def test_gate_mixture_keeps_the_dtype_of_the_dynamic_part():
    half = torch.ones(2, 3, dtype=torch.bfloat16)
    assert gate_mixture(torch.zeros(3), half, half).dtype is torch.bfloat16


def test_dropout_is_drawn_for_every_sequence():
    torch.manual_seed(0)
    attention = torch.full((1, 1, 32, 32), 1 / 32)
    result = apply_attention(attention, torch.ones(4, 1, 32, 1), dropout=0.5)
    assert len({tuple(sequence.flatten().tolist()) for sequence in result}) == 4


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    constants, value = make_case((2, 2, 5, 3))
    mask = make_mask("holes", 2, 5)
    mean = sum(apply_attention(normalized_constants(constants, mask), value, dropout=0.3) for _ in range(4000)) / 4000
    assert_close(mean, constant_attention(constants, value, mask), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.float16, torch.float32)],
)
def test_accumulation_dtype(dtype, expected):
    assert accumulation_dtype(dtype) is expected


def test_fused_kernel_drops_only_in_training():
    query, key, value = torch.randn(3, 2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    expected = F.scaled_dot_product_attention(query, key, value, scale=0.5).transpose(1, 2)
    assert_close(dynamic_attention(query, key, value, None, 0.5), expected)
    assert not torch.allclose(dynamic_attention(query, key, value, None, 0.5, dropout=0.5), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_padding_is_cleared_whatever_stands_there(dtype):
    attention = torch.randn(3, 2, 2, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = make_mask("holes", 3, 5)
    mask[1] = 0
    padding = ~(mask.bool()[:, None, 2:4, None] & mask.bool()[:, None, None, :])
    expected = attention.masked_fill(padding, 0.0)
    for broken in (float("nan"), float("inf"), -1.0):
        found = attention.masked_fill(padding, broken)
        clear_padding(found, mask, first=2)
        assert torch.equal(found, expected)


class Results(TorchDispatchMode):
    """Keeps all tensors that operations give, so that no memory is taken twice."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.tensors += [result] if isinstance(result, torch.Tensor) else []
        return result


@pytest.mark.parametrize("kind", ["none", "holes"])
def test_values_are_copied_into_the_product_and_out_of_it_only(kind):
    constants, value = make_case((8, 3, 4, 16))
    value = value.transpose(1, 2).contiguous().transpose(1, 2)  # as projections give it
    with Results() as results:
        mixed = constant_attention(constants, value, make_mask(kind, 8, 4))
    assert mixed.is_contiguous()
    memories = {one.untyped_storage().data_ptr() for one in results.tensors if one.numel() >= value.numel()}
    assert len(memories - {value.untyped_storage().data_ptr()}) == 3  # the copy in, the product, the copy out
