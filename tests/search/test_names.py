"""When a search that did not come far leaves its name free."""

from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from xlstm_tune.errors import ResourceError
from xlstm_tune.search.persistence.journal import Journal
from xlstm_tune.search.run import unnamed_if_refused


@dataclass
class Named:
    """What of a plan says how a search is called."""

    folder: Path
    resume: bool = False


@pytest.mark.parametrize(
    ("error", "begun", "resume", "free"),
    [
        (ResourceError("too small"), False, False, True),
        (RuntimeError("Ray does not start"), False, False, True),
        (RuntimeError("Ray does not start"), True, False, False),
        (RuntimeError("Ray does not start"), False, True, False),
        (OSError(errno.ENOSPC, "No space left on device"), False, False, False),
        (KeyboardInterrupt(), False, False, False),
    ],
)
def test_a_name_is_free_where_no_trial_began_and_nothing_says_to_go_on(
    tmp_path: Path, error: BaseException, begun: bool, resume: bool, free: bool
) -> None:
    folder = tmp_path / "wave"
    folder.mkdir()
    if begun:
        with closing(Journal(folder)) as journal:
            journal.began([0], [{}])
    with pytest.raises(type(error)), unnamed_if_refused(cast(Any, Named(folder, resume))):
        raise error
    assert folder.exists() is not free
