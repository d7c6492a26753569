"""The search's own row in the tables: with it, a report can be made again from Parquet alone."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xlstm_tune.models.baselines import mase_scale
from xlstm_tune.results import ResultsWriter, read
from xlstm_tune.search.persistence.folder import ENVIRONMENT, disk_stop, frozen
from xlstm_tune.search.placement.resources import Placement
from xlstm_tune.search.plan import Plan, group_columns
from xlstm_tune.search.stopping import STOPS


class SearchRecord:
    """Writes the row when a part of the search begins and when it ends; killed in between, it stays `running`."""

    def __init__(self, plan: Plan, placement: Placement, results: ResultsWriter) -> None:
        """`results` is the open writer of the search's folder, which holds the row of an earlier part, if any."""
        self._results = results
        self._began = datetime.now(UTC)
        earlier = [row for row in read(plan.folder, "search").to_pylist() if row["name"] == plan.spec.name]
        before = earlier[-1] if earlier else None
        self._row: dict[str, Any] = {
            "name": plan.spec.name,
            "spec": frozen(plan.spec),
            "environment": _environment(plan.folder),
            "data": data_facts(plan),
            "concurrent": placement.concurrent,
            "cpus_per_trial": placement.cpus,
            "gpus_per_trial": placement.gpus,
            "status": "running",
            "started": before["started"] if before else self._began,
            "resumed": self._began if before else None,
            "seconds": _seconds_before(plan.folder, before) if before else 0.0,
        }

    def begin(self) -> None:
        """This part of the search has begun."""
        self._results.search(self._row)

    def end(self, cut: str | None, why: str | None = None) -> None:
        """This part has ended. cut: the reason that trials were left out for; None when none was.

        why: any other reason that it did not come to all its trials.
        """
        now = datetime.now(UTC)
        row = self._row | {
            "status": "interrupted" if cut in STOPS else "completed",
            "reason": cut or why,
            "ended": now,
            "seconds": self._row["seconds"] + (now - self._began).total_seconds(),
        }
        try:
            self._results.search(row)
        except OSError as error:
            if not disk_stop(error):  # else the row stays `running`, and a resume writes it
                raise


def data_facts(plan: Plan) -> dict[str, Any]:
    """What is to be known of the data without reading them again, as plain values.

    task, targets, inputs, lookback, max_lookback (the larger of that and the space's, for which windows are cut),
    horizon, season (steps; 1 = none known), keys (columns that tell series or sequences apart), groups (those of them
    by which errors are looked at), samples of each part, notes (what was left out and why), fingerprint (of the data
    and how they are cut), table_fingerprint (of the data alone).
    Per target, in its own units: target_mean, target_std (of the training part), mase_scale (null where undefined).
    best_possible: RMSE of the known conditional mean per part; null where nobody knows it.
    """
    data, table = plan.data, plan.table
    return {
        "task": data.task,
        "targets": list(data.target_names),
        "target_mean": [float(value) for value in data.target_mean],
        "target_std": [float(value) for value in data.target_std],
        "mase_scale": mase_scale(data, table.offsets),
        "season": data.season,
        "lookback": data.lookback,
        "max_lookback": plan.spec.max_lookback(),
        "horizon": data.horizon,
        "fingerprint": data.fingerprint,
        "table_fingerprint": table.fingerprint,
        "samples": {part: len(samples) for part, samples in data.parts.items()},
        "inputs": [*data.feature_names, *data.static_names],
        "keys": list(table.key_names),
        "groups": list(group_columns(table, data)),
        "notes": list(plan.notes),
        "best_possible": plan.best_possible,
    }


def _environment(folder: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads((folder / ENVIRONMENT).read_bytes())
        if isinstance(content, dict):
            return content
    return {}


def _seconds_before(folder: Path, before: dict[str, Any]) -> float:
    """Seconds that earlier parts ran; of one that was killed, up to its last sign of life."""
    seconds = float(before["seconds"] or 0.0)
    if before["status"] != "running":
        return seconds
    began = before["resumed"] or before["started"]
    signs = [*read(folder, "epochs")["timestamp"].to_pylist(), *read(folder, "trials")["ended"].to_pylist()]
    last = max((sign for sign in signs if sign is not None), default=began)
    return seconds + max(0.0, float((last - began).total_seconds()))
