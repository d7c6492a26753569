"""Rows of gpu.py's results and lines of its tables: what gpu_tables.py and gpu_mlstm_tables.py share. Standard library
alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpu_cases import Case

Results = dict[str, Any]
Row = dict[str, Any]

NOT_RUN = "not run"
"""How the reason of what was left out begins; anything else is a failure."""


def case_of(row: Row) -> Case:
    return Case(**{name: row[name] for name in Case.__dataclass_fields__ if name in row})


def open_(row: Row) -> bool:
    """Whether time did not suffice for it."""
    return str(row.get("error", "")).startswith(NOT_RUN)


def verdict(missed: bool, undecided: bool) -> str:
    return "not decided" if undecided and not missed else "MISSED" if missed else "met"


def header(*names: str, numbers: Iterable[int] = ()) -> list[str]:
    """The first two lines of a table; numbers: columns that are aligned right."""
    rule = ["--:" if at in set(numbers) else "---" for at in range(len(names))]
    return [line(*names), f"|{'|'.join(rule)}|"]


def line(*cells: object) -> str:
    """A row; a bar in a cell would end it."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"
