"""Every code block of the pages runs as it is printed, in a folder that holds what a reader has."""

import csv
import io
import json
import os
import re
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from code_blocks import PAGES, ROOT, Block, blocks_of, unquoted
from lightning import seed_everything
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from papa_lightning import calibrate
from papa_lightning.atlas.patterns import PATTERNS
from papa_lightning.cli.configurations import locate_configs
from papa_lightning.cli.main import main
from papa_lightning.cli.verbs.registry import parser_of, run_verb
from papa_lightning.criteria import RankingInputs, rank_heads
from papa_lightning.datamodules import demo
from papa_lightning.registry import Registry
from papa_lightning.study import StudySettings
from papa_lightning.study.report.sections import SECTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
#: Blocks of these pages are run by other tests, with packages of a reader's own.
ELSEWHERE = {"encoders.md": "tests/unit/encoders/families/test_families.py"}
#: Why a block may stay unrun; few do.
REASONS = {"a GPU", "hours", "several machines", "the network"}
#: Verbs whose answer needs more data than there is here: their arguments are read only.
PARSED = ("budget", "benchmark")
SHORT_STUDY = ["--seeds=[0]", "--shares=[0,1]", "--criteria=[random]", "--probe.max_epochs=1"]
#: Studies that ran on an earlier page; no other command of a page reads what they write.
RAN: set[tuple[str, ...]] = set()
ENCODER = "models/all-MiniLM-L6-v2"


