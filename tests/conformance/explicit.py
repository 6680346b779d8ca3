"""Attention written out: what averages and constant heads are by definition, without any code of the package.

Under attn_implementation="eager" every family calls torch.nn.functional.softmax exactly once for each layer, on scores
(B, H, T, T). So that one function is replaced while an encoder runs: the number of the call is the number of the
layer (right for modules that serve several layers too), and what it returns is multiplied by the values in
transformers' own code. :func:`explicit_attention` fails where the number of calls or their shape is another.
"""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from unittest import mock

import torch
import torch.nn.functional as F
from conformance.tiny_models import (
    CASES,
    HEADS,
    encode,
    encoder_of,
    heads_of,
    make_constants,
    make_gates,
    make_inputs,
    plain,
)

EXACT = {"atol": 1e-9, "rtol": 1e-9}
_softmax = F.softmax


@dataclass
class Record:
    """The scores and the attention matrices of the last forward of an encoder, (B, H, T, T) a layer."""

    scores: list = field(default_factory=list)
    matrices: list = field(default_factory=list)
    active: bool = False


@contextmanager
def explicit_attention(model, layers, replace=None):
    """Record the attention matrices of the encoder of a plain eager model, after ``replace`` changed them.

    Args:
        model: A plain model, with or without a head.
        layers: How often its encoder computes attention.
        replace: From the number of the layer and its matrices (B, H, T, T) to others.
    """
    record = Record()

    def softmax(scores, dim=None, _stacklevel=3, dtype=None):
        if not record.active:
            return _softmax(scores, dim=dim, dtype=dtype)
        assert scores.dim() == 4, f"softmax of {tuple(scores.shape)}, which are no attention scores"
        assert scores.shape[1] == HEADS
        matrices = _softmax(scores.double(), dim=-1)
        matrices = matrices if replace is None else replace(len(record.matrices), matrices)
        record.scores.append(scores.detach())
        record.matrices.append(matrices)
        return matrices.to(scores.dtype)

    def begin(*_):
        record.active, record.scores, record.matrices = True, [], []

    def end(*_):
        record.active = False
        assert len(record.matrices) == layers, f"{len(record.matrices)} calls of softmax in {layers} layers"

    encoder = encoder_of(model)
    assert encoder.config._attn_implementation == "eager"
    hooks = [encoder.register_forward_pre_hook(begin), encoder.register_forward_hook(end)]
    try:
        with mock.patch.object(F, "softmax", softmax):
            yield record
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def exact_softmax():
    """Let eager attention in float64 take its softmax in float64.

    Some families round it to float32, where the lowest float64 of a mask is -inf, and rows of padding become NaN.
    """

    def softmax(scores, dim=None, _stacklevel=3, dtype=None):
        return _softmax(scores, dim=dim, dtype=None if scores.dtype == torch.float64 else dtype)

    with mock.patch.object(F, "softmax", softmax):
        yield


@cache
def allowed_pairs(name):
    """(L, T, T), the pairs whose scores transformers does not mask when nothing is padding."""
    with explicit_attention(plain(name, "eager"), CASES[name].layers) as record:
        run(plain(name, "eager"), make_inputs(name, batch=1, padded=False))
    lowest = torch.finfo(torch.float64).min / 2
    return torch.stack([scores[0, 0] > lowest for scores in record.scores])


def run(model, inputs, **options):
    """The last hidden states without a gradient."""
    with torch.no_grad():
        return encode(model, inputs, **options)


def real_tokens(name, inputs):
    """(B, T), true for real tokens."""
    if CASES[name].masked:
        return inputs["attention_mask"].bool()
    return torch.ones(len(inputs["pixel_values"]), CASES[name].length, dtype=torch.bool)


def real(name, inputs, hidden):
    """The rows of real tokens."""
    return hidden[real_tokens(name, inputs)]


