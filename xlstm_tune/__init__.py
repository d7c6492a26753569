"""Search the LSTM family (LSTM, sLSTM, mLSTM, xLSTM stacks) over every GPU there is."""

import os
import sys

__version__ = "0.1.0"


def _leave_the_working_folder_out() -> None:
    """Let a `calendar.py` beside somebody's table be no module: `python -m` and Ray's workers look there first.

    A checkout that is worked in, and may not be installed, keeps its place.
    """
    commanded = sys.argv[:1] == ["-m"]  # so long as Python looks for the module that it was given
    if not commanded and os.path.basename(sys.argv[0] if sys.argv else "") != "default_worker.py":
        return
    try:
        here = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # which the commands say themselves
        return
    if here != os.path.dirname(os.path.dirname(os.path.realpath(__file__))):
        sys.path[:] = [place for place in sys.path if os.path.realpath(place or here) != here]


_leave_the_working_folder_out()
