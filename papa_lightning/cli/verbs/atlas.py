"""``papa atlas``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from papa_lightning.cli.verbs.registry import VERBS
from papa_lightning.text import Table, tell

if TYPE_CHECKING:
    from papa_lightning.atlas import HeadAtlas


@VERBS.register("atlas")
def atlas(
    *,
    output: str,
    constants: str | None = None,
    encoder: str | None = None,
    data: Mapping[str, Any] | None = None,
    examples: int = 512,
    device: str = "auto",
) -> HeadAtlas:
    """Describe what the constant of each head does: pages with pictures, and a table.

    Args:
        output: Folder for the pages and the table.
        constants: Constants file; without one, the attention of the encoder is averaged over the examples.
        encoder: Name on the hub, or folder, of the encoder; without one, entropy and output norms are left out.
        data: Data module whose training rows the encoder reads, as class_path and init_args; null takes the bundled
            sentences.
        examples: Number of training rows that the encoder reads.
        device: Device of the encoder: auto, cpu, cuda or mps.
    """
    from papa_lightning.atlas import make_atlas
    from papa_lightning.calibration import AttentionConstants
    from papa_lightning.checks import whole
    from papa_lightning.errors import PapaError
    from papa_lightning.files.writing import check_output
    from papa_lightning.study.report.atlas import write_atlas

    whole(1)("examples", examples)
    check_output("output", Path(output) / "atlas.html")
    if constants is None and encoder is None:
        raise PapaError("constants is None and encoder is None: pass --constants FILE, --encoder NAME, or both.")
    held = None if constants is None else AttentionConstants.load(constants)
    if encoder is not None:
        made = _measured(encoder, held, data, examples, device)
    else:
        assert held is not None
        made = make_atlas(held)
    page = write_atlas(made, output)
    tell(_summary(made), f"atlas    {page}\nnumbers  {page.with_name('atlas.csv')}")
    return made


def _measured(encoder: str, constants: Any, data: Mapping[str, Any] | None, examples: int, device: str) -> HeadAtlas:
    from torch import nn
    from torch.utils.data import DataLoader

    from papa_lightning.atlas import measure_atlas
    from papa_lightning.calibration import without_path
    from papa_lightning.datamodules.base import TaskDataModule
    from papa_lightning.encoders.loading import load_plain_encoder
    from papa_lightning.runtime import find_device
    from papa_lightning.study.workbench import build

    given = {"class_path": "papa_lightning.DemoDataModule", **(data or {})}
    lengths = {} if constants is None else {"max_length": constants.max_length}
    settings = {"max_train_examples": examples, **lengths, **(given.get("init_args") or {}), "tokenizer": encoder}
    rows: TaskDataModule = build(TaskDataModule, "data", {**given, "init_args": settings})
    rows.setup("fit")
    noted = {"tokenizer": without_path(encoder), "data": rows.description}
    noted |= {"layout": rows.layout, "preset": rows.preset}
    separator = rows.tokenizer.sep_token_id
    model: nn.Module = load_plain_encoder(encoder)
    return measure_atlas(
        model.to(find_device(device)),
        DataLoader(rows.train_dataloader().dataset, batch_size=32),
        rows.max_length,
        constants=constants,
        separators=() if separator is None else (separator,),
        metadata=noted,
    )


def _summary(made: HeadAtlas) -> Table:
    """How many heads have each pattern, and an example of each: the head with the least variance."""
    table = made.table()
    order = table.sort_values("variance", kind="stable") if "variance" in table else table
    rows = [
        (name, str(len(own)), f"{own['layer'].iloc[0]}.{own['head'].iloc[0]}")
        for name, own in sorted(order.groupby("pattern"), key=lambda one: -len(one[1]))
    ]
    return Table(("pattern", "heads", "for example"), rows)
