"""The tables of a search (its own row, trials, members, epochs, predictions, importance, …), as Parquet.

They lie in `<folder>/results`.

Rows go to a pending file first (one append, which survives the process being killed), then in bulk to new part
files `results/<table>/part-000012.parquet`, each written under a temporary name, synced and renamed. `read` puts
all of this together, also while the search runs. A row whose key was written before replaces the older one, as
after a resume; otherwise nothing is merged. Nothing but pyarrow is needed to read the tables.
Columns and units: result_tables.py.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xlstm_tune.errors import StorageError
from xlstm_tune.lines import append_line, sync
from xlstm_tune.result_files import opened, part_number, parts_of, pending_path, pending_rows, place_of, read_part
from xlstm_tune.result_tables import KINDS, SCHEMAS, check_column, plain_row, rows_to_table
from xlstm_tune.strict import did_you_mean

_OF_FINALISTS = ("scores", "predictions", "squares", "coverage", "importance")
"""Tables that are written of finalists, when the search has ended."""
_BLANK = {"coverage": "share", "importance": "square"}
"""Tables of the winner alone, and the column that is null where its rows have been forgotten."""
_ATTEMPTS = 50
"""To read a table between two moments at which its writer moves rows."""


@dataclass
class _Buffer:
    rows: list[dict[str, Any]] = field(default_factory=list)
    since: float = 0.0  # when the oldest row came


class ResultsWriter:
    """Writes the tables of one search folder; one process at a time. Opening old results continues them.

    Rows are given as mappings of column to value; columns left out are null, unknown ones raise KeyError, wrong
    types TypeError. JSON columns take mappings too. Times are seconds since 1970 or datetimes with a time zone.
    """

    def __init__(self, folder: Path, rows: int = 1000, seconds: float = 30.0) -> None:
        """`rows`, `seconds`: a new part file at the latest after so many rows, or when a row has waited so long."""
        self._folder = folder
        self._most_rows, self._most_seconds = rows, seconds
        self._buffers = {name: _Buffer() for name in KINDS}
        self._pending: dict[str, int] = {}
        for name in KINDS:
            place = place_of(folder, name)
            place.mkdir(parents=True, exist_ok=True)
            for torn in place.glob(".*.tmp"):
                torn.unlink()
            for part in parts_of(folder, name):  # what a newer program wrote is refused before anything is added to it
                with opened(part):
                    pass
            self._buffers[name].rows = pending_rows(folder, name)
            # Unbuffered: each row is one write().
            self._pending[name] = os.open(pending_path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            if not self._buffers[name].rows:
                os.ftruncate(self._pending[name], 0)  # half a line at most
        self.flush()

    def search(self, row: Mapping[str, Any]) -> None:
        """The search itself, as it stands now."""
        self._add("search", row)

    def trial(self, row: Mapping[str, Any]) -> None:
        """A trial that has ended."""
        self._add("trials", row)

    def members(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """The members of a population's trial that has ended: one row each."""
        self._add("members", *rows)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """An epoch of a trial."""
        self._add("epochs", row)

    def baselines(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Scores of baselines: one row per baseline and part."""
        self._add("baselines", *rows)

    def scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Scores of finalists, given after the search: one row per model, trial and part."""
        self._add("scores", *rows)

    def coverage(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """How often intervals and quantiles held: one row per trial, kind and level."""
        self._add("coverage", *rows)

    def predictions(self, table: pa.Table | Mapping[str, Any]) -> None:
        """All predictions of one or more (trial, model, part); written at once, replacing earlier ones of the same.

        A table, or columns as arrays of one length; the columns are those of the schema, in any order.
        """
        self._write_columns("predictions", table)

    def squares(self, table: pa.Table | Mapping[str, Any]) -> None:
        """Squared errors of all samples of one or more (trial, model, part), given as predictions are."""
        self._write_columns("squares", table)

    def importance(self, table: pa.Table | Mapping[str, Any]) -> None:
        """What one or more inputs are worth to a trial, given as predictions are."""
        self._write_columns("importance", table)

    def forget(self, trial: int) -> None:
        """What was measured of a trial that was the winner and goes on: it will not be measured again if another wins.

        Rows without a figure take the place of those that there are; `read` leaves them out.
        """
        coverage, importance = (_read(self._folder, name) for name in _BLANK)
        own = coverage.filter(pc.equal(coverage["trial"], trial))
        self._add("coverage", *own.select(list(KINDS["coverage"].key)).to_pylist())
        names = importance.filter(pc.equal(importance["trial"], trial))["input"].unique().to_pylist()
        if names:
            blank = dict.fromkeys(KINDS["importance"].columns, [None] * len(names))
            self.importance(blank | {"trial": [trial] * len(names), "input": names})

    def flush(self) -> None:
        """Put everything into part files now."""
        for name in KINDS:
            self._flush(name)

    def close(self) -> None:
        """Flush, and compact the parts of each table into one."""
        self.flush()
        for name, descriptor in self._pending.items():
            os.close(descriptor)
            pending_path(self._folder, name).unlink()
            self._compact(name)
        self._pending = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _add(self, name: str, *rows: Mapping[str, Any]) -> None:
        if not self._pending:
            raise ValueError("the results are closed")
        for row in rows:
            plain = plain_row(name, row)
            append_line(self._pending[name], (json.dumps(plain) + "\n").encode())
            buffer, now = self._buffers[name], time.monotonic()
            if not buffer.rows:
                buffer.since = now
            buffer.rows.append(plain)
            for other, waiting in self._buffers.items():
                if len(waiting.rows) >= self._most_rows or (waiting.rows and now - waiting.since >= self._most_seconds):
                    self._flush(other)

    def _write_columns(self, kind_name: str, table: pa.Table | Mapping[str, Any]) -> None:
        kind = KINDS[kind_name]
        names = table.column_names if isinstance(table, pa.Table) else list(table)
        for name in names:
            check_column(kind_name, name)
        for name in kind.columns:
            if name not in names:
                raise KeyError(f"table '{kind_name}' needs the column '{name}'")
        if not isinstance(table, pa.Table):
            table = pa.table({name: pa.array(table[name], kind.columns[name]) for name in kind.columns})
        self._write_part(kind_name, [table.select(list(kind.columns)).cast(kind.schema)])

    def _flush(self, name: str) -> None:
        rows = self._buffers[name].rows
        if rows:
            self._write_part(name, [rows_to_table(name, rows)])
            # Killed between these two lines, the rows are in both places; `read` keeps one of each key.
            os.ftruncate(self._pending[name], 0)
            self._buffers[name].rows = []

    def _compact(self, name: str) -> None:
        parts = parts_of(self._folder, name)
        if len(parts) < 2:
            return
        self._write_part(name, _survivors(name, parts))
        for part in parts:
            part.unlink()

    def _write_part(self, name: str, tables: Iterable[pa.Table]) -> None:
        place = place_of(self._folder, name)
        last = max((part_number(part) for part in place.glob("part-*.parquet")), default=0)
        path = place / f"part-{last + 1:06d}.parquet"
        temporary = place / f".{path.name}.tmp"
        with temporary.open("wb") as file:
            with pq.ParquetWriter(file, SCHEMAS[name], compression="zstd") as writer:
                for table in tables:
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(place)


def read(folder: Path | str, table: str) -> pa.Table:
    """A table of a search folder, in the order of writing: 'trials', 'members', 'epochs', 'predictions', ...

    Empty if nothing has been written to it. What was told of a finalist that went on afterwards, whose `scores` are
    blank or which has been forgotten, is left out. Raises StorageError if the folder holds no results, they come from a
    newer program or are damaged, ValueError for a table that does not exist.
    """
    folder = Path(folder)
    found = _read(folder, table)
    if table in _BLANK:
        found = found.filter(pc.is_valid(found[_BLANK[table]]))
    if table not in _OF_FINALISTS or not (outdated := _outdated(folder)):
        return found
    return found.filter(pc.invert(pc.is_in(found["trial"], value_set=pa.array(outdated, pa.int64()))))


def _outdated(folder: Path) -> list[int]:
    """Trials that went on after they had been judged."""
    scores = _read(folder, "scores")
    gone_on: list[int] = scores.filter(pc.is_null(scores["rmse"]))["trial"].unique().to_pylist()
    return gone_on


def _read(folder: Path, table: str) -> pa.Table:
    """As `read`, whole."""
    if table not in KINDS:
        raise ValueError(f"there is no table '{table}'; {did_you_mean(table, KINDS)}")
    if not (folder / "results").is_dir():
        raise StorageError(f"{folder} holds no results of a search (it has no folder 'results')")
    for attempt in range(_ATTEMPTS):
        before = parts_of(folder, table)
        # Pending rows before the parts: those that move to a part meanwhile are then seen twice, rather than never.
        rows = pending_rows(folder, table)
        parts = parts_of(folder, table)
        last = attempt == _ATTEMPTS - 1
        if parts != before and not last:  # seen twice, the rows that moved would stand behind newer ones
            continue
        try:
            tables = list(_survivors(table, parts, rows_to_table(table, rows)))
        except FileNotFoundError:  # the search has just ended and compacted its parts
            if last:
                raise
            continue
        break
    return pa.concat_tables([SCHEMAS[table].empty_table(), *tables])


Predicted = tuple[int | None, str, str]
"""Trial (None for a baseline), model and part: what predictions are of."""


def predicted(folder: Path) -> list[Predicted]:
    """All (trial, model, part) that have predictions, found without reading these. Raises as `read` does."""
    if not (folder / "results").is_dir():
        read(folder, "predictions")
    return list(_steady(lambda: _prediction_places(folder)))


def read_predictions(folder: Path, what: Predicted, columns: list[str], name: str = "predictions") -> pa.Table:
    """The predictions of one (trial, model, part), in the order of writing; text columns are dictionary-encoded.

    Much faster than `read` of all of them. Empty where there are none. name: of the table, which may be `squares`.
    """
    schema = SCHEMAS[name]

    def load() -> pa.Table:
        path, groups = _prediction_places(folder, name).get(what, (None, []))
        if path is None:
            return schema.empty_table().select(columns)
        texts = [column for column in columns if schema.field(column).type == pa.string()]
        key = list(KINDS["predictions"].key)
        with opened(path, texts) as file:
            tables = []
            for group in groups:
                table = file.read_row_group(group, columns)
                if len(_keys_of(file, group)) > 1:
                    rows = file.read_row_group(group, key).to_pylist()
                    table = table.filter(pa.array([tuple(row.values()) == what for row in rows]))
                tables.append(table)
        return pa.concat_tables(tables).unify_dictionaries()

    return _steady(load)


def _steady(look: Callable[[], Any]) -> Any:
    """What `look` finds, begun again where the writer compacts the parts meanwhile."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return look()
        except FileNotFoundError:
            continue
    return look()


def _prediction_places(folder: Path, name: str = "predictions") -> dict[Predicted, tuple[Path, list[int]]]:
    """The part file and its row groups that hold the predictions of each; a later part replaces earlier ones."""
    places: dict[Predicted, tuple[Path, list[int]]] = {}
    for path in parts_of(folder, name):
        own: dict[Predicted, tuple[Path, list[int]]] = {}
        with opened(path) as file:
            for group in range(file.num_row_groups):
                for key in _keys_of(file, group):
                    own.setdefault(key, (path, []))[1].append(group)
        places |= own
    outdated = _outdated(folder)
    return {what: place for what, place in places.items() if what[0] not in outdated}


def _keys_of(file: pq.ParquetFile, group: int) -> list[Predicted]:
    """The keys in a row group: from its statistics where there is one, which is the usual case."""
    key = list(KINDS["predictions"].key)
    about = file.metadata.row_group(group)
    found: list[Any] = []
    for index in range(about.num_columns):
        column = about.column(index)
        if column.path_in_schema in key and (seen := column.statistics) is not None:
            if seen.null_count == about.num_rows:
                found.append(None)
            elif seen.has_min_max and seen.min == seen.max and seen.null_count == 0:
                found.append(seen.min)
    if len(found) == len(key):
        trial, model, part = found
        return [(trial, model, part)]
    table = file.read_row_group(group, key)
    return [tuple(row.values()) for row in table.group_by(key, use_threads=False).aggregate([]).select(key).to_pylist()]


def _survivors(name: str, parts: list[Path], newest: pa.Table | None = None) -> Iterator[pa.Table]:
    """The rows of all parts, oldest first, without those that a later part (or row of the same part) replaces."""
    kind = KINDS[name]
    key = list(kind.key)
    keys = [read_part(part, key) for part in parts]
    if newest is not None:
        keys.append(newest.select(key))
    masks = _keep_whole(keys, key) if kind.whole else _keep_last(keys, key)
    for index, mask in enumerate(masks):
        table = newest if index == len(parts) else _load(name, parts[index])
        assert table is not None
        kept = table if mask is None else table.filter(mask)
        if kept.num_rows:
            yield kept


def _keep_last(keys: list[pa.Table], key: list[str]) -> list[pa.ChunkedArray | None]:
    """Per table, which rows are the last of their key over all tables; None for all."""
    if not keys:
        return []
    every = pa.concat_tables(keys)
    count = every.num_rows
    every = every.append_column("_row", pa.array(range(count), pa.int64()))
    last = every.group_by(key).aggregate([("_row", "max")])["_row_max"]
    if len(last) == count:
        return [None] * len(keys)
    mask = pc.is_in(every["_row"], value_set=last.combine_chunks())
    masks, start = [], 0
    for table in keys:
        masks.append(mask.slice(start, table.num_rows))
        start += table.num_rows
    return masks


def _keep_whole(keys: list[pa.Table], key: list[str]) -> list[pa.ChunkedArray | None]:
    """Per table, which rows have a key that no later table has; None for all."""
    seen: set[tuple[Any, ...]] = set()
    masks: list[pa.ChunkedArray | None] = []
    for table in reversed(keys):
        found = {tuple(row.values()) for row in table.group_by(key).aggregate([]).select(key).to_pylist()}
        replaced = found & seen
        mask = None
        for one in replaced:
            differs = None
            for name, value in zip(key, one, strict=True):
                column = table[name]
                same = pc.is_null(column) if value is None else pc.fill_null(pc.equal(column, value), False)
                differs = pc.invert(same) if differs is None else pc.or_(differs, pc.invert(same))
            mask = differs if mask is None else pc.and_(mask, differs)
        masks.append(mask)
        seen |= found
    return masks[::-1]


def _load(name: str, path: Path) -> pa.Table:
    table, schema = read_part(path), SCHEMAS[name]
    for column in schema:
        if column.name not in table.column_names:  # written by an older version
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    return table.select(schema.names).cast(schema)
