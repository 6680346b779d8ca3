"""`papa study` and `papa budget` of embeddings, as a user runs them, on a tiny encoder and tiny texts."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.conftest import write_rows
from markupsafe import Markup
from matplotlib.figure import Figure

from papa_lightning.benchmark import applied
from papa_lightning.cli.main import main
from papa_lightning.embeddings import Answers
from papa_lightning.errors import PapaError
from papa_lightning.study import Evidence, Study, format_summary, load_table
from papa_lightning.study.report.data import read_study
from papa_lightning.study.report.latex import write_latex
from papa_lightning.study.report.sections import SECTIONS, Drawing, Figures
from papa_lightning.study.views import curve_figure


def pair(numbers: random.Random) -> dict[str, Any]:
    """Two texts of letters, and the share of letters that they have in common as their similarity."""
    texts = ["".join(numbers.sample("abcdefgh", numbers.randint(2, 6))) for _ in range(2)]
    both = set(texts[0]) & set(texts[1])
    score = 5 * len(both) / len(set("".join(texts)))
    return {"sentence1": texts[0], "sentence2": texts[1], "score": score}


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, numbers = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for split, number in (("train", 12), ("validation", 120)):
        write_rows(folder / f"{split}.jsonl", [pair(numbers) for _ in range(number)])
    return str(folder)


@pytest.fixture(scope="module")
def passages_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A BEIR folder: each query is the beginning of a passage."""
    folder, numbers = tmp_path_factory.mktemp("passages"), random.Random(0)
    texts = ["".join(numbers.sample("abcdefghijk", 8)) for _ in range(20)]
    write_rows(folder / "corpus.jsonl", [{"_id": f"p{n}", "text": text} for n, text in enumerate(texts)])
    write_rows(folder / "queries.jsonl", [{"_id": f"q{n}", "text": texts[n][:5]} for n in range(8)])
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tp{n}\t1" for n in range(8))]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def study(encoder: str, folder: str, **changes: Any) -> dict[str, Any]:
    task = {"class_path": "SimilarityDataModule", "init_args": {"data_dir": folder, "max_length": 16}}
    given = {"encoders": {"tiny": encoder}, "tasks": {"pairs": task}, "shares": [0.5, 1], "margin": "1%"}
    return {**given, "criteria": ["variance", "embedding", "random", "random:1"], **changes}


def run(config: dict[str, Any], output: Path, *more: str) -> None:
    path = output.parent / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["study", "--config", str(path), "--output", str(output), *more])


