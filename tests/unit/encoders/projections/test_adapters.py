"""Encoders with adapters of PEFT: the same numbers as the plain encoder whose weights the adapters were merged into."""

import copy

import pytest
import torch
from conformance import tiny_models
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from papa_lightning import PapaError, gate_logits, restore_attention, swap_attention
from papa_lightning.encoders import find_encoder, swap_as_saved, swapped_layers
from papa_lightning.encoders.projections.cut import CutProjection

QKV = ["query", "key", "value"]
#: Model, and the layers that get an adapter: fused ones, cut ones, values only, all.
ADAPTED = {
    "bert": ["query", "value"],
    "bert, values": ["value"],
    "bert, all": "all-linear",
    "distilbert": ["q_lin", "k_lin"],
    "albert": QKV,
    "roformer": QKV,
    "gpt2": ["c_attn"],
    "deberta": ["in_proj"],
    "deberta, all": "all-linear",
    "deberta-v2-shared": ["query_proj", "key_proj", "value_proj"],
    "deberta-v2-own": "all-linear",
    "llama": ["q_proj", "k_proj", "v_proj"],
    "qwen3": "all-linear",
    "modernbert": ["Wqkv"],
    "t5": ["q", "k", "v"],
    "mpnet": ["q", "k", "v"],
}
EXACT = {"atol": 1e-10, "rtol": 1e-10}
each_adapted = pytest.mark.parametrize("adapted", ADAPTED)
each_mode = pytest.mark.parametrize("mode", tiny_models.MODES)
# "partial" has a layer whose heads are all constant, so that "all" can show nothing else for most.
each_adapted_in_modes = pytest.mark.parametrize(
    ("adapted", "mode"),
    [
        *((adapted, mode) for adapted in ADAPTED for mode in ("partial", "gated")),
        ("bert", "all"),
        ("distilbert", "all"),
    ],
)


def case_of(adapted):
    return adapted.split(",")[0]


