"""Greedy search on encoders whose heads are known to matter or not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conformance import tiny_models
from conformance.tiny_models import CASES, encode, make_constants, plain
from transformers import BertConfig, BertModel

from papa_lightning import HeadRanking, PapaError, calibrate, restore_attention, swap_attention
from papa_lightning.criteria import GreedySearch, RankingInputs, criterion_from, rank_heads
from papa_lightning.criteria.greedy import measurements, steps
from papa_lightning.criteria.sampled import first_sequences

LAYERS, HEADS, WIDTH, LENGTH = 2, 4, 8, 6
#: They reach the hidden states; the output projection drops the others.
LOUD = {(0, 1), (1, 0), (1, 2)}


def make_encoder(scale):
    """A BERT in which each head's output is scaled by ``scale(layer, head)``."""
    config = BertConfig(
        vocab_size=20, hidden_size=HEADS * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=16, max_position_embeddings=LENGTH, attn_implementation="sdpa",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        for layer, block in enumerate(encoder.encoder.layer):
            for head in range(HEADS):
                own = slice(head * WIDTH, (head + 1) * WIDTH)
                block.attention.output.dense.weight[:, own] *= scale(layer, head)
    return encoder


def make_batches(number=3, size=4):
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(size, LENGTH, dtype=torch.int64)
    mask[1::2, 4:] = 0
    tokens = [torch.randint(1, 20, (size, LENGTH), generator=generator) for _ in range(number)]
    return [{"input_ids": ids, "attention_mask": mask} for ids in tokens]


def hidden(encoder, batch):
    return encoder(**batch).last_hidden_state[batch["attention_mask"].bool()]


def make_inputs(encoder, batches):
    """The loss is how far the hidden states are from those with all heads dynamic."""
    with torch.no_grad():
        before = [(batch["input_ids"], hidden(encoder, batch)) for batch in batches]

    def loss(batch):
        target = next(target for ids, target in before if torch.equal(ids, batch["input_ids"]))
        return F.mse_loss(hidden(encoder, batch), target)

    return RankingInputs(encoder, calibrate(encoder, batches, LENGTH), batches, loss)


def test_heads_that_matter_come_last():
    encoder = make_encoder(lambda layer, head: float((layer, head) in LOUD))
    inputs = make_inputs(encoder, make_batches())
    ranking = rank_heads("greedy", inputs)
    assert set(ranking.heads[-len(LOUD) :]) == LOUD
    assert ranking.criterion == "greedy"


def area(encoder, inputs, ranking):
    """Mean loss over all numbers of constant heads: what a better order makes smaller."""
    losses = []
    for number in range(1, LAYERS * HEADS):
        swap_attention(encoder, "constant", constants=inputs.constants, heads=number, ranking=ranking)
        with torch.no_grad():
            losses.append(sum(float(inputs.loss(batch)) for batch in inputs.batches))
        restore_attention(encoder)
    return sum(losses)


def test_better_than_every_random_order_on_batches_it_did_not_see():
    encoder = make_encoder(lambda layer, head: 2.0 if (layer, head) in LOUD else 0.2 + 0.1 * head)
    batches = make_batches(number=4)
    inputs = make_inputs(encoder, batches)
    searched = rank_heads("greedy", RankingInputs(encoder, inputs.constants, batches[:2], inputs.loss))
    others = RankingInputs(encoder, inputs.constants, batches[2:], inputs.loss)
    rivals = [rank_heads(f"random:{seed}", inputs) for seed in range(10)]
    assert area(encoder, others, searched) < min(area(encoder, others, rival) for rival in rivals)


def test_a_twin_is_dear_once_the_other_is_constant():
    """Either of two equal heads may go, but not both; looking at each head by itself cannot know that."""
    encoder = make_encoder(lambda layer, head: float((layer, head) in {(1, 0), (1, 1)}))
    attention = encoder.encoder.layer[1].attention
    with torch.no_grad():
        for part in (attention.self.query, attention.self.key, attention.self.value):
            part.weight[WIDTH : 2 * WIDTH] = part.weight[:WIDTH]
        attention.output.dense.weight[:, WIDTH : 2 * WIDTH] = attention.output.dense.weight[:, :WIDTH]
    batches = make_batches()
    inputs = make_inputs(encoder, batches)
    swap_attention(encoder, "constant", constants=inputs.constants, heads=[(1, 0)])
    with torch.no_grad():
        spared = max(float(inputs.loss(batch)) for batch in batches)
    restore_attention(encoder)
    # What one of them costs does not count.
    forgiving = RankingInputs(
        encoder, inputs.constants, batches, lambda batch: (inputs.loss(batch) - 1.05 * spared).clamp_min(0)
    )
    scores = GreedySearch(rounds=100).scores(forgiving)
    assert scores[1, 0] % 1 == 0
    assert scores[1, 1] == scores.max()
    assert scores[1, 1] % 1 > 0.01
    alone = GreedySearch(rounds=1).scores(forgiving)
    assert alone[1, 1] == alone[1, 0] == 0


def test_a_score_is_the_round_and_the_loss():
    encoder = make_encoder(lambda layer, head: 1.0 + layer + head)
    inputs = make_inputs(encoder, make_batches(number=1))
    scores = GreedySearch(rounds=3).scores(inputs)
    order = HeadRanking.from_scores(scores.tolist(), "greedy").heads
    assert [int(scores[head]) for head in order] == [0, 1, 1, 1, 2, 2, 2, 2]
    for chosen, number in ((order[:1], 0), ([order[0], order[2]], 2)):
        swap_attention(encoder, "constant", constants=inputs.constants, heads=chosen)
        with torch.no_grad():
            loss = float(inputs.loss(inputs.batches[0]))
        restore_attention(encoder)
        share = scores[order[number]] % 1
        assert share / (1 - share) == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("name", ["deberta", "modernbert", "gpt2", "albert-groups", "qwen2"])
def test_a_head_costs_what_it_costs_when_it_is_swapped(name):
    """Also for constants that reach where the attention of the family cannot look."""
    model, batch, constants = copy.deepcopy(plain(name)), tiny_models.make_inputs(name), make_constants(name)

    def loss(some):
        return encode(model, some)[some["attention_mask"].bool()].square().mean()

    scores = GreedySearch(rounds=2).scores(RankingInputs(model, constants, [batch], loss))
    order = HeadRanking.from_scores(scores.tolist(), "greedy").heads
    first = steps(CASES[name].layers * 4, 2)[0]
    for chosen in (order[:1], [*order[:first], order[first]], [*order[:first], order[-1]]):
        swap_attention(model, "constant", constants=constants, heads=chosen)
        with torch.no_grad():
            expected = float(loss(batch))
        restore_attention(model)
        share = float(scores[chosen[-1]] % 1)
        assert share / (1 - share) == pytest.approx(expected, rel=1e-6)


def test_an_encoder_is_left_as_it_was_found_swapped_or_not():
    encoder = make_encoder(lambda layer, head: 1.0)
    batches = make_batches()
    inputs = make_inputs(encoder, batches)
    plain = GreedySearch(rounds=2).scores(inputs)
    keys = list(encoder.state_dict())
    swap_attention(encoder, "constant", constants=inputs.constants, heads=[(0, 0), (1, 3)])
    encoder.train()
    with torch.no_grad():
        before = hidden(encoder.eval(), batches[0])
    encoder.train()
    assert torch.equal(GreedySearch(rounds=2).scores(inputs), plain)
    assert encoder.training
    with torch.no_grad():
        assert torch.equal(hidden(encoder.eval(), batches[0]), before)
    assert list(restore_attention(encoder).state_dict()) == keys


def test_only_the_first_sequences_are_looked_at():
    encoder = make_encoder(lambda layer, head: 1.0)
    batches = make_batches()
    short = [{name: entry[:2] for name, entry in batches[0].items()}]
    inputs = make_inputs(encoder, short)
    sizes = []

    def loss(batch):
        sizes.append(len(batch["input_ids"]))
        return inputs.loss(batch)

    limited = RankingInputs(encoder, inputs.constants, batches, loss)
    scores = GreedySearch(sequences=2, rounds=2).scores(limited)
    assert sizes == [2] * (measurements(8, 2) + 2)  # each round begins with a run of its own
    assert torch.equal(scores, GreedySearch(rounds=2).scores(inputs))


def test_batches_of_different_size_count_by_their_sequences():
    encoder = make_encoder(lambda layer, head: 1.0)
    (batch,) = make_batches(number=1, size=8)
    parts = [{name: entry[part] for name, entry in batch.items()} for part in (slice(0, 6), slice(6, 8))]
    constants = calibrate(encoder, [batch], LENGTH)

    def per_sequence(some):
        states = encoder(**some).last_hidden_state
        return (states.square().mean(dim=2) * some["attention_mask"]).sum(dim=1).mean()

    whole = GreedySearch(rounds=2).scores(RankingInputs(encoder, constants, [batch], per_sequence))
    split = GreedySearch(rounds=2).scores(RankingInputs(encoder, constants, parts, per_sequence))
    assert torch.allclose(whole, split, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_a_loss_that_cannot_be_ranked_by_is_refused(value):
    encoder = make_encoder(lambda layer, head: 1.0)
    inputs = make_inputs(encoder, make_batches())
    broken = RankingInputs(encoder, inputs.constants, inputs.batches, lambda batch: torch.tensor(value))
    with pytest.raises(PapaError, match=r"loss gave a mean of (nan|-0\.5)"):
        rank_heads("greedy", broken)
    assert not any("papa" in key for key in encoder.state_dict())


def test_what_is_missing_is_named():
    encoder = make_encoder(lambda layer, head: 1.0)
    inputs = make_inputs(encoder, make_batches())
    with pytest.raises(PapaError, match="'greedy' needs loss"):
        rank_heads("greedy", RankingInputs(encoder, inputs.constants, inputs.batches))
    with pytest.raises(PapaError, match="batches is empty"):
        rank_heads("greedy", RankingInputs(encoder, inputs.constants, [], inputs.loss))


@pytest.mark.parametrize("argument", ["sequences", "rounds"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_arguments_are_whole_numbers_from_one_on(argument, value):
    with pytest.raises(PapaError, match=f"{argument} is {value}"):
        GreedySearch(**{argument: value})


def test_steps_grow_and_take_every_head():
    assert steps(144, 8) == [4, 8, 12, 16, 20, 24, 28, 32]
    for heads in (1, 2, 7, 72, 384):
        taken = steps(heads, 8)
        assert sum(taken) == heads
        assert min(taken) >= 1
        assert len(taken) <= 8
    assert measurements(4, 100) == 4 + 3 + 2 + 1


def test_the_name_makes_the_criterion():
    assert isinstance(criterion_from("greedy"), GreedySearch)


def test_first_sequences_takes_all_when_there_are_fewer():
    batches = make_batches(number=2, size=4)
    assert [len(batch["input_ids"]) for batch in first_sequences(batches, 100)] == [4, 4]
    assert [len(batch["input_ids"]) for batch in first_sequences(batches, 4)] == [4]
