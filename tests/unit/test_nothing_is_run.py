"""No place of the package runs code that comes with models, data or files, and none waits for an answer."""

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertConfig, BertTokenizer

import papa_lightning
from papa_lightning import PapaError
from papa_lightning.datamodules.rows.tokenizing import load_tokenizer
from papa_lightning.encoders.loading import from_pretrained, load_encoder, vocabulary_size
from papa_lightning.export.source import _load_tokenizer
from papa_lightning.tasks.masked_lm import load_masking_tokenizer

PACKAGE = Path(papa_lightning.__file__).parent
#: The one home of what may load by name; other calls need the argument that is given here, with its value.
HOMES = {"from_pretrained": "encoders/loading.py", "load_dataset": "datamodules/"}
ARGUMENTS = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
FORBIDDEN = {"input", "eval", "exec", "pickle.load", "pickle.loads", "Unpickler", "joblib.load", "yaml.load"}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(PACKAGE).as_posix(), ast.unparse(node.func), node


def test_every_place_that_loads_says_that_nothing_is_run() -> None:
    seen = set()
    for file, name, call in calls():
        last = name.rpartition(".")[2]
        place = f"{file}:{call.lineno}: {name}"
        assert name not in FORBIDDEN, place
        if last in HOMES and name != "from_pretrained":  # that one is ours
            assert file.startswith(HOMES[last]), place
            seen.add(last)
        if name in ARGUMENTS:
            argument, value = ARGUMENTS[name]
            given = {one.arg: ast.literal_eval(one.value) for one in call.keywords if one.arg == argument}
            assert given == {argument: value}, place
            seen.add(name)
        if last == "from_pretrained" and name != last:
            assert any(one.arg == "trust_remote_code" for one in call.keywords), place
        assert last != "load_from_checkpoint" or name == "super().load_from_checkpoint", place
    assert seen >= {*HOMES, "torch.load"}


@pytest.fixture
def foreign(tmp_path: Path) -> str:
    """A folder whose model and tokenizer want code of their own, which leaves a trace."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig().save_pretrained(folder)
    (folder / "foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    changes = {
        "config.json": {
            "model_type": "foreign",
            "auto_map": {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "ForeignTokenizer",
            "auto_map": {"AutoTokenizer": ["foreign.Tokenizer", None]},
        },
    }
    for name, change in changes.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    return str(folder)


@pytest.mark.parametrize(
    "load",
    [
        load_encoder,
        vocabulary_size,
        load_masking_tokenizer,
        lambda name: load_tokenizer(name, None, 8, "segment"),
        lambda name: _load_tokenizer(name, None),
        *(lambda name, kind=kind: from_pretrained(kind, name) for kind in (AutoConfig, AutoModel, AutoTokenizer)),
    ],
)
def test_code_of_a_model_is_refused_without_a_question(
    load: object, foreign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, other = os.pipe()  # a stdin that says nothing, and does not end
    with open(silent) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
        with pytest.raises(PapaError, match="without code that comes with it") as refused:
            load(foreign)
    os.close(other)
    assert "trust_remote_code" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