def randomize_adapter(model, adapter, seed):
    """PEFT starts with lora_B = 0, an adapter that does nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and adapter in name.split("."):
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)


def lora(adapted):
    return LoraConfig(r=2, target_modules=ADAPTED[adapted], fan_in_fan_out=case_of(adapted) == "gpt2")


def adapt(model, adapted, adapter="default", seed=1):
    model = get_peft_model(model, lora(adapted), adapter_name=adapter, autocast_adapter_dtype=False).double().eval()
    randomize_adapter(model, adapter, seed)
    return model


def with_adapter(adapted):
    return adapt(copy.deepcopy(tiny_models.plain(case_of(adapted))), adapted)


def merged(model):
    """A plain encoder in which the adapters are part of the weights."""
    return copy.deepcopy(model).merge_and_unload()


def hidden_states(adapted, model):
    options = {"use_cache": False} if tiny_models.CASES[case_of(adapted)].kind == "causal" else {}
    return find_encoder(model)(**tiny_models.make_inputs(case_of(adapted)), **options).last_hidden_state


def swap(adapted, model, mode):
    return tiny_models.swap(case_of(adapted), model, mode)


def expected(adapted, plain, mode):
    """Of a plain model, swapped."""
    return hidden_states(adapted, swap(adapted, copy.deepcopy(plain), mode))


def trainable(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@each_adapted
def test_calibration(adapted):
    model = with_adapter(adapted)
    before = tiny_models.snapshot(model)
    found = tiny_models.calibrated(case_of(adapted), model)
    torch.testing.assert_close(found.values, tiny_models.calibrated(case_of(adapted), merged(model)).values, **EXACT)
    assert tiny_models.snapshot(model) == before
    unadapted = tiny_models.calibrated(case_of(adapted), tiny_models.plain(case_of(adapted)))
    assert not torch.allclose(found.values, unadapted.values)


@each_adapted_in_modes
@torch.no_grad()
def test_swapped_after_peft(adapted, mode):
    model = with_adapter(adapted)
    want = expected(adapted, merged(model), mode)
    assert swap(adapted, model, mode) is model
    torch.testing.assert_close(hidden_states(adapted, model), want, **EXACT)
    unadapted = expected(adapted, tiny_models.plain(case_of(adapted)), mode)
    without_effect = adapted == "distilbert" and mode == "all"  # queries and keys only, which nobody computes
    assert torch.allclose(want, unadapted) == without_effect


@each_adapted_in_modes
@torch.no_grad()
def test_swapped_before_peft(adapted, mode):
    later = swap(adapted, with_adapter(adapted), mode)
    first = adapt(swap(adapted, copy.deepcopy(tiny_models.plain(case_of(adapted))), mode), adapted)
    assert set(first.state_dict()) == set(later.state_dict())
    torch.testing.assert_close(hidden_states(adapted, first), hidden_states(adapted, later), **EXACT)


@each_adapted_in_modes
@torch.no_grad()
def test_calibration_of_a_swapped_model(adapted, mode):
    model = with_adapter(adapted)
    plain = tiny_models.calibrated(case_of(adapted), model)
    swap(adapted, model, mode)
    torch.testing.assert_close(tiny_models.calibrated(case_of(adapted), model).values, plain.values, **EXACT)


@pytest.mark.parametrize("first", ["peft", "swap"])
@pytest.mark.parametrize(
    ("adapted", "mode"), [("bert", "all"), ("bert", "gated"), *((adapted, "partial") for adapted in ADAPTED)]
)
@torch.no_grad()
def test_merging_and_disabling(adapted, mode, first):
    plain = tiny_models.plain(case_of(adapted))
    if first == "peft":
        model = swap(adapted, with_adapter(adapted), mode)
    else:
        model = adapt(swap(adapted, copy.deepcopy(plain), mode), adapted)
    want = expected(adapted, merged(with_adapter(adapted)), mode)
    with model.disable_adapter():
        torch.testing.assert_close(hidden_states(adapted, model), expected(adapted, plain, mode), **EXACT)
    model.merge_adapter()
    torch.testing.assert_close(hidden_states(adapted, model), want, **EXACT)
    model.unmerge_adapter()
    torch.testing.assert_close(hidden_states(adapted, model), want, **EXACT)
    unloaded = model.merge_and_unload()
    torch.testing.assert_close(hidden_states(adapted, unloaded), want, **EXACT)


@each_mode
@pytest.mark.parametrize("adapted", ["bert", "gpt2", "deberta", "llama", "modernbert"])
@torch.no_grad()
def test_two_adapters(adapted, mode):
    model = swap(adapted, with_adapter(adapted), mode)
    model.add_adapter("other", lora(adapted), autocast_adapter_dtype=False)
    model.double()
    randomize_adapter(model, "other", seed=2)
    plain = copy.deepcopy(tiny_models.plain(case_of(adapted)))
    second = expected(adapted, merged(adapt(plain, adapted, seed=2)), mode)
    for adapter, want in (
        ("other", second),
        ("default", expected(adapted, merged(with_adapter(adapted)), mode)),
        ("other", second),
    ):
        model.set_adapter(adapter)
        torch.testing.assert_close(hidden_states(adapted, model), want, **EXACT)


@each_adapted_in_modes
@torch.no_grad()
def test_restoration(adapted, mode):
    model = with_adapter(adapted)
    before, states = tiny_models.snapshot(model), hidden_states(adapted, model)
    restore_attention(swap(adapted, model, mode))
    assert tiny_models.snapshot(model) == before
    assert torch.equal(hidden_states(adapted, model), states)


@pytest.mark.parametrize("mode", ["partial", "gated"])
@each_adapted
@torch.no_grad()
def test_restoration_where_peft_took_the_projections_in(adapted, mode):
    """Only the layers of dynamic heads: what the swap froze is another test's."""
    never = with_adapter(adapted)
    model = copy.deepcopy(tiny_models.plain(case_of(adapted)))
    heads = [(0, 0), (0, 2)] if mode == "partial" else "all"
    kind = "constant" if mode == "partial" else "gated"
    swap_attention(model, kind, constants=tiny_models.make_constants(case_of(adapted)), heads=heads)
    model = restore_attention(adapt(model, adapted))
    assert not any(isinstance(part, CutProjection) for part in model.modules())
    assert list(model.state_dict()) == list(never.state_dict())
    assert trainable(model) == trainable(never)
    assert torch.equal(hidden_states(adapted, model), hidden_states(adapted, never))


