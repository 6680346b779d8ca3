"""The files of a sentence-transformers folder: how the hidden states of its encoder become an embedding of a text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeAlias

from papa_lightning.checks import boolean, filled, mapped, maybe, shown, text, whole
from papa_lightning.errors import PapaError
from papa_lightning.files.checked import parse_json

Pooling: TypeAlias = Literal["mean", "class_token", "last_token"]

#: Names of the files, which are those of sentence-transformers.
MODULES, SENTENCE_CONFIG, MODULE_CONFIG = "modules.json", "config_sentence_transformers.json", "config.json"
#: Word of sentence-transformers for a pooling -> the word of this package.
POOLINGS: Mapping[str, Pooling] = MappingProxyType({"mean": "mean", "cls": "class_token", "lasttoken": "last_token"})
#: The class of this package that stands for the encoder in modules.json of an exported folder.
EXPORTED_MODULE = "papa_lightning.export.sentence_module.ExportedTransformer"

_REMEDY = "pass a folder that sentence-transformers wrote, with Transformer, Pooling and perhaps Normalize"


@dataclass(frozen=True)
class SentenceFiles:
    """What a sentence-transformers folder says of its embeddings.

    Args:
        pooling: How hidden states become one vector: their mean over the real tokens, that of the first one, or that of
            the last one.
        normalize: Whether embeddings are divided by their norm.
        prompts: Text to put before an input, by the name of the prompt.
        default_prompt: Name of the prompt that is used where none is asked for.
        max_length: Number of tokens at which texts are cut; None for the limit of the encoder.
        similarity: Name of the similarity that embeddings are made for: "cosine", "dot", "euclidean" or "manhattan";
            None for cosine.
        lower_case: Whether texts are put in lower case before they are tokenized.

    Example:
        >>> SentenceFiles(pooling="mean", normalize=True, prompts={"query": "query: "}).prompts["query"]
        'query: '
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    similarity: str | None = None
    lower_case: bool = False


def read_sentence_files(folder: str | Path) -> SentenceFiles | None:
    """Read how a sentence-transformers model embeds texts, from the JSON files of its folder; nothing is loaded.

    Args:
        folder: Folder of a model, or the name of one on the hub.

    Returns:
        What the files say; None where the folder has no modules.json, and for a name on the hub.

    Raises:
        PapaError: When a file is damaged, the model needs code that comes with it, or its modules are others than one
            Transformer, one Pooling by mean, class token or last token, and at most one Normalize, in this order.

    Example:
        >>> read_sentence_files("sentence-transformers/all-MiniLM-L6-v2") is None
        True
    """
    root = Path(folder).expanduser()
    if not (root / MODULES).is_file():
        return None
    paths = _module_paths(root)
    general = _read(root / SENTENCE_CONFIG)
    if (kind := general.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        _refuse(root / SENTENCE_CONFIG, f"is of a {shown(kind)}, which makes no single embedding of a text")
    encoder = root / paths["Transformer"]
    own = next((_read(path) for path in sorted(encoder.glob("sentence_*_config.json"))), {})
    _refuse_remote_code(encoder, own)
    prompts, default = _prompts(root / SENTENCE_CONFIG, general)
    return SentenceFiles(
        pooling=_pooling(root / paths["Pooling"] / MODULE_CONFIG),
        normalize="Normalize" in paths,
        prompts=prompts,
        default_prompt=default,
        max_length=maybe(whole(1))(f"max_seq_length of {str(encoder)!r}", own.get("max_seq_length"))
        or _length_of_tokenizer(encoder),
        similarity=maybe(text)(f"similarity_fn_name of {str(root)!r}", general.get("similarity_fn_name")),
        lower_case=boolean(f"do_lower_case of {str(encoder)!r}", own.get("do_lower_case", False)),
    )


def _module_paths(root: Path) -> dict[str, str]:
    """Name of a kind of module -> its folder in the root; PapaError unless modules and their order are known."""
    file = root / MODULES
    found: dict[str, str] = {}
    for entry in _parse(file, list):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(name), str) for name in ("type", "path")):
            _refuse(file, f"has the entry {shown(entry)}, without a type and a path")
        name, path = entry["type"], entry["path"]
        if not name.startswith("sentence_transformers.") and name != EXPORTED_MODULE:
            _refuse(
                file, f"names the module {shown(name)}, but code that is no part of sentence-transformers is not run"
            )
        kind = "Transformer" if name == EXPORTED_MODULE else name.rpartition(".")[2]
        if kind in found:
            _refuse(file, f"has two modules of the kind {kind}, {shown(found[kind])} and {shown(path)}")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            _refuse(file, f"has the path {shown(path)}, which is not inside the folder")
        found[kind] = path
    if list(found) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        _refuse(file, f"has the modules {', '.join(found) or 'none'}")
    return found


