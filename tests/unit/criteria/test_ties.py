"""Rankings hang on what heads do, not on rounding: batch sizes, noise of the last bit, heads that are equal."""

import json
import os
import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel

from papa_lightning import HeadRanking, SequenceClassificationTask, calibrate
from papa_lightning.criteria import CRITERIA, GreedySearch, RankingInputs, criterion_from, rank_heads
from papa_lightning.ranking import merge_ties

LAYERS, HEADS, WIDTH, LENGTH, SEQUENCES = 2, 6, 4, 8, 24
MEASURED = [
    "variance",
    "divergence",
    "output",
    "output_norm",
    "entropy",
    "first_token",
    "taylor",
    "greedy",
    "embedding",
]
IN_ORDER = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def make_encoder(scale=1.0, copied=False):
    """Query and key are scaled by ``scale``; copied heads come in pairs (0, 1), (2, 3), (4, 5)."""
    config = BertConfig(
        vocab_size=30, hidden_size=HEADS * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=32, max_position_embeddings=LENGTH, attn_implementation="sdpa",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    encoder = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for block in encoder.encoder.layer:
            own, output = block.attention.self, block.attention.output.dense.weight
            own.query.weight *= scale
            if copied:
                for part in (own.query.weight, own.key.weight, own.value.weight, output.T):
                    pairs = part.view(HEADS // 2, 2, WIDTH, -1)
                    pairs[:, 1] = pairs[:, 0]
    return encoder


def make_batches(size, padded=True):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, 30, (SEQUENCES, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if padded:
        mask[::3, 5:] = 0
    rows = {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 1] % 2}
    return [{k: v[first : first + size] for k, v in rows.items()} for first in range(0, SEQUENCES, size)]


def make_inputs(encoder, size, loss=None, padded=True):
    batches = make_batches(size, padded)
    weight = torch.randn(HEADS * WIDTH, 2, generator=torch.Generator().manual_seed(8))

    def cross_entropy(batch):
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return F.cross_entropy(states[:, 0] @ weight, batch["labels"])

    def embed(batch):
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return states[:, 0] @ weight

    constants = calibrate(encoder, batches, LENGTH)
    return RankingInputs(encoder, constants, batches, loss or cross_entropy, embed=embed)


def test_every_criterion_that_measures_is_tried_here():
    assert set(CRITERIA) - {"random", "layer", "gate"} == set(MEASURED)


@pytest.mark.parametrize("name", MEASURED)
def test_equal_heads_tie_whatever_the_batch_size(name):
    encoder = make_encoder(copied=True)
    rankings = [rank_heads(name, make_inputs(encoder, size)) for size in (1, 5, SEQUENCES)]
    assert rankings[0].heads == rankings[1].heads == rankings[2].heads
    heads = rankings[0].heads
    twins = [(heads.index((layer, head)), heads.index((layer, head + 1))) for layer, head in IN_ORDER[::2]]
    assert all(first < second for first, second in twins)
    if name != "greedy":  # there the second of two equal heads is dear once the first is constant
        scores = rankings[0].scores
        assert all(scores[first] == scores[second] and second == first + 1 for first, second in twins)
        assert len(set(scores)) == len(IN_ORDER) // 2


@pytest.mark.parametrize("name", [name for name in MEASURED if name != "output_norm"])  # which is of the values
def test_heads_without_input_dependent_attention_keep_their_order(name):
    """Every score is the same up to rounding."""
    for size in (1, 5, SEQUENCES):
        ranking = rank_heads(name, make_inputs(make_encoder(scale=0.0), size, padded=False))
        assert ranking.heads == IN_ORDER


@pytest.mark.parametrize("name", MEASURED)
def test_heads_that_differ_are_told_apart(name):
    ranking = rank_heads(name, make_inputs(make_encoder(), 5))
    assert len(set(ranking.scores)) == len(IN_ORDER)


def test_a_loss_that_no_head_matters_for_ranks_by_layer_and_head():
    """The mean square of normalised hidden states is the same whatever the attention; its last bit is not."""
    encoder = make_encoder()

    def loss(batch):
        states = encoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return states.square().mean()

    for size in (1, 5, SEQUENCES):
        for name in ("greedy", "taylor"):
            assert rank_heads(name, make_inputs(encoder, size, loss)).heads == IN_ORDER


def test_noise_of_the_last_bits_does_not_change_a_greedy_search():
    encoder = make_encoder(copied=True)
    inputs = make_inputs(encoder, SEQUENCES)
    generator = torch.Generator().manual_seed(0)

    def noisy(batch):
        noise = torch.randint(-2, 3, (), generator=generator) * torch.finfo(torch.float32).eps
        return inputs.loss(batch) * (1 + noise)

    expected = rank_heads("greedy", inputs).heads
    for _ in range(5):
        found = rank_heads("greedy", RankingInputs(encoder, inputs.constants, inputs.batches, noisy))
        assert found.heads == expected


def test_double_precision_tells_smaller_differences_apart():
    scores = [[1.0, 1.0 + 1e-9] * (HEADS // 2)] * LAYERS
    for dtype, number in ((torch.float32, 1), (torch.float64, 2)):
        inputs = make_inputs(make_encoder().to(dtype), SEQUENCES)

        class Given(type(criterion_from("variance"))):
            def measure(self, inputs):
                return torch.tensor(scores, dtype=torch.float64)

        assert len(Given().scores(inputs).unique()) == number


def test_gates_of_equal_heads_tie(tmp_path):
    make_encoder(copied=True).save_pretrained(tmp_path)
    task = SequenceClassificationTask(str(tmp_path), num_labels=2, max_length=LENGTH)
    with torch.no_grad():
        for parameter in task.probe.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    found = []
    for size in (4, SEQUENCES):
        inputs = make_inputs(task.encoder, size)
        found.append(rank_heads("gate", RankingInputs(task.encoder, inputs.constants, inputs.batches, task=task)))
    for ranking in found:
        heads, scores = ranking.heads, ranking.scores
        for layer, head in IN_ORDER[::2]:
            first, second = heads.index((layer, head)), heads.index((layer, head + 1))
            assert second == first + 1
            assert scores[first] == scores[second]


def test_scores_given_by_hand_tie_within_rounding():
    ranking = HeadRanking.from_scores([[5.0000005, 2.0], [5.0, 1.0]], "mine")
    assert ranking.heads == [(1, 1), (0, 1), (0, 0), (1, 0)]
    assert ranking.first(0.75) == [(1, 1), (0, 1), (0, 0)]
    assert HeadRanking.from_scores([[1.0, 0.9999]], "mine").heads == [(0, 1), (0, 0)]
    assert HeadRanking.from_scores([[0.0, 0.0]], "mine").heads == [(0, 0), (0, 1)]
    assert HeadRanking.from_scores([[1.0 + 1e-9, 1.0]], "mine", rounding=0.0).heads == [(0, 1), (0, 0)]


def test_ties_are_chains_of_neighbours_and_each_becomes_the_lowest():
    assert merge_ties([0.2, 0.1, 0.3, 1.0], rounding=0.11) == [0.1, 0.1, 0.1, 1.0]
    assert merge_ties([-1.0, -1.0 - 1e-12], rounding=1e-9) == [-1.0 - 1e-12] * 2
    assert merge_ties([], rounding=1.0) == []


def test_the_search_itself_takes_equal_heads_in_order():
    inputs = make_inputs(make_encoder(scale=0.0), 5, padded=False)
    scores = GreedySearch(rounds=3).scores(inputs)
    assert HeadRanking.from_scores(scores.tolist(), "greedy", rounding=0.0).heads == IN_ORDER


@cache
def rankings(size):
    """The order of an encoder with equal heads by every criterion that measures."""
    inputs = make_inputs(make_encoder(copied=True), size)
    return {name: [list(head) for head in rank_heads(name, inputs).heads] for name in MEASURED}


_RANK = """
import json, runpy, sys, torch
torch.set_num_threads(int(sys.argv[2]))
print(json.dumps(runpy.run_path(sys.argv[1])["rankings"](int(sys.argv[3]))))
"""


@pytest.mark.parametrize(("capability", "threads", "size"), [("default", 1, 7), ("avx2", 4, 5)])
def test_the_order_is_the_same_on_every_processor(capability, threads, size):
    """Other instructions round otherwise; a processor that lacks some takes the next best."""
    isa = {"default": "SSE41", "avx2": "AVX2"}[capability]
    own = os.environ | {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-c", _RANK, __file__, str(threads), str(size)]
    run = subprocess.run(command, env=own, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == rankings(SEQUENCES)
