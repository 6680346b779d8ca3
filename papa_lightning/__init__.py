"""How much does a pretrained encoder's attention matter? Calibrate, freeze and compare its heads."""

from papa_lightning.calibration import AttentionAverages, AttentionConstants, calibrate
from papa_lightning.callbacks import AttentionImages, ConstantAttention, HeadGates
from papa_lightning.datamodules import (
    CoLADataModule,
    DemoDataModule,
    MNLIDataModule,
    MRPCDataModule,
    NERDataModule,
    POSDataModule,
    SST2DataModule,
    TextClassificationDataModule,
    TextPairClassificationDataModule,
    TokenClassificationDataModule,
)
from papa_lightning.encoders import gate_logits, restore_attention, swap_attention
from papa_lightning.exceptions import PapaError
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks import MaskedLanguageModelingTask, SequenceClassificationTask, TokenClassificationTask
from papa_lightning.version import __version__

__all__ = [
    "AttentionAverages",
    "AttentionConstants",
    "AttentionImages",
    "CoLADataModule",
    "ConstantAttention",
    "DemoDataModule",
    "HeadGates",
    "HeadRanking",
    "MNLIDataModule",
    "MRPCDataModule",
    "MaskedLanguageModelingTask",
    "NERDataModule",
    "POSDataModule",
    "PapaError",
    "SST2DataModule",
    "SequenceClassificationTask",
    "TextClassificationDataModule",
    "TextPairClassificationDataModule",
    "TokenClassificationDataModule",
    "TokenClassificationTask",
    "__version__",
    "calibrate",
    "gate_logits",
    "restore_attention",
    "swap_attention",
]
