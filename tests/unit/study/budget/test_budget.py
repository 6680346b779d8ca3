"""Plans within a budget: on a tiny encoder, with probes whose scores are known."""

import json
import math
import os
import string
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

from papa_lightning import AttentionConstants, HeadRanking, PapaError, swap_attention
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import OutputError, StudyError
from papa_lightning.files.locking import claimed
from papa_lightning.study.budget import points as budget_points
from papa_lightning.study.budget import search as budget
from papa_lightning.study.budget.points import Drop, halves, largest_within, open_split_bench
from papa_lightning.study.budget.search import find_budget, format_budget
from papa_lightning.study.budget.settings import BudgetSettings
from papa_lightning.study.intervals import Sample
from papa_lightning.study.predictions import Predictions
from papa_lightning.study.settings import read_share
from papa_lightning.study.training import TrainedProbe

TOTAL = 8
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A BERT of 2 layers and 4 heads that reads letters."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=20).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=20, **sizes)).save_pretrained(folder)
    return str(folder)


def write_split(folder, split, number, labelled=True):
    letters = string.ascii_lowercase
    rows = [{"sentence": f"{letters[i]} b", "label": i % 2 if labelled else -1, "idx": i} for i in range(number)]
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_split(folder, "train", 8)
    write_split(folder, "validation", 7)
    return folder


def make_settings(encoder_folder, data_folder, within="10%", **others):
    task = {"class_path": "SST2DataModule", "init_args": {"data_dir": str(data_folder), "max_length": 6}}
    return BudgetSettings(**{"encoder": encoder_folder, "task": task, "within": within, "device": "cpu", **others})


def plan_in(folder, encoder_folder, data_folder, within="10%", **others):
    return find_budget(make_settings(encoder_folder, data_folder, within, **others), folder, progress=False)


class KnownProbes:
    """Probes whose scores depend on the number of constant heads and the seed only, and that know what they saw."""

    def __init__(self, selection, held_out=None):
        self.selection, self.held_out = selection, held_out or selection
        self.trained, self.states = [], {}

    def __call__(self, task, train, evaluations, seeds, settings):
        assert list(evaluations) in ([], ["", "held_out"])
        heads = sum(len(layer.constant_heads) for layer in swapped_layers(task.encoder))
        self.states[heads] = states_of(task.encoder)
        if evaluations:  # without any it is the probe of greedy search
            self.trained += [(heads, seed) for seed in seeds]
        scores = {
            seed: {"accuracy": self.selection(heads, seed), "accuracy/held_out": self.held_out(heads, seed)}
            for seed in seeds
        }
        return [TrainedProbe(seed, scores[seed], task.probe, 0.0) for seed in seeds]


def states_of(encoder):
    inputs = {"input_ids": torch.tensor([[2, 7, 8, 0, 0, 3]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 1]])}
    with torch.no_grad():
        return encoder(**inputs).last_hidden_state


@pytest.fixture
def known(monkeypatch):
    """Install probes with known scores."""

    def install(selection, held_out=None):
        probes = KnownProbes(selection, held_out)
        monkeypatch.setattr(budget_points, "train_probes", probes)
        return probes

    return install


def straight(slope):
    """0.8 with all heads dynamic; each constant head costs `slope` of it."""
    return lambda heads, seed: 0.8 * (1 - slope * heads)


def plan_of(folder):
    return json.loads((Path(folder) / "budget.json").read_text(encoding="utf-8"))


# The limit.


@pytest.mark.parametrize(
    ("within", "share"), [("1%", 0.01), (" 2.5 % ", 0.025), ("0%", 0), (0, 0), (0.03, 0.03), ("0.03", 0.03)]
)
def test_a_limit_is_a_share_or_a_percentage(within, share):
    assert read_share("within", within) == pytest.approx(share)


@pytest.mark.parametrize("within", ["1", 1, "100%", -0.01, "-1%", "one", "%", "", None, True, math.nan, "nan%", [0.1]])
def test_other_limits_are_refused_by_name(within):
    with pytest.raises(PapaError, match=r"within is .* but must be a share from 0 to below 1"):
        read_share("within", within)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("within", "101%"), ("search", "random"), ("criterion", "best"), ("seeds", []), ("search_sequences", 0),
        ("split_seed", -1), ("pooling", "max"), ("calibration_batch_size", 0),
    ],
)  # fmt: skip
def test_settings_are_refused_by_name(argument, value):
    given = {"encoder": "folder", "task": {"class_path": "SST2DataModule"}, "within": "1%", argument: value}
    with pytest.raises(PapaError, match=f"^{argument} (is|has) "):
        BudgetSettings(**given)


