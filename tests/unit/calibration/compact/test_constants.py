"""Compact constants: the fit against a solver of SciPy, its stated error, the choice of forms, and the file."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.optimize import nnls
from transformers import GPT2Config, GPT2Model
from unit.encoders.tiny_encoders import HEADS, LAYERS, LENGTH, build, make_inputs

from papa_lightning import AttentionConstants, CompactConstants, PapaError, calibrate, swap_attention
from papa_lightning.attention import Reach
from papa_lightning.attention.compact.functional import expand_profile
from papa_lightning.calibration.compact.fit import fit_low_rank, infer_reach, profile_rows, row_bands
from papa_lightning.encoders import load_constants, swap_as_saved
from papa_lightning.errors import ConstantsFileError


def make_average(length=9, layers=2, heads=3, seed=0, holes=True):
    """Spiky matrices, so that the bound of 0 is met, and counts that differ; the last position is never seen."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(layers, heads, length, length, generator=generator, dtype=torch.float64) ** 6
    counts = torch.randint(1, 50, (length, length), generator=generator).double()
    counts = counts + counts.T
    if holes:
        counts[-1] = counts[:, -1] = 0
        values[..., -1, :] = values[..., -1] = 0
    return AttentionConstants(values, counts, {"data": "made up"})


def profile_average(length=9, width=2):
    generator = torch.Generator().manual_seed(0)
    profile = torch.rand(3, 2 * width + 1, generator=generator, dtype=torch.float64)
    columns = torch.rand(3, length, generator=generator, dtype=torch.float64)
    return AttentionConstants(expand_profile(profile, columns)[None] / 2, torch.ones(length, length))


@pytest.mark.parametrize("width", [1, 3, 8, 20])
@pytest.mark.parametrize("reach", [Reach(), Reach(after=0), Reach(before=4, after=4)], ids=str)
def test_the_fit_is_that_of_least_squares(reach, width):
    average = make_average()
    average = replace(average, values=reach.cut(average.values))
    compact = CompactConstants.fit(average, width=width)
    length, width = 9, min(width, 8)
    pairs = [(i, j) for i in range(length) for j in range(length) if average.pair_counts[i, j] > 0]
    pairs = [pair for pair in pairs if reach.allowed(length)[pair]]
    design = np.zeros((len(pairs), 2 * width + 1 + length))
    for row, (i, j) in enumerate(pairs):
        design[row, 2 * width + 1 + j] = 1
        if abs(i - j) <= width:
            design[row, width + i - j] = 1
    weights = np.sqrt([float(average.pair_counts[pair]) for pair in pairs])
    for layer, (values, own) in enumerate(zip(average.values, compact.layers, strict=True)):
        assert own.reach == reach
        assert own.profile.shape == (3, 2 * width + 1)
        for head in range(3):
            target = np.array([float(values[head][pair]) for pair in pairs])
            solution, loss = nnls(weights[:, None] * design, weights * target)
            expected = loss / np.linalg.norm(weights * target)
            assert float(compact.errors[layer, head]) == pytest.approx(expected, rel=1e-6)
            fitted = [float(own.expand()[head][pair]) for pair in pairs]
            np.testing.assert_allclose(fitted, design @ solution, atol=1e-5)
    assert (solution == 0).any()


def test_what_has_the_form_is_found_again():
    average = profile_average()
    compact = CompactConstants.fit(average, width=2)
    assert compact.errors.max() < 1e-7
    torch.testing.assert_close(compact.layers[0].expand(), average.values[0], atol=1e-7, rtol=0)
    assert compact.num_elements == 3 * (5 + 9)
    assert compact.metadata["compact"] == {"width": 2, "rank": 16, "tolerance": None}


def test_columns_that_were_never_seen_have_the_median_weight():
    compact = CompactConstants.fit(make_average(), width=2)
    layer = compact.layers[0]
    often = make_average().pair_counts.sum(dim=0)
    expected = layer.columns[:, often >= often.max() / 2].median(dim=1).values
    assert torch.equal(layer.columns[:, -1], layer.beyond)
    assert torch.equal(layer.beyond, expected)


