"""Self-attention with a short forward: BERT, its copies in other families, and DistilBERT."""

from torch import Tensor
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.bert_generation.modeling_bert_generation import BertGenerationSelfAttention
from transformers.models.camembert.modeling_camembert import CamembertSelfAttention
from transformers.models.distilbert.modeling_distilbert import DistilBertSelfAttention
from transformers.models.electra.modeling_electra import ElectraSelfAttention
from transformers.models.ernie.modeling_ernie import ErnieSelfAttention
from transformers.models.roberta.modeling_roberta import RobertaSelfAttention
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention

from papa_lightning.encoders.seam.short import ShortForward


class ShortBertSelfAttention(ShortForward, BertSelfAttention):
    """BERT's self-attention."""


class ShortBertGenerationSelfAttention(ShortForward, BertGenerationSelfAttention):
    """BertGeneration's self-attention."""


class ShortCamembertSelfAttention(ShortForward, CamembertSelfAttention):
    """CamemBERT's self-attention."""


class ShortElectraSelfAttention(ShortForward, ElectraSelfAttention):
    """ELECTRA's self-attention."""


class ShortErnieSelfAttention(ShortForward, ErnieSelfAttention):
    """ERNIE's self-attention."""


class ShortRobertaSelfAttention(ShortForward, RobertaSelfAttention):
    """RoBERTa's self-attention."""


class ShortXLMRobertaSelfAttention(ShortForward, XLMRobertaSelfAttention):
    """XLM-RoBERTa's self-attention."""


class ShortDistilBertSelfAttention(ShortForward, DistilBertSelfAttention):
    """DistilBERT's self-attention, which has the output projection in it."""

    def finish(self, mixed: Tensor) -> Tensor:
        """See :meth:`ShortForward.finish`."""
        projected: Tensor = self.out_lin(mixed)
        return projected
