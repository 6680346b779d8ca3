"""The cells of a study, and which of them are the same work."""

from papa_lightning.study import StudySettings
from papa_lightning.study.cells import Choice, cells_of, choices, pairs


def settings(**changes: object) -> StudySettings:
    given = {"encoders": {"a": "x", "b": "y"}, "tasks": {"t": {"class_path": "T"}, "u": {"class_path": "U"}}}
    return StudySettings(**{**given, "shares": [0.5, 1], "seeds": [3, 4], **changes})


def test_every_encoder_meets_every_task() -> None:
    assert pairs(settings()) == [("a", "t"), ("a", "u"), ("b", "t"), ("b", "u")]


def test_cells_are_the_product_and_always_have_share_0() -> None:
    found = list(cells_of(settings(criteria=["variance", "random"])))
    assert len(found) == len(set(found)) == 4 * 2 * 3 * 2  # pairs, criteria, shares, seeds
    assert {cell.share for cell in found} == {0.0, 0.5, 1.0}
    assert {cell.seed for cell in found} == {3, 4}


def test_controls_have_their_own_shares_and_the_first_criterion_only() -> None:
    given = settings(criteria=["variance", "random"], constants=["average", "zero"], control_shares=[0.25])
    found = [cell for cell in cells_of(given) if cell.kind == "zero"]
    assert {(cell.criterion, cell.share) for cell in found} == {("variance", 0.0), ("variance", 0.25)}


def test_recovery_has_all_shares_and_the_first_criterion_only() -> None:
    given = settings(criteria=["variance", "random"], constants=["average", "recovered"], control_shares=[0.25])
    found = [cell for cell in cells_of(given) if cell.kind == "recovered"]
    assert {(cell.criterion, cell.share) for cell in found} == {("variance", share) for share in (0.0, 0.5, 1.0)}


def test_what_the_heads_do_not_depend_on_is_done_once() -> None:
    given = settings(criteria=["variance", "random"], constants=["average", "zero"])
    assert choices(given) == [
        Choice(0.0, None, None),
        Choice(0.5, "variance", "average"),
        Choice(1.0, None, "average"),
        Choice(0.5, "random", "average"),
        Choice(1.0, None, "zero"),
    ]
