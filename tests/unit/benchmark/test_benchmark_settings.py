"""Settings of a benchmark: the sizes that they mean, and what they refuse."""

import pytest

from papa_lightning.benchmark import BenchmarkSettings, ShapeSettings, run_benchmark
from papa_lightning.benchmark.settings import read_input
from papa_lightning.benchmark.tables import variant_name
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
        ({"backends": ["flash"], "padding": 0.1}, r"backends has 'flash', whose kernel cannot mask padding"),
    ],
)
def test_refused_where_it_runs(changed, message):
    with pytest.raises(PapaError, match=message):
        run_benchmark(BenchmarkSettings(**({"device": "cpu"} | changed)), progress=False)


def test_flash_on_cuda_is_for_half_precision():
    import torch

    from papa_lightning.benchmark.cases import check_backend

    with pytest.raises(PapaError, match=r"pass dtype bfloat16 or float16"):
        check_backend("flash", torch.float32, torch.device("cuda"), padded=False)
    check_backend("flash", torch.bfloat16, torch.device("cuda"), padded=False)


def test_a_compiler_that_does_not_work_is_one_line():
    from torch._dynamo.exc import BackendCompilerFailed

    from papa_lightning.benchmark.cases import BACKENDS, compiling

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
