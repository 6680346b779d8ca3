"""The bounds against a count of the multiply-accumulates of encoders with one layer more."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from papa_lightning.attention import Block
from papa_lightning.benchmark.bound import block_of
from papa_lightning.benchmark.cases import kind_of
from papa_lightning.benchmark.encoders import choose_heads, copy_of, make_batches, make_stock, random_constants
from papa_lightning.benchmark.settings import BenchmarkSettings, ShapeSettings
from papa_lightning.encoders import swap_attention

HIDDEN, HEADS, BATCH, LENGTH = 32, 4, 2, 24


def counted(layers, swap=None, model_type="bert", length=LENGTH):
    """Multiply-accumulates of an encoder; with eager attention, whose products torch counts one by one."""
    shape = ShapeSettings(type=model_type, hidden=[HIDDEN], layers=[layers], heads=[HEADS])
    settings = BenchmarkSettings(shape=shape, inputs=[f"{BATCH}x{length}"], placement="every_layer", device="cpu")
    (size,), device = settings.sizes(), torch.device("cpu")
    encoder = copy_of(make_stock(settings, size, device))
    encoder.set_attn_implementation("eager")
    encoder.requires_grad_(False)  # the counter would look for gradients
    if swap is not None:
        kind, share = swap
        heads = "all" if share is None else choose_heads(encoder, settings, share)
        constants = random_constants(encoder, length, shared=kind == "folded", seed=0)
        swap_attention(encoder, kind, constants=constants, heads=heads)
    batch = make_batches(settings, size, device, 1000)[0] | {"attention_mask": None}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(**batch)
    return counter.get_total_flops() / 2, encoder.config


def of_a_layer(**options):
    two, config = counted(2, **options)
    return two - counted(1, **options)[0], config


def per_token_and_channel(number, length=LENGTH):
    return number / (BATCH * length * HIDDEN)


@pytest.mark.parametrize("length", [8, 24])
def test_the_dense_block(length):
    number, config = of_a_layer(length=length)
    block = block_of(config, length)
    assert per_token_and_channel(number, length) == block.dense == 12 * HIDDEN + 2 * length


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_constant_heads_leave(share):
    number, config = of_a_layer(swap=("constant", share))
    block = block_of(config, LENGTH)
    saved = kind_of("constant").saves(block, share, {})
    assert per_token_and_channel(number) == block.dense - saved
    assert block.speed(saved) == pytest.approx(of_a_layer()[0] / number)


def test_a_share_saves_its_share():
    # Half of the heads are dynamic through the fused kernel, whose two products torch does not count on the CPU.
    number, config = of_a_layer(swap=("constant", 0.5))
    block = block_of(config, LENGTH)
    uncounted = 0.5 * 2 * LENGTH
    assert per_token_and_channel(number) == block.dense - kind_of("constant").saves(block, 0.5, {}) - uncounted


def test_one_folded_matrix():
    number, config = of_a_layer(swap=("folded", None))
    block = block_of(config, LENGTH)
    making = HIDDEN / (BATCH * LENGTH) * HIDDEN  # the product of the two matrices, where it is made in the forward
    left = block.dense - kind_of("folded").saves(block, 1.0, {})
    assert per_token_and_channel(number) in (left, pytest.approx(left + making, rel=0.01))


def test_deberta_multiplies_with_relative_positions_too():
    number, config = of_a_layer(model_type="deberta")
    block = block_of(config, LENGTH)
    assert block.positions == 2 * 2 * LENGTH
    # What projects the positions themselves does not grow with the batch.
    projections = 2 * (2 * LENGTH) * HIDDEN**2
    assert per_token_and_channel(number - projections) == block.dense
    assert block.queries == 2 * HIDDEN + LENGTH + block.positions


def test_the_numbers_of_the_method():
    found = {
        length: Block(768, 4 * 768, length).speed(Block(768, 4 * 768, length).queries) for length in (128, 512, 4096)
    }
    assert {length: round(speed, 2) for length, speed in found.items()} == {128: 1.21, 512: 1.25, 4096: 1.48}


def test_other_bounds():
    block = Block(768, 3072, 4096)
    assert kind_of("gated").saves(block, 1.0, {}) == -4096
    assert kind_of("folded").saves(block, 1.0, {}) == 3 * 768 + 4096
    narrow, wide = (kind_of("compact").saves(block, 1.0, {"width": width}) for width in (8, 64))
    assert narrow - wide == 2 * (64 - 8)
    assert wide == 2 * 768 + 2 * 4096 - 2 * 64 - 2
    assert kind_of("compact").saves(block, 0.5, {}) == wide / 2


def test_a_block_of_another_form_has_no_bound():
    assert block_of(AutoConfig.for_model("modernbert"), 64) is None


def test_sizes_between_the_layers_count():
    config = AutoConfig.for_model("bert", hidden_size=8, num_attention_heads=2, intermediate_size=20)
    assert block_of(config, 4).dense == 4 * 8 + 2 * 20 + 2 * 4
    small = AutoConfig.for_model("distilbert", dim=8, n_heads=2, hidden_dim=20)
    assert block_of(small, 4) == block_of(config, 4)
