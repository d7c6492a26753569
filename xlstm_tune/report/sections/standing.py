"""Who won: the verdict, the key figures, and the table of all trials beside the baselines."""

from __future__ import annotations

from xlstm_tune.report.blocks import Cell, Column, Row, Section, Sentences, Table, Tile, Tiles
from xlstm_tune.report.budget import EARLY, REFUSED, UNFINISHED
from xlstm_tune.report.leaderboard import Entry, number, verdict
from xlstm_tune.report.record import MADE_ANEW, Record
from xlstm_tune.report.style import counted, duration, metric_title

ENDS = (
    ("completed", "completed"),
    ("pruned", EARLY),
    ("failed", "failed"),
    (UNFINISHED, UNFINISHED),
    (REFUSED, REFUSED),
    ("duplicate", "duplicate"),
)
"""Status of a trial, and the word for it."""


def summary(record: Record) -> Section:
    """The verdict in a sentence, and the key figures."""
    texts = ["No trial has ended yet, so nobody has won."]
    if record.status == "completed" and record.ended is not None:  # which without trials the search itself has said
        texts = [f"The search has ended, and its trials are not in results/trials; {MADE_ANEW}."]
    if record.trials:
        texts = [
            f"As things stand, {verdict(record.board)}"
            if record.running and record.board.winner
            else verdict(record.board)
        ]
    texts += not_known_yet(record)
    return Section("summary", "Result", blocks=[Sentences(texts), Tiles(_tiles(record))])


def not_known_yet(record: Record) -> list[str]:
    """What a search that has not ended, or was interrupted, leaves open."""
    texts = []
    waiting = not (record.board.winner and record.board.winner.test)
    if record.running:
        of = f" of {record.planned:,}" if record.planned else ""
        no_end = ("duplicate", UNFINISHED, REFUSED)
        ended = sum(count for status, count in record.counts.items() if status not in no_end)
        texts.append(
            f"The search has not ended: {ended:,}{of} trials have. Its order may still change, and the test part is "
            "looked at once, at the end. Build this page again to see what has come since."
        )
    elif record.status == "interrupted":
        texts.append(f"The search was interrupted ({record.reason or 'for a reason that is not noted'}).")
    if waiting and record.board.winner and record.status == "completed":
        texts.append(f"The winner's test figures are not in results/scores; where its weights are there, {MADE_ANEW}.")
    elif waiting and record.board.winner and not record.running:
        texts.append("No test figures: the finalists are scored on the test part only when a search ends by itself.")
    return texts


def _tiles(record: Record) -> list[Tile]:
    title, board = metric_title(record.metric), record.board
    winner = board.winner
    tiles = [
        Tile(
            f"Best {title}, validation",
            number(winner.validation.get(record.metric), winner.validation_error) if winner else "not known yet",
            winner.model if winner else "",
        ),
        Tile(
            f"{title} of the same model, test",
            (number(winner.test.get(record.metric), winner.test_error) if winner and winner.test else "not known yet"),
            "no choice was made on this part",
        ),
        _gain(winner, board.baselines[0] if board.baselines else None, record.metric),
    ]
    ends = [f"{record.counts[status]:,} {word}" for status, word in ENDS if record.counts[status]]
    tiles.append(Tile("Trials", f"{sum(record.counts.values()):,}", ", ".join(ends)))
    spent = sum(row["seconds"] or 0.0 for row in record.trials if row["status"] != "duplicate")
    passed = record.seconds
    if passed is None and record.started and record.ended:
        passed = (record.ended - record.started).total_seconds()
    tiles.append(Tile("Time", duration(passed) or "not known yet", f"{duration(spent)} of training, all trials"))
    return tiles


def _gain(winner: Entry | None, baseline: Entry | None, metric: str) -> Tile:
    """By how much the winner's error lies below the best baseline's."""
    texts = []
    for part in ("validation", "test"):
        mine = getattr(winner, part).get(metric) if winner else None
        theirs = getattr(baseline, part).get(metric) if baseline else None
        if mine is not None and theirs is not None:
            gain = 100 * (1 - mine / theirs) if theirs else 0.0
            text = f"{abs(gain):.1f} % {'lower' if gain >= 0 else 'higher'}"
            texts.append((part, text if theirs else "its error is 0"))
    if not texts or baseline is None:
        return Tile("Against the best baseline", "not known yet")
    part, text = texts[-1]
    notes = [f"on {part}", *(f"{other} on {name}" for name, other in texts[:-1]), f"baseline: {baseline.model}"]
    return Tile("Against the best baseline", text, ", ".join(notes))


def leaderboard(record: Record) -> Section | None:
    """Every scored trial and baseline, best first."""
    board = record.board
    if not board.trials and not board.baselines:
        return None
    title = metric_title(record.metric)
    columns = [
        Column("Rank", True),
        Column("Model", wide=True),
        Column("Family"),
        Column(f"{title}, validation", True),
        Column(f"{title}, test", True),
    ]
    others = [name for name in ("mae", "rmse") if name != record.metric][:1]
    columns += [Column(f"{metric_title(name)}, test", True) for name in others]
    columns += [Column("Parameters", True), Column("Epochs", True), Column("Seconds", True)]
    rows = [_row(entry, rank, record.metric, others) for rank, entry in enumerate(board.trials, start=1)]
    rows += [_row(entry, None, record.metric, others) for entry in board.baselines]
    best = {part: record.best_possible(part) for part in ("validation", "test")}
    if any(value is not None for value in best.values()):
        cells = [Cell("", float("inf")), Cell("best possible"), Cell("the true mean"), _figure(best["validation"])]
        cells += [_figure(best["test"]), *[Cell("")] * (len(columns) - 5)]
        rows.append(Row(cells, "limit"))
    scaled = ", standardised ones in its deviations" if record.metric.endswith("_standardised") else ""
    lead = f"Errors in the target's own units{scaled}, each trial at its best epoch. "
    if any(entry.validation_error is not None for entry in board.trials):
        lead += "± is the standard error of the mean over seeds. "
    lead += "Test figures exist for the best of each family and block pattern, and for the baselines. "
    lead += "Click a heading to sort."
    caption = f"{counted(len(board.trials), 'scored trial')} and {counted(len(board.baselines), 'baseline')}"
    return Section("leaderboard", "Leaderboard", lead, [Table(caption, columns, rows)])


def _row(entry: Entry, rank: int | None, metric: str, others: list[str]) -> Row:
    cells = [
        Cell(str(rank) if rank else "", rank or float("inf")),
        Cell(entry.model, note=_note(entry)),
        Cell("baseline" if entry.status == "baseline" else entry.family or ""),
        _figure(entry.validation.get(metric), entry.validation_error),
        _figure(entry.test.get(metric), entry.test_error),
        *(_figure(entry.test.get(name)) for name in others),
        Cell(f"{entry.parameters:,}" if entry.parameters else "", last(entry.parameters)),
        Cell(str(entry.epochs) if entry.epochs else "", last(entry.epochs)),
        Cell(f"{entry.seconds:,.1f}" if entry.seconds is not None else "", last(entry.seconds)),
    ]
    return Row(cells, "baseline" if entry.status == "baseline" else "winner" if rank == 1 else "")


def _note(entry: Entry) -> str:
    if entry.trial is None:
        return ""
    return f"trial {entry.trial}" + (f", {entry.early}" if entry.early else "")


def _figure(value: float | None, error: float | None = None) -> Cell:
    return Cell(number(value, error), last(value))


def last(value: float | None) -> float:
    """Behind all others where there is no value."""
    return float("inf") if value is None else float(value)
