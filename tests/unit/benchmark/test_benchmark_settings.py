"""Settings of a benchmark: the sizes that they mean, and what they refuse."""

import pytest
import torch

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, StudyTiming, run_benchmark
from papa_lightning.benchmark.backends import BACKENDS, check_backend, compiling
from papa_lightning.benchmark.settings import read_input
from papa_lightning.benchmark.tables import input_name, variant_name
from papa_lightning.errors import PapaError


def numbers(settings):
    return [(size.batch, size.length, size.hidden, size.layers, size.heads) for size in settings.sizes()]


def test_all_combinations():
    settings = BenchmarkSettings(inputs=["2x4", "1x8"], shape=ShapeSettings(hidden=[8, 16], layers=[1, 2], heads=[4]))
    found = numbers(settings)
    assert found[:3] == [(2, 4, 8, 1, 4), (1, 8, 8, 1, 4), (2, 4, 16, 1, 4)]
    assert len(set(found)) == len(found) == 8


def test_one_list_at_a_time():
    shape = ShapeSettings(hidden=[8], layers=[1, 2], heads=[4, 8])
    found = numbers(BenchmarkSettings(inputs=["2x4", "1x8"], shape=shape, vary="one"))
    assert found == [(2, 4, 8, 1, 4), (1, 8, 8, 1, 4), (2, 4, 8, 2, 4), (2, 4, 8, 1, 8)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": ShapeSettings(hidden=[384], heads=[12, 5])}, r"shape.heads has 5, which does not divide .* 384"),
        ({"shape": ShapeSettings(hidden=[0])}, r"shape.hidden is 0, but must be a whole number from 1"),
        ({"shape": ShapeSettings(layers=[])}, r"shape.layers is empty"),
        ({"inputs": []}, r"inputs is empty"),
        ({"inputs": ["16"]}, r"inputs has '16', but an input is sequences x tokens, such as 16x128"),
        ({"inputs": ["0x4"]}, r"inputs has '0x4'"),
        ({"kinds": ["nope"]}, r"kinds is 'nope', but must be one of 'stock', 'constant'"),
        ({"backends": ["cuda"]}, r"backends is 'cuda', but must be one of 'eager', 'sdpa', 'flash', 'compile'"),
        ({"work": ["optimizer"]}, r"work is 'optimizer', but must be one of 'forward', 'training'"),
        ({"padding": [0.1, True]}, r"padding is True, but must be a share"),
        ({"padding": []}, r"padding is empty: pass at least one"),
        ({"sections": {"a": 3}}, r"sections has 'a', which is 3, but must be a map of settings"),
        (
            {"sections": {"a": {"input": ["1x4"]}}},
            r"sections has 'a' with 'input', but a section may have shape, inputs",
        ),
        ({"sections": {"a": {"device": "cpu"}}}, r"sections has 'a' with 'device', but a section may have"),
        ({"sections": {"a": {"shares": [2]}}}, r"sections has 'a': shares has 2, but a share of heads is from 0 to 1"),
        ({"sections": {"a": {"shares": 1}}}, r"sections has 'a', of which something has a wrong name or type"),
        ({"sections": {"a": {"shape": {"width": [8]}}}}, r"sections has 'a', of which something has a wrong name"),
        ({"shares": [1.5]}, r"shares has 1.5, but a share of heads is from 0 to 1"),
        ({"options": {"compact": {}}}, r"options is 'compact', but must be one of 'constant'"),
        ({"dtype": "int8"}, r"dtype is 'int8'"),
        ({"vary": "some"}, r"vary is 'some'"),
        ({"placement": "top"}, r"placement is 'top'"),
        ({"padding": 0.5}, r"padding is 0.5, but must be a share of the tokens from 0 to below 0.5"),
        ({"repeats": 6}, r"repeats is 6, but must be a whole number from 7"),
        ({"warmup": -1}, r"warmup is -1"),
        ({"threads": 0}, r"threads is 0"),
        ({"batches": True}, r"batches is True"),
        ({"encoder": "x", "shape": ShapeSettings(hidden=[8])}, r"encoder is 'x', which has its own sizes"),
    ],
)
def test_refused(changed, message):
    with pytest.raises(PapaError, match=message):
        BenchmarkSettings(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"device": "nowhere"}, r"device is 'nowhere'"),
        ({"shape": ShapeSettings(type="nope", hidden=[8], heads=[2])}, r"shape.type is 'nope', of which no encoder"),
        ({"shape": ShapeSettings(type="vit", hidden=[8], heads=[2])}, r"vit, which reads images"),
        ({"backends": ["flash"], "padding": [0.1, 0.3]}, r"backends has 'flash', whose kernel cannot mask padding"),
        ({"backends": ["graph"]}, r"backends has 'graph', a CUDA graph, but device is cpu: leave it out"),
        ({"sections": {"a": {"backends": ["graph"]}}}, r"backends has 'graph', a CUDA graph"),
    ],
)
def test_refused_where_it_runs(changed, message):
    with pytest.raises(PapaError, match=message):
        run_benchmark(BenchmarkSettings(**({"device": "cpu"} | changed)), progress=False)


