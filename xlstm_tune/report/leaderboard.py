"""Who won, and by how much: one table of the best trials beside the baselines."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from xlstm_tune.ranking import METRICS, scored
from xlstm_tune.report.budget import EARLY, REFUSED, UNFINISHED, counted_as, early_end, early_ends, how_ended
from xlstm_tune.report.cost import cost
from xlstm_tune.report.differences import Difference
from xlstm_tune.report.evidence import Evidence, gather, search_row
from xlstm_tune.report.pareto import pareto_front
from xlstm_tune.report.resampling import ENOUGH, FEW_ALPHA, FEWEST
from xlstm_tune.report.terminal import Line, fitted
from xlstm_tune.results import read
from xlstm_tune.strict import counted, shortened

SHOWN = 10
"""Trials on the terminal, besides those with test figures; the tables hold all."""


WIDE = 110
"""Columns of a terminal from which there is room for all of FURTHER, unless figures are long."""
PARAMETERS = "param-\neters"
FURTHER = ("MSE std.\ntest", "MAE std.\ntest", PARAMETERS, "epochs", "seconds")
"""Headings of the figures besides the objective's. Where there is no room the last goes first, the parameters last."""


@dataclass(frozen=True)
class Entry:
    """A trial or a baseline. Figures are None where nothing was scored."""

    model: str
    family: str | None
    """None for a baseline."""
    trial: int | None
    status: str
    validation: Mapping[str, float | None]
    """rmse, mae (target's units), mse_standardised, mae_standardised."""
    test: Mapping[str, float | None]
    parameters: int | None
    seconds: float | None
    epochs: int | None
    validation_error: float | None = None
    """Standard error of the objective on the validation part, where it is a mean over several seeds."""
    test_error: float | None = None
    early: str = ""
    """As `early_end` has it."""


@dataclass(frozen=True)
class Leaderboard:
    """Trials and baselines, each best first by the objective on the validation part."""

    metric: str
    """The objective without `val_`."""
    trials: list[Entry]
    baselines: list[Entry]
    counts: dict[str, int]
    """Trials by how they ended; refused configurations are among them only where there are any."""
    evidence: Evidence | None = None
    """What the predictions say; None where nothing has any."""
    cost: Mapping[str, float] = field(default_factory=dict)
    """cpu_hours, gpu_hours, trials_per_hour, as far as they are known."""
    reason: str = ""
    """Of every trial that failed by itself or was refused, up to the figures in it; empty where they differ, or there
    is none."""

    @property
    def lead(self) -> Difference | None:
        """The winner's RMSE against that of the best baseline on the test part; None before that is looked at."""
        seen = self.evidence
        if seen is None or seen.part != "test" or seen.winner is None or seen.best_baseline is None:
            return None
        if not (self.winner and self.baselines) or seen.winner.trial != self.winner.trial:
            return None
        return seen.difference(seen.winner, seen.best_baseline)

    @property
    def winner(self) -> Entry | None:
        """The best trial; None when none was scored."""
        return self.trials[0] if self.trials else None

    def columns(self) -> dict[str, list[Any]]:
        """As columns of plain values, for MLflow's table."""
        entries = [*self.trials, *self.baselines]
        table: dict[str, list[Any]] = {"model": [entry.model for entry in entries]}
        for name in METRICS:
            for part, figures in (("val", "validation"), ("test", "test")):
                table[f"{part}_{name}"] = [getattr(entry, figures).get(name) for entry in entries]
        if any(entry.validation_error is not None for entry in entries):
            table[f"val_{self.metric}_std_error"] = [entry.validation_error for entry in entries]
            table[f"test_{self.metric}_std_error"] = [entry.test_error for entry in entries]
        table["family"] = [entry.family or "baseline" for entry in entries]
        table["trial"] = [entry.trial for entry in entries]
        table["status"] = [entry.status for entry in entries]
        for name in ("parameters", "epochs", "seconds"):
            table[name] = [getattr(entry, name) for entry in entries]
        return table

    def summary(self) -> dict[str, float]:
        """Figures for the parent run: the winner and its figures, the best baseline's, the gain in per cent, trials by
        end, cost.

        gain_test_percent_low and _high: the 95 % interval of the gain in RMSE on the test part.
        """
        figures: dict[str, float] = {f"trials_{status}": float(count) for status, count in self.counts.items()}
        figures |= self.cost
        if self.winner is None:
            return figures
        if self.winner.trial is not None:
            figures["best_trial"] = float(self.winner.trial)
        best = self.baselines[0] if self.baselines else None
        for part, name in (("validation", "val"), ("test", "test")):
            mine = getattr(self.winner, part).get(self.metric)
            theirs = getattr(best, part).get(self.metric) if best else None
            if mine is not None:
                figures[f"best_{name}_{self.metric}"] = mine
            if (error := getattr(self.winner, f"{part}_error")) is not None:
                figures[f"best_{name}_{self.metric}_std_error"] = error
            if mine is not None and theirs:
                figures[f"baseline_{name}_{self.metric}"] = theirs
                figures[f"gain_{name}_percent"] = 100 * (1 - mine / theirs)
        if (lead := self.lead) and math.isfinite(lead.low_percent):
            figures["gain_test_percent_low"], figures["gain_test_percent_high"] = lead.low_percent, lead.high_percent
        return figures


