"""From files or a built-in sample to checked columns of numbers: series by series, in the order of time.

R rows, F input columns, K targets, S series (forecast) or sequences (regression).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from xlstm_tune.data.calendar import cycle_columns
from xlstm_tune.data.clock import Kind, cell, check_weeks, early_note, parse_time, plain
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.gaps import gaps_note, sequence_gaps_note
from xlstm_tune.data.read import Source, read_source, without_views
from xlstm_tune.data.roles import Roles, assign_roles
from xlstm_tune.data.rows import arrange, series_name
from xlstm_tune.data.static import Static, read_static
from xlstm_tune.data.steps import months_of, stepping, usual_step
from xlstm_tune.data.targets import read_forecast, read_regression
from xlstm_tune.data.weeks import WEEKS
from xlstm_tune.data.words import listing
from xlstm_tune.data.zones import on_clocks
from xlstm_tune.errors import DataError

SAMPLE_ROWS = 4096
"""Of a table that are kept as they were read."""


@dataclass(frozen=True)
class Table:
    """Checked data in their own units, before anything is split or scaled."""

    values: np.ndarray
    """[R, F] float32 inputs, C-contiguous; rows grouped by series and ordered in time inside each."""
    exact: dict[str, np.ndarray]
    """float64 [R], by name, of the inputs that float32 rounds too coarsely."""
    features: tuple[str, ...]
    """F names, such as "temp_max", or "weather=rain" for a value of a category."""
    one_hot: tuple[int, ...]
    """Columns of `values` that stand for a value of a category."""
    static: Static
    """What each series or sequence has once."""
    targets: np.ndarray
    """float64 in the target's units; forecast [R, K] by row, regression [S, K] by sequence."""
    target_names: tuple[str, ...]
    observed: np.ndarray
    """bool like `targets`: False where the target was blank and the policy filled it."""
    peeks: np.ndarray
    """bool [R]: rows with a cell that `interpolate` filled from a later row; no forecast may start right after one."""
    offsets: np.ndarray
    """int64 [S + 1]: series s has the rows offsets[s] .. offsets[s + 1] - 1."""
    keys: tuple[tuple[str, ...], ...]
    """S tuples of the values of the key columns as text; (("all",),) for a single series."""
    key_names: tuple[str, ...]
    time: np.ndarray
    """int64 [R]: nanoseconds since 1970, consecutive week, or row number of the file counted from 0."""
    time_kind: Kind
    shown: np.ndarray
    """int64 [R]: `time` as `on_clocks` has it."""
    step: int | None
    """The commonest difference of `time` inside a series, in whole days of `shown`, as `usual_step` has it; None in row
    order or with one row a series."""
    months: int
    """Of a step, where rows follow the calendar, as `months_of` has it; else 0."""
    labels: pa.ChunkedArray | None
    """The time column as it was read, by row of the file; None in row order."""
    file_rows: np.ndarray
    """int64 [R]: row of the file(s), counted from 0, that each row of `values` came from."""
    oracle: np.ndarray | None
    """[S, K] float64, the known conditional mean of the targets of a simulated sample; else None."""
    notes: tuple[str, ...]
    """One-sentence observations for the user."""
    fingerprint: str
    """SHA-256 of all that a model could see."""
    rounded: str | None
    """The fingerprint by an earlier program, without `exact`; None where that is empty."""
    sample: pa.Table
    """The last rows of the first series as they were read, every column that was used, at most `SAMPLE_ROWS`; a
    forecast's up to the last that has a target."""

    def cells(self, column: int) -> np.ndarray:
        """float64 [R]: an input in its own units, as exactly as it is known."""
        known = self.exact.get(self.features[column])
        return self.values[:, column].astype(np.float64) if known is None else known

    def time_label(self, row: int) -> str:
        """The time of a row as the user wrote it; the row number of the file in row order."""
        if self.labels is None:
            return str(int(self.file_rows[row]) + 1)
        return cell(self.labels, int(self.file_rows[row]))

    def series_name(self, series: int) -> str:
        """A series in words, such as `county=Pima, year=2006`; empty for a single series without a key."""
        return series_name(self.key_names, self.keys[series])


def load_table(config: DataConfig, exact: Collection[str] | None = None) -> Table:
    """Read, check, order and clean what the `data` section of a search file names. exact: as for `make_table`.

    Raises DataError with one sentence for anything that cannot be used.
    """
    return make_table(read_source(config.source, config.sample, config.labels), config, exact=exact)