# The search.


@pytest.mark.parametrize("total", [1, 2, 7, 72, 144])
def test_bisection_finds_every_threshold_with_few_questions(total):
    for threshold in range(total + 1):
        asked = []
        found = largest_within(
            lambda number, asked=asked, threshold=threshold: asked.append(number) or number <= threshold, total
        )
        assert found == threshold
        assert len(asked) <= total.bit_length()
        assert len(set(asked)) == len(asked)
        assert all(1 <= number <= total for number in asked)


def test_what_bisection_finds_fits_even_where_scores_go_up_and_down():
    assert largest_within(lambda number: number in (4, 6, 8), total=8) == 6  # asked for 4, 6 and 7
    assert largest_within(lambda number: number > 4, total=8) == 0


def drop_of(scores, dynamic, limit=0.1):
    return Drop.of(Sample(np.array(scores)), Sample(np.array(dynamic)), limit, (0, 1))


def test_a_drop_is_relative_and_paired_by_seed():
    drop = drop_of([0.75, 0.6, 0.7], [1.0, 0.5, 0.6])
    assert drop.seeds == pytest.approx((0.25, -0.2, -1 / 6))
    assert drop.mean == pytest.approx(0.05 / 2.1)  # of the mean scores
    assert drop.low < drop.mean < drop.high
    negative = Drop.of(Sample(np.array([-0.4])), Sample(np.array([-0.2])), 0.1, (-1, 1))
    assert negative.mean == pytest.approx(1.0)  # a Matthews correlation below 0 that falls further
    assert math.isnan(drop_of([0.5], [0.5]).low)


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([0.9 - 1e-8] * 3, "within"), ([0.8999] * 3, "beyond"), ([1.0] * 3, "within"), ([0.9], ""),
        ([0.95, 0.9, 0.87], "open"), ([0.7, 0.72, 0.71], "beyond"), ([math.nan] * 3, ""),
    ],
)  # fmt: skip
def test_a_drop_is_within_the_limit_if_its_whole_interval_is(scores, verdict):
    drop = drop_of(scores, [1.0] * len(scores))
    assert drop.verdict == verdict
    assert math.isnan(drop.examples_needed)  # without predictions


# The rows.


def test_halves_are_disjoint_cover_all_and_depend_on_the_seed_only():
    rows = Dataset.from_dict({"row": list(range(41))})
    first, second = halves(rows, seed=0)
    assert (len(first), len(second)) == (20, 21)
    assert sorted([*first["row"], *second["row"]]) == list(range(41))
    assert list(first["row"]) == sorted(first["row"])
    assert list(halves(rows, seed=0)[0]["row"]) == list(first["row"])
    assert list(halves(rows, seed=1)[0]["row"]) != list(first["row"])


def test_one_row_cannot_be_halved():
    with pytest.raises(StudyError, match="task has 1 validation rows"):
        halves(Dataset.from_dict({"row": [0]}), seed=0)


@pytest.mark.parametrize(("labelled", "sizes"), [(True, [7, 5]), (False, [3, 4]), (None, [3, 4])])
def test_a_test_split_is_held_out_if_it_has_labels(labelled, sizes, encoder_folder, tmp_path):
    write_split(tmp_path, "train", 8)
    write_split(tmp_path, "validation", 7)
    if labelled is not None:
        write_split(tmp_path, "test", 5, labelled)
    bench, where = open_split_bench(make_settings(encoder_folder, tmp_path))
    assert list(bench.evaluations) == ["", "held_out"]
    assert [len(rows) for rows in bench.evaluations.values()] == sizes
    assert where == ("the test split" if labelled else "half of the validation split, drawn with seed 0")


# The plan.


def test_the_largest_number_within_the_limit(known, encoder_folder, data_folder, tmp_path):
    probes = known(straight(0.02))
    plan = plan_in(tmp_path, encoder_folder, data_folder)
    assert plan.heads == 5  # 5 x 2 % is 10 %, up to rounding
    assert plan.total == TOTAL
    assert plan.confirmed
    assert plan.selection.mean == pytest.approx(0.1)
    assert [point.heads for point in plan.points] == [0, 4, 5, 6]
    assert probes.trained == [(heads, seed) for heads in (0, 4, 6, 5) for seed in (0, 1, 2)]


