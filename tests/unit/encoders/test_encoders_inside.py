"""Encoders inside other things: compiled, in a sentence-transformers model, in any module."""

import copy

import pytest
import torch
from conformance import tiny_models
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import BertTokenizer
from unit.encoders.tiny_encoders import LENGTH, PARTIAL, build, make_constants, written_out

from papa_lightning import calibrate, gate_logits, restore_attention, swap_attention
from papa_lightning.encoders import find_encoder, load_constants, observe_attention, swapped_layers
from papa_lightning.errors import UnsupportedEncoderError

EXACT = {"atol": 1e-10, "rtol": 1e-10}
COMPILED = ["bert", "modernbert", "deberta-v2-shared", "albert", "gpt2"]
each_mode = pytest.mark.parametrize("mode", tiny_models.MODES)


class Backend:
    """A compiler that counts the graphs that it is given and leaves them as they are."""

    def __init__(self):
        torch._dynamo.reset()
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward

    def new(self, run):
        """How many graphs one run adds, and what it returned."""
        before = self.graphs
        result = run()
        return self.graphs - before, result


def hidden_states(name, model, batch=4):
    options = {"use_cache": False} if tiny_models.CASES[name].kind == "causal" else {}
    return model(**tiny_models.make_inputs(name, batch=batch), **options).last_hidden_state


# Compiling takes seconds, so every mode with one family, and every family in the mode that has both kinds of heads; and
# what was compiled after the swap is a test in test_swapped_forward.py.
@pytest.mark.no_cover  # which doubles the time of torch's compiler; it runs no line of ours
@pytest.mark.parametrize(("name", "mode"), [("bert", "gated"), *((name, "partial") for name in COMPILED)])
@torch.no_grad()
def test_swapped_after_it_was_compiled(name, mode):
    """One graph without breaks for each change of mode, and none for a mode that was there before."""
    backend, model = Backend(), copy.deepcopy(tiny_models.plain(name))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    real = tiny_models.make_mask(name).bool()  # padding attends elsewhere when somebody watches

    def check(most, want=None):
        number, found = backend.new(lambda: hidden_states(name, compiled))
        assert number <= most
        torch.testing.assert_close(found, hidden_states(name, model), **EXACT)
        assert backend.new(lambda: hidden_states(name, compiled))[0] == 0
        if want is not None:
            torch.testing.assert_close(found[real], want[real], **EXACT)
        return found

    def swap(**options):
        kind, heads = ("gated", "all") if mode == "gated" else ("constant", tiny_models.heads_of(name, mode))
        assert swap_attention(compiled, kind, heads=heads, **options) is compiled

    plain = check(1) if name == "bert" else hidden_states(name, model)
    swap(max_length=tiny_models.LENGTH)
    if name == "bert":
        check(1, plain)
    load_constants(compiled, tiny_models.make_constants(name))
    constant = check(1)
    assert not torch.allclose(constant[real], plain[real])
    with observe_attention(compiled, [lambda attention, mask: None] * tiny_models.LAYERS):
        check(1, plain)
    check(0, constant)
    if name == "bert":
        restore_attention(compiled)
        check(1, plain)
        swap(constants=tiny_models.make_constants(name))
        check(1, constant)


@pytest.mark.no_cover
@torch.no_grad()
def test_compiled_in_place():
    """``encoder.compile()``: the model itself, so that calibration runs compiled too."""
    backend, plain = Backend(), tiny_models.plain("bert")
    model, batches = copy.deepcopy(plain), [tiny_models.make_inputs("bert")]
    model.compile(backend=backend)
    found = calibrate(model, batches, tiny_models.LENGTH).values
    assert backend.graphs > 0
    torch.testing.assert_close(found, calibrate(plain, batches, tiny_models.LENGTH).values, **EXACT)
    tiny_models.swap("bert", model, "partial")
    want = hidden_states("bert", tiny_models.swapped("bert", "partial"))
    torch.testing.assert_close(hidden_states("bert", model), want, **EXACT)
    torch.testing.assert_close(hidden_states("bert", restore_attention(model)), hidden_states("bert", plain), **EXACT)


def test_calibration_of_a_compiled_encoder():
    """The wrapped encoder runs as it is."""
    backend = Backend()
    compiled = torch.compile(copy.deepcopy(tiny_models.plain("bert")), backend=backend)
    want = tiny_models.calibrated("bert", tiny_models.plain("bert"))
    assert torch.equal(tiny_models.calibrated("bert", compiled).values, want.values)
    assert backend.graphs == 0
    assert not any("papa" in key for key in compiled.state_dict())


@pytest.mark.no_cover
def test_gradients_through_a_compiled_encoder():
    """Of gates too; some heads constant are trained compiled in test_precision_and_compile.py."""
    explicit = tiny_models.swapped("bert", "gated")
    hidden_states("bert", explicit).square().sum().backward()
    model = tiny_models.swapped("bert", "gated")
    hidden_states("bert", torch.compile(model, backend="aot_eager", fullgraph=True)).square().sum().backward()
    for (name, parameter), (_, other) in zip(model.named_parameters(), explicit.named_parameters(), strict=True):
        if "pooler" in name:  # its output is not used: no gradient, or zeros
            continue
        assert (parameter.grad is None) == (other.grad is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, **EXACT)


