"""The callback that trains the constants of swapped heads."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from papa_lightning.attention import MatrixHeads, TokenMixer
from papa_lightning.attention.functional import EPS, accumulation_dtype
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.callbacks.calibrating import CalibratingCallback, check_rate, refuse_sharding
from papa_lightning.either_lightning import Callback, L
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.encoder import averaged_copies, discover_encoder, make_late_encoder
from papa_lightning.lightning_project.optimizers import forget_groups, keep_apart, set_up_groups


class LearnedConstants(Callback):
    """Train the constants that another callback, usually ConstantAttention, gives to the heads of an encoder.

    They become a parameter group of their own, without weight decay, and stay distributions: every optimizer step ends
    with rows cut at 0 and divided by their sums; rows of zeros stay so. The encoder may be frozen, or
    swapped by the module itself. Tasks add this callback in the regimes with ``constants`` in their names.

    Args:
        learning_rate: Learning rate of the constants, whose entries are of the order 1/T. None takes that of the
            optimizer's first group.
        encoder: Attribute that holds the encoder, when the module has several.

    Raises:
        PapaError: For invalid arguments. When the fit starts: for strategies that shard the encoder, and for an encoder
            without constants or with constants that another callback has frozen.

    Example:
        >>> from lightning import Trainer
        >>> from papa_lightning import ConstantAttention
        >>> callbacks = [ConstantAttention(max_length=64), LearnedConstants(learning_rate=1e-3)]
        >>> trainer = Trainer(callbacks=callbacks, logger=False)
    """

    def __init__(self, learning_rate: float | None = None, encoder: str | None = None) -> None:
        self.learning_rate, self.encoder = check_rate(learning_rate), encoder
        self._mixers: list[MatrixHeads] = []
        self._hooks: list[RemovableHandle] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the constants parameters, before DDP wraps the module and the optimizers are made."""
        if stage != "fit":
            return
        parts = "the constants, so that their rows cannot be kept distributions"
        refuse_sharding(trainer, parts, "train them on one device or with strategy ddp")
        make_late_encoder(trainer, pl_module)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for later in callbacks[callbacks.index(self) + 1 :]:
            if isinstance(later, CalibratingCallback):
                later.setup(trainer, pl_module, stage)  # the heads have to be swapped by now; it can be called twice
        for module in (pl_module, *averaged_copies(trainer, pl_module)):
            train_constants(discover_encoder(module, self.encoder), self.learning_rate)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set up the parameter group, and refuse an encoder without constants."""
        if not learning_mixers(discover_encoder(pl_module, self.encoder)):
            raise PapaError(
                "the encoder has no constant heads, so there are no constants that LearnedConstants could train: add "
                "the callback ConstantAttention, with heads other than none."
            )
        set_up_groups(trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let every optimizer end its steps with rows that are distributions, and refuse constants frozen by now."""
        self._remove_hooks()  # a finder of learning rates runs the start of training more than once
        self._mixers = learning_mixers(discover_encoder(pl_module, self.encoder))
        if not all(mixer.constants.requires_grad for mixer in self._mixers):
            raise PapaError(
                "the constants were frozen after setup, so they cannot learn: freeze the encoder in __init__ of the "
                "module, let a callback that freezes it stand before LearnedConstants in the list of callbacks, or "
                "leave parameters with .papa. in their name out."
            )
        self._hooks = [
            optimizer.register_step_post_hook(lambda *_: project_constants(self._mixers))
            for optimizer in trainer.optimizers
        ]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Divide the rows by their sums before the first step; all callbacks have calibrated by now."""
        if trainer.global_step == 0:  # a resumed run goes on with the same numbers, to the last bit
            project_constants(self._mixers)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep rows of constants that are 0 unchanged."""
        drop_unknown_gradients(self._mixers)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look again at which positions have a weight on themselves, because learning may have taken it away."""
        for mixer in self._mixers:
            mixer.certain_length = first_zero_of_diagonal(mixer.constants.detach())

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let go of the optimizers and of the parameter group."""
        self._remove_hooks()
        self._mixers = []
        forget_groups(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Do the same after an error, when the Trainer calls no teardown."""
        self.teardown(trainer, pl_module, "fit")

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def learning_mixers(encoder: nn.Module) -> list[MatrixHeads]:
    """Swapped layers with constants that can learn; an empty parameter would get no gradient and stop DDP."""
    return [mixer for mixer in swapped_layers(encoder) if isinstance(mixer, MatrixHeads) and mixer.constants.numel()]


def train_constants(encoder: nn.Module, learning_rate: float | None) -> None:
    """Make the constants of an encoder parameters, with a parameter group at this rate, None for that of the rest."""
    mixers: list[TokenMixer] = [*learning_mixers(encoder)]
    for mixer in mixers:
        if not isinstance(mixer.constants, nn.Parameter):
            mixer.learn_constants()
    keep_apart(encoder, lambda layer: ("constants",) if layer in mixers else (), learning_rate)


def project_rows(constants: Tensor) -> Tensor:
    r"""Make every row a distribution, :math:`C_{ij} \leftarrow \max(C_{ij}, 0) / \sum_k \max(C_{ik}, 0)`, (..., T, T).

    A row of zeros stays; one whose entries have all fallen below 0 starts again from equal weights for its keys.

    Example:
        >>> project_rows(torch.tensor([[3.0, -1.0, 1.0], [0.0, 0.0, 0.0], [-2.0, -1.0, 0.0]]))
        tensor([[0.7500, 0.0000, 0.2500],
                [0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000]])
    """
    exact = constants.to(accumulation_dtype(constants.dtype))
    kept = exact.clamp_min(0.0)
    fallen = kept.sum(dim=-1, keepdim=True) <= EPS
    kept = torch.where(fallen, (exact != 0).to(exact.dtype), kept)
    return (kept / kept.sum(dim=-1, keepdim=True).clamp_min(EPS)).to(constants.dtype)


@torch.no_grad()
def project_constants(mixers: Sequence[MatrixHeads]) -> None:
    """Apply :func:`project_rows` to the constants of the given layers, in place, within the reach of each layer."""
    for mixer in mixers:
        mixer.constants.copy_(project_rows(mixer.reach.cut(mixer.constants)))


@torch.no_grad()
def drop_unknown_gradients(mixers: Sequence[MatrixHeads]) -> None:
    """Set the gradient of rows of zeros to 0: it is huge and says nothing, and clipping would silence all others."""
    for mixer in mixers:
        if mixer.constants.grad is not None:
            unknown = (mixer.constants == 0).all(dim=-1, keepdim=True)
            mixer.constants.grad.masked_fill_(unknown, 0.0)
