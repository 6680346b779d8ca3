"""Compare the attention-free layers with those of the package aft-pytorch 0.2.2 (MIT licence).

    pip install --no-deps --target FOLDER aft-pytorch==0.2.2
    python tools/compare_with_aft_pytorch.py FOLDER --write tests/unit/attention/aft/aft_pytorch_values.json

Prints the largest differences of the full and simple layers on small inputs, and the behaviour of that package in two
cases that it does not handle: keys of 100, and the position bias of its local layer after one optimizer step. With
--write, inputs, weights and results of the package are stored as data for the tests.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from papa_lightning.attention import aft_full, aft_local, aft_simple

LENGTH, WIDTH = 5, 3


def projected(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer of the package."""
    return layer.to_q(hidden), layer.to_k(hidden), layer.to_v(hidden)


def identity(layer: Any) -> Any:
    """The layer with an output projection that changes nothing, so that the mixing itself can be compared."""
    layer.project = nn.Identity()
    return layer


def cases(package: Any) -> dict[str, dict[str, Any]]:
    """Queries, keys, values, position bias, and the package's results, by kind."""
    torch.manual_seed(0)
    hidden = torch.randn(2, LENGTH, WIDTH)
    found = {}
    for kind in ("AFTFull", "AFTSimple", "AFTLocal"):
        options = {"s": 2} if kind == "AFTLocal" else {}
        layer = identity(getattr(package, kind)(LENGTH, WIDTH, hidden_dim=WIDTH, **options))
        query, key, value = projected(layer, hidden)
        bias = layer.wbias.detach().clone() if hasattr(layer, "wbias") else torch.zeros(LENGTH, LENGTH)
        tensors = {"query": query, "key": key, "value": value, "bias": bias, "result": layer(hidden)}
        found[kind] = {name: tensor.detach().double().tolist() for name, tensor in tensors.items()}
    return found


def ours(kind: str, case: dict[str, Any]) -> Tensor:
    """What this package computes from the same numbers."""
    names = ("query", "key", "value", "bias")
    query, key, value, bias = (torch.tensor(case[name], dtype=torch.float64) for name in names)
    if kind == "AFTFull":
        return aft_full(query, key, value, bias)
    return aft_simple(query, key, value) if kind == "AFTSimple" else aft_local(query, key, value, bias, window=2)


def show_large_keys(package: Any) -> None:
    """NaN there, finite here."""
    layer = package.AFTFull(LENGTH, WIDTH, hidden_dim=WIDTH)
    nn.init.zeros_(layer.to_k.weight)
    nn.init.constant_(layer.to_k.bias, 100.0)
    hidden = torch.randn(1, LENGTH, WIDTH)
    result = aft_full(*projected(layer, hidden), layer.wbias)
    print(f"keys of 100: {int(layer(hidden).isnan().sum())} of {hidden.numel()} numbers are NaN there, ", end="")
    print(f"{int(result.isnan().sum())} here")


def show_local_bias(package: Any) -> None:
    """The optimizer's parameter is not the one that the layer uses."""
    layer = package.AFTLocal(LENGTH, WIDTH, hidden_dim=WIDTH, s=2)
    parameter, optimizer = layer.wbias, torch.optim.SGD(layer.parameters(), lr=1.0)
    before = parameter.detach().clone()
    layer(torch.randn(1, LENGTH, WIDTH)).square().sum().backward()
    optimizer.step()
    print(f"local, after a step: bias moved: {not torch.equal(before, parameter)}; ", end="")
    print(f"its gradient: {parameter.grad}; the layer still uses it: {layer.wbias is parameter}")


def main() -> None:
    """Parse the arguments, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the package was installed to")
    parser.add_argument("--write", type=Path, help="JSON file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(args.folder))
    import aft_pytorch as package

    torch.set_default_dtype(torch.float64)  # its local layer makes its bias anew in the default dtype
    found = cases(package)
    torch.set_default_dtype(torch.float32)
    for kind, case in found.items():
        difference = (ours(kind, case) - torch.tensor(case["result"], dtype=torch.float64)).abs().max()
        print(f"{kind}: largest difference {difference:.1e}, float64, {LENGTH} tokens, {WIDTH} channels")
    show_large_keys(package)
    show_local_bias(package)
    if args.write:
        about = "computed by aft-pytorch 0.2.2 (MIT licence), seed 0, float64; see tools/compare_with_aft_pytorch.py"
        rounded = json.dumps({"origin": about, **found}, separators=(",", ":"))
        args.write.write_text(rounded + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
