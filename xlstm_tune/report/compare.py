"""Two or more searches side by side, if they were asked the same of the same data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from xlstm_tune.errors import StorageError
from xlstm_tune.ranking import METRICS, scored
from xlstm_tune.report.budget import REFUSED, UNFINISHED, counted_as, early_end
from xlstm_tune.report.differences import Compared, Difference, compare_pairs
from xlstm_tune.report.evidence import objective_of, search_row
from xlstm_tune.report.predictions import Judged, Model, facts, of_all_samples, read_predictions, seed_scores
from xlstm_tune.results import read

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Searched:
    """One search, as it stands."""

    name: str
    folder: Path
    winner: Model | None
    """The best trial by the objective on validation; None where none was scored."""
    validation: Mapping[str, float | None]
    """The winner's rmse, mae (target's units), mse_standardised, mae_standardised; {} without a winner."""
    test: Mapping[str, float | None]
    """The same on the test part; {} before that is looked at."""
    errors: tuple[float | None, float | None]
    """Standard errors of the objective's means over seeds, on validation and test; None where there is one seed."""
    trials: int
    """That ended; duplicates, and what was cut short or refused, are not counted."""
    seconds: float | None
    """That the search ran; None where that is not known."""


@dataclass(frozen=True)
class Comparison:
    """Searches, best first by the objective on validation."""

    objective: str
    searches: list[Searched]
    differences: list[Difference]
    """On test, of the winner of the first search that has test predictions, which need not be the best on validation,
    to every later one's whose predictions are of the same samples. The models are as `named` has them."""
    blocks: float
    """Independent blocks or groups that the differences rest on; 0 without differences."""
    resampled: str
    notes: list[str]


def named(one: Searched) -> Model | None:
    """A search's winner as the differences have it, `search: model`; None where there is no winner."""
    return one.winner and replace(one.winner, name=f"{one.name}: {one.winner.name}")


def comparable(folders: Sequence[Path]) -> list[str]:
    """Why these searches cannot be compared, a sentence each; [] where they can.

    Raises StorageError for a folder that holds no results.
    """
    known = [_known(folder) for folder in folders]
    reasons = []
    for (one, first), (other, second) in pairwise(zip(_names(folders), known, strict=True)):
        differing = [
            f"{what} ({first[what]} in {one}, {second[what]} in {other})"
            for what in ("task", "targets", "horizon", "objective")
            if first[what] != second[what] and None not in (first[what], second[what])
        ]
        if differing:
            reasons.append(f"{one} and {other} cannot be compared, since they differ in {' and in '.join(differing)}.")
        elif first["fingerprint"] is None or second["fingerprint"] is None:
            missing = one if first["fingerprint"] is None else other
            reasons.append(f"{one} and {other} cannot be compared: nothing in {missing} says which data it was given.")
        elif first["fingerprint"] != second["fingerprint"] and (
            first["sequences"] is None or first["sequences"] != second["sequences"]
        ):
            reasons.append(f"{one} and {other} cannot be compared, since {_why(first, second, one, other)}.")
    return reasons


