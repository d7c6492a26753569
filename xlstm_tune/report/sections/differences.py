"""Which models are told apart, every figure of the finalists, and the families at equal budget.

What is shown here is worked out elsewhere; without it the sections are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from xlstm_tune.report.blocks import Block, Cell, Column, Figure, Row, Section, Sentences, Table, label, labels
from xlstm_tune.report.budget import cut_short
from xlstm_tune.report.leaderboard import footnote, number, scope
from xlstm_tune.report.record import Record, finite
from xlstm_tune.report.sections.standing import last
from xlstm_tune.report.style import BASELINE, Trace, axis, counted, intervals, layout, metric_title, whole

TITLE = "Which models are told apart"


def title_of(model: Any) -> str:
    """A model of the evidence, with its trial: `lstm×1 · 32, trial 4`, and ` *` where it ended early."""
    trial = getattr(model, "trial", None)
    name = str(getattr(model, "name", model))
    return name if trial is None else f"{name}, trial {trial}{_mark(model)}"


def _mark(model: Any) -> str:
    return " *" if getattr(model, "early", "") else ""


def stopped_early(models: Iterable[Any]) -> list[str]:
    """The note to `*`, where one of these was stopped early or not finished."""
    note = footnote(getattr(model, "early", "") for model in models)
    return [f"{note}."] if note else []


def differences(record: Record) -> Section | None:
    """Each pair of models: by how much the first is better, within which bounds, and whether that tells them apart."""
    evidence = record.evidence
    if evidence is None or not evidence.differences:
        return None
    blocks = pairs_of_models(list(evidence.differences), evidence.part)
    if evidence.others:
        told = sum(bool(one.told_apart) for one in evidence.others)
        blocks += [
            Sentences(
                [
                    "Above stand the winner's pairs and those with the best baseline; below, corrected for one another "
                    f"alone, the other models with each other: {told} of {counted(len(evidence.others), 'pair')} told "
                    "apart."
                ]
            ),
            _table(evidence.others, evidence.part, "Pairs of the others"),
        ]
    notes = [str(note) for note in evidence.notes]
    if notes:
        blocks.append(Sentences(notes))
    lead = f"Worked out from {counted(evidence.compared, 'sample')} of the {evidence.part} part"
    if evidence.block > 1:
        lead += (
            f", drawn anew in blocks of {'up to ' if _differ(evidence.differences) else ''}{evidence.block} "
            f"{evidence.unit}, since neighbours resemble each other"
        )
    return Section("differences", TITLE, f"{lead}. {_scope(evidence.differences)}.", blocks)


def _differ(pairs: Sequence[Any]) -> bool:
    return len({one.blocks for one in pairs}) > 1


def _scope(pairs: Sequence[Any]) -> str:
    """What being told apart means for these pairs."""
    return scope(min(one.seeds for one in pairs))


def short(model: Any) -> str:
    """`lstm 3`, `ms 7`, or a baseline's name."""
    trial, name = getattr(model, "trial", None), str(getattr(model, "name", model))
    if trial is None:
        return name
    family = getattr(model, "family", None)
    kind = name.partition(" · ")[0] if family == "xlstm" else family or "trial"
    return f"{kind} {trial}{_mark(model)}"


def pairs_of_models(pairs: Sequence[Any], part: str, name_of: Callable[[Any], str] = short) -> list[Block]:
    """Differences of the evidence as intervals and as a table. name_of: what the figure calls a model."""
    names = labels([f"{name_of(one.a)} against {name_of(one.b)}" for one in pairs], 70)  # places are the table's
    data = []
    for chosen, name in ((True, "told apart"), (False, "not told apart")):
        kept = [
            (title, one.gain_percent, one.low_percent, one.high_percent)
            for title, one in zip(names, pairs, strict=True)
            if bool(one.told_apart) is chosen
        ]
        if kept:
            data.append(intervals(kept, name, sure=chosen, hover="%{x:.2f} % lower"))
    x = axis("RMSE lower by, %", zeroline=True, zerolinecolor=BASELINE, zerolinewidth=1)
    y = axis(type="category", categoryorder="array", categoryarray=names[::-1])
    told = sum(bool(one.told_apart) for one in pairs)
    caption = f"{counted(len(pairs), 'comparison')} on the {part} part: how much lower the RMSE of the first model is. "
    if any(finite(one.low) for one in pairs):
        caption += (
            f"Lines are 95 % intervals of each pair alone; {told} {'are' if told != 1 else 'is'} told apart, which is "
            "what still holds once it is considered how many pairs are compared."
        )
    else:
        caption += "The part is too small for intervals, so none is told apart."
    title, height = "Differences with their intervals", 130 + 38 * len(pairs)
    figure = Figure("intervals", title, caption, data, layout(x, y), height)
    notes = stopped_early(model for one in pairs for model in (one.a, one.b))
    return [figure, _table(pairs, part), *([Sentences(notes)] if notes else [])]


