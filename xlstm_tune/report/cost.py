"""What a search took of the machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from xlstm_tune.report.budget import never_begun


def cost(trials: Iterable[Mapping[str, Any]], search: Mapping[str, Any] | None) -> dict[str, float]:
    """cpu_hours and gpu_hours that trials had, and trials_per_hour of the search's own time.

    trials: rows of the trials table. search: the row of the search table; None = {}, as nothing is known then. Hours
    are those for which a trial held its share of the machine, busy or not. Trials per hour are left out while the
    search runs; what was not trained, duplicates and what was refused, is not counted.
    """
    if search is None:
        return {}
    trained = [row for row in trials if row["status"] != "duplicate" and not never_begun(row)]
    hours = sum(row["seconds"] or 0.0 for row in trained) / 3600
    figures = {
        f"{kind}_hours": hours * search[f"{kind}s_per_trial"]
        for kind in ("cpu", "gpu")
        if search[f"{kind}s_per_trial"] is not None
    }
    if (seconds := _seconds(search)) and trained:
        figures["trials_per_hour"] = 3600 * len(trained) / seconds
    return figures


def _seconds(search: Mapping[str, Any]) -> float | None:
    """That the search has run; None while it does."""
    if search["ended"] is None:
        return None
    return float(search["seconds"] or (search["ended"] - search["started"]).total_seconds())
