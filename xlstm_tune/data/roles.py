"""Which column plays which part: the names of the search file against the columns of the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from xlstm_tune.data.clock import plain
from xlstm_tune.data.config import DataConfig
from xlstm_tune.errors import DataError
from xlstm_tune.strict import did_you_mean

_UNNAMED = re.compile(r"__index_level_\d+__|Unnamed: \d+(\.\d+)*(_level_\d+)?|\.\.\.\d+")


@dataclass(frozen=True)
class Roles:
    """Column names by what they are for."""

    time: str | None
    keys: tuple[str, ...]
    """What tells one series (forecast) or sequence (regression) from another."""
    targets: tuple[str, ...]
    features: tuple[str, ...]
    """Inputs; a forecast's targets are among them."""
    categories: tuple[str, ...]
    static: tuple[str, ...]
    """What a series or sequence has once; not among the features."""
    unnamed: int
    """Columns without a name, which `all` leaves out."""


def assign_roles(table: pa.Table, config: DataConfig, hidden: Iterable[str] = (), judged: bool = True) -> Roles:
    """Check every name that the search file uses and expand `all`. `hidden` columns do not exist for the user.

    judged: False where the table need not hold a regression's targets.

    Raises DataError for an unknown or repeated name, and for a column in two roles that exclude each other.
    """
    hidden = set(hidden)
    columns = [name for name in table.column_names if name not in hidden]
    forecast = config.task == "forecast"
    keys = config.series if forecast else config.sequence
    key_list = "data.series" if forecast else "data.sequence"
    time = config.time.column if config.time else None
    lists: dict[str, Sequence[str]] = {
        "data.time.column": [time] if time is not None else [],
        key_list: keys,
        "data.target": [] if config.target == ["all"] or not (judged or forecast) else config.target,
        "data.features": [name for name in config.features if name != "all"],
        "data.exclude": config.exclude,
        "data.categories": config.categories,
        "data.static": config.static,
    }
    for where, names in lists.items():
        _check_list(where, names, columns)
    if config.target == ["all"] and not forecast:
        raise DataError("'data.target: all' is for forecasts; a regression names its target")
    if not config.target:
        raise DataError("'data.target' is empty; name the column to predict")
    if not config.features and not forecast:
        raise DataError("'data.features' is empty; name the inputs or write 'all'")

    apart = [("data.time.column", key_list), ("data.time.column", "data.target"), (key_list, "data.target")]
    apart += [("data.time.column", "data.features"), ("data.time.column", "data.categories")]
    apart += [("data.exclude", where) for where in lists if where != "data.exclude"]
    apart += [("data.categories", "data.target"), ("data.static", "data.target"), ("data.static", "data.features")]
    apart += [("data.time.column", "data.static")]
    if not forecast:
        apart += [("data.target", "data.features")]
    for one, other in apart:
        both = [name for name in lists[one] if name in lists[other]]
        if both:
            raise DataError(f"column '{both[0]}' is both in '{one}' and in '{other}'; it can only be one of them")

    reserved = {
        name for where in ("data.time.column", key_list, "data.exclude", "data.static") for name in lists[where]
    }
    if not forecast:
        reserved |= set(config.target)
    features: list[str] = []
    for name in config.features:
        everything = [column for column in columns if column not in reserved and not is_unnamed(column)]
        features += [column for column in (everything if name == "all" else [name]) if column not in features]
    if config.target == ["all"]:
        targets = [name for name in features if name not in config.categories and _is_number(table, name)]
        if not targets:
            raise DataError("'data.target: all' means every input of numbers, but there is none")
    else:
        targets = list(config.target)
    if forecast:
        features += [name for name in targets if name not in features]
    if not features:
        raise DataError("no column is left as an input; name some in 'data.features' or exclude fewer")
    idle = [name for name in config.categories if name not in features and name not in config.static]
    if idle:
        raise DataError(f"'data.categories' names '{idle[0]}', which is not an input; add it to 'data.features'")
    return Roles(
        time=time,
        keys=tuple(keys),
        targets=tuple(targets),
        features=tuple(features),
        categories=tuple(config.categories),
        static=tuple(config.static),
        unnamed=sum(is_unnamed(name) and name not in features and name not in reserved for name in columns),
    )


def is_unnamed(column: str) -> bool:
    """Whether a column has no name of its own: none at all, or the one that a library gave to row numbers.

    pandas has `__index_level_0__` in Parquet and `Unnamed: 0`, `Unnamed: 0.1`, `Unnamed: 0_level_0` in a CSV file that
    it saved again, readr has `...1`.
    """
    return not column or _UNNAMED.fullmatch(column) is not None


def _check_list(where: str, names: Sequence[str], columns: list[str]) -> None:
    for name in names:
        if name not in columns:
            hint = did_you_mean(name, columns, dotted=False)
            raise DataError(f"'{where}' names '{name}', which is not a column of the data; {hint}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"'{where}' names '{twice[0]}' twice; name it once")


def _is_number(table: pa.Table, name: str) -> bool:
    kind = plain(table.column(name).slice(0, 0)).type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
