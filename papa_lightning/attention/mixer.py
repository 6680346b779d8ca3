"""Base class of the kinds of attention, and their position in an encoder."""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from papa_lightning.attention.dynamic import DynamicAttention, DynamicHeads
from papa_lightning.attention.zero_mass import ZeroMassWatch
from papa_lightning.checks import anything, boolean, filled, listed, mapped, record, whole
from papa_lightning.errors import PapaError
from papa_lightning.files.checked import parse_json
from papa_lightning.registry import Registry
from papa_lightning.text import Table


@dataclass(frozen=True)
class Reach:
    """Keys that a query may attend to by the build of its layer, whatever the input.

    Calibrated constants are 0 beyond it; constants that were made by hand, or trained, are cut to it.

    Args:
        before: Number of positions before the query; None for all.
        after: Number of positions after the query; None for all, 0 in a causal layer.

    Example:
        >>> Reach(before=1, after=0).allowed(3)
        tensor([[ True, False, False],
                [ True,  True, False],
                [False,  True,  True]])
    """

    before: int | None = None
    after: int | None = None

    @property
    def unlimited(self) -> bool:
        """True when every query can look everywhere."""
        return self.before is None and self.after is None

    def cut(self, matrices: Tensor) -> Tensor:
        """Matrices (..., T, T), rows are queries, with 0 (or False) beyond the reach."""
        if self.after is not None:
            matrices = matrices.tril(self.after)
        if self.before is not None:
            matrices = matrices.triu(-self.before)
        return matrices

    def allowed(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """(T, T) boolean, true where a query may look."""
        return self.cut(torch.ones(length, length, dtype=torch.bool, device=device))


@dataclass(frozen=True)
class Place:
    """Position of a mixer in an encoder.

    Args:
        layer: Number of the layer, for messages.
        num_heads: H, number of heads.
        max_length: T, length of the longest sequence that the mixer serves.
        head_size: h, size of a head's values; 0 where the kind does not need it.
        dtype: Dtype of the mixer's parameters.
        device: Device of the mixer's parameters.
        watch: Warns of real tokens that attend to nothing; shared by all layers of an encoder, it warns once.
        reach: Keys that the queries of this layer can see.
    """

    layer: int
    num_heads: int
    max_length: int
    head_size: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    watch: ZeroMassWatch = field(default_factory=ZeroMassWatch)
    reach: Reach = field(default_factory=Reach)


@dataclass(frozen=True)
class Block:
    """Sizes of a layer that determine its arithmetic, in multiply-accumulates per token, layer and channel.

    A block of BERT's form costs 4 d for the projections, 2 i for the feed-forward network (i = 4 d), and T each for the
    scores and the product with the values: 12 d + 2 T. What is not arithmetic does not count.

    Args:
        hidden: d, the hidden size.
        inner: i, the inner size of the feed-forward network.
        length: T, tokens of a sequence.
        positions: P, number of relative positions that queries and keys are multiplied with (DeBERTa), together.

    Example:
        >>> round(Block(768, 3072, 128).speed(saved=2 * 768 + 128), 2)
        1.21
    """

    hidden: int
    inner: int
    length: int
    positions: int = 0

    @property
    def dense(self) -> int:
        """Multiply-accumulates per token and channel with all heads dynamic."""
        return 4 * self.hidden + 2 * self.inner + 2 * self.length + self.positions

    @property
    def queries(self) -> int:
        """Multiply-accumulates per token and channel for queries, keys and scores."""
        return 2 * self.hidden + self.length + self.positions

    def speed(self, saved: float) -> float:
        """Speed relative to the dynamic layer, when a kind saves so many multiply-accumulates per token and channel."""
        return self.dense / (self.dense - saved)


@dataclass(frozen=True)
class KindFacts:
    """Row of a kind in the table of docs/kinds.md; Markdown, with T the length, d the hidden size and H the heads.

    Args:
        computes: What a layer computes; empty takes the first line of the docstring of the class.
        parameters: New parameters a layer.
        cost: Order of its arithmetic.
        starts: Where its parameters start from.
    """

    computes: str = ""
    parameters: str = ""
    cost: str = ""
    starts: str = ""


class TokenMixer(nn.Module):
    """Base of all kinds: it mixes the tokens of one self-attention layer in place of the encoder's own attention.

    What it needs may arrive after construction (from calibration, or with a checkpoint). Until then the mixer is
    *waiting* and all heads are dynamic. Its kind, its heads and "calibrated" are part of the state dict (extra state),
    so a checkpoint can neither lose them nor be read into a layer with other heads.

    A subclass is registered with ``@KINDS.register("name")``. What it declares below is all that is known about it; the
    defaults suit a kind that replaces any choice of heads and waits for one constant matrix a head.

    Args:
        place: Position in the encoder.
        heads: The replaced heads, ascending; the others stay dynamic.
    """

    #: Name in :data:`~papa_lightning.attention.KINDS`, set by the registration.
    kind: ClassVar[str]
    #: Reason, for messages, why the kind replaces all heads of a layer; empty where heads can be chosen.
    whole_layer: ClassVar[str] = ""
    #: Whether it takes tokens in the order of the batch, with their slots, instead of in the order of the slots; not
    #: inherited, because a subclass may mix in another way.
    reads_slots: ClassVar[bool] = False
    #: Whether it takes values in another order of the heads, see :class:`DynamicAttention`; not inherited either.
    reorders_values: ClassVar[bool] = False
    #: Whether its dynamic heads have scores, to which an encoder may add a bias of positions.
    uses_scores: ClassVar[bool] = True
    #: Its constants: tensors that are no parameters, so that nothing that unfreezes an encoder makes them learn.
    constant_tensors: ClassVar[tuple[str, ...]] = ()
    #: Whether it returns attention matrices on request.
    has_matrices: ClassVar[bool] = True
    #: Constants that it takes: a matrix a head, matrices that are the same for all heads of a layer, or compact ones.
    constants_form: ClassVar[Literal["matrices", "equal_matrices", "compact"]] = "matrices"
    #: Whether its speed depends on how dynamic attention is computed, so that it is timed with each backend.
    depends_on_backend: ClassVar[bool] = True
    #: Its row in the documentation; not inherited.
    facts: ClassVar[KindFacts] = KindFacts()

    def __init__(self, place: Place, heads: Sequence[int]) -> None:
        super().__init__()
        self.layer = place.layer
        self.max_length = place.max_length
        self.constant_heads = tuple(heads)
        self.heads = DynamicHeads(place.num_heads)
        self.reach = place.reach
        #: Whether this layer checks the attention mask for all layers: they get the same one, and a check costs a sync.
        self.checks_mask = False
        self.calibrated = False

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names of the options of the kind: arguments of the class beside place and heads."""
        return tuple(name for name in inspect.signature(cls).parameters if name not in ("place", "heads"))

    @classmethod
    def example_options(cls, max_length: int) -> dict[str, Any]:
        """Options that suit sequences of up to ``max_length`` tokens, for benchmarks and tests that name none."""
        return {}

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> float | None:
        """Multiply-accumulates per token and channel that the kind saves, for the bound of the benchmark.

        Args:
            block: Sizes of the layer.
            share: Share of its heads that are replaced.
            options: Options of the kind, as the benchmark names them.

        Returns:
            Negative for a kind that adds some; None where no bound is known.
        """
        return None

    @classmethod
    def complete_options(cls, options: Mapping[str, Any], constants_given: bool) -> dict[str, Any]:
        """The options of a swap, completed by those that depend on whether it brings constants."""
        return dict(options)

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """Whether a mixer with these options waits for constants; one that does not is calibrated from the start."""
        return True

    def load_constants(self, values: Any) -> None:
        """Take the constants of this layer and leave the waiting state.

        Args:
            values: Entry of this layer in ``by_layer()`` of the constants: (H, T, T) for
                :class:`~papa_lightning.AttentionConstants`, from which the constant heads are picked.

        Raises:
            PapaError: For constants of another sort than the kind takes.
        """
        raise NotImplementedError

    def learn_constants(self, learn: bool = True) -> None:
        """Make the constants parameters, or fixed again, before an optimizer is made and DDP wraps the model."""
        for name in self.constant_tensors:
            tensor: Tensor = getattr(self, name).detach()
            if not tensor.numel():  # it would get no gradient, and stop DDP
                continue
            delattr(self, name)
            if learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def _set_calibrated(self, calibrated: bool) -> None:
        self.calibrated = calibrated
        self.heads.choose(self.dynamic_when_calibrated() if calibrated else range(self.heads.num_heads))

    @property
    def replaces_attention(self) -> bool:
        """True while the layer differs from the layer of the original encoder."""
        return bool(self.constant_heads) and self.calibrated and not self.heads.suspended

    def dynamic_when_calibrated(self) -> Sequence[int]:
        """The heads that still need a query and a key after calibration: all but those that are replaced."""
        return [head for head in range(self.heads.num_heads) if head not in self.constant_heads]

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the values. Called only while :attr:`replaces_attention`.

        Args:
            attention: Attention of the dynamic heads, with the padding mask of the batch.
            value: (B, H, T, h), values of all heads.
            dropout: Attention dropout, 0 outside training.
            need_weights: Also return the attention matrices.

        Returns:
            The mixed values (B, T, H, h), and the matrices used, (B, H, T, T), or None.
        """
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """Arguments of the mixer beside place and heads, as primitives of JSON."""
        return {}

    def get_extra_state(self) -> Tensor:
        """Kind, calibration, T, heads and options, as JSON in one uint8 tensor, which is safe to load."""
        state = {
            "kind": self.kind,
            "calibrated": self.calibrated,
            "max_length": self.max_length,
            "heads": list(self.constant_heads),
            "options": self.options(),
        }
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Restore from :meth:`get_extra_state`; other kinds, constant heads or max_length are refused."""
        if not isinstance(state, Tensor):  # a placeholder: sharded strategies load parameter by parameter
            return
        saved = read_extra_state(state)
        if saved["kind"] != self.kind or saved["options"] != self.options():
            raise PapaError(
                f"the checkpoint has attention of kind {saved['kind']!r} with options {saved['options']} in layer "
                f"{self.layer}, but the encoder was swapped to {self.kind!r} with {self.options()}: swap it to the "
                "kind of the run that wrote it."
            )
        if tuple(saved["heads"]) != self.constant_heads:
            raise PapaError(
                f"the checkpoint has constant heads {saved['heads']} in layer {self.layer}, but heads asks for "
                f"{list(self.constant_heads)}: pass the same heads (and ranking) as in the run that wrote it."
            )
        if saved["max_length"] != self.max_length:
            raise PapaError(
                f"the checkpoint has constants of max_length {saved['max_length']} in layer {self.layer}, but the "
                f"encoder was swapped with max_length {self.max_length}: swap it with "
                f"max_length={saved['max_length']}."
            )
        self._set_calibrated(saved["calibrated"])


def declares(mixer: TokenMixer, name: str) -> bool:
    """Whether the class of a mixer itself sets a flag that is not inherited."""
    return bool(vars(type(mixer)).get(name, False))


def read_extra_state(state: Tensor) -> Mapping[str, Any]:
    """Kind, calibration, T, heads and options of a saved mixer.

    Raises:
        PapaError: When the tensor is not what :meth:`TokenMixer.get_extra_state` made.

    Example:
        >>> from papa_lightning.attention import ConstantHeads
        >>> read_extra_state(ConstantHeads(Place(layer=0, num_heads=2, max_length=8), [1]).get_extra_state())["heads"]
        [1]
    """
    try:
        found: dict[str, Any] = _STATE("it", parse_json(bytes(state.to(torch.uint8).tolist())))
        if found["heads"] == sorted({*found["heads"]}):
            return found
    except (ValueError, TypeError):
        pass
    raise PapaError("the checkpoint's papa._extra_state is damaged, or of another version: calibrate again.")


_NUMBERS = {"max_length": whole(1), "heads": listed(whole())}
_STATE = record({"kind": filled, "calibrated": boolean, "options": mapped(anything), **_NUMBERS})


#: Classes of kinds by name.
KINDS: Registry[type[TokenMixer]] = Registry(
    "kind",
    lambda part: isinstance(part, type) and issubclass(part, TokenMixer),
    group="papa_lightning.kinds",
    attribute="kind",
)


def kinds_table() -> Table:
    """The table of kinds of the documentation.

    Example:
        >>> kinds_table().columns
        ('kind', 'what a layer computes', 'new parameters a layer', 'cost', 'starts from')
    """
    rows = []
    for name, mixer in KINDS.items():
        facts = vars(mixer).get("facts", KindFacts())  # its own: those of the kind that it derives from are not its
        computes = facts.computes or (mixer.__doc__ or "").strip().partition("\n")[0]
        rows.append((f"`{name}`", computes, facts.parameters, facts.cost, facts.starts))
    columns = ("kind", "what a layer computes", "new parameters a layer", "cost", "starts from")
    return Table(columns, rows, left=len(columns))
