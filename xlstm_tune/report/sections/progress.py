"""How the search went: the objective trial by trial, and the best so far."""

from __future__ import annotations

from xlstm_tune.report.blocks import Figure, Section, Sentences, label
from xlstm_tune.report.budget import early_end, early_ends
from xlstm_tune.report.leaderboard import number
from xlstm_tune.report.record import Record
from xlstm_tune.report.study import quiet
from xlstm_tune.report.style import (
    ACCENT,
    BASELINE,
    axis,
    counted,
    family_name,
    layout,
    level,
    log_if_wide,
    metric_title,
    whole,
)


def progress(record: Record) -> Section | None:
    """Optuna's history of the search, with the best baseline and what is possible drawn in."""
    title = f"{metric_title(record.metric)}, validation"
    if not record.scored:
        return Section("progress", "Progress of the search", blocks=[Sentences(["No trial has been scored yet."])])
    from optuna.visualization import plot_optimization_history

    rebuilt = record.rebuilt
    with quiet():
        figure = plot_optimization_history(rebuilt.study, target_name=title)
    points, best = figure.data[0], figure.data[1]
    rows = [rebuilt.rows[number_] for number_ in points.x]
    data = []
    for family in record.palette.present(row["family"] for row in rows):
        chosen = [row for row in rows if family_name(row["family"]) == family]
        chosen.sort(key=lambda row: row["status"] == "pruned")  # the legend has the first one's symbol
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(family),
                "x": [row["trial"] for row in chosen],
                "y": [row[record.objective] for row in chosen],
                "text": [
                    label(f"trial {row['trial']}: {row['name']}{', ' * bool(early_end(row))}{early_end(row)}")
                    for row in chosen
                ],
                "hovertemplate": "%{text}<br>%{y:.4g}<extra></extra>",
                "marker": {
                    "color": record.palette.color(family),
                    "symbol": [
                        record.palette.symbol(family) + ("-open" if row["status"] == "pruned" else "") for row in chosen
                    ],
                    "size": 8,
                },
            }
        )
    numbers = [rebuilt.rows[one]["trial"] for one in best.x]
    lowest = [float(one) for one in best.y]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "x": numbers,
            "y": lowest,
            "line": {"color": ACCENT, "width": 2, "shape": "hv"},
            "hovertemplate": "best so far: %{y:.4g}<extra></extra>",
        }
    )
    ends = [record.trials[0]["trial"], record.trials[-1]["trial"]]
    if record.board.baselines and (value := record.board.baselines[0].validation.get(record.metric)) is not None:
        data.append(level(value, ends, f"best baseline, {label(record.board.baselines[0].model)}", BASELINE))
    if (limit := record.best_possible("validation")) is not None:
        data.append(level(limit, ends, "best possible"))
    found = numbers[lowest.index(min(lowest))]
    early = early_ends(map(early_end, rows))
    hollow = f"; hollow marks were {early}" if early else ""
    caption = f"{counted(len(rows), 'scored trial')} in the order of their numbers{hollow}. "
    if found == numbers[0]:
        caption += f"The first, trial {found}, stayed the best: {number(lowest[-1])}."
    else:
        caption += (
            f"The best so far fell from {number(lowest[0])} to {number(lowest[-1])}, which trial {found} reached"
            f" ({_share(numbers, found)} of the way through)."
        )
    x = axis("Trial", **whole(ends[1]))
    y = axis(title, **log_if_wide([row[record.objective] for row in rows]))
    return Section(
        "progress",
        "Progress of the search",
        blocks=[Figure("history", "Objective by trial", caption, data, layout(x, y))],
    )


def _share(numbers: list[int], found: int) -> str:
    return f"{100 * (numbers.index(found) + 1) / len(numbers):.0f} %"
