"""From a finished search to its champion's folder."""

from __future__ import annotations

import datetime
import json
import shlex
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from xlstm_tune.data.clock import plain, weekdays
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.prepare import prepare
from xlstm_tune.data.scaling import Scaling
from xlstm_tune.data.table import Table, load_table
from xlstm_tune.data.windows import Prepared
from xlstm_tune.errors import StorageError, reaching
from xlstm_tune.layout import ABOUT, CHAMPION, ENVIRONMENT, LOCK, SPEC, WEIGHTS, member_folder, trial_folder
from xlstm_tune.predict.champion import save_champion
from xlstm_tune.predict.columns import output_columns
from xlstm_tune.predict.familiar import learnt
from xlstm_tune.predict.intervals import Residuals, changes, positive
from xlstm_tune.ranking import METRICS, scored
from xlstm_tune.results import read
from xlstm_tune.search_file import load_spec
from xlstm_tune.spec import SearchSpec
from xlstm_tune.storage.copy import kept_at
from xlstm_tune.training.checkpoint import load_weights
from xlstm_tune.training.loop import shape_of

PACKAGES = ("torch", "numpy", "numba", "pyarrow", "safetensors", "pydantic", "PyYAML", "epiweeks", "pandas", "mlflow")
"""What predicting needs besides this package, pinned for whoever serves the model."""


BEGINS = {"validation": "val", "test": "test"}
"""Part → how columns of the members table begin."""


@dataclass(frozen=True)
class Refit:
    """The winner trained again on training and validation part together."""

    weights: Path
    scaling: Scaling
    epochs: int
    test: dict[str, float]
    """Every metric on the test part."""


@dataclass(frozen=True)
class Winner:
    """The best trial of a search, and of a population the best seed of its best setting."""

    row: dict[str, Any]
    """Of the trials table."""
    member: int | None
    epochs: int
    """Its best epoch, from 1."""
    scores: dict[str, dict[str, float]] | None = None
    """Of the member, part → metric → value, where `row` has the means over seeds; None without members,
    or before they are scored on the test part."""

    @property
    def settings(self) -> dict[str, Any]:
        """Its point of the space, with what the best member of a population has of its own."""
        settings: dict[str, Any] = json.loads(self.row["params"])
        if self.row["setting"]:
            settings |= json.loads(self.row["setting"])
            settings["training.seed"] = json.loads(self.row["config"])["training.seed"]
        return settings

    def folder(self, search_folder: Path) -> Path:
        """Where its best weights lie."""
        place = trial_folder(search_folder, self.row["trial"])
        return place if self.member is None else member_folder(place, self.member)


def find_winner(folder: Path, objective: str) -> Winner | None:
    """The trial that the leaderboard has first; None when none was scored. Raises StorageError without results."""
    rows = read(folder, "trials").to_pylist()
    ranked = scored(rows, objective)
    if not ranked:
        return None
    best = ranked[0]
    members = [
        row
        for row in read(folder, "members").to_pylist()
        if row["trial"] == best["trial"]
        and best["setting"]
        and json.loads(row["setting"]) == json.loads(best["setting"])
    ]
    if not members:
        return Winner(best, None, best["best_epoch"])
    chosen = min(members, key=lambda row: (row[objective], row["member"]))
    scores = {part: {name: chosen[f"{short}_{name}"] for name in METRICS} for part, short in BEGINS.items()}
    tested = chosen["test_rmse"] is not None
    return Winner(best, chosen["member"], chosen["best_epoch"], scores if tested else None)