@pytest.mark.parametrize("adapted", ["bert", "deberta-v2-shared", "llama"])
@torch.no_grad()
def test_restoration_after_the_adapters_were_merged_for_good(adapted):
    model = swap(adapted, with_adapter(adapted), "all").merge_and_unload()
    plain = merged(with_adapter(adapted))
    restore_attention(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(hidden_states(adapted, model), hidden_states(adapted, plain), **EXACT)


@pytest.mark.parametrize("adapted", ["bert", "bert, values", "bert, all", "deberta", "llama", "t5"])
@torch.no_grad()
def test_restoration_where_peft_froze_the_rest(adapted):
    """The swap froze queries and keys; then PEFT froze all but its adapters, so they stay frozen."""
    never = with_adapter(adapted)
    model = adapt(swap(adapted, copy.deepcopy(tiny_models.plain(case_of(adapted))), "all"), adapted)
    restore_attention(model)
    assert list(model.state_dict()) == list(never.state_dict())
    assert trainable(model) == trainable(never)
    assert torch.equal(hidden_states(adapted, model), hidden_states(adapted, never))


@pytest.mark.parametrize("mode", ["all", "partial"])
@each_adapted
def test_queries_and_keys_that_nothing_reaches_are_frozen(adapted, mode):
    model = with_adapter(adapted)
    before = trainable(model)
    swap(adapted, model, mode)
    states = hidden_states(adapted, model)
    if states.requires_grad:  # with adapters of queries and keys alone, nothing is left to learn
        states.square().sum().backward()
    for name, parameter in find_encoder(model).named_parameters():
        if "lora_" in name and "pooler" not in name:
            assert parameter.requires_grad == (parameter.grad is not None), name
    restore_attention(model)
    assert trainable(model) == before


@pytest.mark.parametrize(
    ("adapted", "value"),
    [
        ("bert", "value"),
        ("bert, all", "value"),
        ("gpt2", "c_attn"),
        ("deberta", "in_proj"),
        ("deberta-v2-shared", "value_proj"),
        ("llama", "v_proj"),
        ("modernbert", "Wqkv"),
        ("t5", "v"),
    ],
)
def test_values_learn_like_those_of_the_merged_model(adapted, value):
    """A step against the gradient of A and B moves the output as the chain rule says for W + BA."""
    model, plain = swap(adapted, with_adapter(adapted), "all"), merged(with_adapter(adapted))
    swap(adapted, plain.requires_grad_(True), "all")
    for one in (model, plain):
        hidden_states(adapted, one).square().sum().backward()
    layers = [module for name, module in find_encoder(model).named_modules() if name.endswith(f".{value}")]
    weights = [p for name, p in find_encoder(plain).named_parameters() if name.endswith(f".{value}.weight")]
    assert len(layers) == tiny_models.LAYERS
    for layer, merged_weight in zip(layers, weights, strict=True):
        first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = merged_weight.grad.T if adapted == "gpt2" else merged_weight.grad
        torch.testing.assert_close(second.grad, layer.scaling["default"] * weight @ first.T, **EXACT)
        torch.testing.assert_close(first.grad, layer.scaling["default"] * second.T @ weight, **EXACT)


def test_gates_of_a_swap_before_peft_are_frozen_by_it_and_those_of_a_later_swap_learn():
    later = swap("bert", with_adapter("bert"), "gated")
    assert all(gate.requires_grad for gate in gate_logits(later))
    first = adapt(swap("bert", copy.deepcopy(tiny_models.plain("bert")), "gated"), "bert")
    assert not any(gate.requires_grad for gate in gate_logits(first))


@each_mode
@torch.no_grad()
def test_a_saved_adapter_knows_nothing_of_the_swap(mode, tmp_path):
    model = with_adapter("bert")
    states = hidden_states("bert", model)
    model.save_pretrained(tmp_path / "plain")
    swap("bert", model, mode).save_pretrained(tmp_path / "swapped")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "swapped" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
    fresh = PeftModel.from_pretrained(copy.deepcopy(tiny_models.plain("bert")), tmp_path / "swapped").double().eval()
    torch.testing.assert_close(hidden_states("bert", fresh), states, **EXACT)
    onto_swapped = swap("bert", copy.deepcopy(tiny_models.plain("bert")), mode)
    onto_swapped = PeftModel.from_pretrained(onto_swapped, tmp_path / "swapped").double().eval()
    torch.testing.assert_close(hidden_states("bert", onto_swapped), hidden_states("bert", model), **EXACT)


@each_mode
@torch.no_grad()
def test_a_whole_state_dict_comes_back(mode):
    model = swap("bert", with_adapter("bert"), mode)
    fresh, state = with_adapter("bert"), model.state_dict()
    assert swap_as_saved(fresh, state, prefix="base_model.model.")
    fresh.load_state_dict(state)
    assert [layer.constant_heads for layer in swapped_layers(fresh)] == [
        layer.constant_heads for layer in swapped_layers(model)
    ]
    assert torch.equal(hidden_states("bert", fresh), hidden_states("bert", model))


@torch.no_grad()
def test_a_base_model_with_a_head():
    """PEFT keeps a copy of the head; the encoder below is the one that counts."""
    base = tiny_models.build("bert", auto=AutoModelForSequenceClassification)
    config = LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")
    model = get_peft_model(base, config, autocast_adapter_dtype=False).double().eval()
    randomize_adapter(model, "default", seed=1)
    want = swap("bert", merged(model), "partial")(**tiny_models.make_inputs("bert")).logits
    assert find_encoder(model) is base.bert
    torch.testing.assert_close(swap("bert", model, "partial")(**tiny_models.make_inputs("bert")).logits, want, **EXACT)


def prefix_tuned():
    base = copy.deepcopy(tiny_models.plain("bert"))
    return get_peft_model(base, PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)).double()


@each_mode
@torch.no_grad()
def test_a_prefix_is_refused(mode):
    """Prefix tuning hands its keys and values over as a cache."""
    model = swap("bert", prefix_tuned(), mode)
    with pytest.raises(PapaError, match="come from a cache or a prefix"):
        model(**tiny_models.make_inputs("bert"))
    assert restore_attention(model)(**tiny_models.make_inputs("bert")).last_hidden_state.isfinite().all()
