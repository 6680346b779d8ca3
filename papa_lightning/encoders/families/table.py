"""The supported families of encoders, and where the self-attention of each is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from papa_lightning.attention import Reach
from papa_lightning.encoders.families import places
from papa_lightning.encoders.families.albert import SwappedAlbertAttention, layers_in_order
from papa_lightning.encoders.families.relative import (
    SwappedDebertaSelfAttention,
    SwappedDebertaV2SelfAttention,
    SwappedMPNetSelfAttention,
    SwappedRoFormerSelfAttention,
)
from papa_lightning.encoders.families.short import (
    ShortBertGenerationSelfAttention,
    ShortBertSelfAttention,
    ShortCamembertSelfAttention,
    ShortDistilBertSelfAttention,
    ShortElectraSelfAttention,
    ShortErnieSelfAttention,
    ShortRobertaSelfAttention,
    ShortXLMRobertaSelfAttention,
)
from papa_lightning.encoders.projections import cut
from papa_lightning.encoders.seam.inline import InlineAttention
from papa_lightning.encoders.seam.short import ShortForward
from papa_lightning.encoders.seam.slots import SlotRule
from papa_lightning.registry import Registry


def module_reach(module: Any) -> Reach:
    """The reach of a self-attention module, by its attributes is_causal and sliding_window."""
    window = getattr(module, "sliding_window", None)
    before = None if window is None else int(window) - 1
    return Reach(before, after=0 if getattr(module, "is_causal", False) else before)


def _configured_window(module: Any) -> Reach:
    """The reach of a causal module that reads the window from the configuration."""
    window = module.config.sliding_window
    return Reach(before=None if window is None else int(window) - 1, after=0)


def _absolute_or_rotary(config: Any) -> SlotRule:
    """the first real token, or with absolute positions the first that is no padding"""  # noqa: D403, D415
    return "mask" if getattr(config, "position_embedding_type", None) == "rotary" else "input_ids"


def _rotary_scores(config: Any) -> SlotRule:
    """the first real token, or with `rotary_value` the beginning of the tensor"""  # noqa: D403, D415
    return "tensor" if config.rotary_value else "mask"  # rotated values depend on the place of a token


def _relative(config: Any) -> SlotRule:
    """the first real token, or with `position_biased_input` the beginning of the tensor"""  # noqa: D403, D415
    return "tensor" if getattr(config, "position_biased_input", True) else "mask"


def _opened(encoder: Any) -> bool:
    """yes; with padding between tokens, while it is swapped or observed"""  # noqa: D415
    return any(isinstance(module, SwappedDebertaSelfAttention) for module in encoder.modules())


def _without_convolution(encoder: Any) -> bool:
    """yes; with `conv_kernel_size`, without padding between tokens"""  # noqa: D415
    return encoder.encoder.conv is None


@dataclass(frozen=True)
class EncoderFamily:
    """The place of the self-attention of a family of encoders, and the way to leave out its heads.

    Often the first argument, or two, are enough with transformers' attention interface.

    Args:
        attention: Class name of the self-attention module.
        projections: Attribute of that module -> class that cuts the projection to the dynamic heads. Attributes that
            a module does not have are ignored.
        query_parameters: Parameters of the module, beside the projections, that only queries and keys depend on.
        position_parameters: Beginnings of the names of parameters of the encoder, outside the modules, that only
            scores depend on: tables of relative positions.
        inline: Subclass that replaces the module, for attention that is computed inside it.
        short: Subclass that replaces the module to call fewer functions where nobody asks for more than the output.
        reach: Function that gives the keys that the queries of a module can see.
        layers: Function that lists the modules in the order in which they run, where modules serve several layers;
            None finds them.
        title: Common name, for the table in the documentation; the model type where empty.
        note: Remark for users of the family, for the same table.
        value: Attribute of the linear layer that projects to the values; None where it is fused with others.
        output: Path of the linear layer behind the mixed values, from the module, or from its parent with "../".
        slots: Place from which slots are counted: "tensor", its beginning (absolute positions), "mask", the first real
            token (relative ones), "input_ids", the first that is not the padding token (numbered ones); or a function
            of the configuration, its docstring being the text in the documentation.
        packs: Whether hidden states stay the same when real tokens are moved together in the tensor, with their
            position ids and ``by_place``; or a function that says so of an encoder for sequences with padding between
            tokens, its docstring being the text in the documentation.
        by_place: Function of the encoder and the places (B, n) from which tokens were moved, that gives an argument
            which the encoder would else make from the order of the tensor; None where there is no such argument.
    """

    attention: str
    projections: Mapping[str, type[cut.CutProjection]] = field(
        default_factory=lambda: {"query": cut.HeadProjection, "key": cut.HeadProjection}
    )
    query_parameters: tuple[str, ...] = ()
    position_parameters: tuple[str, ...] = ()
    inline: type[InlineAttention] | None = None
    short: type[ShortForward] | None = None
    reach: Callable[[nn.Module], Reach] = module_reach
    layers: Callable[[nn.Module], list[nn.Module]] | None = None
    title: str = ""
    note: str = ""
    value: str | None = "value"
    output: str = "../output.dense"
    slots: SlotRule | Callable[[Any], SlotRule] = "tensor"
    packs: bool | Callable[[Any], bool] = False
    by_place: Callable[[Any, Tensor], places.PlacedArgument] | None = None

    def slot_rule(self, config: Any) -> SlotRule:
        """The place from which an encoder of this configuration counts slots."""
        return self.slots(config) if callable(self.slots) else self.slots

    def attention_modules(self, encoder: nn.Module) -> list[nn.Module]:
        """The self-attention modules, one a layer in the order in which the layers run."""
        if self.layers is not None:
            return self.layers(encoder)
        return [module for module in encoder.modules() if self.is_attention(module)]

    def is_attention(self, module: nn.Module) -> bool:
        """Whether a module is a self-attention of this family, replaced by its subclass or not."""
        if getattr(module, "is_cross_attention", False):
            return False
        replaced = tuple(kind for kind in (self.inline, self.short) if kind is not None)
        return type(module).__name__ == self.attention or isinstance(module, replaced)


_CAUSAL = "causal: constants are 0 ahead; generation needs use_cache=False"
_RELATIVE = ("encoder.rel_embeddings.", "encoder.LayerNorm.")
_T5_TABLE = "block.0.layer.0.SelfAttention.relative_attention_bias."
_ENCODER_ONLY = "the encoder's self-attention only: the decoder and cross-attention are left alone"


def _separate(attention: str, title: str, names: str = "q_proj k_proj v_proj o_proj", **others: Any) -> EncoderFamily:
    """A family with projections to queries, keys, values and the output in its attention module, by their names."""
    query, key, value, output = names.split()
    projections = {query: cut.HeadProjection, key: cut.HeadProjection}
    packed = {"packs": True, **others}
    return EncoderFamily(attention, projections, title=title, value=value, output=output, **packed)


def _grouped(attention: str, title: str, note: str = _CAUSAL, **others: Any) -> EncoderFamily:
    """A family with grouped-query attention and rotary positions."""
    projections = {"q_proj": cut.HeadProjection, "k_proj": cut.GroupedKeyProjection}
    return EncoderFamily(attention, projections, title=title, note=note, value=None, slots="mask", packs=True, **others)


#: The supported families by the model_type of the configuration. Families of other packages are entry points.
FAMILIES = Registry[EncoderFamily]("family", lambda part: isinstance(part, EncoderFamily), "papa_lightning.families")
FAMILIES.update(
    {
        "albert": EncoderFamily(
            "AlbertAttention",
            inline=SwappedAlbertAttention,
            layers=layers_in_order,
            title="ALBERT",
            note="one module serves its layers",
            output="dense",
            packs=True,
        ),
        "bart": _separate("BartAttention", "BART", "q_proj k_proj v_proj out_proj", note=_ENCODER_ONLY, packs=False),
        "bert": EncoderFamily("BertSelfAttention", short=ShortBertSelfAttention, title="BERT", packs=True),
        "bert-generation": EncoderFamily(
            "BertGenerationSelfAttention", short=ShortBertGenerationSelfAttention, title="BertGeneration", packs=True
        ),
        "camembert": EncoderFamily(
            "CamembertSelfAttention",
            short=ShortCamembertSelfAttention,
            title="CamemBERT",
            slots="input_ids",
            packs=True,
        ),
        "deberta": EncoderFamily(
            "DisentangledSelfAttention",
            {"in_proj": cut.InterleavedProjection, "pos_proj": cut.HeadProjection, "pos_q_proj": cut.HeadProjection},
            query_parameters=("q_bias",),
            position_parameters=_RELATIVE,
            inline=SwappedDebertaSelfAttention,
            title="DeBERTa",
            note="without talking heads",
            value=None,
            slots=_relative,
            packs=_opened,
            by_place=places.deberta,
        ),
        "deberta-v2": EncoderFamily(
            "DisentangledSelfAttention",
            dict.fromkeys(("query_proj", "key_proj", "pos_key_proj", "pos_query_proj"), cut.HeadProjection),
            position_parameters=_RELATIVE,
            inline=SwappedDebertaV2SelfAttention,
            title="DeBERTa v2, v3",
            value="value_proj",
            slots=_relative,
            packs=_without_convolution,
            by_place=places.deberta_v2,
        ),
        "deit": _separate("DeiTAttention", "DeiT", packs=False),
        "dinov2": _separate("Dinov2Attention", "DINOv2", packs=False),
        "distilbert": _separate(
            "DistilBertSelfAttention", "DistilBERT", "q_lin k_lin v_lin out_lin", short=ShortDistilBertSelfAttention
        ),
        "electra": EncoderFamily("ElectraSelfAttention", short=ShortElectraSelfAttention, title="ELECTRA", packs=True),
        "ernie": EncoderFamily("ErnieSelfAttention", short=ShortErnieSelfAttention, title="ERNIE", packs=True),
        "esm": EncoderFamily("EsmSelfAttention", title="ESM-2", slots=_absolute_or_rotary, packs=True),
        "eurobert": _grouped("EuroBertAttention", "EuroBERT", note=""),
        "gpt2": EncoderFamily(
            "GPT2Attention", {"c_attn": cut.FusedConv1D}, title="GPT-2", note=_CAUSAL, value=None, packs=True
        ),
        "gte": _separate("GteAttention", "GTE", slots="mask"),
        "jina_embeddings_v3": _separate("JinaEmbeddingsV3Attention", "Jina embeddings v3", slots="mask"),
        "llama": _grouped("LlamaAttention", "Llama"),
        "mistral": _grouped("MistralAttention", "Mistral", reach=_configured_window),
        "modernbert": EncoderFamily(
            "ModernBertAttention",
            {"Wqkv": cut.FusedProjection},
            title="ModernBERT",
            note="local layers keep to their window",
            value=None,
            slots="mask",
            packs=True,
        ),
        "mpnet": _separate(
            "MPNetSelfAttention",
            "MPNet",
            "q k v o",
            position_parameters=("encoder.relative_attention_bias.",),
            inline=SwappedMPNetSelfAttention,
            note="the encoder still makes its position bias, once a pass",
            slots="mask",  # not "input_ids", because its layers do not get the tokens; the same where padding is masked
            by_place=places.mpnet,
        ),
        "nomic_bert": _separate("NomicBertAttention", "Nomic BERT", slots="mask"),
        "papa_transformer": _separate(
            "TransformerAttention",
            "papa_lightning.from_scratch",
            note="trained from scratch; causal or not, tokens or images",
            packs=False,
        ),
        "qwen2": _grouped("Qwen2Attention", "Qwen2"),
        "qwen3": _grouped("Qwen3Attention", "Qwen3", query_parameters=("q_norm.weight", "k_norm.weight")),
        "roberta": EncoderFamily(
            "RobertaSelfAttention", short=ShortRobertaSelfAttention, title="RoBERTa", slots="input_ids", packs=True
        ),
        "roformer": EncoderFamily(
            "RoFormerSelfAttention",
            inline=SwappedRoFormerSelfAttention,
            title="RoFormer",
            slots=_rotary_scores,
            packs=True,
            by_place=places.roformer,
        ),
        "t5": _separate(
            "T5Attention",
            "T5",
            "q k v o",
            position_parameters=(_T5_TABLE, f"encoder.{_T5_TABLE}"),  # of the stack, and of a T5EncoderModel
            note=f"{_ENCODER_ONLY}; it still makes its position bias, once a pass",
            slots="mask",
            by_place=places.t5,
        ),
        "vit": _separate("ViTAttention", "ViT", packs=False),
        "xlm-roberta": EncoderFamily(
            "XLMRobertaSelfAttention",
            short=ShortXLMRobertaSelfAttention,
            title="XLM-RoBERTa",
            slots="input_ids",
            packs=True,
        ),
    }
)


def register_family(model_type: str, family: EncoderFamily) -> None:
    """Support another type of encoder (``model_type`` of its configuration), or another way of swapping a known one.

    An installed package needs no call: an entry point of the group ``papa_lightning.families``, its name the model
    type and its value an :class:`EncoderFamily`, is loaded when such an encoder first comes. PapaError for other types.

    Example:
        >>> register_family("my-bert", EncoderFamily("MyBertSelfAttention"))
        >>> FAMILIES.pop("my-bert").attention
        'MyBertSelfAttention'
    """
    FAMILIES[model_type] = family