def test_the_mean_over_the_seeds_decides(known, encoder_folder, data_folder, tmp_path):
    drops = {0: 0.0, 1: 0.02, 2: 0.04}
    known(lambda heads, seed: 0.8 * (1 - drops[seed] * heads))
    plan = plan_in(tmp_path, encoder_folder, data_folder, within=0.061)
    assert plan.heads == 3
    assert plan.selection.seeds == pytest.approx((0.0, 0.06, 0.12))
    assert plan.confirmed is False  # its interval reaches above the limit, so that nothing is settled
    assert "not settled: accuracy falls by 6 % (95 % interval over seeds -8.9 % to 20.9 %;" in format_budget(
        plan, tmp_path
    )


def test_a_choice_that_does_not_hold_is_said_not_to(known, encoder_folder, data_folder, tmp_path):
    known(straight(0.02), held_out=straight(0.03))
    plan = plan_in(tmp_path, encoder_folder, data_folder)
    assert plan.heads == 5  # nothing is chosen by the held-out rows
    assert plan.confirmed is False
    found, _, held_out, verdict, filled, files, use = format_budget(plan, tmp_path).splitlines()
    assert found == (
        "found      within 10 %: 5 of 8 heads (62.5 %) by criterion variance; accuracy falls by 10 % on the "
        "selection data (3 examples, 3 seeds)"
    )
    assert held_out == (
        "held out   accuracy 0.800 [0.800, 0.800] with all heads dynamic, chance 0.500, difference 0.300 [0.300, 0.300]"
    )
    assert verdict == (
        "verdict    NOT confirmed: accuracy falls by 15 % (95 % interval over seeds 15 % to 15 %; 4 held-out examples, "
        "half of the validation split, drawn with seed 0)"
    )
    unseen = int((AttentionConstants.load(tmp_path / "constants.safetensors").pair_counts == 0).sum())
    assert filled.split()[1] == str(unseen)
    assert str(tmp_path / "budget.json") in files
    assert "heads=5" in use
    assert plan_of(tmp_path)["held_out"]["confirmed"] is False


def test_all_heads_where_the_score_rises(known, encoder_folder, data_folder, tmp_path):
    known(straight(-0.01))
    plan = plan_in(tmp_path, encoder_folder, data_folder, "0%")
    assert plan.heads == TOTAL
    assert "accuracy rises by 8 %" in format_budget(plan, tmp_path)
    assert plan_of(tmp_path)["share"] == 1


def test_where_no_head_fits_the_choice_is_empty(known, encoder_folder, data_folder, tmp_path):
    known(straight(0.2))
    plan = plan_in(tmp_path, encoder_folder, data_folder)
    assert plan.heads == 0
    assert plan.confirmed is None
    found, _, _, verdict, _, use = format_budget(plan, tmp_path).splitlines()
    assert "no head can be constant by criterion variance: accuracy loses more with 1 of 8 heads" in found
    assert (verdict, use) == ("verdict    nothing to confirm", "use        leave the encoder as it is")
    content = plan_of(tmp_path)
    assert (content["heads"], content["chosen"], content["held_out"]["confirmed"]) == (0, [], None)
    # The files belong to each other all the same, and nothing older is left beside the plan.
    encoder = AutoModel.from_pretrained(encoder_folder)
    before = states_of(encoder)
    swap_files(encoder, tmp_path, 0)
    assert torch.equal(states_of(encoder), before)


def swap_files(encoder, folder, heads):
    constants, ranking = (
        AttentionConstants.load(folder / "constants.safetensors").filled(),
        HeadRanking.load(folder / "ranking.json"),
    )
    return swap_attention(encoder, "constant", constants=constants, heads=heads, ranking=ranking)


@pytest.mark.parametrize("search", ["share", "greedy"])
def test_the_files_give_exactly_the_encoder_that_was_confirmed(search, known, encoder_folder, data_folder, tmp_path):
    probes = known(straight(0.02))
    plan = plan_in(tmp_path, encoder_folder, data_folder, search=search)
    encoder = swap_files(AutoModel.from_pretrained(encoder_folder), tmp_path, plan.heads)
    assert torch.equal(states_of(encoder), probes.states[plan.heads])
    assert not torch.equal(probes.states[plan.heads], probes.states[plan.heads - 1])
    assert plan_of(tmp_path)["chosen"] == [list(head) for head in HeadRanking.load(tmp_path / "ranking.json").first(5)]


