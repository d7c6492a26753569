"""What the writer and `sync` tell while they send: without credentials, and to a person in a line each."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xlstm_tune.tracking.uri import hide_credentials

OURS = "xlstm_tune.tracking"
_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger(OURS)


class HidingFormatter(logging.Formatter):
    """Log lines and tracebacks without credentials."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_credentials(super().format(record))


class LineFormatter(HidingFormatter):
    """The first line alone."""

    def format(self, record: logging.LogRecord) -> str:
        bare = record.__dict__ | {"exc_info": None, "exc_text": None, "stack_info": None}
        return super().format(logging.makeLogRecord(bare)).partition("\n")[0]


class _Kept(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: the person is told all the same."""


def set_up_logging(person: bool) -> None:
    """Our lines and others' warnings on standard error; of ours, and without tracebacks, if a `person` reads it."""
    handler = logging.StreamHandler()
    handler.setFormatter((LineFormatter if person else HidingFormatter)(_LINE))
    if person:
        handler.addFilter(logging.Filter(OURS))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    log.setLevel(logging.INFO)
    # Creating the database, MLflow and alembic tell each step.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def also_in(path: Path) -> Iterator[None]:
    """Everything, with the tracebacks, at the end of this file too. Where it cannot be written, nothing is."""
    try:
        handler = _Kept(path, encoding="utf-8", errors="backslashreplace")
    except OSError:
        yield
        return
    handler.setFormatter(HidingFormatter(_LINE))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):  # what a full disk did not take is tried once more
            handler.close()


def ignore_warnings() -> None:
    """Python's own, in this process: asked for as errors, those of MLflow's libraries would end every attempt."""
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
