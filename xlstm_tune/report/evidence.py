"""What the finalists' predictions say: every figure of every model, and which models are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from xlstm_tune.report import scores
from xlstm_tune.report.budget import early_end
from xlstm_tune.report.contenders import contenders
from xlstm_tune.report.differences import Difference as Difference
from xlstm_tune.report.differences import compare_pairs
from xlstm_tune.report.predictions import (
    Facts,
    Judged,
    facts,
    groups_of,
    of_all_samples,
    predicted_parts,
    read_predictions,
    seed_scores,
)
from xlstm_tune.report.predictions import Model as Model
from xlstm_tune.results import read

OBJECTIVE = "val_rmse"


@dataclass(frozen=True)
class Evidence:
    """Finalists and baselines on one part."""

    part: str
    """`test`; `validation` where no finalist has test predictions yet."""
    models: list[Model]
    """Best first by RMSE on this part."""
    winner: Model | None
    """The finalist that is best by the objective on validation; None where only baselines have predictions."""
    best_baseline: Model | None
    """By the objective on validation."""
    metrics: dict[Model, dict[str, float | None]]
    """Figures of scores.METRICS."""
    by_group: dict[Model, dict[str, float]]
    """RMSE of the first target in each series, or each group of a regression's sequences; {} where there is one."""
    by_target: dict[Model, dict[str, dict[str, float]]]
    """`rmse` and `mae` of each target; {} where there is one."""
    differences: list[Difference]
    """Of the winner to every other finalist and every baseline, and of the other finalists to the best baseline."""
    others: list[Difference]
    """Of the other finalists to each other, corrected among themselves: many pairs, which would hide the winner's."""
    unit: str
    """What was drawn anew: `windows` or `sequences`."""
    samples: int
    """Windows or sequences that the figures are made of."""
    compared: int
    """Those that the differences are made of, which may be more."""
    block: int
    """Windows of a series in a row that are drawn together, of the pair of `differences` with most; 1 for sequences."""
    blocks: float
    """Independent blocks, or groups of sequences, of that with fewest; 0 where nothing was compared."""
    resampled: str
    """In words: what was drawn together, and how that was chosen."""
    notes: list[str]
    """Sentences that a reader of the figures has to know."""

    def difference(self, a: Model | None, b: Model | None) -> Difference | None:
        """The difference of these two, if it is among those shown."""
        return next((one for one in self.differences if (one.a, one.b) == (a, b)), None)


def search_row(folder: Path) -> dict[str, Any] | None:
    """The search's own row, its JSON columns as values; None in searches that were written without one."""
    rows = read(folder, "search").to_pylist()
    if not rows:
        return None
    return {**rows[-1], **{name: json.loads(rows[-1][name] or "null") for name in ("spec", "environment", "data")}}


def objective_of(row: Mapping[str, Any] | None) -> str:
    """What a search was to make small, with its `val_`; val_rmse where its row does not say."""
    return str(((row or {}).get("spec") or {}).get("search", {}).get("objective") or OBJECTIVE)