def build_leaderboard(folder: Path, objective: str) -> Leaderboard:
    """From the Parquet tables of a search folder, also while the search runs."""
    metric = objective.removeprefix("val_")
    tested: dict[int, dict[str, Any]] = {}
    for row in read(folder, "scores").to_pylist():
        if row["part"] == "test":
            tested[row["trial"]] = row
    trials, counts = [], dict.fromkeys(("completed", "pruned", "failed", UNFINISHED, "duplicate"), 0)
    rows = read(folder, "trials").to_pylist()
    for row in rows:
        end = counted_as(row)
        counts[end] = counts.get(end, 0) + 1
    for row in scored(rows, objective):
        test = tested.get(row["trial"])
        trials.append(
            Entry(
                model=row["name"],
                family=row["family"],
                trial=row["trial"],
                status=row["status"],
                validation=_figures(row, "val_"),
                test=_figures(test) if test else {},
                parameters=row["parameters"],
                seconds=row["seconds"],
                epochs=row["epochs"],
                validation_error=row["std_error"],
                test_error=test[f"{metric}_std_error"] if test else None,
                early=early_end(row),
            )
        )
    costs = cost(rows, search_row(folder))
    baselines = _baselines(folder, metric)
    return Leaderboard(metric, trials, baselines, counts, gather(folder, objective), costs, shared_reason(rows))


def shared_reason(rows: Sequence[Mapping[str, Any]]) -> str:
    """The reason of every trial that failed by itself or was refused, in the words of the first; empty where they
    differ.

    Figures aside: models that are all too large are so by different sizes. rows: of the trials table.
    """
    reasons = [str(row["reason"] or "") for row in rows if how_ended(row) == "failed"]
    return reasons[0] if len({re.sub(r"\d[\d,.]*", "0", reason) for reason in reasons}) == 1 else ""


def best_baseline(folder: Path, objective: str) -> tuple[str, float] | None:
    """Name and validation figure of the baseline that is hardest to beat."""
    entries = _baselines(folder, objective.removeprefix("val_"))
    if not entries:
        return None
    value = entries[0].validation[objective.removeprefix("val_")]
    return None if value is None else (entries[0].model, value)


