"""Which samples train, validate and test: by time, by group, or both; and the guard that nothing leaks.

A forecast's sample is a window: the horizon rows `ends[n] .. ends[n] + H - 1` of one series, seen from the rows before
them. Its horizon lies wholly inside its part, while its inputs may reach back into an earlier part, as the forecasting
literature has it. A regression's sample is a whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from xlstm_tune.data.clock import parse_moment
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.cut import NOUNS, PARTS, clamp, cut_groups, cut_time
from xlstm_tune.data.periods import moment_position, note_left_out, ordered_values, sequence_parts
from xlstm_tune.data.table import Table
from xlstm_tune.data.words import count, count_were
from xlstm_tune.errors import DataError
from xlstm_tune.strict import did_you_mean


@dataclass(frozen=True)
class Split:
    """N samples and the part that each belongs to."""

    parts: dict[str, np.ndarray]
    """train, validation, test → int64 sample numbers."""
    starts: np.ndarray
    """int64 [N]: first row that the sample may see, the first of its series or sequence."""
    ends: np.ndarray
    """int64 [N]: one past its last input row."""
    train_rows: np.ndarray
    """bool [R]: rows whose values the scaling statistics may use."""
    notes: tuple[str, ...]
    validation_rows: np.ndarray = field(default_factory=lambda: np.array([], dtype=bool))
    """bool [R]: rows of the validation part, which those statistics may use when a model is trained on both."""


def split(table: Table, config: DataConfig, lookback: int | None) -> Split:
    """Cut the table into samples and parts.

    `lookback` is the largest that any trial may ask for, so that every trial has the same samples; regressions take
    whole sequences and ignore it. Raises DataError when a part would have no sample.
    """
    by_time, groups = _criteria(table, config)
    notes: list[str] = []
    if config.task == "regression":
        return _sequences(table, config, by_time, groups, notes)
    if lookback is None:
        raise ValueError("a forecast needs a lookback to be split into windows")
    series = np.repeat(np.arange(len(table.keys)), np.diff(table.offsets))
    part = np.zeros(len(table.time), dtype=np.int8)
    if by_time:
        part = _time_parts(table, config, notes)
    if groups:
        own = _group_parts(table, config, groups)[series]
        if by_time:
            part = np.where(part == own, part, -1).astype(np.int8)
            _note_between(part, "rows", notes)
        else:
            part = own
    return _windows(table, config, lookback, part, notes)


def with_validation(result: Split, stride: int) -> Split:
    """The split with the validation part in the training part as well, thinned as that is; the test part is the same.

    Windows that would begin in one and end in the other are in neither, as before.
    """
    train, validation = result.parts["train"], result.parts["validation"]
    parts = result.parts | {"train": np.concatenate([train, validation[::stride]])}
    return replace(result, parts=parts, train_rows=result.train_rows | result.validation_rows)


def _criteria(table: Table, config: DataConfig) -> tuple[bool, list[str]]:
    """Whether time divides, and the columns whose groups do."""
    by = config.split.by
    role = "data.series" if config.task == "forecast" else "data.sequence"
    if not by:
        raise DataError("'data.split.by' is empty; write time, columns of groups, or both")
    if len(set(by)) < len(by):
        raise DataError(f"'data.split.by' names '{max(by, key=by.count)}' twice; name it once")
    groups = [name for name in by if name != "time"]
    for name in groups:
        if name not in table.key_names:
            known = did_you_mean(name, ["time", *table.key_names], dotted=False)
            raise DataError(f"'data.split.by' names '{name}', which is neither 'time' nor one of {role}; {known}")
    return "time" in by, groups


def _time_parts(table: Table, config: DataConfig, notes: list[str]) -> np.ndarray:
    """Part of each row, int8 [R]: cuts over the distinct stamps of all series, or series by series in row order."""
    lengths = np.diff(table.offsets)
    if table.time_kind != "order":
        stamps, position = np.unique(table.time, return_inverse=True)
        cut = cut_time(config.split, len(stamps), lambda text: moment_position(text, stamps, table))
        note_left_out(cut, "time steps", notes)
        return cut.part_of(position)
    longest = int(lengths.max())
    cut = cut_time(config.split, longest, lambda text: parse_moment(text, "order"))
    cuts = {int(n): cut if n == longest else clamp(cut, int(n), config.split) for n in np.unique(lengths)}
    note_left_out(cut, "time steps of the longest series" if len(cuts) > 1 else "time steps", notes)
    return np.concatenate([cuts[int(n)].part_of(np.arange(n)) for n in lengths])


def _group_parts(table: Table, config: DataConfig, groups: list[str]) -> np.ndarray:
    """Part of each series or sequence, int8 [S]: whole groups, drawn by the seed."""
    columns = [table.key_names.index(name) for name in groups]
    labels = [tuple(key[column] for column in columns) for key in table.keys]
    # Sorted, so that the draw does not depend on the order of the rows in the file.
    number = {label: position for position, label in enumerate(sorted(set(labels)))}
    part_of = cut_groups(config.split, len(number), f"'{', '.join(groups)}'")
    parts: np.ndarray = part_of[np.array([number[label] for label in labels])]
    return parts


def _sequences(table: Table, config: DataConfig, by_time: bool, groups: list[str], notes: list[str]) -> Split:
    """A sample is a sequence."""
    part = np.zeros(len(table.keys), dtype=np.int8)
    if by_time:
        part = sequence_parts(table, config.split, notes)
    if groups:
        own = _group_parts(table, config, groups)
        if by_time:
            part = np.where(part == own, part, -1).astype(np.int8)
            _note_between(part, "sequences", notes)
        else:
            part = own
    parts = {name: np.flatnonzero(part == number) for number, name in enumerate(PARTS)}
    for name, samples in parts.items():
        if not len(samples):
            raise DataError(
                f"data.split leaves no sequence for the {NOUNS[name]} part, of {len(part)} sequences; change data.split"
            )
    rows = np.repeat(part, np.diff(table.offsets))
    return Split(parts, table.offsets[:-1].copy(), table.offsets[1:].copy(), rows == 0, tuple(notes), rows == 1)


def _windows(table: Table, config: DataConfig, lookback: int, part: np.ndarray, notes: list[str]) -> Split:
    """Every window whose horizon lies in one part and whose targets were all observed; training ones thinned."""
    horizon = config.horizon
    lengths = np.diff(table.offsets)
    first = np.repeat(table.offsets[:-1], lengths)
    last = np.repeat(table.offsets[1:], lengths)
    rows = np.arange(len(part))
    _check_length(table, config, lookback)
    short = int((lengths < lookback + horizon).sum())
    if short:
        notes.append(
            f"{short} of {len(lengths)} series are shorter than lookback + horizon ({lookback + horizon} steps) "
            f"and give no window"
        )
    ends = rows[(rows - first >= lookback) & (rows + horizon <= last)]
    # Parts follow each other in time, so a horizon whose ends share a part lies inside it.
    ends = ends[(part[ends] == part[ends + horizon - 1]) & (part[ends] >= 0)]
    on_stride = (ends - first[ends] - lookback) % config.stride == 0
    ends = ends[on_stride | (part[ends] > 0)]
    blanks = np.concatenate([[0], np.cumsum(~table.observed.all(axis=1))])
    seen = blanks[ends + horizon] == blanks[ends]
    hidden = np.bincount(part[ends[~seen]], minlength=len(PARTS))
    if hidden.any():
        counts = ", ".join(f"{number} {NOUNS[name]}" for name, number in zip(PARTS, hidden, strict=True) if number)
        were = count_were(int(hidden.sum()), "window")
        notes.append(f"{were} left out because of a filled target in the horizon ({counts})")
    ends = ends[seen]
    # A blank in the last input row was drawn towards the next known value, which is the future itself.
    peeks = table.peeks[ends - 1]
    if peeks.any():
        were = count_were(int(peeks.sum()), "window")
        notes.append(
            f"{were} left out because interpolation filled the last step from a later one; forward_fill would keep them"
        )
    ends = ends[~peeks]
    chosen = [ends[part[ends] == number] for number in range(len(PARTS))]
    for number, name in enumerate(PARTS):
        if not len(chosen[number]):
            _refuse(table, config, lookback, part, number, name)
    ends = np.concatenate(chosen)
    borders = np.cumsum([0, *map(len, chosen)])
    parts = {name: np.arange(borders[number], borders[number + 1]) for number, name in enumerate(PARTS)}
    train, validation = (_filled_within(table, part == number) for number in (0, 1))
    if not train.any():
        raise DataError(
            "every row of the training part has a cell that interpolation filled from a later part, so nothing is left "
            "to scale by; exclude the emptiest columns or set data.missing: drop"
        )
    return Split(parts, first[ends], ends, train, tuple(notes), validation)


def _filled_within(table: Table, rows: np.ndarray) -> np.ndarray:
    """bool [R]: those of `rows` [R] none of whose cells was filled from a row behind them."""
    # Behind the next row without such a cell nothing was looked for, and every series ends with one.
    behind = np.where(table.peeks, len(rows), np.arange(len(rows)))
    known = np.minimum.accumulate(behind[::-1])[::-1]
    within: np.ndarray = rows & rows[known]
    return within


def _check_length(table: Table, config: DataConfig, lookback: int) -> None:
    longest = int(np.diff(table.offsets).max())
    if longest >= lookback + config.horizon:
        return
    fits = longest - config.horizon
    remedy = f"data.lookback can be at most {fits}" if fits >= 1 else f"data.horizon must be below {longest}"
    which = "the series has" if len(table.keys) == 1 else "the longest series has"
    raise DataError(
        f"no series is long enough: {_asked(config, lookback)} need {lookback + config.horizon} steps, "
        f"{which} {longest}; {remedy}"
    )


def _asked(config: DataConfig, lookback: int) -> str:
    largest = "" if lookback == config.lookback else " (the largest that the search may try)"
    return f"lookback {lookback}{largest} and horizon {config.horizon}"


def _refuse(table: Table, config: DataConfig, lookback: int, part: np.ndarray, number: int, name: str) -> None:
    """Say why a part has no window, with what would fit."""
    noun = NOUNS[name]
    steps = int(np.add.reduceat(part == number, table.offsets[:-1], dtype=np.int64).max())
    horizon = config.horizon
    if steps < horizon:
        remedy = f"data.horizon to at most {steps}" if steps else "data.split"
        grow = f"data.split.{name} to at least {horizon} or " if name != "train" and steps else ""
        verb = "set " if steps else "change "
        raise DataError(
            f"no {noun} window is left: the {noun} part has {count(steps, 'step')} of any one series, "
            f"horizon {horizon} needs {horizon}; {verb}{grow}{remedy}"
        )
    if name == "train" and steps < lookback + horizon:
        fits = steps - horizon
        remedy = f"set data.lookback to at most {fits} or " if fits >= 1 else ""
        raise DataError(
            f"no training window is left: the training part has {steps} steps of any one series, "
            f"{_asked(config, lookback)} need {lookback + horizon}; {remedy}make validation and test smaller"
        )
    if not table.observed.all() or table.peeks.any():
        raise DataError(
            f"no {noun} window is left, because too many cells there were blank and had to be filled; "
            f"mend them, exclude the column, or change data.split"
        )
    raise DataError(
        f"no {noun} window is left: no series reaches {count(horizon, 'step')} into the {noun} part with "
        f"{count(lookback, 'step')} before them; make data.lookback or data.horizon smaller or change data.split"
    )


def _note_between(part: np.ndarray, unit: str, notes: list[str]) -> None:
    between = int((part < 0).sum())
    if between:
        notes.append(
            f"{between} of {len(part)} {unit} are left out: their group and their time belong to different parts"
        )


def check_no_leak(table: Table, result: Split, config: DataConfig) -> None:
    """Assert that no row or group is judged on that was learnt from; it recomputes all it needs from the table."""
    numbers = np.concatenate([result.parts[name] for name in PARTS])
    assert np.bincount(numbers).max() == 1, "a sample is in two parts"
    series = np.searchsorted(table.offsets, result.starts, side="right") - 1
    horizon = config.horizon if config.task == "forecast" else 0
    judged: dict[str, np.ndarray] = {}
    for name in PARTS:
        ends = result.ends[result.parts[name]]
        begins = ends if horizon else result.starts[result.parts[name]]
        borders = len(table.time) + 1
        open_windows = np.bincount(begins, minlength=borders) - np.bincount(ends + horizon, minlength=borders)
        judged[name] = np.cumsum(open_windows)[:-1] > 0
    for early, late in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not (judged[early] & judged[late]).any(), f"{early} and {late} share target rows"
        if "time" in config.split.by:
            _check_order(table, result, config, judged, early, late)
        groups = [table.key_names.index(name) for name in config.split.by if name != "time"]
        if groups:
            sides = [
                {tuple(table.keys[int(s)][g] for g in groups) for s in np.unique(series[result.parts[name]])}
                for name in (early, late)
            ]
            assert not sides[0] & sides[1], f"{early} and {late} share a group"
    for name in ("validation", "test"):
        assert not (result.train_rows & judged[name]).any(), f"the scaling statistics see {name} targets"
    beyond = result.train_rows & ~_filled_within(table, result.train_rows)
    assert not beyond.any(), "the scaling statistics see cells that were filled from behind the training part"


def _check_order(
    table: Table, result: Split, config: DataConfig, judged: dict[str, np.ndarray], early: str, late: str
) -> None:
    """Everything of the early part is over before the late part begins."""
    message = f"{early} reaches into the time of {late}"
    if config.task == "regression":
        before, after = result.parts[early], result.parts[late]
        if config.split.order is not None:
            series = np.searchsorted(table.offsets, result.starts, side="right") - 1
            values = ordered_values(table, config.split.order)[0][series]
            assert values[before].max() < values[after].min(), message
        else:
            last = table.time[result.ends[before] - 1]
            assert last.max() < table.time[result.starts[after]].min(), message
    elif table.time_kind != "order":
        assert table.time[judged[early]].max() < table.time[judged[late]].min(), message
    else:
        for start, end in zip(table.offsets[:-1], table.offsets[1:], strict=True):
            before, after = np.flatnonzero(judged[early][start:end]), np.flatnonzero(judged[late][start:end])
            assert not len(before) or not len(after) or before[-1] < after[0], message
