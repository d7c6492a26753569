"""The champion's folder: `champion.json` says everything about the model and its data, two files hold the tensors.

H horizon steps, K targets.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xlstm_tune import __version__
from xlstm_tune.data.clock import Kind
from xlstm_tune.data.columns import as_truth
from xlstm_tune.data.config import DataConfig
from xlstm_tune.data.scaling import Columns, Scaling
from xlstm_tune.data.windows import standardised_floor
from xlstm_tune.errors import StorageError, joined_lines, reaching
from xlstm_tune.layout import ABOUT, WEIGHTS
from xlstm_tune.lines import sync
from xlstm_tune.models.config import ModelConfig
from xlstm_tune.models.forecaster import Forecaster, Shape, build_model
from xlstm_tune.predict.columns import output_columns
from xlstm_tune.predict.intervals import Array, Residuals
from xlstm_tune.training.checkpoint import load_weights, save_weights, sha256_of
from xlstm_tune.training.config import TrainingConfig, TrialConfig

SCHEMA = 5
"""1 took the residuals of all series together, 2 knew no minimum of targets, 3 rounded all inputs to float32, 4 knew no
ISO weeks."""
CHECKSUM = "checksum"
"""Key of `champion.json`: SHA-256 of all that it holds besides. Earlier programs gave none."""
RESIDUALS = "residuals.safetensors"
EXAMPLE = "example.json"
"""A request that a server of the model answers: rows of the user's table."""
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
"""Of the interval widths that `champion.json` shows; any other comes from the residuals themselves."""


class DamagedChampion(StorageError):
    """What makes a champion is lacking or damaged, and can be made anew by a search that has its weights."""


@dataclass(frozen=True)
class Champion:
    """A model and all that turns a table into its inputs and its outputs into the target's units."""

    search: str
    trial: int
    title: str
    data: DataConfig
    """With every column by name; `source` means nothing."""
    config: TrialConfig
    """`lookback` is the L that the model was built for, of a regression the longest sequence of the search."""
    shape: Shape
    scaling: Scaling
    time_kind: Kind
    step: int | None
    """The commonest time step in the search's data, as `Table.step`."""
    months: int | None
    """As `Table.months`; None of earlier programs, which did not record it."""
    week: Array | None
    """Days of the week of the search's data, as `weekdays` has them; None also of earlier programs, which recorded none
    or those of daily rows alone."""
    model: Forecaster
    """On the CPU."""
    residuals: Residuals
    about: dict[str, Any]
    """All of `champion.json`."""

    @property
    def outputs(self) -> list[str]:
        """Columns of the forecasts, in order."""
        return [column["name"] for column in output_columns(self.data, self.config.training.levels)]


def save_champion(
    folder: Path,
    about: dict[str, Any],
    config: TrialConfig,
    data: DataConfig,
    shape: Shape,
    scaling: Scaling,
    weights: dict[str, torch.Tensor],
    residuals: Residuals,
    example: dict[str, Any],
) -> None:
    """Write the folder, whole or not at all; a champion that lies there already is replaced.

    about: what is not derived from the other arguments. Raises OSError when it cannot be written.
    """
    _clear(folder)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    unfinished.mkdir(parents=True)
    try:
        save_weights(unfinished / WEIGHTS, weights)
        save_weights(unfinished / RESIDUALS, _tensors(residuals))
        unset = {"target_minimum"} if data.target_minimum is None else set()
        record = {
            "schema": _schema(data, scaling),
            "program": f"xlstm_tune {__version__}",
            **about,
            "model": config.model.model_dump(),
            "training": config.training.model_dump(),
            "lookback": config.lookback,
            "data": data.model_dump(exclude={"source", "sample", "split", "exclude", "season", "stride", *unset}),
            "shape": {"horizon": shape.horizon, "targets": shape.targets, "varying": shape.varying},
            "inputs": _columns(scaling.inputs),
            "targets": _columns(scaling.targets),
            "static": _columns(scaling.static),
            "intervals": _intervals(residuals),
            "files": {name: sha256_of(unfinished / name) for name in (WEIGHTS, RESIDUALS)},
        }
        record[CHECKSUM] = _checksum(record)
        (unfinished / ABOUT).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
        (unfinished / EXAMPLE).write_text(json.dumps(example, allow_nan=False) + "\n")
        for path in (unfinished / ABOUT, unfinished / EXAMPLE, unfinished):
            sync(path)
        old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _schema(data: DataConfig, scaling: Scaling) -> int:
    """The lowest that has all that the model needs: earlier programs read it where it is one of theirs."""
    if data.time is not None and data.time.format == "iso-week":
        return 5
    if scaling.inputs.exact:
        return 4
    return 2 if data.target_minimum is None else 3


