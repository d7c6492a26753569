"""The environment variables of a search, looked at before it starts: a trial would refuse a wrong one too late."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from xlstm_tune.errors import SpecError
from xlstm_tune.kernels.config import VARIABLE as BACKWARD
from xlstm_tune.kernels.config import asked as backward
from xlstm_tune.search import recording, session
from xlstm_tune.search.finals import champion, importance
from xlstm_tune.search.persistence import mirror, store
from xlstm_tune.search.trials import checkpoints
from xlstm_tune.strict import did_you_mean
from xlstm_tune.training import capture

PREFIX = "XLSTM_TUNE_"
"""Of the names of all of this program's variables."""

PARSERS: dict[str, Callable[[], object]] = {
    capture.VARIABLE: capture.asked,
    BACKWARD: backward,
    checkpoints.SHARE: checkpoints.share,
    store.PATIENCE: store.patience,
    mirror.PERIOD: mirror.period,
    session.DRAIN: session.drain_seconds,
    champion.REGISTER: champion.wanted,
    recording.REPORT: recording.report_wanted,
    importance.IMPORTANCE: importance.wanted,
}
"""By variable, what reads it, and raises SpecError where it is wrong."""
READ = (*PARSERS, *session.KEPT_BACK, "XLSTM_TUNE_MLFLOW_PORT")
"""With those that are options of the command line too, and are checked as these are, and that of a cluster's head."""
OF_TESTS = ("XLSTM_TUNE_CLUSTER_TESTS", "XLSTM_TUNE_FUZZ", "XLSTM_TUNE_TEST_GPU")


def check_environment() -> None:
    """Raise SpecError, with one sentence, for a variable of this program that is wrong or that there is not, and for
    Python without docstrings, which Ray reads some of."""
    if sys.flags.optimize > 1:
        raise SpecError("Ray does not start under python -OO or PYTHONOPTIMIZE=2; use -O or 1 at most")
    for parse in PARSERS.values():
        parse()
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in (*READ, *OF_TESTS):
            # Only what follows the prefix can be misspelt; the value may be a password.
            known = [_dotted(one) for one in READ]
            hint = did_you_mean(_dotted(name), known).replace(f"{PREFIX}.", PREFIX)
            raise SpecError(f"the environment variable {name} means nothing to this program; unset it; {hint}")


def _dotted(name: str) -> str:
    return f"{PREFIX}.{name.removeprefix(PREFIX)}"