def gather(folder: Path, objective: str | None = None) -> Evidence | None:
    """From the tables of a search folder; None where nothing has predictions yet.

    objective: with its `val_`; None = as the search's row says. Of each family and block pattern the best trial
    that has predictions counts. Test data chose nothing, so test figures need no correction for the winner being the
    best of many. Raises StorageError if the folder holds no results.
    """
    row = search_row(folder)
    objective = objective or objective_of(row)
    seen, trials = facts(row["data"] if row else None), read(folder, "trials").to_pylist()
    parts = predicted_parts(folder)
    finalists, notes = _finalists(trials, parts, objective)
    baselines = _baselines(folder, parts, objective)
    part = "validation"
    if any("test" in parts[one.trial, one.family or ""] for one in finalists):
        part = "test"
    named = [(model.family or model.name, model) for model in (*finalists, *baselines)]
    judged = read_predictions(folder, part, named)
    if judged is None:
        return None
    finalists = [one for one in finalists if one in judged.predicted]
    baselines = [one for one in baselines if one in judged.predicted]
    winner, best = (models[0] if models else None for models in (finalists, baselines))
    pairs = [(winner, other) for other in (*finalists[1:], *baselines)] if winner else []
    if best:
        pairs += [(other, best) for other in finalists[1:]]
    scored = seed_scores(folder, objective) if part == "test" else {}
    seeds = {one: scored[one.trial] for one in finalists if one.trial in scored}
    whole = of_all_samples(folder, judged)
    compared = compare_pairs(whole, pairs, seen, seeds)
    others = compare_pairs(whole, list(combinations(finalists[1:], 2)), seen, seeds)
    notes += [*judged.left_out, *_notes(judged, whole, seen, trials, winner, objective), *compared.notes]
    notes += [note for note in others.notes if note not in notes]
    groups = groups_of(judged, seen)
    figures = {
        model: scores.metrics(predicted, judged.actual, seen.target_std, seen.mase_scale)
        for model, predicted in judged.predicted.items()
    }
    return Evidence(
        part=part,
        models=sorted(figures, key=lambda model: (figures[model]["rmse"], model.name)),
        winner=winner,
        best_baseline=best,
        metrics=figures,
        by_group={
            model: scores.by_group(values[..., :1], judged.actual[..., :1], groups)
            for model, values in judged.predicted.items()
        },
        by_target={
            model: scores.by_target(values, judged.actual, judged.targets) for model, values in judged.predicted.items()
        },
        differences=compared.differences,
        others=others.differences,
        unit=compared.unit,
        samples=len(judged.time),
        compared=len(whole.time),
        block=compared.block,
        blocks=compared.blocks,
        resampled=compared.resampled,
        notes=notes,
    )


def _finalists(
    trials: list[dict[str, Any]], parts: Mapping[tuple[int | None, str], set[str]], objective: str
) -> tuple[list[Model], list[str]]:
    """The trials that stand for their architectures among those with predictions, best first on validation."""
    best = contenders(trials, objective)
    judged = contenders([row for row in trials if (row["trial"], row["family"]) in parts], objective)
    notes = []
    if judged and best[0]["trial"] != judged[0]["trial"]:
        notes.append(
            f"Trial {best[0]['trial']} is better on validation than trial {judged[0]['trial']}, but has no "
            "predictions yet."
        )
    return [_model(row) for row in judged], notes


def _model(row: dict[str, Any]) -> Model:
    return Model(row["name"] or row["family"], row["family"], row["trial"], early_end(row))


def _baselines(folder: Path, parts: Mapping[tuple[int | None, str], set[str]], objective: str) -> list[Model]:
    metric = objective.removeprefix("val_")
    values = {row["name"]: row[metric] for row in read(folder, "baselines").to_pylist() if row["part"] == "validation"}
    names = [name for trial, name in parts if trial is None]
    names.sort(key=lambda name: (values.get(name) is None, values.get(name) or 0.0))
    return [Model(name, None, None) for name in names]


def _notes(
    judged: Judged, whole: Judged, seen: Facts, trials: list[dict[str, Any]], winner: Model | None, objective: str
) -> list[str]:
    """judged: of the samples whose predictions were kept. whole: of those that the differences are made of."""
    notes = []
    if judged.part == "validation" and winner:
        notes.append(
            "The winner was chosen on the validation part, so its lead there is flattered; test figures come when the "
            "search has ended."
        )
    if objective != OBJECTIVE:
        notes.append(f"The winner was chosen by {objective}; the differences shown are those of RMSE.")
    total, kept = (seen.samples or {}).get(judged.part), len(judged.time)
    if total is not None and kept < total:
        of_all = "the leaderboard's and the differences'" if len(whole.time) == total else "the leaderboard's"
        notes.append(f"Other figures than {of_all} are made of {kept:,} of the {total:,} samples, drawn evenly.")
    members = {row["trial"]: row["members"] for row in trials}
    if any(model.trial is not None and members.get(model.trial) for model in judged.predicted):
        notes.append(
            "Predictions and single figures of a population are those of its best seed; the leaderboard and the "
            "differences on the test part have means over seeds."
        )
    if len(judged.targets) > 1:
        notes.append("Figures pool all targets in their own units, so the one with the largest numbers weighs most.")
    if seen.task != "regression" and len(set(judged.series)) > 1:
        notes.append("Figures pool all series as they are, so one with larger numbers than the others weighs more.")
    return notes