@pytest.fixture(scope="module")
def finished(encoder_folder: str, pairs_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with recovery and controls."""
    output = tmp_path_factory.mktemp("studies") / "whole"
    recovery = {"max_epochs": 2, "batch_size": 4, "learning_rate": 0.01}
    kinds = {"constants": ["recovered", "average", "uniform"], "control_shares": [1], "recovery": recovery}
    Study(study(encoder_folder, pairs_folder, **kinds), output).run(progress=False)
    return output


def test_embeddings_are_judged_without_seeds(finished: Path) -> None:
    table = load_table(finished)
    assert set(table["seed"]) == {0}
    assert set(table["metric"]) == {"spearman", "pearson"}
    assert set(table["constants"]) == {"average", "uniform", "recovered"}
    assert set(table.loc[table["constants"] == "recovered", "share"]) == {0.0, 0.5, 1.0}
    assert len(list(finished.glob("cells/*.json"))) == table["hash"].nunique() == 1 + 4 + 1 + 2 + 1
    evidence = Evidence.read(finished)
    sets = evidence.predictions(table["hash"][0])
    assert sets is not None
    assert isinstance(sets[""], Answers)
    assert sets[""].scores()["spearman"] == table["score"][0]
    assert set(evidence.summary["basis"]) == {"pairs"}
    assert evidence.notes == []


def test_recovery_changes_no_other_result(
    finished: Path, encoder_folder: str, pairs_folder: str, tmp_path: Path
) -> None:
    """The encoder that is trained is a copy: what is measured after it is the same."""
    tables = load_table(finished), Study(study(encoder_folder, pairs_folder), tmp_path / "alone").run(progress=False)
    whole, alone = (table.set_index(["hash", "metric"])["score"].to_dict() for table in tables)
    assert alone.items() <= whole.items()
    full = tables[0][(tables[0]["share"] == 1) & (tables[0]["metric"] == "spearman")]
    scores = full.drop_duplicates("constants").set_index("constants")["score"]
    assert scores["recovered"] != scores["average"]


class Captions(Figures):
    """Captions of figures, which take longer to write than all the rest."""

    def add(self, figure: Figure, names: Sequence[str], caption: str) -> Drawing:
        return Drawing(Markup(), caption)


def test_report_and_latex_speak_of_pairs(finished: Path, tmp_path: Path) -> None:
    data = read_study(finished)
    text = " ".join(str(SECTIONS[name](data, Captions(tmp_path))) for name in ("answer", "curves", "tables"))
    for found in ("120 pairs", "With recovery", "24 calibration texts", "are 95 % intervals over pairs"):
        assert found in text
    assert "variance, recovered" in set(data.with_recovery("tiny", "pairs")["criterion"])
    labels = [text.get_text() for text in curve_figure(data.summary).legends[0].get_texts()]
    assert "variance, recovered" in labels
    assert set(data.controls("tiny", "pairs")["constants"]) == {"average", "uniform"}
    for word in ("of the probe", "seed", "validation example"):
        assert word not in text
    caption = write_latex(finished).read_text(encoding="utf-8")
    assert r"constant heads, 95 \% intervals over pairs" in caption
    assert "seed" not in caption


def test_a_study_is_printed_and_gone_on_with(
    encoder_folder: str,
    pairs_folder: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(applied, "timed_report", lambda folder: (Path(folder) / "report.html", []))
    config = study(encoder_folder, pairs_folder, criteria=["variance"])
    run(config, tmp_path / "out", "--dry_run", "true")
    printed = capsys.readouterr().out
    assert "time: about" in printed
    assert "seeds" not in printed
    run(config, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "3 results to measure" in printed
    assert "spearman; 120 pairs; constants: average; 95 % intervals over pairs" in printed
    assert "judging embeddings" in printed
    run({**config, "embedding": {"pooling": "class_token"}}, tmp_path / "out")
    assert "3 results to measure" in capsys.readouterr().out  # another pooling gives other numbers
    run(config, tmp_path / "out")
    assert "0 results to measure" in capsys.readouterr().out


def test_the_shipped_configuration_is_run(
    encoder_folder: str, pairs_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applied, "timed_report", lambda folder: (Path(folder) / "report.html", []))
    own = ["--encoders.MiniLM-L6", encoder_folder, "--tasks.stsb.init_args.data_dir", pairs_folder]
    main(["study", "--config", "embeddings.yaml", *own, "--output", str(tmp_path / "out")])
    table = load_table(tmp_path / "out")
    assert set(table["share"]) == {0, 0.25, 0.5, 0.75, 1}
    assert set(table["criterion"]) == {"variance", "embedding", "random"}
    assert set(table["constants"]) == {"average", "uniform", "identity"}


def test_the_evidence_on_embeddings_is_measured(
    encoder_folder: str, pairs_folder: str, passages_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applied, "timed_report", lambda folder: (Path(folder) / "report.html", []))
    # As `make results` has it for an encoder with prefixes.
    own = ["--encoders", json.dumps({"e5-small": encoder_folder}), "--tasks.stsb.init_args.prefix", "query: "]
    own += ["--tasks.mnli.init_args.query_prefix", "query: ", "--tasks.mnli.init_args.passage_prefix", "passage: "]
    data = ["--tasks.stsb.init_args.data_dir", pairs_folder, "--tasks.mnli.init_args.data_dir", passages_folder]
    main(["study", "--config", "evidence_embeddings.yaml", *own, *data, "--output", str(tmp_path / "out")])
    table = load_table(tmp_path / "out")
    assert set(table["encoder"]) == {"e5-small"}
    assert set(table["task"]) == {"stsb", "mnli"}
    assert set(table["constants"]) == {"average", "recovered", "uniform", "identity"}


def test_greedy_search_follows_the_embeddings(encoder_folder: str, pairs_folder: str, tmp_path: Path) -> None:
    config = study(encoder_folder, pairs_folder, criteria=["greedy"], shares=[0.5])
    table = Study(config, tmp_path / "out").run(progress=False)
    assert set(table["criterion"]) == {"greedy"}


def test_retrieval_is_judged_over_queries(encoder_folder: str, passages_folder: str, tmp_path: Path) -> None:
    task = {"class_path": "RetrievalDataModule", "init_args": {"data_dir": passages_folder, "max_length": 16}}
    one = Study(study(encoder_folder, "", tasks={"search": task}, criteria=["variance"]), tmp_path / "out")
    table = one.run(progress=False)
    assert table.loc[table["is_score"], "metric"].unique().tolist() == ["ndcg@10"]
    assert set(one.evidence.summary["basis"]) == {"queries"}
    assert 0 < one.evidence.summary["chance"].iloc[0] < 1
    assert "search: ndcg@10; 8 queries; constants: average" in str(format_summary(one.evidence.summary))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"criteria": ["gate"]}, r"criterion is 'gate', which asks the loss of a trained probe.* choose from variance"),
        ({"criteria": ["variance", "taylor"]}, "criterion is 'taylor', which asks the loss of a trained probe"),
        ({"constants": ["recoverd"]}, r"constants is 'recoverd'.*Did you mean 'recovered'\?"),
        ({"recovery": {"max_epochs": 0}}, "recovery.max_epochs is 0: pass a value that is at least 1"),
        ({"embedding": {"pooling": "max"}}, "pooling is 'max'"),
    ],
)
def test_what_embeddings_cannot_have_is_refused(
    changes: dict[str, Any], message: str, encoder_folder: str, pairs_folder: str, tmp_path: Path
) -> None:
    with pytest.raises(PapaError, match=message):
        Study(study(encoder_folder, pairs_folder, **changes), tmp_path / "out").plan()


def test_recovery_of_a_task_with_a_probe_is_refused(encoder_folder: str, data_folder: str, tmp_path: Path) -> None:
    task = {"class_path": "SST2DataModule", "init_args": {"data_dir": data_folder, "max_length": 24}}
    with pytest.raises(PapaError, match=r"constants has 'recovered'.* but task 'sst2' has a probe"):
        Study(
            study(encoder_folder, "", tasks={"sst2": task}, criteria=["variance"], constants=["average", "recovered"]),
            tmp_path / "out",
        ).plan()


@pytest.mark.parametrize("search", ["share", "greedy"])
def test_a_budget_is_chosen_and_confirmed_on_pairs(
    search: str, encoder_folder: str, pairs_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = study(encoder_folder, pairs_folder)
    config = {"encoder": encoder_folder, "task": given["tasks"]["pairs"], "within": "3%", "search": search}
    (tmp_path / "budget.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["budget", "--config", str(tmp_path / "budget.yaml"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "60 pairs" in printed
    assert "60 held-out pairs" in printed or "no head can be constant" in printed
    assert "seed 0" not in printed.replace("drawn with seed 0", "")
    found = json.loads((tmp_path / "out" / "budget.json").read_text())
    assert found["metric"] == "spearman"
    assert (found["about"]["selection_pairs"], found["about"]["held_out_pairs"]) == (60, 60)
    assert found["selection"]["basis"] == "pairs"
