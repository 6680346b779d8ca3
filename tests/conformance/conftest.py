"""Families in whose cases the lines that they reach are counted, which takes more than half as long as the cases."""

from pathlib import Path

import pytest

#: One for each way through the package; the others run the same lines of it.
COUNTED = {
    "bert", "roberta", "gpt2", "llama", "mistral", "modernbert", "bart", "t5", "vit", "papa-causal", "albert-groups",
    "deberta", "deberta-v2-own", "deberta-v2-shared", "mpnet", "roformer", "roformer-value",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        case = getattr(item, "callspec", None)
        if Path(__file__).parent in item.path.parents and case and case.params.get("name", "bert") not in COUNTED:
            item.add_marker("no_cover")
