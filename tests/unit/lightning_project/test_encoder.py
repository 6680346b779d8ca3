import pytest
from projects import Classifier, tiny_config
from torch import nn
from transformers import BertForSequenceClassification, BloomConfig, BloomModel

from papa_lightning import PapaError
from papa_lightning.callbacks import discover_encoder


class Holder(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_finds_the_encoder_below_a_task_head() -> None:
    model = BertForSequenceClassification(tiny_config())
    assert discover_encoder(Holder(inner=Holder(model=model))) is model.bert


def test_the_module_may_be_the_model() -> None:
    model = BertForSequenceClassification(tiny_config())
    assert discover_encoder(model) is model.bert


def test_unsupported_models_beside_the_encoder_do_not_count() -> None:
    module = Holder(
        decoder=BloomModel(BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=9)), bert=Classifier().bert
    )
    assert discover_encoder(module) is module.bert


def test_several_encoders_must_be_named() -> None:
    module = Holder(query=Classifier().bert, passage=Holder(bert=Classifier().bert))
    with pytest.raises(PapaError, match=r"several encoders \(query, passage.bert\): name one"):
        discover_encoder(module)
    assert discover_encoder(module, "passage.bert") is module.passage.bert


def test_no_model_at_all() -> None:
    with pytest.raises(PapaError, match="Linear holds no transformers PreTrainedModel"):
        discover_encoder(nn.Linear(2, 2))


def test_only_an_unsupported_model() -> None:
    module = Holder(decoder=BloomModel(BloomConfig(n_layer=1, n_head=2, hidden_size=8, vocab_size=9)))
    with pytest.raises(PapaError, match=r"unknown type 'bloom'.*Supported are: albert"):
        discover_encoder(module)


def test_named_attribute_that_is_no_model() -> None:
    with pytest.raises(PapaError, match="Linear holds no transformers PreTrainedModel"):
        discover_encoder(Classifier(), "classifier")
