"""What swapped encoders do on a GPU, tried on the CPU: kernels are interpreted, three layers are one product."""

import copy
import pickle

import pytest
import torch
from unit.encoders.tiny_encoders import PARTIAL, build, make_constants, make_inputs, run

from papa_lightning import swap_attention
from papa_lightning.attention.functional import fused_mask
from papa_lightning.encoders import learn_constants
from papa_lightning.encoders.projections import joint

pytest.importorskip("triton")
MODULES = [
    "papa_lightning.attention.constant.matrices.usable",
    "papa_lightning.encoders.seam.layer.usable",
]


@pytest.fixture
def on_device(monkeypatch):
    def switch():
        for name in MODULES:
            monkeypatch.setattr(name, lambda *tensors: True)
        monkeypatch.setattr("papa_lightning.kernels.constant.product.faster", lambda value: True)
        monkeypatch.setattr(joint, "_pays", lambda device: True)
        monkeypatch.setattr(
            "papa_lightning.encoders.seam.forward.CurrentBatch.fused_mask",
            lambda self, mask, dtype: None if mask is None else fused_mask(mask, dtype),
        )

    return switch


def swapped(model_type, heads, kind="constant", **options):
    model = build(model_type, dtype=torch.float32)
    return swap_attention(model, kind, constants=make_constants(dtype=torch.float32), heads=heads, **options)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [("bert", "constant"), ("roberta", "constant"), ("bert", "gated"), ("bert", "shared"), ("distilbert", "folded")],
)
def test_the_same_by_kernels(model_type, kind, on_device):
    heads = PARTIAL if kind == "constant" else "all"
    model, inputs = swapped(model_type, heads, kind) if kind != "folded" else folded(model_type), make_inputs()
    batches = [inputs, {"input_ids": inputs["input_ids"]}]
    expected = [run(model, batch) for batch in batches]
    on_device()
    real = inputs["attention_mask"].bool()
    for batch, wanted in zip(batches, expected, strict=True):
        found = run(model, batch)
        torch.testing.assert_close(found[0][real], wanted[0][real], atol=2e-5, rtol=2e-5)


def folded(model_type):
    constants = make_constants(dtype=torch.float32)
    constants.values[:] = constants.values[:, :1]
    model = build(model_type, dtype=torch.float32)
    return swap_attention(model, "folded", constants=constants)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_the_same_gradients(model_type, learned, on_device):
    """RoBERTa's tokens have slots on a device, where no mask is looked at."""
    model, inputs = swapped(model_type, PARTIAL), make_inputs()
    if learned:
        learn_constants(model)

    def gradients():
        model.zero_grad()
        real = inputs["attention_mask"][..., None]
        (model(**inputs).last_hidden_state * real).square().sum().backward()
        return {name: own.grad.clone() for name, own in model.named_parameters() if own.grad is not None}

    expected = gradients()
    on_device()
    found = gradients()
    assert found.keys() == expected.keys()
    assert any("constants" in name for name in found) == learned
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, atol=1e-3, rtol=1e-3, msg=name)


def test_one_product_for_three_layers(monkeypatch):
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    model, inputs = swapped("bert", PARTIAL), make_inputs()
    sizes = []
    stock = torch.nn.functional.linear

    def counted(hidden, weight, bias=None):
        sizes.append(weight.shape[0])
        return stock(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counted)
    width = model.config.hidden_size // model.config.num_attention_heads

    def of_layers():
        sizes.clear()
        run(model, inputs)
        return [sizes[i] for i in range(len(sizes)) if sizes[i] not in (37,)]

    with torch.no_grad():
        frozen = of_layers()
    # Layer 0 has one dynamic head, layer 1 none, layer 2 all of them.
    assert frozen[0] == 2 * width + 32
    own = model.encoder.layer[0].attention.self
    handle = own.value.register_forward_hook(lambda *args: None)
    assert of_layers()[:3] == [width, width, 32]  # somebody looks at one of the three
    handle.remove()
    assert of_layers()[0] == 2 * width + 32
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(run(copied, inputs), run(model, inputs))
    model.train()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    sizes.clear()
    model(**inputs)
    assert sizes[0] == 2 * width + 32  # weights that learn, too


def test_changed_weights_are_joined_anew(monkeypatch):
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    model, inputs = swapped("bert", [(0, 1)]), make_inputs()
    run(model, inputs)
    with torch.no_grad():
        model.encoder.layer[0].attention.self.value.weight.mul_(2)
    fresh = swapped("bert", [(0, 1)])
    with torch.no_grad():
        fresh.encoder.layer[0].attention.self.value.weight.mul_(2)
    torch.testing.assert_close(run(model, inputs), run(fresh, inputs))


def test_a_query_alone_ends_the_joint_product(monkeypatch):
    """Its outputs for the others would be kept for nothing."""
    monkeypatch.setattr(joint, "_pays", lambda device: True)
    model, inputs = swapped("bert", [(0, 1)]), make_inputs()
    expected = run(model, inputs)
    attention = model.encoder.layer[0].attention.self
    with torch.no_grad():
        for _ in range(3):
            attention.query(torch.zeros(1, 2, 32))
    torch.testing.assert_close(run(model, inputs), expected)
    assert not attention.query.joint._suits


def test_masks_for_fused_kernels():
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    found = fused_mask(mask, torch.float32)
    assert found.shape == (2, 1, 5, 5)
    assert found.stride(0) % 16 == 0
    q = torch.randn(2, 3, 5, 8)
    with_it = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=found)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask[:, None, None].expand(2, 1, 5, 5))
    torch.testing.assert_close(with_it, wanted)


@pytest.mark.parametrize(("model_type", "kind"), [("roberta", "constant"), ("bert", "shared")])
def test_dropout_makes_no_matrices(model_type, kind, on_device, monkeypatch):
    """That its entries are dropped one by one, and divided, is tested with the kernel."""
    heads = PARTIAL if kind == "constant" else "all"
    model = build(model_type, dtype=torch.float32, attention_dropout=0.5, layers=1)
    constants = make_constants(layers=1, dtype=torch.float32)
    swap_attention(model, kind, constants=constants, heads=[(0, 1)] if kind == "constant" else heads)
    on_device()
    monkeypatch.setattr(
        "papa_lightning.attention.constant.matrices.normalized_constants",
        lambda *args: pytest.fail("an explicit matrix"),
    )
    inputs, attention = make_inputs(), model.encoder.layer[0].attention.self
    seen = []
    attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    model.eval()
    run(model, inputs)
    width = 8 if kind == "constant" else 32
    first = 8 if kind == "constant" else 0
    attention.train()  # of all dropouts, that of attention alone
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        run(model, inputs)
    real = inputs["attention_mask"].bool()
    plain, *dropped = [one[real][:, first : first + width] for one in seen]
    assert torch.equal(dropped[0], dropped[-1])
    assert not torch.allclose(dropped[0], dropped[1])
    assert not torch.allclose(dropped[0], plain)
