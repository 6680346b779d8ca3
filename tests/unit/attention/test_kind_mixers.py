"""Attention-free, additive and shared layers of an encoder, on plain tensors."""

import re

import pytest
import torch
from unit.attention.mixing import mix

from papa_lightning import PapaError
from papa_lightning.attention import KINDS, Place, Reach, additive_attention
from papa_lightning.attention.functional import attention_probabilities

HEADS, LENGTH, SIZE = 3, 7, 4
CAUSAL = Reach(after=0)
CLOSE = {"atol": 1e-9, "rtol": 1e-9}
NEW = {
    "aft_full": {},
    "aft_simple": {},
    "aft_local": {"window": 3},
    "aft_conv": {"window": 3},
    "additive": {},
    "shared": {},
}
#: All kinds with their options, and the factorised biases of the paper.
CASES = {kind: (kind, options) for kind, options in NEW.items()} | {
    "aft_full, inner": ("aft_full", {"inner": 2}),
    "aft_full, inner, one": ("aft_full", {"inner": 2, "per_head": False}),
    "aft_local, inner": ("aft_local", {"window": 3, "inner": 2}),
    "aft_local, inner, one": ("aft_local", {"window": 3, "inner": 2, "per_head": False}),
}


def make(kind, reach=None, **options):
    torch.manual_seed(1)
    mixer = KINDS[kind](Place(2, HEADS, LENGTH, SIZE, torch.float64, reach=reach or Reach()), range(HEADS), **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.5)
    return mixer


def make_case(case, reach=None):
    kind, options = CASES[case]
    return make(kind, reach, **options)


def batch(length=LENGTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn(3, 2, HEADS, length, SIZE, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, 2::2] = False
    return *(tensor.clone().requires_grad_() for tensor in tensors), mask


def explicit_aft(mixer, query, key, value, mask, causal):
    """The formula with every exponential written out, (B, T, H, h)."""
    length = query.shape[2]
    position = torch.arange(length)
    offset = position - position[:, None]
    gate = torch.sigmoid(query * mixer.query_scale[:, None] + mixer.query_shift[:, None])
    if mixer.kind == "aft_conv":
        keys = (key * mixer.key_scale[:, None]).sum(-1, keepdim=True).expand_as(key)
        kernel, first = mixer.kernel(), -2 if causal else -1
        inside = (offset >= first) & (offset < first + 3)
        bias = torch.where(inside, kernel[:, (offset - first).clamp(0, 2)], 0.0)
    else:
        keys = key * mixer.key_scale[:, None]
        bias = torch.zeros(HEADS, length, length, dtype=torch.float64)
        if mixer.kind == "aft_full":
            bias = mixer.position_bias(length)
        if mixer.kind == "aft_local":
            near = offset.abs() < 3
            if mixer.inner is None:
                rows = mixer.position_bias.table[:, :length]
                bias = rows.gather(-1, (offset + 2).clamp(0, rows.shape[-1] - 1).expand(HEADS, -1, -1))
            else:
                bias = mixer.position_bias(length)
            bias = torch.where(near, bias, 0.0)
        bias = bias.expand(HEADS, -1, -1)
    weights = torch.exp(bias[None, ..., None] + keys[:, :, None])  # (B, H, query, key, h)
    allowed = mask[:, None, None, :] & (position <= position[:, None] if causal else torch.tensor(True))
    weights = weights * allowed[..., None]
    mean = (weights * value[:, :, None]).sum(3) / weights.sum(3)
    return (gate * mean).transpose(1, 2)


@pytest.mark.parametrize("reach", [Reach(), CAUSAL], ids=["both ways", "causal"])
@pytest.mark.parametrize("length", [LENGTH, 2])
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("aft")])
def test_the_formula(case, reach, length):
    mixer, (query, key, value, mask) = make_case(case, reach), batch(length)
    found, weights = mix(mixer, query, key, value, mask, 0.3)
    assert weights is None
    torch.testing.assert_close(found, explicit_aft(mixer, query, key, value, mask, reach.after == 0), **CLOSE)


def test_additive_heads_each_have_their_scores():
    mixer, (query, key, value, mask) = make("additive"), batch()
    for head in range(HEADS):
        one = [tensor[:, head] for tensor in (query, key, value)]
        expected = additive_attention(*one, mixer.score_weight[head], mask)
        torch.testing.assert_close(mix(mixer, query, key, value, mask, 0.3)[0][:, :, head], expected, **CLOSE)


