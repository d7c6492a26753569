"""Which differences are real, every figure of the finalists, and the families at equal budget.

What is shown here is worked out elsewhere; without it the sections are left out.
"""

from __future__ import annotations

from typing import Any

from xlstm_tune.report.blocks import Block, Cell, Column, Figure, Row, Section, Sentences, Table, label
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record, finite
from xlstm_tune.report.sections.standing import last
from xlstm_tune.report.style import ACCENT, BASELINE, Trace, axis, counted, layout, metric_title


def title_of(model: Any) -> str:
    """A model of the evidence, with its trial: `lstm×1 · 32, trial 4`."""
    trial = getattr(model, "trial", None)
    name = str(getattr(model, "name", model))
    return name if trial is None else f"{name}, trial {trial}"


def differences(record: Record) -> Section | None:
    """Each pair of models: by how much the first is better, within which bounds, and whether that is more than luck."""
    evidence = record.evidence
    if evidence is None or not evidence.differences:
        return None
    pairs = list(evidence.differences)
    real = [one for one in pairs if one.real]
    names = [label(f"{_short(one.a)} against {_short(one.b)}", 70) for one in pairs]
    data: list[Trace] = []
    for chosen, name, color, symbol in (
        (True, "real", ACCENT, "circle"),
        (False, "not told apart", BASELINE, "circle-open"),
    ):
        kept = [(title, one) for title, one in zip(names, pairs, strict=True) if bool(one.real) is chosen]
        if kept:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "y": [title for title, _ in kept],
                    "x": [one.gain_percent for _, one in kept],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [one.high_percent - one.gain_percent for _, one in kept],
                        "arrayminus": [one.gain_percent - one.low_percent for _, one in kept],
                        "color": color,
                        "thickness": 2,
                        "width": 5,
                    },
                    "marker": {"color": color, "size": 10, "symbol": symbol},
                    "hovertemplate": "%{y}: %{x:.2f} % lower<extra></extra>",
                }
            )
    x = axis("RMSE of the first is lower by, %", zeroline=True, zerolinecolor=BASELINE, zerolinewidth=1)
    y = axis(type="category", categoryorder="array", categoryarray=names[::-1])
    caption = (
        f"{counted(len(pairs), 'comparison')} on the {evidence.part} part; {len(real)} of them real. Lines are 95 % "
        "intervals; where one crosses zero, the two models cannot be told apart."
    )
    blocks: list[Block] = [
        Figure("intervals", "Differences with their intervals", caption, data, layout(x, y), 130 + 38 * len(pairs)),
        _table(evidence, pairs),
    ]
    notes = [str(note) for note in evidence.notes]
    if notes:
        blocks.append(Sentences(notes))
    lead = f"Worked out from {counted(evidence.samples, 'sample')} of the {evidence.part} part"
    if evidence.block > 1:
        lead += f", drawn anew in blocks of {evidence.block} {evidence.unit}, since neighbours resemble each other"
    return Section("differences", "Which differences are real", f"{lead}.", blocks)


def _table(evidence: Any, pairs: list[Any]) -> Table:
    rows = []
    for one in pairs:
        known = finite(one.low_percent) and finite(one.high_percent)
        bounds = f"{one.low_percent:+.1f} … {one.high_percent:+.1f}" if known else "not known"
        gain = one.gain_percent if finite(one.gain_percent) else None
        rows.append(
            Row(
                [
                    Cell(title_of(one.a)),
                    Cell(title_of(one.b)),
                    Cell(f"{gain:+.1f}" if gain is not None else "not known", last(gain)),
                    Cell(bounds, last(one.low_percent if known else None)),
                    _p(one.p_adjusted),
                    Cell("real" if one.real else "not told apart"),
                ]
            )
        )
    columns = [
        Column("Model", wide=True),
        Column("Against", wide=True),
        Column("RMSE lower by, %", True),
        Column("95 % interval", True),
        Column("p, adjusted", True),
        Column("Verdict"),
    ]
    return Table(f"Pairs of models, {evidence.part} part", columns, rows)


def _p(value: float) -> Cell:
    if not finite(value):
        return Cell("not known", last(None))
    return Cell(f"{value:.3f}" if value >= 0.001 else "< 0.001", value)


def _short(model: Any) -> str:
    trial = getattr(model, "trial", None)
    family = getattr(model, "family", None)
    return str(getattr(model, "name", model)) if trial is None else f"{family or 'trial'} {trial}"


def metrics(record: Record) -> Section | None:
    """Every figure of every finalist and baseline."""
    evidence = record.evidence
    if evidence is None or not evidence.models:
        return None
    names = list(dict.fromkeys(name for model in evidence.models for name in evidence.metrics[model]))
    names = [name for name in names if any(finite(evidence.metrics[model].get(name)) for model in evidence.models)]
    rows = []
    for place, model in enumerate(evidence.models):
        cells = [Cell(title_of(model))]
        for name in names:
            value = evidence.metrics[model].get(name)
            cells.append(Cell(number(value), value) if finite(value) else Cell("", last(None)))
        baseline = getattr(model, "trial", None) is None
        rows.append(Row(cells, "baseline" if baseline else "winner" if place == 0 else ""))
    columns = [Column("Model", wide=True), *(Column(_metric(name), True) for name in names)]
    caption = f"{counted(len(rows), 'model')}, {evidence.part} part"
    return Section("metrics", "All the figures", blocks=[Table(caption, columns, rows)])


def _metric(name: str) -> str:
    known = {"mase": "MASE", "mape": "MAPE, %", "smape": "sMAPE, %", "r2": "R²", "bias": "bias"}
    return known.get(name, metric_title(name))


def equal_budget(record: Record) -> Section | None:
    """The families' expected best with the same number of trials: a family tried more often has had more luck."""
    budgets = list(record.budgets)
    if len(budgets) < 2:
        return None
    data: list[Trace] = []
    for one in budgets:
        color, family = record.palette.color(one.family), label(one.family)
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": list(range(1, len(one.curve) + 1)),
                "y": list(one.curve),
                "name": family,
                "line": {"color": color, "width": 2},
                "hovertemplate": "best of %{x}: %{y:.4g}<extra>" + family + "</extra>",
            }
        )
    best = min(budgets, key=lambda one: one.expected_best)
    k = budgets[0].k
    caption = (
        f"The best {metric_title(record.metric)} to be expected of so many random trials of a family. Of {k} trials "
        f"each, {best.family} has the lowest, {number(best.expected_best, best.std_error)}."
    )
    rows = [
        Row(
            [
                Cell(one.family),
                Cell(str(one.trials), one.trials),
                Cell(number(one.best), one.best),
                Cell(number(one.expected_best, one.std_error), one.expected_best),
            ]
        )
        for one in sorted(budgets, key=lambda one: one.expected_best)
    ]
    columns = [
        Column("Family"),
        Column("Scored trials", True),
        Column("Best of all", True),
        Column(f"Expected best of {k}", True),
    ]
    x, y = axis("Trials of the family"), axis(f"Expected best {metric_title(record.metric)}, validation")
    blocks: list[Block] = [
        Figure("budget", "Expected best by number of trials", caption, data, layout(x, y), 380),
        Table(f"Families, {k} trials each", columns, rows),
    ]
    lead = "A sampler tries some families more often than others, and the best of many is better by luck alone."
    return Section("equal-budget", "Families at equal budget", lead, blocks)