@pytest.mark.no_cover
@torch.no_grad()
def test_compiled_with_adapters():
    backend, model = Backend(), copy.deepcopy(tiny_models.plain("bert"))
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model = get_peft_model(model, config, autocast_adapter_dtype=False).double().eval()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    hidden_states("bert", compiled)
    tiny_models.swap("bert", compiled, "partial")
    number, found = backend.new(lambda: hidden_states("bert", compiled))
    assert number == 1
    torch.testing.assert_close(found, hidden_states("bert", model), **EXACT)


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat", "on", "the", "mat", "dog", "ran", "far"]
SENTENCES = ["a cat sat", "the dog ran far on the mat", "the mat", "a dog on a mat"]


@pytest.fixture
def sentences(tmp_path):
    """A sentence-transformers model, made the way users make theirs: a folder with a BERT and its tokenizer."""
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(tmp_path)
    build("bert").save_pretrained(tmp_path)
    encoder = Transformer(str(tmp_path), max_seq_length=LENGTH)
    return SentenceTransformer(modules=[encoder, Pooling(32)], device="cpu").double()


def embed(model):
    return torch.as_tensor(model.encode(SENTENCES, convert_to_tensor=True))


def explicit_embedding(model, heads, gates=None):
    """By the constants written out in a plain model; all sentences are one batch, so they have one mask."""
    plain = find_encoder(model)
    mask = torch.as_tensor(model.preprocess(SENTENCES)["attention_mask"])
    order = [SENTENCES.index(one) for one in sorted(SENTENCES, key=len, reverse=True)]  # encode sorts them so
    with written_out(plain, make_constants(), heads, mask[order], gates):
        return embed(model)


@each_mode
def test_sentence_transformers(sentences, mode):
    plain = embed(sentences)
    heads = PARTIAL if mode == "partial" else [(layer, head) for layer in range(3) for head in range(4)]
    gates = torch.randn(3, 4, dtype=torch.float64) if mode == "gated" else None
    want = explicit_embedding(sentences, heads, gates)
    assert torch.equal(embed(sentences), plain)
    swap_attention(
        sentences,
        "gated" if mode == "gated" else "constant",
        constants=make_constants(),
        heads="all" if mode == "gated" else heads,
    )
    if gates is not None:
        with torch.no_grad():
            for parameter, values in zip(gate_logits(sentences), gates, strict=True):
                parameter.copy_(values)
    torch.testing.assert_close(embed(sentences), want, **EXACT)
    assert not torch.allclose(want, plain)
    assert restore_attention(sentences) is sentences
    assert torch.equal(embed(sentences), plain)


def test_calibration_on_what_sentence_transformers_tokenizes(sentences):
    batches = [sentences.preprocess(SENTENCES[:2]), sentences.preprocess(SENTENCES[2:])]
    found = calibrate(sentences, batches, LENGTH)
    encoder = build(vocab_size=40)
    encoder.load_state_dict(find_encoder(sentences).state_dict())
    names = ("input_ids", "attention_mask", "token_type_ids")
    plain = [{name: batch[name] for name in names} for batch in batches]
    torch.testing.assert_close(found.values, calibrate(encoder, plain, LENGTH).values, **EXACT)
    assert found.metadata["sequences"] == len(SENTENCES)
    swap_attention(sentences, "constant", constants=found)
    assert embed(sentences).isfinite().all()


def test_a_restored_sentence_transformer_is_saved_without_a_trace(sentences, tmp_path):
    plain = embed(sentences)
    restore_attention(swap_attention(sentences, "constant", constants=make_constants())).save(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu").double()
    torch.testing.assert_close(embed(loaded), plain, **EXACT)


class Holder(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def with_lora(model):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"]))


def with_sentences(model):
    return SentenceTransformer(modules=[_bare_module(model), Pooling(32)], device="cpu")


def _bare_module(model):
    """The module of sentence-transformers around a model, without a folder to load it from."""
    module = nn.Module()
    module.auto_model = model
    return module


WRAPPED = {
    "peft": with_lora,
    "compiled": torch.compile,
    "sentence-transformers": with_sentences,
    "holder": lambda model: Holder(inner=Holder(model=model)),
    "compiled peft": lambda model: torch.compile(with_lora(model)),
    "peft of compiled": lambda model: with_lora(torch.compile(model)),
    "twice": lambda model: Holder(student=model, teacher=Holder(same=model)),
    "list": lambda model: nn.ModuleList([nn.Linear(2, 2), model]),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_the_encoder_is_found_and_swapped_inside(wrapper):
    model = build()
    wrapped = WRAPPED[wrapper](model)
    assert find_encoder(wrapped) is model
    assert find_encoder(Holder(deep=Holder(encoder=wrapped), classifier=nn.Linear(2, 2))) is model
    keys = list(wrapped.state_dict())
    assert swap_attention(wrapped, "constant", constants=make_constants()) is wrapped
    assert len(swapped_layers(wrapped)) == 3
    assert restore_attention(wrapped) is wrapped
    assert list(wrapped.state_dict()) == keys


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_two_wrapped_encoders_are_ambiguous(wrapper):
    pair = Holder(query=WRAPPED[wrapper](build()), passage=WRAPPED[wrapper](build(seed=1)))
    with pytest.raises(
        UnsupportedEncoderError, match=r"Holder holds several encoders \(query.*, passage.*\): name one"
    ):
        swap_attention(pair, "constant", constants=make_constants())


def test_distributed_data_parallel_is_refused():
    """Made without its __init__, which would want a process group."""
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = with_lora(build())
    with pytest.raises(UnsupportedEncoderError, match=r"DistributedDataParallel.*pass the encoder itself"):
        swap_attention(wrapped, "constant", constants=make_constants())
    assert not swapped_layers(wrapped.module)
