"""Errors that a user of papa_lightning can cause and can mend."""

from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from papa_lightning.text import printable


class PapaError(ValueError):
    """Base of every error that papa_lightning raises on purpose.

    The message names the argument, the value found, and what to do about it.

    Example:
        >>> raise PapaError("max_length is 0, but must be at least 1: pass the padded length.")
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: max_length is 0, but must be at least 1: pass the padded length.
    """

    def __str__(self) -> str:
        """The message; names that come from files cannot steer the terminal."""
        return printable(super().__str__())


class OutputError(PapaError, OSError):
    """A file or folder cannot be written: something else is in its place, or the system refuses it."""


class UnsupportedEncoderError(PapaError):
    """The model is not an encoder whose attention papa_lightning knows how to swap."""


class HeadSelectionError(PapaError):
    """The heads asked for do not exist in the encoder, or are not determined by what was given."""


class CalibrationError(PapaError):
    """The calibration pass cannot be done, or its result would be wrong."""


class ConstantsFileError(PapaError):
    """A constants file cannot be read, or does not fit the encoder."""


class CheckpointError(PapaError):
    """A checkpoint is missing, damaged, or holds what could run code when it is loaded."""


class RankingFileError(PapaError):
    """A ranking file cannot be read, or is not a head ranking."""


class DataError(PapaError):
    """Task data is missing, unreadable, or not what the task expects."""


class ResultFileError(PapaError):
    """A result of a study cannot be read, or is not one."""


class StudyError(PapaError):
    """A study cannot be planned or run as asked, or its folder holds something else."""


class ExportError(PapaError):
    """An encoder cannot be exported as asked, or a folder holds no exported encoder that can be read."""


def explanation(error: BaseException | None) -> PapaError | None:
    """The PapaError that an error is, or that it was raised from.

    A parser wraps what a constructor raises in an error of its own, with a page of values around the one line.

    Args:
        error: Any error.

    Returns:
        The PapaError, or None when there is none behind it.
    """
    while error is not None and not isinstance(error, PapaError):
        error = error.__cause__ or error.__context__
    return error


def did_you_mean(found: object, known: Iterable[object]) -> str:
    """The name that was probably meant, as a sentence after a full stop; empty when no known name is alike.

    Args:
        found: The name that is not known.
        known: The names that are.

    Example:
        >>> did_you_mean("varianc", ["variance", "output"]), did_you_mean("median", ["variance", "output"])
        (". Did you mean 'variance'?", '')
    """
    by_lower = {str(one).lower(): str(one) for one in known}
    alike = get_close_matches(str(found).lower(), by_lower, n=1, cutoff=0.7)
    return f". Did you mean {by_lower[alike[0]]!r}?" if alike else ""


def similar_file(path: str | Path) -> str:
    """As :func:`did_you_mean`, for a path that does not exist: the most alike of the names in its folder."""
    given = Path(path).expanduser()
    with suppress(OSError):
        if given.parent.is_dir():
            return did_you_mean(given.name, [one.name for one in given.parent.iterdir() if one.name != given.name])
    return ""