def _table(pairs: Sequence[Any], part: str, title: str = "Pairs of models") -> Table:
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
                    Cell("told apart" if one.told_apart else "not told apart"),
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
    return Table(f"{title}, {part} part", columns, rows)


def _p(value: float) -> Cell:
    if not finite(value):
        return Cell("not known", last(None))
    return Cell(f"{value:.3f}" if value >= 0.001 else "< 0.001", value)


def metrics(record: Record) -> Section | None:
    """Every figure of every finalist and baseline."""
    evidence = record.evidence
    if evidence is None or not evidence.models:
        return None
    names = list(dict.fromkeys(name for model in evidence.models for name in evidence.metrics[model]))
    names = [name for name in names if any(finite(evidence.metrics[model].get(name)) for model in evidence.models)]
    rows = []
    chosen = evidence.winner
    for model in evidence.models:
        cells = [Cell(title_of(model))]
        for name in names:
            value = evidence.metrics[model].get(name)
            cells.append(Cell(number(value), value) if finite(value) else Cell("", last(None)))
        baseline = getattr(model, "trial", None) is None
        rows.append(Row(cells, "baseline" if baseline else "winner" if model == chosen else ""))
    columns = [Column("Model", wide=True), *(Column(_metric(name), True) for name in names)]
    caption = f"{counted(len(rows), 'model')}, {evidence.part} part"
    notes = stopped_early(evidence.models)
    blocks: list[Block] = [Table(caption, columns, rows), *([Sentences(notes)] if notes else [])]
    return Section("metrics", "All the figures", blocks=blocks)


def _metric(name: str) -> str:
    known = {"mase": "MASE", "mape": "MAPE, %", "smape": "sMAPE, %", "r2": "R²", "bias": "bias"}
    return known.get(name, metric_title(name))


def equal_budget(record: Record) -> Section | None:
    """The families' expected best with the same number of trials: a family tried more often has had more luck."""
    expected = {one.family: one.expected_best for one in record.budgets if one.expected_best is not None}
    budgets = sorted((one for one in record.budgets if one.family in expected), key=lambda one: expected[one.family])
    if len(budgets) < 2:
        return None
    data: list[Trace] = []
    for one in budgets:
        color, family = record.palette.color(one.family), label(one.family)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if len(one.curve) < 2 else "lines",
                "x": list(range(1, len(one.curve) + 1)),
                "y": list(one.curve),
                "name": family,
                "line": {"color": color, "width": 2},
                "hovertemplate": "best of %{x}: %{y:.4g}<extra>" + family + "</extra>",
            }
        )
    best = budgets[0]
    k = best.k
    caption = (
        f"The best {metric_title(record.metric)} to be expected of so many random trials of a family. Of "
        f"{counted(k, 'trial')} each, {best.family} has the lowest, {number(best.expected_best, best.std_error)}."
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
        for one in budgets
    ]
    columns = [
        Column("Family"),
        Column("Trials", True),
        Column("Best of all", True),
        Column(f"Expected best of {k}", True),
    ]
    most = max(len(one.curve) for one in budgets)
    x, y = axis("Trials of the family", **whole(most)), axis(f"Expected best {metric_title(record.metric)}, validation")
    blocks: list[Block] = [
        Figure("budget", "Expected best by number of trials", caption, data, layout(x, y), 380),
        Table(f"Families, {counted(k, 'trial')} each", columns, rows),
    ]
    if stopped := sum(row["status"] == "pruned" and not cut_short(row) for row in record.scored):
        how = "were stopped early and count with the epochs that they had"
        if stopped == 1:
            how = "was stopped early and counts with the epochs that it had"
        blocks.append(
            Sentences(
                [
                    f"{stopped} of {counted(len(record.scored), 'trial')} {how}, so a family that learns slowly looks "
                    "worse than it may be; with search.scheduler: none all are trained to the end."
                ]
            )
        )
    lead = "A sampler tries some families more often than others, and the best of many is better by luck alone."
    return Section("equal-budget", "Families at equal budget", lead, blocks)