def _pooling(file: Path) -> Pooling:
    content = _parse(file, dict)
    modes = content.get("pooling_mode")
    if modes is None:  # files of before sentence-transformers 6 have a flag for each; none means "mean"
        flags = [name for name, on in content.items() if name.startswith("pooling_mode_") and on]
        modes = [name.removeprefix("pooling_mode_").removesuffix("s").removesuffix("_token") for name in flags]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    known = ", ".join(POOLINGS)
    if not isinstance(modes, list) or len(modes) > 1:
        _refuse(file, f"has several poolings at once, {shown(modes)}; known is one of {known}")
    if modes[0] not in POOLINGS:
        _refuse(file, f"has the pooling {shown(modes[0])}; known are {known}")
    if content.get("include_prompt") is False:
        _refuse(file, "has include_prompt false, but pooling here takes the tokens of a prompt too")
    return POOLINGS[modes[0]]


def _prompts(file: Path, content: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
    given = mapped(maybe(text))(f"prompts of {str(file)!r}", content.get("prompts") or {})
    prompts = {name: prompt for name, prompt in given.items() if prompt is not None}  # null is a name without a text
    default = maybe(filled)(f"default_prompt_name of {str(file)!r}", content.get("default_prompt_name"))
    if default is not None and default not in prompts:
        _refuse(file, f"has the default_prompt_name {shown(default)}, which is none of its prompts")
    return prompts, default


def _refuse_remote_code(encoder: Path, own: Mapping[str, Any]) -> None:
    if code := _entry(encoder / MODULE_CONFIG, "auto_map"):
        _refuse(encoder / MODULE_CONFIG, f"has the auto_map {shown(code)}, but code that comes with a model is not run")
    if any(isinstance(part, dict) and part.get("trust_remote_code") for part in own.values()):
        _refuse(encoder, "wants trust_remote_code, but code that comes with a model is not run")


def _length_of_tokenizer(encoder: Path) -> int | None:
    """Limit of the tokenizer, where sentence-transformers 6 keeps max_seq_length; 1e30 stands for none."""
    found = _entry(encoder / "tokenizer_config.json", "model_max_length")
    return found if isinstance(found, int) and 0 < found < 1 << 31 else None


def _entry(file: Path, name: str) -> Any:
    """One entry of a file of transformers, which is checked where the model is loaded; None where it has none."""
    try:
        return json.loads(file.read_bytes()).get(name)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where there is none."""
    content: dict[str, Any] = _parse(file, dict) if file.is_file() else {}
    return content


def _parse(file: Path, kind: type) -> Any:
    try:
        content = parse_json(file.read_bytes())
    except OSError as error:
        raise PapaError(f"{str(file)!r} cannot be read ({error.strerror}): {_REMEDY}.") from error
    except ValueError as error:
        raise PapaError(f"{str(file)!r} is not JSON ({error}): {_REMEDY}.") from error
    if not isinstance(content, kind):
        _refuse(file, f"holds a {type(content).__name__}, but must hold a {kind.__name__}")
    return content


def _refuse(file: Path, what: str) -> NoReturn:
    raise PapaError(f"{str(file)!r} {what}: {_REMEDY}.")