def test_the_plan_says_what_was_measured_and_how(known, encoder_folder, data_folder, tmp_path):
    known(straight(0.02), held_out=straight(0.01))
    plan_in(tmp_path, encoder_folder, data_folder, seeds=[7])
    content = plan_of(tmp_path)
    assert (content["limit"], content["heads"], content["total_heads"], content["metric"]) == (0.1, 5, 8, "accuracy")
    assert [point["heads"] for point in content["points"]] == [0, 4, 5, 6]
    (result,) = content["points"][1]["results"]
    assert result["seed"] == 7
    assert result["scores"] == pytest.approx({"accuracy": 0.8 * 0.92, "accuracy/held_out": 0.8 * 0.96})
    assert content["selection"]["mean"] == pytest.approx(0.1)
    assert content["held_out"]["mean"] == pytest.approx(0.05)
    assert content["held_out"]["low"] is None  # of one seed there is no interval
    about = content["about"]
    assert (about["train_examples"], about["selection_examples"], about["held_out_examples"]) == (8, 3, 4)
    assert about["versions"]["torch"] == version("torch")
    assert about["seconds"] > 0
    assert str(encoder_folder) not in json.dumps(content)
    assert "NOT confirmed, no interval" in format_budget(
        plan_in(tmp_path, encoder_folder, data_folder, seeds=[7]), tmp_path
    )


def test_what_was_measured_is_not_measured_again(known, encoder_folder, data_folder, tmp_path):
    probes = known(straight(0.02))
    first = plan_in(tmp_path, encoder_folder, data_folder, seeds=[0])
    ranking = (tmp_path / "ranking.json").read_bytes()
    values = AttentionConstants.load(tmp_path / "constants.safetensors").values
    probes.trained.clear()
    again = plan_in(tmp_path, encoder_folder, data_folder, seeds=[0])
    assert probes.trained == []
    assert (again.heads, again.held_out.mean) == (first.heads, first.held_out.mean)
    assert (tmp_path / "ranking.json").read_bytes() == ranking
    assert torch.equal(AttentionConstants.load(tmp_path / "constants.safetensors").values, values)
    plan_in(tmp_path, encoder_folder, data_folder, within="2%", seeds=[0, 1])
    assert probes.trained == [(0, 1), (4, 1), (2, 0), (2, 1), (1, 0), (1, 1)]
    assert not list((tmp_path / "work").glob("features/*/*"))


def test_other_heads_or_rows_are_measured_anew(known, encoder_folder, data_folder, tmp_path):
    probes = known(straight(0.02))
    plan_in(tmp_path, encoder_folder, data_folder, seeds=[0], criterion="layer:bottom_up")
    probes.trained.clear()
    plan_in(tmp_path, encoder_folder, data_folder, seeds=[0], criterion="layer:top_down")
    assert probes.trained == [(4, 0), (6, 0), (5, 0)]  # all heads dynamic are the same whatever ranks them
    probes.trained.clear()
    plan_in(tmp_path, encoder_folder, data_folder, seeds=[0], criterion="layer:top_down", split_seed=1)
    assert len(probes.trained) == 4


@pytest.mark.parametrize("which", ["selection", "held_out"])
def test_a_score_of_0_is_refused_before_anything_else_is_trained(which, known, encoder_folder, data_folder, tmp_path):
    broken = {"selection": straight(0.02), "held_out": straight(0.02)} | {which: lambda heads, seed: 0.0}
    probes = known(**broken)
    named = which.replace("_", "-")
    with pytest.raises(StudyError, match=f"accuracy of seed 0 is 0.0 on the {named} data with all heads dynamic"):
        plan_in(tmp_path, encoder_folder, data_folder)
    assert {heads for heads, _ in probes.trained} == {0}
    assert not (tmp_path / "budget.json").exists()


def predictions_of(right, total):
    """The first labels are right; half of the labels are 1."""
    labels = torch.arange(total) % 2
    logits = torch.nn.functional.one_hot(torch.where(torch.arange(total) < right, labels, 1 - labels), 2).float()
    return Predictions(logits, labels, torch.arange(total), total, ["no", "yes"])


