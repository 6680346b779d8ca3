"""The constant product in the interpreter, beside the functional core in float64."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from papa_lightning.attention.functional import constant_attention, gathered_attention
from papa_lightning.attention.mixer import Reach
from papa_lightning.errors import PapaError
from papa_lightning.kernels.constant import launches as constant_launch
from papa_lightning.kernels.constant import product as kernel
from papa_lightning.kernels.constant.launches import Blocks, readable
from papa_lightning.kernels.constant.product import RepeatedProduct, constant_product, faster
from papa_lightning.kernels.launch import precision

assert_close = torch.testing.assert_close
EVERYWHERE = Reach()
#: Largest relative error of results, by dtype.
ERRORS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of rows, columns and keys, and of the search for the ends of a mask, in short sequences."""
    monkeypatch.setattr(constant_launch, "product_blocks", lambda *_: Blocks(16, 32, 16, 4, 1))
    monkeypatch.setattr(constant_launch, "gradient_blocks", lambda _: Blocks(16, 16, 16, 4, 1))
    monkeypatch.setattr(constant_launch, "_CHUNK", 16)
    monkeypatch.setattr(constant_launch, "_SHORT", 16)
    monkeypatch.setattr(constant_launch, "_product_launch", constant_launch._product_launch.__wrapped__)
    return monkeypatch


class Case(NamedTuple):
    """Arguments of the product."""

    constants: Tensor
    value: Tensor
    mask: Tensor | None
    heads: tuple[int, ...]
    num_heads: int
    dynamic: Tensor | None
    reach: Reach
    places: Tensor | None

    def run(self, dropout=0.0):
        return constant_product(*self[:6], self.reach.before, self.reach.after, self.places, dropout)

    def learned(self):
        """What gets gradients."""
        found = (self.value, self.dynamic, self.constants)
        return [one for one in found if one is not None and one.requires_grad]

    def expected(self):
        """The same by the functional core, in float64."""
        count = self.value.shape[1]
        matrices = self.reach.cut(self.constants.double()).expand(count, -1, -1)
        if self.places is None:
            mixed = constant_attention(matrices, self.value.double(), self.mask)
        else:
            real = torch.ones_like(self.places) if self.mask is None else self.mask
            mixed = gathered_attention(matrices.contiguous(), self.value.double(), self.places, real)
        others = iter(() if self.dynamic is None else self.dynamic.double().unbind(2))
        own = dict(zip(self.heads, mixed.unbind(2), strict=True))
        return torch.stack([own[head] if head in own else next(others) for head in range(self.num_heads)], dim=2)


