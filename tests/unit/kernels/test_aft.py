"""Attention-free mixing by kernels against the torch forms in float64: forward, gradients, and where it is used."""

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn
from unit.attention.direct_forms import make_mask

from papa_lightning.attention import KINDS, NormalizedKernel, Place, Reach, aft_banded, aft_conv, aft_full, aft_simple
from papa_lightning.attention.aft import bias as bias_module
from papa_lightning.attention.aft import conv as conv_module
from papa_lightning.attention.aft import functional as functional_module
from papa_lightning.attention.aft import mixers as mixers_module
from papa_lightning.attention.aft.functional import banded_mixture, simple_mixture
from papa_lightning.kernels.aft import call as call_module
from papa_lightning.kernels.aft import mixing as kernels
from papa_lightning.kernels.aft import normalizing, plans, scan_launches
from papa_lightning.kernels.aft.call import Call

assert_close = torch.testing.assert_close
FORMS = ("simple", "band", "kernel", "full")
KEYS = ("channels", "shared", "summed")


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 16 x 16, so that short sequences have several chunks; the interpreter has no products in bfloat16."""
    own = plans.settings

    def smaller(*given):
        found = own(*given)
        return found._replace(size=16, keys=32, rows=16, channels=16, precision=found.precision.replace("bf16", "tf32"))

    monkeypatch.setattr(plans, "settings", smaller)
    monkeypatch.setattr(scan_launches, "_SHORTEST", 8)
    forget_plans()
    yield
    forget_plans()


def forget_plans():
    """Plan calls of the same sizes anew."""
    scan_launches.plan.cache_clear()
    plans.plan.cache_clear()


def reference(query, key, value, mask, causal, groups, weight, first, affine, summed, gate):
    """The torch forms, in the dtype of the tensors."""
    key, value = key.nan_to_num(), value.nan_to_num()
    if affine is not None:
        query = query * affine[0] + affine[1]
        key = key * affine[2] if key.shape[2] == value.shape[2] else key
    if summed:
        key = key.unflatten(2, (groups, -1)).sum(3)
    if key.shape[2] != value.shape[2]:
        key = key.repeat_interleave(value.shape[2] // groups, dim=2)
    if weight is None:
        return gate * simple_mixture(query, key, value, mask, causal)
    if first is None:
        return gate * aft_full(query, key, value, weight, mask, causal)
    return gate * banded_mixture(query, key, value, weight, first, mask, causal)


def make_case(form, keys, batch, length, groups, width, masked, spread, affine, seed=0):
    """Tensors of the operator in float64, by name, beside its other arguments; what is masked is NaN."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    channels = groups * width
    tensors = {
        "query": normal(batch, length, channels),
        "key": normal(batch, length, groups if keys == "shared" else channels) * spread,
        "value": normal(batch, length, channels),
    }
    first = None
    if form == "band":
        tensors["weight"], first = normal(groups, length, 5) * spread, -3
    elif form == "kernel":
        tensors["weight"], first = normal(groups, 1, 20) * spread, -19
    elif form == "full":
        tensors["weight"] = normal(groups, length, length) * spread
        tensors["weight"][0, 0] = -torch.inf  # a row that may look at nothing
    if affine or keys == "summed":
        tensors |= {"a": normal(channels) + 1.0, "b": normal(channels), "c": (normal(channels) + 1.0) / width**0.5}
    mask = make_mask(masked, batch, length)
    if mask is not None:
        for name in ("key", "value"):
            tensors[name][~mask] = torch.nan
    return tensors, mask, {"groups": groups, "first": first, "summed": keys == "summed", "gate": 2.0}


