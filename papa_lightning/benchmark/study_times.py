"""Times of a study with random sentences, piece by piece."""

import json
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from papa_lightning.benchmark.results import StudyTime
from papa_lightning.benchmark.settings import StudyTiming
from papa_lightning.study import ProbeSettings, Study, StudySettings
from papa_lightning.study.artifacts import prepare, run_group
from papa_lightning.study.timing import Part

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_WORDS = 1000
_NAME = "random"


def time_study(timing: StudyTiming, device: torch.device, seed: int) -> list[StudyTime]:
    """Times of calibration with ranking, of share 0, and of the other shares, in this order; loading comes before.

    Args:
        timing: Sizes of the study.
        device: Device of all computations.
        seed: Seed of weights, sentences and labels.
    """
    with TemporaryDirectory() as folder:
        _make_encoder(timing, Path(folder) / "encoder", seed)
        _make_rows(timing, Path(folder) / "data", seed)
        settings, output = _settings(timing, Path(folder), device), str(Path(folder) / "study")
        (plan,) = Study(settings, output).plan()
        plain, pair = json.dumps(settings.as_dict()), (plan.encoder, plan.task)
        start = time.perf_counter()
        parts = prepare(plain, output, pair)
        found = [_time("calibration and ranking", start, parts)]
        for group in plan.groups:
            start = time.perf_counter()
            parts, _ = run_group(plain, output, group)
            found.append(_time(f"share {group.choice.share:g}", start, parts))
    return found


def _time(piece: str, start: float, parts: Mapping[Part, float]) -> StudyTime:
    return StudyTime(piece, time.perf_counter() - start, {str(part): seconds for part, seconds in parts.items()})


def _settings(timing: StudyTiming, folder: Path, device: torch.device) -> StudySettings:
    data = {
        "class_path": "TextClassificationDataModule",
        "init_args": {
            "label_names": ["no", "yes"],
            "data_dir": str(folder / "data"),
            "max_length": timing.max_length,
        },
    }
    return StudySettings(
        encoders={_NAME: str(folder / "encoder")},
        tasks={_NAME: data},
        shares=list(timing.shares),
        seeds=list(range(timing.seeds)),
        probe=ProbeSettings(max_epochs=timing.max_epochs, batch_size=timing.batch_size),
        device=str(device),
    )


def _make_encoder(timing: StudyTiming, folder: Path, seed: int) -> None:
    """Write a BERT with random weights, and a tokenizer of words."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(_SPECIAL) + _WORDS,
        hidden_size=timing.hidden,
        num_hidden_layers=timing.layers,
        num_attention_heads=timing.heads,
        intermediate_size=4 * timing.hidden,
        max_position_embeddings=timing.max_length,
    )
    BertModel(config).save_pretrained(folder)
    pad, unknown, first, last = _SPECIAL
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *map(str, range(_WORDS))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.BertProcessing((last, vocabulary[last]), (first, vocabulary[first]))
    names = {"pad_token": pad, "unk_token": unknown, "cls_token": first, "sep_token": last}
    made = PreTrainedTokenizerFast(tokenizer_object=words, **names)  # type: ignore[no-untyped-call]
    made.save_pretrained(folder)


def _make_rows(timing: StudyTiming, folder: Path, seed: int) -> None:
    """Write sentences of random words with random labels."""
    folder.mkdir()
    for place, (split, rows) in enumerate({"train": timing.rows, "validation": timing.evaluated}.items()):
        generator = random.Random(2 * seed + place)
        lines = [
            json.dumps({"text": " ".join(_sentence(timing, generator)), "label": number % 2}) for number in range(rows)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def _sentence(timing: StudyTiming, generator: random.Random) -> Sequence[str]:
    mean, most = max(timing.tokens - 2, 1), max(timing.max_length - 2, 1)  # two tokens are special
    words = min(1 + int(generator.expovariate(1 / mean)), most)
    return [str(generator.randrange(_WORDS)) for _ in range(words)]