def test_forms_within_the_tolerance():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.rand(2, 9, 2, generator=generator, dtype=torch.float64) ** 3 / 1.5
    spikes = torch.rand(9, 9, generator=generator, dtype=torch.float64) ** 8
    matrices = torch.stack([spikes, left @ right.mT, profile_average().values[0, 0], spikes.flip(0)])
    average = AttentionConstants(matrices[None], torch.ones(9, 9))
    profiles = CompactConstants.fit(average, width=2, rank=2)
    assert profiles.layers[0].forms == ("profile",) * 4
    compact = CompactConstants.fit(average, width=2, rank=2, tolerance=0.05)
    assert compact.layers[0].forms == ("dense", "low_rank", "profile", "dense")
    torch.testing.assert_close(compact.layers[0].expand()[[0, 3]], matrices[[0, 3]])
    wrong = (compact.layers[0].expand() - matrices).norm(dim=(1, 2)) / matrices.norm(dim=(1, 2))
    torch.testing.assert_close(compact.errors[0], wrong, atol=1e-9, rtol=1e-6)
    assert 0 < compact.errors[0, 1] <= 0.05
    assert CompactConstants.fit(average, width=2, rank=5, tolerance=0.05).layers[0].forms[1] == "dense"  # 2 r > T
    causal = replace(average, values=average.values.tril())
    assert "low_rank" not in CompactConstants.fit(causal, width=2, rank=2, tolerance=0.05).layers[0].forms


def test_low_rank_factors_are_no_worse_than_half_the_best():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 12, 12, generator=generator, dtype=torch.float64) ** 2
    left, right = fit_low_rank(values, torch.ones(12, 12), 4)
    assert left.min() >= 0
    assert right.min() >= 0
    best = torch.linalg.svdvals(values)[:, 4:].norm(dim=1)  # without the bound at 0
    assert ((values - left @ right.mT).norm(dim=(1, 2)) < 1.5 * best).all()
    weights = torch.ones(12, 12)
    weights[3] = 1000.0
    left, right = fit_low_rank(values, weights, 4)
    assert (values - left @ right.mT)[:, 3].abs().max() < 0.02


def test_bands_and_rows():
    matrix = torch.arange(30.0).view(5, 6)
    found = row_bands(matrix[1:4], 1, 2)
    expected = [[matrix[i, i - o] if 0 <= i - o < 6 else 0.0 for o in range(-2, 3)] for i in range(1, 4)]
    assert found.tolist() == torch.tensor(expected).tolist()
    profile, columns = torch.rand(2, 7), torch.rand(2, 8)
    rows = torch.tensor([0, 3, 7])
    for reach in (Reach(), Reach(after=0), Reach(before=1, after=2)):
        assert torch.equal(
            profile_rows(profile, columns, rows, reach), expand_profile(profile, columns, reach)[:, rows]
        )


def test_the_reach_shows_in_the_constants():
    counts = torch.ones(6, 6)
    ones = torch.ones(2, 6, 6)
    assert infer_reach(ones, counts) == Reach()
    assert infer_reach(ones.tril().triu(-2), counts) == Reach(before=2, after=0)
    counts[4:] = counts[:, 4:] = 0
    assert infer_reach(ones * (counts > 0), counts) == Reach()
    assert infer_reach(ones * 0, counts) == Reach()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"width": True}, "width is True"),
        ({"rank": 1.5}, "rank is 1.5"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"tolerance": float("nan")}, "tolerance is nan"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(PapaError, match=message):
        CompactConstants.fit(make_average(), **arguments)


def test_bad_constants():
    with pytest.raises(PapaError, match="constants is a Tensor"):
        CompactConstants.fit(torch.ones(1, 1, 3, 3))
    with pytest.raises(PapaError, match="between 0 and 1"):
        CompactConstants.fit(AttentionConstants(-torch.ones(1, 1, 3, 3), torch.ones(3, 3)))
    compact = CompactConstants.fit(make_average())
    with pytest.raises(ConstantsFileError, match="layers have"):
        replace(compact, layers=())
    with pytest.raises(ConstantsFileError, match="errors has shape"):
        replace(compact, errors=torch.zeros(3))
    for bad in (float("nan"), -1.0):
        broken = copy.deepcopy(compact.layers)
        broken[1].columns[0, 0] = bad
        with pytest.raises(ConstantsFileError, match="columns of layer 1"):
            replace(compact, layers=broken)


