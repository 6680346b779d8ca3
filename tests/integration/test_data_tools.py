"""The tools that make text and a retrieval set of the files of tasks."""

import json
import runpy
from pathlib import Path

import pytest

from papa_lightning import RetrievalDataModule

TOOLS = Path(__file__).parents[2] / "tools"


def write(path: Path, *rows: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_text_of_training_files_has_no_line_of_another_file(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a" / "train.jsonl", {"sentence": "one  film"}, {"sentence": "two films"})
    write(tmp_path / "data" / "a" / "validation.jsonl", {"sentence": "two films"}, {"sentence": "three films"})
    write(tmp_path / "data" / "b" / "train.jsonl", {"tokens": ["four", "films"]}, {"sentence": "one film"})
    write(tmp_path / "data" / "sst2" / "train.jsonl", {"sentence": "film"})
    main = runpy.run_path(str(TOOLS / "join_texts.py"))["main"]

    def text(*options: str) -> list[str]:
        main([str(tmp_path / "data"), str(tmp_path / "text.txt"), *options])
        return sorted((tmp_path / "text.txt").read_text().splitlines())

    assert text() == ["four films", "one film", "three films", "two films"]
    assert text("--train_only") == ["four films", "one film"]


@pytest.mark.parametrize(
    ("tool", "message"),
    [("join_texts.py", "where no .jsonl file has text"), ("make_retrieval_set.py", "has no validation_matched.jsonl")],
)
def test_folders_without_data_are_refused(
    tool: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(TOOLS / tool))["main"]
    with pytest.raises(SystemExit):
        main([str(tmp_path / "none"), str(tmp_path / "out")])
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_queries_are_answered_by_what_entails_them(tmp_path: Path, encoder_folder: str) -> None:
    long = ["a film with a good end", "the film is not very good", "it is a bad film today"]
    pairs = [(long[0], "the film has an end", 0), (long[1], "the film is bad", 0), (long[0], "the film has no end", 2)]
    rows = [{"premise": first, "hypothesis": second, "label": label} for first, second, label in pairs]
    write(tmp_path / "mnli" / "validation_matched.jsonl", *rows, {"premise": "a film", "hypothesis": "x", "label": 1})
    write(tmp_path / "mnli" / "train.jsonl", {"premise": long[2], "hypothesis": "a film that is bad", "label": 0})
    main = runpy.run_path(str(TOOLS / "make_retrieval_set.py"))["main"]

    main([str(tmp_path / "mnli"), str(tmp_path / "set"), "--passages", "2"])
    corpus = [json.loads(line) for line in (tmp_path / "set" / "corpus.jsonl").read_text().splitlines()]
    assert [row["text"] for row in corpus] == long[:2]
    queries = [json.loads(line) for line in (tmp_path / "set" / "queries.jsonl").read_text().splitlines()]
    assert queries == [{"_id": "q0", "text": "the film has an end"}]  # the other one has four words
    assert (tmp_path / "set" / "qrels" / "dev.tsv").read_text().splitlines()[1:] == ["q0\td0\t1"]
    data = RetrievalDataModule(encoder_folder, str(tmp_path / "set"), max_length=64)
    data.setup("fit")
    assert len(data.judgements()) == 1
