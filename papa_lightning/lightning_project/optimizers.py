"""Parameter groups for what a swap adds to an encoder: a learning rate of their own, and no weight decay."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from papa_lightning.attention import TokenMixer
from papa_lightning.either_lightning import L, is_a, rank_zero_warn
from papa_lightning.encoders import swapped_layers
from papa_lightning.errors import PapaError

#: Attribute of a swapped layer that maps names of its parameters to their learning rate, None for that of the rest.
_NOTE = "papa_groups"
_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
#: Optimizers that read their groups only when they are made.
_FIXED = ("LBFGS", "ZeroRedundancyOptimizer")
#: Attributes of schedulers with a learning rate for each group.
_SCHEDULED = ("base_lrs", "_last_lr", "max_lrs", "min_lrs")
_REMEDY = "use papa_lightning.parameter_groups(self, lr=...) in configure_optimizers"

Named = dict[str, nn.Parameter]


def parameter_groups(module: nn.Module, **defaults: Any) -> list[dict[str, Any]]:
    """Parameter groups of a module for any optimizer, with what a callback swapped in kept apart.

    Use it in ``configure_optimizers`` beside :class:`~papa_lightning.HeadGates` or another callback with a
    ``learning_rate``, so that schedules see the groups that training will have. Without a callback it is one group.

    Args:
        module: The LightningModule. Parameters that do not require a gradient are left out.
        defaults: Options of the groups, such as ``lr`` and ``weight_decay``.

    Returns:
        A group with the defaults, unless it is empty, then one for each learning rate asked for, without weight decay.

    Example:
        >>> from torch.optim import AdamW
        >>> optimizer = AdamW(parameter_groups(nn.Linear(2, 1), lr=1e-3, weight_decay=0.01))
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [2]
    """
    apart = _parameters_apart(module)
    known = {id(one) for named in apart.values() for one in named.values()}
    rest = [one for one in module.parameters() if one.requires_grad and id(one) not in known]
    groups = [{**defaults, "params": rest}] if rest else []
    for rate, named in apart.items():
        own = {"weight_decay": 0.0} if rate is None else {"weight_decay": 0.0, "lr": rate}
        groups.append({**defaults, **own, "params": list(named.values())})
    return groups


def keep_apart(encoder: nn.Module, names: Callable[[TokenMixer], Iterable[str]], learning_rate: float | None) -> None:
    """Request a parameter group for parameters of the swapped layers; None takes the rate of the first group."""
    for layer in swapped_layers(encoder):
        vars(layer).setdefault(_NOTE, {}).update(dict.fromkeys(names(layer), learning_rate))


def forget_groups(module: nn.Module) -> None:
    """Undo :func:`keep_apart` for all encoders in a module."""
    for part in module.modules():
        vars(part).pop(_NOTE, None)


def set_up_groups(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Move the parameters of :func:`keep_apart` into groups of their own, unless they have them; scale schedules."""
    if not trainer.optimizers:
        return
    for rate, named in _parameters_apart(module).items():
        if is_a(trainer.strategy, "DeepSpeedStrategy"):
            rank_zero_warn(
                "DeepSpeedStrategy has copies of the parameters in its optimizer, so the group of the parameters that "
                f"the swap added was not checked: {_REMEDY}."
            )
            return
        own = {id(one) for one in named.values()}
        home = next(
            (one for one in trainer.optimizers if any(own & {*map(id, group["params"])} for group in one.param_groups)),
            trainer.optimizers[0],
        )
        everyone = (config.scheduler for config in trainer.lr_scheduler_configs)
        schedulers = [one for one in everyone if getattr(one, "optimizer", home) is home]
        place = next((i for i, one in enumerate(home.param_groups) if {*map(id, one["params"])} == own), None)
        if place is None:
            place = _move(trainer.optimizers, home, named, schedulers)
        _retune(home.param_groups[place], rate, schedulers, place)


def _parameters_apart(module: nn.Module) -> dict[float | None, Named]:
    """Parameters with a group of their own, by learning rate; each by its name in the module."""
    found: dict[float | None, Named] = {}
    for path, layer in module.named_modules():
        own = dict(layer.named_parameters()) if _NOTE in vars(layer) else {}
        for name, rate in vars(layer).get(_NOTE, {}).items():
            parameter = own.get(name)  # None where a strategy has flattened it
            if parameter is not None and parameter.requires_grad:
                found.setdefault(rate, {})[f"{path}.{name}"] = parameter
    return found


def _move(optimizers: Iterable[Optimizer], home: Optimizer, named: Named, schedulers: Iterable[Any]) -> int:
    """Take parameters out of all groups and add a group of their own; returns its place in `home`."""
    if any(base.__name__ in _FIXED for base in type(home).__mro__):
        raise PapaError(
            f"optimizer is a {type(home).__name__}, to which no parameter group can be added, but the parameters that "
            "the swap added need one: make it from papa_lightning.parameter_groups(self, lr=...) in "
            "configure_optimizers, or use another optimizer."
        )
    own = {id(one) for one in named.values()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept = [number for number, one in enumerate(group["params"]) if id(one) not in own]
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [group[key][number] for number in kept]
    first = home.param_groups[0]
    options = {key: value for key, value in first.items() if key not in ("params", "param_names")}
    # torch wants names for all parameters or for none.
    home.add_param_group({**options, "params": list(named.items() if "param_names" in first else named.values())})
    for scheduler in _innermost(schedulers):
        if not isinstance(scheduler, LRScheduler):
            rank_zero_warn(
                f"{type(scheduler).__name__} is not a scheduler of torch, so it may leave the learning rate of the "
                f"parameters that the swap added as it is: {_REMEDY}."
            )
        for name in (*_SCHEDULED, "lr_lambdas", "base_momentums", "max_momentums"):
            values = vars(scheduler).get(name)
            if isinstance(values, list) and values:
                values.append(values[0])
    return len(home.param_groups) - 1


def _retune(group: dict[str, Any], rate: float | None, schedulers: Iterable[Any], place: int) -> None:
    """Turn off the weight decay of a group, and multiply its rates so that the highest is `rate`."""
    group["weight_decay"] = 0.0
    highest = group.get("max_lr", group.get("initial_lr", group["lr"]))
    if rate is None or highest == rate:
        return

    def scaled(value: Any) -> Any:
        return value * (rate / highest) if highest else rate

    group.update({name: scaled(group[name]) for name in _RATES if name in group})
    for scheduler in _innermost(schedulers):
        for name in _SCHEDULED:
            values = vars(scheduler).get(name)
            if isinstance(values, list) and place < len(values):
                values[place] = scaled(values[place])


def _innermost(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Schedulers, and those that they chain."""
    for scheduler in schedulers:
        yield scheduler
        yield from _innermost(vars(scheduler).get("_schedulers", ()))