def test_flash_on_cuda_is_for_half_precision():
    with pytest.raises(PapaError, match=r"pass dtype bfloat16 or float16"):
        check_backend("flash", "float32", torch.device("cuda"), padded=False)
    check_backend("flash", "bfloat16", torch.device("cuda"), padded=False)


def test_a_compiler_that_does_not_work_is_one_line():
    from torch._dynamo.exc import BackendCompilerFailed

    def broken():
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler\nfound"), None)

    message = r"torch.compile does not work here: .*no compiler found"
    with pytest.raises(PapaError, match=message), compiling([BACKENDS["compile"]]):
        broken()
    with pytest.raises(BackendCompilerFailed), compiling([BACKENDS["sdpa"]]):
        broken()


def test_an_input_is_read_and_a_variant_named():
    assert read_input("16x128") == (16, 128)
    assert variant_name("constant", 0.5, "sdpa") == "constant 50 %"
    assert variant_name("stock", None, "compile") == "stock, compile"
    assert variant_name("learned", 1.0, "graph", "training") == "learned 100 %, graph, training"
    assert input_name(16, 128, 0.3, " tokens") == "16 x 128 tokens, 30 % padding"


def test_several_shares_of_padding_are_sizes_of_their_own():
    settings = BenchmarkSettings(inputs=["2x4", "1x8"], padding=[0, 0.3], shape=ShapeSettings(hidden=[8], heads=[1]))
    found = [(size.batch, size.padding) for size in settings.sizes()]
    assert found == [(2, 0), (1, 0), (2, 0.3), (1, 0.3)]
    assert [size.padding for size in BenchmarkSettings(padding=0.2).sizes()] == [0.2]


def test_a_section_differs_in_what_it_names():
    shape = ShapeSettings(hidden=[8, 16], heads=[2])
    sections = {"long": {"inputs": ["1x64"], "shape": {"hidden": [32]}}, "same": {}}
    settings = BenchmarkSettings(shape=shape, kinds=["gated"], sections=sections, study=StudyTiming())
    found = settings.by_section()
    assert list(found) == ["long", "same"]
    assert (found["long"].shape.hidden, found["long"].shape.heads, list(found["long"].inputs)) == ([32], [2], ["1x64"])
    assert (list(found["long"].kinds), found["long"].study) == (["gated"], None)
    assert found["same"].shape == shape


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": 0}, r"study.rows is 0, but must be a whole number from 1"),
        ({"shares": [0.0]}, r"study.shares has 0.0, but a share of its heads is above 0"),
        ({"shares": []}, r"study.shares is empty"),
    ],
)
def test_a_study_that_cannot_be_timed(changed, message):
    with pytest.raises(PapaError, match=message):
        StudyTiming(**changed)


def test_an_encoder_and_the_sizes_that_a_command_line_fills_in():
    assert BenchmarkSettings(encoder="some/encoder", shape=ShapeSettings(hidden=[384], layers=[12], heads=[12])).sizes()
    with pytest.raises(PapaError, match="which has its own sizes: leave out encoder, or shape"):
        BenchmarkSettings(encoder="some/encoder", shape=ShapeSettings(layers=[6]))
