import pytest

from papa_lightning.datamodules.rows.tokenizing import fingerprint, load_tokenizer, tokenize
from papa_lightning.errors import DataError


def load(folder, max_length=16, layout="segment"):
    return load_tokenizer(folder, None, max_length, layout)


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids)).replace(tokenizer.pad_token, ".")


def test_default_pair_moves_token_types_with_their_tokens(bert_folder):
    tokenizer = load(bert_folder)
    columns = tokenize(tokenizer, [["w0 w1"], ["w2"]], 10, "segment", "default")
    assert words(tokenizer, columns["input_ids"][0]) == "[CLS] w0 w1 . . [SEP] w2 . . [SEP]"
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 0, 0, 1, 0, 0, 1]]
    assert columns["attention_mask"] == [[1, 1, 1, 0, 0, 1, 1, 0, 0, 1]]
    assert columns["truncated"] == [False]


def test_reference_pair_leaves_token_types_where_they_were(bert_folder):
    tokenizer = load(bert_folder)
    columns = tokenize(tokenizer, [["w0 w1"], ["w2"]], 10, "segment", "reference")
    assert words(tokenizer, columns["input_ids"][0]) == "[CLS] w0 w1 . . [SEP] w2 . . [SEP]"
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 0, 0, 0, 0]]


def test_plain_pair_pads_at_the_end(bert_folder):
    tokenizer = load(bert_folder)
    columns = tokenize(tokenizer, [["w0 w1"], ["w2"]], 8, "plain", "default")
    assert words(tokenizer, columns["input_ids"][0]) == "[CLS] w0 w1 [SEP] w2 [SEP] . ."
    assert columns["token_type_ids"] == [[0, 0, 0, 0, 1, 1, 0, 0]]


def test_plain_text_that_is_cut_keeps_its_separator(bert_folder):
    tokenizer = load(bert_folder)
    columns = tokenize(tokenizer, [["w0 w1 w2 w3"]], 5, "plain", "default")
    assert words(tokenizer, columns["input_ids"][0]) == "[CLS] w0 w1 w2 [SEP]"
    assert columns["truncated"] == [True]


def test_default_pair_is_cut_only_by_its_slots(bert_folder):
    tokenizer = load(bert_folder)
    texts = [["w0 w1 w2 w3 w4 w5"], ["w10 w11 w12 w13 w14"]]
    default = tokenize(tokenizer, texts, 10, "segment", "default")
    assert words(tokenizer, default["input_ids"][0]) == "[CLS] w0 w1 w2 w3 [SEP] w10 w11 w12 [SEP]"
    assert default["truncated"] == [True]


def test_double_separators_and_no_token_types(roberta_folder):
    tokenizer = load(roberta_folder)
    columns = tokenize(tokenizer, [["w0 w1"], ["w2"]], 10, "segment", "default")
    assert words(tokenizer, columns["input_ids"][0]) == "<s> w0 w1 . . </s> </s> w2 . </s>"
    assert "token_type_ids" not in columns


@pytest.mark.parametrize(
    ("layout", "preset", "fits"), [("segment", "default", 6), ("segment", "reference", 3), ("plain", "default", 6)]
)
def test_truncated_counts_texts_that_lost_tokens(bert_folder, layout, preset, fits):
    texts = [" ".join(["w0"] * count) for count in range(1, 10)]
    columns = tokenize(load(bert_folder), [texts], 8, layout, preset)
    assert columns["truncated"] == [count > fits for count in range(1, 10)]
    assert [sum(mask) for mask in columns["attention_mask"]] == [min(count, fits) + 2 for count in range(1, 10)]


def test_fingerprint_belongs_to_the_tokenizer_not_to_its_last_call(bert_folder, roberta_folder):
    tokenizer = load(bert_folder)
    before = fingerprint(tokenizer)
    tokenizer(["w0"], truncation=True, max_length=4, padding="max_length")
    assert fingerprint(tokenizer) == before == fingerprint(load(bert_folder))
    assert fingerprint(load(roberta_folder)) != before


def test_missing_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere' cannot be loaded: there is no such folder\. Pass a local folder .* hub"
    ):
        load(str(tmp_path / "nowhere"))


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(DataError, match=r"cannot be loaded: the folder holds no tokenizer .*Pass a local folder"):
        load(str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/no-such-model", "not a name"])
def test_unknown_name(name):
    with pytest.raises(DataError, match=rf"tokenizer '{name}' cannot be loaded: .*name of a model on the hub"):
        load(name)


def test_max_length_above_the_tokenizers(bert_folder):
    assert load(bert_folder, max_length=128)
    with pytest.raises(DataError, match=r"max_length is 129, but tokenizer '.*bert' takes at most 128 tokens"):
        load(bert_folder, max_length=129)


@pytest.mark.parametrize(("missing", "remedy"), [("sep_token", 'layout="plain"'), ("pad_token", "use a tokenizer")])
def test_missing_special_token(build_tokenizer, tmp_path, missing, remedy):
    folder = build_tokenizer(
        tmp_path / "other",
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B [SEP]",
        ["[CLS]", "[PAD]", "[SEP]", "[UNK]"],
        **{missing: None},
    )
    kind = {"sep_token": "separator", "pad_token": "padding"}[missing]
    with pytest.raises(DataError, match=rf"has no {kind} token, which layout='segment' needs: .*{remedy}"):
        load(folder)
    if missing == "sep_token":
        assert load(folder, layout="plain").pad_token_id == 1


def test_separator_that_the_template_does_not_put(build_tokenizer, tmp_path):
    folder = build_tokenizer(tmp_path / "gpt", "$A", "$A $B", ["[CLS]", "[PAD]", "[SEP]", "[UNK]"])
    with pytest.raises(DataError, match="does not end with the separator"):
        tokenize(load(folder), [["w0"]], 8, "segment", "default")
