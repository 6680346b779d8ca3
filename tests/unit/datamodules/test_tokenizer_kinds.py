"""Layouts with trained tokenizers of the kinds that encoders come with: WordPiece, byte-level BPE, SentencePiece."""

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from papa_lightning.datamodules.rows.tokenizing import (
    load_tokenizer,
    prepare_for_words,
    separator_id,
    tokenize,
    tokenize_words,
)
from papa_lightning.errors import DataError

KINDS = ("bert", "roberta", "deberta", "deberta-v2", "xlm-roberta", "albert", "t5")
# Separators between two texts. DeBERTa (v1) has one in transformers 4 and two in version 5.
BETWEEN = {"roberta": (2,), "xlm-roberta": (2,), "deberta": (1, 2)}
LENGTH = 48
TEXT, OTHER = "A wonderfully silly film, and never dull.", "Nobody laughed!"
WORDS = ["Unforgettable", ",", "says", "Ms.", "O'Neill", "-", "naïve", "film-makers", "laughed", "."]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def taken(columns, row=0):
    return [i for i, m in zip(columns["input_ids"][row], columns["attention_mask"][row], strict=True) if m]


@pytest.mark.parametrize("preset", ["default", "reference"])
@pytest.mark.parametrize("layout", ["segment", "plain"])
@pytest.mark.parametrize("texts", [[[TEXT]], [[TEXT], [OTHER]]], ids=["sentence", "pair"])
def test_rows_hold_the_tokens_in_order_with_separators_in_place(tokenizer_of, kind, layout, preset, texts):
    tokenizer = load_tokenizer(tokenizer_of(kind), None, LENGTH * 2, layout)
    columns = tokenize(tokenizer, texts, LENGTH * 2, layout, preset)
    whole = tokenizer(*texts)["input_ids"][0]
    (ids,), (mask,) = columns["input_ids"], columns["attention_mask"]
    assert columns["truncated"] == [False]
    assert taken(columns) == whole
    assert len(ids) == len(mask) == LENGTH * 2
    assert {i for i, m in zip(ids, mask, strict=True) if not m} == {tokenizer.pad_token_id}
    if layout == "plain":
        assert mask == [1] * len(whole) + [0] * (LENGTH * 2 - len(whole))
        return
    separator = separator_id(tokenizer)
    assert (ids[0], ids[-1]) == (whole[0], separator)
    found = [slot for slot, token in enumerate(ids) if token == separator]
    between = whole.count(separator) - 1
    assert len(texts) == 1 or between in BETWEEN.get(kind, (1,))
    assert found == [*range(LENGTH, LENGTH + between), 2 * LENGTH - 1]


@pytest.mark.parametrize("layout", ["segment", "plain"])
@pytest.mark.parametrize("preset", ["default", "reference"])
def test_long_pairs_are_cut_and_keep_their_separators(tokenizer_of, kind, layout, preset):
    tokenizer = load_tokenizer(tokenizer_of(kind), None, 16, layout)
    columns = tokenize(tokenizer, [[TEXT * 3], [OTHER * 3]], 16, layout, preset)
    assert columns["truncated"] == [True]
    assert columns["input_ids"][0][-1] == separator_id(tokenizer)
    if layout == "segment":
        assert columns["input_ids"][0][8] == separator_id(tokenizer)
        assert preset == "reference" or columns["attention_mask"] == [[1] * 16]  # it cuts the pair before aligning it


