"""The pure functions of attention-free mixing against their formulas, and in the corners where sums underflow."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from unit.attention.direct_forms import MASKS, direct, make_mask, make_rows, offsets, toeplitz, toeplitz_of_grid

from papa_lightning.attention import aft_banded, aft_conv, aft_conv2d, aft_full, aft_local, aft_simple
from papa_lightning.attention.aft import conv as conv_module
from papa_lightning.attention.aft import functional as functional_module
from papa_lightning.attention.aft import means as aft_means
from papa_lightning.errors import PapaError

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-12, "rtol": 1e-12}
SHAPES = [(1, 1, 4), (3, 70, 4), (2, 64, 2), (1, 200, 2)]  # blocks have 32 rows: 1, 2, 2 and 6 of them
PRECISE = {torch.float64: EXACT, torch.float32: {"atol": 3e-5, "rtol": 3e-5}}


def cases(shape, mask_kind, dtype, spread, groups=2):
    """Rows in float64 and in the dtype, a position bias as wide as the keys, and a mask."""
    rows = make_rows(shape, spread=spread)
    generator = torch.Generator().manual_seed(1)
    bias = torch.randn(groups, shape[1] + 3, shape[1] + 3, generator=generator, dtype=torch.float64) * spread
    return rows, [tensor.to(dtype) for tensor in rows], bias, make_mask(mask_kind, shape[0], shape[1])


everywhere = [
    pytest.mark.parametrize("spread", [1.0, 50.0]),
    pytest.mark.parametrize("dtype", [torch.float64, torch.float32]),
    pytest.mark.parametrize("mask_kind", MASKS),
    pytest.mark.parametrize("shape", SHAPES),
]


def all_cases(test):
    for mark in everywhere:
        test = mark(test)
    return test


@pytest.mark.parametrize("causal", [False, True])
@all_cases
def test_full_simple_and_local_are_their_formulas(shape, mask_kind, dtype, spread, causal):
    length = shape[1]
    rows, given, bias, mask = cases(shape, mask_kind, dtype, spread)
    whole = bias[:, :length, :length].repeat_interleave(shape[2] // 2, dim=0)
    close = PRECISE[dtype]

    result = aft_full(*given, bias.to(dtype), mask, causal, chunk=16)
    assert result.dtype == dtype
    assert_close(result.double(), direct(*rows, whole, mask, causal), **close)
    simple = aft_simple(*given, mask, causal)
    assert_close(simple.double(), direct(*rows, 0 * whole, mask, causal), **close)
    for window in (0, 1, 5, 40, length + 2):
        local = aft_local(*given, bias.to(dtype), window, mask, causal)
        inside = offsets(length).abs() < window
        assert_close(local.double(), direct(*rows, whole * inside, mask, causal), **close)
    assert_close(aft_local(*given, bias.to(dtype), 0, mask, causal), simple, **close)
    assert_close(local, result, **close)  # a window of T or more


@pytest.mark.parametrize("causal", [False, True])
@all_cases
def test_conv_is_local_with_a_toeplitz_bias(shape, mask_kind, dtype, spread, causal):
    batch, length, width = shape
    (query, key, value), given, _, mask = cases(shape, mask_kind, dtype, spread)
    by_head = [tensor.view(batch, length, 2, -1) for tensor in given]
    for size in (1, 4, 9, 65):
        kernel = torch.randn(2, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) * spread
        bias = toeplitz(kernel, length, size - 1 if causal else (size - 1) // 2).repeat_interleave(width // 2, dim=0)
        keys = key[..., :2].repeat_interleave(width // 2, dim=-1)
        expected = direct(query, keys, value, bias, mask, causal)
        result = aft_conv(by_head[0], given[1][..., :2], by_head[2], kernel.to(dtype), mask, causal).flatten(2)
        assert_close(result.double(), expected, **PRECISE[dtype])
        if size % 2 and not causal:
            local = aft_local(query, keys, value, bias, (size + 1) // 2, mask)
            assert_close(local, expected, **EXACT)


@all_cases
def test_conv_over_a_grid_is_its_formula(shape, mask_kind, dtype, spread):
    side = 8 if shape[1] > 1 else 1
    shape = (shape[0], side * side, shape[2])
    (query, key, value), given, _, mask = cases(shape, mask_kind, dtype, spread)
    by_head = [tensor.view(*shape[:2], 2, -1) for tensor in given]
    for size in (1, 2, 5, 11):
        kernel = torch.randn(2, size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) * spread
        bias = toeplitz_of_grid(kernel, side).repeat_interleave(shape[2] // 2, dim=0)
        expected = direct(query, key[..., :2].repeat_interleave(shape[2] // 2, dim=-1), value, bias, mask)
        result = aft_conv2d(by_head[0], given[1][..., :2], by_head[2], kernel.to(dtype), side, mask)
        assert_close(result.flatten(2).double(), expected, **PRECISE[dtype])


def calls(length, causal=False):
    """By name: a function of query, key, value (B, T, 4) and mask."""
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(length, length, generator=generator)
    kernel, grid = torch.randn(2, 5, generator=generator), torch.randn(2, 3, 3, generator=generator)

    def conv(q, k, v, mask):
        return aft_conv(q.unflatten(-1, (2, -1)), k[..., :2], v.unflatten(-1, (2, -1)), kernel, mask, causal).flatten(2)

    def conv2d(q, k, v, mask):
        side = round(length**0.5)
        return aft_conv2d(q.unflatten(-1, (2, -1)), k[..., :2], v.unflatten(-1, (2, -1)), grid, side, mask).flatten(2)

    found = {
        "full": lambda q, k, v, mask: aft_full(q, k, v, bias, mask, causal, chunk=16),
        "simple": lambda q, k, v, mask: aft_simple(q, k, v, mask, causal),
        "local": lambda q, k, v, mask: aft_local(q, k, v, bias, 3, mask, causal),
        "conv": conv,
    }
    return found if causal else {**found, "conv2d": conv2d}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_half_precision_and_autocast_compute_in_float32(dtype, causal):
    query, key, value = (tensor.to(dtype) for tensor in make_rows((2, 64, 4), spread=50.0))
    for name, call in calls(64, causal).items():
        expected = call(query.float(), key.float(), value.float(), None)
        result = call(query, key, value, None)
        assert result.dtype == dtype, name
        assert_close(result, expected.to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(call(query.float(), key.float(), value.float(), None), expected, atol=0, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_what_stands_at_padding_changes_nothing_and_rows_without_keys_are_zero(causal):
    rows = [tensor.float() for tensor in make_rows((3, 64, 4))]
    mask = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[1] = False
    mask[2, :10] = False
    spoilt = [rows[0], *(tensor.masked_fill(~mask[..., None], torch.nan) for tensor in rows[1:])]
    for name, call in calls(64, causal).items():
        given = [tensor.clone().requires_grad_() for tensor in spoilt]
        result = call(*given, mask.long())
        assert_close(result, call(*rows, mask), atol=0, rtol=0)
        assert (result[1] == 0).all(), name
        assert (result[2, :10] == 0).all() == causal, name
        result.sum().backward()
        assert all(tensor.grad.isfinite().all() for tensor in given), name


def test_no_row_depends_on_a_later_one():
    for name, call in calls(64, causal=True).items():
        rows = [tensor.float().requires_grad_() for tensor in make_rows((1, 64, 4))]
        for row in (0, 31, 40):
            gradients = torch.autograd.grad(call(*rows, None)[:, row].sum(), rows)
            for gradient in gradients[1:]:
                assert (gradient[:, row + 1 :] == 0).all(), name
                assert (gradient[:, : row + 1] != 0).any(dim=-1).all() or row == 0, name


def opposite_signs(length, spread):
    """Keys and a bias of +-spread that cancel: fine together, but with maxima taken apart all sums underflow."""
    query, key, value = make_rows((2, length, 2))
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(length)[:length] * spread
    bias = torch.randn(length, length, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - signs
    return [tensor.requires_grad_() for tensor in (query, key + signs[:, None], value, bias)]


@pytest.mark.parametrize("spread", [0.0, 400.0])  # 400: what float64 loses is redone, and gradients pass through
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_formula(causal, spread):
    query, key, value, bias = opposite_signs(5, spread)
    kernel = torch.randn(1, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 1, 1]])

    def conv(query, key, value, kernel):
        return aft_conv(query[:, :, None], key[..., :1], value[:, :, None], kernel, mask, causal)

    def check(call, *given):
        assert torch.autograd.gradcheck(call, given, fast_mode=True)

    check(lambda *x: aft_full(*x, mask, causal, chunk=2), query, key, value, bias)
    check(lambda *x: aft_local(*x, 3, mask, causal), query, key, value, bias)
    check(lambda *x: aft_simple(*x, mask, causal), query, key, value)
    check(conv, query, key, value, kernel)


def test_gradients_of_a_grid_are_those_of_the_formula():
    query, key, value = (tensor.requires_grad_() for tensor in make_rows((1, 4, 2)))
    kernel = torch.randn(1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    conv = lambda q, k, v, w: aft_conv2d(q[:, :, None], k[..., :1], v[:, :, None], w, side=2)  # noqa: E731
    assert torch.autograd.gradcheck(conv, (query, key, value, kernel))


def test_a_bias_of_minus_infinity_forbids_a_key():
    query, key, value = make_rows((1, 6, 2))
    allowed = torch.eye(6, dtype=torch.bool)
    allowed[2] = False
    bias = torch.zeros(6, 6, dtype=torch.float64).masked_fill(~allowed, -torch.inf)
    result = aft_full(query, key, value, bias)
    own = (torch.sigmoid(query) * value).masked_fill(~allowed.any(1)[:, None], 0.0)
    assert_close(result, own, **EXACT)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("causal", [False, True])
def test_no_tensor_is_larger_than_the_band_allows(causal):
    length, width = 512, 8
    rows = [torch.randn(1, length, width, requires_grad=True) for _ in range(3)]
    band = torch.randn(1, length, 8, requires_grad=True)
    with LargestTensor() as largest:
        aft_banded(*rows, band, -7, None, causal).sum().backward()
        aft_simple(*rows, None, causal).sum().backward()
    assert largest.elements <= length * 3 * 40  # blocks of 32 rows see three of keys; a whole bias has T T = 13 of that
    bias = torch.randn(length, length, requires_grad=True)
    with LargestTensor() as largest:
        aft_full(*rows, bias, None, causal, chunk=64).sum().backward()
    assert largest.elements <= length * length  # no (B, T, T, d), and no (B, chunk, T, d)


def test_only_what_underflows_is_redone(monkeypatch):
    def redone(*_):
        raise AssertionError("redone")

    monkeypatch.setattr(aft_means, "_exact_means", redone)
    query, _, value = (tensor.float() for tensor in make_rows((2, 128, 4)))
    key = torch.full_like(query, -50.0)
    key[:, 64:] = 50.0  # a maximum of the whole sequence would wipe out the first half
    mask = torch.arange(128).expand(2, -1) >= 40  # and 40 rows have no key at all
    aft_simple(query, key, value, mask, causal=True)
    aft_full(query, key, value, torch.zeros(128, 128), mask, causal=True, chunk=32)
    key[:, 30] = 50.0
    with pytest.raises(AssertionError, match="redone"):
        aft_simple(query, key, value, causal=True)


def kept_numbers(call, given):
    """Number of values that autograd saves in a call, beside its arguments."""
    places = {tensor.untyped_storage().data_ptr() for tensor in given}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor  # kept alive, so that no place is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(tensor.untyped_storage().nbytes() // 4 for place, tensor in kept.items() if place not in places)


@pytest.mark.parametrize("name", ["full", "simple", "simple, causal", "banded", "conv", "conv2d"])
def test_the_backward_pass_finds_the_inputs_only(name, monkeypatch):
    rows = [torch.randn(1, 256, 4, requires_grad=True) for _ in range(3)]
    heads = [torch.randn(1, 256, 2, *size, requires_grad=True) for size in ((2,), (), (2,))]
    bias, band, kernel, kernel2d = (
        torch.randn(size, requires_grad=True) for size in ((256, 256), (1, 256, 9), (2, 9), (2, 3, 3))
    )
    calls = {
        "full": lambda: aft_full(*rows, bias, chunk=32),
        "simple": lambda: aft_simple(*rows),
        "simple, causal": lambda: aft_simple(*rows, causal=True),
        "banded": lambda: aft_banded(*rows, band, -4),
        "conv": lambda: aft_conv(*heads, kernel),
        "conv2d": lambda: aft_conv2d(*heads, kernel2d, side=16),
    }
    given = [*rows, *heads, bias, band, kernel, kernel2d]
    assert kept_numbers(calls[name], given) == 0
    for module in (functional_module, conv_module):
        monkeypatch.setattr(module, "recomputed", lambda function, *args: function(*args))
    assert kept_numbers(calls[name], given) > 2**11, "without computing again"


def test_the_package_aft_pytorch_gives_the_same_on_small_inputs():
    values = json.loads((Path(__file__).parent / "aft_pytorch_values.json").read_text())
    for kind, call in {"AFTFull": aft_full, "AFTSimple": aft_simple, "AFTLocal": aft_local}.items():
        case = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in values[kind].items()}
        more = {"AFTFull": [case["bias"]], "AFTSimple": [], "AFTLocal": [case["bias"], 2]}[kind]
        assert_close(call(case["query"], case["key"], case["value"], *more), case["result"], **EXACT)


def test_what_does_not_fit_is_refused_by_name():
    x = torch.randn(2, 9, 4)
    four = x.unflatten(-1, (2, 2))
    refused = {
        "same shape": lambda: aft_simple(x, x, x[:, :5]),
        "no tokens": lambda: aft_simple(x[:, :0], x[:, :0], x[:, :0]),
        "mask has the shape": lambda: aft_simple(x, x, x, torch.ones(2, 8)),
        "must be square": lambda: aft_full(x, x, x, torch.zeros(8, 8)),
        "does not divide the 4 channels": lambda: aft_full(x, x, x, torch.zeros(3, 9, 9)),
        "chunk is 0": lambda: aft_full(x, x, x, torch.zeros(9, 9), chunk=0),
        "window is -1": lambda: aft_local(x, x, x, torch.zeros(9, 9), window=-1),
        "band has the shape": lambda: aft_banded(x, x, x, torch.zeros(8, 3), first=-1),
        "kernel has the shape": lambda: aft_conv(four, x[..., :2], four, torch.zeros(3, 3)),
        "and key \\(sequences": lambda: aft_conv(four, x[..., :3], four, torch.zeros(2, 3)),
        "no grid of 4 x 4": lambda: aft_conv2d(four, x[..., :2], four, torch.zeros(2, 3, 3), side=4),
    }
    for words, call in refused.items():
        with pytest.raises(PapaError, match=words):
            call()
