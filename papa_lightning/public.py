"""The public names of the package, which ``papa_lightning`` itself offers."""

from papa_lightning.calibration import (
    AttentionAverages,
    AttentionConstants,
    CompactConstants,
    calibrate,
    calibrate_compact,
)
from papa_lightning.callbacks import (
    AttentionImages,
    ConstantAttention,
    Distillation,
    HeadGates,
    LearnedConstants,
    SwappedAttention,
)
from papa_lightning.datamodules import (
    CoLADataModule,
    DemoDataModule,
    MNLIDataModule,
    MRPCDataModule,
    NERDataModule,
    POSDataModule,
    RetrievalDataModule,
    SimilarityDataModule,
    SST2DataModule,
    STSBDataModule,
    STSDataModule,
    TextClassificationDataModule,
    TextPairClassificationDataModule,
    TokenClassificationDataModule,
)
from papa_lightning.encoders import gate_logits, restore_attention, swap_attention
from papa_lightning.encoders.sentence_files import SentenceFiles, read_sentence_files
from papa_lightning.errors import PapaError
from papa_lightning.export import (
    export_encoder,
    export_sentence_transformer,
    load_exported_encoder,
    load_sentence_transformer,
)
from papa_lightning.from_scratch import (
    DigitsDataModule,
    ImageClassificationTask,
    LanguageModelingTask,
    TextFileDataModule,
    TransformerConfig,
    TransformerModel,
    resplit_heads,
)
from papa_lightning.lightning_project.optimizers import parameter_groups
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks import (
    MaskedLanguageModelingTask,
    SequenceClassificationTask,
    SimilarityTask,
    TokenClassificationTask,
)
from papa_lightning.tasks.recovery import distil
from papa_lightning.version import __version__

__all__ = [
    "AttentionAverages",
    "AttentionConstants",
    "AttentionImages",
    "CoLADataModule",
    "CompactConstants",
    "ConstantAttention",
    "DemoDataModule",
    "DigitsDataModule",
    "Distillation",
    "HeadGates",
    "HeadRanking",
    "ImageClassificationTask",
    "LanguageModelingTask",
    "LearnedConstants",
    "MNLIDataModule",
    "MRPCDataModule",
    "MaskedLanguageModelingTask",
    "NERDataModule",
    "POSDataModule",
    "PapaError",
    "RetrievalDataModule",
    "SST2DataModule",
    "STSBDataModule",
    "STSDataModule",
    "SentenceFiles",
    "SequenceClassificationTask",
    "SimilarityDataModule",
    "SimilarityTask",
    "SwappedAttention",
    "TextClassificationDataModule",
    "TextFileDataModule",
    "TextPairClassificationDataModule",
    "TokenClassificationDataModule",
    "TokenClassificationTask",
    "TransformerConfig",
    "TransformerModel",
    "__version__",
    "calibrate",
    "calibrate_compact",
    "distil",
    "export_encoder",
    "export_sentence_transformer",
    "gate_logits",
    "load_exported_encoder",
    "load_sentence_transformer",
    "parameter_groups",
    "read_sentence_files",
    "resplit_heads",
    "restore_attention",
    "swap_attention",
]