@pytest.mark.parametrize(("right", "beats"), [(40, False), (60, True)])
def test_a_baseline_must_beat_chance_on_both_sets(right, beats, encoder_folder, data_folder, tmp_path, monkeypatch):
    """With 80 examples 40 of them are chance, and the interval of 60 is above it; paired over the examples."""

    def train(task, features, evaluations, seeds, settings):
        sets = {"": predictions_of(60, 80), "held_out": predictions_of(right, 80)}
        scores = {"accuracy": 60 / 80, "accuracy/held_out": right / 80}
        return [TrainedProbe(seed, scores, task.probe, 0.0, sets) for seed in seeds]

    monkeypatch.setattr(budget_points, "train_probes", train)
    if beats:
        plan = plan_in(tmp_path, encoder_folder, data_folder, seeds=[0, 1])
        assert plan.baselines[1].above.basis == "examples"
        assert 0 < plan.baselines[1].above.low < 0.25 < plan.baselines[1].above.high < 0.5
        assert plan.confirmed
        assert plan_of(tmp_path)["baseline"]["held_out"]["chance"] == 0.5
    else:
        message = r"accuracy on the held-out data does not beat chance: 0\.500 \[0\.3.*probe\.max_epochs"
        with pytest.raises(StudyError, match=message):
            plan_in(tmp_path, encoder_folder, data_folder, seeds=[0, 1])


def test_greedy_search_sees_rows_of_the_selection_only(known, encoder_folder, data_folder, tmp_path, monkeypatch):
    known(straight(0.02))
    seen, original = [], budget.rank_heads

    def rank_heads(criterion, inputs):
        seen.extend(row.tolist() for batch in inputs.batches for row in batch["input_ids"])
        return original(criterion, inputs)

    monkeypatch.setattr(budget, "rank_heads", rank_heads)
    settings = make_settings(encoder_folder, data_folder, search="greedy", search_sequences=2, seeds=[0])
    plan = find_budget(settings, tmp_path, progress=False)
    assert plan.ranking.criterion == "greedy:2"
    assert sorted(plan.ranking.heads) == [(layer, head) for layer in range(2) for head in range(4)]
    bench, _ = open_split_bench(settings)
    selection = [list(row) for row in bench.evaluations[""].with_format(None)["input_ids"]]
    assert len(seen) == 2
    assert all(row in selection for row in seen)
    assert "by greedy search;" in format_budget(plan, tmp_path)
    monkeypatch.setattr(budget, "rank_heads", None)
    assert find_budget(settings, tmp_path, progress=False).ranking == plan.ranking  # found, not searched again
    task = settings.task | {"probe": {"learning_rate": 0.1}}
    with pytest.raises(TypeError):  # the order of another probe is another one
        find_budget(replace(settings, task=task), tmp_path, progress=False)


def test_an_old_plan_is_gone_before_the_files_beside_it_change(
    known, encoder_folder, data_folder, tmp_path, monkeypatch
):
    known(straight(0.02))
    settings = make_settings(encoder_folder, data_folder, seeds=[0])
    find_budget(settings, tmp_path, progress=False)

    def fail(self, path):
        raise OSError("disk full")

    monkeypatch.setattr(AttentionConstants, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        find_budget(settings, tmp_path, progress=False)
    assert not (tmp_path / "budget.json").exists()


def test_a_second_plan_in_the_folder_is_refused_by_name(known, encoder_folder, data_folder, tmp_path):
    probes = known(straight(0.02))
    left = tmp_path / "work" / "features" / ".left"
    left.mkdir(parents=True)
    with claimed("output", tmp_path, tmp_path / "work" / ".lock"):
        with pytest.raises(PapaError, match=f"where process {os.getpid()} on .* has been at work since"):
            plan_in(tmp_path, encoder_folder, data_folder)
        assert left.exists()
    assert probes.trained == []
    plan_in(tmp_path, encoder_folder, data_folder)
    assert not left.exists()


def test_an_output_that_is_a_file_is_refused(encoder_folder, data_folder, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(OutputError, match=r"output is .* is a file: pass a folder"):
            find_budget(make_settings(encoder_folder, data_folder), output, progress=False)


def test_the_plain_layout_can_be_searched(known, encoder_folder, data_folder, tmp_path):
    """Its batches may be cut, but the probe of sentences has weights for all positions."""
    known(straight(0.02))
    settings = make_settings(encoder_folder, data_folder, search="greedy", seeds=[0])
    settings.task["init_args"]["layout"] = "plain"
    assert find_budget(settings, tmp_path, progress=False).heads == 5
