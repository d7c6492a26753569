"""Which inputs the winner leans on: how much worse it gets when each is shuffled among the samples."""

from __future__ import annotations

from xlstm_tune.report.blocks import Block, Cell, Column, Figure, Row, Section, Sentences, Table, labels
from xlstm_tune.report.inputs import Inputs, Worth, read_inputs
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record, finite
from xlstm_tune.report.sections.standing import last
from xlstm_tune.report.style import BASELINE, axis, counted, intervals, layout

MOST = 20
"""Inputs that are drawn; the table has all."""
SURE, CHANCE, UNTOLD = "more than chance", "may be chance", "too little to tell"


def inputs(record: Record) -> Section | None:
    """None where nothing was measured: an unfinished search, or one of an older version."""
    best = record.board.winner
    found = None if best is None or best.trial is None else read_inputs(record.folder, best.trial, record.data)
    if best is None or found is None or not found.worth:
        return None
    kind = "sequence" if record.data.get("task") == "regression" else "window"
    total = (record.data.get("samples") or {}).get("test", found.samples)
    samples = counted(found.samples, kind)
    if found.samples < total:
        samples = f"{found.samples:,} of {counted(total, kind)}, drawn evenly"
    lead = (
        f"How much higher the test RMSE of {best.model}, trial {best.trial}, gets when the values of one input are "
        f"those of another {kind}. With all inputs as they are it is {number(found.rmse)}, "
        f"from {samples}{' and all seeds together' if best.validation_error is not None else ''}."
    )
    caution = (
        "Inputs that resemble each other stand in for one another, so that none of them may seem to matter; and what a "
        "model leans on need not be a cause."
    )
    blocks: list[Block] = [_figure(found), _table(found), Sentences([caution, *found.notes])]
    return Section("inputs", "Which inputs the winner leans on", lead, blocks)


def _figure(found: Inputs) -> Figure:
    drawn = found.worth[:MOST]
    names = labels([one.name for one in drawn])  # places are the table's
    data = []
    for name, symbol in ((SURE, "circle"), (CHANCE, "circle-open"), (UNTOLD, "diamond-open")):
        kept = [
            (shown, one.rise, one.low, one.high)
            for shown, one in zip(names, drawn, strict=True)
            if _standing(one) == name
        ]
        if kept:
            data.append(intervals(kept, name, sure=name == SURE, hover="%{x:.2f} % higher", symbol=symbol))
    x = axis("RMSE higher by, %", zeroline=True, zerolinecolor=BASELINE, zerolinewidth=1)
    y = axis(type="category", categoryorder="array", categoryarray=names[::-1])
    return Figure("inputs", "Importance of inputs", _caption(found), data, layout(x, y), 130 + 30 * len(drawn))


def _caption(found: Inputs) -> str:
    raising = [one for one in found.worth if round(one.rise, 1) > 0]
    if not raising:
        return "Shuffled, no input raises the RMSE."
    said = f"Shuffled, {raising[0].name} raises the RMSE most, by {raising[0].rise:.1f} %"
    said += f", then {raising[1].name} by {raising[1].rise:.1f} %." if len(raising) > 1 else "."
    drawn = f" The {MOST} with the largest rise are drawn." if len(found.worth) > MOST else ""
    lines = " Lines are 95 % intervals of each input alone." if any(map(_known, found.worth)) else ""
    return f"{said} {_told(found.worth)}{lines}{drawn}"


def _told(worth: list[Worth]) -> str:
    """How many inputs are told from chance, and of how many nothing can be told, in a sentence."""
    untold = sum(_standing(one) == UNTOLD for one in worth)
    if untold == sum(not _idle(one) for one in worth):
        return "The test part is too small to tell any of that from chance."
    sure, rest = sum(one.sure for one in worth), len(worth) - untold
    verb = "are" if sure > 1 else "is"
    if not untold:
        return f"{sure or 'None'} of {counted(len(worth), 'input')} {verb} more than chance explains."
    others = f"{sure or 'none'} of the other {rest} {verb}" if rest > 1 else f"the other one is{'' if sure else ' not'}"
    total = counted(len(worth), "input")
    return f"The test part is too small to tell {untold} of {total} from chance; {others} more than chance explains."


def _table(found: Inputs) -> Table:
    rows = [
        Row(
            [
                Cell(one.name),
                Cell(f"{round(one.rise, 1) + 0.0:+.1f}", one.rise),
                Cell(f"{one.low:+.1f} … {one.high:+.1f}" if _known(one) else "not known", last(one.low)),
                Cell(_verdict(one)),
            ]
        )
        for one in found.worth
    ]
    columns = [
        Column("Input", wide=True),
        Column("RMSE higher by, %", True),
        Column("95 % interval", True),
        Column("Verdict"),
    ]
    return Table(f"{counted(len(rows), 'input')}, each shuffled by itself", columns, rows)


def _verdict(one: Worth) -> str:
    if _idle(one):
        return "changes nothing"
    if not one.sure:
        return _standing(one)
    return "leant on" if one.rise > 0 else "misleads"


def _standing(one: Worth) -> str:
    if one.sure:
        return SURE
    return CHANCE if one.tells or _idle(one) else UNTOLD


def _idle(one: Worth) -> bool:
    """Shuffled, it changes no error."""
    return one.rise == one.low == one.high == 0


def _known(one: Worth) -> bool:
    return finite(one.low) and finite(one.high)