def print_leaderboard(
    board: Leaderboard, console: Console, best_possible: Mapping[str, float] | None = None, reported: bool = True
) -> None:
    """The table, and a sentence that says who won and by how much. reported: a page holds all of it."""
    metric = board.metric.upper() if board.metric in ("rmse", "mae") else board.metric.replace("_", " ")
    wide = console.width >= WIDE
    shown = [(rank, entry) for rank, entry in enumerate(board.trials, start=1) if rank <= SHOWN or entry.test]
    trials = [
        Line(
            (str(rank), str(entry.trial), _titled(entry)),
            _cells(entry, board.metric, wide),
            "bold" if rank == 1 else None,
        )
        for rank, entry in shown
    ]
    others = [
        Line(("", "", Text(entry.model, style="italic")), _cells(entry, board.metric, wide), "dim")
        for entry in board.baselines
    ]
    if best_possible and board.metric == "rmse":
        figures = [number(best_possible[part]) for part in ("validation", "test")]
        others.append(Line(("", "", Text("best possible (the true mean)", style="italic")), figures, "dim"))
    further = FURTHER if wide else (PARAMETERS,)
    names = [f"{metric}\nvalidation", f"{metric}\ntest", *further]
    less = [name for name in reversed(FURTHER) if name in further and name != PARAMETERS]
    table = fitted(console, ("", "trial", "model"), names, (trials, others), [*less, PARAMETERS])
    console.print()
    console.print(table)
    if left := len(board.trials) - len(shown):
        where = ": in the report" if reported else ""
        console.print(counted(left, "more trial") + where, style="dim", highlight=False)
    if any(entry.validation_error is not None for entry in board.trials):
        console.print("± standard error of the mean over seeds", style="dim", highlight=False)
    if note := footnote(entry.early for _, entry in shown):
        console.print(note, style="dim", highlight=False)
    console.print()
    # A terminal would break the sentence within a word; a file keeps one line.
    # A reason may hold brackets, which are no markup.
    console.print(verdict(board), highlight=False, markup=False, soft_wrap=not console.is_terminal)


def footnote(ends: Iterable[str]) -> str:
    """What `*` at a model says, of these `early_end`s; empty where there are none."""
    words = early_ends(ends)
    return f"* {words}; its best epoch counts" if words else ""


def print_front(rows: Sequence[Mapping[str, Any]], goals: Sequence[str], console: Console) -> None:
    """The Pareto front as a table. rows: of the trials table; goals: as of `pareto_front`."""
    front = pareto_front(rows, goals)
    by_number = {row["trial"]: row for row in rows}
    lines = [
        Line((str(trial), Text(by_number[trial]["name"])), [number(by_number[trial][goal]) for goal in goals])
        for trial in front
    ]
    table = fitted(console, ("trial", "model"), goals, [lines])
    console.print()
    these = f"one of these {len(front)}" if len(front) > 1 else "this one"
    said = f"no trial beats {these} in all" if front else "no trial was scored"
    console.print(f"Pareto front of {', '.join(goals)}: {said}", highlight=False)
    console.print(table)


def verdict(board: Leaderboard) -> str:
    """One sentence: the winner, and its distance to the best baseline on both parts."""
    ends = ", ".join(f"{count} {status}" for status, count in board.counts.items() if count) or "none began"
    if board.winner is None:
        told = "The reasons stand in the trials table and beside each trial's config."
        if board.reason and not board.counts.get(UNFINISHED):
            failed = board.counts["failed"] + board.counts.get(REFUSED, 0)
            # Without its full stop, which messages of libraries have and ours have not.
            reason = shortened(" ".join(board.reason.split()), 300).removesuffix(".")
            return f"No trial could be scored ({ends}){', all' if failed > 1 else ''} for this reason: {reason}. {told}"
        return f"No trial could be scored ({ends}). {told}"
    winner, metric = board.winner, board.metric
    score = number(winner.validation.get(metric), winner.validation_error)
    early = f", {winner.early}{' by the scheduler' * (winner.early == EARLY)}" if winner.early else ""
    text = f"{winner.model} (trial {winner.trial}{early}) won: {metric} {score} on validation"
    if winner.test:
        text += f", {number(winner.test.get(metric), winner.test_error)} on test"
    if board.baselines:
        text += f". {_against(winner, board.baselines[0], metric)}"
    if board.evidence and (lead := board.lead):
        text += f". {how_sure(lead, board.evidence)}"
    return f"{text}. Trials: {ends}."


def _against(winner: Entry, baseline: Entry, metric: str) -> str:
    """The distance to the best baseline; a search that beat nothing is told so in the first words."""
    gains = {}
    for part in ("validation", "test"):
        mine, theirs = getattr(winner, part).get(metric), getattr(baseline, part).get(metric)
        if mine is not None and theirs:
            gains[part] = 100 * (1 - mine / theirs)
    parts = [f"{abs(gain):.1f}% {'lower' if gain >= 0 else 'higher'} on {part}" for part, gain in gains.items()]
    lead = "Against the best baseline" if gains.get("validation", 0) > 0 else "No trial beat the best baseline"
    return f"{lead}, {baseline.model}: {' and '.join(parts) or 'its error is 0'}"