def make_champion(
    folder: Path, spec: SearchSpec, table: Table, data: Prepared, refit: Refit | None = None, note: str | None = None
) -> Path | None:
    """Write `<folder>/champion` and return it; None where no trial has been scored on the test part.

    table, data: what the search was run on. note: why there is no refit though one was wanted. Raises OSError when the
    folder cannot be written, CheckpointError when the winner's weights are gone.
    """
    winner = find_winner(folder, spec.search.objective)
    if winner is None:
        return None
    number = winner.row["trial"]
    scores = {row["part"]: row for row in read(folder, "scores").to_pylist() if row["trial"] == number}
    if "test" not in scores:
        return None
    assert data.scaling is not None
    config = spec.resolve(winner.settings)
    shape = shape_of(data, config)
    scaling = data.scaling if refit is None else refit.scaling
    recipe = _recipe(spec.data, table, shape.lookback)
    week = weekdays(table.shown, table.offsets, table.step, table.time_kind)
    inputs = _input_columns(table.sample)
    example = _example(table.sample, inputs, recipe, shape.lookback)
    about = {
        "search": spec.name,
        "trial": number,
        "member": winner.member,
        "title": winner.row["name"],
        "objective": spec.search.objective,
        "data_fingerprint": data.fingerprint,
        "time": {
            "kind": table.time_kind,
            "step": table.step,
            "months": table.months,
            "week": None if week is None else week.tolist(),
        },
        "learnt": learnt(table, data),
        "validation_samples": len(data.parts["validation"]),
        "refit": refit is not None,
        "refit_note": note,
        "scores": {part: {name: row[name] for name in METRICS} for part, row in scores.items()},
        "serving": {
            "inputs": inputs,
            "outputs": output_columns(recipe, shape.quantiles),
            "requirements": [f"xlstm-tune=={_version('xlstm-tune')}", *_pins()],
        },
    }
    if winner.scores is not None:
        about["member_scores"] = winner.scores
    if refit is not None:
        about["refit_epochs"], about["refit_scores"] = refit.epochs, {"test": refit.test}
        about["intervals_note"] = "from the validation residuals of the winner before it was trained again"
    place = folder / CHAMPION
    weights = load_weights(winner.folder(folder) / WEIGHTS if refit is None else refit.weights)
    residuals = validation_residuals(folder, number, table, data)
    config = replace(config, lookback=shape.lookback)
    save_champion(place, about, config, recipe, shape, scaling, weights, residuals, example)
    return place


def validation_residuals(folder: Path, number: int, table: Table, data: Prepared) -> Residuals:
    """Of a trial on the validation part, from the predictions that the search kept, which of many windows are not those
    of all; of a population its best seed's."""
    kept = read(folder, "predictions")
    rows = kept.filter(pc.and_(pc.equal(kept["trial"], number), pc.equal(kept["part"], "validation")))
    errors = np.abs(rows["actual"].to_numpy() - rows["predicted"].to_numpy())
    errors = errors.reshape(-1, data.horizon, len(data.target_names))
    if data.task == "regression":
        return Residuals(np.sort(errors, axis=0))
    names = [table.series_name(one) for one in range(len(table.keys))]
    place = {name: one for one, name in enumerate(names)}
    series = [place[name] for name in rows["series"].to_pylist()[:: data.horizon * len(data.target_names)]]
    return Residuals.by_series(errors, np.array(series), names, positive(changes(table, _trained(table, data))))


def champion_of(folder: Path) -> Path:
    """The champion's folder of a search, made now if the search has none; of such a folder, itself.

    Raises StorageError when the search has not come to its end, its data have changed since, or it is closed to us.
    """
    for place in (folder, folder / CHAMPION):
        with reaching(place, StorageError):
            if (place / ABOUT).exists():
                return place
    spec = load_spec(str(folder / SPEC))
    if not (folder / "results").is_dir() or not read(folder, "scores").num_rows:
        if who := _runs(folder):
            raise StorageError(
                f"the search '{folder.name}' has no winner yet: it is still being run by {who}; wait until it ends"
            )
        if failed := _failures(folder, spec):
            raise StorageError(
                f"the search '{folder.name}' has no winner, because no trial could be scored ({failed} failed); its "
                f"report says why; give it more by {_resume(folder)} --trials N, or begin one with other settings"
            )
        raise StorageError(
            f"the search '{folder.name}' has no winner yet, because it has not come to its end; go on with it by "
            f"{_resume(folder)}"
        )
    table = load_table(spec.data)
    data = prepare(table, spec.data, spec.max_lookback())
    try:
        before = json.loads((folder / ENVIRONMENT).read_bytes())["data_fingerprint"]
    except (OSError, ValueError, TypeError, KeyError):
        before = None
    if data.rounded is not None and before == data.rounded.fingerprint:  # what the weights have learnt from
        table = load_table(spec.data, exact=())
        data = prepare(table, spec.data, spec.max_lookback())
    if before != data.fingerprint:
        raise StorageError(
            f"the search '{folder.name}' has no champion yet, and the data that one would be made with have changed "
            "since; bring the old data back"
        )
    try:
        made = make_champion(folder, spec, table, data)
    except OSError as error:
        raise StorageError(f"the champion {place} cannot be written ({error.strerror or error})") from None
    if made is None:
        raise StorageError(
            f"the best trial of the search '{folder.name}' has not been scored on the test part yet; go on with the "
            f"search by {_resume(folder)}"
        )
    return made