def make_case(
    batch=2,
    length=21,
    size=16,
    heads=(0, 2),
    num_heads=3,
    dtype=torch.float32,
    padded=True,
    reach=EVERYWHERE,
    slots=False,
    single=False,
    seed=0,
):
    """Values in a projection, constants in a longer buffer, dynamic values as of attention, and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    count, long = len(heads), length + 5
    buffer = 0.05 + torch.rand(1 if single else count, long, long, generator=generator)
    constants = (buffer if slots else buffer[:, :length, :length]).to(dtype)
    projection = torch.randn(batch, length, count + 1, size, generator=generator).to(dtype)
    value = projection[:, :, 1:].transpose(1, 2)
    dynamic = torch.randn(batch, num_heads - count, length, size, generator=generator).to(dtype).transpose(1, 2)
    mask = None
    if padded:
        mask = torch.rand(batch, length, generator=generator) > 0.3
        mask[-1, length // 2 :] = False
    places = None
    if slots:
        places = torch.stack([torch.randperm(long, generator=generator)[:length] for _ in range(batch)])
    return Case(
        constants.requires_grad_(not slots),
        value.requires_grad_(),
        mask,
        heads,
        num_heads,
        dynamic.requires_grad_() if count < num_heads else None,
        reach,
        places,
    )


def check(case):
    """Results and gradients are those of the functional core, each up to the rounding of its largest number.

    Of the gradient of constants that is a product of a gradient with a value: two of them may cancel each other.
    """
    result, expected = case.run(), case.expected()
    assert result.is_contiguous()
    assert result.dtype == case.value.dtype
    grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    known = expected.detach() if case.mask is None else expected.detach() * case.mask[..., None, None]
    grad[:, :, case.heads] *= (known[:, :, case.heads].abs().sum(-1, keepdim=True) > 0).to(grad.dtype)
    found = [result, *torch.autograd.grad(result, case.learned(), grad)]
    wanted = [expected, *torch.autograd.grad(expected, case.learned(), grad.double())]
    given, values = grad[:, :, case.heads].double().abs(), case.value.detach().double().abs()
    products = torch.einsum("bihd,bhjd->bhij", given, values)
    mass = case.constants.detach().double().sum(-1)
    largest_product = float(products.max() / mass[mass > 0].min()) / 4
    for one, other in zip(found, wanted, strict=True):
        largest = max(1.0, float(other.detach().abs().max()))
        if one.shape == case.constants.shape:
            largest = max(largest, largest_product)
        assert_close(one.double(), other, rtol=0.0, atol=ERRORS[case.value.dtype] * largest, check_dtype=False)


@st.composite
def cases(draw):
    num_heads = draw(st.integers(1, 4))
    heads = draw(st.lists(st.integers(0, num_heads - 1), min_size=1, unique=True).map(sorted).map(tuple))
    limits = st.one_of(st.none(), st.integers(0, 12))
    return make_case(
        batch=draw(st.integers(1, 3)),
        length=draw(st.integers(1, 40)),
        size=draw(st.sampled_from([16, 20, 32, 48])),
        heads=heads,
        num_heads=num_heads,
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        padded=draw(st.booleans()),
        reach=Reach(draw(limits), draw(limits)),
        slots=draw(st.booleans()),
        single=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.no_cover  # the interpreter calls so many functions that counting lines doubles the time
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=cases())
def test_the_product_and_its_gradients_are_those_of_the_functional_core(case):
    check(case)


@pytest.mark.parametrize(
    "settings",
    [
        {"length": 70, "size": 80, "padded": False},
        {"length": 33, "size": 256, "heads": (0,), "num_heads": 1, "dtype": torch.float16},
        {"length": 140, "size": 16, "heads": (1,), "num_heads": 2, "reach": Reach(9, 0), "batch": 1},
        {"length": 1, "padded": False},
    ],
)
def test_blocks_of_every_size_give_the_product(settings):
    check(make_case(**settings))


@pytest.mark.usefixtures("small_blocks")
def test_one_matrix_mixes_more_channels_than_a_block_has():
    check(make_case(size=72, heads=(0,), num_heads=1, single=True))


def test_constants_may_have_another_dtype_and_their_mass_is_exact():
    case = make_case(dtype=torch.bfloat16, padded=False)
    constants, value = torch.full((2, 21, 21), 1.003).requires_grad_(), torch.ones(2, 2, 21, 16, dtype=torch.bfloat16)
    mixed = case._replace(constants=constants, value=value).run()[:, :, case.heads]
    # The nearest number of bfloat16 is 1: it is what is multiplied, but not what is summed.
    assert torch.equal(mixed, torch.full_like(mixed, 1 / 1.003))
    assert torch.autograd.grad(mixed.float().sum(), constants)[0].dtype == torch.float32


def test_rows_of_padding_and_rows_without_mass_are_zero_and_padding_may_hold_anything():
    case = make_case(padded=False)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[0, 15:] = mask[1] = False
    constants = case.constants.detach().clone()
    constants[0, 3] = 0.0
    constants.requires_grad_()
    value = case.value.detach().clone()
    value[~mask[:, None].expand(-1, 2, -1)] = float("nan")
    case = case._replace(mask=mask, constants=constants, value=value.requires_grad_())
    result = case.run()[:, :, case.heads]
    gradients = torch.autograd.grad(result.sum(), (value, constants))
    assert bool(result.isfinite().all())
    assert not result[0, 15:].any()
    assert not result[1].any()
    assert not result[0, 3, 0].any()
    assert result[0, 3, 1].all()
    assert all(bool(one.isfinite().all()) for one in gradients)
    assert not gradients[1][0, 3].any()
    assert not gradients[0][1].any()


def shown_matrices(case, dropout, seed):
    """The matrices (B, C, T, T) that mix values, read out by the values of an identity."""
    batch, count, length, size = case.value.shape
    torch.manual_seed(seed)
    shown = case._replace(value=torch.eye(length, size).expand(batch, count, -1, -1)).run(dropout)
    return shown[:, :, case.heads, :length].transpose(1, 2).detach()


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("settings", [{"padded": True}, {"padded": False}, {"slots": True, "padded": False}])
def test_dropout_is_of_entries_and_so_are_its_gradients(settings):
    case, drop = make_case(size=32, **settings), 0.25
    whole, shown = shown_matrices(case, 0.0, 0), shown_matrices(case, drop, 3)
    kept = shown != 0
    assert_close(shown, torch.where(kept, whole / (1 - drop), 0.0))
    assert abs(1.0 - float(kept[whole != 0].float().mean()) - drop) < 0.05
    assert torch.equal(shown, shown_matrices(case, drop, 3))
    assert not torch.equal(kept[0, 0] & (whole[0, 0] != 0), kept[0, 1] & (whole[0, 0] != 0))
    assert not torch.equal(shown, shown_matrices(case, drop, 4))

    torch.manual_seed(3)
    mixed = case.run(drop)
    grad = torch.randn(mixed.shape, generator=torch.Generator().manual_seed(1))
    learned = [one for one in (case.value, case.constants) if one.requires_grad]
    explicit = case.constants.double()
    if case.places is not None:
        explicit = explicit[:, case.places[:, :, None], case.places[:, None]].transpose(0, 1)
    real = torch.ones(2, 21) if case.mask is None else case.mask
    explicit = explicit * real.double()[:, None, :, None] * real.double()[:, None, None]
    explicit = explicit / explicit.sum(-1, keepdim=True).clamp_min(1e-12)
    wanted = (explicit * kept / (1 - drop)) @ case.value.double()
    assert_close(mixed[:, :, case.heads].double(), wanted.transpose(1, 2), rtol=0.0, atol=1e-5)
    found = torch.autograd.grad(mixed, learned, grad)
    known = torch.autograd.grad(wanted.transpose(1, 2), learned, grad[:, :, case.heads].double())
    for one, other in zip(found, known, strict=True):
        assert_close(one, other, rtol=0.0, atol=1e-5)


def test_what_dropout_keeps_does_not_hang_on_blocks(small_blocks):
    case = make_case(size=32, length=30)
    small = shown_matrices(case, 0.5, 0)
    small_blocks.undo()
    assert_close(small, shown_matrices(case, 0.5, 0))


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(PapaError, match="dropout is"):
        make_case().run(share)


def test_numbers_repeat_to_the_last_bit():
    case = make_case()
    first, again = case.run(), case.run()
    assert torch.equal(first, again)
    gradients = [torch.autograd.grad(one.square().sum(), case.learned()) for one in (first, again)]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_up_to_64_heads_have_a_bit_and_any_number_may_be_constant():
    case = make_case(batch=1, length=3, heads=(0, 31, 63), num_heads=64)
    assert_close(case.run(), case.expected().float())
    assert make_case(batch=1, length=2, heads=tuple(range(66)), num_heads=66).run().shape[2] == 66


def test_values_may_lie_in_memory_in_any_order():
    case = make_case(padded=False)
    value = case.value.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0).requires_grad_()
    constants = case.constants.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    dynamic = case.dynamic.detach().transpose(0, 3).contiguous().transpose(0, 3).requires_grad_()
    mask = torch.ones(2, 42, dtype=torch.bool)[:, ::2]
    check(case._replace(value=value, constants=constants, dynamic=dynamic, mask=mask))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_operator_is_what_torch_expects():
    case = make_case(length=2, batch=1)
    given = (case.constants, case.value, case.mask, case.dynamic, None, None, 0.0, 0b101, 3, 2**30, 2**30, True)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.papa_lightning.constant_product.default, given, test_utils=checks)


def test_stand_ins_of_tensors_go_through_the_operator():
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(one.detach()) for one in make_case()[:2]]
        mixed = constant_product(*fakes, None, (0, 1), 2)
    assert mixed.shape == (2, 21, 2, 16)


def test_a_compiled_graph_takes_the_operator_as_one():
    case = make_case(length=6)

    def layer(value, constants):
        return case._replace(value=value * 2.0, constants=constants).run().square().sum()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for one, other in zip(
        torch.autograd.grad(compiled(case.value, case.constants), (case.value, case.constants)),
        torch.autograd.grad(layer(case.value, case.constants), (case.value, case.constants)),
        strict=True,
    ):
        assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("heads", [(0, 2), (0, 1, 2)])
def test_a_repeated_product_is_the_product(heads, padded, dtype):
    repeated = RepeatedProduct(heads, 3)
    longest = make_case(heads=heads, length=25, dtype=dtype)
    whole = torch.nn.functional.pad(longest.constants.detach(), (0, 5, 0, 5), value=0.5)
    for length, batch, seed in ((21, 2, 0), (25, 2, 1), (21, 2, 2), (3, 1, 3), (21, 2, 0)):
        case = make_case(heads=heads, length=length, batch=batch, dtype=dtype, padded=padded, seed=seed)
        case = case._replace(constants=whole[:, :length, :length])
        with torch.no_grad():
            assert torch.equal(repeated(whole, case.value, case.mask, case.dynamic), case.run())
    assert len(repeated._launches) == 3


def test_a_repeated_product_keeps_few_launches_and_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(kernel, "_MOST_LAUNCHES", 2)
    repeated, case = RepeatedProduct((0, 2), 3), make_case()
    with torch.no_grad():
        for length in (1, 2, 3, 4, 5):
            repeated(case.constants, case.value[:, :, :length], None, case.dynamic[:, :length])
        assert len(repeated._launches) == 1
        with pytest.raises(PapaError, match="dynamic is None"):
            repeated(case.constants, case.value, None, None)
        with pytest.raises(PapaError, match="constants has shape"):
            repeated(case.constants[:, :4, :4], case.value, None, case.dynamic)


@pytest.mark.parametrize("heads", [(0, 2), (0, 1, 2)])
def test_one_mask_for_all_sequences(heads):
    case, repeated = make_case(batch=3, heads=heads), RepeatedProduct(heads, 3)
    each = case._replace(mask=case.mask[:1].repeat(3, 1))
    with torch.no_grad():
        wanted = each.run()
        assert torch.equal(repeated(each.constants, each.value, each.mask, each.dynamic), wanted)
        one = case._replace(mask=case.mask[:1])
        assert torch.equal(one.run(), wanted)
        assert torch.equal(repeated(one.constants, one.value, one.mask, one.dynamic), wanted)


def test_no_mass_is_kept_where_no_gradient_is_taken(monkeypatch):
    case, kept = make_case(), []
    own = kernel.launch_product
    monkeypatch.setattr(kernel, "launch_product", lambda *given, **how: kept.append(given[6]) or own(*given, **how))
    assert torch.equal(case.run(), case.run())
    with torch.no_grad():
        case.run()
    with torch.inference_mode():
        case.run()
    assert [one is None for one in kept] == [False, False, True, True]


@pytest.fixture
def matmul():
    """Torch's settings of matrix products, which are put back."""
    own = torch.backends.cuda.matmul
    before = getattr(own, "fp32_precision", None)
    yield own
    own.allow_tf32 = False
    if before is not None:
        own.fp32_precision = before