def _clear(folder: Path) -> None:
    """Remove what processes that died left beside the champion's folder."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        found = re.fullmatch(rf"\.{re.escape(folder.name)}\.(\d+)\.(tmp|old)", left.name)
        if found and (int(found[1]) == os.getpid() or not _lives(int(found[1]))):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def load_champion(folder: Path | str) -> Champion:
    """Read what `save_champion` wrote.

    Raises StorageError when there is none, it is damaged, of a newer program or closed to us.
    """
    folder = Path(folder)
    about = read_about(folder)
    for name in (WEIGHTS, RESIDUALS):
        path = folder / name
        with reaching(path, StorageError):
            if not path.is_file():
                raise DamagedChampion(
                    f"the champion {folder} lacks its file {name}; remove the folder to have it made anew"
                )
            if sha256_of(path) != about["files"].get(name):
                raise DamagedChampion(f"{path} is damaged (its checksum differs); remove {folder} to have it made anew")
    try:
        config = TrialConfig(
            ModelConfig.parse(about["model"], "model"),
            TrainingConfig.parse(about["training"], "training"),
            about["lookback"],
        )
        data = DataConfig.parse(about["data"] | {"source": "the table"}, "data")
        forecast = data.task == "forecast"
        inputs, targets, static = (_read_columns(about[key], data) for key in ("inputs", "targets", "static"))
        scaling = Scaling(inputs, targets, static, forecast)
        shape = Shape(
            features=len(scaling.inputs.names),
            lookback=about["lookback"],
            target_columns=scaling.target_columns,
            statics=len(scaling.static.names),
            quantiles=config.training.levels,
            floor=standardised_floor(data.target_minimum, targets.mean, targets.std),
            **about["shape"],
        )
        model = build_model(config.model, shape)
        model.load_state_dict(load_weights(folder / WEIGHTS))
        model.eval()
        residuals = _read_residuals(load_weights(folder / RESIDUALS), about)
        return Champion(
            search=about["search"],
            trial=about["trial"],
            title=about["title"],
            data=data,
            config=config,
            shape=shape,
            scaling=scaling,
            time_kind=about["time"]["kind"],
            step=about["time"]["step"],
            months=about["time"].get("months"),
            week=None if (week := about["time"].get("week")) is None else np.array(week, dtype=np.int64),
            model=model,
            residuals=residuals,
            about=about,
        )
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError, AttributeError) as error:
        raise DamagedChampion(
            f"the champion {folder / ABOUT} is damaged ({type(error).__name__}: {joined_lines(error)[:200]}); remove "
            f"{folder} to have it made anew"
        ) from None


def read_about(folder: Path) -> dict[str, Any]:
    """`champion.json` of a folder. Raises StorageError as `load_champion`."""
    path = folder / ABOUT
    try:
        about: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StorageError(f"there is no champion in {folder}: it has no {ABOUT}") from None
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}); mend that and try again") from None
    except (ValueError, RecursionError) as error:
        raise DamagedChampion(
            f"the champion {path} is damaged: {error}; remove {folder} to have it made anew"
        ) from None
    if not isinstance(about, dict) or not isinstance(schema := about.get("schema"), int):
        raise DamagedChampion(f"{path} is not a champion: it names no schema")
    if schema > SCHEMA:
        raise StorageError(
            f"the champion {folder} has schema {schema} of {about.get('program')}, this program reads up to {SCHEMA}; "
            "use the program that wrote it"
        )
    if not isinstance(about.get("files"), dict):
        raise DamagedChampion(
            f"the champion {path} is damaged: it names no files; remove {folder} to have it made anew"
        )
    if about.pop(CHECKSUM, None) not in (None, _checksum(about)):
        raise DamagedChampion(f"{path} is damaged (its checksum differs); remove {folder} to have it made anew")
    return about


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _columns(columns: Columns) -> dict[str, Any]:
    told = {"names": list(columns.names), "mean": columns.mean.tolist(), "std": columns.std.tolist()}
    return told | ({"exact": list(columns.exact)} if columns.exact else {})


def _read_columns(raw: dict[str, Any], data: DataConfig) -> Columns:
    mean, std = (np.array(raw[key], dtype=np.float64) for key in ("mean", "std"))
    if not len(raw["names"]) == len(mean) == len(std):
        raise ValueError("names, mean and std of columns differ in number")
    # Those of earlier programs were all rounded to float32 first.
    return Columns(_with_truths(raw["names"], data.categories), mean, std, tuple(raw.get("exact", ())))


def _with_truths(names: list[str], categories: list[str]) -> tuple[str, ...]:
    """Inputs with truths as tables have them now: earlier programs kept those in text, such as `open=True`."""
    made = list(names)
    for begin in (f"{name}=" for name in categories):
        made = [begin + as_truth(name[len(begin) :]) if name.startswith(begin) else name for name in made]
    # One that learnt of both spellings keeps them apart.
    return tuple(new if made.count(new) == 1 else old for old, new in zip(names, made, strict=True))


def _intervals(residuals: Residuals) -> dict[str, Any]:
    told: dict[str, Any] = {"method": "split conformal", "samples": len(residuals)}
    if residuals.scales is None:
        told["unit"] = "the target's"
    else:
        told |= {"series": list(residuals.names), "unit": "the mean absolute one-step difference of each series"}
    return told | {"half_widths": {str(level): _plain(residuals.unit_widths(level)) for level in LEVELS}}


def _tensors(residuals: Residuals) -> dict[str, torch.Tensor]:
    arrays = {"residuals": residuals.values, "counts": residuals.counts, "scales": residuals.scales}
    return {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}


def _read_residuals(tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> Residuals:
    values = tensors["residuals"].numpy()
    if "scales" not in tensors:
        return Residuals(values)
    names, counts, scales = tuple(about["intervals"]["series"]), tensors["counts"].numpy(), tensors["scales"].numpy()
    if not len(names) == len(counts) == len(scales) or counts.sum() != len(values):
        raise ValueError("the series of the intervals differ in number")
    return Residuals(values, names, counts, scales)


def _plain(array: Array) -> list[Any]:
    """Nested lists with None for NaN."""
    return [[None if np.isnan(cell) else float(cell) for cell in row] for row in array]
