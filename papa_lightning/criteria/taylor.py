"""Criterion "taylor": first-order change of the loss when a head becomes constant."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention.functional import apply_attention, constant_attention
from papa_lightning.calibration import eval_mode
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs, on_device, per_layer, precision
from papa_lightning.encoders import find_encoder, replace_mixing
from papa_lightning.errors import PapaError
from papa_lightning.ranking import merge_ties

_NAME = "papa_taylor_gates"


@CRITERIA.register("taylor")
class TaylorImportance(HeadCriterion):
    """First-order change of the loss when a head becomes constant.

        A' = alpha A + (1 - alpha) C',  score[l,h] = mean over sequences b of |d loss_b / d alpha[l,h]| at alpha = 1

    Source: Michel, Levy and Neubig 2019, Are sixteen heads really better than one?, arXiv 1905.10650, whose gate takes
    a head away; here alpha = 0 is the constant that this package swaps in. Every sequence has gates of its own, (B, H)
    a layer. `loss` should come from a trained probe in evaluation mode, as the mean of the losses of the sequences; in
    a mean over labelled tokens, sequences count by their share of the labels of their batch.

    Cost: one forward and one backward pass through all layers.
    """

    formula = "mean over sequences of abs(d loss / d alpha) at alpha = 1, A' = alpha A + (1 - alpha) C'"
    source = "Michel et al. 2019, arXiv 1905.10650, whose gate removes the head"
    needs = frozenset({"constants", "batches", "loss"})
    passes = 2.4
    needs_probe = True

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; a loss without gradient or of several runs, or no sequence, is refused."""
        assert inputs.batches is not None
        assert inputs.loss is not None
        base, constants = find_encoder(inputs.encoder), per_layer(inputs)
        sums = torch.zeros(len(constants), constants[0].shape[0], dtype=torch.float64, device=base.device)
        sequences, losses = 0, 0.0
        with _gates(base, (len(constants), constants[0].shape[0])) as gates:
            own: dict[int, Tensor] = {}
            mixings = [partial(_mix, own, layer, gates[layer], values) for layer, values in enumerate(constants)]
            with torch.enable_grad(), eval_mode(base), replace_mixing(base, mixings):
                for batch in inputs.batches:
                    own.clear()
                    loss = inputs.loss(on_device(batch, base.device))
                    gradients = _gradients(loss, own, len(constants))
                    sums += torch.stack([gradient.double().abs().sum(dim=0) for gradient in gradients])
                    sequences += gradients[0].shape[0]
                    losses += float(loss.detach().abs()) * gradients[0].shape[0]
        if sequences == 0:
            raise PapaError("batches is empty: pass at least one labelled batch.")
        # A loss that no head matters for has gradients that are rounding of the loss, which averages out.
        scores = (sums / sequences).cpu()
        merged = merge_ties(scores.flatten().tolist(), precision(base) * losses / sequences / 4)
        return torch.tensor(merged, dtype=torch.float64).view(scores.shape)


def _gradients(loss: Tensor, own: Mapping[int, Tensor], num_layers: int) -> list[Tensor]:
    """The d loss_b / d alpha of each layer, (B, H), out of the mean loss of B sequences."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise PapaError(
            f"loss gave a {type(loss).__name__}, but must give the mean loss of a batch: a tensor of one value."
        )
    if len(own) < num_layers or not loss.requires_grad:
        raise PapaError(
            "loss has no gradient for the attention of the encoder: let it run the encoder that is ranked, and neither "
            "under torch.no_grad() nor detached."
        )
    gates = [own[layer] for layer in range(num_layers)]
    gradients = torch.autograd.grad(loss, gates, allow_unused=True, materialize_grads=True)
    return [gradient * gradient.shape[0] for gradient in gradients]


def _mix(
    own: dict[int, Tensor],
    layer: int,
    gates: Tensor,
    constants: Tensor,
    attention: Tensor,
    value: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """Mix the values of one layer through the gates."""
    if layer in own:
        raise PapaError(
            "loss runs the encoder more than once a batch, but the gates belong to one run: let it run once."
        )
    length = value.shape[2]
    if length > constants.shape[-1]:
        raise PapaError(
            f"batches has sequences of {length} tokens, but the constants are for max_length {constants.shape[-1]}: "
            "truncate them, or calibrate with a larger max_length."
        )
    own[layer] = gates.expand(value.shape[0], -1)
    alpha = own[layer][:, None, :, None].to(value.dtype)
    fixed = constant_attention(constants[:, :length, :length], value, mask)
    return alpha * apply_attention(attention, value) + (1 - alpha) * fixed


@contextmanager
def _gates(encoder: PreTrainedModel, shape: tuple[int, int]) -> Iterator[nn.Parameter]:
    """Gates (L, H) of 1 among the parameters of an encoder, where tasks that freeze it see that something learns."""
    dtype = torch.promote_types(encoder.dtype, torch.float32)
    gates = nn.Parameter(torch.ones(shape, dtype=dtype, device=encoder.device))
    encoder.register_parameter(_NAME, gates)
    try:
        yield gates
    finally:
        delattr(encoder, _NAME)