def results(call, tensors, mask, causal, others, up):
    """The output, and the gradients of all tensors."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    affine = (leaves["a"], leaves["b"], leaves["c"]) if "a" in leaves else None
    rows = [leaves[name] for name in ("query", "key", "value")]
    out = call(*rows, mask, causal, weight=leaves.get("weight"), affine=affine, **others)
    gradients = torch.autograd.grad(out, list(leaves.values()), up.to(out.dtype), allow_unused=True)
    return {"out": out.detach(), **dict(zip(leaves, gradients, strict=True))}


def check(form, keys, causal, dtype, spread=1.0, **sizes):
    """Compare the operator with the torch forms in float64."""
    tensors, mask, others = make_case(form, keys, spread=spread, **sizes)
    given = {
        name: one.to(dtype if name in ("query", "key", "value") else torch.float32) for name, one in tensors.items()
    }
    up = torch.randn(tensors["value"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = results(kernels.attention_free_mixing, given, mask, causal, others, up)
    exact = {name: one.double() for name, one in given.items()}
    expected = results(reference, exact, mask, causal, others, up)
    assert found["out"].dtype == dtype
    for name, wanted in expected.items():
        if wanted is None:
            assert found[name] is None, name
            continue
        assert found[name].dtype == (dtype if name == "out" else given[name].dtype), name
        close = 1e-5 * max(1.0, spread / 5) if dtype == torch.float32 else 0.02
        scale = wanted.abs().max().clamp_min(0.1)
        assert (found[name].double() - wanted).abs().max() <= close * scale, name


@pytest.mark.no_cover  # the interpreter calls so many functions that counting lines doubles the time
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    form=st.sampled_from(FORMS),
    keys=st.sampled_from(KEYS),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    batch=st.integers(1, 2),
    length=st.integers(1, 20),
    groups=st.integers(1, 2),
    width=st.sampled_from([1, 5, 16]),
    masked=st.sampled_from(["none", "holes", "left", "empty"]),
    affine=st.booleans(),
)
@example("band", "channels", True, torch.float32, 1, 36, 1, 20, "holes", True)
@example("simple", "channels", False, torch.float32, 2, 20, 1, 5, "empty", False)
@example("kernel", "shared", False, torch.float16, 1, 50, 1, 5, "none", True)
def test_the_operator_is_the_torch_form(form, keys, causal, dtype, batch, length, groups, width, masked, affine):
    sizes = {"batch": batch, "length": length, "groups": groups, "width": width, "masked": masked, "affine": affine}
    check(form, keys, causal, dtype, **sizes)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["simple", "band", "full"])
def test_sums_that_underflow_are_exact(form, causal):
    sizes = {"batch": 1, "length": 20, "groups": 1, "width": 3, "masked": "left", "affine": False}
    check(form, "channels", causal, torch.float32, spread=80.0, **sizes)


def test_strides_and_a_wide_head_of_one_key():
    """Rows that are slices of one product, and a head of more channels than a program sums."""
    torch.manual_seed(0)
    rows = torch.randn(1, 17, 3 * 144)
    query, key, value = (part.detach().requires_grad_() for part in rows.split(144, dim=2))
    affine = tuple((torch.randn(1, 144) / 4).requires_grad_() for _ in range(3))
    weight = torch.randn(1, 1, 3)
    arguments = {"groups": 1, "weight": weight, "first": -2, "affine": affine, "summed": True, "gate": 1.0}
    found = kernels.attention_free_mixing(query, key, value, None, True, **arguments)
    expected = reference(query, key, value, None, True, **arguments)
    assert_close(found, expected, atol=1e-5, rtol=1e-5)
    inputs = (query, key, value, *affine)
    gradients = [torch.autograd.grad(one.square().sum(), inputs) for one in (found, expected)]
    assert_close(*gradients, atol=1e-4, rtol=1e-4)


def bias_of(form):
    """Position bias of 19 tokens, and the offset of the first column of a band."""
    shape, first = {"simple": (None, None), "band": ((1, 1, 5), -2), "full": ((1, 19, 19), None)}[form]
    return None if shape is None else torch.randn(shape), first


@pytest.mark.parametrize("form", ["simple", "band", "full"])
@pytest.mark.parametrize("causal", [False, True])
def test_one_mask_for_all_sequences(form, causal):
    torch.manual_seed(0)
    rows = torch.randn(3, 3, 19, 4)
    weight, first = bias_of(form)
    mask = make_mask("holes", 1, 19)
    found = kernels.attention_free_mixing(*rows, mask, causal, weight=weight, first=first)
    each = kernels.attention_free_mixing(*rows, mask.repeat(3, 1), causal, weight=weight, first=first)
    assert torch.equal(found, each)


@pytest.mark.parametrize("form", ["simple", "band", "full"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_batch_without_sequences(form, causal):
    rows = torch.zeros(3, 0, 19, 4, requires_grad=True)
    weight, first = bias_of(form)
    affine = tuple(torch.randn(4, requires_grad=True) for _ in range(3))
    learned = [rows, *affine] + ([] if weight is None else [weight.requires_grad_()])
    mixed = kernels.attention_free_mixing(*rows.unbind(), None, causal, weight=weight, first=first, affine=affine)
    assert mixed.shape == (0, 19, 4)
    gradients = torch.autograd.grad(mixed.sum(), learned)
    for one, gradient in zip(learned, gradients, strict=True):
        assert torch.equal(gradient, torch.zeros_like(one))


def test_heads_in_a_layout_of_their_own_get_gradients_of_their_shape():
    """Rows (B, H, T, h) that are contiguous, and not views of a projection."""
    torch.manual_seed(0)
    rows = [torch.randn(2, 3, 20, 4).requires_grad_() for _ in range(3)]
    joined = [row.detach().transpose(1, 2).flatten(2).requires_grad_() for row in rows]
    by_head = kernels.attention_free_mixing(*rows, None, True)
    flat = kernels.attention_free_mixing(*joined, None, True)
    assert torch.equal(by_head.flatten(2), flat)
    weight = torch.randn_like(flat)
    (by_head.flatten(2) * weight).sum().backward()
    (flat * weight).sum().backward()
    for row, other in zip(rows, joined, strict=True):
        assert torch.equal(row.grad.transpose(1, 2).flatten(2), other.grad)


def test_the_operator_is_registered_as_torch_wants_it():
    tensors, mask, others = make_case("band", "channels", 1, 3, 1, 2, "holes", 1.0, True)
    rows = [tensors[name].float().nan_to_num().requires_grad_() for name in ("query", "key", "value")]
    more = [tensors[name].float().requires_grad_() for name in ("a", "b", "c", "weight")]
    torch.library.opcheck(kernels._aft, (*rows, mask, *more, others["first"], 1, True, False, 1.0))
    torch.library.opcheck(kernels._aft, (*rows, mask, *more[:3], None, None, 1, True, False, 1.0))


def calls(length):
    """By name: a function of rows (B, T, 4), and the kernel it should run."""
    bias, kernel = torch.randn(2, length, length), torch.randn(2, 3)
    return {
        "simple": lambda q, k, v: aft_simple(q, k, v, causal=True),
        "full": lambda q, k, v: aft_full(q, k, v, bias),
        "banded": lambda q, k, v: aft_banded(q, k, v, bias[:, :, :3], -1, causal=True),
        "conv": lambda q, k, v: aft_conv(q.unflatten(2, (2, 2)), k[..., :2], v.unflatten(2, (2, 2)), kernel).flatten(2),
    }


@pytest.fixture
def everywhere(monkeypatch):
    """Kernels are said to be usable, and what was mixed by them is noted."""
    used = []

    def noted(*args, **options):
        used.append(options)
        return kernels.attention_free_mixing(*args, **options)

    for module in (functional_module, conv_module, mixers_module):
        monkeypatch.setattr(module, "usable", lambda *tensors: tensors[0].dtype == torch.float32)
        monkeypatch.setattr(module, "fused", noted)
    return used


def test_functions_use_the_kernels_where_they_are_usable(everywhere):
    rows = torch.randn(3, 2, 20, 4).unbind(0)
    for name, call in calls(20).items():
        found = call(*rows)
        assert len(everywhere) == 1, name
        assert_close(found, call(*(row.double() for row in rows)).float(), atol=1e-5, rtol=1e-5)
        assert len(everywhere) == 1, name
        everywhere.clear()


OPTIONS = {
    "aft_simple": {},
    "aft_full": {"per_head": False, "inner": 2},
    "aft_local": {"window": 3},
    "aft_conv": {"window": 4},
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_kinds_use_the_kernels_where_they_are_usable(kind, causal, everywhere):
    torch.manual_seed(0)
    place = Place(layer=0, num_heads=2, head_size=4, max_length=20, reach=Reach(after=0 if causal else None))
    mixer = KINDS[kind](place, range(2), **OPTIONS[kind])
    for parameter in mixer.parameters():
        nn.init.normal_(parameter)
    rows = [torch.randn(2, 18, 2, 4).transpose(1, 2).requires_grad_() for _ in range(3)]
    mask = make_mask("holes", 2, 18)
    found = mixer.mix(*rows, mask)
    assert len(everywhere) == 1
    expected = mixer.double().mix(*(row.double() for row in rows), mask)
    assert len(everywhere) == 1
    assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


def test_a_compiled_layer_is_one_graph_with_the_kernels(monkeypatch):
    """Also with rows in half precision beside parameters in float32."""
    for module in (mixers_module, bias_module):
        monkeypatch.setattr(module, "usable", lambda *tensors: True)
    torch.manual_seed(0)
    mixer = KINDS["aft_conv"](Place(0, 2, 20, 4, reach=Reach(after=0)), range(2))
    rows = [torch.randn(1, 20, 2, 4, dtype=torch.float16).transpose(1, 2) for _ in range(3)]
    compiled = torch.compile(mixer.mix, fullgraph=True, backend="aot_eager")
    found = [call(*rows, None) for call in (mixer.mix, compiled)]
    gradients = [torch.autograd.grad(one.float().square().sum(), list(mixer.parameters())) for one in found]
    assert_close(found[1], found[0])
    assert_close(*gradients)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 3), (2, 1)])
def test_a_kernel_is_normalized_as_in_torch(shape, monkeypatch):
    torch.manual_seed(0)
    module = NormalizedKernel(shape[0], shape[1], len(shape) - 1)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        module.weight[0] = 0.5  # equal entries
    up = torch.randn(shape)

    def found():
        out = module()
        return out, *torch.autograd.grad(out, list(module.parameters()), up)

    expected = found()
    monkeypatch.setattr(bias_module, "usable", lambda *tensors: True)
    assert_close(found(), expected, atol=1e-5, rtol=1e-5)
    torch.library.opcheck(normalizing._operator, tuple(module.parameters()))


def test_states_of_many_chunks_are_made_before(monkeypatch):
    monkeypatch.setattr(plans, "_MERGED", 1)
    sizes = {"batch": 1, "length": 50, "groups": 1, "width": 3, "masked": "holes", "affine": False}
    for causal in (True, False):
        check("band", "channels", causal, torch.float32, **sizes)


def test_float32_follows_the_setting_of_torch(monkeypatch):
    """Also where calls of the same sizes came before."""
    rows = torch.zeros(1, 4, 2)
    call = Call(rows, rows, rows, None, None, None, None, torch.zeros(1, 4, 1), 0, 1, True, False, 1.0)
    found = []
    for allowed in (False, True):
        monkeypatch.setattr(call_module, "takes_tf32", lambda allowed=allowed: allowed)
        kernel = plans.plan(call_module.sizes(call)).rows
        found.append({"ieee", "tf32"}.intersection(map(str, kernel._numbers)))
    assert found == [{"ieee"}, {"tf32"}]
