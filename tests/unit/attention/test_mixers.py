"""State of the mixers: waiting, calibrated, saved and loaded; and the warning of rows without mass."""

import copy
import io
import re
import warnings

import pytest
import torch
from unit.attention.mixing import mix

from papa_lightning.attention import (
    KINDS,
    ConstantHeads,
    DynamicHeads,
    GatedHeads,
    Place,
    ZeroMassRecord,
    ZeroMassWarning,
    ZeroMassWatch,
)
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.errors import PapaError

VALUES = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.1


def test_waiting_mixer_leaves_the_attention_alone():
    for kind, heads in (("constant", [1, 2]), ("gated", range(4))):
        mixer = KINDS[kind](Place(0, 4, 6), heads)
        assert not mixer.calibrated
        assert not mixer.replaces_attention
        assert mixer.heads.dynamic == (0, 1, 2, 3)
        mixer.load_constants(VALUES)
        assert mixer.calibrated
        assert mixer.replaces_attention
        assert torch.equal(mixer.constants, VALUES[list(heads)])


def test_dynamic_heads_after_calibration():
    partial = ConstantHeads(Place(0, 4, 6), [0, 3])
    partial.load_constants(VALUES)
    assert partial.heads.dynamic == (1, 2)
    full = ConstantHeads(Place(0, 4, 6), range(4))
    full.load_constants(VALUES)
    assert full.heads.dynamic == ()
    gated = GatedHeads(Place(0, 4, 6), range(4))
    gated.load_constants(VALUES)
    assert gated.heads.dynamic == (0, 1, 2, 3)


def test_layer_without_constant_heads_stays_original():
    mixer = ConstantHeads(Place(0, 4, 6), [])
    mixer.load_constants(VALUES)
    assert mixer.calibrated
    assert not mixer.replaces_attention
    assert mixer.constants.shape == (0, 6, 6)


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_suspension(kind):
    mixer = KINDS[kind](Place(0, 4, 6), range(4))
    mixer.load_constants(VALUES)
    mixer.heads.suspended = True
    assert not mixer.replaces_attention
    assert mixer.heads.dynamic == (0, 1, 2, 3)
    assert mixer.heads.all_dynamic
    mixer.heads.suspended = False
    assert mixer.replaces_attention


def test_constants_are_a_buffer_until_they_learn_and_nothing_else_is_saved():
    mixer = ConstantHeads(Place(0, 4, 6), [1])
    assert [name for name, _ in mixer.named_buffers()] == ["constants"]
    assert dict(mixer.named_parameters()) == {}
    assert set(mixer.state_dict()) == {"constants", "_extra_state"}
    gated = GatedHeads(Place(0, 4, 6), range(4))
    assert {name: p.requires_grad for name, p in gated.named_parameters()} == {"gate_logits": True}
    assert gated.gate_logits.tolist() == [0, 0, 0, 0]
    mixer.learn_constants()
    assert {name: p.requires_grad for name, p in mixer.named_parameters()} == {"constants": True}
    assert dict(mixer.named_buffers()) == {}
    assert set(mixer.state_dict()) == {"constants", "_extra_state"}
    mixer.learn_constants(False)
    assert dict(mixer.named_parameters()) == {}


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_state_dict_carries_calibrated(kind):
    mixer = KINDS[kind](Place(0, 4, 6), range(4))
    other = copy.deepcopy(mixer)
    other.load_state_dict(mixer.state_dict())
    assert not other.calibrated
    mixer.load_constants(VALUES)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.calibrated
    assert other.replaces_attention
    assert torch.equal(other.constants, mixer.constants)


@pytest.mark.parametrize(("saved", "wanted"), [([0, 1], [0, 2]), ([0, 1], [0]), ([], [3]), ([3], [])])
def test_state_of_other_heads_is_refused(saved, wanted):
    mixer, other = ConstantHeads(Place(7, 4, 6), saved), ConstantHeads(Place(7, 4, 6), wanted)
    mixer.load_constants(VALUES)
    with pytest.raises(PapaError, match=re.escape(f"constant heads {saved} in layer 7")):
        other.load_state_dict(mixer.state_dict())
    assert not other.calibrated


def test_state_of_another_length_is_refused():
    mixer, other = ConstantHeads(Place(3, 4, 6), [0]), ConstantHeads(Place(3, 4, 5), [0])
    mixer.load_constants(VALUES)
    with pytest.raises(PapaError, match=r"max_length 6.*layer 3.*max_length 5"):
        other.load_state_dict(mixer.state_dict())
    assert not other.calibrated


def test_longer_sequences_than_the_constants():
    mixer = ConstantHeads(Place(0, 4, 6), range(4))
    mixer.load_constants(VALUES)
    empty = torch.zeros(1, 0, 7, 2)
    with pytest.raises(PapaError, match=r"7 tokens long.*max_length 6"):
        mix(mixer, empty, empty, torch.zeros(1, 4, 7, 2), None, 1.0)


