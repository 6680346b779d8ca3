"""The small Transformer: what it computes, and what the number of heads changes."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from papa_lightning import (
    PapaError,
    TransformerConfig,
    TransformerModel,
    calibrate,
    resplit_heads,
    restore_attention,
    swap_attention,
)

SIZES = {"vocab_size": 30, "hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 9}
TOKENS = torch.randint(30, (3, 9), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))


def build(implementation="sdpa", **sizes):
    torch.manual_seed(0)
    config = TransformerConfig(**{**SIZES, **sizes})
    model = TransformerModel(config).double().eval()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def by_hand(model, tokens):
    """The same written out, head by head and token by token."""
    config, weights = model.config, dict(model.named_parameters())
    size = config.hidden_size // config.num_attention_heads
    linear, norm = torch.nn.functional.linear, torch.nn.functional.layer_norm
    x = weights["token_embeddings.weight"][tokens] + weights["position_embeddings"][0, : tokens.shape[1]]

    def of(name, value, function=linear):
        pair = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return function(value, *pair) if function is linear else function(value, (config.hidden_size,), *pair)

    for layer in range(config.num_hidden_layers):
        place = f"layers.{layer}"
        normed, heads = of(f"{place}.attention_norm", x, norm), []
        query, key, value = (of(f"{place}.attention.{name}_proj", normed) for name in "qkv")
        for head in range(config.num_attention_heads):
            part = slice(head * size, (head + 1) * size)
            rows = []
            for t in range(tokens.shape[1]):
                seen = t + 1 if config.causal else tokens.shape[1]
                scores = key[:, :seen, part] @ query[:, t, part, None] / size**0.5
                rows.append((scores.softmax(dim=1) * value[:, :seen, part]).sum(1))
            heads.append(torch.stack(rows, dim=1))
        x = x + of(f"{place}.attention.o_proj", torch.cat(heads, dim=-1))
        inner = torch.nn.functional.gelu(of(f"{place}.feed_forward_in", of(f"{place}.feed_forward_norm", x, norm)))
        x = x + of(f"{place}.feed_forward_out", inner)
    return of("norm", x, norm)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_written_out(causal, implementation):
    model = build(implementation, causal=causal, num_attention_heads=3)
    torch.testing.assert_close(model(TOKENS).last_hidden_state, by_hand(model, TOKENS), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_token_can_see_by_gradient(causal):
    model = build(causal=causal)
    embedded = model.token_embeddings(TOKENS[:1]).detach().requires_grad_()
    model(inputs_embeds=embedded).last_hidden_state[0, 4].sum().backward()
    seen = embedded.grad[0].abs().sum(1) > 0
    assert seen.tolist() == ([True] * 5 + [False] * 4 if causal else [True] * 9)


def test_padding_changes_nothing_for_real_tokens():
    for causal in (True, False):
        model, mask = build(causal=causal), torch.ones(3, 9)
        mask[:, 6:] = 0
        padded = model(TOKENS, mask).last_hidden_state[:, :6]
        torch.testing.assert_close(padded, model(TOKENS[:, :6]).last_hidden_state)


def test_patches_are_in_rows_and_each_is_a_token():
    model = build(image_size=[6, 4], patch_size=2, num_channels=2)
    levels = model(pixel_values=IMAGES.double(), output_hidden_states=True).hidden_states
    assert (len(levels), levels[0].shape, model.config.max_position_embeddings) == (3, (3, 6, 24), 6)
    changed = IMAGES.double().clone()
    changed[:, :, 2:4, 2:] += 1  # the patch in row 1, column 1 of 3 x 2
    other = model(pixel_values=changed, output_hidden_states=True).hidden_states[0]
    assert (other != levels[0]).any(-1)[0].tolist() == [False, False, False, True, False, False]


def cost(heads):
    """Parameters, and operations of a forward and backward pass, in which attention is written out."""
    model = build("eager", num_attention_heads=heads)
    with FlopCounterMode(display=False) as counter:
        model(TOKENS).last_hidden_state.sum().backward()
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops()


def test_any_number_of_heads_costs_the_same():
    parameters, operations = cost(1)
    assert operations > 10**6
    for heads in (2, 4, 8, 12):
        assert cost(heads) == (parameters, operations)


def test_resplit_heads_is_a_model_of_other_heads_with_the_same_weights():
    model = build(num_attention_heads=4)
    before = model(TOKENS).last_hidden_state
    for heads in (1, 2, 8, 12):
        expected = build(num_attention_heads=heads)
        expected.load_state_dict(model.state_dict())
        other = resplit_heads(copy.deepcopy(model), heads)
        assert torch.equal(other(TOKENS).last_hidden_state, expected(TOKENS).last_hidden_state)
        assert not torch.allclose(other(TOKENS).last_hidden_state, before)
        attention = calibrate(other, [{"input_ids": TOKENS, "attention_mask": TOKENS * 0 + 1}], max_length=9)
        assert attention.values.shape == (2, heads, 9, 9)


def test_resplit_heads_refuses():
    model = build(num_attention_heads=4)
    with pytest.raises(PapaError, match=r"heads is 5, but hidden_size is 24: choose from 1, 2, 3, 4, 6, 8, 12, 24"):
        resplit_heads(model, 5)
    with pytest.raises(PapaError, match="Linear holds 0 models"):
        resplit_heads(torch.nn.Linear(2, 2), 1)
    swap_attention(model, "constant", max_length=9)
    with pytest.raises(PapaError, match="swapped: call restore_attention"):
        resplit_heads(model, 2)
    resplit_heads(restore_attention(model), 2)


def test_saved_models_are_read_by_transformers_in_the_heads_that_they_have(tmp_path):
    model = resplit_heads(build(causal=True, num_attention_heads=4), 2)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert (type(loaded), loaded.config.causal) == (TransformerModel, True)
    torch.testing.assert_close(loaded(TOKENS).last_hidden_state, model(TOKENS).last_hidden_state)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_attention_heads": 5}, "the number of heads is 5, but hidden_size is 24"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, but must be a whole number"),
        ({"image_size": 8, "patch_size": 3}, r"patch_size is 3, but image_size is \(8, 8\)"),
    ],
)
def test_sizes_that_do_not_go_together(sizes, message):
    with pytest.raises(PapaError, match=message):
        TransformerConfig(**{**SIZES, **sizes})


def test_inputs_that_do_not_fit():
    model, images = build(), build(image_size=6, patch_size=2)
    with pytest.raises(PapaError, match="the sequences are 10 tokens long, but the model has positions for 9"):
        model(torch.zeros(1, 10, dtype=torch.long))
    with pytest.raises(PapaError, match="pass either input_ids or inputs_embeds"):
        model(pixel_values=IMAGES)
    with pytest.raises(PapaError, match=r"images of shape \(2, 6, 4\), but the model takes \(1, 6, 6\)"):
        images(pixel_values=IMAGES)
