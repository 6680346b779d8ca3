"""The folder of a study."""

import os
from pathlib import Path

import pytest

from papa_lightning.errors import OutputError, PapaError, StudyError
from papa_lightning.files.writing import new_part, open_part
from papa_lightning.study.store import StudyFolder, digest, with_contents


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.check()
    folder.write({"seeds": [0]}, {"dtype": "float32"}, {"constants": []})
    folder.check()
    content = folder.read()
    assert content["settings"] == {"seeds": [0]}
    assert content["about"] == {"dtype": "float32"}
    assert content["files"] == {"constants": []}


def test_names_of_files_are_readable_apart_and_fit_every_file_system(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    one = folder.constants("bert", "sst2", "sequences:16", "0123456789abcdef" * 4)
    assert one.name == "bert--sst2--sequences_16--0123456789abcdef.safetensors"
    assert folder.relative(one) == f"constants/{one.name}"
    assert folder.constants("bert", "sst2", "sequences:16", "1" * 64) != one


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other"}', "[" * 100_000])
def test_a_damaged_study_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(StudyError, match="study"):
        StudyFolder(tmp_path).read()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(StudyError, match="not the folder of a study"):
        StudyFolder(tmp_path).check()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        StudyFolder(tmp_path / "study").check()


@pytest.mark.parametrize("keep", [True, False])
def test_what_a_killed_run_left_goes(tmp_path: Path, keep: bool) -> None:
    whole = tmp_path / "features" / "0123" / "train"
    left = [new_part(folder) / "train" for folder in (whole.parent, tmp_path / "features")]
    for folder in (whole, *left):
        folder.mkdir(parents=True)
    files = [new_part(tmp_path / name) for name in (".", "cells", "constants", "rankings")]
    for path in (*files, tmp_path / "cells" / "1f.json"):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    StudyFolder(tmp_path).clear(keep_features=keep)
    assert whole.exists() == keep
    assert not any(path.exists() for path in (*left, *(folder.parent for folder in left), *files))
    assert (tmp_path / "cells" / "1f.json").exists()


def test_a_run_that_was_killed_at_its_start_does_not_spoil_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".study.json.x").touch()
    StudyFolder(tmp_path).check()


def test_temporary_features_are_nobody_elses(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    with folder.temporary_features() as one, folder.temporary_features() as other:
        assert one != other
        (one / "train").mkdir()
    assert not one.exists()
    assert not other.exists()


def test_what_a_process_is_writing_stays(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    with folder.temporary_features() as one, open_part(new_part(tmp_path / "features")) as file:
        folder.clear(keep_features=True)
        assert one.exists()
        assert Path(file.name).exists()
        Path(file.name).unlink()


def test_a_claim_of_a_folder_is_one_of_the_process_that_has_it(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    refused = pytest.raises(PapaError, match=f"process {os.getpid()} on")
    with folder.claimed(), folder.claimed(), refused, StudyFolder(tmp_path).claimed():
        pass
    with StudyFolder(tmp_path).claimed():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_hash_depends_on_values_alone_and_other_texts_than_paths_stay() -> None:
    assert digest({"a": 1, "b": 2.0}) == digest({"b": 2.0, "a": 1})
    plain = {"files": ["no such file"], "unit": "bytes"}
    assert with_contents(plain) == plain