@pytest.mark.parametrize("case", CASES)
def test_every_input_and_parameter_has_a_gradient(case):
    mixer, (query, key, value, mask) = make_case(case), batch()
    mix(mixer, query, key, value, mask, 0.3)[0].square().sum().backward()
    parameters = dict(mixer.named_parameters())
    parameters = {name: one for name, one in parameters.items() if one.requires_grad} | {
        "q": query,
        "k": key,
        "v": value,
    }
    assert all(one.grad.abs().max() > 0 for one in parameters.values()), parameters.keys()


@pytest.mark.parametrize("kind", ["aft_full", "aft_local", "aft_conv"])
def test_a_start_from_constants_learns_at_once(kind):
    """All but queries and keys, which begin when their scales have left 0."""
    mixer = KINDS[kind](Place(2, HEADS, LENGTH, SIZE), range(HEADS), init="from_constants", **NEW[kind])
    mixer.load_constants(torch.rand(HEADS, LENGTH, LENGTH) + 0.1)
    *inputs, mask = (tensor.float().detach() for tensor in batch())
    mix(mixer, *inputs, mask, 0.3)[0].square().sum().backward()
    assert all(one.grad.abs().max() > 0 for one in mixer.parameters())


@pytest.mark.parametrize("case", CASES)
def test_causal_layers_do_not_look_ahead(case):
    mixer, (query, key, value, _) = make_case(case, CAUSAL), batch()
    bias = CAUSAL.allowed(LENGTH)
    mix(mixer, query, key, value, None, 0.3, bias=bias)[0][:, 3].sum().backward()
    assert value.grad[:, :, 4:].abs().max() == 0
    assert value.grad[:, :, :4].abs().min() > 0
    assert key.grad[:, :, 4:].abs().max() == 0


@pytest.mark.parametrize("case", CASES)
def test_padding_reaches_nothing_and_nothing_is_nan(case):
    mixer, (query, key, value, mask) = make_case(case), batch()
    mask[1] = False  # a sequence of padding
    found = mix(mixer, query, key, value, mask, 0.3)[0]
    found.sum().backward()
    assert found.isfinite().all()
    assert all(tensor.grad.isfinite().all() for tensor in (query, key, value))
    mask[1, :4] = True
    other = [torch.where(mask[:, None, :, None], tensor, 99.0) for tensor in (query, key, value)]
    before, after = mix(mixer, query, key, value, mask, 0.3)[0], mix(mixer, *other, mask, 0.3)[0]
    torch.testing.assert_close(before[mask], after[mask], **CLOSE)


def test_shared_dynamic_matrix_is_the_mean_of_the_heads():
    mixer, (query, key, value, mask) = make("shared"), batch()
    mean = attention_probabilities(query, key, mask, 0.3).mean(dim=1, keepdim=True)
    mixed, weights = mix(mixer, query, key, value, mask, 0.3, need_weights=True)
    torch.testing.assert_close(mixed, (mean @ value).transpose(1, 2), **CLOSE)
    torch.testing.assert_close(weights, mean.expand(-1, HEADS, -1, -1), **CLOSE)


@pytest.mark.parametrize("masked", [False, True])
def test_with_one_constant_matrix_value_and_output_maps_are_one(masked):
    """Twelve heads of 64 channels, explicitly, against C X W with W = sum over heads of Wv_h Wo_h, one matrix."""
    heads, size, length, width = 12, 64, 20, 768
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5  # noqa: E731
    hidden, to_value, to_output = draw(2, length, width), draw(width, width), draw(width, width)
    constants, mask = draw(heads, length, length).softmax(-1), torch.ones(2, length, dtype=torch.bool)
    mask[1, 9:17] = not masked
    mixer = KINDS["shared"](Place(0, heads, length, size, torch.float64), range(heads), "constant")
    mixer.load_constants(constants)
    value = (hidden @ to_value).unflatten(-1, (heads, size)).transpose(1, 2)
    nothing = value[:, :0]
    explicit = mix(mixer, nothing, nothing, value, mask, 0.3)[0].flatten(2) @ to_output

    pieces = zip(to_value.split(size, dim=1), to_output.split(size, dim=0), strict=True)
    folded = torch.stack([own @ out for own, out in pieces]).sum(dim=0)
    assert folded.shape == (width, width)
    matrix = constants.mean(dim=0) * mask[:, None, :]
    expected = matrix / matrix.sum(-1, keepdim=True) @ hidden @ folded
    torch.testing.assert_close(explicit[mask], expected[mask], atol=1e-6, rtol=0)
    weights = mix(mixer, nothing, nothing, value, mask, 0.3, need_weights=True)
    torch.testing.assert_close(weights[0].flatten(2) @ to_output, explicit, **CLOSE)