def of(*languages: str) -> list[Any]:
    """The pages that have blocks of a language, and these blocks."""
    run = [block for block in BLOCKS if block.language in languages and block.reason is None]
    pages = dict.fromkeys(block.page for block in run if block.page.name not in ELSEWHERE)
    return [pytest.param([one for one in run if one.page == page], id=page.name) for page in pages]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder with as many heads as that of the demo, and its tokenizer, which reads letters."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    sizes = {"hidden_size": 24, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 24}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=1000, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def reader(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an encoder, data of two tasks and a table of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["papa"])
    Path("models").mkdir()
    Path(ENCODER).symlink_to(tiny)
    Path("docs").symlink_to(ROOT / "docs")
    Path("tools").symlink_to(ROOT / "tools")
    texts = [f"a {'good' if i % 2 else 'bad'} film {i}" for i in range(24)]
    write("data/sst2", {"sentence": texts, "label": [i % 2 for i in range(24)]})
    write("data/wnut_17", {"tokens": [["ada", "ran"]] * 24, "ner_tags": [["B-person", "O"]] * 24})
    pairs = {"sentence1": texts, "sentence2": texts[::-1], "score": [i % 6 for i in range(24)]}
    write("data/stsb", pairs)
    write_retrieval("data/scifact", texts)
    monkeypatch.setattr(demo, "BUNDLED", Path("data/sst2"))
    monkeypatch.setattr(
        "papa_lightning.cli.verbs.demo.run_verb", lambda verb, words: run_verb(verb, words + SHORT_STUDY)
    )
    with Path("tickets.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("title", "kind"), *zip(texts, ["wish", "bug"] * 12, strict=True)])
    Path("text.txt").write_text("a small text of many words. " * 200, encoding="utf-8")
    return tmp_path


def write(folder: str, columns: dict[str, list[Any]]) -> None:
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    Path(folder).mkdir(parents=True)
    for split in ("train", "validation"):
        Path(folder, f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_retrieval(folder: str, texts: list[str]) -> None:
    """A folder of BEIR in which each query has one passage."""
    Path(folder, "qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        rows = [{"_id": f"{name}{i}", "text": text} for i, text in enumerate(texts)]
        Path(folder, f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    judged = ["query-id\tcorpus-id\tscore", *(f"queries{i}\tcorpus{i}\t1" for i in range(len(texts)))]
    Path(folder, "qrels", "test.tsv").write_text("\n".join(judged), encoding="utf-8")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_blocks_are_marked_and_quoted(block: Block) -> None:
    assert block.reason in {None, *REASONS} or Path(ROOT, block.reason).is_file()
    assert block.language in ("sh", "python", "yaml", "toml")
    if block.language == "sh":
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
        assert not [line for line in block.text.splitlines() if unquoted(line)]
    if block.language == "toml":
        tomllib.loads(block.text)


def test_few_blocks_are_not_run_and_no_code_stands_outside_of_them() -> None:
    assert len([block for block in BLOCKS if block.reason in REASONS]) <= 14
    for page in PAGES:
        outside = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"^    (?:papa|python|import|from|\w+ = \w+\() .*", outside, flags=re.MULTILINE), page


@pytest.mark.parametrize("blocks", of("python"))
def test_blocks_of_python_run(blocks: list[Block], reader: Path, tiny: str) -> None:
    names = what_python_has(tiny)
    with registries_kept():
        for block in blocks:
            with redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.text, str(block.page), "exec"), names)


@contextmanager
def registries_kept() -> Iterator[None]:
    """Forget the parts that a page registers: tests that run later in this process would find them."""
    modules = [module for name, module in sys.modules.items() if name.startswith("papa_lightning.")]
    found = {id(held): held for module in modules for held in vars(module).values() if isinstance(held, Registry)}
    before = [(registry, set(registry)) for registry in found.values()]
    try:
        yield
    finally:
        for registry, names in before:
            for name in set(registry) - names:
                del registry[name]


def test_what_a_page_registers_is_forgotten() -> None:
    with registries_kept():
        PATTERNS["of_a_page"] = PATTERNS["first"]
        SECTIONS["of_a_page"] = next(iter(SECTIONS.values()))
    assert not [registry for registry in (PATTERNS, SECTIONS) if "of_a_page" in registry]


def what_python_has(folder: str) -> dict[str, Any]:
    """The names that docs/quickstart.md lists as the reader's own."""
    sys.path.insert(0, str(ROOT / "examples" / "existing_project"))
    try:
        from project import ReviewClassifier, ReviewDataModule
    finally:
        sys.path.pop(0)
    seed_everything(0)
    encoder, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batches = [dict(tokenizer(["a good film", "bad"], padding=True, return_tensors="pt"))] * 2
    constants = calibrate(encoder, batches, max_length=64)
    constants.save("constants.safetensors")
    rank_heads("variance", RankingInputs(encoder, constants)).save("ranking.json")
    return {
        "__name__": "page",
        "encoder": encoder,
        "tokenizer": tokenizer,
        "batches": batches,
        "batch": batches[0],
        "model": ReviewClassifier(folder),
        "data": ReviewDataModule(num_train=8, num_val=8),
    }


@pytest.mark.parametrize("blocks", of("sh"))
def test_blocks_of_the_shell_run(blocks: list[Block], reader: Path) -> None:
    for block in blocks:
        for words in block.commands():
            run([word for word in words if not re.match(r"[A-Z_]+=", word)], block.place)


def run(words: list[str], place: str) -> None:
    """Run a command of papa, and see that what other commands name exists."""
    program, *rest = words
    if program == "papa":
        run_papa(rest, place)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"papa-lightning\[(\w+)\]", " ".join(rest))) <= set(extras)
    else:
        assert program == "make", place
        assert set(rest) <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def run_papa(words: list[str], place: str) -> None:
    """Run a command, cut short: few steps, one seed."""
    if words[0] in ("demo", "study") and tuple(words) in RAN:
        return
    RAN.add(tuple(words))
    target = words[words.index(">") + 1] if ">" in words else os.devnull
    words = words[: words.index(">")] if ">" in words else words
    words = [path for word in words for path in (map(str, Path().glob(word)) if "*" in word else [word])]
    code: object = None
    with open(target, "w", encoding="utf-8") as file, redirect_stdout(file):
        try:
            if words[0] in PARSED:
                parser_of(words[0]).parse_args(locate_configs(words)[1:])
            else:
                main([*words, *shorter(words)])
        except SystemExit as stop:
            code = stop.code
    assert not code, f"{place}: `papa {' '.join(words)}` ended with {code}"


def shorter(words: list[str]) -> list[str]:
    """Options that make a run short."""
    if words[0] in ("fit", "test", "predict", "calibrate", "rank"):
        short = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        return [*short, *["--trainer.max_steps=2"] * any("kinds/" in word for word in words)]
    return SHORT_STUDY if words[0] == "study" and "--dry_run" not in words else []


@pytest.mark.parametrize("blocks", of("yaml"))
def test_blocks_of_yaml_are_configurations(blocks: list[Block], reader: Path) -> None:
    for block in blocks:
        Path("page.yaml").write_text(block.text, encoding="utf-8")
        if set(yaml.safe_load(block.text)) <= {"trainer", "model", "data"}:
            names = ("defaults.yaml", "sst2.yaml", "page.yaml")
            run_papa(["fit", *(f"--config={name}" for name in names), "--print_config"], block.place)
        else:
            parser = parser_of("study")
            given = vars(parser.instantiate(parser.parse_args(["--config=page.yaml", "--output=mine"])))
            own = {"config", "output", "num_workers", "backend", "dry_run", "part", "kinds"}
            if not given["kinds"].variants:
                StudySettings(**{name: value for name, value in given.items() if name not in own})
