"""What a user can get wrong. Each message is one sentence: what, where, which rule, what to do.

The command line turns any of these into that sentence and exit code 2; none is ever a traceback.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Codes of an OSError that means there is no room."""


class UserError(ValueError):
    """Base of every mistake that the user, not the program, can mend."""


class SpecError(UserError):
    """The search file or the command line asks for something that does not exist or cannot work."""


class DataError(UserError):
    """The table cannot be read, or does not hold what the search file says it holds."""


class StorageError(UserError):
    """What a search keeps cannot be written or read, is damaged or missing, or is another's than was asked for."""


class TrackingError(UserError):
    """The MLflow tracking server cannot be reached or refuses us."""


class ResourceError(UserError):
    """The search asks for more processors or GPUs than there are, or for a cluster that cannot be had."""


class BackendUnavailable(UserError):
    """A kernel backend was asked for by name and cannot run here."""


class CheckpointError(UserError):
    """A saved run or a weights file is missing, damaged, newer than this program, or belongs to something else."""


@contextmanager
def reaching(
    what: object, kind: type[UserError], remedy: str = "give yourself the right to, or name another"
) -> Iterator[None]:
    """Raise `kind` for an OSError, such as a folder closed to us makes of Path.exists, is_file and is_dir too.

    what: the file or folder that is looked for or read, as the sentence names it. remedy: how the sentence ends.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{what} cannot be reached ({error.strerror or first_line(error)}); {remedy}") from None


def one_line(error: Exception) -> str:
    """The message on one line for rich, with its markup switched off and what a terminal would obey written out."""
    from rich.markup import escape

    return escape("".join(one if one.isprintable() else ascii(one)[1:-1] for one in joined_lines(error)))


def joined_lines(error: BaseException) -> str:
    """All lines of what an error says as one."""
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    """What an error says first, without the full stop: libraries add where it happened. Its kind if it says nothing."""
    return _lines(error)[0].rstrip(". ")


def last_line(error: BaseException) -> str:
    """What an error says last: Ray's begin with where it came from. Its kind if it says nothing."""
    return _lines(error)[-1].strip()


def _lines(error: BaseException) -> list[str]:
    return str(error).strip().splitlines() or [type(error).__name__]


def check_working_folder() -> None:
    """Raise SpecError where the current folder was deleted: relative paths begin there, and torch cannot be loaded."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise SpecError("the current folder no longer exists; change to one that does") from None


def check_is_text(path: str, what: str) -> None:
    """Raise SpecError for a path that cannot be written into a file of text. what: as the sentence names it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SpecError(
            f"{what} has a name that is no text here, {path!a}; rename it, or set LC_ALL=C.UTF-8 if it looks right"
        ) from None