def compare(folders: Sequence[Path]) -> Comparison:
    """Names, winners, figures and cost of two or more searches, and how sure the best one's lead on test is.

    Raises StorageError when they cannot be compared, with the first reason, or when there are fewer than two.
    """
    if len(folders) < 2:
        raise StorageError(f"a comparison takes two or more searches, got {len(folders)}")
    if reasons := comparable(folders):
        raise StorageError(reasons[0])
    rows = [search_row(folder) for folder in folders]
    objective = next((objective_of(row) for row in rows if row), objective_of(None))
    found = [
        _searched(name, folder, row, objective)
        for name, folder, row in zip(_names(folders), folders, rows, strict=True)
    ]
    metric = objective.removeprefix("val_")
    found.sort(key=lambda one: (one.winner is None, one.validation.get(metric) or 0.0, one.name))
    seen = facts(next((row["data"] for row in rows if row), None))
    notes: list[str] = []
    judged, seeds = _together(found, notes, objective)
    compared = Compared([], "windows", 1, 0.0, "nothing, as nothing was compared", [])
    if judged and len(judged.predicted) > 1:
        first, *others = judged.predicted
        compared = compare_pairs(judged, [(first, other) for other in others], seen, seeds)
        if seen.task is None:
            notes.append("Nothing says whether these are forecasts; they were taken for such.")
    return Comparison(
        objective, found, compared.differences, compared.blocks, compared.resampled, [*notes, *compared.notes]
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names; whole paths where two are alike."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _known(folder: Path) -> dict[str, Any]:
    """What has to agree; None where nothing says it."""
    row = search_row(folder)
    data = (row or {}).get("data") or {}
    environment: Any = (row or {}).get("environment") or {}
    with suppress(OSError, ValueError):
        environment = environment or json.loads((folder / ENVIRONMENT).read_bytes())
    before = environment.get("data_fingerprint") if isinstance(environment, dict) else None
    section = dict(((row or {}).get("spec") or {}).get("data") or {})
    section.pop("source", None)
    sequences = None
    if data.get("task") == "regression" and data.get("table_fingerprint"):
        # Whole sequences: what of each a model looks at changes neither them nor their parts.
        sequences = json.dumps([data["table_fingerprint"], {**section, "lookback": None}], sort_keys=True)
    return {
        "task": data.get("task"),
        "targets": ", ".join(data["targets"]) if data else None,
        "horizon": data.get("horizon"),
        "objective": objective_of(row) if row else None,
        "fingerprint": data.get("fingerprint") or before,
        "sequences": sequences,
        "table": data.get("table_fingerprint"),
        "lookback": data.get("max_lookback") or data.get("lookback"),
        "section": section,
    }


def _why(first: Mapping[str, Any], second: Mapping[str, Any], one: str, other: str) -> str:
    """What of the data differs, in words that follow `since`."""
    sections = [{**known["section"], "lookback": None} for known in (first, second)]
    differing = sorted(
        key for key in sections[0].keys() | sections[1].keys() if sections[0].get(key) != sections[1].get(key)
    )
    if first["table"] is None or second["table"] is None:
        return "the data, or how they are cut, differ"
    if not differing and first["table"] == second["table"]:
        return (
            "the same data were cut for another lookback, which leaves other windows: the largest is "
            f"{first['lookback']} in {one} and {second['lookback']} in {other}"
        )
    if differing:
        words = (
            f"data.{key} ({sections[0].get(key)} in {one}, {sections[1].get(key)} in {other})" for key in differing
        )
        return f"they differ in {' and in '.join(words)}"
    return "the values in their tables differ"


def _searched(name: str, folder: Path, row: Mapping[str, Any] | None, objective: str) -> Searched:
    trials = read(folder, "trials").to_pylist()
    ranked = scored(trials, objective)
    best = ranked[0] if ranked else None
    test: dict[str, float | None] = {}
    test_error = None
    for score in read(folder, "scores").to_pylist():
        if best and score["trial"] == best["trial"] and score["part"] == "test":
            test = {metric: score[metric] for metric in METRICS}
            test_error = score[f"{objective.removeprefix('val_')}_std_error"]
    return Searched(
        name,
        folder,
        winner=Model(best["name"], best["family"], best["trial"], early_end(best)) if best else None,
        validation={metric: best[f"val_{metric}"] for metric in METRICS} if best else {},
        test=test,
        errors=(best["std_error"] if best else None, test_error),
        trials=sum(counted_as(trial) not in ("duplicate", UNFINISHED, REFUSED) for trial in trials),
        seconds=float(row["seconds"]) if row and row["ended"] and row["seconds"] else None,
    )


def _together(
    found: Sequence[Searched], notes: list[str], objective: str
) -> tuple[Judged | None, dict[Model, list[float]]]:
    """What the winners were off by on the test part, of the same samples, and their seeds' RMSEs; the models as `named`
    has them."""
    whole: Judged | None = None
    seeds: dict[Model, list[float]] = {}
    judged = [_of_winner(one) for one in found]
    all_of = [own and of_all_samples(one.folder, own) for one, own in zip(found, judged, strict=True)]
    if len({len(own.time) for own in all_of if own}) == 1:  # none is of a search that kept some of its errors alone
        judged = all_of
    for one, own in zip(found, judged, strict=True):
        model = named(one)
        if not model or not own:
            notes.append(f"{one.name} has no test predictions of its best trial yet.")
            continue
        (values,) = own.predicted.values()
        of_seeds = seed_scores(one.folder, objective)
        if model.trial in of_seeds:
            seeds[model] = of_seeds[model.trial]
        if whole is None:
            whole = replace(own, predicted={model: values})
        elif (whole.series, whole.time, whole.targets) != (own.series, own.time, own.targets):
            notes.append(f"The predictions kept of {one.name} are of other samples, so its test figures stand alone.")
        else:
            whole = replace(whole, predicted={**whole.predicted, model: values})
    return whole, seeds


def _of_winner(one: Searched) -> Judged | None:
    """The predictions that were kept of a winner on the test part; None where there are none."""
    if one.winner is None:
        return None
    return read_predictions(one.folder, "test", [(one.winner.family or "", one.winner)])
