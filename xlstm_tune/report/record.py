"""Everything that a page says about one search, read from its folder once."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import yaml

from xlstm_tune.errors import StorageError, joined_lines
from xlstm_tune.layout import ENVIRONMENT, SPEC
from xlstm_tune.ranking import METRICS, has_score
from xlstm_tune.report.budget import FamilyBudget, counted_as, equal_budget, how_ended
from xlstm_tune.report.evidence import Evidence
from xlstm_tune.report.leaderboard import Leaderboard, build_leaderboard
from xlstm_tune.report.style import Palette
from xlstm_tune.results import read
from xlstm_tune.strict import did_you_mean

if TYPE_CHECKING:
    from xlstm_tune.report.study import Rebuilt

MADE_ANEW = "--resume NAME makes them anew"
"""What is said of tables that a search which has ended lacks."""
OBJECTIVES = tuple(f"val_{name}" for name in METRICS)


@dataclass(frozen=True)
class Record:
    """One search. Errors are in the target's own units, seconds are seconds, memory is MiB."""

    folder: Path
    name: str
    objective: str
    """Such as `val_rmse`; what is minimised."""
    board: Leaderboard
    trials: list[dict[str, Any]]
    """Rows of the trials table by number; `params` as a dict, `status` as `how_ended` has it. Trials that have not
    ended have none."""
    curves: dict[int, list[tuple[int, float | None]]]
    """Of each trial, the objective by epoch; those that still run included."""
    predictions: pa.Table
    spec: Mapping[str, Any]
    spec_text: str
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    """Facts of the data as the search noted them: task, targets, notes, best_possible, …; empty when it noted none."""
    status: str
    """running (it may have been killed as well), completed or interrupted."""
    reason: str | None = None
    """Why it was interrupted."""
    started: datetime | None = None
    ended: datetime | None = None
    seconds: float | None = None
    """Over all its parts, without the pauses between them."""
    gpus_per_trial: float | None = None
    """None in searches that were written without it."""
    evidence: Evidence | None = None
    """Which models are told apart (evidence.py); None when nobody can tell."""
    budgets: Sequence[FamilyBudget] = ()
    """Families at equal budget (budget.py)."""
    palette: Palette = field(default_factory=lambda: Palette(()))

    @property
    def metric(self) -> str:
        """The objective without `val_`."""
        return self.objective.removeprefix("val_")

    @property
    def running(self) -> bool:
        """Whether the search has not ended."""
        return self.status == "running"

    @property
    def scored(self) -> list[dict[str, Any]]:
        """Trials with a value of the objective, best epoch each; duplicates are left out."""
        return [row for row in self.trials if has_score(row, self.objective) and finite(row[self.objective])]

    @property
    def counts(self) -> Counter[str]:
        """Trials by how they ended, as `counted_as` has it."""
        return Counter(map(counted_as, self.trials))

    @cached_property
    def rebuilt(self) -> Rebuilt:
        """The study that Optuna's figures are made of (study.py), made once for all of them."""
        from xlstm_tune.report.study import rebuild

        return rebuild(self)

    @property
    def planned(self) -> int | None:
        """Trials that the search file asks for; None where it leaves that open."""
        trials = section(self.spec, "search").get("trials")
        return trials if isinstance(trials, int) else None

    def best_possible(self, part: str) -> float | None:
        """The best RMSE that any model can have on a part, where simulated data tell; None for other objectives."""
        known = self.data.get("best_possible")
        value = known.get(part) if isinstance(known, Mapping) and self.metric == "rmse" else None
        return float(value) if value is not None and finite(value) else None