def test_tf32_is_used_where_torch_uses_it(matmul):
    value = torch.zeros(1, 1, 2, 16)
    matmul.allow_tf32 = False
    assert precision(value) == "ieee"
    matmul.allow_tf32 = True
    assert precision(value) == "tf32"
    assert precision(value.half()) == "ieee"
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = "ieee"
        assert precision(value) == "ieee"


def test_constants_are_read_beyond_the_length_only_inside_their_buffer():
    buffer = torch.zeros(3, 32, 32)
    assert readable(buffer[:, :20, :20], 20, 2) == 32
    assert readable(buffer[:, :20, :20].transpose(1, 2), 20, 1) == 32
    assert readable(buffer[:, :20, :20].transpose(1, 2), 20, 2) == 20
    assert readable(buffer, 32, 2) == 32
    assert readable(torch.zeros(3, 20, 20), 20, 2) == 20
    assert readable(buffer.flatten()[12:].as_strided((3, 20, 20), (1024, 32, 1)), 20, 2) == 32
    assert readable(buffer[:, 12:, 12:], 20, 2) == 20


def test_the_kernel_is_faster_in_half_precision():
    value = torch.zeros(1, 1, 2, 16)
    assert faster(value.bfloat16())
    assert faster(value.half())
    assert not faster(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constants": torch.zeros(2, 20, 20)}, r"constants has shape \(2, 20, 20\)"),
        ({"constants": torch.zeros(3, 21, 21)}, r"need \(2 or 1, 21, 21\)"),
        ({"mask": torch.ones(2, 20)}, r"mask has shape \(2, 20\), but must be \(2, 21\)"),
        ({"places": torch.ones(2, 20)}, "places has shape"),
        ({"places": torch.zeros(2, 21, dtype=torch.int64)}, "constants require a gradient"),
        ({"dynamic": None}, "dynamic is None, but 2 of 3 heads"),
        ({"heads": (0,)}, "1 of 3 heads"),
        ({"num_heads": 66, "dynamic": torch.zeros(2, 21, 64, 16)}, "num_heads is 66"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(PapaError, match=message):
        make_case()._replace(**changes).run()
