"""What a user can get wrong. Each message is one sentence: what, where, which rule, what to do.

The command line turns any of these into that sentence and exit code 2; none is ever a traceback.
"""


class UserError(ValueError):
    """Base of every mistake that the user, not the program, can mend."""


class SpecError(UserError):
    """The search file or the command line asks for something that does not exist or cannot work."""


class DataError(UserError):
    """The table cannot be read, or does not hold what the search file says it holds."""


class StorageError(UserError):
    """The storage folder cannot be written, or already holds a search of this name."""


class TrackingError(UserError):
    """The MLflow tracking server cannot be reached or refuses us."""


class ResourceError(UserError):
    """The search asks for more processors or GPUs than there are."""


class BackendUnavailable(UserError):
    """A kernel backend was asked for by name and cannot run here."""


class CheckpointError(UserError):
    """A saved run or a weights file is missing, damaged, newer than this program, or belongs to something else."""


def one_line(error: Exception) -> str:
    """The message on one line for rich, with its markup switched off and what a terminal would obey written out."""
    from rich.markup import escape

    line = " ".join(str(error).split())
    return escape("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))
