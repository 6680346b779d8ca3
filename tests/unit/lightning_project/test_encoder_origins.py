"""Constants from a file against the data of the run: tokenizer, layout, preset and length."""

import warnings

import lightning as L
import pytest
from projects import LENGTH, Classifier, loaders, trainer

from papa_lightning import ConstantAttention, PapaError, calibrate
from papa_lightning.calibration import ConstantsMismatchWarning

MADE_WITH = {"tokenizer": "mini", "layout": "segment", "preset": "default", "data": "sst2 train"}


class Data(L.LightningDataModule):
    def __init__(self, **facts):
        super().__init__()
        facts = {
            "tokenizer_name": "mini",
            "layout": "segment",
            "preset": "default",
            "max_length": LENGTH,
        } | facts
        vars(self).update(facts)

    def train_dataloader(self):
        return loaders()["train_dataloaders"]

    def val_dataloader(self):
        return loaders()["val_dataloaders"]


@pytest.fixture
def fit(tmp_path):
    def run(metadata=MADE_WITH, **facts):
        module = Classifier()
        batches = loaders()["val_dataloaders"]
        path = calibrate(module.bert, batches, max_length=LENGTH, metadata=metadata).save(tmp_path / "c.safetensors")
        trainer(ConstantAttention(constants=str(path))).fit(module, datamodule=Data(**facts))

    return run


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        ({"layout": "plain"}, "layout 'segment', but the data have 'plain'"),
        ({"preset": "reference"}, "preset 'default', but the data have 'reference'"),
        ({"tokenizer_name": "other"}, "tokenizer 'mini', but the data have 'other'"),
        ({"tokenizer_name": "other", "layout": "plain"}, "tokenizer 'mini'.* 'other'; layout 'segment'.* 'plain'"),
    ],
)
def test_other_tokenizer_or_layout_warns(fit, facts, found):
    with pytest.warns(ConstantsMismatchWarning, match=f"the constants were made with {found}: the average is of other"):
        fit(**facts)


@pytest.mark.parametrize("metadata", [MADE_WITH, {}, {"layout": "segment"}])
def test_same_or_unknown_data_do_not_warn(fit, metadata):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConstantsMismatchWarning)
        fit(metadata)


def test_other_length_is_refused(fit):
    with pytest.raises(PapaError, match=f"made with max_length {LENGTH}, but max_length is {LENGTH + 1}"):
        fit(max_length=LENGTH + 1)