def slots(name, mask):
    """(B, t), the row and column of the constants that a token has; those before the first real token have any."""
    places = torch.arange(mask.shape[1]).expand(mask.shape)
    if not CASES[name].relative:
        return places
    first = [next((place for place, real in enumerate(row) if real), 0) for row in mask.tolist()]
    return (places - torch.tensor(first)[:, None]) % mask.shape[1]


def normalized(constants, mask, allowed, places):
    """``C m_i m_j`` of one head where attention is allowed, each row divided by its sum; (B, t, t)."""
    length = mask.shape[1]
    pairs = mask[:, :, None] & mask[:, None, :] & allowed[:length, :length]
    kept = constants[places[:, :, None], places[:, None, :]] * pairs
    total = kept.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, kept / torch.where(total > 0, total, 1.0), 0.0)


def constant_heads(name, inputs, constants, heads, gates=None):
    """What :func:`explicit_attention` calls to replace the matrices of heads, or with gates to mix them.

    Args:
        name: Of the case.
        inputs: Of the encoder.
        constants: (L, H, T, T).
        heads: (layer, head) pairs.
        gates: (L, H) logits of a mixture with the dynamic matrices.
    """
    mask, allowed = real_tokens(name, inputs), allowed_pairs(name)
    places = slots(name, mask)

    def replace(layer, matrices):
        own = list(matrices.unbind(dim=1))
        for head in range(HEADS):
            if (layer, head) in heads:
                fixed = normalized(constants[layer, head], mask, allowed[layer], places)
                gate = 0.0 if gates is None else torch.sigmoid(gates[layer, head])
                own[head] = gate * own[head] + (1 - gate) * fixed
        return torch.stack(own, dim=1)

    return replace


def written_out(name, mode, inputs, constants=None, model=None):
    """A context in which a plain eager model computes what :func:`~conformance.tiny_models.swap` asks for."""
    values, gates = (constants or make_constants(name)).values, make_gates(name) if mode == "gated" else None
    replace = constant_heads(name, inputs, values, heads_of(name, mode), gates)
    return explicit_attention(model or plain(name, "eager"), CASES[name].layers, replace)


def explicit_outputs(name, mode, inputs, constants=None):
    """The rows of real tokens of the last hidden states of a swap, written out."""
    with written_out(name, mode, inputs, constants):
        return real(name, inputs, run(plain(name, "eager"), inputs))


def averages(name, batches):
    """The constants (L, H, T, T) and the counts (T, T) of batches, summed sequence by sequence."""
    case, model = CASES[name], plain(name, "eager")
    sums = torch.zeros(case.layers, HEADS, case.length, case.length, dtype=torch.float64)
    counts = torch.zeros(case.length, case.length, dtype=torch.float64)
    for inputs in batches:
        with explicit_attention(model, case.layers) as record:
            run(model, inputs)
        masks = real_tokens(name, inputs)
        for row, (mask, places) in enumerate(zip(masks, slots(name, masks), strict=True)):
            real = mask.double()
            pairs, rows, columns = real[:, None] * real[None, :], places[:, None], places[None, :]
            counts[rows, columns] += pairs
            for layer, matrices in enumerate(record.matrices):
                sums[layer][:, rows, columns] += matrices[row] * pairs
    return torch.where(counts > 0, sums / counts.clamp(min=1), 0.0), counts


def loss_of(name, model, inputs):
    """A sum of the rows of real tokens with random weights."""
    hidden = real(name, inputs, encode(model, inputs))
    generator = torch.Generator().manual_seed(3)
    return (hidden * torch.randn(hidden.shape, generator=generator, dtype=torch.float64)).sum()


def gradients(name, model, inputs):
    """Name -> gradient of :func:`loss_of`, of the parameters that have one."""
    model.zero_grad()
    loss_of(name, model, inputs).backward()
    return {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}


def assert_close(found, expected, tolerance=EXACT, **options):
    """Equal up to the order of sums in float64, unless a tolerance is given."""
    torch.testing.assert_close(found, expected, **tolerance, **options)
