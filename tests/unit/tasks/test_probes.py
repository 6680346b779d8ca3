from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from papa_lightning.errors import PapaError
from papa_lightning.tasks import LayerwiseProbe

LEVELS, LENGTH, SIZE, LABELS = 3, 6, 8, 4


@pytest.fixture
def without_onednn() -> Iterator[None]:
    # Its bfloat16 kernels die of an illegal instruction on virtual machines that announce AMX and forbid it.
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def make_probe(**arguments: float) -> LayerwiseProbe:
    torch.manual_seed(0)
    return LayerwiseProbe(LEVELS, LENGTH, SIZE, LABELS, **arguments).eval()


def make_inputs(batch: int = 5) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, 2, (batch, LENGTH), generator=generator)
    mask[:, 0] = 1
    return [torch.randn(batch, LENGTH, SIZE, generator=generator) for _ in range(LEVELS)], mask


def test_weights_start_at_one_over_length() -> None:
    assert torch.equal(make_probe().position_weights, torch.full((LEVELS, LENGTH), 1 / LENGTH))


def test_parameters() -> None:
    shapes = {name: tuple(value.shape) for name, value in make_probe().named_parameters()}
    assert shapes == {
        "position_weights": (LEVELS, LENGTH),
        "dense.weight": (SIZE, LEVELS * SIZE),
        "dense.bias": (SIZE,),
        "classifier.weight": (LABELS, SIZE),
        "classifier.bias": (LABELS,),
    }


def test_formula_token_by_token() -> None:
    probe, (hidden_states, mask) = make_probe().double(), make_inputs()
    hidden_states = [level.double() for level in hidden_states]
    torch.nn.init.normal_(probe.position_weights)
    expected = []
    for row in range(len(mask)):
        features = torch.zeros(LEVELS, SIZE, dtype=torch.double)
        for level in range(LEVELS):
            for position in range(LENGTH):
                if mask[row, position]:
                    features[level] += probe.position_weights[level, position] * hidden_states[level][row, position]
        pooled = torch.tanh(probe.dense.weight @ features.flatten() + probe.dense.bias)
        expected.append(probe.classifier.weight @ pooled + probe.classifier.bias)
    actual = probe(hidden_states, mask)
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-12, rtol=0)


def test_padding_does_not_count() -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    changed = [level + 100 * (1 - mask).unsqueeze(-1) for level in hidden_states]
    assert torch.equal(probe(hidden_states, mask), probe(changed, mask))


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.long, torch.float32])
def test_mask_of_any_dtype(mask_dtype: torch.dtype) -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    assert torch.equal(probe(hidden_states, mask.to(mask_dtype)), probe(hidden_states, mask))


def test_batch_of_one_is_a_row_of_the_batch() -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    one = probe([level[:1] for level in hidden_states], mask[:1])
    assert one.shape == (1, LABELS)
    torch.testing.assert_close(one, probe(hidden_states, mask)[:1])


def test_stacked_hidden_states() -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    assert torch.equal(probe(torch.stack(hidden_states), mask), probe(hidden_states, mask))


def test_every_parameter_learns() -> None:
    probe, (hidden_states, mask) = make_probe().train(), make_inputs()
    probe(hidden_states, mask).square().sum().backward()
    for name, parameter in probe.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_only_in_train_mode() -> None:
    probe, (hidden_states, mask) = make_probe(dropout=0.5), make_inputs()
    assert torch.equal(probe(hidden_states, mask), probe(hidden_states, mask))
    probe.train()
    assert not torch.equal(probe(hidden_states, mask), probe(hidden_states, mask))


@pytest.mark.usefixtures("without_onednn")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    expected = probe(hidden_states, mask)
    logits = make_probe().to(dtype)([level.to(dtype) for level in hidden_states], mask)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), expected, atol=2e-2, rtol=0)


@pytest.mark.usefixtures("without_onednn")
def test_bfloat16_autocast() -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    expected = probe(hidden_states, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Autocast leaves a mixture: layer norms give float32, linear layers bfloat16.
        logits = probe([hidden_states[0], *(level.bfloat16() for level in hidden_states[1:])], mask)
    torch.testing.assert_close(logits.float(), expected, atol=2e-2, rtol=0)
    logits.float().sum().backward()
    assert probe.position_weights.grad is not None
    assert probe.position_weights.grad.dtype == torch.float32


def test_features_stored_in_half_precision() -> None:
    probe, (hidden_states, mask) = make_probe(), make_inputs()
    logits = probe([level.half() for level in hidden_states], mask)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, probe(hidden_states, mask), atol=1e-2, rtol=0)


def test_wrong_length_names_both_lengths_and_the_remedy() -> None:
    hidden_states, mask = make_inputs()
    with pytest.raises(PapaError, match=r"5 tokens long.*max_length=6.*pad all sequences to exactly 6"):
        make_probe()([level[:, :5] for level in hidden_states], mask[:, :5])


def test_wrong_number_of_levels() -> None:
    hidden_states, mask = make_inputs()
    with pytest.raises(PapaError, match=r"2 levels.*built for 3"):
        make_probe()(hidden_states[1:], mask)


def test_wrong_mask() -> None:
    hidden_states, mask = make_inputs()
    with pytest.raises(PapaError, match=r"attention_mask has shape \(4, 6\)"):
        make_probe()(hidden_states, mask[1:])
