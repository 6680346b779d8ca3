"""Damaged or foreign folders give an error of the package or an unchanged encoder."""

import contextlib
import hashlib
import json
import pickle
import shutil
import struct

import pytest
import torch
from conformance.fuzzing import examples
from conformance.tiny_models import make_inputs, swapped
from hypothesis import given
from hypothesis import strategies as st

from papa_lightning import export_encoder, load_exported_encoder
from papa_lightning.errors import ExportError
from papa_lightning.export.facts import read_facts

FILES = ["papa.json", "config.json", "model.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return export_encoder(swapped("bert", "partial"), tmp_path_factory.mktemp("whole") / "exported")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "damaged")


def write(folder, name, content, trusted):
    """A file that was changed, also together with the sum that belongs to it; papa.json then goes without one."""
    (folder / name).write_bytes(content)
    if trusted and name != "papa.json":
        facts = json.loads((folder / "papa.json").read_bytes())
        facts.pop("sha256", None)
        facts["files"][name] = hashlib.sha256(content).hexdigest()
        (folder / "papa.json").write_text(json.dumps(facts))


@st.composite
def damages(draw, content):
    start = draw(st.integers(0, len(content) - 1))
    if draw(st.booleans()):
        return content[:start]
    some = draw(st.binary(min_size=1, max_size=8))
    return content[:start] + some + content[start + draw(st.sampled_from([0, len(some), 3])) :]


@pytest.mark.parametrize("trusted", [False, True])
def test_damaged_bytes(trusted, whole, folder):
    """With the right sum beside it, too: whatever bytes claim to be an encoder."""
    outcomes, inputs = [], make_inputs("bert")
    with torch.no_grad():
        expected = load_exported_encoder(whole)(**inputs).last_hidden_state
    contents = {name: (whole / name).read_bytes() for name in FILES}

    @examples(24)
    @given(name=st.sampled_from(FILES), data=st.data())
    def damaged_file(name, data):
        for one, content in contents.items():
            write(folder, one, content, trusted=False)
        write(folder, name, data.draw(damages(contents[name])), trusted)
        try:
            loaded = load_exported_encoder(folder)
        except ExportError:
            outcomes.append("refused")
            return
        outcomes.append("read")
        if not trusted:
            with torch.no_grad():
                assert torch.equal(loaded(**inputs).last_hidden_state, expected)

    damaged_file()
    print(f"trusted {trusted}: {outcomes.count('refused')} of {len(outcomes)} refused")  # shown by pytest -s
    assert outcomes.count("refused") >= (0.3 if trusted else 0.7) * len(outcomes) >= 7


def change(folder, name, key, value):
    content = json.loads((folder / name).read_bytes())
    content.pop("sha256", None)
    content[key] = value
    write(folder, name, json.dumps(content).encode(), trusted=True)


@pytest.mark.parametrize(("name", "key", "value"), [
    ("papa.json", "format", "papa_lightning.exported_encoder/2"),
    ("papa.json", "encoder", "BertSelfAttention"),
    ("papa.json", "encoder", "logger"),
    ("papa.json", "encoder", "BertForMaskedLM"),
    ("papa.json", "heads", [[0], [0, 1, 2, 3], []]),
    ("papa.json", "files", {}),
    ("papa.json", "max_length", "10"),
    ("papa.json", "max_length", 9),
    ("papa.json", "max_length", 10**400),
    ("papa.json", "num_heads", 3),
    ("papa.json", "kinds", ["gated", "constant", "constant"]),
    ("papa.json", "kinds", [["constant"]]),
    ("papa.json", "heads", [[0], [True], []]),
    ("papa.json", "parameters", {"whole": 1, "left_out": 1, "added": 1, "saved": 1}),
    ("papa.json", "parameters", {}),
    ("papa.json", "papa_lightning", 3),
    ("papa.json", "more", 3),
    ("papa.json", "files", []),
    ("config.json", "model_type", "no-such-type"),
    ("config.json", "model_type", "roformer"),
    ("config.json", "hidden_size", 64),
    ("config.json", "num_attention_heads", 8),
    ("config.json", "num_hidden_layers", 2),
    ("config.json", "intermediate_size", "many"),
])  # fmt: skip
def test_parts_that_do_not_belong_together(name, key, value, folder):
    change(folder, name, key, value)
    with pytest.raises(ExportError):
        load_exported_encoder(folder)


def test_facts_without_a_sum_are_those_of_the_weights(folder, whole):
    facts = json.loads((folder / "papa.json").read_bytes())
    del facts["sha256"]
    (folder / "papa.json").write_text(json.dumps(facts))
    assert load_exported_encoder(folder).config.model_type == "bert"


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(name, folder):
    """In one of so many places: the facts and the sums of the files are looked at before anything is made."""
    content = (folder / name).read_bytes()
    for bit in range(0, 8 * len(content), max(1, 8 * len(content) // 150)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        with contextlib.suppress(ExportError):
            read_facts(folder)
            pytest.fail(f"bit {bit % 8} of byte {bit // 8} of {name} is accepted")
    (folder / name).write_bytes(content)
    read_facts(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_files(name, folder):
    (folder / name).unlink()
    with pytest.raises(ExportError, match=name):
        load_exported_encoder(folder)
    with pytest.raises(ExportError):
        load_exported_encoder(folder / "no-such-folder")


class Bomb:
    """Code in a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (type(self.marker).touch, (self.marker,))


def test_no_code_of_a_folder_is_run(folder, tmp_path):
    marker = tmp_path / "marker"
    code = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Own: pass\n"
    (folder / "own.py").write_text(code)
    change(folder, "config.json", "auto_map", {"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    load_exported_encoder(folder)
    change(folder, "config.json", "model_type", "own")
    with pytest.raises(ExportError, match="model_type 'own'"):
        load_exported_encoder(folder)
    for name in reversed(FILES):
        write(folder, name, pickle.dumps(Bomb(marker)), trusted=True)
        with pytest.raises(ExportError):
            load_exported_encoder(folder)
    assert not marker.exists()


def test_a_header_that_claims_too_much(folder):
    header = json.dumps({"embeddings": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    write(folder, "model.safetensors", struct.pack("<Q", len(header)) + header, trusted=True)
    with pytest.raises(ExportError):
        load_exported_encoder(folder)
