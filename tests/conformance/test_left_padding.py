"""A text with any padding on its left: the same constants and the same outputs, wherever stock gives the same."""

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import pytest
import torch
from conformance.explicit import assert_close, encode, gradients
from conformance.tiny_models import (
    CASES,
    NAMES,
    build,
    encoder_of,
    make_config,
    make_constants,
    plain,
    swap,
    swapped,
)
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from papa_lightning import PapaError, calibrate, swap_attention
from papa_lightning.calibration import calibrate_compact
from papa_lightning.criteria import GreedySearch, RankingInputs, criterion_from
from papa_lightning.encoders import FAMILIES
from papa_lightning.export.graphs import export_program

CLOSE = {"atol": 1e-5, "rtol": 1e-5}  # rotary angles are float32 whatever the encoder is
TEXTS = ("text", "causal", "text to text")
#: Of the families, by their documentation: positions of real tokens do not depend on padding before them.
INVARIANT = [name for name in NAMES if CASES[name].relative or name in ("roberta", "xlm-roberta", "camembert")]
FIXED = [name for name in NAMES if CASES[name].masked and name not in INVARIANT]


def texts(name):
    """Three texts of several lengths."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 40, (length,), generator=generator) for length in (5, 7, 3)]


def batch(name, before, rows=None, width=None):
    """Texts, each with so much padding before it, and behind it as much as the longest row needs."""
    own, padding = texts(name) if rows is None else rows, make_config(name).pad_token_id or 0
    width = width or max(len(text) + gap for text, gap in zip(own, before, strict=True))
    ids = torch.full((len(own), width), padding)
    mask = torch.zeros_like(ids)
    for row, (text, gap) in enumerate(zip(own, before, strict=True)):
        ids[row, gap : gap + len(text)], mask[row, gap : gap + len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def numbered(inputs, start=0):
    """With position ids that number the real tokens, as generate makes them."""
    mask = inputs["attention_mask"]
    return {**inputs, "position_ids": (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1) + start}


def real(inputs, hidden):
    return hidden[inputs["attention_mask"].bool()]


def run(model, inputs, **options):
    with torch.no_grad():
        return real(inputs, encode(model, inputs, **options))


@cache
def plain_constants(name):
    return calibrate(plain(name), [batch(name, (0, 0, 0))], CASES[name].length)


def test_the_families_are_those_whose_outputs_do_not_change():
    for name in (*INVARIANT, *FIXED):
        first, padded = batch(name, (0, 0, 0)), batch(name, (2, 0, 4))
        same = torch.allclose(run(plain(name), first), run(plain(name), padded), **CLOSE)
        assert same == (name in INVARIANT), name
        rule = FAMILIES[CASES[name].model_type].slot_rule(make_config(name))
        assert (rule != "tensor") == same, name


@pytest.mark.parametrize("name", INVARIANT)
def test_constants_do_not_depend_on_padding(name):
    expected = plain_constants(name)
    for before in ((3, 0, 0), (1, 2, 5), (5, 3, 7)):
        found = calibrate(plain(name), [batch(name, before)], CASES[name].length)
        assert torch.equal(found.pair_counts, expected.pair_counts)
        assert_close(found.values, expected.values, CLOSE)
        assert_close(found.variance, expected.variance, CLOSE)


@pytest.mark.parametrize("name", FIXED)
def test_absolute_positions_keep_their_slots(name):
    counts = calibrate(plain(name), [batch(name, (2, 2, 2), width=10)], CASES[name].length).pair_counts
    assert counts[:2].sum() == 0
    assert counts[2, 2] == 3


@pytest.mark.parametrize("mode", ["all", "partial", "gated"])
@pytest.mark.parametrize("name", INVARIANT)
def test_outputs_do_not_depend_on_padding(name, mode):
    model = swapped(name, mode)
    expected = run(model, batch(name, (0, 0, 0)))
    for before in ((3, 0, 0), (1, 2, 5), (5, 3, 7)):
        assert_close(run(model, batch(name, before)), expected, CLOSE)


@pytest.mark.parametrize("name", ["llama", "roberta", "t5", "deberta-v2-own", "roformer", "esm", "modernbert"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("compact", None),
        ("shared", {"matrix": "constant"}),
        ("shared", {"matrix": "dynamic"}),
        ("aft_full", None),
        ("aft_local", {"window": 3}),
        ("aft_conv", {"window": 3}),
        ("aft_simple", None),
        ("additive", None),
    ],
)
def test_kinds(name, kind, options):
    model, constants = build(name), None
    if kind == "compact":
        constants = calibrate_compact(model, [batch(name, (0, 0, 0))], CASES[name].length, width=2)
        again = calibrate_compact(model, [batch(name, (3, 1, 4))], CASES[name].length, width=2)
        for one, other in zip(constants.layers, again.layers, strict=True):
            assert_close(one.profile, other.profile, CLOSE)
            assert_close(one.columns, other.columns, CLOSE)
    elif options == {"matrix": "constant"}:
        constants = make_constants(name)
    swap_attention(
        model, kind, constants=constants, options=options, max_length=None if constants else CASES[name].length
    )
    expected = run(model, batch(name, (0, 0, 0)))
    assert_close(run(model, batch(name, (5, 3, 7))), expected, CLOSE)


def test_folded():
    from papa_lightning.calibration import merge_constants

    model = build("roberta")
    merged = merge_constants(make_constants("roberta"))
    swap_attention(model, "folded", constants=getattr(merged, "constants", merged))
    assert_close(run(model, batch("roberta", (5, 3, 7))), run(model, batch("roberta", (0, 0, 0))), CLOSE)


@pytest.mark.parametrize("name", ["llama", "t5", "mpnet", "roberta"])
def test_attention_matrices_are_those_of_the_tokens(name):
    inputs, model = batch(name, (4, 0, 2)), swap(name, build(name, "eager"), "gated")
    options = {"output_attentions": True}
    with torch.no_grad():
        padded = encoder_of(model)(**inputs, **options).attentions
        first = encoder_of(model)(**batch(name, (0, 0, 0)), **options).attentions
    for own, other in zip(padded, first, strict=True):
        assert_close(own[0, :, 4:9, 4:9], other[0, :, :5, :5], CLOSE)


@pytest.mark.parametrize("name", ["llama", "esm", "t5"])
def test_holes_stay_where_they_are_seen_from_the_first_token(name):
    """As in a layout that puts the separators on places of their own."""
    model, texts = swapped(name, "partial"), torch.tensor([[5, 6, 7, 0, 0, 8, 9]])
    mask = (texts > 0).long()
    pad = torch.zeros(1, 3, dtype=torch.int64)
    one = {"input_ids": texts, "attention_mask": mask}
    other = {"input_ids": torch.cat([pad, texts], 1), "attention_mask": torch.cat([pad, mask], 1)}
    assert_close(run(model, other), run(model, one), CLOSE)
    if CASES[name].kind != "causal":
        closed = {"input_ids": texts[mask.bool()][None], "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
        assert not torch.allclose(run(model, closed), run(model, one), atol=1e-3)
    counts = calibrate(build(name), [other], 10).pair_counts
    assert counts.diagonal().tolist() == [1, 1, 1, 0, 0, 1, 1, 0, 0, 0]


WITH_IDS = [name for name in NAMES if "position_ids" in inspect.signature(encoder_of(plain(name)).forward).parameters]


@pytest.mark.parametrize("name", WITH_IDS)
def test_position_ids_decide(name):
    first = 2 if name in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    plain_inputs, padded = batch(name, (0, 0, 0)), batch(name, (4, 0, 2))
    inline = FAMILIES[CASES[name].model_type].inline
    own = inline is None or inline.hears_positions
    if not own and not CASES[name].relative:
        return
    model, ids = swapped(name, "partial"), numbered(padded, first)
    expected = run(model, plain_inputs)
    if name not in ("deberta", "deberta-v2-shared", "deberta-v2-own"):  # there the stock encoder has no use for them
        assert_close(run(plain(name), ids), run(plain(name), plain_inputs), CLOSE)
    assert_close(run(model, ids), expected, CLOSE)
    found = calibrate(plain(name), [ids], CASES[name].length)
    assert torch.equal(found.pair_counts, plain_constants(name).pair_counts)
    assert_close(found.values, plain_constants(name).values, CLOSE)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "roberta", "distilbert", "esm", "albert"])
def test_position_ids_of_any_start(name):
    """A text that begins at the slot 3 has the rows and columns of the constants from 3 on."""
    first = 2 if name == "roberta" else 0
    constants, model = make_constants(name), build(name)
    text = texts(name)[0][None]
    ids = torch.arange(3, 8)[None] + first
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), "position_ids": ids}
    found = run(swap_attention(copy.deepcopy(model), "constant", constants=constants), inputs)
    moved = type(constants)(constants.values[:, :, 3:8, 3:8].contiguous(), torch.ones(5, 5))
    expected_model = swap_attention(copy.deepcopy(model), "constant", constants=moved)
    with torch.no_grad():
        hidden = _without_slots(expected_model, inputs)
    assert_close(found, hidden, CLOSE)
    counts = calibrate(plain(name), [inputs], 10).pair_counts
    assert counts.diagonal().tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]


def _without_slots(model, inputs):
    """As the constants stand, whatever the position ids are."""
    from papa_lightning.encoders.seam.batch import ReadBatch

    encoder = encoder_of(model)
    for key, hook in list(encoder._forward_pre_hooks.items()):
        if isinstance(hook, ReadBatch):
            del encoder._forward_pre_hooks[key]
            del encoder._forward_pre_hooks_with_kwargs[key]
    return real(inputs, encode(model, inputs))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.float32])
def test_masks_of_any_dtype(dtype):
    """Real tokens are read from the mask of the batch, before the encoder converts it."""
    for name, kind, ids in (("llama", "additive", False), ("bert", "gated", True), ("albert", "gated", True)):
        constants = make_constants(name) if kind == "gated" else None
        model = swap_attention(build(name), kind, constants=constants, max_length=CASES[name].length)
        inputs = batch(name, (4, 0, 2))
        inputs = numbered(inputs) if ids else inputs
        expected = run(model, inputs)
        assert_close(run(model, {**inputs, "attention_mask": inputs["attention_mask"].to(dtype)}), expected, CLOSE)
        if ids:
            cast = {**inputs, "attention_mask": inputs["attention_mask"].to(dtype)}
            assert torch.equal(calibrate(build(name), [cast], 10).values, calibrate(build(name), [inputs], 10).values)


def test_position_ids_that_skip_values():
    """Without windows and causality the slot is the position id, in any order."""
    model, constants = build("bert"), make_constants("bert")
    ids = torch.tensor([[0, 4, 9, 2]])
    text = torch.tensor([[5, 6, 7, 8]])
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), "position_ids": ids}
    found = run(swap_attention(copy.deepcopy(model), "constant", constants=constants), inputs)
    picked = constants.values[:, :, ids[0]][:, :, :, ids[0]].contiguous()
    expected = swap_attention(copy.deepcopy(model), "constant", constants=type(constants)(picked, torch.ones(4, 4)))
    with torch.no_grad():
        assert_close(found, _without_slots(expected, inputs), CLOSE)


WRONG_IDS = [
    ("bert", [[0, 1, 2, 10]], r"position_ids has the value 10 at a real token.*ids 0 to 9"),
    ("bert", [[0, 1, 2, -1]], r"position_ids has the value -1 at a real token"),
    ("roberta", [[0, 1, 2, 3]], r"position_ids has the value 0 at a real token.*ids 2 to 11"),
    ("bert", [[0, 1, 0, 1]], r"position_ids has the same value twice"),
    ("llama", [[3, 2, 1, 0]], r"position_ids fall within a sequence.*back only"),
    ("mistral", [[0, 1, 5, 6]], r"position_ids skip values.*window"),
    ("modernbert", [[0, 2, 4, 6]], r"position_ids skip values.*window"),
    ("mpnet", [[3, 4, 5, 6]], r"position_ids are given, but the layers of this encoder do not hear of them"),
    ("deberta", [[1, 2, 3, 4]], r"position_ids are given, but the layers of this encoder do not hear of them"),
    ("bert", [[0.0, 1.0, 2.0, 3.0]], r"position_ids (is of|of dtype) torch.float"),
    ("bert", [[0, 1, 2]], r"position_ids (has|of) shape \(1, 3\)"),
]


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(("name", "ids", "message"), WRONG_IDS)
def test_position_ids_that_are_no_slots(name, ids, message, observed):
    inputs = batch(name, (0,), rows=[torch.tensor([5, 6, 7, 8])]) | {"position_ids": torch.tensor(ids)}
    use = partial(calibrate, plain(name), [inputs], 10) if observed else partial(run, swapped(name, "all"), inputs)
    with pytest.raises(PapaError, match=message):
        use()


@pytest.mark.parametrize("name", ["llama", "qwen2-sliding", "qwen3", "mistral", "gpt2"])
def test_generation_with_padding_on_the_left(name):
    """A batch of prompts gives what each gives alone."""
    if type(make_config(name)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        pytest.skip("the family has no model that generates")
    model = swap(name, build(name, auto=AutoModelForCausalLM), "partial")
    rows = [text[:5] for text in texts(name)]
    inputs = batch(name, tuple(5 - len(text) for text in rows), rows=rows)
    options = {"max_new_tokens": 3, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    together = model.generate(**inputs, **options)
    for row, text in enumerate(rows):
        alone = model.generate(input_ids=text[None], attention_mask=torch.ones(1, len(text)).long(), **options)
        assert together[row, 5:].tolist() == alone[0, len(text) :].tolist()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("name", ["llama", "roberta", "deberta-v2-own", "t5"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(name, reentrant):
    inputs, model = batch(name, (4, 0, 2)), swapped(name, "gated").train()
    first = gradients(name, model, batch(name, (0, 0, 0)))
    if FAMILIES[CASES[name].model_type].inline is None and name != "t5":
        inputs = numbered(inputs, 2 if name == "roberta" else 0)
    expected = gradients(name, model, inputs)
    if hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = gradients(name, model, inputs)
    for key, gradient in expected.items():
        assert_close(found[key], gradient, CLOSE)
        if "embed" not in key:  # of the padding token
            assert_close(first[key], gradient, CLOSE)


def test_threads():
    """Batches that begin with padding beside others, in one encoder."""
    model = swapped("llama", "partial")
    batches = [batch("llama", before) for before in ((0, 0, 0), (5, 3, 7), (1, 0, 0), (0, 2, 2))] * 8
    expected = run(model, batches[0])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda inputs: run(model, inputs), batches):
            assert_close(found, expected, CLOSE)


@pytest.mark.parametrize("name", ["llama", "roberta"])
@pytest.mark.parametrize(
    "criterion",
    ["variance", "divergence", "output", "output_norm", "entropy", "first_token", "taylor", "greedy"],
)
def test_criteria(name, criterion):
    model, constants = build(name), plain_constants(name)

    def loss(inputs):
        hidden = encode(model, {key: inputs[key] for key in ("input_ids", "attention_mask")})
        return hidden[inputs["attention_mask"].bool()].square().mean()

    scores = []
    for before in ((0, 0, 0), (5, 3, 7)):
        inputs = batch(name, before)
        constants = calibrate(model, [inputs], CASES[name].length)
        given = RankingInputs(model, constants, [inputs], loss)
        chosen = GreedySearch(sequences=8, rounds=2) if criterion == "greedy" else criterion_from(criterion)
        scores.append(chosen.scores(given))
    assert_close(*scores, {"atol": 1e-4, "rtol": 1e-4})


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
def test_compiled_graphs():
    """Graphs look at no value, so that they put every batch in order."""
    model = swapped("roberta", "partial")
    expected, padded = run(model, batch("roberta", (0, 0, 0))), batch("roberta", (5, 3, 2))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for inputs in (padded, numbered(padded, 2)):
        with torch.no_grad():
            assert_close(real(inputs, compiled(**inputs).last_hidden_state), expected, CLOSE)


@pytest.mark.no_cover
def test_exported_graphs():
    """As compiled ones; graphs of ONNX are tried in unit/export."""
    graph = export_program(swap("llama", build("llama"), "all")).module()
    expected, padded = run(swapped("llama", "all"), batch("llama", (0, 0, 0))), batch("llama", (5, 3, 2))
    assert_close(real(padded, graph(**padded)), expected, CLOSE)


@pytest.mark.parametrize("name", ["llama", "roberta", "t5"])
def test_where_no_value_is_looked_at(name, monkeypatch):
    """As on a device that a look would make wait: every padded batch is put in order, right-padded ones too."""
    expected, padded = run(swapped(name, "partial"), batch(name, (0, 0, 0))), batch(name, (5, 3, 7))
    constants = plain_constants(name)
    monkeypatch.setattr("papa_lightning.encoders.seam.slots.can_look", lambda tensor: False)
    for inputs in (padded, batch(name, (0, 0, 0))):
        assert_close(run(swapped(name, "partial"), inputs), expected, CLOSE)
    found = calibrate(plain(name), [padded], CASES[name].length)
    assert torch.equal(found.pair_counts, constants.pair_counts)
    assert_close(found.values, constants.values, CLOSE)