REFUSED = {
    "window": ("aft_local", {"window": LENGTH + 1}, "window is 8, but max_length is only 7"),
    "no window": ("aft_local", {"window": 0}, "window is 0"),
    "kernel": ("aft_conv", {"window": LENGTH + 1}, "window is 8"),
    "grid": ("aft_conv", {"grid": True, "window": 2}, "the 7 tokens of layer 2 are no square grid"),
    "init": ("aft_full", {"init": "zero"}, "init is 'zero', but must be one of 'paper', 'from_constants'"),
    "causal": ("aft_full", {"causal": True}, "causal is True, but layer 2 of the encoder is bidirectional"),
    "inner": ("aft_full", {"inner": 0}, "inner is 0"),
    "factors of constants": (
        "aft_local",
        {"window": 3, "inner": 4, "init": "from_constants"},
        "inner is 4, but init is 'from_c",
    ),
    "matrix": ("shared", {"matrix": "mean"}, "matrix is 'mean', but must be one of 'dynamic', 'constant'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_options(name):
    kind, options, message = REFUSED[name]
    with pytest.raises(PapaError, match=re.escape(message)):
        make(kind, **options)


@pytest.mark.parametrize("kind", ["aft_simple", "additive", "dynamic", "aft_full"])
def test_constants_for_what_needs_none(kind):
    mixer = KINDS[kind](Place(2, HEADS, LENGTH, SIZE), range(HEADS))
    assert mixer.calibrated
    with pytest.raises(PapaError, match="takes no constants"):
        mixer.load_constants(torch.rand(HEADS, LENGTH, LENGTH))


@pytest.mark.parametrize("kind", ["constant", "gated", "shared", "aft_full"])
def test_constants_of_another_sort(kind):
    options = {"shared": {"matrix": "constant"}, "aft_full": {"init": "from_constants"}}.get(kind, {})
    mixer = KINDS[kind](Place(2, HEADS, LENGTH, SIZE), range(HEADS), **options)
    for piece, found in ((torch.rand(HEADS, 5, 5), r"of shape \(3, 5, 5\)"), ({}, "a dict")):
        with pytest.raises(PapaError, match=f"constants of layer 2 are {found}, but kind '{kind}'"):
            mixer.load_constants(piece)
    assert not mixer.calibrated


@pytest.mark.parametrize("kind", ["aft_full", "aft_local"])
def test_sequences_without_positions(kind):
    query, key, value, mask = batch(LENGTH + 1)
    with pytest.raises(PapaError, match="8 tokens long, but the position bias"):
        mix(make(kind, **NEW[kind]), query, key, value, mask, 0.3)


def test_tokens_that_are_no_grid():
    mixer = KINDS["aft_conv"](Place(2, HEADS, 9, SIZE), range(HEADS), window=3, grid=True)
    query, key, value, _ = (tensor.float() for tensor in batch(LENGTH))
    with pytest.raises(PapaError, match="side is 2, but the sequences have 7 tokens"):
        mix(mixer, query, key, value, None, 0.3)


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("aft") and "full" not in case])
def test_the_backward_pass_of_attention_free_layers_finds_the_inputs_only(case):
    mixer, (query, key, value, mask) = make_case(case), batch()
    given = {tensor.data_ptr() for tensor in (query, key, value, mask, *mixer.parameters())}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.data_ptr()), lambda _: None):
        mixed = mix(mixer, query, key, value, mask, 0.3)[0]
    assert mixed.requires_grad
    assert set(kept) <= given


def test_the_names_of_the_kinds():
    assert all(mixer.kind == name for name, mixer in KINDS.items())
    assert NEW.keys() | {"constant", "gated", "dynamic"} <= KINDS.keys()
