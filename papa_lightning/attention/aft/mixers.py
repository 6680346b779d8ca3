"""Kinds "aft_full", "aft_simple", "aft_local" and "aft_conv": layers of an encoder without attention matrices.

Biases that an encoder adds to its scores (T5, DeBERTa, MPNet) and attention dropout have nothing to act on here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from papa_lightning.attention.aft.bias import BandBias, FactorizedBias, NormalizedKernel, TableBias
from papa_lightning.attention.aft.checks import check_grid, check_window
from papa_lightning.attention.aft.conv import conv2d_mixture, conv_mixture, kernel_band
from papa_lightning.attention.aft.dispatch import fused
from papa_lightning.attention.aft.from_constants import band_bias, dense_bias, kernel_bias, kernel_entries
from papa_lightning.attention.aft.functional import aft_full, banded_mixture, simple_mixture
from papa_lightning.attention.aft.means import join_groups, recomputed
from papa_lightning.attention.constant.matrices import check_matrices
from papa_lightning.attention.mixer import KINDS, KindFacts, Place
from papa_lightning.attention.without_constants import ScorelessLayer
from papa_lightning.checks import one_of
from papa_lightning.errors import PapaError
from papa_lightning.kernels import usable

STARTS = ("paper", "from_constants")


@KINDS.register("aft_simple")
class AFTSimpleHeads(ScorelessLayer):
    """AFT-simple, w = 0, in a layer of an encoder: ``sigmoid(a q_t + b) * sum_t' softmax_t'(c k)_t' V_t'``, in O(T d).

    The layer keeps the encoder's projections: its own query q and key k take part through a factor a channel each. This
    is the first of four kinds of the form (Zhai et al. 2021, arXiv 2105.14103)::

        Y_t = g sigmoid(a q_t + b) * [sum_t' exp(c k_t' + w_tt') V_t'] / [sum_t' exp(c k_t' + w_tt')]

    Args:
        place: Position in the encoder, with the size of the heads.
        heads: All heads of the layer.
        causal: Whether the encoder is causal; None takes it from the encoder.

    Attributes:
        query_scale: (H, h), a in the formula.
        query_shift: (H, h), b.
        key_scale: (H, h), c. A shift of the keys of a channel would cancel between the two sums.

    Raises:
        PapaError: For invalid arguments.
    """

    facts = KindFacts("the same as `aft_full`; w = 0", "3 d", "T d", "paper")
    whole_layer = "mixes whole layers"

    #: g in the formula.
    gate_scale = 1.0

    def __init__(self, place: Place, heads: Sequence[int], causal: bool | None = None) -> None:
        super().__init__(place, heads, causal)
        shape = (place.num_heads, place.head_size)
        self.query_scale = nn.Parameter(torch.ones(shape, dtype=place.dtype, device=place.device))
        self.query_shift = nn.Parameter(torch.zeros_like(self.query_scale))
        self.key_scale = nn.Parameter(torch.ones_like(self.query_scale))
        self._set_calibrated(True)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`ScorelessLayer.mix`; only the inputs are kept for the backward pass."""
        if usable(query, key, value, self.key_scale):
            return self.fused(query, key, value, mask)
        return recomputed(self.mixture, query, key, value, mask)

    def fused(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As :meth:`mix`, by kernels for GPUs."""
        affine = (self.query_scale, self.query_shift, self.key_scale)
        bias = self.bias(value.shape[2])
        return fused(query, key, value, mask, self.causal, affine=affine, gate=self.gate_scale, **bias)

    def bias(self, length: int) -> dict[str, Any]:
        """Position bias for sequences of a length, as arguments of `papa_lightning.kernels.aft.mixing`; none."""
        return {}

    def mixture(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """As :meth:`mix`, but intermediate results are kept for the backward pass."""
        gate = join_groups(torch.addcmul(self.query_shift[:, None], query, self.query_scale[:, None]))
        mixed = self.mean(gate, key, join_groups(value), mask)
        return (mixed * self.gate_scale).view(*mixed.shape[:2], value.shape[1], -1)

    def mean(self, gate: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """The gated mean of values (B, T, d), from gates (B, T, d) before the sigmoid and keys (B, H, T, h)."""
        return simple_mixture(gate, self.scaled_key(key), value, mask, self.causal)

    def scaled_key(self, key: Tensor) -> Tensor:
        """The keys of all channels, (B, T, d)."""
        return join_groups(key * self.key_scale[:, None])


class BiasedAFTHeads(AFTSimpleHeads):
    """Base of the kinds with a position bias, which start as in the paper or from constants; see `AFTFullHeads`."""

    def __init__(self, place: Place, heads: Sequence[int], init: str = "paper", causal: bool | None = None) -> None:
        one_of(*STARTS)("init", init)
        super().__init__(place, heads, causal)
        self.init = init
        if init == "from_constants":
            self._set_calibrated(False)
            self.gate_scale = 2.0
            nn.init.zeros_(self.query_scale)
            nn.init.zeros_(self.key_scale)

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"init": self.init, **super().options()}

    @classmethod
    def complete_options(cls, options: Mapping[str, Any], constants_given: bool) -> dict[str, Any]:
        """See :meth:`TokenMixer.complete_options`: given constants are started from."""
        return {"init": "from_constants" if constants_given else "paper", **options}

    @classmethod
    def needs_constants(cls, options: Mapping[str, Any]) -> bool:
        """See :meth:`TokenMixer.needs_constants`: only a start from constants does."""
        return options.get("init") == "from_constants"

    def load_constants(self, values: Any) -> None:
        """See :meth:`TokenMixer.load_constants`: the position bias starts from them."""
        if self.init != "from_constants":
            super().load_constants(values)  # refuses
        check_matrices(self, values)
        with torch.no_grad():
            self.start_from(values)
        self._set_calibrated(True)

    def start_from(self, constants: Tensor) -> None:
        """Set the position bias from the constants of the layer, (H, T, T)."""
        raise NotImplementedError


class TableAFTHeads(BiasedAFTHeads):
    """Base of the kinds with a position bias for pairs of positions, which ``new_table(groups=H or 1)`` makes."""

    def __init__(
        self,
        place: Place,
        heads: Sequence[int],
        new_table: Callable[..., nn.Module],
        per_head: bool,
        inner: int | None,
        init: str,
        causal: bool | None,
    ) -> None:
        super().__init__(place, heads, init, causal)
        if inner is not None and init == "from_constants":
            raise PapaError(
                f"inner is {inner}, but init is 'from_constants', and a product of small factors cannot hold the "
                "logarithm of the constants: leave inner out, or pass init 'paper'."
            )
        self.per_head, self.inner = per_head, inner
        groups = place.num_heads if per_head else 1
        bias = new_table(groups=groups) if inner is None else FactorizedBias(place.max_length, inner, groups)
        self.position_bias = bias.to(device=place.device, dtype=place.dtype)

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"per_head": self.per_head, "inner": self.inner, **super().options()}

    def start_from(self, constants: Tensor) -> None:
        """See :meth:`BiasedAFTHeads.start_from`."""
        seen = self.reach.cut(constants)
        cast("TableBias | BandBias", self.position_bias).table.copy_(
            self.table(seen if self.per_head else seen.mean(dim=0, keepdim=True))
        )

    def table(self, constants: Tensor) -> Tensor:
        """Parameters of a bias that reproduces constants, (H or 1, T, T)."""
        raise NotImplementedError


@KINDS.register("aft_full")
class AFTFullHeads(TableAFTHeads):
    """AFT-full in a layer of an encoder, with a position bias for every pair of positions; O(T^2 d).

    See :class:`~papa_lightning.attention.AFTSimpleHeads` for the formula and the other arguments.

    Args:
        per_head: Whether each head has a bias of its own, so that constants are taken over exactly; otherwise all
            channels share one, as in the paper, which starts from the mean of the heads' constants.
        inner: Inner size of a factorised bias ``w = u v^T``, as in the paper; None has a parameter for every pair.
        init: "paper" (a = c = 1, w small) or "from_constants" (a = b = c = 0, g = 2, w the logarithm of the constants,
            so that the layer starts as the constant layer); the latter is the default of a swap that brings constants.

    Attributes:
        position_bias: w of H groups of channels, or of one.

    Raises:
        PapaError: For a factorised bias that is to start from constants: few factors cannot hold their logarithm.
    """

    facts = KindFacts(
        "`g sigmoid(a q_t + b) sum exp(c k_t' + w_tt') V_t' / sum exp(c k_t' + w_tt')`",
        "3 d + H T², or 3 d + 2 H T inner",
        "T² d",
        "paper or average",
    )

    def __init__(
        self,
        place: Place,
        heads: Sequence[int],
        per_head: bool = True,
        inner: int | None = None,
        init: str = "paper",
        causal: bool | None = None,
    ) -> None:
        super().__init__(place, heads, partial(TableBias, place.max_length), per_head, inner, init, causal)

    def table(self, constants: Tensor) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.from_constants.dense_bias`."""
        return dense_bias(constants)

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`ScorelessLayer.mix`; chunks of rows are recomputed one by one, so no (T, T, d) tensor exists."""
        if usable(query, key, value, self.key_scale):
            return self.fused(query, key, value, mask)
        return self.mixture(query, key, value, mask)

    def bias(self, length: int) -> dict[str, Any]:
        """See :meth:`AFTSimpleHeads.bias`."""
        self.check_length(length)
        weight = self.position_bias(length)
        return {"weight": weight, "groups": weight.shape[0]}

    def mean(self, gate: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`AFTSimpleHeads.mean`."""
        weight = self.bias(value.shape[1])["weight"]
        return aft_full(gate, self.scaled_key(key), value, weight, mask, self.causal)


@KINDS.register("aft_local")
class AFTLocalHeads(TableAFTHeads):
    """AFT-local in a layer of an encoder: w is 0 where ``|t - t'| >= s``, and those keys still count; O(T s d).

    See :class:`~papa_lightning.attention.AFTFullHeads` for the other arguments.

    Args:
        window: s, at most max_length.
    """

    facts = KindFacts(
        "the same as `aft_full`; w is 0 where `abs(t - t') >= window`",
        "3 d + H T (2 window - 1), or as `aft_full`",
        "T window d",
        "paper or average",
    )

    @classmethod
    def example_options(cls, max_length: int) -> dict[str, Any]:
        """The default window, or all tokens of shorter sequences."""
        return {"window": min(32, max_length)}

    def __init__(
        self,
        place: Place,
        heads: Sequence[int],
        window: int = 32,
        per_head: bool = True,
        inner: int | None = None,
        init: str = "paper",
        causal: bool | None = None,
    ) -> None:
        check_window(window, place.max_length, "max_length")
        new_table = partial(BandBias, place.max_length, window, place.reach.after == 0)
        super().__init__(place, heads, new_table, per_head, inner, init, causal)
        self.window = window

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"window": self.window, **super().options()}

    def table(self, constants: Tensor) -> Tensor:
        """See :func:`~papa_lightning.attention.aft.from_constants.band_bias`."""
        return band_bias(constants, self.window, self.causal)

    def bias(self, length: int) -> dict[str, Any]:
        """See :meth:`AFTSimpleHeads.bias`."""
        self.check_length(length)
        band = cast("BandBias | FactorizedBias", self.position_bias).band(length, self.window, self.causal)
        return {"weight": band, "groups": band.shape[0], "first": 1 - min(self.window, length)}

    def mean(self, gate: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`AFTSimpleHeads.mean`."""
        bias = self.bias(value.shape[1])
        return banded_mixture(gate, self.scaled_key(key), value, bias["weight"], bias["first"], mask, self.causal)


@KINDS.register("aft_conv")
class AFTConvHeads(BiasedAFTHeads):
    """AFT-conv in a layer of an encoder: w depends on the offset alone, and a head has one key; O(T s d).

    The key of a head is ``c . k_t'``, a product over the channels of the head, where "paper" starts with
    ``c = 1 / sqrt(h)``. The kernel is ``gamma (w - mean w) / std w + beta``, see
    :class:`~papa_lightning.attention.NormalizedKernel`; ``init`` is that of :class:`AFTFullHeads`.

    Args:
        window: s, the number of offsets, at most max_length.
        grid: Whether the tokens are a square grid, row by row; the kernel is then s x s, with s at most its side.

    Attributes:
        kernel: The kernels of all heads.
    """

    facts = KindFacts(
        "the same as `aft_full`; w depends on t' - t alone, one key a head",
        "3 d + H (window + 2)",
        "T window d",
        "paper or average",
    )

    @classmethod
    def example_options(cls, max_length: int) -> dict[str, Any]:
        """The default window, or all tokens of shorter sequences."""
        return {"window": min(11, max_length)}

    def __init__(
        self,
        place: Place,
        heads: Sequence[int],
        window: int = 11,
        grid: bool = False,
        init: str = "paper",
        causal: bool | None = None,
    ) -> None:
        side = math.isqrt(place.max_length)
        if grid and (side**2 != place.max_length or place.reach.after == 0):
            raise PapaError(
                f"grid is True, but the {place.max_length} tokens of layer {place.layer} "
                f"{'are causal' if side**2 == place.max_length else 'are no square grid'}: leave grid out, or use an "
                "encoder whose tokens are the cells of a square image, without a class token."
            )
        check_window(window, side if grid else place.max_length, "the side of the grid" if grid else "max_length")
        super().__init__(place, heads, init, causal)
        self.window, self.grid = window, grid
        kernel = NormalizedKernel(place.num_heads, window, 2 if grid else 1)
        self.kernel = kernel.to(device=place.device, dtype=place.dtype)
        if init == "paper":
            nn.init.constant_(self.key_scale, place.head_size**-0.5)

    def options(self) -> dict[str, Any]:
        """See :meth:`TokenMixer.options`."""
        return {"window": self.window, "grid": self.grid, **super().options()}

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`AFTSimpleHeads.mix`; there is no kernel for grids."""
        if self.grid:
            return recomputed(self.mixture, query, key, value, mask)
        return super().mix(query, key, value, mask)

    def bias(self, length: int) -> dict[str, Any]:
        """See :meth:`AFTSimpleHeads.bias`."""
        band, first = kernel_band(self.kernel(), length, self.causal)
        return {"weight": band, "groups": band.shape[0], "first": first, "summed": True}

    def start_from(self, constants: Tensor) -> None:
        """See :func:`~papa_lightning.attention.aft.from_constants.kernel_bias`."""
        side = math.isqrt(self.max_length) if self.grid else None
        entries = kernel_entries(self.max_length, self.window, self.causal, side).to(constants.device)
        shape = self.kernel.weight.shape
        wanted = kernel_bias(self.reach.cut(constants), entries, shape[1:].numel())
        centre, spread = wanted.mean(dim=1, keepdim=True), wanted.std(dim=1, keepdim=True, correction=0)
        self.kernel.weight.copy_(wanted.reshape(shape))
        self.kernel.gamma.copy_(spread.reshape(self.kernel.gamma.shape))
        self.kernel.beta.copy_(centre.reshape(self.kernel.beta.shape))

    def mean(self, gate: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """See :meth:`AFTSimpleHeads.mean`."""
        one = (key * self.key_scale[:, None]).sum(dim=-1).transpose(1, 2)
        gate, value = gate.view(*one.shape, -1), value.view(*one.shape, -1)
        if not self.grid:
            return conv_mixture(gate, one, value, self.kernel(), mask, self.causal).flatten(2)
        side = math.isqrt(value.shape[1])
        check_grid(side, value.shape[1])
        return conv2d_mixture(gate, one, value, self.kernel(), side, mask).flatten(2)