def make_table(source: Source, config: DataConfig, judged: bool = True, exact: Collection[str] | None = None) -> Table:
    """Check, order and clean a table that has been read, as `load_table` does.

    judged: whether the targets are known. Of a regression whose targets are not, no target column is looked at, and
    they are 0 and not observed; a forecast's are inputs, so it needs them in either case, but rows without any at the
    end of a series are left out. exact: inputs that are kept in float64 as well; None = those that need it.
    """
    source = replace(source, table=without_views(source.table))
    roles = assign_roles(source.table, config, source.oracle.values(), judged)
    notes: list[str] = []
    if roles.unnamed:
        notes.append("a column without a name (a row index?) was left out")
    stamps: np.ndarray = np.arange(source.table.num_rows, dtype=np.int64)
    kind: Kind = "order"
    if config.time is not None:
        stamps, kind = parse_time(source, config.time)
        early = early_note(stamps, config.time) if judged else None
        notes += [early] if early else []
    elif config.task == "forecast" and len(source.files) > 1 and not config.series:
        notes.append(_one_series_note(source, judged))
    rows = arrange(source, roles, config.task == "forecast", stamps, notes)
    read = read_forecast if config.task == "forecast" else read_regression
    cleaned = read(rows, roles, config.missing, judged, notes)
    filled, rows, end = cleaned.filled, cleaned.filled.rows, cleaned.end
    values, features, one_hot = filled.columns.matrix(roles)

    time = stamps[rows.order]
    if config.calendar:
        cycles, names = cycle_columns(time, kind, config.calendar)
        taken = sorted(set(names) & set(features))
        if taken:
            raise DataError(f"the table already has the column '{taken[0]}', which data.calendar makes; exclude one")
        values, features = np.concatenate([values, cycles], axis=1), (*features, *names)
    labels = plain(source.table.column(roles.time)) if roles.time is not None else None
    shown = on_clocks(time, kind, labels, rows.order)
    clock = stepping(time, shown, rows.offsets)
    table = Table(
        values=values,
        exact=filled.columns.exact(roles, exact),
        features=features,
        one_hot=one_hot,
        static=read_static(rows, roles),
        targets=cleaned.targets,
        target_names=roles.targets,
        observed=cleaned.observed,
        peeks=filled.peeks,
        offsets=rows.offsets,
        keys=rows.keys,
        key_names=roles.keys,
        time=time,
        time_kind=kind,
        shown=shown,
        step=None if kind == "order" else usual_step(clock, rows.offsets),
        months=months_of(clock, rows.offsets, kind),
        labels=labels,
        file_rows=rows.order,
        oracle=cleaned.oracle,
        notes=(),
        fingerprint="",
        rounded=None,
        sample=_sample(source, rows.order[max(0, end - SAMPLE_ROWS) : end], roles),
    )
    if kind in WEEKS and judged:
        check_weeks(time, rows.offsets, kind, str(roles.time), table.time_label)
    if config.task == "forecast":
        gaps = gaps_note(clock, rows.offsets, kind, table.time_label)
    else:
        gaps = sequence_gaps_note(clock, rows.offsets, kind, roles.time, table.series_name, table.time_label)
    notes += [gaps] if gaps else []
    fingerprint, rounded = _fingerprints(table)
    return replace(table, notes=tuple(notes), fingerprint=fingerprint, rounded=rounded)


def _one_series_note(source: Source, judged: bool) -> str:
    """That files without a time and series are one series, in an order that may not be the one that is meant."""
    order = listing(source.files, "file", 3)
    remedy = "; name their time in data.time, or the column that tells series apart in data.series" if judged else ""
    return f"the rows of {len(source.files)} files follow each other as one series, in the order {order}{remedy}"


def _sample(source: Source, rows: np.ndarray, roles: Roles) -> pa.Table:
    """Rows of the file, every column that was used."""
    used = [*([] if roles.time is None else [roles.time]), *roles.keys, *roles.features, *roles.static]
    return source.table.select(list(dict.fromkeys(used))).take(pa.array(rows))


def _fingerprints(table: Table) -> tuple[str, str | None]:
    """`Table.fingerprint` and `Table.rounded`."""
    digest = hashlib.sha256()
    names = (table.features, table.target_names, table.keys, table.key_names, table.time_kind, table.static.names)
    digest.update(repr(names).encode())
    for array in (table.values, table.targets, table.observed, table.offsets, table.time, table.static.values):
        digest.update(np.ascontiguousarray(array).data)
    if not table.exact:
        return digest.hexdigest(), None
    rounded = digest.hexdigest()
    for name, cells in table.exact.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(cells).data)
    return digest.hexdigest(), rounded
