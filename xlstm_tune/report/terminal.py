"""Tables of models on a terminal, never wider than it: rich would cut figures off at its edge without a sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

MODEL = 24
"""Columns that a model's name gets, if figures can be left out for it …"""
MODEL_LEAST = 12
"""… and below which figures that cannot be left out are put on two lines, `0.123 ±` and `0.021`."""
WORDS = 1
"""Columns of a name beside such figures, which are as wide as their longest word, but not less than HEADING."""
HEADING = 8


@dataclass(frozen=True)
class Line:
    """A model's row."""

    lead: Sequence[str | Text]
    """What stands before the figures; the last of it is the model's name."""
    figures: Sequence[str]
    """In the order of their columns; those that are missing at the end are empty."""
    style: str | None = None


def fitted(
    console: Console,
    lead: Sequence[str],
    figures: Sequence[str],
    groups: Sequence[Sequence[Line]],
    less: Sequence[str] = (),
) -> Table:
    """The lines as a table that is no wider than the console, with a rule between groups.

    lead, figures: headings, all different. less: those of `figures` that are left out for want of room, in this order.
    """
    kept = list(figures)
    table = _table(lead, figures, kept, groups, MODEL)
    for heading in less:
        if _fits(table, console):
            return table
        kept.remove(heading)
        table = _table(lead, figures, kept, groups, MODEL)
    for model in (MODEL, MODEL_LEAST, WORDS):
        if _fits(table, console):
            return table
        table = _table(lead, figures, kept, groups, model, broken=True)
    return table if _fits(table, console) else _table(lead, figures, kept, groups, None, broken=True)


def _fits(table: Table, console: Console) -> bool:
    boundless = console.options.update_width(10_000)  # a measure is no larger than what it is taken for
    return Measurement.get(console, boundless, table).minimum <= console.width


def _table(
    lead: Sequence[str],
    figures: Sequence[str],
    kept: Sequence[str],
    groups: Sequence[Sequence[Line]],
    model: int | None,
    broken: bool = False,
) -> Table:
    """model: columns that its name has at least; None = figures may be broken anywhere. broken: headings such
    as `val_mse_standardised` are put on several lines."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for heading in lead[:-1]:
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column(lead[-1], overflow="fold", min_width=model)
    places = [figures.index(heading) for heading in kept]
    for place in places:
        heading = figures[place].replace("_", "_\n") if broken else figures[place]
        if model is None:
            table.add_column(heading, justify="right", overflow="fold")
            continue
        cells = [line.figures[place] for group in groups for line in group if place < len(line.figures)]
        if model == WORDS:
            widest = max((cell_len(word) for cell in cells for word in cell.split()), default=0)
            table.add_column(heading, justify="right", overflow="fold", width=max(widest, HEADING))
            continue
        widest = max(cell_len(text) for cell in (heading, *cells) for text in cell.split("\n"))
        table.add_column(heading, justify="right", no_wrap=True, min_width=widest)
    for group in groups:
        for line in group:
            shown = [line.figures[place] for place in places if place < len(line.figures)]
            table.add_row(*line.lead, *shown, style=line.style)
        table.add_section()
    return table
