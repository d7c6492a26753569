"""What a table is to foretell: the cells of its rows in a forecast, one value of each sequence in a regression.

R rows, K targets, S sequences. notes: what the user should know is appended to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xlstm_tune.data.columns import Columns, numbers
from xlstm_tune.data.missing import Filled, fill, without_blank_end
from xlstm_tune.data.roles import Roles
from xlstm_tune.data.rows import Rows, series_name
from xlstm_tune.data.words import count
from xlstm_tune.errors import DataError


@dataclass(frozen=True)
class Cleaned:
    """Rows without blanks, and their targets."""

    filled: Filled
    targets: np.ndarray
    """float64 [R, K] of a forecast, [S, K] of a regression."""
    observed: np.ndarray
    """bool, as `targets`: which of them were not blank."""
    oracle: np.ndarray | None
    """float64 [S, K], the known conditional mean in a simulated sample; else None."""
    end: int
    """Behind the last row of the first series that has a target."""


def read_forecast(rows: Rows, roles: Roles, policy: str, judged: bool, notes: list[str]) -> Cleaned:
    """The targets are inputs too. judged: else rows without any at the end of a series are left out."""
    columns = Columns.read(rows.source, rows.order, roles)
    if not judged:
        columns, rows = without_blank_end(columns, rows, roles.targets, notes)
    filled = fill(columns, rows, policy, roles.targets, notes)
    targets = np.stack([filled.columns.cells[name] for name in roles.targets], axis=1)
    observed = np.stack([~filled.blank[name] for name in roles.targets], axis=1)
    first = observed[: int(filled.rows.offsets[1])].any(axis=1)
    return Cleaned(filled, targets, observed, None, int(np.flatnonzero(first)[-1]) + 1)


def read_regression(rows: Rows, roles: Roles, policy: str, judged: bool, notes: list[str]) -> Cleaned:
    """judged: else no target column is looked at; targets are 0 and not observed."""
    oracle: np.ndarray | None = None
    if judged:
        targets, rows = _of_sequences(rows, roles, policy, notes)
        known = rows.source.oracle
        if known and all(name in known for name in roles.targets):
            first = rows.order[rows.offsets[:-1]]
            oracle = np.stack([numbers(rows.source, known[name], True)[first] for name in roles.targets], axis=1)
    else:
        targets = np.zeros((len(rows.keys), len(roles.targets)))
    filled = fill(Columns.read(rows.source, rows.order, roles), rows, policy, roles.targets, notes)
    if len(filled.rows.keys) < len(targets):
        targets = targets[filled.rows.kept]
        oracle = oracle[filled.rows.kept] if oracle is not None else None
    return Cleaned(filled, targets, np.full(targets.shape, judged), oracle, int(filled.rows.offsets[1]))


def _of_sequences(rows: Rows, roles: Roles, policy: str, notes: list[str]) -> tuple[np.ndarray, Rows]:
    """[S, K] the one value of each target in each sequence; sequences without one go, unless the policy is `error`."""
    targets = np.empty((len(rows.keys), len(roles.targets)))
    for column, name in enumerate(roles.targets):
        cells = numbers(rows.source, name, True)[rows.order]
        low = np.fmin.reduceat(cells, rows.offsets[:-1])
        high = np.fmax.reduceat(cells, rows.offsets[:-1])
        varied = np.flatnonzero(low < high)
        if len(varied):
            start, end = int(rows.offsets[varied[0]]), int(rows.offsets[varied[0] + 1])
            known = start + np.flatnonzero(~np.isnan(cells[start:end]))
            other = int(known[np.flatnonzero(cells[known] != cells[known[0]])[0]])
            one, two = _apart(cells[known[0]], cells[other])
            raise DataError(
                f"the target '{name}' changes within the sequence "
                f"{series_name(rows.key_names, rows.keys[int(varied[0])])} ({one} in "
                f"{rows.where(int(known[0]))}, {two} in {rows.where(other)}); "
                f"a regression has one target per sequence"
            )
        targets[:, column] = low
        partly = np.add.reduceat(np.isnan(cells), rows.offsets[:-1], dtype=np.int64)[~np.isnan(low)] > 0
        if partly.any():
            notes.append(
                f"{partly.sum()} of {len(low)} sequences have the target '{name}' on some of their rows only; it "
                f"counts for all of them"
            )
    blank = np.asarray(np.isnan(targets).any(axis=1))
    if not blank.any():
        return targets, rows
    if policy == "error":
        first = int(np.flatnonzero(blank)[0])
        name = roles.targets[int(np.flatnonzero(np.isnan(targets[first]))[0])]
        raise DataError(
            f"the target '{name}' is blank in {count(int(blank.sum()), 'sequence')}, first in "
            f"{series_name(rows.key_names, rows.keys[first])} ({rows.where(int(rows.offsets[first]))}); "
            f"set data.missing: drop to leave them out"
        )
    if blank.all():
        raise DataError("every sequence lacks a target; give at least some of them one")
    notes.append(f"{blank.sum()} of {len(blank)} sequences have no target and were left out")
    return targets[~blank], rows.keep(np.repeat(~blank, np.diff(rows.offsets)))


def _apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers that differ as texts that do."""
    short = f"{one:g}", f"{other:g}"
    return short if short[0] != short[1] else (repr(float(one)), repr(float(other)))