def test_unknown_kind():
    with pytest.raises(PapaError, match=r"kind is 'frozen', but must be one of .*'constant'.*'gated'"):
        KINDS["frozen"]


def test_dynamic_heads_are_a_plain_object():
    heads = DynamicHeads(2)
    heads.choose([1])
    assert heads.dynamic == (1,)
    assert not heads.all_dynamic


def test_first_zero_of_diagonal():
    constants = torch.ones(2, 5, 5)
    assert first_zero_of_diagonal(constants) == 5
    constants[1, 3, 3] = 0
    assert first_zero_of_diagonal(constants) == 3
    constants[0, 0, 0] = 0
    assert first_zero_of_diagonal(constants) == 0
    assert first_zero_of_diagonal(torch.zeros(0, 5, 5)) == 5


def test_watch_names_layer_heads_and_positions_once():
    constants = torch.ones(2, 4, 4)
    constants[1, 2] = 0
    watch = ZeroMassWatch()
    with pytest.warns(ZeroMassWarning, match=r"layer 5, heads \[9\]: real tokens at positions \[2\]"):
        watch.check(5, [4, 9], constants, torch.tensor([[1, 1, 1, 0]]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.check(6, [4, 9], constants, None)


def test_a_record_keeps_the_first_text_and_warns_of_nothing():
    constants, record = torch.ones(1, 4, 4), ZeroMassRecord()
    assert record.text == ""
    constants[0, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record.check(5, [7], constants, None)
        record.check(6, [7], constants, None)
    assert record.text.startswith("layer 5, heads [7]: real tokens at positions [2] attend to nothing")


def test_watch_is_silent_about_padding():
    constants = torch.ones(2, 4, 4)
    constants[:, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZeroMassWatch().check(0, [0, 1], constants, torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]]))


def test_watch_sees_rows_whose_only_keys_are_padding():
    constants = torch.eye(3)[None].clone()
    constants[0, 0] = torch.tensor([0.0, 0.0, 1.0])  # position 0 attends to position 2 only
    with pytest.warns(ZeroMassWarning, match=r"positions \[0\]"):
        ZeroMassWatch().check(0, [0], constants, torch.tensor([[1, 1, 0]]))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("need_weights", [False, True])
def test_half_precision_mixers_stay_finite_at_padding(need_weights, dropout):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8, generator=generator).half()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()
    for kind in ("constant", "gated"):
        mixer = KINDS[kind](Place(0, 4, 6, dtype=torch.float16), range(4))
        mixer.load_constants(VALUES.half())
        none = query[:, :0] if kind == "constant" else query
        mixed, weights = mix(mixer, none, none if kind == "constant" else key, value, mask, 0.3, dropout, need_weights)
        assert mixed.dtype is torch.float16
        assert mixed.isfinite().all()
        assert (weights is None) == (not need_weights) or dropout > 0
        assert weights is None or weights.isfinite().all()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_sequence_of_padding_harms_no_gate(dropout):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()
    mixer = GatedHeads(Place(0, 4, 6), range(4))
    mixer.load_constants(VALUES)
    mixed, _ = mix(mixer, query, key, value, mask, 0.3, dropout)
    mixed[0, :3].square().sum().backward()
    assert mixer.gate_logits.grad.isfinite().all()
    assert mixer.gate_logits.grad.abs().min() > 0


def test_the_placeholder_of_a_sharded_load_changes_nothing():
    """torch.distributed.checkpoint passes an object of its own where a strategy loads parameter by parameter."""
    mixer = ConstantHeads(Place(0, 2, 4), [1])
    mixer.load_constants(torch.full((2, 4, 4), 0.25))
    mixer.set_extra_state(object())
    assert mixer.calibrated
    assert mixer.heads.dynamic == (0,)


class _Arriving:
    """A flag of a device, which is here from some look on."""

    def __init__(self, is_set, looks):
        self.layer, self.heads, self.empty = 2, (1,), torch.tensor([[[False, True]]])
        self.is_set, self._looks = is_set, looks

    @property
    def is_here(self):
        self._looks -= 1
        return self._looks < 0


def test_results_of_a_device_are_read_when_they_are_here():
    watch = ZeroMassWatch()
    watch._waiting.extend([_Arriving(False, 0), _Arriving(True, 1)])
    watch.settle(wait=False)
    assert not watch.warned
    with pytest.warns(ZeroMassWarning, match=r"layer 2, heads \[1\]: real tokens at positions \[1\]"):
        watch.settle(wait=False)
    record = ZeroMassRecord()
    record._waiting.append(_Arriving(True, 9))
    assert "layer 2" in record.text
    assert not record._waiting
