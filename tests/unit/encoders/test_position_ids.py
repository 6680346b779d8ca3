"""The position ids that encoders give their tokens by themselves."""

import pytest
import torch
from conformance.tiny_models import LENGTH, build, make_inputs, swapped
from torch.testing import assert_close

from papa_lightning import PapaError, swap_attention
from papa_lightning.encoders import ReadBatch, native_position_ids
from papa_lightning.encoders.finding import SupportedEncoder

#: The padding token, of which one is real here, and one between the others is not.
PADDING = {"roberta": 1, "camembert": 1, "mpnet": 1, "bert": 0, "llama": 0}
NUMBERED = ("roberta", "camembert", "mpnet")


def inputs_of(name):
    tokens = torch.tensor([[5, 6, PADDING[name], 8], [PADDING[name], PADDING[name], 7, 9]])
    return {"input_ids": tokens, "attention_mask": torch.tensor([[1, 1, 0, 1], [0, 0, 1, 1]])}


@pytest.mark.parametrize("name", PADDING)
def test_ids_are_those_of_the_encoder(name):
    """Passing them changes nothing at real tokens."""
    model, inputs = build(name, pad_token_id=PADDING[name]), inputs_of(name)
    ids = native_position_ids(ReadBatch.of(SupportedEncoder.find(model)), inputs)
    numbers = [[2, 3, 1, 4], [1, 1, 2, 3]] if name in NUMBERED else [[0, 1, 2, 3]] * 2
    assert ids.tolist() == numbers
    with torch.no_grad():
        hidden = [model(**inputs, **more).last_hidden_state for more in ({}, {"position_ids": ids})]
    assert torch.equal(*(one[inputs["attention_mask"].bool()] for one in hidden))


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_embeddings_are_numbered_through(name):
    """Which of them are padding, no encoder can tell."""
    model = build(name, pad_token_id=PADDING[name])
    vectors = model.get_input_embeddings()(inputs_of(name)["input_ids"])
    ids = native_position_ids(ReadBatch.of(SupportedEncoder.find(model)), {"inputs_embeds": vectors})
    assert ids.tolist() == [[2, 3, 4, 5] if name == "roberta" else [0, 1, 2, 3]] * 2
    with torch.no_grad():
        hidden = [model(inputs_embeds=vectors, **more).last_hidden_state for more in ({}, {"position_ids": ids})]
    assert torch.equal(*hidden)


@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize("rows", [1, 2])
def test_ids_in_a_graph_for_batches_of_any_shape(rows):
    model, inputs = swapped("roberta", "partial"), make_inputs("roberta")
    ids = native_position_ids(
        ReadBatch.of(SupportedEncoder.find(model)), {"input_ids": torch.ones_like(inputs["input_ids"]) * 5}
    )
    given = {**inputs, "position_ids": ids[:1] if rows == 1 else ids}
    for name in ("input_ids", "attention_mask"):
        torch._dynamo.maybe_mark_dynamic(given[name], (0, 1))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        found, expected = compiled(**given).last_hidden_state, model(**given).last_hidden_state
    torch._dynamo.reset()
    assert_close(*(states[inputs["attention_mask"].bool()] for states in (found, expected)))


def test_ids_of_the_batch_stay():
    found, inputs = SupportedEncoder.find(build("roberta")), inputs_of("roberta")
    ids = torch.tensor([[4, 5, 6, 7]])
    assert native_position_ids(ReadBatch.of(found), {**inputs, "position_ids": ids}).tolist() == ids.tolist() * 2
    own = torch.tensor([[4, 5, 6, 7], [3, 2, 1, 0]])
    assert torch.equal(native_position_ids(ReadBatch.of(found), {**inputs, "position_ids": own}), own)


def test_rotary_encoders_without_scores_count_slots():
    model = swap_attention(build("llama"), "aft_simple", max_length=LENGTH)
    ids = native_position_ids(ReadBatch.of(SupportedEncoder.find(model)), inputs_of("llama"))
    assert ids[0].tolist() == [0, 1, 2, 3]
    assert ids[1, 2:].tolist() == [0, 1]


def test_a_batch_without_tokens():
    with pytest.raises(PapaError, match="the batch has attention_mask, but position ids are those of input_ids"):
        native_position_ids(ReadBatch.of(SupportedEncoder.find(build("bert"))), {"attention_mask": torch.ones(1, 3)})
