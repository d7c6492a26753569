"""Several searches on one page: who won in each, and whether the best one is told apart from the others."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlstm_tune.report.blocks import Block, Cell, Column, Row, Section, Sentences, Table
from xlstm_tune.report.compare import Comparison, compare, named
from xlstm_tune.report.leaderboard import number, scope
from xlstm_tune.report.page import render, write_text
from xlstm_tune.report.sections.differences import TITLE, pairs_of_models, short, title_of
from xlstm_tune.report.sections.standing import last
from xlstm_tune.report.style import counted, duration, metric_title


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write the page and return where it is.

    Raises StorageError when the searches cannot be compared, or the file cannot be written.
    """
    compared = compare(folders)
    names = [one.name for one in compared.searches]
    facts = [
        counted(len(names), "search").replace("searchs", "searches"),
        f"page built {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]
    made = sections(compared)
    return write_text(output, render("Searches compared", ", ".join(names), "Searches compared", facts, made))


def sections(compared: Comparison) -> list[Section]:
    """Of a comparison, its searches best first."""
    metric = compared.objective.removeprefix("val_")
    first = compared.searches[0]
    lead = "None of the searches has a scored trial."
    if first.winner is not None:
        lead = (
            f"{first.name} has the lowest {metric_title(metric)} on validation, "
            f"{number(first.validation.get(metric))} ({title_of(first.winner)})."
        )
        lead += _on_test(compared)
    made = [Section("summary", "Result", blocks=[Sentences([lead]), _table(compared, metric)])]
    blocks: list[Block] = []
    if compared.differences:
        # Models of two searches may be alike but for the search.
        names = {named(one): f"{one.name}: {short(one.winner)}" for one in compared.searches if one.winner}
        blocks += pairs_of_models(list(compared.differences), "test", names.__getitem__)
    if notes := [str(note) for note in compared.notes]:
        blocks.append(Sentences(notes))
    if blocks:
        made.append(Section("differences", TITLE, blocks=blocks))
    return made


def _on_test(compared: Comparison) -> str:
    """Whether the first search's winner is better on test than the others', as sentences after a space; "" where there
    is nothing to compare."""
    pairs = compared.differences
    if not pairs:
        return ""
    if pairs[0].a != named(compared.searches[0]):
        return f" It has no test predictions, so the differences on test are those of {title_of(pairs[0].a)}."
    better = sum(one.told_apart and one.gain > 0 for one in pairs)
    worse = sum(one.told_apart and one.gain < 0 for one in pairs)
    if not better + worse:
        return " On test, it is told apart from no other."
    counts = (("better than", better), ("worse than", worse), ("not told apart from", len(pairs) - better - worse))
    first, *rest = (f"{words} {count}" for words, count in counts if count)
    told = ", ".join([f"{first} of {counted(len(pairs), 'other')}", *rest])
    return f" On test, by RMSE, it is {told}. {scope(min(one.seeds for one in pairs))}."


def _table(compared: Any, metric: str) -> Table:
    title = metric_title(metric)
    rows = []
    for place, one in enumerate(compared.searches):
        mine, test = one.validation.get(metric), one.test.get(metric)
        cells = [
            Cell(one.name, note=str(one.folder)),
            Cell(title_of(one.winner) if one.winner is not None else "none yet"),
            Cell(number(mine, one.errors[0]), last(mine)),
            Cell(number(test, one.errors[1]), last(test)),
            Cell(f"{one.trials:,}", one.trials),
            Cell(duration(one.seconds), last(one.seconds)),
        ]
        rows.append(Row(cells, "winner" if place == 0 and one.winner is not None else ""))
    columns = [
        Column("Search", wide=True),
        Column("Winner", wide=True),
        Column(f"{title}, validation", True),
        Column(f"{title}, test", True),
        Column("Trials", True),
        Column("Time", True),
    ]
    caption = "Searches, best first on validation"
    if any(error is not None for one in compared.searches for error in one.errors):
        caption += "; ± is the standard error of the mean over seeds"
    return Table(caption, columns, rows)