@pytest.mark.parametrize("preset", ["default", "reference"])
@pytest.mark.parametrize("layout", ["segment", "plain"])
def test_labels_stand_on_the_first_token_of_each_word(tokenizer_of, kind, layout, preset):
    tokenizer = prepare_for_words(load_tokenizer(tokenizer_of(kind), None, LENGTH, layout), kind)
    labels = list(range(len(WORDS)))
    columns = tokenize_words(tokenizer, [WORDS], [labels], LENGTH * 2, layout, preset)
    # Independently: every word alone, its tokens laid end to end.
    pieces = [tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"] for word in WORDS]
    first = 0 if kind == "t5" else 1
    expected = [-100] * LENGTH * 2
    for number, piece in enumerate(pieces):
        assert columns["input_ids"][0][first : first + len(piece)] == piece
        expected[first] = number
        first += len(piece)
    assert columns["labels"] == [expected]
    assert max(map(len, pieces)) > 1
    assert columns["input_ids"][0][-1 if layout == "segment" else first] == separator_id(tokenizer)
    assert columns["attention_mask"][0] == [1] * (first + (layout == "plain")) + [0] * (2 * LENGTH - first - 1) + [
        1
    ] * (layout == "segment")
    assert (columns["truncated"], columns["vanished"], columns["cut_words"]) == ([False], [0], [0])


@pytest.mark.parametrize("kind", ["roberta", "deberta"])
def test_byte_level_tokenizers_read_words_as_words(tokenizer_of, kind):
    plain = load_tokenizer(tokenizer_of(kind), None, 16, "segment")
    ready = prepare_for_words(load_tokenizer(tokenizer_of(kind), None, 16, "segment"), kind)
    words = ["the", "film"]
    tokens = ready.convert_ids_to_tokens(ready(words, is_split_into_words=True)["input_ids"])
    assert [token for token in tokens if token.startswith("Ġ")] == ["Ġthe", "Ġfilm"]
    assert plain(" the film")["input_ids"] == ready(words, is_split_into_words=True)["input_ids"]


PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"  # as Qwen and Llama 3 split texts, shortened


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_words_that_are_split_before_bytes_have_no_blanks_inside(tokenizer_of, normalizer):
    tokenizer = load_tokenizer(tokenizer_of("roberta"), None, 16, "segment")
    backend = tokenizer.backend_tokenizer
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), by_bytes])
    backend.normalizer = normalizer
    words = ["don't", "U.S.", "2024", "good"]
    expected = tokenizer(" " + " ".join(words))["input_ids"]
    assert prepare_for_words(tokenizer, "mine")(words, is_split_into_words=True)["input_ids"] == expected


@pytest.mark.parametrize("layout", ["segment", "plain"])
def test_words_beyond_the_last_slot_are_counted(tokenizer_of, layout):
    tokenizer = prepare_for_words(load_tokenizer(tokenizer_of("bert"), None, 8, layout), "bert")
    columns = tokenize_words(tokenizer, [["a"] * 9, ["a"] * 6, ["a"]], [[1] * 9, [1] * 6, [1]], 8, layout, "default")
    assert columns["truncated"] == [True, False, False]
    assert columns["cut_words"] == [3, 0, 0]
    assert [sum(label != -100 for label in row) for row in columns["labels"]] == [6, 6, 1]
    assert {row[-1] for row in columns["input_ids"][:2]} == {tokenizer.sep_token_id}


def test_words_that_become_nothing_are_counted_and_shift_no_label(tokenizer_of):
    tokenizer = prepare_for_words(load_tokenizer(tokenizer_of("bert"), None, 8, "segment"), "bert")
    columns = tokenize_words(tokenizer, [["a", "\u200d", "a"]], [[1, 2, 3]], 8, "segment", "default")
    assert columns["vanished"] == [1]
    assert columns["labels"] == [[-100, 1, 3, -100, -100, -100, -100, -100]]


def test_tokenizer_without_an_end_is_refused_for_segments(tokenizer_of, build_tokenizer, tmp_path):
    folder = build_tokenizer(tmp_path / "gpt", "$A", "$A $B", ["[CLS]", "[PAD]", "[SEP]", "[UNK]"])
    tokenizer = prepare_for_words(load_tokenizer(folder, None, 8, "segment"), "gpt")
    with pytest.raises(DataError, match=r'does not end with the separator .*layout="plain"'):
        tokenize_words(tokenizer, [["w0"]], [[0]], 8, "segment", "default")
    assert tokenize_words(tokenizer, [["w0"]], [[5]], 3, "plain", "default")["labels"] == [[5, -100, -100]]


def test_tokenizer_that_knows_no_words_is_refused(tokenizer_of, monkeypatch):
    tokenizer = load_tokenizer(tokenizer_of("bert"), None, 8, "segment")
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(DataError, match=r"tokenizer 'x' \(Bert.*\) cannot tell which token belongs to which word"):
        prepare_for_words(tokenizer, "x")