def _resume(folder: Path) -> str:
    place = shlex.quote(kept_at(folder) or str(folder.absolute().parent))
    return f"python -m xlstm_tune.search --resume {shlex.quote(folder.name)} --storage {place}"


def _failures(folder: Path, spec: SearchSpec) -> int:
    """How many trials a search has that have all failed; 0 where one has a score, or none has ended."""
    if not (folder / "results").is_dir():
        return 0
    rows = read(folder, "trials").to_pylist()
    failed = [row["status"] in ("failed", "duplicate") and row[spec.search.objective] is None for row in rows]
    return len(rows) if all(failed) else 0


def _runs(folder: Path) -> str | None:
    """Who runs the search; None where nobody does, or the file system knows no locks."""
    try:
        import fcntl

        with (folder / LOCK).open() as file:
            # Asks without holding on: the lock is free again when the file is closed.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (folder / LOCK).read_text().strip() or "another process"
    except (ImportError, OSError):
        pass
    return None


def _recipe(config: DataConfig, table: Table, lookback: int) -> DataConfig:
    """The data section with every column by name."""
    inputs = [
        name
        for name in table.sample.column_names
        if name in table.features or (name in config.categories and name not in config.static)
    ]
    return config.model_copy(
        update={
            "target": list(table.target_names),
            "features": inputs,
            "exclude": [],
            "lookback": lookback if config.task == "forecast" else config.lookback,
        }
    )


def _input_columns(sample: pa.Table) -> list[dict[str, str]]:
    """The user's columns and what they held: text, numbers, truths. A request may write its cells in another way."""
    columns = []
    for name in sample.column_names:
        kind = plain(sample.column(name)).type
        if pa.types.is_integer(kind):
            told = "long"
        elif pa.types.is_boolean(kind):
            told = "boolean"
        elif pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
            told = "double"
        else:
            told = "string"
        columns.append({"name": name, "type": told})
    return columns


def _example(sample: pa.Table, columns: list[dict[str, str]], recipe: DataConfig, lookback: int) -> dict[str, Any]:
    """A request with the last rows of the first series: at least as many as the model looks at."""
    start = max(0, sample.num_rows - lookback) if recipe.task == "forecast" else 0
    while start and any(sample.column(name)[start].as_py() is None for name in sample.column_names):
        start -= 1  # a blank that `forward_fill` has to fill from the row before
    rows = sample.slice(start)
    told = {column["name"]: column["type"] for column in columns}
    cells = [[_cell(value, told[name]) for value in rows.column(name).to_pylist()] for name in rows.column_names]
    return {"dataframe_split": {"columns": rows.column_names, "data": [list(row) for row in zip(*cells, strict=True)]}}


def _cell(value: Any, told: str) -> Any:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if told == "string":
        return value.isoformat() if isinstance(value, datetime.date | datetime.datetime) else str(value)
    if told == "double":
        return float(value)
    return value


def _trained(table: Table, data: Prepared) -> npt.NDArray[np.int64]:
    """[S] one past the last row of each series that training saw; past its last where training saw none of it."""
    ends = data.ends[data.parts["train"]]
    last = np.zeros(len(table.keys), dtype=np.int64)
    np.maximum.at(last, np.searchsorted(table.offsets, ends - 1, side="right") - 1, ends + data.horizon)
    return np.where(last > 0, last, table.offsets[1:])


def _pins() -> list[str]:
    return [f"{name}=={version}" for name in PACKAGES if (version := _version(name))]


def _version(name: str) -> str:
    try:
        return metadata.version(name).partition("+")[0]  # 2.13.0+cpu: which build is for whoever installs it
    except metadata.PackageNotFoundError:
        from xlstm_tune import __version__

        return __version__ if name == "xlstm-tune" else ""
