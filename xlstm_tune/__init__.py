"""Search the LSTM family (LSTM, sLSTM, mLSTM, xLSTM stacks) over every GPU there is."""

import os
import sys

__version__ = "0.1.0"
WORKER = "_XLSTM_SEARCH_WORKER"
"""Environment variable that tells Ray's workers of a search from those of others."""


def _leave_the_working_folder_out() -> None:
    """Let a `calendar.py` beside somebody's table be no module: `python -m` and Ray's workers look there first.

    In this program's own commands and workers; a checkout that is worked in, and may not be installed, keeps its place.
    """
    worker = WORKER in os.environ and os.path.basename(sys.argv[0] if sys.argv else "") == "default_worker.py"
    if not worker and not _commanded():
        return
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # which the commands say themselves
        return
    if here != os.path.dirname(os.path.dirname(os.path.realpath(__file__))):
        sys.path[:] = [place for place in sys.path if os.path.realpath(place or here) != here]


def _commanded() -> bool:
    """Whether Python was told `-m xlstm_tune...`, and is looking for that."""
    words = zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    asked = next((module for option, module in words if option[:1] == "-" and option[-1:] == "m"), "")
    return sys.argv[:1] == ["-m"] and asked.partition(".")[0] == "xlstm_tune"


_leave_the_working_folder_out()
