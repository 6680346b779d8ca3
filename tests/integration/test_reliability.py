"""tools/measure_reliability.py: its mathematics on matrices made by hand, and all of it at toy size."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from papa_lightning import AttentionAverages, HeadRanking, calibrate
from papa_lightning.errors import PapaError
from papa_lightning.study.settings import settings_from
from papa_lightning.study.workbench import Bench

SCRIPT = Path(__file__).parents[2] / "tools" / "measure_reliability.py"
script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def averages(*matrices: list[list[float]], mask: list[bool] | None = None) -> AttentionAverages:
    """Sums of one sequence with an attention matrix a head."""
    length = len(matrices[0])
    real = torch.tensor([mask or [True] * length])
    made = AttentionAverages(1, len(matrices), length)
    made.add_mask(real)
    made.add_attention(0, torch.tensor([matrices]), real)
    return made


def test_the_distance_is_the_share_of_attention_that_falls_elsewhere() -> None:
    one = averages([[0.5, 0.5], [0.25, 0.75]], [[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]])
    other = averages([[0.5, 0.5], [0.75, 0.25]], [[0.0, 1.0], [0.0, 1.0]], [[0.5, 0.5], [0.0, 1.0]])
    expected = torch.tensor([[0.25, 1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(script.distances(one, other), expected)
    torch.testing.assert_close(script.distances(other, one), expected)


def test_rows_and_columns_that_one_side_never_saw_do_not_count() -> None:
    long = averages([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.0, 0.0, 1.0]])
    short = averages([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], mask=[True, True, False])
    # Over two columns the rows of the long one are 0.75, 0.25 and 0.5, 0.5.
    assert script.distances(long, short).item() == pytest.approx((0.25 + 0.0) / 2)


def test_positions_count_as_often_as_they_were_real() -> None:
    long, short = [[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 0.0]]
    parts = [averages(long), averages(short, mask=[True, False]), averages(short, mask=[True, False])]
    one, other = script.merged(parts), averages([[0.5, 0.5], [1.0, 0.0]])
    # The first row is (2/3, 1), of which the second key counts 2 of 4 times; the other one is (1/2, 1/2).
    first = (2 / 3) / (2 / 3 + 1 / 2) - (1 / 2) / (1 / 2 + 1 / 4)
    assert script.distances(one, other).item() == pytest.approx((4 * abs(first) + 2 * 0.5) / 6)


def test_rankings_are_compared_by_order_and_by_lowest_half() -> None:
    one = HeadRanking.from_scores([[1.0, 2.0], [3.0, 4.0]], "variance")
    other = HeadRanking.from_scores([[1.0, 3.0], [2.0, 4.0]], "variance")
    assert script.compare_rankings(one, one) == {"rank_correlation": pytest.approx(1.0), "lowest_half_overlap": 1.0}
    found = script.compare_rankings(one, other)
    assert found == {"rank_correlation": pytest.approx(0.8), "lowest_half_overlap": 0.5}


@pytest.fixture(scope="module")
def plan(encoder_folder: str, data_folders: dict[str, str]) -> dict[str, Any]:
    names = {"sst2": "SST2DataModule", "mrpc": "MRPCDataModule"}
    tasks = {
        name: {"class_path": kind, "init_args": {"data_dir": data_folders[name], "max_length": 32}}
        for name, kind in names.items()
    }
    return {"encoders": {"tiny": encoder_folder}, "tasks": tasks, "constants": ["average", "other:mrpc"]}


def test_every_comparison_is_a_line(plan: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    output = tmp_path / "out.csv"
    words = ["--config", str(tmp_path / "plan.yaml"), "--output", str(output), "--seeds", "0", "1"]
    script.main([*words, "--sequences", "1", "4", "64"])
    found = pd.read_csv(output, dtype={"with": str}).fillna({"with": ""})
    names = found[["task", "kind", "with", "rows"]].value_counts().to_dict()
    within = {
        (task, *one, 12): 2 for task in plan["tasks"] for one in (("half", ""), ("sequences", "1"), ("sequences", "4"))
    }
    assert names == {**within, ("sst2", "task", "mrpc", 24): 1}
    assert found["distance_mean"].between(0, 1, inclusive="neither").all()
    assert (found["distance_mean"] <= found["distance_max"]).all()
    assert (found["rank_correlation"].isna() == (found["with"] == "1")).all()
    with pytest.raises(PapaError, match=r"--tasks has 'mprc', but the settings have .*Did you mean 'mrpc'"):
        script.main([*words, "--tasks", "mprc"])
    with pytest.raises(SystemExit):
        script.main([*words, "--sequences", "0"])


def test_parts_add_up_to_a_calibration_on_all_rows(plan: dict[str, Any]) -> None:
    bench = Bench(settings_from({**plan, "constants": ["average"]}), "tiny", "sst2")
    parts = script.in_parts(bench, [1, 5, 12], seed=3)
    assert [int(part.num_sequences) for part in parts] == [1, 4, 7]
    whole, expected = script.merged(parts), calibrate(bench.task.encoder, bench.batches(), 32)
    torch.testing.assert_close(whole.compute().float(), expected.values)
    assert torch.equal(whole.pair_counts, expected.pair_counts)
    torch.testing.assert_close(whole.variance(), expected.variance)
    again, other = (script.in_parts(bench, [1, 5, 12], seed=seed) for seed in (3, 5))
    assert script.distances(parts[1], again[1]).max() == 0
    assert script.distances(parts[1], other[1]).max() > 0