def finite(value: object) -> bool:
    """Whether this is a number, and not infinite or NaN."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def find_search(name: str, storage: str) -> Path:
    """The folder of a search, by its name in the storage folder or as a path.

    Raises StorageError when there is none.
    """
    root = Path(os.path.expanduser(storage))
    places = [root / name, Path(os.path.expanduser(name))]
    for folder in places:
        if os.path.isdir(folder / "results"):
            return folder
    if any(os.path.isdir(folder) for folder in places):
        raise StorageError(f"'{name}' holds no results of a search (it has no folder 'results'); name a search folder")
    known = [path.parent.name for path in root.glob("*/results")] if os.path.isdir(root) else []
    hint = did_you_mean(name, known, dotted=False) if known else "no search lies there; name its folder with --storage"
    raise StorageError(f"{storage} holds no search '{name}'; {hint}")


def read_record(folder: Path, board: Leaderboard | None = None) -> Record:
    """Read a search folder, also while the search runs.

    board: the leaderboard of these tables, where the caller has made it already.
    Raises StorageError when it holds no results, or what it holds is damaged or newer than this program.
    """
    try:
        rows = read(folder, "search").to_pylist()
        row = rows[-1] if rows else {}
        spec, text = _spec(folder, row)
        objective = section(spec, "search").get("objective", OBJECTIVES[0])
        if objective not in OBJECTIVES:
            raise StorageError(f"{folder} searches for '{objective}', which this xlstm_tune does not know; update it")
        trials = sorted(read(folder, "trials").to_pylist(), key=lambda one: one["trial"])
        board = board or build_leaderboard(folder, objective)
        curves: dict[int, list[tuple[int, float | None]]] = {}
        epochs = read(folder, "epochs").select(["trial", "epoch", objective]).to_pydict()
        predictions = read(folder, "predictions")
        for one in trials:
            one["params"], one["status"] = json.loads(one["params"] or "{}"), how_ended(one)
    except (pa.ArrowInvalid, json.JSONDecodeError) as error:
        raise StorageError(f"the tables in {folder / 'results'} are damaged ({joined_lines(error)[:200]})") from None
    for trial, epoch, value in zip(epochs["trial"], epochs["epoch"], epochs[objective], strict=True):
        curves.setdefault(trial, []).append((epoch, value))
    for curve in curves.values():
        curve.sort()
    return Record(
        folder=folder,
        name=str(row.get("name") or spec.get("name") or folder.absolute().name),
        objective=objective,
        board=board,
        trials=trials,
        curves=curves,
        predictions=predictions,
        spec=spec,
        spec_text=text,
        environment=_environment(folder, row),
        data=_json(row.get("data")),
        status=row.get("status") or ("running" if _is_open(folder) else "completed"),
        reason=row.get("reason"),
        started=row.get("started") or min((t["started"] for t in trials if t["started"]), default=None),
        seconds=row.get("seconds") if row.get("ended") else None,
        ended=row.get("ended") or max((t["ended"] for t in trials if t["ended"]), default=None),
        gpus_per_trial=row.get("gpus_per_trial"),
        evidence=board.evidence,
        budgets=equal_budget(trials, objective),
        palette=Palette(one["family"] for one in trials),
    )


def section(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of the search file; empty where there is none."""
    found = spec.get(name)
    return found if isinstance(found, Mapping) else {}


def _spec(folder: Path, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The frozen search file as values and as text; both empty where it is not known."""
    if row.get("spec"):
        spec = _json(row["spec"])
        return spec, yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)
    path = folder / SPEC
    try:
        text = path.read_text()
        spec = yaml.safe_load(text)
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise StorageError(f"{path} cannot be read ({joined_lines(error)[:200]}); bring it back") from None
    if not isinstance(spec, dict):
        raise StorageError(f"{path} is no search file; bring it back")
    return spec, text


def _environment(folder: Path, row: Mapping[str, Any]) -> Mapping[str, Any]:
    if row.get("environment"):
        return _json(row["environment"])
    try:
        return _json((folder / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return {}


def _json(text: str | None) -> Mapping[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_open(folder: Path) -> bool:
    """Whether a writer has the tables open, or was killed: it leaves no pending files when it closes them."""
    return any((folder / "results").glob("*/pending.[0-9]*.jsonl"))
