import pytest

from papa_lightning.datamodules.rows.layouts import PADDING, mask_of, place, plain_slots, segment_slots, token_slots
from papa_lightning.errors import DataError

CLS, PAD, SEP = 100, 0, 99


def row(*lengths, separators=1):
    """Token ids of one or two segments; `separators` of them stand between two segments."""
    ids, word = [CLS], 1
    for number, length in enumerate(lengths):
        ids += [SEP] * (separators if number else 0)
        ids += range(word, word + length)
        word += length
    return [*ids, SEP]


def aligned(ids, max_length, preset="default"):
    return place(ids, segment_slots(ids, SEP, max_length, preset), PAD)


def test_plain_pads_at_the_end_and_cuts():
    assert plain_slots(2, 4) == [0, 1, PADDING, PADDING]
    assert plain_slots(4, 4) == [0, 1, 2, 3]
    assert plain_slots(9, 4) == [0, 1, 2, 3]


def test_single_text_of_the_default_preset_keeps_all_but_the_last_slot():
    assert aligned(row(3), 8) == [CLS, 1, 2, 3, 0, 0, 0, SEP]
    assert aligned(row(6), 8) == [CLS, 1, 2, 3, 4, 5, 6, SEP]
    assert aligned(row(7), 8) == [CLS, 1, 2, 3, 4, 5, 6, SEP]


def test_single_text_of_the_reference_preset_is_cut_at_half():
    assert aligned(row(3), 8, "reference") == [CLS, 1, 2, 3, 0, 0, 0, SEP]
    assert aligned(row(6), 8, "reference") == [CLS, 1, 2, 3, 0, 0, 0, SEP]
    assert aligned(row(6), 9, "reference") == [CLS, 1, 2, 3, 0, 0, 0, 0, SEP]


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_second_segment_starts_with_its_separator_at_half(preset):
    assert aligned(row(2, 1), 10, preset) == [CLS, 1, 2, 0, 0, SEP, 3, 0, 0, SEP]
    assert aligned(row(2, 1), 11, preset) == [CLS, 1, 2, 0, 0, SEP, 3, 0, 0, 0, SEP]


@pytest.mark.parametrize("preset", ["default", "reference"])
def test_double_separators_travel_with_the_second_segment(preset):
    assert aligned(row(2, 1, separators=2), 10, preset) == [CLS, 1, 2, 0, 0, SEP, SEP, 3, 0, SEP]


def test_long_segments_are_cut_each_in_its_half():
    assert aligned(row(9, 9), 10) == [CLS, 1, 2, 3, 4, SEP, 10, 11, 12, SEP]
    assert aligned(row(1, 9), 10) == [CLS, 1, 0, 0, 0, SEP, 2, 3, 4, SEP]
    assert aligned(row(9, 1), 10) == [CLS, 1, 2, 3, 4, SEP, 10, 0, 0, SEP]
    assert aligned(row(9, 9, separators=2), 10) == [CLS, 1, 2, 3, 4, SEP, SEP, 10, 11, SEP]


@pytest.mark.parametrize("max_length", range(7, 14))
@pytest.mark.parametrize("preset", ["default", "reference"])
@pytest.mark.parametrize("lengths", [(1,), (5,), (30,), (1, 1), (30, 1), (1, 30), (30, 30)])
@pytest.mark.parametrize("separators", [1, 2])
def test_every_layout_keeps_order_and_special_slots(max_length, preset, lengths, separators):
    ids = row(*lengths, separators=separators)
    slots = segment_slots(ids, SEP, max_length, preset)
    taken = [index for index in slots if index != PADDING]
    assert len(slots) == max_length
    assert taken == sorted(set(taken))
    assert slots[0] == 0
    assert slots[-1] == len(ids) - 1
    if len(lengths) == 2:
        assert slots[max_length // 2] == ids.index(SEP)
        assert ids[slots[max_length // 2 + separators]] == 1 + lengths[0]


def test_token_slots_move_only_the_separator():
    assert token_slots(row(3), SEP, 8) == [0, 1, 2, 3, PADDING, PADDING, PADDING, 4]
    assert token_slots(row(9), SEP, 4) == [0, 1, 2, 10]


def test_mask_has_holes_where_slots_take_no_token():
    assert mask_of(segment_slots(row(2, 1), SEP, 10)) == [1, 1, 1, 0, 0, 1, 1, 0, 0, 1]


@pytest.mark.parametrize("ids", [[], [CLS, 1, 2], [1, 2, SEP, CLS]])
def test_text_without_a_final_separator_is_refused(ids):
    for slots in (segment_slots, token_slots):
        with pytest.raises(DataError, match=r'does not end with the separator \(id 99\).*layout="plain"'):
            slots(ids, SEP, 8)
