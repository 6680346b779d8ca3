"""Folders of exported encoders that the real sentence-transformers loads."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from conformance.tiny_models import build, encoder_of, make_inputs, swapped
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import import_from_string
from torch import Tensor
from transformers import BertTokenizer, PreTrainedModel
from unit.encoders import tiny_encoders

from papa_lightning import (
    PapaError,
    SentenceFiles,
    export_encoder,
    export_sentence_transformer,
    load_exported_encoder,
    load_sentence_transformer,
    read_sentence_files,
    swap_attention,
)
from papa_lightning.encoders.sentence_files import EXPORTED_MODULE
from papa_lightning.errors import ExportError
from papa_lightning.export.folder import describe_export
from papa_lightning.export.sentence_module import ExportedTransformer
from papa_lightning.export.source import ExportSettings, export_source

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", "query", ":"]
TEXTS = ["a cat sat", "the cat sat on the mat", "the mat"]
PROMPTS = {"query": "query: "}
LENGTH = tiny_encoders.LENGTH


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)})


def make_swapped() -> PreTrainedModel:
    """Head 1 of layer 0 and all heads of layer 1 are constant; layer 2 is dynamic."""
    encoder = tiny_encoders.build(dtype=torch.float32)
    swap_attention(encoder, "constant", constants=tiny_encoders.make_constants(), heads={0: [1], 1: [0, 1, 2, 3]})
    return encoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = SentenceFiles(prompts=PROMPTS, similarity="dot")
    return export_sentence_transformer(make_swapped(), tmp_path_factory.mktemp("bert") / "folder", tokenizer(), files)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """A sentence-transformers folder of a plain encoder, and constants."""
    body = tiny_encoders.build(dtype=torch.float32)
    body.save_pretrained(tmp_path / "plain")
    tokenizer().save_pretrained(tmp_path / "plain")
    tiny_encoders.make_constants().save(tmp_path / "constants.safetensors")
    return {"encoder": str(tmp_path / "plain"), "constants": str(tmp_path / "constants.safetensors")}


def load(folder: Path, **options: object) -> SentenceTransformer:
    """As other people load it: the flag is for the class that modules.json names."""
    return SentenceTransformer(str(folder), device="cpu", trust_remote_code=True, **options)


def embed(model: SentenceTransformer, **options: object) -> Tensor:
    return torch.as_tensor(model.encode(TEXTS, convert_to_tensor=True, **options))


def pooled(encoder: PreTrainedModel, files: SentenceFiles, texts: list[str] = TEXTS) -> Tensor:
    """Embeddings written out."""
    batch = tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(**batch).last_hidden_state
    real = batch["attention_mask"]
    found = {
        "mean": (hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True),
        "class_token": hidden[:, 0],
        "last_token": hidden[torch.arange(len(texts)), real.sum(1) - 1],
    }[files.pooling]
    return torch.nn.functional.normalize(found) if files.normalize else found


def test_the_class_in_modules_json() -> None:
    assert import_from_string(EXPORTED_MODULE) is ExportedTransformer


@pytest.mark.parametrize("files", [SentenceFiles("class_token", False), SentenceFiles("last_token")])
def test_poolings(files: SentenceFiles, tmp_path: Path) -> None:
    encoder = make_swapped()
    folder = export_sentence_transformer(encoder, tmp_path / "folder", tokenizer(), files)
    model = load(folder)
    torch.testing.assert_close(embed(model), pooled(encoder, files), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(embed(model), pooled(load_exported_encoder(folder), files), atol=1e-6, rtol=1e-6)
    assert model.max_seq_length == LENGTH
    assert model[0].auto_model.encoder.layer[1].attention.self.query.weight.numel() == 0


@pytest.mark.parametrize("name", ["deberta-v2-own", "nomic_bert", "t5"])
def test_families(name: str, tmp_path: Path) -> None:
    """A forward of its own, weights that transformers stores by other names, and half of an encoder-decoder."""
    encoder, inputs = encoder_of(swapped(name, "partial")).float(), make_inputs(name, dtype=torch.float32)
    model = load(export_sentence_transformer(encoder, tmp_path / "folder", tokenizer()))
    with torch.no_grad():
        assert torch.equal(model[0].auto_model(**inputs).last_hidden_state, encoder(**inputs).last_hidden_state)
    model.save(str(tmp_path / "again"))
    assert torch.equal(embed(load(tmp_path / "again")), embed(model))


def test_prompts_similarity_and_long_texts(exported: Path) -> None:
    model, encoder = load(exported), make_swapped()
    torch.testing.assert_close(embed(model), pooled(encoder, SentenceFiles()), atol=1e-6, rtol=1e-6)
    queries = pooled(encoder, SentenceFiles(), [PROMPTS["query"] + text for text in TEXTS])
    torch.testing.assert_close(embed(model, prompt_name="query"), queries, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.as_tensor(model.similarity(queries, queries)), queries @ queries.T)
    assert model.similarity_fn_name == "dot"
    assert model.encode("cat " * 2 * LENGTH).shape == (32,)


def test_loaded_without_trusting_code(exported: Path) -> None:
    model = load_sentence_transformer(exported, device="cpu")
    assert (model.prompts["query"], model.similarity_fn_name, model.max_seq_length) == ("query: ", "dot", LENGTH)
    assert torch.equal(embed(model), embed(load(exported)))


def test_saved_by_the_library_while_it_was_swapped(sources: dict[str, str], tmp_path: Path) -> None:
    model = SentenceTransformer(modules=[Transformer(sources["encoder"]), Pooling(32, "cls")], device="cpu")
    swap_attention(model, "constant", constants=tiny_encoders.make_constants())
    model.save(str(tmp_path / "saved"))
    assert torch.equal(embed(load_sentence_transformer(tmp_path / "saved", device="cpu")), embed(model))


def test_saved_again(exported: Path, tmp_path: Path) -> None:
    model = load(exported)
    model.save(str(tmp_path / "again"))
    again = load(tmp_path / "again")
    assert torch.equal(embed(again), embed(model))
    before, after = read_sentence_files(exported), read_sentence_files(tmp_path / "again")
    assert before is not None
    assert after is not None
    assert (after.pooling, after.max_length, after.prompts["query"]) == (before.pooling, before.max_length, "query: ")
    found = load_exported_encoder(tmp_path / "again")
    torch.testing.assert_close(pooled(found, before), embed(model), atol=1e-6, rtol=1e-6)


def test_half_precision_copies_and_devices(exported: Path) -> None:
    model = load(exported)
    assert torch.equal(embed(pickle.loads(pickle.dumps(model))), embed(model))  # to the processes of a pool
    half = load(exported, model_kwargs={"dtype": torch.bfloat16})
    assert embed(half).dtype == torch.bfloat16
    torch.testing.assert_close(embed(half).float(), embed(model), atol=0.05, rtol=0.05)
    assert {one.dtype for one in model.half().parameters()} == {torch.float16}
    assert model.to("meta").device.type == "meta"
    with pytest.raises(ExportError, match="model_kwargs has 'attn_implementation', which an exported encoder does not"):
        load(exported, model_kwargs={"attn_implementation": "eager"})
    with pytest.raises(ExportError, match="backend is 'onnx'"):
        load(exported, backend="onnx")


def test_from_the_hub(exported: Path, tmp_path: Path) -> None:
    """As its cache has it, without the network."""
    place = tmp_path / "models--me--embedder"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(exported, place / "snapshots" / ("0" * 40))
    options = {"cache_folder": str(tmp_path), "local_files_only": True, "trust_remote_code": True}
    model = SentenceTransformer("me/embedder", device="cpu", **options)
    assert torch.equal(embed(model), embed(load(exported)))


def test_a_library_that_loads_otherwise(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_encoders.build(dtype=torch.float32)
    monkeypatch.setattr(ExportedTransformer, "_load_model", lambda *_, **__: plain)
    with pytest.raises(ExportError, match="loads models in a way that papa_lightning does not know"):
        load(exported)


def test_length_is_that_of_the_model_where_it_is_shorter(tmp_path: Path) -> None:
    files = SentenceFiles(max_length=4, lower_case=True)
    folder = export_sentence_transformer(make_swapped(), tmp_path / "folder", tokenizer(), files)
    found = read_sentence_files(folder)
    assert found is not None
    assert (found.max_length, found.lower_case) == (4, True)
    assert load(folder).tokenize(["a cat sat on the mat"])["input_ids"].shape == (1, 4)


def test_the_exports_replace_each_other(exported: Path, tmp_path: Path) -> None:
    encoder = make_swapped()
    folder = export_encoder(encoder, tmp_path / "folder")
    with pytest.raises(ExportError, match="holds an export already"):
        export_sentence_transformer(encoder, folder, tokenizer())
    export_sentence_transformer(encoder, folder, tokenizer(), replace=True)
    assert "load_sentence_transformer" in describe_export(folder)
    assert "load_sentence_transformer" not in describe_export(export_encoder(encoder, folder, replace=True))
    assert read_sentence_files(folder) is None


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    folder = export_sentence_transformer(make_swapped(), tmp_path / "folder", tokenizer())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"1234")
    with pytest.raises(ExportError, match="was changed after the export"):
        load(folder)


def test_command_takes_what_the_folder_of_the_encoder_says(sources: dict[str, str], tmp_path: Path) -> None:
    parts = [Transformer(sources["encoder"]), Pooling(32, "cls")]
    SentenceTransformer(modules=parts, prompts=PROMPTS, device="cpu").save(str(tmp_path / "sentences"))
    with pytest.raises(ExportError, match="manifest of an exported encoder"):
        load_sentence_transformer(tmp_path / "sentences")
    settings = {**sources, "encoder": str(tmp_path / "sentences"), "format": "sentence-transformers"}
    found = read_sentence_files(export_source(ExportSettings(**settings), str(tmp_path / "one")))
    assert found is not None
    assert (found.pooling, found.normalize, found.prompts["query"]) == ("class_token", False, "query: ")
    other = ExportSettings(**settings, pooling="lasttoken", normalize=True)
    found = read_sentence_files(export_source(other, str(tmp_path / "other")))
    assert found is not None
    assert (found.pooling, found.normalize, found.prompts["query"]) == ("last_token", True, "query: ")


def test_command_without_such_files(sources: dict[str, str], tmp_path: Path) -> None:
    folder = export_source(ExportSettings(**sources, format="sentence-transformers"), str(tmp_path / "one"))
    assert read_sentence_files(folder) == SentenceFiles(max_length=LENGTH)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": "sentence_transformers"}, "Did you mean 'sentence-transformers'"),
        ({"pooling": "mean"}, "pooling is 'mean', which the format 'encoder' does not have"),
        ({"normalize": False}, "normalize is False, which the format 'encoder'"),
        ({"format": "sentence-transformers", "onnx": True}, "onnx is True, which the format 'sentence-transformers'"),
        ({"format": "sentence-transformers", "pooling": "max"}, "pooling is 'max'"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], said: str) -> None:
    with pytest.raises(PapaError, match=said):
        ExportSettings(encoder="folder", constants="constants.safetensors", **settings)


def test_a_tokenizer_is_needed(sources: dict[str, str], tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path / "bare")
    settings = ExportSettings(**{**sources, "encoder": str(tmp_path / "bare")}, format="sentence-transformers")
    with pytest.raises(PapaError, match="tokenizer is None, but sentence-transformers needs one"):
        export_source(settings, str(tmp_path / "one"))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has no modules\.json"):
        load_sentence_transformer(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(PapaError, match="has the modules none"):
        load_sentence_transformer(tmp_path)
