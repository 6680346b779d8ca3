"""Parts of speech: Universal Dependencies."""

from collections.abc import Mapping, Sequence
from typing import Any

from papa_lightning.checks import as_text
from papa_lightning.datamodules.rows.tokenizing import NO_LABEL
from papa_lightning.datamodules.tokens import TokenDataModule


class POSDataModule(TokenDataModule):
    """Parts of speech by the 17 universal tags, scored by the accuracy over words.

    `data_dir` holds CoNLL-U files of Universal Dependencies, under the split's name or under their own
    (`en_ewt-ud-train.conllu`), or files with the columns `tokens` and `upos`, the tags by name or by number. Words
    without a part of speech (`_`: ranges of multiword tokens in some copies) are left out.

    On the hub the treebanks have a loading script, which the datasets library no longer runs, so a copy in Parquet is
    loaded; no test covers that, for want of a network.

    Source: de Marneffe et al., "Universal Dependencies", Computational Linguistics 47(2), 2021.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        treebank: Name of the treebank on the hub.
        max_length: Number of slots T of every row.
        **kwargs: See `TaskDataModule`.

    Example:
        >>> data = POSDataModule(tokenizer="bert-base-cased")
        >>> data.num_labels, data.label_names[:5], data.metrics
        (17, ('ADJ', 'ADP', 'ADV', 'AUX', 'CCONJ'), ('token_accuracy',))
        >>> data.description
        'pos train (hub commul/universal_dependencies, en_ewt)'
    """

    task_name = "pos"
    hub_path = "commul/universal_dependencies"
    hub_remedy = (
        "pass data_dir, a folder with the treebank's original files (en_ewt-ud-train.conllu, en_ewt-ud-dev.conllu, "
        "en_ewt-ud-test.conllu of github.com/UniversalDependencies/UD_English-EWT)"
    )
    label_column = "upos"
    label_names = (
        *("ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT"),
        *("SCONJ", "SYM", "VERB", "X"),
    )
    metrics = ("token_accuracy",)

    def __init__(self, tokenizer: str, treebank: str = "en_ewt", max_length: int = 128, **kwargs: Any) -> None:
        self.hub_config = as_text("treebank", treebank)
        super().__init__(tokenizer, max_length=max_length, **kwargs)

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Encode rows without the words that have no part of speech; the others keep their numbers."""
        if self.label_column not in columns:
            return super().encode(columns, rows, where)
        given = columns[self.token_column]
        pairs = [_tagged(words, tags) for words, tags in zip(given, columns[self.label_column], strict=True)]
        words, tags, kept = zip(*pairs, strict=True)
        encoded = super().encode({self.token_column: words, self.label_column: tags}, rows, where)
        for row, numbers in enumerate(kept):
            if numbers is not None:
                encoded["num_words"][row] = len(given[row])
                encoded["word_ids"][row] = [n if n == NO_LABEL else numbers[n] for n in encoded["word_ids"][row]]
        return encoded


def _tagged(words: Any, tags: Any) -> tuple[Any, Any, list[int] | None]:
    """Words of a row with a part of speech, their tags and numbers; other values are refused later."""
    if not (isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)):
        return words, tags, None
    kept = [number for number, tag in enumerate(tags) if tag != "_"]
    return [words[number] for number in kept], [tags[number] for number in kept], kept