@pytest.mark.parametrize("tolerance", [None, 0.3])
def test_a_swapped_encoder_computes_with_what_was_fitted(tolerance):
    model, inputs = build("bert"), make_inputs()
    average = calibrate(model, [inputs], LENGTH)
    compact = CompactConstants.fit(average, width=2, rank=3, tolerance=tolerance)
    if tolerance is not None:
        assert len({form for layer in compact.layers for form in layer.forms}) == 3
    heads = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    same = copy.deepcopy(model)
    swap_attention(
        same,
        "constant",
        constants=replace(average, values=torch.stack([x.expand() for x in compact.layers])),
        heads=heads,
    )
    swap_attention(model, "compact", constants=compact, heads=heads)
    with torch.no_grad():
        expected, found = same(**inputs).last_hidden_state, model(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    other = build("bert", seed=1)
    assert swap_as_saved(other, model.state_dict())
    other.load_state_dict(model.state_dict())
    waiting = swap_attention(build("bert"), "compact", max_length=LENGTH, heads=heads)
    load_constants(waiting, compact)
    with torch.no_grad():
        assert torch.equal(other(**inputs).last_hidden_state, found)
        assert torch.equal(waiting(**inputs).last_hidden_state, found)


def test_longer_sequences_through_an_encoder():
    model = build("bert")
    compact = CompactConstants.fit(calibrate(model, [make_inputs(length=8)], 8), width=2).extend(LENGTH)
    assert (compact.max_length, compact.metadata["extended_from"]) == (LENGTH, 8)
    swap_attention(model, "compact", constants=compact)
    with torch.no_grad():
        assert model(**make_inputs()).last_hidden_state.isfinite().all()


def test_the_encoder_must_fit():
    compact = CompactConstants.fit(calibrate(build("bert"), [make_inputs()], LENGTH))
    with pytest.raises(ConstantsFileError, match="another architecture"):
        compact.check(build("electra"))
    with pytest.raises(ConstantsFileError, match="max_length 10, but max_length is 9"):
        compact.check(build("bert"), 9)
    causal = GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=LAYERS, n_head=HEADS, n_positions=12))
    with pytest.raises(ConstantsFileError, match=r"layer 0 were fitted for Reach\(before=None, after=None\).*after=0"):
        replace(compact, metadata={}).check(causal)


def test_the_file_gives_everything_back(tmp_path):
    average = make_average()
    average = replace(average, values=torch.cat([average.values[:1], average.values[1:].tril()]))
    compact = CompactConstants.fit(average, width=2, rank=2, tolerance=0.7)
    loaded = CompactConstants.load(compact.save(tmp_path / "new" / "compact.safetensors"))
    assert loaded.metadata == compact.metadata
    assert torch.equal(loaded.errors, compact.errors)
    for one, other in zip(loaded.layers, compact.layers, strict=True):
        assert (one.forms, one.reach) == (other.forms, other.reach)
        assert torch.equal(one.expand(), other.expand())
        assert torch.equal(one.beyond, other.beyond)
    assert loaded.layers[1].reach == Reach(after=0)
    assert len({form for layer in loaded.layers for form in layer.forms}) > 1
    with pytest.raises(ConstantsFileError, match="max_length 9, but max_length is 8"):
        CompactConstants.load(tmp_path / "new" / "compact.safetensors", max_length=8)


def test_files_of_other_sorts(tmp_path):
    average = make_average()
    compact = CompactConstants.fit(average)
    full, small = average.save(tmp_path / "full"), compact.save(tmp_path / "small")
    with pytest.raises(ConstantsFileError, match="not one of compact constants"):
        CompactConstants.load(full)
    with pytest.raises(ConstantsFileError, match="not one of attention constants"):
        AttentionConstants.load(small)
    with pytest.raises(ConstantsFileError, match=r"does not exist.*papa compact"):
        CompactConstants.load(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["forms", "reaches", "errors", "layers.1.columns", "layers.0.beyond"])
def test_damaged_files(name, tmp_path):
    path = CompactConstants.fit(make_average()).save(tmp_path / "compact")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConstantsFileError, match="is damaged"):
        CompactConstants.load(path)
    path.write_bytes(whole)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]  # as if by another program
    safetensors.torch.save_file(tensors, path, metadata=metadata)
    CompactConstants.load(path)
    missing = {key: tensor for key, tensor in tensors.items() if key != name}
    numbers, shape = tensors[name].float(), tensors[name].shape
    others = [
        torch.full((1,), 77),
        tensors[name][:1],
        torch.full_like(numbers, float("nan")),
        numbers - 9,
        numbers[None],
    ]
    others += [numbers.to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.bool)]
    others += [torch.full(shape, 9, dtype=torch.int32), torch.full(shape, 200, dtype=torch.uint8)]
    contents = [missing, tensors | {"more": torch.ones(1)}, tensors | {"layers.7.beyond": torch.ones(1)}]
    for content in contents + [tensors | {name: other} for other in others]:
        safetensors.torch.save_file({key: one.clone() for key, one in content.items()}, path, metadata=metadata)
        with pytest.raises(ConstantsFileError, match="is damaged"):
            CompactConstants.load(path)