def how_sure(lead: Difference, seen: Evidence) -> str:
    """Whether the two models of a difference are told apart on the test part, without the last full stop.

    seen: what the difference is part of.
    """
    if not math.isfinite(lead.low) or lead.blocks < FEWEST:
        return "The test part is too small to tell the two apart"
    spread = ""
    if math.isfinite(lead.low_percent):  # nothing is a share of an RMSE of 0
        spread = f": 95% interval {_span(lead.low_percent, lead.high_percent)} than the RMSE of {lead.b.name}"
    if lead.told_apart:
        return f"On test the two are told apart{spread}. {scope(lead.seeds)}"
    if lead.beyond:
        return f"Whether that would hold elsewhere cannot be said, since {lead.beyond}{spread}"
    if lead.low <= 0 <= lead.high:
        return f"On test the two are not told apart{spread}"
    if lead.blocks >= ENOUGH:
        return f"On test the two are not told apart when {len(seen.differences)} comparisons are made{spread}"
    return (
        f"On test the two are not told apart, since about {math.floor(lead.blocks)} independent blocks ask for an "
        f"adjusted p below {FEW_ALPHA}, and it is {lead.p_adjusted:.3f}{spread}"
    )


def _span(low: float, high: float) -> str:
    """An interval of how many percent lower something is, in words."""
    if low >= 0:
        return f"{low:.1f}% to {high:.1f}% lower"
    if high <= 0:
        return f"{-high:.1f}% to {-low:.1f}% higher"
    return f"from {-low:.1f}% higher to {high:.1f}% lower"


def scope(seeds: int) -> str:
    """What it speaks of that two models are told apart, without the full stop. seeds: training runs of each."""
    if seeds > 1:
        return f"Trained models count by their mean over {seeds} seeds, whose differences are part of the interval"
    return (
        "This speaks of these trained models on this test part; another seed may reverse it, and "
        "'population: {seeds: 3}' takes that into account"
    )


def _baselines(folder: Path, metric: str) -> list[Entry]:
    parts: dict[str, dict[str, dict[str, float]]] = {}
    for row in read(folder, "baselines").to_pylist():
        parts.setdefault(row["name"], {})[row["part"]] = _figures(row)
    entries = [
        Entry(name, None, None, "baseline", found.get("validation", {}), found.get("test", {}), None, None, None)
        for name, found in parts.items()
    ]

    def place(entry: Entry) -> tuple[bool, float]:
        figure = entry.validation.get(metric)
        return figure is None, figure or 0.0

    return sorted(entries, key=place)


def _figures(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {name: row[prefix + name] for name in METRICS}


def _cells(entry: Entry, metric: str, wide: bool) -> list[str]:
    scores = [
        number(entry.validation.get(metric), entry.validation_error),
        number(entry.test.get(metric), entry.test_error),
    ]
    parameters = f"{entry.parameters:,}" if entry.parameters else ""
    if not wide:
        return [*scores, parameters]
    return [
        *scores,
        number(entry.test.get("mse_standardised")),
        number(entry.test.get("mae_standardised")),
        parameters,
        str(entry.epochs) if entry.epochs else "",
        f"{entry.seconds:.1f}" if entry.seconds is not None else "",
    ]


def _titled(entry: Entry) -> Text:
    text = Text(entry.model)
    if entry.early:
        text.append(" *", style="dim")
    return text


def number(value: float | None, error: float | None = None) -> str:
    """Four digits, as 0.0123, 3.450, 1,234 or 135,450; counts, which are ints, as they are; empty for None. With a
    standard error: 3.450 ± 0.021."""
    if value is None:
        return ""
    whole = isinstance(value, int) or abs(value) >= 1000
    text = f"{value:,.0f}" if whole else f"{value:#.4g}".rstrip(".")
    return text if error is None else f"{text} ± {f'{error:,.0f}' if error >= 10 else f'{error:.2g}'}"
