"""What a model learnt from, and what of a new table is unlike it: notes, since a forecast is made all the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from xlstm_tune.data.calendar import cycle_names
from xlstm_tune.data.clock import describe_step
from xlstm_tune.data.table import Table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.data.words import count, listing
from xlstm_tune.predict.champion import Champion

_LENGTHS = (0.9, 1.1)
"""Of the shortest and the longest sequence of the training part: what lies outside is told."""


def learnt(table: Table, data: Prepared) -> dict[str, Any]:
    """For `champion.json`: limits of each input of numbers in the training part, and of its sequences' lengths."""
    train = data.parts["train"]
    ends = data.ends[train] + (data.horizon if data.task == "forecast" else 0)
    marks = np.zeros(len(table.values) + 1, dtype=np.int64)
    np.add.at(marks, data.starts[train], 1)
    np.add.at(marks, ends, -1)
    rows = np.cumsum(marks[:-1]) > 0
    limits = {}
    for column, name in enumerate(table.features):
        if column not in table.one_hot and name in data.feature_names:
            seen = table.cells(column)[rows]
            limits[name] = [float(seen.min()), float(seen.max())]
    told: dict[str, Any] = {"limits": limits}
    if data.task == "regression":
        lengths = data.ends[train] - data.starts[train]
        told["rows"] = [int(lengths.min()), int(lengths.max())]
    return told


def unlike(champion: Champion, table: Table) -> list[str]:
    """Sentences on values, steps and lengths that the model has not learnt from; champions of old know few of them."""
    known: dict[str, Any] = champion.about.get("learnt", {})
    return [*_unknown(champion, table), *_step(champion, table), *_lengths(known, table), *_far(champion, known, table)]


def _unknown(champion: Champion, table: Table) -> list[str]:
    """A note for each category whose values here were not among those that the model learnt from."""
    notes = []
    groups = (
        (table.features, table.one_hot, champion.scaling.inputs),
        (table.static.names, table.static.one_hot, champion.scaling.static),
    )
    for names, one_hot, known in groups:
        new = [names[column] for column in one_hot if names[column] not in known.names]
        if new:
            verb = "was" if len(new) == 1 else "were"
            notes.append(
                f"{listing(new, 'value')} {verb} not in what the model learnt from: it sees none of the values it "
                "knows there"
            )
    return notes


def _step(champion: Champion, table: Table) -> list[str]:
    """Calendar months and years differ by days, so only a clear difference is told."""
    if table.step is None or champion.step is None or 0.85 < table.step / champion.step < 1.15:
        return []
    here, there = (describe_step(step, table.time_kind) for step in (table.step, champion.step))
    return [f"the rows are {here} apart, and the model learnt from rows {there} apart"]


def _lengths(known: dict[str, Any], table: Table) -> list[str]:
    """Of the sequences of a regression."""
    if "rows" not in known:
        return []
    least, most = known["rows"]
    lengths = np.diff(table.offsets)
    odd = np.flatnonzero((lengths < _LENGTHS[0] * least) | (lengths > _LENGTHS[1] * most))
    if not len(odd):
        return []
    first = int(odd[0])
    those = f"{least}" if least == most else f"{least} to {most}"
    return [
        f"{len(odd)} of {len(lengths)} sequences are far from as long as those that the model learnt from, which have "
        f"{those} rows; the first is {table.series_name(first)} with {count(int(lengths[first]), 'row')}"
    ]


def _far(champion: Champion, known: dict[str, Any], table: Table) -> list[str]:
    """Columns that leave the limits of training by more than these are apart."""
    notes, inputs = [], champion.scaling.inputs
    cycles, unknown = cycle_names(champion.data.calendar), []
    for column, name in enumerate(table.features):
        if name not in known.get("limits", {}) or name not in inputs.names:
            continue
        low, high = known["limits"][name]
        at = inputs.names.index(name)
        mean, std = inputs.mean[at], inputs.std[at]
        cells = table.cells(column)
        worst = float(cells[np.argmax(np.abs(cells - mean))])
        room = max(high - low, std)
        if low - room <= worst <= high + room:
            continue
        if name in cycles:
            unknown.append(cycles[name])
            continue
        notes.append(
            f"column '{name}' holds {worst:g}, {abs(worst - mean) / std:,.0f} standard deviations from the mean of "
            f"what the model learnt from, where it lay between {low:g} and {high:g}; is its unit the same?"
        )
    for cycle in dict.fromkeys(unknown):
        notes.append(f"rows lie in parts of the {cycle} that the model has not learnt from")
    return notes
