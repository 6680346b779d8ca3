"""Kind "compact": constant heads in a few numbers each, for sequences whose matrices would be too large."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.attention.compact.functional import WIDTH, low_rank_attention, profile_attention
from papa_lightning.attention.compact.layer import (
    FORMS,
    PARTS,
    CompactLayer,
    cut_parts,
    expand_form,
    expand_forms,
    heads_by_form,
    own_weights,
    row_mass,
)
from papa_lightning.attention.constant.constant import shown_mixing, with_dynamic
from papa_lightning.attention.dynamic import DynamicAttention
from papa_lightning.attention.functional import apply_attention, constant_attention, normalized_constants
from papa_lightning.attention.head_slices import take_heads
from papa_lightning.attention.mixer import KINDS, Block, KindFacts, Place, TokenMixer, read_extra_state
from papa_lightning.attention.zero_mass import certain_length
from papa_lightning.errors import PapaError


@KINDS.register("compact")
class CompactHeads(TokenMixer):
    """Constant heads, each in the form that its constants were fitted to, beside dynamic ones in one layer.

    Heads of form "profile" compute ``out_i = m_i sum_j m_j (rho(i - j) + alpha_j) v_j / mass_i`` in O(T w); those of
    form "low_rank" ``m (L (R^T (m V))) / (L (R^T m))``; "dense" ones as constant heads. Dynamic heads run through the
    fused kernel.

    Args:
        place: Position in the encoder. Constants beyond its reach are not used.
        heads: The constant heads, ascending.
        forms: The form of each of them, once it is known: it comes with the constants.

    Attributes:
        profile: (heads of form "profile", 2 w + 1), rho. Like the others a buffer, and empty while the mixer waits.
        columns: (heads of form "profile", T), alpha.
        left: (heads of form "low_rank", T, r).
        right: (heads of form "low_rank", T, r).
        matrices: (heads of form "dense", T, T).
    """

    constants_form = "compact"
    facts = KindFacts(
        "chosen heads: `C V` with `C_tt' = rho_(t - t') + alpha_t'`, rho 0 beyond a width w",
        "none that learn",
        "T w d, no queries and keys",
        "a fit to the average",
    )
    constant_tensors = PARTS

    @classmethod
    def saved_operations(cls, block: Block, share: float, options: Mapping[str, Any]) -> float | None:
        """Queries, keys, scores and the product with values, less profile (option "width") and a sum of columns."""
        width = min(int(options.get("width", WIDTH)), block.length - 1)
        return share * (block.queries + block.length - (2 * width + 2))

    def __init__(self, place: Place, heads: Sequence[int], forms: Sequence[str] | None = None) -> None:
        super().__init__(place, heads)
        self.watch = place.watch
        #: Length up to which no row of a batch can lack mass.
        self.certain_length = 0
        for name, dimensions in {"profile": 2, "columns": 2, "left": 3, "right": 3, "matrices": 3}.items():
            self.register_buffer(name, torch.zeros((0,) * dimensions, dtype=place.dtype, device=place.device))
        self._forms: tuple[str, ...] | None = None if forms is None else tuple(forms)

    @property
    def parts(self) -> dict[str, Tensor]:
        """The constants by name."""
        return {name: getattr(self, name) for name in PARTS}

    @property
    def forms(self) -> tuple[str, ...]:
        """The form of each constant head; none while they are not known."""
        return self._forms or ()

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"forms": None if self._forms is None else list(self._forms)}

    def load_constants(self, values: Any) -> None:
        """See :meth:`TokenMixer.load_constants`; takes the :class:`CompactLayer` of all heads of the layer."""
        if not isinstance(values, CompactLayer):
            raise PapaError(
                f"the constants of layer {self.layer} are a {type(values).__name__}, but kind 'compact' takes compact "
                "constants: pass CompactConstants.fit(constants), or swap to kind 'constant'."
            )
        if (len(values.forms), values.max_length) != (self.heads.num_heads, self.max_length):
            raise PapaError(
                f"the constants of layer {self.layer} have {len(values.forms)} heads and max_length "
                f"{values.max_length}, but the layer has {self.heads.num_heads} and {self.max_length}."
            )
        own = values.select(self.constant_heads)
        self._resize({name: getattr(own, name).shape for name in PARTS})
        with torch.no_grad():
            for name, parameter in self.parts.items():
                parameter.copy_(getattr(own, name))
        self._forms = own.forms
        self._set_calibrated(True)

    def _resize(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for name, parameter in self.parts.items():  # in place: an optimizer may hold the parameter already
            if parameter.shape != torch.Size(shapes[name]):
                parameter.data = parameter.data.new_zeros(*shapes[name])

    def _set_calibrated(self, calibrated: bool) -> None:
        super()._set_calibrated(calibrated)
        self.certain_length = self.max_length
        if calibrated and self.constant_heads:
            parts = {name: part.detach() for name, part in self.parts.items()}
            self.certain_length = certain_length(own_weights(self.forms, parts), self._pruned(parts))

    def _pruned(self, parts: Mapping[str, Tensor]) -> Tensor:
        """(constant heads,), true for heads that attend to nothing on purpose."""
        return (row_mass(self.forms, parts, None, self.reach)[0] == 0).all(dim=-1)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Make room first: how large the parts are depends on the forms."""
        saved = {name: state_dict.get(prefix + name) for name in PARTS}
        if all(isinstance(part, Tensor) and part.dim() == getattr(self, name).dim() for name, part in saved.items()):
            self._resize({name: part.shape for name, part in saved.items() if isinstance(part, Tensor)})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def set_extra_state(self, state: object) -> None:
        """See :meth:`TokenMixer.set_extra_state`; the forms are those of the state."""
        if isinstance(state, Tensor):
            saved = read_extra_state(state)
            if saved["kind"] == self.kind:
                forms = saved["options"].get("forms")
                self._forms = None if forms is None else tuple(forms)
                found = {form: len(getattr(self, parts[0])) for form, parts in FORMS.items()}
                expected = {form: self.forms.count(form) for form in FORMS}
                if found != expected:
                    raise PapaError(
                        f"the checkpoint has constants of {found} heads by form in layer {self.layer}, but names "
                        f"{expected}: it is damaged; calibrate again."
                    )
        super().set_extra_state(state)

    def forward(
        self, attention: DynamicAttention, value: Tensor, dropout: float = 0.0, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`TokenMixer.forward`."""
        mask, parts = attention.mask, self._parts_for(value, attention.mask)
        if need_weights:
            return shown_mixing(self, expand_forms(self.forms, parts, self.reach), attention, value, dropout)
        mixed: list[tuple[Sequence[int], Tensor]] = []
        for form, rows in heads_by_form(self.forms).items():
            own = [self.constant_heads[row] for row in rows]
            mixed.append((own, self._mix(form, parts, take_heads(value, own, dim=1), mask, dropout)))
        return with_dynamic(self, mixed, attention, value, dropout), None

    def _parts_for(self, value: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The parts for a batch of values (B, H, t, h); rows without mass are warned of."""
        length = value.shape[2]
        if length > self.max_length:
            raise PapaError(
                f"the sequences are {length} tokens long, but the constants are for max_length {self.max_length}: cut "
                f"the sequences, or swap with constants.extend({length}), which heads of form 'profile' allow."
            )
        whole = self.parts
        parts = cut_parts(whole, length)
        if length > self.certain_length and not torch.compiler.is_compiling() and not self.watch.warned:
            with torch.no_grad():
                mass = row_mass(self.forms, parts, mask, self.reach)
                self.watch.check_mass(self.layer, self.constant_heads, mass, mask, self._pruned(whole))
        return parts

    def _mix(
        self, form: str, parts: Mapping[str, Tensor], value: Tensor, mask: Tensor | None, dropout: float
    ) -> Tensor:
        if form == "profile" and dropout == 0.0:
            return profile_attention(parts["profile"], parts["columns"], value, mask, self.reach)
        if form == "low_rank" and self.reach.unlimited and dropout == 0.0:
            return low_rank_attention(parts["left"], parts["right"], value, mask)
        matrices = self.reach.cut(expand_form(form, parts))
        if dropout > 0.0:  # the one case that needs every sequence's own matrix
            return apply_attention(normalized_constants(matrices, mask), value, dropout)
        return constant_attention(matrices, value, mask)
