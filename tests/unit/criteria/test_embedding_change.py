"""The criterion "embedding" against its definition: an encoder with one head swapped, and its embeddings."""

import copy

import pytest
import torch
from conformance.tiny_models import CASES, HEADS, encode, make_constants, make_inputs, plain, snapshot, two_batches

from papa_lightning import PapaError, restore_attention, swap_attention
from papa_lightning.criteria import (
    CRITERIA,
    EmbeddingChange,
    GreedySearch,
    RankingInputs,
    check_for_embeddings,
    criterion_from,
    embedding_inputs,
    rank_heads,
)


def embedder(model):
    """Means of hidden states over real tokens."""

    def embed(batch):
        states, mask = encode(model, batch), batch["attention_mask"][..., None].double()
        return (states * mask).sum(dim=1) / mask.sum(dim=1)

    return embed


def inputs_of(name, model, batches):
    return RankingInputs(model, make_constants(name), batches, embed=embedder(model))


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta", "modernbert", "albert-groups", "t5", "qwen2-sliding"])
def test_a_score_is_the_change_by_a_head_that_is_swapped(name):
    """Of families with and without layers that can be run by themselves, with padding in front, between and behind."""
    model, batches = copy.deepcopy(plain(name)), two_batches(name)
    before, embed = snapshot(model), embedder(model)
    scores = EmbeddingChange().scores(inputs_of(name, model, batches))
    assert snapshot(model) == before
    with torch.no_grad():
        original = torch.cat([embed(batch) for batch in batches])
        for layer in range(CASES[name].layers):
            for head in range(HEADS):
                swap_attention(model, "constant", constants=make_constants(name), heads=[(layer, head)])
                changed = torch.cat([embed(batch) for batch in batches])
                restore_attention(model)
                expected = (1 - torch.cosine_similarity(original, changed)).mean()
                assert float(scores[layer, head]) == pytest.approx(float(expected), rel=1e-6, abs=1e-13)
    assert len(scores.unique()) == scores.numel()


def test_a_swapped_encoder_is_compared_with_its_dynamic_heads():
    model, batches = copy.deepcopy(plain("bert")), two_batches("bert")
    expected = EmbeddingChange().scores(inputs_of("bert", model, batches))
    swap_attention(model, "constant", constants=make_constants("bert"), heads=[(0, 1), (2, 3)])
    model.train()
    before = snapshot(model)
    assert torch.equal(EmbeddingChange().scores(inputs_of("bert", model, batches)), expected)
    assert snapshot(model) == before


def test_the_detail_is_the_number_of_sentences():
    model, (first, second) = copy.deepcopy(plain("bert")), two_batches("bert")
    some = {name: held[:1] for name, held in second.items()}
    expected = rank_heads("embedding", inputs_of("bert", model, [first, some]))
    found = rank_heads("embedding:5", inputs_of("bert", model, [first, second]))
    assert found.heads == expected.heads
    assert found.scores == expected.scores
    assert (found.criterion, criterion_from("embedding:128").spec) == ("embedding:5", "embedding")


def test_sentences_without_a_token_do_not_count():
    model, batch = copy.deepcopy(plain("bert")), make_inputs("bert")
    expected = EmbeddingChange().scores(inputs_of("bert", model, [batch]))
    empty = {name: torch.cat([held, torch.zeros_like(held[:2])]) for name, held in batch.items()}
    nothing = {name: torch.zeros_like(held) for name, held in batch.items()}
    found = EmbeddingChange().scores(inputs_of("bert", model, [nothing, empty]))
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-9)


@pytest.mark.parametrize("criterion", [EmbeddingChange(5), GreedySearch()])
def test_entries_that_are_none_count_as_left_out(criterion):
    model, batches = plain("bert"), two_batches("bert")
    left_out = [{key: one for key, one in batch.items() if key != "token_type_ids"} for batch in batches]
    none = [{**batch, "token_type_ids": None} for batch in left_out]
    wanted, found = (
        criterion.scores(embedding_inputs(model, make_constants("bert"), one, embedder(model)))
        for one in (left_out, none)
    )
    assert torch.equal(found, wanted)


def test_what_is_missing_is_named():
    model, batches = copy.deepcopy(plain("bert")), two_batches("bert")
    with pytest.raises(PapaError, match="criterion 'embedding' needs embed, but embed is None"):
        rank_heads("embedding", RankingInputs(model, make_constants("bert"), batches))
    with pytest.raises(PapaError, match="batches has no real token"):
        rank_heads("embedding", inputs_of("bert", model, []))
    with pytest.raises(PapaError, match="sequences is 0, but must be a whole number, at least 1"):
        EmbeddingChange(0)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_greedy_search_by_the_change_of_embeddings(swapped):
    """With one round it is the criterion, also for an encoder that is swapped and in train mode."""
    model, batches = copy.deepcopy(plain("bert")), two_batches("bert")
    expected = EmbeddingChange().scores(inputs_of("bert", model, batches))
    if swapped:
        swap_attention(model, "constant", constants=make_constants("bert"), heads=[(0, 1)])
        model.train()
    before = snapshot(model)
    inputs = embedding_inputs(model, make_constants("bert"), batches, embedder(model))
    found = GreedySearch(rounds=1).scores(inputs)
    torch.testing.assert_close(found / (1 - found), expected, atol=1e-12, rtol=1e-6)
    assert rank_heads("embedding", inputs).heads == rank_heads(GreedySearch(rounds=1), inputs).heads
    assert snapshot(model) == before


def test_criteria_that_ask_a_probe_are_refused_for_embeddings():
    for name in ("taylor", "gate"):
        with pytest.raises(PapaError, match=rf"criterion is '{name}'.*: choose from variance, .*embedding, greedy"):
            check_for_embeddings(name)
    for name in ("embedding:32", "greedy", "variance", "random:2"):
        check_for_embeddings(name)
    assert {name for name, one in CRITERIA.items() if one.needs_probe} == {"taylor", "gate"}
