"""What is made of errors that others raise."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from xlstm_tune.errors import StorageError, TrackingError, first_line, joined_lines, last_line, one_line, reaching


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("no such file", "no such file", "no such file"),
        ("no such file. ", "no such file", "no such file."),
        ("\n\n  at the top:\n  below\n", "at the top:", "below"),
        ("", "OSError", "OSError"),
        (" \n ", "OSError", "OSError"),
    ],
)
def test_first_and_last_line_of_what_an_error_says(said: str, first: str, last: str) -> None:
    assert (first_line(OSError(said)), last_line(OSError(said))) == (first, last)


def test_all_lines_are_joined_by_single_spaces() -> None:
    assert joined_lines(ValueError("expected a key\n  in line 3,\tcolumn 1\n")) == "expected a key in line 3, column 1"


def test_a_line_for_the_terminal_has_nothing_that_the_terminal_obeys() -> None:
    assert one_line(ValueError("a\n[red]b\x1b[2J")) == r"a \[red]b\x1b[2J"


def test_reaching_names_the_place_the_reason_and_the_remedy() -> None:
    with pytest.raises(StorageError) as caught, reaching(Path("/a/b"), StorageError):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a")
    assert str(caught.value) == (
        "/a/b cannot be reached (Permission denied); give yourself the right to, or name another"
    )
    broken = pytest.raises(TrackingError, match=r"^the disk cannot be reached \(broken\); mend it$")
    with broken, reaching("the disk", TrackingError, "mend it"):
        raise OSError("broken.\nat 0x1")


def test_reaching_lets_other_errors_through() -> None:
    with pytest.raises(LookupError), reaching("it", StorageError):
        raise LookupError
